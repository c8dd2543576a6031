"""Fits the centres of the Pose Structure Score on the training clips of a motion archive.

Every frame is turned to random azimuths in front of a level camera (x right, y down, z forward), as it is and mirrored.
The centres that come with the library were made by

    python examples/fit_structure_centres.py cmu.npz structure_centres_h36m_17.npz

from the training clips of the CMU Graphics Lab Motion Capture Database (mocap.cs.cmu.edu, created with funding from NSF
EIA-0196217), laid out as `probpose.data.MocapClips` reads it. Five minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probpose.data import MocapClips
from probpose.files import replacing
from probpose.metrics import fit_structure_centres
from probpose.skeletons import get_skeleton


def seen_by_a_camera(local: Tensor, turns: int, seed: int) -> Tensor:
    """Poses `(2 * turns * frames, joints, 3)` in camera axes of poses `(frames, joints, 3)` in world axes (z up).

    Args:
        local: metres, relative to the root.
        turns: random azimuths for every frame.
        seed: of the azimuths.
    """
    local = local.repeat(turns, 1, 1)
    azimuth = 2 * math.pi * torch.rand(len(local), 1, generator=torch.Generator().manual_seed(seed))
    cos, sin = azimuth.cos(), azimuth.sin()
    x, y, z = local.unbind(-1)
    poses = torch.stack([cos * x - sin * y, -z, sin * x + cos * y], dim=-1)
    mirrored = poses[:, list(get_skeleton("h36m_17").flip_index)] * torch.tensor([-1.0, 1.0, 1.0])
    return torch.cat([poses, mirrored])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="motion archive (.npz)")
    parser.add_argument("output", type=Path, help="file to write (.npz)")
    parser.add_argument("--centres", type=int, nargs="+", default=[50, 100], help="numbers of centres (%(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="azimuths for every frame (%(default)s)")
    parser.add_argument("--restarts", type=int, default=10, help="starts of k-means (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of azimuths and starts (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    poses = seen_by_a_camera(MocapClips(options.archive, split="train").local, options.turns, options.seed)
    with replacing(options.output) as path:
        np.savez(path, **{f"centres_{k}": fit_structure_centres(poses, k, options.seed, options.restarts).numpy() for k in options.centres})
    print(f"{len(poses)} poses; SHA-256 of {options.output}: {hashlib.sha256(options.output.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
