"""Energies of motions seen by cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probpose.geometry import Camera, detection_sigma

from .energies import Energy, absolute, check_positive, pulled_back

LOSSES = ("squared", "huber", "cauchy")
REDUCTIONS = ("mean", "sum")

_OUTLIER = 3.0
"""Standard deviations beyond which a detected keypoint begins to lose its hold."""


class _SeenByCameras(Energy):
    """What energies of projected joints have in common: cameras, and how joints in space come out of a motion."""

    def __init__(
        self, cameras: Camera | Sequence[Camera], root: Any, joints: Sequence[int] | None, min_depth: float, hold_trajectory: bool
    ):
        self.cameras = [cameras] if isinstance(cameras, Camera) else list(cameras)
        if not self.cameras or not all(isinstance(camera, Camera) for camera in self.cameras):
            raise ValueError(f"cameras must be a probpose.geometry.Camera or a list of them, got {cameras!r}")
        if len(self.cameras) > 1 and any(camera.rotation is None or camera.translation is None for camera in self.cameras):
            raise ValueError("several cameras must all have a rotation and a translation, or nothing is known of where they stand")
        if any((camera.rotation is None) != (camera.translation is None) for camera in self.cameras):
            raise ValueError("a camera must have both a rotation and a translation, or neither")
        self.root = None if root is None else torch.as_tensor(root)
        self.joints = None if joints is None else list(joints)
        self.min_depth, self.hold_trajectory = check_positive("min_depth", min_depth), hold_trajectory

    def points(self, motion: Tensor) -> list[Tensor]:
        """Joints in every camera's axes `(..., frames, joints, 3)`, none nearer than `min_depth`."""
        root = None if self.root is None else self.root.to(motion)
        if root is not None and root.ndim == motion.ndim and root.shape[-2] == 1:  # with a joint axis of size one
            root = root.squeeze(-2)
        space = absolute(motion, root, self.hold_trajectory)
        if self.joints is not None:
            space = space[..., self.joints, :]
        seen = [space if camera.rotation is None else camera.to_camera(space) for camera in self.cameras]
        return [torch.cat([p[..., :2], p[..., 2:].clamp_min(self.min_depth)], dim=-1) for p in seen]

    def lifted(self, motion: Tensor, images: list[Tensor]) -> Tensor:
        """Curvature in the motion from curvatures in every camera's image `(..., frames, joints, 2, 2)`."""
        total: Tensor | float = 0.0
        for camera, points, image in zip(self.cameras, self.points(motion), images):
            jacobian = pinhole_jacobian(camera, points)
            total = total + jacobian.mT @ image @ jacobian
        if self.joints is not None:
            every = total.new_zeros(*total.shape[:-3], motion.shape[-2], 3, 3)
            every[..., self.joints, :, :] = total
            total = every
        return pulled_back(total, self.root, self.hold_trajectory)


class ReprojectionEnergy(_SeenByCameras):
    """Squared distance in the image between projected joints and keypoints (Platypose, arXiv 2403.06164).

    E = Σ cameras Σ frames (1 / J) Σ joints ½ Σ axes w (π(X) - y)².

    Args:
        cameras: one, or a list of C that have extrinsics. A camera without extrinsics sees the motion's own axes as its own.
        keypoints: `(..., frames, joints, 2)` in the camera's unit, or C of them (a list, or stacked on a leading axis); NaN = not observed.
            Leading axes broadcast against those of the motions.
        weights: of the squares, as `keypoints` with or without the last axis; default 1. With the inverse variance of a keypoint and
            `reduction="sum"` the energy is a negative log-likelihood; `from_detections` makes one.
        root: `(..., frames, 3)` metres, added to all joints of a motion, as published; None: the motion's own trajectory.
        loss: "squared"; or of a joint's weighted squared distance d²: "huber", linear beyond `loss_scale`, or "cauchy",
            `s² log(1 + d² / s²)`, which lets go of outliers.
        loss_scale: in the unit of the weighted distance.
        reduction: "mean" over joints, as published, or their "sum".
        joints: that the keypoints are of; default all.
        min_depth: metres; joints are never seen nearer than this, so that none can pass through the image plane.
        hold_trajectory: without a `root`, whether the motion's own trajectory stays where it is.

    Raises:
        ValueError: keypoints or weights that do not belong to the cameras, and the other arguments out of their range.
    """

    def __init__(
        self,
        cameras: Camera | Sequence[Camera],
        keypoints: Any,
        weights: Any = None,
        root: Any = None,
        loss: str = "squared",
        loss_scale: float = 1.0,
        reduction: str = "mean",
        joints: Sequence[int] | None = None,
        min_depth: float = 0.1,
        hold_trajectory: bool = False,
    ):
        super().__init__(cameras, root, joints, min_depth, hold_trajectory)
        for name, value, allowed in (("loss", loss, LOSSES), ("reduction", reduction, REDUCTIONS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        self.loss, self.loss_scale, self.reduction = loss, check_positive("loss_scale", loss_scale), reduction
        count = len(self.cameras)
        self.keypoints = per_camera("keypoints", keypoints, count, single=isinstance(cameras, Camera), trailing=(2,))
        observed = [torch.isfinite(k).all(-1) for k in self.keypoints]
        self.keypoints = [torch.where(seen[..., None], k, 0.0) for seen, k in zip(observed, self.keypoints)]
        given = [None] * count if weights is None else per_camera("weights", weights, count, single=isinstance(cameras, Camera))
        self.weights = [self._weight(*each) for each in zip(given, self.keypoints, observed)]

    @classmethod
    def from_detections(
        cls, cameras: Camera | Sequence[Camera], keypoints: Any, confidence: Any = None, **options: Any
    ) -> ReprojectionEnergy:
        """Negative log-likelihood of a detector's keypoints: as far off as their confidence says (`probpose.geometry.detection_sigma`).

        Outliers are let go of. Nothing has to be tuned to the lenses, the distances or the number of cameras.

        Args:
            cameras, keypoints: as above.
            confidence: in 0..1, as `keypoints` without the last axis; 0 = not observed; default 1.
            **options: root, joints, min_depth, hold_trajectory, as above.

        Raises:
            ValueError: confidence outside 0..1 or of another shape, and as above.
        """
        energy = cls(cameras, keypoints, loss="cauchy", loss_scale=_OUTLIER, reduction="sum", **options)
        if confidence is None:
            confidences = [torch.ones_like(points[..., 0]) for points in energy.keypoints]
        else:
            confidences = per_camera("confidence", confidence, len(energy.cameras), single=isinstance(cameras, Camera))
        for i, (camera, points, sure) in enumerate(zip(energy.cameras, energy.keypoints, confidences)):
            if sure.shape[-2:] != points.shape[-3:-1]:
                raise ValueError(f"confidence must have shape {tuple(points.shape[:-1])} to go with keypoints, got {tuple(sure.shape)}")
            if not ((sure >= 0) & (sure <= 1)).all():
                raise ValueError(f"confidence must lie in 0..1, got values from {sure.min():.3g} to {sure.max():.3g}")
            sure = sure.to(points)[..., None]
            focal = camera.focal.to(points).reshape(*camera.focal.shape[:-1], *[1] * (points.ndim - camera.focal.ndim), 2)
            energy.weights[i] = energy.weights[i] * torch.where(sure > 0, detection_sigma(sure, focal) ** -2, 0.0)
        return energy

    @staticmethod
    def _weight(weights: Tensor | None, keypoints: Tensor, observed: Tensor) -> Tensor:
        if weights is None:
            return observed[..., None].to(keypoints)
        if weights.shape[-2:] != keypoints.shape[-2:]:
            weights = weights[..., None]
        if weights.shape[-2:] not in (keypoints.shape[-2:], (keypoints.shape[-2], 1)):
            raise ValueError(f"weights must have shape {tuple(keypoints.shape)}, with or without the last axis, got {tuple(weights.shape)}")
        weights = torch.where(observed[..., None], weights.to(keypoints), 0.0)
        if not torch.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weights must be finite and not negative")
        return weights

    def __call__(self, motion: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for camera, points, keypoints, weights in zip(self.cameras, self.points(motion), self.keypoints, self.weights):
            square = (weights.to(motion) * (camera.project(points) - keypoints.to(motion)).square()).sum(-1)
            total = total + self._robust(square).sum((-1, -2)) / 2
        return total / points.shape[-2] if self.reduction == "mean" else total

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        images = []
        for camera, points, keypoints, weights in zip(self.cameras, self.points(motion), self.keypoints, self.weights):
            weights = weights.to(motion)
            square = (weights * (camera.project(points) - keypoints.to(motion)).square()).sum(-1)
            weights = weights.expand(*weights.shape[:-1], 2) * self._slope(square)[..., None]
            images.append(torch.diag_embed(weights / points.shape[-2] if self.reduction == "mean" else weights))
        return self.lifted(motion, images)

    def _robust(self, square: Tensor) -> Tensor:
        scale = self.loss_scale**2
        if self.loss == "squared":
            return square
        if self.loss == "cauchy":
            return scale * torch.log1p(square / scale)
        return torch.where(square <= scale, square, 2 * (scale * square.clamp_min(scale)).sqrt() - scale)

    def _slope(self, square: Tensor) -> Tensor:
        """Derivative of `_robust`: what is left of a joint's weight."""
        scale = self.loss_scale**2
        if self.loss == "squared":
            return torch.ones_like(square)
        if self.loss == "cauchy":
            return 1 / (1 + square / scale)
        return (scale / square.clamp_min(scale)).sqrt()


class GaussianReprojectionEnergy(_SeenByCameras):
    """Negative log-likelihood of the keypoints under a Gaussian around the projected joints: -log N(y; π(X), Σ).

    Args:
        cameras, keypoints, root, joints, min_depth, hold_trajectory: as in `ReprojectionEnergy`.
        sigma: standard deviations, as `keypoints`.
        covariance: instead of `sigma`, `(..., frames, joints, 2, 2)`, or C of them: a detector's ellipses.
        reduction: "mean" over joints and axes (Platypose's), or the likelihood itself, "sum".

    Raises:
        ValueError: neither or both of sigma and covariance, ones that are not positive, or shapes that do not fit.
    """

    def __init__(
        self,
        cameras: Camera | Sequence[Camera],
        keypoints: Any,
        sigma: Any = None,
        covariance: Any = None,
        root: Any = None,
        reduction: str = "mean",
        joints: Sequence[int] | None = None,
        min_depth: float = 0.1,
        hold_trajectory: bool = False,
    ):
        super().__init__(cameras, root, joints, min_depth, hold_trajectory)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
        if (sigma is None) == (covariance is None):
            raise ValueError("pass sigma or covariance, one of the two")
        self.reduction, count, single = reduction, len(self.cameras), isinstance(cameras, Camera)
        self.keypoints = per_camera("keypoints", keypoints, count, single, trailing=(2,))
        if covariance is None:
            spread = per_camera("sigma", sigma, count, single, trailing=(2,))
            if any((s <= 0).any() or not torch.isfinite(s).all() for s in spread):
                raise ValueError("sigma must be finite and above 0")
            covariances = [torch.diag_embed(s.square()) for s in spread]
        else:
            covariances = per_camera("covariance", covariance, count, single, trailing=(2, 2))
        factors = [torch.linalg.cholesky_ex(c) for c in covariances]
        if any(bool(factor.info.any()) for factor in factors):
            raise ValueError("covariance must be positive definite")
        self.observed = [torch.isfinite(k).all(-1) for k in self.keypoints]
        self.keypoints = [torch.where(seen[..., None], k, 0.0) for seen, k in zip(self.observed, self.keypoints)]
        self.precisions = [torch.where(seen[..., None, None], torch.linalg.inv(c), 0.0) for seen, c in zip(self.observed, covariances)]
        log_volume = [f.L.diagonal(dim1=-2, dim2=-1).log().sum(-1) + math.log(2 * math.pi) for f in factors]
        self.log_volume = [torch.where(seen, volume, 0.0) for seen, volume in zip(self.observed, log_volume)]

    def __call__(self, motion: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for i, (camera, points) in enumerate(zip(self.cameras, self.points(motion))):
            difference = camera.project(points) - self.keypoints[i].to(motion)
            square = torch.einsum("...i,...ij,...j->...", difference, self.precisions[i].to(motion), difference)
            total = total + (square / 2 + self.log_volume[i].to(motion)).sum((-1, -2))
        return total / (2 * points.shape[-2]) if self.reduction == "mean" else total

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        joints = motion.shape[-2] if self.joints is None else len(self.joints)
        share = 1 / (2 * joints) if self.reduction == "mean" else 1.0
        return self.lifted(motion, [share * precision.to(motion) for precision in self.precisions])


class HeatmapEnergy(_SeenByCameras):
    """Negative log of a detector's heatmap at the projected joints, read off bilinearly.

    Args:
        cameras, root, joints, min_depth, hold_trajectory: as in `ReprojectionEnergy`.
        heatmaps: `(..., frames, joints, height, width)`, not negative, or C of them; each is divided by its sum.
        crop: `(4,)` or `(..., frames, 4)`, or C of them: the image region (left, top, right, bottom) of a map, in the camera's unit.
        floor: probability that is left everywhere, as a share of a uniform map's: a joint outside the map is unlikely, not impossible.

    Raises:
        ValueError: maps that are negative or empty, or shapes that do not fit.
    """

    def __init__(
        self,
        cameras: Camera | Sequence[Camera],
        heatmaps: Any,
        crop: Any,
        root: Any = None,
        joints: Sequence[int] | None = None,
        floor: float = 1e-3,
        min_depth: float = 0.1,
        hold_trajectory: bool = False,
    ):
        super().__init__(cameras, root, joints, min_depth, hold_trajectory)
        count, single = len(self.cameras), isinstance(cameras, Camera)
        floor = check_positive("floor", floor)
        maps = per_camera("heatmaps", heatmaps, count, single)
        crops = per_camera("crop", crop, count, single, trailing=(4,))
        self.maps, self.centres, self.halves, self.precisions = [], [], [], []
        for each, box in zip(maps, crops):
            total = each.sum((-1, -2), keepdim=True)
            if (each < 0).any() or not torch.isfinite(each).all() or (total <= 0).any():
                raise ValueError("heatmaps must be finite, not negative, and each must have a positive value somewhere")
            if ((box[..., 2:] - box[..., :2]) <= 0).any():
                raise ValueError(f"crop must be (left, top, right, bottom) with left < right and top < bottom, got {box.tolist()}")
            each = each / total
            # With frames and joints, which the boxes may lack.
            centre, half = ((box[..., 2:] + box[..., :2]) / 2)[..., None, :], ((box[..., 2:] - box[..., :2]) / 2)[..., None, :]
            self.maps.append((each + floor / each.shape[-1] / each.shape[-2]).log())
            self.centres.append(centre), self.halves.append(half)
            self.precisions.append(_precision(each, half))

    def __call__(self, motion: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for i, (camera, points) in enumerate(zip(self.cameras, self.points(motion))):
            place = (camera.project(points) - self.centres[i].to(motion)) / self.halves[i].to(motion)
            total = total - _read_off(self.maps[i].to(motion), place).sum((-1, -2))
        return total

    @torch.no_grad()
    def curvature(self, motion: Tensor) -> Tensor:
        return self.lifted(motion, [precision.to(motion) for precision in self.precisions])


def _read_off(maps: Tensor, place: Tensor) -> Tensor:
    """Maps `(..., height, width)` at places `(..., 2)` in -1..1 from edge to edge; beyond the edge, the edge's value."""
    shape = torch.broadcast_shapes(maps.shape[:-2], place.shape[:-1])
    maps = maps.expand(*shape, *maps.shape[-2:]).reshape(-1, 1, *maps.shape[-2:])
    place = place.expand(*shape, 2).reshape(-1, 1, 1, 2)
    return torch.nn.functional.grid_sample(maps, place, padding_mode="border", align_corners=False).reshape(shape)


def _precision(maps: Tensor, half: Tensor) -> Tensor:
    """Inverse covariance `(..., 2, 2)` of maps that sum to one, in the unit of the boxes' half sizes `(..., 2)`."""
    height, width = maps.shape[-2:]
    x, y = ((2 * torch.arange(n).to(maps) + 1) / n - 1 for n in (width, height))
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    mean = torch.einsum("...hw,hwi->...i", maps, grid)
    square = torch.einsum("...hw,hwi,hwj->...ij", maps, grid, grid) - mean[..., :, None] * mean[..., None, :]
    pixel = torch.diag(maps.new_tensor([1 / width, 1 / height]).square())  # a map of a single pixel is still as wide as a pixel
    return torch.linalg.inv((square + pixel) * half[..., :, None] * half[..., None, :])


def oracle_weights(keypoints: Tensor, true_keypoints: Tensor) -> Tensor:
    """Platypose's published weights, which need the ground truth: clip(1 / (80 e), 0, 2), e the error of each axis of a keypoint.

    For comparison with published numbers only; what a detector says of itself belongs into `confidence`.

    Args:
        keypoints, true_keypoints: `(..., joints, 2)` in units of 500 pixels. The root counts as 1/80 off, whatever its error.
    """
    error = (keypoints - true_keypoints).abs()
    error[..., 0, :] = 1 / 80
    return (1 / (80 * error)).clamp(0, 2)


def pinhole_jacobian(camera: Camera, points: Tensor) -> Tensor:
    """How the image moves with the joints `(..., joints, 2, 3)` at points in camera axes, the lens's distortion left out."""
    depth = points[..., 2:]
    slopes = points[..., :2] / depth
    jacobian = torch.cat([torch.eye(2).to(points).expand(*points.shape[:-1], 2, 2), -slopes[..., None]], dim=-1) / depth[..., None]
    focal = camera.focal.to(points)
    jacobian = jacobian * focal.reshape(*focal.shape[:-1], *[1] * (points.ndim - focal.ndim), 2)[..., None]
    if camera.rotation is None:
        return jacobian
    rotation = camera.rotation.to(points)
    return jacobian @ rotation.reshape(*rotation.shape[:-2], *[1] * (points.ndim - rotation.ndim + 1), 3, 3)


def per_camera(name: str, value: Any, count: int, single: bool, trailing: tuple[int, ...] = ()) -> list[Tensor]:
    """What was given for every camera, as a list of `count` floating tensors.

    Args:
        single: one camera was given by itself, so that `value` is its own; a list of one is still taken.
        trailing: axes that every tensor must end with.
    """
    listed = isinstance(value, (list, tuple)) and (len(value) == 1 or any(isinstance(v, Tensor) for v in value))
    values = [value] if single and not listed else list(value)
    if len(values) != count:
        raise ValueError(f"{name} must be given for every camera: {count} cameras, {name} for {len(values)}")
    tensors = [torch.as_tensor(v) for v in values]
    tensors = [t if t.is_floating_point() else t.float() for t in tensors]
    if trailing and any(tuple(t.shape[-len(trailing) :]) != trailing for t in tensors):
        raise ValueError(f"{name} must have shape (..., {', '.join(map(str, trailing))}), got {[tuple(t.shape) for t in tensors]}")
    return tensors
