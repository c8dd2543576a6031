"""A pipeline on a benchmark of whole motion clips: the clips, the run, the report.

    benchmark = BenchmarkClips.load("mocap17_test.npz")
    report = evaluate(pipe, benchmark.subset(every=6), num_hypotheses=10)
    print(report.to_text())

Every clip goes through the pipeline once. All numbers come from its hypotheses, so they describe the same samples.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from probpose.aggregation import get_aggregator
from probpose.geometry import Camera
from probpose.metrics import acceleration_error, hypothesis_table, mpjpe, mpjve, n_mpjpe, pa_mpjpe
from probpose.pipelines import D3DPPipeline, SamplerSettings

SKELETON = "h36m_17"
KEYPOINTS = ("detected", "true")
CAMERAS = ("known", "image_size")
LEVELS = ("all", "source", "family")

METRICS: dict[str, tuple[str, str]] = {
    "p_agg": ("P-Agg", "MPJPE of the mean of the hypotheses"),
    "j_agg": ("J-Agg", "JPMA, the root estimated as in the pipeline"),
    "j_agg_true_root": ("J-Agg*", "JPMA with the true root and camera, the published definition"),
    "weighted": ("Weighted", "hypotheses weighted by their reprojection, the root estimated"),
    "p_best": ("P-Best", "oracle: the best hypothesis of each clip"),
    "j_best": ("J-Best", "oracle: the best hypothesis of each joint of each frame"),
    "pa_mpjpe": ("PA", "P-Agg after Procrustes alignment of every frame"),
    "n_mpjpe": ("N", "P-Agg after scaling of every frame"),
    "mpjve": ("MPJVE", "velocity error of P-Agg, mm per frame"),
    "acceleration": ("Accel", "acceleration error of P-Agg, mm per frame²"),
    "uncertainty": ("Uncert", "mean root-mean-square radius of the hypotheses about their mean"),
    "root": ("Root", "distance of the estimated root trajectory from the true one"),
}
"""Columns of a report: heading and meaning, all in millimetres."""

# ---------------------------------------------------------------------------------------------------------------------
# The clips
# ---------------------------------------------------------------------------------------------------------------------

_PER_FRAME = {
    "keypoints_true": (17, 2),
    "keypoints_detected": (17, 2),
    "confidence": (17,),
    "positions_camera": (17, 3),
}
_PER_CLIP = {"rotation": (3, 3), "translation": (3,)}
_LENS = ("focal", "centre", "radial", "tangential")
_KEYS = (*_PER_FRAME, *_PER_CLIP, *_LENS, "image_size", "starts", "names", "fps")
_BANDAI = re.compile(r"bandai/dataset-\d+_([^_]+)_")  # content_style_number


@dataclass(frozen=True, eq=False)
class BenchmarkClip:
    """One motion and what a camera saw of it.

    Args:
        name: "source/…", e.g. "cmu/walking/walking_1".
        keypoints_true: `(frames, 17, 2)` projected joints in pixels.
        keypoints_detected: `(frames, 17, 2)` pixels, as a detector would give them.
        confidence: `(frames, 17)` of the detections, 0..1.
        positions_camera: `(frames, 17, 3)` joints in metres, camera axes, absolute.
        camera: lens, image size, rotation and translation.
        fps: frames per second.
    """

    name: str
    keypoints_true: Tensor
    keypoints_detected: Tensor
    confidence: Tensor
    positions_camera: Tensor
    camera: Camera
    fps: float

    def __len__(self) -> int:
        return len(self.positions_camera)

    @property
    def source(self) -> str:
        """The collection: first component of the name."""
        return self.name.split("/")[0]

    @property
    def family(self) -> str:
        """Kind of motion: "cmu/walking" of cmu/walking/walking_1, "bandai/run" of bandai/dataset-2_run_elderly_002."""
        bandai = _BANDAI.match(self.name)
        return f"bandai/{bandai[1]}" if bandai else "/".join(self.name.split("/")[:2])

    @property
    def root(self) -> Tensor:
        """True root trajectory `(frames, 3)` metres."""
        return self.positions_camera[:, 0]

    @property
    def pose(self) -> Tensor:
        """True pose relative to the root `(frames, 17, 3)` metres."""
        return self.positions_camera - self.positions_camera[:, :1]

    def through(self, camera: Camera) -> BenchmarkClip:
        """See `BenchmarkClips.through`."""
        if camera.focal.ndim != 1:
            raise ValueError(f"camera must be a single camera, got parameters of shape {tuple(camera.focal.shape)}")
        camera = replace(camera, rotation=self.camera.rotation, translation=self.camera.translation)
        projected = camera.project(self.positions_camera)
        noise = (self.keypoints_detected - self.keypoints_true) * (camera.focal / self.camera.focal).to(projected)
        return replace(self, keypoints_true=projected, keypoints_detected=projected + noise, camera=camera)


@dataclass(frozen=True, eq=False)
class BenchmarkClips:
    """Test clips: iterable, with a length, and with one clip per index.

    Args:
        clips: the clips.
        name: what a report calls the benchmark.
    """

    clips: tuple[BenchmarkClip, ...]
    name: str = "benchmark"

    @classmethod
    def load(cls, path: str | Path) -> BenchmarkClips:
        """Read a `.npz` benchmark file of the 17 Human3.6M joints.

        Per frame `keypoints_true`, `keypoints_detected (N, 17, 2)` pixels, `confidence (N, 17)`,
        `positions_camera (N, 17, 3)` metres; per clip `names`, `rotation (clips, 3, 3)`, `translation (clips, 3)`;
        `starts (clips + 1)` frame offsets; `fps`; and the one lens of all clips: `image_size`, `focal`, `centre`,
        `radial`, `tangential`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an `.npz` file, missing arrays (all of them named), shapes that do not fit, or a clip of
                less than three frames, which has no acceleration.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no benchmark file at {path}")
        arrays = _read_arrays(path)
        starts = arrays["starts"]
        if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or (np.diff(starts) < 3).any():
            raise ValueError(f"{path}: starts must rise from 0 by at least three frames per clip, got {starts}")
        frames, count = int(starts[-1]), len(starts) - 1
        expected = {name: (frames, *rest) for name, rest in _PER_FRAME.items()}
        expected |= {name: (count, *rest) for name, rest in _PER_CLIP.items()} | {"names": (count,)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{path}: {name} must have shape {shape}, got {arrays[name].shape}")
        lens = Camera(*(_float(arrays[name]) for name in _LENS), image_size=tuple(arrays["image_size"].tolist()))
        clips = []
        for i, (first, last) in enumerate(pairwise(starts.tolist())):
            camera = replace(lens, **{name: _float(arrays[name][i]) for name in _PER_CLIP})
            seen = {name: _float(arrays[name][first:last]) for name in _PER_FRAME}
            clips.append(BenchmarkClip(str(arrays["names"][i]), **seen, camera=camera, fps=float(arrays["fps"])))
        return cls(tuple(clips), path.stem)

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[BenchmarkClip]:
        return iter(self.clips)

    def __getitem__(self, index: int) -> BenchmarkClip:
        return self.clips[index]

    @property
    def num_frames(self) -> int:
        return sum(map(len, self.clips))

    def subset(self, every: int = 1, max_clips: int | None = None, families: Iterable[str] | None = None) -> BenchmarkClips:
        """Fewer clips, in the same order.

        Args:
            every: keep the first of every so many clips.
            max_clips: then at most so many, spread evenly.
            families: keep, before all that, only these families or sources ("cmu/walking", "bandai").

        Raises:
            ValueError: a number below 1, or a family that the benchmark does not have.
        """
        for name, value in (("every", every), ("max_clips", max_clips)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        clips = self.clips
        if families is not None:
            wanted, known = set(families), {label for clip in clips for label in (clip.source, clip.family)}
            if not wanted or wanted - known:
                raise ValueError(f"families must be some of {sorted(known)}, got {sorted(wanted)}")
            clips = [clip for clip in clips if {clip.source, clip.family} & wanted]
        clips = clips[::every]
        if max_clips is not None and max_clips < len(clips):
            clips = [clips[i * len(clips) // max_clips] for i in range(max_clips)]
        return replace(self, clips=tuple(clips))

    def through(self, camera: Camera) -> BenchmarkClips:
        """The same motions, seen from the same places through another lens.

        The true keypoints are projected anew. The detector's errors are scaled with the focal length: they keep their
        size relative to the person, as those of a detector that works on a crop.

        Args:
            camera: the new lens and image size; each clip keeps its own rotation and translation.
        """
        return replace(self, clips=tuple(clip.through(camera) for clip in self.clips))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise ValueError(f"it lacks the arrays {', '.join(missing)}")
            return {key: file[key] for key in _KEYS}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # TypeError: a bare array is no archive
        raise ValueError(f"{path} is no benchmark file: {error}") from None


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def evaluate(
    pipe: D3DPPipeline,
    benchmark: BenchmarkClips,
    *,
    keypoints: str = "detected",
    camera: str = "known",
    num_hypotheses: int | None = None,
    num_inference_steps: int | None = None,
    flip: str | bool | None = None,
    share_first_step: bool | None = None,
    seed: int = 0,
    max_batch_size: int = 256,
    progress: bool = True,
) -> EvaluationReport:
    """Run a pipeline over a benchmark and measure its hypotheses.

    Args:
        pipe: a pipeline that produces the 17 Human3.6M joints, on any device.
        benchmark: the clips.
        keypoints: "detected", with the detector's confidences, or "true" 2D.
        camera: "known", or "image_size": the pipeline has to guess the lens. J-Agg* uses the true one either way.
        num_hypotheses, num_inference_steps, flip, share_first_step: as in the pipeline's call; None: its default.
        seed: every clip draws from its own random stream, made of the seed and the clip's name, so that a clip's
            numbers do not depend on which clips are measured beside it.
        max_batch_size: as in the pipeline's call.
        progress: show a progress bar over the clips.

    Raises:
        ValueError: an unknown choice of keypoints or camera, no clips, a pipeline with other joints, or sampler
            settings that the pipeline refuses.
    """
    _check_choice("keypoints", keypoints, KEYPOINTS)
    _check_choice("camera", camera, CAMERAS)
    if not len(benchmark):
        raise ValueError("the benchmark has no clips")
    if not pipe.skeleton == pipe.input_skeleton == SKELETON:
        raise ValueError(f"the benchmark has {SKELETON} joints, the pipeline {pipe.input_skeleton} -> {pipe.skeleton}")
    sampler = {
        "num_hypotheses": num_hypotheses,
        "num_inference_steps": num_inference_steps,
        "flip": flip,
        "share_first_step": share_first_step,
    }
    sampler = {name: pipe.config[f"default_{name}"] if value is None else value for name, value in sampler.items()}
    checked = SamplerSettings(**sampler)
    sampler = {name: getattr(checked, name) for name in sampler}
    bar_config = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**bar_config, "disable": True})
    try:
        results = tuple(
            _measure(pipe, clip, keypoints, camera, sampler, seed, max_batch_size)
            for clip in tqdm(benchmark, desc=benchmark.name, unit="clip", disable=not progress)
        )
    finally:
        pipe.set_progress_bar_config(**bar_config)
    settings = {
        "benchmark": benchmark.name,
        "clips": len(benchmark),
        "frames": benchmark.num_frames,
        "keypoints": keypoints,
        "camera": camera,
        **sampler,
        "seed": seed,
    }
    return EvaluationReport(settings, results)


def _measure(
    pipe: D3DPPipeline,
    clip: BenchmarkClip,
    keypoints: str,
    camera: str,
    sampler: dict[str, Any],
    seed: int,
    max_batch_size: int,
) -> ClipResult:
    detected = keypoints == "detected"
    keypoints_2d = clip.keypoints_detected if detected else clip.keypoints_true
    confidence = clip.confidence if detected else torch.ones_like(clip.confidence)
    lens = {"camera": clip.camera} if camera == "known" else {"image_size": clip.camera.image_size}
    started = time.perf_counter()
    out = pipe(
        keypoints_2d,
        confidence,
        **lens,
        skeleton=SKELETON,
        **sampler,
        aggregation=None,
        generator=torch.Generator().manual_seed(_clip_seed(seed, clip.name)),
        fps=clip.fps,
        max_batch_size=max_batch_size,
    )
    hypotheses, root = out.hypotheses.cpu(), out.root.cpu()  # waits for an accelerator
    seconds = time.perf_counter() - started

    def aggregate(name: str):
        return get_aggregator(name)(hypotheses[None], keypoints_2d[None], out.camera.to("cpu"), confidence=confidence[None], fps=clip.fps)

    truth, mean = clip.pose, aggregate("mean")
    table = hypothesis_table(hypotheses, truth, keypoints_2d, clip.camera, clip.root, p_best_scope="window")
    errors = {
        "p_agg": table["p_agg"],
        "j_agg": mpjpe(aggregate("jpma").pose[0], truth),
        "j_agg_true_root": table["j_agg"],
        "weighted": mpjpe(aggregate("weighted").pose[0], truth),
        "p_best": table["p_best"],
        "j_best": table["j_best"],
        "pa_mpjpe": pa_mpjpe(mean.pose[0], truth),
        "n_mpjpe": n_mpjpe(mean.pose[0], truth),
        "mpjve": mpjve(mean.pose[0], truth),
        "acceleration": acceleration_error(mean.pose[0], truth),
        "uncertainty": 1000 * mean.uncertainty.mean().item(),
        "root": mpjpe(root[:, None], clip.root[:, None]),
    }
    passes = pipe.count_passes(len(clip), **sampler)
    return ClipResult(clip.name, clip.source, clip.family, len(clip), errors, passes, seconds)


def _clip_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipResult:
    """What one clip gave.

    Args:
        name, source, family: of the clip.
        frames: its length.
        errors: a value in mm for every key of `METRICS`.
        passes: network passes (one window, one hypothesis, one orientation each).
        seconds: wall time of the pipeline's call.
    """

    name: str
    source: str
    family: str
    frames: int
    errors: dict[str, float]
    passes: int
    seconds: float


@dataclass(frozen=True)
class EvaluationReport:
    """The result of `evaluate`.

    Args:
        settings: benchmark, clips, frames, keypoints, camera, sampler settings, seed.
        results: one per clip.
    """

    settings: dict[str, Any]
    results: tuple[ClipResult, ...]

    @property
    def passes(self) -> int:
        """Network passes of all clips (one window, one hypothesis, one orientation each)."""
        return sum(result.passes for result in self.results)

    @property
    def seconds(self) -> float:
        """Wall time of all pipeline calls, without measuring."""
        return sum(result.seconds for result in self.results)

    @property
    def milliseconds_per_frame(self) -> float:
        return 1000 * self.seconds / self.settings["frames"]

    def groups(self, level: str = "family") -> dict[str, dict[str, float]]:
        """Means in mm, weighted by the clips' frames: "all" first, then the sources, then the families, by name.

        Args:
            level: the finest rows: "all", "source" or "family".

        Returns:
            Row name to `clips`, `frames` and every key of `METRICS`.
        """
        _check_choice("level", level, LEVELS)
        labels: tuple[Callable[[ClipResult], str], ...] = (lambda r: "all", lambda r: r.source, lambda r: r.family)
        rows = {}
        for label in labels[: LEVELS.index(level) + 1]:
            for name in sorted({label(result) for result in self.results}):
                rows.setdefault(name, _average([result for result in self.results if label(result) == name]))
        return rows

    def __getitem__(self, metric: str) -> float:
        """A metric over all clips, in mm."""
        return self.groups("all")["all"][metric]

    def to_dict(self, level: str = "family") -> dict[str, Any]:
        """Settings, cost and groups; plain Python types."""
        cost = {"passes": self.passes, "seconds": self.seconds, "milliseconds_per_frame": self.milliseconds_per_frame}
        return {"settings": dict(self.settings), "cost": cost, "groups": self.groups(level)}

    def to_json(self, level: str = "family") -> str:
        return json.dumps(self.to_dict(level), indent=2)

    def to_text(self, level: str = "family") -> str:
        """The table in aligned columns, millimetres with one decimal, the settings above and the legend below."""
        table = self._table(level)
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))) for row in table
        ]
        legend = [f"{heading:<9} {meaning}" for heading, meaning in METRICS.values()]
        return "\n".join([*self._summary(), "", *lines, "", *legend])

    def to_markdown(self, level: str = "source") -> str:
        """The same as a Markdown table, for model cards; by default without the families."""
        heading, *rows = [f"| {' | '.join(row)} |".replace("*", "\\*") for row in self._table(level)]
        rule = "|".join(["", "---", *["---:"] * (len(METRICS) + 2), ""])
        legend = "; ".join(f"{heading}: {meaning}" for heading, meaning in METRICS.values()).replace("*", "\\*")
        return "\n".join([*self._summary(), "", heading, rule, *rows, "", f"Millimetres. {legend}."])

    def _summary(self) -> list[str]:
        settings = self.settings
        flip = str(settings["flip"] or "none").replace("_", " ")
        first = "shared" if settings["share_first_step"] else "own"
        return [
            f"{settings['benchmark']}: {settings['clips']} clips, {settings['frames']} frames; "
            f"{settings['keypoints']} keypoints, camera {settings['camera'].replace('_', ' ')}, seed {settings['seed']}.",
            f"{settings['num_hypotheses']} hypotheses, {settings['num_inference_steps']} steps, flip {flip}, "
            f"first step {first}: {self.passes} network passes, {self.milliseconds_per_frame:.1f} ms per frame.",
        ]

    def _table(self, level: str) -> list[list[str]]:
        heading = ["mm", "clips", "frames", *(heading for heading, _ in METRICS.values())]
        rows = [
            [name, str(row["clips"]), str(row["frames"]), *(f"{row[metric]:.1f}" for metric in METRICS)]
            for name, row in self.groups(level).items()
        ]
        return [heading, *rows]


def _average(results: list[ClipResult]) -> dict[str, float]:
    frames = sum(result.frames for result in results)
    means = {name: sum(result.errors[name] * result.frames for result in results) / frames for name in METRICS}
    return {"clips": len(results), "frames": frames, **means}
