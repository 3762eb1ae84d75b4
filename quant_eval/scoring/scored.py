"""An evaluation's clips through the instruments that were asked for: what each says by level, and metrics of that."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from .. import results
from ..gates.config import Gates
from ..gates.controls import DamagedClips
from ..instruments.differences import INSTRUMENTS
from ..instruments.instrument import Instrument
from ..instruments.table import ROWS, made_instruments, unavailable, why_without
from ..metric import FREE
from ..run.clip_damage import observed_once
from ..run.plan import Plan
from ..run.record import Record
from ..run.record_store import Records
from ..run.stages import FLOOR
from ..stats.estimates import estimate
from .clips import Sounds
from .controls import CLIPS, LADDER_DB, noise_controls
from .scores import ScoreError, Scores

NOT_ASKED = "not run: not asked for"


@dataclass(frozen=True)
class Scored:
    """What instruments said.

    Attributes:
        records: As they were, with the values of metrics that instruments give.
        finer: The same of the finer plan.
        extras: Of those that were asked for, in that order; then of all others that are known.
        damaged: The controls of their gates.
    """

    records: Sequence[Record]
    finer: Sequence[Record]
    extras: list[results.Extra]
    damaged: list[DamagedClips] = field(default_factory=list)

    def notes(self, reference: str) -> list[str]:
        """Of instruments that make nothing of what the reference says: no level can be worse."""
        return [
            f"{extra.name}: {extra.by} makes nothing of {reference}'s own clips ({found.value:.0f} {extra.unit}); that "
            "no level is worse says nothing"
            for extra in self.extras
            if extra.name in ROWS
            and (found := extra.values.get(reference)) is not None
            and found.value >= ROWS[extra.name].deaf_from
        ]


def steps(plan: Plan, wanted: Sequence[str]) -> int:
    """How many scores there are to ask for, at most."""
    return len(wanted) * steps_of_one(plan)


def steps_of_one(plan: Plan) -> int:
    """The same of one instrument."""
    clips = 0
    for each in [plan] if plan.finer is None else [plan, plan.finer]:
        free = sum(FREE in each.stages_of(each.reference, prompt) for prompt in each.corpus.prompts)
        clips += free * len(each.seeds) * len({candidate.name for candidate in (each.reference, *each.candidates)})
    return clips + CLIPS * len(LADDER_DB) if plan.controls else clips


def score_clips(
    plan: Plan,
    records: Sequence[Record],
    finer: Sequence[Record],
    wanted: Sequence[str],
    levels: Sequence[str],
    gates: Gates,
    progress: Callable[[int], None] = lambda _done: None,
) -> Scored:
    """Ask each instrument of each clip. What fails is "not run", with its reason: nothing half done.

    Args:
        plan: That was done.
        records: Of it.
        finer: Of `plan.finer`.
        wanted: See `made_instruments`.
        levels: Whose gates must be seen to fail.
        gates: All.
        progress: Called with the number of scores, of `steps`.

    Raises:
        ValueError: As `made_instruments`.
    """
    made, damaged, extras = made_instruments(wanted), [], []
    with ExitStack() as stack:
        plans = [plan] if plan.finer is None else [plan, plan.finer]
        held = [list(records), list(finer)][: len(plans)]
        stores = [stack.enter_context(Records.open(each.records, each.fingerprint)) for each in plans]
        sounds = [stack.enter_context(Sounds(each, of)) for each, of in zip(plans, held, strict=True)]
        for index, (name, instrument) in enumerate(made.items()):
            if (why_not := _why_not(name, instrument, sounds[0])) is not None:
                extras.append(not_run(name, instrument, why_not))
                continue
            assert instrument is not None
            tick = _Ticks(index * steps_of_one(plan), progress)
            sides = [_Side(each, Scores(instrument, store, tick)) for each, store in zip(sounds, stores, strict=True)]
            try:
                tables = [side.table() for side in sides]
                controls = noise_controls(sides[0].scores, sounds[0], gates, levels)
            except ScoreError as error:
                extras.append(not_run(name, instrument, str(error)))
                continue
            extra = _extra(plan, instrument, tables[0])
            extras.append(extra)
            if extra.why_not is None and name in INSTRUMENTS:
                held = [_valued(each, of, name, table) for each, of, table in zip(plans, held, tables, strict=True)]
                damaged += controls
    extras += [not_run(name, None, NOT_ASKED.removeprefix("not run: ")) for name in ROWS if name not in made]
    return Scored(held[0], held[1] if len(held) > 1 else list(finer), extras, damaged)


def _why_not(name: str, instrument: Instrument | None, sounds: Sounds) -> str | None:
    if (reason := unavailable(name, instrument)) is not None:
        return reason
    return None if sounds.clips else "there are no clips, for nothing was spoken freely"


def not_run(name: str, instrument: Instrument | None, reason: str) -> results.Extra:
    """Without values, for a reason."""
    unit = instrument.unit if instrument is not None else ROWS[name].unit
    return results.Extra(name=name, unit=unit, why_not=f"not run: {reason}")


class _Ticks:
    """Counts scores on."""

    def __init__(self, before: int, progress: Callable[[int], None]) -> None:
        self._done, self._progress = before, progress

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._done)


Table = dict[tuple[str, str, int], float | None]
"""Scores by level, prompt and seed."""


@dataclass(frozen=True)
class _Side:
    """One plan before one instrument."""

    sounds: Sounds
    scores: Scores

    def table(self) -> Table:
        return {
            (clip.level, clip.prompt, clip.seed): self.scores.of(clip, partial(self.sounds.heard, clip))
            for clip in self.sounds.clips
        }


def _extra(plan: Plan, instrument: Instrument, table: Table) -> results.Extra:
    """What the instrument says by level, and how far each is from the reference, clip by clip."""
    values, differences, without = {}, {}, {}
    for candidate in plan.candidates:
        mine = {key[1:]: value for key, value in table.items() if key[0] == candidate.name}
        without[candidate.name] = sum(value is None for value in mine.values())
        rows = [(*clip, value) for clip, value in mine.items() if value is not None]
        if not rows:
            continue
        values[candidate.name] = estimate(observed_once(rows), limits=instrument.range)
        pairs = list(_pairs(plan.reference.name, rows, table))
        if candidate != plan.reference and pairs:
            differences[candidate.name] = estimate(observed_once(pairs))
    if not values:
        return not_run(instrument.name, instrument, why_without(instrument.name))
    return results.Extra(
        name=instrument.name,
        unit=instrument.unit,
        by=instrument.by,
        values=values,
        differences=differences,
        without=without,
    )


def _pairs(reference: str, rows: Sequence[tuple[str, int, float]], table: Table) -> Iterator[tuple[str, int, float]]:
    for prompt, seed, value in rows:
        base = table.get((reference, prompt, seed))
        if base is not None:
            yield prompt, seed, value - base


def _valued(plan: Plan, records: Sequence[Record], name: str, table: Table) -> list[Record]:
    """With the metric's value, where a clip and its reference have a score; between two seeds of the reference too."""
    following = dict(pairwise(plan.seeds))

    def with_value(record: Record) -> Record:
        base = table.get((plan.reference.name, record.prompt, record.seed))
        if record.stage == FREE:
            own = table.get((record.level, record.prompt, record.seed))
        elif record.stage == FLOOR:
            own = table.get((plan.reference.name, record.prompt, following.get(record.seed, record.seed)))
        else:
            return record
        if own is None or base is None or (value := INSTRUMENTS.value(name, own, base)) is None:
            return record
        return replace(record, values={**record.values, name: value})

    return [with_value(record) for record in records]
