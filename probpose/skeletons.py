"""Joint orders and the way from one to another.

Every array here is `(..., joints, channels)`; left and right are the person's own. A conversion is a constant matrix of
weights, one row per target joint, whose rows sum to one: it commutes with moving, scaling and (with partners swapped)
mirroring the person. Two historical formulas for images, "demo" and "gast", use different weights for x and y.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Skeleton",
    "bone_lengths",
    "conversion_matrix",
    "convert",
    "convert_with_confidence",
    "flip",
    "get_skeleton",
    "list_skeletons",
    "register_skeleton",
    "repair_low_confidence_legs",
]

Array = TypeVar("Array", np.ndarray, Tensor)

# ---------------------------------------------------------------------------------------------------------------------
# What a skeleton is
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skeleton:
    """An order of joints, the bones between them and their mirror partners.

    Args:
        name: registry name, such as `"h36m_17"`.
        joint_names: one unique name per joint, in order.
        parents: index of each joint's parent, -1 for a joint without one.
        flip_pairs: `(left, right)` indices of mirror partners; joints named in no pair are their own partner.
        root: index of the joint that poses are relative to, `None` where the set has no such joint.

    Raises:
        ValueError: if the tables contradict each other.
    """

    name: str
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    root: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "joint_names", tuple(self.joint_names))
        object.__setattr__(self, "parents", tuple(int(parent) for parent in self.parents))
        object.__setattr__(self, "flip_pairs", tuple((int(left), int(right)) for left, right in self.flip_pairs))
        joints = range(self.num_joints)
        paired = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(self.joint_names)) != self.num_joints:
            raise ValueError(f"skeleton {self.name!r}: joint_names must be unique, got {self.joint_names}")
        if len(self.parents) != self.num_joints or any(not -1 <= p < self.num_joints for p in self.parents):
            raise ValueError(
                f"skeleton {self.name!r}: parents must hold -1 or a joint index for each of {self.num_joints} joints, got {self.parents}"
            )
        if len(set(paired)) != len(paired) or any(joint not in joints for joint in paired):
            raise ValueError(
                f"skeleton {self.name!r}: flip_pairs must name each of {self.num_joints} joints at most once, got {self.flip_pairs}"
            )
        if self.root is not None and self.root not in joints:
            raise ValueError(f"skeleton {self.name!r}: root must be None or below {self.num_joints}, got {self.root}")
        for joint in joints:
            ancestor = joint
            for _ in joints:
                ancestor = self.parents[ancestor] if ancestor >= 0 else -1
            if ancestor >= 0:
                raise ValueError(f"skeleton {self.name!r}: parents run in a circle at joint {joint}")

    @property
    def num_joints(self) -> int:
        """Number of joints."""
        return len(self.joint_names)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """`(parent, child)` of every joint that has a parent, in order of the child."""
        return tuple((parent, child) for child, parent in enumerate(self.parents) if parent >= 0)

    @property
    def flip_index(self) -> tuple[int, ...]:
        """The permutation that swaps mirror partners: `mirrored = points[..., flip_index, :]`."""
        index = list(range(self.num_joints))
        for left, right in self.flip_pairs:
            index[left], index[right] = right, left
        return tuple(index)

    @property
    def left(self) -> tuple[int, ...]:
        """Joints of the person's left side, ascending."""
        return tuple(sorted(left for left, _ in self.flip_pairs))

    @property
    def right(self) -> tuple[int, ...]:
        """Joints of the person's right side, ascending."""
        return tuple(sorted(right for _, right in self.flip_pairs))


_SKELETONS: dict[str, Skeleton] = {}
_ALIASES = {"body_25": "openpose_25"}


def list_skeletons() -> tuple[str, ...]:
    """Names of all known skeletons, without aliases."""
    return tuple(_SKELETONS)


def get_skeleton(name: str | Skeleton) -> Skeleton:
    """Looks a skeleton up by name; a `Skeleton` is returned as it is.

    Raises:
        ValueError: if the name is unknown; the message lists the known names.
    """
    if isinstance(name, Skeleton):
        return name
    known = [*_SKELETONS, *_ALIASES]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown skeleton {name!r}{hint}; known are {', '.join(sorted(known))}")
    return _SKELETONS[_ALIASES.get(name, name)]


def register_skeleton(skeleton: Skeleton) -> Skeleton:
    """Makes a skeleton known under its name and returns it.

    Raises:
        ValueError: if the name already stands for a different skeleton.
    """
    if skeleton.name in _ALIASES or _SKELETONS.get(skeleton.name, skeleton) != skeleton:
        raise ValueError(f"the skeleton name {skeleton.name!r} is taken")
    _SKELETONS[skeleton.name] = skeleton
    return skeleton


# ---------------------------------------------------------------------------------------------------------------------
# The known skeletons
# ---------------------------------------------------------------------------------------------------------------------


def _define(name: str, joints: str, parents: Sequence[int], root: int | None = None, pairs: Sequence[tuple[int, int]] = ()) -> None:
    """Registers a skeleton; `left_*` and `right_*` joints of the same name are partners."""
    names = joints.split()
    sides = [(i, names.index("right_" + n[5:])) for i, n in enumerate(names) if n.startswith("left_")]
    register_skeleton(Skeleton(name, names, parents, (*sides, *pairs), root))


def _numbered(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}_{i}" for i in range(count))


def _hand_parents(wrist: int, first: int) -> list[int]:
    """Hand of 21 points: its root, then five fingers of four points each from the palm outwards."""
    return [wrist] + [first if i % 4 == 1 else first + i - 1 for i in range(1, 21)]


_COCO = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
# Sets without a pelvis hang together by their sides (hip under shoulder), so that mirroring keeps the tree.
_COCO_PARENTS = [-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14]
_OPENPOSE = (
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist {pelvis} right_hip "
    "right_knee right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear"
)
_OPENPOSE_18_PARENTS = [1, -1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15]
_FEET = "left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel"
_HANDS = f"{_numbered('left_hand', 21)} {_numbered('right_hand', 21)}"
_HALPE = f"{_COCO} head neck pelvis left_big_toe right_big_toe left_small_toe right_small_toe left_heel right_heel"
_HALPE_PARENTS = [18, 0, 0, 1, 2, 18, 18, 5, 6, 7, 8, 19, 19, 11, 12, 13, 14, 18, 19, -1, 15, 16, 20, 21, 15, 16]
_SMPL = (
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot right_foot "
    "neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist"
)
_SMPL_PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
_LEGS_RIGHT_FIRST = "right_hip right_knee right_ankle left_hip left_knee left_ankle"
_ARMS_LEFT_FIRST = "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist"
_ARMS_RIGHT_FIRST = "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist"


def _face_pairs(first: int) -> list[tuple[int, int]]:
    """`(left, right)` partners of the 68-point face, which runs from the person's right to the left."""
    jaw, brows, nostrils, upper_lip, mouth = range(17), range(17, 27), range(31, 36), range(48, 55), range(60, 65)
    rows = (jaw, brows, nostrils, upper_lip, mouth)
    pairs = [(row[-1 - i], row[i]) for row in rows for i in range(len(row) // 2)]
    eyes = [(45, 36), (44, 37), (43, 38), (42, 39), (46, 41), (47, 40)]
    lower_lips = [(55, 59), (56, 58), (65, 67)]
    return [(first + left, first + right) for left, right in pairs + eyes + lower_lips]


_define(
    "h36m_17",
    f"pelvis {_LEGS_RIGHT_FIRST} spine thorax neck_nose head_top {_ARMS_LEFT_FIRST}",
    [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15],
    root=0,
)
_define(
    "h36m_16",
    f"pelvis {_LEGS_RIGHT_FIRST} spine thorax head_top {_ARMS_LEFT_FIRST}",
    [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14],
    root=0,
)
_define(
    "h36m_32",
    "pelvis right_hip right_knee right_ankle right_toe right_toe_end left_hip left_knee left_ankle left_toe "
    "left_toe_end spine_base spine thorax neck_nose head_top left_collar left_shoulder left_elbow left_wrist "
    "left_thumb left_thumb_end left_hand left_hand_end right_collar right_shoulder right_elbow right_wrist right_thumb "
    "right_thumb_end right_hand right_hand_end",
    [
        *(-1, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 0, 11, 12, 13, 14),
        *(12, 16, 17, 18, 19, 20, 19, 22),
        *(12, 24, 25, 26, 27, 28, 27, 30),
    ],
    root=0,
)
_define("coco_17", _COCO, _COCO_PARENTS)
_define(
    "openpose_25",
    f"{_OPENPOSE.format(pelvis='pelvis')} {_FEET}",
    [1, 8, 1, 2, 3, 1, 5, 6, -1, 8, 9, 10, 8, 12, 13, 0, 0, 15, 16, 14, 19, 14, 11, 22, 11],
    root=8,
)
_define("openpose_18", _OPENPOSE.format(pelvis=""), _OPENPOSE_18_PARENTS)
_define(
    "openpose_mpi_15",
    f"head_top neck {_ARMS_RIGHT_FIRST} {_LEGS_RIGHT_FIRST} chest",
    [1, -1, 1, 2, 3, 1, 5, 6, 14, 8, 9, 14, 11, 12, 1],
)
_define(
    "openpose_25b",
    f"{_COCO} neck head_top {_FEET}",
    [17, 0, 0, 1, 2, 17, 17, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14, -1, 17, 15, 19, 15, 16, 22, 16],
)
_define(
    "mediapipe_33",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "left_mouth right_mouth left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index",
    [
        *(-1, 0, 1, 2, 0, 4, 5, 3, 6, 0, 0),
        *(0, 0, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16),
        *(11, 12, 23, 24, 25, 26, 27, 28, 29, 30),
    ],
)
_define("halpe_26", _HALPE, _HALPE_PARENTS, root=19)
_define(
    "halpe_136",
    f"{_HALPE} {_numbered('face', 68)} {_HANDS}",
    _HALPE_PARENTS + [-1] * 68 + _hand_parents(9, 94) + _hand_parents(10, 115),
    root=19,
    pairs=_face_pairs(26),
)
_define(
    "wholebody_133",
    f"{_COCO} {_FEET} {_numbered('face', 68)} {_HANDS}",
    [*_COCO_PARENTS, 15, 17, 15, 16, 20, 16] + [-1] * 68 + _hand_parents(9, 91) + _hand_parents(10, 112),
    pairs=_face_pairs(23),
)
_define(
    "openpose_134",
    f"{_OPENPOSE.format(pelvis='')} {_FEET} {_numbered('face', 68)} {_HANDS}",
    [*_OPENPOSE_18_PARENTS, 13, 18, 13, 10, 21, 10] + [-1] * 68 + _hand_parents(7, 92) + _hand_parents(4, 113),
    pairs=_face_pairs(24),
)
_define(
    "sapiens_308",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_hip right_hip "
    f"left_knee right_knee left_ankle right_ankle {_FEET} {_numbered('right_finger', 20)} right_wrist "
    f"{_numbered('left_finger', 20)} left_wrist left_olecranon right_olecranon left_cubital_fossa right_cubital_fossa "
    f"left_acromion right_acromion neck {_numbered('face', 238)}",
    [
        *(69, 0, 0, 1, 2, 69, 69, 5, 6, 5, 6, 9, 10, 11, 12, 13, 15, 13, 14, 18, 14),
        *[41] * 20,
        8,
        *[62] * 20,
        7,
        *[-1] * 245,
    ],
)
_define(
    "mpii_16",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax upper_neck head_top right_wrist "
    "right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    [1, 2, 6, 6, 3, 4, -1, 6, 7, 8, 11, 12, 7, 7, 13, 14],
    root=6,
)
_define(
    "posetrack_17",
    _COCO.replace("left_eye right_eye", "head_bottom head_top"),
    [1, -1, 1, 0, 0, 1, 1, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14],
)
_define(
    "posetrack_15",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck nose head_top",
    [1, 2, 8, 9, 3, 4, 7, 8, 12, 12, 9, 10, -1, 12, 12],
)
_define(
    "aic_14",
    f"{_ARMS_RIGHT_FIRST} {_LEGS_RIGHT_FIRST} head_top neck",
    [13, 0, 1, 13, 3, 4, 0, 6, 7, 3, 9, 10, 13, -1],
)
_define(
    "mpi_inf_3dhp_17",
    f"head_top neck {_ARMS_RIGHT_FIRST} {_LEGS_RIGHT_FIRST} pelvis spine head",
    [16, 15, 1, 2, 3, 1, 5, 6, 14, 8, 9, 14, 11, 12, -1, 14, 1],
    root=14,
)
_define(
    "mpi_inf_3dhp_28",
    "spine3 spine4 spine2 spine pelvis neck head head_top left_clavicle left_shoulder left_elbow left_wrist left_hand "
    "right_clavicle right_shoulder right_elbow right_wrist right_hand left_hip left_knee left_ankle left_foot left_toe "
    "right_hip right_knee right_ankle right_foot right_toe",
    [2, 0, 3, 4, -1, 1, 5, 6, 5, 8, 9, 10, 11, 5, 13, 14, 15, 16, 4, 18, 19, 20, 21, 4, 23, 24, 25, 26],
    root=4,
)
_define("smpl_24", f"{_SMPL} left_hand right_hand", [*_SMPL_PARENTS, 20, 21], root=0)
_define("humanml3d_22", _SMPL, _SMPL_PARENTS, root=0)
_define(
    "humaneva_15",
    f"pelvis thorax {_ARMS_LEFT_FIRST} left_hip left_knee left_ankle right_hip right_knee right_ankle head",
    [-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1],
    root=0,
)
_define(
    "lsp_14",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head_top",
    [1, 2, 8, 9, 3, 4, 7, 8, 12, 12, 9, 10, -1, 12],
)

# ---------------------------------------------------------------------------------------------------------------------
# The conversion tables
# ---------------------------------------------------------------------------------------------------------------------

# One rule per target joint: a source joint to copy, a tuple of joints to average, {joint: weight}, or None where the
# source cannot know the joint.
Rule = int | tuple[int, ...] | dict[int, float] | None

_HUMANEVA_HEAD = 0.51  # how far the face lies along the line from thorax to head top
_SMPL_HEAD = 1.2  # how far the crown lies beyond SMPL's head joint, in lengths of its neck bone

_TABLES: dict[tuple[str, str], list[Rule]] = {
    # Selections. The large sets begin with the body of a small one.
    ("halpe_136", "halpe_26"): [*range(26)],
    ("halpe_26", "coco_17"): [*range(17)],
    ("wholebody_133", "coco_17"): [*range(17)],
    ("openpose_25b", "coco_17"): [*range(17)],
    ("openpose_134", "openpose_18"): [*range(18)],
    ("sapiens_308", "coco_17"): [0, 1, 2, 3, 4, 5, 6, 7, 8, 62, 41, 9, 10, 11, 12, 13, 14],
    ("openpose_25", "coco_17"): [0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11],
    ("openpose_18", "coco_17"): [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10],
    ("mediapipe_33", "coco_17"): [0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28],
    ("posetrack_17", "coco_17"): [0, None, None, *range(3, 17)],
    ("posetrack_15", "coco_17"): [13, None, None, None, None, 9, 8, 10, 7, 11, 6, 3, 2, 4, 1, 5, 0],
    ("openpose_mpi_15", "coco_17"): [None] * 5 + [5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10],
    ("h36m_32", "h36m_17"): [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27],
    ("h36m_17", "h36m_16"): [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16],
    ("h36m_17", "lsp_14"): [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10],
    ("h36m_17", "humaneva_15"): [0, 8, 11, 12, 13, 14, 15, 16, 4, 5, 6, 1, 2, 3, 10],
    ("h36m_17", "coco_17"): [9, None, None, None, None, 11, 14, 12, 15, 13, 16, 4, 1, 5, 2, 6, 3],
    ("h36m_17", "mpi_inf_3dhp_17"): [10, 8, 14, 15, 16, 11, 12, 13, 1, 2, 3, 4, 5, 6, 0, 7, 9],
    ("mpi_inf_3dhp_28", "mpi_inf_3dhp_17"): [7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6],
    ("smpl_24", "humanml3d_22"): [*range(22)],
    # To h36m_17, in its order: pelvis, right leg, left leg, spine, thorax, neck/nose, head top, left arm, right arm.
    ("coco_17", "h36m_17"): [
        *((11, 12), 12, 14, 16, 11, 13, 15),
        *((5, 6, 11, 12), (5, 6), 0, (1, 2), 5, 7, 9, 6, 8, 10),
    ],
    ("openpose_25", "h36m_17"): [8, 9, 10, 11, 12, 13, 14, (8, 1), 1, 0, (15, 16), 5, 6, 7, 2, 3, 4],
    ("openpose_mpi_15", "h36m_17"): [(8, 11), 8, 9, 10, 11, 12, 13, 14, 1, (0, 1), 0, 5, 6, 7, 2, 3, 4],
    ("halpe_26", "h36m_17"): [19, 12, 14, 16, 11, 13, 15, (18, 19), 18, 0, 17, 5, 7, 9, 6, 8, 10],
    ("posetrack_17", "h36m_17"): [
        *((11, 12), 12, 14, 16, 11, 13, 15),
        *({11: 1 / 4, 12: 1 / 4, 1: 1 / 2}, 1, 0, 2, 5, 7, 9, 6, 8, 10),
    ],
    ("posetrack_15", "h36m_17"): [
        *((2, 3), 2, 1, 0, 3, 4, 5),
        *({2: 1 / 4, 3: 1 / 4, 12: 1 / 2}, 12, 13, 14, 9, 10, 11, 8, 7, 6),
    ],
    ("mpii_16", "h36m_17"): [6, 2, 1, 0, 3, 4, 5, (2, 3, 12, 13), 7, 8, 9, 13, 14, 15, 12, 11, 10],
    ("aic_14", "h36m_17"): [
        *((6, 9), 6, 7, 8, 9, 10, 11),
        *((0, 3, 6, 9), (0, 3), {13: 3 / 4, 12: 1 / 4}, {13: 5 / 12, 12: 7 / 12}, 3, 4, 5, 0, 1, 2),
    ],
    ("mpi_inf_3dhp_17", "h36m_17"): [14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4],
    ("humaneva_15", "h36m_17"): [
        *(0, 11, 12, 13, 8, 9, 10, (0, 1), 1),
        *({1: 1 - _HUMANEVA_HEAD, 14: _HUMANEVA_HEAD}, 14, 2, 3, 4, 5, 6, 7),
    ],
    ("humanml3d_22", "h36m_17"): [
        *(0, 2, 5, 8, 1, 4, 7, 6, 12, 15),
        *({15: 1 + _SMPL_HEAD, 12: -_SMPL_HEAD}, 16, 18, 20, 17, 19, 21),
    ],
}


def _demo_rules(factor: float) -> tuple[list[Rule], list[Rule]]:
    """The x and the y rules of the video demos; `factor` moves the spine sideways, away from the torso's axis."""
    x_rules, y_rules = list(_TABLES["coco_17", "h36m_17"]), list(_TABLES["coco_17", "h36m_17"])
    shoulder = (1 + factor) / 4 - factor / 6
    x_rules[7] = {0: -factor / 6, 5: shoulder, 6: shoulder, 11: 1 / 4, 12: 1 / 4}
    x_rules[8] = {0: 1 / 3, 5: 1 / 3, 6: 1 / 3}
    y_rules[8] = {0: 1, 1: -1 / 3, 2: -1 / 3, 5: 1 / 3, 6: 1 / 3}
    x_rules[9] = y_rules[9] = {0: 3 / 4, 5: 1 / 8, 6: 1 / 8}
    x_rules[10] = (1, 2, 3, 4)
    y_rules[10] = {1: 1, 2: 1, 0: -1}
    return x_rules, y_rules


_METHODS = {"simple": (_TABLES["coco_17", "h36m_17"],), "demo": _demo_rules(2.0), "gast": _demo_rules(0.3)}


@cache
def _chain(source: str, target: str) -> tuple[str, ...] | None:
    """The shortest chain of tables from source to target, `None` where there is none."""
    chains = [(source,)]
    for chain in chains:  # grows on the way: breadth first
        if chain[-1] == target:
            return chain
        for start, end in _TABLES:
            # H36M's joint 9 is a nose only in data labelled that way, not in data converted to it.
            nose_is_known = (start, end) != ("h36m_17", "coco_17") or source in ("h36m_17", "h36m_32")
            if start == chain[-1] and end not in chain and nose_is_known:
                chains.append((*chain, end))
    return None


def _stack(rules: tuple[list[Rule], ...], num_source: int) -> np.ndarray:
    """Weights `(axes, target, source)` of the rules of each axis."""
    matrix = np.zeros((len(rules), len(rules[0]), num_source))
    for axis, axis_rules in enumerate(rules):
        for joint, rule in enumerate(axis_rules):
            if rule is None:
                continue
            if isinstance(rule, int):
                rule = (rule,)
            if isinstance(rule, tuple):
                rule = dict.fromkeys(rule, 1 / len(rule))
            for contributor, weight in rule.items():
                matrix[axis, joint, contributor] = weight
    return matrix


def _known(matrix: np.ndarray) -> np.ndarray:
    """Which target joints `(target,)` the source can know."""
    return (matrix != 0).any(axis=(0, 2))


def _along(chain: Sequence[str]) -> np.ndarray:
    """Weights `(1, target, source)` of a chain of tables."""
    matrix = np.eye(get_skeleton(chain[0]).num_joints)[None]
    for start, end in pairwise(chain):
        step = _stack((_TABLES[start, end],), get_skeleton(start).num_joints)
        needs_unknown = (step != 0)[..., ~_known(matrix)].any(axis=(0, 2))
        matrix = step @ matrix
        matrix[:, needs_unknown] = 0
    return matrix


def _methods(source: str, target: str) -> tuple[str, ...]:
    """The methods a pair can choose from: those with a complete COCO body on the way to H36M."""
    chain, to_coco = _chain(source, target), _chain(source, "coco_17")
    if chain is None or to_coco is None or "h36m_17" not in chain[1:] or not _known(_along(to_coco)).all():
        return ()
    return tuple(_METHODS)


@cache
def _weights(source: str, target: str, method: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Weights of coordinates `(axes, target, source)` and of confidences `(target, source)`."""
    chain, methods = _chain(source, target), _methods(source, target)
    if chain is None:
        reachable = [name for name in list_skeletons() if name != source and _chain(source, name)]
        raise ValueError(f"no conversion from {source} to {target}; from {source} one can reach {', '.join(reachable) or 'nothing'}")
    if method is None:
        matrix = _along(chain)
        confidence = np.abs(matrix[0])
    elif method in methods:
        before, after = _along(_chain(source, "coco_17")), _along(_chain("h36m_17", target))
        matrix = after @ _stack(_METHODS[method], 17) @ before
        # The confidence of a demo joint is that of the joints it stands for, not of all that shift it.
        trusted = list(_METHODS["simple"][0])
        if method != "simple":
            trusted[10] = (1, 2, 3, 4)
        confidence = np.abs(after[0] @ _stack((trusted,), 17)[0] @ before[0])
    else:
        allowed = f"None, {', '.join(methods)}" if methods else "None: this conversion has one formula only"
        raise ValueError(f"method for {source} to {target} must be {allowed}; got {method!r}")
    total = confidence.sum(axis=1, keepdims=True)
    return matrix, np.divide(confidence, total, out=np.zeros_like(confidence), where=total > 0)


def conversion_matrix(source: str | Skeleton, target: str | Skeleton, method: str | None = None) -> np.ndarray:
    """The weights of a conversion, in float64; see [`convert`] for the methods.

    Returns:
        `(target joints, source joints)`; for "demo" and "gast" `(2, target joints, source joints)`, x then y. Each row
        sums to one, or is all zero where the source cannot know the joint.

    Raises:
        ValueError: if a name or the method is unknown, or no conversion exists.
    """
    matrix, _ = _weights(get_skeleton(source).name, get_skeleton(target).name, method)
    return (matrix[0] if len(matrix) == 1 else matrix).copy()


# ---------------------------------------------------------------------------------------------------------------------
# Converting arrays
# ---------------------------------------------------------------------------------------------------------------------


def _check_array(array: Array, name: str) -> None:
    is_real = array.dtype.kind in "fiub" if isinstance(array, np.ndarray) else isinstance(array, Tensor)
    if not is_real or (isinstance(array, Tensor) and array.is_complex()):
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} must be a NumPy array or torch tensor of real numbers, got {kind}")


def _check_joints(points: Array, skeleton: Skeleton, name: str = "keypoints") -> None:
    _check_array(points, name)
    if points.ndim < 2 or points.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"{skeleton.name} has {skeleton.num_joints} joints, but {name} have shape {tuple(points.shape)}; "
            f"expected (..., {skeleton.num_joints}, channels)"
        )


def _open(array: Array) -> tuple[Tensor, Callable[[Tensor], Array]]:
    """The array as a tensor of float32 or float64, and the way back to the type and precision it came with."""
    if isinstance(array, np.ndarray):
        dtype = array.dtype if array.dtype.kind == "f" else np.dtype(np.float32)
        tensor = torch.from_numpy(array.astype(np.float64 if dtype.itemsize >= 8 else np.float32))
        return tensor, lambda out: out.numpy(force=True).astype(dtype, copy=False)
    dtype = array.dtype if array.is_floating_point() else torch.float32
    return array.to(torch.float64 if dtype == torch.float64 else torch.float32), lambda out: out.to(dtype)


def _open_confidence(
    confidence: Array | None, points: Tensor, restore: Callable[[Tensor], Array]
) -> tuple[Tensor, Callable[[Tensor], Array]]:
    if confidence is None:
        return torch.ones_like(points[..., 0]), restore
    _check_array(confidence, "confidence")
    if confidence.shape != points.shape[:-1]:
        raise ValueError(f"confidence must have shape {tuple(points.shape[:-1])} to fit the keypoints, got {tuple(confidence.shape)}")
    trust, restore_trust = _open(confidence)
    return trust.to(points.device), restore_trust


@dataclass(frozen=True)
class _Mixture:
    """A conversion as short lists: target joint t mixes the source joints `index[t]`."""

    index: Tensor  # (target, n)
    contributes: Tensor  # (target, n): False where a list is shorter than n
    weights: Tensor  # (target, n, axes)
    confidence_weights: Tensor  # (target, n)
    is_mean: Tensor  # (target,): a plain mean (or a copy), on every axis
    is_known: Tensor  # (target,)


def _mixture(source: Skeleton, target: Skeleton, method: str | None, points: Tensor) -> _Mixture:
    matrix, confidence = _weights(source.name, target.name, method)
    if len(matrix) == 2 and points.shape[-1] != 2:
        raise ValueError(
            f"method {method!r} has separate formulas for x and y of images (y down), so keypoints need 2 channels, "
            f"got shape {tuple(points.shape)}; use method 'simple' for 3D or other data"
        )
    contributes = (matrix != 0).any(axis=0)
    count = contributes.sum(axis=1)
    index = np.argsort(~contributes, axis=1, kind="stable")[:, : max(count.max(), 1)]
    listed = np.take_along_axis(contributes, index, axis=1)
    # A filler repeats a contributor (with weight 0), so that no joint meets the NaN of one it does not depend on.
    index = np.where(listed, index, index[:, :1])
    weights = np.where(listed, np.take_along_axis(matrix, index[None], axis=2), 0).transpose(1, 2, 0)
    trust = np.where(listed, np.take_along_axis(confidence, index, axis=1), 0)
    mean = contributes / np.maximum(count, 1)[:, None]
    like = {"dtype": points.dtype, "device": points.device}
    return _Mixture(
        index=torch.as_tensor(index, device=points.device),
        contributes=torch.as_tensor(listed, device=points.device),
        weights=torch.as_tensor(weights, **like),
        confidence_weights=torch.as_tensor(trust, **like),
        is_mean=torch.as_tensor(np.isclose(matrix, mean).all(axis=(0, 2)), device=points.device),
        is_known=torch.as_tensor(count > 0, device=points.device),
    )


def _mix(points: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums `points (..., source, channels)` to `(..., target, channels)`; weights are `(..., target, n, channels)`."""
    return sum(points[..., index[:, i], :] * weights[..., i, :] for i in range(index.shape[1]))


def convert(
    keypoints: Array,
    source: str | Skeleton,
    target: str | Skeleton,
    method: Literal["simple", "demo", "gast"] | None = None,
) -> Array:
    """Re-expresses keypoints or poses in another joint order.

    Three formulas lead from COCO to `h36m_17`. They share the limbs and the pelvis and differ at spine, thorax, neck
    and head, to which a 2D-to-3D network is sensitive: use the one its training data was made with.

    * "simple", the default: means of joints (the MMPose and MotionBERT formula). It is the same for every axis, so it
      is also right for 3D poses and for axes that point up, and the noise of eyes and ears cannot move the thorax.
    * "demo": the formula of the MHFormer, MotionAGFormer and HoT video demos. Images (y down) only.
    * "gast": its older version (GAST-Net), with the spine nearer to the middle. Images (y down) only.

    With `method=None`, sets that bring a neck and a pelvis of their own keep them; with a method given, these sets too
    go through `coco_17`. Some target joints are heuristics (the spine; the crown of SMPL), and joints of the same name
    differ by centimetres between datasets: a network is best fed by the detector it was trained with.

    Args:
        keypoints: `(..., source joints, channels)`, NumPy or torch, in any unit.
        source: name of the joint order of `keypoints`.
        target: name of the wanted joint order.
        method: "simple", "demo" or "gast", for pairs that pass from COCO's joints to `h36m_17`; else `None`.

    Returns:
        `(..., target joints, channels)`, same type, device and floating dtype; integers become float32. Differentiable.
        A joint that the source cannot know (eyes and ears of `coco_17` from `h36m_17`) is NaN, and so is a joint with a
        NaN among its contributors. If source and target are the same, the input itself.

    Raises:
        ValueError: for unknown names or methods, pairs without a conversion, or a shape that does not fit.
    """
    source, target = get_skeleton(source), get_skeleton(target)
    _check_joints(keypoints, source)
    if source == target and method is None:
        return keypoints
    points, restore = _open(keypoints)
    mixture = _mixture(source, target, method, points)
    out = _mix(points, mixture.index, mixture.weights)
    return restore(out.masked_fill(~mixture.is_known[:, None], torch.nan))


def convert_with_confidence(
    keypoints: Array,
    confidence: Array | None,
    source: str | Skeleton,
    target: str | Skeleton,
    method: Literal["simple", "demo", "gast"] | None = None,
    reduce: Literal["mean", "min"] = "mean",
    threshold: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Like [`convert`], for keypoints of which some may be missing.

    A source joint counts as observed if its confidence is above `threshold` and its coordinates are finite. A plain
    mean is taken over its observed contributors, at least one (so with both hips unseen, the "simple" spine is between
    the shoulders and the pelvis is not valid); any other rule needs all of them. People and frames are never dropped:
    the mask tells what was found. Where a detector writes (0, 0) for a missing joint, its confidence has to be 0 too.

    Args:
        keypoints: `(..., source joints, channels)`.
        confidence: `(..., source joints)`, or `None` if every finite joint is observed.
        source: name of the joint order of `keypoints`.
        target: name of the wanted joint order.
        method: as in [`convert`].
        reduce: confidence of a mixed joint: the "mean" of its observed contributors', weighted as they are mixed, or
            their "min". "demo" and "gast" use the joints that theirs stand for (both shoulders for the thorax, the nose
            for the neck, eyes and ears for the head), as in the original.
        threshold: confidence at or below which a joint is not observed.

    Returns:
        keypoints `(..., target joints, channels)`, NaN where not valid; confidence `(..., target joints)`, 0 where not
        valid; mask `(..., target joints)`, boolean, True where valid.

    Raises:
        ValueError: as [`convert`], or if `confidence` does not fit `keypoints` or `reduce` is unknown.
    """
    if reduce not in ("mean", "min"):
        raise ValueError(f"reduce must be 'mean' or 'min', got {reduce!r}")
    source, target = get_skeleton(source), get_skeleton(target)
    _check_joints(keypoints, source)
    points, restore = _open(keypoints)
    mixture = _mixture(source, target, method, points)
    trust, restore_trust = _open_confidence(confidence, points, restore)
    observed = points.isfinite().all(dim=-1) & (trust > threshold)

    seen = observed[..., mixture.index] & mixture.contributes
    share = seen.to(points.dtype) / seen.sum(dim=-1, keepdim=True).clamp(min=1)
    weights = torch.where(mixture.is_mean[:, None, None], share[..., None], mixture.weights)
    complete = (seen | ~mixture.contributes).all(dim=-1)
    mask = torch.where(mixture.is_mean, seen.any(dim=-1), complete & mixture.is_known)
    out = _mix(points.masked_fill(~observed[..., None], 0), mixture.index, weights)

    weights = mixture.confidence_weights.to(trust.dtype) * seen
    contributors = trust.masked_fill(~observed, 0)[..., mixture.index]
    if reduce == "min":
        reduced = contributors.masked_fill(weights == 0, torch.inf).amin(dim=-1)
    else:
        total = weights.sum(dim=-1)
        reduced = (contributors * weights).sum(dim=-1) / total.masked_fill(total == 0, 1)
    found = mask.numpy(force=True) if isinstance(keypoints, np.ndarray) else mask
    return restore(out.masked_fill(~mask[..., None], torch.nan)), restore_trust(reduced.masked_fill(~mask, 0)), found


# ---------------------------------------------------------------------------------------------------------------------
# Working with one skeleton
# ---------------------------------------------------------------------------------------------------------------------

# Which joints of h36m_17 take another's place, by the set of low joints among right knee 2, right ankle 3, left knee 5
# and left ankle 6; every other set is left alone.
_LEG_REPAIRS = {
    (2, 3, 5, 6): {2: 1, 3: 1, 5: 4, 6: 4},
    (2, 3, 6): {2: 1, 3: 1, 6: 5},
    (3, 5, 6): {3: 2, 5: 4, 6: 4},
    (3, 6): {3: 2, 6: 5},
    (3,): {3: 2},
    (6,): {6: 5},
}


def repair_low_confidence_legs(keypoints: Array, confidence: Array, threshold: float = 0.3) -> Array:
    """Pulls knees and ankles that a detector did not see to the nearest joint above, as the MHFormer demo can.

    Args:
        keypoints: `(..., 17, channels)` in the order `h36m_17`.
        confidence: `(..., 17)` of the converted joints; one below `threshold`, or NaN, is low.
        threshold: a confidence.

    Returns:
        Repaired keypoints, same shape and type. A low ankle moves to its knee, or with that knee to its hip when the
        other ankle is low as well; other sets of low joints (a knee alone, one whole leg) stay as they are.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check_joints(keypoints, get_skeleton("h36m_17"))
    points, restore = _open(keypoints)
    trust, _ = _open_confidence(confidence, points, restore)
    choice = torch.arange(17).repeat(16, 1)
    for low, repair in _LEG_REPAIRS.items():
        code = sum(1 << (2, 3, 5, 6).index(joint) for joint in low)
        choice[code, list(repair)] = torch.tensor(list(repair.values()))
    is_low = ~(trust[..., [2, 3, 5, 6]] >= threshold)
    code = (is_low * torch.tensor([1, 2, 4, 8], device=points.device)).sum(dim=-1)
    index = choice.to(points.device)[code]
    return restore(torch.take_along_dim(points, index[..., None], dim=-2))


def flip(keypoints: Array, skeleton: str | Skeleton) -> Array:
    """Mirrors a person: negates channel 0 and swaps mirror partners.

    Coordinates must be centred on the mirror plane: root-relative poses, or screen coordinates with x in -1..1. The
    238 face points of `sapiens_308` have no partners here: take its body with [`convert`] first.

    Args:
        keypoints: `(..., joints, 2 or 3)`, NumPy or torch.
        skeleton: name of their joint order.

    Returns:
        Same shape, type, device and floating dtype; integers become float32. Differentiable; twice is once back.

    Raises:
        ValueError: if the shape does not fit the skeleton.
    """
    skeleton = get_skeleton(skeleton)
    _check_joints(keypoints, skeleton)
    if keypoints.shape[-1] not in (2, 3):
        raise ValueError(f"flip takes keypoints with 2 or 3 channels, got shape {tuple(keypoints.shape)}")
    points, restore = _open(keypoints)
    sign = torch.ones(points.shape[-1], dtype=points.dtype, device=points.device)
    sign[0] = -1
    return restore(points[..., list(skeleton.flip_index), :] * sign)


def bone_lengths(positions: Array, skeleton: str | Skeleton) -> Array:
    """Length of every bone, in the unit of `positions`.

    Args:
        positions: `(..., joints, channels)`, NumPy or torch.
        skeleton: name of their joint order.

    Returns:
        `(..., bones)`, in the order of `Skeleton.bones`; same type, device and floating dtype. Differentiable.

    Raises:
        ValueError: if the shape does not fit the skeleton.
    """
    skeleton = get_skeleton(skeleton)
    _check_joints(positions, skeleton, "positions")
    points, restore = _open(positions)
    parents, children = [parent for parent, _ in skeleton.bones], [child for _, child in skeleton.bones]
    return restore(torch.linalg.vector_norm(points[..., children, :] - points[..., parents, :], dim=-1))
