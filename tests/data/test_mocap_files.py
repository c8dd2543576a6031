"""Readers of BVH and Acclaim files: forward kinematics, joint names, axes, units, archives, errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from probpose.data.asf_amc import find_skeleton
from probpose.data.bvh import read_bvh
from probpose.data.mocap_files import JOINT_NAMES, UNITS, MotionClip, clips_to_npz, read_motion

J = {name: index for index, name in enumerate(JOINT_NAMES)}

# A figure of about 1.8 m in centimetres as BVH programs hold it: y up, facing +z, its left on +x, arms stretched out.
FIGURE = {
    "Hips": (None, (0, 0, 0)),
    "Spine": ("Hips", (0, 10, 0)),
    "Spine1": ("Spine", (0, 15, 0)),
    "Spine2": ("Spine1", (0, 15, 0)),
    "Neck": ("Spine2", (0, 12, 0)),
    "Head": ("Neck", (0, 8, 6)),
    "Head_end": ("Head", (0, 15, 0)),
    "LeftShoulder": ("Spine2", (3, 10, 0)),
    "LeftArm": ("LeftShoulder", (14, 0, 0)),
    "LeftForeArm": ("LeftArm", (28, 0, 0)),
    "LeftHand": ("LeftForeArm", (25, 0, 0)),
    "LeftHand_end": ("LeftHand", (10, 0, 0)),
    "RightShoulder": ("Spine2", (-3, 10, 0)),
    "RightArm": ("RightShoulder", (-14, 0, 0)),
    "RightForeArm": ("RightArm", (-28, 0, 0)),
    "RightHand": ("RightForeArm", (-25, 0, 0)),
    "RightHand_end": ("RightHand", (-10, 0, 0)),
    "LeftUpLeg": ("Hips", (10, -5, 0)),
    "LeftLeg": ("LeftUpLeg", (0, -40, 0)),
    "LeftFoot": ("LeftLeg", (0, -42, 0)),
    "LeftFoot_end": ("LeftFoot", (0, -5, 12)),
    "RightUpLeg": ("Hips", (-10, -5, 0)),
    "RightLeg": ("RightUpLeg", (0, -40, 0)),
    "RightFoot": ("RightLeg", (0, -42, 0)),
    "RightFoot_end": ("RightFoot", (0, -5, 12)),
}
MOVING = [name for name in FIGURE if not name.endswith("_end")]

# Where the 17 joints of the figure stand with the hips at the origin, in centimetres, x left, y up, z forward.
REST = {
    "hip": (0, 0, 0),
    "rhip": (-10, -5, 0),
    "rknee": (-10, -45, 0),
    "rankle": (-10, -87, 0),
    "lhip": (10, -5, 0),
    "lknee": (10, -45, 0),
    "lankle": (10, -87, 0),
    "spine": (0, 25, 0),
    "thorax": (0, 50, 0),
    "nose": (0, 60, 6),
    "head": (0, 75, 6),
    "lshoulder": (17, 50, 0),
    "lelbow": (45, 50, 0),
    "lwrist": (70, 50, 0),
    "rshoulder": (-17, 50, 0),
    "relbow": (-45, 50, 0),
    "rwrist": (-70, 50, 0),
}

ROOT_CHANNELS = "Xposition Yposition Zposition Zrotation Xrotation Yrotation"


def z_up(points) -> np.ndarray:
    """From y up, in centimetres, to z up in metres."""
    points = np.asarray(points, dtype=float) / 100
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)


REST_METRES = z_up([REST[name] for name in JOINT_NAMES])


def write_bvh(path, values=None, *, figure=FIGURE, rename=str, channels=None, scale=1.0, frame_time="0.01") -> Path:
    """Write the figure. `values` holds one dictionary (joint -> channel values) per frame; zeros by default."""
    channels = {"Hips": ROOT_CHANNELS, **(channels or {})}
    order, lines = [], ["HIERARCHY"]

    def write(name):
        parent, offset = figure[name]
        if name.endswith("_end"):
            lines.append("End Site")
        else:
            lines.append(f"{'JOINT' if parent else 'ROOT'} {rename(name)}")
        lines.extend(["{", "OFFSET " + " ".join(str(scale * value) for value in offset)])
        if not name.endswith("_end"):
            order.append(name)
            listed = channels.setdefault(name, "Zrotation Xrotation Yrotation")
            lines.append(f"CHANNELS {len(listed.split())} {listed}")
        for child in (child for child, (its_parent, _) in figure.items() if its_parent == name):
            write(child)
        lines.append("}")

    write(next(iter(figure)))
    frames = values if values is not None else [{}]
    lines += ["MOTION", f"Frames: {len(frames)}", f"Frame Time: {frame_time}"]
    for frame in frames:
        numbers = [number for name in order for number in frame.get(name, [0.0] * len(channels[name].split()))]
        lines.append(" ".join(f"{number:.9g}" for number in numbers))
    path.write_text("\n".join(lines) + "\n")
    return path


def random_frames(count, seed=0):
    random = np.random.default_rng(seed)
    return [{name: [*([0, 90, 0] if name == "Hips" else []), *random.uniform(-60, 60, 3)] for name in MOVING} for _ in range(count)]


# --- BVH -------------------------------------------------------------------------------------------------------------


def test_rest_pose_by_hand(tmp_path):
    clip = read_motion(write_bvh(tmp_path / "rest.bvh", [{"Hips": [100, 95, 200, 0, 0, 0]}]))
    assert clip.positions.shape == (1, 17, 3) and clip.positions.dtype == np.float32
    np.testing.assert_allclose(clip.positions[0], REST_METRES + np.array([1.0, -2.0, 0.95]), atol=1e-6)
    assert clip.name == "rest" and clip.fps == 100
    assert clip.joint_names[0] == "Hips" and "Head_end" in clip.joint_names
    assert clip.joint_positions.shape == (1, len(FIGURE), 3)


@pytest.mark.parametrize(
    ("order", "angles", "expected"),
    [("Z X Y", (90, 90, 0), (0, 28, 0)), ("X Z Y", (90, 90, 0), (0, 0, 28)), ("Y Z X", (90, 90, 90), (0, 28, 0))],
)
def test_rotations_compose_in_channel_order(tmp_path, order, angles, expected):
    # The last channel acts first: a quarter turn about z takes the arm from +x to +y, one about x from there to +z.
    channels = {"LeftArm": " ".join(f"{axis}rotation" for axis in order.split())}
    clip = read_motion(write_bvh(tmp_path / "arm.bvh", [{"LeftArm": angles}], channels=channels))
    upper_arm = clip.positions[0, J["lelbow"]] - clip.positions[0, J["lshoulder"]]
    np.testing.assert_allclose(upper_arm, z_up(expected), atol=1e-6)


def test_position_channels_anywhere_replace_the_offset(tmp_path):
    channels = {"Hips": "Yrotation Zposition Xposition Yposition", "LeftLeg": "Xrotation Yposition Yrotation Zrotation"}
    frame = {"Hips": [90, 3, 1, 2], "LeftLeg": [0, -50, 0, 0]}
    clip = read_motion(write_bvh(tmp_path / "mixed.bvh", [frame], channels=channels))
    np.testing.assert_allclose(clip.positions[0, 0], z_up((1, 2, 3)), atol=1e-6)
    thigh = clip.positions[0, J["lknee"]] - clip.positions[0, J["lhip"]]
    np.testing.assert_allclose(thigh, z_up((0, -50, 0)), atol=1e-6)
    # A quarter turn about y takes the left side from +x to -z.
    hip = clip.positions[0, J["lhip"]] - clip.positions[0, 0]
    np.testing.assert_allclose(hip, z_up((0, -5, -10)), atol=1e-6)


def test_turned_root_turns_everything(tmp_path):
    frames = random_frames(5)
    still = [{**frame, "Hips": [0, 0, 0, 0, 0, 0]} for frame in frames]
    turned = [{**frame, "Hips": [0, 0, 0, 30, -50, 70]} for frame in frames]
    still = read_motion(write_bvh(tmp_path / "still.bvh", still), up="z").positions
    turned = read_motion(write_bvh(tmp_path / "turned.bvh", turned), up="z").positions
    turn = Rotation.from_euler("ZXY", [30, -50, 70], degrees=True).as_matrix()
    np.testing.assert_allclose(turned, still @ turn.T, atol=1e-6)


def test_bones_keep_their_length(tmp_path):
    clip = read_motion(write_bvh(tmp_path / "random.bvh", random_frames(20)))
    place = {name: clip.joint_positions[:, index] for index, name in enumerate(clip.joint_names)}
    for name, (parent, offset) in FIGURE.items():
        if parent:
            lengths = np.linalg.norm(place[name] - place[parent], axis=-1)
            np.testing.assert_allclose(lengths, np.linalg.norm(offset) / 100, atol=1e-6)


@pytest.mark.parametrize("up", ["y", "z"])
def test_left_stays_left(tmp_path, up):
    figure = FIGURE
    if up == "z":
        figure = {name: (parent, (x, -z, y)) for name, (parent, (x, y, z)) in FIGURE.items()}
    clip = read_motion(write_bvh(tmp_path / "figure.bvh", figure=figure), up=up)
    across = clip.positions[0, J["lhip"]] - clip.positions[0, J["rhip"]]
    upward = clip.positions[0, J["head"]] - clip.positions[0, J["hip"]]
    forward = np.cross(across, upward)
    foot, toes = (clip.joint_positions[0, clip.joint_names.index(name)] for name in ("LeftFoot", "LeftFoot_end"))
    assert upward[2] > 0.5
    assert forward @ (toes - foot) > 0
    np.testing.assert_allclose(clip.positions[0], REST_METRES, atol=1e-6)


SCHEMES = {
    "mixamo": lambda name: f"mixamorig:{name}",
    "motionbuilder": lambda name: f"Character1_{name}",
    "upper case": str.upper,
    "joint angles": lambda name: {
        "Spine": "Chest",
        "Spine1": "Chest2",
        "Spine2": "Chest3",
        **{
            f"{side}{old}": f"{side}{new}"
            for side in ("Left", "Right")
            for old, new in {
                "UpLeg": "Hip",
                "Leg": "Knee",
                "Foot": "Ankle",
                "Shoulder": "Collar",
                "Arm": "Shoulder",
                "ForeArm": "Elbow",
                "Hand": "Wrist",
            }.items()
        },
    }.get(name, name),
    "suffixed sides": lambda name: {
        f"{side}{old}": f"{new}_{side[0]}"
        for side in ("Left", "Right")
        for old, new in {
            "UpLeg": "UpperLeg",
            "Leg": "LowerLeg",
            "Foot": "Foot",
            "Shoulder": "Shoulder",
            "Arm": "UpperArm",
            "ForeArm": "LowerArm",
            "Hand": "Hand",
        }.items()
    }.get(name, name),
    "biped": lambda name: {
        "Hips": "Bip01 Pelvis",
        **{
            f"{side}{old}": f"Bip01 {side[0]} {new}"
            for side in ("Left", "Right")
            for old, new in {
                "UpLeg": "Thigh",
                "Leg": "Calf",
                "Foot": "Foot",
                "Shoulder": "Clavicle",
                "Arm": "UpperArm",
                "ForeArm": "Forearm",
                "Hand": "Hand",
            }.items()
        },
    }.get(name, f"Bip01 {name}"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_naming_schemes_agree(tmp_path, scheme):
    frames = random_frames(3)
    expected = read_motion(write_bvh(tmp_path / "plain.bvh", frames)).positions
    found = read_motion(write_bvh(tmp_path / "named.bvh", frames, rename=SCHEMES[scheme])).positions
    np.testing.assert_array_equal(found, expected)


def test_root_below_the_hips_and_joints_on_top_of_each_other(tmp_path):
    """As in the files of Bandai-Namco, where the hips wander far from the root, and in conversions of CMU's."""
    figure = {"joint_Root": (None, (0, 0, 0)), **FIGURE, "Hips": ("joint_Root", (0, 0, 0))}
    figure |= {"LHipJoint": ("Hips", (0, 0, 0)), "LeftUpLeg": ("LHipJoint", (10, -5, 0))}
    figure |= {"LowerBack": ("Hips", (0, 0, 0)), "Spine": ("LowerBack", (0, 10, 0))}
    figure |= {"Neck1": ("Neck", (0, 8, 6)), "Head": ("Neck1", (0, 0, 0))}
    path = write_bvh(tmp_path / "joints.bvh", [{"Hips": [0, 0, 5000, 0, 0, 0]}], figure=figure)
    np.testing.assert_allclose(read_motion(path).positions[0], REST_METRES + np.array([0, -50, 0]), atol=1e-5)

    figure["Head_end"] = ("Head", (0, 0, 0))
    path = write_bvh(tmp_path / "joints.bvh", [{"Hips": [0, 0, 5000, 0, 0, 0]}], figure=figure)
    head = z_up((0, 60 + 12 * 0.8, 5000 + 6 + 12 * 0.6))
    np.testing.assert_allclose(read_motion(path).positions[0, J["head"]], head, atol=1e-5)


def test_head_without_end_is_drawn_on_by_twelve_centimetres(tmp_path):
    figure = {**FIGURE, "Head_end": ("Head", (0, 0, 0))}
    expected = REST_METRES.copy()
    expected[J["head"]] = z_up((0, 60 + 12 * 0.8, 6 + 12 * 0.6))
    clip = read_motion(write_bvh(tmp_path / "head.bvh", figure=figure))
    np.testing.assert_allclose(clip.positions[0], expected, atol=1e-6)


def test_missing_joints_are_named(tmp_path):
    figure = {name: entry for name, entry in FIGURE.items() if "LeftHand" not in name}
    figure["LeftForeArm_end"] = ("LeftForeArm", (25, 0, 0))
    with pytest.raises(ValueError, match=r"no joint for lwrist .*Hips.*LeftForeArm"):
        read_motion(write_bvh(tmp_path / "onehand.bvh", figure=figure))

    figure = {name: entry for name, entry in FIGURE.items() if name not in ("Spine", "Spine1", "Spine2")}
    figure |= {name: ("Hips", offset) for name, (parent, offset) in FIGURE.items() if parent == "Spine2"}
    with pytest.raises(ValueError, match="no joint for spine"):
        read_motion(write_bvh(tmp_path / "stiff.bvh", figure=figure))


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_guessed_from_the_height(tmp_path, unit):
    scale = 0.01 / UNITS[unit]
    path = write_bvh(tmp_path / "figure.bvh", random_frames(2), scale=scale)
    expected = read_motion(path, unit=unit)
    np.testing.assert_array_equal(read_motion(path).positions, expected.positions)
    assert np.linalg.norm(expected.positions[0, 1] - expected.positions[0, 2]) == pytest.approx(0.4, abs=1e-5)


def test_unit_that_cannot_be_guessed(tmp_path):
    path = write_bvh(tmp_path / "giant.bvh", scale=3)
    with pytest.raises(ValueError, match=r"units tall.*give unit"):
        read_motion(path)
    np.testing.assert_allclose(read_motion(path, unit="cm").positions[0], 3 * REST_METRES, atol=1e-5)


@pytest.mark.parametrize(("frame_time", "fps"), [("0.0333333", 30), ("0.008333", 120), ("0.0166667", 60), ("0.0333667", 29.97)])
def test_frame_rate(tmp_path, frame_time, fps):
    path = write_bvh(tmp_path / "rate.bvh", frame_time=frame_time)
    assert read_motion(path).fps == pytest.approx(fps, abs=1e-3 if fps == 29.97 else 0)
    assert read_motion(path, fps=25).fps == 25


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HIERARCHY", "solid cube", "line 1: not a BVH file"),
        ("Frames: 2", "Frames: 3", "announces 3 frames, the file holds 2"),
        ("Frames: 2", "Frames: 0", "'Frames:' must be positive"),
        ("Frames: 2", "Frames: two", r"line \d+: could not convert"),
        ("Frame Time: 0.01", "Frame Time: 0", "'Frame Time:' must be positive"),
        ("Frame Time: 0.01", "", "expected 'Frame Time:'"),
        ("\n0 0 0 ", "\n0 0 ", r"line \d+: expected 63 numbers, found 62"),
        ("\n0 0 0 ", "\n0 x 0 ", r"line \d+: could not convert"),
        ("\n0 0 0 ", "\n0 nan 0 ", r"line \d+: every number must be finite"),
        ("}\nMOTION", "MOTION", "before the hierarchy is complete"),
        ("\nMOTION", "\nROOT Second\n{\n}\nMOTION", "unexpected 'ROOT Second'"),
        ("OFFSET 0.0 10.0 0.0", "", "joint 'Spine' has no OFFSET"),
        ("OFFSET 0.0 10.0 0.0", "OFFSET 0.0 10.0", "expected 3 numbers, found 2"),
        ("CHANNELS 3", "CHANNELS 4", "CHANNELS must give their number"),
        ("Zrotation", "Wrotation", "CHANNELS must give their number"),
        ("OFFSET", "OFFST", "unexpected 'OFFST"),
    ],
)
def test_broken_bvh(tmp_path, old, new, message):
    path = write_bvh(tmp_path / "broken.bvh", [{}, {}])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_bvh(path)
    assert "broken.bvh" in str(error.value)


def test_bvh_cut_anywhere_is_an_error(tmp_path):
    text = write_bvh(tmp_path / "whole.bvh", random_frames(2)).read_text()
    path = tmp_path / "cut.bvh"
    last_number = text.rstrip().rindex(" ")
    for end in [*range(0, last_number, 97), last_number]:
        path.write_text(text[:end])
        with pytest.raises(ValueError, match=r"cut\.bvh"):
            read_motion(path)


def test_wrong_arguments(tmp_path):
    path = write_bvh(tmp_path / "figure.bvh")
    for arguments in ({"unit": "feet"}, {"up": "x"}, {"fps": 0}, {"fps": float("nan")}, {"skeleton_file": "a.asf"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            read_motion(path, **arguments)
    with pytest.raises(ValueError, match=r"\.bvh and \.amc"):
        read_motion(tmp_path / "figure.fbx")
    for name in ("nowhere.bvh", "nowhere.amc"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read_motion(tmp_path / name)


# --- Acclaim ---------------------------------------------------------------------------------------------------------

# name: (parent, direction, length, axes in degrees, channels); a length of 1 is 1 inch / 0.45.
ACCLAIM = {
    "lhipjoint": ("root", (0.8, -0.6, 0), 2.0, (0, 0, 0), ""),
    "lfemur": ("lhipjoint", (0, -1, 0), 7.0, (0, 0, 20), "rx ry rz"),
    "ltibia": ("lfemur", (0, -1, 0), 7.5, (0, 0, 20), "rx"),
    "lfoot": ("ltibia", (0, -0.6, 0.8), 2.0, (-90, 0, 20), "rx rz"),
    "rhipjoint": ("root", (-0.8, -0.6, 0), 2.0, (0, 0, 0), ""),
    "rfemur": ("rhipjoint", (0, -1, 0), 7.0, (0, 0, -20), "rx ry rz"),
    "rtibia": ("rfemur", (0, -1, 0), 7.5, (0, 0, -20), "rx"),
    "rfoot": ("rtibia", (0, -0.6, 0.8), 2.0, (-90, 0, -20), "rx rz"),
    "lowerback": ("root", (0, 1, 0), 2.0, (0, 0, 0), "rx ry rz"),
    "upperback": ("lowerback", (0, 1, 0), 2.0, (0, 0, 0), "rx ry rz"),
    "thorax": ("upperback", (0, 1, 0), 2.0, (0, 0, 0), "rx ry rz"),
    "lowerneck": ("thorax", (0, 1, 0), 1.5, (0, 0, 0), "rx ry rz"),
    "upperneck": ("lowerneck", (0, 1, 0), 1.5, (0, 0, 0), "rx ry rz"),
    "head": ("upperneck", (0, 1, 0), 2.0, (0, 0, 0), "rx ry rz"),
    "lclavicle": ("thorax", (0.8, 0.6, 0), 3.0, (0, 0, 0), "ry rz"),
    "lhumerus": ("lclavicle", (1, 0, 0), 5.0, (180, -30, -90), "rx ry rz"),
    "lradius": ("lhumerus", (1, 0, 0), 3.5, (180, -30, -90), "rx"),
    "lwrist": ("lradius", (1, 0, 0), 1.5, (0, 90, 90), "ry"),
    "rclavicle": ("thorax", (-0.8, 0.6, 0), 3.0, (0, 0, 0), "ry rz"),
    "rhumerus": ("rclavicle", (-1, 0, 0), 5.0, (180, 30, 90), "rx ry rz"),
    "rradius": ("rhumerus", (-1, 0, 0), 3.5, (180, 30, 90), "rx"),
    "rwrist": ("rradius", (-1, 0, 0), 1.5, (0, -90, -90), "ry"),
}
UNIT = 0.0254 / 0.45

ACCLAIM_REST = {
    "hip": (0, 0, 0),
    "rhip": (-1.6, -1.2, 0),
    "rknee": (-1.6, -8.2, 0),
    "rankle": (-1.6, -15.7, 0),
    "lhip": (1.6, -1.2, 0),
    "lknee": (1.6, -8.2, 0),
    "lankle": (1.6, -15.7, 0),
    "spine": (0, 2, 0),
    "thorax": (0, 7.8, 0),
    "nose": (0, 9, 0),
    "head": (0, 11, 0),
    "lshoulder": (2.4, 7.8, 0),
    "lelbow": (7.4, 7.8, 0),
    "lwrist": (10.9, 7.8, 0),
    "rshoulder": (-2.4, 7.8, 0),
    "relbow": (-7.4, 7.8, 0),
    "rwrist": (-10.9, 7.8, 0),
}
ACCLAIM_METRES = z_up([ACCLAIM_REST[name] for name in JOINT_NAMES]) * 100 * UNIT


def write_asf(path) -> Path:
    lines = ["# a skeleton", ":version 1.10", ":units", "  mass 1.0", "  length 0.45", "  angle deg"]
    lines += [
        ":root",
        "  order TX TY TZ RX RY RZ",
        "  axis XYZ",
        "  position 0 0 0",
        "  orientation 0 0 0",
        ":bonedata",
    ]
    for number, (name, (_, direction, length, axes, channels)) in enumerate(ACCLAIM.items(), start=1):
        lines += ["  begin", f"    id {number}", f"    name {name}", "    direction {} {} {}".format(*direction)]
        lines += [f"    length {length}", "    axis {} {} {} XYZ".format(*axes)]
        if channels:
            lines += [f"    dof {channels}", "    limits (-160.0 20.0)"]
            lines += ["           (-70.0 70.0)"] * (len(channels.split()) - 1)
        lines += ["  end"]
    lines += [":hierarchy", "  begin"]
    for parent in ("root", *ACCLAIM):
        if children := [name for name, entry in ACCLAIM.items() if entry[0] == parent]:
            lines += [f"    {parent} {' '.join(children)}"]
    path.write_text("\n".join([*lines, "  end"]) + "\n")
    return path


def write_amc(path, frames) -> Path:
    lines = ["#!OML:ASF", ":FULLY-SPECIFIED", ":DEGREES"]
    for number, frame in enumerate(frames, start=1):
        lines += [str(number), "root " + " ".join(f"{value:.9g}" for value in frame.get("root", [0] * 6))]
        for name, (*_, channels) in ACCLAIM.items():
            if channels:
                values = frame.get(name, [0] * len(channels.split()))
                lines += [f"{name} " + " ".join(f"{value:.9g}" for value in values)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def acclaim(tmp_path):
    """Writes the skeleton and a motion with the given frames."""
    write_asf(tmp_path / "07.asf")
    return lambda *frames: write_amc(tmp_path / "07_01.amc", frames or [{}])


def test_acclaim_rest_pose_by_hand(acclaim):
    clip = read_motion(acclaim({"root": [9, 18, -3, 0, 0, 0]}))
    np.testing.assert_allclose(clip.positions[0], ACCLAIM_METRES + z_up((9, 18, -3)) * 100 * UNIT, atol=1e-6)
    assert clip.fps == 120 and clip.name == "07_01"
    assert read_motion(acclaim(), fps=60).fps == 60


def test_acclaim_knee_bends_about_the_axis_of_its_bone(acclaim):
    # The shin's x axis is the world's x turned by 20 degrees about z; bent by 90 about it, the shin points backward
    # but for the part along that axis, which stays.
    clip = read_motion(acclaim({"ltibia": [90]}))
    axis = np.array([np.cos(np.radians(20)), np.sin(np.radians(20)), 0])
    down = np.array([0.0, -1.0, 0.0])
    expected = axis * (axis @ down) + np.cross(axis, down)
    shin = clip.positions[0, J["lankle"]] - clip.positions[0, J["lknee"]]
    np.testing.assert_allclose(shin, z_up(7.5 * expected) * 100 * UNIT, atol=1e-6)
    assert shin[1] > 0, "the figure faces -y, a bent knee takes the foot backward"


def test_acclaim_angles_in_radians(acclaim):
    expected = read_motion(acclaim({"ltibia": [90]})).positions
    path = acclaim({"ltibia": [np.pi / 2]})
    path.write_text(path.read_text().replace(":DEGREES", ":RADIANS"))
    np.testing.assert_allclose(read_motion(path).positions, expected, atol=1e-6)


def test_acclaim_elbows_bend_forward(acclaim):
    clip = read_motion(acclaim({"lradius": [60], "rradius": [60]}))
    for side in "lr":
        forearm = clip.positions[0, J[f"{side}wrist"]] - clip.positions[0, J[f"{side}elbow"]]
        assert forearm[1] < -0.1


def test_acclaim_turned_root_turns_everything(acclaim):
    random = np.random.default_rng(1)
    pose = {n: random.uniform(-40, 40, len(c.split())) for n, (*_, c) in ACCLAIM.items() if c}
    still, turned = read_motion(acclaim(pose, {**pose, "root": [0, 0, 0, 20, 40, 60]}), up="z").positions
    turn = Rotation.from_euler("ZYX", [60, 40, 20], degrees=True).as_matrix()
    np.testing.assert_allclose(turned, still @ turn.T, atol=1e-6)


def test_acclaim_agrees_with_the_same_motion_as_bvh(acclaim, tmp_path):
    """Each bone turned by C M C^-1 is a BVH joint at the bone's beginning with that rotation."""
    random = np.random.default_rng(2)
    frames, bvh_frames = [], []
    for _ in range(4):
        root = random.uniform(-20, 20, 6)
        frame, bvh_frame = {"root": root}, {"root": [*root[:3], *root[:2:-1]]}
        for name, (_, _, _, axes, channels) in ACCLAIM.items():
            angles = {channel: random.uniform(-50, 50) for channel in channels.split()}
            frame[name] = list(angles.values())
            own = Rotation.from_euler("ZYX", axes[::-1], degrees=True)
            motion = Rotation.from_euler("ZYX", [angles.get(c, 0.0) for c in ("rz", "ry", "rx")], degrees=True)
            bvh_frame[name] = (own * motion * own.inv()).as_euler("ZYX", degrees=True)
        frames.append(frame)
        bvh_frames.append(bvh_frame)

    figure = {"root": (None, (0, 0, 0))}
    for name, (parent, *_) in ACCLAIM.items():
        vector = np.multiply(ACCLAIM[parent][1], ACCLAIM[parent][2]) if parent != "root" else (0, 0, 0)
        figure[name] = (parent, tuple(vector))
    for name in [name for name in ACCLAIM if name not in [entry[0] for entry in ACCLAIM.values()]]:
        figure[f"{name}_end"] = (name, tuple(np.multiply(ACCLAIM[name][1], ACCLAIM[name][2])))
    channels = dict.fromkeys(ACCLAIM, "Zrotation Yrotation Xrotation")
    channels["root"] = "Xposition Yposition Zposition Zrotation Yrotation Xrotation"
    bvh = write_bvh(tmp_path / "same.bvh", bvh_frames, figure=figure, channels=channels)

    np.testing.assert_allclose(read_motion(acclaim(*frames)).positions, read_motion(bvh).positions, atol=1e-5)


def test_acclaim_skeleton_is_found(tmp_path):
    motion = write_amc(tmp_path / "take_3_02.amc", [{}])
    with pytest.raises(FileNotFoundError, match=r"take_3_02\.amc.*found: none.*skeleton_file"):
        read_motion(motion)
    only = write_asf(tmp_path / "other.asf")
    assert find_skeleton(motion) == only
    write_asf(tmp_path / "another.asf")
    with pytest.raises(FileNotFoundError, match=r"another\.asf, other\.asf"):
        find_skeleton(motion)
    write_asf(tmp_path / "take.asf")
    closest = write_asf(tmp_path / "take_3.asf")
    assert find_skeleton(motion) == closest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clip = read_motion(motion, skeleton_file=write_asf(elsewhere / "mine.ASF"))
    np.testing.assert_allclose(clip.positions[0], ACCLAIM_METRES, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_motion(motion, skeleton_file=tmp_path / "missing.asf")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (":FULLY-SPECIFIED", "", "no :FULLY-SPECIFIED"),
        ("\nltibia 0\n", "\n", "frame 1 must hold every moving bone .*missing: ltibia"),
        ("\nltibia 0\n", "\nltibia 0\nltibia 0\n", "frame 1 must hold every moving bone"),
        ("\nltibia 0\n", "\ntail 0\n", "not in the skeleton: tail"),
        ("\nltibia 0\n", "\nltibia 0 1\n", r"line \d+: expected 1 numbers, found 2"),
        ("\nltibia 0\n", "\nltibia bent\n", r"line \d+: could not convert"),
        ("\n1\n", "\n", "line 4: expected the number of the first frame"),
    ],
)
def test_broken_amc(acclaim, old, new, message):
    path = acclaim({}, {})
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_motion(path)
    assert "07_01.amc" in str(error.value)


def test_amc_without_frames_and_cut_short(acclaim):
    path = acclaim({}, {})
    text = path.read_text()
    path.write_text(text[: text.index("\n1\n") + 1])
    with pytest.raises(ValueError, match="no frames"):
        read_motion(path)
    path.write_text(text[: text.rindex("rhumerus")])
    with pytest.raises(ValueError, match=r"line \d+: frame 2 .*missing: rhumerus, rradius, rwrist.*cut short"):
        read_motion(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (":bonedata", ":bones", "not an ASF skeleton"),
        ("direction 0 -1 0", "direction 0 -1", r"line \d+: expected 3 numbers"),
        ("direction 0 -1 0", "", r"line \d+: the bone that begins here has no direction"),
        ("0 0 20 XYZ", "0 0 20", r"line \d+: expected three angles and an order"),
        ("dof rx ry rz", "dof rx ry l", r"line \d+: channels must be different ones of rx, ry, rz"),
        ("length 0.45", "length 0", r"line \d+: the length unit must be positive"),
        ("lfemur ltibia", "lfemur lshin", r"line \d+: cannot hang 'lshin' from 'lfemur'"),
        ("lfemur ltibia", "", r"line \d+: cannot hang 'lfoot' from 'ltibia'"),
        ("rradius rwrist", "", "bones without a place in :hierarchy: rwrist"),
    ],
)
def test_broken_asf(acclaim, tmp_path, old, new, message):
    path = acclaim()
    skeleton = tmp_path / "07.asf"
    assert old in skeleton.read_text()
    skeleton.write_text(skeleton.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_motion(path)
    assert "07.asf" in str(error.value)


# --- clips and archives ----------------------------------------------------------------------------------------------


def straight_walk(frames, fps, name="walk") -> MotionClip:
    """The figure at rest, carried along y by one metre per second."""
    positions = REST_METRES[None] + np.arange(frames)[:, None, None] / fps * np.array([0.0, 1.0, 0.0]) + [0, 0, 0.9]
    positions = positions.astype(np.float32)
    return MotionClip(positions, float(fps), name, positions[:, :2], ("Hips", "RightUpLeg"))


def test_resample_down_takes_every_fourth_frame():
    noise = np.random.default_rng(3).normal(size=(42, 17, 3)).astype(np.float32)
    clip = replace(straight_walk(42, 120), positions=noise, joint_positions=noise[:, :2])
    slow = clip.resample(30)
    np.testing.assert_allclose(slow.positions, clip.positions[::4], atol=1e-6)
    np.testing.assert_array_equal(slow.joint_positions, slow.positions[:, :2])
    assert slow.fps == 30 and slow.name == clip.name and slow.positions.dtype == np.float32


@pytest.mark.parametrize(("source", "target"), [(30, 50), (120, 25), (29.97, 30), (30, 30)])
def test_resample_keeps_speed_and_duration(source, target):
    clip = straight_walk(100, source)
    other = clip.resample(target)
    times = np.arange(len(other.positions)) / target
    np.testing.assert_allclose(other.positions[:, 0, 1], times, atol=1e-5)
    assert 0 <= 99 / source - times[-1] < 1 / target
    assert len(straight_walk(1, source).resample(target).positions) == 1


def test_resample_refuses_bad_rates():
    for fps in (0, -30, float("inf")):
        with pytest.raises(ValueError, match="fps must be a positive number"):
            straight_walk(3, 30).resample(fps)


def test_archive_round_trip(tmp_path):
    clips = [
        read_motion(write_bvh(tmp_path / "a.bvh", random_frames(4, seed=4))).resample(50),
        straight_walk(7, 50, "mine/b"),
    ]
    path = tmp_path / "clips.npz"
    clips_to_npz(clips, path, split={"a": "train", "mine/b": "test"})
    with np.load(path, allow_pickle=False) as archive:
        data = dict(archive)
    assert {name: array.dtype.kind + str(array.dtype.itemsize) for name, array in data.items() if name != "names"} == {
        "root": "f4",
        "local": "f2",
        "starts": "i8",
        "splits": "U20",
        "fps": "i8",
        "joints": "U36",
    }
    assert data["names"].tolist() == ["a", "mine/b"] and data["splits"].tolist() == ["train", "test"]
    assert data["starts"].tolist() == [0, 2, 9] and data["fps"].shape == () and data["fps"] == 50
    assert tuple(data["joints"]) == JOINT_NAMES
    assert not data["local"][:, 0].any()
    found = data["root"][:, None] + data["local"].astype(np.float32)
    for clip, start, end in zip(clips, data["starts"][:-1], data["starts"][1:], strict=True):
        np.testing.assert_allclose(found[start:end], clip.positions, atol=5e-4)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".bvh"] == ["clips.npz"]


def test_archive_keeps_a_broken_frame_rate(tmp_path):
    clips_to_npz([straight_walk(3, 29.97)], tmp_path / "clips.npz")
    with np.load(tmp_path / "clips.npz", allow_pickle=False) as archive:
        assert archive["fps"] == 29.97 and archive["splits"].tolist() == ["train"]


def test_archive_has_the_layout_of_the_training_archives(tmp_path):
    reference = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mocap17" / "cmu.npz"
    if not reference.is_file():
        pytest.skip("the training archives are not beside the repository")
    clips_to_npz([straight_walk(3, 30)], tmp_path / "clips.npz")
    with np.load(reference, allow_pickle=False) as theirs, np.load(tmp_path / "clips.npz", allow_pickle=False) as ours:
        assert set(ours.files) == set(theirs.files)
        assert tuple(theirs["joints"]) == JOINT_NAMES
        for key in ("root", "local", "starts", "fps"):
            assert ours[key].dtype == theirs[key].dtype
            assert ours[key].shape[1:] == theirs[key].shape[1:]


def test_archive_refuses_and_leaves_nothing_behind(tmp_path):
    walk = straight_walk(3, 30)
    broken = replace(walk, positions=np.full_like(walk.positions, np.nan))
    for clips, split, message in [
        ([], "train", "at least one clip"),
        ([walk, walk], "train", "repeated: walk"),
        ([walk, straight_walk(3, 60, "run")], "train", r"\[30.0, 60.0\].*resample"),
        ([walk], "validation", "got 'validation'"),
        ([walk], {"run": "train"}, "'walk' must be 'train' or 'test', got None"),
        ([broken], "train", "finite"),
        ([replace(walk, positions=walk.positions[:, :16])], "train", "17"),
    ]:
        with pytest.raises(ValueError, match=message):
            clips_to_npz(clips, tmp_path / "clips.npz", split)
    with pytest.raises(FileNotFoundError):
        clips_to_npz([walk], tmp_path / "nowhere" / "clips.npz")
    assert not list(tmp_path.iterdir())


def test_a_failed_archive_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "clips.npz"
    clips_to_npz([straight_walk(3, 30)], path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        clips_to_npz([straight_walk(5, 30)], path, overwrite=True)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["clips.npz"]
