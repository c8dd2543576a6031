"""The pose as a whole: does a prediction fall among the same kind of poses as the truth?

Source: M. Kocabas, S. Karagoz, E. Akbas, Self-supervised learning of 3D human pose using multi-view geometry, CVPR 2019,
which introduces the Pose Structure Score. Poses are divided by their Euclidean norm and assigned to the nearest of K
centres; the score is the percentage of poses that fall to the same centre as the truth. It ignores the size of a
person but not the direction the person faces, and numbers compare only with the same centres.
"""

from __future__ import annotations

import hashlib
import io
from importlib import resources

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from .inputs import Array, single

_CENTRES_FILE = "structure_centres_h36m_17.npz"
_CENTRES_SHA256 = "507b27d3a4b94645424a39e8d27d1e12313bd6093f1e2206cf1e3a3efa256000"


def structure_centres(num_centres: int = 50) -> Tensor:
    """The centres that come with the library: `(num_centres, 51)` for poses of "h36m_17" in camera axes (y down).

    Fitted by `examples/fit_structure_centres.py` on the training clips of the CMU Graphics Lab Motion Capture Database
    alone, every frame turned to random azimuths under a level camera, as it is and mirrored. The data used in this
    project was obtained from mocap.cs.cmu.edu; the database was created with funding from NSF EIA-0196217, and its
    motions are free for all uses.

    Args:
        num_centres: 50 or 100.

    Raises:
        ValueError: another number of centres, or a file that is not the one that was shipped.
    """
    data = resources.files(__package__).joinpath(_CENTRES_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != _CENTRES_SHA256:
        raise ValueError(f"{_CENTRES_FILE} is not the shipped file: its SHA-256 is not {_CENTRES_SHA256}")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        known = {int(name.removeprefix("centres_")): name for name in archive.files}
        if num_centres not in known:
            raise ValueError(f"num_centres must be one of {sorted(known)}, got {num_centres!r}")
        return torch.from_numpy(archive[known[num_centres]])


def fit_structure_centres(poses: Array, num_centres: int = 50, seed: int = 0, restarts: int = 10) -> Tensor:
    """Centres of the kinds of poses in a reference set, by k-means (k-means++ starts, the best of several).

    Args:
        poses: `(..., joints, 3)`, relative to the root, any unit.
        num_centres: K.
        seed: of the starts.
        restarts: how many starts.

    Returns:
        float32 `(num_centres, 3 * joints)`.

    Raises:
        ValueError: values that are not finite, a pose without extent, fewer poses than centres, no start.
    """
    poses = torch.as_tensor(poses)
    points = _normalised(single(poses[None] if poses.ndim == 3 else poses, None, "poses")[0]).flatten(0, -2).cpu().numpy()
    if not 1 <= num_centres <= len(points):
        raise ValueError(f"num_centres must lie in 1..{len(points)}, the number of poses, got {num_centres!r}")
    if restarts < 1:
        raise ValueError(f"restarts must be positive, got {restarts!r}")
    generator = np.random.default_rng(seed)
    best, least = None, np.inf
    for _ in range(restarts):
        centres, labels = kmeans2(points, num_centres, iter=50, minit="++", seed=generator, check_finite=False)
        spread = np.square(points - centres[labels]).sum(dtype=np.float64)
        if spread < least:
            best, least = centres, spread
    return torch.from_numpy(best).float()


def pose_structure_score(pred: Array, target: Array, centres: Array) -> float:
    """Pose Structure Score in percent: how often the prediction falls to the same centre as the truth.

    Args:
        pred, target: `(..., frames, joints, 3)`, relative to the root, any unit.
        centres: `(num_centres, 3 * joints)`, from `structure_centres` or `fit_structure_centres`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a pose without extent.
    """
    pred, target = single(pred, None, "pred")[0], single(target, None, "target")[0]
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
    return 100 * (_assign(pred, centres) == _assign(target, centres)).double().mean().item()


def structure_scores(hypotheses: Array, target: Array, centres: Array) -> dict[str, float]:
    """The Pose Structure Score of a set of hypotheses.

    Args:
        hypotheses: `([batch,] num_hypotheses, frames, joints, 3)`, relative to the root, any unit.
        target: `([batch,] frames, joints, 3)`.
        centres: as in `pose_structure_score`.

    Returns:
        In percent `aggregate`, the score of the mean pose; `best`, how often any hypothesis falls to the centre of the
        truth; `expected`, the mean score of the hypotheses. `entropy`, in nats, of the hypotheses' centres, averaged over
        the frames: 0 if all agree, at most `log(num_hypotheses)`.

    Raises:
        ValueError: as `pose_structure_score`.
    """
    poses, truth = single(hypotheses, None, "hypotheses")[0], single(target, None, "target")[0]
    if truth.ndim not in (3, 4) or poses.ndim != truth.ndim + 1 or (*poses.shape[:-4], *poses.shape[-3:]) != truth.shape:
        raise ValueError(
            "hypotheses and target must have shapes ([batch,] num_hypotheses, frames, joints, 3) and ([batch,] frames, joints, 3), "
            f"got {tuple(poses.shape)} and {tuple(truth.shape)}"
        )
    chosen, right = _assign(poses, centres), _assign(truth, centres)
    hits = (chosen == right.unsqueeze(-2)).double()
    # The share of each hypothesis's centre, averaged over the hypotheses, is -sum p log p.
    share = (chosen.unsqueeze(-2) == chosen.unsqueeze(-3)).double().mean(-2)
    return {
        "aggregate": pose_structure_score(poses.mean(-4, dtype=torch.float64), truth, centres),
        "best": 100 * hits.amax(-2).mean().item(),
        "expected": 100 * hits.mean().item(),
        "entropy": -share.log().mean().item(),
    }


def _normalised(poses: Tensor) -> Tensor:
    """Poses as unit vectors `(..., 3 * joints)`."""
    rows = poses.flatten(-2)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError(f"poses must have an extent, {int((norm == 0).sum())} of them have all joints at the root")
    return rows / norm


def _assign(poses: Tensor, centres: Array) -> Tensor:
    """Index of the nearest centre, the shape of the poses without joints."""
    centres = torch.as_tensor(centres).to(poses.device, torch.float64)
    width = 3 * poses.shape[-2]
    if centres.ndim != 2 or centres.shape[1] != width or not torch.isfinite(centres).all() or not len(centres):
        raise ValueError(f"centres must be finite with shape (num_centres, {width}), got {tuple(centres.shape)}")
    return (_normalised(poses.double()) @ centres.T - centres.square().sum(-1) / 2).argmax(-1)
