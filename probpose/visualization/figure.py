"""A figure for papers: what went in, the hypotheses that came out, and how far to trust each joint."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probpose.files import replacing
from probpose.skeletons import Skeleton
from probpose.visualization.common import (
    CAMERA_UP,
    COLOURS,
    FAINT,
    INK,
    as_estimate,
    as_keypoints,
    limbs,
    side_of,
    upright,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".pdf", ".png", ".svg")
COLUMN_INCHES = 1.8
GRID = 0.25  # metres between the lines of the floor
PAPER = "#F4F4F4"


def plot_hypotheses(
    hypotheses: Any,
    pose: Any,
    uncertainty: Any,
    keypoints_2d: Any = None,
    confidence: Any = None,
    frames: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    title: str | None = None,
    max_hypotheses: int = 20,
    skeleton: str = "h36m_17",
    up: Any = CAMERA_UP,
    first_frame: int = 0,
) -> "Figure":
    """Draws one clip as a grid: a column per frame; rows for the 2D input, the hypotheses, and the uncertainty.

    The hypotheses are seen obliquely from in front. The uncertainty is seen from the side, with depth growing to the
    right, away from the camera: each disc is as large, on the scale of the axes, as the root-mean-square radius it
    stands for. Every pose stands on the floor with its lowest joint, since root-relative motion does not know its
    height.

    Args:
        hypotheses: `(K, frames, joints, 3)` metres, camera axes, relative to the root; array or tensor.
        pose: the aggregated pose, `(frames, joints, 3)` metres.
        uncertainty: `(frames, joints)` metres.
        keypoints_2d: `(frames, joints, 2)` pixels; NaN where nothing was observed. Without it there is no row for it.
        confidence: `(frames, joints)` in 0..1; joints are drawn smaller and paler the lower it is.
        frames: indices of the frames to draw, negative ones counted from the end; five evenly spaced ones by default.
        image_size: `(width, height)` in pixels; what lies outside the image is then shaded.
        path: where to save, as PNG, PDF or SVG by its suffix; not saved without it.
        overwrite: whether an existing file may be replaced.
        title: headline of the figure.
        max_hypotheses: at most so many hypotheses are drawn, the first ones.
        skeleton: registry name of the joint order.
        up: the world's upward direction in camera axes, to stand people upright that a tilted camera saw.
        first_frame: number of the clip's first frame in the video, which the titles of the columns count from.

    Returns:
        The Matplotlib figure. It belongs to no pyplot session, so nothing needs to be closed.

    Raises:
        ValueError: if a shape, a frame index or the suffix of `path` does not fit.
        FileExistsError: if `path` exists and `overwrite` is false.
        FileNotFoundError: if the folder of `path` does not exist.
        ImportError: if Matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_hypotheses needs Matplotlib: pip install probpose") from error

    described, hypotheses, pose, uncertainty = as_estimate(hypotheses, pose, uncertainty, skeleton, max_hypotheses)
    chosen = _choose_frames(frames, len(pose))
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"`path` must end in one of {', '.join(SUFFIXES)}, not {str(path)!r}")

    observed = None
    if keypoints_2d is not None:
        observed = as_keypoints(keypoints_2d, confidence, *uncertainty.shape)
        observed = (observed[0][chosen], observed[1][chosen])
    hypotheses, pose, uncertainty = upright(hypotheses[:, chosen], up), upright(pose[chosen], up), uncertainty[chosen]
    floor = pose[..., 2].min(axis=-1)[:, None] * [[0.0, 0.0, 1.0]]
    hypotheses, pose = hypotheses - floor[:, None], pose - floor[:, None]

    # The file is claimed before the drawing starts, so that a refusal costs nothing.
    with replacing(path, overwrite) if path is not None else nullcontext() as unfinished:
        figure = Figure(layout="constrained", facecolor="white")
        _fill(figure, described, hypotheses, pose, uncertainty, observed, chosen + first_frame, image_size, title)
        if unfinished is not None:
            # Text stays text: journals ask for TrueType fonts in PDF, and SVG stays editable.
            with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
                figure.savefig(unfinished, dpi=200)
    return figure


def _choose_frames(frames: Sequence[int] | None, count: int) -> np.ndarray:
    if frames is None:
        return np.unique(np.linspace(0, count - 1, 5).round().astype(int))
    chosen = np.asarray(frames)
    if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"`frames` must be a list of frame indices, not {frames!r}")
    if (chosen < -count).any() or (chosen >= count).any():
        raise ValueError(f"`frames` must lie in 0..{count - 1} (or -{count}..-1), not {chosen.tolist()}")
    return chosen % count


def _fill(
    figure: "Figure",
    skeleton: Skeleton,
    hypotheses: np.ndarray,
    pose: np.ndarray,
    uncertainty: np.ndarray,
    observed: tuple[np.ndarray, np.ndarray] | None,
    numbers: np.ndarray,
    image_size: tuple[int, int] | None,
    title: str | None,
) -> None:
    """Lays out and draws all rows; the arrays hold the chosen frames only, 3D in display axes above the floor."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # One scale for all three-dimensional axes, with the root in the middle of each.
    drawn = np.concatenate([hypotheses, pose[None]])
    turned = _oblique(drawn)
    beside, below, above = uncertainty + np.abs(pose[..., 1]), pose[..., 2] - uncertainty, pose[..., 2] + uncertainty
    reach = max(0.7, np.abs(turned[..., 0]).max(), beside.max()) + 0.04
    views = [
        (min(-0.2, turned[..., 1].min()) - 0.04, turned[..., 1].max() + 0.06),
        (min(-0.1, below.min()) - 0.04, above.max() + 0.1),
    ]
    views = [(low, max(high, low + 1.5 * reach)) for low, high in views]  # a lying person leaves room for the labels
    shapes = [(high - low) / (2 * reach) for low, high in views]
    if observed is not None:
        windows = _windows(observed[0])
        shapes.insert(0, np.divide(*np.ptp(windows[0], axis=0)[::-1]))

    columns = len(numbers)
    legend_columns = columns if columns < 3 else 4
    extra = 1.1 + 0.2 * (4 // legend_columns) + (0.3 if title else 0)
    figure.set_size_inches(COLUMN_INCHES * columns + 1.5, COLUMN_INCHES * sum(shapes) + extra)
    grid = figure.subplots(len(shapes), columns, squeeze=False, gridspec_kw={"height_ratios": shapes})
    rows = list(grid)
    for axes, frame in zip(rows[0], numbers):
        axes.set_title(f"frame {frame}", fontsize=9, color=INK)

    if observed is not None:
        _draw_input_row(rows.pop(0), skeleton, *observed, windows, image_size)

    for axes, several, single in zip(rows[0], hypotheses.swapaxes(0, 1), pose):
        _draw_floor(axes, reach)
        _draw_shadow(axes, skeleton, single)
        for one in several:
            _draw_limbs(axes, skeleton, _oblique(one), linewidth=0.8, alpha=max(0.3, 1 / len(several) ** 0.5))
        _draw_pose(axes, skeleton, single)
        axes.set(xlim=(-reach, reach), ylim=views[0], aspect="equal", xticks=[], yticks=[])
        _bare(axes)
    counted = "1 hypothesis" if len(hypotheses) == 1 else f"{len(hypotheses)} hypotheses"
    rows[0][0].set_ylabel(f"{counted}\n(floor grid {GRID:g} m)", fontsize=9, color=INK)

    scale = ScalarMappable(Normalize(0, _round_up(1000 * uncertainty.max())), "cividis_r")
    for axes, single, radii in zip(rows[1], pose, uncertainty):
        axes.axhline(0, color="#9A9A9A", linewidth=1, zorder=0)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _draw_discs(axes, skeleton, single[:, 1:], radii, scale)
        axes.set(xlim=(-reach, reach), ylim=views[1], aspect="equal")
        axes.set(xticks=[-0.5, 0, 0.5], yticks=np.arange(0, views[1][1], 0.5))
        axes.set_xlabel("depth (m) →", fontsize=8, color=INK)
        axes.tick_params(labelsize=7, labelleft=axes is rows[1][0], colors=INK, length=0)
        _bare(axes)
    rows[1][0].set_ylabel("from the side:\nheight (m)", fontsize=9, color=INK)
    # The bar takes its room from every row, so that the columns stay in line, but stands beside the last one only.
    share = shapes[-1] / sum(shapes)
    bar = figure.colorbar(scale, ax=grid, fraction=0.05, pad=0.01, shrink=0.8 * share, anchor=(0, 0.07), aspect=16)
    bar.set_label("uncertainty (mm)\ndiscs to scale", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")  # Matplotlib would store an image; the edges close the gaps between its steps

    _draw_legend(figure, legend_columns)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)


def _windows(points: np.ndarray) -> np.ndarray:
    """Per frame the corners `(F, 2, 2)` of a window about the person, of one size for all frames."""
    low, high = np.zeros((len(points), 2)), np.zeros((len(points), 2))
    for frame, single in enumerate(points):
        seen = single[np.isfinite(single).all(axis=-1)]
        if len(seen):
            low[frame], high[frame] = seen.min(axis=0), seen.max(axis=0)
    half = np.maximum((high - low).max(axis=0) / 2, 1.0)
    # Neither a lying nor a standing person should squeeze the row into a strip.
    half = 1.12 * np.clip(half, 0.7 * half.max(), None)
    middle = (low + high) / 2
    return np.stack([middle - half, middle + half], axis=1)


def _draw_input_row(
    row: Sequence["Axes"],
    skeleton: Skeleton,
    points: np.ndarray,
    confidence: np.ndarray,
    windows: np.ndarray,
    image_size: tuple[int, int] | None,
) -> None:
    """2D keypoints, y down, each person in the middle of its window."""
    for axes, single, trust, (low, high) in zip(row, points, confidence, windows):
        if image_size is not None and np.isfinite(single).any():  # without a person there is no place to show
            width, height = image_size
            axes.set_facecolor("#E6E6E6")
            axes.fill([0, width, width, 0], [0, 0, height, height], color="white", zorder=0)
        for side, limb in limbs(skeleton):
            for start, end in pairwise(limb):
                alpha = 0.15 + 0.85 * min(trust[start], trust[end])
                axes.plot(*single[[start, end]].T, color=COLOURS[side], alpha=alpha, linewidth=1.8)
        axes.scatter(
            *single.T,
            s=5 + 20 * trust,
            c=[COLOURS[side_of(skeleton, joint)] for joint in range(len(single))],
            alpha=0.15 + 0.85 * trust,
            linewidths=0.5,
            edgecolors="white",
            zorder=3,
        )
        axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
        _bare(axes, frame=True)
        if not np.isfinite(single).any():
            axes.text(
                (low[0] + high[0]) / 2,
                (low[1] + high[1]) / 2,
                "not observed",
                fontsize=8,
                color=INK,
                ha="center",
                va="center",
            )
    row[0].set_ylabel("2D input", fontsize=9, color=INK)
    if np.isfinite(points).any():
        _draw_scale_bar(row[0], windows[0])


def _draw_scale_bar(axes: "Axes", window: np.ndarray) -> None:
    """A bar of 1, 2 or 5 times a power of ten pixels, at most a third of the window wide."""
    (left, _), (right, bottom) = window
    limit = (right - left) / 3
    power = 10.0 ** np.floor(np.log10(limit))
    length = max(step * power for step in (1, 2, 5) if step * power <= limit)
    start, height = left + 0.15 * limit, bottom - 0.15 * limit
    axes.plot([start, start + length], [height, height], color=INK, linewidth=1.5, solid_capstyle="butt")
    axes.text(start + length / 2, height - 0.06 * limit, f"{length:g} px", fontsize=7, color=INK, ha="center")


def _oblique(points: np.ndarray, azimuth: float = 25.0, elevation: float = 12.0) -> np.ndarray:
    """Display axes to `(right, up, away)` of a distant viewer who stepped to the right and looks slightly down."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    x, y, z = np.moveaxis(points, -1, 0)
    right, away = np.cos(a) * x + np.sin(a) * y, -np.sin(a) * x + np.cos(a) * y
    return np.stack([right, np.cos(e) * z + np.sin(e) * away, np.cos(e) * away - np.sin(e) * z], axis=-1)


def _draw_limbs(axes: "Axes", skeleton: Skeleton, seen: np.ndarray, **style: Any) -> None:
    for side, limb in limbs(skeleton):
        axes.plot(*seen[limb, :2].T, **{"color": COLOURS[side], "solid_capstyle": "round", **style})


def _draw_pose(axes: "Axes", skeleton: Skeleton, pose: np.ndarray) -> None:
    """The bold skeleton; nearer bones cover farther ones, with a white rim between them."""
    seen = _oblique(pose)
    bones = sorted(skeleton.bones, key=lambda bone: -seen[list(bone), 2].mean())
    for order, (parent, child) in enumerate(bones):
        start, end = seen[parent, :2], seen[child, :2]
        zorder = 3 + order / len(bones)
        # The rim stops short of the joints, where it would bite into the neighbouring bones.
        rim = np.stack([0.85 * start + 0.15 * end, 0.15 * start + 0.85 * end])
        axes.plot(*rim.T, color="white", linewidth=2.4, solid_capstyle="butt", zorder=zorder)
        colour = COLOURS[side_of(skeleton, child)]
        axes.plot(*np.stack([start, end]).T, color=colour, linewidth=1.7, solid_capstyle="round", zorder=zorder)


def _draw_floor(axes: "Axes", reach: float) -> None:
    half = max(1, int(0.75 * reach / GRID)) * GRID  # turned by the viewer's azimuth, this still fits
    corners = np.array([[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]])
    axes.fill(*_oblique(corners)[:, :2].T, color=PAPER, zorder=0)
    for offset in np.arange(-half, half + GRID / 2, GRID):
        for line in ([[offset, -half, 0], [offset, half, 0]], [[-half, offset, 0], [half, offset, 0]]):
            axes.plot(*_oblique(np.array(line))[:, :2].T, color=FAINT, linewidth=0.6, zorder=0.5)


def _draw_shadow(axes: "Axes", skeleton: Skeleton, pose: np.ndarray) -> None:
    _draw_limbs(axes, skeleton, _oblique(pose * [1, 1, 0]), color="#C4C4C4", linewidth=2, zorder=0.7)


def _draw_discs(axes: "Axes", skeleton: Skeleton, pose: np.ndarray, radii: np.ndarray, scale: Any) -> None:
    """A thin skeleton over one disc per joint, large ones below, whose radius is in the metres of the axes."""
    from matplotlib.patches import Circle

    for joint in np.argsort(-radii):
        colour = scale.to_rgba(1000 * radii[joint])
        axes.add_patch(Circle(pose[joint], radii[joint], facecolor=colour, edgecolor="white", linewidth=0.5, alpha=0.85))
    _draw_limbs(axes, skeleton, pose, linewidth=3, color="white", zorder=2)
    _draw_limbs(axes, skeleton, pose, linewidth=1.4, zorder=3)


def _round_up(millimetres: float) -> float:
    """The next multiple of ten, so that the colour bar ends on a number one can read."""
    return max(10.0, 10.0 * np.ceil(millimetres / 10))


def _bare(axes: "Axes", frame: bool = False) -> None:
    for spine in axes.spines.values():
        spine.set(visible=frame, color=FAINT)


def _draw_legend(figure: "Figure", columns: int) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=COLOURS["right"], linewidth=1.9, label="person's right"),
        Line2D([], [], color=COLOURS["left"], linewidth=1.9, label="person's left"),
        Line2D([], [], color=COLOURS["centre"], linewidth=1.9, label="aggregated pose (bold)"),
        Line2D([], [], color=COLOURS["centre"], linewidth=0.8, alpha=0.6, label="hypotheses"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)
