"""What one stage of the evaluation found about one clip: the unit that is stored, merged and averaged.

It knows neither files (`record_store.py`) nor what the metrics mean (`metrics/table.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

_LARGEST_SEED = (1 << 64) - 1


class RecordKey(NamedTuple):
    """What identifies a record. Sorts by stage, level, prompt, seed."""

    stage: str
    level: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Record:
    """What one stage found about one clip: a prompt, spoken by a level with a seed.

    Raises:
        ValueError: On a value that JSON cannot keep, or that is not finite; it names the clip and the value.
    """

    stage: str
    level: str
    prompt: str
    seed: int
    values: dict[str, float]
    """By metric key. What is undefined for this clip is not in it."""
    weights: dict[str, float] = field(default_factory=dict)
    """By metric key: how many frames a value stands for. A value without a weight counts as one."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Counts and arrays, as JSON: what is not a mean over clips."""
    files: dict[str, str] = field(default_factory=dict)
    """Kind -> name of a file that belongs to the clip, beside the store."""

    def __post_init__(self) -> None:
        for name in ("stage", "level", "prompt"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"the {name} of a record must be a name, not {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= _LARGEST_SEED:
            raise ValueError(f"{self.name}: the seed must be a whole number, 0 to 2**64 - 1, not {self.seed!r}")
        # Plain floats, and lists for tuples: a record equals what is read back of it.
        object.__setattr__(self, "values", self._numbers("value", self.values))
        object.__setattr__(self, "weights", self._numbers("weight", self.weights))
        for metric, weight in self.weights.items():
            if metric not in self.values or weight < 0:
                raise ValueError(f"{self.name}: weight {weight} of {metric}: expected one >= 0 of a value that exists")
        for kind, name in self.files.items():
            if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{self.name}: file {kind} must be a path below the store, not {name!r}")
        try:
            object.__setattr__(self, "detail", json.loads(json.dumps(self.detail, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: detail must be JSON with finite numbers ({error})") from error

    @property
    def key(self) -> RecordKey:
        """What identifies it."""
        return RecordKey(self.stage, self.level, self.prompt, self.seed)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.stage} of {self.prompt} at {self.level}, seed {self.seed}"

    def _numbers(self, what: str, numbers: Mapping[str, float]) -> dict[str, float]:
        for name, number in numbers.items():
            if not isfinite(number):
                raise ValueError(f"{self.name}: {what} {name} is {number}: leave out what is undefined")
        return {name: float(number) for name, number in numbers.items()}
