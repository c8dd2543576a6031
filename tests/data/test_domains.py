"""Two domains side by side: every known mistake is named, and nothing else."""

import json
import math

import pytest
import torch
from filmed_walks import FLIP, LENS, TO_3DHP, clip_of, with_trajectory

from probpose.data import compare_domains, target_tracks
from probpose.geometry import Camera
from probpose.skeletons import convert

pytestmark = pytest.mark.usefixtures("loud")


@pytest.fixture
def windows(poses):
    """Six walks in all directions, before a camera that looks straight ahead."""
    return torch.stack([poses(20, seed=i) for i in range(6)])


def compare(pose, source=None, target=None, camera=LENS, **options):
    source = LENS.project(pose) if source is None else source
    return compare_domains(pose, source, source if target is None else target, LENS, camera, **options)


def test_like_and_like(windows):
    points = LENS.project(windows)
    report = compare(windows)
    assert report.warnings == () and "nothing looks wrong" in report.to_text()
    numbers = report.source
    assert (numbers.frames, numbers.observed, numbers.swapped, numbers.twisted, numbers.head_above_feet) == (120, 1, 0, 0, 1)
    size = (points.amax(2) - points.amin(2)).mean(-1).median() / 1100
    assert numbers.box_size[1] == pytest.approx(size.item(), rel=1e-3) and numbers.reprojection < 1e-6
    root = ((points[..., 0, :] - 500) / 1100).flatten(0, 1).nanmedian(0).values
    assert numbers.root_position == pytest.approx(tuple(root.tolist()), abs=1e-6)
    assert numbers.elevation == pytest.approx(0, abs=2)
    assert report.target.swapped is None and report.target.limbs is None
    assert json.loads(json.dumps(report.to_dict()))["source"]["box_size"] == list(numbers.box_size)


def test_another_lens_changes_nothing(windows):
    other = Camera((2200.0, 2200.0), (960.0, 540.0), image_size=(1920, 1080))
    ours, theirs = compare(windows).source, compare(windows, target=other.project(windows), camera=other).target
    for name in ("box_size", "root_position", "speed", "observed", "left_to_the_right"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name), abs=1e-5)
    tracks = target_tracks([clip_of(window, f"walk {i}", camera=other) for i, window in enumerate(windows)])
    assert compare_domains(windows, LENS.project(windows), tracks, LENS).target == theirs


@pytest.mark.parametrize("degrees", [-20, 15])
def test_elevation_is_the_camera_s(windows, degrees):
    angle = math.radians(degrees)
    turn = torch.tensor([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    about = windows.mean((0, 1, 2))
    # A camera that looks down sees the head nearer than the feet: up points towards it.
    seen = (windows - about) @ turn.T + about
    head_is_nearer = (seen[..., 10, 2] - seen[..., 0, 2]).mean() - (windows[..., 10, 2] - windows[..., 0, 2]).mean() < 0
    assert bool(head_is_nearer) == (degrees > 0)
    assert compare(seen).source.elevation == pytest.approx(compare(windows).source.elevation + degrees, abs=0.5)


UP = torch.tensor([1.0, -1.0, 1.0])
LEGS = [0, 4, 5, 6, 1, 2, 3, *range(7, 17)]
MISTAKES = {
    "millimetres": (lambda p: (1000 * p, None, None), "source: poses look like millimetres"),
    "centimetres": (lambda p: (100 * p, None, None), "source: poses are in no known unit"),
    "children": (lambda p: (0.5 * p, None, None), "source: unusual bone lengths (thigh 0.21 m"),
    "swapped": (lambda p: (p, LENS.project(p)[..., FLIP, :], None), "source: left and right are swapped between poses and"),
    "y up": (lambda p: (p * UP, LENS.project(p * UP), LENS.project(p)), "source: poses stand upside down"),
    "y up in the image": (lambda p: (p, None, 1000 - LENS.project(p)), "target: the head is below the feet in 100%"),
    "relative": (lambda p: (p - p[:, :, :1], LENS.project(p), None), "source: no pose is in front of the camera"),
    "z up": (
        lambda p: (torch.stack([p[..., 0], p[..., 2], 3 - p[..., 1]], -1), LENS.project(p), None),
        "source: poses stand across the image's vertical",
    ),
    "far away": (lambda p: (p, None, (LENS.project(p) - 500) / 4 + 500), "boxes differ by a factor of 4.0"),
    "too fast": (lambda p: (p, None, LENS.project(p)[:, ::4]), "speeds differ by a factor of"),
    "other joints": (lambda p: (p, None, LENS.project(p)[..., TO_3DHP, :]), "is the joint order h36m_17?"),
    "half swapped": (lambda p: (p, None, LENS.project(p)[..., LEGS, :]), "target: hips and shoulders run opposite ways"),
    "normalised": (lambda p: (p, None, LENS.project(p) / 500 - 1), "target: keypoints look normalised"),
    "other camera": (lambda p: (p, LENS.project(p) + 200, None), "source: projected poses miss the keypoints by"),
    "off the axis": (lambda p: (p, None, LENS.project(p) + 2000), "target: people stand more than 45° off the optical axis"),
    "hardly seen": (
        lambda p: (p, None, torch.where(torch.arange(17)[:, None] % 3 > 0, torch.nan, LENS.project(p))),
        "target: only 35% of the joints are observed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(windows, name):
    mistake, message = MISTAKES[name]
    report = compare(*mistake(windows))
    assert any(message in warning for warning in report.warnings), report.to_text()
    assert f"! {next(warning for warning in report.warnings if message in warning)}" in report.to_text()


def test_a_root_that_is_somewhere_else(windows):
    assert sum("the root is not between the hips" in warning for warning in compare(windows, root_index=14).warnings) == 2
    slots = torch.stack([with_trajectory(window) for window in windows])
    assert any("the root is not between the hips" in warning for warning in compare(slots, LENS.project(windows)).warnings)
    report = compare(convert(windows, "h36m_17", "mpi_inf_3dhp_17"), skeleton="mpi_inf_3dhp_17")
    assert report.warnings == () and report.skeleton == "mpi_inf_3dhp_17"


def test_poses_of_the_target_tell_its_sides(windows):
    relative = windows - windows[:, :, :1]
    assert compare(windows, target_pose=relative).warnings == ()
    report = compare(windows, target_pose=relative[..., FLIP, :])
    assert report.target.swapped == 1 and report.target.reprojection is None
    assert any("target: left and right are swapped" in warning for warning in report.warnings)


def test_everybody_from_behind_or_swapped(windows):
    points = LENS.project(windows)
    away = points[..., 4, 0] < points[..., 1, 0]
    target = torch.where(away[..., None, None], points, torch.nan)
    report = compare(windows, target=target)
    assert report.target.left_to_the_right == 0
    assert any("everybody is seen from behind, or left and right are swapped" in warning for warning in report.warnings)


def test_compare_domains_refuses(windows):
    points = LENS.project(windows)
    for arguments, options, message in (
        ((windows, points, points, LENS), {}, "target: every clip needs one camera, pass target_camera"),
        ((windows, points, [points], LENS, [LENS, LENS]), {}, "target: expected as many cameras"),
        ((windows, points[..., :5, :], points, LENS, LENS), {}, r"source: keypoints must have shape \(..., frames, 17, 2\)"),
        ((windows[:3], points, points, LENS, LENS), {}, "source: poses must have shape"),
        ((windows, points, points * math.nan, LENS, LENS), {}, "target: no joint is observed in any of 120 frames"),
        ((windows, points, points, LENS, LENS), {"root_index": 17}, "root_index must be a joint"),
        ((windows, points, points, LENS, LENS), {"fps": 0}, "fps must be a positive"),
        ((windows, points, target_tracks(clip_of(windows[0]), skeleton="h36m_16"), LENS), {}, "target: keypoints must"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            compare_domains(*arguments, **options)
