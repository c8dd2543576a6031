import math

import numpy as np
import pytest
import torch

from probpose.calibration import conformal_quantile, empirical_coverage, fit_conformal, one_frame_per_clip


def test_quantile_is_an_order_statistic():
    scores = np.random.default_rng(0).permutation(99) + 1.0
    assert conformal_quantile(scores) == 90
    assert conformal_quantile(scores, 0.07) == 7  # although 100 * 0.07 is more than 7 in floating point
    assert conformal_quantile(scores, 0.071) == 8
    assert conformal_quantile(scores[:9]) == scores[:9].max()
    both = torch.tensor(np.stack([scores, -scores], axis=1)[:, None])
    assert conformal_quantile(both).tolist() == [[90, -10]]


def test_missing_scores_count_for_nothing():
    scores = np.stack([np.arange(40.0), np.arange(40.0)], axis=1)
    scores[20:, 1] = np.nan
    assert conformal_quantile(scores, 0.5).tolist() == [math.ceil(41 / 2) - 1, math.ceil(21 / 2) - 1]


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19), (0.5, 1)])
def test_too_few_items(coverage, needed):
    conformal_quantile(np.zeros(needed), coverage)
    with pytest.raises(ValueError, match=f"at least {needed} calibration items, got {needed - 1}"):
        conformal_quantile(np.zeros(needed - 1), coverage)


@pytest.mark.parametrize("items", [20, 50, 99])
@pytest.mark.parametrize("tail", ["normal", "cauchy"])
def test_guarantee(items, tail):
    """Over many splits the mean coverage is ceil((n + 1) c) / (n + 1), whatever the distribution."""
    rng = np.random.default_rng(items)
    draw = rng.standard_normal if tail == "normal" else rng.standard_cauchy
    splits = 20000
    radius = conformal_quantile(np.abs(draw((items, splits))), 0.9).numpy()
    mean = (np.abs(draw((10, splits))) <= radius).mean()
    expected = math.ceil((items + 1) * 0.9) / (items + 1)
    assert 0.9 <= expected < 0.9 + 1 / (items + 1)
    assert mean == pytest.approx(expected, abs=4 * math.sqrt(0.09 / splits))


def test_scores_in_units_of_the_predicted_uncertainty():
    """Errors whose size varies: the factor covers as promised, also given the size when the prediction of it is right."""
    rng = np.random.default_rng(0)

    def items(number, splits=4000):
        scale = rng.lognormal(sigma=1.0, size=(number, splits))
        return scale * np.abs(rng.standard_t(2, size=scale.shape)), scale

    errors, scale = items(99)
    factor = fit_conformal(errors, scale)  # the splits take the place of joints
    errors, scale = items(50)
    _, scaled = empirical_coverage(errors, factor * torch.tensor(scale))
    assert scaled == pytest.approx(0.9, abs=0.005)
    large = scale > np.quantile(scale, 0.9)
    assert (errors <= factor.numpy() * scale)[large].mean() == pytest.approx(0.9, abs=0.01)
    plain = fit_conformal(*items(99)[:1]).numpy()
    assert (errors <= plain).mean() == pytest.approx(0.9, abs=0.005)
    assert (errors <= plain)[large].mean() < 0.7


def test_frames_of_one_clip_are_not_exchangeable():
    """Few clips whose frames share their size: pooled frames promise more than they keep, a frame of each clip keeps it."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pooled, single, trials = [], [], 1500
    for _ in range(trials):
        lengths = rng.integers(1, 40, size=9)
        size = rng.lognormal(sigma=1.0, size=10)
        frames = np.concatenate([s * rng.uniform(0.9, 1.1, size=n) for s, n in zip(size, lengths)])
        new = size[-1] * rng.uniform(0.9, 1.1)
        pooled.append(new <= conformal_quantile(frames))
        single.append(new <= conformal_quantile(one_frame_per_clip(frames, lengths, generator)))
    margin = 3 * math.sqrt(0.09 / trials)
    assert np.mean(pooled) < 0.9 - 2 * margin
    assert np.mean(single) == pytest.approx(0.9, abs=margin)


def test_one_frame_per_clip():
    lengths = [3, 1, 4]
    scores = torch.arange(8)[:, None].repeat(1, 2)
    drawn = torch.stack([one_frame_per_clip(scores, lengths, torch.Generator().manual_seed(seed))[:, 0] for seed in range(400)])
    for column, frames in zip(drawn.T, ([0, 1, 2], [3], [4, 5, 6, 7])):
        values, counts = column.unique(return_counts=True)
        assert values.tolist() == frames and counts.min() > 0.7 * 400 / len(frames)
    again = [one_frame_per_clip(scores, lengths, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again) and again[0].shape == (3, 2)
    for bad in ([3, 4], [3, 1, 4, 0], [[3, 1, 4]], [3.0, 1.0, 4.0]):
        with pytest.raises(ValueError, match="8 frames"):
            one_frame_per_clip(scores, bad)


def test_the_root_needs_no_uncertainty():
    errors, scale = np.random.default_rng(0).uniform(size=(30, 3)), np.ones((30, 3))
    errors[:, 0] = scale[:, 0] = 0
    factor = fit_conformal(errors, scale)
    assert factor[0] == 0 and torch.equal(factor[1:], conformal_quantile(errors[:, 1:]))
    scale[:, 1] = 0
    assert fit_conformal(errors, scale)[1] == torch.inf


def test_all_joints_at_once():
    rng = np.random.default_rng(0)
    errors = torch.tensor(rng.exponential(size=(4000, 6)))
    one = fit_conformal(errors[:2000].amax(-1, keepdim=True))
    assert empirical_coverage(errors[2000:].amax(-1, keepdim=True), one)[1] == pytest.approx(0.9, abs=0.02)
    assert (errors[2000:] <= fit_conformal(errors[:2000])).all(-1).double().mean() < 0.7


def test_empirical_coverage():
    errors = np.array([[1.0, 5.0, np.nan], [2.0, 6.0, np.nan], [3.0, np.nan, np.nan]])
    per_joint, overall = empirical_coverage(errors, [2.0, 5.0, 1.0])
    np.testing.assert_allclose(per_joint, [2 / 3, 1 / 2, np.nan])
    assert overall == pytest.approx(3 / 5)
    assert empirical_coverage(errors, 4.0)[1] == pytest.approx(3 / 5)
    assert empirical_coverage(errors, np.full((3, 3), 9.0))[1] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conformal_quantile(np.zeros(50), 1.0), "between 0 and 1"),
        (lambda: conformal_quantile(np.zeros(50), 0), "between 0 and 1"),
        (lambda: conformal_quantile(np.zeros(())), "items"),
        (lambda: conformal_quantile(np.zeros((0, 3))), "at least 9 calibration items, got 0"),
        (lambda: conformal_quantile(np.full((20, 2), np.nan)), "at least 9 calibration items, got 0"),
        (lambda: fit_conformal(np.zeros(20)), r"\(items, joints\)"),
        (lambda: fit_conformal(-np.ones((20, 3))), "distances"),
        (lambda: fit_conformal(np.ones((20, 3)), np.ones((20, 2))), "scale"),
        (lambda: fit_conformal(np.ones((20, 3)), -np.ones((20, 3))), "scale"),
        (lambda: empirical_coverage(np.ones((20, 3)), np.ones(2)), "radius"),
        (lambda: empirical_coverage(np.ones((20, 3)), np.nan), "radius"),
        (lambda: empirical_coverage(np.full((20, 3), np.nan), 1.0), "no value"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
