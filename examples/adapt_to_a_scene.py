"""What adaptation to a new scene is worth: a model of one data set on another's people, seen by other cameras. A Markdown table.

The target: the test clips of a motion archive, each seen by virtual cameras high above the floor (1920 x 1080, focal length 1480 pixels)
through a detector's mistakes. Half of the motions are adapted to, from 2D keypoints alone; the other half are what is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import zlib
from pathlib import Path

import torch

from probpose.data import CameraVariation, DetectorNoise, MocapClips, PoseClip, TargetTrack, TrainingWindows, target_tracks
from probpose.data.augmentation import WindowRandom
from probpose.geometry import Camera
from probpose.metrics import mpjpe, pa_mpjpe
from probpose.pipelines import AdaptationSettings, PoSynDAPipeline

EPILOG = """
rows
  none       the model as it is
  GPA        source poses stand where the target's people stand (global position alignment)
  LPA        source poses are bent, stretched and turned by an adversarial augmentor (local pose augmentation)
  build      source poses get the build of the target's people, fitted to their 2D
  all        these three, which is the default
  labels     these three and pseudo-labels from the teacher's hypotheses
  full       the same with all weights trained instead of an adapter

columns
  Default, Mean   MPJPE of the model's own aggregation and of the mean of the hypotheses, mm: mean and standard deviation over the seeds
  PA              of the model's aggregation after Procrustes alignment of every frame
  reprojection    what adaptation goes by, before and after: it knows no 3D
  minutes         of adaptation

examples
  python examples/adapt_to_a_scene.py --model runs/d3dp-indoor/checkpoint-5000/pipeline --source bandai.npz --target cmu.npz
  python examples/adapt_to_a_scene.py --model MODEL --source bandai.npz --target cmu.npz --rows none all --seeds 0 --cameras 2
"""

WIDTH, HEIGHT, FOCAL = 1920, 1080, 1480.0
ROWS = {
    "none": None,
    "GPA": {"augmentation": False, "build": False},
    "LPA": {"alignment": False, "build": False},
    "build": {"alignment": False, "augmentation": False},
    "all": {},
    "labels": {"pseudo_labels": True},
    "full": {"rank": None, "learning_rate": 4e-4},
}


def filmed(archive: str, cameras: int, seed: int = 0) -> list[PoseClip]:
    """The archive's test clips before cameras of another family, with detections."""
    clips = MocapClips(archive, split="test")
    place = CameraVariation(distance=(5.0, 9.0), height=(3.0, 4.5), high_probability=0.0, off_centre=0.5, unknown_probability=0.0)
    detector = DetectorNoise(clean_probability=0.0, coco_probability=0.0)
    size = torch.tensor([WIDTH, HEIGHT])
    camera = Camera((FOCAL, FOCAL), (WIDTH / 2, HEIGHT / 2), image_size=(WIDTH, HEIGHT))
    scenes = []
    for number, name in enumerate(clips.names):
        for view in range(cameras):
            random = WindowRandom(seed, [1000 * number + view])
            positions, slopes, _ = place(*(part[None] for part in clips[number]), random)
            slopes, confidence = detector(slopes, random)
            points = slopes[0] * FOCAL + size / 2
            seen = (confidence[0] > 0) & ((points >= 0) & (points < size)).all(-1)
            points, confidence = torch.where(seen[..., None], points, torch.nan), torch.where(seen, confidence[0], 0.0)
            scenes.append(PoseClip(f"{name}/{view}", points, confidence, positions[0], camera, clips.fps, tags={"motion": name}))
    return scenes


def is_measured(clip: PoseClip) -> bool:
    return zlib.crc32(clip.tags["motion"].encode()) % 2 == 0


def measure(pipe: PoSynDAPipeline, clips: list[PoseClip]) -> dict[str, float]:
    errors = {"default_mm": 0.0, "mean_mm": 0.0, "pa_mm": 0.0}
    frames = sum(len(clip) for clip in clips)
    for clip in clips:
        with torch.autocast(pipe.device.type, torch.bfloat16):
            out = pipe(clip.keypoints_2d, clip.confidence, camera=clip.camera, fps=clip.fps, num_hypotheses=10, calibrated=False,
                       generator=torch.Generator().manual_seed(0))  # fmt: skip
        share = len(clip) / frames
        errors["default_mm"] += share * mpjpe(out.pose, clip.pose)
        errors["mean_mm"] += share * mpjpe(out.hypotheses.mean(0), clip.pose)
        errors["pa_mm"] += share * pa_mpjpe(out.pose, clip.pose)
    return errors


def adapted(options: argparse.Namespace, row: str, seed: int, tracks: list[TargetTrack], clips: list[PoseClip]) -> dict[str, float]:
    pipe = PoSynDAPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(desc=f"{row}, seed {seed}", disable=not sys.stderr.isatty())
    result = {}
    if ROWS[row] is not None:
        source = TrainingWindows(
            MocapClips(options.source), pipe.denoiser.config.num_frames, 10**9, seed=seed,
            camera=CameraVariation(distance=(3.0, 7.0), height=(1.2, 1.9), high_probability=0.0, off_centre=0.5, unknown_probability=0.0),
        )  # fmt: skip
        changes = {name: value for name, value in (pair.split("=") for pair in options.set)}
        changes = {name: json.loads(value) for name, value in changes.items()}
        started = time.perf_counter()
        report = pipe.adapt(tracks, source=source, settings=AdaptationSettings(**{**ROWS[row], **changes}), seed=seed)
        result = {"minutes": (time.perf_counter() - started) / 60, "history": report.history, "kept": report.best_round}
        result |= {"before_mm": report.before["reprojection_mm"], "after_mm": report.after["reprojection_mm"]}
    pipe.set_progress_bar_config(disable=True)
    return {**measure(pipe, clips), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model to adapt")
    parser.add_argument("--source", required=True, help="motion archive of labelled source motions")
    parser.add_argument("--target", required=True, help="motion archive whose test clips are filmed")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS)[:-1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cameras", type=int, default=4, help="that every target clip is seen by (default 4)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other adaptation settings, e.g. rounds=3")
    parser.add_argument("--json", type=Path, help="write all numbers into this file")
    parser.add_argument("--threads", type=int, help="of the processor")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    clips = filmed(options.target, options.cameras)
    measured = [clip for clip in clips if is_measured(clip)]
    tracks = target_tracks([clip for clip in clips if not is_measured(clip)], min_frames=9)  # from here on nobody knows their 3D
    minutes = sum(len(track.keypoints_2d) / track.fps for track in tracks) / 60
    results = {}
    for row in options.rows:
        results[row] = [adapted(options, row, seed, tracks, measured) for seed in (options.seeds if ROWS[row] is not None else [0])]
        print(f"{row}: {[round(one['default_mm'], 1) for one in results[row]]} mm", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))

    print(f"\n{minutes:.1f} minutes of 2D tracks to adapt to; {len(measured)} clips of other motions measured\n")
    print("| | Default | Mean | PA | reprojection before | after | minutes |\n|---|---|---|---|---|---|---|")
    columns = ("default_mm", "mean_mm", "pa_mm", "before_mm", "after_mm", "minutes")
    for row, runs in results.items():
        print(f"| {row} | {' | '.join(spread(runs, name) for name in columns)} |")


def spread(runs: list[dict[str, float]], name: str) -> str:
    values = [run[name] for run in runs if name in run]
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
