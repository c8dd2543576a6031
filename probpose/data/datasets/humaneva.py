"""HumanEva-I (Sigal et al., IJCV 2010) in VideoPose3D's files: three colour cameras, 60 frames per second, 15 joints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probpose.geometry import Camera, resection

from .checks import check_clips
from .clips import PoseClip, PoseDataset
from .videopose3d import Keypoints, Positions, cameras_from_record, choose

CAMERAS = ("C1", "C2", "C3")
_NAME = "humaneva15"
_SKELETON = "humaneva_15"
_IMAGE_SIZE = (640, 480)
_FPS = 60.0
_ACTIONS = {"Walking": "Walk", "Jogging": "Jog", "Boxing": "Box"}
_RESECTION_FRAMES = 200  # of each camera


def read_humaneva(
    path: str | Path,
    keypoints: str = "gt",
    subjects: Iterable[str] | None = None,
    actions: Iterable[str] | None = None,
    cameras: Mapping[str, Any] | str | Path | None = None,
) -> PoseDataset:
    """Reads HumanEva-I: one clip per subject, take and camera, named "Validate/S1/Walking 1 chunk0/C1".

    Tags: `dataset`, `split` ("Train", "Validate"), `subject` ("S1"), `action` ("Walk"), `take`, `camera`.

    Args:
        path: the folder of `data_3d_humaneva15.npz` and `data_2d_humaneva15_<keypoints>.npz`, or the 3D file itself.
        keypoints: kind of 2D file: "gt", "detectron_pt_coco" or any other of HumanEva's 15 joints or COCO's.
        subjects: such as "Validate/S1"; None = all of "Validate", the field's test set.
        actions: takes ("Walking 1 chunk0") or all takes of an action ("Walk"); None = all. Papers compare Walk, Jog and Box.
        cameras: dict or JSON file of the form of `probpose/geometry/h36m_cameras.json`, with the extrinsics of "S1", "S2", ... The files
            have none; None recovers them from the true keypoints by `probpose.geometry.resection`, without distortion, and the notes tell
            how well they fit.

    Returns:
        Clips of the 15 joints of HumanEva (`humaneva_15`) with the protocol "humaneva". Frames whose 3D joints are not all known, or all
        zero, are not valid; the notes count them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file or another layout; a subject or action that is not there; keypoints shorter than the poses; no
            cameras and no true keypoints to recover them from.
    """
    truth = Positions.load(path, _NAME)
    folder = truth.path.parent
    if subjects is None and not (subjects := [name for name in truth.subjects if name.startswith("Validate/")]):
        raise ValueError(f"{truth.path} has no subjects of Validate; it has {sorted(truth.subjects)}, give subjects")
    subjects = choose(subjects, truth.subjects, "subjects", truth.path)
    takes = [take for subject in subjects for take in truth.subjects[subject]]
    known = dict.fromkeys(name for take in takes for name in (take, _action(take)))
    wanted = None if actions is None else set(choose(actions, known, "actions", truth.path))

    seen = Keypoints(folder, _NAME, keypoints, _SKELETON)
    notes = []
    if cameras is None:
        rigs, note = _recover_cameras(truth, {_person(subject) for subject in subjects})
        notes.append(note)
    else:
        record, where = _record(cameras)
        rigs = {_person(subject): cameras_from_record(record, _person(subject), where) for subject in subjects}

    clips, unknown = [], {}
    for subject in subjects:
        for take in truth.subjects[subject]:
            if wanted is not None and not wanted & {take, _action(take)}:
                continue
            world = _positions(truth, subject, take)
            valid = world.isfinite().flatten(1).all(1)
            if not valid.all():
                unknown[f"{subject}/{take}"] = int((~valid).sum())
            for index, camera in enumerate(rigs[_person(subject)]):
                name = CAMERAS[index]
                pixels, confidence = seen.view(subject, take, index, name, len(world))
                points = camera.to_camera(world)
                tags = {"dataset": "humaneva", "split": subject.split("/")[0], "subject": _person(subject)}
                tags |= {"action": _action(take), "take": take, "camera": name}
                clips.append(PoseClip(f"{subject}/{take}/{name}", pixels, confidence, points, camera, _FPS, _SKELETON, valid, tags))
    if unknown:
        detail = ", ".join(f"{take} ({count})" for take, count in unknown.items())
        notes.append(f"{sum(unknown.values())} frames without complete 3D joints are not valid: {detail}")
    notes += [*seen.notes, *check_clips(clips, str(truth.path))]
    return PoseDataset(tuple(clips), f"humaneva {keypoints}", "humaneva", tuple(notes))


def _action(take: str) -> str:
    """The field's name of an action: "Walk" of the take "Walking 1 chunk0"."""
    word = take.split(" ")[0]
    return _ACTIONS.get(word, word)


def _person(subject: str) -> str:
    """ "S1" of "Validate/S1": the cameras stand still for all that a person does."""
    return subject.split("/")[-1]


def _positions(truth: Positions, subject: str, take: str) -> Tensor:
    """World positions `(frames, 15, 3)`; NaN in frames of zeros, which stand for no data."""
    world = truth.get(subject, take, (15,))
    return world.masked_fill((world == 0).flatten(1).all(1)[:, None, None], torch.nan)


def _record(cameras: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], str | Path]:
    if isinstance(cameras, Mapping):
        return cameras, "cameras"
    try:
        return json.loads(Path(cameras).read_text()), cameras
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{cameras} is no JSON file of cameras: {error}") from None


def _recover_cameras(truth: Positions, people: set[str]) -> tuple[dict[str, list[Camera]], str]:
    """Each person's cameras from all the takes in which they are seen, and a note of how well they fit."""
    try:
        seen = Keypoints(truth.path.parent, _NAME, "gt", _SKELETON)
    except FileNotFoundError:
        raise ValueError(
            f"{truth.path} has no cameras, and without data_2d_{_NAME}_gt.npz beside it they cannot be recovered; give cameras"
        ) from None
    rigs, residuals = {}, []
    for person in sorted(people):
        takes = [
            (s, take) for s in truth.subjects if _person(s) == person for take in truth.subjects[s] if take in seen.subjects.get(s, {})
        ]
        rigs[person] = []
        for index, name in enumerate(CAMERAS):
            points, pixels = [], []
            for subject, take in takes:
                world = _positions(truth, subject, take)
                points.append(world)
                pixels.append(seen.view(subject, take, index, name, len(world))[0])
            points, pixels = (torch.cat(values) if values else torch.zeros(0, 15, n) for values, n in ((points, 3), (pixels, 2)))
            every = max(1, len(points) // _RESECTION_FRAMES)
            try:
                camera = resection(points[::every], pixels[::every], _IMAGE_SIZE)
            except ValueError as error:
                raise ValueError(f"{seen.path}: camera {name} of {person} cannot be recovered ({error}); give cameras") from None
            rigs[person].append(camera)
            residual = torch.linalg.vector_norm(camera.project(camera.to_camera(points)) - pixels, dim=-1).nanmean()
            residuals.append(f"{person} {name} {residual:.2f}")
    return rigs, (
        "the files have no cameras: they are recovered from 3D joints and true keypoints, as pinholes without distortion; mean residuals "
        f"in pixels: {', '.join(residuals)}"
    )
