"""examples/motion_prior.py: every command writes its picture and motions that agree with what is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.models import MotionPriorModel
from probpose.pipelines import PlatyposePipeline
from probpose.schedulers import EnergyGuidedDDIMScheduler

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "motion_prior.py"
COMMANDS = {
    "complete": ["--missing", "arms"],
    "denoise": ["--noise", "30", "--lost", "0.3"],
    "interpolate": ["--keys", "3"],
    "generate": [],
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("motion_prior_example", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(**config):
    torch.manual_seed(0)
    prior = MotionPriorModel(num_frames=8, width=32, depth=1, num_attention_heads=2, fps=30, **config)
    pipe = PlatyposePipeline(prior.eval(), EnergyGuidedDDIMScheduler(num_train_timesteps=100, scale=3.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


LAYOUTS = {
    "camera": {"axes": "camera", "trajectory": "relative", "norm_first": True},
    "world": {"axes": "world", "trajectory": "relative", "norm_first": True},
    "published": {},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of untrained priors, by layout."""
    folder = tmp_path_factory.mktemp("priors")
    for name, config in LAYOUTS.items():
        tiny(**config).save_pretrained(folder / name)
    return folder


def arguments(command, model, out, *more):
    few = ["--motions", "2", "--frames", "12", "--steps", "3"]
    return [command, "--model", str(model), "--out", str(out), *few, *COMMANDS[command], *more]


@pytest.mark.parametrize(
    ("command", "layout"), [*((command, "world") for command in COMMANDS), ("complete", "published"), ("generate", "camera")]
)
def test_every_command(script, models, tmp_path, capsys, command, layout):
    assert script.main(arguments(command, models / layout, tmp_path)) == 0
    assert f"written: {tmp_path / command}.png" in capsys.readouterr().out
    assert (tmp_path / f"{command}.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / f"{command}.npz") as written:
        arrays = dict(written)
    assert arrays.pop("fps") == 30 and arrays.pop("axes") == LAYOUTS[layout].get("axes", "world")
    shapes = {"complete": ["motions", "known", "true"], "interpolate": ["motions", "known", "true"], "denoise": ["motion", "track", "true"]}
    assert list(arrays) == shapes.get(command, ["motions"])
    assert all(array.shape[-3:] == (12, 17, 3) for array in arrays.values())
    assert np.isfinite(arrays.get("motions", arrays.get("motion"))).all()
    if "known" in arrays:
        missing = np.isnan(arrays["known"]).any(-1)
        assert 0 < missing.mean() < 1 and np.array_equal(arrays["known"][~missing], arrays["true"][~missing])
        for motion in arrays["motions"]:
            np.testing.assert_allclose(motion[~missing], arrays["true"][~missing], atol=1e-5)
        assert np.abs(arrays["motions"][0] - arrays["motions"][1])[missing].max() > 1e-3


def test_captured_motions_stand_upright_in_the_prior_s_axes(script):
    options = SCRIPT.parent / "data" / "tiny_mocap.npz", "*walking_7", 3, 20
    camera, world = (script.captured(*options, tiny(**LAYOUTS[name])) for name in ("camera", "world"))
    assert camera.shape == world.shape == (20, 17, 3)
    assert ((world[:, 10, 2] > 0.6) & (camera[:, 10, 1] < -0.6)).all()  # the head is above the root
    torch.testing.assert_close(camera[:, 1:].norm(dim=-1), world[:, 1:].norm(dim=-1))
    torch.testing.assert_close(camera[:, 0].mean(0), torch.tensor([0.0, 0.0, 4.0]), atol=1e-4, rtol=0)
    # No mirror: the volume that three joints span keeps its sign.
    torch.testing.assert_close(*(torch.linalg.det(motion[:, [1, 8, 13]]) for motion in (camera, world)), atol=1e-5, rtol=0)


def test_in_between(script):
    values = torch.full((5, 3, 3), torch.nan)
    values[1, 0], values[3, 0] = 1.0, 2.0
    values[:, 1] = torch.arange(5.0)[:, None]
    filled, away = script.in_between(values)
    assert torch.equal(filled[:, 0, 2], torch.tensor([1.0, 1.0, 1.5, 2.0, 2.0]))
    assert torch.equal(filled[:, 1], values[:, 1]) and (filled[:, 2] == 0).all()
    assert away.tolist() == [[1, 0, torch.inf], [0, 0, torch.inf], [1, 0, torch.inf], [0, 0, torch.inf], [1, 0, torch.inf]]


def test_errors_count_what_is_asked_for(script):
    true, where = torch.zeros(4, 17, 3), torch.zeros(4, 17, dtype=torch.bool)
    motions = torch.stack([true, true.clone()])
    motions[1, 2, 5], motions[1, 2, 0], motions[:, 3] = torch.tensor([0.03, 0.04, 0.0]), 7.0, 9.0
    where[2, [0, 5, 6]] = True
    torch.testing.assert_close(script.errors(motions, true, where), torch.tensor([0.0, 25.0]))


def test_nothing_is_replaced_unasked(script, models, tmp_path, capsys):
    words = arguments("generate", models / "world", tmp_path)
    assert script.main(words) == 0
    before = (tmp_path / "generate.npz").read_bytes()
    assert script.main([*words, "--seed", "1"]) == 2
    assert "generate.png exists" in capsys.readouterr().err and (tmp_path / "generate.npz").read_bytes() == before
    assert script.main([*words, "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "generate.npz").read_bytes() != before


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("complete", ["--missing", "ears"], "--missing: invalid choice"),
        ("complete", ["--motions", "0"], "--motions must be at least 1, got 0"),
        ("interpolate", ["--keys", "1"], "--keys must be at least 2, got 1"),
        ("interpolate", ["--keys", "13"], "--keys: 13 poses do not fit into 12 frames"),
        ("denoise", ["--noise", "0"], "--noise must be above 0"),
        ("denoise", ["--lost", "1"], "--lost must lie in 0..1"),
        ("complete", ["--start", "89"], "walking_7 has 90 frames: --start 89 leaves 1"),
        ("complete", ["--clip", "swimming"], "no clips left"),
        ("complete", ["--data", "absent.npz"], "no motion archive at absent.npz"),
        ("generate", ["--model", "no/such/model"], "no/such/model"),
        ("generate", ["--steps", "0"], "num_inference_steps"),
        ("generate", ["--out", "no/folder"], "no/folder does not exist"),
    ],
)
def test_bad_input(script, models, tmp_path, capsys, command, more, message):
    try:
        code = script.main(arguments(command, models / "world", tmp_path, *more))
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_pipelines_have_no_prior(script, tiny_model, tmp_path, capsys):
    assert script.main(arguments("generate", tiny_model, tmp_path)) == 2
    assert "is a D3DPPipeline, which has no motion prior" in capsys.readouterr().err
