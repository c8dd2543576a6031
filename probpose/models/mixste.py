"""MixSTE: one token per joint and frame, attention over joints and over frames in turns. The network of D3DP.

Zhang et al., "MixSTE: Seq2seq Mixed Spatio-Temporal Encoder for 3D Human Pose Estimation in Video", CVPR 2022, arXiv
2203.00859, with the timestep and the noisy pose as inputs after Shan et al., "Diffusion-Based 3D Human Pose Estimation
with Multi-Hypothesis Aggregation", ICCV 2023, arXiv 2303.11579. `probpose.hub.convert_original("d3dp", ...)` reads
weights of the original release.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import linear

from probpose.hub.push import HubMixin

from .adapters import AdapterMixin, effective_weight
from .attention import AttentionBackendMixin
from .embeddings import TimestepEmbedding
from .layers import TransformerBlock
from .outputs import PoseModelOutput


class MixSTEModel(AttentionBackendMixin, AdapterMixin, HubMixin, ModelMixin, ConfigMixin):
    """Joint-token denoiser (5 input channels) or plain lifter (2). Defaults are the published D3DP network.

    Args:
        num_frames: window length F. Positions are learned, so the model takes windows of exactly this length.
        num_joints: joints J.
        in_channels: 5 = a denoiser, 2D position and noisy 3D position of a joint; 2 = a lifter, 2D position alone.
        width, depth, num_attention_heads, mlp_ratio, qkv_bias: size of the transformer; a layer is one spatial and one
            temporal block.
        drop_path: stochastic depth rate of the last layer while training (published: 0.1); falls linearly to zero at
            the first.
        use_timestep: whether the tokens carry a diffusion timestep; False for a lifter.
        canonical_camera: `[fx, fy, cx, cy]` in screen units of the camera that the keypoints are expressed in; None =
            whatever camera took them (published: normalisation by the image width, nothing else).
        skeleton: joint set of the output.
        input_skeleton: joint set of the keypoints where it differs, None = the same. The published in-the-wild network
            reads `"coco_17"`; its token j pairs the j-th joints of both sets.
        root_index: joint that poses are relative to. The network does not hold it at zero.
        unit_scale: units per metre of `noisy_pose` and `sample`. The network itself works in metres, the one published
            for MPI-INF-3DHP too, and so do the schedulers and their clip range: sampling wants 1. 1000 is for a caller
            who keeps millimetres on both sides.
        fps: frame rate of the training windows, or None.
    """

    _supports_gradient_checkpointing = True
    adapter_modules = ("attn.qkv", "attn.proj")

    @register_to_config
    def __init__(
        self,
        num_frames: int = 243,
        num_joints: int = 17,
        in_channels: int = 5,
        width: int = 512,
        depth: int = 8,
        num_attention_heads: int = 8,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.0,
        use_timestep: bool = True,
        qkv_bias: bool = True,
        canonical_camera: tuple[float, float, float, float] | None = None,
        skeleton: str = "h36m_17",
        input_skeleton: str | None = None,
        root_index: int = 0,
        unit_scale: float = 1.0,
        fps: float | None = None,
    ):
        super().__init__()
        if in_channels not in (2, 5):
            raise ValueError(f"in_channels must be 5 (denoiser) or 2 (lifter), got {in_channels}")
        if in_channels == 2 and use_timestep:
            raise ValueError("a lifter (in_channels=2) has no timestep: use_timestep must be False, got True")
        if not 0 <= root_index < num_joints:
            raise ValueError(f"root_index must be one of {num_joints} joints, got {root_index}")
        self.joint_embedding = nn.Linear(in_channels, width)
        self.spatial_position = nn.Parameter(torch.zeros(1, num_joints, width))
        self.temporal_position = nn.Parameter(torch.zeros(1, num_frames, width))
        if use_timestep:
            self.time_embedding = TimestepEmbedding(width)
        rates = [drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
        self.spatial_blocks, self.temporal_blocks = (
            nn.ModuleList(TransformerBlock(width, num_attention_heads, mlp_ratio, qkv_bias, rate) for rate in rates) for _ in range(2)
        )
        # One norm for all layers, on the residual stream itself.
        self.spatial_norm = nn.LayerNorm(width, eps=1e-6)
        self.temporal_norm = nn.LayerNorm(width, eps=1e-6)
        self.norm_out = nn.LayerNorm(width, eps=1e-5)
        self.proj_out = nn.Linear(width, 3)
        self.gradient_checkpointing = False

    @property
    def context_shape(self) -> tuple[str, int]:
        """Level and channels of a lifter's features, as `GraFormerDenoiser` is told of them."""
        return "joint", self.config.width

    def forward(
        self,
        keypoints_2d: Tensor,
        noisy_pose: Tensor | None = None,
        timestep: Tensor | int | None = None,
        confidence: Tensor | None = None,
        output_features: bool = False,
        return_dict: bool = True,
    ) -> PoseModelOutput | tuple[Tensor, ...]:
        """Predict the clean pose.

        Args:
            keypoints_2d: `(batch, frames, joints, 2)` in screen units. The network has no input for unobserved joints:
                the caller fills them (interpolated, say), since NaN would spread over the whole window.
            noisy_pose: `(batch, frames, joints, 3)` or `(batch, hypotheses, frames, joints, 3)`, root-relative, camera
                axes, metres unless `unit_scale` says otherwise; None for a lifter.
            timestep: integer, or `(batch,)`; None if the model has no timestep.
            confidence: accepted for the sake of one calling convention, and not used.
            output_features: also return what the last layer sees, `(batch, frames, joints, width)`; of a lifter.

        Raises:
            ValueError: inputs that are missing, superfluous, or of a shape that does not fit the model.
        """
        config = self.config
        weight, bias = effective_weight(self.joint_embedding), self.joint_embedding.bias
        batch = len(keypoints_2d)
        window = (config.num_frames, config.num_joints)
        if keypoints_2d.shape != (batch, *window, 2):
            raise ValueError(f"keypoints_2d must have shape {(batch, *window, 2)}, got {tuple(keypoints_2d.shape)}")
        if (noisy_pose is not None) != (config.in_channels == 5):
            raise ValueError(
                "a denoiser (in_channels=5) requires noisy_pose" if noisy_pose is None else "a lifter (in_channels=2) takes no noisy_pose"
            )
        if output_features and config.in_channels == 5:
            raise ValueError("a denoiser (in_channels=5) gives no features")
        if (timestep is not None) != config.use_timestep:
            raise ValueError(
                "the model requires a timestep (use_timestep=True)"
                if timestep is None
                else "the model takes no timestep (use_timestep=False)"
            )

        # What the hypotheses of a window share is computed once: half of the embedding, the joints, the timestep.
        x = linear(keypoints_2d.to(weight.dtype), weight[:, :2], bias) + self.spatial_position
        if timestep is not None:
            timestep = torch.as_tensor(timestep, device=x.device)
            if timestep.shape not in ((), (1,), (batch,)):
                raise ValueError(f"timestep must be an integer or have shape {(batch,)}, got {tuple(timestep.shape)}")
            x = x + self.time_embedding(timestep.expand(batch))[:, None, None]
        x = x[:, None]
        if noisy_pose is not None:
            pose = noisy_pose[:, None] if noisy_pose.ndim == 4 else noisy_pose
            if pose.ndim != 5 or pose.shape != (batch, pose.shape[1], *window, 3):
                raise ValueError(
                    f"noisy_pose must have shape {(batch, *window, 3)}, or with an axis of hypotheses after the batch, "
                    f"got {tuple(noisy_pose.shape)}"
                )
            x = x + linear(pose.to(weight.dtype) / config.unit_scale, weight[:, 2:])

        leading = x.shape[:2]
        x = x.flatten(0, 1)  # (batch · hypotheses, frames, joints, width)
        for layer, (spatial_block, temporal_block) in enumerate(zip(self.spatial_blocks, self.temporal_blocks)):
            x = self.spatial_norm(self._attend(spatial_block, x)).transpose(1, 2)
            if layer == 0:
                x = x + self.temporal_position
            x = self.temporal_norm(self._attend(temporal_block, x)).transpose(1, 2)
        features = self.norm_out(x)
        x = self.proj_out(features).unflatten(0, leading) * config.unit_scale
        sample = x if noisy_pose is not None and noisy_pose.ndim == 5 else x[:, 0]
        features = features if output_features else None
        return PoseModelOutput(sample=sample, features=features) if return_dict else (sample, *([features] if output_features else []))

    def _attend(self, block: TransformerBlock, x: Tensor) -> Tensor:
        """Run a block over the third axis of `(n, groups, tokens, width)`."""
        tokens = x.flatten(0, 1)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            tokens = self._gradient_checkpointing_func(block, tokens)
        else:
            tokens = block(tokens)
        return tokens.unflatten(0, x.shape[:2])
