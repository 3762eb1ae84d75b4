"""Lags that were made are found, and what follows nothing is told."""

import numpy as np
import pytest
from synthetic_voice import RATE_HZ, Phrase

from miso_gguf.quant_eval.prosody.cepstra import mel_cepstra
from miso_gguf.quant_eval.prosody.synchrony import Synchrony, synchrony

PHRASE = Phrase(vowels="aioaio", pauses=((2, 0.2),), outer_s=0.5)


@pytest.mark.parametrize("steps", [-30, -2, 0, 1, 17])
def test_a_lag_is_found(steps: int) -> None:
    first = mel_cepstra(PHRASE.samples())
    found = synchrony(first, np.roll(first, steps, axis=0))
    assert found is not None
    assert found.lag_steps == steps
    assert found.correlation > 0.85
    assert (found.why_not_aligned is None) == (abs(steps) <= 1)


@pytest.mark.parametrize("changed", [{"median_hz": 60.0}, {"median_hz": 240.0}, {"is_whispered": True}])
def test_another_melody_runs_in_step(changed: dict[str, object]) -> None:
    found = synchrony(mel_cepstra(PHRASE.samples()), mel_cepstra(PHRASE.but(**changed).samples()))
    assert found is not None
    assert found.why_not_aligned is None


def test_noise_as_loud_as_the_speech_hides_no_alignment() -> None:
    samples = PHRASE.samples()
    noise = np.random.default_rng(0).normal(size=len(samples)) * np.sqrt(np.square(samples).mean())
    found = synchrony(mel_cepstra(samples), mel_cepstra((samples + noise).astype(np.float32)))
    assert found is not None
    assert found.why_not_aligned is None


def test_another_sentence_follows_nothing() -> None:
    other = PHRASE.but(vowels="oiaoaiioa", syllable_s=1 / 6, pauses=((5, 0.2),))
    found = synchrony(mel_cepstra(PHRASE.samples()), mel_cepstra(other.samples()))
    assert found is not None
    assert "do not follow each other" in str(found.why_not_aligned)


def test_silence_runs_in_step_with_nothing() -> None:
    silence = mel_cepstra(np.zeros(RATE_HZ, np.float32))
    assert synchrony(silence, silence) is None
    assert synchrony(mel_cepstra(PHRASE.samples()), silence) is None


def test_the_sentence_says_which_way() -> None:
    assert Synchrony(3, 0.9).why_not_aligned == "the second comes 30 ms later than the first"
    assert Synchrony(-3, 0.9).why_not_aligned == "the second comes 30 ms earlier than the first"
