"""The sounds of a study: what of each clip is heard, the anchor, and how they get into a page. It knows no trials."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
from numpy.typing import NDArray

from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples

EXCERPT_S = 6.0
"""Of an ABX trial: what is longer is not remembered."""
LONGEST_S = 10.0
"""Of a take that is rated. Source: ITU-R BS.1534-3, 6: about 10 s, and 12 s at most."""
_FADE_S = 0.02
_STEP_S = 0.08
"""An excerpt begins at a frame."""
_PASS_HZ, _STOP_HZ = 3500.0, 4000.0
"""Of the anchor. Source: ITU-R BS.1534-3, 5.1: low-pass at 3.5 kHz, at least 25 dB down at 4 kHz and 50 dB at 4.5."""
_TAPS, _KAISER = 257, 7.0
"""70 dB down, and 0.01 dB of ripple, over a transition of 500 Hz at 24 kHz."""
BUDGET_BYTES = 45_000_000
"""Of FLAC in one page; above it MP3."""


def read_sound(path: Path) -> Samples:
    """Mono samples at 24 kHz.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no sound of an evaluation.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `miso-eval run --fresh …` again, or copy the clips here")
    try:
        samples, rate_hz = soundfile.read(str(path), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: is no sound file ({error}): run `miso-eval run --fresh …` again") from error
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
        raise ValueError(f"{path}: expected mono at {SAMPLE_RATE_HZ} Hz, found {samples.ndim} channels at {rate_hz} Hz")
    return np.asarray(samples, np.float32)


def is_short(path: Path) -> bool:
    """Whether it can be rated whole. Errors as `read_sound`."""
    try:
        return float(soundfile.info(str(path)).duration) <= LONGEST_S
    except soundfile.LibsndfileError:
        return len(read_sound(path)) <= LONGEST_S * SAMPLE_RATE_HZ


def are_equal(one: Samples, other: Samples) -> bool:
    """Whether there is nothing to be heard: every sample is the same."""
    return bool(np.array_equal(one, other))


def most_different(one: Samples, other: Samples, seconds: float = EXCERPT_S) -> tuple[Samples, Samples]:
    """The same part of both, of at most so many seconds: where they differ most. Both must be aligned."""
    length = min(len(one), len(other))
    wanted = round(seconds * SAMPLE_RATE_HZ)
    if length <= wanted:
        return faded(one[:length]), faded(other[:length])
    energy = np.concatenate([[0.0], np.cumsum((one[:length].astype(np.float64) - other[:length]) ** 2)])
    starts = np.arange(0, length - wanted + 1, round(_STEP_S * SAMPLE_RATE_HZ))
    begin = int(starts[np.argmax(energy[starts + wanted] - energy[starts])])
    return faded(one[begin : begin + wanted]), faded(other[begin : begin + wanted])


def beginning(samples: Samples, seconds: float = LONGEST_S) -> Samples:
    """At most so many seconds."""
    return faded(samples[: round(seconds * SAMPLE_RATE_HZ)])


def faded(samples: Samples) -> Samples:
    """With soft ends, so that nothing clicks where a clip was cut or begins again."""
    count = min(round(_FADE_S * SAMPLE_RATE_HZ), len(samples) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    found: Samples = samples.copy()
    found[:count] *= ramp
    found[len(found) - count :] *= ramp[::-1]
    return found


def anchor(samples: Samples) -> Samples:
    """Low-passed at 3.5 kHz: what everyone should rate lower."""
    if not len(samples):
        return samples
    times = np.arange(_TAPS) - (_TAPS - 1) / 2
    cutoff = (_PASS_HZ + _STOP_HZ) / 2 / SAMPLE_RATE_HZ
    taps = 2 * cutoff * np.sinc(2 * cutoff * times) * np.kaiser(_TAPS, _KAISER)
    full = np.convolve(samples.astype(np.float64), taps / taps.sum())
    begin = (_TAPS - 1) // 2
    found: Samples = full[begin : begin + len(samples)].astype(np.float32)
    return found


@dataclass(frozen=True)
class Encoded:
    """Sounds by number, as base64; `kind` is their format."""

    content: dict[str, str]
    kind: str


def encoded(sounds: Mapping[str, Samples], budget_bytes: int = BUDGET_BYTES) -> Encoded:
    """All as FLAC, which loses nothing; as MP3 where that were too much for a page."""
    found, kind = _encoded(sounds, "FLAC"), "FLAC"
    if sum(map(len, found.values())) > budget_bytes:
        found, kind = _encoded(sounds, "MP3"), "MP3"
    return Encoded({number: base64.b64encode(content).decode("ascii") for number, content in found.items()}, kind)


def _encoded(sounds: Mapping[str, Samples], kind: str) -> dict[str, bytes]:
    found = {}
    with TemporaryDirectory() as folder:
        # By name, so that no Python runs inside libsndfile: Ctrl-C there would become a short write.
        written = Path(folder) / "sound"
        for number, samples in sounds.items():
            subtype = "PCM_16" if kind == "FLAC" else None
            soundfile.write(str(written), _audible(samples), SAMPLE_RATE_HZ, format=kind, subtype=subtype)
            found[number] = written.read_bytes()
    return found


def _audible(samples: Samples) -> NDArray[np.float32]:
    """No browser decodes a file of no samples."""
    return samples if len(samples) else np.zeros(round(_STEP_S * SAMPLE_RATE_HZ), np.float32)
