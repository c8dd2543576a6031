"""Training a denoiser: clean-pose prediction, as in D3DP (arXiv 2303.11579, §3), on an endless stream of rendered windows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import probpose.models
import probpose.schedulers
from probpose.pipelines import D3DPPipeline, ProbPosePipeline, SamplerSettings

from .config import TrainingConfig
from .loop import build_component
from .windows import WindowLoop, rendered


class Trainer(WindowLoop):
    """Trains a denoiser by a recipe; see `TrainingLoop` for arguments and errors."""

    config: TrainingConfig

    @property
    def denoiser(self) -> Any:
        return self.network

    def build(self) -> Any:
        denoiser = build_component(probpose.models, self.config.denoiser, "denoiser", takes="noisy_pose")
        self.scheduler = build_component(probpose.schedulers, self.config.scheduler, "scheduler")
        config = denoiser.config
        if "axes" in config:
            raise ValueError(f"denoiser.name: {self.config.denoiser.name} sees no keypoints: a recipe with a section `prior` trains it")
        if config.get("num_frames") is None:
            raise ValueError(f"denoiser.name: {self.config.denoiser.name} refines a lifter's pose: name the trained one as `lifter`")
        if config.get("in_channels") == 2 or config.get("use_timestep") is False:
            raise ValueError(
                "denoiser.config: a lifter has no noise to remove; a denoiser has in_channels: 5 and use_timestep: true, and a recipe with "
                "a section `lifter` trains lifters"
            )
        self._pipeline(denoiser)  # wrong arguments should not wait for the first checkpoint to be noticed
        self.set_windows(config, "denoiser", self.config.denoiser.name, config.num_frames, self.config.optim.short_window_share)
        return denoiser

    def initialise(self, network: Any) -> None:
        if self.config.initialise_from is not None:
            copy_weights(ProbPosePipeline.from_pretrained(self.config.initialise_from).denoiser, network)

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
        optim, process = self.config.optim, self.accelerator.process_index
        batch = self.shortened(batch, optim.short_window_share, generator)
        pose, count = batch["pose"], len(batch["pose"])
        share = slice(process * count, (process + 1) * count)
        noise = torch.randn(optim.batch_size, *pose.shape[1:], generator=generator)[share].to(pose)
        timestep = torch.randint(len(self.scheduler), (optim.batch_size,), generator=generator)
        noisiest = torch.rand(optim.batch_size, generator=generator) < optim.first_step_share
        timestep = torch.where(noisiest, len(self.scheduler) - 1, timestep)[share].to(pose.device)
        noisy = self.scheduler.add_noise(pose, noise, timestep)
        with self.accelerator.autocast():
            sample = self.model(batch["keypoints_2d"], noisy, timestep, confidence=batch["confidence"], return_dict=False)[0]
        sample = sample.float()
        loss = mpjpe = (sample - pose).norm(dim=-1).mean()
        if optim.velocity_weight and pose.shape[1] > 1:
            velocity_error = (sample.diff(dim=1) - pose.diff(dim=1)).norm(dim=-1).mean()
            loss = loss + optim.velocity_weight * velocity_error
        return loss, mpjpe.item()

    def validate(self) -> dict[str, float]:
        """Mean-hypothesis and best-joint MPJPE (5 hypotheses, 2 steps, no flip)."""
        if self.validation_windows is None:
            return {}
        pipe = D3DPPipeline(denoiser=self.denoiser, scheduler=type(self.scheduler).from_config(self.scheduler.config))
        device = self.accelerator.device
        settings = SamplerSettings(num_hypotheses=5, num_inference_steps=2, flip=False, share_first_step=True)
        pipe.set_progress_bar_config(disable=True)
        mean_error, best_error, count = 0.0, 0.0, self.config.evaluation_windows
        for first in range(0, count, 128):
            rows = list(range(first, min(first + 128, count)))
            batch = {k: v.to(device) for k, v in rendered(self.validation_windows, rows).items()}
            generator = torch.Generator().manual_seed(first)
            hypotheses = pipe.sample_clips(batch["keypoints_2d"], batch["confidence"], settings, generator, max_batch_size=1024)
            hypotheses = hypotheses - hypotheses[..., :1, :]
            target, share = batch["pose"], len(rows) / count
            mean_error += share * (hypotheses.mean(1) - target).norm(dim=-1).mean().item()
            best_error += share * (hypotheses - target[:, None]).norm(dim=-1).amin(1).mean().item()
        return {"p_agg_mm": 1000 * mean_error, "j_best_mm": 1000 * best_error}

    def save_pipeline(self, folder: Path) -> None:
        self._pipeline(copy.deepcopy(self.network).to(getattr(torch, self.config.pipeline.dtype))).save_pretrained(folder)

    def _pipeline(self, denoiser: Any) -> D3DPPipeline:
        try:
            return D3DPPipeline(denoiser=denoiser, scheduler=self.scheduler, **self.config.pipeline.arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"pipeline.arguments: {error}") from None


def copy_weights(source: Any, target: Any) -> None:
    """Start the network `target` from the weights of `source`; ValueError unless they fit."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        kinds = [{"name": type(model).__name__, **model.config} for model in (source, target)]
        differing = "; ".join(f"{k} is {kinds[0].get(k)!r} there, {v!r} in the recipe" for k, v in kinds[1].items() if kinds[0].get(k) != v)
        raise ValueError(f"initialise_from: the weights do not fit the recipe's network: {differing}") from None
