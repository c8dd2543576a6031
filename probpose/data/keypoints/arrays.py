"""Keypoints in NumPy files: our own layout, read and written, and the arrays that other tools and people save.

Arrays of Python objects are refused, with a hint how to save them as plain numbers, but for the two layouts that are known to hold
them: VideoPose3D's and Detectron's, which are restored by `probpose.data.datasets.pickles` and thus without running code.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from probpose.files import replacing

from .detections import looks_normalised, prefer, to_pixels
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
    with replacing(path, overwrite) as unfinished:
        np.savez_compressed(unfinished, **members)


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
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
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
    key = keypoint_member(members)
    array = _numbers(key, members[key])
    members = {name: value for name, value in members.items() if value is not None}
    if key == "keypoints_2d":
        points, raw = _split_channels(array, may_be_metres=False)
    else:
        points, raw = _people_first(array, joint_count(skeleton)[1] if skeleton else None, notes)
    raw = _confidence_member(members, points.shape[:-1]) if raw is None else raw

    stated = _stated(members, key)
    name = choose_skeleton(points.shape[-2], skeleton, stated["skeleton"], {}, None, notes)
    image_size = prefer("image_size", image_size, check_image_size(stated["image_size"]), notes)
    fps = prefer("fps", fps, check_fps(stated["fps"]), notes)

    missing = ~np.isfinite(points).all(-1)
    if "starts" not in members:  # in files we wrote, missing joints are NaN
        missing |= (points == 0).all(-1)
    if raw is None:
        raw = (~missing).astype(np.float64)
        notes.append("no confidences in the file: 1 for every joint with coordinates")
    elif (raw > 1).any() and "confidence_raw" not in members:
        notes.append(f"confidences up to {np.nanmax(raw):.3g} were clipped to 1")
    confidence = np.where(missing, 0, np.clip(np.nan_to_num(raw, nan=0.0), 0, 1))
    if stated["units"] is None:
        landmarks = key != "keypoints_2d" and name == "mediapipe_33" and bool(np.mean(np.abs(points[~missing]) <= 2) > 0.99)
        points = to_pixels(points, ~missing, "unit" if landmarks else "pixels", image_size, notes)
    elif stated["units"] != "pixels":
        raise ValueError(f"expected units 'pixels', found {stated['units']!r}")
    points = np.where(missing[..., None], np.nan, points)
    if "confidence_raw" in members:
        raw = _shaped("confidence_raw", members["confidence_raw"], confidence.shape)

    tracks = [
        KeypointTrack(
            keypoints_2d=person["points"],
            confidence=person["confidence"],
            frame=person["frame"],
            track_id=person["track_id"],
            skeleton=name,
            image_size=image_size,
            fps=fps,
            source={**person["source"], "notes": [*person["source"].get("notes", []), *notes]},
            confidence_raw=person["raw"],
        )
        for person in _people(members, points, confidence, raw, source)
    ]
    if not tracks:
        raise ValueError("expected keypoints, found only missing ones (0 or NaN)")
    return longest_first(tracks)


def videopose3d_tracks(
    members: dict[str, Any],
    source: dict[str, Any],
    skeleton: str | None = None,
    image_size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> list[KeypointTrack]:
    """Tracks from the `positions_2d` and `metadata` of VideoPose3D's `data_2d_<dataset>_<name>.npz`, one for each view of each clip.

    `positions_2d` is video (or subject) to action to one `(frames, joints, 2 or 3)` array per camera. Identities number the tracks, whose
    first note tells which is which.

    Raises:
        ValueError: as `numpy_tracks`.
    """
    tracks = []
    for video, actions in members["positions_2d"].items():
        size = members["metadata"].get("video_metadata", {}).get(video)
        stated = {"layout_name": np.array(members["metadata"].get("layout_name"))}
        if size:
            stated["image_size"] = np.array([size["w"], size["h"]])
        for action, cameras in actions.items():
            for camera, array in enumerate(cameras):
                named = {**source, "notes": [f"{video}/{action}/{camera}"]}
                view = {"keypoints_2d": np.asarray(array), "track_id": np.array([len(tracks)]), **stated}
                tracks += numpy_tracks(view, named, skeleton, image_size, fps)
    return longest_first(tracks)


def keypoint_member(members: dict[str, np.ndarray | None]) -> str | None:
    """Name of the member that holds the keypoints, None if there is none. Raises ValueError if it holds Python objects."""
    key = next((key for key in ("keypoints_2d", "array", *KEYPOINT_MEMBERS) if key in members), None)
    if key is not None and members[key] is None:
        raise ValueError(
            f"expected plain numbers, found pickled Python objects in {key!r}, which can run code when loaded and are refused. If you "
            "trust the file, load it yourself with allow_pickle=True as old, and save it again: "
            f"np.savez(new, keypoints_2d=np.stack(list(old[{key!r}])).astype('float32'), skeleton=...)"
        )
    return key


def _confidence_member(members: dict[str, np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray | None:
    """The confidences that stand in a member of their own, as `shape`, which is people first if there are several."""
    key = next((key for key in CONFIDENCE_MEMBERS if key in members), None)
    if key is None:
        return None
    array = members[key]
    frames_first = len(shape) == 3 and array.shape == (shape[1], shape[0], shape[2]) != shape
    return _shaped(key, np.swapaxes(array, 0, 1) if frames_first else array, shape)


def _shaped(key: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers in `array` if they have this shape, but for axes of length 1."""
    numbers = _numbers(key, array)
    if [n for n in numbers.shape if n > 1] != [n for n in shape if n > 1]:
        raise ValueError(f"expected one {key} for each joint, {shape}, found shape {numbers.shape}")
    return numbers.reshape(shape)


def _people(members, points, confidence, raw, source) -> Iterator[dict[str, Any]]:
    """Arrays, frame numbers, identity and origin of each person who is seen at all."""
    written = members.get("starts") if points.ndim == 3 else None
    if written is not None:
        rows = [slice(a, b) for a, b in pairwise(written.tolist())]
        people = [(points[row], confidence[row], raw[row]) for row in rows]
    else:
        people = list(zip(*(a if points.ndim == 4 else a[None] for a in (points, confidence, raw))))
        rows = [slice(0, points.shape[-3])] * len(people)
    total = rows[-1].stop
    frames = next((members[name].ravel() for name in ("frame", "frames") if name in members), np.arange(total))
    ids = members["track_id"].ravel() if "track_id" in members else np.arange(len(people))
    sources = members.get("source")
    if (len(frames), len(ids), total) != (points.shape[-3], len(people), points.shape[-3]):
        raise ValueError(
            f"expected {points.shape[-3]} frame numbers and rows and {len(people)} track ids, found {len(frames)}, {total} and {len(ids)}"
        )
    for index, (row, (xy, trust, third)) in enumerate(zip(rows, people)):
        if written is None and np.isnan(xy).all():
            continue  # rows of people who never appear fill up an array
        frame = frames[row].astype(np.int64)
        if (np.diff(frame) < 1).any() or frame[-1] - frame[0] > 1000 * len(frame):
            raise ValueError("expected frame numbers that grow from row to row, in steps of a few frames")
        every = np.arange(frame[0], frame[-1] + 1)
        place = frame - frame[0]
        yield {
            "points": _scatter(xy, place, len(every), np.nan),
            "confidence": _scatter(trust, place, len(every), 0.0),
            "raw": _scatter(third, place, len(every), np.nan),
            "frame": every,
            "track_id": ids[index],
            "source": source if sources is None else json.loads(str(sources[index])),
        }


def _scatter(rows: np.ndarray, place: np.ndarray, total: int, filler: float) -> np.ndarray:
    """The rows at their places among `total` rows, `filler` elsewhere."""
    result = np.full((total, *rows.shape[1:]), filler)
    result[place] = rows
    return result


def _stated(members: dict[str, np.ndarray | None], key: str) -> dict[str, Any]:
    """What the file says about itself, None where it is silent."""

    def scalar(*names: str) -> Any:
        value = next((members[name] for name in names if members.get(name) is not None), None)
        return value.item() if value is not None and value.size == 1 else None

    size = next((members[name] for name in ("image_size", "res") if members.get(name) is not None), None)
    if size is None and scalar("width") and scalar("height"):
        size = np.array([scalar("width"), scalar("height")])
    # Lifters' demos save keypoints under this name after they have converted them to Human3.6M's joints.
    usual = "h36m_17" if key == "reconstruction" else None
    return {
        "skeleton": scalar("input_skeleton", "skeleton") or skeleton_of_dataset(scalar("layout_name")) or usual,
        "image_size": size,
        "fps": None if scalar("fps") != scalar("fps") else scalar("fps"),  # NaN in results of which nobody told it
        "units": scalar("units"),
    }


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise ValueError(f"expected numbers in {name!r}, found {array.dtype} of shape {array.shape}")
    return array.astype(np.float64)


def _split_channels(array: np.ndarray, may_be_metres: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """x and y, and the third channel, which must be a confidence."""
    if array.ndim not in (3, 4) or array.shape[-1] not in (2, 3):
        raise ValueError(f"expected keypoints of shape (frames, joints, 2 or 3) or (people, frames, joints, 2 or 3), found {array.shape}")
    if array.shape[-1] == 2:
        return array, None
    third, reach = array[..., 2][np.isfinite(array[..., 2])], np.nanmax(np.abs(array[..., :2]), initial=0.0)
    metres = may_be_metres and reach < 5 and not looks_normalised(array[..., :2])
    if third.size and (third.min() < -0.05 or third.max() > 1.5 or metres):
        raise ValueError(
            f"expected x, y, confidence, found a third channel in {third.min():.3g} … {third.max():.3g} and "
            f"coordinates up to {reach:.3g}: these look like 3D results, not 2D keypoints"
        )
    return array[..., :2], array[..., 2]


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
                f"expected (frames, joints, 2 or 3), found shape {shape}, whose rows fit {len(fitting)} layouts "
                "of known skeletons: reshape the array, or pass skeleton=..."
            )
        array = array.reshape(shape[0], -1, fitting[0])
    if array.ndim in (3, 4) and array.shape[-2:] == (4, 17):
        notes.append("rows x, y, logit, probability of Detectron were recognised")
        array = np.swapaxes(array, -1, -2)[..., [0, 1, 3]]
    if array.ndim == 4 and array.shape[0] != 1:
        a, b = array.shape[:2]
        if a == b or min(a, b) > 20:
            raise ValueError(
                f"expected (people, frames, joints, channels), found shape {shape}, where people and frames cannot "
                "be told apart: save it as member 'keypoints_2d' (people first) of an .npz file"
            )
        if a > b:
            notes.append(f"axes were read as {a} frames of {b} people, each in a row of their own")
            array = np.swapaxes(array, 0, 1)
    if array.shape[-2:] in ((33, 4), (33, 5)):
        return array[..., :2], array[..., 3]
    if array.shape[-2:] == (33, 3) and np.nanmin(array[..., 2], initial=0.0) < 0:
        return array[..., :2], None
    return _split_channels(array)
