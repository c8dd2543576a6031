"""What a motion checks, where it stands in the world, and what `export` refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probpose.export import FORMATS, Motion, export
from probpose.geometry import Camera, h36m_camera
from probpose.pipelines.pipeline_output import ProbPosePipelineOutput


def test_world_axes_with_and_without_a_rotation(filmed):
    motion = filmed(noise=0)
    world = motion.in_world(motion.pose)
    place = motion.camera.to_world(torch.from_numpy(motion.in_camera(motion.pose))).numpy()  # z up
    np.testing.assert_allclose(world, np.stack([place[..., 0], place[..., 2], -place[..., 1]], axis=-1), atol=1e-6)
    assert np.abs(world[:, [3, 6], 1].min()) < 0.15  # the ankles are by the floor

    upright = replace(motion, camera=Camera.from_image_size(640, 480))
    seen = upright.in_camera(motion.pose)
    np.testing.assert_allclose(upright.in_world(motion.pose), np.stack([seen[..., 0], -seen[..., 1], -seen[..., 2]], axis=-1))
    for turned in (world, upright.in_world(motion.pose)):  # rotated, never mirrored
        axes = turned[0, [1, 7, 8]] - turned[0, 0], motion.pose[0, [1, 7, 8]] - motion.pose[0, 0]
        assert np.linalg.det(axes[0]) == pytest.approx(np.linalg.det(axes[1]), rel=1e-5)


def test_from_the_output_of_a_pipeline():
    rng = np.random.default_rng(0)
    hypotheses, root = torch.from_numpy(rng.normal(size=(2, 3, 5, 17, 3))), torch.from_numpy(rng.normal(size=(2, 5, 3)))
    cameras = Camera(torch.tensor([[500.0, 500.0], [600.0, 600.0]]), torch.zeros(2, 2), image_size=(640, 480))
    output = ProbPosePipelineOutput(hypotheses, hypotheses.mean(1), torch.ones(2, 5, 17), root, cameras)
    motion = Motion.from_output(output, fps=25, name="second", first_frame=7, index=1)
    np.testing.assert_array_equal(motion.hypotheses, hypotheses[1])
    np.testing.assert_array_equal(motion.root, root[1])
    assert motion.camera.focal.tolist() == [600, 600] and motion.camera.image_size == (640, 480)
    assert motion.frames.tolist() == [7, 8, 9, 10, 11] and motion.skeleton.name == "h36m_17"

    with pytest.raises(ValueError, match="a batch of 2: give the index"):
        Motion.from_output(output, fps=25)
    with pytest.raises(ValueError, match=r"index must be in 0\.\.1, got 2"):
        Motion.from_output(output, fps=25, index=2)
    with pytest.raises(ValueError, match="no pose"):
        Motion.from_output(ProbPosePipelineOutput(hypotheses[0]), fps=25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": np.full((4, 17, 3), np.nan)}, r"pose of motion 'motion' must be finite, but is nan at \(0, 0, 0\)"),
        ({"pose": np.zeros((4, 16, 3))}, r"must have shape \(4, 17, 3\) for the 17 joints of 'h36m_17', got \(4, 16, 3\)"),
        ({"pose": np.zeros((0, 17, 3))}, "must have shape"),
        ({"root": np.zeros((3, 3))}, r"root of motion 'motion' must have shape \(4, 3\)"),
        ({"root": np.full((4, 3), np.inf)}, "root of motion 'motion' must be finite"),
        ({"hypotheses": np.zeros((2, 5, 17, 3))}, r"hypotheses of motion 'motion' must have shape \(2, 4, 17, 3\)"),
        ({"uncertainty": np.full((4, 17), -0.1)}, "cannot be -0.1"),
        ({"fps": 0}, "fps of motion 'motion' must be a positive number, got 0"),
        ({"skeleton": "h36m"}, "unknown skeleton 'h36m'"),
    ],
)
def test_bad_motions(change, message):
    with pytest.raises(ValueError, match=message):
        Motion(**{"pose": np.zeros((4, 17, 3)), "fps": 30.0} | change)


def test_bad_exports(filmed, tmp_path):
    motion = filmed()
    with pytest.raises(ValueError, match=r"unknown export format '\.fbx'; known are bvh, glb, npz, csv, trc, json"):
        export(motion, tmp_path / "walk.fbx")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export(motion, tmp_path / "nowhere" / "walk.bvh")
    (tmp_path / "walk.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"walk\.csv exists"):
        export(motion, tmp_path / "walk.csv")
    assert (tmp_path / "walk.csv").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    assert export(motion, tmp_path / "walk.csv", overwrite=True).read_text().startswith("frame,")
    assert export(motion, tmp_path / "walk.txt", format="CSV").read_text() == (tmp_path / "walk.csv").read_text()
    faces = Motion(np.zeros((2, 133, 3)), 30, "wholebody_133", root=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="BVH holds one tree of joints, but skeleton 'wholebody_133' has 69"):
        export(faces, tmp_path / "faces.bvh")


@pytest.mark.parametrize("format", FORMATS)
def test_one_frame_and_nothing_but_a_pose(filmed, tmp_path, recwarn, format):
    pose = filmed().pose[:1]
    export(Motion(pose, 30), tmp_path / f"still.{format}")
    told = [str(w.message) for w in recwarn if "no root trajectory" in str(w.message)]
    assert len(told) == (format in ("bvh", "glb", "trc"))
    assert (tmp_path / f"still.{format}").stat().st_size > 500


def test_a_camera_with_a_rotation_but_no_root():
    camera, pose = h36m_camera(0, "S1"), np.random.default_rng(0).normal(size=(2, 17, 3))
    pose[:, 0] = 0
    with pytest.warns(UserWarning, match="its root joint stays at the origin"):
        world = Motion(pose, 30, camera=camera).in_world(pose)
    assert not world[:, 0].any()
