"""Labelled walks before a camera, in the conventions of several data sets."""

import torch

from probpose.data import PoseClip
from probpose.geometry import Camera
from probpose.skeletons import get_skeleton

SIZE = (1000, 1000)
LENS = Camera((1100.0, 1100.0), (500.0, 500.0), image_size=SIZE)
# Human3.6M's joint j is joint TO_H36M[j] of MPI-INF-3DHP, and back.
TO_H36M = [14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4]
TO_3DHP = [TO_H36M.index(j) for j in range(17)]
FLIP = list(get_skeleton("h36m_17").flip_index)


def clip_of(pose, name="walk", fps=30.0, skeleton="h36m_17", camera=LENS):
    return PoseClip(name, camera.project(pose), torch.ones(pose.shape[:2]), pose, camera, fps, skeleton)


def with_trajectory(pose, root=0):
    """VideoPose3D's convention."""
    relative = pose - pose[:, root : root + 1]
    relative[:, root] = pose[:, root]
    return relative
