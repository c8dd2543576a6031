"""`probpose train`: by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import app, epilog


@app.command(epilog=epilog("probpose train examples/train/tiny.yaml", "probpose train recipe.yaml --resume"))
def train(
    config: Annotated[Path, typer.Argument(help="Recipe (YAML); see examples/train.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the recipe's output_dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where checkpoints exist.")] = False,
) -> None:
    """Train a denoiser by a recipe. Ends with a pipeline folder that `probpose sample --model` takes."""
    from probpose.training import train as run

    typer.echo(f"finished: {run(config, resume=resume, overwrite=overwrite)}")
