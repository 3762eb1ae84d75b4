"""All instruments by name: what can measure each, the best first. Which one is taken depends on what is installed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..metric import FREE, Range
from .function import FunctionInstrument
from .instrument import Instrument
from .opinion import dnsmos, plcmos
from .recognisers import PocketSphinx, Whisper
from .speaker import SpeakerSimilarity
from .word_errors import WordErrorRate


@dataclass(frozen=True)
class Row:
    """One of them.

    Attributes:
        unit: Of its scores.
        range: See `Instrument`.
        by: What can measure it, by name; none where only a function of the user's can.
        takes_voice: Whether such a function is given the voice that a clip should have, and not the reference.
        why_without: Why it may have a value in no clip.
        deaf_from: With which mean score of the reference's own clips it makes nothing of the model's speech.
    """

    unit: str
    range: Range
    by: Mapping[str, Callable[[], Instrument]] = field(default_factory=dict)
    takes_voice: bool = False
    why_without: str = "no clip has a value"
    deaf_from: float = math.inf


ROWS: dict[str, Row] = {
    "wer": Row(
        "%",
        (0.0, math.inf),
        {
            "faster-whisper": lambda: WordErrorRate(Whisper("faster-whisper", "faster_whisper")),
            "whisper": lambda: WordErrorRate(Whisper("openai-whisper", "whisper")),
            "pocketsphinx": lambda: WordErrorRate(PocketSphinx()),
        },
        why_without="no prompt has words in letters that the recogniser knows",
        deaf_from=50.0,
    ),
    "speaker_similarity": Row(
        "",
        (-1.0, 1.0),
        {"resemblyzer": SpeakerSimilarity},
        takes_voice=True,
        why_without="no prompt has a turn of its speaker before it, which would be the voice to compare with",
    ),
    "dnsmos": Row("MOS", (1.0, 5.0), {"speechmos": dnsmos}),
    "plcmos": Row("MOS", (1.0, 5.0), {"speechmos": plcmos}),
    "utmos": Row("MOS", (1.0, 5.0)),
}
"""By name, in the order of the report. Metrics have the same keys: see `differences.py`."""


def why_without(name: str) -> str:
    """Why an instrument of that name has a value in no clip."""
    return ROWS[name].why_without if name in ROWS else Row.why_without


def name_of(wanted: str) -> str:
    """The name in what was asked for: see `make_instrument`."""
    return wanted.partition("=")[0]


def make_instrument(wanted: str) -> Instrument | None:
    """The instrument that is asked for.

    Args:
        wanted: "wer": the first that is installed, or else the last. "wer=pocketsphinx": that one.
            "name=module:function": a function of the user's, see `FunctionInstrument`.

    Returns:
        None for a known name that only a function can measure.

    Raises:
        ValueError: A name, or what should measure it, is not known.
    """
    name, equals, target = wanted.partition("=")
    row = ROWS.get(name)
    if ":" in target or (equals and row is None):
        if row is None:
            return FunctionInstrument(name, target)
        return FunctionInstrument(name, target, unit=row.unit, range=row.range, takes_voice=row.takes_voice)
    if row is None:
        raise ValueError(f"unknown instrument {name!r}: known are {', '.join(ROWS)}, or pass NAME=MODULE:FUNCTION")
    if equals and target not in row.by:
        known = f"known are {', '.join(row.by)}, or pass" if row.by else "pass"
        raise ValueError(f"unknown way to measure {name}, {target!r}: {known} {name}=MODULE:FUNCTION")
    if not row.by:
        return None
    made = [row.by[target]()] if equals else [make() for make in row.by.values()]
    return next((each for each in made if each.available() is None), made[-1])


def made_instruments(wanted: Sequence[str]) -> dict[str, Instrument | None]:
    """By name, each as `make_instrument`. Raises `ValueError` as that, and for a name that is there twice."""
    names = [name_of(each) for each in wanted]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"--extra {twice[0]} is asked for twice: give one of them another name")
    return {name: make_instrument(each) for name, each in zip(names, wanted, strict=True)}


def unavailable(name: str, instrument: Instrument | None) -> str | None:
    """Why one that was asked for cannot run here, with the remedy; None if it can."""
    if instrument is None:
        return f"no package brings {name.upper()}: pass {name}=MODULE:FUNCTION with a function of your own"
    return instrument.available()


def costs_of(wanted: Sequence[str]) -> dict[str, float]:
    """CPU time that each takes for a second of sound, by name: see `Instrument`. Errors as `made_instruments`."""
    return {name: made.cost_s for name, made in made_instruments(wanted).items() if made is not None}


def remarks(wanted: Sequence[str], *, speaks: bool) -> list[str]:
    """What is to be known before: who cannot run, and whose time is not known. Errors as `made_instruments`.

    `speaks`: whether anything is spoken freely, to be heard.
    """
    said = []
    for name, made in made_instruments(wanted).items():
        if (reason := unavailable(name, made)) is not None:
            said.append(f"--extra {name} will be missing: {reason}")
        elif not speaks:
            said.append(f"--extra {name} will be missing: it hears the stage {FREE}, which is left out")
        elif made is not None and not made.cost_s:
            said.append(f"--extra {name}: how long {made.by} takes is not known, and not in the estimate")
    return said
