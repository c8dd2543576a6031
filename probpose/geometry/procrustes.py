"""Rigid alignment of point sets."""

from __future__ import annotations

import torch
from torch import Tensor


def procrustes_align(source: Tensor, target: Tensor, scale: bool = True, weights: Tensor | None = None) -> Tensor:
    """Move `source` onto `target` by the similarity that leaves the least squared distance; mirroring is not allowed.

    Differentiable in both arguments, also where singular values coincide or vanish. A source without extent (one point,
    all points equal) lands on the centroid of the target.

    Args:
        source: points `(..., points, 3)`.
        target: points `(..., points, 3)`; leading axes broadcast against those of `source`.
        scale: also fit the size; False allows rotation and translation only.
        weights: non-negative weight of each point `(..., points)`; default all equal.

    Returns:
        The aligned source `(..., points, 3)`, in the unit of `target`.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.

    Source: S. Umeyama, Least-squares estimation of transformation parameters between two point patterns, PAMI 1991.
    """
    if min(source.ndim, target.ndim) < 2 or source.shape[-1] != 3 or source.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            "source and target must both have shape (..., points, 3) with the same number of points, "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    for name, points in (("source", source), ("target", target)):
        if not torch.isfinite(points).all():
            raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(points)).sum())} non-finite values")
    weights = source.new_ones(source.shape[-2]) if weights is None else weights.to(source)
    if weights.shape[-1:] != source.shape[-2:-1] or not (weights >= 0).all():
        raise ValueError(f"weights must be non-negative with shape (..., {source.shape[-2]}), got {tuple(weights.shape)}")
    weights = (weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny))[..., None]

    middle = (weights * target).sum(-2, keepdim=True)
    extent = (weights * source.detach() ** 2).sum((-2, -1))
    source = source - (weights * source).sum(-2, keepdim=True)
    covariance = (weights * (target - middle)).mT @ source
    rotation = _nearest_rotation(covariance)
    aligned = source @ rotation.mT
    if scale:
        variance = (weights * source**2).sum((-2, -1))
        # Points that differ by rounding only have no size; the rest keeps variance² above the smallest number.
        limits = torch.finfo(source.dtype)
        sized = variance > (8 * limits.eps) ** 2 * extent + limits.tiny**0.5
        factor = (rotation * covariance).sum((-2, -1)) / torch.where(sized, variance, 1.0)
        aligned = aligned * torch.where(sized, factor, 0.0)[..., None, None]
    return aligned + middle


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R `(..., 3, 3)` that maximises `trace(Rᵀ M)`, with the exact derivative."""
    u, s, vh = torch.linalg.svd(matrix.detach())
    sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(s)
    signs = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    rotation = (u * signs[..., None, :]) @ vh
    if not matrix.requires_grad:
        return rotation

    # Differentiating the SVD itself divides by differences of singular values. The optimum needs their sums only: turn
    # R by exp([w]×); the maximum over w satisfies (trace(H) - H) w = axial(RᵀM) with H = RᵀM symmetric, which is zero
    # in value but not in derivative.
    turned = rotation.mT @ matrix
    axial = torch.stack([turned[..., i, j] - turned[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], dim=-1)
    stiffness = (s * signs).sum(-1, keepdim=True) - s * signs
    determined = stiffness > torch.finfo(s.dtype).eps ** 0.5 * s[..., :1]
    compliance = torch.where(determined, 1 / torch.where(determined, stiffness, 1.0), 0.0)
    w = (vh.mT @ (compliance[..., None] * (vh @ axial[..., None])))[..., 0]
    w = w - w.detach()
    zero = torch.zeros_like(w[..., 0])
    x, y, z = w.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return rotation + rotation @ cross
