"""The joint-token network: numbers of the original D3DP release, and what must hold for any weights."""

import json
from pathlib import Path

import diffusers.models.attention_dispatch as dispatch
import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file

from probpose.hub import convert_original
from probpose.models import FrameTransformerModel, MixSTEModel, MotionPriorModel
from probpose.models import attention as attention_module
from probpose.models.embeddings import timestep_sinusoid

TESTS = Path(__file__).resolve().parents[1]
PARITY = TESTS.parents[1] / "shared" / "parity" / "d3dp"
SMALL = {"num_frames": 4, "num_joints": 5, "width": 16, "depth": 2, "num_attention_heads": 2}
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


@pytest.fixture(scope="module")
def golden():
    return load_file(TESTS / "golden" / "d3dp.safetensors")


@pytest.fixture(scope="module")
def original(golden):
    prefix = "checkpoint/"
    return convert_original("d3dp", {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})


@pytest.fixture(scope="module")
def parity():
    return load_file(PARITY / "io.safetensors"), json.loads((PARITY / "config.json").read_text())


def small_model(**config):
    torch.manual_seed(0)
    model = MixSTEModel(**{**SMALL, **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 4, 5, 2), torch.randn(2, 3, 4, 5, 3), torch.tensor([900, 7])


# Numbers of the original


def test_golden_output(golden, original):
    with torch.no_grad():
        out = original(golden["keypoints_2d"], golden["denoiser/noisy_pose"], golden["denoiser/t"]).sample
    torch.testing.assert_close(out, golden["denoiser/out"], atol=5e-5, rtol=0)


@needs_parity
@pytest.mark.parametrize("case", [0, 2, 4])
def test_original_outputs(original, parity, case):
    tensors, _ = parity
    with torch.no_grad():
        out = original(tensors["inputs/keypoints_2d"], tensors["denoiser/noisy_pose"], tensors[f"denoiser/t_{case}"]).sample
    torch.testing.assert_close(out, tensors[f"denoiser/out_{case}"], atol=5e-5, rtol=0)


@needs_parity
def test_original_intermediate_values(original, parity):
    tensors, _ = parity
    inputs, outputs = {}, {}

    def record(module, args, output):
        inputs.setdefault(module, []).append(args[0])
        outputs.setdefault(module, []).append(output)

    spatial, temporal = original.spatial_norm, original.temporal_norm
    modules = (original.spatial_blocks[0], original.temporal_blocks[0], spatial, temporal, original.norm_out)
    hooks = [module.register_forward_hook(record) for module in modules]
    with torch.no_grad():
        original(tensors["inputs/keypoints_2d"], tensors["denoiser/noisy_pose"], tensors["denoiser/t_4"])
    for hook in hooks:
        hook.remove()
    seen = {"ste0_in": inputs[modules[0]][0], "tte0_in": inputs[modules[1]][0], "head_norm": outputs[modules[4]][0]}
    for layer in range(3):
        seen[f"spatial_norm_{layer}"] = outputs[spatial][layer].flatten(0, 1)
        seen[f"temporal_norm_{layer}"] = outputs[temporal][layer].flatten(0, 1)
    assert {key for key in tensors if "case4" in key} == {f"denoiser/case4/{name}" for name in seen}
    for name, value in seen.items():
        torch.testing.assert_close(value, tensors[f"denoiser/case4/{name}"], atol=5e-5, rtol=0)


@needs_parity
def test_original_without_hypotheses_axis(original, parity):
    tensors, _ = parity
    with torch.no_grad():
        pose = tensors["denoiser/noisy_pose"][:, 0]
        out = original(tensors["inputs/keypoints_2d"], pose, tensors["denoiser/nohyp_t"]).sample
        prediction = original(tensors["inputs/keypoints_2d"], tensors["train/x_t"], tensors["train/t"]).sample
    torch.testing.assert_close(out, tensors["denoiser/nohyp_out"], atol=5e-5, rtol=0)
    torch.testing.assert_close(prediction, tensors["train/pred"], atol=5e-5, rtol=0)
    loss = (prediction - tensors["inputs/pose_3d_gt"]).norm(dim=-1).mean()
    torch.testing.assert_close(loss, tensors["train/loss"], atol=1e-5, rtol=0)


@needs_parity
def test_original_time_embedding(original, parity):
    tensors, _ = parity
    timesteps = torch.tensor([0, 1, 199, 499, 999])
    sinusoid = timestep_sinusoid(timesteps, 32)
    torch.testing.assert_close(sinusoid, tensors["denoiser/time_sinusoid"], atol=5e-5, rtol=0)
    with torch.no_grad():
        embedding = original.time_embedding(timesteps)
    torch.testing.assert_close(embedding, tensors["denoiser/time_embedding"], atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "count"),
    [({}, 34_835_459), ({"in_channels": 2, "use_timestep": False}, 33_783_811)],
    ids=["denoiser", "lifter"],
)
def test_published_size(config, count):
    with torch.device("meta"):
        assert MixSTEModel(**config).num_parameters() == count


# Properties


def test_hypotheses_are_independent(inputs):
    keypoints, pose, t = inputs
    model = small_model()
    together = model(keypoints, pose, t).sample
    assert together.shape == pose.shape
    for k in range(pose.shape[1]):
        torch.testing.assert_close(together[:, k], model(keypoints, pose[:, k], t).sample, atol=1e-5, rtol=1e-5)


def test_windows_are_independent(inputs):
    keypoints, pose, t = inputs
    model = small_model()
    together = model(keypoints, pose, t).sample
    for b in range(2):
        alone = model(keypoints[b : b + 1], pose[b : b + 1], int(t[b])).sample
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-5, rtol=1e-5)


def test_confidence_changes_nothing(inputs):
    model = small_model()
    assert torch.equal(model(*inputs).sample, model(*inputs, confidence=torch.zeros(2, 4, 5)).sample)


def test_every_parameter_gets_a_gradient(inputs):
    model = small_model().train()
    model(*inputs).sample.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_gradient_checkpointing_keeps_the_gradients(inputs):
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(*inputs).sample.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_drop_path_only_while_training(inputs):
    model = small_model(drop_path=0.9)
    assert torch.equal(model(*inputs).sample, model(*inputs).sample)
    model.train()
    assert not torch.equal(model(*inputs).sample, model(*inputs).sample)


def test_lifter(inputs):
    keypoints, pose, _ = inputs
    model = small_model(in_channels=2, use_timestep=False)
    assert model(keypoints).sample.shape == (2, 4, 5, 3)
    assert model(keypoints, return_dict=False)[0].shape == (2, 4, 5, 3)
    with pytest.raises(ValueError, match="takes no noisy_pose"):
        model(keypoints, pose)
    with pytest.raises(ValueError, match="takes no timestep"):
        model(keypoints, timestep=3)


def test_unit_scale(inputs):
    keypoints, pose, t = inputs
    metres = small_model()(keypoints, pose, t).sample
    millimetres = small_model(unit_scale=1000.0)(keypoints, 1000 * pose, t).sample
    torch.testing.assert_close(millimetres, 1000 * metres, atol=1e-2, rtol=1e-5)


def test_half_precision(inputs):
    keypoints, pose, t = inputs
    model = small_model()
    exact = model(keypoints, pose, t).sample
    rough = model.to(torch.bfloat16)(keypoints, pose, t).sample
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_save_and_load(tmp_path, inputs):
    model = small_model(skeleton="mpi_inf_3dhp_17", canonical_camera=[2.0, 2.0, 0.0, 0.0], fps=25)
    model.save_pretrained(tmp_path)
    loaded = MixSTEModel.from_pretrained(tmp_path)
    assert torch.equal(model(*inputs).sample, loaded(*inputs).sample)
    assert (loaded.config.skeleton, loaded.config.fps, loaded.training) == ("mpi_inf_3dhp_17", 25, False)


def test_public_module():
    assert issubclass(MixSTEModel, ModelMixin)
    assert MixSTEModel.__module__ == "probpose.models"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, p, t: (k, None, t), "requires noisy_pose"),
        (lambda k, p, t: (k, p, None), "requires a timestep"),
        (
            lambda k, p, t: (k[:, :3], p[:, :, :3], t),
            r"keypoints_2d must have shape \(2, 4, 5, 2\), got \(2, 3, 5, 2\)",
        ),
        (lambda k, p, t: (k[:, :, :4], p, t), "keypoints_2d must have shape"),
        (lambda k, p, t: (k, p[:, :, :3], t), r"noisy_pose must have shape \(2, 4, 5, 3\).*got \(2, 3, 3, 5, 3\)"),
        (lambda k, p, t: (k, p[:1], t), "noisy_pose must have shape"),
        (lambda k, p, t: (k, p[0, 0], t), "noisy_pose must have shape"),
        (lambda k, p, t: (k, p, torch.tensor([1, 2, 3])), r"timestep must be an integer or have shape \(2,\)"),
    ],
)
def test_bad_inputs(inputs, change, message):
    with pytest.raises(ValueError, match=message):
        small_model()(*change(*inputs))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 3}, "in_channels must be 5"),
        ({"in_channels": 2}, "use_timestep must be False"),
        ({"root_index": 5}, "root_index must be one of 5 joints"),
        ({"num_attention_heads": 3}, "divisible by the number of heads"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        MixSTEModel(**{**SMALL, **config})


# Attention backends, for all backbones of tokens


def models_and_inputs():
    keypoints, pose = torch.randn(2, 4, 5, 2), torch.randn(2, 3, 4, 5, 3)
    size = {"num_frames": 4, "num_joints": 5, "width": 16, "depth": 1, "num_attention_heads": 2}
    models = [(model, (keypoints, pose, 500)) for model in (small_model(), FrameTransformerModel(**size).eval())]
    return models + [(MotionPriorModel(**size, norm_first=first).eval(), (None, pose, 30)) for first in (False, True)]


def backends_of(model):
    return {m.processor._attention_backend for m in model.modules() if hasattr(m, "processor")}


@pytest.mark.parametrize("limit", [1, 7, 24, 10_000])
def test_large_batches_are_cut_for_fused_kernels(monkeypatch, limit):
    for model, arguments in models_and_inputs():
        whole = model(*arguments).sample
        monkeypatch.setattr(attention_module, "MAX_ATTENTION_BATCH", limit)
        torch.testing.assert_close(model(*arguments).sample, whole, atol=1e-6, rtol=1e-6)
        monkeypatch.undo()


def test_attention_backend_is_set_and_reset():
    default, _ = dispatch._AttentionBackendRegistry.get_active_backend()
    for model, arguments in models_and_inputs():
        expected = model(*arguments).sample
        model.set_attention_backend("_native_math")
        assert backends_of(model) == {"_native_math"}
        assert dispatch._AttentionBackendRegistry.get_active_backend()[0] == default  # other models keep theirs
        torch.testing.assert_close(model(*arguments).sample, expected, atol=1e-5, rtol=1e-5)
        model.reset_attention_backend()
        assert backends_of(model) == {None}


def test_unknown_attention_backend():
    for model, _ in models_and_inputs():
        with pytest.raises(ValueError, match=r"must be one of .*native.*, got 'fastest'"):
            model.set_attention_backend("fastest")


def test_xformers_not_installed(monkeypatch):
    monkeypatch.setattr(dispatch, "_CAN_USE_XFORMERS_ATTN", False)
    for model, _ in models_and_inputs():
        with pytest.raises(RuntimeError, match=r"'xformers' cannot run here \(torch.float32 on cpu\).*CUDA device"):
            model.set_attention_backend("xformers")


def test_xformers_without_a_gpu(monkeypatch):
    class Operators:
        @staticmethod
        def memory_efficient_attention(*args, **kwargs):
            raise NotImplementedError("No operator found for this attention:\nfa2F is not supported because: ...")

    monkeypatch.setattr(dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    monkeypatch.setattr(dispatch, "xops", Operators)
    for model, arguments in models_and_inputs():
        model.set_attention_backend("native")
        with pytest.raises(RuntimeError, match="'xformers' cannot run here") as caught:
            model.set_attention_backend("xformers")
        assert len(str(caught.value).splitlines()) == 1
        assert backends_of(model) == {"native"}
        model(*arguments)
