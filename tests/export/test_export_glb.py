"""GLB: the container byte by byte, the motion by forward kinematics on its JSON, and a library's reading of it."""

import json
import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from probpose.export import export, project_bone_lengths

WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def parse(path):
    """The JSON and every accessor's values."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and json_length % 4 == 0
    content = json.loads(data[20 : 20 + json_length])
    blob_length, kind = struct.unpack_from("<I4s", data, 20 + json_length)
    blob = data[28 + json_length :]
    assert kind == b"BIN\0" and blob_length == len(blob) == content["buffers"][0]["byteLength"]
    values = []
    for accessor in content["accessors"]:
        view, width = content["bufferViews"][accessor["bufferView"]], WIDTHS[accessor["type"]]
        assert accessor["componentType"] == 5126 and view["byteLength"] == 4 * width * accessor["count"]
        values.append(np.frombuffer(blob, "<f4", width * accessor["count"], view["byteOffset"]).reshape(-1, width))
        if "min" in accessor:
            np.testing.assert_array_equal(values[-1].min(0), np.float32(accessor["min"]))
            np.testing.assert_array_equal(values[-1].max(0), np.float32(accessor["max"]))
    return content, values


def tracks(content, values):
    """Values of every animated property, by node and property."""
    (animation,) = content["animations"]
    return {
        (channel["target"]["node"], channel["target"]["path"]): values[animation["samplers"][channel["sampler"]]["output"]]
        for channel in animation["channels"]
    }


def places_of_nodes(content, animated, frames):
    """World position of every node by name, as a viewer computes it."""
    places = {}

    def visit(node, axes, place):
        entry = content["nodes"][node]
        shift = animated.get((node, "translation"), np.tile(entry.get("translation", [0, 0, 0]), (frames, 1)))
        turn = animated.get((node, "rotation"), np.tile(entry.get("rotation", [0, 0, 0, 1]), (frames, 1)))
        place = place + axes.apply(shift)
        assert entry["name"] not in places
        places[entry["name"]] = place
        for child in entry.get("children", []):
            visit(child, axes * Rotation.from_quat(turn), place)

    for node in content["scenes"][0]["nodes"]:
        visit(node, Rotation.identity(frames), np.zeros((frames, 3)))
    assert len(places) == len(content["nodes"])  # every node hangs somewhere, and only once
    return places


def test_the_figures_move_as_sampled(filmed, tmp_path):
    motion = filmed(num_hypotheses=2)
    content, values = parse(export(motion, tmp_path / "walk.glb"))
    places = places_of_nodes(content, tracks(content, values), motion.num_frames)
    for prefix, pose in (("", motion.pose), ("hypothesis_0_", motion.hypotheses[0]), ("hypothesis_1_", motion.hypotheses[1])):
        joints = np.stack([places[prefix + name] for name in motion.skeleton.joint_names], axis=1)
        np.testing.assert_allclose(joints, project_bone_lengths(motion.in_world(pose), motion.skeleton), atol=2e-5)
    figures = [content["nodes"][node]["name"] for node in content["scenes"][0]["nodes"]]
    assert figures == ["filmed", "hypothesis_0", "hypothesis_1"]


def test_times_rotations_and_spheres(filmed, tmp_path):
    radius = np.linspace(0, 0.2, 99)[:, None].repeat(17, 1)
    motion = filmed(uncertainty=radius)
    content, values = parse(export(motion, tmp_path / "walk.glb"))
    (animation,) = content["animations"]
    (times,) = {sampler["input"] for sampler in animation["samplers"]}
    np.testing.assert_allclose(values[times][:, 0], np.arange(99) / motion.fps, rtol=1e-6)
    names = [node["name"] for node in content["nodes"]]
    animated = tracks(content, values)
    for (node, path), track in animated.items():
        assert len(track) == 99
        np.testing.assert_allclose(content["nodes"][node][path], track[0], atol=1e-6)
        if path == "rotation":
            np.testing.assert_allclose(np.linalg.norm(track, axis=-1), 1, atol=1e-6)
            assert ((track[1:] * track[:-1]).sum(-1) > 0).all()
    sphere = animated[names.index("left_wrist_uncertainty"), "scale"]
    np.testing.assert_allclose(sphere[1:], radius[1:, :3], atol=1e-6)
    assert (sphere > 0).all()
    holder = content["nodes"][names.index("left_wrist")]
    assert names.index("left_wrist_uncertainty") in holder["children"]


def test_meshes_are_closed_and_look_outwards(filmed, tmp_path):
    content, values = parse(export(filmed(), tmp_path / "walk.glb"))
    for mesh in content["meshes"]:
        (primitive,) = mesh["primitives"]
        corners, normals = (values[primitive["attributes"][key]].astype(float) for key in ("POSITION", "NORMAL"))
        a, b, c = corners.reshape(-1, 3, 3).swapaxes(0, 1)
        across = np.cross(b - a, c - a)
        middle = corners.mean(0)
        assert ((across * ((a + b + c) / 3 - middle)).sum(-1) > 0).all()  # counter-clockwise from outside
        assert ((across * normals[::3]).sum(-1) > 0).all()
        np.testing.assert_allclose(across.sum(0), 0, atol=1e-6)  # no holes
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-6)


def test_bones_reach_from_joint_to_joint(filmed, tmp_path):
    motion = filmed()
    content, _ = parse(export(motion, tmp_path / "walk.glb"))
    nodes = {node["name"]: node for node in content["nodes"]}
    bone, knee = nodes["left_knee_bone"], nodes["left_knee"]
    tip = Rotation.from_quat(bone["rotation"]).apply(np.array([0, 1, 0]) * bone["scale"])
    np.testing.assert_allclose(tip, knee["translation"], atol=1e-6)
    assert content["meshes"][bone["mesh"]]["name"] == "bone_left"
    assert content["meshes"][nodes["spine_bone"]["mesh"]]["name"] == "bone_centre"


def test_a_library_reads_it(filmed, tmp_path):
    pygltflib = pytest.importorskip("pygltflib", reason="needs pygltflib")
    motion = filmed(num_hypotheses=1)
    path = export(motion, tmp_path / "walk.glb")
    read, (content, _) = pygltflib.GLTF2().load(str(path)), parse(path)
    assert [node.name for node in read.nodes] == [node["name"] for node in content["nodes"]]
    assert len(read.animations[0].channels) == len(content["animations"][0]["channels"])
    assert read.scenes[0].extras["fps"] == motion.fps and len(read.binary_blob()) == content["buffers"][0]["byteLength"]
