"""Aggregators: the published rule, and what any aggregate of hypotheses must obey."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize

from probpose.aggregation import (
    AGGREGATORS,
    JPMA,
    Aggregator,
    GeometricMedianAggregator,
    MeanAggregator,
    ReprojectionWeightedAggregator,
    get_aggregator,
)
from probpose.geometry import Camera, h36m_camera, select_by_reprojection

GOLDEN = Path(__file__).resolve().parent / "golden" / "metrics_d3dp.safetensors"
every_aggregator = pytest.mark.parametrize("name", sorted(AGGREGATORS))


def same(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture
def scene():
    """Five hypotheses about a person, keypoints with noise, the camera and the root trajectory."""
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(2, 6, 17, 3, generator=generator)
    pose[..., 0, :] = 0
    hypotheses = pose[:, None] + 0.05 * torch.randn(2, 5, 6, 17, 3, generator=generator)
    hypotheses[..., 0, :] = 0
    root = torch.tensor([0.2, 0.1, 5.0]) + 0.1 * torch.randn(2, 1, 3, generator=generator) + torch.linspace(0, 0.05, 6)[:, None]
    camera = Camera([1145.0, 1145.0], [500.0, 510.0], image_size=(1000, 1000))
    keypoints = camera.project(pose + root[:, :, None]) + 2 * torch.randn(2, 6, 17, 2, generator=generator)
    return hypotheses, keypoints, camera, root


def errors_of(hypotheses, keypoints, camera, root):
    return (camera.project(hypotheses + root[:, None, :, None]) - keypoints[:, None]).norm(dim=-1)


# What all of them share


@every_aggregator
@pytest.mark.parametrize("root_given", [True, False])
def test_the_order_of_the_hypotheses_does_not_matter(name, root_given, scene):
    hypotheses, keypoints, camera, root = scene
    root = root if root_given else None
    out = get_aggregator(name)(hypotheses, keypoints, camera, root)
    shuffled = get_aggregator(name)(hypotheses[:, [3, 0, 4, 2, 1]], keypoints, camera, root)
    same(shuffled.pose, out.pose)
    same(shuffled.uncertainty, out.uncertainty)


@every_aggregator
@pytest.mark.parametrize("root_given", [True, False])
def test_one_hypothesis_is_the_pose(name, root_given, scene):
    hypotheses, keypoints, camera, root = scene
    out = get_aggregator(name)(hypotheses[:, :1], keypoints, camera, root if root_given else None)
    same(out.pose, hypotheses[:, 0], atol=1e-6)
    same(out.uncertainty, torch.zeros(2, 6, 17), atol=1e-6)


@every_aggregator
def test_equal_hypotheses_are_the_pose(name, scene):
    hypotheses, keypoints, camera, _ = scene
    out = get_aggregator(name)(hypotheses[:, :1].expand(-1, 7, -1, -1, -1), keypoints, camera)
    same(out.pose, hypotheses[:, 0], atol=1e-6)
    same(out.uncertainty, torch.zeros(2, 6, 17), atol=1e-6)


@every_aggregator
def test_uncertainty_is_the_rms_radius_about_the_pose(name, scene):
    hypotheses, keypoints, camera, root = scene
    out = get_aggregator(name)(hypotheses, keypoints, camera, root)
    distance = (hypotheses - out.pose[:, None]).norm(dim=-1)
    same(out.uncertainty, (distance**2).mean(1).sqrt())
    assert out.uncertainty.shape == (2, 6, 17)
    least = get_aggregator("mean")(hypotheses).uncertainty
    assert (out.uncertainty >= least - 1e-6).all(), "no point has a smaller RMS radius than the mean"


@every_aggregator
@pytest.mark.parametrize("root_given", [True, False])
def test_turning_the_camera_about_its_axis_turns_the_pose(name, root_given, scene):
    hypotheses, keypoints, camera, root = scene
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    turned_keypoints = (keypoints - camera.centre) @ turn[:2, :2].T + camera.centre
    aggregator = get_aggregator(name)
    out = aggregator(hypotheses, keypoints, camera, root if root_given else None)
    turned = aggregator(hypotheses @ turn.T, turned_keypoints, camera, root @ turn.T if root_given else None)
    same(turned.pose, out.pose @ turn.T, atol=1e-4)
    same(turned.uncertainty, out.uncertainty, atol=1e-4)


@every_aggregator
def test_clips_of_a_batch_do_not_meet(name, scene):
    hypotheses, keypoints, _, root = scene
    cameras = Camera.from_vector(torch.stack([h36m_camera(i).to_vector() for i in (0, 2)]))
    confidence = torch.linspace(0.1, 1, 2 * 6 * 17).reshape(2, 6, 17)
    for given in (root, None):
        together = get_aggregator(name)(hypotheses, keypoints, cameras, given, confidence)
        for b, index in enumerate((0, 2)):
            rows = slice(b, b + 1)
            alone = get_aggregator(name)(
                hypotheses[rows], keypoints[rows], h36m_camera(index), None if given is None else given[rows], confidence[rows]
            )
            same(alone.pose[0], together.pose[b], atol=1e-4)


@every_aggregator
def test_pose_stays_among_the_hypotheses(name, scene):
    hypotheses, keypoints, camera, _ = scene
    pose = get_aggregator(name)(hypotheses, keypoints, camera).pose
    assert (pose <= hypotheses.amax(1) + 1e-6).all() and (pose >= hypotheses.amin(1) - 1e-6).all()


@pytest.mark.parametrize("name", ["jpma", "weighted"])
@pytest.mark.parametrize("root_given", [True, False])
def test_joints_without_observation_take_the_mean(name, root_given, scene):
    hypotheses, keypoints, camera, root = scene
    hidden = torch.zeros(2, 6, 17, dtype=torch.bool)
    hidden[:, :, 5], hidden[1, 2] = True, True
    root = root if root_given else None
    by_nan = get_aggregator(name)(hypotheses, torch.where(hidden[..., None], torch.nan, keypoints), camera, root)
    by_confidence = get_aggregator(name)(hypotheses, keypoints, camera, root, (~hidden).float())
    same(by_nan.pose[hidden], hypotheses.mean(1)[hidden])
    same(by_confidence.pose, by_nan.pose)
    assert (by_nan.pose - hypotheses.mean(1)).abs()[~hidden].max() > 1e-3


# Mean and median


def test_mean(scene):
    same(MeanAggregator()(scene[0]).pose, scene[0].mean(1))


def test_median_is_not_moved_by_an_outlier(scene):
    hypotheses = scene[0].clone()
    before = GeometricMedianAggregator()(hypotheses).pose
    hypotheses[:, 2] += 10.0
    assert (GeometricMedianAggregator()(hypotheses).pose - before).norm(dim=-1)[..., 1:].max() < 0.15
    assert (MeanAggregator()(hypotheses).pose - before).norm(dim=-1).min() > 3


def test_median_has_the_least_sum_of_distances():
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pose = GeometricMedianAggregator(iterations=200)(points[None, :, None, None]).pose[0, 0, 0]
    best = minimize(lambda x: np.linalg.norm(points.numpy() - x, axis=1).sum(), points.mean(0).numpy(), method="Nelder-Mead", tol=1e-10)
    same(pose, torch.from_numpy(best.x), atol=1e-4)
    few = GeometricMedianAggregator()(points[None, :, None, None]).pose[0, 0, 0]
    assert (points - few).norm(dim=-1).sum() < best.fun * 1.001, "the default number of iterations is enough"


def test_median_may_sit_on_a_hypothesis():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    pose = GeometricMedianAggregator()(points[None, :, None, None]).pose
    same(pose, torch.zeros(1, 1, 1, 3), atol=1e-3)


# Aggregators that reproject


def test_jpma_with_the_true_root_is_the_published_rule():
    golden = load_file(GOLDEN)
    camera = Camera.from_vector(golden["inputs/camera"])
    for iteration in range(5):
        hypotheses = golden["agg/hypotheses"][:, iteration]
        index = golden["agg/jpma_index"][:, iteration].long()
        expected = hypotheses.gather(1, index[:, None, ..., None].expand(-1, 1, -1, -1, 3))[:, 0]
        for aggregator in (JPMA(), JPMA(keypoint_sigma=0)):
            out = aggregator(hypotheses, golden["inputs/keypoints_2d"], camera, golden["inputs/root_trajectory"][:, :, 0])
            same(out.pose, expected)


def test_jpma_chooses_the_nearest_reprojection_and_the_first_of_ties(scene):
    hypotheses, keypoints, camera, root = scene
    index = errors_of(*scene).argmin(1)
    expected = hypotheses.gather(1, index[:, None, ..., None].expand(-1, 1, -1, -1, 3))[:, 0]
    assert torch.equal(JPMA()(hypotheses, keypoints, camera, root).pose[..., 1:, :], expected[..., 1:, :])
    rays = hypotheses[:, :1] + root[:, None, :, None]
    along = torch.cat([rays, rays * 2, rays / 2], 1)  # one reprojection, three depths
    assert torch.equal(JPMA()(along, keypoints, camera, torch.zeros_like(root)).pose, along[:, 0])


def test_jpma_trusts_the_choice_less_where_keypoints_are_noisy(scene):
    hypotheses = scene[0]
    mean, chosen = hypotheses.mean(1), JPMA(keypoint_sigma=0)(*scene).pose
    full = (chosen - mean).norm(dim=-1)
    shares = []
    for sigma in (0.1, 3.0, 30.0):
        pose = JPMA(keypoint_sigma=sigma)(*scene).pose
        share = (pose - mean).norm(dim=-1)[..., 1:] / full[..., 1:]
        same(torch.lerp(mean, chosen, torch.nn.functional.pad(share, (1, 0))[..., None]), pose, atol=1e-4)
        shares.append(share)
    assert (shares[0] > shares[1]).all() and (shares[1] > shares[2]).all()
    assert shares[0].min() > 0.9 and shares[2].max() < 0.9
    doubtful = JPMA(keypoint_sigma=3.0)(*scene, torch.full((2, 6, 17), 0.1)).pose
    same(doubtful, JPMA(keypoint_sigma=30.0)(*scene).pose)


@pytest.mark.parametrize("name", ["jpma", "weighted"])
def test_image_resolution_does_not_matter(name, scene):
    """The same picture at twice the resolution."""
    hypotheses, keypoints, camera, root = scene
    twice = Camera(camera.focal * 2, camera.centre * 2)
    for given in (root, None):
        expected = get_aggregator(name)(hypotheses, keypoints, camera, given).pose
        same(get_aggregator(name)(hypotheses, keypoints * 2, twice, given).pose, expected, atol=1e-4)


def test_weights_go_from_the_nearest_to_the_mean(scene):
    hypotheses = scene[0]
    index = select_by_reprojection(errors_of(*scene), dim=1)
    nearest = hypotheses.gather(1, index[:, None, ..., None].expand(-1, 1, -1, -1, 3))[:, 0]
    same(ReprojectionWeightedAggregator(sigma=1e-3)(*scene).pose, nearest)
    same(ReprojectionWeightedAggregator(sigma=1e5)(*scene).pose, hypotheses.mean(1))
    weights = torch.softmax(-(errors_of(*scene) ** 2) / (2 * 4.0**2), dim=1)  # the camera has the reference focal length
    same(ReprojectionWeightedAggregator(sigma=4.0)(*scene).pose, (weights[..., None] * hypotheses).sum(1))


def test_an_estimated_root_serves_nearly_as_well(scene):
    hypotheses, keypoints, camera, root = scene
    for name in ("jpma", "weighted"):
        given, estimated = (get_aggregator(name)(hypotheses, keypoints, camera, r).pose for r in (root, None))
        assert (given - estimated).norm(dim=-1).mean() < 0.03


# Names and errors


def test_get_aggregator():
    assert get_aggregator(None) is None
    aggregator = JPMA(keypoint_sigma=2.0)
    assert get_aggregator(aggregator) is aggregator
    assert {name: type(get_aggregator(name)) for name in AGGREGATORS} == AGGREGATORS
    for wrong in ("best", "", 3, JPMA, lambda h: h, ["mean"]):
        with pytest.raises(ValueError, match=r"aggregation must be None, an Aggregator instance or one of .*'jpma'.*'weighted'.*got"):
            get_aggregator(wrong)


def test_errors(scene):
    hypotheses, keypoints, camera, _ = scene
    for wrong in (hypotheses[0], hypotheses[..., :2]):
        with pytest.raises(ValueError, match=r"hypotheses must have shape \(batch, num_hypotheses, frames, joints, 3\), got"):
            MeanAggregator()(wrong)
    for name in ("jpma", "weighted"):
        for arguments in ((), (keypoints,), (None, camera)):
            with pytest.raises(ValueError, match="needs keypoints_2d and camera"):
                get_aggregator(name)(hypotheses, *arguments)
        with pytest.raises(ValueError, match=r"keypoints_2d"):
            get_aggregator(name)(hypotheses, keypoints[:, :3], camera)
    for sigma in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be positive, got"):
            ReprojectionWeightedAggregator(sigma)
    for sigma in (-1.0, math.nan):
        with pytest.raises(ValueError, match="keypoint_sigma must not be negative, got"):
            JPMA(sigma)
    with pytest.raises(TypeError, match="must implement combine"):
        Aggregator()(hypotheses)
