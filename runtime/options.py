"""What is asked for: by one call how to speak, by loading where to compute. What the model is stands in its bundle."""

import math
from dataclasses import dataclass, field

from ..models.mimi import FRAME_RATE_HZ
from ..native.llama import KV_TYPES, LlamaOptions
from ..native.threads import default_threads

ALL_LAYERS = -1
_MOST = {"threads": 512, "sequences": 256}
"""What ggml and llama.cpp have room for. Source: `GGML_MAX_N_THREADS` in ggml.h, `LLAMA_MAX_SEQ` in llama-cparams.h."""


@dataclass(frozen=True)
class SpeechOptions:
    """How to speak.

    Raises:
        ValueError: On a value that makes no sense, naming it and the range.
    """

    temperature: float = 0.9
    """0 is greedy: always the likeliest code. Source of the default: upstream."""
    top_k: int = 50
    """Candidates of each code that take part in the draw. Source of the default: upstream."""
    seed: int = 0
    """Same seed, same bundle, same machine: same codes."""
    max_seconds: float = 90.0
    """Longest audio of one sentence. Its text also sets a limit: see `sentences.speech_cap_frames`."""
    chunk_frames: int = 1
    """Frames of 80 ms in a streamed chunk; the first chunk is always one frame."""
    split_sentences: bool = True
    """Speak long text sentence by sentence; otherwise it is one utterance, and has to fit into the context."""
    retry: bool = True
    """Speak a sentence again with another seed, once, when it comes out empty, silent or as a loop."""
    loudness_lufs: float | None = None
    """Integrated loudness of the result (ITU-R BS.1770), e.g. -16; None leaves it as it is. Not when streaming."""

    @property
    def max_frames(self) -> int:
        """`max_seconds` in frames, at least one."""
        return max(1, int(self.max_seconds * FRAME_RATE_HZ))

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 10.0)
        _check("top_k", self.top_k, 1, 1 << 31)
        _check("seed", self.seed, 0, (1 << 64) - 1)
        _check("max_seconds", self.max_seconds, 0.08, 3600.0)
        _check("chunk_frames", self.chunk_frames, 1, 1 << 16)
        if self.loudness_lufs is not None:
            _check("loudness_lufs", self.loudness_lufs, -60.0, -5.0)


@dataclass(frozen=True)
class EngineOptions(LlamaOptions):
    """Where and how to compute: what a loaded model is asked for once.

    `gpu_layers` counts the backbone's layers, and None is all of them, if there is a GPU that this build can use.
    `repack` makes loading take 18 s instead of 2.5 (8B, Q4_K_M), and holds the weights twice: worth it where the gain
    is large, ARM and AVX-512. The depth decoder is always interleaved.

    Raises:
        ValueError: On a value that makes no sense, naming it and the range.
    """

    threads: int = field(default_factory=default_threads)
    """Of the CPU; by default at most its physical cores."""
    main_gpu: int = 0
    """Index of the GPU."""
    context: int | None = None
    """Positions of a prompt and what is said on it, 12.5 a second; the default, and the most, is the model's own."""
    allow_cpu: bool = True
    """When layers are asked for on a GPU that is not there: go on without it."""
    waiting: int = 64
    """Utterances that may wait until one of `sequences` is free; who comes then gets `Busy`."""
    codec_provider: str = "cpu"
    """Where the codec runs: "cpu", or "cuda" with onnxruntime-gpu."""

    def __post_init__(self) -> None:
        for name, low in (
            ("threads", 1),
            ("sequences", 1),
            ("waiting", 0),
            ("main_gpu", 0),
            ("gpu_layers", ALL_LAYERS),
        ):
            value, most = getattr(self, name), _MOST.get(name, (1 << 31) - 1)
            if value is None and name == "gpu_layers":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, not {value!r}")
            if value < low:
                least = f"{low} (all) or more" if low == ALL_LAYERS else f"at least {low}"
                raise ValueError(f"{name} must be {least}, not {value}")
            if value > most:
                raise ValueError(f"{name} must be at most {most}, not {value}")
        if self.kv_type not in KV_TYPES:
            raise ValueError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {self.kv_type!r}")


def _check(name: str, value: float, low: float, high: float) -> None:
    whole = isinstance(low, int)
    if isinstance(value, bool) or (whole and not isinstance(value, int)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a{' whole' if whole else ''} number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, not {value}")
