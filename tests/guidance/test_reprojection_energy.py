"""Energies of motions seen by cameras: numbers of the original Platypose, and what follows from the geometry."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probpose.geometry import Camera, h36m_camera, quaternion_to_matrix
from probpose.guidance import GaussianReprojectionEnergy, HeatmapEnergy, ReprojectionEnergy, absolute, oracle_weights

TESTS = Path(__file__).resolve().parents[1]
PARITY = TESTS.parents[1] / "shared" / "parity" / "platypose" / "io.safetensors"
COVARIANCE = torch.tensor([[0.02, 0.01], [0.01, 0.03]], dtype=torch.float64) ** 2


@pytest.fixture(scope="module")
def golden():
    return load_file(TESTS / "golden" / "platypose.safetensors")


def published_camera(numbers, index, distorted=True):
    part = {name: numbers[f"camera{index}.{name}"] for name in ("intrinsic_matrix", "rotation_matrix", "translation_vector")}
    lens = {name: numbers[f"camera{index}.{name}_distortion"][0] for name in ("radial", "tangential")} if distorted else {}
    rotation = part["rotation_matrix"]
    return Camera(
        focal=part["intrinsic_matrix"].diagonal()[:2],
        centre=part["intrinsic_matrix"][2, :2],
        rotation=rotation,
        translation=-rotation @ part["translation_vector"][0],
        convention="opencv",
        **lens,
    )


@pytest.fixture
def cameras():
    """Two of Human3.6M's, without lens distortion, in screen units."""
    both = [h36m_camera(i, "S1").normalised().to(torch.float64) for i in (0, 3)]
    return [replace(camera, radial=None, tangential=None) for camera in both]


@pytest.fixture
def scene(cameras, make_motion, draw):
    """Motions `(3, 4, 17, 3)` and what the cameras saw `(2, 4, 17, 2)` of another one, with some noise."""
    seen = torch.stack([camera.project(camera.to_camera(absolute(make_motion(seed=5)))) for camera in cameras])
    return make_motion(3), seen + 0.02 * draw(*seen.shape)


def apart(motion):
    """A motion without trajectory, and the trajectory."""
    relative = motion.clone()
    relative[..., 0, :] = 0
    return relative, motion[..., 0, :]


def close_expansions(actual, expected):
    for part in ("value", "gradient", "curvature"):
        torch.testing.assert_close(getattr(actual, part), getattr(expected, part))


# The original


@pytest.mark.parametrize(("name", "count"), [("multiview2_weighted", 2), ("mono_weighted", 1), ("gaussian", 1), ("orthographic", 1)])
def test_original_energies(golden, far_camera, name, count):
    cameras, root = [published_camera(golden, i) for i in range(count)], golden["energy.gt_abs"][:, :, 0]
    motion = golden["energy.x"].reshape(3, 4, 17, 3)
    if name == "gaussian":
        keypoints, sigma = golden["energy.gaussian.keypoints"], golden["energy.gaussian.sigma"]
        energy = GaussianReprojectionEnergy(cameras[0], keypoints, sigma=sigma, root=root)
    elif name == "orthographic":
        energy, motion = ReprojectionEnergy(far_camera, golden["energy.orthographic.keypoints"][0], root=root), motion.double()
    else:
        weights = golden["energy.oracle_weights"][:count]
        energy = ReprojectionEnergy(cameras, golden["energy.keypoints"][:count], weights=weights, root=root)
    value, gradient = energy.gradient(motion)
    gradient = gradient.reshape(3, 4, 51).float()
    torch.testing.assert_close(value.float(), golden[f"energy.{name}.value"], rtol=1e-5, atol=0)
    expected = golden[f"energy.{name}.grad"]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_original_weights(golden):
    actual = oracle_weights(golden["energy.keypoints"], golden["energy.projected_gt"])
    torch.testing.assert_close(actual, golden["energy.oracle_weights"], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
@pytest.mark.parametrize("distorted", [True, False])
def test_original_projection(distorted):
    numbers = load_file(PARITY)
    for i in range(2):
        camera = published_camera(numbers, i, distorted)
        expected = numbers[f"proj.camera{i}.{'distorted' if distorted else 'undistorted'}"]
        torch.testing.assert_close(camera.project(camera.to_camera(numbers["proj.points"])), expected, atol=1e-5, rtol=0)


# Derivatives


def every_energy(cameras, keypoints, **root):
    return {
        "one camera": ReprojectionEnergy(cameras[0], keypoints[0], **root),
        "two cameras": ReprojectionEnergy(cameras, keypoints, weights=keypoints.abs(), reduction="sum", **root),
        "some joints": ReprojectionEnergy(cameras, keypoints[..., [13, 2, 5], :], joints=[13, 2, 5], **root),
        "huber": ReprojectionEnergy(cameras, keypoints, loss="huber", loss_scale=0.05, **root),
        "cauchy": ReprojectionEnergy(cameras, keypoints, loss="cauchy", loss_scale=0.05, **root),
        "sigma": GaussianReprojectionEnergy(cameras, keypoints, sigma=0.01 + keypoints.abs(), **root),
        "covariance": GaussianReprojectionEnergy(cameras[0], keypoints[0], covariance=COVARIANCE, reduction="sum", **root),
    }


NAMES = ("one camera", "two cameras", "some joints", "huber", "cauchy", "sigma", "covariance")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", [False, True], ids=["own root", "given root"])
def test_gradients_are_derivatives(cameras, scene, name, given):
    motion, keypoints = scene
    relative, root = apart(motion[0])
    energy = every_energy(cameras, keypoints, **({"root": root} if given else {}))[name]
    assert torch.autograd.gradcheck(energy, (relative if given else motion[0]).requires_grad_(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", [False, True], ids=["own root", "given root"])
def test_curvature_bounds(far_camera, make_motion, draw, check_majoriser, name, given):
    """Seen from afar, where images move linearly and Gauss and Newton's order is all there is."""
    turned = replace(far_camera, rotation=quaternion_to_matrix(draw(4)))
    views = [far_camera, turned]
    motion = make_motion(3)
    keypoints = torch.stack([c.project(c.to_camera(absolute(make_motion(seed=5)))) for c in views]) + 0.1 * draw(2, 4, 17, 2, seed=1)
    relative, root = apart(motion)
    energy = every_energy(views, keypoints, **({"root": root} if given else {}))[name]
    check_majoriser(energy, relative if given else motion, size=0.01)


def test_curvature_is_exact_where_the_keypoints_are_met(cameras, make_motion, draw):
    """Near by, for joints that move by themselves."""
    relative, root = apart(make_motion(3))
    energy = ReprojectionEnergy(cameras[0], cameras[0].project(cameras[0].to_camera(absolute(relative, root))), root=root)
    expansion, step = energy.expand(relative), 1e-4 * draw(3, 4, 17, 3, seed=1)
    torch.testing.assert_close(expansion.value, torch.zeros(3).double())
    quadratic = torch.einsum("...i,...ij,...j->...", step, expansion.curvature, step).sum((-1, -2)) / 2
    torch.testing.assert_close(energy(relative + step), quadratic, rtol=1e-3, atol=0)


# Values


def test_by_hand():
    camera = Camera(torch.tensor([2.0, 4.0]), torch.tensor([0.0, 0.0]))
    motion = torch.tensor([[[0.5, 0.0, 2.0], [0.0, 0.5, 0.0]]])  # seen at (0.5, 0) and (0.5, 1)
    keypoints = torch.tensor([[[0.6, 0.0], [0.5, 0.7]]])
    assert ReprojectionEnergy(camera, keypoints)(motion).item() == pytest.approx((0.1**2 + 0.3**2) / 4)
    assert ReprojectionEnergy(camera, keypoints, reduction="sum")(motion).item() == pytest.approx((0.1**2 + 0.3**2) / 2)
    assert ReprojectionEnergy(camera, keypoints, weights=[[3.0, 1.0]])(motion).item() == pytest.approx((3 * 0.1**2 + 0.3**2) / 4)
    assert ReprojectionEnergy(camera, keypoints[:, 1:], joints=[1])(motion).item() == pytest.approx(0.3**2 / 2)
    huber = ReprojectionEnergy(camera, keypoints, loss="huber", loss_scale=0.2, reduction="sum")
    assert huber(motion).item() == pytest.approx(0.1**2 / 2 + 0.2 * (0.3 - 0.1))
    cauchy = ReprojectionEnergy(camera, keypoints, loss="cauchy", loss_scale=0.2, reduction="sum")
    assert cauchy(motion).item() == pytest.approx(0.2**2 / 2 * (math.log(1 + 0.1**2 / 0.2**2) + math.log(1 + 0.3**2 / 0.2**2)))


def test_gaussian_is_a_likelihood(cameras, scene):
    motion, keypoints = scene
    projected = [camera.project(camera.to_camera(absolute(motion))) for camera in cameras]
    normal = [torch.distributions.MultivariateNormal(p, COVARIANCE) for p in projected]
    expected = -sum(n.log_prob(k).sum((-1, -2)) for n, k in zip(normal, keypoints))
    total = GaussianReprojectionEnergy(cameras, keypoints, covariance=[COVARIANCE] * 2, reduction="sum")
    torch.testing.assert_close(total(motion), expected)
    mean = GaussianReprojectionEnergy(cameras, keypoints, covariance=[COVARIANCE] * 2)
    close_expansions(mean.expand(motion), (1 / 34 * total).expand(motion))


def test_inverse_variances_as_weights_are_a_likelihood_but_for_a_constant(cameras, scene, draw):
    motion, keypoints = scene
    sigma = 0.01 + draw(*keypoints.shape).abs()
    weighted = ReprojectionEnergy(cameras, keypoints, weights=sigma**-2, reduction="sum")
    likelihood = GaussianReprojectionEnergy(cameras, keypoints, sigma=sigma, reduction="sum")
    constant = sigma.log().sum() + sigma.numel() / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(weighted(motion) + constant, likelihood(motion))
    torch.testing.assert_close(weighted.curvature(motion), likelihood.curvature(motion))


@pytest.mark.parametrize("loss", ["huber", "cauchy"])
def test_robust_losses_become_squared(cameras, scene, loss):
    motion, keypoints = scene
    squared = ReprojectionEnergy(cameras, keypoints).expand(motion)
    robust = ReprojectionEnergy(cameras, keypoints, loss=loss, loss_scale=1e5).expand(motion)
    close_expansions(robust, squared)
    assert (ReprojectionEnergy(cameras, keypoints, loss=loss, loss_scale=0.01)(motion) < squared.value).all()


@pytest.mark.parametrize(("loss", "share"), [("squared", 1.0), ("huber", 1 / 20), ("cauchy", 1 / 401)])
def test_outliers_pull_less(loss, share):
    """One at 20 times the loss's scale: by a 20th, or by another 20th."""
    camera, motion = Camera(torch.ones(2), torch.zeros(2)), torch.tensor([[[0.0, 0.0, 1.0]]])
    energy = ReprojectionEnergy(camera, torch.tensor([[[2.0, 0.0]]]), loss=loss, loss_scale=0.1)
    assert energy.gradient(motion)[1][0, 0, 0].item() == pytest.approx(-2 * share)


def test_the_mean_is_over_joints(cameras, scene):
    motion, keypoints = scene
    total, mean = (ReprojectionEnergy(cameras, keypoints[..., 3:7, :], joints=range(3, 7), reduction=r) for r in ("sum", "mean"))
    close_expansions(mean.expand(motion), (1 / 4 * total).expand(motion))


def test_cameras_add_up(cameras, scene):
    motion, keypoints = scene
    parts = [ReprojectionEnergy(camera, seen) for camera, seen in zip(cameras, keypoints)]
    close_expansions(ReprojectionEnergy(cameras, keypoints).expand(motion), (parts[0] + parts[1]).expand(motion))
    torch.testing.assert_close(ReprojectionEnergy(cameras, list(keypoints))(motion), ReprojectionEnergy(cameras, keypoints)(motion))


def test_world_and_cameras_may_move_together(cameras, scene, draw):
    motion, keypoints = scene
    turn, shift = quaternion_to_matrix(draw(4)), draw(3)
    moved = motion @ turn.mT
    moved[..., 0, :] += shift
    rotations = [camera.rotation @ turn.mT for camera in cameras]
    others = [replace(c, rotation=r, translation=c.translation - r @ shift) for c, r in zip(cameras, rotations)]
    expected, actual = (ReprojectionEnergy(c, keypoints).expand(m) for c, m in ((cameras, motion), (others, moved)))
    torch.testing.assert_close(actual.value, expected.value)
    torch.testing.assert_close(actual.gradient, expected.gradient @ turn.mT)
    torch.testing.assert_close(actual.curvature, turn @ expected.curvature @ turn.mT)


def test_a_camera_without_extrinsics_sees_its_own_axes(cameras, scene):
    camera, (motion, keypoints) = cameras[0], scene
    seen = motion @ camera.rotation.mT
    seen[..., 0, :] += camera.translation
    bare = replace(camera, rotation=None, translation=None)
    expected, actual = ReprojectionEnergy(camera, keypoints[0]).expand(motion), ReprojectionEnergy(bare, keypoints[0]).expand(seen)
    torch.testing.assert_close(actual.value, expected.value)
    torch.testing.assert_close(actual.curvature, camera.rotation @ expected.curvature @ camera.rotation.mT)


def test_the_trajectory_or_a_root(cameras, scene):
    motion, keypoints = scene
    relative, root = apart(motion)
    with_root = ReprojectionEnergy(cameras, keypoints, root=root)
    torch.testing.assert_close(with_root(relative), ReprojectionEnergy(cameras, keypoints)(motion))
    offset = relative.clone()
    offset[..., 0, 0] = 0.1  # as published, what stands in the root's place is added
    assert (with_root(offset) != with_root(relative)).all()


def test_a_root_with_an_axis_for_joints(cameras, scene):
    relative, root = apart(scene[0])
    expected = ReprojectionEnergy(cameras, scene[1], root=root).expand(relative)
    close_expansions(ReprojectionEnergy(cameras, scene[1], root=root[..., None, :]).expand(relative), expected)


@pytest.mark.parametrize("joints", [None, [0, 4, 9]])
def test_a_trajectory_that_is_held_is_a_root_that_is_given(cameras, scene, joints):
    motion, keypoints = scene
    keypoints = keypoints if joints is None else keypoints[..., joints, :]
    relative, root = apart(motion)
    given = ReprojectionEnergy(cameras, keypoints, joints=joints, root=root).expand(relative)
    given.gradient[..., 0, :], given.curvature[..., 0, :, :] = 0, 0
    close_expansions(ReprojectionEnergy(cameras, keypoints, joints=joints, hold_trajectory=True).expand(motion), given)


# What is not observed


def test_nan_is_a_weight_of_zero(cameras, scene):
    motion, keypoints = scene
    weights, holes = torch.ones(2, 4, 17).double(), keypoints.clone()
    weights[0, 1], weights[1, :, 4] = 0, 0
    holes[0, 1], holes[1, :, 4, 0] = math.nan, math.nan
    expected = ReprojectionEnergy(cameras, keypoints, weights=weights).expand(motion)
    close_expansions(ReprojectionEnergy(cameras, holes).expand(motion), expected)
    weights = torch.where(weights == 0, math.nan, weights)
    close_expansions(ReprojectionEnergy(cameras, holes, weights=weights).expand(motion), expected)
    close_expansions(ReprojectionEnergy(cameras, holes, weights=weights[..., None].expand(2, 4, 17, 2)).expand(motion), expected)


def test_nan_has_no_likelihood(cameras, scene):
    motion, keypoints = scene
    holes = torch.full_like(keypoints[0], math.nan)
    holes[2, 5] = keypoints[0, 2, 5]
    energy = GaussianReprojectionEnergy(cameras[0], holes, covariance=COVARIANCE, reduction="sum").expand(motion)
    alone = GaussianReprojectionEnergy(cameras[0], holes[2:3, 5:6], covariance=COVARIANCE, joints=[5], reduction="sum")
    torch.testing.assert_close(energy.value, alone(motion[:, 2:3]))
    torch.testing.assert_close(energy.curvature[:, 2], alone.curvature(motion[:, 2:3])[:, 0])
    assert not energy.gradient[:, [0, 1, 3]].any()


@pytest.mark.parametrize("depth", [-3.0, 0.0, 1e-6])
def test_joints_behind_a_camera(draw, depth):
    camera = h36m_camera(1).normalised()
    for lens in (camera, replace(camera, radial=None, tangential=None, convention="opencv")):
        motion, keypoints = 0.3 * draw(2, 4, 17, 3).float(), 0.2 * draw(4, 17, 2, seed=1).float()
        motion[..., 0, 2] += depth
        energies = (
            ReprojectionEnergy(lens, keypoints),
            GaussianReprojectionEnergy(lens, keypoints, sigma=(0.01, 0.01)),
            HeatmapEnergy(lens, torch.ones(4, 17, 8, 8), (-1, -1, 1, 1)),
        )
        for energy in energies:
            expansion = energy.expand(motion)
            assert all(torch.isfinite(part).all() for part in (expansion.value, expansion.gradient, expansion.curvature))


# Several clips


@pytest.mark.parametrize("kind", ["squared", "gaussian", "heatmap"])
def test_clips_with_their_own_cameras(cameras, make_motion, draw, kind):
    clips, hypotheses = 2, 3
    motion, root, keypoints = make_motion(clips, hypotheses), draw(clips, 4, 3), draw(2, clips, 4, 17, 2, seed=1)
    weights = draw(2, clips, 4, 17, seed=2).abs()
    maps, crops = draw(2, clips, 4, 17, 8, 6, seed=3).exp(), draw(2, clips, 4, 4, seed=4).abs() + torch.tensor([-3, -3, 0.5, 0.5])
    turns, shifts = quaternion_to_matrix(draw(2, clips, 4, seed=3)), draw(2, clips, 3, seed=4) + torch.tensor([0, 0, 5.0])
    focals = 2 + draw(2, clips, 2, seed=5).abs()
    views = [replace(c, focal=f, rotation=r, translation=t) for c, f, r, t in zip(cameras, focals, turns, shifts)]

    def energy(views, clip, root):
        if kind == "squared":
            return ReprojectionEnergy(views, keypoints[clip], weights=weights[clip], root=root)
        if kind == "gaussian":
            return GaussianReprojectionEnergy(views, keypoints[clip], sigma=0.1 + keypoints[clip].abs(), root=root)
        return HeatmapEnergy(views, maps[clip], crops[clip], root=root)

    together = energy(views, (slice(None), slice(None), None), root[:, None]).expand(motion)
    for i in range(clips):
        own = [replace(c, focal=c.focal[i], rotation=c.rotation[i], translation=c.translation[i]) for c in views]
        alone = energy(own, (slice(None), i), root[i]).expand(motion[i])
        for part in ("value", "gradient", "curvature"):
            torch.testing.assert_close(getattr(together, part)[i], getattr(alone, part))


# Heatmaps


def gaussian_maps(mean, sigma, crop, size):
    """Maps `(..., size, size)` of Gaussians `mean, sigma (..., 2)` on a crop."""
    left, top, right, bottom = crop
    centres = (torch.arange(size).double() + 0.5) / size
    x, y = left + centres * (right - left), top + centres * (bottom - top)
    grid = torch.stack([x.expand(size, size), y[:, None].expand(size, size)], dim=-1)
    return (-((grid - mean[..., None, None, :]) / sigma[..., None, None, :]).square().sum(-1) / 2).exp()


def test_a_heatmap_of_a_gaussian_is_one(far_camera, make_motion, draw):
    motion, crop = make_motion(3), (-2.0, -3.0, 3.0, 2.0)
    mean = absolute(make_motion(seed=5))[..., :2]
    sigma = 0.3 + 0.1 * draw(4, 17, 2, seed=1).abs()
    heatmap = HeatmapEnergy(far_camera, 7 * gaussian_maps(mean, sigma, crop, 128), crop, floor=1e-9)
    gaussian = GaussianReprojectionEnergy(far_camera, mean, sigma=sigma, reduction="sum")
    pixels = 4 * 17 * math.log((5 / 128) ** 2)  # a density against a probability
    torch.testing.assert_close(heatmap(motion), gaussian(motion) - pixels, rtol=0.01, atol=0.01)
    torch.testing.assert_close(heatmap.curvature(motion), gaussian.curvature(motion), rtol=0.02, atol=0.02)
    actual, expected = heatmap.gradient(motion)[1], gaussian.gradient(motion)[1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_heatmap_curvature_bounds(far_camera, make_motion, draw, check_majoriser):
    """Over steps longer than a pixel: within one, the map has no curvature."""
    crop, mean = (-2.0, -3.0, 3.0, 2.0), absolute(make_motion(seed=5))[..., :2]
    heatmap = HeatmapEnergy(far_camera, gaussian_maps(mean, torch.full_like(mean, 0.4), crop, 256), crop, root=draw(4, 3) / 10)
    check_majoriser(heatmap, apart(make_motion(noise=0.01))[0], size=0.2, tolerance=0.1)


def test_a_heatmap_beyond_its_edge(far_camera, make_motion):
    heatmap = HeatmapEnergy(far_camera, torch.ones(4, 17, 8, 8), (-2, -2, 2, 2), floor=1e-3)
    motion = make_motion(2, noise=0)
    motion[..., 0, 0] += 100
    value, gradient = heatmap.gradient(motion)
    assert value.tolist() == pytest.approx([4 * 17 * -math.log(1.001 / 64)] * 2)
    assert not gradient.any()


def test_heatmap_pixels_lie_where_they_lie(far_camera):
    """The second of four columns and the last of three rows of a crop from (10, 20) to (14, 26)."""
    maps = torch.zeros(1, 1, 3, 4).double()
    maps[..., 2, 1] = 1
    heatmap = HeatmapEnergy(far_camera, maps, (10, 20, 14, 26))
    places = torch.tensor([[11.5, 25.0, 0], [12.5, 25.0, 0], [11.5, 23.0, 0]], dtype=torch.float64)
    values = heatmap(places[:, None, None]).tolist()
    assert values[0] == pytest.approx(-math.log(1 + 1e-3 / 12), abs=1e-5) and values[1:] == pytest.approx(
        [-math.log(1e-3 / 12)] * 2, rel=1e-5
    )


# Bad input


def test_bad_cameras(cameras, scene):
    keypoints = scene[1]
    for bad in ([], "camera", [cameras[0], None]):
        with pytest.raises(ValueError, match="cameras must be a"):
            ReprojectionEnergy(bad, keypoints)
    bare = replace(cameras[1], rotation=None, translation=None)
    with pytest.raises(ValueError, match="several cameras must all have a rotation and a translation"):
        ReprojectionEnergy([cameras[0], bare], keypoints)
    for half in ({"rotation": None}, {"translation": None}):
        with pytest.raises(ValueError, match="both a rotation and a translation, or neither"):
            ReprojectionEnergy(replace(cameras[0], **half), keypoints[0])


def test_bad_keypoints_and_weights(cameras, scene):
    keypoints = scene[1]
    with pytest.raises(ValueError, match="keypoints must be given for every camera: 2 cameras, keypoints for 3"):
        ReprojectionEnergy(cameras, [*keypoints, keypoints[0]])
    with pytest.raises(ValueError, match="weights must be given for every camera"):
        ReprojectionEnergy(cameras, keypoints, weights=keypoints[:1])
    for energy in (ReprojectionEnergy, GaussianReprojectionEnergy):
        with pytest.raises(ValueError, match=r"keypoints must have shape \(\.\.\., 2\), got \[\(4, 17, 3\)\]"):
            energy(cameras[0], torch.zeros(4, 17, 3), **({} if energy is ReprojectionEnergy else {"sigma": torch.ones(2)}))
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            ReprojectionEnergy(cameras, keypoints, weights=torch.full((2, 4, 17), bad))
    for shape in ((2, 4, 16), (2, 4, 17, 3), (2,)):
        with pytest.raises(ValueError, match=r"weights must have shape \(4, 17, 2\), with or without the last axis"):
            ReprojectionEnergy(cameras, keypoints, weights=torch.ones(shape))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"loss": "l1"}, r"loss must be one of \('squared', 'huber', 'cauchy'\), got 'l1'"),
        ({"reduction": "none"}, r"reduction must be one of \('mean', 'sum'\), got 'none'"),
        ({"loss_scale": 0}, "loss_scale must be a finite number above 0, got 0"),
        ({"min_depth": -1}, "min_depth must be a finite number above 0, got -1"),
    ],
)
def test_bad_settings(cameras, scene, argument, message):
    with pytest.raises(ValueError, match=message):
        ReprojectionEnergy(cameras, scene[1], **argument)


def test_bad_gaussians(cameras, scene):
    camera, keypoints = cameras[0], scene[1][0]
    for neither_or_both in ({}, {"sigma": (1.0, 1.0), "covariance": COVARIANCE}):
        with pytest.raises(ValueError, match="pass sigma or covariance, one of the two"):
            GaussianReprojectionEnergy(camera, keypoints, **neither_or_both)
    with pytest.raises(ValueError, match=r"sigma must have shape \(\.\.\., 2\)"):
        GaussianReprojectionEnergy(camera, keypoints, sigma=0.1)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be finite and above 0"):
            GaussianReprojectionEnergy(camera, keypoints, sigma=torch.full((2,), bad))
    for bad in (-COVARIANCE, torch.ones(2, 2), torch.full((2, 2), math.nan)):
        with pytest.raises(ValueError, match="covariance must be positive definite"):
            GaussianReprojectionEnergy(camera, keypoints, covariance=bad)
    with pytest.raises(ValueError, match=r"covariance must have shape \(\.\.\., 2, 2\)"):
        GaussianReprojectionEnergy(camera, keypoints, covariance=torch.ones(4, 17, 2))
    with pytest.raises(ValueError, match="reduction must be one of"):
        GaussianReprojectionEnergy(camera, keypoints, sigma=(1.0, 1.0), reduction="max")


def test_bad_heatmaps(cameras):
    maps, crop = torch.ones(4, 17, 8, 8), (0, 0, 1, 1)
    for bad in (-maps, maps * 0, maps * math.nan):
        with pytest.raises(ValueError, match="heatmaps must be finite, not negative"):
            HeatmapEnergy(cameras[0], bad, crop)
    with pytest.raises(ValueError, match="left < right and top < bottom"):
        HeatmapEnergy(cameras[0], maps, (0, 0, 0, 1))
    with pytest.raises(ValueError, match="crop must have shape"):
        HeatmapEnergy(cameras[0], maps, (0, 0, 1))
    with pytest.raises(ValueError, match="floor must be a finite number above 0"):
        HeatmapEnergy(cameras[0], maps, crop, floor=0)
