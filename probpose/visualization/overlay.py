"""A film of a recording with the motion drawn into it: what was seen, what is believed, and how far to trust it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probpose.results import SampledPerson
from probpose.skeletons import get_skeleton
from probpose.visualization.common import INK, check_people, limbs, open_video, reproject, rgb, side_of

if TYPE_CHECKING:
    from probpose.video import Video

LONGEST = 1920  # pixels of the longer side that a picture has at most
CANVAS = (246, 246, 246)
WHITE = (255, 255, 255)
PALE = 0.35  # of white in thin lines, which are then seen on dark ground and on light
REACH = 1e4  # pixels from the picture's corner: what lies beyond, as close to the camera, is drawn there
SHIFT = 4  # OpenCV takes sixteenths of a pixel
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 41)), np.sin(np.linspace(0, 2 * np.pi, 41))], axis=-1)


def write_overlay(
    path: str | Path,
    people: Sequence[SampledPerson],
    video: Video | str | Path | None = None,
    *,
    max_hypotheses: int = 10,
    share: float = 0.9,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Draws all people of a recording into it, from the first frame in which anybody is followed to the last.

    Everybody is drawn with the 2D input as small rings, paler the lower the confidence; with thin hypotheses and a bold aggregated pose,
    both reprojected into the image; and with an ellipse about each joint. Where a person was not seen, the pose is dashed. One frame is
    held in memory at a time; pictures of more than 1920 pixels on the longer side are scaled down to that.

    Args:
        path: the file to write, `.mp4`.
        people: who share the frame rate and the image size of one recording; `track.frame` counts the frames of the video.
        video: the recording, as a file or an open `Video` of the people's frame rate; an empty canvas without it.
        max_hypotheses: at most so many hypotheses are drawn, the first ones. The ellipses are of all.
        share: of the hypotheses that an ellipse would hold if their reprojections were normally distributed.
        overwrite: whether an existing file may be replaced.
        progress: whether to show a progress bar.

    Returns:
        The path.

    Raises:
        ValueError: nobody, people of different frame rates or image sizes, somebody without a root trajectory or a camera, a video of
            another size or rate or that ends before anybody appears, or an argument outside its range.
        FileExistsError: `path` exists and `overwrite` is false.
        FileNotFoundError: the folder of `path` or the video does not exist.
        ImportError: OpenCV or PyAV is missing.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise ImportError(f"write_overlay needs OpenCV: pip install probpose[video] ({error})") from error
    from tqdm.auto import tqdm

    from probpose.video import write_video

    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"`path` must end in .mp4, not {str(path)!r}")
    if max_hypotheses < 1:
        raise ValueError(f"`max_hypotheses` must be at least 1, not {max_hypotheses}")
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1, not {share}")
    fps, image_size = check_people(people)
    if video is not None:
        video = open_video(video, people[0].track)
        fps = video.fps
    scale = min(1, LONGEST / max(image_size))
    size = round(scale * image_size[0]), round(scale * image_size[1])
    style = _Style.of(size)
    figures = [_Figure(person, name, scale, max_hypotheses, share, style) for person, name in zip(people, _short_names(people))]
    legend = _legend(share, any(figure.bridged.any() for figure in figures), style)
    legible = 2 * max(np.divide(legend.shape[1::-1], size)) < 1  # in a tiny picture it would hide the people
    corner = _emptiest_corner(figures, size, legend)
    first, last = min(figure.first for figure in figures), max(figure.last for figure in figures)
    pictures = _canvases(size) if video is None else _frames(video, first, size)
    with write_video(path, size, fps, overwrite) as append:
        number = first - 1
        for number, picture in zip(tqdm(range(first, last + 1), desc="overlay", disable=not progress), pictures):
            here = [figure for figure in figures if figure.first <= number <= figure.last]
            for figure in sorted(here, key=lambda figure: -figure.depth[number - figure.first]):  # the nearer cover the farther
                figure.draw(picture, number - figure.first)
            if legible:
                counter = _label(f"frame {number}", style.letters)
                legend[-len(counter) :, : counter.shape[1]] = counter
                _paste(picture, legend, *corner)
            _paste_apart(picture, [label for figure in here if (label := figure.label(number - figure.first))])
            append(picture)
        if number < first:
            raise ValueError(f"{video.path} ends before frame {first}, the first in which anybody is followed: is it another recording?")
    if number < last:
        warnings.warn(f"{video.path} ends with frame {number}, but people are followed to frame {last}", stacklevel=2)
    return path


def _canvases(size: tuple[int, int]) -> Iterator[np.ndarray]:
    while True:
        yield np.full((size[1], size[0], 3), CANVAS, np.uint8)


def _frames(video: Video, first: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    import cv2

    for frame in islice(video.frames(), first, None):
        yield frame if size == tuple(video.size) else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _short_names(people: Sequence[SampledPerson]) -> list[str]:
    """What stands beside people: names without the words that all of them begin with; nothing beside a single one."""
    if len(people) == 1:
        return [""]
    words = [person.name.split("_") for person in people]
    shared = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*words)))
    return ["_".join(rest[shared:]) or person.name for rest, person in zip(words, people)]


@dataclass(frozen=True)
class _Style:
    """Widths of bold and thin lines and the height of letters, in pixels."""

    bold: int
    thin: int
    letters: int

    @classmethod
    def of(cls, size: tuple[int, int]) -> _Style:
        return cls(max(2, round(min(size) / 240)), max(1, round(min(size) / 900)), max(10, round(min(size) / 56)))


class _Figure:
    """One person in the pixels of the pictures."""

    def __init__(self, person: SampledPerson, name: str, scale: float, max_hypotheses: int, share: float, style: _Style) -> None:
        skeleton = get_skeleton(person.skeleton)
        self.name, self.style = name, style
        self.first, self.last = int(person.track.frame[0]), int(person.track.frame[-1])
        self.bridged, self.depth = person.bridged, person.root[:, 2]
        self.limbs = limbs(skeleton)
        self.sides = np.array([side_of(skeleton, joint) for joint in range(skeleton.num_joints)])
        self.input, self.confidence = np.clip(scale * person.track.keypoints_2d, -REACH, REACH), person.track.confidence
        self.pose = None if person.pose is None else np.clip(scale * reproject(person, person.pose), -REACH, REACH)
        hypotheses = np.clip(scale * reproject(person, person.hypotheses), -REACH, REACH)
        self.hypotheses = hypotheses[:max_hypotheses]
        self.centre, self.axes = covering_ellipses(hypotheses, share)

    def draw(self, picture: np.ndarray, frame: int) -> None:
        bold, thin = self.style.bold, self.style.thin
        hypotheses, axes = self.hypotheses[:, frame], self.axes[frame]
        large = np.linalg.norm(axes, axis=(-2, -1)) > bold  # smaller ones vanish under the limbs
        outlines = (self.centre[frame, :, None] + CIRCLE @ axes.swapaxes(-1, -2))[large]

        def draw_faint(region: np.ndarray, corner: np.ndarray) -> None:
            for outline, side in zip(outlines, self.sides[large]):
                _fill(region, outline - corner, rgb(side))

        def draw_thin(region: np.ndarray, corner: np.ndarray) -> None:
            for side, joints in self.limbs:
                _lines(region, hypotheses[:, joints] - corner, rgb(side, PALE), thin)
            for outline, side in zip(outlines, self.sides[large]):
                _lines(region, [outline - corner], rgb(side, PALE), thin)

        around = np.concatenate([outlines.reshape(-1, 2), hypotheses.reshape(-1, 2)])
        _blend(picture, around, thin, 0.25, draw_faint)
        _blend(picture, around, thin, 0.7, draw_thin)
        if self.pose is not None:
            strokes = [(rgb(side), self.pose[frame, joints]) for side, joints in self.limbs]
            _draw_pose(picture, strokes, bold, dashed=self.bridged[frame])
        for point, confidence in zip(self.input[frame], self.confidence[frame]):
            _ring(picture, point, bold, thin, 0.25 + 0.75 * confidence)

    def label(self, frame: int) -> tuple[np.ndarray, float, float] | None:
        """What is to be said of the person, and where its middle and its top are: above the head."""
        words = [self.name] * bool(self.name) + ["not seen"] * bool(self.bridged[frame])
        body = self.centre[frame][np.isfinite(self.centre[frame]).all(axis=-1)]
        if not words or not len(body):
            return None
        patch = _label(", ".join(words), self.style.letters)
        return patch, body[:, 0].mean(), body[:, 1].min() - 2 * len(patch)


def covering_ellipses(points: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres `(frames, joints, 2)` of `points (K, frames, joints, 2)`, and the maps `(frames, joints, 2, 2)` that take the unit circle to
    ellipses about them that hold a `share` of a normal distribution with their covariance."""
    centre = points.mean(axis=0)
    off = np.nan_to_num(points - centre)
    covariance = np.einsum("kfja,kfjb->fjab", off, off) / max(1, len(points) - 1)
    variances, directions = np.linalg.eigh(covariance)
    quantile = -2 * np.log(1 - share)  # of the chi-square distribution with two degrees of freedom
    return centre, directions * np.sqrt(quantile * variances.clip(0))[..., None, :]


def _legend(share: float, dashed: bool, style: _Style) -> np.ndarray:
    """What the marks mean, `(height, width, 3)`, drawn with the same pens, and below it room for a line."""
    bold, thin, em = style.bold, style.thin, style.letters
    right, left, centre, pale = rgb("right"), rgb("left"), rgb("centre"), rgb("centre", 0.5)
    line, oval = np.array([[-1.1 * em, 0], [1.1 * em, 0]]), CIRCLE * [1.0 * em, 0.5 * em]
    fan = [line * [1, 0] + [[0, -turn], [0, turn]] for turn in (-0.25 * em, 0, 0.25 * em)]
    rows: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
        "person's right": lambda patch, at: _draw_pose(patch, [(right, at + line)], bold),
        "person's left": lambda patch, at: _draw_pose(patch, [(left, at + line)], bold),
        "not seen": lambda patch, at: _draw_pose(patch, [(centre, at + line)], bold, dashed=True),
        "hypotheses": lambda patch, at: _lines(patch, at + fan, pale, thin),
        f"{100 * share:g}% of hypotheses": lambda patch, at: _lines(patch, [at + oval], pale, thin),
        "2D input": lambda patch, at: _ring(patch, at, bold, thin, 1),
    }
    if not dashed:
        del rows["not seen"]
    labels = [_label(text, em) for text in rows]
    patch = np.full((sum(map(len, labels)) + round(1.6 * em), 3 * em + max(label.shape[1] for label in labels), 3), 255, np.uint8)
    top = 0
    for label, draw in zip(labels, rows.values()):
        patch[top : top + len(label), 3 * em : 3 * em + label.shape[1]] = label
        draw(patch, np.array([1.7 * em, top + len(label) / 2]))
        top += len(label)
    return patch


def _emptiest_corner(figures: list[_Figure], size: tuple[int, int], patch: np.ndarray) -> tuple[int, int]:
    """Where a patch covers the fewest joints over time: left and top of it."""
    extent = np.array(patch.shape[1::-1])
    joints = np.concatenate([figure.centre.reshape(-1, 2) for figure in figures])
    corners = [(x, y) for y in (0, size[1] - extent[1]) for x in (0, size[0] - extent[0])]
    return min(corners, key=lambda corner: ((joints > corner) & (joints < corner + extent)).all(axis=-1).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Pens and brushes
# ---------------------------------------------------------------------------------------------------------------------


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * 2**SHIFT).astype(np.int32)


def _lines(picture: np.ndarray, strokes: Iterable[np.ndarray], colour: Sequence[int], width: int) -> None:
    import cv2

    known = [_fixed(stroke) for stroke in strokes if np.isfinite(stroke).all()]
    cv2.polylines(picture, known, False, colour, width, cv2.LINE_AA, SHIFT)


def _fill(picture: np.ndarray, outline: np.ndarray, colour: Sequence[int]) -> None:
    import cv2

    if np.isfinite(outline).all():
        cv2.fillConvexPoly(picture, _fixed(outline), colour, cv2.LINE_AA, SHIFT)


def _blend(
    picture: np.ndarray, around: np.ndarray, reach: float, opacity: float, draw: Callable[[np.ndarray, np.ndarray], None]
) -> None:  # fmt: skip
    """Lets `draw(region, corner)` work on a copy of what lies around some points, and mixes the copy into the picture."""
    import cv2

    around = around[np.isfinite(around).all(axis=-1)]
    if not len(around):
        return
    low = np.clip(around.min(axis=0) - reach - 1, 0, picture.shape[1::-1]).astype(int)
    high = np.clip(around.max(axis=0) + reach + 2, 0, picture.shape[1::-1]).astype(int)
    below = picture[low[1] : high[1], low[0] : high[0]]
    if below.size:
        region = below.copy()
        draw(region, low)
        cv2.addWeighted(region, opacity, below, 1 - opacity, 0, dst=below)


def _draw_pose(picture: np.ndarray, strokes: Sequence[tuple[Sequence[int], np.ndarray]], width: int, dashed: bool = False) -> None:
    """Bold limbs with a white rim about all of them."""
    drawn = [(colour, _dashes(limb, 3 * width) if dashed else [limb]) for colour, limb in strokes]
    for _, pieces in drawn:
        _lines(picture, pieces, WHITE, width + 2 * max(1, width // 3))
    for colour, pieces in drawn:
        _lines(picture, pieces, colour, width)


def _dashes(stroke: np.ndarray, length: float) -> list[np.ndarray]:
    """Pieces of about a length with gaps as long between them; every bone begins and ends with a piece."""
    pieces: list[np.ndarray] = []
    for start, end in pairwise(stroke):
        count = max(1, round((np.linalg.norm(end - start) / length + 1) / 2)) if np.isfinite([start, end]).all() else 0
        pieces += list(start + np.arange(2 * count).reshape(count, 2, 1) / max(1, 2 * count - 1) * (end - start))
    return pieces


def _ring(picture: np.ndarray, point: np.ndarray, bold: int, thin: int, opacity: float) -> None:
    """A small hollow mark, dark within a light rim, to be seen on any ground."""
    import cv2

    def draw(region: np.ndarray, corner: np.ndarray) -> None:
        centre = _fixed(point - corner).tolist()
        for colour, width in ((WHITE, thin + 2), (rgb("centre"), thin)):
            cv2.circle(region, centre, round(1.2 * bold * 2**SHIFT), colour, width, cv2.LINE_AA, SHIFT)

    _blend(picture, point[None], 1.2 * bold + thin + 1, opacity, draw)


@lru_cache(maxsize=64)
def _label(text: str, size: int) -> np.ndarray:
    """Dark words on white, `(height, width, 3)`."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    # Matplotlib brings a font that knows most alphabets.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    image = Image.new("RGB", (round(font.getlength(text)) + size, round(1.6 * size)), WHITE)
    ImageDraw.Draw(image).text((size / 2, 0.8 * size), text, INK, font, anchor="lm")
    return np.asarray(image)


def _paste(picture: np.ndarray, patch: np.ndarray, left: float, top: float) -> None:
    """Lays a patch over the picture at a place, or as near to it as it fits in."""
    import cv2

    height, width = np.minimum(patch.shape[:2], picture.shape[:2])
    left, top = int(np.clip(left, 0, picture.shape[1] - width)), int(np.clip(top, 0, picture.shape[0] - height))
    below = picture[top : top + height, left : left + width]
    cv2.addWeighted(patch[:height, :width], 0.85, below, 0.15, 0, dst=below)


def _paste_apart(picture: np.ndarray, labels: Iterable[tuple[np.ndarray, float, float]]) -> None:
    """Pastes labels by their middles and tops, each moved up until it covers none before it."""
    pasted: list[tuple[np.ndarray, float, float]] = []
    for patch, middle, top in labels:
        for other, x, y in sorted(pasted, key=lambda label: -label[2]):  # from the bottom up
            if 2 * abs(middle - x) < patch.shape[1] + other.shape[1] and abs(top - y) < len(patch):
                top = y - len(patch) - 1
        _paste(picture, patch, middle - patch.shape[1] / 2, top)
        pasted.append((patch, middle, top))
