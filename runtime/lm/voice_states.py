"""The KV states of voices: kept in memory beyond the sequences, and in a directory if there is one.

A state belongs to a chain: the leading blocks of a prompt that are voices, each computed after those before it. It is
bytes that llama.cpp wrote. It knows no model, and does not look into them.

An interrupt may come between any two lines: room is made before a state is kept, so that the bound holds at each.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from ...core.closing import Closing
from .prompt import Block
from .voice_directory import VoiceDirectory


class Held(NamedTuple):
    """A block that lies in a sequence's cache, or in a state."""

    key: bytes
    rows: int


class KeptState(NamedTuple):
    """What a sequence held that had read a chain and nothing else."""

    chain: tuple[Held, ...]
    state: bytes


def in_common(held: Sequence[Held], blocks: Sequence[Block]) -> int:
    """How many of `blocks` lie there already. The last one is always computed: its result is wanted."""
    pairs = zip(held, blocks[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].key == pair[1].key, pairs))


def leading_voices(blocks: Sequence[Block]) -> tuple[Held, ...]:
    """The chain that a prompt begins with; empty without a voice."""
    return tuple(Held(block.key, len(block)) for block in takewhile(lambda block: block.is_voice, blocks))


class VoiceStates(Closing):
    """The states that were used last, of so many bytes at most. One thread at a time."""

    def __init__(self, most_bytes: int = 0, directory: VoiceDirectory | None = None) -> None:
        """Keep `most_bytes` in memory, 0 for none, and what `directory` has room for on disk."""
        self._most_bytes, self._directory = most_bytes, directory
        self._kept: OrderedDict[tuple[Held, ...], bytes] = OrderedDict()
        """The one used last stands last."""

    @property
    def most_bytes(self) -> int:
        """Of one state: a larger one is not kept."""
        return max(self._most_bytes, 0 if self._directory is None else self._directory.most_bytes)

    @property
    def size_bytes(self) -> int:
        """Of all that is in memory."""
        return sum(map(len, self._kept.values()))

    def close(self) -> None:
        """Wait until what is being written is on disk."""
        if self._directory is not None:
            self._directory.close()

    def holds(self, chain: tuple[Held, ...]) -> bool:
        """Whether the state of this chain need not be taken. It counts as used."""
        if chain in self._kept:
            self._kept.move_to_end(chain)
            return True
        return self._directory is not None and self._directory.holds(_keys(chain))

    def keep(self, chain: tuple[Held, ...], state: bytes) -> None:
        """Keep it in memory and on disk, wherever it has room."""
        self._remember(chain, state)
        if self._directory is not None:
            self._directory.save(_keys(chain), state)

    def drop(self, kept: KeptState) -> None:
        """Forget one that llama.cpp did not take."""
        self._kept.pop(kept.chain, None)
        if self._directory is not None:
            self._directory.refuse(_keys(kept.chain))

    def best(self, blocks: Sequence[Block], more_than: int) -> KeptState | None:
        """The one that has the longest beginning of `blocks`, if it is of more than so many. It counts as used.

        The directory is asked only for a prompt that begins with more voices than lie anywhere else.
        """
        chain = max(self._kept, key=lambda chain: in_common(chain, blocks), default=())
        most = max(more_than, in_common(chain, blocks))
        if self._directory is not None:
            voices = leading_voices(blocks[:-1])
            for count in range(len(voices), most, -1):
                if (state := self._directory.load(_keys(voices[:count]))) is not None:
                    self._remember(voices[:count], state)
                    return KeptState(voices[:count], state)
        if most == more_than:
            return None
        self._kept.move_to_end(chain)
        return KeptState(chain, self._kept[chain])

    def _remember(self, chain: tuple[Held, ...], state: bytes) -> None:
        if len(state) > self._most_bytes:
            return
        self._kept.pop(chain, None)
        while self.size_bytes + len(state) > self._most_bytes:
            self._kept.popitem(last=False)
        self._kept[chain] = state


def _keys(chain: Sequence[Held]) -> list[bytes]:
    return [held.key for held in chain]
