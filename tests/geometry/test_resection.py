"""A camera comes back from what it saw."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from probpose.geometry import Camera, fit_lens, h36m_camera, resection, rotation_looking_along


def scene(seed, count=200, depth=4.0):
    """A random camera and points in front of it, world axes."""
    random = np.random.default_rng(seed)
    camera = Camera(
        torch.tensor(random.uniform(400, 1500, 2), dtype=torch.float32),
        torch.tensor(random.uniform(200, 500, 2), dtype=torch.float32),
        image_size=(640, 480),
        rotation=torch.tensor(Rotation.random(random_state=seed).as_matrix(), dtype=torch.float32),
        translation=torch.tensor(random.normal(size=3) * 3, dtype=torch.float32),
        slope_limit=math.inf,
    )
    points = torch.from_numpy(random.normal(size=(count, 3)) * [1, 1, 0.7]).float() + torch.tensor([0, 0, depth])
    return camera, camera.to_world(points)


def project(camera, points):
    """K [R | t] in NumPy, float64."""
    x = points.double().numpy() @ camera.rotation.double().numpy().T + camera.translation.double().numpy()
    return torch.from_numpy(x[:, :2] / x[:, 2:] * camera.focal.double().numpy() + camera.centre.double().numpy())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [8, 500])
def test_the_camera_comes_back(seed, count):
    camera, points = scene(seed, count)
    found = resection(points, project(camera, points), (640, 480))
    assert found.image_size == (640, 480)
    for name, tolerance in (("focal", 0.05), ("centre", 0.05), ("rotation", 1e-4), ("translation", 1e-3)):
        torch.testing.assert_close(getattr(found, name), getattr(camera, name), rtol=0, atol=tolerance)


def test_leading_axes_and_missing_values():
    camera, points = scene(0, 120)
    pixels = project(camera, points)
    points, pixels = points.reshape(8, 15, 3).clone(), pixels.reshape(8, 15, 2).clone()
    points[0, 3, 1], pixels[2, 5] = torch.nan, torch.nan
    found = resection(points, pixels)
    torch.testing.assert_close(found.focal, camera.focal, rtol=0, atol=0.05)
    assert found.image_size is None


def test_refinement_leaves_the_least_squares_solution():
    """With noise no camera nearby reprojects better, and errors shrink with the number of points."""
    camera, points = scene(3, 400)
    pixels = project(camera, points)
    noisy = pixels + torch.from_numpy(np.random.default_rng(0).normal(size=pixels.shape))
    found = resection(points, noisy)

    def cost(camera):
        return (project(camera, points) - noisy).square().sum().item()

    assert cost(found) <= cost(camera)
    for name, step in (("focal", 1.0), ("centre", 1.0), ("translation", 0.005)):
        for axis in range(getattr(found, name).numel()):
            for sign in (-step, step):
                value = getattr(found, name).clone()
                value[axis] += sign
                assert cost(replace(found, **{name: value})) > cost(found)
    rms = math.sqrt(cost(found) / len(points) / 2)
    assert 0.9 < rms < 1.1


def test_a_distorting_lens_leaves_a_residual():
    camera = h36m_camera(0, "S1")
    points = camera.to_world(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 0.7 + torch.tensor([0.0, 0.0, 4.5]))
    pixels = camera.project(camera.to_camera(points))
    found = resection(points, pixels)
    residual = (found.project(found.to_camera(points)) - pixels).norm(dim=-1)
    assert 0.1 < residual.mean() < 5
    torch.testing.assert_close(found.rotation, camera.rotation, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["plane", "point", "few", "behind", "shape"])
def test_what_determines_no_camera(kind):
    camera, points = scene(1, 50)
    pixels = project(camera, points)
    if kind == "plane":
        points = camera.to_world(camera.to_camera(points) * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 4.0]))
        pixels, message = project(camera, points), "one plane"
    elif kind == "point":
        points, pixels, message = points[:1].expand(50, 3), pixels[:1].expand(50, 2), "one plane"
    elif kind == "few":
        points, pixels, message = points[:5], pixels[:5], "at least 6"
    elif kind == "behind":
        points = torch.cat([points, camera.to_world(-camera.to_camera(points))])
        pixels, message = project(camera, points), "from in front"
    else:
        pixels, message = pixels[:-1], "shape"
    with pytest.raises(ValueError, match=message):
        resection(points, pixels)


def test_a_lens_is_told_from_what_it_sees():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 17, 3, generator=generator) + torch.tensor([0.0, 0.0, 6.0])
    lens = Camera((1500.0, 1490.0), (1017.0, 1043.0), image_size=(2048, 2048))
    pixels = lens.project(points)
    pixels[3, 5] = torch.nan
    points[7, 2] = torch.nan
    found = fit_lens(points, pixels, (2048, 2048))
    torch.testing.assert_close(found.focal, lens.focal, atol=0.01, rtol=0)
    torch.testing.assert_close(found.centre, lens.centre, atol=0.01, rtol=0)
    assert found.image_size == (2048, 2048)
    with pytest.raises(ValueError, match="no image of the points"):
        fit_lens(points, -pixels)
    with pytest.raises(ValueError, match="absolute positions in front of the camera"):
        fit_lens(points * 0, pixels)


def test_an_upright_camera_looks_where_it_is_told():
    generator = torch.Generator().manual_seed(0)
    forward = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=-1)
    rotation = rotation_looking_along(forward)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(20, 3, 3), atol=1e-6, rtol=0)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(20))
    torch.testing.assert_close((rotation @ forward[..., None])[..., 0], torch.tensor([0.0, 0.0, 1.0]).expand(20, 3), atol=1e-6, rtol=0)
    assert rotation[:, 0, 2].abs().max() < 1e-6 and (rotation[:, 1, 2] < 0).all()  # the image's x is level, its y goes down
