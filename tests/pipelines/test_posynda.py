"""PoSynDAPipeline: samples as D3DP does, and adapts to a scene of which it sees 2D alone."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny_pipelines import IMAGE, both_models, keypoints_of, mixste_pipeline, quiet, seeded

from probpose import ProbPosePipeline
from probpose.adaptation import Build, change_build
from probpose.data import CameraVariation, MocapClips, PoseClip, TargetTrack, TrainingWindows, target_tracks
from probpose.geometry import Camera
from probpose.models import FrameTransformerModel
from probpose.pipelines import AdaptationReport, AdaptationSettings, D3DPPipeline, PoSynDAPipeline
from probpose.pipelines.adapting import SourcePoses, TargetWindows, _human36m_order
from probpose.schedulers import D3DPScheduler
from probpose.skeletons import get_skeleton

ARCHIVE = Path(__file__).resolve().parents[2] / "examples" / "data" / "tiny_mocap.npz"
FRAMES = 9
LENS = Camera((1480.0, 1480.0), (960.0, 540.0), image_size=IMAGE)
SWITCHES = ("alignment", "augmentation", "build", "pseudo_labels")
SHORT = AdaptationSettings(
    rounds=2, patience=2, steps=3, batch_size=6, learning_rate=3e-3, rank=2, momentum=0.9, num_hypotheses=2, label_error=0.5,
    label_weight=0.5, label_windows=8, held_out=0.15, warm_up=2, **dict.fromkeys(SWITCHES, True),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one(one_thread):
    """The tensors are tiny."""


def source(seed=0, frames=FRAMES):
    camera = CameraVariation(distance=(3.0, 6.0), height=(1.0, 1.8), high_probability=0.0, unknown_probability=0.0)
    return TrainingWindows(MocapClips(ARCHIVE), frames, camera=camera, seed=seed)


@pytest.fixture(scope="module")
def weights():
    """A small denoiser that has learned a little from the source."""
    torch.manual_seed(0)
    model, scheduler, windows = tiny_model(), D3DPScheduler(), source(seed=1)
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(100):
        batch = windows.render(list(range(32 * step, 32 * (step + 1))))
        timestep = torch.randint(1000, (32,))
        noisy = scheduler.add_noise(batch["pose"], torch.randn_like(batch["pose"]), timestep)
        out = model(batch["keypoints_2d"], noisy, timestep, confidence=batch["confidence"]).sample
        optimiser.zero_grad()
        (out - batch["pose"]).norm(dim=-1).mean().backward()
        optimiser.step()
    return model.state_dict()


def tiny_model(**config):
    return FrameTransformerModel(**{"num_frames": FRAMES, "width": 32, "depth": 1, "num_attention_heads": 1} | config)


@pytest.fixture
def make_pipe(weights):
    """`make_pipe()`: always the same pipeline."""

    def make(**config):
        model = tiny_model(**config)
        model.load_state_dict(weights)
        return quiet(PoSynDAPipeline(denoiser=model.eval(), scheduler=D3DPScheduler()))

    return make


def other_people(camera=LENS):
    """Clips of the same motions by people with wider hips, lower shoulders and longer legs, seen from above and far away."""
    clips, build = MocapClips(ARCHIVE, split=None), Build.unchanged("h36m_17")
    build.torso[0] = torch.tensor([0.04, -0.05, 0.03])
    build.torso[1] = torch.tensor([0.0, -0.05, 0.02])
    build.limbs[:2] = 0.12
    tilt = torch.tensor([[1.0, 0, 0], [0, 0.35, -0.937], [0, 0.937, 0.35]])
    tilt = torch.stack([tilt[0], tilt[1] / tilt[1].norm(), tilt[2] / tilt[2].norm()])
    found = []
    for number, name in enumerate(clips.names):
        _, local = clips[number]
        angle = 2 * math.pi * number / len(clips)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0], [0.0, 0.0, 1.0]])
        pose = change_build(local @ (tilt @ turn).T, build, "h36m_17") + torch.tensor([0.3, 0.2, 5.0 + 0.3 * number])
        noise = torch.randn(*pose.shape[:2], 2, generator=seeded(number))
        points = camera.project(pose) + noise
        found.append(PoseClip(name, points, torch.ones(points.shape[:2]), pose, camera, 30.0))
    return found


@pytest.fixture(scope="module")
def target():
    return other_people()


def adapt(pipe, target, settings=SHORT, **options):
    return pipe.adapt(target, source=options.pop("source", source()), settings=settings, **options)


def tensors(pipe):
    return {name: value.detach().clone() for name, value in pipe.denoiser.state_dict().items()}


def adapter(pipe):
    return {name: value for name, value in tensors(pipe).items() if ".lora_" in name}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sample(pipe, **options):
    options = {"num_hypotheses": 2, "num_inference_steps": 2, "aggregation": None} | options
    return pipe(keypoints_of(frames=FRAMES), image_size=IMAGE, generator=seeded(), **options).hypotheses


def untouched(pipe, fresh):
    """As if nobody had ever tried to adapt it."""
    assert pipe.get_list_adapters() == {} and not pipe.denoiser.training
    assert same(tensors(pipe), tensors(fresh)) and torch.equal(sample(pipe), sample(fresh))


# ---------------------------------------------------------------------------------------------------------------------
# A pipeline like D3DP's
# ---------------------------------------------------------------------------------------------------------------------


@both_models
def test_it_samples_as_d3dp(make_pipe):
    d3dp = make_pipe()
    pipe = quiet(PoSynDAPipeline(denoiser=d3dp.denoiser, scheduler=d3dp.scheduler))
    noise = torch.randn(2, 2, 3, FRAMES, 17, 3, generator=seeded())
    options = {"image_size": IMAGE, "num_hypotheses": 3, "num_inference_steps": 2, "noise": noise}
    one, other = (each(keypoints_of(frames=FRAMES), **options) for each in (d3dp, pipe))
    assert torch.equal(one.hypotheses, other.hypotheses) and torch.equal(one.pose, other.pose) and torch.equal(one.root, other.root)
    assert pipe.config.default_num_hypotheses == d3dp.config.default_num_hypotheses


@pytest.mark.parametrize("loader", [ProbPosePipeline, PoSynDAPipeline])
def test_saving(loader, make_pipe, tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "PoSynDAPipeline"
    loaded = quiet(loader.from_pretrained(tmp_path))
    assert type(loaded) is PoSynDAPipeline and torch.equal(sample(loaded), sample(pipe))


def test_any_d3dp_model_can_be_adapted(make_pipe, tmp_path):
    pipe = make_pipe()
    D3DPPipeline(denoiser=pipe.denoiser, scheduler=pipe.scheduler, default_num_hypotheses=3).save_pretrained(tmp_path)
    assert type(ProbPosePipeline.from_pretrained(tmp_path)) is D3DPPipeline
    loaded = PoSynDAPipeline.from_pretrained(tmp_path)
    assert type(loaded) is PoSynDAPipeline and loaded.config.default_num_hypotheses == 3


# ---------------------------------------------------------------------------------------------------------------------
# What the network sees of a target
# ---------------------------------------------------------------------------------------------------------------------


@both_models
def test_the_networks_camera_sees_what_the_network_sees(make_pipe):
    pipe = make_pipe()
    absolute = 0.4 * torch.randn(2, 5, 17, 3, generator=seeded()) + torch.tensor([0.2, -0.3, 4.0])
    camera = Camera((1480.0, 1470.0), (950.0, 560.0), image_size=IMAGE)
    seen = pipe.to_network(camera.project(absolute), camera, camera.image_size)
    torch.testing.assert_close(pipe.network_camera(camera).project(absolute), seen, atol=1e-5, rtol=0)


def track_of(keypoints, confidence=None, name="one", camera=LENS):
    return TargetTrack(name, keypoints, torch.ones(keypoints.shape[:2]) if confidence is None else confidence, camera, 30.0, "h36m_17")


def test_windows_of_tracks(make_pipe):
    pipe = make_pipe(canonical_camera=(2.0, 2.1, 0.1, 0.0))
    lens = replace(LENS, focal=2 * LENS.focal)
    points = [keypoints_of(1, frames, seed=frames)[0] for frames in (20, 5)]
    confidence = torch.rand(20, 17, generator=seeded()) * 0.6 + 0.4
    confidence[3, 4], confidence[15, 6] = 0.0, 0.0
    points[0][2, 1] = torch.nan
    confidence[2, 1] = 0.0
    windows = TargetWindows.of_tracks(pipe, [track_of(points[0], confidence), track_of(points[1], name="two", camera=lens)])
    assert len(windows) == 4 and windows.fps == 30 and windows.keypoints_2d.shape == (4, FRAMES, 17, 2)
    network = pipe.to_network(points[0][None], LENS, IMAGE)[0]
    hidden = confidence == 0
    for row, first in enumerate((0, 9, 11)):
        cut = slice(first, first + FRAMES)
        assert torch.equal(windows.confidence[row], confidence[cut])
        assert torch.equal(windows.keypoints_2d[row].isnan().any(-1), hidden[cut])
        torch.testing.assert_close(windows.keypoints_2d[row][~hidden[cut]], network[cut][~hidden[cut]])
    short = pipe.to_network(points[1][None], lens, IMAGE)[0]
    torch.testing.assert_close(windows.keypoints_2d[3], torch.cat([short, short[-1:].expand(4, -1, -1)]))
    torch.testing.assert_close(windows.focal, torch.tensor([2.0, 2.1]).expand(4, 2))
    torch.testing.assert_close(windows.centre, torch.tensor([0.1, 0.0]).expand(4, 2))
    assert windows.filled.isfinite().all()
    assert torch.equal(windows.filled[windows.confidence > 0], windows.keypoints_2d[windows.confidence > 0])


def test_every_window_has_the_camera_of_its_track():
    pipe = mixste_pipeline()
    wide = replace(LENS, focal=LENS.focal / 2, centre=torch.tensor([900.0, 500.0]))
    tracks = [track_of(keypoints_of(1, FRAMES)[0], name=name, camera=camera) for name, camera in (("a", LENS), ("b", wide))]
    windows = TargetWindows.of_tracks(pipe, tracks)
    for row, camera in enumerate((LENS, wide)):
        expected = pipe.network_camera(camera)
        assert torch.equal(windows.focal[row], expected.focal) and torch.equal(windows.centre[row], expected.centre)
        assert torch.equal(windows[torch.tensor([row])].camera.focal, expected.focal[None])


def test_windows_in_which_nobody_is_seen_are_left_out(make_pipe):
    points, confidence = keypoints_of(1, 4 * FRAMES)[0], torch.ones(4 * FRAMES, 17)
    confidence[:FRAMES] = 0
    confidence[FRAMES : FRAMES + 5] = 0.1  # more than half of the frames
    confidence[2 * FRAMES : 3 * FRAMES, 0] = 0  # no root
    assert len(TargetWindows.of_tracks(make_pipe(), [track_of(points, confidence)])) == 1
    with pytest.raises(ValueError, match="none of 3 windows of the target shows a person"):
        TargetWindows.of_tracks(make_pipe(), [track_of(points[: 3 * FRAMES], confidence[: 3 * FRAMES])])


def test_missing_keypoints_may_have_a_confidence(make_pipe):
    points = keypoints_of(1, FRAMES)[0]
    points[:, 3] = torch.nan
    windows = TargetWindows.of_tracks(make_pipe(), [track_of(points)])
    assert not windows.confidence[..., 3].any() and windows.confidence[..., 4].all()


def windows_of(count):
    numbers = torch.arange(count).float()[:, None]
    return TargetWindows(numbers[:, None, None].expand(count, 3, 17, 2), torch.ones(count, 3, 17), numbers, numbers, 30.0)


@pytest.mark.parametrize("held_out", [0.15, 0.5, 0.9])
def test_split(held_out):
    used, judged = (part.focal.flatten().tolist() for part in windows_of(800).split(held_out))
    assert sorted(used + judged) == list(range(800))
    assert len(judged) == pytest.approx(800 * min(held_out, 0.5), rel=0.1)
    assert all(8 * (number // 8) + offset in judged for number in judged for offset in range(8))


@pytest.mark.parametrize(("count", "held_out"), [(20, 0.15), (1, 0.5), (800, 0.0)])
def test_too_few_to_split(count, held_out):
    assert [len(part) for part in windows_of(count).split(held_out)] == [count, count]


def test_a_target_has_no_place_for_3d(target):
    assert {field.name for field in fields(TargetTrack)} == {"name", "keypoints_2d", "confidence", "camera", "fps", "skeleton"}
    assert {field.name for field in fields(TargetWindows)} == {"keypoints_2d", "confidence", "focal", "centre", "fps"}
    placed = replace(LENS, rotation=torch.eye(3), translation=torch.zeros(3))
    for track in target_tracks([replace(clip, camera=placed) for clip in target]):
        assert track.keypoints_2d.shape[-1] == 2 and track.camera.rotation is None and track.camera.translation is None


# ---------------------------------------------------------------------------------------------------------------------
# Adapting
# ---------------------------------------------------------------------------------------------------------------------


def test_adapting(make_pipe, target):
    pipe, fresh = make_pipe(), make_pipe()
    settings = replace(SHORT, steps=25, batch_size=24, rank=8, augmentation=False, label_windows=32)
    report = adapt(pipe, target, settings)
    assert isinstance(report, AdaptationReport)
    assert report.after["reprojection_mm"] < 0.97 * report.before["reprojection_mm"]
    assert [entry["round"] for entry in report.history] == [0, 1, 2] and report.best_round in (1, 2)
    names = {"reprojection_mm", "asymmetry_mm", "stretch_mm", "spread_mm"}
    assert report.before.keys() == report.after.keys() >= names
    for values, at in ((report.before, 0), (report.after, report.best_round)):
        assert all(report.history[at][name] == value and 0 < value < math.inf for name, value in values.items())
    assert all(entry["source_mm"] > 0 for entry in report.history[1:])
    assert len(report.build["torso_mm"]) == 6 and len(report.build["limbs"]) == 4 and 0.5 < report.build["size"] < 2
    assert 0 < report.windows < sum(math.ceil(len(clip) / FRAMES) for clip in target)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    lines = report.to_text().splitlines()
    assert lines[0].split()[-2:] == ["before", "after"]
    assert lines[1].split()[-2:] == [f"{values['reprojection_mm']:.1f}" for values in (report.before, report.after)]
    assert f"{report.windows} windows" in lines[-1]

    # The adapter is all that is new.
    assert pipe.get_active_adapters() == [report.adapter_name] == ["adapted"] and not pipe.denoiser.training
    state = {name.replace(".base_layer", ""): value for name, value in tensors(pipe).items() if ".lora_" not in name}
    assert same(state, tensors(fresh)) and adapter(pipe)
    assert (sample(pipe) - sample(fresh)).abs().max() > 1e-4
    pipe.disable_lora()
    assert torch.equal(sample(pipe), sample(fresh))


def test_the_adapter_can_be_saved(make_pipe, target, tmp_path):
    pipe, fresh = make_pipe(), make_pipe()
    adapt(pipe, target, adapter_name="scene")
    pipe.save_lora_weights(tmp_path)
    fresh.load_lora_weights(tmp_path, adapter_name="scene")
    assert torch.equal(sample(fresh), sample(pipe))
    pipe.delete_adapters("scene")
    untouched(pipe, make_pipe())


def test_all_weights(make_pipe, target):
    pipe, fresh = make_pipe(), make_pipe()
    report = adapt(pipe, target, replace(SHORT, rank=None, steps=6, augmentation=False, build=False, pseudo_labels=False))
    assert report.adapter_name is None and pipe.get_list_adapters() == {} and not pipe.denoiser.training
    before, after = tensors(fresh), tensors(pipe)
    assert before.keys() == after.keys()
    if report.best_round:
        assert all(not torch.equal(before[name], after[name]) for name, _ in pipe.denoiser.named_parameters())
    else:
        assert same(before, after)


def test_without_a_better_round_the_model_stays_as_it_was(make_pipe, target):
    pipe, fresh = make_pipe(), make_pipe()
    report = adapt(pipe, target, replace(SHORT, learning_rate=0.0, augmentation=False))
    assert report.best_round == 0 and report.after == report.before and report.adapter_name == "adapted"
    assert torch.equal(sample(pipe), sample(fresh))


@pytest.mark.parametrize("switch", [*SWITCHES, "none"])
def test_every_switch_alone(switch, make_pipe, target):
    pipe = make_pipe()
    settings = replace(SHORT, rounds=1, **{name: name == switch for name in SWITCHES})
    report = adapt(pipe, target, settings)
    assert len(report.history) == 2 and math.isfinite(report.history[1]["source_mm"])
    moved = any(value for group in report.build["torso_mm"] for value in group)
    assert moved == (switch == "build")


def test_students_may_answer_for_their_own_reprojection(make_pipe, target):
    pipes = [make_pipe(), make_pipe()]
    for pipe, weight in zip(pipes, (0.0, 1.0)):
        adapt(pipe, target, replace(SHORT, rounds=1, augmentation=False, reprojection_weight=weight, label_error=0.5))
    assert not same(adapter(pipes[0]), adapter(pipes[1]))


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_seeds(drop_path, make_pipe, target):
    pipes = [make_pipe(drop_path=drop_path) for _ in range(3)]
    reports = []
    for number, (pipe, seed) in enumerate(zip(pipes, (1, 1, 2))):
        torch.manual_seed(number)  # has no say in it
        state = torch.random.get_rng_state()
        reports.append(adapt(pipe, target, replace(SHORT, rounds=1), seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert same(adapter(pipes[0]), adapter(pipes[1])) and reports[0] == reports[1]
    assert not same(adapter(pipes[0]), adapter(pipes[2]))


def test_it_never_sees_3d_of_the_target(make_pipe, target):
    unknown = [replace(clip, positions_camera=torch.full_like(clip.positions_camera, torch.nan)) for clip in target]
    pipes = [make_pipe(), make_pipe()]
    reports = [adapt(pipe, clips) for pipe, clips in zip(pipes, (target, unknown))]
    assert same(adapter(pipes[0]), adapter(pipes[1])) and reports[0] == reports[1]


def test_what_the_target_is_given_as_does_not_matter(make_pipe, target):
    """Data set clips, tracks that were made before, or keypoints and a camera."""
    tracks, settings = target_tracks(target[:1]), replace(SHORT, rounds=1)
    pipes = [make_pipe() for _ in range(4)]
    adapt(pipes[0], target[:1], settings)
    adapt(pipes[1], tracks, settings)
    adapt(pipes[2], tracks[0], settings)
    adapt(pipes[3], target[0].keypoints_2d, settings, cameras=LENS, skeleton="h36m_17", fps=30.0)
    for pipe in pipes[1:]:
        assert same(adapter(pipe), adapter(pipes[0]))


def test_sources(make_pipe, target):
    poses = torch.cat([batch["pose"] + batch["root"][:, :, None] for batch in [source().render(list(range(20)))]])
    settings = replace(SHORT, rounds=1, build=False)
    pipes = [make_pipe() for _ in range(3)]
    adapt(pipes[0], target, settings, source=poses)
    adapt(pipes[1], target, settings, source=SourcePoses(poses))
    assert adapt(pipes[2], target, settings, source=str(ARCHIVE)).history
    assert same(adapter(pipes[0]), adapter(pipes[1])) and not same(adapter(pipes[0]), adapter(pipes[2]))


def test_windows_of_poses():
    poses = torch.randn(5, FRAMES, 17, 3, generator=seeded())
    batch = SourcePoses(poses).render([3, 1000, 3])
    absolute = batch["pose"] + batch["root"][:, :, None]
    assert torch.equal(absolute[0], absolute[2]) and not batch["pose"][:, :, 0].any()
    for row in absolute:
        assert any(torch.allclose(row, window, atol=1e-6) for window in poses)
    batch = SourcePoses(poses).render(list(range(100)))
    assert len((batch["pose"] + batch["root"][:, :, None])[:, 0, 5].round(decimals=4).unique(dim=0)) == 5


def test_a_published_model_without_a_canonical_camera(target):
    pipe, fresh = (quiet(PoSynDAPipeline(denoiser=mixste_pipeline().denoiser, scheduler=D3DPScheduler())) for _ in range(2))
    report = adapt(pipe, target[:3])
    assert len(report.history) == 3 and pipe.get_active_adapters() == ["adapted"] and adapter(pipe)
    pipe.disable_lora()
    assert torch.equal(sample(pipe), sample(fresh))


def test_an_adapter_on_top_of_the_same_model(make_pipe, target):
    """A second scene; the first one's adapter stays as it is."""
    pipe, settings = make_pipe(), replace(SHORT, rounds=1, build=False)
    adapt(pipe, target, settings, adapter_name="first")
    first = adapter(pipe)
    adapt(pipe, target[:2], settings, adapter_name="second")
    assert pipe.get_active_adapters() == ["second"] and set(pipe.get_list_adapters()["denoiser"]) == {"first", "second"}
    assert same(first, {name: value for name, value in adapter(pipe).items() if ".first." in name})
    alone = make_pipe()
    adapt(alone, target[:2], settings, adapter_name="second")
    assert same(adapter(alone), {name: value for name, value in adapter(pipe).items() if ".second." in name})


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and going on
# ---------------------------------------------------------------------------------------------------------------------


class Breaking:
    """A source that fails when asked once too often, or as soon as a file is there."""

    def __init__(self, times=math.inf, file=None):
        self.windows, self.left, self.file = source(), times, file

    def render(self, indices):
        self.left -= 1
        if self.left < 0 or (self.file is not None and self.file.exists()):
            raise RuntimeError("power cut")
        return self.windows.render(indices)


@pytest.mark.parametrize("odd", [0, 1])
def test_resuming(odd, make_pipe, target, tmp_path):
    settings, state = replace(SHORT, warm_up=SHORT.warm_up + odd), tmp_path / "run.pt"
    whole, cut, resumed, again = (make_pipe() for _ in range(4))
    expected = adapt(whole, target, settings)
    with pytest.raises(RuntimeError, match="power cut"):
        adapt(cut, target, settings, source=Breaking(file=state), state=state)
    untouched(cut, make_pipe())
    report = adapt(resumed, target, settings, state=state, resume=True)
    assert same(adapter(resumed), adapter(whole)) and report == expected
    # A run that is over.
    assert adapt(again, target, settings, state=state, resume=True, source=Breaking(0)) == expected
    assert same(adapter(again), adapter(whole))


def test_resuming_without_a_state_begins(make_pipe, target, tmp_path):
    pipe, fresh = make_pipe(), make_pipe()
    adapt(pipe, target, replace(SHORT, rounds=1), state=tmp_path / "run.pt", resume=True)
    adapt(fresh, target, replace(SHORT, rounds=1))
    assert same(adapter(pipe), adapter(fresh)) and (tmp_path / "run.pt").is_file()


@pytest.fixture(scope="module")
def stored(weights, target, tmp_path_factory):
    """A run that was saved."""
    state = tmp_path_factory.mktemp("state") / "run.pt"
    model = tiny_model()
    model.load_state_dict(weights)
    adapt(quiet(PoSynDAPipeline(model.eval(), D3DPScheduler())), target, replace(SHORT, rounds=1), state=state)
    return state


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"steps": 4}, 0, "other settings: steps 3 there, 4 now"),
        ({"build": False}, 0, "build True there, False now"),
        ({}, 1, "seed 0 there, 1 now"),
        ({"rank": 3}, 0, "rank 2 there, 3 now"),
    ],
)
def test_resuming_with_other_settings(changes, seed, message, stored, make_pipe, target):
    pipe = make_pipe()
    with pytest.raises(ValueError, match=message):
        adapt(pipe, target, replace(SHORT, rounds=1, **changes), seed=seed, state=stored, resume=True)
    untouched(pipe, make_pipe())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "another"])
def test_resuming_from_a_damaged_file(damage, stored, make_pipe, target, tmp_path):
    path, content = tmp_path / "run.pt", stored.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello", "another": b""}[damage])
    if damage == "another":
        torch.save({"weights": torch.zeros(3)}, path)
    pipe = make_pipe()
    with pytest.raises(ValueError, match=r"run\.pt is damaged"):
        adapt(pipe, target, replace(SHORT, rounds=1), state=path, resume=True)
    untouched(pipe, make_pipe())


def test_resuming_elsewhere(stored, make_pipe, target):
    """Another target, or other weights of the same shapes."""
    pipe, other = make_pipe(), make_pipe()
    torch.nn.init.normal_(other.denoiser.proj_out.weight, std=0.05)
    for one, clips in ((pipe, target[:2]), (other, target)):
        with pytest.raises(ValueError, match="is of a run with another target or other weights"):
            adapt(one, clips, replace(SHORT, rounds=1), state=stored, resume=True)
        assert one.get_list_adapters() == {}
    untouched(pipe, make_pipe())


def test_resuming_with_another_model(stored, target):
    pipe = quiet(PoSynDAPipeline(denoiser=tiny_model(width=64).eval(), scheduler=D3DPScheduler()))
    with pytest.raises(ValueError, match="is of a run with another model"):
        adapt(pipe, target, replace(SHORT, rounds=1), state=stored, resume=True)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize(("times", "rank"), [(0, 2), (1, 2), (5, 2), (5, None)])
def test_a_failure_leaves_nothing_behind(times, rank, make_pipe, target):
    pipe = make_pipe()
    with pytest.raises(RuntimeError, match="power cut"):
        adapt(pipe, target, replace(SHORT, rank=rank), source=Breaking(times))
    untouched(pipe, make_pipe())


def test_a_failure_leaves_other_adapters_active(make_pipe, target):
    pipe = make_pipe()
    adapt(pipe, target, replace(SHORT, rounds=1, build=False), adapter_name="first")
    before, samples = tensors(pipe), sample(pipe)
    with pytest.raises(RuntimeError, match="power cut"):
        adapt(pipe, target, adapter_name="second", source=Breaking(5))
    assert pipe.get_active_adapters() == ["first"] and pipe.get_list_adapters() == {"denoiser": ["first"]}
    assert same(tensors(pipe), before) and torch.equal(sample(pipe), samples)
    with pytest.raises(ValueError, match=r"rank=None trains the denoiser's own weights: take the adapters \['first'\] off first"):
        adapt(pipe, target, replace(SHORT, rank=None))


def test_a_failure_at_the_very_beginning(make_pipe, target):
    """COCO's joints are not Human3.6M's, whose detector is imitated."""
    model = tiny_model(skeleton="coco_17")
    pipe = quiet(PoSynDAPipeline(denoiser=model.eval(), scheduler=D3DPScheduler()))
    poses = torch.randn(4, FRAMES, 17, 3, generator=seeded()) + torch.tensor([0.0, 0.0, 4.0])
    for settings in (SHORT, replace(SHORT, augmentation=False)):
        with pytest.raises(ValueError, match="in any order, not for coco_17"):
            adapt(pipe, [replace(track_of(target[0].keypoints_2d), skeleton="coco_17")], settings, source=poses)
        assert pipe.get_list_adapters() == {} and not pipe.denoiser.training


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be done
# ---------------------------------------------------------------------------------------------------------------------


def test_an_adapter_name_in_use(make_pipe, target):
    pipe = make_pipe()
    pipe.denoiser.add_adapter(pipe.denoiser.lora_config(rank=1), "scene")
    before = tensors(pipe)
    with pytest.raises(ValueError, match="adapter_name: the pipeline has an adapter 'scene' already"):
        adapt(pipe, target, adapter_name="scene")
    assert pipe.get_active_adapters() == ["scene"] and same(tensors(pipe), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype, make_pipe, target):
    pipe = make_pipe().to(dtype)
    with pytest.raises(ValueError, match=rf"float32 .* not {dtype}"):
        adapt(pipe, target)


def test_sources_that_do_not_fit(make_pipe, target):
    pipe = make_pipe()
    with pytest.raises(ValueError, match="source has windows of 16 frames, the model takes 9"):
        adapt(pipe, target, source=source(frames=16))
    for shape in ((4, 8, 17, 3), (4, FRAMES, 16, 3), (FRAMES, 17, 3), (0, FRAMES, 17, 3)):
        with pytest.raises(ValueError, match=r"source must have shape \(windows, 9, 17, 3\) for this model, got"):
            adapt(pipe, target, source=torch.ones(shape))
    for poses in (torch.full((4, FRAMES, 17, 3), torch.nan), torch.randn(4, FRAMES, 17, 3, generator=seeded())):
        with pytest.raises(ValueError, match="source must hold absolute poses in front of the camera"):
            adapt(pipe, target, source=poses)
    with pytest.raises(ValueError, match="source has h36m_17 in world axes, the model takes h36m_17 in camera axes"):
        adapt(pipe, target, source=TrainingWindows(MocapClips(ARCHIVE), FRAMES, axes="world"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        adapt(pipe, target, source="nowhere.npz")
    fast = make_pipe(fps=50.0)
    with pytest.raises(ValueError, match=r"h36m_17 at 30 frames per second, the model is for h36m_17 at 50"):
        adapt(fast, target, source=ARCHIVE)
    untouched(pipe, make_pipe())


def test_targets_that_do_not_fit(make_pipe, target):
    pipe = make_pipe()
    nobody = replace(target[0], confidence=torch.zeros_like(target[0].confidence))
    with pytest.raises(ValueError, match="without people"):
        adapt(pipe, [nobody])
    tracks = target_tracks(target[:1], fps=15.0)
    with pytest.raises(ValueError, match=r"target_keypoints: the model takes tracks of h36m_17 at 30\.0 frames per second"):
        adapt(make_pipe(fps=30.0), tracks)
    mixed = [*target_tracks(target[:1]), *target_tracks(target[1:2], fps=15.0)]
    with pytest.raises(ValueError, match="tracks of h36m_17 at one number of frames per second"):
        adapt(pipe, mixed)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        adapt(pipe, "nowhere.json")
    with pytest.raises(FileNotFoundError, match="state: the folder nowhere does not exist"):
        adapt(pipe, target, state="nowhere/run.pt")
    reads_coco = mixste_pipeline(model={"input_skeleton": "coco_17"}).denoiser
    with pytest.raises(ValueError, match="reads coco_17 and produces h36m_17"):
        adapt(PoSynDAPipeline(denoiser=reads_coco, scheduler=D3DPScheduler()), target)
    untouched(pipe, make_pipe())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alignment", 1), ("rounds", 0), ("rounds", 1.5), ("rounds", True), ("patience", 0), ("steps", "many"), ("batch_size", 1),
        ("learning_rate", -1e-3), ("learning_rate", math.nan), ("learning_rate", "fast"), ("rank", 0), ("rank", 2.0), ("rank", True),
        ("momentum", 1.0), ("momentum", "slow"), ("held_out", 1.0), ("held_out", -0.1), ("label_weight", math.inf), ("label_weight", None),
        ("limb_variation", -1), ("warm_up", -1), ("num_hypotheses", 0), ("label_windows", 0),
    ],
)  # fmt: skip
def test_settings_name_what_is_wrong(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .*, got {value!r}"):
        AdaptationSettings(**{field: value})
    AdaptationSettings(warm_up=0, held_out=0.0, momentum=0, rank=None, learning_rate=0)


def test_a_detector_errs_alike_in_another_order_of_the_joints():
    """MPI-INF-3DHP's order of the same joints: what is hidden or swapped is the same joint."""
    other = get_skeleton("mpi_inf_3dhp_17")
    order = _human36m_order(other.name)
    assert sorted(order.tolist()) == list(range(17))
    names = [other.joint_names[joint] for joint in order]
    mine = get_skeleton("h36m_17").joint_names
    assert sum(a == b for a, b in zip(names, mine)) >= 13
    assert [order.tolist().index(other.flip_index[joint]) for joint in order] == list(get_skeleton("h36m_17").flip_index)


@pytest.mark.parametrize("name", ["diffpose-mocap17", "platypose-mocap17"])
def test_a_pipeline_of_another_kind_is_not_loaded(name):
    with pytest.raises(ValueError, match=f"{name} holds a .*Pipeline, which cannot be loaded as a PoSynDAPipeline"):
        PoSynDAPipeline.from_pretrained(name)
