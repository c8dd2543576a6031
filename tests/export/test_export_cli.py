"""`probpose sample --export`."""

import json

import numpy as np
import pytest

from probpose.data import KeypointTrack, write_keypoints
from probpose.data.bvh import read_bvh
from probpose.export import Motion, project_bone_lengths


@pytest.fixture
def recording(tmp_path):
    rng = np.random.default_rng(0)
    points = (rng.normal([320, 240], 40, (1, 17, 2)) + rng.normal(0, 1, (20, 17, 2))).astype(np.float32)
    track = KeypointTrack(points, np.ones((20, 17), np.float32), np.arange(5, 25), 0, "h36m_17", (640, 480), 25.0)
    write_keypoints(tmp_path / "walk.npz", [track])
    return tmp_path / "walk.npz"


def test_formats_beside_the_result(run_command, tiny_model, recording, tmp_path):
    formats = ["bvh", "trc", "csv", "json", "glb", "npz", "bvh"]
    words = ["sample", recording, "--model", tiny_model, "--out", tmp_path / "out", "--no-picture", "--no-page"]
    code, out, err = run_command(*words, *(word for name in formats for word in ("--export", name)))
    assert code == 0, err
    written = [f"walk.{name}" for name in ("bvh", "csv", "glb", "json", "npz", "trc")]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == written
    assert all(str(tmp_path / "out" / name) in out for name in written)
    with np.load(tmp_path / "out" / "walk.npz", allow_pickle=False) as result:
        motion = Motion(result["pose"], float(result["fps"]), str(result["skeleton"]), result["root"])
        hypotheses = result["hypotheses"]
    recording = read_bvh(tmp_path / "out" / "walk.bvh")
    joints = recording.joint_positions()[:, [recording.names.index(name) for name in motion.skeleton.joint_names]] / 100
    np.testing.assert_allclose(joints, project_bone_lengths(motion.in_world(motion.pose), motion.skeleton), atol=1e-5)
    assert recording.fps == 25
    annotations = json.loads((tmp_path / "out" / "walk.json").read_text())["annotations"]
    assert [a["image_id"] for a in annotations] == list(range(5, 25))
    np.testing.assert_allclose(np.array(annotations[3]["hypotheses_3d"]) - motion.root[3], hypotheses[:, 3], atol=1e-5)


def test_refusals_come_before_any_work(run_command, tiny_model, recording, tmp_path):
    words = ["sample", recording, "--model", tiny_model, "--out", tmp_path / "out"]
    code, _, err = run_command(*words, "--export", "fbx")
    assert code == 2 and "unknown export format 'fbx'; known are bvh, glb, npz, csv, trc, json" in err
    code, _, err = run_command("sample", tmp_path, "--batch", "--export", "bvh", "--model", tiny_model, "--out", tmp_path / "out")
    assert code == 2 and "--export: for one recording, not for a --batch" in err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "walk.bvh").write_text("mine")
    code, _, err = run_command(*words, "--export", "bvh")
    assert code == 2 and "walk.bvh exists" in err and "--overwrite" in err
    assert (tmp_path / "out" / "walk.bvh").read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1
