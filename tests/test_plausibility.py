from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.geometry import quaternion_to_matrix
from probpose.metrics import (
    JOINT_LIMITS,
    bone_length_deviation,
    bone_length_error,
    foot_skate,
    joint_angles,
    joint_limit_violations,
    symmetry_error,
)
from probpose.skeletons import Skeleton, convert, get_skeleton

H36M = get_skeleton("h36m_17")
MOCAP = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "mocap17" / "cmu.npz"
J = {name: index for index, name in enumerate(H36M.joint_names)}


def standing():
    """A person who stands upright and looks into the camera: left is +x, up is -y, forward is -z; one frame."""
    places = {
        "pelvis": (0, 0, 0),
        "spine": (0, -0.25, 0),
        "thorax": (0, -0.5, 0),
        "neck_nose": (0, -0.6, 0),
        "head_top": (0, -0.75, 0),
    }
    for side, x in (("left", 1), ("right", -1)):
        places |= {f"{side}_hip": (0.12 * x, 0, 0), f"{side}_knee": (0.12 * x, 0.45, 0), f"{side}_ankle": (0.12 * x, 0.9, 0)}
        places |= {f"{side}_shoulder": (0.2 * x, -0.5, 0), f"{side}_elbow": (0.2 * x, -0.2, 0), f"{side}_wrist": (0.2 * x, 0.05, 0)}
    return torch.tensor([places[name] for name in H36M.joint_names], dtype=torch.float64)[None]


def bend(joint, angle, axis="x"):
    """The standing person with everything below (above, for the trunk) a joint turned by an angle in degrees about a line through it."""
    pose, index = standing(), J[joint]
    below, grown = {index}, True
    while grown:
        grown = {child for parent, child in H36M.bones if parent in below} - below
        below |= grown
    turn = torch.zeros(4, dtype=torch.float64)
    turn[0], turn[1 + "xyz".index(axis)] = np.cos(np.radians(angle) / 2), np.sin(np.radians(angle) / 2)
    matrix, below = quaternion_to_matrix(turn), sorted(below)
    pose[:, below] = (pose[:, below] - pose[:, [index]]) @ matrix.mT + pose[:, [index]]
    return pose


@pytest.fixture
def motion():
    generator = torch.Generator().manual_seed(0)
    return 0.4 * torch.randn(3, 8, 17, 3, generator=generator, dtype=torch.float64)


# Bones ----------------------------------------------------------------------------------------------------------------


def test_hypotheses_meet_a_target_without_their_axes(motion):
    target = motion
    hypotheses = target[:, None] + 0.05 * torch.randn(3, 5, 8, 17, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expanded = target[:, None].expand_as(hypotheses)
    expected = bone_length_error(hypotheses, expanded, H36M.bones)
    assert bone_length_error(hypotheses, target, H36M.bones) == pytest.approx(expected)
    assert bone_length_error(hypotheses[0], target[0], H36M.bones) == pytest.approx(
        bone_length_error(hypotheses[0], expanded[0], H36M.bones)
    )
    mask = torch.ones(3, 8)
    mask[0, 3:], mask[1] = 0, 0
    full = mask[:, None].expand(3, 5, 8)
    masked = bone_length_error(hypotheses, expanded, H36M.bones, full)
    assert bone_length_error(hypotheses, target, H36M.bones, mask) == pytest.approx(masked)
    for metric, extra in (
        (symmetry_error, (H36M.bones, H36M.flip_pairs)),
        (bone_length_deviation, (H36M.bones,)),
        (joint_limit_violations, ()),
    ):
        assert metric(hypotheses, *extra, mask=mask) == pytest.approx(metric(hypotheses, *extra, mask=full))
        each = [metric(hypotheses[:, k], *extra) for k in range(5)]
        assert metric(hypotheses, *extra) == pytest.approx(np.mean(each))
    with pytest.raises(ValueError, match="with or without the axes of hypotheses"):
        bone_length_error(hypotheses, target[:2], H36M.bones)
    with pytest.raises(ValueError, match="mask must have shape"):
        symmetry_error(hypotheses, H36M.bones, H36M.flip_pairs, torch.ones(5, 8))


def test_bone_metrics_agree_with_plain_loops(motion):
    pose, target = motion.numpy(), motion.flip(0).numpy()
    lengths, true = (np.stack([np.linalg.norm(x[..., a, :] - x[..., b, :], axis=-1) for a, b in H36M.bones], -1) for x in (pose, target))
    assert bone_length_error(pose, target, H36M.bones) == pytest.approx(1000 * np.abs(lengths - true).mean())
    assert bone_length_deviation(pose, H36M.bones) == pytest.approx(1000 * lengths.std(axis=1).mean())
    of = {frozenset(bone): lengths[..., i] for i, bone in enumerate(H36M.bones)}
    flip = H36M.flip_index
    pairs = [np.abs(of[frozenset((a, b))] - of[frozenset((flip[a], flip[b]))]).mean() for a, b in H36M.bones if b in H36M.left]
    assert symmetry_error(pose, H36M.bones, H36M.flip_pairs) == pytest.approx(1000 * np.mean(pairs))


# Joint limits ---------------------------------------------------------------------------------------------------------


def test_angles_of_a_standing_person_are_zero():
    angles = {name: angle.item() for name, angle in joint_angles(standing()).items()}
    assert angles == pytest.approx(dict.fromkeys(angles, 0), abs=1e-4)
    kinds = {name.removeprefix("left_").removeprefix("right_") for name in angles}
    assert kinds == JOINT_LIMITS.keys()
    assert joint_limit_violations(standing()) == 0


# Turning about +x moves what hangs (+y) towards +z, which is backwards, and what stands up (-y) forwards.
@pytest.mark.parametrize(
    ("joint", "angle", "name", "expected"),
    [
        ("left_knee", 90, "left_knee_flexion", 90),
        ("left_knee", 30, "left_knee_forward", -30),
        ("right_knee", -30, "right_knee_forward", 30),
        ("left_elbow", -50, "left_elbow_backward", -50),
        ("right_elbow", 50, "right_elbow_backward", 50),
        ("right_elbow", 120, "right_elbow_flexion", 120),
        ("left_hip", 40, "left_hip_backward", 40),
        ("left_hip", -80, "left_hip_backward", -80),
        ("spine", 35, "spine_bend", 35),
        ("thorax", 60, "neck_bend", 60),
    ],
)
def test_angles_are_those_by_which_a_joint_was_bent(joint, angle, name, expected):
    angles = {key: value.item() for key, value in joint_angles(bend(joint, angle)).items()}
    assert angles[name] == pytest.approx(expected, abs=1e-4)


def test_a_thigh_leans_inwards():
    # Turning about +z moves what hangs (+y) towards -x: inwards for the left leg, outwards for the right one.
    assert joint_angles(bend("left_hip", 30, "z"))["left_hip_inward"].item() == pytest.approx(30, abs=1e-4)
    assert joint_angles(bend("right_hip", 30, "z"))["right_hip_inward"].item() == pytest.approx(-30, abs=1e-4)


@pytest.mark.parametrize(
    ("joint", "possible", "impossible"),
    [
        ("left_knee", (0, 60, 140, -10), (-30, -90, 172)),
        ("right_knee", (0, 60, 140, -10), (-30, -90, 172)),
        ("left_elbow", (0, -60, -140, 20), (50, 90, -170)),
        ("right_elbow", (0, -60, -140, 20), (50, 90, -170)),
        ("left_hip", (-120, -60, 0, 30), (60, 90)),
        ("right_hip", (-120, -60, 0, 30), (60, 90)),
        ("spine", (-40, 40), (-90, 90)),
        ("thorax", (-60, 60), (-100, 100)),
    ],
)
def test_bodies_bend_one_way(joint, possible, impossible):
    for angle in possible:
        assert joint_limit_violations(bend(joint, angle)) == 0, angle
    for angle in impossible:
        assert joint_limit_violations(bend(joint, angle)) == pytest.approx(100 / 8), angle


def test_a_bent_knee_is_possible_wherever_the_thigh_points():
    sitting = bend("left_hip", -90)
    sitting[:, J["left_ankle"]] = sitting[:, J["left_knee"]] + torch.tensor([0, 0.45, 0])
    assert joint_limit_violations(sitting) == 0
    sitting[:, J["left_ankle"]] = sitting[:, J["left_knee"]] - torch.tensor([0, 0.45, 0])
    assert joint_limit_violations(sitting) == pytest.approx(100 / 8)


def test_violations_ignore_place_size_direction_and_side(motion):
    expected = joint_limit_violations(motion)
    assert 20 < expected < 80
    rotation = quaternion_to_matrix(torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    assert joint_limit_violations(2 * motion @ rotation.mT + 3) == pytest.approx(expected)
    mirrored = (motion * torch.tensor([-1.0, 1, 1]))[..., list(H36M.flip_index), :]
    assert joint_limit_violations(mirrored) == pytest.approx(expected)
    angles, other = joint_angles(motion), joint_angles(mirrored)
    for name, angle in angles.items():
        swapped = {"left": "right", "right": "left"}
        swapped = "_".join(swapped.get(word, word) for word in name.split("_"))
        assert torch.allclose(angle, other[swapped], atol=1e-6)
    assert joint_limit_violations(motion[0].numpy()) == pytest.approx(joint_limit_violations(motion[:1].float()))
    assert joint_limit_violations(motion) == pytest.approx(np.mean([joint_limit_violations(clip) for clip in motion]))


def test_other_skeletons_have_the_same_limits():
    names = {"neck": "thorax", "head": "neck_nose"}
    order = [J[names.get(name, name)] for name in get_skeleton("mpi_inf_3dhp_17").joint_names]
    for pose in (bend("left_knee", -60), bend("spine", 30)):
        assert joint_limit_violations(pose[:, order], "mpi_inf_3dhp_17") == joint_limit_violations(pose)
    assert convert(standing(), "h36m_17", "h36m_16").shape[-2] == 16
    assert joint_limit_violations(convert(bend("left_knee", -60), "h36m_17", "h36m_16"), "h36m_16") == pytest.approx(100 / 8)


def test_frames_count_only_if_the_body_is_there(motion):
    mask = torch.ones(3, 8, 17)
    mask[:, 5:, J["left_ankle"]] = 0
    mask[:, :, J["neck_nose"]] = 0  # no angle needs it
    spoiled = torch.where(mask[..., None] > 0, motion, torch.nan)
    assert joint_limit_violations(spoiled, mask=mask) == pytest.approx(joint_limit_violations(motion[:, :5]))
    assert joint_limit_violations(torch.zeros(2, 17, 3)) == 0  # no bone, no angle
    with pytest.raises(ValueError, match="no valid entry"):
        joint_limit_violations(motion, mask=torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"'coco_17' lacks joints .* known are .*h36m_17"):
        joint_angles(motion, "coco_17")
    with pytest.raises(ValueError, match="16 joints of 'h36m_16', got 17"):
        joint_limit_violations(motion, "h36m_16")
    with pytest.raises(ValueError, match="pose must be finite"):
        joint_angles(motion * torch.nan)


def test_real_motion_stays_within_the_limits():
    if not MOCAP.exists():
        pytest.skip(f"{MOCAP} is not here")
    with np.load(MOCAP, allow_pickle=False) as archive:
        train = np.repeat(archive["splits"] == "train", np.diff(archive["starts"]))
        pose = torch.from_numpy(archive["local"][train].astype(np.float32))
    assert joint_limit_violations(pose) < 0.01
    noise = torch.randn(pose.shape, generator=torch.Generator().manual_seed(0))
    assert joint_limit_violations(pose + 0.05 * noise) > 3
    assert joint_limit_violations(pose * torch.tensor([1.0, -1.0, 1.0])) > 30


# Feet -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stroll():
    """A rigid person who stands for five frames and then walks 100 mm a frame; pose and root trajectory."""
    path = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3.0], dtype=torch.float64)[:, None] * torch.tensor([0.1, 0, 0]) + torch.tensor([0, 0, 4.0])
    return standing().expand(8, 17, 3), path


def test_feet_slide_by_what_they_should_not_move(stroll):
    target, root = stroll
    assert foot_skate(target, root, 50, target, root) == 0
    drift = torch.arange(8.0)[:, None] * torch.tensor([0.003, 0, 0.004])  # 5 mm a frame
    assert foot_skate(target, root + drift, 50, target, root) == pytest.approx(250)
    assert foot_skate(target, root + drift, 30, target, root) == pytest.approx(150)
    pose = target.clone()
    pose[:, J["left_ankle"]] += drift
    assert foot_skate(pose, root, 50, target, root) == pytest.approx(125)
    # What happens while the truth walks does not count.
    assert foot_skate(target, root * torch.tensor([0, 1.0, 1]), 50, target, root) == 0
    assert foot_skate(target, root + drift, 50, target, root, still_mm_per_s=1e6) == pytest.approx(
        np.mean([250] * 4 + [50 * np.hypot(103, 4)] * 3), abs=1e-3
    )


def test_feet_of_hypotheses(stroll):
    target, root = stroll
    drift = torch.arange(8.0)[:, None] * torch.tensor([0.01, 0, 0])
    hypotheses, roots = target.expand(3, 8, 17, 3), torch.stack([root, root + drift, root + 2 * drift])
    assert foot_skate(hypotheses, roots, 10, target, root) == pytest.approx(100)
    assert foot_skate(hypotheses + drift[:, None], root, 10, target, root) == pytest.approx(100)
    batch = (value[None].expand(2, *value.shape) for value in (hypotheses, roots))
    assert foot_skate(*batch, 10, target.expand(2, 8, 17, 3), root.expand(2, 8, 3)) == pytest.approx(100)
    mask = torch.ones(8)
    mask[2:] = 0
    late = torch.cat([torch.zeros(2, 3), drift[2:]])
    assert foot_skate(hypotheses, root + late, 10, target, root, mask=mask) == 0
    assert foot_skate(target.numpy(), (root + drift).numpy(), 10, target.numpy(), root.numpy()) == pytest.approx(100)


def test_bad_feet_are_named(stroll):
    target, root = stroll
    for message, arguments in {
        "fps must be positive, got 0": (target, root, 0, target, root),
        "root must have the shape": (target, root[:3], 50, target, root),
        "target_root must be finite": (target, root, 50, target, root * torch.nan),
        "two or more frames": (target[:1], root[:1], 50, target[:1], root[:1]),
        "target must have the shape": (target[:3], root, 50, target, root),
        "slower than 150.0 mm/s": (target[5:], root[5:], 50, target[5:], root[5:]),
    }.items():
        with pytest.raises(ValueError, match=message):
            foot_skate(*arguments)
    with pytest.raises(ValueError, match="'stick' has no ankles"):
        foot_skate(target, root, 50, target, root, skeleton=Skeleton("stick", ("top", "bottom"), (-1, 0)))
    with pytest.raises(ValueError, match="25 joints of 'openpose_25'"):
        foot_skate(target, root, 50, target, root, skeleton="openpose_25")
