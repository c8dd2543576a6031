"""`probpose draw`: pictures of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite, app, epilog

_OF_ONE = (".png", ".pdf", ".svg", ".html")
_OF_ALL = (".mp4", ".rrd")


@app.command(
    epilog=epilog(
        "probpose draw out/walk.npz --to walk.pdf --frames 10,50,90",
        "probpose draw out/walk.npz --to walk.html --to walk.rrd",
        "probpose draw out/pair_person1.npz out/pair_person2.npz --to pair.mp4 --video pair.mov",
    )
)
def draw(
    results: Annotated[
        list[Path], typer.Argument(help="NAME.npz files of `probpose sample`; several people of one recording in one picture.")
    ],
    to: Annotated[list[Path], typer.Option(help="File to write: .pdf, .png, .svg, .html, .mp4 or .rrd (Rerun). May be repeated.")],
    frames: Annotated[str | None, typer.Option(help="Figures: frames of the video to show, e.g. 10,50,90. Default: five.")] = None,
    video: Annotated[Path | None, typer.Option(help=".mp4, .rrd: the video behind the drawing. Default: none.")] = None,
    max_hypotheses: Annotated[int | None, typer.Option(min=1, help="Most hypotheses to draw. Default: 10 in a video, else 20.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw what `probpose sample` has stored.

    .pdf and .svg are vector figures for papers, .html is a page to turn and play, .mp4 shows the result in the video (or on an empty
    canvas), .rrd is for the Rerun viewer (pip install probpose[rerun]).
    """
    from probpose.results import SampledPerson
    from probpose.visualization import draw_person, write_overlay, write_rerun

    for path in to:
        if path.suffix.lower() not in (*_OF_ONE, *_OF_ALL):
            raise ValueError(f"{path}: expected a name ending in {', '.join((*_OF_ONE, *_OF_ALL))}")
        if path.suffix.lower() in _OF_ONE and len(results) > 1:
            raise ValueError(f"{path} shows one person, but {len(results)} results were given: only .mp4 and .rrd show several")
    people = [SampledPerson.load(path) for path in results]
    numbers = None if frames is None else _frame_numbers(frames)
    limit = {} if max_hypotheses is None else {"max_hypotheses": max_hypotheses}
    for path in to:
        if path.suffix.lower() == ".mp4":
            write_overlay(path, people, video, overwrite=overwrite, progress=True, **limit)
        elif path.suffix.lower() == ".rrd":
            write_rerun(path, people, video, overwrite=overwrite, **limit)
        else:
            draw_person(people[0], path, numbers, overwrite, **limit)
        typer.echo(f"{', '.join(person.name for person in people)} -> {path}")


def _frame_numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--frames must be numbers of frames with commas between, e.g. 10,50,90, got {text!r}") from None
