"""Rotations as matrices and unit quaternions (w, x, y, z)."""

from __future__ import annotations

import torch
from torch import Tensor


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Unit quaternions `(..., 4)` (w, x, y, z) to rotation matrices `(..., 3, 3)`; the input is normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_looking_along(forward: Tensor) -> Tensor:
    """World-to-camera rotations `(..., 3, 3)` of upright cameras (world z up, image y down) that look along `forward (..., 3)`.

    `forward` has unit length and is not vertical.
    """
    up = forward.new_tensor([0.0, 0.0, 1.0]).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)


def rotation_between_z_and(direction: Tensor) -> Tensor:
    """The shortest rotation `(..., 3, 3)` that takes the viewing axis (0, 0, 1) to `direction (..., 3)`, with z > -1.

    Rodrigues' formula about the axis `z × d`; it carries no twist about the viewing axis, so an upright person stays
    upright, and it commutes with mirroring x.
    """
    x, y, z = torch.nn.functional.normalize(direction, dim=-1).unbind(-1)
    k = 1 / (1 + z)
    rows = [1 - k * x * x, -k * x * y, x, -k * x * y, 1 - k * y * y, y, -x, -y, z]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
