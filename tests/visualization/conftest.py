"""A recording of people who stand before the camera and sway, as a pipeline would have sampled them."""

import numpy as np
import pytest
import torch

from probpose.data import KeypointTrack
from probpose.geometry import Camera
from probpose.results import SampledPerson
from probpose.skeletons import get_skeleton

SKELETON = get_skeleton("h36m_17")
# Facing the camera, so that the person's right is on the left of the image; camera axes, metres.
STANDING = np.zeros((17, 3))
STANDING[:, 1] = [0, 0, 0.45, 0.9, 0, 0.45, 0.9, -0.25, -0.5, -0.6, -0.7, -0.5, -0.25, 0, -0.5, -0.25, 0]
STANDING[list(SKELETON.left), 0] = 0.15
STANDING[list(SKELETON.right), 0] = -0.15


@pytest.fixture
def filmed_person():
    """`filmed_person(first=…, frames=…, unseen=…, place=…, size=…, fps=…, spread=…, **others)`: a person as the writers take him."""

    def make(
        first=0, frames=4, unseen=(), place=(0.0, 0.0, 3.0), size=(480, 360), fps=25.0, spread=0.03, num_hypotheses=8, name="anna", **others
    ):  # fmt: skip
        rng = np.random.default_rng(0)
        pose = np.tile(STANDING, (frames, 1, 1)) + 0.02 * np.sin(np.arange(frames))[:, None, None]
        hypotheses = pose + spread * rng.normal(size=(num_hypotheses, frames, 17, 3))
        root, camera = np.tile(np.array(place), (frames, 1)), Camera.from_image_size(*size)
        points = camera.project(torch.from_numpy(pose + root[:, None])).numpy()
        points[list(unseen)] = np.nan
        confidence = np.where(np.isnan(points[..., 0]), 0.0, 0.8)
        track = KeypointTrack(points, confidence, np.arange(first, first + frames), 0, "h36m_17", size, fps)
        values = {"pose": pose, "uncertainty": np.full((frames, 17), 0.05), "root": root, "camera": camera} | others
        return SampledPerson(name, track, "h36m_17", hypotheses, **values)

    return make
