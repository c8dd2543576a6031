"""Saving a pipeline of which only some parts have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from probpose.pipelines import ProbPosePipeline


def save_changed(pipe: ProbPosePipeline, changed: Collection[str], folder: Path) -> None:
    """Write a pipeline into a new folder; parts that have not changed are copied as they are stored, in their precision.

    Args:
        pipe: the pipeline, loaded from a local folder. One from elsewhere is written whole, in the precision it has now.
        changed: names of the parts that are new.
        folder: must not exist.
    """
    source = Path(str(pipe.config.get("_name_or_path")))
    if not (source / "model_index.json").is_file():
        pipe.save_pretrained(folder)
        return
    folder.mkdir(parents=True)
    pipe.save_config(folder)
    _forget_origin(folder / "model_index.json")
    for name, part in pipe.components.items():
        if part is not None and name in changed:
            part.save_pretrained(folder / name)
            _forget_origin(folder / name / "config.json")
        elif part is not None:
            shutil.copytree(source / name, folder / name)


def _forget_origin(config: Path) -> None:
    """Where something was loaded from is nobody's business."""
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2) + "\n")
