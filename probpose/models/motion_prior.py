"""MotionPriorModel: an unconditional denoiser of motions, one token per frame and one for the timestep.

The network of Platypose (Pierzchlewicz et al., arXiv 2403.06164), after the motion diffusion model (Tevet et al., ICLR 2023). It has never
seen a camera or a 2D keypoint; `PlatyposePipeline` brings those in while sampling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from probpose.hub.push import HubMixin
from probpose.skeletons import get_skeleton

from .adapters import AdapterMixin
from .attention import AttentionBackendMixin, SelfAttention
from .embeddings import rotary_table
from .layers import FeedForward, TransformerBlock
from .outputs import PoseModelOutput

AXES = ("world", "camera")
TRAJECTORIES = ("absolute", "relative")


class MotionPriorModel(AttentionBackendMixin, AdapterMixin, HubMixin, ModelMixin, ConfigMixin):
    """Clean motions from noisy ones, whoever looks at them.

    A motion is `(frames, joints, 3)` in metres: every joint relative to the root of its frame, and in the root's own place the root's
    trajectory.

    Args:
        num_frames: longest window that the model was trained with.
        num_joints: joints J.
        width, depth, num_attention_heads, mlp_ratio: size of the transformer; the defaults are published.
        dropout: of tokens, attention and both layers' outputs while training; of post-norm layers only.
        norm_first: False: post-norm layers over sinusoidal positions, as published. True: pre-norm layers over rotary positions, which
            train several times faster and do not mind where in a clip a window begins.
        max_length: rows of the sinusoidal table, which frames and timesteps share.
        axes: of the motions: "world" (z up) as published, or "camera" (x right, y down, z forward) of whichever camera looks on.
        trajectory: "absolute": the root's place in those axes, as published; "relative": that minus its mean over the window.
        skeleton: joint set.
        any_length: whether the model was trained on shorter windows, too; otherwise a pipeline pads short clips to `num_frames`.
        fps: frame rate of the training motions, or None.
        bone_lengths: mean lengths of the training bodies' bones in metres, in the skeleton's order, or None. The network has no use for
            them; whoever needs to know how far away a person is has.
    """

    adapter_modules = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

    @register_to_config
    def __init__(
        self,
        num_frames: int = 256,
        num_joints: int = 17,
        width: int = 512,
        depth: int = 8,
        num_attention_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        norm_first: bool = False,
        max_length: int = 5000,
        axes: str = "world",
        trajectory: str = "absolute",
        skeleton: str = "h36m_17",
        any_length: bool = True,
        fps: float | None = None,
        bone_lengths: list[float] | None = None,
    ):
        super().__init__()
        bones = len(get_skeleton(skeleton).bones)
        if bone_lengths is not None and len(bone_lengths) != bones:
            raise ValueError(f"bone_lengths must be those of the {bones} bones of {skeleton}, got {len(bone_lengths)}")
        for name, value, allowed in (("axes", axes, AXES), ("trajectory", trajectory, TRAJECTORIES)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if not 1 <= num_frames < max_length:
            raise ValueError(f"num_frames must lie in 1..{max_length - 1} (max_length - 1), got {num_frames}")
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.pose_embedding = nn.Linear(3 * num_joints, width)
        self.time_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if norm_first:
            self.blocks = nn.ModuleList(TransformerBlock(width, num_attention_heads, mlp_ratio) for _ in range(depth))
            self.norm_out = nn.LayerNorm(width)
            if width // num_attention_heads % 2:
                raise ValueError(f"with norm_first, width / num_attention_heads must be even, got {width} / {num_attention_heads}")
        else:
            self.blocks = nn.ModuleList(PostNormBlock(width, num_attention_heads, mlp_ratio, dropout) for _ in range(depth))
        self.token_dropout = nn.Dropout(dropout)
        self.proj_out = nn.Linear(width, 3 * num_joints)

    def forward(
        self,
        keypoints_2d: None = None,
        noisy_pose: Tensor | None = None,
        timestep: Tensor | int | None = None,
        confidence: None = None,
        return_dict: bool = True,
    ) -> PoseModelOutput | tuple[Tensor]:
        """Predict the clean motion.

        Args:
            keypoints_2d, confidence: None. They stand here because every denoiser is called alike; a prior that were given them would
                silently not look at them.
            noisy_pose: `(batch, [hypotheses,] frames, joints, 3)` in metres, the trajectory in the root's place.
            timestep: integer, or `(batch,)`.

        Raises:
            ValueError: 2D keypoints, no noisy pose (a prior cannot lift), or shapes that do not fit the model.
        """
        batch = self._check(keypoints_2d, confidence, noisy_pose, timestep)
        config = self.config
        shape, dtype = noisy_pose.shape, self.proj_out.weight.dtype
        x = self.pose_embedding(noisy_pose.to(dtype).reshape(-1, shape[-3], 3 * config.num_joints))
        timestep = torch.as_tensor(timestep, device=x.device).expand(batch)
        time = self.time_embedding(sinusoids(timestep, config.width).to(dtype))[:, None]
        x = torch.cat([time.repeat_interleave(len(x) // batch, dim=0), x], dim=1)
        if config.norm_first:
            rotary = rotary_table(x.shape[1], config.width // config.num_attention_heads, x.device)
            for block in self.blocks:
                x = block(x, rotary)
            x = self.norm_out(x)
        else:
            x = self.token_dropout(x + sinusoids(torch.arange(x.shape[1], device=x.device), config.width).to(dtype))
            for block in self.blocks:
                x = block(x)
        sample = self.proj_out(x[:, 1:]).reshape(shape)
        return PoseModelOutput(sample=sample) if return_dict else (sample,)

    def _check(self, keypoints_2d: Any, confidence: Any, noisy_pose: Tensor | None, timestep: Any) -> int:
        """Number of windows; ValueError names the input that does not fit."""
        config = self.config
        if noisy_pose is None or timestep is None:
            raise ValueError("MotionPriorModel is a motion prior and cannot lift: noisy_pose and timestep are required")
        if keypoints_2d is not None or confidence is not None:
            raise ValueError(
                "MotionPriorModel is a motion prior and sees no 2D: keypoints_2d and confidence must be None; "
                "PlatyposePipeline guides its samples towards keypoints"
            )
        shape = tuple(noisy_pose.shape)
        if len(shape) not in (4, 5) or shape[-1] != 3 or shape[-2] != config.num_joints or not 1 <= shape[-3] < config.max_length:
            raise ValueError(
                f"noisy_pose must have shape (batch, [hypotheses,] frames, {config.num_joints}, 3) with 1..{config.max_length - 1} frames, "
                f"got {shape}"
            )
        times = torch.as_tensor(timestep)
        if times.ndim > 1 or times.numel() not in (1, shape[0]):
            raise ValueError(f"timestep must be one integer or {shape[0]}, got shape {tuple(times.shape)}")
        return shape[0]


class PostNormBlock(nn.Module):
    """Transformer block over `(batch, tokens, dim)` that normalises after each residual sum (Vaswani et al. 2017)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0):
        super().__init__()
        self.attn = SelfAttention(dim, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, round(dim * mlp_ratio), dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x)))
        return self.norm2(x + self.dropout(self.mlp(x)))


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines in the even and cosines in the odd channels `(n, dim)` of positions `(n,)`; frequencies from 1 to nearly 1/10000."""
    frequencies = torch.exp(torch.arange(0, dim, 2, device=positions.device) * (-math.log(10000.0) / dim))
    angles = positions.float()[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
