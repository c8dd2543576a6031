"""Shows mkdocstrings the public names of a package, wherever its folder lies and however late they are imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ("pipelines", "schedulers", "hub")  # folders that are packages of probpose, and not inside of it


class PublicNames(griffe.Extension):
    """Adds the packages beside `probpose`, and names that a package imports on first use (its `_HOME`)."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if pkg.path != "probpose":
            return
        for name in BESIDE:
            package = _load(ROOT / name / "__init__.py", name, pkg, loader)
            for path in (ROOT / name).glob("*.py"):
                if path.stem != "__init__":
                    _load(path, path.stem, package, loader)
        _resolve(pkg)


def _load(path: Path, name: str, parent: griffe.Module, loader: griffe.GriffeLoader) -> griffe.Module:
    code = path.read_text(encoding="utf-8")
    loader.lines_collection[path] = code.splitlines()
    module = griffe.visit(
        name, path, code, parent=parent, extensions=loader.extensions, lines_collection=loader.lines_collection,
        modules_collection=loader.modules_collection, docstring_parser=loader.docstring_parser,
        docstring_options=loader.docstring_options,
    )  # fmt: skip
    parent.set_member(name, module)
    return module


def _resolve(package: griffe.Module) -> None:
    """Members for the names in `_HOME`, of sub-packages, too; what diffusers only looks for in a package is no name of it."""
    homes = package.members.get("_HOME") or package.members.get("_HOMES")
    if homes is not None:
        names = {name: _absolute(module, package) for name, module in ast.literal_eval(str(homes.value)).items()}
        for name, module in names.items():
            package.set_member(name, griffe.Alias(name, f"{module}.{name}", parent=package))
        own = {*package.functions, *package.classes} - {name for name in package.members if name.startswith("_")}
        package.exports = sorted({*names, *own})
    if package.exports is not None:
        package.exports = [name for name in package.exports if name not in ("ModelMixin", "SchedulerMixin")]
    for module in [module for module in package.modules.values() if not module.is_alias]:
        _resolve(module)


def _absolute(module: str, package: griffe.Module) -> str:
    return module if module.startswith("probpose.") else f"{package.path}.{module}"
