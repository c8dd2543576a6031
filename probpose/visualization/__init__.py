"""Pictures of pose distributions: static figures for papers, a page to turn and play, the recording with the motion drawn into it, and a
recording for the Rerun viewer. Names are imported on first use, drawing libraries when a picture is drawn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probpose.visualization.adaptation import plot_adaptation
    from probpose.visualization.figure import plot_hypotheses
    from probpose.visualization.html import write_html
    from probpose.visualization.overlay import write_overlay
    from probpose.visualization.person import draw_person
    from probpose.visualization.recording import write_rerun
    from probpose.visualization.reliability import plot_reliability

_HOMES = {
    "draw_person": "person",
    "plot_adaptation": "adaptation",
    "plot_hypotheses": "figure",
    "plot_reliability": "reliability",
    "write_html": "html",
    "write_overlay": "overlay",
    "write_rerun": "recording",
}

__all__ = ["draw_person", "plot_adaptation", "plot_hypotheses", "plot_reliability", "write_html", "write_overlay", "write_rerun"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
