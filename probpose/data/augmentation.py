"""What turns a motion into a training example: other bodies, virtual cameras, a detector's mistakes.

All functions are batched over windows; each window draws from its own random stream (`WindowRandom`), so that an example never depends
on its neighbours in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera, rotation_looking_along

# Human3.6M-17 order
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
FLIP = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)
# One length factor per bone kind, shared by left and right: hip, thigh, shin, spine, chest, neck, head, clavicle, upper arm, forearm
_BONE_KIND = (-1, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 9)


class WindowRandom:
    """One independent random stream per window, read in parallel: every draw has a leading window axis.

    Args:
        seed: seed of the whole stream of windows.
        indices: which windows of the stream these are.
    """

    def __init__(self, seed: int, indices: list[int]):
        self._generators = [np.random.default_rng((seed, index)) for index in indices]

    def __len__(self) -> int:
        return len(self._generators)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers `(windows, *shape)`."""
        return low + (high - low) * torch.from_numpy(np.stack([g.random(shape, dtype=np.float32) for g in self._generators]))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers `(windows, *shape)`."""
        return scale * torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in self._generators]))

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Booleans `(windows, *shape)`, true with the given probability."""
        return self.uniform(*shape) < probability


def mirror_motion(root: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror motions `(..., frames, 3)` and `(..., frames, 17, 3)` about the world's x = 0 plane, exchanging left and right."""
    sign = local.new_tensor([-1.0, 1.0, 1.0])
    return root * sign, (local * sign)[..., FLIP, :]


def scale_bones(local: Tensor, factors: Tensor) -> Tensor:
    """Other proportions, same joint directions: `local (windows, frames, 17, 3)`, `factors (windows, 10)` per bone kind."""
    joints = [torch.zeros_like(local[..., 0, :])]
    for joint in range(1, 17):
        parent = PARENTS[joint]
        bone = local[..., joint, :] - local[..., parent, :]
        joints.append(joints[parent] + bone * factors[:, _BONE_KIND[joint], None, None])
    return torch.stack(joints, dim=-2)


class _Variation:
    """Checks the fields of an augmentation: a number of at least 0, a range of two of them, a probability.

    Raises:
        ValueError: naming the field.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value, where = getattr(self, field.name), f"{type(self).__name__}.{field.name}"
            if isinstance(field.default, tuple):
                if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_size, value)) and value[0] <= value[1]):
                    raise ValueError(f"{where} must be a range (low, high) of numbers of at least 0, got {value!r}")
            elif not _is_size(value):
                raise ValueError(f"{where} must be a number of at least 0, got {value!r}")
            elif field.name.endswith("probability") and value > 1:
                raise ValueError(f"{where} must lie in 0..1, got {value!r}")


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


@dataclass
class BodyVariation(_Variation):
    """Random body proportions.

    Args:
        probability: share of windows that get another body.
        size: standard deviation of the log of the overall size.
        bones: standard deviation of the log of each bone kind's length.
    """

    probability: float = 0.5
    size: float = 0.06
    bones: float = 0.06

    def __call__(self, root: Tensor, local: Tensor, random: WindowRandom) -> tuple[Tensor, Tensor]:
        """Vary `root (windows, frames, 3)` and `local (windows, frames, 17, 3)` in metres."""
        changed = random.chance(self.probability, 1)
        size = random.normal(1, scale=self.size)
        logs = size + random.normal(10, scale=self.bones)
        factors = torch.where(changed, logs.clamp(-0.3, 0.3).exp(), 1.0)
        overall = torch.where(changed, size.clamp(-0.3, 0.3).exp(), 1.0)
        return root * overall[..., None], scale_bones(local, factors)


@dataclass
class CameraVariation(_Variation):
    """Random virtual cameras that look at the person.

    Args:
        distance: range of camera-to-person distance in metres, drawn log-uniformly.
        height: range of camera height above the floor for most windows, metres.
        high_probability, high_height: share of windows seen by raised (surveillance-like) cameras, and their heights.
        roll: standard deviation of camera roll, degrees.
        off_centre: how far from the image centre the person may stand, as a share of the (virtual) image's half size.
        unknown_probability: share of windows whose intrinsics are wrong, as when only the image size is known.
        focal_error: standard deviation of the log of the focal length's error in those windows.
    """

    distance: tuple[float, float] = (2.5, 14.0)
    height: tuple[float, float] = (0.6, 2.3)
    high_probability: float = 0.35
    high_height: tuple[float, float] = (0.2, 4.5)
    roll: float = 2.5
    off_centre: float = 0.7
    unknown_probability: float = 0.35
    focal_error: float = 0.22

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance[0] == 0:
            raise ValueError(f"CameraVariation.distance must begin above 0, got {self.distance!r}")

    def __call__(self, root: Tensor, local: Tensor, random: WindowRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Place a camera per window.

        Args:
            root: `(windows, frames, 3)`, local: `(windows, frames, 17, 3)`, metres, z up.

        Returns:
            Absolute joints in camera axes `(windows, frames, 17, 3)`; the slopes (X/Z, Y/Z) that the canonical camera would be told
            about, `(windows, frames, 17, 2)`, which carry the error of unknown intrinsics where there is one; and the cameras' rotations
            `(windows, 3, 3)` from the world.
        """
        windows = len(random)
        centre = root.mean(1)
        azimuth = random.uniform(1, low=-math.pi, high=math.pi)
        lo, hi = map(math.log, self.distance)
        distance = random.uniform(1, low=lo, high=hi).exp()
        high = random.chance(self.high_probability, 1)
        height = torch.where(high, random.uniform(1, low=self.high_height[0], high=self.high_height[1]),
                             random.uniform(1, low=self.height[0], high=self.height[1]))  # fmt: skip
        rise = (height - centre[:, 2:]).clamp(-0.8 * distance, 0.8 * distance)
        flat = (distance**2 - rise**2).sqrt()
        position = centre + torch.cat([flat * azimuth.cos(), flat * azimuth.sin(), rise], dim=-1)

        forward = torch.nn.functional.normalize(centre - position, dim=-1)
        look = rotation_looking_along(forward)
        # Turn the camera away from the person, but keep the person inside a 48 degree image; cameras tilt less than they pan.
        reach = (0.44 - 0.55 / distance).clamp_min(0.02) * self.off_centre
        offset = random.uniform(2, low=-1.0, high=1.0) * reach * torch.tensor([1.0, 0.6])
        look = _euler_yx(offset[:, 0], offset[:, 1]) @ look
        roll = random.normal(scale=math.radians(self.roll))
        zero, one = torch.zeros_like(roll), torch.ones_like(roll)
        spin = torch.stack([roll.cos(), -roll.sin(), zero, roll.sin(), roll.cos(), zero, zero, zero, one], -1)
        camera = Camera((1.0, 1.0), (0.0, 0.0), rotation=spin.unflatten(-1, (3, 3)) @ look, translation=torch.zeros(windows, 3))
        absolute = camera.to_camera(root[:, :, None] + local - position[:, None, None])
        slopes = absolute[..., :2] / absolute[..., 2:].clamp_min(0.2)

        unknown = random.chance(self.unknown_probability, 1, 1, 1)
        scale = random.normal(1, 1, 1, scale=self.focal_error).clamp(-0.55, 0.55).exp()
        shift = random.normal(1, 1, 2, scale=0.015)
        radial = random.normal(1, 1, 1, scale=0.08).clamp(-0.25, 0.25)
        wrong = slopes * (1 + radial * (slopes**2).sum(-1, keepdim=True)) * scale + shift
        return absolute, torch.where(unknown, wrong, slopes), camera.rotation


def _euler_yx(yaw: Tensor, pitch: Tensor) -> Tensor:
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn_y = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], -1).unflatten(-1, (3, 3))
    turn_x = torch.stack([one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()], -1)
    return turn_x.unflatten(-1, (3, 3)) @ turn_y


@dataclass
class DetectorNoise(_Variation):
    """Mistakes of a 2D detector: correlated jitter, outliers, left-right swaps, missing joints and frames, other head joints.

    Args:
        clean_probability: share of windows with true 2D and full confidence.
        jitter_pixels: range of the jitter's standard deviation for a 1000-pixel image of the canonical camera.
        jitter_extent: range of the additional jitter in units of the person's height.
        outlier_probability: per joint and frame.
        swap_probability, missing_probability, truncated_probability, coco_probability: share of windows with short left-right swaps;
            with joints that are not observed for a while; with the legs outside the image; with a spine and head as they are
            derived from COCO keypoints (spine half-way, neck and head unknown).
    """

    clean_probability: float = 0.15
    jitter_pixels: tuple[float, float] = (0.4, 3.0)
    jitter_extent: tuple[float, float] = (0.0, 0.008)
    outlier_probability: float = 0.02
    swap_probability: float = 0.25
    missing_probability: float = 0.25
    truncated_probability: float = 0.03
    coco_probability: float = 0.15

    def __call__(self, slopes: Tensor, random: WindowRandom) -> tuple[Tensor, Tensor]:
        """Corrupt slopes `(windows, frames, 17, 2)`; returns them with confidences `(windows, frames, 17)`, 0 where not observed."""
        windows, frames, joints, _ = slopes.shape
        height = (slopes[..., 1].amax((1, 2)) - slopes[..., 1].amin((1, 2)))[:, None, None, None]
        base = random.uniform(1, 1, 1, low=self.jitter_pixels[0], high=self.jitter_pixels[1]) / 1145
        sigma = base + random.uniform(1, 1, 1, low=self.jitter_extent[0], high=self.jitter_extent[1]) * height
        memory = random.uniform(1, 1, low=0.2, high=0.95)
        difficulty = (0.5 * _autoregressive(random.normal(frames, joints), memory)).exp()[..., None]
        noise = _autoregressive(random.normal(frames, joints, 2), memory[..., None]) * difficulty
        outlier = random.chance(self.outlier_probability, frames, joints)
        # Confidence says roughly how large the error is, in units of this detector's own jitter.
        error = noise.norm(dim=-1) + 0.4 * random.normal(frames, joints).abs()
        confidence = (random.uniform(1, 1, low=0.88, high=1.0) - random.uniform(1, 1, low=0.03, high=0.09) * error).clamp(0.05, 1)
        confidence = torch.where(outlier, random.uniform(frames, joints, low=0.02, high=0.6), confidence)
        wild = random.normal(frames, joints, 2) * (0.09 * height + 4 * sigma)
        noisy = slopes + torch.where(outlier[..., None], wild, noise * sigma)

        swapped = self._spell(random, self.swap_probability, frames, longest=6)
        limbs = torch.zeros(windows, joints, dtype=torch.bool)
        choice = random.uniform(1)
        limbs[:, [1, 2, 3, 4, 5, 6]] = choice < 0.7
        limbs[:, [11, 12, 13, 14, 15, 16]] = choice > 0.4
        swapped = swapped[..., None] & limbs[:, None]
        noisy = torch.where(swapped[..., None], noisy[:, :, FLIP], noisy)
        confidence = torch.where(swapped, confidence * 0.9, confidence)

        clean = random.chance(self.clean_probability, 1, 1)
        noisy = torch.where(clean[..., None], slopes, noisy)
        confidence = torch.where(clean, 1.0, confidence)

        coco = random.chance(self.coco_probability, 1, 1, 1)
        half_way = noisy.clone()
        half_way[:, :, 7] = (noisy[:, :, 0] + noisy[:, :, 8]) / 2
        noisy = torch.where(coco, half_way, noisy)
        hidden = torch.zeros(windows, frames, joints, dtype=torch.bool)
        hidden[:, :, [9, 10]] = coco[:, :, 0]

        hidden |= self._spell(random, self.missing_probability, frames, longest=frames)[..., None] & random.chance(0.25, 1, joints)
        hidden |= self._spell(random, self.missing_probability / 3, frames, longest=6)[..., None]
        truncated = random.chance(self.truncated_probability, 1, 1)
        hidden[:, :, [2, 3, 5, 6]] |= truncated
        return noisy, torch.where(hidden, 0.0, confidence)

    @staticmethod
    def _spell(random: WindowRandom, probability: float, frames: int, longest: int) -> Tensor:
        """Booleans `(windows, frames)`: in some windows one spell of consecutive frames."""
        start = (random.uniform(1) * frames).long()
        length = 1 + (random.uniform(1) * longest).long()
        frame = torch.arange(frames)
        return random.chance(probability, 1) & (frame >= start) & (frame < start + length)


def _autoregressive(noise: Tensor, memory: Tensor) -> Tensor:
    """First-order autoregressive noise of unit variance along axis 1; `memory` broadcasts against one frame."""
    out = [noise[:, 0]]
    innovation = (1 - memory**2).sqrt()
    memory, innovation = memory.reshape(-1, *[1] * (noise.ndim - 2)), innovation.reshape(-1, *[1] * (noise.ndim - 2))
    for frame in range(1, noise.shape[1]):
        out.append(memory * out[-1] + innovation * noise[:, frame])
    return torch.stack(out, dim=1)
