"""One pose against the truth."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from probpose.geometry import procrustes_align
from probpose.skeletons import Skeleton, get_skeleton, list_skeletons

from .inputs import Array, distance, mean_mm, pair

THRESHOLDS_MM = range(0, 151, 5)
SCALES = ("least_squares", "procrustes")
DIVISORS = ("correct", "frames")


def mpjpe(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint position error in mm ("protocol 1").

    Raises:
        ValueError: as every function here: shapes that do not fit, values that are not finite, no valid entry.
    """
    pred, target, valid = pair(pred, target, mask)
    return mean_mm(distance(pred, target), valid)


def pa_mpjpe(pred: Array, target: Array, mask: Array | None = None, recentre_root: int | None = None) -> float:
    """Mean per-joint position error in mm after each frame's best similarity ("protocol 2", Procrustes-aligned).

    Args:
        pred, target: `(..., frames, joints, 3)` metres.
        mask: valid entries.
        recentre_root: None as usual; a joint: the aligned pose and the target are then moved so that this joint is the
            origin of both, as EpipolarPose (CVPR 2019) does. Frames in which it is not valid do not count.
    """
    pred, target, valid = pair(pred, target, mask)
    aligned = procrustes_align(pred, target, weights=valid)
    if recentre_root is not None:
        if recentre_root not in range(pred.shape[-2]):
            raise ValueError(f"recentre_root must be a joint in 0..{pred.shape[-2] - 1} or None, got {recentre_root!r}")
        root = slice(recentre_root, recentre_root + 1)
        aligned, target = aligned - aligned[..., root, :], target - target[..., root, :]
        valid = valid & valid[..., root]
    return mean_mm(distance(aligned, target), valid)


def n_mpjpe(pred: Array, target: Array, mask: Array | None = None, scale: str = "least_squares") -> float:
    """Mean per-joint position error in mm after each frame's best scaling about the root ("protocol 3").

    Args:
        pred, target: `(..., frames, joints, 3)` metres, relative to the root.
        mask: valid entries.
        scale: "least_squares", the factor that leaves the least squared error, or "procrustes", the factor of the best
            similarity, which is found together with a rotation that is then thrown away, as EpipolarPose (CVPR 2019) does.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale!r}")
    pred, target, valid = pair(pred, target, mask)
    tiny = torch.finfo(pred.dtype).tiny
    if scale == "least_squares":
        factor = (pred * target).sum((-2, -1)) / pred.square().sum((-2, -1)).clamp_min(tiny)
    else:
        before, after = (_spread(pose, valid) for pose in (pred, procrustes_align(pred, target, weights=valid)))
        factor = (after / before.clamp_min(tiny)).sqrt()
    return mean_mm(distance(factor[..., None, None] * pred, target), valid)


def mpjve(pred: Array, target: Array, mask: Array | None = None) -> float:
    """Mean per-joint velocity error in mm per frame: the norm of the error's frame-to-frame difference."""
    pred, target, valid = pair(pred, target, mask)
    return mean_mm(*_motion_error(pred, target, valid, order=1))


def acceleration_error(pred: Array, target: Array, mask: Array | None = None, divisor: str = "correct") -> float:
    """Mean per-joint acceleration error in mm per frame²: the norm of the error's second difference.

    Args:
        pred, target: `(..., frames, joints, 3)` metres.
        mask: valid entries.
        divisor: "correct", the number of differences, or "frames", the number of valid entries of the poses: some
            published code divides the sum over the N - 2 differences of N frames by N.
    """
    if divisor not in DIVISORS:
        raise ValueError(f"divisor must be one of {DIVISORS}, got {divisor!r}")
    pred, target, valid = pair(pred, target, mask)
    errors, both = _motion_error(pred, target, valid, order=2)
    return mean_mm(errors, both) * (int(both.sum()) / int(valid.sum()) if divisor == "frames" else 1)


# ---------------------------------------------------------------------------------------------------------------------
# Correct keypoints
# ---------------------------------------------------------------------------------------------------------------------


def pck(
    pred: Array,
    target: Array,
    threshold_mm: float = 150.0,
    mask: Array | None = None,
    skeleton: str | Skeleton | None = None,
) -> float:
    """Percentage of correct keypoints: joints whose error is strictly below a threshold.

    Args:
        pred, target: `(..., frames, joints, 3)` metres.
        threshold_mm: millimetres.
        mask: valid entries.
        skeleton: None: over all joints; the skeleton of the poses: over the 14 joints of MPI-INF-3DHP's benchmark, see
            `joint_groups`.
    """
    if not threshold_mm >= 0:
        raise ValueError(f"threshold_mm must not be negative, got {threshold_mm}")
    return _pck(_benchmark_errors(pred, target, mask, skeleton), threshold_mm)


def auc(pred: Array, target: Array, mask: Array | None = None, skeleton: str | Skeleton | None = None) -> float:
    """Area under the PCK curve in percent: the mean of PCK at 0, 5, ..., 150 mm; arguments as in `pck`."""
    return _auc(_benchmark_errors(pred, target, mask, skeleton))


def joint_groups(skeleton: str | Skeleton) -> dict[str, tuple[int, ...]]:
    """The joints over which MPI-INF-3DHP's benchmark reports PCK and AUC, by group, the right side first.

    The head is its top; the neck is the joint between the shoulders, which Human3.6M calls thorax.

    Args:
        skeleton: one that has the 14 joints, such as "mpi_inf_3dhp_17" or "h36m_17".

    Returns:
        head, neck, shoulder, elbow, wrist, hip, knee and ankle, one or two indices each.

    Raises:
        ValueError: a skeleton that is not known or lacks one of the joints.
    """
    skeleton = get_skeleton(skeleton)
    groups = _groups_by_name(skeleton.joint_names)
    if groups is None:
        known = [name for name in list_skeletons() if _groups_by_name(get_skeleton(name).joint_names)]
        raise ValueError(f"skeleton {skeleton.name!r} lacks joints of the benchmark; known are {', '.join(known)}")
    return dict(groups)


@cache
def _groups_by_name(names: tuple[str, ...]) -> dict[str, tuple[int, ...]] | None:
    neck = "neck" if "neck" in names else "thorax"
    groups = {"head": ["head_top"], "neck": [neck]}
    groups |= {part: [f"right_{part}", f"left_{part}"] for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")}
    if not all(joint in names for group in groups.values() for joint in group):
        return None
    return {part: tuple(names.index(joint) for joint in group) for part, group in groups.items()}


HP3D_GROUPS = joint_groups("mpi_inf_3dhp_17")


def hp3d_scores(
    pred: Array, target: Array, valid: Array | None = None, skeleton: str | Skeleton = "mpi_inf_3dhp_17"
) -> dict[str, float | dict[str, float]]:
    """The benchmark's scores of one MPI-INF-3DHP test sequence; the published figure is the unweighted mean over the
    six sequences.

    Args:
        pred: `(..., frames, joints, 3)` metres, relative to the skeleton's root, taken as it is.
        target: `(..., frames, joints, 3)` metres; moved here so that its root is the origin.
        valid: `(..., frames)`, the benchmark's `valid_frame`.
        skeleton: order of the joints, the benchmark's own or another one of 17 joints such as "h36m_17".

    Returns:
        `mpjpe` in mm over all joints, the root included, and `pck` (150 mm) and `auc` in percent as dictionaries: one
        entry for each of the eight groups of `joint_groups` and `total` over their 14 joints.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, no valid frame, a skeleton without a root or
            without the benchmark's joints.
    """
    skeleton = get_skeleton(skeleton)
    groups = joint_groups(skeleton)
    pred, target, mask = pair(pred, target, valid)
    if skeleton.root is None or pred.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"pred must have the {skeleton.num_joints} joints of {skeleton.name!r}, root included, got {pred.shape[-2]} joints"
        )
    errors = distance(pred, target - target[..., skeleton.root : skeleton.root + 1, :])
    groups["total"] = tuple(joint for group in groups.values() for joint in group)
    picked = {name: errors[..., list(group)][mask[..., list(group)]] for name, group in groups.items()}
    return {
        "mpjpe": mean_mm(errors, mask),
        "pck": {name: _pck(group, 150.0) for name, group in picked.items()},
        "auc": {name: _auc(group) for name, group in picked.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Shared pieces
# ---------------------------------------------------------------------------------------------------------------------


def _spread(pose: Tensor, valid: Tensor) -> Tensor:
    """Sum of squared distances of the valid joints from their centroid `(..., frames)`."""
    valid = valid[..., None]
    centroid = (pose * valid).sum(-2, keepdim=True) / valid.sum(-2, keepdim=True).clamp_min(1)
    return ((pose - centroid).square() * valid).sum((-2, -1))


def _motion_error(pred: Tensor, target: Tensor, valid: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Norms of the error's differences along the frames, and which of them have only valid frames."""
    if pred.shape[-3] <= order:
        raise ValueError(f"a difference of order {order} needs at least {order + 1} frames, got {pred.shape[-3]}")
    for _ in range(order):
        valid = valid[..., 1:, :] & valid[..., :-1, :]
    return torch.linalg.vector_norm((pred - target).diff(n=order, dim=-3), dim=-1), valid


def _benchmark_errors(pred: Array, target: Array, mask: Array | None, skeleton: str | Skeleton | None) -> Tensor:
    """The valid errors of the joints that count, in one row."""
    pred, target, valid = pair(pred, target, mask)
    errors = distance(pred, target)
    if skeleton is not None:
        skeleton = get_skeleton(skeleton)
        if errors.shape[-1] != skeleton.num_joints:
            raise ValueError(f"pred must have the {skeleton.num_joints} joints of {skeleton.name!r}, got {errors.shape[-1]}")
        joints = [joint for group in joint_groups(skeleton).values() for joint in group]
        errors, valid = errors[..., joints], valid[..., joints]
    return errors[valid]


def _pck(errors: Tensor, threshold_mm: float) -> float:
    if errors.numel() == 0:
        raise ValueError("mask leaves no valid entry to average over")
    return 100 * (1000 * errors < threshold_mm).double().mean().item()


def _auc(errors: Tensor) -> float:
    if errors.numel() == 0:
        raise ValueError("mask leaves no valid entry to average over")
    thresholds = torch.tensor(THRESHOLDS_MM, dtype=errors.dtype, device=errors.device)
    missed = torch.bucketize(1000 * errors, thresholds, right=True)  # thresholds that the error is not strictly below
    return 100 * (1 - missed.double().mean().item() / len(THRESHOLDS_MM))
