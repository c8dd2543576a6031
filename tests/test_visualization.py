import json
import re
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from probpose.skeletons import get_skeleton
from probpose.visualization import plot_hypotheses, write_html
from probpose.visualization.common import CAMERA_UP, COLOURS, limbs, rgb, upright

SKELETON = get_skeleton("h36m_17")
LEFT_WRIST, RIGHT_WRIST = SKELETON.left[-1], SKELETON.right[-1]

# A standing person who faces the camera, so that the right side of the body is on the left of the image; camera axes.
STANDING = np.zeros((17, 3))
STANDING[:, 1] = [0, 0, 0.45, 0.9, 0, 0.45, 0.9, -0.25, -0.5, -0.6, -0.7, -0.5, -0.25, 0, -0.5, -0.25, 0]
STANDING[list(SKELETON.left), 0] = 0.15
STANDING[list(SKELETON.right), 0] = -0.15


def clip(hypotheses: int = 3, frames: int = 4) -> dict[str, np.ndarray]:
    drawn = STANDING + 0.03 * np.random.default_rng(0).normal(size=(hypotheses, frames, 17, 3))
    pose = drawn.mean(axis=0)
    radii = np.sqrt(((drawn - pose) ** 2).sum(axis=-1).mean(axis=0))
    return {"hypotheses": drawn, "pose": pose, "uncertainty": radii}


def keypoints(frames: int = 4) -> np.ndarray:
    return np.tile(500 + 200 * STANDING[:, :2], (frames, 1, 1))


def read_page(path) -> tuple[list, dict, list]:
    """Traces, layout and frames as a browser would read them."""

    def arguments(call: str, count: int) -> list:
        position, found = script.rindex(call) + len(call), []
        for _ in range(count):
            position += re.match(r"[\s,]*", script[position:]).end()
            value, position = json.JSONDecoder().raw_decode(script, position)
            found.append(value)
        return found

    script = path.read_text(encoding="utf-8").replace("Plotly.addFrames('probpose'", 'Plotly.addFrames("probpose"')
    (_, traces, layout), (_, frames) = arguments("Plotly.newPlot(", 3), arguments("Plotly.addFrames(", 2)
    return traces, layout, frames


def trace(traces: list, name: str) -> dict:
    return next(one for one in traces if one.get("name") == name)


def points(one: dict) -> np.ndarray:
    return np.array([one[axis] for axis in "xyz"], dtype=float).T


def expected(pose: np.ndarray) -> np.ndarray:
    """Camera axes (x right, y down, z forward) stood on the floor: right, away, up."""
    shown = np.stack([pose[..., 0], pose[..., 2], -pose[..., 1]], axis=-1)
    return shown - shown[..., 2].min(axis=-1)[..., None, None] * [0, 0, 1]


def test_limbs_draw_every_bone_once_and_in_one_colour():
    drawn = [(bone, side) for side, limb in limbs(SKELETON) for bone in pairwise(limb)]
    assert sorted(bone for bone, _ in drawn) == sorted(SKELETON.bones)
    sides = {child: side for (_, child), side in drawn}
    assert {sides[joint] for joint in SKELETON.left} == {"left"}
    assert {sides[joint] for joint in SKELETON.right} == {"right"}


def test_upright_is_a_rotation_that_takes_up_to_z():
    np.testing.assert_allclose(upright(np.array([1.0, 2.0, 3.0])), [1, 3, -2])
    for up in (CAMERA_UP, (0.1, -0.9, -0.4), (0.0, 0.0, -2.0)):
        axes = upright(np.eye(3), up)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(axes) == pytest.approx(1)
        np.testing.assert_allclose(upright(np.array(up) / np.linalg.norm(up), up), [0, 0, 1], atol=1e-12)
    with pytest.raises(ValueError, match="up"):
        upright(np.eye(3), (0, 0, 0))


# Machado, Oliveira & Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 2009: matrices for
# full severity, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear sRGB (IEC 61966-2-1)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (to_xyz @ linear) / to_xyz.sum(axis=1)
    fx, fy, fz = (np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("vision", VISION)
def test_sides_stay_apart_in_every_colour_vision(vision):
    seen = {}
    for side in COLOURS:
        encoded = np.array(rgb(side)) / 255
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        seen[side] = lab(np.clip(VISION[vision] @ linear, 0, 1))
    for one, other in combinations(COLOURS, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 25, f"{one} and {other}"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figure_is_saved_in_every_format(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    plot_hypotheses(**clip(frames=1), path=path, title="one")
    assert path.read_bytes().lstrip()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_figure_has_a_row_per_kind_and_a_column_per_frame():
    figure = plot_hypotheses(**clip(frames=7), keypoints_2d=keypoints(7), image_size=(1000, 1000))
    assert [axes.get_title() for axes in figure.axes[:5]] == [f"frame {index}" for index in (0, 2, 3, 4, 6)]
    assert len(figure.axes) == 3 * 5 + 1
    chosen = plot_hypotheses(**clip(frames=7), frames=[-1, 2])
    assert [axes.get_title() for axes in chosen.axes[:2]] == ["frame 6", "frame 2"]
    assert len(chosen.axes) == 2 * 2 + 1


def test_figure_takes_tensors_one_hypothesis_and_unobserved_keypoints(tmp_path):
    seen = keypoints()
    seen[0, RIGHT_WRIST], seen[1] = np.nan, np.nan
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in clip(1).items()}
    figure = plot_hypotheses(
        **tensors,
        keypoints_2d=torch.tensor(seen),
        confidence=np.full((4, 17), 0.5),
        frames=[0, 1],
        path=tmp_path / "figure.png",
    )
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert all(np.isfinite(axes.get_xlim()).all() for axes in figure.axes)


def test_figure_colours_sides_and_does_not_mirror():
    figure = plot_hypotheses(**clip(), keypoints_2d=keypoints(), frames=[0])
    flat, oblique = figure.axes[:2]
    for axes in (flat, oblique):
        middle = {side: [] for side in COLOURS}
        for line in axes.lines:
            for side, colour in COLOURS.items():
                if to_hex(line.get_color()).upper() == colour:
                    middle[side].append(np.mean(line.get_xdata()))
        # The person faces the camera: their right is on the viewer's left.
        assert np.mean(middle["right"]) < np.mean(middle["left"])
    low, high = sorted(flat.get_ylim())
    assert flat.get_ylim() == (high, low)
    head = max((line for line in oblique.lines if 1.5 < line.get_linewidth() < 2), key=lambda line: max(line.get_ydata()))
    assert to_hex(head.get_color()).upper() == COLOURS["centre"]


def test_discs_are_to_scale():
    estimate = clip()
    figure = plot_hypotheses(**estimate, frames=[1])
    assert sorted(disc.radius for disc in figure.axes[1].patches) == pytest.approx(sorted(estimate["uncertainty"][1]))


def test_columns_count_from_the_first_frame_of_the_video():
    figure = plot_hypotheses(**clip(), frames=[0, -1], first_frame=100)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["frame 100", "frame 103"]


def test_vector_figures_hold_no_raster_and_their_fonts(tmp_path):
    estimate = {**clip(), "keypoints_2d": keypoints(), "title": "one"}
    plot_hypotheses(**estimate, path=tmp_path / "figure.pdf")
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/Subtype /Image" not in pdf and b"/Type3" not in pdf
    assert b"/FontFile2" in pdf  # an embedded TrueType font
    plot_hypotheses(**estimate, path=tmp_path / "figure.svg")
    svg = (tmp_path / "figure.svg").read_text()
    assert "<image" not in svg and ">2D input</text>" in svg
    plot_hypotheses(**estimate, path=tmp_path / "fewer.svg", max_hypotheses=1)
    hypotheses = 2 * 4 * len(limbs(SKELETON))  # two fewer in each of four frames
    assert svg.count("<path") - (tmp_path / "fewer.svg").read_text().count("<path") == hypotheses


def test_figure_refuses_what_does_not_fit(tmp_path):
    estimate = clip()
    for change, message in [
        ({"hypotheses": estimate["hypotheses"][None]}, "one clip of the batch"),
        ({"hypotheses": estimate["hypotheses"][..., :2]}, "hypotheses"),
        ({"pose": estimate["pose"][1:]}, "pose"),
        ({"pose": estimate["pose"] * np.nan}, "finite"),
        ({"uncertainty": -estimate["uncertainty"]}, "uncertainty"),
        ({"keypoints_2d": keypoints(3)}, "keypoints_2d"),
        ({"keypoints_2d": keypoints(), "confidence": np.ones((4, 2))}, "confidence"),
        ({"frames": [4]}, "frames"),
        ({"frames": []}, "frames"),
        ({"max_hypotheses": 0}, "max_hypotheses"),
        ({"skeleton": "nobody"}, "nobody"),
        ({"path": tmp_path / "figure.docx"}, "docx"),
    ]:
        with pytest.raises(ValueError, match=message):
            plot_hypotheses(**{**estimate, **change})
    with pytest.raises(FileNotFoundError):
        plot_hypotheses(**estimate, path=tmp_path / "missing" / "figure.png")
    assert not list(tmp_path.iterdir())


def test_page_holds_every_frame_and_the_input_coordinates(tmp_path):
    estimate = clip()
    path = write_html(tmp_path / "page.html", **estimate, keypoints_2d=keypoints(), fps=25, title="<one & only>")
    traces, layout, frames = read_page(path)
    assert [frame["name"] for frame in frames] == ["0", "1", "2", "3"]
    assert [step["label"] for step in layout["sliders"][0]["steps"]][2] == "2 (0.08 s)"
    names = [name.replace("_", " ") for name in SKELETON.joint_names]
    markers = trace(traces, "uncertainty")
    assert markers["text"] == names
    np.testing.assert_allclose(points(markers), expected(estimate["pose"])[0], atol=6e-4)
    for index, frame in enumerate(frames):
        moved = frame["data"][frame["traces"].index(traces.index(markers))]
        np.testing.assert_allclose(points(moved), expected(estimate["pose"])[index], atol=6e-4)
        np.testing.assert_allclose(moved["marker"]["color"], 1000 * estimate["uncertainty"][index], atol=0.06)
    ratio, scene = layout["scene"]["aspectratio"], layout["scene"]
    metres_per_unit = [np.ptp(scene[f"{axis}axis"]["range"]) / ratio[axis] for axis in "xyz"]
    np.testing.assert_allclose(metres_per_unit, metres_per_unit[0], rtol=2e-3)
    assert layout["yaxis"]["range"][0] > layout["yaxis"]["range"][1]


def test_page_loads_nothing_and_escapes_the_title(tmp_path):
    text = write_html(tmp_path / "page.html", **clip(), title="</script><b>one").read_text(encoding="utf-8")
    assert "<title>&lt;/script&gt;&lt;b&gt;one</title>" in text
    assert text.count("</script>") == text.count("<script")
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", text)


def test_page_draws_all_hypotheses_as_one_trace_in_the_colours_of_their_sides(tmp_path):
    estimate = clip(5)
    traces, _, frames = read_page(write_html(tmp_path / "page.html", **estimate, max_hypotheses=2))
    cloud = trace(traces, "hypotheses")
    drawn = points(cloud)
    shown = np.stack([estimate["hypotheses"][:, 0, :, i] * s for i, s in ((0, 1), (2, 1), (1, -1))], axis=-1)
    shown[..., 2] += estimate["pose"][0, :, 1].max()
    colours = dict(zip(("0", "1", "2"), (colour for _, colour in cloud["line"]["colorscale"])))
    for joint, side in ((LEFT_WRIST, "left"), (RIGHT_WRIST, "right")):
        for hypothesis in range(2):
            at = np.linalg.norm(np.nan_to_num(drawn, nan=9) - shown[hypothesis, joint], axis=1).argmin()
            np.testing.assert_allclose(drawn[at], shown[hypothesis, joint], atol=6e-4)
            assert colours[str(cloud["line"]["color"][at])] == COLOURS[side]
        pose = next(one for one in traces if one["type"] == "scatter3d" and one["line"]["color"] == COLOURS[side])
        gap = np.linalg.norm(np.nan_to_num(points(pose), nan=9) - expected(estimate["pose"])[0, joint], axis=1)
        assert gap.min() < 1e-3
    assert np.isnan(drawn).all(axis=1).sum() == 2 * len(limbs(SKELETON))
    assert len(frames[0]["data"][0]["x"]) == len(drawn)


def test_page_draws_spheres_true_to_scale_when_the_legend_asks(tmp_path):
    estimate = clip()
    radius = np.linspace(0.02, 0.2, 4 * 17).reshape(4, 17)
    for given, meaning, radii in (({}, "uncertainty", estimate["uncertainty"]), ({"radius": radius}, "calibrated radius", radius)):
        path = write_html(tmp_path / "page.html", **estimate, keypoints_2d=keypoints(), **given, overwrite=True)
        traces, _, frames = read_page(path)
        spheres = trace(traces, f"spheres: {meaning}")
        assert spheres["type"] == "mesh3d" and spheres["visible"] == "legendonly" and spheres["showlegend"]
        triangles = np.array([spheres[corner] for corner in "ijk"]).T
        colours = [COLOURS["right"], COLOURS["left"], COLOURS["centre"]]
        for index, frame in enumerate(frames):
            state = points(frame["data"][frame["traces"].index(traces.index(spheres))]).reshape(17, -1, 3)
            middle = expected(estimate["pose"])[index]
            off = state - middle[:, None]
            np.testing.assert_allclose(np.linalg.norm(off, axis=-1), np.tile(radii[index][:, None], (1, off.shape[1])), atol=2e-3)
            np.testing.assert_allclose(off.mean(axis=1), 0, atol=1e-3)
        # Closed surfaces whose outside is out: the volumes of the pyramids to their triangles add up to nearly the balls'.
        corners = (state - middle[:, None]).reshape(-1, 3)[triangles]
        assert np.linalg.det(corners).sum() / 6 == pytest.approx(4 / 3 * np.pi * (radii[-1] ** 3).sum(), rel=0.15)
        owners = np.array(spheres["intensity"]).reshape(17, -1)
        assert colours[owners[LEFT_WRIST, 0]] == COLOURS["left"] and colours[owners[RIGHT_WRIST, 0]] == COLOURS["right"]
    with pytest.raises(ValueError, match="radius"):
        write_html(tmp_path / "other.html", **estimate, radius=-radius)


def test_slider_counts_from_the_first_frame_of_the_video(tmp_path):
    _, layout, frames = read_page(write_html(tmp_path / "page.html", **clip(), fps=25, first_frame=100))
    assert [step["label"] for step in layout["sliders"][0]["steps"]][:2] == ["100 (4.00 s)", "101 (4.04 s)"]
    assert [step["args"][0] for step in layout["sliders"][0]["steps"]] == [[frame["name"]] for frame in frames]


def test_page_thins_long_clips_and_follows_the_root(tmp_path):
    estimate = clip(1, 11)
    root = np.linspace([0, 0, 4], [1, 0.2, 5], 11)
    path = write_html(tmp_path / "page.html", **estimate, root=root, max_frames=5, fps=30)
    traces, layout, frames = read_page(path)
    assert [frame["name"] for frame in frames] == ["0", "3", "6", "9"]
    assert "frames: 4 of 11" in layout["title"]["text"]
    play = layout["updatemenus"][0]["buttons"][0]["args"][1]
    assert play["frame"]["duration"] == pytest.approx(100)
    index = traces.index(trace(traces, "uncertainty"))
    pelvis = np.array([points(frame["data"][index])[0] for frame in frames])
    true = (root + estimate["pose"][:, 0])[::3]
    np.testing.assert_allclose(np.diff(pelvis, axis=0), np.diff(true[:, [0, 2, 1]] * [1, 1, -1], axis=0), atol=2e-3)
    assert min(points(frame["data"][index])[:, 2].min() for frame in frames) == pytest.approx(0, abs=1e-3)


def test_page_shows_gaps_in_the_input(tmp_path):
    seen = keypoints()
    seen[0, LEFT_WRIST] = np.nan
    traces, _, _ = read_page(write_html(tmp_path / "page.html", **clip(), keypoints_2d=seen))
    assert traces[8]["x"][LEFT_WRIST] is None and traces[8]["x"][RIGHT_WRIST] == pytest.approx(470)
    assert traces[8]["marker"]["color"][LEFT_WRIST] == COLOURS["left"]
    empty = write_html(tmp_path / "empty.html", **clip(), keypoints_2d=seen * np.nan)
    assert np.isfinite(read_page(empty)[1]["xaxis"]["range"]).all()


def test_page_refuses_what_does_not_fit(tmp_path):
    for change, message in [
        ({"root": np.zeros((3, 3))}, "root"),
        ({"hypotheses": 1.0}, "hypotheses"),
        ({"fps": 0}, "fps"),
        ({"max_frames": 0}, "max_frames"),
        ({"path": tmp_path / "page.txt"}, "html"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_html(**{"path": tmp_path / "page.html", **clip(), **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["figure.png", "page.html"])
def test_existing_files_are_kept_unless_asked(tmp_path, name):
    path = tmp_path / name
    path.write_text("mine")

    def write(**options):
        writer = plot_hypotheses if name == "figure.png" else write_html
        writer(**clip(frames=1), path=path, **options)

    with pytest.raises(FileExistsError, match=name):
        write()
    assert path.read_text() == "mine"
    write(overwrite=True)
    assert path.stat().st_size > 10_000
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("writer", ["figure", "page"])
def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, writer):
    def fail(self, target, *args, **kwargs):
        with open(target if writer == "figure" else self, "w") as file:
            file.write("half")
        raise OSError("disk full")

    target = "matplotlib.figure.Figure.savefig" if writer == "figure" else "pathlib.Path.write_text"
    monkeypatch.setattr(target, fail)
    with pytest.raises(OSError, match="disk full"):
        if writer == "figure":
            plot_hypotheses(**clip(frames=1), path=tmp_path / "figure.png")
        else:
            write_html(tmp_path / "page.html", **clip())
    assert not list(tmp_path.iterdir())


def test_drawing_libraries_are_imported_only_when_drawing():
    code = (
        "import sys, probpose.visualization as v; v.plot_hypotheses, v.write_html, v.write_overlay, v.write_rerun;"
        "assert not {'matplotlib', 'plotly', 'cv2', 'av', 'rerun'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("library", ["matplotlib", "plotly.io"])
def test_a_missing_library_is_named(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match="pip install probpose"):
        if library == "matplotlib":
            plot_hypotheses(**clip())
        else:
            write_html(tmp_path / "page.html", **clip())
