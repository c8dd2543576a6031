"""Guides: how a predicted motion is moved to where an energy is lower."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .energies import Energy, check_positive


@dataclass
class GuideOutput:
    """A guided motion.

    Args:
        pose: as the motion given.
        trace: what happened, step by step: `energy (substeps, *clips)`, mean over the hypotheses before each step, and the guide's own
            `step_size` or `radius`.
    """

    pose: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)


class GradientGuide:
    """Plain gradient descent with Platypose's plateau rule (arXiv 2403.06164): the published guidance.

    Whenever a clip's mean energy has not fallen by a factor of `1 - plateau_threshold`, its step size shrinks for good. The step size
    begins anew at every timestep.

    Args:
        scale: step size; published 30 for Human3.6M, 10 elsewhere. It is stable below about 2 J z² / (w f²) for one camera, f being in the
            keypoints' unit and z the distance: about 160 with Human3.6M's cameras.
        substeps: steps at each timestep.
        decay: factor on the step size.
        plateau_threshold: see above.
        per_hypothesis: one step size for each hypothesis instead of each clip (published), so that no hypothesis feels another.
        nan_policy: "raise" a ValueError on an energy that is not finite, or "stop" where one is NaN, as published.
        max_step: metres that a joint may move in a step; None: any, as published.
    """

    def __init__(
        self,
        scale: float = 30.0,
        substeps: int = 10,
        decay: float = 0.1,
        plateau_threshold: float = 1e-4,
        per_hypothesis: bool = False,
        nan_policy: str = "raise",
        max_step: float | None = None,
    ):
        if not isinstance(substeps, int) or isinstance(substeps, bool) or substeps < 0:
            raise ValueError(f"substeps must be an integer of at least 0, got {substeps!r}")
        if nan_policy not in ("raise", "stop"):
            raise ValueError(f"nan_policy must be 'raise' or 'stop', got {nan_policy!r}")
        self.scale, self.substeps, self.decay = check_positive("scale", scale), substeps, check_positive("decay", decay)
        self.plateau_threshold = check_positive("plateau_threshold", plateau_threshold, zero=True)
        self.per_hypothesis, self.nan_policy = per_hypothesis, nan_policy
        self.couples_hypotheses = not per_hypothesis
        self.max_step = None if max_step is None else check_positive("max_step", max_step)

    @torch.no_grad()
    def __call__(self, motion: Tensor, energy: Energy, noise_level: float = 0.0) -> GuideOutput:
        """Guide motions `(..., hypotheses, frames, joints, 3)`; the leading axes are clips. The noise level does not matter here."""
        best = step_size = None
        energies, sizes = [], []
        for _ in range(self.substeps):
            value, gradient = energy.gradient(motion)
            if self.nan_policy == "stop" and value.isnan().any():
                break
            if self.nan_policy == "raise":
                check_finite(energy, motion, value, gradient)
            mean = value if self.per_hypothesis else value.mean(-1, keepdim=True)
            if best is None:
                best, step_size = torch.full_like(mean, math.inf), torch.full_like(mean, self.scale)
            better = mean < best * (1 - self.plateau_threshold)
            best = torch.where(better, mean, best)
            reduced = self.decay * step_size
            step_size = torch.where(better | (step_size - reduced <= 1e-8), step_size, reduced)
            step = step_size[..., None, None, None] * gradient
            motion = motion - (step if self.max_step is None else limited(step, self.max_step))
            energies.append(mean.mean(-1)), sizes.append(step_size.mean(-1))
        return GuideOutput(motion, {"energy": torch.stack(energies), "step_size": torch.stack(sizes)} if energies else {})


class GaussNewtonGuide:
    """A few Gauss–Newton steps within a trust region that is as wide as the prediction is uncertain.

    It looks for the minimum of E(x) + ‖x - x̂‖² / (2 r²), x̂ being the prediction and r its uncertainty: with r_d the spread of the data,
    noise of level σ leaves `r = trust · σ r_d / √(σ² + r_d²)`. If E is a negative log-likelihood, that is the most likely motion given the
    prediction and the observation, as in pseudo-inverse guidance (Song et al., ICLR 2023), so that nothing has to be tuned to the camera's
    distance or the number of cameras. Steps that do not help are shortened (of the last nothing is known).

    Args:
        substeps: steps at each timestep.
        trust: factor on the radius; large numbers follow the observation alone.
        spread: r_d, metres.
        max_step: metres that a joint may move in a step.
    """

    couples_hypotheses = False

    def __init__(self, substeps: int = 2, trust: float = 1.0, spread: float = 0.3, max_step: float = 0.3):
        if not isinstance(substeps, int) or isinstance(substeps, bool) or substeps < 0:
            raise ValueError(f"substeps must be an integer of at least 0, got {substeps!r}")
        self.substeps, self.trust = substeps, check_positive("trust", trust)
        self.spread, self.max_step = check_positive("spread", spread), check_positive("max_step", max_step)

    def radius(self, noise_level: float) -> float:
        """r in metres at a noise level in metres."""
        return self.trust * noise_level * self.spread / math.hypot(noise_level, self.spread)

    @torch.no_grad()
    def __call__(self, motion: Tensor, energy: Energy, noise_level: float) -> GuideOutput:
        """Guide motions `(..., hypotheses, frames, joints, 3)`, each for itself."""
        radius = self.radius(noise_level)
        if self.substeps == 0 or radius == 0:
            return GuideOutput(motion)
        predicted, pull = motion, radius**-2
        kept = step = best = None
        energies = []
        for _ in range(self.substeps):
            expansion = energy.expand(motion)
            check_finite(energy, motion, expansion.value, expansion.gradient)
            offset = motion - predicted
            objective = expansion.value + pull / 2 * offset.square().sum((-1, -2, -3))
            energies.append(expansion.value.mean(-1))
            gradient = expansion.gradient + pull * offset
            newton = limited(solved(expansion.curvature, pull, gradient), self.max_step)
            if kept is None:
                kept, step, best = motion, newton, objective
            else:
                worse = (objective > best)[..., None, None, None]
                step = torch.where(worse, step / 4, newton)
                kept = torch.where(worse, kept, motion)
                best = torch.minimum(objective, best)
            motion = kept - step
        return GuideOutput(motion, {"energy": torch.stack(energies), "radius": torch.full((len(energies),), radius)})


def solved(curvature: Tensor, pull: float, vector: Tensor) -> Tensor:
    """Solutions `(..., 3)` of (C + pull · 1) x = v for positive semidefinite C `(..., 3, 3)`, by Cholesky's method written out.

    No pivot of such a matrix is below `pull`, so that rounding cannot make it singular, however stiff C is.
    """
    (a, b, c), (_, d, e), (_, _, f) = (row.unbind(-1) for row in curvature.unbind(-2))
    x, y, z = vector.unbind(-1)
    first = a + pull
    ba, ca = b / first, c / first
    second = (d + pull - ba * b).clamp_min(pull)
    eb = (e - ca * b) / second
    third = (f + pull - ca * c - eb * (e - ca * b)).clamp_min(pull)
    y = y - ba * x
    z = (z - ca * x - eb * y) / third
    y = y / second - eb * z
    return torch.stack([x / first - ba * y - ca * z, y, z], dim=-1)


def limited(step: Tensor, longest: float) -> Tensor:
    """Steps of joints `(..., 3)` that are nowhere longer than this."""
    return step * (longest / step.norm(dim=-1, keepdim=True).clamp_min(longest))


def check_finite(energy: Energy, motion: Tensor, value: Tensor, gradient: Tensor) -> None:
    """ValueError that names the term of the energy that is not finite, if one is."""
    if torch.isfinite(value).all() and torch.isfinite(gradient).all():
        return
    for term in energy.terms():
        value, gradient = term.gradient(motion)
        if not torch.isfinite(value).all():
            raise ValueError(f"the energy {term.name} is not finite ({(~torch.isfinite(value)).sum().item()} of {value.numel()} motions)")
        if not torch.isfinite(gradient).all():
            raise ValueError(f"the gradient of the energy {term.name} is not finite")
    raise ValueError(f"the energy {energy.name} is not finite")
