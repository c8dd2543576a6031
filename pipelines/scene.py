"""What one or several cameras saw of a motion, in axes that they share, and how sampled motions are guided towards it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from probpose.geometry import Camera, estimate_root
from probpose.guidance import Energy, ReprojectionEnergy
from probpose.mixtures import DOUBT, SURE

CANONICAL = (2.29, 2.29, 0.0, 0.0)
"""Focal lengths and centre, in screen units, of the lens that all keypoints are re-expressed in: Human3.6M's."""

_OUTLIER = 3.0
"""Standard deviations beyond which a keypoint begins to lose its hold."""

_SPREAD = 0.3
"""Metres: standard deviation of root-relative joints over motion capture."""

_FOCALS = torch.linspace(-0.6, 0.6, 13)
_FOCAL_SPREAD = 0.25
"""Logs of the focal lengths that are tried, as factors on the assumed one, and how far off an assumed one usually is."""


@dataclass
class Scene:
    """Cameras and their keypoints, all behind the canonical lens.

    The scene's axes are the world's if the cameras have extrinsics, otherwise those of the one camera.

    Args:
        cameras: with the canonical lens; where they stand is theirs.
        keypoints: per camera `(batch, frames, joints, 2)` in screen units; whatever stands where nothing was observed.
        confidence: per camera `(batch, frames, joints)`, 0 = not observed.
        fps: frame rate.
        focal_factor: `(batch,)`, what the assumed focal length has been corrected by.
    """

    cameras: list[Camera]
    keypoints: list[Tensor]
    confidence: list[Tensor]
    fps: float = 30.0
    focal_factor: Tensor = field(default_factory=lambda: torch.ones(1))

    @staticmethod
    def behind_canonical_lens(camera: Camera | None) -> Camera:
        """The canonical lens where this camera stands."""
        lens = Camera(CANONICAL[:2], CANONICAL[2:], slope_limit=math.inf)
        if camera is None or camera.rotation is None or camera.translation is None:
            return lens
        return replace(lens, rotation=camera.rotation, translation=camera.translation)

    @property
    def in_world(self) -> bool:
        """Whether the scene's axes are the world's."""
        return self.cameras[0].rotation is not None

    @property
    def observed(self) -> Tensor:
        """Clips that any camera saw anything of `(batch,)`."""
        return torch.stack([(c > 0).any(-1).any(-1) for c in self.confidence]).any(0)

    def select(self, clips: Tensor) -> Scene:
        """The scene of some of the clips `(batch,)`, chosen by booleans."""
        cameras = [_of_clips(camera, clips) for camera in self.cameras]
        return replace(self, cameras=cameras, keypoints=[k[clips] for k in self.keypoints], confidence=[c[clips] for c in self.confidence])

    def pad(self, frames: int) -> None:
        """Go on for so many frames, with nothing observed in the further ones."""
        missing = frames - self.keypoints[0].shape[1]
        if missing > 0:
            self.keypoints = [torch.nn.functional.pad(k, (0, 0, 0, 0, 0, missing)) for k in self.keypoints]
            self.confidence = [torch.nn.functional.pad(c, (0, 0, 0, missing)) for c in self.confidence]

    def to_camera_axes(self, vectors: Tensor) -> Tensor:
        """Directions `(batch, ..., 3)` in the scene's axes, in those of the first camera."""
        return self._turned(vectors, inverse=False)

    def from_camera_axes(self, vectors: Tensor) -> Tensor:
        """Directions `(batch, ..., 3)` in the first camera's axes, in the scene's."""
        return self._turned(vectors, inverse=True)

    def _turned(self, vectors: Tensor, inverse: bool) -> Tensor:
        if not self.in_world:
            return vectors
        rotation = self.cameras[0].rotation.to(vectors)
        rotation = rotation.mT if inverse else rotation
        rotation = rotation.reshape(*rotation.shape[:-2], *[1] * (vectors.ndim - rotation.ndim + 1), 3, 3)
        return torch.einsum("...ij,...j->...i", rotation, vectors)

    def place_in_camera(self, points: Tensor) -> Tensor:
        """Points in the scene, in the first camera's axes."""
        return self.cameras[0].to_camera(points) if self.in_world else points

    def place_in_scene(self, points: Tensor) -> Tensor:
        """Points in the first camera's axes, in the scene."""
        return self.cameras[0].to_world(points) if self.in_world else points

    def likelihood(self, hold_trajectory: bool = False, root: Tensor | None = None) -> Energy:
        """Negative log-likelihood of the keypoints: as far off as their confidence says, outliers let go of.

        Args:
            hold_trajectory, root: as in `ReprojectionEnergy`; root `(batch, 1, frames, 3)`.
        """
        weights = [torch.where(c > 0, (SURE + DOUBT * (1 - c)) ** -2, 0.0)[:, None] for c in self.confidence]
        points = [k[:, None] for k in self.keypoints]
        return ReprojectionEnergy(self.cameras, points, weights, root, "cauchy", _OUTLIER, "sum", hold_trajectory=hold_trajectory)

    def estimate_root(self, pose: Tensor, noise_level: float, iterations: int = 3) -> Tensor:
        """Where root-relative poses `(batch, K, frames, joints, 3)`, known but for this noise, are in the scene `(batch, K, frames, 3)`."""
        options = {"fps": self.fps, "pose_sigma": 0.01 + _SPREAD * noise_level / math.hypot(noise_level, _SPREAD), "iterations": iterations}
        if len(self.cameras) > 1:
            return estimate_root(pose, self.keypoints, self.cameras, self.confidence, **options)
        lens = replace(self.cameras[0], rotation=None, translation=None)
        return self.place_in_scene(estimate_root(self.to_camera_axes(pose), self.keypoints[0], lens, self.confidence[0], **options))

    def check_in_front(self, root: Tensor) -> None:
        """ValueError if a camera that saw a person has the root `(batch, K, frames, 3)` behind it."""
        for number, (camera, confidence) in enumerate(zip(self.cameras, self.confidence)):
            depth = (camera.to_camera(root) if camera.rotation is not None else root)[..., 2].mean(1)
            seen = (confidence > 0).any(-1)
            if (seen & (depth <= 0)).float().mean() > 0.5 * seen.float().mean():
                raise ValueError(
                    f"camera {number} has the person behind it (z = {depth[seen].median():.2f} m): a camera's rotation and translation "
                    "take world points to camera axes, X_camera = R X_world + t"
                )

    @torch.no_grad()
    def refocus(self, pose: Tensor, noise_level: float) -> None:
        """Correct the focal length of a single camera by what poses `(batch, K, frames, joints, 3)` look like through others."""
        mean, factors = self.to_camera_axes(pose.mean(1)), _FOCALS.exp().to(pose)
        assumed = self.keypoints[0] * self.focal_factor.to(pose).reshape(-1, 1, 1, 1)
        costs = []
        for factor in factors:
            seen = Scene([self.behind_canonical_lens(None)], [assumed / factor], self.confidence, self.fps)
            root = seen.estimate_root(mean[:, None], noise_level)
            costs.append(seen._misfit(mean[:, None], root, noise_level)[:, 0] + (factor.log() / _FOCAL_SPREAD) ** 2 / 2)
        cost = torch.stack(costs, dim=-1)  # (batch, factors)
        best = cost.argmin(-1).clamp(1, len(factors) - 2)
        left, middle, right = (cost.gather(-1, (best + i)[:, None])[:, 0] for i in (-1, 0, 1))
        bend = (left - 2 * middle + right).clamp_min(1e-6)
        offset = ((left - right) / (2 * bend)).clamp(-1, 1)
        factor = (_FOCALS.to(pose)[best] + offset * (_FOCALS[1] - _FOCALS[0]).item()).exp()
        self.focal_factor = factor
        self.keypoints = [assumed / factor[:, None, None, None]]

    def _misfit(self, pose: Tensor, root: Tensor, noise_level: float) -> Tensor:
        """Mean over a clip's frames, summed over joints, of the misfit, in view of how well the pose is known `(batch, K)`."""
        radius = 0.01 + _SPREAD * noise_level / math.hypot(noise_level, _SPREAD)
        depth = root[..., 2].mean(-1, keepdim=True).clamp_min(0.1)  # (batch, K, 1)
        sigma = SURE + DOUBT * (1 - self.confidence[0][:, None]) + (CANONICAL[0] * radius / depth)[..., None]
        weights = torch.where(self.confidence[0][:, None] > 0, sigma**-2, 0.0)
        energy = ReprojectionEnergy(self.cameras[0], self.keypoints[0][:, None], weights, root, "cauchy", _OUTLIER, "sum")
        return energy(pose) / pose.shape[-3]


def _of_clips(camera: Camera, clips: Tensor) -> Camera:
    """The cameras of some clips, where every clip has its own."""
    ranks = {"focal": 1, "centre": 1, "rotation": 2, "translation": 1}
    given = {name: getattr(camera, name) for name in ranks}
    own = {n: v[clips] for n, v in given.items() if v is not None and v.ndim > ranks[n] and len(v) == len(clips)}
    return replace(camera, **own)
