"""What every probpose pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class ProbPosePipelineOutput(BaseOutput):
    """A distribution over 3D motion. PyTorch tensors, or NumPy arrays with `output_type="np"`; without `batch` if the input had none.

    Args:
        hypotheses: `(batch, num_hypotheses, frames, joints, 3)` metres, camera axes, relative to the root joint.
        pose: aggregated pose `(batch, frames, joints, 3)` metres, or None without an aggregator.
        uncertainty: `(batch, frames, joints)` metres: root-mean-square radius of the hypotheses about `pose`; of a calibrated call with a
            learned aggregator, the root-mean-square error that it predicts for `pose`.
        root: root trajectory `(batch, frames, 3)` metres in camera axes; estimated unless given.
        camera: the `Camera` that was used (the caller's, or the one guessed from the image size).
        radius: `(batch, frames, joints)` metres: the truth lies within it of `pose` in a stated share of the cases (split conformal; see
            `probpose.calibration.Recalibration`). None unless the call was calibrated and used the aggregator it was fitted for.
        lifted: `(batch, frames, joints, 3)` metres: what the lifter of a pipeline that has one says before any diffusion.
    """

    hypotheses: Any
    pose: Any = None
    uncertainty: Any = None
    root: Any = None
    camera: Any = None
    radius: Any = None
    lifted: Any = None
