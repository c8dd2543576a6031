"""A folder of shards: the results for a list of items, made by any number of processes, in runs that may be killed and resumed.

    columns = {"pose": Column("float32", (17, 3)), "fps": Column("float64", axis=None)}
    run = ShardedRun("out", names, columns, settings={"seed": 0}, format="parquet")
    run.prepare(resume=True)                            # one process, before the others go on
    run.make(work, process=0, num_processes=1)          # every process; work(name) -> [(entry name, {"pose": …, "fps": …}), …]
    manifest = run.finish()                             # one process, when all are through
    for name, arrays in read_shards("out"): …

Shard s holds the items [s n, (s + 1) n) of the list, whoever makes it, and appears whole or not at all. So the files are the same, byte for
byte, on any number of processes and however often the run was killed; a kill costs at most the shard that each process was working on.

An item gives any number of entries. In an npz shard, an array of an entry is the member `<entry>/<array>`, as in
`np.load("shard-00000.npz")["walk/person0/pose"]`, and the member `metadata` is JSON. A Parquet shard is a long table: one row per row
(frame) of an entry, its name in the column `name`, one row group per entry; arrays with further axes are flattened lists, and the
schema's metadata (key `probpose`) holds their shapes and the rest.

While a run lasts, `shard-00000.json` beside each finished shard tells what is in it; at the end `manifest.json` takes their place.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from probpose.files import replacing

__all__ = ["FORMATS", "Column", "ShardedRun", "read_shards", "seed_of"]

FORMATS = ("npz", "parquet")

_OWN = re.compile(r"run\.json|manifest\.json|shard-\d+\.(json|npz|parquet)")
_UNFINISHED = re.compile(r"\.(run|manifest|shard-\d+)-[0-9a-f]{8}\.(json|npz|parquet)")

Arrays = Mapping[str, Any]


def seed_of(seed: int, name: str) -> int:
    """A random seed for one item of a run, which depends on nothing but the run's seed and the item's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Column:
    """What the arrays of one name look like.

    Args:
        dtype: NumPy name of the type that is stored, e.g. "float32", or "str".
        shape: of one row, that is of the array without `axis`; one length may be None: it is free to differ between entries.
        axis: the array's axis that counts the rows (frames); None for a value that holds for the whole entry.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    axis: int | None = 0

    def rows(self, value: Any) -> np.ndarray:
        """An array of this column as `(rows, *shape)`, one row without `axis`; ValueError unless it is one."""
        array, dtype = np.asarray(value), np.dtype(self.dtype)
        if not (array.dtype.kind == "U" if dtype.kind == "U" else np.can_cast(array.dtype, dtype, "same_kind")):
            raise ValueError(f"must be {self.dtype}, got {array.dtype}")
        if array.ndim == len(self.shape) + (self.axis is not None):
            rows = array[None] if self.axis is None else np.moveaxis(array, self.axis, 0)
            if all(n in (None, length) for n, length in zip(self.shape, rows.shape[1:])):
                return rows if dtype.kind == "U" else rows.astype(dtype, copy=False)
        expected = list(self.shape) if self.axis is None else [*self.shape[: self.axis], "rows", *self.shape[self.axis :]]
        raise ValueError(f"must have shape ({', '.join('any' if n is None else str(n) for n in expected)}), got {array.shape}")

    def array(self, rows: np.ndarray) -> np.ndarray:
        """The array whose `rows` these are."""
        return np.asarray(rows[0] if self.axis is None else np.moveaxis(rows, 0, self.axis), order="C")


class ShardedRun:
    """A resumable run over named items into a folder of shards. Use: see the head of this module.

    Args:
        folder: where shards, `run.json` and at last `manifest.json` go.
        names: the items in order.
        columns: every array that an entry may have, by name, in the order of a table's columns.
        settings: whatever the results depend on, as JSON; a run can only be resumed with the same.
        metadata: what a reader of the results needs to know (joint names, units, …), as JSON.
        format: "npz" or "parquet" (needs pyarrow).
        shard_size: items per shard.

    Raises:
        ImportError: Parquet without pyarrow.
        ValueError: an unknown format, a shard size below 1, no names, or names that are not unique text.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        columns: Mapping[str, Column],
        *,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        format: str = "npz",
        shard_size: int = 16,
    ):
        if format not in FORMATS:
            raise ValueError(f"format must be one of {FORMATS}, got {format!r}")
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        if not names:
            raise ValueError("a sharded run needs at least one item")
        if len(set(names)) < len(names):
            raise ValueError(f"two items are called {next(name for name in names if list(names).count(name) > 1)!r}")
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:  # a file name of other bytes, which no archive takes
                raise ValueError(f"item {name!r} must have a name in UTF-8") from None
        if format == "parquet":
            _pyarrow()
        self.folder, self.names, self.columns = Path(folder), list(names), dict(columns)
        self.format, self.shard_size = format, shard_size
        about = {
            "settings": dict(settings or {}),
            "metadata": dict(metadata or {}),
            "columns": {name: asdict(column) for name, column in self.columns.items()},
        }
        self._about: dict[str, Any] = json.loads(json.dumps(about))  # as it will be read back
        self._plan = {"format": format, "shard_size": shard_size, **self._about, "items": self.names}

    @property
    def num_shards(self) -> int:
        return -(-len(self.names) // self.shard_size)

    @property
    def num_done(self) -> int:
        """Items in the shards that are in the folder now, whoever made them."""
        found = {path.name for path in self.folder.iterdir()}
        return sum(len(self._items(shard)) for shard in range(self.num_shards) if self._record_path(shard).name in found)

    def prepare(self, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder ready. One process calls it, before any calls `make`.

        Args:
            resume: continue the run in the folder, if there is one.
            overwrite: delete the run in the folder (and nothing else there) and begin anew.

        Raises:
            FileExistsError: the folder holds a run and neither was asked for, or shards of an unknown one.
            ValueError: the run to resume has other settings or items (the message names them), or both were asked for.
        """
        if resume and overwrite:
            raise ValueError("resume and overwrite exclude each other: continue the run, or begin anew?")
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self.folder / "run.json"
        found = [path for path in self.folder.iterdir() if _OWN.fullmatch(path.name)]
        if found and not overwrite and not (resume and plan in found):
            raise FileExistsError(f"{self.folder} already holds {found[0].name}: pass --resume to continue or --overwrite to begin anew")
        if resume and plan in found:
            self._check_continues(_read_json(plan))
        for path in self.folder.iterdir():
            if _UNFINISHED.fullmatch(path.name):  # of a run that was killed
                path.unlink()
        if overwrite:
            for path in sorted(found, key=lambda path: path == plan):  # the plan last: what is left by a kill remains a valid run
                path.unlink()
        if resume and (self.folder / "manifest.json").exists():
            for shard, record in enumerate(_read_json(self.folder / "manifest.json")["shards"]):
                _write_json(self._record_path(shard), record)
            (self.folder / "manifest.json").unlink()
        _write_json(plan, self._plan)

    def make(
        self,
        work: Callable[[str], Iterable[tuple[str, Arrays]]],
        *,
        process: int = 0,
        num_processes: int = 1,
        strict: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make the shards that are this process's share and not in the folder yet. Every process calls it.

        A shard in the folder is left alone if it is undamaged; of one with failed items only these are made again.

        Args:
            work: gives the entries of an item, each a unique name and arrays by column; None stands for a missing array. An item for which
                it raises anything counts as failed: its message goes into the manifest, and the run goes on.
            process, num_processes: this process takes the shards `process`, `process + num_processes`, …
            strict: a failing item ends the run with its error.
            progress: called after each item with the number of items made in the current shard.
        """
        for shard in range(process, self.num_shards, num_processes):
            record = self._sound_record(shard)
            if record is None or record["failures"]:
                self._make_shard(shard, record, work, strict, progress or (lambda _: None))

    def finish(self) -> dict[str, Any]:
        """Write `manifest.json` and return it. One process calls it, when all have returned from `make`.

        Returns:
            `format`, `shard_size`, `settings`, `metadata`, `columns`; `totals` (items, failed, entries, rows); `failures`, item to message;
            `shards`, each with `file`, `sha256`, `items`, `failures` and `entries`: `name`, `item`, first `row` in the shard, number of
            `rows`.

        Raises:
            ValueError: shards are missing.
        """
        missing = [shard for shard in range(self.num_shards) if not self._record_path(shard).exists()]
        if missing:
            raise ValueError(f"{self.folder} is unfinished: {len(missing)} of {self.num_shards} shards are missing; resume the run")
        shards = [_read_json(self._record_path(shard)) for shard in range(self.num_shards)]
        failures = {item: message for shard in shards for item, message in shard["failures"].items()}
        entries = [entry for shard in shards for entry in shard["entries"]]
        totals = {"items": len(self.names), "failed": len(failures), "entries": len(entries), "rows": sum(e["rows"] for e in entries)}
        plan = {key: value for key, value in self._plan.items() if key != "items"}
        manifest = {**plan, "totals": totals, "failures": failures, "shards": shards}
        _write_json(self.folder / "manifest.json", manifest)
        for shard in range(self.num_shards):
            self._record_path(shard).unlink()
        return manifest

    def _items(self, shard: int) -> list[str]:
        return self.names[shard * self.shard_size : (shard + 1) * self.shard_size]

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.{self.format}"

    def _record_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"

    def _sound_record(self, shard: int) -> dict[str, Any] | None:
        """What is known of a shard in the folder, or None unless it is whole."""
        path = self._record_path(shard)
        if not path.exists() or not self._path(shard).exists():
            return None
        record = _read_json(path)
        return record if record["items"] == self._items(shard) and record["sha256"] == _sha256(self._path(shard)) else None

    def _make_shard(
        self,
        shard: int,
        record: dict[str, Any] | None,
        work: Callable[[str], Iterable[tuple[str, Arrays]]],
        strict: bool,
        progress: Callable[[int], None],
    ) -> None:
        path, items = self._path(shard), self._items(shard)
        known: dict[str, list[tuple[str, Arrays]]] = {}
        if record is not None:
            known = {item: [] for item in items if item not in record["failures"]}
            for entry, content in zip(record["entries"], _READERS[self.format](path)):
                known[entry["item"]].append(content)
        self._record_path(shard).unlink(missing_ok=True)  # from here on it does not describe the shard any more
        entries: list[dict[str, Any]] = []
        failures, total = {}, 0
        with replacing(path, overwrite=True) as unfinished:
            with _WRITERS[self.format](unfinished, self.columns, json.dumps(self._about)) as write:
                for count, item in enumerate(items, 1):
                    try:
                        made = [(name, self._rows(name, arrays)) for name, arrays in (known[item] if item in known else work(item))]
                        taken = {entry["name"] for entry in entries}
                        if len(taken | {name for name, _ in made}) < len(taken) + len(made):
                            raise ValueError(f"two entries share one of the names {[name for name, _ in made]}")
                    except Exception as error:
                        if strict:
                            raise
                        made, failures[item] = [], _one_line(error)
                    for name, rows in made:
                        length = max(map(len, rows.values()))
                        write(name, rows, length)
                        entries.append({"name": name, "item": item, "row": total, "rows": length})
                        total += length
                    progress(count)
            digest = _sha256(unfinished)
        record = {"file": path.name, "sha256": digest, "items": items, "entries": entries, "failures": failures}
        _write_json(self._record_path(shard), record)

    def _rows(self, name: str, arrays: Arrays) -> dict[str, np.ndarray]:
        """An entry's arrays by rows, in the order of the columns, without those that are missing."""
        if unknown := arrays.keys() - self.columns.keys():
            raise ValueError(f"{name}: there is no column {sorted(unknown)}; the columns are {list(self.columns)}")
        rows = {}
        for key, column in self.columns.items():
            if arrays.get(key) is not None:
                try:
                    rows[key] = column.rows(arrays[key])
                except ValueError as error:
                    raise ValueError(f"{name}: {key} {error}") from None
        lengths = {key: len(value) for key, value in rows.items() if self.columns[key].axis is not None}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"{name}: all arrays must have the same number of rows, at least one, got {lengths}")
        return rows

    def _check_continues(self, old: dict[str, Any]) -> None:
        before, now = _flat(old), _flat(self._plan)
        differing = [
            f"{key} was {before.get(key, 'not given')!r}, now is {now.get(key, 'not given')!r}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if old["items"] != self.names:
            there, here = set(old["items"]), set(self.names)
            changes = [f"{item!r} is new" for item in self.names if item not in there]
            changes += [f"{item!r} is gone" for item in old["items"] if item not in here]
            differing.append(f"{len(there)} items were listed, now {len(here)}: {', '.join(changes[:3]) or 'in another order'}")
        if differing:
            raise ValueError(f"{self.folder} cannot be resumed: {'; '.join(differing)}")


def read_shards(folder: str | Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Entries of a finished run in order, each with its arrays as they were given, of either format.

    Raises:
        FileNotFoundError: no `manifest.json` in the folder, as in that of an unfinished run, or a shard is missing.
        ImportError: Parquet without pyarrow.
        ValueError: a damaged file; the message names it.
    """
    manifest = Path(folder) / "manifest.json"
    if not manifest.exists():
        raise FileNotFoundError(f"{folder} holds no finished run: it has no manifest.json")
    content = _read_json(manifest)
    for shard in content["shards"]:
        yield from _READERS[content["format"]](Path(folder) / shard["file"])


# ---------------------------------------------------------------------------------------------------------------------
# npz: members with a fixed date and no compression, which gains a tenth on such numbers
# ---------------------------------------------------------------------------------------------------------------------

Write = Callable[[str, dict[str, np.ndarray], int], None]


@contextmanager
def _write_npz(path: Path, columns: Mapping[str, Column], about: str) -> Iterator[Write]:
    with zipfile.ZipFile(path, "w") as archive:

        def put(member: str, array: np.ndarray) -> None:
            with archive.open(zipfile.ZipInfo(f"{member}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)

        def write(name: str, rows: dict[str, np.ndarray], length: int) -> None:
            for key, value in rows.items():
                put(f"{name}/{key}", columns[key].array(value))

        put("metadata", np.array(about))
        yield write


def _read_npz(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            entries: dict[str, list[str]] = {}
            for member in archive.files:
                name, _, key = member.rpartition("/")
                entries.setdefault(name, []).append(key)
            entries.pop("", None)  # the metadata
            for name, keys in entries.items():
                yield name, {key: archive[f"{name}/{key}"] for key in keys}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Parquet: one row group per entry
# ---------------------------------------------------------------------------------------------------------------------


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Parquet shards need pyarrow: pip install probpose[parquet]") from None
    return pyarrow


@contextmanager
def _write_parquet(path: Path, columns: Mapping[str, Column], about: str) -> Iterator[Write]:
    pa = _pyarrow()
    fields = [("name", pa.string()), *((key, _arrow_type(pa, column)) for key, column in columns.items())]
    schema = pa.schema(fields, metadata={"probpose": about})
    words = ["name", *(key for key, column in columns.items() if column.dtype == "str")]
    options = {"compression": "zstd", "use_dictionary": words, "write_page_checksum": True}
    with pa.parquet.ParquetWriter(path, schema, **options) as writer:

        def write(name: str, rows: dict[str, np.ndarray], length: int) -> None:
            arrays = [pa.nulls(length, kind) if key not in rows else _arrow_array(pa, kind, rows[key], length) for key, kind in fields[1:]]
            writer.write_table(pa.Table.from_arrays([pa.array([name] * length), *arrays], schema=schema), row_group_size=length)

        yield write


def _arrow_type(pa: ModuleType, column: Column) -> Any:
    kind = pa.string() if column.dtype == "str" else pa.from_numpy_dtype(np.dtype(column.dtype))
    if not column.shape:
        return kind
    return pa.large_list(kind) if None in column.shape else pa.list_(kind, math.prod(column.shape))


def _arrow_array(pa: ModuleType, kind: Any, rows: np.ndarray, length: int) -> Any:
    rows = np.broadcast_to(rows, (length, *rows.shape[1:]))
    values = pa.array(rows.reshape(-1))
    if rows.ndim == 1:
        return values
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, kind.list_size)
    return pa.LargeListArray.from_arrays(np.arange(length + 1) * math.prod(rows.shape[1:]), values)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    pa = _pyarrow()
    try:
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            about = json.loads(file.schema_arrow.metadata[b"probpose"])
            columns = {key: Column(c["dtype"], tuple(c["shape"]), c["axis"]) for key, c in about["columns"].items()}
            for group in range(file.num_row_groups):
                table, arrays = file.read_row_group(group), {}
                for key, column in columns.items():
                    values = table.column(key).combine_chunks()
                    if values.null_count < len(table):
                        arrays[key] = column.array(_numpy_rows(column, values))
                yield table.column("name")[0].as_py(), arrays
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # OSError: a wrong checksum
        raise ValueError(f"{path} is damaged: {error}") from None


def _numpy_rows(column: Column, values: Any) -> np.ndarray:
    rows = len(values)
    flat = (values.flatten() if column.shape else values).to_numpy(zero_copy_only=False)
    flat = flat.astype(column.dtype)  # text comes as objects; and arrow's arrays are read-only
    return flat.reshape(rows, *(-1 if n is None else n for n in column.shape))


_WRITERS = {"npz": _write_npz, "parquet": _write_parquet}
_READERS = {"npz": _read_npz, "parquet": _read_parquet}


# ---------------------------------------------------------------------------------------------------------------------
# Small things
# ---------------------------------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Any) -> None:
    with replacing(path, overwrite=True) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan without its items, as one level: settings are named as such."""
    flat = {}
    for key, value in plan.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": content for inner, content in value.items()}
        elif key != "items":
            flat[key] = value
    return flat
