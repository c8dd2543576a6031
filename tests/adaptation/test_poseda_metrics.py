"""The metrics that cross-dataset papers report for 16 joints, written again in plain NumPy."""

import numpy as np
import pytest

from probpose.metrics import auc, mpjpe, pa_mpjpe, pck


@pytest.fixture
def poses():
    """8 poses of 16 joints, root-relative metres, and predictions some centimetres off."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(8, 16, 3)) * 0.4
    truth -= truth[:, :1]
    prediction = truth + rng.normal(size=truth.shape) * rng.uniform(0.01, 0.15, size=(8, 16, 1))
    prediction -= prediction[:, :1]
    return prediction, truth


def procrustes(prediction, truth):
    """Best similarity without reflection, one pose."""
    p, t = prediction - prediction.mean(0), truth - truth.mean(0)
    u, d, vt = np.linalg.svd(p.T @ t)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    return (d * sign).sum() / (p**2).sum() * p @ rotation + truth.mean(0)


def test_errors(poses):
    prediction, truth = poses
    errors = 1000 * np.linalg.norm(prediction - truth, axis=-1)
    assert mpjpe(prediction, truth) == pytest.approx(errors.mean(), abs=1e-3)  # the root, which is right by construction, counts
    aligned = np.stack([procrustes(*pair) for pair in zip(prediction, truth)])
    assert pa_mpjpe(prediction, truth) == pytest.approx(1000 * np.linalg.norm(aligned - truth, axis=-1).mean(), abs=1e-3)


def test_reflections_are_no_similarity(poses):
    _, truth = poses
    mirrored = truth * np.array([-1, 1, 1])
    aligned = np.stack([procrustes(*pair) for pair in zip(mirrored, truth)])
    expected = 1000 * np.linalg.norm(aligned - truth, axis=-1).mean()
    assert expected > 10 and pa_mpjpe(mirrored, truth) == pytest.approx(expected, abs=1e-3)


def test_correct_keypoints(poses):
    prediction, truth = poses
    errors = 1000 * np.linalg.norm(prediction - truth, axis=-1)
    shares = [100 * (errors < threshold).mean() for threshold in range(0, 151, 5)]
    assert len(shares) == 31 and shares[0] == 0
    assert pck(prediction, truth) == pytest.approx(shares[-1])
    assert [pck(prediction, truth, threshold) for threshold in range(0, 151, 5)] == pytest.approx(shares)
    assert auc(prediction, truth) == pytest.approx(np.mean(shares))
