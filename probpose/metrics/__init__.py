"""Errors of 3D poses and of sets of hypotheses, as the field reports them.

Poses come in metres, `(..., frames, joints, 3)`, as tensors or NumPy arrays; results are Python floats in millimetres
unless a function says otherwise, averaged over everything. A `mask`, `(..., frames)` or `(..., frames, joints)`, marks
the valid entries; what it leaves out may hold anything, NaN included, and its own last leading axes may be missing, so
that one mask serves all hypotheses of a clip. Sums run in double precision.

`errors`: one pose against the truth. `hypotheses`: sets of poses against the truth. `plausibility`: bones, joint limits
and sliding feet. `structure`: the pose as a whole.
"""

from .errors import HP3D_GROUPS, acceleration_error, auc, hp3d_scores, joint_groups, mpjpe, mpjve, n_mpjpe, pa_mpjpe, pck
from .hypotheses import hypothesis_table, j_best, min_mpjpe, min_pa_mpjpe, p_best, score_hypotheses
from .plausibility import (
    JOINT_LIMITS,
    bone_length_deviation,
    bone_length_error,
    foot_skate,
    joint_angles,
    joint_limit_violations,
    symmetry_error,
)
from .structure import fit_structure_centres, pose_structure_score, structure_centres, structure_scores

__all__ = [
    "HP3D_GROUPS",
    "JOINT_LIMITS",
    "acceleration_error",
    "auc",
    "bone_length_deviation",
    "bone_length_error",
    "fit_structure_centres",
    "foot_skate",
    "hp3d_scores",
    "hypothesis_table",
    "j_best",
    "joint_angles",
    "joint_groups",
    "joint_limit_violations",
    "min_mpjpe",
    "min_pa_mpjpe",
    "mpjpe",
    "mpjve",
    "n_mpjpe",
    "p_best",
    "pa_mpjpe",
    "pck",
    "pose_structure_score",
    "score_hypotheses",
    "structure_centres",
    "structure_scores",
    "symmetry_error",
]
