"""Sampled motions as files for other programs: animation, biomechanics, tables.

    from probpose.export import Motion, export
    motion = Motion.from_output(pipe(keypoints_2d, image_size=(1920, 1080)), fps=30)
    export(motion, "walk.bvh")

| format | what it is for | axes and unit | hypotheses |
|---|---|---|---|
| `bvh` | Blender, MotionBuilder: joint rotations by inverse kinematics | world, y up, centimetres | no |
| `glb` | Blender, game engines, web viewers: the same, with bones to look at | world, y up, metres | yes |
| `trc` | OpenSim: marker trajectories | world, y up, millimetres | no |
| `csv` | spreadsheets, pandas, R: one row per joint and frame | camera, metres | yes |
| `json` | COCO's layout, with keypoints in 3D and reprojected to pixels | camera, metres and pixels | yes |
| `npz` | NumPy: everything | camera, metres | yes |

A format of one motion takes a single hypothesis as `replace(motion, pose=motion.hypotheses[k])` (`dataclasses.replace`).
"""

from __future__ import annotations

from pathlib import Path

from probpose.files import replacing

from .bvh import write_bvh
from .coco import write_json
from .csv import write_csv
from .glb import write_glb
from .motion import Motion
from .npz import write_npz
from .rig import fit_rig, project_bone_lengths
from .trc import write_trc

__all__ = ["FORMATS", "Motion", "check_format", "export", "fit_rig", "project_bone_lengths"]

FORMATS = {"bvh": write_bvh, "glb": write_glb, "npz": write_npz, "csv": write_csv, "trc": write_trc, "json": write_json}
"""The writer `(motion, path)` of each format."""


def check_format(name: str) -> str:
    """The name of a format, in lower case and without a dot.

    Raises:
        ValueError: there is no such format; the message lists those there are.
    """
    plain = name.lower().removeprefix(".")
    if plain not in FORMATS:
        raise ValueError(f"unknown export format {name!r}; known are {', '.join(FORMATS)}")
    return plain


def export(motion: Motion, path: str | Path, format: str | None = None, overwrite: bool = False) -> Path:
    """Write a motion to a file, whole or not at all.

    Args:
        motion: what to write.
        path: the file.
        format: one of `FORMATS`; by default the suffix of `path` tells it.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        ValueError: an unknown format, or a motion that the format cannot hold (a skeleton of several trees as BVH).
        FileExistsError: the file exists and `overwrite` is false.
        FileNotFoundError: the folder around it does not exist.

    Warns:
        UserWarning: a format in world axes, and a motion without a root trajectory: the root joint then stays at the origin.
    """
    path = Path(path)
    write = FORMATS[check_format(path.suffix if format is None else format)]
    with replacing(path, overwrite) as unfinished:
        write(motion, unfinished)
    return path
