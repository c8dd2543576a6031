"""Acclaim motion capture: a skeleton (``.asf``) and the motions recorded with it (``.amc``), as CMU publishes them.

An Acclaim bone has a rest direction in the world and axes `C` of its own, about which its motion `M` turns it: relative
to its parent it is rotated by ``C M C^-1``. A bone begins where its parent ends, and as a joint of the
`Recording` its name stands for that beginning: ``lfemur`` is the hip, ``ltibia`` the knee.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from probpose.data.bvh import Recording, parse_numbers

_ROTATIONS = ("rx", "ry", "rz")
_TRANSLATIONS = ("tx", "ty", "tz")


class _Entry(NamedTuple):
    """The words that follow a keyword, and where they stand."""

    words: list[str]
    where: str


@dataclass
class _Sections:
    """An ASF file as it is written: keyword -> entry, and who hangs from whom."""

    units: dict[str, _Entry] = field(default_factory=dict)
    root: dict[str, _Entry] = field(default_factory=dict)
    bones: list[dict[str, _Entry]] = field(default_factory=list)
    hierarchy: list[_Entry] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Bone:
    """One bone in file units: from its beginning to its end, its own axes, and its channels in file order."""

    vector: np.ndarray
    axes: Rotation
    turn_order: str
    channels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Skeleton:
    """Bones by name, parents before children. The first is `root`, a bone without length placed at `origin`."""

    bones: dict[str, _Bone]
    parents: dict[str, str]
    origin: np.ndarray
    length_unit: float


def read_amc(path: str | os.PathLike, skeleton_file: str | os.PathLike | None = None, *, fps: float = 120.0) -> Recording:
    """Read a motion and its skeleton.

    Lengths are divided by the `length` of the skeleton's `:units`; in the files of CMU (0.45) that makes them inches.

    Args:
        path: the ``.amc`` file.
        skeleton_file: its ``.asf`` file; by default the one beside it, see `find_skeleton`.
        fps: an ``.amc`` file does not tell its frame rate; CMU recorded at 120.

    Raises:
        FileNotFoundError: a file does not exist, or no skeleton was given and none can be chosen.
        ValueError: a file is of another type, is truncated or does not fit the other; names the file and the line.
    """
    path = Path(path)
    lines = _lines(path)
    skeleton = _read_skeleton(Path(skeleton_file) if skeleton_file is not None else find_skeleton(path))
    values, degrees = _read_motion(lines, path, {name: bone.channels for name, bone in skeleton.bones.items()})

    joints = list(skeleton.bones)
    last = [name for name in joints if name not in skeleton.parents.values()]
    names = joints + [f"{name}_end" for name in last]
    parents = [-1, *(joints.index(skeleton.parents[name]) for name in joints[1:]), *map(joints.index, last)]

    frames = len(values["root"])
    rotations = np.tile(np.eye(3), (frames, len(names), 1, 1))
    translations = np.zeros((frames, len(names), 3))
    translations[:, 0] = skeleton.origin
    translations[:, 1:] = [skeleton.bones[joints[parent]].vector for parent in parents[1:]]
    for index, name in enumerate(joints):
        bone = skeleton.bones[name]
        column = dict(zip(bone.channels, values[name].T, strict=True))
        turns = [axis for axis in bone.turn_order if f"r{axis}" in column]
        if turns:
            # Lower case: all turns are about fixed axes, the first of the order first.
            angles = np.stack([column[f"r{axis}"] for axis in turns], -1)
            motion = Rotation.from_euler("".join(turns), angles, degrees=degrees)
        else:
            motion = Rotation.identity(frames)
        # What the root's entry turns is the whole figure, so it stays in the pose; a bone only turns about its axes.
        turned = motion * bone.axes if name == "root" else bone.axes * motion * bone.axes.inv()
        rotations[:, index] = turned.as_matrix()
        for axis, channel in enumerate(_TRANSLATIONS):
            translations[:, index, axis] += column.get(channel, 0.0)
    return Recording(tuple(names), tuple(parents), rotations, translations / skeleton.length_unit, float(fps))


def find_skeleton(path: str | os.PathLike) -> Path:
    """The ``.asf`` file in the folder of an ``.amc`` file.

    It is the one whose stem begins the motion's (``01.asf`` for ``01_01.amc``), else the only one there.

    Raises:
        FileNotFoundError: the folder holds no ``.asf`` file, or several of which none fits.
    """
    path = Path(path)
    candidates = sorted(file for file in path.parent.iterdir() if file.suffix.lower() == ".asf")
    fitting = [file for file in candidates if f"{path.stem}_".startswith(f"{file.stem}_")]
    if fitting:
        return max(fitting, key=lambda file: len(file.stem))
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(file.name for file in candidates) or "none"
    raise FileNotFoundError(f"{path}: no .asf skeleton could be chosen beside it (found: {found}); give skeleton_file")


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and words of each line that says something; comments begin with #."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    numbered = ((number, line.split("#")[0].split()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, words) for number, words in numbered if words]


def _read_sections(path: Path) -> _Sections:
    sections = _Sections()
    section = ""
    for number, words in _lines(path):
        key = words[0].lower()
        entry = _Entry(words[1:], f"{path}, line {number}")
        if key.startswith(":"):
            section = key
        elif section == ":units":
            sections.units[key] = entry
        elif section == ":root":
            sections.root[key] = entry
        elif section == ":bonedata" and key == "begin":
            sections.bones.append({key: entry})
        elif section == ":bonedata" and key != "end":
            if not sections.bones:
                raise ValueError(f"{entry.where}: expected 'begin' before {words[0]!r}")
            sections.bones[-1][key] = entry
        elif section == ":hierarchy" and key not in ("begin", "end"):
            sections.hierarchy.append(_Entry(words, entry.where))
    if not sections.bones:
        raise ValueError(f"{path}: not an ASF skeleton, it has no bones in a :bonedata section")
    return sections


def _read_skeleton(path: Path) -> _Skeleton:
    sections = _read_sections(path)

    def default(words: str) -> _Entry:
        return _Entry(words.split(), f"{path}")

    degrees = sections.units.get("angle", default("deg")).words != ["rad"]
    orientation = sections.root.get("orientation", default("0 0 0"))
    root_order = sections.root.get("axis", default("XYZ"))
    axes, turn_order = _axes(_Entry(orientation.words + root_order.words, root_order.where), degrees)
    channels = _channels(sections.root.get("order", default("TX TY TZ RX RY RZ")), _TRANSLATIONS + _ROTATIONS)
    unattached = {"root": _Bone(np.zeros(3), axes, turn_order, channels)}
    for entries in sections.bones:
        missing = [key for key in ("name", "direction", "length") if key not in entries or not entries[key].words]
        if missing:
            raise ValueError(f"{entries['begin'].where}: the bone that begins here has no {', '.join(missing)}")
        direction = parse_numbers(entries["direction"].words, 3, entries["direction"].where)
        length = parse_numbers(entries["length"].words, 1, entries["length"].where)
        axes, turn_order = _axes(entries.get("axis", default("0 0 0 XYZ")), degrees)
        channels = _channels(entries.get("dof", default("")), _ROTATIONS)
        unattached[entries["name"].words[0]] = _Bone(direction * length, axes, turn_order, channels)

    parents: dict[str, str] = {}
    bones = {"root": unattached.pop("root")}
    for (parent, *children), where in sections.hierarchy:
        for child in children:
            if parent not in bones or child not in unattached:
                raise ValueError(f"{where}: cannot hang {child!r} from {parent!r}; parents come first, each bone once")
            parents[child] = parent
            bones[child] = unattached.pop(child)
    if unattached:
        raise ValueError(f"{path}: bones without a place in :hierarchy: {', '.join(unattached)}; is the file cut short?")

    unit = sections.units.get("length", default("1"))
    length_unit = float(parse_numbers(unit.words, 1, unit.where)[0])
    if length_unit <= 0:
        raise ValueError(f"{unit.where}: the length unit must be positive, got {length_unit:g}")
    position = sections.root.get("position", default("0 0 0"))
    return _Skeleton(bones, parents, parse_numbers(position.words, 3, position.where), length_unit)


def _axes(entry: _Entry, degrees: bool) -> tuple[Rotation, str]:
    """The rotation that three angles and an order such as ``0 0 20 XYZ`` describe, and the order in lower case."""
    order = entry.words[-1].lower() if len(entry.words) == 4 else ""
    if sorted(order) != ["x", "y", "z"]:
        found = " ".join(entry.words)
        raise ValueError(f"{entry.where}: expected three angles and an order such as 'XYZ', found {found!r}")
    return Rotation.from_euler(order, parse_numbers(entry.words[:3], 3, entry.where), degrees=degrees), order


def _channels(entry: _Entry, allowed: tuple[str, ...]) -> tuple[str, ...]:
    channels = tuple(word.lower() for word in entry.words)
    if not set(channels) <= set(allowed) or len(set(channels)) < len(channels):
        found = " ".join(entry.words)
        raise ValueError(f"{entry.where}: channels must be different ones of {', '.join(allowed)}, found {found!r}")
    return channels


def _read_motion(
    lines: list[tuple[int, list[str]]], path: Path, channels: dict[str, tuple[str, ...]]
) -> tuple[dict[str, np.ndarray], bool]:
    """Values `(frames, channels)` of each bone, and whether angles are degrees."""
    header = {words[0].upper() for _, words in lines if words[0].startswith(":")}
    if ":FULLY-SPECIFIED" not in header:
        raise ValueError(f"{path}: not an AMC motion with all its channels, it has no :FULLY-SPECIFIED line")
    moving = {name for name, listed in channels.items() if listed}
    values: dict[str, list[np.ndarray]] = {name: [] for name in channels}
    for count, (start, frame) in enumerate(_split_frames(lines, path)):
        given = {words[0]: (number, words[1:]) for number, words in frame}
        if set(given) != moving or len(given) < len(frame):
            missing = ", ".join(sorted(moving - set(given))) or "none"
            unknown = ", ".join(sorted(set(given) - moving)) or "none"
            raise ValueError(
                f"{path}, line {start}: frame {count + 1} must hold every moving bone of the skeleton once "
                f"(missing: {missing}; not in the skeleton: {unknown}); is the file cut short?"
            )
        for name, listed in channels.items():
            number, words = given.get(name, (start, []))
            values[name].append(parse_numbers(words, len(listed), f"{path}, line {number}"))
    if not values["root"]:
        raise ValueError(f"{path}: the file holds no frames")
    return {name: np.stack(rows) for name, rows in values.items()}, ":RADIANS" not in header


def _split_frames(lines: list[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, list[tuple[int, list[str]]]]]:
    """The line on which each frame begins and its lines. A frame begins with its number alone on a line."""
    start, frame = 0, []
    for number, words in lines:
        if words[0].startswith(":"):
            continue
        if len(words) == 1 and words[0].isdigit():
            if start:
                yield start, frame
            start, frame = number, []
        elif start:
            frame.append((number, words))
        else:
            raise ValueError(f"{path}, line {number}: expected the number of the first frame, found {words[0]!r}")
    if start:
        yield start, frame
