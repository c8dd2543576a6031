"""Video files as upright pictures at a constant rate, and pictures as a video file. Nothing else here knows containers and codecs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from probpose.data.keypoints.tracks import check_fps, check_image_size
from probpose.files import replacing

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
)
# FFmpeg would also read pictures, text as a terminal shows it, and playlists that open other files.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,asf,ogg,gif"
COMMON_RATES = (30, 25, 24, 60, 50, 120, 240, 15, 20, 12, 10, 5, 2, 1, 48, 90, 100, 480)
NTSC_RATES = tuple(Fraction(1000 * rate, 1001) for rate in (30, 24, 60))
ENCODERS = ("libx264", "libopenh264", "mpeg4")
# How late a picture may come, as a part of a frame. With a half, rounding would decide which of two pictures is the nearer one.
PATIENCE = 0.45


def is_video(path: str | Path) -> bool:
    """Whether the file's name ends as a video's does (`VIDEO_SUFFIXES`), in small or capital letters."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class _Clock:
    """Which frame a picture belongs to."""

    start: int | None  # timestamp of the first picture, None if the file has no timestamps
    tick: float  # seconds
    spacing: float  # seconds from picture to picture
    fps: float

    def seconds(self, timestamp: int | None, before: float | None) -> float:
        """Seconds after the first picture; without a timestamp, one spacing after the picture `before`."""
        if timestamp is None or self.start is None:
            return 0.0 if before is None else before + self.spacing
        return (timestamp - self.start) * self.tick

    def frame(self, seconds: float) -> int:
        """The first frame that shows a picture of that time."""
        return math.ceil((seconds - PATIENCE * min(self.spacing, 1 / self.fps)) * self.fps)


@dataclass(frozen=True)
class Video:
    """A video file as its frames will be read: upright, with square pixels, at a constant rate.

    Frame k is what a viewer sees k / fps seconds after the first picture: the last picture that came until then, or less than half a
    frame later. So a video of constant rate gives exactly its pictures, one each, however coarse its timestamps.

    Attributes:
        path: the file.
        size: width and height in pixels, as a player shows it.
        fps: frames per second, as they are read.
        num_frames: number of frames, by the pictures that the file holds. `frames()` gives fewer if the last ones cannot be decoded.
        notes: what was done, for the user: turned, made square, read at another rate.
    """

    path: Path
    size: tuple[int, int]
    fps: float
    num_frames: int
    notes: tuple[str, ...]
    _clock: _Clock = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, fps: float | None = None) -> Video:
        """Read all timestamps of a video and decode its first picture.

        Warns if the file ends before the end that it announces.

        Args:
            path: a video file; `VIDEO_SUFFIXES` lists the usual ones, but the content decides.
            fps: frames per second to read it at. Default: its own, for a variable rate the common one nearest to the median.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is empty, no video, or not one of its pictures can be decoded; or `fps` is not positive.
            ImportError: PyAV is not installed (`pip install probpose[video]`).
        """
        path, fps = Path(path), check_fps(fps)
        errors: list[Exception] = []
        first, stamps, length = None, [], 0
        with _opened(path) as (container, stream):
            for packet in _packets(container, stream, errors):
                if first is None:
                    first = next(iter(_decoded(stream, packet, errors)), None)
                if packet is not None and not packet.is_discard:  # as those before the start of an edited video
                    stamps.append(packet.pts)
                    length += packet.duration or 0
            if first is None:
                why = f"can be decoded: {errors[0].strerror}" if errors else "is there"
                raise ValueError(f"{path}: not one picture of this video {why}")
            times = _times(stamps, first.pts, stream)
            tick = float(stream.time_base)
            own, steady = _rate(times, tick, [stream.average_rate, stream.guessed_rate])
            missing = (stream.duration or 0) * tick - max(length * tick, times[-1] + 1 / own)
            pixel = float(stream.sample_aspect_ratio or 1)
        if missing > 0.25:
            warnings.warn(f"{path} ends {missing:.1f} s before the end that it announces: it seems to be cut off", stacklevel=2)

        spacing = 1 / own if steady else float(np.median(np.diff(times)))
        clock = _Clock(first.pts, tick, spacing, fps or own)
        quarters, mirrored = _orientation(first)
        width, height = round(first.width * pixel), first.height
        notes = []
        if width != first.width:
            notes.append(f"pixels made square: {first.width} of them in a row became {width}")
        if mirrored:
            notes.append("mirrored top to bottom")
        if quarters:
            notes.append(f"turned by {90 * quarters} degrees")
        if not steady:
            slow, fast = 1 / np.diff(times).max(), 1 / np.diff(times).min()
            notes.append(f"variable frame rate ({slow:.1f} to {fast:.1f} per second): read at {clock.fps:.6g} per second")
        elif clock.fps != own:
            notes.append(f"read at {clock.fps:.6g} instead of {own:.6g} frames per second")
        size = (height, width) if quarters % 2 else (width, height)
        return cls(path, size, clock.fps, clock.frame(times[-1] + spacing), tuple(notes), clock)

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, `(height, width, 3)` uint8, RGB, one at a time and each an array of its own; from the start at every call.

        Where pictures cannot be decoded, the one before stays, as in a player, and after the last that can be decoded nothing comes.
        A warning tells.
        """
        errors: list[Exception] = []
        picture, done, damage = None, 0, 0
        for following, number in self._pictures(errors):
            while picture is not None and done < number:
                yield self._image(picture)
                done += 1
            if number == done:  # behind damage, pictures also come too late
                picture = following
            if not errors:
                damage = done
        if errors:
            place = f"after {damage} frames ({damage / self.fps:.1f} s)"
            read = f"{done} of {self.num_frames} frames were read"
            warnings.warn(f"{self.path} is damaged {place}: {errors[0].strerror}; {read}", stacklevel=2)

    def _pictures(self, errors: list[Exception]) -> Iterator[tuple[Any, int]]:
        """The pictures as they are decoded, each with the first frame that shows it; in the end None, with the number of frames."""
        seconds = None
        with _opened(self.path) as (container, stream):
            for packet in _packets(container, stream, errors):
                for picture in _decoded(stream, packet, errors):
                    seconds = self._clock.seconds(picture.pts, seconds)
                    yield picture, self._clock.frame(seconds)
        if seconds is not None:
            yield None, self._clock.frame(seconds + self._clock.spacing)

    def _image(self, picture: Any) -> np.ndarray:
        quarters, mirrored = _orientation(picture)
        width, height = self.size[::-1] if quarters % 2 else self.size
        # Where no colour space is given for RGB, older releases of PyAV shift the colours of BT.709, that is of most telephones.
        image = picture.to_ndarray(format="rgb24", width=width, height=height, dst_colorspace="ITU601")
        return np.ascontiguousarray(np.rot90(image[::-1] if mirrored else image, -quarters))


@contextmanager
def write_video(path: str | Path, size: tuple[int, int], fps: float, overwrite: bool = False) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an H.264 file that browsers and slide programs play, whole or not at all.

        with write_video("walk.mp4", (640, 480), fps=30) as append:
            for image in images:
                append(image)  # (480, 640, 3) uint8, RGB

    An odd width or height, which H.264 does not have, grows by one pixel that repeats the last. Without an encoder for H.264 in
    FFmpeg the file holds MPEG-4 video.

    Args:
        path: the file, .mp4.
        size: width and height of the frames in pixels.
        fps: frames per second; kept as a fraction, so that 29.97 and 30000 / 1001 stay what they are.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
        FileNotFoundError: the folder around it does not exist.
        ValueError: another suffix, a bad size or rate, a frame of another shape or type, or no frame at all.
        ImportError: PyAV is not installed (`pip install probpose[video]`).
    """
    av, path = _av(), Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"videos are written as .mp4, not {path.name!r}")
    (width, height), rate = check_image_size(size), Fraction(check_fps(fps)).limit_denominator(1001)
    if rate == 0:
        raise ValueError(f"fps must be at least 0.001 frames per second, not {fps!r}")
    encoder = next(name for name in ENCODERS if name in av.codecs_available)
    numbers = count()

    def append(image: np.ndarray) -> None:
        image = np.asarray(image)
        if image.shape != (height, width, 3) or image.dtype != np.uint8:
            raise ValueError(f"a frame of {path.name} must be ({height}, {width}, 3) uint8, got {image.shape} {image.dtype}")
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(even, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts = next(numbers)
        container.mux(stream.encode(picture))

    with (
        replacing(path, overwrite) as unfinished,
        # With its index in front, a browser plays the file while it is loading.
        av.open(f"file:{unfinished}", "w", format="mp4", container_options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream(encoder, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16 to 235
        if encoder == "libx264":
            context.options = {"crf": "20", "preset": "veryfast"}
        else:
            context.bit_rate = int(0.2 * width * height * rate) + 100_000
        yield append
        if next(numbers) == 0:
            raise ValueError(f"not one frame was given for {path.name}")
        container.mux(stream.encode())


# ---------------------------------------------------------------------------------------------------------------------
# Files: from a path to packets to decoded pictures
# ---------------------------------------------------------------------------------------------------------------------


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ImportError("reading and writing videos needs PyAV: pip install probpose[video]") from None
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream."""
    av = _av()
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a video, found nothing there")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a video")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:  # "file:", for "12:30.mp4" would be read as the address of a protocol 12
        container = av.open(f"file:{path}", container_options=options, metadata_errors="ignore")
    except PermissionError:
        raise
    except av.FFmpegError as error:
        told = "a file of another kind (a single picture is no video), or one that was cut off before its index was written"
        raise ValueError(f"{path} cannot be read as a video: {told}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # the cover of a piece of music
            kinds = ", ".join(sorted({stream.type for stream in container.streams} - {"video"})) or "nothing"
            raise ValueError(f"{path} holds no video, only {kinds}")
        if stream.codec_context is None:
            raise ValueError(f"{path} holds video of a codec that this FFmpeg cannot decode")
        # Left at threads by slice: with threads by frame, the last pictures before damage are lost, and the damage is not told.
        yield container, stream


def _packets(container: Any, stream: Any, errors: list[Exception]) -> Iterator[Any]:
    """The stream's packets in the order of decoding, then None.

    Where the clock starts anew, as in recordings that were joined, it is made to run on.
    """
    av = _av()
    order_only = container.format.name == "avi" and stream.codec_context.has_b_frames  # AVI tells when to decode, not when to show
    shift, last = 0, -math.inf
    try:
        for packet in container.demux(stream):
            if not packet.size:  # the end, or AVI's sign that the picture before stays
                continue
            if packet.dts is not None:
                if packet.dts + shift < last - 1 / stream.time_base:
                    shift = last + (packet.duration or 1) - packet.dts
                last = packet.dts + shift
            packet.pts = None if packet.pts is None or order_only else packet.pts + shift
            yield packet
    except av.FFmpegError as error:
        errors.append(error)
    yield None


def _decoded(stream: Any, packet: Any, errors: list[Exception]) -> list[Any]:
    """The pictures that a packet completes, in the order of showing; the last ones for None."""
    try:
        return stream.decode(packet)
    except _av().FFmpegError as error:
        errors.append(error)
        return []


# ---------------------------------------------------------------------------------------------------------------------
# What the file tells of its pictures
# ---------------------------------------------------------------------------------------------------------------------


def _orientation(picture: Any) -> tuple[int, bool]:
    """How to show a picture: whether to turn it upside down like a mirror first, and then the quarter turns, clockwise."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    # ISO 14496-12: a pixel at column p, row q is shown at column a p + c q + x, row b p + d q + y.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    return round(math.atan2(b, a) / (math.pi / 2)) % 4, a * d < b * c


def _times(stamps: list[int | None], start: int | None, stream: Any) -> np.ndarray:
    """Seconds from the first picture at which the pictures are shown, in order."""
    known = sorted({stamp for stamp in stamps if stamp is not None and start is not None and stamp >= start})
    if 2.5 * len(known) < len(stamps):  # with half of them: of two fields that make a picture, one has a timestamp
        return np.arange(len(stamps)) / float(stream.average_rate or 25)
    return (np.array(known) - start) * float(stream.time_base)


def _rate(times: np.ndarray, tick: float, declared: list[Fraction | None]) -> tuple[float, bool]:
    """Frames per second, and whether the pictures come at that rate; if not, it is the common rate nearest to the median one."""
    if len(times) == 1:
        return float(declared[0] or 30), True
    # Timestamps are rounded to ticks: where they agree with a rate but for that, it is the true one.
    known = [float(rate) for rate in (*declared, *COMMON_RATES, *NTSC_RATES) if rate]
    mean, median = times[-1] / (len(times) - 1), np.median(np.diff(times))
    rate = next((rate for rate in known if abs(1 / rate - mean) <= mean * tick / times[-1]), float(1 / mean))
    if np.abs(times * rate - np.arange(len(times))).max() < PATIENCE:
        return rate, True
    near = [rate for rate in known if abs(1 / rate - median) <= tick]
    return (near or [float(min(COMMON_RATES, key=lambda rate: abs(math.log(rate * median))))])[0], False
