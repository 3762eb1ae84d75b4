"""What one run of `miso-speak` asks for: its options, checked against each other before anything is read or loaded.

It knows neither files nor the model.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..models.levels import DEFAULT_LEVEL
from ..native.llama import KvType
from .audio.pipe import STANDARD_OUTPUT
from .choice import AUTO, engine_options
from .dialogue.turns import SAVED_VOICE_SUFFIX, STANDARD_INPUT
from .options import EngineOptions, SpeechOptions


@dataclass(frozen=True)
class SpeakRequest:
    """The options, by their names. Raises `ValueError` on those that contradict each other, or make no sense."""

    words: tuple[str, ...]
    file: str | None
    model: str | None
    revision: str | None
    quant: str
    out: str
    sample_rate: int
    loudness: float | None
    stream: bool | None
    chunk_frames: int
    voice: Path | None
    voice_text: str | None
    save_voice: Path | None
    voice_cache: Path | None
    speaker: int | None
    independent: bool
    sequences: int
    seed: int
    temperature: float
    top_k: int
    max_seconds: float
    threads: int | None
    gpu_layers: int | None
    main_gpu: int
    kv_type: KvType | Literal["auto"]
    context: int | None
    require_gpu: bool
    codec_provider: str
    verify: bool
    fit: bool
    as_json: bool
    quiet: bool
    debug: bool

    def __post_init__(self) -> None:
        texts = [source for source in (self.text, self.file) if source is not None]
        if self.model is None:
            raise ValueError(
                "which model? Pass --model DIR, or set MISO_MODEL. "
                f"`miso-convert --quant {DEFAULT_LEVEL.key}` makes one, "
                f"`miso-convert tiny --quant {DEFAULT_LEVEL.key} --out DIR` a tiny one in seconds"
            )
        self.options, self.engine  # noqa: B018  (checks the values)
        if self.fit:
            return
        if not texts and self.save_voice is None:
            raise ValueError("nothing to say: pass a text, - for standard input, or --file FILE")
        if len(texts) > 1:
            raise ValueError(f"a text and --file {self.file}: pass one of them")
        if self.voice is None and (self.voice_text is not None or self.save_voice is not None):
            raise ValueError("--voice-text and --save-voice are about a --voice: pass that too")
        if self.save_voice is not None and self.save_voice.suffix != SAVED_VOICE_SUFFIX:
            raise ValueError(f"--save-voice {self.save_voice}: a saved voice is a {SAVED_VOICE_SUFFIX} file")
        if self.require_gpu and self.gpu_layers == 0:
            raise ValueError("--require-gpu and --gpu-layers 0: pass one of them")
        if self.stream and self.loudness is not None:
            raise ValueError("--loudness is one of the whole, which --stream does not wait for: pass one of them")

        if self.sequences > 1 and not self.independent:
            raise ValueError("--sequences is about lines that do not hear each other: pass --independent too")
        if self.stream and self.sequences > 1:
            raise ValueError("--stream lets a line out as it is made, --sequences when it is whole: pass one of them")

    @property
    def text(self) -> str | None:
        """The text itself, if it was given as words."""
        return " ".join(self.words) if self.words else None

    @property
    def speaks(self) -> bool:
        """Whether there is anything to say: a voice can be saved without."""
        return self.text is not None or self.file is not None

    @property
    def script_directory(self) -> Path:
        """Where paths in a script start."""
        return Path() if self.file in (None, STANDARD_INPUT) else Path(self.file).parent

    @property
    def to_stdout(self) -> bool:
        """Whether standard output is for audio."""
        return self.out == STANDARD_OUTPUT

    @property
    def live(self) -> bool:
        """Whether sound leaves as it is made."""
        if self.stream is not None:
            return self.stream
        return self.to_stdout and self.loudness is None and self.sequences == 1

    @property
    def asked_kv_type(self) -> KvType | None:
        """Type of the KV cache, if one was asked for."""
        return None if self.kv_type == AUTO else self.kv_type

    @cached_property
    def engine(self) -> EngineOptions:
        """Where to compute, as far as it was said: what was not follows from this machine's memory."""
        return engine_options(
            threads=self.threads,
            gpu_layers=self.gpu_layers,
            kv_type=self.kv_type,
            require_gpu=self.require_gpu,
            main_gpu=self.main_gpu,
            context=self.context,
            sequences=self.sequences,
            voice_directory=self.voice_cache,
            codec_provider=self.codec_provider,
        )

    @cached_property
    def options(self) -> SpeechOptions:
        """How to speak."""
        return SpeechOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            seed=self.seed,
            max_seconds=self.max_seconds,
            chunk_frames=self.chunk_frames,
            loudness_lufs=self.loudness,
        )
