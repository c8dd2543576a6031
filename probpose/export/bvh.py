"""Biovision Hierarchy (`.bvh`): a skeleton in rest pose and the rotations of its joints, for Blender and other animation programs.

World axes with y up, centimetres (Blender's importer: scale 0.01 makes metres of it). The rest pose is a T-pose; how the rotations are
found is told in :mod:`probpose.export.rig`. Bones have the median length of the clip, the same left and right, so the joints are those of
`project_bone_lengths`. Hypotheses and uncertainty have no place in this format.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from probpose.data.bvh import Recording

from .motion import Motion
from .rig import fit_rig

CENTIMETRES = 100.0
_END = 0.25  # length of the free end behind a last joint, in lengths of the bone before it


def write_bvh(motion: Motion, path: Path) -> None:
    """Write the pose of a motion.

    Raises:
        ValueError: a skeleton of several trees; the file holds one.
    """
    roots = [name for name, parent in zip(motion.skeleton.joint_names, motion.skeleton.parents) if parent < 0]
    if len(roots) > 1:
        raise ValueError(
            f"BVH holds one tree of joints, but skeleton {motion.skeleton.name!r} has {len(roots)} (from {', '.join(roots[:3])} …); "
            "convert the pose to its body first"
        )
    rig = fit_rig(CENTIMETRES * motion.in_world(motion.pose), motion.skeleton, motion.fps)
    orders = [_order(rig, node) for node in range(len(rig.names))]
    angles = [_euler_angles(rig.rotations[:, node], order) for node, order in enumerate(orders)]
    header = "\n".join([*_hierarchy(rig, orders), "MOTION", f"Frames: {motion.num_frames}", f"Frame Time: {1 / motion.fps:.8f}"])
    np.savetxt(path, np.concatenate([rig.translations[:, 0], *angles], axis=1), fmt="%.6f", header=header, comments="", encoding="utf-8")


def _hierarchy(rig: Recording, orders: list[str], node: int = 0, indent: str = "") -> list[str]:
    children = [child for child, parent in enumerate(rig.parents) if parent == node]
    offset = rig.translations[0, node] if node else np.zeros(3)
    channels = [] if node else ["Xposition", "Yposition", "Zposition"]
    channels += [f"{axis}rotation" for axis in orders[node]]
    lines = [f"{'JOINT' if node else 'ROOT'} {rig.names[node]}", "{"]
    lines += [f"\tOFFSET {_numbers(offset)}", f"\tCHANNELS {len(channels)} {' '.join(channels)}"]
    for child in children:
        lines += _hierarchy(rig, orders, child, "\t")
    if not children:
        lines += ["\tEnd Site", "\t{", f"\t\tOFFSET {_numbers(_END * offset)}", "\t}"]
    return [*([] if node else ["HIERARCHY"]), *(indent + line for line in [*lines, "}"])]


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values)


def _order(rig: Recording, node: int) -> str:
    """Order of a node's Euler angles, the outermost first.

    The middle angle is to stay away from 90 degrees, where the other two are undefined. Bones that rest upright turn least about y, the
    others, and bodies, about x.
    """
    children = [child for child, parent in enumerate(rig.parents) if parent == node]
    upright = len(children) == 1 and np.abs(rig.translations[0, children[0]]).argmax() == 1
    return "ZYX" if upright else "ZXY"


def _euler_angles(rotations: np.ndarray, order: str) -> np.ndarray:
    """Angles `(frames, 3)` in degrees, without jumps: neither by full turns nor between the two triples of each rotation.

    (a, b, c) and (a + 180, 180 - b, c + 180) are one rotation. The step from frame to frame is the same whether both frames have their
    triple exchanged or none, so only whether a frame differs from the last has to be decided.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock")  # one of the angles is then free, and 0
        angles = Rotation.from_matrix(rotations).as_euler(order, degrees=True)
    other = angles * [1, -1, 1] + 180
    stay, change = (np.abs((triple[1:] - angles[:-1] + 180) % 360 - 180).sum(axis=1) for triple in (angles, other))
    exchanged = np.r_[False, np.logical_xor.accumulate(change < stay)]
    return np.unwrap(np.where(exchanged[:, None], other, angles), period=360, axis=0)
