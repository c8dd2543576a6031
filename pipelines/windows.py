"""Cutting clips of any length into a model's windows and blending the windows' predictions back into a clip."""

from __future__ import annotations

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
