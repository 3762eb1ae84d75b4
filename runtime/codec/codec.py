"""The Mimi codec of a bundle: codes to samples and back, frame by frame or a whole clip, in ONNX Runtime.

The graphs describe themselves (docs/mimi.md, "The contract"), so there are no names and no shapes of the model here.
This module does not know the language model: its vocabulary is wider than the codec's, see `Codec.playable`.

Codes are int64 `[frames, codebooks]`, samples float32 `[n]` at 24 kHz in [-1, 1].
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import I64Array
from ...core.closing import Closing
from ...core.errors import BundleError, MisoError
from ...core.process import OwnProcess
from ..audio.samples import Samples, checked
from .onnx import OnnxStream
from .state import Row, Rows, joined

log = logging.getLogger(__name__)

_CHUNK_FRAMES = 10
"""Frames of one call: more are hardly faster, and each takes 4 MB (docs/mimi.md), which ONNX Runtime keeps."""


class CodecStream:
    """One utterance being decoded. Streams of one codec are independent; each is for one thread at a time."""

    def __init__(self, codec: "Codec", row: Row) -> None:
        self._codec = codec
        self.row = row
        """The state after what was decoded; only the codec changes it."""
        self._warned = False

    def decode(self, codes: I64Array) -> Samples:
        """The samples of the next frames: `[n, codebooks]` to `[n * frame_samples]`; any chunking gives the same audio.

        Raises `ValueError` for codes that are not the codec's, before anything is decoded.
        """
        return self._codec.decode_together([self], [codes])[0]

    def playable(self, codes: I64Array) -> I64Array:
        """`Codec.playable`, which warns once for the whole utterance."""
        result, replaced = self._codec.without_specials(codes)
        if replaced and not self._warned:
            self._warned = True
            log.warning("the model chose codes that no audio belongs to: they are played as code 0")
        return result


class Codec(Closing):
    """The decoder of a bundle and, where voices are read, its encoder.

    May be used from several threads, each with its own `stream`.

    Args:
        decoder: The decoder's ONNX file.
        encoder: The encoder's; it is opened by the first `encode`.
        threads: Threads of one call. Another number rounds otherwise: samples then differ by less than 1e-6.
        provider: "cpu", or "cuda" with onnxruntime-gpu.

    Raises:
        BundleError: A file is missing, damaged or not one of ours.
        MisoError: The provider cannot be had on this machine.
        ValueError: `threads` or `provider` makes no sense.
    """

    def __init__(self, decoder: Path, encoder: Path | None = None, *, threads: int = 1, provider: str = "cpu") -> None:
        self.threads = threads
        self._provider = provider
        self._encoder_path = encoder
        self._encoder: OnnxStream | None = None
        self._process = OwnProcess()
        # Reentrant: a signal's handler may close what its own thread opens.
        self._lock = threading.RLock()
        self._rows = Rows()
        self._decoder = OnnxStream(decoder, "mimi-decoder", threads, provider)
        numbers = self._decoder.numbers
        self.codebooks = numbers["codebooks"]
        self.cardinality = numbers["cardinality"]
        self.sample_rate_hz = numbers["sample_rate_hz"]
        self.frame_samples = numbers["frame_samples"]

    def stream(self) -> CodecStream:
        """The start of an utterance."""
        return CodecStream(self, Row(self._decoder.start(), 0))

    def decode(self, codes: I64Array) -> Samples:
        """A whole utterance: `[frames, codebooks]` to `[frames * frame_samples]`."""
        return self.stream().decode(codes)

    def decode_together(self, streams: Sequence[CodecStream], codes: Sequence[I64Array]) -> list[Samples]:
        """The samples of the next frames of several streams, wherever each of them is, in one pass over the weights.

        They are those of each stream alone up to rounding (docs/mimi.md). Either all streams go on or none.

        Args:
            streams: Different streams of this codec.
            codes: Of each, `[n, codebooks]` with the same n. For up to 10 of the frames at once, 4 MB are taken a row.

        Raises:
            ValueError: Codes are not the codec's, or streams and codes do not fit together.
            BundleError: ONNX Runtime cannot compute it.
            MisoError: The codec is closed, or was opened before the process was forked.
        """
        self._decoder.check_usable()
        checked_codes = [self.checked_codes(each) for each in codes]
        lengths = [len(each) for each in checked_codes]
        if len(set(streams)) != len(lengths) or len(streams) != len(lengths) or len(set(lengths)) != 1:
            raise ValueError(
                f"decoding together takes different streams and as many frames of each, not {lengths} frames of "
                f"{len(set(streams))} streams"
            )
        data = np.stack(checked_codes).transpose(0, 2, 1)
        rows = [stream.row for stream in streams]
        chunks: list[list[Samples]] = [[np.zeros(0, np.float32)] for _ in streams]
        for start in range(0, lengths[0], _CHUNK_FRAMES):
            order, state = joined(rows)
            frames = np.ascontiguousarray(data[order, :, start : start + _CHUNK_FRAMES])
            audio, state = self._decoder.step(frames, state)
            for number, row, samples in zip(order, self._rows.parted(state, len(order)), audio, strict=True):
                rows[number] = row
                # A copy, or whoever keeps one stream's samples would keep those of all.
                chunks[number].append(samples.reshape(-1).copy())
        for stream, row in zip(streams, rows, strict=True):
            stream.row = row
        self._rows.tidy()
        return [np.concatenate(each) if len(each) > 2 else each[-1] for each in chunks]

    def encode(self, samples: Samples) -> I64Array:
        """The codes `[ceil(n / frame_samples), codebooks]` of a whole clip; its last frame is padded with silence.

        Raises:
            ValueError: The samples are not finite floats `[n]`.
            MisoError: The codec was opened without an encoder, is closed, or was opened before the process was forked.
            BundleError: The encoder's file cannot be used.
        """
        self._process.check()
        samples = checked(samples)
        graph = self._open_encoder()
        state = graph.start()
        chunks = [np.zeros((0, self.codebooks), np.int64)]
        step = _CHUNK_FRAMES * self.frame_samples
        for start in range(0, len(samples), step):
            codes, state = graph.step(samples[None, None, start : start + step], state)
            chunks.append(codes[0].T)
        return np.concatenate(chunks)

    def playable(self, codes: I64Array) -> I64Array:
        """The codes with 0 for each code that the codec lacks: the model's vocabulary has specials beyond them.

        Warns in the log when there is any. Raises `ValueError` for what no model gives: negative codes, other shapes.
        """
        result, replaced = self.without_specials(codes)
        if replaced:
            log.warning("%d codes of %d that no audio belongs to are played as code 0", replaced, codes.size)
        return result

    def without_specials(self, codes: I64Array) -> tuple[I64Array, int]:
        """The codes with 0 for each one beyond the codec's, and how many those were."""
        codes = self._checked_shape(codes)
        specials = codes >= self.cardinality
        return np.where(specials, 0, codes), int(specials.sum())

    def checked_codes(self, codes: I64Array) -> I64Array:
        """The codes as int64. Raises `ValueError` naming the first one that is not the codec's."""
        codes = self._checked_shape(codes)
        wrong = (codes < 0) | (codes >= self.cardinality)
        if wrong.any():
            frame, codebook = (int(index) for index in np.argwhere(wrong)[0])
            raise ValueError(
                f"code {codes[frame, codebook]} of codebook {codebook} in frame {frame} is not one of the codec's "
                f"(0..{self.cardinality - 1}); Codec.playable replaces the model's special codes"
            )
        return codes

    def _checked_shape(self, codes: I64Array) -> I64Array:
        array: NDArray[Any] = np.asarray(codes)
        if array.ndim != 2 or array.shape[1] != self.codebooks or array.dtype.kind not in "iu":
            raise ValueError(
                f"codes must be integers [frames, {self.codebooks}], not {array.dtype} {list(array.shape)}"
            )
        return array.astype(np.int64, copy=False)

    def _open_encoder(self) -> OnnxStream:
        with self._lock:
            self._decoder.check_usable()  # not closed meanwhile
            if self._encoder is None:
                if self._encoder_path is None:
                    raise MisoError("this codec was opened without its encoder, and cannot turn audio into codes")
                encoder = OnnxStream(self._encoder_path, "mimi-encoder", self.threads, self._provider)
                if encoder.numbers != self._decoder.numbers:
                    raise BundleError(
                        f"{self._encoder_path}: made for another codec than {self._decoder.path.name} "
                        f"({encoder.numbers} against {self._decoder.numbers}). Convert both together."
                    )
                self._encoder = encoder
            return self._encoder

    def close(self) -> None:
        """Let go of both graphs; streams of this codec end with it. May be called again, and beside calls under way."""
        if not self._process.is_here:
            return  # the lock may be a lost thread's; see `OnnxStream.close`
        with self._lock:
            self._decoder.close()
            if self._encoder is not None:
                self._encoder.close()
