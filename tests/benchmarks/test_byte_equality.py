"""The count of equal tensors: it sees what is different, and what one side lacks."""

from pathlib import Path

import byte_equality
import pytest
from byte_equality import PLAIN, WEIGHED, Count

from builders import MICRO, tensor_bytes
from miso_gguf.models.levels import Q8_0, parse_level
from miso_gguf.models.tensors import gguf_tensors

TENSORS = sum(tensor.part != "embeddings" for tensor in gguf_tensors(MICRO))


def test_all_are_compared_and_a_byte_that_differs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(path: Path) -> dict[str, tuple[str, bytes]]:
        found = tensor_bytes(path)
        if path.name == "Micro-decoder-Q8_0.gguf" and path.parent.name == PLAIN:
            kind, data = found["output.weight"]
            found["output.weight"] = kind, bytes([data[0] ^ 1]) + data[1:]
        return found

    monkeypatch.setattr(byte_equality, "tensor_bytes", damaged)
    counts = byte_equality.count([MICRO], [Q8_0, parse_level("iq3_xxs")], tmp_path)
    assert {key: (one.compared, one.equal) for key, one in counts.items()} == {
        ("q8_0", PLAIN): (TENSORS, TENSORS - 1),
        ("q8_0", WEIGHED): (TENSORS, TENSORS),
        ("iq3_xxs", WEIGHED): (TENSORS, TENSORS),
    }
    assert counts["q8_0", PLAIN].different == ["Micro, decoder, q8_0: output.weight"]
    result = byte_equality.as_json(counts)
    assert (result["compared"], result["equal"]) == (3 * TENSORS, 3 * TENSORS - 1)
    last = byte_equality.markdown(counts).splitlines()[-1]
    assert last.startswith(f"| IQ3_XXS | needs one |  | {TENSORS} | {TENSORS} | ")


def test_types_and_missing_tensors_count() -> None:
    count = Count()
    count.add("x", {"a": ("Q8_0", b"1"), "b": ("F32", b"2")}, {"a": ("Q4_0", b"1"), "c": ("F32", b"2")})
    assert (count.compared, count.equal) == (3, 0)
    assert count.different == ["x: a", "x: b", "x: c"]
