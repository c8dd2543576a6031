from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probpose.geometry import (
    Camera,
    check_image_size,
    denormalise_screen,
    h36m_camera,
    normalise_screen,
    quaternion_to_matrix,
    reexpress_keypoints,
    rotation_between_z_and,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics_d3dp.safetensors"
MIRROR = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def points():
    """People 4 to 6 m away, well inside the image, `(2, 5, 9, 17, 3)`."""
    generator = torch.Generator().manual_seed(2)
    return 0.35 * torch.randn(2, 5, 9, 17, 3, generator=generator).clamp(-3, 3) + torch.tensor([0.1, -0.2, 5.0])


def opencv_camera(**changes):
    values = dict(
        focal=[1100.0, 1080.0],
        centre=[620.0, 370.0],
        radial=[-0.28, 0.13, -0.05],
        tangential=[-0.004, 0.006],
        image_size=(1280, 720),
        convention="opencv",
    )
    return Camera(**{**values, **changes})


CAMERAS = [*(h36m_camera(i) for i in range(4)), opencv_camera()]


# Agreement with published values --------------------------------------------------------------------------------------


def test_intrinsics_and_pixels_agree_with_the_original(golden):
    ours = torch.stack([h36m_camera(i).normalised().to_vector() for i in range(4)])
    assert torch.allclose(ours, golden["camera/intrinsics_normalised"], atol=1e-6)
    pixels = denormalise_screen(golden["inputs/keypoints_2d"], (1000, 1000))
    assert torch.allclose(pixels, golden["camera/pixels"], atol=1e-3)


def test_projection_agrees_with_the_original(golden):
    absolute = golden["inputs/pose_3d_gt"] + golden["inputs/root_trajectory"]
    camera = Camera.from_vector(golden["inputs/camera"])
    assert torch.allclose(camera.project(absolute), golden["camera/gt_projection"], atol=1e-5)
    linear = Camera(camera.focal, camera.centre)
    assert torch.allclose(linear.project(absolute), golden["camera/gt_projection_linear"], atol=1e-5)


def test_world_axes_agree_with_the_original(golden):
    absolute = (golden["inputs/pose_3d_gt"] + golden["inputs/root_trajectory"])[0]
    camera = h36m_camera(1, "S9")
    assert torch.allclose(camera.to_world(absolute), golden["camera/world_points"], atol=1e-5)
    assert torch.allclose(camera.to_camera(golden["camera/world_points"]), golden["camera/world_to_camera"], atol=1e-5)


# Projection -----------------------------------------------------------------------------------------------------------


def test_opencv_convention_against_its_own_formula():
    camera = opencv_camera()
    x, y, z = 0.9, -0.7, 2.0
    a, b = x / z, y / z
    r2 = a * a + b * b
    radial = 1 + -0.28 * r2 + 0.13 * r2**2 + -0.05 * r2**3
    u = a * radial + 2 * -0.004 * a * b + 0.006 * (r2 + 2 * a * a)
    v = b * radial + -0.004 * (r2 + 2 * b * b) + 2 * 0.006 * a * b
    expected = torch.tensor([1100 * u + 620, 1080 * v + 370])
    assert torch.allclose(camera.project(torch.tensor([x, y, z])), expected, atol=1e-3)


def test_field_convention_against_its_own_formula():
    fx, fy, cx, cy, k1, k2, k3, p1, p2 = vector = [1100.0, 1080.0, 620.0, 370.0, -0.2, 0.24, -0.003, -0.004, 0.006]
    a, b = 0.9 / 2, -0.7 / 2
    r2 = a * a + b * b
    factor = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * a + p2 * b
    expected = torch.tensor([fx * (a * factor + p1 * r2) + cx, fy * (b * factor + p2 * r2) + cy])
    assert torch.allclose(Camera.from_vector(torch.tensor(vector)).project(torch.tensor([0.9, -0.7, 2.0])), expected, atol=1e-3)


def test_slopes_are_limited_in_the_fields_convention_only():
    edge, beyond = torch.tensor([2.0, 0.5, 2.0]), torch.tensor([5.0, 0.5, 2.0])
    camera = h36m_camera(0)
    assert torch.equal(camera.project(beyond), camera.project(edge))
    assert opencv_camera().project(beyond)[0] != opencv_camera().project(edge)[0]
    limited = opencv_camera(slope_limit=1.0)
    assert torch.equal(limited.project(beyond), limited.project(edge))


@pytest.mark.parametrize("camera", CAMERAS)
def test_unproject_inverts_project(camera, points):
    slopes = points[..., :2] / points[..., 2:]
    assert torch.allclose(camera.unproject(camera.project(points)), slopes, atol=1e-5)
    assert torch.allclose(camera.normalised().unproject(normalise_screen(camera.project(points), camera.image_size)), slopes, atol=1e-5)


def test_unproject_keeps_what_is_not_observed_and_stays_calm_outside_the_lens():
    camera = Camera.from_vector(torch.tensor([500.0, 500, 640, 360, 0, 0, 0, 0, 0]))
    outside = camera.unproject(torch.tensor([[1390.0, 360.0], [torch.nan, torch.nan]]))
    assert outside[0].tolist() == pytest.approx([1.5, 0])
    assert outside[1].isnan().all()
    far = h36m_camera(0).unproject(torch.tensor([[4000.0, -3000.0]]))
    assert torch.isfinite(far).all() and far.abs().max() < 5


@pytest.mark.parametrize("camera", CAMERAS)
def test_projection_and_its_gradient_are_finite_everywhere(camera):
    awkward = torch.tensor([[0, 0, 0], [1, 1, 0], [1, -2, 1e-9], [0.3, 0.2, -4], [9, 9, 1e-3], [0, 0, 5.0]])
    awkward.requires_grad_()
    pixels = camera.project(awkward)
    pixels.sum().backward()
    assert torch.isfinite(pixels).all() and torch.isfinite(awkward.grad).all()


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_gradient_is_exact(camera, points):
    some = points[0, 0, 0, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(camera.to(torch.float64).project, (some,))


def test_a_batch_of_cameras_meets_any_points(points):
    vectors = torch.stack([h36m_camera(i, "S9").to_vector() for i in (0, 3)])
    both = Camera.from_vector(vectors)
    one = [h36m_camera(i, "S9") for i in (0, 3)]
    assert torch.allclose(both.project(points), torch.stack([one[b].project(points[b]) for b in range(2)]), atol=1e-3)
    pixels = both.project(points)
    assert torch.allclose(both.unproject(pixels)[1], one[1].unproject(pixels[1]), atol=1e-6)
    placed = Camera(
        both.focal,
        both.centre,
        rotation=torch.stack([c.rotation for c in one]),
        translation=torch.stack([c.translation for c in one]),
    )
    for way in ("to_world", "to_camera"):
        expected = torch.stack([getattr(one[b], way)(points[b]) for b in range(2)])
        assert torch.allclose(getattr(placed, way)(points), expected, atol=1e-5)


# World axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["S1", "S5", "S6", "S7", "S8", "S9", "S11"])
def test_world_and_back(subject, points):
    for index in range(4):
        camera = h36m_camera(index, subject)
        assert torch.allclose(camera.rotation @ camera.rotation.mT, torch.eye(3), atol=1e-6)
        assert torch.linalg.det(camera.rotation).item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(camera.to_camera(camera.to_world(points)), points, atol=1e-5)
        up = camera.to_camera(torch.tensor([[0.0, 0, 1], [0, 0, 0]])).diff(dim=0)[0]
        assert up[1] > 0.8  # from world up (z) to the floor is down in the image (y)
        assert 1 < camera.to_world(torch.zeros(3))[2] < 2  # cameras hang above the floor


def test_rotations_are_rotations():
    generator = torch.Generator().manual_seed(0)
    quaternion = torch.randn(6, 4, generator=generator)
    matrix = quaternion_to_matrix(quaternion)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).expand(6, 3, 3), atol=1e-6)
    assert torch.allclose(quaternion_to_matrix(-3 * quaternion), matrix, atol=1e-6)
    quarter = torch.tensor([0.5**0.5, 0, 0, 0.5**0.5])
    assert torch.allclose(quaternion_to_matrix(quarter)[:, 0], torch.tensor([0, 1.0, 0]), atol=1e-6)


def test_the_shortest_rotation_takes_the_viewing_axis_there():
    direction = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) * 0.4 + torch.tensor([0, 0, 1.0])
    unit = direction / direction.norm(dim=-1, keepdim=True)
    rotation = rotation_between_z_and(direction)
    assert torch.allclose(rotation[..., 2], unit, atol=1e-6)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(8, 3, 3), atol=1e-6)
    assert torch.allclose((rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2, unit[:, 2], atol=1e-6)  # the angle
    mirror = torch.diag(MIRROR)
    assert torch.allclose(rotation_between_z_and(direction * MIRROR), mirror @ rotation @ mirror, atol=1e-6)


# Screen units, mirrors, other cameras ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1000, 1002), (1920, 1080), (1080, 1920)])
def test_screen_units_and_back(size):
    pixels = torch.rand(4, 17, 2, generator=torch.Generator().manual_seed(4)) * torch.tensor(size)
    screen = normalise_screen(pixels, size)
    assert torch.allclose(denormalise_screen(screen, size), pixels, atol=1e-3)
    corners = normalise_screen(torch.tensor([[0, 0], size]), size)  # integer pixels are pixels too
    ratio = size[1] / size[0]
    assert torch.allclose(corners, torch.tensor([[-1, -ratio], [1, ratio]]))


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_camera_in_screen_units_sees_screen_units(camera, points):
    expected = normalise_screen(camera.project(points), camera.image_size)
    assert torch.allclose(camera.normalised().project(points), expected, atol=1e-5)


@pytest.mark.parametrize("camera", [*CAMERAS, Camera.from_image_size(640, 480)])
def test_a_mirrored_camera_sees_the_mirrored_image(camera, points):
    pixels = camera.project(points)
    mirrored = torch.stack([camera.image_size[0] - pixels[..., 0], pixels[..., 1]], dim=-1)
    assert torch.allclose(camera.mirrored().project(points * MIRROR), mirrored, atol=1e-3)
    assert torch.allclose(camera.mirrored().mirrored().project(points), pixels, atol=1e-3)


def test_mirroring_in_screen_units_negates_two_numbers():
    camera = h36m_camera(2)
    signs = torch.tensor([1.0, 1, -1, 1, 1, 1, 1, -1, 1])
    mirrored = camera.mirrored().normalised().to_vector()
    assert torch.allclose(mirrored, camera.normalised().to_vector() * signs, atol=1e-6)


@pytest.mark.parametrize("source", CAMERAS)
def test_reexpressed_pixels_are_what_the_other_camera_sees(source, points):
    for target in (h36m_camera(1), opencv_camera(), Camera.from_image_size(1920, 1080)):
        pixels = reexpress_keypoints(source.project(points), source, target)
        assert torch.allclose(pixels, target.project(points), atol=2e-2)
    hidden = torch.full((3, 2), torch.nan)
    assert reexpress_keypoints(hidden, source, h36m_camera(0)).isnan().all()


def test_an_unknown_camera_has_the_field_of_view_it_was_given():
    for size in ((1920, 1080), (1080, 1920)):
        camera = Camera.from_image_size(*size, fov=90)
        assert camera.focal.tolist() == pytest.approx([960, 960])
        assert camera.project(torch.tensor([0.0, 0, 3])).tolist() == pytest.approx([size[0] / 2, size[1] / 2])


# The vector, casting and bad input ------------------------------------------------------------------------------------


def test_vector_and_back():
    vector = torch.stack([h36m_camera(i).to_vector() for i in range(4)])
    assert torch.equal(Camera.from_vector(vector).to_vector(), vector)
    plain = Camera.from_image_size(640, 480)
    assert plain.to_vector()[4:].tolist() == [0] * 5
    assert plain.to(torch.float64).focal.dtype == torch.float64
    with pytest.raises(ValueError, match="convention"):
        opencv_camera().to_vector()


def test_integer_and_scalar_parameters_are_understood():
    camera = Camera(focal=1000, centre=torch.tensor([320, 240]))
    assert camera.project(torch.tensor([1.0, 0.5, 2.0])).tolist() == [820, 490]
    assert camera.unproject(torch.tensor([820, 490])).tolist() == [0.5, 0.25]


def test_bad_cameras_are_named():
    cases = {
        r"focal must have shape \(\.\.\., 2\), got \(3,\)": {"focal": [1.0, 2.0, 3.0]},
        "focal length must be positive": {"focal": [1000.0, 0.0]},
        "centre must be finite": {"centre": [float("nan"), 0.0]},
        "radial must have shape": {"radial": [0.1]},
        "rotation must have shape": {"rotation": torch.eye(2)},
        "convention must be one of .*got 'brown'": {"convention": "brown"},
        "slope_limit must be positive": {"slope_limit": -1.0},
        "image_size must be positive": {"image_size": (0, 480)},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            opencv_camera(**change)


def test_bad_requests_are_named(points):
    bare = Camera([1000.0, 1000.0], [500.0, 500.0])
    for request in (bare.normalised, bare.mirrored, h36m_camera(0).normalised().mirrored):
        with pytest.raises(ValueError, match="image_size is needed"):
            request()
    with pytest.raises(ValueError, match="no rotation and translation"):
        bare.to_world(points)
    with pytest.raises(ValueError, match="9 numbers"):
        Camera.from_vector(torch.ones(8))
    with pytest.raises(ValueError, match="fov must lie between"):
        Camera.from_image_size(640, 480, fov=180)
    with pytest.raises(ValueError, match=r"cameras 0\.\.3, got 4"):
        h36m_camera(4)
    with pytest.raises(ValueError, match="got 'S2'"):
        h36m_camera(0, "S2")
    for size in ((640,), "wide", (float("nan"), 2), None, (640, -1)):
        with pytest.raises(ValueError, match="image_size must be"):
            check_image_size(size)
