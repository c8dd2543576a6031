"""One person's keypoints through a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .options import pinhole


def check_size(track: Any, path: Path) -> None:
    if track.image_size is None:
        raise ValueError(f"{path} does not tell the image size: pass --image-size WIDTHxHEIGHT")


def sample_track(
    pipe: Any, track: Any, generator: Any, settings: dict, focal: float | None, conversion: str | None, max_batch_size: int
) -> Any:  # fmt: skip
    camera = None if focal is None else pinhole(focal, track.image_size)
    return pipe(
        track.keypoints_2d, track.confidence, image_size=track.image_size, camera=camera, skeleton=track.skeleton,
        conversion=conversion, fps=track.fps or 30.0, generator=generator, max_batch_size=max_batch_size, output_type="np", **settings,
    )  # fmt: skip
