"""examples/guided_d3dp.py: the virtual cameras, what they see, and the table."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from probpose.data import load_dataset

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "golden" / "benchmark_cmu.npz"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("guided_d3dp_example", ROOT / "examples" / "guided_d3dp.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cameras_stand_around_the_person(script):
    clip = load_dataset(DATA)[0]
    world = clip.camera.to_world(clip.positions_camera)
    place = world.mean((0, 1))
    centre = lambda camera: camera.to_world(torch.zeros(3))  # noqa: E731
    for degrees in (90, 180, 270):
        camera = clip.camera.carried_around(place, degrees)
        torch.testing.assert_close(camera.to_camera(place), clip.camera.to_camera(place), atol=1e-4, rtol=0)
        assert centre(camera)[2] == pytest.approx(centre(clip.camera)[2].item(), abs=1e-3)
        own, other = ((centre(c) - place)[:2] for c in (clip.camera, camera))
        angle = torch.rad2deg(torch.atan2(own[0] * other[1] - own[1] * other[0], own @ other))
        assert angle.item() % 360 == pytest.approx(degrees, abs=0.01)
    back = clip.camera.carried_around(place, 90).carried_around(place, 270)
    torch.testing.assert_close(back.to_camera(world), clip.positions_camera, atol=1e-4, rtol=0)


def test_detections_are_off_by_what_is_said(script):
    clip = load_dataset(DATA)[0]
    world = clip.camera.to_world(clip.positions_camera)
    found = torch.stack([script.detected(clip.camera, world, torch.Generator().manual_seed(seed)) for seed in range(50)])
    error = found - clip.camera.project(clip.positions_camera)
    assert error.abs().median().item() == pytest.approx(0.6745 * script.NOISE, rel=0.05)
    assert (error.abs() > 5 * script.NOISE).float().mean().item() == pytest.approx(0.764 * script.OUTLIERS, rel=0.1)


def test_the_whole_program(script, tiny_model, capsys):
    words = ["--pipeline", str(tiny_model), "--data", str(DATA), "--frames", "12", "--hypotheses", "2", "--cameras", "1,3"]
    assert script.main(words) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].startswith("| cameras | spread | trust | substeps | Each | Mean | Default | J-Best | ms/frame |")
    assert [row.split("|")[1:3] for row in rows[2:]] == [[" 1 ", " - "], [" 3 ", " default "]]
    assert script.main([*words, "--spread", "0.05,0.1", "--substeps", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split("|")[2:5] for row in rows[1:]] == [[" 0.05 ", " 1.0 ", " 1 "], [" 0.1 ", " 1.0 ", " 1 "]]


def test_errors(script, tmp_path, capsys):
    assert script.main(["--data", str(tmp_path / "none.npz")]) == 2
    assert "none.npz" in capsys.readouterr().err
    assert script.main(["--data", str(DATA), "--spread", "0"]) == 2
    assert "spread must be a finite number above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["--data", str(DATA), "--cameras", "5"])
    assert "--cameras must lie in 1..4" in capsys.readouterr().err
