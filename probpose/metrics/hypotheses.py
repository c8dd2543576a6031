"""Sets of hypotheses against the truth.

Oracles (P-Best, J-Best, minimum errors) look at the true pose and therefore live here and not among the aggregators.
Whole sets are scored in pieces that fit the processor's cache: differences in the precision of the poses, alignments
and sums in double precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probpose.geometry import Camera, procrustes_align, reprojection_error, select_by_reprojection
from probpose.skeletons import Skeleton, get_skeleton

from .errors import acceleration_error, auc, mpjve, n_mpjpe, pck
from .inputs import Array, at_least_single, check_finite, distance, hypothesis_set, mean_mm
from .plausibility import bone_length_deviation, bone_length_error, symmetry_error

SCOPES = ("batch", "window", "frame")
LEVELS = {"sequence": "window", "frame": "frame"}

_PIECE = 2**17  # joints at a time; a few megabytes of temporary values


def hypothesis_table(
    hypotheses: Array,
    target: Array,
    keypoints_2d: Array,
    camera: Camera | Array,
    root: Array,
    protocol: int = 1,
    p_best_scope: str = "batch",
    root_index: int = 0,
    mask: Array | None = None,
) -> dict[str, float] | dict[str, list[float]]:
    """The four numbers of multi-hypothesis papers (D3DP, ICCV 2023): P-Agg, J-Agg, P-Best, J-Best.

    `p_agg` is the error of the mean pose; `j_agg` (JPMA) takes each joint from the hypothesis that reprojects nearest
    to the keypoint; `p_best` and `j_best` let the truth choose a whole hypothesis, or one per joint. The root joint is
    set to zero first.

    Under protocol 2 every hypothesis is aligned to the truth on its own: a joint chosen by J-Agg or J-Best keeps the
    error it has in the alignment of its own hypothesis, the choice of J-Agg is made before aligning, and P-Agg aligns
    the mean pose.

    Args:
        hypotheses: `(batch, num_hypotheses, frames, joints, 3)` metres, or `(batch, iterations, num_hypotheses, frames,
            joints, 3)`, which gives a list with a value per iteration. The batch axis may be missing everywhere.
        target: `(batch, frames, joints, 3)` metres, relative to the root joint.
        keypoints_2d: `(batch, frames, joints, 2)` in the camera's own unit; NaN = not observed.
        camera: a `Camera` or the field's vector `(..., 9)`.
        root: root trajectory `(batch, frames, 3)` or `(batch, frames, 1, 3)`, metres.
        protocol: 1, errors as they are, or 2, after alignment.
        p_best_scope: how far one P-Best hypothesis reaches: "batch" is the published rule, one for all windows of the
            batch (it depends on the batch size, although the windows' noises are independent); "window" and "frame"
            choose anew, and give less.
        root_index: the root joint.
        mask: `(batch, frames)` or `(batch, frames, joints)` valid entries of `target`.

    Returns:
        `p_agg`, `j_agg`, `p_best`, `j_best` in mm.

    Raises:
        ValueError: unknown protocol or scope, shapes that do not fit, values that are not finite.
    """
    if protocol not in (1, 2):
        raise ValueError(f"protocol must be 1 or 2, got {protocol!r}")
    poses, truth, valid = _rooted_set(hypotheses, target, mask, root_index)
    chosen = _j_agg_index(poses, hypotheses, target, keypoints_2d, camera, root)
    errors = _joint_errors(poses, truth, valid, aligned=protocol == 2)
    mean_errors = _joint_errors(_mean(poses), truth, valid, aligned=protocol == 2).squeeze(2)
    table = _table(errors, mean_errors, chosen, valid, p_best_scope)
    return {name: _per_iteration(error, valid, hypotheses, target) for name, error in table.items()}


def min_mpjpe(hypotheses: Array, target: Array, level: str = "sequence", mask: Array | None = None) -> float | list[float]:
    """The error in mm of the best hypothesis, which the truth chooses (Platypose, arXiv 2403.06164).

    Args:
        hypotheses: `([batch,] [iterations,] num_hypotheses, frames, joints, 3)` metres; all joints count as they are.
        target: `([batch,] frames, joints, 3)` metres.
        level: "sequence": one hypothesis for each sequence of the batch; "frame": one for each frame, which gives less.
        mask: valid entries of `target`.

    Returns:
        Millimetres; a list of them if there are iterations.

    Raises:
        ValueError: unknown level, shapes that do not fit, values that are not finite.
    """
    return _least_error(hypotheses, target, level, mask, aligned=False)


def min_pa_mpjpe(hypotheses: Array, target: Array, level: str = "sequence", mask: Array | None = None) -> float | list[float]:
    """As `min_mpjpe` after every hypothesis's own alignment to the truth; the best one need not be the same."""
    return _least_error(hypotheses, target, level, mask, aligned=True)


def score_hypotheses(
    hypotheses: Array,
    target: Array,
    keypoints_2d: Array | None = None,
    camera: Camera | Array | None = None,
    root: Array | None = None,
    skeleton: str | Skeleton = "h36m_17",
    p_best_scope: str = "batch",
    mask: Array | None = None,
) -> dict[str, float]:
    """Everything that is reported of a set of hypotheses, at little more than the cost of one table.

    Args:
        hypotheses: `([batch,] num_hypotheses, frames, joints, 3)` metres; the skeleton's root is set to zero first.
        target: `([batch,] frames, joints, 3)` metres.
        keypoints_2d, camera, root: as in `hypothesis_table`; all three or none, and then there is no J-Agg.
        skeleton: of the poses.
        p_best_scope: as in `hypothesis_table`.
        mask: valid entries of `target`.

    Returns:
        Millimetres unless said otherwise. `p_agg`, `j_agg`, `p_best`, `j_best` of both protocols, the second with the
        prefix `pa_`, and `min_mpjpe_*`, `min_pa_mpjpe_*` with `sequence` and `frame`; of the mean pose `n_mpjpe`,
        `mpjve` and `acceleration` (per frame and per frame², not for fewer than three frames), `pck` and `auc`
        (percent, over all joints); of every hypothesis, averaged, `symmetry`, `bone_length_error` and
        `bone_length_deviation`. `p_agg` and `pa_p_agg` are the mean pose's MPJPE and PA-MPJPE.

    Raises:
        ValueError: unknown scope, some but not all of the projection's arguments, a skeleton without a root or with
            other joints, shapes that do not fit, values that are not finite.
    """
    skeleton = get_skeleton(skeleton)
    projection = {"keypoints_2d": keypoints_2d, "camera": camera, "root": root}
    missing = [name for name, value in projection.items() if value is None]
    if 0 < len(missing) < len(projection):
        raise ValueError(f"keypoints_2d, camera and root must be given together, missing are {missing}")
    if skeleton.root is None or hypotheses.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"hypotheses must have the {skeleton.num_joints} joints of {skeleton.name!r}, root included, got {tuple(hypotheses.shape)}"
        )
    if hypotheses.ndim != target.ndim + 1:
        raise ValueError(
            "hypotheses and target must have shapes ([batch,] num_hypotheses, frames, joints, 3) and ([batch,] frames, joints, 3), "
            f"got {tuple(hypotheses.shape)} and {tuple(target.shape)}"
        )
    poses, truth, valid = _rooted_set(hypotheses, target, mask, skeleton.root)
    chosen = None if missing else _j_agg_index(poses, hypotheses, target, **projection)
    mean = _mean(poses)
    errors = {}
    for prefix, aligned in (("", False), ("pa_", True)):
        all_errors, mean_errors = (_joint_errors(p, truth, valid, aligned) for p in (poses, mean))
        table = _table(all_errors, mean_errors.squeeze(2), chosen, valid, p_best_scope)
        table |= {f"min_{prefix}mpjpe_{level}": _p_best_error(all_errors, scope, valid) for level, scope in LEVELS.items()}
        errors |= {name if name.startswith("min_") else prefix + name: error for name, error in table.items()}
    scores = {name: mean_mm(error[:, 0], valid) for name, error in errors.items()}

    mean, poses, mask = mean[:, 0, 0], poses[:, 0], None if mask is None else valid
    scores |= {metric.__name__: metric(mean, truth, mask=mask) for metric in (n_mpjpe, pck, auc)}
    if truth.shape[1] > 2:
        scores |= {"mpjve": mpjve(mean, truth, mask), "acceleration": acceleration_error(mean, truth, mask)}
    return scores | {
        "symmetry": symmetry_error(poses, skeleton.bones, skeleton.flip_pairs, mask),
        "bone_length_error": bone_length_error(poses, truth, skeleton.bones, mask),
        "bone_length_deviation": bone_length_deviation(poses, skeleton.bones, mask),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The choices of oracles
# ---------------------------------------------------------------------------------------------------------------------


def p_best(hypotheses: Array, target: Array, scope: str = "batch", mask: Array | None = None) -> tuple[Tensor, Tensor]:
    """Oracle: the hypothesis with the least mean error.

    Args:
        hypotheses: `([batch,] [iterations,] num_hypotheses, frames, joints, 3)` metres.
        target: `([batch,] frames, joints, 3)` metres.
        scope: "batch", "window" or "frame", what one choice is made for; see `hypothesis_table`.
        mask: valid entries of `target`.

    Returns:
        The poses `([batch,] [iterations,] frames, joints, 3)` and the index of the hypothesis for every frame
        `([batch,] [iterations,] frames)`, constant over what the scope joins.

    Raises:
        ValueError: unknown scope, shapes that do not fit, values that are not finite.
    """
    poses, truth, valid = hypothesis_set(hypotheses, target, mask)
    index = _p_best_index(distance(poses.double(), truth[:, None, None].double()), scope, valid)
    shape = _without_hypotheses(hypotheses, target)
    return _pick(poses, index[..., None, None]).reshape(shape), index.reshape(shape[:-2])


def j_best(hypotheses: Array, target: Array) -> tuple[Tensor, Tensor]:
    """Oracle: for every joint of every frame the hypothesis nearest to the truth.

    Args:
        hypotheses: `([batch,] [iterations,] num_hypotheses, frames, joints, 3)` metres.
        target: `([batch,] frames, joints, 3)` metres.

    Returns:
        The composite poses `([batch,] [iterations,] frames, joints, 3)` and the indices `([batch,] [iterations,]
        frames, joints)`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite.
    """
    poses, truth, _ = hypothesis_set(hypotheses, target, None)
    index = select_by_reprojection(distance(poses.double(), truth[:, None, None].double()), dim=2)
    shape = _without_hypotheses(hypotheses, target)
    return _pick(poses, index[..., None]).reshape(shape), index.reshape(shape[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# Shared pieces: sets are `(batch, iterations, num_hypotheses, frames, joints, 3)` from here on
# ---------------------------------------------------------------------------------------------------------------------


def _rooted_set(hypotheses: Array, target: Array, mask: Array | None, root_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of hypotheses and target with the root at zero, and the validity of the target."""
    poses, truth, valid = hypothesis_set(hypotheses, target, mask)
    if root_index not in range(truth.shape[-2]):
        raise ValueError(f"root_index must be a joint in 0..{truth.shape[-2] - 1}, got {root_index!r}")
    poses, truth = poses.clone(), truth.clone()
    poses[..., root_index, :] = 0
    truth[..., root_index, :] = 0
    return poses, truth, valid


def _mean(poses: Tensor) -> Tensor:
    """The mean pose as a set of one hypothesis, in double precision."""
    return poses.mean(2, keepdim=True, dtype=torch.float64)


def _j_agg_index(poses: Tensor, hypotheses: Array, target: Array, keypoints_2d: Array, camera: Camera | Array, root: Array) -> Tensor:
    """The hypothesis `(batch, iterations, frames, joints)` that reprojects nearest, in the precision an aggregator would see."""
    keypoints_2d, root = (torch.as_tensor(value).to(poses.device) for value in (keypoints_2d, root))
    if keypoints_2d.ndim != target.ndim:
        raise ValueError(f"keypoints_2d must have shape {(*target.shape[:-1], 2)}, got {tuple(keypoints_2d.shape)}")
    check_finite("root", root)
    own_root = root.numel() * target.shape[-2] != math.prod(target.shape)  # one per hypothesis cannot be cut in pieces here
    step = poses.shape[2] if own_root else max(1, _PIECE * poses.shape[2] // math.prod(poses.shape[:-1]))
    pieces = poses.reshape(hypotheses.shape).split(step, dim=-4)
    errors = torch.cat([reprojection_error(piece, keypoints_2d, camera, root) for piece in pieces], dim=-3)
    return select_by_reprojection(errors.reshape(poses.shape[:-1]), dim=2)


def _joint_errors(poses: Tensor, truth: Tensor, valid: Tensor, aligned: bool) -> Tensor:
    """Distances to the truth `(batch, iterations, num_hypotheses, frames, joints)`, if wanted after each pose's alignment."""
    poses, truth = at_least_single(poses, truth)
    errors = poses.new_empty(poses.shape[:-1])
    step = max(1, _PIECE * poses.shape[3] // errors.numel())
    for start in range(0, poses.shape[3], step):
        frames = slice(start, start + step)
        part, goal = poses[..., frames, :, :], truth[:, None, None, frames]
        if aligned:
            part, goal = part.double(), goal.double()
            part = procrustes_align(part, goal, weights=valid[:, None, None, frames])
        errors[..., frames, :] = distance(part, goal)
    return errors


def _table(errors: Tensor, mean_errors: Tensor, chosen: Tensor | None, valid: Tensor, p_best_scope: str) -> dict[str, Tensor]:
    """The errors `(batch, iterations, frames, joints)` of the poses that each rule builds; J-Agg only with its choice."""
    table = {"p_agg": mean_errors}
    if chosen is not None:
        table["j_agg"] = _pick(errors, chosen)
    return table | {"p_best": _p_best_error(errors, p_best_scope, valid), "j_best": errors.amin(2)}


def _least_error(hypotheses: Array, target: Array, level: str, mask: Array | None, aligned: bool) -> float | list[float]:
    if level not in LEVELS:
        raise ValueError(f"level must be one of {tuple(LEVELS)}, got {level!r}")
    poses, truth, valid = hypothesis_set(hypotheses, target, mask)
    errors = _joint_errors(poses, truth, valid, aligned)
    return _per_iteration(_p_best_error(errors, LEVELS[level], valid), valid, hypotheses, target)


def _per_iteration(errors: Tensor, valid: Tensor, hypotheses: Array, target: Array) -> float | list[float]:
    """The mean of `(batch, iterations, frames, joints)` for every iteration, as a list if the hypotheses have that axis."""
    values = [mean_mm(error, valid) for error in errors.unbind(1)]
    return values if hypotheses.ndim == target.ndim + 2 else values[0]


def _without_hypotheses(hypotheses: Array, target: Array) -> tuple[int, ...]:
    return (*hypotheses.shape[: hypotheses.ndim - 4], *target.shape[-3:])


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """From `(batch, iterations, num_hypotheses, ...)` the values of hypothesis `index (batch, iterations, ...)`."""
    return torch.take_along_dim(values, index.unsqueeze(2), dim=2).squeeze(2)


def _p_best_error(errors: Tensor, scope: str, valid: Tensor) -> Tensor:
    return _pick(errors, _p_best_index(errors, scope, valid)[..., None])


def _p_best_index(errors: Tensor, scope: str, valid: Tensor) -> Tensor:
    """Hypothesis `(batch, iterations, frames)` with the least sum of errors over what the scope joins."""
    if scope not in SCOPES:
        raise ValueError(f"p_best scope must be one of {SCOPES}, got {scope!r}")
    sums = (errors * valid[:, None, None]).sum(-1, dtype=torch.float64)
    if scope != "frame":
        sums = sums.sum((0, 3) if scope == "batch" else 3, keepdim=True)
    index = select_by_reprojection(sums, dim=2)
    return index.expand(errors.shape[0], errors.shape[1], errors.shape[3])
