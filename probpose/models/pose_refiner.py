"""PoseRefiner: a small causal transformer over the joints of one pose, which writes the pose anew.

The "weight" network of PoSynDA's release (Liu et al., ACM Multimedia 2023, arXiv 2308.09678), which follows the sampler there.
`probpose.hub.convert_original("posynda_refiner", ...)` reads weights of the release.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from probpose.hub.push import HubMixin

from .attention import AttentionBackendMixin, SelfAttention
from .motion_prior import sinusoids
from .outputs import PoseModelOutput

_MILLIMETRES = 1000.0


class PoseRefiner(AttentionBackendMixin, HubMixin, ModelMixin, ConfigMixin):
    """Poses from poses, each for itself: no neighbouring frame, no 2D, and no residual connection around the whole.

    Joint j sees the joints up to j, so the order of the skeleton matters. Defaults are the published network.

    Args:
        width, depth, num_attention_heads, hidden_dim: size; `hidden_dim` is the feed-forward layers'.
        dropout: of tokens, attention and layers' outputs while training.
        legacy_batch_position: add the sinusoids of a pose's place in the flattened batch to all its joints, as the release does by
            mistake; then what becomes of a pose depends on the poses around it. False: all poses have place 0.
        skeleton: joint set that the network was trained on.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 512,
        depth: int = 8,
        num_attention_heads: int = 8,
        hidden_dim: int = 512,
        dropout: float = 0.5,
        legacy_batch_position: bool = False,
        skeleton: str = "mpi_inf_3dhp_17",
    ):
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.pose_embedding = nn.Linear(3, width)
        self.token_dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(CausalBlock(width, num_attention_heads, hidden_dim, dropout) for _ in range(depth))
        self.proj_out = nn.Linear(width, 3)
        for layer in (self.pose_embedding, self.proj_out):
            nn.init.uniform_(layer.weight, -0.1, 0.1)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, pose: Tensor, return_dict: bool = True) -> PoseModelOutput | tuple[Tensor]:
        """Rewrite poses.

        Args:
            pose: `(..., joints, 3)` metres, root-relative, camera axes. The network itself works in millimetres.

        Returns:
            `sample (..., joints, 3)` metres. The root joint is not held at zero.

        Raises:
            ValueError: another shape.
        """
        if pose.ndim < 2 or pose.shape[-1] != 3:
            raise ValueError(f"pose must have shape (..., joints, 3), got {tuple(pose.shape)}")
        dtype = self.proj_out.weight.dtype
        tokens = pose.reshape(-1, *pose.shape[-2:]).to(dtype) * _MILLIMETRES
        width = self.config.width
        place = torch.arange(len(tokens), device=pose.device)
        place = sinusoids(place if self.config.legacy_batch_position else torch.zeros_like(place), width).to(dtype)
        x = self.token_dropout(self.pose_embedding(tokens) * math.sqrt(width) + place[:, None])
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[None, None]
        for block in self.blocks:
            x = block(x, causal)
        sample = self.proj_out(x).reshape(pose.shape) / _MILLIMETRES
        return PoseModelOutput(sample=sample) if return_dict else (sample,)


class CausalBlock(nn.Module):
    """Transformer block over `(batch, tokens, dim)` that normalises after each residual sum (Vaswani et al. 2017), with ReLU."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.attn = SelfAttention(dim, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim))
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x, mask=mask)))
        return self.norm2(x + self.dropout(self.mlp(x)))
