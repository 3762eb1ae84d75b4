"""What the tiny model can say: a closed vocabulary, its speakers, and how the last word of a sentence may end.

Plain data; how a word sounds is `renderings.py`, and how a text is tokenised is no matter of this package.
"""

from dataclasses import dataclass

_WORDS = """
zero one two three four five six seven eight nine ten
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
red green blue yellow black white orange purple brown pink
hello goodbye welcome thanks please sorry morning evening
yes no and or not is are the this that here there
now today tomorrow good very you we they like see want with
"""

WORDS: tuple[str, ...] = tuple(_WORDS.split())
"""As they are written inside a sentence; no two sound alike."""

KINDS: tuple[str, ...] = ("", ".", "?", ",")
"""What follows a word, which gives its melody: nothing inside a sentence (level), "." falls, "?" rises, "," lingers."""

ENDINGS: tuple[str, ...] = KINDS[1:]

VARIANTS: dict[str, int] = {"": 2, ".": 1, "?": 1, ",": 1}
"""Renderings of each kind that differ a little in rate and pitch: inside a sentence a speaker chooses freely."""


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng.

    Attributes:
        name: Ours.
        voice: espeak-ng's, with its variant.
        pitch: espeak-ng's scale of 0 to 99.
        rate_wpm: Speaking rate in espeak-ng's words a minute.
        floor_hz: No F0 of this speaker is lower; a range keeps pitch trackers from octave errors.
        ceiling_hz: And none higher.
    """

    name: str
    voice: str
    pitch: int
    rate_wpm: int
    floor_hz: float
    ceiling_hz: float


SPEAKERS: tuple[Speaker, ...] = (
    Speaker("low", "en-gb", 60, 180, 60.0, 170.0),
    Speaker("high", "en-us+f3", 60, 215, 120.0, 400.0),
)


def canonical(word: str) -> str:
    """The vocabulary's spelling of a word in any case. Raises `ValueError` for one that it lacks."""
    for known in WORDS:
        if known.lower() == word.lower():
            return known
    raise ValueError(f"{word!r} is not one of the tiny model's {len(WORDS)} words ({', '.join(WORDS)})")


def parse(text: str) -> tuple[tuple[str, ...], str]:
    """The words of a sentence and its ending: "Hello you?" gives (("hello", "you"), "?"); without one it is ".".

    Raises `ValueError` for an empty text, an unknown word, or a mark inside the sentence.
    """
    text = text.strip()
    ending = text[-1:] if text[-1:] in ENDINGS else "."
    words = tuple(canonical(word) for word in text.removesuffix(ending).split())
    if not words:
        raise ValueError("there are no words to say")
    return words, ending
