"""`probpose sample`: 3D motions from keypoint files, one recording or folders of thousands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .batch import Shards, Stored, sample_batch
from .options import (
    DEFAULT_MODEL,
    BatchSize,
    Conversion,
    Device,
    FlipOption,
    Focal,
    FrameRate,
    Hypotheses,
    ImageSize,
    JointSet,
    Model,
    Overwrite,
    Seed,
    Share,
    StartOption,
    Steps,
    app,
    check_sampler,
    epilog,
    load_model,
    parse_size,
    sampler_settings,
)
from .tracks import check_size, sample_track


@app.command(
    epilog=epilog(
        "probpose sample walk.npz --out out",
        "probpose sample openpose_folder/ --image-size 1920x1080 --fps 30 --out out",
        "probpose sample results.json --skeleton coco_17 --image-size 1280x720 --focal 980 -k 50 --out out",
        "probpose sample walk.npz --export bvh --export trc --out out",
        "probpose sample walk.npz --model diffpose-mocap17 --start noisy --flip lifter --out out",
        "probpose sample recordings/ --batch --shards parquet --out out --resume",
        "torchrun --nproc-per-node 8 -m probpose sample recordings/ --batch --out out     (8 processors)",
        "accelerate launch --num_processes 8 -m probpose sample recordings/ --batch --out out     (8 GPUs)",
    )
)
def sample(
    keypoints: Annotated[Path, typer.Argument(help="Keypoint file or folder: npz, npy, COCO, OpenPose, MMPose, Ultralytics, AlphaPose …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    model: Model = DEFAULT_MODEL,
    skeleton: JointSet = None,
    conversion: Conversion = None,
    image_size: ImageSize = None,
    focal: Focal = None,
    fps: FrameRate = None,
    format: Annotated[str | None, typer.Option(help="Layout of the file, if it is not recognised. See probpose info.")] = None,
    num_hypotheses: Hypotheses = None,
    steps: Steps = None,
    start: StartOption = None,
    flip: FlipOption = None,
    share_first_step: Share = None,
    aggregation: Annotated[str | None, typer.Option(help="attention, jpma, mean, median or weighted. Default: the model's.")] = None,
    calibrated: Annotated[bool | None, typer.Option("--calibrated/--raw", help="Calibrate the uncertainty. Default: the model's.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_batch_size: BatchSize = 256,
    picture: Annotated[bool | None, typer.Option("--picture/--no-picture", help="Write a PNG. Default: yes, but not in a batch.")] = None,
    page: Annotated[bool | None, typer.Option("--page/--no-page", help="Write an HTML page. Default: yes, but not in a batch.")] = None,
    export: Annotated[list[str] | None, typer.Option(help="Write this format, too: bvh, glb, trc, csv, json. May be repeated.")] = None,
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

    Writes NAME.npz (hypotheses, pose, uncertainty, root, …; lifted, if the model has a lifter), NAME.png and NAME.html into the output
    folder, and NAME.bvh (Blender), NAME.glb, NAME.trc (OpenSim), NAME.csv, NAME.json (COCO's layout) where --export asks for them.

    With --batch every keypoint file in the folder and its sub-folders is a recording; so is a sub-folder with one file per frame. A
    person's result is called like "walk.json/person3". The results go into shards (npz, or Parquet with one row per frame), and
    manifest.json tells where each is; read them with probpose.shards.read_shards, or with pandas, polars, DuckDB. They are the same on any
    number of processes, also of a run that was killed and resumed. A recording that fails does not end the run: it is named in the manifest
    and at the end, the exit code is 1, and --resume tries it again.
    """
    reading = {"format": format, "skeleton": skeleton, "image_size": parse_size(image_size), "fps": fps}
    settings = sampler_settings(num_hypotheses, steps, start, flip, share_first_step)
    settings |= {key: value for key, value in {"aggregation": aggregation, "calibrated": calibrated}.items() if value is not None}
    call = {"focal": focal, "conversion": conversion, "max_batch_size": max_batch_size}
    if batch:
        if picture or page:
            raise ValueError("--picture and --page are for one recording, not for a --batch")
        if export:
            raise ValueError("--export is for one recording, not for a --batch")
        failed = sample_batch(
            keypoints, out, reading, call, settings, model, seed, device, threads or 1, shards or Shards.npz, shard_size or 16,
            store_hypotheses or Stored.float32, resume, overwrite, strict,
        )  # fmt: skip
        raise typer.Exit(1 if failed else 0)
    only = {"--shards": shards, "--shard-size": shard_size, "--store-hypotheses": store_hypotheses, "--threads": threads}
    only |= {"--resume": resume or None, "--strict": strict or None}
    if given := [option for option, value in only.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: for a --batch only")
    _sample_recording(
        keypoints, out, reading, call, settings, model, seed, device, picture is not False, page is not False, export or [], overwrite
    )


def _sample_recording(
    keypoints: Path, out: Path, reading: dict, call: dict, settings: dict, model: str, seed: int, device: str, picture: bool, page: bool,
    formats: list[str], overwrite: bool,
) -> None:  # fmt: skip
    import torch
    from tqdm.auto import tqdm

    from probpose.data import read_keypoints
    from probpose.export import Motion, check_format, export

    # The result itself is an npz with all that this format would hold.
    formats = [name for name in dict.fromkeys(map(check_format, formats)) if name != "npz"]
    try:
        tracks = read_keypoints(keypoints, **reading)
    except (ValueError, FileNotFoundError) as error:
        if keypoints.is_dir() and not _is_recording(keypoints):
            raise type(error)(f"{error}; pass --batch if it holds many recordings") from None
        raise
    if not tracks:
        raise ValueError(f"{keypoints} holds no person")
    for track in tracks:
        check_size(track, keypoints)
    name = keypoints.stem if keypoints.is_file() else keypoints.resolve().name
    names = [name if len(tracks) == 1 else f"{name}_person{track.track_id}" for track in tracks]
    suffixes = [".npz", *([".png"] if picture else []), *([".html"] if page else []), *(f".{name}" for name in formats)]
    taken = [p for n in names for p in (out / f"{n}{suffix}" for suffix in suffixes) if p.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; pass --overwrite to replace it")
    pipe = load_model(model, device)
    check_sampler(pipe, settings)
    out.mkdir(parents=True, exist_ok=True)
    people = tqdm(list(zip(names, tracks)), desc="people", disable=len(tracks) == 1)
    for person_name, track in people:
        pipe.set_progress_bar_config(desc=f"sampling {person_name}", leave=len(tracks) == 1)
        result = sample_track(pipe, track, torch.Generator().manual_seed(seed), settings, **call)
        _write_result(out / person_name, result, track, pipe, {"model": model, "seed": seed, **settings}, picture, page, overwrite)
        motion = Motion.from_output(result, track.fps or 30.0, pipe.skeleton, person_name, int(track.frame[0]))
        for format in formats:
            export(motion, out / f"{person_name}.{format}", overwrite=overwrite)
        tqdm.write(_summary(person_name, result, [out / f"{person_name}{suffix}" for suffix in suffixes]))


def _is_recording(path: Path) -> bool:
    from probpose.data import detect_format

    try:
        detect_format(path)
    except (ValueError, FileNotFoundError):
        return False
    return True


def _write_result(stem: Path, result: Any, track: Any, pipe: Any, settings: dict, picture: bool, page: bool, overwrite: bool) -> None:
    import numpy as np

    from probpose.files import replacing
    from probpose.skeletons import convert_with_confidence, get_skeleton
    from probpose.visualization import plot_hypotheses, write_html

    skeleton = get_skeleton(pipe.skeleton)
    shown, confidence = track.keypoints_2d, track.confidence
    if track.skeleton != skeleton.name:
        shown, confidence, _ = convert_with_confidence(shown, confidence, track.skeleton, skeleton.name)
    outputs = {name: getattr(result, name) for name in ("hypotheses", "pose", "uncertainty", "root", "radius", "lifted")}
    with replacing(stem.with_name(stem.name + ".npz"), overwrite) as unfinished:
        np.savez_compressed(
            unfinished,
            **{name: value for name, value in outputs.items() if value is not None},
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
