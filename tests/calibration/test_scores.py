import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from probpose.calibration import crps, energy_score, gaussian_nll, nll_of_std, sharpness

SCORES = {"energy_score": energy_score, "crps": crps, "gaussian_nll": gaussian_nll}


def draw(num_hypotheses=6, frames=5, joints=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_hypotheses, frames, joints, 3)), rng.normal(size=(frames, joints, 3))


def naive(name, hypotheses, target, fair=False):
    """Mean over frames and joints, one at a time."""
    number, values = len(hypotheses), []
    for t, j in np.ndindex(target.shape[:2]):
        x, y = hypotheses[:, t, j], target[t, j]
        if name == "gaussian_nll":
            values.append(-multivariate_normal(x.mean(0), np.cov(x.T) + 0.001**2 * np.eye(3)).logpdf(y))
            continue
        pairs = number * (number - 1) if fair else number**2
        to_truth, between = np.abs(x - y), np.abs(x[:, None] - x[None])
        if name == "energy_score":
            to_truth, between = np.linalg.norm(x - y, axis=-1), np.linalg.norm(x[:, None] - x[None], axis=-1)
        values.append(1000 * (to_truth.mean(0) - between.sum((0, 1)) / pairs / 2).mean())
    return np.mean(values)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_their_definition(name):
    hypotheses, target = draw()
    assert SCORES[name](hypotheses, target) == pytest.approx(naive(name, hypotheses, target))
    if name != "gaussian_nll":
        assert SCORES[name](hypotheses, target, fair=True) == pytest.approx(naive(name, hypotheses, target, fair=True))


def test_crps_is_the_integral_over_the_distribution_functions():
    x, y = np.random.default_rng(1).normal(size=(2, 7))[:, :5], 0.3
    for samples in x:
        points = [*sorted(samples), y]

        def difference(z, samples=samples):
            return ((samples <= z).mean() - (y <= z)) ** 2

        integral = quad(difference, min(points), max(points), points=points, limit=200)[0]
        hypotheses = np.repeat(samples[:, None, None, None], 3, axis=-1)
        assert crps(hypotheses, np.full((1, 1, 3), y)) == pytest.approx(1000 * integral, rel=1e-6)


def test_one_dimension_makes_energy_score_and_crps_the_same():
    hypotheses, target = draw()
    hypotheses[..., 1:] = target[..., 1:] = 0
    assert energy_score(hypotheses, target) == pytest.approx(3 * crps(hypotheses, target))  # two coordinates score zero


def test_a_single_point_scores_its_error():
    _, target = draw()
    hypotheses = np.repeat((target + np.array([0.003, 0, 0.004]))[None], 4, axis=0)
    assert energy_score(hypotheses, target) == pytest.approx(5)
    assert crps(hypotheses, target) == pytest.approx(7 / 3)
    assert sharpness(hypotheses) == pytest.approx(0)


def test_sharpness():
    hypotheses = np.zeros((4, 2, 2, 3))
    hypotheses[:, :, 1, 0] = np.array([-0.003, -0.001, 0.002, 0.010])[:, None]
    assert sharpness(hypotheses, joints=[1]) == pytest.approx((2 + 0 + 3 + 11) / 4)
    assert sharpness(hypotheses) == pytest.approx(2)
    assert sharpness(hypotheses, centre="mean", joints=[1]) == pytest.approx((5 + 3 + 0 + 8) / 4)
    assert sharpness(list(hypotheses[None] * [[[[[2]]]]])) == pytest.approx(4)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_proper(name):
    """Truth and hypotheses from one distribution score better than narrower, wider or shifted hypotheses."""
    rng = np.random.default_rng(0)
    target, noise = rng.normal(size=(3000, 1, 3)), rng.normal(size=(64, 3000, 1, 3))
    honest = SCORES[name](noise, target)
    for other in (0.6 * noise, 1.6 * noise, noise + np.array([0, 0, 0.5])):
        assert SCORES[name](other, target) > honest + 0.01 * abs(honest)


def test_fair_scores_do_not_depend_on_the_number_of_hypotheses():
    rng = np.random.default_rng(0)
    target, noise = rng.normal(size=(4000, 1, 3)), rng.normal(size=(40, 4000, 1, 3))
    for score in (energy_score, crps):
        few, many = score(noise[:3], target, fair=True), score(noise, target, fair=True)
        assert few == pytest.approx(many, rel=0.03)
        assert score(noise[:3], target) > 1.1 * many


@pytest.mark.parametrize("name", SCORES)
def test_masks_targets_that_are_missing_and_several_clips(name):
    score, (hypotheses, target) = SCORES[name], draw()
    target[2] = np.nan
    hypotheses[:, 2] = np.nan
    whole = score(np.delete(hypotheses, 2, axis=1), np.delete(target, 2, axis=0))
    assert score(hypotheses, target) == pytest.approx(whole)
    mask = np.ones((5, 3))
    mask[0, 1] = 0
    filled = np.nan_to_num(target)
    assert score(hypotheses, filled, mask=np.arange(5) != 2) == pytest.approx(whole)
    # Every joint of every frame weighs the same, whichever clip it is in.
    parts = score([hypotheses, hypotheses[:4, :2]], [target, target[:2]], mask=[mask, np.ones(2)])
    first, second = score(hypotheses, target, mask=mask), score(hypotheses[:4, :2], target[:2])
    assert parts == pytest.approx((11 * first + 6 * second) / 17)
    assert score(hypotheses, target, joints=[2, 0]) == pytest.approx(score(hypotheses[:, :, [0, 2]], target[:, [0, 2]]))
    with pytest.raises(ValueError, match="no valid entry"):
        score(hypotheses, target, mask=np.zeros(5))
    with pytest.raises(ValueError, match="at least two"):
        score(hypotheses[:1], target)


@pytest.mark.parametrize("name", SCORES)
def test_many_hypotheses_in_pieces(name):
    hypotheses, target = draw(300, frames=8, joints=17)
    each = [SCORES[name](hypotheses[:, t : t + 1], target[t : t + 1]) for t in range(8)]
    assert SCORES[name](torch.tensor(hypotheses), torch.tensor(target)) == pytest.approx(np.mean(each))


def test_floor_of_the_covariance():
    target = np.zeros((4, 2, 3))
    hypotheses = np.zeros((5, 4, 2, 3))
    expected = -multivariate_normal(np.zeros(3), 0.02**2 * np.eye(3)).logpdf(np.zeros(3))
    assert gaussian_nll(hypotheses, target, floor=0.02) == pytest.approx(expected)
    with pytest.raises(ValueError, match="floor"):
        gaussian_nll(hypotheses, target, floor=0)


def test_nll_of_std():
    rng = np.random.default_rng(0)
    pose, target, std = rng.normal(size=(2, 5, 3, 3)), rng.normal(size=(2, 5, 3, 3)), rng.uniform(0.5, 2, size=(2, 5, 3))
    each = np.array([-multivariate_normal(pose[i], std[i] ** 2 / 3 * np.eye(3)).logpdf(target[i]) for i in np.ndindex(std.shape)]).reshape(
        std.shape
    )
    assert nll_of_std(pose, target, std) == pytest.approx(each.mean())
    target[0, 1, 2] = np.nan
    mask = np.arange(10).reshape(2, 5) != 7
    kept = np.isfinite(target).all(-1) & mask[..., None]
    std[1, 2] = 0  # masked
    assert nll_of_std(torch.tensor(pose), torch.tensor(target), torch.tensor(std), mask=mask) == pytest.approx(each[kept].mean())
    with pytest.raises(ValueError, match="positive"):
        nll_of_std(pose, target, std)
    with pytest.raises(ValueError, match="one shape"):
        nll_of_std(pose, target[0], std)
    with pytest.raises(ValueError, match="mask"):
        nll_of_std(pose, target, std, mask=mask[0])
    with pytest.raises(ValueError, match="no valid entry"):
        nll_of_std(pose, target, std, mask=mask & False)


def test_the_best_std_is_the_root_mean_square_radius():
    rng = np.random.default_rng(0)
    target = 0.05 * rng.normal(size=(20000, 1, 3))
    radius = math.sqrt((target**2).sum(-1).mean())
    scores = [nll_of_std(np.zeros_like(target), target, np.full((20000, 1), factor * radius)) for factor in (0.9, 1.0, 1.1)]
    assert scores[1] < min(scores[0], scores[2])
