"""The figure or the page of a stored result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probpose.results import SampledPerson
from probpose.visualization.figure import SUFFIXES, plot_hypotheses
from probpose.visualization.html import write_html


def draw_person(
    person: SampledPerson, path: str | Path, frames: Sequence[int] | None = None, overwrite: bool = False, max_hypotheses: int = 20
) -> Path:
    """Draws one person as a figure (`.pdf`, `.png`, `.svg`: `plot_hypotheses`) or as a page (`.html`: `write_html`).

    Args:
        person: sampled with an aggregation.
        path: the file to write.
        frames: of a figure: numbers of the frames of the video to draw; five evenly spaced ones by default.
        overwrite: whether an existing file may be replaced.
        max_hypotheses: at most so many hypotheses are drawn.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, a person without an aggregated pose, or a frame that the person's track does not have.
        FileExistsError, FileNotFoundError: as the two functions raise them.
    """
    path = Path(path)
    if path.suffix.lower() not in (*SUFFIXES, ".html"):
        raise ValueError(f"`path` must end in one of {', '.join((*SUFFIXES, '.html'))}, not {str(path)!r}")
    if person.pose is None or person.uncertainty is None:
        raise ValueError(f"{person.name} has no aggregated pose to draw: sample with an aggregation")
    numbers = person.track.frame
    if frames is not None and (outside := sorted(set(frames) - set(numbers.tolist()))):
        raise ValueError(f"{person.name} has the frames {numbers[0]} to {numbers[-1]}, not {', '.join(map(str, outside))}")
    points, confidence = person.keypoints()
    estimate = person.hypotheses, person.pose, person.uncertainty, points
    drawing: dict[str, Any] = {
        "title": f"{person.name}: {len(person.hypotheses)} hypotheses, frames {numbers[0]} to {numbers[-1]}",
        "skeleton": person.skeleton, "confidence": confidence, "max_hypotheses": max_hypotheses, "overwrite": overwrite,
        "first_frame": int(numbers[0]),
    }  # fmt: skip
    if path.suffix.lower() == ".html":
        return write_html(path, *estimate, fps=person.track.fps, radius=person.radius, **drawing)
    chosen = None if frames is None else (np.asarray(frames) - numbers[0]).tolist()
    plot_hypotheses(*estimate, frames=chosen, image_size=person.track.image_size, path=path, **drawing)
    return path
