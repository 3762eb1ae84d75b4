"""The criteria are met at the frame that their constants say, and by no other sequence."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from miso_gguf.runtime.synthesis.stopping import (
    KEPT_FRAMES,
    LEAD_IN_FRAMES,
    LONGEST_PAUSE_FRAMES,
    LOOP_FRAMES,
    MAX_PERIOD,
    SEMANTIC_LOOP_FRAMES,
    SILENT_FRAME_DBFS,
    StoppingCriteria,
    Verdict,
    frame_levels_dbfs,
)

SPEECH = Path(__file__).parents[2] / "data" / "speech.flac"
K, FRAME, NEVER = 32, 1920, 10**6

Codes = npt.NDArray[np.int64]


def random_codes(frames: int, codebooks: int = K, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 2048, (frames, codebooks))


def loop(period: int, frames: int, codebooks: int = K, seed: int = 1) -> Codes:
    return np.resize(random_codes(period, codebooks, seed), (frames, codebooks))


def observed(criteria: StoppingCriteria, codes: Codes) -> int | None:
    """Index of the frame at which they are met."""
    return next((index for index, frame in enumerate(codes) if criteria.observe(frame)), None)


def heard(criteria: StoppingCriteria, levels_dbfs: list[float]) -> int | None:
    for index, level in enumerate(levels_dbfs):
        criteria.observe(random_codes(1, seed=index)[0])
        if criteria.hear(np.full(FRAME, 10 ** (level / 20), np.float32)):
            return index
    return None


@pytest.mark.parametrize("period", [1, 2, 3, 7, 8, 10, 11, 25, MAX_PERIOD])
@pytest.mark.parametrize("before", [0, 1, 90])
def test_a_loop_is_seen_when_it_has_lasted_long_enough(period: int, before: int) -> None:
    criteria = StoppingCriteria(K, NEVER)
    lasting = max(LOOP_FRAMES, 3 * period)
    codes = np.concatenate([random_codes(before), loop(period, lasting + 20)])
    assert observed(criteria, codes) == before + lasting - 1
    assert criteria.verdict is Verdict.LOOP
    assert criteria.good_frames == before + max(period, KEPT_FRAMES)


@pytest.mark.parametrize("period", [1, 8, MAX_PERIOD])
def test_one_frame_less_is_no_loop(period: int) -> None:
    criteria = StoppingCriteria(K, NEVER)
    lasting = max(LOOP_FRAMES, 3 * period) - 1
    codes = np.concatenate([random_codes(50), loop(period, lasting), random_codes(50, seed=2)])
    assert observed(criteria, codes) is None
    assert criteria.good_frames == 100 + lasting


def test_longer_patterns_are_no_loop() -> None:
    assert observed(StoppingCriteria(K, NEVER), loop(MAX_PERIOD + 1, 1000)) is None


@pytest.mark.parametrize(("codebooks", "half"), [(32, 16), (8, 4), (5, 3), (1, 1)])
def test_half_of_the_codebooks_must_take_part(codebooks: int, half: int) -> None:
    def stuck(count: int) -> Codes:
        codes = random_codes(LOOP_FRAMES + 10, codebooks)
        codes[:, :count] = 7
        return codes

    assert observed(StoppingCriteria(codebooks, NEVER), stuck(half)) == LOOP_FRAMES - 1
    assert observed(StoppingCriteria(codebooks, NEVER), stuck(half - 1)) is None


def test_without_the_semantic_code_it_is_no_loop() -> None:
    codes = loop(4, 500)
    codes[:, 0] = random_codes(500)[:, 0]
    assert observed(StoppingCriteria(K, NEVER), codes) is None


@pytest.mark.parametrize("period", [1, 8])
def test_the_semantic_code_alone_must_repeat_for_longer(period: int) -> None:
    criteria = StoppingCriteria(K, NEVER)
    codes = random_codes(200)
    codes[40:, 0] = loop(period, 160)[:, 0]
    assert observed(criteria, codes) == 40 + SEMANTIC_LOOP_FRAMES - 1
    assert criteria.good_frames == 40 + max(period, KEPT_FRAMES)


def test_what_loops_from_the_later_start_counts() -> None:
    """The semantic code was stuck before the acoustic ones: what came in between is kept."""
    for start in (30, 10 + SEMANTIC_LOOP_FRAMES - LOOP_FRAMES):  # the second: both are seen at the same frame
        codes = random_codes(100)
        codes[10:, 0], codes[start:, 1:20] = 5, 5
        criteria = StoppingCriteria(K, NEVER)
        assert observed(criteria, codes) == start + LOOP_FRAMES - 1
        assert criteria.good_frames == start + KEPT_FRAMES


@given(st.integers(0, 2**32), st.sampled_from([1, 8, 32]))
def test_random_codes_never_alarm(seed: int, codebooks: int) -> None:
    # Eight values only: far more repetitive than speech.
    codes = np.random.default_rng(seed).integers(0, 8, (300, codebooks))
    assert observed(StoppingCriteria(codebooks, NEVER), codes) is None


def test_the_cap() -> None:
    criteria = StoppingCriteria(K, 40)
    assert observed(criteria, random_codes(60)) == 39
    assert criteria.verdict is Verdict.CAP
    assert criteria.good_frames == 40


def test_a_loop_says_more_than_the_cap_at_the_same_frame() -> None:
    criteria = StoppingCriteria(K, LOOP_FRAMES)
    assert observed(criteria, loop(1, 60)) == LOOP_FRAMES - 1
    assert criteria.verdict is Verdict.LOOP


def test_a_verdict_stays() -> None:
    criteria = StoppingCriteria(K, 5)
    observed(criteria, random_codes(5))
    for frame in loop(1, 100):
        assert criteria.observe(frame) is Verdict.CAP
    assert criteria.hear(np.zeros(100 * FRAME, np.float32)) is Verdict.CAP
    assert criteria.good_frames == 5


def test_silence_after_speech() -> None:
    criteria = StoppingCriteria(K, NEVER)
    assert heard(criteria, [-20.0] * 10 + [-60.0] * 100) == 10 + LONGEST_PAUSE_FRAMES - 1
    assert criteria.verdict is Verdict.SILENCE
    assert criteria.good_frames == 10 + KEPT_FRAMES


def test_no_speech_at_all_keeps_nothing() -> None:
    criteria = StoppingCriteria(K, NEVER)
    assert heard(criteria, [-np.inf] * 100) == LEAD_IN_FRAMES - 1
    assert criteria.good_frames == 0


@pytest.mark.parametrize(
    "levels",
    [
        [-20.0] * 5 + [-99.0] * (LONGEST_PAUSE_FRAMES - 1) + [-30.0] * 5,
        [-99.0] * (LEAD_IN_FRAMES - 1) + [-30.0] * 5,
        ([-20.0] * 20 + [-90.0] * 13) * 8,
        [SILENT_FRAME_DBFS + 0.1] * 200,
        [-20.0] + ([-90.0] * (LONGEST_PAUSE_FRAMES - 1) + [SILENT_FRAME_DBFS + 0.1]) * 4,
    ],
    ids=["long pause", "late start", "pauses of 1 s", "very quiet speech", "a word now and then"],
)
def test_pauses_are_no_silence(levels: list[float]) -> None:
    assert heard(StoppingCriteria(K, NEVER), levels) is None


def test_sound_that_comes_later_is_dropped_with_what_was_computed_meanwhile() -> None:
    criteria = StoppingCriteria(K, NEVER)
    levels = np.repeat([0.1] * 10 + [0.0] * LONGEST_PAUSE_FRAMES, FRAME).astype(np.float32)
    observed(criteria, random_codes(10 + LONGEST_PAUSE_FRAMES + 4))
    assert criteria.hear(levels[:-FRAME]) is None
    assert criteria.hear(levels[-FRAME:]) is Verdict.SILENCE
    assert criteria.good_frames == 10 + KEPT_FRAMES


@given(st.integers(0, 60), st.integers(0, 60), st.integers(60, 110), st.integers(0, 20))
@example(speech=10, loops_from=20, cap=100, lag=12)
@example(speech=40, loops_from=60, cap=76, lag=9)
def test_how_far_the_sound_lags_behind_makes_no_difference(speech: int, loops_from: int, cap: int, lag: int) -> None:
    """Silence, a loop and the cap may all come: the first of them counts, not the first that happens to be seen."""
    codes = np.concatenate([random_codes(loops_from, 4), loop(1, cap - loops_from, 4)])
    sound = np.zeros((cap, FRAME), np.float32)
    sound[:speech] = 0.1
    prompt, late = StoppingCriteria(4, cap), StoppingCriteria(4, cap)
    for frame, samples in zip(codes, sound, strict=True):
        stops = [prompt.observe(frame), prompt.hear(samples)]
        if any(stops):
            break
    hearing = 0
    for index, frame in enumerate(codes):
        if late.observe(frame):
            break
        while hearing <= index - lag and not late.hear(sound[hearing]):
            hearing += 1
        if late.verdict:
            break
    for samples in sound[hearing : index + 1]:
        late.hear(samples)
    assert (late.verdict, late.good_frames) == (prompt.verdict, prompt.good_frames)


def test_recorded_speech_never_alarms() -> None:
    samples = soundfile.read(SPEECH, dtype="float32")[0]
    samples = np.tile(samples[: len(samples) // FRAME * FRAME], 5)
    levels = frame_levels_dbfs(samples)
    # Or the test would say nothing: there is speech, and there are pauses.
    assert max(levels) > -20
    assert sum(level < SILENT_FRAME_DBFS for level in levels) > 30
    criteria = StoppingCriteria(K, NEVER)
    for frame in samples.reshape(-1, FRAME):
        assert criteria.hear(frame) is None
    # Heard far too quietly it does not start.
    assert StoppingCriteria(K, NEVER).hear(samples * np.float32(0.001)) is Verdict.SILENCE


def test_levels() -> None:
    sine = np.sin(np.arange(FRAME) * 2 * np.pi / 40)
    samples = np.concatenate([np.zeros(FRAME), np.full(FRAME, 0.1), sine, np.ones(7)]).astype(np.float32)
    assert frame_levels_dbfs(samples) == [-np.inf, pytest.approx(-20, abs=1e-5), pytest.approx(-3.0103, abs=1e-4)]
    assert frame_levels_dbfs(np.zeros(0, np.float32)) == []


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="must be positive, not 0 and 5"):
        StoppingCriteria(0, 5)
    with pytest.raises(ValueError, match="must be positive, not 32 and 0"):
        StoppingCriteria(K, 0)
    with pytest.raises(ValueError, match=r"a frame has 32 codes, got shape \(1, 32\)"):
        StoppingCriteria(K, 5).observe(random_codes(1))
    with pytest.raises(ValueError, match=r"whole frames of 1920 samples, got shape \(1921,\)"):
        StoppingCriteria(K, 5).hear(np.zeros(1921, np.float32))
