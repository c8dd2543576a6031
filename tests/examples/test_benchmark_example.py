"""examples/benchmark.py: rows, JSON and what happens to rows that cannot run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.geometry import h36m_camera
from probpose.models import FrameTransformerModel
from probpose.pipelines import D3DPPipeline
from probpose.schedulers import D3DPScheduler

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "benchmark.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_example", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random pipeline and a benchmark file of three clips."""
    folder = tmp_path_factory.mktemp("benchmark")
    torch.manual_seed(0)
    denoiser = FrameTransformerModel(num_frames=16, width=32, depth=1, num_attention_heads=2)
    pipe = D3DPPipeline(denoiser, D3DPScheduler(), default_num_inference_steps=2, default_flip=False, default_share_first_step=True)
    pipe.save_pretrained(folder / "model")
    camera, starts = h36m_camera(0), [0, 20, 30, 34]
    positions = torch.randn(34, 17, 3) * 0.3 + torch.tensor([0.0, 0.0, 5.0])
    true = camera.project(positions)
    np.savez(
        folder / "data.npz",
        keypoints_true=true,
        keypoints_detected=true + torch.randn_like(true),
        confidence=np.ones((34, 17)),
        positions_camera=positions,
        rotation=np.tile(np.eye(3), (3, 1, 1)),
        translation=np.zeros((3, 3)),
        starts=starts,
        names=["cmu/walking/1", "cmu/walking/2", "cmu/running/1"],
        fps=30,
        image_size=camera.image_size,
        **{name: getattr(camera, name) for name in ("focal", "centre", "radial", "tangential")},
    )
    return folder


def options(script, folder, *more):
    return script.parse_arguments(["--pipeline", str(folder / "model"), "--hypotheses", "2", *more])


def test_the_whole_program(folder):
    command = [sys.executable, SCRIPT, "--pipeline", folder / "model", "--data", folder / "data.npz", "--clips", "3", "--json"]
    command += ["--hypotheses", "2", "--rounds", "2", "--devices", "cpu", "--modes", "exact,default", "--engines", "native,xformers"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert set(content) == {"machine", "options", "rows"}
    exact, default, xformers = content["rows"]
    assert [(row["mode"], row["engine"]) for row in content["rows"]] == [
        ("exact", "native"),
        ("default", "native"),
        ("default", "xformers"),
    ]
    windows = 4  # 20 frames need two windows of 16, the two short clips one each
    assert exact["windows"] == default["windows"] == windows
    assert exact["passes"] == windows * 2 * 10 * 2
    assert default["passes"] == windows * (1 + 2)
    for row in (exact, default):
        assert len(row["rounds"]) == 2
        assert row["seconds"] == pytest.approx(sum(row["rounds"]) / 2)
        assert row["passes_per_second"] == pytest.approx(row["passes"] / row["seconds"])
        assert row["ms_per_window"] == pytest.approx(1000 * row["seconds"] / windows)
        assert row["peak_memory_mib"] >= 0
        assert 0 < row["j_best_mm"] < row["p_agg_mm"]
    assert exact["speedup"] == 1
    assert default["speedup"] > 1
    assert "CUDA" in xformers["skipped"] or "CPU" in xformers["skipped"]
    assert xformers["rounds"] == []


def test_rows_without_true_poses(script, folder, tmp_path):
    keypoints = tmp_path / "keypoints.npz"
    pixels = np.random.default_rng(0).uniform(100, 900, (20, 17, 2))
    np.savez(keypoints, keypoints_2d=pixels, confidence=np.ones((20, 17)), skeleton="h36m_17", image_size=(1000, 1000))
    measurement = script.Measurement(
        script.Row("3/last_step/shared", "cpu", "autocast"), options(script, folder, "--keypoints", str(keypoints))
    )
    facts = measurement.facts()
    assert (facts["windows"], facts["passes"]) == (2, 2 * (1 + 2 + 4))
    assert "p_agg_mm" not in facts
    assert measurement.round() > 0


@pytest.mark.parametrize("engine", ["native", "autocast", "bf16"])
def test_engines_give_about_the_same_errors(script, folder, engine):
    chosen = options(script, folder, "--data", str(folder / "data.npz"), "--clips", "1")
    expected = script.Measurement(script.Row("default", "cpu", "native"), chosen).facts()
    facts = script.Measurement(script.Row("default", "cpu", engine), chosen).facts()
    assert facts["p_agg_mm"] == pytest.approx(expected["p_agg_mm"], rel=0.02)


def test_a_row_that_fails_says_why(script, folder):
    class Connection(list):
        send = list.append

    answers = Connection()
    script.serve(answers, script.Row("default", "cpu", "no-such-backend"), options(script, folder))
    assert len(answers) == 1
    assert "no-such-backend" in answers[0]


def test_plan(script, folder):
    chosen = options(script, folder, "--modes", "exact,default", "--engines", "native,bf16,xformers+bf16", "--compile")
    rows = [(row.mode, row.device, row.engine) for row in script.plan(chosen, ["cpu", "cuda"])]
    engines = ["bf16", "xformers+bf16", "compile"]
    one_device = [("exact", "native"), ("default", "native"), *(("default", engine) for engine in engines)]
    assert rows == [(mode, device, engine) for device in ("cpu", "cuda") for mode, engine in one_device]
    skipped = [row.skipped for row in script.plan(chosen, ["cpu", "cuda"])]
    assert [reason is not None for reason in skipped] == [False, False, False, True, False, *[False] * 5]
    chosen.full = True
    assert len(script.plan(chosen, ["cpu"])) == 8


def test_medians_resist_a_slow_round(script):
    exact = script.Row("exact", "cpu", "native", passes=100, windows=5, rounds=[10.0, 30.0, 11.0])
    fast = script.Row("default", "cpu", "native", passes=10, windows=5, rounds=[1.0, 3.0, 1.0])
    fast.summarise(exact)
    assert (fast.seconds, fast.passes_per_second, fast.ms_per_window, fast.speedup) == (1.0, 10.0, 200.0, 10.0)


def test_table(script):
    rows = [
        script.Row("exact", "cpu", "native", passes=1200, windows=3, rounds=[2.0], peak_memory_mib=12.3, p_agg_mm=41.26),
        script.Row("default", "cuda", "xformers", skipped="no kernel"),
    ]
    rows[0].summarise(rows[0])
    heading, exact, skipped = script.format_table(rows).splitlines()
    assert heading.split()[:3] == ["mode", "device", "engine"]
    assert exact.split() == ["exact", "cpu", "native", "1200", "2.000", "600.0", "666.67", "1.00", "12", "41.3", "-"]
    assert skipped.split() == ["default", "cuda", "xformers", "skipped:", "no", "kernel"]


@pytest.mark.parametrize("mode", ["fast", "3/both/shared", "x/none/own", "3/none"])
def test_unknown_modes(script, capsys, mode):
    with pytest.raises(SystemExit):
        script.parse_arguments(["--modes", mode])
    assert mode in capsys.readouterr().err
