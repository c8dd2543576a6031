"""Folders of recordings: which files, and which folders with one file per frame, hold keypoints."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from .reader import detect_format, read_keypoints
from .tracks import KeypointTrack

_SUFFIXES = (".npz", ".npy", ".json", ".jsonl")
_RECOGNISED_SUFFIXES = (".csv", ".h5", ".hdf5")
"""Files of many kinds end in these: only those that are keypoints are recordings."""


def recordings_below(folder: Path, leave_out: Path | None = None, **reading: Any) -> tuple[list[Path], list[Path]]:
    """The recordings below a folder, sub-folders included, in order: keypoint files, and folders that hold one file per frame.

    Args:
        folder: where to look; its own files are a recording each.
        leave_out: a file or folder that is passed over, such as results of earlier runs.
        reading: options of `read_keypoints`, by which frames are told from recordings.

    Returns:
        The recordings, and what is none; hidden files and folders never are.
    """
    recordings: list[Path] = []
    others: list[Path] = []

    def search(place: Path) -> None:
        for path in sorted(place.iterdir()):
            if leave_out is not None and path.resolve() == leave_out.resolve():
                continue
            if path.name.startswith("."):
                others.append(path)
            elif path.is_dir():
                recordings.append(path) if holds_frames(path, **reading) else search(path)
            else:
                (recordings if _may_hold_keypoints(path) else others).append(path)

    search(folder)
    return recordings, others


def _may_hold_keypoints(path: Path) -> bool:
    if path.suffix.lower() not in _RECOGNISED_SUFFIXES:
        return path.suffix.lower() in _SUFFIXES
    try:
        detect_format(path)
    except (ValueError, OSError):
        return False
    except ImportError:
        return True  # reading it will tell which package is missing
    return True


def holds_frames(folder: Path, **reading: Any) -> bool:
    """Whether the files of a folder are the frames of one recording."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    jsons = [name for name in names if name.lower().endswith(".json")]
    if any(name.endswith("_keypoints.json") for name in jsons):
        return True  # OpenPose
    if any(name.lower().endswith((".npz", ".npy", ".jsonl")) for name in names):
        return False
    if not jsons:
        return any(re.search(r"\d.*\.txt$", name) for name in names)  # YOLO labels
    if len(jsons) == 1:
        return False
    for name in jsons:  # the first with a person in it tells
        try:
            tracks = read_quietly(folder / name, **reading)
        except (ValueError, OSError):
            continue
        if tracks:
            return max(map(len, tracks)) == 1
    return False


def read_quietly(path: Path, **reading: Any) -> list[KeypointTrack]:
    """The people in a recording, as `read_keypoints` reads them; an empty one is nothing to warn of among thousands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_keypoints(path, **reading)
