"""A small Hugging Face Hub on this machine: the calls that `huggingface_hub` makes to push and to fetch a model, over real HTTP.

Large files lie on a "CDN", the same server under another host name, which must not be sent the token. What the server was asked is in
`requests`; `fail` lets it break at a chosen call.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWNERS = {"hf_me": "me", "hf_other": "other"}


class _Answer(Exception):
    def __init__(self, status: int, error: str = "", **headers: str):
        super().__init__(error)
        self.status, self.error, self.headers = status, error, headers


class _HangUp(Exception):
    """The connection is lost."""


@dataclass
class Failure:
    """What goes wrong at the next `times` requests whose method and path match.

    Args:
        status: is answered; None: the connection is cut.
        after: bytes of the body that pass before it is cut.
        wait: set by the test to go on; the server sets `reached` when it gets there.
    """

    request: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    times: int = 1
    wait: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass
class Repo:
    """Branches and their commits; a commit is a table of paths."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, dict[str, Any]]) -> str:
        seed = json.dumps([len(self.commits), branch, files], sort_keys=True)
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class HubServer(ThreadingHTTPServer):
    """Serves until the block around `running()` is left; `folder` keeps the contents of all files, `part` is the size of uploads' parts."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.part = folder, 4096
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}/cdn"
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""

    def fail(self, request: str, status: int | None = None, **options: Any) -> Failure:
        failure = Failure(request, status, **options)
        self.failures.append(failure)
        return failure

    def asked(self, request: str) -> list[dict[str, str]]:
        """Headers of the requests whose "METHOD /path" matches."""
        return [headers for method, path, headers in self.requests if re.search(request, f"{method} {path}")]

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        repo = self.repos[repo_id]
        return {path: self.blob(entry["oid"]).read_bytes() for path, entry in repo.commits[repo.branches[branch]].items()}

    def blob(self, oid: str) -> Path:
        return self.folder / oid

    def keep(self, content: bytes, oid: str) -> None:
        unfinished = self.folder / f"{oid}.{threading.get_ident()}"
        unfinished.write_bytes(content)
        unfinished.rename(self.blob(oid))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/upload/(?P<oid>\w+)(?:/(?P<part>\d+))?", "upload"),
        ("POST", r"/upload/(?P<oid>\w+)", "complete"),
        ("POST", r"/verify", "verify"),
        ("(?:GET|HEAD)", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("(?:GET|HEAD)", r"/cdn/(?P<oid>\w+)", "cdn"),
    )

    def log_message(self, *_: Any) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {url.path}"
        with self.server.lock:
            self.server.requests.append((self.command, url.path, {key.lower(): value for key, value in self.headers.items()}))
            self.failure = next((f for f in self.server.failures if f.times and re.search(f.request, request)), None)
            if self.failure is not None:
                self.failure.times -= 1
        try:
            body = self._read_body()
            if self.failure is not None and self.failure.status is not None:
                raise _Answer(self.failure.status, "told to fail", **self.failure.headers)
            for method, pattern, name in self.ROUTES:
                if re.fullmatch(method, self.command) and (match := re.fullmatch(pattern, url.path)):
                    arguments = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    with self.server.lock:
                        answer = getattr(self, f"on_{name}")(body, **arguments)
                    break
            else:
                raise _Answer(404, f"no such call: {request}")
            self._send(*answer) if isinstance(answer, tuple) else self._send(200, json.dumps(answer).encode(), {})
        except _Answer as refusal:
            headers = {"X-Error-Message": refusal.error, **refusal.headers}
            self._send(refusal.status, json.dumps({"error": refusal.error}).encode(), headers)
        except (_HangUp, ConnectionError):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # ------------------------------------------------------------------------------------------------------------------
    # Bodies
    # ------------------------------------------------------------------------------------------------------------------

    def _read_body(self) -> bytes:
        if self.failure is not None and self.failure.status is None and self.command in ("PUT", "POST"):
            self.rfile.read1(max(1, self.failure.after))
            self.failure.reached.set()
            if self.failure.wait is not None:
                self.failure.wait.wait(60)
            raise _HangUp
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.failure is not None and self.failure.status is None
        self.wfile.write(body[: self.failure.after] if cut else body)
        if cut:
            raise _HangUp

    def _send_file(self, path: Path, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        content = path.read_bytes()
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if self.command == "HEAD":
            return 200, b"", {**headers, "Content-Length": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, content, headers
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        return 206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}

    # ------------------------------------------------------------------------------------------------------------------
    # Who may do what
    # ------------------------------------------------------------------------------------------------------------------

    def _user(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme and token not in OWNERS:
            raise _Answer(401, "Invalid credentials in Authorization header")
        return OWNERS.get(token)

    def _readable(self, repo_id: str) -> Repo:
        user, repo = self._user(), self.server.repos.get(repo_id)
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            raise _Answer(404 if user else 401, "Repository not found", X_Error_Code="RepoNotFound")
        return repo

    def _writable(self, repo_id: str) -> Repo:
        repo = self._readable(repo_id)
        if self._user() is None:
            raise _Answer(401, "Invalid username or password.")
        if self._user() != repo_id.split("/")[0]:
            raise _Answer(403, f"You do not have write access to {repo_id}")
        return repo

    def _commit_of(self, repo: Repo, revision: str | None) -> str:
        sha = repo.branches.get(revision or "main", revision)
        if sha not in repo.commits:
            raise _Answer(404, f"Invalid rev id: {revision}", X_Error_Code="RevisionNotFound")
        return sha

    # ------------------------------------------------------------------------------------------------------------------
    # Calls
    # ------------------------------------------------------------------------------------------------------------------

    def on_create(self, body: bytes) -> Any:
        wanted = json.loads(body)
        user = self._user()
        if user is None:
            raise _Answer(401, "Invalid username or password.")
        owner = wanted.get("organization") or user
        if owner != user:
            raise _Answer(403, f"You don't have the rights to create a model under the namespace {owner}")
        repo_id = f"{owner}/{wanted['name']}"
        url = {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repos:
            return 409, json.dumps({"error": "You already created this model repo", **url}).encode(), {}
        repo = Repo(private=wanted.get("private") or wanted.get("visibility") == "private")
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repo.commit("main", {".gitattributes": self._keep_regular(attributes)})
        self.server.repos[repo_id] = repo
        return url

    def on_validate(self, body: bytes) -> Any:
        return {"errors": [], "warnings": []}

    def on_info(self, body: bytes, repo: str, revision: str | None) -> Any:
        found = self._readable(repo)
        sha = self._commit_of(found, revision)
        siblings = [{"rfilename": path} for path in sorted(found.commits[sha])]
        return {"_id": "0", "id": repo, "modelId": repo, "sha": sha, "private": found.private, "tags": [], "siblings": siblings}

    def on_tree(self, body: bytes, repo: str, revision: str) -> Any:
        found = self._readable(repo)
        files = found.commits[self._commit_of(found, revision)]
        folders = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}
        listing = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        for path, entry in sorted(files.items()):
            large = {"lfs": {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}} if entry["lfs"] else {}
            listing.append({"type": "file", "path": path, "oid": entry["oid"][:40], "size": entry["size"], **large})
        return listing

    def on_preupload(self, body: bytes, repo: str, revision: str) -> Any:
        found = self._writable(repo)
        there = found.commits[self._commit_of(found, revision)]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                    "oid": there.get(file["path"], {}).get("oid"),
                }
                for file in json.loads(body)["files"]
            ]
        }

    def on_batch(self, body: bytes, repo: str) -> Any:
        self._writable(repo)
        return {"transfer": "basic", "objects": [self._actions(item["oid"], item["size"]) for item in json.loads(body)["objects"]]}

    def _actions(self, oid: str, size: int) -> dict[str, Any]:
        answer = {"oid": oid, "size": size}
        if self.server.blob(oid).exists():
            return answer
        href = f"{self.server.endpoint}/upload/{oid}"
        parts = {str(part + 1): f"{href}/{part}" for part in range(-(-size // self.server.part))} if size > self.server.part else {}
        upload = {"href": href, "header": {"chunk_size": str(self.server.part), **parts} if parts else {}}
        return {**answer, "actions": {"upload": upload, "verify": {"href": f"{self.server.endpoint}/verify"}}}

    def on_upload(self, body: bytes, oid: str, part: str | None) -> Any:
        if part is None:
            self._keep_large(body, oid)
        else:
            self.server.keep(body, f"{oid}-{part}")
        return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def on_complete(self, body: bytes, oid: str) -> Any:
        count = len(json.loads(body)["parts"])
        self._keep_large(b"".join(self.server.blob(f"{oid}-{part}").read_bytes() for part in range(count)), oid)
        return {}

    def _keep_large(self, content: bytes, oid: str) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Answer(400, "the content is not what was announced")
        self.server.keep(content, oid)

    def _keep_regular(self, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.server.keep(content, oid)
        return {"oid": oid, "size": len(content), "lfs": False}

    def on_verify(self, body: bytes) -> Any:
        wanted = json.loads(body)
        if self.server.blob(wanted["oid"]).stat().st_size != wanted["size"]:
            raise _Answer(400, "the size is not what was announced")
        return {}

    def on_branch(self, body: bytes, repo: str, revision: str) -> Any:
        found = self._writable(repo)
        if revision in found.branches:
            raise _Answer(409, "Reference already exists")
        found.branches[revision] = found.branches["main"]
        return {}

    def on_commit(self, body: bytes, repo: str, revision: str) -> Any:
        found = self._writable(repo)
        files = dict(found.commits[self._commit_of(found, revision)])
        for line in body.splitlines():
            kind, value = json.loads(line).values()
            if kind == "header" and value.get("parentCommit", found.branches[revision]) != found.branches[revision]:
                raise _Answer(412, "A commit has happened since. Please refresh and try again.")
            if kind == "file":
                files[value["path"]] = self._keep_regular(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if not self.server.blob(value["oid"]).exists():
                    raise _Answer(400, f"{value['path']} was never uploaded")
                files[value["path"]] = {"oid": value["oid"], "size": value["size"], "lfs": True}
            elif kind == "deletedFile" and files.pop(value["path"], None) is None:
                raise _Answer(404, "A file with this name doesn't exist", X_Error_Code="EntryNotFound")
        proposed = {}
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in found.branches)
            revision = f"refs/pr/{number}"
            proposed = {"pullRequestUrl": f"{self.server.endpoint}/{repo}/discussions/{number}"}
        sha = found.commit(revision, files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{sha}", **proposed}

    def on_resolve(self, body: bytes, repo: str, revision: str, path: str) -> Any:
        found = self._readable(repo)
        sha = self._commit_of(found, revision)
        if path not in found.commits[sha]:
            raise _Answer(404, "Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        entry = found.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"'}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": f'"{entry["oid"]}"', "X-Linked-Size": str(entry["size"])}
            return 302, b"", {**headers, "Location": f"{self.server.cdn}/{entry['oid']}"}
        return self._send_file(self.server.blob(entry["oid"]), headers)

    def on_cdn(self, body: bytes, oid: str) -> Any:
        return self._send_file(self.server.blob(oid), {"ETag": f'"{oid}"'})
