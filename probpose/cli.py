"""The command line: `probpose sample | evaluate | train | convert | info`.

Heavy imports happen inside the commands, so that `probpose --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
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
    off = "off"


class Keypoints(str, Enum):
    """Which 2D of a benchmark is used."""

    detected = "detected"
    true = "true"


class KnownCamera(str, Enum):
    """What a benchmark tells the pipeline about its camera."""

    known = "known"
    image_size = "image-size"


Model = Annotated[str, typer.Option(help="Bundled name, folder or Hub id of a pipeline.")]
Hypotheses = Annotated[int | None, typer.Option("--num-hypotheses", "-k", help="Samples per motion. Default: the model's.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Sampling steps. Default: the model's.")]
FlipOption = Annotated[Flip | None, typer.Option(help="Average with the mirrored prediction. Default: the model's.")]
Share = Annotated[bool | None, typer.Option("--share-first-step/--own-first-step", help="One first step for all hypotheses.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(help="Most windows x hypotheses in one network call; bounds the memory.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]


def _epilog(*examples: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {example}" for example in examples)


@app.command(
    epilog=_epilog(
        "probpose sample walk.npz --out out",
        "probpose sample openpose_folder/ --image-size 1920x1080 --fps 30 --out out",
        "probpose sample results.json --skeleton coco_17 --image-size 1280x720 --focal 980 -k 50 --out out",
    )
)
def sample(
    keypoints: Annotated[Path, typer.Argument(help="Keypoint file or folder: npz, npy, COCO, OpenPose, MMPose, Ultralytics, AlphaPose …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    model: Model = DEFAULT_MODEL,
    skeleton: Annotated[str | None, typer.Option(help="Joint set of the keypoints, e.g. coco_17, if the file does not tell.")] = None,
    conversion: Annotated[str | None, typer.Option(help="COCO to H36M formula: simple, demo or gast.")] = None,
    image_size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, if the file does not tell.")] = None,
    focal: Annotated[float | None, typer.Option(help="Focal length in pixels, if known. Default: a 55 degree field of view.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frame rate of the video. Default: the file's, or 30.")] = None,
    format: Annotated[str | None, typer.Option(help="Layout of the file, if it is not recognised. See probpose info.")] = None,
    num_hypotheses: Hypotheses = None,
    steps: Steps = None,
    flip: FlipOption = None,
    share_first_step: Share = None,
    aggregation: Annotated[str | None, typer.Option(help="jpma, mean, median or weighted. Default: the model's.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_batch_size: BatchSize = 256,
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Write a PNG.")] = True,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Write an interactive HTML page.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Sample 3D motions from 2D keypoints; one result per person.

    Writes NAME.npz (hypotheses, pose, uncertainty, root, …), NAME.png and NAME.html into the output folder.
    """
    import torch
    from tqdm.auto import tqdm

    from probpose.data import read_keypoints
    from probpose.geometry import Camera

    tracks = read_keypoints(keypoints, format=format, skeleton=skeleton, image_size=_size(image_size), fps=fps)
    if not tracks:
        raise ValueError(f"{keypoints} holds no person")
    sizes = {track.image_size for track in tracks}
    if None in sizes:
        raise ValueError(f"{keypoints} does not tell the image size: pass --image-size WIDTHxHEIGHT")
    name = keypoints.stem if keypoints.is_file() else keypoints.resolve().name
    names = [name if len(tracks) == 1 else f"{name}_person{track.track_id}" for track in tracks]
    suffixes = [".npz", *([".png"] if picture else []), *([".html"] if page else [])]
    taken = [p for n in names for p in (out / f"{n}{suffix}" for suffix in suffixes) if p.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; pass --overwrite to replace it")
    pipe = _load(model, device)
    settings = _settings(num_hypotheses, steps, flip, share_first_step)
    if aggregation is not None:
        settings["aggregation"] = aggregation
    out.mkdir(parents=True, exist_ok=True)
    people = tqdm(list(zip(names, tracks)), desc="people", disable=len(tracks) == 1)
    for person_name, track in people:
        pipe.set_progress_bar_config(desc=f"sampling {person_name}", leave=len(tracks) == 1)
        width, height = track.image_size
        camera = None if focal is None else Camera((focal, focal), (width / 2, height / 2), image_size=(width, height))
        result = pipe(
            track.keypoints_2d, track.confidence, image_size=(width, height), camera=camera, skeleton=track.skeleton,
            conversion=conversion, fps=track.fps or 30.0, generator=torch.Generator().manual_seed(seed),
            max_batch_size=max_batch_size, output_type="np", **settings,
        )  # fmt: skip
        _write_result(out / person_name, result, track, pipe, {"model": model, "seed": seed, **settings}, picture, page, overwrite)
        tqdm.write(_summary(person_name, result, [out / f"{person_name}{suffix}" for suffix in suffixes]))


@app.command(
    epilog=_epilog(
        "probpose evaluate d3dp-mocap17 --data mocap17_test.npz -k 10 --steps 3",
        "probpose evaluate my/model --data mocap17_test.npz --camera image-size --lens 1920x1080:1480 --json report.json",
    )
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or Hub id of a pipeline.")],
    data: Annotated[Path, typer.Option(help="Benchmark file (.npz) with 2D keypoints, 3D positions and cameras.")],
    keypoints: Annotated[Keypoints, typer.Option(help="Detector-like or true 2D.")] = Keypoints.detected,
    camera: Annotated[KnownCamera, typer.Option(help="Is the pipeline told the camera, or only the size?")] = KnownCamera.known,
    lens: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT:FOCAL: see the same motions through another camera.")] = None,
    num_hypotheses: Hypotheses = None,
    steps: Steps = None,
    flip: FlipOption = None,
    share_first_step: Share = None,
    every: Annotated[int, typer.Option(min=1, help="Use every n-th clip.")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    max_batch_size: BatchSize = 256,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here; - prints it instead of the table.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model on a benchmark file: a table of errors in millimetres, per source and motion family."""
    from probpose.evaluation import BenchmarkClips
    from probpose.evaluation import evaluate as run
    from probpose.files import replacing
    from probpose.geometry import Camera

    if json_file is not None and json_file != Path("-") and json_file.exists() and not overwrite:
        raise FileExistsError(f"{json_file} exists; pass --overwrite to replace it")
    benchmark = BenchmarkClips.load(data)
    if lens is not None:
        size, _, length = lens.partition(":")
        width, height = _size(size)
        try:
            focal = float(length)
        except ValueError:
            raise ValueError(f"--lens must be WIDTHxHEIGHT:FOCAL, e.g. 1920x1080:1480, got {lens!r}") from None
        benchmark = benchmark.through(Camera((focal, focal), (width / 2, height / 2), image_size=(width, height)))
    if every > 1:
        benchmark = benchmark.subset(every=every)
    report = run(
        _load(model, device), benchmark, keypoints=keypoints.value, camera=camera.value.replace("-", "_"), seed=seed,
        max_batch_size=max_batch_size, **_settings(num_hypotheses, steps, flip, share_first_step),
    )  # fmt: skip
    if json_file == Path("-"):
        typer.echo(report.to_json())
        return
    typer.echo(report.to_text())
    if json_file is not None:
        with replacing(json_file, overwrite) as unfinished:
            unfinished.write_text(report.to_json())


@app.command(epilog=_epilog("probpose train examples/train/tiny.yaml", "probpose train recipe.yaml --resume"))
def train(
    config: Annotated[Path, typer.Argument(help="Recipe (YAML); see examples/train.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the recipe's output_dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where checkpoints exist.")] = False,
) -> None:
    """Train a denoiser by a recipe. Ends with a pipeline folder that `probpose sample --model` takes."""
    from probpose.training import train as run

    typer.echo(f"finished: {run(config, resume=resume, overwrite=overwrite)}")


@app.command(
    epilog=_epilog(
        "probpose convert d3dp h36m_best_epoch.bin models/d3dp-h36m",
        "probpose convert d3dp in_the_wild_best_epoch.bin models/wild --set input_skeleton=coco_17",
    )
)
def convert(
    system: Annotated[str, typer.Argument(help="Published system, e.g. d3dp.")],
    checkpoint: Annotated[Path, typer.Argument(help="Original weights: .safetensors, .bin, .pt, .pth. Pickled code is never run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pipeline.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the config that the weights do not tell.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn an original research checkpoint into a pipeline folder."""
    from probpose.files import replacing
    from probpose.hub import convert_original, load_original_state_dict
    from probpose.pipelines import D3DPPipeline
    from probpose.schedulers import D3DPScheduler

    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; pass --overwrite to replace it")
    config = {}
    for setting in settings or []:
        field, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set takes FIELD=VALUE, got {setting!r}")
        try:
            config[field] = json.loads(value)
        except json.JSONDecodeError:
            config[field] = value
    denoiser = convert_original(system, load_original_state_dict(checkpoint), **config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, overwrite) as unfinished:
        D3DPPipeline(denoiser=denoiser, scheduler=D3DPScheduler()).save_pretrained(unfinished)
    typer.echo(f"{out}: {type(denoiser).__name__}, {sum(p.numel() for p in denoiser.parameters()):,} parameters")


@app.command(epilog=_epilog("probpose info", "probpose info d3dp-mocap17", "probpose info keypoints.json"))
def info(
    subject: Annotated[str | None, typer.Argument(help="A model, or a keypoint file or folder. Default: the installation.")] = None,
) -> None:
    """Describe a model, a keypoint file or this installation."""
    if subject is None:
        _describe_installation()
    elif (Path(_resolve(subject)) / "model_index.json").is_file() or not Path(subject).exists():
        _describe_model(subject)
    else:
        _describe_keypoints(Path(subject))


def _describe_installation() -> None:
    import platform
    from importlib import metadata

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
        "bundled models": ", ".join(list_bundled_models()) or "none",
        "skeletons": ", ".join(list_skeletons()),
    }
    _print_rows(rows)
    typer.echo("keypoint formats")
    _print_rows({f"  {name}": text for name, text in list_formats().items()})


def _describe_model(model: str) -> None:
    pipe = _load(model, "cpu")
    parameters = sum(p.numel() for p in pipe.denoiser.parameters())
    defaults = {key.removeprefix("default_"): value for key, value in pipe.config.items() if key.startswith("default_")}
    config = pipe.denoiser.config
    rows = {
        "pipeline": type(pipe).__name__,
        "denoiser": f"{type(pipe.denoiser).__name__}, {parameters:,} parameters",
        "scheduler": type(pipe.scheduler).__name__,
        "skeleton": f"{pipe.input_skeleton} in, {pipe.skeleton} out",
        "window": f"{config.num_frames} frames" + (f" at {config.fps:g} fps" if config.get("fps") else ""),
        "keypoints seen by": "image width"
        if config.get("canonical_camera") is None
        else f"canonical camera {list(config.canonical_camera)}",
        "defaults": ", ".join(f"{key}={value}" for key, value in defaults.items()),
    }
    _print_rows(rows)


def _describe_keypoints(path: Path) -> None:
    from probpose.data import detect_format, read_keypoints

    kind = detect_format(path)
    tracks = read_keypoints(path, format=kind)
    _print_rows({"format": kind, "people": len(tracks)})
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


def _print_rows(rows: dict[str, Any]) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        typer.echo(f"{key.ljust(width)}  {value}")


def _resolve(model: str) -> str:
    """A bundled model's folder for its name; everything else as it is."""
    from probpose.hub import bundled_model

    return str(bundled_model(model) or model)


def _load(model: str, device: str) -> Any:
    import torch
    from diffusers.utils.logging import disable_progress_bar

    from probpose import ProbPosePipeline

    disable_progress_bar()  # loading takes no time worth a bar
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device_ = torch.device(device)
        torch.empty(0, device=device_)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return ProbPosePipeline.from_pretrained(_resolve(model)).to(device_)


def _settings(num_hypotheses: int | None, steps: int | None, flip: Flip | None, share_first_step: bool | None) -> dict[str, Any]:
    """Sampler settings that were given; the rest is the model's."""
    given = {
        "num_hypotheses": num_hypotheses,
        "num_inference_steps": steps,
        "flip": None if flip is None else (False if flip is Flip.off else flip.value),
        "share_first_step": share_first_step,
    }
    return {key: value for key, value in given.items() if value is not None}


def _size(text: str | None) -> tuple[int, int] | None:
    from probpose.geometry import check_image_size

    if text is None:
        return None
    try:
        return check_image_size(text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise ValueError(f"the image size must be WIDTHxHEIGHT in pixels, e.g. 1920x1080, got {text!r}") from None


def _write_result(stem: Path, result: Any, track: Any, pipe: Any, settings: dict, picture: bool, page: bool, overwrite: bool) -> None:
    import numpy as np

    from probpose.files import replacing
    from probpose.skeletons import convert_with_confidence, get_skeleton
    from probpose.visualization import plot_hypotheses, write_html

    skeleton = get_skeleton(pipe.skeleton)
    shown, confidence = track.keypoints_2d, track.confidence
    if track.skeleton != skeleton.name:
        shown, confidence, _ = convert_with_confidence(shown, confidence, track.skeleton, skeleton.name)
    with replacing(stem.with_name(stem.name + ".npz"), overwrite) as unfinished:
        np.savez_compressed(
            unfinished,
            **{k: getattr(result, k) for k in ("hypotheses", "pose", "uncertainty", "root") if getattr(result, k) is not None},
            keypoints_2d=track.keypoints_2d,
            confidence=track.confidence,
            frame=track.frame,
            fps=track.fps or np.nan,
            image_size=track.image_size,
            skeleton=skeleton.name,
            joint_names=list(skeleton.joint_names),
            input_skeleton=track.skeleton,
            camera=result.camera.to_vector().cpu().numpy(),
            settings=json.dumps(settings),
        )
    title = f"{stem.name}: {result.hypotheses.shape[0]} hypotheses, frames {track.frame[0]} to {track.frame[-1]}"
    drawing = {"skeleton": skeleton.name, "title": title, "confidence": confidence, "overwrite": overwrite}
    if picture:
        plot_hypotheses(
            result.hypotheses, result.pose, result.uncertainty, shown, image_size=track.image_size,
            path=stem.with_name(stem.name + ".png"), **drawing,
        )  # fmt: skip
    if page:
        write_html(
            stem.with_name(stem.name + ".html"), result.hypotheses, result.pose, result.uncertainty, shown, fps=track.fps,
            **drawing,
        )  # fmt: skip


def _summary(name: str, result: Any, paths: list[Path]) -> str:
    count, frames = result.hypotheses.shape[:2]
    text = f"{name}: {count} hypotheses of {frames} frames"
    if result.uncertainty is not None:
        text += f", mean uncertainty {1000 * result.uncertainty.mean():.0f} mm"
    return f"{text} -> {', '.join(map(str, paths))}"


def main() -> None:
    """Entry point: expected failures are one line on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the clean-up of unfinished files
    try:
        app()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("PROBPOSE_DEBUG"):
            raise
        typer.echo(f"probpose: {error}", err=True)
        sys.exit(2)
