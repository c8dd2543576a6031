"""Proper scores: one number that rewards hypotheses for being both calibrated and sharp.

A score is strictly proper when no other distribution does better, on average, than the one the truth is drawn from (Gneiting & Raftery,
"Strictly proper scoring rules, prediction, and estimation", JASA 2007). All here are losses: less is better. They are means over all valid
joints and frames of all clips; the root, exact by definition, is a joint like any other, and `joints=range(1, 17)` leaves it out.

Hypotheses, targets and masks come as in `coverage_curve`: one clip, a batch or a list of clips, in metres, and joints whose target is not
finite are left out. Sums run in double precision, over a few frames at a time, so that memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .coverage import Array, Clips, chunks, each_clip, hypothesis_centre, sort_hypotheses


def sharpness(hypotheses: Clips, *, centre: str = "median_lower", mask: Clips | None = None, joints: Sequence[int] | None = None) -> float:
    """Mean distance of the hypotheses to their centre in mm: how much they spread, whether or not they should.

    Args:
        hypotheses: `(num_hypotheses, frames, joints, 3)` for each clip, metres.
        centre: "median_lower", "median" or "mean", see `coverage_curve`.
        mask: valid entries, `(frames,)` or `(frames, joints)` for each clip.
        joints: indices of the joints to look at, all by default.

    Raises:
        ValueError: as all scores of this module: shapes that do not fit, fewer than two hypotheses, values that are not finite, an unknown
            name or joint, or no valid entry at all.
    """

    def score(poses: Tensor, _: Tensor) -> Tensor:
        return torch.linalg.vector_norm(poses - hypothesis_centre(poses, centre), dim=-1).mean(0)

    return 1000 * _mean(score, hypotheses, None, mask, joints)


def energy_score(
    hypotheses: Clips, target: Clips, *, fair: bool = False, mask: Clips | None = None, joints: Sequence[int] | None = None
) -> float:
    """Energy score of each joint's position in 3D, in mm: mean_k |y_k - y| - 1/2 mean_{k,k'} |y_k - y_k'|.

    Strictly proper (Gneiting & Raftery 2007, eq. 22): the error of a single point when all hypotheses are the same, and the CRPS in one
    dimension.

    Args:
        hypotheses: `(num_hypotheses, frames, joints, 3)` for each clip, metres.
        target: `(frames, joints, 3)` for each clip, metres.
        fair: take the second mean over K (K - 1) pairs of different hypotheses and not over K²: the score that infinitely many hypotheses
            from the same distribution would have, without bias, so that samplers with different K compare (Ferro, QJRMS 2014).
        mask: valid entries, `(frames,)` or `(frames, joints)` for each clip.
        joints: indices of the joints to look at, all by default.

    Raises:
        ValueError: as `sharpness`.
    """

    def score(poses: Tensor, truth: Tensor) -> Tensor:
        number = len(poses)
        axes = poses.movedim(-1, 0).contiguous()  # coordinates first, so that every sum runs over long rows
        between = sum((axes[:, k:] - axes[:, :-k]).square().sum(0).sqrt().sum(0) for k in range(1, number))
        return torch.linalg.vector_norm(poses - truth, dim=-1).mean(0) - between / _pairs(number, fair)

    return 1000 * _mean(score, hypotheses, target, mask, joints)


def crps(hypotheses: Clips, target: Clips, *, fair: bool = False, mask: Clips | None = None, joints: Sequence[int] | None = None) -> float:
    """Continuous ranked probability score of each coordinate, in mm: the energy score in one dimension (Gneiting & Raftery 2007, eq. 21).

    Exact, and by sorting without a loop over pairs: the sum of |x_i - x_j| over all pairs is the sum of (2 i - K - 1) x_(i).

    Args:
        hypotheses: `(num_hypotheses, frames, joints, 3)` for each clip, metres.
        target: `(frames, joints, 3)` for each clip, metres.
        fair: as in `energy_score`.
        mask: valid entries, `(frames,)` or `(frames, joints)` for each clip.
        joints: indices of the joints to look at, all by default.

    Raises:
        ValueError: as `sharpness`.
    """

    def score(poses: Tensor, truth: Tensor) -> Tensor:
        number = len(poses)
        weights = torch.arange(1 - number, number, 2, dtype=poses.dtype, device=poses.device)
        between = torch.tensordot(weights, sort_hypotheses(poses), dims=1)
        return (poses - truth).abs().mean(0) - between / _pairs(number, fair)

    return 1000 * _mean(score, hypotheses, target, mask, joints)


def gaussian_nll(
    hypotheses: Clips, target: Clips, *, floor: float = 0.001, mask: Clips | None = None, joints: Sequence[int] | None = None
) -> float:
    """Negative log-likelihood, in nats per joint, of the truth under the Gaussian with the hypotheses' mean and covariance.

    The logarithmic score, of densities per cubic metre: below zero for good predictions. It punishes over-confidence hard.

    Args:
        hypotheses: `(num_hypotheses, frames, joints, 3)` for each clip, metres.
        target: `(frames, joints, 3)` for each clip, metres.
        floor: metres. Every axis gets this standard deviation on top (floor² is added to the diagonal of the covariance, which is the
            sample covariance over K - 1), as if the truth were measured with that noise; without it three hypotheses have no density.
        mask: valid entries, `(frames,)` or `(frames, joints)` for each clip.
        joints: indices of the joints to look at, all by default.

    Raises:
        ValueError: as `sharpness`, or a floor that is not positive.
    """
    if not 0 < floor < math.inf:
        raise ValueError(f"floor must be a positive length in metres, got {floor}")

    def score(poses: Tensor, truth: Tensor) -> Tensor:
        mean = poses.mean(0)
        spread = (poses - mean).movedim(0, -1)
        covariance = spread @ spread.mT / (len(poses) - 1) + floor**2 * torch.eye(3, dtype=poses.dtype, device=poses.device)
        return -torch.distributions.MultivariateNormal(mean, covariance, validate_args=False).log_prob(truth)

    return _mean(score, hypotheses, target, mask, joints)


def nll_of_std(pose: Array, target: Array, std: Array, mask: Array | None = None) -> float:
    """Negative log-likelihood, in nats per joint, of the truth under an isotropic Gaussian of predicted size.

    Args:
        pose: the means, `(..., frames, joints, 3)` metres.
        target: the truth, like `pose`; joints that are not finite are left out.
        std: `(..., frames, joints)` metres: root-mean-square radius, as the aggregators' `uncertainty`, so that every axis has variance
            std² / 3.
        mask: valid entries, `(..., frames)` or `(..., frames, joints)`.

    Raises:
        ValueError: shapes that do not fit, a pose that is not finite or a radius that is not positive, or no valid entry.
    """
    pose, target, std = (torch.as_tensor(value).detach().cpu().double() for value in (pose, target, std))
    if pose.ndim < 3 or pose.shape[-1] != 3 or target.shape != pose.shape or std.shape != pose.shape[:-1]:
        shapes = ", ".join(str(tuple(value.shape)) for value in (pose, target, std))
        raise ValueError(f"pose and target must have one shape (..., frames, joints, 3), std that without its last axis, got {shapes}")
    valid = torch.isfinite(target).all(-1)
    if mask is not None:
        mask = torch.as_tensor(mask).cpu().bool()
        if mask.shape not in (valid.shape[:-1], valid.shape):
            raise ValueError(f"mask must have shape {tuple(valid.shape[:-1])} or {tuple(valid.shape)}, got {tuple(mask.shape)}")
        valid = valid & (mask if mask.shape == valid.shape else mask[..., None])
    if not valid.any():
        raise ValueError("no valid entry: target is not finite, or mask leaves nothing")
    error, variance = (pose - target)[valid].square().sum(-1), std[valid].square() / 3
    if not (torch.isfinite(error).all() and torch.isfinite(variance).all() and (std[valid] > 0).all()):
        raise ValueError("pose must be finite and std finite and positive wherever target and mask are valid")
    return (1.5 * torch.log(2 * math.pi * variance) + error / (2 * variance)).mean().item()


def _pairs(number: int, fair: bool) -> int:
    """What the sum over unordered pairs is divided by to be half the mean over ordered ones."""
    return number * (number - 1) if fair else number**2


def _mean(
    score: Callable[[Tensor, Tensor], Tensor],
    hypotheses: Clips,
    target: Clips | None,
    mask: Clips | None,
    joints: Sequence[int] | None,
) -> float:
    """Mean over all valid entries of a score that maps poses `(num_hypotheses, entries, 3)` and truth to `(entries, ...)`."""
    total, count = 0.0, 0
    for clip in each_clip(hypotheses, target, mask, joints):
        for poses, truth, valid in chunks(*clip):
            if not valid.any():
                continue
            values = score(poses[:, valid], truth[valid])
            total, count = total + values.sum().item(), count + values.numel()
    if count == 0:
        raise ValueError("no valid entry: target is not finite, or mask leaves nothing")
    return total / count
