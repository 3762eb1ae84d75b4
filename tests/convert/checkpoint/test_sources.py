"""Where inputs are found: made, beside the checkpoint, inside it, or on the hub through its real client."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hf_csm import random_csm
from hub_server import Content, HubServer, meet, serving
from huggingface_hub import constants

from builders import Inputs
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.hub import GATED_REPO, MIMI_FILE, MIMI_REPO, TOKENIZER_REPOS
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.sources import OtherCheckpointError, Sources, resolve, resolve_for_verify
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models import tiny
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import Q4_0, Q8_0
from miso_gguf.models.manifest import Manifest, read_manifest
from miso_gguf.models.synthetic_tokenizer import tiny_tokenizer

MISO, CSM, HF_MIMI = "MisoLabs/MisoTTS", "sesame/csm-1b", "kyutai/mimi"
MIRROR = TOKENIZER_REPOS[0]
TOKENIZER = json.dumps(tiny_tokenizer()).encode()
WHOLE = "model.safetensors"
PASS_TOKENIZER = "pass Llama 3.2's tokenizer.json with --tokenizer FILE, DIR or REPO"
PASS_MIMI = "pass Kyutai's Mimi checkpoint with --mimi FILE, DIR or REPO"
NO_TOKENIZER = "no tokenizer.json beside the checkpoint, and the hub's cannot be had: " + PASS_TOKENIZER
NO_CODEC = "no codec inside the checkpoint or beside it, and the hub's cannot be had: " + PASS_MIMI


@pytest.fixture(scope="session")
def csm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers saves a model: the codec is inside."""
    directory = tmp_path_factory.mktemp("csm")
    random_csm().save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes(TOKENIZER)
    return directory


@pytest.fixture
def hub(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    tokenizer: dict[str, Content] = {"tokenizer.json": TOKENIZER, "tokenizer_config.json": b"{}"}
    repos: dict[str, dict[str, Content]] = {
        MISO: {"README.md": b"", WHOLE: inputs.checkpoint.read_bytes()},
        MIRROR: {**tokenizer, WHOLE: b"weights"},
        GATED_REPO: {**tokenizer, "special_tokens_map.json": b"{}"},
        MIMI_REPO: {MIMI_FILE: inputs.mimi.read_bytes(), WHOLE: b"weights"},
        HF_MIMI: {WHOLE: inputs.mimi.read_bytes(), "config.json": b'{"model_type": "mimi"}'},
    }
    server = HubServer()
    for repo, files in repos.items():
        server.publish(repo, files)
    monkeypatch.chdir(tmp_path)
    with serving(server):
        meet(server, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def directory(tmp_path: Path, inputs: Inputs) -> Path:
    """A checkpoint and nothing else."""
    result = tmp_path / "checkpoint"
    result.mkdir()
    (result / WHOLE).hardlink_to(inputs.checkpoint)
    return result


def found(checkpoint: object, *arguments: object, **options: Any) -> Sources:
    with resolve(str(checkpoint), *arguments, **options) as sources:  # type: ignore[arg-type]
        return sources


def refusal(*arguments: object, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        found(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fetched(hub: HubServer) -> list[str]:
    """REPO/FILE of all that was fetched whole, in order."""
    gets = [request.split() for request in hub.requests if request.startswith("GET /cdn/")]
    return [re.sub("^/cdn/|/resolve/[^/]+", "", get[1]) for get in gets if len(get) == 2]


@pytest.mark.parametrize("name", ["tiny", "Tiny", "TINY"])
def test_tiny_is_the_model_in_the_repository(name: str) -> None:
    sources = found(name)
    assert sources.mimi is not None
    assert sources.checkpoint == tiny.DIRECTORY == sources.mimi.parent == sources.tokenizer.parent
    assert sources.mimi.is_file()
    assert sources.tokenizer.is_file()
    with open_checkpoint(sources.checkpoint) as checkpoint:
        assert checkpoint.spec == TINY


@pytest.mark.parametrize(
    "checkpoint", ["nope", "no/such/path", "./nope", "/no/such", "models/model.safetensors", "x/ckpt.pt", "a--b/c"]
)
def test_a_path_that_is_not_there(checkpoint: str) -> None:
    assert refusal(checkpoint) == (
        f"{checkpoint}: no such file or directory, and not a Hugging Face repo id (OWNER/NAME) or 'tiny'"
    )


def test_a_revision_of_what_is_here(directory: Path) -> None:
    for checkpoint in (directory, directory / WHOLE, "tiny"):
        assert refusal(checkpoint, revision="v1") == (
            f"{checkpoint} is on this machine: --revision is of a repository on the hub"
        )


def test_small_files_first_then_the_codec_then_the_weights(hub: HubServer) -> None:
    sources = found(MISO)
    assert sources.checkpoint.read_bytes() == hub.repos[MISO][WHOLE]
    assert fetched(hub) == [
        f"{MIRROR}/tokenizer_config.json", f"{MIRROR}/tokenizer.json", f"{MIMI_REPO}/{MIMI_FILE}", f"{MISO}/{WHOLE}",
    ]  # fmt: skip


def test_a_local_checkpoint_alone_takes_the_hubs(hub: HubServer, directory: Path) -> None:
    for checkpoint in (directory, directory / WHOLE):
        sources = found(checkpoint)
        assert sources.checkpoint == checkpoint
        assert sources.mimi is not None
        assert (sources.mimi.name, sources.tokenizer.read_bytes()) == (MIMI_FILE, TOKENIZER)
    assert fetched(hub) == [
        f"{MIRROR}/tokenizer_config.json", f"{MIRROR}/tokenizer.json", f"{MIMI_REPO}/{MIMI_FILE}",
    ]  # fmt: skip


def test_what_lies_beside_is_taken(hub: HubServer, directory: Path, inputs: Inputs) -> None:
    (directory / "tokenizer.json").write_bytes(TOKENIZER)
    for name in (MIMI_FILE, "mimi.safetensors"):
        (directory / name).hardlink_to(inputs.mimi)
        assert found(directory / WHOLE) == Sources(directory / WHOLE, directory / name, directory / "tokenizer.json")
    assert hub.requests == []
    hub.publish(MISO, {path.name: path.read_bytes() for path in directory.iterdir()})
    sources = found(MISO)
    assert [path and path.name for path in (sources.mimi, sources.tokenizer)] == ["mimi.safetensors", "tokenizer.json"]
    assert {name.rpartition("/")[0] for name in fetched(hub)} == {MISO}


@pytest.mark.parametrize("checkpoint", ["local", "repository"])
def test_what_is_passed_comes_first(hub: HubServer, directory: Path, inputs: Inputs, checkpoint: str) -> None:
    asked = directory if checkpoint == "local" else MISO
    for mimi, tokenizer in (
        (inputs.mimi, inputs.tokenizer),
        (inputs.mimi.parent, inputs.tokenizer.parent),
        (str(inputs.mimi), str(inputs.tokenizer)),
    ):
        sources = found(asked, mimi, tokenizer)
        assert (sources.mimi, sources.tokenizer) == (inputs.mimi, inputs.tokenizer)
    assert fetched(hub) == ([] if checkpoint == "local" else [f"{MISO}/{WHOLE}"])


@pytest.mark.parametrize("repo", [MIMI_REPO, HF_MIMI])
def test_repositories_are_passed(hub: HubServer, directory: Path, inputs: Inputs, repo: str) -> None:
    sources = found(directory, repo, GATED_REPO)
    assert sources.mimi is not None
    assert sources.mimi.read_bytes() == inputs.mimi.read_bytes()
    assert "GET" in hub.requests[0]
    assert sources.tokenizer.with_name("special_tokens_map.json").exists()
    assert (sources.mimi.parent / "config.json").exists() == (repo == HF_MIMI)
    assert f"{repo}/{WHOLE}" in fetched(hub) or repo == MIMI_REPO


@pytest.mark.parametrize("where", ["local", "repository"])
def test_a_codec_inside_comes_before_one_beside(hub: HubServer, csm: Path, inputs: Inputs, where: str) -> None:
    hub.publish(CSM, {**{path.name: path.read_bytes() for path in csm.iterdir()}, MIMI_FILE: b"another"})
    local = Path("csm")
    local.mkdir()
    for name, content in hub.repos[CSM].items():
        (local / name).write_bytes(bytes(content))  # type: ignore[arg-type]
    asked = str(local if where == "local" else CSM)
    assert found(asked).mimi is None
    assert found(asked, inputs.mimi).mimi == inputs.mimi
    assert not [name for name in fetched(hub) if MIMI_FILE in name]


def test_a_codec_inside_one_file_without_a_config(hub: HubServer, csm: Path) -> None:
    files = {path.name: path.read_bytes() for path in csm.iterdir() if path.name != "config.json"}
    hub.publish(CSM, {**files})
    assert found(CSM, opens=partial(open_checkpoint, config=csm / "config.json")).mimi is None
    hub.ranges = False  # nothing can be told before it is fetched
    hub.publish(CSM, {**files})
    assert found(CSM, opens=partial(open_checkpoint, config=csm / "config.json")).mimi is None


def test_what_is_no_checkpoint_is_not_fetched(hub: HubServer, csm: Path, inputs: Inputs) -> None:
    checkpoint = inputs.checkpoint.read_bytes()
    hub.publish(MISO, {WHOLE: hub.repos[MIMI_REPO][MIMI_FILE]})
    with pytest.raises(CheckpointError):
        found(MISO)
    hub.publish(MISO, {WHOLE: checkpoint.replace(b'"F32"', b'"U32"')})
    assert "has dtype U32; supported are F32, F16, BF16" in refusal(MISO)
    hub.publish(MISO, {"README.md": b""})
    assert refusal(MISO).startswith(f"{MISO}: expected one checkpoint (")
    assert fetched(hub) == []


@pytest.mark.parametrize("checkpoint", ["local", "repository"])
def test_neither_tokenizer_nor_codec_is_one_error(hub: HubServer, directory: Path, checkpoint: str) -> None:
    hub.gated |= {MIRROR, GATED_REPO}
    hub.publish(MIMI_REPO, {})
    asked = str(directory if checkpoint == "local" else MISO)
    gated = "the repository is gated: accept its terms and run `hf auth login`"
    assert refusal(asked) == (
        f"{asked}: {NO_TOKENIZER} ({MIRROR}/tokenizer_config.json: {gated}; "
        f"{GATED_REPO}/tokenizer_config.json: {gated}); {NO_CODEC} ({MIMI_REPO}/{MIMI_FILE}: the hub has no such file)"
    )
    assert fetched(hub) == []


def test_offline_is_one_error_too(hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert re.fullmatch(
        rf"{directory}: {NO_TOKENIZER} \({MIRROR}: cannot be fetched, the hub is out of reach \(.*\); "
        rf"{GATED_REPO}: cannot be fetched, .*\); {NO_CODEC} \({MIMI_REPO}: cannot be fetched, [^:]*\)",
        refusal(directory),
    )
    assert refusal(directory, MIMI_REPO, directory / "typo.json") == (
        f"{directory}: {directory}/typo.json: no such file: {PASS_TOKENIZER}; "
        + refusal(directory, MIMI_REPO, "tiny").partition("; ")[2]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hub: hub.gated.add(MISO), f"{MISO}/{WHOLE}: the repository is gated"),
        (lambda hub: hub.gated.add(MIMI_REPO), f"{NO_CODEC} ({MIMI_REPO}/{MIMI_FILE}: the repository is gated"),
        (lambda hub: hub.publish(MIRROR, {"tokenizer.json": b"<!doctype html>"}), "is a web page"),
    ],
    ids=["weights", "codec", "a tokenizer that is none"],
)
def test_what_cannot_be_had_costs_no_weights(
    hub: HubServer, change: Callable[[HubServer], object], message: str
) -> None:
    change(hub)
    assert message in refusal(MISO)
    assert not [name for name in fetched(hub) if name.endswith("safetensors") and "Llama" not in name]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"adapter_model.safetensors": b"", "adapter_config.json": b"{}"},
            "holds a LoRA adapter, not a model: merge it",
        ),
        ({"m-Q4_K_M.gguf": b"", "config.json": b"{}"}, "holds a GGUF file, converted already"),
        (
            {WHOLE: b"", "config.json": b'{"quantization_config": {"quant_method": "awq"}}'},
            "is quantised by 'awq', as its config.json says",
        ),
        ({WHOLE: b"", "config.json": b'{"quantization": {"group_size": 64, "bits": 4}}'}, "is quantised by MLX"),
    ],
    ids=["LoRA", "GGUF", "AWQ", "MLX"],
)
def test_a_repository_of_something_else_costs_no_download(
    hub: HubServer, files: dict[str, Content], message: str
) -> None:
    hub.publish("a/b", files)
    assert refusal("a/b").startswith(f"a/b: {message}")
    assert fetched(hub) == []


@pytest.mark.parametrize(
    ("mimi", "tokenizer", "message"),
    [
        (None, "typo.json", f"typo.json: no such file: {PASS_TOKENIZER}"),
        (None, "empty", f"empty/tokenizer.json: no such file: {PASS_TOKENIZER}"),
        (None, MIMI_REPO, f"{MIMI_REPO}/tokenizer.json: the hub has no such file: {PASS_TOKENIZER}"),
        ("typo.safetensors", None, f"typo.safetensors: no such file: {PASS_MIMI}"),
        ("empty", None, f"empty: holds no Mimi codec ({MIMI_FILE} or model.safetensors): {PASS_MIMI}"),
        (GATED_REPO, None, f"{GATED_REPO}: holds no Mimi codec ({MIMI_FILE} or model.safetensors): {PASS_MIMI}"),
        ("csm", None, f"csm/config.json: says that this is 'csm', not Mimi: {PASS_MIMI}"),
        (CSM, None, f"says that this is 'csm', not Mimi: {PASS_MIMI}"),
    ],
)
def test_options_that_mean_nothing(
    hub: HubServer, directory: Path, mimi: str | None, tokenizer: str | None, message: str
) -> None:
    hub.publish(CSM, {WHOLE: b"", "config.json": b'{"model_type": "csm"}'})
    Path("empty").mkdir()
    Path("csm").mkdir()
    for name, content in hub.repos[CSM].items():
        Path("csm", name).write_bytes(bytes(content))  # type: ignore[arg-type]
    assert refusal(directory, mimi, tokenizer).endswith(message)


def test_a_local_path_that_looks_like_a_repository(hub: HubServer, inputs: Inputs) -> None:
    nested = Path("owner") / "name"
    nested.mkdir(parents=True)
    for path in (inputs.checkpoint, inputs.mimi, inputs.tokenizer):
        (nested / path.name).hardlink_to(path)
    assert found("owner/name") == Sources(nested, nested / "mimi.safetensors", nested / "tokenizer.json")
    assert hub.requests == []


def bundle_of(checkpoint: object, out: Path, *levels: Any, **options: Any) -> Manifest:
    sources = found(checkpoint, **options)
    with open_checkpoint(sources.checkpoint) as opened:
        return convert(plan_conversion(out, opened, sources.mimi, sources.tokenizer, Request(levels or [Q4_0])))


def test_the_manifest_says_where_it_came_from(hub: HubServer, tmp_path: Path, inputs: Inputs) -> None:
    """The commit does not make it another checkpoint."""
    commits = {repo: commit for (repo, _), commit in hub.refs.items()}
    manifest = bundle_of(MISO, tmp_path / "out")
    assert [(source.role, source.repo, source.revision) for source in manifest.sources] == [
        ("checkpoint", MISO, commits[MISO]), ("tokenizer", MIRROR, commits[MIRROR]),
        ("mimi", MIMI_REPO, commits[MIMI_REPO]),
    ]  # fmt: skip
    assert read_manifest(tmp_path / "out") == manifest
    newer = hub.publish(MISO, {**hub.repos[MISO], "README.md": b"new"})
    again = bundle_of(MISO, tmp_path / "out", Q4_0, Q8_0)
    assert [source.revision for source in again.sources_of("checkpoint")] == [newer]
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    (tmp_path / MIMI_FILE).hardlink_to(inputs.mimi)
    local = {"mimi": tmp_path / MIMI_FILE, "tokenizer": tmp_path / "tokenizer.json"}
    assert bundle_of(inputs.checkpoint, tmp_path / "out", Q8_0, **local).sources == again.sources
    plain = bundle_of(inputs.checkpoint, tmp_path / "plain", **local)
    assert "repo" not in (tmp_path / "plain" / "miso.json").read_text()
    assert {name: record.sha256 for name, record in plain.files.items()} == {
        name: record.sha256 for name, record in manifest.files.items()
    }


def test_shards_are_of_one_commit(hub: HubServer, csm: Path, tmp_path: Path) -> None:
    random_csm().save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    files: dict[str, Content] = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    commit = hub.publish(CSM, {**files, "tokenizer.json": TOKENIZER}, "v1")
    hub.publish(CSM, dict.fromkeys(files, b"another"))
    hub.listed = lambda repo: repo == CSM and hub.publish(CSM, dict.fromkeys(files, b"a third"), "v1")
    sources = found(CSM, revision="v1")
    assert {path.name: path.read_bytes() for path in sources.checkpoint.parent.iterdir()} == {  # type: ignore[union-attr]
        name: content for name, content in hub.history[commit].items() if name != "generation_config.json"
    }


def test_verify_fetches_what_it_compares_and_nothing_of_another(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.refs[MISO, "main"]
    made_from = bundle_of(MISO, tmp_path / "out").sources_of("checkpoint")
    hub.publish(MISO, {WHOLE: b"another"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    hub.requests.clear()
    with (
        pytest.raises(
            OtherCheckpointError, match=rf"made from commit {first}: pass that with --revision\. Nothing was"
        ),
        resolve_for_verify(MISO, None, None, made_from=made_from),
    ):
        pytest.fail("resolved")
    assert fetched(hub) == []
    with resolve_for_verify(MISO, None, None, first, made_from=made_from) as sources:
        assert (sources.mimi, sources.tokenizer) == (None, None)
        assert fetched(hub) == [f"{MISO}/{WHOLE}"]


def test_verify_takes_what_lies_with_the_checkpoint(hub: HubServer, directory: Path, inputs: Inputs) -> None:
    with resolve_for_verify(str(directory), None, None) as sources:
        assert (sources.checkpoint, sources.mimi, sources.tokenizer) == (directory, None, None)
    with resolve_for_verify(str(inputs.checkpoint), None, None) as sources:
        assert (sources.mimi, sources.tokenizer) == (inputs.mimi, inputs.tokenizer)
    assert hub.requests == []
    with resolve_for_verify(str(directory), MIMI_REPO, MIRROR) as sources:
        assert sources.mimi is not None
        assert sources.tokenizer is not None
    assert len(fetched(hub)) == 3
