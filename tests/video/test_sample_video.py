"""From a video to 3D: `read_video`, `probpose sample clip.mp4`, `probpose draw`."""

import sys
from pathlib import Path

import numpy as np
import pytest
from clips import turn
from filmed import SIZE, Seer, film

from probpose import read_keypoints
from probpose.data import KeypointTrack
from probpose.results import SampledPerson
from probpose.video import Video, read_video

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"


def people(frames: int = 60, unseen: slice | None = slice(20, 35)) -> list[KeypointTrack]:
    """Two walking people in a small picture; the first is out of sight for 15 frames."""
    tracks = []
    for track in read_keypoints(EXAMPLES / "two_people.npz"):
        points = track.keypoints_2d[:frames] * np.array(SIZE, np.float32) / np.array(track.image_size, np.float32)
        confidence = track.confidence[:frames].copy()
        if unseen is not None and not tracks:
            points[unseen], confidence[unseen] = np.nan, 0
        tracks.append(KeypointTrack(points, confidence, np.arange(frames), track.track_id, track.skeleton, SIZE, 30.0))
    return tracks


@pytest.fixture
def clip(tmp_path):
    return film(tmp_path / "clip.mp4", 60)


@pytest.fixture
def my_detector(tmp_path, monkeypatch):
    """A module `seer_module` in the current folder with detectors for the command line."""
    code = "from test_sample_video import Seer, people\ndetect = Seer(people())\n"
    code += "def nobody(frames):\n    return [None for _ in frames]\ndef careless(frames):\n    return []\n"
    (tmp_path / "seer_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("seer_module", None)


def test_every_frame_reaches_the_detector_and_people_keep_their_identities(clip):
    expected = people()
    tracks = read_video(clip, Seer(expected), batch_size=7, progress=False)
    assert len(tracks) == 2
    for track in tracks:
        assert (track.skeleton, track.image_size, track.fps, len(track)) == ("h36m_17", SIZE, 30.0, 60)
        assert any(
            np.array_equal(track.keypoints_2d, other.keypoints_2d, equal_nan=True) and np.array_equal(track.confidence, other.confidence)
            for other in expected
        )
    bridged = next(track for track in tracks if not track.observed.all())
    np.testing.assert_array_equal(np.flatnonzero(~bridged.observed), np.arange(20, 35))


def test_at_another_rate(clip):
    tracks = read_video(clip, Seer(people(unseen=None)), fps=15, progress=False)
    assert [(len(track), track.fps) for track in tracks] == [(30, 15.0)] * 2
    np.testing.assert_allclose(sorted(t.keypoints_2d[3, 0, 0] for t in tracks), sorted(t.keypoints_2d[6, 0, 0] for t in people()))


def test_the_command(run_command, tiny_model, clip, tmp_path, my_detector):
    words = [
        "sample",
        clip,
        "--detector",
        "seer_module:detect",
        "--model",
        tiny_model,
        "--out",
        tmp_path / "out",
        "--no-page",
        "--no-picture",
    ]
    code, out, err = run_command(*words, "--export", "csv")
    assert code == 0, err
    first, second = sorted(track.track_id for track in read_keypoints(tmp_path / "out" / "clip_keypoints.npz"))
    names = [f"clip_person{number}" for number in (first, second)]
    written = ["clip_keypoints.npz", "clip_overlay.mp4", *(f"{name}.{suffix}" for name in names for suffix in ("csv", "npz"))]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(written)
    assert "15 frames bridged (20-34)" in out
    results = [SampledPerson.load(tmp_path / "out" / f"{name}.npz") for name in names]
    assert sorted(result.bridged.sum() for result in results) == [0, 15]
    assert all(np.isfinite(result.pose).all() and np.isfinite(result.hypotheses).all() for result in results)
    overlay = Video.open(tmp_path / "out" / "clip_overlay.mp4")
    assert (overlay.size, overlay.num_frames, overlay.fps) == (SIZE, 60, 30.0)

    code, _, err = run_command(*words)
    assert code == 2 and "clip_overlay.mp4 exists" in err
    code, _, err = run_command(*words, "--no-overlay")
    assert code == 2 and "clip_keypoints.npz exists; sample it (probpose sample" in err
    # What was found can be sampled again, without the detector, and gives the same motion.
    again = ["sample", tmp_path / "out" / "clip_keypoints.npz", "--video", clip, "--model", tiny_model, "--out", tmp_path / "again"]
    code, _, err = run_command(*again, "--no-page", "--no-picture")
    assert code == 0, err
    for number, result in zip((first, second), results):
        same = SampledPerson.load(tmp_path / "again" / f"clip_keypoints_person{number}.npz")
        np.testing.assert_array_equal(same.hypotheses, result.hypotheses)
    assert (tmp_path / "again" / "clip_keypoints_overlay.mp4").exists()

    drawn = ["draw", *(tmp_path / "out" / f"{name}.npz" for name in names)]
    code, _, err = run_command(*drawn, "--to", tmp_path / "pair.mp4", "--to", tmp_path / "pair.rrd", "--video", clip)
    assert code == 0 and (tmp_path / "pair.mp4").exists() and (tmp_path / "pair.rrd").exists(), err
    code, _, err = run_command(*drawn, "--to", tmp_path / "pair.pdf")
    assert code == 2 and "shows one person" in err
    code, _, err = run_command(*drawn[:2], "--to", tmp_path / "one.pdf", "--to", tmp_path / "one.html", "--frames", "3,40")
    assert code == 0 and (tmp_path / "one.pdf").read_bytes()[:5] == b"%PDF-" and (tmp_path / "one.html").exists(), err


def test_the_shipped_detector_through_the_command(run_command, tiny_model, tiny_detectors, tmp_path):
    clip = film(tmp_path / "clip.mp4", 6)
    person_model, pose_model = tiny_detectors
    words = ["sample", clip, "--person-model", person_model, "--pose-model", pose_model, "--model", tiny_model, "--out", tmp_path / "out"]
    code, _, err = run_command(*words, "--no-page", "--no-picture", "--no-overlay")
    assert code == 0 or "nobody was found in any of its 6 frames" in err, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip.mp4", "--detector", "seer_module:nobody"], "clip.mp4: nobody was found in any of its 60 frames"),
        (["clip.mp4", "--detector", "seer_module:careless"], "frame"),
        (["clip.mp4", "--detector", "seer_module:absent"], "absent"),
        (["clip.mp4", "--detector", "yolo"], "vitpose"),
        (["clip.mp4", "--detector", "seer_module:detect", "--pose-model", "some/model"], "not of seer_module:detect"),
        (["clip.mp4", "--image-size", "320x240"], "--image-size: for keypoint files"),
        (["clip.mp4", "--detector", "seer_module:detect", "--aggregation", "best"], "best"),
        (["nowhere.mp4", "--detector", "seer_module:detect"], "nowhere.mp4"),
        (["empty.mp4", "--detector", "seer_module:detect"], "empty.mp4"),
        (["two_people.npz", "--detector", "seer_module:detect"], "--detector: for videos"),
        (["clip.mp4", "--batch"], "--batch needs a folder"),
        (["two_people.npz", "--video", "nowhere.mp4"], "nowhere.mp4"),
        (["two_people.npz", "--video", "clip.mp4"], "pictures of (320, 240) pixels, but the people were seen in ones of (1000, 1002)"),
        (["clip.mp4", "--person-model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run_command, tiny_model, clip, tmp_path, my_detector, words, message):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "two_people.npz").write_bytes((EXAMPLES / "two_people.npz").read_bytes())
    code, _, err = run_command("sample", *words, "--model", tiny_model, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("probpose:")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
    assert not (tmp_path / "out").exists()


def test_info(run_command, clip, tmp_path):
    code, out, err = run_command("info", clip)
    assert code == 0 and "320x240, 60 frames at 30 per second (2.0 s)" in out, err
    turn(clip, 90)
    assert "240x320" in (out := run_command("info", clip)[1]) and "turned by 90 degrees" in out
    assert "video" in next(line for line in run_command("info")[1].splitlines() if line.startswith("extras"))
    (tmp_path / "empty.mp4").touch()
    code, _, err = run_command("info", tmp_path / "empty.mp4")
    assert code == 2 and "empty.mp4 is empty" in err
