"""Find out what a keypoint file is, and read it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.pickles import load_npz
from . import formats, tables
from .arrays import KEYPOINT_MEMBERS, keypoint_member, load_members, numpy_tracks, videopose3d_tracks
from .detections import Detections, to_tracks
from .joint_sets import joint_count
from .tracks import KeypointTrack, check_fps, check_image_size

# What each format is, and what marks it; the names in the marks are keys, members or columns.
_FORMATS = {
    "npz": ("NumPy .npz: our own layout, or the arrays of other tools", f".npz with keypoints_2d or {', '.join(KEYPOINT_MEMBERS)}"),
    "npy": ("NumPy .npy: (frames, joints, 2 or 3) or (people, frames, joints, 2 or 3)", ".npy"),
    "numbers": ("JSON: the same as nested lists of numbers", ".json of nothing but numbers"),
    "coco_results": ("COCO keypoint results: a JSON list of people", ".json with image_id, keypoints"),
    "coco_annotations": ("COCO or PoseTrack 2018 annotations: JSON", ".json with images, annotations[].keypoints, categories"),
    "posetrack_2017": ("PoseTrack 2017, and its evaluation: JSON", ".json with annolist[].annorect[].annopoints"),
    "openpose": (
        "OpenPose --write_json: a folder of *_keypoints.json, or one of them; also ControlNet's",
        ".json with people[].pose_keypoints_2d",
    ),
    "alphapose": (
        "AlphaPose: alphapose-results.json (formats coco, cmu, open) or PoseFlow's tracked file",
        ".json with image_id, keypoints, idx, box; or bodies[].joints",
    ),
    "mmpose": (
        "MMPose or Sapiens predictions: JSON of an image, a video, or a folder of images",
        ".json with instances[].keypoint_scores or instance_info",
    ),
    "ultralytics": (
        "Ultralytics YOLO-pose Results.to_json(), of a frame, a list of frames, or one frame per line",
        ".json with class, confidence, box, keypoints.visible",
    ),
    "yolo_txt": ("Ultralytics YOLO-pose save_txt: a folder of label files, or one of them", ".txt, a line per person"),
    "huggingface": ("ViTPose of transformers: JSON of post_process_pose_estimation", ".json with keypoints, scores, labels"),
    "rtmlib": ("rtmlib: JSON of the keypoints and scores of a frame's people, or a list of them", ".json with keypoints, scores"),
    "mediapipe": (
        "MediaPipe Pose: JSON or CSV of 33 landmarks per person and frame",
        ".json with landmarks or pose_landmarks; .csv with x0, y0, …, or landmark",
    ),
    "detectron": ("Detectron's .npz by VideoPose3D's scripts", ".npz with boxes, keypoints, metadata"),
    "videopose3d": ("VideoPose3D's data_2d_*.npz", ".npz with positions_2d, metadata"),
    "deeplabcut": ("DeepLabCut's .csv, the joints named as a person's", ".csv with scorer, bodyparts, coords"),
    "sleap": ("SLEAP's analysis .h5 or .csv, the joints named as a person's", ".h5 with tracks, node_names; .csv with frame_idx"),
}

_JSON_PARSERS: dict[str, Callable[[Any], Detections]] = {
    name: getattr(formats, name)
    for name in (
        "coco_results", "coco_annotations", "posetrack_2017", "openpose", "alphapose", "mmpose", "ultralytics", "huggingface", "rtmlib",
        "mediapipe",
    )
}  # fmt: skip
_TRACKS_OF_ARRAYS = {"npz": numpy_tracks, "npy": numpy_tracks, "numbers": numpy_tracks, "videopose3d": videopose3d_tracks}

_PICKLE = (
    "a pickle, which can run code when loaded and is refused. If you trust it, load it yourself and save it with "
    "np.savez(new, keypoints_2d=..., skeleton=...)"
)
_VIDEO = (
    "a video: `probpose sample {name}` finds the people in it first (pip install probpose[video]), and so does "
    "probpose.video.read_video in Python"
)
_IMAGE = "an image: run a pose estimator on it and pass its results"
_OTHER_SUFFIXES = {
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), _PICKLE),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"), _VIDEO),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"), _IMAGE),
    ".slp": "a SLEAP project: export it for analysis (`sleap-convert --format analysis {name}`) and pass the .h5",
}


def list_formats() -> dict[str, str]:
    """Names of the formats that can be read, each with a description."""
    return {name: description for name, (description, _) in _FORMATS.items()}


def detect_format(path: str | os.PathLike) -> str:
    """Name of the format of a keypoint file or folder, see `list_formats`. Raises as `read_keypoints` does."""
    path = _existing(path)
    try:
        return _open(path, None)[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_keypoints(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    skeleton: str | None = None,
    image_size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> list[KeypointTrack]:
    """Read the 2D keypoints of all people in a file, or in a folder with one file per frame.

    The format is recognised by the content. Skeletons are not converted and gaps are not filled. Where the file has no
    track ids, people are linked from frame to frame by their positions.

    Args:
        path: file or folder.
        format: one of `list_formats()`, if the content does not tell.
        skeleton: joint order. Needed where the number of joints leaves a choice.
        image_size: (width, height) in pixels. Needed for normalised coordinates.
        fps: frames per second of the video; hardly any format stores it.

    Returns:
        One track per person, most observed frames first; none, with a warning, if the frames hold nobody.
        `skeleton`, `image_size` and `fps` win over the file's; contradictions are among `source["notes"]`.

    Raises:
        FileNotFoundError: nothing at `path`, or no keypoint file in the folder.
        ImportError: h5py is not installed (`pip install probpose[datasets]`), for HDF5 files.
        ValueError: the file is not understood, damaged or contradictory, holds something else than 2D keypoints, or
            lacks what must be given; the message names the file, what was expected and what was found.
    """
    image_size, fps = check_image_size(image_size), check_fps(fps)
    if skeleton is not None:
        skeleton, _ = joint_count(skeleton)
    if format is not None and format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(_FORMATS)}, not {format!r}")
    path = _existing(path)
    try:
        name, content = _open(path, format)
        source = {"path": str(path), "format": name}
        if name in _TRACKS_OF_ARRAYS:
            with _layout(name, content):
                return _TRACKS_OF_ARRAYS[name](content, source, skeleton, image_size, fps)
        return to_tracks(_parse(name, content, skeleton), source, skeleton, image_size, fps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Opening: a path to (format, content); the content of a folder is a dictionary from file name to content
# ---------------------------------------------------------------------------------------------------------------------


class _Folder(dict):
    """Contents of the files in a folder, by name."""


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a keypoint file or a folder of them, found nothing there")
    return path


def _open(path: Path, format: str | None) -> tuple[str, Any]:
    if path.is_dir():
        return _open_folder(path, format)
    suffix = path.suffix.lower()
    if suffix in _OTHER_SUFFIXES:
        raise ValueError(f"expected keypoints, found {_OTHER_SUFFIXES[suffix].format(name=path.name)}")
    if path.stat().st_size == 0:
        raise ValueError("expected keypoints, found an empty file")
    if suffix == ".npz":
        name, content = _open_npz(path)
    elif suffix == ".npy":
        name, content = "npy", load_members(path)
    elif suffix == ".txt":
        name, content = "yolo_txt", _Folder({path.name: _text(path)})
    elif suffix == ".csv":
        name, content = _open_csv(path)
    elif suffix in (".h5", ".hdf5"):
        name, content = _open_hdf5(path)
    elif suffix in (".json", ".jsonl") or format in _JSON_PARSERS:
        name, content = _open_json({path.name: _json(path)}, format)
    else:
        raise _unknown(f"a file with {f'suffix {suffix!r}' if suffix else 'no suffix'}")
    if format not in (None, name):
        raise ValueError(f"expected format {format!r}, found {name!r}")
    return name, content


def _open_npz(path: Path) -> tuple[str, Any]:
    members = load_members(path)
    objects = {name for name, array in members.items() if array is None or array.size == 0}
    if {"boxes", "keypoints", "metadata"} <= set(members) and "keypoints" in objects:
        return "detectron", load_npz(path, ("boxes", "keypoints", "metadata"))
    if {"positions_2d", "metadata"} <= objects:
        return "videopose3d", load_npz(path, ("positions_2d", "metadata"))
    if keypoint_member(members) is None:
        shapes = (f"{name!r} {'of Python objects' if array is None else array.shape}" for name, array in members.items())
        raise _unknown(f"a NumPy file with {', '.join(shapes) or 'nothing in it'}", ".npz", members)
    return "npz", members


def _open_csv(path: Path) -> tuple[str, Any]:
    rows = tables.read_rows(_text(path))
    if not rows:
        raise ValueError("expected keypoints, found an empty table")
    name = tables.sniff_rows(rows)
    if name is None:
        raise _unknown(f"a table with columns {', '.join(map(repr, rows[0][:8]))}", ".csv", rows[0])
    return name, tables.landmarks_of_rows(rows) if name == "mediapipe" else rows


def _open_hdf5(path: Path) -> tuple[str, Any]:
    arrays = tables.load_sleap(path)
    if "df_with_missing" in arrays:
        raise ValueError(
            "expected SLEAP's HDF5, found DeepLabCut's: pass the .csv beside it, which deeplabcut.analyze_videos writes with "
            "save_as_csv=True, and deeplabcut.analyze_videos_converth5_to_csv afterwards"
        )
    if not {"tracks", "node_names"} <= set(arrays):
        raise _unknown(f"an HDF5 file with {', '.join(map(repr, arrays)) or 'nothing in it'}", ".h5", arrays)
    return "sleap", arrays


def _open_folder(path: Path, format: str | None) -> tuple[str, Any]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    jsons = [name for name in names if name.lower().endswith(".json")]
    chosen = [name for name in jsons if name.endswith("_keypoints.json")] or jsons
    if chosen:
        name, content = _open_json({name: _json(path / name) for name in chosen}, format)
    else:
        texts = [name for name in names if re.search(r"\d.*\.txt$", name)]
        if not texts:
            hint = f"; the folder {path / 'labels'} may be meant" if (path / "labels").is_dir() else ""
            raise FileNotFoundError(
                f"{path}: expected *_keypoints.json, other .json or YOLO .txt files, one per frame, found {len(names)} other files{hint}"
            )
        name, content = "yolo_txt", _Folder({text: _text(path / text) for text in texts})
    if format not in (None, name):
        raise ValueError(f"expected format {format!r}, found {name!r}")
    return name, content


def _open_json(contents: dict[str, Any], format: str | None) -> tuple[str, Any]:
    """The common format of JSON contents by file name. A single one is a file of its own, if not named as a frame."""
    filled = {name: content for name, content in contents.items() if not _is_empty(content)}
    kinds = Counter([format] if format in _JSON_PARSERS else map(_sniff, (filled or contents).values()))
    if len(kinds) > 1:
        counts = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        raise ValueError(f"expected files of one format in the folder, found {counts}")
    kind = next(iter(kinds))
    if kind == "numbers":
        if len(contents) > 1:
            raise ValueError("expected one file, found several with bare numbers, which cannot be told apart")
        return kind, {"array": _array(*contents.values())}
    name, content = next(iter(contents.items()))
    if len(contents) == 1 and not re.search(r"\d_keypoints\.json$", name):
        return kind, content
    return kind, _Folder(contents)


def _array(content: list) -> np.ndarray:
    try:
        return np.array(content, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            "expected nested lists of numbers, found lists of different lengths, or something else among the numbers"
        ) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text, found byte {error.object[error.start]:#x} in {path.name}") from error


def _json(path: Path) -> Any:
    """The value in a JSON file, also if it is encoded twice, or with one value per line."""
    text = _text(path)
    if not text.strip():
        raise ValueError(f"expected JSON, found an empty file ({path.name})")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()] if "Extra" in error.msg else None
        except json.JSONDecodeError:
            value = None
        if value is None:
            where = f"character {error.pos} of {len(text)} (line {error.lineno}) of {path.name}"
            cut = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
            reason = f"the file is cut short: was the tool stopped while writing?{_repair(text)}" if cut else error.msg
            raise ValueError(f"expected JSON, found an error at {where}: {reason}") from error
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        value = [json.loads(entry) for entry in value]
    return value


def _repair(text: str) -> str:
    """How a file can be completed whose tool did not come to write the end, if so."""
    for missing in ("]", "}", "]}", "}]"):
        try:
            json.loads(text.rstrip().rstrip(",") + missing)
        except json.JSONDecodeError:
            continue
        return f" It is whole with {missing!r} at its end{' in place of the comma' * text.rstrip().endswith(',')}."
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Recognising JSON
# ---------------------------------------------------------------------------------------------------------------------


def _is_empty(content: Any) -> bool:
    """Whether a file holds frames at most, but nobody in them."""
    if isinstance(content, dict):
        keys = {"people", "bodies", "instances", "instance_info", "annotations", "annolist", "keypoints", *formats.LANDMARK_KEYS}
        inner = [value for key, value in content.items() if key in keys]
        return not content or (bool(inner) and all(_is_empty(value) for value in inner))
    return content is None or (isinstance(content, list) and all(_is_empty(entry) for entry in content))


def _sniff(content: Any) -> str:
    """Format of a JSON value; the first test that holds decides. Raises ValueError if none does."""
    if isinstance(content, dict):
        name = _sniff_dict(content)
    elif isinstance(content, list):
        # The first entry with somebody in it speaks for all; only empty ones are frames without people in any format.
        element = next((entry for entry in content if not _is_empty(entry)), next(filter(None, content), None))
        name = "ultralytics" if _is_empty(content) and element is None else _sniff_element(element)
    else:
        name = None
    if name is None:
        raise _unknown(_describe(content), ".json", _keys(content))
    return name


def _sniff_dict(content: dict) -> str | None:
    first = next(iter(content.values()), None)
    if not content:
        return "alphapose"
    if "images" in content and "annotations" in content:
        return "coco_annotations"
    if "annolist" in content:
        return "posetrack_2017"
    if "people" in content:
        return "alphapose" if str(content.get("version")).startswith("AlphaPose") else "openpose"
    if "bodies" in content:
        return "alphapose"
    if "instance_info" in content:
        return "mmpose"
    landmarks = (*formats.LANDMARK_KEYS, *formats.WORLD_LANDMARK_KEYS, "poses")
    if any(key in content for key in landmarks) or _sniff_list_of(content.get("frames")) == "mediapipe":
        return "mediapipe"
    if isinstance(first, dict) and ("people" in first or "bodies" in first):
        return "alphapose"
    filled = next((value for value in content.values() if value), None)
    if isinstance(filled, list) and isinstance(filled[0], dict) and "keypoints" in filled[0]:
        return "alphapose"
    return _sniff_element(content)


def _sniff_list_of(entries: Any) -> str | None:
    return _sniff_element(next((entry for entry in entries if entry), None)) if isinstance(entries, list) else None


def _sniff_element(element: Any) -> str | None:
    """Format of a list by one of its entries: a person, a frame, or the list of people in a frame."""
    if isinstance(element, list):
        if len(element) == 33 and isinstance(element[0], dict) and "x" in element[0]:
            return "mediapipe"
        inner = next((entry for entry in element if entry), None)
        return _sniff_element(inner) if isinstance(inner, dict) else "numbers" if _depth(element) else None
    if not isinstance(element, dict):
        return None
    keypoints = element.get("keypoints")
    if ("frame_id" in element and "instances" in element) or "keypoint_scores" in element:
        return "mmpose"
    if "image_id" in element:
        image = isinstance(element["image_id"], str) and re.search(r"\.(jpe?g|png|bmp)$", element["image_id"], re.I)
        return "alphapose" if "idx" in element or "box" in element or image else "coco_results"
    if isinstance(keypoints, dict) or ("box" in element and "class" in element):
        return "ultralytics"
    if isinstance(keypoints, list) and ("scores" in element or _depth(keypoints) == 2):
        return "rtmlib" if _depth(keypoints) == 3 else "huggingface"
    if "people" in element:
        return "openpose"
    if any(key in element for key in (*formats.LANDMARK_KEYS, *formats.WORLD_LANDMARK_KEYS)) or {"x", "y"} <= set(element):
        return "mediapipe"
    return None


def _depth(content: Any) -> int | None:
    """How deep lists are nested above their first number; None if there is something else at the bottom."""
    depth = 0
    while isinstance(content, list):
        content, depth = next((entry for entry in content if entry not in (None, [])), None), depth + 1
    return depth if isinstance(content, (int, float)) else None


def _describe(content: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(content, dict):
        return f"an object with keys {', '.join(map(repr, list(content)[:6]))}"
    if isinstance(content, list):
        return f"a list of {len(content)} entries, the first {_describe(content[0]) if content else 'missing'}"
    return f"the value {str(content)[:40]!r}"


def _keys(content: Any, depth: int = 5) -> set[str]:
    """Names that occur in a value, so far as its first entries show."""
    if depth == 0 or not isinstance(content, (dict, list)):
        return set()
    inner = list(content.values()) if isinstance(content, dict) else content
    return set(content if isinstance(content, dict) else ()).union(*(_keys(value, depth - 1) for value in inner[:20]))


def _unknown(found: str, suffix: str = "", names: Iterable[Any] = ()) -> ValueError:
    """The error for a file of no known format: what it is, what was looked for, and which formats with this suffix share names with it."""
    known = {name: set(re.findall(r"\w{2,}", mark)) for name, (_, mark) in _FORMATS.items() if suffix in mark}
    shared = {name: sorted(words & set(map(str, names))) for name, words in known.items()}
    close = sorted(filter(shared.get, shared), key=lambda name: -len(shared[name]) / len(known[name]))[:3]
    nearest = ", ".join(f"{name} ({', '.join(shared[name])})" for name in close)
    return ValueError(
        f"expected the keypoints of a known tool, found {found}. Looked for\n"
        + "\n".join(f"  {name}: {mark}" for name, (_, mark) in _FORMATS.items())
        + (f"\nThe closest, with what they have in common: {nearest}" if nearest else "")
        + ("\nIf it is JSON of one of these, pass format=... (--format on the command line)" if suffix in ("", ".json") else "")
    )


# ---------------------------------------------------------------------------------------------------------------------
# Parsing
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _layout(name: str, content: Any) -> Iterator[None]:
    """Turns what a layout that is not the expected one causes into an error that says so."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"expected the layout of {name!r}, found something else: {what} ({_describe(content)})") from error


def _parse(name: str, content: Any, skeleton: str | None) -> Detections:
    """Detections in a file, or in the files of a folder, one frame each, numbered by the file names."""
    with _layout(name, content):
        if name == "yolo_txt":
            return formats.yolo_txt(content, joint_count(skeleton)[1] if skeleton else None)
        if name in ("deeplabcut", "sleap"):
            return getattr(tables, name)(content, skeleton)
        parser = formats.detectron if name == "detectron" else _JSON_PARSERS[name]
        if not isinstance(content, _Folder):
            return parser(content)
        found = Detections()
        for label, value in content.items():
            found.extend(parser(value), label)
        return found
