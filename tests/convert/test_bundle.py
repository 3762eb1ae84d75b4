"""Writing a bundle: deterministic, resumable, and never half-written under a finished name."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builders import BLOCKS, COMMON, MICRO, Inputs, make_bundle, make_inputs, write_random_imatrices
from miso_gguf.convert import bundle, quantize, sink
from miso_gguf.convert.sink import Sink
from miso_gguf.core.errors import BundleError, CheckpointError
from miso_gguf.core.files import PARTIAL_SUFFIX
from miso_gguf.core.interrupts import interruptible
from miso_gguf.models.levels import F32, FP16, LEVELS, Q4_0, Q4_K_M, Q8_0
from miso_gguf.models.manifest import MANIFEST_NAME, read_manifest


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), MICRO)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_bytes_do_not_depend_on_threads_or_order(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path / "a", [Q4_K_M, Q8_0, FP16], threads=1)
    make_bundle(inputs, tmp_path / "b", [Q4_K_M, Q8_0, FP16], threads=3)
    make_bundle(inputs, tmp_path / "c", [Q8_0])
    make_bundle(inputs, tmp_path / "c", [FP16, Q4_K_M])
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b") == _contents(tmp_path / "c")


def test_layout_and_manifest(inputs: Inputs, tmp_path: Path) -> None:
    manifest = make_bundle(inputs, tmp_path, [Q4_K_M, FP16])
    names = {
        *(f"Micro-{part}-{label}.gguf" for part in ("backbone", "decoder") for label in ("Q4_K_M", "F16")),
        "Micro-embeddings-Q8_0.gguf",
        "Micro-embeddings-F16.gguf",
        "mimi-decoder.onnx",
        "mimi-encoder.onnx",
    }
    assert {path.name for path in tmp_path.iterdir()} == {*names, MANIFEST_NAME}
    assert set(manifest.files) == names
    assert manifest == read_manifest(tmp_path)
    assert manifest.model_spec == MICRO
    assert manifest.levels["q4_k_m"].embeddings == "Micro-embeddings-Q8_0.gguf"
    assert {source.role for source in manifest.sources} == {"checkpoint", "tokenizer", "mimi"}
    assert manifest.sources_of("checkpoint")[0].sha256 == hashlib.sha256(inputs.checkpoint.read_bytes()).hexdigest()


def test_decoder_level_is_a_level_of_its_own(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path, [Q4_K_M])
    manifest = make_bundle(inputs, tmp_path, [Q4_K_M], decoder_level=Q8_0)
    assert set(manifest.levels) == {"q4_k_m", "q4_k_m+q8_0"}
    assert manifest.levels["q4_k_m+q8_0"].backbone == manifest.levels["q4_k_m"].backbone
    assert manifest.levels["q4_k_m+q8_0"].decoder == "Micro-decoder-Q8_0.gguf"


def test_finished_level_is_not_redone(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(inputs, tmp_path, [Q4_K_M])
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != MANIFEST_NAME}
    make_bundle(inputs, tmp_path, [Q4_K_M, Q4_0])
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    monkeypatch.setattr(bundle, "run_pass", lambda *_args, **_options: pytest.fail("nothing was left to do"))
    make_bundle(inputs, tmp_path, [Q4_K_M, Q4_0])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_missing_or_cut_file_is_written_again(inputs: Inputs, tmp_path: Path, damage: object) -> None:
    make_bundle(inputs, tmp_path, [Q8_0])
    whole = _contents(tmp_path)
    assert callable(damage)
    damage(tmp_path / "Micro-decoder-Q8_0.gguf")
    damage(tmp_path / "mimi-encoder.onnx")
    make_bundle(inputs, tmp_path, [Q8_0])
    assert _contents(tmp_path) == whole


def test_leftovers_are_discarded(inputs: Inputs, tmp_path: Path) -> None:
    leftover = tmp_path / f"Micro-backbone-Q8_0.gguf{PARTIAL_SUFFIX}"
    leftover.write_bytes(b"half")
    make_bundle(inputs, tmp_path, [F32])
    assert not leftover.exists()


def test_other_checkpoint_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path / "out", [Q8_0])
    other = make_inputs(tmp_path / "other", MICRO)
    data = bytearray(other.checkpoint.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()
    other.checkpoint.write_bytes(data)
    with pytest.raises(BundleError, match=r"holds a bundle of another checkpoint .*choose another --out"):
        make_bundle(other, tmp_path / "out", [Q4_0])


def test_checkpoint_that_differs_only_inside_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    """The fingerprint reads first and last rows; the file's sha256, known after the pass, catches the rest."""
    make_bundle(inputs, tmp_path / "out", [Q8_0])
    before = _contents(tmp_path / "out")
    other = make_inputs(tmp_path / "other", MICRO)
    data = bytearray(other.checkpoint.read_bytes())
    middle = len(data) - 4 * MICRO.backbone.embed_dim * 500  # inside text_embeddings, the last tensor
    data[middle : middle + 4] = np.float32(0.5).tobytes()
    other.checkpoint.write_bytes(data)
    with pytest.raises(BundleError, match="was made from another checkpoint file"):
        make_bundle(other, tmp_path / "out", [Q4_0])
    assert _contents(tmp_path / "out") == before


def test_renamed_checkpoint_is_the_same(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path / "out", [Q8_0])
    other = make_inputs(tmp_path / "other", MICRO)
    renamed = replace(other, checkpoint=other.checkpoint.rename(tmp_path / "other" / "downloaded.safetensors"))
    assert set(make_bundle(renamed, tmp_path / "out", [Q4_0]).levels) == {"q8_0", "q4_0"}


def test_other_spec_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path / "out", [Q8_0])
    config = tmp_path / "spec.json"
    config.write_text(json.dumps({**asdict(MICRO), "rope_base": 10_000.0, "prompt": "{speaker}: {text}"}))
    with pytest.raises(BundleError, match=r"another model spec \(rope_base, prompt\)"):
        make_bundle(replace(inputs, config=config), tmp_path / "out", [Q4_0])


def test_other_tokenizer_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    make_bundle(inputs, tmp_path / "out", [Q8_0])
    other = make_inputs(tmp_path / "other", MICRO)
    other.tokenizer.write_text(other.tokenizer.read_text() + "\n")
    with pytest.raises(BundleError, match="another tokenizer file"):
        make_bundle(other, tmp_path / "out", [Q4_0])


class _FullDisk(Sink):
    """A disk that runs full after some bytes."""

    room = 20_000

    def write(self, data: bytes | memoryview) -> None:
        type(self).room -= memoryview(data).nbytes
        if type(self).room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(data)


def test_full_disk_leaves_the_bundle_as_it_was(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(inputs, tmp_path, [Q8_0])
    before = _contents(tmp_path)
    monkeypatch.setattr(bundle, "Sink", _FullDisk)
    with pytest.raises(BundleError, match=r"the disk is full: the conversion needs \d.* (MB|GB).*run the same command"):
        make_bundle(inputs, tmp_path, [Q4_0])
    assert _contents(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mounted], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_small_disk_is_refused_up_front(inputs: Inputs, small_disk: Path) -> None:
    with pytest.raises(BundleError, match=r"the conversion needs \d+\.\d\d MB, \d\.\d\d MB are free"):
        make_bundle(inputs, small_disk / "out", [F32])
    assert list((small_disk / "out").iterdir()) == []


def test_disk_that_fills_up_meanwhile(inputs: Inputs, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_check_space", lambda _conversion: None)
    with pytest.raises(BundleError, match="the disk is full"):
        make_bundle(inputs, small_disk / "out", [F32])
    assert list((small_disk / "out").iterdir()) == []


def test_directory_that_cannot_be_made(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot be written .*choose another --out"):
        make_bundle(inputs, tmp_path / "file" / "out", [Q8_0])


def test_two_conversions_at_once(inputs: Inputs, tmp_path: Path) -> None:
    with bundle._locked(tmp_path), pytest.raises(BundleError, match="another miso-convert is writing into it"):
        make_bundle(inputs, tmp_path, [Q8_0])
    make_bundle(inputs, tmp_path, [Q8_0])


def test_file_that_somebody_else_replaced_is_not_committed(tmp_path: Path) -> None:
    mine, theirs = Sink(tmp_path, "file"), tmp_path / f"file{PARTIAL_SUFFIX}"
    mine.write(b"mine")
    (tmp_path / "other").write_bytes(b"theirs")
    (tmp_path / "other").replace(theirs)
    mine.finish()
    with pytest.raises(BundleError, match="replaced by another program"):
        mine.commit()
    assert not (tmp_path / "file").exists()


def test_write_that_did_not_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reports a lost write once; a later sync of the same file succeeds."""
    failures = [OSError(errno.EIO, "Input/output error")]

    def fsync(_descriptor: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(sink, "_FLUSH_BYTES", 4)
    monkeypatch.setattr(os, "fsync", fsync)
    lost = Sink(tmp_path, "file")
    with pytest.raises(OSError, match="Input/output error"):  # noqa: PT012
        for _ in range(100):
            lost.write(b"12345")
            time.sleep(0.001)
        lost.finish()
    lost.discard()


def test_asked_to_end_as_a_file_is_begun(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, and nobody knows yet that it is to be removed."""
    begin, write = Sink.__init__, Sink.write
    main, asked = threading.main_thread(), False

    def begun(self: Sink, directory: Path, name: str) -> None:
        nonlocal asked
        begin(self, directory, name)
        if threading.current_thread() is main and not asked:
            asked = True
            signal.raise_signal(signal.SIGTERM)

    def written(self: Sink, data: bytes | memoryview) -> None:
        if threading.current_thread() is main:
            time.sleep(10)  # which ends it
        write(self, data)

    monkeypatch.setattr(Sink, "__init__", begun)
    monkeypatch.setattr(Sink, "write", written)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        make_bundle(inputs, tmp_path, [Q4_K_M, FP16])
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def interrupted(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    original = quantize._write
    monkeypatch.setattr(quantize, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_bundle(inputs, tmp_path, [Q8_0])
    assert list(tmp_path.iterdir()) == []


def test_error_in_a_worker_leaves_nothing(inputs: Inputs, tmp_path: Path) -> None:
    bad = make_inputs(tmp_path / "bad", MICRO)
    data = bytearray(bad.checkpoint.read_bytes())
    data[-400:-396] = np.float32(np.nan).tobytes()
    bad.checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensor text_embeddings\.weight holds 1 NaN or Inf"):
        make_bundle(bad, tmp_path / "out", [Q8_0])
    assert list((tmp_path / "out").iterdir()) == []
    make_bundle(bad, tmp_path / "out", COMMON, allow_nonfinite=True)


def test_nonfinite_weights_pass_every_quantiser_on_request(tmp_path: Path) -> None:
    bad = make_inputs(tmp_path / "bad", BLOCKS)
    weights = load_file(bad.checkpoint)
    weights["backbone.layers.1.mlp.w1.weight"][3, :2] = np.nan, np.inf
    save_file(weights, bad.checkpoint)
    levels = [level for level in LEVELS.values() if not level.needs_imatrix]
    with pytest.raises(CheckpointError, match=r"tensor backbone\S+ holds 2 NaN or Inf"):
        make_bundle(bad, tmp_path / "out", levels)
    assert len(make_bundle(bad, tmp_path / "out", levels, allow_nonfinite=True).levels) == len(levels)
    # There, ggml would end the process.
    matrices = write_random_imatrices(tmp_path / "imatrix", BLOCKS)
    for level in (level for level in LEVELS.values() if level.needs_imatrix):
        with pytest.raises(CheckpointError, match=r"tensor blk\S+ of the backbone: IQ3_X?X?S takes weights up to"):
            make_bundle(bad, tmp_path / level.key, [level], allow_nonfinite=True, **matrices)


def test_weight_beyond_f16_is_named(inputs: Inputs, tmp_path: Path) -> None:
    bad = make_inputs(tmp_path / "bad", MICRO)
    data = bytearray(bad.checkpoint.read_bytes())
    data[-4:] = np.float32(7e4).tobytes()
    bad.checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensor text_embd.weight of the embeddings does not fit F16: .* 70000"):
        make_bundle(bad, tmp_path / "out", [FP16])
    make_bundle(bad, tmp_path / "out", [Q8_0])


_KILLED = """
import sys
from pathlib import Path
import builders
from miso_gguf.convert import bundle, quantize, sink
from miso_gguf.models.levels import Q8_0
directory, out, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
calls = 0
def stopping(original, at):
    def call(*args):
        global calls
        calls += 1
        if calls == at:
            print("in the middle", flush=True)
            sys.stdin.read()
        return original(*args)
    return call
if point == "pass":
    quantize._write = stopping(quantize._write, 5)
elif point == "renaming":
    sink.Sink.commit = stopping(sink.Sink.commit, 3)
else:
    bundle.write_whole = stopping(bundle.write_whole, 1)
inputs = builders.Inputs(*(directory / name for name in sys.argv[4:]))
builders.make_bundle(inputs, out, [Q8_0])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("point", ["pass", "renaming", "manifest"])
def test_kill_then_again(inputs: Inputs, tmp_path: Path, point: str) -> None:
    names = [path.name for path in (inputs.checkpoint, inputs.mimi, inputs.tokenizer, inputs.config)]
    command = [sys.executable, "-c", _KILLED, str(inputs.checkpoint.parent), str(tmp_path / "out"), point, *names]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stdin.close()
    left = [path for path in (tmp_path / "out").iterdir() if path.name != bundle.LOCK_NAME]
    assert left
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    make_bundle(inputs, tmp_path / "clean", [Q8_0])
    whole = _contents(tmp_path / "clean")
    for path in left:
        assert path.name.endswith(PARTIAL_SUFFIX) or path.read_bytes() == whole[path.name]
    assert all(path.name.endswith(PARTIAL_SUFFIX) for path in left) == (point == "pass")
    make_bundle(inputs, tmp_path / "out", [Q8_0])
    assert _contents(tmp_path / "out") == whole
