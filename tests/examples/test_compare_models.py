"""examples/compare_models.py: the rows are those of `evaluate`, and the rounds are interleaved."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from probpose import ProbPosePipeline
from probpose.calibration import Recalibration
from probpose.data import load_dataset
from probpose.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "golden" / "benchmark_cmu.npz"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_models_example", ROOT / "examples" / "compare_models.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tiny_model, make_diffpose, tmp_path_factory):
    """A tiny D3DP pipeline, and a tiny DiffPose pipeline with a calibrator."""
    pipe = make_diffpose()
    pipe.register_modules(calibrator=Recalibration(mode="scale"))
    folder = tmp_path_factory.mktemp("compared") / "diffpose"
    pipe.save_pretrained(folder)
    return [str(tiny_model), str(folder)]


def test_the_whole_program(script, models, tmp_path, capsys):
    words = [*models, "--data", str(DATA), "--hypotheses", "3,1", "--every", "2", "--json", str(tmp_path / "rows.json")]
    assert script.main(words) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "rows.json").read_text())
    data = load_dataset(DATA).subset(every=2)
    assert (content["clips"], content["frames"], content["every"]) == (len(data), data.num_frames, 2)
    rows = content["rows"]
    assert [(row["model"], row["num_hypotheses"]) for row in rows] == [(model, count) for model in models for count in (1, 3)]
    assert [row["pipeline"] for row in rows] == ["D3DPPipeline"] * 2 + ["DiffPosePipeline"] * 2
    assert all(row["ms_per_frame"] > 0 for row in rows)
    one, three, *_, last = rows
    assert one["j_best_mm"] == one["mean_mm"] and one["ece"] is None
    assert three["j_best_mm"] < three["mean_mm"] and three["lifter_mm"] is three["ece_recalibrated"] is None

    report = evaluate(ProbPosePipeline.from_pretrained(models[1]), data, "clips", num_hypotheses=3, progress=False)
    keys = {"lifter_mm": "lifter", "mean_mm": "p_agg", "default_mm": "p_agg", "pa_mm": "pa_mpjpe", "j_best_mm": "j_best"}
    keys |= {"ece": "ece", "ece_recalibrated": "ece_calibrated"}
    assert {name: last[name] for name in keys} == {name: pytest.approx(report[key]) for name, key in keys.items()}
    report = evaluate(ProbPosePipeline.from_pretrained(models[0]), data, "clips", num_hypotheses=3, progress=False)
    assert three["default_mm"] == pytest.approx(report["j_agg"])

    table = out.splitlines()[2:7]
    assert table[0].split()[:5] == ["model", "K", "Lifter", "Mean", "Default"] and len({len(line) for line in table}) == 1
    assert table[4].split()[:3] == [models[1], "3", f"{last['lifter_mm']:.1f}"]
    assert f"Default aggregation: jpma {models[0]}, mean {models[1]}" in out


def test_rounds_are_interleaved(script, monkeypatch, capsys):
    seen = []

    def watched(pipe, data, *_, num_hypotheses, **__):
        seen.append((pipe, data[0].name, num_hypotheses))
        return None

    monkeypatch.setattr(script, "evaluate", watched)
    monkeypatch.setattr(script, "_joined", lambda parts: parts)
    monkeypatch.setattr(script.Row, "of", lambda model, pipe, count, parts: (model, count, len(parts)))
    data = load_dataset(DATA).subset(max_clips=2)
    rows = script.compare({"a": "A", "b": "B"}, data, [1, 5])
    assert rows == [("a", 1, 2), ("a", 5, 2), ("b", 1, 2), ("b", 5, 2)]
    first, second = (clip.name for clip in data)
    order = [("A", 1), ("A", 5), ("B", 1), ("B", 5)]
    assert seen[2:] == [(pipe, first, count) for pipe, count in order] + [(pipe, second, count) for pipe, count in order[::-1]]


def test_markdown(script, models, capsys):
    assert script.main([models[1], "--data", str(DATA), "--hypotheses", "1", "--every", "100", "--markdown"]) == 0
    heading, rule, row = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert heading.startswith("| model | K | Lifter |") and heading.count("|") == rule.count("|") == row.count("|")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m", "--data", "x", "--hypotheses", "5,0"], "--hypotheses"),
        (["m", "--data", "x", "--hypotheses", "many"], "--hypotheses"),
        (["m", "m", "--data", "x"], "named twice"),
        (["m", "--data", "x", "--every", "0"], "--every must be at least 1"),
        (["m", "--data", "x", "--json", "no/folder/rows.json"], "no folder no/folder"),
        (["m", "--data", "no/such/data"], "no/such/data"),
        (["no/such/model", "--data", str(DATA)], "no/such/model"),
    ],
)
def test_bad_input(script, capsys, words, message):
    try:
        code = script.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err
