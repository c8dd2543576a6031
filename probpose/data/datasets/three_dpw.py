"""3DPW (von Marcard et al., ECCV 2018): people filmed outdoors by a moving phone, posed by inertial sensors and the video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera
from probpose.skeletons import convert, convert_with_confidence

from .checks import check_clips, numbers
from .clips import PoseClip, PoseDataset
from .pickles import load_pickle

SPLITS = ("train", "validation", "test")
KEYPOINTS = ("projected", "poses2d")


def read_3dpw(path: str | Path, split: str = "test", keypoints: str = "projected", fps: float = 30.0) -> PoseDataset:
    """Reads the sequence files of 3DPW: one clip per person, named "downtown_walking_00/person0".

    The camera moves: poses stand in each frame's own camera axes, and the camera of a clip has a lens but no place in the world. Frames
    are scored where the data set calls the camera pose valid and all joints are known. Tags: `dataset`, `split`, `sequence`, `person`.

    Args:
        path: the folder `sequenceFiles` or the one above it, one of its splits, or one `.pkl` file.
        split: "train", "validation" or "test"; where `path` already is a split or a file, its folder's name counts.
        keypoints: "projected", the projected joints, in SMPL's order (`smpl_24`); or "poses2d", OpenPose's detections, in which case
            they and the poses are converted to `h36m_17`.
        fps: frames per second; that of the images is 30.

    Returns:
        Clips in metres, images of 1920×1080 or 1080×1920 pixels (the principal point tells which).

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an unknown option, a folder without sequences, a damaged file, missing keys, other shapes or units.
    """
    if split not in SPLITS:
        raise ValueError(f"split of 3DPW must be one of {SPLITS}, got {split!r}")
    if keypoints not in KEYPOINTS:
        raise ValueError(f"keypoints of 3DPW must be one of {KEYPOINTS}, got {keypoints!r}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    files = _files(Path(path), split)
    split = files[0].parent.name if files[0].parent.name in SPLITS else split
    clips = tuple(clip for file in files for clip in _read(file, split, keypoints, fps))
    return PoseDataset(clips, name=f"3dpw {split} {keypoints}", protocol="3dpw", notes=check_clips(clips, str(path)))


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    folder = next((folder for folder in (path / "sequenceFiles" / split, path / split, path) if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no such file or folder: {path}")
    files = sorted(folder.glob("*.pkl"))
    if not files:
        raise ValueError(f"{folder} holds no .pkl sequences of 3DPW; give sequenceFiles, one of its folders {SPLITS}, or a file")
    return files


def _read(path: Path, split: str, keypoints: str, fps: float) -> Iterator[PoseClip]:
    record = load_pickle(path)
    per_person = ["jointPositions", "campose_valid", *(["poses2d"] if keypoints == "poses2d" else [])]
    needed = ["sequence", "cam_intrinsics", "cam_poses", *per_person]
    if not isinstance(record, dict) or any(key not in record for key in needed):
        found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{path} is no sequence of 3DPW: it must be a dict with {needed}, got {found}")
    people = [len(record[key]) if isinstance(record[key], (list, tuple, np.ndarray)) else 0 for key in per_person]
    if min(people) == 0 or len(set(people)) > 1:
        raise ValueError(f"{path}: {per_person} must be lists with one entry per person, got {people} entries")
    poses = numbers(record["cam_poses"], (None, 4, 4), f"{path}: cam_poses")
    camera = _camera(record["cam_intrinsics"], path)
    frames = len(poses)

    def of(person: int, key: str, *shape: int) -> np.ndarray:
        return numbers(record[key][person], (frames, *shape), f"{path}: {key} of person {person}, with {frames} cam_poses,")

    for person in range(people[0]):
        world = of(person, "jointPositions", 72).reshape(frames, 24, 3)
        points = torch.from_numpy(world @ poses[:, :3, :3].swapaxes(1, 2) + poses[:, None, :3, 3]).float()
        valid = torch.from_numpy(of(person, "campose_valid") == 1)
        if keypoints == "projected":
            skeleton = "smpl_24"
            pixels, confidence = _projected(points, camera)
        else:
            skeleton = "h36m_17"
            points = convert(points, "smpl_24", skeleton)
            pixels, confidence = _detected(of(person, "poses2d", 3, 18), skeleton)
        yield PoseClip(
            f"{record['sequence']}/person{person}",
            pixels,
            confidence,
            points,
            camera,
            fps,
            skeleton,
            valid=valid & torch.isfinite(points).flatten(1).all(1),
            tags={"dataset": "3dpw", "split": split, "sequence": str(record["sequence"]), "person": f"person{person}"},
        )


def _camera(intrinsics: Any, path: Path) -> Camera:
    matrix = numbers(intrinsics, (3, 3), f"{path}: cam_intrinsics")
    if not np.isfinite(matrix).all() or (np.diag(matrix) <= 0).any() or (matrix[:2, 2] <= 0).any():
        raise ValueError(f"{path}: cam_intrinsics must be [fx 0 cx; 0 fy cy; 0 0 1] in pixels, got {matrix.tolist()}")
    focal, centre = torch.from_numpy(matrix[:2, :2]).diag().float(), torch.from_numpy(matrix[:2, 2]).float()
    image_size = (1080, 1920) if centre[1] > centre[0] else (1920, 1080)
    return Camera(focal, centre, image_size=image_size, slope_limit=math.inf)


def _projected(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Pixels and confidence; what is behind the camera is not observed."""
    seen = torch.isfinite(points).all(-1) & (points[..., 2] > 0)
    return torch.where(seen[..., None], camera.project(points), torch.nan), seen.float()


def _detected(detections: np.ndarray, skeleton: str) -> tuple[Tensor, Tensor]:
    """OpenPose's `(frames, 3, 18)`, x, y and confidence, in another order. Joints it did not find have confidence 0."""
    x, y, confidence = torch.from_numpy(detections).float().unbind(1)
    confidence = confidence.nan_to_num(0.0).clamp(0, 1)
    pixels, confidence, _ = convert_with_confidence(torch.stack([x, y], -1), confidence, "openpose_18", skeleton)
    return pixels, confidence
