"""From the people a tool found in single frames to tracks: everything that is the same for all file formats."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from .joint_sets import DETECTOR_DEFAULTS, choose_skeleton
from .linking import link
from .tracks import KeypointTrack, check_fps, longest_first

NORMALISED = 1.05
"""Coordinates up to here may be fractions of the image size (a little more for joints just outside the image)."""

MAX_VALUES = 500_000_000
"""More numbers than this in the tracks of one file mean that its frame numbers are no frame numbers."""


@dataclass
class Detections:
    """The people in the frames of a file, as its format describes them.

    Attributes:
        points: per person a flat list x, y, third number of every joint.
        label: per person the frame: a number, or a name that holds one (`"clip_000000000012"`).
        score: per person the tool's score, or None; decides between people that claim the same identity.
        track_id: per person an identity, or None.
        labels: all frames in the file, also those without people (the keys of the dictionary, in order).
        first_frame: number this format gives the first frame of a video.
        units: `"pixels"`; `"unit"` for fractions of width and height; `"either"` if the values decide.
        third: what the third number is: a `"confidence"`, a visibility `"flag"` (0 missing, 1, 2 seen), a confidence
            `"or flag"`, or a confidence `"or logit"`.
        skeleton: the skeleton the file names.
        defaults: skeletons this format means by an ambiguous number of joints.
        question: why the file's joint names cannot be understood.
        image_sizes: all image sizes in the file.
        fps: frames per second in the file.
        notes: remarks for the user.
    """

    points: list[Sequence[float]] = field(default_factory=list)
    label: list[int | str] = field(default_factory=list)
    score: list[float | None] = field(default_factory=list)
    track_id: list[Hashable] = field(default_factory=list)
    labels: dict[int | str, None] = field(default_factory=dict)
    first_frame: int = 0
    units: Literal["pixels", "unit", "either"] = "pixels"
    third: Literal["confidence", "flag", "or flag", "or logit"] = "confidence"
    skeleton: str | None = None
    defaults: dict[int, str] = field(default_factory=lambda: dict(DETECTOR_DEFAULTS))
    question: str | None = None
    image_sizes: set[tuple[int, int]] = field(default_factory=set)
    fps: float | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, label: int | str, points: Sequence[float], score: float | None = None, track_id: Any = None) -> None:
        """Add a person. Raises ValueError for things that are no numbers."""
        for name, value, kinds in (
            ("a list of numbers for the joints", points, (list, tuple)),
            ("a number as score", score, (int, float, type(None))),
            ("a number or a name as track id", track_id, (int, float, str, type(None))),
        ):
            if not isinstance(value, kinds):
                raise ValueError(f"expected {name} of each person, found {str(value)[:40]!r} (frame {label!r})")
        self.labels[label] = None
        self.label.append(label)
        self.points.append(points)
        self.score.append(score)
        self.track_id.append(track_id)

    def note(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def extend(self, other: Detections, label: int | str) -> None:
        """Add the only frame of another file as frame `label` of this one."""
        if len(other.labels) > 1:
            raise ValueError(f"expected one frame in each file of a folder, found {len(other.labels)} in {label!r}")
        self.labels[label] = None
        self.label += [label] * len(other.points)
        for name in ("points", "score", "track_id"):
            getattr(self, name).extend(getattr(other, name))
        if other.points:
            for name in ("units", "third", "skeleton", "defaults", "question"):
                setattr(self, name, getattr(other, name))
        self.image_sizes |= other.image_sizes
        self.fps = self.fps or other.fps
        for text in other.notes:
            self.note(text)


# ---------------------------------------------------------------------------------------------------------------------
# Small decisions, each used once below (and by the readers of arrays)
# ---------------------------------------------------------------------------------------------------------------------


def prefer(name: str, given: Any, stated: Any, notes: list[str]) -> Any:
    """The caller's value, else the file's; a contradiction is noted."""
    if given is not None and stated is not None and given != stated:
        notes.append(f"{name} {given} as given; the file says {stated}")
    return stated if given is None else given


def looks_normalised(xy: np.ndarray) -> bool:
    """Whether practically all finite coordinates are small enough to be fractions of the image."""
    size = np.abs(xy[np.isfinite(xy)])
    return size.size > 0 and np.mean(size <= NORMALISED) > 0.99


def sequence_number(name: str) -> int | None:
    """Last number in a file name or frame name, without suffix and `_keypoints`, or None."""
    stem = re.sub(r"\.(jpe?g|png|bmp|webp|tiff?|json|txt)$", "", re.split(r"[/\\]", name)[-1], flags=re.IGNORECASE)
    digits = re.findall(r"\d+", re.sub(r"_keypoints(_\d+)?$", "", stem))
    return int(digits[-1]) if digits else None


def _whole(value: Any) -> int:
    """A whole number, also if it is written otherwise ("3", 3.0). Raises ValueError for anything else."""
    number = float(value) if isinstance(value, (int, float, str)) else np.nan
    if not (number.is_integer() and abs(number) < 2**62):
        raise ValueError(f"expected a whole number for each frame and identity, found {value!r}")
    return value if isinstance(value, int) else int(number)


def _frame_numbers(labels: Iterable[int | str], notes: list[str]) -> dict[int | str, int]:
    """Frame number of every label: itself, the last number in its name, or its place in natural order."""
    labels = list(labels)
    numbers = {label: sequence_number(label) if isinstance(label, str) else _whole(label) for label in labels}
    if None in numbers.values():
        natural = sorted(labels, key=lambda name: [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", str(name))])
        notes.append("some frame names hold no number: the frames are taken in the order of their names")
        return {label: place for place, label in enumerate(natural)}
    shared = [number for number, count in Counter(numbers.values()).items() if count > 1]
    if shared:
        names = [label for label in labels if numbers[label] == shared[0]]
        raise ValueError(
            f"expected the frames of one video, found {len(names)} frames with number {shared[0]} "
            f"({', '.join(map(repr, names[:3]))}): separate the videos first"
        )
    stems = {re.sub(r"\d+(?=\D*$)", "…", label) for label in labels if isinstance(label, str)}
    if len(stems) > 1:
        notes.append(f"frames of several names are taken for one video: {', '.join(sorted(stems)[:3])}")
    if any(above < below for below, above in pairwise(numbers.values())):
        notes.append("the frames are in the order of their numbers, which is not that of the file")
    return numbers


def _sequence(found: Detections, label: list[int | str], fps: float | None, notes: list[str]) -> tuple[np.ndarray, float | None]:
    """Frame numbers of the people, counted from 0 in steps of 1, and the frame rate that goes with them."""
    numbers = _frame_numbers(found.labels, notes)
    frame = np.array([numbers[name] for name in label], dtype=np.int64) - found.first_frame
    if found.first_frame:
        notes.append(f"frame numbers start at {found.first_frame} in the file, at 0 here")
    every = np.unique(np.array(list(numbers.values()), dtype=np.int64)) - found.first_frame
    # A common divisor of all steps means that only every n-th frame was processed; a handful of frames tells nothing.
    step = int(np.gcd.reduce(np.diff(every))) if len(every) > 3 else 1
    gaps = [(before // step + 1, after // step - 1) for before, after in pairwise(every.tolist()) if after - before > step]
    if gaps:
        ranges = [f"{a}" if a == b else f"{a}-{b}" for a, b in gaps[:5]] + ["…"] * (len(gaps) > 5)
        absent = sum(b - a + 1 for a, b in gaps)
        notes.append(f"{absent} frames between {every[0] // step} and {every[-1] // step} are not in the file: {', '.join(ranges)}")
    if step == 1:
        return frame, fps
    notes.append(f"one frame in {step} was processed: frame i is number {step} i + {every[0] % step} in the file")
    return frame // step, fps / step if fps else None


def _identities(track_id: list[Hashable], frame: np.ndarray, score: np.ndarray, notes: list[str]) -> np.ndarray:
    """Identities as integers, -1 for none. Ids that cannot be identities are void."""
    known = [value is not None for value in track_id]
    try:
        ids = np.array([-1 if value is None else _whole(value) for value in track_id], dtype=np.int64)
        ids[ids < 0] = -1
    except ValueError:  # names: number them in order of appearance
        codes = {value: code for code, value in enumerate(dict.fromkeys(v for v in track_id if v is not None))}
        ids = np.array([codes.get(value, -1) for value in track_id], dtype=np.int64)
        notes.append(f"track ids are numbers for the names {', '.join(map(str, codes))}")
    # The best claim on an identity comes first in its frame; the others are left to the linking.
    order = np.lexsort((-score, ids, frame))
    again = np.zeros(len(ids), dtype=bool)
    again[order[1:]] = (np.diff(frame[order]) == 0) & (np.diff(ids[order]) == 0)
    again &= ids >= 0
    if again.any() and len(np.unique(ids[ids >= 0])) == 1:
        notes.append("track ids in the file are void (all the same, though people share a frame)")
        ids[:] = -1
    elif again.any():
        notes.append(f"{again.sum()} people repeat a track id of their frame; the better score keeps it")
        ids[again] = -1
    elif any(known) and (ids < 0).all():
        notes.append("track ids in the file are void (all negative)")
    return ids


def _implausible(xy: np.ndarray, skeleton: str) -> bool:
    """Whether joints that should be above others are below them in most frames: a sign of another joint order."""
    layers = {
        "coco_17": ([0], [5, 6], [11, 12], [15, 16]),
        "openpose_18": ([0], [1], [8, 11], [9, 12]),
        "openpose_25": ([0], [1], [8], [10, 13]),
    }.get(skeleton, ())
    heights = [xy[:, joints, 1] for joints in layers]
    heights = [float(np.median(y[np.isfinite(y)])) for y in heights if np.isfinite(y).any()]
    return any(above > below for above, below in pairwise(heights))


def to_pixels(xy: np.ndarray, seen: np.ndarray, units: str, image_size: tuple[int, int] | None, notes: list[str]) -> np.ndarray:
    """Pixels from coordinates `(..., joints, 2)` in `units`; only joints `seen (..., joints)` decide what they are.

    Raises:
        ValueError: normalised coordinates where pixels are expected, or without an image size.
    """
    normalised = looks_normalised(xy[seen])
    if units == "pixels" and normalised:
        raise ValueError(
            f"expected pixels, found coordinates within {np.nanmin(xy[seen]):.3g} … {np.nanmax(xy[seen]):.3g}, which "
            "look normalised: multiply them by the image size first"
        )
    if units == "unit" or (units == "either" and normalised):
        if image_size is None:
            raise ValueError("coordinates are normalised by the image size: pass image_size=(width, height) in pixels")
        if units == "either" and np.nanmin(xy[seen]) < -0.05:
            notes.append("coordinates in -1..1 were converted to pixels")
            return (xy + 1) / 2 * image_size
        notes.append("coordinates in 0..1 were converted to pixels")
        return xy * np.asarray(image_size)
    if image_size is not None and seen.any():
        reach = np.quantile(xy[seen], 0.99, axis=0)
        if (reach > 1.1 * np.asarray(image_size)).any():
            notes.append(
                f"joints reach x = {reach[0]:.0f}, y = {reach[1]:.0f}, beyond image_size {image_size}: was another resolution meant?"
            )
    return xy


def _confidence(raw: np.ndarray, third: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in 0..1 and which joints the flags call missing, from the third numbers `(people, joints)`."""
    known = np.nan_to_num(raw, nan=0.0)
    is_flag = third == "flag" or (third == "or flag" and np.isin(known, (0, 1, 2)).all())
    if is_flag:
        notes.append("the file has visibility flags, no confidences: confidence is 1 where a joint is labelled")
        return (known > 0).astype(np.float64), known <= 0
    if third == "or logit" and ((known < 0) | (known > 1)).any():
        notes.append("visibilities outside 0..1 were put through the logistic function")
        return 1 / (1 + np.exp(-np.clip(known, -50, 50))) * np.isfinite(raw), np.zeros(raw.shape, dtype=bool)
    if (known > 1).any():
        notes.append(f"confidences up to {known.max():.3g} were clipped to 1")
    elif np.isin(known, (0, 1)).all():
        notes.append("confidence carries no information (0 or 1 everywhere)")
    return np.clip(known, 0, 1), np.zeros(raw.shape, dtype=bool)


def _as_table(points: list[Sequence[float]], label: list[int | str]) -> np.ndarray:
    """The flat lists as `(people, joints, 3)`. Raises ValueError if a list has a wrong length."""
    lengths = np.array([len(flat) for flat in points])
    usual = Counter(lengths[lengths % 3 == 0].tolist() or lengths.tolist()).most_common(1)[0][0]
    wrong = np.flatnonzero((lengths != usual) | (lengths % 3 != 0))
    if len(wrong):
        person = wrong[0]
        expected = f"{usual} numbers (3 × {usual // 3} joints)" if usual % 3 == 0 else "x, y, confidence of each joint"
        raise ValueError(f"expected {expected} for each person, found {lengths[person]} for person {person} (frame {label[person]!r})")
    try:
        return np.asarray(points, dtype=np.float64).reshape(len(points), -1, 3)
    except (TypeError, ValueError):
        raise ValueError("expected plain numbers for the joints of every person, found something else") from None


# ---------------------------------------------------------------------------------------------------------------------
# Detections to tracks
# ---------------------------------------------------------------------------------------------------------------------


def to_tracks(
    found: Detections,
    source: dict[str, Any],
    skeleton: str | None = None,
    image_size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> list[KeypointTrack]:
    """Tracks of the people in a file, most observed frames first.

    A joint is unobserved where its coordinates are exactly (0, 0) or not finite, are (-1, -1) with confidence 0, or
    where a visibility flag says so. A low confidence alone never hides a joint.

    Args:
        found: what a format's reader found.
        source: `path` and `format`; `notes` are added.
        skeleton: the caller's skeleton, image size and frame rate; they win over the file's.
        image_size: see `skeleton`.
        fps: see `skeleton`. The rate of the video's own frame numbers.

    Raises:
        ValueError: the file contradicts itself or the arguments, or something it lacks must be given.
    """
    notes = list(found.notes)
    present = [index for index, flat in enumerate(found.points) if len(flat)]
    if not present:
        if found.points:
            raise ValueError("expected body keypoints, found people without any: hands, faces or boxes only")
        warnings.warn(f"{source['path']}: no person in any of {len(found.labels)} frames", stacklevel=4)
        return []
    label = [found.label[i] for i in present]
    table = _as_table([found.points[i] for i in present], label)
    name = choose_skeleton(table.shape[1], skeleton, found.skeleton, found.defaults, found.question, notes)
    sizes = sorted(found.image_sizes)
    if len(sizes) > 1 and image_size is None:
        notes.append(f"image_size left open: the file has images of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}")
    image_size = prefer("image_size", image_size, sizes[0] if len(sizes) == 1 else None, notes)
    fps = prefer("fps", fps, check_fps(found.fps), notes)

    xy, raw = table[..., :2], table[..., 2]
    confidence, unlabelled = _confidence(raw, found.third, notes)
    missing = ~np.isfinite(xy).all(-1) | (xy == 0).all(-1) | unlabelled | ((xy == -1).all(-1) & (confidence == 0))
    seen = ~missing & (confidence > 0)
    xy = to_pixels(xy, seen if seen.any() else ~missing, found.units, image_size, notes)
    xy = np.where(missing[..., None], np.nan, xy)
    confidence = np.where(missing, 0.0, confidence)
    if skeleton is None and found.skeleton is None and _implausible(xy, name):
        notes.append(f"joints are not where {name} expects them in an upright person: check skeleton=...")

    frame, fps = _sequence(found, label, fps, notes)
    ids = [found.track_id[i] for i in present]
    keep = _distinct(frame, table, ids, ~missing.all(-1), notes)
    frame, xy, confidence, raw = frame[keep], xy[keep], confidence[keep], raw[keep]
    if not len(frame):
        warnings.warn(f"{source['path']}: no person in any of {len(found.labels)} frames", stacklevel=4)
        return []
    score = np.array([np.nan if found.score[i] is None else found.score[i] for i in np.asarray(present)[keep]], dtype=np.float64)
    score = np.where(np.isnan(score), confidence.mean(1), score)
    identity = _identities([ids[i] for i in keep], frame, score, notes)
    unknown = identity < 0
    if unknown.any():
        max_gap = max(15, round(0.5 * fps)) if fps else 15
        identity[unknown] = link(frame[unknown], xy[unknown], max_gap, fps or 30.0) + identity.max() + 1
        if len(frame) > len(np.unique(frame)):
            notes.append("people without track ids were linked from frame to frame by their positions")
    source = {**source, "notes": notes}
    tracks = longest_first(_assemble(frame, xy, confidence, raw, identity, name, image_size, fps, source))
    if unknown.all():
        for index, track in enumerate(tracks):
            track.track_id = index
    return tracks


def _distinct(frame: np.ndarray, table: np.ndarray, ids: list[Hashable], seen: np.ndarray, notes: list[str]) -> np.ndarray:
    """Indices of the people to keep: each once per frame, and only those with a joint at all."""
    first: dict[tuple, int] = {}
    for index in np.flatnonzero(seen).tolist():
        first.setdefault((frame[index], ids[index], table[index].tobytes()), index)
    copies = int(seen.sum()) - len(first)
    if copies:
        notes.append(f"{copies} exact copies of people in the same frame were left out")
    return np.array(list(first.values()), dtype=np.int64)


def _assemble(frame, xy, confidence, raw, identity, skeleton, image_size, fps, source) -> list[KeypointTrack]:
    """Scatter the detections into one track per identity, gaps included."""
    ids, owner = np.unique(identity, return_inverse=True)
    order = np.lexsort((frame, owner))
    starts = np.searchsorted(owner[order], np.arange(len(ids) + 1))
    first, last = frame[order[starts[:-1]]], frame[order[starts[1:] - 1]]
    ends = np.cumsum(last - first + 1)
    total, joints = int(ends[-1]), xy.shape[1]
    if total * joints * 2 > MAX_VALUES:
        raise ValueError(
            f"expected consecutive frame numbers, found tracks over {total} frames for {len(frame)} detections "
            f"(frames {frame.min()} to {frame.max()})"
        )
    offset = ends - (last - first + 1)
    place = offset[owner] + frame - first[owner]
    points = np.full((total, joints, 2), np.nan, dtype=np.float32)
    trust = np.zeros((total, joints), dtype=np.float32)
    third = np.full((total, joints), np.nan, dtype=np.float32)
    points[place], trust[place], third[place] = xy, confidence, raw
    return [
        KeypointTrack(
            keypoints_2d=points[a:b],
            confidence=trust[a:b],
            frame=np.arange(start, start + b - a),
            track_id=int(track_id),
            skeleton=skeleton,
            image_size=image_size,
            fps=fps,
            source={**source, "notes": list(source["notes"])},
            confidence_raw=third[a:b],
        )
        for track_id, start, a, b in zip(ids, first.tolist(), offset.tolist(), ends.tolist())
    ]
