"""The codec on a thread of its own: frame t is decoded while the model computes frame t+1.

One `DecodeThread` is one utterance. It knows no model and no codec: it calls `decode` of what it is given, in order.

    with DecodeThread(codec.stream()) as decoding:
        for frame in frames:
            decoding.submit(frame)
            yield from decoding.poll()
        yield from decoding.finish()
"""

import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from ...core.arrays import I64Array
from ...core.closing import Closing
from ..audio.samples import Samples


class Decoder(Protocol):
    """What decodes: a `CodecStream`."""

    def decode(self, codes: I64Array) -> Samples:
        """Codes `[n, codebooks]` to samples `[n * frame_samples]`."""


class DecodeThread(Closing):
    """Decodes what is submitted, each submission as one chunk, in order. One thread submits and collects.

    A submission is one call of the decoder and one chunk of samples, never merged with another: the same submissions
    give the same bits, however the threads are scheduled. An exception of the decoder is raised by the next call here,
    after the chunks before it were collected, and ends the utterance.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._todo: SimpleQueue[I64Array | None] = SimpleQueue()
        self._done: SimpleQueue[Samples | BaseException] = SimpleQueue()
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._uncollected = 0
        self._thread = threading.Thread(target=self._work, args=(decoder,), name="miso-codec", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Chunks submitted and not yet collected. A producer that outruns the codec waits with `wait_one`."""
        return self._uncollected

    def submit(self, codes: I64Array) -> None:
        """Hand over the next frames `[n, codebooks]`, or one frame `[codebooks]`; does not wait."""
        if self._failed is not None:
            raise self._failed
        if self._stop.is_set():
            raise ValueError("this utterance is finished: start another DecodeThread")
        # A copy: the caller may reuse its array for the next frame.
        self._todo.put(np.array(codes, ndmin=2))
        self._uncollected += 1

    def poll(self) -> list[Samples]:
        """The chunks that are done by now, oldest first; does not wait."""
        chunks: list[Samples] = []
        while self._uncollected and self._failed is None:
            try:
                self._collect(chunks, self._done.get_nowait())
            except Empty:
                return chunks
        return self._unless_failed(chunks)

    def wait_one(self) -> Samples:
        """The next chunk; waits for it. Raises `ValueError` when none is pending."""
        chunks: list[Samples] = []
        if self._failed is None:
            if not self._uncollected:
                raise ValueError("nothing to wait for: every submitted chunk was collected")
            self._collect(chunks, self._done.get())
        return self._unless_failed(chunks)[0]

    def finish(self) -> Iterator[Samples]:
        """The remaining chunks as they get done; after the last of them the thread is gone."""
        while self._uncollected or self._failed is not None:
            yield self.wait_one()
        self.close()

    def close(self) -> None:
        """End the thread and drop what was not collected. Waits for the decoder's current call; may be called again."""
        self._stop.set()
        self._todo.put(None)
        self._thread.join()
        self._uncollected = 0

    def _collect(self, chunks: list[Samples], result: Samples | BaseException) -> None:
        if isinstance(result, BaseException):
            self._failed = result
        else:
            self._uncollected -= 1
            chunks.append(result)

    def _unless_failed(self, chunks: list[Samples]) -> list[Samples]:
        """`chunks`; with none left to give, the decoder's exception."""
        if self._failed is not None and not chunks:
            self.close()
            raise self._failed
        return chunks

    def _work(self, decoder: Decoder) -> None:
        while (codes := self._todo.get()) is not None and not self._stop.is_set():
            try:
                self._done.put(decoder.decode(codes))
            except BaseException as error:  # whatever it is, it is the producer's to handle
                self._done.put(error)
                return
