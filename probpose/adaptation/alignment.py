"""Global position alignment: labelled poses move to where the people of another place stand.

Chai et al., "Global Adaptation meets Local Generalization: Unsupervised Domain Adaptation for 3D Human Pose Estimation" (PoseDA), ICCV
2023, arXiv 2303.16456. Every source pose is paired with 2D keypoints of the target domain and placed in front of their camera: so far away
that it looks as large, and on the ray through their root. Nothing is learnt; the pose itself stays as it is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from probpose.geometry import Camera

TRAJECTORIES = ("target", "source")


def global_position_alignment(
    source_pose: Tensor,
    target_keypoints_2d: Tensor,
    camera: Camera,
    index: Tensor | None = None,
    refine: bool = False,
    *,
    root_index: int = 0,
    per_frame: bool = False,
    trajectory: Literal["target", "source"] = "target",
    legacy: bool = False,
) -> Tensor:
    """Source poses, placed as far from the camera and in the same direction as target people (PoseDA, §3.2).

    With `s` the mean side of the partner's 2D box and `dx, dy` the extents of the source pose, the root lies at the depth
    `(fx dx + fy dy) / 2s` on the ray through the partner's root. Project the result with the partner's camera to see it. The projected
    root is the partner's; the box agrees to first order, as the depth of the body itself is neglected (an error of some per cent).

    A clip gets one depth, from the medians over its frames of box and extents, so that its motion stays a motion.

    Args:
        source_pose: `(poses, joints, 3)`, or clips `(clips, frames, joints, 3)`, metres, camera axes, absolute or relative to the root.
        target_keypoints_2d: `(partners, joints, 2)`, for clips `(partners, frames, joints, 2)`, in the camera's unit (pixels or screen
            units). NaN = not observed; boxes and extents are then those of the observed joints, in the partner and in the source pose. In
            a clip, frames without a root (or, with `per_frame`, without two keypoints) take the ray (the depth) between their
            neighbours'.
        camera: one, or one per partner (tensors with a leading axis). Lens distortion is ignored in the placing.
        index: `(poses,)` integers, the partner of each source pose, whose camera goes with it; None pairs row by row.
        refine: one fixed-point step, `depth ← depth · projected box / s`, which leaves an error of some per mille.
        root_index: the root joint of poses and keypoints.
        per_frame: every frame of a clip for itself, as released; it then jumps to and fro.
        trajectory: how a clip moves. "target": its root follows the partner's rays at the clip's depth. "source": it keeps the motion of
            its own root and is moved as a whole, not turned, until its mean root lies on the mean of the partner's rays at that depth;
            this needs absolute source poses.
        legacy: the published snippet to the letter, for comparison. It mixes cameras up: the focal length of the first partner counts for
            the depth of all, and row i of the cameras for the ray of pose i, whichever partner it has.

    Returns:
        Absolute poses in camera axes, metres, in the shape of `source_pose`; differentiable with respect to it. Depths may be
        implausible: see `plausible_depth`.

    Raises:
        ValueError: shapes or options that do not fit, values of `index` that name no partner, unequal numbers of frames (or of poses and
            partners without `index`), source poses that are not finite, partners of whom nothing is seen to go by.
    """
    index = _check(source_pose, target_keypoints_2d, index, root_index, per_frame, trajectory)
    partners = len(target_keypoints_2d)
    if legacy and (refine or len(index) > partners):
        raise ValueError(f"legacy=True needs refine=False and a partner's camera for each of {len(index)} poses, got {partners} partners")
    own = torch.arange(len(index), device=index.device) if legacy else index
    focal, centre = (_per_partner(value, partners).to(source_pose) for value in (camera.focal, camera.centre))
    size_focal, ray_focal, ray_centre = focal[:1] if legacy else focal[index], focal[own], centre[own]

    pose = source_pose if source_pose.ndim == 4 else source_pose[:, None]
    keypoints = target_keypoints_2d.to(source_pose)[index].reshape(*pose.shape[:-1], 2)
    seen = keypoints.isfinite().all(-1)
    rooted, sized = seen[..., root_index], seen.sum(-1) >= 2
    if not (rooted.any(-1) & sized.any(-1)).all():
        bad = index[~(rooted.any(-1) & sized.any(-1))].unique().tolist()
        raise ValueError(f"target_keypoints_2d: partners {bad} never show their root (joint {root_index}), or never two joints at a time")
    keypoints = keypoints.nan_to_num(posinf=0.0, neginf=0.0)
    seen = seen | ~sized[..., None]  # frames that do not count must not bring infinities into the gradients of those that do

    box = _extent(keypoints, seen).mean(-1)
    box = torch.maximum(box, 1e-6 * size_focal.mean(-1, keepdim=True))  # an angle of a microradian

    def depth_factor(side: Tensor) -> Tensor:
        """How many times as large as the partner something is, `(pairs, frames or 1)`."""
        if per_frame:
            return _filled((side / box)[..., None], sized)[..., 0]
        return _median(side, sized) / _median(box, sized)

    depth = depth_factor((size_focal[:, None] * _extent(pose[..., :2], seen)).mean(-1))
    slopes = _filled((keypoints[..., root_index, :] - ray_centre[:, None]) / ray_focal[:, None], rooted)
    ray = torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1)

    root = pose[..., root_index, :]
    if trajectory == "source":
        root, ray = root.mean(1, keepdim=True), ray.mean(1, keepdim=True)
    relative = pose - root[:, :, None]

    def placed(depth: Tensor) -> Tensor:
        return relative + (depth[..., None] * ray)[:, :, None]

    if refine:
        first = placed(depth)
        # A joint nearer than a tenth of the way to the root would fill the image.
        view = first[..., :2] / torch.maximum(first[..., 2:], (0.1 * depth[..., None, None]).clamp_min(1e-6))
        depth = depth * depth_factor((ray_focal[:, None] * _extent(view, seen)).mean(-1))
    return placed(depth).reshape(source_pose.shape)


def plausible_depth(aligned: Tensor, root_index: int = 0, limits: tuple[float, float] = (0.5, 20.0)) -> Tensor:
    """Whether roots stand at a distance at which people are filmed.

    Args:
        aligned: absolute poses `(..., joints, 3)` in camera axes, metres.
        root_index: the root joint.
        limits: least and greatest depth in metres.

    Returns:
        `(...)` boolean; one per frame for clips.
    """
    depth = aligned[..., root_index, 2]
    return (depth >= limits[0]) & (depth <= limits[1])


def _check(
    source_pose: Tensor, target_keypoints_2d: Tensor, index: Tensor | None, root_index: int, per_frame: bool, trajectory: str
) -> Tensor:
    """The partner of each source pose `(poses,)`; raises the errors of `global_position_alignment`."""
    shape, target = tuple(source_pose.shape), tuple(target_keypoints_2d.shape)
    if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape or not source_pose.is_floating_point():
        raise ValueError(f"source_pose must be floating, (poses, joints, 3) or (clips, frames, joints, 3), none empty, got {shape}")
    if len(target) != len(shape) or target[1:] != (*shape[1:-1], 2):
        raise ValueError(
            f"target_keypoints_2d must have shape {('partners', *shape[1:-1], 2)} to go with source_pose {shape}, got {target}"
        )
    if not source_pose.isfinite().all():
        bad = (~source_pose.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
        raise ValueError(f"source_pose must be finite, rows {bad} are not")
    if root_index not in range(shape[-2]):
        raise ValueError(f"root_index must be a joint in 0..{shape[-2] - 1}, got {root_index!r}")
    if trajectory not in TRAJECTORIES:
        raise ValueError(f"trajectory must be one of {TRAJECTORIES}, got {trajectory!r}")
    if trajectory == "source" and len(shape) == 4:
        if per_frame:
            raise ValueError("per_frame=True places every frame for itself, which trajectory='source' forbids")
        if (source_pose[..., root_index, :] == 0).flatten(1).all(1).any():
            raise ValueError("trajectory='source' keeps the motion of the source's root: it needs absolute poses, got some relative to it")
    if index is None:
        if shape[0] != target[0]:
            raise ValueError(f"without index, source_pose and target_keypoints_2d pair row by row, got {shape[0]} and {target[0]} rows")
        return torch.arange(shape[0], device=source_pose.device)
    if index.shape != shape[:1] or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"index must hold one integer for each of {shape[0]} source poses, got {index.dtype} {tuple(index.shape)}")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < target[0]:
        raise ValueError(f"index must name partners in 0..{target[0] - 1}, got {int(index.min())}..{int(index.max())}")
    return index.to(source_pose.device, torch.int64)


def _per_partner(value: Tensor, partners: int) -> Tensor:
    """A camera's pair of numbers, for each partner `(partners, 2)`."""
    if value.shape[:-1] not in ((), (1,), (partners,)):
        raise ValueError(f"camera must be one or one for each of {partners} partners, got leading axes {tuple(value.shape[:-1])}")
    return value.expand(partners, 2)


def _extent(points: Tensor, seen: Tensor) -> Tensor:
    """Sides of the box around the seen joints: `(..., joints, 2)` to `(..., 2)`."""
    hidden = ~seen[..., None]
    return points.masked_fill(hidden, -torch.inf).amax(-2) - points.masked_fill(hidden, torch.inf).amin(-2)


def _median(values: Tensor, valid: Tensor) -> Tensor:
    """Median over the valid frames, `(pairs, frames)` to `(pairs, 1)`; the mean of the middle two if they are even in number."""
    return values.masked_fill(~valid, torch.nan).nanquantile(0.5, dim=-1, keepdim=True)


def _filled(values: Tensor, valid: Tensor) -> Tensor:
    """Values `(pairs, frames, n)` of which those not valid lie between their neighbours' (beyond the ends: are the nearest)."""
    frames = valid.shape[1]
    time = torch.arange(frames, device=valid.device).expand_as(valid)
    before = time.where(valid, -1).cummax(1).values
    after = time.where(valid, frames).flip(1).cummin(1).values.flip(1)
    before, after = before.where(before >= 0, after), after.where(after < frames, before)
    share = (time - before).to(values) / (after - before).clamp_min(1)
    start, end = (torch.take_along_dim(values, place[..., None], dim=1) for place in (before, after))
    return torch.lerp(start, end, share[..., None])
