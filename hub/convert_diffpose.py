"""DiffPose (github.com/GONGJIA0208/Diffpose and Diffpose_video): a denoiser and a lifter with the same trunk, in two checkpoints.

The video release has the same denoiser and, for a lifter, a MixSTE network, which converts as "d3dp".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from probpose.models import GraFormerDenoiser, GraFormerLifter

from .weights import build, count_layers, fill, require, without_prefix

# The model's modules and the original's, * the number of a layer. Where there are several, they are joined in this order.
_MODULES = {
    "time_embedding.linear_1": ["temb.dense.0"],
    "time_embedding.linear_2": ["temb.dense.1"],
    "trunk.conv_in": ["gconv_input"],
    "trunk.attention_blocks.*.norm_1": ["atten_layers.*.sublayer.0.norm"],
    "trunk.attention_blocks.*.attn.qkv": [f"atten_layers.*.self_attn.linears.{part}" for part in range(3)],
    "trunk.attention_blocks.*.attn.proj": ["atten_layers.*.self_attn.linears.3"],
    "trunk.attention_blocks.*.norm_2": ["atten_layers.*.sublayer.1.norm"],
    "trunk.attention_blocks.*.graph_net": ["atten_layers.*.feed_forward"],
    "trunk.attention_blocks.*.graph_net.linear_1": ["atten_layers.*.feed_forward.gconv1.fc"],
    "trunk.attention_blocks.*.graph_net.linear_2": ["atten_layers.*.feed_forward.gconv2.fc"],
    "trunk.graph_blocks.*.unit_1.conv": ["gconv_layers.*.gconv1.gconv"],
    "trunk.graph_blocks.*.time_proj": ["gconv_layers.*.temb_proj"],
    "trunk.graph_blocks.*.unit_2.conv": ["gconv_layers.*.gconv2.gconv"],
    "trunk.conv_out": ["gconv_output"],
}
_NORM = {"weight": "a_2", "bias": "b_2"}

# The lifter has them too, and never uses them.
_TIME_MLP = [f"temb.dense.{layer}.{kind}" for layer in range(2) for kind in ("weight", "bias")]

_CHANNELS = {"diffpose": (5, 5), "diffpose_lifter": (2, 3)}


def convert_diffpose(weights: Mapping[str, Any], config: dict[str, Any]) -> GraFormerDenoiser:
    """The denoiser of both releases. Context features, if the config asks for them, begin without effect."""
    weights, sizes = _recognise(weights, "diffpose")
    return fill(build(GraFormerDenoiser, sizes, config), weights, _originals)


def convert_diffpose_lifter(weights: Mapping[str, Any], config: dict[str, Any]) -> GraFormerLifter:
    """The lifter of single frames."""
    weights, sizes = _recognise(weights, "diffpose_lifter")
    used = {key: value for key, value in weights.items() if key not in _TIME_MLP}
    return fill(build(GraFormerLifter, sizes, config), used, _originals)


def lifter_system(weights: Mapping[str, Any]) -> str:
    """What to convert a lifter as: "diffpose_lifter", or "d3dp" for the MixSTE network of the video release."""
    return "diffpose_lifter" if any(key.removeprefix("module.").startswith("gconv_") for key in map(str, weights)) else "d3dp"


def _recognise(weights: Mapping[str, Any], system: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Weights without prefix, and the config fields that their shapes tell."""
    weights = without_prefix(weights, "module.")
    ranks = {"gconv_input.weight": 4, "gconv_output.weight": 4, "atten_layers.0.feed_forward.A_hat": 2}
    require(weights, ranks, "DiffPose")
    found = "diffpose" if any(".temb_proj." in key for key in weights) else "diffpose_lifter"
    if found != system:
        network = "denoiser" if found == "diffpose" else "lifter"
        raise ValueError(f"these are the weights of DiffPose's {network}: convert them as {found!r}")
    conv_in, conv_out, adjacency = (weights[key].shape for key in ranks)
    channels = (conv_in[2], conv_out[3])
    if channels != _CHANNELS[system]:
        raise ValueError(f"{system} has {_CHANNELS[system]} channels in and out, got weights for {channels}")
    return weights, {
        "num_joints": adjacency[0],
        "width": conv_in[3],
        "depth": count_layers(weights, "gconv_layers."),
        "chebyshev_order": conv_in[0] - 1,
    }


def _originals(name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    """The original tensors that one of the model's is made of."""
    module, _, kind = name.rpartition(".")
    layer = next((part for part in module.split(".") if part.isdigit()), "")
    sources = _MODULES.get(module.replace(f".{layer}.", ".*."), [])
    if kind == "adjacency":
        kind = "A_hat"
    elif ".norm_" in module:
        kind = _NORM[kind]
    elif "conv" in module:
        shape = (shape[0], 1, *shape[1:]) if kind == "weight" else (1, 1, *shape)
    return {f"{source.replace('*', layer)}.{kind}": (shape[0] // len(sources), *shape[1:]) for source in sources}
