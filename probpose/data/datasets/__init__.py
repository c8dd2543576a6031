"""Readers of the field's data sets. Each turns files as published into `PoseClip`s: 2D, confidence, 3D in camera space, camera, fps."""

from __future__ import annotations

from .clips import PoseClip, PoseDataset

__all__ = ["PoseClip", "PoseDataset"]
