"""Platypose's schedule and sampler: numbers of the original, and what follows from the equations."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from probpose.schedulers import EnergyGuidedDDIMScheduler, EnergyGuidedDDIMSchedulerOutput, SchedulerMixin

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "platypose" / "io.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
algorithms = pytest.mark.parametrize("algorithm", ["ddim", "ddpm"])

KEPT = [0, 2, 5, 7, 10, 12, 15, 18, 20, 23, 25, 28, 30, 33, 36, 38, 41, 43, 46, 49]
ALPHAS = [
    *(0.99825249, 0.98896678, 0.96088744, 0.93315772, 0.87912249, 0.83562058, 0.76083584, 0.67695924, 0.61742465, 0.52500453),
    *(0.46270686, 0.37064808, 0.31158982, 0.22876242, 0.15539498, 0.11301851, 0.06089868, 0.03456850, 0.00871812, 0.00000097),
]


@pytest.fixture(scope="module")
def parity():
    return load_file(PARITY)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole_chain(**config):
    return EnergyGuidedDDIMScheduler(skip_first=0, **config)


def levels(scheduler, t):
    alpha = scheduler.alphas_cumprod[t].item() if t >= 0 else 1.0
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def coefficients(scheduler, t, eta=None):
    """A step is a x̂0 + b x_t + c z: read off by probing with one input at a time."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    probes = [(one, zero, zero), (zero, one, zero), (zero, zero, one)]
    return [scheduler.step(clean, t, x, eta=eta, variance_noise=z).prev_sample.item() for clean, x, z in probes]


# Numbers of the original


def test_published_chain():
    scheduler = EnergyGuidedDDIMScheduler()
    assert scheduler.timesteps.tolist() == KEPT[15::-1] == [38, 36, 33, 30, 28, 25, 23, 20, 18, 15, 12, 10, 7, 5, 2, 0]
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.alphas_cumprod[KEPT].tolist() == pytest.approx(ALPHAS, abs=5e-9)
    assert scheduler.posterior_tables()["alphas_cumprod"].tolist() == pytest.approx(ALPHAS, abs=5e-9)
    assert scheduler.init_noise_sigma == pytest.approx(0.94179695, abs=5e-9)
    assert levels(scheduler, 38)[0] == pytest.approx(0.33618226, abs=5e-9)
    assert scheduler.noise_level(38) == pytest.approx(0.94179695 / 0.33618226, rel=1e-7)
    whole = whole_chain()
    assert whole.timesteps.tolist() == KEPT[::-1]
    assert whole.init_noise_sigma == 1


@needs_parity
def test_original_tables(parity):
    scheduler = EnergyGuidedDDIMScheduler()
    ours = {f"respaced_{name}": table for name, table in scheduler.posterior_tables().items()}
    ours |= {"base_betas": scheduler.betas, "base_alphas_cumprod": scheduler.alphas_cumprod}
    theirs = {name.removeprefix("tables."): table for name, table in parity.items() if name.startswith("tables.")}
    assert theirs.pop("timestep_map").tolist() == KEPT
    assert ours.keys() == theirs.keys()
    for name, table in ours.items():
        torch.testing.assert_close(table, theirs[name], rtol=1e-12, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@needs_parity
def test_original_noising(parity):
    timesteps = torch.tensor(KEPT)[parity["qsample.index"]]
    x = EnergyGuidedDDIMScheduler().add_noise(parity["qsample.x0"], parity["qsample.noise"], timesteps)
    close(x, parity["qsample.xt"], 1e-6)


@needs_parity
@pytest.mark.parametrize("case", ["guided", "guided_plateau", "unguided"])
def test_original_steps(parity, case):
    index, x, before, guided, expected = (parity[f"step.{case}.{k}"] for k in ("index", "x_t", "x0_before", "x0_guided", "x_prev"))
    guidance = None if case == "unguided" else lambda clean, level: guided
    out = whole_chain().step(before, KEPT[index.item()], x, guidance=guidance)
    close(out.prev_sample, expected, 5e-5)
    assert torch.equal(out.pred_original_sample, guided)
    assert torch.equal(out.pred_original_sample_unguided, before)


@needs_parity
@pytest.mark.parametrize("case", ["single_frame", "two_cameras"])
def test_original_chains(parity, case):
    scheduler = EnergyGuidedDDIMScheduler()
    x = scheduler.init_latents(parity[f"run.{case}.noise"])
    for t, clean, expected in zip(scheduler.timesteps, parity[f"run.{case}.x0_steps"], parity[f"run.{case}.x_steps"], strict=True):
        x = scheduler.step(clean, t, x).prev_sample
        close(x, expected, 5e-5)


# Timesteps


@pytest.mark.parametrize("total", [2, 50, 1000])
def test_evenly_spaced(total):
    scheduler = EnergyGuidedDDIMScheduler(total, num_inference_steps=2, skip_first=0)
    for steps in range(2, min(total, 60) + 1):
        scheduler.set_timesteps(steps, skip_first=0)
        times = scheduler.timesteps.tolist()
        gaps = {a - b for a, b in pairwise(times)}
        assert len(times) == scheduler.num_inference_steps == steps
        assert (times[0], times[-1]) == (total - 1, 0)
        assert min(gaps) > 0
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("steps", "skipped"), [(1, 0), (2, 0), (3, 1), (5, 1), (8, 2), (10, 2), (20, 4), (50, 10)])
def test_skipped_share(steps, skipped):
    scheduler, whole = EnergyGuidedDDIMScheduler(), whole_chain()
    scheduler.set_timesteps(steps)
    whole.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == whole.timesteps.tolist()[skipped:]
    # What is skipped is still part of the chain.
    assert all(torch.equal(table, whole.posterior_tables()[name]) for name, table in scheduler.posterior_tables().items())


def test_some_step_is_always_left():
    scheduler = EnergyGuidedDDIMScheduler(skip_first=19)
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [0]


def test_configured_steps_are_the_default():
    scheduler = EnergyGuidedDDIMScheduler(num_inference_steps=10, skip_first=3)
    expected = scheduler.timesteps.tolist()
    assert len(expected) == 7
    scheduler.set_timesteps(20, skip_first=1)
    assert len(scheduler.timesteps) == 19
    scheduler.set_timesteps(skip_first=2)
    assert scheduler.timesteps.tolist()[1:] == expected
    scheduler.set_timesteps()
    assert scheduler.timesteps.tolist() == expected


def test_single_step_starts_at_the_noisiest():
    scheduler = EnergyGuidedDDIMScheduler()
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [49]
    clean, x = draw(2, 5)
    assert torch.equal(scheduler.step(clean, 49, x).prev_sample, clean)


@pytest.mark.parametrize("times", [[40, 17, 3], torch.tensor([40, 17, 3]), np.array([40, 17, 3])])
def test_custom_timesteps(times):
    scheduler = EnergyGuidedDDIMScheduler()
    scheduler.set_timesteps(timesteps=times)
    assert scheduler.timesteps.tolist() == [40, 17, 3]
    assert scheduler.init_noise_sigma == pytest.approx(levels(scheduler, 40)[1])
    clean, x = draw(2, 5)
    signal, sigma = levels(scheduler, 17)
    after = scheduler.step(clean, 40, levels(scheduler, 40)[0] * clean + levels(scheduler, 40)[1] * x).prev_sample
    close(after, signal * clean + sigma * x)
    assert torch.equal(scheduler.step(clean, 3, x).prev_sample, clean)


# Steps


@pytest.mark.parametrize("config", [{}, {"scale": 0.3}, {"algorithm": "ddpm"}, {"eta": 1.0}])
def test_last_step_is_the_guided_clean_pose(config):
    scheduler = EnergyGuidedDDIMScheduler(**config)
    clean, x = draw(2, 4, 17, 3)
    out = scheduler.step(clean, 0, x, guidance=lambda pose, level: pose + 1)
    assert torch.equal(out.pred_original_sample, clean + 1)
    assert torch.equal(out.prev_sample, scheduler.config.scale * (clean + 1))
    assert torch.equal(out.pred_original_sample_unguided, clean)
    assert not scheduler.is_stochastic(0)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_steps_stay_on_the_noising_path(scale):
    """With the true clean pose, deterministic steps undo exactly the noising with the same noise."""
    scheduler = whole_chain(scale=scale)
    pose, noise = draw(2, 3, 4, 51)
    x = None
    for t in scheduler.timesteps:
        on_path = scheduler.scale_model_input(x) if x is not None else scheduler.add_noise(pose, noise, t)
        close(on_path, scheduler.add_noise(pose, noise, t), 1e-5)
        x = scheduler.step(pose, t, scale * on_path).prev_sample
    close(x, scale * pose)


@pytest.mark.parametrize("config", [{"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0}, {"algorithm": "ddpm"}])
def test_steps_keep_the_marginals(config):
    """If x_t ~ N(√ᾱ_t x0, 1 - ᾱ_t), then x_s ~ N(√ᾱ_s x0, 1 - ᾱ_s), whatever eta."""
    scheduler = whole_chain(**config)
    for t, s in pairwise(scheduler.timesteps.tolist()):
        a, b, c = coefficients(scheduler, t)
        (signal, sigma), (signal_s, sigma_s) = levels(scheduler, t), levels(scheduler, s)
        assert a + b * signal == pytest.approx(signal_s, rel=1e-9)
        assert (b * sigma) ** 2 + c**2 == pytest.approx(sigma_s**2, rel=1e-9)


def test_ddpm_is_ddim_with_the_full_noise():
    ddim, ddpm = whole_chain(), whole_chain(algorithm="ddpm")
    tables = ddpm.posterior_tables()
    for i, t in list(enumerate(KEPT))[1:]:
        assert coefficients(ddpm, t) == pytest.approx(coefficients(ddim, t, eta=1.0), rel=1e-9)
        names = ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance")
        c1, c2, variance = (tables[name][i].item() for name in names)
        assert coefficients(ddpm, t) == pytest.approx([c1, c2, math.sqrt(variance)], rel=1e-9)
        assert tables["posterior_log_variance_clipped"][max(i, 1)].exp().item() == pytest.approx(variance)
        # Eta alone scales the noise.
        assert coefficients(ddim, t, eta=0.25)[2] == pytest.approx(0.25 * math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("ours", [{"algorithm": "ddpm"}, {"eta": 1.0}])
def test_agrees_with_ddpm_of_diffusers(ours):
    ours = whole_chain(**ours)
    theirs = DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    close(theirs.alphas_cumprod.double(), ours.alphas_cumprod, 1e-6)
    theirs.alphas_cumprod = ours.alphas_cumprod
    theirs.set_timesteps(timesteps=ours.timesteps.tolist())
    theirs.one = theirs.one.double()
    x = x_theirs = draw(2, 51)
    for t in ours.timesteps:
        clean = draw(2, 51, seed=t.item())
        x = ours.step(clean, t, x, generator=torch.Generator().manual_seed(t.item())).prev_sample
        x_theirs = theirs.step(clean, t, x_theirs, generator=torch.Generator().manual_seed(t.item())).prev_sample
        close(x, x_theirs)


@algorithms
def test_generator_decides_the_noise(algorithm):
    scheduler = EnergyGuidedDDIMScheduler(algorithm=algorithm, eta=1.0)
    clean, x = draw(2, 50)

    def run(seed):
        return scheduler.step(clean, 20, x, generator=torch.Generator().manual_seed(seed)).prev_sample

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert torch.equal(run(0), scheduler.step(clean, 20, x, variance_noise=draw(50)).prev_sample)


def test_deterministic_without_eta():
    scheduler = EnergyGuidedDDIMScheduler()
    clean, x = draw(2, 50)
    first = scheduler.step(clean, 20, x, variance_noise=draw(50, seed=1)).prev_sample
    assert torch.equal(first, scheduler.step(clean, 20, x).prev_sample)
    assert torch.equal(first, EnergyGuidedDDIMScheduler(eta=0.7).step(clean, 20, x, eta=0.0).prev_sample)
    assert not scheduler.is_stochastic(20)
    assert scheduler.is_stochastic(20, eta=0.1)
    assert EnergyGuidedDDIMScheduler(algorithm="ddpm").is_stochastic(torch.tensor(20))


@algorithms
def test_noise_scale_only_scales_the_fresh_noise(algorithm):
    plain, spread = (EnergyGuidedDDIMScheduler(algorithm=algorithm, eta=1.0, noise_scale=scale) for scale in (1.0, 1.5))
    a, b, c = coefficients(plain, 20)
    assert coefficients(spread, 20) == pytest.approx([a, b, 1.5 * c])
    clean, noise = draw(2, 3, 5)
    assert torch.equal(*(s.add_noise(clean, noise, 20) for s in (plain, spread)))
    assert torch.equal(*(s.init_latents(noise) for s in (plain, spread)))


def test_float32_tensors_lose_nothing():
    scheduler = whole_chain(eta=1.0)
    for t in KEPT:
        clean, x, z = draw(3, 200, seed=t, dtype=torch.float32)
        step = scheduler.step(clean, t, x, variance_noise=z).prev_sample
        assert step.dtype == torch.float32
        close(step.double(), scheduler.step(clean.double(), t, x.double(), variance_noise=z.double()).prev_sample, 1e-6)


# Guidance


@dataclass
class Answer:
    pose: torch.Tensor
    trace: list


@algorithms
def test_guidance(algorithm):
    """It sees the predicted pose and the noise level in metres, and the step goes on from its answer."""
    scheduler = EnergyGuidedDDIMScheduler(algorithm=algorithm, eta=1.0, scale=0.5)
    seen = []

    def guidance(pose, level):
        seen.append((pose.clone(), level))
        return Answer(pose=pose * 0.9, trace=[1.0, 0.5])

    clean, x, z = draw(3, 6, 4, 17, 3)
    out = scheduler.step(clean, 20, x, guidance=guidance, variance_noise=z)
    ((pose, level),) = seen
    assert isinstance(out, EnergyGuidedDDIMSchedulerOutput)
    assert torch.equal(pose, clean)
    assert isinstance(level, float)
    assert level == pytest.approx(math.sqrt((1 - ALPHAS[8]) / ALPHAS[8]) / 0.5, rel=1e-7)
    assert torch.equal(out.pred_original_sample, clean * 0.9)
    assert torch.equal(out.pred_original_sample_unguided, clean)
    assert out.trace == [1.0, 0.5]
    plain = scheduler.step(clean * 0.9, 20, x, variance_noise=z)
    assert torch.equal(out.prev_sample, plain.prev_sample)
    assert plain.trace is None
    prev, guided = scheduler.step(clean, 20, x, guidance=guidance, variance_noise=z, return_dict=False)
    assert torch.equal(prev, out.prev_sample)
    assert torch.equal(guided, out.pred_original_sample)


def test_guidance_must_keep_the_shape():
    clean, x = draw(2, 4, 17, 3)
    with pytest.raises(ValueError, match=r"keep the pose's shape \(4, 17, 3\), got \(17, 3\)"):
        EnergyGuidedDDIMScheduler().step(clean, 20, x, guidance=lambda pose, level: pose.mean(0))


# Noising, start and scale


def test_add_noise():
    scheduler = EnergyGuidedDDIMScheduler()
    pose, noise = draw(2, 3, 4, 17, 3, dtype=torch.float32)
    mixed = scheduler.add_noise(pose, noise, torch.tensor([0, 20, 49]))
    assert mixed.dtype == torch.float32
    for i, t in enumerate([0, 20, 49]):
        signal, sigma = levels(scheduler, t)
        close(mixed[i], signal * pose[i] + sigma * noise[i], 1e-6)
        close(mixed[i], scheduler.add_noise(pose, noise, t)[i], 0)
    for bad in (torch.tensor([50]), torch.tensor([-1, 0, 0]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match=r"integers in 0\.\.49, got"):
            scheduler.add_noise(pose, noise, bad)
    with pytest.raises(ValueError, match="got 2 for 3 clips"):
        scheduler.add_noise(pose, noise, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"integers in 0\.\.49, got 50"):
        scheduler.noise_level(50)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_noise_level_is_what_hides_the_pose(scale):
    scheduler = EnergyGuidedDDIMScheduler(scale=scale)
    for t in (0, 20, 49):
        pose, noise = torch.zeros(1, 40_000), draw(1, 40_000, dtype=torch.float32)
        apparent = scheduler.add_noise(pose, noise, t) / levels(scheduler, t)[0]
        assert apparent.std().item() == pytest.approx(scheduler.noise_level(t), rel=0.02)


@pytest.mark.parametrize("skip_first", [0, 4])
def test_start(skip_first):
    scheduler = EnergyGuidedDDIMScheduler(skip_first=skip_first, scale=0.5)
    noise, pose = draw(5, 2, 51), draw(1, 2, 51, seed=1)
    assert torch.equal(scheduler.init_latents(noise), scheduler.init_noise_sigma * noise)
    signal, sigma = levels(scheduler, scheduler.timesteps[0].item())
    close(scheduler.init_latents(noise, pose), signal * 0.5 * pose + sigma * noise, 1e-6)
    with pytest.raises(ValueError, match=r"init_pose \(3, 2, 51\) does not broadcast to noise \(5, 2, 51\)"):
        scheduler.init_latents(noise, draw(3, 2, 51))


@algorithms
def test_scale_is_a_change_of_unit(algorithm):
    """Poses s times as large without a signal scale make the same states as poses with scale s."""
    s = 0.4
    scaled, plain = (EnergyGuidedDDIMScheduler(algorithm=algorithm, eta=0.5, scale=scale) for scale in (s, 1.0))
    noise, pose = draw(2, 3, 51)
    x, y = scaled.init_latents(noise, pose), plain.init_latents(noise, s * pose)
    close(s * scaled.add_noise(pose, noise, 20), plain.add_noise(s * pose, noise, 20))
    for t in scaled.timesteps:
        clean, z = draw(2, 3, 51, seed=t.item())
        a = scaled.step(clean, t, x, guidance=lambda pose, level: pose + level, variance_noise=z)
        b = plain.step(s * clean, t, y, guidance=lambda pose, level: pose + level, variance_noise=z)
        x, y = a.prev_sample, b.prev_sample
        close(x, y)
        close(s * a.pred_original_sample, b.pred_original_sample)
        close(scaled.scale_model_input(x, t), x / s)


# Bad input, files


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps must be an integer ≥ 1, got 0"),
        ({"num_inference_steps": 51}, "num_inference_steps must be an integer from 1 to 50, got 51"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer from 1 to 50, got 2.5"),
        ({"skip_first": 20}, "skip_first must be an integer from 0 to 19, got 20"),
        ({"skip_first": -1}, "skip_first must be an integer from 0 to 19, got -1"),
        ({"eta": 1.5}, r"eta must lie in 0\.\.1, got 1.5"),
        ({"eta": math.nan}, r"eta must lie in 0\.\.1, got nan"),
        ({"noise_scale": 0.0}, "noise_scale must be a positive number, got 0.0"),
        ({"scale": math.inf}, "scale must be a positive number, got inf"),
        ({"algorithm": "euler"}, r"algorithm must be one of \('ddim', 'ddpm'\), got 'euler'"),
        ({"prediction_type": "epsilon"}, r"prediction_type must be one of \('sample',\), got 'epsilon'"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        EnergyGuidedDDIMScheduler(**config)


@pytest.mark.parametrize("times", [[0, 10, 20], [20, 20, 0], [50, 0], [3, -1], [3.5, 1], []])
def test_bad_custom_timesteps(times):
    with pytest.raises(ValueError, match=r"fall strictly within 49\.\.0"):
        EnergyGuidedDDIMScheduler().set_timesteps(timesteps=times)


def test_bad_steps():
    scheduler = EnergyGuidedDDIMScheduler()
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="pass either timesteps or"):
        scheduler.set_timesteps(20, timesteps=[3, 1])
    with pytest.raises(ValueError, match="skip_first must be an integer from 0 to 9, got 10"):
        scheduler.set_timesteps(10, skip_first=10)
    for call in (scheduler.is_stochastic, lambda t: scheduler.step(x, t, x)):
        with pytest.raises(ValueError, match=r"one of \[38, 36, .*, 0\], got 49"):
            call(49)
    with pytest.raises(ValueError, match=r"eta must lie in 0\.\.1, got -1"):
        scheduler.step(x, 38, x, eta=-1)
    assert scheduler.timesteps.tolist() == KEPT[15::-1]  # a refused choice changes nothing


def test_save_and_load(tmp_path):
    config = dict(num_train_timesteps=100, num_inference_steps=10, skip_first=3, eta=0.3, noise_scale=1.2, algorithm="ddpm", scale=0.5)
    EnergyGuidedDDIMScheduler(**config).save_pretrained(tmp_path)
    loaded = EnergyGuidedDDIMScheduler.from_pretrained(tmp_path)
    for scheduler in (loaded, EnergyGuidedDDIMScheduler.from_config(loaded.config)):
        assert config.items() <= dict(scheduler.config).items()
        assert scheduler.config.prediction_type == "sample"
        assert (len(scheduler), len(scheduler.timesteps)) == (100, 7)
    assert isinstance(loaded, SchedulerMixin)
    assert EnergyGuidedDDIMScheduler.__module__ == EnergyGuidedDDIMSchedulerOutput.__module__ == "probpose.schedulers"
