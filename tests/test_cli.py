"""The command line, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from probpose.data import KeypointTrack, write_keypoints

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(run_command):
    return run_command


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


def walk(people=1, frames=20, joints=17, skeleton="h36m_17", image_size=(640, 480)):
    rng = np.random.default_rng(0)
    body = rng.normal(0, 40, (1, joints, 2)) + np.array([320, 240])
    return [
        KeypointTrack(
            (body + 30 * i + rng.normal(0, 1, (frames, joints, 2))).astype(np.float32), np.ones((frames, joints), np.float32),
            np.arange(frames), i, skeleton, image_size, 25.0,
        )
        for i in range(people)
    ]  # fmt: skip


def test_help_is_fast_and_has_examples():
    start = time.perf_counter()
    text = subprocess.run([sys.executable, "-m", "probpose", "--help"], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - start < 5  # a second on an idle machine; loading torch or diffusers would take many
    assert "sample" in text and "evaluate" in text
    loaded = "import sys, probpose, probpose.cli; print([m for m in ('torch', 'diffusers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["sample", "evaluate", "train", "convert", "info"])
def test_every_command_explains_itself_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and f"probpose {command}" in out.split("Examples:")[1]


def test_sample_writes_what_the_pipeline_returns(run, model, tmp_path):
    from probpose import ProbPosePipeline

    (track,) = walk()
    write_keypoints(tmp_path / "walk.npz", [track])
    code, out, err = run("sample", tmp_path / "walk.npz", "--model", model, "--out", tmp_path / "out", "--seed", 3, "--steps", 1)
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["walk.html", "walk.npz", "walk.png"]
    assert "3 hypotheses of 20 frames" in out
    with np.load(tmp_path / "out" / "walk.npz", allow_pickle=False) as result:
        pipe = ProbPosePipeline.from_pretrained(model)
        expected = pipe(
            track.keypoints_2d, track.confidence, image_size=(640, 480), num_inference_steps=1, fps=25.0,
            generator=torch.Generator().manual_seed(3), output_type="np",
        )  # fmt: skip
        np.testing.assert_allclose(result["hypotheses"], expected.hypotheses, atol=1e-6)
        np.testing.assert_allclose(result["uncertainty"], expected.uncertainty, atol=1e-6)
        assert result["root"].shape == (20, 3) and float(result["fps"]) == 25 and str(result["skeleton"]) == "h36m_17"
        assert json.loads(str(result["settings"]))["seed"] == 3


def test_a_pipeline_with_a_lifter(run, tiny_diffpose, tmp_path):
    (track,) = walk()
    write_keypoints(tmp_path / "walk.npz", [track])
    words = ["sample", tmp_path / "walk.npz", "--model", tiny_diffpose, "--out", tmp_path / "out", "--no-picture"]
    code, _, err = run(*words, "--start", "noisy", "--flip", "lifter")
    assert code == 0, err
    with np.load(tmp_path / "out" / "walk.npz", allow_pickle=False) as result:
        from probpose import ProbPosePipeline

        expected = ProbPosePipeline.from_pretrained(tiny_diffpose)(
            track.keypoints_2d, track.confidence, image_size=(640, 480), start="noisy", flip="lifter", fps=25.0,
            generator=torch.Generator().manual_seed(0), output_type="np",
        )  # fmt: skip
        np.testing.assert_allclose(result["hypotheses"], expected.hypotheses, atol=1e-6)
        np.testing.assert_allclose(result["lifted"], expected.lifted, atol=1e-6)
        assert json.loads(str(result["settings"])).items() >= {"start": "noisy", "flip": "lifter"}.items()
    assert run(*words, "--flip", "off", "--overwrite")[0] == 0
    described = dict(line.split("  ", 1) for line in run("info", tiny_diffpose)[1].splitlines())
    assert "FrameTransformerModel" in described["lifter"] and described["window"].strip() == "9 frames"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--share-first-step"], "--share-first-step: not for a DiffPosePipeline, whose sampler has --num-hypotheses, --steps, --start"),
        (["--flip", "last_step"], "--flip of a DiffPosePipeline must be one of alternate, lifter, off, got last_step"),
        (["--steps", "999"], "num_inference_steps"),
    ],
)
def test_options_of_other_pipelines(run, tiny_diffpose, tmp_path, words, message):
    write_keypoints(tmp_path / "walk.npz", walk())
    code, _, err = run("sample", tmp_path / "walk.npz", "--model", tiny_diffpose, "--out", tmp_path / "out", *words)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_guides_a_prior(run, tiny_platypose, tmp_path):
    (track,) = walk()
    write_keypoints(tmp_path / "walk.npz", [track])
    words = ["sample", tmp_path / "walk.npz", "--model", tiny_platypose, "--out", tmp_path / "out", "--no-picture", "--no-page"]
    code, _, err = run(*words, "--flip", "off")
    assert code == 2 and "--flip: not for a PlatyposePipeline, whose sampler has --num-hypotheses, --steps" in err
    code, _, err = run(*words, "-k", 2, "--steps", 2)
    assert code == 0, err
    with np.load(tmp_path / "out" / "walk.npz", allow_pickle=False) as result:
        assert result["hypotheses"].shape == (2, 20, 17, 3) and np.isfinite(result["hypotheses"]).all() and result["root"].shape == (20, 3)


def test_several_people_and_another_skeleton(run, model, tmp_path):
    write_keypoints(tmp_path / "pair.npz", walk(people=2, skeleton="coco_17"))
    code, _, err = run("sample", tmp_path / "pair.npz", "--model", model, "--out", tmp_path / "out", "--no-picture", "--no-page")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pair_person0.npz", "pair_person1.npz"]


def test_nothing_is_written_over_without_being_asked(run, model, tmp_path):
    write_keypoints(tmp_path / "walk.npz", walk())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "walk.png").write_text("mine")
    words = ["sample", tmp_path / "walk.npz", "--model", model, "--out", tmp_path / "out"]
    code, _, err = run(*words)
    assert code == 2 and "walk.png" in err and "--overwrite" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["walk.png"] and (tmp_path / "out" / "walk.png").read_text() == "mine"
    assert run(*words, "--overwrite")[0] == 0
    assert (tmp_path / "out" / "walk.png").read_bytes()[:4] == b"\x89PNG"


def test_a_terminated_sample_leaves_no_half_written_file(model, tmp_path):
    write_keypoints(tmp_path / "walk.npz", walk(frames=400))
    command = [
        sys.executable,
        "-m",
        "probpose",
        "sample",
        str(tmp_path / "walk.npz"),
        "--model",
        str(model),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen([*command, "-k", "50", "--steps", "100"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while "sampling" not in (line := process.stderr.read(1)):
        if line == "" and process.poll() is not None:
            pytest.fail("the command ended before it was terminated")
        if line == "s":
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.npz"], "nowhere.npz"),
        (["KEYPOINTS", "--image-size", "640"], "WIDTHxHEIGHT"),
        (["KEYPOINTS", "--image-size", "0x480"], "WIDTHxHEIGHT"),
        (["KEYPOINTS", "-k", "0"], "num_hypotheses"),
        (["KEYPOINTS", "--steps", "-2"], "num_inference_steps"),
        (["KEYPOINTS", "--start", "noisy"], "--start: not for a D3DPPipeline, whose sampler has"),
        (["KEYPOINTS", "--flip", "lifter"], "--flip of a D3DPPipeline must be one of every_step, last_step, alternate, off, got lifter"),
        (["KEYPOINTS", "--aggregation", "best"], "aggregation"),
        (["KEYPOINTS", "--skeleton", "coco_71"], "coco_71"),
        (["KEYPOINTS", "--model", "no/such/model"], "no/such/model"),
        (["KEYPOINTS", "--device", "cuda:99"], "cuda:99"),
        (["KEYPOINTS", "--focal", "-5"], "focal"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, model, tmp_path, words, message):
    write_keypoints(tmp_path / "walk.npz", walk())
    words = [tmp_path / "walk.npz" if word == "KEYPOINTS" else word for word in words]
    model_words = [] if "--model" in words else ["--model", model]
    code, _, err = run("sample", *words, *model_words, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("probpose:")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_results_of_another_kind_and_missing_size(run, model, tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}]))
    code, _, err = run("sample", tmp_path / "boxes.json", "--model", model, "--out", tmp_path / "out")
    assert code == 2 and "boxes.json" in err
    write_keypoints(tmp_path / "walk.npz", walk(image_size=None))
    code, _, err = run("sample", tmp_path / "walk.npz", "--model", model, "--out", tmp_path / "out")
    assert code == 2 and "--image-size" in err


def test_convert_makes_a_pipeline_folder(run, tmp_path):
    golden = EXAMPLES.parent / "tests" / "golden" / "d3dp.safetensors"
    from safetensors.torch import load_file

    weights = {k.removeprefix("checkpoint/"): v for k, v in load_file(golden).items() if k.startswith("checkpoint/")}
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "original.safetensors")
    code, out, err = run("convert", "d3dp", tmp_path / "original.safetensors", tmp_path / "converted", "--set", "fps=50")
    assert code == 0 and "MixSTEModel" in out, err
    from probpose import ProbPosePipeline

    assert ProbPosePipeline.from_pretrained(tmp_path / "converted").denoiser.config.fps == 50
    code, _, err = run("convert", "d3dp", tmp_path / "original.safetensors", tmp_path / "converted")
    assert code == 2 and "--overwrite" in err
    code, _, err = run("convert", "d4dp", tmp_path / "original.safetensors", tmp_path / "other")
    assert code == 2 and "d4dp" in err and not (tmp_path / "other").exists()


def test_info_describes_models_files_and_the_installation(run, model, tmp_path):
    assert "FrameTransformerModel" in run("info", model)[1]
    write_keypoints(tmp_path / "pair.npz", walk(people=2))
    out = run("info", tmp_path / "pair.npz")[1]
    assert "people  2" in out and "640x480" in out and "25 fps" in out
    assert "h36m_17" in run("info")[1]
    code, _, err = run("info", tmp_path / "nothing")
    assert code == 2 and "nothing" in err


def test_the_module_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-m", "probpose", "info", "nowhere.json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
