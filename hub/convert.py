"""Weights of original research releases, poured into probpose's models.

`load_original_state_dict` opens a published file without running anything that is pickled in it; `convert_original`
checks the weights against the model they claim to be, renames them and returns the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .convert_d3dp import convert_d3dp
from .convert_diffpose import convert_diffpose, convert_diffpose_lifter
from .convert_platypose import convert_platypose
from .convert_posynda import convert_posynda, convert_posynda_refiner

CONVERTERS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], ModelMixin]] = {
    "d3dp": convert_d3dp,
    "diffpose": convert_diffpose,
    "diffpose_lifter": convert_diffpose_lifter,
    "platypose": convert_platypose,
    "posynda": convert_posynda,
    "posynda_refiner": convert_posynda_refiner,
}


def convert_original(system: str, state_dict: Mapping[str, Any] | Sequence[Any], **config: Any) -> ModelMixin:
    """Build a probpose model with the weights of an original checkpoint.

    Args:
        system: which release the weights are of; one of `CONVERTERS`.
        state_dict: the weights in the original's names, or the whole checkpoint: a dictionary that holds them under
            `model_pos`, or a list that begins with them.
        config: fields of the model's config. Sizes are read off the weights; what shapes do not tell (the number of
            attention heads, the skeleton, ...) is taken from here, and from the published defaults otherwise.

    Returns:
        The model in eval mode, float32. PoSynDA's has its low-rank adapter attached, which `fuse_lora()` puts into the
        weights and `disable_adapters()` turns off.

    Raises:
        ValueError: an unknown system or config field, or weights that do not fit the model; names every key that is
            missing, superfluous or of the wrong shape.
    """
    if system not in CONVERTERS:
        raise ValueError(f"system must be one of {sorted(CONVERTERS)}, got {system!r}")
    return CONVERTERS[system](_weights_of(state_dict, "the checkpoint"), config)


def load_original_state_dict(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """Read original weights from a `.safetensors` file or from a PyTorch `.bin`, `.pt`, `.pth`, `.ckpt` or `.tar` file.

    Nothing that is pickled in a file is ever run. NumPy arrays and random states, which published training checkpoints
    carry along, are skipped over.

    Args:
        path: the file.
        ema: take the moving average of the weights, which DiffPose's checkpoints carry along, in place of the weights
            themselves, which are the published ones.

    Returns:
        The weights; those under `model_pos`, or those that a list begins with, where the file holds a whole training
        checkpoint. Those under `model_weight`, PoSynDA's second network, come along with that before their names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, a damaged one, one with pickled objects that are not weights, or one
            without a moving average that was asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint file: {path}")
    if path.suffix not in (".safetensors", *_PICKLED):
        raise ValueError(f"a checkpoint must be one of .safetensors, {', '.join(_PICKLED)}, got {path}")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
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
    return dict(_weights_of(content, str(path), ema))


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


def _weights_of(checkpoint: Any, source: str, ema: bool = False) -> Mapping[str, Any]:
    """The weights within a training checkpoint; weights alone are returned as they are."""
    # DiffPose's list: weights, the optimiser's state, epoch, step and, if one was kept, the moving average.
    parts = checkpoint if isinstance(checkpoint, (list, tuple)) else [checkpoint]
    if not parts or not isinstance(parts[0], Mapping):
        raise ValueError(f"{source} must hold a state dict, or a list that begins with one, got a {type(checkpoint).__name__}")
    if ema:
        if len(parts) < 5 or not isinstance(parts[4], Mapping):
            raise ValueError(f"{source} holds no moving average of the weights")
        return parts[4]
    weights, second = parts[0].get("model_pos"), parts[0].get("model_weight")
    if isinstance(weights, Mapping) and isinstance(second, Mapping):
        return {**weights, **{f"model_weight.{key}": value for key, value in second.items()}}
    return weights if isinstance(weights, Mapping) else parts[0]
