"""Judges of poses: do bones stand to each other as a body's do, and do keypoints look like the target domain's?

The discriminators of PoseAug (Gong et al., CVPR 2021, arXiv 2105.02465) as PoseDA (Chai et al., ICCV 2023, arXiv 2303.16456) needs them:
the one in 3D anchors augmented poses in the source's anatomy, the one in 2D draws them to the *target's* keypoints.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from probpose.skeletons import Skeleton, get_skeleton

from .augmentor import anatomy, unit_bones


def part_grams(pose: Tensor, skeleton: str | Skeleton) -> Tensor:
    """Cosines between the bones of each part of the body, which know neither lengths nor orientation.

    Args:
        pose: `(..., joints, 3)`.
        skeleton: order of the joints.

    Returns:
        `(..., parts, bones²)`: Gram matrices of the unit bones, rows and columns of other parts' bones zero (the kinematic chain space of
        Wandt and Rosenhahn, CVPR 2019, for each of `anatomy(skeleton).parts`).
    """
    bones = unit_bones(pose, skeleton)
    parts = anatomy(skeleton).parts
    mask = bones.new_zeros(len(parts), bones.shape[-2], 1)
    for row, part in zip(mask, parts):
        row[list(part)] = 1
    kept = bones[..., None, :, :] * mask
    return (kept @ kept.mT).flatten(-2)


class StructureDiscriminator(ModelMixin, ConfigMixin):
    """Scores each part of a body by the angles between its bones; 1 = real.

    Args:
        skeleton: name of the joint order.
        hidden: width of the layers.
        last: width of the layer before the score.

    Raises:
        ValueError: a skeleton without a spine, hips and shoulders.
    """

    @register_to_config
    def __init__(self, skeleton: str = "h36m_17", hidden: int = 256, last: int = 100):
        super().__init__()
        bones = len(get_skeleton(skeleton).bones)
        for i in range(len(anatomy(skeleton).parts)):
            self.add_module(f"kcs_path_{i + 1}", _PartHead(bones**2, hidden, last))

    def forward(self, pose: Tensor) -> Tensor:
        """Scores `(..., parts)` of poses `(..., joints, 3)`, absolute or relative.

        Raises:
            ValueError: a shape that does not fit the skeleton.
        """
        grams = part_grams(pose, self.config.skeleton)
        return torch.cat([head(gram) for head, gram in zip(self.children(), grams.unbind(-2))], dim=-1)


class _PartHead(nn.Module):
    def __init__(self, channels: int, hidden: int, last: int):
        super().__init__()
        self.kcs_layer_1 = nn.Linear(channels, hidden)
        self.kcs_layer_2 = nn.Linear(hidden, hidden)
        self.kcs_layer_3 = nn.Linear(hidden, hidden)
        self.layer_last = nn.Linear(hidden, last)
        self.layer_pred = nn.Linear(last, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = leaky_relu(self.kcs_layer_1(x))
        x = self.kcs_layer_3(leaky_relu(self.kcs_layer_2(first))) + first
        return self.layer_pred(leaky_relu(self.layer_last(x)))


class KeypointDiscriminator(ModelMixin, ConfigMixin):
    """Scores keypoints as a whole; 1 = real.

    Args:
        skeleton: name of the joint order.
        hidden: width of the layers.
        centre: look at keypoints relative to their root and divided by the mean side of their box. Place and size are then left to
            `global_position_alignment`, which makes them agree with the target's anyway.

    Raises:
        ValueError: `centre` for a skeleton without a root.
    """

    @register_to_config
    def __init__(self, skeleton: str = "h36m_17", hidden: int = 100, centre: bool = False):
        super().__init__()
        if centre and get_skeleton(skeleton).root is None:
            raise ValueError(f"centre=True needs a skeleton with a root, {skeleton!r} has none")
        self.pose_layer_1 = nn.Linear(2 * get_skeleton(skeleton).num_joints, hidden)
        self.pose_layer_2 = nn.Linear(hidden, hidden)
        self.pose_layer_3 = nn.Linear(hidden, hidden)
        self.pose_layer_4 = nn.Linear(hidden, hidden)
        self.layer_last = nn.Linear(hidden, hidden)
        self.layer_pred = nn.Linear(hidden, 1)

    def forward(self, keypoints_2d: Tensor) -> Tensor:
        """Scores `(..., 1)` of keypoints `(..., joints, 2)` in screen units.

        Raises:
            ValueError: a shape that does not fit the skeleton, or keypoints that are not observed (NaN): choose complete ones.
        """
        skeleton = get_skeleton(self.config.skeleton)
        if keypoints_2d.shape[-2:] != (skeleton.num_joints, 2):
            raise ValueError(f"keypoints_2d must have shape (..., {skeleton.num_joints}, 2), got {tuple(keypoints_2d.shape)}")
        if not keypoints_2d.isfinite().all():
            raise ValueError("keypoints_2d must be observed in every joint: a discriminator cannot judge NaN")
        if self.config.centre:
            sides = keypoints_2d.amax(-2) - keypoints_2d.amin(-2)
            root = keypoints_2d[..., skeleton.root, :]
            keypoints_2d = (keypoints_2d - root[..., None, :]) / sides.mean(-1).clamp_min(1e-6)[..., None, None]
        first = leaky_relu(self.pose_layer_1(keypoints_2d.flatten(-2)))
        x = leaky_relu(self.pose_layer_2(first))
        x = self.pose_layer_4(leaky_relu(self.pose_layer_3(x) + first))
        return self.layer_pred(leaky_relu(self.layer_last(x)))
