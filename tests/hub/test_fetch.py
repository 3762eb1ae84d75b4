"""Fetching from the hub, through the real client over HTTP: what is asked, what is kept, what is said."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import older_packages
import pytest
from hub_server import TOKEN, HubServer, meet, serving
from huggingface_hub import constants

from miso_gguf.core.errors import BundleError, CheckpointError, HubError
from miso_gguf.hub.cache import Cache
from miso_gguf.hub.fetch import Hub, is_repo_id, origin
from miso_gguf.hub.path import HubPath

REPO, OTHER = "someone/model", "someone/other"
REMEDY = "pass a file"
BIG = bytes(range(256)) * 2000
"""More than is sent, or taken in, at once: that much of the last piece is lost with a connection."""
PIECE = 1 << 16


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    server.publish(REPO, {"big.bin": BIG, "small.json": b"{}", "empty": b""})
    with serving(server):
        yield server


@pytest.fixture
def home(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache."""
    meet(hub, tmp_path / "cache", monkeypatch)
    return tmp_path / "cache"


def fetch(name: str = "big.bin", revision: str | None = None, **expected: Any) -> Path:
    return Hub().open(REPO, REMEDY, revision).get(name, REMEDY, **expected)


def message(call: Callable[[], object] = fetch) -> str:
    """What is said of what cannot be had, to whoever reads a checkpoint and whoever runs a bundle."""
    with pytest.raises(HubError) as caught:
        call()
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value, BundleError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_names_that_leave_the_repository_are_not_there(hub: HubServer, home: Path) -> None:
    names = ["../../x", "a/../../x", "/x", "C:x", "\\\\host\\x", "a\\..\\..\\x", "x\n", "..", ""]
    hub.publish(REPO, {"sub/model.bin": b"", "..x": b"", **dict.fromkeys(names, b"")})
    assert Hub().open(REPO, REMEDY).files == ["sub/model.bin", "..x"]


@pytest.mark.parametrize("name", ["big.bin", "small.json", "empty"])
@pytest.mark.parametrize("large", [True, False])
def test_a_file_comes_once_and_the_library_finds_it(hub: HubServer, home: Path, name: str, large: bool) -> None:
    import huggingface_hub  # noqa: PLC0415

    hub.large = large
    path = fetch(name)
    assert path.read_bytes() == hub.repos[REPO][name]
    assert hub.sent_bytes == path.stat().st_size
    hub.requests.clear()
    assert fetch(name) == path
    assert hub.requests == [f"GET /api/models/{REPO}"]
    assert Path(huggingface_hub.hf_hub_download(REPO, name, local_files_only=True)) == path
    assert hub.sent_bytes == path.stat().st_size


def test_a_byte_is_a_byte_of_the_file(hub: HubServer, home: Path) -> None:
    repository = Hub().open(REPO, REMEDY)
    hub.encodings.clear()
    repository.get("big.bin", REMEDY)
    assert hub.encodings == {"identity"}


def test_all_is_of_one_commit_whatever_happens_meanwhile(hub: HubServer, home: Path) -> None:
    first = hub.refs[REPO, "main"]
    hub.listed = lambda repo: hub.publish(repo, {"big.bin": BIG[::-1], "small.json": b"[]"})
    opened = Hub()
    repository = opened.open(REPO, REMEDY)
    assert repository.commit == first
    assert repository.get("big.bin", REMEDY).read_bytes() == BIG
    assert opened.open(REPO, REMEDY).get("small.json", REMEDY).read_bytes() == b"{}"
    assert origin(repository.get("small.json", REMEDY)) == (REPO, first)
    assert fetch("small.json").read_bytes() == b"[]"


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "feature/x"])
def test_a_revision(hub: HubServer, home: Path, revision: str) -> None:
    commit = hub.publish(REPO, {"big.bin": b"another"}, revision)
    assert fetch(revision=revision).read_bytes() == fetch(revision=commit).read_bytes() == b"another"
    assert fetch().read_bytes() == BIG
    assert Cache(REPO).commit(revision) == commit
    assert not [request for request in hub.requests if "resolve/main" in request or f"resolve/{revision}" in request]


@pytest.mark.parametrize("revision", ["nope", "f" * 40, "../../etc", "a b", "-x"])
def test_a_revision_that_is_not_there(hub: HubServer, home: Path, revision: str) -> None:
    assert message(lambda: fetch(revision=revision)) == (
        f"{REPO}@{revision}: the repository has no such branch, tag or commit: pass one that it has, or {REMEDY}"
    )
    assert not home.exists()


@pytest.mark.parametrize("cuts", [[100_000], [0, 70_000, 70_000, 0, 140_000]])
def test_a_cut_connection_goes_on_where_it_was(hub: HubServer, home: Path, cuts: list[int]) -> None:
    hub.cuts = list(cuts)
    assert fetch().read_bytes() == BIG
    assert len(BIG) <= hub.sent_bytes < len(BIG) + PIECE * len(cuts)
    assert files(home / f"models--{REPO.replace('/', '--')}" / "blobs") == [hashlib.sha256(BIG).hexdigest()]


@pytest.mark.parametrize("large", [True, False])
def test_an_interrupted_download_goes_on_in_the_next_run(hub: HubServer, home: Path, large: bool) -> None:
    hub.large = large
    hub.cuts = [200_000, 0, 0, 0]
    assert message().startswith(f"{REPO}/big.bin: cannot be fetched, the hub is out of reach (")
    assert next(home.rglob("*.incomplete")).stat().st_size == 3 * PIECE
    hub.count_anew()
    assert fetch().read_bytes() == BIG
    assert hub.sent_bytes == len(BIG) - 3 * PIECE


def test_ctrl_c_keeps_what_has_come(hub: HubServer, home: Path) -> None:
    class Interrupting:
        def __init__(self, _label: str, total: int) -> None:
            self.left = total // 2

        def __enter__(self) -> "Interrupting":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self, amount: int) -> None:
            self.left -= amount
            if self.left < 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Hub(Interrupting).open(REPO, REMEDY).get("big.bin", REMEDY)
    kept = next(home.rglob("*.incomplete")).stat().st_size
    assert 0 < kept < len(BIG)
    hub.count_anew()
    assert fetch().read_bytes() == BIG
    assert hub.sent_bytes == len(BIG) - kept


def test_a_server_without_ranges_starts_anew_and_is_given_up(hub: HubServer, home: Path) -> None:
    hub.ranges = False
    hub.cuts = [300_000]
    assert fetch().read_bytes() == BIG
    assert hub.sent_bytes == 300_000 + len(BIG)
    hub.publish(REPO, {"big.bin": BIG[::-1]})
    hub.broken = True
    assert message().startswith(f"{REPO}/big.bin: cannot be fetched, the hub is out of reach (")


def test_another_part_than_was_asked_for(hub: HubServer, home: Path) -> None:
    hub.cuts, hub.misplaced = [100_000], True
    assert "the server sent another part" in message()
    hub.misplaced = False
    assert fetch().read_bytes() == BIG


@pytest.mark.parametrize("cuts", [[], [100_000]])
def test_what_arrives_damaged_is_discarded(hub: HubServer, home: Path, cuts: list[int]) -> None:
    hub.damaged, hub.cuts = {"big.bin"}, cuts
    assert message().startswith(f"{REPO}/big.bin: what arrived is damaged (its sha256 is ")
    assert files(home) == ["main"]
    hub.damaged.clear()
    assert fetch().read_bytes() == BIG


@pytest.mark.parametrize("large", [True, False])
def test_what_is_expected_is_checked_when_it_arrives(hub: HubServer, home: Path, large: bool) -> None:
    hub.large = large
    expected = hashlib.sha256(b"else").hexdigest()
    said = "is another file than it should be" if large else "what arrived is damaged"
    assert said in message(lambda: fetch(sha256=expected))
    assert files(home) == ["main"]
    assert hub.sent_bytes == (0 if large else len(BIG)), "where the hub names the sha256, nothing is fetched"
    assert fetch(sha256=hashlib.sha256(BIG).hexdigest()).read_bytes() == BIG


def test_a_file_of_another_size_in_the_cache_is_fetched_again(hub: HubServer, home: Path) -> None:
    path = fetch()
    path.resolve().write_bytes(BIG[:-1])
    assert fetch(size_bytes=len(BIG)) == path
    assert path.read_bytes() == BIG


def test_a_partial_that_is_longer_than_the_file(hub: HubServer, home: Path) -> None:
    hub.cuts = [1, 0, 0, 0]
    message()
    next(home.rglob("*.incomplete")).write_bytes(bytes(len(BIG) + 1))
    assert fetch().read_bytes() == BIG


def test_out_of_reach_goes_on_with_the_commit_of_last_time(
    hub: HubServer, home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch("small.json")
    hub.publish(REPO, {"big.bin": b"new", "small.json": b"new"})
    hub.failing, count = "/", len(hub.requests)
    repository = Hub().open(REPO, REMEDY)
    assert (repository.files, repository.get("small.json", REMEDY)) == (["small.json"], first)
    assert repository.look("small.json", REMEDY) == first
    assert f"{REPO}: cannot be fetched, the hub is out of reach (it answers 503): {REMEDY}; going on" in caplog.text
    for call in (repository.get, repository.look):
        said = message(lambda call=call: call("big.bin", REMEDY))  # type: ignore[misc]
        assert said.startswith(f"{REPO}/big.bin: was not downloaded before, and cannot be fetched, the hub is out of")
        assert said.endswith(f"): {REMEDY}")
    with pytest.raises(HubError, match="was not downloaded before"):
        repository.require("big.bin", REMEDY)
    repository.require("small.json", REMEDY)
    assert len(hub.requests) == count + 1, "asked once, and never again"


def test_without_a_network_it_is_found_out_once(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    opened = Hub()
    assert message(lambda: opened.open(REPO, REMEDY)).startswith(
        f"{REPO}: cannot be fetched, the hub is out of reach ("
    )
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.port}")
    said = message(lambda: opened.open(OTHER, "pass the other one"))
    assert said.startswith(f"{OTHER}: cannot be fetched, the hub is out of reach (")
    assert said.endswith("): pass the other one"), "each repository ends in its own remedy"
    assert hub.requests == []


def test_gated(hub: HubServer, home: Path) -> None:
    hub.gated.add(REPO)
    wanted = f"{REPO}/big.bin: the repository is gated: accept its terms and run `hf auth login`, or {REMEDY}"
    assert message() == wanted
    assert message(lambda: Hub().open(REPO, REMEDY).look("big.bin", REMEDY)) == wanted


def test_private_and_missing(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"no such repository on the hub (or it is private): check the name, run `hf auth login`, or {REMEDY}"
    assert message(lambda: Hub().open(OTHER, REMEDY)) == f"{OTHER}: {said}"
    hub.private.add(REPO)
    assert message() == f"{REPO}: {said}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch().read_bytes() == BIG


@pytest.mark.parametrize("token", ["hf_wrong", "hf_ünicode"])
def test_a_wrong_token(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    hub.checks_tokens = True
    monkeypatch.setenv("HF_TOKEN", token)
    assert message() == (f"{REPO}: the hub refuses the token: run `hf auth login` again, unset HF_TOKEN, or {REMEDY}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch().read_bytes() == BIG


@pytest.mark.parametrize("path", ["/api/models", f"/{REPO}/resolve", "/cdn"])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, f"the hub has had too many requests from here (429): wait some minutes, or {REMEDY}"),
        (503, f"cannot be fetched, the hub is out of reach (it answers 503): {REMEDY}"),
        (403, f"the hub forbids it: check what your token may read, or {REMEDY}"),
    ],
)
def test_a_server_that_refuses(hub: HubServer, home: Path, path: str, status: int, said: str) -> None:
    hub.failing, hub.failing_status = path, status
    assert message() == f"{REPO}{'' if path.startswith('/api') else '/big.bin'}: {said}"
    assert len([request for request in hub.requests if request.split()[1].startswith(path)]) == 1


def test_a_missing_file(hub: HubServer, home: Path) -> None:
    assert message(lambda: fetch("nope")) == f"{REPO}/nope: the hub has no such file: {REMEDY}"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Found while it writes, also when it goes on: what has come is kept."""

    def full(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert message() == (
                f"{REPO}/big.bin: the disk is full (the hub's cache): free some space, set HF_HOME to a folder on "
                f"another disk, or {REMEDY}"
            )
    assert fetch().read_bytes() == BIG
    assert hub.sent_bytes == len(BIG)


def test_less_space_than_the_file_takes(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    assert message().startswith(f"{REPO}/big.bin: 0.51 MB are to be fetched, more than is free in {home}")
    assert hub.sent_bytes == 0
    assert fetch("small.json").read_bytes() == b"{}"


def test_a_cache_that_cannot_be_written(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file")
    said = message()
    assert said.startswith(f"{REPO}/big.bin: {home}/")
    assert said.endswith(f"cannot be read or written (Not a directory): set HF_HOME to a folder that can, or {REMEDY}")


def test_a_cache_that_can_only_be_read(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch()
    hub.publish(REPO, {"big.bin": BIG, "new": b"new"}, "other")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert fetch() == path
    assert "cannot be read or written (Read-only file system): set HF_HOME" in message(lambda: fetch("new", "other"))


def test_no_home(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    assert message() == f"{REPO}: no home directory to keep it in: set HF_HOME to a folder that can be written"


def test_no_links(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, to whoever may not make them."""

    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert fetch().read_bytes() == BIG
    assert fetch().read_bytes() == BIG
    assert hub.sent_bytes == len(BIG)


@pytest.mark.parametrize("links", [True, False])
def test_what_another_process_fetched_meanwhile(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    made, link = [], Path.symlink_to

    def symlink_to(self: Path, target: str) -> None:
        made.append(self)
        if not links:
            raise OSError("not here")
        link(self, target)

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    repository = Hub().open(REPO, REMEDY)
    with monkeypatch.context() as patch:
        patch.setattr(type(repository), "_cached", lambda *_: None)  # as it was before the lock was waited for
        there = [repository.get("big.bin", REMEDY), repository.get("big.bin", REMEDY)]
        assert made == there[:1] == there[1:]
    assert hub.sent_bytes == len(BIG)


def test_a_revision_is_no_place_on_the_disk(hub: HubServer, home: Path, tmp_path: Path) -> None:
    fetch("small.json")
    hub.refs[REPO, str(tmp_path / "x")] = hub.refs[REPO, "main"]
    cache = Cache(REPO)
    cache.remember(str(tmp_path / "x"), hub.refs[REPO, "main"])
    cache.remember("../../x", hub.refs[REPO, "main"])
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MisoLabs/MisoTTS", True), ("sesame/csm-1b", True), ("a/b", True), ("a_b/c.d-e", True), ("tiny", False),
        ("a/b/c", False), ("/a/b", False), ("./b", False), ("../b", False), ("a/", False), ("/b", False),
        ("a b/c", False), ("", False), ("a--b/c", False), ("a/b..c", False), ("a/b\n", False), ("a\\b", False),
        ("ü/b", False), ("ckpt/model.safetensors", False), ("ckpt/ckpt.pt", False), ("ckpt/tokenizer.json", False),
    ],
)  # fmt: skip
def test_what_is_a_repository(name: str, expected: bool) -> None:
    assert is_repo_id(name) is expected


def test_where_a_file_came_from() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    inside = Path(f"/home/hub/models--some-one--mo.del-1/snapshots/{commit}")
    assert origin(inside / "model.safetensors") == origin(inside / "a" / "b") == ("some-one/mo.del-1", commit)
    assert origin(HubPath("a/b", "c", commit)) == ("a/b", commit)
    assert origin(HubPath("a/b", "c")) is None
    for path in (Path("model.safetensors"), inside, Path("/models--a/snapshots/x"), inside.parent / "main" / "x"):
        assert origin(path) is None


@pytest.mark.long
def test_with_the_oldest_library() -> None:
    """The rest of this file."""
    folder = older_packages.hub_folder(older_packages.OLDEST_HUB)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", __file__],
        env=older_packages.environment(folder), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
