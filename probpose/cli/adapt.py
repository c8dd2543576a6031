"""`probpose adapt`: a model to a new scene, from 2D keypoints alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Conversion,
    Device,
    Focal,
    FrameRate,
    ImageSize,
    JointSet,
    Overwrite,
    Seed,
    app,
    epilog,
    load_model,
    parse_size,
    pinhole,
)

_ENDLESS = 10**9
_COMPARED_WINDOWS = 256
_OPTION_OF = {
    "keypoint_fps": "--fps", "keypoint_skeleton": "--skeleton", "camera or image_size=(width, height)": "--image-size WIDTHxHEIGHT"
}  # fmt: skip


@app.command(
    epilog=epilog(
        "probpose adapt d3dp-mocap17 --target recordings/ --source mocap17.npz --out models/my-scene",
        "probpose adapt d3dp-mocap17 --target walk.json --image-size 1920x1080 --focal 1480 --source recipe.yaml --out models/walk",
        "probpose adapt d3dp-mocap17 --target day1/ --target day2/ --source a.npz --source b.npz --out models/days --rounds 3 --rank 4",
        "probpose adapt d3dp-mocap17 --target recordings/ --source mocap17.npz --out models/all --full --learning-rate 4e-4",
        "probpose adapt d3dp-mocap17 --target recordings/ --source mocap17.npz --out models/my-scene --resume",
        "probpose sample clip.json --model models/my-scene",
    )
)
def adapt(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or Hub id of a pipeline that samples as D3DP does.")],
    target: Annotated[list[Path], typer.Option(help="Keypoint file of the new scene, or folder of them; several may be given.")],
    source: Annotated[
        list[Path],
        typer.Option(help="Labelled motions: a motion archive (.npz), several, or a training recipe (.yaml), of which the data count."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapted pipeline.")],
    skeleton: JointSet = None,
    conversion: Conversion = None,
    image_size: ImageSize = None,
    focal: Focal = None,
    fps: FrameRate = None,
    rounds: Annotated[int | None, typer.Option(help="Looks at the target, at most.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in each round.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Source windows in each step.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest one; it falls along a cosine.")] = None,
    alignment: Annotated[bool | None, typer.Option("--alignment/--no-alignment", help="Source poses stand where people stand.")] = None,
    augmentation: Annotated[bool | None, typer.Option("--augmentation/--no-augmentation", help="An adversary bends source poses.")] = None,
    build: Annotated[bool | None, typer.Option("--build/--no-build", help="Source poses get the build of the target's people.")] = None,
    pseudo_labels: Annotated[
        bool | None, typer.Option("--pseudo-labels/--no-pseudo-labels", help="Learn from hypotheses that reproject well.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of an adapter.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that OUT.state.pt is of, if there is one.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Adapt a model to a new scene that shows people in 2D only.

    Writes a complete pipeline with the adapter in its weights into the output folder, and beside its parts the adapter alone
    (pytorch_lora_weights.safetensors), adaptation.json and adaptation.png. Until then the run is saved in OUT.state.pt after every round.
    Clips of the sources' test split are left alone, and so is what a recipe keeps out. Settings that are not given are those of
    probpose.pipelines.AdaptationSettings.
    """
    import json
    from dataclasses import asdict

    from probpose.files import replacing
    from probpose.pipelines import AdaptationSettings, D3DPPipeline, PoSynDAPipeline

    if full and rank is not None:
        raise ValueError("--rank is an adapter's, and with --full there is none")
    given = {
        "rounds": rounds, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "rank": rank, "alignment": alignment,
        "augmentation": augmentation, "build": build, "pseudo_labels": pseudo_labels,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None} | ({"rank": None} if full else {})
    settings = AdaptationSettings(**given)
    state = out.with_name(f"{out.name}.state.pt")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; pass --overwrite to replace it")
    if state.exists() and not (resume or overwrite):
        raise FileExistsError(f"{state} is of a run that was not finished; pass --resume to go on with it, or --overwrite to start anew")

    before = load_model(model, device)
    if not isinstance(before, D3DPPipeline):
        raise ValueError(f"{model} is a {type(before).__name__}; what can be adapted is a D3DPPipeline or a PoSynDAPipeline")
    pipe = load_model(model, device, PoSynDAPipeline)
    reading = {"image_size": parse_size(image_size), "keypoint_skeleton": skeleton, "keypoint_fps": fps, "conversion": conversion}
    tracks = _target_tracks(pipe, target, reading, focal)
    windows = _source_windows(pipe, source, tracks[0].fps, seed)
    for warning in _differences(pipe, windows, tracks):
        typer.echo(f"warning: {warning}", err=True)

    out.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        state.unlink(missing_ok=True)
    pipe.set_progress_bar_config(desc="adapting", unit="step", leave=None)
    report = pipe.adapt(tracks, source=windows, settings=settings, state=state, resume=resume, seed=seed)

    record = {
        "model": model, "target": [str(path) for path in target], "source": [str(path) for path in source], "seed": seed,
        "settings": asdict(settings), "source_clips": len(windows.clips),
        "track_minutes": {track.name: len(track) / track.fps / 60 for track in tracks}, **report.to_dict(),
    }  # fmt: skip
    with replacing(out, overwrite) as unfinished:
        _save_adapted(pipe, report.adapter_name, unfinished)
        (unfinished / "adaptation.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        _draw(before, pipe, tracks, report, seed, unfinished / "adaptation.png")
    state.unlink(missing_ok=True)
    typer.echo(report.to_text())
    if before.calibrator is not None:
        typer.echo("left out: the calibrator, which was fitted without the adapter; probpose calibrate fits one")
    typer.echo(f"finished: {out}")


def _target_tracks(pipe: Any, target: list[Path], reading: dict[str, Any], focal: float | None) -> list[Any]:
    """The people of the new scene as the model takes them."""
    from dataclasses import replace

    from probpose.data import target_tracks

    hidden = pipe.config.get("hidden_when_converted") or ()
    with _in_options():
        tracks = target_tracks(
            target, skeleton=pipe.skeleton, fps=pipe.denoiser.config.get("fps") or 30.0, hidden_when_converted=hidden, **reading
        )
    if focal is None:
        return tracks
    if unknown := [track.name for track in tracks if track.camera.image_size is None]:
        raise ValueError(f"--focal needs the image size, which {unknown[0]} does not tell: pass --image-size WIDTHxHEIGHT")
    return [replace(track, camera=pinhole(focal, track.camera.image_size)) for track in tracks]


@contextmanager
def _in_options() -> Iterator[None]:
    """Errors speak of options instead of arguments, and so do warnings, a line each."""
    import warnings

    def spelt(message: Any) -> str:
        text = str(message)
        for argument, option in _OPTION_OF.items():
            text = text.replace(argument, option)
        return text

    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        except ValueError as error:
            raise ValueError(spelt(error)) from None
    for warning in caught:
        typer.echo(f"warning: {spelt(warning.message)}", err=True)


def _source_windows(pipe: Any, source: list[Path], fps: float, seed: int) -> Any:
    """Windows of labelled motions, as long as the model's and of its frame rate."""
    from probpose.training import load_data_section
    from probpose.training.config import DataConfig
    from probpose.training.loop import split_clips, windows_for

    kinds = {path.suffix.lower() for path in source}
    if kinds == {".npz"}:
        plain = {"validation_share": 0.0, "body": None, "camera": {"unknown_probability": 0.0}}
        data = DataConfig(paths=[str(path) for path in source], **plain)
    elif kinds <= {".yaml", ".yml"} and len(source) == 1:
        data = load_data_section(source[0])
    else:
        raise ValueError(f"--source must be motion archives (.npz) or one training recipe (.yaml), got {', '.join(map(str, source))}")
    clips, _ = split_clips(data)
    if (pipe.skeleton, fps) != ("h36m_17", clips.fps):
        made_for = f"{pipe.skeleton} at {fps:g} frames per second"
        raise ValueError(f"--source has motions of h36m_17 at {clips.fps:g} frames per second, the model is for {made_for}")
    return windows_for(data, clips, _ENDLESS, seed, pipe.num_frames, None)


def _differences(pipe: Any, windows: Any, tracks: list[Any]) -> tuple[str, ...]:
    """What looks wrong with the source, the target, or the two together."""
    from probpose.data import compare_domains
    from probpose.geometry import Camera

    drawn = windows.render(list(range(_COMPARED_WINDOWS)))
    poses = drawn["pose"] + drawn["root"][:, :, None]
    lens = Camera((1.0, 1.0), (0.0, 0.0))
    given = {"skeleton": pipe.skeleton, "fps": tracks[0].fps, "root_index": pipe.root_index}
    return compare_domains(poses, lens.project(poses), tracks, lens, **given).warnings


def _save_adapted(pipe: Any, adapter_name: str | None, folder: Path) -> None:
    """Write the pipeline without its calibrator into a new folder, in the precision that it was stored in, and the adapter."""
    import copy

    from safetensors import safe_open
    from torch import nn

    from probpose.training.saving import save_changed

    denoiser = pipe.denoiser
    stored = Path(denoiser.config["_name_or_path"])  # in a local folder, even of a model from the Hub
    with safe_open(next(stored.glob("*.safetensors")), "pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    if adapter_name is not None:
        denoiser.fuse_lora()
    pipe.register_to_config(_name_or_path=str(stored.parent))
    pipe.register_modules(denoiser=nn.Module.to(copy.deepcopy(denoiser), dtype), calibrator=None)
    save_changed(pipe, ("denoiser",), folder)
    pipe.register_modules(denoiser=denoiser)
    if adapter_name is not None:
        denoiser.save_lora_adapter(folder, prefix="denoiser")


def _draw(before: Any, after: Any, tracks: list[Any], report: Any, seed: int, path: Path) -> None:
    """The run, and two frames of the target as the model reprojects before and after."""
    from probpose.visualization import plot_adaptation

    frames = _telling_frames(tracks)
    plot_adaptation(
        report.history, report.best_round, [track.keypoints_2d[frame].tolist() for track, frame in frames],
        *([_reprojected(pipe, track, frame, seed) for track, frame in frames] for pipe in (before, after)),
        confidence=[track.confidence[frame].tolist() for track, frame in frames],
        names=[f"{track.name}, {frame / track.fps:.1f} s" for track, frame in frames], path=path, skeleton=after.skeleton,
    )  # fmt: skip


def _telling_frames(tracks: list[Any]) -> list[tuple[Any, int]]:
    """Two frames to look at, as tracks and places: at a quarter and three quarters of those in which most joints are observed."""
    counts = [(track.confidence > 0).sum(-1) for track in tracks]
    most = max(count.max() for count in counts)
    whole = [(track, frame) for track, count in zip(tracks, counts) for frame in (count == most).nonzero().flatten().tolist()]
    return [whole[len(whole) // 4], whole[3 * len(whole) // 4]]


def _reprojected(pipe: Any, track: Any, frame: int, seed: int) -> list[list[float]]:
    """Pixels `(joints, 2)` that the mean of the hypotheses reprojects to, of a window of the track about the frame."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    first = max(0, min(frame - pipe.num_frames // 2, len(track) - pipe.num_frames))
    window = slice(first, first + pipe.num_frames)
    out = pipe(
        track.keypoints_2d[window], track.confidence[window], camera=track.camera, fps=track.fps, aggregation="mean", calibrated=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return out.camera.project(out.pose + out.root[:, None])[frame - first].tolist()
