"""`probpose evaluate`: a model on a data set."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    BatchSize,
    Device,
    FlipOption,
    Hypotheses,
    Overwrite,
    Seed,
    Share,
    StartOption,
    Steps,
    app,
    check_sampler,
    epilog,
    fingerprint,
    load_model,
    own_device,
    parse_size,
    pinhole,
    sampler_settings,
)

STDOUT = Path("-")


class KnownCamera(str, Enum):
    """What a pipeline is told about the camera."""

    known = "known"
    image_size = "image-size"


def _list_quirks(wanted: bool) -> None:
    from probpose.evaluation import PROTOCOLS, QUIRKS

    if not wanted:
        return
    for name, meaning in QUIRKS.items():
        typer.echo(f"{name} ({', '.join(p.name for p in PROTOCOLS.values() if name in p.quirks)}): {meaning}")
    raise typer.Exit


@app.command(
    epilog=epilog(
        "probpose evaluate d3dp-mocap17 --data mocap17_test.npz -k 10 --steps 3",
        "probpose evaluate d3dp-mocap17 --data mocap17_test.npz --keypoints true --every 10 --per-joint",
        "probpose evaluate my/model --data mocap17_test.npz --camera image-size --lens 1920x1080:1480 --json report.json",
        "probpose evaluate models/d3dp-h36m --data data/ --dataset h36m --keypoints cpn_ft_h36m_dbb --protocol p1 --latex table.tex",
        "probpose evaluate models/d3dp-h36m --data data/ --dataset h36m --quirk published_windows --quirk p_best_batch --out run --resume",
        "probpose evaluate diffpose-mocap17 --data mocap17_test.npz -k 20 --start noisy --flip alternate",
        "probpose evaluate d3dp-mocap17 --data mpi_inf_3dhp_test_set/ --set annotation=univ_annot3",
        "torchrun --nproc-per-node 4 -m probpose evaluate d3dp-mocap17 --data mocap17_test.npz     (4 processors)",
        "accelerate launch --num_processes 4 -m probpose evaluate d3dp-mocap17 --data mocap17_test.npz     (4 GPUs)",
    )
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or Hub id of a pipeline.")],
    data: Annotated[Path, typer.Option(help="File or folder of the data set, as published.")],
    dataset: Annotated[str | None, typer.Option(help="h36m, 3dhp, 3dpw, humaneva, mocap17, motions. Default: recognised.")] = None,
    protocol: Annotated[str | None, typer.Option(help="h36m, p1, p2, p3, 3dhp, 3dpw, humaneva, clips. Default: the data set's.")] = None,
    keypoints: Annotated[str | None, typer.Option(help="Kind of 2D, e.g. detected or true; gt, cpn_ft_h36m_dbb.")] = None,
    subjects: Annotated[str | None, typer.Option(help="Comma-separated, e.g. S9,S11. Default: the test subjects.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Further option of the data set's reader, NAME=VALUE.")] = None,
    camera: Annotated[KnownCamera, typer.Option(help="Is the pipeline told the camera, or only the size?")] = KnownCamera.known,
    lens: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT:FOCAL: see the same motions through another camera.")] = None,
    num_hypotheses: Hypotheses = None,
    steps: Steps = None,
    start: StartOption = None,
    flip: FlipOption = None,
    share_first_step: Share = None,
    quirk: Annotated[list[str] | None, typer.Option(help="Compute as an original repository does. See --list-quirks.")] = None,
    list_quirks: Annotated[
        bool, typer.Option("--list-quirks", callback=_list_quirks, is_eager=True, help="Explain the quirks and exit.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Use every n-th clip.")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads. Default: all; 1 in each of several processes.")] = None,
    max_batch_size: BatchSize = 256,
    per_joint: Annotated[bool, typer.Option("--per-joint", help="Also the error of every joint.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here; - prints it instead of the table.")] = None,
    latex_file: Annotated[Path | None, typer.Option("--latex", help="Write LaTeX tables here; - prints them instead.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep every clip's result in this folder.")] = None,
    save_hypotheses: Annotated[bool, typer.Option("--save-hypotheses", help="Keep the hypotheses there, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder, if there is one.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model on a data set by the protocol of its field, and how well its uncertainty is calibrated."""
    from probpose.processes import started_together

    files = {"json": json_file, "latex": latex_file}
    if list(files.values()).count(STDOUT) > 1:
        raise ValueError("only one of --json and --latex can be printed")
    with started_together() as processes:
        from probpose.data.datasets import load_dataset
        from probpose.evaluation import evaluate as run
        from probpose.evaluation import get_protocol

        def prepare() -> Any:
            for path in files.values():
                if path not in (None, STDOUT) and path.exists() and not overwrite:
                    raise FileExistsError(f"{path} exists; pass --overwrite to replace it")
            options = {"keypoints": keypoints, "subjects": subjects and subjects.split(",")}
            options = {name: value for name, value in options.items() if value is not None} | _parsed(set_ or [])
            clips = load_dataset(data, dataset, **options)
            clips = clips if lens is None else clips.through(_parse_lens(lens))
            get_protocol(protocol or clips.protocol).check_quirks(quirk or [])
            for note in clips.notes:
                typer.echo(f"warning: {note}", err=True)
            return clips.subset(every=every)

        clips = processes.from_main(prepare)
        pipe = load_model(model, own_device(device, processes.local_index))
        sampler = sampler_settings(num_hypotheses, steps, start, flip, share_first_step)
        processes.from_main(lambda: check_sampler(pipe, sampler))
        report = run(
            pipe, clips, protocol, camera=camera.value.replace("-", "_"), quirks=quirk or (), seed=seed, threads=threads,
            max_batch_size=max_batch_size, out=out, save_hypotheses=save_hypotheses, resume=resume, overwrite=overwrite and out is not None,
            model=f"{model} ({fingerprint(pipe)})", **sampler,
        )  # fmt: skip
        if processes.is_main:
            _write(report, files, per_joint, overwrite)


def _write(report: Any, files: dict[str, Path | None], per_joint: bool, overwrite: bool) -> None:
    """The report into its files, and one form of it to the screen."""
    from probpose.files import replacing

    texts = {"json": report.to_json(), "latex": report.to_latex(per_joint=per_joint), "text": report.to_text(per_joint=per_joint)}
    typer.echo(texts[next((kind for kind, path in files.items() if path == STDOUT), "text")])
    for kind, path in files.items():
        if path not in (None, STDOUT):
            with replacing(path, overwrite) as unfinished:
                unfinished.write_text(texts[kind], encoding="utf-8")


def _parsed(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is JSON, or text as it stands."""
    import json

    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--set must be NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _parse_lens(lens: str) -> Any:
    size, _, length = lens.partition(":")
    image_size = parse_size(size)
    try:
        focal = float(length)
    except ValueError:
        raise ValueError(f"--lens must be WIDTHxHEIGHT:FOCAL, e.g. 1920x1080:1480, got {lens!r}") from None
    return pinhole(focal, image_size)
