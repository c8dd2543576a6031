"""D3DP (github.com/paTRICK-swk/D3DP): a MixSTE network within a diffusion module, all within torch's DataParallel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probpose.models import MixSTEModel
from probpose.schedulers import D3DPScheduler

from .weights import build, count_layers, fill, require, without_prefix

# The leading part of the model's names, and the original's.
_NAMES = {
    "joint_embedding": "Spatial_patch_to_embedding",
    "spatial_position": "Spatial_pos_embed",
    "temporal_position": "Temporal_pos_embed",
    "time_embedding.linear_1": "time_mlp.1",
    "time_embedding.linear_2": "time_mlp.3",
    "spatial_blocks": "STEblocks",
    "temporal_blocks": "TTEblocks",
    "spatial_norm": "Spatial_norm",
    "temporal_norm": "Temporal_norm",
    "norm_out": "head.0",
    "proj_out": "head.1",
}

# Buffers of the diffusion module, all functions of the first two.
_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def convert_d3dp(weights: Mapping[str, Any], config: dict[str, Any]) -> MixSTEModel:
    """D3DP's denoiser, and the plain MixSTE lifter, whose names are the same without `pose_estimator.`."""
    weights = without_prefix(weights, "module.")
    buffers = {name: weights.pop(name) for name in _BUFFERS if name in weights}
    _check_schedule(buffers)
    weights = without_prefix(weights, "pose_estimator.")
    return fill(build(MixSTEModel, _sizes(weights), config), weights, _originals)


def _originals(name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    ours = next(part for part in _NAMES if name == part or name.startswith(f"{part}."))
    return {_NAMES[ours] + name[len(ours) :]: shape}


def _check_schedule(buffers: Mapping[str, Any]) -> None:
    """Raise ValueError unless the buffers are those of `D3DPScheduler()`; weights without buffers pass."""
    scheduler = D3DPScheduler()
    for name, expected in (("betas", scheduler.betas), ("alphas_cumprod", scheduler.alphas_cumprod)):
        found = buffers.get(name, expected)
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name} must hold the {len(scheduler)} steps of D3DPScheduler, got {got}")
        difference = (found.cpu().double() - expected).abs().max().item()
        if not difference <= 1e-12:
            raise ValueError(f"{name} must be the schedule of D3DPScheduler, got one that differs by {difference:.3g}")


def _sizes(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields that the shapes of original MixSTE weights tell."""
    ranks = {
        "Spatial_patch_to_embedding.weight": 2,
        "Spatial_pos_embed": 3,
        "Temporal_pos_embed": 3,
        "STEblocks.0.mlp.fc1.weight": 2,
    }
    require(weights, ranks, "D3DP or MixSTE")
    _, joints, width = weights["Spatial_pos_embed"].shape
    return {
        "num_frames": weights["Temporal_pos_embed"].shape[1],
        "num_joints": joints,
        "in_channels": weights["Spatial_patch_to_embedding.weight"].shape[1],
        "width": width,
        "depth": count_layers(weights, "STEblocks."),
        "mlp_ratio": weights["STEblocks.0.mlp.fc1.weight"].shape[0] / width,
        "use_timestep": any(key.startswith("time_mlp.") for key in weights),
        "qkv_bias": "STEblocks.0.attn.qkv.bias" in weights,
    }
