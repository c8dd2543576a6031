"""A page to turn, play and question: one offline HTML file per person, Plotly included."""

import json
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from probpose.files import replacing
from probpose.skeletons import Skeleton
from probpose.visualization.common import (
    CAMERA_UP,
    COLOURS,
    FAINT,
    INK,
    as_array,
    as_estimate,
    as_keypoints,
    as_radius,
    limbs,
    side_of,
    upright,
)

PAPER = "#F7F7F7"
SIDES = ("right", "left", "centre")
SIDE_SCALE = [[index / 2, COLOURS[side]] for index, side in enumerate(SIDES)]
LABELS = {"right": "pose: person's right", "left": "pose: person's left", "centre": "pose: torso and head"}

ON_A_PHONE = """
if (innerWidth < 640) {
  const page = document.getElementById("probpose");
  Plotly.update(page, {"marker.showscale": false}, CHANGES, [page.data.findIndex(trace => trace.name === "uncertainty")]);
}
"""


def write_html(
    path: str | Path,
    hypotheses: Any,
    pose: Any,
    uncertainty: Any,
    keypoints_2d: Any = None,
    root: Any = None,
    fps: float | None = None,
    skeleton: str = "h36m_17",
    title: str = "Pose distribution",
    overwrite: bool = False,
    max_hypotheses: int = 20,
    max_frames: int = 300,
    confidence: Any = None,
    up: Any = CAMERA_UP,
    radius: Any = None,
    first_frame: int = 0,
) -> Path:
    """Writes one person's clip as an interactive page: a scene to rotate, a slider to play, a legend to switch.

    Without `root` every pose stands on the floor with its lowest joint, since root-relative motion does not know its
    height; with `root` the person moves through the room and the floor lies below the lowest joint of the clip.

    Args:
        path: the file to write, `.html`.
        hypotheses: `(K, frames, joints, 3)` metres, camera axes, relative to the root; array or tensor.
        pose: the aggregated pose, `(frames, joints, 3)` metres.
        uncertainty: `(frames, joints)` metres.
        keypoints_2d: `(frames, joints, 2)` pixels, shown beside the scene; NaN where nothing was observed.
        root: the root's trajectory, `(frames, 3)` metres, camera axes.
        fps: frames per second of the clip; without it the clip plays at 30 and the slider shows no seconds.
        skeleton: registry name of the joint order.
        title: headline of the page.
        overwrite: whether an existing file may be replaced.
        max_hypotheses: at most so many hypotheses are drawn, the first ones.
        max_frames: a longer clip is thinned evenly to at most so many frames, and the page says so.
        confidence: `(frames, joints)` in 0..1 of the 2D keypoints, drawn paler the lower it is.
        up: the world's upward direction in camera axes, to stand people upright that a tilted camera saw.
        radius: `(frames, joints)` metres, of spheres about the joints of the pose, which the legend switches on; `uncertainty` by default.
            Give a calibrated pipeline's `radius`, within which the joint is in a stated share of the cases.
        first_frame: number of the clip's first frame in the video, which the slider counts from.

    Returns:
        The path.

    Raises:
        ValueError: if a shape, `fps`, `max_frames` or the suffix of `path` does not fit.
        FileExistsError: if `path` exists and `overwrite` is false.
        FileNotFoundError: if the folder of `path` does not exist.
        ImportError: if Plotly is missing.
    """
    try:
        from plotly.io import to_html
    except ImportError as error:
        raise ImportError("write_html needs Plotly: pip install probpose") from error

    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`path` must end in .html, not {str(path)!r}")
    if fps is not None and not fps > 0:
        raise ValueError(f"`fps` must be positive, not {fps}")
    if max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1, not {max_frames}")
    total = np.shape(hypotheses)[0] if np.ndim(hypotheses) else 0
    described, hypotheses, pose, uncertainty = as_estimate(hypotheses, pose, uncertainty, skeleton, max_hypotheses)
    calibrated, radius = radius is not None, as_radius(uncertainty if radius is None else radius, "radius", uncertainty.shape)
    frames = len(pose)
    stride = -(-frames // max_frames)
    shown = np.arange(0, frames, stride)

    observed = None
    if keypoints_2d is not None:
        points, trust = as_keypoints(keypoints_2d, confidence, *uncertainty.shape)
        observed = points[shown], trust[shown]
    if root is not None:
        root = upright(as_array(root, "root", (frames, 3))[shown], up)
    hypotheses, pose = _place(upright(hypotheses[:, shown], up), upright(pose[shown], up), root)

    parts = [_hypotheses_traces(described, hypotheses), _pose_traces(described, pose, 1000 * uncertainty[shown])]
    notes = f"hypotheses: {len(hypotheses)}" + (f" of {total}" if total > len(hypotheses) else "")
    if stride > 1:
        notes += f", frames: {len(shown)} of {frames}"
    ranges = _ranges(hypotheses, pose)
    layout = _layout(f"<b>{title}</b><br><sub>{notes}</sub>", ranges, beside=observed is not None)
    layout |= _player(shown, fps, stride, first_frame)
    if observed is not None:
        parts.append(_input_traces(described, *observed))
        layout |= _panel(observed[0])
    parts.append(_sphere_traces(described, pose, radius[shown], "calibrated radius" if calibrated else "uncertainty"))

    styles = [style for part, _ in parts for style in part]
    states = [[state for part in moment for state in part] for moment in zip(*(part for _, part in parts))]
    page = {
        "data": [_merge(style, state) for style, state in zip(styles, states[0])] + _floor(ranges),
        "frames": [{"name": str(frame), "data": state, "traces": list(range(len(styles)))} for frame, state in zip(shown, states)],
        "layout": layout,
    }
    # The figure is plain dictionaries: checking hundreds of frames against Plotly's schema would take seconds.
    options = {"displaylogo": False, "responsive": True}
    head = f"<title>{escape(title)}</title><style>body {{ margin: 0; height: 100vh }}</style></head>"
    on_a_phone = ON_A_PHONE.replace("CHANGES", json.dumps(_narrow(beside=observed is not None)))
    with replacing(path, overwrite) as unfinished:
        text = to_html(
            page, config=options, auto_play=False, include_plotlyjs=True, post_script=on_a_phone, validate=False, div_id="probpose"
        )  # fmt: skip
        unfinished.write_text(text.replace("</head>", head, 1), encoding="utf-8")
    return path


def _place(hypotheses: np.ndarray, pose: np.ndarray, root: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Moves display axes `(…, frames, joints, 3)` so that height 0 is the floor."""
    if root is None:
        shift = pose[..., 2].min(axis=-1)[:, None] * [0.0, 0.0, -1.0]
    else:
        shift = root + (pose[..., 2] + root[:, 2, None]).min() * np.array([0.0, 0.0, -1.0])
    return hypotheses + shift[:, None], pose + shift[:, None]


def _numbers(values: np.ndarray, digits: int) -> list[Any]:
    """Rounded numbers for JSON, `None` for NaN: Plotly lifts its pen there."""
    rounded = np.round(values, digits).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def _stroke(skeleton: Skeleton, *sides: str) -> np.ndarray:
    """Joint indices along the limbs of `sides`, with -1 where the pen is lifted."""
    return np.array([joint for side, limb in limbs(skeleton) if side in sides for joint in (*limb, -1)], dtype=int)


def _along(points: np.ndarray, stroke: np.ndarray) -> np.ndarray:
    """Points `(…, joints, axes)` in the order of a stroke, `(…, len(stroke), axes)`, NaN where the pen is lifted."""
    return np.where((stroke < 0)[:, None], np.nan, points[..., stroke, :])


def _coordinates(points: np.ndarray, digits: int) -> dict[str, list[Any]]:
    return {axis: _numbers(points[..., index].ravel(), digits) for index, axis in enumerate("xyz"[: points.shape[-1]])}


def _merge(style: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """A whole trace from what stays and what changes; markers have some of both."""
    whole = {**style, **state}
    if "marker" in style:
        whole["marker"] = {**style["marker"], **state.get("marker", {})}
    return whole


# What stays of some traces, and for every frame what changes of them.
Traces = tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]


def _hypotheses_traces(skeleton: Skeleton, hypotheses: np.ndarray) -> Traces:
    """All hypotheses as one trace, coloured by the side of the body at each point."""
    stroke = _stroke(skeleton, *SIDES)
    owners = [SIDES.index(side) for side, limb in limbs(skeleton) for _ in (*limb, -1)]
    style = {
        "type": "scatter3d",
        "mode": "lines",
        "name": "hypotheses",
        "hoverinfo": "skip",
        "opacity": 0.3,
        "line": {
            "width": 2,
            "color": owners * len(hypotheses),
            "colorscale": SIDE_SCALE,
            "cmin": 0,
            "cmax": 2,
        },
    }
    lines = _along(hypotheses, stroke).swapaxes(0, 1)
    return [style], [[_coordinates(frame, 3)] for frame in lines]


def _pose_traces(skeleton: Skeleton, pose: np.ndarray, millimetres: np.ndarray) -> Traces:
    """The aggregated pose, one trace per side, and a marker per joint that tells its uncertainty."""
    largest = max(10.0, millimetres.max())
    styles = [
        {
            "type": "scatter3d",
            "mode": "lines",
            "name": LABELS[side],
            "legendgroup": "pose",
            "hoverinfo": "skip",
            "line": {"width": 9, "color": COLOURS[side]},
        }
        for side in SIDES
    ]
    styles.append(
        {
            "type": "scatter3d",
            "mode": "markers",
            "name": "uncertainty",
            "text": [name.replace("_", " ") for name in skeleton.joint_names],
            "hovertemplate": "<b>%{text}</b><br>uncertainty %{marker.color:.0f} mm<extra></extra>",
            "marker": {
                # Opaque: WebGL blends the floor over anything translucent.
                "opacity": 1,
                "line": {"width": 1, "color": "white"},
                "colorscale": "Cividis",
                "reversescale": True,
                "cmin": 0,
                "cmax": round(largest, 1),
                "colorbar": {
                    "title": {"text": "uncertainty (mm)", "side": "right"},
                    "thickness": 12,
                    "len": 0.5,
                    "x": 0,
                    "y": 0,
                    "yanchor": "bottom",
                },
            },
        }
    )
    states = [
        [
            *(_coordinates(_along(joints, _stroke(skeleton, side)), 3) for side in SIDES),
            {
                **_coordinates(joints, 3),
                "marker": {"size": _numbers(6 + 20 * radii / largest, 1), "color": _numbers(radii, 1)},
            },
        ]
        for joints, radii in zip(pose, millimetres)
    ]
    return styles, states


def _sphere_traces(skeleton: Skeleton, pose: np.ndarray, radii: np.ndarray, meaning: str) -> Traces:
    """A sphere about every joint of the pose, true to scale, all as one mesh."""
    corners, faces = _sphere()
    owners = np.repeat([SIDES.index(side_of(skeleton, joint)) for joint in range(skeleton.num_joints)], len(corners))
    triangles = (faces + len(corners) * np.arange(skeleton.num_joints)[:, None, None]).reshape(-1, 3)
    style = {
        "type": "mesh3d",
        "name": f"spheres: {meaning}",
        "showlegend": True,
        "visible": "legendonly",
        "hoverinfo": "skip",
        "opacity": 0.25,
        **dict(zip("ijk", triangles.T.tolist())),
        "intensity": owners.tolist(),
        "colorscale": SIDE_SCALE,
        "cmin": 0,
        "cmax": 2,
        "showscale": False,
        "lighting": {"ambient": 0.75, "diffuse": 0.4, "specular": 0.05, "roughness": 0.9, "fresnel": 0.1},
    }
    points = pose[:, :, None] + radii[:, :, None, None] * corners
    return [style], [[_coordinates(frame, 3)] for frame in points]


def _sphere() -> tuple[np.ndarray, np.ndarray]:
    """Corners `(42, 3)` and triangles `(80, 3)` of a unit sphere: of an icosahedron and of the middles of its edges."""
    from scipy.spatial import ConvexHull

    golden = (1 + 5**0.5) / 2
    icosahedron = np.array([np.roll([0, a, b * golden], turn) for turn in range(3) for a in (-1, 1) for b in (-1, 1)])
    edges = [(p + q) / 2 for p, q in combinations(icosahedron, 2) if np.isclose(np.linalg.norm(p - q), 2)]
    corners = np.concatenate([icosahedron, edges])
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    faces = ConvexHull(corners).simplices
    inward = np.linalg.det(corners[faces]) < 0  # light would come from within
    faces[inward] = faces[inward, ::-1]
    return corners, faces


def _input_traces(skeleton: Skeleton, points: np.ndarray, confidence: np.ndarray) -> Traces:
    """The 2D input: limbs per side and a marker per joint, pale where the confidence is low."""
    styles = [
        {
            "type": "scatter",
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
            "line": {"width": 3, "color": COLOURS[side]},
        }
        for side in SIDES
    ]
    styles.append(
        {
            "type": "scatter",
            "mode": "markers",
            "showlegend": False,
            "text": [name.replace("_", " ") for name in skeleton.joint_names],
            "hovertemplate": "<b>%{text}</b><br>%{x:.0f}, %{y:.0f} px<extra></extra>",
            "marker": {
                "size": 8,
                "color": [COLOURS[side_of(skeleton, joint)] for joint in range(skeleton.num_joints)],
                "line": {"width": 1, "color": "white"},
            },
        }
    )
    states = [
        [
            *(_coordinates(_along(joints, _stroke(skeleton, side)), 1) for side in SIDES),
            {**_coordinates(joints, 1), "marker": {"opacity": _numbers(0.2 + 0.8 * trust, 2)}},
        ]
        for joints, trust in zip(points, confidence)
    ]
    return styles, states


def _ranges(hypotheses: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Fixed axis ranges `(3, 2)` in metres that hold the whole clip, with room to see the floor."""
    drawn = np.concatenate([hypotheses, pose[None]]).reshape(-1, 3)
    low, high = drawn.min(axis=0) - 0.15, drawn.max(axis=0) + 0.15
    widen = np.maximum(0, 1.5 - (high - low)[:2]) / 2
    low[:2], high[:2] = low[:2] - widen, high[:2] + widen
    return np.stack([low, high], axis=-1)


def _floor(ranges: np.ndarray) -> list[dict[str, Any]]:
    """A plane at height 0 with a line every half metre."""
    (left, right), (near, far), _ = ranges
    lines = [[[x, near], [x, far], [np.nan] * 2] for x in np.arange(np.ceil(2 * left), 2 * right) / 2]
    lines += [[[left, y], [right, y], [np.nan] * 2] for y in np.arange(np.ceil(2 * near), 2 * far) / 2]
    grid = np.array(lines).reshape(-1, 2)
    plane = {
        "type": "mesh3d",
        **_coordinates(np.array([[left, near, 0], [right, near, 0], [right, far, 0], [left, far, 0]]), 3),
        "i": [0, 0],
        "j": [1, 2],
        "k": [2, 3],
        "color": "#BDBDBD",
        "opacity": 0.25,
        "hoverinfo": "skip",
    }
    mesh = {
        "type": "scatter3d",
        "mode": "lines",
        **_coordinates(grid, 3),
        "z": [0] * len(grid),
        "line": {"width": 1, "color": "#BDBDBD"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [plane, mesh]


def _layout(title: str, ranges: np.ndarray, beside: bool) -> dict[str, Any]:
    """Axes that stay put and a first view from in front and a little to the right; room `beside` for the 2D panel."""
    span = np.ptp(ranges, axis=1)
    azimuth, elevation, distance = np.deg2rad(25), np.deg2rad(12), 1.62
    forward = np.array([-np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)])
    axis = {"showbackground": False, "showgrid": False, "zeroline": False, "showspikes": False, "color": "#8A8A8A"}
    axes = {
        f"{name}axis": {**axis, "range": _numbers(limits, 3), "title": {"text": label}, "nticks": 5}
        for name, limits, label in zip("xyz", ranges, ("right (m)", "depth (m)", "height (m)"))
    }
    return {
        "title": {"text": title, "x": 0.015, "xanchor": "left", "y": 0.97, "yanchor": "top"},
        "font": {"family": "Inter, Helvetica, Arial, sans-serif", "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": PAPER,
        "margin": {"l": 20, "r": 20, "t": 72, "b": 30},
        "legend": {"x": 0, "y": 1, "yanchor": "top", "bgcolor": "rgba(255, 255, 255, 0.6)"},
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}},
        "scene": {
            **axes,
            "domain": {"x": [0.1, 0.68 if beside else 1], "y": [0, 1]},
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", (span / span.max()).tolist())),
            "camera": {
                "eye": dict(zip("xyz", (-distance * forward).tolist())),
                "center": {"x": 0, "y": 0, "z": -0.06},
                "up": {"x": 0, "y": 0, "z": 1},
            },
            "dragmode": "turntable",
        },
    }


def _narrow(beside: bool) -> dict[str, Any]:
    """What a phone changes of the layout: everything one below the other."""
    changes: dict[str, Any] = {
        "title.font.size": 12,
        "legend.orientation": "h",
        "legend.font.size": 10,
        "legend.itemwidth": 30,
        "scene.domain": {"x": [0, 1], "y": [0.34, 0.86]},
    }
    return changes | ({"xaxis.domain": [0.1, 1], "yaxis.domain": [0.06, 0.3]} if beside else {})


def _panel(points: np.ndarray) -> dict[str, Any]:
    """Axes of the 2D input: pixels, y down, wide enough for the whole clip."""
    seen = points[np.isfinite(points).all(axis=-1)]
    low, high = (seen.min(axis=0), seen.max(axis=0)) if len(seen) else (np.zeros(2), np.ones(2))
    margin = 0.08 * (high - low).max() + 1
    axis = {
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "mirror": True,
        "linecolor": FAINT,
        "constrain": "domain",
    }
    across, down = [low[0] - margin, high[0] + margin], [high[1] + margin, low[1] - margin]
    return {
        "xaxis": {**axis, "domain": [0.72, 1], "range": across, "title": {"text": "2D input (pixels)"}},
        "yaxis": {**axis, "domain": [0.05, 0.95], "range": down, "scaleanchor": "x"},
    }


def _player(shown: np.ndarray, fps: float | None, stride: int, first_frame: int) -> dict[str, Any]:
    """Play and pause buttons and a slider over the frames."""
    jump = {"mode": "immediate", "transition": {"duration": 0}}
    play = {**jump, "fromcurrent": True, "frame": {"duration": 1000 * stride / (fps or 30), "redraw": True}}
    stop = {**jump, "frame": {"duration": 0, "redraw": False}}
    seek = {**jump, "frame": {"duration": 0, "redraw": True}}
    steps = [
        {
            "label": str(number) if fps is None else f"{number} ({number / fps:.2f} s)",
            "method": "animate",
            "args": [[str(frame)], seek],
        }
        for frame, number in zip(shown, shown + first_frame)
    ]
    buttons = [
        {"label": "▶ play", "method": "animate", "args": [None, play]},
        {"label": "❚❚ pause", "method": "animate", "args": [[None], stop]},
    ]
    return {
        "updatemenus": [
            {
                "type": "buttons",
                "direction": "left",
                "showactive": False,
                "buttons": buttons,
                "x": 0,
                "y": 0,
                "xanchor": "left",
                "yanchor": "top",
                "pad": {"t": 36},
            }
        ],
        "sliders": [
            {
                "steps": steps,
                "y": 0,
                "pad": {"t": 40},
                "currentvalue": {"prefix": "frame ", "font": {"size": 13}, "xanchor": "right", "offset": 26},
                "transition": {"duration": 0},
            }
        ],
    }
