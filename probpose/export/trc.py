"""Track row column (`.trc`): marker trajectories for OpenSim, one marker per joint.

World axes with y up, as OpenSim's own, millimetres, tab separated: five lines of header and an empty one, then one row per frame with its
number from 1, its time in seconds and x, y, z of every marker. The joints are those of the pose, unchanged. Hypotheses and uncertainty
have no place in this format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .motion import Motion


def write_trc(motion: Motion, path: Path) -> None:
    """Write the pose of a motion."""
    names, frames = motion.skeleton.joint_names, motion.num_frames
    places = 1000 * motion.in_world(motion.pose).reshape(frames, -1)
    rate = f"{motion.fps:g}"
    rows = [
        ["PathFileType", "4", "(X/Y/Z)", f"{motion.name}.trc"],
        ["DataRate", "CameraRate", "NumFrames", "NumMarkers", "Units", "OrigDataRate", "OrigDataStartFrame", "OrigNumFrames"],
        [rate, rate, str(frames), str(len(names)), "mm", rate, "1", str(frames)],
        ["Frame#", "Time", *(cell for name in names for cell in (name, "", ""))],
        ["", "", *(f"{axis}{marker}" for marker in range(1, len(names) + 1) for axis in "XYZ")],
        [],
    ]
    numbers = np.arange(frames)
    table = np.column_stack([numbers + 1, numbers / motion.fps, places])
    with path.open("w", encoding="utf-8") as file:
        file.writelines("\t".join(row) + "\n" for row in rows)
        np.savetxt(file, table, fmt=["%d", "%.6f", *["%.3f"] * places.shape[1]], delimiter="\t")
