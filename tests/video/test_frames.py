"""Video files of every kind give the frames that a viewer sees, and a written one gives back what went in."""

import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from clips import BLUE, RED, SIZE, make_clip, make_sound, number_of, picture, trim, turn

from probpose.video.frames import Video, is_video, write_video

av = pytest.importorskip("av")
NTSC = Fraction(30000, 1001)


def numbers(video):
    """The numbers on the frames, which all must have the video's size."""
    frames = list(video.frames())
    assert {frame.shape for frame in frames} == {(video.size[1], video.size[0], 3)} and frames[0].dtype == np.uint8
    return [number_of(frame) for frame in frames]


def corner(image):
    """Which corner is red."""
    height, width = image.shape[0] // 5, image.shape[1] // 5
    parts = {"top left": image[:height, :width], "top right": image[:height, -width:], "bottom left": image[-height:, :width]}
    parts["bottom right"] = image[-height:, -width:]
    return min(parts, key=lambda name: np.abs(parts[name].mean((0, 1)) - RED).sum())


# Reading


@pytest.mark.parametrize("fps", [25, NTSC, 60])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".wmv"])
def test_a_constant_rate_gives_every_picture_once(tmp_path, suffix, fps):
    video = Video.open(make_clip(tmp_path / f"clip{suffix}", 40, fps))
    assert video.fps == float(fps) and video.size == SIZE and video.notes == () and video.num_frames == 40
    assert numbers(video) == list(range(40))


def test_an_animated_picture(tmp_path):
    video = Video.open(make_clip(tmp_path / "clip.gif", 20))  # its ticks are hundredths of a second
    assert video.fps == pytest.approx(30) and numbers(video) == list(range(20))


def test_avi_that_tells_only_when_to_decode(tmp_path):
    path = make_clip(tmp_path / "clip.avi", 40, NTSC, codec="libx264")
    with av.open(str(path)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)
    video = Video.open(path)
    assert video.num_frames == 40 and video.fps == float(NTSC) and numbers(video) == list(range(40))


def test_one_picture(tmp_path):
    video = Video.open(make_clip(tmp_path / "still.mp4", 1, 25))
    assert video.num_frames == 1 and video.fps == 25 and numbers(video) == [0]


def test_frames_come_one_at_a_time_and_anew_at_every_call(tmp_path):
    video = Video.open(make_clip(tmp_path / "clip.mp4", times=np.arange(10) / 10), fps=30)
    one, other = video.frames(), video.frames()
    assert isinstance(one, Iterator)
    for first, second in islice(zip(one, other, strict=True), 15):
        np.testing.assert_array_equal(first, second)
        first[:] = 0  # drawing on a frame spoils neither the other reader's nor the next one, which shows the same picture
    assert [number_of(frame) for frame in one] == [number_of(frame) for frame in other]
    assert numbers(video) == [number for number in range(10) for _ in range(3)]


def test_variable_rate(tmp_path):
    spacing = np.tile([1, 1, 1, 2, 1, 4], 6) / 30 + np.random.default_rng(0).uniform(-0.005, 0.005, 36)
    times = np.cumsum(spacing) - spacing[0]
    video = Video.open(make_clip(tmp_path / "clip.mp4", 36, times=times))
    assert video.fps == 30
    assert len(video.notes) == 1 and video.notes[0].startswith("variable frame rate (7.") and "read at 30 per second" in video.notes[0]
    shown = numbers(video)
    assert len(shown) == video.num_frames == round(times[-1] * 30) + 1
    for frame, number in enumerate(shown):  # the picture that came last, or comes in less than half a frame
        assert times[number] < (frame + 0.5) / 30 and (number == 35 or times[number + 1] > frame / 30)


def test_uneven_timestamps_of_a_constant_rate(tmp_path):
    times = np.arange(50) / 29.91 + np.random.default_rng(0).uniform(-0.004, 0.004, 50)
    video = Video.open(make_clip(tmp_path / "clip.mp4", 50, times=times - times[0]))
    assert video.fps == pytest.approx(29.91, abs=0.2) and video.notes == () and numbers(video) == list(range(50))


@pytest.mark.parametrize(
    ("own", "fps", "expected"),
    [
        (30, 60, [k // 2 for k in range(120)]),
        (60, 30, list(range(0, 60, 2))),
        (30, 10, list(range(0, 60, 3))),
        (30, 20, [int(1.5 * k) for k in range(40)]),
        (25, 30, [int(k / 1.2 + 0.45 / 1.2) for k in range(72)]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_another_rate(tmp_path, suffix, own, fps, expected):
    video = Video.open(make_clip(tmp_path / f"clip{suffix}", 60, own), fps=fps)
    assert video.fps == fps and video.notes == (f"read at {fps} instead of {own} frames per second",)
    assert numbers(video) == expected and video.num_frames == len(expected)


def test_its_own_rate_by_name(tmp_path):
    assert Video.open(make_clip(tmp_path / "clip.mp4", 9), fps=30).notes == ()
    with pytest.raises(ValueError, match="fps must be a positive number of frames per second, not 0"):
        Video.open(tmp_path / "clip.mp4", fps=0)


@pytest.mark.parametrize(("suffix", "start"), [(".mp4", 7.3), (".mkv", 7.3), (".ts", 7.3), (".mkv", -0.2), (".ts", -0.2)])
def test_first_timestamps_other_than_zero(tmp_path, suffix, start):
    video = Video.open(make_clip(tmp_path / f"clip{suffix}", 30, times=start + np.arange(30) / 25))
    assert video.fps == 25 and video.num_frames == 30 and numbers(video) == list(range(30))


def test_edit_list(tmp_path):
    video = Video.open(trim(make_clip(tmp_path / "clip.mp4", 60), first=10, frames=30))
    assert video.num_frames == 30 and numbers(video) == list(range(10, 40))


def test_joined_recordings(tmp_path):
    path = make_clip(tmp_path / "clip.ts", 40, 25)
    path.write_bytes(path.read_bytes() * 2)
    video = Video.open(path)
    assert video.fps == 25 and video.num_frames == 80 and numbers(video) == [*range(40), *range(40)]


@pytest.mark.parametrize(
    ("degrees", "mirror", "expected"),
    [
        (0, False, "top left"),
        (90, False, "top right"),
        (180, False, "bottom right"),
        (270, False, "bottom left"),
        (0, True, "bottom left"),
        (90, True, "top left"),
    ],
)
def test_rotation_flag(tmp_path, degrees, mirror, expected):
    video = Video.open(turn(make_clip(tmp_path / "clip.mp4", 5), degrees, mirror))
    frames = list(video.frames())
    assert video.size == (SIZE if degrees % 180 == 0 else SIZE[::-1])
    assert {frame.shape for frame in frames} == {(video.size[1], video.size[0], 3)}
    assert all(frame.flags.c_contiguous and corner(frame) == expected for frame in frames)
    assert video.notes == ("mirrored top to bottom",) * mirror + (f"turned by {degrees} degrees",) * bool(degrees)
    upright = np.rot90(frames[3], degrees // 90)
    assert number_of(upright[::-1] if mirror else upright) == 3


def test_a_player_turns_the_same_way(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = turn(make_clip(tmp_path / "clip.mp4", 5), 90)
    _, image = cv2.VideoCapture(str(path)).read()
    assert np.abs(next(Video.open(path).frames()).astype(int) - image[..., ::-1]).mean() < 3


def test_pixels_that_are_not_square(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 5, pixel=Fraction(4, 3))
    video = Video.open(path)
    assert video.size == (128, 64) and video.notes == ("pixels made square: 96 of them in a row became 128",)
    assert numbers(video) == list(range(5))
    assert Video.open(turn(path, 90)).size == (64, 128) and corner(next(Video.open(path).frames())) == "top right"


def test_odd_size(tmp_path):
    video = Video.open(make_clip(tmp_path / "clip.webm", [picture(k, (97, 63)) for k in range(6)]))
    assert video.size == (97, 63) and numbers(video) == list(range(6))


def test_the_file_that_is_named(tmp_path):
    video = Video.open(make_clip(tmp_path / "clip.mp4", 3).rename(tmp_path / "12:30 %02d.dat"))
    assert numbers(video) == [0, 1, 2]


# Files that are broken or something else


def test_cut_off(tmp_path):
    path = make_clip(tmp_path / "clip.ts", 60, bf="0")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = Video.open(path)
    read = numbers(video)
    assert 10 < len(read) < 60 and read == list(range(len(read)))


@pytest.mark.filterwarnings("ignore:.* is damaged after")  # by the picture that was cut in two
def test_cut_off_before_the_announced_end(tmp_path):
    with write_video(tmp_path / "clip.mp4", SIZE, 30) as append:
        for number in range(90):
            append(picture(number))
    content = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(content[: int(0.9 * len(content))])
    with pytest.warns(UserWarning, match=r"clip\.mp4 ends \d\.\d s before the end that it announces: it seems to be cut off"):
        video = Video.open(tmp_path / "clip.mp4")
    read = numbers(video)
    assert 20 < len(read) <= video.num_frames < 90 and read[:20] == list(range(20))


def test_damage_in_the_middle(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 60, g="10", bf="0")
    content = bytearray(path.read_bytes())
    middle = slice(int(0.4 * len(content)), int(0.5 * len(content)))
    content[middle] = np.random.default_rng(0).bytes(middle.stop - middle.start)
    path.write_bytes(content)
    video = Video.open(path)
    with pytest.warns(UserWarning, match=r"damaged after [1-4]\d frames \(\d\.\d s\): Invalid data .*; 60 of 60 frames were read"):
        read = numbers(video)
    assert read[:10] == list(range(10)) and read[50:] == list(range(50, 60)) and len(read) == video.num_frames == 60


def test_not_one_picture_can_be_decoded(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 20)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    content[begin : content.index(b"moov") - 4] = bytes(content.index(b"moov") - 4 - begin)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip\.mp4: not one picture of this video"):
        Video.open(path)


def test_unknown_codec(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz9"))
    with pytest.raises(ValueError, match=r"clip\.mp4 holds video of a codec that this FFmpeg cannot decode"):
        Video.open(path)


@pytest.mark.parametrize("suffix", [".mp4", ".txt", ".avi"])
@pytest.mark.parametrize(
    "content",
    [
        b"frame,x,y\n0,1,2\n" * 50,
        b"ffconcat version 1.0\nfile clip.mp4\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n",
        struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + struct.pack(">I4s", 1000, b"mdat") + bytes(500),
    ],
    ids=["text", "list", "playlist", "without index"],
)
def test_files_of_another_kind(tmp_path, content, suffix):
    make_clip(tmp_path / "clip.mp4", 3)
    (tmp_path / f"other{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"other{suffix} cannot be read as a video: a file of another kind"):
        Video.open(tmp_path / f"other{suffix}")


@pytest.mark.parametrize("name", ["photo.png", "photo.mp4", "photo.jpg"])
def test_a_single_picture(tmp_path, name):
    av.VideoFrame.from_ndarray(picture(0), format="rgb24").save(str(tmp_path / "photo.png"))
    (tmp_path / "photo.png").rename(tmp_path / name)
    with pytest.raises(ValueError, match="a single picture is no video"):
        Video.open(tmp_path / name)


@pytest.mark.parametrize("cover", [False, True])
def test_sound(tmp_path, cover):
    with pytest.raises(ValueError, match=r"song\.mp4 holds no video, only audio"):
        Video.open(make_sound(tmp_path / "song.mp4", cover))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: expected a video, found nothing there"):
        Video.open(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="is a folder, not a video"):
        Video.open(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        Video.open(tmp_path / "empty.mp4")


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install probpose\[video\]"):
        Video.open(tmp_path / "clip.mp4")
    with pytest.raises(ImportError, match=r"pip install probpose\[video\]"), write_video(tmp_path / "clip.mp4", SIZE, 30):
        pass


def test_names_of_videos():
    assert all(map(is_video, ["walk.mp4", "WALK.MOV", "a/b.c/walk.WebM", "walk.mts"]))
    assert not any(map(is_video, ["walk.npz", "walk.json", "mp4", ".mp4", "walk.mp4.json", "walk"]))


# Writing


@pytest.mark.parametrize("fps", [12.5, 24000 / 1001, 29.97, 30000 / 1001, 30, 59.94, 240])
def test_round_trip(tmp_path, fps):
    with write_video(tmp_path / "clip.mp4", SIZE, fps) as append:
        for number in range(40):
            append(picture(number))
    video = Video.open(tmp_path / "clip.mp4")
    assert video.fps == pytest.approx(fps, rel=1e-9) and video.size == SIZE and video.notes == () and numbers(video) == list(range(40))


def test_colours(tmp_path):
    colours = np.array([[RED, BLUE, (30, 200, 60)], [(250, 250, 250), (5, 5, 5), (240, 220, 40)]], np.uint8)
    image = colours.repeat(32, axis=0).repeat(32, axis=1)
    with write_video(tmp_path / "clip.mp4", (96, 64), 30) as append:
        append(image)
    frame = next(Video.open(tmp_path / "clip.mp4").frames()).astype(int)
    assert np.abs(frame[16::32, 16::32] - colours).max() <= 6 and np.abs(frame - image).mean() < 3


def test_what_players_ask_for(tmp_path):
    with write_video(tmp_path / "clip.mp4", SIZE, 30) as append:
        append(picture(0))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1  # the colours of HDTV, which players take for granted
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_odd_sizes_grow_by_one(tmp_path):
    with write_video(tmp_path / "clip.mp4", (97, 63), 30) as append:
        for number in range(4):
            append(picture(number, (97, 63)))
    video = Video.open(tmp_path / "clip.mp4")
    assert video.size == (98, 64) and numbers(video) == list(range(4))


def test_without_an_encoder_for_h264(tmp_path, monkeypatch):
    monkeypatch.setattr("probpose.video.frames.ENCODERS", ("no such encoder", "mpeg4"))
    with write_video(tmp_path / "clip.mp4", SIZE, 29.97) as append:
        for number in range(20):
            append(picture(number))
    video = Video.open(tmp_path / "clip.mp4")
    assert video.fps == pytest.approx(29.97) and numbers(video) == list(range(20))


@pytest.mark.parametrize("frames", [0, 1, 50])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, frames):
    def fail(path, **settings):
        with pytest.raises(RuntimeError, match="no more"), write_video(path, SIZE, 30, **settings) as append:
            for number in range(frames):
                append(picture(number))
            raise RuntimeError("no more")

    fail(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "clip.mp4").write_text("mine")
    fail(tmp_path / "clip.mp4", overwrite=True)
    assert (tmp_path / "clip.mp4").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture(0, (64, 96)), r"a frame of clip.mp4 must be \(64, 96, 3\) uint8, got \(96, 64, 3\) uint8"),
        (picture(0) / 255, r"must be \(64, 96, 3\) uint8, got \(64, 96, 3\) float64"),
        (picture(0)[..., 0], r"got \(64, 96\) uint8"),
    ],
)
def test_bad_frames(tmp_path, image, message):
    with pytest.raises(ValueError, match=message), write_video(tmp_path / "clip.mp4", SIZE, 30) as append:
        append(picture(0))
        append(image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "fps", "message"),
    [
        ("clip.gif", SIZE, 30, r"videos are written as \.mp4, not 'clip\.gif'"),
        ("clip.mp4", (96, 0), 30, r"two positive integers in pixels, not \(96, 0\)"),
        ("clip.mp4", SIZE, -1, "fps must be a positive number of frames per second, not -1"),
        ("clip.mp4", SIZE, float("nan"), "fps must be a positive number of frames per second, not nan"),
        ("clip.mp4", SIZE, 1e-5, "fps must be at least 0.001 frames per second, not 1e-05"),
        ("clip.mp4", SIZE, 30, r"not one frame was given for clip\.mp4"),
    ],
)
def test_bad_videos(tmp_path, name, size, fps, message):
    with pytest.raises(ValueError, match=message), write_video(tmp_path / name, size, fps):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(tmp_path):
    (tmp_path / "clip.mp4").write_text("mine")
    with pytest.raises(FileExistsError, match=r"clip\.mp4 exists"), write_video(tmp_path / "clip.mp4", SIZE, 30):
        pass
    with write_video(tmp_path / "clip.mp4", SIZE, 30, overwrite=True) as append:
        append(picture(7))
    assert numbers(Video.open(tmp_path / "clip.mp4")) == [7]
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"), write_video(tmp_path / "no" / "clip.mp4", SIZE, 30):
        pass
