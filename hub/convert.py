"""Weights of original research releases, poured into probpose's models.

`load_original_state_dict` opens a published file without running anything that is pickled in it; `convert_original`
checks the weights against the model they claim to be, renames them and returns the model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from probpose.models import MixSTEModel
from probpose.schedulers import D3DPScheduler
from probpose.skeletons import get_skeleton


def convert_original(system: str, state_dict: Mapping[str, Any], **config: Any) -> ModelMixin:
    """Build a probpose model with the weights of an original checkpoint.

    Args:
        system: which release the weights are of; one of `CONVERTERS`.
        state_dict: the weights, or the whole checkpoint that holds them under `model_pos`, in the original's names.
        config: fields of the model's config. Sizes are read off the weights; what shapes do not tell (the number of
            attention heads, the skeleton, ...) is taken from here, and from the published defaults otherwise.

    Returns:
        The model in eval mode, float32.

    Raises:
        ValueError: an unknown system or config field, or weights that do not fit the model; names every key that is
            missing, superfluous or of the wrong shape.
    """
    if system not in CONVERTERS:
        raise ValueError(f"system must be one of {sorted(CONVERTERS)}, got {system!r}")
    return CONVERTERS[system](_weights_of(state_dict), config)


def load_original_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read original weights from a `.safetensors` file or from a PyTorch `.bin`, `.pt`, `.pth`, `.ckpt` or `.tar` file.

    Nothing that is pickled in a file is ever run. NumPy arrays and random states, which published training checkpoints
    carry along, are skipped over.

    Returns:
        The weights; those under `model_pos` where the file holds a whole training checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, a damaged one, or one with pickled objects that are not weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint file: {path}")
    if path.suffix not in (".safetensors", *_PICKLED):
        raise ValueError(f"a checkpoint must be one of .safetensors, {', '.join(_PICKLED)}, got {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_SKIPPED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{path} holds a pickled {refused[1]}, which only running code from the file could restore. If you "
                "trust its author, open it once with torch.load(..., weights_only=False) and keep the weights alone: "
                "safetensors.torch.save_file(checkpoint['model_pos'], 'weights.safetensors')"
            ) from None
        raise ValueError(f"{path} is damaged or not a checkpoint: {type(error).__name__}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state dict, got a {type(content).__name__}")
    return dict(_weights_of(content))


_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".tar")


class _Skipped:
    """Stands in for a pickled NumPy object: takes whatever the file says about it and does nothing with it."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# The names by which NumPy 1 and 2 pickle arrays, scalars and random states. NumPy's own functions are not let in: they
# were not written for hostile input.
_SKIPPED = [
    type(name, (_Skipped,), {"__module__": module, "__qualname__": name})
    for module, name in (
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.random", "__RandomState_ctor"),
        ("numpy.random._pickle", "__randomstate_ctor"),
        ("numpy.random._pickle", "__bit_generator_ctor"),
        ("numpy.random._mt19937", "MT19937"),
    )
]


def _weights_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights within a training checkpoint; weights alone are returned as they are."""
    weights = checkpoint.get("model_pos")
    return weights if isinstance(weights, Mapping) else checkpoint


def _fill(model: ModelMixin, weights: Mapping[str, Any], original_names: Mapping[str, str]) -> ModelMixin:
    """Load original weights; `original_names` maps the leading part of the model's names to the original's."""

    def original(name: str) -> str:
        ours = next(part for part in original_names if name == part or name.startswith(f"{part}."))
        return original_names[ours] + name[len(ours) :]

    expected = {original(name): (name, tensor) for name, tensor in model.state_dict().items()}
    problems = _compare({key: tensor for key, (_, tensor) in expected.items()}, weights)
    if problems:
        raise ValueError(f"the weights do not fit {type(model).__name__}: {problems}")
    model.load_state_dict({name: weights[key] for key, (name, _) in expected.items()})
    return model.eval()


def _compare(expected: Mapping[str, Tensor], weights: Mapping[str, Any]) -> str:
    """What is wrong with the weights, in words; empty if nothing is."""
    shapes = {key: tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__ for key, w in weights.items()}
    wrong = [
        f"{key} is {shapes[key]}, not {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in shapes and shapes[key] != tuple(tensor.shape)
    ]
    findings = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(map(str, shapes.keys() - expected.keys())),
        "wrong shape": wrong,
    }
    return "; ".join(f"{finding}: {', '.join(keys)}" for finding, keys in findings.items() if keys)


def _build(model_class: type[ModelMixin], inferred: Mapping[str, Any], config: Mapping[str, Any]) -> ModelMixin:
    """A model from inferred sizes and the caller's config; the caller wins, and `_fill` names any contradiction."""
    known = set(inspect.signature(model_class.__init__).parameters) - {"self"}
    unknown = sorted(config.keys() - known)
    if unknown:
        raise ValueError(f"{model_class.__name__} has no config field {unknown}; its fields are {sorted(known)}")
    return model_class(**{**inferred, **config})


# D3DP (github.com/paTRICK-swk/D3DP): a MixSTE network within a diffusion module, all within torch's DataParallel.

_D3DP_NAMES = {
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
_D3DP_BUFFERS = (
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


def _convert_d3dp(weights: Mapping[str, Any], config: dict[str, Any]) -> MixSTEModel:
    """D3DP's denoiser, and the plain MixSTE lifter, whose names are the same without `pose_estimator.`."""
    weights = {str(key).removeprefix("module."): value for key, value in weights.items()}
    buffers = {name: weights.pop(name) for name in _D3DP_BUFFERS if name in weights}
    _check_d3dp_schedule(buffers)
    weights = {key.removeprefix("pose_estimator."): value for key, value in weights.items()}
    if "skeleton" in config:
        config = {"root_index": get_skeleton(config["skeleton"]).root or 0, **config}
    return _fill(_build(MixSTEModel, _infer_mixste(weights), config), weights, _D3DP_NAMES)


def _check_d3dp_schedule(buffers: Mapping[str, Any]) -> None:
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


def _infer_mixste(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields that the shapes of original MixSTE weights tell."""
    ranks = {
        "Spatial_patch_to_embedding.weight": 2,
        "Spatial_pos_embed": 3,
        "Temporal_pos_embed": 3,
        "STEblocks.0.mlp.fc1.weight": 2,
    }
    unusable = [key for key, rank in ranks.items() if getattr(weights.get(key), "ndim", None) != rank]
    if unusable:
        raise ValueError(f"these are no D3DP or MixSTE weights: missing or of the wrong shape: {', '.join(unusable)}")
    _, joints, width = weights["Spatial_pos_embed"].shape
    layers = {key.split(".")[1] for key in weights if key.startswith("STEblocks.")}
    return {
        "num_frames": weights["Temporal_pos_embed"].shape[1],
        "num_joints": joints,
        "in_channels": weights["Spatial_patch_to_embedding.weight"].shape[1],
        "width": width,
        "depth": len(layers),
        "mlp_ratio": weights["STEblocks.0.mlp.fc1.weight"].shape[0] / width,
        "use_timestep": any(key.startswith("time_mlp.") for key in weights),
        "qkv_bias": "STEblocks.0.attn.qkv.bias" in weights,
    }


CONVERTERS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], ModelMixin]] = {"d3dp": _convert_d3dp}
