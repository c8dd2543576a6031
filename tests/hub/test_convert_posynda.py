"""PoSynDA's checkpoints: D3DP's network with adapters beside its attention layers, merged or not, and the network that follows it."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from probpose.hub import convert_original, load_original_state_dict
from probpose.hub.convert_posynda import _updates
from probpose.models import MixSTEModel, PoseRefiner

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "d3dp.safetensors"
PARITY = GOLDEN.parents[3] / "shared" / "parity" / "posynda"
PREFIX = "module.pose_estimator."
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


def is_adapted(key):
    return ".attn." in key


@pytest.fixture(scope="module")
def base():
    """D3DP's network, without adapters."""
    return {k.removeprefix("checkpoint/"): v for k, v in load_file(GOLDEN).items() if k.startswith("checkpoint/")}


@pytest.fixture(scope="module")
def weights(base):
    """As PoSynDA has it: each attention layer within another, beside the two factors of its update."""
    generator = torch.Generator().manual_seed(0)
    out = {}
    for key, value in base.items():
        layer, _, kind = key.rpartition(".")
        out[f"{layer}.linear.{kind}" if is_adapted(key) else key] = value
        if is_adapted(key) and kind == "weight":
            out[f"{layer}.lora_down.weight"] = 0.25 * torch.randn(3, value.shape[1], generator=generator)
            out[f"{layer}.lora_up.weight"] = 0.1 * torch.randn(value.shape[0], 3, generator=generator)
    return out


def merged(weights, scale=1.0, linear=True):
    """Plain weights W + scale · U S D, named as those of adapted layers or not."""
    out = {key: value for key, value in weights.items() if "lora_" not in key and "selector" not in key}
    for key in weights:
        if key.endswith(".lora_up.weight"):
            layer = key.removesuffix(".lora_up.weight")
            between = weights.get(f"{layer}.selector.weight", torch.eye(3))
            update = weights[key] @ between @ weights[f"{layer}.lora_down.weight"]
            out[f"{layer}.linear.weight"] = out[f"{layer}.linear.weight"] + scale * update
    return out if linear else {key.replace(".linear.", "."): value for key, value in out.items()}


@torch.no_grad()
def answer(model):
    generator = torch.Generator().manual_seed(1)
    return model(torch.randn(1, 9, 17, 2, generator=generator), torch.randn(1, 2, 9, 17, 3, generator=generator), 99).sample


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_the_adapter_is_attached(weights, base):
    model = convert_original("posynda", weights)
    assert (type(model), model.training, model.adapters, model.active_adapters()) == (MixSTEModel, False, ["posynda"], ["posynda"])
    assert (model.config.num_frames, model.config.width, model.config.depth, model.config.skeleton) == (9, 32, 3, "h36m_17")
    assert (model.peft_config["posynda"].r, model.peft_config["posynda"].lora_alpha) == (3, 3)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"{kind}_blocks.{layer}.attn.{part}.lora_{side}.posynda.weight"
        for kind in ("spatial", "temporal") for layer in range(3) for part in ("qkv", "proj") for side in "AB"
    }  # fmt: skip
    adapted, plain = answer(model), answer(convert_original("d3dp", base))
    assert (adapted - plain).abs().max() > 1e-3
    close(adapted, answer(convert_original("d3dp", merged(weights, linear=False))))
    model.fuse_lora()
    close(answer(model), adapted)
    model.disable_adapters()
    close(answer(model), plain)
    model.unload_lora()
    close(model.state_dict(), convert_original("d3dp", base).state_dict(), atol=1e-6)


def test_scale(weights):
    model = convert_original("posynda", weights, lora_scale=0.7)
    close(answer(model), answer(convert_original("d3dp", merged(weights, 0.7, linear=False))))
    with pytest.raises(ValueError, match="scale must be a finite number, got 'much'"):
        convert_original("posynda", weights, lora_scale="much")


def test_selectors(weights):
    """A diagonal matrix between the factors scales each of the ranks."""
    weights = dict(weights)
    for key in [key for key in weights if key.endswith(".lora_up.weight")]:
        weights[key.replace("lora_up", "selector")] = torch.diag(torch.tensor([0.5, -2.0, 0.0]))
    model = convert_original("posynda", weights, lora_scale=0.7)
    close(answer(model), answer(convert_original("d3dp", merged(weights, 0.7, linear=False))))
    layer = f"{PREFIX}STEblocks.0.attn.qkv"
    expected = weights[f"{layer}.lora_up.weight"] * torch.tensor([0.5, -2.0, 0.0])
    assert torch.equal(model.spatial_blocks[0].attn.qkv.lora_B["posynda"].weight, expected)


def test_files_without_adapters(weights, base):
    for layout in (base, {k: v for k, v in weights.items() if "lora_" not in k}):
        model = convert_original("posynda", layout)
        assert not model.adapters and torch.equal(answer(model), answer(convert_original("d3dp", base)))
    for linear in (True, False):
        model = convert_original("posynda", merged(weights, linear=linear))
        assert not model.adapters
        close(answer(model), answer(convert_original("posynda", weights)))


def test_other_skeletons(weights):
    config = convert_original("posynda", weights, skeleton="mpi_inf_3dhp_17").config
    assert (config.skeleton, config.root_index) == ("mpi_inf_3dhp_17", 14)


def spoiled(weights, key, value):
    return weights | {f"{PREFIX}STEblocks.0.attn.qkv.{key}": value}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if "STEblocks.0.attn.qkv.lora_up" not in k}, r"STEblocks\.0\.attn\.qkv\.lora_up.*NoneType"),
        (lambda w: spoiled(w, "lora_up.weight", torch.zeros(5)), r"lora_up\.weight must be a matrix, got \(5,\)"),
        (lambda w: spoiled(w, "lora_down.weight", "text"), r"lora_down\.weight must be a matrix, got str"),
        (lambda w: spoiled(w, "lora_down.weight", torch.zeros(3, 31)), r"qkv\.lora_A\.weight is \(3, 31\), not \(3, 32\)"),
        (lambda w: spoiled(w, "selector.weight", torch.zeros(3)), r"selector\.weight must have shape \(3, 3\)"),
        (lambda w: w | {f"{PREFIX}head.0.lora_down.weight": torch.zeros(3, 32)}, r"head\.0\.lora_up"),
        (lambda w: {k: v for k, v in w.items() if "head.1.bias" not in k}, r"missing: head\.1\.bias"),
        (lambda w: w | {f"{PREFIX}extra": torch.zeros(1)}, "unexpected: extra"),
        (lambda w: {}, "no D3DP or MixSTE weights"),
    ],
)
def test_misfits_are_named(weights, spoil, message):
    with pytest.raises(ValueError, match=message):
        convert_original("posynda", spoil(weights))


# The refiner


class Reference(nn.Module):
    """The published network out of torch's own parts; millimetres."""

    def __init__(self, width=8, heads=2, hidden=12, depth=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.5, batch_first=True)
        self.encoder, self.decoder = nn.Linear(3, width), nn.Linear(width, 3)
        self.transformer_encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, pose, places):
        width = self.encoder.out_features
        frequencies = torch.tensor([10000 ** (-2 * i / width) for i in range(width // 2)])
        table = torch.zeros(len(pose), 1, width)
        table[:, 0, 0::2], table[:, 0, 1::2] = torch.sin(places[:, None] * frequencies), torch.cos(places[:, None] * frequencies)
        mask = torch.full((pose.shape[1],) * 2, -torch.inf).triu(1)
        return self.decoder(self.transformer_encoder(self.encoder(pose) * math.sqrt(width) + table, mask=mask))


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return Reference().eval()


@pytest.fixture
def refiner_weights(reference):
    weights = {f"module.{name}": value for name, value in reference.state_dict().items()}
    return weights | {"module.pos_encoder.pe": torch.zeros(50, 1, 8)}


@pytest.mark.parametrize("legacy", [False, True])
@torch.no_grad()
def test_refiner(reference, refiner_weights, legacy):
    model = convert_original("posynda_refiner", refiner_weights, num_attention_heads=2, legacy_batch_position=legacy)
    assert (type(model), model.training) == (PoseRefiner, False)
    assert (model.config.width, model.config.depth, model.config.hidden_dim, model.config.dropout) == (8, 2, 12, 0.5)
    pose = 0.3 * torch.randn(5, 17, 3, generator=torch.Generator().manual_seed(2))
    expected = reference(1000 * pose, torch.arange(5.0) if legacy else torch.zeros(5))
    close(1000 * model(pose).sample, expected, atol=1e-4)
    close(model(pose.reshape(1, 5, 17, 3), return_dict=False)[0][0], model(pose).sample, atol=1e-7)


@torch.no_grad()
def test_a_refined_pose_depends_on_no_other_and_no_joint_on_later_ones(refiner_weights):
    model = convert_original("posynda_refiner", refiner_weights, num_attention_heads=2)
    pose = 0.3 * torch.randn(4, 17, 3, generator=torch.Generator().manual_seed(2))
    out = model(pose).sample
    close(model(pose[2:3]).sample, out[2:3], atol=1e-7)
    moved = pose.clone()
    moved[:, 9] += 0.1
    differing = (model(moved).sample - out).abs().amax((0, 2)) > 1e-6
    assert not differing[:9].any() and differing[9:].all()
    legacy = convert_original("posynda_refiner", refiner_weights, num_attention_heads=2, legacy_batch_position=True)
    close(legacy(pose[:1]).sample, out[:1], atol=1e-7)
    assert (legacy(pose[2:3]).sample - legacy(pose).sample[2:3]).abs().max() > 1e-6


def test_bad_refiners(refiner_weights):
    with pytest.raises(ValueError, match=r"no PoSynDA refiner weights.*encoder\.weight"):
        convert_original("posynda_refiner", {})
    with pytest.raises(ValueError, match=r"missing: decoder\.bias"):
        convert_original("posynda_refiner", {k: v for k, v in refiner_weights.items() if "decoder.bias" not in k}, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"pose must have shape \(\.\.\., joints, 3\), got \(17, 2\)"):
        PoseRefiner(width=8, depth=1, num_attention_heads=2)(torch.zeros(17, 2))


def test_refiners_are_saved(tmp_path):
    model = PoseRefiner(width=8, depth=1, num_attention_heads=2, hidden_dim=4).eval()
    model.save_pretrained(tmp_path)
    pose = torch.randn(2, 17, 3)
    assert torch.equal(PoseRefiner.from_pretrained(tmp_path)(pose).sample, model(pose).sample)


# Whole checkpoints


def test_both_networks_out_of_one_checkpoint(weights, refiner_weights, tmp_path):
    checkpoint = {"epoch": 3, "lr": 1e-4, "optimizer": {}, "model_pos": weights, "model_weight": refiner_weights}
    torch.save(checkpoint, tmp_path / "best_epoch.bin")
    flat = weights | {f"model_weight.{name}": value for name, value in refiner_weights.items()}
    save_file(flat, tmp_path / "flat.safetensors")
    for source in (checkpoint, flat, *(load_original_state_dict(tmp_path / name) for name in ("best_epoch.bin", "flat.safetensors"))):
        denoiser = convert_original("posynda", source)
        assert denoiser.adapters == ["posynda"] and torch.equal(answer(denoiser), answer(convert_original("posynda", weights)))
        refiner = convert_original("posynda_refiner", source, num_attention_heads=2)
        assert torch.equal(refiner.proj_out.weight, refiner_weights["module.decoder.weight"])
    with pytest.raises(ValueError, match=r"unexpected: .*lora_down"):
        convert_original("d3dp", checkpoint)


def test_command_line(weights, refiner_weights, tmp_path, run_command):
    from probpose import ProbPosePipeline

    save_file(weights | {f"model_weight.{name}": value for name, value in refiner_weights.items()}, tmp_path / "both.safetensors")
    out = tmp_path / "out"
    code, said, err = run_command("convert", "posynda", tmp_path / "both.safetensors", out, "--set", "skeleton=mpi_inf_3dhp_17")
    assert code == 0 and "MixSTEModel" in said and "load_lora_weights" in said, err
    pipe = ProbPosePipeline.from_pretrained(out)
    assert pipe.get_list_adapters() == {} and pipe.root_index == 14
    pipe.load_lora_weights(out)
    expected = convert_original("posynda", weights)
    for (_, a), (_, b) in zip(pipe.denoiser.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(a, b)
    close(answer(pipe.denoiser), answer(expected))
    words = (tmp_path / "both.safetensors", tmp_path / "refiner", "--set", "num_attention_heads=2")
    code, said, err = run_command("convert", "posynda_refiner", *words)
    assert code == 0 and "PoseRefiner" in said, err
    assert PoseRefiner.from_pretrained(tmp_path / "refiner").config.num_attention_heads == 2


# Numbers of the original


@pytest.fixture(scope="module")
def parity():
    return load_file(PARITY / "io.safetensors"), load_file(PARITY / "checkpoint.safetensors")


@needs_parity
@torch.no_grad()
def test_original_network(parity):
    io, checkpoint = parity
    model = convert_original("posynda", checkpoint)

    def denoise():
        return model(io["denoise.x2d"], io["denoise.x3d"], io["denoise.t"]).sample

    seen, handles = {}, []
    layers = {"ste0_attn": model.spatial_blocks[0].attn, "ste0_out": model.spatial_blocks[0], "tte0_out": model.temporal_blocks[0]}
    for name, layer in layers.items():
        handles.append(layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out[:20]})))
    close(denoise(), io["denoise.out_lora"], atol=2e-5)
    for name in layers:
        close(seen[name], io[f"denoise.{name}"], atol=2e-5)
    for handle in handles:
        handle.remove()
    close(model.time_embedding(io["denoise.t"]), io["denoise.time_embed"], atol=2e-5)
    model.fuse_lora()
    close(denoise(), io["denoise.out_merged"], atol=2e-5)
    close(model.spatial_blocks[0].attn.qkv.weight, io["denoise.merged_ste0_qkv_weight"], atol=1e-6)
    model.disable_adapters()
    close(denoise(), io["denoise.out_base"], atol=2e-5)


@needs_parity
@torch.no_grad()
def test_original_adapted_layer(parity):
    """One layer with a selector and a scale, through the same door as a whole network."""
    io, _ = parity
    down, up, selector = io["lora.down"], io["lora.up"], torch.diag(io["lora.diag"])
    factors = _updates("layer", {"lora_down": down, "lora_up": up, "selector": selector})
    model = MixSTEModel(num_frames=4, width=12, depth=1, num_attention_heads=1)
    model.proj_out = nn.Linear(12, 20)
    model.proj_out.weight.copy_(io["lora.weight"])
    model.proj_out.bias.copy_(io["lora.bias"])
    model.load_lora_adapter({f"proj_out.{name}": tensor for name, tensor in factors.items()}, scale=0.7)
    close(model.proj_out(io["lora.x"]), io["lora.out"])
    model.fuse_lora()
    close(model.proj_out(io["lora.x"]), io["lora.out"])


@needs_parity
@torch.no_grad()
def test_original_refiner(parity):
    io, checkpoint = parity
    model = convert_original("posynda_refiner", checkpoint, num_attention_heads=4, legacy_batch_position=True)
    close(1000 * model(io["refiner.x"] / 1000).sample, io["refiner.out"], atol=2e-4)
