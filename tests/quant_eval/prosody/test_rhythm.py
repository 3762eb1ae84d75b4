"""Extent, pauses and syllables of phrases whose truth is known."""

import numpy as np
import pytest
from synthetic_voice import RATE_HZ, Phrase, Samples, noise_in

from miso_gguf.quant_eval.prosody.contours import contours
from miso_gguf.quant_eval.prosody.rhythm import QUIETEST_DB, Rhythm, peak_level_db, rhythm, step_levels_db

PAUSES = ((3, 0.2), (6, 0.4), (9, 0.3))
PHRASE = Phrase(pauses=PAUSES)


def rhythm_of(samples: Samples) -> Rhythm:
    return rhythm(samples, contours(samples))


def level(samples: Samples) -> float:
    return peak_level_db(step_levels_db(samples))


def test_extent_and_pauses_are_those_that_were_made() -> None:
    """Within 5 ms, the resolution, at either end."""
    found = rhythm_of(PHRASE.samples())
    assert found.start_s == pytest.approx(PHRASE.outer_s, abs=0.006)
    assert found.duration_s == pytest.approx(PHRASE.speech_s + PHRASE.pause_s, abs=0.011)
    assert found.speech_s == pytest.approx(PHRASE.speech_s, abs=0.031)
    at = [0.1 + 0.25 * 3, 0.1 + 0.25 * 6 + 0.2, 0.1 + 0.25 * 9 + 0.6]
    assert [pause.start_s for pause in found.pauses] == pytest.approx(at, abs=0.006)
    assert [pause.length_s for pause in found.pauses] == pytest.approx([length for _, length in PAUSES], abs=0.011)
    assert [pause.level_db for pause in found.pauses] == [QUIETEST_DB] * 3


@pytest.mark.parametrize("below_peak_db", [30.0, 45.0])
def test_noise_in_the_pauses_is_their_level_and_changes_nothing_else(below_peak_db: float) -> None:
    clean = PHRASE.samples()
    noisy = rhythm_of(noise_in(PHRASE.pause_mask(), clean, below_peak_db, level))
    assert [pause.level_db for pause in noisy.pauses] == pytest.approx([-below_peak_db] * 3, abs=0.5)
    before = rhythm_of(clean)
    assert [pause.length_s for pause in noisy.pauses] == [pause.length_s for pause in before.pauses]
    assert (noisy.start_s, noisy.end_s) == (before.start_s, before.end_s)


@pytest.mark.parametrize("gain", [0.02, 2.0])
def test_a_gain_changes_nothing(gain: float) -> None:
    samples = PHRASE.samples()
    assert rhythm_of((gain * samples).astype(np.float32)) == rhythm_of(samples)


def test_a_pause_below_150_ms_is_none() -> None:
    found = rhythm_of(Phrase(vowels="aioa", pauses=((1, 0.13), (2, 0.17))).samples())
    assert [pause.length_s for pause in found.pauses] == pytest.approx([0.17], abs=0.011)


def test_a_click_in_a_pause_does_not_split_it() -> None:
    samples = PHRASE.samples()
    middle = round((0.1 + 1.5 + 0.2 + 0.2) * RATE_HZ)
    samples[middle : middle + 100] = 0.3
    assert [pause.length_s for pause in rhythm_of(samples).pauses] == pytest.approx([0.2, 0.4, 0.3], abs=0.011)


@pytest.mark.parametrize(("vowels", "syllable_s"), [("a", 0.3), ("aioaioa", 0.25), ("aioaioaioaio", 0.14)])
def test_every_vowel_is_a_syllable(vowels: str, syllable_s: float) -> None:
    phrase = Phrase(vowels=vowels, syllable_s=syllable_s)
    found = rhythm_of(phrase.samples())
    true = [0.1 + (index + 0.5) * syllable_s for index in range(len(vowels))]
    assert found.nuclei_s == pytest.approx(true, abs=0.06)


@pytest.mark.parametrize("outer_s", [0.1, 0.4])
@pytest.mark.parametrize("kind", ["everywhere", "in pauses"])
@pytest.mark.parametrize("below_peak_db", [24.0, 18.0])
def test_pauses_lie_under_the_noise(below_peak_db: float, kind: str, outer_s: float) -> None:
    """The syllables rise from -18 dB: what of them is under the noise counts as pause, up to 30 ms at either side."""
    phrase = PHRASE.but(outer_s=outer_s)
    clean = phrase.samples()
    mask = np.ones(len(clean), bool) if kind == "everywhere" else phrase.pause_mask()
    found = rhythm_of(noise_in(mask, clean, below_peak_db, level))
    assert [pause.length_s for pause in found.pauses] == pytest.approx([0.2, 0.4, 0.3], abs=0.06)
    assert [pause.level_db for pause in found.pauses] == pytest.approx([-below_peak_db] * 3, abs=0.5)
    assert found.duration_s == pytest.approx(phrase.speech_s + phrase.pause_s, abs=0.05)
    assert len(found.nuclei_s) == 12


def test_a_quiet_vowel_is_no_noise_floor() -> None:
    """Voiced and steady for 0.3 s, 14 to 17 dB below the rest: speech."""
    loud = Phrase(vowels="aa", syllable_s=0.3, outer_s=0.0).samples()
    quiet = 0.2 * Phrase(vowels="a", syllable_s=0.9, outer_s=0.0).samples()[7200:14_400]
    found = rhythm_of(np.concatenate([loud, quiet, loud]).astype(np.float32))
    assert found.duration_s == pytest.approx(1.5, abs=0.02)
    assert found.pauses == ()


@pytest.mark.parametrize("offset", [0.1, -0.3])
def test_an_offset_is_no_sound(offset: float) -> None:
    samples = PHRASE.samples()
    np.testing.assert_allclose(step_levels_db(samples + np.float32(offset)), step_levels_db(samples), atol=0.5)
    assert rhythm_of(samples + np.float32(offset)) == rhythm_of(samples)


def test_noise_has_no_syllables() -> None:
    bursts = np.random.default_rng(0).normal(size=2 * RATE_HZ) * np.abs(np.sin(np.arange(2 * RATE_HZ) / 2000)) * 0.1
    found = rhythm_of(bursts.astype(np.float32))
    assert found.duration_s == pytest.approx(2, abs=0.05)
    assert found.nuclei_s == ()


@pytest.mark.parametrize("amplitude", [0.0, 1e-4])
def test_silence_has_no_extent(amplitude: float) -> None:
    """Below -55 dBFS, where the runtime too hears nothing."""
    noise = np.random.default_rng(0).normal(size=RATE_HZ) * amplitude
    assert rhythm_of(noise.astype(np.float32)) == Rhythm(0.0, 0.0, (), ())
