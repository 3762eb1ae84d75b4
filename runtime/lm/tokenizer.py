"""Text to token ids, by llama.cpp's own tokenizer, from the vocabulary inside a bundle's embeddings file."""

import ctypes
import threading
from pathlib import Path

from ...core.closing import Closing
from ...core.errors import BundleError, MisoError
from ...native.llama import load_library


class Tokenizer(Closing):
    """An open vocabulary. A context manager. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Open the vocabulary of a GGUF file. Raises `BundleError` if it has none."""
        self._lib = lib = load_library()
        self._lock = threading.Lock()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BundleError(f"{path}: llama.cpp finds no tokenizer in it. Fetch or convert the bundle again.")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.size = int(lib.llama_vocab_n_tokens(self._vocab))

    def close(self) -> None:
        """Free the vocabulary. Idempotent."""
        with self._lock:
            if self._model:
                self._lib.llama_model_free(self._model)
                self._model = None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, BOS and EOS included. What looks like a special token in it is ordinary text.

        Raises `MisoError` after `close`.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        with self._lock:
            if not self._model:
                raise MisoError("this model is closed")
            count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, True, False)
        assert 0 <= count <= room, (len(data), count)
        return list(ids[:count])
