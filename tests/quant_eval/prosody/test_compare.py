"""Every metric against constructed truth: it returns the known value, and the others stay put.

A phrase of twelve vowels at a known F0 is changed in one way at a time. Tolerances stand beside the values; what
"stays put" means is `STILL`, and a metric that a change moves by its nature is named with the value it takes.
"""

from dataclasses import replace
from functools import cache
from math import log

import numpy as np
import pytest
from synthetic_voice import STEP_S, Phrase, Samples, noise_in

from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.prosody.compare import compare_aligned, compare_free
from miso_gguf.quant_eval.prosody.pitch import PitchRange
from miso_gguf.quant_eval.prosody.recording import Prosody, measure, measure_both
from miso_gguf.quant_eval.prosody.rhythm import peak_level_db, step_levels_db

PHRASE = Phrase()
PAUSED = PHRASE.but(pauses=((3, 0.2), (6, 0.4), (9, 0.3)))

STILL = {
    "lf0_rmse": 3.0,
    "lf0_corr": 0.001,
    "vuv_error": 1.0,
    "gross_pitch_error": 0.5,
    "energy_rmse": 0.1,
    "dur_ratio": 0.005,
    "f0_range": 0.01,
    "f0_median": 10.0,
    "speech_rate": 0.015,
    "pause_rate": 0.01,
    "pause_mean": 0.01,
    "pause_floor": 0.5,
    "lf0_rmse_dtw": 10.0,
    "mcd": 0.5,
    "jitter": 0.2,
    "shimmer": 1.5,
    "hnr": 1.2,
}
"""How far a metric may be from no difference (0; 1 for the correlation), in its unit."""
REPORTED = ("jitter", "shimmer", "hnr")
"""Of the voice: not gated, and another F0 excites the formants otherwise, so they move with it."""


@cache
def heard(phrase: Phrase, pitch_range: PitchRange | None = None) -> Prosody:
    return measure(phrase.samples(), pitch_range)


def compared(reference: Phrase, test: Phrase | Samples) -> dict[str, float]:
    first, second = measure_both(reference.samples(), test.samples() if isinstance(test, Phrase) else test)
    values = compare_free(first, second)
    if first.contours.steps == second.contours.steps:
        values |= compare_aligned(first.contours, second.contours)
    return values


def check(found: dict[str, float], known: dict[str, tuple[float, float]], moving: tuple[str, ...] = ()) -> None:
    """`known`: value and tolerance. `moving`: not looked at. All others must be still."""
    expected = {name: (float(name == "lf0_corr"), STILL[name]) for name in found} | known
    assert known.keys() <= found.keys()
    for name, (value, tolerance) in expected.items():
        if name not in moving:
            assert found[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("phrase", [PHRASE, PAUSED])
def test_a_recording_against_itself_is_exactly_zero(phrase: Phrase) -> None:
    found = compared(phrase, phrase.samples())
    assert set(STILL) - found.keys() <= {"pause_mean", "pause_floor"}
    assert {name: value for name, value in found.items() if value != (name == "lf0_corr")} == {}


def test_every_key_is_in_the_table_of_metrics() -> None:
    found = compared(PAUSED, PAUSED)
    assert found.keys() == STILL.keys()
    aligned = compare_aligned(heard(PAUSED).contours, heard(PAUSED).contours)
    assert {METRICS[name].stage for name in aligned} == {"one-step"}
    assert {METRICS[name].stage for name in compare_free(heard(PAUSED), heard(PAUSED))} == {"free"}


@pytest.mark.parametrize("semitones", [1.5, 1.0, -1.0, -3.0])
def test_shifted(semitones: float) -> None:
    """Beyond two semitones, all steps are gross errors, and nothing is left for the F0 error."""
    found = compared(PHRASE, PHRASE.but(median_hz=PHRASE.median_hz * 2 ** (semitones / 12)))
    cents = 100 * semitones
    fine = {"lf0_rmse": (abs(cents), 1.0), "lf0_rmse_dtw": (abs(cents), 5.0)}
    assert fine.keys().isdisjoint(found) == (abs(cents) > 200)
    check(
        found,
        {
            "f0_median": (cents, 5.0),
            # Harmonics meet the formants elsewhere: what is heard of it, but far below what another vowel costs.
            "energy_rmse": (0.0, 3.0),
            "mcd": (0.0, 3.0),
            **(fine if abs(cents) < 200 else {"gross_pitch_error": (100.0, 1.0)}),
        },
        moving=REPORTED,
    )


def test_a_gross_error_is_counted_and_leaves_the_fine_ones_as_they_are() -> None:
    first = heard(PHRASE).contours
    voiced = np.flatnonzero(first.voiced)
    f0_hz = first.f0_hz * 2 ** (30 / 1200)
    f0_hz[voiced[::10]] = first.f0_hz[voiced[::10]] / 2
    found = compare_aligned(first, replace(first, f0_hz=f0_hz))
    assert found["gross_pitch_error"] == pytest.approx(10, abs=0.5)
    assert found["lf0_rmse"] == pytest.approx(30)


def test_flattened_to_half_its_range() -> None:
    found = compared(PHRASE, PHRASE.but(swing_semitones=PHRASE.swing_semitones / 2))
    times = np.arange(0, PHRASE.speech_s, STEP_S / 10)
    cents = 1200 * np.log2(PHRASE.f0_hz(times) / PHRASE.median_hz)
    rms = float(np.sqrt(np.square(cents / 2).mean()))
    check(
        found,
        {
            "f0_range": (log(0.5), 0.01),
            "lf0_rmse": (rms, 2.0),
            "lf0_rmse_dtw": (rms, 10.0),
            # The phrase's two and a half waves spend longer above their middle than below.
            "f0_median": (float(-np.median(cents) / 2), 10.0),
            "energy_rmse": (0.0, 3.0),
            "mcd": (0.0, 3.0),
        },
        moving=REPORTED,
    )


def test_entirely_flat_is_a_large_loss_and_not_an_infinite_one() -> None:
    found = compared(PHRASE, PHRASE.but(swing_semitones=0.0))
    assert found["f0_range"] == pytest.approx(log(0.1 / 8), abs=0.05)
    assert "lf0_corr" not in found


def test_a_monotone_has_no_range_to_lose() -> None:
    monotone = PHRASE.but(swing_semitones=0.0)
    found = compared(monotone, PHRASE)
    assert "f0_range" not in found
    assert "lf0_corr" not in found
    assert found["lf0_rmse"] > 100


def test_slowed_by_a_tenth() -> None:
    found = compared(PHRASE, PHRASE.but(syllable_s=1.1 * PHRASE.syllable_s))
    check(found, {"dur_ratio": (log(1.1), 0.005), "speech_rate": (-log(1.1), 0.005)}, moving=("shimmer",))


def test_three_pauses_inserted() -> None:
    found = compared(PHRASE, PAUSED)
    check(
        found,
        {
            "dur_ratio": (log((PHRASE.speech_s + PAUSED.pause_s) / PHRASE.speech_s), 0.005),
            "pause_rate": (3 / PHRASE.speech_s, 0.015),
        },
    )
    assert "pause_mean" not in found
    assert heard(PAUSED).pause_mean_s == pytest.approx(0.3, abs=0.01)


def test_pauses_made_longer() -> None:
    longer = PAUSED.but(pauses=((3, 0.3), (6, 0.5), (9, 0.4)))
    speech_s, before_s = PHRASE.speech_s, PAUSED.pause_s
    found = compared(PAUSED, longer)
    check(found, {"pause_mean": (0.1, 0.006), "dur_ratio": (log((speech_s + 1.2) / (speech_s + before_s)), 0.005)})


def test_noise_30_db_below_the_peak_in_the_pauses() -> None:
    samples = PAUSED.samples()
    levels = {
        below: noise_in(PAUSED.pause_mask(), samples, below, lambda x: peak_level_db(step_levels_db(x)))
        for below in (30.0, 50.0)
    }
    noisy, quieter = (measure(levels[below], heard(PAUSED).contours.pitch_range) for below in (30.0, 50.0))
    assert noisy.pause_floor_db == pytest.approx(-30, abs=0.5)
    found = compare_free(quieter, noisy) | compare_aligned(quieter.contours, noisy.contours)
    # 0.9 of 4.1 s are raised to 30 dB below the peak; before they were at the floor of what counts.
    check(found, {"pause_floor": (20.0, 0.7)}, moving=("energy_rmse",))
    assert 3 < found["energy_rmse"] < 12


def test_cut_80_ms_short() -> None:
    phrase = PHRASE.but(outer_s=0.0)
    found = compared(phrase, phrase.samples()[: -round(0.08 * 24_000)])
    length = log((phrase.speech_s - 0.08) / phrase.speech_s)
    # The missing end is warped onto the last step that there is.
    check(found, {"dur_ratio": (length, 0.002), "speech_rate": (-length, 0.002), "lf0_rmse_dtw": (0.0, 25.0)})


@pytest.mark.parametrize("gain", [0.1, 1.9])
def test_a_gain_is_no_difference(gain: float) -> None:
    found = compared(PAUSED, (gain * PAUSED.samples()).astype(np.float32))
    assert {name: value for name, value in found.items() if abs(value - (name == "lf0_corr")) > 1e-3} == {}


def test_louder_in_one_half_is_an_energy_error() -> None:
    samples = PHRASE.samples()
    half = len(samples) // 2
    louder = samples.copy()
    louder[half:] *= 2
    found = compared(PHRASE, louder)
    # 6 dB between the halves: with both relative to their own mean, RMS of half of that.
    assert found["energy_rmse"] == pytest.approx(3.0, abs=0.4)
    assert found["lf0_rmse"] < STILL["lf0_rmse"]


def test_voicing_error_is_the_share_of_steps_that_lost_their_voice() -> None:
    samples = PHRASE.samples()
    span = slice(24_000, 36_000)
    power = float(np.square(samples[span]).mean())
    whispered = samples.copy()
    whispered[span] = np.random.default_rng(0).normal(size=12_000) * np.sqrt(power)
    found = compared(PHRASE, whispered)
    assert found["vuv_error"] == pytest.approx(100 * 0.5 / 3.2, abs=1.5)
    assert found["lf0_rmse"] < 30


@pytest.mark.parametrize(("reference", "test"), [(False, True), (True, False), (True, True)])
def test_silence_has_no_metrics_but_voicing(reference: bool, test: bool) -> None:
    """`True` is silence."""
    samples = PHRASE.samples()
    first = measure(samples * np.float32(not reference))
    second = measure(samples * np.float32(not test), first.contours.pitch_range)
    silent = compare_free(first, second) | compare_aligned(first.contours, second.contours)
    assert silent.keys() == {"vuv_error"}
    assert (silent["vuv_error"] == 0) == (reference and test)


def test_scalars_of_silence_are_counts_of_nothing() -> None:
    found = measure(np.zeros(24_000, np.float32)).scalars()
    assert found == {"duration_s": 0.0, "speech_s": 0.0, "voiced_s": 0.0, "syllables": 0.0, "pauses": 0.0}


def test_two_pitch_ranges_cannot_be_compared() -> None:
    other = measure(PHRASE.samples(), PitchRange(75, 300))
    with pytest.raises(ValueError, match="one range"):
        compare_free(heard(PHRASE), other)
    with pytest.raises(ValueError, match="one range"):
        compare_aligned(heard(PHRASE).contours, other.contours)


def test_unequal_lengths_are_not_aligned() -> None:
    longer = heard(PAUSED, heard(PHRASE).contours.pitch_range)
    with pytest.raises(ValueError, match="compare_free"):
        compare_aligned(heard(PHRASE).contours, longer.contours)
