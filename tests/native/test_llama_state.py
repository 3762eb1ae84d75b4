"""What a sequence holds, taken out and put back: not a bit is another, and what is not taken leaves nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from builders import COMMON, MICRO, Built
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.core.process import OwnProcess
from miso_gguf.native.llama import LlamaModel, LlamaOptions, build_text, load_library

Floats = NDArray[np.float32]

WIDTH, CONTEXT, VOICE = 64, 48, 20
MOST = 1 << 20


@pytest.fixture(scope="module")
def path(built: Built) -> Path:
    return built.bundle(COMMON, MICRO) / "Micro-backbone-F32.gguf"


def opened(path: Path, sequences: int = 3, **options: Any) -> LlamaModel:
    return LlamaModel(path, LlamaOptions(threads=1, sequences=sequences, **options), context=CONTEXT)


@pytest.fixture
def model(path: Path) -> Iterator[LlamaModel]:
    with opened(path, exact=True) as model:
        yield model


def rows(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def decode(model: LlamaModel, embedded: Floats, sequence: int, start: int = 0) -> list[Floats]:
    count = len(embedded)
    return list(model.decode(embedded, [sequence] * count, range(start, start + count), [True] * count))


def taken(model: LlamaModel, sequence: int) -> bytes:
    state = model.state(sequence, MOST)
    assert state is not None
    return state


def equal(found: list[Floats], expected: list[Floats]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


KINDS: dict[str, dict[str, Any]] = {"exact": {"exact": True}, "f16": {}, "q8_0": {"kv_type": "q8_0"}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [1, 3])
def test_what_is_restored_goes_on_with_the_same_bits(path: Path, kind: str, sequences: int) -> None:
    """In each sequence, whatever was there before, and in another process's model; its neighbours hear nothing."""
    with opened(path, sequences, **KINDS[kind]) as model:
        decode(model, rows(VOICE), 0)
        state = taken(model, 0)
        computed = [decode(model, rows(7, 1), 0, VOICE), decode(model, rows(1, 2), 0, VOICE + 7)]
        for sequence in range(sequences):
            model.forget(sequence)
            decode(model, rows(CONTEXT, 3), sequence)
            model.forget(sequence, 31)
    with opened(path, sequences, **KINDS[kind]) as model:
        for sequence in range(sequences):
            decode(model, rows(30, 4 + sequence), sequence)
        for sequence in reversed(range(sequences)):
            assert model.restore(sequence, state, VOICE)
            again = taken(model, sequence)
            assert len(again) == len(state)
            equal(decode(model, rows(7, 1), sequence, VOICE), computed[0])
            equal(decode(model, rows(1, 2), sequence, VOICE + 7), computed[1])
        if sequences > 1:
            neighbour = decode(model, rows(1, 9), 0, VOICE + 8)
            assert model.restore(1, state, VOICE)
            model.forget(0, VOICE + 8)
            equal(decode(model, rows(1, 9), 0, VOICE + 8), neighbour)


def test_part_of_what_is_restored_can_be_kept(model: LlamaModel) -> None:
    decode(model, rows(8), 0)
    expected = decode(model, rows(4, 1), 0, 8)
    model.forget(0)
    decode(model, rows(8), 0)
    decode(model, rows(5, 2), 0, 8)
    assert model.restore(1, taken(model, 0), 13)
    model.forget(1, 8)
    equal(decode(model, rows(4, 1), 1, 8), expected)


def test_a_copy_that_waits_is_not_taken_and_does_no_harm(model: LlamaModel) -> None:
    """llama.cpp copies the numbers as it next decodes: until then they are not there, and later they would come."""
    decode(model, rows(VOICE), 0)
    state = taken(model, 0)
    expected = decode(model, rows(3, 1), 0, VOICE)
    decode(model, rows(VOICE, 5), 2)
    other = decode(model, rows(3, 6), 2, VOICE)
    model.forget(2, VOICE)
    model.copy(2, 1)
    assert model.state(0, MOST) is model.state(1, MOST) is None
    assert model.restore(1, state, VOICE)
    assert len(taken(model, 1)) == len(state)
    equal(decode(model, rows(3, 1), 1, VOICE), expected)
    model.copy(2, 0)
    assert model.restore(2, state, VOICE)  # from where a copy is still to be made
    equal(decode(model, rows(3, 1), 2, VOICE), expected)
    equal(decode(model, rows(3, 6), 0, VOICE), other)


def test_what_is_larger_is_not_copied(model: LlamaModel) -> None:
    decode(model, rows(VOICE), 0)
    state = taken(model, 0)
    assert model.state(0, len(state)) == state
    assert model.state(0, len(state) - 1) is None


def test_what_llama_cpp_does_not_take_leaves_nothing(path: Path, model: LlamaModel) -> None:
    decode(model, rows(VOICE), 0)
    state = taken(model, 0)
    expected = decode(model, rows(3, 1), 0, VOICE)
    with opened(path, 1, exact=True) as alone:
        decode(alone, rows(VOICE), 0)
        foreign = taken(alone, 0)
    for wrong in (b"", state[:11], state[:100], state[:-1], bytes(len(state)), foreign):
        decode(model, rows(5), 1)
        assert not model.restore(1, wrong, VOICE)
        decode(model, rows(2), 1)  # from position 0: it is empty
        model.forget(1)
    assert not model.restore(1, state, VOICE - 1)
    assert model.restore(1, state, VOICE)
    equal(decode(model, rows(3, 1), 1, VOICE), expected)


def test_llama_cpp_that_copies_something_else(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_library(), "llama_state_seq_get_data", lambda *_: 0)
    with pytest.raises(BundleError, match="failed to copy the state of sequence 2"):
        model.state(2, MOST)


CALLS: dict[str, Callable[[LlamaModel, int], object]] = {
    "state": lambda model, sequence: model.state(sequence, MOST),
    "restore": lambda model, sequence: model.restore(sequence, b"", 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_refused_before_llama_cpp_sees_it(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = opened(path)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="sequences must be 0 to 2"):
            CALLS[name](model, wrong)
    with monkeypatch.context() as child:
        child.setattr(OwnProcess, "is_here", False)
        with pytest.raises(MisoError, match="load a model after the fork"):
            CALLS[name](model, 0)
    model.close()
    with pytest.raises(MisoError, match="this model is closed: load it again"):
        CALLS[name](model, 0)


def test_the_build_is_told() -> None:
    assert build_text().startswith("llama-cpp-python 0.3.")
    assert "CPU" in build_text()
