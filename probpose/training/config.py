"""Training recipes: one YAML file each, validated before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator

from probpose.data.augmentation import BodyVariation, CameraVariation, DetectorNoise

RecipeT = TypeVar("RecipeT", bound="_Section")

_VARIATIONS = {"body": BodyVariation, "camera": CameraVariation, "detector": DetectorNoise}

# What a run may change when it is resumed: none of it alters what a step does (but for the end of the learning rate's decay).
_FREE = (
    "output_dir", "initialise_from", "dtype", "attention_backend", "checkpoint_every", "keep_checkpoints", "evaluate_every",
    "evaluation_windows", "log_every", "optim.steps", "data.num_workers", "scheduler.config.eta", "scheduler.config.noise_scale",
)  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ComponentConfig(_Section):
    """A denoiser, scheduler or aggregator: public class name and the arguments of its constructor."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)


class DataConfig(_Section):
    """Motions and how they are turned into windows (see `probpose.data.TrainingWindows`)."""

    paths: list[str] = Field(min_length=1)
    split: str | None = "train"
    include: list[str] | None = None
    validation_share: float = Field(0.03, ge=0, lt=1, description="share of the clips kept out for validation, chosen by name")
    source_weights: dict[str, PositiveFloat] | None = None
    num_frames: PositiveInt | None = Field(None, description="window length; default: the denoiser's")
    body: dict[str, Any] | None = Field(default_factory=dict, description="null: every body as captured")
    camera: dict[str, Any] = Field(default_factory=dict)
    detector: dict[str, Any] | None = Field(default_factory=dict, description="null: true 2D")
    num_workers: int = Field(1, ge=0)

    @field_validator(*_VARIATIONS)
    @classmethod
    def _fits_the_variation(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        kind = _VARIATIONS[info.field_name]
        allowed = [field.name for field in fields(kind)]
        if unknown := [name for name in value or () if name not in allowed]:
            raise ValueError(f"{kind.__name__} has no {', '.join(map(str, unknown))}; allowed are {', '.join(allowed)}")
        kind(**(value or {}))  # checks the values
        return value


class OptimConfig(_Section):
    """AdamW with linear warm-up and cosine decay; exponential moving average of the weights."""

    steps: PositiveInt
    batch_size: PositiveInt = Field(64, description="windows per step; several processes share them equally")
    learning_rate: PositiveFloat = 1.5e-3
    final_learning_rate: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(300, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: float = Field(0.9995, ge=0, lt=1)


class DenoiserOptimConfig(OptimConfig):
    """Denoising of windows."""

    velocity_weight: float = Field(0.0, ge=0, description="weight of the frame-to-frame velocity error beside MPJPE")
    short_window_share: float = Field(0.0, ge=0, le=1, description="share of steps on windows cut to a random length")
    first_step_share: float = Field(0.0, ge=0, le=1, description="share of examples at the noisiest timestep; the rest is uniform")


class LifterOptimConfig(OptimConfig):
    """Lifting of windows."""

    velocity_weight: float = Field(0.0, ge=0, description="weight of the frame-to-frame velocity error beside MPJPE")
    short_window_share: float = Field(0.0, ge=0, le=1, description="share of steps on windows cut to a random length")


class DiffPoseOptimConfig(OptimConfig):
    """Denoising of single frames of windows."""

    num_frames: PositiveInt = Field(8, description="frames of a window, drawn at random, that one step looks at")
    loss: Literal["distance", "squared_error"] = Field(
        "distance", description="squared_error, summed over joints and channels, is published"
    )
    uv_weight: float = Field(0.1, ge=0, description="weight of the 2D channels in loss `distance`")
    start_share: float = Field(0.0, ge=0, le=1, description="share of examples at the start timestep; the rest is uniform")


class PriorOptimConfig(OptimConfig):
    """Denoising of motions that nobody looks at."""

    loss: Literal["weighted", "squared_error"] = Field(
        "weighted", description="weighted: every noise level counts about alike; squared_error is published, and is all about the noisiest"
    )
    trajectory_weight: float = Field(1.0, ge=0, description="weight of the root's trajectory beside that of a joint")
    short_window_share: float = Field(0.0, ge=0, le=1, description="share of steps on windows cut to a random length; 1 is published")
    short_window_lengths: Literal["even", "logarithmic"] = Field(
        "even", description="how those lengths are distributed; even is published, and hardly ever meets single frames"
    )


class AggregatorOptimConfig(OptimConfig):
    """Aggregation of hypotheses that were sampled before."""

    num_frames: PositiveInt = Field(8, description="consecutive frames of a window that one step looks at")
    fewest_hypotheses: PositiveInt = Field(4, description="a step sees between so many hypotheses and all that were sampled")
    uncertainty_weight: PositiveFloat = Field(1e-3, description="weight of the uncertainty's likelihood beside MPJPE in metres")


class SamplesConfig(_Section):
    """The hypotheses that an aggregator is trained on: drawn once, since the pipeline is frozen."""

    windows: PositiveInt = 4096
    num_hypotheses: PositiveInt = 20
    max_batch_size: PositiveInt = 640


class PipelineConfig(_Section):
    """How the trained pipelines are saved."""

    arguments: dict[str, Any] = Field(default_factory=dict, description="of the pipeline's constructor: the defaults of its calls")
    dtype: Literal["float32", "float16"] = Field("float32", description="precision of the saved weights")


class Recipe(_Section):
    """What all recipes share.

    Raises:
        ValueError: from `load`, with every wrong field named.
    """

    output_dir: str
    data: DataConfig
    optim: OptimConfig
    seed: int = Field(0, ge=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    attention_backend: str | None = Field(None, description="of the network in training; `_native_math` is fastest for few tokens on a CPU")
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 2
    evaluate_every: PositiveInt = 2000
    evaluation_windows: PositiveInt = 512
    log_every: PositiveInt = 20

    @classmethod
    def load(cls: type[RecipeT], path: str | Path) -> RecipeT:
        """Read and validate a YAML recipe of this kind; relative paths inside it are relative to the working directory."""
        return _validated(cls, _read(Path(path)), Path(path))

    def check_continues(self, earlier: Recipe) -> None:
        """Check that a run by the recipe `earlier` can be resumed with this one. Archives may have moved, but not been renamed.

        Raises:
            ValueError: naming every field that differs and may not.
        """
        then, now = dict(_flatten(earlier._spelt_out())), dict(_flatten(self._spelt_out()))
        binding = [name for name in {**then, **now} if name not in _FREE and not name.startswith("pipeline.")]
        changed = [name for name in binding if then.get(name) != now.get(name)]
        if changed:
            listing = "; ".join(f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in changed)
            raise ValueError(f"the checkpoint was trained by another recipe: {listing}. Restore it, or choose another output_dir")

    def _spelt_out(self) -> dict[str, Any]:
        """The recipe with the default arguments of the augmentations written down."""
        content = self.model_dump()
        for name, kind in _VARIATIONS.items():
            if (arguments := content["data"][name]) is not None:
                content["data"][name] = asdict(kind(**arguments))
        return content


class _DataOnly(_Section):
    data: DataConfig


class TrainingConfig(Recipe):
    """Recipe of a denoiser."""

    denoiser: ComponentConfig
    scheduler: ComponentConfig = ComponentConfig(name="D3DPScheduler")
    optim: DenoiserOptimConfig
    pipeline: PipelineConfig = PipelineConfig()
    initialise_from: str | None = Field(None, description="pipeline folder whose denoiser weights to start from")


class LifterConfig(Recipe):
    """Recipe of a lifter."""

    lifter: ComponentConfig
    optim: LifterOptimConfig
    dtype: Literal["float32", "float16"] = Field("float32", description="precision of the saved weights")
    initialise_from: str | None = Field(None, description="folder of a lifter, or of a pipeline whose denoiser becomes one")


class PriorConfig(Recipe):
    """Recipe of a motion prior: 3D motions alone."""

    prior: ComponentConfig = ComponentConfig(name="MotionPriorModel")
    scheduler: ComponentConfig = ComponentConfig(name="EnergyGuidedDDIMScheduler")
    optim: PriorOptimConfig
    pipeline: PipelineConfig = PipelineConfig()
    initialise_from: str | None = Field(None, description="pipeline folder whose denoiser weights to start from")


class DiffPoseConfig(Recipe):
    """Recipe of DiffPose's denoiser on top of a frozen lifter."""

    lifter: str = Field(description="folder of the trained lifter, or of a pipeline that has one")
    denoiser: ComponentConfig = ComponentConfig(name="GraFormerDenoiser")
    scheduler: ComponentConfig = ComponentConfig(name="GMMScheduler")
    optim: DiffPoseOptimConfig
    pipeline: PipelineConfig = PipelineConfig()
    initialise_from: str | None = Field(None, description="pipeline folder whose denoiser weights to start from")


class AggregatorConfig(Recipe):
    """Recipe of a learned aggregator on top of a frozen pipeline."""

    pipeline: str = Field(description="folder or Hub id of the pipeline whose hypotheses are aggregated")
    aggregator: ComponentConfig = ComponentConfig(name="AttentionAggregator")
    samples: SamplesConfig = SamplesConfig()
    optim: AggregatorOptimConfig
    initialise_from: str | None = Field(None, description="pipeline folder whose aggregator weights to start from")


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe of any kind: what is trained tells which.

    A `prior` trains a motion prior; a `lifter` section a lifter, a lifter's folder DiffPose's denoiser on top of it; a `pipeline` to build
    on an aggregator; anything else is a denoiser.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or wrong fields, each named.
    """
    content = _read(Path(path))
    if "prior" in content:
        kind = PriorConfig
    elif isinstance(content.get("lifter"), dict):
        kind = LifterConfig
    elif "lifter" in content:
        kind = DiffPoseConfig
    elif {"aggregator", "samples"} & content.keys() or isinstance(content.get("pipeline"), str):
        kind = AggregatorConfig
    else:
        kind = TrainingConfig
    return _validated(kind, content, Path(path))


def load_data_section(path: str | Path) -> DataConfig:
    """The `data` section of a recipe, or of a file that holds nothing else.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, no such section, or wrong fields, each named.
    """
    content = _read(Path(path))
    return _validated(_DataOnly, {"data": content["data"]} if "data" in content else {}, Path(path)).data


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no training recipe at {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping with at least output_dir, denoiser, data and optim")
    return content


def _validated(kind: type[RecipeT], content: dict[str, Any], path: Path) -> RecipeT:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(_explain(kind, problem) for problem in error.errors())}") from None


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        elif name == "data.paths":
            yield name, [Path(path).name for path in value]
        else:
            yield name, tuple(value) if isinstance(value, list) else value


def _explain(kind: type[_Section], error: Any) -> str:
    """One problem of pydantic's list in a line that begins with the field."""
    where, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section: Any = kind
        for name in error["loc"][:-1]:
            section = section.model_fields[name].annotation
        message = f"unknown field; allowed are {', '.join(section.model_fields)}"
    return f"{where}: {message}"
