"""`probpose push`: a model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import app, epilog, load_model, print_rows, resolve_model


@app.command(
    epilog=epilog(
        "probpose push models/my-scene me/my-scene --dry-run",
        "probpose push models/my-scene me/my-scene --license cc-by-nc-4.0 --data bandai --data 'our recordings (cc0-1.0)' --private",
        "probpose push runs/mine/pipeline me/mine --recipe recipe.yaml --measured report.json --revision v2",
    )
)
def push(
    folder: Annotated[str, typer.Argument(help="Folder of a pipeline or of a network alone, or a bundled name.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: user/model or organisation/model. Made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Others may not see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it is not there. Default: main.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and send nothing.")] = False,
    license_: Annotated[str | None, typer.Option("--license", help="For a folder without a card: make one, with this licence.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="For that card: training data, a known name or 'NAME (LICENCE)'.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="For that card: the training recipe.")] = None,
    measured: Annotated[Path | None, typer.Option(help="For that card: a report of `probpose evaluate --json`, or Markdown.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="First line of the commit.")] = None,
) -> None:
    """Push a model to the Hugging Face Hub: one commit, safetensors only, never without a card and a licence.

    The card is README.md in the folder. If there is none, --license, --data or --recipe have one made from the model and put there.
    """
    from probpose.files import replacing
    from probpose.hub import check_repository, make_card, push_folder

    path = Path(resolve_model(folder))
    facts = {"license": license_, "training_data": data, "recipe": recipe, "measured": measured}
    card = None
    if any(facts.values()):
        if (path / "README.md").exists():
            raise ValueError(f"{path / 'README.md'} is the card: leave out --license, --data, --recipe and --measured, or remove it")
        card = make_card(path, repo_id, license_, data or (), recipe, measured)
    repository = check_repository(path, card)
    _check_loading(repository)
    rows = {"model": repository.kind, "license": repository.license, "files": len(repository.files)}
    print_rows({**rows, "size": f"{repository.size / 1e6:.1f} MB", "to": repo_id + (f", branch {revision}" if revision else "")})
    if dry_run and card is not None:
        typer.echo(f"\n{card}")
    elif card is not None:
        with replacing(path / "README.md") as unfinished:
            unfinished.write_text(card, encoding="utf-8")
    commit = push_folder(path, repo_id, private=private or None, revision=revision, dry_run=dry_run, commit_message=message, card=card)
    typer.echo("nothing was sent" if commit is None else f"pushed: {commit.commit_url}")


def _check_loading(repository: Any) -> None:
    """A model that does not load here loads nowhere."""
    if repository.is_pipeline:
        load_model(str(repository.folder), "cpu")
        return
    from probpose import calibration, models

    network = getattr(models, repository.kind, None) or getattr(calibration, repository.kind, None)
    if network is None:
        raise ValueError(f"{repository.folder} holds a {repository.kind}, which is no network of probpose")
    network.from_pretrained(repository.folder)
