"""Cutting clips of any length into a model's windows and blending the windows' predictions back into a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def window_starts(num_frames: int, window: int, overlap: int = 0) -> list[int]:
    """First frames of the windows that cover a clip; the last one is right-aligned (as in D3DP's evaluation, which has overlap 0).

    Args:
        num_frames: clip length.
        window: window length; a clip that is not longer gets the single start 0.
        overlap: frames that neighbouring windows share at least.

    Raises:
        ValueError: no frames, or an overlap that leaves windows no frame of their own.
    """
    if num_frames < 1:
        raise ValueError(f"a clip must have at least one frame, got {num_frames}")
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must lie in 0..{window - 1}, got {overlap}")
    if num_frames <= window:
        return [0]
    starts = list(range(0, num_frames - window, window - overlap))
    return [*starts, num_frames - window]


def cut_windows(clip: Tensor, starts: list[int], window: int, dim: int) -> Tensor:
    """Windows of `clip` along axis `dim`, stacked on a new axis 0; a clip shorter than the window repeats its last frame."""
    missing = window - clip.shape[dim]
    if missing > 0:
        last = clip.narrow(dim, clip.shape[dim] - 1, 1)
        clip = torch.cat([clip, last.expand(*[missing if i == dim % clip.ndim else -1 for i in range(clip.ndim)])], dim=dim)
    return torch.stack([clip.narrow(dim, start, window) for start in starts])


def blend_weights(starts: list[int], window: int, num_frames: int, device: torch.device | None = None) -> Tensor:
    """Weight of every window's frames `(windows, window)`; they sum to one over the windows at each frame of the clip.

    Each window counts most in its middle (a triangle), since a frame is best known with context on both sides.
    """
    ramp = torch.arange(window, dtype=torch.float32, device=device)
    triangle = torch.minimum(ramp + 1, window - ramp)
    total = torch.zeros(max(num_frames, window), device=device)
    for start in starts:
        total[start : start + window] += triangle
    return torch.stack([triangle / total[start : start + window] for start in starts])


@dataclass
class Windows:
    """All windows of all clips, in one list: rows are clip-major."""

    keypoints: Tensor
    confidence: Tensor
    starts: list[int]
    weights: Tensor
    window: int
    clip_length: int

    @classmethod
    def cut(cls, config: Any, network_2d: Tensor, confidence: Tensor, overlap: int) -> Windows:
        frames, window = network_2d.shape[1], config.num_frames
        if frames < window and config.get("any_length"):
            window = frames
        starts = window_starts(frames, window, min(overlap, window - 1))
        keypoints = cut_windows(network_2d, starts, window, dim=1).transpose(0, 1).flatten(0, 1)
        confidence = cut_windows(confidence, starts, window, dim=1).transpose(0, 1).flatten(0, 1)
        length = max(frames, window)
        return cls(keypoints, confidence, starts, blend_weights(starts, window, length, network_2d.device), window, length)

    def __len__(self) -> int:
        return len(self.keypoints)

    def places(self, rows: Tensor) -> list[tuple[int, int]]:
        """(clip, first frame) of each row."""
        return [(row // len(self.starts), self.starts[row % len(self.starts)]) for row in rows.tolist()]

    def weight(self, row: int) -> Tensor:
        """Blend weights `(window, 1, 1)` of a row."""
        return self.weights[row % len(self.starts), :, None, None]

    def blended(self, clips: Tensor, predict: Callable[[Tensor, Tensor], Tensor], max_batch_size: int) -> Tensor:
        """Every window of clips `(clips, hypotheses, clip_length, joints, 3)` through a network, blended into clips again.

        Args:
            predict: of rows' numbers `(n,)` and their windows `(n, hypotheses, window, joints, 3)`, the prediction of the same shape.
            max_batch_size: largest number of windows × hypotheses in one call.
        """
        total = torch.zeros_like(clips)
        step = max(1, max_batch_size // clips.shape[1])
        for rows in torch.arange(len(self)).split(step):
            cut = torch.stack([clips[c, :, s : s + self.window] for c, s in self.places(rows)])
            for row, (c, s), prediction in zip(rows.tolist(), self.places(rows), predict(rows, cut)):
                total[c, :, s : s + self.window] += self.weight(row) * prediction
        return total

    def owners(self) -> Tensor:
        """For every frame of a clip, the first frame of the window that has it nearest to its middle `(clip_length,)`."""
        weights = torch.zeros(len(self.starts), self.clip_length, device=self.weights.device)
        for row, (start, weight) in enumerate(zip(self.starts, self.weights)):
            weights[row, start : start + self.window] = weight
        return torch.tensor(self.starts, device=weights.device)[weights.argmax(0)]
