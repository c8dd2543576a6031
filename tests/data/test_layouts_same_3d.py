"""A keypoint file of any supported tool gives the same 3D as the same keypoints in our own `.npz`."""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import layouts as w
import numpy as np
import pytest
import torch

from probpose import ProbPosePipeline
from probpose.data import KeypointTrack, list_formats, read_keypoints, write_keypoints
from probpose.skeletons import get_skeleton

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"
FRAMES, SIZE = 12, (1000, 1000)


@dataclass
class Layout:
    """A file, and what it can hold of what is known.

    Attributes:
        format: name under which the file is recognised.
        write: one of `layouts.write_*`.
        skeleton: the joint order in the file.
        people: how many there are.
        unseen: whether the layout can mark joints as unseen.
        absent: whether people can be absent from frames.
        scores: whether confidences are kept.
        options: what a user has to tell the reader.
    """

    format: str
    write: object
    skeleton: str = "coco_17"
    people: int = 2
    unseen: bool = True
    absent: bool = True
    scores: bool = True
    options: dict = field(default_factory=dict)


COCO = {"options": {"skeleton": "coco_17"}}
MEDIAPIPE = {"skeleton": "mediapipe_33", "unseen": False}
SCALED = {"options": {"image_size": SIZE}}
LAYOUTS = {
    "coco_results": Layout("coco_results", w.write_coco_results),
    "coco_results_string_ids": Layout("coco_results", partial(w.write_coco_results, names=True)),
    "coco_results_whole_body": Layout("coco_results", partial(w.write_coco_results, parts=True), "wholebody_133"),
    "coco_results_openpose": Layout("coco_results", w.write_openpose_coco, scores=False),
    "coco_annotations": Layout("coco_annotations", w.write_coco_annotations, scores=False),
    "posetrack_2018": Layout("coco_annotations", partial(w.write_coco_annotations, posetrack=True), "posetrack_17", scores=False),
    "posetrack_2017": Layout("posetrack_2017", w.write_posetrack_2017, "posetrack_15"),
    "openpose_25": Layout("openpose", w.write_openpose, "openpose_25"),
    "openpose_18": Layout("openpose", w.write_openpose, "openpose_18"),
    "openpose_mpi_15": Layout("openpose", w.write_openpose, "openpose_mpi_15"),
    "openpose_134": Layout("openpose", w.write_openpose, "openpose_134"),
    "openpose_scale_3": Layout("openpose", partial(w.write_openpose, scale=3), "openpose_25", **SCALED),
    "openpose_scale_4": Layout("openpose", partial(w.write_openpose, scale=4), "openpose_25", **SCALED),
    "openpose_old_keys": Layout("openpose", partial(w.write_openpose, key="pose_keypoints"), "openpose_18"),
    "controlnet": Layout("openpose", w.write_controlnet, "openpose_18", scores=False),
    "alphapose": Layout("alphapose", w.write_alphapose, unseen=False),
    "alphapose_nested_idx": Layout("alphapose", partial(w.write_alphapose, idx=lambda p: [[p + 1.0], [p + 5.0]]), "halpe_26", unseen=False),
    "alphapose_void_idx": Layout("alphapose", partial(w.write_alphapose, idx=lambda p: [[0.0], [0.0]]), "halpe_136", unseen=False),
    "alphapose_cmu": Layout("alphapose", w.write_alphapose_frames, "openpose_18", unseen=False),
    "alphapose_cmu_files": Layout("alphapose", partial(w.write_alphapose_frames, separate=True), "openpose_18", unseen=False),
    "alphapose_open": Layout("alphapose", partial(w.write_alphapose_frames, format="open"), "openpose_18", unseen=False),
    "poseflow": Layout("alphapose", w.write_poseflow, unseen=False),
    "mmpose_inferencer": Layout("mmpose", w.write_mmpose_inferencer, "wholebody_133", unseen=False),
    "mmpose_demo": Layout("mmpose", partial(w.write_mmpose_demo, dataset="halpe26"), "halpe_26", unseen=False),
    "mmpose_images": Layout("mmpose", w.write_mmpose_images, unseen=False),
    "sapiens": Layout("mmpose", w.write_sapiens, "sapiens_308", unseen=False),
    "huggingface": Layout("huggingface", w.write_huggingface),
    "huggingface_first_release": Layout("huggingface", partial(w.write_huggingface, scores=False), unseen=False),
    "rtmlib": Layout("rtmlib", w.write_rtmlib, "halpe_26", unseen=False),
    "rtmlib_npz": Layout("npz", w.write_rtmlib_npz, "halpe_26"),
    "ultralytics": Layout("ultralytics", w.write_ultralytics),
    "ultralytics_normalised": Layout("ultralytics", partial(w.write_ultralytics, normalised=True), **SCALED),
    "ultralytics_lines": Layout("ultralytics", partial(w.write_ultralytics, lines=True)),
    "yolo_txt": Layout("yolo_txt", w.write_yolo_txt, **SCALED),
    "yolo_txt_id_only": Layout("yolo_txt", partial(w.write_yolo_txt, score=False), **SCALED),
    "yolo_txt_score_only": Layout("yolo_txt", partial(w.write_yolo_txt, track_id=False), **SCALED),
    "yolo_txt_without_v": Layout("yolo_txt", partial(w.write_yolo_txt, channels=2), scores=False, **SCALED),
    "mediapipe": Layout("mediapipe", w.write_mediapipe_frames, people=1, **MEDIAPIPE, **SCALED),
    "mediapipe_tasks": Layout("mediapipe", w.write_mediapipe_tasks, **MEDIAPIPE, **SCALED),
    "mediapipe_header": Layout("mediapipe", w.write_mediapipe_header, people=1, **MEDIAPIPE),
    "mediapipe_files": Layout("mediapipe", w.write_mediapipe_files, people=1, **MEDIAPIPE, **SCALED),
    "mediapipe_csv": Layout("mediapipe", w.write_mediapipe_csv, people=1, **MEDIAPIPE, **SCALED),
    "mediapipe_csv_long": Layout("mediapipe", partial(w.write_mediapipe_csv, long=True), people=1, **MEDIAPIPE, **SCALED),
    "mediapipe_npy": Layout("npy", w.write_mediapipe_npy, people=1, **MEDIAPIPE, **SCALED),
    "detectron": Layout("detectron", w.write_detectron, unseen=False),
    "videopose3d": Layout("videopose3d", w.write_videopose3d, unseen=False, absent=False, scores=False),
    "deeplabcut": Layout("deeplabcut", w.write_deeplabcut, people=1),
    "deeplabcut_several": Layout("deeplabcut", partial(w.write_deeplabcut, several=True)),
    "sleap": Layout("sleap", w.write_sleap),
    "sleap_csv": Layout("sleap", w.write_sleap_csv),
    "npy": Layout("npy", w.write_npy, **COCO),
    "npy_people_first": Layout("npy", partial(w.write_npy, arrange=lambda table: np.swapaxes(table, 0, 1)), **COCO),
    "npy_one_person": Layout("npy", partial(w.write_npy, arrange=lambda table: table[:, 0]), people=1, **COCO),
    "npy_flat": Layout("npy", partial(w.write_npy, arrange=lambda table: table.reshape(FRAMES, -1)), people=1, **COCO),
    "numbers": Layout("numbers", w.write_numbers, **COCO),
    "reconstruction": Layout("npz", w.write_reconstruction, "h36m_17"),
}

PLACES = [
    ("left|right", "big_toe|small_toe|heel|foot", "ankle"),
    ("left|right", "hand|finger|thumb|index|pinky", "wrist"),
    ("left|right", "olecranon|fossa", "elbow"),
    ("left|right", "acromion", "shoulder"),
    ("", "neck|chest|thorax|head_bottom", "thorax"),
    ("", "head|eye|ear", "head_top"),
    ("", "", "neck_nose"),
]


def nearest(name: str) -> int:
    """The joint of Human3.6M next to a joint of this name."""
    known = list(get_skeleton("h36m_17").joint_names)
    if name in known:
        return known.index(name)
    side, place = next((side, place) for side, part, place in PLACES if re.search(f"({side}).*({part})", name))
    return known.index(f"{name.split('_')[0]}_{place}" if side else place)


def scene(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Two people who walk, `(frames, people, joints, 2)` and `(frames, people, joints)`, in steps that any layout can write exactly."""
    tracks = read_keypoints(EXAMPLES / "two_people.npz")[: layout.people]
    joints = [nearest(name) for name in get_skeleton(layout.skeleton).joint_names]
    rng = np.random.default_rng(0)
    keypoints = np.stack([track.keypoints_2d[:FRAMES, joints] for track in tracks], axis=1).astype(np.float64)
    keypoints += rng.uniform(-6, 6, keypoints.shape)
    confidence = np.stack([track.confidence[:FRAMES, joints] for track in tracks], axis=1).astype(np.float64)
    keypoints, confidence = np.round(4 * keypoints) / 4, np.maximum(np.round(32 * confidence), 1) / 32
    confidence = confidence if layout.scores else np.ones_like(confidence)
    hidden = (rng.random(confidence.shape) < 0.08) & layout.unseen
    if layout.absent:
        hidden[4, 0] = hidden[6, -1] = True
    return np.where(hidden[..., None], np.nan, keypoints), np.where(hidden, 0, confidence)


@pytest.fixture(scope="module")
def lift(tiny_model):
    """`lift(track)`: hypotheses and pose of a person."""
    pipe = ProbPosePipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)

    def call(track: KeypointTrack):
        out = pipe(
            track.keypoints_2d, track.confidence, image_size=SIZE, skeleton=track.skeleton, fps=30,
            generator=torch.Generator().manual_seed(0), output_type="np",
        )  # fmt: skip
        return out.hypotheses, out.pose

    return call


def from_left_to_right(tracks):
    return sorted(tracks, key=lambda track: np.nanmean(track.keypoints_2d[..., 0]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_3d_as_npz(name, tmp_path, lift):
    layout = LAYOUTS[name]
    keypoints, confidence = scene(layout)
    frames = np.arange(FRAMES)
    people = range(layout.people)
    ours = [KeypointTrack(keypoints[:, p], confidence[:, p], frames, p, layout.skeleton, SIZE, 30.0) for p in people]
    write_keypoints(tmp_path / "ours.npz", ours)
    path = layout.write(tmp_path, keypoints, confidence, SIZE)
    theirs = read_keypoints(path, **layout.options)
    assert {track.source["format"] for track in theirs} == {layout.format}
    ours = read_keypoints(tmp_path / "ours.npz")
    for a, b in zip(from_left_to_right(ours), from_left_to_right(theirs), strict=True):
        assert a.skeleton == b.skeleton
        for member in ("frame", "keypoints_2d", "confidence"):
            np.testing.assert_array_equal(getattr(a, member), getattr(b, member))
        for expected, found in zip(lift(a), lift(b)):
            assert np.isfinite(expected).all()
            np.testing.assert_array_equal(expected, found)


def test_every_format_is_tried():
    assert {layout.format for layout in LAYOUTS.values()} == set(list_formats())
