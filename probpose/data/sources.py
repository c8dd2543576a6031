"""What people pass as a source (files, folders, data sets, clips, arrays, lists of these), taken apart into tracks or poses."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera
from probpose.skeletons import Skeleton, get_skeleton

from .datasets import PoseClip, PoseDataset, load_dataset, recognise_dataset
from .keypoints import KeypointTrack
from .keypoints.arrays import numpy_tracks
from .keypoints.recordings import holds_frames, read_quietly, recordings_below

ASSUMED_FPS = 30.0
"""Frame rate of a source in which nothing states one; there is a warning."""

_SAME_RATE = 0.002  # 29.97 and 30 are one frame rate: interpolating between them would blur every frame
_MAX_NAMED = 4  # tracks that a message names


@dataclass(frozen=True, eq=False)
class Observation:
    """A track, the recording it is from, and the camera that came with it; a recording of nobody has no track."""

    name: str
    recording: str
    track: KeypointTrack | None = None
    camera: Camera | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was observed."""
        return self.track is None or not self.track.confidence.any()

    @property
    def fps(self) -> float:
        """Frames per second, as stated or assumed."""
        return self.track.fps or ASSUMED_FPS

    @property
    def camera_names(self) -> list[str]:
        """Under which its camera is looked for, the most special first."""
        parts = (parent.as_posix() for parent in PurePosixPath(self.name).parents if parent.name)
        return [self.name, *parts, PurePosixPath(self.recording).name, PurePosixPath(self.recording).stem]


def observations(source: Any, reading: dict[str, Any]) -> list[Observation]:
    """Everything seen in a source, and its recordings of nobody. Of labelled clips nothing but the 2D is looked at.

    Args:
        source: see `probpose.data.target_tracks`.
        reading: `skeleton`, `image_size` and `fps` of what does not state them.

    Raises:
        FileNotFoundError: nothing at a path.
        ValueError: what cannot be read; `reading` that contradicts what is stated; two tracks of one name; frame rates of which only
            some are known.
    """
    items = _items(source)
    recordings, clips = _expand([Path(os.path.abspath(item)) for item in items if isinstance(item, (str, os.PathLike))], reading)
    found: list[Observation] = []
    for name, path in recordings:
        found += _named(name, _read(path, name, reading))
    for i, item in enumerate(items):
        if isinstance(item, KeypointTrack):
            name = str(item.source.get("path", f"track{i}"))
            found += _named(name, [_completed(item, name, reading)])
        elif isinstance(item, PoseClip):
            clips.append(item)
        elif isinstance(item, (np.ndarray, Tensor)):
            array = item.numpy(force=True) if isinstance(item, Tensor) else item
            found += _named(f"array{i}", _read(array, f"array{i}", reading), part="" if array.ndim == 3 else "/clip{}")
        elif not isinstance(item, (str, os.PathLike)):
            raise ValueError(f"source must be paths, KeypointTracks, PoseClips, a PoseDataset or arrays, got {type(item).__name__}")
    for clip in clips:
        points = torch.where(clip.keypoints_2d.isfinite(), clip.keypoints_2d, torch.nan).numpy(force=True)
        size, frame = clip.camera.image_size, np.arange(len(clip))
        track = KeypointTrack(points, clip.confidence.numpy(force=True), frame, 0, clip.skeleton, size, clip.fps)
        found.append(Observation(clip.name, clip.name, _completed(track, clip.name, reading), clip.camera))
    if twice := [name for name, count in Counter(one.name for one in found).items() if count > 1]:
        raise ValueError(f"two tracks of the source have one name: {some(twice)}")
    _check_rates([one for one in found if not one.is_empty])
    return found


def _named(recording: str, tracks: list[KeypointTrack], part: str = "/person{}") -> list[Observation]:
    named = [Observation(recording + part.format(track.track_id), recording, track) for track in tracks]
    return named or [Observation(recording, recording)]


def _items(source: Any) -> list[Any]:
    """The parts of a source; a data set's are its clips."""
    alone = isinstance(source, (str, np.ndarray, Tensor)) or not isinstance(source, Iterable)
    return [item for part in ([source] if alone else source) for item in (part if isinstance(part, PoseDataset) else [part])]


def _expand(paths: list[Path], reading: dict[str, Any]) -> tuple[list[tuple[str, Path]], list[PoseClip]]:
    """Keypoint recordings with their names, which are their paths below the common folder, and the clips of data sets."""
    found: list[Path] = []
    folders: list[Path] = []
    clips: list[PoseClip] = []
    for path in paths:
        if recognise_dataset(path):
            clips += load_dataset(path)
        elif path.is_dir() and not holds_frames(path, **reading):
            below, _ = recordings_below(path, **reading)
            if not below:
                kinds = ".json, .jsonl, .npz, .npy, .csv, .h5, or a folder with one file per frame"
                raise ValueError(f"{path} holds no keypoint files ({kinds})")
            found += below
            folders.append(path)
        else:
            found.append(path)
            folders.append(path.parent)
    base = os.path.commonpath(folders) if folders else ""
    return [(path.relative_to(base).as_posix(), path) for path in found], clips


def _read(recording: Path | np.ndarray, name: str, reading: dict[str, Any]) -> list[KeypointTrack]:
    """The people in a file, a folder of frames or an array; none if all keypoints are missing, which the readers refuse."""
    try:
        if isinstance(recording, np.ndarray):
            return numpy_tracks({"keypoints_2d": recording}, {"path": name}, **reading)
        tracks = read_quietly(recording, **reading)
    except ValueError as error:
        if "found only missing ones" in str(error):
            return []
        where = f"{name} of shape {recording.shape}: " if isinstance(recording, np.ndarray) else ""
        raise ValueError(f"{where}{error}") from None
    for note in tracks[0].source["notes"] if tracks else ():
        contradiction = re.match(r"(fps|image_size|skeleton) .* as given; the file says", note)
        if contradiction and reading[contradiction[1]] is not None:  # a file that was written from another keeps old notes
            if contradiction[1] != "skeleton":
                raise ValueError(f"{recording}: {note}; leave it to the file, or correct the file")
            warnings.warn(f"{recording}: {note}", stacklevel=4)
    return tracks


def _completed(track: KeypointTrack, name: str, reading: dict[str, Any]) -> KeypointTrack:
    """The track with what the caller knows and it does not; ValueError where the two contradict each other."""
    _check_agrees("keypoint", reading["skeleton"], reading["fps"], track, name)
    if reading["image_size"] is not None and track.image_size not in (None, reading["image_size"]):
        raise ValueError(f"{name}: image_size is {reading['image_size']}, but the track says {track.image_size}")
    return replace(track, image_size=track.image_size or reading["image_size"], fps=track.fps or reading["fps"])


def _check_rates(seen: list[Observation]) -> None:
    unknown = [one.name for one in seen if one.track.fps is None]
    stated = next((one for one in seen if one.track.fps is not None), None)
    if unknown and stated:
        raise ValueError(
            f"mixed frame rates: {some(unknown)} state none, while {stated.name} has {stated.track.fps:g} fps; pass keypoint_fps, or "
            "read them separately"
        )
    if unknown:
        warnings.warn(f"no track states a frame rate: {ASSUMED_FPS:g} fps is assumed; pass keypoint_fps", stacklevel=4)


def labelled_poses(source: Any, skeleton: str | None, fps: float | None) -> Iterator[tuple[str, Tensor, Skeleton, float]]:
    """Name, poses `(frames, joints, 3)` in double precision, joint order and frame rate of every clip.

    Args:
        source: see `probpose.data.source_motions`.
        skeleton, fps: of arrays.

    Raises:
        FileNotFoundError: nothing at a path.
        ValueError: what cannot be read; an array without a skeleton or of another shape; a skeleton or rate that a clip contradicts.
    """
    for i, item in enumerate(_items(source)):
        if isinstance(item, (str, os.PathLike)):
            yield from labelled_poses(load_dataset(item), skeleton, fps)
        elif isinstance(item, PoseClip):
            _check_agrees("source", skeleton, fps, item, item.name)
            yield item.name, item.positions_camera.double(), get_skeleton(item.skeleton), item.fps
        elif isinstance(item, (np.ndarray, Tensor)):
            if skeleton is None:
                raise ValueError("arrays do not state their joint order: pass source_skeleton, e.g. 'h36m_17' or 'mpi_inf_3dhp_17'")
            if fps is None:
                warnings.warn(f"array{i} states no frame rate: {ASSUMED_FPS:g} fps is assumed; pass source_fps", stacklevel=3)
            joints, poses = get_skeleton(skeleton), torch.as_tensor(item).double()
            if poses.ndim not in (3, 4) or poses.shape[-2:] != (joints.num_joints, 3) or 0 in poses.shape:
                expected = f"(frames, {joints.num_joints}, 3) or (clips, frames, {joints.num_joints}, 3)"
                raise ValueError(f"array{i} must have shape {expected} ({joints.name}), got {tuple(poses.shape)}")
            for clip in poses[None] if poses.ndim == 3 else poses:
                yield f"array{i}", clip, joints, fps or ASSUMED_FPS
        else:
            raise ValueError(f"source must be a PoseDataset, PoseClips, arrays or paths of data sets, got {type(item).__name__}")


def _check_agrees(option: str, skeleton: str | None, fps: float | None, record: KeypointTrack | PoseClip, name: str) -> None:
    """ValueError where the caller's `<option>_skeleton` or `<option>_fps` contradicts what a track or clip states."""
    kind = "track" if option == "keypoint" else "clip"
    if skeleton is not None and get_skeleton(skeleton) != get_skeleton(record.skeleton):
        raise ValueError(f"{name}: {option}_skeleton is {skeleton!r}, but the {kind} is {record.skeleton!r}")
    if fps is not None and record.fps is not None and not same_rate(fps, record.fps):
        raise ValueError(f"{name}: {option}_fps is {fps:g}, but the {kind} says {record.fps:g} fps")


def same_rate(a: float, b: float) -> bool:
    """Whether two frame rates are one but for rounding."""
    return abs(a - b) <= _SAME_RATE * max(a, b)


def some(names: Iterable[str]) -> str:
    """Names for a message, the first few of them."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
