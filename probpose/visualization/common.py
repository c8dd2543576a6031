"""What the pictures share: colours, checked inputs, limbs, display axes and where people lie in the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probpose.results import SampledPerson
from probpose.skeletons import Skeleton, get_skeleton

if TYPE_CHECKING:
    from probpose.data import KeypointTrack
    from probpose.video import Video

# Okabe & Ito's palette: the two sides stay apart in every common form of colour blindness, and in grey print the
# blue is the darker one.
COLOURS = {"right": "#D55E00", "left": "#0072B2", "centre": "#3B3B3B"}
INK, FAINT = "#3B3B3B", "#D5D5D5"

# The camera looks along z with y down, so an untilted camera sees the sky at -y.
CAMERA_UP = (0.0, -1.0, 0.0)


def as_array(values: Any, name: str, shape: tuple[int | None, ...], finite: bool = True) -> np.ndarray:
    """A NumPy array or tensor of any device as float64, with its shape checked.

    Args:
        values: array-like or `torch.Tensor`.
        name: what error messages call it.
        shape: the required shape; `None` allows any length of at least one.
        finite: whether NaN and infinity are refused.

    Raises:
        ValueError: if the shape differs, an axis is empty, or `finite` is asked for and not met.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    fits = array.ndim == len(shape) and all(have == (want or have) for have, want in zip(array.shape, shape))
    if not fits or array.size == 0:
        hint = "; draw one clip of the batch at a time" if array.ndim == len(shape) + 1 else ""
        raise ValueError(f"`{name}` has shape {array.shape}, but must have {wanted}{hint}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite, but contains NaN or infinity")
    return array


def as_radius(values: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Metres as `as_array` returns them; a negative one is a ValueError."""
    radius = as_array(values, name, shape)
    if (radius < 0).any():
        raise ValueError(f"`{name}` is a radius in metres and cannot be {radius.min():g}")
    return radius


def as_estimate(
    hypotheses: Any, pose: Any, uncertainty: Any, skeleton: str, max_hypotheses: int
) -> tuple[Skeleton, np.ndarray, np.ndarray, np.ndarray]:
    """The named skeleton, the first `max_hypotheses` hypotheses `(K, F, J, 3)`, pose and uncertainty, all checked.

    Raises:
        ValueError: if shapes disagree with each other or the skeleton, or values are not finite or negative.
    """
    described = get_skeleton(skeleton)
    joints = described.num_joints
    hypotheses = as_array(hypotheses, "hypotheses", (None, None, joints, 3))
    frames = hypotheses.shape[1]
    pose = as_array(pose, "pose", (frames, joints, 3))
    uncertainty = as_radius(uncertainty, "uncertainty", (frames, joints))
    if max_hypotheses < 1:
        raise ValueError(f"`max_hypotheses` must be at least 1, not {max_hypotheses}")
    return described, hypotheses[:max_hypotheses], pose, uncertainty


def as_keypoints(keypoints_2d: Any, confidence: Any, frames: int, joints: int) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints `(F, J, 2)` with NaN wherever nothing was observed, and confidence `(F, J)` clipped to 0..1.

    Raises:
        ValueError: if a shape does not belong to `frames` and `joints`.
    """
    points = as_array(keypoints_2d, "keypoints_2d", (frames, joints, 2), finite=False)
    if confidence is None:
        confidence = np.ones((frames, joints))
    confidence = np.clip(np.nan_to_num(as_array(confidence, "confidence", (frames, joints), finite=False)), 0, 1)
    seen = np.isfinite(points).all(axis=-1) & (confidence > 0)
    return np.where(seen[..., None], points, np.nan), np.where(seen, confidence, 0.0)


def check_people(people: Sequence[SampledPerson]) -> tuple[float, tuple[int, int]]:
    """Frames per second and image size `(width, height)` that the people of one recording share.

    Raises:
        ValueError: nobody, people who do not share them, or somebody without a root trajectory, a camera or an image size.
    """
    if not people:
        raise ValueError("`people` is empty: there is nobody to draw")
    for person in people:
        needed = {"root trajectory": person.root, "camera": person.camera, "image size": person.track.image_size}
        if missing := [name for name, value in needed.items() if value is None]:
            raise ValueError(f"{person.name} has no {' and no '.join(missing)}: nothing says where to draw")
    shared = {(person.fps, person.track.image_size): person.name for person in people}
    if len(shared) > 1:
        found = "; ".join(f"{name}: {fps:g} frames per second, image size {size}" for (fps, size), name in shared.items())
        raise ValueError(f"`people` must share the frame rate and the image size of one recording, but there are {found}")
    return next(iter(shared))


def open_video(video: "Video | str | Path", track: "KeypointTrack") -> "Video":
    """The video in which a track counts its frames.

    Raises:
        ValueError: a video of another size or rate than the track's.
        FileNotFoundError: there is no such file.
    """
    from probpose.video import Video

    if not isinstance(video, Video):
        video = Video.open(video, fps=track.fps)
    if tuple(video.size) != track.image_size:
        raise ValueError(f"{video.path} has pictures of {tuple(video.size)} pixels, but the people were seen in ones of {track.image_size}")
    if track.fps is not None and abs(video.fps / track.fps - 1) > 1e-3:
        raise ValueError(f"{video.path} is read at {video.fps:g} frames per second, but the people were followed at {track.fps:g}")
    return video


def reproject(person: SampledPerson, points: np.ndarray) -> np.ndarray:
    """Where points `(…, frames, joints, 3)`, relative to the person's root, lie in the image: `(…, frames, joints, 2)` pixels, NaN for
    what is not in front of the camera."""
    placed = torch.from_numpy(np.asarray(points + person.root[:, None], dtype=np.float32))
    seen = person.camera.to(device="cpu", dtype=torch.float32).project(placed)
    return torch.where(placed[..., 2:] > 0, seen, torch.nan).numpy()


def rgb(side: str, white: float = 0.0) -> tuple[int, ...]:
    """The colour of a side as red, green and blue in 0..255, mixed with a share of white."""
    return tuple(round((1 - white) * value + white * 255) for value in bytes.fromhex(COLOURS[side][1:]))


def side_of(skeleton: Skeleton, joint: int) -> str:
    """`"right"`, `"left"` (the person's own) or `"centre"`."""
    return "right" if joint in skeleton.right else "left" if joint in skeleton.left else "centre"


def limbs(skeleton: Skeleton) -> list[tuple[str, list[int]]]:
    """Bones strung into polylines of one side each, `(side, joints)`; a bone has the side of its child."""
    found: list[tuple[str, list[int]]] = []
    for parent, child in skeleton.bones:
        side = side_of(skeleton, child)
        for limb_side, joints in found:
            if limb_side == side and joints[-1] == parent:
                joints.append(child)
                break
        else:
            found.append((side, [parent, child]))
    return found


def upright(points: np.ndarray, up: Any = CAMERA_UP) -> np.ndarray:
    """Camera axes `(..., 3)` rotated into display axes: x right, y away from the camera, z up.

    Args:
        points: camera axes (x right, y down, z forward), metres.
        up: the world's upward direction in camera axes; for a camera with rotation R (world to camera) and a world
            with z up, that is `R[:, 2]`. Takes out the camera's tilt.

    Raises:
        ValueError: if `up` is zero.
    """
    up = as_array(up, "up", (3,))
    if not np.linalg.norm(up) > 0:
        raise ValueError("`up` must not be zero")
    z = up / np.linalg.norm(up)
    # A camera that looks straight down has no horizontal viewing direction: there the top of the image leads away.
    ahead = np.array([0.0, 0.0, 1.0]) if abs(z[2]) < 0.99 else np.array([0.0, -1.0, 0.0])
    y = ahead - (ahead @ z) * z
    y /= np.linalg.norm(y)
    return points @ np.stack([np.cross(y, z), y, z], axis=-1)
