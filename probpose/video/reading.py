"""From a video to tracks of 2D keypoints, one per person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from probpose.data import KeypointTrack

from .detector import Detector, check_detector, detect, load_detector
from .frames import Video
from .tracking import track_people


def read_video(
    path: str | Path | Video,
    detector: Detector | str = "vitpose",
    *,
    fps: float | None = None,
    skeleton: str | None = None,
    batch_size: int = 8,
    max_gap: float = 1.0,
    progress: bool = True,
) -> list[KeypointTrack]:
    """Find the people in a video and follow them.

    Args:
        path: the video; any that FFmpeg decodes. Variable frame rates are made constant, and rotation flags are heeded.
        detector: what finds people and their joints: a `Detector` (any function from frames to people), or a name for `load_detector`.
        fps: frames per second to read the video at. Default: its own.
        skeleton: joint order of what the detector finds. Default: the detector's `skeleton`, or coco_17.
        batch_size: number of frames in one call of the detector.
        max_gap: seconds for which a person may be out of sight and still be the same. Unseen frames within are NaN, with confidence 0.
        progress: show a progress bar.

    Returns:
        One track per person as `read_keypoints` returns them, most observed frames first; none if nobody was found.
        `source["notes"]` tells what was done to the video and to detections.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no video, or a broken one; a detector that does not return what it should.
        ImportError: the extra `video` is not installed.
    """
    from tqdm.auto import tqdm

    detector = load_detector(detector) if isinstance(detector, str) else detector
    skeleton, _ = check_detector(detector, skeleton)
    video = path if isinstance(path, Video) else Video.open(path, fps)
    with tqdm(total=video.num_frames, desc=f"detecting people in {video.path.name}", unit="frame", disable=not progress) as bar:
        people = list(detect(_counted(video.frames(), bar), detector, batch_size, skeleton))
    source = {"path": str(video.path), "format": "video", "notes": list(video.notes)}
    return track_people(people, skeleton, video.fps, video.size, max_gap=max_gap, source=source)


def _counted(frames: Iterator[np.ndarray], bar: Any) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame
        bar.update()
