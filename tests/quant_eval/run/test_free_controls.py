"""Controls of free runs: by each level's margins, of the reference's own clips, and measured once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_voice import Phrase

from miso_gguf.quant_eval.gates.config import Gate, Gates
from miso_gguf.quant_eval.gates.controls import gate_controls
from miso_gguf.quant_eval.prosody.compare import RANGE
from miso_gguf.quant_eval.run import free_controls
from miso_gguf.quant_eval.run.clip_damage import RecordedClip
from miso_gguf.quant_eval.run.free_controls import Renditions, _made
from miso_gguf.quant_eval.run.record_store import Records

MARGINS = {"q4_0": 0.12}
GATES = Gates(
    (
        Gate("kld_cb0", "at_most", MARGINS),
        Gate("dur_ratio", "within", MARGINS),
        Gate("f0_range", "at_least", {level: -margin for level, margin in MARGINS.items()}),
        Gate("new_failures", "failures", {"q4_0": 5.0}),
    ),
    {},
)


@pytest.fixture(scope="module")
def clips() -> list[RecordedClip]:
    codes = np.random.default_rng(0).integers(1, 500, (25, 8))
    voices = [Phrase(vowels="aio", median_hz=120.0 + 15 * index).samples() for index in range(5)]
    return [RecordedClip(f"p{index}", 0, voice, codes, "eos") for index, voice in enumerate(voices)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def controls_of(clips: list[RecordedClip], store: Path, gates: Gates = GATES) -> list[Any]:
    with Records.open(store, "plan") as records:
        made = _made(clips, Renditions(clips, records, "fp16-1234"), list(MARGINS), GATES)
    return gate_controls(list(MARGINS), gates, [], made)


def test_every_gate_on_free_runs_fails_at_every_level_s_margin(clips: list[RecordedClip], store: Path) -> None:
    controls = controls_of(clips, store)
    assert [(each.level, each.metric, each.behaved) for each in controls] == [
        (level, metric, True) for level in MARGINS for metric in ("dur_ratio", "f0_range", *["new_failures"] * 4)
    ]
    assert [each.name for each in controls[:4]] == [
        "clips 1.27 times as long",
        "clips with 0.70 times the F0 range",
        "5 of 5 clips made endless",
        "5 of 5 clips cut off",
    ]


def test_what_was_measured_is_not_measured_again(
    clips: list[RecordedClip], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = controls_of(clips, store)
    monkeypatch.setattr(free_controls, "measure_both", lambda *_: 1 / 0)
    assert controls_of(clips, store) == before


def test_margins_that_are_ten_times_too_wide_are_found_out(clips: list[RecordedClip], store: Path) -> None:
    wide = Gates(
        tuple(
            Gate(gate.metric, gate.kind, {level: min(10 * margin, 100) for level, margin in gate.margins.items()})
            for gate in GATES.gates
        ),
        {},
    )
    behaved = {(each.metric, each.level) for each in controls_of(clips, store, wide) if each.behaved}
    assert behaved == set()


def test_clips_that_praat_cannot_make_anew_are_not_flattened(
    clips: list[RecordedClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        free_controls, "compare_free", lambda first, second: {RANGE.key: 0.2 if second is clips[0] else 0.04}
    )
    monkeypatch.setattr(free_controls, "measure", lambda samples: samples)

    def flattened(samples: Any, _heard: Any, _log_ratio: float) -> Any:
        return clips[0] if samples is clips[0].samples else samples

    monkeypatch.setattr(free_controls, "flattened", flattened)
    monkeypatch.setattr(free_controls, "measure_both", lambda *pair: pair)
    with Records.open(tmp_path, "plan") as records:
        found = Renditions(clips, records, "fp16").flattened(-0.3)[RANGE.key]
    assert found.prompts.tolist() == ["p1", "p2", "p3", "p4"]
