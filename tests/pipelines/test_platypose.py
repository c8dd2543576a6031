"""Platypose's whole call: numbers of the original, what must not change an answer, cameras, roots, lengths, motions nobody saw."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import (
    IMAGE,
    STUDIO,
    as_seen,
    both_priors,
    filmed,
    keypoints_of,
    knowing,
    platypose_pipeline,
    quiet,
    seeded,
    spy,
)
from tiny_pipelines import walk as posed

from probpose import ProbPosePipeline
from probpose.calibration import Recalibration
from probpose.geometry import Camera, quaternion_to_matrix
from probpose.guidance import Energy, GaussNewtonGuide, GradientGuide, GuideOutput, InpaintingEnergy, ReprojectionEnergy, SmoothnessEnergy
from probpose.hub import convert_original
from probpose.models import AttentionAggregator
from probpose.pipelines import PlatyposePipeline, ProbPosePipelineOutput
from probpose.pipelines.noise import NoiseSource
from probpose.pipelines.scene import tilted
from probpose.schedulers import EnergyGuidedDDIMScheduler

TESTS = Path(__file__).resolve().parents[1]
PARITY = TESTS.parents[1] / "shared" / "parity" / "platypose"
CAMERA = Camera.from_image_size(*IMAGE)
# The published step size belongs to the published likelihood, and to people who are known to stand far enough away.
GUIDES = {"default": {}, "published": {"guide": GradientGuide(), "likelihood": "published"}}
both_guides = pytest.mark.parametrize("guidance", GUIDES.values(), ids=GUIDES)


def same(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def run(pipe, keypoints, **options):
    """Hypotheses of a call. They share a tilt that is estimated, which has tests of its own."""
    where = {} if {"camera", "cameras"} & options.keys() else {"image_size": IMAGE}
    return pipe(keypoints, **{"generator": seeded(), "aggregation": None, "estimate_tilt": False} | where | options).hypotheses


@pytest.fixture
def people(walk):
    """Two people in a studio: world motions `(2, 6, 17, 3)`."""
    return torch.stack([torch.from_numpy(walk(6, seed=seed)) for seed in (0, 1)])


class Shift(Energy):
    """Pulls one joint to one place, and remembers the shapes of the motions that it was shown."""

    def __init__(self, joint=3, place=(0.5, 0.0, 0.0), weight=1e6):
        self.joint, self.place, self.weight, self.shapes = joint, torch.tensor(place), weight, []

    def __call__(self, motion):
        self.shapes.append(tuple(motion.shape))
        return self.weight * (motion[..., self.joint, :] - self.place).square().sum((-1, -2)) / 2

    def curvature(self, motion):
        curvature = torch.zeros(*motion.shape, 3)
        curvature[..., self.joint, :, :] = self.weight * torch.eye(3)
        return curvature


# Numbers of the original


def original_camera(io, number, pixels):
    """In units of 500 pixels, as the original has it, or in pixels."""
    get = lambda name: io[f"camera{number}.{name}"]  # noqa: E731
    matrix, rotation = get("intrinsic_matrix"), get("rotation_matrix")
    focal, centre = matrix.diagonal()[:2], matrix[2, :2]
    if pixels:
        focal, centre = focal * 500, (centre + 1) * 500
    lens = {"radial": get("radial_distortion")[0], "tangential": get("tangential_distortion")[0], "convention": "opencv"}
    return Camera(focal, centre, **lens, rotation=rotation, translation=-rotation @ get("translation_vector")[0])


def original_run(io, weights, name, count, likelihood):
    """What the pipeline makes of a run, what the original made of it in the first camera's axes, and the energies of both."""
    get = lambda key: io[f"run.{name}.{key}"]  # noqa: E731
    cameras = [original_camera(io, number, pixels=True) for number in range(count)]
    keypoints, noise = get("keypoints"), get("noise")
    energy = ReprojectionEnergy([original_camera(io, n, pixels=False) for n in range(count)], list(keypoints), list(get("weights")),
                                root=get("gt_abs")[:, :, 0])  # fmt: skip
    traced = []
    out = quiet(PlatyposePipeline(convert_original("platypose", weights, num_attention_heads=4), EnergyGuidedDDIMScheduler()))(
        [(each[0] + 1) * 500 for each in keypoints],
        cameras=cameras,
        root=cameras[0].to_camera(get("gt_abs")[0, :, 0]),
        num_hypotheses=len(noise),
        noise=noise.reshape(*noise.shape[:2], 17, 3),
        guide=GradientGuide(30.0, 10, nan_policy="stop"),
        likelihood=likelihood,
        guidance=energy if likelihood is None else None,
        aggregation=None,
        callback_on_step_end=lambda pipe, i, t, state: traced.append(state["energy"][..., 0]),
    )
    expected = torch.einsum("ij,ktnj->ktni", cameras[0].rotation, get("result"))
    return out.hypotheses, expected, torch.stack(traced), get("trace_mean_energy")


def test_a_single_frame_is_the_originals():
    golden = load_file(TESTS / "golden" / "platypose.safetensors")
    weights = {k.removeprefix("checkpoint/"): v for k, v in golden.items() if k.startswith("checkpoint/")}
    ours, theirs, energies, traced = original_run(golden, weights, "single_frame", 1, likelihood=None)
    same(ours, theirs, atol=5e-5)
    same(energies, traced, atol=1e-6)


@pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
@pytest.mark.parametrize("likelihood", [None, "published"])
def test_two_cameras_are_the_originals(likelihood):
    io, weights = (load_file(PARITY / f"{name}.safetensors") for name in ("io", "checkpoint"))
    ours, theirs, energies, traced = original_run(io, weights, "two_cameras", 2, likelihood)
    same(ours, theirs, atol=5e-5)
    same(energies, traced, atol=1e-6)


# What must not change an answer


@both_priors
@both_guides
@pytest.mark.parametrize("cameras", [0, 1, 2])
def test_a_clip_with_its_own_generator_does_not_see_its_batch(prior, guidance, cameras, people):
    """Every clip with cameras of its own."""
    pipe, people = platypose_pipeline(prior), torch.cat([people, people[:1] + 0.3])
    generators = [seeded(10 + clip) for clip in range(3)]
    if cameras == 0:
        keypoints, place = keypoints_of(batch=3, frames=6), posed(batch=3, frames=6)[1]
        focal = torch.tensor([[1800.0, 1800.0], [2100.0, 2000.0], [1500.0, 1600.0]])
    else:
        stands = [[STUDIO[(clip + camera) % 4] for clip in range(3)] for camera in range(cameras)]
        place = torch.stack([as_seen(person, stand)[1] for person, stand in zip(people, stands[0])])

    def of(clips):
        options = guidance | {"root": place[clips] if guidance else "estimate", "generator": [generators[clip] for clip in clips]}
        if cameras == 0:
            camera = Camera(focal[clips], torch.tensor([960.0, 540.0]), slope_limit=9.0)
            return run(pipe, keypoints[clips], camera=camera, **options)
        each = []
        for stand in stands:
            parts = {n: torch.stack([getattr(stand[c], n) for c in clips]) for n in ("focal", "centre", "rotation", "translation")}
            each.append(Camera(**parts, slope_limit=9.0))
        seen = [camera.project(camera.to_camera(people[clips])) for camera in each]
        return run(pipe, seen, cameras=each, **options)

    together = of([0, 1, 2])
    for generator, clip in ((seeded(12), 2), (seeded(10), 0)):
        generators[clip] = generator
        same(of([clip]), together[[clip]], atol=1e-5)


@both_priors
@pytest.mark.parametrize(
    "options",
    [{}, GUIDES["published"] | {"root": posed(frames=20)[1]}, {"root": "state"}, {"estimate_focal": True}, {"eta": 1.0}],
    ids=[*GUIDES, "state", "focal", "eta"],
)
def test_max_batch_size_changes_nothing(prior, options):
    pipe, keypoints = platypose_pipeline(prior), keypoints_of(frames=20)
    calls, results = spy(pipe.denoiser), []
    for size in (1, 4, 256):
        calls.clear()
        results.append(run(pipe, keypoints, max_batch_size=size, num_inference_steps=3, **options))
        assert calls and max(rows * hypotheses for rows, hypotheses in calls) <= size
    for other in results[1:]:
        same(other, results[0], atol=1e-5)


@both_priors
def test_the_first_hypotheses_do_not_depend_on_how_many_there_are(prior):
    pipe, keypoints = platypose_pipeline(prior), keypoints_of(frames=4)
    few, many = (run(pipe, keypoints, num_hypotheses=k, eta=0.5) for k in (2, 5))
    same(many[:, :2], few, atol=1e-5)
    assert (many[:, 0] - many[:, 1]).norm(dim=-1)[..., 1:].min() > 1e-4, "hypotheses differ"
    assert torch.equal(few, run(pipe, keypoints, num_hypotheses=2, eta=0.5)) and (few[..., 0, :] == 0).all()
    assert not torch.equal(few, run(pipe, keypoints, num_hypotheses=2, eta=0.5, generator=seeded(1)))


@both_priors
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_given_noise_is_drawn_noise(prior, eta):
    pipe, keypoints = platypose_pipeline(prior), keypoints_of(frames=4)
    source = NoiseSource(None, seeded(), 2, 3, (4, 17, 3), torch.device("cpu"))
    noise = torch.stack([source.draw(i, slice(0, 3)) for i in range(5)])
    expected = run(pipe, keypoints, eta=eta, num_inference_steps=5)
    same(run(pipe, keypoints, eta=eta, num_inference_steps=5, noise=noise, generator=None), expected)
    same(run(pipe, keypoints[0], eta=eta, num_inference_steps=5, noise=noise[:, 0].numpy(), max_batch_size=1), expected[0])
    if eta == 0:
        same(run(pipe, keypoints, num_inference_steps=5, noise=noise[0], generator=None), expected)


def test_nan_means_not_observed():
    pipe, keypoints = platypose_pipeline(), keypoints_of()
    hidden = torch.rand(2, 7, 17, generator=seeded(1)) < 0.3
    hidden[:, 4] = True
    for likelihood in ("confidence", "published"):
        variants = [
            run(pipe, torch.where(hidden[..., None], torch.nan, keypoints), likelihood=likelihood),
            run(pipe, keypoints, confidence=(~hidden).float(), likelihood=likelihood),
            run(pipe, torch.where(hidden[..., None], 77.0, keypoints), confidence=~hidden, likelihood=likelihood),
        ]
        assert variants[0].isfinite().all()
        for other in variants[1:]:
            same(other, variants[0])
    assert (run(pipe, keypoints) - variants[0]).abs().max() > 1e-3


def test_other_skeletons_are_converted():
    coco = torch.rand(6, 17, 2, generator=seeded()) * 400 + 300
    pipe = platypose_pipeline(hidden_when_converted=[9, 10])
    assert run(pipe, coco, skeleton="coco_17").shape == (3, 6, 17, 3)


# Several cameras


@both_priors
def test_a_second_camera_tells_how_far_away_joints_are(prior, people):
    """The prior has learned nothing: what one camera does not see of a pose stays wrong."""
    pipe, keypoints, errors = platypose_pipeline(prior), filmed(people), []
    pose, place = as_seen(people, STUDIO[0])
    for count in (1, 2):
        out = pipe(keypoints[:count], cameras=STUDIO[:count], generator=seeded(), guide=GaussNewtonGuide(6, trust=10.0))
        errors.append((out.hypotheses - pose[:, None]).norm(dim=-1).mean())
    assert errors[1] < errors[0] / 3
    assert (out.root - place).norm(dim=-1).max() < 0.3


def test_the_order_of_cameras_changes_the_axes_alone(people):
    pipe, order = platypose_pipeline("world"), [2, 0, 1]
    cameras = STUDIO[:3]
    keypoints = filmed(people, cameras)
    confidence = [torch.rand(2, 6, 17, generator=seeded(i)) for i in range(3)]
    one, other = (
        pipe([keypoints[i] for i in o], [confidence[i] for i in o], cameras=[cameras[i] for i in o], generator=seeded())
        for o in ([0, 1, 2], order)
    )
    turn = cameras[2].rotation @ cameras[0].rotation.T
    same(other.hypotheses, one.hypotheses @ turn.T, atol=1e-4)
    same(cameras[2].to_world(other.root), cameras[0].to_world(one.root), atol=1e-4)
    assert one.camera is not None and torch.equal(other.camera.rotation, cameras[2].rotation)


@both_priors
@both_guides
def test_a_camera_that_saw_nobody_changes_nothing(prior, guidance, people):
    pipe, keypoints = platypose_pipeline(prior), filmed(people)
    confidence = [torch.ones(2, 6, 17)] * 2
    two = run(pipe, keypoints[:2], confidence=confidence, cameras=STUDIO[:2], **guidance)
    blind = run(pipe, keypoints[:3], confidence=[*confidence, torch.zeros(2, 6, 17)], cameras=STUDIO[:3], **guidance)
    same(blind, two)


def test_which_world_it_is_does_not_matter_to_a_prior_in_camera_axes(people):
    pipe, keypoints = platypose_pipeline("camera"), filmed(people, STUDIO[:2])
    pipe.denoiser.proj_out.bias.data[3:] = as_seen(people, STUDIO[0])[0][0, 0].flatten()[3:]  # or people would touch the camera
    turn, shift = quaternion_to_matrix(torch.tensor([0.5, -0.4, 0.7, 0.1]) / 0.91**0.5), torch.tensor([3.0, -2.0, 1.0])
    # X' = turn X + shift
    moved = [replace(c, rotation=c.rotation @ turn.T, translation=c.translation - c.rotation @ turn.T @ shift) for c in STUDIO[:2]]
    same(filmed(people @ turn.T + shift, moved)[1], keypoints[1], atol=0.01)
    for cameras in (1, 2):
        here, there = (pipe(keypoints[:cameras], cameras=c[:cameras], generator=seeded()) for c in (STUDIO, moved))
        same(there.hypotheses, here.hypotheses, atol=1e-3)
        same(there.root, here.root, atol=1e-3)
    unplaced = replace(STUDIO[0], rotation=None, translation=None)
    one = pipe(keypoints[:1], cameras=STUDIO[:1], generator=seeded())
    for given in ({"camera": unplaced}, {"camera": STUDIO[0]}, {"camera": replace(STUDIO[0], translation=None)}):
        same(pipe(keypoints[0], generator=seeded(), **given).hypotheses, one.hypotheses, atol=1e-3)


@both_priors
def test_cameras_may_be_stacked_or_have_sizes(prior, people):
    pipe, keypoints = platypose_pipeline(prior), filmed(people, STUDIO[:2])
    expected = run(pipe, keypoints, cameras=STUDIO[:2])
    same(run(pipe, torch.stack(keypoints), cameras=tuple(STUDIO[:2])), expected)
    bare = [replace(camera, image_size=None) for camera in STUDIO[:2]]
    same(run(pipe, keypoints, cameras=bare, image_size=[camera.image_size for camera in STUDIO[:2]]), expected)
    same(run(pipe, keypoints, cameras=bare, image_size=[1000, 1002]), expected)


@both_priors
def test_a_world_that_nothing_is_known_of(prior):
    """A prior in world axes meets a camera that may stand anywhere: without an estimate it is taken to stand level."""
    pipe, keypoints = platypose_pipeline(prior), keypoints_of()
    level = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    placed = replace(CAMERA, rotation=level, translation=torch.zeros(3))
    for likelihood in ("confidence", "published"):
        same(run(pipe, keypoints, likelihood=likelihood), run(pipe, keypoints, camera=placed, likelihood=likelihood), atol=1e-4)


@pytest.mark.parametrize("trajectory", ["absolute", "relative"])
def test_the_tilt_is_estimated_while_sampling(trajectory, walk):
    """The prior always says the truth, so that the camera's tilt is all that is left to find."""
    person = torch.from_numpy(walk(1)).expand(6, -1, -1)
    ahead = torch.tensor([0.0, 4.0, -1.5])  # of a camera at the origin
    camera = replace(CAMERA, rotation=tilted(torch.tensor(0.3)), translation=torch.zeros(3))
    (keypoints,) = filmed(person + ahead, [camera])
    pipe = knowing(platypose_pipeline("world", model={"trajectory": trajectory}), person[0] - person[0, :1])
    out = pipe(keypoints, image_size=IMAGE, generator=seeded())
    assert (out.camera.rotation - camera.rotation).abs().max() < 0.03 and out.camera.translation.tolist() == [0, 0, 0]
    assert (out.hypotheses - as_seen(person, camera)[0]).norm(dim=-1).max() < 0.05
    both = pipe(keypoints.expand(2, -1, -1, -1), image_size=IMAGE, generator=seeded())
    assert both.camera.rotation.shape == (2, 3, 3) and both.camera.translation.shape == (2, 3)
    assert pipe(keypoints, image_size=IMAGE, generator=seeded(), estimate_tilt=False).camera.rotation is None
    assert pipe(keypoints, image_size=IMAGE, generator=seeded(), root=out.root).camera.rotation is None, "a root is given"
    half = replace(camera, translation=None)
    same(run(pipe, keypoints, camera=half), run(pipe, keypoints, camera=camera), atol=1e-5)


# Roots


@both_priors
@pytest.mark.parametrize("root", ["estimate", "state", "given"])
@pytest.mark.parametrize("cameras", [1, 2])
def test_roots(prior, root, cameras, people):
    pipe, keypoints = platypose_pipeline(prior), filmed(people, STUDIO[:cameras])
    place = as_seen(people, STUDIO[0])[1]
    given = place if root == "given" else root
    shapes = {"hypotheses": (2, 3, 6, 17, 3), "pose": (2, 6, 17, 3), "uncertainty": (2, 6, 17), "root": (2, 6, 3)}
    for likelihood in ("confidence", "published"):
        out = pipe(keypoints, cameras=STUDIO[:cameras], generator=seeded(), root=given, likelihood=likelihood)
        assert {name: tuple(out[name].shape) for name in shapes} == shapes
        assert all(out[name].isfinite().all() for name in shapes)
    if root == "given":
        assert torch.equal(out.root, place)
        alone = pipe([k[1] for k in keypoints], cameras=STUDIO[:cameras], root=place[1].numpy())
        assert torch.equal(alone.root, place[1]) and alone.hypotheses.shape == shapes["hypotheses"][1:]
    if root == "estimate":
        assert torch.equal(
            run(pipe, keypoints, cameras=STUDIO[:cameras], root=None), run(pipe, keypoints, cameras=STUDIO[:cameras], root="estimate")
        )


@pytest.mark.parametrize("root", ["estimate", "state"])
@pytest.mark.parametrize("cameras", [1, 2])
def test_where_a_person_stands_whom_the_prior_knows(root, cameras, walk):
    """The prior always says the truth, so that the root is all that is left to find."""
    person = torch.from_numpy(walk(1)).expand(6, -1, -1)
    pose, place = as_seen(person, STUDIO[0])
    pipe = knowing(platypose_pipeline(), pose[0])
    out = pipe(filmed(person, STUDIO[:cameras]), cameras=STUDIO[:cameras], root=root, generator=seeded())
    assert (out.hypotheses - pose).norm(dim=-1).max() < 5e-3
    assert (out.root - place).norm(dim=-1).max() < 0.03


@both_priors
def test_the_root_does_not_answer_for_a_wrong_pose(prior, walk):
    """Two cameras see where it is, whatever the prior says of the other joints."""
    person, other = (torch.from_numpy(walk(1, seed=seed)) for seed in (0, 3))
    person = person.expand(6, -1, -1)
    said = other - other[:, :1] if prior == "world" else as_seen(other, STUDIO[0])[0]
    pipe = knowing(platypose_pipeline(prior, default_num_inference_steps=10), said[0])
    out = pipe(filmed(person, STUDIO[:2]), cameras=STUDIO[:2], generator=seeded())
    assert (out.root - as_seen(person, STUDIO[0])[1]).norm(dim=-1).max() < 0.02


@both_priors
def test_a_root_that_is_given_stays_where_nothing_was_seen(prior):
    """A prior with relative trajectories is told it at every step; its last frame goes on in the padding."""
    pipe, root = platypose_pipeline(prior, model={"any_length": False}), torch.tensor([0.0, 0.0, 4.0]) + torch.arange(6.0)[:, None] / 5
    seen = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[1][0, 0, :, 0]))
    with pytest.warns(UserWarning, match="prior alone"):
        out = pipe(torch.full((6, 17, 2), torch.nan), image_size=IMAGE, root=root, generator=seeded(), num_hypotheses=1)
    assert torch.equal(out.root, root) and out.hypotheses.isfinite().all()
    if prior == "camera":
        whole = torch.cat([root, root[-1:].expand(10, 3)])
        alpha = pipe.scheduler.alphas_cumprod[0].item()
        noise = NoiseSource(None, seeded(), 1, 1, (16, 17, 3), root.device).draw(0, slice(0, 1))[0, 0, :, 0]
        same(seen[-1], alpha**0.5 * (whole - whole.mean(0)) + (1 - alpha) ** 0.5 * noise)


# Lengths


@both_priors
@pytest.mark.parametrize("any_length", [True, False])
@pytest.mark.parametrize("frames", [1, 5, 16, 36])
def test_lengths(prior, any_length, frames):
    pipe = platypose_pipeline(prior, model={"any_length": any_length})
    keypoints, place = keypoints_of(frames=frames), posed(frames=frames)[1]
    init = 0.3 * torch.randn(2, frames, 17, 3, generator=seeded())
    for options in ({}, {"root": "state"}, {"root": place, "likelihood": "published", "init_pose": init}):
        out = pipe(keypoints, image_size=IMAGE, num_hypotheses=2, num_inference_steps=2, generator=seeded(), **options)
        assert out.hypotheses.shape == (2, 2, frames, 17, 3) and out.root.shape == (2, frames, 3)
        assert out.hypotheses.isfinite().all() and out.root.isfinite().all()


@both_priors
def test_guidance_sees_the_clip_and_not_its_padding(prior):
    pipe, energy = platypose_pipeline(prior, model={"any_length": False}), Shift()
    target = torch.full((6, 17, 3), torch.nan)
    target[2, 13] = torch.tensor([0.1, 0.2, 0.3])
    guidance = energy + InpaintingEnergy(target) + 1e-3 * SmoothnessEnergy(30.0)
    options = {"guide": GaussNewtonGuide(9, trust=100.0), "camera": replace(STUDIO[0], rotation=None, translation=None)}
    out = run(pipe, keypoints_of(frames=6), guidance=guidance, **options)
    assert {shape[-3] for shape in energy.shapes} == {6}
    if prior == "camera":
        same(out[..., 2, 13, :], target[2, 13].expand(2, 3, 3), atol=0.03)
    calls = spy(pipe.denoiser)
    pipe.denoiser.register_forward_pre_hook(lambda _, args: calls.append(args[1].shape[2]))
    run(pipe, keypoints_of(frames=6), num_inference_steps=1)
    assert calls[-1] == 16


@both_priors
def test_windows_pass_into_one_another(prior):
    """Somebody stands still: what windows make of their first and last frames differs, and the blend evens that out."""
    keypoints, jumps = keypoints_of(batch=1, frames=1).expand(-1, 48, -1, -1), {}
    noise = torch.randn(1, 2, 1, 17, 3, generator=seeded()).expand(-1, -1, 48, -1, -1)
    for overlap in (0, 8):
        pipe = platypose_pipeline(prior, window_overlap=overlap)
        steps = run(pipe, keypoints, noise=noise, num_hypotheses=2).diff(dim=2).norm(dim=-1).mean((0, 1, 3))
        jumps[overlap] = steps[[15, 31]].max(), steps[:8].max()
    assert jumps[8][0] <= 1.5 * jumps[8][1], "no worse than within a window"
    assert jumps[8][0] < jumps[0][0] / 2


# The focal length


def test_the_focal_length_is_estimated_while_sampling():
    pose, root = posed(batch=1, frames=1)
    root[..., 2] = 1.8  # near, so that perspective tells something
    keypoints = CAMERA.project(pose + root[:, :, None])[0].expand(6, -1, -1)
    pipe = knowing(platypose_pipeline(), pose[0, 0])
    wrong = replace(CAMERA, focal=1.3 * CAMERA.focal)
    out = pipe(keypoints, camera=wrong, estimate_focal=True, generator=seeded())
    assert out.camera.focal.shape == (2,)
    assert out.camera.focal.tolist() == pytest.approx(CAMERA.focal.tolist(), rel=0.1)
    assert (out.root[:, 2] - root[0, :, 2]).abs().max() < 0.4
    assert torch.equal(pipe(keypoints, camera=wrong, generator=seeded()).camera.focal, wrong.focal)
    for likelihood in ("confidence", "published"):
        clips = keypoints[None].expand(2, -1, -1, -1).clone()
        clips[1] = torch.nan
        with pytest.warns(UserWarning, match="clip 1"):
            both = pipe(clips, camera=wrong, estimate_focal=True, likelihood=likelihood, generator=seeded())
        same(both.camera.focal[0], out.camera.focal, atol=10.0 if likelihood == "published" else 1.0)
        assert torch.equal(both.camera.focal[1], wrong.focal), "nothing was observed"
        shown = both.camera.project(both.hypotheses[:, 0] + both.root[:, :, None])[0]
        assert (shown - keypoints).norm(dim=-1).median() < 20


# Guidance


@both_priors
@pytest.mark.parametrize("guide", [GaussNewtonGuide(), GradientGuide(300.0, max_step=0.2)], ids=["default", "published"])
@pytest.mark.parametrize("energy_scale", [0.1, 1.0, 10.0, 100.0])
def test_nothing_explodes(prior, guide, energy_scale):
    """Keypoints that no person could have, and a prior that has learned nothing."""
    pipe = platypose_pipeline(prior)
    keypoints = torch.rand(2, 6, 17, 2, generator=seeded()) * torch.tensor(IMAGE)
    for options in ({}, {"root": "state"}):
        out = pipe(keypoints, image_size=IMAGE, num_hypotheses=2, generator=seeded(), guide=guide, energy_scale=energy_scale, **options)
        assert out.hypotheses.isfinite().all() and out.root.isfinite().all()
        assert out.hypotheses.abs().max() < 10


def test_guidance_acts_in_the_worlds_axes(people):
    keypoints, place = filmed(people, STUDIO[:1]), torch.tensor([0.3, 0.2, -0.4])
    options = {"guidance": Shift(3, place.tolist()), "guide": GaussNewtonGuide(3, trust=10.0)}
    for prior in ("world", "camera"):
        out = run(platypose_pipeline(prior), keypoints, cameras=STUDIO[:1], **options)
        same(out[..., 3, :] @ STUDIO[0].rotation, place.expand(2, 3, 6, 3), atol=0.02)
    alone = run(platypose_pipeline(), keypoints[0], camera=replace(STUDIO[0], rotation=None, translation=None), **options)
    same(alone[..., 3, :], place.expand(2, 3, 6, 3), atol=0.02)


def test_guidance_without_the_keypoints():
    pipe, keypoints = platypose_pipeline(), keypoints_of()
    smooth = {"likelihood": None, "guidance": SmoothnessEnergy(30.0)}
    same(run(pipe, keypoints, root="state", **smooth), run(pipe, keypoints, root="state", energy_scale=7.0, **smooth), atol=0)
    assert (run(pipe, keypoints, **smooth) - run(pipe, keypoints)).abs().max() > 1e-3
    rough, calm = (run(pipe, keypoints, guidance=g).diff(n=2, dim=2).norm(dim=-1).mean() for g in (None, 10 * SmoothnessEnergy(30.0)))
    assert calm < rough / 2


def test_the_energy_scale_is_a_factor(people):
    pipe, keypoints = platypose_pipeline(), keypoints_of()
    weak, strong = (run(pipe, keypoints, energy_scale=np.float32(scale)) for scale in (1e-9, 1.0))
    free = run(pipe, keypoints, guide=GaussNewtonGuide(0))
    same(weak, free, atol=1e-3)
    assert (strong - free).abs().max() > 0.1
    same(run(platypose_pipeline(default_energy_scale=1e-9), keypoints), weak, atol=0)


def test_a_guide_of_ones_own():
    """Any callable will do; all hypotheses of a clip come to it together."""
    pipe, shapes = platypose_pipeline(), []

    def still(motion, energy, noise_level):
        shapes.append(tuple(motion.shape))
        return GuideOutput(motion)

    out = run(pipe, keypoints_of(), guide=still, max_batch_size=1)
    assert set(shapes) == {(2, 3, 7, 17, 3)}
    same(out, run(pipe, keypoints_of(), guide=GaussNewtonGuide(0)))


def test_the_guide_of_the_constructor():
    options, keypoints = {"guide_substeps": 4, "guide_trust": 2.0}, keypoints_of()
    expected = run(platypose_pipeline(), keypoints, guide=GaussNewtonGuide(4, 2.0))
    assert torch.equal(run(platypose_pipeline(**options), keypoints), expected)


@both_priors
def test_to_begin_from_a_pose(prior, people):
    pipe, keypoints = platypose_pipeline(prior), filmed(people, STUDIO[:1])[0]
    pose = as_seen(people, STUDIO[0])[0]
    first = []
    pipe.denoiser.register_forward_pre_hook(lambda _, args: first.append(args[1]))
    run(pipe, keypoints, camera=STUDIO[0], init_pose=pose)
    begun = first[0]
    first.clear()
    run(pipe, keypoints, camera=STUDIO[0])
    signal = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]].sqrt().item()
    inside = pose if prior == "camera" else pose @ STUDIO[0].rotation
    same((begun - first[0])[..., 1:, :], signal * inside[:, None, :, 1:].expand(2, 3, 6, 16, 3))


# Nothing was seen


@both_priors
@pytest.mark.parametrize("aggregation", ["mean", "jpma", "weighted", "median"])
def test_a_clip_that_nobody_saw_is_drawn_from_the_prior(prior, aggregation):
    pipe, keypoints = platypose_pipeline(prior), keypoints_of()
    confidence = torch.ones(2, 7, 17)
    confidence[1] = 0
    options = {"image_size": IMAGE, "aggregation": aggregation, "estimate_tilt": False}
    with pytest.warns(UserWarning, match="clip 1 has no observed keypoint: its hypotheses are drawn from the prior alone") as caught:
        out = pipe(keypoints, confidence, generator=[seeded(1), seeded(2)], **options)
    assert caught[0].filename == __file__, "the warning points at the call"
    assert all(out[name].isfinite().all() for name in ("hypotheses", "pose", "uncertainty", "root"))
    with pytest.warns(UserWarning, match="clip 0"):
        alone = pipe(keypoints[1] * torch.nan, generator=seeded(2), **options)
    same(alone.hypotheses, out.hypotheses[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(pipe(keypoints[0], generator=seeded(1), **options).hypotheses, out.hypotheses[0])


@both_priors
def test_generated_motions(prior):
    pipe = platypose_pipeline(prior)
    for frames in (1, 9, 40):
        motions, roots = pipe.generate(frames, num_motions=3, generator=seeded())
        assert motions.shape == (3, frames, 17, 3) and roots.shape == (3, frames, 3)
        assert motions.isfinite().all() and roots.isfinite().all() and (motions[..., 0, :] == 0).all()
        if prior == "camera":
            same(roots.mean(1), torch.zeros(3, 3))
    again, first = (pipe.generate(40, num_motions=n, generator=seeded(), max_batch_size=b)[0] for n, b in ((3, 1), (2, 256)))
    same(again, motions)
    same(first, motions[:2])
    assert (pipe.generate(40, num_motions=3, generator=seeded(1))[0] - motions).abs().max() > 1e-3
    padded = platypose_pipeline(prior, model={"any_length": False}).generate(5)
    assert padded[0].shape == (1, 5, 17, 3) and padded[1].shape == (1, 5, 3)


@both_priors
@pytest.mark.parametrize("frames", [9, 30])
def test_generated_motions_obey_what_is_known(prior, frames):
    """Some joints in all frames, all joints in some frames."""
    pipe, target = platypose_pipeline(prior), torch.full((frames, 17, 3), torch.nan)
    known = posed(batch=1, frames=frames)[0][0]
    for where in ((slice(None), [3, 13]), (slice(0, 2), slice(1, None)), (-1, slice(1, None))):
        target[where] = known[where]
    motions, _ = pipe.generate(
        frames, num_motions=2, guidance=InpaintingEnergy(target), guide=GaussNewtonGuide(3, trust=100.0, max_step=1.0), generator=seeded()
    )
    there = target.isfinite().all(-1).expand(2, -1, -1)
    assert (motions - known).norm(dim=-1)[there].max() < 0.03
    assert (motions - known).norm(dim=-1)[~there].mean() > 0.1


# Output


def test_output_types(people):
    pipe, keypoints = platypose_pipeline(), keypoints_of()
    out, arrays = (pipe(keypoints, image_size=IMAGE, generator=seeded(), output_type=kind) for kind in ("pt", "np"))
    values = pipe(keypoints, image_size=IMAGE, generator=seeded(), return_dict=False)
    assert isinstance(out, ProbPosePipelineOutput) and len(values) == 5 and isinstance(values[4], Camera)
    for name, value in zip(("hypotheses", "pose", "uncertainty", "root"), values):
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], out[name].numpy())
        assert torch.equal(value, out[name])
    same(out.pose, out.hypotheses.mean(1))
    single = pipe(keypoints[0], image_size=IMAGE, generator=[seeded(3)])
    batched = pipe(keypoints[:1], image_size=IMAGE, generator=[seeded(3)])
    several = pipe([k[0] for k in filmed(people, STUDIO[:2])], cameras=STUDIO[:2], generator=seeded())
    for name, shape in (("hypotheses", (3, 6, 17, 3)), ("pose", (6, 17, 3)), ("uncertainty", (6, 17)), ("root", (6, 3))):
        assert torch.equal(single[name], batched[name][0]) and several[name].shape == shape


def test_the_sampler_in_the_networks_units_is_the_call():
    pipe, keypoints = platypose_pipeline(), keypoints_of(frames=20)
    confidence = torch.rand(2, 20, 17, generator=seeded(1))
    inputs = pipe.prepare_inputs(keypoints, confidence, IMAGE)
    settings = pipe.settings(num_hypotheses=2, eta=0.5)
    sampled = pipe.sample_clips(inputs.network_2d, inputs.confidence, settings, seeded())
    same(sampled, run(pipe, keypoints, confidence=confidence, num_hypotheses=2, eta=0.5), atol=0)


def test_callbacks_see_every_step_and_may_change_the_sample():
    pipe, keypoints, seen = platypose_pipeline(scheduler=EnergyGuidedDDIMScheduler(scale=2.0)), keypoints_of(), []
    options = {"num_hypotheses": 4, "num_inference_steps": 4}

    def watch(caller, step, timestep, state):
        assert caller is pipe and set(state) == {"sample", "clean", "energy"}
        seen.append((step, timestep, tuple(state["sample"].shape), tuple(state["clean"].shape), tuple(state["energy"].shape)))

    plain = run(pipe, keypoints, **options)
    assert torch.equal(run(pipe, keypoints, callback_on_step_end=watch, **options), plain)
    shape = (2, 4, 7, 17, 3)
    assert seen == [(step, t, shape, shape, (2, 2)) for step, t in enumerate((32, 16, 0))]
    seen.clear()
    run(pipe, keypoints, callback_on_step_end=watch, max_batch_size=4, **options)
    assert [(step, size[1]) for step, _, size, *_ in seen] == [(step, 2) for _ in range(2) for step in range(3)], "two by two"

    def lift(caller, step, timestep, state):
        offset = torch.zeros(17, 3)
        offset[3, 0] = 1.0
        return {"sample": state["sample"] + offset} if step == last else None

    last = 0
    assert (run(pipe, keypoints, callback_on_step_end=lift, **options) - plain).abs().max() > 1e-3
    last = 2
    lifted = run(pipe, keypoints, callback_on_step_end=lift, **options) - plain
    expected = torch.zeros(17, 3)
    expected[3, 0] = 0.5  # the state is in units of half a metre
    same(lifted, expected.expand_as(lifted))


def test_progress_bar(capsys):
    pipe = platypose_pipeline()
    run(pipe, keypoints_of())
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    run(pipe, keypoints_of(), num_inference_steps=4, max_batch_size=4)
    assert "6/6" in capsys.readouterr().err, "two groups of hypotheses, three steps each"


def test_defaults_are_the_constructors():
    choice = {"num_hypotheses": 4, "num_inference_steps": 4, "energy_scale": 3.0}
    pipe = platypose_pipeline(**{f"default_{name}": value for name, value in choice.items()}, default_aggregation="jpma")
    plain = platypose_pipeline()
    out = pipe(keypoints_of(), image_size=IMAGE, generator=seeded())
    spelled = plain(keypoints_of(), image_size=IMAGE, generator=seeded(), aggregation="jpma", **choice)
    assert torch.equal(out.hypotheses, spelled.hypotheses) and torch.equal(out.pose, spelled.pose)
    published = PlatyposePipeline(plain.denoiser, EnergyGuidedDDIMScheduler()).settings()
    assert (published.num_hypotheses, published.num_inference_steps, published.root) == (50, 20, "estimate")


# Learned parts


def learned():
    torch.manual_seed(1)
    model = AttentionAggregator(width=16, depth=1, num_attention_heads=1).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def calibrator():
    model = Recalibration(aggregation="attention").eval()
    model.scale *= 2
    model.radius_factor[:] = torch.linspace(0, 3, 17)
    return model


def test_learned_aggregators_and_calibrators(people):
    pipe = platypose_pipeline(aggregator=learned(), calibrator=calibrator(), default_aggregation="attention")
    keypoints = filmed(people, STUDIO[:2])
    options = {"camera": STUDIO[0], "generator": seeded()}
    out, sampled = (pipe(keypoints[0], **options | {"generator": seeded(), "calibrated": c}) for c in (None, False))
    assert out.radius is not None and sampled.radius is None and torch.equal(out.pose, sampled.pose)
    assert torch.equal(out.hypotheses, pipe.calibrator(sampled.hypotheses))
    assert (sampled.pose - sampled.hypotheses.mean(1)).abs().max() > 1e-3
    both = pipe(keypoints, cameras=STUDIO[:2], generator=seeded())
    assert both.radius is None, "calibrated for a single camera"
    same(both.pose, both.hypotheses.mean(1))
    asked = pipe(keypoints, cameras=STUDIO[:2], generator=seeded(), aggregation="attention", calibrated=True)
    assert asked.radius is not None and (asked.pose - both.pose).abs().max() > 1e-3


@both_priors
@pytest.mark.parametrize("loader", [ProbPosePipeline, PlatyposePipeline])
def test_save_and_load(prior, loader, tmp_path, people):
    defaults = {
        "default_num_hypotheses": 2, "default_num_inference_steps": 4, "default_aggregation": "attention", "default_energy_scale": 0.5,
        "guide_substeps": 3, "guide_trust": 2.0, "window_overlap": 4, "hidden_when_converted": [9, 10],
    }  # fmt: skip
    parts = {"aggregator": learned(), "calibrator": calibrator()} if loader is ProbPosePipeline else {}
    pipe = platypose_pipeline(prior, EnergyGuidedDDIMScheduler(skip_first=2), **parts, **defaults)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "PlatyposePipeline" and index["denoiser"] == ["probpose.models", "MotionPriorModel"]
    assert index["scheduler"] == ["probpose.schedulers", "EnergyGuidedDDIMScheduler"]
    loaded = quiet(loader.from_pretrained(tmp_path))
    assert type(loaded) is PlatyposePipeline and not loaded.denoiser.training
    assert {name: loaded.config[name] for name in defaults} == defaults and loaded.scheduler.config.skip_first == 2
    assert (loaded.aggregator is None) == (not parts)
    aggregation = "attention" if parts else "mean"
    for options in ({"camera": STUDIO[0]}, {"cameras": STUDIO[:2]}):
        keypoints = filmed(people, STUDIO[:2])
        keypoints = keypoints[0] if "camera" in options else keypoints
        first, second = (p(keypoints, aggregation=aggregation, generator=seeded(), **options) for p in (pipe, loaded))
        assert torch.equal(first.hypotheses, second.hypotheses) and torch.equal(first.pose, second.pose)


@both_priors
def test_half_precision(prior, tmp_path):
    pipe, keypoints = platypose_pipeline(prior), keypoints_of()
    pipe.save_pretrained(tmp_path / "whole")
    half = quiet(ProbPosePipeline.from_pretrained(tmp_path / "whole", dtype=torch.float16))
    half.save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half" / "denoiser" / "diffusion_pytorch_model.safetensors")
    assert all(weight.dtype == torch.float16 for weight in stored.values())
    expected = run(pipe, keypoints)
    for folder, dtype in (("half", torch.float32), ("whole", torch.bfloat16)):
        loaded = quiet(ProbPosePipeline.from_pretrained(tmp_path / folder, dtype=dtype))
        out = run(loaded, keypoints)
        assert out.dtype == torch.float32 and loaded.denoiser.dtype == dtype
        assert (out - expected).abs().mean() < 0.05
