"""GraFormer: graph convolutions and attention over the joints of one frame. The two networks of DiffPose.

Gong et al., "DiffPose: Toward More Reliable 3D Pose Estimation", CVPR 2023, arXiv 2211.16940, with the trunk of Zhao et al., "GraFormer:
Graph-oriented Transformer for 3D Pose Estimation", CVPR 2022. Frames are independent samples: they are folded into the batch, and what a
frame knows of its neighbours comes in as `context`. `probpose.hub.convert_original("diffpose", ...)` reads weights of the original release.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from probpose.hub.push import HubMixin
from probpose.skeletons import get_skeleton

from .adapters import AdapterMixin
from .attention import AttentionBackendMixin, SelfAttention
from .embeddings import TimestepEmbedding
from .outputs import PoseModelOutput

CONTEXT_LEVELS = ("joint", "frame")
_ADAPTER_MODULES = ("attn.qkv", "attn.proj", "graph_net.linear_1", "graph_net.linear_2")


def bone_graph(num_joints: int, skeleton: str, edges: list[tuple[int, int]] | None = None) -> Tensor:
    """Bone matrix with self loops, rows summing to one `(joints, joints)`; the skeleton's bones unless edges are given.

    Raises:
        ValueError: edges that name other joints, or a skeleton of another size.
    """
    if edges is None:
        known = get_skeleton(skeleton)
        if known.num_joints != num_joints:
            raise ValueError(
                f"num_joints is {num_joints}, but skeleton {skeleton!r} has {known.num_joints}: pass edges, or another skeleton"
            )
        edges = [(joint, parent) for joint, parent in enumerate(known.parents) if parent >= 0]
    adjacency = torch.eye(num_joints, dtype=torch.float32)  # whatever precision a model is loaded in
    for a, b in edges:
        if not (0 <= a < num_joints and 0 <= b < num_joints):
            raise ValueError(f"edges must join two of {num_joints} joints, got {(a, b)}")
        adjacency[a, b] = adjacency[b, a] = 1
    return adjacency / adjacency.sum(1, keepdim=True)


def chebyshev_polynomials(adjacency: Tensor, order: int) -> Tensor:
    """T_0 … T_order of the Laplacian I - D^(-1/2) A D^(-1/2) `(order + 1, joints, joints)`.

    As in GraFormer, A has its rows normalised already (so that D is the identity) and the spectrum is not rescaled to -1..1.
    """
    root = adjacency.sum(1).rsqrt()
    identity = torch.eye(len(adjacency), dtype=adjacency.dtype)
    laplacian = identity - root[:, None] * adjacency * root
    terms = [identity, laplacian]
    while len(terms) <= order:
        terms.append(2 * laplacian @ terms[-1] - terms[-2])
    return torch.stack(terms[: order + 1])


class ChebConv(nn.Module):
    """Chebyshev graph convolution: y = Σ_k T_k x W_k + b over `(n, joints, channels)`."""

    def __init__(self, in_channels: int, out_channels: int, polynomials: Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(polynomials), in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=(2 * in_channels * out_channels) ** -0.5)  # the release's, much smaller than usual
        # One product over the channels and one over the joints: row i holds T_k[i, j] at column (j, k).
        self.register_buffer("mixing", polynomials.permute(1, 2, 0).flatten(1).to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        terms = (x @ self.weight.transpose(0, 1).flatten(1)).unflatten(-1, (len(self.weight), -1))
        return self.mixing @ terms.flatten(-3, -2) + self.bias


class GraphUnit(nn.Module):
    """Graph convolution, then ReLU on both sides of a dropout."""

    def __init__(self, width: int, polynomials: Tensor, dropout: float):
        super().__init__()
        self.conv = ChebConv(width, width, polynomials)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.conv(x).relu())


class ResidualGraphBlock(nn.Module):
    """x + GC₂(GC₁(x)); in a denoiser the timestep is added between the two."""

    def __init__(self, width: int, polynomials: Tensor, dropout: float, time_width: int | None):
        super().__init__()
        self.unit_1 = GraphUnit(width, polynomials, dropout)
        self.unit_2 = GraphUnit(width, polynomials, dropout)
        if time_width is not None:
            self.time_proj = nn.Linear(time_width, width)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        y = self.unit_1(x)
        if time is not None:
            y = y + self.time_proj(nn.functional.silu(time))
        return x + self.unit_2(y)


class UnbiasedNorm(nn.Module):
    """Layer norm with the unbiased standard deviation, and ε added to that rather than to the variance."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


class GraphFeedForward(nn.Module):
    """Two layers over the joints' learned graph: W₂ G relu(W₁ G x) with G the adjacency normalised by its column sums."""

    def __init__(self, width: int, num_joints: int):
        super().__init__()
        self.adjacency = nn.Parameter(torch.eye(num_joints))
        self.linear_1 = nn.Linear(width, 2 * width)
        self.linear_2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        degree = (self.adjacency.sum(0) + 1e-5).clamp_min(1e-8).rsqrt()  # the clamp is ours: a negative sum would give NaN
        graph = degree[:, None] * self.adjacency * degree
        return self.linear_2(graph @ self.linear_1(graph @ x).relu())


class GraphAttentionBlock(nn.Module):
    """Pre-norm attention over the joints, then the graph feed-forward."""

    def __init__(self, width: int, heads: int, num_joints: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.norm_1 = UnbiasedNorm(width)
        self.attn = SelfAttention(width, heads, dropout=attention_dropout)
        self.norm_2 = UnbiasedNorm(width)
        self.graph_net = GraphFeedForward(width, num_joints)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attn(self.norm_1(x), mask=mask))
        return x + self.dropout(self.graph_net(self.norm_2(x)))


class GraFormerTrunk(nn.Module):
    """Graph convolution in, alternating attention and graph blocks, graph convolution out; `(n, joints, channels)`."""

    def __init__(
        self, in_channels: int, out_channels: int, num_joints: int, width: int, depth: int, heads: int, dropout: float,
        attention_dropout: float, graph_dropout: float, polynomials: Tensor, time_width: int | None, tie_initialisation: bool,
    ):  # fmt: skip
        super().__init__()
        self.conv_in = ChebConv(in_channels, width, polynomials)
        self.attention_blocks = nn.ModuleList(
            GraphAttentionBlock(width, heads, num_joints, dropout, attention_dropout) for _ in range(depth)
        )
        self.graph_blocks = nn.ModuleList(ResidualGraphBlock(width, polynomials, graph_dropout, time_width) for _ in range(depth))
        self.conv_out = ChebConv(width, out_channels, polynomials)
        if tie_initialisation:
            self._tie()

    @torch.no_grad()
    def _tie(self) -> None:
        first = self.attention_blocks[0]
        for name in ("weight", "bias"):
            projection = getattr(first.attn.proj, name)
            getattr(first.attn.qkv, name).copy_(torch.cat([projection] * 3))
        for block in self.attention_blocks[1:]:
            block.load_state_dict(first.state_dict())

    def forward(self, x: Tensor, time: Tensor | None = None, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Features before the last convolution; `time (n, 1, time_width)`, `context (n, joints, width)`, `mask (n, 1, 1, joints)`."""
        # The residual stream carries the pose itself: half precision would cost millimetres.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv_in(x)
        if context is not None:
            x = x + context
        for attention_block, graph_block in zip(self.attention_blocks, self.graph_blocks):
            x = graph_block(attention_block(x, mask), time)
        return x

    def head(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.conv_out(features)


def _key_mask(joint_mask: Tensor | None, batch: int, hypotheses: int, frames: int, joints: int, device: torch.device) -> Tensor | None:
    """Which joints are attended to `(n, 1, 1, joints)`."""
    if joint_mask is None:
        return None
    joint_mask = torch.as_tensor(joint_mask, device=device)
    try:
        joint_mask = joint_mask.bool().expand(batch, frames, joints)
    except RuntimeError:
        raise ValueError(f"joint_mask must broadcast to {(batch, frames, joints)}, got {tuple(joint_mask.shape)}") from None
    return joint_mask[:, None].expand(-1, hypotheses, -1, -1).reshape(-1, 1, 1, joints)


class GraFormerDenoiser(AttentionBackendMixin, AdapterMixin, HubMixin, ModelMixin, ConfigMixin):
    """DiffPose's denoiser (GCNdiff): noisy `uvxyz` and a timestep in, a prediction of the same five channels out.

    What is predicted is the scheduler's business (published: the scaled noise). Defaults are the published network.

    Args:
        num_joints: joints J.
        width, depth, num_attention_heads: size; a layer is an attention and a graph block.
        chebyshev_order: order of the graph convolutions' polynomials.
        dropout, attention_dropout, graph_dropout: after attention and feed-forward, on attention's weights, in graph convolutions.
        context_channels: channels of the context features that a lifter gives (`PoseModelOutput.features`), or None. Their projection is
            zero to begin with, so that a network without context is the special case.
        context_level: "joint" if every joint has features of its own, "frame" if all joints of a frame share one vector.
        tie_initialisation: begin with equal weights in all attention blocks, as the release does.
        edges: bones as joint pairs; default the skeleton's.
        canonical_camera, skeleton, root_index, fps: as in the other models.
    """

    adapter_modules = _ADAPTER_MODULES

    @register_to_config
    def __init__(
        self,
        num_joints: int = 17,
        width: int = 96,
        depth: int = 5,
        num_attention_heads: int = 4,
        chebyshev_order: int = 2,
        dropout: float = 0.25,
        attention_dropout: float = 0.1,
        graph_dropout: float = 0.1,
        context_channels: int | None = None,
        context_level: str = "joint",
        tie_initialisation: bool = False,
        edges: list[tuple[int, int]] | None = None,
        canonical_camera: tuple[float, float, float, float] | None = None,
        skeleton: str = "h36m_17",
        root_index: int = 0,
        fps: float | None = None,
    ):
        super().__init__()
        if context_level not in CONTEXT_LEVELS:
            raise ValueError(f"context_level must be one of {CONTEXT_LEVELS}, got {context_level!r}")
        polynomials = chebyshev_polynomials(bone_graph(num_joints, skeleton, edges), chebyshev_order)
        self.time_embedding = TimestepEmbedding(width, 4 * width, 4 * width, nn.functional.silu)
        self.trunk = GraFormerTrunk(
            5, 5, num_joints, width, depth, num_attention_heads, dropout, attention_dropout, graph_dropout, polynomials, 4 * width,
            tie_initialisation,
        )  # fmt: skip
        if context_channels is not None:
            self.context_projection = nn.Linear(context_channels, width if context_level == "joint" else num_joints * width)
            nn.init.zeros_(self.context_projection.weight)
            nn.init.zeros_(self.context_projection.bias)

    def forward(
        self,
        keypoints_2d: Tensor | None,
        noisy_pose: Tensor | None = None,
        timestep: Tensor | float | None = None,
        joint_mask: Tensor | None = None,
        context: Tensor | None = None,
        confidence: Tensor | None = None,
        return_dict: bool = True,
    ) -> PoseModelOutput | tuple[Tensor]:
        """Predict from noisy poses.

        Args:
            keypoints_2d: accepted for the sake of one calling convention and not used: the 2D pose is part of the noisy one, and what was
                observed comes as context.
            noisy_pose: `(batch, frames, joints, 5)` or `(batch, hypotheses, frames, joints, 5)`: u, v in screen units, x, y, z in metres,
                root-relative, camera axes.
            timestep: a number, or `(batch,)`, or `(batch, frames)`.
            joint_mask: booleans that broadcast to `(batch, frames, joints)`; joints that are False are not attended to.
            context: features `(batch, frames, joints, context_channels)`, with one joint if `context_level` is "frame"; None: none.
            confidence: as keypoints_2d.

        Raises:
            ValueError: missing inputs, or shapes that do not fit the model.
        """
        config = self.config
        if noisy_pose is None or timestep is None:
            raise ValueError("GraFormerDenoiser is a denoiser: noisy_pose and timestep are required")
        if noisy_pose.ndim not in (4, 5) or noisy_pose.shape[-2:] != (config.num_joints, 5):
            raise ValueError(
                f"noisy_pose must have shape (batch, [hypotheses,] frames, {config.num_joints}, 5), got {tuple(noisy_pose.shape)}"
            )
        pose = noisy_pose[:, None] if noisy_pose.ndim == 4 else noisy_pose
        batch, hypotheses, frames, joints, _ = pose.shape
        weight = self.trunk.conv_in.weight
        x = pose.to(weight.dtype).flatten(0, 2)
        out = self.trunk.head(
            self.trunk(
                x,
                self._time(timestep, batch, hypotheses, frames),
                self._context(context, batch, hypotheses, frames),
                _key_mask(joint_mask, batch, hypotheses, frames, joints, x.device),
            )
        )
        sample = out.reshape(noisy_pose.shape)
        return PoseModelOutput(sample=sample) if return_dict else (sample,)

    def _time(self, timestep: Tensor | float, batch: int, hypotheses: int, frames: int) -> Tensor:
        """Embedded timesteps, one for all samples `(1, 1, 4 · width)` or one each `(n, 1, 4 · width)`."""
        timestep = torch.as_tensor(timestep, device=self.device)
        if timestep.shape not in ((), (1,), (batch,), (batch, frames)):
            raise ValueError(f"timestep must be a number or have shape {(batch,)} or {(batch, frames)}, got {tuple(timestep.shape)}")
        time = self.time_embedding(timestep.flatten())
        if len(time) > 1:
            time = time.reshape(batch, 1, -1, time.shape[-1]).expand(-1, hypotheses, frames, -1).flatten(0, 2)
        return time[:, None]

    def _context(self, context: Tensor | None, batch: int, hypotheses: int, frames: int) -> Tensor | None:
        if context is None:
            return None
        config = self.config
        if config.context_channels is None:
            raise ValueError("this denoiser takes no context (context_channels=None)")
        joint_level = config.context_level == "joint"
        expected = (batch, frames, config.num_joints if joint_level else 1, config.context_channels)
        if context.shape != expected:
            raise ValueError(f"context must have shape {expected}, got {tuple(context.shape)}")
        projected = self.context_projection(context.to(self.context_projection.weight.dtype))
        projected = projected.reshape(batch, 1, frames, config.num_joints, -1)
        return projected.expand(-1, hypotheses, -1, -1, -1).flatten(0, 2)


class GraFormerLifter(AttentionBackendMixin, AdapterMixin, HubMixin, ModelMixin, ConfigMixin):
    """DiffPose's lifter (GCNpose): 2D in, 3D out, one frame at a time. Defaults are the published network.

    Args:
        num_joints, width, depth, num_attention_heads, chebyshev_order: as in `GraFormerDenoiser`, and so are the others:
        dropout, attention_dropout, graph_dropout, tie_initialisation, edges, canonical_camera, skeleton, root_index, fps.
    """

    adapter_modules = _ADAPTER_MODULES

    @register_to_config
    def __init__(
        self,
        num_joints: int = 17,
        width: int = 96,
        depth: int = 5,
        num_attention_heads: int = 4,
        chebyshev_order: int = 2,
        dropout: float = 0.25,
        attention_dropout: float = 0.1,
        graph_dropout: float = 0.1,
        tie_initialisation: bool = False,
        edges: list[tuple[int, int]] | None = None,
        canonical_camera: tuple[float, float, float, float] | None = None,
        skeleton: str = "h36m_17",
        root_index: int = 0,
        fps: float | None = None,
    ):
        super().__init__()
        polynomials = chebyshev_polynomials(bone_graph(num_joints, skeleton, edges), chebyshev_order)
        self.trunk = GraFormerTrunk(
            2, 3, num_joints, width, depth, num_attention_heads, dropout, attention_dropout, graph_dropout, polynomials, None,
            tie_initialisation,
        )  # fmt: skip

    @property
    def context_shape(self) -> tuple[str, int]:
        """Level and channels of the features, as `GraFormerDenoiser` is told of them."""
        return "joint", self.config.width

    def forward(
        self,
        keypoints_2d: Tensor,
        confidence: Tensor | None = None,
        joint_mask: Tensor | None = None,
        output_features: bool = False,
        return_dict: bool = True,
    ) -> PoseModelOutput | tuple[Tensor, ...]:
        """Lift.

        Args:
            keypoints_2d: `(batch, frames, joints, 2)` in screen units.
            confidence: accepted for the sake of one calling convention, and not used.
            joint_mask: as in `GraFormerDenoiser`.
            output_features: also return what the last convolution sees, `(batch, frames, joints, width)`.

        Returns:
            `sample (batch, frames, joints, 3)` metres, camera axes. The root joint is not held at zero: subtract it.

        Raises:
            ValueError: shapes that do not fit the model.
        """
        joints = self.config.num_joints
        if keypoints_2d.ndim != 4 or keypoints_2d.shape[-2:] != (joints, 2):
            raise ValueError(f"keypoints_2d must have shape (batch, frames, {joints}, 2), got {tuple(keypoints_2d.shape)}")
        batch, frames = keypoints_2d.shape[:2]
        x = keypoints_2d.to(self.trunk.conv_in.weight.dtype).flatten(0, 1)
        features = self.trunk(x, mask=_key_mask(joint_mask, batch, 1, frames, joints, x.device))
        sample = self.trunk.head(features).unflatten(0, (batch, frames))
        features = features.unflatten(0, (batch, frames)) if output_features else None
        return PoseModelOutput(sample=sample, features=features) if return_dict else (sample, *([features] if output_features else []))
