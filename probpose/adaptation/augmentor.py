"""Local pose augmentation: poses that a network learns to bend, stretch and turn until they look like those of another domain.

PoseDA (Chai et al., ICCV 2023, arXiv 2303.16456), which takes the three generators of PoseAug (Gong et al., CVPR 2021, arXiv 2105.02465)
without their translation: where the person stands is decided by `global_position_alignment`.

A bone is the vector from a joint to its parent, bones come in the order of `Skeleton.bones`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from probpose.geometry import quaternion_to_matrix
from probpose.skeletons import Skeleton, bone_lengths, get_skeleton

LARGEST_RATIO = 0.2
LARGEST_ANGLE = 3.1415

# ---------------------------------------------------------------------------------------------------------------------
# Bones and the parts of the body
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """What follows from a skeleton's graph and the names of its hips and shoulders; bones are given by their indices.

    Attributes:
        spine: bones from the root up to the joint where the arms part. They keep their direction.
        length_groups: for each bone the group that shares its length ratio: a bone and its mirror partner.
        frozen_group: group of the spine's last bone, which keeps its length. A person twice as large at twice the distance looks the
            same, so something has to say how large people are.
        parts: five overlapping sets of bones: left arm and right arm (each with the spine's last bone), right leg and left leg (each
            with both hips and the spine's first bone), torso (spine, head, hips, shoulders).
    """

    spine: tuple[int, ...]
    length_groups: tuple[int, ...]
    frozen_group: int
    parts: tuple[tuple[int, ...], ...]

    @property
    def num_groups(self) -> int:
        """Number of length ratios."""
        return max(self.length_groups) + 1


@cache
def anatomy(skeleton: str | Skeleton) -> Anatomy:
    """The anatomy of a skeleton.

    Raises:
        ValueError: a skeleton whose joints do not all hang on its root, or without hips and shoulders.
    """
    skeleton = get_skeleton(skeleton)
    names, parents = skeleton.joint_names, skeleton.parents
    needed = ("left_hip", "right_hip", "left_shoulder", "right_shoulder")
    if skeleton.root is None or parents[skeleton.root] != -1 or parents.count(-1) != 1 or not all(name in names for name in needed):
        raise ValueError(f"skeleton {skeleton.name!r} has no anatomy: all joints must hang on its root, among them {', '.join(needed)}")

    def path(joint: int) -> list[int]:
        """Joints from below the root down to this one."""
        return [] if parents[joint] < 0 else [*path(parents[joint]), joint]

    paths = [path(joint) for joint in range(skeleton.num_joints)]
    left_hip, right_hip, left_arm, right_arm = (paths[names.index(name)] for name in needed)
    spine = [joint for joint in left_arm if joint in right_arm]
    if not spine or set(spine) & {*left_hip, *right_hip}:
        raise ValueError(f"skeleton {skeleton.name!r} has no anatomy: it needs a spine between hips and shoulders")
    left_leg, right_leg, left_arm, right_arm = (
        [joint for joint, way in enumerate(paths) if first in way]
        for first in (left_hip[0], right_hip[0], left_arm[len(spine)], right_arm[len(spine)])
    )
    limbs = {*left_leg, *right_leg, *left_arm, *right_arm}
    middle = [joint for joint, way in enumerate(paths) if way and joint not in limbs]
    hips, shoulders = [left_leg[0], right_leg[0]], [left_arm[0], right_arm[0]]

    bone_of = {child: bone for bone, (_, child) in enumerate(skeleton.bones)}
    groups: dict[int, int] = {}
    for joint in bone_of:
        partner = skeleton.flip_index[joint]
        groups[joint] = groups[partner] if partner in groups else len(set(groups.values()))
    parts = (
        [spine[-1], *left_arm],
        [spine[-1], *right_arm],
        [*hips, spine[0], *right_leg],
        [*hips, spine[0], *left_leg],
        [*hips, *shoulders, *middle],
    )
    return Anatomy(
        spine=tuple(bone_of[joint] for joint in spine),
        length_groups=tuple(groups.values()),
        frozen_group=groups[spine[-1]],
        parts=tuple(tuple(sorted({bone_of[joint] for joint in part})) for part in parts),
    )


def bone_vectors(pose: Tensor, skeleton: str | Skeleton) -> Tensor:
    """Parent minus child: `(..., joints, 3)` to `(..., bones, 3)`.

    Raises:
        ValueError: a shape that does not fit the skeleton.
    """
    skeleton = get_skeleton(skeleton)
    if pose.ndim < 2 or pose.shape[-2] != skeleton.num_joints:
        raise ValueError(f"pose must have the {skeleton.num_joints} joints of {skeleton.name!r}, got shape {tuple(pose.shape)}")
    parents, children = ([bone[end] for bone in skeleton.bones] for end in (0, 1))
    return pose[..., parents, :] - pose[..., children, :]


def unit_bones(pose: Tensor, skeleton: str | Skeleton) -> Tensor:
    """Directions of the bones, `(..., joints, 3)` to `(..., bones, 3)`; zero for a bone without length."""
    return nn.functional.normalize(bone_vectors(pose, skeleton), dim=-1)


def assemble_bones(bones: Tensor, pose: Tensor, skeleton: Skeleton) -> Tensor:
    """The pose with these bones `(..., bones, 3)`, whose root is where it was: each joint is its parent minus its bone."""
    joints = [pose[..., skeleton.root, :]] * skeleton.num_joints
    below = {parent: [] for parent in range(skeleton.num_joints)}
    for bone, (parent, child) in enumerate(skeleton.bones):
        below[parent].append((bone, child))
    open_joints = [skeleton.root]
    for parent in open_joints:
        for bone, child in below[parent]:
            joints[child] = joints[parent] - bones[..., bone, :]
            open_joints.append(child)
    return torch.stack(joints, dim=-2)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms
# ---------------------------------------------------------------------------------------------------------------------


def bend_bones(pose: Tensor, delta: Tensor, skeleton: str | Skeleton, fixed: Sequence[int] | None = None) -> Tensor:
    """Turns every bone u to `(u + Δ) / |u + Δ|`; lengths and the root's place stay.

    Args:
        pose: `(..., joints, 3)` metres.
        delta: Δ, `(..., bones, 3)`, broadcastable; zero leaves the pose.
        skeleton: order of the joints.
        fixed: bones that keep their direction; None: the spine's.

    Raises:
        ValueError: a shape that does not fit the skeleton, or a skeleton without a spine.
    """
    skeleton = get_skeleton(skeleton)
    fixed = anatomy(skeleton).spine if fixed is None else fixed
    moves = torch.ones(len(skeleton.bones), 1, dtype=pose.dtype, device=pose.device)
    moves[list(fixed)] = 0
    unit = nn.functional.normalize(unit_bones(pose, skeleton) + moves * delta, dim=-1)
    return assemble_bones(unit * bone_lengths(pose, skeleton)[..., None], pose, skeleton)


def bend_amount(pose: Tensor, bent: Tensor, skeleton: str | Skeleton) -> Tensor:
    """One minus the cosine of the angle by which each bone was turned, `(..., bones)`."""
    return 1 - (unit_bones(pose, skeleton) * unit_bones(bent, skeleton)).sum(-1)


def length_ratios(raw: Tensor, skeleton: str | Skeleton) -> Tensor:
    """Ratios `0.2 tanh(raw)` of what a network says, `(..., groups)`; zero for the frozen group."""
    frozen = torch.arange(raw.shape[-1], device=raw.device) == anatomy(skeleton).frozen_group
    return (LARGEST_RATIO * raw.tanh()).masked_fill(frozen, 0)


def scale_bones(pose: Tensor, ratios: Tensor, skeleton: str | Skeleton) -> Tensor:
    """Makes every bone `1 + ratio` times as long; directions and the root's place stay.

    Args:
        pose: `(..., joints, 3)` metres.
        ratios: `(..., groups)`, broadcastable, one for each of `anatomy(skeleton).length_groups`: left and right share theirs.
        skeleton: order of the joints.

    Raises:
        ValueError: shapes that do not fit the skeleton.
    """
    skeleton = get_skeleton(skeleton)
    body = anatomy(skeleton)
    if ratios.shape[-1:] != (body.num_groups,):
        raise ValueError(f"ratios must have {body.num_groups} groups for {skeleton.name!r}, got shape {tuple(ratios.shape)}")
    factors = 1 + ratios[..., list(body.length_groups), None]
    return assemble_bones(bone_vectors(pose, skeleton) * factors, pose, skeleton)


def rotation_matrix(raw: Tensor) -> Tensor:
    """Rotations `(..., 3, 3)` by what a network says `(..., 3)`: the axis times the angle is `3.1415 tanh(raw)`."""
    turn = LARGEST_ANGLE * raw.tanh()
    angle = torch.linalg.vector_norm(turn, dim=-1, keepdim=True)
    # sin(a/2) / a, which is smooth at zero
    return quaternion_to_matrix(torch.cat([torch.cos(angle / 2), torch.sinc(angle / (2 * torch.pi)) / 2 * turn], dim=-1))


def rotate_about_root(pose: Tensor, raw: Tensor, root_index: int = 0) -> Tensor:
    """Turns poses `(..., joints, 3)` about their root by `rotation_matrix(raw)`, raw `(..., 3)`, broadcastable."""
    root = pose[..., root_index : root_index + 1, :]
    return (pose - root) @ rotation_matrix(raw).mT + root


# ---------------------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------------------


class AugmentedPose(NamedTuple):
    """What became of a pose.

    Attributes:
        bent: after bending, shape of the input, metres.
        scaled: bent, then with other bone lengths.
        pose: bent, scaled, then turned: the result, relative to its root.
        bend: 1 - cos of the angle by which each bone was bent, `(poses, [frames,] bones)`.
        ratio: relative change of lengths `(poses, groups)`, in ±0.2.
        rotation: `(poses, 3, 3)`.
    """

    bent: Tensor
    scaled: Tensor
    pose: Tensor
    bend: Tensor
    ratio: Tensor
    rotation: Tensor


class PoseAugmentor(ModelMixin, ConfigMixin):
    """Three networks, each of which sees a pose and noise, that decide how to bend, stretch and turn it.

    Args:
        skeleton: name of the joint order.
        hidden: width of the networks.
        output_gain: factor on the initial weights and biases of the three last layers; a small one starts near the identity, 1 is as
            published.

    Raises:
        ValueError: a skeleton without a spine, hips and shoulders.
    """

    @register_to_config
    def __init__(self, skeleton: str = "h36m_17", hidden: int = 256, output_gain: float = 1.0):
        super().__init__()
        joints = 3 * get_skeleton(skeleton).num_joints
        bones, groups = len(get_skeleton(skeleton).bones), anatomy(skeleton).num_groups
        self.bend = _generator(2 * joints, hidden, 3 * bones, output_gain)
        self.scale = _generator(2 * joints + bones, hidden, groups, output_gain)
        self.rotate = _generator(2 * joints, hidden, 3, output_gain)

    def forward(self, pose: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> AugmentedPose:
        """Augment. A clip is changed by one draw, decided on its middle frame, so that its motion stays smooth.

        Args:
            pose: `(poses, joints, 3)`, or clips `(clips, frames, joints, 3)`, metres, relative to the root.
            noise: standard normal `(3, poses, 3 · joints)`, for bending, scaling and turning; drawn if not given.
            generator: source of the noise.

        Raises:
            ValueError: shapes that do not fit, or a single pose or clip in training mode.
        """
        skeleton = get_skeleton(self.config.skeleton)
        if pose.ndim not in (3, 4) or pose.shape[-2:] != (skeleton.num_joints, 3):
            shape = f"(poses, {skeleton.num_joints}, 3) or (clips, frames, {skeleton.num_joints}, 3)"
            raise ValueError(f"pose must have shape {shape} for {skeleton.name!r}, got {tuple(pose.shape)}")
        if self.training and len(pose) < 2:
            raise ValueError(f"in training mode batch normalisation needs at least two poses or clips, got {len(pose)}; see .eval()")
        key = pose if pose.ndim == 3 else pose[:, pose.shape[1] // 2]
        shape = (3, len(key), key[0].numel())
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=pose.device, dtype=pose.dtype)
        if noise.shape != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")

        # All three decide on the pose as it came; what they decide is applied in turn.
        seen, lengths = key.flatten(1), bone_lengths(key, skeleton)
        delta = self.bend(torch.cat([seen, noise[0]], dim=-1)).unflatten(-1, (-1, 3))
        ratio = length_ratios(self.scale(torch.cat([seen, lengths, noise[1]], dim=-1)), skeleton)
        turn = self.rotate(torch.cat([seen, noise[2]], dim=-1))

        every = (slice(None), None) if pose.ndim == 4 else (slice(None),)
        bent = bend_bones(pose, delta[every], skeleton)
        scaled = scale_bones(bent, ratio[every], skeleton)
        turned = rotate_about_root(scaled, turn[every], skeleton.root)
        return AugmentedPose(bent, scaled, turned, bend_amount(pose, bent, skeleton), ratio, rotation_matrix(turn))


def _generator(channels: int, hidden: int, out_channels: int, output_gain: float) -> nn.Sequential:
    widths = [channels, *[hidden] * 5]
    layers = [layer for i in range(5) for layer in (nn.Linear(widths[i], hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU())]
    network = nn.Sequential(*layers, nn.Linear(hidden, out_channels))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        network[-1].weight.mul_(output_gain)
        network[-1].bias.mul_(output_gain)
    return network
