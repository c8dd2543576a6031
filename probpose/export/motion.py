"""One person's motion as every writer of this package takes it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from probpose.geometry import Camera
from probpose.results import SampledPerson
from probpose.skeletons import Skeleton, get_skeleton

Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
CAMERA_TO_Y_UP = np.diag([1.0, -1, -1])


@dataclass(frozen=True, eq=False)
class Motion:
    """One person's motion; arrays or tensors come in, float64 arrays are kept.

    Args:
        pose: `(frames, joints, 3)` metres, camera axes (x right, y down, z forward), relative to the root joint.
        fps: frames per second.
        skeleton: name of the joint order, or the `Skeleton`, which is kept.
        root: `(frames, 3)` metres, camera axes; None if the place is not known.
        hypotheses: `(K, frames, joints, 3)` metres, like `pose`.
        uncertainty: `(frames, joints)` metres, root-mean-square radius about `pose`.
        camera: the `Camera` of the axes. With a rotation (world, z up, to camera) the motion can be placed in the world.
        name: what the motion is called inside the file.
        first_frame: number in the video of the first frame.

    Raises:
        ValueError: shapes that do not fit each other or the skeleton, values that are not finite, a negative uncertainty, or a frame
            rate that is not positive.
    """

    pose: np.ndarray
    fps: float
    skeleton: str | Skeleton = "h36m_17"
    root: np.ndarray | None = None
    hypotheses: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    camera: Camera | None = None
    name: str = "motion"
    first_frame: int = 0

    def __post_init__(self) -> None:
        skeleton = get_skeleton(self.skeleton)
        frames, joints = np.shape(self.pose)[0] if np.ndim(self.pose) else 0, skeleton.num_joints
        shapes = {
            "pose": (frames, joints, 3),
            "root": (frames, 3),
            "hypotheses": (len(self.hypotheses) if np.ndim(self.hypotheses) else 0, frames, joints, 3),
            "uncertainty": (frames, joints),
        }
        object.__setattr__(self, "skeleton", skeleton)
        for name, shape in shapes.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _checked(value, f"{name} of motion {self.name!r}", shape, skeleton))
        if self.uncertainty is not None and (self.uncertainty < 0).any():
            raise ValueError(f"uncertainty of motion {self.name!r} is a radius in metres and cannot be {self.uncertainty.min():g}")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps of motion {self.name!r} must be a positive number, got {self.fps!r}")

    @classmethod
    def from_output(
        cls,
        output: Any,
        fps: float,
        skeleton: str | Skeleton = "h36m_17",
        name: str = "motion",
        first_frame: int = 0,
        index: int | None = None,
    ) -> Motion:
        """The motion that a pipeline returned.

        Args:
            output: a `ProbPosePipelineOutput` with a pose.
            fps, skeleton, name, first_frame: as above; the skeleton is the pipeline's (`pipe.skeleton`).
            index: which one, of the output of a batch.

        Raises:
            ValueError: an output without a pose, a batch without an index, an index without a batch or beyond it.
        """
        if output.pose is None:
            raise ValueError("the pipeline's output has no pose: call it with an aggregation, or give Motion one of the hypotheses")
        batched = output.pose.ndim == 4
        if batched != (index is not None):
            held = f"a batch of {len(output.pose)}: give the index of the one to take" if batched else "one motion: index must be None"
            raise ValueError(f"the pipeline's output holds {held}")
        if batched and index not in range(len(output.pose)):
            raise ValueError(f"index must be in 0..{len(output.pose) - 1}, got {index}")
        values = {key: getattr(output, key) for key in ("pose", "root", "hypotheses", "uncertainty")}
        if batched:
            values = {key: None if value is None else value[index] for key, value in values.items()}
        return cls(fps=fps, skeleton=skeleton, camera=_one(output.camera, index or 0), name=name, first_frame=first_frame, **values)

    @classmethod
    def from_person(cls, person: SampledPerson) -> Motion:
        """The motion of a stored or just sampled person, with its name and its place in the video.

        Raises:
            ValueError: a person without an aggregated pose.
        """
        return cls.from_output(person, person.fps, person.skeleton, person.name, int(person.track.frame[0]))

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.pose)

    @property
    def frames(self) -> np.ndarray:
        """`(frames,)` numbers of the frames in the video."""
        return self.first_frame + np.arange(self.num_frames)

    def in_camera(self, poses: np.ndarray) -> np.ndarray:
        """Root-relative poses `(..., frames, joints, 3)` at their place before the camera; as they are where that is not known."""
        return poses if self.root is None else poses + self.root[:, None]

    def in_world(self, poses: np.ndarray) -> np.ndarray:
        """Root-relative poses `(..., frames, joints, 3)` in the world, y up, metres.

        The camera's rotation says what is up, and its translation where the origin is. A camera without rotation is taken to stand
        upright: then x is right, y up and z towards the viewer, with the camera at the origin.
        """
        if self.root is None:
            warnings.warn(f"motion {self.name!r} has no root trajectory: its root joint stays at the origin", stacklevel=4)
        points, camera = self.in_camera(poses), self.camera
        if camera is None or camera.rotation is None:
            return points @ CAMERA_TO_Y_UP
        if camera.translation is not None and self.root is not None:
            points = points - camera.translation.double().numpy(force=True)
        return points @ camera.rotation.double().numpy(force=True) @ Z_UP_TO_Y_UP.T


def _checked(value: Any, what: str, shape: tuple[int, ...], skeleton: Skeleton) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape or array.size == 0:
        raise ValueError(f"{what} must have shape {shape} for the {skeleton.num_joints} joints of {skeleton.name!r}, got {array.shape}")
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{what} must be finite, but is {array[tuple(place)]} at {tuple(map(int, place))}")
    return array


def _one(camera: Camera | None, index: int) -> Camera | None:
    """One camera of a batch; a camera without leading axes, or with one entry for all, is everybody's."""

    def pick(value: torch.Tensor, ndim: int) -> torch.Tensor:
        return value if value.ndim == ndim else value[index if len(value) > 1 else 0]

    if camera is None:
        return None
    tensors = {field.name: value for field in fields(camera) if isinstance(value := getattr(camera, field.name), torch.Tensor)}
    return replace(camera, **{name: pick(value, 2 if name == "rotation" else 1) for name, value in tensors.items()})
