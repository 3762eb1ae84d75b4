"""How many threads the codec needs beside a GPU: its own time by threads, and the RTF of a stream that waits for it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure.speed import FRAME_S

from miso_gguf import SpeechOptions
from miso_gguf.runtime.codec.codec import Codec
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.tts import MisoTTS

_CALLS, _STREAMS = 12, 2


def codec_threads(
    bundle: Path, level: str, *, gpu_layers: int, threads: int, counts: Sequence[int], frames: int
) -> list[dict[str, Any]]:
    """One entry for each of `counts` threads of the codec. All times but the RTF in milliseconds."""
    found = []
    options = EngineOptions(threads=threads, gpu_layers=gpu_layers, allow_cpu=False)
    with MisoTTS.load(bundle, level, options=options) as tts:
        for count in counts:
            with Codec(tts.level.codec_decoder, tts.level.codec_encoder, threads=count) as codec:
                spoken = [_stream(MisoTTS(tts.level, tts.engine, codec), frames) for _ in range(_STREAMS)]
                decode_ms = {str(size): round(_decode_ms(codec, size), 2) for size in (1, 4, 12)}
            found.append(
                {
                    "level": level,
                    "device": tts.engine.gpu.description if tts.engine.gpu else "CPU",
                    "codec_threads": count,
                    "decode_ms": decode_ms,
                    "rtf": [each["rtf"] for each in spoken],
                    "ttfa_ms": [round(1e3 * each["ttfa_s"], 1) for each in spoken],
                }
            )
    return found


def _decode_ms(codec: Codec, size: int) -> float:
    """Of one call with `size` frames, the median of several."""
    codes = np.random.default_rng(0).integers(1, codec.cardinality, (size, codec.codebooks))
    decoder, spent = codec.stream(), []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        decoder.decode(codes)
        spent.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(spent))


def _stream(tts: MisoTTS, frames: int) -> dict[str, Any]:
    options = SpeechOptions(max_seconds=frames * FRAME_S, split_sentences=False, retry=False)
    with tts.stream(" ".join(["word"] * max(5, frames // 3)), options=options) as spoken:
        for _ in spoken:
            pass
    return spoken.speech.as_dict()
