"""More cameras, no training: how far views that the network never saw pull its hypotheses towards the truth.

A pipeline for one camera is guided by the reprojection into further ones. These are virtual: the clip's own camera, turned about the
vertical through the person's mean place by 90, 180 and 270 degrees. What they see is the true motion, with a detector's errors.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import dataclass, replace

import torch
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor
from tqdm.auto import tqdm

from probpose import ProbPosePipeline
from probpose.data import load_dataset
from probpose.data.datasets import PoseClip, PoseDataset
from probpose.evaluation import Table
from probpose.geometry import Camera
from probpose.guidance import GaussNewtonGuide, ReprojectionEnergy
from probpose.hub import bundled_model
from probpose.metrics import j_best, mpjpe

EPILOG = """
columns, all in mm but the last
  Each      MPJPE of the hypotheses, their mean
  Mean      MPJPE of the mean of the hypotheses
  Default   MPJPE of the model's own aggregation
  J-Best    oracle: MPJPE of the best hypothesis of each joint
  ms/frame  of the whole call

examples
  python examples/guided_d3dp.py --data mocap17_test.npz --every 12
  python examples/guided_d3dp.py --data mocap17_test.npz --every 12 --cameras 2,4 --spread 0.03,0.05,0.1 --substeps 2,3
"""

ANGLES = (0, 90, 180, 270)
"""Degrees by which the clip's own camera is turned, in the order in which cameras are added."""

NOISE, OUTLIER, OUTLIERS, CONFIDENCE = 3.0, 50.0, 0.02, 0.9
"""Standard deviations in pixels of a detector's errors and of its outliers, their share, and how sure it says it is of all of them."""


@dataclass(frozen=True)
class Run:
    """A row of the table: so many cameras and such a guide, None being the pipeline's."""

    cameras: int
    guide: GaussNewtonGuide | None

    @property
    def cells(self) -> list[str]:
        guide = self.guide
        if self.cameras == 1:
            return ["1", "-", "-", "-"]
        return [str(self.cameras), *(["default"] * 3 if guide is None else map(str, (guide.spread, guide.trust, guide.substeps)))]


def detected(camera: Camera, world: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels `(frames, joints, 2)` of joints in the world, as a detector might find them."""
    wrong = torch.rand(world.shape[:-1], generator=generator) < OUTLIERS
    sigma = torch.where(wrong, OUTLIER, NOISE)[..., None]
    return camera.project(camera.to_camera(world)) + sigma * torch.randn(*world.shape[:-1], 2, generator=generator)


def further_views(clip: PoseClip, seed: int) -> tuple[list[Camera], list[Tensor]]:
    """Cameras, and their keypoints `(frames, joints, 2)`, to go with the clip's own."""
    generator = torch.Generator().manual_seed(seed)
    world = clip.camera.to_world(clip.positions_camera)
    cameras = [clip.camera.carried_around(world.mean((0, 1)), degrees) for degrees in ANGLES[1:]]
    return cameras, [detected(camera, world, generator) for camera in cameras]


def measure(pipe: ProbPosePipeline, clip: PoseClip, run: Run, count: int, seed: int) -> list[float]:
    """The columns of one clip."""
    guidance = None
    if run.cameras > 1:
        cameras, keypoints = (views[: run.cameras - 1] for views in further_views(clip, seed))
        guidance = ReprojectionEnergy.from_detections(cameras, keypoints, [torch.full_like(k[..., 0], CONFIDENCE) for k in keypoints])
    started = time.perf_counter()
    out = pipe(
        clip.keypoints_2d, confidence=clip.confidence, camera=clip.camera, skeleton=clip.skeleton, fps=clip.fps, num_hypotheses=count,
        generator=torch.Generator().manual_seed(seed), guidance=guidance, guide=None if guidance is None else run.guide,
    )  # fmt: skip
    took = time.perf_counter() - started
    each = mpjpe(out.hypotheses, clip.pose.expand_as(out.hypotheses))
    mean = mpjpe(out.hypotheses.mean(0), clip.pose)
    best, _ = j_best(out.hypotheses, clip.pose)
    return [each, mean, mpjpe(out.pose, clip.pose), mpjpe(best, clip.pose), 1000 * took / len(clip)]


def compare(pipe: ProbPosePipeline, data: PoseDataset, runs: list[Run], count: int, seed: int = 0) -> Table:
    """The table; every number is a mean over all frames."""
    totals = {run: torch.zeros(5) for run in runs}
    with tqdm(total=len(runs) * data.num_frames, unit="frame") as bar:
        for clip in data:
            for run in runs:
                totals[run] += len(clip) * torch.tensor(measure(pipe, clip, run, count, seed))
                bar.update(len(clip))
    lines = [[*run.cells, *(f"{value:.1f}" for value in total / data.num_frames)] for run, total in totals.items()]
    return Table(["cameras", "spread", "trust", "substeps", "Each", "Mean", "Default", "J-Best", "ms/frame"], lines)


def first_frames(clip: PoseClip, frames: int) -> PoseClip:
    """The beginning of a clip."""
    return replace(
        clip, keypoints_2d=clip.keypoints_2d[:frames], confidence=clip.confidence[:frames],
        positions_camera=clip.positions_camera[:frames], valid=None if clip.valid is None else clip.valid[:frames],
    )  # fmt: skip


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message if something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(kind: type):
        def read(text: str) -> list:
            return [kind(word) for word in text.split(",")]

        read.__name__ = "list of numbers"
        return read

    add = parser.add_argument
    add("--pipeline", default="d3dp-mocap17", help="bundled name, folder or Hub id (%(default)s)")
    add("--data", required=True, help="data set with true 3D and cameras that know where they stand, world z up")
    add("--every", type=int, default=1, metavar="N", help="use every N-th clip (%(default)s)")
    add("--frames", type=int, default=120, help="use so many frames of a clip at most (%(default)s)")
    add("--hypotheses", type=int, default=10, help="K (%(default)s)")
    add("--cameras", type=numbers(int), default=[1, 2, 4], metavar="C,C,...", help="numbers of cameras, 1 to 4 (1,2,4)")
    add("--spread", type=numbers(float), metavar="R,R,...", help="of the guide, metres; without these three the pipeline's guide is used")
    add("--trust", type=numbers(float), metavar="F,F,...", help="of the guide")
    add("--substeps", type=numbers(int), metavar="N,N,...", help="of the guide")
    add("--seed", type=int, default=0, help="random seed (%(default)s)")
    options = parser.parse_args(arguments)
    if not all(1 <= count <= len(ANGLES) for count in options.cameras):
        parser.error(f"--cameras must lie in 1..{len(ANGLES)}, got {options.cameras}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    disable_progress_bar()  # loading takes no time worth a bar
    try:
        given = options.spread, options.trust, options.substeps
        settings = [values or [default] for values, default in zip(given, (0.05, 1.0, 3))]
        guides = [GaussNewtonGuide(n, trust, spread) for spread, trust, n in itertools.product(*settings)] if any(given) else [None]
        runs = [Run(cameras, guide) for cameras in options.cameras for guide in (guides if cameras > 1 else [None])]
        data = load_dataset(options.data).subset(every=options.every).select(lambda clip: bool(clip.scored.all()))
        data = replace(data, clips=tuple(first_frames(clip, options.frames) for clip in data))
        pipe = ProbPosePipeline.from_pretrained(bundled_model(options.pipeline) or options.pipeline)
        pipe.set_progress_bar_config(disable=True)
        table = compare(pipe, data, runs, options.hypotheses, options.seed)
    except (ValueError, OSError) as error:
        print(f"guided_d3dp: {error}", file=sys.stderr)
        return 2
    print(f"{options.pipeline}, {data.name}: {len(data)} clips, {data.num_frames} frames, {options.hypotheses} hypotheses\n")
    print("\n".join(table.to_markdown()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
