"""Could a body do this? Bones, joint limits and feet that slide.

Everything takes `(..., frames, joints, 3)` with any leading axes, so that a set of hypotheses is measured as one; where
there is a target or a mask, it may lack the axes of the hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probpose.skeletons import Skeleton, get_skeleton, list_skeletons

from .inputs import Array, against, check_finite, distance, mean_mm, shared_by_hypotheses, single

# ---------------------------------------------------------------------------------------------------------------------
# Bones
# ---------------------------------------------------------------------------------------------------------------------


def bone_length_error(pred: Array, target: Array, bones: Sequence[tuple[int, int]], mask: Array | None = None) -> float:
    """Mean absolute difference between predicted and true bone lengths in mm.

    Args:
        pred: `(..., frames, joints, 3)` metres, with axes of hypotheses before the frames if wanted.
        target: the same shape without the axes of the hypotheses.
        bones: as in `Skeleton.bones`.
        mask: valid entries of `target`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, no valid entry, bones of other joints.
    """
    pred, target, valid = against(pred, target, mask)
    return mean_mm((_bone_lengths(pred, bones) - _bone_lengths(target, bones)).abs(), _both_ends(valid, bones))


def bone_length_deviation(pose: Array, bones: Sequence[tuple[int, int]], mask: Array | None = None) -> float:
    """Standard deviation of each bone's length over the frames of its sequence, averaged over bones and sequences, in
    mm.

    Zero for a rigid skeleton, whatever its size.
    """
    pose, valid = single(pose, mask)
    lengths, valid = _bone_lengths(pose, bones), _both_ends(valid, bones)
    count = valid.sum(-2, keepdim=True).clamp_min(1)
    mean = (lengths * valid).sum(-2, keepdim=True, dtype=torch.float64) / count
    variance = ((lengths - mean.to(lengths)).square() * valid).sum(-2, keepdim=True, dtype=torch.float64) / count
    return mean_mm(variance.sqrt(), valid.any(-2, keepdim=True))


def symmetry_error(
    pose: Array, bones: Sequence[tuple[int, int]], flip_pairs: Sequence[tuple[int, int]], mask: Array | None = None
) -> float:
    """Mean absolute difference between the lengths of a left bone and its right partner, in mm.

    Args:
        pose: `(..., frames, joints, 3)` metres.
        bones: as in `Skeleton.bones`.
        flip_pairs: `(left, right)` joints, as in `Skeleton.flip_pairs`.
        mask: valid entries.
    """
    pose, valid = single(pose, mask)
    partner = {left: right for left, right in flip_pairs}
    left = [bone for bone in bones if partner.keys() & set(bone)]
    right = [tuple(partner.get(joint, joint) for joint in bone) for bone in left]
    known = {frozenset(bone) for bone in bones}
    if not left or any(frozenset(bone) not in known for bone in right):
        raise ValueError(f"flip_pairs must map bones to bones, got {list(flip_pairs)} for {list(bones)}")
    return mean_mm((_bone_lengths(pose, left) - _bone_lengths(pose, right)).abs(), _both_ends(valid, left) & _both_ends(valid, right))


def _bone_lengths(pose: Tensor, bones: Sequence[tuple[int, int]]) -> Tensor:
    """Lengths `(..., frames, bones)`."""
    joints = pose.shape[-2]
    if not len(bones) or any(len(bone) != 2 or not all(joint in range(joints) for joint in bone) for bone in bones):
        raise ValueError(f"bones must be pairs of joints in 0..{joints - 1}, got {list(bones)}")
    a, b = ([bone[end] for bone in bones] for end in (0, 1))
    pieces = pose.reshape(-1, joints, 3).split(2**13)  # which fit the processor's cache
    return torch.cat([distance(piece[:, a], piece[:, b]) for piece in pieces]).reshape(*pose.shape[:-2], len(bones))


def _both_ends(valid: Tensor, bones: Sequence[tuple[int, int]]) -> Tensor:
    a, b = ([bone[end] for bone in bones] for end in (0, 1))
    return valid[..., a] & valid[..., b]


# ---------------------------------------------------------------------------------------------------------------------
# Joint limits
# ---------------------------------------------------------------------------------------------------------------------

JOINT_LIMITS = {
    "knee_flexion": 165.0,
    "knee_forward": 15.0,
    "elbow_flexion": 160.0,
    "elbow_backward": 30.0,
    "hip_backward": 45.0,
    "hip_inward": 45.0,
    "spine_bend": 70.0,
    "neck_bend": 75.0,
}
"""Degrees that no angle of `joint_angles` may exceed; wider than what flexible people reach."""

_SIDES = ("left", "right")


def joint_angles(pose: Array, skeleton: str | Skeleton = "h36m_17") -> dict[str, Tensor]:
    """Angles of the body in degrees, from joint positions alone.

    The same for a person who is turned, moved, grown or, with left and right exchanged, mirrored. A bone without length
    makes no angle.

    Args:
        pose: `(..., frames, joints, 3)` metres, right-handed axes.
        skeleton: of the pose; one with a pelvis, a spine joint, a neck or thorax, and a head top.

    Returns:
        Tensors `(..., frames)` under the names of `JOINT_LIMITS`, with `left_` or `right_` before those of limbs:
        `knee_flexion`, `elbow_flexion`: 0 for a straight limb, 180 for one folded up. `knee_forward`, `elbow_backward`:
        how far the lower part leans the wrong way, measured about the line through the hips (shoulders): positive for
        a shank in front of a hanging thigh and for a forearm behind a hanging upper arm. `hip_backward`, `hip_inward`:
        elevation of the thigh behind the plane of trunk and hips, and towards the other side. `spine_bend`,
        `neck_bend`: between pelvis-spine and spine-thorax, and between spine-thorax and thorax-head.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a skeleton that lacks one of the joints.
    """
    pose, _ = single(pose, None)
    return _joint_angles(pose, get_skeleton(skeleton))


def joint_limit_violations(pose: Array, skeleton: str | Skeleton = "h36m_17", mask: Array | None = None) -> float:
    """Percentage of impossible joints: pairs of a frame and one of eight joints (knees, elbows, hips, spine, neck) in
    which an angle of `joint_angles` exceeds `JOINT_LIMITS`.

    The limits are generous: of these pairs 0.0009 % exceed one in 27 446 training frames of CMU motion capture (sports,
    walking, playground) and 0.00004 % in 299 398 of Bandai-Namco's (fighting, dancing, styles). With 50 mm of Gaussian
    noise on every coordinate it is 6 % and 10 %, with front and back exchanged 42 % and 30 %.

    Args:
        pose: `(..., frames, joints, 3)` metres.
        skeleton: of the pose, as in `joint_angles`.
        mask: valid entries; a frame counts if all joints that the angles need are valid.

    Raises:
        ValueError: as `joint_angles`, and no frame that counts.
    """
    skeleton = get_skeleton(skeleton)
    pose, valid = single(pose, mask)
    broken: dict[str, Tensor] = {}
    for name, angle in _joint_angles(pose, skeleton).items():
        joint, kind = name.rpartition("_")[0], name.removeprefix("left_").removeprefix("right_")
        broken[joint] = broken.get(joint, False) | (angle > JOINT_LIMITS[kind])
    valid = valid[..., list(_body(skeleton).values())].all(-1)
    if not valid.any():
        raise ValueError("mask leaves no valid entry to average over")
    return 100 * torch.stack(list(broken.values()), dim=-1)[valid].double().mean().item()


def _body(skeleton: Skeleton) -> dict[str, int]:
    """Index of every joint that the angles need."""
    index = _body_by_name(skeleton.joint_names)
    if index is None:
        known = [name for name in list_skeletons() if _body_by_name(get_skeleton(name).joint_names)]
        raise ValueError(f"skeleton {skeleton.name!r} lacks joints that the angles need; known are {', '.join(known)}")
    return index


def _body_by_name(names: tuple[str, ...]) -> dict[str, int] | None:
    limbs = [f"{side}_{joint}" for side in _SIDES for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")]
    needed = {name: name for name in ("pelvis", "spine", "head_top", *limbs)}
    needed["thorax"] = "neck" if "neck" in names else "thorax"
    return {name: names.index(own) for name, own in needed.items()} if set(needed.values()) <= set(names) else None


def _joint_angles(pose: Tensor, skeleton: Skeleton) -> dict[str, Tensor]:
    index = _body(skeleton)
    if pose.shape[-2] != skeleton.num_joints:
        raise ValueError(f"pose must have the {skeleton.num_joints} joints of {skeleton.name!r}, got {pose.shape[-2]}")

    def direction(start: str, end: str) -> Tensor:
        return _unit(pose[..., index[end], :] - pose[..., index[start], :])

    hips, shoulders, trunk = direction("right_hip", "left_hip"), direction("right_shoulder", "left_shoulder"), direction("pelvis", "thorax")
    forward = _unit(torch.linalg.cross(hips, trunk))
    lower, upper, head = direction("pelvis", "spine"), direction("spine", "thorax"), direction("thorax", "head_top")
    angles = {"spine_bend": _between(lower, upper), "neck_bend": _between(upper, head)}
    for side, inward in zip(_SIDES, (-hips, hips)):
        thigh, shank = direction(f"{side}_hip", f"{side}_knee"), direction(f"{side}_knee", f"{side}_ankle")
        arm, forearm = direction(f"{side}_shoulder", f"{side}_elbow"), direction(f"{side}_elbow", f"{side}_wrist")
        angles |= {
            f"{side}_knee_flexion": _between(thigh, shank),
            f"{side}_knee_forward": -_elevation(torch.linalg.cross(thigh, shank), hips),
            f"{side}_elbow_flexion": _between(arm, forearm),
            f"{side}_elbow_backward": _elevation(torch.linalg.cross(arm, forearm), shoulders),
            f"{side}_hip_backward": -_elevation(thigh, forward),
            f"{side}_hip_inward": _elevation(thigh, inward),
        }
    return angles


def _unit(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vector, dim=-1)


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Angle between two directions in degrees, zero if one of them is missing."""
    return torch.rad2deg(torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1), (a * b).sum(-1)))


def _elevation(vector: Tensor, axis: Tensor) -> Tensor:
    """Arc sine of the part along an axis, in degrees."""
    return torch.rad2deg(torch.asin((vector * axis).sum(-1).clamp(-1, 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Feet
# ---------------------------------------------------------------------------------------------------------------------


def foot_skate(
    pose: Array,
    root: Array,
    fps: float,
    target: Array,
    target_root: Array,
    still_mm_per_s: float = 150.0,
    skeleton: str | Skeleton = "h36m_17",
    mask: Array | None = None,
) -> float:
    """How fast feet slide while they should stand: mean speed of the ankles in mm/s over the moments at which the true
    ankle stands still.

    The axes must not move: a camera on a tripod, or the world.

    Args:
        pose: `(..., frames, joints, 3)` metres, relative to the root, with axes of hypotheses before the frames if wanted.
        root: trajectory `(..., frames, 3)` with the axes of `pose` or of `target`.
        fps: frames per second.
        target: the true pose, the same shape without the axes of the hypotheses.
        target_root: its trajectory `(..., frames, 3)`.
        still_mm_per_s: an ankle that moves slower than this from one frame to the next stands still.
        skeleton: of the poses.
        mask: valid entries of `target`.

    Returns:
        mm/s; the true motion itself has a small positive value.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, `fps` not positive, fewer than two frames, a
            skeleton without ankles, no moment at which a true ankle stands still.
    """
    skeleton = get_skeleton(skeleton)
    ankles = [joint for joint, name in enumerate(skeleton.joint_names) if name in ("left_ankle", "right_ankle")]
    if len(ankles) != 2:
        raise ValueError(f"skeleton {skeleton.name!r} has no ankles")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pose, target, valid = against(pose, target, mask)
    if pose.shape[-2] != skeleton.num_joints or pose.shape[-3] < 2:
        raise ValueError(
            f"pose must have two or more frames of the {skeleton.num_joints} joints of {skeleton.name!r}, got {tuple(pose.shape)}"
        )
    speed, true_speed = _speed(pose, root, "root", ankles, fps), _speed(target, target_root, "target_root", ankles, fps)
    valid = valid[..., ankles]
    still = (1000 * true_speed < still_mm_per_s) & valid[..., 1:, :] & valid[..., :-1, :]
    if not still.any():
        raise ValueError(f"there is no moment at which a true ankle moves slower than {still_mm_per_s} mm/s")
    return mean_mm(speed, still)


def _speed(pose: Tensor, root: Array, name: str, joints: list[int], fps: float) -> Tensor:
    """Speed of some joints in m/s, `(..., frames - 1, joints)`."""
    root = torch.as_tensor(root).to(pose.device)
    check_finite(name, root)
    path = shared_by_hypotheses(name, root[..., None, :], pose[..., :1, :]).double()
    return fps * torch.linalg.vector_norm((pose[..., joints, :].double() + path).diff(dim=-3), dim=-1)
