"""Optional measurements: what is absent is not run, and what fails is no number."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.quant_eval.metrics import extras
from miso_gguf.quant_eval.metrics.extras import (
    EXTRAS,
    Dnsmos,
    Extra,
    ExtraClip,
    FunctionExtra,
    SpeakerSimilarity,
    Utmos,
    WordErrorRate,
    make_extra,
    measure,
    measure_all,
)

Floats = NDArray[np.float32]
SECOND = np.linspace(-0.5, 0.5, 24_000, dtype=np.float32)


class Fake:
    """Scores what it is told; complains where it is told to."""

    name, unit = "fake", "points"

    def __init__(self, missing: str | None = None) -> None:
        self.missing = missing

    def available(self) -> str | None:
        return self.missing

    def score(self, samples: Floats, text: str, reference: Floats) -> float:
        assert reference.size == 3
        if text == "crash":
            raise ValueError
        if text == "exit":
            raise SystemExit("no licence")
        return float(samples[0])


def clip(level: str, value: float, text: str = "Hello.") -> ExtraClip:
    return ExtraClip(level, text, np.array([value], np.float32), np.zeros(3, np.float32))


def test_means_by_level() -> None:
    found = measure(Fake(), [clip("q8_0", 1), clip("q4_0", 5), clip("q8_0", 2)])
    assert found.model_dump() == {
        "name": "fake", "unit": "points", "values": {"q8_0": 1.5, "q4_0": 5.0}, "why_not": None,
    }  # fmt: skip


def test_what_is_absent_is_not_run_and_looks_at_no_clip() -> None:
    asked = []

    def clips() -> Iterator[ExtraClip]:
        asked.append(True)
        yield clip("q8_0", 1)

    found = measure(Fake("no ear: pip install ear"), clips())
    assert asked == []
    assert (found.values, found.why_not) == ({}, "not run: no ear: pip install ear")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (clip("q4_0", 1, "crash"), "not run: fake failed on q4_0, 'crash': ValueError"),
        (clip("q4_0", 1, "exit"), "not run: fake failed on q4_0, 'exit': no licence"),
        (clip("q4_0", float("nan")), "not run: fake gave nan for q4_0, 'Hello.': expected a finite number"),
        (clip("q4_0", float("inf")), "not run: fake gave inf for q4_0"),
    ],
)
def test_what_fails_leaves_no_number_behind(bad: ExtraClip, reason: str) -> None:
    found = measure(Fake(), [clip("q8_0", 1), bad])
    assert found.values == {}
    assert found.why_not is not None
    assert found.why_not.startswith(reason)


def test_no_clips() -> None:
    assert measure(Fake(), []).why_not == "not run: there are no clips"


def loudness(samples: Floats, text: str, reference: Floats) -> float:
    return float(samples.max()) + len(text) + float(reference.sum())


@pytest.fixture
def users_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("users_scores")
    module.__dict__.update(loudness=loudness, constant=3)
    monkeypatch.setitem(sys.modules, "users_scores", module)
    return module


@pytest.mark.usefixtures("users_module")
def test_a_function_of_the_users() -> None:
    extra = make_extra("loud=users_scores:loudness")
    assert (extra.name, extra.unit, extra.available()) == ("loud", "", None)
    assert measure(extra, [clip("q8_0", 2, "abc")]).values == {"q8_0": 5.0}


@pytest.mark.usefixtures("users_module")
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:f", "no_such_module:f cannot be imported: No module named 'no_such_module'"),
        ("users_scores:g", "users_scores:g cannot be imported: module 'users_scores' has no attribute 'g'"),
        ("users_scores:constant", "users_scores:constant cannot be imported: constant is no function"),
    ],
)
def test_functions_that_are_not_there(target: str, reason: str) -> None:
    assert measure(make_extra(f"x={target}"), [clip("q8_0", 1)]).why_not == f"not run: {reason}"


@pytest.mark.parametrize("wanted", ["x=", "x=module", "x=:f", "x=m:", "=m:f", "x=m:f()"])
def test_what_names_no_function(wanted: str) -> None:
    with pytest.raises(ValueError, match="an extra of your own is NAME=MODULE:FUNCTION"):
        make_extra(wanted)


def test_names_that_are_not_known() -> None:
    with pytest.raises(
        ValueError, match="unknown extra 'mos': known are wer, speaker_similarity, dnsmos, utmos, or pass"
    ):
        make_extra("mos")


def test_an_extra_that_is_asked_for_twice_is_refused_before_anything_is_measured() -> None:
    for wanted in (["wer", "wer"], ["utmos", "utmos=m:f"]):
        with pytest.raises(ValueError, match="is asked for twice"):
            measure_all(wanted, lambda: pytest.fail("nothing is measured"))


def test_all_that_are_known_appear() -> None:
    extra: Extra = FunctionExtra("utmos", "no_such_module:f")
    found = measure_all(["utmos=no_such_module:f"], lambda: [clip("q8_0", 1)])
    assert [(each.name, each.why_not) for each in found] == [
        ("utmos", f"not run: {extra.available()}"),
        ("wer", "not run: not asked for"),
        ("speaker_similarity", "not run: not asked for"),
        ("dnsmos", "not run: not asked for"),
    ]
    assert [(name, make().name) for name, make in EXTRAS.items()] == [(name, name) for name in EXTRAS]


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that exactly these packages are installed."""
    monkeypatch.setattr(extras, "_is_installed", lambda module: module in names)


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    for make in EXTRAS.values():
        found = measure(make(), [clip("q8_0", 1)])
        assert found.values == {}
        assert found.why_not is not None
        assert found.why_not.startswith("not run: no ")
    with pytest.raises(NotImplementedError, match="utmos=MODULE:FUNCTION"):
        Utmos().score(SECOND, "", SECOND)


class FakeRecogniser:
    """As both kinds of Whisper; keeps what it heard."""

    def __init__(self, *_: object, **__: object) -> None:
        self.heard: list[Floats] = []
        self.languages: list[str | None] = []

    def transcribe(self, samples: Floats, **options: Any) -> Any:
        assert (options["temperature"], options["condition_on_previous_text"]) == (0.0, False)
        self.heard.append(samples)
        self.languages.append(options["language"])
        if "beam_size" in options:
            return iter([SimpleNamespace(text=" The cat"), SimpleNamespace(text=" sat on a mat.")]), None
        return {"text": " The cat sat on a mat."}


@pytest.mark.parametrize("package", ["faster_whisper", "whisper"])
def test_word_errors_through_either_recogniser(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    install(monkeypatch, package)
    recogniser, module, loaded = FakeRecogniser(), ModuleType(package), list[str]()

    def load(model: str, **_: object) -> FakeRecogniser:
        loaded.append(model)
        return recogniser

    module.__dict__.update(WhisperModel=load, load_model=load)
    monkeypatch.setitem(sys.modules, package, module)
    found = measure(WordErrorRate(), [ExtraClip("q8_0", "The cat sat on the mat", SECOND, SECOND)] * 2)
    assert found.values == {"q8_0": pytest.approx(100 / 6)}
    assert [(each.shape, each.dtype.name) for each in recogniser.heard] == [((16_000,), "float32")] * 2
    assert (loaded, recogniser.languages) == (["base.en"], ["en"] * 2)
    assert WordErrorRate().score(SECOND, "\u4eca\u5929", SECOND) == 600 / 2, "an English model hears no Chinese"
    assert (loaded[1:], recogniser.languages[2:]) == (["base"], [None])


def test_similarity_is_the_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "resemblyzer")
    module = ModuleType("resemblyzer")
    encoder = SimpleNamespace(embed_utterance=lambda wav: np.array([wav[0], wav[1]]))
    module.__dict__.update(preprocess_wav=lambda wav, source_sr: wav, VoiceEncoder=lambda *_, **__: encoder)
    monkeypatch.setitem(sys.modules, "resemblyzer", module)
    one, other = np.array([3, 0], np.float32), np.array([1, 1], np.float32)
    assert SpeakerSimilarity().score(one, "", other) == pytest.approx(2**-0.5)
    assert SpeakerSimilarity().score(one, "", 2 * one) == pytest.approx(1)


def test_predicted_opinions(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "speechmos")

    def run(samples: Floats, sr: int) -> dict[str, float]:
        assert (len(samples), sr, float(np.abs(samples).max())) == (16_000, 16_000, 1.0)
        return {"ovrl_mos": 3.25, "sig_mos": 1.0}

    module = ModuleType("speechmos.dnsmos")
    module.__dict__["run"] = run
    monkeypatch.setitem(sys.modules, "speechmos", ModuleType("speechmos"))
    monkeypatch.setitem(sys.modules, "speechmos.dnsmos", module)
    assert Dnsmos().score(4 * SECOND, "", SECOND) == 3.25
