"""Energies of motions by themselves."""

import math

import numpy as np
import pytest
import torch

from probpose.geometry import quaternion_to_matrix, rotation_between_z_and
from probpose.guidance import BoneLengthEnergy, GroundContactEnergy, InpaintingEnergy, SmoothnessEnergy, absolute
from probpose.skeletons import bone_lengths, get_skeleton

FEET = [3, 6]
NAMES = ("bones", "own bones", "smoothness", "inpainting")


@pytest.fixture
def lengths(make_motion):
    return bone_lengths(absolute(make_motion(noise=0)), "h36m_17").mean(0)


@pytest.fixture
def make(make_motion, lengths, draw):
    """Every energy whose gradient is the derivative of its value."""
    target = make_motion(seed=3)
    target[1:3, 5:9] = math.nan
    energies = {
        "bones": BoneLengthEnergy(lengths),
        "own bones": BoneLengthEnergy(),
        "smoothness": SmoothnessEnergy(fps=25, acceleration=3),
        "inpainting": InpaintingEnergy(target, weights=draw(4, 17).abs()),
    }
    return energies.__getitem__


def standing(frames=3, height=0.0, speed=0.0, fps=30.0):
    """Feet at a height, moving along x; the root 1 m above the floor."""
    motion = torch.zeros(frames, 17, 3, dtype=torch.float64)
    motion[:, 0, 2] = 1
    motion[:, FEET, 2] = height - 1
    motion[:, FEET, 0] = torch.arange(frames)[:, None].double() * speed / fps
    return motion


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_derivatives(make, make_motion, name):
    assert torch.autograd.gradcheck(make(name), make_motion(2).requires_grad_(), eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_curvature_bounds(make, make_motion, check_majoriser, name):
    check_majoriser(make(name), make_motion(2, 3, noise=0.02), size=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes(make, make_motion, name):
    energy, motion = make(name), make_motion(2, 3)
    expansion = energy.expand(motion)
    alone = energy.expand(motion[1, 2])
    for part in ("value", "gradient", "curvature"):
        torch.testing.assert_close(getattr(expansion, part)[1, 2], getattr(alone, part))
    assert energy(motion.float()).dtype == torch.float32


# Bones


def test_bones_against_numpy(make_motion, lengths, draw):
    motion = make_motion()
    wanted = (lengths * (1 + 0.1 * draw(16))).numpy()
    joints = absolute(motion).numpy()
    expected = 0.0
    for i, (parent, child) in enumerate(get_skeleton("h36m_17").bones):
        expected += (((np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1) - wanted[i]) / 0.02) ** 2).sum() / 2
    assert BoneLengthEnergy(wanted, sigma=0.02)(motion).item() == pytest.approx(expected)


def test_bones_of_a_rigid_motion_cost_nothing(make_motion, lengths, draw):
    still = make_motion(noise=0)[:1]
    motion = still @ quaternion_to_matrix(draw(3, 4))
    assert BoneLengthEnergy()(motion).item() == pytest.approx(0, abs=1e-9)
    assert BoneLengthEnergy(bone_lengths(absolute(still), "h36m_17")[0])(motion).item() == pytest.approx(0, abs=1e-9)
    assert BoneLengthEnergy()(1.1 * motion).item() == pytest.approx(0, abs=1e-9)
    assert BoneLengthEnergy(lengths)(1.1 * motion).item() > 100


def test_bones_begin_at_the_root_whatever_stands_in_its_place(make_motion, draw):
    motion = make_motion(2)
    moved = motion.clone()
    moved[..., 0, :] = draw(4, 3)
    for energy in (BoneLengthEnergy(), BoneLengthEnergy(torch.full((16,), 0.3))):
        torch.testing.assert_close(energy(motion), energy(moved))
        assert energy.gradient(motion)[1][..., 0, :].abs().max() == 0
        assert energy.curvature(motion)[..., 0, :, :].abs().max() == 0


def test_own_lengths_are_the_best_lengths(make_motion):
    """The variance: the same value and slope as with the mean lengths held fast."""
    motion = make_motion()
    mean = bone_lengths(absolute(motion), "h36m_17").mean(0)
    for own, fixed in zip(BoneLengthEnergy().gradient(motion), BoneLengthEnergy(mean).gradient(motion)):
        torch.testing.assert_close(own, fixed)
    assert BoneLengthEnergy(1.01 * mean)(motion) > BoneLengthEnergy()(motion)


def test_lengths_may_differ_from_clip_to_clip(make_motion, lengths):
    motion = make_motion(2, 3)
    each = torch.stack([lengths, 1.2 * lengths])
    value = BoneLengthEnergy(each[:, None])(motion)
    for i in range(2):
        torch.testing.assert_close(value[i], BoneLengthEnergy(each[i])(motion[i]))


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_curvature_of_bones_far_from_their_length(make_motion, lengths, check_majoriser, share):
    """Ones that are too long resist turning too."""
    check_majoriser(BoneLengthEnergy(share * lengths), make_motion(2, noise=0.02), size=1e-4, tightness=0.2 if share < 1 else 0.05)
    stretched = BoneLengthEnergy(share * lengths).curvature(make_motion())[:, 1:]
    assert (torch.linalg.eigvalsh(stretched)[..., 0].min() > 1) == (share < 1)


def test_a_bone_without_length_has_finite_derivatives():
    motion = torch.zeros(2, 17, 3)
    expansion = BoneLengthEnergy(torch.full((16,), 0.3)).expand(motion)
    assert all(torch.isfinite(part).all() for part in (expansion.value, expansion.gradient, expansion.curvature))


def test_bad_bones(make_motion):
    with pytest.raises(ValueError, match=r"lengths must have shape \(\.\.\., 16\), got \(17,\)"):
        BoneLengthEnergy(torch.ones(17))
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="lengths must be finite and above 0"):
            BoneLengthEnergy(torch.full((16,), bad))
    with pytest.raises(ValueError, match="sigma"):
        BoneLengthEnergy(sigma=0)
    with pytest.raises(ValueError, match="root must be joint 0, 'mpi_inf_3dhp_17' has 14"):
        BoneLengthEnergy(skeleton="mpi_inf_3dhp_17")
    with pytest.raises(ValueError, match="the 16 joints of 'h36m_16', got 17"):
        BoneLengthEnergy(skeleton="h36m_16")(make_motion())


# Smoothness


def test_smoothness_of_a_thrown_body():
    """Everything falls at 9.81 m/s²: a trajectory with one axis accelerated, in every frame but the first and last."""
    fps, frames = 50, 6
    motion = torch.zeros(frames, 17, 3, dtype=torch.float64)
    motion[:, 0, 2] = -9.81 / 2 * (torch.arange(frames) / fps) ** 2
    value = SmoothnessEnergy(fps, acceleration=2.0)(motion)
    assert value.item() == pytest.approx((frames - 2) * (9.81 / 2) ** 2 / 2, rel=1e-5)


def test_steady_motion_is_smooth(draw):
    motion = draw(17, 3) + torch.arange(5)[:, None, None] * draw(17, 3, seed=1)
    assert SmoothnessEnergy(30)(motion).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("frames", [1, 2])
def test_smoothness_of_too_few_frames(make_motion, frames):
    motion = make_motion(3, frames=frames)
    expansion = SmoothnessEnergy(30).expand(motion)
    assert expansion.value.tolist() == [0, 0, 0]
    assert not expansion.gradient.any() and not expansion.curvature.any()


def test_smoothness_bound_is_reached():
    """By frames that move to and fro, far from the ends."""
    energy, to_and_fro = SmoothnessEnergy(30, 5), (-1.0) ** torch.arange(60)[:, None, None].double() * torch.ones(1, 17, 3).double()
    curvature = energy.curvature(to_and_fro)
    assert curvature[30, 4, 1, 1].item() == pytest.approx(16 * 30**4 / 25)
    assert energy(to_and_fro).item() == pytest.approx((curvature.diagonal(dim1=-2, dim2=-1).sum() / 2).item())


def test_bad_smoothness():
    with pytest.raises(ValueError, match="fps must be a finite number above 0, got 0"):
        SmoothnessEnergy(0)
    with pytest.raises(ValueError, match="acceleration"):
        SmoothnessEnergy(30, acceleration=-1)


# Ground


def test_feet_below_the_floor():
    motion = standing(frames=3, height=-0.03)
    assert GroundContactEnergy(penetration=0.01)(motion).item() == pytest.approx(3 * 2 * 3**2 / 2)
    assert GroundContactEnergy(penetration=0.01, floor=-0.04)(motion).item() == 0
    assert GroundContactEnergy(penetration=0.01, feet=[3])(motion).item() == pytest.approx(3 * 3**2 / 2)


def test_feet_that_slide():
    energy = GroundContactEnergy(slide=0.05, contact_height=0.06)
    assert energy(standing(frames=4, speed=0.1)).item() == pytest.approx(3 * 2 * 2**2 / 2)
    assert energy(standing(frames=4, speed=0.1, height=0.06)).item() == pytest.approx(math.exp(-0.5) * 3 * 2 * 2**2 / 2)
    assert energy(standing(frames=4, speed=0.1, height=0.5)).item() < 1e-9
    assert energy(standing(frames=4)).item() == energy(standing(frames=1, speed=0.1)).item() == 0
    up_and_down = standing(frames=2)
    up_and_down[1, FEET, 2] += 0.02
    assert energy(up_and_down).item() == 0


def test_a_foot_stands_only_if_it_does_so_in_both_frames():
    lifted = standing(frames=2, speed=0.1)
    lifted[1, FEET, 2] += 0.5
    assert GroundContactEnergy()(lifted).item() < 1e-9


def test_sliding_feet_stop_but_do_not_take_off():
    motion = standing(frames=3, speed=0.2, height=0.03)
    _, gradient = GroundContactEnergy().gradient(motion)
    assert not gradient[..., 2].any()
    assert gradient[0, 3, 0] < 0 < gradient[2, 3, 0]
    others = [joint for joint in range(1, 17) if joint not in FEET]
    assert not gradient[:, others].any()
    torch.testing.assert_close(gradient[:, 0], gradient[:, FEET].sum(1))  # the trajectory carries them


def test_ground_gradient_and_curvature_below_the_floor(check_majoriser, draw):
    """There, feet stand for certain, and the energy is a quadratic form."""
    motion = standing(frames=4, height=-0.05, speed=0.3) + 0.01 * draw(2, 4, 17, 3)
    for root in (None, 0.01 * draw(4, 3, seed=1)):
        energy = GroundContactEnergy(root=root, floor=0.0 if root is None else 1.0, up=(0.02, -0.01, 1))
        assert torch.autograd.gradcheck(energy, motion.clone().requires_grad_(), atol=1e-4, rtol=1e-4)
        check_majoriser(energy, motion)


def test_ground_in_other_axes(make_motion):
    """The same in axes that are turned, with the floor moved along."""
    motion = make_motion(3)
    up = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
    turn = rotation_between_z_and(up)
    expected = GroundContactEnergy(floor=0.1).expand(motion)
    actual = GroundContactEnergy(up=7 * up, floor=0.1).expand(motion @ turn.mT)
    torch.testing.assert_close(actual.value, expected.value)
    torch.testing.assert_close(actual.gradient, expected.gradient @ turn.mT)
    torch.testing.assert_close(actual.curvature, turn @ expected.curvature @ turn.mT)


def test_ground_of_several_clips(make_motion, draw):
    motion, up, floor, root = make_motion(2, 3), draw(2, 3), draw(2), draw(2, 4, 3)
    together = GroundContactEnergy(up=up[:, None], floor=floor[:, None], root=root[:, None]).expand(motion)
    for i in range(2):
        alone = GroundContactEnergy(up=up[i], floor=floor[i], root=root[i]).expand(motion[i])
        for part in ("value", "gradient", "curvature"):
            torch.testing.assert_close(getattr(together, part)[i], getattr(alone, part))


def test_a_given_root_replaces_the_trajectory(make_motion):
    motion = make_motion(2)
    still = motion.clone()
    still[..., 0, :] = 0
    torch.testing.assert_close(GroundContactEnergy(root=motion[..., 0, :])(still), GroundContactEnergy()(motion))


def test_feet_by_name():
    assert GroundContactEnergy().feet == FEET
    assert GroundContactEnergy(skeleton="smpl_24").feet == [7, 8, 10, 11]


def test_bad_ground():
    for up in ((0, 0, 0), (0, math.nan, 1)):
        with pytest.raises(ValueError, match="up must be finite and have a length"):
            GroundContactEnergy(up=up)
    with pytest.raises(ValueError, match=r"up must have shape \(\.\.\., 3\), got \(2,\)"):
        GroundContactEnergy(up=(0, 1))
    with pytest.raises(ValueError, match="floor must be finite, got nan"):
        GroundContactEnergy(floor=math.nan)
    with pytest.raises(ValueError, match="root must have shape"):
        GroundContactEnergy(root=torch.zeros(5, 17))
    for feet in ([], [3, 3], [17], [-1]):
        with pytest.raises(ValueError, match=r"feet must be different joints in 0\.\.16"):
            GroundContactEnergy(feet=feet)
    for name in ("fps", "penetration", "contact_height", "slide"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got 0"):
            GroundContactEnergy(**{name: 0})


# What is known


def test_key_poses(make_motion, draw):
    motion, target, weights = make_motion(2), make_motion(seed=3), draw(4, 17).abs()
    target[1:3] = math.nan
    target[0, 5, 2] = math.nan
    known = torch.isfinite(target)
    difference = torch.where(known, (motion - target) ** 2 * weights[..., None], 0)
    torch.testing.assert_close(InpaintingEnergy(target, weights, sigma=0.1)(motion), difference.sum((-1, -2, -3)) / 2 / 0.01)
    value, gradient = InpaintingEnergy(target).gradient(motion)
    assert torch.isfinite(value).all() and not gradient[:, ~known].any() and gradient[:, known].all()


def test_one_step_of_newton_reaches_the_target(make_motion):
    motion, target = make_motion(3), make_motion(seed=3)
    expansion = InpaintingEnergy(target).expand(motion)
    step = torch.linalg.solve(expansion.curvature, expansion.gradient)
    torch.testing.assert_close(motion - step, target.expand_as(motion))


def test_targets_of_several_clips(make_motion, draw):
    motion, target, weights = make_motion(2, 3), make_motion(2, seed=3), draw(2, 4, 17).abs()
    value = InpaintingEnergy(target[:, None], weights[:, None])(motion)
    for i in range(2):
        torch.testing.assert_close(value[i], InpaintingEnergy(target[i], weights[i])(motion[i]))


def test_bad_targets():
    with pytest.raises(ValueError, match=r"target must have shape \(\.\.\., 3\)"):
        InpaintingEnergy(torch.zeros(4, 17, 2))
    with pytest.raises(ValueError, match="target must be finite, or NaN"):
        InpaintingEnergy(torch.full((4, 17, 3), math.inf))
    target = torch.zeros(4, 17, 3)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            InpaintingEnergy(target, torch.full((4, 17), bad))
    InpaintingEnergy(torch.full_like(target, math.nan), torch.full((4, 17), math.nan))  # of no meaning where nothing is known
    with pytest.raises(ValueError, match=r"weights must have shape \(4, 17\), got \(5, 17\)"):
        InpaintingEnergy(target, torch.ones(5, 17))
    with pytest.raises(ValueError, match="sigma"):
        InpaintingEnergy(target, sigma=0)
