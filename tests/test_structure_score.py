import hashlib
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.data.mocap_files import JOINT_NAMES
from probpose.metrics import fit_structure_centres, pose_structure_score, structure, structure_centres, structure_scores
from probpose.skeletons import get_skeleton

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "fit_structure_centres.py"
BENCHMARK = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "benchmark" / "mocap17_test.npz"
H36M = get_skeleton("h36m_17")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fit_structure_centres", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scene():
    """Hypotheses `(2, 5, 6, 17, 3)` around a target `(2, 6, 17, 3)`, and centres."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 6, 17, 3, generator=generator)
    hypotheses = target[:, None] + 0.8 * torch.randn(2, 5, 6, 17, 3, generator=generator)
    centres = torch.randn(8, 51, generator=generator)
    return hypotheses, target, centres / centres.norm(dim=-1, keepdim=True)


def nearest(poses, centres):
    """Plain NumPy: the centre with the least squared distance from each unit vector."""
    rows = np.asarray(poses, dtype=np.float64).reshape(*poses.shape[:-2], -1)
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.square(rows[..., None, :] - np.asarray(centres, dtype=np.float64)).sum(-1).argmin(-1)


# The score ------------------------------------------------------------------------------------------------------------


def test_the_score_counts_poses_at_the_same_centre(scene):
    hypotheses, target, centres = scene
    hits = nearest(hypotheses[:, 0], centres) == nearest(target, centres)
    assert 0 < hits.mean() < 1
    assert pose_structure_score(hypotheses[:, 0], target, centres) == pytest.approx(100 * hits.mean())
    assert pose_structure_score(hypotheses[:, 0].numpy(), target.numpy(), centres.numpy()) == pytest.approx(100 * hits.mean())
    assert pose_structure_score(target, target, centres) == 100
    assert pose_structure_score(3 * hypotheses[:, 0], target / 7, centres) == pytest.approx(100 * hits.mean())


def test_by_hand():
    centres = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    target = torch.tensor([[[2.0, 1, 0]], [[1, 2, 0]], [[5, 0, 1]], [[0, 3, 0]]])
    pred = torch.tensor([[[9.0, 1, 0]], [[3, 2, 0]], [[0, 1, 9]], [[1, 2, 0]]])
    assert pose_structure_score(pred, target, centres) == 50
    scores = structure_scores(torch.stack([pred, target]), target, centres)
    assert scores == pytest.approx({"aggregate": 75, "best": 100, "expected": 75, "entropy": math.log(2) / 2})


def test_scores_of_a_set_agree_with_plain_loops(scene):
    hypotheses, target, centres = scene
    scores = structure_scores(*scene)
    chosen, right = nearest(hypotheses, centres), nearest(target, centres)
    hits = chosen == right[:, None]
    assert scores["aggregate"] == pytest.approx(100 * (nearest(hypotheses.mean(1), centres) == right).mean())
    assert scores["best"] == pytest.approx(100 * hits.any(1).mean())
    assert scores["expected"] == pytest.approx(100 * hits.mean())
    entropies = []
    for labels in chosen.transpose(0, 2, 1).reshape(-1, 5):
        share = np.bincount(labels) / 5
        entropies.append(-sum(p * math.log(p) for p in share if p > 0))
    assert scores["entropy"] == pytest.approx(np.mean(entropies))
    assert scores["expected"] <= scores["best"]
    clips = [structure_scores(hypotheses[b].numpy(), target[b].numpy(), centres) for b in range(2)]
    assert {name: (clips[0][name] + clips[1][name]) / 2 for name in scores} == pytest.approx(scores)


def test_one_opinion_has_no_entropy(scene):
    hypotheses, target, centres = scene
    scores = structure_scores(hypotheses[:, :1].expand(-1, 4, -1, -1, -1), target, centres)
    assert scores["entropy"] == 0
    assert scores["aggregate"] == scores["best"] == scores["expected"] == pose_structure_score(hypotheses[:, 0], target, centres)


# The centres ----------------------------------------------------------------------------------------------------------


def test_centres_find_groups():
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(4, 17, 3, generator=generator)
    label = torch.randint(4, (400,), generator=generator)
    size = 0.5 + torch.rand(400, 1, 1, generator=generator)
    poses = size * (kinds[label] + 0.05 * torch.randn(400, 17, 3, generator=generator))
    centres = fit_structure_centres(poses, 4, restarts=3)
    assert centres.shape == (4, 51) and centres.dtype == torch.float32
    found = nearest(poses, centres)
    assert len({(a, b) for a, b in zip(label.tolist(), found.tolist())}) == 4
    unit = torch.nn.functional.normalize(kinds.flatten(1), dim=-1)
    assert torch.cdist(unit, centres).amin(1).max() < 0.05
    assert torch.equal(centres, fit_structure_centres(poses.numpy(), 4, restarts=3))
    assert torch.equal(centres, fit_structure_centres(poses.reshape(20, 20, 17, 3), 4, restarts=3))


def test_more_starts_are_no_worse():
    poses = torch.randn(300, 17, 3, generator=torch.Generator().manual_seed(2))
    unit = torch.nn.functional.normalize(poses.flatten(1), dim=-1)
    spread = [torch.cdist(unit, fit_structure_centres(poses, 10, restarts=n)).amin(1).square().sum() for n in (1, 8)]
    assert spread[1] <= spread[0]


@pytest.mark.parametrize("num_centres", [50, 100])
def test_shipped_centres_tell_poses_apart(num_centres, script):
    centres = structure_centres(num_centres)
    assert centres.shape == (num_centres, 51) and centres.dtype == torch.float32
    assert torch.allclose(centres[:, :3], torch.zeros(3), atol=1e-6)  # the root
    assert ((centres.norm(dim=-1) > 0.8) & (centres.norm(dim=-1) <= 1)).all()  # means of alike unit vectors
    pose = centres.reshape(-1, 17, 3)
    head, ankles = pose[:, 10, 1], pose[:, [3, 6], 1].mean(1)
    assert (head < ankles).all()  # y points down
    assert torch.cdist(centres, centres).fill_diagonal_(9).min() > 0.05
    mirrored = (pose * torch.tensor([-1.0, 1, 1]))[:, list(H36M.flip_index)]
    assert torch.cdist(mirrored.flatten(1), centres).amin(1).median() < 0.2  # mirrored people were among the poses
    assert pose_structure_score(pose[:, None], pose[:, None], centres) == 100
    assert len(set(nearest(pose, centres).tolist())) == num_centres


def test_shipped_centres_are_checked(monkeypatch):
    asset = Path(structure.__file__).parent / "structure_centres_h36m_17.npz"
    assert asset.stat().st_size < 60_000
    assert hashlib.sha256(asset.read_bytes()).hexdigest() == structure._CENTRES_SHA256
    with pytest.raises(ValueError, match=r"num_centres must be one of \[50, 100\], got 51"):
        structure_centres(51)
    monkeypatch.setattr(structure, "_CENTRES_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="is not the shipped file"):
        structure_centres()


def test_closer_predictions_score_more():
    if not BENCHMARK.exists():
        pytest.skip(f"{BENCHMARK} is not here")
    with np.load(BENCHMARK, allow_pickle=False) as archive:
        pose = torch.from_numpy(archive["positions_camera"][::40])
    pose = pose - pose[:, :1]
    noise = torch.randn(pose.shape, generator=torch.Generator().manual_seed(0))
    for num_centres in (50, 100):
        scores = [pose_structure_score(pose + s * noise, pose, structure_centres(num_centres)) for s in (0, 0.02, 0.05, 0.15)]
        assert scores == sorted(scores, reverse=True) and scores[0] == 100 and scores[-1] < 60
    turned = pose * torch.tensor([-1.0, 1.0, -1.0])
    assert pose_structure_score(turned, pose, structure_centres()) < 10  # the direction a person faces counts


# The script -----------------------------------------------------------------------------------------------------------


def test_the_script_fits_an_archive(script, tmp_path, capsys):
    generator = np.random.default_rng(0)
    local = generator.normal(size=(40, 17, 3)).astype(np.float16)
    local[:, 0] = 0
    np.savez(
        tmp_path / "clips.npz",
        root=np.zeros((40, 3), dtype=np.float32),
        local=local,
        starts=[0, 30, 40],
        names=["a/1", "a/2"],
        splits=["train", "test"],
        fps=30,
        joints=JOINT_NAMES,
    )
    for name in ("one", "two"):
        arguments = [str(tmp_path / "clips.npz"), str(tmp_path / f"{name}.npz"), "--centres", "3", "5", "--restarts", "2"]
        assert script.main(arguments) == 0
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert capsys.readouterr().out.startswith("120 poses; SHA-256 of ")  # 30 training frames, 2 turns, mirrored
    with np.load(tmp_path / "one.npz", allow_pickle=False) as archive:
        assert {name: archive[name].shape for name in archive.files} == {"centres_3": (3, 51), "centres_5": (5, 51)}


def test_people_turn_about_the_vertical_and_have_a_mirror_image(script):
    local = torch.randn(7, 17, 3, generator=torch.Generator().manual_seed(4))
    poses = script.seen_by_a_camera(local, turns=2, seed=0)
    assert poses.shape == (28, 17, 3)
    assert torch.allclose(poses[:7, :, 1], -local[..., 2])
    assert torch.allclose(poses[:7, :, [0, 2]].norm(dim=-1), local[..., :2].norm(dim=-1), atol=1e-6)
    volume = [torch.linalg.det(p[:, [10, 3, 16]]).sign() for p in (local, poses[:7], poses[14:21][:, list(H36M.flip_index)])]
    assert torch.equal(volume[0], volume[1]) and torch.equal(volume[0], -volume[2])


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_input_is_named(scene):
    _, target, centres = scene
    flat = target.clone()
    flat[0, 0] = 0
    for message, call in {
        "same shape": lambda: pose_structure_score(target[:1], target, centres),
        r"centres must be finite with shape \(num_centres, 51\), got \(8, 48\)": lambda: pose_structure_score(
            target, target, centres[:, :48]
        ),
        "centres must be finite": lambda: pose_structure_score(target, target, centres * torch.nan),
        "target must be finite": lambda: pose_structure_score(target, target * torch.nan, centres),
        "must have an extent, 1 of them": lambda: pose_structure_score(target, flat, centres),
        "hypotheses and target must have shapes": lambda: structure_scores(target, target, centres),
        r"num_centres must lie in 1\.\.12": lambda: fit_structure_centres(target, 13),
        "restarts must be positive": lambda: fit_structure_centres(target, 2, restarts=0),
        "poses must have an extent": lambda: fit_structure_centres(flat, 2),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
