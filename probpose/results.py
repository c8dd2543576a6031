"""One person's sampled motion together with what went in: what files, pictures and pages are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .data.keypoints import KeypointTrack
from .files import replacing

_OUTPUTS = ("hypotheses", "pose", "uncertainty", "root", "radius", "lifted")


@dataclass(eq=False)
class SampledPerson:
    """A person of a recording, as 2D keypoints and as sampled 3D motion.

    Attributes:
        name: what the person is called in files and pictures.
        track: the 2D keypoints, as they were read or detected.
        skeleton: name of the joint order of all that follows.
        hypotheses: `(K, frames, joints, 3)` metres, camera axes (x right, y down, z forward), relative to the root joint.
        pose: aggregated pose `(frames, joints, 3)` metres, or None.
        uncertainty: `(frames, joints)` metres, or None.
        root: root trajectory `(frames, 3)` metres, camera axes, or None.
        radius: `(frames, joints)` metres: the joint is within it of the pose in a stated share of the cases; None without calibration.
        lifted: `(frames, joints, 3)` metres: what the lifter of a pipeline that has one says, or None.
        camera: the `Camera` that was used.
        settings: what the sampler was called with, for the record.
    """

    name: str
    track: KeypointTrack
    skeleton: str
    hypotheses: np.ndarray
    pose: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    root: np.ndarray | None = None
    radius: np.ndarray | None = None
    lifted: np.ndarray | None = None
    camera: Any = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_output(cls, name: str, track: KeypointTrack, output: Any, skeleton: str, settings: dict | None = None) -> SampledPerson:
        """What a pipeline of this `skeleton` (`pipe.skeleton`) made of a track, called for that one clip with `output_type="np"`."""
        return cls(name, track, skeleton, **{key: getattr(output, key) for key in (*_OUTPUTS, "camera")}, settings=settings or {})

    @property
    def fps(self) -> float:
        """Frames per second; 30 where nobody told."""
        return self.track.fps or 30.0

    @property
    def bridged(self) -> np.ndarray:
        """`(frames,)` bool: nothing of the person was seen there, so that the motion is what the frames around it suggest."""
        return ~self.track.observed

    def keypoints(self) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints `(frames, joints, 2)` in pixels and confidence `(frames, joints)` in the joint order of the result."""
        from .skeletons import convert_with_confidence

        if self.track.skeleton == self.skeleton:
            return self.track.keypoints_2d, self.track.confidence
        return convert_with_confidence(self.track.keypoints_2d, self.track.confidence, self.track.skeleton, self.skeleton)[:2]

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write an `.npz` file, whole or not at all: the arrays above, `keypoints_2d`, `confidence`, `frame`, `observed`, `fps`,
        `image_size`, `skeleton`, `joint_names`, `input_skeleton`, `camera` (nine numbers, see `Camera.to_vector`) and its `slope_limit`,
        `settings` (JSON).

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            FileNotFoundError: the folder does not exist.
        """
        from .skeletons import get_skeleton

        outputs = {key: getattr(self, key) for key in _OUTPUTS}
        with replacing(path, overwrite) as unfinished:
            np.savez_compressed(
                unfinished,
                **{key: value for key, value in outputs.items() if value is not None},
                keypoints_2d=self.track.keypoints_2d,
                confidence=self.track.confidence,
                frame=self.track.frame,
                observed=self.track.observed,
                fps=self.track.fps or np.nan,
                image_size=self.track.image_size,
                track_id=self.track.track_id,
                skeleton=self.skeleton,
                joint_names=list(get_skeleton(self.skeleton).joint_names),
                input_skeleton=self.track.skeleton,
                camera=self.camera.to_vector().cpu().numpy(),
                slope_limit=np.nan if self.camera.slope_limit is None else self.camera.slope_limit,
                settings=json.dumps(self.settings),
            )

    @classmethod
    def load(cls, path: str | Path) -> SampledPerson:
        """What `save` wrote, called by the name of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is something else.
        """
        from .data.keypoints.arrays import load_members
        from .geometry import Camera

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a result of `probpose sample` (.npz), found nothing there")
        members = load_members(path)
        missing = {"hypotheses", "keypoints_2d", "confidence", "frame", "input_skeleton", "camera"} - set(members)
        if missing:
            raise ValueError(f"{path} is no result of `probpose sample`: it has no {', '.join(sorted(missing))}")
        size = tuple(map(int, members["image_size"]))
        fps = float(members["fps"])
        track = KeypointTrack(
            members["keypoints_2d"], members["confidence"], members["frame"], int(members.get("track_id", 0)),
            str(members["input_skeleton"]), size, fps if np.isfinite(fps) else None, {"path": str(path)},
        )  # fmt: skip
        outputs = {key: members.get(key) for key in _OUTPUTS}
        limit = float(members.get("slope_limit", np.nan))
        camera = replace(Camera.from_vector(members["camera"], image_size=size), slope_limit=None if np.isnan(limit) else limit)
        return cls(path.stem, track, str(members["skeleton"]), **outputs, camera=camera, settings=json.loads(str(members["settings"])))


def sample_person(
    pipe: Any, track: KeypointTrack, name: str = "person", seed: int = 0, generator: Any = None, **call: Any
) -> SampledPerson:  # fmt: skip
    """Sample the motion of one track.

    Args:
        pipe: a pipeline.
        track: 2D keypoints with a known image size; 30 frames per second if the track does not tell.
        name: what to call the person.
        seed: of the sampling; the same seed gives the same motion.
        generator: a `torch.Generator` instead of the seed.
        call: further words of the pipeline's call: `camera`, `num_hypotheses`, `aggregation`, …

    Raises:
        ValueError: what the pipeline refuses, and a track without an image size.
    """
    import torch

    if track.image_size is None:
        raise ValueError("the image size is not known: give it when reading the keypoints, image_size=(width, height)")
    generator = torch.Generator().manual_seed(seed) if generator is None else generator
    output = pipe(
        track.keypoints_2d, track.confidence, image_size=track.image_size, skeleton=track.skeleton, fps=track.fps or 30.0,
        generator=generator, output_type="np", **call,
    )  # fmt: skip
    settings = {key: value for key, value in call.items() if isinstance(value, (str, int, float, bool))}
    return SampledPerson.from_output(name, track, output, pipe.skeleton, {"seed": seed, **settings})


def name_clips(tracks: list[KeypointTrack], recording: str, max_gap: float = 1.0) -> dict[str, KeypointTrack]:
    """The clips of a recording by name: "walk" of a single one, "walk_person3" of several people, "walk_person3_part2" of somebody
    who was out of sight for longer than `max_gap` seconds in between."""
    from .data import split_at_gaps

    clips = {}
    for track in tracks:
        person = recording if len(tracks) == 1 else f"{recording}_person{track.track_id}"
        parts = split_at_gaps(track, max_gap)
        clips |= {person if len(parts) == 1 else f"{person}_part{number}": part for number, part in enumerate(parts, 1)}
    return clips
