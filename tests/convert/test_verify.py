"""`verify` finds what is wrong with a bundle, and only that."""

import importlib.util
import json
import re
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from builders import BLOCKS, COMMON, MICRO, Built, Inputs, make_bundle, make_inputs, write_imatrix
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.verify import MAX_GROUP_ERROR, Finding, _worst_group, mends, verify_bundle
from miso_gguf.core.files import file_sha256
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import LEVELS, Q4_0, Q4_K_M, Q8_0
from miso_gguf.models.manifest import MANIFEST_NAME, BundleFile, read_manifest
from miso_gguf.models.tensors import gguf_tensors
from miso_gguf.native.ggml import dequantize, quantize


@contextmanager
def _quiet(_label: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _amount: None


@pytest.fixture(scope="module")
def inputs(built: Built) -> Inputs:
    return built.inputs()


@pytest.fixture(scope="module")
def whole(inputs: Inputs, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = built.bundle(COMMON)
    directory = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("whole") / "bundle"))
    make_bundle(inputs, directory, [Q4_0], decoder_level=Q8_0)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def _verify(directory: Path, inputs: Inputs | None = None, **others: Path | None) -> list[Finding]:
    manifest = read_manifest(directory)
    if inputs is None:
        return verify_bundle(directory, manifest, None, 2, _quiet)
    sources = {"mimi": inputs.mimi, "tokenizer": inputs.tokenizer, **others}
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        return verify_bundle(directory, manifest, checkpoint, 2, _quiet, **sources)


def _bad(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.subject) for finding in findings if not finding.ok]


def test_whole_bundle_is_well(whole: Path, inputs: Inputs) -> None:
    findings = _verify(whole, inputs)
    assert _bad(findings) == []
    checks = [finding.check for finding in findings]
    assert checks.count("manifest") == 1
    assert checks.count("hash") == len(read_manifest(whole).files)
    assert checks.count("tensors") == len(COMMON) * 2 + 3
    assert checks.count("logits") == len(COMMON) + 1
    assert (checks.count("codec"), checks.count("tokenizer")) == (2, 3)
    assert not any(finding.skipped for finding in findings)


def test_every_level_is_well(built: Built) -> None:
    assert _bad(findings := _verify(built.every_level(), built.inputs(BLOCKS))) == []
    assert [f.subject for f in findings if f.check == "logits"] == sorted(LEVELS)


@pytest.mark.parametrize(
    "name", ["Miso-Tiny-backbone-Q4_K_M.gguf", "Miso-Tiny-embeddings-F16.gguf", "mimi-decoder.onnx"]
)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_changed_byte(copy: Path, name: str, where: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(where * len(data))] ^= 1
    (copy / name).write_bytes(data)
    assert _bad(_verify(copy)) == [("hash", name)]


def test_missing_and_cut_files(copy: Path) -> None:
    (copy / "mimi-encoder.onnx").unlink()
    (copy / "Miso-Tiny-decoder-Q8_0.gguf").write_bytes(b"GGUF")
    findings = _verify(copy)
    assert _bad(findings) == [("hash", "Miso-Tiny-decoder-Q8_0.gguf"), ("hash", "mimi-encoder.onnx")]
    assert "4 bytes, expected" in next(f.measured for f in findings if f.subject == "Miso-Tiny-decoder-Q8_0.gguf")


def test_a_directory_in_a_files_place_is_not_called_missing(copy: Path) -> None:
    (copy / "mimi-encoder.onnx").unlink()
    (copy / "mimi-encoder.onnx").mkdir()
    assert [f.measured for f in _verify(copy) if not f.ok] == ["a directory: move it away"]


def _forge(directory: Path, name: str, change: Callable[[Path], object]) -> None:
    """Change a file and make the manifest agree, as a broken converter would."""
    path = directory / name
    change(path)
    manifest = read_manifest(directory)
    record = BundleFile(size_bytes=path.stat().st_size, sha256=file_sha256(path))
    changed = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    (directory / MANIFEST_NAME).write_text(changed.to_json())


def _edit_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
    change(data)
    (directory / MANIFEST_NAME).write_text(json.dumps(data), "utf-8")


@pytest.mark.parametrize("entry", [{"norm_eps": 2e-5}, {"rope_base": 1e4}, {"codebooks": 31}])
def test_dimensions_that_were_edited(copy: Path, entry: dict[str, float]) -> None:
    """The files say them too."""
    _edit_manifest(copy, lambda data: data["spec"].update(entry))
    bad = {subject for check, subject in _bad(_verify(copy)) if check == "header"}
    assert {"Miso-Tiny-backbone-F16.gguf", "Miso-Tiny-decoder-Q4_K_M.gguf"} <= bad


def test_fingerprint_that_was_edited(copy: Path) -> None:
    _edit_manifest(copy, lambda data: data.update(fingerprint="0" * 64))
    findings = _verify(copy)
    assert {check for check, _ in _bad(findings)} == {"origin"}
    assert any("miso.source.fingerprint is" in finding.measured for finding in findings)


def test_prompt_that_was_edited(copy: Path, inputs: Inputs) -> None:
    """Of the files none says it: it takes the checkpoint to know."""
    _edit_manifest(copy, lambda data: data["spec"].update(prompt="[{speaker}]_{text}"))
    assert _bad(_verify(copy)) == []
    assert _bad(_verify(copy, inputs)) == [("source", "Miso-Tiny")]


@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_level_that_has_another_s_files(copy: Path, part: str) -> None:
    def exchange(data: dict[str, Any]) -> None:
        data["levels"]["q8_0"][part] = data["levels"]["q4_0"][part]

    _edit_manifest(copy, exchange)
    (finding,) = [finding for finding in _verify(copy) if not finding.ok]
    assert (finding.check, finding.subject) == ("header", f"Miso-Tiny-{part}-Q4_0.gguf")
    assert finding.measured == "general.file_type is 2, the manifest says 7"


def test_parts_that_were_exchanged(copy: Path) -> None:
    def exchange(data: dict[str, Any]) -> None:
        files = data["levels"]["fp16"]
        files["backbone"], files["decoder"] = files["decoder"], files["backbone"]

    _edit_manifest(copy, exchange)
    assert _bad(_verify(copy)) == [
        ("header", "Miso-Tiny-decoder-F16.gguf"),
        ("header", "Miso-Tiny-backbone-F16.gguf"),
    ]


def test_what_is_no_damage(copy: Path) -> None:
    """Another order, other white space, an old digest, names of sources: a manifest may be written by others."""

    def rewrite(data: dict[str, Any]) -> None:
        data["digest"] = "0" * 64
        data["sources"][0]["name"] = "renamed.safetensors"
        data["files"] = dict(reversed(data["files"].items()))

    _edit_manifest(copy, rewrite)
    assert _bad(_verify(copy)) == []


def _edit(tensor: str, edit: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        reader = GGUFReader(path, "r+")
        edit(next(t.data for t in reader.tensors if t.name == tensor))
        reader.data.flush()

    return change


def _swap_two_rows(data: np.ndarray) -> None:
    if data.ndim == 1:
        data[[3, 4]] = data[[4, 3]]
    else:
        data[[-3, -2]] = data[[-2, -3]]


def _zero_one_block(data: np.ndarray) -> None:
    """144 bytes hold 256 weights of Q4_K, and at least 32 of every other type."""
    data.reshape(-1).view(np.uint8)[-144:] = 0


def _nan(data: np.ndarray) -> None:
    """F32 and F16 NaN, and a NaN scale for blocks; not in the last rows."""
    data.reshape(-1).view(np.uint8)[: data.nbytes // 2] = 0xFF


FORGED = {
    "Miso-Tiny-backbone-F32.gguf": "blk.1.attn_norm.weight",
    "Miso-Tiny-backbone-F16.gguf": "blk.2.attn_k.weight",
    "Miso-Tiny-backbone-Q4_K_M.gguf": "blk.3.ffn_down.weight",
    "Miso-Tiny-decoder-Q4_0.gguf": "blk.1.ffn_up.weight",
    "Miso-Tiny-decoder-Q8_0.gguf": "token_embd.weight",
    "Miso-Tiny-embeddings-Q8_0.gguf": "text_embd.weight",
}


@pytest.mark.parametrize("edit", [_swap_two_rows, _zero_one_block, _nan])
def test_tensors_that_are_not_their_source(copy: Path, inputs: Inputs, edit: Callable[[np.ndarray], None]) -> None:
    """One in each of these files: those files are named and no others, each with its tensor."""
    for name, tensor in FORGED.items():
        _forge(copy, name, _edit(tensor, edit))
    findings = _verify(copy, inputs)
    assert {subject for check, subject in _bad(findings) if check == "tensors"} == set(FORGED)
    for name, tensor in FORGED.items():
        assert tensor in next(f.measured for f in findings if (f.check, f.subject) == ("tensors", name))


def test_levels_mixed_up_show_in_the_logits(copy: Path, inputs: Inputs) -> None:
    """Gate and up exchanged in one layer: each tensor is somebody's, the whole is wrong."""

    def exchange(path: Path) -> None:
        reader = GGUFReader(path, "r+")
        gate, up = (
            next(t.data for t in reader.tensors if t.name == f"blk.0.ffn_{kind}.weight") for kind in ("gate", "up")
        )
        gate[:], up[:] = up.copy(), gate.copy()
        reader.data.flush()

    _forge(copy, "Miso-Tiny-backbone-F16.gguf", exchange)
    bad = _bad(_verify(copy, inputs))
    assert ("logits", "fp16") in bad
    assert ("tensors", "Miso-Tiny-backbone-F16.gguf") in bad


def test_another_checkpoint(whole: Path, tmp_path: Path) -> None:
    findings = _verify(whole, make_inputs(tmp_path, MICRO))
    assert _bad(findings) == [("source", "Micro")]


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" * 100,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 60),
    ],
    ids=["nonsense", "endless keys", "endless tensors", "endless texts"],
)
def test_gguf_that_is_none(copy: Path, content: bytes) -> None:
    """It ends at once: the alarm would end the process."""
    _forge(copy, "Miso-Tiny-backbone-F16.gguf", lambda path: path.write_bytes(content))
    signal.alarm(30)
    started = time.process_time()
    findings = _verify(copy)
    assert _bad(findings) == [("header", "Miso-Tiny-backbone-F16.gguf")]
    assert any("backbone-F16.gguf: not a whole GGUF file. Fetch or convert" in f.measured for f in findings)
    expected = f"miso-convert CHECKPOINT --force fp16 --out {copy}"
    assert mends(copy, read_manifest(copy), findings) == [expected]
    assert time.process_time() - started < 5
    signal.alarm(0)


@pytest.fixture(scope="module")
def small_inputs(built: Built) -> Inputs:
    return built.inputs(MICRO)


@pytest.fixture
def small(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.bundle([Q8_0, Q4_0], MICRO), tmp_path / "small"))


def test_files_that_are_none(small: Path) -> None:
    """One of each kind, and the manifest agrees: each is found, and the others are still looked at."""
    for name in ("mimi-encoder.onnx", "Micro-backbone-Q4_0.gguf", "Micro-embeddings-Q8_0.gguf"):
        _forge(small, name, lambda path: path.write_text("This is none."))
    findings = _verify(small)
    assert _bad(findings) == [
        ("header", "Micro-backbone-Q4_0.gguf"),
        ("header", "Micro-embeddings-Q8_0.gguf"),
        ("codec", "mimi-encoder.onnx"),
    ]
    assert ("codec", "mimi-decoder.onnx") in [(finding.check, finding.subject) for finding in findings]


def test_gguf_with_another_s_tensors(small: Path) -> None:
    _forge(small, "Micro-decoder-Q8_0.gguf", _rename(b"blk.0.ffn_up.weight", b"blk.0.ffn_uq.weight"))
    assert _bad(_verify(small)) == [("header", "Micro-decoder-Q8_0.gguf")]


def _rename(old: bytes, new: bytes) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        content = path.read_bytes()
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))

    return change


def test_two_swapped_entries_of_a_vocabulary(small: Path, small_inputs: Inputs) -> None:
    def swap(path: Path) -> None:
        content = path.read_bytes()
        first, second = (struct.pack("<Q", 7) + text.encode() for text in ("Ġmonth", "Ġfirst"))
        assert content.count(first) == content.count(second) == 1
        path.write_bytes(content.replace(first, b"<swap>").replace(second, first).replace(b"<swap>", second))

    name = "Micro-embeddings-Q8_0.gguf"
    _forge(small, name, swap)
    assert _bad(_verify(small)) == []
    findings = _verify(small, small_inputs)
    assert _bad(findings) == [("tokenizer", name)]
    measured = next(finding.measured for finding in findings if not finding.ok)
    assert re.fullmatch(r"token \d+ is '(Ġmonth|Ġfirst)', tokenizer\.json says '(Ġmonth|Ġfirst)'", measured)
    expected = f"miso-convert x.pt --mimi 'a b' --force q4_0 --out {small}"
    given = {"--mimi": "a b", "--tokenizer": None}
    assert mends(small, read_manifest(small), findings, "x.pt", given) == [expected], "both levels use it"


def test_what_is_left_out_is_said(small: Path, small_inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def left_out(findings: list[Finding]) -> dict[str, str]:
        assert _bad(findings) == []
        return {finding.check: finding.measured for finding in findings if finding.skipped}

    assert left_out(_verify(small)) == dict.fromkeys(
        ("tensors", "logits", "codec", "tokenizer"), "not compared: pass CHECKPOINT"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert left_out(_verify(small, small_inputs, mimi=None, tokenizer=None)) == {
        "codec": "not compared: pass its source with --mimi FILE",
        "tokenizer": "not compared: pass its source with --tokenizer FILE",
        "logits": "not compared: needs PyTorch: pip install 'miso-gguf[reference]'",
    }


def test_other_sources(small: Path, small_inputs: Inputs, tmp_path: Path) -> None:
    others: dict[str, Path] = {}
    for role in ("mimi", "tokenizer"):
        others[role] = tmp_path / f"other {role}"
        others[role].write_bytes(getattr(small_inputs, role).read_bytes() + b" ")
    findings = _verify(small, small_inputs, **others)
    assert _bad(findings) == [("source", "other tokenizer"), ("source", "other mimi")]
    assert mends(small, read_manifest(small), findings) == []


def test_what_mends(whole: Path) -> None:
    """As few levels as bring all damaged files."""
    manifest = read_manifest(whole)
    imatrix = {"imatrix_backbone": "0" * 64}
    levels = {**manifest.levels, "q6_k": manifest.levels["q6_k"].model_copy(update=imatrix)}
    manifest = manifest.model_copy(update={"levels": levels})

    def mended(*subjects: str) -> list[str]:
        commands = mends(Path("out"), manifest, [Finding("hash", name, "", False) for name in subjects])
        return [command.removeprefix("miso-convert CHECKPOINT ").removesuffix(" --out out") for command in commands]

    assert mended() == mended("Miso-Tiny", "other.txt") == []
    assert mended("Miso-Tiny-backbone-Q5_K_M.gguf") == ["--force q5_k_m"]
    assert mended("Miso-Tiny-decoder-Q5_K_M.gguf", "Miso-Tiny-backbone-Q5_K_M.gguf", "mimi-decoder.onnx") == [
        "--force q5_k_m"
    ]
    assert mended("mimi-decoder.onnx", "mimi-encoder.onnx") == ["--force q4_0"], "the smallest"
    assert mended("Miso-Tiny-backbone-Q5_K_M.gguf", "Miso-Tiny-decoder-Q4_K_M.gguf") == [
        "--force q4_k_m --force q5_k_m"
    ]
    assert mended("q6_k") == ["--force q6_k --imatrix-backbone FILE"]
    assert mended("q4_0+q8_0") == ["--force q4_0 --decoder-quant q8_0"]
    for key in ("q4_0", "q4_0+q8_0"):
        levels[key] = levels[key].model_copy(update=imatrix)
    assert mended("mimi-decoder.onnx") == ["--force q4_k_m"], "nobody has to make an importance matrix for a codec"


@pytest.mark.parametrize("qtype", MAX_GROUP_ERROR, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("kind", ["gaussian", "heavy tails", "one outlier", "tiny"])
def test_good_weights_are_within_their_allowance(qtype: GGMLQuantizationType, kind: str) -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((256, 1024), np.float32)
    if kind == "heavy tails":
        rows = generator.standard_t(2, rows.shape).astype(np.float32)
    elif kind == "one outlier":
        rows[:, ::100] *= 50
    elif kind == "tiny":
        rows *= np.float32(1e-7)
    used = _worst_group(dequantize(qtype, quantize(qtype, rows), 1024), rows, qtype)
    assert used <= 1
    floats = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    if kind == "gaussian" and qtype not in floats:
        assert used > 0.25  # not so wide that it holds anything


def test_bundles_with_an_imatrix_are_within_theirs(inputs: Inputs, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    names = {t.name: t.shape[-1] for t in gguf_tensors(TINY) if t.part == "backbone" and len(t.shape) == 2}
    sums = {name: generator.gamma(0.2, 40.0, columns).astype(np.float32) for name, columns in names.items()}
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, sums, dict.fromkeys(sums, 5.0))
    make_bundle(inputs, tmp_path / "out", [Q4_K_M, Q4_0], imatrix_backbone=path)
    assert _bad(_verify(tmp_path / "out", inputs)) == []


def test_the_fewer_bits_the_more_is_allowed() -> None:
    allowed = [level.max_logits_error for level in sorted(LEVELS.values(), key=lambda level: -level.bits)]
    assert allowed == sorted(allowed)
    assert 0 < allowed[0] < allowed[-1] < 1.3  # mixed up files give 1.4
