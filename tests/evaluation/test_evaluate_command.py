"""`probpose evaluate`, run as a user runs it."""

import json

import numpy as np
import pytest
import torch
from known_poses import clip, tiny_pipeline

from probpose.data.datasets import load_dataset
from probpose.evaluation import QUIRKS, evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a benchmark file of three clips."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_pipeline().save_pretrained(folder / "model")
    clips = [clip("cmu/walking/1", 20, 1), clip("cmu/walking/2", 9, 2), clip("bandai/run/3", 5, 3)]
    camera = clips[0].camera
    np.savez(
        folder / "motions.npz",
        keypoints_true=torch.cat([camera.project(c.positions_camera) for c in clips]),
        keypoints_detected=torch.cat([c.keypoints_2d for c in clips]),
        confidence=torch.cat([c.confidence for c in clips]),
        positions_camera=torch.cat([c.positions_camera for c in clips]),
        rotation=np.tile(np.eye(3), (3, 1, 1)),
        translation=np.zeros((3, 3)),
        starts=np.cumsum([0, *map(len, clips)]),
        names=[c.name for c in clips],
        fps=50.0,
        image_size=camera.image_size,
        **{name: getattr(camera, name) for name in ("focal", "centre", "radial", "tangential")},
    )
    return folder


@pytest.fixture
def run(folder, run_command):
    """Run `probpose evaluate` on the folder's model and data."""

    def call(*words, data="motions.npz"):
        given = () if data is None else (folder / "model", "--data", folder / data)
        return run_command("evaluate", *given, *words)

    return call


def test_the_table_and_the_files(run, folder, tmp_path):
    code, out, err = run("--json", tmp_path / "report.json", "--latex", tmp_path / "table.tex", "--per-joint", "-k", 2, "--steps", 1)
    assert code == 0, err
    assert "motions detected, protocol motion clips: 3 clips, 34 frames" in out and "2 hypotheses, 1 steps" in out and "per joint" in out
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["settings"]["model"].startswith(str(folder / "model"))
    assert f"{content['groups']['all']['p_agg']:.1f}" in out
    assert "\\toprule" in (tmp_path / "table.tex").read_text()
    code, _, err = run("--json", tmp_path / "report.json")
    assert code == 2 and "--overwrite" in err and "report.json" in err
    assert run("--json", tmp_path / "report.json", "--overwrite")[0] == 0


def test_printed_forms_and_choices_reach_the_run(run, folder):
    code, out, err = run(
        "--json", "-", "--keypoints", "true", "--camera", "image-size", "--lens", "1920x1080:1480", "--every", 2, "--seed", 5
    )
    assert code == 0, err
    content = json.loads(out)
    assert content["settings"]["dataset"] == "motions true" and content["settings"]["clips"] == 2
    assert (content["settings"]["camera"], content["settings"]["seed"]) == ("image_size", 5)
    quirky = run(
        "--latex", "-", "--quirk", "exclude_root", "--quirk", "procrustes_n_mpjpe", "--protocol", "mocap17", "--dataset", "mocap17"
    )
    assert quirky[0] == 0 and "\\begin{tabular}" in quirky[1] and "exclude_root, procrustes_n_mpjpe" in quirky[1]
    code, out, _ = run("--set", 'keypoints="true"', "--json")
    assert code == 0 and json.loads(out)["settings"]["dataset"] == "motions true"


def test_a_run_in_a_folder_goes_on(run, folder, tmp_path):
    words = ["--out", tmp_path / "run", "--save-hypotheses", "--json", "-"]
    first = json.loads(run(*words)[1])
    code, _, err = run(*words)
    assert code == 2 and "--resume" in err
    again = json.loads(run(*words, "--resume")[1])
    assert again["groups"] == first["groups"] and again["cost"] == first["cost"]
    alone = evaluate(_model(folder), load_dataset(folder / "motions.npz"), progress=False).to_dict()
    assert alone["groups"] == first["groups"]


def _model(folder):
    from probpose import ProbPosePipeline

    return ProbPosePipeline.from_pretrained(folder / "model")


def test_a_pipeline_with_a_lifter(run_command, folder, tiny_diffpose):
    words = ["evaluate", tiny_diffpose, "--data", folder / "motions.npz", "--every", 3]
    code, out, err = run_command(*words, "--start", "noisy", "--flip", "lifter", "-k", 2)
    assert code == 0, err
    assert "2 hypotheses, 2 steps, start noisy, flip lifter" in out and "Lifter" in out
    code, _, err = run_command(*words, "--own-first-step")
    message = "--share-first-step: not for a DiffPosePipeline, whose sampler has --num-hypotheses, --steps, --start, --flip"
    assert code == 2 and err.splitlines()[-1] == f"probpose: {message}"


def test_a_pipeline_that_guides_a_prior(run_command, folder, tiny_platypose):
    words = ["evaluate", tiny_platypose, "--data", folder / "motions.npz", "--every", 3]
    code, out, err = run_command(*words, "-k", 2, "--steps", 2)
    assert code == 0, err
    assert "2 hypotheses, 2 steps" in out
    code, _, err = run_command(*words, "--flip", "off")
    message = "--flip: not for a PlatyposePipeline, whose sampler has --num-hypotheses, --steps"
    assert code == 2 and err.splitlines()[-1] == f"probpose: {message}"


def test_quirks_are_explained(run):
    code, out, _ = run("--list-quirks", data=None)
    assert code == 0 and all(name in out for name in QUIRKS) and "h36m, h36m-p1" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "h37m"], "h37m"),
        (["--protocol", "h37m"], "unknown protocol 'h37m'"),
        (["--quirk", "windows"], "unknown quirk 'windows'"),
        (["--quirk", "running_mean"], "does not concern the protocol 'clips'"),
        (["--keypoints", "guessed"], "keypoints must be one of"),
        (["--subjects", "S9"], "has no option subjects"),
        (["--set", "keypoints"], "--set must be NAME=VALUE"),
        (["--lens", "1920x1080"], "--lens"),
        (["--lens", "wide:3"], "WIDTHxHEIGHT"),
        (["-k", "0"], "num_hypotheses"),
        (["--start", "noisy"], "--start: not for a D3DPPipeline, whose sampler has --num-hypotheses, --steps, --flip, --share-first-step"),
        (["--flip", "lifter"], "--flip of a D3DPPipeline must be one of every_step, last_step, alternate, off, got lifter"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--save-hypotheses"], "out"),
        (["--json", "-", "--latex", "-"], "only one of"),
    ],
)
def test_bad_input_is_one_line(run, words, message):
    code, out, err = run(*words)
    lines = [line for line in err.splitlines() if line.startswith("probpose:")]
    assert code == 2 and len(lines) == 1 and message in lines[0] and "Traceback" not in err, err
    assert out == ""


def test_missing_files(run, folder):
    code, _, err = run(data="nothing.npz")
    assert code == 2 and "nothing.npz" in err
    code, _, err = run("no/such/model", "--data", folder / "motions.npz", data=None)
    assert code == 2 and "no/such/model" in err
