"""Keypoint files as each tool lays them out, written from plain arrays.

Every writer takes `(folder, keypoints (frames, people, joints, 2), confidence (frames, people, joints), image_size)`, NaN where a joint or
a whole person is unseen, and returns what a user would pass to `read_keypoints`. Frames are numbered as the tool numbers them.
"""

import csv
import json

import numpy as np

from probpose.skeletons import get_skeleton

COCO_NAMES = list(get_skeleton("coco_17").joint_names)


def people(keypoints, confidence, unseen=(0, 0, 0)):
    """For every frame the people in it as (person, x y c table), `unseen` for joints that are; their order is no identity."""
    table = np.concatenate([keypoints, confidence[..., None]], axis=-1)
    table = np.where(np.isnan(keypoints[..., :1]), unseen, table)
    seen = np.isfinite(keypoints[..., 0]).any(axis=-1)
    frames = [[(p, table[f, p]) for p in np.flatnonzero(seen[f]).tolist()] for f in range(len(table))]
    return [frame[::-1] if f % 2 else frame for f, frame in enumerate(frames)]


def flat(table, digits=15):
    return [float(f"{value:.{digits}g}") for value in table.ravel()]


def box(table, corners=False):
    low, high = table[:, :2].min(axis=0), table[:, :2].max(axis=0)
    return [*low.tolist(), *(high if corners else high - low).tolist()]


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def save_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# COCO and PoseTrack
# ---------------------------------------------------------------------------------------------------------------------


def write_coco_results(folder, keypoints, confidence, image_size, unseen=(0, 0, 0), names=False, parts=False):
    """Results; `names`: image ids are file stems, sorted as text; `parts`: whole bodies in pieces."""
    rows = []
    for f, frame in enumerate(people(keypoints, confidence, unseen)):
        for _, table in frame:
            row = {"image_id": f"clip_{f}" if names else f, "category_id": 1, "keypoints": flat(table), "score": 0.9, "bbox": box(table)}
            if parts:
                ends = {"keypoints": 17, "foot_kpts": 23, "face_kpts": 91, "lefthand_kpts": 112, "righthand_kpts": 133}
                row |= {name: flat(table[a:b]) for (name, b), a in zip(ends.items(), [0, *ends.values()])}
            rows.append(row)
    return save(folder / "x.keypoints.json", sorted(rows, key=lambda row: str(row["image_id"])))


def write_openpose_coco(folder, keypoints, confidence, image_size):
    """`--write_coco_json`: flags for confidences, (-1, -1, 0) for unseen joints."""
    return write_coco_results(folder, keypoints, np.ceil(confidence), image_size, unseen=(-1, -1, 0))


def write_coco_annotations(folder, keypoints, confidence, image_size, posetrack=False):
    images, annotations = [], []
    width, height = image_size
    for f, frame in enumerate(people(keypoints, np.ceil(confidence) if posetrack else 2 * np.ceil(confidence))):
        image = {"id": 10342000000 + f, "file_name": f"images/val/000342_mpii_test/{f:06d}.jpg", "width": width, "height": height}
        images.append({**image, "vid_id": "000342", "frame_id": 10342000000 + f, "is_labeled": True} if posetrack else image)
        for p, table in frame:
            annotation = {"id": len(annotations), "image_id": image["id"], "category_id": 1, "bbox": box(table), "iscrowd": 0}
            annotations.append({**annotation, "track_id": p, "keypoints": flat(table), "num_keypoints": int((table[:, 2] > 0).sum())})
    names = [*COCO_NAMES[:1], "head_bottom", "head_top", *COCO_NAMES[3:]] if posetrack else COCO_NAMES
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": names, "skeleton": [[16, 14]]}
    return save(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": [category]})


def write_posetrack_2017(folder, keypoints, confidence, image_size):
    frames = []
    for f, frame in enumerate(people(keypoints, confidence, np.nan)):
        rects = []
        for p, table in frame:
            seen = [(j, *joint) for j, joint in enumerate(table.tolist()) if np.isfinite(joint[0])]
            points = [{"id": [j], "x": [x], "y": [y], "score": [c]} for j, x, y, c in seen]
            head = dict(zip(("x1", "y1", "x2", "y2"), ([625], [94], [681], [178])))
            rects.append({**head, "score": [0.9], "track_id": [p], "annopoints": [{"point": points}]})
        frames.append({"image": [{"name": f"images/seq/{f:08d}.jpg"}], "annorect": rects})
    return save(folder / "seq.json", {"annolist": frames})


# ---------------------------------------------------------------------------------------------------------------------
# OpenPose and its relatives, AlphaPose
# ---------------------------------------------------------------------------------------------------------------------

EMPTY_PARTS = ("face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "pose_keypoints_3d", "face_keypoints_3d")


def write_openpose(folder, keypoints, confidence, image_size, scale=0, key="pose_keypoints_2d"):
    """A file per frame; `scale` is the tool's `--keypoint_scale`."""
    if scale:
        keypoints = keypoints / image_size if scale == 3 else keypoints / image_size * 2 - 1
    for f, frame in enumerate(people(keypoints, confidence, (-1, -1, 0) if scale == 4 else (0, 0, 0))):
        found = [{"person_id": [-1], key: flat(table, digits=6)} | {part: [] for part in EMPTY_PARTS} for _, table in frame]
        save(folder / "out" / f"clip_{f:012d}_keypoints.json", {"version": 1.3, "people": found})
    return folder / "out"


def write_controlnet(folder, keypoints, confidence, image_size):
    frames = []
    for frame in people(keypoints / image_size, np.ceil(confidence), (-1, -1, 0)):
        parts = dict.fromkeys(("face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d"))
        found = [{"pose_keypoints_2d": flat(table), **parts} for _, table in frame]
        frames.append({"people": found, "canvas_width": image_size[0], "canvas_height": image_size[1]})
    return save(folder / "pose.json", frames)


def write_alphapose(folder, keypoints, confidence, image_size, idx=lambda p: p):
    """`idx`: how the identity of a person is written, which depends on the tracker."""
    rows = [
        {"image_id": f"{f}.jpg", "category_id": 1, "keypoints": flat(table), "score": 2.47, "box": box(table), "idx": idx(p)}
        for f, frame in enumerate(people(keypoints, confidence))
        for p, table in frame
    ]
    return save(folder / "alphapose-results.json", sorted(rows, key=lambda row: row["image_id"]))


def write_alphapose_frames(folder, keypoints, confidence, image_size, format="cmu", separate=False):
    """`--format cmu` or `open`: one file, or `separate` one per frame."""
    people_key, joints_key = {"cmu": ("bodies", "joints"), "open": ("people", "pose_keypoints_2d")}[format]
    frames = {
        f"{f}.jpg": {"version": "AlphaPose v0.3", people_key: [{joints_key: flat(table)} for _, table in frame]}
        for f, frame in enumerate(people(keypoints, confidence))
        if frame
    }
    if not separate:
        return save(folder / "alphapose-results.json", frames)
    for name, content in frames.items():
        save(folder / "sep-json" / name.replace(".jpg", ".json"), content)
    return folder / "sep-json"


def write_poseflow(folder, keypoints, confidence, image_size):
    frames = {
        f"{f}.jpg": [{"keypoints": flat(table), "scores": 2.5, "idx": p + 1} for p, table in frame]
        for f, frame in enumerate(people(keypoints, confidence))
    }
    return save(folder / "alphapose-results-forvis-tracked.json", frames)


# ---------------------------------------------------------------------------------------------------------------------
# MMPose, Sapiens, ViTPose, rtmlib
# ---------------------------------------------------------------------------------------------------------------------


def _instances(frame, boxes=True):
    rest = [{"bbox": [box(table, corners=True)], "bbox_score": 0.97} if boxes else {} for _, table in frame]
    pairs = [{"keypoints": table[:, :2].tolist(), "keypoint_scores": table[:, 2].tolist()} for _, table in frame]
    return [pair | extra for pair, extra in zip(pairs, rest)]


def write_mmpose_inferencer(folder, keypoints, confidence, image_size):
    frames = [{"frame_id": f, "instances": _instances(frame)} for f, frame in enumerate(people(keypoints, confidence))]
    return save(folder / "predictions" / "clip.json", frames)


def write_mmpose_demo(folder, keypoints, confidence, image_size, dataset="coco"):
    """With a description of the data set, and frames from 1."""
    frames = [{"frame_id": f, "instances": _instances(frame)} for f, frame in enumerate(people(keypoints, confidence), 1)]
    flips = {"__ndarray__": [0] * keypoints.shape[2], "dtype": "int64", "shape": [keypoints.shape[2]]}
    meta = {"dataset_name": dataset, "num_keypoints": keypoints.shape[2], "flip_indices": flips}
    return save(folder / "results_clip.json", {"meta_info": meta, "instance_info": frames})


def write_mmpose_images(folder, keypoints, confidence, image_size):
    for f, frame in enumerate(people(keypoints, confidence)):
        save(folder / "predictions" / f"{f}.json", _instances(frame))
    return folder / "predictions"


def write_sapiens(folder, keypoints, confidence, image_size):
    for f, frame in enumerate(people(keypoints, confidence)):
        save(folder / "out" / f"{f}.json", {"instance_info": _instances(frame, boxes=False)})
    return folder / "out"


def write_huggingface(folder, keypoints, confidence, image_size, scores=True):
    """Joints below a threshold are absent, their numbers in `labels`; the first release had no scores of their own."""
    frames = []
    for frame in people(keypoints, confidence, np.nan):
        found = []
        for _, table in frame:
            labels = np.flatnonzero(np.isfinite(table[:, 0]))
            seen, rest = table[labels], {"labels": labels.tolist(), "bbox": [391.99, 190.08, 391.16, 189.3]}
            person = {"keypoints": seen[:, :2].tolist(), "scores": seen[:, 2].tolist(), **rest}
            found.append(person if scores else {"keypoints": seen.tolist(), "bbox": rest["bbox"]})
        frames.append(found)
    return save(folder / "vitpose.json", frames)


def write_rtmlib(folder, keypoints, confidence, image_size):
    tables = [[table for _, table in frame] for frame in people(keypoints, confidence)]
    frames = [{"keypoints": [t[:, :2].tolist() for t in frame], "scores": [t[:, 2].tolist() for t in frame]} for frame in tables]
    return save(folder / "rtmlib.json", frames)


# ---------------------------------------------------------------------------------------------------------------------
# Ultralytics
# ---------------------------------------------------------------------------------------------------------------------


def write_ultralytics(folder, keypoints, confidence, image_size, normalised=False, lines=False):
    """`Results.to_json()` of every frame, which is a string: as a list of strings, or one per line."""
    scale = np.array(image_size if normalised else (1, 1))
    frames = []
    for frame in people(keypoints / scale, confidence):
        found = []
        for p, table in frame:
            x, y, c = np.round(table, 5).T.tolist()
            corners = dict(zip(("x1", "y1", "x2", "y2"), box(table, corners=True)))
            person = {"name": "person", "class": 0, "confidence": 0.91, "box": corners, "track_id": p + 1}
            found.append({**person, "keypoints": {"x": x, "y": y, "visible": c}})
        frames.append(json.dumps(found, indent=None if lines else 2))
    return save(folder / "frames.jsonl", "\n".join(frames)) if lines else save(folder / "frames.json", frames)


def write_yolo_txt(folder, keypoints, confidence, image_size, channels=3, score=True, track_id=True):
    for f, frame in enumerate(people(keypoints / image_size, confidence), 1):
        lines = []
        for p, table in frame:
            x, y, w, h = box(table)
            numbers = [0, x + w / 2, y + h / 2, w, h, *table[:, :channels].ravel(), *[0.91] * score, *[p + 1] * track_id]
            lines.append(" ".join(f"{number:g}" for number in numbers))
        if lines:  # no file for an empty frame; a second run appends its lines
            save(folder / "labels" / f"clip_{f}.txt", "\n".join([*lines, *lines, ""]))
    return folder / "labels"


# ---------------------------------------------------------------------------------------------------------------------
# MediaPipe
# ---------------------------------------------------------------------------------------------------------------------


def _landmarks(keypoints, confidence, image_size):
    for frame in people(keypoints / image_size, confidence):
        yield [[{"x": x, "y": y, "z": -0.41, "visibility": c, "presence": 0.99} for x, y, c in table.tolist()] for _, table in frame]


def write_mediapipe_frames(folder, keypoints, confidence, image_size):
    """One person; frames without anybody are left out."""
    frames = enumerate(_landmarks(keypoints, confidence, image_size))
    return save(folder / "landmarks.json", [{"frame": f, "landmarks": people[0]} for f, people in frames if people])


def write_mediapipe_tasks(folder, keypoints, confidence, image_size):
    """Several people, with world landmarks beside those of the image."""
    world = [{"x": 0.1, "y": -0.2, "z": 0.05, "visibility": 0.9}] * 33
    frames = _landmarks(keypoints, confidence, image_size)
    return save(folder / "tasks.json", [{"pose_landmarks": found, "pose_world_landmarks": [world] * len(found)} for found in frames])


def write_mediapipe_header(folder, keypoints, confidence, image_size):
    poses = [found[0] if found else [] for found in _landmarks(keypoints, confidence, image_size)]
    return save(folder / "poses.json", {"frameRate": 30, "width": image_size[0], "height": image_size[1], "poses": poses})


def write_mediapipe_files(folder, keypoints, confidence, image_size):
    for f, found in enumerate(_landmarks(keypoints, confidence, image_size)):
        save(folder / "frames" / f"frame_{f:05d}.json", {"landmark": found[0] if found else []})
    return folder / "frames"


def write_mediapipe_csv(folder, keypoints, confidence, image_size, long=False):
    """A row per frame, or `long` one per landmark."""
    numbered = [f"{key}{j}" for j in range(33) for key in "xyzv"]
    rows = [["frame", *(("landmark", "x", "y", "z", "visibility") if long else numbered)]]
    for f, found in enumerate(_landmarks(keypoints, confidence, image_size)):
        values = [[m["x"], m["y"], m["z"], m["visibility"]] for person in found[:1] for m in person]
        if long:
            rows += [[f, j, *value] for j, value in enumerate(values)]
        else:
            rows.append([f, *([number for value in values for number in value] or [""] * 132)])
    return save_rows(folder / "landmarks.csv", rows)


def write_mediapipe_npy(folder, keypoints, confidence, image_size):
    depth = np.full(confidence.shape, -0.4)[..., None]
    array = np.nan_to_num(np.concatenate([keypoints / image_size, depth, confidence[..., None]], axis=-1))
    np.save(folder / "landmarks.npy", array[:, 0])
    return folder / "landmarks.npy"


# ---------------------------------------------------------------------------------------------------------------------
# NumPy files
# ---------------------------------------------------------------------------------------------------------------------


def write_detectron(folder, keypoints, confidence, image_size):
    """What VideoPose3D's scripts save: rows x, y, logit, probability of each person, under class 1 of each frame."""
    boxes, points = (np.empty((len(keypoints), 2), dtype=object) for _ in range(2))
    for f, frame in enumerate(people(keypoints, confidence)):
        tables = [np.stack([t[:, 0], t[:, 1], np.zeros(len(t)), t[:, 2]]).astype(np.float32) for _, t in frame]
        boxes[f, 0], points[f, 0] = [], []
        boxes[f, 1] = np.array([[*box(t, corners=True), 0.98] for _, t in frame], dtype=np.float32) if frame else []
        points[f, 1] = np.stack(tables) if frame else []
    metadata = {"w": image_size[0], "h": image_size[1]}
    path = folder / "clip.mp4.npz"
    np.savez_compressed(path, boxes=boxes, segments=np.array([None] * len(keypoints)), keypoints=points, metadata=metadata)
    return path


def write_videopose3d(folder, keypoints, confidence, image_size):
    """A custom data set, one person per video."""
    videos = {f"clip{p}.mp4": keypoints[:, p].astype(np.float32) for p in range(keypoints.shape[1])}
    positions = {video: {"custom": [array]} for video, array in videos.items()}
    sizes = {video: {"w": image_size[0], "h": image_size[1]} for video in videos}
    symmetry = [[*range(1, 17, 2)], [*range(2, 17, 2)]]
    metadata = {"layout_name": "coco", "num_joints": 17, "keypoints_symmetry": symmetry, "video_metadata": sizes}
    path = folder / "data_2d_custom_mine.npz"
    np.savez_compressed(path, positions_2d=positions, metadata=metadata)
    return path


def _table(keypoints, confidence):
    return np.nan_to_num(np.concatenate([keypoints, confidence[..., None]], axis=-1))


def write_npy(folder, keypoints, confidence, image_size, arrange=lambda table: table):
    """Bare numbers `(frames, people, joints, x y c)`, or what `arrange` makes of them."""
    np.save(folder / "keypoints.npy", arrange(_table(keypoints, confidence)))
    return folder / "keypoints.npy"


def write_numbers(folder, keypoints, confidence, image_size):
    return save(folder / "keypoints.json", _table(keypoints, confidence).tolist())


def write_reconstruction(folder, keypoints, confidence, image_size):
    """The 2D input that MotionAGFormer's demo keeps: people first, joints of Human3.6M."""
    np.savez_compressed(folder / "keypoints.npz", reconstruction=np.swapaxes(_table(keypoints, confidence), 0, 1))
    return folder / "keypoints.npz"


def write_rtmlib_npz(folder, keypoints, confidence, image_size):
    np.savez(folder / "rtmlib.npz", keypoints=np.nan_to_num(keypoints), scores=confidence)
    return folder / "rtmlib.npz"


# ---------------------------------------------------------------------------------------------------------------------
# DeepLabCut and SLEAP, whose projects name their joints
# ---------------------------------------------------------------------------------------------------------------------


def as_project(keypoints, confidence):
    """Names, and COCO's joints in an order and a spelling of one's own."""
    names = ["".join(word.capitalize() for word in name.split("_")) for name in reversed(COCO_NAMES)]
    return names, keypoints[:, :, ::-1], confidence[:, :, ::-1]


def write_deeplabcut(folder, keypoints, confidence, image_size, several=False):
    """The table of a project with one or `several` animals; unseen is blank."""
    names, keypoints, confidence = as_project(keypoints, confidence)
    who = [f"ind{p + 1}" for p in range(keypoints.shape[1])] if several else [None]
    columns = [(w, name, axis) for w in who for name in names for axis in ("x", "y", "likelihood")]
    heads = dict(zip(("individuals", "bodyparts", "coords"), zip(*columns)))
    if not several:
        del heads["individuals"]
    rows = [["scorer", *["DLC_resnet50_mine_100000"] * len(columns)], *([name, *cells] for name, cells in heads.items())]
    table = np.concatenate([keypoints, np.where(np.isnan(keypoints[..., 0]), np.nan, confidence)[..., None]], axis=-1)
    rows += [[f, *("" if np.isnan(value) else value for value in frame.ravel())] for f, frame in enumerate(table)]
    return save_rows(folder / "clipDLC_resnet50_mine_100000.csv", rows)


def write_sleap(folder, keypoints, confidence, image_size):
    """The analysis export, with axes in MATLAB's order."""
    import h5py

    names, keypoints, confidence = as_project(keypoints, confidence)
    points = np.transpose(keypoints, (1, 3, 2, 0))
    scores = np.where(np.isnan(keypoints[..., 0]), np.nan, confidence).transpose(1, 2, 0)
    with h5py.File(folder / "clip.analysis.h5", "w") as file:
        file["tracks"], file["point_scores"] = points, scores
        file["track_occupancy"] = np.isfinite(points).any(axis=(1, 2)).T.astype(np.uint8)
        file["instance_scores"] = file["tracking_scores"] = np.nanmean(np.nan_to_num(scores), axis=1)
        file["node_names"] = [name.encode() for name in names]
        file["track_names"] = [f"track_{p}".encode() for p in range(len(points))]
    return folder / "clip.analysis.h5"


def write_sleap_csv(folder, keypoints, confidence, image_size):
    names, keypoints, confidence = as_project(keypoints, confidence)
    rows = [["track", "frame_idx", "instance.score", *(f"{name}.{key}" for name in names for key in ("x", "y", "score"))]]
    for f, frame in enumerate(people(keypoints, confidence, np.nan)):
        rows += [[f"track_{p}", f, 0.9, *("" if np.isnan(v) else v for v in table.ravel())] for p, table in frame]
    return save_rows(folder / "clip.csv", rows)
