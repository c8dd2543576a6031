"""Pipelines with a learned aggregator and a calibrator: what a call hands out, and what is saved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import IMAGE, frame_pipeline, keypoints_of, mixste_pipeline, quiet, seeded

from probpose import ProbPosePipeline
from probpose.aggregation import JPMA
from probpose.calibration import Recalibration
from probpose.hub import bundled_model
from probpose.models import AttentionAggregator

AGGREGATIONS = ("attention", "jpma", "mean", "median", "weighted")


def learned(seed=1):
    """An aggregator that is not just the mean."""
    torch.manual_seed(seed)
    model = AttentionAggregator(width=16, depth=1, num_attention_heads=1).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.uncertainty_scale *= 1.5
    return model


def calibrator(aggregation="attention", radius=True):
    """Twice as wide, the tails more so."""
    model = Recalibration(aggregation=aggregation).eval()
    model.scale *= 2
    model.shape += torch.linspace(0, 1, 20)
    if radius:
        model.radius_factor[:] = torch.linspace(0, 3, 17)
    return model


def pipeline(make=frame_pipeline, **components):
    defaults = {"default_num_hypotheses": 4, "default_num_inference_steps": 2}
    return make(**{"aggregator": learned(), "calibrator": calibrator(), **defaults, **components})


def call(pipe, frames=7, keypoints=None, **options):
    keypoints = keypoints_of(frames=frames) if keypoints is None else keypoints
    return pipe(keypoints, **{"image_size": IMAGE, "generator": seeded(), **options})


def spread(out):
    return (out.hypotheses - out.pose[:, None]).square().sum(-1).mean(1).sqrt()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert name == "camera" or value is None or torch.equal(value, other[name])


# What a call hands out


@pytest.mark.parametrize("make", [frame_pipeline, mixste_pipeline])
def test_none_means_if_the_pipeline_can(make):
    able, unable = pipeline(make), pipeline(make, calibrator=None)
    assert_same(call(able), call(able, calibrated=True))
    assert_same(call(unable), call(unable, calibrated=False))
    assert_same(call(able, calibrated=False), call(unable))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_pose_is_that_of_the_hypotheses_as_sampled(aggregation):
    pipe = pipeline()
    sampled, calibrated = (call(pipe, aggregation=aggregation, calibrated=flag) for flag in (False, True))
    assert torch.equal(calibrated.pose, sampled.pose) and torch.equal(calibrated.root, sampled.root)
    assert torch.equal(calibrated.hypotheses, pipe.calibrator(sampled.hypotheses))
    assert (calibrated.hypotheses - sampled.hypotheses).abs().max() > 0.01
    torch.testing.assert_close(sampled.uncertainty, spread(sampled))
    assert (calibrated.hypotheses[..., 0, :] == 0).all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_uncertainty_of_a_calibrated_call(aggregation):
    """The spread of the recalibrated hypotheses; of a learned aggregator, what it predicts."""
    pipe, keypoints = pipeline(), keypoints_of()
    out = call(pipe, aggregation=aggregation)
    if aggregation != "attention":
        torch.testing.assert_close(out.uncertainty, spread(out))
        return
    sampled = call(pipe, calibrated=False, aggregation=None)
    with torch.no_grad():
        direct = pipe.aggregator(sampled.hypotheses, keypoints, out.camera, out.root)
    torch.testing.assert_close(out.uncertainty, direct.uncertainty)
    torch.testing.assert_close(out.pose, direct.pose)
    assert not torch.allclose(out.uncertainty, spread(out), rtol=0.05)


@pytest.mark.parametrize("asked", [*AGGREGATIONS, None])
@pytest.mark.parametrize("fitted_for", [*AGGREGATIONS, None])
def test_the_radius_belongs_to_one_aggregator(asked, fitted_for):
    pipe = pipeline(calibrator=calibrator(fitted_for))
    out, sampled = (call(pipe, frames=2, aggregation=asked, num_inference_steps=1, calibrated=flag) for flag in (True, False))
    assert sampled.radius is None and (out.hypotheses - sampled.hypotheses).abs().max() > 0.01
    if asked is None:
        assert out.pose is out.uncertainty is out.radius is None
    elif asked == fitted_for:
        torch.testing.assert_close(out.radius, torch.linspace(0, 3, 17) * out.uncertainty)
    else:
        assert out.radius is None


def test_the_radius_with_instances():
    assert call(pipeline(calibrator=calibrator("jpma")), aggregation=JPMA()).radius is not None
    pipe = pipeline()
    assert call(pipe, aggregation=pipe.aggregator).radius is not None
    other = learned(seed=7)
    out = call(pipe, aggregation=other)
    assert out.radius is None
    torch.testing.assert_close(out.uncertainty, spread(out))  # nobody has scaled what it predicts
    assert call(pipeline(aggregator=None), aggregation=other).radius is None


def test_no_radius_that_was_not_fitted():
    pipe = pipeline(calibrator=calibrator(radius=False))
    assert call(pipe).radius is None and not pipe.is_calibrated_for(pipe.aggregator)
    pipe.calibrator.radius_factor[:5] = 1
    assert call(pipe).radius is None
    assert call(pipeline(calibrator=None)).radius is None


def test_the_pipelines_own_aggregator_is_a_default_like_any():
    pipe = pipeline(default_aggregation="attention")
    assert_same(call(pipe), call(pipe, aggregation="attention"))
    assert call(pipe).radius is not None and call(pipe, aggregation="jpma").radius is None
    assert not torch.allclose(call(pipe).pose, call(pipe, aggregation="jpma").pose)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("output_type", ["pt", "np"])
def test_shapes_and_types(batched, output_type):
    pipe, lead = pipeline(), (2,) if batched else ()
    keypoints = keypoints_of() if batched else keypoints_of()[0]
    out = call(pipe, keypoints=keypoints, output_type=output_type, aggregation="attention")
    shapes = {"hypotheses": (4, 7, 17, 3), "pose": (7, 17, 3), "uncertainty": (7, 17), "root": (7, 3), "radius": (7, 17)}
    for name, shape in shapes.items():
        assert out[name].shape == lead + shape and isinstance(out[name], np.ndarray if output_type == "np" else torch.Tensor)
    values = call(pipe, keypoints=keypoints, output_type=output_type, aggregation="attention", return_dict=False)
    assert len(values) == 5 and all(np.array_equal(a, b) for a, b in zip(values[:4], (out.hypotheses, out.pose, out.uncertainty, out.root)))


def test_clips_do_not_depend_on_their_batch():
    pipe, keypoints = pipeline(), keypoints_of(frames=20)
    together = call(pipe, keypoints=keypoints, generator=[seeded(1), seeded(2)], aggregation="attention")
    for clip in range(2):
        alone = call(pipe, keypoints=keypoints[clip], generator=seeded(1 + clip), aggregation="attention")
        for name in ("hypotheses", "pose", "uncertainty", "radius"):
            torch.testing.assert_close(alone[name], together[name][clip], atol=1e-5, rtol=1e-5)


def test_a_given_root_and_other_skeletons():
    pipe, root = pipeline(), torch.tensor([0.1, 0.2, 5.0]).expand(2, 7, 3)
    given = call(pipe, aggregation="attention", root=root)
    assert torch.equal(given.root, root)
    assert not torch.equal(given.pose, call(pipe, aggregation="attention").pose)
    out = call(pipe, aggregation="attention", skeleton="coco_17")
    assert out.pose.isfinite().all() and out.radius.isfinite().all()


def test_a_single_hypothesis():
    pipe = pipeline()
    sampled, calibrated = (call(pipe, num_hypotheses=1, aggregation="attention", calibrated=flag) for flag in (False, True))
    assert torch.equal(sampled.hypotheses, calibrated.hypotheses)
    assert (calibrated.uncertainty > 0).all() and (calibrated.radius[..., 1:] > 0).all()


def test_what_a_pipeline_cannot_do():
    plain = pipeline(aggregator=None, calibrator=None)
    with pytest.raises(ValueError, match="calibrated=True needs a pipeline with a calibrator"):
        call(plain, calibrated=True)
    with pytest.raises(ValueError, match="aggregation='attention' needs a pipeline with a learned aggregator; this one has 'jpma'"):
        call(plain, aggregation="attention")
    with pytest.raises(ValueError, match="needs a pipeline with a learned aggregator"):
        call(pipeline(aggregator=None, default_aggregation="attention"))
    for value in ("yes", 2, 0.5):
        with pytest.raises(ValueError, match=f"calibrated must be True, False or None, got {value!r}"):
            call(pipeline(), calibrated=value)


# What is saved

COMPONENTS = {"aggregator": learned, "calibrator": calibrator}
PUBLIC = {"aggregator": ["probpose.models", "AttentionAggregator"], "calibrator": ["probpose.calibration", "Recalibration"]}


@pytest.mark.parametrize("names", [(), ("aggregator",), ("calibrator",), ("aggregator", "calibrator")], ids=lambda names: "+".join(names))
def test_round_trip(names, tmp_path):
    aggregation = "attention" if "aggregator" in names else "jpma"
    parts = {name: make() if name in names else None for name, make in COMPONENTS.items()}
    pipe = pipeline(**parts, default_aggregation=aggregation)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    loaded = quiet(ProbPosePipeline.from_pretrained(tmp_path))
    for name in COMPONENTS:
        assert (tmp_path / name).is_dir() == (name in names)
        assert index.get(name, [None, None]) == (PUBLIC[name] if name in names else [None, None])
        assert (getattr(loaded, name) is None) == (name not in names)
    assert_same(call(loaded), call(pipe))
    if "calibrator" in names:
        assert loaded.calibrator.config.aggregation == "attention"
    loaded.save_pretrained(tmp_path / "again")
    assert_same(call(quiet(ProbPosePipeline.from_pretrained(tmp_path / "again"))), call(pipe))


def test_folders_from_before_there_were_such_components(tmp_path):
    pipe = pipeline(aggregator=None, calibrator=None)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k not in COMPONENTS}))
    loaded = quiet(ProbPosePipeline.from_pretrained(tmp_path))
    assert loaded.aggregator is loaded.calibrator is None
    assert_same(call(loaded), call(pipe))
    given = quiet(ProbPosePipeline.from_pretrained(tmp_path, aggregator=learned(), calibrator=calibrator()))
    assert_same(call(given, aggregation="attention"), call(pipeline(), aggregation="attention"))


def test_the_bundled_model_loads():
    pipe = quiet(ProbPosePipeline.from_pretrained(bundled_model("d3dp-mocap17")))
    out = call(pipe, frames=3, num_hypotheses=2)
    assert (out.radius is not None) == pipe.is_calibrated_for(pipe.choose_aggregator("default"))
    assert (pipe.calibrator is not None) == pipe.check_calibrated(None)


def test_components_may_be_left_out_or_replaced_when_loading(tmp_path):
    pipeline().save_pretrained(tmp_path)
    plain = quiet(ProbPosePipeline.from_pretrained(tmp_path, aggregator=None, calibrator=None))
    assert plain.aggregator is plain.calibrator is None
    assert_same(call(plain), call(pipeline(aggregator=None, calibrator=None)))
    other = learned(seed=5)
    assert ProbPosePipeline.from_pretrained(tmp_path, aggregator=other).aggregator is other


def test_half_precision(tmp_path):
    pipeline().save_pretrained(tmp_path)
    half = quiet(ProbPosePipeline.from_pretrained(tmp_path, dtype=torch.float16))
    assert half.aggregator.dtype == torch.float16
    exact, out = (call(pipe, aggregation="attention") for pipe in (pipeline(), half))
    assert out.hypotheses.dtype == out.pose.dtype == torch.float32
    for name in ("hypotheses", "pose", "uncertainty", "radius"):
        torch.testing.assert_close(out[name], exact[name], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("part", ["aggregator", "calibrator"])
def test_a_missing_part_is_named(part, tmp_path):
    pipeline().save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(FileNotFoundError, match=f"lacks its part '{part}'"):
        ProbPosePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["aggregator", "calibrator"])
def test_damaged_weights_are_named(part, tmp_path):
    pipeline().save_pretrained(tmp_path)
    weights = next(Path(tmp_path / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{part}/.*is damaged"):
        ProbPosePipeline.from_pretrained(tmp_path)
