"""The bundled model: it is small, it loads, and it keeps its promises on real motion that it has not seen."""

from pathlib import Path

import pytest
import torch

from probpose import ProbPosePipeline, read_keypoints
from probpose.data.datasets import load_dataset
from probpose.evaluation import evaluate
from probpose.geometry import Camera
from probpose.hub import bundled_model, list_bundled_models
from probpose.metrics import mpjpe, pa_mpjpe
from probpose.skeletons import convert

HERE = Path(__file__).resolve().parent
PHONE = Camera((1480.0, 1480.0), (960.0, 540.0), image_size=(1920, 1080))


@pytest.fixture(scope="module")
def pipe():
    return ProbPosePipeline.from_pretrained(bundled_model("d3dp-mocap17"))


@pytest.fixture(scope="module")
def benchmark():
    """Three CMU clips of the test split: running, basketball, walking (mocap.cs.cmu.edu, NSF EIA-0196217)."""
    return load_dataset(HERE / "golden" / "benchmark_cmu.npz")


@pytest.fixture(scope="module")
def true_2d():
    return load_dataset(HERE / "golden" / "benchmark_cmu.npz", keypoints="true")


def measure(pipe, benchmark, **settings):
    settings = {"num_hypotheses": 10, "num_inference_steps": 3, "progress": False} | settings
    return evaluate(pipe, benchmark, **settings)


@pytest.mark.parametrize(("name", "megabytes"), [("d3dp-mocap17", 12), ("diffpose-mocap17", 16), ("platypose-mocap17", 16)])
def test_it_is_bundled_small_and_described(name, megabytes):
    assert name in list_bundled_models() and bundled_model("no-such-model") is None
    folder = bundled_model(name)
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 1e6 * megabytes
    card = (folder / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "Measured" in card


@pytest.mark.parametrize(
    ("camera", "keypoints", "lens", "bar"),
    [("known", "detected", None, 60), ("known", "true", None, 55), ("known", "detected", PHONE, 60), ("image_size", "detected", PHONE, 65)],
    ids=["detected", "true 2D", "another camera", "unknown camera"],
)
def test_accuracy_on_unseen_motion(pipe, benchmark, true_2d, camera, keypoints, lens, bar):
    clips = true_2d if keypoints == "true" else benchmark
    report = measure(pipe, clips if lens is None else clips.through(lens), camera=camera)
    assert report["p_agg"] < bar
    assert report["j_best"] < 0.8 * report["p_agg"]
    assert report["j_agg"] < report["p_agg"] + 0.5


def test_the_default_is_as_accurate_as_the_published_mode_in_a_tenth_of_its_passes(pipe, benchmark):
    clips = benchmark.subset(only=["cmu/walking"])
    fast = measure(pipe, clips, num_inference_steps=None)
    exact = measure(pipe, clips, num_inference_steps=10, flip="every_step", share_first_step=False)
    assert fast.passes <= exact.passes / 10
    assert fast["p_agg"] <= exact["p_agg"] + 0.3
    assert fast["j_best"] <= exact["j_best"] + 1


def test_uncertainty_ranks_joints(pipe, benchmark):
    """Where the hypotheses disagree, the error is larger."""
    uncertainty, error = [], []
    for clip in benchmark:
        out = pipe(clip.keypoints_2d, clip.confidence, camera=clip.camera, generator=torch.Generator().manual_seed(0))
        uncertainty.append(out.uncertainty[:, 1:].flatten())
        error.append((out.pose - clip.pose).norm(dim=-1)[:, 1:].flatten())
    uncertainty, error = torch.cat(uncertainty), torch.cat(error)
    halves = uncertainty > uncertainty.median()
    assert error[halves].mean() > 1.5 * error[~halves].mean()


def test_the_learned_aggregator_and_the_calibration_keep_their_word(pipe, benchmark):
    """Three clips only: the bounds are wide."""
    report = measure(pipe, benchmark, num_hypotheses=None, num_inference_steps=None)
    assert report["attention"] < min(report["p_agg"], report["j_agg"]) - 0.5
    assert report["ece"] > 0.3 and report["ece_calibrated"] < 0.12
    assert report["energy_score_calibrated"] < report["energy_score"]
    assert 80 < report["within_radius"] < 99
    assert report["within_uncertainty"] < report["within_radius"]


def test_the_learned_aggregator_takes_any_number_of_hypotheses(pipe, benchmark):
    few, many = (measure(pipe, benchmark.subset(max_clips=1), num_hypotheses=k, num_inference_steps=None) for k in (2, 40))
    assert all(report["attention"] < report["p_agg"] for report in (few, many))


def test_another_body_is_followed(pipe, benchmark):
    """Legs a tenth longer: the error stays of the same order."""
    clip = benchmark[2]
    pose = clip.pose.clone()
    for hip, knee, ankle in ((1, 2, 3), (4, 5, 6)):
        thigh, shin = 1.1 * (clip.pose[:, knee] - clip.pose[:, hip]), 1.1 * (clip.pose[:, ankle] - clip.pose[:, knee])
        pose[:, knee] = pose[:, hip] + thigh
        pose[:, ankle] = pose[:, knee] + shin
    keypoints = clip.camera.project(pose + clip.root[:, None])
    out = pipe(keypoints, camera=clip.camera, generator=torch.Generator().manual_seed(0))
    assert mpjpe(out.pose, pose) < 70


def test_missing_joints_and_other_skeletons(pipe, true_2d):
    clip = true_2d[2]
    arguments = {"camera": clip.camera, "num_hypotheses": 5}
    full = pipe(clip.keypoints_2d, generator=torch.Generator().manual_seed(0), **arguments).pose
    hidden = clip.keypoints_2d.clone()
    hidden[20:40, 16] = torch.nan
    partial = pipe(hidden, generator=torch.Generator().manual_seed(0), **arguments).pose
    assert 1000 * (partial - full).norm(dim=-1).mean() < 40
    coco = torch.nan_to_num(convert(clip.keypoints_2d, "h36m_17", "coco_17"), nan=0.0)
    unseen = torch.ones(coco.shape[:-1])
    unseen[:, 1:5] = 0
    converted = pipe(coco, unseen, skeleton="coco_17", generator=torch.Generator().manual_seed(0), **arguments).pose
    assert pa_mpjpe(converted, clip.pose) < 80  # the midpoint of the hips is not this data's pelvis: compare shapes


def test_the_demo_keypoints_are_readable():
    (track,) = read_keypoints(HERE.parent / "examples" / "data" / "basketball.npz")
    assert track.skeleton == "h36m_17" and len(track) == 144 and track.fps == 30
    assert [t.track_id for t in read_keypoints(HERE.parent / "examples" / "data" / "two_people.npz")] == [0, 1]


# diffpose-mocap17 -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffpose():
    return ProbPosePipeline.from_pretrained(bundled_model("diffpose-mocap17"))


def test_diffusion_improves_on_its_lifter(diffpose, benchmark):
    report = evaluate(diffpose, benchmark, num_hypotheses=20, progress=False)
    one = evaluate(diffpose, benchmark, num_hypotheses=1, progress=False)
    assert report["attention"] < report["lifter"] < 60
    assert report["j_best"] < 0.9 * one["j_best"]


def test_diffpose_takes_single_frames(diffpose, benchmark):
    clip = benchmark.subset(only=["cmu/walking"])[0]
    still = diffpose(clip.keypoints_2d[20:21], clip.confidence[20:21], camera=clip.camera, generator=torch.Generator().manual_seed(0))
    assert still.hypotheses.shape == (20, 1, 17, 3)
    assert mpjpe(still.pose, clip.pose[20:21]) < 90


def test_uncertain_keypoints_make_uncertain_diffpose_hypotheses(diffpose, benchmark):
    """What the detector is unsure of is what the hypotheses differ in."""
    clip = benchmark.subset(only=["cmu/walking"])[0]
    right_arm, confidence = [15, 16], clip.confidence[:30].clone().clamp_min(0.95)
    doubtful = confidence.clone()
    doubtful[:, right_arm] = 0.3
    spread = []
    for trust in (confidence, doubtful):
        call = {"camera": clip.camera, "calibrated": False, "num_hypotheses": 10, "aggregation": "mean"}
        out = diffpose(clip.keypoints_2d[:30], trust, generator=torch.Generator().manual_seed(0), **call)
        spread.append(out.uncertainty[:, right_arm].mean().item())
    assert spread[1] > 1.1 * spread[0]


def test_platypose_needs_no_pairs_but_gains_by_every_camera(benchmark):
    """Two cameras at least halve the error of one, and nothing comes from the ground truth."""
    pipe = ProbPosePipeline.from_pretrained(bundled_model("platypose-mocap17"))
    pipe.set_progress_bar_config(disable=True)
    clip = next(clip for clip in benchmark if "walking" in clip.name)
    frames = slice(0, 24)
    truth = clip.positions_camera[frames]
    world = clip.camera.to_world(truth)
    side = clip.camera.carried_around(world.mean((0, 1)), 90)
    seen = side.project(side.to_camera(world)) + 3 * torch.randn(len(truth), 17, 2, generator=torch.Generator().manual_seed(0))
    errors = []
    for count in (1, 2):
        out = pipe(
            [clip.keypoints_2d[frames], seen][:count], [clip.confidence[frames], torch.full(seen.shape[:-1], 0.9)][:count],
            cameras=[clip.camera, side][:count], num_hypotheses=4, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        errors.append(mpjpe(out.pose, truth - truth[:, :1]))
    assert errors[0] < 120 and errors[1] < 0.3 * errors[0], errors
