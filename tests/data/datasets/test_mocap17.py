"""The benchmark of motion-capture clips: what is read, and what is refused."""

import numpy as np
import pytest
import torch
from numpy_cameras import project

from probpose.data.datasets.mocap17 import read_mocap17, source_and_family


def test_clips(mocap17):
    data = read_mocap17(mocap17.save())
    assert data.name == "mocap17_test detected" and data.protocol == "clips" and data.notes == ()
    assert [clip.name for clip in data] == mocap17.arrays["names"].tolist() and [len(clip) for clip in data] == [12, 7, 20]
    assert data[1].tags == {"dataset": "mocap17", "source": "bandai", "family": "bandai/run"}
    assert all(clip.fps == 30 and clip.camera.image_size == (1000, 1002) and clip.scored.all() for clip in data)
    for clip, first, world in zip(data, mocap17.arrays["starts"], mocap17.world):
        frames = slice(first, first + len(clip))
        for name in ("positions_camera", "confidence"):
            np.testing.assert_allclose(getattr(clip, name), mocap17.arrays[name][frames], rtol=1e-5)
        np.testing.assert_allclose(clip.keypoints_2d, mocap17.arrays["keypoints_detected"][frames], rtol=1e-5)
        np.testing.assert_allclose(clip.camera.to_camera(torch.from_numpy(world)), clip.positions_camera, atol=1e-5)


def test_true_keypoints_are_projections_of_full_confidence(mocap17):
    for clip in read_mocap17(mocap17.save(), "true"):
        np.testing.assert_allclose(clip.camera.project(clip.positions_camera), clip.keypoints_2d, atol=0.01)
        lens = {"focal_length": mocap17.arrays["focal"], "center": mocap17.arrays["centre"]}
        lens |= {"radial_distortion": mocap17.arrays["radial"], "tangential_distortion": mocap17.arrays["tangential"]}
        np.testing.assert_allclose(project(clip.positions_camera.double().numpy(), lens), clip.keypoints_2d, atol=0.01)
        assert (clip.confidence == 1).all()


@pytest.mark.parametrize(
    ("name", "source", "family"),
    [
        ("cmu/walking/walking_1", "cmu", "cmu/walking"),
        ("bandai/dataset-2_run_elderly_002", "bandai", "bandai/run"),
        ("bandai/dataset-1_raise-up-left-hand_active_001", "bandai", "bandai/raise-up-left-hand"),
        ("mine/dance_01", "mine", "mine/dance_01"),
        ("alone", "alone", "alone"),
    ],
)
def test_families(name, source, family):
    assert source_and_family(name) == {"source": source, "family": family}


def test_an_unknown_kind_of_keypoints(mocap17):
    with pytest.raises(ValueError, match=r"keypoints must be one of \('detected', 'true'\), got 'gt'"):
        read_mocap17(mocap17.save(), "gt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [a.pop(key) for key in ("confidence", "fps")], "lacks the arrays confidence, fps"),
        (lambda a: a.update(starts=np.array([0, 12, 14, 39])), "at least three frames per clip"),
        (lambda a: a.update(starts=np.array([1, 12, 19, 39])), "starts must rise from 0"),
        (lambda a: a.update(starts=np.array([0])), "starts must rise from 0"),
        (
            lambda a: a.update(keypoints_true=a["keypoints_true"][:, :16]),
            r"keypoints_true .* \(39, 17, 2\), got \(39, 16, 2\)",
        ),
        (lambda a: a.update(starts=np.array([0, 12, 19])), r"keypoints_true must have shape \(19, 17, 2\)"),
        (lambda a: a.update(rotation=a["rotation"][:2]), r"rotation must have shape \(3, 3, 3\)"),
        (lambda a: a.update(names=a["names"][:2]), r"names must have shape \(3,\)"),
        (lambda a: a.update(fps=np.array([30, 30])), r"fps must have shape \(\)"),
        (lambda a: a.update(positions_camera=1000 * a["positions_camera"]), "millimetres"),
        (lambda a: a.update(names=np.array(["a", "b", None], dtype=object)), "is no benchmark file"),
        (lambda a: a.update(names=np.array(["a", "b", "a"])), "two clips are named 'a'"),
    ],
)
def test_files_of_another_layout(mocap17, change, message):
    change(mocap17.arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read_mocap17(mocap17.save())
    assert "mocap17_test" in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "array", "truncated", "empty"])
def test_files_that_are_no_archive(mocap17, kind):
    path = mocap17.save()
    whole = path.read_bytes()
    with path.open("wb") as file:
        if kind == "array":
            np.save(file, np.zeros(3))
        else:
            file.write({"text": b"frames", "truncated": whole[: len(whole) // 2], "empty": b""}[kind])
    with pytest.raises(ValueError, match="is no benchmark file"):
        read_mocap17(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no benchmark file at"):
        read_mocap17(tmp_path / "absent.npz")
