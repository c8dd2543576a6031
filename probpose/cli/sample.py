"""`probpose sample`: 3D motions from keypoint files, one recording or folders of thousands."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    DEFAULT_MODEL,
    BatchSize,
    Device,
    FlipOption,
    Hypotheses,
    Model,
    Overwrite,
    Seed,
    Share,
    Steps,
    app,
    epilog,
    load_model,
    parse_size,
    sampler_settings,
)


class Shards(str, Enum):
    """File format of a batch's results."""

    npz = "npz"
    parquet = "parquet"


class Stored(str, Enum):
    """How a batch keeps its hypotheses; half precision rounds by up to 0.5 mm within two metres."""

    float32 = "float32"
    float16 = "float16"
    none = "none"


@app.command(
    epilog=epilog(
        "probpose sample walk.npz --out out",
        "probpose sample openpose_folder/ --image-size 1920x1080 --fps 30 --out out",
        "probpose sample results.json --skeleton coco_17 --image-size 1280x720 --focal 980 -k 50 --out out",
        "probpose sample recordings/ --batch --shards parquet --out out --resume",
        "torchrun --nproc-per-node 8 -m probpose sample recordings/ --batch --out out     (8 processors)",
        "accelerate launch --num_processes 8 -m probpose sample recordings/ --batch --out out     (8 GPUs)",
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
    calibrated: Annotated[bool | None, typer.Option("--calibrated/--raw", help="Calibrate the uncertainty. Default: the model's.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_batch_size: BatchSize = 256,
    picture: Annotated[bool | None, typer.Option("--picture/--no-picture", help="Write a PNG. Default: yes, but not in a batch.")] = None,
    page: Annotated[bool | None, typer.Option("--page/--no-page", help="Write an HTML page. Default: yes, but not in a batch.")] = None,
    overwrite: Overwrite = False,
    batch: Annotated[bool, typer.Option("--batch", help="The folder holds many recordings; write shards.")] = False,
    shards: Annotated[Shards | None, typer.Option(help="Batch: file format. Default: npz.")] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Batch: recordings per shard. Default: 16.")] = None,
    store_hypotheses: Annotated[Stored | None, typer.Option(help="Batch: precision of the hypotheses kept. Default: float32.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Batch: go on with the run in the output folder, if there is one.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Batch: stop at the first recording that fails.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Batch: processor threads of each process. Default: 1.")] = None,
) -> None:
    """Sample 3D motions from 2D keypoints; one result per person.

    Writes NAME.npz (hypotheses, pose, uncertainty, root, …), NAME.png and NAME.html into the output folder.

    With --batch every keypoint file in the folder and its sub-folders is a recording; so is a sub-folder with one file per frame. A
    person's result is called like "walk.json/person3". The results go into shards (npz, or Parquet with one row per frame), and
    manifest.json tells where each is; read them with probpose.shards.read_shards, or with pandas, polars, DuckDB. They are the same on any
    number of processes, also of a run that was killed and resumed. A recording that fails does not end the run: it is named in the manifest
    and at the end, the exit code is 1, and --resume tries it again.
    """
    reading = {"format": format, "skeleton": skeleton, "image_size": parse_size(image_size), "fps": fps}
    settings = sampler_settings(num_hypotheses, steps, flip, share_first_step)
    settings |= {key: value for key, value in {"aggregation": aggregation, "calibrated": calibrated}.items() if value is not None}
    call = {"focal": focal, "conversion": conversion, "max_batch_size": max_batch_size}
    if batch:
        if picture or page:
            raise ValueError("--picture and --page are for one recording, not for a --batch")
        failed = _sample_batch(
            keypoints, out, reading, call, settings, model, seed, device, threads or 1, shards or Shards.npz, shard_size or 16,
            store_hypotheses or Stored.float32, resume, overwrite, strict,
        )  # fmt: skip
        raise typer.Exit(1 if failed else 0)
    only = {"--shards": shards, "--shard-size": shard_size, "--store-hypotheses": store_hypotheses, "--threads": threads}
    only |= {"--resume": resume or None, "--strict": strict or None}
    if given := [option for option, value in only.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: for a --batch only")
    _sample_recording(keypoints, out, reading, call, settings, model, seed, device, picture is not False, page is not False, overwrite)


def _sample_recording(
    keypoints: Path, out: Path, reading: dict, call: dict, settings: dict, model: str, seed: int, device: str, picture: bool, page: bool,
    overwrite: bool,
) -> None:  # fmt: skip
    import torch
    from tqdm.auto import tqdm

    from probpose.data import read_keypoints

    try:
        tracks = read_keypoints(keypoints, **reading)
    except (ValueError, FileNotFoundError) as error:
        if keypoints.is_dir() and not _is_recording(keypoints):
            raise type(error)(f"{error}; pass --batch if it holds many recordings") from None
        raise
    if not tracks:
        raise ValueError(f"{keypoints} holds no person")
    for track in tracks:
        _check_size(track, keypoints)
    name = keypoints.stem if keypoints.is_file() else keypoints.resolve().name
    names = [name if len(tracks) == 1 else f"{name}_person{track.track_id}" for track in tracks]
    suffixes = [".npz", *([".png"] if picture else []), *([".html"] if page else [])]
    taken = [p for n in names for p in (out / f"{n}{suffix}" for suffix in suffixes) if p.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; pass --overwrite to replace it")
    pipe = load_model(model, device)
    out.mkdir(parents=True, exist_ok=True)
    people = tqdm(list(zip(names, tracks)), desc="people", disable=len(tracks) == 1)
    for person_name, track in people:
        pipe.set_progress_bar_config(desc=f"sampling {person_name}", leave=len(tracks) == 1)
        result = _sample_track(pipe, track, torch.Generator().manual_seed(seed), settings, **call)
        _write_result(out / person_name, result, track, pipe, {"model": model, "seed": seed, **settings}, picture, page, overwrite)
        tqdm.write(_summary(person_name, result, [out / f"{person_name}{suffix}" for suffix in suffixes]))


def _is_recording(path: Path) -> bool:
    from probpose.data import detect_format

    try:
        detect_format(path)
    except (ValueError, FileNotFoundError):
        return False
    return True


def _check_size(track: Any, path: Path) -> None:
    if track.image_size is None:
        raise ValueError(f"{path} does not tell the image size: pass --image-size WIDTHxHEIGHT")


def _sample_track(
    pipe: Any, track: Any, generator: Any, settings: dict, focal: float | None, conversion: str | None, max_batch_size: int
) -> Any:  # fmt: skip
    from probpose.geometry import Camera

    width, height = track.image_size
    camera = None if focal is None else Camera((focal, focal), (width / 2, height / 2), image_size=(width, height))
    return pipe(
        track.keypoints_2d, track.confidence, image_size=(width, height), camera=camera, skeleton=track.skeleton,
        conversion=conversion, fps=track.fps or 30.0, generator=generator, max_batch_size=max_batch_size, output_type="np", **settings,
    )  # fmt: skip


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


# ---------------------------------------------------------------------------------------------------------------------
# Batch: a folder of recordings
# ---------------------------------------------------------------------------------------------------------------------


def _sample_batch(
    folder: Path, out: Path, reading: dict, call: dict, settings: dict, model: str, seed: int, device: str, threads: int,
    shards: Shards, shard_size: int, stored: Stored, resume: bool, overwrite: bool, strict: bool,
) -> int:  # fmt: skip
    """The number of recordings that failed (in the main process; 0 in the others)."""
    from probpose.processes import started_together

    if not folder.is_dir():
        raise (ValueError if folder.exists() else FileNotFoundError)(f"{folder}: --batch needs a folder of recordings")
    with started_together() as processes:
        import torch
        from tqdm.auto import tqdm

        from probpose.shards import ShardedRun
        from probpose.skeletons import get_skeleton

        torch.set_num_threads(threads)  # results differ in their last bits with another number
        names = processes.from_main(lambda: _find_recordings(folder, out, reading))
        pipe = load_model(model, _own_device(device, processes.local_index))
        pipe.set_progress_bar_config(disable=True)
        body = get_skeleton(pipe.skeleton)
        run = ShardedRun(
            out, names, _columns(pipe, body, settings, stored),
            settings={
                "model": model, "weights": _fingerprint(pipe), "seed": seed, "threads": threads, "device": pipe.device.type,
                **settings, **call, **reading,
            },
            metadata={
                "skeleton": body.name, "joint_names": list(body.joint_names), "axes": "camera: x right, y down, z forward",
                "units": {"pose": "m", "uncertainty": "m", "root": "m", "hypotheses": "m", "keypoints_2d": "px", "fps": "1/s"},
            },
            format=shards.value, shard_size=shard_size,
        )  # fmt: skip

        def prepare() -> None:
            _check_options(pipe, reading, call["focal"], settings)
            run.prepare(resume, overwrite)

        processes.from_main(prepare)

        def work(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for track in _read_quietly(folder / name, reading):
                _check_size(track, folder / name)
                person = f"{name}/person{track.track_id}"
                result = _sample_track(pipe, track, torch.Generator().manual_seed(_item_seed(seed, person)), settings, **call)
                yield person, _person_arrays(name, track, result, stored)

        with tqdm(total=len(names), desc="recordings", initial=run.num_done, disable=not processes.is_main) as bar:

            def progress(current: int = 0) -> None:
                if processes.is_main:
                    bar.update(run.num_done + current - bar.n)

            run.make(work, process=processes.index, num_processes=processes.count, strict=strict, progress=progress)
            processes.wait(progress)
            progress()
        if not processes.is_main:
            return 0
        manifest = run.finish()
    _report(manifest, out)
    return manifest["totals"]["failed"]


def _find_recordings(folder: Path, out: Path, reading: dict) -> list[str]:
    """Paths of the recordings below a folder, relative to it, in order; tells what was skipped."""
    recordings: list[Path] = []
    skipped: list[Path] = []

    def search(place: Path) -> None:
        for path in sorted(place.iterdir()):
            if path.resolve() == out.resolve():
                continue
            if path.is_dir() and not path.name.startswith("."):
                recordings.append(path) if _holds_frames(path, reading) else search(path)
            elif path.suffix.lower() in (".npz", ".npy", ".json", ".jsonl") and not path.name.startswith("."):
                recordings.append(path)
            else:
                skipped.append(path)

    search(folder)
    names = [[path.relative_to(folder).as_posix() for path in paths] for paths in (recordings, skipped)]
    if not recordings:
        found = f"only {', '.join(names[1][:5])}" if skipped else "nothing"
        raise ValueError(f"{folder} holds no keypoint recordings, {found}")
    if skipped:
        typer.echo(f"skipped {len(skipped)} that are no keypoints: {', '.join(names[1][:5])}{', …' * (len(skipped) > 5)}", err=True)
    return names[0]


def _holds_frames(folder: Path, reading: dict) -> bool:
    """Whether the files of a folder are the frames of one recording."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    jsons = [name for name in names if name.lower().endswith(".json")]
    if any(name.endswith("_keypoints.json") for name in jsons):
        return True  # OpenPose
    if any(name.lower().endswith((".npz", ".npy", ".jsonl")) for name in names):
        return False
    if not jsons:
        return any(re.search(r"\d.*\.txt$", name) for name in names)  # YOLO labels
    if len(jsons) == 1:
        return False
    for name in jsons:  # the first with a person in it tells
        try:
            tracks = _read_quietly(folder / name, reading)
        except (ValueError, OSError):
            continue
        if tracks:
            return max(map(len, tracks)) == 1
    return False


def _read_quietly(path: Path, reading: dict) -> list[Any]:
    """The people in a recording; an empty one is nothing to warn of among thousands."""
    from probpose.data import read_keypoints

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_keypoints(path, **reading)


def _check_options(pipe: Any, reading: dict, focal: float | None, settings: dict) -> None:
    """What is wrong for all recordings should not fail each of them."""
    from probpose.data import list_formats
    from probpose.data.keypoints.joint_sets import joint_count
    from probpose.data.keypoints.tracks import check_fps
    from probpose.geometry import Camera

    check_fps(reading["fps"])
    if reading["skeleton"] is not None:
        joint_count(reading["skeleton"])
    if reading["format"] not in (None, *list_formats()):
        raise ValueError(f"--format must be one of {', '.join(list_formats())}, got {reading['format']!r}")
    if focal is not None:
        Camera((focal, focal), (0.0, 0.0))
    pipe.count_passes(1, **{key: value for key, value in settings.items() if key not in ("aggregation", "calibrated")})
    pipe.choose_aggregator(settings.get("aggregation", "default"))


def _own_device(device: str, local_index: int) -> str:
    """The device of one of several processes: each its own GPU."""
    import torch

    if device == "auto":
        forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        device = "cuda" if torch.cuda.is_available() and not forced else "cpu"
    return f"cuda:{local_index % max(1, torch.cuda.device_count())}" if device == "cuda" else device


def _item_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def _fingerprint(pipe: Any) -> str:
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


def _columns(pipe: Any, skeleton: Any, settings: dict, stored: Stored) -> dict[str, Any]:
    from probpose.shards import Column

    joints = skeleton.num_joints
    count = settings.get("num_hypotheses", pipe.config.get("default_num_hypotheses"))
    columns = {
        "recording": Column("str", axis=None),
        "person": Column("int64", axis=None),
        "frame": Column("int64"),
        "fps": Column("float64", axis=None),
        "pose": Column("float32", (joints, 3)),
        "uncertainty": Column("float32", (joints,)),
        "root": Column("float32", (3,)),
        "keypoints_2d": Column("float32", (None, 2)),
        "confidence": Column("float32", (None,)),
        "input_skeleton": Column("str", axis=None),
        "image_size": Column("int64", (2,), axis=None),
        "camera": Column("float32", (None,), axis=None),
    }
    if stored is not Stored.none:
        columns["hypotheses"] = Column(stored.value, (count, joints, 3), axis=1)
    return columns


def _person_arrays(name: str, track: Any, result: Any, stored: Stored) -> dict[str, Any]:
    arrays = {
        "recording": name,
        "person": track.track_id,
        "frame": track.frame,
        "fps": track.fps or float("nan"),
        "keypoints_2d": track.keypoints_2d,
        "confidence": track.confidence,
        "input_skeleton": track.skeleton,
        "image_size": track.image_size,
        "camera": result.camera.to_vector().cpu().numpy(),
    }
    outputs = ("pose", "uncertainty", "root", *(() if stored is Stored.none else ("hypotheses",)))
    return arrays | {key: getattr(result, key) for key in outputs}


def _report(manifest: dict[str, Any], out: Path) -> None:
    totals, failures = manifest["totals"], manifest["failures"]
    filled = {entry["item"] for shard in manifest["shards"] for entry in shard["entries"]}
    empty = totals["items"] - totals["failed"] - len(filled)
    text = f"{totals['items']} recordings: {totals['entries']} people, {totals['rows']} frames -> {out} ({len(manifest['shards'])} shards)"
    typer.echo(text + (f"; {empty} without people" if empty else "") + (f"; {totals['failed']} failed:" if failures else ""))
    for name, message in list(failures.items())[:5]:
        typer.echo(f"  {message if name in message else f'{name}: {message}'}")
    if len(failures) > 5:
        typer.echo(f"  and {len(failures) - 5} more, see {out / 'manifest.json'}")
