"""Training a motion prior: 3D motions alone, no cameras' images and no pairs (Platypose, arXiv 2403.06164)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import probpose.models
import probpose.schedulers
from probpose.pipelines import PlatyposePipeline, ProbPosePipeline
from probpose.schedulers import EnergyGuidedDDIMScheduler
from probpose.skeletons import bone_lengths

from .config import PriorConfig
from .loop import build_component
from .trainer import copy_weights
from .windows import WindowLoop

_POSE_SPREAD = 0.3
"""Metres: standard deviation of root-relative joints over motion capture."""

_FINEST_NOISE = 0.02
"""Metres: noise below it counts no more in the weighted loss."""

_VALIDATED = (0.1, 0.3, 0.5, 0.8)
"""Timesteps at which validation looks, as shares of all."""


class PriorTrainer(WindowLoop):
    """Trains a motion prior by a recipe; see `TrainingLoop` for arguments and errors."""

    config: PriorConfig

    def build(self) -> Any:
        prior = build_component(probpose.models, self.config.prior, "prior", takes="noisy_pose")
        if "axes" not in prior.config:
            raise ValueError(f"prior.name: {self.config.prior.name} looks at keypoints; MotionPriorModel is a motion prior")
        self.scheduler = build_component(probpose.schedulers, self.config.scheduler, "scheduler")
        if not isinstance(self.scheduler, EnergyGuidedDDIMScheduler):
            raise ValueError(f"scheduler.name: {self.config.scheduler.name} takes no guidance; a prior needs EnergyGuidedDDIMScheduler")
        self._pipeline(prior)  # wrong arguments should not wait for the first checkpoint to be noticed
        optim, config = self.config.optim, prior.config
        self.set_windows(config, "prior", self.config.prior.name, config.num_frames, optim.short_window_share, axes=config.axes)
        if config.bone_lengths is None:
            lengths = bone_lengths(self.training_windows.clips.local, config.skeleton).mean(0)
            prior.register_to_config(bone_lengths=[round(length, 4) for length in lengths.tolist()])
        return prior

    def initialise(self, network: Any) -> None:
        if self.config.initialise_from is not None:
            copy_weights(ProbPosePipeline.from_pretrained(self.config.initialise_from).denoiser, network)

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
        optim, process = self.config.optim, self.accelerator.process_index
        motion = self._motions(self.shortened(batch, optim.short_window_share, generator, optim.short_window_lengths == "even"))
        share = slice(process * len(motion), (process + 1) * len(motion))
        noise = torch.randn(optim.batch_size, *motion.shape[1:], generator=generator)[share].to(motion)
        timestep = torch.randint(len(self.scheduler), (optim.batch_size,), generator=generator)[share].to(motion.device)
        noisy = self.scheduler.add_noise(motion, noise, timestep)
        with self.accelerator.autocast():
            predicted = self.model(None, noisy, timestep, return_dict=False)[0]
        square = (predicted.float() - motion).square().sum(-1)
        mpjpe = square.detach()[..., 1:].sqrt().mean().item()
        weight = torch.ones_like(square)
        weight[..., 0] = optim.trajectory_weight
        if optim.loss == "weighted":
            # 1 / σ² + 1 / σ_d² is one over the variance that a joint keeps when it is seen through noise of deviation σ.
            level = torch.tensor([self.scheduler.noise_level(int(t)) for t in timestep]).clamp_min(_FINEST_NOISE).to(weight)
            weight = weight * (level**-2 + _POSE_SPREAD**-2)[:, None, None]
        return (weight * square).mean(), mpjpe

    def _motions(self, batch: dict[str, Tensor]) -> Tensor:
        """Windows as the prior knows them: the root's trajectory in the root's place."""
        root = batch["root"]
        if self.network.config.trajectory == "relative":
            root = root - root.mean(1, keepdim=True)
        return torch.cat([root[:, :, None], batch["pose"][:, :, 1:]], dim=2)

    def validate(self) -> dict[str, float]:
        """How far the joints of single noised windows are from where they were, at four noise levels."""
        if self.validation_windows is None:
            return {}
        count, errors = self.config.evaluation_windows, {}
        for share in _VALIDATED:
            timestep, total = int(share * len(self.scheduler)), 0.0
            for first in range(0, count, 128):
                rows = list(range(first, min(first + 128, count)))
                motion = self._motions({k: v.to(self.accelerator.device) for k, v in self.validation_windows.render(rows).items()})
                noise = torch.randn(motion.shape, generator=torch.Generator().manual_seed(first)).to(motion)
                noisy = self.scheduler.add_noise(motion, noise, torch.tensor(timestep))
                predicted = self.network(None, noisy, timestep, return_dict=False)[0].float()
                total += 1000 * len(rows) / count * (predicted - motion)[..., 1:, :].norm(dim=-1).mean().item()
            errors[f"denoised_from_{1000 * self.scheduler.noise_level(timestep):.0f}_mm"] = total
        return errors

    def save_pipeline(self, folder: Path) -> None:
        self._pipeline(copy.deepcopy(self.network).to(getattr(torch, self.config.pipeline.dtype))).save_pretrained(folder)

    def _pipeline(self, prior: Any) -> PlatyposePipeline:
        try:
            return PlatyposePipeline(denoiser=prior, scheduler=self.scheduler, **self.config.pipeline.arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"pipeline.arguments: {error}") from None
