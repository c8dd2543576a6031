from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.geometry import procrustes_align, quaternion_to_matrix

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics_d3dp.safetensors"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def clouds(generator):
    source = torch.randn(2, 4, 17, 3, generator=generator, dtype=torch.float64)
    return source, source + 0.3 * torch.randn(2, 4, 17, 3, generator=generator, dtype=torch.float64)


def rotations(generator, *shape):
    return quaternion_to_matrix(torch.randn(*shape, 4, generator=generator, dtype=torch.float64))


def distance(a, b):
    return (a - b).norm(dim=-1).mean(-1)


def test_error_after_alignment_agrees_with_the_original():
    values = load_file(GOLDEN)
    target = values["inputs/pose_3d_gt"]
    aligned = procrustes_align(values["agg/hypotheses"][:, -1, 0], target)
    assert 1000 * distance(aligned, target).mean().item() == pytest.approx(values["metrics/p_mpjpe"].item(), abs=1e-3)


def test_similar_shapes_meet(clouds, generator):
    source, _ = clouds
    target = 1.7 * source @ rotations(generator, 2, 4).mT + torch.tensor([1.0, -2.0, 3.0])
    assert torch.allclose(procrustes_align(source, target), target, atol=1e-12)
    assert not torch.allclose(procrustes_align(source, target, scale=False), target, atol=0.1)
    assert torch.allclose(procrustes_align(1.7 * source, target, scale=False), target, atol=1e-12)


def test_where_the_source_stands_does_not_matter(clouds, generator):
    source, target = clouds
    moved = 0.2 * source @ rotations(generator, 2, 4).mT - 4
    assert torch.allclose(procrustes_align(moved, target), procrustes_align(source, target), atol=1e-12)


def test_the_result_follows_the_target(clouds, generator):
    source, target = clouds
    rotation = rotations(generator, 2, 4).mT
    moved = procrustes_align(source, 3 * target @ rotation + 1)
    assert torch.allclose(moved, 3 * procrustes_align(source, target) @ rotation + 1, atol=1e-12)


def test_no_other_similarity_comes_closer(clouds, generator):
    source, target = clouds
    aligned = procrustes_align(source, target)
    best = (aligned - target).square().sum((-2, -1))
    assert (best <= (source - target).square().sum((-2, -1))).all()
    for _ in range(20):
        nudge = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
        nudge = nudge + 0.05 * torch.randn(4, generator=generator, dtype=torch.float64)
        other = (1 + 0.05 * torch.randn(1, generator=generator, dtype=torch.float64)) * aligned
        other = other @ quaternion_to_matrix(nudge).mT + 0.02 * torch.randn(3, generator=generator, dtype=torch.float64)
        assert (best <= (other - target).square().sum((-2, -1))).all()


def test_a_mirrored_shape_stays_mirrored(clouds):
    source, _ = clouds
    mirrored = source * torch.tensor([-1.0, 1.0, 1.0])
    assert (distance(procrustes_align(mirrored, source), source) > 0.3).all()
    # The distances between the points are kept up to one factor, and so is their handedness.
    for target in (source, mirrored):
        aligned = procrustes_align(source, target)
        volume = torch.linalg.det((aligned - aligned[..., :1, :])[..., 1:4, :])
        expected = torch.linalg.det((source - source[..., :1, :])[..., 1:4, :])
        assert torch.equal(volume.sign(), expected.sign())


def test_weights_choose_the_points_that_count(clouds):
    source, target = clouds
    weights = torch.ones(17)
    weights[10:] = 0
    spoiled = target.clone()
    spoiled[..., 10:, :] = 100
    aligned = procrustes_align(source, spoiled, weights=weights)
    assert torch.allclose(aligned[..., :10, :], procrustes_align(source[..., :10, :], target[..., :10, :]), atol=1e-12)
    assert torch.allclose(procrustes_align(source, target, weights=torch.full((17,), 0.3)), procrustes_align(*clouds))


def test_leading_axes_broadcast(clouds):
    source, target = clouds
    several = procrustes_align(source, target[:, :1])
    assert torch.allclose(several[1, 2], procrustes_align(source[1, 2], target[1, 0]))
    assert procrustes_align(source[0, 0], target).shape == target.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sources_without_extent_land_on_the_centroid(clouds, dtype):
    target = clouds[1].to(dtype)
    centroid = target.mean(-2, keepdim=True).expand_as(target)
    for source in (torch.zeros_like(target), torch.tensor([0.1, 0.7, -3.3], dtype=dtype).expand_as(target)):
        assert torch.allclose(procrustes_align(source, target), centroid, atol=1e-5)
    assert torch.allclose(procrustes_align(target[..., :1, :], centroid[..., :1, :]), centroid[..., :1, :])
    flat = torch.zeros_like(target)
    assert torch.allclose(procrustes_align(target, flat), flat, atol=1e-6)


def aligned_by_svd(source, target, scale=True, weights=None):
    """Umeyama's formula, one cloud after the other."""
    out = np.empty_like(source)
    for index in np.ndindex(source.shape[:-2]):
        x, y = source[index], target[index]
        w = np.ones(len(x)) if weights is None else weights[index]
        w = (w / w.sum())[:, None]
        x0, middle = x - (w * x).sum(0), (w * y).sum(0)
        u, s, vt = np.linalg.svd((w * (y - middle)).T @ x0)
        s[2] *= np.sign(np.linalg.det(u @ vt))
        u[:, 2] *= np.sign(np.linalg.det(u @ vt))
        out[index] = (s.sum() / (w * x0**2).sum() if scale else 1) * x0 @ (u @ vt).T + middle
    return out


CORNERS = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)


def shapes(generator):
    """Pairs of clouds: well-behaved ones, and those in which the rotation is hardly or not determined."""

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cloud, flat, mirror = 0.4 * noise(50, 17, 3), torch.tensor([1.0, 1, 0]), torch.tensor([-1.0, 1, 1])
    line, thin = noise(50, 17, 1) * noise(50, 1, 3), torch.tensor([0.02, 1, 0.01])
    return {
        "unrelated": (cloud, 0.4 * noise(50, 17, 3)),
        "similar": (cloud, cloud + 0.05 * noise(50, 17, 3)),
        "mirrored": (mirror * cloud, cloud),
        "nearly mirrored": (mirror * cloud + 0.01 * noise(50, 17, 3), cloud),
        "one planar": (cloud * flat, cloud),
        "both planar": (cloud * flat, (cloud + 0.1 * noise(50, 17, 3)) * flat),
        "thin": (cloud * thin, cloud * thin + 0.01 * noise(50, 17, 3)),
        "on a line": (line, cloud),
        "both on a line": (line, line + noise(50, 1, 3)),
        "nearly on a line": (line + 1e-3 * noise(50, 17, 3), cloud),
        "both nearly on a line": (line + 1e-4 * noise(50, 17, 3), line + 1e-4 * noise(50, 17, 3)),
        "tiny": (1e-12 * cloud, 1e-12 * (cloud + 0.1 * noise(50, 17, 3))),
        "tiny to large": (1e-12 * cloud, 1e6 * cloud),
        "far away": (cloud + 100, cloud + 0.1 * noise(50, 17, 3) - 100),
        "three points": (noise(50, 3, 3), noise(50, 3, 3)),
        "equal singular values": (CORNERS.expand(1, 4, 3), CORNERS.expand(1, 4, 3)),
    }


@pytest.mark.parametrize("name", shapes(torch.Generator()))
def test_the_closed_form_gives_what_the_svd_gives(name, generator):
    source, target = shapes(generator)[name]
    weights = torch.rand(source.shape[:-1], generator=generator, dtype=torch.float64)
    for options in ({}, {"scale": False}, {"weights": weights}):
        expected = aligned_by_svd(source.numpy(), target.numpy(), **{k: v.numpy() if k == "weights" else v for k, v in options.items()})
        aligned = procrustes_align(source, target, **options)
        unit = 1e6 if name == "tiny to large" else 1.0
        assert (aligned - torch.from_numpy(expected)).abs().max() < 1e-9 * unit  # 1e-6 mm
        with_gradient = procrustes_align(source.clone().requires_grad_(), target, **options)  # which takes the SVD
        assert (aligned - with_gradient).abs().max() < 1e-9 * unit


@pytest.mark.parametrize("name", ["both on a line", "equal singular values"])
def test_where_the_rotation_is_free_it_is_still_a_rotation(name, generator):
    source, _ = shapes(generator)[name]
    target = source * torch.tensor([-1.0, 1, 1])
    aligned = procrustes_align(source, target, scale=False)
    assert torch.allclose(torch.cdist(aligned, aligned), torch.cdist(source, source), atol=1e-12)
    best = aligned_by_svd(source.numpy(), target.numpy(), scale=False)
    assert distance(aligned, target).tolist() == pytest.approx(np.linalg.norm(best - target.numpy(), axis=-1).mean(-1).tolist(), abs=1e-9)


def test_single_precision_is_as_good_as_it_can_be(clouds):
    source, target = clouds
    assert (procrustes_align(source.float(), target.float()) - procrustes_align(source, target)).abs().max() < 2e-6


@pytest.mark.parametrize("scale", [True, False])
def test_the_gradient_is_exact(clouds, scale):
    source, target = (points[0, :2, :5].clone().requires_grad_() for points in clouds)
    assert torch.autograd.gradcheck(lambda a, b: procrustes_align(a, b, scale), (source, target))
    mirrored = (source.detach() * torch.tensor([-1.0, 1.0, 1.0])).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: procrustes_align(a, b, scale), (mirrored, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_finite_where_the_svd_has_none(dtype):
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=dtype)  # equal singular values
    line = torch.arange(4, dtype=dtype)[:, None] * torch.tensor([1, 2, 3], dtype=dtype)
    plane = corners * torch.tensor([1, 1, 0], dtype=dtype)
    for shape in (corners, line, plane, torch.zeros(4, 3, dtype=dtype), torch.full((4, 3), 0.1, dtype=dtype)):
        for goal in (shape, corners, -corners):
            source, target = shape.clone().requires_grad_(), goal.clone().requires_grad_()
            (procrustes_align(source, target) * torch.arange(12, dtype=dtype).reshape(4, 3)).sum().backward()
            assert torch.isfinite(source.grad).all() and torch.isfinite(target.grad).all()
            assert source.grad.abs().max() < 1e4


def test_bad_points_are_named(clouds):
    source, target = clouds
    for a, b in ((source[..., :2], target), (source[..., :5, :], target), (source[0, 0, 0], target[0, 0, 0])):
        with pytest.raises(ValueError, match="same number of points"):
            procrustes_align(a, b)
    with pytest.raises(ValueError, match="target must be finite, got 204 non-finite values"):
        procrustes_align(source[:, :2], target[:, :2] * torch.nan)
    for weights in (torch.ones(3), -torch.ones(17)):
        with pytest.raises(ValueError, match="weights must be non-negative"):
            procrustes_align(source, target, weights=weights)
