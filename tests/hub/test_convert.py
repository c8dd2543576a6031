"""Original checkpoints: what fits is converted, what does not is named, and nothing in a file is run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from probpose.hub import convert_original, load_original_state_dict
from probpose.models import MixSTEModel
from probpose.schedulers import D3DPScheduler

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "d3dp.safetensors"
PREFIX = "module.pose_estimator."


def schedule_buffers():
    """The twelve buffers of the original's diffusion module."""
    betas = D3DPScheduler().betas
    alphas = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([alphas.new_ones(1), alphas[:-1]])
    variance = betas * (1 - previous) / (1 - alphas)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - alphas),
    }
    return {f"module.{name}": buffer for name, buffer in buffers.items()}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def weights(golden):
    return {k.removeprefix("checkpoint/"): v for k, v in golden.items() if k.startswith("checkpoint/")} | schedule_buffers()


def test_sizes_are_read_off_the_weights(weights, golden):
    model = convert_original("d3dp", weights)
    assert type(model) is MixSTEModel
    assert not model.training
    config = model.config
    assert (config.num_frames, config.num_joints, config.in_channels) == (9, 17, 5)
    assert (config.width, config.depth, config.num_attention_heads, config.mlp_ratio) == (32, 3, 8, 2.0)
    assert (config.use_timestep, config.qkv_bias, config.canonical_camera) == (True, True, None)
    assert torch.equal(model.joint_embedding.weight, weights[f"{PREFIX}Spatial_patch_to_embedding.weight"])
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for k, v in weights.items() if k.startswith(PREFIX))


def test_every_layout_gives_the_same_model(weights):
    expected = convert_original("d3dp", weights).state_dict()
    layouts = (
        {"epoch": 3, "model_pos": weights, "optimizer": {}},
        {k.removeprefix("module."): v for k, v in weights.items()},
        {k: v for k, v in weights.items() if k.startswith(PREFIX)},
        {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)},
    )
    for layout in layouts:
        torch.testing.assert_close(convert_original("d3dp", layout).state_dict(), expected, atol=0, rtol=0)


def test_converted_model_survives_saving(weights, golden, tmp_path):
    convert_original("d3dp", weights).save_pretrained(tmp_path)
    model = MixSTEModel.from_pretrained(tmp_path)
    with torch.no_grad():
        out = model(golden["keypoints_2d"], golden["denoiser/noisy_pose"], golden["denoiser/t"]).sample
    torch.testing.assert_close(out, golden["denoiser/out"], atol=5e-5, rtol=0)


def test_config_adds_what_shapes_do_not_tell(weights):
    config = convert_original("d3dp", weights, skeleton="mpi_inf_3dhp_17", num_attention_heads=4, fps=25).config
    assert (config.skeleton, config.root_index, config.num_attention_heads, config.fps) == (
        "mpi_inf_3dhp_17",
        14,
        4,
        25,
    )
    assert convert_original("d3dp", weights, input_skeleton="coco_17").config.input_skeleton == "coco_17"


def test_plain_lifter(weights):
    lifter = {k: v for k, v in weights.items() if k.startswith(PREFIX) and "time_mlp" not in k}
    embedding = f"{PREFIX}Spatial_patch_to_embedding.weight"
    lifter[embedding] = lifter[embedding][:, :2]
    model = convert_original("d3dp", lifter)
    assert (model.config.in_channels, model.config.use_timestep) == (2, False)
    assert model(torch.zeros(1, 9, 17, 2)).sample.shape == (1, 9, 17, 3)


def test_plain_lifter_as_published(weights, tmp_path):
    """MixSTE alone, as DiffPose's video release has it: nothing but `module.` before the names, under `model_pos`."""
    names = {k: "module." + k.removeprefix(PREFIX) for k in weights if k.startswith(PREFIX) and "time_mlp" not in k}
    lifter = {name: weights[k] for k, name in names.items()}
    lifter["module.Spatial_patch_to_embedding.weight"] = lifter["module.Spatial_patch_to_embedding.weight"][:, :2].clone()
    torch.save({"epoch": 3, "lr": 4e-5, "model_pos": lifter, "optimizer": {}}, tmp_path / "mixste.bin")
    model = convert_original("d3dp", load_original_state_dict(tmp_path / "mixste.bin"))
    assert (type(model), model.config.in_channels, model.config.use_timestep) == (MixSTEModel, 2, False)
    ours = {"norm_out.weight": "head.0.weight", "norm_out.bias": "head.0.bias", "proj_out.weight": "head.1.weight"}
    for name, original in (ours | {"proj_out.bias": "head.1.bias"}).items():
        assert torch.equal(model.get_parameter(name), lifter[f"module.{original}"])
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in lifter.values())


def without(weights, key):
    return {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: without(w, f"{PREFIX}head.1.bias"), r"missing: head\.1\.bias"),
        (lambda w: without(w, f"{PREFIX}Temporal_pos_embed"), "no D3DP or MixSTE weights.*Temporal_pos_embed"),
        (lambda w: {}, "no D3DP or MixSTE weights"),
        (lambda w: w | {f"{PREFIX}extra.weight": torch.zeros(1)}, r"unexpected: extra\.weight"),
        (lambda w: w | {f"{PREFIX}TTEblocks.7.norm1.bias": torch.zeros(32)}, r"unexpected: TTEblocks\.7\.norm1\.bias"),
        (
            lambda w: w | {f"{PREFIX}head.1.weight": torch.zeros(4, 32)},
            r"wrong shape: head\.1\.weight is \(4, 32\), not \(3, 32\)",
        ),
        (lambda w: w | {f"{PREFIX}head.1.weight": "text"}, r"head\.1\.weight is str, not \(3, 32\)"),
        (lambda w: w | {f"{PREFIX}Spatial_patch_to_embedding.weight": torch.zeros(32, 7)}, "in_channels must be 5"),
        (
            lambda w: w | {"module.betas": torch.zeros(500)},
            r"betas must hold the 1000 steps of D3DPScheduler, got \(500,\)",
        ),
        (
            lambda w: w | {"module.alphas_cumprod": w["module.alphas_cumprod"] + 1e-9},
            "alphas_cumprod must be the schedule of D3DPScheduler, got one that differs by 1e-09",
        ),
        (lambda w: w | {"module.betas": torch.full((1000,), float("nan"))}, "differs by nan"),
    ],
)
def test_misfits_are_named(weights, spoil, message):
    with pytest.raises(ValueError, match=message):
        convert_original("d3dp", spoil(weights))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 64}, "the weights do not fit MixSTEModel: wrong shape"),
        ({"depth": 2}, r"unexpected: STEblocks\.2"),
        ({"heads": 8}, r"no config field \['heads'\]"),
        ({"num_attention_heads": 5}, "divisible by the number of heads"),
        ({"skeleton": "h36m_18"}, "h36m_18"),
    ],
)
def test_bad_config(weights, config, message):
    with pytest.raises(ValueError, match=message):
        convert_original("d3dp", weights, **config)


def test_unknown_system(weights):
    with pytest.raises(ValueError, match=r"system must be one of \['d3dp'.*\], got 'd4dp'"):
        convert_original("d4dp", weights)


# Files


def published_checkpoint(weights):
    """A training checkpoint as the release writes it: weights beside a pickled NumPy random state."""
    return {
        "epoch": 12,
        "lr": np.float64(6e-5),
        "random_state": np.random.RandomState(1234),
        "optimizer": {"state": {}, "param_groups": [{"lr": 6e-5}]},
        "model_pos": weights,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_published_layout_opens_without_unpickling_numpy(weights, tmp_path, legacy):
    path = tmp_path / "h36m_best_epoch.bin"
    torch.save(published_checkpoint(weights), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match="numpy"):  # the reason for all this
        torch.load(path, weights_only=True)
    loaded = load_original_state_dict(path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    convert_original("d3dp", loaded)


def test_nothing_of_numpy_is_let_in_for_good(weights, tmp_path):
    before = set(map(str, torch.serialization.get_safe_globals()))
    torch.save(published_checkpoint(weights), tmp_path / "a.pt")
    load_original_state_dict(tmp_path / "a.pt")
    added = set(map(str, torch.serialization.get_safe_globals())) - before  # torch adds some of its own when it is first used
    assert not [name for name in added if "torch" not in name]


def test_names_of_old_numpy_are_skipped(weights, tmp_path):
    """NumPy 1 pickled by other names; only the names are of interest, since nothing of NumPy is called."""
    path = tmp_path / "old.bin"
    torch.save({"model_pos": weights, "random_state": np.random.RandomState(0)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"cnumpy._core.multiarray\n" in content
    path.write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert load_original_state_dict(path).keys() == weights.keys()


def test_bare_weights(weights, tmp_path):
    torch.save(weights, tmp_path / "weights.pth")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        loaded = load_original_state_dict(tmp_path / name)
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_code_in_a_file_is_refused_and_not_run(weights, tmp_path):
    target = tmp_path / "ran"
    for place in ({"model_pos": weights, "random_state": Malicious(target)}, {"model_pos": Malicious(target)}):
        torch.save(place, tmp_path / "evil.pt")
        with pytest.raises(ValueError, match=r"evil\.pt holds a pickled .*save_file\(checkpoint"):
            load_original_state_dict(tmp_path / "evil.pt")
        assert not target.exists()


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 but no archive", b"\x80\x02]q\x00.", bytes(range(256))])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} "):
        load_original_state_dict(tmp_path / name)


def test_cut_files(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_original_state_dict(path)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_original_state_dict(tmp_path / "none.pt")
    (tmp_path / "weights.npz").touch()
    with pytest.raises(ValueError, match=r"one of \.safetensors, .* got .*weights\.npz"):
        load_original_state_dict(tmp_path / "weights.npz")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt must hold a state dict, or a list that begins with one, got a list"):
        load_original_state_dict(tmp_path / "list.pt")
