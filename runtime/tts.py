"""The public face: load a bundle, speak."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..models.arrays import I64Array
from ..native.closing import Closing
from ..native.llama import KvType
from .bundle import OpenLevel, open_level
from .codec import Codec
from .engine import Engine, EngineOptions
from .frame_loop import FrameLoop
from .loudness import normalise
from .options import SpeechOptions
from .prompt import Segment
from .sentences import normalise_text, split_sentences
from .speech import Speech
from .stream import Script, SpeechStream, prepare
from .threads import default_threads
from .utterance import Utterance
from .voice import Voice

log = logging.getLogger(__name__)

_WHOLE_CHUNK_FRAMES = 12
"""Frames decoded at once when nobody waits for them: twice as fast as one by one."""

_CODEC_THREADS = 4
"""Of the codec, where the models leave it the CPU: one takes longer for a frame than a fast GPU takes for its codes."""


class MisoTTS(Closing):
    """A loaded model. A context manager.

    It may be used from several threads. Each utterance takes one of `sequences`; with all of them in use, further calls
    wait for another thread's to end. A thread that would wait for itself (a second stream opened beside an unfinished
    one) gets a `MisoError`. One stream is for one thread.
    """

    def __init__(self, level: OpenLevel, engine: Engine, codec: Codec) -> None:
        """Take over `engine` and `codec`; most callers want `load`."""
        self.level, self.engine, self.codec = level, engine, codec

    @classmethod
    def load(
        cls,
        source: Path | str,
        level: str = "q4_k_m",
        *,
        threads: int | None = None,
        gpu_layers: int | None = None,
        main_gpu: int = 0,
        kv_type: KvType = "f16",
        context: int | None = None,
        sequences: int = 1,
        codec_provider: str = "cpu",
        repack: bool = False,
        allow_cpu: bool = True,
        verify: bool = False,
    ) -> "MisoTTS":
        """Load one level of a bundle.

        Args:
            source: The directory that miso-convert wrote, or a Hugging Face repo of one.
            level: "fp16", "q8_0", "q4_k_m" or "q4_0".
            threads: CPU threads; by default `default_threads()`, at most the physical cores. Of these the codec takes
                up to 4 where all layers are on the GPU, else one beside them.
            gpu_layers: Backbone layers on the GPU, -1 for all, 0 for none; by default all, if there is a GPU.
            main_gpu: Index of the GPU.
            kv_type: Type of the backbone's KV cache: "f16", or "q8_0" for half of the memory.
            context: Positions of a prompt and its speech together; by default the model's own, 2048.
            sequences: How many utterances can be spoken at the same time.
            codec_provider: Where the codec runs: "cpu" or "cuda".
            repack: Interleave the backbone's weights for the CPU: see `EngineOptions`.
            allow_cpu: Go on without a GPU when one is asked for and missing, instead of raising `MisoError`.
            verify: Hash every file first.

        Raises:
            BundleError: If the bundle is incomplete, damaged, mixed, or has no such level.
            ValueError: On an unknown level or an option that makes no sense.
            MisoError, MemoryError: If this machine cannot run it.
        """
        found = open_level(source, level, verify=verify)
        options = EngineOptions(
            threads=default_threads() if threads is None else threads,
            gpu_layers=gpu_layers,
            main_gpu=main_gpu,
            kv_type=kv_type,
            context=context,
            sequences=sequences,
            repack=repack,
            allow_cpu=allow_cpu,
        )
        with ExitStack() as stack:
            engine = stack.enter_context(Engine(found, options))
            codec_threads = min(_CODEC_THREADS, options.threads) if engine.leaves_cpu_idle else 1
            codec = stack.enter_context(
                Codec(found.codec_decoder, found.codec_encoder, threads=codec_threads, provider=codec_provider)
            )
            engine.warm_up(SpeechOptions().top_k)
            stack.pop_all()
        return cls(found, engine, codec)

    def close(self) -> None:
        """Free everything. Idempotent. Raises `MisoError` while a stream is open."""
        self.engine.close()
        self.codec.close()

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of all sound: 24 000."""
        return self.codec.sample_rate_hz

    def stream(
        self,
        text: str,
        *,
        voice: Voice | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
        live: bool = True,
    ) -> SpeechStream:
        """Speak `text`; iterate over the result for chunks of sound as they are made.

        Args:
            text: What to say, of any length: long text is spoken sentence by sentence.
            voice: Whom to sound like. Its KV cache is kept for the next call.
            context: What was said before, oldest first; dropped oldest first where there is no room.
            speaker: Number of the speaker, as in the prompts; by default the voice's, or 0.
            options: How to speak.
            live: Let sound out frame by frame. Otherwise a sentence leaves when it is whole, and what went wrong with
                it can still be taken back.

        Raises:
            ValueError: On text with nothing to say, or a voice or context of another model.
        """
        options = options or SpeechOptions()
        if options.loudness_lufs is not None:
            raise ValueError("loudness is a property of the whole: use generate, or stream without loudness_lufs")
        if not live:
            options = replace(options, chunk_frames=max(options.chunk_frames, _WHOLE_CHUNK_FRAMES))
        return SpeechStream(self.engine, self.codec, self._script(text, voice, context, speaker, options), live=live)

    def generate(
        self,
        text: str,
        *,
        voice: Voice | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> Speech:
        """Speak `text` and return it whole. Arguments and errors as `stream`."""
        options = options or SpeechOptions()
        as_it_is = replace(options, loudness_lufs=None)
        with self.stream(text, voice=voice, context=context, speaker=speaker, options=as_it_is, live=False) as stream:
            for _ in stream:
                pass
        speech = stream.speech
        if options.loudness_lufs is not None:
            speech.parts = [normalise(speech.samples, options.loudness_lufs)]
        return speech

    def generate_codes(
        self,
        text: str,
        *,
        voice: Voice | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> I64Array:
        """The codes of `text` as one utterance, int64 [frames, codebooks], without decoding. Errors as `stream`."""
        return self._codes([text], voice, context, speaker, [options or SpeechOptions()])[0]

    def generate_batch(
        self,
        texts: Sequence[str],
        *,
        voice: Voice | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | Sequence[SpeechOptions] | None = None,
    ) -> list[I64Array]:
        """The codes of several texts, each one utterance, stepping together as many as there are `sequences`.

        Each is what `generate_codes` gives for it alone: at F32 the same codes, below it up to the rounding of another
        batch size. `codec.decode` turns codes into sound. `options` are one for all, or one for each text (with the
        same `top_k`). Errors as `stream`.
        """
        each = [options or SpeechOptions()] * len(texts) if not isinstance(options, Sequence) else list(options)
        if len(each) != len(texts):
            raise ValueError(f"{len(texts)} texts need as many options, not {len(each)}")
        width = self.engine.backbone.sequences
        results: list[I64Array] = []
        for start in range(0, len(texts), width):
            part = slice(start, start + width)
            results += self._codes(texts[part], voice, context, speaker, each[part])
        return results

    def utterance(
        self,
        text: str,
        *,
        voice: Voice | None = None,
        context: Sequence[Segment] = (),
        speaker: int | None = None,
        options: SpeechOptions | None = None,
    ) -> Utterance:
        """`text` as one utterance for the frame loop: what would be spoken, and how, without speaking it."""
        options = replace(options or SpeechOptions(), split_sentences=False)
        script = self._script(text, voice, context, speaker, options)
        utterance, _ = prepare(self.engine, script, script.sentences[0], script.voice, script.context)
        return utterance

    def _codes(
        self,
        texts: Sequence[str],
        voice: Voice | None,
        context: Sequence[Segment],
        speaker: int | None,
        options: Sequence[SpeechOptions],
    ) -> list[I64Array]:
        utterances = [
            self.utterance(text, voice=voice, context=context, speaker=speaker, options=option)
            for text, option in zip(texts, options, strict=True)
        ]
        frames: list[list[I64Array]] = [[] for _ in utterances]
        with FrameLoop(self.engine, utterances) as loop:
            for step in loop:
                for index, codes in step.codes.items():
                    frames[index].append(codes)
        return [np.array(codes, np.int64).reshape(-1, self.engine.spec.codebooks) for codes in frames]

    def _script(
        self,
        text: str,
        voice: Voice | None,
        context: Sequence[Segment],
        speaker: int | None,
        options: SpeechOptions,
    ) -> Script:
        if voice is not None:
            voice.check(self.codec.codebooks, self.engine.spec.audio_vocab)
        segment = self.engine.prompts.segment
        number = speaker if speaker is not None else voice.speaker if voice is not None else 0
        if number < 0:
            raise ValueError(f"a speaker is a number from 0, not {number}")
        sentences = split_sentences(text) if options.split_sentences else [normalise_text(text)]
        # Only if both have the same number does the model take the voice for the speaker's.
        anchor = None if voice is None else segment(Segment(voice.text, voice.codes, number))
        return Script(sentences, number, anchor, [segment(each) for each in context], options)
