"""Videos whose frames say which frame they are, and a detector that reads it: what it sees depends on the picture alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probpose.data import KeypointTrack
from probpose.video import People, write_video

BITS, BLOCK = 10, 16  # blocks of one macroblock, black or white: no codec mistakes one for the other
SIZE = (320, 240)


def number_frame(number: int) -> np.ndarray:
    """A grey picture `(240, 320, 3)` with a number written in its first rows."""
    frame = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    for bit in range(BITS):
        frame[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return frame


def read_number(frame: np.ndarray) -> int:
    blocks = frame[:BLOCK, : BITS * BLOCK].mean((0, 2)).reshape(BITS, BLOCK).mean(1)
    return int((blocks > 128) @ (1 << np.arange(BITS)))


def film(path: Path, frames: int, fps: float = 30.0) -> Path:
    with write_video(path, SIZE, fps) as append:
        for number in range(frames):
            append(number_frame(number))
    return path


class Seer:
    """Sees in frame n what the tracks hold for frame n; people in another order every time."""

    def __init__(self, tracks: list[KeypointTrack]) -> None:
        self.tracks, self.skeleton = tracks, tracks[0].skeleton
        self.order = np.random.default_rng(0)

    def __call__(self, frames: list[np.ndarray]) -> list[People]:
        return [self.people(read_number(frame)) for frame in frames]

    def people(self, number: int) -> People:
        rows = [(track, np.flatnonzero(track.frame == number)) for track in self.tracks]
        seen = [(track, int(row[0])) for track, row in rows if len(row) and track.observed[row[0]]]
        seen = [seen[index] for index in self.order.permutation(len(seen))]
        joints = self.tracks[0].num_joints
        keypoints = np.array([track.keypoints_2d[row] for track, row in seen]).reshape(-1, joints, 2)
        return People(keypoints, np.array([track.confidence[row] for track, row in seen]).reshape(-1, joints))
