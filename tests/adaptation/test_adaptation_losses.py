"""What adaptation minimises: published numbers, and the same by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.adaptation.losses import (
    bend_loss,
    best_hypothesis_composite,
    discriminator_loss,
    feedback_loss,
    generator_loss,
    hardness_ratio,
    multi_hypothesis_loss,
    range_loss,
    rectified_loss,
)
from probpose.geometry import Camera, denormalise_screen, reprojection_error

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
CAMERA = Camera(torch.tensor([1100.0, 1100.0], dtype=torch.float64), torch.tensor([500.0, 510.0], dtype=torch.float64))


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, atol=1e-9, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


# Published numbers


@needs_parity
def test_poseda_parity():
    values = load_file(PARITY / "poseda" / "io.safetensors")
    for d in ("3", "2"):
        real, fake = values[f"ex4.d{d}_real"], values[f"ex4.d{d}_fake"]
        close(discriminator_loss(real, fake), values[f"ex4.loss_d{d}"])
        close(generator_loss(fake, real), values[f"ex4.loss_g{d}"])
    close(generator_loss(values["ex4.d3_fake"]), values["ex4.loss_g3_fake_only"])
    close(bend_loss(values["ex3.ba_diff"]), values["ex4.ba_range_loss"])
    close(range_loss(values["ex4.range_in"], 0.205, 0.165), values["ex4.range_loss"])
    close(rectified_loss(values["ex3.blr"]), values["ex4.blr_loss"])
    close(hardness_ratio(values["ex4.err_aug"], values["ex4.err_orig"], "h36m_16"), values["ex4.hard_ratio"])


@needs_parity
def test_posynda_parity():
    values = load_file(PARITY / "posynda" / "io.safetensors")
    poses, root, camera = values["loss.pred"], values["loss.traj"], Camera.from_vector(values["cam.ts1_4"])
    keypoints = denormalise_screen(values["loss.x2d"], (2048, 2048))
    errors = reprojection_error(poses, keypoints, camera, root)
    close(errors, values["loss.err2d"], rtol=1e-5, atol=1e-2)
    composite, best = best_hypothesis_composite(poses, errors)
    close(composite, values["loss.selected"])
    close(best, values["loss.err2d"].amin(2), rtol=1e-5, atol=1e-2)

    target = multi_hypothesis_loss(poses, keypoints, camera, root, weight_3d=1.0)
    source = multi_hypothesis_loss(poses, keypoints, camera, root, values["loss.target3d"], weight_3d=1.0)
    metres = multi_hypothesis_loss(poses / 1000, keypoints, camera, root / 1000)
    for found, expected in [
        (target.l2d, "l2d"),
        (target.l3d, "l3d_target"),
        (target.total, "total_target"),
        (source.l2d, "l2d"),
        (source.l3d, "l3d_source"),
        (source.total, "total_source"),
        (metres.total, "total_target"),
    ]:
        close(found, values[f"loss.{expected}"], rtol=1e-5)
    close(target.composite, values["loss.selected"])


# Augmentors


def test_range_by_hand():
    close(
        range_loss(torch.tensor([0.02, 0.9, 0.205, 0.5], dtype=torch.float64), 0.205, 0.165), torch.tensor(0.15106875, dtype=torch.float64)
    )
    close(rectified_loss(torch.tensor([0.05, -0.2], dtype=torch.float64)), torch.tensor(0.02, dtype=torch.float64))


def test_bend_is_judged_per_pose():
    bend = torch.tensor([[0.0, 0.41], [0.9, 0.9]], dtype=torch.float64)  # means 0.205, inside, and 0.9, outside
    close(bend_loss(bend), torch.tensor(0.695**2 / 2, dtype=torch.float64))


def test_adversarial_losses_have_their_minima_where_they_should():
    ones, zeros = torch.ones(4, 5), torch.zeros(4, 5)
    assert discriminator_loss(ones, zeros) == 0 and discriminator_loss(zeros, ones) == 1
    assert generator_loss(ones) == 0 and generator_loss(zeros) == 0.5 and generator_loss(ones, ones) == 0.5


def test_hardness_has_the_same_groups_for_17_joints():
    errors, originals = draw(5, 17).abs(), draw(5, 17, seed=1).abs()
    sixteen = [joint for joint in range(17) if joint != 9]  # without the neck
    close(hardness_ratio(errors, originals, "h36m_17"), hardness_ratio(errors[:, sixteen], originals[:, sixteen], "h36m_16"))
    close(hardness_ratio(3 * originals, originals, "h36m_17"), torch.full((5, 3), 3.0).double())
    close(hardness_ratio(errors, originals, "h36m_17")[:, 2], errors[:, [3, 6, 13, 16]].sum(1) / originals[:, [3, 6, 13, 16]].sum(1))


def test_feedback_rises_with_progress():
    five, seventeen = torch.full((2, 3), 5.5), torch.full((2, 3), 17.0)
    assert feedback_loss(five, seventeen, 0.0) == pytest.approx(0.1 * 2.5**2) and feedback_loss(five, seventeen, 1.0) == 0
    assert feedback_loss(five, seventeen + 16, 1.0) == pytest.approx(0.01 * 16**2)
    assert feedback_loss(five, seventeen + 16, 1.0, turn_weight=1.0) == pytest.approx(16**2)


# Hypotheses


def scene(batch=2, steps=2, hypotheses=3, frames=4, joints=17):
    poses = draw(batch, steps, hypotheses, frames, joints, 3, scale=0.3)
    root = draw(batch, frames, 3, seed=1, scale=0.2) + torch.tensor([0.0, 0.0, 5.0])
    keypoints = CAMERA.project(draw(batch, frames, joints, 3, seed=2, scale=0.3) + root[..., None, :])
    return poses, keypoints, root


def test_agrees_with_numpy():
    poses, keypoints, root = scene()
    label = draw(2, 4, 17, 3, seed=3)
    p, x, r = poses.numpy(), keypoints.numpy()[:, None, None], root.numpy()[:, None, None, :, None]
    u = (p + r)[..., :2] / (p + r)[..., 2:] * 1100 + np.array([500, 510])
    errors = np.linalg.norm(u - x, axis=-1)
    best = errors.argmin(2)
    composite = np.take_along_axis(p, best[:, :, None, ..., None], axis=2)
    target = multi_hypothesis_loss(poses, keypoints, CAMERA, root)
    source = multi_hypothesis_loss(poses, keypoints, CAMERA, root, label, weight_2d=2.0, weight_3d=3.0)
    np.testing.assert_allclose(target.composite.numpy(), composite[:, :, 0], atol=1e-12)
    l2d = errors.min(2).mean()
    l3d = np.linalg.norm(p - composite, axis=-1).mean()
    supervised = np.linalg.norm(p - label.numpy()[:, None, None], axis=-1).mean()
    assert target.l2d.item() == pytest.approx(l2d) and target.l3d.item() == pytest.approx(l3d)
    assert target.total.item() == pytest.approx(0.5 * l2d + 1000 * l3d)
    assert source.l3d.item() == pytest.approx(supervised) and source.total.item() == pytest.approx(2 * l2d + 3 * supervised)
    flat = multi_hypothesis_loss(poses[:, 0], keypoints, CAMERA, root)  # without sampling steps
    close(flat.composite, target.composite[:, 0])


def test_the_composite_teaches_but_does_not_learn():
    poses, keypoints, root = scene(batch=1, steps=1, frames=1, joints=1)
    gradients = []
    for detach in (True, False):
        value = poses.clone().requires_grad_()
        multi_hypothesis_loss(value, keypoints, CAMERA, root, detach=detach, weight_2d=0.0).total.backward()
        gradients.append(value.grad.flatten(0, 4))
    best = int(gradients[0].norm(dim=-1).argmin())
    assert gradients[0][best].norm() == 0 and gradients[1][best].norm() > 0
    close(gradients[1].sum(0), torch.zeros(3).double(), atol=1e-6)  # pushes and pulls cancel


def test_hidden_joints_count_in_no_loss():
    poses, keypoints, root = scene()
    hidden = keypoints.clone()
    hidden[:, :, 5:] = torch.nan
    full = multi_hypothesis_loss(poses[..., :5, :], keypoints[..., :5, :], CAMERA, root)
    part = multi_hypothesis_loss(poses.requires_grad_(), hidden, CAMERA, root)
    close(part.l2d, full.l2d)
    close(part.l3d, full.l3d)
    close(part.composite[..., 5:, :], poses[..., 5:, :].mean(2))
    part.total.backward()
    assert poses.grad.isfinite().all() and not poses.grad[..., 5:, :].any()
    nothing = multi_hypothesis_loss(poses, torch.full_like(keypoints, torch.nan), CAMERA, root)
    assert nothing.total == 0


def test_only_good_reprojections_teach():
    poses, keypoints, root = scene()
    errors = reprojection_error(poses, keypoints, CAMERA, root).amin(2)
    limit = errors.median().item()
    found = multi_hypothesis_loss(poses, keypoints, CAMERA, root, max_error=limit)
    distances = (poses - found.composite[:, :, None]).norm(dim=-1)
    close(found.l3d, distances[(errors <= limit)[:, :, None].expand_as(distances)].mean())


def test_errors():
    poses, keypoints, root = scene()
    with pytest.raises(ValueError, match="an axis that keypoints_2d"):
        multi_hypothesis_loss(poses[:, 0, 0], keypoints, CAMERA, root)
    with pytest.raises(ValueError, match=r"label must have shape \(2, 4, 17, 3\)"):
        multi_hypothesis_loss(poses, keypoints, CAMERA, root, keypoints)
    with pytest.raises(ValueError, match="do not fit"):
        best_hypothesis_composite(poses, torch.zeros(2, 2, 3, 4, 16))
    with pytest.raises(ValueError, match="progress"):
        feedback_loss(torch.ones(1, 3), torch.ones(1, 3), 1.5)
    with pytest.raises(ValueError, match=r"lacks \['head'\]"):
        hardness_ratio(torch.ones(2, 33), torch.ones(2, 33), "mediapipe_33")
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 17\)"):
        hardness_ratio(torch.ones(2, 16), torch.ones(2, 16), "h36m_17")
