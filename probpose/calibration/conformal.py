"""Split conformal prediction: radii that contain the truth as often as they promise, whatever the model and the distribution.

Let s_1 ... s_n be scores of calibration items that no part of the model was fitted to, for instance errors, and q the
ceil((n + 1) coverage)-th smallest of them. If a new item is exchangeable with those n, then

    coverage <= P(s_new <= q),   and   P(s_new <= q) < coverage + 1 / (n + 1) when no two scores are equal,

for every n, without further assumptions (Vovk, Gammerman & Shafer, "Algorithmic learning in a random world", 2005; Lei et al.,
"Distribution-free predictive inference for regression", JASA 2018). The probability is over calibration items and new item together: it
holds on average over items, not for every pose, and given one calibration set the coverage scatters about it by sqrt(c (1 - c) / n).

Neighbouring frames are alike, so the frames of a few clips are not exchangeable with those of a new one, and thousands of them promise more
than they keep. Items that may pass for exchangeable are clips, better still subjects: `one_frame_per_clip`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def conformal_quantile(scores: Array, coverage: float = 0.9) -> Tensor:
    """The score that a new item stays at or below with at least the probability `coverage`.

    Args:
        scores: `(items, ...)`, one column for each thing to be predicted on its own; NaN marks items that a column lacks.
        coverage: between 0 and 1, both excluded.

    Returns:
        `(...)`, double precision: of n scores the ceil((n + 1) coverage)-th smallest, see the top of this file for what it guarantees.

    Raises:
        ValueError: coverage outside its range, no axis of items, or too few items for the coverage: 0.9 takes 9 of them.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    scores = _double(scores)
    if scores.ndim == 0:
        raise ValueError("scores must have shape (items, ...), got a single number")
    ordered = scores.sort(0).values  # NaN comes last
    count = (~scores.isnan()).sum(0)
    # Without the margin, 100 * 0.07 would round up to 8.
    place = torch.ceil((count + 1) * coverage - 1e-9).long()
    if scores.numel() == 0 or (place > count).any():
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        fewest = int(count.min()) if count.numel() else 0
        raise ValueError(f"a coverage of {coverage} needs at least {needed} calibration items, got {fewest}")
    return ordered.gather(0, place[None] - 1)[0]


def one_frame_per_clip(scores: Array, lengths: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """One frame of every clip, drawn at random.

    When clips are exchangeable, so are these items and a random frame of a new clip: `conformal_quantile` then keeps its word with n the
    number of clips (Dunn, Wasserman & Ramdas, "Distribution-free prediction sets for two-layer hierarchical models", JASA 2023).

    Args:
        scores: `(frames, ...)`, all frames of all clips, one clip after the other.
        lengths: the clips' numbers of frames.
        generator: source of randomness, on the CPU.

    Returns:
        `(clips, ...)`.

    Raises:
        ValueError: lengths that are not positive or do not sum up to the frames.
    """
    scores, lengths = torch.as_tensor(scores), torch.as_tensor(lengths)
    if lengths.ndim != 1 or lengths.is_floating_point() or not (lengths > 0).all() or int(lengths.sum()) != len(scores):
        raise ValueError(f"lengths must be positive and sum up to the {len(scores)} frames of scores, got {lengths.tolist()}")
    drawn = (torch.rand(len(lengths), generator=generator, dtype=torch.float64) * lengths).long()
    return scores[(lengths.cumsum(0) - lengths + drawn).to(scores.device)]


def fit_conformal(errors: Array, scale: Array | None = None, coverage: float = 0.9) -> Tensor:
    """Per joint a radius, or a factor on the predicted uncertainty, that contains the true position with at least the given probability.

    With a scale the score is error / scale, so that the radius of a prediction is factor * scale: wide where the model is unsure.
    Every joint has the guarantee on its own; for one that holds for all joints of a pose at once, give the largest of a pose's scores,
    `(errors / scale).amax(-1, keepdim=True)`, as errors.

    Args:
        errors: `(items, joints)` distances between the predicted and the true position, metres; NaN where the truth is not known.
        scale: `(items, joints)` predicted uncertainty of the same items, metres; a joint without uncertainty must be exact, like the root,
            or no finite factor helps.
        coverage: between 0 and 1, both excluded.

    Returns:
        `(joints,)`: radii in metres, or factors on `scale`.

    Raises:
        ValueError: shapes that do not fit, negative values, or too few items (see `conformal_quantile`).
    """
    scores = _errors(errors)
    if scale is not None:
        scale = _double(scale).to(scores.device)
        if scale.shape != scores.shape or not ((scale >= 0) | scores.isnan()).all():
            raise ValueError(f"scale must be like errors, {tuple(scores.shape)}, without negative values or NaN, got {tuple(scale.shape)}")
        scores = torch.where(scores == 0, 0.0, scores / scale)
    return conformal_quantile(scores, coverage)


def empirical_coverage(errors: Array, radius: Array | float) -> tuple[Tensor, float]:
    """How often errors are within their radius.

    Args:
        errors: `(items, joints)` metres; NaN is left out.
        radius: `(joints,)` or `(items, joints)` metres, or one number.

    Returns:
        Per joint `(joints,)`, NaN for a joint without errors, and over all entries together.

    Raises:
        ValueError: shapes that do not fit, negative errors, a radius that is NaN, or no error at all.
    """
    errors = _errors(errors)
    radius = _double(radius).to(errors.device)
    if radius.shape not in ((), errors.shape[1:], errors.shape) or radius.isnan().any():
        allowed = f"(), {tuple(errors.shape[1:])} or {tuple(errors.shape)}"
        raise ValueError(f"radius must have shape {allowed} and hold no NaN, got {tuple(radius.shape)}")
    known, covered = ~errors.isnan(), errors <= radius
    if not known.any():
        raise ValueError("errors hold no value that is not NaN")
    return covered.sum(0).double() / known.sum(0), covered.sum().item() / known.sum().item()


def _errors(errors: Array) -> Tensor:
    errors = _double(errors)
    if errors.ndim != 2 or (errors < 0).any():
        raise ValueError(f"errors must be distances of shape (items, joints), got {tuple(errors.shape)}, least {_least(errors)}")
    return errors


def _double(values: Array | float) -> Tensor:
    values = torch.as_tensor(values).detach()
    return (values.cpu() if values.device.type == "mps" else values).double()  # Apple's GPUs have no double precision


def _least(values: Tensor) -> float:
    return values.nan_to_num(torch.inf).min().item() if values.numel() else math.nan
