"""Find out what a keypoint file is, and read it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import formats
from .arrays import load_members, numpy_tracks
from .detections import Detections, to_tracks
from .joint_sets import joint_count
from .tracks import KeypointTrack, check_fps, check_image_size

_FORMATS = {
    "npz": "NumPy .npz: our own layout (member keypoints_2d), or the arrays of other tools",
    "npy": "NumPy .npy: (frames, joints, 2 or 3) or (people, frames, joints, 2 or 3)",
    "coco_results": "COCO keypoint results: a JSON list with image_id and flat keypoints",
    "coco_annotations": "COCO or PoseTrack 2018 annotations: JSON with images, annotations, categories",
    "openpose": "OpenPose --write_json: a folder of *_keypoints.json, or one of them; also ControlNet's",
    "alphapose": "AlphaPose: alphapose-results.json (formats coco, cmu, open) or PoseFlow's tracked file",
    "mmpose": "MMPose or Sapiens predictions: JSON of an image, a video, or a folder of images",
    "ultralytics": "Ultralytics YOLO-pose Results.to_json(), of a frame, a list of frames, or one frame per line",
    "yolo_txt": "Ultralytics YOLO-pose save_txt: a folder of label files, or one of them",
    "huggingface": "ViTPose of transformers: JSON of post_process_pose_estimation",
    "mediapipe": "MediaPipe Pose: JSON of 33 landmarks per person and frame",
}

_JSON_PARSERS: dict[str, Callable[[Any], Detections]] = {
    name: getattr(formats, name) for name in _FORMATS if name not in ("npz", "npy", "yolo_txt")
}


def list_formats() -> dict[str, str]:
    """Names of the formats that can be read, each with a description."""
    return dict(_FORMATS)


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
        if name in ("npz", "npy"):
            return numpy_tracks(content, source, skeleton, image_size, fps)
        found = _parse(name, content, joint_count(skeleton)[1] if skeleton else None)
        return to_tracks(found, source, skeleton, image_size, fps)
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
    if path.stat().st_size == 0:
        raise ValueError("expected keypoints, found an empty file")
    if suffix in (".npz", ".npy"):
        name = suffix[1:]
        content: Any = load_members(path)
    elif suffix == ".txt":
        name, content = "yolo_txt", _Folder({path.name: _text(path)})
    elif suffix in (".json", ".jsonl"):
        name, content = _open_json({path.name: _json(path)}, format)
    elif suffix in (".pkl", ".pickle", ".pt", ".pth"):
        raise ValueError(
            f"expected a file of plain numbers, found a pickle ({suffix}), which can run code when loaded and is "
            "refused. If you trust it, load it yourself and save it with np.savez(new, keypoints_2d=..., skeleton=...)"
        )
    else:
        raise ValueError(f"expected .json, .jsonl, .npz, .npy, .txt or a folder, found {suffix or 'no suffix'!r}")
    if format not in (None, name):
        raise ValueError(f"expected format {format!r}, found {name!r}")
    return name, content


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
    name, content = next(iter(contents.items()))
    if len(contents) == 1 and not re.search(r"\d_keypoints\.json$", name):
        return next(iter(kinds)), content
    return next(iter(kinds)), _Folder(contents)


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
            reason = "the file is cut short: was the tool stopped while writing?" if cut else error.msg
            raise ValueError(f"expected JSON, found an error at {where}: {reason}") from error
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        value = [json.loads(entry) for entry in value]
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Recognising JSON
# ---------------------------------------------------------------------------------------------------------------------


def _is_empty(content: Any) -> bool:
    """Whether a file holds frames at most, but nobody in them."""
    if isinstance(content, dict):
        keys = {"people", "bodies", "instances", "instance_info", "annotations", *formats.LANDMARK_KEYS}
        inner = [value for key, value in content.items() if key in keys]
        return not content or (bool(inner) and all(_is_empty(value) for value in inner))
    return content is None or (isinstance(content, list) and all(_is_empty(entry) for entry in content))


def _sniff(content: Any) -> str:
    """Format of a JSON value; the first test that holds decides. Raises ValueError if none does."""
    if isinstance(content, dict):
        name = _sniff_dict(content)
    elif isinstance(content, list):
        # The first entry with something in it speaks for all; only empty ones are frames without people in any format.
        element = next((entry for entry in content if entry), None)
        name = "ultralytics" if _is_empty(content) and element is None else _sniff_element(element)
    else:
        name = None
    if name is None:
        raise ValueError(f"expected one of {', '.join(_FORMATS)}, found {_describe(content)}; if it is one, pass format=...")
    return name


def _sniff_dict(content: dict) -> str | None:
    first = next(iter(content.values()), None)
    if not content:
        return "alphapose"
    if "images" in content and "annotations" in content:
        return "coco_annotations"
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
        return _sniff_element(inner) if isinstance(inner, dict) else None
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
    if isinstance(keypoints, list) and "scores" in element:
        return "huggingface"
    if "people" in element:
        return "openpose"
    if any(key in element for key in (*formats.LANDMARK_KEYS, *formats.WORLD_LANDMARK_KEYS)) or {"x", "y"} <= set(element):
        return "mediapipe"
    return None


def _describe(content: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(content, dict):
        return f"a JSON object with keys {', '.join(map(repr, list(content)[:6]))}"
    if isinstance(content, list):
        return f"a JSON list of {len(content)} entries, the first {_describe(content[0]) if content else 'missing'}"
    return f"a JSON value {str(content)[:40]!r}"


# ---------------------------------------------------------------------------------------------------------------------
# Parsing
# ---------------------------------------------------------------------------------------------------------------------


def _parse(name: str, content: Any, joints: int | None) -> Detections:
    """Detections in a file, or in the files of a folder, one frame each, numbered by the file names."""
    try:
        if name == "yolo_txt":
            return formats.yolo_txt(content, joints)
        parser = _JSON_PARSERS[name]
        if not isinstance(content, _Folder):
            return parser(content)
        found = Detections()
        for label, value in content.items():
            found.extend(parser(value), label)
        return found
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"expected the layout of {name!r}, found something else: {what} ({_describe(content)})") from error
