"""Energies: how badly motions agree with something that is known of them, one number for each motion.

    energy = ReprojectionEnergy(camera, keypoints) + 0.1 * SmoothnessEnergy(fps=30)
    energy(motions)                                   # (..., frames, joints, 3) -> (...)

A motion is `(..., frames, joints, 3)` in metres: joints relative to the root of their frame. Where an energy takes no `root`, the root's
own place (joint 0) holds the root's trajectory, as in a `MotionPriorModel`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Expansion:
    """An energy around a motion, to second order.

    Args:
        value: `(...)`.
        gradient: `(..., frames, joints, 3)`.
        curvature: `(..., frames, joints, 3, 3)`: for every joint of every frame, a positive semidefinite matrix such that the energy rises
            by no more than half its quadratic form when all joints move at once (to the order of Gauss and Newton).
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor


class Energy(ABC):
    """A term that guidance makes small. Energies can be added, and multiplied by a number."""

    @abstractmethod
    def __call__(self, motion: Tensor) -> Tensor:
        """One number for each motion: `(..., frames, joints, 3)` to `(...)`; differentiable."""

    @abstractmethod
    def curvature(self, motion: Tensor) -> Tensor:
        """As in `Expansion`; no gradients."""

    @property
    def name(self) -> str:
        """What error messages call it."""
        return type(self).__name__

    def terms(self) -> Iterator[Energy]:
        """The energies that this one is the sum of."""
        yield self

    def gradient(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Value `(...)` and gradient `(..., frames, joints, 3)`; each motion's own, since motions do not interact."""
        with torch.enable_grad():
            motion = motion.detach().requires_grad_()
            value = self(motion)
            (gradient,) = torch.autograd.grad(value.sum(), motion)
        return value.detach(), gradient

    @torch.no_grad()
    def expand(self, motion: Tensor) -> Expansion:
        """Value, gradient and curvature at a motion."""
        return Expansion(*self.gradient(motion), self.curvature(motion))

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        return EnergySum([(1.0, self), (1.0, other)])

    def __mul__(self, factor: float) -> Energy:
        return EnergySum([(check_positive("the factor of an energy", factor, zero=True), self)])

    __rmul__ = __mul__


class EnergySum(Energy):
    """Weighted sum of energies, `[(factor, energy), …]`; sums within sums are flattened."""

    def __init__(self, parts: list[tuple[float, Energy]]):
        self.parts: list[tuple[float, Energy]] = []
        for factor, energy in parts:
            inner = energy.parts if isinstance(energy, EnergySum) else [(1.0, energy)]
            self.parts += [(factor * own, term) for own, term in inner]

    def __call__(self, motion: Tensor) -> Tensor:
        return sum(factor * energy(motion) for factor, energy in self.parts)

    def curvature(self, motion: Tensor) -> Tensor:
        return sum(factor * energy.curvature(motion) for factor, energy in self.parts)

    @torch.no_grad()
    def expand(self, motion: Tensor) -> Expansion:
        expansions = [(factor, energy.expand(motion)) for factor, energy in self.parts]
        return Expansion(*(sum(factor * getattr(e, part) for factor, e in expansions) for part in ("value", "gradient", "curvature")))

    @property
    def name(self) -> str:
        return " + ".join(energy.name for _, energy in self.parts)

    def terms(self) -> Iterator[Energy]:
        for _, energy in self.parts:
            yield from energy.terms()


def absolute(motion: Tensor, root: Tensor | None = None, hold: bool = False) -> Tensor:
    """Joints in space `(..., frames, joints, 3)`.

    Args:
        motion: `(..., frames, joints, 3)`.
        root: `(..., frames, 3)`, added to every joint, whatever stands in the root's place. None: the trajectory that stands there.
        hold: no gradient reaches that trajectory.
    """
    if root is not None:
        return motion + root[..., None, :]
    trajectory = motion[..., :1, :].detach() if hold else motion[..., :1, :]
    return torch.cat([trajectory, motion[..., 1:, :] + trajectory], dim=-2)


def pulled_back(curvature: Tensor, root: Tensor | None = None, hold: bool = False) -> Tensor:
    """Curvature in the joints in space `(..., frames, joints, 3, 3)` as curvature in the motion that `absolute` made them of.

    Without a `root`, joint j rests on two places of the motion, which the factor two accounts for; the root's place moves all joints.
    """
    if root is not None:
        return curvature
    if hold:
        return torch.cat([torch.zeros_like(curvature[..., :1, :, :]), curvature[..., 1:, :, :]], dim=-3)
    return 2 * torch.cat([curvature.sum(-3, keepdim=True), curvature[..., 1:, :, :]], dim=-3)


def isotropic(weight: Tensor) -> Tensor:
    """Matrices `(..., 3, 3)` that are a number `(...)` times the identity."""
    return weight[..., None, None] * torch.eye(3).to(weight)


def check_positive(name: str, value: Any, zero: bool = False) -> float:
    """A finite number above zero (or zero, if allowed); ValueError names it otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")
    return float(value)
