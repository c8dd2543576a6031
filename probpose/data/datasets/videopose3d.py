"""The layout in which VideoPose3D (Pavllo et al., CVPR 2019) keeps Human3.6M and HumanEva-I, and most of the field after it.

`data_3d_<name>.npz` holds `positions_3d`: subject to action to `(frames, joints, 3)` metres, world axes, z up.
`data_2d_<name>_<kind>.npz` holds `positions_2d`: subject to action to one `(frames, joints, 2 or 3)` array of pixels per camera, and
`metadata`, whose `keypoints_symmetry` (joints of the left, joints of the right) tells the joint order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.geometry import Camera, quaternion_to_matrix
from probpose.skeletons import convert_with_confidence, get_skeleton

from .checks import numbers
from .pickles import load_npz


@dataclass(frozen=True)
class Positions:
    """`data_3d_<name>.npz`, and the folder of the 2D files that belong to it.

    Args:
        path: the file.
        subjects: subject to action to positions, not yet checked; see `get`.
    """

    path: Path
    subjects: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, path: str | Path, name: str) -> Positions:
        """Reads the 3D file at `path`, or in the folder `path`.

        Raises:
            FileNotFoundError: no such file or folder, or a folder without it.
            ValueError: a damaged file or another layout.
        """
        path = Path(path)
        if path.is_dir():
            path = path / f"data_3d_{name}.npz"
        return cls(path, _tree(load_npz(path, ["positions_3d"])["positions_3d"], f"{path}, positions_3d"))

    def get(self, subject: str, action: str, joints: Iterable[int]) -> Tensor:
        """`(frames, joints, 3)` float32 metres, world axes; ValueError unless the number of joints is one of `joints`."""
        where = f"{self.path}, {subject} {action!r}"
        positions = numbers(self.subjects[subject][action], (None, None, 3), where)
        if positions.shape[1] not in joints:
            raise ValueError(f"{where} must have {' or '.join(map(str, joints))} joints, got {positions.shape[1]}")
        return torch.from_numpy(positions).float()


class Keypoints:
    """`data_2d_<name>_<kind>.npz`, its joints on the way to another order.

    Args:
        folder, name, kind: which file.
        skeleton: the joint order to give.
        method: how joints are converted to it, see `probpose.skeletons.convert`.

    Raises:
        FileNotFoundError: no such file; the message lists the kinds that are there.
        ValueError: a damaged file, another layout, or joints that are neither COCO's nor in the wanted order.
    """

    def __init__(self, folder: Path, name: str, kind: str, skeleton: str, method: str | None = None):
        self.path = folder / f"data_2d_{name}_{kind}.npz"
        if not self.path.is_file():
            kinds = sorted(file.stem.removeprefix(f"data_2d_{name}_") for file in folder.glob(f"data_2d_{name}_*.npz"))
            raise FileNotFoundError(f"no such file: {self.path}; there are 2D files of the kinds {kinds}")
        content = load_npz(self.path, ["positions_2d", "metadata"])
        self.subjects = _tree(content["positions_2d"], f"{self.path}, positions_2d")
        self.source, self.skeleton = _skeleton_of(content["metadata"], ("coco_17", skeleton), self.path), skeleton
        self.method = (method or "simple") if (self.source, skeleton) == ("coco_17", "h36m_17") else None
        self._cut: list[str] = []
        self._empty: list[str] = []
        self._scores: list[str] = []

    def view(self, subject: str, action: str, index: int, camera: str, frames: int) -> tuple[Tensor, Tensor]:
        """What one camera saw: pixels `(frames, joints, 2)`, NaN where not observed, and confidence `(frames, joints)`.

        Videos run on after the motion capture has ended: what is longer than `frames` is cut. Frames of zeros are not observed. Without
        a third channel, or with one that holds scores of another kind (not all in 0..1), every observed joint has confidence 1.

        Raises:
            ValueError: an action that the file lacks, another number of cameras, joints or channels, or less frames than asked for.
        """
        views = self.subjects.get(subject, {}).get(action)
        if views is None:
            known = self.subjects.get(subject, self.subjects)
            raise ValueError(f"{self.path} has no keypoints of {subject} {action!r}; it has {sorted(known)}")
        name = f"{subject}/{action}/{camera}"
        where = f"{self.path}, {subject} {action!r}, camera {camera}"
        if not isinstance(views, (list, tuple, np.ndarray)) or len(views) <= index:
            raise ValueError(f"{where} must be item {index} of a list of cameras, got {type(views).__name__}")
        channels = 3 if getattr(views[index], "shape", ())[2:] == (3,) else 2
        keypoints = numbers(views[index], (None, get_skeleton(self.source).num_joints, channels), where)
        if len(keypoints) < frames:
            raise ValueError(f"{where} has {len(keypoints)} frames of keypoints for {frames} frames of 3D positions")
        if len(keypoints) > frames:
            self._cut.append(f"{name} (by {len(keypoints) - frames})")
        points = torch.from_numpy(keypoints[:frames]).float()
        scores = points[..., 2] if channels == 3 else None
        if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
            self._scores.append(name)
            scores = None
        points = points[..., :2]
        empty = (points == 0).flatten(1).all(1)
        if empty.any():
            self._empty.append(f"{name} ({int(empty.sum())})")
        points = points.masked_fill(empty[:, None, None], torch.nan)
        pixels, confidence, _ = convert_with_confidence(points, scores, self.source, self.skeleton, self.method)
        return pixels, confidence

    @property
    def notes(self) -> list[str]:
        """What a user should know about the views given so far."""
        converted = f"keypoints converted from {self.source} to {self.skeleton}" + (f", method {self.method!r}" if self.method else "")
        return [converted] * (self.source != self.skeleton) + [
            f"{finding} in {len(names)} clips: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
            for finding, names in (
                ("keypoints cut to the length of the poses", self._cut),
                ("frames without keypoints", self._empty),
                ("scores outside 0..1, not taken for confidences,", self._scores),
            )
            if names
        ]


def choose(wanted: Iterable[str] | str | None, known: Iterable[str], what: str, where: str | Path) -> list[str]:
    """The wanted names, or all; ValueError for none at all or one that is not known, with a list of those that are."""
    known = list(known)
    wanted = known if wanted is None else [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if not wanted or set(wanted) - set(known):
        raise ValueError(f"{where}: {what} must be some of {known}, got {wanted}")
    return list(dict.fromkeys(wanted))


def cameras_from_record(record: Any, subject: str, where: str | Path) -> list[Camera]:
    """The cameras of a subject from a dict (JSON) of the form of `probpose/geometry/h36m_cameras.json`.

    `intrinsics`: one dict per camera with `res_w`, `res_h`, `focal_length`, `center` and, where the lens distorts, `radial_distortion`
    and `tangential_distortion`, all in pixels; `extrinsics`: subject to one dict per camera with `orientation`, the unit quaternion
    (w, x, y, z) from camera to world axes, and `translation`, the camera's place in the world in millimetres.

    Raises:
        ValueError: a missing subject or field, or numbers that are no camera.
    """
    try:
        intrinsics, extrinsics = record["intrinsics"], record["extrinsics"][subject]
        return [_camera(lens, place) for lens, place in zip(intrinsics, extrinsics, strict=True)]
    except KeyError as error:
        raise ValueError(f"{where}: the cameras of {subject} lack {error}; needed are intrinsics and extrinsics per subject") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the cameras of {subject} cannot be read: {error}") from None


def _camera(lens: Mapping[str, Any], place: Mapping[str, Any]) -> Camera:
    rotation = quaternion_to_matrix(torch.tensor(place["orientation"], dtype=torch.float64)).mT
    position = torch.tensor(place["translation"], dtype=torch.float64) / 1000
    distortion = [lens.get(key) for key in ("radial_distortion", "tangential_distortion")]
    parameters = [None if value is None else torch.tensor(value) for value in (lens["focal_length"], lens["center"], *distortion)]
    size = (lens["res_w"], lens["res_h"])
    return Camera(*parameters, image_size=size, rotation=rotation.float(), translation=(-rotation @ position).float())


def _tree(value: Any, where: str) -> Mapping[str, Mapping[str, Any]]:
    if not (isinstance(value, dict) and value and all(isinstance(actions, dict) for actions in value.values())):
        raise ValueError(f"{where} must be a dict of subjects, each a dict of actions, got {type(value).__name__}")
    return value


def _skeleton_of(metadata: Any, allowed: tuple[str, ...], path: Path) -> str:
    """Joint order, by the number of joints and the sides: a `layout_name` is not always there."""
    try:
        sides = [sorted(int(joint) for joint in side) for side in metadata["keypoints_symmetry"]]
        count = int(metadata["num_joints"])
    except (TypeError, KeyError, ValueError, IndexError):
        raise ValueError(f"{path}: metadata must be a dict with num_joints and keypoints_symmetry, got {metadata!r}") from None
    for skeleton in map(get_skeleton, allowed):
        if count == skeleton.num_joints and sides == [list(skeleton.left), list(skeleton.right)]:
            return skeleton.name
    raise ValueError(f"{path}: {count} joints with left and right {sides} (metadata) are neither {' nor '.join(allowed)}")
