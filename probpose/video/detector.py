"""Who finds people in frames: any function that takes a few frames and returns the people in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from probpose.plugins import is_own, load_own

MARGIN = 0.1
"""Of the longer side of the box around the joints, added on every side: heads, hands and feet reach beyond the joints."""


@dataclass(eq=False)
class People:
    """What a detector found in one frame: P people, none allowed. `len(people)` is P, and `people[index]` some of them.

    A joint is seen where its keypoint is finite and its confidence positive; all others become NaN with confidence 0.

    Attributes:
        keypoints_2d: `(P, joints, 2)` float32, pixels (x right, y down, origin top left), NaN where not seen.
        confidence: `(P, joints)` float32 in 0..1; peaks above 1 are clipped, NaN and negative values mean not seen.
        boxes: `(P, 4)` float32, pixels, x0 y0 x1 y1. Default: around the seen joints with a margin; NaN around none.
        score: `(P,)` float32 in 0..1 (clipped), how sure it is that this is a person. Default: the mean confidence.

    Raises:
        ValueError: shapes disagree, or a box ends before it begins.
    """

    keypoints_2d: np.ndarray
    confidence: np.ndarray
    boxes: np.ndarray | None = None
    score: np.ndarray | None = None

    def __post_init__(self) -> None:
        points, confidence = np.asarray(self.keypoints_2d, np.float32), np.asarray(self.confidence, np.float32)
        if points.ndim != 3 or points.shape[1] == 0 or points.shape[2] != 2:
            raise ValueError(f"keypoints_2d must be (people, joints, 2), not {points.shape}")
        if confidence.shape != points.shape[:2]:
            raise ValueError(f"confidence must be (people, joints) = {points.shape[:2]}, not {confidence.shape}")
        seen = np.isfinite(points).all(-1) & (confidence > 0)
        self.keypoints_2d = np.where(seen[..., None], points, np.float32(np.nan))
        self.confidence = np.where(seen, np.minimum(confidence, 1), np.float32(0))
        boxes = _around(self.keypoints_2d) if self.boxes is None else np.asarray(self.boxes, np.float32)
        score = self.confidence.mean(1) if self.score is None else np.asarray(self.score, np.float32)
        if boxes.shape != (len(points), 4) or (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError(f"boxes must be (people, 4) = {(len(points), 4)} of x0 y0 x1 y1 in pixels, not {self.boxes!r}")
        if score.shape != (len(points),):
            raise ValueError(f"score must be (people,) = {(len(points),)}, not {score.shape}")
        self.boxes, self.score = boxes, np.clip(np.nan_to_num(score), 0, 1)

    def __len__(self) -> int:
        return len(self.keypoints_2d)

    def __getitem__(self, index: Any) -> People:
        """The people at `index`: a slice, a mask or a list of numbers."""
        return People(self.keypoints_2d[index], self.confidence[index], self.boxes[index], self.score[index])

    @classmethod
    def of(cls, value: Any, joints: int) -> People:
        """People from what a detector may return for a frame.

        Args:
            value: `People`; keypoints `(P, joints, 2)` or, with confidence, `(P, joints, 3)`; a tuple of keypoints and confidence
                `(P, joints)`; or, for nobody, None or an empty list. What comes without confidence has confidence 1.
            joints: number of joints that there have to be.

        Raises:
            ValueError: anything else, or another number of joints.
        """
        if isinstance(value, cls):
            if value.keypoints_2d.shape[1] != joints:
                raise ValueError(f"people must have {joints} joints, not {value.keypoints_2d.shape[1]}")
            return value
        keypoints, confidence = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        try:
            points = np.asarray([] if keypoints is None else keypoints, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"people must be {_allowed(joints)}, not {type(keypoints).__name__} ({error})") from None
        if points.shape[:1] == (0,):
            return cls(np.empty((0, joints, 2)), np.empty((0, joints)))
        if points.ndim != 3 or points.shape[1] != joints or points.shape[2] not in ((2, 3) if confidence is None else (2,)):
            raise ValueError(f"people must be {_allowed(joints)}, not {f'an array {points.shape}' if points.ndim else repr(value)}")
        if confidence is None:
            confidence = points[..., 2] if points.shape[2] == 3 else np.ones(points.shape[:2])
        return cls(points[..., :2], confidence)


class Detector(Protocol):
    """A function from frames to the people in them.

    `skeleton` names the joint order of the keypoints. A plain function has no such attribute, and need not: its keypoints are
    taken to be coco_17, or what the caller says.
    """

    skeleton: str

    def __call__(self, frames: list[np.ndarray]) -> Sequence[Any]:
        """Frames `(height, width, 3)`, uint8 RGB, to one entry per frame: `People`, or what `People.of` takes."""


def check_detector(detector: Any, skeleton: str | None = None) -> tuple[str, int]:
    """Name and number of joints of the skeleton that a detector finds: its own, or `skeleton`, or coco_17.

    Raises:
        ValueError: no function, an unknown skeleton, or another one than the detector's own.
    """
    from probpose.skeletons import get_skeleton

    if isinstance(detector, type) or not callable(detector):
        raise ValueError(f"a detector must be a function, or an object that can be called, from frames to people, not {detector!r}")
    own = getattr(detector, "skeleton", None)
    found = get_skeleton(own or skeleton or "coco_17")
    if skeleton is not None and get_skeleton(skeleton) != found:
        raise ValueError(f"the detector finds the joints of {found.name!r}, not of {skeleton!r}")
    return found.name, found.num_joints


def detect(frames: Iterable[np.ndarray], detector: Detector, batch_size: int = 8, skeleton: str | None = None) -> Iterator[People]:
    """The people in each frame, as they are asked for; a person of whom no joint is seen is left out.

    Args:
        frames: `(height, width, 3)` uint8, RGB.
        detector: a function from a list of frames to the people in each of them.
        batch_size: number of frames in one call of the detector; the last call may have fewer.
        skeleton: joint order of its keypoints. Default: the detector's `skeleton`, or coco_17.

    Raises:
        ValueError: a frame that is no such array, or a detector that returns something else; names the frame, counted from 0.
    """
    _, joints = check_detector(detector, skeleton)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 frame, got {batch_size}")
    return _detect(iter(frames), detector, batch_size, joints)


def _detect(frames: Iterator[np.ndarray], detector: Detector, batch_size: int, joints: int) -> Iterator[People]:
    first = 0
    while batch := list(islice(frames, batch_size)):
        for number, frame in enumerate(batch, first):
            if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size):
                what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
                raise ValueError(f"frame {number} must be an array (height, width, 3) of uint8, not {what}")
        found = detector(batch)
        given = len(found) if hasattr(found, "__len__") and not isinstance(found, People) else type(found).__name__
        if given != len(batch):
            frame_numbers = f"frames {first} to {first + len(batch) - 1}"
            raise ValueError(f"the detector must return a list of {len(batch)} entries, one per frame, for {frame_numbers}, not {given}")
        for number, value in enumerate(found, first):
            try:
                people = People.of(value, joints)
            except ValueError as error:
                raise ValueError(f"what the detector returned for frame {number} cannot be used: {error}") from None
            yield people[people.confidence.any(1)]
        first += len(batch)


def load_detector(name: str, **options: Any) -> Detector:
    """A detector by its name.

    Args:
        name: "vitpose" for `ViTPoseDetector`, or "module:attribute" for one of your own: a function or another object that can be
            called, or a class, of which one is made without arguments. The module may lie in the current folder.
        options: of `ViTPoseDetector`.

    Raises:
        ValueError: no such name, module or attribute, or options for a detector of your own.
        ImportError, OSError: see `ViTPoseDetector`; and what your module raises.
    """
    if name == "vitpose":
        from .vitpose import ViTPoseDetector

        return ViTPoseDetector(**options)
    if not is_own(name):
        raise ValueError(f"a detector must be 'vitpose' or 'module:attribute', for example 'my_detector:detect', got {name!r}")
    if options:
        raise ValueError(f"{', '.join(options)}: for 'vitpose', not for a detector of your own such as {name!r}")
    found = load_own(name, "detector")
    detector = found() if isinstance(found, type) else found
    check_detector(detector)
    return detector


def _allowed(joints: int) -> str:
    arrays = f"an array (people, {joints}, 2) or (people, {joints}, 3)"
    return f"People, {arrays}, a tuple of (people, {joints}, 2) and confidence (people, {joints}), or None"


def _around(points: np.ndarray) -> np.ndarray:
    """Boxes `(people, 4)` around keypoints `(people, joints, 2)`, with the margin; NaN where all keypoints are."""
    missing = np.isnan(points)
    low, high = np.where(missing, np.inf, points).min(1), np.where(missing, -np.inf, points).max(1)
    margin = MARGIN * (high - low).max(-1, keepdims=True)
    boxes = np.concatenate([low - margin, high + margin], axis=-1)
    return np.where(missing.all((1, 2))[:, None], np.nan, boxes).astype(np.float32)
