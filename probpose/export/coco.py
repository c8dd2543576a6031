"""COCO's annotation layout (`.json`): images, annotations, categories, with the third dimension added.

One image per frame (`id` is the frame's number in the video) and one annotation per image:

* `keypoints`: x, y, v of every joint in a row, the joints reprojected through the camera in pixels, v = 2 (all 0 behind the camera), with
  `num_keypoints`, `bbox` and `area`; only where camera and root trajectory are known;
* `keypoints_3d`: `[x, y, z]` of every joint, metres, camera axes (x right, y down, z forward), with the root trajectory if there is one;
* `keypoint_scores`, `score`: for every joint the probability that it is within 150 mm of the truth (the threshold of MPI-INF-3DHP's PCK) if
  the error is normal and alike in all directions with the uncertainty as its root-mean-square radius; and their mean. With `uncertainty`,
  in metres. Only where the uncertainty is known;
* `hypotheses_3d`: `[K][joints][3]`, where there are any.

`categories` holds the joint names and the bones (from 1, as COCO counts), `info` the frame rate, the units and the name of the joint order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import gammainc

from .motion import Motion

CLOSE = 0.15  # metres


def write_json(motion: Motion, path: Path) -> None:
    """Write a motion and its hypotheses."""
    skeleton, camera = motion.skeleton, motion.camera
    size = {} if camera is None or camera.image_size is None else dict(zip(("width", "height"), camera.image_size))
    content = {
        "info": {
            "description": motion.name,
            "fps": motion.fps,
            "skeleton": skeleton.name,
            "units": {"keypoints": "px", "keypoints_3d": "m", "uncertainty": "m", "hypotheses_3d": "m"},
            "axes": "camera: x right, y down, z forward" + (", relative to the root joint" if motion.root is None else ""),
        },
        "images": [{"id": frame, "file_name": f"{motion.name}_{frame:06d}.jpg", **size} for frame in motion.frames.tolist()],
        "categories": [
            {
                "id": 1,
                "name": "person",
                "supercategory": "person",
                "keypoints": list(skeleton.joint_names),
                "skeleton": [[parent + 1, child + 1] for parent, child in skeleton.bones],
            }
        ],
        "annotations": _annotations(motion),
    }
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _annotations(motion: Motion) -> list[dict[str, Any]]:
    places = motion.in_camera(motion.pose)
    columns: dict[str, list] = {"keypoints_3d": places.round(6).tolist()}
    if motion.camera is not None and motion.root is not None:
        columns |= _in_image(motion, places)
    if motion.uncertainty is not None:
        scores = within(motion.uncertainty)
        columns |= {"uncertainty": motion.uncertainty.round(6).tolist(), "keypoint_scores": scores.round(4).tolist()}
        columns |= {"score": scores.mean(axis=1).round(4).tolist()}
    if motion.hypotheses is not None:
        columns["hypotheses_3d"] = motion.in_camera(motion.hypotheses).swapaxes(0, 1).round(6).tolist()
    return [
        {"id": index + 1, "image_id": frame, "category_id": 1, "track_id": 0, "iscrowd": 0, **dict(zip(columns, values))}
        for index, (frame, *values) in enumerate(zip(motion.frames.tolist(), *columns.values(), strict=True))
    ]


def _in_image(motion: Motion, places: np.ndarray) -> dict[str, list]:
    seen = places[..., 2:] > 0
    pixels = np.where(seen, motion.camera.to(torch.float64).project(torch.from_numpy(places)).numpy(force=True), 0.0)
    keypoints = np.concatenate([pixels, 2.0 * seen], axis=-1)
    # A body behind the camera has an empty box.
    low, high = (np.where(seen.any(axis=1), extreme, 0.0) for extreme in (_extreme(pixels, seen, 1), _extreme(pixels, seen, -1)))
    sides = high - low
    return {
        "keypoints": keypoints.round(3).reshape(len(places), -1).tolist(),
        "num_keypoints": seen.sum(axis=(1, 2)).tolist(),
        "bbox": np.concatenate([low, sides], axis=-1).round(3).tolist(),
        "area": sides.prod(axis=-1).round(3).tolist(),
    }


def _extreme(pixels: np.ndarray, seen: np.ndarray, sign: int) -> np.ndarray:
    """Least (sign 1) or greatest (-1) pixel coordinates of the joints that are seen, `(frames, 2)`."""
    return sign * np.where(seen, sign * pixels, np.inf).min(axis=1)


def within(uncertainty: np.ndarray, radius: float = CLOSE) -> np.ndarray:
    """Probability that an isotropic normal error with this root-mean-square length, in metres, is shorter than `radius`."""
    return gammainc(1.5, 1.5 * (radius / np.maximum(uncertainty, 1e-9)) ** 2)
