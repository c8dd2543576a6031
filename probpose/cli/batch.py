"""A folder of recordings: results in shards, on any number of processes, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from .options import camera_of, check_call, check_size, fingerprint, load_model, own_device


class Shards(str, Enum):
    """File format of a batch's results."""

    npz = "npz"
    parquet = "parquet"


class Stored(str, Enum):
    """How a batch keeps its hypotheses; half precision rounds by up to 0.5 mm within two metres."""

    float32 = "float32"
    float16 = "float16"
    none = "none"


def sample_batch(
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

        from probpose.data.keypoints.recordings import read_quietly
        from probpose.results import sample_person
        from probpose.shards import ShardedRun, seed_of
        from probpose.skeletons import get_skeleton

        torch.set_num_threads(threads)  # results differ in their last bits with another number
        names = processes.from_main(lambda: _find_recordings(folder, out, reading))
        pipe = load_model(model, own_device(device, processes.local_index))
        pipe.set_progress_bar_config(disable=True)
        body = get_skeleton(pipe.skeleton)
        run = ShardedRun(
            out, names, _columns(pipe, body, settings, stored),
            settings={
                "model": model, "weights": fingerprint(pipe), "seed": seed, "threads": threads, "device": pipe.device.type,
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
            for track in read_quietly(folder / name, **reading):
                check_size(track, folder / name)
                person = f"{name}/person{track.track_id}"
                words = {"conversion": call["conversion"], "max_batch_size": call["max_batch_size"], **settings}
                sampled = sample_person(pipe, track, person, seed_of(seed, person), camera=camera_of(track, call["focal"]), **words)
                yield person, _person_arrays(name, sampled, stored)

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
    from probpose.data.keypoints.recordings import recordings_below

    found = recordings_below(folder, leave_out=out, **reading)
    recordings, skipped = ([path.relative_to(folder).as_posix() for path in paths] for paths in found)
    if not recordings:
        only = f"only {', '.join(skipped[:5])}" if skipped else "nothing"
        raise ValueError(f"{folder} holds no keypoint recordings, {only}")
    if skipped:
        typer.echo(f"skipped {len(skipped)} that are no keypoints: {', '.join(skipped[:5])}{', …' * (len(skipped) > 5)}", err=True)
    return recordings


def _check_options(pipe: Any, reading: dict, focal: float | None, settings: dict) -> None:
    """What is wrong for all recordings should not fail each of them."""
    from probpose.data import list_formats
    from probpose.data.keypoints.joint_sets import joint_count
    from probpose.data.keypoints.tracks import check_fps

    check_fps(reading["fps"])
    if reading["skeleton"] is not None:
        joint_count(reading["skeleton"])
    if reading["format"] not in (None, *list_formats()):
        raise ValueError(f"--format must be one of {', '.join(list_formats())}, got {reading['format']!r}")
    check_call(pipe, settings, focal)


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
        "observed": Column("bool"),
        "input_skeleton": Column("str", axis=None),
        "image_size": Column("int64", (2,), axis=None),
        "camera": Column("float32", (None,), axis=None),
    }
    if pipe.check_calibrated(settings.get("calibrated")) and pipe.is_calibrated_for(
        pipe.choose_aggregator(settings.get("aggregation", "default"))
    ):
        columns["radius"] = Column("float32", (joints,))
    if stored is not Stored.none:
        columns["hypotheses"] = Column(stored.value, (count, joints, 3), axis=1)
    return columns


def _person_arrays(name: str, sampled: Any, stored: Stored) -> dict[str, Any]:
    track = sampled.track
    arrays = {
        "recording": name,
        "person": track.track_id,
        "frame": track.frame,
        "fps": track.fps or float("nan"),
        "keypoints_2d": track.keypoints_2d,
        "confidence": track.confidence,
        "observed": track.observed,
        "input_skeleton": track.skeleton,
        "image_size": track.image_size,
        "camera": sampled.camera.to_vector().cpu().numpy(),
    }
    outputs = {key: getattr(sampled, key) for key in ("pose", "uncertainty", "root", "radius", "hypotheses")}
    if stored is Stored.none:
        del outputs["hypotheses"]
    return arrays | {key: value for key, value in outputs.items() if value is not None}


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
