"""The codec on a thread of its own: what several threads ask for is decoded in one call, beside the models.

It knows no model, and of the codec only that it can decode streams together.
"""

import atexit
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from ...core.arrays import I64Array
from ...core.closing import Closing
from ...core.errors import MisoError
from ...core.process import OwnProcess
from ..audio.samples import Samples

_MOST_FRAMES = 16
"""Rows times frames of one call with several streams: more are no faster, and each takes memory that is kept."""
_IDLE_S = 10.0
"""After so long without work the thread ends, so that it does not keep a codec that nobody has any more."""

Result = Samples | BaseException


class Decoder(Protocol):
    """What decodes: a `Codec`. Its streams are its own affair."""

    def decode_together(self, streams: Sequence[Any], codes: Sequence[I64Array]) -> list[Samples]:
        """The samples of the next frames of different streams, as many of each. Either all go on or none."""


class _Piece:
    """What one call of `decode` asks for. Each has a condition of its own: of eight who wait, seven are not woken."""

    def __init__(self, stream: Any, codes: I64Array, lock: threading.RLock) -> None:
        self.stream, self.codes, self.frames = stream, codes, len(codes)
        self.result: Result | None = None
        self.ready = threading.Condition(lock)


class CodecThread(Closing):
    """Decodes for all utterances of a codec. Any thread may call; the codec's own starts with the first call.

    The oldest call goes first, and with it those of other streams that wait with as many frames. What fails is repeated
    stream by stream, so that an error reaches only whom it belongs to. A piece is never cut, nor joined with another of
    its stream: alone, the same calls give the same bits.
    """

    def __init__(self, codec: Decoder) -> None:
        self._codec = codec
        self._process = OwnProcess()
        # Taken itself, not through its condition: Python's own code there may be interrupted, and would keep it.
        self._lock = threading.RLock()
        self._asked = threading.Condition(self._lock)
        self._waiting: deque[_Piece] = deque()
        self._open: list[_Piece] = []
        """Those for which somebody waits, in a call or before it."""
        self._thread: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        """End the thread: who waits, and whoever calls later, gets a `MisoError`. Waits for the call under way."""
        if not self._process.is_here:
            return
        with self._lock:
            self._closed = True
            self._waiting.clear()
            thread = self._thread
            for piece in self._open:
                piece.ready.notify_all()
            self._asked.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def decode(self, stream: Any, codes: I64Array) -> Samples:
        """The samples of the next frames `codes` [n, codebooks] of a stream; waits for them.

        Raises what the codec raises, and `MisoError` after `close` and in a process that was forked since.
        """
        self._process.check()
        piece = _Piece(stream, codes, self._lock)
        with self._lock:
            self._start()
            self._waiting.append(piece)
            self._asked.notify_all()
            try:
                self._open.append(piece)
                piece.ready.wait_for(lambda: piece.result is not None or self._closed)
            finally:
                if piece in self._open:
                    self._open.remove(piece)
                if piece in self._waiting:  # whoever was interrupted wants it no more
                    self._waiting.remove(piece)
        if piece.result is None:
            raise _closed()
        if isinstance(piece.result, BaseException):
            raise piece.result
        return piece.result

    def _start(self) -> None:
        if self._closed:
            raise _closed()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="miso-codec", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        # The interpreter must not end under a call: ONNX Runtime would end the process.
        atexit.register(self.close)
        try:
            # Between two calls nothing is held: what was dropped is gone at once.
            while self._turn():
                pass
        finally:
            atexit.unregister(self.close)

    def _turn(self) -> bool:
        """One call of the codec. False when the thread is to end."""
        with self._lock:
            while not (batch := self._taken()):
                if self._closed:
                    return False
                if not self._asked.wait(_IDLE_S) and not self._waiting:
                    self._thread = None
                    return False
        results = self._decoded(batch)
        with self._lock:
            for piece, result in zip(batch, results, strict=True):
                piece.result = result
                piece.ready.notify_all()
        return True

    def _taken(self) -> list[_Piece]:
        """What goes into the next call."""
        batch: list[_Piece] = []
        left: deque[_Piece] = deque()
        for piece in self._waiting:
            fits = not batch or (piece.frames == batch[0].frames and (len(batch) + 1) * piece.frames <= _MOST_FRAMES)
            is_next = all(piece.stream is not other.stream for other in (*batch, *left))
            (batch if fits and is_next else left).append(piece)
        self._waiting = left
        return batch

    def _decoded(self, batch: Sequence[_Piece]) -> Sequence[Result]:
        try:
            return self._codec.decode_together([piece.stream for piece in batch], [piece.codes for piece in batch])
        except BaseException as error:  # whatever it is, it is for whoever asked
            if len(batch) == 1:
                return [error]
        return [self._decoded([piece])[0] for piece in batch]


def _closed() -> MisoError:
    return MisoError("the codec is closed: open it or load its model again")
