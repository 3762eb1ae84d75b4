"""A level of a bundle, loaded to be evaluated: it speaks, and it replays what another has said. It judges nothing."""

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...core.closing import Closing
from ...native.device import Backends
from ...native.products import ProductWatch
from ...runtime.audio.samples import Samples
from ...runtime.bundle import OpenLevel
from ...runtime.lm.depth.decoder import DepthDecoder
from ...runtime.lm.embeddings import Embeddings
from ...runtime.lm.utterance import Utterance
from ...runtime.options import EngineOptions, SpeechOptions
from ...runtime.speech import Segment
from ...runtime.tts import MisoTTS
from ..corpus import Prompt
from .teacher_forcing import Replay, Replayed, one_step_codes


@dataclass(frozen=True)
class Candidate:
    """What is evaluated: a level of a bundle, under a name.

    Attributes:
        name: In records and reports: the level's, "A" and "B" in a comparison of bundles, or a control's.
        files: The level, open.
        digest: Of the level's files and the codec, hexadecimal.
    """

    name: str
    files: OpenLevel
    digest: str

    @property
    def level(self) -> str:
        """Its key in the bundle."""
        return self.files.key

    @classmethod
    def of(cls, name: str, level: OpenLevel) -> "Candidate":
        """With the digest that the bundle's manifest gives."""
        manifest = level.manifest
        files = manifest.levels[level.key]
        names = (files.backbone, files.decoder, files.embeddings, manifest.codec.decoder, manifest.codec.encoder)
        hashes = "".join(manifest.files[each].sha256 for each in names)
        return cls(name, level, hashlib.sha256(hashes.encode()).hexdigest())

    @property
    def key(self) -> str:
        """In records: the name, and which files it was when they were made. Other files are another candidate."""
        return f"{self.name}-{self.digest[:10]}"


@dataclass(frozen=True)
class Spoken:
    """One clip as it was spoken.

    Attributes:
        codes: Int64 `[frames, codebooks]`, without the EOS frame.
        ended: "eos" or "cap".
        wall_s: From the prompt to the last frame.
        first_s: From the prompt to the samples of the first frame.
    """

    codes: I64Array
    ended: str
    wall_s: float
    first_s: float


class LoadedCandidate(Closing):
    """A loaded candidate. A context manager."""

    def __init__(self, candidate: Candidate, options: EngineOptions, watch: ProductWatch | None = None) -> None:
        """Load it; `watch` as of `Engine`. Errors as `MisoTTS.load`."""
        self.candidate = candidate
        self.tts = MisoTTS.of(candidate.files, options, watch)
        self._replay = Replay(self.tts.engine)

    def close(self) -> None:
        """Free it. Idempotent."""
        self.tts.close()

    def utterance(self, prompt: Prompt, seed: int, context: Sequence[Segment], options: SpeechOptions) -> Utterance:
        """What the batcher and a replay need. The stream of the noise is the prompt's own."""
        made = self.tts.utterance(prompt.text, speaker=prompt.speaker, context=context, options=options)
        return Utterance(made.blocks, made.max_frames, seed, stream_of(prompt), made.temperature, made.top_k)

    def speak(self, utterance: Utterance) -> Spoken:
        """Run freely."""
        begin = time.perf_counter()
        frames: list[I64Array] = []
        first_s = 0.0
        with self.tts.engine.batcher.admit(utterance) as ticket:
            for frame in ticket:
                frames.append(frame)
                if len(frames) == 1:
                    self.sound(frame[np.newaxis])
                    first_s = time.perf_counter() - begin
            ended = str(ticket.ended)
        codes = np.array(frames, np.int64).reshape(-1, self.tts.engine.spec.codebooks)
        return Spoken(codes, ended, time.perf_counter() - begin, first_s)

    def sound(self, codes: I64Array) -> Samples:
        """Samples, float32 `[frames * 1920]`."""
        return self.tts.codec.decode(self.tts.codec.playable(codes))

    def replay(self, utterance: Utterance, codes: I64Array) -> Replayed:
        """The backbone's part of a teacher-forced run over `codes`."""
        return self._replay.run(utterance.blocks, codes)

    def depth_logits(self, replayed: Replayed) -> F32Array:
        """The depth decoder's part, on anyone's hidden states."""
        return self._replay.depth_logits(replayed)

    def one_step(self, replayed: Replayed, utterance: Utterance) -> I64Array:
        """One frame drawn at every position, int64 `[frames, codebooks]`; zeros where the EOS frame is drawn."""
        return one_step_codes(self.tts.engine, replayed, utterance)


class DepthDecoderOnly(Closing):
    """The depth decoder of a candidate without its backbone, beside another that is loaded whole."""

    def __init__(self, candidate: Candidate, beside: LoadedCandidate, options: EngineOptions) -> None:
        """Load it where `beside` computes."""
        level = candidate.files
        engine = beside.tts.engine
        self._batcher = engine.batcher
        with ExitStack() as stack:
            backends = stack.enter_context(Backends(gpu=engine.gpu, threads=options.threads))
            projection = Embeddings(level.embeddings, engine.spec).projection
            self._depth = stack.enter_context(DepthDecoder(level.decoder, projection, engine.spec, backends))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free it. Idempotent."""
        self._stack.close()

    def logits(self, replayed: Replayed) -> F32Array:
        """Logits of codebooks 1 on, `[T, codebooks - 1, V]`."""
        # On the thread of the one beside it: a second that computes would slow both (see `Batcher.run`).
        return self._batcher.run(partial(self._depth.logits, replayed.hidden[: replayed.frames], replayed.codes))


def stream_of(prompt: Prompt) -> int:
    """The prompt's own stream of noise, from its id: prompts of one seed must not share their luck."""
    return int.from_bytes(hashlib.sha256(prompt.id.encode()).digest()[:7], "big")
