"""Motion-capture clips in memory: 17 joints, metres, world axes with z up."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
        ValueError: an archive of another layout, different frame rates, or nothing left after filtering.
    """

    def __init__(self, paths: str | Path | list[str | Path], split: str | None = "train", include: list[str] | None = None):
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        roots, locals_, lengths, self.names, rates = [], [], [], [], {}
        for path in map(Path, paths):
            if not path.is_file():
                raise FileNotFoundError(f"no motion archive at {path}")
            with np.load(path, allow_pickle=False) as archive:
                missing = [key for key in _NEEDED if key not in archive.files]
                if missing:
                    raise ValueError(f"{path} is not a motion archive: it lacks {missing}; needed are {list(_NEEDED)}")
                data = {key: archive[key] for key in _NEEDED}
            if data["local"].shape[1:] != (17, 3):
                raise ValueError(f"{path}: local must have shape (frames, 17, 3), got {data['local'].shape}")
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
