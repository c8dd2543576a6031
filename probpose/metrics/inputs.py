"""What all metrics share: checked tensors with zeros where nothing is valid, distances, and means in millimetres."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def as_tensor(value: Array) -> Tensor:
    value = torch.as_tensor(value).detach()
    return value.cpu() if value.device.type == "mps" else value  # Apple's GPUs have no double precision


def check_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():  # the sum is quick
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(values)).sum())} non-finite values")


def at_least_single(*poses: Tensor) -> tuple[Tensor, ...]:
    """Poses in their own common precision, but no coarser than float32; integers in float64."""
    dtype = torch.float32
    for pose in poses:
        dtype = torch.promote_types(dtype, pose.dtype if pose.dtype.is_floating_point else torch.float64)
    return tuple(pose.to(dtype) for pose in poses)


def single(pose: Array, mask: Array | None, name: str = "pose") -> tuple[Tensor, Tensor]:
    """A pose with zeros where it is not valid, and the validity `(..., frames, joints)`.

    The mask may lack the last of the pose's leading axes, so that one mask serves all hypotheses of a clip.
    """
    pose = as_tensor(pose)
    if pose.ndim < 3 or pose.shape[-1] != 3 or pose.numel() == 0:
        raise ValueError(f"{name} must have shape (..., frames, joints, 3) without empty axes, got {tuple(pose.shape)}")
    (pose,) = at_least_single(pose)
    if mask is None:
        check_finite(name, pose)
        return pose, torch.ones((), dtype=torch.bool, device=pose.device).expand(pose.shape[:-1])
    mask = torch.as_tensor(mask).to(pose.device).bool()
    *lead, frames, joints = pose.shape[:-1]
    for axes in range(len(lead), -1, -1):
        if mask.shape in ((*lead[:axes], frames), (*lead[:axes], frames, joints)):
            break
    else:
        raise ValueError(f"mask must have shape {(*lead, frames)} or {(*lead, frames, joints)}, got {tuple(mask.shape)}")
    own = joints if mask.ndim == axes + 2 else 1
    valid = mask.reshape(*lead[:axes], *[1] * (len(lead) - axes), frames, own).expand(pose.shape[:-1])
    check_finite(name, pose[valid])
    return torch.where(valid[..., None], pose, 0.0), valid


def pair(pred: Array, target: Array, mask: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    """Two poses of one shape in double precision, and their validity."""
    pred, valid = single(pred, mask, "pred")
    target, _ = single(torch.as_tensor(target).to(pred.device), mask, "target")
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
    return pred.double(), target.double(), valid


def against(pred: Array, target: Array, mask: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    """Poses or sets of hypotheses, their target with singleton axes for the hypotheses, and the validity of `pred`."""
    pred, valid = single(pred, mask, "pred")
    target, _ = single(torch.as_tensor(target).to(pred.device), mask, "target")
    return pred, shared_by_hypotheses("target", target, pred), valid


def shared_by_hypotheses(name: str, value: Tensor, pred: Tensor) -> Tensor:
    """`(*lead, frames, joints, 3)` with singleton axes where `pred`, `(*lead, *hypotheses, frames, joints, 3)`, has more."""
    lead = value.ndim - 3
    if lead < 0 or pred.ndim < value.ndim or pred.shape[:lead] != value.shape[:lead] or pred.shape[-3:] != value.shape[-3:]:
        raise ValueError(
            f"{name} must have the shape of the prediction, {tuple(pred.shape)}, with or without the axes of hypotheses before "
            f"the frames, got {tuple(value.shape)}"
        )
    return value.reshape(*value.shape[:lead], *[1] * (pred.ndim - value.ndim), *value.shape[-3:])


def hypothesis_set(hypotheses: Array, target: Array, mask: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses `(batch, iterations, num_hypotheses, frames, joints, 3)`, target `(batch, frames, joints, 3)` and its validity."""
    poses = as_tensor(hypotheses)
    truth, valid = single(torch.as_tensor(target).to(poses.device), mask, "target")
    fits = truth.ndim in (3, 4) and poses.ndim - truth.ndim in (1, 2) and poses.numel() > 0
    if not fits or poses.shape[-3:] != truth.shape[-3:] or (truth.ndim == 4 and poses.shape[0] != truth.shape[0]):
        raise ValueError(
            "hypotheses and target must have shapes ([batch,] [iterations,] num_hypotheses, frames, joints, 3) and "
            f"([batch,] frames, joints, 3), got {tuple(poses.shape)} and {tuple(truth.shape)}"
        )
    check_finite("hypotheses", poses)
    if truth.ndim == 3:
        poses, truth, valid = poses[None], truth[None], valid[None]
    return (poses[:, None] if poses.ndim == 5 else poses), truth, valid


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=-1)


def mean_mm(errors: Tensor, valid: Tensor) -> float:
    """Mean of the valid errors, metres to millimetres; what is not valid must be finite."""
    count = int(valid.sum())
    if count == 0:
        raise ValueError("mask leaves no valid entry to average over")
    errors = errors.contiguous() if count == valid.numel() else errors * valid
    return 1000 * errors.sum(dtype=torch.float64).item() / count
