"""Text to tokens by llama.cpp, from the bundle, against the tokenizers library reading what was converted."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import Elsewhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle

from builders import Inputs
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.core.process import OwnProcess
from miso_gguf.models.flavors import TINY
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def path(bundle: Path) -> Path:
    return open_level(bundle, "f32").embeddings


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Iterator[Tokenizer]:
    with Tokenizer(path) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def oracle(inputs: Inputs) -> Oracle:
    return Oracle.from_file(str(inputs.tokenizer))


TEXTS = ["", " ", "[0] It's 12345 o'clock.", "Zürich: naïve", "你好。世界", "🇨🇭👩\u200d👩\u200d👧", "a\0b", "x" * 999]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_as_the_tokenizers_library(tokenizer: Tokenizer, oracle: Oracle, text: str) -> None:
    assert tokenizer.encode(text) == oracle.encode(text).ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_stays_within_the_vocabulary(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (1008, 1009)
    assert 0 <= min(ids) <= max(ids) < tokenizer.size == TINY.text_vocab
    assert 1008 not in ids[1:]


def test_lone_surrogates_are_replaced(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


def test_several_threads(tokenizer: Tokenizer) -> None:
    texts = [f"Sentence number {index}, and so on. " * 20 for index in range(4)]
    expected = [tokenizer.encode(text) for text in texts]
    found: dict[int, list[int]] = {}

    def work(index: int) -> None:
        for _ in range(20):
            found[index] = tokenizer.encode(texts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == expected


def test_after_closing_it_says_so(path: Path) -> None:
    tokenizer = Tokenizer(path)
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(MisoError, match="this model is closed: load it again"):
        tokenizer.encode("Hello.")


def test_closing_waits_for_a_text_that_is_being_split(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(path)
    expected = tokenizer.encode("Hello.")
    begun, go_on, found = threading.Event(), threading.Event(), []
    split = tokenizer._split

    def slow(text: str) -> list[int]:
        begun.set()
        assert go_on.wait(10)
        return split(text)

    monkeypatch.setattr(tokenizer, "_split", slow)
    speaking = threading.Thread(target=lambda: found.append(tokenizer.encode("Hello.")))
    speaking.start()
    assert begun.wait(10)
    closing = threading.Thread(target=tokenizer.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go_on.set()
    speaking.join()
    closing.join()
    assert found == [expected]


def test_a_signals_handler_may_close_it_while_its_own_thread_splits(path: Path) -> None:
    tokenizer, split = Tokenizer(path), Tokenizer._split

    def interrupted(text: str) -> list[int]:
        tokenizer.close()
        return split(tokenizer, text)

    tokenizer._split = interrupted  # type: ignore[method-assign]
    with pytest.raises(MisoError, match="closed"):
        Elsewhere(tokenizer.encode, "Hello.").result()


def test_a_forked_child_leaves_it_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock may be another thread's, which is not there to give it back."""
    with Tokenizer(path) as tokenizer, monkeypatch.context() as child:
        child.setattr(OwnProcess, "is_here", False)
        with tokenizer._lock:
            with pytest.raises(MisoError, match="load a model after the fork"):
                tokenizer.encode("Hello.")
            tokenizer.close()


def test_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "nothing.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(BundleError, match=r"llama\.cpp finds no tokenizer in it"):
        Tokenizer(path)
