"""Motions before virtual cameras: the person is in the image, the keypoints are projections, places depend on names only."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from probpose.data.datasets.motions import read_motions
from probpose.geometry import Camera, h36m_camera

LENGTHS = {"a/walk/one": 40, "a/run/two": 12, "b/walk": 300}


def in_view(clip):
    size = torch.tensor(clip.camera.image_size)
    return ((clip.keypoints_2d >= 0) & (clip.keypoints_2d <= size)).all() and (clip.positions_camera[..., 2] > 0.5).all()


def test_an_archive(make_archive, walk):
    data = read_motions(make_archive(LENGTHS, split="test"))
    assert data.name == "motions mocap" and data.protocol == "clips" and data.notes == ()
    assert [clip.name for clip in data] == list(LENGTHS) and [len(clip) for clip in data] == list(LENGTHS.values())
    assert data[0].tags == {"dataset": "motions", "source": "a", "family": "a/walk"}
    for seed, clip in enumerate(data):
        world = walk(len(clip), seed=seed)
        np.testing.assert_allclose(clip.camera.to_world(clip.positions_camera), world, atol=2e-3)  # joints are kept in float16
        torch.testing.assert_close(clip.keypoints_2d, clip.camera.project(clip.positions_camera))
        torch.testing.assert_close(clip.camera.focal, h36m_camera(0).focal)
        torch.testing.assert_close(clip.camera.rotation @ clip.camera.rotation.mT, torch.eye(3), atol=1e-5, rtol=0)
        assert clip.camera.rotation.det() > 0 and in_view(clip) and (clip.confidence == 1).all() and clip.fps == 30
        assert (clip.positions_camera[:, 3, 1] > clip.positions_camera[:, 10, 1]).all()  # y down: feet below the head


def test_places_depend_on_the_name_and_the_seed_only(make_archive):
    archive = make_archive(LENGTHS, split="test")
    one = read_motions(archive)
    alone = read_motions(make_archive({"a/walk/one": 40}, split="test", file="other.npz"))
    torch.testing.assert_close(alone[0].keypoints_2d, one[0].keypoints_2d)
    angles = [math.atan2(*clip.camera.rotation[2, :2].tolist()) for clip in one]
    assert len({round(angle, 3) for angle in angles}) == 3
    other = read_motions(archive, seed=1)
    assert not torch.allclose(other[0].camera.rotation, one[0].camera.rotation)


def test_a_lens_of_ones_own(make_archive):
    phone = Camera.from_image_size(1920, 1080)
    for clip in read_motions(make_archive(LENGTHS, split="test"), camera=phone):
        assert clip.camera.image_size == (1920, 1080) and in_view(clip)
        torch.testing.assert_close(clip.camera.focal, phone.focal)


def test_a_camera_with_a_place_stays_there(make_archive, walk):
    camera = h36m_camera(1, "S9")
    archive = make_archive({"a/walk": 10}, split="test")
    clip = read_motions(archive, camera=camera)[0]
    torch.testing.assert_close(clip.camera.translation, camera.translation)
    with pytest.raises(ValueError, match=r"mocap.npz: the motion 'a/walk' runs behind the camera"):
        read_motions(archive, camera=replace(camera, translation=torch.tensor([0.0, 0.0, -3.0])))


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (Camera((500.0, 500.0), (320.0, 240.0)), "image_size"),
        (Camera(torch.ones(2, 2), torch.ones(2, 2), image_size=(640, 480)), "single camera"),
        (Camera((500.0, 500.0), (0.0, 240.0), image_size=(640, 480)), "look into its image"),
    ],
)
def test_cameras_that_cannot_be_used(make_archive, camera, message):
    with pytest.raises(ValueError, match=message):
        read_motions(make_archive(LENGTHS, split="test"), camera=camera)


def test_splits(make_archive):
    path = make_archive(LENGTHS, split={"a/walk/one": "train", "a/run/two": "test", "b/walk": "train"})
    assert [clip.name for clip in read_motions(path)] == ["a/run/two"]
    assert len(read_motions(path, split="train")) == 2 and len(read_motions(path, split=None)) == 3
    with pytest.raises(ValueError, match="no clips left"):
        read_motions(make_archive(LENGTHS, file="other.npz"))


FIGURE = {  # joint: (parent, offset in centimetres), y up, facing +z
    "Hips": (None, (0, 0, 0)),
    "Spine": ("Hips", (0, 25, 0)),
    "Neck": ("Spine", (0, 27, 0)),
    "Head": ("Neck", (0, 8, 6)),
    "LeftArm": ("Spine", (17, 25, 0)),
    "LeftForeArm": ("LeftArm", (28, 0, 0)),
    "LeftHand": ("LeftForeArm", (25, 0, 0)),
    "RightArm": ("Spine", (-17, 25, 0)),
    "RightForeArm": ("RightArm", (-28, 0, 0)),
    "RightHand": ("RightForeArm", (-25, 0, 0)),
    "LeftUpLeg": ("Hips", (10, -5, 0)),
    "LeftLeg": ("LeftUpLeg", (0, -40, 0)),
    "LeftFoot": ("LeftLeg", (0, -42, 0)),
    "RightUpLeg": ("Hips", (-10, -5, 0)),
    "RightLeg": ("RightUpLeg", (0, -40, 0)),
    "RightFoot": ("RightLeg", (0, -42, 0)),
}


def write_bvh(path, frames=9):
    """The figure gliding along +z by a centimetre per frame at 120 frames per second."""

    def joint(name):
        offset = " ".join(map(str, FIGURE[name][1]))
        children = [child for child, (parent, _) in FIGURE.items() if parent == name]
        channels = "6 Xposition Yposition Zposition Zrotation Xrotation Yrotation" if name == "Hips" else "3 Zrotation Xrotation Yrotation"
        lines = [f"{'ROOT' if name == 'Hips' else 'JOINT'} {name}", "{", f"OFFSET {offset}", f"CHANNELS {channels}"]
        lines += [line for child in children for line in joint(child)]
        return [*lines, *([] if children else ["End Site", "{", "OFFSET 0 5 0", "}"]), "}"]

    path.parent.mkdir(parents=True, exist_ok=True)
    motion = [f"0 95 {frame} " + " ".join(["0"] * (3 * len(FIGURE))) for frame in range(frames)]
    path.write_text("\n".join(["HIERARCHY", *joint("Hips"), "MOTION", f"Frames: {frames}", "Frame Time: 0.00833333", *motion]))


def test_files(tmp_path):
    folder = tmp_path / "walks"
    write_bvh(folder / "01.bvh")
    write_bvh(folder / "slow" / "02.BVH")
    (folder / "notes.txt").write_text("not a motion")
    data = read_motions(folder)
    assert [clip.name for clip in data] == ["walks/01", "walks/slow/02"]
    assert [clip.tags["family"] for clip in data] == ["walks/01", "walks/slow"] and {clip.tags["source"] for clip in data} == {"walks"}
    clip = data[0]
    assert clip.fps == pytest.approx(120, rel=1e-4) and len(clip) == 9 and in_view(clip)
    world = clip.camera.to_world(clip.positions_camera)
    torch.testing.assert_close(world[:, 0], torch.tensor([[0.0, -0.01 * i, 0.95] for i in range(9)]), atol=1e-5, rtol=0)
    torch.testing.assert_close(world[0, 3], torch.tensor([-0.1, 0.0, 0.08]), atol=1e-5, rtol=0)  # right ankle

    alone = read_motions(folder / "01.bvh")
    assert alone[0].name == "walks/01"
    torch.testing.assert_close(alone[0].keypoints_2d, clip.keypoints_2d)
    resampled = read_motions(folder, fps=30)[0]
    assert resampled.fps == 30 and len(resampled) == 3


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match=r"holds no motions; looked for files ending in .bvh or .amc"):
        read_motions(tmp_path)
    for name in ("absent", "absent.npz", "absent.bvh"):
        with pytest.raises(FileNotFoundError):
            read_motions(tmp_path / name)
