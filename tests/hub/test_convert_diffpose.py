"""DiffPose's checkpoints: a denoiser and a lifter of single frames, written as lists, and a MixSTE lifter of the video release."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from probpose.hub import convert_original, load_original_state_dict
from probpose.models import GraFormerDenoiser, GraFormerLifter, MixSTEModel

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LAYER = "module.atten_layers.1"


def weights_of(file, prefix):
    return {k.removeprefix(prefix): v for k, v in load_file(GOLDEN / file).items() if k.startswith(prefix)}


@pytest.fixture
def denoiser():
    return weights_of("diffpose.safetensors", "checkpoint/")


@pytest.fixture
def lifter():
    return weights_of("diffpose.safetensors", "checkpoint_pose/")


@pytest.fixture
def mixste():
    weights = weights_of("d3dp.safetensors", "checkpoint/")
    prefix = "module.pose_estimator."
    weights = {"module." + k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix) and "time_mlp" not in k}
    embedding = "module.Spatial_patch_to_embedding.weight"
    return weights | {embedding: weights[embedding][:, :2].contiguous()}


def trained(weights):
    """A checkpoint after one step of Adam: weights, the optimiser's state, epoch, step, moving average without prefix."""
    parameters = {k: v.clone().requires_grad_() for k, v in weights.items()}
    optimiser = torch.optim.Adam(parameters.values(), lr=1e-2, amsgrad=True)
    sum(p.square().sum() for p in parameters.values()).backward()
    optimiser.step()
    after = {k: p.detach() for k, p in parameters.items()}
    average = {k.removeprefix("module."): 0.9 * v + 0.1 * after[k] for k, v in weights.items()}
    return [after, optimiser.state_dict(), 3, 1200, average]


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Weights


def test_sizes_are_read_off_the_weights(denoiser, lifter):
    model = convert_original("diffpose", denoiser)
    assert (type(model), model.training, model.dtype) == (GraFormerDenoiser, False, torch.float32)
    config = model.config
    assert (config.num_joints, config.width, config.depth, config.num_attention_heads, config.chebyshev_order) == (17, 32, 3, 4, 2)
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in denoiser.values())

    model = convert_original("diffpose_lifter", lifter, num_attention_heads=2)
    assert (type(model), model.training, model.dtype) == (GraFormerLifter, False, torch.float32)
    config = model.config
    assert (config.num_joints, config.width, config.depth, config.num_attention_heads, config.chebyshev_order) == (17, 24, 2, 2, 2)
    used = {k: v for k, v in lifter.items() if ".temb." not in k}
    assert len(lifter) - len(used) == 4
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in used.values())
    assert same_weights(convert_original("diffpose_lifter", used, num_attention_heads=2), model)


def test_names(denoiser):
    """Each tensor of the original alone decides over the values that it should."""
    places = {
        "atten_layers.1.self_attn.linears.0.weight": ("trunk.attention_blocks.1.attn.qkv.weight", slice(0, 32)),
        "atten_layers.1.self_attn.linears.1.bias": ("trunk.attention_blocks.1.attn.qkv.bias", slice(32, 64)),
        "atten_layers.1.self_attn.linears.2.weight": ("trunk.attention_blocks.1.attn.qkv.weight", slice(64, 96)),
        "atten_layers.1.self_attn.linears.3.weight": ("trunk.attention_blocks.1.attn.proj.weight", slice(None)),
        "atten_layers.1.sublayer.0.norm.a_2": ("trunk.attention_blocks.1.norm_1.weight", slice(None)),
        "atten_layers.1.sublayer.1.norm.b_2": ("trunk.attention_blocks.1.norm_2.bias", slice(None)),
        "atten_layers.1.feed_forward.A_hat": ("trunk.attention_blocks.1.graph_net.adjacency", slice(None)),
        "atten_layers.1.feed_forward.gconv2.fc.bias": ("trunk.attention_blocks.1.graph_net.linear_2.bias", slice(None)),
        "gconv_layers.2.gconv1.gconv.bias": ("trunk.graph_blocks.2.unit_1.conv.bias", slice(None)),
        "gconv_layers.2.temb_proj.weight": ("trunk.graph_blocks.2.time_proj.weight", slice(None)),
        "temb.dense.1.weight": ("time_embedding.linear_2.weight", slice(None)),
    }
    before = convert_original("diffpose", denoiser).state_dict()
    for original, (ours, part) in places.items():
        key = f"module.{original}"
        after = convert_original("diffpose", denoiser | {key: denoiser[key] + 1}).state_dict()
        assert [name for name in before if not torch.equal(before[name], after[name])] == [ours]
        expected = before[ours].clone()
        expected[part] += 1
        torch.testing.assert_close(after[ours], expected)


def test_every_layout_gives_the_same_model(denoiser):
    expected = convert_original("diffpose", denoiser)
    bare = {k.removeprefix("module."): v for k, v in denoiser.items()}
    doubles = {k: v.double() for k, v in denoiser.items()}
    for layout in (bare, {"model_pos": denoiser}, [denoiser, {}, 3, 1200], (denoiser,), [denoiser, {}, 3, 1200, {}], doubles):
        assert same_weights(convert_original("diffpose", layout), expected)


def test_config_adds_what_shapes_do_not_tell(denoiser):
    chain = [(joint, joint + 1) for joint in range(16)]
    model = convert_original("diffpose", denoiser, edges=chain, skeleton="mpi_inf_3dhp_17", num_attention_heads=8, fps=50)
    config = model.config
    assert (config.skeleton, config.root_index, config.num_attention_heads, config.fps) == ("mpi_inf_3dhp_17", 14, 8, 50)
    assert model.trunk.conv_in.mixing[0].reshape(17, 3)[:, 1].nonzero().flatten().tolist() == [0, 1]


def test_context_begins_without_effect(denoiser):
    plain, listening = (convert_original("diffpose", denoiser, **config) for config in ({}, {"context_channels": 6}))
    pose = torch.randn(1, 2, 17, 5)
    with torch.no_grad():
        heard = listening(None, pose, 3, context=torch.randn(1, 2, 17, 6)).sample
        assert torch.equal(heard, plain(None, pose, 3).sample)


def without(weights, *parts):
    return {k: v for k, v in weights.items() if not any(part in k for part in parts)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda w: without(w, "layers.1.self_attn.linears.1.bias", "temb.dense.0.bias"),
            r"missing: atten_layers\.1\.self_attn\.linears\.1\.bias, temb\.dense\.0\.bias$",
        ),
        (lambda w: without(w, "gconv_layers.2.temb_proj.bias"), r"missing: gconv_layers\.2\.temb_proj\.bias$"),
        (lambda w: without(w, "A_hat"), r"no DiffPose weights.*: atten_layers\.0\.feed_forward\.A_hat$"),
        (lambda w: {}, "no DiffPose weights.*gconv_input.weight, gconv_output.weight, atten_layers"),
        (lambda w: w | {"module.gconv_input.weight": torch.zeros(3, 5, 32)}, "no DiffPose weights.*: gconv_input.weight$"),
        (lambda w: w | {"module.gconv_input.weight": torch.zeros(0, 1, 5, 32)}, "no DiffPose weights.*: gconv_input.weight$"),
        (lambda w: w | {"module.gconv_input.weight": "text"}, "no DiffPose weights.*: gconv_input.weight$"),
        (lambda w: w | {"module.extra": torch.zeros(1), 7: torch.zeros(1)}, "unexpected: 7, extra$"),
        (
            lambda w: w | {f"{LAYER}.self_attn.linears.2.weight": torch.zeros(32, 31)},
            r"wrong shape: atten_layers\.1\.self_attn\.linears\.2\.weight is \(32, 31\), not \(32, 32\)$",
        ),
        (
            lambda w: w | {"module.gconv_output.bias": torch.zeros(5)},
            r"wrong shape: gconv_output\.bias is \(5,\), not \(1, 1, 5\)$",
        ),
        (lambda w: w | {f"{LAYER}.feed_forward.A_hat": None}, r"A_hat is NoneType, not \(17, 17\)$"),
        (
            lambda w: w | {"module.gconv_input.weight": torch.zeros(3, 1, 7, 32)},
            r"diffpose has \(5, 5\) channels in and out, got weights for \(7, 5\)$",
        ),
        (
            lambda w: w | {"module.gconv_output.weight": torch.zeros(3, 1, 32, 3)},
            r"diffpose has \(5, 5\) channels in and out, got weights for \(5, 3\)$",
        ),
        (
            lambda w: w | {"module.atten_layers.0.feed_forward.A_hat": torch.zeros(16, 16)},
            "num_joints is 16, but skeleton 'h36m_17' has 17",
        ),
    ],
)
def test_misfits_are_named(denoiser, spoil, message):
    with pytest.raises(ValueError, match=message):
        convert_original("diffpose", spoil(denoiser))


def test_lifter_misfits_are_named(lifter):
    three = {"module.gconv_input.weight": torch.zeros(3, 1, 3, 24)}
    with pytest.raises(ValueError, match=r"diffpose_lifter has \(2, 3\) channels in and out, got weights for \(3, 3\)"):
        convert_original("diffpose_lifter", lifter | three)
    with pytest.raises(ValueError, match=r"unexpected: temb\.dense\.2\.weight"):
        convert_original("diffpose_lifter", lifter | {"module.temb.dense.2.weight": torch.zeros(1)})


def test_the_other_network(denoiser, lifter):
    with pytest.raises(ValueError, match="weights of DiffPose's lifter: convert them as 'diffpose_lifter'"):
        convert_original("diffpose", lifter)
    with pytest.raises(ValueError, match="weights of DiffPose's denoiser: convert them as 'diffpose'"):
        convert_original("diffpose_lifter", denoiser)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 64}, "the weights do not fit GraFormerDenoiser: wrong shape"),
        ({"depth": 2}, r"unexpected: atten_layers\.2"),
        ({"depth": 4}, r"missing: atten_layers\.3"),
        ({"heads": 8}, r"no config field \['heads'\]"),
        ({"num_attention_heads": 5}, "divisible by the number of heads"),
        ({"edges": [(0, 17)]}, "edges must join two of 17 joints"),
        ({"skeleton": "h36m_18"}, "h36m_18"),
        ({"skeleton": "smpl_24"}, "skeleton 'smpl_24' has 24: pass edges"),
    ],
)
def test_bad_config(denoiser, config, message):
    with pytest.raises(ValueError, match=message):
        convert_original("diffpose", denoiser, **config)


# Files


@pytest.mark.parametrize("legacy", [False, True])
def test_lists_with_an_optimisers_state(denoiser, tmp_path, legacy):
    checkpoint = trained(denoiser)
    assert checkpoint[1]["state"]  # it is there
    path = tmp_path / "diffpose.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    loaded, average = load_original_state_dict(path), load_original_state_dict(path, ema=True)
    assert loaded.keys() == denoiser.keys()
    assert average.keys() == {k.removeprefix("module.") for k in denoiser}
    expected, smooth = convert_original("diffpose", checkpoint), convert_original("diffpose", checkpoint[4])
    assert same_weights(convert_original("diffpose", loaded), expected)
    assert same_weights(convert_original("diffpose", average), smooth) and not same_weights(expected, smooth)


def test_no_moving_average(denoiser, tmp_path):
    torch.save(trained(denoiser)[:4], tmp_path / "short.pth")
    torch.save([*trained(denoiser)[:4], None], tmp_path / "none.pth")
    torch.save({"model_pos": denoiser}, tmp_path / "dictionary.pth")
    save_file(denoiser, tmp_path / "weights.safetensors")
    for name in ("short.pth", "none.pth", "dictionary.pth", "weights.safetensors"):
        with pytest.raises(ValueError, match=f"{name} holds no moving average"):
            load_original_state_dict(tmp_path / name, ema=True)


@pytest.mark.parametrize("content", [[], [3, {}], (torch.zeros(1),), torch.zeros(1), None])
def test_neither_weights_nor_a_list_of_them(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    message = f"must hold a state dict, or a list that begins with one, got a {type(content).__name__}"
    with pytest.raises(ValueError, match=rf"other\.pth {message}"):
        load_original_state_dict(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"the checkpoint {message}"):
        convert_original("diffpose", content)


# The command


@pytest.fixture
def files(denoiser, lifter, mixste, tmp_path):
    torch.save(trained(denoiser), tmp_path / "denoiser.pth")
    torch.save([lifter], tmp_path / "lifter.pth")
    torch.save({"epoch": 9, "model_pos": mixste}, tmp_path / "mixste.bin")
    return tmp_path


def loaded_pipeline(folder):
    from probpose import ProbPosePipeline

    return ProbPosePipeline.from_pretrained(folder)


def test_command(run_command, files, denoiser, lifter):
    code, out, err = run_command(
        "convert", "diffpose", files / "denoiser.pth", files / "out", "--lifter", files / "lifter.pth",
        "--set-lifter", "num_attention_heads=2", "--set", "fps=50",
    )  # fmt: skip
    assert code == 0 and "GraFormerDenoiser" in out and "GraFormerLifter" in out, err
    pipe = loaded_pipeline(files / "out")
    assert (type(pipe).__name__, type(pipe.scheduler).__name__) == ("DiffPosePipeline", "GMMScheduler")
    assert (pipe.denoiser.config.fps, pipe.denoiser.config.num_attention_heads, pipe.lifter.config.num_attention_heads) == (50, 4, 2)
    assert same_weights(pipe.denoiser, convert_original("diffpose", trained(denoiser)))
    assert same_weights(pipe.lifter, convert_original("diffpose_lifter", lifter, num_attention_heads=2))


def test_command_with_the_lifter_of_the_video_release_and_the_moving_average(run_command, files, denoiser, mixste):
    code, _, err = run_command("convert", "diffpose", files / "denoiser.pth", files / "out", "--lifter", files / "mixste.bin", "--ema")
    assert code == 0, err
    pipe = loaded_pipeline(files / "out")
    assert (type(pipe.lifter), pipe.lifter.config.in_channels) == (MixSTEModel, 2)
    assert same_weights(pipe.denoiser, convert_original("diffpose", trained(denoiser)[4]))
    assert same_weights(pipe.lifter, convert_original("d3dp", mixste))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diffpose", "denoiser.pth", "out"], "pass the lifter's checkpoint by --lifter"),
        (["diffpose_lifter", "lifter.pth", "out"], "a lifter is no pipeline: pass it by --lifter"),
        (["diffpose_lifter", "lifter.pth", "out", "--lifter", "lifter.pth"], "a lifter is no pipeline"),
        (["d3dp", "denoiser.pth", "out", "--lifter", "lifter.pth"], "d3dp has no lifter"),
        (["d3dp", "denoiser.pth", "out", "--set-lifter", "fps=50"], "d3dp has no lifter"),
        (["d3dp", "denoiser.pth", "out"], "these are no D3DP or MixSTE weights"),
        (["diffusionpose", "denoiser.pth", "out"], "the system must be one of d3dp, diffpose.*, got 'diffusionpose'"),
        (["diffpose", "lifter.pth", "out", "--lifter", "denoiser.pth"], "weights of DiffPose's lifter"),
        (["diffpose", "denoiser.pth", "out", "--lifter", "denoiser.pth"], "weights of DiffPose's denoiser"),
        (["diffpose", "denoiser.pth", "out", "--lifter", "d3dp.safetensors"], "d3dp.safetensors holds a denoiser"),
        (["diffpose", "denoiser.pth", "out", "--lifter", "none.pth"], "no such checkpoint file.*none.pth"),
        (["diffpose", "denoiser.pth", "out", "--lifter", "lifter.pth", "--set-lifter", "fps"], "--set-lifter takes FIELD=VALUE, got 'fps'"),
        (["diffpose", "lifter.pth", "out", "--lifter", "lifter.pth", "--ema"], "lifter.pth holds no moving average"),
    ],
)
def test_command_refuses(run_command, files, monkeypatch, words, message):
    save_file(weights_of("d3dp.safetensors", "checkpoint/"), files / "d3dp.safetensors")
    monkeypatch.chdir(files)
    code, _, err = run_command("convert", *words)
    assert code == 2 and err.startswith("probpose: ") and len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not (files / "out").exists()
