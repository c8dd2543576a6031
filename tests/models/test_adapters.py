"""Low-rank adapters on every network: what they add, what they leave alone, and what is refused before anything has changed."""

import subprocess
import sys

import pytest
import torch
from peft import LoHaConfig, LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from probpose.models import FrameTransformerModel, GraFormerDenoiser, GraFormerLifter, MixSTEModel, MotionPriorModel

SIZES = {"width": 16, "depth": 2, "num_attention_heads": 2}
SMALL = {
    "mixste": lambda: MixSTEModel(num_frames=4, **SIZES),
    "frame": lambda: FrameTransformerModel(num_frames=4, **SIZES),
    "denoiser": lambda: GraFormerDenoiser(**SIZES),
    "lifter": lambda: GraFormerLifter(**SIZES),
    "published_prior": lambda: MotionPriorModel(num_frames=4, **SIZES),
    "prior": lambda: MotionPriorModel(num_frames=4, norm_first=True, **SIZES),
}
all_networks = pytest.mark.parametrize("kind", SMALL)
FILE = "pytorch_lora_weights.safetensors"


def network(kind="mixste", seed=0):
    torch.manual_seed(seed)
    return SMALL[kind]().eval()


def answer(model):
    """Of the network to always the same question."""
    generator = torch.Generator().manual_seed(0)
    keypoints, pose = torch.randn(2, 4, 17, 2, generator=generator), torch.randn(2, 3, 4, 17, 5, generator=generator)
    arguments = {
        GraFormerLifter: (keypoints,),
        GraFormerDenoiser: (None, pose, 7),
        MotionPriorModel: (None, pose[..., :3], 7),
    }.get(type(model), (keypoints, pose[..., :3], 7))
    return model(*arguments).sample


def adapt(model, name="default", seed=1, **config):
    """With an adapter that has learned something."""
    model.add_adapter(model.lora_config(**config), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".lora_B.{name}." in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def updates(model, name):
    """Changes of the weights `{layer: s · B A}`, computed here."""
    config, parameters = model.peft_config[name], dict(model.named_parameters())
    layers = {key.split(".lora_A.")[0] for key in parameters if f".lora_A.{name}." in key}
    scale = config.lora_alpha / config.r
    return {layer: scale * parameters[f"{layer}.lora_B.{name}.weight"] @ parameters[f"{layer}.lora_A.{name}.weight"] for layer in layers}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def is_plain(model, kind="mixste"):
    return not model.adapters and list(model.state_dict()) == list(SMALL[kind]().state_dict())


# What an adapter does


@all_networks
@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(kind):
    model = network(kind)
    before = answer(model)
    model.add_adapter(model.lora_config())
    assert torch.equal(answer(model), before)
    assert not any(module.training for module in model.modules())


@all_networks
@torch.no_grad()
def test_layers_that_are_adapted(kind):
    model = adapt(network(kind))
    feed_forward = {"mixste": (), "denoiser": ("graph_net.linear_1", "graph_net.linear_2")}
    feed_forward["lifter"] = feed_forward["denoiser"]
    ends = ("attn.qkv", "attn.proj", *feed_forward.get(kind, ("mlp.fc1", "mlp.fc2")))
    blocks = {"mixste": ("spatial_blocks", "temporal_blocks"), "denoiser": ("trunk.attention_blocks",)}
    blocks["lifter"] = blocks["denoiser"]
    expected = {f"{block}.{layer}.{end}" for block in blocks.get(kind, ("blocks",)) for layer in range(2) for end in ends}
    assert updates(model, "default").keys() == expected


@all_networks
@torch.no_grad()
def test_an_adapter_is_an_update_of_the_weights(kind):
    base, model = network(kind), adapt(network(kind), alpha=6)
    before = answer(base)
    for layer, update in updates(model, "default").items():
        base.get_submodule(layer).weight += update
    assert (answer(base) - before).abs().max() > 1e-3
    close(answer(model), answer(base))


@torch.no_grad()
def test_layers_that_are_not_called_but_taken_apart():
    """MixSTE computes the two halves of its first layer apart from one another."""
    base, model = network(), adapt(network(), target_modules=["joint_embedding"], rank=2)
    for layer, update in updates(model, "default").items():
        assert layer == "joint_embedding"
        base.joint_embedding.weight += update
    adapted = answer(base)
    close(answer(model), adapted)
    model.fuse_lora()
    close(answer(model), adapted)
    model.disable_adapters()
    close(answer(model), answer(network()))


def test_initial_values_are_the_published():
    torch.manual_seed(0)
    model = MixSTEModel(num_frames=4, width=256, depth=1, num_attention_heads=2)
    model.add_adapter(model.lora_config())
    parameters = dict(model.named_parameters())
    drawn = torch.cat([value.flatten() for name, value in parameters.items() if ".lora_A." in name])
    assert drawn.std().item() == pytest.approx(1 / 4, rel=0.03) and abs(drawn.mean().item()) < 0.02
    assert not any(value.any() for name, value in parameters.items() if ".lora_B." in name)
    assert (model.peft_config["default"].lora_alpha, model.peft_config["default"].lora_dropout) == (4, 0)


# Training


@all_networks
def test_only_adapters_learn(kind):
    model = adapt(network(kind)).train()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning and all(".lora_" in name for name in learning)
    answer(model).square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()} == learning


def test_gradient_checkpointing_changes_no_gradient():
    plain, checkpointed = adapt(network()), adapt(network())
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.enable_gradient_checkpointing()
    for model in (plain, checkpointed):
        answer(model.train()).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), checkpointed.named_parameters()):
        if ".lora_" in name:
            close(a.grad, b.grad)


@all_networks
def test_autocast(kind):
    model = adapt(network(kind))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = answer(model)
    exact = answer(model)
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer(model).float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for name, parameter in model.named_parameters() if ".lora_" in name)


def test_without_its_last_adapter_a_network_is_an_ordinary_one():
    for take_off in (lambda model: model.unload_lora(), lambda model: model.delete_adapters(["a", "b"])):
        model = adapt(adapt(network(), "a"), "b", seed=2)
        take_off(model)
        assert is_plain(model) and model.active_adapters() == []
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(answer(model), answer(network()))
    model.unload_lora()  # once more does no harm


# Switching and fusing


@all_networks
@torch.no_grad()
def test_fusing(kind):
    model, base = adapt(network(kind)), network(kind)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = answer(model)
    model.fuse_lora()
    assert model.fused_adapters == ["default"]
    close(answer(model), adapted)
    model.unfuse_lora()
    assert model.fused_adapters == []
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            close(value, weights[name.replace(".base_layer", "")], atol=1e-6)
    close(answer(model), adapted)


@torch.no_grad()
def test_fusing_with_a_scale_is_undone_too():
    model, base = adapt(network()), answer(network())
    adapted = answer(model)
    model.set_adapters("default", 0.5)
    half = answer(model)
    model.set_adapters("default")
    model.fuse_lora(lora_scale=0.5)
    close(answer(model), half)
    model.unfuse_lora()
    close(answer(model), adapted)
    model.fuse_lora()
    model.unload_lora()
    assert is_plain(model)
    close(answer(model), adapted)
    assert (adapted - base).abs().max() > 1e-3


@torch.no_grad()
def test_updates_that_are_not_finite_are_not_fused():
    model = adapt(network())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.temporal_blocks[1].attn.proj.lora_B["default"].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        model.fuse_lora(lora_scale=0.5, safe_fusing=True)
    assert model.fused_adapters == []
    model.temporal_blocks[1].attn.proj.lora_B["default"].weight[0, 0] = weights["temporal_blocks.1.attn.proj.lora_B.default.weight"][0, 0]
    for name, value in model.state_dict().items():
        close(value, weights[name], atol=1e-6)
    close(answer(model), answer(adapt(network())))


@torch.no_grad()
def test_each_layer_may_have_a_rank_and_a_scale_of_its_own(tmp_path):
    model = network()
    patterns = {
        "rank_pattern": {"spatial_blocks.0.attn.qkv": 2},
        "alpha_pattern": {"temporal_blocks.1.attn.qkv": 3, "spatial_blocks.0.attn.qkv": 5},
    }
    model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=["attn.qkv"], use_rslora=True, init_lora_weights=False, **patterns))
    other = network()
    other.load_lora_adapter(save(model, tmp_path))
    assert torch.equal(answer(other), answer(model))


@all_networks
@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_disabling(kind, fused):
    model, base = adapt(network(kind)), answer(network(kind))
    adapted = answer(model)
    if fused:
        model.fuse_lora()
    model.disable_adapters()
    close(answer(model), base)
    model.enable_adapters()
    close(answer(model), adapted)


@torch.no_grad()
def test_two_adapters_add_up():
    model, base = adapt(adapt(network(), "a"), "b", seed=2, rank=3, target_modules=["mlp.fc1", "attn.proj"]), network()
    assert (model.adapters, model.active_adapters()) == (["a", "b"], ["b"])
    for layer, update in updates(model, "a").items():
        base.get_submodule(layer).weight += 0.3 * update
    for layer, update in updates(model, "b").items():
        base.get_submodule(layer).weight += -2 * update
    model.set_adapters(["a", "b"], [0.3, -2])
    close(answer(model), answer(base))
    model.fuse_lora()
    close(answer(model), answer(base))
    assert model.fused_adapters == ["a", "b"]
    model.unfuse_lora()
    model.set_adapters("a")
    alone = answer(model)
    close(alone, answer(adapt(network(), "a")))
    model.delete_adapters("b")
    assert model.adapters == ["a"] and torch.equal(answer(model), alone)


def test_deleting_the_active_adapter_makes_no_other_one_active():
    model = adapt(adapt(network(), "a"), "b")
    model.delete_adapters("b")
    assert (model.adapters, model.active_adapters()) == (["a"], [])
    assert torch.equal(answer(model), answer(network()))


# Files


def save(model, folder, **options):
    model.save_lora_adapter(folder, **options)
    return folder / options.get("weight_name", FILE)


@all_networks
@torch.no_grad()
def test_files_bring_back_every_bit(kind, tmp_path):
    model = adapt(network(kind), alpha=3)
    path = save(model, tmp_path / "new" / "folder")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}
    for place in (path, path.parent, str(path.parent)):
        other = network(kind)
        other.load_lora_adapter(place)
        assert other.adapters == other.active_adapters() == ["default_0"]
        assert torch.equal(answer(other), answer(model))


@torch.no_grad()
def test_one_of_several_adapters_in_its_own_file(tmp_path):
    model = adapt(adapt(network(), "a"), "b", seed=2, rank=2)
    with pytest.raises(ValueError, match=r"adapter_name must be one of \['a', 'b'\]"):
        model.save_lora_adapter(tmp_path)
    save(model, tmp_path, adapter_name="a", weight_name="a.safetensors")
    other = network()
    with pytest.raises(FileNotFoundError, match=FILE):
        other.load_lora_adapter(tmp_path)
    other.load_lora_adapter(tmp_path, "mine", weight_name="a.safetensors")
    other.load_lora_adapter(tmp_path, weight_name="a.safetensors")
    assert other.adapters == ["mine", "default_0"]
    model.set_adapters("a")
    assert torch.equal(answer(other), answer(model))


def test_a_file_says_what_it_is(tmp_path):
    path = save(adapt(network()), tmp_path, prefix="denoiser")
    with safe_open(path, framework="pt") as file:
        header, names = file.metadata(), list(file.keys())
    assert header["format"] == "pt" and '"class": "MixSTEModel"' in header["base_model"] and '"width": 16' in header["base_model"]
    assert '"denoiser.r": 4' in header["lora_adapter_metadata"] and '"attn.qkv"' in header["lora_adapter_metadata"]
    assert "denoiser.spatial_blocks.0.attn.qkv.lora_A.weight" in names
    with pytest.raises(ValueError, match=r"no tensor's name begins with 'lifter\.'"):
        network().load_lora_adapter(path, prefix="lifter")


def test_half_a_file_is_left_nowhere(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    path = save(adapt(network()), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("probpose.models.adapters.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        adapt(network()).save_lora_adapter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE] and path.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_on_either_side(dtype, tmp_path):
    """The fingerprint of a network outlives rounding."""
    model = adapt(network())
    path = save(model, tmp_path, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    other = network()
    other.load_lora_adapter(path)
    close(answer(other), answer(model), atol=1e-3)
    rounded = network().to(dtype)
    rounded.load_lora_adapter(path)
    assert {parameter.dtype for parameter in rounded.parameters()} == {dtype}
    model.save_lora_adapter(tmp_path)
    adapted = rounded.to(torch.float32)
    close(answer(adapted), answer(model), atol=0.1)
    save(rounded.to(dtype), tmp_path / "back")
    network().load_lora_adapter(tmp_path / "back")


def test_the_fingerprint_is_that_of_the_network_without_adapters(tmp_path):
    model = adapt(network())
    model.fuse_lora()
    save(model, tmp_path)
    network().load_lora_adapter(tmp_path)


@torch.no_grad()
def test_tensors_without_a_file():
    model = adapt(network())
    tensors = {name.replace(".default", ""): tensor for name, tensor in model.named_parameters() if ".lora_" in name}
    other = network()
    other.load_lora_adapter(tensors, scale=0.5)
    model.set_adapters("default", 0.5)
    close(answer(other), answer(model))
    ranks = adapt(network(), rank=2)
    mixed = {k: v for k, v in tensors.items() if "temporal" in k or ".1." in k}
    mixed |= {n.replace(".default", ""): v for n, v in ranks.named_parameters() if ".lora_" in n and n.startswith("spatial_blocks.0")}
    other, base = network(), network()
    other.load_lora_adapter(mixed, scale=0.5)
    for layer in {name.partition(".lora_")[0] for name in mixed}:
        base.get_submodule(layer).weight += 0.5 * mixed[f"{layer}.lora_B.weight"] @ mixed[f"{layer}.lora_A.weight"]
    close(answer(other), answer(base))


# Saving the network itself


@torch.no_grad()
def test_saved_networks_have_fused_adapters_in_their_weights(tmp_path):
    model = adapt(adapt(network(), "a"), "b", seed=2)
    model.set_adapters("a")
    adapted = answer(model)
    for fuse in (False, True):
        if fuse:
            model.fuse_lora()
        with pytest.raises(ValueError, match=r"would lose the adapters \[.*'b'\] of this MixSTEModel: .*fuse_lora\(\)"):
            model.save_pretrained(tmp_path / "no")
        assert not (tmp_path / "no").exists()
    model.unfuse_lora()
    model.delete_adapters("b")
    model.fuse_lora()
    model.save_pretrained(tmp_path / "fused")
    loaded = MixSTEModel.from_pretrained(tmp_path / "fused")
    assert is_plain(loaded) and model.fused_adapters == ["a"]
    close(answer(loaded), adapted)


def test_a_network_without_adapters_is_saved_as_ever(tmp_path):
    model = network()
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert torch.equal(answer(MixSTEModel.from_pretrained(tmp_path, variant="fp16")), answer(model))


# What is refused


def other_network(kind):
    return {
        "class": lambda: network("frame"),
        "width": lambda: MixSTEModel(num_frames=4, **SIZES | {"width": 32}),
        "window": lambda: MixSTEModel(num_frames=9, **SIZES),
        "heads": lambda: MixSTEModel(num_frames=4, **SIZES | {"num_attention_heads": 4}),
        "weights": lambda: network(seed=5),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("class", r"adapter for MixSTEModel\(num_frames=4.*but this is FrameTransformerModel\(num_frames=4"),
        ("width", r"adapter for MixSTEModel\(.*width=16.*but this is MixSTEModel\(.*width=32"),
        ("window", r"num_frames=4.*but this is MixSTEModel\(num_frames=9"),
        ("heads", r"num_attention_heads=2.*but this is MixSTEModel\(.*num_attention_heads=4"),
        ("weights", r"adapter for another MixSTEModel.*weights that were compared differ.*check_base=False"),
    ],
)
@pytest.mark.parametrize("check_base", [True, False])
def test_adapters_of_other_networks(kind, message, check_base, tmp_path):
    path = save(adapt(network()), tmp_path)
    other = other_network(kind)
    state = {name: value.clone() for name, value in other.state_dict().items()}
    if kind == "weights" and not check_base:
        other.load_lora_adapter(path, check_base=False)
        assert other.adapters == ["default_0"]
        return
    with pytest.raises(ValueError, match=message):
        other.load_lora_adapter(path, check_base=check_base)
    assert not other.adapters and other.state_dict().keys() == state.keys()
    assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "spatial_blocks.1.attn.qkv.lora_B" not in k}, r"1\.attn\.qkv\.lora_B\.weight is missing"),
        (lambda t: t | {"norm_out.lora_A.weight": torch.zeros(4, 16)}, r"unexpected norm_out\.lora_A\.weight"),
        (lambda t: t | {"joint_embedding.alpha": torch.zeros(1)}, r"unexpected joint_embedding\.alpha"),
        (lambda t: t | {"spatial_blocks.0.attn.qkv.lora_A.weight": torch.zeros(4, 17)}, r"is \(4, 17\), not \(4, 16\)"),
        (lambda t: t | {"spatial_blocks.0.attn.qkv.lora_B.weight": torch.zeros(48, 3)}, r"is \(48, 3\), not \(48, 4\)"),
        (lambda t: {name: tensor[..., :1] for name, tensor in t.items()}, r"does not fit MixSTEModel\(.*and 13 more"),
    ],
)
def test_misfits_are_named(spoil, message, tmp_path):
    path = save(adapt(network()), tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor.contiguous() for name, tensor in spoil(load_file(path)).items()}, path, metadata=metadata)
    model = adapt(network(), "mine")
    before = answer(model)
    with pytest.raises(ValueError, match=message):
        model.load_lora_adapter(path)
    assert model.active_adapters() == ["mine"] and torch.equal(answer(model), before)


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, b"\x10\0\0\0\0\0\0\0{"])
def test_damaged_files(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{FILE} is damaged"):
        network().load_lora_adapter(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"base_model": "{"},
        {"base_model": "[]"},
        {"base_model": '{"class": "MixSTEModel"}'},
        {"base_model": '{"class": 1, "sizes": {}, "fingerprint": []}'},
        {"base_model": '{"class": "MixSTEModel", "sizes": {}, "fingerprint": ["x"]}'},
        {"lora_adapter_metadata": '"text"'},
        {"lora_adapter_metadata": '{"lora_alpha": "big"}'},
        {"lora_adapter_metadata": '{"lora_alpha": NaN}'},
        {"lora_adapter_metadata": '{"lora_alpha": 4, "alpha_pattern": [1]}'},
        {"lora_adapter_metadata": '{"lora_alpha": 4, "alpha_pattern": {"(": 1}}'},
        {"lora_adapter_metadata": '{"lora_alpha": 4, "use_rslora": "yes"}'},
    ],
)
def test_damaged_headers(header, tmp_path):
    path = save(adapt(network()), tmp_path)
    save_file(load_file(path), path, metadata=header)
    model = network()
    with pytest.raises(ValueError, match=FILE):
        model.load_lora_adapter(path)
    assert is_plain(model)


@pytest.mark.parametrize("place", ["nothing", "no/such/folder", "folder/file.safetensors"])
def test_no_such_file(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file with an adapter at"):
        network().load_lora_adapter(place)


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (lambda m: m.add_adapter(LoraConfig(target_modules=["nowhere"]), "b"), "nowhere"),
        (lambda m: m.add_adapter(LoraConfig(target_modules=["norm1"]), "b"), "LayerNorm"),
        (lambda m: m.add_adapter(LoraConfig(target_modules=["attn.qkv"], use_dora=True), "b"), "plain low-rank"),
        (lambda m: m.add_adapter(LoraConfig(target_modules=["attn.qkv"], init_lora_weights="pissa"), "b"), "plain low-rank"),
        (lambda m: m.add_adapter(LoHaConfig(target_modules=["attn.qkv"]), "b"), "plain low-rank updates, got a LoHaConfig"),
        (lambda m: m.add_adapter({"r": 4}, "b"), "got a dict"),
        (lambda m: m.add_adapter(m.lora_config(), "a"), r"not among \['a'\], got 'a'"),
        (lambda m: m.add_adapter(m.lora_config(), "a.b"), "without a dot"),
        (lambda m: m.add_adapter(m.lora_config(), ""), "without a dot"),
        (lambda m: m.add_adapter(m.lora_config(rank=0), "b"), "rank must be an integer of at least 1, got 0"),
        (lambda m: m.add_adapter(m.lora_config(alpha=float("nan")), "b"), "alpha must be a finite number"),
        (lambda m: m.set_adapters("b"), r"among \['a'\], got \['b'\]"),
        (lambda m: m.set_adapters(["a"], [1, 2]), "one weight for each"),
        (lambda m: m.set_adapters("a", "much"), "weight"),
        (lambda m: m.set_adapters("a", float("inf")), "weight of an adapter must be a finite number, got inf"),
        (lambda m: m.set_adapters([]), "among"),
        (lambda m: m.delete_adapters(["a", "b"]), r"got \['a', 'b'\]"),
        (lambda m: m.fuse_lora(adapter_names=["b"]), "among"),
        (lambda m: m.fuse_lora(0), "must not be zero"),
        (lambda m: m.save_lora_adapter("x", "b"), "among"),
        (lambda m: m.save_lora_adapter("x", weight_name="a.bin"), r"must end with \.safetensors, got 'a\.bin'"),
    ],
)
def test_bad_arguments_change_nothing(attach, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = adapt(network(), "a")
    before, names = answer(model), list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model)
    assert (model.adapters, model.active_adapters(), list(model.state_dict())) == (["a"], ["a"], names)
    assert torch.equal(answer(model), before) and not list(tmp_path.iterdir())


def test_a_first_adapter_that_fits_nowhere_leaves_an_ordinary_network():
    model = network()
    with pytest.raises(ValueError, match="nowhere"):
        model.add_adapter(model.lora_config(target_modules=["nowhere"]))
    assert is_plain(model)
    adapt(model)


def test_fused_adapters_come_first():
    """Beside fused adapters PEFT passes over all others in silence."""
    model = adapt(adapt(network(), "a"), "b")
    config = model.lora_config()
    model.fuse_lora(adapter_names="a")
    for change in (
        lambda: model.add_adapter(config, "c"),
        lambda: model.set_adapters("b"),
        lambda: model.fuse_lora(),
        lambda: model.delete_adapters("a"),
    ):
        with pytest.raises(ValueError, match=r"adapters \['a'\] are fused.*unfuse_lora\(\) first"):
            change()


@pytest.mark.parametrize("action", ["disable_adapters", "enable_adapters", "fuse_lora"])
def test_without_adapters(action):
    with pytest.raises(ValueError, match="this MixSTEModel has no adapters"):
        getattr(network(), action)()


# PEFT is optional


def test_the_networks_come_without_peft():
    code = "import sys, probpose.models; print('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_what_to_install(monkeypatch, tmp_path):
    path, model = save(adapt(network()), tmp_path), network()
    monkeypatch.setitem(sys.modules, "peft", None)
    for action in (model.lora_config, lambda: model.add_adapter({}), lambda: model.load_lora_adapter(path)):
        with pytest.raises(ImportError, match=r"pip install probpose\[adapt\]"):
            action()
    model.unload_lora()
    model.save_pretrained(tmp_path / "model")
    assert model.active_adapters() == model.adapters == model.fused_adapters == []
