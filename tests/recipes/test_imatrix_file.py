"""The files: what gguf-py and llama.cpp read of them, and what is refused as none of ours."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from builders import llama_quantize, tensor_bytes, write_imatrix
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.sources import resolve
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.convert.imatrix import HALVES, imatrix_name
from miso_gguf.core.errors import MisoError
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import Q4_0, Q4_K_M
from miso_gguf.models.tensors import gguf_tensors
from miso_gguf.recipes.collect import Collected, collect
from miso_gguf.recipes.imatrix_file import ImatrixFile, read_imatrix_file
from miso_gguf.recipes.plan import Collection

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def collected(plan: Callable[..., Collection], tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return collect(plan(tmp_path_factory.mktemp("im"), prompts=2))


def by_gguf_py(path: Path) -> dict[str, Floats]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("part", HALVES)
def test_gguf_py_reads_the_format(collected: Collected, part: str) -> None:
    file = next(file for name, file in collected.files.items() if name == part)
    reader = GGUFReader(collected.paths[file.part])
    fields = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    chunk = TINY.codebooks if part == "decoder" else 1
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == list(file.datasets)
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (file.chunks, chunk)
    assert (fields["miso.part"], fields["miso.source.fingerprint"]) == (part, file.fingerprint)
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    wanted = {t.name: t.shape[-1] for t in gguf_tensors(TINY) if t.part == part and len(t.shape) == 2}
    del wanted["token_embd.weight"]
    per_matrix = (".in_sum2", ".counts", *((".step_in_sum2", ".step_counts") if part == "decoder" else ()))
    assert found.keys() == {name + suffix for name in wanted for suffix in per_matrix}
    for name, columns in wanted.items():
        assert found[f"{name}.in_sum2"].shape == (1, columns)
        assert found[f"{name}.counts"].shape == (1, 1)
        if part == "backbone":
            assert found[f"{name}.counts"].item() == file.chunks
            continue
        steps = found[f"{name}.step_counts"]
        heard = [file.chunks] * TINY.codebooks
        assert steps.reshape(-1).tolist() == ([0, *heard[1:]] if name == "output.weight" else heard)
        assert steps.sum() == found[f"{name}.counts"].item()
        np.testing.assert_allclose(found[f"{name}.step_in_sum2"].sum(0), found[f"{name}.in_sum2"][0], rtol=1e-6)


def test_what_is_read_is_what_was_written(collected: Collected, tmp_path: Path) -> None:
    for part, path in collected.paths.items():
        read_imatrix_file(path).write(tmp_path / "again.gguf")
        assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
        assert read_imatrix_file(path).clips == collected.files[part].clips == 2


def test_llama_cpp_quantises_by_it_to_our_bytes(speaking: Path, collected: Collected, tmp_path: Path) -> None:
    """The oracle gets what gguf-py reads, divided as llama.cpp's own loader does."""
    paths = {f"imatrix_{part}": path for part, path in collected.paths.items()}
    with resolve("tiny") as found, open_checkpoint(found.checkpoint) as checkpoint:
        request = Request([Q4_0, Q4_K_M], threads=1, **paths)  # type: ignore[arg-type]
        convert(plan_conversion(tmp_path, checkpoint, found.mimi, found.tokenizer, request))
    for part, path in collected.paths.items():
        (plain,) = speaking.glob(f"*-{part}-F32.gguf")
        read = by_gguf_py(path)
        imatrix = {
            name.removesuffix(".in_sum2"): values[0] / read[name.replace(".in_sum2", ".counts")].item()
            for name, values in read.items()
            if name.endswith(".in_sum2")
        }
        for level in (Q4_0, Q4_K_M):
            (ours,) = tmp_path.glob(f"*-{part}-{level.label}.gguf")
            theirs = llama_quantize(plain, tmp_path / "oracle.gguf", level, imatrix)
            assert tensor_bytes(ours) == theirs
            assert theirs != llama_quantize(plain, tmp_path / "plain.gguf", level), "it makes no difference"


def test_files_of_others_are_refused(collected: Collected, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.gguf: no such file"):
        read_imatrix_file(tmp_path / "nothing.gguf")
    write_imatrix(tmp_path / "llama.gguf", {"blk.0.attn_q.weight": np.ones(4, np.float32)}, {"blk.0.attn_q.weight": 1})
    with pytest.raises(MisoError, match=r"llama\.gguf: is no importance matrix that miso-recipe wrote"):
        read_imatrix_file(tmp_path / "llama.gguf")
    content = collected.paths["decoder"].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(MisoError, match=r"cut\.gguf: is damaged"):
        read_imatrix_file(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("no GGUF")
    with pytest.raises(MisoError, match=r"text\.gguf: is damaged, or no importance matrix"):
        read_imatrix_file(tmp_path / "text.gguf")


def test_half_an_entry_is_damage(collected: Collected, tmp_path: Path) -> None:
    path = tmp_path / imatrix_name("decoder")
    content = collected.paths["decoder"].read_bytes()
    for name in (b"counts", b"step_counts", b"step_in_sum2"):
        whole = b"blk.0.attn_q.weight." + name
        path.write_bytes(content.replace(whole, whole[:-1] + b"z"))
        with pytest.raises(MisoError, match="has no sums with one count: it is damaged"):
            read_imatrix_file(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_what_no_sum_of_squares_is_is_damage(collected: Collected, tmp_path: Path, value: float) -> None:
    file = collected.files["decoder"]
    name, entry = "blk.0.attn_q.weight", file.entries["blk.0.attn_q.weight"]
    assert entry.step_sums is not None
    for fault in ("sums", "count", "step_sums", "step_counts"):
        damaged: Any = value if fault == "count" else np.full_like(getattr(entry, fault), value)
        entries = {**file.entries, name: replace(entry, **{fault: damaged})}
        replace(file, entries=entries).write(tmp_path / "damaged.gguf")
        with pytest.raises(MisoError, match=r"blk\.0\.attn_q\.weight has sums that are NaN, infinite or negative"):
            read_imatrix_file(tmp_path / "damaged.gguf")


def test_nothing_is_left_of_what_could_not_be_written(collected: Collected, tmp_path: Path) -> None:
    file: ImatrixFile = collected.files["backbone"]
    with pytest.raises(OSError, match="nowhere"):
        file.write(tmp_path / "nowhere" / "file.gguf")
    assert not (tmp_path / "nowhere").exists()
