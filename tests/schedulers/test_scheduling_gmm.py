"""DiffPose's schedule and sampler: numbers of the original, the paper's equation, and what follows from them."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from probpose.hub import convert_original
from probpose.schedulers import GMMScheduler, SchedulerMixin

TESTS = Path(__file__).resolve().parents[1]
PARITY = TESTS.parents[1] / "shared" / "parity" / "diffpose" / "io.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
kinds = pytest.mark.parametrize("kind", ["scaled_epsilon", "sample", "previous_sample"])
anchors = pytest.mark.parametrize("anchor", ["zero", "component"])

STEEP = {"beta_end": 0.3}  # nothing is left of the pose after 51 steps: ᾱ is 2e-4


@pytest.fixture(scope="module")
def golden():
    return load_file(TESTS / "golden" / "diffpose.safetensors")


@pytest.fixture(scope="module")
def parity():
    return load_file(PARITY)


@pytest.fixture(scope="module")
def denoiser(golden):
    prefix = "checkpoint/"
    return convert_original("diffpose", {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(batch=4, seed=0):
    """Clean poses, noise, means `(batch, 17, 5)` and noise maps `(batch, 17, 5, 5)`, in float64."""
    return *draw(3, batch, 17, 5, seed=seed), draw(batch, 17, 5, 5, seed=seed + 1)


def alpha_bars(scheduler):
    """ᾱ_{-1} … ᾱ_{T-1} in float64."""
    return np.concatenate([[1.0], np.cumprod(1 - scheduler.betas.double().numpy())])


def levels(scheduler, t):
    alpha = alpha_bars(scheduler)[t + 1]
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def oracle(scheduler, clean, t, x, mean):
    """What a network says that knows the clean pose."""
    (signal, sigma), (signal_1, sigma_1) = levels(scheduler, t), levels(scheduler, t - 1)
    mean = mean if scheduler.config.anchor == "component" else 0
    noise = (x - mean - signal * (clean - mean)) / sigma
    return {
        "scaled_epsilon": noise,
        "sample": clean,
        "previous_sample": mean + signal_1 * (clean - mean) + sigma_1 * noise,
    }[scheduler.config.prediction_type]


# Numbers of the original


def test_schedule():
    alphas = GMMScheduler().alphas_cumprod
    published = {0: 0.9999000, 6: 0.9989223, 12: 0.9972991, 24: 0.9921293, 40: 0.9813115, 50: 0.9723306}
    for t, value in published.items():
        assert alphas[t].item() == pytest.approx(value, abs=2e-7)
    assert (alphas.dtype, len(alphas), len(GMMScheduler())) == (torch.float32, 51, 51)


@needs_parity
def test_original_schedules(parity):
    for kind in ("linear", "quad", "const", "jsd", "sigmoid"):
        betas = GMMScheduler(beta_schedule=kind).betas
        assert torch.equal(betas.float(), parity[f"schedule.betas_{kind}"])
    close(GMMScheduler().alphas_cumprod, parity["schedule.alphas_cumprod_shifted"][1:], atol=1e-6)


STEPS = [
    ("uniform", 24, 2, [12, 0]),
    ("uniform", 12, 2, [6, 0]),
    ("uniform", 6, 1, [0]),
    ("uniform", 50, 5, [40, 30, 20, 10, 0]),
    ("uniform", 24, 5, [20, 16, 12, 8, 4, 0]),  # one more than asked for
    ("uniform", 51, 50, list(range(50, -1, -1))),
    ("quad", 24, 2, [19, 0]),
    ("quad", 50, 5, [40, 22, 10, 2, 0]),
    ("quad", 4, 4, [3, 1, 0]),  # 0, 0.36, 1.42, 3.2: two coincide
    ("trailing", 50, 2, [50, 24]),
    ("trailing", 50, 3, [50, 33, 16]),
    ("trailing", 51, 1, [50]),
    ("trailing", 9, 10, list(range(9, -1, -1))),
]


@pytest.mark.parametrize(("spacing", "start", "count", "visited"), STEPS)
def test_timesteps(spacing, start, count, visited):
    for scheduler, options in (
        (GMMScheduler(timestep_spacing=spacing), {"start_timestep": start}),
        (GMMScheduler(timestep_spacing=spacing, start_timestep=start), {}),
    ):
        scheduler.set_timesteps(count, **options)
        assert scheduler.timesteps.tolist() == visited
        assert scheduler.timesteps.dtype == torch.int64
        assert scheduler.num_inference_steps == len(visited)
        assert scheduler.start_timestep == min(start, 50)


@needs_parity
def test_original_timesteps(parity):
    names = [name for name in parity if name.startswith(("schedule.uniform_", "schedule.quad_"))]
    assert len(names) == 8
    for name in names:
        spacing, start, count = name.removeprefix("schedule.").split("_")
        scheduler = GMMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(int(count), int(start))
        assert scheduler.timesteps.flip(0).tolist() == parity[name].tolist()


def replay(denoiser, io, case):
    """The original's chain, with its own noise, and with ours at every step."""
    visited = io[f"sampling.{case}.timesteps"].tolist()
    states, clean, noise = (io[f"sampling.{case}.{name}"] for name in ("states", "x0", "noise"))
    scheduler = GMMScheduler()
    scheduler.set_timesteps(timesteps=visited)
    x = io[f"sampling.{case}.start"]
    assert torch.equal(x, states[0])
    with torch.no_grad():
        for i, t in enumerate(visited):
            predicted = denoiser(None, x[:, None], t).sample[:, 0]
            x, original = scheduler.step(predicted, t, x, io[f"sampling.{case}.eta"].item(), noise[i], return_dict=False)
            close(x, states[i + 1], atol=1e-5)
            close(original, clean[i], atol=1e-5)
    assert torch.equal(x, original), "the last step ends at the clean pose"


@pytest.mark.parametrize("case", ["cpn", "five_eta1"])
def test_golden_samples(denoiser, golden, case):
    replay(denoiser, golden, case)


@needs_parity
@pytest.mark.parametrize("case", ["cpn", "gt", "video", "five_eta0", "five_eta1"])
def test_original_samples(denoiser, parity, case):
    replay(denoiser, parity, case)


def test_original_training_step(golden, denoiser):
    scheduler = GMMScheduler()
    clean, noise, scale = (golden[f"forward5.{name}"] for name in ("clean", "noise", "noise_scale"))
    timesteps = scheduler.sample_timesteps(5, draws=golden["forward5.timestep_draw"])
    assert torch.equal(timesteps, golden["forward5.timestep"])
    noisy = scheduler.add_noise(clean, noise, timesteps, component_scale=scale)
    target = scheduler.get_target(clean, noise, timesteps, component_scale=scale)
    close(noisy, golden["forward5.noisy"], atol=1e-6)
    close(target, golden["forward5.target"], atol=1e-6)
    close(scheduler.add_noise(clean, noise, timesteps, component_scale=torch.diag_embed(scale)), noisy, atol=1e-6)
    with torch.no_grad():
        loss = (denoiser(None, noisy[:, None], timesteps).sample[:, 0] - target).square().sum((1, 2)).mean()
    assert loss.item() == pytest.approx(golden["forward5.loss"].item(), abs=1e-3)


@needs_parity
def test_equation_of_the_paper(parity):
    io = {name.removeprefix("paper_gmm."): value for name, value in parity.items() if name.startswith("paper_gmm.")}
    scheduler = GMMScheduler(beta_end=2e-3, anchor="component")
    close(torch.from_numpy(alpha_bars(scheduler))[io["timestep"] + 1], io["alpha_bar"])
    joints = torch.arange(17)
    mean, scale = io["means"][joints, io["component"]], torch.linalg.cholesky(io["covariances"])[joints, io["component"]]
    close(scheduler.add_noise(io["clean"], io["z"], io["timestep"], mean, scale), io["noisy"])
    close(scheduler.get_target(io["clean"], io["z"], io["timestep"], mean, scale), io["eps"])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_agrees_with_ddim(eta):
    ours = GMMScheduler(eta=eta)
    ours.set_timesteps(timesteps=range(50, -1, -1))
    theirs = DDIMScheduler(51, 1e-4, 1e-3, "linear", clip_sample=False, set_alpha_to_one=True)
    close(theirs.alphas_cumprod, ours.alphas_cumprod, atol=1e-6)
    theirs.alphas_cumprod = torch.from_numpy(alpha_bars(ours)[1:])
    theirs.set_timesteps(51)
    x = x_theirs = draw(3, 17, 5)
    for t in ours.timesteps:
        predicted, noise = draw(2, 3, 17, 5, seed=int(t))
        x = ours.step(predicted, t, x, variance_noise=noise).prev_sample
        x_theirs = theirs.step(predicted, t, x_theirs, eta=eta, variance_noise=noise if eta else None).prev_sample
        close(x, x_theirs)


# The forward process


@pytest.mark.parametrize("schedule", ["linear", "quad", "const", "sigmoid"])
@anchors
def test_noising_is_the_equation(anchor, schedule):
    scheduler = GMMScheduler(anchor=anchor, beta_schedule=schedule, **STEEP)
    clean, noise, mean, scale = scene()
    for t in (0, 7, 50):
        signal, sigma = levels(scheduler, t)
        expected = signal * clean + sigma * torch.einsum("njab,njb->nja", scale, noise)
        if anchor == "component":
            expected += (1 - signal) * mean
        close(scheduler.add_noise(clean, noise, t, scheduler.anchored(mean), scale), expected)


def test_without_noise_the_pose_is_clean():
    for anchor in ("zero", "component"):
        scheduler = GMMScheduler(anchor=anchor, beta_start=1e-12, beta_end=1e-12)
        clean, noise, mean, scale = scene()
        close(scheduler.add_noise(clean, noise, 0, mean, scale), clean, atol=1e-4)


def test_all_noise_is_a_draw_from_the_component():
    scheduler = GMMScheduler(anchor="component", beta_start=0.3, beta_end=0.9)
    assert scheduler.alphas_cumprod[-1] < 1e-10
    mean, scale = draw(3), draw(3, 3, seed=1)
    drawn = scheduler.add_noise(draw(40_000, 3, seed=2) * 3 + 7, draw(40_000, 3, seed=3), 50, mean, scale[None])
    close(drawn.mean(0), mean, atol=0.03)
    close(drawn.T.cov(), scale @ scale.T, atol=0.05 * (scale @ scale.T).diagonal().max().item())


def test_standard_deviations_are_diagonal_matrices():
    scheduler = GMMScheduler(anchor="component")
    clean, noise, mean, _ = scene()
    deviations = draw(4, 17, 5, seed=9).abs()
    for part in (deviations, deviations[:1], deviations[:, :1, :1], deviations[0, 0]):
        full = torch.diag_embed(part.expand(4, 17, 5))
        close(scheduler.add_noise(clean, noise, 20, mean, part), scheduler.add_noise(clean, noise, 20, mean, full))


def test_matrices_are_told_by_their_axes_not_by_their_size():
    """With as many samples and joints as channels, shapes alone would tell nothing."""
    scheduler, (clean, noise, scale) = GMMScheduler(), draw(3, 5, 5, 5)
    close(scheduler.get_target(clean, noise, 3, component_scale=scale), scale * noise)
    close(scheduler.get_target(clean, noise, 3, component_scale=scale[None]), torch.einsum("jab,njb->nja", scale, noise))


@kinds
def test_targets(kind):
    for anchor in ("zero", "component"):
        scheduler = GMMScheduler(prediction_type=kind, anchor=anchor)
        clean, noise, centre, scale = scene()
        mean = scheduler.anchored(centre)
        for t in (0, 1, 24, 50):
            target = scheduler.get_target(clean, noise, t, mean, scale)
            if kind == "scaled_epsilon":
                close(target, (scale @ noise[..., None])[..., 0])
            elif kind == "sample" or t == 0:
                close(target, clean)
            else:
                close(target, scheduler.add_noise(clean, noise, t - 1, mean, scale))
            noisy = scheduler.add_noise(clean, noise, t, mean, scale)
            close(target, oracle(scheduler, clean, t, noisy, centre))


def test_a_mean_that_is_given_counts():
    """The anchor says whether one is needed; the released chain about a mean is the paper's."""
    clean, noise, mean, scale = scene()
    paper, released = GMMScheduler(anchor="component"), GMMScheduler()
    close(released.add_noise(clean, noise, 24, mean, scale), paper.add_noise(clean, noise, 24, mean, scale))
    assert released.anchored(mean) is None and paper.anchored(mean) is mean
    with pytest.raises(ValueError, match="needs component_mean"):
        paper.add_noise(clean, noise, 24)


def test_antithetic_timesteps():
    scheduler = GMMScheduler()
    for count in (1, 2, 5, 8):
        timesteps = scheduler.sample_timesteps(count, torch.Generator().manual_seed(count))
        half = count // 2 + 1
        assert timesteps.shape == (count,) and timesteps.dtype == torch.int64
        assert torch.equal(timesteps[half:], 50 - timesteps[: count - half])
        assert torch.equal(timesteps, scheduler.sample_timesteps(count, torch.Generator().manual_seed(count)))
    share = torch.bincount(scheduler.sample_timesteps(51_000, torch.Generator().manual_seed(0)), minlength=51) / 51_000
    assert len(share) == 51
    close(share, torch.full((51,), 1 / 51), atol=4e-3)


# The reverse process


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "following"), [(50, 40), (24, 23), (12, 0), (12, -1), (0, -1)])
def test_coefficients(eta, t, following):
    """What the clean pose, the noise and the step's own noise count for, read off by giving one at a time."""
    scheduler = GMMScheduler()
    scheduler.set_timesteps(timesteps=[t] if following < 0 else [t, following])
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    (signal, sigma), (signal_next, sigma_next) = levels(scheduler, t), levels(scheduler, following)
    of_clean = scheduler.step(zero, t, signal * one, eta, zero).prev_sample.item()
    of_noise = scheduler.step(one, t, sigma * one, eta, zero).prev_sample.item()
    of_step = scheduler.step(zero, t, zero, eta, one).prev_sample.item()
    assert of_clean == pytest.approx(signal_next, abs=1e-12)
    assert of_step == pytest.approx(eta * sigma_next / sigma * math.sqrt(1 - (signal / signal_next) ** 2), abs=1e-9)
    assert of_noise**2 + of_step**2 == pytest.approx(sigma_next**2, abs=1e-12), "the noise level is that of the next timestep"
    assert scheduler.is_stochastic(t, eta) == (of_step > 0)
    assert GMMScheduler(eta=eta).config.eta == eta


@kinds
@anchors
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["uniform", "quad", "trailing", [50, 31, 30, 2], [3]])
def test_perfect_predictions_end_at_the_clean_pose(kind, anchor, eta, spacing):
    explicit = not isinstance(spacing, str)
    scheduler = GMMScheduler(
        prediction_type=kind, anchor=anchor, timestep_spacing="uniform" if explicit else spacing, eta=eta, start_timestep=50, **STEEP
    )
    for count in (1, 2, 5, 17) if not explicit else (None,):
        scheduler.set_timesteps(count, timesteps=spacing if explicit else None)
        clean, noise, mean, scale = scene()
        known = scheduler.anchored(mean)
        x = scheduler.add_noise(clean, noise, scheduler.start_timestep, known, scale)
        for t in scheduler.timesteps.tolist():
            predicted = oracle(scheduler, clean, t, x, mean)
            out = scheduler.step(predicted, t, x, generator=torch.Generator().manual_seed(t), component_mean=known, component_scale=scale)
            close(out.pred_original_sample, clean, atol=1e-8)
            close(scheduler.predict_original(predicted, t, x, known), out.pred_original_sample)
            x = out.prev_sample
        close(x, clean, atol=1e-8)


@kinds
@anchors
def test_deterministic_steps_stay_on_the_forward_path(kind, anchor):
    scheduler = GMMScheduler(prediction_type=kind, anchor=anchor)
    visited = [50, 44, 12, 11, 0]
    scheduler.set_timesteps(timesteps=visited)
    arguments = scene()
    for t, following in pairwise(visited):
        noisy, later = (scheduler.add_noise(*arguments[:2], now, *arguments[2:]) for now in (t, following))
        predicted = scheduler.get_target(*arguments[:2], t, *arguments[2:])
        close(scheduler.step(predicted, t, noisy, 0.0, component_mean=arguments[2]).prev_sample, later, atol=1e-8)


def test_the_paper_s_step_is_the_prediction_itself():
    scheduler = GMMScheduler(prediction_type="previous_sample", anchor="component")
    scheduler.set_timesteps(timesteps=range(50, -1, -1))
    x, predicted, mean = draw(3, 4, 17, 5)
    for t in (50, 20, 1, 0):
        close(scheduler.step(predicted, t, x, component_mean=mean).prev_sample, predicted, atol=1e-8)


def test_stochastic_steps_keep_the_marginal():
    """From any noise level the next has mean m + √ᾱ (h_0 - m) and covariance (1 - ᾱ) S Sᵀ, if the step's noise has S, too."""
    scheduler = GMMScheduler(anchor="component", scale_step_noise=True, eta=1.0, **STEEP)
    scheduler.set_timesteps(timesteps=[45, 20])
    clean, mean, scale, count = draw(3), draw(3, seed=1), draw(3, 3, seed=2), 40_000
    noise = draw(count, 3, seed=3)
    noisy = scheduler.add_noise(clean.expand(count, 3), noise, 45, mean, scale[None])
    predicted = scheduler.get_target(clean, noise, 45, mean, scale[None])
    prev = scheduler.step(predicted, 45, noisy, variance_noise=draw(count, 3, seed=4), component_mean=mean, component_scale=scale[None])
    signal, sigma = levels(scheduler, 20)
    covariance = sigma**2 * scale @ scale.T
    assert sigma**2 > 0.5
    close(prev.prev_sample.mean(0), mean + signal * (clean - mean), atol=0.03)
    close(prev.prev_sample.T.cov(), covariance, atol=0.05 * covariance.diagonal().max().item())


def test_only_consistent_step_noise_is_scaled():
    clean, noise, _, scale = scene()
    for scales in (False, True):
        scheduler = GMMScheduler(scale_step_noise=scales)
        scheduler.set_timesteps(2)
        still = scheduler.step(clean, 12, clean, 1.0, torch.zeros_like(noise), component_scale=scale).prev_sample
        moved = scheduler.step(clean, 12, clean, 1.0, noise, component_scale=scale).prev_sample - still
        direction = (scale @ noise[..., None])[..., 0] if scales else noise
        close(moved / moved.norm(), direction / direction.norm())


def test_step_noise_is_drawn_once_it_counts():
    scheduler, (x, predicted) = GMMScheduler(eta=1.0), draw(2, 2, 17, 5).float()
    scheduler.set_timesteps(2)

    def run(t, seed):
        return scheduler.step(predicted, t, x, generator=torch.Generator().manual_seed(seed)).prev_sample

    assert torch.equal(run(12, 0), run(12, 0)) and not torch.equal(run(12, 0), run(12, 1))
    assert torch.equal(run(0, 0), run(0, 1))
    own = torch.randn(2, 17, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(12, 0), scheduler.step(predicted, 12, x, variance_noise=own).prev_sample)
    assert [scheduler.is_stochastic(t) for t in (12, 0)] == [True, False]
    assert not scheduler.is_stochastic(torch.tensor(12), eta=0)


# Symmetries


@kinds
def test_the_component_s_anchor_is_a_shift_of_the_origin(kind):
    about_mean, about_zero = (GMMScheduler(prediction_type=kind, anchor=anchor) for anchor in ("component", "zero"))
    clean, noise, mean, scale = scene()
    for scheduler in (about_mean, about_zero):
        scheduler.set_timesteps(3)
    noisy = about_mean.add_noise(clean, noise, 24, mean, scale)
    close(noisy, mean + about_zero.add_noise(clean - mean, noise, 24, component_scale=scale))
    target = about_mean.get_target(clean, noise, 16, mean, scale)
    shift = 0 if kind == "scaled_epsilon" else mean
    close(target, shift + about_zero.get_target(clean - mean, noise, 16, component_scale=scale))
    predicted, w = draw(2, 4, 17, 5, seed=8)
    ours = about_mean.step(predicted, 16, noisy, 0.7, w, component_mean=mean)
    theirs = about_zero.step(predicted - shift, 16, noisy - mean, 0.7, w)
    close(ours.prev_sample, mean + theirs.prev_sample)
    close(ours.pred_original_sample, mean + theirs.pred_original_sample)


@kinds
@anchors
def test_linear_maps_go_through(kind, anchor):
    """Poses, means and noise maps seen in other coordinates give the same chain seen in them."""
    scheduler = GMMScheduler(prediction_type=kind, anchor=anchor, scale_step_noise=True)
    scheduler.set_timesteps(3)
    turn = draw(5, 5, seed=20)
    clean, noise, mean, scale = scene()
    predicted, w = draw(2, 4, 17, 5, seed=8)

    def seen(poses):
        return poses @ turn.T

    noisy = scheduler.add_noise(clean, noise, 24, mean, scale)
    close(scheduler.add_noise(seen(clean), noise, 24, seen(mean), turn @ scale), seen(noisy))
    target = scheduler.get_target(clean, noise, 24, mean, scale)
    close(scheduler.get_target(seen(clean), noise, 24, seen(mean), turn @ scale), seen(target))
    step = scheduler.step(predicted, 16, noisy, 1.0, w, component_mean=mean, component_scale=scale).prev_sample
    turned = scheduler.step(seen(predicted), 16, seen(noisy), 1.0, w, component_mean=seen(mean), component_scale=turn @ scale).prev_sample
    close(turned, seen(step), atol=1e-7)


@kinds
@anchors
def test_a_timestep_for_each_sample(kind, anchor):
    scheduler = GMMScheduler(prediction_type=kind, anchor=anchor, scale_step_noise=True)
    scheduler.set_timesteps(6)
    clean, noise, mean, scale = scene()
    predicted, w = draw(2, 4, 17, 5, seed=8)
    timesteps = torch.tensor([20, 0, 12, 4])
    noisy = scheduler.add_noise(clean, noise, timesteps, mean, scale)
    target = scheduler.get_target(clean, noise, timesteps, mean, scale)
    original = scheduler.predict_original(predicted, timesteps, noisy, mean)
    step = scheduler.step(predicted, timesteps, noisy, 1.0, w, component_mean=mean, component_scale=scale)
    for i, t in enumerate(timesteps.tolist()):
        row = slice(i, i + 1)
        close(noisy[row], scheduler.add_noise(clean[row], noise[row], t, mean[row], scale[row]))
        close(target[row], scheduler.get_target(clean[row], noise[row], t, mean[row], scale[row]))
        close(original[row], scheduler.predict_original(predicted[row], t, noisy[row], mean[row]))
        alone = scheduler.step(predicted[row], t, noisy[row], 1.0, w[row], component_mean=mean[row], component_scale=scale[row])
        close(step.prev_sample[row], alone.prev_sample)
        close(step.pred_original_sample[row], alone.pred_original_sample)
    close(step.prev_sample[1], step.pred_original_sample[1])
    one = scheduler.step(predicted, torch.tensor([12]), noisy, 1.0, w, component_mean=mean, component_scale=scale).prev_sample
    close(one, scheduler.step(predicted, 12, noisy, 1.0, w, component_mean=mean, component_scale=scale).prev_sample)


def test_samples_of_any_rank():
    scheduler, (clean, noise, mean) = GMMScheduler(anchor="component"), draw(3, 2, 3, 4, 17, 5)
    scale, timesteps = draw(2, 3, 4, 17, 5, 5, seed=4), torch.tensor([3, 30])
    rows = [value.flatten(0, 2) for value in (clean, noise, mean, scale)]
    flat = scheduler.add_noise(*rows[:2], timesteps.repeat_interleave(12), *rows[2:])
    close(scheduler.add_noise(clean, noise, timesteps, mean, scale).flatten(0, 2), flat)


# Precision


def test_precision_follows_the_samples():
    scheduler = GMMScheduler(prediction_type="sample")
    clean, noise, _, _ = scene()
    for dtype, reference in ((torch.float64, alpha_bars(scheduler)), (torch.float32, None)):
        out = scheduler.add_noise(torch.zeros_like(clean, dtype=dtype), torch.ones_like(noise, dtype=dtype), 0)
        assert out.dtype == dtype
        exact = math.sqrt(1e-4)
        if reference is not None:
            assert out.flatten()[0].item() == pytest.approx(exact, rel=1e-12)
        else:  # the released weights were trained with a product of float32
            rounded = np.float32(1) - np.float32(1e-4)
            assert out.flatten()[0].item() == pytest.approx(math.sqrt(1 - float(rounded)), rel=1e-6)
            assert out.flatten()[0].item() != pytest.approx(exact, rel=1e-5)
    step = scheduler.step(clean.float(), 0, noise.float())
    assert step.prev_sample.dtype == step.pred_original_sample.dtype == torch.float32


def test_float32_chains_are_those_of_float64():
    for kind, tolerance in (("scaled_epsilon", 1e-5), ("sample", 1e-5), ("previous_sample", 1e-2)):
        scheduler = GMMScheduler(prediction_type=kind, eta=1.0, anchor="component", beta_end=0.2, start_timestep=50)
        scheduler.set_timesteps(5)
        clean, noise, mean, scale = scene()
        results = []
        for dtype in (torch.float32, torch.float64):
            x = scheduler.add_noise(clean, noise, 50, mean, scale).to(dtype)
            for t in scheduler.timesteps.tolist():
                predicted = oracle(scheduler, clean, t, x.double(), mean).to(dtype)
                w = draw(4, 17, 5, seed=t).to(dtype)
                x = scheduler.step(predicted, t, x, variance_noise=w, component_mean=mean.to(dtype)).prev_sample
            results.append(x.double())
        close(*results, atol=tolerance)


# The noise map


def test_noise_map():
    factor = draw(2, 7, 17, 2, 2)
    for scale in (1.0, 0.05, torch.linspace(0.1, 0.9, 17).tolist()):
        full = GMMScheduler(pose_scale=scale).noise_map(factor)
        assert full.shape == (2, 7, 17, 5, 5) and full.dtype == torch.float64
        assert torch.equal(full[..., :2, :2], factor)
        assert not full[..., :2, 2:].any() and not full[..., 2:, :2].any()
        expected = torch.as_tensor(scale, dtype=torch.float64).expand(17)[:, None, None] * torch.eye(3)
        close(full[..., 2:, 2:], expected.expand(2, 7, 17, 3, 3))
    with pytest.raises(ValueError, match="pose_scale holds 16 joints, but the mixture 17"):
        GMMScheduler(pose_scale=[1.0] * 16).noise_map(factor)


# What is asked for


def test_explicit_timesteps():
    scheduler = GMMScheduler()
    for visited in ([40, 7, 0], [50], (3, 2), torch.tensor([9, 4]), np.array([9.0, 4.0])):
        scheduler.set_timesteps(timesteps=visited)
        assert scheduler.timesteps.tolist() == list(visited) and scheduler.start_timestep == visited[0]
        assert scheduler.num_inference_steps == len(visited)
    scheduler.set_timesteps(timesteps=[12, 0], start_timestep=24)
    assert scheduler.start_timestep == 24
    scheduler.set_timesteps(np.int64(2), device="cpu")
    assert scheduler.timesteps.tolist() == [12, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass either num_inference_steps or timesteps"),
        ({"num_inference_steps": 2, "timesteps": [12, 0]}, "pass either num_inference_steps or timesteps"),
        *[({"num_inference_steps": n}, f"from 1 to 24 with start_timestep 24, got {n!r}") for n in (0, -1, 25, 2.0, True, "2")],
        ({"num_inference_steps": 7, "start_timestep": 6}, "from 1 to 6 with start_timestep 6, got 7"),
        *[({"num_inference_steps": 1, "start_timestep": n}, rf"start_timestep must be an integer from 1 to 51, got {n!r}")
          for n in (0, 52, 2.5, True)],
        ({"timesteps": [12, 0], "start_timestep": 99}, "start_timestep must be an integer from 1 to 51, got 99"),
        *[({"timesteps": bad}, "timesteps must be integers that fall strictly within 50..0, got")
          for bad in ([], [0, 12], [12, 12], [51, 0], [12, -1], [12.5, 0])],
    ],
)  # fmt: skip
def test_bad_timesteps(arguments, message):
    scheduler = GMMScheduler()
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**arguments)
    assert scheduler.timesteps.tolist() == [0], "nothing has changed"


def test_too_many_trailing_steps():
    for start, most in ((9, 10), (50, 51), (51, 51)):
        with pytest.raises(ValueError, match=f"from 1 to {most} with start_timestep {start}, got {most + 1}"):
            GMMScheduler(timestep_spacing="trailing", start_timestep=start).set_timesteps(most + 1)


def test_where_nothing_is_left_of_the_pose():
    """The last β of "jsd" is 1."""
    scheduler = GMMScheduler(beta_schedule="jsd")
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(timesteps=[49, 0])
    with pytest.raises(ValueError, match=r"nothing is left of the pose at timestep 50 \(ᾱ = 0\)"):
        scheduler.set_timesteps(timesteps=[50, 0])
    with pytest.raises(ValueError, match="nothing is left of the pose at timestep 50"):
        GMMScheduler(beta_schedule="jsd", timestep_spacing="trailing", start_timestep=50)
    scheduler = GMMScheduler(beta_schedule="jsd", timestep_spacing="trailing", start_timestep=50, prediction_type="sample", eta=1.0)
    scheduler.set_timesteps(3)
    clean, x = draw(2, 4, 17, 5)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(clean, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    close(x, clean)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "cosine"}, r"beta_schedule must be one of \('linear', .*got 'cosine'"),
        ({"prediction_type": "epsilon"}, "prediction_type must be one of .*'scaled_epsilon'.*got 'epsilon'"),
        ({"timestep_spacing": "leading"}, "timestep_spacing must be one of .*'uniform'.*got 'leading'"),
        ({"anchor": "mean"}, "anchor must be one of .*'component'.*got 'mean'"),
        *[({"beta_start": a, "beta_end": b}, f"0 < beta_start <= beta_end < 1, got {a} and {b}")
          for a, b in ((0.0, 0.1), (0.2, 0.1), (0.1, 1.0), (math.nan, 0.1))],
        ({"num_train_timesteps": 0}, "must be at least 1, got 0 and 5"),
        ({"num_components": 0}, "must be at least 1, got 51 and 0"),
        *[({"start_timestep": n}, f"start_timestep must be an integer from 1 to 51, got {n}") for n in (0, 52, 2.5)],
        *[({"pose_scale": s}, "pose_scale must hold positive numbers, got") for s in (0.0, -1.0, math.inf, math.nan, [], [1.0, 0.0])],
        *[({"eta": e}, rf"eta must lie in 0\.\.1, got {e!r}") for e in (-0.1, 1.5, math.nan, "1")],
    ],
)  # fmt: skip
def test_bad_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        GMMScheduler(**config)


def test_bad_steps():
    scheduler = GMMScheduler()
    scheduler.set_timesteps(2)
    x = torch.zeros(4, 17, 5)
    for t, named in ((5, "5"), (torch.tensor([12, 0, 3, 0]), "3"), (12.5, "12.5")):
        with pytest.raises(ValueError, match=rf"timestep must be one of \[12, 0\], got {named}"):
            scheduler.step(x, t, x)
    with pytest.raises(ValueError, match=r"one integer or one for each of 4 samples, got shape \(2,\)"):
        scheduler.step(x, torch.tensor([12, 0]), x)
    for eta in (2, -1, math.nan):
        with pytest.raises(ValueError, match=rf"eta must lie in 0\.\.1, got {eta}"):
            scheduler.step(x, 12, x, eta=eta)


def test_bad_noising():
    scheduler, about_mean = GMMScheduler(), GMMScheduler(anchor="component")
    x = torch.zeros(4, 17, 5)
    for method in (scheduler.add_noise, GMMScheduler(prediction_type="previous_sample").get_target):
        for bad in (-1, 51, 2.5, torch.tensor([0, 51, 0, 0])):
            with pytest.raises(ValueError, match=r"timesteps must be integers in 0\.\.50, got"):
                method(x, x, bad)
        with pytest.raises(ValueError, match=r"one for each of 4 samples, got shape \(3,\)"):
            method(x, x, torch.tensor([1, 2, 3]))
        for shape in ((17, 5, 5), (4, 17, 5, 4), (3, 17, 5, 5), (2, 4, 17, 5), (16, 5)):
            with pytest.raises(ValueError, match=r"standard deviations that broadcast to \(4, 17, 5\), or matrices.*5, 5\).*got"):
                method(x, x, 3, component_scale=torch.ones(shape))
    about_mean.set_timesteps(1)
    for call in (
        lambda: about_mean.add_noise(x, x, 3),
        lambda: about_mean.step(x, 0, x),
        lambda: about_mean.predict_original(x, 3, x),
        lambda: GMMScheduler(anchor="component", prediction_type="previous_sample").get_target(x, x, 3),
    ):
        with pytest.raises(ValueError, match="anchor 'component' needs component_mean"):
            call()


def test_save_and_load(tmp_path):
    config = {
        "num_train_timesteps": 40, "beta_start": 2e-4, "beta_end": 0.1, "beta_schedule": "quad", "prediction_type": "sample",
        "timestep_spacing": "trailing", "start_timestep": 30, "eta": 0.3, "anchor": "component", "scale_step_noise": True,
        "pose_scale": [0.1] * 17, "num_components": 3,
    }  # fmt: skip
    scheduler = GMMScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "GMMScheduler"
    for loaded in (GMMScheduler.from_pretrained(tmp_path), GMMScheduler.from_config(scheduler.config)):
        assert {name: loaded.config[name] for name in config} == config
        assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)
        assert isinstance(loaded, SchedulerMixin) and len(loaded) == 40
    assert GMMScheduler.__module__ == "probpose.schedulers"
    x = torch.randn(2, 3)
    assert torch.equal(scheduler.scale_model_input(x, 3), x) and scheduler.init_noise_sigma == 1
