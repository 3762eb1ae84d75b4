"""A stock llama.cpp model fed by embeddings instead of token ids, through llama-cpp-python's low-level bindings.

One call gives what a CSM transformer needs of it: the hidden state after the final norm, and the logits. Several
sequences share one context and step together. It knows nothing of speech.
"""

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.arrays import F32Array
from ..core.checked import Rule, check, choice, flag, or_none, whole
from ..core.closing import CLOSED, Closing
from ..core.errors import BundleError, MisoError
from ..core.process import OwnProcess
from .device import Device
from .libraries import ggml_base, once
from .messages import listen_to_llama
from .products import ProductWatch
from .self_test import check_llama
from .threads import MOST_THREADS

KvType = Literal["f32", "f16", "q8_0"]

KV_TYPES: dict[KvType, int] = {"f32": 0, "f16": 1, "q8_0": 8}
"""`enum ggml_type`. Source: ggml.h."""
_POOLING_NONE = 0
_SPLIT_NONE = 0
_NO_ROOM = 1  # result of llama_decode. Source: llama.h.
ALL_LAYERS = -1
MOST_SEQUENCES = 256
"""What llama.cpp has room for. Source: `LLAMA_MAX_SEQ` in llama-cparams.h."""
_MOST_POSITIONS = (1 << 31) - 1
"""Of all sequences together: llama.cpp numbers them in 32 bits."""
_CONTEXT_STEP = 256
"""llama.cpp rounds a sequence's context up to a multiple of it. Source: llama-context.cpp, `n_ctx_seq`."""


@once
def load_library() -> Any:
    """llama-cpp-python's low-level module, with the backends initialised and llama.cpp's log going to `logging`.

    Raises `MisoError` if its structs are not what this package expects.
    """
    import llama_cpp.llama_cpp as library  # noqa: PLC0415  (takes a second: only those who run a model pay)

    ggml_base()  # whose own log it takes over
    listen_to_llama(library)
    library.llama_backend_init()
    check_llama(library)
    return library


def build_text() -> str:
    """Which llama.cpp this is, and what of the CPU it uses: other builds may compute other bits."""
    return f"llama-cpp-python {version('llama-cpp-python')}; {load_library().llama_print_system_info().decode()}"


_OPTIONS: dict[str, Rule] = {
    "threads": whole(1, MOST_THREADS),
    "gpu_layers": or_none(whole(ALL_LAYERS, (1 << 31) - 1)),
    "kv_type": choice(KV_TYPES),
    "sequences": whole(1, MOST_SEQUENCES),
    "exact": flag(),
    "repack": flag(),
}


@dataclass(frozen=True)
class LlamaOptions:
    """Where and how llama.cpp computes.

    Raises:
        ValueError: On a value that makes no sense, naming it and what is expected.
    """

    threads: int = 1
    """Of the CPU."""
    gpu_layers: int | None = None
    """Layers on the GPU, if there is one to use; None is all of them, as is -1, and with 0 it is not opened."""
    kv_type: KvType = "f16"
    """Type of the KV cache: "f16", or "q8_0" for half of the memory."""
    sequences: int = 1
    """How many are kept apart; each takes a KV cache."""
    exact: bool = False
    """KV cache in float32, unfused attention: for comparisons."""
    repack: bool = False
    """Keep the weights interleaved for the CPU's vector units, in memory of their own, instead of mapping the file."""

    def __post_init__(self) -> None:
        check(self, _OPTIONS)


class LlamaModel(Closing):
    """An open GGUF of the `llama` arch with a context. A context manager: closing frees both in order.

    After `close`, and in a forked child, everything raises `MisoError`.
    """

    def __init__(
        self,
        path: Path,
        options: LlamaOptions,
        *,
        context: int,
        batch: int | None = None,
        gpu: Device | None = None,
        watch: ProductWatch | None = None,
    ) -> None:
        """Open `path` with room for `context` positions in each of the sequences.

        Args:
            path: The GGUF file.
            options: Where and how to compute.
            context: Positions of one sequence.
            batch: Most positions computed at once; by default `context`, and always room for one of each sequence.
            gpu: Where the layers on a GPU go; None is the CPU alone.
            watch: Who sees its products.

        Raises:
            ValueError: If llama.cpp has no room for so many positions, whatever the memory.
            BundleError: If llama.cpp does not accept the file.
            MemoryError: If there is not enough memory for the context.
        """
        if not 1 <= context <= _most_context(options.sequences):
            raise ValueError(
                f"the context of each of {options.sequences} sequences must be 1 to "
                f"{_most_context(options.sequences)} positions, not {context}"
            )
        self._lib = lib = load_library()
        self._process, self._closed, self._watch = OwnProcess(), False, watch
        self.context, self.sequences = context, options.sequences
        # With room for fewer than one of each sequence, llama.cpp ends the process.
        self.batch = max(min(batch or context, context), options.sequences)
        layers = 0 if gpu is None else ALL_LAYERS if options.gpu_layers is None else options.gpu_layers
        on_cpu = layers == 0
        with ExitStack() as stack:
            params = lib.llama_model_default_params()
            params.n_gpu_layers = layers
            params.use_extra_bufts = options.repack
            params.split_mode = _SPLIT_NONE
            # The list ends with NULL. No layers is not no GPU: without a list, llama.cpp would still open one, and send
            # it products of 32 rows and more; and it counts GPUs in an order of its own.
            self._devices = (ctypes.c_void_p * 2)(None if on_cpu or gpu is None else gpu.handle)
            params.devices = ctypes.addressof(self._devices)
            model = lib.llama_model_load_from_file(str(path).encode(), params)
            if not model:
                raise BundleError(
                    f"{path}: llama.cpp does not load it: not a whole GGUF of a llama model, or it does not fit into "
                    "memory. Fetch or convert it again, or put fewer layers on the GPU."
                )
            stack.callback(lib.llama_model_free, model)
            context_params = lib.llama_context_default_params()
            context_params.n_ctx = context * options.sequences
            context_params.n_batch = context_params.n_ubatch = self.batch
            context_params.n_seq_max = options.sequences
            context_params.kv_unified = False
            context_params.n_threads = context_params.n_threads_batch = options.threads
            context_params.embeddings = True
            context_params.pooling_type = _POOLING_NONE
            if on_cpu:
                context_params.op_offload = context_params.offload_kqv = False
            context_params.type_k = context_params.type_v = KV_TYPES["f32" if options.exact else options.kv_type]
            if watch is not None:
                kind = lib.ggml_backend_sched_eval_callback
                context_params.cb_eval = ctypes.cast(watch.callback, kind)
            if options.exact:
                context_params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            handle = lib.llama_init_from_model(model, context_params)
            if not handle:
                raise MemoryError(
                    f"{path}: no memory for a context of {options.sequences} x {context} positions with a KV cache in "
                    f"{options.kv_type}"
                )
            stack.callback(lib.llama_free, handle)
            self.embed_dim = int(lib.llama_model_n_embd(model))
            self.vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
            self._handle = handle
            self._memory = lib.llama_get_memory(handle)
            self._copies_wait = False
            self._batch = lib.llama_batch_init(self.batch, self.embed_dim, 1)
            stack.callback(lib.llama_batch_free, self._batch)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free the context, then the model. Idempotent. A forked child lets be what it shares with its parent."""
        self._closed = True
        if self._process.is_here:
            self._stack.close()

    def check(self) -> None:
        """Raise `MisoError` after `close` and in a forked child."""
        self._process.check()
        if self._closed:
            raise MisoError(CLOSED)

    def decode(
        self, embeddings: F32Array, sequences: Sequence[int], positions: Sequence[int], wanted: Sequence[bool]
    ) -> tuple[F32Array, F32Array]:
        """Compute new positions: row i of `embeddings` [T, embed_dim] is position `positions[i]` of `sequences[i]`.

        Returns the hidden states after the final norm [W, embed_dim] and the logits [W, vocab] of the `wanted` rows, in
        their order. Raises `ValueError` on what llama.cpp would read past the end for, and what a listener has raised.
        """
        self.check()
        count = len(embeddings)
        if embeddings.shape != (count, self.embed_dim) or not 0 < count <= self.batch:
            raise ValueError(f"expected embeddings [1..{self.batch}, {self.embed_dim}], not {list(embeddings.shape)}")
        if not len(sequences) == len(positions) == len(wanted) == count:
            raise ValueError(f"sequences, positions and wanted must have {count} entries each")
        if not all(
            0 <= s < self.sequences and 0 <= p < self.context for s, p in zip(sequences, positions, strict=True)
        ):
            raise ValueError(f"sequences must be below {self.sequences} and positions below {self.context}")
        lib, batch = self._lib, self._batch
        batch.n_tokens = count
        source = np.ascontiguousarray(embeddings, np.float32)
        ctypes.memmove(batch.embd, source.ctypes.data, source.nbytes)
        for row in range(count):
            batch.pos[row] = positions[row]
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequences[row]
            batch.logits[row] = wanted[row]
        status = lib.llama_decode(self._handle, batch)
        self._copies_wait = False
        if self._watch is not None:
            self._watch.check()
        if status != 0:
            reason = "no room in the KV cache" if status == _NO_ROOM else f"status {status}"
            raise BundleError(f"llama.cpp failed to decode {count} positions ({reason})")
        rows = [row for row in range(count) if wanted[row]]
        hidden = np.empty((len(rows), self.embed_dim), np.float32)
        logits = np.empty((len(rows), self.vocab), np.float32)
        for out, row in enumerate(rows):
            ctypes.memmove(hidden[out].ctypes.data, lib.llama_get_embeddings_ith(self._handle, row), hidden[out].nbytes)
            ctypes.memmove(logits[out].ctypes.data, lib.llama_get_logits_ith(self._handle, row), logits[out].nbytes)
        return hidden, logits

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop the positions of `sequence` from `start` on. Raises `ValueError` on what llama.cpp would not survive."""
        self.check()
        self._check_sequences(sequence)
        self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold the positions of `source`. Errors as `forget`."""
        self.check()
        self._check_sequences(source, target)
        if source == target:
            return
        self.forget(target)
        self._copies_wait = True
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def state(self, sequence: int, most_bytes: int) -> bytes | None:
        """All that `sequence` holds, for `restore`; None if that is more than `most_bytes`.

        None too between `copy` and `decode`: llama.cpp copies the numbers as it next decodes. Errors as `forget`.
        """
        self.check()
        self._check_sequences(sequence)
        size = self._lib.llama_state_seq_get_size(self._handle, sequence)
        if self._copies_wait or size > most_bytes:
            return None
        buffer = (ctypes.c_uint8 * size)()
        if self._lib.llama_state_seq_get_data(self._handle, buffer, size, sequence) != size:
            raise BundleError(f"llama.cpp failed to copy the state of sequence {sequence} ({size} bytes)")
        return bytes(buffer)

    def restore(self, sequence: int, state: bytes, positions: int) -> bool:
        """Make `sequence` hold what `state` was taken of: so many positions, where computing them would put them.

        The state may be another sequence's, and must come from a model of the same file, options and build: llama.cpp
        believes most of what it reads.

        Returns whether it does so; if not, `sequence` is empty. Errors as `forget`.
        """
        self.forget(sequence)
        if self._copies_wait:  # or the next decode would write a copy over what is restored
            self.decode(np.zeros((1, self.embed_dim), np.float32), [sequence], [0], [False])
            self.forget(sequence)
        # It takes a pointer to what it only reads.
        source = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        read = self._lib.llama_state_seq_set_data(self._handle, source, len(state), sequence)
        first = self._lib.llama_memory_seq_pos_min(self._memory, sequence)
        last = self._lib.llama_memory_seq_pos_max(self._memory, sequence)
        if (read, first, last) == (len(state), 0, positions - 1):
            return True
        self.forget(sequence)  # of what breaks off, llama.cpp keeps the positions
        return False

    def _check_sequences(self, *sequences: int) -> None:
        """There, llama.cpp would end the process, or take -1 for all of them."""
        if not all(0 <= sequence < self.sequences for sequence in sequences):
            raise ValueError(f"sequences must be 0 to {self.sequences - 1}, not {list(sequences)}")

    def forward(self, embeddings: F32Array) -> tuple[F32Array, F32Array]:
        """Decode `embeddings` [T, embed_dim] from position 0 of an emptied sequence 0, all rows wanted."""
        self.forget(0)
        count = len(embeddings)
        return self.decode(embeddings, [0] * count, range(count), [True] * count)


def _most_context(sequences: int) -> int:
    return _MOST_POSITIONS // sequences // _CONTEXT_STEP * _CONTEXT_STEP
