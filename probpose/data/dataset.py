"""Training windows rendered on the fly."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .augmentation import BodyVariation, CameraVariation, DetectorNoise, WindowRandom, mirror_motion
from .mocap import MocapClips


class TrainingWindows(Dataset):
    """An endless, reproducible stream of training windows: window i is a pure function of (seed, i).

    Every window is a random stretch of a random clip with a random body, mirrored half of the time, seen by a random virtual camera
    through a detector's mistakes.

    Args:
        clips: the motions.
        num_frames: window length; shorter clips are padded by repeating their last frame.
        num_windows: length of the stream.
        source_weights: share of the windows per source (`MocapClips.sources`); default in proportion to frames.
        canonical_camera: `[fx, fy, cx, cy]` in screen units of the camera that the keypoints are expressed in.
        body, camera, detector: the augmentations; None for the detector gives true 2D.
        seed: seed of the stream.
        axes: "camera", or "world": nobody looks on, and every window is turned about the vertical at random.

    An item is a dict: keypoints_2d `(frames, 17, 2)` in screen units of the canonical camera, confidence `(frames, 17)`,
    keypoints_true `(frames, 17, 2)` without the detector's mistakes,
    pose `(frames, 17, 3)` root-relative metres in camera axes, root `(frames, 3)` metres, up `(frames, 3)` the vertical in camera axes.
    In world axes pose and root alone.
    """

    def __init__(
        self,
        clips: MocapClips,
        num_frames: int = 27,
        num_windows: int = 100_000,
        source_weights: dict[str, float] | None = None,
        canonical_camera: tuple[float, float, float, float] = (2.29, 2.29, 0.0, 0.0),
        body: BodyVariation | None = None,
        camera: CameraVariation | None = None,
        detector: DetectorNoise | None = None,
        seed: int = 0,
        axes: str = "camera",
    ):
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        if axes not in ("camera", "world"):
            raise ValueError(f"axes must be 'camera' or 'world', got {axes!r}")
        self.axes = axes
        self.clips, self.num_frames, self.num_windows, self.seed = clips, num_frames, num_windows, seed
        self.canonical_camera = torch.tensor(canonical_camera)
        self.body, self.camera, self.detector = body, camera or CameraVariation(), detector
        lengths = (clips.starts[1:] - clips.starts[:-1]).double()
        if source_weights is not None:
            unknown = set(source_weights) - set(clips.sources)
            if unknown:
                raise ValueError(f"source_weights names {sorted(unknown)}, but the clips come from {sorted(set(clips.sources))}")
            source = torch.tensor([sorted(source_weights).index(s) if s in source_weights else -1 for s in clips.sources])
            for i, name in enumerate(sorted(source_weights)):
                lengths[source == i] *= source_weights[name] / lengths[source == i].sum()
            lengths[source == -1] = 0
        self._cumulative = (lengths / lengths.sum()).cumsum(0)

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        batch = self.render(indices)
        return [{key: value[i] for key, value in batch.items()} for i in range(len(indices))]

    def render(self, indices: list[int]) -> dict[str, Tensor]:
        """The windows with these numbers as one batch (what a loader with `collate_fn` of identity would stack)."""
        random = WindowRandom(self.seed, indices)
        clip = torch.searchsorted(self._cumulative, random.uniform(1).double()).squeeze(1).clamp_max(len(self.clips) - 1)
        start, stop = self.clips.starts[clip], self.clips.starts[clip + 1]
        room = (stop - start - self.num_frames).clamp_min(0) + 1
        first = start + (random.uniform(1).squeeze(1) * room).long().minimum(room - 1)
        frames = (first[:, None] + torch.arange(self.num_frames)).minimum(stop[:, None] - 1)
        root, local = self.clips.root[frames], self.clips.local[frames]

        mirrored = random.chance(0.5, 1, 1)
        root_m, local_m = mirror_motion(root, local)
        root, local = torch.where(mirrored, root_m, root), torch.where(mirrored[..., None], local_m, local)
        if self.body is not None:
            root, local = self.body(root, local, random)
        if self.axes == "world":
            turn = _about_the_vertical(random.uniform(1, low=-math.pi, high=math.pi))
            return {"pose": torch.einsum("bij,bftj->bfti", turn, local), "root": torch.einsum("bij,bfj->bfi", turn, root)}
        absolute, slopes, rotation = self.camera(root, local, random)
        true = slopes
        if self.detector is not None:
            slopes, confidence = self.detector(slopes, random)
        else:
            confidence = torch.ones(slopes.shape[:-1])
        keypoints, true = (points * self.canonical_camera[:2] + self.canonical_camera[2:] for points in (slopes, true))
        return {
            "keypoints_2d": keypoints,
            "confidence": confidence,
            "keypoints_true": true,
            "pose": absolute - absolute[:, :, :1],
            "root": absolute[:, :, 0],
            "up": rotation[:, None, :, 2].expand(-1, self.num_frames, -1),
        }


def _about_the_vertical(angle: Tensor) -> Tensor:
    """Rotations `(windows, 3, 3)` about the z axis by angles `(windows, 1)`."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    return torch.cat(rows, dim=-1).unflatten(-1, (3, 3))
