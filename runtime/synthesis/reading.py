"""temporary"""

import math
from .sentences import _seconds
from collections import Counter

LEAST_FRAMES = 38


def reading_s(text: str) -> float:
    return sum(count * _seconds(char) for char, count in Counter(text).items())


def speech_cap_frames(text: str) -> int:
    return math.ceil(max(3.0, 1.5 + 4.0 * reading_s(text)) * 12.5)


def said_within(text: str, seconds: float) -> str:
    words = text.split(" ")
    n = 1
    while n < len(words) and reading_s(" ".join(words[: n + 1])) <= seconds:
        n += 1
    return " ".join(words[:n])
