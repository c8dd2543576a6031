"""Keypoints in NumPy files: our own layout, read and written, and the arrays that other tools and people save.

Nothing is ever unpickled: arrays of Python objects are refused, with a hint how to save them as plain numbers.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .detections import looks_normalised, prefer, to_pixels
from .formats import NoKeypoints
from .joint_sets import JOINT_COUNTS, choose_skeleton, joint_count, skeleton_of_dataset
from .tracks import KeypointTrack, check_fps, check_image_size, longest_first

KEYPOINT_MEMBERS = ("keypoints", "kpts", "poses", "positions_2d", "joints_2d", "reconstruction")
CONFIDENCE_MEMBERS = ("confidence", "conf", "scores", "keypoint_scores")


def write_keypoints(path: str | os.PathLike, tracks: Sequence[KeypointTrack], overwrite: bool = False) -> None:
    """Write tracks of one video to an `.npz` file that `read_keypoints` reads back unchanged.

    The tracks stand one after another: `keypoints_2d (frames, joints, 2)` in pixels, `confidence` and `confidence_raw`
    `(frames, joints)`, `frame (frames,)`, with track i in rows `starts[i]` to `starts[i + 1]`; `track_id` and `source`
    (JSON) per track; `skeleton`, `units` and, if known, `image_size` and `fps` once.

    Args:
        path: file to write, ending in `.npz`. It appears complete or not at all.
        tracks: at least one; all with the same skeleton, image size and frame rate.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        FileNotFoundError: the folder does not exist.
        ValueError: another suffix, no tracks, or tracks that do not belong together.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a name ending in .npz, found {path.suffix or 'no suffix'!r}")
    if not tracks:
        raise ValueError(f"{path}: expected at least one track to write, found none")
    for name in ("skeleton", "num_joints", "image_size", "fps"):
        values = {getattr(track, name) for track in tracks}
        if len(values) > 1:
            raise ValueError(f"{path}: expected tracks of one video, found several values of {name}: {values}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    members = {
        name: np.concatenate([getattr(track, name) for track in tracks])
        for name in ("keypoints_2d", "confidence", "confidence_raw", "frame")
    }
    members["starts"] = np.cumsum([0, *map(len, tracks)])
    members["track_id"] = np.array([track.track_id for track in tracks], dtype=np.int64)
    members["source"] = np.array([json.dumps(track.source) for track in tracks])
    members["skeleton"], members["units"] = np.array(tracks[0].skeleton), np.array("pixels")
    for name in ("image_size", "fps"):
        if getattr(tracks[0], name) is not None:
            members[name] = np.array(getattr(tracks[0], name))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **members)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's file mode mask; temporary files are private, finished ones should be like any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def load_members(path: Path) -> dict[str, np.ndarray | None]:
    """Arrays in an `.npz` file by name (None for one of Python objects); the array in an `.npy` file as `array`.

    Raises:
        ValueError: the file is no NumPy file or is cut short.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"array": loaded}
        with loaded:
            return {name: _member(loaded, name) for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            return {"array": None}
        raise ValueError(f"expected a NumPy {path.suffix} file, found one that cannot be read ({error})") from error


def _member(loaded: Any, name: str) -> np.ndarray | None:
    try:
        return loaded[name]
    except ValueError as error:
        if "Object arrays" in str(error):
            return None
        raise


def numpy_tracks(
    members: dict[str, np.ndarray | None],
    source: dict[str, Any],
    skeleton: str | None = None,
    image_size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> list[KeypointTrack]:
    """Tracks from the members of a NumPy file.

    `keypoints_2d` marks our own layout: `(frames, joints, 2 or 3)`, in several tracks if there are `starts`, or
    `(people, frames, joints, 2 or 3)`; a third channel is the confidence. Any other array is interpreted by its shape
    and values, see `_people_first`.

    Raises:
        ValueError: arrays of Python objects, 3D or normalised values, shapes or counts that do not fit, or a skeleton
            that the file does not name.
    """
    notes: list[str] = []
    own = "keypoints_2d" in members
    key = "keypoints_2d" if own else next((key for key in ("array", *KEYPOINT_MEMBERS) if key in members), None)
    if key is None:
        raise NoKeypoints(
            f"expected a member 'keypoints_2d' (or {', '.join(map(repr, KEYPOINT_MEMBERS))}), "
            f"found {', '.join(map(repr, members)) or 'none'}"
        )
    if members[key] is None:
        raise ValueError(_pickle_refusal(members, key))
    stated = _stated(members)
    if key == "reconstruction":
        stated["skeleton"] = stated["skeleton"] or "h36m_17"
    array = _numbers(key, members[key])
    given_joints = joint_count(skeleton)[1] if skeleton else None
    points, raw = _split_channels(array, own) if own else _people_first(array, given_joints, notes)
    third = next((_numbers(k, members[k]) for k in CONFIDENCE_MEMBERS if members.get(k) is not None), None)
    if third is not None:
        if third.size != points[..., 0].size:
            raise ValueError(f"expected a confidence for each joint, {points.shape[:-1]}, found shape {third.shape}")
        raw = third.reshape(points.shape[:-1])
    name = choose_skeleton(points.shape[-2], skeleton, stated["skeleton"], {}, None, notes)
    image_size = prefer("image_size", image_size, check_image_size(stated["image_size"]), notes)
    fps = prefer("fps", fps, check_fps(stated["fps"]), notes)

    missing = ~np.isfinite(points).all(-1) | (points == 0).all(-1)
    if raw is None:
        raw = (~missing).astype(np.float64)
        notes.append("no confidences in the file: 1 for every joint with coordinates")
    confidence = np.clip(np.nan_to_num(raw, nan=0.0), 0, 1)
    if np.nanmax(raw, initial=0.0) > 1:
        notes.append(f"confidences up to {np.nanmax(raw):.3g} were clipped to 1")
    if (stated["units"] or "pixels") != "pixels":
        raise ValueError(f"expected units 'pixels', found {stated['units']!r}")
    if stated["units"] is None:
        units = "unit" if name == "mediapipe_33" and not own and _landmark_range(points[~missing]) else "pixels"
        points = to_pixels(points, ~missing, units, image_size, notes)
    points = np.where(missing[..., None], np.nan, points)

    if points.ndim == 3 and members.get("starts") is not None:
        rows = list(zip(members["starts"][:-1].tolist(), members["starts"][1:].tolist()))
        people = [(points[a:b], confidence[a:b], raw[a:b]) for a, b in rows]
    else:
        people = list(zip(*(a if points.ndim == 4 else a[None] for a in (points, confidence, raw))))
        rows = [(0, points.shape[-3])] * len(people)
    frames = members.get("frame", members.get("frames"))
    frames = np.arange(max(b for _, b in rows)) if frames is None else np.asarray(frames).ravel()
    ids = np.arange(len(people)) if members.get("track_id") is None else np.asarray(members["track_id"]).ravel()
    if len(frames) != max(b for _, b in rows) or len(ids) != len(people):
        raise ValueError(
            f"expected {max(b for _, b in rows)} frame numbers and {len(people)} track ids, found {len(frames)} and {len(ids)}"
        )
    written = members.get("source")
    tracks = []
    for index, ((a, b), arrays) in enumerate(zip(rows, people)):
        origin = json.loads(str(written[index])) if written is not None else source
        if np.isnan(arrays[0]).all() and written is None:
            continue  # a person who never appears fills up the array
        tracks.append(
            KeypointTrack(
                *_without_jumps(*arrays[:2], frames[a:b]),
                track_id=int(ids[index]),
                skeleton=name,
                image_size=image_size,
                fps=fps,
                source={**origin, "notes": [*origin.get("notes", []), *notes]},
                confidence_raw=_without_jumps(arrays[2], arrays[2], frames[a:b])[0],
            )
        )
    if not tracks:
        raise ValueError("expected keypoints, found only missing ones (0 or NaN)")
    return longest_first(tracks)


def _without_jumps(points: np.ndarray, confidence: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows spread over consecutive frames, NaN and confidence 0 in the frames between."""
    steps = np.diff(frame)
    if (steps < 1).any() or (len(frame) and frame[-1] - frame[0] > 1000 * len(frame)):
        raise ValueError("expected frame numbers that grow from row to row, in steps of a few frames")
    if (steps == 1).all():
        return points, confidence, frame
    place, total = frame - frame[0], int(frame[-1] - frame[0]) + 1
    wide = np.full((total, *points.shape[1:]), np.nan)
    trust = np.zeros((total, *confidence.shape[1:]))
    wide[place], trust[place] = points, confidence
    return wide, trust, np.arange(frame[0], frame[-1] + 1)


def _stated(members: dict[str, np.ndarray | None]) -> dict[str, Any]:
    """What the file says about itself, None where it is silent."""

    def scalar(*names: str) -> Any:
        value = next((members[name] for name in names if members.get(name) is not None), None)
        return value.item() if value is not None and value.size == 1 else None

    size = next((members[name] for name in ("image_size", "res") if members.get(name) is not None), None)
    if size is None and scalar("width") and scalar("height"):
        size = np.array([scalar("width"), scalar("height")])
    layout = scalar("layout_name")
    return {
        "skeleton": scalar("skeleton") or (skeleton_of_dataset(layout) if layout else None),
        "image_size": size,
        "fps": scalar("fps"),
        "units": scalar("units"),
    }


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise ValueError(f"expected numbers in {name!r}, found {array.dtype} of shape {array.shape}")
    return array.astype(np.float64)


def _split_channels(array: np.ndarray, own: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """x, y and the third channel if it is a confidence."""
    if array.ndim not in (3, 4) or array.shape[-1] not in (2, 3):
        raise ValueError(
            f"expected keypoints of shape (frames, joints, 2 or 3) or (people, frames, joints, 2 or 3), found {array.shape}"
        )
    if array.shape[-1] == 2:
        return array, None
    third = array[..., 2][np.isfinite(array[..., 2])]
    metres = not own and np.nanmax(np.abs(array)) < 5 and not looks_normalised(array[..., :2])
    if third.size and (third.min() < -0.05 or third.max() > 1.5 or metres):
        raise NoKeypoints(
            f"expected x, y, confidence, found a third channel in {third.min():.3g} … {third.max():.3g} and coordinates up "
            f"to {np.nanmax(np.abs(array[..., :2])):.3g}: these look like 3D results, not 2D keypoints"
        )
    return array[..., :2], array[..., 2]


def _landmark_range(xy: np.ndarray) -> bool:
    return bool(xy.size) and float(np.mean(np.abs(xy) <= 2)) > 0.99


def _people_first(array: np.ndarray, joints: int | None, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Interpret a bare array by its shape.

    `(joints, 2|3)` is a frame, `(frames, 2·joints | 3·joints)` is flat, `(frames, joints, 2|3)` one person,
    `(people, frames, joints, 2|3)` several, of which the shorter axis counts the people; 33 joints with 3 to 5 channels
    are MediaPipe's x, y, z, visibility, presence; four rows x, y, logit, probability of 17 joints are Detectron's.

    Returns:
        x and y, `([people,] frames, joints, 2)`; the third number `([people,] frames, joints)` or None.
    """
    shape = array.shape
    known = {joints} if joints else set(JOINT_COUNTS.values())
    if array.ndim == 2 and shape[1] in (2, 3) and shape[0] in known:
        array = array[None]
    elif array.ndim == 2:
        fitting = [channels for channels in (2, 3) if shape[1] % channels == 0 and shape[1] // channels in known]
        if len(fitting) != 1:
            raise ValueError(
                f"expected (frames, joints, 2 or 3), found shape {shape}, whose rows fit {len(fitting)} layouts of known "
                "skeletons: reshape the array, or pass skeleton=..."
            )
        array = array.reshape(shape[0], -1, fitting[0])
    if array.ndim in (3, 4) and array.shape[-2:] == (4, 17):
        notes.append("rows x, y, logit, probability of Detectron were recognised")
        array = np.swapaxes(array, -1, -2)[..., [0, 1, 3]]
    if array.ndim == 4 and array.shape[0] != 1:
        a, b = array.shape[:2]
        if a == b or min(a, b) > 20:
            raise ValueError(
                f"expected (people, frames, joints, channels), found shape {shape}, where people and frames cannot be told "
                "apart: save it as member 'keypoints_2d' (people first) of an .npz file"
            )
        if a > b:
            notes.append(f"axes were read as {a} frames of {b} people")
            array = np.swapaxes(array, 0, 1)
    if array.shape[-2:] in ((33, 4), (33, 5)):
        return array[..., :2], array[..., 3]
    if array.shape[-2:] == (33, 3) and np.nanmin(array[..., 2]) < 0:
        return array[..., :2], None
    return _split_channels(array, own=False)


def _pickle_refusal(members: dict[str, np.ndarray | None], key: str) -> str:
    """Why an array of Python objects is not read, and how to save it as numbers."""
    if key == "positions_2d":
        hint = "np.savez(new, keypoints_2d=old['positions_2d'].item()[video]['custom'][0], skeleton='coco_17')"
    elif "boxes" in members:
        hint = (
            "np.savez(new, keypoints_2d=np.stack([k[1][0][[0, 1, 3]].T if len(k[1]) else np.zeros((17, 3)) "
            "for k in old['keypoints']]), skeleton='coco_17')"
        )
    else:
        hint = "np.savez(new, keypoints_2d=np.stack(list(array)).astype('float32'), skeleton=...)"
    return (
        f"expected plain numbers, found pickled Python objects in {key!r}, which can run code when loaded and are refused. "
        f"If you trust the file, load it yourself with allow_pickle=True as old, and save it again: {hint}"
    )
