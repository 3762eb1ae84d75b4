"""Clips with one defect each, and clips with none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from synthetic_voice import RATE_HZ, Phrase, Samples

from miso_gguf.quant_eval.metrics.failures import (
    NEW_FAILURES,
    failures,
    is_looping,
    is_silent,
    is_tail_truncated,
    new_failures,
)
from miso_gguf.runtime.synthesis.stopping import LONGEST_PAUSE_FRAMES, LOOP_FRAMES

SPEECH = Path(__file__).parents[2] / "data" / "speech.flac"
PHRASE = Phrase(vowels="aioaio", outer_s=0.04)
CODES = np.random.default_rng(0).integers(1, 512, (40, 8))


def silence(frames: int) -> Samples:
    return np.zeros(frames * 1920, np.float32)


@pytest.mark.parametrize("samples", [PHRASE.samples(), soundfile.read(SPEECH, dtype="float32")[0]])
def test_good_clips_have_none(samples: Samples) -> None:
    assert failures(samples, CODES, "eos") == ()


def test_80_ms_short_is_a_truncated_tail() -> None:
    """40 ms of silence and 40 ms of a vowel are missing."""
    assert failures(PHRASE.samples()[:-1920], CODES, "eos") == ("truncated_tail",)


def test_the_end_of_speech_is_what_counts_and_not_its_level() -> None:
    samples = PHRASE.samples()
    for gain in (0.05, 2.0):
        assert not is_tail_truncated((gain * samples).astype(np.float32))
        assert is_tail_truncated((gain * samples[:-1920]).astype(np.float32))


def test_what_is_cut_at_the_cap_is_runaway_and_not_truncated_too() -> None:
    assert failures(PHRASE.samples()[:-1920], CODES, "cap") == ("runaway",)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32),
        silence(10),
        np.full(4800, 1e-4, np.float32),
        np.concatenate([PHRASE.samples(), silence(LONGEST_PAUSE_FRAMES + 1), PHRASE.samples()]),
        np.concatenate([silence(60), PHRASE.samples()]),
    ],
    ids=["nothing", "zeros", "hum", "inside", "before"],
)
def test_silence(samples: Samples) -> None:
    assert failures(samples, CODES, "eos") == ("silent",)


def test_a_pause_is_no_failure() -> None:
    assert not is_silent(np.concatenate([PHRASE.samples(), silence(LONGEST_PAUSE_FRAMES - 5), PHRASE.samples()]))


def test_loops() -> None:
    loop = np.resize(CODES[:5], (LOOP_FRAMES, 8))
    assert failures(PHRASE.samples(), np.concatenate([CODES, loop]), "cap") == ("runaway", "looping")
    assert not is_looping(np.concatenate([CODES, loop[:-1]]))
    assert not is_looping(np.zeros((0, 8), np.int64))


@pytest.mark.parametrize(
    ("samples", "codes", "ended", "message"),
    [
        (PHRASE.samples(), CODES, "loop", "ended"),
        (PHRASE.samples(), CODES[:, 0], "eos", "codebooks"),
        (np.full(RATE_HZ, np.nan, np.float32), CODES, "eos", "finite"),
    ],
)
def test_bad_input_is_refused(samples: Samples, codes: Any, ended: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        failures(samples, codes, ended)


@pytest.mark.parametrize(
    ("reference", "test", "value"),
    [
        ((), (), 0),
        ((), ("silent",), 100),
        (("runaway", "looping"), (), -100),
        (("silent",), ("silent",), 0),
        (("silent",), ("looping",), 0),
    ],
)
def test_new_failures_are_net_of_the_references_own(reference: Any, test: Any, value: float) -> None:
    assert new_failures(reference, test) == value


def test_new_failures_are_counted() -> None:
    low, high = NEW_FAILURES.range
    assert (low, high) == (-100, 100)
    assert NEW_FAILURES.counts_failures
