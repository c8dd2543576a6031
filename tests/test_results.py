"""One person's result: what is stored comes back, and what the pipeline said is what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from probpose import ProbPosePipeline, read_keypoints
from probpose.data import KeypointTrack
from probpose.geometry import Camera
from probpose.results import SampledPerson, name_clips, sample_person
from probpose.visualization import draw_person

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"


def cut(track: KeypointTrack, start: int, stop: int, unseen: slice | None = None) -> KeypointTrack:
    points, confidence = track.keypoints_2d[start:stop].copy(), track.confidence[start:stop].copy()
    if unseen is not None:
        points[unseen], confidence[unseen] = np.nan, 0
    return KeypointTrack(
        points, confidence, track.frame[start:stop], track.track_id, track.skeleton, track.image_size, track.fps, dict(track.source)
    )


@pytest.fixture(scope="module")
def pipe(tiny_model):
    pipe = ProbPosePipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def track():
    return read_keypoints(EXAMPLES / "basketball.npz")[0]


def test_a_result_comes_back_as_it_was_stored(pipe, track, tmp_path):
    person = sample_person(pipe, cut(track, 10, 40, slice(5, 9)), "walk", seed=3, num_hypotheses=4)
    person.save(tmp_path / "walk.npz")
    again = SampledPerson.load(tmp_path / "walk.npz")
    assert (again.name, again.skeleton, again.settings) == ("walk", person.skeleton, {"seed": 3, "num_hypotheses": 4})
    for name in ("hypotheses", "pose", "uncertainty", "root"):
        np.testing.assert_array_equal(getattr(again, name), getattr(person, name))
    for name in ("keypoints_2d", "confidence", "frame"):
        np.testing.assert_array_equal(getattr(again.track, name), getattr(person.track, name))
    for name in ("skeleton", "image_size", "fps", "track_id"):
        assert getattr(again.track, name) == getattr(person.track, name)
    torch.testing.assert_close(again.camera.to_vector(), person.camera.to_vector())
    assert (again.camera.image_size, again.camera.slope_limit) == (track.image_size, person.camera.slope_limit)
    np.testing.assert_array_equal(np.flatnonzero(again.bridged), np.arange(5, 9))
    with pytest.raises(FileExistsError, match=r"walk\.npz"):
        person.save(tmp_path / "walk.npz")


def test_what_is_sampled_is_what_the_pipeline_says(pipe, track):
    short, camera = cut(track, 0, 12), Camera((900.0, 900.0), (500.0, 501.0), image_size=track.image_size)
    person = sample_person(pipe, short, seed=1, camera=camera, num_hypotheses=2)
    out = pipe(
        short.keypoints_2d, short.confidence, image_size=short.image_size, camera=camera, skeleton=short.skeleton, fps=short.fps,
        num_hypotheses=2, generator=torch.Generator().manual_seed(1), output_type="np",
    )  # fmt: skip
    np.testing.assert_array_equal(person.hypotheses, out.hypotheses)
    np.testing.assert_array_equal(person.root, out.root)
    short.image_size = None
    with pytest.raises(ValueError, match="image size"):
        sample_person(pipe, short)


def test_the_keypoints_of_a_result_can_be_read_again(pipe, track, tmp_path):
    short = cut(track, 0, 12)
    short.fps = None
    sample_person(pipe, short).save(tmp_path / "walk.npz")
    again = read_keypoints(tmp_path / "walk.npz")[0]
    assert again.fps is None and again.skeleton == track.skeleton
    np.testing.assert_array_equal(again.keypoints_2d, short.keypoints_2d)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        SampledPerson.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"basketball\.npz is no result of `probpose sample`: it has no camera, hypotheses"):
        SampledPerson.load(EXAMPLES / "basketball.npz")


def test_clips_have_names_of_their_own(track):
    other = cut(track, 0, 20)
    other.track_id = 7
    assert list(name_clips([cut(track, 0, 20)], "walk")) == ["walk"]
    assert list(name_clips([cut(track, 0, 20), other], "walk")) == [f"walk_person{track.track_id}", "walk_person7"]
    gap = cut(track, 0, 90, slice(20, 20 + 31))
    clips = name_clips([gap], "walk", max_gap=1.0)
    assert {name: (len(clip), clip.frame[0]) for name, clip in clips.items()} == {"walk_part1": (20, 0), "walk_part2": (39, 51)}
    assert list(name_clips([gap], "walk", max_gap=2.0)) == ["walk"]


def test_pictures_of_chosen_frames(pipe, track, tmp_path):
    person = sample_person(pipe, cut(track, 100, 120), "walk")
    draw_person(person, tmp_path / "walk.pdf", frames=[101, 119])
    assert (tmp_path / "walk.pdf").read_bytes()[:5] == b"%PDF-"
    with pytest.raises(ValueError, match="walk has the frames 100 to 119, not 99, 120"):
        draw_person(person, tmp_path / "other.png", frames=[99, 110, 120])
    with pytest.raises(ValueError, match=r"\.pdf, \.png, \.svg, \.html"):
        draw_person(person, tmp_path / "walk.gif")
    person.pose = None
    with pytest.raises(ValueError, match="aggregation"):
        draw_person(person, tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["walk.pdf"]
