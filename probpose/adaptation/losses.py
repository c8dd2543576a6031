"""What adaptation minimises.

For augmentors: least-squares adversarial losses, and limits to how far poses may be changed (PoseAug, Gong et al., CVPR 2021, arXiv
2105.02465; PoseDA, Chai et al., ICCV 2023, arXiv 2303.16456). For multi-hypothesis lifters: the reprojection of the best hypothesis and the
distance of all to it (PoSynDA, Liu et al., ACM Multimedia 2023, arXiv 2308.09678).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probpose.geometry import Camera, reprojection_error, select_by_reprojection
from probpose.skeletons import Skeleton, get_skeleton

# ---------------------------------------------------------------------------------------------------------------------
# Augmentors against discriminators
# ---------------------------------------------------------------------------------------------------------------------


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least-squares loss of a discriminator (Mao et al., ICCV 2017): half of `mean (real - 1)² + mean fake²`, scores of any shape."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def generator_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Least-squares loss of a generator: half of `mean (fake - 1)²`.

    With the scores of real poses half of `mean real²` is added, as PoseAug reports it; no generator can change that part.
    """
    loss = (fake - 1).square().mean()
    return (loss if real is None else loss + real.square().mean()) / 2


def range_loss(value: Tensor, centre: float | Tensor, half_width: float | Tensor) -> Tensor:
    """Mean squared distance from the centre of an interval, of those values that lie outside it (PoseAug, eq. 6)."""
    squared = (value - centre).square()
    return (squared * (squared > half_width**2)).mean()


def bend_loss(bend: Tensor, centre: float = 0.205, half_width: float = 0.165) -> Tensor:
    """Keeps the mean bend of a pose's bones, `(..., bones)` as 1 - cos, within the interval: about 16° to 51°."""
    return range_loss(bend.mean(-1), centre, half_width)


def rectified_loss(ratio: Tensor, threshold: float = 0.1) -> Tensor:
    """Mean square of the length ratios that exceed a threshold."""
    return range_loss(ratio, 0.0, threshold)


def hardness_ratio(augmented_error: Tensor, original_error: Tensor, skeleton: str | Skeleton) -> Tensor:
    """How many times harder augmentation made a pose for the lifter.

    Args:
        augmented_error: `(..., joints)` the lifter's joint errors on the augmented pose.
        original_error: `(..., joints)` on the original one, in the same unit.
        skeleton: order of the joints.

    Returns:
        `(..., 3)`: hips and shoulders; knees, elbows and the head; ankles and wrists. The head counts half as much as a knee.

    Raises:
        ValueError: shapes that do not fit, or a skeleton that lacks one of these joints.
    """
    skeleton = get_skeleton(skeleton)
    names = skeleton.joint_names
    groups = [{f"{side}_{part}": 1.0 for side in ("left", "right") for part in pair} for pair in _HARDNESS_GROUPS]
    groups[1]["head_top" if "head_top" in names else "head"] = 0.5
    if missing := [name for group in groups for name in group if name not in names]:
        raise ValueError(f"skeleton {skeleton.name!r} lacks {missing}, which the hardness ratio needs")
    if augmented_error.shape != original_error.shape or augmented_error.shape[-1:] != (len(names),):
        shapes = f"{tuple(augmented_error.shape)} and {tuple(original_error.shape)}"
        raise ValueError(f"errors must both have shape (..., {len(names)}) for {skeleton.name!r}, got {shapes}")
    weights = augmented_error.new_tensor([[group.get(name, 0.0) for name in names] for group in groups])
    return (augmented_error @ weights.mT) / (original_error @ weights.mT).clamp_min(1e-6)


_HARDNESS_GROUPS = (("hip", "shoulder"), ("knee", "elbow"), ("ankle", "wrist"))


def feedback_loss(
    bent_ratio: Tensor, rotated_ratio: Tensor, progress: float, bend_weight: float = 0.1, turn_weight: float = 0.01
) -> Tensor:
    """Keeps augmented poses harder than the originals, but learnable.

    Args:
        bent_ratio: `hardness_ratio` after bending; held within 2 of a centre that rises from 3 to 5.
        rotated_ratio: the same after all transforms; held within 2 to 32.
        progress: share of the training done, 0..1.
        bend_weight, turn_weight: of the two parts.

    Raises:
        ValueError: progress outside 0..1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in 0..1, got {progress}")
    return bend_weight * range_loss(bent_ratio, 3 + 2 * progress, 2.0) + turn_weight * range_loss(rotated_ratio, 17.0, 15.0)


# ---------------------------------------------------------------------------------------------------------------------
# Hypotheses against keypoints
# ---------------------------------------------------------------------------------------------------------------------


class MultiHypothesisLoss(NamedTuple):
    """Losses of a set of hypotheses.

    Attributes:
        total: `weight_2d · l2d + weight_3d · l3d`.
        l2d: mean reprojection error of each joint's best hypothesis, in the unit of the keypoints.
        l3d: mean distance of all hypotheses from the label, in the unit of the poses.
        composite: each joint from its best hypothesis, `(*batch, *extra, frames, joints, 3)`; the label where none was given.
    """

    total: Tensor
    l2d: Tensor
    l3d: Tensor
    composite: Tensor


def best_hypothesis_composite(hypotheses: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Each joint from the hypothesis that reprojects best (JPMA of D3DP, ICCV 2023); ties go to the first.

    Args:
        hypotheses: `(..., hypotheses, frames, joints, 3)`.
        errors: `(..., hypotheses, frames, joints)`, from `probpose.geometry.reprojection_error`.

    Returns:
        The composite `(..., frames, joints, 3)` and its errors `(..., frames, joints)`.

    Raises:
        ValueError: shapes that do not fit.
    """
    if errors.ndim < 3 or hypotheses.shape != (*errors.shape, 3):
        shapes = f"{tuple(hypotheses.shape)} and {tuple(errors.shape)}"
        raise ValueError(f"hypotheses (..., hypotheses, frames, joints, 3) and errors, the same without the 3, do not fit: got {shapes}")
    index = select_by_reprojection(errors, dim=-3).unsqueeze(-3)
    composite = torch.take_along_dim(hypotheses, index[..., None], dim=-4).squeeze(-4)
    return composite, torch.take_along_dim(errors, index, dim=-3).squeeze(-3)


def multi_hypothesis_loss(
    hypotheses: Tensor,
    keypoints_2d: Tensor,
    camera: Camera | Tensor,
    root: Tensor,
    label: Tensor | None = None,
    *,
    weight_2d: float | None = None,
    weight_3d: float = 1000.0,
    detach: bool = True,
    max_error: float | None = None,
) -> MultiHypothesisLoss:
    """PoSynDA's loss: the best hypothesis reprojects onto the keypoints, and all of them agree with the label.

    Without a label (target domain) the composite of the best hypotheses takes its place. Joints that are not observed have no best
    hypothesis: their mean stands in the composite, and they count in neither loss.

    Args:
        hypotheses: root-relative poses `(*batch, *extra, hypotheses, frames, joints, 3)`, metres, camera axes; `extra` may be an axis of
            sampling steps.
        keypoints_2d: `(*batch, frames, joints, 2)` in the camera's unit, NaN = not observed.
        camera: as in `probpose.geometry.reprojection_error`.
        root: root trajectory `(*batch, frames, 3)`, or one per hypothesis, metres.
        label: true poses `(*batch, frames, joints, 3)`, metres (source domain).
        weight_2d: None: as published, 0.5 without and 0.1 with a label, for keypoints in pixels.
        weight_3d: published is 1 for poses in millimetres, hence 1000 for metres.
        detach: no gradient flows into the composite as a label; False as released.
        max_error: the composite teaches only joints that reproject at least as well as this.

    Raises:
        ValueError: shapes that do not fit.
    """
    extra = hypotheses.ndim - keypoints_2d.ndim
    if extra < 1:
        raise ValueError(f"hypotheses must have an axis that keypoints_2d {tuple(keypoints_2d.shape)} lack, got {tuple(hypotheses.shape)}")
    composite, errors = best_hypothesis_composite(hypotheses, reprojection_error(hypotheses, keypoints_2d, camera, root))
    *batch, frames, joints, _ = keypoints_2d.shape
    observed = keypoints_2d.isfinite().all(-1).reshape(*batch, *[1] * (extra - 1), frames, joints).expand_as(errors)
    composite = torch.where(observed[..., None], composite, hypotheses.mean(-4))

    counts = observed if label is None else torch.ones_like(observed)
    if label is None:
        label = composite.detach() if detach else composite
        weight_2d = 0.5 if weight_2d is None else weight_2d
        if max_error is not None:
            counts = counts & (errors <= max_error)
    else:
        if label.shape != (*batch, frames, joints, 3):
            raise ValueError(f"label must have shape {(*batch, frames, joints, 3)}, got {tuple(label.shape)}")
        label = label.to(hypotheses).reshape(*batch, *[1] * (extra - 1), frames, joints, 3)
        weight_2d = 0.1 if weight_2d is None else weight_2d
    distances = torch.linalg.vector_norm(hypotheses - label.unsqueeze(-4), dim=-1)
    l2d, l3d = _mean(errors, observed), _mean(distances, counts.unsqueeze(-3).expand_as(distances))
    return MultiHypothesisLoss(weight_2d * l2d + weight_3d * l3d, l2d, l3d, composite)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)
