"""Writing without regret: an output appears whole under its name or not at all, and nothing is replaced unasked."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary neighbour of `path` (same suffix) that takes its name only when the block succeeds.

    The block may make it a file or a folder.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        FileNotFoundError: the folder around it does not exist.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; ask for overwriting to replace it (overwrite=True, --overwrite)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    unfinished = _neighbour(path)
    try:
        yield unfinished
        if path.is_dir():  # a folder that is not empty cannot be replaced in one step
            old = _neighbour(path)
            path.rename(old)
            unfinished.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
