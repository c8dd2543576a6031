"""Cameras, rotations, rigid alignment and root estimation (torch only)."""

from .camera import (
    Camera,
    check_image_size,
    denormalise_screen,
    h36m_camera,
    normalise_screen,
    parse_image_size,
    reexpress_keypoints,
)
from .procrustes import procrustes_align
from .reprojection import SCREEN_FOCAL, detection_sigma, reprojection_error, select_by_reprojection
from .resection import fit_lens, resection
from .root import REFERENCE_FOCAL, estimate_root, root_of_hypotheses
from .rotation import quaternion_to_matrix, rotation_between_z_and, rotation_looking_along

__all__ = [
    "REFERENCE_FOCAL",
    "SCREEN_FOCAL",
    "Camera",
    "check_image_size",
    "denormalise_screen",
    "detection_sigma",
    "estimate_root",
    "fit_lens",
    "h36m_camera",
    "normalise_screen",
    "parse_image_size",
    "procrustes_align",
    "quaternion_to_matrix",
    "reexpress_keypoints",
    "reprojection_error",
    "resection",
    "root_of_hypotheses",
    "rotation_between_z_and",
    "rotation_looking_along",
    "select_by_reprojection",
]
