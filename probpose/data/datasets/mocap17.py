"""The mocap17 benchmark: motion-capture clips seen by virtual cameras, with true and with detector-like keypoints, in one file."""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera

from .checks import check_clips
from .clips import PoseClip, PoseDataset

KEYPOINTS = ("detected", "true")

_PER_FRAME = {"keypoints_true": (17, 2), "keypoints_detected": (17, 2), "confidence": (17,), "positions_camera": (17, 3)}
_PER_CLIP = {"rotation": (3, 3), "translation": (3,)}
_LENS = ("focal", "centre", "radial", "tangential")
_KEYS = (*_PER_FRAME, *_PER_CLIP, *_LENS, "image_size", "starts", "names", "fps")
_BANDAI = re.compile(r"bandai/dataset-\d+_([^_]+)_")  # content_style_number


def read_mocap17(path: str | Path, keypoints: str = "detected") -> PoseDataset:
    """Reads a `.npz` benchmark file of the 17 Human3.6M joints. Tags: `dataset`, `source`, `family` (see `source_and_family`).

    Per frame `keypoints_true`, `keypoints_detected (N, 17, 2)` pixels, `confidence (N, 17)`, `positions_camera (N, 17, 3)` metres; per
    clip `names`, `rotation (clips, 3, 3)`, `translation (clips, 3)`; `starts (clips + 1)` frame offsets; `fps`; and the one lens of all
    clips: `image_size`, `focal`, `centre`, `radial`, `tangential`.

    Args:
        path: the file.
        keypoints: "detected", with the detector's confidences, or "true", with confidence 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown kind of keypoints, not an `.npz` file, missing arrays (all of them named), shapes that do not fit, or a
            clip of less than three frames, which has no acceleration.
    """
    if keypoints not in KEYPOINTS:
        raise ValueError(f"keypoints must be one of {KEYPOINTS}, got {keypoints!r}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no benchmark file at {path}")
    arrays = _read_arrays(path)
    starts = arrays["starts"]
    if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or (np.diff(starts) < 3).any():
        raise ValueError(f"{path}: starts must rise from 0 by at least three frames per clip, got {starts}")
    frames, count = int(starts[-1]), len(starts) - 1
    expected = {name: (frames, *rest) for name, rest in _PER_FRAME.items()}
    expected |= {name: (count, *rest) for name, rest in _PER_CLIP.items()} | {"names": (count,), "fps": ()}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: {name} must have shape {shape}, got {arrays[name].shape}")

    lens = Camera(*(_float(arrays[name]) for name in _LENS), image_size=tuple(arrays["image_size"].tolist()))
    clips = []
    for i, (first, last) in enumerate(pairwise(starts.tolist())):
        name = str(arrays["names"][i])
        camera = replace(lens, **{part: _float(arrays[part][i]) for part in _PER_CLIP})
        pixels, confidence, positions = (
            _float(arrays[part][first:last]) for part in (f"keypoints_{keypoints}", "confidence", "positions_camera")
        )
        if keypoints == "true":
            confidence = torch.ones_like(confidence)
        tags = {"dataset": "mocap17", **source_and_family(name)}
        clips.append(PoseClip(name, pixels, confidence, positions, camera, float(arrays["fps"]), tags=tags))
    return PoseDataset(tuple(clips), f"{path.stem} {keypoints}", "clips", check_clips(clips, str(path)))


def source_and_family(name: str) -> dict[str, str]:
    """Tags of a motion's name: the collection, its first part, and the kind of motion.

    The family is "cmu/walking" of cmu/walking/walking_1 and "bandai/run" of bandai/dataset-2_run_elderly_002.
    """
    bandai = _BANDAI.match(name)
    parts = name.split("/")
    return {"source": parts[0], "family": f"bandai/{bandai[1]}" if bandai else "/".join(parts[:2])}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise ValueError(f"it lacks the arrays {', '.join(missing)}")
            return {key: file[key] for key in _KEYS}
    # TypeError: a bare array is no archive
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no benchmark file: {error}") from None


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
