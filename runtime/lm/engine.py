"""The two language models of a level, loaded: where they compute, and who may use them when.

It knows no audio, no voices and no sampling over time: that is `batcher.py`.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...core.closing import Closing
from ...core.errors import MisoError
from ...core.process import OwnProcess
from ...models.spec import ModelSpec
from ...native.buffer_types import is_interleaving_safe
from ...native.device import Backends, Device, gpus
from ...native.llama import ALL_LAYERS
from ...native.products import ProductWatch
from ..bundle import OpenLevel
from ..options import EngineOptions
from ..part_check import check_vocabulary
from .backbone import Backbone, default_prefill_rows
from .batcher import Batcher
from .depth.decoder import DepthDecoder
from .embeddings import Embeddings
from .lacking import remark_on
from .prompt import Block, PromptBuilder, audio_rows
from .protocol import Result
from .tokenizer import Tokenizer
from .voice_directory import VoiceDirectory, state_identity
from .voice_states import VoiceStates

log = logging.getLogger(__name__)

_RUNS_TO_CAPTURE = 2
"""ggml captures a CUDA graph when it is run a second time unchanged. Source: ggml-cuda.cu, `warmup_complete`."""


class Engine(Closing):
    """The two language models of a level, loaded. A context manager.

    What is to be spoken is admitted to its `batcher`. The other methods are the single calls that a batcher makes; who
    makes them beside it needs a sequence of `batcher.lend`. Threads take turns, call by call. After `close`, and in a
    process that was forked since, each raises `MisoError`.
    """

    def __init__(self, level: OpenLevel, options: EngineOptions, watch: ProductWatch | None = None) -> None:
        """Load. `watch` sees the products of the backbone, and of the depth decoder in `depth_logits`.

        Raises `BundleError` on files that do not fit, `MemoryError` and `MisoError` if the machine cannot.
        """
        self.spec = _shortened(level.manifest.model_spec, options.context)
        self.gpu = _choose_gpu(options)
        if self.gpu is not None and (lack := remark_on(level, self.gpu)):
            log.warning("%s", lack)
        # llama.cpp counts the output as a layer more.
        self.leaves_cpu_idle = self.gpu is not None and (
            options.gpu_layers in {None, ALL_LAYERS} or (options.gpu_layers or 0) > self.spec.backbone.layers
        )
        with ExitStack() as stack:
            check_vocabulary(level.embeddings)
            tokenizer = stack.enter_context(Tokenizer(level.embeddings))
            self.prompts = PromptBuilder(self.spec, tokenizer)
            _check_room(self.prompts, self.spec)
            self._embeddings = Embeddings(level.embeddings, self.spec)
            backends = stack.enter_context(Backends(gpu=self.gpu, threads=options.threads))
            self.depth = stack.enter_context(
                DepthDecoder(level.decoder, self._embeddings.projection, self.spec, backends, watch)
            )
            options = replace(options, repack=options.repack and _may_repack())
            voices = stack.enter_context(_voice_states(level, options, self.gpu))
            self.backbone = stack.enter_context(
                Backbone(
                    level.backbone,
                    self.spec,
                    self._embeddings,
                    options,
                    gpu=self.gpu,
                    watch=watch,
                    voices=voices,
                )
            )
            self._stack = stack.pop_all()
        self._process, self._closing = OwnProcess(), threading.RLock()
        self.batcher = Batcher(self, waiting=options.waiting)

    def close(self) -> None:
        """End what is being spoken, then free everything. Idempotent. A forked process leaves it to its parent."""
        self.batcher.close()
        if not self._process.is_here:
            return
        if self.batcher.is_own_thread:  # the garbage collector may come by there, within a call: not under its feet
            threading.Thread(target=self.close, name="miso-close").start()
            return
        with self._closing:  # two who close at once would free what belongs together in any order
            self._stack.close()

    @property
    def sequences(self) -> int:
        """How many utterances can be kept apart."""
        return self.backbone.sequences

    @property
    def draws_ahead(self) -> bool:
        """Whether the next frame's noise is drawn beside the models: a GPU leaves the CPU time, a CPU has none."""
        return self.gpu is not None

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        """See `Backbone.shared`."""
        return self.backbone.shared(sequence, blocks)

    def forget(self) -> None:
        """See `Backbone.forget`."""
        self.batcher.run(self.backbone.forget)

    def prefill(self, sequence: int, blocks: Sequence[Block]) -> Result:
        """`prefill_chunks` as one call."""
        *_, result = self.prefill_chunks(sequence, blocks)
        assert result is not None
        return result

    def prefill_chunks(self, sequence: int, blocks: Sequence[Block]) -> Iterator[Result | None]:
        """See `Backbone.prefill_chunks`; a turn for each chunk."""
        chunks = self.backbone.prefill_chunks(sequence, blocks)
        result = None
        while result is None:
            result = self.batcher.run(partial(next, chunks))
            yield result

    def step(self, sequences: Sequence[int], codes: Sequence[I64Array]) -> Result:
        """Feed a frame to each of `sequences`; see `Backbone.step`."""
        embedded = self._embeddings.embed(audio_rows(np.stack(codes)))
        return self.batcher.run(partial(self.backbone.step, sequences, embedded))

    def extend(self, sequence: int, rows: I64Array, *, at_once: int | None = None) -> Result:
        """Let `sequence` read `rows` [T, codebooks + 1] that are known beforehand, T at least 1.

        Args:
            sequence: Which; it must hold a prompt.
            rows: As in `prompt.py`. Like the rows of `step` they are dropped with the next prompt.
            at_once: Rows computed together, at most and by default a chunk of a prompt. 1 gives the bits of `step`.

        Returns:
            Hidden states [T, D] and logits [T, V] of all of them.
        """
        size = min(at_once or self.backbone.prefill_rows, self.backbone.prefill_rows)
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        results = [self.batcher.run(partial(self.backbone.extend, sequence, part)) for part in parts]
        hidden, logits = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
        return hidden, logits

    def depth_logits(self, hidden: F32Array, codes: I64Array) -> F32Array:
        """See `DepthDecoder.logits`."""
        return self.batcher.run(partial(self.depth.logits, hidden, codes))

    def sample(self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: int | Sequence[int]) -> I64Array:
        """See `DepthDecoder.frames`."""
        return self.batcher.run(partial(self.depth.frames, hidden, logits, noise, top_k))

    def warm_up(self, top_k: int) -> None:
        """Do now what the first frames of one utterance would wait for.

        The depth decoder's graph is built, and on a GPU captured; there all kernels are loaded too. llama.cpp's own
        graph is another after each prefill: it is captured again at an utterance's second frame.
        """
        spec = self.spec
        hidden = np.zeros((1, spec.backbone.embed_dim), np.float32)
        noise = np.zeros((1, spec.codebooks, spec.audio_vocab), np.float32)
        for _ in range(_RUNS_TO_CAPTURE if self.gpu else 1):
            self.sample(hidden, noise[:, 0], noise, top_k)
        if self.gpu is None:
            return
        prompt = self.prompts.text("one two three", 0)
        if len(prompt) + _RUNS_TO_CAPTURE <= spec.max_positions:
            self.prefill(0, [prompt])
            for _ in range(_RUNS_TO_CAPTURE):
                self.step([0], [np.zeros(spec.codebooks, np.int64)])
        if self.depth.splits > 1:
            log.warning(
                "%s lacks operations of the depth decoder, which runs in %d pieces, partly on the CPU: it will be slow",
                self.gpu.name,
                self.depth.splits,
            )


def _voice_states(level: OpenLevel, options: EngineOptions, gpu: Device | None) -> VoiceStates:
    directory = None
    if options.voice_directory is not None:
        identity = state_identity(level, options, gpu, default_prefill_rows(gpu))
        directory = VoiceDirectory(options.voice_directory, identity)
    return VoiceStates(options.voice_cache_bytes, directory)


def _may_repack() -> bool:
    if is_interleaving_safe():
        return True
    log.warning("repack=True is left out: llama.cpp would use this CPU's AMX units, and may end the process")
    return False


def _shortened(spec: ModelSpec, context: int | None) -> ModelSpec:
    """The model with another context. Raises `ValueError` if that is longer than its own."""
    if context is not None and not (isinstance(context, int) and 1 <= context <= spec.max_positions):
        raise ValueError(f"context must be 1 to {spec.max_positions} for {spec.name}, not {context}")
    return replace(spec, max_positions=context or spec.max_positions)


def _check_room(prompts: PromptBuilder, spec: ModelSpec) -> None:
    """Raise `ValueError` if not even one frame after a word has room."""
    least = len(prompts.text("a", 0)) + 1
    if spec.max_positions < least:
        raise ValueError(f"context must have room for a word and a frame, {least} or more, not {spec.max_positions}")


def _choose_gpu(options: EngineOptions) -> Device | None:
    """The GPU to use, if any is wanted and there. Raises `MisoError` if one is insisted on and missing."""
    if options.gpu_layers == 0:
        return None
    found = gpus()
    if options.main_gpu < len(found):
        return found[options.main_gpu]
    if options.gpu_layers is None and not found:
        return None
    what = (
        f"GPU {options.main_gpu} is not there ({len(found)} found)" if found else "this llama-cpp-python finds no GPU"
    )
    message = (
        f"{what}: reinstall it with CMAKE_ARGS=-DGGML_CUDA=on (or GGML_METAL, GGML_VULKAN) and pip's --no-cache-dir, "
        "or ask for 0 layers"
    )
    if not options.allow_cpu:
        raise MisoError(message)
    log.warning("%s; going on with the CPU", message)
    return None
