"""Blocks that several backbones share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import SelfAttention


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drops a whole residual branch per sample while training."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(keep)
        return x * mask / keep


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; `dropout` drops hidden values in training."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(nn.functional.gelu(self.fc1(x))))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block over `(batch, tokens, dim)`."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 2.0, bias: bool = True, drop_path: float = 0.0, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(dim, heads, bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), rotary))
        return x + self.drop_path(self.mlp(self.norm2(x)))
