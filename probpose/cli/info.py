"""`probpose info`: what a model, a keypoint file, a video or this installation is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import app, epilog, load_model, print_rows, resolve_model

_EXTRAS = {
    "video": ("av", "cv2", "trackers", "transformers"),
    "demo": ("gradio",),
    "rerun": ("rerun",),
    "train": ("accelerate", "pydantic", "yaml"),
    "datasets": ("h5py",),
    "parquet": ("pyarrow",),
    "mixture": ("sklearn",),
    "adapt": ("peft",),
    "xformers": ("xformers",),
}


@app.command(epilog=epilog("probpose info", "probpose info d3dp-mocap17", "probpose info keypoints.json", "probpose info clip.mp4"))
def info(
    subject: Annotated[
        str | None, typer.Argument(help="A model, a video, or a keypoint file or folder. Default: the installation.")
    ] = None,
) -> None:
    """Describe a model, a keypoint file, a video or this installation."""
    from probpose.video import is_video

    if subject is None:
        _describe_installation()
    elif is_video(subject):
        _describe_video(Path(subject))
    elif (Path(resolve_model(subject)) / "model_index.json").is_file() or not Path(subject).exists():
        _describe_model(subject)
    else:
        _describe_keypoints(Path(subject))


def _describe_installation() -> None:
    import platform
    from importlib import metadata
    from importlib.util import find_spec

    import torch

    from probpose import __version__
    from probpose.data import list_formats
    from probpose.hub import list_bundled_models
    from probpose.skeletons import list_skeletons

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "probpose": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "diffusers")},
        "accelerator": accelerator,
        "extras": ", ".join(name for name, parts in _EXTRAS.items() if all(map(find_spec, parts))) or "none",
        "bundled models": ", ".join(list_bundled_models()) or "none",
        "skeletons": ", ".join(list_skeletons()),
    }
    print_rows(rows)
    typer.echo("keypoint formats")
    print_rows({f"  {name}": text for name, text in list_formats().items()})


def _describe_model(model: str) -> None:
    pipe = load_model(model, "cpu")
    defaults = {key.removeprefix("default_"): value for key, value in pipe.config.items() if key.startswith("default_")}
    config = pipe.denoiser.config
    rows = {
        "pipeline": type(pipe).__name__,
        "denoiser": _describe_part(pipe.denoiser),
        **({"lifter": _describe_part(pipe.lifter)} if "lifter" in pipe.components else {}),
        "scheduler": type(pipe.scheduler).__name__,
        "aggregator": _describe_part(getattr(pipe, "aggregator", None)),
        "calibrator": _describe_part(getattr(pipe, "calibrator", None)),
        "skeleton": f"{pipe.input_skeleton} in, {pipe.skeleton} out",
        "window": ("every frame for itself" if pipe.num_frames is None else f"{pipe.num_frames} frames")
        + (f" at {config.fps:g} fps" if config.get("fps") else ""),
        "keypoints seen by": "image width" if pipe.canonical_camera is None else f"canonical camera {list(pipe.canonical_camera)}",
        "defaults": ", ".join(f"{key}={value}" for key, value in defaults.items()),
    }
    print_rows(rows)


def _describe_part(part: Any) -> str:
    if part is None:
        return "none"
    if "coverage" in part.config:
        config = part.config
        return f"{type(part).__name__}, mode {config.mode}; radius for {config.coverage:.0%}, aggregation {config.aggregation!r}"
    return f"{type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters"


def _describe_video(path: Path) -> None:
    from probpose.video import Video

    video = Video.open(path)
    width, height = video.size
    seconds = video.num_frames / video.fps
    print_rows({"video": f"{width}x{height}, {video.num_frames} frames at {video.fps:.6g} per second ({seconds:.1f} s)"})
    for note in video.notes:
        typer.echo(f"  note: {note}")


def _describe_keypoints(path: Path) -> None:
    from probpose.data import detect_format, read_keypoints

    kind = detect_format(path)
    tracks = read_keypoints(path, format=kind)
    print_rows({"format": kind, "people": len(tracks)})
    for track in tracks:
        seen = float((track.confidence > 0).mean())
        size = "unknown size" if track.image_size is None else "{}x{}".format(*track.image_size)
        rate = "unknown fps" if track.fps is None else f"{track.fps:g} fps"
        typer.echo(
            f"  person {track.track_id}: {track.skeleton}, frames {track.frame[0]}..{track.frame[-1]} ({len(track)}), {size}, {rate}, "
            f"{seen:.0%} of the joints observed"
        )
        for note in track.source.get("notes", []):
            typer.echo(f"    note: {note}")
