"""Model folders: what they hold, and whether it is whole. Nothing here loads a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

INDEX = "model_index.json"
CONFIG = "config.json"


class StoredTensor(NamedTuple):
    """What a weight file tells of one of its tensors."""

    shape: tuple[int, ...]
    dtype: str


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError names a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must hold an object, got {type(content).__name__}")
    return content


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a pipeline folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{folder} is no pipeline folder: it has no {INDEX}")
    return read_json(index)


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name of each part that a pipeline's index says to have, with module and class."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    }


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Shapes and types of the tensors in the .safetensors files of one network's folder, by name.

    Raises:
        FileNotFoundError: a file that an index of shards names is missing.
        ValueError: a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (no dictionary)
                    part = file.get_slice(name)
                    tensors[name] = StoredTensor(tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    for shards in folder.glob("*.safetensors.index.json"):
        files = {str(file) for file in dict(read_json(shards).get("weight_map") or {}).values()}
        if missing := sorted(file for file in files if not (folder / file).is_file()):
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which {shards.name} names")
    return tensors


def check_parts(folder: Path, index: dict[str, Any]) -> dict[str, set[str]]:
    """Name what is missing or damaged in a pipeline folder.

    Returns:
        Names of the stored weights, by part.

    Raises:
        FileNotFoundError: a part, its configuration or its weights are missing.
        ValueError: one of them is damaged.
    """
    stored: dict[str, set[str]] = {}
    for name in parts_of(index):
        part = folder / name
        config = part / ("scheduler_config.json" if name == "scheduler" else CONFIG)
        if not config.is_file():
            raise FileNotFoundError(f"{folder} lacks its part {name!r}: no file {config}")
        read_json(config)
        if name == "scheduler":
            continue
        stored[name] = set(read_weights(part))
        if not any(part.glob("*.safetensors")):
            raise FileNotFoundError(f"{folder} lacks the weights of its part {name!r}: no .safetensors file in {part}")
    return stored
