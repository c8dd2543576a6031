"""Saved pipelines come back as they were, and a damaged folder says what is wrong with it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from tiny_pipelines import IMAGE, both_models, frame_pipeline, keypoints_of, quiet, seeded

from probpose import ProbPosePipeline
from probpose.pipelines import D3DPPipeline
from probpose.schedulers import D3DPScheduler

DEFAULTS = {
    "default_num_hypotheses": 3,
    "default_num_inference_steps": 2,
    "default_flip": "last_step",
    "default_share_first_step": True,
    "default_aggregation": "mean",
    "window_overlap": 4,
    "hidden_when_converted": [7, 9],
}
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    frame_pipeline(**DEFAULTS).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved folder that a test may break."""
    return shutil.copytree(saved, tmp_path / "copy")


def run(pipe, **options):
    return quiet(pipe)(keypoints_of(frames=12), image_size=IMAGE, generator=seeded(), **options).hypotheses


@both_models
@pytest.mark.parametrize("loader", [ProbPosePipeline, D3DPPipeline])
def test_round_trip(make_pipe, loader, tmp_path):
    pipe = make_pipe(D3DPScheduler(eta=0.5), **DEFAULTS)
    pipe.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is D3DPPipeline and type(loaded.denoiser) is type(pipe.denoiser)
    assert {name: loaded.config[name] for name in DEFAULTS} == DEFAULTS
    assert loaded.scheduler.config.eta == 0.5 and not loaded.denoiser.training
    assert torch.equal(run(loaded), run(pipe))


def test_components_are_named_by_public_modules(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "D3DPPipeline"
    assert index["denoiser"] == ["probpose.models", "FrameTransformerModel"]
    assert index["scheduler"] == ["probpose.schedulers", "D3DPScheduler"]
    assert {name: index[name] for name in DEFAULTS} == DEFAULTS


def test_a_fresh_process_loads_it(saved):
    code = (
        "import sys, probpose; assert 'probpose.models' not in sys.modules; "
        f"pipe = probpose.ProbPosePipeline.from_pretrained({str(saved)!r}); print(type(pipe).__name__, pipe.config.default_num_hypotheses)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["D3DPPipeline", "3"]


def test_half_precision_files_load_as_float32(saved, tmp_path):
    pipe = D3DPPipeline.from_pretrained(saved, dtype=torch.float16)
    assert pipe.denoiser.dtype == torch.float16
    pipe.save_pretrained(tmp_path)
    assert all(weight.dtype == torch.float16 for weight in load_file(tmp_path / WEIGHTS).values())
    loaded = ProbPosePipeline.from_pretrained(tmp_path)
    assert loaded.denoiser.dtype == torch.float32
    torch.testing.assert_close(run(loaded), run(D3DPPipeline.from_pretrained(saved)), atol=2e-2, rtol=0)


def test_another_scheduler_may_be_put_in(saved, tmp_path):
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing")
    pipe = ProbPosePipeline.from_pretrained(saved, scheduler=scheduler)
    assert pipe.scheduler is scheduler
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert torch.equal(run(ProbPosePipeline.from_pretrained(tmp_path)), run(pipe))


@pytest.mark.parametrize("loader", [ProbPosePipeline, D3DPPipeline])
@pytest.mark.parametrize("name", ["model", "no/such/model", "./model", "/no/model", "model_index.json"])
def test_no_such_folder(loader, name, saved, monkeypatch):
    monkeypatch.chdir(saved)
    with pytest.raises(FileNotFoundError, match=f"no model folder at .*{name.split('/')[-1]}.*user/model"):
        loader.from_pretrained(name)


@pytest.mark.parametrize(
    "part", ["model_index.json", "denoiser", "scheduler", "denoiser/config.json", "scheduler/scheduler_config.json", WEIGHTS]
)
def test_a_missing_part_is_named(copy, part):
    victim = copy / part
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    message = "no model_index.json" if part == "model_index.json" else f"lacks.*part '{part.split('/')[0]}'"
    with pytest.raises(FileNotFoundError, match=message):
        ProbPosePipeline.from_pretrained(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00garbage"])
@pytest.mark.parametrize("file", ["model_index.json", "denoiser/config.json", "scheduler/scheduler_config.json"])
def test_damaged_json_is_named(copy, file, content):
    (copy / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        ProbPosePipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:5], lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"garbage " * 99]
)
def test_damaged_weights_are_named(copy, damage):
    weights = copy / WEIGHTS
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged"):
        ProbPosePipeline.from_pretrained(copy)


def test_pickled_weights_are_not_opened(copy):
    state = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    torch.save(state, copy / "denoiser" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        ProbPosePipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "ProbPosePipeline", "SamplerSettings", None, ["my_pipeline", "Mine"]])
@pytest.mark.parametrize("loader", [ProbPosePipeline, D3DPPipeline])
def test_foreign_pipelines_are_refused(tmp_path, name, loader):
    index = {"_class_name": name, "_diffusers_version": "0.42.0", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"no probpose pipeline; known: \['D3DPPipeline', 'DiffPosePipeline', 'PlatyposePipeline', 'PoSynDAPipeline'\]"
    ):
        loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_are_an_error(copy, change):
    state = load_file(copy / WEIGHTS)
    if change == "missing":
        state.pop("proj_out.weight")
    else:
        state["proj_out.weight"] = torch.zeros(3, 3)
    save_file(state, copy / WEIGHTS)
    with pytest.raises(ValueError, match=r"proj_out.weight"):
        ProbPosePipeline.from_pretrained(copy)


def test_subclasses_save_and_load(saved, tmp_path):
    class MyPipeline(D3DPPipeline):
        pass

    pipe = MyPipeline.from_pretrained(saved)
    assert type(pipe) is MyPipeline
    pipe.save_pretrained(tmp_path)
    assert type(MyPipeline.from_pretrained(tmp_path)) is MyPipeline
    with pytest.raises(ValueError, match="'MyPipeline', which is no probpose pipeline"):
        ProbPosePipeline.from_pretrained(tmp_path)
