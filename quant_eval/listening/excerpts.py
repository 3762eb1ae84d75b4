"""The sounds of a study: what of each clip is heard, the anchor, and how they get into a page. It knows no trials."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples, to_pcm16

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
    if not len(samples):
        raise ValueError(f"{path}: has no samples, so it has changed: run `miso-eval run --fresh …` again")
    return np.asarray(samples, np.float32)


def is_short(path: Path) -> bool:
    """Whether it can be rated whole. Errors as `read_sound`."""
    try:
        return float(soundfile.info(str(path)).duration) <= LONGEST_S
    except soundfile.LibsndfileError:
        return len(read_sound(path)) <= LONGEST_S * SAMPLE_RATE_HZ


def are_equal(one: Samples, other: Samples) -> bool:
    """Whether there is nothing to be heard: every sample is the same as it is played, with 16 bits."""
    return bool(np.array_equal(to_pcm16(one), to_pcm16(other)))


def heard_pair(reference: Path, level: Path) -> tuple[Samples, Samples]:
    """What a trial plays of two one-step clips. Raises as `read_sound`, and `ValueError` if they are not in step."""
    one, other = read_sound(reference), read_sound(level)
    if len(one) != len(other):
        raise ValueError(
            f"{level}: has {len(other)} samples and {reference.name} {len(one)}, so one of them has changed: "
            "run `miso-eval run --fresh …` again"
        )
    return most_different(one, other)


def most_different(one: Samples, other: Samples, seconds: float = EXCERPT_S) -> tuple[Samples, Samples]:
    """The same part of both, of at most so many seconds: where they differ most. Both must be equally long."""
    length, wanted = len(one), round(seconds * SAMPLE_RATE_HZ)
    if length <= wanted:
        return faded(one), faded(other)
    energy = np.concatenate([[0.0], np.cumsum((one.astype(np.float64) - other) ** 2)])
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
            # As 16-bit numbers, so that what is played is what was compared.
            soundfile.write(str(written), to_pcm16(samples), SAMPLE_RATE_HZ, format=kind)
            found[number] = written.read_bytes()
    return found
