"""Small videos for tests: every picture carries its number, and a red corner tells which way is up."""

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np

SIZE = (96, 64)
RED, BLUE = (220, 40, 30), (40, 90, 160)
CODECS = {".avi": "mpeg4", ".gif": "gif", ".mpg": "mpeg2video", ".webm": "libvpx-vp9", ".wmv": "wmv2"}


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """`(height, width, 3)` uint8: blue, with a red corner top left and the number (0 to 255) in white and black along the bottom."""
    width, height = size
    image = np.full((height, width, 3), BLUE, np.uint8)
    image[: height // 4, : width // 4] = RED
    for bit, columns in enumerate(np.array_split(np.arange(width), 8)):
        image[-height // 4 :, columns] = 255 * (number >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    """The number that a picture carries, after it was compressed."""
    blocks = np.array_split(image[-image.shape[0] // 5 :].mean((0, 2)), 8)
    return sum(int(block.mean() > 128) << bit for bit, block in enumerate(blocks))


def make_clip(
    path: Path,
    pictures: int | Iterable[np.ndarray] = 30,
    fps: float | Fraction = 30,
    *,
    times: Iterable[float] | None = None,
    codec: str | None = None,
    pixel: Fraction | None = None,
    **options: str,
) -> Path:
    """Write a video; what it is depends on the suffix.

    Args:
        pictures: how many numbered pictures, or the pictures.
        times: seconds at which they are shown, instead of `fps`.
        codec: FFmpeg's name of the encoder. Default: libx264, or what is usual in such a file.
        pixel: width of a pixel by its height.
        options: of the encoder.
    """
    import av

    pictures = map(picture, range(pictures)) if isinstance(pictures, int) else pictures
    codec = codec or CODECS.get(path.suffix, "libx264")
    tick = 1 / Fraction(fps) if times is None else Fraction(1, 1000)
    stamps = count() if times is None else [round(time * 1000) for time in times]
    stream = None
    with av.open(str(path), "w") as container:
        for image, stamp in zip(pictures, stamps):
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(fps), options=options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
                stream.codec_context.time_base = tick
                if pixel is not None:
                    stream.codec_context.sample_aspect_ratio = pixel
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_sound(path: Path, cover: bool = False) -> Path:
    """A file without video, as a recorder or, with a cover, a music shop makes it."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        if cover:
            image = container.add_stream("mjpeg", rate=1)
            (image.width, image.height), image.pix_fmt = SIZE, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic.value
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate, silence.pts = 8000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
        if cover:
            container.mux(image.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
            container.mux(image.encode())
    return path


def turn(path: Path, degrees: int, mirror: bool = False) -> Path:
    """Give an .mp4 the flag of a telephone held otherwise: a player turns the picture by so many degrees, clockwise.

    With `mirror` it is turned upside down like a mirror before that.
    """
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    down = -1 if mirror else 1
    # ISO 14496-12, 6.2.2: column p, row q is shown at column a p + c q + x, row b p + d q + y; of (a, b, u, c, d, v, x, y, w), u, v
    # and w have 30 bits behind the point and the others 16.
    a, b, c, d = cos, sin, -sin * down, cos * down
    width, height = SIZE
    x, y = -min(0, a * width) - min(0, c * height), -min(0, b * width) - min(0, d * height)
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30]
    return _patch(path, b"tkhd", 40, struct.pack(">9i", *matrix))


def trim(path: Path, first: int, frames: int) -> Path:
    """Cut an .mp4 of 30 frames per second by its edit list, as telephones do: the pictures outside stay in the file, unseen."""

    def lengthen(box: bytes) -> bytes:
        delay = struct.unpack(">i", box[4:])[0]  # of the first picture, for the sake of those that are decoded before they are shown
        return struct.pack(">Ii", round(frames / 30 * 1000), delay + first * 512)

    return _patch(path, b"elst", 8, lengthen, length=8)


def _patch(path: Path, box: bytes, offset: int, new: bytes | Callable[[bytes], bytes], length: int = 0) -> Path:
    content = path.read_bytes()
    assert content.count(box) == 1
    at = content.index(box) + len(box) + offset
    new = new(content[at : at + length]) if callable(new) else new
    path.write_bytes(content[:at] + new + content[at + len(new) :])
    return path
