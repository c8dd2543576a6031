"""Who is who in a video: the people whom a detector found in single frames become tracks.

Two witnesses are heard, each on what it knows best. Whole poses say who is who (`probpose.data.keypoints.link`): when two people
cross, their boxes become one, but not their joints. Boxes, followed from frame to frame by ByteTrack of Roboflow's trackers, hold
together what poses tear apart: somebody whose joints are all wrong for a frame still has a box in the right place.

Measured on two people who meet (990 scenes of `tests/video/scenes.py`: six ways to meet, 0.5, 0.8 and 1.6 body heights per second, 25, 30
and 60 frames per second, one of the two hidden for 0 to 20 frames; the constants were chosen on scenes of these kinds), and, on the right,
on 396 of them in which every twentieth pose is wholly wrong:

    python tests/video/measure_tracking.py --seeds 5
    python tests/video/measure_tracking.py --seeds 2 --garbled 0.05

| followed by | both keep their identity | changes per scene | without a track | both keep | changes | without a track |
|---|---:|---:|---:|---:|---:|---:|
| ByteTrack | 73.8 % | 1.42 | 0.86 % | 71.5 % | 1.94 | 0.86 % |
| C-BIoU | 80.6 % | 1.54 | 0.03 % | 76.0 % | 2.20 | 0.05 % |
| BoT-SORT | 83.3 % | 1.20 | 0.04 % | 79.3 % | 1.64 | 0.05 % |
| OC-SORT | 84.3 % | 1.68 | 0.81 % | 78.0 % | 2.17 | 0.81 % |
| poses | 96.9 % | 0.12 | 0.00 % | 87.4 % | 1.01 | 1.50 % |
| poses and boxes | 97.0 % | 0.12 | 0.00 % | 89.1 % | 0.97 | 0.60 % |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from probpose.data.keypoints import KeypointTrack, link
from probpose.data.keypoints.gaps import describe_frames
from probpose.data.keypoints.joint_sets import joint_count
from probpose.data.keypoints.tracks import check_fps, longest_first

from .detector import People

OVERLAP = 0.3
"""Least intersection over union of two boxes of a person in successive frames."""


def track_people(
    people: Iterable[People], skeleton: str, fps: float, image_size: tuple[int, int] | None = None, *, max_gap: float = 1.0,
    min_frames: int | None = None, source: dict[str, Any] | None = None,
) -> list[KeypointTrack]:  # fmt: skip
    """Follow the people in a video.

    Args:
        people: who was found in each frame, in order; nobody is an answer too.
        skeleton: joint order of the keypoints.
        fps: frames per second.
        image_size: (width, height) in pixels.
        max_gap: seconds for which a person may be out of sight and still be the same.
        min_frames: people seen in fewer frames are left out, unless everybody is: detectors see somebody where nobody is, though
            not for long. Default: a fifth of a second, but at least two frames.
        source: where the keypoints come from; what was left out is among its `notes`.

    Returns:
        One track per person from first to last sight, NaN in between where unseen. As `read_keypoints` has them: most observed
        frames first, and the identity is the place in the list. None if nobody was found.

    Raises:
        ValueError: people without the joints of the skeleton, a frame rate, image size or limit that cannot be.
        ImportError: trackers is not installed (`pip install probpose[video]`).
    """
    skeleton, joints = joint_count(skeleton)
    if (rate := check_fps(fps)) is None:
        raise ValueError("fps must be the number of frames per second of the video, not None")
    if not 0 <= max_gap < np.inf:
        raise ValueError(f"max_gap must be a number of seconds, at least 0, not {max_gap!r}")
    min_frames = max(2, round(0.2 * rate)) if min_frames is None else min_frames
    if min_frames < 1:
        raise ValueError(f"min_frames must be at least 1, not {min_frames!r}")
    people = list(people)
    if wrong := next((found for found in people if len(found) and found.keypoints_2d.shape[1] != joints), None):
        raise ValueError(f"people must have the {joints} joints of {skeleton!r}, not {wrong.keypoints_2d.shape[1]}")
    people = [found[found.confidence.any(1)] for found in people]  # a box without a joint is nobody to follow
    if not any(map(len, people)):
        return []

    frame = np.repeat(np.arange(len(people)), list(map(len, people)))
    keypoints, confidence = (
        np.concatenate([getattr(found, name) for found in people if len(found)]) for name in ("keypoints_2d", "confidence")
    )
    identity = link(frame, keypoints, round(max_gap * rate), rate)
    _rejoin(identity, frame, _follow_boxes(people))

    seen = np.bincount(identity)[identity]
    brief = seen < min_frames if (seen >= min_frames).any() else np.zeros(len(seen), dtype=bool)
    notes = list((source or {}).get("notes", []))
    if brief.any():
        when = describe_frames(np.bincount(frame[brief]) > 0)
        notes.append(f"people seen in fewer than {min_frames} frames were left out: {brief.sum()} detections in frames {when}")
    tracks = []
    for person in np.unique(identity[~brief]):
        rows = identity == person
        first, last = frame[rows][[0, -1]]
        points = np.full((last - first + 1, joints, 2), np.nan, dtype=np.float32)
        trust, raw = np.zeros(points.shape[:2], dtype=np.float32), np.full(points.shape[:2], np.nan, dtype=np.float32)
        place = frame[rows] - first
        points[place], trust[place], raw[place] = keypoints[rows], confidence[rows], confidence[rows]
        own = {**(source or {}), "notes": list(notes)}
        tracks.append(KeypointTrack(points, trust, np.arange(first, last + 1), person, skeleton, image_size, rate, own, raw))
    tracks = longest_first(tracks)
    for index, track in enumerate(tracks):
        track.track_id = index
    return tracks


def _follow_boxes(people: list[People]) -> np.ndarray:
    """For every detection the number of a row of boxes, one in each of successive frames; -1 for none."""
    try:
        from supervision import Detections
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise ImportError("following people needs Roboflow's trackers: pip install probpose[video]") from error
    # A row ends where its box is missing: gaps and crossings are the poses' business. All scores are 1: what is too weak
    # to be somebody, the detector has decided.
    tracker = ByteTrackTracker(lost_track_buffer=1, minimum_consecutive_frames=1, minimum_iou_threshold=OVERLAP)
    rows = []
    for found in people:
        row = np.full(len(found), -1)
        sure = np.ones(len(found), dtype=np.float32)
        followed = tracker.update(Detections(found.boxes, confidence=sure, data={"place": np.arange(len(found))}))
        if len(followed):
            row[followed.data["place"]] = followed.tracker_id
        rows.append(row)
    return np.concatenate(rows)


def _rejoin(identity: np.ndarray, frame: np.ndarray, row: np.ndarray) -> None:
    """Make one person of two who follow each other in a row of boxes, if no frame shows both; changes `identity` in place."""
    frames: dict[int, set[int]] = defaultdict(set)
    for person, number in zip(identity.tolist(), frame.tolist()):
        frames[person].add(number)
    last: dict[int, int] = {}
    for index in np.flatnonzero(row >= 0).tolist():
        before = last.get(row[index])
        last[row[index]] = index
        if before is None:
            continue
        kept, joined = sorted((int(identity[before]), int(identity[index])))
        if kept != joined and not frames[kept] & frames[joined]:
            identity[identity == joined] = kept
            frames[kept] |= frames.pop(joined)
