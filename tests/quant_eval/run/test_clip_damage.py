"""Damaged clips: each is off by what it was meant to be, in the one thing that was meant, and recognised for it."""

import math
from functools import cache

import numpy as np
import pytest
from synthetic_voice import Phrase

from miso_gguf.quant_eval.metrics.failures import FAILURES
from miso_gguf.quant_eval.prosody.compare import compare_free
from miso_gguf.quant_eval.prosody.recording import Prosody, measure, measure_both
from miso_gguf.quant_eval.run import clip_damage
from miso_gguf.quant_eval.run.clip_damage import (
    BREAKS,
    RecordedClip,
    broken,
    by_prompts,
    fewest_new,
    flattened,
    stretched,
)

VOICE = Phrase(vowels="aioa").samples()
SIX = (0.03, 0.06, 0.12, 0.18, 0.24, 0.36)


@cache
def heard() -> Prosody:
    return measure(VOICE)


def clip(prompt: str = "one", seed: int = 0, frames: int = 25) -> RecordedClip:
    codes = np.random.default_rng(seed).integers(1, 500, (frames, 8))
    return RecordedClip(prompt, seed, VOICE, codes, "eos")


def test_stretched_by_exactly_so_much_at_the_same_pitch() -> None:
    found = []
    for log_ratio in SIX:
        values = compare_free(*measure_both(VOICE, stretched(VOICE, heard(), log_ratio)))
        assert values["dur_ratio"] == pytest.approx(log_ratio, abs=0.004)
        assert abs(values["f0_median"]) < 60  # played more slowly, up to 623
        assert abs(values["f0_range"]) < 0.12
        found.append(values["dur_ratio"])
    assert found == sorted(set(found))
    assert compare_free(*measure_both(VOICE, stretched(VOICE, heard(), -0.2)))["dur_ratio"] == pytest.approx(
        -0.2, abs=0.004
    )


def test_the_ends_of_a_stretched_clip_stay() -> None:
    made = stretched(VOICE, heard(), 0.2)
    start = round((heard().rhythm.start_s + 0.15) * 24_000)
    np.testing.assert_array_equal(made[:start], VOICE[:start])
    np.testing.assert_array_equal(made[-3600:], VOICE[-3600:])
    with pytest.raises(ValueError, match=r"changed by a factor of 0\.050"):
        stretched(VOICE, heard(), math.log(0.05))


def test_flattened_by_exactly_so_much_in_the_same_time() -> None:
    anew = flattened(VOICE, heard(), 0.0)
    found = []
    for log_ratio in SIX:
        values = compare_free(*measure_both(anew, flattened(VOICE, heard(), -log_ratio)))
        assert values["f0_range"] == pytest.approx(-log_ratio, abs=0.01)
        assert abs(values["dur_ratio"]) < 0.005
        assert abs(values["f0_median"]) < 40
        found.append(-values["f0_range"])
    assert found == sorted(set(found))


def test_what_has_no_voice_stays_as_it_is() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    np.testing.assert_array_equal(flattened(noise, measure(noise), -0.3), noise)


def test_each_is_the_same_every_time() -> None:
    for change in (stretched, flattened):
        np.testing.assert_array_equal(change(VOICE, heard(), 0.1), change(VOICE, heard(), 0.1))


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("frames", [3, 25, 200])
def test_each_kind_of_failure_is_made_and_no_other(kind: str, frames: int) -> None:
    whole = clip(frames=frames)
    assert whole.failures() == ()
    assert BREAKS[kind](whole).failures() == (kind,)


def test_a_cut_is_where_it_is_loud() -> None:
    made = BREAKS["truncated_tail"](clip()).samples
    assert len(VOICE) // 2 <= len(made) < len(VOICE) - 2400
    np.testing.assert_array_equal(made, VOICE[: len(made)])


@pytest.mark.parametrize("kind", FAILURES)
def test_a_few_of_many_are_broken(kind: str) -> None:
    clips = [clip(f"p{index:02}", seed) for index in range(20) for seed in range(2)]
    found = broken(clips, kind, 5.0)
    assert found is not None
    assert found.count == found.detected == fewest_new(40, 0.05)
    values = found.measured["new_failures"]
    assert len(values.values) == 40
    assert (values.values == 100).sum() == found.count
    failed = values.prompts[values.values == 100]
    assert len(set(failed.tolist())) == found.count, "each of another prompt"


def test_what_is_taken_for_another_failure_is_not_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clip_damage.BREAKS, "silent", clip_damage.endless)
    found = broken([clip(f"p{index}") for index in range(6)], "silent", 5.0)
    assert found is not None
    assert (found.count, found.detected) == (6, 0)


def test_clips_that_fail_by_themselves_are_not_broken() -> None:
    endless = [BREAKS["runaway"](clip(f"p{index}")) for index in range(6)]
    assert broken(endless, "silent", 5.0) is None
    found = broken([*endless, clip("whole")], "runaway", 5.0)
    assert found is not None
    assert (found.count, found.measured["new_failures"].values.sum()) == (1, 100)


def test_how_many_must_fail() -> None:
    """Twice the margin and more, and as many as an exact test tells from the margin and what may be unseen."""
    assert [fewest_new(clips, 0.01) for clips in (5, 12, 120, 1000)] == [5, 6, 9, 20]
    assert [fewest_new(clips, 0.05) for clips in (5, 12, 120, 1000)] == [5, 7, 15, 100]
    assert fewest_new(5, 1.0) == 5


def test_every_prompt_comes_before_any_comes_twice() -> None:
    clips = [clip(prompt, seed) for prompt in "ba" for seed in (2, 1)]
    assert [(each.prompt, each.seed) for each in by_prompts(clips)] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
