"""Text, Markdown, LaTeX and JSON of one report."""

import json
import re

import pytest
import torch
from known_poses import Known, clip, dataset, tiny_pipeline

from probpose.aggregation import MeanAggregator
from probpose.evaluation import METRICS, evaluate
from probpose.metrics import mpjpe, pa_mpjpe

NAMES = {"cmu/walking_fast/1": 20, "bandai/walk/2": 12, "bandai/run/3": 8, "cmu/walking_fast/4": 3}


@pytest.fixture(scope="module")
def motions():
    return dataset(*(clip(name, frames, i) for i, (name, frames) in enumerate(NAMES.items())), notes=("50% of it is made up & random",))


@pytest.fixture(scope="module")
def report(motions):
    return evaluate(tiny_pipeline(), motions, progress=False)


@pytest.fixture(scope="module")
def actions(motions):
    clips = (clip(f"S9/{a}/1", 4, i, action=a) for i, a in enumerate(["Eating", "Walking", "Sitting"]))
    return evaluate(tiny_pipeline(), dataset(*clips, protocol="h36m"), progress=False)


def test_means_are_weighted_by_frames(report):
    rows = report.groups()
    assert list(rows) == ["all", "bandai", "cmu", "bandai/run", "bandai/walk", "cmu/walking_fast"]
    assert [(row["clips"], row["frames"]) for row in rows.values()] == [(4, 43), (2, 20), (2, 23), (1, 8), (1, 12), (2, 23)]
    for metric in report.metrics:
        values = [(result.frames, result.errors[metric]) for result in report.results if metric in result.errors]
        assert metric in ("ece", "signed_miscalibration") or rows["all"][metric] == pytest.approx(sum(n * v for n, v in values) / 43)
        assert rows["cmu"][metric] == rows["cmu/walking_fast"][metric]
    assert report["j_best"] == rows["all"]["j_best"] <= min(report["p_best"], report["j_agg_true_root"])
    assert set(report.metrics) <= set(METRICS)
    every = ["p_agg", "j_agg", "j_agg_true_root", "weighted", "p_best", "j_best", "pa_mpjpe", "n_mpjpe", "mpjve", "acceleration"]
    assert list(report.metrics) == [
        *every,
        "uncertainty",
        "root",
        "ece",
        "signed_miscalibration",
        "sharpness",
        "energy_score",
        "bones",
        "symmetry",
        "limits",
        "pss",
    ]


def test_joint_means_average_to_the_mean(report):
    for name, row in report.joint_means().items():
        for key, values in row.items():
            assert len(values) == 17 and sum(values) / 17 == pytest.approx(report.groups()[name][key], rel=1e-9)


def test_text_is_aligned_and_says_how_it_was_made(report):
    text = report.to_text()
    assert "4 clips, 43 frames" in text and "3 hypotheses, 2 steps, flip last step, first step own" in text
    assert f"{report.passes} network passes" in text and "Note: 50% of it is made up & random" in text
    lines = text.splitlines()
    table = lines[lines.index("") + 1 :][:7]
    assert [line.split()[0] for line in table] == ["mm", *report.groups()]
    assert len({len(line) for line in table}) == 1
    assert table[1].split()[3] == f"{report['p_agg']:.1f}"
    assert "J-Agg*    JPMA with the true root and camera" in text
    assert "per joint" not in text
    joints = report.to_text(per_joint=True).split("mm, per joint")[1].splitlines()
    assert joints[0].split() == ["P-Agg", "J-Agg", "J-Agg*", "Weighted", "P-Best", "J-Best"]
    assert joints[4].split()[:2] == ["right", "ankle"] and len(joints[1:18]) == 17


def test_json_holds_everything(report, actions):
    for one in (report, actions):
        content = json.loads(one.to_json())
        assert content == one.to_dict()
        assert set(content) == {"settings", "cost", "notes", "groups", "per_joint", "coverage"}
        assert len(content["coverage"]["quantiles"]) == len(content["coverage"]["raw"]) == 21
        assert len(content["per_joint"]["joints"]) == 17
    assert json.loads(report.to_json())["groups"]["all"]["p_agg"] == report["p_agg"]
    assert set(actions.to_dict()["per_joint"]["groups"]["Eating"]) == {f"{p}{s}" for p in ("", "p2_", "p3_") for s in _settings()}
    assert list(report.to_dict("all")["groups"]) == ["all"]


def _settings():
    return ("p_agg", "j_agg", "j_agg_true_root", "p_best", "j_best")


def test_markdown(report, actions):
    rows = [line for line in report.to_markdown().split("calibration")[0].splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[:5]] == ["mm", "---", "all", "bandai", "cmu"]
    assert len({row.count("|") for row in rows[:5]}) == 1
    assert "J-Agg\\*" in rows[0] and "cmu/walking\\_fast" in report.to_markdown("family")
    assert "| P-Agg |" in actions.to_markdown()


def test_latex_is_whole(report, actions):
    for one in (report, actions):
        code = "\n".join(line for line in one.to_latex("family" if one is report else None, per_joint=True).splitlines() if line[:1] != "%")
        assert code.count("\\begin{tabular}") == code.count("\\end{tabular}") == code.count("\\midrule") >= 3
        depth = 0
        for character in re.sub(r"\\[{}]", "", code):
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0
        assert not re.search(r"(?<!\\)[%#_$~^]", code) and code.isascii()
        for table in code.split("\\begin{tabular}{")[1:]:
            columns = len(table[: table.index("}")])
            rows = [line for line in table.splitlines()[1:] if line.endswith("\\\\")]
            assert rows and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    assert report.to_latex().startswith("% tiny, protocol motion clips: 4 clips")
    assert "Protocol 1: MPJPE, mm & Eat & Sit & Walk & Avg" in actions.to_latex()


def test_a_learned_aggregator_is_a_setting(motions):
    known = Known(motions, lambda c, f: torch.full((2, 17, 3), 0.01) * (torch.arange(17) > 0)[:, None])
    assert "attention" not in evaluate(known, motions, progress=False).metrics
    known.aggregator = MeanAggregator()
    report = evaluate(known, motions, progress=False)
    assert report["attention"] == report["p_agg"] and "Attention" in report.to_text()


def test_a_lifter_is_a_setting(motions, actions, make_diffpose):
    pipe = make_diffpose()
    report = evaluate(pipe, motions, progress=False)
    assert report.metrics[:2] == ("lifter", "p_agg") and report.passes is None
    first = motions[0]
    out = pipe(first.keypoints_2d[None], first.confidence[None], camera=first.camera, aggregation=None)
    assert report.results[0].errors["lifter"] == pytest.approx(mpjpe(out.lifted[0], first.pose), rel=1e-5)
    assert len(report.joint_means()["all"]["lifter"]) == 17

    text, (heading, *_) = report.to_text(), report.tables()[0].to_markdown()
    assert "3 hypotheses, 2 steps, start mixture, flip none: " in text and "first step" not in text
    assert "Lifter    the pipeline's lifter alone" in text and "| Lifter | P-Agg |" in heading
    assert "& Lifter & P-Agg &" in report.to_latex()
    content = json.loads(report.to_json())
    assert content["groups"]["all"]["lifter"] == report["lifter"] and content["settings"]["start"] == "mixture"
    assert "share_first_step" not in content["settings"]

    walking = clip("S9/Walking/1", 4, 1, action="Walking")
    protocols = evaluate(pipe, dataset(walking, protocol="h36m"), progress=False)
    pose = pipe(walking.keypoints_2d, walking.confidence, camera=walking.camera).lifted
    assert protocols["p2_lifter"] == pytest.approx(pa_mpjpe(pose, walking.pose), rel=1e-5) and "p3_lifter" in protocols.metrics
    assert "lifter" not in actions.metrics and "Lifter" not in actions.to_text() and "start" not in actions.settings
