"""examples/adapt_to_a_scene.py: the table, the numbers behind it, and who is measured."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "adapt_to_a_scene.py"
SHORT = [
    "rounds=2", "steps=2", "batch_size=4", "label_windows=4", "warm_up=2", "num_hypotheses=2", "rank=2", "held_out=0.0", "patience=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("adapt_to_a_scene_example", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archives(make_archive):
    """Walks to learn from, and those of larger people to be filmed."""
    source = make_archive({f"a/{i}": 40 for i in range(3)}, file="source.npz")
    names = [f"b/{i}" for i in range(6)]
    return source, make_archive(dict.fromkeys(names, 20), dict.fromkeys(names, 1.1), "test", file="target.npz")


@pytest.fixture
def run(script, archives, tiny_model, monkeypatch, capsys, one_thread):
    def call(*words):
        source, target = archives
        options = ["--model", tiny_model, "--source", source, "--target", target, "--cameras", "1", "--seeds", "0", *words]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options), "--set", *SHORT])
        script.main()
        return capsys.readouterr().out

    return call


def test_the_whole_program(run, tmp_path):
    out = run("--rows", "none", "all", "full", "--json", tmp_path / "rows.json")
    results = json.loads((tmp_path / "rows.json").read_text())
    assert list(results) == ["none", "all", "full"] and all(len(rows) == 1 for rows in results.values())
    (none,), (every,), (full,) = results.values()
    assert none.keys() == {"default_mm", "mean_mm", "pa_mm"} and all(value > 0 for value in none.values())
    for row in (every, full):
        assert [entry["round"] for entry in row["history"]] == [0, 1, 2] and row["kept"] in (0, 1, 2)
        assert row["before_mm"] == row["history"][0]["reprojection_mm"] >= row["after_mm"] > 0 and row["minutes"] > 0
        assert (row["default_mm"] == none["default_mm"]) == (row["kept"] == 0)

    assert "minutes of 2D tracks to adapt to" in out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert [row[0] for row in table] == ["", "---", "none", "all", "full"] and {len(row) for row in table} == {7}
    assert table[2][1:] == [*(f"{none[name]:.1f}" for name in ("default_mm", "mean_mm", "pa_mm")), "", "", ""]
    assert table[3][4:6] == [f"{every['before_mm']:.1f}", f"{every['after_mm']:.1f}"]


def test_nobody_who_is_measured_is_adapted_to(script, archives):
    clips = script.filmed(str(archives[1]), cameras=2)
    assert len(clips) == 12 and len({clip.name for clip in clips}) == 12
    motions = [{clip.tags["motion"] for clip in clips if script.is_measured(clip) == measured} for measured in (True, False)]
    assert all(motions) and not motions[0] & motions[1]
    for clip in clips:
        hidden = clip.confidence == 0
        assert torch.equal(hidden, clip.keypoints_2d.isnan().any(-1))
        true = clip.camera.project(clip.positions_camera)
        assert (clip.positions_camera[..., 2] > 0).all() and (clip.keypoints_2d - true)[~hidden].norm(dim=-1).median() < 30
    again = script.filmed(str(archives[1]), cameras=2)
    assert all(torch.equal(one.keypoints_2d.nan_to_num(), other.keypoints_2d.nan_to_num()) for one, other in zip(clips, again))


def test_spread(script):
    runs = [{"mean_mm": 50.0}, {"mean_mm": 54.0}, {}]
    assert script.spread(runs, "mean_mm") == "52.0 ± 2.8"
    assert script.spread(runs[:1], "mean_mm") == "50.0" and script.spread(runs, "minutes") == ""
