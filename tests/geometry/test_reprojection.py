import pytest
import torch

from probpose.geometry import Camera, h36m_camera, reprojection_error, select_by_reprojection


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(11)
    pose = 0.4 * torch.randn(2, 3, 5, 4, 17, 3, generator=generator)
    root = torch.tensor([0.1, 0.3, 5.0]) + 0.1 * torch.randn(2, 4, 3, generator=generator)
    camera = h36m_camera(2)
    return pose, camera.project(pose[:, 0, 0] + root[:, :, None]), camera, root


def test_the_hypothesis_that_made_the_keypoints_has_no_error(scene):
    errors = reprojection_error(*scene)
    assert errors.shape == (2, 3, 5, 4, 17)
    assert torch.allclose(errors[:, 0, 0], torch.zeros(2, 4, 17), atol=1e-3)
    assert errors[:, :, 1:].median() > 10
    assert (select_by_reprojection(errors, dim=2)[:, 0] == 0).all()


def test_axes_that_the_keypoints_lack_are_independent(scene):
    pose, keypoints, camera, root = scene
    errors = reprojection_error(pose, keypoints, camera, root)
    assert torch.allclose(reprojection_error(pose[:, 1], keypoints, camera, root), errors[:, 1], atol=1e-3)
    assert torch.allclose(reprojection_error(pose[:, 1, 2], keypoints, camera, root), errors[:, 1, 2], atol=1e-3)
    assert torch.allclose(reprojection_error(pose[1], keypoints[1], camera, root[1]), errors[1], atol=1e-3)


def test_roots_may_be_shared_or_one_per_hypothesis(scene):
    pose, keypoints, camera, root = scene
    expected = reprojection_error(pose, keypoints, camera, root)
    same = root[:, None].expand(-1, 5, -1, -1)
    for form in (root[:, :, None], same, same[..., None, :], same[:, None].expand(-1, 3, -1, -1, -1)):
        assert torch.allclose(reprojection_error(pose, keypoints, camera, form), expected, atol=1e-3)
    own = same + torch.arange(5.0)[:, None, None]
    errors = reprojection_error(pose, keypoints, camera, own)
    for k in range(5):
        assert torch.allclose(errors[:, :, k], reprojection_error(pose[:, :, k], keypoints, camera, own[:, k]), atol=1e-3)


def test_a_single_frame_keeps_its_roots_apart(scene):
    pose, keypoints, camera, root = scene
    pose, keypoints, root = pose[..., :1, :, :], keypoints[:, :1], root[:, :1]
    expected = reprojection_error(pose, keypoints, camera, root)
    for form in (root[:, None].expand(-1, 5, -1, -1), root[:, :, None]):
        assert torch.allclose(reprojection_error(pose, keypoints, camera, form), expected, atol=1e-3)


def test_cameras_may_be_one_per_clip_or_frame(scene):
    pose, keypoints, _, root = scene
    vectors = torch.stack([h36m_camera(i).to_vector() for i in range(4)])
    errors = reprojection_error(pose, keypoints, vectors[:2], root)
    for b in range(2):
        single = reprojection_error(pose[b], keypoints[b], h36m_camera(b), root[b])
        assert torch.allclose(errors[b], single, atol=1e-3)
    errors = reprojection_error(pose, keypoints, Camera.from_vector(vectors.expand(2, 4, 9)), root)
    for f in range(4):
        frame = slice(f, f + 1)
        single = reprojection_error(pose[..., frame, :, :], keypoints[:, frame], h36m_camera(f), root[:, frame])
        assert torch.allclose(errors[..., frame, :], single, atol=1e-3)


def test_unobserved_keypoints_say_nothing(scene):
    pose, keypoints, camera, root = scene
    keypoints = keypoints.clone()
    keypoints[0, 0, 3, 1] = torch.nan
    keypoints[1, 2] = torch.inf
    pose.requires_grad_()
    errors = reprojection_error(pose, keypoints, camera, root)
    assert (errors[0, :, :, 0, 3] == 0).all() and (errors[1, :, :, 2] == 0).all()
    errors.sum().backward()
    assert torch.isfinite(pose.grad).all()
    assert (pose.grad[1, :, :, 2] == 0).all()


def test_ties_go_to_the_lowest_index():
    errors = torch.tensor([[2.0, 1.0, 1.0], [3.0, 3.0, 3.0], [torch.nan, 4.0, torch.nan], [torch.nan] * 3])
    assert select_by_reprojection(errors, dim=1).tolist() == [1, 0, 1, 0]
    assert select_by_reprojection(errors.T, dim=-2).tolist() == [1, 0, 1, 0]
    many = torch.ones(1000, 3)
    many[500:] = 0
    assert select_by_reprojection(many, dim=0).tolist() == [500] * 3


def test_bad_shapes_are_named(scene):
    pose, keypoints, camera, root = scene
    cases = [
        ("keypoints_2d must have shape", (pose, keypoints[..., :1], camera, root)),
        ("pose must have shape", (pose[..., :2], keypoints, camera, root)),
        ("pose must have shape", (pose[:1], keypoints, camera, root)),
        ("pose must have shape", (pose[0, 0, 0], keypoints, camera, root)),
        ("root must have shape", (pose, keypoints, camera, root[:1])),
        ("root must have shape", (pose, keypoints, camera, root[:, None].expand(-1, 4, -1, -1))),
        ("camera axes must be", (pose, keypoints, camera.to_vector().expand(5, 9), root)),
        ("9 numbers", (pose, keypoints, torch.ones(5), root)),
    ]
    for message, arguments in cases:
        with pytest.raises(ValueError, match=message):
            reprojection_error(*arguments)
    with pytest.raises(ValueError, match="at least one hypothesis"):
        select_by_reprojection(torch.ones(2, 0, 3), dim=1)
