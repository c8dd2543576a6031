"""A Hub on this machine, and processes that know no other."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

CARD = "---\nlibrary_name: probpose\nlicense: cc-by-nc-4.0\n---\n\n# tiny\n\nWritten by hand.\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    folder = tmp_path / "server"
    folder.mkdir()
    with HubServer(folder).running() as server:
        yield server


@pytest.fixture
def start(hub: HubServer, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """`start(code, *arguments)` runs Python in a new process that meets this Hub, with an empty cache unless `home` was used before."""

    def run(code: str, *arguments, token: str | None = "hf_me", home: str = "home", **environment: str) -> subprocess.Popen:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        ours |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_TOKEN": token} if token else {}), **environment}
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=clean | ours, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return run


@pytest.fixture
def talk(start: Callable) -> Callable:
    """The same, waited for; returns what the process printed last, as JSON."""

    def run(code: str, *arguments, **options):
        process = start(code, *arguments, **options)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    return run


@pytest.fixture
def push(talk: Callable) -> Callable:
    """`push(folder, repo_id, **options)` in a process of its own; returns the commit's id, or "Error: message".

    Several at once, in one process: `push([(folder, repo_id, options), …])`.
    """
    code = """
import json, sys, warnings
from probpose.hub import push_folder
said = []
for folder, repo_id, options in json.loads(sys.argv[1]):
    try:
        commit = push_folder(folder, repo_id, **options)
        said.append(commit and commit.oid)
    except (ValueError, OSError) as error:
        said.append(f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""

    def run(folder, repo_id="me/tiny", process=None, **options):
        jobs = folder if isinstance(folder, list) else [(folder, repo_id, options)]
        said = talk(code, json.dumps([[str(where), name, how] for where, name, how in jobs]), **(process or {}))
        return said if isinstance(folder, list) else said[0]

    return run


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline's folder, with a card."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Files of a folder, and of a repository, by their names."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
