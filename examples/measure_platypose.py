"""A Platypose pipeline measured: by length of the window, with more cameras, on keypoints gone wrong, in batches. Markdown tables.

The pipeline gets detected keypoints and the cameras, and nothing of the truth. Clips that are shorter than the longest window are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor
from tqdm.auto import tqdm

from probpose import ProbPosePipeline
from probpose.calibration import ece
from probpose.data import load_dataset
from probpose.data.datasets import PoseClip, PoseDataset
from probpose.evaluation import Table
from probpose.geometry import Camera
from probpose.hub import bundled_model
from probpose.metrics import min_mpjpe, min_pa_mpjpe, mpjpe
from probpose.pipelines import PlatyposePipeline
from probpose.skeletons import bone_lengths

EPILOG = """
parts, all of them by default
  lengths     one frame, short and long windows, one camera
  cameras     the longest windows with 1, 2 and 4 cameras: the clip's own, turned about the vertical through the person by 0, 90, 180 and
              270 degrees; each has the detector's errors of another quarter of the clip
  robustness  random windows whose keypoints are as detected, noisy, a third outliers, half the joints missing, or nothing but noise
  batch       what it costs and changes to sample several windows in one call

columns
  Default, Mean    MPJPE of the model's own aggregation, and of the mean of the hypotheses, mm
  min, min frame   oracles: MPJPE of the best hypothesis of each window, and of each frame, mm
  PA-min, ...      the same after Procrustes alignment of every hypothesis, mm
  ECE, ECE recal   expected calibration error as sampled, and after the model's calibrator, 0..1
  ms/frame         of the whole call
  refused          windows that ended in an error; the first message stands below the table
  not finite       hypotheses with a value that is not
  beyond 3 m       joints farther than that from the root
  farthest, bone   largest distance of a joint from the root in m; largest length of a bone as a factor on the true one

examples
  python examples/measure_platypose.py --model user/model --data mocap17_test.npz --json measured.json
  python examples/measure_platypose.py lengths cameras --model user/model --data mocap17_test.npz --every 10 --bf16
  python examples/measure_platypose.py robustness --model user/model --data mocap17_test.npz --clips 200 --threads 1
"""

CAMERAS = (1, 2, 4)
ANGLES = (0, 90, 180, 270)
"""Degrees by which the clip's own camera is turned, in the order in which cameras are added."""

FRAMES = 16
"""Length of the windows of "robustness" and "batch"."""

ENERGY_SCALES = (0.1, 1.0, 10.0)
KINDS = ("detected", "noisy", "outliers", "missing", "only noise")
EXPLODED = 3.0
"""Metres from the root where no joint can be."""

BATCHES = (1, 4, 16)

COLUMNS = {
    "frames": ("frames", "d"),
    "cameras": ("cameras", "d"),
    "energy_scale": ("energy scale", "g"),
    "keypoints": ("keypoints", "s"),
    "clips_per_call": ("clips per call", "d"),
    "windows": ("windows", "d"),
    "default_mm": ("Default", ".1f"),
    "mean_mm": ("Mean", ".1f"),
    "min_mm": ("min", ".1f"),
    "min_frame_mm": ("min frame", ".1f"),
    "pa_min_mm": ("PA-min", ".1f"),
    "pa_min_frame_mm": ("PA-min frame", ".1f"),
    "ece": ("ECE", ".3f"),
    "ece_recalibrated": ("ECE recal", ".3f"),
    "ms_per_frame": ("ms/frame", ".2f"),
    "refused": ("refused", "d"),
    "not_finite": ("not finite", "d"),
    "exploded": (f"beyond {EXPLODED:g} m", "d"),
    "farthest_m": ("farthest, m", ".2f"),
    "bone_ratio": ("bone", ".2f"),
    "s_per_clip": ("s/clip", ".3f"),
    "ratio": ("of alone", ".2f"),
    "difference_mm": ("largest difference, mm", ".4f"),
}

# ---------------------------------------------------------------------------------------------------------------------
# Windows, and what cameras see of them
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Some frames of a motion: one view for each camera, and the seed of the noise that its hypotheses begin with."""

    views: list[PoseClip]
    seed: int


def middle_windows(data: PoseDataset, frames: int, options: argparse.Namespace, cameras: int = 1) -> list[Window]:
    """Windows spread evenly over every clip; of a single one per clip, from its middle."""
    count = options.windows
    places = [(clip, (number + 1) * (len(clip) - frames) // (count + 1)) for clip in data for number in range(count)]
    return [Window(views(clip, first, frames, cameras), seed_of(options, number)) for number, (clip, first) in enumerate(places)]


def views(clip: PoseClip, first: int, frames: int, count: int) -> list[PoseClip]:
    """What the clip's own camera and further ones around the person see of some frames."""
    if count == 1:
        return [cut(clip, first, frames)]
    errors = clip.keypoints_2d - clip.camera.project(clip.positions_camera)
    world = clip.camera.to_world(clip.positions_camera)
    seen = []
    for number, degrees in enumerate(ANGLES[:count]):
        camera = clip.camera.carried_around(world[first : first + frames].mean((0, 1)), degrees)
        positions = camera.to_camera(world)
        shift = number * len(clip) // len(ANGLES)
        keypoints, confidence = camera.project(positions) + errors.roll(shift, 0), clip.confidence.roll(shift, 0)
        view = replace(clip, keypoints_2d=keypoints, confidence=confidence, positions_camera=positions, camera=camera)
        seen.append(cut(view, first, frames))
    return seen


def cut(clip: PoseClip, first: int, frames: int) -> PoseClip:
    part = slice(first, first + frames)
    names = ("keypoints_2d", "confidence", "positions_camera")
    return replace(clip, **{name: getattr(clip, name)[part] for name in names}, valid=None)


def spoiled(view: PoseClip, kind: str, generator: torch.Generator) -> PoseClip:
    """The view with worse keypoints. Confidences stay: the detector does not know."""
    points = view.keypoints_2d
    anywhere = torch.rand(points.shape, generator=generator) * torch.tensor(view.camera.image_size)
    sigma = 10 ** (2 * torch.rand(1, generator=generator))  # 1 to 100 pixels
    noise = sigma * torch.randn(points.shape, generator=generator)
    wrong = torch.rand(points.shape[:-1], generator=generator)[..., None] < 1 / 3
    unseen = torch.rand(points.shape[-2], generator=generator)[:, None] < 1 / 2  # in no frame
    worse = {
        "detected": points,
        "noisy": points + noise,
        "outliers": torch.where(wrong, anywhere, points),
        "missing": torch.where(unseen, torch.nan, points),
        "only noise": anywhere,
    }
    return replace(view, keypoints_2d=worse[kind])


def random_windows(data: PoseDataset, options: argparse.Namespace) -> list[Window]:
    """Windows from anywhere, their keypoints of all kinds in turn."""
    windows = []
    for number, kind in zip(range(options.clips), itertools.cycle(KINDS)):
        generator = torch.Generator().manual_seed(seed_of(options, number))
        clip = data[int(torch.randint(len(data), (), generator=generator))]
        first = int(torch.randint(len(clip) - FRAMES + 1, (), generator=generator))
        windows.append(Window([spoiled(cut(clip, first, FRAMES), kind, generator)], seed_of(options, number)))
    return windows


def seed_of(options: argparse.Namespace, number: int) -> int:
    """One for each window, whatever it is sampled together with."""
    return 1_000_000 * options.seed + number


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampled:
    """Hypotheses `(windows, K, frames, joints, 3)`, aggregated poses (or None) and the truth `(windows, frames, joints, 3)`, metres."""

    hypotheses: Tensor
    pose: Tensor | None
    truth: Tensor
    seconds: float


def call(pipe: PlatyposePipeline, windows: list[Window], options: argparse.Namespace, **settings: Any) -> Sampled:
    """Windows of equally many frames and cameras in one call, not recalibrated."""
    clips = [window.views[0] for window in windows]
    cameras = list(zip(*(window.views for window in windows)))
    settings = {"num_hypotheses": options.hypotheses, "num_inference_steps": options.steps, **settings}
    started = time.perf_counter()
    with torch.autocast(pipe.device.type, torch.bfloat16, enabled=options.bf16):
        out = pipe(
            [torch.stack([view.keypoints_2d for view in seen]) for seen in cameras],
            [torch.stack([view.confidence for view in seen]) for seen in cameras],
            cameras=[batched([view.camera for view in seen]) for seen in cameras],
            skeleton=clips[0].skeleton,
            fps=clips[0].fps,
            calibrated=False,
            generator=[torch.Generator().manual_seed(window.seed) for window in windows],
            max_batch_size=options.max_batch_size,
            **settings,
        )
    hypotheses, pose = (None if value is None else value.cpu() for value in (out.hypotheses, out.pose))
    return Sampled(hypotheses, pose, torch.stack([clip.pose for clip in clips]), time.perf_counter() - started)


def batched(cameras: list[Camera]) -> Camera:
    """One camera for each clip, as a pipeline takes them."""
    parts = ("focal", "centre", "radial", "tangential", "rotation", "translation")
    given = {name: [getattr(camera, name) for camera in cameras] for name in parts if getattr(cameras[0], name) is not None}
    return replace(cameras[0], **{name: torch.stack(values) for name, values in given.items()})


def sample(
    pipe: PlatyposePipeline, windows: list[Window], options: argparse.Namespace, what: str, size: int | None = None, **settings: Any
) -> Sampled:
    """Any number of windows, so many in a call; by default as many as the network takes at once."""
    size = size or options.max_batch_size // options.hypotheses
    parts = [call(pipe, batch, options, **settings) for batch in batches(windows, size, what)]
    pose = None if parts[0].pose is None else torch.cat([part.pose for part in parts])
    hypotheses, truth = (torch.cat([getattr(part, name) for part in parts]) for name in ("hypotheses", "truth"))
    return Sampled(hypotheses, pose, truth, sum(part.seconds for part in parts))


def batches(windows: list[Window], size: int, what: str) -> Iterator[list[Window]]:
    size = max(1, size)
    with tqdm(total=len(windows), desc=what, unit="window") as bar:
        for first in range(0, len(windows), size):
            yield windows[first : first + size]
            bar.update(len(windows[first : first + size]))


def attempt(pipe: PlatyposePipeline, windows: list[Window], options: argparse.Namespace, **settings: Any) -> list[Tensor | ValueError]:
    """The hypotheses of every window, or the error that it ended in. One such window stops a call, so its halves are tried anew."""
    try:
        return list(call(pipe, windows, options, **settings).hypotheses)
    except ValueError as error:
        if len(windows) == 1:
            return [error]
        middle = len(windows) // 2
        return [result for half in (windows[:middle], windows[middle:]) for result in attempt(pipe, half, options, **settings)]


# ---------------------------------------------------------------------------------------------------------------------
# The parts: each gives the rows of a table
# ---------------------------------------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def measure_lengths(pipe: PlatyposePipeline, data: PoseDataset, options: argparse.Namespace) -> Rows:
    rows = []
    for frames in options.lengths:
        out = sample(pipe, middle_windows(data, frames, options), options, f"{frames} frames")
        rows.append({"frames": frames, **errors_of(out), **calibration_of(pipe, out), **time_of(out)})
    return rows


def measure_cameras(pipe: PlatyposePipeline, data: PoseDataset, options: argparse.Namespace) -> Rows:
    rows = []
    for count in CAMERAS:
        out = sample(pipe, middle_windows(data, max(options.lengths), options, count), options, f"{count} cameras")
        rows.append({"cameras": count, **errors_of(out), **time_of(out)})
    return rows


def errors_of(out: Sampled) -> dict[str, Any]:
    """Millimetres."""
    return {
        "windows": len(out.truth),
        "default_mm": None if out.pose is None else mpjpe(out.pose, out.truth),
        "mean_mm": mpjpe(out.hypotheses.mean(1), out.truth),
        "min_mm": min_mpjpe(out.hypotheses, out.truth),
        "min_frame_mm": min_mpjpe(out.hypotheses, out.truth, "frame"),
        "pa_min_mm": min_pa_mpjpe(out.hypotheses, out.truth),
        "pa_min_frame_mm": min_pa_mpjpe(out.hypotheses, out.truth, "frame"),
    }


def calibration_of(pipe: PlatyposePipeline, out: Sampled) -> dict[str, float | None]:
    """What one hypothesis, or a pipeline without calibrator, cannot tell is None."""
    if out.hypotheses.shape[1] == 1:
        return {"ece": None, "ece_recalibrated": None}
    raw = ece(out.hypotheses, out.truth)
    if pipe.calibrator is None:
        return {"ece": raw, "ece_recalibrated": None}
    return {"ece": raw, "ece_recalibrated": ece([pipe.calibrator(window) for window in out.hypotheses], list(out.truth))}


def time_of(out: Sampled) -> dict[str, float]:
    return {"ms_per_frame": 1000 * out.seconds / out.truth[..., 0, 0].numel()}


def measure_robustness(pipe: PlatyposePipeline, data: PoseDataset, options: argparse.Namespace) -> Rows:
    rows, count = [], 2
    windows = random_windows(data, options)
    truth = [window.views[0].pose for window in windows]
    settings = {"num_hypotheses": count, "aggregation": None}
    for scale in ENERGY_SCALES:
        results = []
        for batch in batches(windows, options.max_batch_size // count, f"energy scale {scale:g}"):
            results += attempt(pipe, batch, options, energy_scale=scale, **settings)
        for number, kind in enumerate(KINDS[: len(windows)]):
            found = worst_of(results[number :: len(KINDS)], truth[number :: len(KINDS)], data[0].skeleton)
            rows.append({"energy_scale": scale, "keypoints": kind, **found})
    return rows


def worst_of(results: list[Tensor | ValueError], truth: list[Tensor], skeleton: str) -> dict[str, Any]:
    """How far from a person hypotheses `(K, frames, joints, 3)` get; None if no window has any that are finite."""
    refused = [str(result) for result in results if isinstance(result, ValueError)]
    found = {"windows": len(results), "refused": len(refused), "first_refusal": refused[0] if refused else None}
    not_finite, exploded, farthest, ratios = 0, 0, [], []
    for poses, true in zip(results, truth):
        if isinstance(poses, ValueError):
            continue
        finite = poses.isfinite().all(-1).all(-1).all(-1)
        not_finite += int((~finite).sum())
        if finite.any():
            distance = poses[finite].norm(dim=-1)
            exploded += int((distance > EXPLODED).sum())
            farthest.append(distance.max().item())
            ratios.append((bone_lengths(poses[finite], skeleton) / bone_lengths(true, skeleton)).max().item())
    extremes = {"farthest_m": max(farthest, default=None), "bone_ratio": max(ratios, default=None)}
    return {**found, "not_finite": not_finite, "exploded": exploded, **extremes}


def measure_batch(pipe: PlatyposePipeline, data: PoseDataset, options: argparse.Namespace) -> Rows:
    windows = list(itertools.islice(itertools.cycle(middle_windows(data, FRAMES, options)), max(BATCHES)))
    runs = {size: sample(pipe, windows, options, f"{size} clips per call", size) for size in BATCHES}
    alone = runs[1]
    return [
        {
            "clips_per_call": size,
            "s_per_clip": out.seconds / len(windows),
            "ratio": out.seconds / alone.seconds,
            "difference_mm": 1000 * (out.hypotheses - alone.hypotheses).abs().max().item(),
        }
        for size, out in runs.items()
    ]


PARTS = {"lengths": measure_lengths, "cameras": measure_cameras, "robustness": measure_robustness, "batch": measure_batch}

# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def table_of(rows: Rows) -> list[str]:
    """Lines of Markdown: a table of the columns that the rows have, and the first message of those that were refused."""
    columns = {key: column for key, column in COLUMNS.items() if key in rows[0]}
    cells = [["-" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items()] for row in rows]
    refusals = [row["first_refusal"] for row in rows if row.get("first_refusal")]
    return [*Table([name for name, _ in columns.values()], cells).to_markdown(), *(f"\nFirst refusal: {text}" for text in refusals[:1])]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message if something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)

    def count(text: str) -> int:
        if int(text) < 1:
            raise ValueError
        return int(text)

    def counts(text: str) -> list[int]:
        return sorted({count(word) for word in text.split(",")})

    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)} (all)")
    add("--model", required=True, help="bundled name, folder or Hub id of a PlatyposePipeline")
    add("--data", required=True, help="data set with true 3D and cameras that know where they stand, world z up")
    add("--every", type=count, default=1, metavar="N", help="use every N-th clip (%(default)s)")
    add("--hypotheses", type=count, default=50, metavar="K", help="%(default)s; robustness takes 2")
    add("--steps", type=count, help="inference steps (the model's default)")
    add("--lengths", type=counts, default=[1, 16, 64], metavar="T,T,...", help="frames of windows (1,16,64); cameras takes the longest")
    add("--windows", type=count, default=1, metavar="N", help="windows of every clip for lengths and cameras (%(default)s)")
    add("--clips", type=count, default=1000, metavar="N", help="windows for robustness (%(default)s)")
    add("--max-batch-size", type=count, default=640, metavar="N", help="windows x hypotheses in a call (%(default)s)")
    add("--bf16", action="store_true", help="run the network under autocast in bfloat16")
    add("--device", default="cpu", help="%(default)s, cuda, mps")
    add("--threads", type=count, metavar="N", help="of the processor (torch's default)")
    add("--seed", type=int, default=0, help="random seed (%(default)s)")
    add("--json", type=Path, metavar="OUT", help="also write the rows there, with all their digits; anew after every part")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    disable_progress_bar()  # loading takes no time worth a bar
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        pipe = ProbPosePipeline.from_pretrained(bundled_model(options.model) or options.model)
        if not isinstance(pipe, PlatyposePipeline):
            raise ValueError(f"{options.model} is a {type(pipe).__name__}, no PlatyposePipeline")
        pipe.to(options.device).set_progress_bar_config(disable=True)
        longest = max(*options.lengths, FRAMES)
        data = load_dataset(options.data).subset(every=options.every)
        data = data.select(lambda clip: len(clip) >= longest and bool(clip.scored.all()))
        steps = options.steps or pipe.config.default_num_inference_steps
        machine = {"device": options.device, "threads": torch.get_num_threads(), "bf16": options.bf16}
        chosen = {"hypotheses": options.hypotheses, "steps": steps, "every": options.every, "seed": options.seed}
        report = {"model": options.model, "data": data.name, "clips": len(data), **chosen, **machine}
        print(f"{options.model}, {pipe.config.default_aggregation}, {options.hypotheses} hypotheses, {steps} steps; ", end="")
        print(f"{data.name}: {len(data)} clips; {options.device}, {machine['threads']} threads{', bf16' * options.bf16}")
        call(pipe, middle_windows(data, FRAMES, options)[:1], options)  # the first call is slower than any other
        for part in options.parts or PARTS:
            report[part] = PARTS[part](pipe, data, options)
            print(f"\n## {part}\n", *table_of(report[part]), sep="\n", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (ValueError, OSError) as error:
        print(f"measure_platypose: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
