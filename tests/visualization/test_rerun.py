import sys

import numpy as np
import pytest

from probpose.skeletons import get_skeleton
from probpose.visualization import write_rerun

chunks = pytest.importorskip("rerun.chunk")
SKELETON = get_skeleton("h36m_17")


def read(path):
    """Columns by entity and component: `{entity: {component: list of what every row holds}}`, with the timelines among them."""
    found = {}
    for chunk in chunks.RrdReader(path).stream():
        columns = chunk.to_record_batch().to_pydict()
        found.setdefault(str(chunk.entity_path), {}).update(columns)
    return found


def test_motion_is_where_the_person_is_on_both_timelines(tmp_path, filmed_person):
    person = filmed_person(first=5, frames=3, fps=20.0, radius=np.full((3, 17), 0.12))
    found = read(write_rerun(tmp_path / "recording.rrd", [person]))
    joints = found["/people/anna/joints"]
    assert joints["frame"] == [5, 6, 7]
    assert [time.total_seconds() for time in joints["time"]] == pytest.approx([0.25, 0.3, 0.35])
    placed = person.pose + person.root[:, None]
    np.testing.assert_allclose(joints["Points3D:positions"], placed, atol=1e-6)
    assert joints["Points3D:labels"][0] == [name.replace("_", " ") for name in SKELETON.joint_names]
    bones = list(SKELETON.bones)
    np.testing.assert_allclose(found["/people/anna/pose"]["LineStrips3D:strips"], placed[:, bones], atol=1e-6)
    several = (person.hypotheses + person.root[:, None])[:, :, bones].swapaxes(0, 1).reshape(3, -1, 2, 3)
    np.testing.assert_allclose(found["/people/anna/hypotheses"]["LineStrips3D:strips"], several, atol=1e-6)
    assert len(found["/people/anna/hypotheses"]["LineStrips3D:colors"][0]) == several.shape[1]
    np.testing.assert_allclose(found["/people/anna/uncertainty"]["Ellipsoids3D:half_sizes"], np.full((3, 17, 3), 0.12), atol=1e-6)
    np.testing.assert_allclose(found["/people/anna/root"]["LineStrips3D:strips"][0][0], person.root, atol=1e-6)


def test_the_camera_projects_the_motion_to_the_2d_input(tmp_path, filmed_person):
    found = read(write_rerun(tmp_path / "recording.rrd", [filmed_person()]))
    matrix = np.reshape(found["/camera"]["Pinhole:image_from_camera"][0], (3, 3)).T  # Rerun stores columns
    projected = np.array(found["/people/anna/joints"]["Points3D:positions"]) @ matrix.T
    np.testing.assert_allclose(projected[..., :2] / projected[..., 2:], found["/camera/anna/joints"]["Points2D:positions"], atol=1e-2)


def test_unseen_joints_and_frames_are_left_out_and_their_poses_pale(tmp_path, filmed_person):
    person = filmed_person(unseen=[1])
    wrist = SKELETON.joint_names.index("left_wrist")
    person.track.keypoints_2d[2, wrist], person.track.confidence[2, wrist] = np.nan, 0
    found = read(write_rerun(tmp_path / "recording.rrd", [person]))
    assert [len(points) for points in found["/camera/anna/joints"]["Points2D:positions"]] == [17, 0, 16, 17]
    assert [len(strips) for strips in found["/camera/anna/bones"]["LineStrips2D:strips"]] == [16, 0, 15, 16]
    colours = found["/people/anna/joints"]["Points3D:colors"]
    assert colours[0] == colours[2] == colours[3] != colours[1]
    nowhere = filmed_person(unseen=range(4), pose=None, name="nobody / knows")
    assert "/people/nobody\\ \\/\\ knows/hypotheses" in read(write_rerun(tmp_path / "unseen.rrd", [nowhere]))


def test_who_leaves_does_not_stay_in_the_picture(tmp_path, filmed_person):
    people = [filmed_person(frames=3), filmed_person(first=1, frames=6, name="boris")]
    found = read(write_rerun(tmp_path / "recording.rrd", people))
    for parent in ("people", "camera"):
        assert found[f"/{parent}/anna"]["frame"] == [3] and found[f"/{parent}/anna"]["Clear:is_recursive"] == [[True]]
        assert "Clear:is_recursive" not in found.get(f"/{parent}/boris", {})


def test_the_recording_stands_behind_the_input(tmp_path, filmed_person):
    video = pytest.importorskip("probpose.video")
    with video.write_video(tmp_path / "film.mp4", (480, 360), 25) as append:
        for number in range(6):
            append(np.full((360, 480, 3), 30 * number, np.uint8))
    path = write_rerun(tmp_path / "recording.rrd", [filmed_person(first=2, frames=3)], tmp_path / "film.mp4")
    frames = [
        frame for chunk in chunks.RrdReader(path).stream()
        for frame in chunk.to_record_batch().to_pydict().get("frame", []) if chunk.entity_path == "/camera"
    ]  # fmt: skip
    assert sorted(frames) == [2, 3, 4]


def test_at_most_so_many_hypotheses_are_kept(tmp_path, filmed_person):
    found = read(write_rerun(tmp_path / "recording.rrd", [filmed_person()], max_hypotheses=3))
    assert {len(strips) for strips in found["/people/anna/hypotheses"]["LineStrips3D:strips"]} == {3 * 16}


def test_what_does_not_fit_is_refused(tmp_path, filmed_person):
    person = filmed_person()
    for people, message in [
        ([], "nobody"),
        ([person, filmed_person()], "different names, not anna, anna"),
        ([filmed_person(root=None)], "no root trajectory"),
        ([person, filmed_person(fps=30.0, name="boris")], "frame rate"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_rerun(tmp_path / "recording.rrd", people)
    with pytest.raises(ValueError, match=r"\.rrd"):
        write_rerun(tmp_path / "recording.mp4", [person])
    with pytest.raises(ValueError, match="max_hypotheses"):
        write_rerun(tmp_path / "recording.rrd", [person], max_hypotheses=0)
    with pytest.raises(FileNotFoundError):
        write_rerun(tmp_path / "recording.rrd", [person], tmp_path / "missing.mp4")
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_asked(tmp_path, filmed_person):
    path = tmp_path / "recording.rrd"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=path.name):
        write_rerun(path, [filmed_person()])
    assert path.read_text() == "mine"
    write_rerun(path, [filmed_person()], overwrite=True)
    assert read(path) and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_missing_library_is_named(tmp_path, monkeypatch, filmed_person):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[rerun\]"):
        write_rerun(tmp_path / "recording.rrd", [filmed_person()])
