"""Coverage: how often the truth lies within the spread of the hypotheses, against how often it should.

For one joint in one frame let c be the centre of the hypotheses y_1 ... y_K, d_k = |y_k - c| their distances to it, e = |y - c| the
distance of the truth, and Q(q) the linearly interpolated empirical q-quantile of the d_k. The truth is covered at level q when Q(q) > e,
and the coverage ω(q) of a calibrated sampler is q: the expected calibration error (ECE) is the mean distance of ω from the diagonal
(Pierzchlewicz et al., "Multi-hypothesis 3D human pose estimation metrics favor miscalibrated distributions", 2022, and "Platypose", 2024).
Below the diagonal a sampler is over-confident.

All of it is read off one number per joint and frame, the rank of e among the sorted d_k, made continuous: r + t in [0, K], where r
distances are at most e and t is how far e has come from the r-th of them (or from zero) to the next. Then Q(q) > e exactly if
r + t < 1 + q (K - 1).

Even a perfect sampler leaves the diagonal a little when K is small: its K draws cover a further one at the k-th distance with probability
k / (K + 1), and the centre is fitted to the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
Clips = Array | Sequence[Array]

CENTRES = ("median_lower", "median", "mean")
SINGLE_FRAME = ("correct", "released")
REDUCTIONS = ("median_joint", "mean_joint", "pooled")

CHUNK = 2**18  # numbers worked on at a time: 2 MB in double precision, which stay in a processor's cache

# ---------------------------------------------------------------------------------------------------------------------
# Curves and their distance from the diagonal
# ---------------------------------------------------------------------------------------------------------------------


def coverage_curve(
    hypotheses: Clips,
    target: Clips,
    quantiles: Array | Sequence[float] | None = None,
    *,
    centre: str = "median_lower",
    single_frame: str = "correct",
    mask: Clips | None = None,
) -> Tensor:
    """How often the truth is covered at each level, per joint.

    Args:
        hypotheses: one clip, `(num_hypotheses, frames, joints, 3)`; or several: `(batch, num_hypotheses, frames, joints, 3)`, or a list of
            clips that differ in length and number of hypotheses. Every clip weighs the same, however long. Metres, tensors or arrays.
        target: the truth, `(frames, joints, 3)` for each clip. Joints whose target is not finite are left out of their frame, and clips
            without any other are skipped.
        quantiles: levels in 0..1; 0, 0.05, ..., 1 by default.
        centre: "median_lower", the coordinate-wise median, of an even number of hypotheses the lower middle one (as published); "median",
            the usual median; or "mean".
        single_frame: "correct", or "released": what the released code of Platypose computes for a clip of one frame, where a lost axis
            makes it compare every joint's quantile with the error of every joint. Longer clips are the same under both.
        mask: further valid entries, `(frames,)` or `(frames, joints)` for each clip; what it leaves out may hold anything.

    Returns:
        `(quantiles, joints)` in 0..1, double precision. A joint without error and spread, like the root, is never covered (the inequality
        is strict): its column is zero. A joint that is valid nowhere has NaN.

    Raises:
        ValueError: shapes that do not fit, fewer than two hypotheses, values that are not finite, levels outside 0..1, an unknown name, or
            no valid entry at all.
    """
    _check_name("single_frame", single_frame, SINGLE_FRAME)
    levels = _levels(quantiles)
    curves = [
        _curve_of_clip(poses, truth, valid, levels, centre, single_frame == "released")
        for poses, truth, valid in each_clip(hypotheses, target, mask)
        if valid.any()
    ]
    if not curves:
        raise ValueError("no clip has a valid frame: target is not finite, or mask leaves nothing")
    return torch.stack(curves).nanmean(0)


def ece(
    hypotheses: Clips,
    target: Clips,
    *,
    single_frame: str = "correct",
    quantiles: Array | Sequence[float] | None = None,
    reduction: str = "median_joint",
    joints: Sequence[int] | None = None,
    centre: str = "median_lower",
    mask: Clips | None = None,
) -> float:
    """Expected calibration error: the mean distance between `coverage_curve` and the diagonal, in 0..1.

    The default is the published definition, whose median runs over all 17 joints, the root (never covered) included;
    `joints=range(1, 17)` leaves the root out.

    Args:
        hypotheses: as in `coverage_curve`, like `target`, `quantiles`, `single_frame`, `centre` and `mask`.
        target: the truth.
        single_frame: "correct" or "released".
        quantiles: levels in 0..1.
        reduction: "median_joint", the distance of the median joint's coverage (of an even number of joints, the mean of the middle two);
            "pooled", of the coverage of all joints together; "mean_joint", the mean of every joint's own error.
        joints: indices of the joints to look at, all by default.
        centre: "median_lower", "median" or "mean".
        mask: valid entries.

    Raises:
        ValueError: as `coverage_curve`; also an unknown reduction or joint, or a joint that is valid nowhere.
    """
    curve = coverage_curve(hypotheses, target, quantiles, centre=centre, single_frame=single_frame, mask=mask)
    return ece_of_curve(curve, quantiles, reduction=reduction, joints=joints)


def ece_of_curve(
    curve: Array,
    quantiles: Array | Sequence[float] | None = None,
    *,
    reduction: str = "median_joint",
    joints: Sequence[int] | None = None,
) -> float:
    """`ece` of a coverage curve `(quantiles, joints)` at hand.

    Raises:
        ValueError: as `ece`, or a curve with another number of rows than there are quantiles.
    """
    return _gap(curve, quantiles, reduction, joints).abs().mean().item()


def signed_miscalibration(
    hypotheses: Clips,
    target: Clips,
    *,
    quantiles: Array | Sequence[float] | None = None,
    reduction: str = "median_joint",
    joints: Sequence[int] | None = None,
    centre: str = "median_lower",
    mask: Clips | None = None,
) -> float:
    """Mean of ω(q) - q, in -0.5..0.5: negative when the hypotheses are over-confident, positive when they are spread too wide.

    Arguments and errors as in `ece`. Under "pooled" and "mean_joint", which here agree, a root among the joints pulls the mean down.
    """
    return _gap(coverage_curve(hypotheses, target, quantiles, centre=centre, mask=mask), quantiles, reduction, joints).mean().item()


def pit(hypotheses: Clips, target: Clips, *, centre: str = "median_lower", mask: Clips | None = None) -> Tensor:
    """Probability integral transform: where the true distance ranks among those of the hypotheses, for histograms.

    The continuous rank over K + 1: uniform in 0..1 for a calibrated sampler with many hypotheses; heaped at one when over-confident, at
    zero when spread too wide. Whatever lies beyond all K hypotheses has K / (K + 1).

    Args:
        hypotheses: as in `coverage_curve`, like `target`, `centre` and `mask`.
        target: the truth.
        centre: "median_lower", "median" or "mean".
        mask: valid entries.

    Returns:
        `(frames, joints)`, several clips one after the other. NaN where an entry is not valid, and where all hypotheses and the truth
        are the same point (the root), so that there is nothing to rank.

    Raises:
        ValueError: as `coverage_curve`.
    """
    ranks = []
    for clip in each_clip(hypotheses, target, mask):
        for poses, truth, valid in chunks(*clip):
            distances, error = _distances(poses, truth, centre)
            defined = valid & ~((distances.amax(0) == 0) & (error == 0))
            ranks.append(torch.where(defined, _rank(distances, error) / (len(poses) + 1), torch.nan))
    return torch.cat(ranks)


def hypothesis_centre(hypotheses: Tensor, centre: str = "median_lower") -> Tensor:
    """The centre `(..., 3)` of hypotheses `(num_hypotheses, ..., 3)`: "median_lower", "median" or "mean", see `coverage_curve`.

    Raises:
        ValueError: an unknown centre.
    """
    _check_name("centre", centre, CENTRES)
    if centre == "mean":
        return hypotheses.mean(0)
    lower, upper = sort_hypotheses(hypotheses)[[(len(hypotheses) - 1) // 2, len(hypotheses) // 2]]
    return lower if centre == "median_lower" else (lower + upper) / 2


def sort_hypotheses(values: Tensor) -> Tensor:
    """Each coordinate sorted along the first axis."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=0))  # five times as fast as torch
    return values.sort(0).values


# ---------------------------------------------------------------------------------------------------------------------
# Clips in, chunk by chunk
# ---------------------------------------------------------------------------------------------------------------------


def each_clip(
    hypotheses: Clips, target: Clips | None, mask: Clips | None = None, joints: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Checked clips: hypotheses `(num_hypotheses, frames, joints, 3)`, target `(frames, joints, 3)` and what is valid `(frames, joints)`.

    Inputs as in `coverage_curve`; without a target every entry that the mask allows is valid. `joints` selects some of the joints.
    """
    if not isinstance(hypotheses, (list, tuple)) and hypotheses.ndim != 5:
        yield _clip("", hypotheses, target, mask, joints)
        return
    if len(hypotheses) == 0:
        raise ValueError("hypotheses must hold at least one clip")
    for name, value in (("target", target), ("mask", mask)):
        if value is not None and len(value) != len(hypotheses):
            raise ValueError(f"{name} must hold as many clips as hypotheses ({len(hypotheses)}), got {len(value)}")
    number = None
    for i, poses in enumerate(hypotheses):
        clip = _clip(f"[{i}]", poses, *(None if value is None else value[i] for value in (target, mask)), joints)
        number = number or clip[1].shape[1]
        if clip[1].shape[1] != number:
            raise ValueError(f"all clips must have the same joints, got {number} in the first and {clip[1].shape[1]} in hypotheses[{i}]")
        yield clip


def chunks(poses: Tensor, truth: Tensor, valid: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A clip in double precision, cut along its frames into pieces of about `CHUNK` numbers, so that memory stays bounded."""
    step = max(1, CHUNK // poses[:, 0].numel())
    for start in range(0, len(truth), step):
        frames = slice(start, start + step)
        yield poses[:, frames].double(), truth[frames].double(), valid[frames]


def _clip(which: str, hypotheses: Array, target: Array | None, mask: Array | None, joints: Sequence[int] | None):
    poses = torch.as_tensor(hypotheses).detach()
    poses = poses.cpu() if poses.device.type == "mps" else poses  # Apple's GPUs have no double precision
    if poses.ndim != 4 or poses.shape[-1] != 3 or poses.numel() == 0:
        raise ValueError(f"hypotheses{which} must have shape (num_hypotheses, frames, joints, 3), got {tuple(poses.shape)}")
    if len(poses) < 2:
        raise ValueError(f"hypotheses{which} must hold at least two hypotheses: a single one has no spread")
    shape = poses.shape[1:]
    truth = torch.zeros(shape) if target is None else torch.as_tensor(target).detach()
    if truth.shape != shape:
        raise ValueError(f"target{which} must have shape {tuple(shape)} like the hypotheses, got {tuple(truth.shape)}")
    truth = truth.to(poses.device)
    valid = torch.isfinite(truth).all(-1)
    if mask is not None:
        mask = torch.as_tensor(mask).to(poses.device).bool()
        if mask.shape not in (shape[:1], shape[:2]):
            raise ValueError(f"mask{which} must have shape {tuple(shape[:1])} or {tuple(shape[:2])}, got {tuple(mask.shape)}")
        valid = valid & (mask if mask.ndim == 2 else mask[:, None])
    # A sum is finite only if all its terms are, and much cheaper than a look at each.
    if not torch.isfinite(poses.sum(dtype=torch.float64)) and not torch.isfinite(poses.movedim(0, 2)[valid]).all():
        raise ValueError(f"hypotheses{which} must be finite wherever target and mask are valid")
    if joints is not None:
        chosen = _check_joints(joints, shape[1])
        poses, truth, valid = poses[:, :, chosen], truth[:, chosen], valid[:, chosen]
    return poses, truth, valid


# ---------------------------------------------------------------------------------------------------------------------
# Shared pieces
# ---------------------------------------------------------------------------------------------------------------------


def _curve_of_clip(poses: Tensor, truth: Tensor, valid: Tensor, levels: Tensor, centre: str, released: bool) -> Tensor:
    """Share `(quantiles, joints)` of a clip's valid frames that are covered."""
    bounds = 1 + levels.to(poses.device)[:, None, None] * (len(poses) - 1)
    covered, count = 0, 0
    released = released and len(truth) == 1
    for piece, true, fine in chunks(poses, truth, valid):
        distances, error = _distances(piece, true, centre)
        if released:  # the joints of the errors take the place of the frames
            error, fine = error.T, fine.T
        covered = covered + ((_rank(distances, error) < bounds) & fine).sum(1)
        count = count + fine.sum(0)
    return (covered.double() / count).cpu()


def _distances(poses: Tensor, truth: Tensor, centre: str) -> tuple[Tensor, Tensor]:
    """Distances to the centre, of the hypotheses `(num_hypotheses, frames, joints)` and of the truth `(frames, joints)`."""
    middle = hypothesis_centre(poses, centre)
    return torch.linalg.vector_norm(poses - middle, dim=-1), torch.linalg.vector_norm(truth - middle, dim=-1)


def _rank(distances: Tensor, error: Tensor) -> Tensor:
    """The continuous rank of the error among the distances, 0..num_hypotheses; NaN for an error that is NaN."""
    inside = distances <= error
    below = torch.where(inside, distances, 0.0).amax(0)
    above = torch.where(inside, torch.inf, distances).amin(0)
    return inside.sum(0) + (error - below) / (above - below)


def _gap(curve: Array, quantiles: Array | Sequence[float] | None, reduction: str, joints: Sequence[int] | None) -> Tensor:
    """ω - q of what the reduction looks at: `(quantiles,)`, or `(quantiles, joints)` for "mean_joint"."""
    _check_name("reduction", reduction, REDUCTIONS)
    curve, levels = torch.as_tensor(curve).cpu().double(), _levels(quantiles)
    if curve.ndim != 2 or len(curve) != len(levels) or curve.numel() == 0:
        raise ValueError(f"curve must have shape ({len(levels)} quantiles, joints), got {tuple(curve.shape)}")
    if joints is not None:
        curve = curve[:, _check_joints(joints, curve.shape[1])]
    if curve.isnan().any():
        unseen = curve.isnan().any(0).nonzero().flatten().tolist()
        raise ValueError(f"some of the chosen joints are valid nowhere (entries {unseen}): leave them out with joints=")
    if reduction == "mean_joint":
        return curve - levels[:, None]
    return (curve.quantile(0.5, dim=1) if reduction == "median_joint" else curve.mean(1)) - levels


def _levels(quantiles: Array | Sequence[float] | None) -> Tensor:
    if quantiles is None:
        return torch.arange(21, dtype=torch.float64) / 20
    levels = torch.as_tensor(quantiles, dtype=torch.float64).cpu()
    if levels.ndim != 1 or len(levels) == 0 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"quantiles must be a list of levels in 0..1, got {quantiles}")
    return levels


def _check_name(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise ValueError(f"{what} must be one of {allowed}, got {name!r}")


def _check_joints(joints: Sequence[int], number: int) -> list[int]:
    chosen = list(joints)
    if not chosen or any(joint not in range(number) for joint in chosen):
        raise ValueError(f"joints must be indices in 0..{number - 1}, got {chosen}")
    return chosen
