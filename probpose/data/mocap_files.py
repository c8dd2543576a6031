"""Motion-capture files as the 17 joints of Human3.6M: read one with `read_motion`, keep many in one archive.

The joints follow the project's training archives, so that a model may be trained on both together:

* the pelvis is the file's own hip joint (the root of the figure), not the middle of the two leg joints;
* the thorax is the middle of the shoulders;
* the spine is the joint between pelvis and neck that comes nearest to half of the way, measured along the bones; in
  CMU's Acclaim skeleton, where two are equally near, the lower one (the beginning of ``upperback``);
* the nose is the file's head joint, which lies at the upper end of the neck;
* the head (its top) is the end of the head bone; where the file has none, 12 cm further along the line neck to head.

Of CMU's recordings prefer the Acclaim files: the BVH conversions in circulation begin with a frame in rest pose and
leave out the thorax bone, which makes the trunk 12 cm shorter.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from probpose.data.asf_amc import read_amc
from probpose.data.bvh import Recording, read_bvh
from probpose.files import replacing

JOINT_NAMES = (
    "hip", "rhip", "rknee", "rankle", "lhip", "lknee", "lankle", "spine", "thorax", "nose", "head",
    "lshoulder", "lelbow", "lwrist", "rshoulder", "relbow", "rwrist",
)  # fmt: skip

# A BVH file converted from CMU's Acclaim files keeps their unit, an inch divided by 0.45.
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inch": 0.0254, "cmu": 0.0254 / 0.45}

# Names in lower case without separators, the first that the file has is taken. Where programs disagree the order
# decides: "LeftShoulder" is a collar bone in a file that also has "LeftArm", and the shoulder in one that has not.
_CENTRE_NAMES = {
    "hip": ("hips", "pelvis", "hip", "root"),
    "spine": ("upperback",),
    "nose": ("head", "necknose"),  # the latter in our own export
    "head": ("headtopend", "headtop", "headend", "headnub"),
}
_SIDE_NAMES = {
    "hip": ("upleg", "upperleg", "thigh", "femur", "hip"),
    "knee": ("lowerleg", "lowleg", "calf", "shin", "tibia", "knee", "leg"),
    "ankle": ("ankle", "foot"),
    "shoulder": ("upperarm", "uparm", "humerus", "arm", "shoulder"),
    "elbow": ("lowerarm", "lowarm", "forearm", "radius", "elbow"),
    "wrist": ("wrist", "hand"),
}
_PREFIX = re.compile(r"^(mixamorig|character|bip)\d*")

_HEIGHTS = (1.2, 2.2)  # metres: what is taken for a standing person when the unit is guessed
_HEIGHT_PER_CHAIN = 1.25  # a person's height over the length of the bones from ankle to head joint
_HEAD_LENGTH = 0.12  # metres, of a head whose top the file does not tell
_SHORTEST_HEAD = 0.03  # metres: some programs end every chain with a bone of no length


@dataclass(frozen=True, eq=False)
class MotionClip:
    """A motion in metres in the world of its file, z up.

    Args:
        positions: `(frames, 17, 3)` float32, Human3.6M-17 order (:data:`JOINT_NAMES`).
        fps: frames per second.
        name: the clip's name, by default the file's without its suffix.
        joint_positions: `(frames, joints, 3)` float32, all joints of the file's own skeleton in the same axes.
        joint_names: their names as the file has them; the end of a last bone is named ``"<joint>_end"``.
    """

    positions: np.ndarray
    fps: float
    name: str
    joint_positions: np.ndarray
    joint_names: tuple[str, ...]

    def resample(self, fps: float) -> MotionClip:
        """The clip at another frame rate, from the same first frame on.

        Positions are interpolated linearly between frames. From 120 to 30 that is every fourth frame; between two
        frames a turning limb is drawn along the chord of its arc and comes out very slightly short.

        Raises:
            ValueError: `fps` is not a positive number.
        """
        _check_fps(fps)
        # The slack keeps a last frame whose time misses a whole number by a rounding error.
        count = int(np.floor((len(self.positions) - 1) * fps / self.fps + 1e-6)) + 1
        times = np.arange(count) * (self.fps / fps)
        before = np.minimum(times.astype(int), len(self.positions) - 1)
        after = np.minimum(before + 1, len(self.positions) - 1)
        weight = (times - before).astype(np.float32)[:, None, None]

        def interpolate(track: np.ndarray) -> np.ndarray:
            return track[before] + weight * (track[after] - track[before])

        tracks = {"positions": interpolate(self.positions), "joint_positions": interpolate(self.joint_positions)}
        return replace(self, fps=float(fps), **tracks)


def read_motion(
    path: str | os.PathLike,
    *,
    skeleton_file: str | os.PathLike | None = None,
    fps: float | None = None,
    unit: str | None = None,
    up: str = "y",
) -> MotionClip:
    """Read a ``.bvh`` file or an ``.amc`` file with its ``.asf`` skeleton.

    The world of the file is kept but for its unit and its upward axis: the floor is where the file has it.

    Args:
        path: the file; its suffix tells the format.
        skeleton_file: the ``.asf`` of an ``.amc``; by default the one beside it whose name begins the motion's
            (``01.asf`` for ``01_01.amc``), or the only one in the folder.
        fps: frame rate to assume instead of the file's. An ``.amc`` file tells none: 120, CMU's, by default.
        unit: of the file's lengths: "m", "cm", "mm", "inch" or "cmu" (inches / 0.45, in conversions of CMU's files).
            None takes an ``.amc`` for inches, after division by the length its ``.asf`` states, and for a ``.bvh``,
            which tells no unit, the one that makes the figure 1.2 to 2.2 m tall.
        up: the file's upward axis, "y" (most programs) or "z". From y the figure is turned, never mirrored.

    Raises:
        FileNotFoundError: the file or its skeleton does not exist.
        ValueError: an unknown suffix or argument, a file that cannot be read as what it claims to be, a skeleton
            without one of the joints needed, or one to which no unit gives a person's size.
    """
    path = Path(path)
    if fps is not None:
        _check_fps(fps)
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)} or None, got {unit!r}")
    if up not in ("y", "z"):
        raise ValueError(f"up must be 'y' or 'z', got {up!r}")

    suffix = path.suffix.lower()
    if suffix == ".bvh":
        if skeleton_file is not None:
            raise ValueError(f"{path}: a .bvh file holds its own skeleton, skeleton_file must be None")
        recording = read_bvh(path)
    elif suffix == ".amc":
        recording = read_amc(path, skeleton_file)
        unit = unit or "inch"
    else:
        raise ValueError(f"{path}: motions are read from .bvh and .amc files (with their .asf), not from {suffix!r}")

    joints = recording.joint_positions()
    if up == "y":
        joints = np.stack([joints[..., 0], -joints[..., 2], joints[..., 1]], axis=-1)
    bones = _bone_lengths(joints, recording.parents)
    index = _find_joints(recording, bones, path)
    joints *= UNITS[unit or _guess_unit(joints, index, path)]
    return MotionClip(
        positions=_human36m(joints, index).astype(np.float32),
        fps=float(fps or recording.fps),
        name=path.stem,
        joint_positions=joints.astype(np.float32),
        joint_names=recording.names,
    )


def clips_to_npz(
    clips: Iterable[MotionClip], path: str | os.PathLike, split: str | Mapping[str, str] = "train", overwrite: bool = False
) -> None:
    """Write clips as one archive for training.

    Arrays: `root (N, 3)` float32, the pelvis in metres, z up; `local (N, 17, 3)` float16, joints relative to it;
    `starts (clips + 1)` frame offsets; `names`, `splits`, `fps`, `joints`. The file appears under its name only when it
    is complete.

    Args:
        clips: clips of one frame rate (see `MotionClip.resample`) with different names.
        path: the archive to write, ending in `.npz`.
        split: "train" or "test" for all clips, or for each clip by its name.
        overwrite: replace an existing archive.

    Raises:
        FileExistsError: the archive exists and `overwrite` is false.
        ValueError: another suffix, no clips, equal names, different frame rates, positions that are not finite or of another shape, or
            a clip without a split.
    """
    clips, path = list(clips), Path(path)
    names = [clip.name for clip in clips]
    if path.suffix != ".npz":
        raise ValueError(f"a motion archive must end in .npz, got {path}")
    if not clips:
        raise ValueError("clips_to_npz needs at least one clip")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"clips must have different names, repeated: {', '.join(repeated)}")
    if len(rates := {clip.fps for clip in clips}) > 1:
        raise ValueError(f"clips must have one frame rate, got {sorted(rates)}; resample them first")
    splits = [split if isinstance(split, str) else split.get(name) for name in names]
    for clip, its_split in zip(clips, splits, strict=True):
        if its_split not in ("train", "test"):
            raise ValueError(f"the split of clip {clip.name!r} must be 'train' or 'test', got {its_split!r}")
        if clip.positions.shape[1:] != (len(JOINT_NAMES), 3) or not np.isfinite(clip.positions).all():
            raise ValueError(f"clip {clip.name!r} must hold finite positions (frames, 17, 3)")

    positions = np.concatenate([clip.positions for clip in clips])
    root = positions[:, 0].astype(np.float32)
    with replacing(path, overwrite) as unfinished:
        np.savez_compressed(
            unfinished,
            root=root,
            local=(positions - root[:, None]).astype(np.float16),
            starts=np.cumsum([0, *(len(clip.positions) for clip in clips)], dtype=np.int64),
            names=np.array(names),
            splits=np.array(splits),
            fps=np.array(int(clips[0].fps) if float(clips[0].fps).is_integer() else clips[0].fps),
            joints=np.array(JOINT_NAMES),
        )


def _check_fps(fps: float) -> None:
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number, got {fps!r}")


def _bone_lengths(joints: np.ndarray, parents: tuple[int, ...]) -> np.ndarray:
    """`(joints,)` mean distance of each joint from its parent; 0 for the root."""
    lengths = np.linalg.norm(joints - joints[:, list(parents)], axis=-1).mean(axis=0)
    lengths[0] = 0.0
    return lengths


def _find_joints(recording: Recording, bones: np.ndarray, path: Path) -> dict[str, int]:
    """Index in the file of each joint that is copied, and of the "neck" from which the head is drawn on."""
    by_name: dict[str, int] = {}
    for joint, name in enumerate(recording.names):
        plain = re.sub(r"[^a-z0-9]", "", re.split(r"[:|]", name.lower())[-1])
        by_name.setdefault(_PREFIX.sub("", plain), joint)

    candidates = {joint: list(names) for joint, names in _CENTRE_NAMES.items()}
    for side in ("left", "right"):
        for joint, parts in _SIDE_NAMES.items():
            candidates[f"{side[0]}{joint}"] = [name for part in parts for s in (side, side[0]) for name in (f"{s}{part}", f"{part}{s}")]
    index = {
        joint: next(by_name[name] for name in names if name in by_name)
        for joint, names in candidates.items()
        if any(name in by_name for name in names)
    }

    if {"hip", "nose", "lshoulder", "rshoulder"} <= set(index):
        index = {**_trunk(recording.parents, bones, index), **index}
    if missing := [joint for joint in JOINT_NAMES if joint not in (*index, "thorax", "head")]:
        raise ValueError(
            f"{path}: found no joint for {', '.join(missing)} (of Human3.6M) among the file's joints: {', '.join(recording.names)}"
        )
    return index


def _trunk(parents: tuple[int, ...], bones: np.ndarray, index: dict[str, int]) -> dict[str, int]:
    """The joints of the trunk that are known by their place: the spine, if there is one, and the neck."""

    def ancestors(joint: int) -> list[int]:
        line = [joint]
        while parents[line[-1]] >= 0:
            line.append(parents[line[-1]])
        return line

    head = index["nose"]
    line = ancestors(head)
    # A figure may hang pelvis and back from one root; then the whole line down to it is the trunk.
    line = line[: line.index(index["hip"]) + 1] if index["hip"] in line else line
    # Joints on top of each other give no direction; the neck is the first below the head at a distance from it.
    apart = 0.01 * bones[line[:-1]].sum()
    neck = next((parents[joint] for joint in line[:-1] if bones[joint] > apart), index["hip"])

    shared = set(ancestors(index["lshoulder"])) & set(ancestors(index["rshoulder"]))
    upward = line[::-1]
    along = np.cumsum([0.0, *bones[upward[1:]]])
    below_neck = [place for place, joint in enumerate(upward) if joint in shared]
    if len(below_neck) < 2:
        return {"neck": neck}
    half = along[min(below_neck[-1] + 1, len(upward) - 1)] / 2
    spine = min(below_neck[1:], key=lambda place: abs(along[place] - half))
    return {"neck": neck, "spine": upward[spine]}


def _guess_unit(joints: np.ndarray, index: dict[str, int], path: Path) -> str:
    """The unit in which the bones from ankle to head joint are those of a person; no two units fit the same figure."""
    chain = ("rankle", "rknee", "rhip"), ("hip", "spine", "nose")
    steps = [joints[:, index[a]] - joints[:, index[b]] for line in chain for a, b in pairwise(line)]
    height = _HEIGHT_PER_CHAIN * sum(np.linalg.norm(step, axis=-1).mean() for step in steps)
    for unit, metres in UNITS.items():
        if _HEIGHTS[0] <= height * metres <= _HEIGHTS[1]:
            return unit
    raise ValueError(
        f"{path}: the figure is about {height:.4g} units tall, which is a person's height in none of {', '.join(UNITS)}; give unit"
    )


def _human36m(joints: np.ndarray, index: dict[str, int]) -> np.ndarray:
    """`(frames, 17, 3)` from all joints of a file, both in metres."""
    places = {joint: joints[:, index[joint]] for joint in index}
    places["thorax"] = (places["lshoulder"] + places["rshoulder"]) / 2
    nose = places["nose"]
    if "head" not in index or np.linalg.norm(places["head"] - nose, axis=-1).mean() < _SHORTEST_HEAD:
        upward = nose - places["neck"]
        places["head"] = nose + _HEAD_LENGTH * upward / np.linalg.norm(upward, axis=-1, keepdims=True)
    return np.stack([places[joint] for joint in JOINT_NAMES], axis=1)
