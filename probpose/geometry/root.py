"""Where is the person? The root trajectory from 2D keypoints, a root-relative pose and the camera, without ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    keypoints_2d: Tensor | Sequence[Tensor],
    camera: Camera | Sequence[Camera],
    confidence: Tensor | Sequence[Tensor] | None = None,
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

    Several cameras are a list, with keypoints and confidences for each. Poses and root are then in the world's axes, and the cameras must
    know where they stand.

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
        `(batch, frames, 3)`, or `(batch, hypotheses, frames, 3)`: metres, camera axes (with several cameras the world's), always in front
        of a single camera. Frames without any observation are bridged by the acceleration prior.

    Raises:
        ValueError: shapes that do not fit, numbers that are not positive, or a clip without a single observed keypoint.
    """
    for name, value in (("fps", fps), ("acceleration", acceleration), ("keypoint_sigma", keypoint_sigma)):
        if not (value is None and name == "acceleration") and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if pose.ndim not in (4, 5) or pose.shape[-1] != 3:
        raise ValueError(f"pose must have shape (batch, [hypotheses,] frames, joints, 3), got {tuple(pose.shape)}")
    several = not isinstance(camera, Camera)
    if several:
        each = zip(camera, keypoints_2d, [None] * len(camera) if confidence is None else confidence, strict=True)
    else:
        each = [(camera, keypoints_2d, confidence)]
    views = [_View.of(pose, *view, extrinsics=several) for view in each]
    if (sum(view.weight.sum((-1, -2)) for view in views) <= 0).any():
        raise ValueError("the root cannot be estimated: a clip has no observed keypoint")
    joints = pose.double()

    # One algebraic equation per image axis: (X + tx) - slope (Z + tz) = 0, in units of depth; dividing by the depth gives pixels.
    if several:
        equations = [view.equations(joints, torch.zeros_like(joints[..., 0, :]), view.weight.expand(joints.shape[:-1])) for view in views]
        root = _solve(*map(sum, zip(*equations)), fps, acceleration)
    else:
        root = _initial_root(joints, views[0].slopes, views[0].weight)
    # What nothing decides stays where the clip is: the system is solved for the offset from the mean of the observed frames.
    share = sum(view.weight.sum(-1, keepdim=True) for view in views)
    base = (share * root).sum(-2, keepdim=True) / share.sum(-2, keepdim=True)
    for _ in range(iterations):
        equations = []
        for view in views:
            seen = view.seen(joints, root)
            depth = seen[..., 2].clamp_min(0.1)
            residual = seen[..., :2] - view.slopes * depth[..., None]
            pixels = view.focal * residual.norm(dim=-1) / depth
            sigma = view.focal * torch.sqrt((keypoint_sigma / REFERENCE_FOCAL) ** 2 + (pose_sigma / depth) ** 2)
            w = view.weight / (1 + (pixels / (2 * sigma)) ** 2) * (view.focal / (depth * sigma)) ** 2
            equations.append(view.equations(joints, base, w))
        root = base + _solve(*map(sum, zip(*equations)), fps, acceleration)
        if not several:
            root[..., 2].clamp_(min=0.1)
    return root.to(pose.dtype)


@dataclass
class _View:
    """One camera's share: slopes and weights with the axes of the poses, and where the camera stands (None: the poses are in its axes)."""

    slopes: Tensor
    weight: Tensor
    focal: Tensor
    camera: Camera | None

    @classmethod
    def of(cls, pose: Tensor, camera: Camera, keypoints_2d: Tensor, confidence: Tensor | None, extrinsics: bool) -> _View:
        expected = (pose.shape[0], *pose.shape[-3:-1], 2)
        if tuple(keypoints_2d.shape) != expected:
            raise ValueError(f"keypoints_2d must have shape {expected} to go with the pose, got {tuple(keypoints_2d.shape)}")
        slopes = camera.unproject(keypoints_2d.double())
        observed = torch.isfinite(slopes).all(-1)
        weight = observed.double() if confidence is None else observed * confidence.double()
        if not torch.isfinite(weight).all() or (weight < 0).any():
            raise ValueError("confidence must be finite and not negative")
        slopes = torch.where(observed[..., None], slopes, 0.0)
        focal = camera.focal.double().mean(-1).reshape(-1, *[1] * (pose.ndim - 2)).to(pose.device)
        if pose.ndim == 5:
            slopes, weight = slopes[:, None], weight[:, None]
        return cls(slopes, weight, focal, camera if extrinsics else None)

    def seen(self, joints: Tensor, root: Tensor) -> Tensor:
        """Joints in the camera's axes."""
        space = joints + root[..., None, :]
        return space if self.camera is None else self.camera.to_camera(space)

    def equations(self, joints: Tensor, base: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Per frame the weighted linear problem for the root's offset from `base`: matrix `(..., 3, 3)` and right side `(..., 3)`."""
        matrix, right = _normal_equations(self.seen(joints, base), self.slopes, w)
        if self.camera is None:
            return matrix, right
        turn = self.camera.rotation.to(matrix)
        turn = turn.reshape(*turn.shape[:-2], *[1] * (matrix.ndim - turn.ndim), 3, 3)
        return turn.mT @ matrix @ turn, (turn.mT @ right[..., None])[..., 0]


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


def _solve(matrix: Tensor, right: Tensor, fps: float, acceleration: float | None) -> Tensor:
    """Solve all sequences in one symmetric banded system: the blocks of different sequences do not touch."""
    shape, device, frames = right.shape, right.device, right.shape[-2]
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
    return torch.from_numpy(solution).to(device).reshape(shape)
