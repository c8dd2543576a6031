import sys

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("av")

from probpose.skeletons import get_skeleton
from probpose.video import Video, write_video
from probpose.visualization import write_overlay
from probpose.visualization.common import reproject
from probpose.visualization.overlay import covering_ellipses

SKELETON = get_skeleton("h36m_17")
HIP, KNEE, RIGHT_KNEE, RIGHT_HIP = (SKELETON.joint_names.index(f"{side}_{joint}") for side, joint in
                                    (("left", "hip"), ("left", "knee"), ("right", "knee"), ("right", "hip")))  # fmt: skip


def pictures(path):
    return [picture.astype(int) for picture in Video.open(path).frames()]


@pytest.fixture
def film(tmp_path):
    """`film(frames, size, fps)`: grey pictures, each a little lighter than the one before."""

    def make(frames, size=(480, 360), fps=25):
        with write_video(tmp_path / "film.mp4", size, fps, overwrite=True) as append:
            for number in range(frames):
                append(np.full((size[1], size[0], 3), 40 + 10 * number, np.uint8))
        return tmp_path / "film.mp4"

    return make


def along(person, frame, start, end):
    """Pixels of the picture between two joints of the pose: columns and rows."""
    ends = reproject(person, person.pose)[frame, [start, end]]
    return np.round(ends[0] + np.linspace(0.2, 0.8, 30)[:, None] * (ends[1] - ends[0])).astype(int).T


def test_the_pose_is_drawn_where_it_reprojects_in_the_colours_of_its_sides(tmp_path, filmed_person):
    person = filmed_person()
    drawn = pictures(write_overlay(tmp_path / "overlay.mp4", [person]))
    assert len(drawn) == 4 and drawn[0].shape == (360, 480, 3)
    for frame, picture in enumerate(drawn):
        for joints, sign in (((HIP, KNEE), 1), ((RIGHT_HIP, RIGHT_KNEE), -1)):
            x, y = along(person, frame, *joints)
            red, _, blue = picture[y, x].T
            assert np.median(sign * (blue - red)) > 60  # blue is the left, orange the right
    empty = drawn[0][-20:, -20:]
    assert empty.min() > 235 and np.ptp(empty) < 12


def test_the_recording_lies_below_and_frames_are_where_the_track_says(tmp_path, filmed_person, film):
    source = film(9)
    early, late = filmed_person(first=2, frames=3, place=(-0.7, 0, 4), name="a_1"), filmed_person(first=4, frames=4, name="a_2")
    drawn = pictures(write_overlay(tmp_path / "overlay.mp4", [early, late], source))
    assert len(drawn) == 6
    for number, picture in enumerate(drawn, 2):
        assert abs(np.median(picture[-60:, -60:]) - (40 + 10 * number)) < 4
        for person in (early, late):
            x, y = along(person, np.abs(person.track.frame - number).argmin(), HIP, KNEE)
            red, _, blue = picture[y, x].T
            assert (np.median(blue - red) > 60) == (number in person.track.frame)
    again = pictures(write_overlay(tmp_path / "again.mp4", [early, late], Video.open(source)))
    assert all((one == other).all() for one, other in zip(drawn, again))


def test_where_nobody_was_seen_the_pose_is_dashed(tmp_path, filmed_person):
    person = filmed_person(unseen=[2], spread=0.0, size=(960, 720))
    drawn = pictures(write_overlay(tmp_path / "overlay.mp4", [person]))

    def inked(frame):
        x, y = along(person, frame, HIP, KNEE)
        red, _, blue = drawn[frame][y, x].T
        return np.mean(blue - red > 60)

    assert inked(1) > 0.9 and inked(3) > 0.9
    assert 0.2 < inked(2) < 0.8


def test_marks_are_drawn_only_where_something_was_seen_and_are_paler_at_low_confidence(tmp_path, filmed_person):
    person = filmed_person(frames=3, spread=0.0, pose=None)
    ankle = SKELETON.joint_names.index("left_ankle")
    track = person.track
    track.confidence[1, ankle], track.confidence[2, ankle], track.keypoints_2d[2, ankle] = 0.05, 0, np.nan
    # Off the limbs, so that nothing else is there.
    track.keypoints_2d[:2, ankle] = 400, 300
    darkest = [picture[290:311, 390:411].min() for picture in pictures(write_overlay(tmp_path / "overlay.mp4", [person]))]
    assert darkest[0] + 40 < darkest[1] < darkest[2] - 15


def test_ellipses_hold_their_share_of_a_normal_distribution():
    rng = np.random.default_rng(0)
    shear = np.array([[3.0, 0.0], [4.0, 0.5]])
    points = rng.normal(size=(20_000, 1, 1, 2)) @ shear.T + [100, 50]
    for share in (0.5, 0.9):
        centre, axes = covering_ellipses(points, share)
        unit = (points[:, 0, 0] - centre[0, 0]) @ np.linalg.inv(axes[0, 0]).T
        assert np.mean((unit**2).sum(axis=1) < 1) == pytest.approx(share, abs=0.01)
    _, axes = covering_ellipses(points[:1], 0.9)
    assert not axes.any()


def test_what_is_behind_the_camera_or_far_outside_is_left_out(tmp_path, filmed_person):
    person = filmed_person(frames=3, unseen=[0, 1, 2])
    person.root[0, 2], person.root[1, 2] = -3.0, 1e-3
    drawn = pictures(write_overlay(tmp_path / "overlay.mp4", [person, filmed_person(frames=3, name="boris")]))
    assert len(drawn) == 3


def test_large_pictures_are_scaled_down_and_tiny_ones_have_no_legend(tmp_path, filmed_person):
    large = write_overlay(tmp_path / "large.mp4", [filmed_person(frames=1, size=(3840, 2160))])
    assert Video.open(large).size == (1920, 1080)
    tiny = pictures(write_overlay(tmp_path / "tiny.mp4", [filmed_person(frames=1, size=(96, 72), place=(0, 0, 9))]))[0]
    assert all(tiny[rows, columns].min() > 225 for rows in (np.s_[:12], np.s_[-12:]) for columns in (np.s_[:12], np.s_[-12:]))


def test_recordings_that_do_not_fit_are_refused(tmp_path, filmed_person, film):
    person, path = filmed_person(), tmp_path / "overlay.mp4"
    for people, message in [
        ([], "nobody"),
        ([person, filmed_person(fps=30.0)], r"25 frames.*30 frames"),
        ([person, filmed_person(size=(360, 480))], r"\(480, 360\).*\(360, 480\)"),
        ([filmed_person(root=None)], "anna has no root trajectory"),
        ([filmed_person(camera=None)], "anna has no camera"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_overlay(path, people)
    with pytest.raises(ValueError, match=r"\(320, 240\).*\(480, 360\)"):
        write_overlay(path, [person], film(4, size=(320, 240)))
    with pytest.raises(ValueError, match=r"30 frames per second.*at 25"):
        write_overlay(path, [person], Video.open(film(4, fps=30)))
    with pytest.raises(ValueError, match="ends before frame 7"):
        write_overlay(path, [filmed_person(first=7)], film(3))
    for change, message in [({"share": 1.0}, "share"), ({"max_hypotheses": 0}, "max_hypotheses"), ({"path": "overlay.avi"}, ".mp4")]:
        with pytest.raises(ValueError, match=message):
            write_overlay(**{"path": path, "people": [person], **change})
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_a_shorter_recording_is_drawn_as_far_as_it_goes(tmp_path, filmed_person, film):
    with pytest.warns(UserWarning, match="ends with frame 2, but people are followed to frame 4"):
        path = write_overlay(tmp_path / "overlay.mp4", [filmed_person(first=1)], film(3))
    assert len(pictures(path)) == 2


def test_a_track_of_unknown_rate_is_drawn_at_that_of_the_recording(tmp_path, filmed_person, film):
    person = filmed_person(fps=None)
    assert Video.open(write_overlay(tmp_path / "plain.mp4", [person])).fps == 30
    assert Video.open(write_overlay(tmp_path / "film_overlay.mp4", [person], film(4, fps=20))).fps == 20


def test_existing_files_are_kept_unless_asked(tmp_path, filmed_person):
    path = tmp_path / "overlay.mp4"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=path.name):
        write_overlay(path, [filmed_person(frames=1)])
    assert path.read_text() == "mine"
    write_overlay(path, [filmed_person(frames=1)], overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.stat().st_size > 1000


def test_a_missing_library_is_named(tmp_path, monkeypatch, filmed_person):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[video\]"):
        write_overlay(tmp_path / "overlay.mp4", [filmed_person()])
