"""The whole call: numbers of the original, and what must not change them."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from safetensors.torch import load_file
from tiny_pipelines import (
    IMAGE,
    both_models,
    frame_pipeline,
    keypoints_of,
    mirror_pixels,
    mirror_pose,
    mixste_pipeline,
    quiet,
    seeded,
    spy,
    walk,
)

from probpose.aggregation import JPMA, GeometricMedianAggregator, MeanAggregator
from probpose.geometry import Camera, denormalise_screen, h36m_camera, reexpress_keypoints, select_by_reprojection
from probpose.hub import convert_original
from probpose.pipelines import D3DPPipeline, ProbPosePipelineOutput
from probpose.schedulers import D3DPScheduler

TESTS = Path(__file__).resolve().parents[1]
PARITY = TESTS.parents[1] / "shared" / "parity" / "d3dp"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


def same(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# Numbers of the original


def published_pipeline(weights, **config):
    return quiet(D3DPPipeline(denoiser=convert_original("d3dp", weights, **config), scheduler=D3DPScheduler()))


def reproduce(pipe, keypoints_2d, noise, predictions, unit=1.0):
    """The call whose hypotheses are the original's last predictions, with its root joint set to zero."""
    out = pipe(
        denormalise_screen(keypoints_2d, (1000, 1000)), image_size=(1000, 1000), num_hypotheses=noise.shape[2],
        num_inference_steps=len(noise), flip="every_step", aggregation=None, noise=noise,
    )  # fmt: skip
    expected = predictions[:, -1].clone() / unit
    expected[..., pipe.root_index, :] = 0
    same(out.hypotheses, expected, atol=1e-4)
    assert out.pose is None and out.uncertainty is None


def test_hypotheses_are_the_originals():
    golden = load_file(TESTS / "golden" / "d3dp.safetensors")
    pipe = published_pipeline({k.removeprefix("checkpoint/"): v for k, v in golden.items() if k.startswith("checkpoint/")})
    reproduce(pipe, golden["keypoints_2d"][:1], golden["sample/k2/noise"], golden["sample/k2/preds"])


@needs_parity
@pytest.mark.parametrize(("case", "skeleton", "unit"), [("k1", "h36m_17", 1), ("k2", "h36m_17", 1), ("hp3d_k2", "mpi_inf_3dhp_17", 1000)])
def test_hypotheses_are_the_originals_in_every_stored_case(case, skeleton, unit):
    io = load_file(PARITY / "io.safetensors")
    config = json.loads((PARITY / "config.json").read_text())
    assert {key.split("/")[1] for key in io if key.startswith("sample/")} == {"k1", "k2", "hp3d_k2"}
    pipe = published_pipeline(
        load_file(PARITY / "checkpoint.safetensors"), skeleton=skeleton, num_attention_heads=config["hyper_parameters"]["num_heads"]
    )
    assert pipe.root_index == (config["hyper_parameters"]["hp3d_root"] if unit == 1000 else 0)
    reproduce(pipe, io["inputs/keypoints_2d"], io[f"sample/{case}/noise"], io[f"sample/{case}/preds"], unit)


def test_jpma_with_the_true_root_is_the_originals():
    io = load_file(TESTS / "golden" / "metrics_d3dp.safetensors")
    pixels, root = denormalise_screen(io["inputs/keypoints_2d"], (1000, 1000)), io["inputs/root_trajectory"]
    pipe = mixste_pipeline()
    inputs = pipe.prepare_inputs(pixels, camera=h36m_camera(1), root=root)
    for iteration in range(5):
        hypotheses = io["agg/hypotheses"][:, iteration]
        out = pipe.finish(hypotheses, inputs, pipe.choose_aggregator("jpma"))
        index = io["agg/jpma_index"][:, iteration].long()
        expected = hypotheses.gather(1, index[:, None, ..., None].expand(-1, 1, -1, -1, 3))[:, 0]
        same(out.pose, expected)
        same(out.root, root[:, :, 0], atol=0)


# Randomness


@both_models
def test_the_seed_decides(make_pipe):
    pipe, keypoints = make_pipe(), keypoints_of()

    def run(seed):
        return pipe(keypoints, image_size=IMAGE, num_hypotheses=3, num_inference_steps=3, generator=seeded(seed))

    a, b, c = run(1), run(1), run(2)
    for name in ("hypotheses", "pose", "uncertainty", "root"):
        assert torch.equal(a[name], b[name])
    assert (a.hypotheses - c.hypotheses).abs().max() > 1e-3
    spread = a.hypotheses.std(1)[..., 1:, :]
    assert (spread > 1e-5).all(), "every hypothesis has noise of its own"
    torch.manual_seed(5)
    first = pipe(keypoints, image_size=IMAGE, num_hypotheses=2, num_inference_steps=2).hypotheses
    torch.manual_seed(5)
    assert torch.equal(first, pipe(keypoints, image_size=IMAGE, num_hypotheses=2, num_inference_steps=2).hypotheses)


@pytest.mark.parametrize("frames", [5, 20])
@both_models
def test_max_batch_size_changes_nothing(make_pipe, frames):
    pipe, keypoints = make_pipe(), keypoints_of(frames=frames)
    calls = spy(pipe.denoiser)
    results = []
    for size in (1, 7, 256):
        calls.clear()
        results.append(
            pipe(
                keypoints, image_size=IMAGE, num_hypotheses=3, num_inference_steps=2, flip="last_step",
                generator=seeded(), max_batch_size=size,
            ).hypotheses
        )  # fmt: skip
        assert max(windows * hypotheses for windows, hypotheses in calls) <= size
    for other in results[1:]:
        same(other, results[0])


@pytest.mark.parametrize("frames", [6, 20])
@both_models
def test_a_clip_with_its_own_generator_does_not_see_its_batch(make_pipe, frames):
    pipe, keypoints = make_pipe(), keypoints_of(batch=3, frames=frames)

    def run(rows):
        return pipe(
            keypoints[rows], image_size=IMAGE, num_hypotheses=2, num_inference_steps=2, generator=[seeded(10 + row) for row in rows]
        )

    together, reordered = run([0, 1, 2]), run([2, 0])
    for i, row in enumerate([2, 0]):
        for name in ("hypotheses", "pose", "uncertainty", "root"):
            same(reordered[name][i], together[name][row], atol=1e-4 if name == "root" else 1e-5)


def test_the_first_hypotheses_do_not_depend_on_how_many_there_are():
    pipe, keypoints = frame_pipeline(), keypoints_of()
    few, many = (
        pipe(keypoints, image_size=IMAGE, num_hypotheses=k, num_inference_steps=2, generator=seeded(), aggregation=None).hypotheses
        for k in (2, 6)
    )
    same(many[:, :2], few)


class RecordingScheduler(D3DPScheduler):
    """Keeps the noise that it is given."""

    @functools.wraps(D3DPScheduler.step)
    def step(self, model_output, timestep, sample, **arguments):
        if timestep == self.timesteps[0]:
            self.noise = [sample]
        if arguments.get("variance_noise") is not None:
            self.noise.append(arguments["variance_noise"])
        return super().step(model_output, timestep, sample, **arguments)


@pytest.mark.parametrize("frames", [6, 12])
@both_models
def test_injected_noise_is_the_drawn_noise(make_pipe, frames):
    scheduler = RecordingScheduler()
    pipe, keypoints = make_pipe(scheduler), keypoints_of(frames=frames)
    options = {"image_size": IMAGE, "num_hypotheses": 3, "num_inference_steps": 4, "aggregation": None}
    drawn = pipe(keypoints, generator=seeded(3), **options).hypotheses
    noise = torch.stack(scheduler.noise).unflatten(1, (2, 3))
    assert noise.shape[0] == 4, "the start, and every step but the last"
    if noise.shape[3] != frames:  # the padding of a short clip has noise, too, but nobody can pass it
        return
    same(pipe(keypoints, noise=noise, **options).hypotheses, drawn)
    same(pipe(keypoints, noise=noise[0], generator=seeded(3), **options).hypotheses, drawn)
    same(pipe(keypoints[0], noise=noise[:, 0], **options).hypotheses, drawn[0])
    same(pipe(keypoints[0], noise=noise[:, 0].numpy().astype(np.float64), **options).hypotheses, drawn[0])
    same(pipe(keypoints[:, :], noise=torch.cat([noise, noise]), **options).hypotheses, drawn)


def test_injected_noise_is_enough_to_repeat_a_short_padded_clip():
    pipe, keypoints = mixste_pipeline(), keypoints_of(frames=4)
    noise = torch.randn(3, 2, 2, 4, 17, 3, generator=seeded())
    a, b = (
        pipe(keypoints, image_size=IMAGE, num_hypotheses=2, num_inference_steps=3, noise=noise, max_batch_size=size).hypotheses
        for size in (1, 256)
    )
    assert a.shape == (2, 2, 4, 17, 3)
    same(a, b)


# Clips of any length


def constant_pipeline(value, **model):
    """Whatever it sees, it answers `value (3,)` for every joint."""
    pipe = mixste_pipeline(model=model)
    torch.nn.init.zeros_(pipe.denoiser.proj_out.weight)
    pipe.denoiser.proj_out.bias.data = torch.tensor(value)
    return pipe


@pytest.mark.parametrize("frames", [1, 8, 9, 10, 25, 40])
def test_blending_keeps_a_constant(frames):
    pipe = constant_pipeline([0.3, -0.2, 0.5])
    out = pipe(keypoints_of(frames=frames), image_size=IMAGE, num_hypotheses=2, num_inference_steps=3, flip=False, aggregation="mean")
    expected = torch.tensor([0.3, -0.2, 0.5]).expand(2, 2, frames, 17, 3).clone()
    expected[..., 0, :] = 0
    same(out.hypotheses, expected)
    same(out.uncertainty, torch.zeros(2, frames, 17))


def test_windows_are_blended_by_a_triangle():
    pipe, keypoints = mixste_pipeline(window_overlap=4), keypoints_of(batch=1, frames=14)
    noise = torch.randn(1, 1, 14, 17, 3, generator=seeded())
    out = pipe(keypoints, image_size=IMAGE, num_hypotheses=1, num_inference_steps=1, flip=False, noise=noise, aggregation=None)
    inputs = pipe.prepare_inputs(keypoints, image_size=IMAGE)
    triangle = torch.tensor([1.0, 2, 3, 4, 5, 4, 3, 2, 1])[:, None, None]
    total, weight = torch.zeros(14, 17, 3), torch.zeros(14, 1, 1)
    with torch.no_grad():
        for start in (0, 5):
            frames = slice(start, start + 9)
            answer = pipe.denoiser(inputs.network_2d[:, frames], noise[0, :, frames].clamp(-1.1, 1.1), 999).sample[0]
            total[frames] += triangle * answer
            weight[frames] += triangle
    expected = (total / weight).clamp(-1.1, 1.1)
    expected[:, 0] = 0
    same(out.hypotheses[0, 0], expected)


@both_models
def test_a_short_clip_is_padded_only_for_a_model_that_needs_it(make_pipe):
    pipe = make_pipe()
    frames_seen = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: frames_seen.append(args[0].shape[1]))
    out = pipe(keypoints_of(frames=4), image_size=IMAGE, num_hypotheses=2, num_inference_steps=1)
    assert out.hypotheses.shape == (2, 2, 4, 17, 3)
    assert set(frames_seen) == {4 if "FrameTransformer" in type(pipe.denoiser).__name__ else 9}


@both_models
def test_one_frame(make_pipe):
    out = make_pipe()(keypoints_of(frames=1)[0], image_size=IMAGE, num_hypotheses=2, num_inference_steps=2)
    assert out.hypotheses.shape == (2, 1, 17, 3)
    assert out.pose.shape == (1, 17, 3) and out.uncertainty.shape == (1, 17) and out.root.shape == (1, 3)
    assert all(torch.isfinite(out[name]).all() for name in ("hypotheses", "pose", "uncertainty", "root"))


@both_models
def test_batched_and_unbatched_agree(make_pipe):
    pipe, keypoints = make_pipe(), keypoints_of(batch=1, frames=11)
    confidence = torch.linspace(0.2, 1, 11 * 17).reshape(1, 11, 17)
    root = walk(1, 11)[1]
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 2}
    batched = pipe(keypoints, confidence, root=root, generator=seeded(), **options)
    single = pipe(keypoints[0], confidence[0], root=root[0], generator=seeded(), **options)
    for name in ("hypotheses", "pose", "uncertainty", "root"):
        assert torch.equal(single[name], batched[name][0])


# What the input may look like


@pytest.mark.parametrize("convert", [
    lambda k: k.double(), lambda k: k.int(), lambda k: k.numpy(), lambda k: k.numpy().astype(np.uint16), lambda k: k.tolist(),
    lambda k: k.numpy()[::-1].copy()[::-1], lambda k: k.double().requires_grad_(),
])  # fmt: skip
def test_any_number_type(convert):
    pipe, keypoints = frame_pipeline(), keypoints_of(frames=4).round()
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 1}
    expected = pipe(keypoints, generator=seeded(), **options)
    out = pipe(convert(keypoints), generator=seeded(), **options)
    assert out.hypotheses.dtype == torch.float32 and not out.hypotheses.requires_grad
    assert torch.equal(out.hypotheses, expected.hypotheses)


def test_half_precision_keypoints():
    pipe, keypoints = frame_pipeline(), keypoints_of(frames=4).half()
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 1}
    out = pipe(keypoints, generator=seeded(), **options)
    assert torch.equal(out.hypotheses, pipe(keypoints.float(), generator=seeded(), **options).hypotheses)


@both_models
def test_half_precision_weights(make_pipe):
    pipe, keypoints = make_pipe(), keypoints_of(frames=9)
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 2, "aggregation": "mean"}
    expected = pipe(keypoints, generator=seeded(), **options).hypotheses
    pipe.denoiser.to(torch.bfloat16)
    out = pipe(keypoints, generator=seeded(), **options).hypotheses
    assert out.dtype == torch.float32
    same(out, expected, atol=5e-2)


def test_nan_means_not_observed():
    pipe, keypoints = frame_pipeline(), keypoints_of(frames=12)
    hidden = torch.rand(2, 12, 17, generator=seeded(1)) < 0.3
    hidden[:, 4] = True  # a frame without anyone
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 2, "aggregation": "jpma"}
    variants = [
        pipe(torch.where(hidden[..., None], torch.nan, keypoints), generator=seeded(), **options),
        pipe(keypoints, (~hidden).float(), generator=seeded(), **options),
        pipe(torch.where(hidden[..., None], -777.0, keypoints), ~hidden, generator=seeded(), **options),
        pipe(keypoints, torch.where(hidden, torch.nan, 1.0), generator=seeded(), **options),
    ]
    half_hidden = keypoints.clone()
    half_hidden[..., 1][hidden] = torch.nan
    variants.append(pipe(half_hidden, generator=seeded(), **options))
    for out in variants:
        for name in ("hypotheses", "pose", "uncertainty", "root"):
            assert torch.isfinite(out[name]).all()
            assert torch.equal(out[name], variants[0][name])
    seen = pipe(keypoints, generator=seeded(), **options)
    assert (seen.hypotheses - variants[0].hypotheses).abs().max() > 1e-3, "confidence matters to this model"


def test_gaps_are_filled_for_models_without_confidence():
    pipe, keypoints = mixste_pipeline(), keypoints_of(batch=1, frames=5)
    keypoints[0, :2, 3] = torch.nan  # takes the third frame
    keypoints[0, 3, 5] = torch.nan  # takes the frame before: a tie
    keypoints[0, :, 6] = torch.nan  # never seen: the mean of the frame's joints
    keypoints[0, 4] = torch.nan  # nobody: the frame before
    filled = pipe.prepare_inputs(keypoints, image_size=IMAGE).network_2d[0]
    assert torch.isfinite(filled).all()
    assert torch.equal(filled[0, 3], filled[2, 3]) and torch.equal(filled[3, 5], filled[2, 5])
    others = [j for j in range(17) if j != 6]
    same(filled[:, 6], filled[:, others].mean(1))
    assert torch.equal(filled[4, others], torch.stack([filled[2 if j == 5 else 3, j] for j in others]))


def test_other_skeletons_are_converted():
    pipe = frame_pipeline(hidden_when_converted=[7, 9])
    coco = torch.rand(6, 17, 2, generator=seeded()) * 400 + 300
    inputs = pipe.prepare_inputs(coco, image_size=IMAGE, skeleton="coco_17")
    assert inputs.keypoints_2d.shape == (1, 6, 17, 2) and not inputs.batched
    same(inputs.keypoints_2d[0, :, 0], (coco[:, 11] + coco[:, 12]) / 2, atol=1e-3)
    assert (inputs.confidence[..., [7, 9]] == 0).all() and inputs.keypoints_2d[..., [7, 9], :].isnan().all()
    out = pipe(coco, image_size=IMAGE, skeleton="coco_17", num_hypotheses=2, num_inference_steps=1)
    assert out.hypotheses.shape == (2, 6, 17, 3)


def test_a_model_that_reads_another_skeleton_cannot_compare_reprojections():
    pipe = mixste_pipeline(model={"input_skeleton": "coco_17"})
    coco = torch.rand(9, 17, 2, generator=seeded()) * 400 + 300
    calls = spy(pipe.denoiser)
    with pytest.raises(ValueError, match=r"coco_17.*h36m_17.*mean"):
        pipe(coco, image_size=IMAGE)
    assert not calls, "refused before the work"
    out = pipe(coco, image_size=IMAGE, num_hypotheses=2, num_inference_steps=1, aggregation="mean")
    assert out.root is None and out.pose.shape == (9, 17, 3)


def test_published_flip_of_a_model_that_reads_another_skeleton():
    """2D and 3D have left and right at different places."""
    pipe = mixste_pipeline(model={"input_skeleton": "coco_17"})
    keypoints = torch.rand(9, 17, 2, generator=seeded()) * 400 + 300
    noise = torch.randn(2, 2, 9, 17, 3, generator=seeded())
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 2, "aggregation": None}
    out = pipe(keypoints, noise=noise, **options).hypotheses
    mirrored = pipe(mirror_pixels(keypoints, skeleton="coco_17"), noise=mirror_pose(noise), **options).hypotheses
    same(mirrored, mirror_pose(out))


# Symmetries


@pytest.mark.parametrize("steps", [1, 3])
@both_models
def test_mirrored_input_gives_mirrored_hypotheses(make_pipe, steps):
    pipe, keypoints = make_pipe(), keypoints_of(frames=11)
    noise = torch.randn(steps, 2, 2, 11, 17, 3, generator=seeded())
    options = {"num_hypotheses": 2, "num_inference_steps": steps, "flip": "every_step", "aggregation": "mean"}
    camera = Camera([1300.0, 1310.0], [800.0, 500.0], image_size=IMAGE)
    for view, mirrored_view in (({"image_size": IMAGE},) * 2, ({"camera": camera}, {"camera": camera.mirrored()})):
        out = pipe(keypoints, noise=noise, **view, **options)
        mirrored = pipe(mirror_pixels(keypoints), noise=mirror_pose(noise), **mirrored_view, **options)
        same(mirrored.hypotheses, mirror_pose(out.hypotheses))
        same(mirrored.root, out.root * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-3)


@both_models
def test_alternate_hypotheses_come_from_the_mirrored_view(make_pipe):
    pipe, keypoints = make_pipe(), keypoints_of(frames=12)
    noise = torch.randn(3, 2, 5, 12, 17, 3, generator=seeded(3))
    arguments = {"image_size": IMAGE, "num_hypotheses": 5, "num_inference_steps": 3, "aggregation": None}
    out = pipe(keypoints, noise=noise, flip="alternate", **arguments).hypotheses
    straight = pipe(keypoints, noise=noise, flip=False, **arguments).hypotheses
    mirrored = mirror_pose(pipe(mirror_pixels(keypoints), noise=mirror_pose(noise), flip=False, **arguments).hypotheses)
    torch.testing.assert_close(out[:, 0::2], straight[:, 0::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, 1::2], mirrored[:, 1::2], atol=1e-5, rtol=0)
    assert (out - straight).abs().max() > 1e-3
    for share in (False, True):
        whole = pipe(keypoints, noise=noise, flip="alternate", share_first_step=share, **arguments).hypotheses
        for most in (1, 3, 7):  # groups begin at odd and at even hypotheses
            parts = pipe(keypoints, noise=noise, flip="alternate", share_first_step=share, max_batch_size=most, **arguments).hypotheses
            torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_mirroring_with_deterministic_steps():
    pipe, keypoints = frame_pipeline(), keypoints_of()
    start = torch.randn(2, 2, 7, 17, 3, generator=seeded())
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 3, "eta": 0, "aggregation": None, "flip": True}
    out = pipe(keypoints, noise=start, **options).hypotheses
    same(pipe(mirror_pixels(keypoints), noise=mirror_pose(start), **options).hypotheses, mirror_pose(out))


def test_flip_mirrors_about_the_canonical_cameras_centre():
    pipe, keypoints = frame_pipeline(canonical_camera=(2.3, 2.2, 0.15, 0.05)), keypoints_of()
    noise = torch.randn(2, 2, 2, 7, 17, 3, generator=seeded())
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 2, "aggregation": None}
    out = pipe(keypoints, noise=noise, flip="every_step", **options).hypotheses
    same(pipe(mirror_pixels(keypoints), noise=mirror_pose(noise), flip="every_step", **options).hypotheses, mirror_pose(out))


def test_known_cameras_do_not_matter():
    """The same person from the same place: a phone, a long lens, and Human3.6M's distorting cameras."""
    pose, root = walk(frames=12)
    pipe = frame_pipeline()
    cameras = [
        Camera.from_image_size(*IMAGE, fov=60),
        Camera([3000.0, 3100.0], [500.0, 700.0]),
        h36m_camera(0),
        h36m_camera(2),
        Camera([900.0, 900.0], [640.0, 360.0], torch.tensor([-0.1, 0.02, 0.0]), torch.tensor([1e-3, -2e-3]), convention="opencv"),
    ]
    results = []
    for camera in cameras:
        keypoints = camera.project(pose + root[:, :, None])
        out = pipe(keypoints, camera=camera, num_hypotheses=2, num_inference_steps=2, generator=seeded(), aggregation="mean")
        assert out.camera.focal.equal(camera.focal)
        results.append(out)
    for out in results[1:]:
        same(out.hypotheses, results[0].hypotheses, atol=1e-3)
        same(out.root, results[0].root, atol=2e-2)


def test_wide_angles_reach_the_network():
    """A ray beyond 45° is still a ray."""
    pipe, camera = frame_pipeline(), Camera([400.0, 400.0], [960.0, 540.0], image_size=IMAGE)
    keypoints = keypoints_of(frames=3) / 4 + torch.tensor([1600.0, 400.0])
    network = pipe.prepare_inputs(keypoints, camera=camera).network_2d
    slopes = (keypoints - camera.centre) / 400
    assert slopes[..., 0].max() > 1.2
    same(network, slopes * 2.29, atol=1e-4)


def test_one_camera_per_clip():
    pipe, cameras = frame_pipeline(), [h36m_camera(0), h36m_camera(3)]
    pose, root = walk()
    keypoints = torch.stack([camera.project(pose[i] + root[i, :, None]) for i, camera in enumerate(cameras)])
    both = Camera.from_vector(torch.stack([camera.to_vector() for camera in cameras]))
    options = {"num_hypotheses": 2, "num_inference_steps": 2}
    together = pipe(keypoints, camera=both, generator=[seeded(0), seeded(1)], **options)
    for i, camera in enumerate(cameras):
        alone = pipe(keypoints[i], camera=camera, generator=[seeded(i)], **options)
        for name in ("hypotheses", "pose", "root"):
            same(alone[name], together[name][i], atol=1e-4)


def test_screen_units_are_those_of_the_model():
    keypoints = keypoints_of()
    same(mixste_pipeline().prepare_inputs(keypoints, image_size=IMAGE).network_2d[..., 0], keypoints[..., 0] * 2 / 1920 - 1)
    camera = h36m_camera(1)
    expected = reexpress_keypoints(keypoints, camera, Camera([2.29, 2.29], [0.0, 0.0]))
    same(frame_pipeline().prepare_inputs(keypoints, camera=camera).network_2d, expected)


# Cost


@pytest.mark.parametrize("frames", [4, 20])
@pytest.mark.parametrize("flip", ["every_step", "last_step", "alternate", False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_count_passes_is_the_truth(frames, flip, share, steps):
    pipe = frame_pipeline()
    calls = spy(pipe.denoiser)
    sampler = {"num_hypotheses": 5, "num_inference_steps": steps, "flip": flip, "share_first_step": share}
    pipe(keypoints_of(frames=frames), image_size=IMAGE, aggregation=None, max_batch_size=8, **sampler)
    assert sum(windows * hypotheses for windows, hypotheses in calls) == 2 * pipe.count_passes(frames, **sampler)


def test_count_passes_by_the_formula():
    pipe = frame_pipeline(default_num_hypotheses=20, default_num_inference_steps=10)
    assert pipe.count_passes(9) == 2 * 20 * 10
    assert pipe.count_passes(9, flip="last_step") == 20 * 11
    assert pipe.count_passes(9, flip=False) == 20 * 10
    assert pipe.count_passes(9, flip="last_step", share_first_step=True) == 20 * 10 + 1
    assert pipe.count_passes(9, flip="alternate") == 20 * 10
    assert pipe.count_passes(9, flip="alternate", share_first_step=True) == 20 * 9 + 2
    assert pipe.count_passes(10) == 2 * pipe.count_passes(9)
    with pytest.raises(ValueError, match="frame"):
        pipe.count_passes(0)


def test_the_network_never_holds_more_than_the_limit():
    pipe, keypoints = frame_pipeline(), keypoints_of(batch=1, frames=5)
    calls, largest = spy(pipe.denoiser), []
    for count in (8, 60):
        calls.clear()
        pipe(keypoints, image_size=IMAGE, num_hypotheses=count, num_inference_steps=1, aggregation=None, max_batch_size=8)
        largest.append(max(windows * hypotheses for windows, hypotheses in calls))
    assert largest == [8, 8]


def test_sharing_the_first_step_is_nothing_new_for_one_hypothesis():
    pipe, keypoints = frame_pipeline(), keypoints_of(frames=12)
    options = {"image_size": IMAGE, "num_hypotheses": 1, "num_inference_steps": 3, "aggregation": None}
    shared, own = (pipe(keypoints, generator=seeded(), share_first_step=share, **options).hypotheses for share in (True, False))
    assert torch.equal(shared, own)
    single = {**options, "num_hypotheses": 4, "num_inference_steps": 1}
    shared, own = (pipe(keypoints, generator=seeded(), share_first_step=share, **single).hypotheses for share in (True, False))
    assert torch.equal(shared, own), "the only step is the last one, which is never shared"


def test_defaults_are_the_constructors():
    choice = {"num_hypotheses": 3, "num_inference_steps": 2, "flip": False, "share_first_step": True, "aggregation": "mean"}
    pipe, keypoints = frame_pipeline(**{f"default_{name}": value for name, value in choice.items()}), keypoints_of()
    calls = spy(pipe.denoiser)
    out = pipe(keypoints, image_size=IMAGE, generator=seeded())
    assert [hypotheses for _, hypotheses in calls] == [1, 3]
    same(out.pose, out.hypotheses.mean(1))
    spelled = frame_pipeline()(keypoints, image_size=IMAGE, generator=seeded(), **choice)
    assert torch.equal(out.hypotheses, spelled.hypotheses)


# Output


def test_output_types():
    pipe, keypoints = frame_pipeline(), keypoints_of()
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 1}
    out = pipe(keypoints, generator=seeded(), **options)
    assert isinstance(out, ProbPosePipelineOutput)
    shapes = {"hypotheses": (2, 2, 7, 17, 3), "pose": (2, 7, 17, 3), "uncertainty": (2, 7, 17), "root": (2, 7, 3)}
    assert {name: tuple(out[name].shape) for name in shapes} == shapes
    arrays = pipe(keypoints, generator=seeded(), output_type="np", **options)
    values = pipe(keypoints, generator=seeded(), return_dict=False, **options)
    assert len(values) == 5 and isinstance(values[4], Camera)
    for name, value in zip(shapes, values):
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], out[name].numpy())
        assert torch.equal(value, out[name])
    assert (out.hypotheses[..., 0, :] == 0).all()
    assert out.camera.image_size == IMAGE


def test_aggregations_by_name_and_instance():
    pipe, keypoints = frame_pipeline(), keypoints_of()
    options = {"image_size": IMAGE, "num_hypotheses": 4, "num_inference_steps": 2}

    def pose(aggregation):
        return pipe(keypoints, generator=seeded(), aggregation=aggregation, **options).pose

    assert torch.equal(pose("mean"), pose(MeanAggregator()))
    assert torch.equal(pose("median"), pose(GeometricMedianAggregator()))
    assert torch.equal(pose("jpma"), pose(JPMA()))
    assert torch.equal(pose("jpma"), pose("default"))
    assert pose(None) is None
    assert torch.isfinite(pose("weighted")).all()
    assert not torch.equal(pose("mean"), pose("jpma"))


def test_a_given_root_is_used_and_returned():
    pipe, camera = frame_pipeline(), Camera.from_image_size(*IMAGE)
    keypoints, root = keypoints_of(), walk()[1]
    options = {"image_size": IMAGE, "num_hypotheses": 4, "num_inference_steps": 2, "aggregation": JPMA(keypoint_sigma=0)}
    for form in (root, root.numpy(), root[:, :, None], root.double()):
        out = pipe(keypoints, root=form, generator=seeded(), **options)
        assert torch.equal(out.root, root)
        errors = (camera.project(out.hypotheses + root[:, None, :, None]) - keypoints[:, None]).norm(dim=-1)
        index = select_by_reprojection(errors, dim=1)[:, None, ..., None].expand(-1, 1, -1, -1, 3)
        assert torch.equal(out.pose, out.hypotheses.gather(1, index)[:, 0])
    assert not torch.equal(pipe(keypoints, generator=seeded(), **options).root, root)


def test_callbacks_see_every_step_and_may_change_the_sample():
    pipe, keypoints = frame_pipeline(), keypoints_of(frames=5)
    options = {"image_size": IMAGE, "num_hypotheses": 4, "num_inference_steps": 3, "aggregation": None}
    seen = []

    def watch(caller, step, timestep, tensors):
        assert caller is pipe and set(tensors) == {"sample", "clean"}
        seen.append((step, timestep, tuple(tensors["sample"].shape), tuple(tensors["clean"].shape)))

    plain = pipe(keypoints, generator=seeded(), **options).hypotheses
    watched = pipe(keypoints, generator=seeded(), callback_on_step_end=watch, **options).hypotheses
    shape = (2, 4, 5, 17, 3)
    assert seen == [(0, 999, shape, shape), (1, 665, shape, shape), (2, 332, shape, shape)]
    assert torch.equal(watched, plain)

    seen.clear()
    pipe(keypoints, generator=seeded(), callback_on_step_end=watch, max_batch_size=4, **options)
    assert [step for step, *_ in seen] == [0, 1, 2, 0, 1, 2], "two groups of two hypotheses"

    def lift(caller, step, timestep, tensors):
        return {"sample": tensors["sample"] + 0.5} if step == 2 else None

    expected = plain + 0.5
    expected[..., 0, :] = 0
    same(pipe(keypoints, generator=seeded(), callback_on_step_end=lift, **options).hypotheses, expected)


def test_progress_bar(capsys):
    pipe, keypoints = frame_pipeline(), keypoints_of(frames=2)
    options = {"image_size": IMAGE, "num_hypotheses": 4, "num_inference_steps": 3, "max_batch_size": 4}
    pipe(keypoints, **options)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe(keypoints, **options)
    assert "6/6" in capsys.readouterr().err


# Units


def test_signal_scale_is_taken_out_again():
    for scale in (1.0, 2.0):
        pipe = constant_pipeline([0.3, -0.2, 0.5])
        pipe.scheduler = D3DPScheduler(scale=scale)
        out = pipe(keypoints_of(frames=9), image_size=IMAGE, num_hypotheses=2, num_inference_steps=3, flip=False, aggregation=None)
        same(out.hypotheses[..., 1:, :], torch.tensor([0.3, -0.2, 0.5]).expand(2, 2, 9, 16, 3))


def test_models_in_millimetres_give_metres():
    metres, millimetres = (mixste_pipeline(model={"unit_scale": unit}) for unit in (1.0, 1000.0))
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 2, "aggregation": None}
    expected = metres(keypoints_of(), generator=seeded(), **options).hypotheses
    same(millimetres(keypoints_of(), generator=seeded(), **options).hypotheses, expected)


# Schedulers of diffusers

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}


@pytest.mark.parametrize("steps", [2, 5, 8])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@both_models
def test_ddim_is_d3dp_where_the_steps_divide(make_pipe, steps, eta):
    ddim = DDIMScheduler(clip_sample_range=1.1, timestep_spacing="trailing", set_alpha_to_one=True, **COSINE)
    ddim.alphas_cumprod = ddim.alphas_cumprod.double()  # with eta = 1 the first of 5 steps is NaN in float32
    noise = torch.randn(steps, 2, 2, 11, 17, 3, generator=seeded())
    ours, theirs = (
        make_pipe(scheduler)(
            keypoints_of(frames=11), image_size=IMAGE, num_hypotheses=2, num_inference_steps=steps, eta=eta, noise=noise,
            flip="last_step", aggregation=None,
        ).hypotheses
        for scheduler in (D3DPScheduler(), ddim)
    )  # fmt: skip
    same(theirs, ours, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample_range=1.1, timestep_spacing="trailing", **COSINE),
        DDPMScheduler(clip_sample_range=1.1, timestep_spacing="trailing", **COSINE),
        DPMSolverMultistepScheduler(timestep_spacing="trailing", **COSINE),
        DPMSolverMultistepScheduler(timestep_spacing="trailing", algorithm_type="sde-dpmsolver++", **COSINE),
        EulerDiscreteScheduler(timestep_spacing="trailing", **COSINE),
    ],
    ids=lambda s: type(s).__name__ + s.config.get("algorithm_type", ""),
)
def test_schedulers_of_diffusers(scheduler):
    pipe, keypoints = frame_pipeline(scheduler), keypoints_of(frames=12)
    options = {"image_size": IMAGE, "num_hypotheses": 4, "num_inference_steps": 4, "aggregation": "mean"}
    torch.manual_seed(1)
    together = pipe(keypoints, generator=seeded(), **options).hypotheses
    torch.manual_seed(2)  # the global generator is nobody's business
    in_pairs = pipe(keypoints, generator=seeded(), max_batch_size=9, **options).hypotheses
    assert torch.isfinite(together).all() and together.abs().max() < 5
    assert (together.std(1)[..., 1:, :] > 1e-7).any()
    same(in_pairs, together, atol=1e-4)
    constant = constant_pipeline([0.3, -0.2, 0.5])
    constant.scheduler = scheduler
    out = constant(keypoints, flip=False, **options).hypotheses[..., 1:, :]
    same(out, torch.tensor([0.3, -0.2, 0.5]).expand_as(out), atol=2e-2)


def test_schedulers_that_do_not_fit():
    keypoints = keypoints_of()
    options = {"image_size": IMAGE, "num_hypotheses": 2, "num_inference_steps": 4}
    with pytest.raises(ValueError, match="DDIMScheduler must have prediction_type='sample', got 'epsilon'"):
        frame_pipeline(DDIMScheduler())(keypoints, **options)
    with pytest.raises(ValueError, match="HeunDiscreteScheduler calls the network 7 times in 4 steps"):
        frame_pipeline(HeunDiscreteScheduler(**COSINE))(keypoints, **options)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler has no eta"):
        frame_pipeline(EulerDiscreteScheduler(**COSINE))(keypoints, eta=1.0, **options)
    noise = torch.randn(4, 2, 2, 7, 17, 3, generator=seeded())
    with pytest.raises(ValueError, match=r"DDPMScheduler takes no noise for its steps.*got 4"):
        frame_pipeline(DDPMScheduler(**COSINE))(keypoints, noise=noise, **options)
    assert math.isfinite(frame_pipeline(DDPMScheduler(**COSINE))(keypoints, noise=noise[0], **options).hypotheses.sum())


def test_numbers_that_overflow_are_an_error_not_a_result():
    pipe = frame_pipeline()
    torch.nn.init.constant_(pipe.denoiser.proj_out.bias, torch.nan)
    with pytest.raises(ValueError, match=r"weights.*float32.*D3DPScheduler"):
        pipe(keypoints_of(), image_size=IMAGE, num_hypotheses=2, num_inference_steps=2)
