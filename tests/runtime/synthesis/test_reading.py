# ruff: noqa: RUF001  (marks that resemble others are what is tested)
"""How long texts take to say: sums of characters, caps above slow speech, and beginnings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.runtime.synthesis.reading import LEAST_FRAMES, reading_s, said_within, speech_cap_frames


def test_the_cap() -> None:
    assert speech_cap_frames("") == LEAST_FRAMES == math.ceil(3 * 12.5)
    assert speech_cap_frames("Hi") == math.ceil(3 * 12.5)
    # 100 letters, 100 words of two: 6.5 s read briskly.
    assert speech_cap_frames("ab " * 50) == math.ceil((1.5 + 4 * 6.5) * 12.5)
    assert speech_cap_frames("你" * 10 + "1" * 10 + "." * 10 + "%😀" * 5 + "A" * 10 + "ب" * 10) == math.ceil(
        (1.5 + 4 * (2.5 + 4 + 2 + 4 + 2 + 2)) * 12.5
    )


@pytest.mark.parametrize(
    ("text", "slow_s"),
    [
        # A word a second is the slowest that users report; digits are spelled out.
        ("The quick brown fox jumps over the lazy dog near the river bank.", 13),
        ("Call 555 123 4567 now.", 13),
        ("HTTP, JSON and USB.", 10),
        ("今天天气很好，我们去公园散步吧。", 15),
        ("Today is 2026-06-01, 50% off!", 12),
    ],
)
def test_the_cap_is_above_slow_speech_and_below_a_runaway(text: str, slow_s: float) -> None:
    assert slow_s <= speech_cap_frames(text) / 12.5 < 5 * slow_s


@pytest.mark.parametrize(
    ("text", "seconds", "said"),
    [
        ("one two three", 0.0, "one"),
        ("one two three", 0.4, "one two"),
        ("one two three", 9.0, "one two three"),
        ("你好，今天", 0.71, "你好，"),
        ("你好，今天", 0.0, "你"),
        ("คำดี", 0.0, "คำ"),
        ('"One," she said', 0.0, '"One,"'),
    ],
)
def test_what_is_said_within_a_time(text: str, seconds: float, said: str) -> None:
    assert said_within(text, seconds) == said


@given(st.text("ab c你好。1", max_size=20).map(str.strip), st.floats(0, 9))
def test_what_is_said_is_a_beginning_and_not_more(text: str, seconds: float) -> None:
    said = said_within(text, seconds)
    assert text.startswith(said)
    assert bool(said) == bool(text)
    assert seconds < reading_s(text) or said == text
