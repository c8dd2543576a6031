"""How far detectors are off, how far hypotheses reproject from the keypoints they were made from, and the choice between them."""

from __future__ import annotations

import torch
from torch import Tensor

from .camera import Camera

SCREEN_FOCAL = 2.29
"""Focal length of Human3.6M's cameras in screen units (half an image width is 1)."""


def detection_sigma(confidence: Tensor, focal: Tensor | float = SCREEN_FOCAL) -> Tensor:
    """How far a detector is off: standard deviation of each axis of a keypoint, in the unit of the focal length.

    Behind Human3.6M's lenses 0.002 + 0.04 (1 - confidence) screen units, the root-mean-square errors of a detector on rendered training
    windows. It scales with the focal length, as a detector's errors keep their size relative to the person.

    Args:
        confidence: `(...)` in 0..1.
        focal: a number, or a tensor that broadcasts against the confidence.
    """
    return (focal / SCREEN_FOCAL) * (0.002 + 0.04 * (1 - confidence))


def reprojection_error(pose: Tensor, keypoints_2d: Tensor, camera: Camera | Tensor, root: Tensor) -> Tensor:
    """Distance in the image between reprojected poses and keypoints, in the unit of the keypoints.

    Args:
        pose: root-relative poses `(*batch, *extra, frames, joints, 3)`, camera axes. `extra` are the axes that the
            keypoints lack: none, `(hypotheses,)` or `(iterations, hypotheses)`.
        keypoints_2d: `(*batch, frames, joints, 2)` in the camera's unit (pixels or screen units); NaN = not observed.
        camera: a `Camera` or the field's vector `(..., 9)` (see `Camera.from_vector`): one, one per batch entry, or one
            per frame `(*batch, frames)`.
        root: root trajectory `(*batch, frames, 3)`, or one per hypothesis `(*batch, hypotheses, frames, 3)`, in the
            unit of `pose`; a joint axis of size one before the last is accepted.

    Returns:
        `(*batch, *extra, frames, joints)`; zero where the keypoint is not observed.

    Raises:
        ValueError: shapes that do not fit.
    """
    if keypoints_2d.ndim < 3 or keypoints_2d.shape[-1] != 2:
        raise ValueError(f"keypoints_2d must have shape (..., frames, joints, 2), got {tuple(keypoints_2d.shape)}")
    *batch, frames, joints, _ = keypoints_2d.shape
    lead, extra = len(batch), pose.ndim - keypoints_2d.ndim
    if extra < 0 or pose.shape[-3:] != (frames, joints, 3) or list(pose.shape[:lead]) != batch:
        expected = ", ".join(map(str, [*batch, "...", frames, joints, 3]))
        raise ValueError(f"pose must have shape ({expected}) to go with the keypoints, got {tuple(pose.shape)}")
    if not isinstance(camera, Camera):
        camera = Camera.from_vector(camera)
    views = camera.focal.shape[:-1]
    if len(views) > lead + 1 or any(n not in (1, size) for n, size in zip(views, (*batch, frames))):
        raise ValueError(f"camera axes must be none or those of the keypoints {(*batch, frames)}, got {tuple(views)}")

    # The extra axes go last, so that keypoints and cameras, whatever axes they have, meet the poses' leading axes.
    order = [*range(lead), *range(pose.ndim - 3, pose.ndim - 1), *range(lead, lead + extra), pose.ndim - 1]
    points = pose.permute(order) + _root_of(root, pose, lead).permute(order).to(pose)
    keypoints_2d = keypoints_2d.to(pose).reshape(*batch, frames, joints, *[1] * extra, 2)
    observed = torch.isfinite(keypoints_2d).all(-1, keepdim=True)
    difference = torch.where(observed, camera.project(points) - keypoints_2d, 0.0)
    return torch.linalg.vector_norm(difference, dim=-1).movedim((lead, lead + 1), (-2, -1))


def select_by_reprojection(errors: Tensor, dim: int) -> Tensor:
    """Index of the least error along `dim`; ties go to the lowest index on every device, NaN is never preferred.

    Args:
        errors: any shape, floating.
        dim: the axis of the hypotheses, which disappears.

    Raises:
        ValueError: no hypothesis to choose from.
    """
    count = errors.shape[dim]
    if count == 0:
        raise ValueError(f"errors must hold at least one hypothesis along axis {dim}, got shape {tuple(errors.shape)}")
    errors = torch.where(errors.isnan(), torch.inf, errors)
    shape = [1] * errors.ndim
    shape[dim] = count
    index = torch.arange(count, device=errors.device).reshape(shape)
    # torch.argmin may return any of several minima.
    return torch.where(errors == errors.amin(dim, keepdim=True), index, count).amin(dim)


def _root_of(root: Tensor, pose: Tensor, lead: int) -> Tensor:
    """The root with all axes of the pose, `(*batch, *extra, frames, 1, 3)`, singleton where it is shared."""
    batch, extra, frames = pose.shape[:lead], pose.shape[lead:-3], pose.shape[-3]
    trajectory = root
    if root.ndim > lead + 2 and root.shape[-2] == 1 and root.shape[-3] == frames:
        trajectory = root.squeeze(-2)
    own = trajectory.shape[lead:-2]
    fits = trajectory.shape[-2:] == (frames, 3) and trajectory.shape[:lead] == batch and len(own) <= len(extra)
    if not fits or any(n not in (1, size) for n, size in zip(reversed(own), reversed(extra))):
        expected = ", ".join(map(str, [*batch, frames, 3]))
        raise ValueError(f"root must have shape ({expected}) or one trajectory per hypothesis, got {tuple(root.shape)}")
    return trajectory.reshape(*batch, *[1] * (len(extra) - len(own)), *own, frames, 1, 3)
