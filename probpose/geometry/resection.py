"""The camera that saw known points: from 3D-2D correspondences to lens and place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .camera import Camera, check_image_size


def resection(points_world: Tensor, pixels: Tensor, image_size: tuple[int, int] | None = None, iterations: int = 20) -> Camera:
    """The undistorted pinhole camera without skew that projects points to where they were seen.

    A direct linear transformation of normalised coordinates gives the projection matrix and with it lens and place; Gauss-Newton steps
    on the reprojection error in pixels then refine both together, now without skew.

    Args:
        points_world: `(..., 3)` in metres, at least six and not all in one plane.
        pixels: `(..., 2)`, same leading shape. Rows with a value that is not finite, in either, are left out.
        image_size: width and height that the camera is to have, in pixels.
        iterations: at most so many Gauss-Newton steps.

    Returns:
        The camera with rotation and translation, float32.

    Raises:
        ValueError: shapes that do not fit, too few points, or points that leave the camera undetermined (in one plane, or seen by no
            pinhole from in front).

    Source: R. Hartley, A. Zisserman, Multiple View Geometry, algorithm 7.1 and section 6.2.4.
    """
    if points_world.shape[-1:] != (3,) or pixels.shape != (*points_world.shape[:-1], 2):
        raise ValueError(f"points must have shape (..., 3) and pixels (..., 2), got {tuple(points_world.shape)} and {tuple(pixels.shape)}")
    points, pixels = points_world.reshape(-1, 3).double(), pixels.reshape(-1, 2).double()
    known = points.isfinite().all(-1) & pixels.isfinite().all(-1)
    points, pixels = points[known], pixels[known]
    if len(points) < 6:
        raise ValueError(f"a camera is determined by at least 6 points, got {len(points)}")
    extent = torch.linalg.svdvals(points - points.mean(0))
    if extent[2] <= 1e-3 * extent[0]:  # then every matrix that vanishes on the plane could be added to the projection matrix
        raise ValueError("the points do not determine a camera: they lie in one plane")
    size = None if image_size is None else check_image_size(image_size)

    lens, rotation, translation = _decompose(_direct_linear_transformation(points, pixels))
    for _ in range(iterations):
        error, jacobian = _reprojection(lens, rotation, translation, points, pixels)
        step = torch.linalg.lstsq(jacobian, -error[:, None]).solution[:, 0]
        turned = torch.linalg.matrix_exp(_cross(step[4:7])) @ rotation
        moved = lens + step[:4], turned, translation + step[7:]
        if not _reprojection(*moved, points, pixels)[0].norm() < error.norm():
            break
        lens, rotation, translation = moved
    if not ((points @ rotation[2] + translation[2] > 0).all() and (lens[:2] > 0).all()):
        raise ValueError("no pinhole camera sees these points at these pixels from in front")
    lens, rotation, translation = lens.float(), rotation.float(), translation.float()
    return Camera(lens[:2], lens[2:], image_size=size, rotation=rotation, translation=translation, slope_limit=math.inf)


def fit_lens(points: Tensor, pixels: Tensor, image_size: tuple[int, int] | None = None) -> Camera:
    """The undistorted lens that takes points in camera axes nearest to their pixels: per image axis the line u = f X/Z + c.

    Args:
        points: `(..., 3)` absolute positions, camera axes; those that are not finite or lie behind the camera are left out.
        pixels: `(..., 2)`; those that are not finite are left out.
        image_size: (width, height) in pixels, if known.

    Raises:
        ValueError: points that are not spread in the image, or pixels that are no image of them.
    """
    known = torch.isfinite(points).all(-1) & torch.isfinite(pixels).all(-1) & (points[..., 2] > 0)
    points, pixels = points[known].double(), pixels[known].double()
    slopes = points[:, :2] / points[:, 2:]
    if len(slopes) < 2 or (slopes.amax(0) - slopes.amin(0) < 1e-3).any():
        raise ValueError("points must be absolute positions in front of the camera, spread in the image")
    spread = slopes - slopes.mean(0)
    focal = (spread * pixels).sum(0) / (spread**2).sum(0)
    if not (focal > 0).all():
        raise ValueError(f"pixels are no image of the points: the focal lengths that fit best are {focal.round(decimals=1).tolist()} px")
    centre = pixels.mean(0) - focal * slopes.mean(0)
    return Camera(focal.float(), centre.float(), image_size=image_size, slope_limit=math.inf)


def _direct_linear_transformation(points: Tensor, pixels: Tensor) -> Tensor:
    """Projection matrix `(3, 4)` up to scale, from the cross products x × PX = 0."""
    from_points, from_pixels = _normalisation(points), _normalisation(pixels)
    x, u = _homogeneous(points) @ from_points.mT, _homogeneous(pixels) @ from_pixels.mT
    zero = torch.zeros_like(x)
    rows = torch.cat([torch.cat([x, zero, -u[:, :1] * x], -1), torch.cat([zero, x, -u[:, 1:2] * x], -1)])
    directions = torch.linalg.svd(rows, full_matrices=len(rows) < 12).Vh
    return torch.linalg.solve(from_pixels, directions[11].reshape(3, 4) @ from_points)


def _normalisation(points: Tensor) -> Tensor:
    """The similarity that moves points `(points, n)` to their centroid and to a mean square of one per axis."""
    n = points.shape[1]
    scale = 1 / (points - points.mean(0)).square().mean().sqrt().clamp_min(1e-12)
    matrix = torch.eye(n + 1, dtype=points.dtype) * scale
    matrix[:n, n], matrix[n, n] = -scale * points.mean(0), 1
    return matrix


def _homogeneous(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[:, :1])], -1)


def _decompose(projection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lens (fx, fy, cx, cy), rotation and translation of a projection matrix K [R | t]; the skew is dropped."""
    projection = projection * projection[:, :3].det().sign()  # a rotation does not mirror
    reverse = torch.eye(3, dtype=projection.dtype).flip(0)
    q, r = torch.linalg.qr((reverse @ projection[:, :3]).mT)  # RQ of a matrix is QR of it upside down
    upper, rotation = reverse @ r.mT @ reverse, reverse @ q.mT
    signs = upper.diagonal().sign()
    upper, rotation = upper * signs, signs[:, None] * rotation
    translation = torch.linalg.solve(upper, projection[:, 3])
    upper = upper / upper[2, 2]
    return torch.stack([upper[0, 0], upper[1, 1], upper[0, 2], upper[1, 2]]), rotation, translation


def _reprojection(lens: Tensor, rotation: Tensor, translation: Tensor, points: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Error `(2 points,)` in pixels and its derivative by focal length, centre, a turn of the camera and the translation."""
    turned = points @ rotation.mT
    x, y, z = (turned + translation).unbind(-1)
    slopes = torch.stack([x / z, y / z], -1)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    by_place = lens[:2, None] * torch.stack([torch.stack([1 / z, zero, -x / z**2], -1), torch.stack([zero, 1 / z, -y / z**2], -1)], 1)
    by_turn = -by_place @ _cross(turned)
    by_lens = torch.stack([torch.stack([slopes[:, 0], zero, one, zero], -1), torch.stack([zero, slopes[:, 1], zero, one], -1)], 1)
    return (lens[:2] * slopes + lens[2:] - pixels).flatten(), torch.cat([by_lens, by_turn, by_place], -1).flatten(0, 1)


def _cross(vectors: Tensor) -> Tensor:
    """Matrices `(..., 3, 3)` of the cross product with vectors `(..., 3)`."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
