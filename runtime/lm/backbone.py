"""The backbone: prompt rows and frames in, hidden state and codebook-0 logits out, for several sequences at once.

Prompts come as blocks. Each block is computed on its own, in chunks of a fixed size, so a block's KV cache is the same
whether it was computed just now or kept from an earlier prompt that began alike: keeping it changes no bit of the
result. What a sequence holds of its last prompt stays until the next one; the voices that it began with are kept
longer, in `VoiceStates`. It knows no sampling and no codec.

An interrupt may come between any two lines. So what is known of a sequence is never more than what it holds: it is
shortened before the cache is touched, and lengthened when the cache has the rows; and what lies behind the rows that
are known of is dropped before others follow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...core.closing import Closing
from ...core.errors import BundleError
from ...models.memory import GPU_PREFILL_ROWS
from ...models.spec import ModelSpec
from ...native.device import Device
from ...native.llama import LlamaModel, LlamaOptions
from ...native.products import ProductWatch
from .embeddings import Embeddings
from .passes import LONGEST_GAP, with_gaps_filled
from .prompt import Block
from .voice_states import Held, KeptState, VoiceStates, in_common, leading_voices

_CPU_PREFILL_ROWS = 64
"""Rows of a prefill computed at once. A CPU gains nothing from more, and Ctrl-C waits for a chunk to end."""


def default_prefill_rows(gpu: Device | None) -> int:
    """Most rows of a prompt computed at once, where nobody chose."""
    return _CPU_PREFILL_ROWS if gpu is None else GPU_PREFILL_ROWS


class Backbone(Closing):
    """An open backbone. A context manager. One thread at a time. After `close` everything raises `MisoError`."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        embeddings: Embeddings,
        options: LlamaOptions,
        *,
        gpu: Device | None = None,
        watch: ProductWatch | None = None,
        voices: VoiceStates | None = None,
        prefill_rows: int | None = None,
        longest_gap: int | None = None,
    ) -> None:
        """Open the backbone's GGUF `path`.

        Args:
            path: The file.
            spec: What it must be.
            embeddings: Of the same bundle.
            options: Where and how to compute.
            gpu: Where the layers on a GPU go; None is the CPU alone.
            watch: Who sees its products.
            voices: Where the states of voices are kept; by default nowhere.
            prefill_rows: Most rows of a prompt computed at once; by default 64 on a CPU, 128 on a GPU.
            longest_gap: See `with_gaps_filled`; by default 0 on a CPU.

        Raises:
            ValueError: If llama.cpp has no room for so many positions, whatever the memory.
            BundleError: If it is another model's, or llama.cpp does not accept it.
            MemoryError: If there is not enough memory for the context.
        """
        self._embeddings = embeddings
        self._voices = VoiceStates() if voices is None else voices
        self.prefill_rows = prefill_rows or default_prefill_rows(gpu)
        self._longest_gap = (0 if gpu is None else LONGEST_GAP) if longest_gap is None else longest_gap
        batch = self.prefill_rows
        self._model = LlamaModel(path, options, context=spec.max_positions, batch=batch, gpu=gpu, watch=watch)
        found, expected = (self._model.embed_dim, self._model.vocab), (spec.backbone.embed_dim, spec.audio_vocab)
        if found != expected:
            self._model.close()
            raise BundleError(
                f"{path}: width and vocabulary are {found}, expected {expected}: not {spec.name}'s backbone. "
                "Fetch or convert the bundle again."
            )
        self._held: list[list[Held]] = [[] for _ in range(options.sequences)]
        self._next: list[int] = [0] * options.sequences
        """Of each sequence the position of its next row: never before the end of the blocks that it holds, nor behind
        the end of its cache."""

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._model.close()

    @property
    def sequences(self) -> int:
        """How many utterances can be kept apart."""
        return self._model.sequences

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        """How many of `blocks` the sequence holds already. The last one is always computed: its result is wanted."""
        self._model.check()
        return in_common(self._held[sequence], blocks)

    def forget(self) -> None:
        """Hold nothing: the next prompts are computed from their first row, whatever they begin with."""
        self._held = [[] for _ in self._held]
        self._next = [0 for _ in self._next]

    def prefill_chunks(self, sequence: int, blocks: Sequence[Block]) -> Iterator[tuple[F32Array, F32Array] | None]:
        """Make `sequence` hold exactly `blocks`: each step computes at most `prefill_rows` rows of one block.

        Other sequences may step, and be prefilled, in between. Who takes no more steps leaves what is whole.

        Yields:
            None, and with the last chunk hidden state [1, D] and codebook-0 logits [1, V] of the last row.
        """
        voices = leading_voices(blocks)
        kept = self._keep(sequence, blocks)
        self._remember(sequence, voices)
        for number, block in enumerate(blocks[kept:], kept + 1):
            for begin in range(0, len(block), self.prefill_rows):
                rows = block.rows[begin : begin + self.prefill_rows]
                is_whole = begin + len(rows) == len(block)
                result = self._read(sequence, rows, [False] * (len(rows) - 1) + [is_whole])
                if is_whole:
                    self._held[sequence].append(Held(block.key, len(block)))
                    self._remember(sequence, voices)
                yield result if is_whole and number == len(blocks) else None

    def _keep(self, sequence: int, blocks: Sequence[Block]) -> int:
        """Have `sequence` hold the longest beginning of `blocks` that lies in any, and no more: how many blocks.

        The longest of all may be kept beside the sequences.
        """
        shared = [self.shared(other, blocks) for other in range(self.sequences)]
        donor = max(range(self.sequences), key=lambda other: (shared[other], other == sequence))
        if (kept := self._voices.best(blocks, shared[donor])) is not None:
            return self._restore(sequence, kept, in_common(kept.chain, blocks))
        held = self._held[donor][: shared[donor]]
        start = sum(block.rows for block in held)
        if donor == sequence:
            self._held[sequence] = held
        else:
            self._held[sequence] = []
            self._next[sequence] = 0
            self._model.copy(donor, sequence)
        self._next[sequence] = start
        self._held[sequence] = held
        return len(held)

    def _restore(self, sequence: int, kept: KeptState, count: int) -> int:
        """Have `sequence` hold the first `count` blocks of a state: how many it does, none if llama.cpp refuses it."""
        self._held[sequence] = []
        self._next[sequence] = 0
        if not self._model.restore(sequence, kept.state, sum(held.rows for held in kept.chain)):
            self._voices.drop(kept)
            return 0
        held = list(kept.chain[:count])
        self._next[sequence] = sum(block.rows for block in held)
        self._held[sequence] = held
        return count

    def _remember(self, sequence: int, voices: tuple[Held, ...]) -> None:
        """Keep the state of the voices that a prompt begins with, once `sequence` holds them and nothing else."""
        if not voices or tuple(self._held[sequence]) != voices or self._voices.holds(voices):
            return
        self._model.forget(sequence, self._next[sequence])
        state = self._model.state(sequence, self._voices.most_bytes)
        if state is not None:
            self._voices.keep(voices, state)

    def _read(self, sequence: int, rows: I64Array, wanted: Sequence[bool]) -> tuple[F32Array, F32Array]:
        """Compute the next rows of one sequence, at most a batch."""
        embedded = self._embeddings.embed(rows)
        count, position = len(rows), self._next[sequence]
        self._model.forget(sequence, position)
        result = self._model.decode(embedded, [sequence] * count, range(position, position + count), wanted)
        self._next[sequence] = position + count
        return result

    def step(self, sequences: Sequence[int], embedded: F32Array) -> tuple[F32Array, F32Array]:
        """One more row of each of `sequences`, which differ: `embedded` [B, D] -> hidden states [B, D], logits [B, V].

        In any order. The weights are read once for each run of neighbours: see `with_gaps_filled`.
        """
        if not 0 < len(set(sequences)) == len(sequences) == len(embedded):
            raise ValueError(f"a step has one row of each sequence, not {len(embedded)} of {list(sequences)}")
        order = sorted(range(len(sequences)), key=sequences.__getitem__)
        asked = {sequences[row]: embedded[row] for row in order}
        rows = with_gaps_filled(list(asked), self._longest_gap, lambda other: self._next[other] < self._model.context)
        nothing = np.zeros_like(embedded[0])
        for sequence in rows:
            self._model.forget(sequence, self._next[sequence])
        hidden, logits = self._model.decode(
            np.stack([asked.get(sequence, nothing) for sequence in rows]),
            rows,
            [self._next[sequence] for sequence in rows],
            [sequence in asked for sequence in rows],
        )
        self._next = [position + (sequence in asked) for sequence, position in enumerate(self._next)]
        back = np.argsort(order)
        return hidden[back], logits[back]

    def extend(self, sequence: int, rows: I64Array) -> tuple[F32Array, F32Array]:
        """Let `sequence` read some more `rows` [T, codebooks + 1], 1 to `prefill_rows`, after the prompt that it holds.

        Like the rows of `step` they are dropped with the next prompt. Returns hidden states [T, D] and logits [T, V].
        """
        return self._read(sequence, rows, [True] * len(rows))
