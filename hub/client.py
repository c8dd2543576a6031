"""Models fetched from the Hugging Face Hub, and what the Hub answers, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOG_IN = "log in by `hf auth login`, or put a token into HF_TOKEN"
_FETCHED = ("*.json", "*.safetensors", "*.md")  # neither pickles nor code


def download(
    repo_id: str,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> Path:
    """Fetch a model repository, or what changed since it was fetched last.

    Args:
        repo_id: such as "user/model".
        subfolder: of the repository, that alone is wanted.
        revision: branch, tag or commit; default "main".
        cache_dir: where files are kept; default that of `huggingface_hub` (HF_HOME).
        local_files_only: look into the cache alone. The environment variable HF_HUB_OFFLINE does the same.
        token: default the one of `hf auth login` or HF_TOKEN, if there is one.
        force_download: fetch files again that the cache has.

    Returns:
        The folder in the cache. Without a connection, the last one that was fetched.

    Raises:
        FileNotFoundError: no such repository or revision, or none that may be seen; or not in the cache, and nothing may be fetched.
        PermissionError: it is there, but access has to be asked for.
        OSError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import snapshot_download

    inside = f"{subfolder}/" if subfolder else ""
    with hub_errors(repo_id, revision):
        folder = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
            allow_patterns=[inside + pattern for pattern in _FETCHED],
        )
    return Path(folder, subfolder or "")


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None, writing: bool = False) -> Iterator[None]:
    """What `huggingface_hub` raises inside, as one line that says what to do.

    Raises:
        ValueError: no repository id.
        FileNotFoundError, PermissionError, ConnectionError, OSError: see `download`.
    """
    try:
        yield
    except Exception as error:
        explained = _explained(error, repo_id, revision, writing)
        if explained is None:
            raise
        raise explained from error


def _explained(error: BaseException, repo_id: str, revision: str | None, writing: bool) -> Exception | None:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    while isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__  # the client says where it stumbled; over what is inside
    model = repr(repo_id) if revision is None else f"{repo_id!r}, revision {revision!r},"
    again = "push again, others see all of the model or nothing" if writing else "try again"
    if isinstance(error, HFValidationError):
        return ValueError(f"{repo_id!r} is no repository id: it looks like 'user/model', of letters, digits, '-', '_' and '.'")
    if isinstance(error, LocalTokenNotFoundError):
        return OSError(f"there is no token for the Hub: {_LOG_IN}")
    if isinstance(error, OfflineModeIsEnabled):
        if writing:
            return OSError("offline mode is on: unset HF_HUB_OFFLINE to push")
        return FileNotFoundError(f"{model} is not in the cache, and offline mode (HF_HUB_OFFLINE) keeps it from being fetched")
    if isinstance(error, LocalEntryNotFoundError):
        return FileNotFoundError(f"{model} is not (completely) in the cache, and local_files_only=True keeps it from being fetched")
    if isinstance(error, HfHubHTTPError):
        return _answer(error, repo_id, revision, writing, again)
    if isinstance(error, HTTPError):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return ConnectionError(f"no connection to the Hub at {constants.ENDPOINT} ({reason}); {again}")
    if isinstance(error, RuntimeError) and writing:
        return OSError(f"the upload broke off ({(str(error) or 'no reason given').splitlines()[0]}); {again}")
    return None


def _answer(error: Any, repo_id: str, revision: str | None, writing: bool, again: str) -> Exception:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"the Hub's {repo_id!r} has no revision {revision!r}")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo_id!r} is given on request: ask for it on its page on the Hub, then {_LOG_IN}")
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f"the Hub has no {repo_id!r} that you may see: check the name; if it is private, {_LOG_IN}")
    if status == 401:
        return PermissionError(f"the Hub does not accept your token (it may be wrong or expired): {_LOG_IN}")
    if status == 403 and writing:
        return PermissionError(
            f"your token may not write to {repo_id!r}: push under your own name or your organisation's, with a token that may write"
        )
    if status == 403:
        return PermissionError(f"your token may not read {repo_id!r}: {_LOG_IN}")
    if status in (409, 412):
        return OSError(f"somebody else is changing {repo_id!r} at this moment; {again}")
    if status == 429:
        return OSError(f"too many requests to the Hub: wait {_waiting_time(error.response.headers)}; {again}")
    said = (error.server_message or "").splitlines()
    return OSError(f"the Hub answered {status}{f' ({said[0]})' if said else ''}; {again}")


def _waiting_time(headers: Any) -> str:
    seconds = headers.get("Retry-After", "") or "".join(re.findall(r";\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))[:1])
    return f"{seconds} seconds" if seconds.isdigit() else "some minutes"
