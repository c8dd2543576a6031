"""The learned aggregator: what must hold for any weights, and that it starts as the mean."""

import pytest
import torch

from probpose.geometry import Camera, normalise_screen, rotation_between_z_and
from probpose.models import AttentionAggregator
from probpose.models import attention_aggregator as module

SIZE = {"num_joints": 5, "width": 32, "depth": 2, "num_attention_heads": 2}
IMAGE = (1920, 1080)
CAMERA = Camera.from_image_size(*IMAGE)


def untrained(**config):
    torch.manual_seed(0)
    return AttentionAggregator(**{**SIZE, **config}).eval()


def trained(**config):
    """Weights that do something."""
    model = untrained(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model():
    return trained()


def scene(batch=2, count=7, frames=6, joints=5, seed=1):
    """Hypotheses around a pose, and what a noisy detector sees of it."""
    generator = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch, 1, joints, 3, generator=generator) + 0.02 * torch.randn(batch, frames, joints, 3, generator=generator)
    hypotheses = pose[:, None] + 0.05 * torch.randn(batch, count, frames, joints, 3, generator=generator)
    pose[..., 0, :] = hypotheses[..., 0, :] = 0
    root = torch.tensor([0.4, -0.2, 4.5]) + 0.05 * torch.randn(batch, frames, 3, generator=generator)
    keypoints = CAMERA.project(pose + root[:, :, None]) + 4 * torch.randn(batch, frames, joints, 2, generator=generator)
    return {"hypotheses": hypotheses, "keypoints_2d": keypoints, "camera": CAMERA, "root": root}


def assert_same(one, other, atol=1e-6):
    for name in ("pose", "uncertainty", "weights"):
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


# What it computes


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_untrained_it_returns_the_mean_and_the_spread(count):
    inputs = scene(count=count)
    hypotheses = inputs["hypotheses"]
    out = untrained()(**inputs)
    torch.testing.assert_close(out.pose, hypotheses.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.weights, torch.full(hypotheses.shape[:-1], 1 / count))
    spread = (hypotheses - hypotheses.mean(1, keepdim=True)).square().sum(-1).mean(1)
    torch.testing.assert_close(out.uncertainty, (spread + 0.02**2).sqrt(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@torch.no_grad()
def test_any_number_of_hypotheses(model, count):
    out = model(**scene(count=count))
    assert out.pose.shape == (2, 6, 5, 3) and out.uncertainty.shape == (2, 6, 5) and out.weights.shape == (2, count, 6, 5)
    assert out.pose.isfinite().all() and (out.uncertainty > 0).all() and (out.weights >= 0).all()
    torch.testing.assert_close(out.weights.sum(1), torch.ones(2, 6, 5))
    assert count == 1 or out.weights.std(1).mean() > 0.1 / count  # it does choose


@torch.no_grad()
def test_without_correction_the_pose_is_a_weighted_mean():
    inputs = scene()
    plain, corrected = trained(correction=False)(**inputs), trained()(**inputs)
    mixture = (plain.weights[..., None] * inputs["hypotheses"]).sum(1)
    torch.testing.assert_close(plain.pose, mixture)
    assert torch.equal(plain.weights, corrected.weights)
    assert 1e-3 < (corrected.pose - mixture).norm(dim=-1).mean() < 0.2


@torch.no_grad()
def test_the_order_of_hypotheses_does_not_matter(model):
    inputs = scene(count=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    out = model(**inputs)
    permuted = model(**{**inputs, "hypotheses": inputs["hypotheses"][:, order]})
    assert_same(permuted, {**out, "weights": out.weights[:, order]})


@torch.no_grad()
def test_frames_and_clips_are_independent(model):
    inputs = scene(frames=6)
    whole = model(**inputs)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        alone = model(inputs["hypotheses"][:, :, part], inputs["keypoints_2d"][:, part], CAMERA, inputs["root"][:, part])
        assert_same(alone, {"pose": whole.pose[:, part], "uncertainty": whole.uncertainty[:, part], "weights": whole.weights[:, :, part]})
    for clip in (slice(0, 1), slice(1, 2)):
        alone = model(**{k: v if k == "camera" else v[clip] for k, v in inputs.items()})
        assert_same(alone, {name: value[clip] for name, value in whole.items()})


@pytest.mark.parametrize("most", [1, 140, 200, 10**9])  # 70 are one frame of both clips
@torch.no_grad()
def test_long_clips_are_worked_through_in_pieces(model, monkeypatch, most):
    inputs = scene()
    expected, pieces, attend = model(**inputs), [], model._attend
    monkeypatch.setattr(module, "MAX_TOKENS", most)
    monkeypatch.setattr(model, "_attend", lambda *tokens: pieces.append(tokens[0].shape[1]) or attend(*tokens))
    assert_same(model(**inputs), expected)
    assert sum(pieces) == 6 and max(pieces) == min(6, max(1, most // 70))


# Cameras and keypoints


@pytest.mark.parametrize("given", [True, False], ids=["root given", "root estimated"])
@torch.no_grad()
def test_the_unit_of_keypoints_and_camera_does_not_matter(model, given):
    inputs = scene()
    inputs["root"] = inputs["root"] if given else None
    screen = {**inputs, "keypoints_2d": normalise_screen(inputs["keypoints_2d"], IMAGE), "camera": CAMERA.normalised()}
    assert_same(model(**screen), model(**inputs), atol=1e-5)


@torch.no_grad()
def test_one_camera_per_clip(model):
    inputs = scene()
    other = Camera(CAMERA.focal * torch.tensor([0.8, 0.9]), CAMERA.centre + 30, slope_limit=CAMERA.slope_limit)
    both = Camera(torch.stack([CAMERA.focal, other.focal]), torch.stack([CAMERA.centre, other.centre]), slope_limit=CAMERA.slope_limit)
    together = model(**{**inputs, "camera": both})
    for clip, camera in enumerate((CAMERA, other)):
        tensors = {k: v[clip : clip + 1] for k, v in inputs.items() if k != "camera"}
        assert_same(model(**tensors, camera=camera), {name: value[clip : clip + 1] for name, value in together.items()})


@torch.no_grad()
def test_the_pose_turns_with_the_line_of_sight(model):
    """Features and correction live in axes along the line of sight. Nothing is observed: residuals are measured in the image."""
    inputs = scene(frames=1)
    direction = torch.tensor([0.35, -0.2, 1.0])
    turn, hidden = rotation_between_z_and(direction), torch.zeros(2, 1, 5)
    straight = model(**{**inputs, "root": torch.tensor([0.0, 0.0, 4.0]).expand(2, 1, 3)}, confidence=hidden)
    aside = {"hypotheses": inputs["hypotheses"] @ turn.T, "root": (4 * direction).expand(2, 1, 3)}
    turned = model(**{**inputs, **aside}, confidence=hidden)
    assert_same(turned, {**straight, "pose": straight.pose @ turn.T}, atol=1e-5)
    assert (straight.pose - inputs["hypotheses"].mean(1)).abs().max() > 1e-3


@pytest.mark.parametrize("given", [True, False], ids=["root given", "root estimated"])
@pytest.mark.parametrize("value", [0.0, 1e6, float("nan"), float("inf")])
@torch.no_grad()
def test_what_is_not_observed_has_no_influence(model, value, given):
    inputs = scene()
    inputs["root"] = inputs["root"] if given else None
    confidence = torch.ones(2, 6, 5)
    confidence[0, 2:4, 1] = confidence[1, 3] = 0
    expected = model(**inputs, confidence=confidence)
    spoiled = torch.where(confidence[..., None] > 0, inputs["keypoints_2d"], value)
    out = model(**{**inputs, "keypoints_2d": spoiled}, confidence=confidence)
    assert_same(out, expected)
    assert all(tensor.isfinite().all() for tensor in out.values())


@torch.no_grad()
def test_nan_keypoints_have_no_confidence(model):
    inputs = scene()
    confidence = torch.ones(2, 6, 5)
    confidence[:, :, 3] = 0
    nan = torch.where(confidence[..., None] > 0, inputs["keypoints_2d"], torch.nan)
    assert_same(model(**{**inputs, "keypoints_2d": nan}), model(**inputs, confidence=confidence))


@torch.no_grad()
def test_confidence_defaults_to_one_and_matters(model):
    inputs, ones = scene(), torch.ones(2, 6, 5)
    assert_same(model(**inputs), model(**inputs, confidence=ones), atol=0)
    assert not torch.allclose(model(**inputs).pose, model(**inputs, confidence=0.3 * ones).pose)


@torch.no_grad()
def test_it_looks_at_reprojections(model):
    """Keypoints that move change the weights; a hypothesis's residual is the only thing they tell it."""
    inputs = scene()
    moved = {**inputs, "keypoints_2d": inputs["keypoints_2d"] + 40}
    assert (model(**moved).weights - model(**inputs).weights).abs().max() > 0.01


# A component of diffusers


def test_every_parameter_gets_a_gradient(model):
    model.train()
    out = model(**scene())
    (out.pose.square().sum() + out.uncertainty.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_an_untrained_network_can_begin_to_learn():
    """The output layers start at zero, and theirs is the first gradient."""
    model = untrained()
    (model(**scene()).pose - 0.1).square().sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (model.weight_out, model.joint_out))


@torch.no_grad()
def test_the_scale_of_the_uncertainty(model):
    inputs = scene()
    before = model(**inputs)
    model.uncertainty_scale *= torch.arange(1.0, 6.0)
    after = model(**inputs)
    assert_same(after, {**before, "uncertainty": before.uncertainty * torch.arange(1.0, 6.0)})


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    model.uncertainty_scale += torch.rand(5)
    model.save_pretrained(tmp_path)
    loaded = AttentionAggregator.from_pretrained(tmp_path)
    assert_same(loaded(**scene()), model(**scene()), atol=0)
    assert torch.equal(loaded.uncertainty_scale, model.uncertainty_scale)
    assert dict(loaded.config)["width"] == 32 and AttentionAggregator.__module__ == "probpose.models"


@torch.no_grad()
def test_tuples(model):
    inputs = scene()
    assert all(torch.equal(a, b) for a, b in zip(model(**inputs, return_dict=False), model(**inputs).values(), strict=True))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
@torch.no_grad()
def test_half_precision_weights(model, dtype, atol):
    inputs = scene(frames=2)
    expected = model(**inputs)
    out = model.to(dtype)(**inputs)
    assert out.pose.dtype == out.weights.dtype == out.uncertainty.dtype == torch.float32
    assert_same(out, expected, atol=atol)


@pytest.mark.parametrize("root", [torch.float16, torch.float32, torch.float64, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@torch.no_grad()
def test_hypotheses_of_another_precision(model, dtype, root):
    inputs = scene()
    inputs["hypotheses"] = inputs["hypotheses"].to(dtype)
    inputs["root"] = root and inputs["root"].to(root)
    expected = {k: v.float() if k in ("hypotheses", "root") and v is not None else v for k, v in inputs.items()}
    out = model(**inputs)
    assert_same(out, model(**expected), atol=1e-5)
    assert out.pose.dtype == torch.float32


@torch.no_grad()
def test_attention_backends(model):
    expected = model(**scene())
    for backend in ("native", "_native_math"):
        model.set_attention_backend(backend)
        assert_same(model(**scene()), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be one of .*native.*, got 'fastest'"):
        model.set_attention_backend("fastest")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"'xformers' cannot run here \(torch.float32 on cpu\)") as caught:
            model.set_attention_backend("xformers")
        assert len(str(caught.value).splitlines()) == 1
        assert_same(model(**scene()), expected, atol=1e-5)  # it keeps the one it had


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypotheses": torch.zeros(2, 7, 6, 4, 3)}, r"\(batch, num_hypotheses, frames, 5, 3\), got \(2, 7, 6, 4, 3\)"),
        ({"hypotheses": torch.zeros(7, 6, 5, 3)}, r"got \(7, 6, 5, 3\)"),
        ({"hypotheses": torch.zeros(2, 7, 6, 5, 2)}, r"got \(2, 7, 6, 5, 2\)"),
        ({"keypoints_2d": None}, "AttentionAggregator compares reprojections: it needs keypoints_2d and camera"),
        ({"camera": None}, "it needs keypoints_2d and camera"),
    ],
)
def test_bad_inputs(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**{**scene(), **changes})


def test_bad_config():
    with pytest.raises(ValueError, match="width 32 and 3 heads"):
        untrained(num_attention_heads=3)
