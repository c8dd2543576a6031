"""What energies have in common: sums, factors, expansions, and where joints are in space."""

import pytest
import torch

from probpose.guidance import BoneLengthEnergy, Energy, EnergySum, InpaintingEnergy, SmoothnessEnergy, absolute
from probpose.guidance.energies import check_positive, pulled_back


@pytest.fixture
def parts(make_motion):
    return SmoothnessEnergy(fps=30), BoneLengthEnergy(), InpaintingEnergy(make_motion(seed=7))


def test_a_sum_is_the_sum(parts, make_motion):
    motion = make_motion(3)
    smooth, bones, known = parts
    energy = smooth + 0.5 * (bones + 3 * known)
    torch.testing.assert_close(energy(motion), smooth(motion) + 0.5 * bones(motion) + 1.5 * known(motion))
    expansion, own = energy.expand(motion), [part.expand(motion) for part in parts]
    for what in ("value", "gradient", "curvature"):
        expected = sum(f * getattr(e, what) for f, e in zip((1, 0.5, 1.5), own))
        torch.testing.assert_close(getattr(expansion, what), expected)
    torch.testing.assert_close(energy.curvature(motion), expansion.curvature)
    torch.testing.assert_close(energy.gradient(motion)[1], expansion.gradient)


def test_sums_are_flat_and_tell_their_terms(parts):
    smooth, bones, known = parts
    energy = 2 * ((smooth + bones) * 0.25 + known)
    assert [factor for factor, _ in energy.parts] == [0.5, 0.5, 2]
    assert list(energy.terms()) == [smooth, bones, known]
    assert energy.name == "SmoothnessEnergy + BoneLengthEnergy + InpaintingEnergy"
    assert list(smooth.terms()) == [smooth] and smooth.name == "SmoothnessEnergy"
    assert isinstance(smooth * 0, EnergySum)


def test_motions_do_not_interact(parts, make_motion):
    energy, motion = sum(parts[1:], parts[0]), make_motion(2, 3)
    value, gradient = energy.gradient(motion)
    for i, j in ((0, 0), (1, 2)):
        alone, alone_gradient = energy.gradient(motion[i, j])
        torch.testing.assert_close(value[i, j], alone)
        torch.testing.assert_close(gradient[i, j], alone_gradient)


def test_gradients_work_where_they_are_switched_off(parts, make_motion):
    motion = make_motion(2)
    with torch.no_grad():
        expansion = parts[1].expand(motion)
    assert not expansion.value.requires_grad and not expansion.gradient.requires_grad and not motion.requires_grad
    assert expansion.gradient.abs().sum() > 0


def test_absolute(draw):
    motion, root = draw(2, 3, 4, 17, 3), draw(2, 1, 4, 3, seed=1)
    space = absolute(motion)
    torch.testing.assert_close(space[..., 0, :], motion[..., 0, :])
    torch.testing.assert_close(space[..., 5, :], motion[..., 5, :] + motion[..., 0, :])
    torch.testing.assert_close(absolute(motion, root), motion + root[:, :, :, None])
    relative = torch.cat([torch.zeros_like(motion[..., :1, :]), motion[..., 1:, :]], dim=-2)
    torch.testing.assert_close(absolute(relative, motion[..., 0, :]), space)


def test_pulled_back_bounds_what_moves_in_space(draw):
    factor = draw(4, 17, 3, 3)
    curvature = factor @ factor.mT
    for seed in range(20):
        step = draw(4, 17, 3, seed=seed)
        risen, bound = (
            torch.einsum("...i,...ij,...j->", d, c, d) for d, c in ((absolute(step), curvature), (step, pulled_back(curvature, None)))
        )
        assert risen <= bound
    assert pulled_back(curvature, draw(4, 3)) is curvature


@pytest.mark.parametrize("factor", [-1, float("nan"), float("inf"), "2", True, None])
def test_factors_are_numbers_of_at_least_zero(parts, factor):
    with pytest.raises(ValueError, match=r"factor of an energy must be a finite number of at least 0, got"):
        parts[0] * factor


def test_only_energies_can_be_added(parts):
    with pytest.raises(TypeError):
        parts[0] + 1


def test_check_positive():
    assert check_positive("x", 2) == 2.0
    with pytest.raises(ValueError, match="x must be a finite number above 0, got 0"):
        check_positive("x", 0)
    assert check_positive("x", 0, zero=True) == 0


def test_energies_are_asked_for_both_parts():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Energy,), {"__call__": lambda self, motion: motion.sum()})()
