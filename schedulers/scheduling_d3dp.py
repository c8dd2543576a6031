"""D3DP's diffusion over 3D poses: cosine schedule, clean-pose prediction, stochastic DDIM steps.

Shan et al., "Diffusion-Based 3D Human Pose Estimation with Multi-Hypothesis Aggregation", ICCV 2023, arXiv 2303.11579.
All scalars are float64 on the host: at the first step 1 - ᾱ' - σ² is about 1e-8, and float32 loses it altogether.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


@dataclass
class D3DPSchedulerOutput(BaseOutput):
    """One reverse step.

    Args:
        prev_sample: x at the next (less noisy) timestep, same shape as the sample.
        pred_original_sample: the clean pose x̂0 of this step, clamped to the clip range.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class D3DPScheduler(SchedulerMixin, ConfigMixin):
    """Noise schedule and sampler of D3DP.

    Args:
        num_train_timesteps: T.
        scale: signal scale s; poses are multiplied by it before noise is added.
        clip_range: clean and noisy poses are clamped to ±clip_range · s. In the pose's unit (metres).
        eta: 1 adds the full posterior noise at every step (published), 0 is deterministic DDIM.
        noise_scale: factor on that noise; 1 is published. Networks trained on the mean distance answer with posterior means, which makes
            their samples too alike; more noise spreads them.
    """

    order = 1

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, scale: float = 1.0, clip_range: float = 1.1, eta: float = 1.0, noise_scale: float = 1.0
    ):
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in 0..1, got {eta}")
        for name, value in (("scale", scale), ("clip_range", clip_range), ("noise_scale", noise_scale)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number, got {value}")
        steps = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        signal = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        signal = signal / signal[0]
        self.betas = (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self.init_noise_sigma = 1.0
        self.set_timesteps(min(10, num_train_timesteps))

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose K steps: K + 1 evenly spaced *float32* values from T - 1 down to -1, truncated towards zero.

        Float32 is part of the definition: for some K (26, 52, 60, …) an entry is one lower than exact arithmetic gives.

        Raises:
            ValueError: fewer than one step or more than T.
        """
        total = self.config.num_train_timesteps
        if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= total:
            raise ValueError(f"num_inference_steps must be an integer from 1 to {total}, got {num_inference_steps!r}")
        times = torch.linspace(-1, total - 1, num_inference_steps + 1, dtype=torch.float32).int().flip(0).tolist()
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(times[:-1], dtype=torch.int64, device=device)
        self._next = dict(pairwise(times))

    def noise_level(self, timestep: int | Tensor) -> float:
        """Standard deviation of x_t/√ᾱ_t about the clean pose, in metres: √((1 - ᾱ)/ᾱ)/s.

        Raises:
            ValueError: a timestep outside 0..T - 1.
        """
        if not 0 <= int(timestep) < len(self):
            raise ValueError(f"timestep must lie in 0..{len(self) - 1}, got {int(timestep)}")
        alpha = self.alphas_cumprod[int(timestep)].item()
        return math.sqrt((1 - alpha) / alpha) / self.config.scale

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """What the network sees of x: clamped to the clip range and divided by the signal scale."""
        limit = self.config.clip_range * self.config.scale
        return sample.clamp(-limit, limit) / self.config.scale

    def is_stochastic(self, timestep: int | Tensor, eta: float | None = None) -> bool:
        """Whether `step` draws noise at this timestep."""
        return self._next[int(timestep)] >= 0 and (self.config.eta if eta is None else eta) > 0

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> D3DPSchedulerOutput | tuple[Tensor, Tensor]:
        """One reverse step (DDIM, Song et al. 2021, eq. 12, the predicted noise derived from the *clamped* clean pose).

        Args:
            model_output: predicted clean pose, unscaled.
            timestep: one of `self.timesteps`.
            sample: x at this timestep, unclamped.
            eta: overrides the configured value.
            variance_noise: standard normal noise to use instead of drawing it.

        Returns:
            The next x and the clean pose x̂0; at the last timestep both are x̂0.

        Raises:
            ValueError: a timestep that `set_timesteps` did not choose, or eta outside 0..1.
        """
        timestep = int(timestep)
        if timestep not in self._next:
            raise ValueError(f"timestep must be one of {sorted(self._next, reverse=True)}, got {timestep}")
        eta = self.config.eta if eta is None else eta
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in 0..1, got {eta}")
        limit = self.config.clip_range * self.config.scale
        clean = (self.config.scale * model_output).clamp(-limit, limit)
        following = self._next[timestep]
        if following < 0:
            prev = clean
        else:
            now, nxt = self.alphas_cumprod[timestep].item(), self.alphas_cumprod[following].item()
            noise = (sample / math.sqrt(now) - clean) / math.sqrt(1 / now - 1)
            sigma = eta * math.sqrt((1 - now / nxt) * (1 - nxt) / (1 - now))
            prev = math.sqrt(nxt) * clean + math.sqrt(1 - nxt - sigma**2) * noise
            if sigma > 0:
                if variance_noise is None:
                    variance_noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
                prev = prev + self.config.noise_scale * sigma * variance_noise
        return D3DPSchedulerOutput(prev_sample=prev, pred_original_sample=clean) if return_dict else (prev, clean)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Forward process as the network sees it while training: noised, clamped, divided by the scale.

        Args:
            original_samples: clean poses x0 `(batch, ...)`.
            noise: standard normal, same shape.
            timesteps: integers `(batch,)` or one integer.

        Raises:
            ValueError: a timestep outside 0..T - 1.
        """
        timesteps = torch.as_tensor(timesteps).cpu()
        if timesteps.min() < 0 or timesteps.max() >= len(self):
            raise ValueError(f"timesteps must lie in 0..{len(self) - 1}, got {timesteps.tolist()}")
        # Rounded to float32 only after the square roots: 1 - ᾱ is 4e-5 at t = 0. (Some devices have no float64.)
        alpha = self.alphas_cumprod[timesteps].reshape(-1, *[1] * (original_samples.ndim - 1))
        signal, sigma = (root.to(original_samples.device, torch.float32) for root in (alpha.sqrt(), (1 - alpha).sqrt()))
        noisy = signal * self.config.scale * original_samples + sigma * noise
        return self.scale_model_input(noisy).to(original_samples.dtype)
