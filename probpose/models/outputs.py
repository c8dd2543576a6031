"""What every backbone returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


@dataclass
class PoseModelOutput(BaseOutput):
    """Output of a pose backbone.

    Args:
        sample: predicted pose, same leading axes as the noisy pose: `(batch, frames, joints, 3)` or
            `(batch, hypotheses, frames, joints, 3)`, in the model's unit (metres unless its config says otherwise).
        features: what a lifter's last layer sees, `(batch, frames, joints, channels)`, or with a single joint where one vector stands for
            the whole frame; None unless asked for.
    """

    sample: torch.Tensor
    features: torch.Tensor | None = None
