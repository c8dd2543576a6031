"""A reliability diagram: how often the truth was covered against how often it should have been."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probpose.calibration import ece_of_curve
from probpose.files import replacing
from probpose.visualization.common import COLOURS, as_array
from probpose.visualization.figure import FAINT, INK, SUFFIXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More of Okabe & Ito's palette, which the figures of poses begin.
LINES = (COLOURS["right"], COLOURS["left"], "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OVER_CONFIDENT, UNDER_CONFIDENT = "#FAF0E8", "#EDF3F8"
BINS = 10


def plot_reliability(
    curves: Any,
    quantiles: Any = None,
    path: str | Path | None = None,
    joint_names: Sequence[str] | None = None,
    title: str | None = None,
    overwrite: bool = False,
    pit: Any = None,
) -> "Figure":
    """Draws coverage curves: a thin line per joint, a bold one for the median joint, whose distance from the diagonal is the ECE.

    Below the diagonal the hypotheses are over-confident: the truth lies among them less often than they claim.

    Args:
        curves: `(quantiles, joints)` of `probpose.calibration.coverage_curve`, or a dictionary of up to six of them by name, for instance
            `{"raw": ..., "recalibrated": ...}`.
        quantiles: the curves' levels in 0..1; 0, 0.05, ..., 1 by default.
        path: where to save, as PNG, PDF or SVG by its suffix; not saved without it.
        joint_names: names of the joints; each curve's joint farthest from the diagonal is then dotted and named.
        title: headline of the figure.
        overwrite: whether an existing file may be replaced.
        pit: values in 0..1 of `probpose.calibration.pit`, of any shape, NaN left out; or a dictionary of them by the curves' names. They
            get a histogram below, which is flat for a calibrated sampler.

    Returns:
        The Matplotlib figure. It belongs to no pyplot session, so nothing needs to be closed.

    Raises:
        ValueError: if a shape, a value outside 0..1, a name or the suffix of `path` does not fit.
        FileExistsError: if `path` exists and `overwrite` is false.
        FileNotFoundError: if the folder of `path` does not exist.
        ImportError: if Matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_reliability needs Matplotlib: pip install probpose") from error

    levels = np.arange(21) / 20 if quantiles is None else _within_one(as_array(quantiles, "quantiles", (None,)), "quantiles")
    if (np.diff(levels) <= 0).any():
        raise ValueError(f"`quantiles` must rise, not {levels.tolist()}")
    curves = _by_name(curves, "curves")
    if not 1 <= len(curves) <= len(LINES):
        raise ValueError(f"`curves` must be one to {len(LINES)} curves, not {len(curves)}")
    curves = {name: _within_one(as_array(curve, f"curves[{name!r}]", (len(levels), None)), "curves") for name, curve in curves.items()}
    for name, curve in curves.items():
        if joint_names is not None and len(joint_names) != curve.shape[1]:
            raise ValueError(f"`joint_names` names {len(joint_names)} joints, but curves[{name!r}] has {curve.shape[1]}")
    ranks = {} if pit is None else _ranks(pit, curves)
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"`path` must end in one of {', '.join(SUFFIXES)}, not {str(path)!r}")

    with replacing(path, overwrite) if path is not None else nullcontext() as unfinished:
        height = 4.45 + (1.4 if ranks else 0) + (0.3 if title else 0)
        figure = Figure(figsize=(4.6, height), layout="constrained", facecolor="white")
        rows = figure.subplots(1 + bool(ranks), 1, squeeze=False, gridspec_kw={"height_ratios": [4.2, 1][: 1 + bool(ranks)]})[:, 0]
        _draw_curves(rows[0], curves, levels, joint_names)
        if ranks:
            _draw_histograms(rows[1], ranks, list(curves))
        if title:
            figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
        if unfinished is not None:
            with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text
                figure.savefig(unfinished, dpi=200)
    return figure


def _draw_curves(axes: "Axes", curves: dict[str, np.ndarray], levels: np.ndarray, joint_names: Sequence[str] | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    axes.fill([0, 1, 1], [0, 0, 1], color=OVER_CONFIDENT, linewidth=0, zorder=0)
    axes.fill([0, 1, 0], [0, 1, 1], color=UNDER_CONFIDENT, linewidth=0, zorder=0)
    axes.text(0.98, 0.02, "over-confident", fontsize=8, style="italic", color="#A8734A", ha="right", va="bottom")
    axes.text(0.02, 0.98, "under-confident", fontsize=8, style="italic", color="#5E87A6", ha="left", va="top")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (5, 4)), zorder=1)

    rim = [withStroke(linewidth=4, foreground="white")]
    entries = []
    for (name, curve), colour in zip(curves.items(), LINES):
        axes.plot(levels, curve, color=colour, linewidth=0.7, alpha=0.4, zorder=2)
        axes.plot(levels, np.median(curve, axis=1), color=colour, linewidth=2.4, path_effects=rim, solid_capstyle="round", zorder=4)
        label = f"{name}: ECE {ece_of_curve(curve, levels):.3f}"
        if joint_names is not None:
            joint = _farthest(curve, levels)
            axes.plot(levels, curve[:, joint], color=colour, linewidth=1.3, linestyle=":", zorder=3)
            label += f" (dotted: {joint_names[joint]})"
        entries.append(Line2D([], [], color=colour, linewidth=2.4, label=label))
    entries.append(Line2D([], [], color=INK, linewidth=0.7, alpha=0.6, label="single joints; bold: the median joint"))
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(0, 0.95), frameon=False, fontsize=8, labelcolor=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("expected coverage", fontsize=9, color=INK)
    axes.set_ylabel("observed coverage", fontsize=9, color=INK)
    _dress(axes)


def _farthest(curve: np.ndarray, levels: np.ndarray) -> int:
    """The joint farthest from the diagonal, among those that are covered at all: the root, which is exact, never is."""
    return int((np.abs(curve - levels[:, None]).mean(axis=0) * (curve > 0).any(axis=0)).argmax())


def _draw_histograms(axes: "Axes", ranks: dict[str, np.ndarray], names: list[str]) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    for name, values in ranks.items():
        colour = LINES[names.index(name)]
        density = np.histogram(values, edges)[0] * BINS / len(values)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.12)
        axes.stairs(density, edges, color=colour, linewidth=1.4)
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (5, 4)))
    axes.set(xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank of the true error among the hypotheses (PIT)", fontsize=9, color=INK)
    axes.set_ylabel("density", fontsize=9, color=INK)
    _dress(axes)


def _dress(axes: "Axes") -> None:
    axes.tick_params(labelsize=7, colors=INK, length=0)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _by_name(values: Any, name: str) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {"hypotheses": values}


def _within_one(values: np.ndarray, name: str) -> np.ndarray:
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"`{name}` must lie in 0..1, but reaches from {values.min():g} to {values.max():g}")
    return values


def _ranks(pit: Any, curves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Flat and without NaN, by the name of their curve."""
    ranks = dict(pit) if isinstance(pit, Mapping) else {next(iter(curves)): pit}
    if unknown := [name for name in ranks if name not in curves]:
        raise ValueError(f"`pit` names {unknown}, but the curves are {list(curves)}")
    for name, values in ranks.items():
        values = np.ravel(values.detach().cpu().numpy() if hasattr(values, "detach") else values).astype(np.float64)
        values = values[~np.isnan(values)]
        ranks[name] = _within_one(as_array(values, f"pit[{name!r}] without NaN", (None,)), f"pit[{name!r}]")
    return ranks
