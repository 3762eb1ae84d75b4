"""A stock llama.cpp model fed by embeddings instead of token ids, through llama-cpp-python's low-level bindings.

One call gives what a CSM transformer needs of it: the hidden state after the final norm, and the logits.
"""

import ctypes
import logging
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..models.errors import BundleError
from .ggml import F32Array

_GGML_TYPE_F32, _GGML_TYPE_F16 = 0, 1
_POOLING_NONE = 0
_LOG_LEVEL_DEBUG = 4  # thousands of lines about every graph

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load_library() -> Any:
    """llama-cpp-python's low-level module, with the backends initialised and llama.cpp's log going to `logging`."""
    import llama_cpp.llama_cpp as library  # noqa: PLC0415  (takes a second: only those who run a model pay)

    library.llama_log_set(_forward_log(library), ctypes.c_void_p(0))
    library.llama_backend_init()
    return library


@lru_cache(maxsize=1)
def _forward_log(library: Any) -> Any:
    """The callback; cached, because ctypes needs it to outlive every call."""

    def forward(level: int, message: bytes, _data: object) -> None:
        if level != _LOG_LEVEL_DEBUG:
            log.debug("%s", message.decode("utf-8", "replace").rstrip())

    return library.llama_log_callback(forward)


class LlamaModel:
    """An open GGUF of the `llama` arch on the CPU, with a context. A context manager: closing frees both in order."""

    def __init__(self, path: Path, *, context: int, threads: int, exact: bool = False) -> None:
        """Open `path` with room for `context` positions.

        `exact` keeps the KV cache in float32 and attention unfused, for comparisons; the default is llama.cpp's.
        Raises `BundleError` if llama.cpp does not accept the file.
        """
        self._lib = lib = load_library()
        self.context = context
        with ExitStack() as stack:
            params = lib.llama_model_default_params()
            params.n_gpu_layers = 0
            model = lib.llama_model_load_from_file(str(path).encode(), params)
            if not model:
                raise BundleError(
                    f"{path}: llama.cpp does not load it: not a whole GGUF of a llama model. Convert again."
                )
            stack.callback(lib.llama_model_free, model)
            context_params = lib.llama_context_default_params()
            context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = context
            context_params.n_threads = context_params.n_threads_batch = threads
            context_params.embeddings = True
            context_params.pooling_type = _POOLING_NONE
            if exact:
                context_params.type_k = context_params.type_v = _GGML_TYPE_F32
                context_params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            handle = lib.llama_init_from_model(model, context_params)
            if not handle:
                raise BundleError(f"{path}: llama.cpp cannot make a context of {context} positions: not enough memory?")
            stack.callback(lib.llama_free, handle)
            self.embed_dim = int(lib.llama_model_n_embd(model))
            self.vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
            self._handle = handle
            self._stack = stack.pop_all()

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context, then the model. Idempotent."""
        self._stack.close()

    def forward(self, embeddings: F32Array) -> tuple[F32Array, F32Array]:
        """Decode `embeddings` [T, embed_dim] from position 0 in an emptied cache.

        Returns the hidden states after the final norm [T, embed_dim] and the logits [T, vocab]. Raises `ValueError` on
        a wrong shape: llama.cpp would read past the end.
        """
        count = len(embeddings)
        if embeddings.shape != (count, self.embed_dim) or not 0 < count <= self.context:
            raise ValueError(f"expected embeddings [1..{self.context}, {self.embed_dim}], not {list(embeddings.shape)}")
        lib = self._lib
        batch = lib.llama_batch_init(count, self.embed_dim, 1)
        try:
            batch.n_tokens = count
            source = np.ascontiguousarray(embeddings, np.float32)
            ctypes.memmove(batch.embd, source.ctypes.data, source.nbytes)
            for position in range(count):
                batch.pos[position] = position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                batch.logits[position] = 1
            lib.llama_memory_clear(lib.llama_get_memory(self._handle), True)
            status = lib.llama_decode(self._handle, batch)
            if status != 0:
                raise BundleError(f"llama.cpp failed to decode {count} positions (status {status})")
            hidden = np.ctypeslib.as_array(lib.llama_get_embeddings(self._handle), (count, self.embed_dim)).copy()
            logits = np.ctypeslib.as_array(lib.llama_get_logits(self._handle), (count, self.vocab)).copy()
        finally:
            lib.llama_batch_free(batch)
        return hidden, logits
