"""Pickled data comes out as it went in, and no pickle runs anything."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from probpose.data.datasets.pickles import list_npz, load_npz, load_pickle

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "big endian": np.arange(3, dtype=">f8"),
    "strided": np.arange(10)[::2],
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "empty": np.zeros((0, 3), dtype=np.int16),
    "scalar array": np.array(5, dtype=np.uint8),
}


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert a.shape == b.shape
        for x, y in zip(a.ravel(), b.ravel()):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    else:
        assert a == b


def ragged(*items, shape=None):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape or -1)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_goes_in_comes_out(tmp_path, protocol):
    data = {
        **ARRAYS,
        "nested": [{"a": [np.zeros((2, 2)), None, True]}, ("x", 1, 2.5, np.ones(2)), b"\x00\xff"],
        "numbers": [np.float32(1.5), np.int64(3), np.bool_(True), np.str_("hallo"), np.str_(""), 1 + 1j, 10**30],
        "object": ragged(np.zeros(3), {"k": np.ones(2)}, "text", None, shape=(2, 2)),
        "fortran object": np.asfortranarray(ragged(*range(6), shape=(2, 3))),
        "sets": {1, 2},
        3: frozenset({"a"}),
        "ä": "ü",
    }
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    found = load_pickle(path)
    same(found, data)
    found["float32"][0, 0] = 7  # arrays are writable and own their memory


def test_ordered_dicts_are_dicts(tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(b=1, a=np.ones(2))))
    same(load_pickle(path), {"b": 1, "a": np.ones(2)})


def test_what_is_shared_stays_shared(tmp_path):
    array, cycle = np.ones(3), []
    cycle.append(cycle)
    many = [0]
    for _ in range(100):
        many = [many, many]
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps([array, [array], cycle, many]))
    first, (second,), circle, _ = load_pickle(path)
    assert first is second and circle[0] is circle


def test_pickles_of_python_2(tmp_path):
    """What Python 2 and NumPy 1 write: strings of bytes, `__builtin__`, old module names."""
    values = np.array([[1.5, -2.25]], dtype="<f8")
    data = "".join(f"\\x{byte:02x}" for byte in values.tobytes())
    text = (
        "(dp0\nS'poses'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        "(I1\n(I1\nI2\ntp8\ncnumpy\ndtype\np9\n(S'f8'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\n"
        f"S'{data}'\np15\ntp16\nbsS'sequence'\np17\nS'caf\\xe9'\np18\nsS'seen'\np19\nc__builtin__\nset\np20\n((lp21\nI1\naI2\natp22\n"
        "Rp23\nsS'fps'\np24\ncnumpy.core.multiarray\nscalar\np25\n(g12\nS'\\x00\\x00\\x00\\x00\\x00\\x00>@'\ntRp26\ns."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(text.encode("ascii"))
    same(load_pickle(path), {"poses": values, "sequence": "café", "seen": {1, 2}, "fps": np.float64(30)})


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


EVIL = {
    "system": ("system", lambda flag: Call(os.system, f"touch {flag}")),
    "eval": ("eval", lambda flag: Call(eval, f"open({str(flag)!r}, 'w')")),
    "getattr": ("getattr", lambda flag: Call(getattr, "a", "upper")),
    "import": ("__import__", lambda flag: Call(__import__, "os")),
    "numpy function": ("numpy.*fromfile|fromfile", lambda flag: Call(np.fromfile, "/dev/zero", "f8", 3)),
    "numpy load": ("load", lambda flag: Call(np.load, str(flag))),
    "own class": ("Call", lambda flag: Call),
    "within": ("system", lambda flag: {"poses": [np.zeros(3), ragged(1, Call(os.system, f"touch {flag}"))]}),
    "array class": ("recarray", lambda flag: np.zeros(2).view(np.recarray)),
    "bytearray": ("bytearray", lambda flag: Call(bytearray, 10**12)),
    "random state": ("numpy.random", lambda flag: np.random.RandomState(0)),
}


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_never_runs(tmp_path, kind, protocol):
    name, make = EVIL[kind]
    flag, path, archive = tmp_path / "ran", tmp_path / "evil.pkl", tmp_path / "evil.npz"
    content = make(flag)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=f"evil.pkl.*{name}.*would run code"):
        load_pickle(path)
    np.savez(archive, data=ragged(content, shape=()))
    with pytest.raises(ValueError, match=f"evil.npz, entry 'data'.*{name}.*would run code"):
        load_npz(archive, ["data"])
    assert not flag.exists()


def array_state(shape, code, data, fortran=False):
    """A pickle of an array whose parts need not fit together."""
    state = pickle.dumps((1, shape, None, fortran, data), protocol=2)
    dtype = b"cnumpy\ndtype\n(X" + len(code).to_bytes(4, "little") + code.encode() + b"I0\nI1\ntR"
    # PROTO 2, the parts of the state, of which None makes way for the dtype
    return b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR" + state[2:-1].replace(b"N", dtype, 1) + b"b."


def test_a_well_formed_state_is_read(tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(array_state((2,), "i4", b"\1\0\0\0\2\0\0\0"))
    same(load_pickle(path), np.array([1, 2], dtype=np.int32))


@pytest.mark.parametrize(
    ("shape", "code", "data"),
    [
        ((3,), "i4", b"12345678"),  # reads beyond its bytes
        ((1,), "i4", b"12345678"),
        ((-1, -2), "i4", b"12345678"),
        ((2**62, 4), "i4", b""),
        ((True,), "i4", b"1234"),
        ((1,), "O", b"12345678"),  # bytes taken for pointers
        ((2,), "O", [1]),
        ((1,), "V8", b"12345678"),
        ((1,), "i4,O", b"123456789012"),
        ((1,), "M8", b"12345678"),
        ((1,), "i4", [1, 2, 3, 4]),
        ([1], "i4", b"1234"),
    ],
)
def test_arrays_whose_parts_do_not_fit(tmp_path, shape, code, data):
    path = tmp_path / "evil.pkl"
    path.write_bytes(array_state(shape, code, data))
    with pytest.raises(ValueError, match=r"evil.pkl is damaged"):
        load_pickle(path)


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy.core.multiarray\nscalar\n}S'__call__'\nI1\nsb.",  # sets attributes of a function
        b"cnumpy.core.multiarray\nscalar\n(N}S'_call'\nc__builtin__\nset\nstb.",
        b"c__builtin__\nset\n(N}S'add'\nI1\nstb.",
        b"ccollections\nOrderedDict\n)R}S'items'\nI1\nsb.",
        b"cnumpy.core.multiarray\nscalar\n.",  # a function as data
        b"c__builtin__\nbytes\n(I1000000000000\ntR.",
        b"cnumpy\nndarray\n)R.",  # an array without content
        b"cnumpy\ndtype\n(S'f8'\ntR.",
        b"Pobject\n.",
        b"\x82\x01.",  # an extension code
        b"\x80\x05\x96\0\0\0\0\7\0\0\0.",  # announces 28 GB
        b"(l" * 5000 + b"a" * 4999 + b".",
        b"",
        b"not a pickle",
    ],
)
def test_other_programs(tmp_path, program):
    path = tmp_path / "evil.pkl"
    path.write_bytes(program)
    with pytest.raises(ValueError, match=r"evil.pkl is damaged"):
        load_pickle(path)


def test_no_memory_is_filled_on_demand(tmp_path):
    """In C this program takes 64 GB: it remembers one object as the four thousand millionth."""
    pytest.importorskip("resource")
    path = tmp_path / "large.pkl"
    path.write_bytes(b"Nr\xff\xff\xff\xff.")
    code = (
        "import resource, sys; from probpose.data.datasets.pickles import load_pickle; hard = resource.getrlimit(resource.RLIMIT_AS)[1];"
        "resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30 if hard < 0 else min(8 * 2**30, hard), hard)); print(load_pickle(sys.argv[1]))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "None"


def test_truncated_pickles_are_named(tmp_path):
    whole, path = pickle.dumps({"poses": np.arange(100.0), "names": ["a"]}), tmp_path / "short.pkl"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"short.pkl is damaged"):
            load_pickle(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(tmp_path, save):
    positions = {"S1": {"Walk": np.ones((2, 3), np.float32)}}
    path = tmp_path / "data.npz"
    save(path, positions_3d=positions, plain=np.arange(3), row=ragged(np.zeros(2), [1]), names=np.array(["a"]))
    assert list_npz(path) == ("positions_3d", "plain", "row", "names")
    found = load_npz(path, ["positions_3d", "plain", "row"])
    same(found, {"positions_3d": positions, "plain": np.arange(3), "row": ragged(np.zeros(2), [1])})


def test_a_missing_entry_is_named_with_those_that_are_there(tmp_path):
    np.savez(tmp_path / "data.npz", plain=np.arange(3))
    with pytest.raises(ValueError, match=r"data.npz has no entry 'positions_3d'; its entries are \['plain'\]"):
        load_npz(tmp_path / "data.npz", ["positions_3d"])


def test_damaged_archives(tmp_path):
    buffer, path = io.BytesIO(), tmp_path / "short.npz"
    np.savez(buffer, positions_3d={"S1": np.arange(500.0)}, plain=np.arange(500.0))
    whole = buffer.getvalue()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"short.npz is damaged"):
            load_npz(path, ["positions_3d"])
    broken = bytearray(whole)
    broken[600] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"short.npz is damaged"):
        load_npz(path, ["positions_3d"])


def test_an_array_file_is_no_archive(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array.npy is damaged or of another kind"):
        load_npz(tmp_path / "array.npy", ["x"])
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.npy", b"text")
    with pytest.raises(ValueError, match=r"other.npz is damaged"):
        load_npz(tmp_path / "other.npz", ["x"])


def test_missing_files(tmp_path):
    for load in (load_pickle, list_npz, lambda path: load_npz(path, ["x"])):
        with pytest.raises(FileNotFoundError, match="absent"):
            load(tmp_path / "absent")
