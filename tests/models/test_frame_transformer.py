"""The frame-token denoiser: independence of hypotheses, missing joints, and the two symmetries that are built in."""

import pytest
import torch

from probpose.geometry import rotation_between_z_and
from probpose.models import FrameTransformerModel

SIZE = {"num_frames": 6, "num_joints": 5, "width": 32, "depth": 2, "num_attention_heads": 2}
FX, FY, CX, CY = CAMERA = (2.2, 2.3, 0.05, -0.02)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FrameTransformerModel(**SIZE, canonical_camera=CAMERA).eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return 0.3 * torch.randn(2, 6, 5, 2), torch.randn(2, 3, 6, 5, 3), torch.tensor([900, 7])


def test_hypotheses_and_windows_are_independent(model, inputs):
    keypoints, pose, t = inputs
    together = model(keypoints, pose, t).sample
    assert together.shape == pose.shape
    for b in range(2):
        for k in range(3):
            alone = model(keypoints[b : b + 1], pose[b : b + 1, k], int(t[b])).sample
            torch.testing.assert_close(together[b : b + 1, k], alone, atol=1e-5, rtol=1e-5)


def test_permuting_hypotheses_permutes_the_output(model, inputs):
    keypoints, pose, t = inputs
    order = [2, 0, 1]
    permuted = model(keypoints, pose[:, order], t).sample
    torch.testing.assert_close(permuted, model(keypoints, pose, t).sample[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_shorter_windows(model, inputs, frames):
    keypoints, pose, t = inputs
    out = model(keypoints[:, :frames], pose[:, :, :frames], t).sample
    assert out.shape == (2, 3, frames, 5, 3)
    assert out.isfinite().all()


@pytest.mark.parametrize("value", [5.0, float("nan"), float("inf")])
def test_missing_joints_have_no_influence(model, inputs, value):
    keypoints, pose, t = inputs
    confidence = torch.ones(2, 6, 5)
    confidence[0, 2:4, 1] = 0
    confidence[1] = 0
    expected = model(keypoints, pose, t, confidence).sample
    spoiled = torch.where(confidence[..., None] > 0, keypoints, value)
    torch.testing.assert_close(model(spoiled, pose, t, confidence).sample, expected)
    assert expected.isfinite().all()


def test_confidence_defaults_to_one_and_matters(model, inputs):
    keypoints, pose, t = inputs
    ones = torch.ones(2, 6, 5)
    assert torch.equal(model(keypoints, pose, t).sample, model(keypoints, pose, t, ones).sample)
    assert not torch.allclose(model(keypoints, pose, t).sample, model(keypoints, pose, t, 0.3 * ones).sample)


def to_keypoints(slope):
    return (slope * slope.new_tensor([FX, FY]) + slope.new_tensor([CX, CY])).float()


def turned_views(model, spread):
    """Outputs for a person in the image centre, turned afterwards, and for the same rays and poses turned beforehand.

    `spread (2,)`: how far the joints scatter along the direction of the turn and across it.
    """
    torch.manual_seed(3)
    aside = torch.tensor([0.35, -0.2])
    turn = rotation_between_z_and(torch.cat([aside, torch.ones(1)]))
    along = aside / aside.norm()
    axes = torch.stack([along, along.flip(0) * torch.tensor([-1.0, 1.0])])
    local = (torch.randn(1, 6, 5, 2) * spread) @ axes
    local = local - local.mean((1, 2), keepdim=True)
    rays = torch.nn.functional.pad(local, (0, 1), value=1.0) @ turn.T
    pose = torch.randn(1, 3, 6, 5, 3)
    with torch.no_grad():
        model.keypoint_embedding.weight[:, 15:17] = 0  # the direction is also an input number
        straight = model(to_keypoints(local), pose, 500).sample
        turned = model(to_keypoints(rays[..., :2] / rays[..., 2:]), pose @ turn.T, 500).sample
    assert (straight - turned).abs().max() > 0.01
    return straight @ turn.T, turned


def test_equivariant_to_the_viewing_direction(model):
    """Turn the rays to the joints and the poses: the answer turns with them."""
    expected, turned = turned_views(model, torch.tensor([0.0, 0.1]))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_nearly_equivariant_for_an_extended_person(model):
    """The virtual camera looks at the mean of the image points, and turning keeps means only to first order."""
    errors = [torch.dist(*turned_views(model, torch.tensor([spread, spread]))).item() for spread in (0.1, 0.01)]
    assert errors[0] < 0.2
    assert errors[1] < 0.15 * errors[0]


def test_invariant_to_image_scale(model, inputs):
    """A person seen twice as large: the same answer, but for the extent as an input number."""
    keypoints, pose, t = inputs
    with torch.no_grad():
        model.keypoint_embedding.weight[:, 17] = 0
    centre = torch.tensor([CX, CY])
    centred = 0.03 * (keypoints - keypoints.mean((1, 2), keepdim=True))  # far away: image offsets and angles are the same
    expected = model(centred + centre, pose, t).sample
    torch.testing.assert_close(model(2 * centred + centre, pose, t).sample, expected, atol=1e-4, rtol=0)


def test_mirrored_input_has_mirrored_features_in_the_virtual_camera(model):
    """The virtual camera commutes with mirroring, on which flip averaging rests."""
    direction = torch.tensor([0.4, -0.1, 1.0])
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    turned = rotation_between_z_and(mirror @ direction)
    torch.testing.assert_close(turned, mirror @ rotation_between_z_and(direction) @ mirror)


def test_unconditional_model_ignores_keypoints(inputs):
    keypoints, pose, t = inputs
    model = FrameTransformerModel(**SIZE, conditional=False).eval()
    assert torch.equal(model(None, pose, t).sample, model(keypoints, pose, t).sample)


def test_every_parameter_gets_a_gradient(model, inputs):
    model.train()
    model(*inputs).sample.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_save_and_load(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = FrameTransformerModel.from_pretrained(tmp_path)
    assert torch.equal(model(*inputs).sample, loaded(*inputs).sample)
    assert FrameTransformerModel.__module__ == "probpose.models"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, p, t: (k, None, t), "noisy_pose and timestep are required"),
        (lambda k, p, t: (k, p, None), "noisy_pose and timestep are required"),
        (lambda k, p, t: (None, p, t), r"keypoints_2d must have shape \(2, 6, 5, 2\), got None"),
        (lambda k, p, t: (k[:, :3], p, t), r"keypoints_2d must have shape \(2, 6, 5, 2\), got \(2, 3, 5, 2\)"),
        (lambda k, p, t: (k, p[..., :4, :], t), "must hold 5 joints"),
        (lambda k, p, t: (k.repeat(1, 2, 1, 1), p.repeat(1, 1, 2, 1, 1), t), "at most 6 frames"),
    ],
)
def test_bad_inputs(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(*change(*inputs))
