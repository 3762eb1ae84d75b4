"""How every word of the tiny model sounds: espeak-ng's renderings, each trimmed to whole frames, and sentences of them.

A word's melody depends on what follows it only (`words.KINDS`), so a sentence is its words' renderings one after the
other: one never seen in training still has an exact reference, of known F0 and duration. Knows nothing of codecs,
except that one of few dimensions is to come: see `high_band.py`.
"""

import hashlib
import io
import json
import logging
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ....core.files import open_whole
from ...mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ
from .high_band import with_fixed_hiss
from .words import KINDS, SPEAKERS, VARIANTS, WORDS, Speaker, canonical

Samples = NDArray[np.float32]

log = logging.getLogger(__name__)

_VERSION = 3
"""To be raised when the same numbers would give other renderings."""
_RANGE_PERCENT = {"": 30, ".": 130, "?": 150, ",": 70}
"""Of the voice's own pitch range: inside a sentence nearly level, at the end clearly falling or rising."""
_RATE = (1.0, 0.92)
_PITCH = (0, 4)
"""Of the variants: factor on the rate, steps on the pitch."""
_ACTIVE_RMS = 0.08
"""Loudness of a word: RMS of what is within 20 dB of its loudest 20 ms."""
_PEAK = 0.8
_FADE_IN, _FADE_OUT = 48, 240
"""Samples: 2 and 10 ms, so that no join clicks."""
_SPILL = 240
"""A last frame with no more than these samples of a word is not worth its 80 ms: the word ends before it."""


@dataclass(frozen=True)
class Rendering:
    """One word as one speaker says it before a mark: `samples` float32 `[frames * 1920]`, 24 kHz."""

    word: str
    kind: str
    speaker: str
    variant: int
    samples: Samples

    @property
    def frames(self) -> int:
        """Length in frames of 80 ms."""
        return len(self.samples) // FRAME_SAMPLES


def _espeak(speaker: Speaker, text: str, rate_wpm: int, pitch: int) -> Samples:
    """What espeak-ng says, at 24 kHz."""
    command = ["espeak-ng", "--stdout", "-m", "-v", speaker.voice, "-s", str(rate_wpm), "-p", str(pitch)]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            "espeak-ng is not installed, and the tiny model's data are made with it: apt install espeak-ng"
        ) from None
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"espeak-ng failed ({' '.join(command)}): {message}") from None
    samples, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    return np.asarray(soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), np.float32)


def _level(samples: Samples, window: int) -> NDArray[np.float64]:
    """RMS around every sample."""
    power = np.convolve(np.square(samples, dtype=np.float64), np.full(window, 1 / window), mode="same")
    return np.sqrt(np.maximum(power, 0.0))


def _whole_frames(samples: Samples) -> Samples:
    """The word alone at an even loudness, its ends faded, silence after it up to a whole frame."""
    level = _level(samples, 120)
    heard = np.flatnonzero(level > level.max() * 10 ** (-45 / 20))
    word = samples[heard[0] : heard[-1] + 1].astype(np.float64)
    if len(word) > FRAME_SAMPLES and len(word) % FRAME_SAMPLES <= _SPILL:
        word = word[: len(word) // FRAME_SAMPLES * FRAME_SAMPLES]
    level = _level(word.astype(np.float32), 480)
    active = level > level.max() / 10
    word *= min(_ACTIVE_RMS / float(np.sqrt(np.square(word[active]).mean())), _PEAK / float(np.abs(word).max()))
    word = with_fixed_hiss(word.astype(np.float32)).astype(np.float64)
    word[:_FADE_IN] *= np.sin(np.linspace(0, np.pi / 2, _FADE_IN)) ** 2
    word[-_FADE_OUT:] *= np.cos(np.linspace(0, np.pi / 2, _FADE_OUT)) ** 2
    result = np.zeros(-(-len(word) // FRAME_SAMPLES) * FRAME_SAMPLES, np.float32)
    result[: len(word)] = word
    return result


def render(word: str, kind: str, speaker: Speaker, variant: int = 0) -> Samples:
    """One word, float32 `[frames * 1920]` at 24 kHz; the same on every call.

    Raises `FileNotFoundError` if espeak-ng is not installed, `RuntimeError` if it fails.
    """
    # Only a stressed word has a melody, and espeak-ng stresses no "the" of its own accord.
    said = f'<emphasis level="strong">{word}{kind}</emphasis>' if kind else word
    text = f'<speak><prosody range="{_RANGE_PERCENT[kind]}%">{said}</prosody></speak>'
    return _whole_frames(
        _espeak(speaker, text, round(speaker.rate_wpm * _RATE[variant]), speaker.pitch + _PITCH[variant])
    )


def _recipe(speaker: Speaker) -> str:
    """A hash of all that a rendering depends on, so that an old cache is not taken for a new one."""
    numbers = [
        _VERSION,
        asdict(speaker),
        _RANGE_PERCENT,
        _RATE,
        _PITCH,
        _ACTIVE_RMS,
        _PEAK,
        _FADE_IN,
        _FADE_OUT,
        _SPILL,
    ]
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:12]


class Renderings:
    """All renderings of a vocabulary: made on first use, kept in memory and, given a directory, there as `.npz`.

    A run that was cut off goes on where it stopped: a file holds all kinds and variants of one word of one speaker.
    """

    def __init__(
        self,
        directory: Path | None = None,
        words: Sequence[str] = WORDS,
        speakers: Sequence[Speaker] = SPEAKERS,
    ) -> None:
        self.words = tuple(canonical(word) for word in words)
        self.speakers = {speaker.name: speaker for speaker in speakers}
        self._directory = directory
        self._made: dict[tuple[str, str], dict[str, Samples]] = {}

    def get(self, word: str, kind: str, speaker: str, variant: int = 0) -> Rendering:
        """One rendering. Raises `ValueError` for a word, kind, speaker or variant that there is not."""
        word = canonical(word)
        if word not in self.words or kind not in KINDS or speaker not in self.speakers:
            raise ValueError(f"there is no rendering of {word!r} before {kind!r} by {speaker!r}")
        if not 0 <= variant < VARIANTS[kind]:
            raise ValueError(f"there is no variant {variant} of a word before {kind!r}, only {VARIANTS[kind]}")
        samples = self._of(word, self.speakers[speaker])[_key(kind, variant)]
        return Rendering(word, kind, speaker, variant, samples)

    def __iter__(self) -> Iterator[Rendering]:
        """All of them, always in the same order."""
        for speaker in self.speakers:
            for word in self.words:
                for kind in KINDS:
                    for variant in range(VARIANTS[kind]):
                        yield self.get(word, kind, speaker, variant)

    def _of(self, word: str, speaker: Speaker) -> dict[str, Samples]:
        key = (word, speaker.name)
        if key not in self._made:
            self._made[key] = self._read_or_make(word, speaker)
        return self._made[key]

    def _read_or_make(self, word: str, speaker: Speaker) -> dict[str, Samples]:
        keys = {_key(kind, variant): (kind, variant) for kind in KINDS for variant in range(VARIANTS[kind])}
        path = None
        if self._directory is not None:
            path = self._directory / f"{speaker.name}-{_recipe(speaker)}-{word.lower()}.npz"
            if path.is_file():
                with np.load(path) as stored:
                    if set(keys) <= set(stored.files):
                        return {key: stored[key] for key in keys}
        log.debug("rendering %s, %s", word, speaker.name)
        made = {key: render(word, kind, speaker, variant) for key, (kind, variant) in keys.items()}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_whole(path) as file:
                np.savez_compressed(file, **made)  # type: ignore[arg-type]
        return made


def _key(kind: str, variant: int) -> str:
    return f"{['inside', 'statement', 'question', 'continuation'][KINDS.index(kind)]}{variant}"
