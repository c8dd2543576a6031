"""Training DiffPose's denoiser on a frozen lifter: it learns, sees what a call will show it, and refuses what does not fit."""

import json

import pytest
import torch
import yaml
from accelerate import Accelerator
from test_lifter_training import CAMERA, FRAME, GRAFORMER, MIXSTE, MOCAP, but
from test_training import assert_same_state, checkpoints, scalars
from training_runs import interrupt_at, write_recipe

import probpose.models
from probpose import ProbPosePipeline
from probpose.models import FrameTransformerModel, GraFormerLifter
from probpose.pipelines import D3DPPipeline, DiffPosePipeline
from probpose.schedulers import D3DPScheduler, GMMScheduler
from probpose.training import (
    AggregatorConfig,
    DiffPoseConfig,
    DiffPoseTrainer,
    LifterConfig,
    Trainer,
    TrainingConfig,
    load_recipe,
    train,
)
from probpose.training.windows import observed_only

DENOISER = {"name": "GraFormerDenoiser", "config": {"width": 16, "depth": 1, "num_attention_heads": 2, "canonical_camera": CAMERA}}
CONTEXT = {"graformer": ("joint", 16), "mixste": ("joint", 16), "frame": ("frame", 32)}
# The paper's chain, from a draw from the mixture to the pose.
CHAIN = {
    "beta_end": 0.2, "anchor": "component", "prediction_type": "sample", "timestep_spacing": "trailing", "start_timestep": 50,
    "pose_scale": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def lifters(tmp_path_factory):
    """Folders of untrained lifters."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("lifters")
    for name, lifter in (("graformer", GRAFORMER), ("mixste", MIXSTE), ("frame", FRAME)):
        getattr(probpose.models, lifter["name"])(**lifter["config"]).save_pretrained(root / name)
    return root


@pytest.fixture
def recipe(tmp_path, lifters):
    """`recipe({"optim.steps": 3}, "mixste")` writes a small recipe on one of the lifters, whose features are the context."""

    def write(changes=None, lifter="frame"):
        level, channels = CONTEXT[lifter]
        content = {
            "output_dir": str(tmp_path / "run"),
            "lifter": str(lifters / lifter),
            "denoiser": but(DENOISER, context_channels=channels, context_level=level),
            "scheduler": {"name": "GMMScheduler", "config": CHAIN},
            "data": {"paths": [str(MOCAP)], "validation_share": 0.1, "num_workers": 0, "num_frames": 8},
            "optim": {"steps": 4, "batch_size": 4, "warmup_steps": 2, "ema_decay": 0.9, "num_frames": 3},
            "checkpoint_every": 2,
            "evaluation_windows": 3,
        }
        return write_recipe(tmp_path / "recipe.yaml", content, changes)

    return write


def trainer_of(path):
    return DiffPoseTrainer(DiffPoseConfig.load(path))


def batch_of(trainer, count=4):
    return observed_only(trainer.training_windows.render(range(count)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# A run


def test_a_run_learns_and_leaves_a_pipeline(recipe, tmp_path, lifters):
    easy = {"data.body": None, "data.detector": None, "optim.steps": 60, "optim.batch_size": 16, "optim.learning_rate": 0.005}
    calls = {"pipeline.arguments": {"default_num_hypotheses": 3, "default_flip": "alternate"}}
    folder = train(recipe({**easy, **calls, "log_every": 5, "checkpoint_every": 30, "evaluate_every": 30}))
    assert folder == tmp_path / "run" / "checkpoint-60" / "pipeline"
    logged = scalars(tmp_path / "run")
    assert logged["train/loss_mm"][60] < 0.6 * logged["train/loss_mm"][5]
    assert all(list(logged[f"validation/{name}"]) == [30, 60] for name in ("lifter_mm", "p_agg_mm", "j_best_mm"))
    assert logged["validation/j_best_mm"][60] < logged["validation/p_agg_mm"][60] < logged["validation/lifter_mm"][60]

    pipe = ProbPosePipeline.from_pretrained(folder)
    assert isinstance(pipe, DiffPosePipeline) and pipe.scheduler.config.beta_end == 0.2
    ema = torch.load(folder.parent / "state.pt", weights_only=True)["ema"]["shadow_params"]
    assert all(torch.equal(a, b) for a, b in zip(pipe.denoiser.parameters(), ema, strict=True))
    frozen = FrameTransformerModel.from_pretrained(lifters / "frame").state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in pipe.lifter.state_dict().items())
    assert "_name_or_path" not in json.loads((folder / "lifter" / "config.json").read_text())
    out = pipe(500 + 100 * torch.randn(20, 17, 2), image_size=(1000, 1000), generator=seeded())
    assert out.hypotheses.shape == (3, 20, 17, 3) and torch.isfinite(out.hypotheses).all()


@pytest.mark.parametrize("lifter", list(CONTEXT))
@pytest.mark.parametrize("with_context", [True, False], ids=["context", "no context"])
def test_on_every_lifter(recipe, lifter, with_context):
    changes = {} if with_context else {"denoiser": DENOISER}
    pipe = ProbPosePipeline.from_pretrained(train(recipe({"optim.steps": 2, **changes}, lifter)))
    assert (pipe.denoiser.config.context_channels is not None) == with_context
    if with_context:
        assert pipe.denoiser.context_projection.weight.abs().max() > 0  # zero before training


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": {"name": "GMMScheduler"}, "optim.loss": "squared_error", "denoiser": DENOISER},  # published
        {"scheduler": {"name": "GMMScheduler"}, "optim.loss": "distance", "optim.uv_weight": 1.0},
        {"scheduler.config": {**CHAIN, "prediction_type": "previous_sample"}, "optim.loss": "squared_error"},
        {"scheduler.config": {**CHAIN, "pose_scale": [0.001] + [0.05] * 16}, "optim.start_share": 0.5},
        {"scheduler": ...},  # the default, as published
    ],
)
def test_other_objectives(recipe, tmp_path, changes):
    train(recipe(changes, "graformer"))
    errors = scalars(tmp_path / "run")
    for tag in ("train/loss_mm", "validation/p_agg_mm"):
        assert errors[tag].keys() == {4} and 0 < errors[tag][4] < torch.inf


def test_an_interrupted_run_continues_as_if_nothing_had_happened(recipe, tmp_path, monkeypatch):
    # The denoiser's dropout and a worker process: no randomness and no batch may depend on where the run was cut.
    changes = {"optim.steps": 6, "checkpoint_every": 3, "optim.start_share": 0.3, "data.num_workers": 1}
    straight = train(recipe({**changes, "output_dir": str(tmp_path / "straight")})).parent
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train(recipe(changes))
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert_same_state(straight, train(recipe(changes), resume=True).parent)
    with pytest.raises(ValueError, match=r"another recipe: optim\.num_frames was 3, is 4"):
        train(recipe({**changes, "optim.num_frames": 4}), resume=True)


@pytest.mark.parametrize("lifter", ["graformer", "frame"])
@torch.no_grad()
def test_several_processes_share_a_step(recipe, monkeypatch, lifter):
    trainer = trainer_of(recipe({"optim.start_share": 0.3}, lifter))
    trainer.network.eval()  # dropout is the one thing that every process draws for itself
    batch = batch_of(trainer)
    alone = trainer.loss(batch, seeded())
    shares = []
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    for process in range(2):
        monkeypatch.setattr(Accelerator, "process_index", process)
        shares.append(trainer.loss({name: value.chunk(2)[process] for name, value in batch.items()}, seeded()))
    for whole, one, other in zip(alone, *shares):
        assert float(one + other) / 2 == pytest.approx(float(whole), rel=1e-5)


def test_initialise_from(recipe, tmp_path, lifters):
    source = train(recipe({"optim.steps": 2}))
    trainer = trainer_of(recipe({"initialise_from": str(source), "lifter": str(source), "output_dir": "elsewhere", "seed": 5}))
    given = ProbPosePipeline.from_pretrained(source)
    assert all(torch.equal(value, given.denoiser.state_dict()[name]) for name, value in trainer.network.state_dict().items())
    assert all(torch.equal(value, given.lifter.state_dict()[name]) for name, value in trainer.lifter.state_dict().items())
    with pytest.raises(ValueError, match=r"initialise_from: .*width is 16 there, 32 in the recipe"):
        trainer_of(recipe({"initialise_from": str(source), "denoiser.config.width": 32, "output_dir": "elsewhere"}))


def test_the_lifter_may_be_a_denoiser_of_d3dp(recipe, tmp_path):
    torch.manual_seed(0)
    denoiser = FrameTransformerModel(num_frames=8, width=32, depth=1, num_attention_heads=2, fps=30)
    D3DPPipeline(denoiser, D3DPScheduler()).save_pretrained(tmp_path / "d3dp")
    pipe = ProbPosePipeline.from_pretrained(train(recipe({"lifter": str(tmp_path / "d3dp"), "pipeline.dtype": "float16"})))
    assert pipe.lifter.config.in_channels == 2 and pipe.lifter.dtype == torch.float32


# A step


@pytest.mark.parametrize("lifter", list(CONTEXT))
@pytest.mark.parametrize("kept", [[6, 1, 3], [5, 0, 7, 2, 1, 6, 3, 4]], ids=["some frames", "all frames, in another order"])
def test_a_step_shows_the_denoiser_what_a_call_does(recipe, lifter, kept):
    trainer = trainer_of(recipe({}, lifter))
    batch, kept = batch_of(trainer, 2), torch.tensor(kept)
    keypoints, confidence = batch["keypoints_2d"], batch["confidence"]
    noise = torch.randn(2, 1, 17, 5, generator=seeded())
    mean, factor, context = trainer._observe(batch, noise, kept)

    # By hand, with the lifter as the pipeline runs it.
    deviation = 0.002 + 0.04 * (1 - confidence)[..., None]
    pipe = trainer._pipeline(trainer.network)
    pose = pipe.lift(keypoints + deviation * noise[..., :2], confidence)[0]
    expected = torch.cat([keypoints, pose], dim=-1)
    torch.testing.assert_close(mean, expected[:, kept].flatten(0, 1), atol=1e-5, rtol=1e-4)
    expected = deviation[:, kept].flatten(0, 1)[..., None] * torch.eye(2)
    torch.testing.assert_close(factor, expected)
    features = pipe.lift(keypoints, confidence, output_features=True)[1]
    torch.testing.assert_close(context, features[:, kept].flatten(0, 1)[:, None], atol=1e-5, rtol=1e-4)


@pytest.fixture
def noised(monkeypatch):
    """What was handed to `add_noise`."""
    calls, add_noise = [], GMMScheduler.add_noise

    def seen(self, *arguments):
        calls.append(arguments)
        return add_noise(self, *arguments)

    monkeypatch.setattr(GMMScheduler, "add_noise", seen)
    return calls


def test_what_a_step_noises(recipe, noised):
    trainer = trainer_of(recipe({"optim.num_frames": 5, "data.body": None}))
    batch = batch_of(trainer)
    trainer.loss(batch, seeded(3))
    clean, noise, timestep, mean, scale = noised[0]
    assert clean.shape == noise.shape == mean.shape == (20, 17, 5) and scale.shape == (20, 17, 5, 5) and timestep.shape == (20,)
    true = torch.cat([batch["keypoints_true"], batch["pose"]], dim=-1)
    frames = torch.randperm(8, generator=seeded(3))[:5]
    assert torch.equal(clean, true[:, frames].flatten(0, 1))
    assert torch.equal(mean[..., :2], batch["keypoints_2d"][:, frames].flatten(0, 1))
    held = noise.unflatten(0, (4, 5))
    assert torch.equal(held, held[:, :1].expand_as(held)) and not torch.equal(held[0], held[1])
    assert torch.equal(timestep[:9] + timestep[11:], torch.full((9,), 50))  # antithetic pairs
    torch.testing.assert_close(scale[..., 2:, 2:], 0.05 * torch.eye(3).expand(20, 17, 3, 3))


@pytest.mark.parametrize(("share", "all_at_start"), [(1.0, True), (0.0, False)])
def test_a_share_of_the_examples_begins_where_sampling_does(recipe, noised, share, all_at_start):
    trainer = trainer_of(recipe({"optim.start_share": share}))
    trainer.loss(batch_of(trainer), seeded())
    assert bool((noised[0][2] == 50).all()) == all_at_start


@pytest.mark.parametrize("loss", ["distance", "squared_error"])
def test_the_loss_by_hand(recipe, noised, monkeypatch, loss):
    trainer = trainer_of(recipe({"optim.loss": loss, "optim.uv_weight": 0.3}))
    trainer.network.eval()
    batch = batch_of(trainer)
    value, error = trainer.loss(batch, seeded())
    clean, noise, timestep, mean, scale = noised[0]
    noisy = trainer.scheduler.add_noise(clean, noise, timestep, mean, scale)
    kept = torch.randperm(8, generator=seeded())[:3]
    features = trainer.lifter(batch["keypoints_2d"], confidence=batch["confidence"], output_features=True).features
    predicted = trainer.network(None, noisy[:, None], timestep, context=features[:, kept].flatten(0, 1)[:, None]).sample[:, 0]
    off = predicted - clean
    distances = off[..., 2:].norm(dim=-1).mean() + 0.3 * off[..., :2].norm(dim=-1).mean()
    expected = distances if loss == "distance" else off.square().sum() / len(off)
    torch.testing.assert_close(value, expected)
    pose = predicted[..., 2:] - predicted[:, :1, 2:]
    assert error == pytest.approx((pose - clean[..., 2:]).norm(dim=-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("lifter", list(CONTEXT))
def test_the_gradient_reaches_the_context_but_not_the_lifter(recipe, lifter):
    trainer = trainer_of(recipe({}, lifter))
    trainer.loss(batch_of(trainer), seeded())[0].backward()
    assert trainer.network.context_projection.weight.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in trainer.lifter.parameters())
    assert not trainer.lifter.training


@pytest.mark.parametrize("lifter", list(CONTEXT))
def test_what_a_detector_did_not_see_changes_nothing(recipe, lifter):
    trainer = trainer_of(recipe({}, lifter))
    trainer.network.eval()
    batch = trainer.training_windows.render(range(4))
    hidden = batch["confidence"] == 0
    assert hidden.any()
    other = {**batch, "keypoints_2d": torch.where(hidden[..., None], 7 * torch.randn(4, 8, 17, 2), batch["keypoints_2d"])}
    one, two = (trainer.loss(observed_only(windows), seeded())[0].item() for windows in (batch, other))
    assert one == two


def test_the_validation_error_of_the_lifter_is_its_own(recipe):
    trainer = trainer_of(recipe({}, "graformer"))
    errors = trainer.evaluate()
    batch = observed_only(trainer.validation_windows.render(range(3)))
    lifted = trainer.lifter(batch["keypoints_2d"]).sample
    expected = (lifted - lifted[..., :1, :] - batch["pose"]).norm(dim=-1).mean().item()
    assert errors["lifter_mm"] == pytest.approx(1000 * expected, rel=1e-4) and errors["j_best_mm"] <= errors["p_agg_mm"]


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.loss": "cosine"}, r"optim\.loss: .*'distance' or 'squared_error'"),
        ({"optim.start_share": 2}, r"optim\.start_share: "),
        ({"optim.velocity_weight": 0.5}, r"optim\.velocity_weight: unknown field; allowed are steps, .*uv_weight"),
        ({"optim.num_frames": 0}, r"optim\.num_frames: "),
        ({"lifter": None}, "lifter: Input should be a valid string"),
        ({"colour": "red"}, "colour: unknown field; allowed are output_dir"),
    ],
)
def test_recipe_errors_name_the_field(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(changes))


FITS_NOT = r"lifter, denoiser: the lifter's features are 32 per frame, but the denoiser takes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser.config.context_channels": 16}, FITS_NOT),
        ({"denoiser.config.context_level": "joint"}, FITS_NOT),
        ({"denoiser.config.context_level": "limb"}, r"denoiser\.config: GraFormerDenoiser: context_level must be one of"),
        ({"denoiser.config.canonical_camera": [1.0, 1.0, 0.0, 0.0]}, "do not fit each other: canonical_camera is"),
        ({"denoiser.config.fps": 25}, r"denoiser\.config\.fps: 25, but the lifter is one of 30 frames per second"),
        ({"denoiser": {"name": "MixSTEModel"}}, r"denoiser\.name: .*no 'MixSTEModel'; .*known: GraFormerDenoiser$"),
        ({"scheduler": {"name": "D3DPScheduler"}}, r"scheduler\.name: D3DPScheduler knows no mixtures; DiffPose needs GMMScheduler"),
        ({"scheduler.config.anchor": "middle"}, r"scheduler\.config: GMMScheduler: anchor must be one of"),
        ({"pipeline.arguments": {"default_start": "here"}}, r"pipeline\.arguments, .*start must be one of"),
        ({"pipeline.arguments": {"hypotheses": 3}}, r"pipeline\.arguments, .*unexpected keyword argument 'hypotheses'"),
        ({"data.num_frames": 9}, r"data\.num_frames: 9 frames are more than this FrameTransformerModel's window of 8"),
        ({"attention_backend": "quick"}, r"attention_backend: the attention backend must be one of .*_native_math.*, got 'quick'"),
    ],
)
def test_recipes_that_fit_no_network_or_data(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(recipe(changes))
    assert not (tmp_path / "run").exists()


def test_windows_are_the_lifters(recipe):
    assert trainer_of(recipe({"data.num_frames": ...})).training_windows.num_frames == 8
    assert trainer_of(recipe({"data.num_frames": 5})).training_windows.num_frames == 5  # this lifter takes any length
    assert trainer_of(recipe({"data.num_frames": ...}, "graformer")).training_windows.num_frames == 1
    with pytest.raises(ValueError, match="this MixSTEModel takes windows of 8 frames only"):
        trainer_of(recipe({"data.num_frames": 5}, "mixste"))


def test_lifters_that_are_none(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no lifter at .*absent"):
        trainer_of(recipe({"lifter": str(tmp_path / "absent")}))
    FrameTransformerModel(num_frames=8, width=32, depth=1, num_attention_heads=2).save_pretrained(tmp_path / "denoiser")
    with pytest.raises(ValueError, match="denoiser holds a FrameTransformerModel denoiser, which is no lifter"):
        trainer_of(recipe({"lifter": str(tmp_path / "denoiser")}))
    GraFormerLifter(width=16, depth=1, num_attention_heads=2).save_pretrained(tmp_path / "published")
    with pytest.raises(ValueError, match=r"canonical_camera is None in the lifter and \[2\.29, 2\.29, 0\.0, 0\.0\] in the denoiser"):
        trainer_of(recipe({"lifter": str(tmp_path / "published")}))


def test_the_denoiser_needs_a_lifter(recipe):
    path = recipe({"lifter": ..., "optim.num_frames": ..., "scheduler": ...})
    with pytest.raises(ValueError, match=r"denoiser\.name: GraFormerDenoiser refines a lifter's pose: name the trained one as `lifter`"):
        Trainer(load_recipe(path))


def test_what_is_trained_tells_the_kind_of_recipe(recipe, tmp_path):
    assert type(load_recipe(recipe())) is DiffPoseConfig
    contents = {
        LifterConfig: {"lifter": GRAFORMER},
        TrainingConfig: {"denoiser": FRAME},
        AggregatorConfig: {"pipeline": "folder"},
    }
    for kind, content in contents.items():
        path = tmp_path / "other.yaml"
        path.write_text(yaml.safe_dump({"output_dir": "x", "data": {"paths": ["a.npz"]}, "optim": {"steps": 1}, **content}))
        assert type(load_recipe(path)) is kind
