"""The public face: load a bundle, speak."""

import logging
from collections.abc import AsyncIterable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.arrays import I64Array
from ..core.checked import expect
from ..core.closing import Closing
from ..models.levels import DEFAULT_LEVEL
from ..native.llama import KvType
from ..native.products import ProductWatch
from .bundle import Bundle, OpenLevel, open_level
from .codec.codec import Codec
from .codec.thread import CodecThread
from .lm.batcher import Queue
from .lm.engine import Engine
from .lm.utterance import Utterance
from .options import EngineOptions, SpeechOptions
from .speech import Segment, Speech
from .synthesis.asynchronous import AsyncSpeechStream
from .synthesis.in_order import spoken_in_order, whole
from .synthesis.plan import Planner, SpeechPlan
from .synthesis.prompting import Prompting
from .synthesis.stream import SpeechStream
from .voice import Voice

log = logging.getLogger(__name__)

_WHOLE_CHUNK_FRAMES = 12
"""Frames decoded at once when nobody waits for them: twice as fast as one by one."""

_MORE_AT_ONCE = 1
"""Speeches under way than sequences: while the sound of one is made, another has its sequence."""

_CODEC_THREADS = (4, 8)
"""Of the codec, for one sequence and at most, where the models leave it the CPU.

One takes longer for a frame than a fast GPU takes for its codes, and four longer for eight utterances' than it takes.
"""


class MisoTTS(Closing):
    """A loaded model. A context manager.

    It may be used from several threads, and so may a stream. As many utterances as there are `sequences` are spoken
    together; others wait, first come, first served, and `Busy` is raised when too many do. A stream that nobody reads
    keeps its sequence, and holds up only who waits for it.
    """

    def __init__(self, level: OpenLevel, engine: Engine, codec: Codec) -> None:
        """Take over `engine` and `codec`; most callers want `load`."""
        self.level, self.engine, self.codec = level, engine, codec
        self._codec_thread = CodecThread(codec)
        self._planner = Planner(engine.prompts, engine.spec, codec.codebooks)

    @classmethod
    def load(
        cls,
        source: Path | str | Bundle,
        level: str = DEFAULT_LEVEL.key,
        *,
        options: EngineOptions | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        kv_type: KvType | None = None,
        context: int | None = None,
        sequences: int | None = None,
        verify: bool = False,
        revision: str | None = None,
    ) -> "MisoTTS":
        """Load one level of a bundle.

        Args:
            source: The directory that miso-convert wrote, a Hugging Face repo of one, or a bundle that is open.
            level: Its name in the bundle, for example "q8_0".
            options: Where and how to compute.
            threads: As in `options`, and stronger.
            gpu_layers: As in `options`, and stronger.
            kv_type: As in `options`, and stronger.
            context: As in `options`, and stronger.
            sequences: As in `options`, and stronger.
            verify: Hash every file first.
            revision: Branch, tag or commit of a Hugging Face repo.

        Raises:
            BundleError: If the bundle is incomplete, damaged, mixed, has no such level, or cannot be fetched.
            ValueError: On an unknown level or an option that makes no sense.
            TypeError: On a value of another kind: how to speak is a matter of `generate` and `stream`.
            MisoError, MemoryError: If this machine cannot run it.
        """
        expect("source", source, str, Path, Bundle)
        expect("level", level, str)
        if options is not None:
            expect("options", options, EngineOptions)
        knobs: dict[str, Any] = {
            "threads": threads,
            "gpu_layers": gpu_layers,
            "kv_type": kv_type,
            "context": context,
            "sequences": sequences,
        }
        asked = {name: value for name, value in knobs.items() if value is not None}
        opened = open_level(source, level, revision=revision, verify=verify)
        return cls.of(opened, replace(options or EngineOptions(), **asked))

    @classmethod
    def of(cls, level: OpenLevel, options: EngineOptions, watch: ProductWatch | None = None) -> "MisoTTS":
        """Load a level that is open already; `watch` as of `Engine`. Errors as `load`."""
        with ExitStack() as stack:
            engine = stack.enter_context(Engine(level, options, watch))
            least, most = _CODEC_THREADS
            wanted = min(max(least, options.sequences), most) if engine.leaves_cpu_idle else 1
            threads, provider = min(wanted, options.threads), options.codec_provider
            codec = stack.enter_context(
                Codec(level.codec_decoder, level.codec_encoder, threads=threads, provider=provider)
            )
            engine.warm_up(SpeechOptions().top_k)
            stack.pop_all()
        return cls(level, engine, codec)

    def close(self) -> None:
        """End what is being spoken, and free everything. Idempotent."""
        self.engine.close()
        self._codec_thread.close()
        self.codec.close()

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of all sound: 24 000."""
        return self.codec.sample_rate_hz

    def stream(
        self,
        text: str | Iterable[str],
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
        live: bool = True,
    ) -> SpeechStream:
        """Speak `text`; iterate over the result for chunks of sound as they are made.

        Args:
            text: What to say, of any length: long text is spoken sentence by sentence. If it comes in pieces, as of a
                language model, each sentence is spoken when it is complete: the thread that iterates reads it.
            voice: Whom to sound like; of a dialogue all voices, in an order that stays, each with its own number. Their
                KV caches are kept for the next call.
            context: What was said before, oldest first, such as `speech.segments`. Where there is no room the oldest
                is left out.
            speaker: Number of the speaker, as in the prompts; by default the first voice's, or 0.
            options: How to speak.
            live: Let sound out frame by frame. Otherwise a sentence leaves when it is whole, and what went wrong with
                it can still be taken back.

        Raises:
            ValueError: On text with nothing to say, a voice or context of another model, or voices that leave no room.
            TypeError: On a value of another kind.
        """
        if _speech_options(options).loudness_lufs is not None:
            raise ValueError("loudness is a property of the whole: use generate, or stream without loudness_lufs")
        plan = self.plan(text, voice=voice, context=context, speaker=speaker, options=options)
        return self._begin(plan, live=live)

    def _begin(self, plan: SpeechPlan, *, live: bool = False, queue: Queue = "limited") -> SpeechStream:
        expect("plan", plan, SpeechPlan)
        if not live:
            chunk_frames = max(plan.options.chunk_frames, _WHOLE_CHUNK_FRAMES)
            plan = replace(plan, options=replace(plan.options, chunk_frames=chunk_frames))
        return SpeechStream(self.engine, self.codec, self._codec_thread, plan, live=live, queue=queue)

    def generate(
        self,
        text: str | Iterable[str],
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> Speech:
        """Speak `text` and return it whole. Arguments and errors as `stream`."""
        plan = self.plan(text, voice=voice, context=context, speaker=speaker, options=options)
        return whole(self._begin(plan), plan.options.loudness_lufs)

    def generate_each(self, plans: Iterable[SpeechPlan]) -> Generator[Speech, None, None]:
        """Speak whole what `plans` say, and give it in their order; as many at once as there are `sequences`.

        Of any number of them only a few are held at a time: they are read as the speeches are taken, in the same
        thread. Each speech is what `generate` gives for it alone: at F32 the same codes, below it up to the rounding
        of another batch size. An error comes after the speeches before it, and ends those after it. Errors as `stream`,
        but never `Busy`.
        """
        expect("plans", plans, Iterable)
        self.engine.batcher.check()
        return spoken_in_order(plans, partial(self._begin, queue="unlimited"), self.engine.sequences + _MORE_AT_ONCE)

    def generate_batch(
        self,
        texts: Iterable[str],
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | Sequence[SpeechOptions] | None = None,
    ) -> list[Speech]:
        """Speak several texts whole, as `generate_each`, by the same speaker; all are checked before the first is.

        `options` are one for all, or one for each text. Errors as `stream`, with the text's number, but never `Busy`.
        """
        if isinstance(texts, str | bytes):
            raise ValueError("texts must be a list of texts; for a single one there is generate")
        expect("texts", texts, Iterable)
        texts = list(texts)
        each = list(options) if isinstance(options, Sequence) else [options] * len(texts)
        if len(each) != len(texts):
            raise ValueError(f"{len(texts)} texts need as many options, not {len(each)}")
        plans: list[SpeechPlan] = []
        for number, (text, option) in enumerate(zip(texts, each, strict=True), 1):
            with _text_named(number):
                expect("text", text, str)
                plans.append(self.plan(text, voice=voice, context=context, speaker=speaker, options=option))
        speeches: list[Speech] = []
        with closing(self.generate_each(plans)) as spoken:
            for number in range(1, len(plans) + 1):
                with _text_named(number):
                    speeches.append(next(spoken))
        return speeches

    def astream(
        self,
        text: str | Iterable[str] | AsyncIterable[str],
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
        live: bool = True,
    ) -> AsyncSpeechStream:
        """As `stream`, for `async for` and `async with`.

        Pieces that are awaited are awaited in the event loop that iterates it. Arguments and errors as `stream`.
        """
        begin = partial(self.stream, voice=voice, context=context, speaker=speaker, options=options, live=live)
        return AsyncSpeechStream(text, begin)

    def generate_codes(
        self,
        text: str,
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> I64Array:
        """The codes of `text` as one utterance, int64 [frames, codebooks], without decoding. Errors as `stream`."""
        utterance = self.utterance(text, voice=voice, context=context, speaker=speaker, options=options)
        with self.engine.batcher.admit(utterance, buffer=utterance.max_frames, queue="unlimited") as ticket:
            return np.array(list(ticket), np.int64).reshape(-1, self.engine.spec.codebooks)

    def utterance(
        self,
        text: str,
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> Utterance:
        """`text` as one utterance for the batcher: what would be spoken, and how, without speaking it."""
        expect("text", text, str)
        options = replace(_speech_options(options), split_sentences=False)
        plan = self.plan(text, voice=voice, context=context, speaker=speaker, options=options)
        (sentence,) = plan.sentences
        return Prompting(self.engine.prompts, self.engine.spec, plan).prepare(sentence)

    def plan(
        self,
        text: str | Iterable[str],
        *,
        voice: Voice | Sequence[Voice] | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> SpeechPlan:
        """What `stream` would say, how and by whom, for `generate_each` to say it. Arguments and errors as `stream`."""
        self.engine.batcher.check()
        return self._planner.plan(text, voice, context, speaker, _speech_options(options))


def _speech_options(options: SpeechOptions | None) -> SpeechOptions:
    """The default ones if there are none. Raises `TypeError` on options of another kind."""
    if options is None:
        return SpeechOptions()
    expect("options", options, SpeechOptions)
    return options


@contextmanager
def _text_named(number: int) -> Iterator[None]:
    """What is wrong with a text says with which."""
    try:
        yield
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"text {number}: {error}") from error
