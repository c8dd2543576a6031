"""Local pose augmentation: the published tables and numbers, and what bending, stretching and turning must keep."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probpose.adaptation.alignment import global_position_alignment
from probpose.adaptation.augmentor import (
    PoseAugmentor,
    anatomy,
    bend_amount,
    bend_bones,
    bone_vectors,
    length_ratios,
    rotate_about_root,
    rotation_matrix,
    scale_bones,
    unit_bones,
)
from probpose.geometry import Camera
from probpose.skeletons import bone_lengths, flip, get_skeleton

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "poseda" / "io.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
skeletons = pytest.mark.parametrize("skeleton", ["h36m_16", "h36m_17", "mpi_inf_3dhp_17", "smpl_24", "humaneva_15"])


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def body(*shape, skeleton, seed=0):
    """Root-relative poses."""
    pose = draw(*shape, get_skeleton(skeleton).num_joints, 3, seed=seed, scale=0.4)
    root = get_skeleton(skeleton).root
    return pose - pose[..., root : root + 1, :]


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# The published tables and numbers


def test_anatomy_of_16_joints():
    found = anatomy("h36m_16")
    assert found.spine == (6, 7)
    assert found.length_groups == (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8) and found.frozen_group == 4
    assert found.parts == ((7, 9, 10, 11), (7, 12, 13, 14), (0, 1, 2, 3, 6), (0, 3, 4, 5, 6), (0, 3, 6, 7, 8, 9, 12))


def test_anatomy_of_17_joints_has_a_neck():
    found = anatomy("h36m_17")
    assert found.spine == (6, 7) and found.frozen_group == 4
    assert found.length_groups == (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 9)
    assert found.parts == ((7, 10, 11, 12), (7, 13, 14, 15), (0, 1, 2, 3, 6), (0, 3, 4, 5, 6), (0, 3, 6, 7, 8, 9, 10, 13))


@skeletons
def test_anatomy_is_symmetric(skeleton):
    found, tree = anatomy(skeleton), get_skeleton(skeleton)
    bone_of = {child: bone for bone, (_, child) in enumerate(tree.bones)}
    mirror = {bone: bone_of[tree.flip_index[child]] for child, bone in bone_of.items()}
    left_arm, right_arm, right_leg, left_leg, torso = ({*part} for part in found.parts)
    assert {mirror[bone] for bone in left_arm} == right_arm and {mirror[bone] for bone in left_leg} == right_leg
    assert {mirror[bone] for bone in torso} == torso
    assert all(found.length_groups[bone] == found.length_groups[mirror[bone]] for bone in mirror)
    assert set().union(*found.parts) == set(mirror)


@pytest.mark.parametrize("skeleton", ["coco_17", "wholebody_133"])
def test_anatomy_needs_a_root(skeleton):
    with pytest.raises(ValueError, match="has no anatomy"):
        anatomy(skeleton)


@needs_parity
def test_parity():
    values = load_file(PARITY)
    source, skeleton = values["ex3.source3d"], "h36m_16"
    close(unit_bones(source, skeleton), values["ex3.bone_units"])
    close(bone_lengths(source, skeleton), values["ex3.bone_lengths"])
    bent = bend_bones(source, values["ex3.delta_ba"], skeleton)
    close(bent, values["ex3.pose_ba"])
    close(bend_amount(source, bent, skeleton), values["ex3.ba_diff"])
    ratio = length_ratios(values["ex3.gamma_bl_raw"], skeleton)
    close(ratio, values["ex3.blr"])
    scaled = scale_bones(bent, ratio, skeleton)
    close(scaled, values["ex3.pose_bl"])
    close(rotation_matrix(values["ex3.rot_raw"]), values["ex3.rotation"])
    turned = rotate_about_root(scaled, values["ex3.rot_raw"])
    close(turned, values["ex3.pose_rot"])
    camera = Camera(values["ex3.focal"], values["ex3.center"])
    placed = global_position_alignment(turned, values["ex3.target2d"], camera)
    close(placed, values["ex3.pose_out"])
    close(camera.project(placed), values["ex3.out2d"])


def test_parameter_counts():
    model = PoseAugmentor("h36m_16")
    counts = [sum(p.numel() for p in network.parameters()) for network in (model.bend, model.scale, model.rotate)]
    assert counts == [302_125, 296_713, 291_331]


# Transforms


@skeletons
def test_bending_keeps_lengths_root_and_spine(skeleton):
    pose = body(5, 2, skeleton=skeleton) + 3
    delta = draw(5, 2, len(get_skeleton(skeleton).bones), 3, seed=1)
    bent = bend_bones(pose, delta, skeleton)
    root, spine = get_skeleton(skeleton).root, list(anatomy(skeleton).spine)
    close(bone_lengths(bent, skeleton), bone_lengths(pose, skeleton))
    close(bent[..., root, :], pose[..., root, :])
    close(unit_bones(bent, skeleton)[..., spine, :], unit_bones(pose, skeleton)[..., spine, :])
    expected = torch.nn.functional.normalize(unit_bones(pose, skeleton) + delta, dim=-1)
    moving = [bone for bone in range(expected.shape[-2]) if bone not in spine]
    close(unit_bones(bent, skeleton)[..., moving, :], expected[..., moving, :])
    close(unit_bones(bend_bones(pose, delta, skeleton, fixed=()), skeleton), expected)


@skeletons
def test_scaling_keeps_directions_and_ties_sides(skeleton):
    pose, groups = body(5, skeleton=skeleton), anatomy(skeleton).length_groups
    ratios = length_ratios(draw(5, anatomy(skeleton).num_groups, seed=1), skeleton)
    scaled = scale_bones(pose, ratios, skeleton)
    close(unit_bones(scaled, skeleton), unit_bones(pose, skeleton))
    close(bone_lengths(scaled, skeleton), bone_lengths(pose, skeleton) * (1 + ratios[:, list(groups)]))
    assert (ratios.abs() <= 0.2).all() and (ratios[:, anatomy(skeleton).frozen_group] == 0).all()


def test_turning_is_rigid():
    pose, raw = body(5, skeleton="h36m_17") + 2, draw(5, 3, seed=1)
    turned = rotate_about_root(pose, raw)
    close(turned[:, 0], pose[:, 0])
    close(torch.cdist(turned, turned), torch.cdist(pose, pose), atol=1e-7)
    rotation = rotation_matrix(raw)
    close(rotation @ rotation.mT, torch.eye(3).double().expand(5, 3, 3))
    close(torch.linalg.det(rotation), torch.ones(5).double())
    # the angle is the length of 3.1415 tanh(raw), folded into 0..180°
    angle = (3.1415 * raw.tanh()).norm(dim=-1) % (2 * torch.pi)
    close((torch.einsum("nii->n", rotation) - 1) / 2, angle.cos())


def test_zero_is_the_identity():
    pose = body(5, skeleton="h36m_17")
    close(bend_bones(pose, torch.zeros(16, 3), "h36m_17"), pose)
    close(scale_bones(pose, torch.zeros(10), "h36m_17"), pose)
    close(rotate_about_root(pose, torch.zeros(3).double()), pose)


@skeletons
def test_mirrored_poses_are_changed_alike(skeleton):
    tree, pose = get_skeleton(skeleton), body(4, skeleton=skeleton)
    delta = draw(4, len(tree.bones), 3, seed=1)
    bone_of = {child: bone for bone, (_, child) in enumerate(tree.bones)}
    mirror = [bone_of[tree.flip_index[child]] for child in bone_of]
    x = torch.tensor([-1.0, 1.0, 1.0]).double()
    close(bend_bones(flip(pose, tree), x * delta[:, mirror], tree), flip(bend_bones(pose, delta, tree), tree))
    ratios = draw(4, anatomy(tree).num_groups, seed=2, scale=0.1)
    close(scale_bones(flip(pose, tree), ratios, tree), flip(scale_bones(pose, ratios, tree), tree))
    raw = draw(4, 3, seed=3)
    turned = rotate_about_root(flip(pose, tree), raw * torch.tensor([1, -1, -1]), tree.root)
    close(turned, flip(rotate_about_root(pose, raw, tree.root), tree))


def test_gradients_are_finite_everywhere():
    pose = torch.zeros(2, 17, 3, requires_grad=True)  # bones without length
    delta, ratios, raw = (torch.zeros(2, *shape, requires_grad=True) for shape in [(16, 3), (10,), (3,)])
    out = rotate_about_root(scale_bones(bend_bones(pose, delta, "h36m_17"), ratios, "h36m_17"), raw)
    (out.sum() + bend_amount(pose, out, "h36m_17").sum()).backward()
    assert all(value.grad.isfinite().all() for value in (pose, delta, ratios, raw))
    inputs = body(2, skeleton="h36m_17"), draw(2, 16, 3, seed=1), draw(2, 10, seed=2), draw(2, 3, seed=3)
    for value in inputs:
        value.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, d, r, w: rotate_about_root(scale_bones(bend_bones(p, d, "h36m_17"), r, "h36m_17"), w)[:, ::4], inputs
    )


# The network


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PoseAugmentor(hidden=16).double()


def test_chain(model):
    pose, noise = body(6, skeleton="h36m_17"), draw(3, 6, 51, seed=1)
    out = model(pose, noise)
    close(bone_lengths(out.bent, "h36m_17"), bone_lengths(pose, "h36m_17"))
    close(out.scaled, scale_bones(out.bent, out.ratio, "h36m_17"))
    close(out.pose, out.scaled @ out.rotation.mT)
    close(out.bend, bend_amount(pose, out.bent, "h36m_17"))
    assert out.bend.shape == (6, 16) and out.ratio.shape == (6, 10) and out.rotation.shape == (6, 3, 3)
    out.pose.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for n, p in model.named_parameters() if n.endswith("15.weight"))


def test_noise_comes_from_a_generator(model):
    pose = body(6, skeleton="h36m_17")
    model.eval()
    one, same, other = (model(pose, generator=torch.Generator().manual_seed(seed)).pose for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_small_gain_starts_near_the_identity():
    pose = body(8, skeleton="h36m_17")
    moved = []
    for gain in (0.0, 0.01, 1.0):
        torch.manual_seed(0)
        out = PoseAugmentor(hidden=16, output_gain=gain).double()(pose, draw(3, 8, 51, seed=1))
        moved.append((out.pose - pose).abs().max())
    assert moved[0] < 1e-12 and moved[1] < 0.2 and moved[1] < moved[2] / 5


def test_a_clip_is_changed_by_one_draw(model):
    clips, noise = body(4, 5, skeleton="h36m_17"), draw(3, 4, 51, seed=1)
    model.eval()
    out, middle = model(clips, noise), model(clips[:, 2], noise)
    close(out.pose[:, 2], middle.pose)
    close(out.bend[:, 2], middle.bend)
    assert torch.equal(out.ratio, middle.ratio) and torch.equal(out.rotation, middle.rotation)
    lengths = bone_lengths(out.pose, "h36m_17") / bone_lengths(clips, "h36m_17")
    close(lengths, lengths[:, :1].expand_as(lengths))
    close(unit_bones(out.scaled, "h36m_17"), unit_bones(out.bent, "h36m_17"))


def test_saves_and_loads(model, tmp_path):
    model.float().eval().save_pretrained(tmp_path)
    pose, noise = body(2, skeleton="h36m_17").float(), draw(3, 2, 51, seed=1).float()
    close(PoseAugmentor.from_pretrained(tmp_path).eval()(pose, noise).pose, model(pose, noise).pose, atol=1e-6)


def test_errors(model):
    pose = body(1, skeleton="h36m_17")
    with pytest.raises(ValueError, match="at least two poses or clips, got 1"):
        model(pose)
    model.eval()
    assert model(pose).pose.shape == pose.shape
    with pytest.raises(ValueError, match=r"pose must have shape \(poses, 17, 3\)"):
        model(pose[:, 1:])
    with pytest.raises(ValueError, match=r"noise must have shape \(3, 1, 51\)"):
        model(pose, torch.zeros(3, 51))
    with pytest.raises(ValueError, match="10 groups"):
        scale_bones(pose, torch.zeros(1, 9), "h36m_17")
    with pytest.raises(ValueError, match="17 joints"):
        bone_vectors(pose[:, 1:], "h36m_17")
