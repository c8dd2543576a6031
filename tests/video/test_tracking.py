"""Who is who: identities through crossings, gaps, false detections and wrong poses, and what the tracks hold."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scenes import MEETINGS, NOBODY, meet

from probpose.data import read_keypoints
from probpose.data.keypoints import link
from probpose.video import People, track_people


def owners(tracks, scene):
    """Whose detections each track holds, in order of frames: `(frames observed,)` identities."""
    whose = {(frame, points.tobytes()): identity for frame, points, identity in zip(*scene.flat())}
    pairs = [zip(track.frame[track.observed], track.keypoints_2d[track.observed]) for track in tracks]
    return [np.array([whose[frame, points.tobytes()] for frame, points in pair]) for pair in pairs]


def keeps_both(tracks, scene):
    """Whether there are two tracks, one of each person, that begin and end with that person."""
    found = owners(tracks, scene)
    ends = [(np.bincount(who[:10] + 1).argmax() - 1, np.bincount(who[-10:] + 1).argmax() - 1) for who in found]
    return sorted(ends) == [(0, 0), (1, 1)]


def track(scene, **options):
    return track_people(scene.people, "h36m_17", scene.fps, (1920, 1080), **options)


def as_coco(scene):
    """The scene as a file without identities."""
    return [
        {"image_id": int(frame), "category_id": 1, "score": 0.9, "keypoints": np.nan_to_num(np.c_[points, np.ones(17)]).ravel().tolist()}
        for frame, points, _ in zip(*scene.flat())
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Identities
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 15])
@pytest.mark.parametrize("meeting", ["pass", "slant", "depth", "overtake", "stand"])
def test_people_who_cross_keep_their_identities(meeting, hidden, tmp_path):
    """Every detection of either is in one track; also where a file without identities is read."""
    scene = meet(meeting, hidden=hidden, missed=0, false=0, seed=1)
    tracks = track(scene)
    assert [set(who) for who in owners(tracks, scene)] in ([{0}, {1}], [{1}, {0}])
    assert sorted(int(t.observed.sum()) for t in tracks) == [120 - hidden, 120] and {len(t) for t in tracks} == {120}

    path = tmp_path / "people.json"
    path.write_text(json.dumps(as_coco(scene)))
    read = read_keypoints(path, skeleton="h36m_17", fps=30)
    assert len(read) == 2
    for one, other in zip(tracks, read):
        np.testing.assert_allclose(one.keypoints_2d, other.keypoints_2d, rtol=1e-5)


@pytest.mark.parametrize("fps", [25, 30, 60])
def test_identities_in_scenes_as_detectors_give_them(fps):
    """Jitter, detections missed, false ones, joints that are another's, people hidden for a while: right with few exceptions."""
    kinds = [(meeting, hidden) for meeting in MEETINGS for hidden in ((0, 12) if meeting != "turn" else (0, 6))]
    scenes = [meet(meeting, fps=fps, hidden=hidden, seed=fps + seed) for meeting, hidden in kinds for seed in range(2)]
    kept = [keeps_both(track(scene), scene) for scene in scenes]
    assert sum(kept) >= len(kept) - 3, [kind for kind, good in zip(np.repeat(kinds, 2, axis=0).tolist(), kept) if not good]


@pytest.mark.parametrize("fps", [25, 30, 60])
def test_a_person_missing_for_15_frames_is_bridged(fps):
    scene = meet("pass", fps=fps, missed=0, false=0).only(1)
    scene.people[40:55] = [NOBODY] * 15
    (person,) = track(scene)
    assert (~person.observed).nonzero()[0].tolist() == list(range(40, 55)) and len(person) == len(scene.people)
    frame, keypoints, _ = scene.flat()
    gone = (frame >= 40) & (frame < 55)
    assert link(frame[~gone], keypoints[~gone]).max() == 0  # its max_gap is 15 frames
    assert link(frame[~gone], keypoints[~gone], max_gap=14).max() == 1


def test_longer_than_max_gap_is_another_person():
    scene = meet("stand", missed=0, false=0).only(1)
    scene.people[50:81] = [NOBODY] * 31
    assert [(t.track_id, t.frame[0], t.frame[-1]) for t in track(scene)] == [(0, 0, 49), (1, 81, 119)]
    assert len(track(scene, max_gap=31 / 30)) == 1
    assert len(track(scene, max_gap=0)) == 2


def test_wrong_poses_tear_nobody_apart_who_is_alone():
    scene = meet("pass", missed=0, false=0, garbled=0.05, seed=3).only(0)
    frame, keypoints, _ = scene.flat()
    assert link(frame, keypoints).max() == 0
    (person,) = track(scene)
    assert person.observed.all() and len(person) == 120


def test_boxes_hold_together_what_wrong_poses_tear_apart():
    torn, held, seen = 0, 0, 0
    for seed in range(4):
        scene = meet("pass", missed=0, false=0, garbled=0.05, seed=seed)
        frame, keypoints, _ = scene.flat()
        torn += np.sort(np.bincount(link(frame, keypoints)))[-2:].sum()
        held += sum(person.observed.sum() for person in track(scene)[:2])
        seen += len(frame)
    assert held > torn and held > 0.98 * seen


def test_the_order_of_the_detections_does_not_matter():
    scene = meet("pass", hidden=6, seed=5)
    backwards = [found[::-1] for found in scene.people]
    for one, other in zip(track(scene), track_people(iter(backwards), "h36m_17", 30), strict=True):
        np.testing.assert_array_equal(one.keypoints_2d, other.keypoints_2d)
        np.testing.assert_array_equal(one.frame, other.frame)


# ---------------------------------------------------------------------------------------------------------------------
# What is left out, and what the tracks hold
# ---------------------------------------------------------------------------------------------------------------------


def test_false_detections_are_left_out_with_a_note_and_nothing_else_is():
    scene = meet("stand", missed=0, false=0.06, seed=1)
    whose = np.concatenate(scene.identity)
    source = {"path": "clip.mp4", "format": "video", "notes": ["read at 30 frames per second"]}
    tracks = track(scene, source=source)
    assert [len(t) for t in tracks] == [120, 120] and all(t.observed.all() for t in tracks)
    assert all(-1 not in who for who in owners(tracks, scene)) and (whose < 0).sum() > 3
    assert tracks[0].source["path"] == "clip.mp4" and source["notes"] == ["read at 30 frames per second"]
    first, note = tracks[0].source["notes"]
    frames = np.unique(np.repeat(np.arange(120), list(map(len, scene.people)))[whose < 0])
    assert first == source["notes"][0] and "seen in fewer than 6 frames were left out" in note
    assert str(frames[0]) in note and str(frames[-1]) in note
    assert tracks[0].source["notes"] is not tracks[1].source["notes"]

    everything = track(scene, min_frames=1)
    assert sum(int(t.observed.sum()) for t in everything) == len(whose) and not everything[0].source["notes"]


def test_a_clip_too_short_for_anybody_keeps_everybody():
    scene = meet("pass", missed=0, false=0)
    for frames in (1, 3):
        tracks = track_people(scene.people[:frames], "h36m_17", 30)
        assert [len(t) for t in tracks] == [frames, frames] and tracks[0].source == {"notes": []}


def test_the_tracks_are_as_readers_have_them():
    scene = meet("pass", missed=0, false=0)
    late = [NOBODY] * 10 + [found[whose == 0] for found, whose in zip(scene.people[:50], scene.identity)] + scene.people[50:]
    late[70] = NOBODY
    tracks = track_people(late, "h36m_17", 30, (1920, 1080))
    assert [t.track_id for t in tracks] == [0, 1] and [t.frame[0] for t in tracks] == [10, 60]
    for person in tracks:
        assert person.skeleton == "h36m_17" and person.fps == 30 and person.image_size == (1920, 1080)
        gap = 70 - person.frame[0]
        assert np.flatnonzero(~person.observed).tolist() == [gap]
        assert (person.confidence[gap] == 0).all() and np.isnan(person.confidence_raw[gap]).all()
        assert (np.delete(person.confidence_raw, gap, 0) == np.delete(person.confidence, gap, 0)).all()


def test_nobody():
    assert track_people([], "coco_17", 30) == [] == track_people([NOBODY] * 40, "h36m_17", 30)
    unseen = People(np.full((1, 17, 2), 50.0), np.zeros((1, 17)), boxes=np.array([[0, 0, 9, 9]]), score=np.ones(1))
    assert track_people([unseen] * 5, "h36m_17", 30) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skeleton": "openpose_25"}, "people must have the 25 joints of 'openpose_25', not 17"),
        ({"skeleton": "body"}, "unknown skeleton 'body'"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": None}, "fps must be the number"),
        ({"image_size": (0, 1)}, "image_size must be"),
        ({"max_gap": -1}, "max_gap must be a number of seconds, at least 0, not -1"),
        ({"max_gap": float("nan")}, "max_gap must be"),
        ({"min_frames": 0}, "min_frames must be at least 1, not 0"),
    ],
)
def test_bad_input(options, message):
    people = [People(np.ones((1, 17, 2)) * np.arange(17)[:, None], np.ones((1, 17)))] * 3
    with pytest.raises(ValueError, match=message):
        track_people(**{"people": people, "skeleton": "h36m_17", "fps": 30} | options)


def test_without_the_tracker(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[video\]"):
        track(meet())


def test_importing_is_light():
    code = "import sys, probpose.video.tracking; print([m for m in ('trackers', 'supervision', 'torch', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
