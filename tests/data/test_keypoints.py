"""Readers of 2D keypoint files: every format as its tool writes it, exact values, identities, and clear refusals."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from probpose.data.keypoints import (
    KeypointTrack,
    detect_format,
    link,
    list_formats,
    read_keypoints,
    write_keypoints,
)
from probpose.data.keypoints.recordings import recordings_below

# An upright person in COCO's order, 100 pixels tall, in whole pixels so that every format holds it exactly.
# fmt: off
UPRIGHT = np.array([
    [20, 8], [22, 6], [18, 6], [24, 8], [16, 8], [32, 22], [8, 22], [36, 38], [4, 38], [38, 52], [2, 52],
    [27, 54], [13, 54], [28, 76], [12, 76], [28, 98], [12, 98],
], dtype=float)
# fmt: on
PAIRS = ["eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
COCO_NAMES = ["nose", *(f"{side}_{part}" for part in PAIRS for side in ("left", "right"))]


def person(x: float = 100, y: float = 50, joints: int = 17) -> np.ndarray:
    """(joints, 2): COCO's joints first, then more of them around the body."""
    extra = UPRIGHT[np.arange(joints) % 17] + 1
    extra[: min(joints, 17)] = UPRIGHT[: min(joints, 17)]
    return extra + np.array([x, y])


def flat(points: np.ndarray, c=0.5) -> list[float]:
    return np.column_stack([points, np.broadcast_to(c, len(points))]).ravel().tolist()


@pytest.fixture
def write(tmp_path):
    """Write a file (JSON unless text is given) and return its path."""

    def _write(name: str, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return _write


def notes(track: KeypointTrack) -> str:
    return "; ".join(track.source["notes"])


def check(track: KeypointTrack, frames: list[int], skeleton: str = "coco_17") -> None:
    """What holds for every track."""
    assert track.frame.tolist() == frames and track.frame.dtype == np.int64
    assert track.skeleton == skeleton
    assert track.keypoints_2d.dtype == track.confidence.dtype == track.confidence_raw.dtype == np.float32
    assert track.keypoints_2d.shape == (*track.confidence.shape, 2) == (len(frames), track.num_joints, 2)
    assert ((track.confidence >= 0) & (track.confidence <= 1)).all()
    missing = np.isnan(track.keypoints_2d)
    assert (missing[..., 0] == missing[..., 1]).all()
    assert (track.confidence[missing[..., 0]] == 0).all()
    assert {"path", "format", "notes"} <= set(track.source)


# ---------------------------------------------------------------------------------------------------------------------
# COCO
# ---------------------------------------------------------------------------------------------------------------------


def test_coco_results(write):
    points, c = person(), np.linspace(0.2, 0.95, 17)
    rows = flat(points, c)
    rows[0:3], rows[3:6] = [0, 0, 0], [-1, -1, 0]
    rows[8] = 1.25
    path = write("results.json", [{"image_id": 7, "category_id": 1, "keypoints": rows, "score": 0.9, "bbox": [1, 2, 3, 4]}])
    (track,) = read_keypoints(path)
    check(track, [7])
    assert track.source["format"] == "coco_results" == detect_format(path)
    assert np.isnan(track.keypoints_2d[0, :2]).all()
    np.testing.assert_array_equal(track.keypoints_2d[0, 2:], points[2:])
    assert track.confidence[0, 2] == 1 and track.confidence_raw[0, 2] == 1.25 and "clipped" in notes(track)
    np.testing.assert_array_equal(track.confidence[0, 3:], c[3:].astype(np.float32))
    assert track.image_size is None and track.fps is None


def test_coco_results_flags_are_no_confidences(write):
    rows = flat(person(), np.arange(17) % 3)
    (track,) = read_keypoints(write("results.json", [{"image_id": 1, "category_id": 1, "keypoints": rows, "score": 1}]))
    check(track, [1])
    np.testing.assert_array_equal(track.confidence[0], np.arange(17) % 3 > 0)
    assert np.isnan(track.keypoints_2d[0, ::3]).all() and "flags" in notes(track)


def test_coco_results_with_string_ids_and_whole_body(write):
    record = {"category_id": 1, "keypoints": flat(person()), "score": 1.0}
    parts = {"foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
    for start, (part, count) in enumerate(parts.items()):
        record[part] = flat(person(joints=count) + start)
    rows = [{**record, "image_id": f"clip_{i:04d}"} for i in (10, 2, 3, 9)]
    (track,) = read_keypoints(write("results.json", rows))
    check(track, list(range(2, 11)), "wholebody_133")
    np.testing.assert_array_equal(track.keypoints_2d[0, 91:94], person(joints=3) + 2)
    assert np.isnan(track.keypoints_2d[2:7]).all() and np.isnan(track.confidence_raw[2:7]).all()


def test_numberless_frame_names_are_sorted(write):
    rows = [{"image_id": n, "category_id": 1, "keypoints": flat(person(x)), "score": 1} for n, x in (("b", 9), ("a", 5))]
    (track,) = read_keypoints(write("r.json", rows))
    check(track, [0, 1])
    assert track.keypoints_2d[0, 0, 0] == 25 and "order of their names" in notes(track)


def coco_container(**image):
    images = [{"id": 50 + i, "file_name": f"seq/{i:06d}.jpg", "width": 640, "height": 480, **image} for i in range(4)]
    rows = flat(person(), 2)
    rows[0:3], rows[5] = [0, 0, 0], 1
    annotation = {"id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "keypoints": rows}
    annotations = [{**annotation, "image_id": id, "track_id": 3, "iscrowd": int(id == 52)} for id in (51, 52, 53)]
    category = {"id": 1, "name": "person", "keypoints": list(COCO_NAMES), "skeleton": [[1, 2]]}
    return {"images": images, "annotations": annotations, "categories": [category]}


def test_coco_annotations(write):
    path = write("person_keypoints.json", coco_container())
    (track,) = read_keypoints(path, fps=25)
    check(track, [1, 2, 3])
    assert (track.image_size, track.fps, track.track_id) == ((640, 480), 25.0, 3)
    assert np.isnan(track.keypoints_2d[0, 0]).all() and np.isnan(track.keypoints_2d[1]).all()
    assert track.confidence[0, 1] == 1 and track.confidence_raw[0, 1] == 1 and track.confidence_raw[0, 2] == 2
    np.testing.assert_array_equal(track.keypoints_2d[2, 1:], person()[1:])

    (track,) = read_keypoints(path, image_size=(1280, 960), skeleton="posetrack_17")
    assert track.image_size == (1280, 960) and track.skeleton == "posetrack_17"
    assert "(640, 480)" in notes(track) and "coco_17" in notes(track)


def test_coco_container_is_not_always_coco(write):
    content = coco_container(vid_id="000342")
    content["categories"][0]["keypoints"][1:3] = ["head_bottom", "head_top"]
    assert read_keypoints(write("posetrack.json", content))[0].skeleton == "posetrack_17"
    content["categories"][0]["keypoints"][0] = "root (pelvis)"
    path = write("other.json", content)
    with pytest.raises(ValueError, match=r"other\.json.*root \(pelvis\).*skeleton="):
        read_keypoints(path)
    assert read_keypoints(path, skeleton="h36m_17")[0].skeleton == "h36m_17"


def test_posetrack_predictions_have_ranks_not_tracks(write):
    content = coco_container(vid_id="1")
    left, right = flat(person(100), 1), flat(person(400), 1)
    content["annotations"] = [
        {"image_id": 50 + i, "keypoints": points, "scores": [0.25] * 17, "track_id": rank}
        for i, pair in enumerate([(left, right), (right, left)])
        for rank, points in enumerate(pair)
    ]
    tracks = read_keypoints(write("predictions.json", content))
    assert sorted(t.keypoints_2d[:, 0, 0].tolist() for t in tracks) == [[120, 120], [420, 420]]
    assert (tracks[0].confidence == 0.25).all() and "ranks" in notes(tracks[0])


# ---------------------------------------------------------------------------------------------------------------------
# OpenPose, ControlNet
# ---------------------------------------------------------------------------------------------------------------------


def openpose(*people, **extra):
    empty = {k: [] for k in ("face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "pose_keypoints_3d")}
    return {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": p, **empty} for p in people], **extra}


@pytest.mark.parametrize(("joints", "skeleton"), [(25, "openpose_25"), (18, "openpose_18"), (15, "openpose_mpi_15")])
def test_openpose_folder(write, tmp_path, joints, skeleton):
    rows = flat(person(joints=joints))
    rows[6:9] = [0, 0, 0]
    for i, people in {5: [rows], 6: [], 8: [rows]}.items():
        write(f"out/clip_{i:012d}_keypoints.json", openpose(*people))
    write("out/results.json", {"unrelated": 1})
    (track,) = read_keypoints(tmp_path / "out")
    check(track, [5, 6, 7, 8], skeleton)
    assert np.isnan(track.keypoints_2d[:, 2]).all() and np.isnan(track.keypoints_2d[1:3]).all()
    np.testing.assert_array_equal(track.keypoints_2d[3, 3:], person(joints=joints)[3:])
    assert track.source["format"] == "openpose"


def test_openpose_single_file_and_stride(write, tmp_path):
    (track,) = read_keypoints(write("clip_000000000012_keypoints.json", openpose(flat(person(joints=25)))))
    check(track, [12], "openpose_25")
    for i in range(3, 43, 10):
        write(f"every/clip_{i:012d}_keypoints.json", openpose(flat(person(joints=25))))
    (track,) = read_keypoints(tmp_path / "every", fps=30)
    check(track, [0, 1, 2, 3], "openpose_25")
    assert track.fps == 3 and "one frame in 10" in notes(track) and "10 i + 3" in notes(track)


def test_openpose_keypoint_scales_need_the_image_size(write):
    points = person(joints=18)
    rows = flat(points / [640, 480])
    rows[0:3] = [0, 0, 0]
    path = write("a_1_keypoints.json", openpose(rows))
    with pytest.raises(ValueError, match=r"a_1_keypoints.*image_size"):
        read_keypoints(path)
    (track,) = read_keypoints(path, image_size=(640, 480))
    np.testing.assert_allclose(track.keypoints_2d[0, 1:], points[1:], rtol=1e-5)
    assert np.isnan(track.keypoints_2d[0, 0]).all()

    path = write("b_1_keypoints.json", openpose(flat(points / [320, 240] - 1)))
    (track,) = read_keypoints(path, image_size=(640, 480))
    np.testing.assert_allclose(track.keypoints_2d[0], points, rtol=1e-5)


def test_controlnet(write):
    nested = [[x / 512, y / 768, 1.0] for x, y in person(joints=18)]
    nested[4] = [-1, -1, 0]
    frame = {"people": [{"pose_keypoints_2d": nested, "hand_left_keypoints_2d": None}], "canvas_width": 512}
    (track,) = read_keypoints(write("pose.json", [{**frame, "canvas_height": 768}] * 2))
    check(track, [0, 1], "openpose_18")
    assert track.image_size == (512, 768) and np.isnan(track.keypoints_2d[:, 4]).all()
    np.testing.assert_allclose(track.keypoints_2d[1, 5:], person(joints=18)[5:], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# AlphaPose
# ---------------------------------------------------------------------------------------------------------------------


def alphapose(image, points, idx, c=0.5):
    record = {"image_id": image, "category_id": 1, "keypoints": flat(points, c), "score": 2.4, "box": [1, 2, 3, 4]}
    return {**record, "idx": idx}


@pytest.mark.parametrize("wrap", [lambda i: i, lambda i: [float(i)], lambda i: [[i + 3.0], [float(i)]]])
def test_alphapose_tracks(write, wrap):
    """Frames "10" and "2" come in string order; identities are nested floats; two people cross."""
    rows = []
    for f in sorted(map(str, range(11))):
        rows += [alphapose(f"{f}.jpg", person(100 + 40 * int(f)), wrap(1))]
        rows += [alphapose(f"{f}.jpg", person(500 - 40 * int(f)), wrap(2))]
    tracks = read_keypoints(write("alphapose-results.json", rows))
    assert [t.track_id for t in tracks] == [1, 2]
    for track, xs in zip(tracks, (120 + 40 * np.arange(11), 520 - 40 * np.arange(11))):
        check(track, list(range(11)))
        np.testing.assert_array_equal(track.keypoints_2d[:, 0, 0], xs)


def test_alphapose_void_ids_and_joint_counts(write):
    rows = [alphapose(f"{f}.jpg", person(x, joints=26), [[0.0], [0.0]]) for f in range(3) for x in (100, 500)]
    tracks = read_keypoints(write("alphapose-results.json", rows))
    assert [len(t) for t in tracks] == [3, 3] and "void" in notes(tracks[0]) and "linked" in notes(tracks[0])
    check(tracks[0], [0, 1, 2], "halpe_26")
    assert read_keypoints(write("b.json", [alphapose("0.jpg", person(joints=136), 0.0)]))[0].skeleton == "halpe_136"
    assert "mpii_16" in notes(read_keypoints(write("c.json", [alphapose("0.jpg", person(joints=16), 0.0)]))[0])
    with pytest.raises(ValueError, match="a hand"):
        read_keypoints(write("d.json", [alphapose("0.jpg", person(joints=21), 0.0)]))


def test_alphapose_combined_and_poseflow(write, tmp_path):
    rows = flat(person(joints=18))
    cmu = {f"{f}.jpg": {"version": "AlphaPose v0.3", "bodies": [{"joints": rows}]} for f in (0, 10, 2)}
    check(read_keypoints(write("cmu.json", cmu))[0], list(range(11)), "openpose_18")
    people = {f"{f}.jpg": {"version": "AlphaPose v0.3", "people": [{"pose_keypoints_2d": rows}]} for f in (0, 1)}
    check(read_keypoints(write("open.json", people))[0], [0, 1], "openpose_18")
    for name, content in cmu.items():
        write(f"sep-json/{name[:-4]}.json", content)
    (track,) = read_keypoints(tmp_path / "sep-json")
    check(track, list(range(11)), "openpose_18")
    assert track.source["format"] == "alphapose"
    flow = {f"{f}.jpg": [{"keypoints": flat(person(), 1.5), "scores": 2.0, "idx": 4}] for f in (1, 0)}
    (track,) = read_keypoints(write("tracked.json", {"2.jpg": [], **flow}))
    check(track, [0, 1])
    assert track.track_id == 4 and (track.confidence == 1).all() and (track.confidence_raw == 1.5).all()


# ---------------------------------------------------------------------------------------------------------------------
# MMPose, Sapiens, ViTPose
# ---------------------------------------------------------------------------------------------------------------------


def instance(points, score=0.5, box=((280.8, 44.7, 499.5, 391.4),), box_score=0.97):
    return {
        "keypoints": points.tolist(),
        "keypoint_scores": [score] * len(points),
        "bbox": box,
        "bbox_score": box_score,
    }


def test_mmpose_video(write):
    frames = [{"frame_id": i, "instances": [instance(person(100 + i), 1.11)] if i != 1 else []} for i in range(3)]
    (track,) = read_keypoints(write("video.json", frames))
    check(track, [0, 1, 2])
    np.testing.assert_array_equal(track.keypoints_2d[2], person(102))
    assert np.isnan(track.keypoints_2d[1]).all()
    assert (track.confidence[0] == 1).all() and (track.confidence_raw[0] == np.float32(1.11)).all()


def test_mmpose_demo_counts_from_one_and_names_the_data_set(write):
    meta = {"dataset_name": "halpe26", "num_keypoints": 26, "flip_indices": {"__ndarray__": [0], "shape": [1]}}
    frames = [{"frame_id": i, "instances": [instance(person(joints=26))]} for i in (1, 2, 3)]
    (track,) = read_keypoints(write("results_v.json", {"meta_info": meta, "instance_info": frames}))
    check(track, [0, 1, 2], "halpe_26")
    content = {"meta_info": {"dataset_name": "posetrack18"}, "instance_info": [instance(person())]}
    check(read_keypoints(write("results_i.json", content))[0], [0], "posetrack_17")
    content["meta_info"]["dataset_name"] = "mine"
    with pytest.raises(ValueError, match=r"'mine'.*skeleton="):
        read_keypoints(write("results_m.json", content))


def test_mmpose_images_sapiens_and_whole_image_fallback(write, tmp_path):
    (track,) = read_keypoints(write("one.json", [instance(person(joints=133))]))
    check(track, [0], "wholebody_133")
    for i in (2, 10):
        write(f"sapiens/{i}.json", {"instance_info": [{"keypoints": person().tolist(), "keypoint_scores": [0.5] * 17}]})
    check(read_keypoints(tmp_path / "sapiens")[0], list(range(2, 11)))
    ghost = instance(person(), 0.1, [[0, 0, 640, 480]], 1.0)
    (track,) = read_keypoints(write("ghost.json", [ghost]))
    assert "whole image" in notes(track)


def test_mmpose_3d_is_refused(write):
    points = np.column_stack([person(), np.ones(17)])
    with pytest.raises(ValueError, match=r"three\.json.*3D"):
        read_keypoints(write("three.json", [instance(points)]))


def test_vitpose_scatters_joints_by_label(write):
    points = person()
    some = {"keypoints": points[[0, 5, 16]].tolist(), "scores": [0.9, 0.8, 0.7], "labels": [0, 5, 16], "bbox": [0] * 4}
    (track,) = read_keypoints(write("vitpose.json", [[some], [], [some]]))
    check(track, [0, 1, 2])
    assert np.isfinite(track.keypoints_2d[0]).all(-1).nonzero()[0].tolist() == [0, 5, 16]
    np.testing.assert_array_equal(track.keypoints_2d[2, [0, 5, 16]], points[[0, 5, 16]])


# ---------------------------------------------------------------------------------------------------------------------
# Ultralytics
# ---------------------------------------------------------------------------------------------------------------------


def yolo(points, track_id=None, name="person", c=0.5):
    x, y = points.T.tolist()
    record = {"name": name, "class": 0 if name == "person" else 16, "confidence": 0.9, "box": {"x1": 1, "y1": 2}}
    record["keypoints"] = {"x": x, "y": y, "visible": [c] * len(x)}
    return record if track_id is None else {**record, "track_id": track_id}


def test_ultralytics_json_in_all_wrappings(write):
    points = person()
    points[3] = 0  # older versions blank doubtful joints, but keep their confidence
    frames = [[yolo(points, 5), yolo(person(400), name="dog")], [], [yolo(points, 5)]]
    for index, content in enumerate([frames, json.dumps(frames), [json.dumps(f) for f in frames], "\n".join(map(json.dumps, frames))]):
        (track,) = read_keypoints(write(f"{'abcd'[index]}.json", content))
        check(track, [0, 1, 2])
        assert track.track_id == 5 and track.source["format"] == "ultralytics"
        assert np.isnan(track.keypoints_2d[0, 3]).all() and np.isnan(track.keypoints_2d[1]).all()
        np.testing.assert_array_equal(track.keypoints_2d[2, 4:], points[4:])
    (track,) = read_keypoints(write("e.json", [yolo(points / [640, 480])]), image_size=(640, 480))
    np.testing.assert_allclose(track.keypoints_2d[0, 4:], points[4:], rtol=1e-5)


def test_ultralytics_people_without_id_get_new_ones(write):
    frames = [[yolo(person(100), 1), yolo(person(400))], [yolo(person(100), 1), yolo(person(402))]]
    tracks = read_keypoints(write("a.json", frames))
    assert [(t.track_id, len(t)) for t in tracks] == [(1, 2), (2, 2)]


def yolo_line(points, *rest, channels=3, c=0.5):
    rows = np.column_stack([points / [640, 480], np.full(len(points), c)])[:, :channels]
    return " ".join(f"{v:g}" for v in [0, 0.5, 0.5, 0.2, 0.4, *rows.ravel(), *rest])


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("rest", [(), (0.91,), (7,), (0.91, 7)])
def test_yolo_labels(write, tmp_path, channels, rest):
    line = yolo_line(person(), *rest, channels=channels)
    write("labels/clip_1.txt", line + "\n" + line + "\n")  # a second run appends the same lines
    write("labels/clip_10.txt", line + "\n")
    write("labels/classes.txt", "person\n")
    with pytest.raises(ValueError, match="image_size"):
        read_keypoints(tmp_path / "labels")
    (track,) = read_keypoints(tmp_path / "labels", image_size=(640, 480))
    check(track, list(range(10)))
    np.testing.assert_allclose(track.keypoints_2d[0], person(), atol=0.01)
    assert (track.confidence[0] == (0.5 if channels == 3 else 1)).all()
    assert track.track_id == (7 if 7 in rest else 0) and "exact copies" in notes(track)


def test_yolo_detections_and_labels_of_one_image(write):
    with pytest.raises(ValueError, match="boxes only"):
        read_keypoints(write("a_1.txt", "0 0.5 0.5 0.2 0.3 0.9\n"), image_size=(640, 480))
    with pytest.raises(ValueError, match="numbers only"):
        read_keypoints(write("b_1.txt", "0 0.5 person\n"), image_size=(640, 480))
    points = person()
    points[0] = 0
    (track,) = read_keypoints(write("frame0004.txt", yolo_line(points, c=2)), image_size=(640, 480))
    check(track, [4])
    assert np.isnan(track.keypoints_2d[0, 0]).all() and (track.confidence[0, 1:] == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# MediaPipe
# ---------------------------------------------------------------------------------------------------------------------


def landmarks(points, **extra):
    return [{"x": x / 640, "y": y / 480, "z": -0.4, **extra} for x, y in points]


def test_mediapipe_dumps(write):
    one = landmarks(person(joints=33), visibility=0.75)
    for content, frames in [
        ([{"frame": 4, "landmarks": one}, {"frame": 6, "landmarks": one}], [4, 5, 6]),
        ([{"timestamp_ms": 0, "landmarks": [one]}, {"timestamp_ms": 33, "landmarks": []}], [0]),
        ({"pose_landmarks": [one], "pose_world_landmarks": []}, [0]),
        ({"landmark": one}, [0]),
        ([{"pose_landmarks": {"landmark": one}}], [0]),
        ([one, one], [0, 1]),
    ]:
        path = write("mp.json", content)
        assert detect_format(path) == "mediapipe"
        (track,) = read_keypoints(path, image_size=(640, 480))
        check(track, frames, "mediapipe_33")
        np.testing.assert_allclose(track.keypoints_2d[-1], person(joints=33), rtol=1e-5)
        assert (track.confidence[0] == 0.75).all()
    with pytest.raises(ValueError, match="image_size"):
        read_keypoints(path)
    (track,) = read_keypoints(write("h.json", {"frameRate": 30, "width": 640, "height": 480, "poses": [one]}))
    assert (track.fps, track.image_size) == (30, (640, 480))


def test_mediapipe_traps(write):
    (track,) = read_keypoints(write("a.json", [landmarks(person(joints=33), visibility=2.0)]), image_size=(640, 480))
    np.testing.assert_allclose(track.confidence, 1 / (1 + np.exp(-2.0)), rtol=1e-6)
    pixels = [{"x": x, "y": y, "z": 0.0, "visibility": None, "presence": 0.5} for x, y in person(joints=33)]
    (track,) = read_keypoints(write("b.json", [{"frame": 0, "landmarks": pixels}]))
    np.testing.assert_array_equal(track.keypoints_2d[0], person(joints=33))
    assert (track.confidence == 0.5).all()
    world = [{"x": x, "y": y, "z": 0.1} for x, y in (person(joints=33) - person(joints=33)[[23, 24]].mean(0)) / 100]
    for content in ([{"frame": 0, "landmarks": world}], {"pose_world_landmarks": [world]}):
        with pytest.raises(ValueError, match="3D"):
            read_keypoints(write("c.json", content), image_size=(640, 480))


# ---------------------------------------------------------------------------------------------------------------------
# NumPy files
# ---------------------------------------------------------------------------------------------------------------------


def same(a: KeypointTrack, b: KeypointTrack) -> None:
    for name in ("keypoints_2d", "confidence", "confidence_raw", "frame"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("track_id", "skeleton", "image_size", "fps", "source"):
        assert getattr(a, name) == getattr(b, name)


def make_track(frames, track_id, seed=0, **extra):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 500, (len(frames), 17, 2)).astype(np.float32)
    points[rng.random((len(frames), 17)) < 0.2] = np.nan
    points[0, 0] = 0  # a joint may stand in the corner of the image
    raw = rng.uniform(0, 1.4, (len(frames), 17)).astype(np.float32)
    options = {"image_size": (640, 480), "fps": 29.97, "source": {"path": "a.json", "format": "mmpose", "notes": ["é"]}}
    return KeypointTrack(points, raw.clip(0, 1), frames, track_id, "coco_17", confidence_raw=raw, **{**options, **extra})


def test_what_we_write_reads_back_equal(tmp_path):
    path = tmp_path / "tracks.npz"
    tracks = [make_track(np.arange(3, 23), 4), make_track(np.arange(0, 7), 1, seed=1)]
    write_keypoints(path, tracks)
    for written, read in zip(tracks, read_keypoints(path)):
        same(written, read)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_keypoints(path, tracks)
    plain = [make_track(np.arange(2), 0, image_size=None, fps=None, source={"path": "b", "format": "npy", "notes": []})]
    write_keypoints(path, plain, overwrite=True)
    same(plain[0], read_keypoints(path)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.npz"]
    np.load(path, allow_pickle=False)["source"]
    (track,) = read_keypoints(path, fps=25, image_size=(10000, 10000))
    assert track.fps == 25 and track.image_size == (10000, 10000)


def test_every_format_survives_the_round_trip(write, tmp_path):
    rows = [alphapose(f"{f}.jpg", person(x), 0.0, 1.2) for f in (0, 1, 5) for x in (100, 400)]
    tracks = read_keypoints(write("alphapose.json", rows), image_size=(640, 480))
    write_keypoints(tmp_path / "own.npz", tracks)
    for written, read in zip(tracks, read_keypoints(tmp_path / "own.npz")):
        same(written, read)


def test_writing_fails_whole(tmp_path, monkeypatch):
    path = tmp_path / "tracks.npz"
    tracks = [make_track(np.arange(3), 0)]
    for bad, message in [([], "at least one"), ([*tracks, make_track(np.arange(2), 1, fps=None)], "fps")]:
        with pytest.raises(ValueError, match=message):
            write_keypoints(path, bad)
    with pytest.raises(ValueError, match=r"\.npz"):
        write_keypoints(tmp_path / "tracks.json", tracks)
    with pytest.raises(FileNotFoundError):
        write_keypoints(tmp_path / "none" / "tracks.npz", tracks)
    write_keypoints(path, tracks)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        write_keypoints(path, tracks, overwrite=True)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["tracks.npz"]


def test_npz_of_a_user(tmp_path):
    path = tmp_path / "mine.npz"
    points = np.stack([person(x) for x in (100, 101, 102)])
    np.savez(path, keypoints_2d=points, skeleton="coco_17", fps=50, image_size=(640, 480))
    (track,) = read_keypoints(path)
    check(track, [0, 1, 2])
    assert (track.fps, track.image_size) == (50.0, (640, 480)) and (track.confidence == 1).all()

    two = np.stack([points, points + 300])
    two[1, 0] = 0
    np.savez(path, keypoints_2d=two, confidence=np.full((2, 3, 17), 0.5), track_id=[8, 9], frame=[4, 5, 8])
    tracks = read_keypoints(path, skeleton="h36m_17")
    assert [t.track_id for t in tracks] == [8, 9]
    check(tracks[1], [4, 5, 6, 7, 8], "h36m_17")
    assert np.isnan(tracks[1].keypoints_2d[[0, 2, 3]]).all() and (tracks[1].confidence[1] == 0.5).all()

    np.savez(path, keypoints_2d=np.concatenate([points, np.full((3, 17, 1), 1.25)], -1), skeleton="body_25")
    with pytest.raises(ValueError, match=r"mine\.npz.*25 joints.*found 17"):
        read_keypoints(path)
    (track,) = read_keypoints(path, skeleton="coco_17")
    assert (track.confidence == 1).all() and (track.confidence_raw == 1.25).all()


def test_bare_arrays_by_shape(tmp_path):
    path = tmp_path / "bare.npy"
    points = np.stack([person(100 + i) for i in range(30)])
    scored = np.concatenate([points, np.full((30, 17, 1), 0.5)], -1)
    several = np.stack([points, points + 300])
    for array, count, first in [
        (points, 1, 30),
        (scored, 1, 30),
        (scored.reshape(30, 51), 1, 30),
        (points[0], 1, 1),
        (several, 2, 30),
        (np.swapaxes(several, 0, 1), 2, 30),
        (several.astype(np.float32)[:1], 1, 30),
    ]:
        np.save(path, array)
        tracks = read_keypoints(path, skeleton="coco_17")
        assert len(tracks) == count
        check(tracks[0], list(range(first)))
        np.testing.assert_array_equal(tracks[0].keypoints_2d, points[:first])
    rows = np.swapaxes(np.concatenate([scored[..., :2], np.zeros((30, 17, 1)), scored[..., 2:]], -1), 1, 2)
    np.savez(tmp_path / "detectron.npz", keypoints=rows)
    (track,) = read_keypoints(tmp_path / "detectron.npz", skeleton="coco_17")
    assert (track.confidence == 0.5).all()
    np.testing.assert_array_equal(track.keypoints_2d, points)
    np.savez(tmp_path / "lifter.npz", reconstruction=scored[None])
    assert read_keypoints(tmp_path / "lifter.npz")[0].skeleton == "h36m_17"
    np.savez(tmp_path / "scores.npz", keypoints=several, scores=several[..., 0] * 0 + 0.25)
    assert (read_keypoints(tmp_path / "scores.npz", skeleton="coco_17")[0].confidence == 0.25).all()
    mp = np.stack([np.column_stack([person(joints=33) / [640, 480], np.full(33, -0.3), np.full(33, 0.5)])] * 3)
    np.save(path, mp)
    (track,) = read_keypoints(path, image_size=(640, 480))
    check(track, [0, 1, 2], "mediapipe_33")
    np.testing.assert_allclose(track.keypoints_2d[0], person(joints=33), rtol=1e-5)


def test_numbers_in_json(write):
    points = person(joints=18).tolist()
    points[3] = [None, None]
    (track,) = read_keypoints(write("a.json", [points, points]))
    check(track, [0, 1], "openpose_18")
    assert track.source["format"] == "numbers" and np.isnan(track.keypoints_2d[:, 3]).all()
    np.testing.assert_array_equal(track.keypoints_2d[1, 4:], person(joints=18)[4:])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((5, 17, 2)) * 50, "several skeletons.*h36m_17"),
        (np.ones((5, 25, 2)) * 50, "several skeletons.*openpose_25b"),
        (np.ones((5, 19, 2)) * 50, "no known 2D skeleton has 19"),
        (np.random.default_rng(0).normal(0, 0.5, (5, 17, 3)), "3D"),
        (np.random.default_rng(0).uniform(500, 900, (5, 17, 3)), "3D"),
        (np.random.default_rng(0).uniform(0, 1, (5, 18, 2)), "normalised"),
        (np.ones((5, 5, 18, 2)) * 50, "cannot be told apart"),
        (np.ones((5, 18, 7)) * 50, "shape"),
        (np.ones((5, 61)) * 50, "reshape"),
        (np.zeros((5, 18, 2)), "only missing"),
        (np.array([["a", "b"]]), "numbers"),
        (np.array([{"a": 1}], dtype=object), "pickled Python objects"),
    ],
)
def test_bare_arrays_refused(tmp_path, array, message):
    path = tmp_path / "bare.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=f"bare.npy.*{message}"):
        read_keypoints(path)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_pickled_members(tmp_path, capsys):
    """VideoPose3D's and Detectron's objects are restored, anything else is refused, and nothing is ever run."""
    views = [np.stack([person(x)] * 5) for x in (100, 300)]
    symmetry = {"layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": [[4], [1]]}
    path = tmp_path / "data_2d_h36m_cpn.npz"
    np.savez(path, positions_2d={"S9": {"Walking": views}, "S11": {"Eating 1": views[:1]}}, metadata=symmetry)
    tracks = read_keypoints(path)
    assert [(t.track_id, t.source["notes"][0]) for t in tracks] == [(0, "S9/Walking/0"), (1, "S9/Walking/1"), (2, "S11/Eating 1/0")]
    check(tracks[1], [0, 1, 2, 3, 4], "h36m_17")
    np.testing.assert_array_equal(tracks[1].keypoints_2d, views[1])
    assert tracks[0].image_size is None and "no confidences" in notes(tracks[0])

    np.savez(path, positions_2d=np.array({"S9": views}, dtype=object), metadata=symmetry)
    with pytest.raises(ValueError, match=r"cpn\.npz.*layout of 'videopose3d'"):
        read_keypoints(path)
    np.savez(path, positions_2d=np.array(Evil(), dtype=object), metadata=symmetry)
    with pytest.raises(ValueError, match=r"cpn\.npz.*would run code"):
        read_keypoints(path)
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.ones((1, 17, 2)), np.ones((2, 17, 2))]
    np.savez(tmp_path / "ragged.npz", keypoints=ragged, scores=ragged)
    with pytest.raises(ValueError, match=r"ragged\.npz.*pickled Python objects in 'keypoints'.*np\.savez"):
        read_keypoints(tmp_path / "ragged.npz")
    assert capsys.readouterr().out == ""


def test_detectron_without_anybody(tmp_path):
    np.savez(tmp_path / "clip.mp4.npz", boxes=[[[], []]] * 3, keypoints=[[[], []]] * 3, metadata={"w": 640, "h": 480})
    assert detect_format(tmp_path / "clip.mp4.npz") == "detectron"
    with pytest.warns(UserWarning, match="no person in any of 3 frames"):
        assert read_keypoints(tmp_path / "clip.mp4.npz") == []


def test_results_of_ours_are_read_in_the_joints_of_their_input(tmp_path):
    points = np.stack([person()] * 3)
    np.savez(tmp_path / "out.npz", keypoints_2d=points, pose=np.ones((3, 17, 3)), skeleton="h36m_17", input_skeleton="coco_17")
    assert read_keypoints(tmp_path / "out.npz")[0].skeleton == "coco_17"


# ---------------------------------------------------------------------------------------------------------------------
# Joints by name: DeepLabCut, SLEAP
# ---------------------------------------------------------------------------------------------------------------------


def deeplabcut(frames, names, individuals=None, index=None, axes=("x", "y", "likelihood")):
    """`frames`: per frame the values of all columns."""
    columns = [(who, name, axis) for who in individuals or [""] for name in names for axis in axes]
    heads = [["scorer"] + ["me"] * len(columns)]
    heads += [["individuals", *(who for who, _, _ in columns)]] if individuals else []
    heads += [["bodyparts", *(name for _, name, _ in columns)], ["coords", *(axis for _, _, axis in columns)]]
    rows = [[str(i) if index is None else index[i], *map(str, values)] for i, values in enumerate(frames)]
    return "\n".join(",".join(row) for row in [*heads, *rows])


LIMBS = [name for name in COCO_NAMES if name.split("_")[-1] in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")]


@pytest.mark.parametrize(
    "spell",
    [
        str,
        str.upper,
        lambda name: name.replace("_", " "),
        lambda name: "{1}.{0}".format(*name.title().split("_"))[:-3] if "Right" in name else name,
        lambda name: f"{name.split('_')[1]}_{name[0].upper()}",
        lambda name: name[0].upper() + name.split("_")[1].title(),
        lambda name: "".join(map(str.title, name.split("_"))),
    ],
)
def test_deeplabcut_joints_in_any_spelling(write, spell):
    names = [spell(name) for name in LIMBS] + ["Nose", "racket"]
    points = {name: xy for name, xy in zip(COCO_NAMES, person())}
    values = [*(v for name in LIMBS for v in (*points[name], 0.5)), *points["nose"], 0.25, 1, 1, 1]
    (track,) = read_keypoints(write("clipDLC.csv", deeplabcut([values, ["" for _ in values], values], names)))
    check(track, [0, 1, 2])
    assert np.isnan(track.keypoints_2d[0, 1:5]).all() and np.isnan(track.keypoints_2d[1]).all()
    np.testing.assert_array_equal(track.keypoints_2d[2, 5:], person()[5:])
    np.testing.assert_array_equal(track.confidence[0], [0.25, 0, 0, 0, 0, *[0.5] * 12])
    assert "racket" in notes(track)


def test_deeplabcut_several_and_labelled_by_hand(write, tmp_path):
    values = person().ravel().tolist()
    table = deeplabcut([values * 2] * 2, COCO_NAMES, ["ann", "ben"], ["labeled-data/a/img04.png", "labeled-data/a/img06.png"], ("x", "y"))
    rows = [row.split(",") for row in table.splitlines()]
    rows = [[*row, *extra] for row, extra in zip(rows, [["me"] * 2, ["single"] * 2, ["net"] * 2, ["x", "y"], [5, 5], [6, 6]])]
    tracks = read_keypoints(write("CollectedData.csv", "\n".join(",".join(map(str, row)) for row in rows)))
    assert [t.track_id for t in tracks] == [0, 1] and "ann, ben" in notes(tracks[0])
    check(tracks[1], [4, 5, 6])
    assert (tracks[1].confidence[[0, 2]] == 1).all() and np.isnan(tracks[1].keypoints_2d[1]).all()


def test_joints_of_no_person(write):
    names = ["snout", "tail", "left_hip"]
    with pytest.raises(ValueError, match=r"mouse\.csv.*left and right shoulder.*'snout', 'tail', 'left_hip'.*right_hip.*rename"):
        read_keypoints(write("mouse.csv", deeplabcut([[1] * 9], names)))
    values = [v for xy in person() for v in (*xy, 0.5)]
    path = write("person.csv", deeplabcut([values], COCO_NAMES))
    (track,) = read_keypoints(path, skeleton="halpe_26")
    assert track.skeleton == "halpe_26" and np.isnan(track.keypoints_2d[0, 17:]).all()
    with pytest.raises(ValueError, match="row 5"):
        read_keypoints(write("cut.csv", path.read_text() + "\n1,2,3"))


def test_sleap_without_tracks_and_scores(tmp_path):
    h5py = pytest.importorskip("h5py")
    points = np.stack([person(100 + f) for f in range(4)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tracks"] = points.transpose(2, 1, 0)[None]
        file["node_names"], file["track_names"] = [name.encode() for name in COCO_NAMES], np.empty(0)
    (track,) = read_keypoints(tmp_path / "a.h5")
    check(track, [0, 1, 2, 3])
    np.testing.assert_array_equal(track.keypoints_2d, points)
    assert (track.confidence == 1).all() and "first one in the export" in notes(track)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["tracks"]
        file["tracks"] = points
    with pytest.raises(ValueError, match=r"a\.h5.*\(tracks, 2, 17 nodes, frames\), found \(4, 17, 2\)"):
        read_keypoints(tmp_path / "a.h5")


def test_other_hdf5_files(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "clipDLC.h5", "w") as file:
        file.create_group("df_with_missing")
    with pytest.raises(ValueError, match=r"clipDLC\.h5.*DeepLabCut's: pass the \.csv"):
        read_keypoints(tmp_path / "clipDLC.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = [1, 2]
    with pytest.raises(ValueError, match=r"other\.h5.*an HDF5 file with 'images'"):
        read_keypoints(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.h5.*cannot be read"):
        read_keypoints(tmp_path / "text.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"other\.h5.*pip install probpose\[datasets\]"):
        read_keypoints(tmp_path / "other.h5")


# ---------------------------------------------------------------------------------------------------------------------
# Identities
# ---------------------------------------------------------------------------------------------------------------------


def coco(frames) -> list[dict]:
    rows = [(f, p) for f, people in frames.items() for p in people]
    return [{"image_id": f, "category_id": 1, "keypoints": flat(p), "score": 0.9} for f, p in rows]


@pytest.mark.parametrize("speed", [3, 11, 20])
def test_crossing_people_keep_their_identity(write, speed):
    """Two people walk through each other; records are shuffled; one is unseen for some frames, noise everywhere."""
    rng = np.random.default_rng(speed)
    frames = {}
    for f in range(60):
        pair = [person(300 + speed * (f - 30)), person(310 - speed * (f - 30), 60)]
        pair = [p + rng.normal(0, 1, p.shape) for p in pair]
        frames[f] = pair[::-1] if f % 2 else pair
        if 40 <= f < 46:
            frames[f] = [pair[0]]
    rows = coco(frames)
    rng.shuffle(rows)
    tracks = read_keypoints(write("results.json", rows))
    assert [t.observed.sum() for t in tracks] == [60, 54] and [t.track_id for t in tracks] == [0, 1]
    np.testing.assert_allclose(tracks[0].keypoints_2d[:, 0, 0], 320 + speed * (np.arange(60) - 30), atol=6)
    seen = tracks[1].observed
    expected = 330 - speed * (np.arange(60) - 30)
    np.testing.assert_allclose(tracks[1].keypoints_2d[seen, 0, 0], expected[seen], atol=6)
    check(tracks[1], list(range(60)))
    assert (~seen).nonzero()[0].tolist() == list(range(40, 46))


def test_linking_drops_nothing_and_ends_tracks(write):
    frames = {0: [person(100), person(1000)], 1: [person(101)], 50: [person(101)], 51: [person(101), person(103, 300)]}
    tracks = read_keypoints(write("results.json", coco(frames)))
    assert sorted(t.frame.tolist() for t in tracks) == [[0], [0, 1], [50, 51], [51]]
    assert sum(t.observed.sum() for t in tracks) == 6
    tracks = read_keypoints(write("results.json", coco({0: [person()], 30: [person()], 31: [person()]})), fps=60)
    assert [len(t) for t in tracks] == [32]


def test_link_is_independent_of_order_and_scale():
    rng = np.random.default_rng(0)
    frame = np.repeat(np.arange(30), 3)
    points = np.stack([person(100 + 70 * p + 2 * f) for f in range(30) for p in range(3)])
    points += rng.normal(0, 1, points.shape)
    points[rng.random(points.shape[:2]) < 0.3] = np.nan
    expected = np.tile(np.arange(3), 30)
    np.testing.assert_array_equal(link(frame, points), expected)
    np.testing.assert_array_equal(link(frame, 7 * points), expected)
    order = rng.permutation(90)
    shuffled = link(frame[order], points[order])
    assert len(set(zip(shuffled.tolist(), expected[order].tolist()))) == 3
    halves = points.copy()  # successive detections of a person share no joint
    halves[frame % 2 == 0, :8], halves[frame % 2 == 1, 8:] = np.nan, np.nan
    assert link(frame, halves).max() >= 2


def test_duplicate_claims_to_an_identity(write):
    rows = [{**r, "track_id": 2} for r in coco({0: [person(100)], 1: [person(100), person(500)], 2: [person(100)]})]
    rows += [{**r, "track_id": 1} for r in coco({0: [person(800)]})]
    rows[2]["score"] = 0.1
    tracks = read_keypoints(write("results.json", rows))
    assert [(t.track_id, t.frame.tolist()) for t in tracks] == [(2, [0, 1, 2]), (1, [0]), (3, [1])]
    assert "repeat a track id" in notes(tracks[0])


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------


POSETRACK = {"annopoints": [{"point": [{"id": [16], "x": [1], "y": [2]}]}]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.json", "", "empty file"),
        ("blank.json", "  \n", "empty file"),
        ("cut.json", json.dumps(coco({0: [person()]}))[:-40], "cut short"),
        ("broken.json", '[{"image_id": 1, "keypoints" [1, 2]}]', "error at character"),
        ("other.json", {"name": "me", "values": [1, 2]}, "keys 'name', 'values'.*Looked for.*openpose: .*pose_keypoints_2d.*format="),
        ("number.json", "3", "the value '3'"),
        ("boxes.json", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "found only.*boxes"),
        ("instances.json", {"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}, "boxes only"),
        ("detect.json", [{"name": "person", "class": 0, "box": {"x1": 1}}], "boxes only"),
        ("flat.json", [{"image_id": 1, "keypoints": [1.0] * 50}], "found 50 for person 0"),
        ("ragged.json", [{"image_id": i, "keypoints": [9.0] * n} for i, n in enumerate((51, 51, 54))], "frame 2"),
        ("count.json", [{"image_id": 1, "keypoints": [9.0] * 57}], "no known 2D skeleton has 19 joints"),
        ("text.json", [{"image_id": 1, "keypoints": ["a"] * 51}], "plain numbers"),
        ("unit.json", [{"image_id": 1, "keypoints": [0.5, 0.4, 0.9] * 17}], "normalised"),
        ("only3d_1_keypoints.json", {"people": [{"pose_keypoints_2d": [], "pose_keypoints_3d": [1.0] * 100}]}, "3D"),
        ("hands.json", {"people": [{"pose_keypoints_2d": [], "hand_left_keypoints_2d": [1.0] * 63}]}, "without any"),
        ("videos.json", [{"image_id": f"{v}_1", "keypoints": [9.0] * 51} for v in "ab"], "one video"),
        ("file.csv", "frame,x,y", "a table with columns 'frame', 'x', 'y'.*deeplabcut"),
        ("blank.csv", "\n\n", "empty table"),
        ("file.xml", "<a/>", "suffix '.xml'.*Looked for.*coco_results"),
        ("file", "x", "no suffix.*Looked for"),
        ("file.h5.slp", "x", "SLEAP project.*sleap-convert"),
        ("clip.MP4", "x", r"a video: `probpose sample clip.MP4`.*probpose\[video\].*probpose.video.read_video"),
        ("photo.jpg", "x", "an image"),
        ("closed.json", json.dumps(coco({0: [person()]}))[:-1], "cut short.* with ']' at its end"),
        ("comma.json", json.dumps(coco({0: [person()]}))[:-1] + ",", "with ']' at its end in place of the comma"),
        ("nested.json", [[[1, 2], [3]]], "nested lists of numbers"),
        ("feet.json", [{"image_id": 1, "keypoints": [9.0] * 18}], "which is feet"),
        ("ours.json", {"images": [], "annotations": [{"keypoints_3d": [[1, 2, 3]]}]}, "3D results"),
        ("ids.json", {"annolist": [{"image": [{"name": ["1.jpg"]}], "annorect": [POSETRACK]}]}, "joint ids 0 … 14, found .16."),
        ("scores.json", [{"keypoints": [[[1, 2]] * 17], "scores": []}], "scores of 1 people, found 0"),
        ("file.pkl", "x", "pickle"),
        ("file.npz", "no zip", "cannot be read"),
        ("file.npy", "no array", "cannot be read"),
    ],
)
def test_refusals_name_the_file(write, name, content, message):
    path = write(name, content)
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        read_keypoints(path)


def test_unknown_files_are_compared_with_all_formats(write):
    """What was found, what was looked for, what comes nearest, and how to insist."""
    path = write("mine.json", {"frames": [{"frame_id": 0, "people_found": [{"keypoint_scores": [1], "joints": [1]}]}]})
    with pytest.raises(ValueError) as caught:
        read_keypoints(path)
    message = str(caught.value)
    assert str(path) in message and "keys 'frames'" in message and "format=... (--format" in message
    assert all(f"\n  {name}: " in message for name in list_formats())
    assert message.count("(keypoint_scores") == 1 and re.search(r"The closest, .*: mmpose \(keypoint_scores\), \w+ \(joints\)", message)
    path = write("results.txt.bak", coco({0: [person()]}))
    with pytest.raises(ValueError, match=r"suffix '\.bak'"):
        read_keypoints(path)
    assert len(read_keypoints(path, format="coco_results")) == 1


def test_refused_paths_and_folders(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        read_keypoints(tmp_path / "nowhere.json")
    write("folder/notes.txt", "hello")
    with pytest.raises(FileNotFoundError, match=r"folder.*_keypoints\.json"):
        read_keypoints(tmp_path / "folder")
    write("run/labels/a_1.txt", "")
    with pytest.raises(FileNotFoundError, match="labels"):
        read_keypoints(tmp_path / "run")
    write("mixed/1.json", openpose(flat(person(joints=25))))
    write("mixed/2.json", [instance(person())])
    with pytest.raises(ValueError, match=r"mixed.*1 × openpose, 1 × mmpose"):
        read_keypoints(tmp_path / "mixed")
    for stem in "ab":
        write(f"two/{stem}_000000000000_keypoints.json", openpose(flat(person(joints=25))))
    with pytest.raises(ValueError, match="one video"):
        read_keypoints(tmp_path / "two")
    path = tmp_path / "cut.npz"
    write_keypoints(path, [make_track(np.arange(9), 0)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.npz.*cannot be read"):
        read_keypoints(path)
    np.savez(path, hypotheses=np.ones((4, 9, 17, 3)), pose=np.ones((9, 17, 3)))
    with pytest.raises(ValueError, match=r"(?s)cut\.npz.*'hypotheses' \(4, 9, 17, 3\).*keypoints_2d"):
        read_keypoints(path)


@pytest.mark.parametrize("size", [(0, 10), (-640, 480), (640,), (640.5, 480), (float("nan"), 3), "640x480", 640])
def test_bad_image_size(write, size):
    with pytest.raises(ValueError, match="image_size must be"):
        read_keypoints(write("r.json", coco({0: [person()]})), image_size=size)


def test_bad_arguments(write):
    path = write("r.json", coco({0: [person()]}))
    for fps in (0, -25, float("nan")):
        with pytest.raises(ValueError, match="fps must be"):
            read_keypoints(path, fps=fps)
    with pytest.raises(ValueError, match=r"format must be one of.*'coco'"):
        read_keypoints(path, format="coco")
    with pytest.raises(ValueError, match=r"r\.json.*expected.*'mmpose'"):
        read_keypoints(path, format="mmpose")
    with pytest.raises(ValueError, match=r"r\.json.*25 joints.*found 17 \(coco_17"):
        read_keypoints(path, skeleton="openpose_25")
    with pytest.raises(ValueError, match="coco17"):
        read_keypoints(path, skeleton="coco17")
    assert read_keypoints(path, format="alphapose")[0].source["format"] == "alphapose"
    assert set(list_formats()) >= {"npz", "npy", "coco_results", "openpose", "mmpose", "alphapose", "mediapipe"}


@pytest.mark.parametrize(
    ("content", "frames"),
    [([], 0), ({}, 0), ([[], [], []], 3), ([{"frame_id": 0, "instances": []}], 1), ({"people": []}, 1)],
)
def test_nobody_is_no_error(write, content, frames):
    with pytest.warns(UserWarning, match=rf"none\.json: no person in any of {frames} frames"):
        assert read_keypoints(write("none.json", content)) == []


def test_missing_frames_and_their_order_are_noted(write):
    frames = [9, 8, 1, 2, 5, 12]
    (track,) = read_keypoints(write("r.json", coco({f: [person()] for f in frames})))
    check(track, list(range(1, 13)))
    assert "6 frames between 1 and 12 are not in the file: 3-4, 6-7, 10-11" in notes(track)
    assert "order of their numbers" in notes(track)
    (track,) = read_keypoints(write("s.json", coco({f: [person()] for f in (0, 2, 4, 8)})))
    check(track, [0, 1, 2, 3, 4])
    assert "1 frames between 0 and 4 are not in the file: 3" in notes(track) and "one frame in 2" in notes(track)
    rows = [{**row, "image_id": f"{name}_{row['image_id']}"} for name, row in zip("aab", coco({f: [person()] for f in (0, 1, 2)}))]
    (track,) = read_keypoints(write("t.json", rows))
    assert "one video: a_…, b_…" in notes(track) and "not in the file" not in notes(track)


def test_contradictions_are_noted(write):
    path = write("r.json", coco({0: [person(3000)]}))
    assert "beyond image_size" in notes(read_keypoints(path, image_size=(640, 480))[0])
    upside_down = person() * [1, -1] + [0, 400]
    assert "upright" in notes(read_keypoints(write("u.json", coco({0: [upside_down]})))[0])
    assert "upright" not in notes(read_keypoints(path)[0])


def test_track_checks_itself():
    good = {"keypoints_2d": np.ones((2, 17, 2)), "confidence": np.ones((2, 17)), "frame": [3, 4]}
    track = KeypointTrack(**good, track_id=0, skeleton="coco_17")
    assert len(track) == 2 and (track.confidence_raw == 1).all()
    for change, message in [
        ({"keypoints_2d": np.ones((2, 17, 3))}, "frames, joints, 2"),
        ({"confidence": np.ones((2, 16))}, "confidence must be"),
        ({"confidence": np.full((2, 17), 1.5)}, r"0\.\.1"),
        ({"frame": [3, 5]}, "consecutive"),
    ]:
        with pytest.raises(ValueError, match=message):
            KeypointTrack(**{**good, **change}, track_id=0, skeleton="coco_17")


def test_large_results_read_in_about_a_second(write):
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(0, 3, (4000, 5, 2)), axis=0) + np.arange(5)[:, None] * [90, 0] + 2000
    table = np.round(walk[:, :, None] + UPRIGHT, 2)
    rows = coco({f: table[f] for f in range(4000)})
    path = write("large.json", rows)
    start = time.perf_counter()
    tracks = read_keypoints(path)
    assert time.perf_counter() - start < 6  # about 1 s; generous for busy machines
    assert sum(int(t.observed.sum()) for t in tracks) == 20_000


def test_tables_in_folders_of_recordings(write, tmp_path):
    """Only those that hold keypoints are recordings."""
    values = [v for xy in person() for v in (*xy, 0.5)]
    write("all/walk.csv", deeplabcut([values], COCO_NAMES))
    write("all/subjects.csv", "name,height\nann,1.8")
    write("all/sub/r.json", coco({0: [person()]}))
    write("all/other.h5", "hello")
    recordings, others = recordings_below(tmp_path / "all")
    assert [path.name for path in recordings] == ["r.json", "walk.csv"]
    assert [path.name for path in others] == ["other.h5", "subjects.csv"]


def test_importing_is_light():
    code = "import sys, probpose.data.keypoints; print([m for m in ('torch', 'scipy', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
