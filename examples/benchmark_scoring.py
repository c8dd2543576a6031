"""How long does it take to score hypotheses? Seconds of every metric on one thread, on synthetic poses.

    python examples/benchmark_scoring.py --frames 10000 --hypotheses 20

The last line is `score_hypotheses`, which returns all of it at once from shared intermediate results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from probpose import metrics
from probpose.geometry import h36m_camera
from probpose.skeletons import get_skeleton


def synthetic_scene(frames: int, hypotheses: int, seed: int = 0) -> dict:
    """Arguments of `hypothesis_table`: a random target, hypotheses 50 mm around it and keypoints with 2 pixels of noise."""
    generator = torch.Generator().manual_seed(seed)
    target = 0.4 * torch.randn(frames, 17, 3, generator=generator)
    target[:, 0] = 0
    root = torch.tensor([0.2, -0.1, 4.5]) + 0.1 * torch.randn(frames, 3, generator=generator)
    camera = h36m_camera(1)
    return {
        "hypotheses": target + 0.05 * torch.randn(hypotheses, frames, 17, 3, generator=generator),
        "target": target,
        "keypoints_2d": camera.project(target + root[:, None]) + 2 * torch.randn(frames, 17, 2, generator=generator),
        "camera": camera,
        "root": root,
    }


def timed_metrics(scene: dict) -> dict[str, Callable]:
    """What is timed, by name."""
    hypotheses, target = scene["hypotheses"], scene["target"]
    mean, skeleton = hypotheses.mean(0), get_skeleton("h36m_17")
    pairs = ("mpjpe", "pa_mpjpe", "n_mpjpe", "mpjve", "acceleration_error", "pck", "auc")
    return {
        "hypothesis_table, protocol 1": lambda: metrics.hypothesis_table(**scene),
        "hypothesis_table, protocol 2": lambda: metrics.hypothesis_table(**scene, protocol=2),
        **{f"{name}, mean pose": partial(getattr(metrics, name), mean, target) for name in pairs},
        "symmetry_error": lambda: metrics.symmetry_error(hypotheses, skeleton.bones, skeleton.flip_pairs),
        "bone_length_error": lambda: metrics.bone_length_error(hypotheses, target, skeleton.bones),
        "bone_length_deviation": lambda: metrics.bone_length_deviation(hypotheses, skeleton.bones),
    }


def seconds(function: Callable, rounds: int) -> float:
    """The least wall time of some rounds, so that other programs on the machine count little."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10000, help="%(default)s")
    parser.add_argument("--hypotheses", type=int, default=20, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="%(default)s")
    options = parser.parse_args(arguments)
    for name, least in (("frames", 3), ("hypotheses", 1), ("rounds", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    scene = synthetic_scene(options.frames, options.hypotheses)
    times = {name: seconds(function, options.rounds) for name, function in timed_metrics(scene).items()}
    times["total"] = sum(times.values())
    times["score_hypotheses"] = seconds(lambda: metrics.score_hypotheses(**scene), options.rounds)
    print(f"{options.frames} frames, {options.hypotheses} hypotheses, 17 joints, {options.threads} thread(s)")
    for name, value in times.items():
        print(f"{name:<30} {value:8.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
