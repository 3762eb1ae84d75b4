"""The instruments themselves, on Flite's voices: they move the right way, and do not depend on what came before.

Skipped where they are not installed, unless the environment says MISO_INSTRUMENTS=required.
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile

from miso_gguf.core.arrays import F32Array
from miso_gguf.models.mimi import SAMPLE_RATE_HZ
from miso_gguf.quant_eval.instruments.instrument import Heard, Instrument
from miso_gguf.quant_eval.instruments.recognisers import PocketSphinx
from miso_gguf.quant_eval.instruments.table import make_instrument
from miso_gguf.quant_eval.scoring.controls import noisy
from miso_gguf.runtime.audio.samples import resampled

pytestmark = pytest.mark.long

TEXTS = ("Most of the village had gone to bed.", "She folded the letter and put it back.", "The train leaves at dawn.")
SILENCE = np.zeros(1920, np.float32)


def instrument(wanted: str) -> Instrument:
    """Or skip."""
    made = make_instrument(wanted)
    assert made is not None
    missing = made.available() or ("no flite: apt-get install flite" if shutil.which("flite") is None else None)
    if missing is not None:
        if os.environ.get("MISO_INSTRUMENTS") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    return made


@cache
def said(text: str, voice: str = "rms") -> F32Array:
    """Float32 `[n]`, 24 kHz."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
        samples, rate_hz = soundfile.read(path, dtype="float32")
    return resampled(samples, rate_hz, SAMPLE_RATE_HZ)


def mean(scores: Instrument, clips: list[Heard]) -> float:
    found = [scores.score(clip) for clip in clips]
    assert None not in found
    return float(np.mean([value for value in found if value is not None]))


def clips(snr_db: float | None = None) -> list[Heard]:
    """Each sentence, after another by the same voice."""
    whole = [said(text) for text in TEXTS]
    heard = whole if snr_db is None else [np.clip(noisy(samples, snr_db, "x"), -1, 1) for samples in whole]
    voices = whole[1:] + whole[:1]
    return [Heard(*each) for each in zip(heard, TEXTS, whole, voices, strict=True)]


@pytest.mark.parametrize(
    ("wanted", "sign", "least"), [("wer=pocketsphinx", 1, 40.0), ("speaker_similarity", -1, 0.1), ("dnsmos", -1, 0.5)]
)
def test_noise_makes_it_worse(wanted: str, sign: int, least: float) -> None:
    scores = instrument(wanted)
    assert sign * (mean(scores, clips(5)) - mean(scores, clips())) > least


@pytest.mark.parametrize("wanted", ["wer=pocketsphinx", "speaker_similarity", "dnsmos", "plcmos"])
def test_a_score_depends_on_nothing_that_came_before(wanted: str) -> None:
    scores, (one, other, *_) = instrument(wanted), clips()
    first = scores.score(one)
    scores.score(other)
    assert scores.score(one) == first
    fresh = instrument(wanted)
    fresh.score(other)
    assert fresh.score(one) == first


@pytest.mark.parametrize("wanted", ["wer=pocketsphinx", "speaker_similarity", "dnsmos", "plcmos"])
@pytest.mark.parametrize("samples", [SILENCE, np.zeros(24_000, np.float32), np.ones(24_000, np.float32)])
def test_what_is_no_speech_has_a_score(wanted: str, samples: F32Array) -> None:
    value = instrument(wanted).score(clips()[0]._replace(samples=samples))
    assert value is not None
    assert np.isfinite(value)
    if wanted.startswith("wer"):
        assert value >= 100 - 1e-9
    if wanted == "speaker_similarity":
        assert value < 0.7


def test_clean_speech_is_understood() -> None:
    assert mean(instrument("wer=pocketsphinx"), clips()) < 25


def test_a_word_of_no_dictionary_is_an_error_and_no_more() -> None:
    scores = instrument("wer=pocketsphinx")
    value = scores.score(Heard(said("The frobnicator works."), "The frobnicator works.", SILENCE))
    assert value is not None
    assert value >= 100 / 3 - 1e-9
    assert scores.score(Heard(said("Hello."), "Привет", SILENCE)) is None


def test_a_voice_is_told_from_another() -> None:
    scores = instrument("speaker_similarity")
    samples, voice = said(TEXTS[0]), said(TEXTS[1])
    same = scores.score(Heard(samples, TEXTS[0], samples, voice))
    assert same is not None
    for other in ("slt", "awb"):
        different = scores.score(Heard(said(TEXTS[0], other), TEXTS[0], samples, voice))
        assert different is not None
        assert different < same - 0.1
    assert scores.score(Heard(samples, TEXTS[0], samples, None)) is None
    assert scores.score(Heard(samples, TEXTS[0], samples, SILENCE)) is None, "no voice in it"


def test_who_scores_is_named_with_its_version() -> None:
    instrument("wer=pocketsphinx")
    assert PocketSphinx().by.startswith("pocketsphinx 5.")
    assert PocketSphinx().by.endswith(", en-us")
