"""The one record that every data set's reader produces, and a data set of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from probpose.geometry import Camera
from probpose.skeletons import get_skeleton


@dataclass(frozen=True, eq=False)
class PoseClip:
    """One motion of one person and what one camera saw of it.

    Args:
        name: unique in its data set, parts joined by "/", e.g. "S9/Directions 1/54138969".
        keypoints_2d: `(frames, joints, 2)` pixels; NaN = not observed.
        confidence: `(frames, joints)` in 0..1, 0 = not observed.
        positions_camera: `(frames, joints, 3)` joints in metres, camera axes (x right, y down, z forward), absolute; NaN = not known.
        camera: the lens, image size and, where the data set has them, rotation and translation.
        fps: frames per second.
        skeleton: joint set of keypoints and positions.
        valid: `(frames,)` booleans, the frames that a protocol scores; None = all.
        tags: what reports group by and protocols choose by, e.g. {"subject": "S9", "action": "Directions", "camera": "54138969"}.

    Raises:
        ValueError: shapes that do not belong together.
    """

    name: str
    keypoints_2d: Tensor
    confidence: Tensor
    positions_camera: Tensor
    camera: Camera
    fps: float
    skeleton: str = "h36m_17"
    valid: Tensor | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        joints = get_skeleton(self.skeleton).num_joints
        frames = len(self.positions_camera)
        shapes = {"keypoints_2d": (frames, joints, 2), "confidence": (frames, joints), "positions_camera": (frames, joints, 3)}
        if self.valid is not None:
            shapes["valid"] = (frames,)
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape or frames == 0:
                raise ValueError(
                    f"clip {self.name!r}: {name} must have shape {shape} ({self.skeleton}, at least one frame), "
                    f"got {tuple(getattr(self, name).shape)}"
                )

    def __len__(self) -> int:
        return len(self.positions_camera)

    @property
    def scored(self) -> Tensor:
        """Frames that count `(frames,)`: valid ones where all joints are known, but for those that the clip never knows."""
        finite = torch.isfinite(self.positions_camera).all(-1)
        known = (finite | ~finite.any(0)).all(-1) & finite[:, self.root_index]
        return known if self.valid is None else known & self.valid

    @property
    def root_index(self) -> int:
        """Joint that poses are relative to."""
        return get_skeleton(self.skeleton).root or 0

    @property
    def root(self) -> Tensor:
        """True root trajectory `(frames, 3)` metres."""
        return self.positions_camera[:, self.root_index]

    @property
    def pose(self) -> Tensor:
        """True pose relative to the root `(frames, joints, 3)` metres."""
        return self.positions_camera - self.root[:, None]

    def through(self, camera: Camera) -> PoseClip:
        """The same motion seen from the same place through another lens.

        The joints are projected anew. The detector's errors are scaled with the focal length: they keep their size relative to the
        person, as those of a detector that works on a crop.

        Args:
            camera: the new lens and image size, one camera; the clip keeps its own rotation and translation.

        Raises:
            ValueError: a batch of cameras.
        """
        if camera.focal.ndim != 1:
            raise ValueError(f"camera must be a single camera, got parameters of shape {tuple(camera.focal.shape)}")
        camera = replace(camera, rotation=self.camera.rotation, translation=self.camera.translation)
        error = self.keypoints_2d - self.camera.project(self.positions_camera)
        projected = camera.project(self.positions_camera)
        return replace(self, keypoints_2d=projected + error * (camera.focal / self.camera.focal).to(projected), camera=camera)


@dataclass(frozen=True, eq=False)
class PoseDataset:
    """Clips of one data set: iterable, with a length, and with one clip per index.

    Args:
        clips: at least one.
        name: what a report calls the data set, e.g. "h36m cpn_ft_h36m_dbb".
        protocol: name of the protocol that scores it by default (see `probpose.evaluation.PROTOCOLS`).
        notes: what the reader saw and a user should know: frames without ground truth, shortened clips, suspected left-right swaps.

    Raises:
        ValueError: no clips, or two of one name.
    """

    clips: tuple[PoseClip, ...]
    name: str
    protocol: str = "clips"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.clips:
            raise ValueError(f"{self.name}: the data set has no clips (an empty split?)")
        names = [clip.name for clip in self.clips]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two clips are named {next(name for name in names if names.count(name) > 1)!r}")

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[PoseClip]:
        return iter(self.clips)

    def __getitem__(self, index: int) -> PoseClip:
        return self.clips[index]

    @property
    def num_frames(self) -> int:
        return sum(map(len, self.clips))

    def select(self, keep: Callable[[PoseClip], bool]) -> PoseDataset:
        """The clips that `keep` accepts; ValueError if none is left."""
        return replace(self, clips=tuple(clip for clip in self.clips if keep(clip)))

    def subset(self, every: int = 1, max_clips: int | None = None, only: Iterable[str] | None = None) -> PoseDataset:
        """Fewer clips, in the same order.

        Args:
            every: keep the first of every so many clips.
            max_clips: then at most so many, spread evenly.
            only: keep, before all that, only clips with one of these tag values or name prefixes ("cmu/walking", "S9").

        Raises:
            ValueError: a number below 1, or a value in `only` that no clip has.
        """
        for name, value in (("every", every), ("max_clips", max_clips)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        clips = self.clips
        if only is not None:
            wanted = set(only)
            known = {value for clip in clips for value in clip.tags.values()} | {
                clip.name[:end] for clip in clips for end in range(len(clip.name) + 1) if clip.name[end : end + 1] in ("", "/")
            }
            if not wanted or wanted - known:
                tags = sorted({value for clip in clips for value in clip.tags.values()})
                raise ValueError(f"only must be tags or beginnings of clip names, such as {tags}, got {sorted(wanted - known)}")
            clips = [c for c in clips if set(c.tags.values()) & wanted or any(f"{c.name}/".startswith(f"{w}/") for w in wanted)]
        clips = clips[::every]
        if max_clips is not None and max_clips < len(clips):
            clips = [clips[i * len(clips) // max_clips] for i in range(max_clips)]
        return replace(self, clips=tuple(clips))

    def through(self, camera: Camera) -> PoseDataset:
        """The same motions through another lens; see `PoseClip.through`."""
        return replace(self, clips=tuple(clip.through(camera) for clip in self.clips))
