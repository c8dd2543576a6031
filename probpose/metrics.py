"""Errors of 3D poses and of sets of hypotheses, as the field reports them.

Poses come in metres, `(..., frames, joints, 3)`, as tensors or NumPy arrays; results are Python floats in millimetres
unless a function says otherwise, averaged over everything. A `mask`, `(..., frames)` or `(..., frames, joints)`, marks
the valid entries; what it leaves out may hold anything, NaN included. Sums run in double precision.

Oracles (P-Best, J-Best) look at the true pose and therefore live here and not among the aggregators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera, procrustes_align, reprojection_error, select_by_reprojection

__all__ = [
    "HP3D_GROUPS",
    "acceleration_error",
    "auc",
    "bone_length_deviation",
    "bone_length_error",
    "hp3d_scores",
    "hypothesis_table",
    "j_best",
    "mpjpe",
    "mpjve",
    "n_mpjpe",
    "p_best",
    "pa_mpjpe",
    "pck",
    "symmetry_error",
]

Array = Tensor | np.ndarray

SCOPES = ("batch", "window", "frame")

HP3D_GROUPS = {
    "head": (0,),
    "neck": (1,),
    "shoulder": (2, 5),
    "elbow": (3, 6),
    "wrist": (4, 7),
    "hip": (8, 11),
    "knee": (9, 12),
    "ankle": (10, 13),
}
HP3D_ROOT = 14

# ---------------------------------------------------------------------------------------------------------------------
# One pose against the truth
# ---------------------------------------------------------------------------------------------------------------------


def mpjpe(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint position error in mm ("protocol 1").

    Raises:
        ValueError: as every function here: shapes that do not fit, values that are not finite, no valid entry.
    """
    pred, target, valid = _pair(pred, target, mask)
    return _millimetres(_distance(pred, target), valid)


def pa_mpjpe(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint position error in mm after each frame's best similarity ("protocol 2", Procrustes-aligned)."""
    pred, target, valid = _pair(pred, target, mask)
    return _millimetres(_distance(procrustes_align(pred, target, weights=valid), target), valid)


def n_mpjpe(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint position error in mm after each frame's best scaling about the root ("protocol 3")."""
    pred, target, valid = _pair(pred, target, mask)
    size = (pred**2).sum((-2, -1), keepdim=True).clamp_min(torch.finfo(pred.dtype).tiny)
    return _millimetres(_distance(pred * (pred * target).sum((-2, -1), keepdim=True) / size, target), valid)


def mpjve(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint velocity error in mm per frame: the norm of the error's frame-to-frame difference."""
    return _motion_error(pred, target, mask, order=1)


def acceleration_error(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint acceleration error in mm per frame²: the norm of the error's second difference."""
    return _motion_error(pred, target, mask, order=2)


def pck(pred: Array, target: Array, threshold: float = 150.0, mask: Array | None = None) -> float:
    """Percentage of correct keypoints: joints whose error is strictly below `threshold` mm."""
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative (mm), got {threshold}")
    pred, target, valid = _pair(pred, target, mask)
    return _pck(_distance(pred, target)[valid], threshold)


def auc(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Area under the PCK curve in percent: the mean of PCK at 0, 5, ..., 150 mm."""
    pred, target, valid = _pair(pred, target, mask)
    return _auc(_distance(pred, target)[valid])


# ---------------------------------------------------------------------------------------------------------------------
# Bones
# ---------------------------------------------------------------------------------------------------------------------


def bone_length_error(pred: Array, target: Array, bones: Sequence[tuple[int, int]], mask: Array | None = None) -> float:
    """Mean absolute difference between predicted and true bone lengths in mm; `bones` as in `Skeleton.bones`."""
    pred, target, valid = _pair(pred, target, mask)
    (a, both), (b, _) = _bone_lengths(pred, valid, bones), _bone_lengths(target, valid, bones)
    return _millimetres((a - b).abs(), both)


def bone_length_deviation(pose: Array, bones: Sequence[tuple[int, int]], mask: Array | None = None) -> float:
    """Standard deviation of each bone's length over the frames of its sequence, averaged over bones and sequences, in
    mm.

    Zero for a rigid skeleton, whatever its size.
    """
    pose, valid = _single(pose, mask)
    lengths, valid = _bone_lengths(pose, valid, bones)
    count = valid.sum(-2, keepdim=True).clamp_min(1)
    mean = (lengths * valid).sum(-2, keepdim=True) / count
    variance = ((lengths - mean) ** 2 * valid).sum(-2, keepdim=True) / count
    return _millimetres(variance.sqrt(), valid.any(-2, keepdim=True))


def symmetry_error(
    pose: Array, bones: Sequence[tuple[int, int]], flip_pairs: Sequence[tuple[int, int]], mask: Array | None = None
) -> float:
    """Mean absolute difference between the lengths of a left bone and its right partner, in mm.

    Args:
        pose: `(..., frames, joints, 3)` metres.
        bones: as in `Skeleton.bones`.
        flip_pairs: `(left, right)` joints, as in `Skeleton.flip_pairs`.
        mask: valid entries.
    """
    pose, valid = _single(pose, mask)
    partner = {left: right for left, right in flip_pairs}
    left = [bone for bone in bones if partner.keys() & set(bone)]
    right = [tuple(partner.get(joint, joint) for joint in bone) for bone in left]
    known = {frozenset(bone) for bone in bones}
    if not left or any(frozenset(bone) not in known for bone in right):
        raise ValueError(f"flip_pairs must map bones to bones, got {list(flip_pairs)} for {list(bones)}")
    (a, a_valid), (b, b_valid) = _bone_lengths(pose, valid, left), _bone_lengths(pose, valid, right)
    return _millimetres((a - b).abs(), a_valid & b_valid)


# ---------------------------------------------------------------------------------------------------------------------
# Sets of hypotheses
# ---------------------------------------------------------------------------------------------------------------------


def hypothesis_table(
    hypotheses: Array,
    target: Array,
    keypoints_2d: Array,
    camera: Camera | Array,
    root: Array,
    protocol: int = 1,
    p_best_scope: str = "batch",
    root_index: int = 0,
    mask: Array | None = None,
) -> dict[str, float] | dict[str, list[float]]:
    """The four numbers of multi-hypothesis papers (D3DP, ICCV 2023): P-Agg, J-Agg, P-Best, J-Best.

    `p_agg` is the error of the mean pose; `j_agg` (JPMA) takes each joint from the hypothesis that reprojects nearest
    to the keypoint; `p_best` and `j_best` let the truth choose a whole hypothesis, or one per joint. The root joint is
    set to zero first.

    Under protocol 2 every hypothesis is aligned to the truth on its own: a joint chosen by J-Agg or J-Best keeps the
    error it has in the alignment of its own hypothesis, the choice of J-Agg is made before aligning, and P-Agg aligns
    the mean pose.

    Args:
        hypotheses: `(batch, num_hypotheses, frames, joints, 3)` metres, or `(batch, iterations, num_hypotheses, frames,
            joints, 3)`, which gives a list with a value per iteration. The batch axis may be missing everywhere.
        target: `(batch, frames, joints, 3)` metres, relative to the root joint.
        keypoints_2d: `(batch, frames, joints, 2)` in the camera's own unit; NaN = not observed.
        camera: a `Camera` or the field's vector `(..., 9)`.
        root: root trajectory `(batch, frames, 3)` or `(batch, frames, 1, 3)`, metres.
        protocol: 1, errors as they are, or 2, after alignment.
        p_best_scope: how far one P-Best hypothesis reaches: "batch" is the published rule, one for all windows of the
            batch (it depends on the batch size, although the windows' noises are independent); "window" and "frame"
            choose anew, and give less.
        root_index: the root joint.
        mask: `(batch, frames)` or `(batch, frames, joints)` valid entries of `target`.

    Returns:
        `p_agg`, `j_agg`, `p_best`, `j_best` in mm.

    Raises:
        ValueError: unknown protocol or scope, shapes that do not fit, values that are not finite.
    """
    if protocol not in (1, 2):
        raise ValueError(f"protocol must be 1 or 2, got {protocol!r}")
    poses, truth, valid = _set(hypotheses, target, mask)
    if root_index not in range(truth.shape[-2]):
        raise ValueError(f"root_index must be a joint in 0..{truth.shape[-2] - 1}, got {root_index!r}")
    keypoints_2d, root = (torch.as_tensor(value).to(poses.device) for value in (keypoints_2d, root))
    if keypoints_2d.ndim != target.ndim:
        raise ValueError(f"keypoints_2d must have shape {(*target.shape[:-1], 2)}, got {tuple(keypoints_2d.shape)}")
    _check_finite("root", root)
    poses, truth = poses.clone(), truth.clone()
    poses[..., root_index, :] = 0
    truth[..., root_index, :] = 0

    # J-Agg chooses in the precision that an aggregator would see.
    reprojected = reprojection_error(poses.reshape(hypotheses.shape), keypoints_2d, camera, root)
    chosen = select_by_reprojection(reprojected.reshape(poses.shape[:-1]), dim=2)

    poses, truth = poses.double(), truth[:, None].double()
    mean = poses.mean(2)
    if protocol == 2:
        mean = procrustes_align(mean, truth, weights=valid[:, None])
        poses = procrustes_align(poses, truth[:, None], weights=valid[:, None, None])
    errors = _distance(poses, truth[:, None])
    table = {
        "p_agg": _distance(mean, truth),
        "j_agg": _pick(errors, chosen),
        "p_best": _pick(errors, _p_best_index(errors, p_best_scope, valid)[..., None]),
        "j_best": errors.amin(2),
    }
    values = {name: [_millimetres(e, valid) for e in error.unbind(1)] for name, error in table.items()}
    return values if hypotheses.ndim == target.ndim + 2 else {name: value[0] for name, value in values.items()}


def p_best(hypotheses: Array, target: Array, scope: str = "batch", mask: Array | None = None) -> tuple[Tensor, Tensor]:
    """Oracle: the hypothesis with the least mean error.

    Args:
        hypotheses: `([batch,] [iterations,] num_hypotheses, frames, joints, 3)` metres.
        target: `([batch,] frames, joints, 3)` metres.
        scope: "batch", "window" or "frame", what one choice is made for; see `hypothesis_table`.
        mask: valid entries of `target`.

    Returns:
        The poses `([batch,] [iterations,] frames, joints, 3)` and the index of the hypothesis for every frame
        `([batch,] [iterations,] frames)`, constant over what the scope joins.

    Raises:
        ValueError: unknown scope, shapes that do not fit, values that are not finite.
    """
    poses, truth, valid = _set(hypotheses, target, mask)
    index = _p_best_index(_distance(poses.double(), truth[:, None, None].double()), scope, valid)
    shape = _without_hypotheses(hypotheses, target)
    return _pick(poses, index[..., None, None]).reshape(shape), index.reshape(shape[:-2])


def j_best(hypotheses: Array, target: Array) -> tuple[Tensor, Tensor]:
    """Oracle: for every joint of every frame the hypothesis nearest to the truth.

    Args:
        hypotheses: `([batch,] [iterations,] num_hypotheses, frames, joints, 3)` metres.
        target: `([batch,] frames, joints, 3)` metres.

    Returns:
        The composite poses `([batch,] [iterations,] frames, joints, 3)` and the indices `([batch,] [iterations,]
        frames, joints)`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite.
    """
    poses, truth, _ = _set(hypotheses, target, None)
    index = select_by_reprojection(_distance(poses.double(), truth[:, None, None].double()), dim=2)
    shape = _without_hypotheses(hypotheses, target)
    return _pick(poses, index[..., None]).reshape(shape), index.reshape(shape[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# MPI-INF-3DHP
# ---------------------------------------------------------------------------------------------------------------------


def hp3d_scores(pred: Array, target: Array, valid: Array | None = None) -> dict[str, float | dict[str, float]]:
    """The benchmark's scores of one MPI-INF-3DHP test sequence; the published figure is the unweighted mean over the
    six sequences.

    Args:
        pred: `(..., frames, 17, 3)` metres in the benchmark's joint order, relative to the pelvis (joint 14), taken as
            it is.
        target: `(..., frames, 17, 3)` metres; moved here so that its pelvis is the origin.
        valid: `(..., frames)`, the benchmark's `valid_frame`.

    Returns:
        `mpjpe` in mm over all 17 joints, the pelvis included, and `pck` (150 mm) and `auc` in percent as dictionaries:
        one entry for each of the eight groups of `HP3D_GROUPS` and `total` over their 14 joints.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, no valid frame.
    """
    pred, target, mask = _pair(pred, target, valid)
    if pred.shape[-2] != 17:
        raise ValueError(f"pred must have 17 joints in the order of MPI-INF-3DHP, got {pred.shape[-2]}")
    errors = _distance(pred, target - target[..., HP3D_ROOT : HP3D_ROOT + 1, :])
    groups = {**HP3D_GROUPS, "total": tuple(joint for group in HP3D_GROUPS.values() for joint in group)}
    picked = {name: errors[..., list(group)][mask[..., list(group)]] for name, group in groups.items()}
    return {
        "mpjpe": _millimetres(errors, mask),
        "pck": {name: _pck(group, 150.0) for name, group in picked.items()},
        "auc": {name: _auc(group) for name, group in picked.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Shared pieces
# ---------------------------------------------------------------------------------------------------------------------


def _check_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(values)).sum())} non-finite values")


def _tensor(value: Array) -> Tensor:
    value = torch.as_tensor(value).detach()
    return value.cpu() if value.device.type == "mps" else value  # Apple's GPUs have no double precision


def _single(pose: Array, mask: Array | None, name: str = "pose") -> tuple[Tensor, Tensor]:
    """A pose in double precision with zeros where it is not valid, and the validity `(..., frames, joints)`."""
    pose = _tensor(pose)
    if pose.ndim < 3 or pose.shape[-1] != 3 or pose.numel() == 0:
        raise ValueError(f"{name} must have shape (..., frames, joints, 3) without empty axes, got {tuple(pose.shape)}")
    valid = torch.ones(pose.shape[:-1], dtype=torch.bool, device=pose.device)
    if mask is not None:
        mask = torch.as_tensor(mask).to(pose.device).bool()
        if mask.shape not in (pose.shape[:-1], pose.shape[:-2]):
            allowed = f"{tuple(pose.shape[:-2])} or {tuple(pose.shape[:-1])}"
            raise ValueError(f"mask must have shape {allowed}, got {tuple(mask.shape)}")
        valid = valid & (mask if mask.ndim == valid.ndim else mask[..., None])
    _check_finite(name, pose[valid])
    return torch.where(valid[..., None], pose, 0.0).double(), valid


def _pair(pred: Array, target: Array, mask: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    pred, valid = _single(pred, mask, "pred")
    target, _ = _single(torch.as_tensor(target).to(pred.device), mask, "target")
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
    return pred, target, valid


def _set(hypotheses: Array, target: Array, mask: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses with all six axes, their target `(batch, frames, joints, 3)` and its validity."""
    poses = _tensor(hypotheses)
    truth, valid = _single(torch.as_tensor(target).to(poses.device), mask, "target")
    fits = truth.ndim in (3, 4) and poses.ndim - truth.ndim in (1, 2) and poses.numel() > 0
    if not fits or poses.shape[-3:] != truth.shape[-3:] or (truth.ndim == 4 and poses.shape[0] != truth.shape[0]):
        raise ValueError(
            "hypotheses and target must have shapes ([batch,] [iterations,] num_hypotheses, frames, joints, 3) and "
            f"([batch,] frames, joints, 3), got {tuple(poses.shape)} and {tuple(truth.shape)}"
        )
    _check_finite("hypotheses", poses)
    if truth.ndim == 3:
        poses, truth, valid = poses[None], truth[None], valid[None]
    return (poses[:, None] if poses.ndim == 5 else poses), truth, valid


def _without_hypotheses(hypotheses: Array, target: Array) -> tuple[int, ...]:
    return (*hypotheses.shape[: hypotheses.ndim - 4], *target.shape[-3:])


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """From `(batch, iterations, num_hypotheses, ...)` the values of hypothesis `index (batch, iterations, ...)`."""
    return torch.take_along_dim(values, index.unsqueeze(2), dim=2).squeeze(2)


def _p_best_index(errors: Tensor, scope: str, valid: Tensor) -> Tensor:
    """Hypothesis `(batch, iterations, frames)` with the least sum of errors over what the scope joins."""
    if scope not in SCOPES:
        raise ValueError(f"p_best scope must be one of {SCOPES}, got {scope!r}")
    joined = {"batch": (0, 3, 4), "window": (3, 4), "frame": (4,)}[scope]
    sums = (errors * valid[:, None, None]).sum(joined, keepdim=True)
    index = select_by_reprojection(sums, dim=2).squeeze(-1)
    return index.expand(errors.shape[0], errors.shape[1], errors.shape[3])


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=-1)


def _millimetres(errors: Tensor, valid: Tensor) -> float:
    """Mean of the valid errors, metres to millimetres."""
    if not valid.any():
        raise ValueError("mask leaves no valid entry to average over")
    return 1000 * errors[valid].mean().item()


def _motion_error(pred: Array, target: Array, mask: Array | None, order: int) -> float:
    pred, target, valid = _pair(pred, target, mask)
    if pred.shape[-3] <= order:
        raise ValueError(f"a difference of order {order} needs at least {order + 1} frames, got {pred.shape[-3]}")
    for _ in range(order):
        valid = valid[..., 1:, :] & valid[..., :-1, :]
    error = (pred - target).diff(n=order, dim=-3)
    return _millimetres(torch.linalg.vector_norm(error, dim=-1), valid)


def _pck(errors: Tensor, threshold: float) -> float:
    if errors.numel() == 0:
        raise ValueError("mask leaves no valid entry to average over")
    return 100 * (1000 * errors < threshold).double().mean().item()


def _auc(errors: Tensor) -> float:
    return sum(_pck(errors, threshold) for threshold in range(0, 151, 5)) / 31


def _bone_lengths(pose: Tensor, valid: Tensor, bones: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Lengths `(..., frames, bones)` and which of them have both ends valid."""
    joints = pose.shape[-2]
    if not len(bones) or any(len(bone) != 2 or not all(joint in range(joints) for joint in bone) for bone in bones):
        raise ValueError(f"bones must be pairs of joints in 0..{joints - 1}, got {list(bones)}")
    a, b = ([bone[end] for bone in bones] for end in (0, 1))
    return _distance(pose[..., a, :], pose[..., b, :]), valid[..., a] & valid[..., b]
