"""How good is a pipeline on motions it has never seen? The field's protocols over any data set. Names are imported on first use.

from probpose.data import load_dataset
from probpose.evaluation import evaluate

report = evaluate(pipe, load_dataset("data_3d_h36m.npz", keypoints="cpn_ft_h36m_dbb"), "h36m-p1")
print(report.to_text(), report["j_agg"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .protocols import METRICS, PROTOCOLS, QUIRKS, Protocol, get_protocol
    from .report import ClipResult, EvaluationReport, Table
    from .run import evaluate

_HOME = {
    "METRICS": "protocols",
    "PROTOCOLS": "protocols",
    "QUIRKS": "protocols",
    "ClipResult": "report",
    "EvaluationReport": "report",
    "Protocol": "protocols",
    "Table": "report",
    "evaluate": "run",
    "get_protocol": "protocols",
}

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "QUIRKS",
    "ClipResult",
    "EvaluationReport",
    "Protocol",
    "Table",
    "evaluate",
    "get_protocol",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
