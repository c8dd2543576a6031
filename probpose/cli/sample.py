"""`probpose sample`: 3D motions from a video or from keypoint files, one recording or folders of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    camera_of,
    check_call,
    check_size,
    epilog,
    load_model,
    parse_size,
    sampler_settings,
)


@app.command(
    epilog=epilog(
        "probpose sample clip.mp4 --out out",
        "probpose sample walk.npz --out out",
        "probpose sample openpose_folder/ --image-size 1920x1080 --fps 30 --out out",
        "probpose sample results.json --skeleton coco_17 --video clip.mp4 --focal 980 -k 50 --out out",
        "probpose sample walk.npz --export bvh --export trc --out out",
        "probpose sample clip.mp4 --detector my_detector:detect --out out     (a function of my_detector.py: frames -> people)",
        "probpose sample walk.npz --model diffpose-mocap17 --start noisy --flip lifter --out out",
        "probpose sample recordings/ --batch --shards parquet --out out --resume",
        "torchrun --nproc-per-node 8 -m probpose sample recordings/ --batch --out out     (8 processors)",
        "accelerate launch --num_processes 8 -m probpose sample recordings/ --batch --out out     (8 GPUs)",
    )
)
def sample(
    recording: Annotated[
        Path, typer.Argument(help="Video, or keypoint file or folder: npz, npy, COCO, OpenPose, MMPose, Ultralytics, AlphaPose …")
    ],
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
    max_gap: Annotated[
        float, typer.Option(min=0, help="Seconds for which an unseen person is bridged; longer, and a new clip begins.")
    ] = 1.0,
    detector: Annotated[str | None, typer.Option(help="Video: vitpose, or module:function of your own. Default: vitpose.")] = None,
    person_model: Annotated[str | None, typer.Option(help="Video: Hub id or folder of the RT-DETR that finds people.")] = None,
    pose_model: Annotated[str | None, typer.Option(help="Video: Hub id or folder of the ViTPose that finds joints.")] = None,
    video: Annotated[Path | None, typer.Option(help="Keypoints: the video they were found in, for the overlay.")] = None,
    overlay: Annotated[
        bool | None, typer.Option("--overlay/--no-overlay", help="Draw the result into the video. Default: if there is one.")
    ] = None,
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
    """Sample 3D motions of all people in a video, or in a file of 2D keypoints; one result per person.

    Writes NAME.npz (hypotheses, pose, uncertainty, root, …; lifted, if the model has a lifter), NAME.png and NAME.html into the output
    folder, and NAME.bvh (Blender), NAME.glb, NAME.trc (OpenSim), NAME.csv, NAME.json (COCO's layout) where --export asks for them. With a
    video also NAME_overlay.mp4. `probpose draw` makes other pictures of a result: figures for papers, videos, Rerun recordings.

    Of a video, people and their joints are found by RT-DETR and ViTPose (pip install probpose[video]; the weights come from the Hub), or by
    a detector of your own, and are kept in NAME_keypoints.npz, which can be sampled again. A person who is unseen for a moment is bridged:
    "observed" in NAME.npz tells where.

    With --batch every keypoint file in the folder and its sub-folders is a recording; so is a sub-folder with one file per frame. A
    person's result is called like "walk.json/person3". The results go into shards (npz, or Parquet with one row per frame), and
    manifest.json tells where each is; read them with probpose.shards.read_shards, or with pandas, polars, DuckDB. They are the same on any
    number of processes, also of a run that was killed and resumed. A recording that fails does not end the run: it is named in the manifest
    and at the end, the exit code is 1, and --resume tries it again.
    """
    from probpose.video import is_video
    from probpose.visualization.common import open_video

    reading = {"format": format, "skeleton": skeleton, "image_size": parse_size(image_size), "fps": fps}
    settings = sampler_settings(num_hypotheses, steps, start, flip, share_first_step)
    settings |= {key: value for key, value in {"aggregation": aggregation, "calibrated": calibrated}.items() if value is not None}
    call = {"focal": focal, "conversion": conversion, "max_batch_size": max_batch_size}
    finding = {"--detector": detector, "--person-model": person_model, "--pose-model": pose_model}
    if batch:
        single = {"--picture": picture, "--page": page, "--overlay": overlay, "--video": video, "--export": export, **finding}
        if given := [option for option, value in single.items() if value]:
            raise ValueError(f"{', '.join(given)}: for one recording, not for a --batch")
        failed = sample_batch(
            recording, out, reading, call, settings, model, seed, device, threads or 1, shards or Shards.npz, shard_size or 16,
            store_hypotheses or Stored.float32, resume, overwrite, strict,
        )  # fmt: skip
        raise typer.Exit(1 if failed else 0)
    only = {"--shards": shards, "--shard-size": shard_size, "--store-hypotheses": store_hypotheses, "--threads": threads}
    only |= {"--resume": resume or None, "--strict": strict or None}
    if given := [option for option, value in only.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: for a --batch only")
    overlay = bool(video) or is_video(recording) if overlay is None else overlay
    outputs = _Outputs(recording, out, picture is not False, page is not False, overlay, export or [], overwrite)
    if is_video(recording):
        if foreign := [f"--{key.replace('_', '-')}" for key in ("format", "image_size") if reading[key]] + ["--video"] * bool(video):
            raise ValueError(f"{', '.join(foreign)}: for keypoint files; {recording} is a video")
        pipe, video = _load(model, device, settings, focal), recording  # a wrong option is told before the long work, not after it
        tracks = _find_people(recording, outputs, fps, skeleton, max_gap, device, finding)
    else:
        if given := [option for option, value in finding.items() if value]:
            raise ValueError(f"{', '.join(given)}: for videos; {recording} is none")
        tracks = _read_people(recording, reading)
        outputs.check(tracks, max_gap)
        video = open_video(video, tracks[0]) if video else None
        pipe = _load(model, device, settings, focal)
    _sample_people(tracks, outputs, pipe, {"model": model, **settings}, call, seed, max_gap, video)


@dataclass
class _Outputs:
    """What is to be written, and whether it may."""

    recording: Path
    folder: Path
    picture: bool
    page: bool
    overlay: bool
    formats: Sequence[str]
    overwrite: bool

    def __post_init__(self) -> None:
        from probpose.export import check_format

        # The result itself is an npz with all that this format would hold.
        self.formats = [name for name in dict.fromkeys(map(check_format, self.formats)) if name != "npz"]

    @property
    def name(self) -> str:
        return self.recording.stem if self.recording.is_file() else self.recording.resolve().name

    @property
    def suffixes(self) -> list[str]:
        """Of a person's files."""
        return [".npz", *([".png"] if self.picture else []), *([".html"] if self.page else []), *(f".{name}" for name in self.formats)]

    @property
    def keypoints(self) -> Path:
        return self.folder / f"{self.name}_keypoints.npz"

    @property
    def overlaid(self) -> Path:
        return self.folder / f"{self.name}_overlay.mp4"

    def refuse(self, *paths: Path) -> None:
        if not self.overwrite and (taken := [path for path in paths if path.exists()]):
            raise FileExistsError(f"{taken[0]} exists; pass --overwrite to replace it")

    def check(self, tracks: list, max_gap: float) -> None:
        from probpose.results import name_clips

        self.refuse(*(self.folder / f"{name}{suffix}" for name in name_clips(tracks, self.name, max_gap) for suffix in self.suffixes))
        if self.overlay:
            self.refuse(self.overlaid)


def _load(model: str, device: str, settings: dict, focal: float | None) -> Any:
    pipe = load_model(model, device)
    check_call(pipe, settings, focal)
    return pipe


def _read_people(recording: Path, reading: dict) -> list:
    from probpose.data import read_keypoints

    try:
        tracks = read_keypoints(recording, **reading)
    except (ValueError, FileNotFoundError) as error:
        if recording.is_dir() and not _is_recording(recording):
            raise type(error)(f"{error}; pass --batch if it holds many recordings") from None
        raise
    if not tracks:
        raise ValueError(f"{recording} holds no person")
    for track in tracks:
        check_size(track, recording)
    return tracks


def _is_recording(path: Path) -> bool:
    from probpose.data import detect_format

    try:
        detect_format(path)
    except (ValueError, FileNotFoundError):
        return False
    return True


def _find_people(
    recording: Path, outputs: _Outputs, fps: float | None, skeleton: str | None, max_gap: float, device: str, finding: dict
) -> list:  # fmt: skip
    """The people in a video, kept in a file as soon as they are found: detection takes longer than all that follows."""
    from probpose.data import write_keypoints
    from probpose.video import Video, load_detector, read_video

    if outputs.overlay:
        outputs.refuse(outputs.overlaid)
    if outputs.keypoints.exists() and not outputs.overwrite:
        again = f"probpose sample {outputs.keypoints} --video {recording}"
        raise FileExistsError(f"{outputs.keypoints} exists; sample it ({again}), or pass --overwrite to replace it")
    video = Video.open(recording, fps)
    name = finding["--detector"] or "vitpose"
    models = {"person_model": finding["--person-model"], "pose_model": finding["--pose-model"]}
    models = {key: value for key, value in models.items() if value is not None}
    if name == "vitpose":
        models["device"] = device
    elif models:
        raise ValueError(f"--person-model and --pose-model are those of the detector vitpose, not of {name}")
    tracks = read_video(video, load_detector(name, **models), skeleton=skeleton, max_gap=max_gap)
    if not tracks:
        raise ValueError(f"{recording}: nobody was found in any of its {video.num_frames} frames")
    for note in dict.fromkeys(note for track in tracks for note in track.source["notes"]):
        typer.echo(f"{recording.name}: {note}", err=True)
    outputs.check(tracks, max_gap)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    write_keypoints(outputs.keypoints, tracks, outputs.overwrite)
    count = "1 person" if len(tracks) == 1 else f"{len(tracks)} people"
    typer.echo(f"{recording.name}: {count} in {video.num_frames} frames -> {outputs.keypoints}")
    return tracks


def _sample_people(
    tracks: list, outputs: _Outputs, pipe: Any, settings: dict, call: dict, seed: int, max_gap: float, video: Any
) -> None:  # fmt: skip
    from tqdm.auto import tqdm

    from probpose.export import Motion, export
    from probpose.results import name_clips, sample_person
    from probpose.visualization import write_overlay

    clips = name_clips(tracks, outputs.name, max_gap)
    words = {key: value for key, value in settings.items() if key != "model"}
    words |= {"conversion": call["conversion"], "max_batch_size": call["max_batch_size"]}
    outputs.folder.mkdir(parents=True, exist_ok=True)
    people = []
    for name, track in tqdm(clips.items(), desc="people", disable=len(clips) == 1):
        pipe.set_progress_bar_config(desc=f"sampling {name}", leave=len(clips) == 1)
        person = sample_person(pipe, track, name, seed, camera=camera_of(track, call["focal"]), **words)
        person.settings = {"seed": seed, **settings}
        _write(person, outputs)
        if outputs.formats:
            motion = Motion.from_person(person)
            for format in outputs.formats:
                export(motion, outputs.folder / f"{name}.{format}", overwrite=outputs.overwrite)
        tqdm.write(_summary(person, [outputs.folder / f"{name}{suffix}" for suffix in outputs.suffixes]))
        people.append(person)
    if outputs.overlay:
        write_overlay(outputs.overlaid, people, video, overwrite=outputs.overwrite, progress=True)
        typer.echo(f"{outputs.name} -> {outputs.overlaid}")


def _write(person: Any, outputs: _Outputs) -> None:
    from probpose.visualization import draw_person

    path = {suffix: outputs.folder / f"{person.name}{suffix}" for suffix in (".npz", ".png", ".html")}
    person.save(path[".npz"], outputs.overwrite)
    for suffix in [".png"] * outputs.picture + [".html"] * outputs.page:
        draw_person(person, path[suffix], overwrite=outputs.overwrite)


def _summary(person: Any, paths: list[Path]) -> str:
    from probpose.data import describe_frames

    count, frames = person.hypotheses.shape[:2]
    text = f"{person.name}: {count} hypotheses of {frames} frames"
    if person.uncertainty is not None:
        text += f", mean uncertainty {1000 * person.uncertainty.mean():.0f} mm"
    if person.bridged.any():
        text += f", {person.bridged.sum()} frames bridged ({describe_frames(person.bridged, person.track.frame[0])})"
    return f"{text} -> {', '.join(map(str, paths))}"
