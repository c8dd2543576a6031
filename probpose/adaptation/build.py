"""The build of the people in a new scene, read off their 2D keypoints.

Two data sets differ most in what they call a joint and in how their people are built: where the hips sit below the pelvis, how wide the
shoulders are, which point the spine bends at. A lifter puts its own data's build into every answer, and no 2D of one frame proves it wrong.
Over many people seen from many sides the same bones reproject wrongly in the same way, which gives them away, up to the size of the whole
body. This is probpose's own; published adaptation leaves joint definitions to a table of names.

A build is a change of poses: the bones of the torso (hips, spine, neck, head, shoulders) are displaced in the torso's own axes, alike on
both sides; the bones of the limbs change their length. Directions of limbs, and with them the motion, stay.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probpose.geometry import Camera, estimate_root
from probpose.skeletons import Skeleton, bone_lengths, get_skeleton

from .augmentor import anatomy, assemble_bones, bone_vectors

_TORSO_DEVIATION = 0.06  # metres
_LIMB_DEVIATION = 0.15  # of the logarithm of a length
_ERROR_SCALE = 0.05  # metres at the person's distance; larger errors are the pose's, not the build's
_LEAST_CONFIDENCE = 0.3
_PRIOR_WEIGHT = 1e-3  # thousands of frames speak; the prior only holds what none of them shows


class Build(NamedTuple):
    """How people differ from those of the poses that it is applied to.

    Attributes:
        torso: displacement of the torso's bones in metres, `(..., torso groups, 3)`: to the person's left, along the spine, and to the
            front. The right side's is mirrored, and what lies in the middle stays there.
        limbs: logarithm of the factor on the limbs' bone lengths, `(..., limb groups)`.
        size: logarithm of the factor on the whole body, after that, `(...)`.
    """

    torso: Tensor
    limbs: Tensor
    size: Tensor

    @classmethod
    def unchanged(cls, skeleton: str | Skeleton, *leading: int) -> Build:
        torso, limbs = _groups(get_skeleton(skeleton))
        groups = (max(numbers.values()) + 1 for numbers in (torso, limbs))
        return cls(torch.zeros(*leading, next(groups), 3), torch.zeros(*leading, next(groups)), torch.zeros(leading))

    def plus(self, other: Build) -> Build:
        """Both changes, one after the other (to first order)."""
        return Build(*(a + b for a, b in zip(self, other)))

    def varied(self, poses: int, torso: float, limbs: float, generator: torch.Generator | None = None) -> Build:
        """One build for each of `poses`: normally distributed about this, with these standard deviations (metres; logarithm)."""
        spread = [torch.randn(poses, *value.shape, generator=generator).to(value) for value in self[:2]]
        return Build(self.torso + torso * spread[0], self.limbs + limbs * spread[1], self.size.expand(poses))


def change_build(pose: Tensor, build: Build, skeleton: str | Skeleton) -> Tensor:
    """Poses `(..., joints, 3)` of people built otherwise; the root stays where it is.

    Args:
        pose: metres.
        build: for all of them, or with leading axes that broadcast against the pose's: for clips `(clips, frames, joints, 3)` a build of
            each clip has the shape `(clips, 1, ...)`.
        skeleton: order of the joints.

    Raises:
        ValueError: a skeleton whose anatomy is not known.
    """
    skeleton = get_skeleton(skeleton)
    torso, limbs = _groups(skeleton)
    build = Build(*(value.to(pose) for value in build))
    bones = bone_vectors(pose, skeleton).unbind(-2)
    axes = torso_axes(pose, skeleton)
    left, right = set(skeleton.left), set(skeleton.right)
    changed = []
    for bone, (_, child) in enumerate(skeleton.bones):
        if bone in torso:
            side = 1.0 if child in left else -1.0 if child in right else 0.0
            shift = build.torso[..., torso[bone], :] * build.torso.new_tensor([side, 1.0, 1.0])
            changed.append(bones[bone] - (axes @ shift[..., None])[..., 0])
        else:
            changed.append(bones[bone] * build.limbs[..., limbs[bone], None].exp())
    return assemble_bones(build.size.exp()[..., None, None] * torch.stack(changed, dim=-2), pose, skeleton)


def fit_build(
    pose: Tensor,
    keypoints_2d: Tensor,
    camera: Camera,
    confidence: Tensor,
    *,
    skeleton: str | Skeleton = "h36m_17",
    size: float | None = None,
    fps: float = 30.0,
    rounds: int = 5,
) -> Build:
    """The build with which estimated poses reproject best, one for all people.

    Depth and place of every frame follow from the keypoints and take no part: what counts is the shape in the image. The size of the body
    cannot be seen, so legs and spine together keep their length.

    Args:
        pose: what a lifter makes of the keypoints, `(clips, frames, joints, 3)` metres, camera axes, relative to the root.
        keypoints_2d: `(clips, frames, joints, 2)` in the camera's unit.
        camera: one, or one per clip.
        confidence: `(clips, frames, joints)` in 0..1.
        skeleton: order of the joints.
        size: length of a leg and the spine in metres that the build shall have; default: as in `pose`.
        fps: frame rate, for the root estimate.
        rounds: how often roots are estimated anew.

    Raises:
        ValueError: shapes that do not fit, no joint that is seen, a clip without any keypoint, or a skeleton whose anatomy is not known.
    """
    skeleton = get_skeleton(skeleton)
    if pose.ndim != 4 or keypoints_2d.shape != (*pose.shape[:-1], 2) or confidence.shape != pose.shape[:-1]:
        shapes = tuple(pose.shape), tuple(keypoints_2d.shape), tuple(confidence.shape)
        raise ValueError(f"pose, keypoints_2d, confidence must be (clips, frames, joints, 3 / 2 / none), got {shapes}")
    seen = ((confidence > _LEAST_CONFIDENCE) & keypoints_2d.isfinite().all(-1)).to(pose)
    if not seen.any():
        raise ValueError(f"a build is fitted to keypoints with a confidence above {_LEAST_CONFIDENCE}, but there are none")
    share = (seen / seen.sum(-1, keepdim=True).clamp_min(1))[..., None]
    keypoints = torch.where(seen[..., None] > 0, keypoints_2d, 0.0)
    size = body_size(pose, skeleton).mean() if size is None else size
    torso, limbs = (value.to(pose).requires_grad_() for value in Build.unchanged(skeleton)[:2])

    def fitted() -> Build:
        build = Build(torso, limbs, pose.new_zeros(()))
        return build._replace(size=(size / body_size(change_build(pose, build, skeleton), skeleton).mean()).log())

    for _ in range(rounds):
        with torch.no_grad():
            root = estimate_root(change_build(pose, fitted(), skeleton), keypoints_2d, camera, confidence, fps=fps)
        optimiser = torch.optim.LBFGS([torso, limbs], max_iter=12, line_search_fn="strong_wolfe")

        def loss(root: Tensor = root, optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
            optimiser.zero_grad()
            changed = change_build(pose, fitted(), skeleton)
            metres = root[..., None, 2:] / camera.focal.reshape(-1, 1, 1, 2)
            error = (camera.project(changed + root[:, :, None]) - keypoints) * metres
            # To first order a shift and a scale in the image are the root's.
            error = error - (share * error).sum(-2, keepdim=True)
            around = changed[..., :2] - (share * changed[..., :2]).sum(-2, keepdim=True)
            spread = (share * around.square()).sum((-2, -1), keepdim=True).clamp_min(1e-4)
            error = error - (share * error * around).sum((-2, -1), keepdim=True) / spread * around
            robust = (1 + error.square().sum(-1) / _ERROR_SCALE**2).log()
            prior = (torso / _TORSO_DEVIATION).square().sum() + (limbs / _LIMB_DEVIATION).square().sum()
            value = (seen * robust).sum() / seen.sum() + _PRIOR_WEIGHT * prior
            value.backward()
            return value

        with torch.enable_grad():
            optimiser.step(loss)
    return Build(*(value.detach() for value in fitted()))


def torso_axes(pose: Tensor, skeleton: str | Skeleton) -> Tensor:
    """The torso's axes as columns, `(..., 3, 3)`: to the person's left, up along the spine, and to the front (in right-handed axes)."""
    skeleton = get_skeleton(skeleton)
    at = {name: pose[..., index, :] for index, name in enumerate(skeleton.joint_names)}
    left = at["left_shoulder"] - at["right_shoulder"] + at["left_hip"] - at["right_hip"]
    left = nn.functional.normalize(left, dim=-1)
    spine = (at["left_shoulder"] + at["right_shoulder"]) / 2 - pose[..., skeleton.root, :]
    spine = nn.functional.normalize(spine - (spine * left).sum(-1, keepdim=True) * left, dim=-1)
    return torch.stack([left, spine, torch.linalg.cross(left, spine)], dim=-1)


def body_size(pose: Tensor, skeleton: str | Skeleton) -> Tensor:
    """Length of the left leg below the hip and of the spine, `(...)` metres."""
    skeleton = get_skeleton(skeleton)
    body, lengths = anatomy(skeleton), bone_lengths(pose, skeleton)
    torso, _ = _groups(skeleton)
    left_leg = [bone for bone in body.parts[3] if bone not in torso]
    return lengths[..., [*body.spine, *left_leg]].sum(-1)


def _groups(skeleton: Skeleton) -> tuple[dict[int, int], dict[int, int]]:
    """Bones of the torso and of the limbs, each with the number of its group; a bone and its mirror partner share one."""
    body = anatomy(skeleton)
    torso = [bone for bone in range(len(skeleton.bones)) if bone in body.parts[4]]
    limbs = [bone for bone in range(len(skeleton.bones)) if bone not in body.parts[4]]

    def numbered(bones: list[int]) -> dict[int, int]:
        groups = sorted({body.length_groups[bone] for bone in bones})
        return {bone: groups.index(body.length_groups[bone]) for bone in bones}

    return numbered(torso), numbered(limbs)
