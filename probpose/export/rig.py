"""Inverse kinematics: from joint positions to a tree of joints with bones of constant length that turn.

Every bone gets a node whose turn moves it and nothing else. A joint with one bone is that node. A joint with several bones (pelvis,
thorax) turns as a whole, and each of its bones then has a node of its own at the same place, named `"pelvis_to_left_hip"`, for what is left
over: real hips and shoulders do not keep their angles. So the joints come out exactly where the bones point, whatever the pose.
"""

from __future__ import annotations

import re

import numpy as np
from scipy.spatial.transform import Rotation

from probpose.data.bvh import Recording
from probpose.skeletons import Skeleton

# Where joints are in the rest pose, a T-pose that faces +z with y up: metres, the person's left side.
_T_POSE = {
    "pelvis": (0, 0.95, 0), "hip": (0.1, 0.95, 0), "knee": (0.1, 0.5, 0), "ankle": (0.1, 0.08, 0), "heel": (0.1, 0, -0.05),
    "foot": (0.1, 0.02, 0.12), "foot_index": (0.1, 0, 0.18), "toe": (0.1, 0, 0.18), "toe_end": (0.1, 0, 0.22),
    "big_toe": (0.08, 0, 0.18), "small_toe": (0.14, 0, 0.16),
    "spine_base": (0, 1.0, 0), "spine1": (0, 1.05, 0), "spine": (0, 1.15, 0), "spine2": (0, 1.2, 0), "chest": (0, 1.25, 0),
    "spine3": (0, 1.3, 0), "spine4": (0, 1.4, 0), "thorax": (0, 1.45, 0), "neck": (0, 1.48, 0), "upper_neck": (0, 1.52, 0),
    "head_bottom": (0, 1.52, 0), "neck_nose": (0, 1.6, 0.04), "head": (0, 1.65, 0), "head_top": (0, 1.75, 0),
    "nose": (0, 1.6, 0.1), "mouth": (0.02, 1.57, 0.09), "eye": (0.03, 1.64, 0.08), "eye_inner": (0.02, 1.64, 0.085),
    "eye_outer": (0.045, 1.64, 0.075), "ear": (0.07, 1.63, 0),
    "collar": (0.05, 1.45, 0), "clavicle": (0.05, 1.45, 0), "shoulder": (0.18, 1.45, 0), "elbow": (0.46, 1.45, 0),
    "wrist": (0.72, 1.45, 0), "hand": (0.8, 1.45, 0), "hand_end": (0.88, 1.45, 0), "thumb": (0.77, 1.45, 0.04),
    "thumb_end": (0.8, 1.45, 0.08), "index": (0.82, 1.45, 0.02), "pinky": (0.81, 1.45, -0.03),
}  # fmt: skip

_RETURN = 0.3  # seconds in which a twist that a bone has gathered on its way dies down
_STIFF = 0.2  # of the largest singular value: what keeps a joint of several bones from turning about one of them


def fit_rig(positions: np.ndarray, skeleton: Skeleton, fps: float) -> Recording:
    """Joint rotations that carry the rest pose to a motion.

    The rest pose is a T-pose with the bone lengths of `bone_lengths`. Joints with several bones take the least-squares rotation of
    their bones (Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32, 1976). A single bone takes the
    shortest arc from its rest direction, with no twist of its own relative to its parent; near the one direction where that is undefined
    (opposite to rest) its twist is carried on from frame to frame instead, and dies down afterwards. So nothing flips.

    Args:
        positions: `(frames, joints, 3)`, axes with y up.
        skeleton: their joint order.
        fps: frames per second.

    Returns:
        A `Recording` with a node for every joint, named like it, and one more for every bone of a joint that has several; depth first.
        Its `joint_positions()` are those of `project_bone_lengths`.
    """
    frames, rest = len(positions), rest_directions(skeleton)
    offsets = bone_lengths(positions, skeleton)[:, None] * rest
    directions = _directions(positions, skeleton)
    names, parents, rotations, translations = [], [], [], []

    def add(name: str, parent: int, turn: Rotation, place: np.ndarray) -> int:
        names.append(name)
        parents.append(parent)
        rotations.append(turn.as_matrix())
        translations.append(np.broadcast_to(place, (frames, 3)))
        return len(names) - 1

    turned: dict[int, tuple[int, Rotation]] = {}  # each joint's node and its axes in the world
    for joint in _outwards(skeleton):
        name, above, below = skeleton.joint_names[joint], skeleton.parents[joint], _children(skeleton, joint)
        node, axes = turned.get(above, (-1, Rotation.identity(frames)))
        if above >= 0 and len(_children(skeleton, above)) > 1:
            own = _swing(rest[joint], axes.inv().apply(directions[:, joint]), fps)
            node, axes = add(f"{skeleton.joint_names[above]}_to_{name}", node, own, np.zeros(3)), axes * own
        seen = [axes.inv().apply(directions[:, child]) for child in below]
        if len(below) > 1:
            turn = _fit(rest[below], np.stack(seen, axis=1))
        else:
            turn = _swing(rest[below[0]], seen[0], fps) if below else Rotation.identity(frames)
        node = add(name, node, turn, positions[:, joint] if above < 0 else offsets[joint])
        turned[joint] = node, axes * turn
    return Recording(tuple(names), tuple(parents), np.stack(rotations, axis=1), np.stack(translations, axis=1), fps)


def bone_lengths(positions: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """`(joints,)` length of the bone that ends in each joint: the clip's median, the same left and right; 0 for a joint without parent."""
    lengths = np.median(np.linalg.norm(_bones(positions, skeleton), axis=-1), axis=0)
    return (lengths + lengths[list(skeleton.flip_index)]) / 2


def project_bone_lengths(positions: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """The motion `(frames, joints, 3)` with every bone set to its constant length along its direction, from the root outwards."""
    steps = bone_lengths(positions, skeleton)[:, None] * _directions(positions, skeleton)
    projected = positions.copy()
    for joint in _outwards(skeleton):
        if (above := skeleton.parents[joint]) >= 0:
            projected[:, joint] = projected[:, above] + steps[:, joint]
    return projected


def rest_directions(skeleton: Skeleton) -> np.ndarray:
    """`(joints, 3)` unit direction of the bone that ends in each joint, in the rest pose; 0 for a joint without parent.

    Bones to joints that the table does not know (fingers, face points) go on like the bone before them.
    """
    rest = np.zeros((skeleton.num_joints, 3))
    places = [_rest_place(name) for name in skeleton.joint_names]
    for joint in _outwards(skeleton):
        if (above := skeleton.parents[joint]) >= 0:
            step = 0 if places[above] is None or places[joint] is None else places[joint] - places[above]
            straight = rest[above] if rest[above].any() else np.array([0.0, 1.0, 0.0])
            rest[joint] = step / np.linalg.norm(step) if np.any(step) else straight
    return rest


def _rest_place(name: str) -> np.ndarray | None:
    side, plain = re.fullmatch(r"(left_|right_|)(.*)", name, re.DOTALL).groups()
    if plain not in _T_POSE:
        return None
    return np.array(_T_POSE[plain]) * ([-1, 1, 1] if side == "right_" else 1)


def _children(skeleton: Skeleton, joint: int) -> list[int]:
    return [child for child, parent in enumerate(skeleton.parents) if parent == joint]


def _outwards(skeleton: Skeleton) -> list[int]:
    """All joints depth first, every one after its parent."""
    order, waiting = [], [joint for joint, parent in enumerate(skeleton.parents) if parent < 0][::-1]
    while waiting:
        order.append(waiting.pop())
        waiting += _children(skeleton, order[-1])[::-1]
    return order


def _bones(positions: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """`(frames, joints, 3)` from each joint's parent to it; 0 for a joint without parent."""
    above = [joint if parent < 0 else parent for joint, parent in enumerate(skeleton.parents)]
    return positions - positions[:, above]


def _directions(positions: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """`(frames, joints, 3)` unit directions of the bones.

    A bone that has no length in a frame keeps the direction it had before (at the beginning: the first it has); one that never has any
    has none, and its direction is 0.
    """
    bones = _bones(positions, skeleton)
    lengths = np.linalg.norm(bones, axis=-1)
    has_one = lengths > 1e-9
    last = np.maximum.accumulate(np.where(has_one, np.arange(len(bones))[:, None], -1), axis=0)
    last = np.where(last < 0, has_one.argmax(axis=0), last)
    return np.take_along_axis(bones / np.where(has_one, lengths, 1)[..., None], last[..., None], axis=0)


def _arc(start: np.ndarray, end: np.ndarray) -> Rotation:
    """The shortest rotations that take unit vectors `start` to `end`, `(frames, 3)` or one for all; a vector of length 0 turns nothing.

    The quaternion is the half-way one, (1 + s·e, s × e). Opposite vectors are joined about an axis perpendicular to them.
    """
    start, end = np.broadcast_arrays(start, end)
    real = 1 + np.einsum("fi,fi->f", start, end)
    aside = np.cross(start, np.eye(3)[np.abs(start).argmin(axis=-1)])
    opposite = (real < 1e-12)[:, None]
    return Rotation.from_quat(np.where(opposite, np.c_[aside, 0 * real], np.c_[np.cross(start, end), real]))


def _swing(rest: np.ndarray, directions: np.ndarray, fps: float) -> Rotation:
    """Rotations that take `rest (3,)` to each of the `directions (frames, 3)`; see `fit_rig`."""
    swing = _arc(rest, directions)
    if len(directions) == 1:
        return swing
    # The twist about the bone by which carrying the last frame's axes along differs from the shortest arc from rest.
    carried = (swing[1:].inv() * _arc(directions[:-1], directions[1:]) * swing[:-1]).as_rotvec() @ rest
    keep = 1 - (1 - np.exp(-1 / (fps * _RETURN))) * (1 + directions[1:] @ rest) / 2
    twist = [0.0]
    for gained, share in zip(carried, keep, strict=True):
        twist.append(share * ((twist[-1] + gained + np.pi) % (2 * np.pi) - np.pi))
    return swing * Rotation.from_rotvec(np.outer(twist, rest))


def _fit(rest: np.ndarray, directions: np.ndarray) -> Rotation:
    """Least-squares rotations of unit vectors `rest (bones, 3)` onto `directions (frames, bones, 3)`.

    Where the bones of a frame are nearly parallel, so that the rotation about them is a matter of chance, it is that of the frame before.
    """
    u, stiffness, vt = np.linalg.svd(np.einsum("fbi,bj->fij", directions, rest))
    mirrored = np.sign(np.linalg.det(u @ vt))
    u[:, :, 2] *= mirrored[:, None]
    turns = Rotation.from_matrix(u @ vt)
    softest = stiffness[:, 1] + mirrored * stiffness[:, 2]
    trust = np.minimum(1, softest / np.maximum(_STIFF * stiffness[:, 0], 1e-12))
    for frame in np.flatnonzero(trust < 1):
        before = turns[frame - 1] if frame else Rotation.identity()
        turns[frame] = before * Rotation.from_rotvec(trust[frame] * (before.inv() * turns[frame]).as_rotvec())
    return turns
