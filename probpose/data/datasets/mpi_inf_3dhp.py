"""MPI-INF-3DHP (Mehta et al., 3DV 2017): the official test set, and both splits as the lifting literature prepares them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probpose.geometry import Camera, fit_lens

from .checks import check_clips, numbers, reprojection
from .clips import PoseClip, PoseDataset
from .pickles import load_npz

ANNOTATIONS = ("annot3", "univ_annot3")
SPLITS = ("test", "train")
TEST_SEQUENCES = ("TS1", "TS2", "TS3", "TS4", "TS5", "TS6")
ACTIVITIES = ("Standing/Walking", "Exercising", "Sitting", "Reaching/Crouching", "On the floor", "Sports", "Miscellaneous")

# Lens of the test cameras: focal length, offset of the principal point from the centre and sensor in mm, image in pixels, fy / fx.
_STUDIO = (7.32506, (-0.0322884, 0.0929296), (10.0, 10.0), (2048, 2048), 1.00044)
_OUTDOORS = (8.770747185, (-0.104908645, 0.104899704), (10.0, 5.625), (1920, 1080), 0.993236423)
_TRAINING_IMAGE = (2048, 2048)
_TRAINING_50_FPS = ("S1 Seq2", "S3 Seq1", "S3 Seq2", "S5 Seq1", "S5 Seq2")  # the others were filmed at 25
_TEST_FPS = 25.0


def read_mpi_inf_3dhp(
    path: str | Path,
    keypoints: str = "gt",
    annotation: str = "annot3",
    split: str = "test",
    pixel_aspect: bool = True,
    sequences: Iterable[str] | None = None,
    valid_only: bool = False,
) -> PoseDataset:
    """Reads MPI-INF-3DHP in its own 17 joints (`mpi_inf_3dhp_17`, root 14).

    Test clips are named "TS1" and scored on the frames that the benchmark calls valid; training clips "S1/Seq1/0" (subject, sequence,
    camera). Tags: `dataset`, `split`, `sequence`, `subject`, `camera` (training), `activity` (test, where a clip has only one).

    Args:
        path: `data_test_3dhp.npz` or `data_train_3dhp.npz` (one entry `data`: sequence to `data_3d`, `data_2d` and, for the test,
            `valid`), a folder with them, or the official `mpi_inf_3dhp_test_set`, or one `annot_data.mat` of it (which need h5py).
        keypoints: "gt", the annotated keypoints; the data set has no others.
        annotation: "annot3", true sizes, or "univ_annot3", rescaled to one universal skeleton, which no longer reprojects onto the
            keypoints. The prepared archives hold one annotation and do not tell which; a note does if it does not reproject.
        split: "test" or "train".
        pixel_aspect: False takes fy = fx in the test set as the published evaluation of D3DP (Shan et al., ICCV 2023) does, at the price of
            about 1.4 pixels in TS5 and TS6.
        sequences: keep these, such as `["TS5", "TS6"]` or `["S1 Seq1"]`.
        valid_only: leave out the frames that are not valid; the rest is no longer evenly spaced in time.

    Returns:
        Clips in metres. Training clips have no published camera in this layout: theirs is the pinhole that fits keypoints and poses
        best, and a note gives the residual. Frame rates are those of the videos in the training set; the test set states none and
        is taken for 25 fps.

    Raises:
        FileNotFoundError: nothing of this data set at `path`.
        ImportError: h5py is not installed (`pip install probpose[datasets]`), for the official files.
        ValueError: an unknown option or sequence, a damaged file, missing keys, other shapes, another unit than millimetres.
    """
    for name, value, allowed in (("keypoints", keypoints, ("gt",)), ("annotation", annotation, ANNOTATIONS), ("split", split, SPLITS)):
        if value not in allowed:
            raise ValueError(f"{name} of MPI-INF-3DHP must be one of {allowed}, got {value!r}")
    path = Path(path)
    records = _records(path, split, annotation)
    if sequences is not None:
        wanted = {sequences} if isinstance(sequences, str) else set(sequences)
        if not wanted or wanted - records.keys():
            raise ValueError(f"{path}: sequences must be among {sorted(records)}, got {sorted(wanted)}")
        records = {name: record for name, record in records.items() if name in wanted}
    read = _test_clip if split == "test" else _training_clips
    clips = tuple(clip for name in sorted(records) for clip in read(path, name, records[name], pixel_aspect))
    if not clips:
        raise ValueError(f"{path} holds no sequences of the split {split!r}")
    notes = (*check_clips(clips, str(path)), *_reprojection_notes(clips, split))
    if valid_only:
        clips = tuple(_only_valid(clip, str(path)) for clip in clips)
    return PoseDataset(clips, name=f"mpi_inf_3dhp {split} {keypoints}", protocol="3dhp", notes=notes)


def mpi_inf_3dhp_camera(sequence: str, pixel_aspect: bool = True) -> Camera:
    """Camera of a test sequence, undistorted: f pixels = f mm · pixels / sensor, and the centre likewise from the image's centre.

    Args:
        sequence: "TS1" to "TS6".
        pixel_aspect: False takes fy = fx.

    Raises:
        ValueError: an unknown sequence.
    """
    if sequence not in TEST_SEQUENCES:
        raise ValueError(f"test sequences of MPI-INF-3DHP are {list(TEST_SEQUENCES)}, got {sequence!r}")
    focal, offset, sensor, image, aspect = _OUTDOORS if sequence in ("TS5", "TS6") else _STUDIO
    density = np.divide(image, sensor)
    focal = focal * density[0] * np.array([1.0, aspect if pixel_aspect else 1.0])
    return _pinhole(focal, offset * density + np.divide(image, 2), image)


def _pinhole(focal: np.ndarray, centre: np.ndarray, image_size: tuple[int, int]) -> Camera:
    focal, centre = (torch.from_numpy(value).float() for value in (focal, centre))
    return Camera(focal, centre, image_size=image_size, slope_limit=math.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _records(path: Path, split: str, annotation: str) -> dict[str, Any]:
    """Sequence to record: the dict of a test sequence, or what a training sequence holds."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    prepared = f"data_{split}_3dhp.npz"
    archive = path / prepared if path.is_dir() else path
    if path.suffix == ".mat":
        data = {path.parent.name: _read_mat(path, annotation)}
    elif archive.is_file():
        data = load_npz(archive, ["data"])["data"]
    else:
        folder = path / "mpi_inf_3dhp_test_set" if (path / "mpi_inf_3dhp_test_set").is_dir() else path
        data = {file.parent.name: _read_mat(file, annotation) for file in folder.glob("TS*/annot_data.mat")}
        if not data:
            raise FileNotFoundError(f"{path} has no {prepared} and no TS1..TS6/annot_data.mat")
    pattern, expected = (r"TS[1-6]", "TS1 to TS6") if split == "test" else (r"S\d+ Seq\d+", "'S1 Seq1' and so on")
    if not (isinstance(data, dict) and data and all(isinstance(name, str) and re.fullmatch(pattern, name) for name in data)):
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: the sequences of the split {split!r} must be {expected}, got {found}")
    return data


def _read_mat(path: Path, annotation: str) -> dict[str, np.ndarray]:
    """The arrays of an official file under the names of the prepared ones. MATLAB 7.3 is HDF5, with the axes reversed."""
    try:
        import h5py
    except ImportError:
        raise ImportError("the official files of MPI-INF-3DHP need h5py: pip install probpose[datasets]") from None
    keys = {"data_2d": "annot2", "data_3d": annotation, "valid": "valid_frame", "activity": "activity_annotation"}
    shapes = {"data_2d": (None, 1, 17, 2), "data_3d": (None, 1, 17, 3), "valid": (None, 1), "activity": (None, 1)}
    try:
        with h5py.File(path, "r") as file:
            if missing := [key for key in keys.values() if key not in file]:
                raise ValueError(f"{path} lacks {missing}; its keys are {sorted(file)}")
            arrays = {name: file[key][()] for name, key in keys.items()}
    except (OSError, AttributeError, RuntimeError, TypeError) as error:  # damaged HDF5, or a group in place of an array
        raise ValueError(f"{path} is not a whole MATLAB 7.3 (HDF5) file: {error}") from None
    return {name: numbers(array, shapes[name], f"{path}: {keys[name]}")[:, 0] for name, array in arrays.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Clips
# ---------------------------------------------------------------------------------------------------------------------


def _test_clip(path: Path, name: str, record: Any, pixel_aspect: bool) -> Iterator[PoseClip]:
    points, keypoints = _arrays(path, name, record, ("data_2d", "data_3d", "valid"))
    where = f"{path}, {name}"
    valid = record["valid"].reshape(-1) if isinstance(record["valid"], np.ndarray) else record["valid"]
    valid = numbers(valid, (len(points),), f"{where}, valid") == 1
    tags = {"dataset": "mpi_inf_3dhp", "split": "test", "sequence": name, "subject": name}
    if "activity" in record:
        activity = np.unique(numbers(record["activity"], (len(points),), f"{where}, activity_annotation")[valid])
        if len(activity) == 1 and activity[0] in range(1, 8):
            tags["activity"] = ACTIVITIES[int(activity[0]) - 1]
    yield _clip(name, points, keypoints, mpi_inf_3dhp_camera(name, pixel_aspect), _TEST_FPS, tags, torch.from_numpy(valid))


def _training_clips(path: Path, name: str, record: Any, pixel_aspect: bool) -> Iterator[PoseClip]:
    """One clip per camera; a fitted lens has the pixel aspect that the data show."""
    fps = 50.0 if name in _TRAINING_50_FPS else 25.0
    if isinstance(record, (list, tuple, np.ndarray)) and len(record):  # [cameras] or [cameras, frames per second]
        if len(record) > 1 and isinstance(record[1], (int, float, np.number)) and record[1] > 0:
            fps = float(record[1])
        record = record[0]
    if not isinstance(record, Mapping):
        raise ValueError(f"{path}, {name}: expected a dict from camera to data_2d and data_3d, got {type(record).__name__}")
    subject, sequence = name.split()
    for view, arrays in sorted(record.items(), key=lambda item: str(item[0])):
        clip_name = f"{subject}/{sequence}/{view}"
        points, keypoints = _arrays(path, clip_name, arrays, ("data_2d", "data_3d"))
        try:
            camera = fit_lens(torch.from_numpy(points), torch.from_numpy(keypoints), _TRAINING_IMAGE)
        except ValueError as error:
            raise ValueError(f"{path}, {clip_name}: data_3d and data_2d do not tell the lens: {error}") from None
        tags = {"dataset": "mpi_inf_3dhp", "split": "train", "sequence": sequence, "subject": subject, "camera": str(view)}
        yield _clip(clip_name, points, keypoints, camera, fps, tags, None)


def _arrays(path: Path, name: str, record: Any, keys: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Points `(frames, 17, 3)` in metres and keypoints `(frames, 17, 2)` in pixels."""
    if not isinstance(record, Mapping) or any(key not in record for key in keys):
        found = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(f"{path}, {name}: expected a dict with {list(keys)}, got {found}")
    points = numbers(record["data_3d"], (None, 17, 3), f"{path}, {name}, data_3d")
    return points / 1000, numbers(record["data_2d"], (len(points), 17, 2), f"{path}, {name}, data_2d")


def _clip(
    name: str, points: np.ndarray, keypoints: np.ndarray, camera: Camera, fps: float, tags: dict[str, str], valid: torch.Tensor | None
) -> PoseClip:
    keypoints = torch.from_numpy(keypoints).float()
    confidence = torch.isfinite(keypoints).all(-1).float()
    points = torch.from_numpy(points).float()
    return PoseClip(name, keypoints, confidence, points, camera, fps, skeleton="mpi_inf_3dhp_17", valid=valid, tags=tags)


def _only_valid(clip: PoseClip, where: str) -> PoseClip:
    keep = clip.valid
    if keep is None:
        return clip
    if not keep.any():
        raise ValueError(f"{where}: {clip.name} has no valid frame, so nothing is left of it with valid_only")
    per_frame = ("keypoints_2d", "confidence", "positions_camera", "valid")
    return replace(clip, **{name: getattr(clip, name)[keep] for name in per_frame})


def _reprojection_notes(clips: tuple[PoseClip, ...], split: str) -> tuple[str, ...]:
    residuals = {clip.name: np.nan_to_num(reprojection(clip)[0].nanmedian().item()) for clip in clips}
    if split == "train":
        worst = max(residuals, key=residuals.__getitem__)
        return (
            f"the lens of {len(clips)} training clips was fitted to keypoints and poses, which then agree within "
            f"{np.median(list(residuals.values())):.2f} px (median), at worst {residuals[worst]:.2f} px in {worst}",
        )
    # The true annotation agrees within a pixel or so; what is rescaled to the universal skeleton is off by several.
    far = ", ".join(f"{residual:.1f} px in {name}" for name, residual in residuals.items() if residual > 2)
    return (f"the poses do not reproject onto the keypoints, as with univ_annot3, the universal skeleton: {far}",) if far else ()
