"""Two people who meet, as a detector sees them: real walks, moved along paths, with what detectors do to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probpose.data import read_keypoints
from probpose.video import People

WALKS = Path(__file__).resolve().parents[2] / "examples" / "data" / "two_people.npz"
MIRRORED = [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13]
MEETINGS = ("pass", "slant", "depth", "overtake", "stand", "turn")
HEIGHT = 300  # pixels
NOBODY = People(np.empty((0, 17, 2)), np.empty((0, 17)))


@dataclass(eq=False)
class Scene:
    """The people found in every frame, and who they are: `identity[f] (P,)` is 0 or 1, or -1 for what is nobody."""

    people: list[People]
    identity: list[np.ndarray]
    fps: float

    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame, keypoints and identity of all detections."""
        frame = np.repeat(np.arange(len(self.people)), list(map(len, self.people)))
        return frame, np.concatenate([found.keypoints_2d for found in self.people]), np.concatenate(self.identity)

    def only(self, person: int) -> Scene:
        """The scene without the other person, and without false detections."""
        people = [found[whose == person] for found, whose in zip(self.people, self.identity)]
        return Scene(people, [whose[whose == person] for whose in self.identity], self.fps)


def meet(
    meeting: str = "pass", *, fps: float = 30, speed: float = 0.8, hidden: int = 0, seconds: float = 4, noise: float = 0.01,
    missed: float = 0.03, false: float = 0.02, garbled: float = 0, seed: int = 0,
) -> Scene:  # fmt: skip
    """Two people who meet at one place half-way through the clip.

    Args:
        meeting: they "pass" each other on one line, on a "slant", or in "depth" (one comes nearer, one goes away); one "overtakes"
            the other, or passes while the other "stands"; or they meet and "turn" back.
        speed: of each, in body heights per second; walking is 0.8.
        hidden: number of frames around the meeting in which the one behind is not found at all. In others, joints of the one behind
            may be taken from the one in front.
        noise: standard deviation of the joints' jitter in body heights; a few are wholly wrong, a few unseen.
        missed: share of the detections that are missing, here and there.
        false: detections of nobody per frame; each lasts for a frame or two.
        garbled: share of the detections whose joints are anywhere in the right box.
    """
    rng = np.random.default_rng(seed)
    frames = round(seconds * fps)
    time = (np.arange(frames) - frames // 2) / fps
    places, sizes = _paths(meeting, time * speed, rng)
    bodies = np.stack([_walk(i, time, np.gradient(places[i, :, 0])[0], rng) for i in (0, 1)])
    joints = (bodies * sizes[..., None, None] + places[:, :, None]) * HEIGHT + [960, 540]
    behind = int(rng.integers(2))
    unseen = range(frames // 2 - hidden // 2, frames // 2 - hidden // 2 + hidden)

    people, identity = [], []
    ghost, lives = joints[0, 0], 0
    for f in range(frames):
        near = _overlap(*joints[:, f])
        found = []
        for i in rng.permutation(2).tolist():
            if (i == behind and f in unseen) or rng.random() < missed:
                continue
            points, trust = _detect(joints[i, f], noise, rng)
            if i == behind and near > 0.3:
                taken = rng.random(17) < 0.4 * near
                points[taken] = joints[1 - i, f][taken] + rng.normal(0, HEIGHT * noise, (taken.sum(), 2))
                trust = trust * (1 - 0.5 * near)
            if rng.random() < garbled:
                points = rng.uniform(joints[i, f].min(0), joints[i, f].max(0), (17, 2))
            found.append((points, trust, i))
        if lives == 0 and rng.random() < false:
            lives = int(rng.integers(1, 3))
            ghost = _walk(0, time[:1], 1, rng)[0] * rng.uniform(60, 300) + rng.uniform([300, 300], [1600, 800])
        if lives:
            lives -= 1
            points, trust = _detect(ghost, noise, rng)
            found.append((points, 0.6 * trust, -1))
        people.append(People(*map(np.array, list(zip(*found))[:2])) if found else NOBODY)
        identity.append(np.array([whose for *_, whose in found], dtype=np.int64))
    return Scene(people, identity, fps)


def _paths(meeting: str, way: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where two people are `(2, frames, 2)` and how tall `(2, frames)`, in body heights, when each has gone `way` past the meeting."""
    zero = np.zeros_like(way)
    sizes = np.repeat(rng.uniform(0.95, 1.05, (2, 1)), len(way), axis=1)
    aside = np.array([[0, 0], [0, rng.uniform(-0.08, 0.08)]])[:, None]
    slopes = rng.uniform(0.2, 1.0, 2) * [1, -1]
    if meeting == "depth":
        sizes = sizes / (1 + np.clip([-way, way], -2, 2) * 0.15)
    x, y = {
        "pass": ([way, -way], [zero, zero]),
        "slant": (np.outer(np.cos(slopes), way), np.outer(np.sin(slopes), way)),
        "depth": ([0.5 * way, -0.5 * way], [zero, zero]),
        "overtake": ([1.5 * way, 0.6 * way], [zero, zero]),
        "stand": ([way, zero], [zero, zero]),
        "turn": ([-np.hypot(way, 0.12), np.hypot(way, 0.12)], [zero, zero]),
    }[meeting]
    return np.stack([x, y], axis=-1) + aside, sizes


def _walk(person: int, time: np.ndarray, direction: float, rng: np.random.Generator) -> np.ndarray:
    """A real walk `(frames, 17, 2)` about the hips, in body heights, to the right or the left, to and fro in the file."""
    track = min(read_keypoints(WALKS), key=lambda track: abs(track.track_id - person))
    body = track.keypoints_2d - track.keypoints_2d[:, :1]
    body = body / np.ptp(body[..., 1], axis=1).mean()
    if direction * (-1) ** person < 0:
        body = body[:, MIRRORED] * [-1, 1]
    last = len(body) - 1
    at = np.abs((30 * (time - time[0]) + rng.uniform(0, last)) % (2 * last) - last)
    low = np.minimum(at.astype(int), last - 1)
    return body[low] + (at - low)[:, None, None] * (body[low + 1] - body[low])


def _detect(joints: np.ndarray, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Joints of a person and their confidence as a detector gives them."""
    points = joints + rng.normal(0, HEIGHT * noise, (17, 2))
    trust = rng.uniform(0.75, 0.95, 17)
    wrong, unseen = rng.random(17) < 0.02, rng.random(17) < 0.02
    points[wrong] += rng.normal(0, 0.1 * HEIGHT, (wrong.sum(), 2))
    points[unseen], trust[unseen] = np.nan, 0
    return points, trust


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of the boxes around two people."""
    (a0, a1), (b0, b1) = ((points.min(0), points.max(0)) for points in (a, b))
    inside = np.prod(np.maximum(np.minimum(a1, b1) - np.maximum(a0, b0), 0))
    return inside / (np.prod(a1 - a0) + np.prod(b1 - b0) - inside)
