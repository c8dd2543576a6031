"""AttentionAggregator: a network that looks at all hypotheses at once and says what pose they make and how sure that is.

A joint of a frame is a short sequence: one token for the joint itself and one for each hypothesis of it. Two kinds of attention
alternate: within that sequence, where hypotheses are compared with one another, and between the joint tokens of a frame, where the
skeleton makes up its mind. Hypotheses carry no order, so the result does not depend on theirs, nor is their number fixed.

Everything is expressed along the line of sight to the person, since that is the direction in which hypotheses are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from probpose.geometry import Camera, root_of_hypotheses, rotation_between_z_and
from probpose.hub.push import HubMixin

from .attention import AttentionBackendMixin
from .layers import TransformerBlock

MAX_TOKENS = 65_536
"""Clips × hypotheses × joints × frames in one piece of work; frames are independent, so long clips are worked through in pieces."""

_UNIT = 0.02  # metres; a typical error, which brings offsets and residuals to the order of one
_FEATURES = 7  # of a hypothesis: offset from the mean (3), reprojection residual (2) and its length (1), confidence (1)
_JOINT_FEATURES = 12  # mean pose (3), log spread (3), residual of the mean (2) and its length (1), confidence (1), log depth (1), log K (1)


@dataclass
class AttentionAggregatorOutput(BaseOutput):
    """An aggregated pose.

    Args:
        pose: `(batch, frames, joints, 3)` metres.
        uncertainty: `(batch, frames, joints)` metres: predicted root-mean-square distance of the truth from `pose`.
        weights: `(batch, num_hypotheses, frames, joints)`, share of each hypothesis in `pose`; they sum to one over the hypotheses.
    """

    pose: Tensor
    uncertainty: Tensor
    weights: Tensor


class AttentionAggregator(AttentionBackendMixin, HubMixin, ModelMixin, ConfigMixin):
    """Learned aggregation of hypotheses.

    The pose is the weighted mean of the hypotheses plus, with `correction`, a small offset. An untrained network returns the mean.

    Args:
        num_joints: joints J.
        width, depth, num_attention_heads, mlp_ratio: size; every layer has one block over hypotheses and one over joints.
        correction: whether the pose may leave the span of the hypotheses.
        skeleton: joint set of the hypotheses and keypoints.
    """

    needs_camera = True

    @register_to_config
    def __init__(
        self,
        num_joints: int = 17,
        width: int = 64,
        depth: int = 2,
        num_attention_heads: int = 2,
        mlp_ratio: float = 2.0,
        correction: bool = True,
        skeleton: str = "h36m_17",
    ):
        super().__init__()
        self.joint_embedding = nn.Parameter(0.02 * torch.randn(num_joints, width))
        self.hypothesis_in = nn.Linear(_FEATURES, width)
        self.joint_in = nn.Linear(_JOINT_FEATURES, width)
        self.over_hypotheses = nn.ModuleList(TransformerBlock(width, num_attention_heads, mlp_ratio) for _ in range(depth))
        self.over_joints = nn.ModuleList(TransformerBlock(width, num_attention_heads, mlp_ratio) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.weight_out = nn.Linear(width, 1)
        self.joint_out = nn.Linear(width, 4)  # correction (3), log of the uncertainty (1)
        for layer in (self.weight_out, self.joint_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("uncertainty_scale", torch.ones(num_joints))

    def forward(
        self,
        hypotheses: Tensor,
        keypoints_2d: Tensor | None = None,
        camera: Camera | None = None,
        root: Tensor | None = None,
        confidence: Tensor | None = None,
        fps: float = 30.0,
        return_dict: bool = True,
    ) -> AttentionAggregatorOutput | tuple[Tensor, ...]:
        """Aggregate.

        Args:
            hypotheses: `(batch, num_hypotheses, frames, joints, 3)` metres, root-relative, camera axes; any number of them.
            keypoints_2d: `(batch, frames, joints, 2)` in the camera's unit, NaN = not observed.
            camera: the camera that saw them, one or one per clip.
            root: root trajectory `(batch, frames, 3)` metres; estimated from the keypoints if not given.
            confidence: `(batch, frames, joints)` in 0..1.
            fps: frame rate, used by the root estimate.

        Raises:
            ValueError: hypotheses of another rank or joint count, or missing keypoints or camera.
        """
        joints = self.config.num_joints
        if hypotheses.ndim != 5 or hypotheses.shape[-2:] != (joints, 3):
            raise ValueError(f"hypotheses must have shape (batch, num_hypotheses, frames, {joints}, 3), got {tuple(hypotheses.shape)}")
        if keypoints_2d is None or camera is None:
            raise ValueError("AttentionAggregator compares reprojections: it needs keypoints_2d and camera")
        hypotheses = hypotheses.float()  # geometry is too much for half precision
        seen = torch.isfinite(keypoints_2d).all(-1)
        confidence = seen.to(hypotheses) if confidence is None else torch.where(seen, confidence, 0.0).to(hypotheses)
        root = root_of_hypotheses(hypotheses, keypoints_2d, camera, confidence, fps) if root is None else root.to(hypotheses)
        frames = max(1, MAX_TOKENS // (len(hypotheses) * hypotheses.shape[1] * joints))
        pieces = [
            self._aggregate(hypotheses[:, :, at], keypoints_2d[:, at], camera, root[:, at], confidence[:, at])
            for at in (slice(first, first + frames) for first in range(0, hypotheses.shape[2], frames))
        ]
        pose, uncertainty, weights = (torch.cat(parts, dim=dim) for parts, dim in zip(zip(*pieces), (1, 1, 2)))
        values: Any = {"pose": pose, "uncertainty": uncertainty, "weights": weights}
        return AttentionAggregatorOutput(**values) if return_dict else tuple(values.values())

    def _aggregate(
        self, hypotheses: Tensor, keypoints_2d: Tensor, camera: Camera, root: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pose, uncertainty and weights of some frames."""
        hypothesis, joint, turn, spread = self._features(hypotheses, keypoints_2d, camera, root, confidence)
        logits, out = self._attend(hypothesis, joint)
        weights = torch.softmax(logits.float(), dim=-1).permute(0, 3, 1, 2)
        pose = (weights[..., None] * hypotheses).sum(1)
        if self.config.correction:
            pose = pose + torch.einsum("bfij,bfnj->bfni", turn, _UNIT * out[..., :3].float())
        uncertainty = torch.exp(out[..., 3].float()) * spread.square().sum(-1).add(_UNIT**2).sqrt() * self.uncertainty_scale
        return pose, uncertainty, weights

    def _features(
        self, hypotheses: Tensor, keypoints_2d: Tensor, camera: Camera, root: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the tokens know: `(batch, frames, joints, K, 7)` and `(batch, frames, joints, 12)`; also the turn from the line of sight to
        camera axes `(batch, frames, 3, 3)` and the spread along its axes `(batch, frames, joints, 3)` in metres."""
        turn = rotation_between_z_and(root)
        mean = hypotheses.mean(1)
        offset = torch.einsum("bfji,bkfnj->bfnki", turn, hypotheses - mean[:, None])
        spread = offset.square().mean(-2).sqrt()
        focal = camera.focal.to(hypotheses).reshape(-1, 1, 1, 1, 2)
        keypoints = torch.nan_to_num(keypoints_2d.to(hypotheses))

        def residual(points: Tensor) -> Tensor:
            """By how many metres, at its depth, each point `(batch, n, frames, joints, 3)` misses its keypoint; zero without one."""
            slopes = (camera.project(points) - keypoints[:, None]) / focal
            missed = (slopes * points[..., 2:].clamp_min(0.1)).clamp(-0.3, 0.3)
            return torch.where(confidence[:, None, ..., None] > 0, missed, 0.0)

        here = root[:, None, :, None]
        missed = residual(hypotheses + here).permute(0, 2, 3, 1, 4) / _UNIT
        missed_mean = residual(mean[:, None] + here)[:, 0] / _UNIT
        count = hypotheses.shape[1]
        sure = confidence[..., None, None].expand(*offset.shape[:-1], 1)
        hypothesis = torch.cat([offset / _UNIT, missed, missed.norm(dim=-1, keepdim=True), sure], dim=-1)
        depth = root[..., 2].clamp_min(0.1).log()[..., None, None].expand_as(mean[..., :1])
        joint = torch.cat(
            [
                torch.einsum("bfji,bfnj->bfni", turn, mean), (spread / _UNIT + 0.05).log(), missed_mean,
                missed_mean.norm(dim=-1, keepdim=True), confidence[..., None], depth, torch.full_like(depth, count).log() / 3,
            ],
            dim=-1,
        )  # fmt: skip
        return hypothesis, joint, turn, spread

    def _attend(self, hypothesis: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(batch, frames, joints, K)` and what the joint tokens say `(batch, frames, joints, 4)`."""
        dtype, (batch, frames, joints) = self.hypothesis_in.weight.dtype, joint.shape[:3]
        tokens = self.hypothesis_in(hypothesis.to(dtype)) + self.joint_embedding[:, None]
        own = self.joint_in(joint.to(dtype)) + self.joint_embedding
        for over_hypotheses, over_joints in zip(self.over_hypotheses, self.over_joints):
            sequence = torch.cat([own.unsqueeze(-2), tokens], dim=-2).flatten(0, 2)
            own, tokens = over_hypotheses(sequence).unflatten(0, (batch, frames, joints)).split([1, tokens.shape[-2]], dim=-2)
            own = over_joints(own.squeeze(-2).flatten(0, 1)).unflatten(0, (batch, frames))
        return self.weight_out(self.norm_out(tokens)).squeeze(-1), self.joint_out(self.norm_out(own))
