"""`probpose models`: the models that travel with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import DEFAULT_MODEL, app, epilog, print_rows


@app.command(epilog=epilog("probpose models", "probpose models --paths"))
def models(paths: Annotated[bool, typer.Option("--paths", help="Also where they are.")] = False) -> None:
    """List the bundled models: names that every --model takes. `probpose info NAME` tells more of one."""
    from probpose.hub import bundled_model, check_repository, list_bundled_models

    rows = {}
    for name in list_bundled_models():
        repository = check_repository(bundled_model(name))
        facts = [repository.kind, f"{repository.size / 1e6:.0f} MB", repository.license]
        facts += ["the default"] * (name == DEFAULT_MODEL) + [str(repository.folder)] * paths
        rows[name] = ", ".join(facts)
    print_rows(rows or {"none": "this installation has no bundled models"})
