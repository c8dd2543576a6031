"""2D keypoint files, motion-capture clips and training windows. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "BodyVariation": "augmentation",
    "CameraVariation": "augmentation",
    "DetectorNoise": "augmentation",
    "DomainReport": "domains",
    "KeypointTrack": "keypoints",
    "MocapClips": "mocap",
    "MotionClip": "mocap_files",
    "PoseClip": "datasets",
    "PoseDataset": "datasets",
    "TargetTrack": "bridge",
    "TrainingWindows": "dataset",
    "clips_to_npz": "mocap_files",
    "compare_domains": "domains",
    "describe_frames": "keypoints.gaps",
    "detect_format": "keypoints",
    "list_datasets": "datasets",
    "list_formats": "keypoints",
    "load_dataset": "datasets",
    "read_keypoints": "keypoints",
    "read_motion": "mocap_files",
    "source_motions": "bridge",
    "split_at_gaps": "keypoints.gaps",
    "target_tracks": "bridge",
    "write_keypoints": "keypoints",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
