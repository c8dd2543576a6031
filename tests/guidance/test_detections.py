"""What a detector's keypoints are worth: `detection_sigma` and `ReprojectionEnergy.from_detections`."""

from dataclasses import replace

import pytest
import torch

from probpose.geometry import detection_sigma, h36m_camera
from probpose.guidance import ReprojectionEnergy
from probpose.mixtures import PoseMixture

CAMERAS = [h36m_camera(number, "S1") for number in range(2)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def motions(*lead, frames=3):
    """Around the origin of the world, in front of the cameras."""
    motion = 0.3 * draw(*lead, frames, 17, 3)
    motion[..., 0, 2] += 1.0
    return motion


def keypoints_of(camera, seed=1):
    motion = motions()
    joints = torch.cat([motion[:, :1], motion[:, 1:] + motion[:, :1]], dim=1)
    return camera.project(camera.to_camera(joints)) + 5 * draw(3, 17, 2, seed=seed)


def test_rule():
    confidence = torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(detection_sigma(confidence), torch.tensor([0.002, 0.022, 0.042]))
    torch.testing.assert_close(detection_sigma(confidence, 1145.0), 500 * detection_sigma(confidence))
    mixture = PoseMixture.from_keypoints(torch.zeros(3, 2), confidence, unit=500)
    torch.testing.assert_close(mixture.factors[:, 0, 0, 0], detection_sigma(confidence, 1145.0))


def test_it_is_the_likelihood_by_hand():
    keypoints, confidence = [keypoints_of(camera) for camera in CAMERAS], [torch.rand(3, 17), torch.rand(3, 17)]
    confidence[0][1, 4] = 0
    keypoints[1][2, 5] = torch.nan
    energy = ReprojectionEnergy.from_detections(CAMERAS, keypoints, confidence)
    motion = motions(4)
    joints = torch.cat([motion[..., :1, :], motion[..., 1:, :] + motion[..., :1, :]], dim=-2)
    expected = torch.zeros(4)
    for camera, points, sure in zip(CAMERAS, keypoints, confidence):
        sigma = camera.focal / 2.29 * (0.002 + 0.04 * (1 - sure[..., None]))
        square = ((camera.project(camera.to_camera(joints)) - points) / sigma).square().sum(-1)
        each = 9 / 2 * torch.log1p(square / 9)
        each[..., (sure == 0) | points.isnan().any(-1)] = 0
        expected += each.sum((-1, -2))
    torch.testing.assert_close(energy(motion), expected)
    sure = [torch.ones(3, 17)] * 2
    for given in (None, sure, torch.stack(sure)):
        again = ReprojectionEnergy.from_detections(CAMERAS, keypoints, given)
        torch.testing.assert_close(again(motion), ReprojectionEnergy.from_detections(CAMERAS, torch.stack(keypoints), sure)(motion))


def test_the_unit_of_the_image_does_not_matter():
    camera, keypoints, confidence, motion = CAMERAS[0], keypoints_of(CAMERAS[0]), torch.rand(3, 17), motions(2)
    small = replace(camera, focal=camera.focal / 500, centre=camera.centre / 500)
    pixels, screen = (
        ReprojectionEnergy.from_detections(c, k, confidence).expand(motion) for c, k in ((camera, keypoints), (small, keypoints / 500))
    )
    for part in ("value", "gradient", "curvature"):
        torch.testing.assert_close(getattr(pixels, part), getattr(screen, part), rtol=1e-3, atol=1e-2)


def test_every_clip_may_have_its_own_lens():
    focal, motion = torch.tensor([[1000.0, 1100.0], [2000.0, 2200.0]]), motions(2, 5)
    own = replace(CAMERAS[0], focal=focal)
    keypoints = 500 + 100 * draw(2, 1, 3, 17, 2)
    together = ReprojectionEnergy.from_detections([own], [keypoints], hold_trajectory=True)(motion)
    for clip in range(2):
        alone = ReprojectionEnergy.from_detections(replace(CAMERAS[0], focal=focal[clip]), keypoints[clip], hold_trajectory=True)
        torch.testing.assert_close(together[clip], alone(motion[clip]))


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        (torch.full((3, 17), 1.5), r"confidence must lie in 0\.\.1, got values from 1\.5 to 1\.5"),
        (torch.full((3, 17), torch.nan), "confidence must lie in 0..1"),
        (torch.ones(3, 16), r"confidence must have shape \(3, 17\) to go with keypoints, got \(3, 16\)"),
        ([torch.ones(3, 17)] * 2, "confidence must be given for every camera: 1 cameras, confidence for 2"),
    ],
)
def test_errors(confidence, message):
    with pytest.raises(ValueError, match=message):
        ReprojectionEnergy.from_detections(CAMERAS[0], keypoints_of(CAMERAS[0]), confidence)
    with pytest.raises(ValueError, match="cameras must be"):
        ReprojectionEnergy.from_detections(["camera"], [torch.zeros(3, 17, 2)])
