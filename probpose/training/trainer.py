"""The training loop: denoising with clean-pose prediction, as in D3DP (arXiv 2303.11579, §3), on an endless stream of rendered windows.

Everything random at step n is a function of (seed, n): a run that is killed and resumed sees the same next batch, timesteps and noise
as one that was not.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import re
import shutil
import time
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from diffusers.configuration_utils import ConfigMixin
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

import probpose.models
import probpose.schedulers
from probpose.data.augmentation import BodyVariation, CameraVariation, DetectorNoise
from probpose.data.dataset import TrainingWindows
from probpose.data.mocap import MocapClips
from probpose.pipelines import D3DPPipeline, ProbPosePipeline, SamplerSettings

from .config import ComponentConfig, TrainingConfig

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def build_component(module: ModuleType, config: ComponentConfig, section: str) -> Any:
    """Instantiate a public class of `probpose.models` or `probpose.schedulers` by name.

    Raises:
        ValueError: an unknown name or argument (the message lists the known ones), or an argument that the class refuses.
    """
    public = {name: getattr(module, name) for name in module.__all__}
    known = sorted(name for name, kind in public.items() if issubclass(kind, ConfigMixin))
    if config.name not in known:
        raise ValueError(f"{section}.name: {module.__name__} has no {config.name!r}; known: {', '.join(known)}")
    kind = public[config.name]
    allowed = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    if unknown := [name for name in config.config if name not in allowed]:
        raise ValueError(f"{section}.config: {config.name} has no {', '.join(unknown)}; allowed are {', '.join(allowed)}")
    try:
        return kind(**config.config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{section}.config: {config.name}: {error}") from None


class Trainer:
    """Trains a denoiser by a recipe.

    Args:
        config: the recipe.
        resume: continue from the newest checkpoint of `config.output_dir`, if there is one.
        overwrite: start anew in an output folder that already holds checkpoints; they are deleted when `train` begins.

    Raises:
        FileExistsError: the output folder holds checkpoints and neither `resume` nor `overwrite` was asked for.
        FileNotFoundError: a motion archive or `initialise_from` does not exist.
        ValueError: a recipe that is wrong, or is not that of the run to resume; the message names the fields.
    """

    def __init__(self, config: TrainingConfig, resume: bool = False, overwrite: bool = False):
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
        denoiser = build_component(probpose.models, config.denoiser, "denoiser")
        self.scheduler = build_component(probpose.schedulers, config.scheduler, "scheduler")
        self._pipeline(denoiser)  # wrong arguments should not wait for the first checkpoint to be noticed
        self.training_windows, self.validation_windows = self._datasets(denoiser.config)
        newest = checkpoints[-1] if resume and checkpoints else None
        if newest is not None:
            config.check_continues(TrainingConfig.model_validate_json((newest / "recipe.json").read_text()))
        elif config.initialise_from is not None:
            _copy_weights(ProbPosePipeline.from_pretrained(config.initialise_from).denoiser, denoiser)
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(denoiser, optimizer)
        self.denoiser = self.accelerator.unwrap_model(self.model)
        self.ema = EMAModel(self.denoiser.parameters(), decay=optim.ema_decay, use_ema_warmup=True, power=3 / 4)
        self.ema.to(self.accelerator.device)
        self.step = 0
        if newest is not None:
            self._load(newest)

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
        for batch in self._loader():
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

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean-hypothesis and best-joint MPJPE in mm of the EMA weights on validation windows (5 hypotheses, 2 steps, no flip)."""
        if self.validation_windows is None or not self.accelerator.is_main_process:
            return {}
        self.ema.store(self.denoiser.parameters())
        self.ema.copy_to(self.denoiser.parameters())
        self.denoiser.eval()
        pipe = D3DPPipeline(denoiser=self.denoiser, scheduler=type(self.scheduler).from_config(self.scheduler.config))
        device = self.accelerator.device
        settings = SamplerSettings(num_hypotheses=5, num_inference_steps=2, flip=False, share_first_step=True)
        pipe.set_progress_bar_config(disable=True)
        mean_error, best_error, count = 0.0, 0.0, self.config.evaluation_windows
        for first in range(0, count, 128):
            rows = list(range(first, min(first + 128, count)))
            batch = {k: v.to(device) for k, v in self.validation_windows.render(rows).items()}
            generator = torch.Generator().manual_seed(first)
            hypotheses = pipe.sample_clips(batch["keypoints_2d"], batch["confidence"], settings, generator, max_batch_size=1024)
            hypotheses = hypotheses - hypotheses[..., :1, :]
            target, share = batch["pose"], len(rows) / count
            mean_error += share * (hypotheses.mean(1) - target).norm(dim=-1).mean().item()
            best_error += share * (hypotheses - target[:, None]).norm(dim=-1).amin(1).mean().item()
        self.ema.restore(self.denoiser.parameters())
        self.denoiser.train()
        return {"p_agg_mm": 1000 * mean_error, "j_best_mm": 1000 * best_error}

    def _optimise(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        optim, seed, process = self.config.optim, self.config.seed, self.accelerator.process_index
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        # Every process draws for the whole batch and takes its share; only stochastic depth has a stream per process.
        generator = torch.Generator().manual_seed(_mix(seed, self.step, 0))
        torch.manual_seed(_mix(seed, self.step, 1 + process))
        if torch.rand((), generator=generator) < optim.short_window_share:
            length = int(torch.randint(1, batch["pose"].shape[1] + 1, (), generator=generator))
            batch = {key: value[:, :length] for key, value in batch.items()}
        pose, count = batch["pose"], len(batch["pose"])
        share = slice(process * count, (process + 1) * count)
        noise = torch.randn(optim.batch_size, *pose.shape[1:], generator=generator)[share].to(pose)
        timestep = torch.randint(len(self.scheduler), (optim.batch_size,), generator=generator)
        noisiest = torch.rand(optim.batch_size, generator=generator) < optim.first_step_share
        timestep = torch.where(noisiest, len(self.scheduler) - 1, timestep)[share].to(pose.device)
        noisy = self.scheduler.add_noise(pose, noise, timestep)
        with self.accelerator.autocast():
            sample = self.model(batch["keypoints_2d"], noisy, timestep, confidence=batch["confidence"], return_dict=False)[0]
        sample = sample.float()
        loss = mpjpe = (sample - pose).norm(dim=-1).mean()
        if optim.velocity_weight and pose.shape[1] > 1:
            velocity_error = (sample.diff(dim=1) - pose.diff(dim=1)).norm(dim=-1).mean()
            loss = loss + optim.velocity_weight * velocity_error
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
        self.ema.step(self.denoiser.parameters())
        return mpjpe.item(), grad_norm

    def _learning_rate(self, step: int) -> float:
        optim = self.config.optim
        if step < optim.warmup_steps:
            return optim.learning_rate * (step + 1) / optim.warmup_steps
        progress = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
        return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * cosine

    def _datasets(self, denoiser: Any) -> tuple[TrainingWindows, TrainingWindows | None]:
        """Training and validation windows as a denoiser of this configuration takes them."""
        data, optim = self.config.data, self.config.optim
        clips = MocapClips(data.paths, split=data.split, include=data.include)
        num_frames, window, name = data.num_frames or denoiser.num_frames, denoiser.num_frames, self.config.denoiser.name
        skeletons = (denoiser.skeleton, denoiser.get("input_skeleton") or denoiser.skeleton, denoiser.num_joints)
        problems = [
            (
                skeletons != ("h36m_17", "h36m_17", 17),
                f"denoiser.config: training windows hold the 17 joints of h36m_17, but the denoiser is made for {skeletons}",
            ),
            (
                denoiser.get("in_channels") == 2 or denoiser.get("use_timestep") is False,
                "denoiser.config: a lifter has no noise to remove, training needs in_channels: 5 and use_timestep: true",
            ),
            (
                denoiser.canonical_camera is None,
                "denoiser.config.canonical_camera: training windows need the [fx, fy, cx, cy] of a camera, got null",
            ),
            (
                denoiser.fps not in (None, clips.fps),
                f"denoiser.config.fps: {denoiser.fps}, but the clips of data.paths have {clips.fps:g} frames per second",
            ),
            (
                num_frames > window,
                f"data.num_frames: {num_frames} frames are more than the denoiser's window of {window}",
            ),
            (
                not denoiser.get("any_length") and (num_frames != window or optim.short_window_share > 0),
                f"data.num_frames, optim.short_window_share: this {name} takes windows of {window} frames only",
            ),
        ]
        for wrong, message in problems:
            if wrong:
                raise ValueError(message)
        held_out = {name for name in clips.names if zlib.crc32(name.encode()) / 2**32 < data.validation_share}
        if held_out.issuperset(clips.names):
            raise ValueError(f"data.validation_share: {data.validation_share} leaves none of the {len(clips)} clips to train on")
        arguments = {
            "num_frames": num_frames,
            "canonical_camera": tuple(denoiser.canonical_camera),
            "body": None if data.body is None else BodyVariation(**data.body),
            "camera": CameraVariation(**data.camera),
            "detector": None if data.detector is None else DetectorNoise(**data.detector),
        }
        training = TrainingWindows(
            clips.select(lambda name: name not in held_out), num_windows=optim.steps * optim.batch_size,
            source_weights=data.source_weights, seed=self.config.seed, **arguments,
        )  # fmt: skip
        if not held_out:
            return training, None
        validation = TrainingWindows(
            clips.select(lambda name: name in held_out),
            num_windows=self.config.evaluation_windows,
            seed=self.config.seed + 1,
            **arguments,
        )
        return training, validation

    def _loader(self) -> DataLoader:
        """Batches from the next step on: resuming is nothing but starting the stream later."""
        optim, workers = self.config.optim, self.config.data.num_workers
        remaining = Subset(self.training_windows, range(self.step * optim.batch_size, optim.steps * optim.batch_size))
        loader = DataLoader(
            remaining,
            batch_size=optim.batch_size,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_one_thread,
        )
        return self.accelerator.prepare(loader)

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
            "model": self.denoiser.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }
        torch.save(state, partial / "state.pt")
        (partial / "progress.json").write_text(json.dumps({"step": self.step, "seed": self.config.seed}))
        (partial / "recipe.json").write_text(self.config.model_dump_json(indent=2))
        self.ema.store(self.denoiser.parameters())
        self.ema.copy_to(self.denoiser.parameters())
        denoiser = copy.deepcopy(self.denoiser).to(getattr(torch, self.config.pipeline.dtype))
        self._pipeline(denoiser).save_pretrained(partial / "pipeline")
        self.ema.restore(self.denoiser.parameters())
        partial.rename(final)
        for old in self._checkpoints()[: -self.config.keep_checkpoints]:
            self._discard(old)

    def _pipeline(self, denoiser: Any) -> D3DPPipeline:
        try:
            return D3DPPipeline(denoiser=denoiser, scheduler=self.scheduler, **self.config.pipeline.arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"pipeline.arguments: {error}") from None

    def _discard(self, checkpoint: Path) -> None:
        """Delete a checkpoint; a kill in between leaves no half of one under its name."""
        doomed = checkpoint.with_name(f".partial-{checkpoint.name}")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "state.pt", map_location=self.accelerator.device, weights_only=True)
        self.denoiser.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step = json.loads((checkpoint / "progress.json").read_text())["step"]
        if self.step > self.config.optim.steps:
            raise ValueError(f"optim.steps: {self.config.optim.steps}, but {checkpoint} has gone through {self.step} steps already")


def _copy_weights(source: Any, target: Any) -> None:
    """Start the denoiser `target` from the weights of `source`; ValueError unless they fit."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        kinds = [{"name": type(model).__name__, **model.config} for model in (source, target)]
        differing = "; ".join(f"{k} is {kinds[0].get(k)!r} there, {v!r} in the recipe" for k, v in kinds[1].items() if kinds[0].get(k) != v)
        raise ValueError(f"initialise_from: the weights do not fit the recipe's denoiser: {differing}") from None


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
