"""Where the code blocks of the site run: a new folder with the repository's examples and models in it, on one thread."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "86"}

# A page has no place for progress bars: what goes to stderr is shown where a command fails.
COMMAND = """#!/bin/sh
{python} -m probpose "$@" 2> .stderr || {{ code=$?; cat .stderr; exit $code; }}
"""

_workshop: TemporaryDirectory | None = None
_home = ""


def on_pre_build(config: Any) -> None:
    global _workshop, _home
    _home, _workshop = os.getcwd(), TemporaryDirectory(prefix="probpose-docs-")
    for path in (ROOT / "examples", ROOT / "hub"):
        Path(_workshop.name, path.name).symlink_to(path)
    for path in (ROOT / "docs" / "tutorials" / "files").iterdir():
        shutil.copy(path, _workshop.name)
        sys.modules.pop(path.stem, None)  # `mkdocs serve` builds again and again
    command = Path(_workshop.name, ".bin", "probpose")
    command.parent.mkdir()
    command.write_text(COMMAND.format(python=shlex.quote(sys.executable)))
    command.chmod(0o755)
    os.chdir(_workshop.name)
    os.environ.update(SURROUNDINGS, PYTHONPATH=_workshop.name, PATH=f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    sys.path.insert(0, _workshop.name)
    _calm_down()


def _calm_down() -> None:
    import torch
    from diffusers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def on_files(files: Files, config: Any) -> Files:
    """CONTRIBUTING.md lies in the root of the repository; its links start there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=text.replace("](docs/", "](")))
    return files


def on_post_build(config: Any) -> None:
    """Pictures and films that the tutorials have made go where the pages look for them."""
    target = Path(config.site_dir, "tutorials", "out")
    target.mkdir(parents=True, exist_ok=True)
    for path in Path(_workshop.name, "out").glob("*"):
        if path.suffix in (".png", ".mp4"):
            shutil.copy(path, target)
    _leave()


def on_build_error(error: Exception) -> None:
    _leave()


def _leave() -> None:
    if _workshop is not None and _workshop.name in sys.path:
        os.chdir(_home)
        sys.path.remove(_workshop.name)
        _workshop.cleanup()
