"""Training a lifter: 2D in, 3D out, no diffusion. What DiffPose refines, and whose features tell it what was observed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

import probpose.models
from probpose.pipelines import ProbPosePipeline

from .config import LifterConfig
from .loop import build_component
from .trainer import copy_weights
from .windows import WindowLoop, rendered


class LifterTrainer(WindowLoop):
    """Trains a lifter by a recipe; see `TrainingLoop` for arguments and errors. `train` returns the folder of the lifter."""

    config: LifterConfig

    def build(self) -> Any:
        lifter = build_component(probpose.models, self.config.lifter, "lifter", takes="output_features")
        if lifter.config.get("in_channels", 2) != 2:
            raise ValueError(f"lifter.config.in_channels: a lifter takes 2D positions alone, 2, got {lifter.config.in_channels}")
        window = lifter.config.get("num_frames")
        self.set_windows(lifter.config, "lifter", self.config.lifter.name, window, self.config.optim.short_window_share)
        return lifter

    def initialise(self, network: Any) -> None:
        if self.config.initialise_from is not None:
            copy_weights(load_lifter(self.config.initialise_from), network)

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
        optim = self.config.optim
        batch = self.shortened(batch, optim.short_window_share, generator)
        pose = batch["pose"]
        with self.accelerator.autocast():
            lifted = self.model(batch["keypoints_2d"], confidence=batch["confidence"]).sample.float()
        lifted = lifted - lifted[..., :1, :]
        loss = mpjpe = (lifted - pose).norm(dim=-1).mean()
        if optim.velocity_weight and pose.shape[1] > 1:
            loss = loss + optim.velocity_weight * (lifted.diff(dim=1) - pose.diff(dim=1)).norm(dim=-1).mean()
        return loss, mpjpe.item()

    def validate(self) -> dict[str, float]:
        """MPJPE."""
        if self.validation_windows is None:
            return {}
        error, count = 0.0, self.config.evaluation_windows
        for first in range(0, count, 128):
            rows = list(range(first, min(first + 128, count)))
            batch = {k: v.to(self.accelerator.device) for k, v in rendered(self.validation_windows, rows).items()}
            lifted = self.network(batch["keypoints_2d"], confidence=batch["confidence"]).sample.float()
            lifted = lifted - lifted[..., :1, :]
            error += len(rows) / count * (lifted - batch["pose"]).norm(dim=-1).mean().item()
        return {"mpjpe_mm": 1000 * error}

    def save_pipeline(self, folder: Path) -> None:
        copy.deepcopy(self.network).to(getattr(torch, self.config.dtype)).save_pretrained(folder)


def load_lifter(folder: str | Path) -> Any:
    """A lifter in float32, from its own folder or from a pipeline's.

    Of a pipeline without one, the denoiser at its noisiest timestep is the lifter.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder with neither, a damaged one, or a pipeline whose denoiser cannot lift.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        pipe = ProbPosePipeline.from_pretrained(folder)
        if "lifter" not in pipe.components:
            if not (hasattr(pipe.denoiser, "to_lifter") and pipe.denoiser.config.get("conditional", True)):
                raise ValueError(f"{folder} has no lifter, and its {type(pipe.denoiser).__name__} cannot become one")
            return pipe.denoiser.to_lifter(len(pipe.scheduler) - 1)
        lifter = pipe.lifter
    else:
        lifter = _load_network(folder)
    # Where it was loaded from is no part of it, and would be saved along.
    lifter._internal_dict = FrozenDict({name: value for name, value in lifter.config.items() if name != "_name_or_path"})
    return lifter


def _load_network(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no lifter at {folder}: it holds neither config.json nor model_index.json")
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is no config of a network: {error!r}") from None
    if name not in probpose.models.__all__ or not hasattr(getattr(probpose.models, name), "context_shape"):
        raise ValueError(f"{folder} holds a {name!r}, which is no lifter")
    kind = getattr(probpose.models, name)
    lifter, found = kind.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):  # diffusers only warns, and leaves them random
        raise ValueError(f"{folder} is damaged: it lacks the weights {', '.join(missing)}")
    if lifter.config.get("in_channels", 2) != 2:
        raise ValueError(f"{folder} holds a {name} denoiser, which is no lifter; a pipeline that it is part of can be named instead")
    return lifter
