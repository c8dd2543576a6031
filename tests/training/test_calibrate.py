"""Calibrating a pipeline on clips kept out: it does so on its own data, says what it did, and the radius keeps its promise."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml

import probpose.training.calibration as module
from probpose import ProbPosePipeline
from probpose.calibration import Recalibration
from probpose.models import AttentionAggregator, FrameTransformerModel, GraFormerLifter, MixSTEModel
from probpose.pipelines import D3DPPipeline, fill_missing
from probpose.schedulers import D3DPScheduler
from probpose.training import CalibrationReport, calibrate
from probpose.training.aggregator import canonical_camera, draw_samples, held_out_windows
from probpose.training.config import DataConfig
from probpose.training.loop import split_clips

CLIPS = {f"{source}/{number}": 70 for source in "ab" for number in range(6)}


@pytest.fixture
def run(run_command):
    return run_command


def pipeline(aggregator=False, denoiser=None, **defaults):
    """A network that knows nothing: its poses are wrong, and its hypotheses agree far more than they should."""
    torch.manual_seed(0)
    denoiser = denoiser or FrameTransformerModel(num_frames=50, width=32, depth=1, num_attention_heads=1)
    parts = {"aggregator": AttentionAggregator(width=8, depth=1, num_attention_heads=1).eval()} if aggregator else {}
    settings = {"default_num_inference_steps": 2, "default_num_hypotheses": 6, "default_flip": False, "default_aggregation": "mean"}
    pipe = D3DPPipeline(denoiser=denoiser.eval(), scheduler=D3DPScheduler(), **parts, **{**settings, **defaults})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def data(make_archive):
    """A data section that keeps about half of the clips out."""
    archive = make_archive(CLIPS, sizes={name: 0.9 + 0.02 * i for i, name in enumerate(CLIPS)})
    return DataConfig(paths=[str(archive)], validation_share=0.6)


def fresh_cases(pipe, data, aggregation, windows=40):
    """Errors of the pose `(frames, joints)` and conformal radii of new windows of the clips kept out, one frame of each."""
    _, held_out = split_clips(data)
    rendered = held_out_windows(data, pipe, held_out, windows, seed=77)
    samples = draw_samples(pipe, rendered, 6, 640, nullcontext)
    hypotheses, keypoints, confidence = (samples[name].float() for name in ("hypotheses", "keypoints_2d", "confidence"))
    aggregator, camera = pipe.choose_aggregator(aggregation), canonical_camera(pipe)
    with torch.no_grad():
        out = aggregator(hypotheses, keypoints, camera, confidence=confidence)
    uncertainty = out.uncertainty
    if aggregation != "attention":
        uncertainty = (pipe.calibrator(hypotheses) - out.pose[:, None]).square().sum(-1).mean(1).sqrt()
    return (out.pose - samples["pose"]).norm(dim=-1)[:, 40], pipe.calibrator.radius(uncertainty)[:, 40]


@pytest.mark.parametrize("aggregation", ["attention", "jpma", None])
def test_it_calibrates(data, aggregation):
    pipe = pipeline(aggregator=aggregation == "attention", default_aggregation=aggregation)
    report = calibrate(pipe, data, windows=96)
    numbers = report.numbers
    assert list(numbers) == list(report.curves) == ["sampled", "recalibrated"]
    assert numbers["recalibrated"]["ece"] < 0.5 * numbers["sampled"]["ece"]
    assert numbers["recalibrated"]["sharpness_mm"] > numbers["sampled"]["sharpness_mm"]  # the hypotheses were too close together
    assert numbers["recalibrated"]["energy_score_mm"] < numbers["sampled"]["energy_score_mm"]
    assert 0.6 < report.uncertainty_ratio[1:].mean() < 1.6

    config = pipe.calibrator.config
    assert (config.mode, config.coverage, config.aggregation) == ("radial", 0.9, aggregation or "mean")
    record = {"num_hypotheses": 6, "num_inference_steps": 2, "flip": False, "share_first_step": False}
    assert config.fitted_with == {**record, "clips": report.clips, "windows": 96, "seed": 0}
    assert pipe.calibrator.radius_factor[0] == 0 and (pipe.calibrator.radius_factor[1:] > 0).all()
    assert pipe.is_calibrated_for(pipe.choose_aggregator(aggregation or "mean"))

    error, radius = fresh_cases(pipe, data, aggregation or "mean")
    assert 0.82 < (error <= radius).float()[:, 1:].mean() < 0.98
    keypoints = 500 + 100 * torch.randn(12, 17, 2)
    out = pipe(keypoints, image_size=(1000, 1000), aggregation=aggregation or "mean")
    torch.testing.assert_close(out.radius, pipe.calibrator.radius(out.uncertainty))


def test_the_scale_of_a_learned_uncertainty(data):
    """Whatever the scale was before, errors over uncertainty have a root mean square of one on the half that it was fitted to."""
    pipe = pipeline(aggregator=True, default_aggregation="attention")
    calibrate(pipe, data, windows=64, num_hypotheses=3)
    scale, factor = pipe.aggregator.uncertainty_scale.clone(), pipe.calibrator.radius_factor.clone()
    assert scale[0] == 1 and (scale[1:] > 1).all()
    pipe.aggregator.uncertainty_scale *= 3
    calibrate(pipe, data, windows=64, num_hypotheses=3)
    torch.testing.assert_close(pipe.aggregator.uncertainty_scale[1:], scale[1:], rtol=1e-3, atol=0)
    torch.testing.assert_close(pipe.calibrator.radius_factor, factor, rtol=1e-3, atol=0)


def test_it_does_not_touch_another_aggregator(data):
    pipe = pipeline(aggregator=True, default_aggregation="mean")
    calibrate(pipe, data, windows=64)
    assert torch.equal(pipe.aggregator.uncertainty_scale, torch.ones(17))
    assert pipe.is_calibrated_for(pipe.choose_aggregator("mean")) and not pipe.is_calibrated_for(pipe.aggregator)


@pytest.mark.parametrize("mode", ["scale", "joint", "level"])
def test_modes_and_settings(data, mode):
    pipe = pipeline(default_aggregation="mean")
    report = calibrate(pipe, data, windows=64, mode=mode, coverage=0.8, num_hypotheses=5, seed=3, mixed_precision=mode == "joint")
    config = pipe.calibrator.config
    assert (config.mode, config.coverage, config.fitted_with["num_hypotheses"], config.fitted_with["seed"]) == (mode, 0.8, 5, 3)
    assert report.numbers["recalibrated"]["ece"] < report.numbers["sampled"]["ece"]


def test_the_clips_and_what_decides_the_result(data, monkeypatch):
    """Fit and measurement see different clips, none of them trained on; the arguments decide, not what was fitted before."""
    seen, held_out_of = [], module.held_out_windows

    def watched(data, pipe, clips, *args):
        seen.append(set(clips.names))
        return held_out_of(data, pipe, clips, *args)

    monkeypatch.setattr(module, "held_out_windows", watched)
    pipe = pipeline()
    first = calibrate(pipe, data, windows=64)
    training, held_out = split_clips(data)
    fit, measure = seen
    assert fit and measure and not fit & measure and fit | measure == set(held_out.names) and first.clips == len(held_out)
    assert not (fit | measure) & set(training.names)

    state = {name: value.clone() for name, value in pipe.calibrator.state_dict().items()}
    assert calibrate(pipe, data, windows=64).to_dict() == first.to_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipe.calibrator.state_dict().items())


def test_the_report(data):
    report = calibrate(pipeline(), data, windows=64)
    assert isinstance(report, CalibrationReport) and report.windows == 64
    content = json.loads(json.dumps(report.to_dict()))
    assert set(content) == {"clips", "windows", "numbers", "median_joint_coverage", "uncertainty_ratio", "radius_mm", "lengths"}
    assert len(content["uncertainty_ratio"]) == 17 and content["numbers"] == report.numbers
    assert {name: len(curve) for name, curve in content["median_joint_coverage"].items()} == {"sampled": 21, "recalibrated": 21}
    for name, curve in report.curves.items():
        assert curve.shape == (21, 17)
        ece = np.abs(np.median(curve.numpy(), axis=1) - np.linspace(0, 1, 21)).mean()
        assert ece == pytest.approx(report.numbers[name]["ece"])
    lines = report.to_text().splitlines()
    assert lines[0].startswith(f"64 windows of {report.clips} clips kept out") and len(lines) == 5
    assert [line.split()[0] for line in lines[2:4]] == ["sampled", "recalibrated"]
    assert f"{report.numbers['sampled']['ece']:.3f}" in lines[2] and f"{report.radius_mm:.0f} mm" in lines[4]


def test_clips_of_several_lengths(data):
    pipe = pipeline()
    report = calibrate(pipe, data, windows=400, num_hypotheses=3, lengths=[1, 50])
    assert report.lengths == (1, 50) == tuple(report.to_dict()["lengths"]) == tuple(pipe.calibrator.config.lengths)
    assert report.numbers["recalibrated"]["ece"] < 0.5 * report.numbers["sampled"]["ece"]
    assert pipe.calibrator.radius_factor.shape == (2, 17) and pipe.calibrator.radius_factor[:, 1:].isfinite().all()
    out = pipe(500 + 100 * torch.randn(12, 17, 2), image_size=(1000, 1000))
    assert out.radius.isfinite().all()
    with pytest.raises(ValueError, match=r"lengths must lie in 1..50"):
        calibrate(pipe, data, windows=400, lengths=[16, 64])


def test_a_pipeline_with_a_lifter(data, make_diffpose):
    pipe = make_diffpose(default_start="noisy", default_flip="lifter", default_num_hypotheses=4)
    report = calibrate(pipe, data, windows=200)  # of 9 frames, two of which are far enough apart
    sampler = {"num_hypotheses": 4, "num_inference_steps": 2, "start": "noisy", "flip": "lifter"}
    assert pipe.calibrator.config.fitted_with == {**sampler, "clips": report.clips, "windows": 200, "seed": 0}
    assert report.numbers["recalibrated"]["ece"] < 0.7 * report.numbers["sampled"]["ece"]
    assert pipe(500 + 100 * torch.randn(5, 17, 2), image_size=(1000, 1000)).radius.shape == (5, 17)


def test_networks_that_take_every_frame_for_itself(data, make_diffpose):
    lifter = GraFormerLifter(width=16, depth=1, num_attention_heads=2, canonical_camera=(2.29, 2.29, 0.0, 0.0))
    pipe = make_diffpose(lifter)
    _, held_out = split_clips(data)
    samples = draw_samples(pipe, held_out_windows(data, pipe, held_out, 3, seed=0), 2, 640, nullcontext)
    assert samples["hypotheses"].shape == (3, 2, 27, 17, 3)
    with pytest.raises(ValueError, match="windows must be at least 100, got 64"):
        calibrate(pipe, data, windows=64)


def test_unobserved_keypoints_are_filled_in(data, make_diffpose):
    """As they are when the pipeline is called; what a keypoint would have been where it was not observed must not leak in."""
    pipe = make_diffpose()
    _, held_out = split_clips(data)
    windows = held_out_windows(data, pipe, held_out, 24, seed=0)
    samples, raw = draw_samples(pipe, windows, 2, 640, nullcontext), windows.render(list(range(24)))
    seen = raw["confidence"] > 0
    assert (~seen).any() and torch.equal(samples["keypoints_2d"][seen], raw["keypoints_2d"][seen])
    expected = fill_missing(torch.where(seen[..., None], raw["keypoints_2d"], torch.nan)).nan_to_num()
    assert torch.equal(samples["keypoints_2d"], expected) and not torch.equal(expected, raw["keypoints_2d"])


# What it refuses


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"validation_share": 0.0}, {}, r"data\.validation_share: 0\.0 keeps 0 clips out of training"),
        ({"validation_share": 0.001}, {}, r"data\.validation_share: 0\.001 keeps 0 clips"),
        ({"include": ["a/0", "a/1"], "validation_share": 0.5}, {}, r"keeps \d clips out of training, too few to calibrate on one half"),
        ({}, {"windows": 63}, "windows must be at least 64, got 63"),
        ({}, {"mode": "best"}, "mode must be one of .*'radial'.*, got 'best'"),
        ({}, {"coverage": 1.0}, "coverage must lie between 0 and 1, got 1.0"),
        ({}, {"coverage": 0.99}, "a coverage of 0.99 needs at least 99 calibration items, got 32"),
        ({}, {"num_hypotheses": 0}, "num_hypotheses must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_be_calibrated(data, monkeypatch, changes, options, message):
    pipe = pipeline()
    monkeypatch.setattr(D3DPPipeline, "sample_clips", None)  # complaints come before the work
    with pytest.raises(ValueError, match=message):
        calibrate(pipe, data.model_copy(update=changes), **{"windows": 64, **options})
    assert pipe.calibrator is None


def test_pipelines_that_cannot_be_calibrated(data):
    with pytest.raises(ValueError, match="no canonical camera"):
        calibrate(pipeline(denoiser=MixSTEModel(num_frames=50, width=16, depth=1, num_attention_heads=2)), data)
    with pytest.raises(ValueError, match="needs a pipeline with a learned aggregator"):
        calibrate(pipeline(default_aggregation="attention"), data)
    coco = FrameTransformerModel(num_frames=50, width=16, depth=1, num_attention_heads=1, skeleton="coco_17")
    with pytest.raises(ValueError, match="reads coco_17 and produces coco_17, but windows are rendered for h36m_17 only"):
        calibrate(pipeline(denoiser=coco), data)
    short = FrameTransformerModel(num_frames=8, width=16, depth=1, num_attention_heads=1)
    with pytest.raises(ValueError, match="windows must be at least 400, got 128"):  # each is one case, and a fit needs 200
        calibrate(pipeline(denoiser=short), data, windows=128)


def test_a_failure_leaves_the_pipeline_as_it_was(data):
    pipe = pipeline(aggregator=True, default_aggregation="attention")
    with pytest.raises(ValueError, match="at least 2 hypotheses"):
        calibrate(pipe, data, windows=64, num_hypotheses=1)
    assert pipe.calibrator is None and torch.equal(pipe.aggregator.uncertainty_scale, torch.ones(17))


# The command


def test_the_command(run, data, tmp_path):
    model, recipe, out = tmp_path / "model", tmp_path / "recipe.yaml", tmp_path / "models" / "calibrated"
    pipeline(aggregator=True, default_aggregation="attention").save_pretrained(model)
    content = {"output_dir": "x", "pipeline": str(model), "aggregator": {"name": "AttentionAggregator"}, "optim": {"steps": 1}}
    recipe.write_text(yaml.safe_dump({**content, "data": data.model_dump(include={"paths", "validation_share"})}))
    words = ("calibrate", model, recipe, "--out", out, "--windows", 64, "-k", 3, "--mode", "level", "--device", "cpu")
    code, text, error = run(*words)
    assert code == 0, error
    assert "64 windows of" in text and "recalibrated" in text and f"finished: {out}" in text

    pipe = ProbPosePipeline.from_pretrained(out)
    assert isinstance(pipe.calibrator, Recalibration) and pipe.calibrator.config.mode == "level"
    assert pipe.config.default_aggregation == "attention" and (pipe.aggregator.uncertainty_scale[1:] > 1).all()
    pipe.set_progress_bar_config(disable=True)
    assert pipe(500 + 100 * torch.randn(5, 17, 2), image_size=(1000, 1000)).radius.shape == (5, 17)
    report = json.loads((out / "calibration.json").read_text())
    assert report["windows"] == 64 and report["numbers"]["recalibrated"]["ece"] < report["numbers"]["sampled"]["ece"]
    assert (out / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in out.parent.iterdir()] == ["calibrated"]

    before = (out / "calibration.json").read_bytes()
    code, _, error = run(*words, "--seed", 1)
    assert code != 0 and "--overwrite" in error and (out / "calibration.json").read_bytes() == before
    assert run(*words, "--seed", 1, "--overwrite")[0] == 0
    assert (out / "calibration.json").read_bytes() != before


def test_the_command_in_error(run, data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    content = {"output_dir": "x", "denoiser": {"name": "MixSTEModel"}, "optim": {"steps": 1}, "data": {"paths": data.paths}}
    recipe.write_text(yaml.safe_dump({**content, "data": {"paths": data.paths, "validation_share": 0.0}}))
    pipeline().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    for words, message in [
        ((tmp_path / "model", recipe), "keeps 0 clips out of training"),
        ((tmp_path / "model", tmp_path / "absent.yaml"), "no training recipe at"),
        ((tmp_path / "absent", recipe), "no model folder at"),
    ]:
        code, _, error = run("calibrate", *words, "--out", out)
        assert code != 0 and message in error and len(error.strip().splitlines()) == 1
        assert not out.exists()
    for option, value in (("--windows", 8), ("--coverage", 1.5), ("--mode", "best")):
        code, _, error = run("calibrate", tmp_path / "model", recipe, "--out", out, option, value)
        assert code == 2 and option in error
