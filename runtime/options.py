"""What is asked for: by one call how to speak, by loading where to compute. What the model is stands in its bundle."""

from dataclasses import dataclass, field
from pathlib import Path

from ..core.checked import Rule, check, choice, directory, flag, number, or_none, whole
from ..models.mimi import FRAME_RATE_HZ
from ..native.llama import LlamaOptions
from ..native.threads import default_threads

CODEC_PROVIDERS = ("cpu", "cuda")
_MOST_INT = (1 << 31) - 1
"""Of C's `int`."""

_SPEECH: dict[str, Rule] = {
    "temperature": number(0, 10),
    "top_k": whole(1, _MOST_INT),
    "seed": whole(0, (1 << 64) - 1),
    "max_seconds": number(0.08, 3600),
    "chunk_frames": whole(1, 1 << 16),
    "split_sentences": flag(),
    "retry": flag(),
    "loudness_lufs": or_none(number(-60, -5)),
}
_ENGINE: dict[str, Rule] = {
    "main_gpu": whole(0, _MOST_INT),
    "context": or_none(whole(1, _MOST_INT)),
    "allow_cpu": flag(),
    "waiting": whole(0, _MOST_INT),
    "voice_cache_bytes": whole(0, (1 << 63) - 1),
    "voice_directory": or_none(directory()),
    "codec_provider": choice(CODEC_PROVIDERS),
}


@dataclass(frozen=True)
class SpeechOptions:
    """How to speak.

    Raises:
        ValueError: On a value that makes no sense, naming it and what is expected.
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
        check(self, _SPEECH)


@dataclass(frozen=True)
class EngineOptions(LlamaOptions):
    """Where and how to compute: what a loaded model is asked for once.

    `gpu_layers` counts the backbone's layers, and None is all of them, if there is a GPU that this build can use.
    `repack` makes loading take 18 s instead of 2.5 (8B, Q4_K_M), and holds the weights twice: worth it where the gain
    is large, ARM and AVX-512. The depth decoder is always interleaved.

    Raises:
        ValueError: On a value that makes no sense, naming it and what is expected.
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
    voice_cache_bytes: int = 256_000_000
    """Most memory for the KV states of voices, so that they are not computed again; 8B takes 22 MB for 10 s in F16."""
    voice_directory: Path | None = None
    """Where they are kept on disk too, so that another process need not compute them; made if it is not there."""
    codec_provider: str = "cpu"
    """Where the codec runs: "cpu", or "cuda" with onnxruntime-gpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, _ENGINE)
