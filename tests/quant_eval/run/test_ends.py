"""How a record of the logit stage says what becomes of a clip's end; the models are made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.quant_eval.corpus import Prompt
from miso_gguf.quant_eval.run.record import Record
from miso_gguf.quant_eval.run.reference_logits import ReferenceClip
from miso_gguf.quant_eval.run.stages import Target, logits_record
from miso_gguf.quant_eval.run.teacher_forcing import Replayed
from miso_gguf.runtime.options import SpeechOptions

FRAMES, CODEBOOKS, VOCAB = 6, 2, 8
CODES = np.ones((FRAMES, CODEBOOKS), np.int64)
TARGET = Target(Prompt("a", "statement", "Hello."), 0, CODES, "eos", [])


class Level:
    """As `LoadedCandidate`: codebook 0 is `eos` for code 0 and nothing else, at each frame and the one after."""

    candidate = type("", (), {"key": "q4_0"})

    def __init__(self, eos: list[float]) -> None:
        logits = np.zeros((FRAMES + 1, VOCAB), np.float32)
        logits[:, 0] = eos
        self.replayed = Replayed(CODES, np.zeros((FRAMES + 1, 3), np.float32), logits)

    def utterance(self, *_: object) -> None:
        return None

    def replay(self, *_: object) -> Replayed:
        return self.replayed

    def depth_logits(self, _: Replayed) -> NDArray[np.float32]:
        return np.zeros((FRAMES, CODEBOOKS - 1, VOCAB), np.float32)


def ends(eos: list[float], target: Target = TARGET, **options: Any) -> Record:
    """Of a level against a reference that thinks of stopping where it stops only."""
    base = Level([-9.0] * FRAMES + [5.0])
    clip = ReferenceClip(base.replayed, base.depth_logits(base.replayed))
    level: Any = Level(eos)
    return logits_record(level, target, clip, None, SpeechOptions(**options))


def test_a_level_that_would_stop_early_is_found_though_it_stops_where_it_should() -> None:
    record = ends([-9.0, -9.0, 4.0, -9.0, -9.0, -9.0, 5.0])
    assert record.values["eos_shift"] == 0
    assert record.values["eos_shift_before"] == pytest.approx(13 / 6)
    assert record.values["eos_early"] > 80
    assert record.weights["eos_shift_before"] == FRAMES
    assert not {"eos_shift", "eos_early"} & record.weights.keys()


def test_what_is_not_among_the_best_is_not_sampled() -> None:
    eos = [-9.0, -9.0, -1.0, -9.0, -9.0, -9.0, 5.0]
    assert ends(eos, top_k=7).values["eos_early"] == 0 < ends(eos, top_k=8).values["eos_early"]
    assert ends(eos, top_k=8, temperature=2.0).values["eos_early"] > ends(eos, top_k=8).values["eos_early"]


def test_the_reference_against_itself_is_exactly_zero() -> None:
    values = ends([-9.0] * FRAMES + [5.0]).values
    assert [values[key] for key in ("eos_shift", "eos_shift_before", "eos_early")] == [0, 0, 0]


def test_what_was_cut_off_has_no_stop_and_what_a_person_said_none_of_a_models() -> None:
    cut = ends([-9.0] * FRAMES + [5.0], replace(TARGET, ended="cap"))
    assert "eos_shift" not in cut.values
    assert {"eos_shift_before", "eos_early"} <= cut.values.keys()
    recorded = ends([-9.0] * FRAMES + [5.0], replace(TARGET, prompt=replace(TARGET.prompt, audio=Path("a.wav"))))
    assert not [key for key in recorded.values if key.startswith("eos")]
    keys = {f"{key}_recorded" for key in ("kld_cb0", "kld_rest", "kld_deployed", "top1")}
    assert recorded.values.keys() == recorded.weights.keys() == keys
