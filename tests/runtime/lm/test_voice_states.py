"""Which states of voices are kept: by chain, as many as have room, those used last."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.voice_directory import VoiceDirectory
from miso_gguf.runtime.lm.voice_states import Held, KeptState, VoiceStates, in_common, leading_voices


def voice(number: int) -> Block:
    return Block(np.full((3, 9), number, np.int64), is_voice=True)


A, B, C = map(voice, range(3))
TEXT = Block(np.full((2, 9), 100, np.int64))


def chain(*blocks: Block) -> tuple[Held, ...]:
    return tuple(Held(block.key, len(block)) for block in blocks)


def test_what_a_prompt_begins_with() -> None:
    assert leading_voices([A, B, TEXT, C]) == chain(A, B)
    assert leading_voices([TEXT, A]) == leading_voices([]) == ()
    assert Block(A.rows, is_voice=False).key == A.key
    assert [in_common(chain(A, B), blocks) for blocks in ([A, B, TEXT], [A, B], [B, A, TEXT], [A, TEXT], [A], [])] == [
        2, 1, 0, 1, 0, 0,
    ]  # fmt: skip


def test_a_state_is_of_its_chain() -> None:
    states = VoiceStates(100)
    states.keep(chain(B), b"b")
    states.keep(chain(A, B), b"ab")
    assert states.holds(chain(A, B))
    assert not states.holds(chain(A))
    assert not states.holds(chain(B, A))
    assert states.best([A, B, TEXT], 0) == KeptState(chain(A, B), b"ab")
    assert states.best([A, C, TEXT], 0) == KeptState(chain(A, B), b"ab")
    assert states.best([B, TEXT], 0) == KeptState(chain(B), b"b")
    assert states.best([A, B, TEXT], 1) == KeptState(chain(A, B), b"ab")
    assert states.best([A, B, TEXT], 2) is None
    assert states.best([C, TEXT], 0) is None
    assert states.best([B], 0) is None


def test_who_was_used_last_stays() -> None:
    states = VoiceStates(10)
    states.keep(chain(A), b"aaaa")
    states.keep(chain(B), b"bbbb")
    assert states.holds(chain(A))
    states.keep(chain(C), b"cccc")
    assert [states.holds(chain(block)) for block in (A, B, C)] == [True, False, True]
    assert states.best([A, TEXT], 0)
    states.keep(chain(B), b"bbb")
    assert [states.holds(chain(block)) for block in (A, B, C)] == [True, True, False]
    states.keep(chain(C), b"c" * 11)
    assert not states.holds(chain(C))
    assert states.size_bytes == 7
    states.drop(KeptState(chain(A), b"aaaa"))
    states.drop(KeptState(chain(A), b"aaaa"))
    assert not states.holds(chain(A))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30))), st.integers(0, 40))
def test_never_more_than_there_may_be(kept: list[tuple[int, int]], most: int) -> None:
    states = VoiceStates(most)
    for number, size in kept:
        states.keep(chain(voice(number)), bytes(size))
        assert states.size_bytes <= most
        assert states.holds(chain(voice(number))) or size > most


def test_the_directory_is_asked_for_voices_only(tmp_path: Path) -> None:
    asked: list[int] = []

    class Directory(VoiceDirectory):
        def load(self, keys):  # type: ignore[no-untyped-def]
            asked.append(len(keys))
            return super().load(keys)

    with VoiceStates(100, Directory(tmp_path / "voices", b"")) as states:
        states.keep(chain(A, B), b"ab")
        assert states.best([TEXT, TEXT], 0) is None
        assert states.best([A, B, TEXT], 0)
        assert states.best([A, B, C, TEXT], 3) is None
        assert asked == []
        assert states.best([A, B, C, TEXT], 0) == KeptState(chain(A, B), b"ab")
        assert asked == [3]
    with VoiceStates(100, Directory(tmp_path / "voices", b"")) as states:
        asked.clear()
        assert states.best([A, B, C, TEXT], 1) == KeptState(chain(A, B), b"ab")
        assert asked == [3, 2]
        assert states.holds(chain(A, B))
        assert states.best([A, B, TEXT], 1)
        assert asked == [3, 2], "it is in memory now"


def test_a_state_without_room_in_memory_is_written_once(tmp_path: Path) -> None:
    states = VoiceStates(0, VoiceDirectory(tmp_path, b""))
    assert states.most_bytes == 1 << 30
    assert not states.holds(chain(A))
    states.keep(chain(A), b"state")
    states.close()
    assert states.holds(chain(A))
    assert states.size_bytes == 0
    assert states.best([A, TEXT], 0) == KeptState(chain(A), b"state")
    states.drop(KeptState(chain(A), b"state"))
    assert states.best([A, TEXT], 0) is None
    assert not states.holds(chain(A))
