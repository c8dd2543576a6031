"""Training a motion prior: it learns from motions alone, survives an interruption, and says clearly what it will not train."""

import copy

import pytest
import torch
from accelerate import Accelerator
from test_training import assert_same_state, checkpoints, scalars
from training_runs import interrupt_at, write_recipe

from probpose import ProbPosePipeline
from probpose.models import MotionPriorModel
from probpose.pipelines import PlatyposePipeline
from probpose.schedulers import EnergyGuidedDDIMScheduler
from probpose.training import PriorConfig, PriorTrainer, load_recipe, train

CAMERA = {
    "prior": {
        "name": "MotionPriorModel",
        "config": {
            "num_frames": 8, "width": 32, "depth": 1, "num_attention_heads": 2, "norm_first": True, "axes": "camera",
            "trajectory": "relative", "fps": 30,
        },
    },
    "scheduler": {"name": "EnergyGuidedDDIMScheduler", "config": {"num_train_timesteps": 100, "scale": 3.0}},
    "optim.short_window_share": 0.3,
}  # fmt: skip
PUBLISHED = {
    "prior": {"name": "MotionPriorModel", "config": {"num_frames": 8, "width": 32, "depth": 2, "num_attention_heads": 2}},
    "scheduler": ...,  # the default
    "optim.loss": "squared_error",
    "optim.short_window_share": 1.0,
}
both_layouts = pytest.mark.parametrize("layout", [CAMERA, PUBLISHED], ids=["camera, relative", "world, absolute"])


@pytest.fixture
def recipe(tmp_path, make_archive):
    """`recipe(CAMERA, {"optim.steps": 3})` writes a small recipe of this layout with these changes."""
    archive = make_archive({"a/1": 40, "a/2": 25, "b/1": 30})

    def write(layout=CAMERA, changes=None):
        content = {
            "output_dir": str(tmp_path / "run"),
            "scheduler": {},
            "data": {"paths": [str(archive)], "validation_share": 0.5, "num_workers": 0},
            "optim": {"steps": 4, "batch_size": 4, "warmup_steps": 2, "ema_decay": 0.9},
            "checkpoint_every": 2,
            "evaluation_windows": 3,
        }
        return write_recipe(tmp_path / "recipe.yaml", content, copy.deepcopy(layout) | (changes or {}))

    return write


def trainer_of(path):
    return PriorTrainer(PriorConfig.load(path))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# A run


@both_layouts
def test_a_run_learns_and_leaves_a_pipeline(recipe, tmp_path, layout):
    easy = {"data.body": None, "optim.steps": 60, "optim.batch_size": 16, "optim.learning_rate": 0.005}
    folder = train(recipe(layout, {**easy, "log_every": 5, "checkpoint_every": 30, "evaluate_every": 30}))
    assert folder == tmp_path / "run" / "checkpoint-60" / "pipeline"
    logged = scalars(tmp_path / "run")
    assert logged["train/loss_mm"][60] < 0.7 * logged["train/loss_mm"][5]
    levels = [tag for tag in logged if tag.startswith("validation/")]
    assert len(levels) == 4 and all(tag.startswith("validation/denoised_from_") for tag in levels)
    assert all(list(logged[tag]) == [30, 60] and logged[tag][60] < logged[tag][30] for tag in levels)

    pipe = ProbPosePipeline.from_pretrained(folder)
    assert isinstance(pipe, PlatyposePipeline) and isinstance(pipe.scheduler, EnergyGuidedDDIMScheduler)
    assert {**pipe.denoiser.config, **layout["prior"]["config"]} == dict(pipe.denoiser.config)
    ema = torch.load(folder.parent / "state.pt", weights_only=True)["ema"]["shadow_params"]
    assert all(torch.equal(a, b) for a, b in zip(pipe.denoiser.parameters(), ema, strict=True))
    pipe.set_progress_bar_config(disable=True)
    motions, roots = pipe.generate(12, num_motions=3, num_inference_steps=4, generator=seeded())
    assert motions.shape == (3, 12, 17, 3) and roots.shape == (3, 12, 3)
    assert torch.isfinite(motions).all() and torch.isfinite(roots).all() and motions.std(0).max() > 0
    out = pipe(500 + 100 * torch.randn(6, 17, 2), image_size=(1000, 1000), num_hypotheses=2, generator=seeded())
    assert out.hypotheses.shape == (2, 6, 17, 3) and torch.isfinite(out.hypotheses).all()


@both_layouts
def test_an_interrupted_run_continues_as_if_nothing_had_happened(recipe, tmp_path, monkeypatch, layout):
    # The published layout's dropout, windows of random lengths and a worker process: none may depend on where the run was cut.
    changes = {"optim.steps": 6, "checkpoint_every": 3, "data.num_workers": 1}
    straight = train(recipe(layout, {**changes, "output_dir": str(tmp_path / "straight")})).parent
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train(recipe(layout, changes))
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert_same_state(straight, train(recipe(layout, changes), resume=True).parent)
    with pytest.raises(ValueError, match=r"another recipe: optim\.trajectory_weight was 1\.0, is 0\.5"):
        train(recipe(layout, {**changes, "optim.trajectory_weight": 0.5}), resume=True)


def test_initialise_from(recipe, tmp_path):
    source = train(recipe())
    elsewhere = {"initialise_from": str(source), "output_dir": str(tmp_path / "second"), "seed": 5}
    given = ProbPosePipeline.from_pretrained(source).denoiser.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in trainer_of(recipe(CAMERA, elsewhere)).network.state_dict().items())
    with pytest.raises(ValueError, match=r"initialise_from: .*width is 32 there, 64 in the recipe"):
        trainer_of(recipe(CAMERA, {**elsewhere, "prior.config.width": 64}))
    with pytest.raises(FileNotFoundError):
        trainer_of(recipe(CAMERA, {**elsewhere, "initialise_from": str(tmp_path / "absent")}))


def test_the_recipe_says_how_pipelines_are_saved(recipe, tmp_path):
    sizes = []
    for dtype in ("float32", "float16"):
        changes = {"optim.steps": 1, "pipeline": {"dtype": dtype, "arguments": {"default_num_hypotheses": 7}}}
        folder = train(recipe(CAMERA, changes), overwrite=True)
        pipe = ProbPosePipeline.from_pretrained(folder)
        assert pipe.config.default_num_hypotheses == 7 and pipe.denoiser.dtype == torch.float32
        sizes.append(next(folder.glob("denoiser/*.safetensors")).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_without_clips_kept_out_there_is_no_validation(recipe, tmp_path):
    train(recipe(CAMERA, {"data.validation_share": 0.0}))
    assert not any(tag.startswith("validation") for tag in scalars(tmp_path / "run"))


# A step


@pytest.fixture
def noised(monkeypatch):
    """What was handed to `add_noise`."""
    calls, add_noise = [], EnergyGuidedDDIMScheduler.add_noise

    def seen(self, *arguments):
        calls.append(arguments)
        return add_noise(self, *arguments)

    monkeypatch.setattr(EnergyGuidedDDIMScheduler, "add_noise", seen)
    return calls


@both_layouts
def test_what_a_step_noises(recipe, noised, layout):
    trainer = trainer_of(recipe(layout, {"optim.short_window_share": 0.0}))
    batch = trainer.training_windows.render(range(4))
    assert ("keypoints_2d" in batch) == (layout is CAMERA)
    trainer.loss(batch, seeded())
    motion, noise, timestep = noised[0]
    assert motion.shape == noise.shape == (4, 8, 17, 3) and timestep.shape == (4,)
    assert torch.equal(motion[:, :, 1:], batch["pose"][:, :, 1:])
    assert torch.equal(motion[:, :, 0].diff(dim=1), batch["root"].diff(dim=1)) or layout is CAMERA
    if layout is CAMERA:
        torch.testing.assert_close(motion[:, :, 0].mean(1), torch.zeros(4, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(motion[:, :, 0].diff(dim=1), batch["root"].diff(dim=1), atol=1e-5, rtol=0)
    else:
        assert torch.equal(motion[:, :, 0], batch["root"])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_windows_of_random_lengths(recipe, noised, share):
    trainer = trainer_of(recipe(CAMERA, {"optim.short_window_share": share}))
    batch = trainer.training_windows.render(range(4))
    for seed in range(20):
        trainer.loss(batch, seeded(seed))
    lengths = {motion.shape[1] for motion, *_ in noised}
    assert lengths == {8} if share == 0 else len(lengths) > 4 and lengths <= set(range(1, 9))
    for motion, *_ in noised:  # relative to the mean over what is seen, not over what was cut off
        torch.testing.assert_close(motion[:, :, 0].mean(1), torch.zeros(4, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["weighted", "squared_error"])
def test_the_loss_by_hand(recipe, noised, loss):
    changes = {"optim.loss": loss, "optim.trajectory_weight": 0.3, "optim.short_window_share": 0.0}
    trainer = trainer_of(recipe(CAMERA, changes))
    trainer.network.eval()
    value, error = trainer.loss(trainer.training_windows.render(range(4)), seeded())
    motion, noise, timestep = noised[0]
    alpha = trainer.scheduler.alphas_cumprod[timestep].float()[:, None, None, None]
    noisy = alpha.sqrt() * motion + (1 - alpha).sqrt() / 3 * noise
    off = trainer.network(None, noisy, timestep).sample - motion
    weight = torch.ones(4, 8, 17)
    weight[..., 0] = 0.3
    if loss == "weighted":
        level = ((1 - alpha) / alpha).sqrt()[..., 0] / 3
        weight = weight * (1 / level.clamp_min(0.02) ** 2 + 1 / 0.3**2)
    torch.testing.assert_close(value, (weight * off.square().sum(-1)).mean(), rtol=1e-4, atol=0)
    assert error == pytest.approx(off[:, :, 1:].norm(dim=-1).mean().item(), rel=1e-4)


def test_every_timestep_is_trained(recipe, noised):
    trainer = trainer_of(recipe(CAMERA, {"scheduler.config": {"num_train_timesteps": 5, "num_inference_steps": 3, "skip_first": 0}}))
    batch = trainer.training_windows.render(range(4))
    for seed in range(20):
        trainer.loss(batch, seeded(seed))
    assert set(torch.cat([timestep for *_, timestep in noised]).tolist()) == set(range(5))


@both_layouts
@torch.no_grad()
def test_several_processes_share_a_step(recipe, monkeypatch, layout):
    trainer = trainer_of(recipe(layout))
    trainer.network.eval()  # dropout is the one thing that every process draws for itself
    batch = trainer.training_windows.render(range(4))
    alone = trainer.loss(batch, seeded())
    shares = []
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    for process in range(2):
        monkeypatch.setattr(Accelerator, "process_index", process)
        shares.append(trainer.loss({name: value.chunk(2)[process] for name, value in batch.items()}, seeded()))
    for whole, one, other in zip(alone, *shares):
        assert float(one + other) / 2 == pytest.approx(float(whole), rel=1e-5)


@both_layouts
def test_validation_is_how_far_off_joints_are(recipe, layout):
    trainer = trainer_of(recipe(layout))

    class Oracle:
        config = trainer.network.config

        def __call__(self, keypoints, noisy, timestep, return_dict):
            off = torch.where(torch.arange(17)[:, None] > 0, torch.tensor([0.03, 0.04, 0.0]), torch.tensor(5.0))
            return (trainer._motions(trainer.validation_windows.render(range(len(noisy)))) + off,)

    trainer.network = Oracle()
    errors = trainer.validate()
    scheduler = trainer.scheduler
    levels = [round(1000 * scheduler.noise_level(int(share * len(scheduler)))) for share in (0.1, 0.3, 0.5, 0.8)]
    assert errors == {f"denoised_from_{level}_mm": pytest.approx(50, rel=1e-4) for level in levels}


# Recipes


def test_what_is_trained_tells_the_kind_of_recipe(recipe):
    config = load_recipe(recipe(PUBLISHED))
    assert type(config) is PriorConfig and config.scheduler.name == "EnergyGuidedDDIMScheduler"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser": {"name": "MotionPriorModel"}}, "denoiser: unknown field; allowed are output_dir, .*prior"),
        ({"optim.first_step_share": 0.5}, r"optim\.first_step_share: unknown field; allowed are steps, .*trajectory_weight"),
        ({"optim.loss": "distance"}, r"optim\.loss: .*'weighted' or 'squared_error'"),
        ({"optim.trajectory_weight": -1}, r"optim\.trajectory_weight: "),
        ({"optim.short_window_share": 2}, r"optim\.short_window_share: "),
        ({"pipeline": "folder"}, "pipeline: "),
    ],
)
def test_recipe_errors_name_the_field(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(CAMERA, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prior": {"name": "FrameTransformerModel"}},
            r"prior\.name: FrameTransformerModel looks at keypoints; MotionPriorModel is a motion prior",
        ),
        ({"prior": {"name": "GraFormerLifter"}}, r"prior\.name: .*no 'GraFormerLifter'; .*known: .*MotionPriorModel"),
        ({"prior.config.widht": 3}, r"prior\.config: MotionPriorModel has no widht; allowed are num_frames"),
        ({"prior.config.axes": "image"}, r"prior\.config: MotionPriorModel: axes must be one of \('world', 'camera'\), got 'image'"),
        ({"prior.config.num_joints": 16}, r"prior\.config: training windows hold the 17 joints of h36m_17"),
        ({"prior.config.fps": 50}, r"prior\.config\.fps: 50, but the clips"),
        ({"prior.config.any_length": False}, r"optim\.short_window_share: this MotionPriorModel takes windows of 8 frames only"),
        ({"scheduler": {"name": "D3DPScheduler"}}, r"scheduler\.name: D3DPScheduler takes no guidance; a prior needs EnergyGuidedDDIM"),
        ({"scheduler": {"name": "DDIM"}}, r"scheduler\.name: .*no 'DDIM'; .*known: .*EnergyGuidedDDIMScheduler"),
        ({"scheduler.config.scale": 0}, r"scheduler\.config: EnergyGuidedDDIMScheduler: scale must be a positive number"),
        ({"pipeline": {"arguments": {"guide_trust": -1}}}, r"pipeline\.arguments: trust must be a finite number above 0"),
        ({"pipeline": {"arguments": {"hypotheses": 3}}}, r"pipeline\.arguments: .*unexpected keyword argument 'hypotheses'"),
        ({"data.num_frames": 9}, r"data\.num_frames: 9 frames are more than this MotionPriorModel's window of 8"),
        ({"data.source_weights": {"c": 1.0}}, r"source_weights names \['c'\]"),
        ({"attention_backend": "quick"}, r"attention_backend: the attention backend must be one of .*_native_math.*, got 'quick'"),
    ],
)
def test_recipes_that_fit_no_network_or_data(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(recipe(CAMERA, changes))
    assert not (tmp_path / "run").exists()


def test_the_prior_knows_how_large_people_are(recipe):
    trainer = trainer_of(recipe())
    lengths = trainer.network.config.bone_lengths
    assert len(lengths) == 16 and 0.38 < lengths[1] < 0.48 and 0.2 < lengths[6] < 0.3  # thigh and spine of the figure that walks
    pipe = ProbPosePipeline.from_pretrained(trainer.train())
    assert pipe.denoiser.config.bone_lengths == lengths


def test_the_windows_are_the_prior_s(recipe):
    assert trainer_of(recipe(CAMERA, {"data.num_frames": 5})).training_windows.num_frames == 5
    world, camera = (trainer_of(recipe(layout)).training_windows for layout in (PUBLISHED, CAMERA))
    assert (world.axes, camera.axes) == ("world", "camera") and world.num_frames == camera.num_frames == 8
    assert camera.detector is world.detector is None  # nobody looks, so nobody errs
    assert isinstance(trainer_of(recipe(PUBLISHED)).network, MotionPriorModel)
