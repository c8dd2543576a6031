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

from probpose.geometry import Camera, estimate_root, reprojection_error, select_by_reprojection


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
    """Shares what JPMA and its soft relative need: reprojection errors, with a root per hypothesis unless one is given."""

    needs_camera = True

    def errors(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        """Reprojection errors `(batch, num_hypotheses, frames, joints)` in pixels."""
        if root is None:
            root = estimate_root(hypotheses, keypoints_2d, camera, confidence, fps=fps)
        return reprojection_error(hypotheses, keypoints_2d, camera, root)

    @staticmethod
    def observed(keypoints_2d: Tensor, confidence: Tensor | None) -> Tensor:
        """Which joints say anything about the hypotheses, `(batch, frames, joints)`."""
        seen = torch.isfinite(keypoints_2d).all(-1)
        return seen if confidence is None else seen & (confidence > 0)


class JPMA(_Reprojecting):
    """Joint-wise reprojection-based multi-hypothesis aggregation (J-Agg of D3DP, ICCV 2023, §3.4).

    Per frame and joint the hypothesis whose reprojection is nearest to the keypoint; ties go to the lowest index. The result is a
    composite: its bones may come from different hypotheses. Joints without an observation take the mean, since their
    reprojection error carries no information.

    Args:
        confidence_weighted: trust the choice in proportion to the keypoint's confidence c: the joint is
            `c · chosen + (1 - c) · mean`. Off is the published rule.
    """

    def __init__(self, confidence_weighted: bool = False):
        super().__init__()
        self.confidence_weighted = confidence_weighted

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        index = select_by_reprojection(self.errors(hypotheses, keypoints_2d, camera, root, confidence, fps), dim=1)
        chosen = hypotheses.gather(1, index[:, None, ..., None].expand(-1, 1, -1, -1, 3))[:, 0]
        trust = self.observed(keypoints_2d, confidence).to(chosen)
        if self.confidence_weighted and confidence is not None:
            trust = trust * confidence
        return torch.lerp(hypotheses.mean(1), chosen, trust[..., None])


class ReprojectionWeightedAggregator(_Reprojecting):
    """Posterior expectation per joint: hypotheses weighted by `softmax(-error² / 2σ²)` of their reprojection errors.

    Args:
        sigma: σ in pixels of an image whose focal length is 1145 px (Human3.6M); it scales with the camera's focal length.
            Divided by the square root of the confidence, so that a doubtful keypoint decides less.
    """

    def __init__(self, sigma: float = 8.0):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.sigma = sigma

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps) -> Tensor:
        errors = self.errors(hypotheses, keypoints_2d, camera, root, confidence, fps)
        focal = camera.focal.mean(-1).reshape(-1, 1, 1, 1).to(errors)
        precision = self.observed(keypoints_2d, confidence).to(errors)
        if confidence is not None:
            precision = precision * confidence
        energy = precision[:, None] * (errors * 1145 / (focal * self.sigma)) ** 2 / 2
        return (torch.softmax(-energy, dim=1)[..., None] * hypotheses).sum(1)


AGGREGATORS: dict[str, type[Aggregator]] = {
    "mean": MeanAggregator,
    "jpma": JPMA,
    "median": GeometricMedianAggregator,
    "weighted": ReprojectionWeightedAggregator,
}


def get_aggregator(aggregation: str | Aggregator | None) -> Aggregator | None:
    """An aggregator from a name ("mean", "jpma", "median", "weighted"), an instance, or None.

    Raises:
        ValueError: unknown name, or something that is not an aggregator.
    """
    if aggregation is None or isinstance(aggregation, nn.Module):
        return aggregation
    if isinstance(aggregation, str) and aggregation in AGGREGATORS:
        return AGGREGATORS[aggregation]()
    kind = aggregation.__name__ if inspect.isclass(aggregation) else repr(aggregation)
    raise ValueError(f"aggregation must be None, an Aggregator instance or one of {sorted(AGGREGATORS)}, got {kind}")
