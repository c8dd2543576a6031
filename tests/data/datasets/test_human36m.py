"""Human3.6M's files: cameras, joints, lengths, choices, and what is wrong with others."""

import re

import numpy as np
import pytest
import torch
from numpy_cameras import RECORD, metadata, project, world_to_camera

from probpose.data.datasets.human36m import CAMERAS, read_human36m


def test_clips_of_the_test_set(h36m):
    data = read_human36m(h36m.path)
    assert data.name == "h36m cpn_ft_h36m_dbb" and data.protocol == "h36m"
    assert len(data) == 4 * 4 and data[0].name == "S9/Directions 1/54138969"
    takes = [(subject, take) for subject in ("S9", "S11") for take in h36m.world[subject]]
    assert [clip.name for clip in data] == [f"{subject}/{take}/{camera}" for subject, take in takes for camera in CAMERAS]
    clip = data[5]
    assert clip.tags == {"dataset": "h36m", "subject": "S9", "action": "Directions", "take": "Directions", "camera": "55011271"}
    assert clip.fps == 50 and clip.skeleton == "h36m_17" and clip.scored.all() and clip.camera.image_size == (1000, 1000)
    assert any("cut to the length" in note and "S9/Directions 1/54138969 (by 2)" in note for note in data.notes)


def test_world_to_camera_and_the_file_of_true_keypoints(h36m):
    """Positions against SciPy; what the clip's camera projects them to against the keypoints of the file."""
    for clip in read_human36m(h36m.path, "gt", subjects=None):
        subject, take, camera = clip.name.split("/")
        place = RECORD["extrinsics"][subject][CAMERAS.index(camera)]
        np.testing.assert_allclose(clip.positions_camera, world_to_camera(h36m.world[subject][take], place), atol=1e-5)
        true = h36m.views[subject][take][CAMERAS.index(camera)]
        np.testing.assert_allclose(clip.keypoints_2d, true, atol=1e-3)
        np.testing.assert_allclose(clip.camera.project(clip.positions_camera), true, atol=0.02)
        assert (clip.confidence == 1).all() and len(clip) == len(true)
        torch.testing.assert_close(
            clip.camera.to_world(clip.positions_camera)[:, 0].double().numpy(), h36m.world[subject][take][:, 0], rtol=0, atol=1e-5
        )


def test_without_the_file_true_keypoints_are_projections(h36m):
    (h36m.path / "data_2d_h36m_gt.npz").unlink()
    data = read_human36m(h36m.path, "gt")
    for clip in data:
        subject, take, camera = clip.name.split("/")
        np.testing.assert_allclose(clip.keypoints_2d, h36m.views[subject][take][CAMERAS.index(camera)], atol=0.02)
    assert any("projected 3D joints" in note for note in data.notes)


def test_positions_of_17_joints_are_taken_as_they_are(h36m):
    expected = read_human36m(h36m.path, "gt")
    np.savez(h36m.path / "data_3d_h36m.npz", positions_3d=h36m.world)
    for clip, reference in zip(read_human36m(h36m.path / "data_3d_h36m.npz", "gt"), expected, strict=True):
        torch.testing.assert_close(clip.positions_camera, reference.positions_camera, rtol=0, atol=1e-5)


def coco_of(view):
    """COCO joints of which "simple" makes the joints of Human3.6M that are on a limb; with scores."""
    coco = np.zeros((len(view), 17, 3))
    coco[:, [12, 14, 16, 11, 13, 15, 5, 7, 9, 6, 8, 10], :2] = view[:, [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]]
    coco[:, :5, :2] = view[:, 10:11]
    coco[..., 2] = np.linspace(0.5, 1, 17)
    return coco


@pytest.mark.parametrize("scores", ["probabilities", "logits", "none"])
def test_coco_keypoints_are_converted(h36m, scores):
    views = {s: {t: [coco_of(v) for v in h36m.views[s][t]] for t in h36m.views[s]} for s in h36m.views}
    for takes in views.values():
        for take in takes:
            if scores == "logits":
                for view in takes[take]:
                    view[..., 2] *= 20
            elif scores == "none":
                takes[take] = [view[..., :2] for view in takes[take]]
    h36m.save("detectron_pt_coco", views, "coco_17")
    data = read_human36m(h36m.path, "detectron_pt_coco")
    assert any("converted from coco_17 to h36m_17, method 'simple'" in note for note in data.notes)
    assert any("not taken for confidences" in note for note in data.notes) == (scores == "logits")
    clip = data[0]
    view = h36m.views["S9"]["Directions 1"][0]
    limbs = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
    np.testing.assert_allclose(clip.keypoints_2d[:, limbs], view[:, limbs], atol=1e-3)
    np.testing.assert_allclose(clip.keypoints_2d[:, 0], (view[:, 1] + view[:, 4]) / 2, atol=1e-3)
    if scores == "probabilities":
        torch.testing.assert_close(clip.confidence[0, 3].item(), 0.5 + 0.5)  # right ankle, COCO's last
        assert 0 < clip.confidence[0, 11] < 1
    else:
        assert (clip.confidence == 1).all()
    other = read_human36m(h36m.path, "detectron_pt_coco", method="demo")
    assert not torch.allclose(other[0].keypoints_2d[:, 7], clip.keypoints_2d[:, 7])
    assert any("method 'demo'" in note for note in other.notes)


def test_confidences_and_missing_frames_of_a_kind_of_ones_own(h36m):
    views = {s: {t: [np.dstack([v, np.full(v.shape[:2], 0.7)]) for v in h36m.views[s][t]] for t in h36m.views[s]} for s in h36m.views}
    views["S9"]["Directions 1"][0][3, 5, :2] = np.nan
    views["S9"]["Directions 1"][0][4] = 0
    h36m.save("mine", views)
    data = read_human36m(h36m.path, "mine")
    clip = data[0]
    assert clip.confidence[3, 5] == 0 and (clip.confidence[4] == 0).all() and clip.keypoints_2d[4].isnan().all()
    torch.testing.assert_close(clip.confidence[5:], torch.full_like(clip.confidence[5:], 0.7))
    assert any("frames without keypoints" in note and "S9/Directions 1/54138969 (1)" in note for note in data.notes)


def test_choices(h36m):
    def names(**options):
        return [clip.name for clip in read_human36m(h36m.path, **options)]

    assert names(subjects="S9", cameras=["60457274"]) == [f"S9/{take}/60457274" for take in h36m.world["S9"]]
    assert names(subjects=["S11", "S9"], cameras="58860488", actions=["Directions"]) == [
        "S11/Directions 1/58860488",
        "S9/Directions 1/58860488",
        "S9/Directions/58860488",
    ]
    assert names(actions="WalkDog 1", cameras=CAMERAS[:1]) == ["S9/WalkDog 1/54138969"]
    assert len(names(subjects=None)) == 4 * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": ["S9", "S5"]}, r"data_3d_h36m.npz: subjects must be some of \['S1', 'S9', 'S11'\], got \['S9', 'S5'\]"),
        ({"subjects": []}, "subjects must be some of"),
        ({"cameras": ["1"]}, "cameras must be some of .*54138969"),
        ({"actions": ["Sleeping"]}, "actions must be some of .*'WalkDog 1', 'WalkDog'"),
    ],
)
def test_what_is_not_there(h36m, options, message):
    with pytest.raises(ValueError, match=message):
        read_human36m(h36m.path, **options)


def test_missing_files(h36m, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_2d_h36m_hrnet.npz.*\['cpn_ft_h36m_dbb', 'gt'\]"):
        read_human36m(h36m.path, "hrnet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data_3d_h36m.npz"):
        read_human36m(tmp_path / "empty")


def test_keypoints_shorter_than_the_poses(h36m):
    h36m.views["S11"]["Directions 1"][2] = h36m.views["S11"]["Directions 1"][2][:-1]
    h36m.save("short", h36m.views)
    with pytest.raises(ValueError, match=r"data_2d_h36m_short.npz, S11 'Directions 1', camera 58860488 has 7 frames of keypoints for 8"):
        read_human36m(h36m.path, "short")
    assert len(read_human36m(h36m.path, "short", subjects=["S9"])) == 12


def change_views(change):
    def apply(h36m):
        change(h36m.views)
        h36m.save("gt", h36m.views)

    return apply


def set_view(value):
    return change_views(lambda views: views["S9"].update({"Directions": [value] * 4}))


def set_positions(value):
    return change_positions(lambda positions: positions["S9"].update({"Directions": value}))


def change_positions(change):
    def apply(h36m):
        change(h36m.positions)
        np.savez(h36m.path / "data_3d_h36m.npz", positions_3d=h36m.positions)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_views(lambda v: v["S9"].pop("WalkDog 1")), r"no keypoints of S9 'WalkDog 1'; it has \['Directions', 'Directions 1'\]"),
        (change_views(lambda v: v.pop("S11")), r"no keypoints of S11 'Directions 1'; it has \['S1', 'S9'\]"),
        (change_views(lambda v: v["S9"]["Directions"].pop()), "S9 'Directions', camera 60457274 must be item 3 of a list"),
        (set_view(np.zeros((15, 16, 2))), r"shape \(frames, 17, 2\), got \(15, 16, 2\)"),
        (set_view(np.zeros((15, 17, 4))), r"shape \(frames, 17, 2\), got \(15, 17, 4\)"),
        (set_view("text"), "must be numbers"),
        (set_positions(np.zeros((15, 18, 3))), "'Directions' must have 32 or 17 joints, got 18"),
        (change_positions(lambda p: p["S9"].update({"Directions": 1000 * p["S9"]["Directions"]})), "Directions.*millimetres"),
        (change_positions(lambda p: p.clear()), "positions_3d must be a dict of subjects"),
        (change_positions(lambda p: p.update({k: {} for k in p})), "no clips"),
        (lambda h: h.save("gt", h.views, metadata={"num_joints": 17}), r"metadata must be a dict"),
        (lambda h: h.save("gt", h.views, "mpii_16"), "16 joints with left and right .* are neither coco_17 nor h36m_17"),
        (lambda h: np.savez(h.path / "data_2d_h36m_gt.npz", positions_2d=h.views), "no entry 'metadata'; its entries are"),
        (lambda h: np.savez(h.path / "data_3d_h36m.npz", poses=np.zeros(3)), r"no entry 'positions_3d'; its entries are \['poses'\]"),
        (lambda h: (h.path / "data_3d_h36m.npz").write_bytes(b"PK\x03\x04 and no more"), "data_3d_h36m.npz is damaged"),
    ],
)
def test_files_of_another_layout(h36m, change, message):
    change(h36m)
    with pytest.raises(ValueError, match=message) as caught:
        read_human36m(h36m.path, "gt")
    assert re.search(r"data_[23]d_h36m|h36m gt", str(caught.value))


def test_a_subject_without_cameras(h36m):
    np.savez(h36m.path / "data_3d_h36m.npz", positions_3d={"S2": h36m.positions["S1"]})
    with pytest.raises(ValueError, match="extrinsics are published for"):
        read_human36m(h36m.path, "gt", subjects=["S2"])


def test_metadata_without_a_layout_name(h36m):
    h36m.save("bare", h36m.views, metadata=metadata("h36m_17", layout=False))
    assert read_human36m(h36m.path, "bare")[0].skeleton == "h36m_17"


def test_the_projection_here_distorts():
    """The comparison above would be worth little if the lens did nothing."""
    lens = RECORD["intrinsics"][0]
    point = np.array([[0.5, 0.5, 1.0]])
    plain = {key: lens[key] for key in ("focal_length", "center")}
    assert np.abs(project(point, lens) - project(point, plain)).max() > 5
