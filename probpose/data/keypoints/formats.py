"""What the keypoint files of common tools look like: one function per format, from the file's content to detections.

The functions take the content of a JSON file (or the lines of a text file) and describe it; everything that is the same
for all formats (lengths, units, frame numbers, identities) is left to `detections.to_tracks`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .detections import Detections
from .joint_sets import JOINT_COUNTS, skeleton_of_dataset, skeleton_of_names
from .tracks import check_image_size

WHOLEBODY_PARTS = ("foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
OPENPOSE_DEFAULTS = {25: "openpose_25", 15: "openpose_mpi_15", 17: "coco_17", 16: "mpii_16"}
LANDMARK_KEYS = ("pose_landmarks", "poseLandmarks", "landmarks", "landmark")
WORLD_LANDMARK_KEYS = ("pose_world_landmarks", "poseWorldLandmarks", "worldLandmarks", "world_landmarks")
FRAME_KEYS = ("frame", "frame_id", "frame_idx", "frame_index", "frame_number")


def _first(record: dict, keys: Iterable[str], default: Any = None) -> Any:
    return next((record[key] for key in keys if record.get(key) is not None), default)


def _interleave(points: list, scores: Iterable[float] | None) -> list[float]:
    """[[x, y], …] and [c, …] as x, y, c, …; c = 1 where there are no scores."""
    scores = [1.0] * len(points) if scores is None else list(scores)
    if len(scores) != len(points):
        raise ValueError(f"expected a score for each joint, found {len(points)} joints and {len(scores)} scores")
    if any(len(point) != 2 for point in points):
        raise ValueError("expected joints with x and y, found x, y, z: these are 3D results, not 2D keypoints")
    return [value for (x, y), c in zip(points, scores) for value in (x, y, c)]


def _whole_body(record: dict) -> list[float]:
    """Flat keypoints of a COCO record, with feet, face and hands behind the body where the record has them all."""
    if "keypoints" not in record:
        raise ValueError(
            f"expected 'keypoints' for each person, found only {', '.join(map(repr, record))}: "
            "if these are a detector's boxes, run a pose estimator on them"
        )
    flat = record["keypoints"]
    if all(part in record for part in WHOLEBODY_PARTS):
        flat = sum((record[part] for part in WHOLEBODY_PARTS), list(flat))
    return flat


def _people(records: list[dict], key: str, person: Any, found: Detections) -> list[dict]:
    """The records of people, where `key` tells people from other classes."""
    people = [record for record in records if record.get(key, person) == person]
    if people and len(people) < len(records):
        found.note(f"{len(records) - len(people)} detections of other classes than {key} = {person!r} were left out")
    return people or records


# ---------------------------------------------------------------------------------------------------------------------
# COCO
# ---------------------------------------------------------------------------------------------------------------------


def coco_results(records: list[dict]) -> Detections:
    """Results list: one `{image_id, keypoints: [x, y, c, …], score}` per person and image; ids may be names."""
    found = Detections(third="or flag")
    for record in _people(records, "category_id", 1, found):
        found.add(record["image_id"], _whole_body(record), record.get("score"), record.get("track_id"))
    return found


def coco_annotations(content: dict) -> Detections:
    """Annotation file with `images`, `annotations`, `categories`; also PoseTrack 2018 and its predictions.

    Frames are the numbers in the image file names if these tell all images apart, else the image ids.
    """
    found = Detections(third="flag")
    images, annotations = content["images"], [a for a in content["annotations"] if "keypoints" in a]
    if not annotations and content["annotations"]:
        is_3d = any("keypoints_3d" in a for a in content["annotations"])
        raise ValueError(f"expected annotations with keypoints, found {'3D results' if is_3d else 'boxes'} only")
    numbers = [re.findall(r"\d+", str(image.get("file_name", "")).rsplit(".", 1)[0])[-1:] for image in images]
    named = all(numbers) and len({int(number[0]) for number in numbers}) == len(images)
    label = {image["id"]: int(number[0]) if named else image["id"] for image, number in zip(images, numbers)}
    found.labels = dict.fromkeys(label.values())
    found.image_sizes = {check_image_size((i["width"], i["height"])) for i in images if i.get("width")}

    categories = {c["id"]: c for c in content.get("categories", []) if c.get("keypoints")}
    person = next((id for id, c in categories.items() if str(c.get("name")).lower() == "person"), None)
    if person is not None:
        annotations = _people(annotations, "category_id", person, found)
    names = categories.get(person if person is not None else next(iter(categories), None), {}).get("keypoints")
    if names:
        found.skeleton = skeleton_of_names(names)
        found.question = None if found.skeleton else f"the joint names {names[:3]} … belong to no known skeleton"

    # Predictions of PoseTrack sequences carry joint scores; their track_id is the rank within the frame.
    predicted = bool(annotations) and all("bbox" not in a and a.get("scores") for a in annotations)
    if predicted:
        found.third = "confidence"
        found.note("track ids of a predictions file are ranks within the frame and were not used")
    for a in annotations:
        if a.get("iscrowd"):
            continue
        flat = _whole_body(a)
        if predicted:
            flat = [scored for j, c in enumerate(a["scores"]) for scored in (flat[3 * j], flat[3 * j + 1], c)]
        track = None if predicted else a.get("track_id", a.get("attributes", {}).get("track_id"))
        found.add(label[a["image_id"]], flat, a.get("score"), track)
    return found


def posetrack_2017(content: dict) -> Detections:
    """Files of PoseTrack's evaluation: `{annolist: [{image, annorect: [{annopoints: [{point: [{id, x, y}]}], track_id}]}]}`.

    Every number stands in a list of its own; a joint that was not seen is absent.
    """
    found = Detections(skeleton="posetrack_15")
    joints = range(JOINT_COUNTS["posetrack_15"])
    for entry in content["annolist"]:
        label = _only(entry["image"][0]["name"])
        found.labels[label] = None
        for person in entry.get("annorect") or []:
            points = [point for group in person.get("annopoints") or [] for point in group["point"]]
            seen = {_only(point["id"]): [_only(point.get(key, 1.0)) for key in ("x", "y", "score")] for point in points}
            if not set(seen) <= set(joints):
                raise ValueError(f"expected joint ids 0 … {joints[-1]}, found {sorted(set(seen) - set(joints))} (frame {label!r})")
            flat = [value for joint in joints for value in seen.get(joint, (math.nan, math.nan, 0.0))] if seen else []
            found.add(label, flat, _only(person.get("score")), _only(person.get("track_id")))
    return found


def _only(value: Any) -> Any:
    """What stands in a list of its own, None if the list is empty."""
    return (value[0] if value else None) if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------------------------
# OpenPose and its relatives
# ---------------------------------------------------------------------------------------------------------------------


def openpose(content: dict | list) -> Detections:
    """`{people: [{pose_keypoints_2d: [x, y, c, …]}]}` of one frame, or a list of them (ControlNet nodes).

    ControlNet's files have `canvas_width` and `canvas_height` and usually coordinates in 0..1.
    """
    found = Detections(units="either", defaults=OPENPOSE_DEFAULTS)
    for index, frame in enumerate([content] if isinstance(content, dict) else content):
        _openpose_frame(found, index, frame or {"people": []})
    return found


def _openpose_frame(found: Detections, label: int | str, frame: dict) -> None:
    found.labels[label] = None
    if frame.get("canvas_width") and frame.get("canvas_height"):
        found.image_sizes.add(check_image_size((frame["canvas_width"], frame["canvas_height"])))
    for person in frame["people"]:
        flat = _first(person, ("pose_keypoints_2d", "pose_keypoints"), [])
        if flat and isinstance(flat[0], list):
            flat = [value for joint in flat for value in joint]
        if not flat and person.get("pose_keypoints_3d"):
            raise ValueError("expected pose_keypoints_2d, found pose_keypoints_3d only: these are 3D results")
        found.add(label, flat, None, _lowest(person.get("person_id")))


# ---------------------------------------------------------------------------------------------------------------------
# AlphaPose
# ---------------------------------------------------------------------------------------------------------------------


def alphapose(content: list | dict) -> Detections:
    """All outputs of AlphaPose: its list, the files of `--format cmu` and `open`, and PoseFlow's dictionary."""
    if isinstance(content, list):
        return _alphapose_list(content)
    if "bodies" in content or "people" in content:
        return _alphapose_frames({0: content})
    if any(isinstance(people, list) for people in content.values()):
        return _poseflow(content)
    return _alphapose_frames(content)


def _alphapose_list(records: list[dict]) -> Detections:
    """One `{image_id: "12.jpg", keypoints, score, idx}` per person; the order of names is not the order of frames."""
    found = Detections()
    for record in records:
        found.add(record["image_id"], _whole_body(record), record.get("score"), _lowest(record.get("idx")))
    return found


def _lowest(idx: Any) -> float | None:
    """An identity that may be nested in lists, one entry for each merged box: the smallest one."""
    if not isinstance(idx, list):
        return idx
    values = [value for value in map(_lowest, idx) if value is not None]
    return min(values, default=None)


def _alphapose_frames(frames: dict) -> Detections:
    """Image name -> `{bodies: [{joints}]}` or `{people: [{pose_keypoints_2d}]}`, both in OpenPose's order of 18."""
    found = Detections(units="either", defaults=OPENPOSE_DEFAULTS)
    for name, frame in frames.items():
        if "bodies" in frame:
            found.labels[name] = None
            for body in frame["bodies"]:
                found.add(name, body["joints"])
        else:
            _openpose_frame(found, name, frame)
    return found


def _poseflow(frames: dict[str, list[dict]]) -> Detections:
    """Image name -> list of tracked people."""
    found = Detections()
    for name, people in frames.items():
        found.labels[name] = None
        for person in people:
            score = _lowest(_first(person, ("scores", "score")))
            found.add(name, person["keypoints"], score, _lowest(person.get("idx")))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# MMPose and Sapiens, ViTPose, rtmlib
# ---------------------------------------------------------------------------------------------------------------------


def mmpose(content: list | dict) -> Detections:
    """Instances `{keypoints: [[x, y], …], keypoint_scores}` of an image, or of every frame of a video.

    The demo scripts wrap them in `{meta_info, instance_info}` and count frames from 1, the inferencer from 0.
    """
    found = Detections()
    meta = {}
    if isinstance(content, dict):
        meta, content = content.get("meta_info") or {}, content.get("instance_info", [content])
    if meta:
        names = meta.get("keypoint_id2name") or {}
        ordered = [names[key] for key in sorted(names, key=int)]
        found.skeleton = (ordered and skeleton_of_names(ordered)) or skeleton_of_dataset(meta.get("dataset_name"))
        if found.skeleton is None:
            found.question = f"the data set {meta.get('dataset_name')!r} of this file is of no known skeleton"
    if any(isinstance(frame, list) for frame in content):
        content = [{"frame_id": index, "instances": frame} for index, frame in enumerate(content)]
    elif not any("frame_id" in frame for frame in content):
        content = [{"frame_id": 0, "instances": content}]
    elif meta:
        found.first_frame = 1
    fallbacks = 0
    for frame in content:
        found.labels[frame["frame_id"]] = None
        for person in frame["instances"] or []:
            found.add(frame["frame_id"], _interleave(person["keypoints"], person["keypoint_scores"]))
            box = person.get("bbox") or []
            box = box[0] if box and isinstance(box[0], list) else box
            fallbacks += len(box) == 4 and box[:2] == [0, 0] and person.get("bbox_score") == 1
    if fallbacks:
        found.note(f"{fallbacks} people fill the whole image, which is what this tool does where it finds nobody")
    return found


def huggingface(content: list | dict) -> Detections:
    """ViTPose's post-processed output as lists: people `{keypoints: [[x, y], …], scores, labels}` of each image.

    `labels` are joint numbers; joints below the threshold are absent from the lists. The first release had no scores but
    `[x, y, score]` as keypoints.
    """
    found = Detections()
    frames = _frames_of_people(content)
    highest = max((label for people in frames for person in people for label in person.get("labels") or [0]), default=0)
    count = 17 if highest < 17 else min((k for k in JOINT_COUNTS.values() if k > highest), default=highest + 1)
    for index, people in enumerate(frames):
        found.labels[index] = None
        for person in people:
            points, scores = person["keypoints"], person.get("scores")
            if scores is None and all(len(point) == 3 and -0.05 <= point[2] <= 1.5 for point in points):
                points, scores = [point[:2] for point in points], [point[2] for point in points]
            flat = _interleave(points, scores)
            labels = person.get("labels") or range(len(flat) // 3)
            joints = dict(zip(labels, zip(flat[::3], flat[1::3], flat[2::3])))
            total = count if person.get("labels") else len(joints)
            found.add(index, [value for j in range(total) for value in joints.get(j, (math.nan, math.nan, 0.0))])
    return found


def rtmlib(content: list | dict) -> Detections:
    """What rtmlib's models return, as people dump it: `{keypoints: [[[x, y], …], …], scores: [[c, …], …]}` of each frame.

    The place of a person in the list is no identity, even if the tracker was used.
    """
    found = Detections()
    for index, frame in enumerate([content] if isinstance(content, dict) else content):
        label = _first(frame, FRAME_KEYS, index)
        found.labels[label] = None
        if len(frame["keypoints"]) != len(frame["scores"]):
            raise ValueError(f"expected the scores of {len(frame['keypoints'])} people, found {len(frame['scores'])} (frame {label})")
        for points, scores in zip(frame["keypoints"], frame["scores"]):
            found.add(label, _interleave(points, scores))
    return found


def _frames_of_people(content: list | dict) -> list[list[dict]]:
    """A person, the people of one frame, or the people of each frame: always as the last."""
    if isinstance(content, dict):
        return [[content]]
    if any(isinstance(entry, dict) for entry in content):
        return [content]
    return [people or [] for people in content]


# ---------------------------------------------------------------------------------------------------------------------
# Ultralytics YOLO
# ---------------------------------------------------------------------------------------------------------------------


def ultralytics(content: list | dict) -> Detections:
    """`Results.to_json()`: people `{keypoints: {x, y, visible}, confidence, track_id}` of one or of each frame."""
    found = Detections(units="either")
    frames = _frames_of_people(content)
    found.labels = dict.fromkeys(range(len(frames)))
    records = [{"frame": index, **person} for index, people in enumerate(frames) for person in people]
    for person in _people(records, "class", 0, found):
        if "keypoints" not in person:
            raise ValueError("expected keypoints, found boxes only: this is a detector's file; use a pose model")
        joints = person["keypoints"]
        x, y = joints["x"], joints["y"]
        if len(x) != len(y):
            raise ValueError(f"expected as many x as y, found {len(x)} and {len(y)} (frame {person['frame']})")
        flat = _interleave(list(zip(x, y)), joints.get("visible"))
        found.add(person["frame"], flat, person.get("confidence"), person.get("track_id"))
    return found


def yolo_txt(frames: dict[str, str], joints: int | None = None) -> Detections:
    """Label files, frame name -> text: a person per line, `class cx cy w h`, the joints, perhaps a score and an id.

    All coordinates are fractions of the image size. Joints are `x y v` or `x y`. Videos are numbered from 1.
    """
    found = Detections(units="unit", third="or flag")
    rows = [(name, line.split()) for name, text in frames.items() for line in text.splitlines() if line.strip()]
    found.labels = dict.fromkeys(frames)
    if all(re.fullmatch(r".+_[1-9]\d*\.txt", name) for name in frames):
        found.first_frame = 1
    try:
        values = [(name, [float(token) for token in tokens]) for name, tokens in rows]
    except ValueError:
        raise ValueError("expected numbers only: class, box, joints of one person per line") from None
    values = [(name, row) for name, row in values if row[0] == 0] or values
    if len(values) < len(rows):
        found.note(f"{len(rows) - len(values)} detections of other classes than 0 were left out")
    if not values:
        return found
    count, channels, has_score, has_id = _yolo_columns([row for _, row in values], joints)
    for name, row in values:
        body, rest = row[5 : 5 + count * channels], row[5 + count * channels :]
        if channels == 2:
            body = [value for j in range(count) for value in (body[2 * j], body[2 * j + 1], 1.0)]
        identity = rest[-1] if has_id and len(rest) == has_score + has_id else None
        found.add(name, body, rest[0] if has_score else None, identity)
    return found


def _yolo_columns(rows: list[list[float]], joints: int | None) -> tuple[int, int, bool, bool]:
    """Number of joints and of numbers per joint, and whether a score and an id follow (an id may be missing)."""
    lengths = sorted({len(row) for row in rows})
    if lengths[-1] <= 7:
        raise ValueError(f"expected keypoints, found lines of {lengths[-1]} numbers: boxes only, use a pose model")
    for count in [joints] if joints else [17, *sorted(set(JOINT_COUNTS.values()))]:
        for channels in (3, 2):
            extra = [length - 5 - count * channels for length in lengths]
            if extra in ([0], [1], [2], [0, 1], [1, 2]):
                whole = all(row[-1] >= 1 and row[-1].is_integer() for row in rows)
                has_id = extra[-1] == 2 or extra == [0, 1] or (extra == [1] and whole)
                return count, channels, extra[-1] - has_id == 1, has_id
    raise ValueError(
        f"expected lines of 5 + 3 × joints or 5 + 2 × joints numbers (and score, id) for "
        f"{f'{joints} joints' if joints else 'a known skeleton'}, found lines of {lengths} numbers"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Detectron
# ---------------------------------------------------------------------------------------------------------------------


def detectron(members: dict[str, Any]) -> Detections:
    """Detectron's and Detectron2's files as VideoPose3D's scripts write them: `boxes`, `keypoints`, `metadata`.

    Both hold `[[], people]` for every frame; a person is `(4, 17)`, rows x, y, logit, probability, or `(5,)`, a box and its score.
    """
    found = Detections()
    found.image_sizes.add(check_image_size((members["metadata"]["w"], members["metadata"]["h"])))
    found.note("confidences are Detectron's, of which 0.05 to 0.5 is usual")
    for index, (boxes, people) in enumerate(zip(members["boxes"], members["keypoints"], strict=True)):
        found.labels[index] = None
        for box, person in zip(boxes[1], people[1], strict=True):
            found.add(index, np.asarray(person)[[0, 1, 3]].T.ravel().tolist(), float(box[4]))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# MediaPipe
# ---------------------------------------------------------------------------------------------------------------------


def mediapipe(content: list | dict) -> Detections:
    """33 landmarks `{x, y, z, visibility}` per person, in the dumps people make: frames as dictionaries or lists.

    x and y are fractions of width and height, unless the values show that someone multiplied them already.
    """
    found = Detections(units="unit", third="or logit")
    if isinstance(content, dict):
        found.fps = _first(content, ("fps", "frameRate", "frame_rate"))
        if content.get("width") and content.get("height"):
            found.image_sizes.add(check_image_size((content["width"], content["height"])))
        content = _first(content, ("poses", "frames"), [content])
    elif content and isinstance(content[0], dict) and "x" in content[0]:
        content = [content]
    hips = []
    for index, frame in enumerate(content):
        label = _first(frame, FRAME_KEYS, index) if isinstance(frame, dict) else index
        found.labels[label] = None
        for landmarks in _mediapipe_people(frame):
            if len(landmarks) != 33:
                raise ValueError(f"expected 33 landmarks per person, found {len(landmarks)} (frame {label})")
            found.add(label, [v for m in landmarks for v in (m["x"], m["y"], _first(m, ("visibility", "presence"), 1.0))])
            hips.append([(landmarks[23][axis] + landmarks[24][axis]) / 2 for axis in ("x", "y")])
    if hips and all(abs(x) < 0.02 and abs(y) < 0.02 for x, y in hips):
        raise ValueError("expected image landmarks, found world landmarks (hips at the origin): these are 3D results")
    values = [abs(v) for flat in found.points for v in (*flat[::3], *flat[1::3]) if v is not None]
    if sum(v > 2 for v in values) > 0.01 * len(values):
        found.units = "pixels"
    return found


def _mediapipe_people(frame: Any) -> Iterator[list[dict]]:
    """The landmark lists in a frame: a list of landmarks, a list of people, or either under one of several keys."""
    if isinstance(frame, dict):
        inner = _first(frame, LANDMARK_KEYS)
        if inner is None and _first(frame, WORLD_LANDMARK_KEYS):
            raise ValueError("expected image landmarks, found world landmarks only: these are 3D results")
        frame = inner
    if not frame:
        return
    if not isinstance(frame, (dict, list)):
        raise ValueError(f"expected landmarks in each frame, found {str(frame)[:40]!r}")
    if isinstance(frame, dict):
        yield from _mediapipe_people(frame)
    elif isinstance(frame[0], dict) and "x" in frame[0]:
        yield frame
    else:
        for person in frame:
            yield from _mediapipe_people(person)
