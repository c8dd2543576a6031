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
        if not torch.isfinite(points.sum()) and not torch.isfinite(points).all():  # the sum is quick
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
    if scale:
        variance = (weights * source**2).sum((-2, -1))
        # Points that differ by rounding only have no size; the rest keeps variance² above the smallest number.
        limits = torch.finfo(source.dtype)
        sized = variance > (8 * limits.eps) ** 2 * extent + limits.tiny**0.5
        factor = (rotation * covariance).sum((-2, -1)) / torch.where(sized, variance, 1.0)
        rotation = rotation * torch.where(sized, factor, 0.0)[..., None, None]
    return source @ rotation.mT + middle


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R `(..., 3, 3)` that maximises `trace(Rᵀ M)`, with the exact derivative."""
    if not matrix.requires_grad and matrix.device.type != "mps":  # Apple's GPUs have no double precision
        return _rotation_in_closed_form(matrix.double()).to(matrix.dtype)
    u, s, vh, signs = _signed_svd(matrix.detach())
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


def _signed_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, S, Vᵀ and the signs that make `U diag(signs) Vᵀ` a rotation."""
    u, s, vh = torch.linalg.svd(matrix)
    signs = torch.ones_like(s)
    signs[..., 2] = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0)
    return u, s, vh, signs


def _rotation_in_closed_form(matrix: Tensor) -> Tensor:
    """The nearest rotation in double precision, without gradient, about five times as fast as by an SVD each.

    Source: F. L. Markley, Attitude determination using vector observations: a fast optimal matrix algorithm, J.
    Astronautical Sciences 1993. With singular values s (the last one negative if det M < 0) the maximum λ = s1 + s2 + s3
    is the largest root of `(λ² - |M|²)² - 8 λ det M - 4 |cof M|²`, which Newton's method reaches from above. Matrices
    that hardly determine a rotation (points on a line, some mirrored shapes) are left to the SVD.
    """
    m = matrix / matrix.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    cofactors = torch.linalg.cross(m[..., [1, 2, 0], :], m[..., [2, 0, 1], :])
    det = (m[..., 0, :] * cofactors[..., 0, :]).sum(-1)
    size, cofactor_size = m.square().sum((-2, -1)), cofactors.square().sum((-2, -1))
    total = (3 * size).sqrt()
    for _ in range(10):
        excess = total**2 - size
        step = (excess**2 - 8 * total * det - 4 * cofactor_size) / (4 * total * excess - 8 * det)
        total = total - step
    kappa = (total**2 - size) / 2
    stiffness = kappa * total - det  # (s1 + s2) (s2 + s3) (s3 + s1)
    rotation = (kappa + size)[..., None, None] * m + total[..., None, None] * cofactors - m @ (m.mT @ m)
    rotation = rotation / stiffness[..., None, None]
    certain = (step.abs() < 1e-13 * total) & (stiffness > 1e-2 * size**1.5)
    if not certain.all():
        u, _, vh, signs = _signed_svd(matrix[~certain])
        rotation[~certain] = (u * signs[..., None, :]) @ vh
    return rotation
