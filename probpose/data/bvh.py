"""Biovision Hierarchy (``.bvh``) files: a tree of joints and one line of channel values per frame.

`Recording` is what any skeleton animation comes down to once its file is parsed: a tree of joints, each with its
motion relative to its parent. `read_bvh` fills one from a BVH file; the Acclaim reader fills the same one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

_CHANNELS = [f"{axis}{kind}" for kind in ("position", "rotation") for axis in "xyz"]

# Writers round the frame time ("0.0083333"), so a rate this close to a whole number is meant to be that number.
# It is small enough to leave 29.97 and 59.94 alone.
_FPS_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class Recording:
    """A moving tree of joints in the axes and the unit of its file.

    Args:
        names: one name per joint; the free end of a last bone is named after its joint, ``"Head_end"``.
        parents: `(joints,)` index of each joint's parent, always smaller than the joint's own; -1 for the root.
        rotations: `(frames, joints, 3, 3)` from a joint's axes to its parent's.
        translations: `(frames, joints, 3)` place of a joint in its parent's axes.
        fps: frames per second.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    rotations: np.ndarray
    translations: np.ndarray
    fps: float

    def joint_positions(self) -> np.ndarray:
        """Forward kinematics: `(frames, joints, 3)` positions of all joints in the world."""
        axes = np.empty_like(self.rotations)
        positions = np.empty_like(self.translations)
        for joint, parent in enumerate(self.parents):
            if parent < 0:
                axes[:, joint] = self.rotations[:, joint]
                positions[:, joint] = self.translations[:, joint]
            else:
                axes[:, joint] = axes[:, parent] @ self.rotations[:, joint]
                step = np.einsum("fij,fj->fi", axes[:, parent], self.translations[:, joint])
                positions[:, joint] = positions[:, parent] + step
        return positions


def read_bvh(path: str | os.PathLike) -> Recording:
    """Read a BVH file.

    Rotation channels compose in the order in which the file lists them, each about the axes left by the one before.
    Position channels replace the OFFSET of their joint, as the files of MotionBuilder, Blender and the large public
    data sets mean it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a BVH file, is truncated or inconsistent; the message names the file and the line.
    """
    path = Path(path)
    statements = _statements(path)
    names, parents, offsets, channels = _read_hierarchy(statements, path)
    values, fps = _read_motion(statements, sum(map(len, channels)), path)

    translations = np.tile(offsets, (len(values), 1, 1))
    rotations = np.tile(np.eye(3), (len(values), len(names), 1, 1))
    first = 0
    for joint, joint_channels in enumerate(channels):
        turns, angles = "", []
        for column, channel in enumerate(joint_channels, start=first):
            if channel.endswith("position"):
                translations[:, joint, "xyz".index(channel[0])] = values[:, column]
            else:
                turns += channel[0].upper()
                angles.append(values[:, column])
        if turns:
            rotations[:, joint] = Rotation.from_euler(turns, np.stack(angles, -1), degrees=True).as_matrix()
        first += len(joint_channels)
    return Recording(tuple(names), tuple(parents), rotations, translations, fps)


def parse_numbers(words: list[str], count: int, where: str) -> np.ndarray:
    """`(count,)` float64 from exactly `count` finite numbers; ValueError beginning with `where` otherwise."""
    if len(words) != count:
        raise ValueError(f"{where}: expected {count} numbers, found {len(words)}")
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: every number must be finite, found {' '.join(words)}")
    return values


def _statements(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each statement; braces stand alone wherever the writer put them."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        for part in re.split(r"([{}])", line):
            if words := part.split():
                yield number, words


def _read_hierarchy(statements: Iterator[tuple[int, list[str]]], path: Path) -> tuple[list[str], list[int], np.ndarray, list[list[str]]]:
    """Names, parents, rest offsets `(joints, 3)` and channel names of all joints, up to the word MOTION."""
    number, words = next(statements, (1, [""]))
    if words[0].upper() != "HIERARCHY":
        raise ValueError(f"{path}, line {number}: not a BVH file, it must begin with HIERARCHY")

    names: list[str] = []
    parents: list[int] = []
    offsets: list[np.ndarray | None] = []
    channels: list[list[str]] = []
    open_joints: list[int] = []
    for number, words in statements:
        where = f"{path}, line {number}"
        keyword = words[0].upper()
        if keyword == "MOTION":
            break
        if (keyword == "ROOT") != (not names) or (keyword != "ROOT" and keyword != "{" and not open_joints):
            raise ValueError(f"{where}: unexpected {' '.join(words)!r}; a file holds one ROOT and its joints in braces")
        if keyword in ("ROOT", "JOINT", "END"):
            parent = open_joints[-1] if open_joints else -1
            names.append(f"{names[parent]}_end" if keyword == "END" else " ".join(words[1:]))
            parents.append(parent)
            offsets.append(None)
            channels.append([])
        elif keyword == "{":
            open_joints.append(len(names) - 1)
        elif keyword == "}":
            open_joints.pop()
        elif keyword == "OFFSET":
            offsets[open_joints[-1]] = parse_numbers(words[1:], 3, where)
        elif keyword == "CHANNELS":
            listed = [word.lower() for word in words[2:]]
            if words[1:2] != [str(len(listed))] or len(set(listed)) < len(listed) or not set(listed) <= set(_CHANNELS):
                allowed = ", ".join(_CHANNELS)
                raise ValueError(f"{where}: CHANNELS must give their number and as many different of {allowed}")
            channels[open_joints[-1]] = listed
        else:
            raise ValueError(f"{where}: unexpected {' '.join(words)!r} in the hierarchy")
    else:
        raise ValueError(f"{path}, line {number}: the file ends before MOTION")

    if not names or open_joints:
        raise ValueError(f"{path}, line {number}: MOTION before the hierarchy is complete")
    for name, offset in zip(names, offsets, strict=True):
        if offset is None:
            raise ValueError(f"{path}, line {number}: joint {name!r} has no OFFSET")
    return names, parents, np.stack(offsets), channels


def _read_motion(statements: Iterator[tuple[int, list[str]]], width: int, path: Path) -> tuple[np.ndarray, float]:
    """The channel values `(frames, width)` and the frame rate, from the statements after MOTION."""
    header = []
    for title in ("Frames:", "Frame Time:"):
        number, words = next(statements, (None, []))
        if number is None:
            raise ValueError(f"{path}: the file ends before '{title}'")
        where, line = f"{path}, line {number}", " ".join(words)
        if not line.lower().startswith(title.lower()):
            raise ValueError(f"{where}: expected '{title}', found {line!r}")
        header.append(float(parse_numbers(line[len(title) :].split(), 1, where)[0]))
        if header[-1] <= 0:
            raise ValueError(f"{where}: '{title}' must be positive, got {header[-1]:g}")
    frames, frame_time = header

    rows = [parse_numbers(words, width, f"{path}, line {number}") for number, words in statements]
    if len(rows) != frames:
        raise ValueError(f"{path}: 'Frames:' announces {frames:g} frames, the file holds {len(rows)}")
    fps = 1 / frame_time
    return np.stack(rows), float(round(fps)) if abs(fps - round(fps)) < _FPS_TOLERANCE else fps
