"""D3DP: K hypotheses by conditional diffusion with clean-pose prediction (Shan et al., ICCV 2023, arXiv 2303.11579)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probpose.skeletons import get_skeleton

from .pipeline_probpose import ProbPosePipeline

FLIP_MODES = ("every_step", "last_step", False)


class D3DPPipeline(ProbPosePipeline):
    """Diffusion-based 3D pose with joint-wise aggregation.

    Args:
        denoiser: any probpose denoiser.
        scheduler: `D3DPScheduler`, or a diffusers scheduler with clean-sample prediction.
    """

    def __init__(self, denoiser, scheduler):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @torch.no_grad()
    def sample_windows(
        self,
        keypoints_2d: Tensor,
        confidence: Tensor | None = None,
        num_hypotheses: int = 20,
        num_inference_steps: int = 10,
        flip: str | bool = "every_step",
        share_first_step: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        on_step: Callable[[int, int, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """Sample in the network's own units, without cutting, conversion or aggregation.

        Args:
            keypoints_2d: `(windows, frames, joints, 2)` network 2D.
            confidence: `(windows, frames, joints)`.
            flip: average with the mirrored prediction at every step (published), at the last step only, or never.
            share_first_step: predict the first clean pose once per window instead of once per hypothesis (at t = 999 the signal fraction
                of the input is 5e-5, so the predictions hardly differ).
            noise: `(draws, windows, hypotheses, frames, joints, 3)` to use instead of drawing from the generator.

        Returns:
            Clean poses of the last step `(windows, num_hypotheses, frames, joints, 3)`, root not zeroed.
        """
        scheduler = self.scheduler
        windows, frames, joints, _ = keypoints_2d.shape
        if noise is None:
            first = torch.randn(windows, num_hypotheses, frames, joints, 3, generator=generator)
            x = first.to(keypoints_2d.device)
        else:
            x = noise[0]
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps.tolist()
        for i, t in enumerate(timesteps):
            use_flip = flip == "every_step" or (flip == "last_step" and i == len(timesteps) - 1)
            source = x[:, :1] if share_first_step and i == 0 else x
            clean = self.denoise(keypoints_2d, scheduler.scale_model_input(source, t), t, confidence, use_flip).expand_as(x)
            z = None if noise is None or i + 1 >= len(noise) else noise[i + 1]
            if z is None and i + 1 < len(timesteps):
                z = torch.randn(x.shape, generator=generator).to(x.device)
            x = scheduler.step(clean, t, x, variance_noise=z).prev_sample
        return x

    def denoise(self, keypoints_2d: Tensor, noisy_pose: Tensor, timestep: int, confidence: Tensor | None, flip: bool) -> Tensor:
        arguments = {} if confidence is None else {"confidence": confidence}
        clean = self.denoiser(keypoints_2d, noisy_pose, timestep, return_dict=False, **arguments)[0]
        return clean.float()
