"""DiffPose's diffusion: noise from the components of a Gaussian mixture, and short reverse chains from an uncertain guess.

Gong et al., "DiffPose: Toward More Reliable 3D Pose Estimation", CVPR 2023, arXiv 2211.16940. Every joint has a mixture; a component with
mean m and noise map S (covariance S Sᵀ) is drawn, and with standard normal ε the forward process is

    h_t = m + √ᾱ_t (h_0 - m) + √(1 - ᾱ_t) S ε                                 (anchor "component", the paper)
    h_t =     √ᾱ_t  h_0      + √(1 - ᾱ_t) S ε                                 (anchor "zero", the released code)

so that for ᾱ → 0 the paper's chain begins with a draw from the mixture. The reverse step from t to s is DDIM's (Song et al. 2021, eq. 12)
about the same anchor, with the scaled noise n = S ε:

    h_s = m + √ᾱ_s (ĥ_0 - m) + c₁ w + c₂ n̂,    c₁ = η √((1 - ᾱ_t/ᾱ_s)(1 - ᾱ_s)/(1 - ᾱ_t)),    c₂ = √(1 - ᾱ_s - c₁²)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

BETA_SCHEDULES = ("linear", "quad", "const", "jsd", "sigmoid")
PREDICTION_TYPES = ("scaled_epsilon", "sample", "previous_sample")
SPACINGS = ("uniform", "quad", "trailing")
ANCHORS = ("zero", "component")


@dataclass
class GMMSchedulerOutput(BaseOutput):
    """One reverse step.

    Args:
        prev_sample: h at the next (less noisy) timestep, same shape as the sample.
        pred_original_sample: the clean pose ĥ_0 of this step.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class GMMScheduler(SchedulerMixin, ConfigMixin):
    """Noise schedule and sampler of DiffPose. Defaults are the released code's.

    Args:
        num_train_timesteps: T; timesteps are 0..T - 1.
        beta_start, beta_end, beta_schedule: the variances β_t, "linear", "quad", "const" (all `beta_end`), "jsd" (1/T … 1) or "sigmoid".
            The release ends at ᾱ = 0.97, which never destroys the signal; the paper's mixture start wants ᾱ near 0.
        prediction_type: what the network predicts: "scaled_epsilon" (n = S ε, released), "sample" (h_0) or "previous_sample" (h_{t-1}, the
            paper's formula).
        timestep_spacing: "uniform" and "quad" (released; `start_timestep` itself is not visited) or "trailing" (it is the first visited).
        start_timestep: where sampling begins; the released code's configurations have 24, 12 and 6.
        eta: 0 is deterministic, 1 adds the full posterior noise.
        anchor: "zero" (released) or "component" (paper): whether the chain is about the components' means.
        scale_step_noise: multiply the step noise w by S, too, as is consistent; False is released.
        pose_scale: standard deviation of ε's share on x, y, z (metres), one number or one per joint; 1 is released.
        num_components: components M of mixtures fitted by EM.

    Raises:
        ValueError: a value out of range, named.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 51,
        beta_start: float = 1e-4,
        beta_end: float = 1e-3,
        beta_schedule: str = "linear",
        prediction_type: str = "scaled_epsilon",
        timestep_spacing: str = "uniform",
        start_timestep: int = 24,
        eta: float = 0.0,
        anchor: str = "zero",
        scale_step_noise: bool = False,
        pose_scale: float | list[float] = 1.0,
        num_components: int = 5,
    ):
        choices = {
            "beta_schedule": (beta_schedule, BETA_SCHEDULES),
            "prediction_type": (prediction_type, PREDICTION_TYPES),
            "timestep_spacing": (timestep_spacing, SPACINGS),
            "anchor": (anchor, ANCHORS),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        if num_train_timesteps < 1 or num_components < 1:
            raise ValueError(f"num_train_timesteps and num_components must be at least 1, got {num_train_timesteps} and {num_components}")
        scales = pose_scale if isinstance(pose_scale, (list, tuple)) else [pose_scale]
        if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
            raise ValueError(f"pose_scale must hold positive numbers, got {pose_scale}")
        if not _is_integer(start_timestep, num_train_timesteps):
            raise ValueError(f"start_timestep must be an integer from 1 to {num_train_timesteps}, got {start_timestep!r}")
        _check_eta(eta)
        self.betas = _betas(beta_schedule, beta_start, beta_end, num_train_timesteps)
        self.alphas_cumprod = self._alpha_bars(torch.float32)[1:]
        self.init_noise_sigma = 1.0
        self.set_timesteps(1)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        start_timestep: int | None = None,
        timesteps: list[int] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Choose the timesteps to visit, in falling order.

        Args:
            num_inference_steps: N. "uniform" visits 0, k, 2k, … below `start_timestep` with k = start // N, which may be more than N;
                "quad" visits N squares up to 0.8 · start (fewer where two coincide); "trailing" visits N evenly spaced steps from
                `start_timestep` down.
            start_timestep: overrides the configured one; of an explicit list, its first.
            timesteps: an explicit falling list instead.

        Raises:
            ValueError: neither or both of N and a list, a list that does not fall, timesteps outside 0..T - 1, or too many steps; a first
                step where the noise leaves nothing of the pose, if the noise is what is predicted.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("pass either num_inference_steps or timesteps")
        start = self.config.start_timestep if start_timestep is None else start_timestep
        if not _is_integer(start, len(self)):
            raise ValueError(f"start_timestep must be an integer from 1 to {len(self)}, got {start!r}")
        if timesteps is None:
            visited = _spaced(self.config.timestep_spacing, start, num_inference_steps, len(self))
        else:
            visited = [int(t) for t in timesteps]
            bounded = [len(self), *visited, -1]
            if not visited or visited != [float(t) for t in timesteps] or any(a <= b for a, b in pairwise(bounded)):
                raise ValueError(f"timesteps must be integers that fall strictly within {len(self) - 1}..0, got {timesteps}")
            start = visited[0] if start_timestep is None else start
        if self.config.prediction_type == "scaled_epsilon" and self.alphas_cumprod[visited[0]] == 0:
            raise ValueError(f"nothing is left of the pose at timestep {visited[0]} (ᾱ = 0): begin below, or predict the sample")
        self.num_inference_steps = len(visited)
        self.start_timestep = min(start, len(self) - 1)
        self.timesteps = torch.tensor(visited, dtype=torch.int64, device=device)
        self._next = dict(pairwise([*visited, -1]))

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The network sees the sample as it is."""
        return sample

    def is_stochastic(self, timestep: int | Tensor, eta: float | None = None) -> bool:
        """Whether `step` adds noise at this timestep."""
        return self._next[int(timestep)] >= 0 and (self.config.eta if eta is None else eta) > 0

    def anchored(self, mean: Tensor) -> Tensor | None:
        """The component means as the other methods want them by the configured anchor."""
        return mean if self.config.anchor == "component" else None

    def noise_map(self, uv_factor: Tensor) -> Tensor:
        """S of (u, v, x, y, z): the 2D component's factor beside `pose_scale`, `(..., joints, 2, 2)` to `(..., joints, 5, 5)`.

        Raises:
            ValueError: another number of joints than `pose_scale` has.
        """
        joints = uv_factor.shape[-3]
        scale = torch.as_tensor(self.config.pose_scale, dtype=uv_factor.dtype, device=uv_factor.device)
        if scale.ndim and len(scale) != joints:
            raise ValueError(f"pose_scale holds {len(scale)} joints, but the mixture {joints}")
        out = uv_factor.new_zeros(*uv_factor.shape[:-2], 5, 5)
        out[..., :2, :2] = uv_factor
        out[..., 2:, 2:] = scale[..., None, None] * torch.eye(3, dtype=uv_factor.dtype, device=uv_factor.device)
        return out

    def sample_timesteps(self, count: int, generator: torch.Generator | None = None, draws: Tensor | None = None) -> Tensor:
        """Training timesteps `(count,)` in antithetic pairs: half are uniform draws, the others T - 1 minus those draws.

        Args:
            draws: `(count // 2 + 1,)` integers to use instead of drawing them.
        """
        if draws is None:
            draws = torch.randint(len(self), (count // 2 + 1,), generator=generator)
        return torch.cat([draws, len(self) - 1 - draws])[:count]

    def add_noise(
        self,
        original_samples: Tensor,
        noise: Tensor,
        timesteps: Tensor | int,
        component_mean: Tensor | None = None,
        component_scale: Tensor | None = None,
    ) -> Tensor:
        """Forward process h_t.

        Args:
            original_samples: clean poses h_0 `(batch, ..., channels)`.
            noise: standard normal ε, same shape.
            timesteps: integers `(batch,)` or one integer.
            component_mean: m of the drawn components, broadcast to the samples; default 0, but for anchor "component", which needs it.
            component_scale: S, as standard deviations that broadcast to the samples, or as matrices `(..., channels, channels)` with one
                axis more than the samples; default 1.

        Raises:
            ValueError: timesteps outside 0..T - 1 or of another number than the samples, a missing mean, or a scale that does not fit.
        """
        return self._noised(original_samples, noise, self._checked(timesteps), component_mean, component_scale)

    def get_target(
        self,
        original_samples: Tensor,
        noise: Tensor,
        timesteps: Tensor | int,
        component_mean: Tensor | None = None,
        component_scale: Tensor | None = None,
    ) -> Tensor:
        """What the network is to predict for `add_noise` of the same arguments, by `prediction_type`."""
        kind = self.config.prediction_type
        if kind == "sample":
            return original_samples
        if kind == "scaled_epsilon":
            return _scaled(noise, component_scale)
        return self._noised(original_samples, noise, self._checked(timesteps) - 1, component_mean, component_scale)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float | None = None,
        variance_noise: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        component_mean: Tensor | None = None,
        component_scale: Tensor | None = None,
        return_dict: bool = True,
    ) -> GMMSchedulerOutput | tuple[Tensor, Tensor]:
        """One reverse step.

        Args:
            model_output: the network's prediction, see `prediction_type`.
            timestep: one of `self.timesteps`, or one for each sample `(batch,)`.
            sample: h_t `(batch, ..., channels)`.
            eta: overrides the configured value.
            variance_noise: standard normal w to use instead of drawing it.
            component_mean, component_scale: as in `add_noise`; the scale is used only if `scale_step_noise`.

        Raises:
            ValueError: a timestep that `set_timesteps` did not choose, eta outside 0..1, or a missing mean.
        """
        now = torch.as_tensor(timestep).cpu()
        if unknown := [t for t in now.flatten().tolist() if t not in self._next]:
            raise ValueError(f"timestep must be one of {sorted(self._next, reverse=True)}, got {unknown[0]}")
        now = now.long()
        following = now.clone().apply_(self._next.__getitem__)
        eta = self.config.eta if eta is None else eta
        _check_eta(eta)
        mean = self._anchor(component_mean)
        (signal, sigma), (signal_next, sigma_next) = self._levels(now, sample), self._levels(following, sample)
        clean, noise = self._split(model_output, now, sample, mean)
        ratio = (sigma_next / sigma).square() * (1 - (signal / signal_next).square())
        c1 = eta * ratio.clamp_min(0).sqrt()
        c2 = (sigma_next.square() - c1.square()).clamp_min(0).sqrt()
        prev = mean + signal_next * clean + c2 * noise
        if eta > 0 and (following >= 0).any():
            if variance_noise is None:
                variance_noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev = prev + c1 * _scaled(variance_noise, component_scale if self.config.scale_step_noise else None)
        return GMMSchedulerOutput(prev, mean + clean) if return_dict else (prev, mean + clean)

    def predict_original(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, component_mean: Tensor | None = None
    ) -> Tensor:
        """The clean pose ĥ_0 that a network output stands for, at any training timesteps; arguments as in `step`."""
        mean = self._anchor(component_mean)
        return mean + self._split(model_output, self._checked(timestep), sample, mean)[0]

    def _noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor, mean: Tensor | None, scale: Tensor | None) -> Tensor:
        """The forward equation at timesteps from -1 on."""
        (signal, sigma), mean = self._levels(timesteps, clean), self._anchor(mean)
        return mean + signal * (clean - mean) + sigma * _scaled(noise, scale)

    def _split(self, model_output: Tensor, now: Tensor, sample: Tensor, mean: Tensor | float) -> tuple[Tensor, Tensor]:
        """Clean pose about the anchor, and scaled noise, that a prediction stands for."""
        signal, sigma = self._levels(now, sample)
        centred, kind = sample - mean, self.config.prediction_type
        if kind == "scaled_epsilon":
            return (centred - sigma * model_output) / signal, model_output
        if kind == "sample":
            clean = model_output - mean
            return clean, (centred - signal * clean) / sigma
        # Two equations, for h_t and h_{t-1}, in two unknowns.
        signal_1, sigma_1 = self._levels(now - 1, sample)
        previous, determinant = model_output - mean, signal * sigma_1 - signal_1 * sigma
        return (sigma_1 * centred - sigma * previous) / determinant, (signal * previous - signal_1 * centred) / determinant

    def _alpha_bars(self, dtype: torch.dtype) -> Tensor:
        """ᾱ_{-1} … ᾱ_{T-1}.

        The product is taken in the precision of the samples: at t = 0 float32 changes 1 - ᾱ by up to 3e-4 of itself, and the released
        weights were trained with that.
        """
        return torch.cat([torch.ones(1, dtype=dtype), torch.cumprod(1 - self.betas.to(dtype), dim=0)])

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1 - ᾱ) at timesteps from -1 on, broadcast over samples `(batch, ...)`."""
        if timesteps.shape not in ((), (1,), (len(like),)):
            raise ValueError(f"timesteps must be one integer or one for each of {len(like)} samples, got shape {tuple(timesteps.shape)}")
        alpha = self._alpha_bars(torch.float64 if like.dtype == torch.float64 else torch.float32).double()[timesteps + 1]
        if alpha.ndim:
            alpha = alpha.reshape(-1, *[1] * (like.ndim - 1))
        return alpha.sqrt().to(like.dtype).to(like.device), (1 - alpha).sqrt().to(like.dtype).to(like.device)

    def _checked(self, timesteps: Tensor | int) -> Tensor:
        timesteps = torch.as_tensor(timesteps).cpu()
        whole = timesteps.long()
        if (whole != timesteps).any() or (whole < 0).any() or (whole >= len(self)).any():
            raise ValueError(f"timesteps must be integers in 0..{len(self) - 1}, got {timesteps.tolist()}")
        return whole

    def _anchor(self, component_mean: Tensor | None) -> Tensor | float:
        if component_mean is not None:
            return component_mean
        if self.config.anchor == "component":
            raise ValueError("anchor 'component' needs component_mean, the means of the drawn mixture components")
        return 0.0


def _scaled(noise: Tensor, scale: Tensor | None) -> Tensor:
    """S ε; S as standard deviations, or as matrices, which have an axis more."""
    if scale is None:
        return noise
    matrices = scale.ndim > noise.ndim
    try:
        scaled = (scale @ noise[..., None])[..., 0] if matrices else scale * noise
    except RuntimeError:
        scaled = None
    if scaled is None or scaled.shape != noise.shape:
        raise ValueError(
            f"component_scale must hold standard deviations that broadcast to {tuple(noise.shape)}, or matrices of shape "
            f"(..., {noise.shape[-1]}, {noise.shape[-1]}) with one axis more, got {tuple(scale.shape)}"
        )
    return scaled


def _is_integer(value: Any, most: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= value <= most


def _check_eta(eta: float) -> None:
    if not (isinstance(eta, Real) and 0 <= eta <= 1):
        raise ValueError(f"eta must lie in 0..1, got {eta!r}")


def _betas(kind: str, start: float, end: float, count: int) -> Tensor:
    """β_0 … β_{T-1}, float32 values of a float64 formula."""
    if kind == "linear":
        betas = np.linspace(start, end, count)
    elif kind == "quad":
        betas = np.linspace(start**0.5, end**0.5, count) ** 2
    elif kind == "const":
        betas = np.full(count, end)
    elif kind == "jsd":
        betas = 1 / np.linspace(count, 1, count)
    else:
        betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))) + start
    return torch.from_numpy(betas)


def _spaced(spacing: str, start: int, count: int, total: int) -> list[int]:
    """The visited timesteps in falling order, without duplicates."""
    first = min(start, total - 1)  # what "trailing" visits
    most = first + 1 if spacing == "trailing" else start
    if not _is_integer(count, most):
        raise ValueError(f"num_inference_steps must be an integer from 1 to {most} with start_timestep {start}, got {count!r}")
    if spacing == "uniform":
        return list(range(0, start, start // count))[::-1]
    if spacing == "quad":
        return sorted({int(t) for t in np.linspace(0, np.sqrt(0.8 * start), count) ** 2}, reverse=True)
    return [int(t) for t in np.linspace(first, -1, count, endpoint=False)]
