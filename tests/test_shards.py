"""Shards: the same bytes whoever makes them and however often they are killed, and what is read is what was written."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from probpose.shards import FORMATS, Column, ShardedRun, read_shards

COLUMNS = {
    "label": Column("str", axis=None),
    "frame": Column("int64"),
    "pose": Column("float32", (17, 3)),
    "hypotheses": Column("float16", (4, 17, 3), axis=1),
    "keypoints_2d": Column("float32", (None, 2)),
    "camera": Column("float32", (9,), axis=None),
    "fps": Column("float64", axis=None),
    "root": Column("float32", (3,)),
}
NAMES = [f"sub/clip {i}" for i in range(10)]


@pytest.fixture(params=FORMATS)
def format(request):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return request.param


def arrays(seed, frames=5):
    rng = np.random.default_rng(seed)
    return {
        "label": f"größe {seed}",
        "frame": np.arange(seed, seed + frames),
        "pose": rng.normal(size=(frames, 17, 3)).astype(np.float32),
        "hypotheses": rng.normal(size=(4, frames, 17, 3)).astype(np.float32),
        "keypoints_2d": np.where(rng.random((frames, 17 + seed, 1)) < 0.1, np.nan, rng.normal(size=(frames, 17 + seed, 2))).astype(
            np.float32
        ),
        "camera": rng.normal(size=9).astype(np.float32),
        "fps": 25.0 + seed,
        "root": None if seed % 2 else rng.normal(size=(frames, 3)).astype(np.float32),
    }


def work(name):
    """Item i has i % 3 entries."""
    i = int(name.split()[-1])
    for person in range(i % 3):
        yield f"{name}/person{person}", arrays(10 * i + person, frames=3 + i)


def run(folder, format):
    return ShardedRun(folder, NAMES, COLUMNS, settings={"seed": 1, "size": [3, 4]}, metadata={"joints": 17}, format=format, shard_size=3)


def complete(folder, format, work=work, num_processes=1, **prepare):
    made = run(folder, format)
    made.prepare(**prepare)
    for process in range(num_processes):
        made.make(work, process=process, num_processes=num_processes)
    return made.finish()


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_what_is_read_is_what_was_written(format, tmp_path):
    manifest = complete(tmp_path, format)
    expected = [entry for name in NAMES for entry in work(name)]
    found = list(read_shards(tmp_path))
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, got), (_, given) in zip(found, expected):
        assert got.keys() == {key for key, value in given.items() if value is not None}
        for key, value in got.items():
            assert value.dtype == np.dtype(COLUMNS[key].dtype) or COLUMNS[key].dtype == "str"
            np.testing.assert_array_equal(value, np.asarray(given[key]).astype(value.dtype), strict=True)
            value[...] = 0  # what is read may be changed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "run.json", *(f"shard-0000{s}.{format}" for s in range(4))]
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["totals"] == {"items": 10, "failed": 0, "entries": 9, "rows": sum(len(given["frame"]) for _, given in expected)}


def test_the_manifest_tells_where_everything_is(format, tmp_path):
    import hashlib

    for shard in complete(tmp_path, format)["shards"]:
        assert shard["sha256"] == hashlib.sha256((tmp_path / shard["file"]).read_bytes()).hexdigest()
        rows = 0
        for entry in shard["entries"]:
            assert entry["item"] in shard["items"] and entry["name"].startswith(entry["item"]) and entry["row"] == rows
            rows += entry["rows"]
    assert [item for shard in json.loads((tmp_path / "manifest.json").read_text())["shards"] for item in shard["items"]] == NAMES


def test_npz_shards_are_plain(tmp_path):
    complete(tmp_path, "npz")
    with np.load(tmp_path / "shard-00000.npz", allow_pickle=False) as shard:
        np.testing.assert_array_equal(shard["sub/clip 2/person1/pose"], arrays(21)["pose"])
        assert json.loads(str(shard["metadata"]))["metadata"] == {"joints": 17}


def test_parquet_shards_are_tables(tmp_path):
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    from pyarrow import dataset

    rows = complete(tmp_path, "parquet")["totals"]["rows"]
    table = dataset.dataset(sorted(map(str, tmp_path.glob("*.parquet")))).to_table()
    assert json.loads(table.schema.metadata[b"probpose"])["settings"]["seed"] == 1 and len(table) == rows
    frame = pandas.read_parquet(tmp_path / "shard-00000.parquet")
    assert frame.columns.tolist() == ["name", *COLUMNS]
    person, given = frame[frame["name"] == "sub/clip 2/person1"], arrays(21)
    np.testing.assert_array_equal(person["frame"], given["frame"])
    np.testing.assert_array_equal(np.stack(person["pose"]).reshape(-1, 17, 3), given["pose"])
    np.testing.assert_array_equal(
        np.stack(person["hypotheses"]).reshape(-1, 4, 17, 3).swapaxes(0, 1), given["hypotheses"].astype(np.float16)
    )
    np.testing.assert_array_equal(np.stack(person["keypoints_2d"]).reshape(5, 38, 2), given["keypoints_2d"])
    assert set(person["label"]) == {"größe 21"} and set(person["fps"]) == {46.0} and person["root"].isna().all()


@pytest.mark.parametrize("num_processes", [2, 3, 7])
def test_the_number_of_processes_leaves_no_trace(format, tmp_path, num_processes):
    complete(tmp_path / "one", format)
    complete(tmp_path / "many", format, num_processes=num_processes)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_shards import run, work

def slow(name):
    time.sleep(0.05)
    return work(name)

made = run({folder!r}, {format!r})
made.prepare()
made.make(slow)
"""


def test_a_kill_leaves_no_trace(format, tmp_path):
    complete(tmp_path / "whole", format)
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"), format=format)
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "killed" / "shard-00001.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(tmp_path / "killed", format).num_done in (6, 9)
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        next(read_shards(tmp_path / "killed"))
    (tmp_path / "killed" / ".shard-00002-0123abcd.npz").write_text("half")
    before = (tmp_path / "killed" / f"shard-00000.{format}").stat().st_mtime_ns
    complete(tmp_path / "killed", format, resume=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert (tmp_path / "killed" / f"shard-00000.{format}").stat().st_mtime_ns == before  # was not made again


def test_damaged_and_lost_shards_are_made_again(format, tmp_path):
    complete(tmp_path, format)
    whole = contents(tmp_path)
    (tmp_path / f"shard-00003.{format}").unlink()
    damaged = bytearray(whole[f"shard-00001.{format}"])
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / f"shard-00001.{format}").write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"shard-00001\.{format} is damaged"):
        list(read_shards(tmp_path))
    asked = []

    def watched(name):
        asked.append(name)
        return work(name)

    complete(tmp_path, format, watched, resume=True)
    assert contents(tmp_path) == whole and asked == [*NAMES[3:6], *NAMES[9:]]


def test_items_that_fail_are_told_and_tried_again(format, tmp_path):
    complete(tmp_path / "whole", format)
    asked = []

    def failing(name):
        asked.append(name)
        yield from work(name)
        if name in (NAMES[0], NAMES[4]):
            raise ValueError(f"{name} is\n bad") if name == NAMES[0] else KeyError("people")

    manifest = complete(tmp_path / "run", format, failing)
    assert manifest["failures"] == {NAMES[0]: "sub/clip 0 is bad", NAMES[4]: "KeyError: 'people'"} and manifest["totals"]["failed"] == 2
    assert [name for name, _ in read_shards(tmp_path / "run")] == [n for i in NAMES if i != NAMES[4] for n, _ in work(i)]
    asked.clear()
    assert complete(tmp_path / "run", format, failing, resume=True) == manifest and asked == [NAMES[0], NAMES[4]]
    complete(tmp_path / "run", format, resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="clip 0 is"):
        made = run(tmp_path / "strict", format)
        made.prepare()
        made.make(failing, strict=True)
    assert list(contents(tmp_path / "strict")) == ["run.json"]


def test_nothing_is_replaced_or_continued_unasked(tmp_path):
    complete(tmp_path, "npz")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="--resume to continue or --overwrite"):
        complete(tmp_path, "npz")
    with pytest.raises(ValueError, match="exclude each other"):
        complete(tmp_path, "npz", resume=True, overwrite=True)
    other = ShardedRun(
        tmp_path, ["new", *NAMES[1:]], {**COLUMNS, "root": Column("float64", (3,))}, settings={"seed": 2, "size": (3, 4), "k": 7}
    )
    with pytest.raises(ValueError) as caught:
        other.prepare(resume=True)
    message = str(caught.value)
    for text in (
        "settings.seed was 1, now is 2",
        "settings.k was 'not given', now is 7",
        "shard_size was 3, now is 16",
        "columns.root",
        "'new' is new",
    ):
        assert text in message
    assert "settings.size" not in message and "format" not in message and contents(tmp_path) == before
    (tmp_path / "mine.npz").write_text("mine")
    other.prepare(overwrite=True)
    assert set(contents(tmp_path)) == {"run.json", "mine.npz"}


def test_shards_without_their_run_are_not_adopted(tmp_path):
    complete(tmp_path, "npz")
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileExistsError):
        run(tmp_path, "npz").prepare(resume=True)


def test_an_unfinished_run_has_no_manifest(tmp_path):
    made = run(tmp_path, "npz")
    made.prepare(resume=True)  # nothing to resume: it begins
    seen = []
    made.make(work, process=1, num_processes=2, progress=lambda count: seen.append((made.num_done, count)))
    assert seen == [(0, 1), (0, 2), (0, 3), (3, 1)]
    with pytest.raises(ValueError, match="2 of 4 shards are missing"):
        made.finish()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pose": np.zeros((5, 16, 3), np.float32)}, r"pose must have shape \(rows, 17, 3\), got \(5, 16, 3\)"),
        ({"hypotheses": np.zeros((5, 3, 17, 3))}, r"hypotheses must have shape \(4, rows, 17, 3\)"),
        ({"keypoints_2d": np.zeros((5, 17, 3))}, r"keypoints_2d must have shape \(rows, any, 2\)"),
        ({"frame": np.arange(5.0)}, "frame must be int64, got float64"),
        ({"label": 3}, "label must be str, got int64"),
        ({"frame": np.arange(4)}, "the same number of rows, at least one, got {'frame': 4, 'pose': 5"),
        ({"poses": np.zeros(3)}, r"no column \['poses'\]; the columns are \['label', "),
    ],
)
def test_arrays_that_are_no_columns_fail_their_item(format, tmp_path, wrong, message):
    import re

    manifest = complete(tmp_path, format, lambda name: [(name, {**arrays(0), **wrong})] if name == NAMES[5] else work(name))
    assert list(manifest["failures"]) == [NAMES[5]] and re.search(rf"^{NAMES[5]}: .*{message}", manifest["failures"][NAMES[5]])
    assert len(list(read_shards(tmp_path))) == manifest["totals"]["entries"] == 7


def test_two_entries_of_one_name(tmp_path):
    manifest = complete(tmp_path, "npz", lambda name: [("same", arrays(0))])
    assert len(manifest["failures"]) == 6 and "share one of the names ['same']" in manifest["failures"][NAMES[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, r"format must be one of \('npz', 'parquet'\), got 'csv'"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
        ({"names": []}, "at least one item"),
        ({"names": ["a", "b", "a"]}, "two items are called 'a'"),
        ({"names": ["\udcff"]}, "UTF-8"),
    ],
)
def test_runs_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ShardedRun(tmp_path, **{"names": ["a"], "columns": COLUMNS, **options})


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"^Parquet shards need pyarrow: pip install probpose\[parquet\]$"):
        ShardedRun(tmp_path, ["a"], COLUMNS, format="parquet")
