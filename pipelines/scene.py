"""What one or several cameras saw of a motion, in axes that they share, and how sampled motions are guided towards it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from probpose.geometry import SCREEN_FOCAL, Camera, detection_sigma, estimate_root, rotation_looking_along
from probpose.guidance import Energy, ReprojectionEnergy

CANONICAL = (SCREEN_FOCAL, SCREEN_FOCAL, 0.0, 0.0)
"""Focal lengths and centre, in screen units, of the lens that all keypoints are re-expressed in: Human3.6M's."""

_OUTLIER = 3.0
"""Standard deviations beyond which a keypoint begins to lose its hold."""

_SPREAD = 0.3
"""Metres: standard deviation of root-relative joints over motion capture."""

_FOCALS = torch.linspace(-0.6, 0.6, 13)
_FOCAL_SPREAD = 0.25
"""Logs of the focal lengths that are tried, as factors on the assumed one, and how far off an assumed one usually is."""

_PITCHES = torch.linspace(-0.7, 0.7, 15)
_PITCH_SPREAD = 0.3
"""Radians: tilts of a camera that are tried, and how far from level cameras usually are."""


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
        """The canonical lens where this camera stands: at the origin, if it has a rotation and nothing else is known."""
        lens = Camera(CANONICAL[:2], CANONICAL[2:], slope_limit=math.inf)
        if camera is None or camera.rotation is None:
            return lens
        origin = camera.rotation.new_zeros(camera.rotation.shape[:-1])
        return replace(lens, rotation=camera.rotation, translation=origin if camera.translation is None else camera.translation)

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
        points, confidence = ([each[:, None] for each in given] for given in (self.keypoints, self.confidence))
        return ReprojectionEnergy.from_detections(self.cameras, points, confidence, root=root, hold_trajectory=hold_trajectory)

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
            for clip in ((seen & (depth <= 0)).sum(-1) > 0.5 * seen.sum(-1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"camera {number} has the person of clip {clip} behind it (z = {depth[clip][seen[clip]].median():.2f} m): a camera's "
                    "rotation and translation take world points to camera axes, X_camera = R X_world + t"
                )

    @torch.no_grad()
    def refocus(self, pose: Tensor, noise_level: float) -> None:
        """Correct the focal length of a single camera by what poses `(batch, K, frames, joints, 3)` look like through others.

        That of a clip without observations stays as it was assumed.
        """
        assumed, mean = self.keypoints[0] * self.focal_factor.to(pose).reshape(-1, 1, 1, 1), self._mean_of_observed(pose)
        keypoints = assumed[self.observed]
        factor = torch.zeros(len(pose)).to(pose)
        factor[self.observed] = self._fit(_FOCALS, _FOCAL_SPREAD, lambda log: (mean, keypoints / log.exp()), noise_level)
        self.focal_factor = factor.exp()
        self.keypoints = [assumed / self.focal_factor[:, None, None, None]]

    @torch.no_grad()
    def retilt(self, pose: Tensor, noise_level: float) -> None:
        """Correct the tilt of a single camera by what poses `(batch, K, frames, joints, 3)` in the world look like from others.

        That of a clip without observations is level.
        """
        keypoints, pitch = self.keypoints[0][self.observed], torch.zeros(len(pose)).to(pose)
        world = replace(self, cameras=[replace(self.cameras[0], rotation=None, translation=None)])._mean_of_observed(pose)

        def seen(angle: Tensor) -> tuple[Tensor, Tensor]:
            return torch.einsum("ij,...j->...i", tilted(angle), world), keypoints

        pitch[self.observed] = self._fit(_PITCHES, _PITCH_SPREAD, seen, noise_level)
        still = torch.zeros(len(pose), 3).to(pose)
        self.cameras = [replace(self.cameras[0], rotation=tilted(pitch), translation=still)]

    def _mean_of_observed(self, pose: Tensor) -> Tensor:
        """Mean hypothesis of the observed clips in camera axes `(clips, 1, frames, joints, 3)`."""
        return self.to_camera_axes(pose.mean(1, keepdim=True))[self.observed]

    def _fit(self, candidates: Tensor, spread: float, seen: Callable[[Tensor], tuple[Tensor, Tensor]], noise_level: float) -> Tensor:
        """The value of something about the camera that explains the observed clips best `(clips,)`.

        Args:
            candidates: equally spaced values.
            spread: standard deviation of the value about zero.
            seen: of a value, poses `(clips, 1, frames, joints, 3)` in camera axes and keypoints as they would then be.
        """
        if not self.observed.any():
            return candidates.new_zeros(0)
        candidates, costs = candidates.to(self.keypoints[0]), []
        for value in candidates:
            pose, keypoints = seen(value)
            scene = Scene([self.behind_canonical_lens(None)], [keypoints], [self.confidence[0][self.observed]], self.fps)
            misfit = scene._misfit(pose, scene.estimate_root(pose, noise_level), noise_level)[:, 0]
            costs.append(misfit + (value / spread) ** 2 / 2)
        cost = torch.stack(costs, dim=-1)
        best = cost.argmin(-1).clamp(1, len(candidates) - 2)
        left, middle, right = (cost.gather(-1, (best + i)[:, None])[:, 0] for i in (-1, 0, 1))
        bend = (left - 2 * middle + right).clamp_min(1e-6)
        return candidates[best] + ((left - right) / (2 * bend)).clamp(-1, 1) * (candidates[1] - candidates[0])

    def _misfit(self, pose: Tensor, root: Tensor, noise_level: float) -> Tensor:
        """Mean over a clip's frames, summed over joints, of the misfit, in view of how well the pose is known `(batch, K)`."""
        radius = 0.01 + _SPREAD * noise_level / math.hypot(noise_level, _SPREAD)
        depth = root[..., 2].mean(-1, keepdim=True).clamp_min(0.1)  # (batch, K, 1)
        sigma = detection_sigma(self.confidence[0][:, None]) + (CANONICAL[0] * radius / depth)[..., None]
        weights = torch.where(self.confidence[0][:, None] > 0, sigma**-2, 0.0)
        energy = ReprojectionEnergy(self.cameras[0], self.keypoints[0][:, None], weights, root, "cauchy", _OUTLIER, "sum")
        return energy(pose) / pose.shape[-3]


def check_guidance(guidance: Any, guide: Any = None) -> None:
    """ValueError unless it is an energy, or None, and so the guide."""
    if guidance is not None and not isinstance(guidance, Energy):
        raise ValueError(f"guidance must be a probpose.guidance.Energy, got {type(guidance).__name__}")
    if guide is not None and (isinstance(guide, (Energy, type)) or not callable(guide)):
        raise ValueError(f"guide must be a GaussNewtonGuide, a GradientGuide, or called like them, got {guide!r}")


def with_bones(pose: Tensor, bones: Sequence[tuple[int, int]], lengths: Tensor, share: float) -> Tensor:
    """Poses `(..., frames, joints, 3)` whose bones keep their directions and come by a share of the way to mean lengths `(bones,)`.

    Uncertain predictions are means, and means are too small: who takes their size for a person's will put that person too near.
    """
    joints = list(pose.unbind(-2))
    waiting = list(zip(bones, lengths))
    placed = {child for _, child in bones}
    placed = set(range(pose.shape[-2])) - placed
    while waiting:
        ready = [item for item in waiting if item[0][0] in placed]
        for (parent, child), length in ready:
            bone = pose[..., child, :] - pose[..., parent, :]
            own = bone.norm(dim=-1, keepdim=True).clamp_min(1e-3)
            joints[child] = joints[parent] + bone * (1 - share + share * length / own)
            placed.add(child)
        waiting = [item for item in waiting if item[0][1] not in placed]
    return torch.stack(joints, dim=-2)


def tilted(pitch: Tensor) -> Tensor:
    """World-to-camera rotations `(..., 3, 3)` of cameras that look down by an angle `(...)` in radians, along the world's y axis."""
    return rotation_looking_along(torch.stack([torch.zeros_like(pitch), pitch.cos(), -pitch.sin()], dim=-1))


def _of_clips(camera: Camera, clips: Tensor) -> Camera:
    """The cameras of some clips, where every clip has its own."""
    ranks = {"focal": 1, "centre": 1, "rotation": 2, "translation": 1}
    given = {name: getattr(camera, name) for name in ranks}
    own = {n: v[clips] for n, v in given.items() if v is not None and v.ndim > ranks[n] and len(v) == len(clips)}
    return replace(camera, **own)
