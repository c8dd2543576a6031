"""What the commands share: the application, common options, loading models."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = "d3dp-mocap17"

app = typer.Typer(
    name="probpose",
    help="Probabilistic 3D human pose: 2D keypoints in, K sampled 3D motions, one pose and its uncertainty out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Flip(str, Enum):
    """Mirror averaging on the command line."""

    every_step = "every_step"
    last_step = "last_step"
    alternate = "alternate"
    lifter = "lifter"
    off = "off"

    @property
    def argument(self) -> str | bool:
        """What a pipeline's call takes for it."""
        return False if self is Flip.off else self.value


class Start(str, Enum):
    """Where DiffPose's hypotheses begin."""

    mixture = "mixture"
    noisy = "noisy"
    released = "released"
    prior = "prior"


Model = Annotated[str, typer.Option(help="Bundled name, folder or Hub id of a pipeline.")]
JointSet = Annotated[str | None, typer.Option("--skeleton", help="Joint set of the keypoints, e.g. coco_17, if the file does not tell.")]
Conversion = Annotated[str | None, typer.Option(help="COCO to H36M formula: simple, demo or gast.")]
ImageSize = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, if the file does not tell.")]
Focal = Annotated[float | None, typer.Option(help="Focal length in pixels, if known. Default: a 55 degree field of view.")]
FrameRate = Annotated[float | None, typer.Option("--fps", help="Frame rate of the video. Default: the file's, or 30.")]
Hypotheses = Annotated[int | None, typer.Option("--num-hypotheses", "-k", help="Samples per motion. Default: the model's.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Sampling steps. Default: the model's.")]
FlipOption = Annotated[
    Flip | None,
    typer.Option(help="Use the mirrored view, too; every_step, last_step: D3DP only, lifter: DiffPose only. Default: the model's."),
]
Share = Annotated[bool | None, typer.Option("--share-first-step/--own-first-step", help="D3DP: one first step for all hypotheses.")]
StartOption = Annotated[Start | None, typer.Option(help="DiffPose: where hypotheses begin. Default: the model's.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(help="Most windows x hypotheses in one network call; bounds the memory.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]


def epilog(*examples: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {example}" for example in examples)


def print_rows(rows: dict[str, Any]) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        typer.echo(f"{key.ljust(width)}  {value}")


def resolve_model(model: str) -> str:
    """A bundled model's folder for its name; everything else, and a folder of that name, as it is."""
    from probpose.hub import bundled_model

    return model if Path(model).exists() else str(bundled_model(model) or model)


def load_model(model: str, device: str, kind: Any = None) -> Any:
    """The pipeline in float32, of the class that it names, or of class `kind`."""
    from diffusers.utils.logging import disable_progress_bar

    from probpose import ProbPosePipeline
    from probpose.devices import choose_device

    disable_progress_bar()  # loading takes no time worth a bar
    return (kind or ProbPosePipeline).from_pretrained(model).to(choose_device(device))


_OPTIONS = {
    "num_hypotheses": "--num-hypotheses",
    "num_inference_steps": "--steps",
    "start": "--start",
    "flip": "--flip",
    "share_first_step": "--share-first-step",
}
"""Sampler settings, and the options that give them."""


def sampler_settings(
    num_hypotheses: int | None, steps: int | None, start: Start | None, flip: Flip | None, share_first_step: bool | None
) -> dict[str, Any]:
    """Sampler settings that were given; the rest is the model's."""
    start, flip = None if start is None else start.value, None if flip is None else flip.argument
    given = zip(_OPTIONS, (num_hypotheses, steps, start, flip, share_first_step), strict=True)
    return {key: value for key, value in given if value is not None}


def check_sampler(pipe: Any, settings: dict[str, Any]) -> None:
    """Refuse sampler settings that this pipeline does not have, before any work; other settings are not looked at.

    Raises:
        ValueError: names the option, the pipeline and what is allowed.
    """
    settings = {key: value for key, value in settings.items() if key in _OPTIONS}
    name, known = type(pipe).__name__, inspect.signature(pipe.settings).parameters
    if foreign := [_OPTIONS[key] for key in settings if key not in known]:
        allowed = ", ".join(option for key, option in _OPTIONS.items() if key in known)
        raise ValueError(f"{', '.join(foreign)}: not for a {name}, whose sampler has {allowed}")
    if "flip" in settings:
        modes = {mode.argument: mode.value for mode in Flip if _takes(pipe, flip=mode.argument)}
        if settings["flip"] not in modes:
            raise ValueError(f"--flip of a {name} must be one of {', '.join(modes.values())}, got {settings['flip']}")
    pipe.scheduler.set_timesteps(pipe.settings(**settings).num_inference_steps)


def check_call(pipe: Any, settings: dict[str, Any], focal: float | None) -> None:
    """Refuse before any work what the pipeline's call would refuse later: `check_sampler`, and the other options of sampling.

    Raises:
        ValueError: says which option, and what is allowed.
    """
    from probpose.geometry import Camera

    if focal is not None:
        Camera((focal, focal), (0.0, 0.0))
    check_sampler(pipe, settings)
    pipe.choose_aggregator(settings.get("aggregation", "default"))
    pipe.check_calibrated(settings.get("calibrated"))


def _takes(pipe: Any, **settings: Any) -> bool:
    try:
        pipe.settings(**settings)
    except ValueError:
        return False
    return True


def parse_size(text: str | None) -> tuple[int, int] | None:
    from probpose.geometry import parse_image_size

    return None if text is None else parse_image_size(text)


def pinhole(focal: float, size: tuple[int, int]) -> Any:
    """A camera of which the focal length and the image size are known."""
    from probpose.geometry import Camera

    return Camera((focal, focal), (size[0] / 2, size[1] / 2), image_size=size)


def check_size(track: Any, path: Path) -> None:
    if track.image_size is None:
        raise ValueError(f"{path} does not tell the image size: pass --image-size WIDTHxHEIGHT")


def camera_of(track: Any, focal: float | None) -> Any:
    """The camera that --focal describes, or None."""
    return None if focal is None else pinhole(focal, track.image_size)


def own_device(device: str, local_index: int) -> str:
    """The device of one of several processes: each its own GPU."""
    import torch

    if device == "auto":
        forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        device = "cuda" if torch.cuda.is_available() and not forced else "cpu"
    return f"cuda:{local_index % max(1, torch.cuda.device_count())}" if device == "cuda" else device


def fingerprint(pipe: Any) -> str:
    """A hash of the pipeline's settings and weights: a run must not be continued with another model of the same name."""
    import torch

    digest = hashlib.sha256()
    for name, part in [("", pipe), *sorted(pipe.components.items())]:
        config = {key: value for key, value in (getattr(part, "config", None) or {}).items() if not key.startswith("_")}
        digest.update(f"{name} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(part, torch.nn.Module):
            for key, value in part.state_dict().items():
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
