"""HumanEva-I's files: joints, names, cameras given or recovered, frames without data."""

import json

import numpy as np
import pytest
import torch
from numpy_cameras import metadata, world_to_camera

from probpose.data.datasets.humaneva import CAMERAS, read_humaneva


def place_of(humaneva, clip):
    return humaneva.cameras["extrinsics"][clip.tags["subject"]][CAMERAS.index(clip.tags["camera"])]


def world_of(humaneva, clip):
    return humaneva.positions[f"{clip.tags['split']}/{clip.tags['subject']}"][clip.tags["take"]]


def test_clips_of_the_test_set(humaneva):
    data = read_humaneva(humaneva.path, cameras=humaneva.cameras)
    assert data.name == "humaneva gt" and data.protocol == "humaneva" and data.notes == ()
    takes = ["Validate/S1/Walking 1 chunk0", "Validate/S1/Box 1 chunk2", "Validate/S2/Jog 1"]
    assert [clip.name for clip in data] == [f"{take}/{camera}" for take in takes for camera in CAMERAS]
    assert [clip.tags["action"] for clip in data] == ["Walk"] * 3 + ["Box"] * 3 + ["Jog"] * 3
    clip = data[1]
    expected = {"dataset": "humaneva", "split": "Validate", "subject": "S1", "action": "Walk", "take": "Walking 1 chunk0", "camera": "C2"}
    assert clip.tags == expected
    assert clip.fps == 60 and clip.skeleton == "humaneva_15" and clip.camera.image_size == (640, 480) and clip.scored.all()


@pytest.mark.parametrize("how", ["dict", "file", "recovered"])
def test_cameras(humaneva, tmp_path, how):
    """Positions against SciPy, projections against the true keypoints of the file."""
    cameras = {"dict": humaneva.cameras, "file": tmp_path / "cameras.json", "recovered": None}[how]
    if how == "file":
        cameras.write_text(json.dumps(humaneva.cameras))
    data = read_humaneva(humaneva.path, cameras=cameras)
    for clip in data:
        np.testing.assert_allclose(clip.positions_camera, world_to_camera(world_of(humaneva, clip), place_of(humaneva, clip)), atol=2e-3)
        np.testing.assert_allclose(clip.camera.project(clip.positions_camera), clip.keypoints_2d, atol=0.05)
    if how == "recovered":
        assert len(data.notes) == 1 and "recovered" in data.notes[0] and "S1 C1 0.00, S1 C2 0.00" in data.notes[0]
        torch.testing.assert_close(data[0].camera.focal, torch.tensor([745.0, 746.5]), rtol=0, atol=0.5)
    else:
        assert data.notes == ()


def test_a_residual_is_told(humaneva):
    for takes in humaneva.views.values():
        for views in takes.values():
            views[:] = [view + np.random.default_rng(0).normal(size=view.shape) for view in views]
    humaneva.save_2d()
    note = read_humaneva(humaneva.path).notes[0]
    assert all(0.8 < float(part.split()[-1]) < 1.6 for part in note.split("in pixels: ")[1].split(", "))


def test_coco_keypoints_are_converted_and_cameras_come_from_the_true_ones(humaneva):
    names = {5: 2, 7: 3, 9: 4, 6: 5, 8: 6, 10: 7, 11: 8, 13: 9, 15: 10, 12: 11, 14: 12, 16: 13}

    def convert(view):
        coco = np.zeros((len(view), 17, 2))
        coco[:, list(names)] = view[:, list(names.values())]
        coco[:, :5] = view[:, 14:]
        return coco

    views = {s: {t: [convert(v) for v in humaneva.views[s][t]] for t in humaneva.views[s]} for s in humaneva.views}
    humaneva.save_2d("detectron_pt_coco", views, "coco_17")
    data = read_humaneva(humaneva.path, "detectron_pt_coco")
    assert any("converted from coco_17 to humaneva_15" in note for note in data.notes)
    for clip, true in zip(data, read_humaneva(humaneva.path), strict=True):
        limbs = list(names.values())
        torch.testing.assert_close(clip.keypoints_2d[:, limbs], true.keypoints_2d[:, limbs])
        torch.testing.assert_close(clip.camera.focal, true.camera.focal)
        assert (clip.confidence == 1).all()


def test_frames_without_data_are_not_valid(humaneva):
    humaneva.positions["Validate/S1"]["Box 1 chunk2"][2:4] = 0
    humaneva.positions["Validate/S1"]["Box 1 chunk2"][7, 3] = np.nan
    humaneva.views["Validate/S1"]["Box 1 chunk2"][0][5] = 0
    humaneva.save_3d()
    humaneva.save_2d()
    data = read_humaneva(humaneva.path)
    clip = data[3]
    assert clip.name == "Validate/S1/Box 1 chunk2/C1"
    assert (~clip.scored).nonzero()[:, 0].tolist() == [2, 3, 7] and clip.positions_camera[2:4].isnan().all()
    assert (clip.confidence[5] == 0).all() and clip.keypoints_2d[5].isnan().all()
    assert any(note.startswith("3 frames without complete 3D joints are not valid: Validate/S1/Box 1 chunk2 (3)") for note in data.notes)
    assert data[0].scored.all()


def test_choices(humaneva):
    def names(**options):
        return [clip.name for clip in read_humaneva(humaneva.path, cameras=humaneva.cameras, **options)]

    assert names(subjects="Train/S1", actions=["Jog"]) == [f"Train/S1/Jog 1/{camera}" for camera in CAMERAS]
    assert len(names(subjects=list(humaneva.positions))) == 15
    for options, message in (
        ({"subjects": ["S1"]}, r"subjects must be some of \['Train/S1', 'Validate/S1', 'Validate/S2'\]"),
        ({"actions": ["Combo"]}, "actions must be some of .*'Walking 1 chunk0', 'Walk'"),
    ):
        with pytest.raises(ValueError, match=message):
            names(**options)


def test_without_cameras_and_without_true_keypoints(humaneva):
    humaneva.save_2d("mine")
    (humaneva.path / "data_2d_humaneva15_gt.npz").unlink()
    with pytest.raises(ValueError, match=r"data_3d_humaneva15.npz has no cameras.*give cameras"):
        read_humaneva(humaneva.path, "mine")
    assert len(read_humaneva(humaneva.path, "mine", cameras=humaneva.cameras)) == 9
    with pytest.raises(FileNotFoundError, match=r"data_2d_humaneva15_gt.npz.*\['mine'\]"):
        read_humaneva(humaneva.path, "gt", cameras=humaneva.cameras)


def test_cameras_that_cannot_be_used(humaneva, tmp_path):
    def read(cameras):
        return read_humaneva(humaneva.path, cameras=cameras)

    no_focal = {**humaneva.cameras, "intrinsics": [{"res_w": 640, "res_h": 480}] * 3}
    (tmp_path / "text.json").write_text("text")
    for cameras, message in (
        ({**humaneva.cameras, "extrinsics": {"S1": humaneva.cameras["extrinsics"]["S1"]}}, "cameras of S2 lack 'S2'"),
        (no_focal, "cameras of S1 lack 'focal_length'"),
        ({**humaneva.cameras, "intrinsics": []}, "cameras of S1 cannot be read"),
        (tmp_path / "text.json", r"text.json is no JSON file"),
    ):
        with pytest.raises(ValueError, match=message):
            read(cameras)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.json")


def test_keypoints_that_determine_no_camera(humaneva):
    for takes in humaneva.views.values():
        for views in takes.values():
            views[:] = [np.full_like(view, np.nan) for view in views]
    humaneva.save_2d()
    with pytest.raises(ValueError, match=r"camera C1 of S1 cannot be recovered \(.* at least 6 points, got 0\); give cameras"):
        read_humaneva(humaneva.path)


def test_other_layouts(humaneva):
    np.savez(humaneva.path / "data_2d_humaneva15_h36m.npz", positions_2d=humaneva.views, metadata=metadata("h36m_17"))
    with pytest.raises(ValueError, match="neither coco_17 nor humaneva_15"):
        read_humaneva(humaneva.path, "h36m", cameras=humaneva.cameras)
    del humaneva.positions["Validate/S1"], humaneva.positions["Validate/S2"]
    humaneva.save_3d()
    with pytest.raises(ValueError, match=r"no subjects of Validate; it has \['Train/S1'\]"):
        read_humaneva(humaneva.path)
    humaneva.positions["Train/S1"]["Jog 1"] = np.zeros((15, 20, 3))
    humaneva.save_3d()
    with pytest.raises(ValueError, match="Train/S1 'Jog 1' must have 15 joints, got 20"):
        read_humaneva(humaneva.path, subjects=["Train/S1"], cameras=humaneva.cameras)
