"""Pairs of recordings whose differences are known because they were made, and what each metric must say of them.

A phrase of six vowels at a known F0, changed in one way at a time. Held by `tests/quant_eval/prosody/test_truth.py`,
printed by `benchmarks/prosody_truth.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log, sqrt

import numpy as np
from synthetic_voice import RATE_HZ, Phrase, Samples, noise_in

from miso_gguf.quant_eval.prosody.compare import compare_aligned, compare_free
from miso_gguf.quant_eval.prosody.recording import measure_both
from miso_gguf.quant_eval.prosody.rhythm import peak_level_db, step_levels_db
from miso_gguf.quant_eval.prosody.sound import STEP_S
from miso_gguf.quant_eval.prosody.synchrony import synchrony

PHRASE = Phrase(vowels="aioaio", swing_semitones=2.0)
PAUSED = PHRASE.but(pauses=((2, 0.2), (4, 0.4)))
LAG = "lag"
"""Not a metric of the evaluation: by how many ms the second is found to come later."""
MELODY = ("lf0_rmse", "lf0_corr", "gross_pitch_error", "lf0_rmse_dtw", "f0_range", "f0_median")
VOICE = ("jitter", "shimmer", "hnr")
"""What there is only of voiced speech."""
RHYTHM = ("dur_ratio", "speech_rate", "pause_rate", "pause_mean", "pause_floor")


@dataclass(frozen=True)
class Truth:
    """One construction.

    Attributes:
        name: What was done to the second recording.
        reference: Makes the first.
        test: Makes the second.
        known: By metric: its value, and how far off it may be.
        absent: Metrics that must have no value.
    """

    name: str
    reference: Callable[[], Samples]
    test: Callable[[], Samples]
    known: dict[str, tuple[float, float]]
    absent: tuple[str, ...] = field(default=())


def measured(truth: Truth) -> dict[str, float]:
    """All metrics of the pair, and the lag; those of aligned recordings only if it is none."""
    first, second = measure_both(truth.reference(), truth.test())
    values = compare_free(first, second)
    found = synchrony(first.cepstra, second.cepstra)
    assert found is not None
    if not found.why_not_aligned:
        values |= compare_aligned(first.contours, second.contours)
    return {**values, LAG: 1000 * STEP_S * found.lag_steps}


def level(samples: Samples) -> float:
    """Their peak level in dB."""
    return peak_level_db(step_levels_db(samples))


def noisy(below_peak_db: float, *, in_pauses_only: bool = False) -> Samples:
    """`PAUSED` under white noise."""
    samples = PAUSED.samples()
    mask = PAUSED.pause_mask() if in_pauses_only else np.ones(len(samples), bool)
    return noise_in(mask, samples, below_peak_db, level)


def at_10_db() -> Samples:
    """`PAUSED`, padded by 0.3 s, under white noise whose power is a tenth of the speech's."""
    phrase = PAUSED.but(outer_s=0.3)
    samples = phrase.samples()
    speech_power = float(np.square(samples, dtype=np.float64).sum()) / (phrase.speech_s * RATE_HZ)
    noise = np.random.default_rng(5).normal(size=len(samples)) * sqrt(speech_power / 10)
    return (samples + noise).astype(np.float32)


def delayed(milliseconds: int) -> Samples:
    """`PAUSED`, padded by 0.3 s, as long as before: what goes first is silence, and so is what is lost."""
    return np.roll(PAUSED.but(outer_s=0.3).samples(), milliseconds * RATE_HZ // 1000)


def with_tremolo(decibels: float) -> Samples:
    """`PHRASE`, its level rising and falling by so much, six times a second."""
    samples = PHRASE.samples()
    wave = np.sin(2 * np.pi * 6 * np.arange(len(samples)) / RATE_HZ)
    return (samples * 10 ** (decibels / 20 * wave)).astype(np.float32)


def _shifted(cents: int) -> Truth:
    known = {
        "f0_median": (float(cents), 15.0),
        "f0_range": (0.0, 0.01),
        "vuv_error": (0.0, 3.0),
        "gross_pitch_error": (100.0, 1.0),
        "lf0_corr": (1.0, 0.001),
    }
    median_hz = PHRASE.median_hz * 2 ** (cents / 1200)
    return Truth(f"F0 {cents:+} cents", PHRASE.samples, PHRASE.but(median_hz=median_hz).samples, known, ("lf0_rmse",))


def _under_noise(below: float, *, in_pauses_only: bool = False) -> Truth:
    # At -20 dB the phrase's syllables, which rise from -18 dB, begin under the noise.
    close = 1.0 if below > 22 else 3.0
    known = {
        "pause_floor": (50.0 - below, 0.7),
        "pause_rate": (0.0, 0.06 * close),
        "pause_mean": (0.0, 0.025 * close),
        "dur_ratio": (0.0, 0.01 * close),
        "speech_rate": (0.0, 0.04 * close),
    }
    where = "noise in pauses" if in_pauses_only else "noise"
    return Truth(
        f"{where} at {-below:g} dB, from -50",
        lambda: noisy(50.0, in_pauses_only=in_pauses_only),
        lambda: noisy(below, in_pauses_only=in_pauses_only),
        known,
    )


TRUTHS = (
    Truth(
        "F0 an octave lower for 0.5 of 1.5 s",
        PHRASE.samples,
        PHRASE.but(octave_down_s=(0.5, 1.0)).samples,
        {"gross_pitch_error": (100 / 3, 2.0), "lf0_rmse": (0.0, 5.0), "vuv_error": (0.0, 3.0)},
    ),
    *(_shifted(cents) for cents in (-1200, -900, -600, -300, 300, 600, 900, 1200)),
    Truth(
        "vibrato of 50 cents",
        PHRASE.samples,
        PHRASE.but(vibrato_cents=50.0).samples,
        {"lf0_rmse": (50 / sqrt(2), 3.0), "gross_pitch_error": (0.0, 0.5), "f0_median": (0.0, 30.0)},
    ),
    Truth(
        "tremolo of 2 dB",
        PHRASE.samples,
        lambda: with_tremolo(2.0),
        {
            "energy_rmse": (2 / sqrt(2), 0.2),
            "lf0_rmse": (0.0, 5.0),
            "dur_ratio": (0.0, 0.01),
            "speech_rate": (0.0, 0.01),
        },
    ),
    *(_under_noise(below) for below in (40.0, 35.0, 30.0, 25.0, 20.0)),
    *(_under_noise(below, in_pauses_only=True) for below in (26.0, 24.0, 20.0)),
    Truth(
        "noise of a tenth of the speech's power",
        PAUSED.but(outer_s=0.3).samples,
        at_10_db,
        {"dur_ratio": (0.0, 0.03), "pause_rate": (0.0, 0.18), "pause_mean": (0.0, 0.075), "speech_rate": (0.0, 0.12)},
    ),
    Truth(
        "whispered, from voiced",
        PAUSED.samples,
        PAUSED.but(is_whispered=True).samples,
        {"vuv_error": (100 * 1.5 / 2.3, 3.0), "dur_ratio": (0.0, 0.02), "pause_mean": (0.0, 0.04)},
        (*MELODY, *VOICE, "speech_rate"),
    ),
    Truth(
        "whispered a tenth slower, from whispered",
        PAUSED.but(is_whispered=True).samples,
        PAUSED.but(is_whispered=True, syllable_s=1.1 * PAUSED.syllable_s).samples,
        {"dur_ratio": (log((1.1 * PAUSED.speech_s + PAUSED.pause_s) / (PAUSED.speech_s + PAUSED.pause_s)), 0.02)},
        (*MELODY, *VOICE),
    ),
    Truth(
        "200 ms later, equally long",
        PAUSED.but(outer_s=0.3).samples,
        lambda: delayed(200),
        {LAG: (200.0, 0.0), "lf0_rmse_dtw": (0.0, 0.5), "dur_ratio": (0.0, 0.001), "f0_median": (0.0, 0.5)},
        ("lf0_rmse", "lf0_corr", "vuv_error", "gross_pitch_error", "energy_rmse"),
    ),
    Truth(
        "an offset of 0.1",
        PAUSED.samples,
        lambda: PAUSED.samples() + np.float32(0.1),
        {
            name: (float(name == "lf0_corr"), 1e-3)
            for name in (*MELODY, *RHYTHM, *VOICE, "vuv_error", "energy_rmse", "mcd")
        },
    ),
)
