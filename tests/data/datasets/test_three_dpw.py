"""3DPW: small sequence files as Python 2 wrote them, and what is wrong with others."""

import pickle

import numpy as np
import pytest
import torch

from probpose.data.datasets.three_dpw import read_3dpw
from probpose.skeletons import get_skeleton

FRAMES = 25
FOCAL = np.array([1961.1, 1969.2])
# SMPL-24, metres, y up, person facing +z: their left is at +x.
PERSON = np.array(
    [
        [0, 0.95, 0], [0.07, 0.86, 0], [-0.07, 0.86, 0], [0, 1.06, 0], [0.1, 0.48, 0.01], [-0.1, 0.48, 0.01], [0, 1.19, 0],
        [0.1, 0.08, -0.03], [-0.1, 0.08, -0.03], [0, 1.25, 0], [0.12, 0.02, 0.1], [-0.12, 0.02, 0.1], [0, 1.46, -0.02],
        [0.08, 1.38, 0], [-0.08, 1.38, 0],
        [0, 1.55, 0.03], [0.18, 1.4, -0.02], [-0.18, 1.4, -0.02], [0.25, 1.15, -0.03], [-0.25, 1.15, -0.03], [0.28, 0.9, 0.02],
        [-0.28, 0.9, 0.02], [0.29, 0.82, 0.03], [-0.29, 0.82, 0.03],
    ]
)  # fmt: skip


def camera_poses():
    """A hand-held camera on the +z side, four metres away, that turns sideways and rolls: world to camera `(frames, 4, 4)`."""
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    for pose, angle in zip(poses, np.linspace(-0.1, 0.1, FRAMES)):
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        turn = turn @ np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
        pose[:3, :3] = turn @ np.diag([1.0, -1.0, -1.0])
        pose[:3, 3] = turn @ [0, 1, 4]
    return poses


def make_sequence(people=2, centre=(540.0, 960.0)):
    joints = [PERSON + [0.6 * p, 0, 0] + np.linspace(0, 0.5, FRAMES)[:, None, None] * [1, 0, 0] for p in range(people)]
    record = {
        "sequence": "downtown_walking_00",
        "jointPositions": [j.reshape(FRAMES, 72) for j in joints],
        "cam_intrinsics": np.array([[FOCAL[0], 0, centre[0]], [0, FOCAL[1], centre[1]], [0, 0, 1]]),
        "cam_poses": camera_poses(),
        "campose_valid": [(np.arange(FRAMES) >= 3 + p).astype(np.int64) for p in range(people)],
        "genders": ["m", "f"][:people],
        "img_frame_ids": np.arange(FRAMES),
        "poses": [np.zeros((FRAMES, 72))] * people,
        "betas": [np.zeros(300)] * people,
    }
    # OpenPose's order from SMPL's; the nose stands in for eyes and ears.
    order = [15, 12, 17, 19, 21, 16, 18, 20, 2, 5, 8, 1, 4, 7, 15, 15, 15, 15]
    record["poses2d"] = []
    for p in range(people):
        pixels, _ = reference(record, p)
        detections = np.concatenate([pixels[:, order], np.full((FRAMES, 18, 1), 0.8)], -1)
        detections[2, 3] = 0  # the right elbow is not found in frame 2
        record["poses2d"].append(detections.transpose(0, 2, 1))
    return record


def reference(record, person):
    """Pixels and camera-space points by plain loops over homogeneous coordinates."""
    joints = record["jointPositions"][person].reshape(FRAMES, 24, 3)
    pixels, points = np.zeros((FRAMES, 24, 2)), np.zeros((FRAMES, 24, 3))
    for f in range(FRAMES):
        for j in range(24):
            points[f, j] = (record["cam_poses"][f] @ [*joints[f, j], 1])[:3]
            image = record["cam_intrinsics"] @ points[f, j]
            pixels[f, j] = image[:2] / image[2]
    return pixels, points


@pytest.fixture
def save(tmp_path):
    """Writes a sequence with protocol 2 below `sequenceFiles/<split>`."""

    def make(record, split="test", name="downtown_walking_00.pkl"):
        folder = tmp_path / "sequenceFiles" / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(record, protocol=2))
        return folder.parent

    return make


def test_people_of_a_sequence(save):
    record = make_sequence()
    dataset = read_3dpw(save(record))
    assert dataset.protocol == "3dpw" and dataset.notes == ()
    assert [clip.name for clip in dataset] == ["downtown_walking_00/person0", "downtown_walking_00/person1"]
    for person, clip in enumerate(dataset):
        pixels, points = reference(record, person)
        assert clip.skeleton == "smpl_24" and clip.fps == 30
        np.testing.assert_allclose(clip.positions_camera, points, atol=1e-5)
        np.testing.assert_allclose(clip.keypoints_2d, pixels, atol=1e-2)
        np.testing.assert_allclose(clip.camera.project(clip.positions_camera), pixels, atol=1e-2)
        assert (clip.confidence == 1).all()
        assert clip.valid.tolist() == [False] * (3 + person) + [True] * (FRAMES - 3 - person)
        np.testing.assert_allclose(clip.camera.focal, FOCAL, rtol=1e-6)
        assert clip.camera.rotation is None and clip.camera.image_size == (1080, 1920)
    tags = {"dataset": "3dpw", "split": "test", "sequence": "downtown_walking_00", "person": "person1"}
    assert dataset[1].tags == tags


def test_landscape_is_told_from_the_principal_point(save):
    assert read_3dpw(save(make_sequence(1, centre=(960.0, 540.0))))[0].camera.image_size == (1920, 1080)


def test_detections_come_in_the_h36m_order_with_their_confidence(save):
    record = make_sequence()
    dataset = read_3dpw(save(record), keypoints="poses2d")
    assert dataset.notes == ()
    names = get_skeleton("h36m_17").joint_names
    smpl = get_skeleton("smpl_24").joint_names
    for person, clip in enumerate(dataset):
        pixels, points = reference(record, person)
        assert clip.skeleton == "h36m_17" and len(clip) == FRAMES
        for joint in ("left_knee", "right_ankle", "left_wrist", "right_shoulder"):
            np.testing.assert_allclose(clip.keypoints_2d[:, names.index(joint)], pixels[:, smpl.index(joint)], atol=1e-2)
            np.testing.assert_allclose(clip.positions_camera[:, names.index(joint)], points[:, smpl.index(joint)], atol=1e-5)
        elbow = names.index("right_elbow")
        assert clip.confidence[2, elbow] == 0 and clip.keypoints_2d[2, elbow].isnan().all()
        clip.confidence[2, elbow] = 0.8
        torch.testing.assert_close(clip.confidence, torch.full((FRAMES, 17), 0.8))
        hips = pixels[:, [smpl.index("left_hip"), smpl.index("right_hip")]].mean(1)
        np.testing.assert_allclose(clip.keypoints_2d[:, 0], hips, atol=1e-2)  # OpenPose's 18 joints have no pelvis


def test_every_way_to_name_a_split(save, tmp_path):
    save(make_sequence(1))
    root = save({**make_sequence(2), "sequence": "arguing_00"}, split="train", name="arguing_00.pkl")
    for path in (tmp_path, root, root / "test", root / "test" / "downtown_walking_00.pkl"):
        assert [clip.name for clip in read_3dpw(path)] == ["downtown_walking_00/person0"]
    assert len(read_3dpw(root, split="train")) == 2
    assert {clip.tags["split"] for clip in read_3dpw(root / "train")} == {"train"}  # the folder's name counts


def test_a_split_without_sequences(tmp_path):
    (tmp_path / "sequenceFiles" / "validation").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"validation holds no .pkl sequences"):
        read_3dpw(tmp_path / "sequenceFiles", split="validation")
    with pytest.raises(ValueError, match=r"sequenceFiles holds no .pkl sequences"):
        read_3dpw(tmp_path / "sequenceFiles", split="test")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_3dpw(tmp_path / "nowhere")


def test_frames_without_truth_are_counted_and_not_scored(save):
    record = make_sequence(1)
    record["jointPositions"][0][10:14] = np.nan
    record["cam_poses"][0] = np.nan
    dataset = read_3dpw(save(record))
    assert dataset.notes == ("NaN ground truth in 1 clip: downtown_walking_00/person0 (5 of 25 frames)",)
    (clip,) = dataset
    assert not clip.valid[10:14].any() and clip.scored.sum() == FRAMES - 3 - 4
    assert (clip.confidence[10:14] == 0).all() and clip.keypoints_2d[10:14].isnan().all()


def test_what_is_behind_the_camera_is_not_observed(save):
    record = make_sequence(1)
    record["jointPositions"][0][5] += np.tile([0, 0, 6], 24)
    (clip,) = read_3dpw(save(record))
    assert (clip.positions_camera[5, :, 2] < 0).all() and (clip.confidence[5] == 0).all() and clip.keypoints_2d[5].isnan().all()


def test_exchanged_sides_are_noted(save):
    record = make_sequence(1)
    flip = list(get_skeleton("openpose_18").flip_index)
    record["poses2d"] = [detections[..., flip] for detections in record["poses2d"]]
    (note,) = read_3dpw(save(record), keypoints="poses2d").notes
    assert note.startswith("left and right look exchanged")


def test_millimetres_are_refused(save):
    record = make_sequence(1)
    record["jointPositions"][0] *= 1000
    record["cam_poses"][:, :3, 3] *= 1000
    with pytest.raises(ValueError, match=r"downtown_walking_00/person0.*millimetres: divide by 1000"):
        read_3dpw(save(record))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("cam_poses"), r"must be a dict with .*'cam_poses'.*got \['betas'"),
        (
            lambda r: r.update(jointPositions=[j[:, :66] for j in r["jointPositions"]]),
            r"jointPositions of person 0.*\(25, 72\), got \(25, 66\)",
        ),
        (lambda r: r["jointPositions"].pop(), r"one entry per person, got \[1, 2, 2\] entries"),
        (lambda r: r.update(jointPositions=[], campose_valid=[], poses2d=[]), "one entry per person"),
        (lambda r: r.update(jointPositions=None), "one entry per person"),
        (lambda r: r["campose_valid"].__setitem__(1, np.ones(24)), r"campose_valid of person 1.*\(25\), got \(24,\)"),
        (lambda r: r.update(cam_poses=r["cam_poses"][1:]), r"jointPositions of person 0, with 24 cam_poses, must have shape \(24, 72\)"),
        (lambda r: r.update(cam_poses=r["cam_poses"][:, :3]), r"cam_poses must have shape \(frames, 4, 4\), got \(25, 3, 4\)"),
        (
            lambda r: r["poses2d"].__setitem__(0, r["poses2d"][0].transpose(0, 2, 1)),
            r"poses2d of person 0.*\(25, 3, 18\), got \(25, 18, 3\)",
        ),
        (lambda r: r.update(cam_intrinsics=np.eye(4)), r"cam_intrinsics must have shape \(3, 3\)"),
        (lambda r: r.update(cam_intrinsics=-r["cam_intrinsics"]), r"cam_intrinsics must be \[fx 0 cx"),
        (lambda r: r.update(cam_intrinsics=r["cam_intrinsics"] * np.nan), r"cam_intrinsics must be \[fx 0 cx"),
    ],
)
def test_other_layouts_are_refused_by_file_key_and_expectation(save, change, words):
    record = make_sequence()
    change(record)
    with pytest.raises(ValueError, match=words) as error:
        read_3dpw(save(record), keypoints="poses2d")
    assert "downtown_walking_00.pkl" in str(error.value)


def test_detections_are_needed_only_where_they_are_asked_for(save):
    record = make_sequence(1)
    del record["poses2d"]
    path = save(record)
    assert len(read_3dpw(path)) == 1
    with pytest.raises(ValueError, match="poses2d"):
        read_3dpw(path, keypoints="poses2d")


@pytest.mark.parametrize("keep", [0, 5, 200, 20000])
def test_truncated_file(save, keep):
    path = save(make_sequence()) / "test" / "downtown_walking_00.pkl"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"downtown_walking_00.pkl"):
        read_3dpw(path)


def test_a_pickle_that_would_run_code_is_refused(save, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "it ran"), "w"))

    with pytest.raises(ValueError, match="would run code"):
        read_3dpw(save({**make_sequence(), "betas": Harmful()}))
    assert not (tmp_path / "it ran").exists()


def test_wrong_options(save):
    path = save(make_sequence(1))
    for option in ({"split": "val"}, {"keypoints": "gt"}, {"fps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} .*must be"):
            read_3dpw(path, **option)
