"""Small data sets in the layouts as published, made of walks and of cameras computed here in plain NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy_cameras import RECORD, metadata, project, world_to_camera
from scipy.spatial.transform import Rotation

from probpose.skeletons import convert

H36M_JOINTS = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]  # of 32


@pytest.fixture
def h36m(tmp_path, walk):
    """Files of Human3.6M: S9 and S11 with three takes and S1 with one; `gt` and CPN-like keypoints, which run on a little longer."""
    lengths = {"S1": {"Walking": 12}, "S9": {"Directions 1": 20, "Directions": 15, "WalkDog 1": 10}, "S11": {"Directions 1": 8}}
    world, positions, views = {}, {}, {}
    for i, (subject, takes) in enumerate(lengths.items()):
        world[subject] = {take: walk(frames, seed=10 * i + j).astype(np.float64) for j, (take, frames) in enumerate(takes.items())}
        positions[subject], views[subject] = {}, {}
        for take, joints in world[subject].items():
            full = np.random.default_rng(0).normal(size=(len(joints), 32, 3))
            full[:, H36M_JOINTS] = joints
            positions[subject][take] = full.astype(np.float32)
            camera_points = [world_to_camera(joints, place) for place in RECORD["extrinsics"][subject]]
            views[subject][take] = [project(p, lens).astype(np.float32) for p, lens in zip(camera_points, RECORD["intrinsics"])]
    longer = {s: {t: [np.concatenate([v, v[-1:], v[-1:]]) for v in views[s][t]] for t in views[s]} for s in views}

    def save(kind, data, skeleton="h36m_17", **others):
        np.savez_compressed(tmp_path / f"data_2d_h36m_{kind}.npz", positions_2d=data, metadata=others.get("metadata", metadata(skeleton)))

    np.savez_compressed(tmp_path / "data_3d_h36m.npz", positions_3d=positions)
    np.savez_compressed(tmp_path / "data_2d_h36m_gt.npz", positions_2d=longer, metadata=metadata("h36m_17", layout=False))
    save("cpn_ft_h36m_dbb", longer)
    return SimpleNamespace(path=tmp_path, world=world, positions=positions, views=views, save=save)


HUMANEVA_LENS = {"res_w": 640, "res_h": 480, "focal_length": [745.0, 746.5], "center": [321.0, 238.5]}


@pytest.fixture
def humaneva_cameras():
    """A record of three pinholes around the floor for S1 and S2, in the form of `h36m_cameras.json`."""
    extrinsics = {}
    for i, subject in enumerate(("S1", "S2")):
        extrinsics[subject] = []
        for angle in (0.3 + i, 2.1 + i, 4.4 + i):
            place = np.array([4.5 * np.cos(angle), 4.5 * np.sin(angle), 1.6])
            forward = (np.array([0, 0, 1.0]) - place) / np.linalg.norm(np.array([0, 0, 1.0]) - place)
            right = np.cross(forward, [0, 0, 1.0])
            right /= np.linalg.norm(right)
            x, y, z, w = Rotation.from_matrix(np.stack([right, np.cross(forward, right), forward], 1)).as_quat()
            extrinsics[subject].append({"orientation": [w, x, y, z], "translation": (1000 * place).tolist()})
    return {"intrinsics": [{"id": f"C{i}", **HUMANEVA_LENS} for i in (1, 2, 3)], "extrinsics": extrinsics}


@pytest.fixture
def humaneva(tmp_path, walk, humaneva_cameras):
    """Files of HumanEva-I: two subjects of Train and Validate, and the cameras that saw them."""
    lengths = {
        "Train/S1": {"Walking 1 chunk0": 20, "Jog 1": 15},
        "Validate/S1": {"Walking 1 chunk0": 18, "Box 1 chunk2": 12},
        "Validate/S2": {"Jog 1": 30},
    }
    positions, views = {}, {}
    for i, (subject, takes) in enumerate(lengths.items()):
        positions[subject], views[subject] = {}, {}
        for j, (take, frames) in enumerate(takes.items()):
            joints = convert(walk(frames, seed=10 * i + j), "h36m_17", "humaneva_15")
            positions[subject][take] = joints.astype(np.float32)
            places = humaneva_cameras["extrinsics"][subject.split("/")[1]]
            views[subject][take] = [project(world_to_camera(joints.astype(np.float64), place), HUMANEVA_LENS) for place in places]

    def save_2d(kind="gt", data=views, skeleton="humaneva_15"):
        np.savez_compressed(tmp_path / f"data_2d_humaneva15_{kind}.npz", positions_2d=data, metadata=metadata(skeleton))

    def save_3d():
        np.savez_compressed(tmp_path / "data_3d_humaneva15.npz", positions_3d=positions)

    save_2d()
    save_3d()
    return SimpleNamespace(path=tmp_path, positions=positions, views=views, cameras=humaneva_cameras, save_2d=save_2d, save_3d=save_3d)


@pytest.fixture
def mocap17(tmp_path, walk):
    """The arrays of a benchmark of three clips, and a function that saves them."""
    names, lengths = ["cmu/walking/walking_1", "bandai/dataset-2_run_elderly_002", "cmu/jumping/jump_3"], [12, 7, 20]
    lens, place = RECORD["intrinsics"][0], RECORD["extrinsics"]["S1"]
    world = [walk(frames, seed=i).astype(np.float64) for i, frames in enumerate(lengths)]
    points = np.concatenate([world_to_camera(joints, place[i]) for i, joints in enumerate(world)])
    true = project(points, lens)
    random = np.random.default_rng(0)
    rotations = [Rotation.from_quat(np.roll(p["orientation"], -1)).inv().as_matrix() for p in place[:3]]
    arrays = {
        "keypoints_true": true,
        "keypoints_detected": true + random.normal(size=true.shape),
        "confidence": random.uniform(0.5, 1, true.shape[:2]),
        "positions_camera": points,
        "rotation": np.stack(rotations),
        "translation": np.stack([-r @ np.array(p["translation"]) / 1000 for r, p in zip(rotations, place)]),
        "focal": np.array(lens["focal_length"]),
        "centre": np.array(lens["center"]),
        "radial": np.array(lens["radial_distortion"]),
        "tangential": np.array(lens["tangential_distortion"]),
        "image_size": np.array([1000, 1002]),
        "starts": np.cumsum([0, *lengths]),
        "names": np.array(names),
        "fps": np.array(30),
    }

    def save():
        np.savez(tmp_path / "mocap17_test.npz", **arrays)
        return tmp_path / "mocap17_test.npz"

    return SimpleNamespace(arrays=arrays, save=save, world=world)
