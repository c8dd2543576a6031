"""Recalibration: hypotheses that are spread as far as the truth lies from them.

Samplers that predict clean poses answer with posterior means, and their samples lie closer together than the truth lies to them. Moving
every hypothesis away from (or towards) the median of its set along the line to it changes distances and nothing else, so how far to go
can be read off a few distances measured where the truth is known (Pierzchlewicz et al., "Platypose", 2024, suggest a single factor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from probpose.hub.push import HubMixin

from .coverage import hypothesis_centre

MODES = ("scale", "joint", "level", "radial")
FEWEST_CASES = 200


class Recalibration(HubMixin, ModelMixin, ConfigMixin):
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
        lengths: lengths of clips in frames that have tables of their own, rising, for models that err more on a single frame than within
            a long clip but are no less sure; between them tables are interpolated over the logarithm of the length. None: one for all.

    Raises:
        ValueError: an unknown mode, or lengths that do not rise from at least 1.
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
        lengths: Sequence[int] | None = None,
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        if lengths is not None and not (lengths and lengths[0] >= 1 and all(a < b for a, b in pairwise(lengths))):
            raise ValueError(f"lengths must rise and begin with at least 1, got {lengths}")
        leading = () if lengths is None else (len(lengths),)
        tables = {
            "level": torch.arange(1.0, num_levels + 1).expand(num_joints, -1) / 100,  # ρ in metres, rising
            "scale": torch.ones(num_joints, num_levels),
            "knot": torch.linspace(0, 2, num_knots).expand(num_joints, -1),  # d / ρ, rising
            "shape": torch.ones(num_joints, num_knots),
            "radius_factor": torch.full((num_joints,), torch.nan),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.expand(*leading, *table.shape).clone())

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
        tables = self._tables(hypotheses.shape[-3])
        factor = _factor(offset.float().norm(dim=-1), tables)  # half precision has no room for squares of millimetres
        return centre + factor[..., None].to(offset) * offset

    def radius(self, uncertainty: Tensor) -> Tensor:
        """Radius in metres about the aggregated pose that holds the truth in a share `config.coverage` of the cases.

        Split-conformal: for joints of frames that are exchangeable with those it was fitted on, each joint of a new frame lies within its
        radius with at least that probability (see `probpose.calibration.fit_conformal`). Other cameras, detectors or motions than those
        are not covered by that promise.

        Args:
            uncertainty: `(..., frames, joints)` metres, of the pipeline's calibrated call with the aggregator it was fitted for.
        """
        frames = uncertainty.shape[-2] if uncertainty.ndim > 1 else 1
        return self._tables(frames)["radius_factor"].to(uncertainty) * uncertainty

    def _tables(self, frames: int) -> dict[str, Tensor]:
        """The tables for clips of this length, `(joints, ...)` each."""
        tables = {name: buffer for name, buffer in self.named_buffers()}
        lengths = self.config.lengths
        if lengths is None:
            return tables
        place = np.interp(math.log(frames), [math.log(length) for length in lengths], range(len(lengths)))
        low = int(place)
        high = min(low + 1, len(lengths) - 1)
        return {name: torch.lerp(table[low], table[high], place - low) for name, table in tables.items()}

    def of_length(self, length: int) -> Recalibration:
        """The recalibration of clips of this length, for any number of frames of theirs."""
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        one = Recalibration(**{**config, "lengths": None}).to(self.scale)
        one.load_state_dict(self._tables(length))
        return one

    def table(self, length: int | None = None) -> dict[str, Tensor]:
        """What a fit writes to: views of the buffers, those of one of `config.lengths` if there are any.

        Raises:
            ValueError: a length that has no table of its own.
        """
        lengths = self.config.lengths
        if length is None and lengths is None:
            return dict(self.named_buffers())
        if lengths is None or length not in lengths:
            raise ValueError(f"length must be one of {lengths}, got {length}")
        return {name: buffer[lengths.index(length)] for name, buffer in self.named_buffers()}

    @torch.no_grad()
    def fit(self, hypotheses: Tensor, target: Tensor, length: int | None = None) -> Recalibration:
        """Fit the factors; best on motions that the model was not trained on.

        Args:
            hypotheses: `(num_hypotheses, cases, joints, 3)` metres: frames of many clips, as many hypotheses as will be used later on.
            target: `(cases, joints, 3)`.
            length: of the clips that the cases are frames of, one of `config.lengths` if there are any.

        Raises:
            ValueError: shapes that do not fit, fewer than two hypotheses, fewer than `FEWEST_CASES`, or another length.
        """
        table = self.table(length)
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
            table["scale"][:] = _best_factor(distance[:, :, moving].flatten(1), error[:, moving].flatten())
            return self
        for j in moving:
            if mode == "joint":
                table["scale"][j] = _best_factor(distance[..., j], error[:, j])
                continue
            order = spread[:, j].argsort().tensor_split(config.num_levels)
            table["level"][j] = torch.stack([spread[part, j].median() for part in order])
            table["scale"][j] = torch.stack([_best_factor(distance[:, part, j], error[part, j]) for part in order])
            if mode == "radial":
                self._fit_shape({name: rows[j : j + 1] for name, rows in table.items()}, distance[..., j], error[:, j], spread[:, j])
        return self

    def _fit_shape(self, table: dict[str, Tensor], distance: Tensor, error: Tensor, spread: Tensor) -> None:
        """Stretch a joint's knots, which sit at the usual places of sorted distances, until each is exceeded as often as it should be."""
        count, knots = len(distance), self.config.num_knots
        level = torch.linspace(0, 1, knots, dtype=torch.float64)
        # The nearest and the farthest of so few cannot stand for the very ends of the error's distribution.
        reached = level.clamp(0.5 / count, 1 - 1 / count).to(error)
        table["knot"][0] = torch.quantile((distance / spread).median(1).values, level.to(distance))
        for _ in range(8):
            factor = _factor(distance[..., None], table)[..., 0]
            moved = torch.quantile(distance * factor, level.to(distance), dim=0)
            stretch = torch.stack([torch.quantile(error / m.clamp_min(1e-6), q) for m, q in zip(moved, reached)])
            # What is farther away stays farther away, and steps are damped, since a knot moves its neighbours' distances as well.
            place = (table["knot"][0] * table["shape"][0] * stretch.clamp(0.1, 10).sqrt()).cummax(0).values
            table["shape"][0] = place / table["knot"][0].clamp_min(1e-9)


def _factor(distance: Tensor, table: dict[str, Tensor]) -> Tensor:
    """Factor for every distance `(..., num_hypotheses, frames, joints)`, by tables of as many joints."""
    spread = _root_mean_square(distance, dim=-3).unsqueeze(-3)
    relative = distance / spread.clamp_min(1e-9)
    return _interpolate(spread, table["level"], table["scale"]) * _interpolate(relative, table["knot"], table["shape"])


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
