"""Opening a bundle: whatever is wrong with it is said before anything heavy is loaded, with what to do."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, meet, serving
from speaking import load_tts

from builders import make_bundle, make_inputs
from miso_gguf.core.errors import BundleError
from miso_gguf.hub.fetch import Hub
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32, FP16, Q4_K_M, Q8_0, finest_first
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.mimi import TINY_MIMI
from miso_gguf.models.synthetic import write_synthetic
from miso_gguf.runtime.bundle import level_key, open_bundle, open_level
from miso_gguf.runtime.tts import MisoTTS


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged: its files are links until one is replaced."""
    directory = tmp_path / "bundle"
    shutil.copytree(bundle, directory, copy_function=lambda source, target: Path(target).hardlink_to(source))
    return directory


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((directory / "miso.json").read_text())
    change(data)
    replace(directory / "miso.json", json.dumps(data).encode())


PARTS = ["backbone", "decoder", "embeddings", "codec_decoder"]


def test_a_whole_bundle_opens(bundle: Path) -> None:
    for level in ("f32", "FP16", "f16", " q8_0 ", "Q4_K_M"):
        found = open_level(str(bundle), level, verify=True)
        assert all(getattr(found, part).is_file() for part in [*PARTS, "codec_encoder"])
    assert found.backbone.name == "Miso-Tiny-backbone-Q4_K_M.gguf"
    assert found.embeddings.name == "Miso-Tiny-embeddings-Q8_0.gguf"


@pytest.mark.parametrize("part", PARTS)
def test_each_file_must_be_there(copy: Path, part: str) -> None:
    path = getattr(open_level(copy, "q4_k_m"), part)
    path.unlink()
    with pytest.raises(BundleError, match=f"{path.name}: is missing from the bundle. Fetch or convert it again"):
        MisoTTS.load(copy, "q4_k_m")
    path.mkdir()
    with pytest.raises(BundleError, match=f"{path.name}: is missing from the bundle"):
        open_level(copy, "q4_k_m")


def test_the_encoder_may_be_absent_until_a_voice_is_encoded(copy: Path) -> None:
    found = open_level(copy, "q4_k_m")
    found.codec_encoder.unlink()
    open_level(copy, "q4_k_m", verify=True)
    with load_tts(copy, "q4_k_m") as tts, pytest.raises(BundleError, match=r"mimi-encoder\.onnx"):
        tts.codec.encode(tts.codec.decode(tts.generate_codes("Hello there.")[:5] * 0))


@pytest.mark.parametrize("part", PARTS)
def test_sizes_are_always_checked(copy: Path, part: str) -> None:
    path = getattr(open_level(copy, "q4_k_m"), part)
    content = path.read_bytes()
    replace(path, content[:-1])
    message = rf"{path.name}: has {len(content) - 1} bytes, expected {len(content)}\. Fetch or convert it again"
    with pytest.raises(BundleError, match=message):
        open_level(copy, "q4_k_m")


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_is_found_by_its_hash(copy: Path, part: str) -> None:
    path = getattr(open_level(copy, "q4_k_m"), part)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    replace(path, bytes(content))
    open_level(copy, "q4_k_m")
    message = rf"{path.name}: sha256 is \w{{12}}\.\.\., miso\.json says \w{{12}}\.\.\.: the file was changed"
    with pytest.raises(BundleError, match=message):
        MisoTTS.load(copy, "q4_k_m", verify=True)
    if part != "codec_decoder":
        open_level(copy, "fp16", verify=True)  # which does not use the file


def test_levels_that_are_not_there_are_refused_with_those_that_are(copy: Path) -> None:
    with pytest.raises(BundleError, match=r"has no level q4_0, only f32, fp16, q4_k_m, q8_0\. Choose one of them, or"):
        open_level(copy, "q4_0")
    with pytest.raises(
        BundleError, match=r"has no level q4_k_m\+q8_0, only .*convert CHECKPOINT --quant q4_k_m --decoder-quant q8_0"
    ):
        open_level(copy, "Q4_K_M+Q8_0")
    with pytest.raises(ValueError, match="unknown level 'q4_k_n': did you mean q4_k_m"):
        open_level(copy, "q4_k_n")
    with pytest.raises(ValueError, match="unknown level ''"):
        open_level(copy, "q4_k_m+")

    def keep_none(data: dict[str, Any]) -> None:
        data["levels"] = {}

    edit_manifest(copy, keep_none)
    with pytest.raises(BundleError, match="has no level q8_0, only none"):
        open_level(copy, "q8_0")


@pytest.mark.parametrize(
    ("part", "taken", "message"),
    [
        ("backbone", "decoder", "is a decoder, expected the backbone"),
        ("decoder", "backbone", "is a backbone, expected the decoder"),
        ("embeddings", "backbone", "is a backbone, expected the embeddings"),
    ],
)
def test_parts_that_were_swapped_are_named(copy: Path, part: str, taken: str, message: str) -> None:
    def swap(data: dict[str, Any]) -> None:
        files = data["levels"]["q4_k_m"]
        files[part] = files[taken]

    edit_manifest(copy, swap)
    with pytest.raises(BundleError, match=message):
        open_level(copy, "q4_k_m")


def test_a_file_of_another_program(copy: Path, tmp_path: Path) -> None:
    found = open_level(copy, "q4_k_m")
    name = found.backbone.name
    strange = found.embeddings.read_bytes().replace(b"miso.part", b"mice.part")
    replace(found.backbone, strange)

    def other_size(data: dict[str, Any]) -> None:
        data["files"][name]["size_bytes"] = len(strange)

    edit_manifest(copy, other_size)
    with pytest.raises(BundleError, match=f"{name}: is not one of our files, expected the backbone"):
        open_level(copy, "q4_k_m")
    replace(found.backbone, b"\0" * len(strange))
    with pytest.raises(BundleError, match=f"{name}: not a whole GGUF file. Fetch or convert the bundle again"):
        MisoTTS.load(copy, "q4_k_m")


def test_files_of_different_conversions_do_not_work_together(copy: Path, tmp_path: Path) -> None:
    """Same model, same shapes, same sizes: only the weights are another checkpoint's."""
    inputs = make_inputs(tmp_path / "inputs")
    write_synthetic(tmp_path / "inputs", TINY, TINY_MIMI, seed=1)
    other = tmp_path / "other"
    make_bundle(inputs, other, [Q8_0], threads=1)
    for part in ("decoder", "embeddings", "backbone"):
        theirs, ours = getattr(open_level(other, "q8_0"), part), getattr(open_level(copy, "q8_0"), part)
        assert theirs.stat().st_size == ours.stat().st_size
        original = ours.read_bytes()
        replace(ours, theirs.read_bytes())
        with pytest.raises(BundleError, match=rf"{ours.name}: comes from another checkpoint \(fingerprint \w{{12}}\)"):
            MisoTTS.load(copy, "q8_0")
        replace(ours, original)


def test_what_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle \(no miso\.json\)\. Make one with miso-convert"):
        open_level(tmp_path, "q4_k_m")
    file = bundle / "miso.json"
    with pytest.raises(BundleError, match=r"miso\.json: is a file; expected the directory that miso-convert wrote"):
        open_level(file, "q4_k_m")
    (tmp_path / "miso.json").write_text("{}")
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_level(tmp_path, "q4_k_m")


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "", "/no such place", "https://example.com/a", "../x", "./x"])
def test_what_cannot_be_a_repo_is_not_asked_for(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(Hub, "open", never)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    message = "no such directory. Make a bundle with miso-convert" if source else "not a bundle"
    with pytest.raises(BundleError, match=message):
        open_level(source, "q4_k_m")


REPO = "someone/bundle"
LEVEL_FILES = [
    "Miso-Tiny-backbone-Q4_K_M.gguf",
    "Miso-Tiny-decoder-Q4_K_M.gguf",
    "Miso-Tiny-embeddings-Q8_0.gguf",
    "mimi-decoder.onnx",
    "mimi-encoder.onnx",
    "miso.json",
]


@pytest.fixture
def hub(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that has one bundle."""
    server = HubServer()
    server.publish(REPO, {path.name: path.read_bytes() for path in bundle.iterdir()})
    monkeypatch.chdir(tmp_path)
    with serving(server):
        meet(server, tmp_path / "cache", monkeypatch)
        yield server


def test_only_the_level_itself_is_fetched(hub: HubServer) -> None:
    found = open_level(REPO, "q4_k_m", verify=True)
    assert sorted(path.name for path in found.directory.iterdir()) == LEVEL_FILES
    assert hub.sent_bytes == sum(len(hub.repos[REPO][name]) for name in LEVEL_FILES)
    hub.requests.clear()
    assert open_level(REPO, "q4_k_m").backbone == found.backbone
    assert hub.requests == [f"GET /api/models/{REPO}"]
    with pytest.raises(BundleError, match="has no level q4_0, only f32"):
        open_level(REPO, "q4_0")
    with pytest.raises(BundleError, match=r"^someone/else: no such repository on the hub \(or it is private\): check"):
        open_level("someone/else", "q4_0")
    with pytest.raises(ValueError, match="unknown level 'q3'"):
        open_level(REPO, "q3")


def test_manifest_and_files_are_of_one_commit(hub: HubServer) -> None:
    first, files = hub.refs[REPO, "main"], hub.repos[REPO]
    opened = open_bundle(REPO)
    hub.publish(REPO, dict.fromkeys(files, b"another"))
    assert opened.level("q8_0", verify=True).directory.name == first
    assert open_level(REPO, "q4_k_m", revision=first, verify=True).directory.name == first
    with pytest.raises(BundleError, match=rf"^{REPO}@v9: the repository has no such branch, tag or commit: pass one"):
        open_bundle(REPO, "v9")


def test_what_does_not_fit_the_manifest_is_refused_before_it_is_fetched(hub: HubServer) -> None:
    name = LEVEL_FILES[0]
    content = hub.repos[REPO][name]
    assert isinstance(content, bytes)
    hub.publish(REPO, {**hub.repos[REPO], name: content[:-1] + bytes([content[-1] ^ 1])})
    with pytest.raises(BundleError, match=rf"^{REPO}/{name}: is another file than it should be"):
        open_level(REPO, "q4_k_m")
    hub.large = False  # the hub names no sha256: it is seen when it has come
    with pytest.raises(BundleError, match=rf"^{REPO}/{name}: what arrived is damaged"):
        open_level(REPO, "q4_k_m")
    hub.publish(REPO, {**hub.repos[REPO], name: content})
    assert open_level(REPO, "q4_k_m", verify=True).backbone.read_bytes() == content


def test_offline_with_all_of_the_level(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    found = open_level(REPO, "q4_k_m")
    hub.failing, count = "/", len(hub.requests)
    assert open_level(REPO, "q4_k_m") == found
    assert "going on with what was downloaded before" in caplog.text
    with pytest.raises(
        BundleError, match=rf"^{REPO}/Miso-Tiny-decoder-Q8_0\.gguf: was not downloaded before, and canno"
    ):
        open_level(REPO, "q8_0")
    assert len(hub.requests) == count + 2


def test_a_damaged_file_in_the_cache(hub: HubServer) -> None:
    path = open_level(REPO, "q4_k_m").backbone
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"damaged\. Delete {re.escape(str(path.resolve()))} and run it again\.$"):
        open_level(REPO, "q4_k_m", verify=True)
    path.resolve().unlink()
    assert open_level(REPO, "q4_k_m", verify=True).backbone.read_bytes() == content


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (
            ["model.safetensors", "config.json"],
            r"Convert it first: miso-convert a/b --quant q4_k_m --out DIR, then --mod",
        ),
        (["README.md", "x.gguf"], r"Make one with miso-convert\.$"),
        ([], r"Make one with miso-convert\.$"),
    ],
)
def test_a_repository_that_is_no_bundle(hub: HubServer, files: list[str], advice: str) -> None:
    hub.publish("a/b", dict.fromkeys(files, b""))
    with pytest.raises(BundleError, match=rf"^a/b: is no bundle \(no miso\.json in .* at commit \w{{12}}\)\. {advice}"):
        open_bundle("a/b")


def test_a_revision_of_a_directory(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r": is a directory: a revision is of a Hugging Face repo$"):
        open_bundle(bundle, "main")


def test_without_the_hub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"^someone/bundle: needs huggingface-hub: pip install 'miso-gguf\[hub\]'"):
        open_level("someone/bundle", "q4_k_m")


def test_level_names() -> None:
    assert level_key("Q4_K_M") == "q4_k_m"
    assert level_key("f16+Q8_0") == "fp16+q8_0"


def test_the_finest_level_comes_first(copy: Path) -> None:
    def add(data: dict[str, Any]) -> None:
        data["levels"]["q4_k_m+q8_0"] = data["levels"]["q4_k_m"]
        data["levels"]["q8_0+q4_k_m"] = data["levels"]["q8_0"]

    edit_manifest(copy, add)
    expected = [F32.key, FP16.key, Q8_0.key, "q8_0+q4_k_m", Q4_K_M.key, "q4_k_m+q8_0"]
    assert finest_first(read_manifest(copy).levels) == expected
