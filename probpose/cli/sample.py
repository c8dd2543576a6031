"""`probpose sample`: 3D motions from keypoint files."""

from __future__ import annotations

import json
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


@app.command(
    epilog=epilog(
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

    tracks = read_keypoints(keypoints, format=format, skeleton=skeleton, image_size=parse_size(image_size), fps=fps)
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
    pipe = load_model(model, device)
    settings = sampler_settings(num_hypotheses, steps, flip, share_first_step)
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
