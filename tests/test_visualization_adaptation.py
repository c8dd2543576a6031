import numpy as np
import pytest
from matplotlib.colors import to_hex

from probpose.skeletons import get_skeleton
from probpose.visualization import plot_adaptation
from probpose.visualization.adaptation import BACKDROP, MARK
from probpose.visualization.common import COLOURS

HISTORY = [
    {"round": 0, "reprojection_mm": 40.0},
    {"round": 1, "reprojection_mm": 30.0, "source_mm": 70.0},
    {"round": 2, "reprojection_mm": 25.0, "source_mm": 55.0},
    {"round": 3, "reprojection_mm": 28.0, "source_mm": 50.0},
]
POINTS = np.random.default_rng(0).uniform(100, 400, (2, 17, 2))
BEFORE, AFTER = np.add(POINTS, [30, 40]), np.add(POINTS, [3, 4])  # 50 and 5 pixels off


def scene(**changes):
    return {
        "history": HISTORY,
        "best_round": 2,
        "keypoints_2d": POINTS,
        "before": np.add(POINTS, [30, 40]),
        "after": np.add(POINTS, [3, 4]),
        **changes,
    }


def lines(axes, colour):
    return [np.array(line.get_xydata()) for line in axes.lines if to_hex(line.get_color()).upper() == colour]


def panels(figure):
    """Curves of target and source, then before and after of each frame."""
    curves, poses = figure.subfigs
    return [*curves.axes, *poses.axes]


def test_curves_show_every_round_and_mark_the_kept_one():
    target, source = panels(plot_adaptation(**scene()))[:2]
    np.testing.assert_allclose(target.lines[1].get_xydata(), [[0, 40], [1, 30], [2, 25], [3, 28]])
    np.testing.assert_allclose(source.lines[1].get_xydata(), [[1, 70], [2, 55], [3, 50]])
    np.testing.assert_allclose(lines(target, MARK)[1], [[2, 25]])
    for axes in (target, source):
        np.testing.assert_allclose(lines(axes, MARK)[0][:, 0], 2)
    assert [text.get_text() for text in target.get_legend().get_texts()] == ["kept: round 2"]


def test_poses_stand_over_the_keypoints():
    names = ["walk, 0.1 s", "walk, 0.7 s"]
    rows = np.reshape(panels(plot_adaptation(**scene(names=names)))[2:], (2, 2))
    skeleton = get_skeleton("h36m_17")
    left_arm = list(skeleton.left[-3:])
    for frame, (row, name) in enumerate(zip(rows, names)):
        assert row[0].get_ylabel() == name
        for axes, poses, gap in zip(row, (BEFORE, AFTER), ("50.0 px off", "5.0 px off")):
            arms = [line for line in lines(axes, COLOURS["left"]) if len(line) == 4]
            np.testing.assert_allclose(arms[-1][1:], poses[frame][left_arm])
            assert len(lines(axes, BACKDROP)) == sum(len(lines(axes, colour)) for colour in COLOURS.values())
            assert axes.get_ylim()[0] > axes.get_ylim()[1]  # y points down
            assert [text.get_text() for text in axes.texts] == [gap]
    assert [axes.get_title() for axes in rows[0]] == ["before", "after"]


def test_what_was_not_observed_does_not_count():
    points, confidence = POINTS.copy(), np.ones((2, 17))
    points[:, 3] = np.nan
    confidence[0, 5], confidence[1] = 0, 0
    before = BEFORE.copy()
    before[:, [3, 5]] += 1000
    axes = panels(plot_adaptation(**scene(keypoints_2d=points, confidence=confidence, before=before)))
    assert [text.get_text() for text in axes[2].texts] == ["50.0 px off"]
    assert not axes[4].texts  # nobody was seen


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figure_is_saved_in_every_format_and_replaced_only_when_asked(tmp_path, suffix):
    path = tmp_path / f"adaptation.{suffix}"
    plot_adaptation(**scene(), path=path, title="A scene")
    assert path.read_bytes().lstrip()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    with pytest.raises(FileExistsError, match="overwrite"):
        plot_adaptation(**scene(), path=path)
    plot_adaptation(**scene(), path=path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best_round": 4}, "none of the 4 rounds"),
        ({"before": POINTS[:, :16]}, "`before` has shape"),
        ({"after": POINTS[:1]}, "`after` has shape"),
        ({"after": np.full_like(POINTS, np.nan)}, "finite"),
        ({"keypoints_2d": POINTS[0]}, "`keypoints_2d` has shape"),
        ({"names": ["one"]}, "names 1 frames"),
        ({"path": "picture.jpeg"}, "must end in"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        plot_adaptation(**scene(**change))
