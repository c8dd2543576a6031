"""What every converter needs: recognise original weights, build the model they ask for, and pour them in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from probpose.skeletons import get_skeleton


def without_prefix(weights: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    return {str(key).removeprefix(prefix): value for key, value in weights.items()}


def require(weights: Mapping[str, Any], ranks: Mapping[str, int], system: str) -> None:
    """Raise ValueError unless the weights have the tensors that tell the sizes of a system's model, of these ranks and not empty."""

    def usable(value: Any, rank: int) -> bool:
        return isinstance(value, Tensor) and value.ndim == rank and value.numel() > 0

    unusable = [key for key, rank in ranks.items() if not usable(weights.get(key), rank)]
    if unusable:
        raise ValueError(f"these are no {system} weights: missing or of the wrong shape: {', '.join(unusable)}")


def count_layers(weights: Mapping[str, Any], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def build(model_class: type[ModelMixin], inferred: Mapping[str, Any], config: Mapping[str, Any]) -> ModelMixin:
    """A model from inferred sizes and the caller's config; the caller wins, and `fill` names any contradiction."""
    known = set(inspect.signature(model_class.__init__).parameters) - {"self"}
    unknown = sorted(config.keys() - known)
    if unknown:
        raise ValueError(f"{model_class.__name__} has no config field {unknown}; its fields are {sorted(known)}")
    if "skeleton" in config and "root_index" in known:
        config = {"root_index": get_skeleton(config["skeleton"]).root or 0, **config}
    return model_class(**{**inferred, **config})


def fill(
    model: ModelMixin, weights: Mapping[str, Any], originals: Callable[[str, torch.Size], Mapping[str, tuple[int, ...]]]
) -> ModelMixin:
    """Load original weights.

    Args:
        model: of the right size.
        weights: by the original's names; all of them must find a place.
        originals: for the name and shape of one of the model's tensors, the original tensors it is made of and their
            shapes. They are joined along the first axis and reshaped. A tensor made of none stays as it is.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: names every key that is missing, unexpected or of the wrong shape.
    """
    ours = model.state_dict()
    sources = {name: originals(name, tensor.shape) for name, tensor in ours.items()}
    problems = _compare({key: tuple(shape) for source in sources.values() for key, shape in source.items()}, weights)
    if problems:
        raise ValueError(f"the weights do not fit {type(model).__name__}: {problems}")
    joined = {name: torch.cat([weights[key] for key in source]).reshape(ours[name].shape) for name, source in sources.items() if source}
    model.load_state_dict(ours | joined)
    return model.eval()


def _compare(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Any]) -> str:
    """What is wrong with the weights, in words; empty if nothing is."""
    shapes = {key: tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__ for key, w in weights.items()}
    findings = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "wrong shape": [
            f"{key} is {shapes[key]}, not {shape}" for key, shape in expected.items() if key in shapes and shapes[key] != shape
        ],
    }
    return "; ".join(f"{finding}: {', '.join(keys)}" for finding, keys in findings.items() if keys)
