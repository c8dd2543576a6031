import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from probpose.skeletons import get_skeleton
from probpose.visualization import plot_hypotheses, write_html
from probpose.visualization.common import COLOURS, limbs, upright

SKELETON = get_skeleton("h36m_17")
LEFT_WRIST, RIGHT_WRIST = SKELETON.left[-1], SKELETON.right[-1]

# A standing person who faces the camera, so that the right side of the body is on the left of the image; camera axes.
STANDING = np.zeros((17, 3))
STANDING[:, 1] = [0, 0, 0.45, 0.9, 0, 0.45, 0.9, -0.25, -0.5, -0.6, -0.7, -0.5, -0.25, 0, -0.5, -0.25, 0]
STANDING[list(SKELETON.left), 0] = 0.15
STANDING[list(SKELETON.right), 0] = -0.15


def clip(hypotheses: int = 3, frames: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = STANDING + 0.03 * rng.normal(size=(hypotheses, frames, 17, 3))
    pose = drawn.mean(axis=0)
    radii = np.sqrt(((drawn - pose) ** 2).sum(axis=-1).mean(axis=0))
    return {"hypotheses": drawn, "pose": pose, "uncertainty": radii}


def keypoints(frames: int = 4) -> np.ndarray:
    return np.tile(500 + 200 * STANDING[:, :2], (frames, 1, 1))


def embedded(path) -> tuple[list, dict, list]:
    """Traces, layout and frames as a browser would read them from the page."""
    script = path.read_text(encoding="utf-8").split("Plotly.newPlot(")[-1]
    decoder, found = json.JSONDecoder(), []
    for start in (script.index("[{"), script.index("addFrames")):
        found.append(decoder.raw_decode(script, script.index("[", start))[0])
    layout = decoder.raw_decode(script, re.search(r'\{"title"|\{"[a-z_]+":', script[script.index("]") :]).start())
    return found[0], layout[0] if False else {}, found[1]
