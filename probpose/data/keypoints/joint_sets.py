"""Which skeleton a file holds: by the caller's word, by names in the file, or by the number of joints."""

from __future__ import annotations

import re
from collections.abc import Sequence

JOINT_COUNTS = {
    "coco_17": 17,
    "posetrack_17": 17,
    "h36m_17": 17,
    "mpi_inf_3dhp_17": 17,
    "openpose_18": 18,
    "openpose_25": 25,
    "openpose_25b": 25,
    "openpose_mpi_15": 15,
    "posetrack_15": 15,
    "humaneva_15": 15,
    "mpii_16": 16,
    "h36m_16": 16,
    "halpe_26": 26,
    "mediapipe_33": 33,
    "wholebody_133": 133,
    "openpose_134": 134,
    "halpe_136": 136,
    "sapiens_308": 308,
}
"""Joint orders that 2D keypoint files come in. A table of its own, so that reading a file need not load torch."""

ALIASES = {"body_25": "openpose_25"}

DETECTOR_DEFAULTS = {17: "coco_17", 16: "mpii_16"}
"""What a detector means by a number of joints that several skeletons share."""

_PARTS = {6: "feet", 21: "a hand", 42: "two hands", 68: "a face (or AlphaPose's set without one)", 70: "a face"}

_LIMBS = [f"{side}_{part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")]

_COCO_NAMES = (
    "nose lefteye righteye leftear rightear leftshoulder rightshoulder leftelbow rightelbow leftwrist rightwrist "
    "lefthip righthip leftknee rightknee leftankle rightankle"
)
_POSETRACK_NAMES = _COCO_NAMES.replace("lefteye righteye", "headbottom headtop")

_DATASETS = {
    "coco": "coco_17",
    "coco_wholebody": "wholebody_133",
    "halpe26": "halpe_26",
    "halpe": "halpe_136",
    "mpii": "mpii_16",
    "posetrack18": "posetrack_17",
    "h36m": "h36m_17",
    "humaneva15": "humaneva_15",
}


def joint_count(skeleton: str) -> tuple[str, int]:
    """Registry name and number of joints of a skeleton. Raises ValueError for an unknown name."""
    skeleton = ALIASES.get(skeleton, skeleton)
    if skeleton in JOINT_COUNTS:
        return skeleton, JOINT_COUNTS[skeleton]
    from probpose.skeletons import get_skeleton

    known = get_skeleton(skeleton)
    return known.name, known.num_joints


def skeleton_of_names(names: Sequence[str]) -> str | None:
    """The skeleton with these joint names in this order (case, spaces, `_` and `-` do not matter), or None."""
    plain = [re.sub(r"[\s_-]", "", str(name)).lower() for name in names]
    if " ".join(plain) == _COCO_NAMES:
        return "coco_17"
    if " ".join(plain) == _POSETRACK_NAMES:
        return "posetrack_17"
    from probpose.skeletons import get_skeleton

    for skeleton, count in JOINT_COUNTS.items():
        if count == len(plain) and plain == [name.replace("_", "") for name in get_skeleton(skeleton).joint_names]:
            return skeleton
    return None


def match_names(names: Sequence[str], given: str | None = None) -> tuple[str, list[int | None]]:
    """The skeleton that joints with these names belong to, for files whose authors chose names and order.

    Args:
        names: in any order and usual spelling: `left_shoulder`, `LeftShoulder`, `shoulder.L`.
        given: the caller's skeleton. Without it, the one that has most of the names.

    Returns:
        Name of the skeleton, and for each of its joints the place among `names`, or None.

    Raises:
        ValueError: shoulders, elbows, wrists, hips, knees and ankles (of which the given skeleton has any) are not all there.
    """
    from probpose.skeletons import get_skeleton

    place = {_plain_name(name): index for index, name in reversed(list(enumerate(names)))}
    orders = {name: list(map(_plain_name, get_skeleton(name).joint_names)) for name in ([given] if given else JOINT_COUNTS)}
    skeleton = max(orders, key=lambda name: len(place.keys() & set(orders[name])))
    joints = get_skeleton(skeleton).joint_names
    needed = [name for name in joints if name in _LIMBS] or joints
    if lacking := [name for name in needed if _plain_name(name) not in place]:
        raise ValueError(
            "expected joints named as a person's (left and right shoulder, elbow, wrist, hip, knee, ankle, and others of a known "
            f"skeleton), found {', '.join(map(repr, names))}, so that {', '.join(lacking)} is lacking: rename them in the file"
        )
    return skeleton, [place.get(name) for name in orders[skeleton]]


def _plain_name(name: str) -> str:
    """A joint's name in one spelling: the side in full and in front, everything in lower case, without separators."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
    glued = "".join({"l": "left", "r": "right"}.get(word, word) for word in words)
    side = next((side for side in ("left", "right") if glued.endswith(side)), "")
    return side + glued.removesuffix(side)


def skeleton_of_dataset(name: str) -> str | None:
    """The skeleton of a data set, by the name MMPose and VideoPose3D give it, or None."""
    return _DATASETS.get(str(name).lower())


def choose_skeleton(
    count: int,
    given: str | None,
    stated: str | None,
    defaults: dict[int, str],
    question: str | None,
    notes: list[str],
) -> str:
    """Settle the skeleton of a file with `count` joints.

    Args:
        count: number of joints in the file.
        given: the caller's skeleton; wins.
        stated: the file's own skeleton.
        defaults: what this kind of file means by a number of joints that several skeletons share.
        question: why the file's own names cannot be understood, if so; then only `given` can settle it.
        notes: remarks for the user are added here.

    Raises:
        ValueError: the count contradicts the name, or fits no skeleton or several.
    """
    fitting = [name for name, joints in JOINT_COUNTS.items() if joints == count]
    if given or stated:
        name, expected = joint_count(given or stated)
        if expected != count:
            looks_like = f" ({' or '.join(fitting)}?)" if fitting else ""
            raise ValueError(f"expected {expected} joints for skeleton {name!r}, found {count}{looks_like}")
        if given and stated and joint_count(stated)[0] != name:
            notes.append(f"skeleton {name} as given; the file says {stated}")
        return name
    if question:
        raise ValueError(f"{question}; pass skeleton=..., for example {' or '.join(fitting) or 'a registered name'}")
    if count in _PARTS and count not in defaults:
        raise ValueError(f"expected the joints of a body, found {count}, which is {_PARTS[count]}")
    if count in defaults or len(fitting) == 1:
        name = defaults.get(count) or fitting[0]
        if count == 16:
            notes.append("16 joints are taken for mpii_16; if they are Human3.6M's, pass skeleton='h36m_16'")
        return name
    if fitting:
        raise ValueError(f"{count} joints fit several skeletons: pass skeleton=... ({', '.join(map(repr, fitting))})")
    raise ValueError(
        f"no known 2D skeleton has {count} joints (known counts: {sorted(set(JOINT_COUNTS.values()))}); "
        "register yours and pass skeleton=..."
    )
