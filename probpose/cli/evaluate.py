"""`probpose evaluate`: a model on a data set."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BatchSize,
    Device,
    FlipOption,
    Hypotheses,
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


class Keypoints(str, Enum):
    """Which 2D of a benchmark is used."""

    detected = "detected"
    true = "true"


class KnownCamera(str, Enum):
    """What a benchmark tells the pipeline about its camera."""

    known = "known"
    image_size = "image-size"


@app.command(
    epilog=epilog(
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
        width, height = parse_size(size)
        try:
            focal = float(length)
        except ValueError:
            raise ValueError(f"--lens must be WIDTHxHEIGHT:FOCAL, e.g. 1920x1080:1480, got {lens!r}") from None
        benchmark = benchmark.through(Camera((focal, focal), (width / 2, height / 2), image_size=(width, height)))
    if every > 1:
        benchmark = benchmark.subset(every=every)
    report = run(
        load_model(model, device), benchmark, keypoints=keypoints.value, camera=camera.value.replace("-", "_"), seed=seed,
        max_batch_size=max_batch_size, **sampler_settings(num_hypotheses, steps, flip, share_first_step),
    )  # fmt: skip
    if json_file == Path("-"):
        typer.echo(report.to_json())
        return
    typer.echo(report.to_text())
    if json_file is not None:
        with replacing(json_file, overwrite) as unfinished:
            unfinished.write_text(report.to_json())
