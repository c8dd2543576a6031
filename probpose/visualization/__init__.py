"""Pictures of pose distributions: a static figure for papers and an interactive page to turn and play.

Matplotlib and Plotly are loaded when a picture is drawn, not when this package is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probpose.visualization.adaptation import plot_adaptation
    from probpose.visualization.figure import plot_hypotheses
    from probpose.visualization.html import write_html
    from probpose.visualization.reliability import plot_reliability

__all__ = ["plot_adaptation", "plot_hypotheses", "plot_reliability", "write_html"]

_HOMES = {"plot_adaptation": "adaptation", "plot_hypotheses": "figure", "plot_reliability": "reliability", "write_html": "html"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
