"""A picture of an adaptation: how it went, and what became of poses in the new scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probpose.files import replacing
from probpose.skeletons import Skeleton, get_skeleton
from probpose.visualization.common import COLOURS, as_array, as_keypoints, limbs
from probpose.visualization.figure import FAINT, INK, SUFFIXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARK = "#009E73"  # the kept round; of the palette that poses are drawn in, but no side's
BACKDROP = "#BDBDBD"


def plot_adaptation(
    history: Sequence[Mapping[str, float]],
    best_round: int,
    keypoints_2d: Any,
    before: Any,
    after: Any,
    confidence: Any = None,
    names: Sequence[str] | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    title: str | None = None,
    skeleton: str = "h36m_17",
) -> Figure:
    """Draws reprojection and source loss over the rounds and, for a few frames, keypoints under reprojected poses before and after.

    Args:
        history: `round`, `reprojection_mm` and, but for round 0, `source_mm` of every round, as in `AdaptationReport.history`.
        best_round: the round that was kept; it is marked.
        keypoints_2d: `(frames, joints, 2)` pixels of a few frames, which may be of different clips; NaN where nothing was observed.
        before, after: `(frames, joints, 2)` pixels: where the poses reproject.
        confidence: `(frames, joints)` in 0..1; 0 = not observed.
        names: of the frames.
        path: where to save, as PNG, PDF or SVG by its suffix; not saved without it.
        overwrite: whether an existing file may be replaced.
        title: headline of the figure.
        skeleton: registry name of the joint order.

    Returns:
        The Matplotlib figure. It belongs to no pyplot session, so nothing needs to be closed.

    Raises:
        ValueError: if a shape, the kept round, the number of names or the suffix of `path` does not fit.
        FileExistsError: if `path` exists and `overwrite` is false.
        FileNotFoundError: if the folder of `path` does not exist.
        ImportError: if Matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_adaptation needs Matplotlib: pip install probpose") from error

    described = get_skeleton(skeleton)
    before = as_array(before, "before", (None, described.num_joints, 2))
    after = as_array(after, "after", before.shape)
    points, _ = as_keypoints(keypoints_2d, confidence, *before.shape[:2])
    if names is not None and len(names) != len(points):
        raise ValueError(f"`names` names {len(names)} frames, but there are {len(points)}")
    if best_round not in [entry["round"] for entry in history]:
        raise ValueError(f"`best_round` is {best_round}, which is none of the {len(history)} rounds of `history`")
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"`path` must end in one of {', '.join(SUFFIXES)}, not {str(path)!r}")

    with replacing(path, overwrite) if path is not None else nullcontext() as unfinished:
        figure = Figure(figsize=(8.6, 2.6 * max(2, len(points)) + (0.3 if title else 0)), layout="constrained", facecolor="white")
        curves, panels = figure.subfigures(1, 2, width_ratios=(1, 1.25))
        _draw_curves(curves.subplots(2, 1, sharex=True), history, best_round)
        rows = panels.subplots(len(points), 2, squeeze=False)
        for row, single, name, *poses in zip(rows, points, names or [""] * len(points), before, after):
            for axes, pose in zip(row, poses):
                _draw_reprojection(axes, described, single, pose)
            row[0].set_ylabel(name, fontsize=8, color=INK)
        for axes, when in zip(rows[0], ("before", "after")):
            axes.set_title(when, fontsize=9, color=INK)
        panels.supxlabel("grey: keypoints; blue and orange: the reprojected pose, left and right", fontsize=8, color=INK)
        if title:
            figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
        if unfinished is not None:
            with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text
                figure.savefig(unfinished, dpi=200)
    return figure


def _draw_curves(rows: Sequence[Axes], history: Sequence[Mapping[str, float]], best_round: int) -> None:
    from matplotlib.ticker import MaxNLocator

    wanted = {"reprojection_mm": "target: reprojection (mm)", "source_mm": "source: loss (mm)"}
    for axes, (key, label) in zip(rows, wanted.items()):
        known = [(entry["round"], entry[key]) for entry in history if key in entry]
        axes.axvline(best_round, color=MARK, linewidth=1, linestyle=(0, (5, 4)), zorder=0)
        axes.plot(*np.reshape(known, (-1, 2)).T, color=INK, linewidth=1.6, marker="o", markersize=3.5)
        axes.set_ylabel(label, fontsize=9, color=INK)
        axes.margins(y=0.15)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.tick_params(labelsize=7, colors=INK, length=0)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    kept = next(entry["reprojection_mm"] for entry in history if entry["round"] == best_round)
    rows[0].plot(best_round, kept, color=MARK, marker="o", markersize=8, linestyle="none", label=f"kept: round {best_round}")
    rows[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    rows[1].set_xlabel("round", fontsize=9, color=INK)
    rows[1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_reprojection(axes: Axes, skeleton: Skeleton, points: np.ndarray, pose: np.ndarray) -> None:
    """Keypoints, wide and grey, under the reprojected pose, in a square about the keypoints."""
    for side, limb in limbs(skeleton):
        axes.plot(*points[limb].T, color=BACKDROP, linewidth=5, solid_capstyle="round", solid_joinstyle="round", zorder=1)
        axes.plot(*pose[limb].T, color=COLOURS[side], linewidth=1.6, solid_capstyle="round", zorder=3)
    axes.scatter(*points.T, s=22, color=BACKDROP, linewidths=0, zorder=2)
    axes.scatter(*pose.T, s=5, color=INK, linewidths=0, zorder=4)
    seen = points[np.isfinite(points).all(axis=-1)]
    seen = seen if len(seen) else pose
    middle, half = (seen.min(axis=0) + seen.max(axis=0)) / 2, max(1.0, 0.58 * np.ptp(seen, axis=0).max())
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))  # y points down
    axes.set(aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    gaps = np.linalg.norm(points - pose, axis=-1)
    if np.isfinite(gaps).any():
        axes.text(0.97, 0.03, f"{np.nanmean(gaps):.1f} px off", fontsize=8, color=INK, ha="right", va="bottom", transform=axes.transAxes)
