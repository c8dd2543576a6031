"""Walks before a camera, and warnings that count."""

import warnings

import pytest
import torch


@pytest.fixture
def loud():
    """A warning that no test expects is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def poses(walk):
    """`poses(frames)`: a walk before the camera `(frames, 17, 3)`, camera axes, metres."""

    def make(frames=40, seed=0):
        world = torch.from_numpy(walk(frames, seed=seed))
        x, y, z = (world - world[:1, :1] * torch.tensor([1.0, 1.0, 0.0])).unbind(-1)
        return torch.stack([x, 0.95 - z, y + 5], dim=-1)

    return make
