"""A long table (`.csv`): one row per frame and joint, for spreadsheets, pandas and R.

Columns: `frame` (number in the video), `time` (seconds, frame / fps), `joint` (its name), `x`, `y`, `z` (metres, camera axes: x right,
y down, z forward), `uncertainty` (metres; empty if unknown) and, where the motion has hypotheses, `hypothesis`: empty in the rows of the
pose, which come first, then 0, 1, … The place includes the root trajectory, if there is one: the rows of the root joint are that
trajectory, and poses relative to it are differences from them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import product, repeat
from pathlib import Path

import numpy as np

from .motion import Motion


def write_csv(motion: Motion, path: Path) -> None:
    """Write a motion and its hypotheses."""
    several = motion.hypotheses is not None
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["frame", "time", "joint", "x", "y", "z", "uncertainty", *(["hypothesis"] if several else [])])
        table.writerows(_rows(motion, motion.pose, motion.uncertainty, [""] if several else []))
        for k, hypothesis in enumerate(motion.hypotheses if several else []):
            table.writerows(_rows(motion, hypothesis, None, [k]))


def _rows(motion: Motion, pose: np.ndarray, uncertainty: np.ndarray | None, last: list) -> Iterator[list]:
    radii = repeat("") if uncertainty is None else (f"{radius:.6f}" for radius in uncertainty.ravel())
    places = motion.in_camera(pose).reshape(-1, 3).tolist()
    for (frame, joint), (x, y, z), radius in zip(product(motion.frames.tolist(), motion.skeleton.joint_names), places, radii):
        yield [frame, f"{frame / motion.fps:.6f}", joint, f"{x:.6f}", f"{y:.6f}", f"{z:.6f}", radius, *last]
