"""Which instrument is asked for by which words, and what a function of the user's may be."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from miso_gguf.quant_eval.instruments import table
from miso_gguf.quant_eval.instruments.differences import INSTRUMENTS
from miso_gguf.quant_eval.instruments.function import FunctionInstrument
from miso_gguf.quant_eval.instruments.instrument import Heard, Instrument
from miso_gguf.quant_eval.instruments.table import ROWS, Row, made_instruments, make_instrument, remarks
from miso_gguf.quant_eval.instruments.word_errors import WordErrorRate

SECOND = np.linspace(-0.5, 0.5, 24_000, dtype=np.float32)


class Ear:
    """A recogniser that always hears the same."""

    cost_s = 0.5

    def __init__(self, by: str, missing: str | None = None, says: str = "") -> None:
        self.by, self._missing, self._says = by, missing, says

    def available(self) -> str | None:
        return self._missing

    def knows(self, text: str) -> bool:
        return text.isascii()

    def heard(self, samples: Any, text: str) -> str:
        assert (len(samples), samples.dtype) == (16_000, np.float32)
        assert np.abs(samples).max() <= 1
        return self._says


def with_ears(monkeypatch: pytest.MonkeyPatch, **missing: str | None) -> None:
    def made(name: str) -> Instrument:
        return WordErrorRate(Ear(name, missing[name]))

    by = {name: (lambda name=name: made(name)) for name in missing}
    monkeypatch.setitem(ROWS, "wer", Row("%", (0, 100), by))


def by_of(instrument: Instrument | None) -> str:
    assert instrument is not None
    return instrument.by


def test_the_first_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with_ears(monkeypatch, best="no best", good=None, fair=None)
    assert by_of(make_instrument("wer")) == "good"
    assert by_of(make_instrument("wer=fair")) == "fair"
    assert by_of(make_instrument("wer=best")) == "best", "asked for by name it is not replaced"
    with_ears(monkeypatch, best="no best", good="no good")
    instrument = make_instrument("wer")
    assert instrument is not None
    assert instrument.available() == "no good"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("weer", "unknown instrument 'weer': known are wer, speaker_similarity, dnsmos, plcmos, utmos, or pass NAME="),
        ("wer=ear", "unknown way to measure wer, 'ear': known are faster-whisper, whisper, pocketsphinx, or pass wer="),
        ("utmos=ear", "unknown way to measure utmos, 'ear': pass utmos=MODULE:FUNCTION"),
        ("mine=module", "an instrument of your own is NAME=MODULE:FUNCTION, not mine=module"),
        ("wer=module:", "an instrument of your own is NAME=MODULE:FUNCTION, not wer=module:"),
        ("=module:f", "an instrument of your own is NAME=MODULE:FUNCTION, not =module:f"),
    ],
)
def test_what_is_not_known_is_said(wanted: str, said: str) -> None:
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(")):
        make_instrument(wanted)


def test_a_name_is_there_once() -> None:
    with pytest.raises(ValueError, match="--extra wer is asked for twice"):
        made_instruments(["wer=pocketsphinx", "wer=a:b"])
    assert list(made_instruments(["utmos", "mine=a:b"])) == ["utmos", "mine"]


def test_every_metric_has_an_instrument_and_needs_it() -> None:
    assert [(metric.key, metric.needs) for metric in INSTRUMENTS] == [(name, name) for name in ROWS]
    assert {metric.ideal for metric in INSTRUMENTS} == {0.0}
    assert {metric.key for metric in INSTRUMENTS if metric.direction == "lower"} == {"wer"}


def test_word_errors() -> None:
    def rate(says: str, text: str) -> float | None:
        return WordErrorRate(Ear("ear", says=says)).score(Heard(3 * SECOND, text, SECOND))

    assert rate("one three", "One two three four.") == 50
    assert rate("", "One two.") == 100
    assert rate("anything", "…!") is None, "no words"
    assert rate("anything", "Привет") is None, "letters that it does not know"


def test_a_function_gets_the_reference_or_the_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_ears")
    module.last = lambda samples, text, reference: float(reference[-1])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_ears", module)
    heard = Heard(SECOND, "One.", SECOND, SECOND[:1])
    scores = {}
    for name in ("wer", "speaker_similarity", "mine"):
        instrument = make_instrument(f"{name}=my_ears:last")
        assert isinstance(instrument, FunctionInstrument)
        assert instrument.available() is None
        scores[name] = instrument.score(heard)
    assert scores == {"wer": 0.5, "speaker_similarity": -0.5, "mine": 0.5}
    voiceless = make_instrument("speaker_similarity=my_ears:last")
    assert voiceless is not None
    assert voiceless.score(heard._replace(voice=None)) is None


def test_a_function_changes_nothing_but_its_own_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def quiet(samples: Any, text: str, reference: Any) -> float:
        print("heard", text)
        samples[:], reference[:] = 0, 0
        return 1.0

    module = ModuleType("my_ears")
    module.quiet = quiet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_ears", module)
    heard = Heard(SECOND.copy(), "One.", SECOND.copy())
    assert FunctionInstrument("mine", "my_ears:quiet").score(heard) == 1
    assert np.array_equal(heard.samples, SECOND), "clips are kept for the next level"
    assert np.array_equal(heard.reference, SECOND)
    assert capsys.readouterr() == ("", "heard One.\n"), "stdout is for --json"


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1e308, 10**400])
def test_a_score_of_which_no_mean_can_be_taken_is_refused(score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_ears")
    module.score = lambda samples, text, reference: score  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_ears", module)
    with pytest.raises(ValueError, match="expected a finite number"):
        FunctionInstrument("mine", "my_ears:score").score(Heard(SECOND, "One.", SECOND))


@pytest.mark.parametrize("target", ["no_such_module:f", "my_ears:nothing", "my_ears:number"])
def test_a_function_that_is_not_there(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_ears")
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_ears", module)
    said = FunctionInstrument("mine", target).available()
    assert said is not None
    assert said.startswith(f"{target} cannot be imported: ")


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = {}
    for name in table.ROWS:
        instrument = make_instrument(name)
        said[name] = instrument.available() if instrument is not None else None
    assert {name: text for name, text in said.items() if name != "utmos"} == {
        "wer": "no speech recogniser (not installed: pocketsphinx): pip install 'miso-gguf[instruments]'",
        "speaker_similarity": "no speaker encoder (not installed: resemblyzer, webrtcvad, pkg_resources): "
        "pip install 'miso-gguf[instruments]'",
        "dnsmos": "no DNSMOS (not installed: speechmos, onnxruntime, librosa, requests): "
        "pip install 'miso-gguf[instruments]'",
        "plcmos": "no PLCMOS (not installed: speechmos, onnxruntime): pip install 'miso-gguf[instruments]'",
    }


def test_what_will_be_missing_is_said_before() -> None:
    (silent,) = remarks(["x=math:fsum"], speaks=False)
    assert silent == "--extra x will be missing: it hears the stage free, which is left out"
    (missing,) = remarks(["x=no_such:thing"], speaks=True)
    assert missing.startswith("--extra x will be missing: no_such:thing cannot be imported")
    (unknown,) = remarks(["x=math:fsum"], speaks=True)
    assert unknown == "--extra x: how long math:fsum takes is not known, and not in the estimate"
