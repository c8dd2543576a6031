"""From another data set to what a model expects: units, joint order, root, camera and frame rate, checked and converted in one place.

A lifter that meets millimetres, a foreign joint order, somebody else's root joint or a wrong camera does not fail: it is wrong by 400 mm.
`target_tracks` brings unlabelled 2D and `source_motions` labelled 3D to one convention, or says what is wrong with them;
`compare_domains` shows what then still sets the two apart.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera
from probpose.skeletons import Skeleton, bone_lengths, conversion_matrix, convert, convert_with_confidence, get_skeleton

from .bodies import LIMB_METRES, limb_lengths, median_uprightness
from .keypoints import KeypointTrack
from .keypoints.detections import looks_normalised
from .keypoints.tracks import check_fps, check_image_size
from .sources import Observation, labelled_poses, observations, same_rate, some

_UNITS = {"m": 1.0, "mm": 1e-3}
_ROOT_SLOTS = ("pose", "trajectory")


# ---------------------------------------------------------------------------------------------------------------------
# Target: 2D without labels
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TargetTrack:
    """What an unlabelled scene gives of one person. There is no field for 3D, on purpose.

    Args:
        name: unique among the tracks of a source.
        keypoints_2d: `(frames, joints, 2)` pixels; NaN = not observed.
        confidence: `(frames, joints)` in 0..1; 0 = not observed.
        camera: the lens, without rotation and translation.
        fps: frames per second.
        skeleton: joint order.

    Raises:
        ValueError: shapes that do not belong together.
    """

    name: str
    keypoints_2d: Tensor
    confidence: Tensor
    camera: Camera
    fps: float
    skeleton: str

    def __post_init__(self) -> None:
        shape = (len(self.keypoints_2d), get_skeleton(self.skeleton).num_joints)
        if tuple(self.keypoints_2d.shape) != (*shape, 2) or tuple(self.confidence.shape) != shape or shape[0] == 0:
            raise ValueError(
                f"track {self.name!r}: keypoints_2d and confidence must have shapes {(*shape, 2)} and {shape} ({self.skeleton}, at least "
                f"one frame), got {tuple(self.keypoints_2d.shape)} and {tuple(self.confidence.shape)}"
            )

    def __len__(self) -> int:
        return len(self.keypoints_2d)

    @property
    def observed(self) -> Tensor:
        """`(frames,)` booleans: frames in which at least one joint was observed."""
        return (self.confidence > 0).any(-1)


def target_tracks(
    source: Any,
    *,
    skeleton: str = "h36m_17",
    fps: float = 30.0,
    camera: Camera | Mapping[str, Camera] | None = None,
    image_size: tuple[int, int] | None = None,
    keypoint_skeleton: str | None = None,
    keypoint_fps: float | None = None,
    conversion: str | None = None,
    hidden_when_converted: Sequence[int] = (),
    min_frames: int = 1,
    min_confidence: float = 0.0,
) -> list[TargetTrack]:
    """The people of unlabelled recordings as a model expects them: one joint order, one frame rate, pixels, a camera each.

    In time keypoints are interpolated linearly between neighbouring frames, with the smaller of both confidences. A joint that either
    of the two frames lacks stays unobserved: nothing is made up inside a gap. Rates within 0.2 % (29.97 and 30) count as the same.

    Args:
        source: a keypoint file; a folder of them, in which every file and every sub-folder with one file per frame is a recording, or
            which is such a recording itself; a data set, or where `load_dataset` finds one: only its keypoints, lenses and frame rates
            are taken; a `KeypointTrack`; a `PoseClip`; pixels `(frames, joints, 2)` or `(clips, frames, joints, 2)`, in which a third
            channel is the confidence and NaN or (0, 0) not observed; or a list of any of these.
        skeleton: joint order of the result.
        fps: frame rate of the result.
        camera: one for all tracks, or by name: of a track ("walk.json/person0", or a clip's), of a part that it begins with
            ("walk.json"), or of the file alone. None: the track's own, else `Camera.from_image_size`. Only the lens is kept: a virtual
            camera's place would tell how far away the person is.
        image_size: (width, height) in pixels of what does not state its own.
        keypoint_skeleton: joint order of files and arrays, where it is not stated or the file is wrong about it.
        keypoint_fps: frame rate of the source where it states none. If nothing at all is known of it, 30 is assumed, with a warning.
        conversion: formula of the joint conversion, see `probpose.skeletons.convert`.
        hidden_when_converted: joints of the result that count as not observed in a track that was converted.
        min_frames: fewest frames with an observed joint, after resampling, that a track must have; shorter ones are left out.
        min_confidence: keypoints of a lower confidence count as not observed.

    Returns:
        At least one track, sorted by name (numbers by value). A file's are called by its path below the folder and the person:
        "day1/walk.json/person0".

    Raises:
        FileNotFoundError: nothing at a path.
        ValueError: nobody in any track; no track long enough; an unknown frame rate where other tracks state theirs; a frame rate,
            image size or camera that contradicts what the source states; joints that cannot be converted; neither camera nor image
            size; normalised keypoints; what the readers refuse. Files without people among others are named in a warning.
    """
    target, fps = get_skeleton(skeleton), check_fps(fps or 0)
    if min_frames < 1 or not 0 <= min_confidence <= 1:
        raise ValueError(f"min_frames must be at least 1 and min_confidence lie in 0..1, got {min_frames} and {min_confidence}")
    if wrong := [joint for joint in hidden_when_converted if joint not in range(target.num_joints)]:
        raise ValueError(f"hidden_when_converted must be joints of {target.name}, 0..{target.num_joints - 1}, got {wrong}")
    reading = {"skeleton": keypoint_skeleton, "image_size": check_image_size(image_size), "fps": check_fps(keypoint_fps)}
    everything = observations(source, reading)
    seen = [one for one in everything if not one.is_empty]
    empty = [one.name for one in everything if one.is_empty]
    if not seen:
        raise ValueError(f"target tracks without people: nobody in {some(empty) or 'an empty source'}")
    if empty:
        warnings.warn(f"{len(empty)} recordings hold nobody: {some(empty)}", stacklevel=2)
    known = {name for one in everything for name in one.camera_names}
    if foreign := [name for name in (camera if isinstance(camera, Mapping) else ()) if name not in known]:
        raise ValueError(f"camera names {some(foreign)}, which is none of the tracks {some(one.name for one in everything)}")

    tracks = []
    for one in seen:
        joints = get_skeleton(one.track.skeleton)
        try:
            lens = _lens(one, camera)
            points, confidence = _observed_pixels(one.track, min_confidence)
            _warn_if_outside(one.name, points, lens.image_size)
            if joints != target:
                points, confidence, _ = convert_with_confidence(points, confidence, joints, target, method=conversion)
                points[:, list(hidden_when_converted)] = torch.nan
                confidence[:, list(hidden_when_converted)] = 0
        except ValueError as error:
            raise ValueError(f"{one.name}: {error}") from None
        before, after, share = _between(len(points), one.fps, fps)
        points = torch.lerp(points[before], points[after], share.to(points))
        tracks.append(TargetTrack(one.name, points, confidence[before].minimum(confidence[after]), lens, fps, target.name))

    lengths = {track.name: int(track.observed.sum()) for track in tracks}
    longest = max(lengths, key=lengths.__getitem__)
    if lengths[longest] == 0:
        raise ValueError(f"target tracks without people: no keypoint with min_confidence={min_confidence} is left in {some(lengths)}")
    if lengths[longest] < min_frames:
        raise ValueError(
            f"no target track has the min_frames={min_frames} observed frames at {fps:g} fps; of {len(lengths)} the longest, {longest}, "
            f"has {lengths[longest]}"
        )
    return sorted((track for track in tracks if lengths[track.name] >= min_frames), key=lambda track: _natural(track.name))


def _lens(one: Observation, given: Camera | Mapping[str, Camera] | None) -> Camera:
    """The camera of a track: given, its own, or a guess."""
    size, camera = one.track.image_size, one.camera
    if isinstance(given, Mapping):
        camera = next((given[name] for name in one.camera_names if name in given), camera)
        if camera is None:
            raise ValueError(f"camera has none for it; it names {some(given)}")
    elif given is not None:
        camera = given
    if camera is None and size is None:
        raise ValueError("neither a camera nor an image size is known; pass camera or image_size=(width, height)")
    camera = Camera.from_image_size(*size) if camera is None else camera
    if camera.focal.ndim != 1:
        raise ValueError(f"a track has one camera, got a batch of {tuple(camera.focal.shape[:-1])}")
    if (camera.focal < 10).any():
        raise ValueError(f"the camera must be in pixels, but its focal length is {camera.focal.tolist()}")
    if size is not None and camera.image_size not in (None, size):
        raise ValueError(f"the camera's image has {camera.image_size} pixels, but the keypoints' image {size}")
    return replace(camera, rotation=None, translation=None, image_size=camera.image_size or size)


def _observed_pixels(track: KeypointTrack, min_confidence: float) -> tuple[Tensor, Tensor]:
    """Keypoints, NaN where not observed, and confidence, 0 there."""
    points, confidence = torch.tensor(track.keypoints_2d), torch.tensor(track.confidence)
    observed = (confidence > 0) & (confidence >= min_confidence)
    if looks_normalised(points[observed].numpy()):
        low, high = points[observed].min().item(), points[observed].max().item()
        raise ValueError(
            f"keypoints must be in pixels, but lie within {low:.3g} … {high:.3g}, which looks normalised: "
            "undo it first (see probpose.geometry.denormalise_screen)"
        )
    return torch.where(observed[..., None], points, torch.nan), torch.where(observed, confidence, 0.0)


def _warn_if_outside(name: str, points: Tensor, size: tuple[int, int] | None) -> None:
    if size is None:
        return
    places = points[points.isfinite().all(-1)] / torch.tensor(size)
    outside = ((places - 0.5).abs() > 0.75).any(-1).float().mean().item()  # by a quarter of the image
    if outside > 0.5:
        warnings.warn(f"{name}: {outside:.0%} of the keypoints lie far outside of an image of {size} pixels", stacklevel=3)


# ---------------------------------------------------------------------------------------------------------------------
# Source: 3D with labels
# ---------------------------------------------------------------------------------------------------------------------


def source_motions(
    source: Any,
    *,
    num_frames: int,
    skeleton: str = "h36m_17",
    fps: float = 30.0,
    units: str = "auto",
    root_slot: str = "auto",
    root_index: int | None = None,
    source_skeleton: str | None = None,
    source_fps: float | None = None,
    stride: int | None = None,
) -> Tensor:
    """Labelled poses as windows of one joint order, frame rate and unit: absolute, in camera axes (x right, y down, z forward).

    Motion-capture archives need none of this: `TrainingWindows` renders them.

    Args:
        source: a data set, or where `load_dataset` finds one; a `PoseClip`; poses `(frames, joints, 3)` or
            `(clips, frames, joints, 3)`; or a list of these.
        num_frames: frames of a window.
        skeleton: joint order of the result.
        fps: frame rate of the result; between frames positions are interpolated linearly.
        units: "m", "mm", or "auto": told, for each clip, by the median of thighs, shins, upper arms and forearms.
        root_slot: what stands at the root joint: its position like any other joint's ("pose"), or the trajectory that all other joints
            are relative to ("trajectory", the convention of VideoPose3D, Pavllo et al., CVPR 2019, and what follows it). "auto": the
            reading in which all bones have a human length.
        root_index: the root joint in the source; None = its skeleton's (0 of Human3.6M's joints, 14 of MPI-INF-3DHP's).
        source_skeleton: joint order of arrays, which do not state it.
        source_fps: frame rate of arrays; None: 30 is assumed, with a warning.
        stride: frames from one window of a clip to the next; None = `num_frames`.

    Returns:
        `(windows, num_frames, joints, 3)` float32, metres, in the order of the source.

    Raises:
        FileNotFoundError: nothing at a path.
        ValueError: an option or shape that does not fit; units, root slot, skeleton or frame rate that contradict the poses; joints that
            cannot be converted; nothing left after leaving out clips that are too short, windows with unknown joints and windows that
            are not in front of the camera (root-relative poses never are). A body that does not stand along the image's vertical in
            most frames is a warning: y may point up, or the axes may be those of the world.
    """
    target, fps, source_fps = get_skeleton(skeleton), check_fps(fps or 0), check_fps(source_fps)
    stride = num_frames if stride is None else stride
    for name, value, allowed in (("units", units, _UNITS), ("root_slot", root_slot, _ROOT_SLOTS)):
        if value not in ("auto", *allowed):
            raise ValueError(f"{name} must be one of auto, {', '.join(allowed)}, got {value!r}")
    if num_frames < 1 or stride < 1:
        raise ValueError(f"num_frames and stride must be at least 1, got {num_frames} and {stride}")
    windows, left_out = [], Counter()
    for name, poses, joints, rate in labelled_poses(source, source_skeleton, source_fps):
        try:
            _check_convertible(joints, target)
            poses = _absolute(poses * _metres(poses, joints, units), joints, root_slot, root_index)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        poses = convert(poses, joints, target)
        before, after, share = _between(len(poses), rate, fps)
        poses = torch.lerp(poses[before], poses[after], share.to(poses)).float()
        left_out["clips"] += 1
        if len(poses) < num_frames:
            left_out["too short"] += 1
            continue
        cut = poses.unfold(0, num_frames, stride).movedim(-1, 1)
        known = cut.isfinite().flatten(1).all(1)
        in_front = (cut[..., 2] > 0).flatten(1).all(1)
        left_out["unknown"] += int((~known).sum())
        left_out["behind"] += int((known & ~in_front).sum())
        windows.append(cut[known & in_front])
    if not any(map(len, windows)):
        raise ValueError(
            f"source set is empty after filtering: of {left_out['clips']} clips {left_out['too short']} are shorter than {num_frames} "
            f"frames at {fps:g} fps; of their windows {left_out['unknown']} have unknown joints and {left_out['behind']} are not in "
            "front of the camera (z > 0 in camera axes; poses relative to their root have no place)"
        )
    motions = torch.cat(windows)
    upright = median_uprightness(motions, target)
    if upright < 0.5:
        axis = "upside down (does y point up?)" if upright < -0.5 else "across the image's vertical (lying people, or world axes?)"
        warnings.warn(f"the bodies of the source stand {axis}: camera axes are x right, y down, z forward", stacklevel=2)
    return motions


def _check_convertible(joints: Skeleton, target: Skeleton) -> None:
    matrix = conversion_matrix(joints, target) if joints != target else np.eye(target.num_joints)
    if unknown := [target.joint_names[j] for j in np.flatnonzero(~matrix.any(1))]:
        raise ValueError(f"{joints.name} does not know {', '.join(unknown)} of {target.name}")


def _metres(poses: Tensor, joints: Skeleton, units: str) -> float:
    """The factor that makes metres of a clip's poses."""
    limb = limb_lengths(poses, joints).nanmedian().item()
    if math.isnan(limb):  # nothing is known of any limb: no window will remain
        return 1.0
    low, high = LIMB_METRES
    unit = next((unit for unit, factor in _UNITS.items() if low <= limb * factor <= high), None)
    if unit is None:
        raise ValueError(f"the median limb measures {limb:.4g}, neither metres ({low} to {high}) nor millimetres")
    if units not in ("auto", unit):
        raise ValueError(f"the median limb measures {limb:.4g}, which looks like {unit}, but units={units!r}")
    return _UNITS[unit]


def _absolute(poses: Tensor, joints: Skeleton, slot: str, root: int | None) -> Tensor:
    """Positions of all joints of poses `(frames, joints, 3)` in metres whose root slot may hold the trajectory."""
    root = joints.root if root is None else root
    readings = {"pose": poses}
    if root is not None:
        if root not in range(joints.num_joints):
            raise ValueError(f"root_index must be a joint of {joints.name}, 0..{joints.num_joints - 1}, got {root}")
        is_root = (torch.arange(joints.num_joints) == root)[:, None]
        readings["trajectory"] = torch.where(is_root, poses, poses + poses[:, root : root + 1])
    elif slot == "trajectory":
        raise ValueError(f"{joints.name} has no root joint to hold the trajectory; pass root_index")
    wrong = []
    for reading, positions in readings.items() if slot == "auto" else [(slot, readings[slot])]:
        length, bone = bone_lengths(positions, joints).nanmedian(0).values.nan_to_num(0).max(0)
        if length <= LIMB_METRES[1]:
            return positions
        ends = " to ".join(joints.joint_names[joint] for joint in joints.bones[bone])
        wrong.append(f"as a {reading} the bone from {ends} measures {length:.3g} m")
    raise ValueError(
        f"root_slot={slot!r} makes no human: {', '.join(wrong)}; is the joint order {joints.name}, and the root at joint {root}?"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Both
# ---------------------------------------------------------------------------------------------------------------------


def _between(frames: int, rate: float, fps: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each frame at another rate, from the same first one on: the frame before, the one after, and the share `(frames, 1, 1)` of
    the way between them.

    On a frame of the source both are that frame, so that its neighbours do not matter.
    """
    if same_rate(rate, fps):
        rate = fps
    slack = 1e-6  # a time that misses a whole number by a rounding error
    times = torch.arange(math.floor((frames - 1) * fps / rate + slack) + 1, dtype=torch.float64) * (rate / fps)
    before = (times + slack).floor().long().clamp_max(frames - 1)
    share = times - before
    share[share < slack] = 0
    return before, before + (share > 0), share[:, None, None]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
