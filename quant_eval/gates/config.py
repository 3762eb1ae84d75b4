"""The gates as a file says them: which metric may be what, by level. It judges nothing.

The form is explained in `gates.toml`, the default. A file is refused as a whole, with all its faults.
"""

import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from ...core.errors import MisoError
from ...models.levels import LEVELS, parse_level
from ..metric import GATE_KINDS, GateKind
from ..metrics.table import METRICS, TWINS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_GATES = Path(__file__).with_name("gates.toml")
SCHEMA_VERSION = 1


class GatesError(MisoError):
    """A gates file cannot be used."""


@dataclass(frozen=True)
class Gate:
    """What one metric may be, by level.

    Attributes:
        metric: Key in `metrics/table.py`.
        kind: How it is judged.
        margins: By level, in the metric's unit.
    """

    metric: str
    kind: GateKind
    margins: Mapping[str, float]


@dataclass(frozen=True)
class Tolerance:
    """By how much a metric may get worse from one evaluation to another of the same clips: the larger of the two.

    Attributes:
        percent: Of how far the value was from its ideal.
        least: In the metric's unit.
    """

    percent: float
    least: float

    def times(self, factor: float) -> "Tolerance":
        """So many times as much."""
        return Tolerance(factor * self.percent, factor * self.least)


NO_STEPS = "nothing says what a change of these stages may cost: name metrics under [history.margins] of the gates"
"""Of gates without history, for people."""
ANCHOR_STEPS = 2.5
"""Of a file that does not say it: how many steps away from the first accepted evaluation are tolerated."""


@dataclass(frozen=True)
class Gates:
    """All gates, and what is tolerated against an earlier evaluation.

    Attributes:
        gates: Each with its margins.
        history: Of one step, by key of the metric.
        levels: That have margins; by default those of `gates`.
        anchor: How many steps are tolerated against the first accepted evaluation.
    """

    gates: tuple[Gate, ...]
    history: Mapping[str, Tolerance]
    levels: frozenset[str] = frozenset()
    anchor: float = ANCHOR_STEPS

    def __post_init__(self) -> None:
        if not self.levels:
            object.__setattr__(self, "levels", frozenset(key for gate in self.gates for key in gate.margins))

    def only(self, stages: Collection[str], given: Collection[str] = (), *, speaks: bool = True) -> "Gates":
        """Those of these stages that need nothing but what is `given`: for a run that leaves some out on purpose.

        `given` is of `Metric.needs`. `speaks` is whether the reference's own speech is measured; without it those are
        left out that need nothing.
        """

        def is_wanted(metric: str) -> bool:
            known = METRICS[metric]
            return known.stage in stages and (known.needs in given if known.needs else speaks)

        return Gates(
            tuple(gate for gate in self.gates if is_wanted(gate.metric)),
            {metric: step for metric, step in self.history.items() if is_wanted(metric)},
            self.levels,
            self.anchor,
        )

    def why_not_judged(self, level: str) -> str | None:
        """Why a level takes no part in verdicts: it has no margins. None if it has, or if the name is no level's."""
        try:
            has_margins = _coarser_half(level) in self.levels
        except ValueError:
            return None  # "B" of a comparison
        return None if has_margins else f"no margins for {level}: measured, not judged"


def load_gates(path: Path | None = None) -> Gates:
    """The gates of a TOML file; without one, the default gates.

    Raises:
        FileNotFoundError: If it is not there.
        GatesError: If it is no TOML, or says something that `gates.toml` does not explain: all faults, a line each.
    """
    path = path or DEFAULT_GATES
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such gates file; leave it out for the default gates") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GatesError(f"{path}: no TOML ({error}); the default gates, gates.toml, show the form") from error
    except OSError as error:
        raise GatesError(f"{path}: cannot be read ({error.strerror or error})") from error
    faults: list[str] = []
    gates = _parse(document, faults)
    if faults:
        raise GatesError("\n".join(f"{path}: {fault}" for fault in faults))
    return gates


def margin_for(gate: Gate, level: str) -> float | None:
    """The margin of a level, or of the coarser of its halves; None without one. `ValueError` if it is unknown."""
    return gate.margins.get(_coarser_half(level))


def _coarser_half(level: str) -> str:
    order = list(LEVELS)
    return max((parse_level(half).key for half in level.split("+")), key=order.index)


def _parse(document: Mapping[str, Any], faults: list[str]) -> Gates:
    """What the document says; what is wrong with it is added to `faults`."""
    if document.get("schema_version") != SCHEMA_VERSION:
        faults.append(f"schema_version is {document.get('schema_version')!r}, expected {SCHEMA_VERSION}")
    for key in sorted(document.keys() - {"schema_version", "gates", "history"}):
        faults.append(f"unknown entry {key!r}; known are schema_version, gates and history")
    tables = document.get("gates")
    if not isinstance(tables, dict) or not tables:
        faults.append("there are no gates: write one as a table [gates.METRIC]")
        tables = {}
    gates = tuple(gate for metric, table in tables.items() if (gate := _parse_gate(metric, table, faults)))
    levels = {key for gate in gates for key in gate.margins}
    for gate in gates:
        if missing := [key for key in LEVELS if key in levels - gate.margins.keys()]:
            faults.append(f"gates.{gate.metric}: no margin for {', '.join(missing)}, which other gates have")
    history, anchor = _parse_history(document.get("history", {}), faults)
    return Gates(_with_twins(gates), _with_twin_steps(history), anchor=anchor)


def _with_twins(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """With the gates of people's speech that the file does not name: of the same margins, each after its original."""
    named, found = {gate.metric for gate in gates}, list[Gate]()
    for gate in gates:
        found.append(gate)
        if (twin := TWINS.get(gate.metric)) is not None and twin.key not in named:
            found.append(replace(gate, metric=twin.key))
    return tuple(found)


def _with_twin_steps(history: Mapping[str, Tolerance]) -> dict[str, Tolerance]:
    """The same of what is tolerated."""
    return {**{TWINS[metric].key: step for metric, step in history.items() if metric in TWINS}, **history}


def _parse_history(table: object, faults: list[str]) -> tuple[dict[str, Tolerance], float]:
    """What is tolerated, by metric, and how many steps of it from the anchor."""
    if not isinstance(table, dict) or table.keys() - {"anchor", "margins"}:
        faults.append("history must be a table with anchor, a number, and margins, a table by metric")
        return {}, ANCHOR_STEPS
    anchor, margins = table.get("anchor", ANCHOR_STEPS), table.get("margins", {})
    if not _is_size(anchor) or anchor < 1:
        faults.append(f"history: anchor is {anchor!r}, expected a number of steps, 1 or more")
        anchor = ANCHOR_STEPS
    if not isinstance(margins, dict):
        faults.append(f"history: margins is {margins!r}, expected a table by metric")
        margins = {}
    found = {}
    for metric, step in margins.items():
        if metric not in METRICS:
            faults.append(f"history: {_unknown(metric)}")
        elif not isinstance(step, dict) or step.keys() != {"percent", "least"} or not all(map(_is_size, step.values())):
            faults.append(f"history.{metric}: must be a table with percent and least, numbers that are not negative")
        else:
            found[metric] = Tolerance(float(step["percent"]), float(step["least"]))
    return found, float(anchor)


def _is_size(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value) and value >= 0


def _parse_gate(metric: str, table: object, faults: list[str]) -> Gate | None:
    where = f"gates.{metric}"
    if metric not in METRICS:
        faults.append(f"{where}: {_unknown(metric)}")
        return None
    if not isinstance(table, dict) or table.keys() != {"kind", "margins"} or not isinstance(table["margins"], dict):
        faults.append(f"{where}: must be a table with kind and margins, the margins a table by level")
        return None
    kind, direction = table["kind"], METRICS[metric].direction
    if kind not in GATE_KINDS:
        faults.append(f"{where}: unknown kind {kind!r}; known are {', '.join(GATE_KINDS)}")
        return None
    fitting = METRICS[metric].kinds
    if kind not in fitting:
        faults.append(
            f"{where}: {kind} does not fit a metric of which {direction} is good; {' or '.join(fitting)} does"
        )
        return None
    before = len(faults)
    for level, margin in table["margins"].items():
        if level not in LEVELS:
            faults.append(f"{where}: unknown level {level!r}; known are {', '.join(LEVELS)}")
        elif isinstance(margin, bool) or not isinstance(margin, int | float) or not isfinite(margin):
            faults.append(f"{where}: the margin for {level} is {margin!r}, expected a number")
        elif margin < 0 and not (kind == "at_least" and METRICS[metric].ideal == 0):
            faults.append(f"{where}: the margin for {level} is {margin}, and must not be negative")
        elif margin > METRICS[metric].range[1]:
            most = f"{METRICS[metric].range[1]:g} {METRICS[metric].unit}".rstrip()
            faults.append(f"{where}: the margin for {level} is {margin}, and there is nothing above {most}")
    if not table["margins"]:
        faults.append(f"{where}: there is no margin")
    if len(faults) > before:
        return None
    return Gate(metric, kind, {level: float(margin) for level, margin in table["margins"].items()})


def _unknown(metric: object) -> str:
    near = difflib.get_close_matches(str(metric), METRICS, n=1)
    return f"unknown metric {metric!r}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}")
