"""Mending: levels written anew, damaged manifests, what two conversions do to each other, and links in the way."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import MICRO, Inputs, make_bundle, make_inputs, write_imatrix
from miso_gguf.convert import bundle
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.codec import Codec
from miso_gguf.convert.conversion import Conversion, Request, plan_conversion
from miso_gguf.convert.quantize import run_pass
from miso_gguf.convert.sink import Sink
from miso_gguf.core.errors import BundleError, NewerBundleError
from miso_gguf.core.files import PARTIAL_SUFFIX
from miso_gguf.models.levels import FP16, Q4_0, Q4_K_M, Q8_0, Level
from miso_gguf.models.manifest import MANIFEST_NAME, mending_command, read_manifest
from miso_gguf.models.tensors import gguf_tensors

BACKBONE, DECODER, EMBEDDINGS = (f"Micro-{part}-Q8_0.gguf" for part in ("backbone", "decoder", "embeddings"))
CODEC = ("mimi-decoder.onnx", "mimi-encoder.onnx")
DAMAGED = f"{MANIFEST_NAME}.damaged"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), MICRO)


@pytest.fixture(scope="module")
def graphs(inputs: Inputs) -> tuple[bytes, bytes]:
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        codec = Codec(inputs.mimi, checkpoint)
        return codec.decoder_graph(), codec.encoder_graph()


@pytest.fixture(autouse=True)
def codec_made_once(graphs: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that is written here, the graphs take longest, and they are always the same."""
    for name, graph in zip(("decoder_graph", "encoder_graph"), graphs, strict=True):
        original = getattr(Codec, name)

        def made(codec: Codec, *dtype: Any, graph: bytes = graph, original: Any = original) -> bytes:
            return original(codec, *dtype) if dtype else graph

        monkeypatch.setattr(Codec, name, made)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def damage(path: Path) -> None:
    """Another byte, the same size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
    change(data)
    (directory / MANIFEST_NAME).write_text(json.dumps(data), "utf-8")


@pytest.mark.parametrize("name", [BACKBONE, DECODER, EMBEDDINGS, *CODEC])
def test_a_damaged_file_of_the_same_size_is_mended(inputs: Inputs, tmp_path: Path, run: Run, name: str) -> None:
    make_bundle(inputs, tmp_path, [Q8_0, Q4_K_M])
    whole = contents(tmp_path)
    damage(tmp_path / name)
    make_bundle(inputs, tmp_path, [Q8_0])
    assert contents(tmp_path) != whole, "sizes are all that is looked at"
    code, out, _ = run(inputs.checkpoint, "--config", inputs.config, "--force", "q8_0", "--out", tmp_path, "--json")
    assert (code, json.loads(out)["levels"]) == (0, ["q4_k_m", "q8_0"])
    assert contents(tmp_path) == whole


def test_a_forced_level_is_written_and_the_others_stay(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path, [Q8_0, Q4_K_M])
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    make_bundle(inputs, tmp_path, [], force=[Q8_0, FP16])
    stayed = {name for name, inode in before.items() if (tmp_path / name).stat().st_ino == inode}
    assert stayed - {MANIFEST_NAME} == {"Micro-backbone-Q4_K_M.gguf", "Micro-decoder-Q4_K_M.gguf"}
    assert set(read_manifest(tmp_path).levels) == {"q8_0", "q4_k_m", "fp16"}


def test_a_combination_is_forced(inputs: Inputs, tmp_path: Path, run: Run) -> None:
    make_bundle(inputs, tmp_path, [Q4_K_M], decoder_level=Q8_0)
    whole = contents(tmp_path)
    damage(tmp_path / DECODER)
    command = mending_command(tmp_path, "q4_k_m+q8_0")
    assert command == f"miso-convert CHECKPOINT --force q4_k_m --decoder-quant q8_0 --out {tmp_path}"
    words = [str(inputs.checkpoint) if word == "CHECKPOINT" else word for word in command.split()[1:]]
    assert run(*words, "--config", inputs.config)[0] == 0
    assert contents(tmp_path) == whole


def imatrix(path: Path, part: str = "backbone") -> Path:
    tensors = [tensor for tensor in gguf_tensors(MICRO) if tensor.part == part and len(tensor.shape) == 2]
    sums = {tensor.name: np.arange(1, tensor.shape[-1] + 1, dtype=np.float32) for tensor in tensors}
    write_imatrix(path, sums, dict.fromkeys(sums, 2.0))
    return path


def test_a_forced_level_may_get_another_imatrix(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, matrix = tmp_path / "out", imatrix(tmp_path / "i.gguf")
    make_bundle(inputs, out, [Q4_K_M])
    with pytest.raises(BundleError, match=r"another imatrix .*: write it anew with --force q4_k_m, or choose another"):
        make_bundle(inputs, out, [Q4_K_M], imatrix_backbone=matrix)
    made = make_bundle(inputs, out, [], force=[Q4_K_M], imatrix_backbone=matrix)
    assert made.levels["q4_k_m"].imatrix_backbone is not None
    assert "Micro-backbone-Q4_K_M.gguf had another imatrix" in caplog.text
    assert mending_command("DIR", "q4_k_m", manifest=made) == (
        "miso-convert CHECKPOINT --force q4_k_m --imatrix-backbone FILE --out DIR"
    )
    make_bundle(inputs, tmp_path / "fresh", [Q4_K_M], imatrix_backbone=matrix)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_command_says_what_a_level_cannot_do_without(inputs: Inputs, tmp_path: Path, run: Run) -> None:
    """Also where no manifest says what it was made with."""
    (tmp_path / MANIFEST_NAME).write_text("[")
    arguments: list[object] = [inputs.checkpoint, "--config", inputs.config, "--quant", "iq3_m", "--out", tmp_path]
    for part in ("backbone", "decoder"):
        arguments += [f"--imatrix-{part}", imatrix(tmp_path / f"{part}.gguf", part)]
    for decoder, options in (("iq3_m", "--imatrix DIR"), ("q8_0", "--decoder-quant q8_0 --imatrix-backbone FILE")):
        code, _, error = run(*arguments, "--decoder-quant", decoder)
        assert (code, error.count("\n")) == (2, 1)
        assert error.endswith(f"Make it anew: miso-convert CHECKPOINT --force iq3_m {options} --out {tmp_path}\n")


def test_early_manifests_name_an_imatrix_of_levels_that_are_rounded(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path, [Q8_0])
    edit(tmp_path, lambda data: data["levels"]["q8_0"].update(imatrix_backbone="0" * 64, imatrix_decoder="1" * 64))
    make_bundle(inputs, tmp_path, [Q4_K_M], decoder_level=Q8_0)
    assert read_manifest(tmp_path).levels["q8_0"].imatrix_decoder == "1" * 64
    made = make_bundle(inputs, tmp_path, [Q8_0, FP16])
    assert made.levels.keys() == {"fp16", "q4_k_m+q8_0", "q8_0"}
    assert made.levels["q8_0"].weighed == []


def test_not_if_a_level_that_stays_has_the_file(inputs: Inputs, tmp_path: Path) -> None:
    out, matrix = tmp_path / "out", imatrix(tmp_path / "i.gguf")
    make_bundle(inputs, out, [Q4_K_M])
    make_bundle(inputs, out, [Q4_K_M], decoder_level=Q8_0)
    before = contents(out)
    with pytest.raises(BundleError, match=r"belongs to q4_k_m\+q8_0, quantised with another imatrix"):
        make_bundle(inputs, out, [], force=[Q4_K_M], imatrix_backbone=matrix)
    assert contents(out) == before


@pytest.mark.parametrize("name", [BACKBONE, EMBEDDINGS])
def test_a_file_of_a_newer_level_is_not_replaced(inputs: Inputs, tmp_path: Path, name: str) -> None:
    make_bundle(inputs, tmp_path, [Q8_0])
    edit(tmp_path, lambda data: data["levels"].update(tq1_0={"files": [name]}))
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=f"{name} belongs to tq1_0, made by a newer version.*Upgrade"):
        make_bundle(inputs, tmp_path, [], force=[Q8_0])
    assert contents(tmp_path) == before


def test_an_error_on_the_way_leaves_the_old_files(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(inputs, tmp_path, [Q8_0])
    before = contents(tmp_path)
    monkeypatch.setattr(Sink, "finish", lambda _self: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(BundleError, match="Input/output error"):
        make_bundle(inputs, tmp_path, [], force=[Q8_0])
    assert contents(tmp_path) == before


def test_other_bytes_are_announced(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed among the renames leaves a manifest that does not take the new file for the old one."""
    out, matrix = tmp_path / "out", imatrix(tmp_path / "i.gguf")
    make_bundle(inputs, out, [Q4_K_M])

    class Killed(BaseException):
        pass

    def killed(_sink: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Sink, "commit", killed)
        with pytest.raises(Killed):
            make_bundle(inputs, out, [], force=[Q4_K_M], imatrix_backbone=matrix)
    assert [name for name, file in read_manifest(out).files.items() if not file.size_bytes] == [
        "Micro-backbone-Q4_K_M.gguf"
    ]
    make_bundle(inputs, out, [Q4_K_M], imatrix_backbone=matrix)
    make_bundle(inputs, tmp_path / "fresh", [Q4_K_M], imatrix_backbone=matrix)
    assert contents(out) == contents(tmp_path / "fresh")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.with_name("elsewhere").write_text("[")
    path.symlink_to("elsewhere")


BROKEN = {
    "cut": lambda path: path.write_text(path.read_text()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(b"\0" * 64),
    "no entries": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[]"),
    "missing entry": lambda path: path.write_text(path.read_text().replace(f'"{BACKBONE}": {{', '"x.gguf": {')),
    "a directory": _directory,
    "a link": _linked,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_manifest_is_no_dead_end(inputs: Inputs, tmp_path: Path, run: Run, how: str) -> None:
    out = tmp_path / "the bundle"
    make_bundle(inputs, out, [Q8_0])
    whole = contents(out)
    BROKEN[how](out / MANIFEST_NAME)
    broken, arguments = contents(out), (inputs.checkpoint, "--config", inputs.config)
    code, _, error = run(*arguments, "--quant", "q8_0", "--out", out)
    assert (code, error.count("\n")) == (2, 1)
    assert error.endswith(f"Make it anew: miso-convert CHECKPOINT --force q8_0 --out '{out}'\n")
    code, _, error = run("inspect", out)
    assert (code, error.count("\n")) == (2, 1)
    assert f"miso-convert CHECKPOINT --force LEVEL --out '{out}'" in error
    assert contents(out) == broken
    code, _, error = run(*arguments, "--force", "q8_0", "--out", out)
    assert (code, DAMAGED in error) == (0, True)
    after = contents(out)
    assert after.pop(DAMAGED, None) == broken.get(MANIFEST_NAME)
    after.pop("elsewhere", None)
    assert after == whole
    assert run("verify", out)[0] == 0


def test_damaged_ones_are_numbered_and_kept_until_there_is_a_new_one(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / MANIFEST_NAME).write_text(f"[{number}")
        make_bundle(inputs, tmp_path, [], force=[Q8_0])
    found = {name: data for name, data in contents(tmp_path).items() if name.startswith(DAMAGED)}
    assert found == {DAMAGED: b"[0", f"{DAMAGED}.2": b"[1", f"{DAMAGED}.3": b"[2"}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / MANIFEST_NAME).write_text("[3")
    monkeypatch.setattr(bundle, "write_whole", full)
    with pytest.raises(BundleError, match="disk is full"):
        make_bundle(inputs, tmp_path, [], force=[Q8_0])
    assert (tmp_path / MANIFEST_NAME).read_text() == "[3"
    assert not (tmp_path / f"{DAMAGED}.4").exists()


def test_force_is_no_way_around_a_refusal(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path, [Q8_0])
    for key, value, error in (("fingerprint", "0" * 64, BundleError), ("schema_version", 2, NewerBundleError)):
        edit(tmp_path, lambda data, key=key, value=value: data.update({key: value}))  # type: ignore[misc]
        before = contents(tmp_path)
        with pytest.raises(error):
            make_bundle(inputs, tmp_path, [], force=[Q8_0])
        assert contents(tmp_path) == before


def test_each_file_says_what_made_it(inputs: Inputs, tmp_path: Path, run: Run) -> None:
    made = make_bundle(inputs, tmp_path, [Q8_0])
    assert set(made.versions.values()) == {(made.converter, made.llama_cpp)}
    assert {file.converter for file in made.files.values()} == {made.converter}
    assert "made by │" not in run("inspect", tmp_path)[1]

    def older(data: dict[str, Any]) -> None:
        data.update(converter="miso-gguf 0.0.1", llama_cpp="0.3.1")
        for file in data["files"].values():
            del file["converter"], file["llama_cpp"]

    edit(tmp_path, older)
    assert set(read_manifest(tmp_path).versions.values()) == {("miso-gguf 0.0.1", "0.3.1")}
    damage(tmp_path / CODEC[0])
    later = make_bundle(inputs, tmp_path, [Q4_0])
    assert (later.converter, later.llama_cpp) == (made.converter, made.llama_cpp)
    assert later.versions[BACKBONE] == later.versions[CODEC[0]] == ("miso-gguf 0.0.1", "0.3.1")
    assert later.versions["Micro-backbone-Q4_0.gguf"] == (made.converter, made.llama_cpp)
    assert later == read_manifest(tmp_path)
    shown = run("inspect", tmp_path)[1]
    assert "miso-gguf 0.0.1, llama.cpp 0.3.1" in shown
    assert f"{made.converter}, llama.cpp {made.llama_cpp}" in shown
    mended = make_bundle(inputs, tmp_path, [], force=[Q8_0])
    assert set(mended.versions.values()) == {(made.converter, made.llama_cpp)}


def planned(inputs: Inputs, out: Path, levels: list[Level]) -> Conversion:
    checkpoint = open_checkpoint(inputs.checkpoint, inputs.config)
    return plan_conversion(out, checkpoint, inputs.mimi, inputs.tokenizer, Request(levels))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_plan_made_before_another_was_done(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    if is_there:
        make_bundle(inputs, tmp_path, [FP16])
    first, second = planned(inputs, tmp_path, [Q8_0]), planned(inputs, tmp_path, [Q4_K_M, Q8_0])
    written: list[str] = []

    def noted(reader: Any, files: Any, *args: Any, **options: Any) -> None:
        written.extend(plan.name for plan, _ in files)
        run_pass(reader, files, *args, **options)

    convert(first)
    monkeypatch.setattr(bundle, "run_pass", noted)
    manifest = convert(second)
    assert set(manifest.levels) == {"q8_0", "q4_k_m"} | ({"fp16"} if is_there else set())
    assert written == ["Micro-backbone-Q4_K_M.gguf", "Micro-decoder-Q4_K_M.gguf"]
    for conversion in (first, second):
        conversion.checkpoint.store.close()
    assert not manifest.missing_entries()


def test_another_checkpoints_bundle_appears_meanwhile(inputs: Inputs, tmp_path: Path) -> None:
    other = make_inputs(tmp_path / "other", MICRO)
    data = bytearray(other.checkpoint.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()
    other.checkpoint.write_bytes(data)
    late = planned(inputs, tmp_path / "out", [Q8_0])
    make_bundle(other, tmp_path / "out", [Q4_0])
    before = contents(tmp_path / "out")
    with pytest.raises(BundleError, match="holds a bundle of another checkpoint"):
        convert(late)
    late.checkpoint.store.close()
    assert contents(tmp_path / "out") == before


_PLANNED = """
import sys
from pathlib import Path
import builders
from miso_gguf.convert import cli
original = cli.run_conversion
def waiting(*args):
    print("planned", flush=True)
    sys.stdin.readline()
    return original(*args)
cli.run_conversion = waiting
cli.main()
"""


def test_two_processes_add_a_level_each(inputs: Inputs, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    arguments = [str(inputs.checkpoint), "--config", str(inputs.config), "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", _PLANNED, *arguments, "--quant", "q8_0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "planned\n"
        make_bundle(inputs, tmp_path, [Q4_0])
        process.stdin.write("\n")
        process.stdin.close()
        process.stdout.read()
        assert process.wait(60) == 0
    manifest = read_manifest(tmp_path)
    assert set(manifest.levels) == {"q4_0", "q8_0"}
    assert {path.name for path in tmp_path.iterdir()} == {*manifest.files, MANIFEST_NAME}


@pytest.mark.parametrize("target", ["victim", "nowhere"])
@pytest.mark.parametrize("name", [f"{BACKBONE}{PARTIAL_SUFFIX}", f"other{PARTIAL_SUFFIX}", BACKBONE, CODEC[0]])
def test_nothing_is_written_through_a_link(inputs: Inputs, tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "victim").write_bytes(b"theirs")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / target)
    make_bundle(inputs, out, [Q8_0])
    assert (tmp_path / "victim").read_bytes() == b"theirs"
    assert not (tmp_path / "nowhere").exists()
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_link_that_appears_meanwhile(tmp_path: Path) -> None:
    (tmp_path / f"file{PARTIAL_SUFFIX}").symlink_to("victim")
    with pytest.raises(FileExistsError):
        Sink(tmp_path, "file")
    assert not (tmp_path / "victim").exists()


IN_THE_WAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "partial": (lambda out: (out / f"x{PARTIAL_SUFFIX}").mkdir(parents=True), f"x{PARTIAL_SUFFIX}: in the way"),
    "lock": (lambda out: (out / bundle.LOCK_NAME).mkdir(parents=True), "no file that can be locked .*delete it"),
    "file": (lambda out: (out / BACKBONE).mkdir(parents=True), f"{BACKBONE}: is a directory: move it away"),
    "output": (lambda out: out.write_text(""), "out: is there and is no directory: choose another --out"),
    "link": (lambda out: out.symlink_to("nowhere"), "out: is there and is no directory: choose another --out"),
    "below a file": (lambda out: out.parent.joinpath("a").write_text(""), "cannot be written .*choose another --out"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_is_in_the_way_is_named(inputs: Inputs, tmp_path: Path, what: str) -> None:
    make, message = IN_THE_WAY[what]
    make(tmp_path / "out")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=message) as refused:
        make_bundle(inputs, tmp_path / ("a/out" if what == "below a file" else "out"), [Q8_0])
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_name_of_its_own(inputs: Inputs, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (inputs.checkpoint, "--config", inputs.config)
    assert run(*arguments, "--quant", "q8_0", "--name", "My.Voice-1")[0] == 0
    out = tmp_path / "My.Voice-1-GGUF"
    assert run(*arguments, "--quant", "q4_0", "--out", out)[0] == 0
    manifest = read_manifest(out)
    assert manifest.model_spec == replace(MICRO, name="My.Voice-1")
    parts = [f"My.Voice-1-{part}-{label}.gguf" for part in ("backbone", "decoder") for label in ("Q4_0", "Q8_0")]
    assert set(manifest.files) == {*parts, "My.Voice-1-embeddings-Q8_0.gguf", *CODEC}
    assert b"My.Voice-1 backbone" in (out / parts[0]).read_bytes()[:1000]
    assert "My.Voice-1" in run("inspect", out)[1]
    assert run("verify", out, *arguments)[0] == 0
    before = contents(out)
    code, _, error = run(*arguments, "--quant", "fp16", "--name", "Other", "--out", out)
    assert (code, error.count("\n")) == (2, 1)
    assert "holds a bundle of My.Voice-1, not Other: leave --name out, or choose another --out" in error
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a letter or digit first"),
        ("../x", "a letter or digit first"),
        ("a/b", "a letter or digit first"),
        ("a\nb", "a letter or digit first"),
        (".hidden", "a letter or digit first"),
        ("-x", "a letter or digit first"),
        ("Stimme\N{LATIN SMALL LETTER SHARP S}", "a letter or digit first"),
        ("a" * 97, "has 97 characters, at most 96 go"),
        ("my-q8_0", "leave 'q8_0' out"),
        ("my.F16.x", "leave 'F16' out"),
        ("a-backbone-b", "leave 'backbone' out"),
    ],
)
def test_names_that_no_model_can_have(run: Run, tmp_path: Path, name: str, message: str) -> None:
    code, _, error = run("tiny", "--quant", "q8_0", "--out", tmp_path / "out", f"--name={name}")
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=message):
        Request([Q8_0], name=name)


def test_something_must_be_asked_for(run: Run, tmp_path: Path) -> None:
    code, _, error = run("tiny", "--out", tmp_path)
    assert (code, "Missing option '--quant'" in error) == (2, True)
