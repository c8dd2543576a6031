"""NumPy's archive (`.npz`): everything a motion holds, as it is.

`pose`, `root`, `hypotheses`, `uncertainty` where known, float32, metres, camera axes, poses relative to the root joint; `frame` numbers,
`fps`, `name`, `skeleton`, `joint_names`, `parents`; and the camera's fields under `camera_focal`, `camera_centre`, … Nothing in it needs
unpickling.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from .motion import Motion


def write_npz(motion: Motion, path: Path) -> None:
    """Write a motion."""
    arrays = {key: getattr(motion, key) for key in ("pose", "root", "hypotheses", "uncertainty")}
    camera = {} if motion.camera is None else {f"camera_{f.name}": getattr(motion.camera, f.name) for f in fields(motion.camera)}
    with path.open("wb") as file:  # to a path with another suffix NumPy would add its own
        np.savez_compressed(
            file,
            **{key: value.astype(np.float32) for key, value in arrays.items() if value is not None},
            **{key: value.numpy(force=True) if hasattr(value, "numpy") else value for key, value in camera.items() if value is not None},
            frame=motion.frames,
            fps=motion.fps,
            name=motion.name,
            skeleton=motion.skeleton.name,
            joint_names=list(motion.skeleton.joint_names),
            parents=motion.skeleton.parents,
        )
