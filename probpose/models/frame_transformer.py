"""FrameTransformer: one token per frame, temporal attention only. The efficient denoiser.

A frame's token holds all joints' 2D positions, confidences and noisy 3D positions, so a window of F frames costs F tokens instead of the
F × J of a joint-token network. Two symmetries of the task are built in rather than learned:

* *viewing direction*: the window is seen through a virtual camera turned towards the person; the 3D output is turned back. Where in
  the image a person stands then changes little but two input numbers.
* *image scale*: 2D positions enter in units of the person's own extent; that extent is an input number, too.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from probpose.geometry import rotation_between_z_and
from probpose.hub.push import HubMixin

from .adapters import AdapterMixin
from .attention import AttentionBackendMixin
from .embeddings import TimestepEmbedding, rotary_table
from .layers import TransformerBlock
from .outputs import PoseModelOutput


class FrameTransformerModel(AttentionBackendMixin, AdapterMixin, HubMixin, ModelMixin, ConfigMixin):
    """Denoiser or lifter with one token per frame.

    Args:
        num_frames: window length the model was trained with.
        num_joints: joints J.
        in_channels: per joint; 5 = a denoiser, 2D position and noisy 3D position; 2 = a lifter, 2D position alone.
        width, depth, num_attention_heads, mlp_ratio: size of the transformer.
        drop_path: stochastic depth rate of the last block while training; falls linearly to zero at the first.
        conditional: whether the model sees 2D keypoints. An unconditional model ignores them (a motion prior).
        canonical_camera: `[fx, fy, cx, cy]` in screen units of the camera that the keypoints are expressed in (see
            `probpose.geometry.reexpress_keypoints`).
        skeleton: joint set of input and output.
        any_length: whether the model was trained on shorter windows, too; otherwise a pipeline pads short clips to `num_frames`.
        fps: frame rate of the training windows, or None.
    """

    adapter_modules = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

    @register_to_config
    def __init__(
        self,
        num_frames: int = 27,
        num_joints: int = 17,
        in_channels: int = 5,
        width: int = 256,
        depth: int = 5,
        num_attention_heads: int = 4,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        conditional: bool = True,
        canonical_camera: tuple[float, float, float, float] = (2.29, 2.29, 0.0, 0.0),
        skeleton: str = "h36m_17",
        any_length: bool = True,
        fps: float | None = None,
    ):
        super().__init__()
        if in_channels not in (2, 5) or (in_channels == 2 and not conditional):
            raise ValueError(f"in_channels must be 5 (denoiser) or, if conditional, 2 (lifter), got {in_channels}")
        if conditional:
            # per joint: 2D (2), confidence (1); per window: viewing direction (2), log extent (1)
            self.keypoint_embedding = nn.Linear(3 * num_joints + 3, width)
        if in_channels == 5:
            self.pose_embedding = nn.Linear(3 * num_joints, width)
            self.time_embedding = TimestepEmbedding(width, width)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(TransformerBlock(width, num_attention_heads, mlp_ratio, drop_path=rate) for rate in rates)
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, 3 * num_joints)

    @property
    def context_shape(self) -> tuple[str, int]:
        """Level and channels of a lifter's features, as `GraFormerDenoiser` is told of them."""
        return "frame", self.config.width

    @torch.no_grad()
    def to_lifter(self, timestep: int) -> FrameTransformerModel:
        """The lifter that answers as this denoiser does to a pose of zeros at a timestep.

        At its noisiest timestep a denoiser learns nothing from the noisy pose: it is a lifter already.
        """
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        lifter = type(self)(**{**config, "in_channels": 2}).to(self.device)
        lifter.load_state_dict({name: self.state_dict()[name] for name in lifter.state_dict()})
        time = self.time_embedding(torch.tensor([timestep], device=self.device))[0]
        lifter.keypoint_embedding.bias += self.pose_embedding.bias + time
        return lifter.to(self.dtype).train(self.training)

    def forward(
        self,
        keypoints_2d: Tensor | None,
        noisy_pose: Tensor | None = None,
        timestep: Tensor | int | None = None,
        confidence: Tensor | None = None,
        output_features: bool = False,
        return_dict: bool = True,
    ) -> PoseModelOutput | tuple[Tensor, ...]:
        """Predict the clean pose.

        Args:
            keypoints_2d: `(batch, frames, joints, 2)` in screen units of the canonical camera; None for an unconditional model.
            noisy_pose: `(batch, frames, joints, 3)` or `(batch, hypotheses, frames, joints, 3)` in metres, root-relative, camera axes; None
                for a lifter.
            timestep: integer, or `(batch,)`; None for a lifter.
            confidence: `(batch, frames, joints)` in 0..1, 0 = not observed; default all ones.
            output_features: also return what the last layer sees, `(batch, frames, 1, width)`; of a lifter.

        Raises:
            ValueError: missing inputs, or shapes that do not fit the model.
        """
        config = self.config
        batch, frames = self._check(keypoints_2d, noisy_pose, timestep, confidence, output_features)
        folded = noisy_pose is None or noisy_pose.ndim == 4
        x: Tensor | float = 0.0
        if config.conditional:
            condition, turn = self._embed_keypoints(keypoints_2d, confidence)
            x = condition[:, None]
        if noisy_pose is not None:
            pose = (noisy_pose[:, None] if folded else noisy_pose).to(self.proj_out.weight.dtype)
            if config.conditional:
                pose = torch.einsum("bij,bkftj->bkfti", turn.mT, pose)
            time = self.time_embedding(torch.as_tensor(timestep, device=pose.device).expand(batch))[:, None, None]
            x = self.pose_embedding(pose.flatten(-2)) + (x + time)

        shape = x.shape
        x = x.flatten(0, 1)
        rotary = rotary_table(frames, config.width // config.num_attention_heads, x.device)
        for block in self.blocks:
            x = block(x, rotary)
        features = self.norm_out(x)
        x = self.proj_out(features).reshape(*shape[:3], config.num_joints, 3)
        if config.conditional:
            x = torch.einsum("bij,bkftj->bkfti", turn.to(x.dtype), x)
        sample = x[:, 0] if folded else x
        features = features[:, :, None] if output_features else None
        return PoseModelOutput(sample=sample, features=features) if return_dict else (sample, *([features] if output_features else []))

    def _check(
        self, keypoints_2d: Tensor | None, noisy_pose: Tensor | None, timestep: Any, confidence: Tensor | None, output_features: bool
    ) -> tuple[int, int]:
        """Number of windows and of their frames; ValueError names the input that does not fit."""
        config = self.config
        lifts = config.in_channels == 2
        if lifts and not (noisy_pose is None and timestep is None):
            raise ValueError("a lifter (in_channels=2) takes neither noisy_pose nor timestep")
        if not lifts and (noisy_pose is None or timestep is None):
            raise ValueError("FrameTransformerModel is a denoiser (in_channels=5): noisy_pose and timestep are required")
        if not lifts and output_features:
            raise ValueError("a denoiser (in_channels=5) gives no features")
        if not lifts and (noisy_pose.ndim not in (4, 5) or noisy_pose.shape[-1] != 3):
            raise ValueError(f"noisy_pose must have shape (batch, [hypotheses,] frames, joints, 3), got {tuple(noisy_pose.shape)}")
        name, given = ("keypoints_2d", keypoints_2d) if lifts else ("noisy_pose", noisy_pose)
        got = None if given is None else tuple(given.shape)
        if got is None or len(got) < 4 or got[-2] != config.num_joints or not 1 <= got[-3] <= config.num_frames:
            raise ValueError(f"{name} must hold {config.num_joints} joints and at most {config.num_frames} frames, got {got}")
        batch, frames = got[0], got[-3]
        if not lifts and (torch.as_tensor(timestep).ndim > 1 or torch.as_tensor(timestep).numel() not in (1, batch)):
            raise ValueError(f"timestep must be one integer or {batch}, got shape {tuple(torch.as_tensor(timestep).shape)}")
        window = (batch, frames, config.num_joints)
        if config.conditional and (keypoints_2d is None or keypoints_2d.shape != (*window, 2)):
            got = None if keypoints_2d is None else tuple(keypoints_2d.shape)
            raise ValueError(f"keypoints_2d must have shape {(*window, 2)}, got {got}")
        if config.conditional and confidence is not None and confidence.shape != window:
            raise ValueError(f"confidence must have shape {window}, got {tuple(confidence.shape)}")
        return batch, frames

    def _embed_keypoints(self, keypoints_2d: Tensor, confidence: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frame embeddings `(batch, frames, width)` and the turn `(batch, 3, 3)` from the virtual to the real camera."""
        keypoints = keypoints_2d.float()
        fx, fy, cx, cy = self.config.canonical_camera
        weight = torch.ones_like(keypoints[..., :1]) if confidence is None else confidence[..., None].float()
        slopes = (keypoints - keypoints.new_tensor([cx, cy])) / keypoints.new_tensor([fx, fy])
        rays = nn.functional.pad(torch.where(weight > 0, slopes, 0.0), (0, 1), value=1.0)
        direction = (weight * nn.functional.normalize(rays, dim=-1)).sum((1, 2))  # towards the person, (batch, 3)
        direction = torch.where(direction[:, 2:] > 0, direction, direction.new_tensor([0.0, 0.0, 1.0]))
        turn = rotation_between_z_and(direction)
        rays = torch.einsum("bji,bftj->bfti", turn, rays)
        local = rays[..., :2] / rays[..., 2:].clamp_min(0.05)
        extent = ((weight * local**2).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1e-6)).sqrt().clamp_min(1e-4)[:, None]
        local = torch.where(weight > 0, local / extent[:, None, None], 0.0).clamp(-10, 10)
        window = torch.cat([direction[:, :2] / direction[:, 2:], (extent / 0.1).log()], dim=-1)  # 1.7 m at 5 m: extent near 0.1
        features = torch.cat([local.flatten(-2), weight.flatten(-2), window[:, None].expand(-1, local.shape[1], -1)], dim=-1)
        dtype = self.keypoint_embedding.weight.dtype
        return self.keypoint_embedding(features.to(dtype)), turn.to(dtype)
