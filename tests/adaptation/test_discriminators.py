"""Discriminators and their memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.adaptation.augmentor import anatomy, rotate_about_root
from probpose.adaptation.discriminators import KeypointDiscriminator, StructureDiscriminator, part_grams
from probpose.adaptation.pool import ReplayPool

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "poseda" / "io.safetensors"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_parameter_counts():
    counts = [sum(p.numel() for p in kind("h36m_16").parameters()) for kind in (StructureDiscriminator, KeypointDiscriminator)]
    assert counts == [1_076_205, 43_801]


@needs_parity
def test_parity():
    values = load_file(PARITY)
    d3, d2 = StructureDiscriminator("h36m_16", 8, 4).double(), KeypointDiscriminator("h36m_16", 10).double()
    for name, network in (("d3", d3), ("d2", d2)):
        prefix = f"ex4.w.{name}."
        network.load_state_dict({key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)})
    close(part_grams(values["ex4.real3d"], "h36m_16"), values["ex4.kcs_real"])
    for kind in ("real", "fake"):
        close(d3(values[f"ex4.{kind}3d"]), values[f"ex4.d3_{kind}"])
        close(d2(values[f"ex4.{kind}2d"]), values[f"ex4.d2_{kind}"])


def test_grams_are_cosines_within_parts():
    pose = draw(17, 3)
    parents = np.array([0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15])
    bones = pose.numpy()[parents] - pose.numpy()[1:]
    bones /= np.linalg.norm(bones, axis=1, keepdims=True)
    grams = part_grams(pose, "h36m_17").reshape(5, 16, 16).numpy()
    for gram, part in zip(grams, anatomy("h36m_17").parts):
        expected = np.zeros((16, 16))
        expected[np.ix_(part, part)] = bones[list(part)] @ bones[list(part)].T
        np.testing.assert_allclose(gram, expected, atol=1e-12)


def test_structure_knows_neither_size_nor_place_nor_direction():
    torch.manual_seed(0)
    model, pose = StructureDiscriminator(hidden=16, last=8).double(), draw(2, 3, 17, 3)
    scores = model(pose)
    assert scores.shape == (2, 3, 5)
    close(model(rotate_about_root(1.7 * pose + 4, draw(2, 3, 3, seed=1))), scores)
    close(model(pose.flatten(0, 1)), scores.flatten(0, 1))


def test_centred_keypoints_know_neither_size_nor_place():
    torch.manual_seed(0)
    plain, centred = KeypointDiscriminator(hidden=16).double(), KeypointDiscriminator(hidden=16, centre=True).double()
    keypoints = draw(2, 3, 17, 2)
    assert centred(keypoints).shape == (2, 3, 1)
    close(centred(0.3 * keypoints + 0.2), centred(keypoints))
    assert not torch.allclose(plain(0.3 * keypoints + 0.2), plain(keypoints))


def test_gradients_are_finite_for_bones_without_length():
    model, pose = StructureDiscriminator(hidden=16, last=8), torch.zeros(2, 17, 3, requires_grad=True)
    model(pose).sum().backward()
    assert pose.grad.isfinite().all()


def test_saves_and_loads(tmp_path):
    pose = draw(2, 17, 3).float()
    for i, (model, value) in enumerate(
        [(StructureDiscriminator(hidden=8, last=4), pose), (KeypointDiscriminator(centre=True), pose[..., :2])]
    ):
        model.save_pretrained(tmp_path / str(i))
        close(type(model).from_pretrained(tmp_path / str(i))(value), model(value), atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="needs a skeleton with a root"):
        KeypointDiscriminator("coco_17", centre=True)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 17, 2\)"):
        KeypointDiscriminator()(torch.zeros(2, 16, 2))
    with pytest.raises(ValueError, match="cannot judge NaN"):
        KeypointDiscriminator()(torch.full((2, 17, 2), torch.nan))
    with pytest.raises(ValueError, match="17 joints"):
        StructureDiscriminator()(torch.zeros(2, 16, 3))


# The memory


def test_pool_fills_first():
    pool, fakes = ReplayPool((2,), capacity=6), torch.arange(10.0).reshape(5, 2).requires_grad_()
    out = pool(fakes)
    assert torch.equal(out, fakes) and not out.requires_grad and int(pool.count) == 5
    assert torch.equal(pool.stored[:5], fakes)


@pytest.mark.parametrize("batch", [40, 500])
def test_pool_exchanges_half_and_loses_nothing(batch):
    pool, generator = ReplayPool((1,), capacity=100), torch.Generator().manual_seed(0)
    seen, given, old = [], 0, 0
    for step in range(20):
        fakes = torch.arange(given, given + batch).float()[:, None]
        given += batch
        out = pool(fakes, generator)
        if step >= 5:
            old += int((out != fakes).sum())
        seen.append(out)
    kept = torch.cat([*seen, pool.stored]).flatten()
    # Fakes that were stored while the pool filled were shown as well.
    assert set(kept.tolist()) == set(range(given))
    assert kept.numel() == given + 100 and int(pool.count) == 100
    assert 0.4 < old / (15 * batch) < 0.6


def test_pool_travels_with_its_state():
    pool, fakes = ReplayPool((3,), capacity=4), draw(9, 3).float()
    pool(fakes, torch.Generator().manual_seed(0))
    other = ReplayPool((3,), capacity=4)
    other.load_state_dict(pool.state_dict())
    again = [p(fakes, torch.Generator().manual_seed(1)) for p in (pool, other)]
    assert torch.equal(*again)


def test_pool_errors():
    with pytest.raises(ValueError, match="at least 1"):
        ReplayPool((3,), capacity=0)
    with pytest.raises(ValueError, match=r"shape \(n, 17, 3\)"):
        ReplayPool((17, 3))(torch.zeros(2, 16, 3))
