"""Clips as clients send them, and as nobody should."""

import io
import struct

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def tone(seconds: float = 1.0, rate_hz: int = 24_000) -> Floats:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def clip(samples: Floats, rate_hz: int = 24_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def container(kind: str, codec: str, seconds: float = 1.0, rate_hz: int = 48_000, *, picture: bool = False) -> bytes:
    """What a browser or a phone records: sound in one of FFmpeg's containers, `picture` with a video beside it."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=rate_hz)
        stream.layout = "stereo"
        if picture:
            video = out.add_stream("mpeg4" if kind == "mp4" else "libvpx", rate=10)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
            frames = [av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24")] * 2
            for number, picture_frame in enumerate(frames):
                picture_frame.pts = number
                out.mux(video.encode(picture_frame))
            out.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(np.stack([tone(seconds, rate_hz)] * 2), format="fltp", layout="stereo")
        sound.sample_rate = rate_hz
        resampler = av.AudioResampler(
            stream.format, "stereo", rate_hz, frame_size=stream.codec_context.frame_size or 1024
        )
        for frame in [*resampler.resample(sound), *resampler.resample(None)]:
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def wav_head(channels: int, rate_hz: int, data_bytes: int) -> bytes:
    """Of a 16-bit WAV that promises so much."""
    size = channels * 2
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate_hz, rate_hz * size & 0xFFFFFFFF, size, 16)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data" + struct.pack("<I", data_bytes)
