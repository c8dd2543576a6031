"""What leads from another data set to a model: nothing is converted wrongly, and nothing wrong is taken in silence."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from filmed_walks import LENS, SIZE, TO_3DHP, clip_of, with_trajectory

from probpose.data import (
    KeypointTrack,
    MocapClips,
    PoseDataset,
    TargetTrack,
    load_dataset,
    read_keypoints,
    source_motions,
    target_tracks,
    write_keypoints,
)
from probpose.geometry import Camera, h36m_camera
from probpose.skeletons import convert

BENCHMARK = Path(__file__).resolve().parents[3] / "shared" / "data" / "benchmark" / "mocap17_test.npz"

pytestmark = pytest.mark.usefixtures("loud")


def track_of(points, fps=30.0, skeleton="h36m_17", size=SIZE, **other):
    points = np.asarray(points, dtype=np.float32)
    confidence = other.pop("confidence", np.ones(points.shape[:2]))
    return KeypointTrack(points, confidence, np.arange(len(points)), other.pop("track_id", 0), skeleton, size, fps, **other)


def lines(frames, fps, joints=17):
    """Joints that move evenly through time `(frames, joints, 2)`: joint j is at 100 + 10 j + (30, 15) pixels per second."""
    time = np.arange(frames)[:, None, None] / fps
    return 100 + 10 * np.arange(joints)[:, None] + time * np.array([30.0, 15.0])


# --- Target: what is kept ---------------------------------------------------------------------------------------------


def test_a_track_has_no_field_for_3d_and_is_checked():
    assert [field.name for field in dataclasses.fields(TargetTrack)] == [
        "name", "keypoints_2d", "confidence", "camera", "fps", "skeleton",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'walk': keypoints_2d and confidence must have shapes \(5, 17, 2\)"):
        TargetTrack("walk", torch.zeros(5, 17, 3), torch.zeros(5, 17), LENS, 30.0, "h36m_17")


@pytest.mark.parametrize("labels", ["true", "nonsense"])
def test_labels_never_reach_a_target_track(poses, labels):
    """Whatever stands in the labels and the camera's place, the tracks are the same, bit for bit."""
    pose = poses()
    placed = dataclasses.replace(LENS, rotation=torch.eye(3), translation=torch.tensor([0.0, 0.0, 4.2]))
    clip = clip_of(pose, camera=placed)
    expected = target_tracks([clip], fps=25)
    if labels == "nonsense":
        clip = dataclasses.replace(
            clip,
            positions_camera=torch.full_like(pose, math.nan),
            camera=dataclasses.replace(placed, rotation=-torch.eye(3), translation=torch.tensor([9.0, 9.0, 9.0])),
            valid=torch.zeros(len(pose), dtype=torch.bool),
        )
    (track,) = target_tracks(PoseDataset((clip,), "labelled"), fps=25)
    assert torch.equal(track.keypoints_2d, expected[0].keypoints_2d)
    for field in dataclasses.fields(TargetTrack):
        value = getattr(track, field.name)
        assert not (isinstance(value, torch.Tensor) and value.shape[-1] == 3)
    assert track.camera.rotation is None and track.camera.translation is None
    assert torch.equal(track.camera.focal, LENS.focal) and track.camera.image_size == SIZE


@pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmark file is not here")
def test_the_benchmark_file_gives_2d_alone():
    clips = {clip.name: clip for clip in load_dataset(BENCHMARK)}
    tracks = target_tracks(BENCHMARK)
    assert {track.name for track in tracks} == set(clips)
    for track in tracks:
        clip = clips[track.name]
        assert torch.equal(track.confidence, clip.confidence)
        assert torch.equal(track.keypoints_2d.isnan().all(-1), track.confidence == 0)
        torch.testing.assert_close(track.keypoints_2d.nan_to_num(), clip.keypoints_2d.masked_fill((clip.confidence == 0)[..., None], 0))
        assert track.camera.rotation is None and set(vars(track)) == {field.name for field in dataclasses.fields(TargetTrack)}


@pytest.mark.parametrize("skeleton", ["h36m_17", "coco_17"])
def test_mocap_through_a_camera_and_a_file_and_back(make_archive, tmp_path, skeleton):
    root, local = MocapClips(make_archive({"a/walk": 30}))[0]
    world = root[:, None] + local
    camera = h36m_camera(0)
    points = camera.project(torch.stack([world[..., 0], 1 - world[..., 2], world[..., 1] + 6], -1))
    if skeleton == "coco_17":
        points = convert(points, "h36m_17", "coco_17")
    write_keypoints(tmp_path / "walk.npz", [track_of(points, skeleton=skeleton, size=camera.image_size)])
    (track,) = target_tracks(tmp_path / "walk.npz", skeleton=skeleton, camera=camera)
    assert (track.name, track.fps, track.skeleton) == ("walk.npz/person0", 30.0, skeleton)
    torch.testing.assert_close(track.keypoints_2d, points, equal_nan=True, atol=1e-4, rtol=0)
    assert torch.equal(track.confidence > 0, points.isfinite().all(-1))
    assert torch.equal(track.camera.to_vector(), camera.to_vector())


# --- Target: sources --------------------------------------------------------------------------------------------------


def write_frames(folder, points, names="clip_{:06d}_keypoints.json"):
    folder.mkdir(parents=True)
    for i, frame in enumerate(np.asarray(points)):
        flat = np.column_stack([frame, np.full(len(frame), 0.5)]).ravel().tolist()
        (folder / names.format(i)).write_text(json.dumps({"version": 1.3, "people": [{"pose_keypoints_2d": flat}]}))


def test_a_folder_of_files_and_of_frames(tmp_path):
    write_keypoints(tmp_path / "two.npz", [track_of(lines(12, 30) + 50 * i, track_id=i) for i in (0, 1)])
    (tmp_path / "day1").mkdir()
    write_keypoints(tmp_path / "day1" / "one.npz", [track_of(lines(8, 30))])
    (tmp_path / "notes.txt").write_text("nothing")
    names = ["day1/one.npz/person0", "two.npz/person0", "two.npz/person1"]
    tracks = target_tracks(tmp_path)
    assert [track.name for track in tracks] == names and [len(track) for track in tracks] == [8, 12, 12]
    again = target_tracks([str(tmp_path / "two.npz"), tmp_path / "day1" / "one.npz"])
    assert [track.name for track in again] == names
    assert all(torch.equal(a.keypoints_2d, b.keypoints_2d) for a, b in zip(tracks, again))

    write_frames(tmp_path / "day2", lines(6, 30, 25))
    with pytest.raises(ValueError, match=r"mixed frame rates: day2/person0 state none, while day1/one.npz/person0 has 30 fps"):
        target_tracks(tmp_path, image_size=SIZE)
    tracks = target_tracks(tmp_path, image_size=SIZE, keypoint_fps=30)
    assert [track.name for track in tracks] == [names[0], "day2/person0", *names[1:]]
    (alone,) = target_tracks(tmp_path / "day2", image_size=SIZE, keypoint_fps=30)
    assert alone.name == "day2/person0" and torch.equal(alone.keypoints_2d, tracks[1].keypoints_2d)
    torch.testing.assert_close(alone.keypoints_2d[:, 0], torch.from_numpy(lines(6, 30, 25)[:, 8]).float())  # body_25's pelvis


def test_frames_whose_coordinates_need_the_image_size(tmp_path):
    """Fractions of the image: without its size the files cannot be read, so not be told to be frames either."""
    folder = tmp_path / "clips" / "walk"
    folder.mkdir(parents=True)
    for i in range(6):
        landmarks = [{"x": 0.1 + 0.02 * joint, "y": 0.5, "z": 0.0, "visibility": 0.9} for joint in range(33)]
        (folder / f"frame{i}.json").write_text(json.dumps([landmarks]))
    (track,) = target_tracks(tmp_path / "clips", image_size=SIZE, keypoint_fps=30)
    assert track.name == "walk/person0" and len(track) == 6


def test_files_that_state_every_other_frame_are_half_as_fast(tmp_path):
    """The frame rate that is given is the video's: every second of its frames was processed."""
    write_frames(tmp_path / "clip", lines(6, 30, 25))
    for i in reversed(range(6)):
        (tmp_path / "clip" / f"clip_{i:06d}_keypoints.json").rename(tmp_path / "clip" / f"clip_{2 * i:06d}_keypoints.json")
    (track,) = target_tracks(tmp_path / "clip", keypoint_fps=60, fps=30, image_size=SIZE)
    assert len(track) == 6


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_arrays(kind):
    points = np.stack([lines(9, 30), lines(9, 30) + 5])
    points[0, 3, 2], points[1, 4, 5] = np.nan, 0
    options = {"image_size": SIZE, "keypoint_skeleton": "h36m_17", "keypoint_fps": 30}
    tracks = target_tracks(kind(points), **options)
    assert [track.name for track in tracks] == ["array0/clip0", "array0/clip1"]
    assert tracks[0].keypoints_2d[3, 2].isnan().all() and tracks[1].keypoints_2d[4, 5].isnan().all()
    assert [int((track.confidence == 0).sum()) for track in tracks] == [1, 1]
    several = target_tracks([kind(points[0]), kind(points[1])], **options)
    assert [track.name for track in several] == ["array0", "array1"]
    assert torch.equal(several[1].keypoints_2d.nan_to_num(), tracks[1].keypoints_2d.nan_to_num())
    with_confidence = np.concatenate([points[1], np.full((9, 17, 1), 0.25)], -1)
    assert target_tracks(kind(with_confidence), **options)[0].confidence.max() == 0.25
    with pytest.raises(ValueError, match=r"array0 of shape .* fit several skeletons"):
        target_tracks(kind(points), image_size=SIZE)


def test_names_sort_by_their_numbers_whatever_the_order(poses):
    clips = [clip_of(poses(seed=i), f"walk {i}") for i in (10, 2, 1)]
    forwards, backwards = target_tracks(clips), target_tracks(clips[::-1])
    assert [track.name for track in forwards] == [track.name for track in backwards] == ["walk 1", "walk 2", "walk 10"]
    assert all(torch.equal(a.keypoints_2d, b.keypoints_2d) for a, b in zip(forwards, backwards))


# --- Target: joint order, confidence, camera --------------------------------------------------------------------------


def test_joint_order_of_3dhp(poses):
    pose = poses()
    foreign = clip_of(pose[:, TO_3DHP], skeleton="mpi_inf_3dhp_17")
    (track,) = target_tracks(foreign)
    torch.testing.assert_close(track.keypoints_2d, LENS.project(pose), atol=1e-3, rtol=0)
    (hidden,) = target_tracks(foreign, hidden_when_converted=(9, 10))
    assert (hidden.confidence == 0).nonzero()[:, 1].unique().tolist() == [9, 10] and hidden.keypoints_2d[:, 9:11].isnan().all()
    (same,) = target_tracks(clip_of(pose), hidden_when_converted=(9, 10))
    assert (same.confidence == 1).all()


def test_low_confidence_hides_a_joint():
    confidence = np.full((5, 17), 0.5)
    confidence[2, 3] = 0.49
    track = track_of(lines(5, 30), confidence=confidence)
    assert (target_tracks(track)[0].confidence > 0).all()
    (kept,) = target_tracks(track, min_confidence=0.5)
    assert (kept.confidence == 0).nonzero().tolist() == [[2, 3]] and kept.keypoints_2d[2, 3].isnan().all()


def test_cameras(tmp_path):
    tracks = [track_of(lines(5, 30), track_id=i, size=None) for i in (0, 1)]
    for name in ("a.npz", "b.npz"):
        write_keypoints(tmp_path / name, tracks)
    other = Camera((900.0, 900.0), (400.0, 400.0))
    by_name = target_tracks(tmp_path, camera={"a.npz": LENS, "b": other, "b.npz/person1": LENS})
    assert [track.camera.focal[0].item() for track in by_name] == [1100, 1100, 900, 1100]
    assert {track.camera.focal[0].item() for track in target_tracks(tmp_path, camera=other)} == {900}
    guessed = target_tracks(tmp_path, image_size=(640, 480))
    assert all(torch.equal(track.camera.focal, Camera.from_image_size(640, 480).focal) for track in guessed)
    assert target_tracks(tmp_path / "a.npz", camera=other, image_size=(640, 480))[0].camera.image_size == (640, 480)
    for options, message in (
        ({}, "a.npz/person0: neither a camera nor an image size"),
        ({"camera": {"a.npz": LENS}}, "b.npz/person0: camera has none for it; it names a.npz"),
        ({"camera": {"a.npz": LENS, "c.npz": LENS}}, "camera names c.npz, which is none of the tracks"),
        ({"camera": LENS, "image_size": (1920, 1080)}, r"image has \(1000, 1000\) pixels, but the keypoints' image \(1920, 1080\)"),
        ({"camera": LENS.normalised()}, "must be in pixels, but its focal length is"),
        ({"camera": Camera(torch.ones(5, 2) * 500, torch.ones(5, 2))}, "a track has one camera"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            target_tracks(tmp_path, **options)


def test_a_track_s_own_camera_wins_over_a_guess(poses):
    clips = [clip_of(poses(), "S1/walk/0"), clip_of(poses(), "S1/walk/1")]
    assert {track.camera.focal[0].item() for track in target_tracks(clips)} == {1100}
    other = Camera((900.0, 900.0), (500.0, 500.0), image_size=SIZE)
    assert [track.camera.focal[0].item() for track in target_tracks(clips, camera={"1": other})] == [1100, 900]
    assert {track.camera.focal[0].item() for track in target_tracks(clips, camera={"S1": other})} == {900}


# --- Target: time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "fps", "frames", "expected"), [(60, 30, 21, 11), (25, 30, 26, 31), (50, 30, 51, 31), (30, 50, 31, 51)])
def test_even_motion_is_resampled_exactly(rate, fps, frames, expected):
    (track,) = target_tracks(track_of(lines(frames, rate), fps=rate), fps=fps)
    assert len(track) == expected and track.fps == fps
    torch.testing.assert_close(track.keypoints_2d, torch.from_numpy(lines(expected, fps)).float(), atol=1e-3, rtol=0)
    assert (track.confidence == 1).all()


def test_nothing_is_made_up_in_a_gap():
    """25 to 30 fps: of joint 2, unseen in frames 5 to 9, no frame between 4 and 10 is known; of its neighbours all are."""
    points, confidence = lines(26, 25), np.linspace(0.2, 0.9, 26)[:, None].repeat(17, 1)
    points[5:10, 2] = np.nan
    points[15] = np.nan
    (track,) = target_tracks(track_of(points, fps=25, confidence=confidence))
    times = np.arange(31) * 25 / 30
    # A new frame needs all source frames it lies between, or the one that it lies on.
    needed = [{math.floor(t + 1e-9), math.ceil(t - 1e-9)} for t in times]
    for joint, unseen in ((2, {*range(5, 10), 15}), (3, {15})):
        known = torch.tensor([not (frames & unseen) for frames in needed])
        assert torch.equal(track.confidence[:, joint] > 0, known)
        assert torch.equal(track.keypoints_2d[:, joint].isfinite().all(-1), known)
        smaller = torch.tensor([confidence[sorted(frames), 0].min() for frames in needed], dtype=torch.float32)
        torch.testing.assert_close(track.confidence[known, joint], smaller[known])
    assert track.observed.sum() == 31 - sum(15 in frames for frames in needed)


def test_half_the_rate_takes_every_other_frame_and_needs_no_neighbours():
    points = lines(21, 60)
    points[1::2] = np.nan
    (track,) = target_tracks(track_of(points, fps=60))
    assert torch.equal(track.keypoints_2d, torch.from_numpy(points[::2]).float())


def test_tracks_of_different_rates_each_keep_their_speed():
    tracks = [track_of(lines(26, 25), fps=25, track_id=0), track_of(lines(61, 60), fps=60, track_id=1)]
    for track in target_tracks(tracks):
        torch.testing.assert_close(track.keypoints_2d, torch.from_numpy(lines(31, 30)).float(), atol=1e-3, rtol=0)
    (ntsc,) = target_tracks(track_of(lines(50, 30), fps=29.97))
    assert torch.equal(ntsc.keypoints_2d, torch.from_numpy(lines(50, 30)).float()) and ntsc.fps == 30


# --- Target: what is refused ------------------------------------------------------------------------------------------


def test_nobody(tmp_path):
    nobody = track_of(np.full((5, 17, 2), np.nan), source={"path": "empty video"})
    for source in (nobody, [], np.full((5, 17, 2), np.nan)):
        with pytest.raises(ValueError, match="target tracks without people"):
            target_tracks(source, keypoint_skeleton="h36m_17", keypoint_fps=30, image_size=SIZE)
    with pytest.raises(ValueError, match=r"without people: no keypoint with min_confidence=0.5 is left in track0/person0"):
        target_tracks(track_of(lines(5, 30), confidence=np.full((5, 17), 0.3)), min_confidence=0.5)
    with pytest.raises(ValueError, match="holds no keypoint files"):
        target_tracks(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        target_tracks(tmp_path / "nowhere")


def test_files_without_people_among_others_are_named(tmp_path):
    write_keypoints(tmp_path / "walk.npz", [track_of(lines(5, 30))])
    (tmp_path / "empty.json").write_text(json.dumps([[], []]))
    np.savez(tmp_path / "missing.npz", keypoints_2d=np.full((5, 17, 2), np.nan), skeleton="h36m_17")
    with pytest.warns(UserWarning, match=r"2 recordings hold nobody: empty.json, missing.npz"):
        tracks = target_tracks(tmp_path, camera={"walk.npz": LENS})
    assert [track.name for track in tracks] == ["walk.npz/person0"]
    with pytest.raises(ValueError, match=r"target tracks without people: nobody in empty.json"):
        target_tracks(tmp_path / "empty.json")


def test_nothing_long_enough():
    points = lines(20, 30)
    points[12:] = np.nan
    tracks = [track_of(points), track_of(lines(9, 30), track_id=1)]
    assert [len(track) for track in target_tracks(tracks, min_frames=12)] == [20]
    with pytest.raises(ValueError, match="min_frames=13 observed frames at 30 fps; of 2 the longest, track0/person0, has 12"):
        target_tracks(tracks, min_frames=13)


def test_frame_rates_that_are_unknown_or_contradict(tmp_path):
    known, unknown = track_of(lines(5, 30), fps=25), track_of(lines(5, 30), fps=None, track_id=1)
    with pytest.raises(ValueError, match="mixed frame rates: track1/person1 state none, while track0/person0 has 25 fps"):
        target_tracks([known, unknown])
    assert len(target_tracks([known, unknown], keypoint_fps=25)) == 2
    with pytest.raises(ValueError, match="track0: keypoint_fps is 30, but the track says 25 fps"):
        target_tracks(known, keypoint_fps=30)
    write_keypoints(tmp_path / "walk.npz", [known])
    with pytest.raises(ValueError, match=r"walk.npz: fps 30.0 as given; the file says 25"):
        target_tracks(tmp_path / "walk.npz", keypoint_fps=30)
    write_keypoints(tmp_path / "corrected.npz", read_keypoints(tmp_path / "walk.npz", fps=30))
    assert target_tracks(tmp_path / "corrected.npz")[0].fps == 30  # its notes still tell of 25
    with pytest.warns(UserWarning, match="no track states a frame rate: 30 fps is assumed"):
        assert len(target_tracks(unknown)[0]) == 5


def test_image_sizes_and_skeletons_that_contradict(tmp_path):
    track = track_of(lines(5, 30))
    write_keypoints(tmp_path / "walk.npz", [track])
    with pytest.raises(ValueError, match=r"walk.npz: image_size \(640, 480\) as given; the file says \(1000, 1000\)"):
        target_tracks(tmp_path / "walk.npz", image_size=(640, 480))
    with pytest.raises(ValueError, match=r"track0: image_size is \(640, 480\), but the track says \(1000, 1000\)"):
        target_tracks(track, image_size=(640, 480))
    with pytest.raises(ValueError, match="track0: keypoint_skeleton is 'coco_17', but the track is 'h36m_17'"):
        target_tracks(track, keypoint_skeleton="coco_17")
    with pytest.warns(UserWarning, match="skeleton mpi_inf_3dhp_17 as given; the file says h36m_17"):
        target_tracks(tmp_path / "walk.npz", keypoint_skeleton="mpi_inf_3dhp_17")


def test_joints_that_cannot_be_converted():
    with pytest.raises(ValueError, match="track0/person0: no conversion from aic_14 to smpl_24; from aic_14 one can reach h36m_17, "):
        target_tracks(track_of(lines(5, 30, 14), skeleton="aic_14"), skeleton="smpl_24")
    with pytest.raises(ValueError, match="unknown skeleton 'h37m'"):
        target_tracks(track_of(lines(5, 30)), skeleton="h37m")


def test_keypoints_that_look_normalised(poses):
    for points in (LENS.project(poses()) / 1000, LENS.project(poses()) / 500 - 1):
        for source in (track_of(points), dataclasses.replace(clip_of(poses()), keypoints_2d=points)):
            with pytest.raises(ValueError, match=r"(track0/person0|walk): keypoints must be in pixels.*looks normalised"):
                target_tracks(source)
        with pytest.raises(ValueError, match=r"array0.*look normalised"):
            target_tracks(points, keypoint_skeleton="h36m_17", keypoint_fps=30, image_size=SIZE)


def test_keypoints_outside_of_the_image_are_a_warning():
    with pytest.warns(UserWarning, match=r"track0/person0: 100% of the keypoints lie far outside of an image of \(100, 100\)"):
        target_tracks(track_of(lines(5, 30) + 200, size=(100, 100)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": None}, "fps must be a positive number"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"min_frames": 0}, "min_frames must be at least 1"),
        ({"min_confidence": 2}, "min_confidence lie in 0..1"),
        ({"hidden_when_converted": (17,)}, "hidden_when_converted must be joints of h36m_17"),
        ({"source": 3}, "source must be paths"),
        ({"source": [3]}, "source must be paths"),
        ({"source": [track_of(lines(5, 30), source={"path": "a"})] * 2}, "two tracks of the source have one name: a/person0"),
    ],
)
def test_options_are_checked(options, message):
    source = options.pop("source", track_of(lines(5, 30)))
    with pytest.raises(ValueError, match=message):
        target_tracks(source, **options)


# --- Source -----------------------------------------------------------------------------------------------------------


def windows_of(source, num_frames=10, **options):
    return source_motions(source, num_frames=num_frames, **options)


def test_every_convention_gives_the_same_motion(poses):
    pose = poses(40)
    expected = pose.unflatten(0, (4, 10))
    array = {"source_fps": 30, "source_skeleton": "h36m_17"}
    hp = {"source_fps": 30, "source_skeleton": "mpi_inf_3dhp_17"}
    foreign = pose[:, TO_3DHP]
    for what, result in {
        "clip": windows_of(clip_of(pose)),
        "data set": windows_of(PoseDataset((clip_of(pose),), "walks")),
        "array": windows_of(pose.numpy(), **array),
        "clips": windows_of(expected, **array),
        "list": windows_of([pose[:20], pose[20:]], **array),
        "millimetres": windows_of(1000 * pose, **array),
        "millimetres as told": windows_of(1000 * pose, units="mm", **array),
        "trajectory": windows_of(with_trajectory(pose), **array),
        "trajectory as told": windows_of(with_trajectory(pose), root_slot="trajectory", root_index=0, **array),
        "3dhp": windows_of(foreign, **hp),
        "3dhp millimetres and trajectory": windows_of(1000 * with_trajectory(foreign, 14), **hp),
        "3dhp clip": windows_of(clip_of(foreign, skeleton="mpi_inf_3dhp_17")),
    }.items():
        assert result.dtype == torch.float32, what
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0, msg=what)
    overlapping = windows_of(clip_of(pose), stride=5)
    assert torch.equal(overlapping, torch.stack([pose[i : i + 10] for i in range(0, 31, 5)]))


def test_frame_rates_of_source_motions(poses):
    even = poses(1) + torch.arange(26)[:, None, None] / 25 * torch.tensor([0.5, 0.0, 1.0])
    expected = poses(1) + torch.arange(30)[:, None, None] / 30 * torch.tensor([0.5, 0.0, 1.0])
    torch.testing.assert_close(windows_of(clip_of(even, fps=25.0), 30)[0], expected, atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="array0 states no frame rate: 30 fps is assumed"):
        assert len(windows_of(even, source_skeleton="h36m_17")) == 2
    with pytest.raises(ValueError, match="walk: source_fps is 50, but the clip says 25 fps"):
        windows_of(clip_of(even, fps=25.0), source_fps=50)


def test_windows_with_unknown_joints_or_behind_the_camera_are_left_out(poses):
    pose = poses(40)
    pose[13, 4] = math.nan
    pose[25, 3, 2] = -0.1
    assert torch.equal(windows_of(clip_of(pose)), torch.stack([pose[:10], pose[30:]]))


def test_source_set_is_empty_after_filtering(poses):
    pose = poses(40)
    array = {"source_fps": 30, "source_skeleton": "h36m_17"}
    with pytest.raises(ValueError, match="source set is empty after filtering: of 2 clips 2 are shorter than 50 frames at 30 fps"):
        windows_of([clip_of(pose, "a"), clip_of(pose, "b")], 50)
    with pytest.raises(ValueError, match=r"empty after filtering.*4 have unknown joints and 0 are not in front"):
        windows_of(clip_of(torch.full_like(pose, math.nan)))
    with pytest.raises(ValueError, match=r"empty after filtering.*0 have unknown joints and 4 are not in front.*relative to their root"):
        windows_of(pose - pose[:, :1], **array)
    with pytest.raises(ValueError, match="empty after filtering: of 0 clips"):
        windows_of([])


def test_source_motions_refuse_what_contradicts_the_poses(poses):
    pose = poses(20)
    array = {"source_fps": 30, "source_skeleton": "h36m_17"}
    for source, options, message in (
        (1000 * pose, {"units": "m"}, "array0: the median limb measures .* looks like mm, but units='m'"),
        (pose, {"units": "mm"}, "array0: the median limb measures .* looks like m, but units='mm'"),
        (100 * pose, {}, "neither metres .* nor millimetres"),
        (pose, {"units": "cm"}, "units must be one of"),
        (pose, {"root_slot": "hips"}, "root_slot must be one of"),
        (pose, {"root_slot": "trajectory"}, "root_slot='trajectory' makes no human: as a trajectory the bone from pelvis to"),
        (with_trajectory(pose), {"root_slot": "pose"}, "root_slot='pose' makes no human: as a pose the bone from pelvis to"),
        (with_trajectory(pose), {"root_index": 17}, "root_index must be a joint"),
        (pose, {"source_skeleton": None}, "arrays do not state their joint order: pass source_skeleton"),
        (pose[..., :2], {}, r"array0 must have shape \(frames, 17, 3\)"),
        (pose, {"skeleton": "coco_17"}, "h36m_17 does not know left_eye, right_eye"),
        (pose[:, :14], {"source_skeleton": "aic_14", "skeleton": "smpl_24"}, "no conversion from aic_14 to smpl_24"),
        (clip_of(pose), {"source_skeleton": "coco_17"}, "walk: source_skeleton is 'coco_17', but the clip is 'h36m_17'"),
        (pose, {"stride": 0}, "num_frames and stride must be at least 1"),
        (pose, {"fps": -1}, "fps must be a positive number"),
        (3, {}, "source must be"),
        ([3], {}, "source must be a PoseDataset"),
        (pose[:, TO_3DHP], {}, "makes no human.*is the joint order h36m_17, and the root at joint 0"),
        (with_trajectory(pose), {"root_index": 14}, "makes no human.*and the root at joint 14"),
    ):
        with pytest.raises(ValueError, match=message):
            windows_of(source, **{**array, **options})


def test_bodies_that_do_not_stand_along_the_image_are_a_warning(poses):
    pose = poses(20)
    for changed, message in (
        (pose * torch.tensor([1.0, -1.0, 1.0]), "upside down"),
        (torch.stack([pose[..., 0], pose[..., 2], 3 - pose[..., 1]], -1), "across the image's vertical"),
    ):
        with pytest.warns(UserWarning, match=message):
            windows_of(clip_of(changed))
