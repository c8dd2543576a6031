"""Binary glTF 2.0 (`.glb`): animated figures for Blender, game engines and web viewers.

World axes with y up, metres, as glTF demands. The pose is a tree of nodes as in :mod:`probpose.export.rig`, named after the joints, with
rotations (and the root's translation) animated at the motion's frame rate; the bones are there to be looked at, the person's left blue,
the right orange, the middle grey. Where the uncertainty is known, every joint has a glassy sphere whose radius it is, in a node
`"left_wrist_uncertainty"`. Hypotheses are further trees under nodes `hypothesis_0`, `hypothesis_1`, … (their nodes are called like
`"hypothesis_0_left_wrist"`), glassy and thin, each with bone lengths of its own. All is one animation, so everything plays together.

Source: Khronos Group, glTF 2.0 specification (ISO/IEC 12113:2022), chapters 3 (concepts) and 4 (the binary container).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from probpose.data.bvh import Recording
from probpose.skeletons import Skeleton

from .motion import Motion
from .rig import fit_rig

_FLOAT, _VERTICES = 5126, 34962
_WIDTH, _THIN = 0.02, 0.006  # metres, half the width of a bone
_COLOURS = {"left": (0.0, 0.17, 0.45), "right": (0.67, 0.11, 0.0), "centre": (0.05, 0.05, 0.05)}  # linear, as glTF has them
_GLASS = 0.3
_LEAST_RADIUS = 1e-4  # metres: a sphere must not vanish, its transform could not be inverted


def write_glb(motion: Motion, path: Path) -> None:
    """Write a motion and its hypotheses."""
    scene = _Scene(motion)
    poses = motion.pose[None] if motion.hypotheses is None else np.concatenate([motion.pose[None], motion.hypotheses])
    figure, *hypotheses = motion.in_world(poses)
    scene.add_figure(motion.name, figure, "", _WIDTH, motion.uncertainty)
    for k, hypothesis in enumerate(hypotheses):
        scene.add_figure(f"hypothesis_{k}", hypothesis, f"hypothesis_{k}_", _THIN, glass=True)
    path.write_bytes(scene.to_bytes())


class _Scene:
    """glTF's lists, filled bit by bit; entries refer to each other by their index."""

    def __init__(self, motion: Motion) -> None:
        self.motion = motion
        self.blob = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []
        self.nodes: list[dict[str, Any]] = []
        self.samplers: list[dict] = []
        self.channels: list[dict] = []
        self.figures: list[int] = []
        self.meshes: list[dict] = []
        self.materials: list[dict] = []
        self.mesh_of: dict[tuple, int] = {}
        self.times = self.accessor(np.arange(motion.num_frames)[:, None] / motion.fps, "SCALAR", bounds=True)
        self.shapes = {"bone": self.shape(*_octahedral_bone()), "ball": self.shape(*_ball())}

    def add_figure(
        self, name: str, positions: np.ndarray, prefix: str, width: float, uncertainty: np.ndarray | None = None, glass: bool = False
    ) -> None:  # fmt: skip
        motion = self.motion
        rig = fit_rig(positions, motion.skeleton, motion.fps)
        first = len(self.nodes)
        self.nodes.append({"name": name, "children": [first + 1 + node for node, parent in enumerate(rig.parents) if parent < 0]})
        self.figures.append(first)
        for node, joint in enumerate(rig.names):
            below = [first + 1 + child for child, parent in enumerate(rig.parents) if parent == node]
            self.nodes.append({"name": prefix + joint, **({"children": below} if below else {})})
            self.animate(first + 1 + node, "rotation", _quaternions(rig.rotations[:, node]))
            if rig.parents[node] < 0:
                self.animate(first + 1 + node, "translation", rig.translations[:, node])
            else:
                self.nodes[-1]["translation"] = rig.translations[0, node].tolist()
        for node, parent in enumerate(rig.parents):
            if parent >= 0 and rig.translations[0, node].any():
                self.add_bone(rig, first + 1 + parent, node, prefix, width, glass)
        if uncertainty is not None:
            for joint, joint_name in enumerate(motion.skeleton.joint_names):
                ball = self.add_mesh(first + 1 + rig.names.index(joint_name), f"{prefix}{joint_name}_uncertainty", "ball", "centre", True)
                self.animate(ball, "scale", np.maximum(uncertainty[:, joint, None], _LEAST_RADIUS).repeat(3, axis=1))

    def add_bone(self, rig: Recording, holder: int, node: int, prefix: str, width: float, glass: bool) -> None:
        """Something to look at between a node and its child `node`."""
        offset, joint = rig.translations[0, node], rig.names[node]
        length = np.linalg.norm(offset)
        side = _side(self.motion.skeleton, joint)
        bone = self.add_mesh(holder, f"{prefix}{joint}_bone", "bone", side, glass)
        turn, _ = Rotation.align_vectors(offset[None] / length, [[0, 1, 0]])
        self.nodes[bone] |= {"rotation": turn.as_quat().tolist(), "scale": [width, length, width]}

    def add_mesh(self, holder: int, name: str, shape: str, side: str, glass: bool) -> int:
        self.nodes.append({"name": name, "mesh": self.mesh(shape, side, glass)})
        self.nodes[holder].setdefault("children", []).append(len(self.nodes) - 1)
        return len(self.nodes) - 1

    def animate(self, node: int, what: str, values: np.ndarray) -> None:
        self.nodes[node][what] = values[0].tolist()  # the first frame, for programs that show the file at rest
        kind = "VEC4" if what == "rotation" else "VEC3"
        self.samplers.append({"input": self.times, "output": self.accessor(values, kind), "interpolation": "LINEAR"})
        self.channels.append({"sampler": len(self.samplers) - 1, "target": {"node": node, "path": what}})

    def mesh(self, shape: str, side: str, glass: bool) -> int:
        """A mesh of one shape and material, made when it is first needed."""
        if (shape, side, glass) not in self.mesh_of:
            material = {
                "name": f"{side}{'_glass' * glass}",
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*_COLOURS[side], _GLASS if glass else 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.8,
                },
                **({"alphaMode": "BLEND"} if glass else {}),
            }  # fmt: skip
            if material not in self.materials:
                self.materials.append(material)
            primitive = {"attributes": self.shapes[shape], "material": self.materials.index(material)}
            self.meshes.append({"name": f"{shape}_{material['name']}", "primitives": [primitive]})
            self.mesh_of[shape, side, glass] = len(self.meshes) - 1
        return self.mesh_of[shape, side, glass]

    def shape(self, corners: np.ndarray, normals: np.ndarray) -> dict[str, int]:
        attributes = {"POSITION": self.accessor(corners, "VEC3", bounds=True), "NORMAL": self.accessor(normals, "VEC3")}
        for view in self.views[-2:]:
            view["target"] = _VERTICES
        return attributes

    def accessor(self, values: np.ndarray, kind: str, bounds: bool = False) -> int:
        values = np.ascontiguousarray(values, dtype="<f4")
        limits = {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()} if bounds else {}
        self.views.append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": values.nbytes})
        self.blob += values.tobytes()
        self.accessors.append({"bufferView": len(self.views) - 1, "componentType": _FLOAT, "count": len(values), "type": kind, **limits})
        return len(self.accessors) - 1

    def to_bytes(self) -> bytes:
        """The container: header, JSON and binary chunk, each a multiple of four bytes."""
        motion = self.motion
        content = {
            "asset": {"version": "2.0", "generator": "probpose"},
            "scene": 0,
            "scenes": [{"name": motion.name, "nodes": self.figures, "extras": {"fps": motion.fps, "skeleton": motion.skeleton.name}}],
            "nodes": self.nodes,
            "meshes": self.meshes,
            "materials": self.materials,
            "animations": [{"name": motion.name, "samplers": self.samplers, "channels": self.channels}],
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.blob)}],
        }
        text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        chunks = b"".join(struct.pack("<I4s", len(data), kind) + data for data, kind in ((text, b"JSON"), (bytes(self.blob), b"BIN\0")))
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _side(skeleton: Skeleton, name: str) -> str:
    """The side of the joint in which a bone ends."""
    sides = {"left": skeleton.left, "right": skeleton.right}
    return next((side for side, joints in sides.items() if name in [skeleton.joint_names[joint] for joint in joints]), "centre")


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """`(frames, 4)` x, y, z, w, on one side of the sphere, so that players that mix them linearly go the short way."""
    quaternions = Rotation.from_matrix(rotations).as_quat()
    turned = np.einsum("fi,fi->f", quaternions[1:], quaternions[:-1]) < 0
    return quaternions * np.r_[1, np.cumprod(np.where(turned, -1, 1))][:, None]


def _octahedral_bone() -> tuple[np.ndarray, np.ndarray]:
    """Triangle corners and normals of a bone from the origin to (0, 1, 0), half as wide as 1 near its beginning."""
    ring = np.array([[1, 0.15, 0], [0, 0.15, -1], [-1, 0.15, 0], [0, 0.15, 1]])
    tip, foot = np.array([0.0, 1, 0]), np.zeros(3)
    following = np.roll(ring, -1, axis=0)
    faces = np.array([face for a, b in zip(ring, following) for face in ((a, b, tip), (b, a, foot))])
    normals = np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return faces.reshape(-1, 3), normals.repeat(3, axis=0)


def _ball(divisions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Triangle corners and normals of the unit sphere, from an octahedron whose triangles are quartered."""
    signs = np.array([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)])
    # A reflected octant would turn its triangle inside out; so the order of its corners is turned as well.
    faces = np.array([np.diag(s)[:: 1 if s.prod() > 0 else -1] for s in signs], dtype=float)
    for _ in range(divisions):
        a, b, c = faces.swapaxes(0, 1)
        ab, bc, ca = a + b, b + c, c + a
        faces = np.concatenate([np.stack(face, axis=1) for face in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
        faces /= np.linalg.norm(faces, axis=-1, keepdims=True)
    corners = faces.reshape(-1, 3)
    return corners, corners
