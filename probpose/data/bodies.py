"""How bodies measure and stand, by which units, axes and sides are told. Points are `(..., joints, n)` throughout."""

from __future__ import annotations

import torch
from torch import Tensor

from probpose.skeletons import Skeleton

LIMBS = {"thigh": ("hip", "knee"), "shin": ("knee", "ankle"), "upper arm": ("shoulder", "elbow"), "forearm": ("elbow", "wrist")}
LIMB_METRES = (0.1, 0.8)
"""Median limb, from a small child to a giant."""


def limb_lengths(points: Tensor, joints: Skeleton) -> Tensor:
    """Lengths of the left and right `LIMBS` `(..., 4, 2)`."""
    ends = torch.tensor([[_pair(joints, part) for part in limb] for limb in LIMBS.values()])
    return torch.linalg.vector_norm(points[..., ends[:, 1], :] - points[..., ends[:, 0], :], dim=-1)


def middle(points: Tensor, joints: Skeleton, part: str) -> Tensor:
    """Between a left and a right joint `(..., n)`."""
    return points[..., _pair(joints, part), :].mean(-2)


def across(points: Tensor, joints: Skeleton, part: str) -> Tensor:
    """From a right joint to the left one `(..., n)`."""
    left, right = _pair(joints, part)
    return points[..., left, :] - points[..., right, :]


def trunk(points: Tensor, joints: Skeleton) -> Tensor:
    """Unit vector from the hips to the shoulders `(..., n)`."""
    return torch.nn.functional.normalize(middle(points, joints, "shoulder") - middle(points, joints, "hip"), dim=-1)


def median_uprightness(poses: Tensor, joints: Skeleton) -> float:
    """Median cosine between the trunk and the image's upward direction (-y); 1 = upright, -1 = upside down."""
    return (-trunk(poses, joints)[..., 1]).nanmedian().item()


def _pair(joints: Skeleton, part: str) -> tuple[int, int]:
    names = joints.joint_names
    if not {f"left_{part}", f"right_{part}"} <= set(names):
        raise ValueError(f"skeleton {joints.name} needs joints left_{part} and right_{part}, by which bodies are measured")
    return names.index(f"left_{part}"), names.index(f"right_{part}")
