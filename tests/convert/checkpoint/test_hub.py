"""Fetching from the hub, with a hub made of folders: what is fetched, in which order, what is said."""

import errno
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.errors as errors
import pytest

from miso_gguf.convert.checkpoint import hub
from miso_gguf.convert.checkpoint.hub import MIMI_FILE, MIMI_REPO, find_sources, find_tokenizer, is_repo_id
from miso_gguf.convert.checkpoint.tokenizer import read_tokenizer
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.synthetic_tokenizer import tiny_tokenizer

MISO, CSM = "MisoLabs/MisoTTS", "sesame/csm-1b"
MIRROR, GATED = "unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"
TOKENIZER = json.dumps(tiny_tokenizer())
INDEX = "model.safetensors.index.json"


def hub_error(kind: str, message: str = "some\nlines") -> Exception:
    """An error of the library, made without the HTTP response that its versions ask for differently."""
    cls: type[Exception] = getattr(errors, kind)
    error = cls.__new__(cls)
    error.args = (message,)
    return error


class Hub:
    """Repositories and their files, and a record of what was asked: "list REPO" and "get REPO/FILE"."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.repos: dict[str, dict[str, str]] = {
            MISO: {"README.md": "", "model.safetensors": "weights"},
            MIRROR: {"tokenizer.json": TOKENIZER, "tokenizer_config.json": "{}", "model.safetensors": ""},
            GATED: {"tokenizer.json": TOKENIZER, "special_tokens_map.json": "{}", "tokenizer_config.json": "{}"},
            MIMI_REPO: {MIMI_FILE: "mimi", "model.safetensors": ""},
        }
        self.fails: dict[str, Exception] = {}
        """Error by what is asked."""
        self.calls: list[str] = []

    def _ask(self, call: str) -> None:
        self.calls.append(call)
        for asked, error in self.fails.items():
            if call.startswith(asked):
                raise error

    def model_info(self, repo: str, *, timeout: float) -> SimpleNamespace:
        assert timeout > 0
        self._ask(f"list {repo}")
        if repo not in self.repos:
            raise hub_error("RepositoryNotFoundError")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.repos[repo]])

    def hf_hub_download(self, repo: str, name: str) -> str:
        path = self.cache / repo / name
        if path.exists():
            return str(path)
        self._ask(f"get {repo}/{name}")
        if name not in self.repos[repo]:
            raise hub_error("RemoteEntryNotFoundError")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.repos[repo][name])
        return str(path)

    def try_to_load_from_cache(self, repo: str, name: str) -> Any:
        path = self.cache / repo / name
        # The library returns an object for what is known not to exist.
        return str(path) if path.exists() else object()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    result = Hub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: result)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", result.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", result.try_to_load_from_cache)
    read = read_tokenizer

    def reading(path: Path) -> Any:
        result.calls.append(f"read {path.relative_to(tmp_path)}")
        return read(path)

    monkeypatch.setattr(hub, "read_tokenizer", reading)
    return result


def test_small_files_first_then_the_codec_then_the_weights(fake: Hub) -> None:
    checkpoint, mimi, tokenizer = find_sources(MISO, None, None)
    assert checkpoint.read_text() == "weights"
    assert mimi is not None
    assert mimi.read_text() == "mimi"
    assert tokenizer.read_text() == TOKENIZER
    assert fake.calls == [
        f"list {MISO}",
        f"list {MIRROR}",
        f"get {MIRROR}/tokenizer_config.json",
        f"get {MIRROR}/tokenizer.json",
        f"read cache/{MIRROR}/tokenizer.json",
        f"get {MIMI_REPO}/{MIMI_FILE}",
        f"get {MISO}/model.safetensors",
    ]


def test_what_is_passed_is_not_fetched(fake: Hub, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    mimi = tmp_path / "mimi.safetensors"
    for tokenizer in (tmp_path / "tokenizer.json", tmp_path):
        fake.calls.clear()
        assert find_sources(MISO, mimi, str(tokenizer))[1:] == (mimi, tmp_path / "tokenizer.json")
        assert fake.calls[:2] == [f"list {MISO}", "read tokenizer.json"]
        assert not [call for call in fake.calls if "Llama" in call or MIMI_REPO in call]


def test_a_tokenizer_in_the_repository_is_preferred(fake: Hub) -> None:
    fake.repos[MISO] |= {"tokenizer.json": TOKENIZER, "config.json": "{}"}
    find_sources(MISO, Path("mimi"), None)
    assert fake.calls == [
        f"list {MISO}", f"list {MISO}", f"get {MISO}/tokenizer.json", f"read cache/{MISO}/tokenizer.json",
        f"get {MISO}/config.json", f"get {MISO}/model.safetensors",
    ]  # fmt: skip


def test_sesames_checkpoint_without_safetensors(fake: Hub) -> None:
    fake.repos[MISO] = {"ckpt.pt": "pickle"}
    assert find_sources(MISO, Path("mimi"), None)[0].read_text() == "pickle"


def csm(codec: bool) -> dict[str, str]:
    owner = {"lm_head.weight": "model-2.safetensors", "backbone_model.norm.weight": "model-1.safetensors"}
    owner |= {"codec_model.x": "model-2.safetensors"} if codec else {}
    return {
        "config.json": "{}", INDEX: json.dumps({"weight_map": owner}), "tokenizer.json": TOKENIZER,
        "model-1.safetensors": "1", "model-2.safetensors": "2", "ckpt.pt": "12 GB", "model.safetensors": "6 GB",
        "transformers-1.safetensors": "6 GB",
    }  # fmt: skip


@pytest.mark.parametrize("codec", [True, False])
def test_huggingface_layout(fake: Hub, codec: bool) -> None:
    """Only the shards of the index are fetched, and Kyutai's codec only if they hold none."""
    fake.repos[CSM] = csm(codec)
    checkpoint, mimi, _ = find_sources(CSM, None, None)
    assert checkpoint == fake.cache / CSM / INDEX
    assert (mimi is None) is codec
    small = [f"get {CSM}/tokenizer.json", f"read cache/{CSM}/tokenizer.json", f"get {CSM}/config.json"]
    assert fake.calls == [
        f"list {CSM}", f"list {CSM}", *small, f"get {CSM}/{INDEX}",
        *([] if codec else [f"get {MIMI_REPO}/{MIMI_FILE}"]),
        f"get {CSM}/model-1.safetensors", f"get {CSM}/model-2.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == [
        "config.json", "model-1.safetensors", "model-2.safetensors", INDEX, "tokenizer.json",
    ]  # fmt: skip


def test_an_index_that_leaves_the_repository(fake: Hub) -> None:
    fake.repos[CSM] = {**csm(True), INDEX: json.dumps({"weight_map": {"codec_model.x": "../../.ssh/id_rsa"}})}
    with pytest.raises(CheckpointError, match=r"shard '\.\./\.\./\.ssh/id_rsa' is not a plain file name"):
        find_sources(CSM, None, None)
    assert fake.calls[-1] == f"get {CSM}/{INDEX}"


def test_a_repository_without_weights(fake: Hub) -> None:
    fake.repos[MISO] = {"README.md": ""}
    with pytest.raises(CheckpointError) as caught:
        find_sources(MISO, None, None)
    wanted = f"{MISO}: the repository holds no model.safetensors, {INDEX} or ckpt.pt"
    assert str(caught.value) == wanted
    assert not [call for call in fake.calls if MIMI_REPO in call]


def test_a_gated_tokenizer_after_an_unreachable_mirror(fake: Hub) -> None:
    """Both are tried, and nothing large is fetched before one of them is there."""
    fake.fails[f"list {MIRROR}"] = hub_error("RepositoryNotFoundError")
    assert find_sources(MISO, None, None)[2] == fake.cache / GATED / "tokenizer.json"
    fake.fails[f"get {GATED}/tokenizer.json"] = hub_error("GatedRepoError")
    (fake.cache / GATED / "tokenizer.json").unlink()
    fake.calls.clear()
    with pytest.raises(CheckpointError) as caught:
        find_sources(MISO, None, None)
    assert str(caught.value) == (
        "no tokenizer can be fetched; pass a tokenizer.json with --tokenizer FILE. "
        f"{MIRROR}: no such repository on the hub (or it is private): pass a tokenizer.json with --tokenizer FILE "
        f"{GATED}/tokenizer.json: the repository is gated: accept its terms and run `hf auth login`, "
        "or pass a tokenizer.json with --tokenizer FILE"
    )
    assert fake.calls == [f"list {MISO}", f"list {MIRROR}", f"list {GATED}", f"get {GATED}/tokenizer.json"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_gated_tokenizer_that_was_asked_for(fake: Hub, name: str) -> None:
    fake.fails[f"get {GATED}/{name}"] = hub_error("GatedRepoError")
    with pytest.raises(CheckpointError) as caught:
        find_sources(MISO, None, GATED)
    assert str(caught.value) == (
        f"{GATED}/{name}: the repository is gated: accept its terms and run `hf auth login`, "
        "or pass a tokenizer.json with --tokenizer FILE"
    )
    assert f"get {MISO}/model.safetensors" not in fake.calls


def test_a_tokenizer_that_cannot_be_used_costs_no_download(fake: Hub) -> None:
    fake.repos[MIRROR]["tokenizer.json"] = "<!doctype html>"
    with pytest.raises(CheckpointError, match="is a web page"):
        find_sources(MISO, None, None)
    assert fake.calls[-1] == f"read cache/{MIRROR}/tokenizer.json"


def test_a_repository_that_has_no_tokenizer(fake: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_tokenizer(MIMI_REPO)
    assert str(caught.value) == (
        f"{MIMI_REPO}/tokenizer.json: the hub has no such file: pass a tokenizer.json with --tokenizer FILE"
    )


OFFLINE = [
    hub_error("OfflineModeIsEnabled", "offline mode is enabled\nmore"),
    hub_error("LocalEntryNotFoundError", "offline mode is enabled\nmore"),
    ConnectionError("offline mode is enabled"),
    RuntimeError("offline mode is enabled"),
]


@pytest.mark.parametrize("error", OFFLINE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("asked", "what", "remedy"),
    [
        (f"list {MISO}", MISO, "pass a local checkpoint instead"),
        (f"get {MIMI_REPO}", f"{MIMI_REPO}/{MIMI_FILE}", "pass Kyutai's Mimi checkpoint with --mimi FILE"),
        (
            f"get {MISO}/model", f"{MISO}/model.safetensors",
            "download it by other means and pass the file or directory",
        ),
    ],
)  # fmt: skip
def test_offline_says_what_to_pass_instead(fake: Hub, asked: str, what: str, remedy: str, error: Exception) -> None:
    fake.fails[asked] = error
    with pytest.raises(CheckpointError) as caught:
        find_sources(MISO, None, None)
    reason = "the hub is out of reach (offline mode is enabled)"
    assert str(caught.value) == f"{what}: cannot be fetched, {reason}: {remedy}"


def test_offline_with_what_was_downloaded_before(fake: Hub, caplog: pytest.LogCaptureFixture) -> None:
    before = find_sources(MISO, None, None)
    fake.repos[CSM] = csm(True)
    csm_before = find_sources(CSM, None, None)
    fake.calls.clear()
    fake.fails = {"": ConnectionError("no route")}
    assert find_sources(MISO, None, None) == before
    assert find_sources(CSM, None, None) == csm_before
    assert not [call for call in fake.calls if call.startswith("get ")]
    assert f"{MISO}: cannot be fetched, the hub is out of reach (no route)" in caplog.text
    assert "going on with what was downloaded before" in caplog.text
    # What is missing of it is still asked for.
    (fake.cache / CSM / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{CSM}/model-2.safetensors: cannot be fetched, the hub is out of reach"):
        find_sources(CSM, None, None)


def test_a_missing_repository(fake: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_sources("nobody/nothing", None, None)
    assert str(caught.value) == (
        "nobody/nothing: no such repository on the hub (or it is private): pass a local checkpoint instead"
    )


def test_gated_weights(fake: Hub) -> None:
    fake.fails[f"get {MISO}/model.safetensors"] = hub_error("GatedRepoError")
    with pytest.raises(CheckpointError, match=r"MisoTTS/model\.safetensors: the repository is gated: accept its terms"):
        find_sources(MISO, None, None)


def test_a_full_disk_is_no_matter_of_the_network(fake: Hub) -> None:
    fake.fails[f"get {MISO}/model"] = OSError(errno.ENOSPC, "No space left on device", "/cache/blob")
    with pytest.raises(CheckpointError) as caught:
        find_sources(MISO, None, None)
    assert str(caught.value) == f"{MISO}/model.safetensors: the disk is full (/cache/blob)"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[[str], Any] = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(CheckpointError) as caught:
        find_sources(MISO, None, None)
    assert str(caught.value) == (
        "fetching from the Hugging Face hub needs huggingface-hub: pip install 'miso-gguf[hub]', "
        "or pass a local checkpoint"
    )


def test_the_library_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real one: without a network, by its own switch."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=rf"{MISO}: cannot be fetched, the hub is out of reach \(.*\): pass a local"
    ):
        find_sources(MISO, None, None)
    with pytest.raises(
        CheckpointError, match=rf"{MIRROR}: cannot be fetched, .* reach \(.*\): pass a tokenizer\.json w"
    ):
        find_tokenizer(MIRROR)
    with pytest.raises(
        CheckpointError, match=rf"{MIMI_FILE}: cannot be fetched, the hub is out of reach \(.*\): pass Ky"
    ):
        hub._mimi(hub._Hub(fetch=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (MISO, True), (CSM, True), (GATED, True), ("a/b", True), ("a_b/c.d-e", True), ("tiny", False), ("a/b/c", False),
        ("/a/b", False), ("./b", False), ("../b", False), ("a/", False), ("/b", False), ("a b/c", False), ("", False),
        ("a--b/c", False), ("a/b..c", False), ("a/b\n", False), ("a\\b", False), ("ü/b", False),
        ("ckpt/model.safetensors", False), ("ckpt/ckpt.pt", False), ("ckpt/tokenizer.json", False),
    ],
)  # fmt: skip
def test_what_is_a_repository(name: str, expected: bool) -> None:
    assert is_repo_id(name) is expected


def test_finding_a_tokenizer(fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "dir").mkdir(parents=True)
    (tmp_path / "other.json").touch()
    assert find_tokenizer("other.json") == Path("other.json")
    assert find_tokenizer(MIRROR) == fake.cache / MIRROR / "tokenizer.json"
    fake.calls.clear()
    # A directory that is there is not looked for on the hub.
    for name, path in (("some/dir", "some/dir/tokenizer.json"), ("nope.json", "nope.json"), ("a/b.json", "a/b.json")):
        with pytest.raises(CheckpointError) as caught:
            find_tokenizer(name)
        assert str(caught.value).startswith(
            f"{Path(path)}: no such file: pass Llama 3.2's tokenizer.json with --tokenizer"
        )
    (tmp_path / "some" / "dir" / "tokenizer.json").touch()
    assert find_tokenizer("some/dir") == Path("some/dir/tokenizer.json")
    assert fake.calls == []
