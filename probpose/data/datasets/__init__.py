"""Readers of the field's data sets. Each turns files as published into `PoseClip`s: 2D, confidence, 3D in camera space, camera, fps.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "PoseClip": "clips",
    "PoseDataset": "clips",
    "list_datasets": "registry",
    "load_dataset": "registry",
    "read_3dpw": "three_dpw",
    "read_human36m": "human36m",
    "read_humaneva": "humaneva",
    "read_mocap17": "mocap17",
    "read_motions": "motions",
    "read_mpi_inf_3dhp": "mpi_inf_3dhp",
    "recognise_dataset": "registry",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
