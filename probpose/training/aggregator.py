"""Training a learned aggregator on top of a frozen pipeline.

The pipeline's hypotheses are drawn once, for windows of the training clips and of the clips kept out, and saved beside the checkpoints.
A step then looks at a few consecutive frames of some windows and at a random number of their hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

import probpose.models
from probpose.aggregation import get_aggregator
from probpose.data.dataset import TrainingWindows
from probpose.data.mocap import MocapClips
from probpose.files import replacing
from probpose.geometry import Camera, root_of_hypotheses
from probpose.pipelines import ProbPosePipeline

from .config import AggregatorConfig, DataConfig
from .loop import TrainingLoop, build_component, mix_seeds, split_clips, windows_for
from .saving import save_changed
from .trainer import copy_weights
from .windows import rendered

SAMPLING_BATCH = 32  # windows rendered and sampled at a time
_FREE_WINDOW = 27  # frames of a window for networks that take every frame for itself


class AggregatorTrainer(TrainingLoop):
    """Trains an aggregator by a recipe; see `TrainingLoop` for arguments and errors. `train` returns the pipeline with it."""

    config: AggregatorConfig

    def build(self) -> Any:
        config = self.config
        self.pipe = ProbPosePipeline.from_pretrained(config.pipeline).to(self.accelerator.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.camera = canonical_camera(self.pipe).to(self.accelerator.device)
        network = build_component(probpose.models, config.aggregator, "aggregator", takes="hypotheses")
        made_for, produced = (
            (network.config.num_joints, network.config.skeleton),
            (self.pipe.denoiser.config.num_joints, self.pipe.skeleton),
        )
        if made_for != produced:
            raise ValueError(
                f"aggregator.config.num_joints, skeleton: made for {made_for[0]} joints of {made_for[1]}, "
                f"but the pipeline produces {produced[0]} of {produced[1]}"
            )
        if config.optim.fewest_hypotheses > config.samples.num_hypotheses:
            raise ValueError(
                f"optim.fewest_hypotheses: {config.optim.fewest_hypotheses}, but samples.num_hypotheses is {config.samples.num_hypotheses}"
            )
        clips, held_out = split_clips(config.data)
        window = window_length(self.pipe)
        self.training_windows = windows_for(config.data, clips, config.samples.windows, config.seed, window, self.pipe.canonical_camera)
        self.validation_windows = None
        if held_out is not None:
            self.validation_windows = held_out_windows(config.data, self.pipe, held_out, config.evaluation_windows, config.seed + 1)
        return network

    def initialise(self, network: Any) -> None:
        if (source := self.config.initialise_from) is not None:
            aggregator = getattr(ProbPosePipeline.from_pretrained(source), "aggregator", None)
            if aggregator is None:
                raise ValueError(f"initialise_from: {source} has no aggregator")
            copy_weights(aggregator, network)

    def prepare(self) -> None:
        self.samples = self._samples("training", self.training_windows)
        if self.validation_windows is not None:
            self.held_out = self._samples("validation", self.validation_windows)

    def _samples(self, name: str, windows: TrainingWindows) -> dict[str, Tensor]:
        """Windows with their hypotheses, from the file that this recipe has written, or drawn anew."""
        path = self.output_dir / f"samples-{name}.safetensors"
        origin = f"{len(windows)} windows of {self.config.model_dump_json(include={'pipeline', 'data', 'samples', 'seed'})}"
        if self.accelerator.is_main_process and (self.overwrite or _origin(path) != origin):
            samples = draw_samples(self.pipe, windows, self.config.samples.num_hypotheses, self.config.samples.max_batch_size,
                                   autocast=self.accelerator.autocast, description=f"sampling for {name}")  # fmt: skip
            with replacing(path, overwrite=True) as unfinished:
                save_file(samples, unfinished, metadata={"origin": origin})
        self.accelerator.wait_for_everyone()
        return load_file(path)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        optim, accelerator = self.config.optim, self.accelerator
        share = optim.batch_size // accelerator.num_processes
        count, _, length = self.samples["hypotheses"].shape[:3]
        frames = min(optim.num_frames, length)
        for step in range(self.step, optim.steps):
            generator = torch.Generator().manual_seed(mix_seeds(self.config.seed, step, 10**6))
            rows = torch.randint(count, (optim.batch_size,), generator=generator)
            first = int(torch.randint(length - frames + 1, (), generator=generator))
            rows = rows[accelerator.process_index * share :][:share]
            part = {key: value[rows] for key, value in self.samples.items()}
            part = {k: v[:, :, first : first + frames] if k == "hypotheses" else v[:, first : first + frames] for k, v in part.items()}
            yield {key: value.to(accelerator.device, torch.float32) for key, value in part.items()}

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
        """MPJPE of the pose, and the likelihood of its error under the predicted uncertainty (an isotropic Gaussian)."""
        optim, total = self.config.optim, batch["hypotheses"].shape[1]
        number = int(torch.randint(optim.fewest_hypotheses, total + 1, (), generator=generator))
        kept = torch.randperm(total, generator=generator)[:number].to(batch["hypotheses"].device)
        with self.accelerator.autocast():
            pose, sigma, _ = self._aggregate(self.model, batch, batch["hypotheses"][:, kept])
        error = (pose - batch["pose"]).norm(dim=-1)
        moving = error.detach() > 0  # the root has no error
        surprise = 3 * sigma.log() + 1.5 * (error.detach() / sigma) ** 2
        return error.mean() + optim.uncertainty_weight * surprise[moving].mean(), error.mean().item()

    def validate(self) -> dict[str, float]:
        """MPJPE of the aggregator and of those without weights; how often the error stays below the predicted uncertainty (percent)."""
        if self.validation_windows is None:
            return {}
        errors: dict[str, list[Tensor]] = {"attention_mm": [], "mean_mm": [], "jpma_mm": [], "within_uncertainty": []}
        for first in range(0, len(self.held_out["pose"]), SAMPLING_BATCH):
            batch = {k: v[first : first + SAMPLING_BATCH].to(self.accelerator.device, torch.float32) for k, v in self.held_out.items()}
            pose, sigma, _ = self._aggregate(self.network, batch, batch["hypotheses"])
            error = (pose - batch["pose"]).norm(dim=-1)
            errors["attention_mm"].append(1000 * error)
            errors["within_uncertainty"].append(100.0 * (error < sigma)[error > 0])
            for name in ("mean", "jpma"):
                pose = get_aggregator(name)(batch["hypotheses"], batch["keypoints_2d"], self.camera, confidence=batch["confidence"]).pose
                errors[f"{name}_mm"].append(1000 * (pose - batch["pose"]).norm(dim=-1))
        return {name: torch.cat([e.flatten() for e in values]).mean().item() for name, values in errors.items()}

    def save_pipeline(self, folder: Path) -> None:
        self.pipe.register_modules(aggregator=self.network, calibrator=None)  # one that was there knows nothing of this aggregator
        self.pipe.register_to_config(default_aggregation="attention")
        save_changed(self.pipe, ("aggregator",), folder)

    def _aggregate(self, network: Any, batch: dict[str, Tensor], hypotheses: Tensor) -> tuple[Tensor, ...]:
        return network(hypotheses, batch["keypoints_2d"], self.camera, batch["root"], batch["confidence"], return_dict=False)


def _origin(path: Path) -> str | None:
    """What samples were drawn from, if there are any."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("origin")


def held_out_windows(data: DataConfig, pipe: ProbPosePipeline, clips: MocapClips, count: int, seed: int) -> TrainingWindows:
    """Windows of clips kept out, as a pipeline takes them; sources of which no clip was kept out lose their weight."""
    weights = {source: weight for source, weight in (data.source_weights or {}).items() if source in clips.sources}
    data = data.model_copy(update={"source_weights": weights or None})
    return windows_for(data, clips, count, seed, window_length(pipe), pipe.canonical_camera)


def window_length(pipe: ProbPosePipeline) -> int:
    """Frames of the windows that are rendered for a pipeline."""
    return pipe.num_frames or _FREE_WINDOW


def canonical_camera(pipe: ProbPosePipeline) -> Camera:
    """The camera, in screen units, that a pipeline's training windows are expressed in.

    Raises:
        ValueError: the pipeline's denoiser has none, or the pipeline is for other joints than windows have.
    """
    if (joints := (pipe.input_skeleton, pipe.skeleton)) != ("h36m_17", "h36m_17"):
        raise ValueError(f"the pipeline reads {joints[0]} and produces {joints[1]}, but windows are rendered for h36m_17 only")
    canonical = pipe.canonical_camera
    if canonical is None:
        raise ValueError("the pipeline's denoiser has no canonical camera, so windows cannot be rendered for it")
    return Camera(canonical[:2], canonical[2:], slope_limit=math.inf)


@torch.no_grad()
def draw_samples(
    pipe: ProbPosePipeline,
    windows: TrainingWindows,
    num_hypotheses: int,
    max_batch_size: int,
    autocast: Any,
    description: str = "sampling",
    length: int | None = None,
) -> dict[str, Tensor]:
    """Hypotheses of rendered windows, or of so many frames in their middles, by the pipeline's default sampler.

    Returns:
        `hypotheses (windows, num_hypotheses, frames, joints, 3)` in half precision; `root (windows, frames, 3)`, estimated from them;
        `keypoints_2d`, `confidence` and `pose` as in `TrainingWindows`, unobserved keypoints being filled in.
    """
    camera, rows = canonical_camera(pipe), []
    settings = pipe.settings(num_hypotheses=num_hypotheses)
    for first in tqdm(range(0, len(windows), SAMPLING_BATCH), desc=description, unit="batch"):
        batch = rendered(windows, list(range(first, min(first + SAMPLING_BATCH, len(windows)))))
        if length is not None:  # cut from whole windows, in which the detector's mistakes are as frequent as they should be
            start = (windows.num_frames - length) // 2
            batch = {name: value[:, start : start + length] for name, value in batch.items()}
        keypoints, confidence = batch["keypoints_2d"].to(pipe.device), batch["confidence"].to(pipe.device)
        with autocast():
            generator = torch.Generator().manual_seed(mix_seeds(windows.seed, first))
            told = {"up": batch["up"][:, 0].to(pipe.device)} if pipe.needs_gravity else {}
            hypotheses = pipe.sample_clips(keypoints, confidence, settings, generator, max_batch_size=max_batch_size, **told).float()
        root = root_of_hypotheses(hypotheses, keypoints, camera.to(pipe.device), confidence, windows.clips.fps)
        kept = {"keypoints_2d": keypoints, "confidence": confidence, "pose": batch["pose"], "root": root, "hypotheses": hypotheses.half()}
        rows.append({name: value.cpu() for name, value in kept.items()})
    return {name: torch.cat([row[name] for row in rows]).contiguous() for name in rows[0]}
