"""One call for every data set: by name, or recognised by its files."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .clips import PoseDataset


class _Reader(NamedTuple):
    module: str
    function: str
    description: str
    layout: str


_READERS = {
    "h36m": _Reader(
        "human36m",
        "read_human36m",
        "Human3.6M: 4 cameras, 50 fps; CPN, Mask R-CNN or true keypoints",
        "a folder with data_3d_h36m.npz and data_2d_h36m_<keypoints>.npz",
    ),
    "3dhp": _Reader(
        "mpi_inf_3dhp",
        "read_mpi_inf_3dhp",
        "MPI-INF-3DHP: the test set TS1 to TS6, or the training set; annotated keypoints",
        "a folder with data_test_3dhp.npz or data_train_3dhp.npz, or with TS1/annot_data.mat ...; one such file",
    ),
    "3dpw": _Reader(
        "three_dpw",
        "read_3dpw",
        "3DPW: people outdoors before a moving camera, 30 fps; projected or detected keypoints",
        "the folder sequenceFiles, one of its splits, or one .pkl file",
    ),
    "humaneva": _Reader(
        "humaneva",
        "read_humaneva",
        "HumanEva-I: 15 joints, 3 cameras, 60 fps; true or Mask R-CNN keypoints",
        "a folder with data_3d_humaneva15.npz and data_2d_humaneva15_<keypoints>.npz",
    ),
    "mocap17": _Reader(
        "mocap17",
        "read_mocap17",
        "mocap17 benchmark: motion capture before virtual cameras; detector-like or true keypoints",
        "an .npz file with keypoints_detected, positions_camera, ...",
    ),
    "motions": _Reader(
        "motions",
        "read_motions",
        "motion capture of your own before virtual cameras; true keypoints",
        "a .bvh or .amc file, a folder of them, or an .npz archive with root, local, starts, ...",
    ),
}

_SUFFIXES = {".bvh": "motions", ".amc": "motions", ".mat": "3dhp", ".pkl": "3dpw"}

# The first whose entries are all in an archive.
_ENTRIES = {"mocap17": {"keypoints_detected", "positions_camera"}, "motions": {"root", "local", "starts"}, "3dhp": {"data"}}

# Files by which a folder is recognised, shell patterns.
_PATTERNS = {
    "h36m": ("data_3d_h36m.npz",),
    "humaneva": ("data_3d_humaneva15.npz",),
    "3dhp": ("data_test_3dhp.npz", "data_train_3dhp.npz", "TS*/annot_data.mat", "mpi_inf_3dhp_test_set/TS*/annot_data.mat"),
    "3dpw": ("*.pkl", "*/*.pkl", "sequenceFiles/*/*.pkl"),
}


def load_dataset(path: str | Path, dataset: str | None = None, **options: Any) -> PoseDataset:
    """Reads a data set of motions seen by cameras.

    Args:
        path: where it lies.
        dataset: its name, see `list_datasets`; None = recognised by the files at `path`.
        options: of its reader, such as `keypoints="gt"`, `subjects=["S9"]`, `split="test"`.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: an unknown name or option, files that are of no known data set or of several, and what the reader refuses.
    """
    path = Path(path)
    if dataset is None:
        dataset = recognise_dataset(path)
        if dataset is None:
            raise ValueError(f"{path} is of no known data set; looked for\n{_layouts(_READERS)}")
    elif dataset not in _READERS:
        raise ValueError(f"unknown data set {dataset!r}; known are {', '.join(_READERS)}")
    reader = _READERS[dataset]
    read = getattr(import_module(f"{__package__}.{reader.module}"), reader.function)
    allowed = [name for name in inspect.signature(read).parameters if name != "path"]
    if unknown := sorted(set(options) - set(allowed)):
        raise ValueError(f"data set {dataset!r} has no option {', '.join(unknown)}; its options are {', '.join(allowed)}")
    return read(path, **options)


def list_datasets() -> dict[str, str]:
    """Name to description, a line each, of every data set that can be read."""
    return {name: reader.description for name, reader in _READERS.items()}


def recognise_dataset(path: str | Path) -> str | None:
    """Name of the data set whose files are at `path`, None if they are of no known one.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: files of several data sets, or an archive that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if len(found) > 1:
        raise ValueError(f"{path} holds several data sets; choose one with dataset=\n{_layouts(found)}")
    return found[0] if found else None


def _layouts(names: Iterable[str]) -> str:
    return "\n".join(f"  {name}: {_READERS[name].layout}" for name in names)


def _of_file(path: Path) -> list[str]:
    from .pickles import list_npz

    if path.suffix.lower() != ".npz":
        return [_SUFFIXES[path.suffix.lower()]] if path.suffix.lower() in _SUFFIXES else []
    entries = set(list_npz(path))
    if "positions_3d" in entries:
        return ["humaneva" if "humaneva" in path.name.lower() else "h36m"]
    return [name for name, needed in _ENTRIES.items() if needed <= entries][:1]


def _of_folder(path: Path) -> list[str]:
    found = [name for name, patterns in _PATTERNS.items() if any(any(path.glob(pattern)) for pattern in patterns)]
    if found:
        return found
    from .motions import motion_files

    return ["motions"] if motion_files(path) else []
