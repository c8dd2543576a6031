"""Any motion capture as a data set: motions from files or an archive, seen by virtual cameras."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probpose.data.mocap import MocapClips
from probpose.data.mocap_files import MotionClip, read_motion
from probpose.geometry import Camera, h36m_camera, rotation_looking_along

from .checks import check_clips
from .clips import PoseClip, PoseDataset
from .mocap17 import source_and_family

SUFFIXES = (".bvh", ".amc")
_NEAREST = 3.0  # metres from the camera to the middle of a motion
_MARGIN = 0.03  # of the image, that stays free around the person


def read_motions(
    path: str | Path,
    camera: Camera | None = None,
    split: str | None = "test",
    fps: float | None = None,
    seed: int = 0,
    unit: str | None = None,
    up: str = "y",
) -> PoseDataset:
    """Reads motion capture, and sees every motion through a virtual camera that stands still. Keypoints are true projections.

    Tags: `dataset`, `source` and `family`: the first and the first two parts of a clip's name (see `mocap17.source_and_family`). The name
    is that in the archive, or for files their folder and name: "walks/01_01" for `walks/01_01.bvh`.

    Args:
        path: a `.bvh` file, an `.amc` file with its `.asf` beside it, a folder of such files (at any depth), or a `.npz` archive of
            `probpose.data.clips_to_npz`.
        camera: lens and image size; None = the first of Human3.6M's. One with rotation and translation stays where it is, any other is
            placed for each clip: around the person at a random angle, at 0.8 to 2 m above the lowest point of the motion, and so far
            away that every joint is in the image throughout.
        split: clips of an archive to take, "train" or "test"; None = both. Files have no splits.
        fps: frame rate to resample files to; None = the files' own.
        seed: another seed, other places. A clip's place depends on the seed and its name only.
        unit, up: of files, as in `probpose.data.read_motion`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without motions, a file that cannot be read, a camera without image size, a motion that runs behind a camera
            which stays where it is.
    """
    path, lens = Path(path), h36m_camera(0) if camera is None else camera
    if lens.focal.ndim != 1 or lens.image_size is None:
        raise ValueError("camera must be a single camera with an image_size, in which the person is to be seen")
    if not _inside(lens.centre, lens.image_size):
        raise ValueError(f"camera must look into its image, but its centre {lens.centre.tolist()} lies outside of {lens.image_size}")
    clips = []
    for name, positions, rate in _motions(path, split, fps, unit, up):
        if not positions.isfinite().all():
            raise ValueError(f"{path}: the motion {name!r} has positions that are not finite")
        placed = lens if lens.rotation is not None and lens.translation is not None else _placed(lens, positions, name, seed)
        points = placed.to_camera(positions)
        if not (points[..., 2] > 0).all():
            raise ValueError(
                f"{path}: the motion {name!r} runs behind the camera; leave out its rotation and translation to have it placed"
            )
        tags = {"dataset": "motions", **source_and_family(name)}
        clips.append(PoseClip(name, placed.project(points), torch.ones(points.shape[:2]), points, placed, rate, tags=tags))
    return PoseDataset(tuple(clips), f"motions {path.stem}", "clips", check_clips(clips, str(path)))


def motion_files(path: Path) -> list[Path]:
    """The motion files that a folder holds, at any depth."""
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


def _motions(path: Path, split: str | None, fps: float | None, unit: str | None, up: str) -> Iterator[tuple[str, Tensor, float]]:
    """Name, world positions `(frames, 17, 3)` and frame rate of every motion."""
    if path.suffix == ".npz":
        archive = MocapClips(path, split=split)
        for i, name in enumerate(archive.names):
            root, local = archive[i]
            yield name, root[:, None] + local, archive.fps
        return
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    folder, files = (path, motion_files(path)) if path.is_dir() else (path.parent, [path])
    if not files:
        raise ValueError(f"{path} holds no motions; looked for files ending in {' or '.join(SUFFIXES)}, at any depth")
    for file in files:
        motion: MotionClip = read_motion(file, unit=unit, up=up)
        if fps is not None:
            motion = motion.resample(fps)
        name = (Path(folder.resolve().name) / file.relative_to(folder).with_suffix("")).as_posix()
        yield name, torch.from_numpy(motion.positions), motion.fps


def _placed(lens: Camera, positions: Tensor, name: str, seed: int) -> Camera:
    """The lens where it sees the whole motion; looks at the middle of it from further and further away until it does."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big"))
    low, high = positions.flatten(0, 1).amin(0), positions.flatten(0, 1).amax(0)
    middle = (low + high) / 2
    angle, rise = random.uniform(0, 2 * math.pi), float(low[2]) + random.uniform(0.8, 2.0) - float(middle[2])
    direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float32)
    distance = _NEAREST
    while True:
        offset = torch.cat([direction * distance, torch.tensor([rise])])
        rotation = rotation_looking_along(-offset / offset.norm())
        camera = replace(lens, rotation=rotation, translation=-rotation @ (middle + offset))
        points = camera.to_camera(positions)
        if (points[..., 2] > 0.5).all() and _inside(camera.project(points), lens.image_size):
            return camera
        distance *= 1.1


def _inside(pixels: Tensor, image_size: tuple[int, int]) -> bool:
    size = pixels.new_tensor(image_size)
    return bool(((pixels >= _MARGIN * size) & (pixels <= (1 - _MARGIN) * size)).all())
