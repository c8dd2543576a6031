"""Videos of people: frames, a detector of 2D keypoints, who is who. Names are imported on first use.

    from probpose.video import read_video
    tracks = read_video("clip.mp4")  # one KeypointTrack per person, as read_keypoints returns them

needs `pip install probpose[video]`. A `Detector` of your own is any function from frames to the people in them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Detector": "detector",
    "People": "detector",
    "ViTPoseDetector": "vitpose",
    "Video": "frames",
    "detect": "detector",
    "is_video": "frames",
    "load_detector": "detector",
    "read_video": "reading",
    "track_people": "tracking",
    "write_video": "frames",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
