"""Fitting a pipeline's uncertainty on motions that its networks were not trained on.

Half of the clips kept out fit the recalibration of the hypotheses and the scale of a learned aggregator's uncertainty. The other half
measure both, and fit the conformal radius, whose promise holds only for cases that had no part in what it scales.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probpose.calibration import (
    Recalibration,
    conformal_quantile,
    coverage_curve,
    ece_of_curve,
    energy_score,
    fit_conformal,
    one_frame_per_clip,
    sharpness,
)
from probpose.calibration.recalibration import FEWEST_CASES
from probpose.geometry import Camera
from probpose.pipelines import ProbPosePipeline

from .aggregator import SAMPLING_BATCH, canonical_camera, draw_samples, held_out_windows, window_length
from .config import DataConfig
from .loop import split_clips

FRAMES_APART = 8  # neighbouring frames say the same


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did, measured on clips that had no part in it except for the radius.

    Args:
        curves: coverage `(21, joints)` of the hypotheses as "sampled" and "recalibrated".
        numbers: for both, `ece`, `sharpness_mm` and `energy_score_mm`.
        uncertainty_ratio: root-mean-square error of the pose over its uncertainty `(joints,)`; 1 is right.
        radius_mm: mean conformal radius.
        clips, windows: how many were used, both halves together.
        lengths: of the clips in frames, where the calibrator has tables for several.
    """

    curves: dict[str, Tensor]
    numbers: dict[str, dict[str, float]]
    uncertainty_ratio: Tensor
    radius_mm: float
    clips: int
    windows: int
    lengths: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python types; without the curves of single joints."""
        return {
            "clips": self.clips,
            "windows": self.windows,
            "lengths": self.lengths,
            "numbers": self.numbers,
            "median_joint_coverage": {name: curve.median(1).values.tolist() for name, curve in self.curves.items()},
            "uncertainty_ratio": self.uncertainty_ratio.tolist(),
            "radius_mm": self.radius_mm,
        }

    def to_text(self) -> str:
        rows = [f"{'':<14}{'ECE':>8}{'sharpness mm':>14}{'energy score mm':>17}"]
        rows += [f"{k:<14}{v['ece']:>8.3f}{v['sharpness_mm']:>14.1f}{v['energy_score_mm']:>17.1f}" for k, v in self.numbers.items()]
        return "\n".join(
            [
                f"{self.windows} windows of {self.clips} clips kept out of training; measured on half of them",
                *rows,
                f"error over uncertainty of the pose: {self.uncertainty_ratio.mean():.2f}; mean conformal radius {self.radius_mm:.0f} mm",
            ]
        )


def calibrate(
    pipe: ProbPosePipeline,
    data: DataConfig,
    *,
    windows: int = 1024,
    mode: str = "radial",
    coverage: float = 0.9,
    num_hypotheses: int | None = None,
    lengths: Sequence[int] | None = None,
    max_batch_size: int = 640,
    seed: int = 0,
    mixed_precision: bool = False,
) -> CalibrationReport:
    """Give a pipeline a `Recalibration` (its component `calibrator`) and scale its aggregator's uncertainty.

    Args:
        pipe: the pipeline, changed in place.
        data: archives, held-out share and augmentations, as in the recipe that it was trained by: the clips kept out are the same.
        windows: how many windows are drawn from the clips kept out.
        mode: what is adapted; see `Recalibration`.
        coverage: of the conformal radius.
        num_hypotheses: how many are drawn; best as many as will be used. Default: the pipeline's.
        lengths: of clips in frames, rising, that get tables of their own, see `Recalibration`: the middles of windows are cut to them.
            Default: windows as long as the model's, and one table for all.
        max_batch_size: as in the pipeline's call.
        seed: of the windows and hypotheses.
        mixed_precision: sample under bfloat16 autocast, which halves the time.

    Raises:
        ValueError: too few clips kept out or too few windows, an unknown mode, a coverage outside 0..1, lengths that the model does not
            take, or a pipeline that windows cannot be rendered for. The pipeline is as it was.
    """
    _, held_out = split_clips(data)
    names = held_out.names if held_out else []
    parts = [{name for name in names if zlib.crc32(f"half {name}".encode()) % 2 == half} for half in (0, 1)]
    if not all(parts):
        raise ValueError(
            f"data.validation_share: {data.validation_share} keeps {len(names)} clips out of training, too few to calibrate on one half of "
            "them and measure on the other"
        )
    camera = canonical_camera(pipe).to(pipe.device)
    window = window_length(pipe)
    if lengths is not None and not all(1 <= length <= window for length in lengths):
        raise ValueError(f"lengths must lie in 1..{window}, the model's window, got {list(lengths)}")
    shortest = window if lengths is None else min(lengths)
    fewest = max(64, 2 * math.ceil(FEWEST_CASES / len(range(0, shortest, FRAMES_APART))))
    if windows < fewest:
        raise ValueError(f"windows must be at least {fewest}, got {windows}")
    conformal_quantile(torch.zeros(windows // 2), coverage)  # complains now rather than when all hypotheses are drawn
    settings = pipe.settings(num_hypotheses=num_hypotheses)
    record = {name: getattr(settings, name) for name in settings.__dataclass_fields__ if name != "eta"}
    record |= {"clips": len(held_out), "windows": windows, "seed": seed}
    aggregation = pipe.config.default_aggregation or "mean"
    aggregator = pipe.choose_aggregator(aggregation)
    calibrator = Recalibration(pipe.num_output_joints, mode, coverage=coverage, aggregation=aggregation, fitted_with=record,
                               lengths=None if lengths is None else list(lengths))  # fmt: skip
    autocast = (lambda: torch.autocast(pipe.device.type, torch.bfloat16)) if mixed_precision else nullcontext

    def cases(half: int, purpose: str, length: int | None) -> _Cases:
        rendered = held_out_windows(data, pipe, held_out.select(parts[half].__contains__), windows // 2, seed + half)
        at = "" if length is None else f" at {length} frames"
        samples = draw_samples(pipe, rendered, settings.num_hypotheses, max_batch_size, autocast, f"sampling to {purpose}{at}", length)
        return _Cases.of(pipe, aggregator, samples, camera)

    each = [None] if lengths is None else list(lengths)
    fits, measures = ([cases(half, purpose, length) for length in each] for half, purpose in enumerate(("fit", "measure")))
    for length, fit in zip(each, fits):
        calibrator.fit(fit.hypotheses, fit.target, length)
    if fits[0].predicted is not None:
        scale = _root_mean_square(torch.cat([fit.error / fit.predicted for fit in fits]))
        pipe.aggregator.uncertainty_scale *= scale.to(pipe.aggregator.uncertainty_scale)
        for measure in measures:
            measure.predicted *= scale

    # The frames of a window, and windows, are a mere list of cases here, so each length brings its table.
    tables = [calibrator if length is None else calibrator.of_length(length) for length in each]
    recalibrated = [table(measure.hypotheses) for table, measure in zip(tables, measures)]
    target = torch.cat([measure.target for measure in measures])
    sets = {"sampled": torch.cat([measure.hypotheses for measure in measures], 1), "recalibrated": torch.cat(recalibrated, 1)}
    curves = {name: coverage_curve(hypotheses, target) for name, hypotheses in sets.items()}
    numbers = {
        name: {"ece": ece_of_curve(curves[name]), "sharpness_mm": sharpness(h), "energy_score_mm": energy_score(h, target)}
        for name, h in sets.items()
    }
    ratios, radii = [], []
    for length, measure, moved in zip(each, measures, recalibrated):
        uncertainty = measure.predicted
        if uncertainty is None:
            uncertainty = (moved - measure.pose).square().sum(-1).mean(0).sqrt()
        ratio = torch.where(measure.error > 0, measure.error / uncertainty.clamp_min(1e-9), 0.0)
        # Frames of one window are alike, those of different windows are drawn alike.
        drawn = one_frame_per_clip(ratio, [measure.per_window] * (windows // 2), torch.Generator().manual_seed(seed))
        factor = calibrator.table(length)["radius_factor"]
        factor[:] = fit_conformal(drawn, coverage=coverage)
        ratios.append(ratio)
        radii.append(1000 * (factor * uncertainty).mean())
    pipe.register_modules(calibrator=calibrator.eval().to(pipe.device))
    radius_mm, lengths = torch.stack(radii).mean().item(), None if lengths is None else tuple(lengths)
    return CalibrationReport(curves, numbers, _root_mean_square(torch.cat(ratios)), radius_mm, len(held_out), windows, lengths)


@dataclass
class _Cases:
    """Frames of windows: hypotheses `(K, cases, joints, 3)`, target, pose and its error, the uncertainty that an aggregator predicts."""

    hypotheses: Tensor
    target: Tensor
    pose: Tensor
    error: Tensor
    predicted: Tensor | None
    per_window: int

    @classmethod
    @torch.no_grad()
    def of(cls, pipe: ProbPosePipeline, aggregator: Any, samples: dict[str, Tensor], camera: Camera) -> _Cases:
        learned, parts = aggregator is getattr(pipe, "aggregator", None), []
        for first in range(0, len(samples["pose"]), SAMPLING_BATCH):
            batch = {name: value[first : first + SAMPLING_BATCH].to(pipe.device, torch.float32) for name, value in samples.items()}
            kept = FRAMES_APART
            if learned:  # looks at every frame on its own, while others estimate the root from all of them
                batch = {n: v[:, :, ::FRAMES_APART] if n == "hypotheses" else v[:, ::FRAMES_APART] for n, v in batch.items()}
                kept = 1
            out = aggregator(
                batch["hypotheses"], batch["keypoints_2d"], camera, batch["root"] if learned else None, batch["confidence"],
                pipe.denoiser.config.get("fps") or 30.0,
            )  # fmt: skip
            parts.append([value[:, ::kept].cpu() for value in (batch["pose"], out.pose, out.uncertainty)])
        target, pose, predicted = (torch.cat(values).flatten(0, 1) for values in zip(*parts))
        hypotheses = samples["hypotheses"][:, :, ::FRAMES_APART].float()
        per_window = hypotheses.shape[2]
        hypotheses = hypotheses.transpose(0, 1).flatten(1, 2)
        return cls(hypotheses, target, pose, (pose - target).norm(dim=-1), predicted if learned else None, per_window)


def _root_mean_square(ratio: Tensor) -> Tensor:
    """Per joint `(joints,)`; 1 where there is no error, like the root."""
    value = ratio.square().mean(0).sqrt()
    return torch.where(value > 0, value, 1.0)
