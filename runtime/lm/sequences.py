"""Lending the backbone's sequences to utterances, across threads."""

import threading
from collections.abc import Sequence
from functools import partial

from ...core.errors import MisoError
from .backbone import Backbone
from .prompt import Block


class SequencePool:
    """Lends the backbone's sequences to utterances, preferring one that holds the beginning of the prompt already."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._free = list(range(backbone.sequences))
        self._owners: dict[int, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def take(self, prompts: Sequence[Sequence[Block]]) -> list[int]:
        """A sequence for each of `prompts`, in order. Waits until other threads have given back enough of them.

        Raises `MisoError` if there can never be enough: too few altogether, or this thread holds those missing.
        """
        count, me = len(prompts), threading.get_ident()
        with self._changed:
            mine = sum(owner == me for owner in self._owners.values())
            if count + mine > self._backbone.sequences:
                raise MisoError(
                    f"{count} more utterances at the same time need {count + mine} sequences, there are "
                    f"{self._backbone.sequences}: finish or close the streams that are open, or load with sequences="
                    f"{count + mine}"
                )
            self._changed.wait_for(lambda: self._closed or len(self._free) >= count)
            if self._closed:
                raise MisoError("this model is closed")
            taken = []
            for blocks in prompts:
                best = max(self._free, key=partial(self._backbone.shared, blocks=blocks))
                self._free.remove(best)
                self._owners[best] = me
                taken.append(best)
            return taken

    def give_back(self, sequences: Sequence[int]) -> None:
        """Let others have them; what they hold stays until then."""
        with self._changed:
            for sequence in sequences:
                del self._owners[sequence]
                self._free.append(sequence)
            self._changed.notify_all()

    def close(self) -> None:
        """Lend no more. Raises `MisoError` if some are still lent."""
        with self._changed:
            if self._owners:
                raise MisoError("the model is still speaking: finish or close its streams before it")
            self._closed = True
            self._changed.notify_all()
