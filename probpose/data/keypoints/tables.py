"""Keypoints in tables (CSV) and HDF5 files: DeepLabCut, SLEAP, and MediaPipe's landmarks as people save them row by row.

In DeepLabCut and SLEAP every project names its own joints, in an order of its own, so they are told by their names.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np

from .detections import Detections
from .formats import FRAME_KEYS
from .joint_sets import match_names

_LANDMARK_COLUMNS = ("landmark", "landmark_id", "landmark_index", "landmark_idx")
_WRITTEN_OUT = {"v": "visibility"}
_NOBODY = (np.nan, np.nan, 0.0)


def read_rows(text: str) -> list[list[str]]:
    """The rows of a table, without empty ones. Raises ValueError if they are not of one length."""
    rows = [row for row in csv.reader(text.splitlines()) if any(row)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(f"expected {len(rows[0])} cells in every row of the table, found {len(row)} in row {number}")
    return rows


def sniff_rows(rows: list[list[str]]) -> str | None:
    """Format of a table by its header, or None."""
    header = {cell.lower() for cell in rows[0]}
    if rows[0][0] == "scorer":
        return "deeplabcut"
    if "frame_idx" in header and any(cell.endswith(".x") for cell in header):
        return "sleap"
    numbered = sum(bool(re.fullmatch(r"[xy]_?\d+", cell)) for cell in header)
    if numbered == 66 or ({"x", "y"} <= header and not header.isdisjoint(_LANDMARK_COLUMNS)):
        return "mediapipe"
    return None


def load_sleap(path: Path) -> dict[str, np.ndarray | None]:
    """The arrays of SLEAP's analysis file by name; of any other HDF5 file only the names.

    Raises:
        ImportError: h5py is not installed (`pip install probpose[datasets]`).
        ValueError: the file is no HDF5 file or is cut short.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: HDF5 files need h5py: pip install probpose[datasets]") from None
    try:
        with h5py.File(path, "r") as file:
            known = {"tracks", "node_names"} <= set(file)
            return {name: item[()] if known else None for name, item in file.items()}
    except OSError as error:
        raise ValueError(f"expected an HDF5 file, found one that cannot be read ({error})") from error


# ---------------------------------------------------------------------------------------------------------------------
# Joints by name: DeepLabCut and SLEAP
# ---------------------------------------------------------------------------------------------------------------------


def deeplabcut(rows: list[list[str]], skeleton: str | None = None) -> Detections:
    """A row per frame below three or four rows of headers: scorer, (individuals,) bodyparts, coords (x, y, likelihood).

    What a project with several individuals tracks besides them stands under "single" and is left out.
    """
    heads = [row[0] for row in rows[:4]]
    if "coords" not in heads:
        raise ValueError(f"expected rows 'scorer', 'bodyparts' and 'coords' at the top, found {', '.join(map(repr, heads))}")
    depth = heads.index("coords") + 1
    columns = list(zip(*rows[1:depth]))
    values = [index for index, column in enumerate(columns) if column[-1] in ("x", "y", "likelihood")]
    place = {columns[index]: number for number, index in enumerate(values)}
    individuals = list(dict.fromkeys(column[:-2] for column in place))
    if len(individuals) > 1 and ("single",) in individuals:
        individuals.remove(("single",))
    names = list(dict.fromkeys(column[-2] for column in place if column[:-2] in individuals))
    found, order = _by_name(names, skeleton)

    # Cells, and one more for all that have no column.
    table = np.array([[*(float(row[index] or "nan") for index in values), np.nan] for row in rows[depth:]])
    cells = [[[place.get((*who, name, axis), -1) for axis in ("x", "y", "likelihood")] for name in names] for who in individuals]
    people = table.reshape(-1, len(values) + 1)[:, np.array(cells)]
    if not any(column[-1] == "likelihood" for column in place):
        people[..., 2] = 1.0  # labelled by hand
    for row, frame in zip(rows[depth:], people):
        index = [cell for number, cell in enumerate(row) if number not in values]
        label = int(index[0]) if index[0].isdigit() else "/".join(index)
        found.labels[label] = None
        for who, points in zip(individuals, frame):
            _add(found, label, points, order, None, who[0] if who else 0)
    return found


def sleap(content: dict[str, np.ndarray] | list[list[str]], skeleton: str | None = None) -> Detections:
    """An analysis file, or a table with columns `track, frame_idx, instance.score, NODE.x, NODE.y, NODE.score`."""
    return _sleap_rows(content, skeleton) if isinstance(content, list) else _sleap_arrays(content, skeleton)


def _sleap_arrays(arrays: dict[str, np.ndarray], skeleton: str | None) -> Detections:
    """`tracks (tracks, 2, nodes, frames)`, in MATLAB's order of axes, and `point_scores (tracks, nodes, frames)`."""
    nodes, people = ([name.decode() for name in arrays.get(key, np.empty(0)).tolist()] for key in ("node_names", "track_names"))
    found, order = _by_name(nodes, skeleton)
    if arrays["tracks"].ndim != 4 or arrays["tracks"].shape[1:3] != (2, len(nodes)):
        raise ValueError(f"expected tracks of shape (tracks, 2, {len(nodes)} nodes, frames), found {arrays['tracks'].shape}")
    points = np.transpose(arrays["tracks"], (3, 0, 2, 1))
    scores = np.transpose(arrays["point_scores"], (2, 0, 1)) if "point_scores" in arrays else np.ones(points.shape[:3])
    scores = np.nan_to_num(scores, nan=1.0)  # of what was labelled by hand
    found.note("frames count from the first one in the export")
    for frame, (each, trust) in enumerate(zip(points, scores, strict=True)):
        found.labels[frame] = None
        for track, person in enumerate(each):
            _add(found, frame, np.column_stack([person, trust[track]]), order, None, people[track] if people else None)
    return found


def _sleap_rows(rows: list[list[str]], skeleton: str | None) -> Detections:
    header = rows[0]
    nodes = [cell.removesuffix(".x") for cell in header if cell.endswith(".x")]
    found, order = _by_name(nodes, skeleton)
    for cells in rows[1:]:
        row = dict(zip(header, cells))
        person = [[float(row.get(f"{node}.{key}") or empty) for key, empty in (("x", "nan"), ("y", "nan"), ("score", 1))] for node in nodes]
        score = float(row["instance.score"]) if row.get("instance.score") else None
        found.labels[int(row["frame_idx"])] = None
        _add(found, int(row["frame_idx"]), np.array(person), order, score, row.get("track") or None)
    return found


def _by_name(names: list[str], skeleton: str | None) -> tuple[Detections, np.ndarray]:
    """Detections of the skeleton with these joints, and for each of its joints the place among the names, -1 for none."""
    found = Detections()
    found.skeleton, places = match_names(names, skeleton)
    if unknown := [name for index, name in enumerate(names) if index not in places]:
        found.note(f"joints that {found.skeleton} does not have were left out: {', '.join(unknown)}")
    return found, np.array([-1 if place is None else place for place in places])


def _add(
    found: Detections, label: int | str, points: np.ndarray, order: np.ndarray, score: float | None, track_id: int | str | None
) -> None:
    """Add a person `(names, 3)`, if any of the joints is there."""
    points = np.vstack([points, _NOBODY])[order]
    if np.isfinite(points[:, :2]).all(-1).any():
        found.add(label, points.ravel().tolist(), score, track_id)


# ---------------------------------------------------------------------------------------------------------------------
# Landmarks by number: MediaPipe
# ---------------------------------------------------------------------------------------------------------------------


def landmarks_of_rows(rows: list[list[str]]) -> list[dict[str, Any]]:
    """Frames as in MediaPipe's JSON, from a row per frame (`frame, x0, y0, z0, v0, x1, …`) or per landmark (`frame, landmark, x, y, …`)."""
    header = [cell.lower() for cell in rows[0]]
    numbered = [re.fullmatch(r"(x|y|v|visibility)_?(\d+)", name) for name in header]
    frames: dict[int, dict[int, dict[str, float]]] = {}
    for number, cells in enumerate(rows[1:]):
        row = dict(zip(header, cells))
        person = frames.setdefault(next((int(float(row[key])) for key in FRAME_KEYS if row.get(key)), number), {})
        if any(numbered):
            for cell, match in zip(cells, numbered):
                if match and cell:
                    person.setdefault(int(match[2]), {})[_WRITTEN_OUT.get(match[1], match[1])] = float(cell)
        elif row["x"]:
            landmark = next(row[key] for key in _LANDMARK_COLUMNS if key in row)
            person[int(landmark)] = {key: float(row[key]) for key in ("x", "y", "visibility") if row.get(key)}
    return [{"frame": frame, "landmarks": [person[number] for number in sorted(person)]} for frame, person in frames.items()]
