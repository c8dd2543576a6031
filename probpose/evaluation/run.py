"""A pipeline over a data set: every clip goes through once, and all numbers come from its hypotheses.

    dataset = load_dataset("mocap17_test.npz")
    report = evaluate(pipe, dataset.subset(every=6), num_hypotheses=10)
    print(report.to_text())

Under `accelerate launch` or `torchrun` the clips are shared out among the processes; every process returns the whole report.
"""

from __future__ import annotations

import atexit
import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from probpose.data.datasets import PoseClip, PoseDataset
from probpose.geometry import h36m_camera, root_of_hypotheses
from probpose.pipelines import ProbPosePipeline
from probpose.pipelines.windows import window_starts
from probpose.processes import Processes, started_together
from probpose.shards import Column, ShardedRun, read_shards, seed_of
from probpose.skeletons import convert, convert_with_confidence, get_skeleton

from .measure import Sample, measure
from .protocols import Protocol, get_protocol
from .report import ClipResult, EvaluationReport

CAMERAS = ("known", "image_size")

_H36M_CAMERAS = ("54138969", "55011271", "58860488", "60457274")


def evaluate(
    pipe: ProbPosePipeline,
    dataset: PoseDataset,
    protocol: str | int | Protocol | None = None,
    *,
    camera: str = "known",
    num_hypotheses: int | None = None,
    num_inference_steps: int | None = None,
    start: str | None = None,
    flip: str | bool | None = None,
    share_first_step: bool | None = None,
    quirks: Iterable[str] = (),
    seed: int = 0,
    max_batch_size: int = 256,
    threads: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
    save_hypotheses: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    model: str | None = None,
    **options: Any,
) -> EvaluationReport:
    """Run a pipeline over a data set and score its hypotheses.

    Where the data set's joints are not the pipeline's, the pipeline converts the keypoints and the ground truth is converted here
    (`probpose.skeletons.convert`), relative to the output's root joint; the report says so. Frames without ground truth, and those that
    the data set does not score, go through the pipeline, are not scored and are counted in the report.

    Args:
        pipe: any probpose pipeline, on any device.
        dataset: the clips, see `probpose.data.load_dataset`.
        protocol: name of a protocol (see `get_protocol`); the data set's by default.
        camera: "known", or "image_size": the pipeline has to guess the lens. J-Agg* uses the true one either way.
        num_hypotheses, num_inference_steps, start, flip, share_first_step: as in the pipeline's call; None: its default. The report
            records those that the pipeline has.
        quirks: names of `QUIRKS`, departures of original repositories that are to be reproduced.
        seed: every clip draws from its own random stream, made of the seed and the clip's name, so that a clip's numbers do not depend
            on which clips are measured beside it.
        max_batch_size: as in the pipeline's call.
        threads: processor threads while it runs. They change results in the last bits. Default: as they are, and 1 in each of several
            processes.
        progress: show a progress bar over the clips.
        out: a folder that keeps every clip's result (`probpose.shards`: `frame`, `scored`, and `result` as JSON), so that a run that was
            killed can be resumed.
        save_hypotheses: keep the `hypotheses` there, too: `(num_hypotheses, frames, joints, 3)` metres.
        resume, overwrite: continue what is in the folder, or delete it and begin anew.
        model: what the report calls the pipeline; its name or path by default. A run can only be resumed with the same.
        **options: further arguments of the pipeline's call.

    Raises:
        FileExistsError: `out` holds a run, and neither `resume` nor `overwrite` was asked for.
        ValueError: an unknown protocol or camera, a quirk that is unknown or does not concern the protocol, clips without the tags that
            the protocol groups by, joint sets without a conversion, no frame to score, a run of other settings in `out`, sampler settings
            that the pipeline does not have, or anything that it refuses; the clip is named.
    """
    protocol = get_protocol(dataset.protocol if protocol is None else protocol)
    quirks = protocol.check_quirks(quirks)
    if camera not in CAMERAS:
        raise ValueError(f"camera must be one of {CAMERAS}, got {camera!r}")
    if out is None and (save_hypotheses or resume or overwrite):
        raise ValueError("save_hypotheses, resume and overwrite concern the folder out, which was not given")
    for clip in dataset:
        protocol.labels(clip.name, clip.tags)  # rather now than after an hour
    given = {
        "num_hypotheses": num_hypotheses, "num_inference_steps": num_inference_steps, "start": start, "flip": flip,
        "share_first_step": share_first_step,
    }  # fmt: skip
    arguments = {name: value for name, value in given.items() if value is not None}
    _check_sampler(pipe, arguments)
    sampler = {name: arguments.get(name, pipe.config.get(f"default_{name}")) for name in given}
    settings = {
        "model": model or str(pipe.config.get("_name_or_path")),
        "dataset": dataset.name,
        "protocol": protocol.name,
        "clips": len(dataset),
        "frames": dataset.num_frames,
        "camera": camera,
        **{name: value for name, value in sampler.items() if value is not None},
        **{name: value if isinstance(value, (str, int, float, bool, type(None))) else repr(value) for name, value in options.items()},
        "seed": seed,
        "quirks": list(quirks),
        "skeleton": pipe.skeleton,
    }
    job = _Job(pipe, protocol, camera == "known", arguments, options, quirks, seed, max_batch_size)
    processes = _processes()
    with _threads(threads or (1 if processes.count > 1 else None)), _silent(pipe):
        bar = partial(tqdm, desc=dataset.name, unit="clip", disable=not progress or not processes.is_main)
        if out is None:
            share = dataset.clips[processes.index :: processes.count]
            results = _gathered([job.run(clip)[0] for clip in bar(share)], processes)
        else:
            columns = {"frame": Column("int32"), "scored": Column("bool"), "result": Column("str", axis=None)}
            if save_hypotheses:
                columns["hypotheses"] = Column("float32", (None, get_skeleton(pipe.skeleton).num_joints, 3), axis=1)
            run = ShardedRun(out, [clip.name for clip in dataset], columns, settings=settings, shard_size=1)
            results = list(_kept(job, dataset, run, processes, bar, resume, overwrite))
    by_name = {result.name: result for result in results}
    results = tuple(by_name[clip.name] for clip in dataset)
    if not any(result.scored for result in results):
        raise ValueError(f"{dataset.name}: no frame of the {len(dataset)} clips can be scored: none is valid with known ground truth")
    settings["scored_frames"] = sum(result.scored for result in results)
    settings["skipped_frames"] = sum(result.skipped for result in results)
    return EvaluationReport(settings, protocol, results, (*dataset.notes, *_notes(pipe, dataset, protocol)))


def _check_sampler(pipe: ProbPosePipeline, arguments: Mapping[str, Any]) -> None:
    """Refuse wrong sampler settings rather now than in the first clip."""
    if not hasattr(pipe, "settings"):  # a pipeline that does not sample
        return
    known = inspect.signature(pipe.settings).parameters
    if foreign := [name for name in arguments if name not in known]:
        raise ValueError(f"a {type(pipe).__name__} has no {', '.join(foreign)}; its sampler has {', '.join(known)}")
    pipe.settings(**arguments)


def _kept(
    job: _Job, dataset: PoseDataset, run: ShardedRun, processes: Processes, bar: Callable[..., Any], resume: bool, overwrite: bool
) -> Iterator[ClipResult]:
    """Results by way of a folder: those that are in it already, and the others."""
    clips = {clip.name: clip for clip in dataset}

    def work(name: str) -> list[tuple[str, dict[str, Any]]]:
        result, sample, frames = job.run(clips[name])
        arrays = {
            "frame": frames.flatten().int().numpy(),
            "scored": sample.scored.flatten().numpy(),
            "result": json.dumps(asdict(result)),
            "hypotheses": sample.hypotheses.transpose(0, 1).flatten(1, 2).numpy(),
        }
        return [(name, {key: arrays[key] for key in run.columns})]

    processes.from_main(lambda: run.prepare(resume, overwrite))
    with bar(total=len(clips)) as shown:

        def look(_: int = 0) -> None:
            shown.update(run.num_done - shown.n)

        run.make(work, process=processes.index, num_processes=processes.count, strict=True, progress=look)
        processes.wait(look)
        look()
    processes.from_main(run.finish)
    for _, arrays in read_shards(run.folder):
        content = json.loads(str(arrays["result"]))
        yield ClipResult(**{**content, "labels": tuple(content["labels"])})


def _notes(pipe: ProbPosePipeline, dataset: PoseDataset, protocol: Protocol) -> Iterator[str]:
    for tag in sorted({tag for clip in dataset for tag in protocol.substitutes(clip.tags)}):
        yield f"the protocol groups by {tag}, which clips here lack: their kind of motion stands for it"
    for skeleton in sorted({clip.skeleton for clip in dataset} - {pipe.skeleton}):
        known = convert(torch.zeros(get_skeleton(skeleton).num_joints, 3), skeleton, pipe.skeleton).isfinite().all(-1)
        missing = [name for name, seen in zip(get_skeleton(pipe.skeleton).joint_names, known) if not seen]
        without = f"; not scored, because {skeleton} does not know them: {', '.join(missing)}" if missing else ""
        yield f"cross-dataset evaluation: the ground truth was converted from {skeleton} to {pipe.skeleton}{without}"


# ---------------------------------------------------------------------------------------------------------------------
# One clip
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What is the same for every clip; arguments as in `evaluate`."""

    pipe: ProbPosePipeline
    protocol: Protocol
    camera_known: bool
    sampler: Mapping[str, Any]
    options: Mapping[str, Any]
    quirks: tuple[str, ...]
    seed: int
    max_batch_size: int

    def run(self, clip: PoseClip) -> tuple[ClipResult, Sample, Tensor]:
        """The result, what it was made from, and the clip's frames `(windows, frames)` in it."""
        try:
            clip = _as_published(clip, self.quirks)
            frames, scored = self._layout(clip)
            sample, seconds = self._sample(clip, frames, scored)
            scored_frames = int(sample.counted.any(-1).sum())
            values = measure(sample, self.protocol) if scored_frames else ({}, {}, {})
            count = getattr(self.pipe, "count_passes", None)  # not every pipeline has a network that is called in passes
            passes = None if count is None else len(frames) * count(frames.shape[1], **self.sampler)
        except ValueError as error:
            raise ValueError(f"clip {clip.name!r}: {error}") from None
        labels = self.protocol.labels(clip.name, clip.tags)
        skipped = len(clip) - len(frames[sample.counted.any(-1)].unique())
        return ClipResult(clip.name, labels, len(clip), scored_frames, skipped, *values, passes, seconds), sample, frames

    def _layout(self, clip: PoseClip) -> tuple[Tensor, Tensor]:
        """Frames of the clip as they go through the pipeline, `(windows, frames)`, and which of them count."""
        scored = replace(clip, valid=None).scored if "count_invalid_frames" in self.quirks else clip.scored
        frames, length = torch.arange(len(clip)), len(clip)
        if not {"published_windows", "drop_tails"} & set(self.quirks):
            return frames[None], scored[None]
        window = self.pipe.num_frames
        if window is None:
            raise ValueError(
                f"the networks of this {type(self.pipe).__name__} take every frame for itself: it has no window (num_frames) that clips "
                "could be cut by"
            )
        if "drop_tails" in self.quirks:
            scored = scored & (frames < length - length % window)
        if "published_windows" not in self.quirks:
            return frames[None], scored[None]
        frames = torch.tensor(window_starts(length, window))[:, None] + torch.arange(window)
        padding, frames = frames >= length, frames.clamp(max=length - 1)
        if not self.protocol.overlap_counts_twice:
            overwritten = frames >= frames[-1, 0]
            overwritten[-1] = False
            return frames, scored[frames] & ~padding & ~overwritten
        return frames, scored[frames]

    def _sample(self, clip: PoseClip, frames: Tensor, scored: Tensor) -> tuple[Sample, float]:
        """Hypotheses beside the truth, and the seconds that the pipeline took."""
        pipe = self.pipe
        keypoints, confidence = clip.keypoints_2d[frames], clip.confidence[frames]
        aggregator, calibrator = getattr(pipe, "aggregator", None), getattr(pipe, "calibrator", None)  # not every pipeline has these
        lens = {"camera": clip.camera} if self.camera_known else {"image_size": clip.camera.image_size}
        names = [clip.name, *(f"{clip.name}#{number}" for number in range(1, len(frames)))]
        started = time.perf_counter()
        out = pipe(
            keypoints,
            confidence,
            **lens,
            skeleton=clip.skeleton,
            **self.sampler,
            aggregation=None,
            generator=[torch.Generator().manual_seed(seed_of(self.seed, name)) for name in names],
            fps=clip.fps,
            max_batch_size=self.max_batch_size,
            **({} if calibrator is None else {"calibrated": False}),
            **self.options,
        )
        hypotheses, camera = out.hypotheses.cpu(), out.camera.to("cpu")  # waits for an accelerator
        seconds = time.perf_counter() - started

        if clip.skeleton != pipe.skeleton:
            keypoints, confidence, _ = convert_with_confidence(keypoints, confidence, clip.skeleton, pipe.skeleton)
            confidence[..., list(pipe.config.get("hidden_when_converted") or ())] = 0
        keypoints = torch.where((confidence > 0)[..., None], keypoints, torch.nan)
        root = root_of_hypotheses(hypotheses, keypoints, camera, confidence, clip.fps) if out.root is None else out.root.cpu()
        attention = recalibrated = default = learned = None
        with torch.no_grad():
            pixels, place, trust = (value.to(out.hypotheses.device) for value in (keypoints, root, confidence))
            if aggregator is not None:
                learned = aggregator(out.hypotheses, pixels, out.camera, place, trust, clip.fps)
                attention = learned.pose.cpu()
            if calibrator is not None:
                recalibrated = calibrator(out.hypotheses).cpu()
                chosen = pipe.choose_aggregator("default")
                if pipe.is_calibrated_for(chosen):
                    made = learned if chosen is aggregator else chosen(out.hypotheses, pixels, out.camera, None, trust, clip.fps)
                    default = tuple(value.cpu() for value in pipe.promise(made, calibrator(out.hypotheses), chosen))
        positions = convert(clip.positions_camera, clip.skeleton, pipe.skeleton)[frames]
        true_root = positions[:, :, pipe.root_index]
        sample = Sample(
            hypotheses=hypotheses,
            recalibrated=recalibrated,
            attention=attention,
            lifted=None if out.lifted is None else out.lifted.cpu(),
            default=default,
            truth=positions - true_root[:, :, None],
            scored=scored & torch.isfinite(true_root).all(-1),
            true_root=true_root,
            root=root,
            keypoints_2d=keypoints,
            confidence=confidence,
            true_camera=clip.camera,
            camera=camera,
            fps=clip.fps,
            skeleton=pipe.skeleton,
            root_index=pipe.root_index,
            quirks=self.quirks,
        )
        return sample, seconds


def _as_published(clip: PoseClip, quirks: tuple[str, ...]) -> PoseClip:
    """The clip as an original repository sees it."""
    if "ignore_pixel_aspect" in quirks:
        clip = replace(clip, camera=replace(clip.camera, focal=clip.camera.focal[..., :1].repeat_interleave(2, dim=-1)))
    if "camera_by_last_digit" in quirks:
        clip = _through_the_camera_of(clip, f"S{clip.tags.get('subject', '')[-1:]}")
    return clip


def _through_the_camera_of(clip: PoseClip, subject: str) -> PoseClip:
    """The same motion from where this subject's camera stood. Keypoints that are projections of the truth follow, a detector's do not."""
    if subject == clip.tags.get("subject"):
        return clip
    view = clip.tags.get("camera")
    if view not in _H36M_CAMERAS:
        raise ValueError(f"camera_by_last_digit needs the tag 'camera', one of {_H36M_CAMERAS}, got {view!r}")
    camera = h36m_camera(_H36M_CAMERAS.index(view), subject)
    positions = camera.to_camera(clip.camera.to_world(clip.positions_camera))
    keypoints = clip.keypoints_2d
    offset = torch.linalg.vector_norm(keypoints - clip.camera.project(clip.positions_camera), dim=-1)
    if offset.nanmean() < 0.1:  # pixels: no detector is that good
        keypoints = camera.project(positions)
    return replace(clip, camera=camera, positions_camera=positions, keypoints_2d=keypoints)


# ---------------------------------------------------------------------------------------------------------------------
# Surroundings
# ---------------------------------------------------------------------------------------------------------------------


def _processes() -> Processes:
    """Those of the process group that the program already has, or else of the launch."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    together = ExitStack()
    processes = together.enter_context(started_together())
    atexit.register(together.close)  # not earlier: a group cannot safely be made again for the next call
    return processes


def _gathered(results: list[ClipResult], processes: Processes) -> list[ClipResult]:
    """The results of all processes, on every process."""
    if processes.count == 1:
        return results
    import torch.distributed as dist

    parts: list[Any] = [None] * processes.count
    dist.all_gather_object(parts, results)
    return [result for part in parts for result in part]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _silent(pipe: ProbPosePipeline) -> Iterator[None]:
    """Without the pipeline's own progress bars."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
