"""One person's 2D keypoints over time, as every reader of this package returns them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


def check_image_size(image_size: Any) -> tuple[int, int] | None:
    """`image_size` as a pair of positive integers (width, height), or None for None. Raises ValueError otherwise."""
    if image_size is None:
        return None
    numeric = np.size(image_size) == 2 and np.asarray(image_size).dtype.kind in "iuf"
    values = np.asarray(image_size, dtype=np.float64).ravel() if numeric else np.empty(0)
    if not numeric or not np.all((values > 0) & (values == np.round(values)) & np.isfinite(values)):
        raise ValueError(f"image_size must be (width, height), two positive integers in pixels, not {image_size!r}")
    return int(values[0]), int(values[1])


def check_fps(fps: Any) -> float | None:
    """`fps` as a positive float, or None for None. Raises ValueError otherwise."""
    if fps is None:
        return None
    if not (isinstance(fps, (int, float, np.number)) and np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number of frames per second, not {fps!r}")
    return float(fps)


@dataclass(eq=False)
class KeypointTrack:
    """2D keypoints of one person in consecutive frames.

    Attributes:
        keypoints_2d: `(frames, joints, 2)` float32, pixels (x right, y down, origin top left), NaN where unobserved.
        confidence: `(frames, joints)` float32 in 0..1; always 0 where `keypoints_2d` is NaN.
        frame: `(frames,)` int64, consecutive frame numbers of the video.
        track_id: identity of the person, from the file or from linking.
        skeleton: name of the joint order, for example `coco_17`.
        image_size: `(width, height)` in pixels, or None if unknown.
        fps: frames per second, or None if unknown.
        source: where the keypoints come from: `path`, `format` and `notes`, a list of remarks for the user.
        confidence_raw: `(frames, joints)` float32, the file's own third number before clipping, NaN in frames without
            the person. Defaults to `confidence`.

    Raises:
        ValueError: shapes disagree, frames are not consecutive, a confidence lies outside 0..1, or the image size or
            frame rate is not positive.
    """

    keypoints_2d: np.ndarray
    confidence: np.ndarray
    frame: np.ndarray
    track_id: int
    skeleton: str
    image_size: tuple[int, int] | None = None
    fps: float | None = None
    source: dict[str, Any] = field(default_factory=dict)
    confidence_raw: np.ndarray | None = None

    def __post_init__(self) -> None:
        points = np.asarray(self.keypoints_2d, dtype=np.float32)
        if points.ndim != 3 or points.shape[-1] != 2 or len(points) == 0:
            raise ValueError(f"keypoints_2d must be (frames, joints, 2) with at least one frame, not {points.shape}")
        confidence = np.asarray(self.confidence, dtype=np.float32)
        raw = confidence if self.confidence_raw is None else np.asarray(self.confidence_raw, dtype=np.float32)
        for name, values in (("confidence", confidence), ("confidence_raw", raw)):
            if values.shape != points.shape[:2]:
                raise ValueError(f"{name} must be (frames, joints) = {points.shape[:2]}, not {values.shape}")
        if not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError("confidence must lie in 0..1; put unclipped values in confidence_raw")
        frame = np.asarray(self.frame, dtype=np.int64)
        if frame.shape != points.shape[:1] or (np.diff(frame) != 1).any():
            raise ValueError(f"frame must hold {len(points)} consecutive frame numbers, not {self.frame!r}")
        missing = np.isnan(points).any(-1)
        self.keypoints_2d = np.where(missing[..., None], np.float32(np.nan), points)
        self.confidence = np.where(missing, np.float32(0), confidence)
        self.confidence_raw = raw
        self.frame = frame
        self.track_id = int(self.track_id)
        self.image_size = check_image_size(self.image_size)
        self.fps = check_fps(self.fps)

    def __len__(self) -> int:
        """Number of frames, gaps included."""
        return len(self.frame)

    @property
    def num_joints(self) -> int:
        """Number of joints of the skeleton."""
        return self.keypoints_2d.shape[1]

    @property
    def observed(self) -> np.ndarray:
        """`(frames,)` bool, True where at least one joint was observed."""
        return ~np.isnan(self.keypoints_2d[..., 0]).all(-1)


def longest_first(tracks: list[KeypointTrack]) -> list[KeypointTrack]:
    """The tracks with most observed frames first; equals stay in order of appearance, then of identity."""
    return sorted(tracks, key=lambda track: (-int(track.observed.sum()), int(track.frame[0]), track.track_id))
