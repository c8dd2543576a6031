"""Training a lifter: every kind learns and can be loaded, a run survives an interruption, and a wrong recipe is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_training import assert_same_state, checkpoints, scalars
from training_runs import interrupt_at, write_recipe

from probpose.data import MocapClips
from probpose.data.augmentation import CameraVariation, DetectorNoise
from probpose.data.dataset import TrainingWindows
from probpose.models import FrameTransformerModel, GraFormerDenoiser, GraFormerLifter, MixSTEModel
from probpose.pipelines import D3DPPipeline, DiffPosePipeline
from probpose.schedulers import D3DPScheduler, GMMScheduler
from probpose.training import LifterConfig, LifterTrainer, load_recipe, train
from probpose.training.lifter import load_lifter
from probpose.training.windows import observed_only

MOCAP = Path(__file__).resolve().parents[2] / "examples" / "data" / "tiny_mocap.npz"
CAMERA = [2.29, 2.29, 0.0, 0.0]
FRAME = {
    "name": "FrameTransformerModel",
    "config": {"num_frames": 8, "in_channels": 2, "width": 32, "depth": 1, "num_attention_heads": 2, "fps": 30},
}
MIXSTE = {
    "name": "MixSTEModel",
    "config": {
        "num_frames": 8, "in_channels": 2, "use_timestep": False, "width": 16, "depth": 1, "num_attention_heads": 2,
        "canonical_camera": CAMERA,
    },
}  # fmt: skip
GRAFORMER = {"name": "GraFormerLifter", "config": {"width": 16, "depth": 1, "num_attention_heads": 2, "canonical_camera": CAMERA}}
every_lifter = pytest.mark.parametrize("lifter", [GRAFORMER, MIXSTE, FRAME], ids=lambda lifter: lifter["name"])


def but(component, **config):
    """The component with other arguments."""
    return {**component, "config": {**component["config"], **config}}


@pytest.fixture
def recipe(tmp_path):
    """`recipe({"optim.steps": 3})` writes a small recipe with these changes."""

    def write(changes=None):
        content = {
            "output_dir": str(tmp_path / "run"),
            "lifter": FRAME,
            "data": {"paths": [str(MOCAP)], "validation_share": 0.1, "num_workers": 0},
            "optim": {"steps": 4, "batch_size": 4, "warmup_steps": 2, "ema_decay": 0.9},
            "checkpoint_every": 2,
            "evaluation_windows": 3,
        }
        return write_recipe(tmp_path / "recipe.yaml", content, changes)

    return write


def trainer_of(path):
    return LifterTrainer(LifterConfig.load(path))


# A run


def test_a_lifter_learns_and_can_be_loaded(recipe, tmp_path):
    easy = {"data.body": None, "data.detector": None, "optim.steps": 60, "optim.batch_size": 16, "optim.learning_rate": 0.005}
    folder = train(recipe({**easy, "log_every": 5, "checkpoint_every": 30, "evaluate_every": 30}))
    assert folder == tmp_path / "run" / "checkpoint-60" / "pipeline"
    logged = scalars(tmp_path / "run")
    assert logged["train/loss_mm"][60] < 0.6 * logged["train/loss_mm"][5]
    assert list(logged["validation/mpjpe_mm"]) == [30, 60]

    lifter = load_lifter(folder)
    assert isinstance(lifter, FrameTransformerModel) and not lifter.training
    ema = torch.load(folder.parent / "state.pt", weights_only=True)["ema"]["shadow_params"]
    assert all(torch.equal(a, b) for a, b in zip(lifter.parameters(), ema, strict=True))


def test_the_validation_error_is_that_of_root_relative_poses(recipe, monkeypatch):
    trainer = trainer_of(recipe())
    windows = trainer.validation_windows
    true = windows.render(range(3))["pose"]
    wrong = torch.tensor([0.03, 0.04, 0.0]) * (torch.arange(17) > 0)[:, None]

    class Oracle:
        def __call__(self, keypoints, confidence):
            return type("Output", (), {"sample": true + wrong + 5.0})  # wherever the root is

    trainer.network = Oracle()
    assert trainer.validate()["mpjpe_mm"] == pytest.approx(50 * 16 / 17, rel=1e-4)


@every_lifter
def test_every_lifter_trains(recipe, lifter):
    changes = {"lifter": lifter, "optim.velocity_weight": 0.5, "data.num_frames": 8}
    loaded = load_lifter(train(recipe(changes)))
    assert type(loaded).__name__ == lifter["name"]
    before = trainer_of(recipe({**changes, "output_dir": "elsewhere"})).network.state_dict()
    changed = [name for name, value in loaded.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) > 0.9 * len(before)
    out = loaded(torch.randn(1, 8, 17, 2), confidence=torch.ones(1, 8, 17), output_features=True)
    assert out.sample.shape == (1, 8, 17, 3) and out.features.shape[-1] == loaded.context_shape[1]


def test_a_lifter_of_single_frames_takes_windows_of_any_length(recipe):
    for changes, frames in (({}, 1), ({"data.num_frames": 5}, 5)):
        trainer = trainer_of(recipe({"lifter": GRAFORMER, "optim.short_window_share": 0.5, **changes}))
        assert trainer.training_windows[0]["pose"].shape == (frames, 17, 3)


@pytest.mark.parametrize("lifter", [but(GRAFORMER, depth=2), but(FRAME, depth=2, drop_path=0.3)], ids=lambda lifter: lifter["name"])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(recipe, tmp_path, monkeypatch, lifter):
    changes = {"lifter": lifter, "optim.short_window_share": 0.5, "optim.steps": 6, "checkpoint_every": 3, "data.num_frames": 4}
    straight = train(recipe({**changes, "output_dir": str(tmp_path / "straight")})).parent
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train(recipe(changes))
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert_same_state(straight, train(recipe(changes), resume=True).parent)
    with pytest.raises(ValueError, match=r"another recipe: .*lifter\.config\.width was \d+, is 64"):
        train(recipe({**changes, "lifter": but(lifter, width=64)}), resume=True)


def test_the_precision_of_the_saved_lifter(recipe):
    sizes = []
    for dtype in ("float32", "float16"):
        folder = train(recipe({"optim.steps": 1, "dtype": dtype}), overwrite=True)
        sizes.append((folder / "diffusion_pytorch_model.safetensors").stat().st_size)
        assert load_lifter(folder).dtype == torch.float32
    assert sizes[1] < 0.6 * sizes[0]


def test_an_attention_backend_changes_nothing_but_the_speed(recipe, tmp_path):
    folders = [train(recipe({"attention_backend": name, "output_dir": str(tmp_path / name)})) for name in ("native", "_native_math")]
    one, other = (load_lifter(folder).state_dict() for folder in folders)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3)


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser": FRAME}, "denoiser: unknown field; allowed are output_dir, .*lifter"),
        ({"optim.first_step_share": 0.5}, r"optim\.first_step_share: unknown field; allowed are steps"),
        ({"optim.velocity_weight": -1}, r"optim\.velocity_weight: "),
        ({"dtype": "int8"}, "dtype: .*'float16'"),
        ({"lifter": {"config": {}}}, r"lifter\.name: Field required"),
    ],
)
def test_recipe_errors_name_the_field(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lifter": {"name": "GraFormerDenoiser"}},
            r"lifter\.name: .*no 'GraFormerDenoiser'; .*known: FrameTransformerModel, GraFormerLifter, MixSTEModel$",
        ),
        ({"lifter": but(FRAME, in_channels=5)}, r"lifter\.config\.in_channels: a lifter takes 2D positions alone, 2, got 5"),
        ({"lifter": but(MIXSTE, use_timestep=True)}, r"lifter\.config: MixSTEModel: .*use_timestep must be False"),
        ({"lifter": but(GRAFORMER, widht=3)}, r"lifter\.config: GraFormerLifter has no widht; allowed are num_joints"),
        ({"lifter": but(GRAFORMER, canonical_camera=None)}, r"lifter\.config\.canonical_camera: "),
        ({"lifter": but(FRAME, fps=50)}, r"lifter\.config\.fps: 50, but the clips"),
        ({"lifter": but(GRAFORMER, skeleton="coco_17")}, r"lifter\.config: training windows hold the 17 joints of h36m_17"),
        ({"data.num_frames": 9}, r"data\.num_frames: 9 frames are more than this FrameTransformerModel's window of 8"),
        (
            {"lifter": MIXSTE, "optim.short_window_share": 0.5},
            "short_window_share: this MixSTEModel takes windows of 8 frames only",
        ),
        ({"attention_backend": "quick"}, "attention_backend: the attention backend must be one of .*_native_math.*, got 'quick'"),
        ({"attention_backend": "xformers"}, "attention_backend: the attention backend 'xformers' cannot run here"),
    ],
)
def test_recipes_that_fit_no_network_or_data(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(recipe(changes))
    assert not (tmp_path / "run").exists()


# Lifters from elsewhere


@pytest.fixture
def denoising(tmp_path):
    """A D3DP pipeline's folder."""
    torch.manual_seed(0)
    denoiser = FrameTransformerModel(num_frames=8, width=32, depth=1, num_attention_heads=2, fps=30)
    D3DPPipeline(denoiser.eval(), D3DPScheduler(num_train_timesteps=40)).save_pretrained(tmp_path / "d3dp")
    return tmp_path / "d3dp", denoiser


def test_the_lifter_of_a_denoiser_answers_as_it_does_at_its_noisiest(denoising):
    folder, denoiser = denoising
    lifter = load_lifter(folder)
    keypoints, confidence = 0.2 * torch.randn(3, 6, 17, 2), torch.rand(3, 6, 17)
    expected = denoiser(keypoints, torch.zeros(3, 6, 17, 3), 39, confidence=confidence).sample
    torch.testing.assert_close(lifter(keypoints, confidence=confidence).sample, expected, atol=1e-6, rtol=1e-5)


def test_a_lifter_can_start_from_another_ones_weights(recipe, denoising, tmp_path):
    folder, _ = denoising
    trainer = trainer_of(recipe({"initialise_from": str(folder)}))
    given = load_lifter(folder).state_dict()
    assert all(torch.equal(value, given[name]) for name, value in trainer.network.state_dict().items())
    second = {"initialise_from": str(trainer.train()), "output_dir": str(tmp_path / "second")}
    train(recipe({**second, "optim.steps": 2}))
    shutil.rmtree(tmp_path / "run")  # what a run began with is not needed to go on with it
    train(recipe(second), resume=True)
    with pytest.raises(ValueError, match=r"initialise_from: .*width is 32 there, 64 in the recipe"):
        trainer_of(recipe({"lifter": but(FRAME, width=64), "initialise_from": str(folder)}))


def test_the_lifter_of_a_pipeline(tmp_path):
    lifter = GraFormerLifter(**GRAFORMER["config"]).eval()
    denoiser = GraFormerDenoiser(width=16, depth=1, num_attention_heads=2, canonical_camera=CAMERA)
    DiffPosePipeline(denoiser, lifter, GMMScheduler()).save_pretrained(tmp_path)
    loaded = load_lifter(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in lifter.state_dict().items())
    assert "_name_or_path" not in loaded.config and loaded.config.width == 16


def test_folders_without_a_lifter(tmp_path, denoising):
    with pytest.raises(FileNotFoundError, match=r"no lifter at .*absent"):
        load_lifter(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"denoiser holds a FrameTransformerModel denoiser, which is no lifter; a pipeline"):
        load_lifter(denoising[0] / "denoiser")

    mixste = MixSTEModel(num_frames=8, width=16, depth=1, num_attention_heads=2)
    D3DPPipeline(mixste, D3DPScheduler()).save_pretrained(tmp_path / "mixste")
    with pytest.raises(ValueError, match="mixste has no lifter, and its MixSTEModel cannot become one"):
        load_lifter(tmp_path / "mixste")

    GraFormerDenoiser(width=16, depth=1, num_attention_heads=2).save_pretrained(tmp_path / "graformer")
    with pytest.raises(ValueError, match="graformer holds a 'GraFormerDenoiser', which is no lifter"):
        load_lifter(tmp_path / "graformer")
    for content in ("{", "[]", "{}"):
        (tmp_path / "graformer" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json is no config of a network"):
            load_lifter(tmp_path / "graformer")


def test_a_lifter_that_lacks_weights(tmp_path):
    GraFormerLifter(**GRAFORMER["config"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 2}))
    with pytest.raises(ValueError, match=r"is damaged: it lacks the weights trunk\.attention_blocks\.1"):
        load_lifter(tmp_path)


# Windows


@every_lifter
def test_what_a_detector_did_not_see_reaches_no_network(recipe, lifter):
    clips = MocapClips([MOCAP])
    windows = TrainingWindows(clips, num_frames=8, camera=CameraVariation(), detector=DetectorNoise())
    batch = windows.render(range(16))
    hidden = batch["confidence"] == 0
    assert 0 < hidden.float().mean() < 0.5
    other = {**batch, "keypoints_2d": torch.where(hidden[..., None], 7 * torch.randn(16, 8, 17, 2), batch["keypoints_2d"])}
    one, two = observed_only(batch), observed_only(other)
    assert torch.equal(one["keypoints_2d"], two["keypoints_2d"]) and torch.isfinite(one["keypoints_2d"]).all()
    assert torch.equal(one["keypoints_2d"][~hidden], batch["keypoints_2d"][~hidden])

    trainer = trainer_of(recipe({"lifter": lifter, "data.num_frames": 8}))
    trainer.network.eval()
    losses = [trainer.loss(windows, torch.Generator().manual_seed(0))[0].item() for windows in (one, two)]
    assert losses[0] == losses[1]


def test_a_window_without_any_observation():
    batch = {"keypoints_2d": torch.randn(2, 4, 17, 2), "confidence": torch.ones(2, 4, 17)}
    batch["confidence"][1] = 0
    seen = observed_only(batch)["keypoints_2d"]
    assert torch.equal(seen[0], batch["keypoints_2d"][0]) and torch.equal(seen[1], torch.zeros(4, 17, 2))


def test_loaders_hand_out_what_is_rendered(recipe):
    trainer = trainer_of(recipe({"data.num_workers": 1}))
    batch = next(iter(trainer.batches()))
    expected = observed_only(trainer.training_windows.render(range(4)))
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
