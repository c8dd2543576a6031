"""Pinhole cameras with lens distortion: projection and back, screen units, world and camera axes.

Axes: camera x right, y down, z forward; world z up. Lengths in metres, image coordinates in pixels unless said
otherwise.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from .rotation import quaternion_to_matrix

CONVENTIONS = ("field", "opencv")


def _aligned(parameter: Tensor, points: Tensor) -> Tensor:
    """Insert singleton axes so that a parameter `(*batch, n)` broadcasts over points `(*batch, ..., n)`."""
    parameter = parameter.to(points) if points.is_floating_point() else parameter.to(points.device)
    missing = points.ndim - parameter.ndim
    return parameter.reshape(*parameter.shape[:-1], *[1] * missing, parameter.shape[-1])


@dataclass(frozen=True, eq=False)  # comparing tensors field by field has no single truth value
class Camera:
    """A camera, or a batch of them when the tensors carry leading axes.

    Args:
        focal: focal lengths `(..., 2)` (fx, fy) in pixels.
        centre: principal point `(..., 2)` in pixels.
        radial: radial distortion k1, k2, k3 `(..., 3)`; default zero.
        tangential: tangential distortion p1, p2 `(..., 2)`; default zero.
        image_size: (width, height) in pixels; None if unknown, or if the camera is in screen units.
        rotation: world-to-camera rotation `(..., 3, 3)`, or None (world = camera axes).
        translation: world-to-camera translation `(..., 3)` in metres: `X_camera = R X_world + t`.
        convention: `"field"`, the lifting field's tangential term `x (radial + <p, x>) + p r²`, or `"opencv"`,
            where p1 belongs to y and p2 to x and the mixed term carries a factor two.
        slope_limit: rays are clamped to this slope |X/Z| before distortion. None means 1 (45°) for the field's
            convention, as every published lifter does (the distortion polynomial is fitted inside it), and no limit for
            OpenCV's.

    Raises:
        ValueError: focal length not positive, non-finite parameters, image size not positive, unknown convention.
    """

    focal: Tensor
    centre: Tensor
    radial: Tensor | None = None
    tangential: Tensor | None = None
    image_size: tuple[int, int] | None = None
    rotation: Tensor | None = None
    translation: Tensor | None = None
    convention: str = "field"
    slope_limit: float | None = None

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(f"camera convention must be one of {CONVENTIONS}, got {self.convention!r}")
        sizes = {
            "focal": (2,),
            "centre": (2,),
            "radial": (3,),
            "tangential": (2,),
            "rotation": (3, 3),
            "translation": (3,),
        }
        for name, shape in sizes.items():
            value = getattr(self, name)
            if value is None:
                continue
            value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
            if not value.is_floating_point():
                value = value.to(torch.get_default_dtype())
            if name == "focal" and value.ndim == 0:
                value = value.repeat(2)
            if value.shape[value.ndim - len(shape) :] != shape:
                raise ValueError(f"camera {name} must have shape (..., {', '.join(map(str, shape))}), got {tuple(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"camera {name} must be finite, got {value.tolist()}")
            object.__setattr__(self, name, value)
        if self.slope_limit is not None and not self.slope_limit > 0:
            raise ValueError(f"camera slope_limit must be positive or None, got {self.slope_limit}")
        if (self.focal <= 0).any():
            raise ValueError(f"camera focal length must be positive, got {self.focal.tolist()}")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", check_image_size(self.image_size))

    @classmethod
    def from_image_size(cls, width: int, height: int, fov: float = 55.0) -> Camera:
        """A plausible camera when nothing but the image size is known: centred, undistorted.

        Args:
            width, height: pixels.
            fov: field of view over the *longer* image side in degrees, so that a portrait phone video gets the same
                lens as a landscape one.
        """
        width, height = check_image_size((width, height))
        if not 0 < fov < 180:
            raise ValueError(f"fov must lie between 0 and 180 degrees, got {fov}")
        focal = max(width, height) / 2 / math.tan(math.radians(fov) / 2)
        centre = torch.tensor([width / 2, height / 2])
        return cls(torch.full((2,), focal), centre, image_size=(width, height), slope_limit=math.inf)

    @classmethod
    def from_vector(cls, vector: Tensor, image_size: tuple[int, int] | None = None) -> Camera:
        """From the field's nine numbers `(..., 9)`: fx, fy, cx, cy, k1, k2, k3, p1, p2, in pixels or screen units."""
        vector = torch.as_tensor(vector)
        if vector.shape[-1:] != (9,):
            raise ValueError(f"a camera vector has 9 numbers (fx fy cx cy k1 k2 k3 p1 p2), got shape {tuple(vector.shape)}")
        return cls(vector[..., :2], vector[..., 2:4], vector[..., 4:7], vector[..., 7:9], image_size=image_size)

    def to_vector(self) -> Tensor:
        """The field's nine numbers `(..., 9)`; the inverse of `from_vector`.

        Raises:
            ValueError: tangential distortion in OpenCV's convention, which these numbers cannot express.
        """
        if self.convention != "field" and self.tangential is not None:
            raise ValueError(f"a camera vector is in the field's convention, this camera is in {self.convention!r}")
        none = torch.zeros_like(self.focal)
        radial = none[..., :1].expand(*none.shape[:-1], 3) if self.radial is None else self.radial
        tangential = none if self.tangential is None else self.tangential
        return torch.cat([self.focal, self.centre, radial, tangential], dim=-1)

    def to(self, *args: Any, **kwargs: Any) -> Camera:
        """Move or cast every tensor, like `Tensor.to`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(*args, **kwargs) for k, v in moved.items() if isinstance(v, Tensor)})

    def project(self, points: Tensor) -> Tensor:
        """Project camera-space points `(*batch, ..., 3)` in metres to pixels `(*batch, ..., 2)`.

        Differentiable. Nothing is clipped to the image; points at or behind the image plane give finite but meaningless
        pixels (test `points[..., 2] > 0`). Source of the field's formula: the Human3.6M camera model as used by
        VideoPose3D and D3DP.
        """
        depth = points[..., 2:]
        slopes = self._limited(points[..., :2] / torch.where(depth.abs() < 1e-8, torch.full_like(depth, 1e-8), depth))
        distorted = slopes + self._displacement(slopes)
        return distorted * _aligned(self.focal, slopes) + _aligned(self.centre, slopes)

    def unproject(self, keypoints: Tensor, iterations: int = 10) -> Tensor:
        """Undistorted ray slopes (X/Z, Y/Z) `(*batch, ..., 2)` of pixels `(*batch, ..., 2)`; NaN stays NaN.

        The distortion is inverted by fixed-point iteration, which converges inside the lens's calibrated range; beyond
        `slope_limit` the displacement is held at its value there.
        """
        distorted = (keypoints - _aligned(self.centre, keypoints)) / _aligned(self.focal, keypoints)
        if self.radial is None and self.tangential is None:
            return distorted
        slopes = distorted
        for _ in range(iterations):
            slopes = distorted - self._displacement(self._limited(slopes))
        return slopes

    def _limited(self, slopes: Tensor) -> Tensor:
        # A slope of 10⁴ is 89.99°: no limit to any lens, but the distortion polynomial stays finite in float32.
        limit = self.slope_limit or (1.0 if self.convention == "field" else 1e4)
        return slopes.clamp(-limit, limit)

    def _displacement(self, slopes: Tensor) -> Tensor:
        """How far the lens moves a ray slope `(*batch, ..., 2)`."""
        if self.radial is None and self.tangential is None:
            return torch.zeros_like(slopes)
        r2 = (slopes**2).sum(-1, keepdim=True)
        factor = torch.zeros_like(r2)
        if self.radial is not None:
            powers = torch.cat([r2, r2**2, r2**3], dim=-1)
            factor = factor + (_aligned(self.radial, slopes) * powers).sum(-1, keepdim=True)
        if self.tangential is None:
            return slopes * factor
        p = _aligned(self.tangential, slopes)
        if self.convention == "field":
            return slopes * (factor + (p * slopes).sum(-1, keepdim=True)) + p * r2
        x, y = slopes[..., :1], slopes[..., 1:]
        p1, p2 = p[..., :1], p[..., 1:]
        shift = torch.cat([2 * p1 * x * y + p2 * (r2 + 2 * x**2), p1 * (r2 + 2 * y**2) + 2 * p2 * x * y], dim=-1)
        return slopes * factor + shift

    def to_camera(self, points_world: Tensor) -> Tensor:
        """World to camera axes: `R X + t` for points `(*batch, ..., 3)` in metres."""
        rotation, translation = self._extrinsics(points_world)
        return torch.einsum("...ij,...j->...i", rotation, points_world) + translation

    def to_world(self, points_camera: Tensor) -> Tensor:
        """Camera to world axes: `Rᵀ (X - t)` for points `(*batch, ..., 3)` in metres; the inverse of `to_camera`."""
        rotation, translation = self._extrinsics(points_camera)
        return torch.einsum("...ji,...j->...i", rotation, points_camera - translation)

    def _extrinsics(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if self.rotation is None or self.translation is None:
            raise ValueError("this camera has no rotation and translation, so world coordinates are undefined")
        rotation = self.rotation.to(points)
        rotation = rotation.reshape(*rotation.shape[:-2], *[1] * (points.ndim - rotation.ndim + 1), 3, 3)
        return rotation, _aligned(self.translation, points)

    def carried_around(self, place: Tensor, degrees: float) -> Camera:
        """The camera after a walk around the vertical (world z) through a place `(3,)` in the world, which it sees as before.

        Raises:
            ValueError: a camera without rotation and translation.
        """
        if self.rotation is None or self.translation is None:
            raise ValueError("this camera has no rotation and translation: nothing says where it stands")
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        rotation = self.rotation @ self.rotation.new_tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        place = place.to(rotation)
        return replace(self, rotation=rotation, translation=self.rotation @ place + self.translation - rotation @ place)

    def normalised(self) -> Camera:
        """The same camera in screen units: both axes divided by half the image *width* (see `normalise_screen`).

        The result has no `image_size`, so that it cannot be normalised twice or mirrored as if it were in pixels.
        """
        if self.image_size is None:
            raise ValueError("image_size is needed to express a camera in screen units")
        width, height = self.image_size
        offset = self.centre.new_tensor([1.0, height / width])
        return replace(self, focal=self.focal * 2 / width, centre=self.centre * 2 / width - offset, image_size=None)

    def mirrored(self) -> Camera:
        """The camera that sees the mirrored image: camera-space points with x negated project to `width - u`.

        The extrinsics stay as they are, because a mirror is not a rigid motion: mirror the points in camera axes.
        """
        if self.image_size is None:
            raise ValueError("image_size is needed to mirror a camera given in pixels")
        centre = torch.stack([self.image_size[0] - self.centre[..., 0], self.centre[..., 1]], dim=-1)
        if self.tangential is None:
            return replace(self, centre=centre)
        odd = 0 if self.convention == "field" else 1
        signs = torch.tensor([-1.0 if i == odd else 1.0 for i in range(2)]).to(self.tangential)
        return replace(self, centre=centre, tangential=self.tangential * signs)


def check_image_size(image_size: Any) -> tuple[int, int]:
    """Validate (width, height) in pixels; returns two ints or raises ValueError."""
    try:
        if isinstance(image_size, str):
            raise TypeError
        width, height = (int(v) for v in image_size)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"image_size must be (width, height) in pixels, got {image_size!r}") from None
    if width <= 0 or height <= 0:
        raise ValueError(f"image_size must be positive (width, height) in pixels, got {(width, height)}")
    return width, height


def parse_image_size(text: str) -> tuple[int, int]:
    """(width, height) of what people write: "1920x1080", also with a capital X or a real ×. Raises ValueError for anything else."""
    try:
        return check_image_size(text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise ValueError(f"the image size must be WIDTHxHEIGHT in pixels, e.g. 1920x1080, got {text!r}") from None


def normalise_screen(keypoints: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pixels `(..., 2)` to screen units: u' = 2u/w - 1, v' = 2v/w - h/w (both by the width: the aspect stays)."""
    width, height = check_image_size(image_size)
    scaled = keypoints * (2 / width)  # floating, also where pixels are integers
    return scaled - scaled.new_tensor([1.0, height / width])


def denormalise_screen(keypoints: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Screen units `(..., 2)` back to pixels; the inverse of `normalise_screen`."""
    width, height = check_image_size(image_size)
    scaled = keypoints * (width / 2)
    return scaled + scaled.new_tensor([width / 2, height / 2])


def reexpress_keypoints(keypoints: Tensor, source: Camera, target: Camera) -> Tensor:
    """Pixels `(*batch, ..., 2)` of `source` as `target` would see them from the same place; NaN stays NaN.

    With the camera known this removes the focal length, the principal point and the lens distortion as a domain gap: a
    network trained behind one canonical camera meets only that camera.
    """
    slopes = source.unproject(keypoints)
    return target.project(torch.cat([slopes, torch.ones_like(slopes[..., :1])], dim=-1))


@cache
def _h36m_record() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("h36m_cameras.json").read_text())


def h36m_camera(index: int, subject: str | None = None) -> Camera:
    """Human3.6M camera 0..3 (54138969, 55011271, 58860488, 60457274).

    With a subject ("S1", "S5".. "S11") it has extrinsics too.

    Raises:
        ValueError: index outside 0..3, or a subject without published extrinsics.
    """
    record = _h36m_record()
    if index not in range(4):
        raise ValueError(f"Human3.6M has cameras 0..3, got {index}")
    intrinsics = record["intrinsics"][index]
    camera = Camera(
        torch.tensor(intrinsics["focal_length"]),
        torch.tensor(intrinsics["center"]),
        torch.tensor(intrinsics["radial_distortion"]),
        torch.tensor(intrinsics["tangential_distortion"]),
        image_size=(intrinsics["res_w"], intrinsics["res_h"]),
    )
    if subject is None:
        return camera
    if subject not in record["extrinsics"]:
        raise ValueError(f"extrinsics are published for {sorted(record['extrinsics'])}, got {subject!r}")
    pose = record["extrinsics"][subject][index]
    to_camera = quaternion_to_matrix(torch.tensor(pose["orientation"], dtype=torch.float64)).mT
    position = torch.tensor(pose["translation"], dtype=torch.float64) / 1000
    return replace(camera, rotation=to_camera.float(), translation=(-to_camera @ position).float())
