"""PoSynDA (github.com/hbing-l/PoSynDA): D3DP's network with low-rank adapters beside its attention layers, and a network that follows it.

A training checkpoint holds both networks, each within torch's DataParallel: `model_pos`, and `model_weight`, whose names begin with
`model_weight.` here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probpose.models import MixSTEModel, PoseRefiner

from .convert_d3dp import convert_d3dp
from .weights import build, count_layers, fill, require, without_prefix

_REFINER = "model_weight."
_ADAPTER = re.compile(r"(?:module\.)?(?:pose_estimator\.)?(.+)\.(lora_down|lora_up|selector)\.weight")
_BLOCKS = {"STEblocks": "spatial_blocks", "TTEblocks": "temporal_blocks"}

# Parts of the refiner's names, and the original's.
_NAMES = {
    "pose_embedding.": "encoder.",
    "proj_out.": "decoder.",
    "blocks.": "transformer_encoder.layers.",
    "attn.qkv.": "self_attn.in_proj_",
    "attn.proj.": "self_attn.out_proj.",
    "mlp.0.": "linear1.",
    "mlp.3.": "linear2.",
}


def convert_posynda(weights: Mapping[str, Any], config: dict[str, Any]) -> MixSTEModel:
    """The denoiser, with its adapter attached as "posynda" if there is one. `lora_scale` in the config is the scale of its updates."""
    scale = config.pop("lora_scale", 1.0)
    network, adapter = {}, {}
    for key, value in weights.items():
        if found := _ADAPTER.fullmatch(str(key)):
            adapter.setdefault(found[1], {})[found[2]] = value
        elif not str(key).startswith(_REFINER):
            network[re.sub(r"\.linear\.(weight|bias)$", r".\1", str(key))] = value
    model = convert_d3dp(network, config)
    if adapter:
        tensors = {f"{_ours(layer)}.{name}": tensor for layer, parts in adapter.items() for name, tensor in _updates(layer, parts).items()}
        model.load_lora_adapter(tensors, adapter_name="posynda", scale=scale)
    return model


def convert_posynda_refiner(weights: Mapping[str, Any], config: dict[str, Any]) -> PoseRefiner:
    """The network that writes sampled poses anew. Its table of positions is computed, not read."""
    own = {key: value for key, value in weights.items() if str(key).startswith(_REFINER)}
    weights = without_prefix(without_prefix(own or weights, _REFINER), "module.")
    weights.pop("pos_encoder.pe", None)
    ranks = {"encoder.weight": 2, "transformer_encoder.layers.0.linear1.weight": 2}
    require(weights, ranks, "PoSynDA refiner")
    (width, _), (hidden_dim, _) = (weights[key].shape for key in ranks)
    sizes = {"width": width, "hidden_dim": hidden_dim, "depth": count_layers(weights, "transformer_encoder.layers.")}
    return fill(build(PoseRefiner, sizes, config), weights, _originals)


def _ours(layer: str) -> str:
    blocks, _, rest = layer.partition(".")
    return f"{_BLOCKS.get(blocks, blocks)}.{rest}"


def _updates(layer: str, parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """A and B of a layer; a selector, the matrix between the two, becomes part of B."""
    down, up, selector = (parts.get(name) for name in ("lora_down", "lora_up", "selector"))
    for name, tensor in (("lora_down", down), ("lora_up", up)):
        if not isinstance(tensor, Tensor) or tensor.ndim != 2 or not tensor.numel():
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{layer}.{name}.weight must be a matrix, got {got}")
    if selector is not None:
        if not isinstance(selector, Tensor) or selector.shape != (up.shape[1], up.shape[1]):
            raise ValueError(f"{layer}.selector.weight must have shape {(up.shape[1], up.shape[1])}")
        up = up @ selector
    return {"lora_A.weight": down, "lora_B.weight": up}


def _originals(name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    for ours, original in _NAMES.items():
        name = name.replace(ours, original)
    return {name: shape}
