"""`probpose adapt`, run as a user runs it."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, safe_open

from probpose.calibration import Recalibration
from probpose.data import KeypointTrack, write_keypoints
from probpose.pipelines import AdaptationSettings, PoSynDAPipeline, ProbPosePipeline

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--rounds", 2, "--steps", 3, "--batch-size", 4, "--seed", 3, "--no-augmentation")
PLAIN = (*QUICK, "--no-build", "--learning-rate", 3e-3)
SIZE = (1000, 1000)


def film(positions, fps=30.0, skeleton="h36m_17", upside_down=False):
    """A track of positions `(frames, joints, 3)`, z up, from six metres away."""
    x, y, z = np.moveaxis(positions, -1, 0)
    places = np.stack([x, (z - 1) if upside_down else (1 - z)], axis=-1) / (y + 6)[..., None]
    points = (500 + 1000 * places).astype(np.float32)
    return KeypointTrack(points, np.ones(points.shape[:2], np.float32), np.arange(len(points)), 0, skeleton, SIZE, fps)


@pytest.fixture
def source(make_archive):
    return make_archive({"a": 40, "b": 30, "c": 50})


@pytest.fixture
def target(tmp_path, walk):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for seed, name in enumerate(["one", "two"]):
        write_keypoints(folder / f"{name}.npz", [film(walk(40, 0.9, seed + 7))])
    return folder


@pytest.fixture
def call(run_command, tmp_path, tiny_model, target, source):
    """`call(option, …)` adapts into `models/adapted`; `model=`, `target=` and `source=` something else."""

    def run(*options, **other):
        given = {"target": target, "source": source, **other}
        words = [word for name in ("target", "source") for word in (f"--{name}", given[name])]
        return run_command("adapt", other.get("model", tiny_model), *words, "--out", tmp_path / "models" / "adapted", *options)

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "models" / "adapted"


@pytest.fixture(scope="module")
def calibrated_half(tiny_model, tmp_path_factory):
    """The tiny model with a calibrator, its weights in half precision."""
    pipe = ProbPosePipeline.from_pretrained(tiny_model)
    pipe.register_modules(calibrator=Recalibration(17))
    torch.nn.Module.to(pipe.denoiser, torch.float16)
    folder = tmp_path_factory.mktemp("half") / "model"
    pipe.save_pretrained(folder)
    return folder


def dtypes(path):
    return {tensor.dtype for tensor in load_file(path).values()}


def test_makes_a_complete_pipeline(call, run_command, calibrated_half, target, source, out, tmp_path):
    code, shown, err = call(*PLAIN, "--focal", 1000, model=calibrated_half)
    assert code == 0, err
    assert [*out.parent.iterdir()] == [out]  # nothing is left of the run
    assert "reprojection" in shown and "kept round" in shown and "calibrator" in shown and shown.endswith(f"finished: {out}\n")
    assert {path.name for path in out.iterdir()} == {
        "model_index.json", "denoiser", "scheduler", "pytorch_lora_weights.safetensors", "adaptation.json", "adaptation.png",
    }  # fmt: skip
    assert (out / "adaptation.png").read_bytes()[:4] == b"\x89PNG"
    configs = (out / "model_index.json").read_text() + (out / "denoiser" / "config.json").read_text()
    assert "_name_or_path" not in configs

    record = json.loads((out / "adaptation.json").read_text())
    assert (record["model"], record["source"], record["target"]) == (str(calibrated_half), [str(source)], [str(target)])
    assert (record["seed"], record["source_clips"]) == (3, 3)
    assert record["track_minutes"] == pytest.approx({"one.npz/person0": 40 / 1800, "two.npz/person0": 40 / 1800})
    assert [entry["round"] for entry in record["history"]] == [0, 1, 2]
    settings = AdaptationSettings(rounds=2, steps=3, batch_size=4, augmentation=False, build=False, learning_rate=3e-3)
    assert record["settings"] == vars(settings)

    code, _, err = run_command("sample", target / "one.npz", "--model", out, "--out", tmp_path / "samples", "--no-picture", "--no-page")
    assert code == 0, err
    assert np.isfinite(np.load(tmp_path / "samples" / "one.npz")["pose"]).all()

    code, _, err = call(*PLAIN)
    assert code == 2 and "--overwrite" in err


def test_all_weights_with_a_recipe_for_a_source(call, walk, source, out, tmp_path, tiny_model):
    """The clip that the recipe keeps out stays out; a target on its head is noticed; a run is replaced when asked."""
    recipe, bats = tmp_path / "recipe.yaml", tmp_path / "bats.npz"
    recipe.write_text(yaml.safe_dump({"data": {"paths": [str(source)], "include": ["a", "b"], "body": {"probability": 1.0}}}))
    write_keypoints(bats, [film(walk(40), upside_down=True)])
    out.mkdir(parents=True)
    (out / "old").write_text("")
    code, _, err = call(*QUICK, "--full", "--rounds", 1, "--batch-size", 2, "--overwrite", source=recipe, target=bats)
    assert code == 0, err
    assert "warning: target: the head is below the feet" in err
    record = json.loads((out / "adaptation.json").read_text())
    assert (record["source_clips"], record["settings"]["rank"], record["adapter_name"]) == (2, None, None)
    assert not (out / "old").exists() and not (out / "pytorch_lora_weights.safetensors").exists()
    with safe_open(out / "denoiser" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert set(file.keys()) == set(load_file(tiny_model / "denoiser" / "diffusion_pytorch_model.safetensors"))


def test_an_interrupted_run_goes_on_and_is_saved_fused_and_alone(call, target, source, calibrated_half, out):
    state = out.with_name("adapted.state.pt")
    state.parent.mkdir()
    settings = AdaptationSettings(rounds=1, steps=3, batch_size=4, augmentation=False, build=False, learning_rate=3e-3)
    pipe = PoSynDAPipeline.from_pretrained(calibrated_half)
    pipe.set_progress_bar_config(disable=True)
    pipe.adapt(target, source=source, settings=settings, seed=3, state=state)
    content = torch.load(state, weights_only=True)
    content["history"][1]["reprojection_mm"] = 1.0  # to tell the run by
    content["best"] = [torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) / 20 for value in content["best"]]
    torch.save(content, state)

    quick = (*PLAIN, "--rounds", 1)
    code, _, err = call(*quick, model=calibrated_half)
    assert code == 2 and "--resume" in err and "--overwrite" in err
    code, _, err = call(*quick, "--rank", 4, "--resume", model=calibrated_half)
    assert code == 2 and "other settings: rank 8 there, 4 now" in err
    assert state.exists() and not out.exists()
    code, _, err = call(*quick, "--resume", model=calibrated_half)
    assert code == 0 and not state.exists(), err
    assert json.loads((out / "adaptation.json").read_text())["after"]["reprojection_mm"] == 1.0

    assert dtypes(out / "denoiser" / "diffusion_pytorch_model.safetensors") == {torch.float16}
    assert dtypes(out / "pytorch_lora_weights.safetensors") == {torch.float32}
    fused = ProbPosePipeline.from_pretrained(out)
    assert type(fused) is PoSynDAPipeline and fused.calibrator is None and not fused.denoiser.adapters
    loose = ProbPosePipeline.from_pretrained(calibrated_half)
    stored = {name: value.clone() for name, value in loose.denoiser.state_dict().items()}
    loose.load_lora_weights(out)
    loose.fuse_lora()
    loose.unload_lora_weights()
    weights = loose.denoiser.state_dict()
    assert max((weights[name] - stored[name]).abs().max() for name in stored) > 1e-3
    torch.testing.assert_close(fused.denoiser.state_dict(), weights, atol=1e-3, rtol=1e-3)  # but for the rounding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", 0), "rank must be None or at least 1, got 0"),
        (("--full", "--rank", 4), "--rank"),
        (("--steps", 0), "steps must be an integer of at least 1"),
        (("--image-size", "large"), "WIDTHxHEIGHT"),
        (("--image-size", "640x480"), "image_size"),
        (("--fps", 25), "fps 25.0 as given; the file says 30.0"),
        (("--focal", -3), "focal"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
    ],
)
def test_bad_options(call, out, options, message):
    code, _, err = call(*QUICK, *options)
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not out.parent.exists()


def test_a_target_that_cannot_be_used(call, target, walk, out):
    def message(**other):
        code, _, err = call(*QUICK, **other)
        assert code == 2 and not out.parent.exists()
        return err.splitlines()[-1]

    assert "nowhere" in message(target=target / "nowhere")
    write_keypoints(target / "two.npz", [film(walk(40), fps=None)], overwrite=True)
    assert "mixed frame rates: two.npz/person0 state none" in (err := message()) and "pass --fps" in err
    write_keypoints(target / "two.npz", [film(walk(40)[:, :14], skeleton="lsp_14")], overwrite=True)
    assert "two.npz/person0: no conversion from lsp_14 to h36m_17" in message()
    for name in ("one", "two"):
        nobody = film(walk(40))
        nobody.confidence[:] = 0
        write_keypoints(target / f"{name}.npz", [nobody], overwrite=True)
    assert "target tracks without people: nobody in one.npz" in message()


def test_a_source_that_cannot_be_used(call, source, make_archive, tmp_path, out):
    def message(given):
        code, _, err = call(*QUICK, source=given)
        assert code == 2 and not out.parent.exists()
        return err.splitlines()[-1]

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"paths": [str(source)], "include": ["z*"]}}))
    assert "no clips left" in (err := message(recipe)) and "z*" in err
    recipe.write_text(yaml.safe_dump({"data": {"paths": [str(source)], "validation_share": 0.999999}}))
    assert "none of the 3 clips" in message(recipe)
    assert "no clips left" in message(make_archive({"a": 30}, split="test", file="test.npz"))
    assert "25 frames per second" in message(make_archive({"a": 30}, fps=25.0, file="slow.npz"))
    assert "no motion archive" in message(tmp_path / "nothing.npz")
    assert "one training recipe" in message(tmp_path / "clip.bvh")


@pytest.mark.parametrize(("fixture", "name"), [("tiny_diffpose", "DiffPosePipeline"), ("tiny_platypose", "PlatyposePipeline")])
def test_other_models_are_refused_by_name(call, request, fixture, name):
    code, _, err = call(*QUICK, model=request.getfixturevalue(fixture))
    assert code == 2 and f"is a {name}; what can be adapted is a D3DPPipeline or a PoSynDAPipeline" in err.splitlines()[-1]


def test_the_lens_that_is_given_is_the_targets(target, tiny_model):
    from probpose.cli.adapt import _target_tracks

    pipe = ProbPosePipeline.from_pretrained(tiny_model)
    tracks = {focal: _target_tracks(pipe, [target / "one.npz"], {}, focal)[0] for focal in (None, 1234.0)}
    assert tracks[1234.0].camera.focal.tolist() == [1234, 1234] and tracks[1234.0].camera.centre.tolist() == [500, 500]
    assert tracks[None].camera.focal[0] == pytest.approx(500 / np.tan(np.radians(27.5)))


def test_explains_itself(run_command):
    code, shown, _ = run_command("adapt", "--help")
    assert code == 0 and shown.split("Examples:")[1].count("probpose adapt") >= 3
    assert "probpose sample clip.json --model" in shown
