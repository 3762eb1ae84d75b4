"""A bundle that a newer version made, as each command meets it: used as far as it is known, or refused in one line."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builders import MICRO, Inputs, make_bundle, make_inputs
from miso_gguf.convert import cli as convert_cli
from miso_gguf.core.errors import BundleError
from miso_gguf.models.levels import FP16, Q4_0, Q8_0
from miso_gguf.models.manifest import MANIFEST_NAME, read_manifest
from miso_gguf.runtime import cli as speak_cli
from miso_gguf.runtime.bundle import open_bundle

NEWER = "tq1_0"
SENTENCE = "made by a newer version of miso-gguf than this one"


@dataclass
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), MICRO)


@pytest.fixture(scope="module")
def made(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    make_bundle(inputs, directory, [Q8_0])
    return directory


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """With a level, keys, a file and a source that this version does not know."""
    directory = Path(shutil.copytree(made, tmp_path / "bundle"))
    (directory / "Micro-backbone-TQ1_0.gguf").write_bytes(b"GGUF")

    def add(data: dict[str, Any]) -> None:
        data["published"] = {"by": ["somebody", None, 1.5]}
        data["spec"]["watermark"] = "none"
        data["spec"]["backbone"]["sliding_window"] = 512
        data["codec"]["vocoder"] = "mimi-vocoder.onnx"
        data["sources"][0]["url"] = "https://example.com/model.safetensors"
        data["sources"].append({"role": "recipe", "name": "r.json", "sha256": "1" * 64})
        data["levels"]["q8_0"]["kld"] = 0.01
        data["levels"][NEWER] = {"parts": {"backbone": "Micro-backbone-TQ1_0.gguf"}, "embeddings": None}
        data["files"]["Micro-decoder-Q8_0.gguf"]["blake3"] = "b3"
        data["files"]["Micro-backbone-TQ1_0.gguf"] = {
            "size_bytes": 4,
            "sha256": "7" * 64,
        }

    edit(directory, add)
    return directory


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / MANIFEST_NAME
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(command: str, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            {"miso-convert": convert_cli.main, "miso-speak": speak_cli.main}[command]()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, captured.out, captured.err)

    return call


def test_a_level_that_is_added_keeps_all_that_was_there(bundle: Path, inputs: Inputs) -> None:
    before = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    make_bundle(inputs, bundle, [Q8_0, Q4_0])
    after = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    assert set(after["levels"]) == {"q8_0", "q4_0", NEWER}
    for key in ("published", "spec", "codec", "sources"):
        assert after[key] == before[key]
    assert after["levels"][NEWER] == before["levels"][NEWER]
    assert after["levels"]["q8_0"].items() >= before["levels"]["q8_0"].items()
    assert after["files"].items() >= before["files"].items()
    assert list(after["levels"]) == sorted(after["levels"])


def test_what_is_said_of_a_file_goes_with_its_bytes(bundle: Path, inputs: Inputs) -> None:
    """A file that is written again, and comes out otherwise, is not the file whose checksum somebody noted."""
    name = "Micro-decoder-Q8_0.gguf"
    (bundle / name).unlink()
    make_bundle(inputs, bundle, [Q8_0])
    assert (read_manifest(bundle).files[name].model_extra or {}) == {"blake3": "b3"}
    edit(bundle, lambda data: data["files"][name].update(sha256="6" * 64))
    (bundle / name).unlink()
    make_bundle(inputs, bundle, [Q8_0])
    assert (read_manifest(bundle).files[name].model_extra or {}) == {}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_of_a_newer_level_is_left_alone(bundle: Path, inputs: Inputs, is_there: bool) -> None:
    """Nobody knows what it was made with."""
    edit(bundle, lambda data: data["levels"][NEWER]["parts"].update(decoder="Micro-decoder-Q4_0.gguf"))
    if is_there:
        (bundle / "Micro-decoder-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(BundleError, match=rf"Micro-decoder-Q4_0.gguf belongs to {NEWER}, {SENTENCE}.*Upgrade"):
        make_bundle(inputs, bundle, [Q4_0])
    make_bundle(inputs, bundle, [FP16])


def test_the_name_of_a_level_that_nobody_knows_obeys_no_terminal(bundle: Path, inputs: Inputs) -> None:
    edit(bundle, lambda data: data["levels"].update({"a\x1b[2J": {"decoder": "Micro-decoder-Q4_0.gguf"}}))
    with pytest.raises(BundleError, match=r"Micro-decoder-Q4_0.gguf belongs to 'a\\x1b\[2J', made by a newer version"):
        make_bundle(inputs, bundle, [Q4_0])


def test_what_is_known_of_it_is_used(bundle: Path, made: Path) -> None:
    found, plain = open_bundle(bundle).level("q8_0", verify=True), open_bundle(made).level("q8_0")
    assert found.backbone.name == plain.backbone.name
    assert found.manifest.model_spec == plain.manifest.model_spec


def test_adding_says_what_stays(bundle: Path, inputs: Inputs, run: Run) -> None:
    done = run("miso-convert", inputs.checkpoint, "--config", inputs.config, "--out", bundle, "--quant", "fp16")
    assert done.code == 0
    assert f"{NEWER}, {SENTENCE}" in " ".join(done.err.split())


def test_nothing_is_added_to_what_would_be_lost(bundle: Path, inputs: Inputs) -> None:
    path = bundle / MANIFEST_NAME
    before = path.read_text("utf-8").replace('["somebody", null, 1.5]', "1e400")
    path.write_text(before, "utf-8")
    assert "1e400" in before
    with pytest.raises(BundleError, match="has numbers that no float holds, which would be lost"):
        make_bundle(inputs, bundle, [FP16])
    assert path.read_text("utf-8") == before


def test_inspect_and_verify_say_so(bundle: Path, inputs: Inputs, run: Run) -> None:
    edit(bundle, lambda data: data["files"].pop("Micro-backbone-TQ1_0.gguf"))
    seen = run("miso-convert", "inspect", bundle, "--json")
    assert (seen.code, list(json.loads(seen.out))) == (0, ["q8_0"])
    assert f"{NEWER}: {SENTENCE}" in seen.err
    assert seen.err.count("\n") == 1
    for source in ([], [inputs.checkpoint, "--config", inputs.config]):
        checked = run("miso-convert", "verify", bundle, *source, "--json")
        assert checked.code == 0
        (finding,) = [each for each in json.loads(checked.out)["findings"] if each["subject"] == NEWER]
        assert SENTENCE in finding["measured"]


def test_verify_hashes_files_of_newer_levels_too(bundle: Path, run: Run) -> None:
    checked = run("miso-convert", "verify", bundle, "--json")
    assert checked.code == 1
    bad = [each["subject"] for each in json.loads(checked.out)["findings"] if not each["ok"]]
    assert bad == ["Micro-backbone-TQ1_0.gguf"]


@pytest.mark.parametrize("more", [[], ["--kv-type", "f16"]])
def test_who_asks_for_a_newer_level_is_told(bundle: Path, run: Run, more: list[str]) -> None:
    asked = run("miso-speak", "Hello.", "--model", bundle, "--quant", NEWER.upper(), "--out", bundle / "a.wav", *more)
    assert asked.code == 2
    assert f"level {NEWER} was {SENTENCE}" in asked.err
    assert "pip install --upgrade miso-gguf, or choose one of q8_0." in asked.err
    assert asked.err.count("\n") == 1


def test_a_bundle_of_newer_levels_alone(bundle: Path, run: Run) -> None:
    edit(bundle, lambda data: data["levels"].pop("q8_0"))
    asked = run("miso-speak", "--fit", "--model", bundle)
    assert asked.code == 2
    assert f"{NEWER}, all levels of this bundle: {SENTENCE}" in asked.err
    assert asked.err.count("\n") == 1


def test_a_higher_schema_is_refused_by_all_alike(bundle: Path, inputs: Inputs, run: Run) -> None:
    edit(bundle, lambda data: data.update(schema_version=2, levels=[{"name": "q8_0"}]))
    contents = {path.name: path.read_bytes() for path in bundle.iterdir()}
    commands = (
        ("miso-convert", inputs.checkpoint, "--config", inputs.config, "--out", bundle, "--quant", "fp16"),
        ("miso-convert", "inspect", bundle),
        ("miso-convert", "verify", bundle),
        ("miso-convert", "verify", bundle, inputs.checkpoint, "--config", inputs.config),
        ("miso-speak", "Hello.", "--model", bundle, "--out", bundle / "a.wav"),
        ("miso-speak", "--fit", "--model", bundle),
    )
    said = set()
    for command in commands:
        refused = run(*command)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.count("\n") == 1
        said.add(refused.err[refused.err.index(str(bundle)) :])
    (line,) = said
    assert f"{bundle / MANIFEST_NAME}: schema_version is 2, known is 1: {SENTENCE}" in line
    assert "pip install --upgrade miso-gguf" in line
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == contents


def test_what_is_left_out_is_said(bundle: Path, run: Run) -> None:
    fits = run("miso-speak", "--fit", "--json", "--model", bundle)
    assert fits.code == 0
    assert {level["level"] for level in json.loads(fits.out)["levels"]} == {"q8_0"}
    assert f"left out {NEWER}, {SENTENCE}" in " ".join(fits.err.split())
    assert SENTENCE not in " ".join(run("miso-speak", "--quant", "q8_0", "--fit", "--model", bundle).err.split())
