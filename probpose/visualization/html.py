"""A page to turn, play and question: one offline HTML file per person, Plotly included."""

from pathlib import Path
from typing import Any

import numpy as np

from probpose.skeletons import Skeleton
from probpose.visualization.common import (
    CAMERA_UP,
    COLOURS,
    as_array,
    as_estimate,
    as_keypoints,
    limbs,
    replacing,
    side_of,
    upright,
)

INK, FAINT, PAPER = "#3B3B3B", "#D5D5D5", "#F7F7F7"
SIDES = ("right", "left", "centre")
LABELS = {"right": "pose: person's right", "left": "pose: person's left", "centre": "pose: torso and head"}


def write_html(
    path: str | Path,
    hypotheses: Any,
    pose: Any,
    uncertainty: Any,
    keypoints_2d: Any = None,
    root: Any = None,
    fps: float | None = None,
    skeleton: str = "h36m_17",
    title: str = "Pose distribution",
    overwrite: bool = False,
    max_hypotheses: int = 20,
    max_frames: int = 300,
    confidence: Any = None,
    up: Any = CAMERA_UP,
) -> Path:
    """Writes one person's clip as an interactive page: a scene to rotate, a slider to play, a legend to switch.

    Without `root` every pose stands on the floor with its lowest joint, since root-relative motion does not know its
    height; with `root` the person moves through the room and the floor lies below the lowest joint of the clip.

    Args:
        path: the file to write, `.html`.
        hypotheses: `(K, frames, joints, 3)` metres, camera axes, relative to the root; array or tensor.
        pose: the aggregated pose, `(frames, joints, 3)` metres.
        uncertainty: `(frames, joints)` metres.
        keypoints_2d: `(frames, joints, 2)` pixels, shown beside the scene; NaN where nothing was observed.
        root: the root's trajectory, `(frames, 3)` metres, camera axes.
        fps: frames per second of the clip; without it the clip plays at 30 and the slider shows no seconds.
        skeleton: registry name of the joint order.
        title: headline of the page.
        overwrite: whether an existing file may be replaced.
        max_hypotheses: at most so many hypotheses are drawn, the first ones.
        max_frames: a longer clip is thinned evenly to at most so many frames, and the page says so.
        confidence: `(frames, joints)` in 0..1 of the 2D keypoints, drawn paler the lower it is.
        up: the world's upward direction in camera axes, to stand people upright that a tilted camera saw.

    Returns:
        The path.

    Raises:
        ValueError: if a shape, `fps`, `max_frames` or the suffix of `path` does not fit.
        FileExistsError: if `path` exists and `overwrite` is false.
        FileNotFoundError: if the folder of `path` does not exist.
        ImportError: if Plotly is missing.
    """
    try:
        from plotly.io import to_html
    except ImportError as error:
        raise ImportError("write_html needs Plotly: pip install probpose") from error

    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`path` must end in .html, not {str(path)!r}")
    if fps is not None and not fps > 0:
        raise ValueError(f"`fps` must be positive, not {fps}")
    if max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1, not {max_frames}")
    total = np.shape(hypotheses)[0] if np.ndim(hypotheses) else 0
    described, hypotheses, pose, uncertainty = as_estimate(hypotheses, pose, uncertainty, skeleton, max_hypotheses)
    frames = len(pose)
    stride = -(-frames // max_frames)
    shown = np.arange(0, frames, stride)

    observed = None
    if keypoints_2d is not None:
        observed = tuple(values[shown] for values in as_keypoints(keypoints_2d, confidence, *uncertainty.shape))
    hypotheses, pose = upright(hypotheses[:, shown], up), upright(pose[shown], up)
    hypotheses, pose = _place(hypotheses, pose, None if root is None else upright(as_array(root, "root", (frames, 3))[shown], up))
    changing = _Traces(described, hypotheses, pose, 1000 * uncertainty[shown], observed)
    notes = [f"{len(hypotheses)} of {total} hypotheses"] if total > len(hypotheses) else [f"K = {total}"]
    if stride > 1:
        notes.append(f"every {stride}th frame ({len(shown)} of {frames})")
    figure = {
        "data": [*changing.at(0, whole=True), *_floor(pose)],
        "frames": [
            {"name": str(frame), "data": changing.at(index), "traces": list(range(changing.count))}
            for index, frame in enumerate(shown)
        ],
        "layout": _layout(f"<b>{title}</b>   <sub>{', '.join(notes)}</sub>", hypotheses, pose, observed, shown, fps, stride),
    }
