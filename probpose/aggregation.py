"""From K hypotheses to one pose and a per-joint uncertainty.

Every aggregator is a module without weights that runs on the hypotheses' device. Oracles, which need the true pose, are not here but in
`probpose.metrics`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from probpose.geometry import REFERENCE_FOCAL, Camera, reprojection_error, root_of_hypotheses, select_by_reprojection


@dataclass
class AggregatorOutput(BaseOutput):
    """An aggregated pose.

    Args:
        pose: `(batch, frames, joints, 3)` metres.
        uncertainty: `(batch, frames, joints)` metres: root-mean-square radius of the hypotheses about `pose`.
    """

    pose: Tensor
    uncertainty: Tensor


class Aggregator(nn.Module):
    """Base class: subclasses implement `combine`; the uncertainty is the same for all."""

    needs_camera = False

    def forward(
        self,
        hypotheses: Tensor,
        keypoints_2d: Tensor | None = None,
        camera: Camera | None = None,
        root: Tensor | None = None,
        confidence: Tensor | None = None,
        fps: float = 30.0,
    ) -> AggregatorOutput:
        """Aggregate.

        Args:
            hypotheses: `(batch, num_hypotheses, frames, joints, 3)` metres, root-relative, camera axes.
            keypoints_2d: `(batch, frames, joints, 2)` pixels, NaN = not observed.
            camera: the camera that saw them.
            root: root trajectory `(batch, frames, 3)` metres; estimated from the keypoints if not given.
            confidence: `(batch, frames, joints)` in 0..1.
            fps: frame rate, used by the root estimate.

        Raises:
            ValueError: wrong rank, or an aggregator that reprojects lacks keypoints or camera.
        """
        if hypotheses.ndim != 5 or hypotheses.shape[-1] != 3:
            raise ValueError(f"hypotheses must have shape (batch, num_hypotheses, frames, joints, 3), got {tuple(hypotheses.shape)}")
        if self.needs_camera and (keypoints_2d is None or camera is None):
            raise ValueError(f"{type(self).__name__} compares reprojections: it needs keypoints_2d and camera")
        pose = self.combine(hypotheses, keypoints_2d, camera, root, confidence, fps)
        radius = (hypotheses - pose[:, None]).square().sum(-1).mean(1).sqrt()
        return AggregatorOutput(pose=pose, uncertainty=radius)

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        raise TypeError(f"{type(self).__name__} must implement combine")


class MeanAggregator(Aggregator):
    """Mean over the hypotheses (P-Agg of D3DP, ICCV 2023)."""

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        return hypotheses.mean(1)


class GeometricMedianAggregator(Aggregator):
    """Per joint the point with the least sum of distances to the hypotheses (Weiszfeld's iteration): the mean, robust to outliers.

    Args:
        iterations: Weiszfeld steps.
        smoothing: distances are kept above this many metres, which makes the iteration safe at a hypothesis.
    """

    def __init__(self, iterations: int = 20, smoothing: float = 1e-4):
        super().__init__()
        self.iterations, self.smoothing = iterations, smoothing

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        point = hypotheses.mean(1, keepdim=True)
        for _ in range(self.iterations):
            weight = 1 / (hypotheses - point).norm(dim=-1, keepdim=True).clamp_min(self.smoothing)
            point = (weight * hypotheses).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return point[:, 0]


class _Reprojecting(Aggregator):
    """Shares what JPMA and its soft relative need."""

    needs_camera = True

    @staticmethod
    def precision(keypoints_2d: Tensor, confidence: Tensor | None) -> Tensor:
        """How much a keypoint may decide, `(batch, frames, joints)`: its confidence, zero where it is not observed."""
        seen = torch.isfinite(keypoints_2d).all(-1)
        return seen.to(keypoints_2d.dtype) if confidence is None else torch.where(seen, confidence, 0.0)

    @staticmethod
    def pixels(sigma: float, camera: Camera, like: Tensor) -> Tensor:
        """A standard deviation stated for `REFERENCE_FOCAL` in this camera's pixels, `(batch or 1, 1, 1)`."""
        return sigma * camera.focal.mean(-1).reshape(-1, 1, 1).to(like) / REFERENCE_FOCAL


class JPMA(_Reprojecting):
    """Joint-wise reprojection-based multi-hypothesis aggregation (J-Agg of D3DP, ICCV 2023, §3.4).

    Per frame and joint the hypothesis whose reprojection is nearest to the keypoint; ties go to the lowest index. The result is a
    composite: its bones may come from different hypotheses. Joints without an observation take the mean, since their reprojection
    error says nothing.

    With the root trajectory given this is the published rule. Where it has to be estimated, or where keypoints are noisy, the
    nearest reprojection may be near by accident; then the joint moves from the mean towards the chosen hypothesis by the share
    `s² / (s² + (σ/c)²)`: s is the spread of the reprojected hypotheses, σ the noise of a keypoint and c its confidence.

    Args:
        keypoint_sigma: σ in pixels of a camera with a focal length of `REFERENCE_FOCAL`; it scales with the focal length. 0 is the
            published choice. None means 0 when the root is given and 1 when it is estimated.
    """

    def __init__(self, keypoint_sigma: float | None = None):
        super().__init__()
        if keypoint_sigma is not None and not keypoint_sigma >= 0:
            raise ValueError(f"keypoint_sigma must not be negative, got {keypoint_sigma}")
        self.keypoint_sigma = keypoint_sigma

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        sigma = self.keypoint_sigma if self.keypoint_sigma is not None else (1.0 if root is None else 0.0)
        if root is None:
            root = root_of_hypotheses(hypotheses, keypoints_2d, camera, confidence, fps)
        index = select_by_reprojection(reprojection_error(hypotheses, keypoints_2d, camera, root), dim=1)
        chosen = hypotheses.gather(1, index[:, None, ..., None].expand(-1, 1, -1, -1, 3))[:, 0]
        precision = self.precision(keypoints_2d, confidence)
        trust = (precision > 0).to(chosen)
        if sigma > 0:
            spread = camera.project(hypotheses + root[:, None, :, None]).var(1, correction=0).sum(-1)
            noise = (self.pixels(sigma, camera, chosen) / precision.clamp_min(1e-3)) ** 2
            trust = trust * spread / (spread + noise)
        return torch.lerp(hypotheses.mean(1), chosen, trust[..., None])


class ReprojectionWeightedAggregator(_Reprojecting):
    """Posterior expectation per joint: hypotheses weighted by `softmax(-error² / 2σ²)` of their reprojection errors.

    Args:
        sigma: σ in pixels of a camera with a focal length of `REFERENCE_FOCAL`; it scales with the focal length and with the
            inverse of the keypoint's confidence, so that a doubtful keypoint decides less.
    """

    def __init__(self, sigma: float = 1.5):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.sigma = sigma

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        if root is None:
            root = root_of_hypotheses(hypotheses, keypoints_2d, camera, confidence, fps)
        errors = reprojection_error(hypotheses, keypoints_2d, camera, root)
        scale = self.precision(keypoints_2d, confidence) / self.pixels(self.sigma, camera, errors)
        weights = torch.softmax(-((scale[:, None] * errors) ** 2) / 2, dim=1)
        return (weights[..., None] * hypotheses).sum(1)


AGGREGATORS: dict[str, type[Aggregator]] = {
    "mean": MeanAggregator,
    "jpma": JPMA,
    "median": GeometricMedianAggregator,
    "weighted": ReprojectionWeightedAggregator,
}


def get_aggregator(aggregation: str | nn.Module | None) -> nn.Module | None:
    """An aggregator from a name ("mean", "jpma", "median", "weighted"), an instance, or None.

    An instance is an `Aggregator`, or any module that is called like one and says by `needs_camera` whether it reprojects, such as the
    learned `probpose.models.AttentionAggregator`.

    Raises:
        ValueError: unknown name, or something that is not an aggregator.
    """
    if aggregation is None or (isinstance(aggregation, nn.Module) and hasattr(aggregation, "needs_camera")):
        return aggregation
    if isinstance(aggregation, str) and aggregation in AGGREGATORS:
        return AGGREGATORS[aggregation]()
    kind = aggregation.__name__ if inspect.isclass(aggregation) else repr(aggregation)
    raise ValueError(f"aggregation must be None, an Aggregator instance or one of {sorted(AGGREGATORS)}, got {kind}")
