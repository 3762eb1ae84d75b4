"""The codec on a thread of its own, for all utterances: frame t is decoded while the models compute frame t+1.

A `Decoding` is one utterance. What several of them wait for is decoded in one call. This module knows no model, and of
the codec only that it can decode streams together.

    with codec_thread.stream() as decoding:
        for frame in frames:
            decoding.submit(frame)
            yield from decoding.poll()
        yield from decoding.finish()
"""

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

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
    """What decodes: a `Codec`. Its streams are its own affair, but for their `playable`."""

    def stream(self) -> Any:
        """The start of an utterance."""

    def decode_together(self, streams: Sequence[Any], codes: Sequence[I64Array]) -> list[Samples]:
        """The samples of the next frames of different streams, as many of each. Either all go on or none."""


class Decoding(Closing):
    """One utterance being decoded, made by `CodecThread.stream`. Any thread may submit, collect and close.

    A submission is one chunk of samples, in order; it is never cut, nor joined with another of the same utterance. How
    many are `pending` is for its owner to bound: nobody else waits for it. What fails is raised by the next call here,
    after the chunks before it were collected, and by every call from then on. After `close` that is a `MisoError`.
    """

    def __init__(self, thread: "CodecThread", stream: Any) -> None:
        self._thread = thread
        self.decoder_stream = stream
        self._chunks: deque[Samples] = deque()
        self._failed: BaseException | None = None
        self._pending = 0

    @property
    def pending(self) -> int:
        """Chunks submitted and not yet collected. A producer that outruns the codec waits with `wait_one`."""
        return self._pending

    def playable(self, codes: I64Array) -> I64Array:
        """`Codec.playable`, which warns once for the whole utterance."""
        result: I64Array = self.decoder_stream.playable(codes)
        return result

    def submit(self, codes: I64Array) -> None:
        """Hand over the next frames `[n, codebooks]`, or one frame `[codebooks]`; does not wait."""
        with self._thread.lock:
            self._check()
            # A copy: the caller may reuse its array for the next frame.
            self._thread.enqueue(self, np.array(codes, ndmin=2))
            self._pending += 1

    def poll(self) -> list[Samples]:
        """The chunks that are done by now, oldest first; does not wait."""
        with self._thread.lock:
            self._check()
            return [self._collected() for _ in range(len(self._chunks))]

    def wait_one(self) -> Samples:
        """The next chunk; waits for it. Raises `ValueError` when none is pending."""
        with self._thread.lock:
            self._check()
            while not self._chunks:
                if not self._pending:
                    raise ValueError("nothing to wait for: every submitted chunk was collected")
                self._thread.wait_for_delivery()
                self._check()
            return self._collected()

    def finish(self) -> Iterator[Samples]:
        """The remaining chunks as they get done."""
        while self._pending or self._failed is not None:
            yield self.wait_one()

    def close(self) -> None:
        """Drop what was not collected; who waits for it gets a `MisoError`. Never waits; may be called again."""
        if self._thread.is_here:
            with self._thread.lock:
                self._failed = self._failed or MisoError("this utterance was closed: nothing more of it is decoded")
                self._chunks.clear()
                self._pending = 0
                self._thread.wake_owners()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be decoded. For the thread."""
        return self._failed is not None

    def deliver(self, result: Result) -> None:
        """Take over what came of the oldest submission. For the thread, which holds the lock."""
        if self.is_over:
            return
        if isinstance(result, BaseException):
            self._failed = result
        else:
            self._chunks.append(result)

    def _check(self) -> None:
        self._thread.check_open()
        if self._failed is not None and not self._chunks:
            raise self._failed

    def _collected(self) -> Samples:
        self._pending -= 1
        return self._chunks.popleft()


class _Piece(NamedTuple):
    """A submission that waits. One whose utterance was dropped is forgotten."""

    decoding: "weakref.ref[Decoding]"
    codes: I64Array


class CodecThread(Closing):
    """Decodes for all utterances of a codec. The thread starts with the first submission.

    The oldest submission goes first, and with it the next one of every other utterance that has as many frames. A call
    that fails is repeated stream by stream, so that an error reaches only whom it belongs to.
    """

    def __init__(self, codec: Decoder) -> None:
        self._codec = codec
        self._process = OwnProcess()
        # Reentrant: the garbage collector may close an utterance in the middle of any line here.
        self._lock = threading.RLock()
        self._submitted = threading.Condition(self._lock)
        self._delivered = threading.Condition(self._lock)
        self._waiting: deque[_Piece] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def stream(self) -> Decoding:
        """The start of an utterance. Raises `MisoError` after `close`, or in a child forked since."""
        with self.lock:
            self.check_open()
        return Decoding(self, self._codec.stream())

    def close(self) -> None:
        """End the thread and all utterances, whose next call raises `MisoError`. Waits for the call under way.

        May be called again.
        """
        if not self.is_here:
            return
        with self._lock:
            self._closed = True
            thread = self._thread
            self._submitted.notify_all()
            self._delivered.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # What a `Decoding` needs.

    @property
    def is_here(self) -> bool:
        """Whether this is the process that the thread is in."""
        return self._process.is_here

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """To be held for a look at any utterance. Raises `MisoError` in a forked child, where it may never be free."""
        self._process.check()
        return self._lock

    def check_open(self) -> None:
        """Raise `MisoError` after `close`."""
        if self._closed:
            raise MisoError("the codec is closed: open it again")

    def enqueue(self, decoding: Decoding, codes: I64Array) -> None:
        """Let `codes` be the next submission of `decoding`. The caller holds the lock, as for the next two."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="miso-codec", daemon=True)
            try:
                self._thread.start()
            except BaseException:
                self._thread = None  # and if it runs after all, it sees that it is not the one
                raise
        self._waiting.append(_Piece(weakref.ref(decoding), codes))
        self._submitted.notify_all()

    def wait_for_delivery(self) -> None:
        """Wait until something changed for some utterance."""
        self._delivered.wait()

    def wake_owners(self) -> None:
        """Let everyone who waits look again."""
        self._delivered.notify_all()

    # What runs on the thread.

    def _work(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """One call of the codec. False when the thread is to end."""
        # Between turns nothing is held: a dropped utterance is gone at once.
        batch = self._next_batch()
        if not batch:
            return False
        # Only the streams: an exception remembers what the lines that it came through knew.
        results = self._decoded([decoding.decoder_stream for decoding, _ in batch], [codes for _, codes in batch])
        with self._lock:
            for (decoding, _), result in zip(batch, results, strict=True):
                decoding.deliver(result)
            self._delivered.notify_all()
        return True

    def _next_batch(self) -> list[tuple[Decoding, I64Array]]:
        """What goes into the next call; waits for it. Nothing when the thread is to end."""
        with self._lock:
            while not self._closed and self._thread is threading.current_thread():
                if batch := self._taken():
                    return batch
                if not self._submitted.wait(_IDLE_S) and not self._waiting:
                    self._thread = None
        return []

    def _taken(self) -> list[tuple[Decoding, I64Array]]:
        batch: list[tuple[Decoding, I64Array]] = []
        left: deque[_Piece] = deque()
        seen: set[Decoding] = set()
        for piece in self._waiting:
            decoding = piece.decoding()
            if decoding is None or decoding.is_over:
                continue
            frames = len(piece.codes)
            fits = not batch or (frames == len(batch[0][1]) and (len(batch) + 1) * frames <= _MOST_FRAMES)
            if fits and decoding not in seen:
                batch.append((decoding, piece.codes))
            else:
                left.append(piece)
            seen.add(decoding)
        self._waiting = left
        return batch

    def _decoded(self, streams: Sequence[Any], codes: Sequence[I64Array]) -> Sequence[Result]:
        try:
            return self._codec.decode_together(streams, codes)
        except BaseException as error:  # whatever it is, it is the owner's to handle
            if len(streams) == 1:
                return [error]
        return [self._decoded([stream], [piece])[0] for stream, piece in zip(streams, codes, strict=True)]
