"""Converters of original checkpoints and mixtures, the bundled models, and the way to the Hugging Face Hub and back.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CONVERTERS": "convert",
    "bundled_model": "bundled",
    "check_repository": "push",
    "convert_original": "convert",
    "download": "client",
    "list_bundled_models": "bundled",
    "load_original_mixtures": "mixtures",
    "load_original_state_dict": "convert",
    "make_card": "card",
    "push_folder": "push",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
