"""Gaussian mixtures of uncertain poses, against NumPy and SciPy."""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from probpose.geometry import Camera
from probpose.mixtures import PoseMixture

PARITY = Path(__file__).resolve().parents[1].parent / "shared" / "parity" / "diffpose" / "io.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
JOINTS, COMPONENTS = 4, 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_mixture(shape=(2,), joints=JOINTS, components=COMPONENTS, dim=2, dtype=torch.float64, seed=0, **kwargs):
    generator, lead = seeded(seed), (*shape, joints, components)
    weights = torch.rand(lead, generator=generator, dtype=dtype) + 0.1
    factors = 0.3 * torch.randn((*lead, dim, dim), generator=generator, dtype=dtype) + 0.2 * torch.eye(dim, dtype=dtype)
    means = torch.randn((*lead, dim), generator=generator, dtype=dtype)
    return PoseMixture(weights / weights.sum(-1, keepdim=True), means, factors, **kwargs)


def assert_same(one, other, **tolerance):
    for name in ("weights", "means", "covariances"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **tolerance)
    assert one.skeleton == other.skeleton


# ---------------------------------------------------------------------------------------------------------------------
# The distribution
# ---------------------------------------------------------------------------------------------------------------------


def test_properties():
    mixture = random_mixture((5, 2), dim=3)
    assert (mixture.shape, mixture.num_joints, mixture.num_components, mixture.dim) == ((5, 2), JOINTS, COMPONENTS, 3)
    torch.testing.assert_close(mixture.scales, mixture.covariances.diagonal(dim1=-2, dim2=-1).sqrt())


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_moments(dim):
    mixture = random_mixture(dim=dim)
    mean, covariance = mixture.mean(), mixture.covariance()
    for index in np.ndindex(2, JOINTS):
        w, mu, sigma = (value[index].numpy() for value in (mixture.weights, mixture.means, mixture.covariances))
        second = sum(w[m] * (sigma[m] + np.outer(mu[m], mu[m])) for m in range(COMPONENTS))
        np.testing.assert_allclose(mean[index], w @ mu, atol=1e-12)
        np.testing.assert_allclose(covariance[index], second - np.outer(w @ mu, w @ mu), atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_log_prob_agrees_with_scipy(dim):
    mixture = random_mixture(dim=dim)
    points = torch.randn(6, 2, JOINTS, dim, generator=seeded(), dtype=torch.float64)
    found = mixture.log_prob(points)
    assert found.shape == (6, 2, JOINTS)
    torch.testing.assert_close(mixture.log_prob(points[1]), found[1])
    for index in np.ndindex(6, 2, JOINTS):
        w, mu, sigma = (value[index[1:]].numpy() for value in (mixture.weights, mixture.means, mixture.covariances))
        terms = [np.log(w[m]) + multivariate_normal(mu[m], sigma[m]).logpdf(points[index].numpy()) for m in range(COMPONENTS)]
        np.testing.assert_allclose(found[index], logsumexp(terms), rtol=1e-7)


def test_density_integrates_to_one():
    mixture = random_mixture((), joints=1).transformed(lambda points: 0.5 * points)
    line = torch.linspace(-5, 5, 501, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)[..., None, :]
    total = mixture.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2
    torch.testing.assert_close(total.item(), 1.0, atol=1e-6, rtol=0)


def test_components_of_weight_zero_do_not_count():
    mixture = random_mixture(components=1)
    padded = PoseMixture(
        torch.cat([mixture.weights, torch.zeros_like(mixture.weights)], dim=-1),
        torch.cat([mixture.means, mixture.means + 1], dim=-2),
        torch.cat([mixture.factors, mixture.factors], dim=-3),
    )
    points = torch.zeros(2, JOINTS, 2, dtype=torch.float64)
    torch.testing.assert_close(padded.log_prob(points), mixture.log_prob(points))
    torch.testing.assert_close(padded.covariance(), mixture.covariance())
    assert (padded.sample_components(1000, seeded()) == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Draws
# ---------------------------------------------------------------------------------------------------------------------


def test_draws_have_the_mixture_s_moments():
    mixture = random_mixture(dim=3)
    draws = mixture.sample(100_000, seeded()).numpy()
    assert draws.shape == (100_000, 2, JOINTS, 3)
    np.testing.assert_allclose(draws.mean(0), mixture.mean(), atol=0.02)
    off = draws - draws.mean(0)
    np.testing.assert_allclose(np.einsum("n...i,n...j->...ij", off, off) / len(off), mixture.covariance(), atol=0.04)
    correlation = np.corrcoef(draws[:, 0, 0, 0], draws[:, 0, 1, 0])[0, 1]
    assert abs(correlation) < 0.02  # joints draw for themselves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_are_drawn_by_their_weights(dtype):
    mixture = random_mixture(dtype=dtype)
    index = mixture.sample_components(50_000, seeded())
    assert index.dtype == torch.int64
    assert index.shape == (50_000, 2, JOINTS)
    torch.testing.assert_close(torch.nn.functional.one_hot(index, COMPONENTS).to(dtype).mean(0), mixture.weights, atol=0.01, rtol=0)


def test_per_pose_draws_one_component_for_all_joints():
    mixture = random_mixture()
    shared = PoseMixture(mixture.weights[:, :1].expand_as(mixture.weights), mixture.means, mixture.factors)
    index = shared.sample_components(50_000, seeded(), per_pose=True)
    assert index.shape == (50_000, 2, JOINTS)
    assert (index == index[..., :1]).all()
    assert (index[:, 0] != index[:, 1]).any()  # frames draw for themselves
    found = torch.nn.functional.one_hot(index[..., 0], COMPONENTS).double().mean(0)
    torch.testing.assert_close(found, shared.weights[:, 0], atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="per_pose needs the same weights at all joints of a frame"):
        mixture.sample_components(2, per_pose=True)


def test_gather_picks_components():
    mixture = random_mixture(dim=3)
    index = mixture.sample_components(5, seeded())
    means, factors = mixture.gather(index)
    assert means.shape == (5, 2, JOINTS, 3)
    assert factors.shape == (5, 2, JOINTS, 3, 3)
    for draw, frame, joint in np.ndindex(5, 2, JOINTS):
        component = index[draw, frame, joint]
        assert torch.equal(means[draw, frame, joint], mixture.means[frame, joint, component])
        assert torch.equal(factors[draw, frame, joint], mixture.factors[frame, joint, component])


def test_given_noise_is_used_and_draws_repeat():
    mixture = random_mixture()
    noise = torch.randn(7, 2, JOINTS, 2, generator=seeded(1), dtype=torch.float64)
    means, factors = mixture.gather(mixture.sample_components(7, seeded()))
    expected = means + (factors @ noise[..., None])[..., 0]
    torch.testing.assert_close(mixture.sample(7, seeded(), noise), expected)
    assert torch.equal(mixture.sample(7, seeded()), mixture.sample(7, seeded()))


# ---------------------------------------------------------------------------------------------------------------------
# Keypoints, arrays, heatmaps
# ---------------------------------------------------------------------------------------------------------------------


def test_from_keypoints():
    keypoints, confidence = torch.randn(3, 17, 2), torch.rand(3, 17)
    confidence[0, 0], confidence[0, 1] = 1, 0
    mixture = PoseMixture.from_keypoints(keypoints, confidence, skeleton="h36m_17")
    assert mixture.num_components == 1
    assert torch.equal(mixture.mean(), keypoints)
    torch.testing.assert_close(mixture.scales[0, :2, 0], torch.tensor([[0.002, 0.002], [0.042, 0.042]]))
    torch.testing.assert_close(mixture.covariance(), (0.002 + 0.04 * (1 - confidence))[..., None, None] ** 2 * torch.eye(2))
    pixels = PoseMixture.from_keypoints(keypoints, confidence, unit=500)
    torch.testing.assert_close(pixels.scales, 500 * mixture.scales)


def test_from_keypoints_with_other_scales():
    keypoints = np.zeros((3, 17, 3))  # NumPy, float64, positions
    assert PoseMixture.from_keypoints(keypoints).scales.unique().tolist() == [0.002]
    assert PoseMixture.from_keypoints(keypoints, scale=0.3, unit=500).scales.unique().tolist() == [0.3]
    scale = torch.rand(17, dtype=torch.float64) + 0.1
    torch.testing.assert_close(PoseMixture.from_keypoints(keypoints, scale=scale).scales[1, :, 0, 2], scale)


def test_array_round_trip():
    array = torch.rand(2, JOINTS, COMPONENTS, 5, generator=seeded(), dtype=torch.float64) + 0.01
    array[..., 0] /= array[..., 0].sum(-1, keepdim=True)
    mixture = PoseMixture.from_array(array.numpy())
    torch.testing.assert_close(mixture.to_array(), array, atol=1e-15, rtol=0)
    screen = PoseMixture.from_array(array, image_size=(1000, 500)).to_array()
    torch.testing.assert_close(screen[..., 1], array[..., 1] / 500 - 1)
    torch.testing.assert_close(screen[..., 2], array[..., 2] / 500 - 0.5)
    assert torch.equal(screen[..., 3:], array[..., 3:])


def test_array_with_unused_components_without_extent():
    array = torch.tensor([[[1.0, 3, 4, 0.1, 0.2], [0, 0, 0, 0, 0]]])
    torch.testing.assert_close(PoseMixture.from_array(array).scales[0], torch.tensor([[0.1, 0.2], [0.1, 0.2]]))
    array[0, 0, 3] = 0
    with pytest.raises(ValueError, match=r"must not be singular.*joint 0, component 0, axis 0"):
        PoseMixture.from_array(array)


def test_to_array_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="got dim 3"):
        random_mixture(dim=3).to_array()
    with pytest.raises(ValueError, match=r"diagonal covariances only \(frame 0, joint 0, component 0\)"):
        random_mixture().to_array()


@needs_parity
def test_stored_mixtures_of_the_release():
    known = load_file(PARITY)
    mixture = PoseMixture.from_array(known["gmm.raw"], image_size=(1000, 1002), skeleton="h36m_17")
    torch.testing.assert_close(mixture.to_array(), known["gmm.normalised"], atol=1e-15, rtol=0)
    means, factors = mixture.gather(known["gmm.component"][None])
    torch.testing.assert_close(means[0].float(), known["gmm.uvxyz"][..., :2], atol=0, rtol=1e-7)
    torch.testing.assert_close(factors[0].diagonal(dim1=-2, dim2=-1).float(), known["gmm.noise_scale"][..., :2], atol=0, rtol=1e-7)


@needs_parity
def test_noise_of_the_paper_s_mixture():
    known = {name.removeprefix("paper_gmm."): value for name, value in load_file(PARITY).items()}
    weights = torch.full(known["means"].shape[:-1], 0.2, dtype=torch.float64)
    mixture = PoseMixture(weights, known["means"], torch.linalg.cholesky(known["covariances"]))
    assert mixture.shape == ()
    _, factors = mixture.gather(known["component"])
    torch.testing.assert_close((factors @ known["z"][..., None])[..., 0], known["eps"], atol=1e-12, rtol=0)


def drawn_heatmap(means, covariances, weights=(1.0,), size=(48, 64), box=(0, 0, 64, 48)):
    """The density of a mixture at the centres of cells."""
    (height, width), (left, top, right, bottom) = size, box
    x = left + (np.arange(width) + 0.5) / width * (right - left)
    y = top + (np.arange(height) + 0.5) / height * (bottom - top)
    points = np.stack(np.meshgrid(x, y), axis=-1)
    return sum(w * multivariate_normal(m, c).pdf(points) for w, m, c in zip(weights, means, covariances))


def test_heatmap_of_a_gaussian():
    boxes = [(100.0, 50.0, 228.0, 194.0), (-20.0, 10.0, 300.0, 250.0)]
    mean, covariance = np.array([165.0, 110.0]), np.array([[90.0, 35.0], [35.0, 60.0]])
    heatmaps = np.stack([[drawn_heatmap([mean], [covariance], box=box)] for box in boxes])
    mixture = PoseMixture.from_heatmaps(7 * heatmaps, torch.tensor(boxes))
    for found, box in zip(mixture, boxes):
        cell = np.array([(box[2] - box[0]) / 64, (box[3] - box[1]) / 48])
        np.testing.assert_allclose(found.mean()[0], mean, atol=0.01)
        np.testing.assert_allclose(found.covariance()[0], covariance + np.diag(cell**2 / 12), atol=0.1)


def test_heatmap_of_one_hot_cell():
    heatmap = torch.zeros(1, 6, 8)
    heatmap[0, 1, 2] = 0.3
    mixture = PoseMixture.from_heatmaps(heatmap, (0, 0, 80, 120))  # cells of 10 by 20 pixels
    torch.testing.assert_close(mixture.mean(), torch.tensor([[25.0, 30.0]]))
    torch.testing.assert_close(mixture.covariance(), torch.tensor([[[100 / 12, 0], [0, 400 / 12]]]))


def test_heatmap_floor():
    heatmap = torch.full((1, 6, 8), 0.05)
    heatmap[0, 1, 2] = 1
    floored = PoseMixture.from_heatmaps(heatmap, (0, 0, 8, 6), floor=0.1)
    torch.testing.assert_close(floored.mean(), torch.tensor([[2.5, 1.5]]))
    assert PoseMixture.from_heatmaps(heatmap, (0, 0, 8, 6)).mean()[0, 0] > 3


def test_two_blobs():
    pytest.importorskip("sklearn")
    means, covariances = np.array([[150.0, 90.0], [200.0, 150.0]]), np.array([np.diag([40.0, 60.0]), np.diag([60.0, 30.0])])
    box = (100, 50, 228, 194)
    blobs = drawn_heatmap(means, covariances, (0.7, 0.3), box=box)
    mixture = PoseMixture.from_heatmaps(blobs[None, None], box, num_components=2)
    order = mixture.weights[0, 0].argsort(descending=True)
    np.testing.assert_allclose(mixture.weights[0, 0][order], [0.7, 0.3], atol=0.02)
    np.testing.assert_allclose(mixture.means[0, 0][order], means, atol=1)
    np.testing.assert_allclose(mixture.covariances[0, 0][order], covariances, atol=8)
    assert_same(mixture, PoseMixture.from_heatmaps(blobs[None, None], box, num_components=2), atol=0, rtol=0)
    one_cell = torch.zeros(1, 4, 4)
    one_cell[0, 2, 1] = 1
    found = PoseMixture.from_heatmaps(one_cell, (0, 0, 4, 4), num_components=2).means[0]
    assert ((found > torch.tensor([1.0, 2.0])) & (found < torch.tensor([2.0, 3.0]))).all()


# ---------------------------------------------------------------------------------------------------------------------
# Fits
# ---------------------------------------------------------------------------------------------------------------------


def test_fit_of_one_component_is_the_samples_moments(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)  # not needed here
    samples = random_mixture((2, 3), dim=3).sample(50, seeded()).float()
    mixture = PoseMixture.fit(samples, num_components=1, regularisation=0.01, skeleton=None)
    assert mixture.weights.dtype == torch.float32
    np.testing.assert_allclose(mixture.mean(), samples.mean(0), atol=1e-6)
    for index in np.ndindex(2, 3, JOINTS):
        expected = np.cov(samples[(slice(None), *index)].numpy().T, bias=True) + 0.01 * np.eye(3)
        np.testing.assert_allclose(mixture.covariance()[index], expected, atol=1e-5)


def test_fit_recovers_a_mixture():
    pytest.importorskip("sklearn")
    weights = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]])
    means = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0.6, 0.3]]).expand(1, 2, 3, 3)
    factors = 0.1 * torch.tensor([[[1.0, 0, 0], [0.3, 0.8, 0], [0.1, 0.2, 0.5]]]).expand(1, 2, 3, 3, 3)
    samples = PoseMixture(weights, means, factors).sample(6000, seeded())
    fitted = PoseMixture.fit(samples, num_components=3, max_iter=100, tol=1e-6)
    assert fitted.shape == (1,)
    order = fitted.weights.argsort(-1, descending=True)
    torch.testing.assert_close(torch.take_along_dim(fitted.weights, order, -1), weights, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.take_along_dim(fitted.means, order[..., None], -2), means, atol=0.03, rtol=0)
    covariances = torch.take_along_dim(fitted.covariances, order[..., None, None], -3)
    torch.testing.assert_close(covariances, (factors @ factors.mT), atol=0.002, rtol=0)
    torch.testing.assert_close(fitted.mean(), samples.mean(0), atol=1e-3, rtol=0)


def test_a_joint_that_never_moves_can_be_fitted():
    """The root of root-relative poses: distances are all zero, which nothing may warn of or stumble over."""
    pytest.importorskip("sklearn")
    samples = 0.1 * torch.randn(40, 1, 2, 3, generator=seeded())
    samples[:, :, 0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixture = PoseMixture.fit(samples, num_components=2, max_iter=2)
    torch.testing.assert_close(mixture.covariance()[0, 0], 1e-6 * torch.eye(3))
    alone = PoseMixture.fit(samples[:, :, 1:], num_components=2, max_iter=2)
    assert_same(mixture.select(1), alone, atol=0, rtol=0)  # a joint's fit does not depend on the others


def test_fit_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[mixture\]"):
        PoseMixture.fit(torch.randn(10, 2, 3), num_components=2)


def test_fit_can_show_progress(capsys):
    pytest.importorskip("sklearn")
    samples = torch.randn(10, 2, 3, generator=seeded())
    PoseMixture.fit(samples, num_components=2, max_iter=1)
    assert capsys.readouterr().err == ""
    PoseMixture.fit(samples, num_components=2, max_iter=1, progress=True)
    assert "fitting mixtures: 100%" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Changes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_an_affine_function_is_exact(dim):
    mixture = random_mixture(dim=dim)
    matrix = torch.randn(dim, dim, generator=seeded(1), dtype=torch.float64)
    moved = mixture.transformed(lambda points: points @ matrix.T + 3)
    torch.testing.assert_close(moved.mean(), mixture.mean() @ matrix.T + 3, atol=1e-12, rtol=0)
    torch.testing.assert_close(moved.covariance(), matrix @ mixture.covariance() @ matrix.T, atol=1e-12, rtol=0)
    assert torch.equal(moved.weights, mixture.weights)
    assert_same(moved.transformed(lambda points: torch.linalg.solve(matrix, (points - 3)[..., None])[..., 0]), mixture)


def test_a_rotation_keeps_the_density():
    mixture = random_mixture()
    c, s = np.cos(0.7), np.sin(0.7)
    rotation = torch.tensor([[c, -s], [s, c]])
    points = torch.randn(5, 2, JOINTS, 2, generator=seeded(), dtype=torch.float64)
    rotated = mixture.transformed(lambda points: points @ rotation.T)
    torch.testing.assert_close(rotated.log_prob(points @ rotation.T), mixture.log_prob(points))


def test_pixels_in_float32_are_exact_enough():
    pixels = PoseMixture.from_keypoints(1000 * torch.rand(2, 17, 2, generator=seeded()), scale=3.0)
    screen = pixels.transformed(lambda points: points / 960 - torch.tensor([1.0, 0.5625]))
    torch.testing.assert_close(screen.scales, pixels.scales / 960, rtol=1e-6, atol=0)


def test_a_curved_function_against_draws():
    """Through a lens with distortion, one camera for each clip of a batch; under inference mode, as pipelines run."""
    keypoints = 200 + 600 * torch.rand(2, 3, 17, 2, generator=seeded(), dtype=torch.float64)
    camera = Camera(
        torch.tensor([[1100.0, 1110], [900, 905]], dtype=torch.float64),
        torch.tensor([[500.0, 510], [480, 490]], dtype=torch.float64),
        torch.tensor([[-0.2, 0.25, -0.01], [-0.1, 0.05, 0.0]], dtype=torch.float64),
        torch.tensor([[-0.001, 0.002], [0.0, 0.0]], dtype=torch.float64),
    )
    mixture = PoseMixture.from_keypoints(keypoints, scale=2.0)
    with torch.inference_mode():
        slopes = mixture.transformed(camera.unproject)
    torch.testing.assert_close(slopes.mean(), camera.unproject(keypoints))
    draws = camera.unproject(mixture.sample(20_000, seeded()).movedim(0, -2)).movedim(-2, 0)
    torch.testing.assert_close(draws.var(0).sqrt(), slopes.scales[..., 0, :], rtol=0.03, atol=0)


def test_a_function_must_keep_the_shape_and_the_extent():
    mixture = random_mixture(dim=3)
    with pytest.raises(ValueError, match=re.escape("function must keep the shape of the points, (2, 4, 3), got (2, 4, 2)")):
        mixture.transformed(lambda points: points[..., :2])
    with pytest.raises(ValueError, match="must not be singular: no extent"):
        mixture.transformed(lambda points: points * points.new_tensor([1, 1, 0]))
    with pytest.raises(ValueError, match="means must be finite"):
        mixture.transformed(lambda points: points / 0)


def test_index_of_the_leading_axes():
    mixture = random_mixture((6, 5), joints=17, skeleton="h36m_17")
    for index in (2, slice(1, 4), (1, 2), (..., 3), (slice(None), [4, 0]), torch.arange(6) > 3, slice(0, 0)):
        part = mixture[index]
        assert torch.equal(part.means, mixture.means[index] if index != (..., 3) else mixture.means[:, 3])
        assert part.shape == part.means.shape[:-3]
        assert part.skeleton == "h36m_17"
    assert [part.shape for part in mixture] == [(5,)] * 6
    with pytest.raises(IndexError):
        mixture[0, 0, 0]  # the joints are out of reach


def test_select_joints():
    mixture = random_mixture(joints=17, skeleton="h36m_17")
    part = mixture.select([3, 0])
    assert torch.equal(part.weights, mixture.weights[:, [3, 0]])
    assert torch.equal(part.factors, mixture.factors[:, [3, 0]])
    assert part.skeleton is None
    assert mixture.select(2).num_joints == 1
    for joints in ([17], [-1], []):
        with pytest.raises(ValueError, match=re.escape("joints must be indices in 0..16")):
            mixture.select(joints)


def test_cast():
    weights = torch.tensor([[0.33333, 0.33333, 0.33333]])  # one within the tolerance of float32 only
    mixture = PoseMixture(weights, torch.randn(1, 3, 2), torch.eye(2).expand(1, 3, 2, 2))
    assert mixture.to("cpu").weights is weights
    double = mixture.to(torch.float64)
    assert {value.dtype for value in (double.weights, double.means, double.factors)} == {torch.float64}
    assert torch.equal(double.weights.sum(-1), torch.ones(1, dtype=torch.float64))


def test_check_joints():
    mixture = random_mixture(joints=16)
    mixture.check_joints(16)
    with pytest.raises(ValueError, match="mixture holds 16 joints, the model has 17"):
        mixture.check_joints(17)
    with pytest.raises(ValueError, match="mixture holds 16 joints, the pose has 17"):
        mixture.check_joints(17, "the pose")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skeleton", [None, "h36m_17"])
def test_save_and_load(tmp_path, skeleton):
    path = tmp_path / "pose.safetensors"
    mixture = random_mixture((3,), joints=17, dtype=torch.float32, skeleton=skeleton)
    mixture.save(path)
    assert_same(PoseMixture.load(path), mixture, atol=0, rtol=0)
    with pytest.raises(FileExistsError, match="overwrite"):
        mixture.save(path)
    array = torch.cat([torch.ones(17, 1, 1), torch.rand(17, 1, 4)], dim=-1)
    PoseMixture.from_array(array).save(path, overwrite=True)  # tensors that share memory
    torch.testing.assert_close(PoseMixture.load(path).to_array(), array)
    assert [file.name for file in tmp_path.iterdir()] == ["pose.safetensors"]


def test_files_that_are_no_mixtures(tmp_path):
    path = tmp_path / "pose.safetensors"
    mixture = random_mixture((3,), joints=16)
    tensors = {"weights": mixture.weights, "means": mixture.means, "factors": mixture.factors}
    metadata = {"format": "probpose.PoseMixture", "version": "1"}

    def refused(message):
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
            PoseMixture.load(path)

    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        PoseMixture.load(path)
    with pytest.raises(FileNotFoundError, match="folder"):
        mixture.save(tmp_path / "nowhere" / "pose.safetensors")
    mixture.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("damaged")
    path.write_bytes(b"")
    refused("damaged")
    save_file(tensors, path)
    refused("no mixture file")
    save_file({"weights": mixture.weights}, path, metadata)
    refused("no mixture file.*'weights'")
    save_file(tensors, path, metadata | {"version": "2"})
    refused("version of the file must be 1, got 2")
    save_file(tensors, path, metadata | {"skeleton": "h36m_17"})
    refused("mixture holds 16 joints, the skeleton 'h36m_17' has 17")
    save_file(tensors, path, metadata | {"skeleton": "h63m"})
    refused("unknown skeleton")
    save_file(tensors | {"weights": -mixture.weights}, path, metadata)
    refused("weights must not be negative")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": lambda w: w[:1]}, "must have shapes"),
        ({"weights": lambda w: w[0, 0]}, "must have shapes"),
        ({"means": lambda m: m[..., :1]}, "must have shapes"),
        ({"factors": lambda f: f[..., 0]}, "must have shapes"),
        ({"weights": lambda w: w[:, :0], "means": lambda m: m[:, :0], "factors": lambda f: f[:, :0]}, "at least one joint"),
        ({"means": lambda m: m.float()}, "all be float32 or all float64"),
        ({"weights": lambda w: w.half(), "means": lambda m: m.half(), "factors": lambda f: f.half()}, "all be float32 or all float64"),
        ({"weights": lambda w: changed(w, (1, 2, 0), float("nan"))}, r"weights must be finite \(frame 1, joint 2, component 0\)"),
        ({"means": lambda m: changed(m, (1, 2, 0, 1), float("inf"))}, r"means must be finite \(frame 1, joint 2, component 0, axis 1\)"),
        ({"factors": lambda f: changed(f, (0, 3, 2), float("nan"))}, r"factors must be finite \(frame 0, joint 3, component 2, axis 0"),
        ({"weights": lambda w: changed(w, (0, 1), torch.tensor([1.5, -0.5, 0]))}, r"negative \(frame 0, joint 1, component 1\)"),
        ({"weights": lambda w: changed(w, (1, 3), 0.33333)}, r"sum to one within 1e-06 \(frame 1, joint 3\)"),
        ({"factors": lambda f: changed(f, (1, 0, 2, 1), 0)}, r"singular: no extent \(frame 1, joint 0, component 2, axis 1\)"),
        ({"factors": lambda f: changed(f, (1, 0, 2), 0.7)}, r"singular: fixed by .*\(frame 1, joint 0, component 2, axis 1\)"),
    ],
)
def test_bad_mixtures(change, message):
    mixture = random_mixture()
    values = {name: change.get(name, lambda value: value)(getattr(mixture, name)) for name in ("weights", "means", "factors")}
    with pytest.raises(ValueError, match=message):
        PoseMixture(**values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_is_not_singular_but_flat_is(dtype):
    """Pixels beside micrometres are no reason to complain; a plane in space is, in any orientation."""
    scales = torch.tensor([1000, 1000, 1e-6], dtype=dtype)
    PoseMixture(torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, 3, dtype=dtype), torch.diag(scales)[None, None])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(), dtype=dtype)).Q
    thin, flat = (turn @ torch.diag(torch.tensor([1, 0.3, depth], dtype=dtype)) for depth in (1e-4, 0))
    PoseMixture(torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, 3, dtype=dtype), thin[None, None])
    with pytest.raises(ValueError, match=r"singular: fixed by the axes before \(joint 0, component 0, axis 2\)"):
        PoseMixture(torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, 3, dtype=dtype), flat[None, None])


def test_several_leading_axes_are_named():
    mixture = random_mixture((3, 2))
    with pytest.raises(ValueError, match=r"frame \(2, 1\), joint 0, component 1"):
        PoseMixture(changed(mixture.weights, (2, 1, 0, 1), -1), mixture.means, mixture.factors)
    with pytest.raises(ValueError, match="mixture holds 4 joints, the skeleton 'h36m_17' has 17"):
        random_mixture(skeleton="h36m_17")


KEYPOINTS, CLIP, MAPS, SAMPLES = torch.zeros(3, 4, 2), torch.ones(3, 4), torch.ones(3, 4, 6, 8), torch.randn(9, 3, 4, 2)
ARRAY = torch.tensor([1.0, 0, 0, 1, 1]).expand(3, 4, 1, 5)
BOX = (0, 0, 8, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoseMixture.from_keypoints(KEYPOINTS[0, 0]), "keypoints must have shape"),
        (lambda: PoseMixture.from_keypoints(changed(KEYPOINTS, (2, 1, 0), float("nan"))), r"fill or drop .*\(frame 2, joint 1\)"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, CLIP[0]), r"confidence must have shape \(3, 4\)"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, changed(CLIP, (1, 2), 1.2)), r"0..1 \(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, changed(CLIP, (1, 2), float("nan"))), r"0..1 \(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, scale=0), "scale must be positive"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, scale=changed(CLIP, (1, 2), float("inf"))), r"scale .*\(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, scale=torch.ones(5)), r"scale must fit the shape \(3, 4\), got \(5,\)"),
        (lambda: PoseMixture.from_keypoints(KEYPOINTS, unit=0), "unit must be positive"),
        (lambda: PoseMixture.from_array(ARRAY[..., :4]), "array must have shape"),
        (lambda: PoseMixture.from_array(ARRAY[0, 0]), "array must have shape"),
        (lambda: PoseMixture.from_array(changed(ARRAY, (2, 1, 0, 3), float("nan"))), "array must be finite .*component 0, entry 3"),
        (lambda: PoseMixture.from_array(changed(ARRAY, (2, 1, 0, 4), -1)), r"not be negative \(frame 2, joint 1, component 0, axis 1\)"),
        (lambda: PoseMixture.from_array(changed(ARRAY, (2, 1, 0, 0), 0.9)), r"sum to one within 0.0001 \(frame 2, joint 1\)"),
        (lambda: PoseMixture.from_array(ARRAY, image_size=(0, 5)), "image_size must be a positive"),
        (lambda: PoseMixture.from_heatmaps(MAPS[0, 0], BOX), "heatmaps must have shape"),
        (lambda: PoseMixture.from_heatmaps(MAPS[..., :0], BOX), "heatmaps must have shape"),
        (lambda: PoseMixture.from_heatmaps(changed(MAPS, (1, 2, 3, 4), -1), BOX), r"not negative \(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_heatmaps(changed(MAPS, (1, 2, 3, 4), float("nan")), BOX), r"must be finite.*\(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_heatmaps(changed(MAPS, (1, 2, 3, 4), float("inf")), BOX), r"must be finite.*\(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_heatmaps(changed(MAPS, (1, 2), 0), BOX), r"positive value \(frame 1, joint 2\)"),
        (lambda: PoseMixture.from_heatmaps(MAPS, (0, 0, 8)), "box must be"),
        (lambda: PoseMixture.from_heatmaps(MAPS, torch.ones(2, 4)), r"box must fit the shape \(3, 4\), got \(2, 4\)"),
        (lambda: PoseMixture.from_heatmaps(MAPS, (8, 0, 8, 6)), "right > left"),
        (lambda: PoseMixture.from_heatmaps(MAPS, changed(torch.tensor(BOX).repeat(3, 1), (2, 3), -1)), r"bottom > top \(frame 2\)"),
        (lambda: PoseMixture.from_heatmaps(MAPS, (0, 0, float("nan"), 6)), "right > left"),
        (lambda: PoseMixture.from_heatmaps(MAPS, BOX, floor=1.5), "floor must lie in 0..1"),
        (lambda: PoseMixture.from_heatmaps(MAPS, BOX, num_components=0), "num_components must be a positive integer"),
        (lambda: PoseMixture.fit(SAMPLES[0, 0]), "samples must have shape"),
        (lambda: PoseMixture.fit(SAMPLES[:, :0]), "samples must have shape"),
        (lambda: PoseMixture.fit(SAMPLES[:5]), "5 components need at least 6 samples, got 5"),
        (lambda: PoseMixture.fit(SAMPLES[:1], 1), "1 components need at least 2 samples, got 1"),
        (lambda: PoseMixture.fit(changed(SAMPLES, (7, 2, 1, 0), float("nan"))), r"samples must be finite \(frame 2, joint 1\)"),
        (lambda: PoseMixture.fit(SAMPLES, 1.5), "num_components must be a positive integer"),
        (lambda: PoseMixture.fit(SAMPLES, max_iter=0), "max_iter must be a positive integer"),
        (lambda: PoseMixture.fit(SAMPLES, tol=-1), "tol must not be negative"),
        (lambda: PoseMixture.fit(SAMPLES, regularisation=0), "regularisation must be positive"),
        (lambda: random_mixture().sample(0), "num_draws must be a positive integer"),
        (lambda: random_mixture().sample(3, noise=torch.zeros(3, 2, 4, 3)), r"noise must have shape \(3, 2, 4, 2\)"),
        (lambda: random_mixture().gather(torch.zeros(5, 3, 4).long()), r"shape \(draws, 2, 4\), got .* shape \(5, 3, 4\)"),
        (lambda: random_mixture().gather(torch.zeros(5, 2, 4)), "index must hold integers"),
        (lambda: random_mixture().gather(torch.full((5, 2, 4), 3)), r"index must lie in 0..2, got 3..3"),
        (lambda: random_mixture().gather(torch.full((5, 2, 4), -1)), r"index must lie in 0..2, got -1..-1"),
        (lambda: random_mixture().log_prob(torch.zeros(2, 4, 3)), r"points must have shape \(2, 4, 2\).*got \(2, 4, 3\)"),
        (lambda: random_mixture().log_prob(torch.zeros(3, 4, 2)), r"points must have shape \(2, 4, 2\).*got \(3, 4, 2\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
