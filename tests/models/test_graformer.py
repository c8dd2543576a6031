"""The two networks of DiffPose: numbers of the original release, and what must hold for any weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.hub import convert_original
from probpose.models import GraFormerDenoiser, GraFormerLifter
from probpose.models.embeddings import timestep_sinusoid
from probpose.models.graformer import GraphFeedForward, UnbiasedNorm, bone_graph, chebyshev_polynomials

TESTS = Path(__file__).resolve().parents[1]
# Outputs of the original implementation on small random weights, kept under the original's names.
GOLDEN = TESTS / "golden" / "diffpose.safetensors"
PARITY = TESTS.parents[1] / "shared" / "parity" / "diffpose" / "io.safetensors"
CHAIN = {"num_joints": 5, "edges": [(0, 1), (1, 2), (2, 3), (3, 4)]}
SMALL = {**CHAIN, "width": 16, "depth": 2, "num_attention_heads": 2}
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def parity():
    return load_file(PARITY)


def original_weights(golden, prefix):
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def denoiser(golden):
    return convert_original("diffpose", original_weights(golden, "checkpoint/"))


@pytest.fixture(scope="module")
def lifter(golden):
    return convert_original("diffpose_lifter", original_weights(golden, "checkpoint_pose/"), num_attention_heads=2)


def stirred(model, seed=0):
    """In eval mode, with weights far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def small_denoiser(**config):
    torch.manual_seed(0)
    return stirred(GraFormerDenoiser(**{**SMALL, **config}))


def small_lifter(**config):
    torch.manual_seed(0)
    return stirred(GraFormerLifter(**{**SMALL, **config}))


@pytest.fixture
def inputs():
    """Poses of 2 clips x 3 hypotheses x 4 frames, and a timestep for each frame."""
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, 5, 5), torch.tensor([[0, 12, 24, 50], [3, 3, 40, 1]])


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# Numbers of the original


@torch.no_grad()
@pytest.mark.parametrize(("mask", "output"), [(None, "output"), ("mask_shared", "output_mask_shared")])
def test_original_denoiser(denoiser, golden, mask, output):
    pose, timestep = golden["gcndiff.sample"][:, None], golden["gcndiff.timestep"]
    mask = None if mask is None else golden[f"gcndiff.{mask}"]
    close(denoiser(None, pose, timestep, joint_mask=mask).sample[:, 0], golden[f"gcndiff.{output}"])


@torch.no_grad()
def test_original_denoiser_in_training(denoiser, golden):
    prediction = denoiser(None, golden["forward5.noisy"][:, None], golden["forward5.timestep"]).sample[:, 0]
    close(prediction, golden["forward5.prediction"])
    loss = (prediction - golden["forward5.target"]).square().sum((1, 2)).mean()
    torch.testing.assert_close(loss, golden["forward5.loss"], atol=1e-3, rtol=0)


@torch.no_grad()
def test_original_lifter(lifter, golden):
    keypoints = golden["gcnpose.keypoints_2d"][:, None]
    close(lifter(keypoints).sample[:, 0], golden["gcnpose.output"])
    close(lifter(keypoints, joint_mask=golden["gcndiff.mask_shared"]).sample[:, 0], golden["gcnpose.output_mask_shared"])


@needs_parity
def test_original_graph(parity):
    edges = [tuple(edge) for edge in parity["graph.edges"].tolist()]
    for adjacency in (bone_graph(17, "h36m_17"), bone_graph(17, "h36m_17", edges)):
        close(adjacency, parity["graph.adjacency"], atol=1e-7)
        polynomials = chebyshev_polynomials(adjacency, 2)
        close(polynomials[1], parity["graph.laplacian"], atol=1e-6)
        close(polynomials, parity["graph.chebyshev"], atol=1e-6)


@needs_parity
@pytest.mark.parametrize("dim", [32, 33])
def test_original_timestep_sinusoid(parity, dim):
    close(timestep_sinusoid(parity["time.timesteps"], dim), parity[f"time.sinusoid_{dim}"])


@needs_parity
@torch.no_grad()
def test_original_intermediate_values(denoiser, lifter, parity):
    seen = {}

    def watch(model, network, **modules):
        modules |= {f"attention_{i}": block for i, block in enumerate(model.trunk.attention_blocks)}
        modules |= {f"gcn_{i}": block for i, block in enumerate(model.trunk.graph_blocks)}
        modules["input_conv"] = model.trunk.conv_in
        return [
            module.register_forward_hook(lambda _, __, out, key=f"{network}.mid_{name}": seen.update({key: out}))
            for name, module in modules.items()
        ]

    first = denoiser.trunk.attention_blocks[0]
    hooks = watch(
        denoiser, "gcndiff", temb=denoiser.time_embedding, attn0_norm=first.norm_1, attn0_mha=first.attn, attn0_graphnet=first.graph_net
    ) + watch(lifter, "gcnpose")
    denoiser(None, parity["gcndiff.sample"][:, None], parity["gcndiff.timestep"])
    lifter(parity["gcnpose.keypoints_2d"][:, None])
    for hook in hooks:
        hook.remove()
    assert seen.keys() == {key for key in parity if ".mid_" in key}
    for key, value in seen.items():
        torch.testing.assert_close(value, parity[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_class", "count"), [(GraFormerDenoiser, 1_025_674), (GraFormerLifter, 654_344)])
def test_published_size(model_class, count):
    with torch.device("meta"):
        assert model_class().num_parameters() == count


# Graphs


def test_bone_graph_of_a_chain():
    third = 1 / 3
    expected = [[0.5, 0.5, 0, 0], [third, third, third, 0], [0, third, third, third], [0, 0, 0.5, 0.5]]
    torch.testing.assert_close(bone_graph(4, "h36m_17", [(0, 1), (2, 1), (2, 3)]), torch.tensor(expected))


@pytest.mark.parametrize("order", range(5))
def test_polynomials_are_chebyshevs(order):
    adjacency = bone_graph(17, "h36m_17")
    values, vectors = np.linalg.eig(np.eye(17) - adjacency.double().numpy())
    polynomials = chebyshev_polynomials(adjacency, order)
    assert polynomials.shape == (order + 1, 17, 17)
    for k, polynomial in enumerate(polynomials):
        expected = vectors @ np.diag(np.polynomial.Chebyshev.basis(k)(values)) @ np.linalg.inv(vectors)
        np.testing.assert_allclose(polynomial.numpy(), expected, atol=2e-5)


def test_the_skeletons_bones_are_the_default():
    edges = [(0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (9, 10)]
    edges += [(8, 11), (11, 12), (12, 13), (8, 14), (14, 15), (15, 16)]
    assert torch.equal(bone_graph(17, "h36m_17"), bone_graph(17, "h36m_17", edges))


def test_sinusoid_of_odd_width_ends_with_a_zero():
    sinusoid = timestep_sinusoid(torch.tensor([0.0, 5.0]), 7)
    assert sinusoid.shape == (2, 7) and not sinusoid[:, -1].any()
    assert sinusoid[1, 0] == torch.tensor(5.0).sin() and sinusoid[1, 3] == torch.tensor(5.0).cos()


# Layers


def test_norm_has_the_unbiased_deviation():
    x = np.random.default_rng(0).normal(size=(3, 8))
    expected = (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(UnbiasedNorm(8)(torch.tensor(x)).detach().numpy(), expected, atol=1e-12)


def test_a_negative_degree_is_finite():
    layer = GraphFeedForward(8, 5)
    with torch.no_grad():
        layer.adjacency[:, 2] = -1
    assert layer(torch.randn(2, 5, 8)).isfinite().all()


@pytest.mark.parametrize("model_class", [GraFormerDenoiser, GraFormerLifter])
def test_tied_initialisation(model_class):
    blocks = model_class(**SMALL, tie_initialisation=True).trunk.attention_blocks
    first = blocks[0].state_dict()
    assert all(torch.equal(value, first[name]) for block in blocks for name, value in block.state_dict().items())
    for kind in ("weight", "bias"):
        query, key, value = first[f"attn.qkv.{kind}"].chunk(3)
        assert all(torch.equal(part, first[f"attn.proj.{kind}"]) for part in (query, key, value))
    free = model_class(**SMALL).trunk.attention_blocks
    assert not torch.equal(free[0].attn.proj.weight, free[1].attn.proj.weight)


# Samples are independent


@torch.no_grad()
def test_hypotheses_as_one_by_one(inputs):
    pose, timestep = inputs
    model = small_denoiser(context_channels=6)
    mask, context = torch.rand(2, 4, 5) > 0.3, torch.randn(2, 4, 5, 6)
    together = model(None, pose, timestep, mask, context).sample
    assert together.shape == pose.shape
    for k in range(3):
        close(together[:, k], model(None, pose[:, k], timestep, mask, context).sample)


@torch.no_grad()
def test_frames_as_one_by_one(inputs):
    pose, timestep = inputs
    model = small_denoiser(context_channels=6, context_level="frame")
    mask, context = torch.rand(2, 4, 5) > 0.3, torch.randn(2, 4, 1, 6)
    together = model(None, pose, timestep, mask, context).sample
    for f in range(4):
        one = slice(f, f + 1)
        close(together[:, :, one], model(None, pose[:, :, one], timestep[:, f], mask[:, one], context[:, one]).sample)


@torch.no_grad()
def test_a_timestep_for_all_for_clips_and_for_frames(inputs):
    pose, _ = inputs
    model = small_denoiser()
    expected = torch.cat([model(None, pose[:1], 7).sample, model(None, pose[1:], 20.5).sample])
    close(model(None, pose, torch.tensor([7, 20.5])).sample, expected)
    close(model(None, pose, torch.tensor([7, 20.5])[:, None].expand(2, 4)).sample, expected)
    assert not torch.allclose(model(None, pose, 7).sample, model(None, pose, 20.5).sample)


@torch.no_grad()
def test_lifter_frames_as_one_by_one():
    model, keypoints, mask = small_lifter(), torch.randn(2, 4, 5, 2), torch.rand(2, 4, 5) > 0.3
    together = model(keypoints, joint_mask=mask).sample
    assert together.shape == (2, 4, 5, 3)
    for b in range(2):
        for f in range(4):
            place = (slice(b, b + 1), slice(f, f + 1))
            close(together[place], model(keypoints[place], joint_mask=mask[place]).sample)


@torch.no_grad()
def test_masks(inputs):
    pose, timestep = inputs
    model = small_denoiser()
    plain = model(None, pose, timestep).sample
    close(model(None, pose, timestep, joint_mask=torch.ones(5)).sample, plain, atol=1e-6)
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[1, 2] = False
    hidden = model(None, pose, timestep, joint_mask=mask).sample
    assert hidden.isfinite().all()
    changed = (hidden - plain).abs().amax((1, 3, 4)) > 1e-4
    assert changed.tolist() == [[False] * 4, [False, False, True, False]]
    assert small_lifter()(torch.randn(1, 2, 5, 2), joint_mask=torch.zeros(2, 5)).sample.isfinite().all()


@torch.no_grad()
def test_keypoints_and_confidence_change_nothing(inputs):
    pose, timestep = inputs
    model = small_denoiser()
    given = model(torch.randn(2, 4, 5, 2), pose, timestep, confidence=torch.zeros(2, 4, 5))
    assert torch.equal(given.sample, model(None, pose, timestep, return_dict=False)[0])


# Context


@pytest.mark.parametrize(("level", "joints"), [("joint", 5), ("frame", 1)])
def test_context_is_silent_at_first_and_then_stays_in_its_frame(inputs, level, joints):
    pose, timestep = inputs
    context = torch.randn(2, 4, joints, 6)
    torch.manual_seed(0)
    model = GraFormerDenoiser(**SMALL, context_channels=6, context_level=level).eval()
    plain = model(None, pose, timestep).sample
    silent = model(None, pose, timestep, context=context).sample
    assert torch.equal(silent, plain)
    silent.square().sum().backward()
    assert model.context_projection.weight.grad.abs().sum() > 0  # it can learn to speak

    stirred(model)
    with torch.no_grad():
        heard = model(None, pose, timestep, context=context).sample
        context[0, 3, 0] += 1
        changed = (model(None, pose, timestep, context=context).sample - heard).abs().amax((1, 3, 4)) > 0
    assert changed.tolist() == [[False, False, False, True], [False] * 4]


def test_context_of_all_joints_alike_is_that_of_the_frame(inputs):
    pose, timestep = inputs
    joint, frame = (small_denoiser(context_channels=6, context_level=level) for level in ("joint", "frame"))
    frame.load_state_dict(
        joint.state_dict()
        | {f"context_projection.{k}": torch.cat([v] * 5) for k, v in joint.context_projection.state_dict().items()}
    )  # fmt: skip
    context = torch.randn(2, 4, 1, 6)
    expected = joint(None, pose, timestep, context=context.expand(-1, -1, 5, -1)).sample
    close(frame(None, pose, timestep, context=context).sample, expected)


@torch.no_grad()
def test_features_of_the_lifter_suit_a_denoiser(inputs):
    pose, timestep = inputs
    lifter = small_lifter(width=24)
    level, channels = lifter.context_shape
    out = lifter(torch.randn(2, 4, 5, 2), output_features=True)
    assert out.features.shape == (2, 4, 5, channels)
    close(lifter.trunk.head(out.features.flatten(0, 1)).unflatten(0, (2, 4)), out.sample)
    denoiser = small_denoiser(context_channels=channels, context_level=level)
    assert denoiser(None, pose, timestep, context=out.features).sample.shape == pose.shape
    assert lifter(torch.randn(2, 4, 5, 2)).features is None
    sample, features = lifter(torch.randn(2, 4, 5, 2), output_features=True, return_dict=False)
    assert (sample.shape, features.shape) == ((2, 4, 5, 3), (2, 4, 5, 24))


# Training, saving, precision


@pytest.mark.parametrize("context_level", [None, "joint", "frame"])
def test_every_parameter_gets_a_gradient(inputs, context_level):
    pose, timestep = inputs
    context = {}
    if context_level:
        context = {"context": torch.randn(2, 4, 5 if context_level == "joint" else 1, 6)}
    model = small_denoiser(**({"context_channels": 6, "context_level": context_level} if context_level else {})).train()
    model(None, pose, timestep, **context).sample.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    lifter = small_lifter().train()
    lifter(torch.randn(2, 4, 5, 2)).sample.square().sum().backward()
    assert [name for name, p in lifter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_dropout_only_while_training(inputs):
    pose, timestep = inputs
    model = small_denoiser()
    assert torch.equal(model(None, pose, timestep).sample, model(None, pose, timestep).sample)
    model.train()
    assert not torch.equal(model(None, pose, timestep).sample, model(None, pose, timestep).sample)
    still = small_denoiser(dropout=0.0, attention_dropout=0.0, graph_dropout=0.0)
    close(still.train()(None, pose, timestep).sample, still.eval()(None, pose, timestep).sample, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_memory", [True, False])
def test_original_networks_survive_saving(denoiser, lifter, golden, tmp_path, dtype, low_memory):
    calls = {
        denoiser: (None, golden["gcndiff.sample"][:, None], golden["gcndiff.timestep"]),
        lifter: (golden["gcnpose.keypoints_2d"][:, None],),
    }
    for model, arguments in calls.items():
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_memory)
        # the graph is in no file: it comes from the config
        assert not any("mixing" in name for name in loaded.state_dict())
        cast = type(model)(**model.config).eval()
        cast.load_state_dict(model.state_dict())
        cast.to(dtype)
        sample = loaded(*arguments).sample
        assert sample.dtype == dtype and torch.equal(sample, cast(*arguments).sample)
        close(sample.float(), model(*arguments).sample, atol=0 if dtype == torch.float32 else 0.1)


def test_config_survives_saving(tmp_path):
    model = GraFormerDenoiser(**SMALL, context_channels=6, context_level="frame", chebyshev_order=3, root_index=2, fps=25)
    model.save_pretrained(tmp_path)
    loaded = GraFormerDenoiser.from_pretrained(tmp_path)
    assert {k: v for k, v in loaded.config.items() if k in SMALL} == {**SMALL, "edges": [list(edge) for edge in SMALL["edges"]]}
    assert (loaded.config.context_level, loaded.config.chebyshev_order, loaded.config.root_index, loaded.config.fps) == ("frame", 3, 2, 25)
    mixing = [model.trunk.conv_in.mixing, loaded.trunk.conv_in.mixing]
    assert mixing[0].shape == (5, 20) and torch.equal(*mixing)


@torch.no_grad()
def test_autocast_keeps_the_pose_in_full_precision(inputs):
    pose, timestep = inputs
    model = small_denoiser()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(None, pose, timestep).sample
    exact = model(None, pose, timestep).sample
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


@torch.no_grad()
def test_attention_backend(inputs):
    pose, timestep = inputs
    model = small_denoiser()
    expected = model(None, pose, timestep).sample
    model.set_attention_backend("_native_math")
    close(model(None, pose, timestep).sample, expected)


@pytest.mark.parametrize("model_class", [GraFormerDenoiser, GraFormerLifter])
def test_public_module(model_class):
    assert model_class.__module__ == "probpose.models"


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noisy_pose": None}, "noisy_pose and timestep are required"),
        ({"timestep": None}, "noisy_pose and timestep are required"),
        ({"noisy_pose": torch.zeros(4, 5, 5)}, r"noisy_pose must have shape \(batch, \[hypotheses,\] frames, 5, 5\), got \(4, 5, 5\)"),
        ({"noisy_pose": torch.zeros(2, 4, 6, 5)}, "noisy_pose must have shape"),
        ({"noisy_pose": torch.zeros(2, 4, 5, 3)}, "noisy_pose must have shape"),
        ({"timestep": torch.zeros(3)}, r"timestep must be a number or have shape \(2,\) or \(2, 4\), got \(3,\)"),
        ({"timestep": torch.zeros(4, 2)}, "timestep must be a number"),
        ({"joint_mask": torch.ones(2, 3, 5)}, r"joint_mask must broadcast to \(2, 4, 5\), got \(2, 3, 5\)"),
        ({"context": torch.zeros(2, 4, 1, 6)}, r"context must have shape \(2, 4, 5, 6\), got \(2, 4, 1, 6\)"),
        ({"context": torch.zeros(2, 4, 5, 7)}, "context must have shape"),
    ],
)
def test_bad_inputs(inputs, arguments, message):
    pose, timestep = inputs
    with pytest.raises(ValueError, match=message):
        small_denoiser(context_channels=6)(None, **{"noisy_pose": pose, "timestep": timestep, **arguments})


def test_context_must_be_asked_for(inputs):
    with pytest.raises(ValueError, match="takes no context"):
        small_denoiser()(None, *inputs, context=torch.zeros(2, 4, 5, 6))


@pytest.mark.parametrize("shape", [(4, 5, 2), (2, 4, 6, 2), (2, 4, 5, 3), (1, 2, 4, 5, 2)])
def test_bad_lifter_inputs(shape):
    with pytest.raises(ValueError, match=r"keypoints_2d must have shape \(batch, frames, 5, 2\)"):
        small_lifter()(torch.zeros(shape))


@pytest.mark.parametrize("model_class", [GraFormerDenoiser, GraFormerLifter])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 3}, "divisible by the number of heads"),
        ({"edges": [(0, 5)]}, r"edges must join two of 5 joints, got \(0, 5\)"),
        ({"edges": [(-1, 2)]}, "edges must join two"),
        ({"edges": None}, r"num_joints is 5, but skeleton 'h36m_17' has 17: pass edges"),
    ],
)
def test_bad_config(model_class, config, message):
    with pytest.raises(ValueError, match=message):
        model_class(**{**SMALL, **config})


def test_bad_context_level():
    with pytest.raises(ValueError, match="context_level must be one of"):
        GraFormerDenoiser(**SMALL, context_channels=6, context_level="clip")
