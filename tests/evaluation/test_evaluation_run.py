"""The run: what the pipeline is given, what is scored, windows and quirks, other skeletons, folders and several processes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from known_poses import Known, along_x, clip, dataset, tiny_pipeline

from probpose import ProbPosePipeline
from probpose.calibration import Recalibration, ece
from probpose.data.datasets import load_dataset
from probpose.evaluation import evaluate
from probpose.evaluation.measure import Sample, measure
from probpose.evaluation.protocols import get_protocol
from probpose.evaluation.run import _Job
from probpose.geometry import Camera, h36m_camera, procrustes_align
from probpose.metrics import hypothesis_table, mpjpe, n_mpjpe, pa_mpjpe
from probpose.models import AttentionAggregator, GraFormerLifter
from probpose.pipelines import D3DPPipeline
from probpose.shards import read_shards
from probpose.skeletons import convert

SHARE = 16 / 17


def run(data, shift=None, protocol=None, skeleton="h36m_17", window=None, **arguments):
    shift = shift or (lambda c, f: along_x(10, 30))
    return evaluate(Known(data, shift, skeleton, window), data, protocol, progress=False, **arguments)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def motions():
    names = {"cmu/walking/1": 20, "bandai/walk/2": 12, "bandai/run/3": 8, "cmu/walking/4": 3}
    return dataset(*(clip(name, frames, i) for i, (name, frames) in enumerate(names.items())))


def comparable(report):
    """Everything but the time it took."""
    return [replace(result, seconds=0.0) for result in report.results]


# One clip


def test_what_the_pipeline_is_given(motions):
    known = Known(motions, lambda c, f: along_x(1, 2))
    evaluate(known, motions.subset(max_clips=1), progress=False, max_batch_size=7, num_hypotheses=2, eta=0.5)
    evaluate(known, motions.subset(max_clips=1), camera="image_size", progress=False)
    told, guessed = known.calls
    first = motions[0]
    assert torch.equal(told["keypoints_2d"], first.keypoints_2d[None]) and torch.equal(told["confidence"], first.confidence[None])
    assert told["camera"] is first.camera and guessed["camera"] is None and guessed["image_size"] == first.camera.image_size
    assert (told["max_batch_size"], told["fps"], told["aggregation"], told["eta"], told["skeleton"]) == (7, 50.0, None, 0.5, "h36m_17")
    assert told["num_hypotheses"] == 2
    assert not {"num_hypotheses", "num_inference_steps", "flip", "share_first_step"} & guessed.keys()


def test_settings_agree_with_the_published_table(pipe, motions):
    """Every setting under protocols 1 and 2 against `hypothesis_table`, under 3 against each hypothesis scaled on its own."""
    data = dataset(replace(motions[0], tags={"action": "Walking"}), protocol="h36m")
    report = evaluate(pipe, data, progress=False)
    job = _Job(pipe, get_protocol("h36m"), True, {}, {}, (), 0, 256)
    _, sample, _ = job.run(data[0])
    for protocol, prefix in ((1, ""), (2, "p2_")):
        table = hypothesis_table(
            sample.hypotheses, sample.truth, sample.keypoints_2d, data[0].camera, sample.true_root, protocol, p_best_scope="window"
        )
        for ours, theirs in (("p_agg", "p_agg"), ("j_agg_true_root", "j_agg"), ("p_best", "p_best"), ("j_best", "j_best")):
            assert report[f"{prefix}{ours}"] == pytest.approx(table[theirs], rel=1e-6)
    hypotheses, truth = sample.hypotheses[0], sample.truth[0]
    assert report["p3_p_agg"] == pytest.approx(n_mpjpe(hypotheses.double().mean(0), truth), rel=1e-6)
    assert report["p3_p_best"] == pytest.approx(min(n_mpjpe(h, truth) for h in hypotheses), rel=1e-6)
    assert report["p3_j_best"] <= report["p3_p_best"]
    out = pipe(data[0].keypoints_2d, camera=data[0].camera, fps=50.0, generator=torch.Generator().manual_seed(0), aggregation="jpma")
    assert out.pose.shape == truth.shape
    assert report["p2_j_agg"] <= report["j_agg"]


def test_a_clip_does_not_depend_on_the_others(pipe, motions):
    report = evaluate(pipe, motions, progress=False)
    backwards = evaluate(pipe, replace(motions, clips=motions.clips[::-1]), progress=False)
    assert comparable(report) == comparable(backwards)[::-1]
    alone = evaluate(pipe, motions.subset(only=["bandai/run"]), progress=False)
    assert comparable(alone)[0] == comparable(report)[2]
    assert evaluate(pipe, motions, seed=1, progress=False)["p_agg"] != report["p_agg"]
    sampler = {"num_hypotheses": 3, "num_inference_steps": 2, "flip": "last_step", "share_first_step": False}
    assert report.settings.items() >= {**sampler, "clips": 4, "frames": 43, "camera": "known", "seed": 0, "dataset": "tiny"}.items()
    assert report.passes == sum(pipe.count_passes(len(c), **sampler) for c in motions) and report.seconds > 0
    fast = evaluate(pipe, motions, num_hypotheses=2, num_inference_steps=1, flip=False, share_first_step=True, progress=False)
    assert fast.passes == sum(pipe.count_passes(len(c), 2, 1, False, True) for c in motions)


def test_a_pipeline_without_passes_or_spread(motions):
    report = run(motions, lambda c, f: along_x(10))
    assert report.passes is None and report.to_dict()["cost"]["passes"] is None
    assert "ece" not in report.metrics and report["p_agg"] == report["j_best"] == pytest.approx(10 * SHARE, rel=1e-4)


def test_the_progress_bars_and_threads_come_back(pipe, motions):
    pipe.set_progress_bar_config(desc="mine")
    before = torch.get_num_threads()
    evaluate(pipe, motions.subset(max_clips=1), progress=False, threads=before + 1)
    assert pipe._progress_bar_config == {"desc": "mine"} and torch.get_num_threads() == before


def test_wrong_choices_name_the_value(pipe, motions):
    for arguments, message in (
        ({"camera": "phone"}, "camera must be one of"),
        ({"num_hypotheses": 0}, "^num_hypotheses must be"),
        ({"eta": 2.0}, "clip 'cmu/walking/1': eta must lie"),
        ({"protocol": "h36m"}, "tag 'action'"),
        ({"quirks": ["running_mean"]}, "does not concern the protocol 'clips'"),
        ({"resume": True}, "which was not given"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(pipe, motions, progress=False, **arguments)


def test_sampler_settings_are_the_pipelines_own(pipe, motions, make_diffpose, tmp_path):
    diffpose = make_diffpose()
    with pytest.raises(ValueError, match=r"^a D3DPPipeline has no start; its sampler has num_hypotheses, num_inference_steps, flip, share"):
        evaluate(pipe, motions, progress=False, start="noisy")
    with pytest.raises(ValueError, match=r"^a DiffPosePipeline has no share_first_step; its sampler has .*start, flip, eta$"):
        evaluate(diffpose, motions, progress=False, share_first_step=True)
    with pytest.raises(ValueError, match=r"^flip must be one of .*'lifter'.*, got 'last_step'"):
        evaluate(diffpose, motions, progress=False, flip="last_step")
    given = {"num_hypotheses": 2, "num_inference_steps": 1, "start": "noisy", "flip": "lifter"}
    report = evaluate(diffpose, motions.subset(max_clips=1), progress=False, **given)
    assert report.settings.items() >= given.items()
    first = motions[0]
    out = diffpose(
        first.keypoints_2d[None], first.confidence[None], camera=first.camera, generator=[_generator_of(first.name)], **given
    )  # fmt: skip
    assert report["p_agg"] == pytest.approx(mpjpe(out.hypotheses[0].mean(0), first.pose), rel=1e-5)
    kept = evaluate(diffpose, motions.subset(max_clips=1), progress=False, out=tmp_path / "run", save_hypotheses=True, **given)
    assert kept["lifter"] == report["lifter"] and kept["p_agg"] == report["p_agg"]


# Frames that do not count


def test_frames_without_ground_truth_are_skipped_and_counted():
    whole = clip("a/b/c", 10, 1)
    positions = whole.positions_camera.clone()
    positions[3] = torch.nan
    positions[6, 5] = torch.nan  # one joint is enough
    data = dataset(replace(whole, positions_camera=positions, valid=torch.arange(10) != 0))
    known = Known(data, lambda c, f: along_x(*((1000.0, 1000.0) if f in (0, 3, 6) else (10.0 * f, 10.0 * f))))
    report = evaluate(known, data, progress=False)
    assert known.calls[0]["keypoints_2d"].shape[1] == 10  # the pipeline sees all of them
    assert report["p_agg"] == pytest.approx((10 + 20 + 40 + 50 + 70 + 80 + 90) / 7 * SHARE, rel=1e-4)
    assert report["mpjve"] == pytest.approx(10 * SHARE, rel=1e-3)  # between neighbours that both count
    assert report["acceleration"] == pytest.approx(0, abs=1e-3)
    assert report.joint_means()["all"]["p_agg"][5] == pytest.approx(360 / 7, rel=1e-4)
    assert report.settings["skipped_frames"] == 3 and report.settings["scored_frames"] == 7
    assert json.loads(report.to_json())["groups"]["all"]["frames"] == 7
    with pytest.raises(ValueError, match="no frame of the 1 clips can be scored"):
        run(dataset(replace(whole, valid=torch.zeros(10, dtype=torch.bool))))


def test_a_clip_without_scored_frames_does_not_spoil_the_others():
    data = dataset(clip("a/b/c", 4, 1), clip("a/b/d", 4, 2, valid=[0, 0, 0, 0]))
    report = run(data)
    assert report["p_agg"] == pytest.approx(20 * SHARE, rel=1e-4) and report.settings["skipped_frames"] == 4


def test_clips_too_short_for_motion():
    report = run(dataset(clip("a/b/c", 1, 1), clip("a/b/d", 2, 2)))
    assert "acceleration" not in report.metrics and "mpjve" in report.metrics


# Another skeleton


def test_cross_dataset_evaluation_converts_keypoints_and_truth(pipe):
    theirs = clip("TS1", 12, 3, "mpi_inf_3dhp_17", sequence="TS1")
    report = evaluate(pipe, dataset(theirs, protocol="3dhp"), progress=False)
    assert any("converted from mpi_inf_3dhp_17 to h36m_17" in note for note in report.notes)
    truth = convert(theirs.positions_camera, "mpi_inf_3dhp_17", "h36m_17")
    out = pipe(
        theirs.keypoints_2d[None], theirs.confidence[None], camera=theirs.camera, skeleton="mpi_inf_3dhp_17", aggregation="mean", fps=50.0,
        generator=[_generator_of("TS1")],
    )  # fmt: skip
    assert report["p_agg"] == pytest.approx(mpjpe(out.pose[0], truth - truth[:, :1]), rel=1e-5)
    assert 0 <= report["pck_j_agg"] <= 100


def _generator_of(name):
    from probpose.shards import seed_of

    return torch.Generator().manual_seed(seed_of(0, name))


def test_joints_that_the_data_set_does_not_know_are_not_scored():
    theirs = clip("a/b/c", 5, 3, "h36m_17")
    pipe = tiny_pipeline("coco_17")
    report = evaluate(pipe, dataset(theirs), progress=False)
    (note,) = report.notes
    assert "converted from h36m_17 to coco_17; not scored" in note and "left_eye" in note
    assert np.isnan(report.joint_means()["all"]["p_agg"][1]) and report.to_dict()["per_joint"]["groups"]["all"]["p_agg"][1] is None


# Quirks


def sample(hypotheses, truth, quirks=(), root=None, camera=None, keypoints=None):
    frames = truth.shape[:-2]
    root = torch.tensor([0.0, 0.0, 5.0]).expand(*frames, 3) if root is None else root
    camera = camera or h36m_camera(0)
    keypoints = camera.project(truth + root[..., None, :]) if keypoints is None else keypoints
    confidence, scored = torch.ones(keypoints.shape[:-1]), torch.ones(frames, dtype=torch.bool)
    return Sample(
        hypotheses,
        None,
        None,
        None,
        None,
        truth,
        scored,
        root,
        root,
        keypoints,
        confidence,
        camera,
        camera,
        50.0,
        "h36m_17",
        0,
        tuple(quirks),
    )


def test_joints_that_are_left_out():
    truth = clip("a", 3).pose[None]
    offsets = torch.zeros(17, 3)
    offsets[:, 1] = torch.arange(17) / 1000
    hypotheses = (truth + offsets)[:, None].expand(-1, 2, -1, -1, -1)
    protocol = get_protocol("h36m-p1")

    def mean(*quirks):
        return measure(sample(hypotheses, truth, quirks), protocol)[0]["p_agg"]

    assert mean() == pytest.approx(sum(range(17)) / 17, rel=1e-4)
    assert mean("exclude_root") == pytest.approx(sum(range(17)) / 16, rel=1e-4)
    assert mean("epipolar_14_joints") == pytest.approx(sum([0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15]) / 14, rel=1e-4)


def test_alignment_of_epipolarpose():
    generator = torch.Generator().manual_seed(0)
    truth = clip("a", 3).pose[None]
    pose = truth + 0.05 * torch.randn(truth.shape, generator=generator)
    pose[..., 0, :] = 0
    hypotheses = pose[:, None].expand(-1, 2, -1, -1, -1)
    protocol = get_protocol("h36m")
    aligned = procrustes_align(pose.double(), truth.double())
    plain, quirky = (measure(sample(hypotheses, truth, q), protocol)[0] for q in ((), ("recentred_pa", "procrustes_n_mpjpe")))
    assert plain["p2_p_agg"] == pytest.approx(pa_mpjpe(pose, truth), rel=1e-6)
    assert quirky["p2_p_agg"] == pytest.approx(mpjpe(aligned - aligned[..., :1, :], truth), rel=1e-6)
    assert quirky["p2_p_agg"] > plain["p2_p_agg"]
    # the scale of the alignment is the ratio of sizes about the centroid
    sizes = [(p - p.mean(-2, keepdim=True)).norm(dim=(-2, -1), keepdim=True) for p in (aligned, pose.double())]
    assert quirky["p3_p_agg"] == pytest.approx(mpjpe(sizes[0] / sizes[1] * pose, truth), rel=1e-6)
    assert plain["p3_p_agg"] == pytest.approx(n_mpjpe(pose, truth), rel=1e-6)


def test_published_windows_score_overlap_twice_and_padding():
    errors = [float(10 * (f + 1)) for f in range(7)]
    long, short = clip("S9/Walking/a", 7, 1, action="Walking"), clip("S9/Eating/a", 3, 2, action="Eating")
    data = dataset(long, short, protocol="h36m-p1")

    def shift(c, f):
        return along_x(errors[f], errors[f] + 1000)

    known = Known(data, shift, window=5)
    report = evaluate(known, data, progress=False, quirks=["published_windows"])
    assert [tuple(call["keypoints_2d"].shape[:2]) for call in known.calls] == [(2, 5), (1, 5)]
    assert torch.equal(known.calls[0]["keypoints_2d"][1], long.keypoints_2d[2:])
    assert torch.equal(known.calls[1]["keypoints_2d"][0, 3], short.keypoints_2d[2])
    rows = report.groups()
    walking = [*errors[:5], *errors[2:]]
    assert rows["Walking"]["p_best"] == pytest.approx(sum(walking) / 10 * SHARE, rel=1e-4) and rows["Walking"]["frames"] == 10
    eating = [10, 20, 30, 30, 30]
    assert rows["Eating"]["p_best"] == pytest.approx(sum(eating) / 5 * SHARE, rel=1e-4)
    assert report["p_best"] == pytest.approx((sum(walking) / 10 + sum(eating) / 5) / 2 * SHARE, rel=1e-4)
    assert report.settings["skipped_frames"] == 0


def test_windows_of_3dhp_overwrite_and_drop_the_padding():
    data = dataset(
        clip("TS1", 7, 1, "mpi_inf_3dhp_17", sequence="TS1"), clip("TS2", 3, 2, "mpi_inf_3dhp_17", sequence="TS2"), protocol="3dhp"
    )
    report = run(data, lambda c, f: along_x(10 * f, 10 * f, root=14), None, "mpi_inf_3dhp_17", 5, quirks=["published_windows"])
    rows = report.groups()
    assert rows["TS1"]["p_agg"] == pytest.approx(30 * SHARE, rel=1e-4) and rows["TS1"]["frames"] == 7
    assert rows["TS2"]["p_agg"] == pytest.approx(10 * SHARE, rel=1e-4) and rows["TS2"]["frames"] == 3


def test_p_best_of_a_batch_of_windows():
    """Two windows of two frames: each has its own best hypothesis, together the second."""
    data = dataset(clip("S9/Walking/a", 4, 1, action="Walking"), protocol="h36m-p1")

    def shift(c, f):
        return along_x(*((10.0, 20.0) if f < 2 else (60.0, 30.0)))

    assert run(data, shift, window=2)["p_best"] == pytest.approx(25 * SHARE, rel=1e-4)  # one for the clip
    assert run(data, shift, window=2, quirks=["published_windows"])["p_best"] == pytest.approx(20 * SHARE, rel=1e-4)
    both = run(data, shift, window=2, quirks=["published_windows", "p_best_batch"])
    assert both["p_best"] == pytest.approx(25 * SHARE, rel=1e-4) and "p_best_batch, published_windows" in both.to_text()


def test_windows_are_those_of_the_lifter(make_diffpose):
    """DiffPose's denoiser has no window; a pipeline whose lifter has none, either, cannot be cut by it."""
    data = dataset(clip("S9/Walking/a", 20, 1, action="Walking"), protocol="h36m-p1")
    report = evaluate(make_diffpose(), data, progress=False, quirks=["published_windows", "drop_tails"])
    assert report.results[0].scored == 9 + 9 + 7  # windows at 0, 9 and 11; two whole ones make 18 frames
    lifter = GraFormerLifter(width=16, depth=1, num_attention_heads=2, canonical_camera=(2.29, 2.29, 0.0, 0.0))
    by_frame = make_diffpose(lifter)
    assert evaluate(by_frame, data, progress=False).results[0].scored == 20
    for quirk in ("published_windows", "drop_tails"):
        with pytest.raises(ValueError, match="this DiffPosePipeline take every frame for itself: it has no window"):
            evaluate(by_frame, data, progress=False, quirks=[quirk])


def test_tails_are_dropped():
    data = dataset(clip("S9/Walking/a", 7, 1, action="Walking"), protocol="h36m-p1")
    report = run(data, lambda c, f: along_x(10 * f, 10 * f), window=3, quirks=["drop_tails"])
    assert report["p_agg"] == pytest.approx(25 * SHARE, rel=1e-4) and report.settings["skipped_frames"] == 1


def test_the_camera_of_the_last_digit():
    eleven, one = h36m_camera(1, "S11"), h36m_camera(1, "S1")
    tags = {"action": "Walking", "subject": "S11", "camera": "55011271"}
    true = clip("S11/Walking/a", 4, 1, lens=eleven, noise=0.0, **tags)
    detected = clip("S11/Walking/b", 4, 1, lens=eleven, noise=3.0, **tags)
    nine = clip("S9/Walking/a", 4, 2, lens=h36m_camera(1, "S9"), **{**tags, "subject": "S9"})
    data = dataset(true, detected, nine, protocol="h36m-p1")
    seen = []

    class Watching(Known):
        def __call__(self, keypoints_2d, confidence, **arguments):
            seen.append((keypoints_2d[0], arguments["camera"]))
            return super().__call__(keypoints_2d, confidence, **arguments)

    moved = one.to_camera(eleven.to_world(true.positions_camera))
    pipe = Watching(data, lambda c, f: along_x(0.0, 0.0))
    for frame, pixels in enumerate(one.project(moved)):  # the true keypoints follow the camera
        pipe.known[tuple(pixels[0].tolist())] = pipe.known[tuple(true.keypoints_2d[frame, 0].tolist())]
    report = evaluate(pipe, data, progress=False, quirks=["camera_by_last_digit"])
    torch.testing.assert_close(seen[0][0], one.project(moved))
    assert torch.equal(seen[1][0], detected.keypoints_2d) and torch.equal(seen[2][0], nine.keypoints_2d)
    assert [torch.equal(camera.translation, one.translation) for _, camera in seen] == [True, True, False]
    assert report.results[0].errors["p_agg"] == pytest.approx(mpjpe(true.pose, moved - moved[:, :1]), rel=1e-4)
    assert report.results[2].errors["p_agg"] == pytest.approx(0, abs=1e-3)


def test_the_pixel_aspect_is_ignored():
    camera = Camera((1500.0, 1490.0), (960.0, 540.0), image_size=(1920, 1080))
    data = dataset(clip("TS5", 3, 1, "mpi_inf_3dhp_17", lens=camera, sequence="TS5"), protocol="3dhp")
    known = Known(data, lambda c, f: along_x(1, 2, root=14), "mpi_inf_3dhp_17")
    evaluate(known, data, progress=False, quirks="ignore_pixel_aspect")
    assert known.calls[0]["camera"].focal.tolist() == [1500.0, 1500.0]


# Calibration


def test_calibration_is_that_of_the_pooled_clips(motions):
    generator = torch.Generator().manual_seed(0)
    noise = {c.name: 0.05 * torch.randn(len(c), 9, 17, 3, generator=generator) for c in motions}
    bias = {c.name: 0.15 * torch.randn(len(c), 1, 17, 3, generator=generator) for c in motions}
    for c in motions:
        noise[c.name][:, :, 0] = bias[c.name][:, :, 0] = 0

    def shift(c, f):
        return noise[c.name][f] + bias[c.name][f]

    hypotheses = [torch.stack([c.pose[f] + shift(c, f) for f in range(len(c))], dim=1) for c in motions]
    known = Known(motions, shift)
    report = evaluate(known, motions, progress=False)
    assert report["ece"] == pytest.approx(ece(hypotheses, [c.pose for c in motions]), abs=1e-9)
    assert report["signed_miscalibration"] < 0 < report["energy_score"]  # the error is three times the spread: too sure
    assert "ece_calibrated" not in report.metrics
    known.calibrator = lambda poses: poses.mean(1, keepdim=True) + 3 * (poses - poses.mean(1, keepdim=True))
    again = evaluate(known, motions, progress=False)
    assert known.calls[-1]["calibrated"] is False
    assert again["p_agg"] == report["p_agg"] and again["j_best"] == report["j_best"] and again["ece"] == report["ece"]
    assert again["sharpness_calibrated"] == pytest.approx(3 * report["sharpness"], rel=1e-3)
    assert again["ece_calibrated"] < again["ece"]
    assert [row[0] for row in again.tables()[-1].rows] == ["raw", "recalibrated"]


def test_a_pipeline_with_all_parts(motions):
    """A learned aggregator and a calibrator of a real pipeline, measured beside the hypotheses as sampled."""
    plain = tiny_pipeline()
    calibrator = Recalibration(mode="scale")
    calibrator.scale *= 4
    torch.manual_seed(1)
    full = D3DPPipeline(**plain.components | {"aggregator": AttentionAggregator(width=16, depth=1), "calibrator": calibrator})
    full.set_progress_bar_config(disable=True)
    settings = {"num_hypotheses": 4, "num_inference_steps": 1, "progress": False}
    before, after = (evaluate(pipe, motions, **settings) for pipe in (plain, full))
    for metric in before.metrics:
        assert after[metric] == before[metric]
    assert after["sharpness_calibrated"] == pytest.approx(4 * before["sharpness"], rel=1e-4)
    clip = motions[0]
    out = full(
        clip.keypoints_2d[None], camera=clip.camera, num_hypotheses=4, num_inference_steps=1, aggregation="attention", fps=clip.fps,
        calibrated=False, generator=[_generator_of(clip.name)],
    )  # fmt: skip
    assert after.results[0].errors["attention"] == pytest.approx(mpjpe(out.pose[0], clip.pose), rel=1e-5)


def test_released_ece_of_single_frames():
    data = dataset(*(clip(f"a/b/{i}", 1, i) for i in range(5)))
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.01, 0.1, 17)[:, None]
    shifts = {c.name: spread * torch.randn(8, 17, 3, generator=generator) for c in data}
    hypotheses, truth = [c.pose[None] + shifts[c.name][:, None] for c in data], [c.pose for c in data]
    for quirks, mode in (((), "correct"), (("single_frame_ece",), "released")):
        report = run(data, lambda c, f: shifts[c.name], quirks=quirks)
        assert report["ece"] == pytest.approx(ece(hypotheses, truth, single_frame=mode), abs=1e-9)


# Folders and processes


def test_a_killed_run_goes_on_from_its_folder(pipe, motions, tmp_path, monkeypatch):
    whole = evaluate(pipe, motions, progress=False)
    done = []
    original = _Job.run

    def fails_at_the_third(job, c):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(c.name)
        return original(job, c)

    monkeypatch.setattr(_Job, "run", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipe, motions, progress=False, out=tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="resume"):
        evaluate(pipe, motions, progress=False, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"settings\.seed was 0, now is 1"):
        evaluate(pipe, motions, progress=False, out=tmp_path / "run", resume=True, seed=1)
    again = []
    monkeypatch.setattr(_Job, "run", lambda job, c: (again.append(c.name), original(job, c))[1])
    report = evaluate(pipe, motions, progress=False, out=tmp_path / "run", resume=True)
    assert again == [c.name for c in motions][2:] and comparable(report) == comparable(whole)
    assert comparable(evaluate(pipe, motions, progress=False, out=tmp_path / "run", resume=True)) == comparable(whole)
    assert len(again) == 2


def test_hypotheses_are_kept(pipe, motions, tmp_path):
    report = evaluate(pipe, motions, progress=False, out=tmp_path / "run", save_hypotheses=True)
    kept = dict(read_shards(tmp_path / "run"))
    for c in motions:
        arrays = kept[c.name]
        assert arrays["hypotheses"].shape == (3, len(c), 17, 3) and arrays["frame"].tolist() == list(range(len(c)))
        pose = torch.from_numpy(arrays["hypotheses"]).mean(0)
        result = next(r for r in report.results if r.name == c.name)
        assert mpjpe(pose, c.pose) == pytest.approx(result.errors["p_agg"], rel=1e-5)


def test_two_processes_give_the_report_of_one(pipe, motions, tmp_path):
    """Through the command line: results once gathered, once by way of a folder; the main process alone speaks."""
    pipe.save_pretrained(tmp_path / "model")
    data = {
        "keypoints_true": torch.cat([c.keypoints_2d for c in motions]), "confidence": torch.cat([c.confidence for c in motions]),
        "keypoints_detected": torch.cat([c.keypoints_2d for c in motions]),
        "positions_camera": torch.cat([c.positions_camera for c in motions]), "rotation": torch.eye(3).expand(4, 3, 3),
        "translation": torch.zeros(4, 3), "starts": np.cumsum([0, *map(len, motions)]), "names": [c.name for c in motions], "fps": 50.0,
        **{name: getattr(motions[0].camera, name) for name in ("focal", "centre", "radial", "tangential", "image_size")},
    }  # fmt: skip
    np.savez(tmp_path / "motions.npz", **data)
    words = ["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "motions.npz"), "--threads", "1"]
    ports = []
    for _ in range(2):  # a group of processes each
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    runs = [(ports[0], [*words, "--json", str(tmp_path / "gathered.json")])]
    runs += [(ports[1], [*words, "--json", str(tmp_path / "by_folder.json"), "--out", str(tmp_path / "run")])]
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom probpose.cli import main\n"
        f"for port, words in {runs!r}:\n"
        "    sys.argv, os.environ['MASTER_PORT'] = ['probpose', *words], port\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MASTER_", "RANK", "WORLD_", "LOCAL_"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, script], env={**environment, "RANK": rank, "LOCAL_RANK": rank}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0].count("4 clips, 43 frames") == 2 and outputs[1][0] == ""
    reports = [json.loads((tmp_path / name).read_text()) for name in ("gathered.json", "by_folder.json")]
    pipe = ProbPosePipeline.from_pretrained(tmp_path / "model")  # where weights lie in memory matters to the last bits, too
    alone = evaluate(pipe, load_dataset(tmp_path / "motions.npz"), threads=1, progress=False).to_dict()
    for report in (alone, *reports):
        del report["cost"]["seconds"], report["cost"]["milliseconds_per_frame"], report["settings"]["model"]
    assert reports[0] == reports[1] == alone
