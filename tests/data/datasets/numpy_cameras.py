"""Cameras in plain NumPy, and what describes files of keypoints."""

import json
from importlib import resources

import numpy as np
from scipy.spatial.transform import Rotation

from probpose.skeletons import get_skeleton

RECORD = json.loads(resources.files("probpose.geometry").joinpath("h36m_cameras.json").read_text())


def world_to_camera(points, place):
    """R⁻¹ (X - t) with SciPy's rotations."""
    w, x, y, z = place["orientation"]
    position = np.array(place["translation"]) / 1000
    return Rotation.from_quat([x, y, z, w]).inv().apply((points - position).reshape(-1, 3)).reshape(points.shape)


def project(points, lens):
    """The field's camera: rays clamped to 45 degrees, radial and tangential distortion."""
    a = np.clip(points[..., :2] / points[..., 2:], -1, 1)
    r2 = (a**2).sum(-1, keepdims=True)
    k, p = (np.array(lens.get(key, [0] * n)) for key, n in (("radial_distortion", 3), ("tangential_distortion", 2)))
    factor = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3 + (p * a).sum(-1, keepdims=True)
    return (a * factor + p * r2) * lens["focal_length"] + lens["center"]


def metadata(skeleton, layout=True):
    joints = get_skeleton(skeleton)
    content = {"num_joints": joints.num_joints, "keypoints_symmetry": [list(joints.left), list(joints.right)]}
    return {"layout_name": skeleton.split("_")[0], **content} if layout else content
