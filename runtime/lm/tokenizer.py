"""Text to token ids, by llama.cpp's own tokenizer, from the vocabulary inside a bundle's embeddings file.

Tokens that somebody added to be written into texts (`<laugh>`) are found here, leftmost and longest first, as the
tokenizers library does: llama.cpp looks for the longest ones first, and takes some (`<|im_end|>`) for its own.
"""

import ctypes
import re
import threading
from pathlib import Path

import numpy as np

from ...core.closing import CLOSED, Closing
from ...core.errors import BundleError, MisoError
from ...core.process import OwnProcess
from ...native.gguf_file import GgufFile
from ...native.llama import load_library

_USER_DEFINED = 4
"""Source: llama.h, `enum llama_token_type`."""


class Tokenizer(Closing):
    """An open vocabulary. A context manager. Safe to use from several threads.

    Attributes:
        size: Entries of the vocabulary.
        added: The added tokens' texts, each of which is one id in a text: the leftmost and longest counts.
    """

    def __init__(self, path: Path) -> None:
        """Open the vocabulary of a GGUF file. Raises `BundleError` if it has none."""
        self._lib = lib = load_library()
        # Reentrant: a signal's handler may close it while its own thread splits a text.
        self._lock, self._process = threading.RLock(), OwnProcess()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BundleError(f"{path}: llama.cpp finds no tokenizer in it. Fetch or convert the bundle again.")
        self._vocab = vocab = lib.llama_model_get_vocab(self._model)
        self.size = int(lib.llama_vocab_n_tokens(vocab))
        self._head = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []
        self._tail = [lib.llama_vocab_eos(vocab)] if lib.llama_vocab_get_add_eos(vocab) else []
        try:
            self._ids = self._added_ids(path)
        except BaseException:
            self.close()
            raise
        self.added = tuple(sorted(self._ids, key=len, reverse=True))
        self._pattern = re.compile(f"({'|'.join(map(re.escape, self.added))})") if self.added else None

    def close(self) -> None:
        """Free the vocabulary, once no text is being split. Idempotent; nothing in a forked child."""
        if not self._process.is_here:
            return
        with self._lock:
            model, self._model = self._model, None
            if model:
                self._lib.llama_model_free(model)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, BOS and EOS included. An added token is one id.

        What looks like a special token of the base tokenizer (`<|end_of_text|>`) is ordinary text.

        Raises `MisoError` after `close`, and in a forked child.
        """
        self._process.check()
        text = text.encode("utf-8", "replace").decode()
        pieces = self._pattern.split(text) if self._pattern else [text]  # by turns text and an added token
        with self._lock:
            self._check_open()
            ids = [[self._ids[piece]] if index % 2 else self._split(piece) for index, piece in enumerate(pieces)]
        return [*self._head, *(token for piece in ids for token in piece), *self._tail]

    def _check_open(self) -> None:
        if not self._model:
            raise MisoError(CLOSED)

    def _split(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        self._check_open()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
        assert 0 <= count <= room, (len(data), count)
        return list(ids[:count])

    def _added_ids(self, path: Path) -> dict[str, int]:
        with GgufFile(path) as file:
            types = file.integers("tokenizer.ggml.token_type")
        ids = [] if types is None else np.flatnonzero(types[: self.size] == _USER_DEFINED).tolist()
        return {self._lib.llama_vocab_get_text(self._vocab, i).decode("utf-8", "replace"): i for i in ids}
