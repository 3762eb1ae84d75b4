"""`--dry-run` of what lies on the hub, through the real client over HTTP: nothing large fetched, nothing written."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import older_packages
import pytest
import torch
from hf_csm import random_csm
from hub_server import TOKEN, Content, HubServer, Zeros, meet, serving
from older_packages import OLDEST_HUB, hub_folder
from safetensors.torch import load_file

from builders import Inputs, make_inputs
from miso_gguf.convert.bundle import convert as run_conversion
from miso_gguf.convert.checkpoint.hub import MIMI_FILE, MIMI_REPO
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.sources import resolve
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.core.errors import CheckpointError
from miso_gguf.hub.path import HubPath
from miso_gguf.models.flavors import MISO_8B, TINY
from miso_gguf.models.levels import Q4_0, Q4_K_M, Q8_0, Level
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.mimi import MIMI, mimi_shapes
from miso_gguf.models.synthetic_tokenizer import tiny_tokenizer
from miso_gguf.models.tensors import Shape, checkpoint_shapes

MISO, CSM, TINY_REPO = "MisoLabs/MisoTTS", "sesame/csm-1b", "someone/miso-tiny"
MIRROR = "unsloth/Llama-3.2-1B"
TOKENIZER = json.dumps(tiny_tokenizer()).encode()
CONFIG = "tokenizer_config.json"
WITHOUT_ENDS = json.dumps({**tiny_tokenizer(), "post_processor": None}).replace("_of_text|>", "|>").encode()
NO_CODEC = (
    "no codec inside the checkpoint or beside it, and the hub's cannot be had: "
    "pass Kyutai's Mimi checkpoint with --mimi FILE, DIR or REPO"
)
SMALL_BYTES = 600_000
"""More than all headers and the tokenizer; a two-hundredth of the smallest weights here, but for the tiny model's."""


def safetensors(shapes: Mapping[str, Shape], dtype: str = "F32") -> Zeros:
    """A file of these tensors, at its full size."""
    entries, position = {}, 0
    for name, shape in shapes.items():
        size = {"F32": 4, "F64": 8, "I8": 1}[dtype] * int(torch.Size(shape).numel())
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    header = json.dumps(entries).encode()
    return Zeros(len(header).to_bytes(8, "little") + header, 8 + len(header) + position)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    repos: dict[str, dict[str, Content]] = {
        MISO: {"README.md": b"", "model.safetensors": safetensors(checkpoint_shapes(MISO_8B))},
        MIRROR: {"tokenizer.json": TOKENIZER, "tokenizer_config.json": b"{}", "model.safetensors": b""},
        MIMI_REPO: {MIMI_FILE: safetensors(mimi_shapes(MIMI)), "model.safetensors": b""},
    }
    with serving(HubServer(repos)) as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the client keeps what it fetches."""
    return tmp_path / "home"


def convert(hub: HubServer, home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """`miso-convert` in a folder of its own, `home/../cwd`."""
    cwd = home.with_name("cwd")
    cwd.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("miso-convert")), *map(str, arguments)]
    temporary = home.with_name("tmp")
    temporary.mkdir(exist_ok=True)
    environment = {**hub.environment(home), "TMPDIR": str(temporary), **more}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def look(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a dry run says of what cannot be looked at, without the second that a program takes to start."""
    meet(hub, home, monkeypatch)

    def message(repo: str = MISO, mimi: Path | None = None, tokenizer: Path | None = None) -> str:
        with pytest.raises(CheckpointError) as caught, ExitStack() as stack:  # noqa: PT012  (any of these may refuse)
            resolved = resolve(repo, mimi, str(tokenizer) if tokenizer else None, fetch=False)
            sources = stack.enter_context(resolved)
            opened = stack.enter_context(open_checkpoint(sources.checkpoint))
            plan_conversion(home / "out", opened, sources.mimi, sources.tokenizer, Request([Q4_0]))
        assert not home.exists()
        return str(caught.value)

    return message


def environment(library: str) -> Mapping[str, str]:
    """Variables with which a program of ours takes this version of huggingface-hub."""
    return {} if library == "installed" else older_packages.environment(hub_folder(library))


def plan(hub: HubServer, home: Path, *arguments: object, **more: str) -> dict[str, Any]:
    done = convert(hub, home, *arguments, "--dry-run", "--json", **more)
    assert (done.returncode, done.stderr) == (0, "")
    assert not home.exists(), "nothing is written, not into the hub's cache either"
    assert [path for name in ("cwd", "tmp") for path in home.with_name(name).iterdir()] == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("library", ["installed", OLDEST_HUB])
def test_the_8b_model_costs_its_headers(hub: HubServer, home: Path, tmp_path: Path, library: str) -> None:
    found = plan(hub, home, "--quant", "q4_k_m", **environment(library))
    weights, codec = hub.repos[MISO]["model.safetensors"], hub.repos[MIMI_REPO][MIMI_FILE]
    assert found["download_bytes"] == len(weights) + len(codec) + len(TOKENIZER)
    assert 33e9 < found["download_bytes"] < 34e9
    assert hub.sent_bytes < SMALL_BYTES
    weights_url, codec_url = (f"/{repo}/resolve/{hub.commit}/{name}" for repo, name in (
        (MISO, "model.safetensors"), (MIMI_REPO, MIMI_FILE)
    ))  # fmt: skip
    tokenizer_url, config_url = f"/{MIRROR}/resolve/{hub.commit}/tokenizer", codec_url.replace(MIMI_FILE, "config.json")
    # What the file is, whatever it is called, and then its header.
    weights_header, codec_header = (
        [f"GET {cdn}{url} {part}" for part in ("bytes=0-15", "bytes=0-131071") for cdn in ("", "/cdn")]
        for url in (weights_url, codec_url)
    )
    assert [request for request in hub.requests if "HEAD /cdn" not in request] == [
        f"GET /api/models/{MISO}", f"HEAD {weights_url}", *weights_header,
        f"GET /api/models/{MIRROR}",
        f"HEAD {tokenizer_url}_config.json", f"HEAD {tokenizer_url}.json",
        *(f"GET {cdn}{tokenizer_url}.json bytes=0-{len(TOKENIZER) - 1}" for cdn in ("", "/cdn")),
        f"GET /api/models/{MIMI_REPO}", f"HEAD {codec_url}",
        *weights_header, f"HEAD {config_url}", *codec_header,
    ]  # fmt: skip
    local = [tmp_path / name for name in ("model.safetensors", "mimi.safetensors")]
    for path, content in zip(local, (weights, codec), strict=True):
        assert isinstance(content, Zeros)
        with path.open("wb") as file:
            file.write(content.head)
            file.truncate(len(content))
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    assert without_time(found) == local_plan(local[0], local[1], tmp_path / "tokenizer.json", Q4_K_M)


@pytest.fixture(scope="module")
def csm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers saves a model: config, codec inside, two audio tables, several shards."""
    directory = tmp_path_factory.mktemp("csm")
    random_csm(tied=False).save_pretrained(directory, max_shard_size="2MB")
    (directory / "tokenizer.json").write_bytes(TOKENIZER)
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("tiny"))


def files_in(directory: Path) -> dict[str, Content]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def local_plan(checkpoint: Path, mimi: Path | None, tokenizer: Path, level: Level) -> dict[str, Any]:
    """The plan of the same files on this machine."""
    with open_checkpoint(checkpoint) as opened:
        request = Request([level], allow_zero=True)  # as files with holes, that of the 8B model is here
        conversion = plan_conversion(Path(f"{opened.spec.name}-GGUF"), opened, mimi, tokenizer, request)
        assert conversion.download_bytes == 0
        files = {plan.name: plan.size_bytes for plan in conversion.plans}
        return {"directory": str(conversion.directory), "files": files, "needed_bytes": conversion.needed_bytes}


def without_time(plan: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name not in ("estimated_seconds", "download_bytes")}


def test_shards_with_their_codec(hub: HubServer, home: Path, csm: Path) -> None:
    hub.repos[CSM] = {**files_in(csm), "ckpt.pt": Zeros(b"", 6 << 30), "model.safetensors": Zeros(b"", 6 << 30)}
    found = plan(hub, home, CSM, "--quant", "q8_0")
    fetched = [len(content) for name, content in files_in(csm).items() if name.startswith(("model-", "tokenizer."))]
    assert found["download_bytes"] == sum(fetched)
    assert hub.sent_bytes < sum(fetched) / 2
    assert without_time(found) == local_plan(csm, None, csm / "tokenizer.json", Q8_0)
    assert not [request for request in hub.requests if MIMI_REPO in request]


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_pickled_checkpoint(hub: HubServer, home: Path, tiny: Inputs, is_zip: bool) -> None:
    """Sesame's own file is one: shapes are read, no data."""
    pickled = io.BytesIO()
    torch.save(load_file(tiny.checkpoint), pickled, _use_new_zipfile_serialization=is_zip)
    content = pickled.getvalue()
    hub.repos[TINY_REPO] = {"ckpt.pt": content}
    arguments = ("--quant", "q4_0", "--mimi", tiny.mimi)
    found = plan(hub, home, TINY_REPO, *arguments)
    assert found["download_bytes"] == len(content) + len(TOKENIZER)
    assert hub.sent_bytes < len(content) / 4
    assert without_time(found) == local_plan(tiny.checkpoint, tiny.mimi, tiny.tokenizer, Q4_0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"ranges": False}, "the server gives no parts of files: fetch the whole file and pass it"),
        ({"short": True}, r"\d+ bytes came of the \d+ from byte \d+ on: try again"),
        ({"misplaced": True}, r"the server sent another part \('bytes .*'\) than the one from byte \d+ on"),
        (
            {"broken": True},
            r"cannot be fetched, the hub is out of reach \(.*\): download it by other means and pass .*",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_server_at_fault_is_blamed_and_not_the_file(
    hub: HubServer, look: Callable[..., str], tiny: Inputs, fault: dict[str, bool], message: str
) -> None:
    """Also where the zip's directory is what cannot be read."""
    pickled = io.BytesIO()
    torch.save(load_file(tiny.checkpoint), pickled)
    hub.repos[TINY_REPO] = {"ckpt.pt": pickled.getvalue()}
    for name, value in fault.items():
        setattr(hub, name, value)
    assert re.fullmatch(f"{TINY_REPO}/ckpt\\.pt: {message}", look(TINY_REPO, tiny.mimi, tiny.tokenizer))


def test_local_weights_with_a_tokenizer_on_the_hub(hub: HubServer, home: Path, tiny: Inputs) -> None:
    found = plan(hub, home, tiny.checkpoint, "--mimi", tiny.mimi, "--quant", "q4_0", "--tokenizer", MIRROR)
    assert found["download_bytes"] == len(TOKENIZER)
    assert without_time(found) == local_plan(tiny.checkpoint, tiny.mimi, tiny.tokenizer, Q4_0)


def test_it_says_what_is_to_be_fetched(hub: HubServer, home: Path) -> None:
    done = convert(hub, home, "--quant", "q4_k_m", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "MisoTTS-8B-backbone-Q4_K_M.gguf" in done.stdout
    assert "\n33.14 GB to fetch, 5.76 GB of disk, about " in done.stdout


@pytest.mark.parametrize("library", ["installed", OLDEST_HUB])
def test_a_server_that_sends_whole_files_is_cut_off(hub: HubServer, home: Path, library: str) -> None:
    hub.ranges = False
    assert plan(hub, home, "--quant", "q4_k_m", **environment(library))["download_bytes"] > 33e9
    # What was on its way when the client hung up counts too.
    assert hub.sent_bytes < 40 * SMALL_BYTES


def test_a_bundle_that_is_there(hub: HubServer, home: Path, tiny: Inputs, tmp_path: Path) -> None:
    """A dry run knows by the hub's sha256 whether it is of this checkpoint; what was fetched before is not fetched."""
    weights = tiny.checkpoint.read_bytes()
    hub.repos[TINY_REPO] = {"model.safetensors": weights, "tokenizer.json": tiny.tokenizer.read_bytes()}
    hub.repos[MIMI_REPO] = {MIMI_FILE: tiny.mimi.read_bytes()}
    out = tmp_path / "out"
    arguments = (TINY_REPO, "--out", out, "--quant", "q8_0")
    assert convert(hub, home, *arguments).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    found = json.loads(convert(hub, home, *arguments, "--quant", "q4_0", "--dry-run", "--json").stdout)
    assert sorted(found["files"]) == ["Miso-Tiny-backbone-Q4_0.gguf", "Miso-Tiny-decoder-Q4_0.gguf"]
    assert found["download_bytes"] == 0
    hub.large = False  # of small files it names none
    elsewhere = plan(hub, tmp_path / "elsewhere" / "home", *arguments, "--quant", "q4_0")
    assert elsewhere["download_bytes"] == sum(len(hub.repos[repo][name]) for repo, name in (
        (TINY_REPO, "model.safetensors"), (TINY_REPO, "tokenizer.json"), (MIMI_REPO, MIMI_FILE)
    ))  # fmt: skip
    assert without_time(elsewhere) == without_time(found)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before

    hub.repos[TINY_REPO]["model.safetensors"] = weights[:-4] + b"\1\2\3\4"
    done = convert(hub, home, *arguments, "--dry-run")
    assert done.returncode == 2
    assert done.stderr == (
        f"miso-convert: error: {out}: holds a bundle of another checkpoint than {TINY_REPO}/model.safetensors: "
        "choose another --out\n"
    )


def test_offline_what_was_fetched_before_is_looked_at(hub: HubServer, home: Path, tiny: Inputs) -> None:
    hub.repos[TINY_REPO] = {"model.safetensors": tiny.checkpoint.read_bytes(), "tokenizer.json": TOKENIZER}
    arguments = (TINY_REPO, "--quant", "q8_0", "--mimi", tiny.mimi)
    assert convert(hub, home, *arguments).returncode == 0
    hub.requests.clear()
    done = convert(hub, home, *arguments, "--out", "elsewhere", "--dry-run", "--json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    assert "going on with what was downloaded before" in " ".join(done.stderr.split())
    expected = local_plan(tiny.checkpoint, tiny.mimi, tiny.tokenizer, Q8_0)
    assert without_time(json.loads(done.stdout)) == {**expected, "directory": "elsewhere"}
    assert hub.requests == []


def test_a_hub_that_lists_nothing_does_not_make_it_fetch(hub: HubServer, home: Path, csm: Path) -> None:
    """After an interrupted download: the index is in the cache, the shards are not."""
    hub.repos[CSM] = files_in(csm)
    hub.failing = f"/cdn/{CSM}/resolve/{hub.commit}/model-"
    assert convert(hub, home, CSM, "--quant", "q8_0").returncode == 2
    assert list(home.rglob("model.safetensors.index.json"))
    hub.failing = "/api/models"
    hub.count_anew()
    done = convert(hub, home, CSM, "--quant", "q8_0", "--dry-run")
    assert done.returncode == 2
    assert re.search(
        r"error: sesame/csm-1b/model-\S+: was not downloaded before, and cannot be fetched, the", done.stderr
    )
    assert hub.sent_bytes == 0
    assert not list(home.rglob("model-*.safetensors"))


@pytest.mark.parametrize("dtype", ["F64", "I8"])
def test_types_that_cannot_be_read_are_refused(
    hub: HubServer, look: Callable[..., str], dtype: str, tmp_path: Path
) -> None:
    """On the hub as on disk: before the download, not after it."""
    hub.repos[MISO]["model.safetensors"] = content = safetensors(checkpoint_shapes(TINY), dtype)
    message = rf"tensor backbone\.layers\.0\.sa_norm\.scale has dtype {dtype}; supported are F32, F16, BF16\. "
    assert re.match(rf"{MISO}/model\.safetensors: {message}", look())
    (tmp_path / "model.safetensors").write_bytes(content.head + bytes(len(content) - len(content.head)))
    with open_checkpoint(tmp_path / "model.safetensors") as opened, pytest.raises(CheckpointError, match=message):
        opened.check_dtypes()


def test_a_new_version_on_the_hub_is_to_be_fetched(hub: HubServer, home: Path, tiny: Inputs) -> None:
    hub.repos[TINY_REPO] = {"model.safetensors": tiny.checkpoint.read_bytes(), "tokenizer.json": TOKENIZER}
    arguments = (TINY_REPO, "--quant", "q8_0", "--mimi", tiny.mimi)
    assert convert(hub, home, *arguments).returncode == 0
    dry = (*arguments, "--out", "elsewhere", "--dry-run", "--json")
    assert json.loads(convert(hub, home, *dry).stdout)["download_bytes"] == 0
    hub.commit = "f" * 40
    sizes = sum(map(len, hub.repos[TINY_REPO].values()))
    assert json.loads(convert(hub, home, *dry).stdout)["download_bytes"] == sizes


def test_a_private_repository_is_shown_to_whoever_may_see_it(hub: HubServer, home: Path) -> None:
    hub.private.add(MISO)
    done = convert(hub, home, "--quant", "q4_k_m", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"miso-convert: error: {MISO}: no such repository on the hub (or it is private)")
    assert plan(hub, home, "--quant", "q4_k_m", HF_TOKEN=TOKEN)["download_bytes"] > 33e9


def test_one_file_with_its_codec(hub: HubServer, home: Path, tmp_path: Path) -> None:
    """The codec inside is taken, not Kyutai's; fetched or looked at."""
    random_csm().save_pretrained(tmp_path / "csm")
    (tmp_path / "csm" / "tokenizer.json").write_bytes(TOKENIZER)
    hub.repos[CSM] = files_in(tmp_path / "csm")
    assert "model.safetensors" in hub.repos[CSM]
    found = plan(hub, home, CSM, "--quant", "q8_0")
    assert without_time(found) == local_plan(tmp_path / "csm", None, tmp_path / "csm" / "tokenizer.json", Q8_0)
    assert convert(hub, home, CSM, "--quant", "q8_0", "--out", tmp_path / "out").returncode == 0
    assert [source.role for source in read_manifest(tmp_path / "out").sources] == ["checkpoint", "tokenizer"]
    assert not [request for request in hub.requests if MIMI_REPO in request]


def test_when_all_is_there_it_says_so(hub: HubServer, home: Path, tiny: Inputs, tmp_path: Path) -> None:
    arguments = (tiny.checkpoint, "--quant", "q8_0", "--out", tmp_path / "out")
    assert convert(hub, home, *arguments).returncode == 0
    done = convert(hub, home, *arguments, "--dry-run")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}: q8_0 already there\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hub: hub.gated.add(MISO), f"{MISO}/model.safetensors: the repository is gated: accept its terms"),
        (lambda hub: hub.gated.add(MIMI_REPO), f"{NO_CODEC} ({MIMI_REPO}/{MIMI_FILE}: the repository is gated: a"),
        (lambda hub: hub.repos.pop(MISO), f"{MISO}: no such repository on the hub (or it is private)"),
        (lambda hub: hub.repos[MIMI_REPO].clear(), f"{NO_CODEC} ({MIMI_REPO}/{MIMI_FILE}: the hub has no such file)"),
        (
            lambda hub: hub.repos[MISO].update({"model.safetensors": b"<!doctype html><html>"}),
            f"{MISO}/model.safetensors: is a web page: the link was to a page about the file, or a login was needed",
        ),
        (
            lambda hub: hub.repos[MISO].update({"model.safetensors": Zeros(b"\xff\xff\x10", 33 << 30)}),
            f"{MISO}/model.safetensors: not a safetensors file (its header is no JSON",
        ),
        (lambda hub: hub.repos[MIRROR].update({"tokenizer.json": b""}), f"{MIRROR}/tokenizer.json: is empty"),
        (
            lambda hub: hub.repos[MIRROR].update({"tokenizer.json": Zeros(b"{", 300 << 20)}),
            f"{MIRROR}/tokenizer.json: of 314572800 bytes, too large to be only looked at",
        ),
        (
            lambda hub: hub.repos[MIRROR].update({"tokenizer.json": WITHOUT_ENDS, "tokenizer_config.json": b"{}"}),
            f"{MIRROR}/tokenizer.json: has neither <|begin_of_text|> and <|end_of_text|>, nor",
        ),
        (
            lambda hub: hub.repos[MIRROR].update({"tokenizer.json": WITHOUT_ENDS}) or hub.repos[MIRROR].pop(CONFIG),
            f"{MIRROR}/tokenizer.json: has neither <|begin_of_text|> and <|end_of_text|>, nor",
        ),
    ],
    ids=[
        "gated",
        "gated codec",
        "no repository",
        "no codec",
        "a web page",
        "no header",
        "empty tokenizer",
        "huge tokenizer",
        "no ends",
        "no ends, no config",
    ],
)
def test_what_cannot_be_looked_at(
    hub: HubServer, look: Callable[..., str], change: Callable[[HubServer], object], message: str
) -> None:
    change(hub)
    found = look()
    assert found.startswith(message)
    assert "\n" not in found
    assert hub.sent_bytes < 2 << 20


def test_what_cannot_be_looked_at_is_one_line(hub: HubServer, home: Path) -> None:
    hub.gated.add(MISO)
    done = convert(hub, home, "--quant", "q4_k_m", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"miso-convert: error: {MISO}/model.safetensors: the repository is gated: accept its")
    assert done.stderr.count("\n") == 1


def test_without_a_hub(hub: HubServer, home: Path) -> None:
    done = convert(hub, home, "--quant", "q4_k_m", "--dry-run", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith(f"miso-convert: error: {MISO}: cannot be fetched, the hub is out of reach (")
    assert done.stderr.count("\n") == 1


def test_a_plan_of_what_was_only_looked_at_cannot_run(tiny: Inputs, tmp_path: Path) -> None:
    class Elsewhere(HubPath):
        """A tokenizer on the hub."""

        def read_bytes(self) -> bytes:
            return tiny.tokenizer.read_bytes()

        def stat(self) -> os.stat_result:
            return tiny.tokenizer.stat()

    with open_checkpoint(tiny.checkpoint) as checkpoint:
        tokenizer = Elsewhere("a/b", "tokenizer.json")
        conversion = plan_conversion(tmp_path / "out", checkpoint, tiny.mimi, tokenizer, Request([Q4_0]))
        with pytest.raises(ValueError, match=r"^a/b/tokenizer\.json was only looked at: resolve .* fetch=True$"):
            run_conversion(conversion)
    assert not (tmp_path / "out").exists()
