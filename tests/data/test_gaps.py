"""Frames in which nobody was seen: how they are named, and where tracks are split because of them."""

import numpy as np
import pytest

from probpose.data import KeypointTrack, describe_frames, split_at_gaps


def a_track(seen, fps=30.0, first_frame=100, notes=()):
    """A track of the frames for which `seen` holds; x is the frame number."""
    seen = np.asarray(seen, dtype=bool)
    frame = first_frame + np.arange(len(seen))
    points = np.repeat(frame[:, None, None], 17, axis=1) * np.ones(2)
    points[~seen] = np.nan
    raw = np.where(seen[:, None], 1.5, np.nan).repeat(17, 1)
    confidence = np.ones((len(seen), 17))
    return KeypointTrack(points, confidence, frame, 3, "coco_17", (640, 480), fps, {"path": "clip.mp4", "notes": list(notes)}, raw)


def spells(*lengths):
    """Seen for so many frames, then unseen for so many, and so on."""
    return np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)


@pytest.mark.parametrize(
    ("seen", "first_frame", "text"),
    [
        ([], 0, ""),
        ([0, 0, 0], 5, ""),
        ([1], 12, "12"),
        ([1, 1], 0, "0-1"),
        ([0, 0, 1, 0, 1, 1, 1], 10, "12, 14-16"),
        ([1, 0, 1, 0, 1], 0, "0, 2, 4"),
    ],
)
def test_frames_are_described_in_ranges(seen, first_frame, text):
    assert describe_frames(np.array(seen, dtype=bool), first_frame) == text


def test_bridged_frames_by_their_numbers_in_the_video():
    track = a_track(spells(40, 15, 20), first_frame=0)
    assert describe_frames(~track.observed, track.frame[0]) == "40-54"


@pytest.mark.parametrize("fps", [25.0, 30.0, 60.0, None])
def test_a_gap_longer_than_the_limit_splits(fps):
    most = round(0.5 * (fps or 30) - 0.01)  # frames in half a second
    track = a_track(spells(10, most, 10), fps)
    (whole,) = split_at_gaps(track, 0.5)
    assert len(whole) == len(track) and (~whole.observed).sum() == most and not whole.source["notes"]
    first, second = split_at_gaps(a_track(spells(10, most + 1, 10), fps), 0.5)
    assert first.frame.tolist() == list(range(100, 110)) and second.frame.tolist() == list(range(111 + most, 121 + most))
    for clip in (first, second):
        assert (clip.track_id, clip.skeleton, clip.image_size, clip.fps) == (3, "coco_17", (640, 480), fps)
        assert (clip.keypoints_2d[:, 0, 0] == clip.frame).all() and (clip.confidence_raw == 1.5).all()
        assert f"out of sight in frames 110-{110 + most}: 2 clips" in clip.source["notes"][0] and clip.source["path"] == "clip.mp4"


def test_clips_begin_and_end_where_the_person_is_seen():
    seen = np.concatenate([np.zeros(50, dtype=bool), spells(10, 5, 10, 40, 1, 90, 30), np.zeros(3, dtype=bool)])
    track = a_track(seen, notes=["from a test"])
    clips = split_at_gaps(track)
    assert [len(clip) for clip in clips] == [25, 1, 30] and all(clip.observed[[0, -1]].all() for clip in clips)
    np.testing.assert_array_equal(np.concatenate([clip.frame[clip.observed] for clip in clips]), track.frame[track.observed])
    assert [clip.source["notes"] for clip in clips] == [
        ["from a test", "person 3 was out of sight in frames 175-214, 216-305: 3 clips"]
    ] * 3
    clips[0].source["notes"].append("changed")
    assert len(clips[1].source["notes"]) == 2 and track.source["notes"] == ["from a test"]


def test_frames_without_the_person_at_either_end_are_no_gap():
    clips = split_at_gaps(a_track(np.concatenate([np.zeros(90, dtype=bool), spells(10), np.zeros(90, dtype=bool)]), first_frame=0))
    assert [clip.frame.tolist() for clip in clips] == [list(range(90, 100))] and not clips[0].source["notes"]


def test_limits_of_nothing_and_of_everything():
    track = a_track(spells(3, 1, 3, 500, 3))
    assert [len(clip) for clip in split_at_gaps(track, 0)] == [3, 3, 3]
    assert [len(clip) for clip in split_at_gaps(track, np.inf)] == [510]


def test_bad_splits():
    with pytest.raises(ValueError, match="person 3 was not observed in any of 4 frames"):
        split_at_gaps(a_track(np.zeros(4)))
    for max_gap in (-1, float("nan")):
        with pytest.raises(ValueError, match="max_gap must be a number of seconds"):
            split_at_gaps(a_track(np.ones(4)), max_gap)
