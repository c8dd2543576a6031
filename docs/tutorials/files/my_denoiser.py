import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from probpose.models import PoseModelOutput
from probpose.models.embeddings import TimestepEmbedding


class PoseGRU(ModelMixin, ConfigMixin):
    """A recurrent network over frames, in both directions."""

    @register_to_config
    def __init__(
        self,
        num_frames: int = 27,
        num_joints: int = 17,
        width: int = 128,
        skeleton: str = "h36m_17",
        canonical_camera: tuple = (2.29, 2.29, 0.0, 0.0),
        any_length: bool = True,
        fps: float | None = None,
    ):
        super().__init__()
        self.read = nn.Linear(6 * num_joints, width)  # 2D, confidence, noisy 3D
        self.time = TimestepEmbedding(width, width)
        both_ways = {"batch_first": True, "bidirectional": True}
        self.remember = nn.GRU(width, width // 2, num_layers=2, **both_ways)
        self.write = nn.Linear(width, 3 * num_joints)

    def forward(
        self, keypoints_2d, noisy_pose, timestep, confidence=None, return_dict=True
    ):
        poses = noisy_pose if noisy_pose.ndim == 5 else noisy_pose[:, None]
        batch, hypotheses = poses.shape[:2]
        if confidence is None:
            confidence = torch.ones_like(keypoints_2d[..., 0])
        pelvis, others = keypoints_2d[..., :1, :], keypoints_2d[..., 1:, :]
        seen = torch.cat([pelvis, others - pelvis], dim=-2)
        seen = torch.cat([seen, confidence[..., None]], dim=-1)[:, None]
        x = torch.cat([seen.expand(-1, hypotheses, -1, -1, -1), poses], dim=-1)
        time = torch.as_tensor(timestep, device=x.device).expand(batch)
        x = self.read(x.flatten(-2)) + self.time(time)[:, None, None]
        x, _ = self.remember(x.flatten(0, 1))
        sample = self.write(x).reshape(noisy_pose.shape)
        return PoseModelOutput(sample=sample) if return_dict else (sample,)
