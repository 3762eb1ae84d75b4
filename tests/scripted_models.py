"""An engine for tests of the batcher: it says what a script says, and complains about whatever it is wrongly told.

What it says is a function of the prompt and the frame. It knows what every sequence holds, and whom each row belongs
to: a hidden state carries the number of its utterance and the frame that is to be made from it.
"""

import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gate import Gate
from numpy.typing import NDArray

from miso_gguf.models.flavors import TINY
from miso_gguf.models.noise import gumbel_noise
from miso_gguf.models.spec import TransformerSpec
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.ticket import Ticket
from miso_gguf.runtime.lm.utterance import Utterance

Codes = NDArray[np.int64]
Floats = NDArray[np.float32]
Result = tuple[Floats, Floats]

_SMALL = TransformerSpec(layers=1, embed_dim=4, heads=1, kv_heads=1, head_dim=4, ffn_dim=4)
SPEC = replace(
    TINY, name="Scripted", backbone=_SMALL, decoder=_SMALL, codebooks=2, audio_vocab=8, text_vocab=64, max_positions=320
)
CHUNK_ROWS = 4


class PlannedError(Exception):
    """What a script has planned to go wrong."""


class Fault(NamedTuple):
    """Something to go wrong with an utterance, once."""

    where: str
    """"prefill", "step" or "sample" raise `PlannedError`; "hidden" and "logits" are not finite."""
    at: int
    """Of a prefill the chunk, otherwise the frame that is to be made."""


@dataclass(eq=False)
class Script:
    """What an utterance comes to, and what became of it so far."""

    number: int
    utterance: Utterance
    length: int
    """Frames until the model says the EOS frame."""
    fault: Fault | None = None
    said: list[Codes] = field(default_factory=list)
    over: bool = False
    """It has said the EOS frame or its last one, or was part of a call that failed."""
    failed: bool = False

    @property
    def alone(self) -> list[list[int]]:
        """All frames of a run of its own."""
        return [frame_of(self.utterance, at).tolist() for at in range(min(self.length, self.utterance.max_frames))]

    def fails(self, where: str, at: int) -> bool:
        """Whether that is planned for now; it happens once."""
        if self.fault == (where, at):
            self.fault, self.failed = None, True
            return True
        return False


class Event(NamedTuple):
    """A call: "chunk", "step" or "sample", of which utterances by number, in which sequences."""

    call: str
    numbers: list[int]
    sequences: list[int]


@dataclass
class _Sequence:
    held: list[bytes] = field(default_factory=list)
    rows: int = 0
    """Positions in use."""
    script: Script | None = None
    """Whose prompt it holds to the end; none while one is computed."""
    fed: int = 0
    visits: int = 0
    """How many prompts were begun in it."""


class ScriptedModels:
    """The models of a batcher. `complaints` is empty as long as all is well."""

    def __init__(self, sequences: int = 4, *, draws_ahead: bool = False) -> None:
        self.spec, self.sequences, self.draws_ahead = SPEC, sequences, draws_ahead
        self.scripts: list[Script] = []
        self.events: list[Event] = []
        self.complaints: list[str] = []
        self.gate = Gate()
        self._by_prompt: dict[bytes, Script] = {}
        self._state = [_Sequence() for _ in range(sequences)]
        self._busy = threading.Lock()
        self._owner: int | None = None

    # What a test plans and asks.

    def script(
        self,
        length: int,
        *,
        max_frames: int | None = None,
        voice: Sequence[Block] = (),
        rows: int = 3,
        fault: tuple[str, int] | None = None,
        seed: int = 0,
        stream: int = 0,
        temperature: float = 0.9,
        top_k: int = 50,
    ) -> Script:
        """Plan an utterance: `voice`, then `rows` rows of its own, on which `length` frames are said."""
        number = len(self.scripts)
        blocks = [*voice, block(1000 + number, rows)]
        room = SPEC.max_positions - sum(map(len, blocks))
        cap = min(length + 1, room) if max_frames is None else max_frames
        utterance = Utterance(blocks, cap, seed, stream, temperature, top_k)
        script = Script(number, utterance, length, None if fault is None else Fault(*fault))
        self.scripts.append(script)
        self._by_prompt[_whole(blocks)] = script
        return script

    def calls(self, call: str) -> list[Event]:
        return [event for event in list(self.events) if event.call == call]

    def hold(self, sequence: int, blocks: Sequence[Block]) -> None:
        """Let `sequence` hold these as if a prompt had ended with them."""
        self._state[sequence].held = [each.key for each in blocks]
        self._state[sequence].rows = sum(map(len, blocks))

    # What the batcher calls.

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        """How many of `blocks` the sequence holds already, the last one left out."""
        with self._alone("shared", gated=False):
            return self._shared(sequence, blocks)

    def prefill_chunks(self, sequence: int, blocks: Sequence[Block]) -> Iterator[Result | None]:
        """Compute a chunk of the prompt with each step of the iterator."""
        script = self._by_prompt.get(_whole(blocks))
        if script is None:
            self._complain(f"nobody has such a prompt: {[len(each) for each in blocks]} rows")
        return self._chunks(sequence, blocks, script)

    def _chunks(self, sequence: int, blocks: Sequence[Block], script: Script) -> Iterator[Result | None]:
        state, visit = self._state[sequence], -1
        left: list[tuple[Block, int, bool]] = []
        result, chunk = None, 0
        while result is None:
            with self._alone("chunk", [script], [sequence]):
                if chunk == 0:
                    left = self._begin(state, blocks, self._shared(sequence, blocks))
                    visit = state.visits
                if visit != state.visits:
                    self._complain(f"sequence {sequence} was given another prompt before this one had ended")
                if script.over or script.said:
                    self._complain(f"utterance {script.number} is given a prompt again")
                self._fail([script], "prefill", [chunk])
                of, rows, ends = left.pop(0)
                self._advance(state, rows)
                if ends:
                    state.held.append(of.key)
                if not left:
                    state.script = script
                    result = self._result([script])
                chunk += 1
            yield result

    def _begin(self, state: _Sequence, blocks: Sequence[Block], kept: int) -> list[tuple[Block, int, bool]]:
        """Forget what is not of this prompt; the chunks to come, each with its block and whether it ends there."""
        del state.held[kept:]
        state.rows = sum(map(len, blocks[:kept]))
        state.script, state.fed = None, 0
        state.visits += 1
        return [
            (each, min(CHUNK_ROWS, len(each) - begin), begin + CHUNK_ROWS >= len(each))
            for each in blocks[kept:]
            for begin in range(0, len(each), CHUNK_ROWS)
        ]

    def step(self, sequences: Sequence[int], codes: Sequence[Codes]) -> Result:
        """Feed a frame to each of `sequences`."""
        states = [self._state[sequence] for sequence in sequences]
        scripts = [state.script for state in states if state.script is not None]
        with self._alone("step", scripts, sequences):
            if len(scripts) != len(states) or not states or len(codes) != len(states):
                self._complain(f"sequences {sequences} do not all hold a prompt, or {len(codes)} frames are not theirs")
            if list(sequences) != sorted(set(sequences)):
                self._complain(f"sequences {sequences} are not ascending")
            for state, script, frame in zip(states, scripts, codes, strict=True):
                if script.over:
                    self._complain(f"utterance {script.number} has ended, and is stepped")
                if state.fed + 1 != len(script.said) or not np.array_equal(frame, script.said[-1]):
                    self._complain(f"utterance {script.number} is fed {frame} after {state.fed} of {script.said}")
            self._fail(scripts, "step", [len(script.said) for script in scripts])
            for state in states:
                state.fed += 1
                self._advance(state, 1)
            return self._result(scripts)

    def sample(self, hidden: Floats, logits: Floats, noise: Floats, top_k: Sequence[int]) -> Codes:
        """The frame of each row."""
        finite = bool(np.isfinite(hidden).all() and np.isfinite(logits).all())
        scripts = [self.scripts[int(row[0])] for row in hidden] if finite else []
        with self._alone("sample", scripts, []):
            if not finite:
                self._complain("what is not finite is sampled")
            if not len(scripts) == len(logits) == len(noise) == len(top_k) or not scripts:
                self._complain(f"{len(scripts)} rows have {len(logits)} logits, {len(noise)} noises, top_k {top_k}")
            if len(set(scripts)) != len(scripts):
                self._complain("one utterance has two rows")
            for row, script in enumerate(scripts):
                self._check_row(script, hidden[row], logits[row], noise[row], top_k[row])
            self._fail(scripts, "sample", [len(script.said) for script in scripts])
            codes = np.zeros((len(scripts), SPEC.codebooks), np.int64)
            for row, script in enumerate(scripts):
                if len(script.said) < script.length:
                    codes[row] = frame_of(script.utterance, len(script.said))
                    script.said.append(codes[row].copy())
                    script.over = len(script.said) == script.utterance.max_frames
                else:
                    script.over = True
            return codes

    # How it looks at what it is told.

    def _check_row(self, script: Script, hidden: Floats, logits: Floats, noise: Floats, top_k: int) -> None:
        frame, name = len(script.said), f"utterance {script.number}, frame {len(script.said)}"
        if script.over:
            self._complain(f"{name}: it has ended, and is sampled")
        if hidden[1] != frame or not np.array_equal(logits[:2], hidden[:2]):
            self._complain(f"{name}: hidden state of frame {hidden[1]}, logits of utterance and frame {logits[:2]}")
        if not np.array_equal(noise, noise_of(script.utterance, frame)):
            self._complain(f"{name}: this is not its noise")
        if top_k != script.utterance.top_k:
            self._complain(f"{name}: top_k {top_k}, not {script.utterance.top_k}")

    def _shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        count = 0
        for held, each in zip(self._state[sequence].held, blocks[:-1], strict=False):
            if held != each.key:
                break
            count += 1
        return count

    def _advance(self, state: _Sequence, rows: int) -> None:
        state.rows += rows
        if state.rows > SPEC.max_positions:
            self._complain(f"{state.rows} positions are in use, there are {SPEC.max_positions}")

    def _result(self, scripts: Sequence[Script]) -> Result:
        """Hidden states and logits that say whose they are."""
        hidden = np.zeros((len(scripts), SPEC.backbone.embed_dim), np.float32)
        logits = np.zeros((len(scripts), SPEC.audio_vocab), np.float32)
        for row, script in enumerate(scripts):
            hidden[row, :2] = logits[row, :2] = script.number, len(script.said)
            if script.fails("hidden", len(script.said)):
                hidden[row, -1] = np.nan
                script.over = True
            if script.fails("logits", len(script.said)):
                logits[row, -1] = np.inf
                script.over = True
        return hidden, logits

    def _fail(self, scripts: Sequence[Script], where: str, at: Sequence[int]) -> None:
        guilty = [script for script, number in zip(scripts, at, strict=True) if script.fails(where, number)]
        if guilty:
            for script in scripts:
                script.over = script.failed = True
            raise PlannedError(f"{where} of utterance {guilty[0].number}")

    def _complain(self, what: str) -> NoReturn:
        self.complaints.append(what)
        raise AssertionError(what)

    @contextmanager
    def _alone(
        self, call: str, scripts: Sequence[Script] = (), sequences: Sequence[int] = (), *, gated: bool = True
    ) -> Iterator[None]:
        """One call at a time, and all of them on one thread."""
        me = threading.get_ident()
        self._owner = self._owner or me
        if not self._busy.acquire(blocking=False):
            self._complain(f"{call} while another call runs")
        try:
            if self._owner != me:
                self._complain(f"{call} on another thread than the calls before")
            if gated:
                self.gate.pass_through()
                self.events.append(Event(call, [script.number for script in scripts], list(sequences)))
            yield
        finally:
            self._busy.release()


@contextmanager
def scripted(
    sequences: int = 4, *, draws_ahead: bool = False, **options: Any
) -> Iterator[tuple[ScriptedModels, Batcher]]:
    """Models and a batcher of them; in the end there is no complaint, and no thread is left."""
    models, before = ScriptedModels(sequences, draws_ahead=draws_ahead), set(threading.enumerate())
    with Batcher(models, **options) as batcher:
        try:
            yield models, batcher
        finally:
            models.gate.open()
    assert models.complaints == []
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("miso")]


def taken(ticket: Ticket, count: int | None = None) -> list[list[int]]:
    """The next `count` frames of a ticket, or all that are left."""
    return [codes.tolist() for codes in islice(ticket, count)]


def block(name: int, rows: int) -> Block:
    """Rows that no block of another name has."""
    content = np.full((rows, SPEC.codebooks + 1), -1, np.int64)
    content[:, -1] = name
    return Block(content)


def frame_of(utterance: Utterance, frame: int) -> Codes:
    """What the models say at that frame: never the EOS frame."""
    said = zlib.crc32(frame.to_bytes(4, "little"), zlib.crc32(_whole(utterance.blocks)))
    return np.array([1 + (said >> 8 * book) % (SPEC.audio_vocab - 1) for book in range(SPEC.codebooks)], np.int64)


def noise_of(utterance: Utterance, frame: int) -> Floats:
    """What that frame is to be sampled with."""
    noise = gumbel_noise(utterance.seed, frame, SPEC.codebooks, SPEC.audio_vocab, stream=utterance.stream)
    scaled: Floats = noise * np.float32(utterance.temperature)
    return scaled


def _whole(blocks: Sequence[Block]) -> bytes:
    return b"".join(each.key for each in blocks)
