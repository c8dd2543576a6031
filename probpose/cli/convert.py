"""`probpose convert`: original research checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from .options import Overwrite, app, epilog


class Parts(NamedTuple):
    """What a system's checkpoint is completed with: names in probpose.pipelines and probpose.schedulers; None for a network alone."""

    pipeline: str | None
    scheduler: str | None
    needs_lifter: bool = False


PARTS = {
    "d3dp": Parts("D3DPPipeline", "D3DPScheduler"),
    "diffpose": Parts("DiffPosePipeline", "GMMScheduler", needs_lifter=True),
    "platypose": Parts("PlatyposePipeline", "EnergyGuidedDDIMScheduler"),
    "posynda": Parts("PoSynDAPipeline", "D3DPScheduler"),
    "posynda_refiner": Parts(None, None),
}


@app.command(
    epilog=epilog(
        "probpose convert d3dp h36m_best_epoch.bin models/d3dp-h36m",
        "probpose convert d3dp in_the_wild_best_epoch.bin models/wild --set input_skeleton=coco_17",
        "probpose convert diffpose diffpose_uvxyz_cpn.pth models/diffpose --lifter gcn_xyz_cpn.pth",
        "probpose convert diffpose diffpose_video_uvxyz_cpn.pth models/diffpose-video --lifter mixste_cpn_243f.bin",
        "probpose convert platypose MDM_H36m_256_frames_50_steps_dynamic.pt models/platypose-h36m",
        "probpose convert posynda best_epoch.bin models/posynda --set skeleton=mpi_inf_3dhp_17",
        "probpose convert posynda_refiner best_epoch.bin models/posynda-refiner",
    )
)
def convert(
    system: Annotated[str, typer.Argument(help=f"Published system: {', '.join(PARTS)}.")],
    checkpoint: Annotated[Path, typer.Argument(help="Original weights: .safetensors, .bin, .pt, .pth. Pickled code is never run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pipeline; of posynda_refiner, for the network.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the config that the weights do not tell.")] = None,
    lifter: Annotated[Path | None, typer.Option(help="diffpose: original weights of the lifter, single frames or MixSTE.")] = None,
    lifter_settings: Annotated[list[str] | None, typer.Option("--set-lifter", help="As --set, for the lifter.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the moving average that DiffPose's checkpoints carry along.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn an original research checkpoint into a pipeline folder. Low-rank adapters stand beside the pipeline that they are for."""
    from probpose import pipelines, schedulers
    from probpose.files import replacing
    from probpose.hub import convert_original, load_original_state_dict

    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; pass --overwrite to replace it")
    if system == "diffpose_lifter":
        raise ValueError("a lifter is no pipeline: pass it by --lifter, with the denoiser's checkpoint: probpose convert diffpose")
    if system not in PARTS:
        raise ValueError(f"the system must be one of {', '.join(PARTS)}, got {system!r}")
    parts = PARTS[system]
    if parts.needs_lifter and lifter is None:
        raise ValueError(f"{system} works on a lifter's poses: pass the lifter's checkpoint by --lifter")
    if not parts.needs_lifter and (lifter is not None or lifter_settings):
        raise ValueError(f"{system} has no lifter: --lifter and --set-lifter are for other systems")

    network = convert_original(system, load_original_state_dict(checkpoint, ema=ema), **_config(settings, "--set"))
    out.parent.mkdir(parents=True, exist_ok=True)
    if parts.pipeline is None:
        with replacing(out, overwrite) as unfinished:
            network.save_pretrained(unfinished)
        typer.echo(_summary(out, network))
        return
    components = {"denoiser": network, "scheduler": getattr(schedulers, parts.scheduler)()}
    if lifter is not None:
        components["lifter"] = _convert_lifter(lifter, _config(lifter_settings, "--set-lifter"))
    pipe = getattr(pipelines, parts.pipeline)(**components)
    adapters = pipe.get_list_adapters()
    with replacing(out, overwrite) as unfinished:
        if adapters:
            pipe.save_lora_weights(unfinished)
            pipe.unload_lora_weights()
        pipe.save_pretrained(unfinished)
    for name in ("denoiser", "lifter"):
        if name in components:
            typer.echo(_summary(out / name, components[name]))
    if adapters:
        typer.echo(f"{out}: adapter of the denoiser, which pipe.load_lora_weights({str(out)!r}) attaches")


def _summary(folder: Path, network: Any) -> str:
    return f"{folder}: {type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters"


def _config(settings: list[str] | None, option: str) -> dict[str, Any]:
    config = {}
    for setting in settings or []:
        field, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"{option} takes FIELD=VALUE, got {setting!r}")
        try:
            config[field] = json.loads(value)
        except json.JSONDecodeError:
            config[field] = value
    return config


def _convert_lifter(path: Path, config: dict[str, Any]) -> Any:
    from probpose.hub import convert_original, load_original_state_dict
    from probpose.hub.convert_diffpose import lifter_system

    weights = load_original_state_dict(path)
    model = convert_original(lifter_system(weights), weights, **config)
    if model.config.get("in_channels", 2) != 2:
        raise ValueError(f"--lifter must be a network from 2D to 3D alone, but {path} holds a denoiser")
    return model
