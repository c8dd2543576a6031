"""Platypose's checkpoint: a state dict of which a part is never called, and another is computed rather than learned."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probpose.hub import convert_original, load_original_state_dict
from probpose.models import MotionPriorModel
from probpose.models.motion_prior import sinusoids

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "platypose.safetensors"
PARITY = GOLDEN.parents[3] / "shared" / "parity" / "platypose" / "checkpoint.safetensors"
LAYER = "seqTransEncoder.layers.1"
TABLES = ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def weights(golden):
    """Those that the network uses."""
    return {k.removeprefix("checkpoint/"): v for k, v in golden.items() if k.startswith("checkpoint/")}


@pytest.fixture
def published(weights):
    """A whole checkpoint, with a table that is stored three times and an encoder that is never called."""
    table = sinusoids(torch.arange(5000), 32)[:, None]
    encoder = torch.nn.TransformerEncoderLayer(32, 4, 1024).state_dict()
    dead = {"muQuery": torch.zeros(1, 32), "skelEmbedding.bias": torch.zeros(32), "sequence_pos_encoder.pe": table}
    dead |= {f"seqTransEncoder.layers.0.{name}": tensor for name, tensor in encoder.items()}
    return weights | dict.fromkeys(TABLES, table) | {f"skeleton_encoder.{name}": tensor for name, tensor in dead.items()}


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_sizes_are_read_off_the_weights(weights):
    model = convert_original("platypose", weights)
    assert (type(model), model.training, model.dtype) == (MotionPriorModel, False, torch.float32)
    config = model.config
    assert (config.num_joints, config.width, config.depth, config.mlp_ratio) == (17, 32, 3, 2.0)
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in weights.values())


def test_what_the_weights_do_not_tell(weights):
    config = convert_original("platypose", weights).config
    assert (config.num_frames, config.num_attention_heads, config.axes, config.trajectory, config.fps) == (256, 4, "world", "absolute", 50)
    assert (config.norm_first, config.skeleton, config.max_length) == (False, "h36m_17", 5000)
    other = {"num_frames": 30, "num_attention_heads": 8, "axes": "camera", "trajectory": "relative", "fps": None}
    other |= {"skeleton": "mpi_inf_3dhp_17", "max_length": 100, "dropout": 0.0}
    config = convert_original("platypose", weights, **other).config
    assert {name: config[name] for name in other} == other


def test_names(weights):
    """Each tensor of the original alone decides over the one that it should, in the order query, key, value."""
    places = {
        "input_process.poseEmbedding.weight": "pose_embedding.weight",
        "embed_timestep.time_embed.0.bias": "time_embedding.0.bias",
        "embed_timestep.time_embed.2.weight": "time_embedding.2.weight",
        f"{LAYER}.self_attn.in_proj_weight": "blocks.1.attn.qkv.weight",
        f"{LAYER}.self_attn.in_proj_bias": "blocks.1.attn.qkv.bias",
        f"{LAYER}.self_attn.out_proj.weight": "blocks.1.attn.proj.weight",
        f"{LAYER}.linear1.bias": "blocks.1.mlp.fc1.bias",
        f"{LAYER}.linear2.weight": "blocks.1.mlp.fc2.weight",
        f"{LAYER}.norm1.weight": "blocks.1.norm1.weight",
        f"{LAYER}.norm2.bias": "blocks.1.norm2.bias",
        "output_process.poseFinal.weight": "proj_out.weight",
    }
    before = convert_original("platypose", weights).state_dict()
    for original, ours in places.items():
        after = convert_original("platypose", weights | {original: weights[original] + 1}).state_dict()
        assert [name for name in before if not torch.equal(before[name], after[name])] == [ours]
        assert torch.equal(after[ours], weights[original] + 1)


def test_every_layout_gives_the_same_model(weights, published, tmp_path):
    expected = convert_original("platypose", weights)
    torch.save(published, tmp_path / "published.pt")
    layouts = (
        published,
        {f"module.{k}": v for k, v in published.items()},
        {k: v.double() for k, v in published.items()},
        weights | {TABLES[0]: published[TABLES[0]][:300]},
        load_original_state_dict(tmp_path / "published.pt"),
    )
    for layout in layouts:
        assert same_weights(convert_original("platypose", layout), expected)


@pytest.mark.skipif(not PARITY.exists(), reason="the whole checkpoint is not here")
def test_whole_checkpoint(weights):
    assert same_weights(convert_original("platypose", load_file(PARITY)), convert_original("platypose", weights))


def test_any_size():
    """Ratios are inexact: 22 · (15 / 22) is less than 15."""
    torch.manual_seed(0)
    sizes = {"num_joints": 4, "width": 22, "depth": 1, "num_attention_heads": 2}
    model = MotionPriorModel(**sizes, mlp_ratio=15 / 22)
    layer = torch.nn.TransformerEncoderLayer(22, 2, 15)
    weights = {f"seqTransEncoder.layers.0.{name}": tensor for name, tensor in layer.state_dict().items()}
    for original, ours in (("input_process.poseEmbedding", model.pose_embedding), ("output_process.poseFinal", model.proj_out)):
        weights |= {f"{original}.{name}": tensor for name, tensor in ours.state_dict().items()}
    weights |= {f"embed_timestep.time_embed.{name}": tensor for name, tensor in model.time_embedding.state_dict().items()}
    config = convert_original("platypose", weights, num_attention_heads=2).config
    assert {name: config[name] for name in sizes} == sizes


@torch.no_grad()
def test_converted_model_survives_saving(published, golden, tmp_path):
    convert_original("platypose", published).save_pretrained(tmp_path)
    model = MotionPriorModel.from_pretrained(tmp_path)
    sample = model(None, golden["forward.t1.x"].unflatten(-1, (17, 3)), golden["forward.t1.timestep"]).sample
    torch.testing.assert_close(sample.flatten(-2), golden["forward.t1.out"], atol=1e-5, rtol=0)


def without(weights, *keys):
    return {k: v for k, v in weights.items() if k not in keys}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda w: without(w, f"{LAYER}.linear2.bias", "output_process.poseFinal.bias"),
            rf"MotionPriorModel: missing: output_process\.poseFinal\.bias, {LAYER}\.linear2\.bias$",
        ),
        (
            lambda w: without(w, f"{LAYER}.norm1.bias") | {"extra": torch.zeros(1), f"{LAYER}.norm2.bias": torch.zeros(31)},
            rf"missing: {LAYER}\.norm1\.bias; unexpected: extra; wrong shape: {LAYER}\.norm2\.bias is \(31,\), not \(32,\)$",
        ),
        (lambda w: {}, r"no Platypose weights.*: input_process\.poseEmbedding\.weight, seqTransEncoder\.layers\.0\.linear1\.weight$"),
        (lambda w: w | {"input_process.poseEmbedding.weight": torch.zeros(32)}, r"no Platypose weights.*: input_process\.pose\S+$"),
        (
            lambda w: w | {"input_process.poseEmbedding.weight": torch.zeros(32, 52)},
            r"wrong shape: input_process\.poseEmbedding\.weight is \(32, 52\), not \(32, 51\)$",
        ),
        (lambda w: w | {"input_process.poseEmbedding.weight": torch.zeros(31, 51)}, "width must be even, got 31"),
        (lambda w: w | {f"{LAYER}.self_attn.in_proj_bias": "text"}, r"in_proj_bias is str, not \(96,\)$"),
        (lambda w: w | {"seqTransEncoder.layers.4.norm1.bias": torch.zeros(32)}, "missing: .*; unexpected: seqTransEncoder.layers.4.norm1"),
        (lambda w: w | {"other.pe": torch.zeros(5, 1, 32)}, r"unexpected: other\.pe$"),
    ],
)
def test_misfits_are_named(weights, spoil, message):
    with pytest.raises(ValueError, match=message):
        convert_original("platypose", spoil(weights))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table + 0.01, "must be the sinusoids of MotionPriorModel, got a table that differs by 0.01"),
        (lambda table: table.flip(0), ".*got a table that differs by"),
        (lambda table: torch.cat([table[..., ::2], table[..., 1::2]], dim=-1), ".*got a table that differs by"),
        (lambda table: table.clone().index_fill_(0, torch.tensor(7), float("nan")), ".*got a table that differs by nan"),
        (lambda table: table[..., :16], r"must have shape \(length, 1, 32\), got \(5000, 1, 16\)"),
        (lambda table: table[:, 0], r"must have shape \(length, 1, 32\), got \(5000, 32\)"),
        (lambda table: table[:0], r"must have shape \(length, 1, 32\), got \(0, 1, 32\)"),
        (lambda table: torch.tensor(0.0), r"must have shape \(length, 1, 32\), got \(\)"),
        (lambda table: None, r"must have shape \(length, 1, 32\), got NoneType"),
    ],
)
def test_other_positions(published, name, spoil, message):
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        convert_original("platypose", published | {name: spoil(published[name])})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 64}, "the weights do not fit MotionPriorModel: wrong shape"),
        ({"depth": 2}, r"unexpected: seqTransEncoder\.layers\.2"),
        ({"depth": 4}, r"missing: seqTransEncoder\.layers\.3"),
        ({"norm_first": True}, r"missing: norm_out\.bias, norm_out\.weight$"),
        ({"heads": 8}, r"no config field \['heads'\]"),
        ({"num_attention_heads": 5}, "divisible by the number of heads"),
        ({"skeleton": "h36m_18"}, "h36m_18"),
        ({"axes": "z_up"}, "axes must be one of"),
    ],
)
def test_bad_config(weights, config, message):
    with pytest.raises(ValueError, match=message):
        convert_original("platypose", weights, **config)


def test_weights_of_another_system(weights):
    with pytest.raises(ValueError, match="these are no D3DP or MixSTE weights"):
        convert_original("d3dp", weights)
