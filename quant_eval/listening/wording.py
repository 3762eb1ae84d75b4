"""What the commands say of a study and of its result, as text. It prints nothing and decides nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..report.words import label_of
from ..results import Estimate
from .judging import Heard, Judgement
from .making import LevelOfStudy, Made
from .study import ANCHOR, counted

HEARD_COLUMNS = ("level", "listener", "right", "clips", "share", "bounds, 95 % each", "p, Holm", "")
RATED_COLUMNS = ("take", "mean", "bounds, 95 % each", "to the hidden reference", "bounds, 95 % each")
_MEGA = 1e6


def study_lines(made: Made, written: Sequence[Path]) -> Iterator[str]:
    """What the study has in it, and what to do with it."""
    for level in made.levels:
        if level.trials:
            yield _level_line(made, level)
    if made.key.items:
        takes = len(made.key.items[0].takes)
        sentences = counted(len(made.key.items), "sentence")
        yield f"ratings: {sentences} of {takes} takes: levels, hidden reference, anchor at 3.5 kHz"
    yield from made.notes
    if made.is_lossy:
        yield "the sounds are MP3, to keep the page within its size: fewer --trials and --ratings keep them as they are"
    page, key = written
    yield f"{page}: written, {page.stat().st_size / _MEGA:.1f} MB: for listeners, in any browser"
    yield f"{key}: written: keep it from them; then miso-eval abx-result {key.parent} answers-*.json"


def _level_line(made: Made, level: LevelOfStudy) -> str:
    label, reference = label_of(level.level), label_of(made.key.reference)
    trials = counted(level.trials, "trial")
    equal = f", {level.equal} of {counted(level.clips, 'clip')} left out as equal to it" if level.equal else ""
    if level.needed is None or level.found is None:
        return f"{label} beside {reference}: {trials}: too few to show anything{equal}"
    return (
        f"{label} beside {reference}: {trials}, {level.needed} right answers show more than luck; "
        f"a listener who is right in {_percent(level.found)} is found four times in five{equal}"
    )


def heard_rows(found: Judgement) -> list[tuple[str, ...]]:
    """Of a table with `HEARD_COLUMNS`."""
    return [
        (
            label_of(each.level),
            _listener(found, each),
            f"{each.right} of {each.trials}",
            str(each.clips),
            _percent(each.share),
            f"{_percent(each.low)} to {_percent(each.high)}",
            f"{each.p_adjusted:.3g}",
            _said(each),
        )
        for each in found.heard
    ]


def _listener(found: Judgement, each: Heard) -> str:
    """Names in quotation marks, so that nobody's can be taken for what stands for all."""
    if each.listener is None and len(found.listeners) > 1:
        return "all together"
    return f"\u201c{each.listener or found.listeners[0]}\u201d"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _said(each: Heard) -> str:
    if each.is_heard:
        return "heard"
    if each.needed is None or each.found is None:
        return "not shown: too few trials to show anything"
    return f"not shown: that takes {each.needed} right; one who is right in {_percent(each.found)} is found in 80 %"


def rated_rows(found: Judgement) -> list[tuple[str, ...]]:
    """Of a table with `RATED_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for each in found.rated:
        name = {found.reference: f"{label_of(found.reference)}, hidden", ANCHOR: "anchor, 3.5 kHz"}
        label = name.get(each.take, label_of(each.take))
        rows.append((label, *_cells(each.mean, ""), *_cells(each.difference, "+")))
    return rows


def _cells(found: Estimate | None, sign: str) -> tuple[str, str]:
    if found is None:
        return "", ""
    bounds = f"{found.low:{sign}.1f} to {found.high:{sign}.1f}" if found.prompts > 1 else "of one sentence: none"
    return f"{found.value:{sign}.1f}", bounds


def result_notes(found: Judgement) -> Iterator[str]:
    """What is said below the tables."""
    yield from found.notes
    for each in found.screened:
        if each.is_left_out:
            yield (
                f"{each.listener} rated the hidden reference below 90 in {each.below} of "
                f"{counted(each.items, 'sentence')}, more than 15 %: left out of the ratings (ITU-R BS.1534-3)"
            )
    if found.screened and not found.rated:
        yield "nobody's ratings are left: listeners have to know the hidden reference"
