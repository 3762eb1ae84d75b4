"""What a metric is. Each is declared beside the function that computes it; `metrics/table.py` gathers them.

It knows no metric, no data and no margins.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

Stage = Literal["logits", "one-step", "free"]
LOGITS: Stage = "logits"
ONE_STEP: Stage = "one-step"
FREE: Stage = "free"
STAGES: tuple[Stage, ...] = (LOGITS, ONE_STEP, FREE)

RECORDINGS = "recordings"
"""What metrics need that are of people's speech: see `Metric.needs`."""
RECORDED = "_recorded"
"""Ends the keys of these."""

Direction = Literal["lower", "higher", "zero"]
"""Which values are good: low ones, high ones, or those near zero."""
GateKind = Literal["at_most", "at_least", "within", "failures"]
"""How a value is judged: see `gates.toml`."""
GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)

Range = tuple[float, float]
SHARE: Range = (0.0, 100.0)
"""Of something, in percent."""
DISTANCE: Range = (0.0, math.inf)
DIFFERENCE: Range = (-math.inf, math.inf)

_KINDS: dict[Direction, tuple[GateKind, ...]] = {
    "lower": ("at_most",),
    "higher": ("at_least",),
    "zero": ("within", "at_most", "at_least"),
}

_Function = TypeVar("_Function", bound=Callable[..., float | None])


@dataclass(frozen=True)
class Metric:
    """One number that a clip, or a frame of it, gives for a level against the reference.

    Attributes:
        key: As in records, gates and results.
        stage: Which stage measures it.
        unit: As printed; "" for a plain number.
        direction: Which values are good.
        label: For people.
        definition: In one sentence.
        range: Between what its mean can lie.
        ideal: What it is where nothing differs; None if that depends on the clip.
        kinds: Of gate that fit it.
        digits: Decimals worth printing.
        is_per_frame: Whether a clip counts by its frames; else clips count alike.
        needs: What has to be there beside its stage: "" nothing, `RECORDINGS` in the corpus, else the instrument of
            that name. Without it the metric is neither measured nor judged.
    """

    key: str
    stage: Stage
    unit: str
    direction: Direction
    label: str
    definition: str
    range: Range
    ideal: float | None = 0.0
    kinds: tuple[GateKind, ...] = ()
    digits: int = 2
    is_per_frame: bool = False
    needs: str = ""

    @property
    def counts_failures(self) -> bool:
        """Whether it counts clips: 100 for one that fails anew, -100 for one that is cured, else 0."""
        return "failures" in self.kinds

    def on_recordings(self) -> "Metric":
        """The same of people's speech, by itself: among a model's own samples it would not be seen."""
        return replace(
            self,
            key=f"{self.key}{RECORDED}",
            label=f"{self.label}, on recordings",
            definition=f"{self.definition.removesuffix('.')}: of people's speech.",
            needs=RECORDINGS,
        )


class Family:
    """Metrics of one stage whose functions compare the same things, in the order in which reports show them."""

    def __init__(self, stage: Stage, *, is_per_frame: bool = False) -> None:
        """As `Metric` has it, for those that do not say otherwise."""
        self._stage: Stage = stage
        self._is_per_frame = is_per_frame
        self._members: dict[str, tuple[Metric, Callable[..., float | None]]] = {}

    def metric(
        self, label: str, unit: str, direction: Direction, range: Range, definition: str, **more: Any
    ) -> Callable[[_Function], _Function]:
        """Declare a metric; below it stands its function, whose name is the key. None is "no value in this clip".

        `more` is of `Metric`: `ideal`, `digits`, `kinds` (by default those that fit the direction), `is_per_frame`,
        `needs`.
        """

        def declare(function: _Function) -> _Function:
            given = {"kinds": _KINDS[direction], "is_per_frame": self._is_per_frame, **more}
            key = function.__name__
            self._members[key] = Metric(key, self._stage, unit, direction, label, definition, range, **given), function
            return function

        return declare

    def values(self, *compared: Any) -> dict[str, float]:
        """What each function says of `compared`, by key; without those that have no value."""
        found = {key: function(*compared) for key, (_, function) in self._members.items()}
        return {key: value for key, value in found.items() if value is not None}

    def value(self, key: str, *compared: Any) -> float | None:
        """What the function of one metric says of `compared`."""
        return self._members[key][1](*compared)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def __getitem__(self, key: str) -> Metric:
        return self._members[key][0]

    def __iter__(self) -> Iterator[Metric]:
        return iter(metric for metric, _ in self._members.values())
