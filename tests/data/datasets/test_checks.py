"""What the readers' checks refuse and what they tell: units, missing truth, left and right, cameras."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probpose import skeletons
from probpose.data.datasets.checks import check_clip, check_clips, numbers, reprojection
from probpose.data.datasets.clips import PoseClip
from probpose.geometry import Camera
from probpose.skeletons import Skeleton, convert, get_skeleton, list_skeletons

CAMERA = Camera(torch.tensor([1100.0, 1100.0]), torch.tensor([500.0, 500.0]), image_size=(1000, 1000), slope_limit=torch.inf)


@pytest.fixture
def make_clip(walk):
    """A walk seen from five metres away, with keypoints that are its projection and `noise` pixels of error."""

    def make(frames=40, scale=1.0, noise=0.0, name="clip", skeleton="h36m_17", seed=0):
        world = torch.from_numpy(walk(frames, seed=seed))
        points = torch.stack([world[..., 0], -world[..., 2] + 1, world[..., 1] + 5], -1)
        points = convert(points, "h36m_17", skeleton)
        keypoints = CAMERA.project(points)
        keypoints += noise * torch.randn(keypoints.shape, generator=torch.Generator().manual_seed(seed))
        known = torch.isfinite(keypoints).all(-1)
        return PoseClip(name, keypoints, known.float(), scale * points, CAMERA, 50.0, skeleton)

    return make


def exchanged(clip):
    return replace(clip, keypoints_2d=clip.keypoints_2d[:, list(get_skeleton(clip.skeleton).flip_index)])


@pytest.mark.parametrize("skeleton", ["h36m_17", "h36m_16", "mpi_inf_3dhp_17", "humaneva_15", "lsp_14"])
def test_a_sound_clip_gives_no_note(make_clip, skeleton):
    assert check_clip(make_clip(noise=4.0, skeleton=skeleton), "file") == []


@pytest.mark.parametrize(
    ("scale", "words"),
    [(1000, "millimetres: divide by 1000"), (100, "centimetres: divide by 100"), (0.001, "multiply by 1000"), (8, "no common unit")],
)
def test_another_unit_is_refused_with_the_number_and_the_remedy(make_clip, scale, words):
    with pytest.raises(ValueError, match=words) as error:
        check_clip(make_clip(scale=scale, name="S9/Walking"), "data.npz")
    message = str(error.value)
    thigh = scale * np.hypot(0.42, 0.02)  # hip to knee of the walking figure, before it swings
    assert message.startswith("data.npz: clip 'S9/Walking'") and "0.15 to 0.75 m" in message
    assert float(message.split("measures ")[1].split()[0]) == pytest.approx(thigh, rel=0.1)


def test_every_registered_skeleton_has_thighs_to_measure():
    for name in list_skeletons():
        assert {"left_hip", "left_knee", "right_hip", "right_knee"} <= set(get_skeleton(name).joint_names)


def test_a_skeleton_without_thighs_or_sides_is_not_judged_by_them(monkeypatch):
    monkeypatch.setitem(skeletons._SKELETONS, "rod", Skeleton("rod", ("tip", "grip"), (1, -1), root=1))
    points = torch.tensor([[0.0, 0.0, 5.0], [0.3, 0.2, 5.0]]).repeat(4, 1, 1)
    clip = PoseClip("rod", CAMERA.project(points), torch.ones(4, 2), points, CAMERA, 30.0, "rod")
    assert check_clip(clip, "file") == []


def test_missing_truth_is_counted(make_clip):
    clips = [make_clip(name=f"clip{i}", seed=i) for i in range(6)]
    for i, clip in enumerate(clips[1:], start=1):
        clip.positions_camera[: 2 * i] = torch.nan
    clips[1].positions_camera[5, 3, 1] = torch.nan  # one joint is enough
    assert check_clips(clips, "file") == (
        "NaN ground truth in 5 clips: clip1 (3 of 40 frames), clip2 (4 of 40 frames), clip3 (6 of 40 frames), "
        "clip4 (8 of 40 frames) and 1 more",
    )


def test_joints_that_a_skeleton_never_has_count_as_missing_but_do_not_hide_the_rest(make_clip):
    clip = make_clip(skeleton="coco_17")  # the walk has no eyes and ears
    missing = "NaN ground truth in 1 clip: clip (40 of 40 frames)"
    assert check_clip(clip, "file") == [missing]
    assert [note.split(" in 1")[0] for note in check_clip(exchanged(clip), "file")] == [
        "NaN ground truth",
        "left and right look exchanged between keypoints and 3D",
    ]


def test_nothing_to_score_is_told_and_the_unit_is_still_checked(make_clip):
    nothing = torch.zeros(40, dtype=torch.bool)
    assert check_clip(replace(make_clip(), valid=nothing), "file") == ["no frame to score in 1 clip: clip (40 frames)"]
    with pytest.raises(ValueError, match="millimetres"):
        check_clip(replace(make_clip(scale=1000), valid=nothing), "file")
    clip = make_clip()
    clip.positions_camera[:] = torch.nan
    assert check_clip(clip, "file") == [
        "NaN ground truth in 1 clip: clip (40 of 40 frames)",
        "no frame to score in 1 clip: clip (40 frames)",
    ]


@pytest.mark.parametrize("skeleton", ["h36m_17", "mpi_inf_3dhp_17", "humaneva_15"])
@pytest.mark.parametrize("seed", range(3))
def test_exchanged_sides_are_noticed_with_both_numbers(make_clip, skeleton, seed):
    clip = exchanged(make_clip(noise=3.0, skeleton=skeleton, seed=seed))
    (note,) = check_clip(clip, "file")
    as_given, back = (float(part.rsplit(" ", 1)[1]) for part in note.split(" px")[:2])
    projected = CAMERA.project(clip.positions_camera).numpy()
    flip = get_skeleton(skeleton).flip_index
    sides = [joint for joint, partner in enumerate(flip) if joint != partner]
    for number, keypoints in ((as_given, clip.keypoints_2d), (back, clip.keypoints_2d[:, flip])):
        error = np.sort(np.linalg.norm(projected - keypoints.numpy(), axis=-1)[:, sides], axis=1)[:, (len(sides) - 1) // 2]
        assert number == pytest.approx(np.sort(error)[(len(error) - 1) // 2], abs=0.06)
    assert note.startswith("left and right look exchanged") and back < 6 < as_given


def test_a_detector_that_confuses_the_sides_of_some_frames_is_not_the_files_fault(make_clip):
    for frames in (10, 22):  # also where the medians alone would tell of an exchange
        clip = make_clip(noise=3.0)
        clip.keypoints_2d[:frames] = exchanged(clip).keypoints_2d[:frames]
        assert check_clip(clip, "file") == []


def test_keypoints_of_another_camera_are_noticed(make_clip):
    clip = make_clip()
    assert check_clip(replace(clip, keypoints_2d=clip.keypoints_2d + 15), "file") == []
    (note,) = check_clip(replace(clip, keypoints_2d=clip.keypoints_2d + torch.tensor([90.0, 0.0])), "file")
    assert note.startswith("keypoints and 3D hardly agree") and "median reprojection error 90 px" in note


def test_unobserved_keypoints_and_unscored_frames_have_no_say(make_clip):
    clip = make_clip()
    clip.keypoints_2d[:, 3:] = 0.0
    clip.confidence[:, 3:] = 0.0
    assert check_clip(clip, "file") == []
    clip.keypoints_2d[10:] = 0.0
    assert "hardly agree" in check_clip(clip, "file")[0]
    assert check_clip(replace(clip, valid=torch.arange(40) < 10), "file") == []
    clip.keypoints_2d[:] = torch.nan
    assert check_clip(clip, "file") == []


def test_long_clips_are_thinned_out(make_clip):
    errors, swapped = reprojection(make_clip(frames=2001))
    assert errors.shape == swapped.shape and 400 < len(errors) <= 500
    assert errors.max() < 1e-3 < swapped.max()


@pytest.mark.parametrize("value", [np.zeros((4, 2)), np.zeros((0, 3)), "text", None, [[1, 2, 3], [4]], {}, 10**400, np.zeros((4, 3, 1))])
def test_numbers_refuses_other_shapes_and_names_the_place(value):
    with pytest.raises(ValueError, match=r"file, key must .*\(frames, 3\)"):
        numbers(value, (None, 3), "file, key")


def test_numbers_takes_what_is_a_number():
    assert numbers([[1, 2, 3]], (None, 3), "key").dtype == np.float64
    assert numbers(np.array([True, False]), (2,), "key").tolist() == [1.0, 0.0]
