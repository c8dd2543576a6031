"""Recalibration: it calibrates what can be calibrated, and moves hypotheses without breaking anything else."""

import itertools

import pytest
import torch

from probpose.calibration import Recalibration, coverage_curve, ece, ece_of_curve, hypothesis_centre

MODES = ("scale", "joint", "level", "radial")
JOINTS = 4  # the first is a root: always zero


def cases(ratio=1.0, floor=0.0, tails=None, count=40, number=1000, seed=0):
    """Hypotheses `(count, number, joints, 3)` and truths: Gaussian about the same place, with deviations that vary from case to case.

    The truth's is `ratio` times the hypotheses' plus (in quadrature) `floor` metres; `tails`: degrees of freedom of Student's t.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    place = normal(number, JOINTS, 3)
    deviation = torch.logspace(-2, -0.7, number)[torch.randperm(number, generator=generator), None, None]
    hypotheses = place + deviation * normal(count, number, JOINTS, 3)
    error = torch.sqrt((torch.as_tensor(ratio).reshape(-1, 1) * deviation) ** 2 + floor**2) * normal(number, JOINTS, 3)
    if tails is not None:
        error = error / (normal(number, JOINTS, tails).square().mean(-1, keepdim=True)).sqrt()
    target = place + error
    hypotheses[..., 0, :] = target[:, 0] = 0
    return hypotheses, target


def fitted(mode, **sampler):
    return Recalibration(JOINTS, mode).fit(*cases(**sampler))


def error_after(mode, **sampler):
    """Expected calibration error, mean over the joints but the root, on fresh cases; and those of cases with a small and a large spread."""
    hypotheses, target = cases(**sampler, seed=1)
    if mode is not None:
        hypotheses = fitted(mode, **sampler)(hypotheses)
    order = (hypotheses - hypotheses.mean(0))[..., 1:, :].square().sum((0, 2, 3)).argsort()

    def of(part):
        return ece(hypotheses[:, part], target[part], reduction="mean_joint", joints=range(1, JOINTS))

    return of(order), [of(part) for part in order.tensor_split(3)]


HEAVY = {"ratio": 1.5, "floor": 0.03, "tails": 3}


@pytest.fixture(scope="module")
def recalibrations():
    """One of each kind, fitted to a sampler that needs all of it."""
    return {mode: fitted(mode, **HEAVY) for mode in MODES}


# It calibrates


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ratio", [2.5, 1.0, 0.5])
def test_every_mode_mends_a_wrong_spread(mode, ratio):
    before, after = error_after(None, ratio=ratio)[0], error_after(mode, ratio=ratio)[0]
    assert after < 0.03
    assert before > 0.15 or ratio == 1


def test_the_factors_are_those_of_the_sampler():
    ratio = torch.tensor([1.0, 1.0, 2.0, 5.0])
    torch.testing.assert_close(fitted("scale", ratio=2.5).scale[1:], torch.full((3, 6), 2.5), atol=0, rtol=0.05)
    torch.testing.assert_close(fitted("joint", ratio=ratio).scale, ratio[:, None].expand(-1, 6), atol=0, rtol=0.06)
    level = fitted("level", ratio=1.0, floor=0.04)
    deviation = level.level[1:] / 3**0.5  # of a coordinate, from the root-mean-square distance
    torch.testing.assert_close(level.scale[1:], (1 + (0.04 / deviation) ** 2).sqrt(), atol=0, rtol=0.15)


def test_joints_that_differ_need_a_factor_each():
    sampler = {"ratio": torch.tensor([1.0, 1.0, 2.0, 5.0])}
    errors = [error_after(mode, **sampler)[0] for mode in MODES]
    assert errors[0] > 0.1 and max(errors[1:]) < 0.03


def test_an_error_that_does_not_shrink_with_the_spread_needs_levels():
    errors = {mode: max(error_after(mode, floor=0.04)[1]) for mode in MODES}
    assert errors["joint"] > 0.1 and errors["scale"] > 0.1
    assert errors["level"] < 0.05 and errors["radial"] < 0.05


def test_long_tails_need_the_shape():
    errors = {mode: error_after(mode, ratio=1.5, tails=3)[0] for mode in MODES}
    assert errors["radial"] < 0.03 and errors["radial"] < 0.7 * min(errors[mode] for mode in ("scale", "joint", "level"))


def test_radial_mends_all_of_it_at_once():
    (before, parts_before), (after, parts_after) = error_after(None, **HEAVY), error_after("radial", **HEAVY)
    assert before > 0.2 and after < 0.03
    assert max(parts_after) < 0.06 < min(parts_before)


@pytest.mark.parametrize("count", [2, 5, 20, 100])
def test_any_number_of_hypotheses(count):
    sampler = {"ratio": 2.5, "count": count, "number": 600}
    before, after = error_after(None, **sampler)[0], error_after("radial", **sampler)[0]
    assert after < 0.5 * before or count == 2


def test_a_fit_from_half_precision_is_the_same():
    hypotheses, target = cases(**HEAVY, number=600)
    exact = Recalibration(JOINTS).fit(hypotheses, target)(hypotheses)
    rounded = Recalibration(JOINTS).fit(hypotheses.half().float(), target)(hypotheses)
    gap = coverage_curve(exact, target)[:, 1:] - coverage_curve(rounded, target)[:, 1:]
    assert gap.abs().max() < 0.02


# It breaks nothing


@pytest.mark.parametrize("mode", MODES)
def test_it_starts_as_the_identity(mode):
    hypotheses, _ = cases(number=50)
    torch.testing.assert_close(Recalibration(JOINTS, mode)(hypotheses), hypotheses, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2, 9, 20])
def test_the_median_stays_where_it_is(recalibrations, mode, count):
    hypotheses, _ = cases(**HEAVY, count=count, number=50)
    moved = recalibrations[mode](hypotheses)
    torch.testing.assert_close(hypothesis_centre(moved), hypothesis_centre(hypotheses), atol=1e-6, rtol=0)
    assert moved.isfinite().all() and torch.equal(moved[..., 0, :], hypotheses[..., 0, :])
    if count == 1:
        assert torch.equal(moved, hypotheses)
    else:
        assert (moved - hypotheses).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_hypotheses_move_along_the_line_to_the_median(recalibrations, mode):
    hypotheses, _ = cases(**HEAVY, number=50)
    centre = hypothesis_centre(hypotheses)
    before, after = (hypotheses - centre)[..., 1:, :], (recalibrations[mode](hypotheses) - centre)[..., 1:, :]
    factor = (before * after).sum(-1, keepdim=True) / before.square().sum(-1, keepdim=True)
    torch.testing.assert_close(after, factor * before, atol=1e-5, rtol=0)
    assert (factor > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_leading_axes_frames_and_order(recalibrations, mode):
    model, (hypotheses, _) = recalibrations[mode], cases(count=9, number=24)
    expected = model(hypotheses)
    batch = hypotheses.unflatten(1, (2, 3, 4)).movedim(0, 2)  # (2, 3, 9, 4, joints, 3)
    torch.testing.assert_close(model(batch).movedim(2, 0).flatten(1, 3), expected)
    torch.testing.assert_close(model(hypotheses[:, 5:6]), expected[:, 5:6])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(hypotheses[order]), expected[order])


@pytest.mark.parametrize("mode", MODES)
def test_it_moves_with_the_axes(recalibrations, mode):
    """The coordinate-wise median commutes with translations and with exchanging axes; with turning one about, if there is one middle."""
    model, shift = recalibrations[mode], torch.tensor([0.5, -0.25, 0.125])
    for count, signs in ((20, [(1, 1, 1)]), (9, list(itertools.product((1, -1), repeat=3)))):
        hypotheses, _ = cases(count=count, number=30)
        expected = model(hypotheses)
        torch.testing.assert_close(model(hypotheses + shift), expected + shift, atol=1e-5, rtol=0)
        for order, sign in itertools.product(itertools.permutations(range(3)), signs):
            turned = hypotheses[..., list(order)] * torch.tensor(sign)
            torch.testing.assert_close(model(turned), expected[..., list(order)] * torch.tensor(sign), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_small_changes_have_small_effects(recalibrations, mode):
    hypotheses, _ = cases(**HEAVY, count=20, number=100)
    change = torch.randn(hypotheses.shape, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
    before = recalibrations[mode](hypotheses.double())
    for size in (1e-4, 1e-6):
        after = recalibrations[mode](hypotheses.double() + size * change)
        assert (after - before).abs().max() < 50 * size


@pytest.mark.parametrize("mode", MODES)
def test_smooth_motions_stay_smooth(recalibrations, mode):
    """Hypotheses that swing on their own: their spread goes through all levels, their order about the median changes all the time."""
    generator = torch.Generator().manual_seed(5)
    phase = 6.3 * torch.rand(20, 1, JOINTS, 3, generator=generator)
    time = torch.linspace(0, 2, 241)[:, None, None]
    hypotheses = 0.02 * (4 * torch.sin(0.8 * time)).exp() / 10 * torch.sin(3 * time + phase)
    moved = recalibrations[mode](hypotheses)
    assert moved.diff(dim=1).norm(dim=-1).max() < 15 * hypotheses.diff(dim=1).norm(dim=-1).max()
    refined = torch.nn.functional.interpolate(hypotheses.flatten(2).mT, scale_factor=10, mode="linear").mT.unflatten(2, (JOINTS, 3))
    steps = recalibrations[mode](refined).diff(dim=1).norm(dim=-1)
    assert steps.max() < 0.15 * moved.diff(dim=1).norm(dim=-1).max()  # a tenth of the step: no jumps at any rate


@pytest.mark.parametrize("mode", MODES)
def test_hypotheses_that_agree_completely(recalibrations, mode):
    same = torch.randn(1, 30, JOINTS, 3).expand(20, -1, -1, -1)
    assert torch.equal(recalibrations[mode](same), same)


def test_a_joint_that_never_moves_is_left_out_of_the_fit():
    for mode in ("joint", "level", "radial"):
        model = fitted(mode, ratio=2.5, number=300)
        assert torch.equal(model.scale[0], torch.ones(6)) and torch.equal(model.shape[0], torch.ones(20))
        assert model.scale[1:].min() > 1.5


def test_a_fit_changes_no_other_part_of_the_model():
    """Modes are nested: what a mode does not adapt stays at its start."""
    start = Recalibration(JOINTS)
    kept = {"scale": ("level", "knot", "shape"), "joint": ("level", "knot", "shape"), "level": ("knot", "shape"), "radial": ()}
    for mode, names in kept.items():
        model = fitted(mode, ratio=2.0, number=300)
        assert all(torch.equal(getattr(model, name), getattr(start, name)) for name in names)
        assert (model.level.diff(dim=1) > 0).all() and (model.knot.diff(dim=1) > 0).all()
        assert model.radius_factor.isnan().all()


# The radius


def test_the_radius_is_proportional_to_the_uncertainty():
    model = Recalibration(JOINTS)
    model.radius_factor[:] = torch.tensor([0.0, 1.5, 2.0, 3.0])
    uncertainty = torch.rand(2, 5, JOINTS)
    assert torch.equal(model.radius(uncertainty), uncertainty * torch.tensor([0.0, 1.5, 2.0, 3.0]))
    assert model.radius(uncertainty.double()).dtype == torch.float64


def test_an_unfitted_radius_is_unknown():
    assert fitted("joint", number=300).radius(torch.ones(JOINTS)).isnan().all()


# A component of diffusers


@pytest.mark.parametrize("mode", MODES)
def test_save_and_load(recalibrations, mode, tmp_path):
    record = {"num_hypotheses": 20, "flip": "alternate", "share_first_step": True}
    model = Recalibration(JOINTS, mode, num_levels=6, coverage=0.8, aggregation="jpma", fitted_with=record)
    model.load_state_dict(recalibrations[mode].state_dict())
    model.radius_factor[:] = torch.arange(4.0)
    model.save_pretrained(tmp_path)
    loaded = Recalibration.from_pretrained(tmp_path)
    hypotheses, _ = cases(number=50)
    assert torch.equal(loaded(hypotheses), recalibrations[mode](hypotheses))
    assert torch.equal(loaded.radius_factor, torch.arange(4.0))
    assert (loaded.config.mode, loaded.config.coverage, loaded.config.aggregation) == (mode, 0.8, "jpma")
    assert loaded.config.fitted_with == record
    assert Recalibration.__module__ == "probpose.calibration"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_precision_is_that_of_the_hypotheses(recalibrations, dtype):
    hypotheses, _ = cases(number=50)
    expected = recalibrations["radial"](hypotheses)
    moved = recalibrations["radial"](hypotheses.to(dtype))
    assert moved.dtype == dtype
    torch.testing.assert_close(moved.float(), expected, atol=2e-2 if dtype == torch.float16 else 1e-5, rtol=0)


@pytest.mark.parametrize("levels", [1, 2, 12])
def test_the_size_of_the_tables(levels):
    model = Recalibration(JOINTS, "radial", num_levels=levels, num_knots=8)
    hypotheses, target = cases(ratio=2.5)
    assert ece_of_curve(coverage_curve(model.fit(hypotheses, target)(hypotheses), target)) < 0.03


@pytest.mark.parametrize(("count", "number"), [(1, 300), (20, 199)])
def test_too_few_cases(count, number):
    with pytest.raises(ValueError, match=f"at least 2 hypotheses and 200 cases, got {count} and {number}"):
        Recalibration(JOINTS).fit(*cases(count=count, number=number))


def test_bad_arguments(recalibrations):
    with pytest.raises(ValueError, match=r"mode must be one of .*'radial'.*, got 'best'"):
        Recalibration(JOINTS, "best")
    for shape in ((20, 30, 5, 3), (30, 4, 3), (20, 30, 4, 2)):
        with pytest.raises(ValueError, match=r"\(\.\.\., num_hypotheses, frames, 4, 3\), got "):
            recalibrations["level"](torch.zeros(shape))
    hypotheses, target = cases(number=300)
    for joints, poses, truth in (
        (4, hypotheses, target[:299]),
        (5, hypotheses, target),
        (4, hypotheses[0], target),
        (4, hypotheses, target[0]),
    ):
        with pytest.raises(ValueError, match=rf"hypotheses \(num_hypotheses, cases, {joints}, 3\) and a target .*, got "):
            Recalibration(joints).fit(poses, truth)


# Clips of different lengths


@pytest.fixture(scope="module")
def by_length():
    """Of a sampler that is too sure of single frames, and not sure enough within long clips."""
    model = Recalibration(JOINTS, lengths=[1, 64])
    return model.fit(*cases(ratio=2.0), length=1).fit(*cases(ratio=0.5), length=64)


@pytest.mark.parametrize(("frames", "ratio"), [(1, 2.0), (64, 0.5), (300, 0.5)])
def test_every_length_has_tables_of_its_own(by_length, frames, ratio):
    clip = cases(seed=3)[0][:, :frames]
    torch.testing.assert_close(by_length(clip), fitted("radial", ratio=ratio)(clip))


def test_between_the_lengths_factors_lie_between(by_length):
    clip = cases(seed=3)[0]
    spread = [(by_length(clip[:, :frames]).std(0) / clip[:, :frames].std(0))[:, 1:].mean() for frames in (1, 2, 8, 32, 64)]
    assert spread == sorted(spread, reverse=True)
    by_one = by_length.of_length(8)
    torch.testing.assert_close(by_one(clip[:, :8]), by_length(clip[:, :8]))
    assert by_one.config.lengths is None


def test_a_radius_of_every_length(by_length):
    by_length.table(1)["radius_factor"][:] = 3.0
    by_length.table(64)["radius_factor"][:] = 1.0
    radius = [by_length.radius(torch.full((frames, JOINTS), 0.1))[0, 1].item() for frames in (1, 8, 64)]
    assert radius == pytest.approx([0.3, 0.2, 0.1])


def test_tables_by_length_are_saved(by_length, tmp_path):
    by_length.save_pretrained(tmp_path)
    clip = cases(seed=3)[0][:, :5]
    assert torch.equal(Recalibration.from_pretrained(tmp_path)(clip), by_length(clip))


def test_lengths_that_make_no_sense(by_length):
    for lengths in ([], [0, 4], [4, 4], [8, 2]):
        with pytest.raises(ValueError, match="lengths must rise"):
            Recalibration(JOINTS, lengths=lengths)
    for model, length in ((by_length, None), (by_length, 16), (Recalibration(JOINTS), 16)):
        with pytest.raises(ValueError, match="length must be one of"):
            model.fit(*cases(number=200), length=length)
