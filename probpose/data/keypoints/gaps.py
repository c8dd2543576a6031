"""Spells in which a person is out of sight: which frames they are, and where a track should end because of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .tracks import KeypointTrack


def describe_frames(mask: np.ndarray, first_frame: int = 0) -> str:
    """The frames for which `mask (frames,)` holds, as people write them: "12, 40-54"; empty if there are none."""
    return ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in _spells(mask, first_frame))


def split_at_gaps(track: KeypointTrack, max_gap: float = 1.0) -> list[KeypointTrack]:
    """The clips of a track: it ends, and a new one begins, where the person is unseen for longer than `max_gap` seconds.

    Clips begin and end with a frame in which the person was seen. Shorter gaps stay inside, unobserved: pipelines bridge them.

    Args:
        track: of any length.
        max_gap: seconds, by the frame rate of the track, or 30 frames per second where it is not known.

    Returns:
        Clips in order of time, with the track's identity; a note in their `source` tells of the gaps between them.

    Raises:
        ValueError: nothing was observed in any frame, or `max_gap` is negative.
    """
    if not max_gap >= 0:
        raise ValueError(f"max_gap must be a number of seconds, at least 0, not {max_gap!r}")
    if not track.observed.any():
        raise ValueError(f"person {track.track_id} was not observed in any of {len(track)} frames")
    longest = max_gap * (track.fps or 30.0) + 1e-6
    seen = np.flatnonzero(track.observed)
    ends = np.flatnonzero(np.diff(seen) - 1 > longest)
    starts, stops = seen[np.append(0, ends + 1)], seen[np.append(ends, len(seen) - 1)] + 1
    if len(starts) == 1 and (starts[0], stops[0]) == (0, len(track)):
        return [track]
    notes = list(track.source.get("notes", []))
    if len(starts) > 1:
        gaps = np.ones(len(track), dtype=bool)
        for start, stop in zip(starts, stops):
            gaps[start:stop] = False
        gaps[: starts[0]] = gaps[stops[-1] :] = False
        when = describe_frames(gaps, int(track.frame[0]))
        notes.append(f"person {track.track_id} was out of sight in frames {when}: {len(starts)} clips")
    return [
        replace(
            track, keypoints_2d=track.keypoints_2d[part], confidence=track.confidence[part], frame=track.frame[part],
            confidence_raw=track.confidence_raw[part], source={**track.source, "notes": list(notes)},
        )
        for part in (slice(start, stop) for start, stop in zip(starts, stops))
    ]  # fmt: skip


def _spells(mask: np.ndarray, first_frame: int) -> list[tuple[int, int]]:
    """First and last frame of every run in which the mask holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.asarray(mask, dtype=bool), [False]]).astype(np.int8)))
    return [(int(low) + first_frame, int(high) - 1 + first_frame) for low, high in edges.reshape(-1, 2)]
