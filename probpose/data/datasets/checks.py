"""Does a clip make sense? What every reader asks before it hands a clip on: unit, missing truth, left and right, camera."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probpose.skeletons import get_skeleton

from .clips import PoseClip

_THIGH = (0.15, 0.75)  # metres, from a small child to a giant
_UNITS = {
    "millimetres": (1e-3, "divide by 1000"),
    "centimetres": (1e-2, "divide by 100"),
    "kilometres": (1e3, "multiply by 1000 (divided once too often?)"),
}
_MAX_FRAMES = 500  # medians need no more
_MAX_NAMED = 4  # clips that a note names


def check_clip(clip: PoseClip, where: str) -> list[str]:
    """Refuses a clip in another unit than metres and tells what else looks wrong.

    Args:
        clip: of any registered skeleton.
        where: the file it came from, for the error message.

    Returns:
        Notes, one line each: frames with NaN ground truth; no frame to score; left and right exchanged between the keypoints and the
        poses; keypoints that hardly agree with the poses (another camera or frame rate).

    Raises:
        ValueError: the median thigh is no human's when read in metres.
    """
    return list(check_clips([clip], where))


def check_clips(clips: Iterable[PoseClip], where: str) -> tuple[str, ...]:
    """As `check_clip` for many clips, with one note for all clips that share a finding."""
    found: dict[str, list[str]] = {}
    for clip in clips:
        for finding, detail in _findings(clip, where):
            found.setdefault(finding, []).append(f"{clip.name} ({detail})")
    return tuple(_note(finding, details) for finding, details in found.items())


def reprojection(clip: PoseClip) -> tuple[Tensor, Tensor]:
    """Distance of the projected ground truth from the keypoints, and from them with left and right exchanged.

    Returns:
        Two `(frames, joints)` in pixels, for at most 500 scored frames spread over the clip; NaN where either is not known.
    """
    frames = _sample(clip.scored)
    observed = clip.confidence[frames] > 0
    keypoints = torch.where(observed[..., None], clip.keypoints_2d[frames], torch.nan)
    projected = clip.camera.project(clip.positions_camera[frames])
    exchanged = keypoints[:, list(get_skeleton(clip.skeleton).flip_index)]
    as_given, swapped = (torch.linalg.vector_norm(projected - points, dim=-1) for points in (keypoints, exchanged))
    return as_given, swapped


def numbers(value: Any, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """A file's value as a float64 array of the shape that the layout demands; None in `shape` = any length but 0.

    Raises:
        ValueError: not numbers, or another shape; the message begins with `where` (file and key).
    """
    expected = ", ".join("frames" if n is None else str(n) for n in shape)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where} must be numbers of shape ({expected}), got {type(value).__name__}") from None
    if array.ndim != len(shape) or any(size == 0 or n not in (None, size) for n, size in zip(shape, array.shape)):
        raise ValueError(f"{where} must have shape ({expected}), got {array.shape}")
    return array


def _findings(clip: PoseClip, where: str) -> Iterator[tuple[str, str]]:
    """What is wrong, and the numbers that say so."""
    _check_unit(clip, where)
    missing = int((~torch.isfinite(clip.positions_camera)).flatten(1).any(1).sum())
    if missing:
        yield "NaN ground truth", f"{missing} of {len(clip)} frames"
    if not clip.scored.any():
        yield "no frame to score", f"{len(clip)} frames"
        return
    errors, exchanged = reprojection(clip)
    error = errors.nanmedian().item()
    size = _size_in_image(clip)

    # Joints on the midline say nothing about sides; a frame seen from the side says little, so the majority decides.
    both = torch.stack([errors, exchanged])
    compared = both.isfinite().all(0) & torch.isin(torch.arange(both.shape[-1]), torch.tensor(get_skeleton(clip.skeleton).flip_pairs))
    frames = torch.where(compared, both, torch.nan).nanmedian(-1).values
    as_given, swapped = frames.nanmedian(-1).values.tolist()
    agreeing = (frames[1] < frames[0])[compared.any(-1)].double().mean().item()
    if swapped < 0.5 * as_given and agreeing > 0.6 and as_given > 0.02 * size:
        yield (
            "left and right look exchanged between keypoints and 3D",
            f"median reprojection error of paired joints {as_given:.1f} px, {swapped:.1f} px when exchanged back",
        )
        error = swapped
    if error > 0.1 * size:
        yield (
            "keypoints and 3D hardly agree (another camera or frame rate?)",
            f"median reprojection error {error:.0f} px, person {size:.0f} px large",
        )


def _check_unit(clip: PoseClip, where: str) -> None:
    names = get_skeleton(clip.skeleton).joint_names
    if not {"left_hip", "left_knee", "right_hip", "right_knee"} <= set(names):
        return
    hips, knees = (clip.positions_camera[:, [names.index(f"{side}_{joint}") for side in ("left", "right")]] for joint in ("hip", "knee"))
    thigh = torch.linalg.vector_norm(hips - knees, dim=-1).nanmedian().item()
    low, high = _THIGH
    if np.isnan(thigh) or low <= thigh <= high:
        return
    unit = next((unit for unit, (factor, _) in _UNITS.items() if low <= thigh * factor <= high), None)
    advice = f"this looks like {unit}: {_UNITS[unit][1]}" if unit else "no common unit explains it"
    raise ValueError(
        f"{where}: clip {clip.name!r}: positions_camera must be in metres, but the median thigh measures {thigh:.4g} m "
        f"({low} to {high} m is plausible); {advice}"
    )


def _size_in_image(clip: PoseClip) -> float:
    """Median diagonal of the box around the projected joints, in pixels."""
    projected = clip.camera.project(clip.positions_camera[_sample(clip.scored)])
    known = projected.isfinite()
    low, high = torch.where(known, projected, torch.inf).amin(1), torch.where(known, projected, -torch.inf).amax(1)
    return torch.linalg.vector_norm(high - low, dim=-1).median().item()


def _sample(frames: Tensor) -> Tensor:
    """Indices of the marked frames, thinned out evenly to at most `_MAX_FRAMES`."""
    index = frames.nonzero()[:, 0]
    return index[:: max(1, -(-len(index) // _MAX_FRAMES))]


def _note(finding: str, details: list[str]) -> str:
    more = f" and {len(details) - _MAX_NAMED} more" if len(details) > _MAX_NAMED else ""
    return f"{finding} in {len(details)} clip{'s'[: len(details) > 1]}: {', '.join(details[:_MAX_NAMED])}{more}"
