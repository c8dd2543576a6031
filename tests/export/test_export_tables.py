"""npz, csv, trc and json: what comes out is what went in."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi

from probpose.data import read_keypoints
from probpose.export import export
from probpose.export.coco import within
from probpose.geometry import Camera


def test_npz_holds_everything(filmed, tmp_path):
    motion = filmed(num_hypotheses=3, first_frame=5)
    with np.load(export(motion, tmp_path / "walk.npz"), allow_pickle=False) as archive:
        data = dict(archive)
    for key in ("pose", "root", "hypotheses", "uncertainty"):
        np.testing.assert_allclose(data[key], getattr(motion, key), atol=1e-6)
    assert data["frame"].tolist() == list(range(5, 5 + motion.num_frames)) and data["fps"] == motion.fps and data["name"] == "filmed"
    assert data["joint_names"].tolist() == list(motion.skeleton.joint_names) and data["skeleton"] == "h36m_17"
    assert data["parents"].tolist() == list(motion.skeleton.parents)
    camera = Camera(**{
        key.removeprefix("camera_"): value.item() if value.ndim == 0 else tuple(value.tolist()) if key == "camera_image_size" else value
        for key, value in data.items() if key.startswith("camera_")
    })  # fmt: skip
    points = torch.from_numpy(motion.in_camera(motion.pose))
    torch.testing.assert_close(camera.to(torch.float64).project(points), motion.camera.to(torch.float64).project(points))
    torch.testing.assert_close(camera.rotation, motion.camera.rotation)


def test_csv_is_a_long_table(filmed, tmp_path):
    motion = filmed(num_hypotheses=2, first_frame=3)
    with export(motion, tmp_path / "walk.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frames, joints = motion.num_frames, 17
    assert len(rows) == 3 * frames * joints
    assert list(rows[0]) == ["frame", "time", "joint", "x", "y", "z", "uncertainty", "hypothesis"]
    places = np.array([[float(row[axis]) for axis in "xyz"] for row in rows]).reshape(3, frames, joints, 3)
    relative = places - places[:, :, :1]
    np.testing.assert_allclose(relative, np.stack([motion.pose, *motion.hypotheses]), atol=2e-6)
    np.testing.assert_allclose(places[:, :, 0], np.broadcast_to(motion.root, (3, frames, 3)), atol=1e-6)
    assert [row["hypothesis"] for row in rows[:: frames * joints]] == ["", "0", "1"]
    assert {row["uncertainty"] for row in rows[: frames * joints]} == {"0.030000"} and rows[-1]["uncertainty"] == ""
    assert (rows[0]["frame"], rows[0]["joint"], rows[joints]["frame"], rows[joints - 1]["joint"]) == ("3", "pelvis", "4", "right_wrist")
    assert float(rows[-1]["time"]) == pytest.approx(int(rows[-1]["frame"]) / motion.fps, abs=1e-6)

    plain = export(replace(motion, hypotheses=None, uncertainty=None), tmp_path / "plain.csv").read_text().splitlines()
    assert plain[0] == "frame,time,joint,x,y,z,uncertainty" and plain[1].endswith(",") and len(plain) == 1 + frames * joints


def test_trc_is_what_opensim_reads(filmed, tmp_path):
    motion = filmed()
    lines = export(motion, tmp_path / "walk.trc").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    assert cells[0] == ["PathFileType", "4", "(X/Y/Z)", "filmed.trc"]
    header = dict(zip(cells[1], cells[2]))
    assert (
        header["Units"] == "mm"
        and header["NumMarkers"] == "17"
        and header["NumFrames"] == header["OrigNumFrames"] == str(motion.num_frames)
    )
    assert float(header["DataRate"]) == float(header["CameraRate"]) == motion.fps
    assert cells[3][:2] == ["Frame#", "Time"] and cells[3][2::3] == list(motion.skeleton.joint_names)
    assert cells[4][:5] == ["", "", "X1", "Y1", "Z1"] and cells[4][-1] == "Z17" and lines[5] == ""
    table = np.array(cells[6:], dtype=float)
    assert table.shape == (motion.num_frames, 2 + 3 * 17) and table[:, 0].tolist() == list(range(1, motion.num_frames + 1))
    np.testing.assert_allclose(table[:, 1], np.arange(motion.num_frames) / motion.fps, atol=1e-6)
    np.testing.assert_allclose(table[:, 2:].reshape(-1, 17, 3) / 1000, motion.in_world(motion.pose), atol=1e-6)


def test_json_is_read_as_coco(filmed, tmp_path):
    motion = filmed(num_hypotheses=2, first_frame=12)
    path = export(motion, tmp_path / "walk.json")
    places = motion.in_camera(motion.pose)
    pixels = motion.camera.project(torch.from_numpy(places)).numpy()
    (track,) = read_keypoints(path)
    assert track.skeleton == "h36m_17" and track.image_size == (1000, 1002) and track.frame.tolist() == motion.frames.tolist()
    np.testing.assert_allclose(track.keypoints_2d, pixels, atol=1e-3)

    content = json.loads(path.read_text())
    assert content["info"]["fps"] == motion.fps
    (category,), annotations = content["categories"], content["annotations"]
    assert len(annotations) == motion.num_frames and [1, 2] in category["skeleton"] and len(category["skeleton"]) == 16
    np.testing.assert_allclose([a["keypoints_3d"] for a in annotations], places, atol=1e-6)
    hypotheses = np.array([a["hypotheses_3d"] for a in annotations]).swapaxes(0, 1)
    np.testing.assert_allclose(hypotheses - places[:, :1], motion.hypotheses, atol=2e-6)
    x, y, width, height = annotations[4]["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], [*pixels[4].min(0), *pixels[4].max(0)], atol=2e-3)
    assert annotations[4]["area"] == pytest.approx(width * height, rel=1e-4) and annotations[4]["num_keypoints"] == 17
    assert annotations[0]["score"] == pytest.approx(chi(3).cdf(0.15 / (0.03 / np.sqrt(3))), abs=1e-4)


def test_json_without_camera_or_uncertainty(filmed, tmp_path):
    motion = filmed()
    for bare in (replace(motion, camera=None, uncertainty=None), replace(motion, root=None, uncertainty=None)):
        content = json.loads(export(bare, tmp_path / "bare.json", overwrite=True).read_text())
        extra = set(content["annotations"][0]) - {"id", "image_id", "category_id", "track_id", "iscrowd"}
        assert extra == {"keypoints_3d"}
    assert content["info"]["axes"].endswith("relative to the root joint")
    np.testing.assert_allclose(content["annotations"][3]["keypoints_3d"], motion.pose[3], atol=1e-6)


def test_json_of_a_body_behind_the_camera(filmed, tmp_path):
    motion = filmed()
    root = motion.root.copy()
    root[2, 2] = -3
    root[3, 2] = motion.pose[3, :, 2].mean()  # half in front
    first, *_ = annotations = json.loads(export(replace(motion, root=root), tmp_path / "x.json").read_text())["annotations"]
    assert first["num_keypoints"] == 17 and annotations[2]["num_keypoints"] == 0
    assert annotations[2]["bbox"] == [0, 0, 0, 0] and annotations[2]["keypoints"] == [0] * 51
    seen = np.array(annotations[3]["keypoints"]).reshape(17, 3)
    assert (seen[:, 2] == 2 * (np.array(annotations[3]["keypoints_3d"])[:, 2] > 0)).all() and not seen[seen[:, 2] == 0].any()


def test_scores_are_the_share_of_close_joints():
    errors = np.random.default_rng(0).normal(0, 0.1, (200_000, 3))
    share = (np.linalg.norm(errors, axis=-1) < 0.15).mean()
    assert within(np.array(0.1 * np.sqrt(3))) == pytest.approx(share, abs=0.005)
    assert within(np.array([0.0, 0.03, 0.1, 10.0])) == pytest.approx([1, 1, 0.9194, 0], abs=0.01)
