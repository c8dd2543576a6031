"""Benchmarks and reports: the file format, another lens, known errors, and independence of the clips from each other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.evaluation import METRICS, BenchmarkClips, evaluate
from probpose.geometry import Camera, h36m_camera
from probpose.models import FrameTransformerModel
from probpose.pipelines import D3DPPipeline, ProbPosePipelineOutput
from probpose.schedulers import D3DPScheduler

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "benchmark" / "mocap17_test.npz"
LENGTHS = {
    "cmu/walking/walking_1": 20,
    "bandai/dataset-2_walk-turn-left_active_040": 12,
    "bandai/dataset-1_run_old_001": 8,
    "cmu/walking/walking_2": 3,
}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    frames, clips = sum(LENGTHS.values()), len(LENGTHS)
    camera = h36m_camera(0)
    drift = np.cumsum(rng.normal(0, 0.01, (frames, 17, 3)), axis=0)
    positions = (rng.normal([0.2, 0.1, 5], 0.3, (17, 3)) + drift).astype(np.float32)
    true = camera.project(torch.from_numpy(positions)).numpy()
    return {
        "keypoints_true": true,
        "keypoints_detected": true + rng.normal(0, 3, true.shape).astype(np.float32),
        "confidence": rng.uniform(0.5, 1, true.shape[:2]).astype(np.float32),
        "positions_camera": positions,
        "rotation": np.tile(np.eye(3, dtype=np.float32), (clips, 1, 1)),
        "translation": np.arange(3 * clips, dtype=np.float32).reshape(clips, 3),
        "starts": np.cumsum([0, *LENGTHS.values()]),
        "names": np.array(list(LENGTHS)),
        "fps": np.int64(30),
        "image_size": np.array(camera.image_size),
        **{name: getattr(camera, name).double().numpy() for name in ("focal", "centre", "radial", "tangential")},
    }


@pytest.fixture
def benchmark(arrays, tmp_path):
    np.savez(tmp_path / "tiny.npz", **arrays)
    return BenchmarkClips.load(tmp_path / "tiny.npz")


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    denoiser = FrameTransformerModel(num_frames=16, width=32, depth=1, num_attention_heads=2).eval()
    return D3DPPipeline(denoiser, D3DPScheduler(), default_num_hypotheses=3, default_num_inference_steps=2, default_flip="last_step")


class Known:
    """A stand-in for a pipeline whose K = 2 hypotheses are the truth moved 30 mm along ±x, except at the root joint."""

    skeleton = input_skeleton = "h36m_17"
    config = {  # noqa: RUF012
        "default_num_hypotheses": 2,
        "default_num_inference_steps": 1,
        "default_flip": False,
        "default_share_first_step": False,
    }

    def __init__(self, benchmark):
        self.clips = {len(clip): clip for clip in benchmark}
        self.calls = []

    def __call__(self, keypoints_2d, confidence, camera=None, image_size=None, **arguments):
        self.calls.append({"keypoints_2d": keypoints_2d, "confidence": confidence, "camera": camera, "image_size": image_size, **arguments})
        clip = self.clips[len(keypoints_2d)]
        shift = torch.zeros(2, 1, 17, 3)
        shift[0, :, 1:, 0], shift[1, :, 1:, 0] = 0.03, -0.03
        camera = camera or Camera.from_image_size(*image_size)
        return ProbPosePipelineOutput(hypotheses=clip.pose + shift, root=clip.root + torch.tensor([0.0, 0.0, 0.5]), camera=camera)

    def count_passes(self, frames, num_hypotheses, **_):
        return frames * num_hypotheses

    def set_progress_bar_config(self, **_):
        pass


# The file


def test_load_gives_every_clip_its_own_frames(benchmark, arrays):
    assert {clip.name: len(clip) for clip in benchmark} == LENGTHS
    assert (len(benchmark), benchmark.num_frames, benchmark.name) == (4, 43, "tiny")
    clip = benchmark[1]
    np.testing.assert_array_equal(clip.positions_camera, arrays["positions_camera"][20:32])
    np.testing.assert_array_equal(clip.confidence, arrays["confidence"][20:32])
    assert clip.camera.translation.tolist() == [3, 4, 5]
    assert clip.camera.image_size == h36m_camera(0).image_size
    assert clip.fps == 30.0
    torch.testing.assert_close(clip.pose + clip.root[:, None], clip.positions_camera)
    torch.testing.assert_close(clip.camera.project(clip.positions_camera), clip.keypoints_true)


def test_sources_and_families(benchmark):
    assert [clip.source for clip in benchmark] == ["cmu", "bandai", "bandai", "cmu"]
    assert [clip.family for clip in benchmark] == ["cmu/walking", "bandai/walk-turn-left", "bandai/run", "cmu/walking"]


def test_missing_file_and_missing_arrays(arrays, tmp_path):
    with pytest.raises(FileNotFoundError, match="no benchmark file"):
        BenchmarkClips.load(tmp_path / "none.npz")
    del arrays["rotation"], arrays["fps"]
    np.savez(tmp_path / "part.npz", **arrays)
    with pytest.raises(ValueError, match="rotation, fps"):
        BenchmarkClips.load(tmp_path / "part.npz")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("names", lambda v: v.astype(object), "pickle"),
        ("starts", lambda v: v[::-1], "starts must rise"),
        ("starts", lambda v: np.array([0, 20, 22, 43, 43]), "three frames"),
        ("confidence", lambda v: v[:-1], r"confidence must have shape \(43, 17\)"),
        ("rotation", lambda v: v[0], r"rotation must have shape \(4, 3, 3\)"),
        ("names", lambda v: v[:2], r"names must have shape \(4,\)"),
    ],
)
def test_damaged_arrays(arrays, tmp_path, name, change, message):
    np.savez(tmp_path / "bad.npz", **{**arrays, name: change(arrays[name])})
    with pytest.raises(ValueError, match=message):
        BenchmarkClips.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken"])
def test_files_that_are_no_archive(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match="no benchmark file"):
        BenchmarkClips.load(tmp_path / "bad.npz")


def test_single_array_is_no_benchmark(tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(ValueError, match="no benchmark file"):
        BenchmarkClips.load(tmp_path / "bad.npy")


# Subsets and lenses


def test_subsets(benchmark):
    names = list(LENGTHS)
    assert [clip.name for clip in benchmark.subset(every=3)] == [names[0], names[3]]
    assert [clip.name for clip in benchmark.subset(max_clips=2)] == [names[0], names[2]]
    assert len(benchmark.subset(max_clips=9)) == 4
    assert [clip.name for clip in benchmark.subset(families=["bandai", "cmu/walking"])] == names
    assert [clip.name for clip in benchmark.subset(families=["bandai/run"])] == [names[2]]
    for arguments in ({"every": 0}, {"max_clips": 0}, {"families": ["cmu/flying"]}, {"families": []}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            benchmark.subset(**arguments)


def test_the_same_lens_changes_nothing(benchmark):
    for before, after in zip(benchmark, benchmark.through(h36m_camera(0))):
        torch.testing.assert_close(after.keypoints_detected, before.keypoints_detected)
        torch.testing.assert_close(after.camera.rotation, before.camera.rotation)


def test_another_lens_keeps_the_noise_relative_to_the_person(benchmark):
    old = benchmark[0].camera
    phone = Camera(2 * old.focal, torch.tensor([960.0, 540.0]), image_size=(1920, 1080))
    for before, after in zip(benchmark, benchmark.through(phone)):
        slopes = before.positions_camera[..., :2] / before.positions_camera[..., 2:]
        torch.testing.assert_close(after.keypoints_true, slopes * phone.focal + phone.centre)
        noise = before.keypoints_detected - before.keypoints_true
        torch.testing.assert_close(after.keypoints_detected - after.keypoints_true, 2 * noise, atol=1e-3, rtol=1e-3)
        assert after.camera.image_size == (1920, 1080)
        torch.testing.assert_close(after.camera.translation, before.camera.translation)
        torch.testing.assert_close(after.positions_camera, before.positions_camera)


def test_a_batch_of_lenses_is_refused(benchmark):
    with pytest.raises(ValueError, match="single camera"):
        benchmark.through(Camera(torch.ones(2, 2), torch.ones(2, 2)))


# Measuring


def test_known_hypotheses_give_known_errors(benchmark):
    report = evaluate(Known(benchmark), benchmark, progress=False)
    share = 30 * 16 / 17  # the root joint does not move
    for row in report.groups().values():
        for metric in ("p_agg", "pa_mpjpe", "n_mpjpe", "mpjve", "acceleration"):
            assert row[metric] == pytest.approx(0, abs=1e-3)
        for metric in ("j_agg_true_root", "p_best", "j_best", "uncertainty"):
            assert row[metric] == pytest.approx(share, rel=1e-4)
        for metric in ("j_agg", "weighted"):  # between the mean, which is right, and a hypothesis
            assert 0 < row[metric] <= share
        assert row["root"] == pytest.approx(500, rel=1e-4)
    assert report.passes == 43 * 2


def test_what_the_pipeline_is_given(benchmark):
    known = Known(benchmark)
    evaluate(known, benchmark.subset(max_clips=1), progress=False, max_batch_size=7)
    evaluate(known, benchmark.subset(max_clips=1), keypoints="true", camera="image_size", progress=False)
    detected, true = known.calls
    clip = benchmark[0]
    assert torch.equal(detected["keypoints_2d"], clip.keypoints_detected)
    assert torch.equal(detected["confidence"], clip.confidence)
    assert detected["camera"] is clip.camera
    assert (detected["max_batch_size"], detected["fps"], detected["aggregation"]) == (7, 30.0, None)
    assert torch.equal(true["keypoints_2d"], clip.keypoints_true)
    assert (true["confidence"] == 1).all()
    assert true["camera"] is None
    assert true["image_size"] == clip.camera.image_size


def test_a_clip_does_not_depend_on_the_others(pipe, benchmark):
    report = evaluate(pipe, benchmark, progress=False)
    backwards = evaluate(pipe, replace(benchmark, clips=benchmark.clips[::-1]), progress=False)
    assert [r.errors for r in report.results] == [r.errors for r in backwards.results[::-1]]
    alone = evaluate(pipe, benchmark.subset(families=["bandai/run"]), progress=False)
    assert alone.results[0].errors == report.results[2].errors
    other = evaluate(pipe, benchmark, seed=1, progress=False)
    assert other["p_agg"] != report["p_agg"]


def test_a_real_pipeline(pipe, benchmark):
    report = evaluate(pipe, benchmark, progress=False)
    for row in report.groups().values():
        assert row["j_best"] <= min(row["p_best"], row["j_agg_true_root"])
        assert row["pa_mpjpe"] <= row["p_agg"]
    sampler = {"num_hypotheses": 3, "num_inference_steps": 2, "flip": "last_step", "share_first_step": False}
    assert report.settings.items() >= {**sampler, "clips": 4, "frames": 43, "keypoints": "detected", "camera": "known", "seed": 0}.items()
    assert report.passes == sum(pipe.count_passes(len(clip), **sampler) for clip in benchmark)
    assert report.seconds > 0
    fast = evaluate(pipe, benchmark, num_hypotheses=2, num_inference_steps=1, flip=False, share_first_step=True, progress=False)
    assert fast.settings["num_hypotheses"] == 2
    assert fast.passes == sum(pipe.count_passes(len(clip), 2, 1, False, True) for clip in benchmark)


def test_the_progress_bars_of_the_pipeline_come_back(pipe, benchmark):
    pipe.set_progress_bar_config(desc="mine")
    evaluate(pipe, benchmark.subset(max_clips=1), progress=False)
    assert pipe._progress_bar_config == {"desc": "mine"}


def test_wrong_choices(pipe, benchmark):
    for arguments, message in (
        ({"keypoints": "guessed"}, "keypoints must be one of"),
        ({"camera": "phone"}, "camera must be one of"),
        ({"num_hypotheses": 0}, "num_hypotheses"),
        ({"flip": "sometimes"}, "flip"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(pipe, benchmark, progress=False, **arguments)
    with pytest.raises(ValueError, match="no clips"):
        evaluate(pipe, replace(benchmark, clips=()), progress=False)
    other = D3DPPipeline(FrameTransformerModel(4, 14, 32, 1, 2, skeleton="common_14"), D3DPScheduler())
    with pytest.raises(ValueError, match="h36m_17"):
        evaluate(other, benchmark, progress=False)


# The report


@pytest.fixture
def report(pipe, benchmark):
    return evaluate(pipe, benchmark, progress=False)


def test_means_are_weighted_by_frames(report):
    rows = report.groups()
    assert list(rows) == ["all", "bandai", "cmu", "bandai/run", "bandai/walk-turn-left", "cmu/walking"]
    assert [(row["clips"], row["frames"]) for row in rows.values()] == [(4, 43), (2, 20), (2, 23), (1, 8), (1, 12), (2, 23)]
    for metric in METRICS:
        values = [(result.frames, result.errors[metric]) for result in report.results]
        assert rows["all"][metric] == pytest.approx(sum(n * v for n, v in values) / 43)
        assert rows["cmu"][metric] == rows["cmu/walking"][metric]
    assert report["j_best"] == rows["all"]["j_best"]
    assert list(report.groups("source")) == ["all", "bandai", "cmu"]
    assert list(report.groups("all")) == ["all"]
    with pytest.raises(ValueError, match="level must be one of"):
        report.groups("clip")


def test_text_is_aligned_and_says_how_it_was_made(report):
    text = report.to_text()
    assert "4 clips, 43 frames" in text
    assert "3 hypotheses, 2 steps, flip last step, first step own" in text
    assert f"{report.passes} network passes" in text
    lines = text.splitlines()
    table = lines[lines.index("") + 1 :][:7]
    assert [line.split()[0] for line in table] == ["mm", *report.groups()]
    assert len({len(line) for line in table}) == 1
    assert table[1].split()[3] == f"{report['p_agg']:.1f}"
    assert all(meaning in text for _, meaning in METRICS.values())


def test_json_and_markdown(report):
    content = json.loads(report.to_json())
    assert content == report.to_dict()
    assert set(content) == {"settings", "cost", "groups"}
    assert content["groups"]["all"]["p_agg"] == report["p_agg"]
    rows = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["mm", "---", "all", "bandai", "cmu"]
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared benchmark file is not here")
def test_shared_benchmark():
    benchmark = BenchmarkClips.load(SHARED)
    assert (len(benchmark), benchmark.num_frames) == (186, 29763)
    assert {clip.source for clip in benchmark} == {"cmu", "bandai"}
    assert all(clip.family.startswith(f"{clip.source}/") and clip.family.count("_") <= 1 for clip in benchmark)
    for clip in benchmark.subset(max_clips=5):
        torch.testing.assert_close(clip.camera.project(clip.positions_camera), clip.keypoints_true, atol=1e-2, rtol=0)
