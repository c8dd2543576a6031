"""The training recipe: one YAML file, validated before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ComponentConfig(_Section):
    """A denoiser or scheduler: public class name and the arguments of its constructor."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)


class DataConfig(_Section):
    """Motions and how they are turned into windows (see `probpose.data.TrainingWindows`)."""

    paths: list[str]
    split: str | None = "train"
    include: list[str] | None = None
    validation_share: float = Field(0.03, ge=0, lt=1, description="share of the clips kept out for validation, chosen by name")
    source_weights: dict[str, PositiveFloat] | None = None
    num_frames: PositiveInt | None = Field(None, description="window length; default: the denoiser's")
    body: dict[str, Any] | None = Field(default_factory=dict, description="null: every body as captured")
    camera: dict[str, Any] = Field(default_factory=dict)
    detector: dict[str, Any] | None = Field(default_factory=dict, description="null: true 2D")
    num_workers: int = Field(1, ge=0)


class OptimConfig(_Section):
    """AdamW with linear warm-up and cosine decay; exponential moving average of the weights."""

    steps: PositiveInt
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1.5e-3
    final_learning_rate: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(300, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: float = Field(0.9995, ge=0, lt=1)
    velocity_weight: float = Field(0.0, ge=0, description="weight of the frame-to-frame velocity error beside MPJPE")
    short_window_share: float = Field(0.0, ge=0, le=1, description="share of steps on windows cut to a random length")
    first_step_share: float = Field(0.0, ge=0, le=1, description="share of examples at the noisiest timestep; the rest is uniform")


class TrainingConfig(_Section):
    """A whole recipe.

    Raises:
        ValueError: from `load`, with every wrong field named.
    """

    output_dir: str
    denoiser: ComponentConfig
    scheduler: ComponentConfig = ComponentConfig(name="D3DPScheduler")
    data: DataConfig
    optim: OptimConfig
    initialise_from: str | None = Field(None, description="pipeline folder whose denoiser weights to start from")
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 2
    evaluate_every: PositiveInt = 2000
    evaluation_windows: PositiveInt = 512
    log_every: PositiveInt = 20

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read and validate a YAML recipe; relative paths inside it are relative to the working directory."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no training recipe at {path}")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a mapping with at least output_dir, denoiser, data and optim")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{path}: {problems}") from None
