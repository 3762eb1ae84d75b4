"""What speaking gives back: chunks while it goes on, and a record of it all afterwards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import I64Array
from ..models.mimi import SAMPLE_RATE_HZ
from .audio.samples import Samples
from .audio.writer import AudioWriter


@dataclass(frozen=True)
class Segment:
    """Something already said: who said what, and how it sounded.

    Raises:
        ValueError: If `codes` is not int64 [frames, codebooks] with at least one frame.
    """

    text: str
    codes: I64Array
    """[frames, codebooks], the EOS frame not included."""
    speaker: int = 0

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or not len(self.codes) or self.codes.dtype != np.int64:
            raise ValueError(
                f"a segment's codes must be int64 [frames, codebooks], not {self.codes.dtype} {list(self.codes.shape)}"
            )


class Chunk(NamedTuple):
    """A piece of sound, on its way."""

    samples: Samples
    """Float32 [n], mono, 24 kHz, in [-1, 1]."""
    start_s: float
    """Where it belongs in the whole."""
    sentence: int
    """Index of the sentence."""
    elapsed_s: float
    """Wall time since speaking began."""


@dataclass(frozen=True)
class SpokenSentence:
    """One sentence as it was said."""

    text: str
    codes: I64Array
    """[frames, codebooks], the EOS frame not included: what was good and heard."""
    ended: str
    """"eos" by itself; "cap" at its longest; "loop", "silence" or "empty": cut there, see the log. "closed" when the
    listener stopped it, "error" when something failed: `codes` are what was heard by then."""
    tries: int
    prompt_rows: int
    """Positions of the prompt."""
    dropped_segments: int
    """How many segments of the context, the oldest, had no room. For the rest of the text they are left out."""
    heard_text: str | None = None
    """As much of the text as a reader would have said by then, if it was stopped half-way: nobody knows better."""


@dataclass
class Timing:
    """Where the time went, in seconds. `depth_s` includes sampling; the codec runs beside all of it."""

    frames: int = 0
    """All that were computed, those of rejected tries too."""
    first_audio_s: float = 0.0
    """TTFA: from the call to the first chunk."""
    wall_s: float = 0.0
    prefill_s: float = 0.0
    backbone_s: float = 0.0
    depth_s: float = 0.0
    host_s: float = 0.0


@dataclass
class Speech:
    """The result of speaking a text."""

    speaker: int
    sentences: list[SpokenSentence] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    audio_s: float = 0.0
    parts: list[Samples] = field(default_factory=list, repr=False)
    """Empty when it was streamed: the chunks have gone to whoever asked."""
    codebooks: int = 0
    """Of the model."""

    @property
    def samples(self) -> Samples:
        """The sound, float32 [n], mono, 24 kHz. Raises `ValueError` if it was streamed live."""
        if self.audio_s and not self.parts:
            raise ValueError("this was streamed, and its sound went with the chunks: keep those, or use generate")
        return np.concatenate([*self.parts, np.zeros(0, np.float32)])

    @property
    def codes(self) -> I64Array:
        """All frames, [frames, codebooks]."""
        nothing = np.zeros((0, self.codebooks), np.int64)
        return np.concatenate([sentence.codes for sentence in self.sentences] or [nothing])

    @property
    def segments(self) -> list[Segment]:
        """The sentences as context for what is said next; of one that was stopped half-way, what was heard."""
        return [
            Segment(s.text if s.heard_text is None else s.heard_text, s.codes, self.speaker)
            for s in self.sentences
            if len(s.codes)
        ]

    @property
    def rtf(self) -> float:
        """Wall time by audio time; below 1 is faster than real time. Infinite if nothing was said."""
        return self.timing.wall_s / self.audio_s if self.audio_s else float("inf")

    def save(self, path: Path | str, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
        """Write a sound file; see `AudioWriter` for formats and errors."""
        with AudioWriter(Path(path), sample_rate_hz) as writer:
            writer.write(self.samples)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but sound and codes."""
        timing, frames = self.timing, max(self.timing.frames, 1)
        return {
            "audio_s": round(self.audio_s, 3),
            "wall_s": round(timing.wall_s, 3),
            "rtf": round(self.rtf, 4) if self.audio_s else None,
            "ttfa_s": round(timing.first_audio_s, 4),
            "frames": timing.frames,
            "ms_per_frame": {
                "backbone": round(1e3 * timing.backbone_s / frames, 3),
                "depth": round(1e3 * timing.depth_s / frames, 3),
                "host": round(1e3 * timing.host_s / frames, 3),
            },
            "prefill_s": round(timing.prefill_s, 4),
            "sentences": [
                {
                    "text": s.text,
                    "frames": len(s.codes),
                    "ended": s.ended,
                    "tries": s.tries,
                    "prompt_rows": s.prompt_rows,
                    "dropped_segments": s.dropped_segments,
                    **({} if s.heard_text is None else {"heard_text": s.heard_text}),
                }
                for s in self.sentences
            ],
        }
