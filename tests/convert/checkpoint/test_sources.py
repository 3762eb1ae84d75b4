"""Where inputs are found: made, beside the checkpoint, or on the hub."""

from pathlib import Path

import pytest

from miso_gguf.convert.checkpoint import sources as module
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.sources import DEFAULT_CHECKPOINT, Sources, resolve
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models import tiny
from miso_gguf.models.flavors import TINY

KYUTAI = "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may reach for the hub unless it says so."""
    monkeypatch.setattr(module, "find_sources", lambda *_, **__: pytest.fail("asked the hub"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["tiny", "Tiny", "TINY"])
def test_tiny_is_the_model_in_the_repository(name: str) -> None:
    with resolve(name) as sources:
        assert sources.mimi is not None
        assert sources.checkpoint == sources.mimi.parent == sources.tokenizer.parent
        assert sources.mimi.is_file()
        assert sources.tokenizer.is_file()
        with open_checkpoint(sources.checkpoint) as checkpoint:
            assert checkpoint.spec == TINY
    assert sources.checkpoint == tiny.DIRECTORY


def test_a_directory_and_a_file(directory: Path) -> None:
    with resolve(str(directory)) as sources:
        assert sources == Sources(directory, None, directory / "tokenizer.json")
    checkpoint = directory / "model.safetensors"
    with resolve(str(checkpoint)) as sources:
        assert sources == Sources(checkpoint, None, directory / "tokenizer.json")


def test_the_codec_beside_the_checkpoint(directory: Path) -> None:
    (directory / KYUTAI).touch()
    with resolve(str(directory / "model.safetensors")) as sources:
        assert sources.mimi == directory / KYUTAI
    (directory / "mimi.safetensors").touch()
    with resolve(str(directory)) as sources:
        assert sources.mimi == directory / "mimi.safetensors"
    with resolve(str(directory), directory / KYUTAI) as sources:
        assert sources.mimi == directory / KYUTAI


def test_options_come_before_what_lies_beside(directory: Path) -> None:
    other = directory / "other"
    other.mkdir()
    (other / "tokenizer.json").touch()
    for tokenizer in (other, other / "tokenizer.json"):
        with resolve(str(directory), other / "codec", str(tokenizer)) as sources:
            assert sources == Sources(directory, other / "codec", other / "tokenizer.json")


def test_a_missing_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    remedy = (
        "no such file: pass Llama 3.2's tokenizer.json with --tokenizer FILE "
        "(it is in meta-llama/Llama-3.2-1B, gated, and its mirror unsloth/Llama-3.2-1B)"
    )
    with pytest.raises(CheckpointError) as caught, resolve(str(directory)):
        pytest.fail("resolved")
    assert str(caught.value) == f"{directory / 'tokenizer.json'}: {remedy}"
    with pytest.raises(CheckpointError) as caught, resolve(str(directory), None, "typo.json"):
        pytest.fail("resolved")
    assert str(caught.value) == f"typo.json: {remedy}"


@pytest.mark.parametrize(
    "checkpoint", ["nope", "no/such/path", "./nope", "/no/such", "models/model.safetensors", "x/ckpt.pt", "a--b/c"]
)
def test_a_path_that_is_not_there(checkpoint: str) -> None:
    with pytest.raises(CheckpointError) as caught, resolve(checkpoint):
        pytest.fail("resolved")
    assert str(caught.value) == (
        f"{checkpoint}: no such file or directory, and not a Hugging Face repo id (OWNER/NAME) or 'tiny'"
    )


@pytest.mark.parametrize("fetch", [True, False])
def test_a_repository(monkeypatch: pytest.MonkeyPatch, fetch: bool) -> None:
    asked: list[tuple[object, ...]] = []

    def find_sources(*arguments: object, fetch: bool) -> tuple[Path, Path, Path]:
        asked.append((*arguments, fetch))
        return Path("w"), Path("m"), Path("t")

    monkeypatch.setattr(module, "find_sources", find_sources)
    with resolve(DEFAULT_CHECKPOINT, Path("mimi"), "some/tokenizer", fetch=fetch) as sources:
        assert sources == Sources(Path("w"), Path("m"), Path("t"))
    assert asked == [("MisoLabs/MisoTTS", Path("mimi"), "some/tokenizer", fetch)]


def test_a_local_path_that_looks_like_a_repository(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = directory / "owner" / "name"
    nested.mkdir(parents=True)
    (nested / "tokenizer.json").touch()
    monkeypatch.chdir(directory)
    with resolve("owner/name") as sources:
        assert sources == Sources(Path("owner/name"), None, Path("owner/name/tokenizer.json"))
