"""BVH: joints recomputed from the file, a skeleton that is a person's, and rotations without jumps."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from probpose.data import read_motion
from probpose.data.bvh import read_bvh
from probpose.export import Motion, export, fit_rig, project_bone_lengths
from probpose.export.bvh import _euler_angles
from probpose.export.rig import _fit, _swing, bone_lengths, rest_directions
from probpose.skeletons import get_skeleton, list_skeletons

TREES = [name for name in list_skeletons() if get_skeleton(name).parents.count(-1) == 1]


def recomputed(path, skeleton):
    """Joints in metres, from the file."""
    recording = read_bvh(path)
    return recording, recording.joint_positions()[:, [recording.names.index(name) for name in skeleton.joint_names]] / 100


def with_constant_bones(world, skeleton):
    """Bone-length projection, written again: recursion instead of the library's loop."""
    lengths = {child: np.median(np.linalg.norm(world[:, child] - world[:, parent], axis=-1)) for parent, child in skeleton.bones}

    def place(joint):
        if (parent := skeleton.parents[joint]) < 0:
            return world[:, joint]
        bone = world[:, joint] - world[:, parent]
        length = (lengths[joint] + lengths[skeleton.flip_index[joint]]) / 2
        return place(parent) + length * bone / np.linalg.norm(bone, axis=-1, keepdims=True)

    return np.stack([place(joint) for joint in range(skeleton.num_joints)], axis=1)


@pytest.mark.parametrize("clip", [0, 2, 4])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_joints_recomputed_from_the_file(filmed, tmp_path, clip, noise):
    motion = filmed(noise, clip=clip)
    export(motion, tmp_path / "motion.bvh")
    recording, joints = recomputed(tmp_path / "motion.bvh", motion.skeleton)
    sampled = motion.in_world(motion.pose)
    assert np.linalg.norm(joints - with_constant_bones(sampled, motion.skeleton), axis=-1).max() < 1e-6  # metres; 5 mm are asked for
    assert recording.fps == motion.fps and recording.joint_positions().shape[0] == motion.num_frames
    if noise == 0:  # real bones keep their lengths, so that little is lost by the projection
        assert np.linalg.norm(joints - sampled, axis=-1).mean() < 0.003


def test_an_exported_motion_can_be_trained_on(filmed, tmp_path):
    motion = filmed(0.0)
    export(motion, tmp_path / "motion.bvh")
    again = read_motion(tmp_path / "motion.bvh")
    world = with_constant_bones(motion.in_world(motion.pose), motion.skeleton)  # y up there, z up here
    expected = np.stack([world[..., 0], -world[..., 2], world[..., 1]], axis=-1)
    assert again.fps == motion.fps
    # The reader's trunk is of its own making: spine, neck and head are put where Human3.6M has them on a body of these bones.
    limbs = [i for i, name in enumerate(motion.skeleton.joint_names) if any(part in name for part in ("knee", "ankle", "elbow", "wrist"))]
    moved = again.positions[:, limbs] - again.positions[:, :1]
    assert len(limbs) == 8 and np.linalg.norm(moved - (expected[:, limbs] - expected[:, :1]), axis=-1).max() < 0.05


@pytest.mark.parametrize("name", TREES)
def test_every_skeleton_and_poses_of_no_person(tmp_path, name):
    skeleton = get_skeleton(name)
    rng = np.random.default_rng(0)
    motion = Motion(rng.normal(0, 0.3, (6, skeleton.num_joints, 3)), 25, name, root=rng.normal(size=(6, 3)))
    export(motion, tmp_path / "motion.bvh")
    _, joints = recomputed(tmp_path / "motion.bvh", skeleton)
    world = motion.in_world(motion.pose)
    np.testing.assert_allclose(joints, with_constant_bones(world, skeleton), atol=1e-6)
    np.testing.assert_allclose(project_bone_lengths(world, skeleton), with_constant_bones(world, skeleton), atol=1e-12)


def test_bones_without_length(tmp_path):
    pose = np.random.default_rng(0).normal(0, 0.3, (5, 17, 3))
    pose[:, 10] = pose[:, 9]  # never a head
    pose[2, 13] = pose[2, 12]  # once no forearm
    motion = Motion(pose, 30, root=np.zeros((5, 3)))
    export(motion, tmp_path / "motion.bvh")
    _, joints = recomputed(tmp_path / "motion.bvh", motion.skeleton)
    np.testing.assert_allclose(joints, project_bone_lengths(motion.in_world(pose), motion.skeleton), atol=1e-6)
    forearm = joints[:, 13] - joints[:, 12]
    np.testing.assert_allclose(forearm[2], forearm[1], atol=1e-6)
    np.testing.assert_allclose(joints[:, 10], joints[:, 9], atol=1e-6)


def test_the_rest_pose_is_a_t_pose(filmed, tmp_path):
    motion = filmed()
    export(motion, tmp_path / "motion.bvh")
    recording = read_bvh(tmp_path / "motion.bvh")
    rest = replace(recording, rotations=np.broadcast_to(np.eye(3), recording.rotations[:1].shape), translations=recording.translations[:1])
    places = dict(zip(rest.names, rest.joint_positions()[0] - rest.joint_positions()[0, 0]))
    for side, sign in (("left", 1), ("right", -1)):  # facing +z with y up, the left hand points along +x
        assert sign * places[f"{side}_wrist"][0] > 40
        assert places[f"{side}_wrist"][1] == pytest.approx(places[f"{side}_shoulder"][1], abs=1e-6)
        assert places[f"{side}_ankle"][1] < -70 and places[f"{side}_ankle"][0] == pytest.approx(places[f"{side}_hip"][0], abs=1e-6)
    assert places["head_top"][1] > places["thorax"][1] > places["spine"][1] > 0
    np.testing.assert_allclose(places["left_wrist"] * [-1, 1, 1], places["right_wrist"], atol=1e-5)
    assert [name for name in rest.names if name.endswith("_end")] == [
        "right_ankle_end", "left_ankle_end", "head_top_end", "left_wrist_end", "right_wrist_end",
    ]  # fmt: skip


@pytest.mark.parametrize("name", list_skeletons())
def test_rest_directions_of_every_skeleton(name):
    skeleton = get_skeleton(name)
    rest = rest_directions(skeleton)
    np.testing.assert_allclose(np.linalg.norm(rest, axis=-1), [parent >= 0 for parent in skeleton.parents])
    named = [j for j, joint in enumerate(skeleton.joint_names) if not any(part in joint for part in ("hand_", "finger_", "face_"))]
    mirrored = rest[list(skeleton.flip_index)] * [-1, 1, 1]
    np.testing.assert_allclose(rest[named], mirrored[named], atol=1e-12)


def test_a_turning_statue_turns_at_its_root_only(filmed):
    """A rigid body in rest pose that is turned: the rotation is found, and all others are none."""
    skeleton = get_skeleton("h36m_17")
    steps = bone_lengths(filmed().pose, skeleton)[:, None] * rest_directions(skeleton)
    statue = np.zeros((17, 3))
    for parent, child in skeleton.bones:
        statue[child] = statue[parent] + steps[child]
    turns = Rotation.from_rotvec(np.outer(np.linspace(0, 9, 40), [0.3, 0.9, -0.2]))
    rig = fit_rig(np.stack([turn.apply(statue) for turn in turns]), skeleton, 30)
    np.testing.assert_allclose(rig.rotations[:, 0], turns.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(rig.rotations[:, 1:], np.broadcast_to(np.eye(3), rig.rotations[:, 1:].shape), atol=1e-7)


def turned_by(rotations):
    return (rotations[:-1].inv() * rotations[1:]).magnitude()


def test_rotations_do_not_jump(filmed, tmp_path):
    for clip in range(4):
        motion = filmed(noise=0.002, clip=clip)
        export(motion, tmp_path / "motion.bvh", overwrite=True)
        recording = read_bvh(tmp_path / "motion.bvh")
        for node in range(len(recording.names)):
            assert turned_by(Rotation.from_matrix(recording.rotations[:, node])).max() < np.radians(45), recording.names[node]
        lines = (tmp_path / "motion.bvh").read_text().split("Frame Time:")[1].splitlines()[1:]
        assert np.abs(np.diff(np.loadtxt(lines)[:, 3:], axis=0)).max() < 60  # no full and no half turns in the angles either


@pytest.mark.parametrize("miss", [0.0, 1e-9, 1e-3, 0.1])
def test_a_bone_that_passes_the_way_opposite_to_rest(miss):
    """A leg swung up beside the head and on: the shortest arc from rest would flip there, half a turn between two frames."""
    angle = np.radians(np.arange(0, 360, 3))
    ways = np.stack([np.sin(angle), -np.cos(angle), np.full_like(angle, miss)], axis=-1)
    ways /= np.linalg.norm(ways, axis=-1, keepdims=True)
    rest = np.array([0.0, -1.0, 0.0])
    turns = _swing(rest, ways, fps=30)
    np.testing.assert_allclose(turns.apply(rest), ways, atol=1e-7)
    moved = np.arccos(np.clip((ways[1:] * ways[:-1]).sum(-1), -1, 1))
    assert (turned_by(turns) < moved + 0.35).all()
    assert np.abs(turns[:50].as_rotvec() @ rest).max() < 1e-3 + 3 * miss  # on its way up it has no twist of its own


def test_a_joint_whose_bones_become_parallel_keeps_its_rotation():
    """Two bones that fold together: what is left to chance there follows the frame before."""
    rest = np.array([[1.0, 0, 0], [0, -1, 0]])
    spread = np.radians(np.r_[np.linspace(90, 0, 31), np.linspace(0, 90, 31)])
    noise = np.random.default_rng(0).normal(0, 1e-3, (62, 2, 3))
    ways = np.stack([np.stack([np.sin(spread), -np.cos(spread), 0 * spread], -1), np.tile([0.0, -1, 0], (62, 1))], axis=1) + noise
    ways /= np.linalg.norm(ways, axis=-1, keepdims=True)
    turns = _fit(rest, ways)
    assert turned_by(turns).max() < np.radians(10)
    np.testing.assert_allclose(turns[0].apply(rest), ways[0], atol=5e-3)


def test_kabsch_agrees_with_scipy():
    rng = np.random.default_rng(1)
    rest = rng.normal(size=(4, 3))
    ways = np.stack([turn.apply(rest) for turn in Rotation.random(20, random_state=1)]) + rng.normal(0, 0.1, (20, 4, 3))
    for turn, way in zip(_fit(rest, ways), ways):
        assert (turn.inv() * Rotation.align_vectors(way, rest)[0]).magnitude() < 1e-6


@pytest.mark.parametrize("order", ["ZXY", "ZYX"])
def test_euler_angles_are_the_rotation_and_do_not_jump(order):
    drawn = np.linspace([-200, -170, -100], [700, 170, 500], 400)
    turns = Rotation.from_euler(order, drawn, degrees=True)
    angles = _euler_angles(turns.as_matrix(), order)
    assert (Rotation.from_euler(order, angles, degrees=True).inv() * turns).magnitude().max() < 1e-6
    # The middle angle passes ±90 and comes out beyond it; it may be the other triple, whose middle angle runs backwards.
    np.testing.assert_allclose(np.abs(np.diff(angles, axis=0)), np.diff(drawn, axis=0), atol=1e-6)
