"""Pickled data without running code: what the field's `.pkl` files and the Python objects within its `.npz` files hold.

A pickle is a program. It may name any function and call it, which is why NumPy refuses object arrays unless told otherwise. Here a
pickle may name a dozen things: plain containers, and NumPy's arrays, scalars and dtypes. The latter are rebuilt by this module from
shape, dtype and bytes, each checked; NumPy's own functions are never handed to the file, as they were not written for hostile input.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np


def load_pickle(path: str | Path) -> Any:
    """The content of a pickle file, of Python 2 (whose strings are taken for Latin-1) or 3.

    Returns:
        Dicts, lists, tuples, sets, numbers, strings, bytes, None, and NumPy arrays and scalars of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated or damaged file, or one that names anything else, which would run code.
    """
    path = _existing(path)
    with _naming(path), path.open("rb") as file:
        return _unpickle(file, str(path))


def load_npz(path: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """Entries of an `.npz` archive; object arrays are unpickled as by `load_pickle`, one without axes gives its only element.

    Args:
        path: the archive.
        keys: the wanted entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an archive, a damaged one, an entry that is not there (the message lists those that are), or an object that only
            running code could restore.
    """
    path, keys = _existing(path), list(keys)
    members = list_npz(path)
    if missing := [key for key in keys if key not in members]:
        raise ValueError(f"{path} has no entry {', '.join(map(repr, missing))}; its entries are {list(members)}")
    with _naming(path), zipfile.ZipFile(path) as archive:
        return {key: _read_entry(archive, f"{key}.npy", f"{path}, entry {key!r}") for key in keys}


def list_npz(path: str | Path) -> tuple[str, ...]:
    """Names of the entries of an `.npz` archive, of which nothing else is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an archive.
    """
    path = _existing(path)
    with _naming(path), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


class _RefusedError(ValueError):
    """The file names something that would run code; the message is complete."""


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file may cause, in as many ways as it has bytes, into one error that names it."""
    try:
        yield
    except (OSError, _RefusedError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged or of another kind ({type(error).__name__}: {error})") from None


def _read_entry(archive: zipfile.ZipFile, member: str, where: str) -> Any:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if header(file)[2].hasobject:
            array = _unpickle(file, where)
            return array.item() if isinstance(array, np.ndarray) and array.shape == () else array
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _unpickle(file: IO[bytes], where: str) -> Any:
    return _finished(_Unpickler(file, where).load(), {})


class _Unpickler(pickle._Unpickler):
    """The unpickler that is written in Python: the one in C fills as much memory as a damaged file asks for."""

    def __init__(self, file: IO[bytes], where: str):
        super().__init__(file, encoding="latin1")
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__", "collections") and name in _CONTAINERS:
            return _CONTAINERS[name]
        if rebuild := _REBUILDERS.get((module.replace("numpy._core", "numpy.core"), name)):
            return _Function(rebuild)
        raise _RefusedError(
            f"{self.where} holds a pickled {module}.{name}, which would run code from the file to be restored; only plain containers, "
            "numbers, strings and NumPy arrays are read"
        )

    def _load_bytearray(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(length)))  # as long as what is there, not filled with zeros first

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray}


class _Function:
    """What a pickle gets when it names one of NumPy's functions: it can be called, but nothing about it can be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a pickle may not change functions")


class _Dtype:
    """A dtype being unpickled. Of its state only the byte order matters: the plain types that are let in have no more."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *flags: Any):
        if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f2|f4|f8|f16|c8|c16|c32|[SU]\d{1,9}|O[48]?)", code)):
            raise ValueError(f"arrays of dtype {code!r} are not read")
        self.dtype = np.dtype("O" if code.lstrip("<>|=")[0] == "O" else code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array being unpickled: `_finished` takes it out of its stand-in once the whole file is read.

    It is not handed out at once because a pickle could then set the state of a real array.
    """

    __slots__ = ("content",)

    def __init__(self, *arguments: Any):
        self.content: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.content = _array(shape, dtype, data, "F" if fortran else "C")


def _array(shape: Any, dtype: Any, data: Any, order: str) -> np.ndarray:
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and isinstance(dtype, _Dtype)):
        raise ValueError(f"an array cannot have shape {shape!r} and dtype {dtype!r}")
    count, dtype = math.prod(shape), dtype.dtype
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError(f"an object array of shape {shape} needs a list of {count} elements")
        array = np.empty(count, dtype=object)
        for i, item in enumerate(data):
            array[i] = item
        return array.reshape(shape)
    data = _bytes(data)
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} takes {count * dtype.itemsize} bytes, not {len(data)}")
    return np.ndarray(shape, dtype, buffer=bytearray(data), order=order)  # a bytearray, for the array to be writable


def _bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray, str)):
        raise ValueError(f"the elements of an array must be bytes, got {type(data).__name__}")
    return data.encode("latin1") if isinstance(data, str) else data  # Python 2 has its bytes in strings


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
    array = _Array()
    array.content = _array(shape, dtype, data, "F" if order == "F" else "C")
    return array


def _scalar(dtype: Any, data: Any = b"") -> np.generic:
    return _array((), dtype, data, "C")[()]


def _encode(text: Any = "", encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are read from Latin-1 strings, not in encoding {encoding!r}")
    return text.encode("latin1")


_CONTAINERS = {"set": set, "frozenset": frozenset, "complex": complex, "OrderedDict": dict}

# By NumPy 1's names, as `numpy._core` of NumPy 2 is read as `numpy.core`.
_REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _encode,
    ("__builtin__", "bytes"): _encode,
}


def _finished(item: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """The item with the arrays in place of their stand-ins, to any depth; what is shared stays shared.

    `seen` has what was met, by identity: the original, which must live for its identity to stay its own, and its replacement.
    """
    if id(item) in seen:
        return seen[id(item)][1]
    if isinstance(item, _Array):
        if item.content is None:
            raise ValueError("an array has no content")
        seen[id(item)] = (item, item.content)
        if item.content.dtype.hasobject:
            flat = item.content.reshape(-1)  # a view, as the array is contiguous
            for i, inner in enumerate(flat):
                flat[i] = _finished(inner, seen)
        return item.content
    if isinstance(item, (_Function, _Dtype)):
        raise ValueError("a function or a dtype is no data")
    if isinstance(item, (list, dict)):
        seen[id(item)] = (item, item)
        for key, inner in enumerate(item) if isinstance(item, list) else list(item.items()):
            item[key] = _finished(inner, seen)
        return item
    if isinstance(item, tuple):
        finished = tuple(_finished(inner, seen) for inner in item)
        seen[id(item)] = (item, finished)
        return finished
    if isinstance(item, (set, frozenset)) and any(isinstance(inner, (_Array, _Function, _Dtype)) for inner in item):
        raise ValueError("a set holds numbers and strings only")
    return item
