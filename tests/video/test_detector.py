"""What a detector may return, how frames are handed to it, and how it is found by its name."""

import sys

import numpy as np
import pytest
import torch

from probpose.video.detector import People, check_detector, detect, load_detector


@pytest.fixture
def keypoints():
    return np.random.default_rng(0).uniform(0, 100, (2, 17, 2)).astype(np.float32)


@pytest.fixture
def frames():
    """Ten frames whose brightness is their number."""
    return [np.full((4, 6, 3), number, np.uint8) for number in range(10)]


def by_brightness(frames):
    """In frame f, f modulo 3 people, all joints of the i-th at (f, i)."""
    return [np.tile([[[frame.max(), i]] for i in range(frame.max() % 3)] or np.empty((0, 1, 2)), (1, 17, 1)) for frame in frames]


def test_what_is_not_seen(keypoints):
    confidence = np.full((2, 17), 0.5)
    keypoints[0, 3, 1] = np.nan
    keypoints[1, 4, 0] = np.inf
    confidence[0, 5], confidence[1, 6], confidence[1, 7], confidence[1, 8] = np.nan, -0.2, 0, 1.3
    people = People(keypoints, confidence)
    unseen = np.zeros((2, 17), bool)
    unseen[[0, 1, 0, 1, 1], [3, 4, 5, 6, 7]] = True
    np.testing.assert_array_equal(np.isnan(people.keypoints_2d), np.repeat(unseen[..., None], 2, axis=-1))
    np.testing.assert_array_equal(people.confidence == 0, unseen)
    np.testing.assert_array_equal(people.keypoints_2d[~unseen], keypoints[~unseen])
    assert people.confidence[1, 8] == 1 and people.confidence.dtype == people.keypoints_2d.dtype == np.float32
    np.testing.assert_allclose(people.score, people.confidence.mean(1))


def test_the_box_is_around_what_is_seen():
    keypoints = np.full((3, 4, 2), np.nan)
    keypoints[0, :2] = [[10, 20], [30, 120]]
    keypoints[1, 2] = [5, 6]
    keypoints[0, 3] = [900, 900]
    people = People(keypoints, [[1, 0.1, 1, 0], [1] * 4, [1] * 4])
    np.testing.assert_allclose(people.boxes, [[0, 10, 40, 130], [5, 6, 5, 6], [np.nan] * 4])
    moved = People(keypoints + 7, people.confidence)
    np.testing.assert_allclose(moved.boxes, people.boxes + 7, rtol=1e-6)


def test_some_of_the_people(keypoints):
    people = People(keypoints, np.ones((2, 17)), [[0, 0, 9, 9], [1, 1, 8, 8]], [0.4, 7])
    assert len(people) == 2 and people.score.tolist() == [np.float32(0.4), 1]
    for index in ([1], slice(1, None), np.array([False, True])):
        assert len(people[index]) == 1 and people[index].boxes.tolist() == [[1, 1, 8, 8]] and people[index].score == 1
        np.testing.assert_array_equal(people[index].keypoints_2d, keypoints[1:])
    assert len(people[[]]) == 0 and people[[]].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((17, 2)), np.zeros(17)), r"keypoints_2d must be \(people, joints, 2\), not \(17, 2\)"),
        ((np.zeros((1, 17, 3)), np.zeros((1, 17))), "keypoints_2d must be"),
        ((np.zeros((1, 17, 2)), np.zeros((1, 16))), r"confidence must be \(people, joints\) = \(1, 17\), not \(1, 16\)"),
        ((np.zeros((1, 17, 2)), np.zeros((1, 17)), np.zeros((2, 4))), r"boxes must be \(people, 4\) = \(1, 4\)"),
        ((np.zeros((1, 17, 2)), np.zeros((1, 17)), [[50, 60, 20, 90]]), "x0 y0 x1 y1"),
        ((np.zeros((1, 17, 2)), np.zeros((1, 17)), None, [0.5, 0.5]), r"score must be \(people,\) = \(1,\), not \(2,\)"),
    ],
)
def test_people_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        People(*arguments)


def test_what_a_detector_may_return_for_a_frame(keypoints):
    confidence = np.linspace(0.1, 1, 34, dtype=np.float32).reshape(2, 17)
    people = People(keypoints, confidence)
    assert People.of(people, 17) is people
    with_confidence = np.concatenate([keypoints, confidence[..., None]], axis=-1)
    arrays = (with_confidence, with_confidence.tolist(), list(with_confidence), torch.from_numpy(with_confidence))
    for value in (*arrays, (keypoints, confidence)):
        found = People.of(value, 17)
        np.testing.assert_array_equal(found.keypoints_2d, keypoints)
        np.testing.assert_array_equal(found.confidence, confidence)
    for value in (keypoints, keypoints.tolist(), (keypoints, None)):
        assert (People.of(value, 17).confidence == 1).all()
    for nobody in (None, [], (), np.empty((0, 17, 3)), ([], []), (np.empty((0, 17, 2)), np.empty((0, 17)))):
        found = People.of(nobody, 17)
        assert found.keypoints_2d.shape == (0, 17, 2) and found.boxes.shape == (0, 4) and found.score.shape == (0,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 16, 2)), r"must be People, an array \(people, 17, 2\) or .*, not an array \(2, 16, 2\)"),
        (np.zeros((17, 3)), r"not an array \(17, 3\)"),
        (np.zeros((1, 17, 4)), r"not an array \(1, 17, 4\)"),
        ((np.zeros((1, 17, 3)), np.zeros((1, 17))), r"not an array \(1, 17, 3\)"),
        ((np.zeros((1, 17, 2)), np.zeros((2, 17))), r"confidence must be \(people, joints\) = \(1, 17\)"),
        ([np.zeros((1, 17, 2)), np.zeros((1, 17))], "not list"),
        ({"keypoints": []}, "not dict"),
        (7, r"not 7"),
        ("people", "not str"),
        (People(np.zeros((1, 16, 2)), np.ones((1, 16))), "must have 17 joints, not 16"),
    ],
)
def test_what_no_detector_may_return(value, message):
    with pytest.raises(ValueError, match=message):
        People.of(value, 17)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_frames_come_in_batches(frames, batch_size):
    sizes = []

    def detector(batch):
        assert isinstance(batch, list)
        sizes.append(len(batch))
        return by_brightness(batch)

    found = list(detect(iter(frames), detector, batch_size))
    assert [len(people) for people in found] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(found[5].keypoints_2d, np.repeat([[[5, 0]], [[5, 1]]], 17, axis=1))
    assert sum(sizes) == 10 and set(sizes[:-1]) <= {batch_size} and sizes[-1] <= batch_size


def test_no_more_frames_are_read_than_asked_for(frames):
    read = []
    found = detect((read.append(1) or frame for frame in frames), by_brightness, 4)
    assert not read
    next(found)
    assert len(read) == 4
    for _ in range(4):
        next(found)
    assert len(read) == 8
    assert list(detect([], by_brightness)) == []


def test_people_of_whom_nothing_is_seen_are_left_out(frames):
    keypoints = np.random.default_rng(0).uniform(0, 5, (3, 17, 3))
    keypoints[1, :, 2] = 0
    (people,) = detect(frames[:1], lambda batch: [keypoints] * len(batch))
    np.testing.assert_array_equal(people.keypoints_2d, keypoints[[0, 2], :, :2].astype(np.float32))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda batch: [None], r"must return a list of 4 entries, one per frame, for frames 4 to 7, not 1"),
        (lambda batch: None, "for frames 4 to 7, not NoneType"),
        (lambda batch: People(np.zeros((4, 17, 2)), np.ones((4, 17))), "for frames 4 to 7, not People"),
        (lambda batch: [None, None, np.zeros((1, 5, 2)), None], r"for frame 6 cannot be used: .*not an array \(1, 5, 2\)"),
    ],
)
def test_a_careless_detector_is_told_the_frame(frames, answer, message):
    found = detect(frames, lambda batch: by_brightness(batch) if batch[0].max() < 4 else answer(batch), 4)
    for _ in range(4):
        next(found)
    with pytest.raises(ValueError, match=message):
        list(found)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 6, 3)), r"frame 2 must be an array \(height, width, 3\) of uint8, not float64 \(4, 6, 3\)"),
        (np.zeros((4, 6), np.uint8), r"not uint8 \(4, 6\)"),
        (np.zeros((4, 0, 3), np.uint8), r"not uint8 \(4, 0, 3\)"),
        ("frame.png", "not str"),
    ],
)
def test_a_frame_that_is_none(frames, frame, message):
    with pytest.raises(ValueError, match=message):
        list(detect([*frames[:2], frame], by_brightness))


def test_whose_joints(frames):
    assert check_detector(by_brightness) == ("coco_17", 17)
    assert check_detector(by_brightness, "halpe_26") == ("halpe_26", 26)

    class Wholebody:
        skeleton = "wholebody_133"

        def __call__(self, frames):
            return [np.zeros((1, 133, 2)) for _ in frames]

    assert check_detector(Wholebody()) == check_detector(Wholebody(), "wholebody_133") == ("wholebody_133", 133)
    assert [people.keypoints_2d.shape for people in detect(frames[:2], Wholebody())] == [(1, 133, 2)] * 2
    with pytest.raises(ValueError, match="finds the joints of 'wholebody_133', not of 'coco_17'"):
        detect(frames, Wholebody(), skeleton="coco_17")
    with pytest.raises(ValueError, match="unknown skeleton 'coco_71'"):
        detect(frames, by_brightness, skeleton="coco_71")
    for no_function in (None, "vitpose", Wholebody):
        with pytest.raises(ValueError, match="a detector must be a function"):
            detect(frames, no_function)
    with pytest.raises(ValueError, match="batch_size must be at least 1 frame, got 0"):
        detect(frames, by_brightness, 0)


MODULE = """
import numpy as np

NUMBER = 3

def detect(frames):
    return [np.ones((1, 17, 2)) for _ in frames]

class Finder:
    skeleton = "halpe_26"

    def __call__(self, frames):
        return [None for _ in frames]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a detector in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "finders").mkdir()
    (tmp_path / "finders" / "mine.py").write_text(MODULE)
    (tmp_path / "needy_finder.py").write_text("import a_package_that_is_not_there")
    yield tmp_path
    for name in ("finders.mine", "finders", "needy_finder"):
        sys.modules.pop(name, None)


def test_a_detector_by_its_name(folder, frames):
    assert [len(people) for people in detect(frames, load_detector("finders.mine:detect"))] == [1] * 10
    assert check_detector(load_detector("finders.mine:Finder"))[0] == "halpe_26"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo", "must be 'vitpose' or 'module:attribute', for example 'my_detector:detect', got 'yolo'"),
        ("", "must be 'vitpose'"),
        ("../mine.py:detect", "must be 'vitpose'"),
        ("nowhere_at_all:detect", "there is no module 'nowhere_at_all', neither in .* nor installed"),
        ("finders.yours:detect", r"there is no module 'finders\.yours'"),
        ("finders.mine:seek", r"module 'finders\.mine' in .*mine\.py has no 'seek'"),
        ("finders.mine:NUMBER", "a detector must be a function, .*not 3"),
    ],
)
def test_names_of_no_detector(folder, name, message):
    with pytest.raises(ValueError, match=message):
        load_detector(name)


def test_what_a_module_lacks_is_its_own_affair(folder):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_detector("needy_finder:detect")


def test_options_are_for_the_detector_that_ships(folder, tiny_detectors):
    person, pose = tiny_detectors
    detector = load_detector("vitpose", person_model=person, pose_model=pose, max_people=2)
    (people,) = detect([np.zeros((60, 80, 3), np.uint8)], detector)
    assert len(people) == 2
    with pytest.raises(ValueError, match=r"max_people: for 'vitpose', not for a detector of your own such as 'finders\.mine:detect'"):
        load_detector("finders.mine:detect", max_people=2)
