"""Platypose (github.com/sinzlab/platypose): the motion prior, a transformer encoder of torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probpose.models import MotionPriorModel
from probpose.models.motion_prior import sinusoids

from .weights import build, count_layers, fill, require, without_prefix

# Parts of the model's names, and the original's.
_NAMES = {
    "pose_embedding.": "input_process.poseEmbedding.",
    "time_embedding.": "embed_timestep.time_embed.",
    "blocks.": "seqTransEncoder.layers.",
    "attn.qkv.": "self_attn.in_proj_",
    "attn.proj.": "self_attn.out_proj.",
    "mlp.fc1.": "linear1.",
    "mlp.fc2.": "linear2.",
    "proj_out.": "output_process.poseFinal.",
}

# Buffers that hold one table twice: for frames and for timesteps.
_TABLES = ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")

# What shapes do not tell.
_PUBLISHED = {"num_frames": 256, "num_attention_heads": 4, "axes": "world", "trajectory": "absolute", "fps": 50.0}


def convert_platypose(weights: Mapping[str, Any], config: dict[str, Any]) -> MotionPriorModel:
    """The motion prior. Its skeleton encoder, which nothing calls, is left behind."""
    weights = without_prefix(weights, "module.")
    weights = {key: value for key, value in weights.items() if not key.startswith("skeleton_encoder.")}
    tables = {name: weights.pop(name) for name in _TABLES if name in weights}
    model = fill(build(MotionPriorModel, {**_PUBLISHED, **_sizes(weights)}, config), weights, _originals)
    _check_tables(tables, model.config.width)
    return model


def _sizes(weights: Mapping[str, Any]) -> dict[str, Any]:
    ranks = {"input_process.poseEmbedding.weight": 2, "seqTransEncoder.layers.0.linear1.weight": 2}
    require(weights, ranks, "Platypose")
    (width, columns), (hidden, _) = (weights[key].shape for key in ranks)
    return {
        "num_joints": columns // 3,
        "width": width,
        "depth": count_layers(weights, "seqTransEncoder.layers."),
        "mlp_ratio": hidden / width,
    }


def _check_tables(tables: Mapping[str, Any], width: int) -> None:
    """Raise ValueError unless the tables hold what the model computes; weights without tables pass."""
    for name, table in tables.items():
        shape = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
        if shape[1:] != (1, width) or not shape[0]:
            raise ValueError(f"{name} must have shape (length, 1, {width}), got {shape}")
        difference = (table[:, 0].cpu() - sinusoids(torch.arange(len(table)), width)).abs().max().item()
        if not difference <= 1e-3:  # the last bit of a frequency, times thousands of positions
            raise ValueError(f"{name} must be the sinusoids of MotionPriorModel, got a table that differs by {difference:.3g}")


def _originals(name: str, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    for ours, original in _NAMES.items():
        name = name.replace(ours, original)
    return {name: shape}
