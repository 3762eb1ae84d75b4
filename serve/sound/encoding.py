"""Speech as bytes of one of the formats, chunk by chunk: headers, frames and pages, none held back longer than needed.

Knows nothing of HTTP. MP3, Opus, AAC and FLAC are FFmpeg's, through PyAV. Every format encodes the same 16-bit samples.
"""

import io
import struct
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from ...core.closing import Closing
from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples, silence, to_pcm16
from .formats import FORMATS

_Pcm = NDArray[np.int16]

_UNKNOWN_BYTES = 0xFFFFFFFF
"""What a WAV that is streamed gives as its sizes: readers take what comes."""
_WAV_HEADER_BYTES = 44
_PCM_BYTES = 2
"""Of a sample."""

_NOTHING_MS = 80.0
"""Of silence where nothing was said: without a frame MP3 and AAC are no files, and an Ogg stream has no end."""


@dataclass(frozen=True)
class _Codec:
    """How FFmpeg is to encode a format. CPU time that it takes: 2 to 16 ms a second of sound."""

    container: str
    encoder: str
    bit_rate: int = 0
    """In bits a second; 0 if the format is lossless."""
    container_options: dict[str, str] = field(default_factory=dict)
    encoder_options: dict[str, str] = field(default_factory=dict)
    lead_samples: int = 0
    """Of silence before the first sample."""


_CODECS = {
    # Constant bit rate, so that players tell the time of a stream from its bytes. Where seeking back is possible a
    # first frame (Xing's) says the length, and how many samples at start and end are the encoder's own: 1105 at the
    # start, which a stream keeps.
    "mp3": _Codec("mp3", "libmp3lame", 96_000, {"id3v2_version": "0"}),
    # Pages of one packet (20 ms), of which FFmpeg holds one back: it takes more bytes than its one second, and no time.
    "opus": _Codec("ogg", "libopus", 48_000, {"page_duration": "20000"}),
    # The first frame is made from two of 1024 samples, and a codec frame of the model is 1920: with the lead it leaves
    # with that. It comes on top of the 1024 by which any AAC in ADTS begins too late. The other coder takes three times
    # as long, and at this rate it is further from the sound (SNR 45 dB against 55 on synthetic vowels).
    "aac": _Codec("adts", "aac", 96_000, encoder_options={"aac_coder": "fast"}, lead_samples=128),
    # At this level blocks are of 576 samples, 24 ms; at those above it of 2304. It takes 3 % more bytes.
    "flac": _Codec(
        "flac", "flac", container_options={"metadata_header_padding": "0"}, encoder_options={"compression_level": "2"}
    ),
}


class _Output(io.BytesIO):
    """What was encoded and not taken yet. `seekable` is what FFmpeg goes by when it writes lengths afterwards."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self._whole = whole

    def seekable(self) -> bool:
        return self._whole

    def take(self) -> bytes:
        content = self.getvalue()
        self.seek(0)
        self.truncate()
        return content


class Encoder(Closing):
    """Samples in, bytes of one format out. Used by one thread at a time; of any number at once each has its own."""

    def __init__(self, output: _Output, *, whole: bool) -> None:
        self._output = output
        self._whole = whole
        self._is_done = False

    def encode(self, samples: Samples) -> bytes:
        """Append samples float32 `[n]` at 24 kHz, n >= 0, and give what can leave by now; nothing if it is to be whole.

        A first chunk of 80 ms or more has bytes in every format. Raises `ValueError` after `finish` or `close`.
        """
        if self._is_done:
            raise ValueError("this encoder is finished or closed: open another for more sound")
        if len(samples):
            self._write(to_pcm16(samples))
        return b"" if self._whole else self._output.take()

    def finish(self) -> bytes:
        """The rest, to the last sample. Nothing if called again, or after `close`."""
        if self._is_done:
            return b""
        try:
            self._end()
            return self._output.take()
        finally:
            self.close()

    def close(self) -> None:
        """Drop what was not taken. May be called again."""
        if not self._is_done:
            self._is_done = True
            self._free()
            self._output.close()

    @abstractmethod
    def _write(self, pcm: _Pcm) -> None:
        """Encode `[n]`, n >= 1."""

    @abstractmethod
    def _end(self) -> None:
        """Encode what was held back, and write the lengths."""

    def _free(self) -> None:
        """Free what is native."""


class _PcmEncoder(Encoder):
    """Samples as they are."""

    def _write(self, pcm: _Pcm) -> None:
        self._output.write(pcm.astype("<i2").tobytes())

    def _end(self) -> None:
        pass


class _WavEncoder(_PcmEncoder):
    """Samples behind a header."""

    def __init__(self, output: _Output, *, whole: bool) -> None:
        super().__init__(output, whole=whole)
        output.write(_wav_header(None))

    def _end(self) -> None:
        if self._whole:
            size_bytes = self._output.tell() - _WAV_HEADER_BYTES
            self._output.seek(0)
            self._output.write(_wav_header(size_bytes))


def _wav_header(size_bytes: int | None) -> bytes:
    """Of so many bytes of samples; None: of nobody knows how many."""
    riff_bytes, data_bytes = (
        (_UNKNOWN_BYTES, _UNKNOWN_BYTES) if size_bytes is None else (size_bytes + _WAV_HEADER_BYTES - 8, size_bytes)
    )
    rates = (SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * _PCM_BYTES, _PCM_BYTES, 8 * _PCM_BYTES)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", riff_bytes, b"WAVE", b"fmt ", 16, 1, 1, *rates, b"data", data_bytes
    )


class _FFmpegEncoder(Encoder):
    """Samples through an encoder and a container of FFmpeg."""

    def __init__(self, output: _Output, codec: _Codec, *, whole: bool) -> None:
        super().__init__(output, whole=whole)
        # The same sound is the same bytes: no versions and no random numbers in them.
        options = {"fflags": "+bitexact", **codec.container_options}
        self._container = av.open(output, "w", format=codec.container, container_options=options)
        stream = self._container.add_stream(
            codec.encoder, SAMPLE_RATE_HZ, codec.encoder_options, layout="mono", bit_rate=codec.bit_rate
        )
        assert isinstance(stream, AudioStream)
        self._stream = stream
        self._container.start_encoding()
        self._position = 0
        self._lead_samples = codec.lead_samples
        if codec.lead_samples:
            self._write(np.zeros(codec.lead_samples, np.int16))

    def _write(self, pcm: _Pcm) -> None:
        frame = av.AudioFrame.from_ndarray(pcm[np.newaxis], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        frame.pts = self._position
        self._position += len(pcm)
        self._container.mux(self._stream.encode(frame))

    def _end(self) -> None:
        if self._position == self._lead_samples:
            self._write(to_pcm16(silence(_NOTHING_MS)))
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def _free(self) -> None:
        # Once it was closed this does nothing. Before, it writes an end that nobody reads.
        with suppress(av.FFmpegError):
            self._container.close()


def open_encoder(name: str, *, whole: bool) -> Encoder:
    """An encoder for one of `FORMATS`.

    Args:
        name: The format's.
        whole: `finish` is to give everything in one: where a format's header says a length it is the right one.
            Otherwise what is ready leaves with every chunk, and the header says that the length is not known. The
            encoded frames are the same.

    Raises:
        ValueError: No such format.
    """
    if name not in FORMATS:
        raise ValueError(f"response_format {name!r} is none of {', '.join(FORMATS)}")
    output = _Output(whole)
    if name == "pcm":
        return _PcmEncoder(output, whole=whole)
    if name == "wav":
        return _WavEncoder(output, whole=whole)
    return _FFmpegEncoder(output, _CODECS[name], whole=whole)
