import numpy as np
import pytest
import torch

from probpose.calibration import coverage_curve, ece, ece_of_curve, pit
from probpose.visualization import plot_reliability
from probpose.visualization.reliability import LINES

LEVELS = np.arange(21) / 20
NAMES = ["pelvis", "knee", "wrist"]


def over_confident(spread=0.5):
    rng = np.random.default_rng(0)
    target, hypotheses = rng.normal(size=(80, 3, 3)), spread * rng.normal(size=(20, 80, 3, 3))
    target[:, 0] = hypotheses[:, :, 0] = 0
    hypotheses[:, :, 2] *= 0.5
    return hypotheses, target


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figure_is_saved_in_every_format(tmp_path, suffix):
    path = tmp_path / f"reliability.{suffix}"
    plot_reliability(coverage_curve(*over_confident()), path=path)
    assert path.read_bytes().lstrip()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "reliability.svg"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="overwrite"):
        plot_reliability(np.zeros((21, 3)), path=path)
    assert path.read_text() == "old"
    plot_reliability(np.zeros((21, 3)), path=path, overwrite=True)
    assert path.read_text().startswith("<?xml")


def test_draws_every_joint_their_median_and_the_diagonal():
    clip = over_confident()
    curve = coverage_curve(*clip)
    figure = plot_reliability(curve)
    assert len(figure.axes) == 1
    drawn = [np.array(line.get_xydata()) for line in figure.axes[0].lines]
    diagonal, *joints, median = drawn
    np.testing.assert_allclose(diagonal[:, 0], diagonal[:, 1])
    for line, one in zip([*joints, median], [*curve.T, curve.median(1).values]):
        np.testing.assert_allclose(line, np.stack([LEVELS, one], axis=1))
    assert legend(figure)[0] == f"hypotheses: ECE {ece(*clip):.3f}"
    texts = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert texts["over-confident"][0] > texts["over-confident"][1]  # below the diagonal
    assert texts["under-confident"][0] < texts["under-confident"][1]


def test_several_curves_joint_names_and_ranks():
    clips = {"raw": over_confident(), "recalibrated": over_confident(1.0)}
    curves = {name: coverage_curve(*clip) for name, clip in clips.items()}
    figure = plot_reliability(curves, joint_names=NAMES, title="Both", pit={"recalibrated": pit(*clips["recalibrated"])})
    for name, label in zip(curves, legend(figure)):
        # The root is never covered, and exact: the wrist is the worst.
        assert label == f"{name}: ECE {ece_of_curve(curves[name]):.3f} (dotted: wrist)"
    assert figure.get_suptitle() == "Both"
    _, histogram = figure.axes
    outline = histogram.patches[-1]
    values, edges, _ = outline.get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1)  # NaN of the root left out
    assert outline.get_edgecolor()[:3] == pytest.approx(tuple(int(LINES[1][i : i + 2], 16) / 255 for i in (1, 3, 5)))


def test_other_quantiles_and_a_single_set_of_ranks():
    clip = over_confident()
    levels = [0.1, 0.5, 0.9]
    figure = plot_reliability(coverage_curve(*clip, levels), torch.tensor(levels), pit=pit(*clip).numpy())
    assert len(figure.axes) == 2
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_xdata(), levels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": np.zeros((20, 3))}, "shape"),
        ({"curves": np.zeros(21)}, "shape"),
        ({"curves": {}}, "one to 6"),
        ({"curves": np.full((21, 3), 1.5)}, "0..1"),
        ({"curves": np.full((21, 3), np.nan)}, "finite"),
        ({"quantiles": LEVELS * 2}, "0..1"),
        ({"quantiles": LEVELS[::-1]}, "rise"),
        ({"joint_names": NAMES[:2]}, "names 2 joints"),
        ({"pit": {"other": np.zeros(3)}}, "other"),
        ({"pit": np.full(3, np.nan)}, "without NaN"),
        ({"pit": [0.5, 2.0]}, "0..1"),
        ({"path": "picture.jpeg"}, "must end in"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        plot_reliability(**{"curves": np.zeros((21, 3)), **change})


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plot_reliability(np.zeros((21, 3)), path=tmp_path / "nowhere" / "picture.png")
