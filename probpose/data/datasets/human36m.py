"""Human3.6M (Ionescu et al., PAMI 2014) in VideoPose3D's files: four cameras, 50 frames per second, seven subjects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from probpose.geometry import h36m_camera
from probpose.skeletons import convert

from .checks import check_clips
from .clips import PoseClip, PoseDataset
from .videopose3d import Keypoints, Positions, choose

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
_SKELETONS = {32: "h36m_32", 17: "h36m_17"}
_FPS = 50.0


def read_human36m(
    path: str | Path,
    keypoints: str = "cpn_ft_h36m_dbb",
    subjects: Iterable[str] | None = ("S9", "S11"),
    cameras: Iterable[str] | None = None,
    actions: Iterable[str] | None = None,
    method: str | None = None,
) -> PoseDataset:
    """Reads Human3.6M: one clip per subject, action and camera, named "S9/Directions 1/54138969".

    Tags: `dataset`, `subject`, `action` (the first word of its name, as the field groups them), `take` (the whole name), `camera`.

    Args:
        path: the folder of `data_3d_h36m.npz` and `data_2d_h36m_<keypoints>.npz`, or the 3D file itself.
        keypoints: kind of 2D file: "gt", "cpn_ft_h36m_dbb", "detectron_pt_coco" or any other of the 17 joints of Human3.6M or COCO.
            Without a 2D file "gt" is the projection of the 3D joints.
        subjects: such as "S9"; None = all in the file. The default is the field's test set.
        cameras: ids, some of `CAMERAS`; None = all.
        actions: takes ("Directions 1") or all takes of an action ("Directions"); None = all.
        method: how COCO's joints become those of Human3.6M, see `probpose.skeletons.convert`.

    Returns:
        Clips of the 17 joints of Human3.6M (`h36m_17`), chosen from the 32 that the file holds, with the protocol "h36m".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file or another layout; a subject, camera or action that is not there; keypoints shorter than the poses.
    """
    truth = Positions.load(path, "h36m")
    subjects = choose(subjects, truth.subjects, "subjects", truth.path)
    cameras = choose(cameras, CAMERAS, "cameras", "Human3.6M")
    takes = [take for subject in subjects for take in truth.subjects[subject]]
    known = dict.fromkeys(name for take in takes for name in (take, _action(take)))
    wanted = None if actions is None else set(choose(actions, known, "actions", truth.path))

    folder = truth.path.parent
    projected = keypoints == "gt" and not (folder / "data_2d_h36m_gt.npz").is_file()
    seen = None if projected else Keypoints(folder, "h36m", keypoints, "h36m_17", method)

    clips = []
    for subject in subjects:
        for take in truth.subjects[subject]:
            if wanted is not None and not wanted & {take, _action(take)}:
                continue
            world = truth.get(subject, take, _SKELETONS)
            world = convert(world, _SKELETONS[world.shape[1]], "h36m_17")
            for name in cameras:
                index = CAMERAS.index(name)
                camera = h36m_camera(index, subject)
                points = camera.to_camera(world)
                if seen:
                    pixels, confidence = seen.view(subject, take, index, name, len(points))
                else:
                    pixels, confidence = camera.project(points), torch.ones(points.shape[:2])
                tags = {"dataset": "h36m", "subject": subject, "action": _action(take), "take": take, "camera": name}
                clips.append(PoseClip(f"{subject}/{take}/{name}", pixels, confidence, points, camera, _FPS, tags=tags))
    notes = seen.notes if seen else ["the true keypoints are projected 3D joints, as there is no data_2d_h36m_gt.npz"]
    return PoseDataset(tuple(clips), f"h36m {keypoints}", "h36m", (*notes, *check_clips(clips, str(truth.path))))


def _action(take: str) -> str:
    """The field's name of an action: "Directions" of the take "Directions 1"."""
    return take.split(" ")[0]
