"""`probpose convert`: original research checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite, app, epilog


@app.command(
    epilog=epilog(
        "probpose convert d3dp h36m_best_epoch.bin models/d3dp-h36m",
        "probpose convert d3dp in_the_wild_best_epoch.bin models/wild --set input_skeleton=coco_17",
    )
)
def convert(
    system: Annotated[str, typer.Argument(help="Published system, e.g. d3dp.")],
    checkpoint: Annotated[Path, typer.Argument(help="Original weights: .safetensors, .bin, .pt, .pth. Pickled code is never run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pipeline.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the config that the weights do not tell.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn an original research checkpoint into a pipeline folder."""
    from probpose.files import replacing
    from probpose.hub import convert_original, load_original_state_dict
    from probpose.pipelines import D3DPPipeline
    from probpose.schedulers import D3DPScheduler

    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; pass --overwrite to replace it")
    config = {}
    for setting in settings or []:
        field, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set takes FIELD=VALUE, got {setting!r}")
        try:
            config[field] = json.loads(value)
        except json.JSONDecodeError:
            config[field] = value
    denoiser = convert_original(system, load_original_state_dict(checkpoint), **config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, overwrite) as unfinished:
        D3DPPipeline(denoiser=denoiser, scheduler=D3DPScheduler()).save_pretrained(unfinished)
    typer.echo(f"{out}: {type(denoiser).__name__}, {sum(p.numel() for p in denoiser.parameters()):,} parameters")
