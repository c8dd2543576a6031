"""Converters of original checkpoints and mixtures, and the bundled models. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CONVERTERS": "convert",
    "bundled_model": "bundled",
    "convert_original": "convert",
    "list_bundled_models": "bundled",
    "load_original_mixtures": "mixtures",
    "load_original_state_dict": "convert",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
