"""DiffPose's whole call: numbers of the original, the chain by hand, mixtures, mirroring, and what must not change an answer."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import (
    IMAGE,
    LIFTERS,
    all_lifters,
    diffpose_pipeline,
    keypoints_of,
    mirror_pixels,
    mirror_pose,
    quiet,
    seeded,
    spy,
    stirred,
    walk,
)

from probpose import ProbPosePipeline
from probpose.geometry import Camera, denormalise_screen, h36m_camera
from probpose.hub import convert_original
from probpose.metrics import mpjpe, pa_mpjpe
from probpose.mixtures import PoseMixture
from probpose.models import FrameTransformerModel, GraFormerDenoiser, GraFormerLifter, MixSTEModel
from probpose.pipelines import DiffPosePipeline, ProbPosePipelineOutput
from probpose.pipelines.windows import blend_weights, window_starts
from probpose.schedulers import D3DPScheduler, GMMScheduler

TESTS = Path(__file__).resolve().parents[1]
FLIPS = ("alternate", "lifter", False)
STARTS = ("mixture", "noisy", "released", "prior")
SMALL = {"width": 16, "depth": 1, "num_attention_heads": 2}


def same(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def run(pipe, keypoints=None, **options):
    """Hypotheses of a call."""
    return pipe(keypoints, **{"image_size": IMAGE, "num_hypotheses": 3, "generator": seeded(), "aggregation": None} | options).hypotheses


def starts(pipe, keypoints=None, num_inference_steps=1, **options):
    """What the denoiser sees first `(batch, hypotheses, frames, joints, 5)`."""
    seen = []
    hook = pipe.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    frames = run(pipe, keypoints, num_inference_steps=num_inference_steps, **options).shape[-3]
    hook.remove()
    assert len(seen) == num_inference_steps, "all that is seen at a time fits into one call"
    return seen[0][:, :, 0].unflatten(0, (-1, frames)).transpose(1, 2)


def draws(*leading, seed=0):
    return torch.randn(*leading, 17, 5, generator=seeded(seed))


def mirror_noise(noise):
    return torch.cat([mirror_pose(torch.cat([noise[..., :2], noise[..., :1]], -1))[..., :2], mirror_pose(noise[..., 2:])], dim=-1)


def one_component(num=1):
    """A scheduler for priors that need no expectation maximisation, or `num` components."""
    return GMMScheduler(
        beta_end=0.2, anchor="component", prediction_type="sample", timestep_spacing="trailing", start_timestep=50, num_components=num
    )


# Numbers of the original


@pytest.fixture(scope="module")
def golden():
    return load_file(TESTS / "golden" / "diffpose.safetensors")


def published_pipeline(golden, **defaults):
    weights = [
        {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)} for prefix in ("checkpoint/", "checkpoint_pose/")
    ]
    lifter = convert_original("diffpose_lifter", weights[1], num_attention_heads=2)
    return quiet(DiffPosePipeline(convert_original("diffpose", weights[0], num_attention_heads=4), lifter, GMMScheduler(), **defaults))


def test_released_hypotheses_are_the_originals(golden):
    pipe, size = published_pipeline(golden), (1000, 1000)
    keypoints = denormalise_screen(golden["pipeline.keypoints_2d"], size)
    out = pipe(keypoints, image_size=size, num_hypotheses=3, num_inference_steps=2, start="released")
    same(out.hypotheses, golden["pipeline.released.hypotheses"].transpose(0, 1))
    same(out.pose, golden["pipeline.released.prediction"])
    same(out.lifted, golden["pipeline.start"][..., 2:])
    target = golden["pipeline.target_3d"]
    assert mpjpe(out.pose, target) == pytest.approx(golden["pipeline.released.mpjpe_mm"].item(), abs=1e-3)
    assert pa_mpjpe(out.pose, target) == pytest.approx(golden["pipeline.released.p_mpjpe_mm"].item(), abs=1e-2)


# The chain by hand


@torch.no_grad()
def by_hand(pipe, keypoints, noise, start, steps, eta, average=False, confidence=None):
    """One hypothesis after the other, the lifter called on whole clips."""
    inputs = pipe.prepare_inputs(keypoints, confidence, IMAGE)
    points, trust = inputs.network_2d, inputs.confidence
    deviation = (0.002 + 0.04 * (1 - trust))[..., None]
    scheduler = GMMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)

    def view(points, mirror):
        if mirror:
            trust_m = mirror_pixels(torch.stack([trust, trust], -1), 0)[..., 1]
            return mirror_pose(pipe.lifter(mirror_pixels(points, 0), confidence=trust_m).sample)
        return pipe.lifter(points, confidence=trust).sample

    def lift(points):
        pose = (view(points, False) + view(points, True)) / 2 if average else view(points, False)
        return pose - pose[..., :1, :]

    takes_context = pipe.denoiser.config.context_channels is not None
    context = pipe.lifter(points, confidence=trust, output_features=True).features if takes_context else None
    sigma = (1 - scheduler.alphas_cumprod[scheduler.start_timestep]).sqrt()
    scale = torch.cat([deviation, deviation, torch.full((*trust.shape, 3), scheduler.config.pose_scale)], dim=-1)
    hypotheses = []
    for k in range(noise.shape[2]):
        pose = lift(points + deviation * noise[0, :, k, ..., :2] if start == "mixture" else points)
        x = mean = torch.cat([points, pose], dim=-1)
        if start != "released":
            x = mean + sigma * scale * noise[0, :, k]
        for i, t in enumerate(scheduler.timesteps.tolist()):
            predicted = pipe.denoiser(None, x, t, context=context).sample
            x = scheduler.step(predicted, t, x, eta, noise[min(i + 1, len(noise) - 1), :, k], component_mean=mean).prev_sample
        hypotheses.append(x[..., 2:] - x[..., :1, 2:])
    return torch.stack(hypotheses, dim=1), lift(points)


@all_lifters
@pytest.mark.parametrize("start", ["mixture", "noisy", "released"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_call_is_the_chain(kind, start, eta):
    pipe, keypoints, noise = diffpose_pipeline(**kind), keypoints_of(frames=9), draws(3, 2, 2, 9)
    confidence = torch.rand(2, 9, 17, generator=seeded(4))
    out = pipe(
        keypoints, confidence, image_size=IMAGE, noise=noise, num_hypotheses=2, start=start, eta=eta, num_inference_steps=3,
        aggregation="mean",
    )  # fmt: skip
    hypotheses, lifted = by_hand(pipe, keypoints, noise, start, 3, eta, confidence=confidence)
    same(out.hypotheses, hypotheses, atol=1e-4)
    same(out.pose, hypotheses.mean(1), atol=1e-4)
    same(out.lifted, lifted)
    assert hypotheses.abs().mean() > 0.1


@pytest.mark.parametrize("lifter", ["graformer", "mixste"])
@pytest.mark.parametrize("start", ["mixture", "noisy", "released"])
def test_lifted_poses_averaged_with_the_mirrored_view(lifter, start):
    pipe, keypoints, noise = diffpose_pipeline(lifter), keypoints_of(frames=9), draws(1, 2, 2, 9)
    out = pipe(keypoints, image_size=IMAGE, noise=noise, num_hypotheses=2, start=start, flip="lifter", num_inference_steps=3)
    hypotheses, lifted = by_hand(pipe, keypoints, noise, start, 3, 0.0, average=True)
    same(out.hypotheses, hypotheses, atol=1e-4)
    same(out.lifted, lifted)


def test_the_sampler_in_the_networks_units_is_the_call():
    pipe, keypoints = diffpose_pipeline("frame"), keypoints_of(frames=12)
    inputs = pipe.prepare_inputs(keypoints, image_size=IMAGE)
    settings = pipe.settings(num_hypotheses=3, flip="alternate", eta=0.5)
    same(
        pipe.sample_clips(inputs.network_2d, inputs.confidence, settings, seeded()), run(pipe, keypoints, flip="alternate", eta=0.5), atol=0
    )
    pose, features = pipe.lift(inputs.network_2d, inputs.confidence)
    same(pose, pipe(keypoints, image_size=IMAGE).lifted, atol=0)
    assert features is None


# Randomness


@all_lifters
@pytest.mark.parametrize("start", STARTS)
def test_which_hypotheses_differ(kind, start):
    pipe, keypoints = diffpose_pipeline(**kind, scheduler=one_component()), keypoints_of(frames=4)
    out = run(pipe, keypoints, start=start)
    assert torch.equal(out, run(pipe, keypoints, start=start)), "the seed decides"
    spread = (out - out[:, :1])[:, 1:].norm(dim=-1)[..., 1:]
    if start == "released":
        assert torch.equal(out, out[:, :1].expand_as(out))
        assert torch.equal(out, run(pipe, keypoints, start=start, generator=seeded(1)))
        noisy = run(pipe, keypoints, start=start, eta=1.0)
        assert ((noisy - noisy[:, :1])[:, 1:].norm(dim=-1)[..., 1:] > 1e-5).all()
    else:
        assert (spread > 1e-6).all()
        assert not torch.equal(out, run(pipe, keypoints, start=start, generator=seeded(1)))
    assert (out[..., 0, :] == 0).all()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("flip", FLIPS)
def test_the_first_hypotheses_do_not_depend_on_how_many_there_are(start, flip):
    pipe, keypoints = diffpose_pipeline(scheduler=one_component()), keypoints_of(frames=3)
    few, many = (run(pipe, keypoints, num_hypotheses=k, start=start, flip=flip, eta=1.0) for k in (3, 6))
    same(many[:, :3], few)


@all_lifters
@pytest.mark.parametrize("flip", FLIPS)
def test_max_batch_size_changes_nothing(kind, flip):
    pipe, keypoints = diffpose_pipeline(**kind), keypoints_of(frames=12)
    calls, windows, results = spy(pipe.denoiser), [], []
    pipe.lifter.register_forward_pre_hook(lambda _, args: windows.append(len(args[0])))
    single = pipe.num_frames is None
    for size in (1, 3, 256):
        calls.clear()
        windows.clear()
        results.append(run(pipe, keypoints, num_hypotheses=3, flip=flip, eta=1.0, max_batch_size=size))
        assert max(rows * hypotheses for rows, hypotheses in calls) <= 4 * size
        assert max(windows) <= (4 * size if single else size)
    for other in results[1:]:
        same(other, results[0], atol=1e-4)


def test_many_hypotheses_of_one_frame_keep_to_the_limit():
    pipe, keypoints = diffpose_pipeline(), keypoints_of(batch=1, frames=1)
    calls = spy(pipe.denoiser)
    out = run(pipe, keypoints, num_hypotheses=50, max_batch_size=3)
    assert out.shape == (1, 50, 1, 17, 3)
    assert max(rows * hypotheses for rows, hypotheses in calls) == 12


@all_lifters
@pytest.mark.parametrize("start", ["mixture", "prior"])
def test_a_clip_with_its_own_generator_does_not_see_its_batch(kind, start):
    pipe, keypoints = diffpose_pipeline(**kind, scheduler=one_component()), keypoints_of(batch=3, frames=12)

    def of(rows):
        return run(pipe, keypoints[rows], start=start, flip="alternate", eta=1.0, generator=[seeded(10 + row) for row in rows])

    together, reordered = of([0, 1, 2]), of([2, 0])
    same(reordered, together[[2, 0]], atol=1e-4)


def test_noise_is_held_over_the_frames_of_a_clip():
    pipe, keypoints = diffpose_pipeline(), keypoints_of(frames=6)
    network = pipe.prepare_inputs(keypoints, image_size=IMAGE).network_2d
    off = starts(pipe, keypoints)[..., :2] - network[:, None]
    same(off, off[:, :, :1].expand_as(off))
    assert (off[0, 0, 0] - off[1, 0, 0]).abs().max() > 1e-4 and (off[0, 0] - off[0, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("start", ["mixture", "noisy", "prior"])
def test_injected_noise(start):
    pipe, keypoints, noise = diffpose_pipeline(scheduler=one_component()), keypoints_of(frames=4), draws(3, 2, 3, 4)
    options = {"start": start, "num_inference_steps": 3}
    out = run(pipe, keypoints, noise=noise[0], **options)
    assert torch.equal(out, run(pipe, keypoints, noise=noise[0], generator=None, **options))
    assert torch.equal(out, run(pipe, keypoints, noise=noise, **options)), "deterministic steps take none"
    same(run(pipe, keypoints[0], noise=noise[0, 0].numpy().astype(np.float64), **options), out[0])
    stochastic = run(pipe, keypoints, noise=noise, eta=1.0, **options)
    assert torch.equal(stochastic, run(pipe, keypoints, noise=noise, eta=1.0, generator=seeded(5), **options))
    same(run(pipe, keypoints, noise=torch.cat([noise, noise]), eta=1.0, **options), stochastic)
    same(run(pipe, keypoints, noise=noise, eta=1.0, max_batch_size=1, **options), stochastic, atol=1e-4)
    one, other = (run(pipe, keypoints, noise=noise[0], eta=1.0, generator=seeded(i), **options) for i in (0, 1))
    assert not torch.equal(one, other), "the steps' noise is drawn"


# Clips of any length


@all_lifters
@pytest.mark.parametrize("frames", [1, 4, 9, 30])
def test_lengths(kind, frames):
    pipe, keypoints = diffpose_pipeline(**kind), keypoints_of(batch=2, frames=frames)
    out = pipe(keypoints, image_size=IMAGE, num_hypotheses=2, generator=seeded())
    shapes = {"hypotheses": (2, 2, frames, 17, 3), "pose": (2, frames, 17, 3), "lifted": (2, frames, 17, 3), "root": (2, frames, 3)}
    assert {name: tuple(out[name].shape) for name in shapes} == shapes
    assert all(out[name].isfinite().all() for name in shapes)
    single = pipe(keypoints[0], image_size=IMAGE, num_hypotheses=2, generator=[seeded(3)])
    batched = pipe(keypoints[:1], image_size=IMAGE, num_hypotheses=2, generator=[seeded(3)])
    for name in (*shapes, "uncertainty"):
        assert torch.equal(single[name], batched[name][0])


@torch.no_grad()
@pytest.mark.parametrize("lifter", ["frame", "mixste"])
def test_long_clips_are_lifted_in_blended_windows(lifter):
    pipe = diffpose_pipeline(lifter, window_overlap=4)
    inputs = pipe.prepare_inputs(keypoints_of(frames=25), torch.rand(2, 25, 17, generator=seeded()), image_size=IMAGE)
    pose, features = pipe.lift(inputs.network_2d, inputs.confidence, max_batch_size=3, output_features=True)
    first = window_starts(25, 9, 4)
    assert first == [0, 5, 10, 15, 16]
    weights, total, seen = blend_weights(first, 9, 25), torch.zeros(2, 25, 17, 3), {}
    for start, weight in zip(first, weights):
        window = slice(start, start + 9)
        out = pipe.lifter(inputs.network_2d[:, window], confidence=inputs.confidence[:, window], output_features=True)
        total[:, window] += weight[:, None, None] * out.sample
        for frame in range(9):
            seen.setdefault(start + frame, []).append((abs(frame - 4), out.features[:, frame]))
    same(pose, total - total[:, :, :1])
    for frame, candidates in seen.items():
        nearest = min(distance for distance, _ in candidates)
        assert any(torch.allclose(features[:, frame], f, atol=1e-5) for distance, f in candidates if distance == nearest)


def test_windows_pass_into_one_another():
    """A person who stands still: what windows make of their first and last frames differs, and the blend evens that out."""
    pipe, jumps = diffpose_pipeline("mixste"), []
    keypoints = keypoints_of(batch=1, frames=1).expand(-1, 36, -1, -1)
    for overlap in (0, 6):
        pipe.register_to_config(window_overlap=overlap)
        steps = pipe(keypoints, image_size=IMAGE, num_hypotheses=1).lifted.diff(dim=1).norm(dim=-1).mean((0, 2))
        jumps.append(steps[[8, 17, 26]].mean())
    assert jumps[1] < jumps[0] / 2


def test_a_lifter_in_millimetres_gives_metres():
    metres, millimetres = (diffpose_pipeline("mixste") for _ in range(2))
    millimetres.lifter.register_to_config(unit_scale=1000.0)
    keypoints = keypoints_of(frames=12)
    same(run(millimetres, keypoints), run(metres, keypoints), atol=1e-4)


# Mirroring


@all_lifters
@pytest.mark.parametrize("start", ["mixture", "noisy", "released"])
def test_mirrored_input_gives_mirrored_hypotheses_of_the_other_view(kind, start):
    pipe, keypoints = diffpose_pipeline(**kind), keypoints_of(frames=12)
    confidence = torch.rand(2, 12, 17, generator=seeded(4))
    confidence_m = mirror_pixels(torch.stack([confidence, confidence], -1))[..., 1]
    noise, eta = draws(3, 2, 4, 12), 0.0 if start == "released" else 1.0
    partner = [1, 0, 3, 2]  # made in the other view
    options = {"num_hypotheses": 4, "start": start, "flip": "alternate", "eta": eta, "num_inference_steps": 3}
    out = run(pipe, keypoints, confidence=confidence, noise=noise, **options)
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-2
    mirrored = run(
        pipe, mirror_pixels(keypoints), confidence=confidence_m, noise=mirror_noise(noise)[:, :, partner], max_batch_size=5, **options
    )
    same(mirrored, mirror_pose(out[:, partner]), atol=2e-4)


@all_lifters
def test_alternate_hypotheses_come_from_the_mirrored_view(kind):
    pipe, keypoints, noise = diffpose_pipeline(**kind), keypoints_of(frames=20), draws(1, 2, 5, 20)
    options = {"num_hypotheses": 5, "num_inference_steps": 2}
    out = run(pipe, keypoints, noise=noise, flip="alternate", **options)
    straight = run(pipe, keypoints, noise=noise, flip=False, **options)
    mirrored = mirror_pose(run(pipe, mirror_pixels(keypoints), noise=mirror_noise(noise), flip=False, **options))
    same(out[:, 0::2], straight[:, 0::2], atol=1e-4)
    same(out[:, 1::2], mirrored[:, 1::2], atol=1e-4)
    for size in (1, 2):  # groups of one and of three hypotheses begin at odd ones, too
        same(run(pipe, keypoints, noise=noise, flip="alternate", max_batch_size=size, **options), out, atol=1e-4)


def test_released_hypotheses_of_two_views():
    pipe, keypoints = diffpose_pipeline(), keypoints_of()
    calls = spy(pipe.denoiser)
    out = run(pipe, keypoints, num_hypotheses=5, start="released", flip="alternate")
    assert {hypotheses for _, hypotheses in calls} == {1}, "equal hypotheses are made once"
    for k in range(5):
        assert torch.equal(out[:, k], out[:, k % 2])
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-2
    same(run(pipe, keypoints, num_hypotheses=1, start="released", flip="alternate"), out[:, :1])


def test_mirroring_about_the_canonical_cameras_centre():
    pipe = diffpose_pipeline(stirred(GraFormerLifter(**SMALL, canonical_camera=(2.3, 2.2, 0.15, 0.05))))
    keypoints, noise = keypoints_of(), draws(1, 2, 2, 7)
    for start in ("mixture", "noisy"):
        out = run(pipe, keypoints, noise=noise, num_hypotheses=2, flip="alternate", start=start)
        mirrored = run(pipe, mirror_pixels(keypoints), noise=mirror_noise(noise).flip(2), num_hypotheses=2, flip="alternate", start=start)
        same(mirrored, mirror_pose(out.flip(1)), atol=1e-4)


@pytest.mark.parametrize("flip", ["alternate", "lifter"])
def test_the_lifted_pose_is_that_of_both_views(flip):
    pipe, keypoints = diffpose_pipeline(), keypoints_of()
    options = {"image_size": IMAGE, "num_hypotheses": 1}
    one, other = (pipe(k, flip=False, **options).lifted for k in (keypoints, mirror_pixels(keypoints)))
    same(pipe(keypoints, flip=flip, **options).lifted, (one + mirror_pose(other)) / 2)


# Mixtures


def test_the_default_mixture_is_a_component_around_every_keypoint():
    pipe, keypoints = diffpose_pipeline(), keypoints_of()
    confidence = torch.rand(2, 7, 17, generator=seeded(1))
    mixture = PoseMixture.from_keypoints(keypoints, confidence, unit=IMAGE[0] / 2)
    expected = run(pipe, keypoints, confidence=confidence)
    same(run(pipe, keypoints, confidence=confidence, mixture=mixture), expected, atol=1e-4)
    same(run(pipe, keypoints), run(pipe, keypoints, confidence=torch.ones(2, 7, 17)), atol=0)
    assert (run(pipe, keypoints) - expected).abs().max() > 1e-3


def test_a_wide_joint_spreads_its_hypotheses():
    pipe, keypoints = diffpose_pipeline(), keypoints_of(batch=1, frames=2)
    pipe.scheduler.register_to_config(pose_scale=1e-3)
    scale = torch.full((1, 2, 17), 1.0)
    narrow = PoseMixture.from_keypoints(keypoints, scale=scale)
    scale[..., 13] = 60
    wide = PoseMixture.from_keypoints(keypoints, scale=scale)
    sigma = (1 - pipe.scheduler.alphas_cumprod[50]).sqrt().item()
    spread = starts(pipe, keypoints, mixture=wide, num_hypotheses=400)[0, :, 0, :, :2].std(0)
    torch.testing.assert_close(spread, sigma * scale[0, 0, :, None].expand(17, 2) * 2 / IMAGE[0], rtol=0.15, atol=0)
    little, much = (run(pipe, keypoints, mixture=m, num_hypotheses=50).std(1)[0, 0].norm(dim=-1) for m in (narrow, wide))
    assert much[13] > 3 * little[13]


def two_places(keypoints, apart=100.0, weight=0.5, scale=1.0):
    """Every joint at one of two places beside each other, in pixels."""
    off = torch.tensor([apart, 0.0])
    means = torch.stack([keypoints - off, keypoints + off], dim=-2)
    weights = torch.tensor([1 - weight, weight]).expand(means.shape[:-1]).clone()
    return PoseMixture(weights, means, scale * torch.eye(2).expand(*means.shape, 2).clone())


@pytest.mark.parametrize("start", ["mixture", "noisy", "released"])
def test_a_mixture_with_two_modes_gives_starts_at_both(start):
    pipe, keypoints = diffpose_pipeline(), keypoints_of(batch=1, frames=3)
    mixture = two_places(keypoints, weight=0.3)
    # With eta = 1 released hypotheses differ, too.
    seen = starts(pipe, keypoints, mixture=mixture, start=start, num_hypotheses=200, eta=1.0, num_inference_steps=2)
    network = pipe.prepare_inputs(keypoints, image_size=IMAGE).network_2d
    off = (seen[..., 0] - network[:, None, ..., 0])[0] * IMAGE[0] / 2
    assert ((off.abs() - 100).abs() < 6).all(), "at one place or the other"
    right = off > 0
    assert (right == right[:, :1]).all(), "the same in all frames"
    assert right[:, 0].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (right[:, 0] != right[:, 0, :1]).any(), "joints choose for themselves"


def test_components_without_weight_are_never_drawn():
    pipe, keypoints = diffpose_pipeline(), keypoints_of(batch=1, frames=3)
    for weight in (0.0, 1.0):
        off = starts(pipe, keypoints, mixture=two_places(keypoints, weight=weight), num_hypotheses=50)[..., 0] - (
            keypoints[:, None, ..., 0] * 2 / IMAGE[0] - 1
        )
        assert ((off > 0) == bool(weight)).all()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("flip", FLIPS)
def test_equal_components_are_one(start, flip):
    pipe, keypoints = diffpose_pipeline(scheduler=one_component()), keypoints_of(frames=3)
    one = PoseMixture.from_keypoints(keypoints, scale=8.0)
    two = two_places(keypoints, apart=0.0, scale=8.0)
    for noise in (None, draws(1, 2, 3, 3)):
        same(*(run(pipe, keypoints, mixture=m, start=start, flip=flip, noise=noise) for m in (one, two)), atol=1e-4)


@pytest.mark.parametrize("batched", [True, False])
def test_a_mixture_alone_is_enough(batched):
    pipe, keypoints = diffpose_pipeline("frame"), keypoints_of()
    mixture = two_places(keypoints, weight=0.3)
    if not batched:
        mixture, keypoints = mixture[0], keypoints[0]
    options = {"image_size": IMAGE, "num_hypotheses": 3}
    out = pipe(mixture=mixture, generator=seeded(), **options)
    given = pipe(mixture.mean(), mixture=mixture, generator=seeded(), **options)
    elsewhere = pipe(keypoints - 30, mixture=mixture, generator=seeded(), **options)
    assert out.hypotheses.shape == ((2, 3, 7, 17, 3) if batched else (3, 7, 17, 3))
    for name in ("hypotheses", "pose", "lifted", "root"):
        assert torch.equal(out[name], given[name])
    same(mixture.mean(), keypoints - torch.tensor([40.0, 0.0]), atol=1e-3)
    assert (elsewhere.lifted - out.lifted).abs().max() > 1e-3
    doubles = mixture.to(torch.float64)
    same(pipe(mixture=doubles, generator=seeded(), **options).hypotheses, out.hypotheses, atol=1e-3)


def test_mixtures_are_seen_through_the_camera():
    """The same uncertain person, photographed by two cameras, one of which distorts."""
    pose, root = walk(1, 2)
    pipe, results = diffpose_pipeline("frame"), []
    for camera in (Camera([3000.0, 3000.0], [960.0, 540.0]), h36m_camera(0)):
        points = camera.project(pose + root[:, :, None])
        scale = camera.focal.mean().item() * 0.005
        mixture = PoseMixture.from_keypoints(points, scale=scale)
        results.append(starts(pipe, points, mixture=mixture, image_size=None, camera=camera, noise=draws(1, 1, 3, 2)))
    near, far = results
    same(far[..., :2], near[..., :2], atol=2e-3)
    spread = (near - near.mean(1, keepdim=True))[..., :2].norm(dim=-1)
    assert spread.mean() > 5e-3


# The paper's start


@pytest.mark.parametrize("components", [1, 2])
def test_the_prior_is_fitted_to_lifted_draws(components, capsys):
    if components > 1:
        pytest.importorskip("sklearn")
    pipe, keypoints = diffpose_pipeline("graformer", scheduler=one_component(components)), keypoints_of(batch=1, frames=1)
    mixture = PoseMixture.from_keypoints(keypoints, scale=6.0)
    seen = starts(pipe, keypoints, mixture=mixture, start="prior", num_hypotheses=600)[0, :, 0]
    uv = mixture.transformed(lambda p: pipe.to_network(p, None, IMAGE)).sample(600, generator=seeded())[:, 0, 0]
    pose = pipe.lift(uv[:, None], torch.ones(600, 1, 17))[0][:, 0]
    lifted = torch.cat([uv, pose], dim=-1)
    # Fitted to 64 draws; the regularisation alone is 1 mm.
    deviation = (lifted.var(0) + 1e-6).sqrt()
    assert ((seen.mean(0) - lifted.mean(0)).abs() < 0.6 * deviation).all()
    ratio = seen.std(0) / deviation
    assert ratio.min() > 0.6 and ratio.max() < 1.6
    assert capsys.readouterr().err == "", "the progress bar is off"


# Inputs


def test_nan_means_not_observed():
    pipe, keypoints = diffpose_pipeline("frame"), keypoints_of(frames=12)
    hidden = torch.rand(2, 12, 17, generator=seeded(1)) < 0.3
    hidden[:, 4] = True
    variants = [
        run(pipe, torch.where(hidden[..., None], torch.nan, keypoints)),
        run(pipe, keypoints, confidence=(~hidden).float()),
        run(pipe, torch.where(hidden[..., None], -777.0, keypoints), confidence=~hidden),
    ]
    assert variants[0].isfinite().all()
    for other in variants[1:]:
        assert torch.equal(other, variants[0])
    assert (run(pipe, keypoints) - variants[0]).abs().max() > 1e-3
    spread = starts(pipe, torch.where(hidden[..., None], torch.nan, keypoints), num_hypotheses=30)[..., :2].std(1).norm(dim=-1)
    assert spread[hidden].mean() > 5 * spread[~hidden].mean(), "what was not observed is uncertain"


def test_other_skeletons_are_converted():
    pipe = diffpose_pipeline(hidden_when_converted=[9, 10])
    coco = torch.rand(6, 17, 2, generator=seeded()) * 400 + 300
    assert run(pipe, coco, skeleton="coco_17").shape == (3, 6, 17, 3)


KEYPOINTS = keypoints_of()  # (2, 7, 17, 2)
NOISE = torch.zeros(2, 3, 7, 17, 5)
MIXTURE = PoseMixture.from_keypoints(KEYPOINTS, scale=5.0)

BAD_CALLS = {
    "nothing": ({"keypoints_2d": None}, "pass keypoints_2d, or a mixture"),
    "no image size": ({"image_size": None}, r"image_size=\(width, height\)"),
    "normalised": ({"keypoints_2d": KEYPOINTS / 1920}, "look normalised"),
    # mixture
    "mixture, type": ({"mixture": KEYPOINTS}, "mixture must be a probpose.mixtures.PoseMixture, got Tensor"),
    "mixture, joints": ({"mixture": MIXTURE.select(range(16))}, "mixture holds 16 joints, the model has 17"),
    "mixture, dimension": ({"mixture": PoseMixture.from_keypoints(torch.ones(2, 7, 17, 3))}, "2D positions in pixels, got dimension 3"),
    "mixture, frames": ({"mixture": MIXTURE[:, :6]}, r"mixture is over \(2, 6\), but keypoints_2d has shape \(2, 7, 17, 2\)"),
    "mixture, clip": ({"mixture": MIXTURE[0]}, r"mixture is over \(7,\), but keypoints_2d has shape \(2, 7, 17, 2\)"),
    "mixture, one pose": ({"mixture": MIXTURE[0, 0], "keypoints_2d": None}, r"over \(\[batch,\] frames\), got one over \(\)"),
    "mixture, text beside": ({"mixture": MIXTURE, "keypoints_2d": "walk"}, "keypoints_2d must be a numeric array.*str"),
    "mixture, skeleton": ({"mixture": MIXTURE, "skeleton": "coco_17"}, "joint set 'h36m_17', got skeleton='coco_17'"),
    "mixture, own skeleton": (
        {"mixture": PoseMixture.from_keypoints(KEYPOINTS, skeleton="coco_17")}, "'h36m_17', got mixture.skeleton='coco_17'"
    ),
    "mixture, normalised": ({"mixture": PoseMixture.from_keypoints(KEYPOINTS / 1920), "keypoints_2d": None}, "look normalised"),
    # sampling
    **{f"K {v!r}": ({"num_hypotheses": v}, f"num_hypotheses must be an integer of at least 1, got {v!r}") for v in (0, -1, True, 2.0, "2")},
    **{f"steps {v!r}": ({"num_inference_steps": v}, f"num_inference_steps must be an integer from 1 to 998, got {v!r}")
       for v in (0, -3, False, 1.5)},
    "too many steps": ({"num_inference_steps": 52}, "num_inference_steps must be an integer from 1 to 51 with start_timestep 50, got 52"),
    "start": ({"start": "middle"}, "start must be one of.*mixture.*noisy.*released.*prior.*'middle'"),
    **{f"flip {v!r}": ({"flip": v}, f"flip must be one of.*alternate.*lifter.*False.*got {v!r}") for v in (True, "every_step")},
    **{f"eta {v!r}": ({"eta": v}, rf"eta must lie in 0\.\.1, got {v!r}") for v in (-0.1, 1.5, "1", True, math.nan)},
    "generators": ({"generator": [seeded()]}, r"one per clip \(2\)"),
    "seed": ({"generator": 42}, "torch.Generator.*got 42"),
    "noise, joints": ({"noise": NOISE[:, :, :, 1:]}, r"noise must have shape \(2, 3, 7, 17, 5\).*got \(2, 3, 7, 16, 5\)"),
    "noise, of poses alone": ({"noise": NOISE[..., :3]}, r"noise must have shape \(2, 3, 7, 17, 5\).*got \(2, 3, 7, 17, 3\)"),
    "noise, nan": ({"noise": NOISE + math.nan}, "noise must be finite"),
    "noise, draws": ({"noise": NOISE.expand(2, -1, -1, -1, -1, -1), "eta": 1.0}, "1 draw or at least 3 in 3 steps, got 2"),
    **{f"batch {v!r}": ({"max_batch_size": v}, f"max_batch_size must be an integer of at least 1, got {v!r}") for v in (0, 1.0)},
    "aggregation": ({"aggregation": "best"}, "aggregation must be None.*'best'"),
    "calibrated": ({"calibrated": True}, "calibrated=True needs a pipeline with a calibrator"),
    "output type": ({"output_type": "pil"}, "output_type must be 'pt' or 'np'"),
    "fps": ({"fps": 0}, "fps must be a positive number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return diffpose_pipeline()


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(pipe, arguments, message):
    calls = spy(pipe.denoiser)
    call = {"keypoints_2d": KEYPOINTS, "image_size": IMAGE, "num_hypotheses": 3, "num_inference_steps": 3}
    with pytest.raises(ValueError, match=message):
        pipe(**call | arguments)
    assert not calls, "the network was called in spite of bad input"


def test_noise_for_the_steps_that_are_visited():
    """Uniform spacing may visit more steps than were asked for."""
    pipe = diffpose_pipeline(scheduler=GMMScheduler())
    with pytest.raises(ValueError, match="1 draw or at least 6 in 6 steps, got 5"):
        run(pipe, KEYPOINTS, noise=draws(5, 2, 3, 7), eta=1.0, num_inference_steps=5)
    assert run(pipe, KEYPOINTS, noise=draws(6, 2, 3, 7), eta=1.0, num_inference_steps=5).isfinite().all()


# Output


def test_output_types(pipe):
    options = {"image_size": IMAGE, "num_hypotheses": 3}
    out = pipe(KEYPOINTS, generator=seeded(), **options)
    arrays = pipe(KEYPOINTS, generator=seeded(), output_type="np", **options)
    values = pipe(KEYPOINTS, generator=seeded(), return_dict=False, **options)
    assert isinstance(out, ProbPosePipelineOutput) and len(values) == 5 and isinstance(values[4], Camera)
    for name in ("hypotheses", "pose", "uncertainty", "root", "lifted"):
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], out[name].numpy())
    for name, value in zip(("hypotheses", "pose", "uncertainty", "root"), values):
        assert torch.equal(value, out[name])
    same(out.pose, out.hypotheses.mean(1))


def test_defaults_are_the_constructors():
    choice = {"num_hypotheses": 4, "num_inference_steps": 3, "start": "noisy", "flip": "alternate"}
    pipe = diffpose_pipeline(**{f"default_{name}": value for name, value in choice.items()}, default_aggregation="jpma")
    plain = diffpose_pipeline()
    options = {"image_size": IMAGE}
    out = pipe(KEYPOINTS, generator=seeded(), **options)
    spelled = plain(KEYPOINTS, generator=seeded(), aggregation="jpma", **choice, **options)
    assert torch.equal(out.hypotheses, spelled.hypotheses) and torch.equal(out.pose, spelled.pose)
    published = plain.settings()
    assert (published.num_hypotheses, published.num_inference_steps, published.start, published.flip) == (5, 2, "mixture", False)
    for name, bad in (("num_hypotheses", 0), ("num_inference_steps", 0), ("start", "middle"), ("flip", True)):
        with pytest.raises(ValueError, match=f"^{name} must"):
            diffpose_pipeline(**{f"default_{name}": bad})


def test_callbacks_see_every_step_and_may_change_the_sample(pipe):
    options = {"num_hypotheses": 4, "num_inference_steps": 3}
    seen = []

    def watch(caller, step, timestep, tensors):
        assert caller is pipe and set(tensors) == {"sample", "clean"}
        seen.append((step, timestep, tuple(tensors["sample"].shape), tuple(tensors["clean"].shape)))

    plain = run(pipe, KEYPOINTS, **options)
    assert torch.equal(run(pipe, KEYPOINTS, callback_on_step_end=watch, **options), plain)
    shape = (2, 4, 7, 17, 5)
    assert seen == [(0, 50, shape, shape), (1, 33, shape, shape), (2, 16, shape, shape)]
    seen.clear()
    run(pipe, keypoints_of(frames=16), callback_on_step_end=watch, max_batch_size=1, **options)
    assert [step for step, *_ in seen] == [0, 1, 2, 0, 1, 2] and seen[0][2] == (2, 2, 16, 17, 5), "two groups of two hypotheses"

    def lift(caller, step, timestep, tensors):
        offset = torch.zeros(17, 5)
        offset[3, 2] = 0.5
        return {"sample": tensors["sample"] + offset} if step == 2 else None

    expected = plain.clone()
    expected[..., 3, 0] += 0.5
    same(run(pipe, KEYPOINTS, callback_on_step_end=lift, **options), expected)


def test_progress_bar(capsys):
    pipe = diffpose_pipeline()
    run(pipe, KEYPOINTS)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    run(pipe, KEYPOINTS, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err


# Networks


@all_lifters
def test_a_context_projection_of_zero_is_no_context(kind):
    if not kind.get("context", True):
        return
    listening, plain = diffpose_pipeline(**kind), diffpose_pipeline(**kind | {"context": False})
    state = {name: value for name, value in listening.denoiser.state_dict().items() if "context" not in name}
    plain.denoiser.load_state_dict(state)
    heard = run(listening, KEYPOINTS, flip="alternate")
    assert (heard - run(plain, KEYPOINTS, flip="alternate")).abs().max() > 1e-2
    for parameter in listening.denoiser.context_projection.parameters():
        torch.nn.init.zeros_(parameter)
    same(run(listening, KEYPOINTS, flip="alternate"), run(plain, KEYPOINTS, flip="alternate"))


@all_lifters
def test_attention_backends(kind):
    pipe = diffpose_pipeline(**kind)
    expected = run(pipe, KEYPOINTS)
    for network in (pipe.denoiser, pipe.lifter):
        network.set_attention_backend("_native_math")
    same(run(pipe, KEYPOINTS), expected, atol=1e-4)
    with pytest.raises(RuntimeError, match="'xformers' cannot run here"):
        pipe.denoiser.set_attention_backend("xformers")


@all_lifters
def test_half_precision_weights(kind):
    pipe = diffpose_pipeline(**kind)
    pipe.denoiser.to(torch.bfloat16)
    pipe.lifter.to(torch.bfloat16)
    out = run(pipe, KEYPOINTS, flip="alternate")
    assert out.dtype == torch.float32 and out.isfinite().all()


def test_numbers_that_overflow_are_an_error_not_a_result():
    pipe = diffpose_pipeline()
    torch.nn.init.constant_(pipe.denoiser.trunk.conv_out.bias, torch.nan)
    with pytest.raises(ValueError, match=r"check the networks' weights \(torch.float32\)"):
        run(pipe, KEYPOINTS)


@all_lifters
@pytest.mark.parametrize("loader", [ProbPosePipeline, DiffPosePipeline])
def test_save_and_load(kind, loader, tmp_path):
    defaults = {
        "default_num_hypotheses": 3, "default_num_inference_steps": 3, "default_start": "noisy", "default_flip": "alternate",
        "default_aggregation": None, "window_overlap": 4, "hidden_when_converted": [9, 10],
    }  # fmt: skip
    pipe = diffpose_pipeline(**kind, **defaults)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiffPosePipeline"
    assert index["lifter"] == ["probpose.models", type(pipe.lifter).__name__]
    assert index["scheduler"] == ["probpose.schedulers", "GMMScheduler"]
    loaded = quiet(loader.from_pretrained(tmp_path))
    assert type(loaded) is DiffPosePipeline and not loaded.lifter.training
    assert {name: loaded.config[name] for name in defaults} == defaults
    keypoints = keypoints_of(frames=12)
    first, second = (p(keypoints, image_size=IMAGE, generator=seeded()) for p in (pipe, loaded))
    for name in ("hypotheses", "lifted"):  # to rounding, which depends on where weights lie in memory
        same(first[name], second[name], atol=1e-4)


CAMERA = (2.29, 2.29, 0.0, 0.0)


@pytest.mark.parametrize(
    ("lifter", "denoiser", "message"),
    [
        (lambda: GraFormerDenoiser(**SMALL), {}, "lifter must be a network that takes 2D positions alone.*GraFormerDenoiser"),
        (lambda: FrameTransformerModel(**SMALL), {"canonical_camera": CAMERA}, "2D positions alone.*in_channels=2.*FrameTransformerModel"),
        (lambda: MixSTEModel(num_frames=9, **SMALL), {}, "2D positions alone.*in_channels=2.*MixSTEModel"),
        (LIFTERS["frame"], {}, r"canonical_camera is \[2.29, 2.29, 0.0, 0.0\] in the lifter and None in the denoiser"),
        (LIFTERS["graformer"], {"canonical_camera": CAMERA}, "canonical_camera is None in the lifter"),
        (LIFTERS["graformer"], {"skeleton": "mpi_inf_3dhp_17"}, "skeleton is h36m_17 in the lifter and mpi_inf_3dhp_17 in the denoiser"),
        (
            LIFTERS["graformer"],
            {"num_joints": 24, "skeleton": "smpl_24"},
            "num_joints is 17 in the lifter and 24 in the denoiser; skeleton",
        ),
        (
            lambda: MixSTEModel(num_frames=9, in_channels=2, use_timestep=False, input_skeleton="coco_17", **SMALL),
            {},
            "input_skeleton is coco_17 in the lifter and h36m_17 in the denoiser",
        ),
        (LIFTERS["graformer"], {"context_channels": 8}, "features are 16 per joint, but the denoiser takes context_channels=8"),
        (
            LIFTERS["frame"],
            {"context_channels": 16, "context_level": "joint", "canonical_camera": CAMERA},
            "features are 16 per frame, but the denoiser takes context_channels=16 with context_level='joint'",
        ),
    ],
)
def test_networks_that_do_not_fit(lifter, denoiser, message):
    with pytest.raises(ValueError, match=message):
        DiffPosePipeline(GraFormerDenoiser(**SMALL | denoiser), lifter(), GMMScheduler())


def test_parts_of_other_systems_are_refused():
    with pytest.raises(ValueError, match=r"denoiser must be a network of \(u, v, x, y, z\).*got MixSTEModel"):
        DiffPosePipeline(MixSTEModel(num_frames=9, **SMALL), LIFTERS["mixste"](), GMMScheduler())
    with pytest.raises(ValueError, match="scheduler must be a GMMScheduler, got D3DPScheduler"):
        DiffPosePipeline(GraFormerDenoiser(**SMALL), LIFTERS["graformer"](), D3DPScheduler())


def test_a_denoiser_of_frames_as_the_lifter():
    """The denoiser of D3DP at its noisiest timestep lifts."""
    denoiser = stirred(FrameTransformerModel(num_frames=9, **SMALL))
    pipe = diffpose_pipeline(denoiser.to_lifter(999))
    keypoints = keypoints_of(frames=9)
    network = pipe.prepare_inputs(keypoints, image_size=IMAGE).network_2d
    with torch.no_grad():
        expected = denoiser(network, torch.zeros(2, 9, 17, 3), 999).sample
    same(pipe(keypoints, image_size=IMAGE).lifted, expected - expected[:, :, :1], atol=1e-4)


# Cost


def test_memory_of_the_published_sizes():
    """243 frames; a second clip of the same length needs no more."""
    code = """
import resource, torch
torch.set_num_threads(1)
from probpose.models import GraFormerDenoiser, GraFormerLifter
from probpose.pipelines import DiffPosePipeline
from probpose.schedulers import GMMScheduler
pipe = DiffPosePipeline(GraFormerDenoiser().eval(), GraFormerLifter().eval(), GMMScheduler())
pipe.set_progress_bar_config(disable=True)
def run(frames, hypotheses):
    pipe(1000 * torch.rand(frames, 17, 2), image_size=(1000, 1000), num_hypotheses=hypotheses, aggregation=None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = run(2, 1)
print(run(243, 4) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 400, "MiB"
