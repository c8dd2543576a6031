"""Energies of motions by themselves: bones, smoothness, the ground, and joints whose place is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probpose.skeletons import Skeleton, get_skeleton

from .energies import Energy, absolute, check_positive, isotropic, pulled_back

FEET = ("ankle", "foot", "toe", "heel")


class BoneLengthEnergy(Energy):
    """Bones as long as they should be.

    E = ½ Σ frames Σ bones ((‖bone‖ - length) / sigma)².

    Bones that begin at the root begin at the origin, whatever stands in the root's place.

    Args:
        lengths: `(..., bones)` metres, in the order of `Skeleton.bones`; leading axes broadcast against those of the motions. None: every
            motion's own mean over its frames, so that the energy is their variance over time.
        skeleton: joint set; its first joint is the root.
        sigma: metres.

    Raises:
        ValueError: lengths that do not belong to the skeleton or are not positive, a skeleton whose root is not joint 0, or, when called,
            motions of another number of joints.
    """

    def __init__(self, lengths: Any = None, skeleton: str | Skeleton = "h36m_17", sigma: float = 0.01):
        self.skeleton, self.sigma = get_skeleton(skeleton), check_positive("sigma", sigma)
        if self.skeleton.root != 0:
            raise ValueError(f"the skeleton's root must be joint 0, {self.skeleton.name!r} has {self.skeleton.root}")
        self.parents, self.children = (list(ends) for ends in zip(*self.skeleton.bones))
        self.lengths = None if lengths is None else floating("lengths", lengths, len(self.children))
        if self.lengths is not None and not (torch.isfinite(self.lengths) & (self.lengths > 0)).all():
            raise ValueError(f"lengths must be finite and above 0, got {self.lengths.tolist()}")

    def _bones(self, motion: Tensor) -> Tensor:
        if motion.shape[-2] != self.skeleton.num_joints:
            raise ValueError(f"motions must have the {self.skeleton.num_joints} joints of {self.skeleton.name!r}, got {motion.shape[-2]}")
        joints = torch.cat([torch.zeros_like(motion[..., :1, :]), motion[..., 1:, :]], dim=-2)
        return joints[..., self.children, :] - joints[..., self.parents, :]

    def _wanted(self, present: Tensor) -> Tensor:
        return present.mean(-2, keepdim=True) if self.lengths is None else self.lengths.to(present)[..., None, :]

    def __call__(self, motion: Tensor) -> Tensor:
        present = self._bones(motion).norm(dim=-1)
        return ((present - self._wanted(present)) / self.sigma).square().sum((-1, -2)) / 2

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        bones = self._bones(motion)
        present = bones.norm(dim=-1).clamp_min(1e-9)
        direction = bones / present[..., None]
        # Sideways, a bone that is too long is pulled straight; one that is too short is free.
        sideways = (1 - self._wanted(present) / present).clamp_min(0)
        each = isotropic(sideways) + (1 - sideways)[..., None, None] * direction[..., :, None] * direction[..., None, :]
        # Both ends of a bone may move, which the factor two accounts for; the origin stays.
        each = each * torch.tensor([2.0 if parent else 1.0 for parent in self.parents]).to(each)[:, None, None]
        total = each.new_zeros(*each.shape[:-3], motion.shape[-2], 3, 3)
        for ends in (self.parents, self.children):
            total.index_add_(-3, torch.tensor(ends, device=total.device), each)
        total[..., 0, :, :] = 0
        return total / self.sigma**2


class SmoothnessEnergy(Energy):
    """Little acceleration, as under a Gaussian prior.

    E = ½ Σ frames Σ joints ‖(x_{t-1} - 2 x_t + x_{t+1}) fps² / acceleration‖².

    Of the motion's own channels: the joints relative to the root, and whatever stands in the root's place, usually the trajectory. Motions
    of less than three frames have none.

    Args:
        fps: frames per second.
        acceleration: standard deviation of each axis, m/s².

    Raises:
        ValueError: either is not positive.
    """

    def __init__(self, fps: float, acceleration: float = 5.0):
        self.factor = check_positive("fps", fps) ** 2 / check_positive("acceleration", acceleration)

    def __call__(self, motion: Tensor) -> Tensor:
        change = motion[..., :-2, :, :] - 2 * motion[..., 1:-1, :, :] + motion[..., 2:, :, :]
        return (self.factor * change).square().sum((-1, -2, -3)) / 2

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        # (a - 2 b + c)² ≤ 4 a² + 8 b² + 4 c²: 16 in all for a frame with two neighbours on either side.
        frames = motion.shape[-3]
        shares = motion.new_zeros(frames)
        for first, share in enumerate((4, 8, 4)):
            shares[first : max(frames - 2, 0) + first] += share
        return isotropic((self.factor**2 * shares[:, None]).expand(motion.shape[:-1]))


class GroundContactEnergy(Energy):
    """Feet that stay above the floor and, while they stand on it, where they are.

    E = ½ Σ frames Σ feet (min(h, 0) / penetration)² + ½ Σ frames Σ feet c ‖v / slide‖²,

    with a foot's height h above the floor, its horizontal velocity v from one frame to the next, and how surely it stands in both of them,
    c = min over the two of exp(-½ (max(h, 0) / contact_height)²). For gradients c is a constant: a foot that slides should stop, not take
    off.

    Args:
        up: `(3,)` or `(..., 3)`, away from the floor in the axes of the joints in space; of any length.
        floor: where the floor lies along `up`, metres; a number or `(...)`. Ankles stand about 0.08 m above the ground.
        root: `(..., frames, 3)` metres, added to all joints of a motion; None: the motion's own trajectory.
        feet: joints; default all of the skeleton's whose names say ankle, foot, toe or heel.
        skeleton: joint set that `feet` are of.
        fps: frames per second.
        penetration, contact_height: metres.
        slide: m/s.

    Raises:
        ValueError: a direction without length, joints that the skeleton lacks, and the other arguments out of their range.
    """

    def __init__(
        self,
        up: Any = (0.0, 0.0, 1.0),
        floor: Any = 0.0,
        root: Any = None,
        feet: Sequence[int] | None = None,
        skeleton: str | Skeleton = "h36m_17",
        fps: float = 30.0,
        penetration: float = 0.01,
        contact_height: float = 0.06,
        slide: float = 0.05,
    ):
        up, self.floor = floating("up", up, 3), floating("floor", floor)
        length = up.norm(dim=-1, keepdim=True)
        if not (torch.isfinite(length) & (length > 0)).all():
            raise ValueError(f"up must be finite and have a length, got {up.tolist()}")
        if not torch.isfinite(self.floor).all():
            raise ValueError(f"floor must be finite, got {self.floor.tolist()}")
        self.up, self.root = up / length, None if root is None else floating("root", root, 3)
        skeleton = get_skeleton(skeleton)
        named = [joint for joint, name in enumerate(skeleton.joint_names) if any(part in name for part in FEET)]
        self.feet = named if feet is None else list(feet)
        if not self.feet or len(set(self.feet)) < len(self.feet) or any(foot not in range(skeleton.num_joints) for foot in self.feet):
            raise ValueError(f"feet must be different joints in 0..{skeleton.num_joints - 1} of {skeleton.name!r}, got {self.feet}")
        self.penetration, self.contact_height = check_positive("penetration", penetration), check_positive("contact_height", contact_height)
        self.slip = check_positive("fps", fps) / check_positive("slide", slide)

    def _feet(self, motion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feet in space `(..., frames, feet, 3)`, their heights `(..., frames, feet)` and the way up, to multiply with them."""
        feet = absolute(motion, None if self.root is None else self.root.to(motion))[..., self.feet, :]
        up = self.up.to(motion)[..., None, None, :]
        return feet, (feet * up).sum(-1) - self.floor.to(motion)[..., None, None], up

    def _standing(self, height: Tensor) -> Tensor:
        """c `(..., frames - 1, feet)`."""
        near = torch.exp(-(height.detach().clamp_min(0) / self.contact_height).square() / 2)
        return torch.minimum(near[..., :-1, :], near[..., 1:, :])

    def __call__(self, motion: Tensor) -> Tensor:
        feet, height, up = self._feet(motion)
        moved = feet[..., 1:, :, :] - feet[..., :-1, :, :]
        slid = moved - (moved * up).sum(-1, keepdim=True) * up
        below = (height.clamp_max(0) / self.penetration).square().sum((-1, -2))
        return (below + (self._standing(height)[..., None] * (self.slip * slid).square()).sum((-1, -2, -3))) / 2

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        _, height, up = self._feet(motion)
        upright = up[..., :, None] * up[..., None, :]
        level = torch.eye(3).to(motion) - upright
        below = (height < 0).to(motion) / self.penetration**2
        # A step rests on two frames, which the factor two accounts for; a frame has a step on either side.
        slides = 2 * self.slip**2 * self._standing(height)
        slides = torch.nn.functional.pad(slides, (0, 0, 1, 0)) + torch.nn.functional.pad(slides, (0, 0, 0, 1))
        each = below[..., None, None] * upright + slides[..., None, None] * level
        total = each.new_zeros(*each.shape[:-3], motion.shape[-2], 3, 3)
        total[..., self.feet, :, :] = each
        return pulled_back(total, self.root)


class InpaintingEnergy(Energy):
    """Joints or frames that are known already: key poses, the beginning of a motion, a tracked hand.

    E = ½ Σ frames Σ joints w ‖x - target‖² / sigma².

    Args:
        target: `(..., frames, joints, 3)` metres, as the motions are, so that the root's place holds what it holds there; NaN = not known.
            Broadcasts against the motions.
        weights: `(..., frames, joints)`, not negative; default 1.
        sigma: metres.

    Raises:
        ValueError: an infinite target, weights that are negative or not finite where the target is known, shapes that do not fit.
    """

    def __init__(self, target: Any, weights: Any = None, sigma: float = 0.005):
        target, sigma = floating("target", target, 3), check_positive("sigma", sigma)
        if torch.isinf(target).any():
            raise ValueError("target must be finite, or NaN where it is not known")
        known = ~target.isnan()
        weights = torch.ones_like(target[..., 0]) if weights is None else floating("weights", weights).to(target)
        try:
            weights = torch.where(known, weights[..., None], 0.0)
        except RuntimeError:
            raise ValueError(f"weights must have shape {tuple(target.shape[:-1])}, got {tuple(weights.shape)}") from None
        if not torch.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weights must be finite and not negative")
        self.target, self.precision = torch.where(known, target, 0.0), weights / sigma**2

    def __call__(self, motion: Tensor) -> Tensor:
        return (self.precision.to(motion) * (motion - self.target.to(motion)).square()).sum((-1, -2, -3)) / 2

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        return torch.diag_embed(torch.broadcast_tensors(self.precision.to(motion), motion)[0])


def floating(name: str, value: Any, *trailing: int) -> Tensor:
    """A floating tensor `(..., *trailing)`; ValueError names it if its last axes are others."""
    value = torch.as_tensor(value)
    if tuple(value.shape[value.ndim - len(trailing) :]) != trailing:
        raise ValueError(f"{name} must have shape (..., {', '.join(map(str, trailing))}), got {tuple(value.shape)}")
    return value if value.is_floating_point() else value.float()
