"""D3DP's schedule and sampler: published numbers, and the numerical trap of its first step."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from probpose.hub import convert_original
from probpose.schedulers import D3DPScheduler, SchedulerMixin

TESTS = Path(__file__).resolve().parents[1]
PARITY = TESTS.parents[1] / "shared" / "parity" / "d3dp"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


def mirror(x, pairs):
    order = list(range(17))
    for left, right in pairs:
        order[left], order[right] = right, left
    flipped = x.clone()
    flipped[..., 0] *= -1
    return flipped[..., order, :]


H36M_PAIRS = [(4, 1), (5, 2), (6, 3), (11, 14), (12, 15), (13, 16)]


@torch.no_grad()
def sample(model, keypoints, noise, pairs):
    """Predictions of every step `(steps, windows, hypotheses, frames, joints, 3)`, averaged over mirroring."""
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(len(noise))
    x, predictions = noise[0], []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        seen = scheduler.scale_model_input(x, t)
        mirrored = model(mirror(keypoints, pairs), mirror(seen, pairs), t).sample
        mean = (model(keypoints, seen, t).sample + mirror(mirrored, pairs)) / 2
        x, clean = scheduler.step(mean, t, x, variance_noise=noise[i + 1] if i + 1 < len(noise) else None, return_dict=False)
        predictions.append(clean)
    return torch.stack(predictions)


# Numbers of the original


def test_schedule():
    alphas = D3DPScheduler().alphas_cumprod
    published = {0: 0.999958716, 199: 0.898705921, 399: 0.647478211, 499: 0.493843590, 599: 0.340809640}
    published |= {799: 0.0940456127, 998: 2.428767e-6, 999: 2.428767e-9}
    for t, value in published.items():
        assert alphas[t].item() == pytest.approx(value, rel=1e-6)
    assert D3DPScheduler().betas[0].item() == pytest.approx(4.128422e-5, rel=1e-6)
    assert D3DPScheduler().betas[-1].item() == pytest.approx(0.999)
    assert alphas.dtype == torch.float64


@pytest.mark.parametrize(
    ("t", "following", "coefficients"),
    [
        (999, 799, (0.306669, 1.45589e-4, 0.951816)),
        (799, 599, (0.583789, 0.363807, 0.725834)),
        (599, 399, (0.804660, 0.315010, 0.503280)),
        (399, 199, (0.948001, 0.144809, 0.283416)),
        (999, 499, (0.702740, 3.54963e-5, 0.711447)),
    ],
)
def test_published_coefficients(t, following, coefficients):
    """prev = √ᾱ' x̂0 + c ε̂ + σ z, read off by probing with one input at a time, in float64."""
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(1000 // (t - following))
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    alpha = scheduler.alphas_cumprod[t].item()
    sigma = scheduler.step(zero, t, zero, variance_noise=one).prev_sample.item()
    direction = scheduler.step(zero, t, one * math.sqrt(1 - alpha), variance_noise=zero).prev_sample.item()
    signal = scheduler.step(one, t, one * math.sqrt(alpha), variance_noise=zero).prev_sample.item()
    assert (signal, direction, sigma) == pytest.approx(coefficients, rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 665, 332]),
        (5, [999, 799, 599, 399, 199]),
        (7, [999, 856, 713, 570, 427, 284, 141]),
    ],
)
def test_timesteps(steps, timesteps):
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == timesteps
    assert scheduler.num_inference_steps == steps


def test_timesteps_are_rounded_in_float32():
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(26)
    assert 498 in scheduler.timesteps  # exact arithmetic gives 499


@needs_parity
def test_all_original_timesteps():
    scheduler = D3DPScheduler()
    for steps, times in json.loads((PARITY / "config.json").read_text())["time_lists"].items():
        scheduler.set_timesteps(int(steps))
        assert [*scheduler.timesteps.tolist(), -1] == times


def test_golden_samples():
    golden = load_file(TESTS / "golden" / "d3dp.safetensors")
    prefix = "checkpoint/"
    model = convert_original("d3dp", {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    predictions = sample(model, golden["keypoints_2d"][:1], golden["sample/k2/noise"], H36M_PAIRS)
    torch.testing.assert_close(predictions.transpose(0, 1), golden["sample/k2/preds"], atol=1e-4, rtol=0)


@needs_parity
@pytest.mark.parametrize("case", ["k1", "k2", "hp3d_k2"])
def test_original_samples(case):
    tensors = load_file(PARITY / "io.safetensors")
    config = json.loads((PARITY / "config.json").read_text())["hyper_parameters"]
    model = convert_original("d3dp", load_file(PARITY / "checkpoint.safetensors"))
    # The MPI-INF-3DHP network samples in metres, too: only what its release returns is in millimetres.
    prefix, unit, tolerance = ("hp3d_", 1000, 5e-2) if case.startswith("hp3d") else ("", 1, 1e-4)
    pairs = list(zip(config[f"{prefix}joints_left"], config[f"{prefix}joints_right"]))
    predictions = sample(model, tensors["inputs/keypoints_2d"], tensors[f"sample/{case}/noise"], pairs)
    expected = tensors[f"sample/{case}/preds"]
    torch.testing.assert_close(unit * predictions.transpose(0, 1), expected, atol=tolerance, rtol=0)


@needs_parity
def test_original_training_input():
    tensors = load_file(PARITY / "io.safetensors")
    x = D3DPScheduler().add_noise(tensors["inputs/pose_3d_gt"], tensors["train/noise"], tensors["train/t"])
    torch.testing.assert_close(x, tensors["train/x_t"], atol=1e-5, rtol=0)


# Properties


def reference_step(scheduler, clean, t, following, x, z, eta=1.0):
    """The step in float64 throughout, in the published order of operations."""
    now, nxt = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[following]
    clean = clean.double().clamp(-1.1, 1.1)
    noise = ((1 / now).sqrt() * x.double() - clean) / (1 / now - 1).sqrt()
    sigma = eta * ((1 - now / nxt) * (1 - nxt) / (1 - now)).sqrt()
    return nxt.sqrt() * clean + (1 - nxt - sigma**2).sqrt() * noise + sigma * z.double()


@pytest.mark.parametrize("steps", [2, 3, 5, 1000])
def test_float32_tensors_lose_nothing(steps):
    """At the first step 1 - ᾱ' - σ² is 1e-8: formed in float32 it is zero or negative, and K = 3 gives NaN."""
    generator = torch.Generator().manual_seed(steps)
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    for t, following in list(pairwise(times))[:20]:
        clean, x, z = torch.randn(3, 200, generator=generator)
        step = scheduler.step(clean, t, x, variance_noise=z).prev_sample
        assert step.dtype == torch.float32
        expected = reference_step(scheduler, clean, t, following, x, z)
        torch.testing.assert_close(step.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("steps", [2, 5, 10, 20])
def test_agrees_with_ddim_where_the_spacings_coincide(steps):
    ours = D3DPScheduler()
    theirs = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
        clip_sample_range=1.1,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    torch.testing.assert_close(theirs.alphas_cumprod.double(), ours.alphas_cumprod, atol=1e-6, rtol=1e-3)
    theirs.alphas_cumprod = ours.alphas_cumprod  # in float32 its first step loses the noise term
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    torch.manual_seed(0)
    x = x_theirs = torch.randn(2, 3, dtype=torch.float64)
    for t in ours.timesteps:
        clean, z = torch.randn(2, 2, 3, dtype=torch.float64)
        x = ours.step(clean, t, x, variance_noise=z).prev_sample
        x_theirs = theirs.step(clean, t, x_theirs, eta=1.0, use_clipped_model_output=True, variance_noise=z).prev_sample
        torch.testing.assert_close(x, x_theirs, atol=1e-6, rtol=0)


def test_last_step_is_the_clean_pose():
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(3)
    out = scheduler.step(torch.tensor([0.5, 3.0]), 332, torch.randn(2))
    assert out.prev_sample.tolist() == out.pred_original_sample.tolist() == pytest.approx([0.5, 1.1])
    assert not scheduler.is_stochastic(332)
    assert scheduler.is_stochastic(665)


def test_deterministic_without_eta():
    scheduler = D3DPScheduler(eta=0.0)
    clean, x = torch.randn(2, 50)
    first = scheduler.step(clean, 999, x).prev_sample
    assert torch.equal(first, scheduler.step(clean, 999, x).prev_sample)
    assert torch.equal(first, D3DPScheduler().step(clean, 999, x, eta=0.0).prev_sample)
    assert not scheduler.is_stochastic(999)


def test_noise_scale_only_scales_the_fresh_noise():
    clean, x, z = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    plain, spread = D3DPScheduler(), D3DPScheduler(noise_scale=1.5)
    still = plain.step(clean, 899, x, variance_noise=torch.zeros(50)).prev_sample
    one, two = (s.step(clean, 899, x, variance_noise=z).prev_sample - still for s in (plain, spread))
    torch.testing.assert_close(two, 1.5 * one)
    noisy = [s.add_noise(clean[None], z[None], torch.tensor([500])) for s in (plain, spread)]
    assert torch.equal(*noisy)


def test_generator_decides_the_noise():
    scheduler = D3DPScheduler()
    clean, x = torch.randn(2, 50)

    def run(seed):
        return scheduler.step(clean, 999, x, generator=torch.Generator().manual_seed(seed)).prev_sample

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_add_noise():
    scheduler = D3DPScheduler()
    pose, noise = 0.3 * torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)
    assert (scheduler.add_noise(pose, noise, 0) - pose).abs().max() < 0.05
    torch.testing.assert_close(scheduler.add_noise(pose, noise, torch.tensor([999, 999])), noise.clamp(-1.1, 1.1), atol=1e-4, rtol=0)
    mixed = scheduler.add_noise(pose, noise, torch.tensor([0, 500]))
    torch.testing.assert_close(mixed[1:], scheduler.add_noise(pose[1:], noise[1:], 500))
    assert mixed.dtype == torch.float32
    with pytest.raises(ValueError, match=r"0\.\.999, got \[1000\]"):
        scheduler.add_noise(pose, noise, torch.tensor([1000]))


def test_clean_pose_and_noise_are_recovered():
    """Stepping deterministically from a noised pose with the true clean pose stays on its noising path."""
    scheduler = D3DPScheduler(eta=0.0)
    scheduler.set_timesteps(5)
    pose, noise = torch.rand(2, 100, dtype=torch.float64) - 0.5
    path = [scheduler.alphas_cumprod[t].sqrt() * pose + (1 - scheduler.alphas_cumprod[t]).sqrt() * noise for t in (799, 599)]
    torch.testing.assert_close(scheduler.step(pose, 799, path[0]).prev_sample, path[1], atol=1e-9, rtol=0)


def test_signal_scale():
    scheduler = D3DPScheduler(scale=0.5)
    x = torch.tensor([-3.0, 0.2, 3.0])
    torch.testing.assert_close(scheduler.scale_model_input(x), torch.tensor([-1.1, 0.4, 1.1]))
    clean = scheduler.step(torch.tensor([4.0, 0.2]), 999, torch.zeros(2)).pred_original_sample
    torch.testing.assert_close(clean, torch.tensor([0.55, 0.1]))


@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_bad_number_of_steps(steps):
    with pytest.raises(ValueError, match=f"from 1 to 1000, got {steps}"):
        D3DPScheduler().set_timesteps(steps)


def test_bad_steps():
    scheduler = D3DPScheduler()
    scheduler.set_timesteps(2)
    x = torch.zeros(1)
    with pytest.raises(ValueError, match=r"one of \[999, 499\], got 500"):
        scheduler.step(x, 500, x)
    with pytest.raises(ValueError, match=r"eta must lie in 0\.\.1, got 2"):
        scheduler.step(x, 999, x, eta=2)


def test_save_and_load(tmp_path):
    D3DPScheduler(num_train_timesteps=100, scale=0.5, clip_range=2.0, eta=0.3).save_pretrained(tmp_path)
    loaded = D3DPScheduler.from_pretrained(tmp_path)
    config = loaded.config
    assert (len(loaded), config.scale, config.clip_range, config.eta) == (100, 0.5, 2.0, 0.3)
    assert isinstance(loaded, SchedulerMixin)
    assert D3DPScheduler.__module__ == "probpose.schedulers"
