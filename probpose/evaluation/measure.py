"""What one clip gives: the errors of every setting, motion, calibration. Plain numbers come out, to be averaged by the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from probpose.aggregation import get_aggregator
from probpose.calibration import coverage_curve, energy_score, sharpness
from probpose.geometry import Camera, procrustes_align, reprojection_error, select_by_reprojection
from probpose.metrics import (
    acceleration_error,
    auc,
    bone_length_deviation,
    j_best,
    joint_groups,
    joint_limit_violations,
    mpjpe,
    mpjve,
    p_best,
    pck,
    structure_centres,
    structure_scores,
    symmetry_error,
)
from probpose.skeletons import get_skeleton

from .protocols import EPIPOLAR_JOINTS, SETTINGS, Protocol

PREFIXES = {1: "", 2: "p2_", 3: "p3_"}
"""What the settings' keys begin with under protocols 1 (as it is), 2 (aligned) and 3 (scaled)."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What a pipeline made of one clip, beside the truth. The first axis holds the windows it was cut into; usually there is one.

    Args:
        hypotheses: `(windows, num_hypotheses, frames, joints, 3)` metres, relative to the root.
        recalibrated: the same after the pipeline's calibrator, or None.
        attention: `(windows, frames, joints, 3)` metres, the pose that the pipeline's learned aggregator makes, or None.
        lifted: the same of the pipeline's lifter, or None.
        default: what a calibrated call gives by default, or None: pose `(windows, frames, joints, 3)`, uncertainty and conformal radius
            `(windows, frames, joints)`, metres.
        truth: `(windows, frames, joints, 3)` metres, relative to the root; NaN = not known.
        scored: `(windows, frames)` frames that count.
        true_root, root: `(windows, frames, 3)` metres, the true trajectory and the pipeline's.
        keypoints_2d, confidence: `(windows, frames, joints, 2)` pixels and `(windows, frames, joints)`, in the output's joints.
        true_camera, camera: the clip's, and the one that the pipeline worked with.
        fps: frames per second.
        skeleton, root_index: of the output.
        quirks: see `QUIRKS`.
    """

    hypotheses: Tensor
    recalibrated: Tensor | None
    attention: Tensor | None
    lifted: Tensor | None
    default: tuple[Tensor, Tensor, Tensor] | None
    truth: Tensor
    scored: Tensor
    true_root: Tensor
    root: Tensor
    keypoints_2d: Tensor
    confidence: Tensor
    true_camera: Camera
    camera: Camera
    fps: float
    skeleton: str
    root_index: int
    quirks: tuple[str, ...] = ()

    @cached_property
    def target(self) -> Tensor:
        """The truth in double precision, zero where it is not known."""
        return torch.nan_to_num(self.truth.double())

    @cached_property
    def known(self) -> Tensor:
        """Entries `(windows, frames, joints)` that an alignment may use."""
        return self.scored[..., None] & torch.isfinite(self.truth).all(-1)

    @cached_property
    def counted(self) -> Tensor:
        """Entries `(windows, frames, joints)` that enter means."""
        joints = torch.ones(self.truth.shape[-2], dtype=torch.bool)
        if "epipolar_14_joints" in self.quirks:
            joints[:] = False
            joints[list(EPIPOLAR_JOINTS)] = True
        if "exclude_root" in self.quirks:
            joints[self.root_index] = False
        return self.known & joints

    @cached_property
    def mean(self) -> Tensor:
        return self.hypotheses.double().mean(1)

    @cached_property
    def nearest(self) -> Tensor:
        """The published choice of JPMA `(windows, frames, joints)`: the hypothesis that reprojects nearest, given root and camera."""
        root = torch.nan_to_num(self.true_root)
        return select_by_reprojection(reprojection_error(self.hypotheses, self.keypoints_2d, self.true_camera, root), dim=1)

    def aggregated(self, settings: Iterable[str]) -> dict[str, Tensor]:
        """Poses `(windows, frames, joints, 3)` of those settings that need no truth; the root is estimated as in the pipeline."""
        poses = {"p_agg": self.mean}
        for name, aggregator in (("j_agg", "jpma"), ("weighted", "weighted")):
            if name in settings:
                out = get_aggregator(aggregator)(self.hypotheses, self.keypoints_2d, self.camera, None, self.confidence, self.fps)
                poses[name] = out.pose.double()
        learned = {"attention": self.attention, "lifter": self.lifted}
        return poses | {name: pose.double() for name, pose in learned.items() if pose is not None}

    def align(self, poses: Tensor) -> Tensor:
        """Poses `(windows, [num_hypotheses,] frames, joints, 3)` after the similarity that takes each frame nearest to the truth."""
        target, known = self._beside(poses)
        aligned = procrustes_align(poses, target, weights=known)
        if "recentred_pa" in self.quirks:
            aligned = aligned + (target - aligned)[..., self.root_index, None, :]
        return aligned

    def rescale(self, poses: Tensor) -> Tensor:
        """Poses after the factor that takes each frame nearest to the truth."""
        target, known = self._beside(poses)
        weighted, tiny = known[..., None] * poses, torch.finfo(torch.float64).tiny
        factor = (weighted * target).sum((-2, -1), keepdim=True) / (weighted * poses).sum((-2, -1), keepdim=True).clamp_min(tiny)
        if "procrustes_n_mpjpe" in self.quirks:
            before, after = (
                torch.linalg.matrix_norm(p - p[..., self.root_index, None, :], keepdim=True)
                for p in (poses, procrustes_align(poses, target, weights=known))
            )
            factor = after / before.clamp_min(tiny)
        return factor * poses

    def _beside(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Target and known entries, as 0 and 1, with an axis for the hypotheses if the poses have one."""
        target, known = self.target, self.known.double()
        return (target, known) if poses.ndim == target.ndim else (target.unsqueeze(1), known.unsqueeze(1))


def measure(sample: Sample, protocol: Protocol) -> tuple[dict[str, float], dict[str, list[float]], dict[str, list[list[float]]]]:
    """Everything that a protocol asks of a clip.

    Returns:
        values by key of `METRICS`, and `KEY/GROUP` for groups of joints; the mean error of each joint in mm by key; and coverage
        `(quantiles, joints)`, "raw" and "recalibrated". NaN stands for what this clip cannot tell.
    """
    wanted = protocol.metrics
    aggregated = sample.aggregated({name for name in SETTINGS for prefix in PREFIXES.values() if f"{prefix}{name}" in wanted})
    values: dict[str, float] = {}
    per_joint: dict[str, list[float]] = {}
    for number, prefix in PREFIXES.items():
        settings = [name for name in SETTINGS if f"{prefix}{name}" in wanted]
        for name, pose in setting_poses(sample, number, settings, aggregated, protocol.p_best_windows).items():
            values[f"{prefix}{name}"] = _mean(mpjpe, pose, sample)
            per_joint[f"{prefix}{name}"] = _joint_means(pose, sample)
            if number == 1 and f"pck_{name}" in wanted:
                values |= _threshold_scores(name, pose, sample)
    mean, divisor = sample.mean, "frames" if "acceleration_over_all_frames" in sample.quirks else "correct"
    others: dict[str, Callable[[], float]] = {
        "pa_mpjpe": lambda: _mean(mpjpe, sample.align(mean), sample),
        "n_mpjpe": lambda: _mean(mpjpe, sample.rescale(mean), sample),
        "mpjve": lambda: _mean(mpjve, mean, sample, order=1),
        "acceleration": lambda: _mean(partial(acceleration_error, divisor=divisor), mean, sample, order=2),
        "uncertainty": lambda: _uncertainty(sample),
        "root": lambda: mpjpe(sample.root[:, :, None], torch.nan_to_num(sample.true_root)[:, :, None], sample.scored),
        "min_mpjpe": lambda: _mean_of_best(sample.hypotheses, sample),
        "min_pa_mpjpe": lambda: _mean_of_best(sample.align(sample.hypotheses.double()), sample),
    }
    values |= {name: compute() for name, compute in others.items() if name in wanted}
    coverage = {}
    for suffix, kind, hypotheses in (("", "raw", sample.hypotheses), ("_calibrated", "recalibrated", sample.recalibrated)):
        if hypotheses is not None and hypotheses.shape[1] > 1:
            scores, coverage[kind] = _calibration(sample, hypotheses)
            values |= {f"{name}{suffix}": value for name, value in (scores | _plausibility(sample, hypotheses)).items()}
    if sample.default is not None:
        values |= _promises(sample, *sample.default)
    return values, per_joint, coverage


def setting_poses(
    sample: Sample, protocol: int, settings: list[str], aggregated: dict[str, Tensor], p_best_windows: int = 1
) -> dict[str, Tensor]:
    """The pose `(windows, frames, joints, 3)` that each setting is judged by.

    Under protocols 2 and 3 every hypothesis is moved onto the truth on its own: what J-Agg* and the oracles choose keeps the place it
    has in its own hypothesis, and J-Agg* chooses before. Poses that an aggregator makes are moved as they are.

    Args:
        sample: one clip.
        protocol: 1, 2 or 3.
        settings: keys of `SETTINGS`.
        aggregated: poses of those settings that need no truth.
        p_best_windows: windows that share a choice, under the quirk `p_best_batch`.
    """
    move = {1: lambda poses: poses, 2: sample.align, 3: sample.rescale}[protocol]
    poses = {name: move(pose) for name, pose in aggregated.items() if name in settings}
    if not {"j_agg_true_root", "p_best", "j_best"} & set(settings):
        return poses
    moved = move(sample.hypotheses.double())
    poses["j_agg_true_root"] = torch.take_along_dim(moved, sample.nearest[:, None, ..., None], dim=1)[:, 0]
    batch = "p_best_batch" in sample.quirks
    # The published choice looks at all frames; who asks for a clip's best motion asks for the scored ones.
    considered = torch.isfinite(sample.truth).all(-1) if batch else sample.counted
    groups = [value.split(p_best_windows if batch else 1) for value in (moved, sample.target, considered)]
    poses["p_best"] = torch.cat([p_best(h, truth, "batch", mask=mask)[0] for h, truth, mask in zip(*groups)])
    poses["j_best"] = j_best(moved, sample.target)[0]
    return {name: pose for name, pose in poses.items() if name in settings}


def _mean(metric: Callable[..., float], pose: Tensor, sample: Sample, order: int = 0) -> float:
    return metric(pose, sample.target, mask=sample.counted) if _runs(sample.counted, order).any() else math.nan


def _runs(mask: Tensor, order: int) -> Tensor:
    """Entries `(windows, frames - order, joints)` whose next `order` frames are valid too."""
    for _ in range(order):
        mask = mask[:, 1:] & mask[:, :-1]
    return mask


def _joint_means(pose: Tensor, sample: Sample) -> list[float]:
    errors = torch.linalg.vector_norm(pose - sample.target, dim=-1)
    sums = (errors * sample.counted).sum((0, 1))
    return (1000 * sums / sample.counted.sum((0, 1))).tolist()


def _threshold_scores(setting: str, pose: Tensor, sample: Sample) -> dict[str, float]:
    """PCK and AUC in percent: over all joints of the groups, and by group."""
    groups = joint_groups(sample.skeleton)
    everything = [joint for joints in groups.values() for joint in joints]
    scores = {}
    for suffix, joints in {"": everything, **{f"/{group}": list(joints) for group, joints in groups.items()}}.items():
        poses, target, mask = (value[:, :, joints] for value in (pose, sample.target, sample.counted))
        for name, metric in (("pck", pck), ("auc", auc)):
            scores[f"{name}_{setting}{suffix}"] = metric(poses, target, mask=mask) if mask.any() else math.nan
    return scores


def _mean_of_best(hypotheses: Tensor, sample: Sample) -> float:
    """Error in mm of the best hypothesis of each frame."""
    return _mean(mpjpe, p_best(hypotheses, sample.target, "frame", mask=sample.counted)[0], sample)


def _uncertainty(sample: Sample) -> float:
    radius = (sample.hypotheses.double() - sample.mean[:, None]).square().sum(-1).mean(1).sqrt()
    return 1000 * radius[sample.counted].mean().item()


def _calibration(sample: Sample, hypotheses: Tensor) -> tuple[dict[str, float], list[list[float]]]:
    """Scores in mm, and the coverage curve; the windows of a clip are one stretch of frames."""
    frames = hypotheses.transpose(0, 1).flatten(1, 2)
    target, mask = sample.target.flatten(0, 1), sample.counted.flatten(0, 1)
    released: dict[str, Any] = {"single_frame": "released"} if "single_frame_ece" in sample.quirks else {}
    scores = {"sharpness": sharpness(frames, mask=mask), "energy_score": energy_score(frames, target, mask=mask)}
    return scores, coverage_curve(frames, target, mask=mask, **released).tolist()


def _plausibility(sample: Sample, hypotheses: Tensor) -> dict[str, float]:
    """Whether hypotheses are bodies, as far as the skeleton lets us tell."""
    frames, known = hypotheses.transpose(0, 1).flatten(1, 2), sample.known.flatten(0, 1)
    skeleton = get_skeleton(sample.skeleton)
    values = {"bones": bone_length_deviation(frames, skeleton.bones, known)}
    if skeleton.flip_pairs:
        values["symmetry"] = symmetry_error(frames, skeleton.bones, skeleton.flip_pairs, known)
    whole = known.all(-1)
    if sample.skeleton == "h36m_17" and whole.any():
        values["limits"] = joint_limit_violations(frames, mask=known)
        values["pss"] = structure_scores(frames[:, whole], sample.target.flatten(0, 1)[whole], structure_centres(50))["expected"]
    return values


def _promises(sample: Sample, pose: Tensor, uncertainty: Tensor, radius: Tensor) -> dict[str, float]:
    counted = sample.counted.clone()
    counted[..., sample.root_index] = False  # which is right by definition
    error = torch.linalg.vector_norm(pose.double() - sample.target, dim=-1)[counted]
    return {
        "within_uncertainty": 100 * (error <= uncertainty[counted]).double().mean().item(),
        "within_radius": 100 * (error <= radius[counted]).double().mean().item(),
        "radius": 1000 * radius[counted].mean().item(),
    }
