"""The training loop: denoising with clean-pose prediction, as in D3DP (arXiv 2303.11579, §3), on an endless stream of rendered windows.

Everything random at step n is a function of (seed, n): a run that is killed and resumed sees the same next batch, timesteps and noise
as one that was not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
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
from probpose.pipelines import D3DPPipeline, SamplerSettings

from .config import ComponentConfig, TrainingConfig

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def build_component(module, config: ComponentConfig):
    """Instantiate a public class of `probpose.models` or `probpose.schedulers` by name; ValueError lists the known names."""
    if config.name not in module.__all__:
        raise ValueError(f"{module.__name__} has no {config.name!r}; known: {sorted(module.__all__)}")
    try:
        return getattr(module, config.name)(**config.config)
    except TypeError as error:
        raise ValueError(f"{config.name}: {error}") from None


class Trainer:
    """Trains a denoiser by a recipe.

    Args:
        config: the recipe.
        resume: continue from the newest checkpoint of `config.output_dir`, if there is one.
        overwrite: start anew in an output folder that already holds checkpoints.

    Raises:
        FileExistsError: the output folder holds checkpoints and neither `resume` nor `overwrite` was asked for.
        ValueError: unknown component names or arguments.
    """

    def __init__(self, config: TrainingConfig, resume: bool = False, overwrite: bool = False):
        self.config = config
        self.output_dir = Path(config.output_dir)
        if self._checkpoints() and not (resume or overwrite):
            raise FileExistsError(f"{self.output_dir} already holds checkpoints: pass --resume to continue or --overwrite to start anew")
        if overwrite and not resume:
            for path in self._checkpoints():
                shutil.rmtree(path)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        set_seed(config.seed)
        denoiser = build_component(probpose.models, config.denoiser)
        self.scheduler = build_component(probpose.schedulers, config.scheduler)
        if config.initialise_from is not None:
            denoiser.load_state_dict(D3DPPipeline.from_pretrained(config.initialise_from).denoiser.state_dict())
        optim = config.optim
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(denoiser, optimizer)
        self.denoiser = self.accelerator.unwrap_model(self.model)
        self.ema = EMAModel(self.denoiser.parameters(), decay=optim.ema_decay, use_ema_warmup=True, power=3 / 4)
        self.ema.to(self.accelerator.device)
        self.step = 0
        if resume and self._checkpoints():
            self._load(self._checkpoints()[-1])
        self.training_windows, self.validation_windows = self._datasets()

    def train(self) -> Path:
        """Run to the last step; returns the folder of the final pipeline (EMA weights)."""
        config, accelerator = self.config, self.accelerator
        loader = self._loader()
        writer = SummaryWriter(self.output_dir / "logs", purge_step=self.step) if accelerator.is_main_process else None
        bar = tqdm(total=config.optim.steps, initial=self.step, unit="step", disable=not accelerator.is_local_main_process)
        self.model.train()
        recent: list[float] = []
        started, seen = time.perf_counter(), 0
        for batch in loader:
            loss, grad_norm = self._optimise(batch)
            self.step += 1
            seen += len(batch["pose"]) * accelerator.num_processes
            bar.update()
            recent.append(loss)
            if self.step % config.log_every == 0 and writer is not None:
                mean = sum(recent) / len(recent)
                speed = seen / (time.perf_counter() - started)
                bar.set_postfix(loss_mm=f"{1000 * mean:.1f}", windows_per_s=f"{speed:.0f}")
                writer.add_scalar("train/loss_mm", 1000 * mean, self.step)
                writer.add_scalar("train/grad_norm", grad_norm, self.step)
                writer.add_scalar("train/learning_rate", self._learning_rate(self.step), self.step)
                writer.add_scalar("train/windows_per_second", speed, self.step)
                recent, started, seen = [], time.perf_counter(), 0
            last = self.step == config.optim.steps
            if self.step % config.evaluate_every == 0 or last:
                for name, value in self.evaluate().items():
                    if writer is not None:
                        writer.add_scalar(f"validation/{name}", value, self.step)
                        bar.write(f"step {self.step}: validation {name} {value:.2f}")
            if self.step % config.checkpoint_every == 0 or last:
                self._save()
        bar.close()
        if writer is not None:
            writer.close()
        return self._checkpoints()[-1] / "pipeline"

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
        optim = self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        generator = torch.Generator().manual_seed(_mix(self.config.seed, self.step, self.accelerator.process_index))
        if torch.rand((), generator=generator) < optim.short_window_share:
            length = int(torch.randint(1, batch["pose"].shape[1] + 1, (), generator=generator))
            batch = {key: value[:, :length] for key, value in batch.items()}
        pose, count = batch["pose"], len(batch["pose"])
        noise = torch.randn(pose.shape, generator=generator).to(pose)
        timestep = torch.randint(len(self.scheduler), (count,), generator=generator)
        noisiest = torch.rand(count, generator=generator) < optim.first_step_share
        timestep = torch.where(noisiest, len(self.scheduler) - 1, timestep).to(pose.device)
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
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), optim.max_grad_norm)
        self.optimizer.step()
        self.ema.step(self.denoiser.parameters())
        return mpjpe.item(), float(grad_norm)

    def _learning_rate(self, step: int) -> float:
        optim = self.config.optim
        if step < optim.warmup_steps:
            return optim.learning_rate * (step + 1) / optim.warmup_steps
        progress = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
        return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * cosine

    def _datasets(self) -> tuple[TrainingWindows, TrainingWindows | None]:
        data = self.config.data
        clips = MocapClips(data.paths, split=data.split, include=data.include)
        held_out = {name for name in clips.names if zlib.crc32(name.encode()) / 2**32 < data.validation_share}
        arguments = {
            "num_frames": data.num_frames or self.denoiser.config.num_frames,
            "canonical_camera": tuple(self.denoiser.config.canonical_camera),
            "body": None if data.body is None else BodyVariation(**data.body),
            "camera": CameraVariation(**data.camera),
            "detector": None if data.detector is None else DetectorNoise(**data.detector),
        }
        training = TrainingWindows(
            clips.select(lambda name: name not in held_out), num_windows=self.config.optim.steps * self.config.optim.batch_size,
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
        shutil.rmtree(partial, ignore_errors=True)
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
        D3DPPipeline(denoiser=self.denoiser, scheduler=self.scheduler).save_pretrained(partial / "pipeline")
        self.ema.restore(self.denoiser.parameters())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in self._checkpoints()[: -self.config.keep_checkpoints]:
            shutil.rmtree(old)

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "state.pt", map_location=self.accelerator.device, weights_only=True)
        self.denoiser.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step = json.loads((checkpoint / "progress.json").read_text())["step"]


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
