"""Motion-capture clips in memory: 17 joints, metres, world axes with z up."""

from __future__ import annotations

import copy
import fnmatch
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .mocap_files import JOINT_NAMES

_NEEDED = ("root", "local", "starts", "names", "splits", "fps", "joints")


class MocapClips:
    """Clips of one or several `.npz` archives, concatenated along frames.

    Archive layout: `root (N, 3)` metres, `local (N, 17, 3)` metres relative to the root in the same world axes (joint = root + local),
    `starts (clips + 1)` frame offsets, `names`, `splits` ("train" / "test"), `fps`, `joints`. `probpose.data.clips_to_npz` writes it.

    Args:
        paths: an archive or a list of them.
        split: keep only clips of this split; None keeps all.
        include: keep only clips whose name matches one of these shell patterns (`"cmu/*"`).

    Attributes:
        root `(N, 3)`, local `(N, 17, 3)`: float32 tensors. starts `(clips + 1)`: frame offsets. names: list. sources: list of the
        names' first path component, per clip. fps: frames per second.

    Raises:
        FileNotFoundError: an archive does not exist.
        ValueError: a file of another layout, different frame rates, or nothing left after filtering.
    """

    def __init__(self, paths: str | Path | list[str | Path], split: str | None = "train", include: list[str] | None = None):
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        roots, locals_, lengths, self.names, rates = [], [], [], [], {}
        for path in map(Path, paths):
            data = _read_archive(path)
            rates[str(path)] = float(data["fps"])
            for i, (name, clip_split) in enumerate(zip(data["names"].tolist(), data["splits"].tolist())):
                if split is not None and clip_split != split:
                    continue
                if include is not None and not any(fnmatch.fnmatch(name, pattern) for pattern in include):
                    continue
                frames = slice(int(data["starts"][i]), int(data["starts"][i + 1]))
                roots.append(data["root"][frames].astype(np.float32))
                locals_.append(data["local"][frames].astype(np.float32))
                lengths.append(frames.stop - frames.start)
                self.names.append(name)
        if not self.names:
            raise ValueError(f"no clips left: split={split!r}, include={include!r} in {[str(p) for p in paths]}")
        if len(set(rates.values())) > 1:
            raise ValueError(f"all archives must share one frame rate, got {rates}")
        self.fps = next(iter(rates.values()))
        self.root = torch.from_numpy(np.concatenate(roots))
        self.local = torch.from_numpy(np.concatenate(locals_))
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        self.sources = [name.split("/")[0] for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Root `(frames, 3)` and local `(frames, 17, 3)` of one clip."""
        frames = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.root[frames], self.local[frames]

    def select(self, keep: Callable[[str], bool]) -> MocapClips:
        """The clips whose name `keep` accepts; ValueError if none is left."""
        chosen = [i for i, name in enumerate(self.names) if keep(name)]
        if not chosen:
            raise ValueError("no clips left after selection")
        other = copy.copy(self)
        frames = torch.cat([torch.arange(int(self.starts[i]), int(self.starts[i + 1])) for i in chosen])
        other.root, other.local = self.root[frames], self.local[frames]
        other.starts = torch.tensor([0] + [int(self.starts[i + 1] - self.starts[i]) for i in chosen]).cumsum(0)
        other.names, other.sources = [self.names[i] for i in chosen], [self.sources[i] for i in chosen]
        return other


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one archive, checked against each other; the errors are those of `MocapClips`."""
    if not path.is_file():
        raise FileNotFoundError(f"no motion archive at {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {key: archive[key] for key in _NEEDED if key in archive.files}
    # TypeError: np.load hands out a bare array for a .npy file
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a motion archive: {error}") from None
    if missing := [key for key in _NEEDED if key not in data]:
        raise ValueError(f"{path} is not a motion archive: it lacks {missing}; needed are {list(_NEEDED)}")
    frames, clips, starts = data["local"].size // 51, data["names"].size, data["starts"]
    for key, shape in {"root": (frames, 3), "local": (frames, 17, 3), "splits": (clips,), "starts": (clips + 1,), "fps": ()}.items():
        if data[key].shape != shape:
            raise ValueError(f"{path}: with {frames} frames in {clips} clips {key} must have shape {shape}, got {data[key].shape}")
    if tuple(data["joints"].tolist()) != JOINT_NAMES:
        raise ValueError(f"{path}: joints must be {list(JOINT_NAMES)} in this order, got {data['joints'].tolist()}")
    if starts[0] != 0 or starts[-1] != frames or (np.diff(starts) < 1).any():
        raise ValueError(f"{path}: starts must rise from 0 to the number of frames ({frames}), got {starts.tolist()}")
    for key in ("root", "local"):
        if not np.isfinite(data[key]).all():
            raise ValueError(f"{path}: {key} must be finite")
    return data
