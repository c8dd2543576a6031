"""Motion archives: what is read, what is kept, and what is refused."""

import numpy as np
import pytest
import torch

from probpose.data import MocapClips

LENGTHS = {"a/walk": 20, "a/run": 7, "b/walk": 12, "b/fall": 30}
SPLIT = {"a/walk": "train", "a/run": "test", "b/walk": "train", "b/fall": "test"}


def test_clips_are_the_motions_that_were_written(make_archive, walk):
    clips = MocapClips(make_archive(LENGTHS))
    assert clips.names == list(LENGTHS) and clips.sources == ["a", "a", "b", "b"] and clips.fps == 30
    assert len(clips) == 4 and clips.starts.tolist() == [0, 20, 27, 39, 69]
    for i, (name, frames) in enumerate(LENGTHS.items()):
        root, local = clips[i]
        assert root.dtype == local.dtype == torch.float32
        np.testing.assert_allclose(root[:, None] + local, walk(frames, seed=i), atol=1e-3, err_msg=name)  # local is float16
        assert (local[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("split", "names"),
    [("train", ["a/walk", "b/walk"]), ("test", ["a/run", "b/fall"]), (None, list(LENGTHS))],
)
def test_split(make_archive, split, names):
    assert MocapClips(make_archive(LENGTHS, split=SPLIT), split=split).names == names


def test_test_clips_are_left_out_unless_asked_for(make_archive):
    clips = MocapClips(make_archive(LENGTHS, split=SPLIT))
    assert not {name for name, split in SPLIT.items() if split == "test"} & set(clips.names)
    assert len(clips.root) == len(clips.local) == 20 + 12


def test_include_and_several_archives(make_archive):
    paths = [make_archive(LENGTHS, file="one.npz"), make_archive({"c/walk": 5}, file="two.npz")]
    clips = MocapClips(paths, include=["*/walk"])
    assert clips.names == ["a/walk", "b/walk", "c/walk"] and clips.starts.tolist() == [0, 20, 32, 37]
    one, other = MocapClips(paths[1])[0], clips[2]
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_select_keeps_whole_clips_and_leaves_the_original_alone(make_archive):
    clips = MocapClips(make_archive(LENGTHS))
    chosen = clips.select(lambda name: name.startswith("b/"))
    assert chosen.names == ["b/walk", "b/fall"] and chosen.sources == ["b", "b"] and chosen.starts.tolist() == [0, 12, 42]
    for mine, theirs in ((0, 2), (1, 3)):
        assert all(torch.equal(x, y) for x, y in zip(chosen[mine], clips[theirs]))
    assert len(clips) == 4
    with pytest.raises(ValueError, match="no clips left"):
        clips.select(lambda name: False)


def test_nothing_left(make_archive):
    path = make_archive(LENGTHS)
    for arguments in ({"split": "test"}, {"include": ["c/*"]}):
        with pytest.raises(ValueError, match="no clips left"):
            MocapClips(path, **arguments)


def test_one_frame_rate(make_archive):
    paths = [make_archive({"a": 5}, file="slow.npz"), make_archive({"b": 5}, fps=60.0, file="fast.npz")]
    with pytest.raises(ValueError, match="one frame rate"):
        MocapClips(paths)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        MocapClips(tmp_path / "absent.npz")


def _without(key):
    return lambda data: data.pop(key)


def _with(**arrays):
    return lambda data: data.update(arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("splits"), "lacks .*splits"),
        (_with(local=np.zeros((20, 15, 3), np.float16)), "must have shape"),
        (_with(root=np.zeros((19, 3), np.float32)), "root must have shape"),
        (_with(root=np.full((20, 3), np.nan, np.float32)), "root must be finite"),
        (_with(starts=np.array([0, 20, 20])), "starts must have shape"),
        (_with(starts=np.array([0, 21])), "starts must rise from 0 to the number of frames"),
        (_with(splits=np.array(["train", "train"])), "splits must have shape"),
        (_with(joints=np.array([f"joint{i}" for i in range(17)])), "joints must be"),
        (_with(names=np.array(["a", None], dtype=object)), "not a motion archive"),
    ],
    ids=["missing", "joints", "frames", "nan", "starts", "end", "splits", "order", "pickle"],
)
def test_layout_errors_name_the_file_and_the_array(make_archive, change, message):
    path = make_archive({"a": 20})
    with np.load(path) as archive:
        data = dict(archive)
    change(data)
    np.savez(path, **data)
    with pytest.raises(ValueError, match=message) as caught:
        MocapClips(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "array", "truncated", "empty"])
def test_files_that_are_no_archive(make_archive, kind):
    path = make_archive({"a": 20})
    whole = path.read_bytes()
    with path.open("wb") as file:
        if kind == "array":
            np.save(file, np.zeros(3))
        else:
            file.write({"text": b"frames", "truncated": whole[: len(whole) // 2], "empty": b""}[kind])
    with pytest.raises(ValueError, match="not a motion archive"):
        MocapClips(path)
