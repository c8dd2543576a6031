"""Training DiffPose's denoiser on top of a frozen lifter (arXiv 2211.16940, §3.2 and §3.3).

A step draws, for some frames of every window, one 2D pose out of the detector's uncertainty, lifts it, and noises the true pose towards
that guess: the denoiser learns to leave just those places where sampling begins.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import probpose.models
import probpose.schedulers
from probpose.mixtures import PoseMixture
from probpose.pipelines import DiffPosePipeline, ProbPosePipeline

from .config import DiffPoseConfig
from .lifter import load_lifter
from .loop import build_component
from .trainer import copy_weights
from .windows import WindowLoop, rendered


class DiffPoseTrainer(WindowLoop):
    """Trains the denoiser by a recipe; see `TrainingLoop` for arguments and errors."""

    config: DiffPoseConfig

    def build(self) -> Any:
        config = self.config
        self.lifter = load_lifter(config.lifter).to(self.accelerator.device).eval().requires_grad_(False)
        denoiser = build_component(probpose.models, config.denoiser, "denoiser", takes="context")
        self.scheduler = build_component(probpose.schedulers, config.scheduler, "scheduler")
        if not hasattr(self.scheduler, "get_target"):
            raise ValueError(f"scheduler.name: {config.scheduler.name} knows no mixtures; DiffPose needs GMMScheduler")
        self._pipeline(denoiser)  # wrong arguments should not wait for the first checkpoint to be noticed
        lifter, name = self.lifter.config, type(self.lifter).__name__
        if None not in (denoiser.config.fps, lifter.fps) and denoiser.config.fps != lifter.fps:
            raise ValueError(f"denoiser.config.fps: {denoiser.config.fps}, but the lifter is one of {lifter.fps} frames per second")
        self.set_windows(denoiser.config, "denoiser", name, lifter.get("num_frames"), any_length=bool(lifter.get("any_length")))
        return denoiser

    def initialise(self, network: Any) -> None:
        if self.config.initialise_from is not None:
            copy_weights(ProbPosePipeline.from_pretrained(self.config.initialise_from).denoiser, network)

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
        optim, scheduler, device = self.config.optim, self.scheduler, batch["pose"].device
        frames, count, processes = batch["pose"].shape[1], len(batch["pose"]), self.accelerator.num_processes
        kept = torch.randperm(frames, generator=generator)[: optim.num_frames].to(device)
        clean = torch.cat([batch["keypoints_true"], batch["pose"]], dim=-1)[:, kept].flatten(0, 1)
        # Everything is drawn for the whole batch, of which every process takes its share.
        share = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        noise = torch.randn(count * processes, 1, clean.shape[1], 5, generator=generator)[share].to(device)
        timestep = scheduler.sample_timesteps(count * processes * len(kept), generator)
        at_start = torch.rand(len(timestep), generator=generator) < optim.start_share
        timestep = torch.where(at_start, scheduler.start_timestep, timestep)
        timestep = timestep.unflatten(0, (-1, len(kept)))[share].flatten().to(device)

        mean, factor, context = self._observe(batch, noise, kept)
        noise = noise.expand(-1, len(kept), -1, -1).flatten(0, 1)
        scale = scheduler.noise_map(factor)
        mean = scheduler.anchored(mean)
        noisy = scheduler.add_noise(clean, noise, timestep, mean, scale)
        target = scheduler.get_target(clean, noise, timestep, mean, scale)
        with self.accelerator.autocast():
            predicted = self.model(None, noisy[:, None], timestep, context=context, return_dict=False)[0][:, 0]
        predicted = predicted.float()
        answer = scheduler.predict_original(predicted.detach(), timestep, noisy, mean)[..., 2:]
        mpjpe = (answer - answer[:, :1] - clean[..., 2:]).norm(dim=-1).mean().item()
        difference = predicted - target
        if optim.loss == "squared_error":
            return difference.square().sum((-1, -2)).mean(), mpjpe
        return difference[..., 2:].norm(dim=-1).mean() + optim.uv_weight * difference[..., :2].norm(dim=-1).mean(), mpjpe

    @torch.no_grad()
    def _observe(self, batch: dict[str, Tensor], noise: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Component means `(n, joints, 5)`, factors of their 2D `(n, joints, 2, 2)` and context of the kept frames.

        As when sampling, the noise is held over a window's frames, and its 2D part is what the lifter is given.
        """
        keypoints, confidence = batch["keypoints_2d"], batch["confidence"]
        mixture = PoseMixture.from_keypoints(keypoints, confidence)
        mean, factor = mixture.means[..., 0, :], mixture.factors[..., 0, :, :]
        drawn = mean + (factor @ noise[..., :2, None])[..., 0]
        takes_context = self.network.config.context_channels is not None
        given = kept  # where the kept frames are among those that the lifter is given
        if self.lifter.config.get("num_frames") is None:  # every frame for itself
            keypoints, confidence, drawn, given = keypoints[:, kept], confidence[:, kept], drawn[:, kept], slice(None)
        with self.accelerator.autocast():
            seen = self.lifter(keypoints, confidence=confidence, output_features=True).features if takes_context else None
            lifted = self.lifter(drawn, confidence=confidence).sample
        context = None if seen is None else seen.float()[:, given].flatten(0, 1)[:, None]
        lifted = lifted.float()[:, given]
        lifted = lifted - lifted[..., :1, :]
        mean = torch.cat([mean[:, kept], lifted], dim=-1).flatten(0, 1)
        return mean, factor[:, kept].flatten(0, 1), context

    def validate(self) -> dict[str, float]:
        """Lifter, mean-hypothesis and best-joint MPJPE (5 hypotheses, 2 steps, no flip)."""
        if self.validation_windows is None:
            return {}
        pipe = self._pipeline(self.network)
        pipe.set_progress_bar_config(disable=True)
        settings = pipe.settings(num_hypotheses=5, num_inference_steps=2, flip=False)
        errors, count = {"lifter_mm": 0.0, "p_agg_mm": 0.0, "j_best_mm": 0.0}, self.config.evaluation_windows
        for first in range(0, count, 64):
            rows = list(range(first, min(first + 64, count)))
            batch = {k: v.to(self.accelerator.device) for k, v in rendered(self.validation_windows, rows).items()}
            generator = torch.Generator().manual_seed(first)
            keypoints, confidence, target = batch["keypoints_2d"], batch["confidence"], batch["pose"]
            hypotheses = pipe.sample_clips(keypoints, confidence, settings, generator, max_batch_size=256)
            share = 1000 * len(rows) / count
            errors["lifter_mm"] += share * (pipe.lift(keypoints, confidence)[0] - target).norm(dim=-1).mean().item()
            errors["p_agg_mm"] += share * (hypotheses.mean(1) - target).norm(dim=-1).mean().item()
            errors["j_best_mm"] += share * (hypotheses - target[:, None]).norm(dim=-1).amin(1).mean().item()
        return errors

    def save_pipeline(self, folder: Path) -> None:
        dtype = getattr(torch, self.config.pipeline.dtype)
        self._pipeline(copy.deepcopy(self.network).to(dtype), copy.deepcopy(self.lifter).to(dtype)).save_pretrained(folder)

    def _pipeline(self, denoiser: Any, lifter: Any = None) -> DiffPosePipeline:
        arguments = self.config.pipeline.arguments
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        try:
            return DiffPosePipeline(denoiser=denoiser, lifter=lifter or self.lifter, scheduler=scheduler, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"pipeline.arguments, lifter, denoiser: {error}") from None
