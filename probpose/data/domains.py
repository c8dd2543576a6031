"""What sets two domains apart: the mistakes that adapting a model to another data set dies of, found by measuring both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera
from probpose.skeletons import Skeleton, bone_lengths, get_skeleton

from .bodies import LIMB_METRES, LIMBS, across, limb_lengths, median_uprightness, middle, trunk
from .keypoints.detections import looks_normalised
from .keypoints.tracks import check_fps

_HUMAN = {"thigh": (0.25, 0.6), "shin": (0.25, 0.6), "upper arm": (0.18, 0.45), "forearm": (0.15, 0.4)}  # metres, of most grown-ups
_FOLD = 3.0  # sizes and speeds that differ by more are another camera, unit or frame rate
_BONE_GAP = 0.2  # box sizes by which a bone's length in the image may differ
_ROOT_GAP = 0.2  # box sizes between the root and the middle of the hips


@dataclass(frozen=True)
class DomainStatistics:
    """One domain in numbers; NaN or None where there is nothing to measure. Image sizes are in focal lengths, so that cameras compare.

    Attributes:
        frames: frames looked at. observed: share of their joints that was observed.
        box_size: 5, 50 and 95 % quantiles of the mean of width and height of the box around a person.
        root_position: median place (x, y) of the root in the image, from the optical axis.
        speed: 90 % quantile of the joints' movement from frame to frame, in box sizes per second. (In the median of clips in which people
            mostly stand it would be the detector's jitter.)
        head_above_feet: share of frames. left_to_the_right: share of frames with the person's left on the image's right, as of people
            who face the camera. twisted: share with hips and shoulders the opposite way round.
        root_gap: median distance of the root from the middle of the hips, in box sizes.
        swapped: with poses, share of frames in which left and right are the other way round than the pose says.
        reprojection: with poses, median distance of keypoints from the projected pose, in box sizes; None for poses without a place.
        upright: with poses, median cosine between the trunk and the image's upward direction (-y).
        elevation: with poses, degrees by which the camera looks down on people, if these stand upright on average.
        limbs: with poses, median lengths in the poses' unit, which should be metres.
        root_gap_3d: with poses, median distance of the root from the middle of the hips, in thighs.
    """

    frames: int
    observed: float
    box_size: tuple[float, float, float]
    root_position: tuple[float, float]
    speed: float
    head_above_feet: float
    left_to_the_right: float
    twisted: float
    root_gap: float
    swapped: float | None = None
    reprojection: float | None = None
    upright: float | None = None
    elevation: float | None = None
    limbs: dict[str, float] | None = None
    root_gap_3d: float | None = None


@dataclass(frozen=True)
class DomainReport:
    """What `compare_domains` found: `source` and `target` in numbers, and `warnings`, sentences about what looks wrong."""

    source: DomainStatistics
    target: DomainStatistics
    skeleton: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; None where nothing could be measured."""
        return _plain(asdict(self))

    def to_text(self) -> str:
        """A table with one line per quantity, and the warnings below it."""
        rows = [("", "source", "target")]
        source, target = asdict(self.source), asdict(self.target)
        for key, value in source.items():
            if value is not None or target[key] is not None:
                rows.append((key.replace("_", " "), _shown(value), _shown(target[key])))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, "", *(f"! {warning}" for warning in self.warnings or ("nothing looks wrong",))])


def compare_domains(
    source_pose: Any,
    source_2d: Any,
    target_2d: Any,
    source_camera: Camera | Sequence[Camera] | None = None,
    target_camera: Camera | Sequence[Camera] | None = None,
    *,
    skeleton: str = "h36m_17",
    fps: float = 30.0,
    root_index: int | None = None,
    target_pose: Any = None,
) -> DomainReport:
    """Looks for the mistakes that adapting to another data set dies of. Look before and after.

    Args:
        source_pose: labelled poses `(..., frames, joints, 3)`, camera axes, metres, absolute; or a list of them.
        source_2d: their keypoints `(..., frames, joints, 2)` in pixels, NaN = not observed, or a list of as many; a list may hold
            `TargetTrack`s, which bring their camera.
        target_2d: keypoints of the target, likewise.
        source_camera, target_camera: one camera, or one for each entry of a list.
        skeleton: joint order of everything.
        fps: frame rate of everything.
        root_index: where the root is said to be; None = the skeleton's, or the middle of the hips if that has none.
        target_pose: poses of the target, if a model has made some; they may be relative to the root. With them left and right can be
            checked in the target too, and the elevation of its camera. Keypoints alone do not tell either.

    Raises:
        ValueError: shapes that do not fit, no camera, nobody observed.
    """
    joints, fps = get_skeleton(skeleton), check_fps(fps or 0)
    if root_index is not None and root_index not in range(joints.num_joints):
        raise ValueError(f"root_index must be a joint of {joints.name}, 0..{joints.num_joints - 1}, got {root_index}")
    root = joints.root if root_index is None else root_index
    views = {
        "source": _view("source", source_2d, source_camera, source_pose, joints),
        "target": _view("target", target_2d, target_camera, target_pose, joints),
    }
    numbers = {name: _statistics(view, joints, root, fps) for name, view in views.items()}
    found = [warning for name, view in views.items() for warning in _warnings_of(name, view.normalised, numbers[name])]
    found += _warnings_between(**numbers)
    source, target = ((bone_lengths(view.slopes, joints) / view.box[:, None]).nanmedian(0).values for view in views.values())
    odd = [
        f"{joints.joint_names[a]}-{joints.joint_names[b]}" for (a, b), gap in zip(joints.bones, source - target) if gap.abs() > _BONE_GAP
    ]
    if len(odd) > 1:
        bones = ", ".join(odd)
        found.append(f"bones have other lengths in the target's image than in the source's ({bones}); is the joint order {joints.name}?")
    return DomainReport(**numbers, skeleton=joints.name, warnings=tuple(found))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring one domain
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _View:
    """The clips of one domain in a row, each with an empty frame behind it, so that nothing moves from clip to clip.

    `frames` does not count these. `slopes (rows, joints, 2)` are undistorted keypoints in focal lengths, `box (rows,)` is the size of
    the person in them, `poses (rows, joints, 3)` or None.
    """

    frames: int
    slopes: Tensor
    box: Tensor
    poses: Tensor | None
    normalised: bool


def _view(name: str, keypoints: Any, cameras: Any, poses: Any, joints: Skeleton) -> _View:
    clips = _listed(keypoints)
    cameras = list(cameras) if isinstance(cameras, Iterable) else [cameras] * len(clips)
    poses = [None] * len(clips) if poses is None else _listed(poses)
    if not clips or len(cameras) != len(clips) or len(poses) != len(clips):
        raise ValueError(f"{name}: expected as many cameras and poses as clips, got {len(cameras)} and {len(poses)} for {len(clips)}")
    frames, slopes, bodies, normalised = 0, [], [], False
    for clip, camera, pose in zip(clips, cameras, poses):
        camera = camera or getattr(clip, "camera", None)
        points = torch.as_tensor(getattr(clip, "keypoints_2d", clip)).float()
        if camera is None or camera.focal.ndim != 1:
            raise ValueError(f"{name}: every clip needs one camera, pass {name}_camera")
        if points.ndim < 3 or points.shape[-2:] != (joints.num_joints, 2):
            expected = f"(..., frames, {joints.num_joints}, 2) ({joints.name})"
            raise ValueError(f"{name}: keypoints must have shape {expected}, got {tuple(points.shape)}")
        if getattr(clip, "skeleton", joints.name) != joints.name:
            raise ValueError(f"{name}: {clip.name} is {clip.skeleton!r}, not {joints.name!r}")
        frames += points[..., 0, 0].numel()
        normalised |= looks_normalised(points.numpy(force=True)) and bool((camera.focal > 10).all())
        slopes.append(_in_a_row(camera.unproject(points)))
        if pose is not None:
            pose = torch.as_tensor(pose).float()
            if pose.shape != (*points.shape[:-1], 3):
                raise ValueError(f"{name}: poses must have shape {(*points.shape[:-1], 3)}, got {tuple(pose.shape)}")
            bodies.append(_in_a_row(pose))
    row = torch.cat(slopes)
    if not row.isfinite().all(-1).any():
        raise ValueError(f"{name}: no joint is observed in any of {frames} frames")
    return _View(frames, row, _box(row), torch.cat(bodies) if bodies else None, normalised)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (np.ndarray, Tensor)) else [value]


def _in_a_row(clips: Tensor) -> Tensor:
    """Clips `(..., frames, joints, n)` one after another, each followed by a frame of NaN."""
    clips = clips.reshape(-1, *clips.shape[-3:])
    return torch.cat([clips, torch.full_like(clips[:, :1], torch.nan)], dim=1).flatten(0, 1)


def _box(slopes: Tensor) -> Tensor:
    """Mean of width and height of the box around a person `(rows,)`; NaN for one who is half hidden, unless there are no others."""
    seen = slopes.isfinite().all(-1)
    low = torch.where(seen[..., None], slopes, torch.inf).amin(1)
    high = torch.where(seen[..., None], slopes, -torch.inf).amax(1)
    enough = seen.sum(-1) >= min(slopes.shape[1] // 2, int(seen.sum(-1).max()))
    return torch.where(enough, (high - low).mean(-1), torch.nan)


def _statistics(view: _View, joints: Skeleton, root: int | None, fps: float) -> DomainStatistics:
    slopes, box = view.slopes, view.box
    hips = middle(slopes, joints, "hip")
    at = hips if root is None else slopes[:, root]
    heads = [j for j, name in enumerate(joints.joint_names) if name in ("head_top", "head", "nose", "neck_nose")]
    head = slopes[:, heads, 1].nanmean(-1) if heads else middle(slopes, joints, "shoulder")[:, 1]
    feet = middle(slopes, joints, "ankle")[:, 1]
    hip, shoulder = (across(slopes, joints, part)[:, 0] for part in ("hip", "shoulder"))
    clear = (hip.abs() > 0.05 * box) & (shoulder.abs() > 0.05 * box)
    twisted = hip * shoulder < 0
    steps = torch.linalg.vector_norm(slopes.diff(dim=0), dim=-1) / box[1:, None] * fps
    return DomainStatistics(
        frames=view.frames,
        observed=slopes.isfinite().all(-1).sum().item() / (view.frames * joints.num_joints),
        box_size=_quantiles(box, 0.05, 0.5, 0.95),
        root_position=tuple(at.nanmedian(0).values.tolist()),
        speed=_quantiles(steps, 0.9)[0],
        head_above_feet=_share(head < feet, (head - feet).isfinite()),
        left_to_the_right=_share(hip > 0, clear & ~twisted),
        twisted=_share(twisted, clear),
        root_gap=(torch.linalg.vector_norm(at - hips, dim=-1) / box).nanmedian().item(),
        **({} if view.poses is None else _of_poses(view.poses, slopes, box, joints, root)),
    )


def _of_poses(poses: Tensor, slopes: Tensor, box: Tensor, joints: Skeleton, root: int | None) -> dict[str, Any]:
    """What only poses tell."""
    lengths = limb_lengths(poses, joints).transpose(0, 1).flatten(1).nanmedian(1).values
    limbs = dict(zip(LIMBS, lengths.tolist()))
    body, image = (across(points, joints, "hip") + across(points, joints, "shoulder") for points in (poses, slopes))
    # Across the image, sides are unmistakable, also off the optical axis.
    clear = (body[:, 0].abs() > 0.5 * torch.linalg.vector_norm(body, dim=-1)) & (image[:, 0].abs() > 0.1 * box)
    in_front = ~(poses[..., 2:] <= 0).any(-2, keepdim=True)  # never so for poses relative to their root
    projected = torch.where(in_front, poses[..., :2] / poses[..., 2:], torch.nan)
    missed = (torch.linalg.vector_norm(projected - slopes, dim=-1) / box[:, None]).nanmedian().item()
    up = trunk(poses, joints).nanmean(0)
    hips = middle(poses, joints, "hip")
    gap = torch.linalg.vector_norm((hips if root is None else poses[:, root]) - hips, dim=-1).nanmedian().item()
    return {
        "swapped": _share(body[:, 0] * image[:, 0] < 0, clear),
        "reprojection": None if math.isnan(missed) else missed,
        "upright": median_uprightness(poses, joints),
        # Looking down by e, the camera sees the world's up at (0, -cos e, -sin e).
        "elevation": math.degrees(math.atan2(-up[2].item(), -up[1].item())) if up[1] < -0.5 else None,
        "limbs": limbs,
        "root_gap_3d": gap / limbs["thigh"] if limbs["thigh"] > 0 else math.nan,
    }


def _share(what: Tensor, among: Tensor) -> float:
    """Share of frames, among those marked; NaN if there are none."""
    return what[among].float().mean().item()


def _quantiles(values: Tensor, *shares: float) -> tuple[float, ...]:
    """Quantiles of what is finite; NaN if nothing is."""
    known = values[values.isfinite()]
    if not len(known):
        return (math.nan,) * len(shares)
    known = known[:: -(-len(known) // 1_000_000)]  # torch.quantile refuses more than 16 million
    return tuple(torch.quantile(known, known.new_tensor(shares)).tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Judging: comparisons with NaN are false, so what was not measured is not warned of
# ---------------------------------------------------------------------------------------------------------------------


def _warnings_of(name: str, normalised: bool, found: DomainStatistics) -> Iterator[str]:
    """What is wrong with one domain alone."""
    if normalised:
        yield f"{name}: keypoints look normalised, but the camera is in pixels"
    if max(map(abs, found.root_position)) > 1:
        yield f"{name}: people stand more than 45° off the optical axis; wrong camera, image size or unit of the keypoints?"
    if found.observed < 0.5:
        yield f"{name}: only {found.observed:.0%} of the joints are observed"
    if found.head_above_feet < 0.5:
        below = 1 - found.head_above_feet
        yield f"{name}: the head is below the feet in {below:.0%} of the frames; y must point down, or the joint order is another"
    if found.twisted > 0.3:
        yield f"{name}: hips and shoulders run opposite ways in {found.twisted:.0%} of the frames; left and right are swapped in one"
    if found.root_gap > _ROOT_GAP or (found.root_gap_3d or 0) > 0.5:
        yield f"{name}: the root is not between the hips; is it at the joint said, and the joint order right?"
    if (found.swapped or 0) > 0.5:
        yield f"{name}: left and right are swapped between poses and keypoints in {found.swapped:.0%} of the frames"
    if (found.reprojection or 0) > 0.1:
        yield f"{name}: projected poses miss the keypoints by {found.reprojection:.2f} box sizes; another camera, joint order or timing?"
    if name == "source" and found.reprojection is None:
        yield f"{name}: no pose is in front of the camera (z > 0); poses must be absolute, not relative to the root"
    if found.upright is not None and found.upright < -0.5:
        yield f"{name}: poses stand upside down; camera axes have y down, these may have y up"
    elif found.upright is not None and found.upright < 0.5:
        yield f"{name}: poses stand across the image's vertical; people lie, or the axes are the world's (z up)"
    if found.limbs is not None:
        yield from _warnings_of_limbs(name, found.limbs)


def _warnings_of_limbs(name: str, limbs: dict[str, float]) -> Iterator[str]:
    low, high = LIMB_METRES
    limb = torch.tensor(list(limbs.values())).nanmedian().item()
    if low <= limb / 1000 <= high:
        yield f"{name}: poses look like millimetres (median limb {limb:.0f}); metres are expected"
    elif limb < low or limb > high:
        yield f"{name}: poses are in no known unit (median limb {limb:.3g}); metres are expected"
    elif odd := [f"{part} {limbs[part]:.2f} m" for part, (a, b) in _HUMAN.items() if limbs[part] < a or limbs[part] > b]:
        yield f"{name}: unusual bone lengths ({', '.join(odd)}); children, or another joint order?"


def _warnings_between(source: DomainStatistics, target: DomainStatistics) -> Iterator[str]:
    for what, a, b, cause in (
        ("boxes", source.box_size[1], target.box_size[1], "another distance, focal length or image size"),
        ("speeds", source.speed, target.speed, "another frame rate, or other motions"),
    ):
        if min(a, b) > 0 and max(a, b) / min(a, b) > _FOLD:
            yield f"{what} differ by a factor of {max(a, b) / min(a, b):.1f} between source ({a:.3g}) and target ({b:.3g}); {cause}"
    if target.left_to_the_right < 0.1 and source.left_to_the_right > 0.3:
        yield (
            f"target: the person's left is on the image's right in only {target.left_to_the_right:.0%} of the frames "
            f"(source: {source.left_to_the_right:.0%}); everybody is seen from behind, or left and right are swapped"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(number)}" for key, number in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
