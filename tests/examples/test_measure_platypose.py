"""examples/measure_platypose.py: what its parts find of a tiny pipeline, and what it counts."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from probpose import ProbPosePipeline
from probpose.calibration import Recalibration, ece
from probpose.data import load_dataset
from probpose.metrics import min_mpjpe, mpjpe
from probpose.models import MotionPriorModel
from probpose.pipelines import PlatyposePipeline
from probpose.schedulers import EnergyGuidedDDIMScheduler

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "golden" / "benchmark_cmu.npz"
SHORT = ["--data", str(DATA), "--hypotheses", "3", "--steps", "2", "--lengths", "1,20"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_platypose_example", ROOT / "examples" / "measure_platypose.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of an untrained pipeline, whose poses are as large as a person, and whose calibrator widens the spread."""
    torch.manual_seed(0)
    denoiser = MotionPriorModel(num_frames=16, width=32, depth=1, num_attention_heads=2, axes="world", trajectory="relative").eval()
    bias = load_dataset(DATA)[0]
    bias = bias.camera.rotation.mT @ bias.pose[0].mT
    denoiser.proj_out.weight.data *= 0.3
    denoiser.proj_out.bias.data[:] = bias.mT.flatten()
    calibrator = Recalibration(mode="scale")
    calibrator.scale *= 20
    folder = tmp_path_factory.mktemp("platypose")
    PlatyposePipeline(denoiser, EnergyGuidedDDIMScheduler(), calibrator=calibrator).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def options(script):
    return script.parse_arguments(["--model", "a", *SHORT])


def test_the_whole_program(script, model, tmp_path, capsys):
    assert script.main(["--model", model, *SHORT, "--clips", "10", "--json", str(tmp_path / "measured.json")]) == 0
    out, report = capsys.readouterr().out, json.loads((tmp_path / "measured.json").read_text())
    assert (report["clips"], report["hypotheses"], report["steps"]) == (3, 3, 2)
    assert [line[3:] for line in out.splitlines() if line.startswith("## ")] == list(script.PARTS)
    assert [row["frames"] for row in report["lengths"]] == [1, 20]
    assert [row["cameras"] for row in report["cameras"]] == [1, 2, 4]
    assert [(row["energy_scale"], row["keypoints"]) for row in report["robustness"][4:6]] == [(0.1, "only noise"), (1.0, "detected")]
    for row in report["robustness"]:
        assert (row["windows"], row["refused"], row["not_finite"]) == (2, 0, 0) and 0 < row["farthest_m"] < 3
    assert [row["clips_per_call"] for row in report["batch"]] == [1, 4, 16]
    assert all(row["difference_mm"] < 0.1 and row["s_per_clip"] > 0 for row in report["batch"])
    for row in report["lengths"] + report["cameras"]:
        assert row["windows"] == 3 and row["mean_mm"] == pytest.approx(row["default_mm"], rel=1e-4) and row["ms_per_frame"] > 0
        assert row["pa_min_frame_mm"] <= row["pa_min_mm"] < row["min_mm"] and row["min_frame_mm"] <= row["min_mm"]
    assert report["cameras"][0]["min_mm"] == report["lengths"][1]["min_mm"] != report["cameras"][1]["min_mm"]

    # The same with the pipeline alone.
    pipe, row = ProbPosePipeline.from_pretrained(model), report["lengths"][1]
    pipe.set_progress_bar_config(disable=True)
    poses, truth = [], []
    for number, clip in enumerate(load_dataset(DATA)):
        middle = slice((len(clip) - 20) // 2, (len(clip) - 20) // 2 + 20)
        known = {"confidence": clip.confidence[middle], "camera": clip.camera, "calibrated": False}
        generator = torch.Generator().manual_seed(number)
        poses.append(pipe(clip.keypoints_2d[middle], num_hypotheses=3, num_inference_steps=2, generator=generator, **known).hypotheses)
        truth.append(clip.pose[middle])
    poses, truth = torch.stack(poses), torch.stack(truth)
    assert row["mean_mm"] == pytest.approx(mpjpe(poses.mean(1), truth), rel=1e-4)
    assert row["min_mm"] == pytest.approx(min_mpjpe(poses, truth), rel=1e-4)
    assert row["ece"] == pytest.approx(ece(poses, truth), abs=1e-3)
    assert row["ece_recalibrated"] == pytest.approx(ece(pipe.calibrator(poses), truth), abs=1e-3)
    assert row["ece_recalibrated"] < row["ece"] - 0.01


def test_one_hypothesis_in_bfloat16(script, model, capsys):
    words = ["lengths", "--model", model, *SHORT, "--hypotheses", "1", "--every", "2", "--windows", "2", "--bf16"]
    assert script.main(words) == 0
    heading, _, *rows = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert all(row[heading.index("windows")] == "4" and row[heading.index("ECE")] == "-" for row in rows) and len(rows) == 2


def test_cameras_stand_around_the_person_and_see_the_true_motion_with_errors_of_other_frames(script):
    clip = load_dataset(DATA)[1]
    views = script.views(clip, 7, 20, 4)
    worlds = [view.camera.to_world(view.positions_camera) for view in views]
    for world in worlds[1:]:
        torch.testing.assert_close(world, worlds[0], atol=1e-4, rtol=0)
    places = torch.stack([-view.camera.rotation.mT @ view.camera.translation for view in views]) - worlds[0].mean((0, 1))
    torch.testing.assert_close(places[:, 2], places[:1, 2].expand(4), atol=1e-4, rtol=0)
    for own, following in zip(places[:, :2], places[1:, :2]):
        torch.testing.assert_close(following, torch.stack([-own[1], own[0]]), atol=1e-3, rtol=0)
    errors = clip.keypoints_2d - clip.camera.project(clip.positions_camera)
    for number, view in enumerate(views):
        frames = (torch.arange(7, 27) - number * len(clip) // 4) % len(clip)
        torch.testing.assert_close(view.keypoints_2d - view.camera.project(view.positions_camera), errors[frames], atol=0.01, rtol=0)
        assert torch.equal(view.confidence, clip.confidence[frames])
    torch.testing.assert_close(views[0].keypoints_2d, clip.keypoints_2d[7:27], atol=0.01, rtol=0)


def test_windows_are_spread_over_clips(script, options):
    options.windows = 3
    data = load_dataset(DATA)
    first = [script.middle_windows(data, 20, options)[number].views[0] for number in range(3)]
    starts = [int((data[0].keypoints_2d[:, 0] == view.keypoints_2d[0, 0]).all(-1).nonzero()) for view in first]
    spare = len(data[0]) - 20
    assert starts == [spare // 4, spare // 2, 3 * spare // 4]


def test_spoiled_keypoints(script, options):
    options.clips = 50
    data = load_dataset(DATA)
    windows = script.random_windows(data, options)
    clean = {kind: windows[number::5] for number, kind in enumerate(script.KINDS)}
    errors = {k: [w.views[0].keypoints_2d - w.views[0].camera.project(w.views[0].positions_camera) for w in v] for k, v in clean.items()}
    size = {kind: torch.stack(error).norm(dim=-1).nanmedian().item() for kind, error in errors.items()}
    assert size["detected"] < 5 and size["missing"] < 5 and 10 < size["noisy"] < 100 and size["only noise"] > 200
    assert torch.stack(errors["missing"]).isnan().float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (torch.stack(errors["outliers"]).norm(dim=-1) > 50).float().mean().item() == pytest.approx(1 / 3, abs=0.05)


def test_what_is_counted_of_explosions(script):
    truth = load_dataset(DATA)[0].pose[:2]
    twice, far, broken = (torch.stack([truth, truth]) for _ in range(3))
    twice *= 2
    far[1, 0, 3] = torch.tensor([0.0, 4.0, 0.0])
    broken[0, 1, 5, 2] = torch.nan
    found = script.worst_of([twice, broken, ValueError("behind it"), far], [truth] * 4, "h36m_17")
    counts = {"windows": 4, "refused": 1, "first_refusal": "behind it", "not_finite": 1, "exploded": 1, "farthest_m": pytest.approx(4)}
    assert {key: found[key] for key in counts} == counts and found["bone_ratio"] > 4
    assert script.worst_of([twice], [truth], "h36m_17")["bone_ratio"] == pytest.approx(2, rel=1e-4)
    nothing = script.worst_of([ValueError("no")], [truth], "h36m_17")
    assert nothing["farthest_m"] is nothing["bone_ratio"] is None
    assert "| - | - |\n\nFirst refusal: no" in "\n".join(script.table_of([{"energy_scale": 1.0, "keypoints": "noisy", **nothing}]))


def test_one_refused_window_does_not_stop_the_others(script, model, options):
    pipe = ProbPosePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    windows = script.middle_windows(load_dataset(DATA), 16, options)
    bad = windows[1].views[0]
    confident = script.Window([script.replace(bad, confidence=2 * bad.confidence + 1)], 1)
    alone = script.call(pipe, [windows[2]], options).hypotheses[0]
    first, refused, last = script.attempt(pipe, [windows[0], confident, windows[2]], options)
    assert first.shape == alone.shape and "confidence must lie in 0..1" in str(refused)
    torch.testing.assert_close(last, alone)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed", "--model", "m", "--data", "x"], "unknown part 'speed': there are lengths, cameras"),
        (["--model", "m", "--data", "x", "--lengths", "1,0"], "--lengths"),
        (["--model", "m", "--data", "x", "--json", "no/folder/rows.json"], "no folder no/folder"),
        (["--model", "no/such/model", "--data", str(DATA)], "no/such/model"),
        (["--model", "d3dp-mocap17", "--data", str(DATA)], "d3dp-mocap17 is a D3DPPipeline, no PlatyposePipeline"),
    ],
)
def test_bad_input(script, capsys, words, message):
    try:
        code = script.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err
