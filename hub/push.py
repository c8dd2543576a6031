"""Models pushed to the Hugging Face Hub: whole, with a card and a licence, in safetensors; or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from .card import CARD, check_card, check_licenses, find_sources, inherited_data, make_card
from .client import hub_errors
from .repository import CONFIG, INDEX, check_parts, parts_of, read_index, read_json, read_weights

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_SUFFIXES = (".safetensors", ".json", ".md", ".txt", ".yaml", ".yml", ".png", ".jpg", ".svg")
_NAMES = ("LICENSE", "LICENCE", "NOTICE", "CITATION.cff")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack", ".npy", ".npz")
_PUBLIC = ("probpose.models", "probpose.schedulers", "probpose.calibration", "diffusers")


class Repository(NamedTuple):
    """A folder that is fit to be pushed.

    Args:
        folder: where it is.
        kind: class of the pipeline, or of the network if it is one alone.
        license: of the card.
        files: what will be pushed, relative to the folder.
        card: Markdown.
    """

    folder: Path
    kind: str
    license: str
    files: tuple[PurePosixPath, ...]
    card: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    @property
    def is_pipeline(self) -> bool:
        return (self.folder / INDEX).is_file()


def check_repository(folder: str | Path, card: str | None = None) -> Repository:
    """Look whether a folder is a whole model with a card, and holds nothing that should not leave the house.

    Args:
        folder: of a pipeline or of a single network, as `save_pretrained` writes them.
        card: Markdown; default the README.md in the folder.

    Raises:
        FileNotFoundError: no folder, no card, or something is missing that the model's index names.
        ValueError: no or an unsuitable licence (see `probpose.hub.card.check_card`), pickles or foreign files, a damaged file, or
            parts of classes that others do not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    files = tuple(PurePosixPath(path.as_posix()) for path in paths if not any(part.startswith(".") for part in path.parts))
    _check_files(folder, files)
    kind = _check_model(folder)
    if card is None:
        if not (folder / CARD).is_file():
            raise FileNotFoundError(f"{folder} has no model card: write its {CARD}, or have one made by --license (make_card)")
        card = (folder / CARD).read_text(encoding="utf-8")
    front = check_card(card, str(folder / CARD))
    return Repository(folder, kind, front["license"], files, card)


def _check_files(folder: Path, files: Sequence[PurePosixPath]) -> None:
    if pickles := [str(file) for file in files if file.suffix in _PICKLES]:
        raise ValueError(
            f"{folder} holds weights or arrays that are no safetensors, which are not pushed: {', '.join(pickles)}; remove them"
        )
    foreign = [str(file) for file in files if file.suffix not in _SUFFIXES and file.name not in _NAMES]
    if foreign:
        raise ValueError(f"{folder} holds files that do not belong to a model: {', '.join(foreign[:5])}; remove them")


def _check_model(folder: Path) -> str:
    """Class of the model that a folder holds; raises if it is not whole."""
    if (folder / INDEX).is_file():
        index = read_index(folder)
        check_parts(folder, index)
        for name, (module, kind) in parts_of(index).items():
            if module not in _PUBLIC:
                raise ValueError(f"{folder / INDEX} names its part {name!r} {module}.{kind}, which others do not have")
    elif (folder / CONFIG).is_file():
        index = read_json(folder / CONFIG)
        if not read_weights(folder):
            raise FileNotFoundError(f"{folder} lacks its weights: no .safetensors file")
    else:
        raise FileNotFoundError(f"{folder} is no model folder: it has neither {INDEX} nor {CONFIG}")
    if not isinstance(kind := index.get("_class_name"), str):
        raise ValueError(f"{folder} does not say what it is: no _class_name, a string, in its {INDEX} or {CONFIG}")
    return kind


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
    card: str | None = None,
) -> CommitInfo | None:
    """Push a model folder to the Hub, in one commit: others see all of it or nothing.

    Weights go up first. If that breaks off, nothing is published, and the next try sends only what is not there yet. Weights in the
    repository's folders that the new model does not have are taken away in the same commit; other files of the repository stay.

    Args:
        folder: see `check_repository`.
        repo_id: "user/model" or "organisation/model"; without a slash, under your own name. Made if it is not there.
        private: whether others may not see a repository that is made.
        revision: branch to commit to, made from "main" if it is not there; default "main".
        dry_run: check the folder and the name, and send nothing.
        token: default that of `hf auth login` or HF_TOKEN.
        commit_message: first line of the commit.
        create_pr: open a pull request instead.
        subfolder: of the repository to put the model in.
        card: Markdown, for a folder that has no card.

    Returns:
        The client's account of the commit (`commit_url`, `oid`, …); None for a dry run.

    Raises:
        FileNotFoundError, ValueError: see `check_repository`; or no repository id; or a public repository where a private one is wanted.
        PermissionError, ConnectionError, OSError: in words, what the Hub says against it.
    """
    from huggingface_hub import CommitOperationDelete, HfApi
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.utils import validate_repo_id

    repository = check_repository(folder, card)
    with hub_errors(repo_id, revision, writing=True):
        validate_repo_id(repo_id)
        if dry_run:
            return None
        api = HfApi(token=token or True, library_name="probpose")  # True: not without one
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        try:
            there, is_new = api.repo_info(repo_id, revision=revision), False
        except RevisionNotFoundError:
            there, is_new = api.repo_info(repo_id), True
        if private and not there.private:
            raise ValueError(f"{repo_id!r} is there already, and public: make it private in its settings first, or push without private")
        remote = [file.rfilename for file in there.siblings or ()]
        additions = _additions(repository, subfolder, remote)
        stale = _stale(repository, subfolder, remote)
        api.preupload_lfs_files(repo_id, additions, revision=None if is_new else revision, create_pr=create_pr, free_memory=False)
        if is_new:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(file, is_folder=False) for file in stale)],
            commit_message=commit_message or f"Upload {repository.kind}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=None if create_pr else there.sha,
        )


def _additions(repository: Repository, subfolder: str | None, remote: Sequence[str]) -> list[Any]:
    """What to upload: the files, and the card for the repository's front page if it has none."""
    from huggingface_hub import CommitOperationAdd

    inside = PurePosixPath(subfolder or "")
    contents = {inside / file: _content(repository.folder / file) for file in repository.files}
    contents[inside / CARD] = repository.card.encode()
    if CARD not in remote:
        contents[PurePosixPath(CARD)] = repository.card.encode()
    return [CommitOperationAdd(str(path), content) for path, content in contents.items()]


def _content(path: Path) -> Path | bytes:
    """A file, or a configuration without the place on this machine that it was loaded from."""
    if path.name in (INDEX, CONFIG, "scheduler_config.json"):
        content = read_json(path)
        if content.pop("_name_or_path", None) is not None:
            return (json.dumps(content, indent=2) + "\n").encode()
    return path


def _stale(repository: Repository, subfolder: str | None, remote: Sequence[str]) -> list[str]:
    """Files of the repository that would be loaded together with the new model, and are none of it."""
    inside = PurePosixPath(subfolder or "")
    pushed = {inside / file for file in repository.files}
    folders = {inside / file.parent for file in repository.files} - {inside}

    def belongs(file: PurePosixPath) -> bool:
        return file.parent in folders or (file.parent == inside and file.name.startswith("diffusion_pytorch_model"))

    return [file for file in remote if PurePosixPath(file) not in pushed and belongs(PurePosixPath(file))]


class HubMixin:
    """`push_to_hub` that pushes nothing without a licence. Goes before the mixins of diffusers."""

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        revision: str | None = None,
        card: str | Path | None = None,
        license: str | None = None,
        training_data: str | Sequence[str] = (),
        recipe: str | Path | None = None,
        measured: Any = None,
    ) -> CommitInfo:
        """Save the model and push it to the Hub in one commit, with its card.

        The card is `card`; else one that is made from the model and the last four arguments; else, if none of them is given, the one
        that the repository has already. A model that was loaded from a folder or repository with a card is bound to its licence.

        Args:
            repo_id, commit_message, private, token, create_pr, subfolder, revision: see `probpose.hub.push_folder`.
            safe_serialization: must be true.
            variant: of the weight files' names, e.g. "fp16".
            card: Markdown, or a file with it.
            license, training_data, recipe, measured: see `probpose.hub.make_card`.

        Returns:
            The client's account of the commit.

        Raises:
            ValueError, OSError: see `probpose.hub.push_folder` and `probpose.hub.make_card`.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles, which are not pushed; leave it out")
        facts = {"license": license, "training_data": training_data, "recipe": recipe, "measured": measured}
        origin = inherited_data(self.config.get("_name_or_path"))
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            if card is not None:
                is_file = isinstance(card, Path) or "\n" not in card
                text = Path(card).read_text(encoding="utf-8") if is_file else card
            else:
                text = None if any(facts.values()) else _published_card(repo_id, revision, token, subfolder)
            if text is None:
                text = make_card(folder, repo_id, **facts, origin=origin)
            check_licenses(check_card(text)["license"], find_sources(origin), repo_id)
            Path(folder, CARD).write_text(text, encoding="utf-8")
            options = {"private": private, "token": token, "create_pr": create_pr, "subfolder": subfolder, "revision": revision}
            return push_folder(folder, repo_id, commit_message=commit_message, **options)

    def _upload_folder(
        self,
        working_dir: str | Path,
        repo_id: str,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> CommitInfo:
        """What diffusers' `save_pretrained(…, push_to_hub=True)` ends with."""
        return push_folder(working_dir, repo_id, token=token, commit_message=commit_message, create_pr=create_pr, subfolder=subfolder)


def _published_card(repo_id: str, revision: str | None, token: str | None, subfolder: str | None) -> str | None:
    """The card that a repository has, or None; a branch that is not there will have that of "main"."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    with hub_errors(repo_id, revision, writing=True):
        try:
            path = hf_hub_download(repo_id, CARD, revision=revision, subfolder=subfolder, token=token or True)
        except (RemoteEntryNotFoundError, RepositoryNotFoundError):
            return None
        except RevisionNotFoundError:
            return _published_card(repo_id, None, token, subfolder)
    return Path(path).read_text(encoding="utf-8")
