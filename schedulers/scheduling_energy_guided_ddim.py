"""Platypose's diffusion: few deterministic steps, each with the clean pose pulled towards what was observed.

Pierzchlewicz et al., "Platypose: Calibrated Zero-Shot Multi-Hypothesis 3D Human Motion Estimation", 2024, arXiv 2403.06164. A motion prior
predicts the clean pose x̂0, a guidance (the gradient of an energy) moves it to x̂0*, and the step goes on from there; with the noise that
the moved pose implies, ε̂ = (x_t/√ᾱ_t - x̂0*)/√(1/ᾱ_t - 1), one step from t to the next visited timestep s is

    x_s = √ᾱ_s x̂0* + √(1 - ᾱ_s - σ²) ε̂ + σ z,    σ = η √((1 - ᾱ_t/ᾱ_s)(1 - ᾱ_s)/(1 - ᾱ_t))        "ddim" (Song et al. 2021, eq. 12)
    x_s = c₁ x̂0* + c₂ x_t + √β̃ z,   c₁ = β' √ᾱ_s/(1 - ᾱ_t), c₂ = (1 - ᾱ_s) √(1 - β')/(1 - ᾱ_t)     "ddpm" (Ho et al. 2020, eq. 7)

with β' = 1 - ᾱ_t/ᾱ_s and β̃ = β' (1 - ᾱ_s)/(1 - ᾱ_t). Both are the same for η = 1. All scalars are float64 on the host: ᾱ is 1e-6 at the
noisiest timestep, 1 - ᾱ is 1e-3 at the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

ALGORITHMS = ("ddim", "ddpm")


@dataclass
class EnergyGuidedDDIMSchedulerOutput(BaseOutput):
    """One reverse step. All poses have the shape of the sample.

    Args:
        prev_sample: x at the next (less noisy) timestep; a state, that is, in metres times the signal scale.
        pred_original_sample: the clean pose x̂0* after guidance, metres.
        pred_original_sample_unguided: the clean pose x̂0 as the network gave it, metres.
        trace: what the guidance tells of its work; None without.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
    pred_original_sample_unguided: Tensor | None = None
    trace: Any = None


class EnergyGuidedDDIMScheduler(SchedulerMixin, ConfigMixin):
    """Noise schedule and sampler of Platypose. Defaults are the published ones.

    Args:
        num_train_timesteps: T; timesteps are 0..T - 1, on a cosine schedule.
        num_inference_steps: N, how many timesteps the chain keeps.
        skip_first: how many of these, the noisiest, sampling leaves out; N - skip_first network evaluations remain.
        eta: 0 is deterministic, 1 adds the full posterior noise. Of no meaning to "ddpm", which always adds it.
        noise_scale: factor on the noise that steps add.
        algorithm: "ddim" or "ddpm", see above.
        scale: signal scale s; poses (metres) are multiplied by it before noise is added. The network sees states divided by it.
        prediction_type: what the network predicts; "sample", the clean pose, is all there is.

    Raises:
        ValueError: a value out of range, named.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 50,
        num_inference_steps: int = 20,
        skip_first: int = 4,
        eta: float = 0.0,
        noise_scale: float = 1.0,
        algorithm: str = "ddim",
        scale: float = 1.0,
        prediction_type: str = "sample",
    ):
        _check_integer("num_train_timesteps", num_train_timesteps, 1)
        _check_eta(eta)
        for name, value in (("noise_scale", noise_scale), ("scale", scale)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number, got {value}")
        for name, value, allowed in (("algorithm", algorithm, ALGORITHMS), ("prediction_type", prediction_type, ("sample",))):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        steps = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        signal = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        self.betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self.set_timesteps()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the state sampling begins with: 1 from timestep T - 1, √(1 - ᾱ) from a later one (steps were skipped)."""
        first = self.timesteps[0].item()
        return 1.0 if first == len(self) - 1 else math.sqrt(1 - self.alphas_cumprod[first].item())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        skip_first: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Choose the timesteps to visit, in falling order.

        Args:
            num_inference_steps: N timesteps evenly spaced from 0 to T - 1, truncated towards zero (1: T - 1 alone). The configured
                number if not given.
            skip_first: how many of the N to leave out, noisiest first. If not given the configured share of N, rounded, at most N - 1:
                with the default 4 of 20, that is 2 of 10 and 1 of 5.
            device: of `self.timesteps`.
            timesteps: an explicit falling list instead.

        Raises:
            ValueError: numbers out of range, a list that does not fall strictly within T - 1..0, or both.
        """
        if timesteps is not None:
            if num_inference_steps is not None or skip_first is not None:
                raise ValueError("pass either timesteps or num_inference_steps and skip_first")
            visited = [int(t) for t in timesteps]
            if not visited or visited != [float(t) for t in timesteps] or any(a <= b for a, b in pairwise([len(self), *visited, -1])):
                raise ValueError(f"timesteps must be integers that fall strictly within {len(self) - 1}..0, got {timesteps}")
            chain = visited[::-1]
        else:
            steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
            _check_integer("num_inference_steps", steps, 1, len(self))
            # In integers: in floats, an entry can fall short of the whole number that it should be.
            chain = [i * (len(self) - 1) // (steps - 1) for i in range(steps)] if steps > 1 else [len(self) - 1]
            if skip_first is None and num_inference_steps is None:
                skip_first = self.config.skip_first
            elif skip_first is None:
                skip_first = min(round(self.config.skip_first * steps / self.config.num_inference_steps), steps - 1)
            _check_integer("skip_first", skip_first, 0, steps - 1)
            visited = chain[::-1][skip_first:]
        self.num_inference_steps = len(chain)
        self.timesteps = torch.tensor(visited, dtype=torch.int64, device=device)
        self._next = dict(pairwise([*visited, -1]))
        self._index = {t: i for i, t in enumerate(chain)}
        self._tables = _posterior_tables(self.alphas_cumprod[chain])

    def posterior_tables(self) -> dict[str, Tensor]:
        """The chain's own float64 tables `(N,)`, by rising timestep, skipped ones included.

        "betas" β', "alphas_cumprod" ᾱ_t, "alphas_cumprod_prev" ᾱ_s, "posterior_variance" β̃, "posterior_log_variance_clipped" (entry 0, the
        logarithm of 0, is replaced by entry 1), "posterior_mean_coef1" c₁ and "posterior_mean_coef2" c₂.
        """
        return self._tables

    def noise_level(self, timestep: int | Tensor) -> float:
        """Standard deviation of x_t/√ᾱ_t about the clean pose, in metres: √((1 - ᾱ)/ᾱ)/s.

        Raises:
            ValueError: a timestep outside 0..T - 1.
        """
        alpha = self._alpha(timestep).item()
        return math.sqrt((1 - alpha) / alpha) / self.config.scale

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """What the network sees of a state: it is divided by the signal scale."""
        return sample / self.config.scale

    def init_latents(self, noise: Tensor, init_pose: Tensor | None = None) -> Tensor:
        """The state sampling begins with.

        Args:
            noise: standard normal `(...)`.
            init_pose: a first guess in metres, of the noise's shape or one that broadcasts to it. Without it the guess is zero, and the
                state is noise times `init_noise_sigma`.

        Raises:
            ValueError: an initial pose that does not fit the noise.
        """
        if init_pose is None:
            return self.init_noise_sigma * noise
        try:
            init_pose = init_pose.expand(noise.shape)
        except RuntimeError:
            raise ValueError(f"init_pose {tuple(init_pose.shape)} does not broadcast to noise {tuple(noise.shape)}") from None
        return self._diffuse(init_pose, noise, self.timesteps[0])

    def is_stochastic(self, timestep: int | Tensor, eta: float | None = None) -> bool:
        """Whether `step` adds noise at this timestep. Errors as `step`."""
        return self._following(timestep) >= 0 and (self.config.algorithm == "ddpm" or self._eta(eta) > 0)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        guidance: Callable[[Tensor, float], Any] | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> EnergyGuidedDDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One reverse step; the last one ends in the guided clean pose itself.

        Args:
            model_output: predicted clean pose x̂0, metres.
            timestep: one of `self.timesteps`.
            sample: the state x at this timestep (metres times the signal scale), same shape.
            guidance: called with the predicted pose and the noise level (both in metres, see `noise_level`); returns the guided pose, or an
                object with attributes `pose` and `trace`.
            eta: overrides the configured value.
            variance_noise: standard normal noise to use instead of drawing it.

        Returns:
            The next state, in metres times the signal scale, and the guided clean pose, in metres; with `return_dict` also the unguided
            pose and the guidance's trace.

        Raises:
            ValueError: a timestep that `set_timesteps` did not choose, eta outside 0..1, or a guidance that changes the shape.
        """
        stochastic = self.is_stochastic(timestep, eta)
        clean, trace = model_output, None
        if guidance is not None:
            answer = guidance(model_output, self.noise_level(timestep))
            clean, trace = (answer, None) if isinstance(answer, Tensor) else (answer.pose, answer.trace)
            if clean.shape != model_output.shape:
                raise ValueError(f"guidance must keep the pose's shape {tuple(model_output.shape)}, got {tuple(clean.shape)}")
        prev, sigma = self._transition(self.config.scale * clean, int(timestep), sample, self._eta(eta))
        if stochastic:
            if variance_noise is None:
                variance_noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev = prev + self.config.noise_scale * sigma * variance_noise
        if not return_dict:
            return prev, clean
        return EnergyGuidedDDIMSchedulerOutput(
            prev_sample=prev, pred_original_sample=clean, pred_original_sample_unguided=model_output, trace=trace
        )

    def _transition(self, clean: Tensor, timestep: int, sample: Tensor, eta: float) -> tuple[Tensor, float]:
        """Mean and standard deviation of the next state, given the clean one."""
        if self._next[timestep] < 0:
            return clean, 0.0
        row = {name: table[self._index[timestep]].item() for name, table in self._tables.items()}
        if self.config.algorithm == "ddpm":
            mean = row["posterior_mean_coef1"] * clean + row["posterior_mean_coef2"] * sample
            return mean, math.exp(row["posterior_log_variance_clipped"] / 2)
        now, nxt = row["alphas_cumprod"], row["alphas_cumprod_prev"]
        noise = (sample / math.sqrt(now) - clean) / math.sqrt(1 / now - 1)
        sigma = eta * math.sqrt(row["posterior_variance"])
        return math.sqrt(nxt) * clean + math.sqrt(1 - nxt - sigma**2) * noise, sigma

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """Forward process as the network sees it while training: noised and divided by the signal scale.

        Args:
            original_samples: clean poses x0 `(batch, ...)`, metres.
            noise: standard normal, same shape.
            timesteps: integers `(batch,)` or one integer.

        Raises:
            ValueError: timesteps outside 0..T - 1, or not one per clip.
        """
        return self.scale_model_input(self._diffuse(original_samples, noise, timesteps)).to(original_samples.dtype)

    def _diffuse(self, clean: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """√ᾱ s x0 + √(1 - ᾱ) ε, the state."""
        alpha = self._alpha(timesteps).reshape(-1)
        if len(alpha) not in (1, len(clean)):
            raise ValueError(f"timesteps must be one integer or one per clip, got {len(alpha)} for {len(clean)} clips")
        # Rounded to float32 only after the square roots: 1 - ᾱ is small at t = 0. (Some devices have no float64.)
        alpha = alpha.reshape(-1, *[1] * (clean.ndim - 1))
        signal, sigma = (root.to(clean.device, torch.float32) for root in (alpha.sqrt(), (1 - alpha).sqrt()))
        return signal * (self.config.scale * clean) + sigma * noise

    def _alpha(self, timesteps: int | Tensor) -> Tensor:
        """ᾱ at any timesteps, of their shape, float64 on the host."""
        timesteps = torch.as_tensor(timesteps).cpu()
        if timesteps.is_floating_point() or timesteps.min() < 0 or timesteps.max() >= len(self):
            raise ValueError(f"timesteps must be integers in 0..{len(self) - 1}, got {timesteps.tolist()}")
        return self.alphas_cumprod[timesteps]

    def _following(self, timestep: int | Tensor) -> int:
        """The timestep visited next, -1 after the last."""
        if int(timestep) not in self._next:
            raise ValueError(f"timestep must be one of {self.timesteps.tolist()}, got {int(timestep)}")
        return self._next[int(timestep)]

    def _eta(self, eta: float | None) -> float:
        eta = self.config.eta if eta is None else eta
        _check_eta(eta)
        return eta


def _posterior_tables(alphas: Tensor) -> dict[str, Tensor]:
    """Ho et al. 2020, eq. 6 and 7, of the chain that visits only the timesteps with these rising-time ᾱ `(N,)`."""
    before = torch.cat([torch.ones_like(alphas[:1]), alphas[:-1]])
    betas = 1 - alphas / before
    variance = betas * (1 - before) / (1 - alphas)
    return {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.cat([variance[1:2] if len(variance) > 1 else variance, variance[1:]]).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
    }


def _check_integer(name: str, value: Any, low: int, high: float = math.inf) -> None:
    if not (isinstance(value, Integral) and low <= value <= high):
        raise ValueError(f"{name} must be an integer " + (f"from {low} to {high}" if high < math.inf else f"≥ {low}") + f", got {value!r}")


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0..1, got {eta}")
