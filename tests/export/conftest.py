"""A filmed motion with noise on it, as a pipeline would return it."""

from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def filmed():
    """`filmed(noise=…, num_hypotheses=…, clip=…)`: a motion of the shipped clips before a Human3.6M camera, noise in metres."""
    from probpose.data import MocapClips
    from probpose.export import Motion
    from probpose.geometry import h36m_camera

    clips = MocapClips(EXAMPLES / "data" / "tiny_mocap.npz", split=None)
    camera = h36m_camera(0, "S1")

    def make(noise=0.01, num_hypotheses=None, clip=0, **others):
        rng = np.random.default_rng(clip)
        root, local = (values.double() for values in clips[clip])
        body = (local @ camera.rotation.double().T).numpy()

        def noisy(*lead):
            shift = rng.normal(0, noise, (*lead, *body.shape))
            shift[..., 0, :] = 0
            return body + shift

        values = {
            "pose": noisy(), "root": camera.to_camera(root), "camera": camera, "uncertainty": np.full(body.shape[:2], 0.03),
            "hypotheses": None if num_hypotheses is None else noisy(num_hypotheses), "name": "filmed",
        }  # fmt: skip
        return Motion(fps=clips.fps, **(values | others))

    return make
