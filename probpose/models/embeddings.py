"""Embeddings of time: the diffusion timestep and the position of a frame in a clip."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def timestep_sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoids of raw timesteps `(n,)` as `(n, dim)`: all sines first, then all cosines (D3DP, ICCV 2023).

    Frequencies fall geometrically from 1 to 1/10000, the last one included. An odd `dim` ends with a zero.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10000) / (half - 1)))
    angles = timestep.float()[:, None] * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """Sinusoid of the timestep through a two-layer network: `(n,)` to `(n, out_dim)`; by default GELU, 2 · dim hidden and dim out."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        out_dim: int | None = None,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
    ):
        super().__init__()
        hidden_dim = hidden_dim or 2 * dim
        self.dim, self.activation = dim, activation
        self.linear_1 = nn.Linear(dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, out_dim or dim)

    def forward(self, timestep: Tensor) -> Tensor:
        sinusoid = timestep_sinusoid(timestep, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(self.activation(self.linear_1(sinusoid)))


def rotary_table(length: int, head_dim: int, device: torch.device, max_period: float = 1000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(length, head_dim / 2)` of rotary embedding over frames (RoFormer, Su et al. 2021)."""
    half = head_dim // 2
    frequencies = torch.exp(torch.arange(half, device=device) * (-math.log(max_period) / half))
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the two halves of each head of `x (batch, frames, heads, head_dim)` by its frame's angles."""
    cos, sin = (t[:, None, :].to(x.dtype) for t in table)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
