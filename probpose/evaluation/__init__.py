"""How good is a pipeline on motions it has never seen? Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benchmark import METRICS, BenchmarkClip, BenchmarkClips, ClipResult, EvaluationReport, evaluate

__all__ = ["METRICS", "BenchmarkClip", "BenchmarkClips", "ClipResult", "EvaluationReport", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.benchmark"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
