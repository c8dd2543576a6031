"""Who is who: linking detections of successive frames into people.

Most links are beyond doubt: two detections in neighbouring frames, each the only one within the other's reach. They are
found for a whole file at once. What is left (people close to each other, short disappearances) is solved frame by frame
as an assignment problem in which every person is expected to keep moving as before.
"""

from __future__ import annotations

import numpy as np

REACH = 0.5
"""Largest mean joint distance of two detections of one person, in units of the person's size in the image."""

LOOK_BACK = 4
"""Number of frames over which a velocity is measured."""

LOOK_AHEAD = 8
"""Number of frames for which a velocity is trusted; after that the person is expected to stay there."""


def link(frame: np.ndarray, keypoints: np.ndarray, max_gap: int = 15) -> np.ndarray:
    """Give every detection the number of a person; nothing is dropped.

    Args:
        frame: `(detections,)` int frame numbers in any order.
        keypoints: `(detections, joints, 2)` pixels, NaN where unobserved, at least one joint observed in each.
        max_gap: number of frames in which a person may be unseen before a new number is given.

    Returns:
        `(detections,)` int64 person numbers 0, 1, …, in order of first appearance.
    """
    order = np.argsort(frame, kind="stable")
    frame, keypoints = frame[order], keypoints[order]
    size = _person_size(keypoints)
    previous, following = _certain_links(frame, keypoints, size)
    _assign_ends(frame, keypoints, size, previous, following, max_gap)

    person = np.empty(len(frame), dtype=np.int64)
    count = 0
    for index, before in enumerate(previous.tolist()):
        person[index] = count if before < 0 else person[before]
        count += before < 0
    result = np.empty_like(person)
    result[order] = person
    return result


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


def _certain_links(frame: np.ndarray, keypoints: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predecessor and successor of each detection (-1 for none) where neighbouring frames leave no choice."""
    count = len(frame)
    left, right = np.searchsorted(frame, frame + 1, "left"), np.searchsorted(frame, frame + 1, "right")
    partners = right - left
    first = np.repeat(np.arange(count), partners)
    second = np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners) + np.repeat(left, partners)
    near = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), 1 << 15):  # crowds make many pairs: keep the working memory small
        i, j = first[start : start + (1 << 15)], second[start : start + (1 << 15)]
        near[start : start + (1 << 15)] = _distance(keypoints[i], keypoints[j], np.maximum(size[i], size[j])) <= REACH
    first, second = first[near], second[near]
    alone = (np.bincount(first, minlength=count)[first] == 1) & (np.bincount(second, minlength=count)[second] == 1)
    previous, following = np.full(count, -1), np.full(count, -1)
    previous[second[alone]] = first[alone]
    following[first[alone]] = second[alone]
    return previous, following


def _assign_ends(frame, keypoints, size, previous, following, max_gap) -> None:
    """Join the chains of certain links, frame by frame; changes `previous` and `following` in place."""
    from scipy.optimize import linear_sum_assignment

    tail = np.arange(len(frame))
    for index in range(len(frame) - 1, -1, -1):
        if following[index] >= 0:
            tail[index] = tail[following[index]]
    heads = np.flatnonzero(previous < 0)
    waiting: list[int] = []
    for group in np.split(heads, np.flatnonzero(np.diff(frame[heads])) + 1):
        now = frame[group[0]]
        waiting = [end for end in waiting if now - frame[end] <= max_gap + 1]
        ends = np.array([end for end in waiting if frame[end] < now], dtype=np.int64)
        if len(ends):
            expected = np.stack([_expected(end, now, frame, keypoints, previous) for end in ends])
            scale = np.maximum(size[ends][:, None], size[group])
            cost = np.minimum(_distance(expected[:, None], keypoints[group], scale), 2.0)
            # Beyond reach all pairs are equally bad, so that they never outweigh a good one.
            rows, columns = linear_sum_assignment(np.where(cost <= REACH, cost, 1e3))
            for row, column in zip(rows, columns):
                if cost[row, column] <= REACH:
                    previous[group[column]], following[ends[row]] = ends[row], group[column]
                    waiting.remove(ends[row])
        waiting += tail[group].tolist()


def _expected(end, now, frame, keypoints, previous) -> np.ndarray:
    """Joints of the person last seen as detection `end`, moved on at the mean velocity of its last detections."""
    start = end
    for _ in range(LOOK_BACK):
        if previous[start] < 0 or frame[end] - frame[previous[start]] > LOOK_BACK:
            break
        start = previous[start]
    moved = keypoints[end] - keypoints[start]
    moved = moved[~np.isnan(moved).any(-1)]
    if start == end or len(moved) == 0:
        return keypoints[end]
    velocity = moved.mean(0) / (frame[end] - frame[start])
    return keypoints[end] + velocity * min(now - frame[end], LOOK_AHEAD)
