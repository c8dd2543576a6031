from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from probpose.calibration import coverage_curve, ece, ece_of_curve, hypothesis_centre, pit, signed_miscalibration

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "calibration_platypose.safetensors"
LEVELS = np.arange(21) / 20


def sampler(num_hypotheses=50, frames=400, joints=5, spread=1.0, seed=0, root=True):
    """Hypotheses `spread` times as wide as they should be, every joint with a size of its own; joint 0 is a root."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.linspace(0.01, 0.1, joints)[:, None] * torch.tensor([1.0, 1.0, 3.0])
    middle = torch.randn(frames, joints, 3, generator=generator)
    target = middle + size * torch.randn(frames, joints, 3, generator=generator)
    hypotheses = middle + spread * size * torch.randn(num_hypotheses, frames, joints, 3, generator=generator)
    if root:
        target[:, 0] = hypotheses[:, :, 0] = 0
    return hypotheses, target


def naive_curve(hypotheses, target, levels=LEVELS, centre="median_lower", released=False):
    """The definition, word for word."""
    poses, truth = np.asarray(hypotheses, dtype=np.float64), np.asarray(target, dtype=np.float64)
    middle = {
        "median_lower": np.sort(poses, axis=0)[(len(poses) - 1) // 2],
        "median": np.median(poses, axis=0),
        "mean": poses.mean(axis=0),
    }[centre]
    quantiles = np.quantile(np.linalg.norm(poses - middle, axis=-1), levels, axis=0)  # (levels, frames, joints)
    error = np.linalg.norm(truth - middle, axis=-1)
    if released:
        return (quantiles.transpose(0, 2, 1) > error).mean(axis=2)
    return (quantiles > error).mean(axis=1)


def test_agrees_with_published_code():
    golden = load_file(GOLDEN)
    clips = [(golden[f"clip{i}.hypotheses"], golden[f"clip{i}.target"]) for i in range(3)]
    for i, (hypotheses, target) in enumerate(clips):
        curve = coverage_curve(hypotheses, target)
        assert torch.equal((4 * curve).to(torch.uint8), golden[f"clip{i}.covered"]) and curve.dtype == torch.float64
        assert torch.equal(curve, coverage_curve(hypotheses, target, single_frame="released"))  # four frames
    assert ece(*zip(*clips)) == pytest.approx(golden["ece"].item(), abs=1e-9)


@pytest.mark.parametrize("centre", ["median_lower", "median", "mean"])
@pytest.mark.parametrize("num_hypotheses", [2, 7, 20])
def test_curve_is_the_definition(num_hypotheses, centre):
    hypotheses, target = sampler(num_hypotheses, frames=37)
    levels = [1.0, 0.3, 0.0, 0.777]
    np.testing.assert_allclose(coverage_curve(hypotheses, target, centre=centre), naive_curve(hypotheses, target, centre=centre))
    curve = coverage_curve(hypotheses.numpy(), target.numpy(), levels, centre=centre)
    np.testing.assert_allclose(curve, naive_curve(hypotheses, target, levels, centre))


def test_ties_are_not_covered():
    # Integer distances 0, 1, 2, 2, 3 on a line: errors meet them exactly, and quantiles fall on them exactly.
    hypotheses = torch.zeros(5, 6, 1, 3)
    hypotheses[:, :, 0, 0] = torch.tensor([0.0, 1.0, 2.0, -2.0, -3.0])[:, None]
    target = torch.zeros(6, 1, 3)
    target[:, 0, 0] = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    quarters = [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(coverage_curve(hypotheses, target, quarters), naive_curve(hypotheses, target, quarters))
    np.testing.assert_allclose(coverage_curve(hypotheses, target, quarters)[:, 0] * 6, [0, 2, 3, 3, 4])


def test_long_clips_are_cut_without_a_seam():
    hypotheses, target = sampler(20, frames=600, joints=17)
    np.testing.assert_allclose(coverage_curve(hypotheses, target), naive_curve(hypotheses, target))
    ranks = pit(hypotheses, target)
    torch.testing.assert_close(ranks[500:502], pit(hypotheses[:, 500:502], target[500:502]), rtol=0, atol=0, equal_nan=True)


def test_every_clip_weighs_the_same():
    clips = [sampler(10, frames=3), sampler(31, frames=200, spread=0.3, seed=1), sampler(4, frames=1, seed=2)]
    hypotheses, target = [list(part) for part in zip(*clips)]
    expected = np.mean([naive_curve(*clip) for clip in clips], axis=0)
    np.testing.assert_allclose(coverage_curve(hypotheses, target), expected)
    batch = torch.stack([hypotheses[0], hypotheses[0].flip(1)]), torch.stack([target[0], target[0].flip(0)])
    np.testing.assert_allclose(coverage_curve(*batch), naive_curve(*clips[0]))


def test_released_single_frame():
    single = sampler(20, frames=1, joints=17)
    np.testing.assert_allclose(coverage_curve(*single, single_frame="released"), naive_curve(*single, released=True))
    np.testing.assert_allclose(coverage_curve(*single), naive_curve(*single))
    # A perfect sampler whose joints differ in size looks miscalibrated by that code, and is not.
    clips = [sampler(100, frames=1, joints=17, seed=seed) for seed in range(200)]
    hypotheses, target = [list(part) for part in zip(*clips)]
    assert ece(hypotheses, target) < 0.03 < 0.07 < ece(hypotheses, target, single_frame="released")


def test_what_is_not_finite_is_left_out():
    hypotheses, target = sampler(9, frames=12)
    whole = coverage_curve(hypotheses[:, 4:], target[4:])
    holed = target.clone()
    holed[:4] = torch.nan
    hypotheses[:, 0] = torch.nan  # nobody looks there
    torch.testing.assert_close(coverage_curve(hypotheses, holed), whole)
    torch.testing.assert_close(coverage_curve(hypotheses, target, mask=torch.arange(12) >= 4), whole)
    torch.testing.assert_close(coverage_curve(hypotheses, target, mask=(np.arange(12) >= 4)[:, None].repeat(5, 1)), whole)
    # A clip without any frame is skipped, a joint without any is NaN.
    empty = torch.full_like(target, torch.nan)
    torch.testing.assert_close(coverage_curve([hypotheses, hypotheses], [holed, empty]), whole)
    holed[:, 2] = torch.inf
    assert coverage_curve(hypotheses, holed).isnan().any(0).tolist() == [False, False, True, False, False]
    assert pit(hypotheses, holed).isnan().sum(0).tolist() == [12, 4, 12, 4, 4]
    with pytest.raises(ValueError, match=r"\[2\]"):
        ece(hypotheses, holed)
    assert 0 <= ece(hypotheses, holed, joints=[0, 1, 3, 4]) <= 1
    with pytest.raises(ValueError, match="no clip has a valid frame"):
        coverage_curve([hypotheses], [empty])


def test_invariances():
    hypotheses, target = sampler(15, frames=30)
    curve = coverage_curve(hypotheses, target, centre="mean")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(coverage_curve(hypotheses[order], target), coverage_curve(hypotheses, target))
    rotation = torch.tensor(Rotation.random(random_state=0).as_matrix())
    moved = [value.double() @ rotation.T + torch.tensor([1.0, -2.0, 5.0]) for value in (hypotheses, target)]
    # The mean moves with the body; a coordinate-wise median only with shifts and a change of axes. (The root ties.)
    torch.testing.assert_close(coverage_curve(*moved, centre="mean")[:, 1:], curve[:, 1:])
    turned = [value.double()[..., [2, 0, 1]] * 4 for value in (hypotheses, target)]
    torch.testing.assert_close(coverage_curve(*turned, centre="median"), coverage_curve(hypotheses, target, centre="median"))


@pytest.mark.parametrize(("spread", "sign"), [(0.5, -1), (1.0, 0), (2.0, 1)])
def test_direction_of_miscalibration(spread, sign):
    clip = sampler(100, frames=1500, spread=spread, root=False)
    error, signed = ece(*clip), signed_miscalibration(*clip)
    assert (error < 0.015 and abs(signed) < 0.015) if sign == 0 else (error > 0.15 and sign * signed > 0.15)
    ranks = pit(*clip)
    assert ranks.min() >= 0 and ranks.max() < 1
    assert (ranks.mean().item() - 0.5) * -sign > 0.1 if sign else abs(ranks.mean().item() - 0.5) < 0.02
    if sign == 0:
        assert (torch.histc(ranks, 10, 0, 1) / ranks.numel() - 0.1).abs().max() < 0.015


def test_pit_holds_the_rank():
    hypotheses, target = sampler(12, frames=20)
    middle = hypothesis_centre(hypotheses.double())
    distances, error = (hypotheses - middle).norm(dim=-1), (target - middle).norm(dim=-1)
    ranks = pit(hypotheses, target)
    assert ranks[:, 0].isnan().all()  # the root: nothing to rank
    assert torch.equal((ranks[:, 1:] * 13 + 1e-9).floor(), (distances <= error).sum(0)[:, 1:].double())
    assert pit([hypotheses, hypotheses[:, :3]], [target, target[:3]]).shape == (23, 5)


def test_centres():
    values = torch.tensor([[4.0, 1.0, 2.0], [1.0, 7.0, 2.0], [3.0, 2.0, 0.0], [9.0, 0.0, 5.0]])
    assert hypothesis_centre(values).tolist() == [3, 1, 2]
    assert hypothesis_centre(values, "median").tolist() == [3.5, 1.5, 2]
    assert hypothesis_centre(values, "mean").tolist() == [4.25, 2.5, 2.25]
    assert torch.equal(hypothesis_centre(values.bfloat16(), "median"), hypothesis_centre(values, "median").bfloat16())


def test_reductions():
    curve = np.array([[0.1, 0.4, 0.6], [0.5, 0.9, 1.0]])
    assert ece_of_curve(curve, [0.2, 0.8]) == pytest.approx((0.2 + 0.1) / 2)
    assert ece_of_curve(curve, [0.2, 0.8], reduction="pooled") == pytest.approx((1.1 / 3 - 0.2 + 0) / 2)
    assert ece_of_curve(curve, [0.2, 0.8], reduction="mean_joint") == pytest.approx((0.1 + 0.2 + 0.4 + 0.3 + 0.1 + 0.2) / 6)
    assert ece_of_curve(curve, [0.2, 0.8], joints=range(1, 3)) == pytest.approx((0.3 + 0.15) / 2)  # two: their mean
    clip = sampler(20, frames=50)
    for reduction in ("median_joint", "pooled", "mean_joint"):
        assert ece(*clip, reduction=reduction) == ece_of_curve(coverage_curve(*clip), reduction=reduction)
    assert signed_miscalibration(*clip, reduction="pooled") == pytest.approx(signed_miscalibration(*clip, reduction="mean_joint"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hypotheses": torch.zeros(4, 3, 2)}, "num_hypotheses, frames, joints, 3"),
        ({"hypotheses": torch.zeros(1, 3, 2, 3)}, "at least two"),
        ({"hypotheses": torch.full((4, 3, 2, 3), torch.nan)}, "finite"),
        ({"hypotheses": []}, "at least one clip"),
        ({"hypotheses": torch.zeros(2, 4, 3, 2, 3)}, "as many clips"),
        ({"hypotheses": [torch.zeros(4, 3, 2, 3)] * 2, "target": [torch.zeros(3, 2, 3), torch.zeros(2, 2, 3)]}, r"target\[1\]"),
        (
            {
                "hypotheses": [torch.zeros(4, 3, 2, 3), torch.zeros(4, 3, 5, 3)],
                "target": [torch.zeros(3, 2, 3), torch.zeros(3, 5, 3)],
            },
            "same joints",
        ),
        ({"target": torch.zeros(3, 3, 3)}, "target must have shape"),
        ({"mask": torch.ones(4)}, "mask must have shape"),
        ({"mask": torch.zeros(3)}, "no clip has a valid frame"),
        ({"centre": "centroid"}, "median_lower"),
        ({"single_frame": "buggy"}, "released"),
        ({"quantiles": [0.5, 1.1]}, "0..1"),
        ({"quantiles": [0.5, np.nan]}, "0..1"),
        ({"quantiles": []}, "0..1"),
        ({"reduction": "worst"}, "pooled"),
        ({"joints": [2]}, "joints must be indices"),
        ({"joints": []}, "joints must be indices"),
    ],
)
def test_bad_input(change, message):
    good = {"hypotheses": torch.randn(4, 3, 2, 3), "target": torch.randn(3, 2, 3)}
    assert 0 <= ece(**good) <= 1
    with pytest.raises(ValueError, match=message):
        ece(**{**good, **change})


def test_curve_of_other_quantiles():
    with pytest.raises(ValueError, match="21 quantiles"):
        ece_of_curve(np.zeros((11, 17)))
