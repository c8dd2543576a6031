"""The root estimate finds the person whom the keypoints show."""

import math
import time

import pytest
import torch

from probpose.geometry import Camera, estimate_root, h36m_camera

CAMERAS = {
    "plain": Camera.from_image_size(1920, 1080),
    "distorting": h36m_camera(1),
    "opencv": Camera([900.0, 910.0], [640.0, 360.0], [-0.1, 0.02, 0.0], [1e-3, -2e-3], convention="opencv"),
}


def scene(frames=40, batch=2, seed=0):
    """Poses, and roots that swing with accelerations well below what the prior allows."""
    generator = torch.Generator().manual_seed(seed)
    pose = 0.3 * torch.randn(batch, frames, 17, 3, generator=generator, dtype=torch.float64)
    t = torch.arange(frames, dtype=torch.float64) / 30
    root = torch.stack([0.3 * torch.sin(t), 0.2 + 0.1 * t.sin(), 5 + 0.5 * torch.cos(t)], dim=-1)
    return pose, root + torch.arange(batch)[:, None, None] * torch.tensor([0.1, -0.1, 0.5])


def error(estimate, root):
    return (estimate - root).norm(dim=-1).max().item()


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
@pytest.mark.parametrize("frames", [1, 2, 3, 40])
def test_exact_keypoints_give_the_root(camera, frames):
    pose, root = scene(frames)
    keypoints = camera.project(pose + root[:, :, None])
    assert error(estimate_root(pose, keypoints, camera, acceleration=None), root) < 5e-3
    assert error(estimate_root(pose, keypoints, camera), root) < 2e-2


def test_dtype_and_shape_are_the_poses():
    pose, root = scene()
    keypoints = CAMERAS["plain"].project(pose + root[:, :, None])
    estimate = estimate_root(pose.float(), keypoints.float(), CAMERAS["plain"])
    assert estimate.dtype == torch.float32 and estimate.shape == (2, 40, 3)
    assert error(estimate, root) < 2e-2


def test_one_camera_per_clip():
    pose, root = scene()
    cameras = Camera.from_vector(torch.stack([h36m_camera(i).to_vector() for i in (0, 3)]))
    keypoints = cameras.project(pose + root[:, :, None])
    together = estimate_root(pose, keypoints, cameras)
    assert error(together, root) < 2e-2
    for b, index in enumerate((0, 3)):
        alone = estimate_root(pose[b : b + 1], keypoints[b : b + 1], h36m_camera(index))
        torch.testing.assert_close(alone[0], together[b], atol=1e-6, rtol=0)


def test_hypotheses_are_worked_through_one_by_one():
    pose, root = scene()
    camera = CAMERAS["distorting"]
    keypoints = camera.project(pose + root[:, :, None])
    hypotheses = pose[:, None] + 0.02 * torch.randn(2, 3, 40, 17, 3, generator=torch.Generator().manual_seed(1))
    confidence = torch.linspace(0.1, 1, 17).expand(2, 40, 17)
    together = estimate_root(hypotheses, keypoints, camera, confidence)
    assert together.shape == (2, 3, 40, 3)
    for k in range(3):
        torch.testing.assert_close(together[:, k], estimate_root(hypotheses[:, k], keypoints, camera, confidence), atol=1e-8, rtol=0)


@pytest.mark.parametrize("per_frame", [True, False])
def test_missing_joints_do_not_matter(per_frame):
    pose, root = scene()
    camera = CAMERAS["plain"]
    keypoints = camera.project(pose + root[:, :, None])
    hidden = torch.rand(2, 40, 17, generator=torch.Generator().manual_seed(2)) < 0.5
    options = {"acceleration": None} if per_frame else {}
    by_nan = estimate_root(pose, torch.where(hidden[..., None], torch.nan, keypoints), camera, **options)
    assert error(by_nan, root) < (1e-2 if per_frame else 2e-2)
    wrong = torch.where(hidden[..., None], -999.0, keypoints)
    by_confidence = estimate_root(pose, wrong, camera, (~hidden).double(), **options)
    torch.testing.assert_close(by_confidence, by_nan, atol=1e-8, rtol=0)


def test_outliers_and_noise():
    pose, root = scene()
    camera, generator = CAMERAS["distorting"], torch.Generator().manual_seed(3)
    noisy = camera.project(pose + root[:, :, None]) + 2 * torch.randn(2, 40, 17, 2, generator=generator)
    assert error(estimate_root(pose, noisy, camera), root) < 0.06
    outlier = torch.rand(2, 40, 17, generator=generator) < 0.15
    wrong = noisy + outlier[..., None] * 300 * torch.randn(2, 40, 17, 2, generator=generator)
    assert error(estimate_root(pose, wrong, camera), root) < 0.1
    per_frame = error(estimate_root(pose, noisy, camera, acceleration=None), root)
    assert error(estimate_root(pose, noisy, camera), root) < per_frame, "the motion prior takes noise away"


def test_trusted_joints_decide():
    """One joint of the pose is known, the others are 10 cm off."""
    pose, root = scene()
    camera = CAMERAS["plain"]
    keypoints = camera.project(pose + root[:, :, None])
    off = pose + 0.1 * torch.randn(pose.shape, generator=torch.Generator().manual_seed(4))
    off[..., 3, :] = pose[..., 3, :]
    sigma = torch.full((17,), 0.1, dtype=torch.float64)
    even = estimate_root(off, keypoints, camera, pose_sigma=sigma)
    sigma[3] = 0.001
    trusting = estimate_root(off, keypoints, camera, pose_sigma=sigma)

    def miss(estimate):
        return (camera.project(pose[..., 3, :] + estimate) - keypoints[..., 3, :]).norm(dim=-1).mean()

    assert miss(trusting) < miss(even) / 3


@pytest.mark.parametrize("hidden", [range(10, 15), range(5), range(35, 40), range(1, 40, 2)])
def test_frames_without_anyone_are_bridged(hidden):
    pose, root = scene()
    camera = CAMERAS["plain"]
    keypoints = camera.project(pose + root[:, :, None])
    keypoints[:, list(hidden)] = torch.nan
    assert error(estimate_root(pose, keypoints, camera), root) < 0.06


@pytest.mark.parametrize("frames", [2, 3, 30])
@pytest.mark.parametrize("per_frame", [True, False])
def test_one_seen_frame_places_the_whole_clip(frames, per_frame):
    """Nothing says that the person moves: it stays where it was seen."""
    pose, root = scene(frames)
    camera = CAMERAS["plain"]
    keypoints = camera.project(pose + root[:, :, None])
    keypoints[:, 1:] = torch.nan
    estimate = estimate_root(pose, keypoints, camera, **({"acceleration": None} if per_frame else {}))
    assert error(estimate, root[:, :1].expand_as(root)) < 2e-2


def test_always_in_front_of_the_camera():
    pose, root = scene()
    camera, generator = CAMERAS["plain"], torch.Generator().manual_seed(5)
    keypoints = camera.project(pose + root[:, :, None])
    single = torch.full_like(keypoints, torch.nan)
    single[:, 7, 5] = keypoints[:, 7, 5]
    worst = {
        "garbage": 1000 * torch.rand(2, 40, 17, 2, generator=generator).double(),
        "upside down": 2 * camera.centre - keypoints,
        "a single keypoint": single,
        "one point": torch.full_like(keypoints, 500.0),
        "huge": keypoints * 1e4,
    }
    for name, wrong in worst.items():
        estimate = estimate_root(pose, wrong, camera)
        assert torch.isfinite(estimate).all(), name
        assert (estimate[..., 2] >= 0.1).all(), name
    assert (estimate_root(torch.zeros_like(pose), keypoints, camera)[..., 2] >= 0.1).all()


def test_resolution_does_not_matter():
    pose, root = scene()
    camera = CAMERAS["plain"]
    keypoints = camera.project(pose + root[:, :, None]) + 5 * torch.randn(2, 40, 17, 2, generator=torch.Generator().manual_seed(6))
    twice = Camera(camera.focal * 2, camera.centre * 2)
    torch.testing.assert_close(estimate_root(pose, keypoints * 2, twice), estimate_root(pose, keypoints, camera), atol=1e-6, rtol=0)


def test_a_long_clip_is_fast():
    pose, root = scene(5000, batch=1)
    keypoints = CAMERAS["plain"].project(pose + root[:, :, None])
    start = time.process_time()
    estimate = estimate_root(pose.float(), keypoints.float(), CAMERAS["plain"])
    assert time.process_time() - start < 4, "one banded system, linear in the frames"
    assert error(estimate, root) < 2e-2


def test_no_gradient_is_kept():
    pose, root = scene(3)
    keypoints = CAMERAS["plain"].project(pose + root[:, :, None])
    assert not estimate_root(pose.requires_grad_(), keypoints, CAMERAS["plain"]).requires_grad


def test_errors():
    pose, root = scene(5)
    camera = CAMERAS["plain"]
    keypoints = camera.project(pose + root[:, :, None])
    for wrong in (pose[0], pose[..., :2]):
        with pytest.raises(ValueError, match=r"pose must have shape \(batch, \[hypotheses,\] frames, joints, 3\), got"):
            estimate_root(wrong, keypoints, camera)
    for wrong in (keypoints[0], keypoints[:, :4], keypoints[..., :1], keypoints[:1]):
        with pytest.raises(ValueError, match=r"keypoints_2d must have shape \(2, 5, 17, 2\)"):
            estimate_root(pose, wrong, camera)
    keypoints[1] = math.nan
    with pytest.raises(ValueError, match="no observed keypoint"):
        estimate_root(pose, keypoints, camera)
    with pytest.raises(ValueError, match="no observed keypoint"):
        estimate_root(pose[:1], keypoints[:1], camera, torch.zeros(1, 5, 17))
