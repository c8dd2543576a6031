"""Training a learned aggregator: it learns to tell hypotheses apart, survives being interrupted, and refuses what cannot work."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_runs import interrupt_at, write_recipe

import probpose.training.aggregator as module
from probpose import ProbPosePipeline
from probpose.aggregation import get_aggregator
from probpose.calibration import Recalibration
from probpose.geometry import root_of_hypotheses
from probpose.models import FrameTransformerModel, MixSTEModel
from probpose.pipelines import D3DPPipeline, DiffPosePipeline
from probpose.schedulers import D3DPScheduler
from probpose.training import AggregatorConfig, AggregatorTrainer, TrainingConfig, load_recipe, train
from probpose.training.aggregator import canonical_camera
from probpose.training.loop import mix_seeds
from probpose.training.windows import rendered

SMALL = {"width": 16, "depth": 1, "num_attention_heads": 1}


def save_pipeline(folder, denoiser=None, **components):
    torch.manual_seed(0)
    denoiser = denoiser or FrameTransformerModel(num_frames=8, width=32, depth=1, num_attention_heads=2)
    pipe = D3DPPipeline(denoiser.eval(), D3DPScheduler(), default_num_inference_steps=1, default_flip=False, **components)
    pipe.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture
def recipe(tmp_path, make_archive, pipeline):
    """`recipe({"optim.steps": 3})` writes a small recipe with these changes; fields set to `...` are left out."""
    archive = make_archive({"a/1": 40, "a/2": 25, "b/1": 30})

    def write(changes=None):
        content = {
            "output_dir": str(tmp_path / "run"),
            "pipeline": pipeline,
            "aggregator": {"name": "AttentionAggregator", "config": SMALL},
            "samples": {"windows": 12, "num_hypotheses": 5},
            "data": {"paths": [str(archive)], "validation_share": 0.5},
            "optim": {"steps": 6, "batch_size": 4, "warmup_steps": 2, "ema_decay": 0.9, "num_frames": 4},
            "checkpoint_every": 3,
            "evaluation_windows": 6,
        }
        return write_recipe(tmp_path / "recipe.yaml", content, changes)

    return write


@pytest.fixture
def sampled(monkeypatch):
    """Descriptions of the samplings that took place."""
    calls, draw = [], module.draw_samples

    def counted(*args, **kwargs):
        calls.append(kwargs["description"].removeprefix("sampling for "))
        return draw(*args, **kwargs)

    monkeypatch.setattr(module, "draw_samples", counted)
    return calls


def state(folder):
    """All tensors that a run is made of: weights, moments, averages."""
    content = torch.load(folder / "state.pt", weights_only=True)
    moments = [value for moment in content["optimizer"]["state"].values() for value in moment.values()]
    return [*content["model"].values(), *moments, *content["ema"]["shadow_params"]]


def assert_same_state(one, other):
    one, other = state(one), state(other)
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


# A run


def test_a_run_leaves_a_pipeline_with_an_aggregator(recipe, tmp_path, pipeline):
    folder = train(recipe({"evaluate_every": 4, "log_every": 2}))
    assert folder == tmp_path / "run" / "checkpoint-6" / "pipeline"
    assert checkpoints(tmp_path / "run") == ["checkpoint-3", "checkpoint-6"]
    index = json.loads((folder / "model_index.json").read_text())
    assert index["aggregator"] == ["probpose.models", "AttentionAggregator"] and index["default_aggregation"] == "attention"

    pipe, before = ProbPosePipeline.from_pretrained(folder), ProbPosePipeline.from_pretrained(pipeline)
    assert all(torch.equal(a, b) for a, b in zip(pipe.denoiser.parameters(), before.denoiser.parameters(), strict=True))
    ema = torch.load(folder.parent / "state.pt", weights_only=True)["ema"]["shadow_params"]
    assert all(torch.equal(a, b) for a, b in zip(pipe.aggregator.parameters(), ema, strict=True))
    pipe.set_progress_bar_config(disable=True)
    out = pipe(500 + 100 * torch.randn(20, 17, 2), image_size=(1000, 1000), num_hypotheses=3)
    assert out.pose.shape == (20, 17, 3) and out.pose.isfinite().all()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    for tag in ("attention_mm", "mean_mm", "jpma_mm", "within_uncertainty"):
        assert [event.step for event in log.Scalars(f"validation/{tag}")] == [4, 6]
    assert [event.step for event in log.Scalars("train/loss_mm")] == [2, 4, 6]


def test_on_top_of_a_pipeline_with_a_lifter(recipe, tmp_path, tiny_diffpose):
    folder = train(recipe({"pipeline": str(tiny_diffpose)}))
    pipe = ProbPosePipeline.from_pretrained(folder)
    assert type(pipe) is DiffPosePipeline and pipe.config.default_aggregation == "attention"
    samples = load_file(tmp_path / "run" / "samples-training.safetensors")
    assert samples["hypotheses"].shape == (12, 5, 9, 17, 3) and samples["hypotheses"].isfinite().all()
    pipe.set_progress_bar_config(disable=True)
    out = pipe(500 + 100 * torch.randn(20, 17, 2), image_size=(1000, 1000))
    assert out.pose.shape == (20, 17, 3) and out.pose.isfinite().all() and out.lifted is not None


def test_the_samples_are_the_pipelines(recipe, tmp_path, pipeline):
    train(recipe({"optim.steps": 1}))
    samples = load_file(tmp_path / "run" / "samples-training.safetensors")
    shapes = {"hypotheses": (12, 5, 8, 17, 3), "keypoints_2d": (12, 8, 17, 2), "confidence": (12, 8, 17), "pose": (12, 8, 17, 3)}
    assert {name: tuple(value.shape) for name, value in samples.items()} == {**shapes, "root": (12, 8, 3)}
    assert samples["hypotheses"].dtype == torch.float16 and samples["pose"].dtype == torch.float32
    assert load_file(tmp_path / "run" / "samples-validation.safetensors")["pose"].shape[0] == 6

    windows = rendered(AggregatorTrainer(load_recipe(recipe({"output_dir": "x"}))).training_windows, list(range(12)))
    assert all(torch.equal(samples[name], windows[name]) for name in ("keypoints_2d", "confidence", "pose"))
    pipe = ProbPosePipeline.from_pretrained(pipeline)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(mix_seeds(0, 0))  # the recipe's seed, the first window
    again = pipe.sample_clips(samples["keypoints_2d"], samples["confidence"], pipe.settings(num_hypotheses=5), generator)
    torch.testing.assert_close(samples["hypotheses"].float(), again, atol=1e-3, rtol=1e-3)
    root = root_of_hypotheses(again, samples["keypoints_2d"], canonical_camera(pipe), samples["confidence"])
    torch.testing.assert_close(samples["root"], root, atol=1e-3, rtol=1e-3)


def test_an_interrupted_run_continues_as_if_nothing_had_happened(recipe, tmp_path, monkeypatch, one_thread, sampled):
    straight = train(recipe({"output_dir": str(tmp_path / "straight")})).parent
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        train(recipe())
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert sampled == ["training", "validation"] * 2
    resumed = train(recipe(), resume=True).parent
    assert_same_state(straight, resumed)
    assert sampled == ["training", "validation"] * 2  # the samples are still there
    assert not list((tmp_path / "run").glob(".*"))


def test_samples_of_another_recipe_are_not_used(recipe, tmp_path, monkeypatch, sampled):
    """A run that was stopped before its first checkpoint has left its samples, and nothing that says what they are but themselves."""

    def stop_early(changes=None):
        sampled.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, 1)
            train(recipe(changes))
        return list(sampled)

    assert stop_early() == ["training", "validation"]
    assert stop_early() == []
    assert stop_early({"optim.learning_rate": 1e-4, "aggregator.config": {**SMALL, "width": 32}}) == []
    assert stop_early({"samples.num_hypotheses": 6}) == ["training", "validation"]
    assert stop_early({"samples.num_hypotheses": 6, "seed": 1}) == ["training", "validation"]
    assert stop_early({"samples.num_hypotheses": 6, "seed": 1, "evaluation_windows": 7}) == ["validation"]
    other = save_pipeline(tmp_path / "other")
    assert stop_early({"pipeline": other}) == ["training", "validation"]
    sampled.clear()
    train(recipe({"pipeline": other, "optim.steps": 1}), overwrite=True)
    assert sampled == ["training", "validation"]


def test_a_kill_while_samples_are_drawn_leaves_no_half_of_them(recipe, tmp_path, monkeypatch):
    sample, calls = D3DPPipeline.sample_clips, []

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "SAMPLING_BATCH", 8)
        patch.setattr(D3DPPipeline, "sample_clips", killed)
        train(recipe())
    assert not list((tmp_path / "run").rglob("*samples*"))
    train(recipe({"optim.steps": 1}))


def test_only_the_same_recipe_is_resumed(recipe, tmp_path, pipeline):
    train(recipe({"optim.steps": 2}))
    with pytest.raises(FileExistsError, match=r"--resume.*--overwrite"):
        train(recipe())
    with pytest.raises(ValueError, match=r"samples\.num_hypotheses was 5, is 6"):
        train(recipe({"samples.num_hypotheses": 6}), resume=True)
    with pytest.raises(ValueError, match=r"another recipe: pipeline was .*tiny', is .*other'"):
        train(recipe({"pipeline": save_pipeline(tmp_path / "other")}), resume=True)
    train(recipe({"optim.steps": 3, "log_every": 1}), resume=True)
    assert checkpoints(tmp_path / "run") == ["checkpoint-2", "checkpoint-3"]


def test_without_validation(recipe, tmp_path):
    folder = train(recipe({"data.validation_share": 0.0, "optim.steps": 1}))
    assert ProbPosePipeline.from_pretrained(folder).aggregator is not None
    assert not (tmp_path / "run" / "samples-validation.safetensors").exists()


def test_windows_shorter_than_a_step_looks_at(recipe):
    train(recipe({"optim.num_frames": 100, "optim.steps": 1}))


def test_a_calibrator_that_was_fitted_with_another_aggregator_is_dropped(recipe, tmp_path):
    calibrator = Recalibration(aggregation="attention")
    calibrator.radius_factor[:] = 2
    source = save_pipeline(tmp_path / "calibrated", calibrator=calibrator)
    pipe = ProbPosePipeline.from_pretrained(train(recipe({"pipeline": source, "optim.steps": 1})))
    assert pipe.calibrator is None and pipe.aggregator is not None


# It learns


class Constructed(AggregatorTrainer):
    """Hypotheses of which a third are nearly right, joint by joint; the others are off, also in the image. The root is known."""

    def prepare(self):
        self.samples = self.constructed(self.training_windows, 0)
        self.held_out = self.constructed(self.validation_windows, 1)

    def constructed(self, windows, seed):
        batch, generator = windows.render(list(range(len(windows)))), torch.Generator().manual_seed(seed)
        shape = (len(windows), self.config.samples.num_hypotheses, *batch["pose"].shape[1:3], 1)
        size = torch.where(torch.rand(shape, generator=generator) < 1 / 3, 0.01, 0.15)
        size[..., 0, :] = 0
        offset = size * torch.randn(*shape[:-1], 3, generator=generator)
        return {**batch, "hypotheses": (batch["pose"][:, None] + offset)}


def test_it_learns_which_hypotheses_to_trust(recipe):
    changes = {
        "aggregator.config": {"width": 32, "depth": 1, "num_attention_heads": 1},
        "samples": {"windows": 64, "num_hypotheses": 8},
        "data.detector": None,
        "optim": {
            "steps": 70, "batch_size": 8, "num_frames": 2, "warmup_steps": 5, "learning_rate": 8e-3, "ema_decay": 0.8,
            "uncertainty_weight": 1e-2,
        },
        "evaluation_windows": 12,
    }  # fmt: skip
    trainer = Constructed(load_recipe(recipe(changes)))
    trainer.prepare()
    before = trainer.evaluate()
    assert before["attention_mm"] == pytest.approx(before["mean_mm"], rel=1e-4)
    trainer.train()
    after = trainer.evaluate()
    assert after["mean_mm"] == before["mean_mm"] and after["attention_mm"] < 0.6 * after["mean_mm"]
    assert 40 < after["within_uncertainty"] < 95 < before["within_uncertainty"]  # of a Gaussian's errors 61 %

    # The pose is better because the good hypotheses weigh more.
    batch = {name: value.float() for name, value in trainer.held_out.items()}
    with trainer._averaged():
        weights = trainer.network(batch["hypotheses"], batch["keypoints_2d"], trainer.camera, batch["root"], batch["confidence"]).weights[
            ..., 1:
        ]
    error = (batch["hypotheses"] - batch["pose"][:, None]).norm(dim=-1)[..., 1:]
    assert weights[error < 0.03].mean() > 3 * weights[error > 0.1].mean()


def test_what_validation_reports(recipe, one_thread):
    trainer = Constructed(load_recipe(recipe({"data.detector": None})))
    trainer.prepare()
    errors, batch = trainer.evaluate(), trainer.held_out
    for name in ("mean", "jpma"):
        pose = get_aggregator(name)(batch["hypotheses"], batch["keypoints_2d"], trainer.camera, confidence=batch["confidence"]).pose
        assert errors[f"{name}_mm"] == pytest.approx(1000 * (pose - batch["pose"]).norm(dim=-1).mean().item(), rel=1e-5)
    hypotheses, moving = batch["hypotheses"], slice(1, None)
    error = (hypotheses.mean(1) - batch["pose"]).norm(dim=-1)[..., moving]
    sigma = ((hypotheses - hypotheses.mean(1, keepdim=True)).square().sum(-1).mean(1) + 0.02**2).sqrt()[..., moving]
    assert errors["within_uncertainty"] == pytest.approx(100 * (error < sigma).float().mean().item(), abs=0.5)


def test_steps_see_few_or_many_hypotheses(recipe, monkeypatch):
    seen, aggregate = [], AggregatorTrainer._aggregate

    def watched(self, network, batch, hypotheses):
        if network is self.model and network.training:
            seen.append(tuple(hypotheses.shape[:3]))
        return aggregate(self, network, batch, hypotheses)

    monkeypatch.setattr(AggregatorTrainer, "_aggregate", watched)
    train(recipe({"optim.steps": 30, "optim.fewest_hypotheses": 3, "checkpoint_every": 30}))
    assert {shape[1] for shape in seen} == {3, 4, 5} and {(shape[0], shape[2]) for shape in seen} == {(4, 4)}


# Recipes


def test_load_recipe_picks_the_kind(recipe, tmp_path):
    assert type(load_recipe(recipe())) is AggregatorConfig
    config = load_recipe(recipe({"aggregator": ...}))
    assert type(config) is AggregatorConfig and config.aggregator.name == "AttentionAggregator"
    assert type(load_recipe(recipe({"samples": ...}))) is AggregatorConfig
    denoiser = {"output_dir": "x", "denoiser": {"name": "MixSTEModel"}, "data": {"paths": ["a"]}, "optim": {"steps": 1}}
    (tmp_path / "denoiser.yaml").write_text(yaml.safe_dump(denoiser))
    assert type(load_recipe(tmp_path / "denoiser.yaml")) is TrainingConfig
    with pytest.raises(FileNotFoundError, match="no training recipe at"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": ...}, "pipeline: Field required"),
        ({"samples.hypotheses": 5}, r"samples\.hypotheses: unknown field; allowed are windows, num_hypotheses, max_batch_size"),
        ({"samples.windows": 0}, r"samples\.windows: .*greater than 0"),
        ({"optim.velocity_weight": 0.1}, r"optim\.velocity_weight: unknown field; allowed are .*fewest_hypotheses"),
        ({"optim.uncertainty_weight": 0}, r"optim\.uncertainty_weight: "),
        ({"optim.fewest_hypotheses": 0}, r"optim\.fewest_hypotheses: "),
        ({"denoiser": {"name": "MixSTEModel"}}, "denoiser: unknown field"),
        ({"aggregator.name": "Attention"}, r"aggregator\.name: .*no 'Attention'; .*known: AttentionAggregator$"),
        ({"aggregator.name": "FrameTransformerModel"}, r"aggregator\.name: .*known: AttentionAggregator$"),
        ({"aggregator.config": {"widht": 3}}, r"aggregator\.config: AttentionAggregator has no widht; allowed are num_joints, width"),
        (
            {"aggregator.config": {"width": 10, "num_attention_heads": 3}},
            r"aggregator\.config: .*width 10 and 3 heads",
        ),
        ({"aggregator.config": {"skeleton": "coco_17"}}, r"aggregator\.config\.num_joints, skeleton: .*coco_17.*produces 17 of h36m_17"),
        ({"aggregator.config": {"num_joints": 16}}, r"aggregator\.config\.num_joints, skeleton: made for 16 joints"),
        ({"optim.fewest_hypotheses": 6}, r"optim\.fewest_hypotheses: 6, but samples\.num_hypotheses is 5"),
        ({"data.validation_share": 0.999}, r"data\.validation_share: 0\.999 leaves none of the 3 clips"),
        ({"data.source_weights": {"c": 1.0}}, r"source_weights names \['c'\]"),
    ],
)
def test_recipe_errors_name_the_field(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        AggregatorTrainer(load_recipe(recipe(changes)))
    assert not (tmp_path / "run").exists()


def test_pipelines_that_cannot_be_trained_on(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder at absent"):
        AggregatorTrainer(load_recipe(recipe({"pipeline": "absent"})))
    mixste = MixSTEModel(num_frames=8, width=16, depth=1, num_attention_heads=2)
    blind = save_pipeline(tmp_path / "mixste", mixste)
    with pytest.raises(ValueError, match="no canonical camera"):
        AggregatorTrainer(load_recipe(recipe({"pipeline": blind})))
    coco = FrameTransformerModel(num_frames=8, width=16, depth=1, num_attention_heads=1, skeleton="coco_17")
    with pytest.raises(ValueError, match="reads coco_17 and produces coco_17, but windows are rendered for h36m_17 only"):
        AggregatorTrainer(load_recipe(recipe({"pipeline": save_pipeline(tmp_path / "coco", coco)})))
