"""Names of protocols and quirks, and the averages and tables of each, checked by hand."""

import re

import pytest
import torch
from known_poses import Known, along_x, clip, dataset

from probpose.evaluation import PROTOCOLS, QUIRKS, evaluate, get_protocol
from probpose.metrics import auc, hp3d_scores, joint_groups, min_mpjpe, min_pa_mpjpe, pck

SHARE = 16 / 17  # of the joints, all but the root, are moved by `along_x`


def run(data, shift, protocol=None, skeleton="h36m_17", window=None, **arguments):
    return evaluate(Known(data, shift, skeleton, window), data, protocol, progress=False, **arguments)


# Names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("h36m", "h36m"), ("H36M", "h36m"), ("Human3.6M", "h36m"), ("1", "h36m-p1"), (2, "h36m-p2"), ("p3", "h36m-p3"),
        ("Protocol 1", "h36m-p1"), ("h36m-p2", "h36m-p2"), ("3dhp", "3dhp"), ("mpi_inf_3dhp", "3dhp"), ("3DPW", "3dpw"),
        ("HumanEva-I", "humaneva"), ("clips", "clips"), ("mocap17", "clips"),
    ],
)  # fmt: skip
def test_spellings(spelling, name):
    assert get_protocol(spelling) is PROTOCOLS[name] is get_protocol(PROTOCOLS[name])


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown protocol 'h37m'.*h36m, h36m-p1"):
        get_protocol("h37m")
    with pytest.raises(ValueError, match="unknown quirk 'windows'; known are published_windows"):
        PROTOCOLS["h36m"].check_quirks(["windows"])
    with pytest.raises(ValueError, match="'ignore_pixel_aspect' does not concern the protocol 'h36m'"):
        PROTOCOLS["h36m"].check_quirks(["ignore_pixel_aspect"])
    with pytest.raises(ValueError, match="needs 'published_windows'"):
        PROTOCOLS["3dhp"].check_quirks(["p_best_batch"])
    assert {quirk for protocol in PROTOCOLS.values() for quirk in protocol.quirks} == set(QUIRKS)


def test_a_missing_tag_is_named_before_anything_runs():
    data = dataset(clip("a/b", 4, subject="S9"), protocol="h36m")
    with pytest.raises(ValueError, match=r"'h36m' groups by the tag 'action', which clip 'a/b' lacks; its tags are \['subject'\]"):
        run(data, lambda c, f: along_x(1, 2))


def test_the_kind_of_motion_stands_for_a_missing_tag():
    data = dataset(clip("a/walk/1", 4, family="a/walk"), clip("a/run/1", 8, 1, family="a/run"), protocol="h36m-p1")
    report = run(data, lambda c, f: along_x(*((10, 10) if "walk" in c.name else (20, 20))))
    assert report["p_agg"] == pytest.approx((report.groups()["a/walk"]["p_agg"] + report.groups()["a/run"]["p_agg"]) / 2)
    assert any("groups by action, which clips here lack" in note for note in report.notes)


# Human3.6M


def test_human36m_averages_frames_within_actions_and_actions_equally():
    data = dataset(
        clip("S9/Directions 1/a", 4, 1, action="Directions", subject="S9"),
        clip("S11/Directions/b", 12, 2, action="Directions", subject="S11"),
        clip("S9/WalkTogether/a", 4, 3, action="WalkTogether", subject="S9"),
        protocol="h36m",
    )
    shifts = {"S9/Directions 1/a": (10.0, 30.0), "S11/Directions/b": (20.0, 60.0), "S9/WalkTogether/a": (100.0, -20.0)}
    report = run(data, lambda c, f: along_x(*shifts[c.name]))
    directions, together = (4 * 20 + 12 * 40) / 16, 40
    rows = report.groups()
    assert list(rows) == ["average", "all", "Directions", "WalkTogether"]
    assert rows["Directions"]["p_agg"] == pytest.approx(directions * SHARE, rel=1e-4)
    assert rows["average"]["p_agg"] == pytest.approx((directions + together) / 2 * SHARE, rel=1e-4) == report["p_agg"]
    assert rows["all"]["p_agg"] == pytest.approx((4 * 20 + 12 * 40 + 4 * 40) / 20 * SHARE, rel=1e-4)
    assert report["p_best"] == report["j_best"] == pytest.approx(((4 * 10 + 12 * 20) / 16 + 20) / 2 * SHARE, rel=1e-4)
    assert (rows["average"]["clips"], rows["average"]["frames"], rows["Directions"]["frames"]) == (3, 20, 16)
    assert report["mpjve"] == pytest.approx(0, abs=1e-3)
    assert report.joint_means()["average"]["p_agg"][3] == pytest.approx((directions + together) / 2, rel=1e-4)
    text = report.to_text()
    assert re.search(r"Protocol 1: MPJPE, mm +Dir\. +WalkT\. +Avg\n", text)
    assert re.search(r"\nP-Agg +32\.9 +37\.6 +35\.3", text)
    assert "The average is over 2 of 15 groups." in text
    one = run(data, lambda c, f: along_x(*shifts[c.name]), "p2")
    assert "p_agg" not in one.metrics and "p2_j_best" in one.metrics
    with pytest.raises(KeyError, match="p2_p_agg"):
        one["p_agg"]


def test_all_actions_in_the_papers_order():
    names = ["Walking", "Directions", "Photo", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases", "Sitting"]
    names += ["SittingDown", "Smoking", "Waiting", "WalkDog", "WalkTogether"]
    data = dataset(*(clip(name, 2, i, action=name) for i, name in enumerate(names)), protocol="h36m-p1")
    heading = run(data, lambda c, f: along_x(1, 2)).tables()[0].header[1:]
    expected = "Dir. Disc. Eat Greet Phone Photo Pose Purch. Sit SitD. Smoke Wait WalkD. Walk WalkT. Avg"
    assert heading == expected.split()


# MPI-INF-3DHP


def test_3dhp_scores_valid_frames_of_the_own_skeleton():
    clips = [
        clip("TS1", 6, 1, "mpi_inf_3dhp_17", valid=[1, 1, 1, 1, 0, 0], sequence="TS1"),
        clip("TS2", 2, 2, "mpi_inf_3dhp_17", sequence="TS2"),
    ]
    data = dataset(*clips, protocol="3dhp")

    def shift(c, frame):
        far = 400.0 if c.name == "TS1" and frame >= 4 else {"TS1": (100.0, 120.0, 130.0, 160.0), "TS2": (10.0, 20.0)}[c.name][frame]
        return along_x(far, far, root=14)

    report = run(data, shift, skeleton="mpi_inf_3dhp_17")
    rows = report.groups()
    assert rows["TS1"]["p_agg"] == pytest.approx((100 + 120 + 130 + 160) / 4 * SHARE, rel=1e-4)
    assert rows["TS1"]["pck_p_agg"] == pytest.approx(75)
    assert rows["TS1"]["pck_p_agg/knee"] == pytest.approx(75)
    assert report["pck_p_agg"] == pytest.approx((75 + 100) / 2)
    assert rows["all"]["pck_p_agg"] == pytest.approx((4 * 75 + 2 * 100) / 6)
    assert report.settings["skipped_frames"] == 2 and report.settings["scored_frames"] == 6
    assert "8 frames (2 not scored)" in report.to_text()
    groups = joint_groups("mpi_inf_3dhp_17")
    joints = sorted(joint for group in groups.values() for joint in group)
    truth = clips[1].pose
    moved = truth + torch.stack([shift(clips[1], f)[0] for f in range(2)])
    assert rows["TS2"]["auc_p_agg"] == pytest.approx(auc(moved[:, joints], truth[:, joints]), rel=1e-6)
    assert rows["TS2"]["pck_p_agg"] == pytest.approx(pck(moved[:, joints], truth[:, joints]))
    official = hp3d_scores(moved, truth)
    assert rows["TS2"]["p_agg"] == pytest.approx(official["mpjpe"], rel=1e-6)
    for group in groups:
        assert rows["TS2"][f"auc_p_agg/{group}"] == pytest.approx(official["auc"][group], rel=1e-6)
    titles = [table.header[0] for table in report.tables()]
    assert titles == ["MPJPE, mm", "PCK at 150 mm, %", "AUC, %", "PCK by joint, %", "AUC by joint, %", "calibration", "plausibility"]
    assert report.tables()[0].header[1:] == ["TS1", "TS2", "Avg", "All frames"]

    wrong = run(data, shift, skeleton="mpi_inf_3dhp_17", quirks=["count_invalid_frames"])
    assert wrong.groups()["TS1"]["pck_p_agg"] == pytest.approx(50)
    running = run(data, shift, skeleton="mpi_inf_3dhp_17", quirks=["running_mean"]).groups()
    assert running["TS1"]["p_agg"] == rows["TS1"]["p_agg"]
    assert running["TS2"]["p_agg"] == pytest.approx(rows["all"]["p_agg"])
    assert running["average"]["p_agg"] == pytest.approx((rows["TS1"]["p_agg"] + rows["all"]["p_agg"]) / 2)


# The other protocols


def test_3dpw_takes_the_least_over_hypotheses():
    data = dataset(clip("a", 4, 1), clip("b", 12, 2), protocol="3dpw")
    report = run(data, lambda c, f: along_x(*((30.0, -10.0) if f % 2 else (-20.0, 50.0))))
    assert report["min_mpjpe"] == pytest.approx((10 + 20) / 2 * SHARE, rel=1e-4)
    assert report["p_agg"] == pytest.approx((10 + 15) / 2 * SHARE, rel=1e-4)
    frames = [
        (c, torch.stack([c.pose[f] + along_x(*((30.0, -10.0) if f % 2 else (-20.0, 50.0))) for f in range(len(c))], dim=1)) for c in data
    ]
    for metric, least in (("min_mpjpe", min_mpjpe), ("min_pa_mpjpe", min_pa_mpjpe)):
        expected = sum(len(c) * least(poses, c.pose, "frame") for c, poses in frames) / 16
        assert report[metric] == pytest.approx(expected, rel=1e-5)
    assert report["pa_mpjpe"] <= report["p_agg"]
    assert list(report.groups()) == ["all"]
    assert report["acceleration"] == pytest.approx(10 * SHARE, rel=1e-4)  # the mean swings between 10 and 15 mm
    halved = run(data, lambda c, f: along_x(*((30.0, -10.0) if f % 2 else (-20.0, 50.0))), quirks="acceleration_over_all_frames")
    assert halved["acceleration"] == pytest.approx((4 * 10 * 2 / 4 + 12 * 10 * 10 / 12) / 16 * SHARE, rel=1e-4)


def test_humaneva_by_action_and_subject():
    clips = [
        clip(f"Validate/{s}/{a} 1/C1", 3, i, action=a, subject=s)
        for i, (a, s) in enumerate([("Box", "S1"), ("Walk", "S2"), ("Walk", "S1")])
    ]
    report = run(dataset(*clips, protocol="humaneva"), lambda c, f: along_x(10, 20))
    assert report.tables()[0].header == ["Protocol 2: PA-MPJPE, mm", "Walk S1", "Walk S2", "Box S1", "Avg"]
    assert "The average is over 3 of 9 groups." in report.to_text()


def test_clips_keep_sources_and_families():
    tags = [("cmu/walking/1", 20), ("bandai/run/2", 8), ("cmu/walking/3", 3)]
    data = dataset(*(clip(name, frames, i) for i, (name, frames) in enumerate(tags)))
    report = run(data, lambda c, f: along_x(30, -30))
    rows = report.groups()
    assert list(rows) == ["all", "bandai", "cmu", "bandai/run", "cmu/walking"]
    for row in rows.values():
        for metric in ("p_agg", "pa_mpjpe", "n_mpjpe", "mpjve", "acceleration"):
            assert row[metric] == pytest.approx(0, abs=1e-3)
        for metric in ("j_agg_true_root", "p_best", "j_best", "uncertainty"):
            assert row[metric] == pytest.approx(30 * SHARE, rel=1e-4)
        for metric in ("j_agg", "weighted"):  # between the mean, which is right, and a hypothesis
            assert 0 < row[metric] <= 30 * SHARE
        assert row["root"] == pytest.approx(500, rel=1e-4)
    assert list(report.groups("source")) == ["all", "bandai", "cmu"] and list(report.groups("all")) == ["all"]
    with pytest.raises(ValueError, match="level must be one of"):
        report.groups("clip")
