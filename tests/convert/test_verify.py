"""`verify` finds what is wrong with a bundle, and only that."""

import json
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

from builders import MICRO, Inputs, make_bundle, make_inputs, write_imatrix
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.verify import MAX_GROUP_ERROR, Finding, _worst_group, verify_bundle
from miso_gguf.core.errors import BundleError
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
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    make_bundle(inputs, directory, list(LEVELS.values()))
    make_bundle(inputs, directory, [Q4_0], decoder_level=Q8_0)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def _verify(directory: Path, inputs: Inputs | None = None) -> list[Finding]:
    manifest = read_manifest(directory)
    if inputs is None:
        return verify_bundle(directory, manifest, None, 2, _quiet)
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        return verify_bundle(directory, manifest, checkpoint, 2, _quiet)


def _bad(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.subject) for finding in findings if not finding.ok]


def test_whole_bundle_is_well(whole: Path, inputs: Inputs) -> None:
    findings = _verify(whole, inputs)
    assert _bad(findings) == []
    checks = [finding.check for finding in findings]
    assert checks.count("manifest") == 1
    assert checks.count("hash") == len(read_manifest(whole).files)
    assert checks.count("tensors") == len(LEVELS) * 2 + 3
    assert checks.count("logits") == len(LEVELS) + 1


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


@pytest.mark.parametrize("edit", [_swap_two_rows, _zero_one_block, _nan])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("Miso-Tiny-backbone-F32.gguf", "blk.1.attn_norm.weight"),
        ("Miso-Tiny-backbone-F16.gguf", "blk.2.attn_k.weight"),
        ("Miso-Tiny-backbone-Q4_K_M.gguf", "blk.3.ffn_down.weight"),
        ("Miso-Tiny-decoder-Q4_0.gguf", "blk.1.ffn_up.weight"),
        ("Miso-Tiny-decoder-Q8_0.gguf", "token_embd.weight"),
        ("Miso-Tiny-embeddings-Q8_0.gguf", "text_embd.weight"),
    ],
)
def test_tensor_that_is_not_its_source(
    copy: Path, inputs: Inputs, name: str, tensor: str, edit: Callable[[np.ndarray], None]
) -> None:
    _forge(copy, name, _edit(tensor, edit))
    findings = _verify(copy, inputs)
    assert ("tensors", name) in _bad(findings)
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
def test_gguf_that_is_none(copy: Path, inputs: Inputs, content: bytes) -> None:
    """It ends at once: the alarm would end the process."""
    _forge(copy, "Miso-Tiny-backbone-F16.gguf", lambda path: path.write_bytes(content))
    signal.alarm(30)
    started = time.process_time()
    with pytest.raises(BundleError, match=r"backbone-F16.gguf: not a whole GGUF file\. Fetch or convert .*\.$"):
        _verify(copy, inputs)
    assert time.process_time() - started < 5
    signal.alarm(0)


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
    if kind == "gaussian" and qtype not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        assert used > 0.25  # not so wide that it holds anything


def test_bundles_with_an_imatrix_are_within_theirs(inputs: Inputs, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    names = {t.name: t.shape[-1] for t in gguf_tensors(TINY) if t.part == "backbone" and len(t.shape) == 2}
    sums = {name: generator.gamma(0.2, 40.0, columns).astype(np.float32) for name, columns in names.items()}
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, sums, dict.fromkeys(sums, 5.0))
    make_bundle(inputs, tmp_path / "out", [Q4_K_M, Q4_0], imatrix_backbone=path)
    assert _bad(_verify(tmp_path / "out", inputs)) == []


def test_the_coarser_the_more_is_allowed() -> None:
    allowed = [level.max_logits_error for level in LEVELS.values()]
    assert allowed == sorted(allowed)
    assert 0 < allowed[0] < allowed[-1] < 1  # mixed up files give 1.4
