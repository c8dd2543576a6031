"""`probpose calibrate`: make a model's uncertainty mean something."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Overwrite, app, epilog, load_model


class Mode(str, Enum):
    """What a recalibration adapts."""

    scale = "scale"
    joint = "joint"
    level = "level"
    radial = "radial"


@app.command(
    epilog=epilog(
        "probpose calibrate runs/mine/checkpoint-9000/pipeline recipe.yaml --out models/mine",
        "probpose calibrate d3dp-mocap17 examples/calibrate/d3dp-mocap17.yaml --out models/d3dp --windows 2048",
        "probpose calibrate platypose-mocap17 examples/calibrate/platypose-mocap17.yaml --out models/p --lengths 1,16,64 -k 50",
    )
)
def calibrate(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or Hub id of a pipeline.")],
    recipe: Annotated[Path, typer.Argument(help="Recipe that it was trained by, or its data section: which clips were kept out.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the calibrated pipeline.")],
    windows: Annotated[int, typer.Option(min=64, help="Windows drawn from the clips kept out.")] = 1024,
    mode: Annotated[Mode, typer.Option(help="One factor, one per joint, a table over noise levels, or that and the tails.")] = Mode.radial,
    coverage: Annotated[float, typer.Option(min=0.01, max=0.999, help="Share of the cases within the conformal radius.")] = 0.9,
    num_hypotheses: Annotated[int | None, typer.Option("--num-hypotheses", "-k", help="As many as will be used.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Clip lengths with tables of their own, e.g. 1,16,64. Default: one for all.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = "auto",
    fast: Annotated[bool, typer.Option("--fast", help="Sample under bfloat16 autocast.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a model's uncertainty on motions kept out of its training.

    Writes the model with a calibrator into the output folder, and reliability.png and calibration.json beside its parts.
    """
    import json

    from probpose.files import replacing
    from probpose.training import calibrate as run
    from probpose.training import load_data_section
    from probpose.training.saving import save_changed
    from probpose.visualization import plot_reliability

    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; pass --overwrite to replace it")
    pipe = load_model(model, device)
    pipe.set_progress_bar_config(disable=True)
    report = run(
        pipe, load_data_section(recipe), windows=windows, mode=mode.value, coverage=coverage, num_hypotheses=num_hypotheses,
        lengths=_whole_numbers(lengths), seed=seed, mixed_precision=fast,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, overwrite) as unfinished:
        save_changed(pipe, ("aggregator", "calibrator"), unfinished)
        plot_reliability(report.curves, path=unfinished / "reliability.png", title="Clips kept out of training")
        (unfinished / "calibration.json").write_text(json.dumps(report.to_dict(), indent=2))
    typer.echo(report.to_text())
    typer.echo(f"finished: {out}")


def _whole_numbers(listed: str | None) -> list[int] | None:
    try:
        return None if listed is None else [int(number) for number in listed.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--lengths must be whole numbers with commas between, e.g. 1,16,64, got {listed!r}") from None
