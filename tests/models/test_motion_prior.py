"""The motion prior: numbers of the original Platypose release, torch's own encoder, and what must hold for any weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.hub import convert_original
from probpose.models import MotionPriorModel
from probpose.models.motion_prior import sinusoids

TESTS = Path(__file__).resolve().parents[1]
# Outputs of the original implementation on small random weights, kept under the original's names.
GOLDEN = TESTS / "golden" / "platypose.safetensors"
PARITY = TESTS.parents[1] / "shared" / "parity" / "platypose" / "io.safetensors"
SMALL = {"num_frames": 8, "num_joints": 5, "width": 16, "depth": 2, "num_attention_heads": 2}
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
both_norms = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def weights(golden):
    return {k.removeprefix("checkpoint/"): v for k, v in golden.items() if k.startswith("checkpoint/")}


@pytest.fixture(scope="module")
def original(weights):
    return convert_original("platypose", weights)


def small_model(**config):
    torch.manual_seed(0)
    model = MotionPriorModel(**{**SMALL, **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 3, 6, 5, 3), torch.tensor([38, 7])


def close(ours, expected, atol=1e-5):
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


# Numbers of the original


def poses(channels):
    return channels.unflatten(-1, (17, 3))


@torch.no_grad()
@pytest.mark.parametrize("case", ["t1", "t5"])
def test_original_outputs(original, golden, case):
    sample = original(None, poses(golden[f"forward.{case}.x"]), golden[f"forward.{case}.timestep"]).sample
    close(sample, poses(golden[f"forward.{case}.out"]))


@torch.no_grad()
def test_original_intermediate_values(original, golden):
    seen = {}
    original_modules = {"time_token": original.time_embedding, **{f"layer{i}": block for i, block in enumerate(original.blocks)}}
    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: output, f"{name}_in": args[0]}))
        for name, module in original_modules.items()
    ]
    original(None, poses(golden["forward.t5.x"]), golden["forward.t5.timestep"])
    for hook in hooks:
        hook.remove()
    close(seen["time_token"][None], golden["forward.t5.time_token"])
    close(seen["layer0_in"].transpose(0, 1), golden["forward.t5.tokens"])
    for layer in range(3):
        close(seen[f"layer{layer}"].transpose(0, 1), golden[f"forward.t5.layer{layer}"])


@torch.no_grad()
def test_original_prediction_within_a_step(original, golden):
    timestep = golden["tables.timestep_map"][golden["step.guided.index"]]
    close(original(None, poses(golden["step.guided.x_t"]), timestep).sample, poses(golden["step.guided.x0_before"]))


@needs_parity
@torch.no_grad()
def test_original_output_of_many_frames(original):
    parity = load_file(PARITY)
    close(original(None, poses(parity["forward.t33.x"]), parity["forward.t33.timestep"]).sample, poses(parity["forward.t33.out"]))
    close(sinusoids(torch.arange(64), 32), parity["forward.pos_table_head"])


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 7, 16, 30])
def test_the_layers_are_torchs_own(original, weights, frames):
    """The same weights in `torch.nn.TransformerEncoder`, whatever the number of frames."""
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    prefix = "seqTransEncoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    pose, timestep = torch.randn(2, frames, 17, 3, generator=torch.Generator().manual_seed(frames)), torch.tensor([0, 49])
    tokens = torch.cat([original.time_embedding(sinusoids(timestep, 32))[:, None], original.pose_embedding(pose.flatten(-2))], dim=1)
    tokens = encoder(tokens + sinusoids(torch.arange(frames + 1), 32))
    close(original(None, pose, timestep).sample, poses(original.proj_out(tokens[:, 1:])))


def test_sinusoids():
    position, channel = np.arange(300)[:, None], np.arange(10)[None]
    angle = position / 10000 ** (channel // 2 * 2 / 10)
    expected = np.where(channel % 2, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(sinusoids(torch.arange(300), 10).numpy(), expected, atol=1e-4)


def test_published_size():
    with torch.device("meta"):
        assert MotionPriorModel().num_parameters() == 17_400_371


# Properties


@both_norms
@torch.no_grad()
def test_hypotheses_are_windows_of_their_own(inputs, norm_first):
    pose, timestep = inputs
    model = small_model(norm_first=norm_first)
    together = model(None, pose, timestep).sample
    assert together.shape == pose.shape
    close(together, model(None, pose.flatten(0, 1), timestep.repeat_interleave(3)).sample.unflatten(0, (2, 3)))


@both_norms
@torch.no_grad()
def test_every_window_has_a_timestep(inputs, norm_first):
    pose, timestep = inputs
    model = small_model(norm_first=norm_first)
    together = model(None, pose, timestep).sample
    for window in range(2):
        close(together[window], model(None, pose[window], int(timestep[window])).sample)
    assert not torch.allclose(together[1], model(None, pose[1], 38).sample, atol=1e-3)
    for same in (7, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7])):
        assert torch.equal(model(None, pose, same).sample, model(None, pose, torch.tensor([7, 7])).sample)


@both_norms
@torch.no_grad()
def test_any_number_of_frames(norm_first):
    model = small_model(norm_first=norm_first, max_length=31)
    for frames in range(1, 31):
        sample = model(None, torch.randn(2, frames, 5, 3), 3).sample
        assert sample.shape == (2, frames, 5, 3) and sample.isfinite().all()
    with pytest.raises(ValueError, match=r"with 1\.\.30 frames, got \(2, 31, 5, 3\)"):
        model(None, torch.randn(2, 31, 5, 3), 3)


@both_norms
@torch.no_grad()
def test_order_of_frames_matters(inputs, norm_first):
    pose, timestep = inputs
    model = small_model(norm_first=norm_first)
    assert not torch.allclose(model(None, pose.flip(2), timestep).sample, model(None, pose, timestep).sample.flip(2), atol=1e-3)


@torch.no_grad()
def test_pre_norm_layers_know_only_distances_in_time(inputs):
    """Rotary positions: a block shifts with its frames."""
    from probpose.models.embeddings import rotary_table

    block, tokens = small_model(norm_first=True).blocks[0], torch.randn(2, 4, 16)
    table = rotary_table(20, 8, tokens.device)
    early, late = (block(tokens, [t[start : start + 4] for t in table]) for start in (0, 16))
    close(early, late)


@both_norms
def test_every_parameter_gets_a_gradient(inputs, norm_first):
    model = small_model(norm_first=norm_first).train()
    model(None, *inputs).sample.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_dropout_only_while_training(inputs):
    model = small_model(dropout=0.3)
    assert torch.equal(model(None, *inputs).sample, model(None, *inputs).sample)
    assert torch.equal(model(None, *inputs).sample, small_model(dropout=0.0).train()(None, *inputs).sample)
    model.train()
    assert not torch.equal(model(None, *inputs).sample, model(None, *inputs).sample)
    still = small_model(norm_first=True, dropout=0.3)
    assert torch.equal(still.train()(None, *inputs).sample, still.eval()(None, *inputs).sample)


@torch.no_grad()
def test_dropout_drops_tokens_attention_and_both_layers(inputs):
    """As torch's encoder does: each place alone makes training random."""
    pose, timestep = inputs
    block = "blocks.0."
    for place in ("token_dropout", f"{block}attn", f"{block}dropout", f"{block}mlp.dropout"):
        model = small_model(dropout=0.0).train()
        module = model.get_submodule(place)
        setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.5)
        assert not torch.equal(model(None, pose, timestep).sample, model(None, pose, timestep).sample), place


# Saving, precision


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_memory", [True, False])
def test_original_survives_saving(original, golden, tmp_path, dtype, low_memory):
    arguments = (None, poses(golden["forward.t5.x"]), golden["forward.t5.timestep"])
    original.save_pretrained(tmp_path)
    loaded = MotionPriorModel.from_pretrained(tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_memory)
    cast = MotionPriorModel(**original.config).eval()
    cast.load_state_dict(original.state_dict())
    sample = loaded(*arguments).sample
    assert sample.dtype == dtype and torch.equal(sample, cast.to(dtype)(*arguments).sample)
    close(sample.float(), original(*arguments).sample, atol=0 if dtype == torch.float32 else 0.1)


@both_norms
@torch.no_grad()
def test_half_precision_files(inputs, tmp_path, norm_first):
    config = {"axes": "camera", "trajectory": "relative", "max_length": 100, "dropout": 0.2, "skeleton": "humaneva_15", "fps": 25}
    model = small_model(norm_first=norm_first, **config)
    expected = model(None, *inputs).sample
    model.half().save_pretrained(tmp_path)
    assert {w.dtype for w in load_file(tmp_path / "diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    loaded = MotionPriorModel.from_pretrained(tmp_path)
    assert {k: loaded.config[k] for k in (*SMALL, *config, "norm_first")} == {**SMALL, **config, "norm_first": norm_first}
    assert (loaded.dtype, loaded.training) == (torch.float32, False)
    close(loaded(None, *inputs).sample, expected, atol=2e-2)


def test_public_module():
    assert MotionPriorModel.__module__ == "probpose.models"


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda p, t: {"timestep": t}, "cannot lift: noisy_pose and timestep are required"),
        (lambda p, t: {"keypoints_2d": p[:, 0, ..., :2]}, "cannot lift"),
        (lambda p, t: {"noisy_pose": p}, "cannot lift"),
        (
            lambda p, t: {"keypoints_2d": p[:, 0, ..., :2], "noisy_pose": p, "timestep": t},
            "sees no 2D: keypoints_2d and conf.* must be",
        ),
        (lambda p, t: {"confidence": p[:, 0, ..., 0], "noisy_pose": p, "timestep": t}, "sees no 2D"),
        (lambda p, t: {"noisy_pose": p[0, 0], "timestep": t}, r"\(batch, \[hypotheses,\] frames, 5, 3\).*got \(6, 5, 3\)"),
        (lambda p, t: {"noisy_pose": p.flatten(-2), "timestep": t}, r"frames, 5, 3\).*got \(2, 3, 6, 15\)"),
        (lambda p, t: {"noisy_pose": p[..., :4, :], "timestep": t}, r"frames, 5, 3\).*got \(2, 3, 6, 4, 3\)"),
        (lambda p, t: {"noisy_pose": p[..., :2], "timestep": t}, r"frames, 5, 3\).*got \(2, 3, 6, 5, 2\)"),
        (lambda p, t: {"noisy_pose": p[:, :, :0], "timestep": t}, r"with 1\.\.4999 frames, got \(2, 3, 0, 5, 3\)"),
        (lambda p, t: {"noisy_pose": p, "timestep": torch.tensor([1, 2, 3])}, r"timestep must be one integer or 2, got shape \(3,\)"),
        (lambda p, t: {"noisy_pose": p, "timestep": t[:, None]}, r"timestep must be one integer or 2, got shape \(2, 1\)"),
    ],
)
def test_bad_inputs(inputs, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model()(**arguments(*inputs))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"axes": "z_up"}, r"axes must be one of \('world', 'camera'\), got 'z_up'"),
        ({"trajectory": None}, r"trajectory must be one of \('absolute', 'relative'\), got None"),
        ({"num_frames": 0}, r"num_frames must lie in 1\.\.4999"),
        ({"num_frames": 20, "max_length": 20}, r"num_frames must lie in 1\.\.19 \(max_length - 1\), got 20"),
        ({"width": 15}, "width must be even, got 15"),
        ({"num_attention_heads": 3}, "divisible by the number of heads, got width 16 and 3 heads"),
        ({"num_attention_heads": 16, "norm_first": True}, "width / num_attention_heads must be even, got 16 / 16"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        MotionPriorModel(**{**SMALL, **config})
