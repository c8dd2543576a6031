"""Recalibration: hypotheses that are spread as far as the truth lies from them.

Samplers that predict clean poses answer with posterior means, and their samples lie closer together than the truth lies to them. Moving
every hypothesis away from (or towards) the median of its set along the line to it changes distances and nothing else, so how far to go
can be read off a few distances measured where the truth is known (Pierzchlewicz et al., "Platypose", 2024, suggest a single factor).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .coverage import hypothesis_centre

MODES = ("scale", "joint", "level", "radial")
FEWEST_CASES = 200


class Recalibration(ModelMixin, ConfigMixin):
    """Moves hypotheses about their coordinate-wise median, whose place does not change; and turns a predicted uncertainty into a radius.

    The factor of a hypothesis of joint j at distance d from the median, where ρ is the root-mean-square distance of the set, is
    `scale_j(ρ) · shape_j(d / ρ)`, both piecewise linear.

    Args:
        num_joints: joints J.
        mode: what a fit adapts. "scale": one factor. "joint": one for each joint. "level": for each joint a table of factors over levels
            of noise, told by ρ, since a fixed error of the model weighs most where hypotheses agree. "radial": also the shape of the
            distribution of distances, which has longer tails than the hypotheses know.
        num_levels: levels of the table.
        num_knots: knots of the shape.
        coverage: share of the cases that lie within `radius`.
        aggregation: aggregator whose pose and uncertainty `radius` is about.
        fitted_with: settings of the sampler that made the hypotheses, for the record.

    Raises:
        ValueError: an unknown mode.
    """

    @register_to_config
    def __init__(
        self,
        num_joints: int = 17,
        mode: str = "radial",
        num_levels: int = 6,
        num_knots: int = 20,
        coverage: float = 0.9,
        aggregation: str | None = None,
        fitted_with: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.register_buffer("level", torch.arange(1.0, num_levels + 1).repeat(num_joints, 1) / 100)  # ρ in metres, rising
        self.register_buffer("scale", torch.ones(num_joints, num_levels))
        self.register_buffer("knot", torch.linspace(0, 2, num_knots).repeat(num_joints, 1))  # d / ρ, rising
        self.register_buffer("shape", torch.ones(num_joints, num_knots))
        self.register_buffer("radius_factor", torch.full((num_joints,), torch.nan))

    def forward(self, hypotheses: Tensor) -> Tensor:
        """Recalibrated hypotheses.

        Args:
            hypotheses: `(..., num_hypotheses, frames, joints, 3)` metres. A single one stays where it is.

        Raises:
            ValueError: another number of joints.
        """
        joints = self.config.num_joints
        if hypotheses.ndim < 4 or hypotheses.shape[-2:] != (joints, 3):
            raise ValueError(f"hypotheses must have shape (..., num_hypotheses, frames, {joints}, 3), got {tuple(hypotheses.shape)}")
        centre = hypothesis_centre(hypotheses.movedim(-4, 0)).unsqueeze(-4)
        offset = hypotheses - centre
        factor = self._factor(offset.float().norm(dim=-1))  # half precision has no room for squares of millimetres
        return centre + factor[..., None].to(offset) * offset

    def radius(self, uncertainty: Tensor) -> Tensor:
        """Radius in metres about the aggregated pose that holds the truth in a share `config.coverage` of the cases.

        Split-conformal: for joints of frames that are exchangeable with those it was fitted on, each joint of a new frame lies within its
        radius with at least that probability (see `probpose.calibration.fit_conformal`). Other cameras, detectors or motions than those
        are not covered by that promise.

        Args:
            uncertainty: `(..., joints)` metres, of the pipeline's calibrated call with the aggregator it was fitted for.
        """
        return self.radius_factor.to(uncertainty) * uncertainty

    @torch.no_grad()
    def fit(self, hypotheses: Tensor, target: Tensor) -> Recalibration:
        """Fit the factors; best on motions that the model was not trained on.

        Args:
            hypotheses: `(num_hypotheses, cases, joints, 3)` metres: frames of many clips, as many hypotheses as will be used later on.
            target: `(cases, joints, 3)`.

        Raises:
            ValueError: shapes that do not fit, fewer than two hypotheses, or fewer than `FEWEST_CASES`.
        """
        shape = (*target.shape[:1], self.config.num_joints, 3)
        if hypotheses.ndim != 4 or hypotheses.shape[1:] != shape or target.shape != shape:
            raise ValueError(
                f"a fit needs hypotheses (num_hypotheses, cases, {shape[1]}, 3) and a target (cases, {shape[1]}, 3), "
                f"got {tuple(hypotheses.shape)} and {tuple(target.shape)}"
            )
        count, cases = hypotheses.shape[:2]
        if count < 2 or cases < FEWEST_CASES:
            raise ValueError(f"a fit needs at least 2 hypotheses and {FEWEST_CASES} cases, got {count} and {cases}")
        centre = hypothesis_centre(hypotheses)
        distance = (hypotheses - centre).norm(dim=-1).sort(dim=0).values
        error = (target - centre).norm(dim=-1)
        spread = _root_mean_square(distance)
        mode, config = self.config.mode, self.config
        moving = [j for j in range(config.num_joints) if error[:, j].max() > 1e-6 and spread[:, j].min() > 1e-9]  # the root never does
        if mode == "scale":
            self.scale[:] = _best_factor(distance[:, :, moving].flatten(1), error[:, moving].flatten())
            return self
        for j in moving:
            if mode == "joint":
                self.scale[j] = _best_factor(distance[..., j], error[:, j])
                continue
            order = spread[:, j].argsort().tensor_split(config.num_levels)
            self.level[j] = torch.stack([spread[part, j].median() for part in order])
            self.scale[j] = torch.stack([_best_factor(distance[:, part, j], error[part, j]) for part in order])
            if mode == "radial":
                self._fit_shape(j, distance[..., j], error[:, j], spread[:, j])
        return self

    def _fit_shape(self, joint: int, distance: Tensor, error: Tensor, spread: Tensor) -> None:
        """Stretch the knots, which sit at the usual places of the sorted distances, until each is exceeded as often as it should be."""
        count, knots = len(distance), self.config.num_knots
        level = torch.linspace(0, 1, knots, dtype=torch.float64)
        # The nearest and the farthest of so few cannot stand for the very ends of the error's distribution.
        reached = level.clamp(0.5 / count, 1 - 1 / count).to(error)
        self.knot[joint] = torch.quantile((distance / spread).median(1).values, level.to(distance))
        for _ in range(8):
            factor = self._factor(distance[..., None], slice(joint, joint + 1))[..., 0]
            moved = torch.quantile(distance * factor, level.to(distance), dim=0)
            stretch = torch.stack([torch.quantile(error / m.clamp_min(1e-6), q) for m, q in zip(moved, reached)])
            # What is farther away stays farther away, and steps are damped, since a knot moves its neighbours' distances as well.
            place = (self.knot[joint] * self.shape[joint] * stretch.clamp(0.1, 10).sqrt()).cummax(0).values
            self.shape[joint] = place / self.knot[joint].clamp_min(1e-9)

    def _factor(self, distance: Tensor, joints: slice = slice(None)) -> Tensor:
        """Factor for every distance `(..., num_hypotheses, frames, joints)` of these joints."""
        spread = _root_mean_square(distance, dim=-3).unsqueeze(-3)
        relative = distance / spread.clamp_min(1e-9)
        scale = _interpolate(spread, self.level[joints], self.scale[joints])
        return scale * _interpolate(relative, self.knot[joints], self.shape[joints])


def _root_mean_square(distance: Tensor, dim: int = 0) -> Tensor:
    return distance.square().mean(dim).sqrt()


def _best_factor(distance: Tensor, error: Tensor) -> Tensor:
    """The factor on sorted distances `(num_hypotheses, cases)` for which coverage is nearest to what it should be over the levels."""
    level = torch.linspace(0.05, 0.95, 19, dtype=torch.float64).to(distance)
    needed = error / torch.quantile(distance, level, dim=0).clamp_min(1e-9)  # covered by every larger factor
    factors = torch.logspace(-1, 1.3, 200).to(distance)
    covered = torch.stack([torch.searchsorted(row, factors) for row in needed.sort(dim=1).values.contiguous()]) / len(error)
    return factors[(covered - level[:, None]).abs().mean(0).argmin()]


def _interpolate(x: Tensor, at: Tensor, value: Tensor) -> Tensor:
    """Piecewise linear functions through `(at, value)`, both `(joints, n)`, one for each joint of `x (..., joints)`; constant outside."""
    at, value = at.to(x), value.to(x)
    if at.shape[1] == 1:
        return value[:, 0].expand_as(x)
    rows = x.movedim(-1, 0).flatten(1).contiguous()
    right = torch.searchsorted(at.contiguous(), rows).clamp(1, at.shape[1] - 1)
    low, high = at.gather(1, right - 1), at.gather(1, right)
    share = ((rows - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    result = torch.lerp(value.gather(1, right - 1), value.gather(1, right), share)
    return result.unflatten(1, x.movedim(-1, 0).shape[1:]).movedim(0, -1)
