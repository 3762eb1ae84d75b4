"""A stand-in for the Hugging Face hub over HTTP: what its client asks for, and a record of what was sent.

A client takes it for the hub with `environment`. Files may be larger than memory: `Zeros` are made as they are sent.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants, file_download

from miso_gguf.hub import cache as cache_module

_BLOCK_BYTES = 1 << 16
_PATIENCE_S = 60.0
TOKEN = "hf_secret"


@dataclass(frozen=True)
class Zeros:
    """A large file: `head`, then zeros."""

    head: bytes
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def block(self, start: int, stop: int) -> bytes:
        return self.head[start:stop].ljust(stop - start, b"\0")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.head + str(self.size_bytes).encode()).hexdigest()


Content = bytes | Zeros


@dataclass
class HubServer:
    """Repositories (OWNER/NAME -> file -> content), how the server behaves, and what it was asked."""

    repos: dict[str, dict[str, Content]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    """Repositories whose files are listed and not given."""
    large: bool = True
    """Whether files are kept as large ones: the hub then names their sha256 and sends one elsewhere for them."""
    ranges: bool = True
    """Whether parts of a file can be had."""
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    """The latest version of every repository."""
    private: set[str] = field(default_factory=set)
    """Repositories that are shown to whoever sends `TOKEN`, and to nobody else."""
    short: bool = False
    """Whether less is sent of a part than was asked for."""
    broken: bool = False
    """Whether the connection is cut in the middle of a file."""
    misplaced: bool = False
    """Whether another part is sent than was asked for."""
    failing: str = ""
    """Paths that start so are answered with `failing_status`."""
    failing_status: int = 503
    checks_tokens: bool = False
    """Whether whoever sends another token than `TOKEN` is refused, also what anybody may have."""
    cuts: list[int] = field(default_factory=list)
    """Of the next files, one each: how many bytes are sent before the connection is cut."""
    damaged: set[str] = field(default_factory=set)
    """Files whose last byte arrives as another."""
    listed: Callable[[str], object] = lambda _repo: None
    """Called when a repository was listed."""
    history: dict[str, dict[str, Content]] = field(default_factory=dict)
    """Commit -> files, of what was published."""
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    """(repository, branch or tag) -> commit."""
    encodings: set[str] = field(default_factory=set)
    """In which answers were wanted: a server or proxy may compress what is not only wanted as it is."""
    requests: list[str] = field(default_factory=list)
    """METHOD PATH, and the range where one was asked for."""
    port: int = 0
    _sent_bytes: int = field(default=0, init=False)
    _answering: int = field(default=0, init=False)
    _answered: threading.Condition = field(default_factory=threading.Condition, init=False)

    @property
    def sent_bytes(self) -> int:
        """Of file contents, since `count_anew`. Waits for answers under way: one goes on when its client has gone."""
        with self._quiet():
            return self._sent_bytes

    def count_anew(self) -> None:
        """What is asked for from now on is counted, and nothing that was before."""
        with self._quiet():
            self._sent_bytes = 0

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with self._answered:
            assert self._answered.wait_for(lambda: not self._answering, _PATIENCE_S), "an answer that nobody reads"
            yield

    @contextmanager
    def answering(self) -> Iterator[None]:
        """In the block a request is answered."""
        with self._answered:
            self._answering += 1
        try:
            yield
        finally:
            with self._answered:
                self._answering -= 1
                self._answered.notify_all()

    def count(self, sent_bytes: int) -> None:
        """So much was sent."""
        with self._answered:
            self._sent_bytes += sent_bytes

    def publish(self, repo: str, files: dict[str, Content], revision: str = "main") -> str:
        """A new commit, which the branch or tag is from now on."""
        commit = hashlib.sha1(f"{repo} {len(self.history)}".encode()).hexdigest()
        self.history[commit], self.refs[repo, revision] = files, commit
        if revision == "main":
            self.repos[repo] = files
        return commit

    def found(self, repo: str, revision: str) -> tuple[str, dict[str, Content]] | None:
        """(commit, files); None if there is no such revision. Of a repository that was not published there is one."""
        commit = self.refs.get((repo, revision), revision)
        if commit in self.history:
            return commit, self.history[commit]
        is_there = not any(name == repo for name, _ in self.refs) and revision in ("main", self.commit)
        return (self.commit, self.repos[repo]) if is_there else None

    def environment(self, home: Path) -> Mapping[str, str]:
        """Variables with which a program of ours meets this hub, and keeps what it fetches in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {**kept, "HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_HOME": str(home), "NO_PROXY": "*"}


def meet(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes it for the hub. The client reads its environment once: what it made of it is changed."""
    endpoint = f"http://127.0.0.1:{hub.port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for module in (constants, file_download):  # where the oldest client has it
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.with_name("token")))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(cache_module, "_PAUSE_S", 0.0)


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """The hub on a port of this machine's own, until the block ends."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        with self.hub.answering():
            self._answer(with_body=False)

    def do_GET(self) -> None:
        with self.hub.answering():
            self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        asked = self.headers.get("Range", "")
        self.hub.encodings.add(self.headers.get("Accept-Encoding", ""))
        self.hub.requests.append(f"{self.command} {self.path} {asked}".rstrip())
        is_cdn = self.path.startswith("/cdn")  # which is asked without a token
        repo = "/".join(self.path.removeprefix("/cdn").removeprefix("/api/models").split("/")[1:3])
        token = self.headers.get("Authorization")
        is_known = token == f"Bearer {TOKEN}"
        if self.hub.failing and self.path.startswith(self.hub.failing):
            self._refuse(self.hub.failing_status, "busy")
        elif self.hub.checks_tokens and token is not None and not is_known:
            self._refuse(401, "Invalid credentials in Authorization header")
        elif repo in self.hub.private and not is_cdn and not is_known:
            self._refuse(401, "no such repository", "RepoNotFound")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.path):
            self._list(match[1], unquote(match[2] or "main"))
        elif match := re.fullmatch(r"(?:/cdn)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self._file(match[1], unquote(match[2]), match[3], is_cdn=is_cdn, with_body=with_body)
        elif self.path == "/api/agent-harnesses":  # a client that may say what it is keeps the answer in a file
            self._json({"agents": {}})
        else:
            self._refuse(404, "not found")

    def _list(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repos:
            self._refuse(401, "no such repository", "RepoNotFound")
        elif (found := self.hub.found(repo, revision)) is None:
            self._refuse(404, "no such revision", "RevisionNotFound")
        else:
            siblings = [{"rfilename": name} for name in found[1]]
            self._json({"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings})
            self.hub.listed(repo)

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _file(self, repo: str, revision: str, name: str, *, is_cdn: bool, with_body: bool) -> None:
        if repo not in self.hub.repos:
            self._refuse(401, "no such repository", "RepoNotFound")
        elif (found := self.hub.found(repo, revision)) is None:
            self._refuse(404, "no such revision", "RevisionNotFound")
        elif repo in self.hub.gated:
            self._refuse(403, "gated", "GatedRepo")
        elif name not in found[1]:
            self._refuse(404, "no such file", "EntryNotFound")
        elif self.hub.large and not is_cdn:
            content = found[1][name]
            headers = {
                "X-Repo-Commit": found[0],
                "X-Linked-Etag": f'"{_sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "ETag": '"pointer"',
            }
            # Another host, as on the real hub: its client asks that one for content only.
            location = f"http://localhost:{self.hub.port}/cdn{self.path}"
            self._head(302, {**headers, "Location": location, "Content-Length": "0"})
        else:
            self._send(found[1][name], found[0], is_damaged=name in self.hub.damaged, with_body=with_body)

    def _send(self, content: Content, commit: str, *, is_damaged: bool, with_body: bool) -> None:
        start, stop, status = 0, len(content), 200
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha1(content)}"'}
        if is_damaged and isinstance(content, bytes):
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.hub.ranges:
            start, stop, status = int(asked[1]), min(int(asked[2] or stop - 1) + 1, stop), 206
            start += self.hub.misplaced
            stop -= self.hub.short
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._head(status, {**headers, "Content-Length": str(stop - start)})
        if self.hub.broken:
            stop = (start + stop) // 2
            self.close_connection = True
        if self.hub.cuts and with_body:
            stop = min(stop, start + self.hub.cuts.pop(0))
            self.close_connection = True
        while with_body and start < stop:
            end = min(start + _BLOCK_BYTES, stop)
            block = content.block(start, end) if isinstance(content, Zeros) else content[start:end]
            try:
                self.wfile.write(block)
            except OSError:  # the client has what it wanted
                self.close_connection = True
                return
            self.hub.count(len(block))
            start = end

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        self._head(
            status, {"Content-Length": "0", "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        )

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _sha256(content: Content) -> str:
    return content.sha256 if isinstance(content, Zeros) else hashlib.sha256(content).hexdigest()


def _sha1(content: Content) -> str:
    return hashlib.sha1(_sha256(content).encode()).hexdigest()
