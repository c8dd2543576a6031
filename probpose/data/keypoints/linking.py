"""Who is who: linking detections of successive frames into people.

Every person is expected to keep moving as before, in the pose of the last moments. In each frame the people seen so far and
the detections are assigned to each other so that all joints together are closest to where they are expected.

How well that works when people cross, and how well trackers of boxes do, says `probpose.video.tracking`.
"""

from __future__ import annotations

import numpy as np

REACH = 0.5
"""Largest mean joint distance of two successive detections of a person of unknown motion, in units of the person's size in the image."""

NEAR = 0.25
"""The same from where the person is expected, once the motion is known."""

DRIFT = 0.5
"""By how much this grows with every second without a detection."""

LOOK_BACK = 0.2
"""Seconds, but at least three frames, over which a motion is measured."""

LOOK_AHEAD = 1.0
"""Seconds for which a motion is trusted; after that the person is expected to stay there."""


def link(frame: np.ndarray, keypoints: np.ndarray, max_gap: int = 15, fps: float = 30) -> np.ndarray:
    """Give every detection the number of a person; nothing is dropped.

    Args:
        frame: `(detections,)` int frame numbers in any order.
        keypoints: `(detections, joints, 2)` pixels, NaN where unobserved, at least one joint observed in each.
        max_gap: number of frames in which a person may be unseen before a new number is given.
        fps: frames per second, to measure motions by.

    Returns:
        `(detections,)` int64 person numbers 0, 1, …, in order of first appearance.
    """
    order = np.argsort(frame, kind="stable")
    previous = _predecessors(frame[order], keypoints[order], max_gap, fps)
    person = np.empty(len(frame), dtype=np.int64)
    count = 0
    for index, before in enumerate(previous.tolist()):
        person[index] = count if before < 0 else person[before]
        count += before < 0
    result = np.empty_like(person)
    result[order] = person
    return result


def _predecessors(frame: np.ndarray, keypoints: np.ndarray, max_gap: int, fps: float) -> np.ndarray:
    """For each detection, in order of frames, the one before it of the same person, or -1."""
    from scipy.optimize import linear_sum_assignment

    size = _person_size(keypoints)
    previous = np.full(len(frame), -1)
    pose, velocity, known = keypoints.copy(), np.zeros((len(frame), 2)), np.zeros(len(frame), dtype=bool)
    last = np.empty(0, dtype=np.int64)  # detection of everybody who may be seen again
    for now in np.split(np.arange(len(frame)), np.flatnonzero(np.diff(frame)) + 1):
        last = last[frame[now[:1]] - frame[last] <= max_gap + 1]
        gap = (frame[now[:1]] - frame[last]) / fps
        expected = pose[last] + (velocity[last] * np.minimum(gap, LOOK_AHEAD)[:, None])[:, None]
        distance = _distance(expected[:, None], keypoints[now], np.maximum(size[last][:, None], size[now]))
        possible = distance <= np.maximum(np.where(known[last], NEAR, REACH), NEAR + DRIFT * gap)[:, None]
        # The price of a pair that cannot be is low, so that no far-fetched one is made only to give everybody a partner.
        rows, columns = linear_sum_assignment(np.where(possible, distance, REACH))
        rows, columns = rows[possible[rows, columns]], columns[possible[rows, columns]]
        # Somebody of whom a frame shows nothing right is still there, if nobody else is near.
        near = (distance <= REACH) & (gap * fps < 2.5)[:, None]
        lone = near & (near.sum(0) == 1) & (near.sum(1) == 1)[:, None]
        lone[rows], lone[:, columns] = False, False
        rows, columns = np.append(rows, np.nonzero(lone)[0]), np.append(columns, np.nonzero(lone)[1])
        for index, before in zip(now[columns].tolist(), last[rows].tolist()):
            previous[index] = before
            if (motion := _motion(index, frame, keypoints, previous, fps)) is not None:
                pose[index], velocity[index], known[index] = *motion, True
        last = np.concatenate([np.delete(last, rows), now])
    return previous


def _motion(index, frame, keypoints, previous, fps) -> tuple[np.ndarray, np.ndarray] | None:
    """Pose and velocity (pixels per second) of the person at detection `index`; None where too little is seen to tell."""
    recent = [index]
    while (before := previous[recent[-1]]) >= 0 and frame[index] - frame[before] <= max(LOOK_BACK * fps, 3):
        recent.append(before)
    moved = keypoints[index] - keypoints[recent[-1]]
    moved = moved[~np.isnan(moved[:, 0])]
    if len(recent) == 1 or len(moved) == 0:
        return None
    velocity = np.median(moved, axis=0) * fps / (frame[index] - frame[recent[-1]])
    # Of the last three, moved to here, the median: in a crowd a detector lends a person the joints of another for a frame.
    seconds = (frame[index] - frame[recent[:3]]) / fps
    poses = np.sort(keypoints[recent[:3]] + (seconds[:, None] * velocity)[:, None], axis=0)  # NaN last
    seen, joint = (~np.isnan(poses[..., 0])).sum(0), np.arange(poses.shape[1])
    return (poses[(seen - 1) // 2, joint] + poses[seen // 2, joint]) / 2, velocity


def _person_size(keypoints: np.ndarray) -> np.ndarray:
    """Diagonal of the box around the observed joints; not below a quarter of the median, for people seen in part."""
    high = np.where(np.isnan(keypoints), -np.inf, keypoints).max(1)
    low = np.where(np.isnan(keypoints), np.inf, keypoints).min(1)
    size = np.hypot(*(high - low).T)
    return np.maximum(size, max(0.25 * float(np.median(size)), 1.0))


def _distance(a: np.ndarray, b: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Mean distance of the joints seen in both, in person sizes; one lost joint or a swap of sides weighs at most 1.

    Detections without a common joint are compared by their centres. Shapes `(..., joints, 2)` and `(...)`.
    """
    gap = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]) / size[..., None]
    both = ~np.isnan(gap)
    shared = both.sum(-1)
    distance = np.minimum(gap, 1.0, where=both, out=np.zeros_like(gap)).sum(-1) / np.maximum(shared, 1)
    apart = shared == 0
    if apart.any():
        a, b = np.broadcast_arrays(a, b)
        shift = np.nanmean(a[apart], axis=-2) - np.nanmean(b[apart], axis=-2)
        distance[apart] = np.hypot(shift[..., 0], shift[..., 1]) / size[apart]
    return distance
