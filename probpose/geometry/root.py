"""Where is the person? The root trajectory from 2D keypoints, a root-relative pose and the camera, without ground truth."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor

from .camera import Camera

REFERENCE_FOCAL = 1145.0
"""Focal length in pixels of Human3.6M's cameras, for which keypoint noise is stated."""

_BANDS = 7  # a frame couples its own three coordinates (offsets 0..2) and, through the acceleration, the next two frames (3, 6)


@torch.no_grad()
def estimate_root(
    pose: Tensor,
    keypoints_2d: Tensor,
    camera: Camera,
    confidence: Tensor | None = None,
    *,
    fps: float = 30.0,
    acceleration: float | None = 5.0,
    keypoint_sigma: float = 2.5,
    pose_sigma: float | Tensor = 0.03,
    iterations: int = 10,
) -> Tensor:
    """Root trajectory that makes a root-relative pose reproject onto the keypoints.

    Weighted least squares on the viewing rays, re-linearised so that it minimises the reprojection error, with Cauchy weights
    against outliers and a prior on the root's acceleration, all frames of a clip in one banded system.

    Args:
        pose: `(batch, frames, joints, 3)` or `(batch, hypotheses, frames, joints, 3)`, metres, root-relative, camera axes.
        keypoints_2d: `(batch, frames, joints, 2)` pixels; NaN = not observed.
        camera: one camera, or one per batch entry.
        confidence: `(batch, frames, joints)` in 0..1.
        fps: frame rate, which gives the acceleration prior its unit.
        acceleration: standard deviation of the root's acceleration in m/s²; None solves every frame on its own.
        keypoint_sigma: standard deviation of a keypoint of confidence one, in pixels of a camera with a focal length of
            `REFERENCE_FOCAL`; it scales with the focal length.
        pose_sigma: standard deviation of the joints of `pose` in metres: one number, or a tensor that broadcasts against
            `pose[..., 0]`. With the depth it says how far a joint may reproject away; small numbers tie the root to these joints.
        iterations: re-weighting steps.

    Returns:
        `(batch, frames, 3)`, or `(batch, hypotheses, frames, 3)`: metres, camera axes, always in front of the camera. Frames without any
        observation are bridged by the acceleration prior.

    Raises:
        ValueError: shapes that do not fit, numbers that are not positive, or a clip without a single observed keypoint.
    """
    for name, value in (("fps", fps), ("acceleration", acceleration), ("keypoint_sigma", keypoint_sigma)):
        if not (value is None and name == "acceleration") and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if pose.ndim not in (4, 5) or pose.shape[-1] != 3:
        raise ValueError(f"pose must have shape (batch, [hypotheses,] frames, joints, 3), got {tuple(pose.shape)}")
    expected = (pose.shape[0], *pose.shape[-3:-1], 2)
    if tuple(keypoints_2d.shape) != expected:
        raise ValueError(f"keypoints_2d must have shape {expected} to go with the pose, got {tuple(keypoints_2d.shape)}")
    slopes = camera.unproject(keypoints_2d.double())
    observed = torch.isfinite(slopes).all(-1)
    weight = observed.double() if confidence is None else observed * confidence.double()
    if not torch.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("confidence must be finite and not negative")
    if (weight.sum((1, 2)) <= 0).any():
        raise ValueError("the root cannot be estimated: a clip has no observed keypoint")
    slopes = torch.where(observed[..., None], slopes, 0.0)
    focal = camera.focal.double().mean(-1).reshape(-1, *[1] * (pose.ndim - 2)).to(pose.device)
    hypotheses = pose.ndim == 5
    if hypotheses:
        slopes, weight = slopes[:, None], weight[:, None]
    joints = pose.double()

    # One algebraic equation per image axis: (X + tx) - slope (Z + tz) = 0, in units of depth; dividing by the depth gives pixels.
    root = _initial_root(joints, slopes, weight)
    # What nothing decides stays where the clip is: the system is solved for the offset from the mean of the observed frames.
    share = weight.sum(-1, keepdim=True)
    base = (share * root).sum(-2, keepdim=True) / share.sum(-2, keepdim=True)
    for _ in range(iterations):
        depth = (joints[..., 2] + root[..., None, 2]).clamp_min(0.1)
        residual = (joints[..., :2] + root[..., None, :2]) - slopes * depth[..., None]
        pixels = focal * residual.norm(dim=-1) / depth
        sigma = focal * torch.sqrt((keypoint_sigma / REFERENCE_FOCAL) ** 2 + (pose_sigma / depth) ** 2)
        w = weight / (1 + (pixels / (2 * sigma)) ** 2) * (focal / (depth * sigma)) ** 2
        root = base + _solve(joints + base[..., None, :], slopes, w, fps, acceleration)
        root[..., 2].clamp_(min=0.1)
    return root.to(pose.dtype)


def root_of_hypotheses(hypotheses: Tensor, keypoints_2d: Tensor, camera: Camera, confidence: Tensor | None, fps: float = 30.0) -> Tensor:
    """Root trajectory `(batch, frames, 3)` of the mean hypothesis; joints on which the hypotheses agree count most.

    The spread is taken threefold, as samples of a network that predicts clean poses lie closer together than the truth lies to them.
    """
    spread = (hypotheses - hypotheses.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    return estimate_root(hypotheses.mean(1), keypoints_2d, camera, confidence, fps=fps, pose_sigma=3 * spread.double() + 0.002)


def _normal_equations(joints: Tensor, slopes: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Per frame the matrix `(..., 3, 3)` and right side `(..., 3)` of the weighted linear problem in (tx, ty, tz)."""
    offset = joints[..., :2] - slopes * joints[..., 2:]  # equation: t_xy - slope tz = -offset
    total, along = w.sum(-1), (w[..., None] * slopes).sum(-2)
    square = (w * (slopes**2).sum(-1)).sum(-1)
    matrix = torch.zeros(*total.shape, 3, 3, dtype=joints.dtype, device=joints.device)
    matrix[..., 0, 0] = matrix[..., 1, 1] = total
    matrix[..., :2, 2] = matrix[..., 2, :2] = -along
    matrix[..., 2, 2] = square
    right = torch.cat([-(w[..., None] * offset).sum(-2), (w * (slopes * offset).sum(-1)).sum(-1, keepdim=True)], dim=-1)
    return matrix, right


def _initial_root(joints: Tensor, slopes: Tensor, weight: Tensor) -> Tensor:
    """One root per clip from all frames together: robust where single frames are degenerate."""
    matrix, right = _normal_equations(joints, slopes, weight.expand(joints.shape[:-1]))
    # Frames differ in tx, ty but roughly share the depth: eliminate tx, ty per frame, solve one depth.
    total = matrix[..., 0, 0].clamp_min(1e-9)
    along = -matrix[..., :2, 2]
    spread = (matrix[..., 2, 2] - (along**2).sum(-1) / total).sum(-1)
    pull = (right[..., 2] + (along * right[..., :2]).sum(-1) / total).sum(-1)
    depth = (pull / spread.clamp_min(1e-9)).clamp(0.3, 100.0)[..., None]
    flat = (right[..., :2] + along * depth[..., None]) / total[..., None]
    return torch.cat([flat, depth[..., None].expand_as(flat[..., :1])], dim=-1)


def _solve(joints: Tensor, slopes: Tensor, w: Tensor, fps: float, acceleration: float | None) -> Tensor:
    """Solve all sequences in one symmetric banded system: the blocks of different sequences do not touch."""
    matrix, right = _normal_equations(joints, slopes, w)
    frames = right.shape[-2]
    matrix, right = matrix.reshape(-1, frames, 3, 3).cpu().numpy(), right.reshape(-1, frames, 3).cpu().numpy()
    matrix[..., range(3), range(3)] += 1e-6 * np.maximum(matrix[..., 0, 0], 1e-3)[..., None]
    band = np.zeros((_BANDS, len(matrix), frames, 3))
    for offset in range(3):
        band[offset, :, :, : 3 - offset] = np.stack([matrix[..., i + offset, i] for i in range(3 - offset)], axis=-1)
    if acceleration is not None and frames >= 3:
        stiffness = (fps**2 / acceleration) ** 2
        second = np.zeros((frames, 3))  # bands 0, 1, 2 (in frames) of DᵀD, D = second difference
        for k in range(frames - 2):
            for i, a in enumerate((1, -2, 1)):
                for j, b in enumerate((1, -2, 1)):
                    if j >= i:
                        second[k + i, j - i] += a * b
        for lag in range(3):
            band[3 * lag] += stiffness * second[None, :, lag, None]
    solution = solveh_banded(band.reshape(_BANDS, -1), right.reshape(-1), lower=True)
    return torch.from_numpy(solution).to(joints.device).reshape(*joints.shape[:-2], 3)
