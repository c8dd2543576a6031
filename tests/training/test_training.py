"""Training: it learns, survives being killed without a trace, and says clearly what it will not do."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import interrupt_at, write_recipe

import probpose.models
from probpose import ProbPosePipeline
from probpose.pipelines import D3DPPipeline
from probpose.schedulers import D3DPScheduler
from probpose.training import (
    AggregatorConfig,
    AggregatorTrainer,
    DiffPoseConfig,
    DiffPoseTrainer,
    LifterConfig,
    LifterTrainer,
    PriorConfig,
    PriorTrainer,
    Trainer,
    TrainingConfig,
    load_data_section,
    load_recipe,
    train,
)
from probpose.training.loop import build_component

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "examples" / "train").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path, make_archive):
    """`recipe({"optim.steps": 3})` writes a small recipe with these changes; fields set to `...` are left out."""
    archive = make_archive({"a/1": 40, "a/2": 25, "b/1": 30})

    def write(changes=None, file="recipe.yaml"):
        content = {
            "output_dir": str(tmp_path / "run"),
            "denoiser": {
                "name": "FrameTransformerModel",
                "config": {"num_frames": 16, "width": 32, "depth": 1, "num_attention_heads": 2, "fps": 30},
            },
            "data": {"paths": [str(archive)], "validation_share": 0.5, "num_workers": 0},
            "optim": {"steps": 12, "batch_size": 8, "warmup_steps": 4, "ema_decay": 0.9, "short_window_share": 0.3},
            "checkpoint_every": 6,
            "evaluation_windows": 4,
        }
        return write_recipe(tmp_path / file, content, changes)

    return write


def state(folder):
    """All tensors that a run is made of: weights, moments, averages."""
    content = torch.load(Path(folder) / "state.pt", weights_only=True)
    moments = [value for moment in content["optimizer"]["state"].values() for value in moment.values()]
    return [*content["model"].values(), *moments, *content["ema"]["shadow_params"]]


def assert_same_state(one, other):
    one, other = state(one), state(other)
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def checkpoints(folder):
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder / "logs")).Reload()
    return {tag: {event.step: event.value for event in log.Scalars(tag)} for tag in log.Tags()["scalars"]}


def test_a_run_learns_and_leaves_a_pipeline_and_a_log(recipe, tmp_path):
    changes = {"data.body": None, "data.detector": None, "optim.steps": 60, "optim.batch_size": 16, "optim.learning_rate": 0.005}
    folder = train(recipe({**changes, "log_every": 5, "evaluate_every": 40, "checkpoint_every": 20}))
    assert folder == tmp_path / "run" / "checkpoint-60" / "pipeline"
    assert checkpoints(tmp_path / "run") == ["checkpoint-40", "checkpoint-60"]

    logged = scalars(tmp_path / "run")
    loss = logged["train/loss_mm"]
    assert list(loss) == list(range(5, 61, 5)) and loss[60] < 0.5 * loss[5]
    assert list(logged["validation/p_agg_mm"]) == list(logged["validation/j_best_mm"]) == [40, 60]
    assert logged["train/learning_rate"][5] == pytest.approx(0.005, rel=1e-4) and logged["train/windows_per_second"][60] > 0

    pipe = ProbPosePipeline.from_pretrained(folder)
    assert isinstance(pipe, D3DPPipeline)
    ema = torch.load(folder.parent / "state.pt", weights_only=True)["ema"]["shadow_params"]
    assert all(torch.equal(a, b) for a, b in zip(pipe.denoiser.parameters(), ema))
    keypoints = 500 + 100 * torch.randn(20, 17, 2)
    out = pipe(keypoints, image_size=(1000, 1000), num_hypotheses=2, num_inference_steps=1, aggregation=None)
    assert out.hypotheses.shape == (2, 20, 17, 3) and torch.isfinite(out.hypotheses).all()


def test_an_interrupted_run_continues_as_if_nothing_had_happened(recipe, tmp_path, monkeypatch):
    # Stochastic depth and a worker process: no randomness and no batch may depend on where the run was cut.
    changes = {"denoiser.config.depth": 2, "denoiser.config.drop_path": 0.3, "data.num_workers": 1, "log_every": 2}
    straight = train(recipe({**changes, "output_dir": str(tmp_path / "straight")})).parent
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 8)
        train(recipe(changes))
    assert checkpoints(tmp_path / "run") == ["checkpoint-6"]
    resumed = train(recipe({**changes, "log_every": 3, "data.num_workers": 0}), resume=True).parent
    assert resumed.name == straight.name == "checkpoint-12"
    assert_same_state(straight, resumed)
    assert list(scalars(tmp_path / "run")["train/loss_mm"]) == [2, 4, 6, 9, 12]  # what came after the checkpoint is told once
    assert train(recipe(changes), resume=True).parent == resumed  # nothing left to do


def command(path, *launcher):
    """`probpose train` in processes of its own, one thread each."""
    words = [sys.executable, *launcher, "-m", "probpose", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return {"args": words, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_sigkill(recipe, tmp_path, one_thread):
    straight = train(recipe({"optim.steps": 40, "output_dir": str(tmp_path / "straight")})).parent
    run = tmp_path / "run"
    process = subprocess.Popen(**command(recipe({"optim.steps": 40, "checkpoint_every": 1, "keep_checkpoints": 1})))
    while process.poll() is None and not any(int(name.split("-")[1]) >= 4 for name in checkpoints(run)):
        time.sleep(0.003)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for name in checkpoints(run):  # whatever has a checkpoint's name is one
        ProbPosePipeline.from_pretrained(run / name / "pipeline")
        assert int(name.split("-")[1]) < 40 and state(run / name)
    resumed = train(recipe({"optim.steps": 40}), resume=True).parent
    assert_same_state(straight, resumed)
    assert not list(run.glob(".*"))


def test_a_kill_while_a_checkpoint_is_written_leaves_the_previous_one_whole(recipe, tmp_path, monkeypatch):
    save = D3DPPipeline.save_pretrained

    def killed(self, folder, *args, **kwargs):
        if len(checkpoints(tmp_path / "run")) == 1:
            raise KeyboardInterrupt
        save(self, folder, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(D3DPPipeline, "save_pretrained", killed)
        train(recipe({"checkpoint_every": 4}))
    assert checkpoints(tmp_path / "run") == ["checkpoint-4"] and list((tmp_path / "run").glob(".partial-*"))
    final = train(recipe({"checkpoint_every": 4}), resume=True)
    assert not list((tmp_path / "run").glob(".partial-*"))
    ProbPosePipeline.from_pretrained(final)


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(recipe, tmp_path, monkeypatch):
    remove = shutil.rmtree

    def killed(path, **kwargs):
        (Path(path) / "progress.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        train(recipe({"keep_checkpoints": 1}))
    assert checkpoints(tmp_path / "run") == ["checkpoint-12"]
    assert shutil.rmtree is remove
    train(recipe({"keep_checkpoints": 1}), resume=True)
    assert not list((tmp_path / "run").glob(".partial-*"))


def test_several_processes_share_the_batch(recipe, tmp_path):
    alone = train(recipe({"output_dir": str(tmp_path / "alone")})).parent
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(**command(recipe(), *launcher), timeout=240)
    assert done.returncode == 0, done.stderr
    for a, b in zip(state(alone), state(tmp_path / "run" / "checkpoint-12")):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)  # the same windows and noise, summed in another order
    assert len(list((tmp_path / "run" / "logs").iterdir())) == 1  # only the main process writes
    done = subprocess.run(**command(recipe({"optim.batch_size": 5, "output_dir": "x"}), *launcher), timeout=240)
    assert done.returncode != 0 and "optim.batch_size: 5 windows cannot be shared equally by 2 processes" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path, monkeypatch):
    add_noise = D3DPScheduler.add_noise
    calls = []

    def poisoned(self, *args):
        calls.append(1)
        return add_noise(self, *args) * (torch.nan if len(calls) == 8 else 1)

    path = recipe({"checkpoint_every": 1})
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match="step 8"):
        patch.setattr(D3DPScheduler, "add_noise", poisoned)
        train(path)
    assert checkpoints(tmp_path / "run") == ["checkpoint-6", "checkpoint-7"]
    assert all(torch.isfinite(tensor).all() for tensor in state(tmp_path / "run" / "checkpoint-7"))
    train(path, resume=True)


def test_existing_checkpoints(recipe, tmp_path):
    path, run = recipe({"optim.steps": 2}), tmp_path / "run"
    train(path, resume=True)  # nothing to resume: a new run
    before = state(run / "checkpoint-2")
    with pytest.raises(FileExistsError, match=r"run already holds checkpoints: .*--resume.*--overwrite"):
        train(path)
    with pytest.raises(ValueError, match="exclude each other"):
        train(path, resume=True, overwrite=True)
    # A recipe that cannot run costs no checkpoint.
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        train(recipe({"data.paths": ["absent.npz"]}), overwrite=True)
    assert all(torch.equal(a, b) for a, b in zip(before, state(run / "checkpoint-2")))
    train(recipe({"optim.steps": 1, "seed": 1}), overwrite=True)
    assert checkpoints(run) == ["checkpoint-1"] and len(list((run / "logs").iterdir())) == 1


def test_only_the_same_recipe_is_resumed(recipe, tmp_path):
    train(recipe({"optim.steps": 2}))
    with pytest.raises(ValueError, match=r"seed was 0, is 3; .*denoiser\.config\.width was 32, is 64") as caught:
        train(recipe({"denoiser.config.width": 64, "seed": 3}), resume=True)
    assert "optim.steps" not in str(caught.value)
    train(recipe({"optim.steps": 4, "checkpoint_every": 1, "evaluate_every": 3, "keep_checkpoints": 1}), resume=True)
    with pytest.raises(ValueError, match=r"optim\.steps: 3, but .*checkpoint-4 has gone through 4 steps"):
        train(recipe({"optim.steps": 3}), resume=True)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"optim.batch_size": 4}, "optim.batch_size"),
        ({"optim.betas": [0.9, 0.99]}, "optim.betas"),
        ({"data.detector": None}, "data.detector"),
        ({"data.detector": {"swap_probability": 0.5}}, "data.detector.swap_probability"),
        ({"data.paths": ["elsewhere/other.npz"]}, "data.paths"),
        ({"data.source_weights": {"a": 1.0}}, "data.source_weights"),
        ({"scheduler": {"name": "D3DPScheduler", "config": {"scale": 2.0}}}, "scheduler.config.scale"),
        ({"output_dir": "b", "optim.steps": 9, "data.num_workers": 3, "log_every": 1, "initialise_from": "x"}, None),
        ({"data.body": {"probability": 0.5}, "data.paths": ["moved/mocap.npz"]}, None),  # the default, spelt out; archives may move
    ],
)
def test_what_counts_as_another_recipe(recipe, changes, differs):
    earlier, now = TrainingConfig.load(recipe()), TrainingConfig.load(recipe(changes))
    if differs is None:
        now.check_continues(earlier)
    else:
        with pytest.raises(ValueError, match=rf"another recipe: {differs}"):
            now.check_continues(earlier)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.steps": ...}, "optim.steps: Field required"),
        ({"optim.batch_size": 0}, "optim.batch_size: .*greater than 0"),
        ({"optim.learning_rate": "fast"}, "optim.learning_rate: "),
        ({"optim.learning_rate": float("inf")}, "optim.learning_rate: "),
        ({"optim.momentum": 0.9}, "optim.momentum: unknown field; allowed are steps, batch_size"),
        ({"colour": "red"}, "colour: unknown field; allowed are output_dir"),
        ({"seed": -1}, "seed: "),
        ({"data.paths": []}, "data.paths: "),
        ({"mixed_precision": "int8"}, "mixed_precision: .*'bf16'"),
        ({"data.body": {"wobble": 1}}, "data.body: BodyVariation has no wobble; allowed are probability, size, bones"),
        ({"data.camera": {"distance": [9, 2]}}, r"data.camera: CameraVariation\.distance must be a range"),
        ({"data.detector": {"swap_probability": 2}}, r"data.detector: DetectorNoise\.swap_probability must lie in 0\.\.1, got 2"),
    ],
)
def test_recipe_errors_name_the_field(recipe, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        TrainingConfig.load(recipe(changes))
    assert "recipe.yaml" in str(caught.value)


def test_all_problems_of_a_recipe_are_told_at_once(recipe):
    with pytest.raises(ValueError, match=r"optim\.steps: .*; log_every: "):
        TrainingConfig.load(recipe({"optim.steps": -1, "log_every": 0}))


@pytest.mark.parametrize("content", ["steps: [1", "just words", "", b"\xff\xfe\x00"])
def test_files_that_are_no_recipe(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        TrainingConfig.load(path)
    with pytest.raises(FileNotFoundError, match="no training recipe at"):
        TrainingConfig.load(tmp_path / "absent.yaml")


MIXSTE = {"name": "MixSTEModel", "config": {"num_frames": 16, "width": 16, "depth": 1, "canonical_camera": [2.29, 2.29, 0.0, 0.0]}}


def mixste(**config):
    return {**MIXSTE, "config": {**MIXSTE["config"], **config}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser.name": "Frame"}, r"denoiser\.name: .*no 'Frame'; .*known: FrameTransformerModel, GraFormerDenoiser, MixSTEModel, Mot"),
        ({"denoiser.name": "ModelMixin"}, r"denoiser\.name: "),
        ({"denoiser": {"name": "MotionPriorModel"}}, r"denoiser\.name: MotionPriorModel sees no keypoints: .* `prior`"),
        ({"scheduler": {"name": "DDIM"}}, r"scheduler\.name: .*no 'DDIM'; .*known: D3DPScheduler"),
        ({"denoiser.config.widht": 64}, r"denoiser\.config: FrameTransformerModel has no widht; allowed are num_frames, .*width"),
        ({"denoiser.config.width": "wide"}, r"denoiser\.config: FrameTransformerModel: "),
        ({"data.num_frames": 17}, r"data\.num_frames: 17 frames are more than this FrameTransformerModel's window of 16"),
        ({"data.source_weights": {"c": 1.0}}, r"source_weights names \['c'\]"),
        ({"data.validation_share": 0.999}, r"data\.validation_share: 0\.999 leaves none of the 3 clips"),
        ({"denoiser.config.fps": 50}, r"denoiser\.config\.fps: 50, but the clips of data\.paths have 30 frames"),
        ({"denoiser.config.skeleton": "coco_17"}, r"denoiser\.config: training windows hold the 17 joints of h36m_17"),
        ({"denoiser": mixste()}, r"optim\.short_window_share: this MixSTEModel takes windows of 16 frames only"),
        ({"denoiser": mixste(), "optim.short_window_share": 0.0, "data.num_frames": 8}, r"data\.num_frames, .* of 16 frames only"),
        ({"denoiser": mixste(canonical_camera=None)}, r"denoiser\.config\.canonical_camera: "),
        ({"denoiser": mixste(in_channels=2, use_timestep=False)}, "a lifter has no noise to remove"),
    ],
)
def test_recipes_that_fit_no_model_or_data(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(TrainingConfig.load(recipe(changes)))
    assert not (tmp_path / "run").exists()


def test_other_denoisers_and_no_validation(recipe, tmp_path):
    changes = {"denoiser": mixste(), "optim.short_window_share": 0.0, "data.validation_share": 0.0, "optim.steps": 2}
    folder = train(recipe({**changes, "optim.velocity_weight": 0.5, "optim.first_step_share": 0.5}))
    assert json.loads((folder / "model_index.json").read_text())["denoiser"] == ["probpose.models", "MixSTEModel"]
    assert not any(tag.startswith("validation") for tag in scalars(tmp_path / "run"))


def test_initialise_from(recipe, tmp_path):
    source = train(recipe({"optim.steps": 2}))
    changes = {"output_dir": str(tmp_path / "second"), "initialise_from": str(source), "seed": 9, "optim.steps": 1}
    trainer = Trainer(TrainingConfig.load(recipe(changes)))
    weights = ProbPosePipeline.from_pretrained(source).denoiser.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in trainer.denoiser.state_dict().items())
    trainer.train()
    shutil.rmtree(source.parent)  # what a run began with is not needed to go on with it
    train(recipe({**changes, "optim.steps": 2}), resume=True)
    with pytest.raises(FileNotFoundError):
        train(recipe({**changes, "output_dir": str(tmp_path / "third")}))
    with pytest.raises(ValueError, match=r"initialise_from: .*width is 32 there, 64 in the recipe"):
        kept = str(tmp_path / "second" / "checkpoint-2" / "pipeline")
        Trainer(TrainingConfig.load(recipe({"output_dir": "x", "denoiser.config.width": 64, "initialise_from": kept})))


def test_the_recipe_says_how_pipelines_are_saved(recipe, tmp_path):
    changes = {"optim.steps": 1, "pipeline.dtype": "float16", "pipeline.arguments": {"default_num_hypotheses": 7}}
    pipe = ProbPosePipeline.from_pretrained(train(recipe(changes)))
    assert pipe.config.default_num_hypotheses == 7 and pipe.denoiser.dtype == torch.float32
    sizes = [next((tmp_path / "run").glob("*/pipeline/denoiser/*.safetensors")).stat().st_size]
    train(recipe({**changes, "pipeline.dtype": "float32"}), overwrite=True)
    sizes.append(next((tmp_path / "run").glob("*/pipeline/denoiser/*.safetensors")).stat().st_size)
    assert sizes[0] < 0.6 * sizes[1]
    with pytest.raises(ValueError, match=r"pipeline\.arguments"):
        train(recipe({"pipeline.arguments": {"default_hypotheses": 7}}), overwrite=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_examples_are_valid(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_recipe(path)
    if not all(Path(archive).exists() for archive in config.data.paths):
        config.data.paths, config.data.source_weights = ["examples/data/tiny_mocap.npz"], None
    config.output_dir, config.mixed_precision = str(tmp_path / "run"), "no"
    if isinstance(config, DiffPoseConfig) and not Path(config.lifter).exists():
        # An untrained one, by the recipe that its run is named after.
        lifter = load_recipe(ROOT / "examples" / "train" / f"{Path(config.lifter).parts[1]}.yaml")
        assert Path(config.lifter) == Path(lifter.output_dir, f"checkpoint-{lifter.optim.steps}", "pipeline")
        build_component(probpose.models, lifter.lifter, "lifter").save_pretrained(tmp_path / "lifter")
        config.lifter = str(tmp_path / "lifter")
    kinds = {
        TrainingConfig: Trainer,
        LifterConfig: LifterTrainer,
        DiffPoseConfig: DiffPoseTrainer,
        PriorConfig: PriorTrainer,
        AggregatorConfig: AggregatorTrainer,
    }
    trainer = kinds[type(config)](config)
    pipe = getattr(trainer, "pipe", trainer)
    windowed = getattr(pipe, "lifter", None) or getattr(pipe, "denoiser", None) or trainer.network
    frames = config.data.num_frames or windowed.config.num_frames
    assert trainer.training_windows[0]["pose"].shape == (frames, 17, 3)
    assert trainer.validation_windows is not None or path.stem != "tiny"


def test_a_missing_extra_is_one_message(monkeypatch):
    import probpose.training

    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"^training needs accelerate, yaml: pip install probpose\[train\]$"):
        importlib.reload(probpose.training)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "calibrate").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_data_sections_of_the_examples_are_valid(path, recipe, tmp_path):
    assert load_data_section(path).validation_share > 0
    assert load_data_section(recipe()).validation_share == 0.5  # a whole recipe has one, too
    (tmp_path / "wrong.yaml").write_text("data: {paths: [x.npz], bodies: 3}")
    with pytest.raises(ValueError, match=r"data\.bodies: unknown field; allowed are paths"):
        load_data_section(tmp_path / "wrong.yaml")
    (tmp_path / "none.yaml").write_text("seed: 3")
    with pytest.raises(ValueError, match="data: Field required"):
        load_data_section(tmp_path / "none.yaml")
