"""What every training has in common: accelerator, averaged weights, learning rate, checkpoints that survive a kill, logs.

Everything random at step n is a function of (seed, n): a run that is killed and resumed sees the same next batch and noise as one that
was not.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import shutil
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from diffusers.configuration_utils import ConfigMixin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from probpose.data.augmentation import BodyVariation, CameraVariation, DetectorNoise
from probpose.data.dataset import TrainingWindows
from probpose.data.mocap import MocapClips
from probpose.plugins import is_own, load_own

from .config import ComponentConfig, DataConfig, Recipe

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def build_component(module: ModuleType, config: ComponentConfig, section: str, takes: str | None = None) -> Any:
    """Instantiate a class of `probpose.models` or `probpose.schedulers` by its name, or one of the user's own by "my_module:MyClass"; with
    `takes`, one called with that argument.

    Raises:
        ValueError: an unknown name or argument (the message lists the known ones), or an argument that the class refuses.
    """
    if is_own(config.name):
        kind = load_own(config.name, f"{section}.name")
        if not (isinstance(kind, type) and issubclass(kind, ConfigMixin) and _is_called_with(kind, takes)):
            called = f", called with {takes}" if takes else ""
            raise ValueError(f"{section}.name: {config.name} must be a class with diffusers' ConfigMixin{called}, but is {kind!r}")
    else:
        public = {name: getattr(module, name) for name in module.__all__}
        known = sorted(name for name, kind in public.items() if issubclass(kind, ConfigMixin) and _is_called_with(kind, takes))
        if config.name not in known:
            own = "one of your own is my_module:MyClass"
            raise ValueError(f"{section}.name: {module.__name__} has no {config.name!r}; {own}; known: {', '.join(known)}")
        kind = public[config.name]
    allowed = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    if unknown := [name for name in config.config if name not in allowed]:
        raise ValueError(f"{section}.config: {config.name} has no {', '.join(unknown)}; allowed are {', '.join(allowed)}")
    try:
        return kind(**config.config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{section}.config: {config.name}: {error}") from None


def _is_called_with(kind: type, argument: str | None) -> bool:
    return argument is None or argument in inspect.signature(kind.forward).parameters


def split_clips(data: DataConfig) -> tuple[MocapClips, MocapClips | None]:
    """The clips to train on and those kept out for validation and calibration, chosen by a hash of their names.

    Raises:
        ValueError: a share that leaves nothing to train on.
    """
    clips = MocapClips(data.paths, split=data.split, include=data.include)
    held_out = {name for name in clips.names if zlib.crc32(name.encode()) / 2**32 < data.validation_share}
    if held_out.issuperset(clips.names):
        raise ValueError(f"data.validation_share: {data.validation_share} leaves none of the {len(clips)} clips to train on")
    return clips.select(lambda name: name not in held_out), clips.select(lambda name: name in held_out) if held_out else None


def windows_for(
    data: DataConfig,
    clips: MocapClips,
    count: int,
    seed: int,
    num_frames: int,
    canonical_camera: Sequence[float] | None,
    axes: str = "camera",
) -> TrainingWindows:  # fmt: skip
    """Windows of clips with the recipe's bodies, cameras and detector; without a canonical camera nobody looks at them."""
    detector = DetectorNoise(**data.detector) if canonical_camera is not None and data.detector is not None else None
    return TrainingWindows(
        clips,
        num_frames=num_frames,
        num_windows=count,
        source_weights=data.source_weights,
        **({} if canonical_camera is None else {"canonical_camera": tuple(canonical_camera)}),
        body=None if data.body is None else BodyVariation(**data.body),
        camera=CameraVariation(**data.camera),
        detector=detector,
        seed=seed,
        axes=axes,
    )


class TrainingLoop(ABC):
    """Trains a network by a recipe. A subclass builds it, feeds it and says what a step's loss is.

    Args:
        config: the recipe.
        resume: continue from the newest checkpoint of `config.output_dir`, if there is one.
        overwrite: start anew in an output folder that already holds checkpoints; they are deleted when `train` begins.

    Raises:
        FileExistsError: the output folder holds checkpoints and neither `resume` nor `overwrite` was asked for.
        FileNotFoundError: a motion archive or a pipeline does not exist.
        ValueError: a recipe that is wrong, or is not that of the run to resume; the message names the fields.
    """

    def __init__(self, config: Recipe, resume: bool = False, overwrite: bool = False):
        if resume and overwrite:
            raise ValueError("resume and overwrite exclude each other: continue the run, or start anew?")
        self.config, self.overwrite = config, overwrite
        self.output_dir = Path(config.output_dir)
        checkpoints = self._checkpoints()
        if checkpoints and not (resume or overwrite):
            raise FileExistsError(f"{self.output_dir} already holds checkpoints: pass --resume to continue or --overwrite to start anew")
        # A batch is shared by the processes, so that a recipe means the same windows per step on any number of them.
        loading = DataLoaderConfiguration(split_batches=True)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, dataloader_config=loading)
        optim, processes = config.optim, self.accelerator.num_processes
        if optim.batch_size % processes:
            raise ValueError(f"optim.batch_size: {optim.batch_size} windows cannot be shared equally by {processes} processes")
        set_seed(config.seed)
        network = self.build()
        if config.attention_backend is not None:
            try:
                network.set_attention_backend(config.attention_backend)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"attention_backend: {error}") from None
        newest = checkpoints[-1] if resume and checkpoints else None
        if newest is not None:
            config.check_continues(type(config).model_validate_json((newest / "recipe.json").read_text()))
        else:
            self.initialise(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.network = self.accelerator.unwrap_model(self.model)
        self.ema = EMAModel(self.network.parameters(), decay=optim.ema_decay, use_ema_warmup=True, power=3 / 4)
        self.ema.to(self.accelerator.device)
        self.step = 0
        if newest is not None:
            self._load(newest)

    # What a subclass is about ----------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The network to train; also sets up the data, so that a wrong recipe fails before anything runs."""

    def initialise(self, network: nn.Module) -> None:  # noqa: B027
        """Weights to start from, if not random ones."""

    def prepare(self) -> None:  # noqa: B027
        """Work that comes before the first step and is not needed to check a recipe."""

    @abstractmethod
    def batches(self) -> Iterable[dict[str, Tensor]]:
        """Batches from step `self.step` on: resuming is nothing but starting the stream later."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
        """A step's loss, and the error in metres that is logged."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Errors in mm on validation data; called with the averaged weights in place, on the main process."""

    @abstractmethod
    def save_pipeline(self, folder: Path) -> None:
        """Write the pipeline; called with the averaged weights in place."""

    # The run ---------------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Run to the last step; returns the folder of the final pipeline (EMA weights).

        Raises:
            FloatingPointError: the loss is not finite any more. No checkpoint is written from there on.
        """
        accelerator = self.accelerator
        writer = None
        if accelerator.is_main_process:
            for leftover in self.output_dir.glob(".partial-*"):  # of a run that was killed while it wrote or deleted
                shutil.rmtree(leftover)
            if self.overwrite:
                for path in self._checkpoints():
                    self._discard(path)
                shutil.rmtree(self.output_dir / "logs", ignore_errors=True)
            writer = SummaryWriter(self.output_dir / "logs", purge_step=self.step + 1)
        self.prepare()
        bar = tqdm(total=self.config.optim.steps, initial=self.step, unit="step", disable=not accelerator.is_local_main_process)
        try:
            self._run(writer, bar)
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return self._checkpoints()[-1] / "pipeline"

    def _run(self, writer: SummaryWriter | None, bar: tqdm) -> None:
        config = self.config
        self.model.train()
        recent: list[float] = []
        started, seen = time.perf_counter(), 0
        for batch in self.batches():
            loss, grad_norm = self._optimise(batch)
            self.step += 1
            last = self.step == config.optim.steps
            seen += config.optim.batch_size
            bar.update()
            recent.append(loss)
            if (self.step % config.log_every == 0 or last) and writer is not None:
                mean = sum(recent) / len(recent)
                speed = seen / (time.perf_counter() - started)
                bar.set_postfix(loss_mm=f"{1000 * mean:.1f}", windows_per_s=f"{speed:.0f}")
                writer.add_scalar("train/loss_mm", 1000 * mean, self.step)
                writer.add_scalar("train/grad_norm", grad_norm, self.step)
                writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
                writer.add_scalar("train/windows_per_second", speed, self.step)
                recent, started, seen = [], time.perf_counter(), 0
            if self.step % config.evaluate_every == 0 or last:
                errors = self.evaluate()
                for name, value in errors.items():
                    writer.add_scalar(f"validation/{name}", value, self.step)
                if errors:
                    bar.write(f"step {self.step}: validation {', '.join(f'{k} {v:.1f}' for k, v in errors.items())}")
            if self.step % config.checkpoint_every == 0 or last:
                self._save()

    def evaluate(self) -> dict[str, float]:
        """Validation errors in mm of the averaged weights; empty on other processes than the main one."""
        if not self.accelerator.is_main_process:
            return {}
        with self._averaged():
            return self.validate()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network as it is saved: averaged weights, evaluation mode."""
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.ema.restore(self.network.parameters())
            self.network.train()

    def _optimise(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        optim, seed, process = self.config.optim, self.config.seed, self.accelerator.process_index
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        # Every process draws for the whole batch and takes its share; only stochastic depth has a stream per process.
        generator = torch.Generator().manual_seed(mix_seeds(seed, self.step, 0))
        torch.manual_seed(mix_seeds(seed, self.step, 1 + process))
        loss, error = self.loss(batch, generator)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        grad_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), optim.max_grad_norm))
        # Under fp16 an infinite gradient only tells the loss scaler to skip the step.
        scaled = self.config.mixed_precision == "fp16"
        if not math.isfinite(loss.item()) or not (scaled or math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"training diverged at step {self.step + 1}: loss {loss.item()}, gradient norm {grad_norm}; the checkpoints in "
                f"{self.output_dir} are from before. Try a lower optim.learning_rate"
            )
        self.optimizer.step()
        self.ema.step(self.network.parameters())
        return error, grad_norm

    def _learning_rate(self, step: int) -> float:
        optim = self.config.optim
        if step < optim.warmup_steps:
            return optim.learning_rate * (step + 1) / optim.warmup_steps
        progress = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
        return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * cosine

    def _checkpoints(self) -> list[Path]:
        found = [p for p in self.output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(p.name)]
        return sorted(found, key=lambda p: int(p.name.split("-")[1]))

    def _save(self) -> None:
        """Write a checkpoint beside the others and only then rename it: a kill leaves the previous ones whole."""
        if not self.accelerator.is_main_process:
            return
        final = self.output_dir / f"checkpoint-{self.step}"
        partial = self.output_dir / f".partial-{os.getpid()}"
        partial.mkdir(parents=True)
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }
        torch.save(state, partial / "state.pt")
        (partial / "progress.json").write_text(json.dumps({"step": self.step, "seed": self.config.seed}))
        (partial / "recipe.json").write_text(self.config.model_dump_json(indent=2))
        with self._averaged():
            self.save_pipeline(partial / "pipeline")
        partial.rename(final)
        for old in self._checkpoints()[: -self.config.keep_checkpoints]:
            self._discard(old)

    def _discard(self, checkpoint: Path) -> None:
        """Delete a checkpoint; a kill in between leaves no half of one under its name."""
        doomed = checkpoint.with_name(f".partial-{checkpoint.name}")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "state.pt", map_location=self.accelerator.device, weights_only=True)
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step = json.loads((checkpoint / "progress.json").read_text())["step"]
        if self.step > self.config.optim.steps:
            raise ValueError(f"optim.steps: {self.config.optim.steps}, but {checkpoint} has gone through {self.step} steps already")


def mix_seeds(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
