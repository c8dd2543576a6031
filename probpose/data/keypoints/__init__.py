"""2D keypoint files of common pose estimators, read into tracks of people, and our own file format."""

from .arrays import write_keypoints
from .linking import link
from .reader import detect_format, list_formats, read_keypoints
from .tracks import KeypointTrack

__all__ = ["KeypointTrack", "detect_format", "link", "list_formats", "read_keypoints", "write_keypoints"]
