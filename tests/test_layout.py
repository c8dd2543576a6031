"""The house keeps its floors: a file imports only from floors below its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "probpose.devices": 0,
    "probpose.files": 0,
    "probpose.plugins": 0,
    "probpose.processes": 0,
    "probpose.shards": 1,
    "probpose.skeletons": 1,
    "probpose.geometry": 1,
    "probpose.metrics": 1,
    "probpose.models": 2,
    "probpose.schedulers": 2,
    "probpose.adaptation": 2,
    "probpose.aggregation": 2,
    "probpose.calibration": 2,
    "probpose.data": 2,
    "probpose.guidance": 2,
    "probpose.mixtures": 2,
    "probpose.pipelines": 3,
    "probpose.results": 3,
    "probpose.video": 3,
    "probpose.training": 4,
    "probpose.evaluation": 4,
    # What the Hub asks of files and cards, below the models that go there.
    "probpose.hub.bundled": 0,
    "probpose.hub.repository": 1,
    "probpose.hub.card": 1,
    "probpose.hub.client": 1,
    "probpose.hub.push": 1,
    "probpose.export": 4,
    "probpose.hub": 4,
    "probpose.visualization": 4,
    "probpose.demo": 5,
    "probpose.cli": 6,
    "probpose.__main__": 7,
}
# hub builds models for which a scheduler is needed, evaluation runs pipelines: floor 4 may use all of 1 to 3.


def modules():
    for folder in ("probpose", "pipelines", "schedulers", "hub"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield path, ".".join(parts if folder == "probpose" else ("probpose", *parts))


def room(module):
    """The floor's package that a module belongs to, or None for `probpose` itself."""
    return next((name for name in FLOORS if module == name or module.startswith(name + ".")), None)


def imported(path, module):
    package = module.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize(("path", "module"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_down(path, module):
    module = module.removesuffix(".__init__")
    own = room(module)
    if own is None:
        assert module == "probpose"  # which imports on first use
        return
    for name in imported(path, module):
        other = room(name)
        if other is not None and other != own:
            assert FLOORS[other] < FLOORS[own] or (FLOORS[other], FLOORS[own]) == (1, 1), f"{module} imports {name}"


def test_importing_probpose_is_light():
    code = "import sys, probpose, probpose.hub, probpose.data; print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
