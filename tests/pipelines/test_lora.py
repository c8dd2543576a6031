"""Adapters of a pipeline: loaded, switched, fused and stored in diffusers' words, and never lost in silence."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import IMAGE, diffpose_pipeline, frame_pipeline, keypoints_of, mixste_pipeline, platypose_pipeline, quiet, seeded

from probpose import ProbPosePipeline
from probpose.hub import bundled_model, list_bundled_models

FILE = "pytorch_lora_weights.safetensors"
PIPELINES = {"frame": frame_pipeline, "mixste": mixste_pipeline, "diffpose": diffpose_pipeline, "platypose": platypose_pipeline}
all_pipelines = pytest.mark.parametrize("kind", PIPELINES)


def make(kind="mixste"):
    return PIPELINES[kind]()


def teach(model, name="default", seed=1, size=0.05, **config):
    """Attach an adapter that has learned something."""
    model.add_adapter(model.lora_config(**config), name)
    generator = seeded(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".lora_B.{name}." in key:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def adapted(kind="mixste", **options):
    pipe = make(kind)
    teach(pipe.denoiser, **options)
    return pipe


def run(pipe, **options):
    options = {"num_hypotheses": 2, "num_inference_steps": 2, "aggregation": None} | options
    return quiet(pipe)(keypoints_of(frames=9), image_size=IMAGE, generator=seeded(), **options).hypotheses


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@all_pipelines
def test_files_bring_back_the_samples(kind, tmp_path):
    pipe = adapted(kind)
    expected = run(pipe)
    assert (expected - run(make(kind))).abs().max() > 1e-4
    pipe.save_lora_weights(tmp_path)
    assert all(name.startswith("denoiser.") for name in load_file(tmp_path / FILE))
    for place in (tmp_path, tmp_path / FILE):
        fresh = make(kind)
        fresh.load_lora_weights(place, adapter_name="style")
        assert fresh.get_active_adapters() == ["style"] and fresh.get_list_adapters() == {"denoiser": ["style"]}
        assert torch.equal(run(fresh), expected)
    fresh.unload_lora_weights()
    assert fresh.get_list_adapters() == {} and fresh.get_active_adapters() == []
    assert torch.equal(run(fresh), run(make(kind)))


def test_half_precision_files_are_as_good(tmp_path):
    pipe = adapted()
    pipe.save_lora_weights(tmp_path, dtype=torch.float16)
    fresh = make()
    fresh.load_lora_weights(tmp_path)
    close(run(fresh), run(pipe), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pipeline_in_half_precision(dtype, tmp_path):
    pipe = adapted()
    pipe.save_lora_weights(tmp_path / "adapter")
    make().save_pretrained(tmp_path / "model")
    half = ProbPosePipeline.from_pretrained(tmp_path / "model", dtype=dtype)
    half.load_lora_weights(tmp_path / "adapter")
    assert {parameter.dtype for parameter in half.denoiser.parameters()} == {dtype} and half.denoiser.dtype == dtype
    close(run(half), run(pipe), atol=0.1)
    half.fuse_lora()
    close(run(half), run(pipe), atol=0.1)


def test_tensors_by_name(tmp_path):
    pipe = adapted()
    pipe.save_lora_weights(tmp_path)
    fresh = make()
    fresh.load_lora_weights(load_file(tmp_path / FILE))
    assert torch.equal(run(fresh), run(pipe))


def test_switching_and_fusing(tmp_path):
    pipe = make()
    base = run(pipe)
    for name, seed in (("a", 1), ("b", 2)):
        teach(pipe.denoiser, name, seed)
        pipe.save_lora_weights(tmp_path, name, weight_name=f"{name}.safetensors")
    fresh = make()
    for name in "ab":
        fresh.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
    assert fresh.get_active_adapters() == ["b"]
    fresh.set_adapters(["a", "b"], adapter_weights=[0.5, 2.0])
    pipe.set_adapters(["a", "b"], [0.5, 2.0])
    both = run(pipe)
    assert torch.equal(run(fresh), both)
    fresh.fuse_lora()
    close(run(fresh), both)
    fresh.unfuse_lora()
    close(run(fresh), both)
    fresh.disable_lora()
    close(run(fresh), base)
    fresh.enable_lora()
    close(run(fresh), both)
    fresh.delete_adapters("a")
    assert fresh.get_list_adapters() == {"denoiser": ["b"]}
    fresh.fuse_lora(lora_scale=0.3, adapter_names="b")
    fresh.unload_lora_weights()
    pipe.set_adapters("b", 0.6)
    close(run(fresh), run(pipe))


@all_pipelines
def test_saving_with_adapters(kind, tmp_path):
    pipe = adapted(kind)
    with pytest.raises(ValueError, match=r"would lose the adapters \['default'\].*fuse_lora\(\).*unload_lora_weights\(\)"):
        pipe.save_pretrained(tmp_path / "loose")
    assert not (tmp_path / "loose").exists()
    expected = run(pipe)
    pipe.save_lora_weights(tmp_path)
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    loaded = ProbPosePipeline.from_pretrained(tmp_path / "fused")
    assert type(loaded) is type(pipe) and loaded.get_list_adapters() == {}
    close(run(loaded), expected)
    assert pipe.get_list_adapters() == {"denoiser": ["default"]}  # still attached
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)  # beside the adapter's file
    loaded = ProbPosePipeline.from_pretrained(tmp_path)
    loaded.load_lora_weights(tmp_path)
    close(run(loaded), expected)


def test_adapters_of_a_lifter_are_not_lost_either(tmp_path):
    pipe = diffpose_pipeline(lifter="mixste")
    teach(pipe.lifter)
    with pytest.raises(ValueError, match="of this MixSTEModel"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    pipe.lifter.save_lora_adapter(tmp_path, prefix="lifter")
    fresh = diffpose_pipeline(lifter="mixste")
    with pytest.raises(ValueError, match="holds no adapter"):
        fresh.load_lora_weights(tmp_path)
    fresh.lifter.load_lora_adapter(tmp_path, prefix="lifter")
    assert torch.equal(run(fresh), run(pipe))


@pytest.mark.parametrize("name", [name for name in list_bundled_models() if name.startswith("d3dp")][:1])
def test_bundled_models_take_adapters(name, tmp_path):
    pipe, other = (ProbPosePipeline.from_pretrained(bundled_model(name)) for _ in range(2))
    teach(pipe.denoiser, size=0.01)
    pipe.save_lora_weights(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 1_000_000
    other.load_lora_weights(tmp_path)
    assert torch.equal(run(other, num_hypotheses=1), run(pipe, num_hypotheses=1))
    half = ProbPosePipeline.from_pretrained(bundled_model(name), dtype=torch.float16)
    half.load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make("frame"), r"for MixSTEModel\(.*but this is FrameTransformerModel\("),
        (lambda: mixste_pipeline(model={"width": 32}), r"width=16.*but this is MixSTEModel\(.*width=32"),
        (lambda: mixste_pipeline(model={"depth": 2}), r"depth=1.*but this is MixSTEModel\(.*depth=2"),
    ],
)
def test_adapters_of_other_models(other, message, tmp_path):
    adapted().save_lora_weights(tmp_path)
    pipe = other()
    expected = run(pipe)
    for check_base in (True, False):
        with pytest.raises(ValueError, match=message):
            pipe.load_lora_weights(tmp_path, check_base=check_base)
    assert pipe.get_list_adapters() == {} and torch.equal(run(pipe), expected)


def test_adapters_of_other_weights(tmp_path):
    adapted().save_lora_weights(tmp_path)
    pipe = make()
    with torch.no_grad():
        for parameter in pipe.denoiser.parameters():
            parameter *= 1.05
    with pytest.raises(ValueError, match=r"adapter for another MixSTEModel.*: \d+ of 32 weights.*check_base=False"):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {}
    pipe.load_lora_weights(tmp_path, check_base=False)
    assert pipe.get_active_adapters() == ["default_0"]


def test_files_of_other_programs(tmp_path):
    """Without a header: the scale is one, and nothing is known of the model."""
    pipe = adapted()
    pipe.save_lora_weights(tmp_path)
    save_file(load_file(tmp_path / FILE), tmp_path / "plain.safetensors")
    fresh = make()
    fresh.load_lora_weights(tmp_path / "plain.safetensors")
    assert torch.equal(run(fresh), run(pipe))
    torch.save(load_file(tmp_path / FILE), tmp_path / "pickled.bin")
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        make().load_lora_weights(tmp_path, weight_name="pickled.bin")


def test_everything_else_works_without_peft(tmp_path):
    adapted().save_lora_weights(tmp_path / "adapter")
    make().save_pretrained(tmp_path / "model")
    code = f"""
import sys
sys.modules["peft"] = None  # what is not installed
from probpose import ProbPosePipeline
pipe = ProbPosePipeline.from_pretrained({str(tmp_path / "model")!r})
pipe.save_pretrained({str(tmp_path / "again")!r})
assert pipe.get_list_adapters() == {{}} and pipe.get_active_adapters() == []
pipe.unload_lora_weights()
pipe.load_lora_weights({str(tmp_path / "adapter")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ImportError: adapters need 🤗 PEFT: pip install probpose[adapt]" in done.stderr.splitlines()[-1]
    assert (tmp_path / "again" / "model_index.json").is_file()
