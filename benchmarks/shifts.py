"""Which test finds which change of free speech: its mean, the size of its differences, or the shift of all values.

    miso-eval run DIR --corpus tiny --seeds 3 --out report/
    python benchmarks/shifts.py report/ [--repetitions 200]

Clips are simulated with the spread of FP16's in the report: of each prompt its mean, and around it what differs between
seeds (of ln of duration and of F0 range). The level is changed in a known way. In a decohered run its clips are fresh
draws of the same prompts, as 8B's will be; in a coherent one they are FP16's own, 1 % off. Found, at 5 %, by:

* mean: the bootstrap of the paired differences, as gates use it, leaves zero out (two-sided);
* R: the mean size of the differences over that between two seeds of FP16 is surely above 1 (`effect_ratio`);
* W1: the Wasserstein distance of the pooled values, in their unit, is larger than in 95 % of permutations that swap a
  prompt's clips between the level and FP16: exact, whatever the distributions are.

"no change" shows how often each is wrong. Prints a table, and last one line of JSON; figures are percent.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from measured_records import results_and_records
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from verdicts import SEEDS, Tally

from miso_gguf.quant_eval.clips import wasserstein
from miso_gguf.quant_eval.metric import FREE
from miso_gguf.quant_eval.run.record import Record
from miso_gguf.quant_eval.stats.bootstrap import Bootstrap
from miso_gguf.quant_eval.stats.estimates import SIGNIFICANCE, effect_ratio
from miso_gguf.quant_eval.stats.observations import Observations

Array = NDArray[np.float64]
SIZES = (40, 160)
COHERENT = 0.01
"""In ln: by how much a level's clip differs from FP16's while it says the same codes but for a few."""
PERMUTATIONS = 199
Change = Callable[[np.random.Generator, Array, Array], Array]
"""From the means of prompts `[n, 1]` and what clips differ from them `[n, SEEDS]` to the level's values, all in ln."""


@dataclass(frozen=True)
class Spread:
    """How clips of FP16 differ: the mean ln of each prompt, and residuals between seeds, unbiased, of all prompts."""

    means: Array
    residuals: Array

    @classmethod
    def of(cls, records: Sequence[Record], level: str, key: str) -> "Spread":
        """Of a scalar that every clip of `level` has, and is positive."""
        by_prompt: dict[str, list[float]] = {}
        for record in records:
            if record.stage == FREE and record.level == level and record.detail["scalars"].get(key, 0.0) > 0:
                by_prompt.setdefault(record.prompt, []).append(math.log(record.detail["scalars"][key]))
        values = np.array([each for each in by_prompt.values() if len(each) == SEEDS])
        means = values.mean(axis=1, keepdims=True)
        return cls(means.ravel(), ((values - means) * math.sqrt(SEEDS / (SEEDS - 1))).ravel())

    def draw(self, rng: np.random.Generator, prompts: int) -> tuple[Array, Array]:
        """Means `[prompts, 1]` and residuals of a rendition `[prompts, SEEDS]`."""
        return rng.choice(self.means, size=(prompts, 1)), self.seeds(rng, prompts)

    def seeds(self, rng: np.random.Generator, prompts: int) -> Array:
        """Residuals of another rendition."""
        drawn: Array = rng.choice(self.residuals, size=(prompts, SEEDS))
        return drawn


def longer(percent: float) -> Change:
    """All clips, by as much."""
    return lambda _rng, means, clips: means + clips + math.log1p(percent / 100)


def half_and_half(percent: float) -> Change:
    """A random half of the clips more, the other less, by as much in ln."""
    return lambda rng, means, clips: (
        means + clips + math.log1p(percent / 100) * rng.choice([-1.0, 1.0], size=clips.shape)
    )


def half_of_prompts(percent: float) -> Change:
    """The same, and all clips of a prompt alike."""
    return lambda rng, means, clips: (
        means + clips + math.log1p(percent / 100) * rng.choice([-1.0, 1.0], size=means.shape)
    )


def spread(times: float) -> Change:
    """What clips of a prompt differ by, so many times as much."""
    return lambda _rng, means, clips: means + times * clips


CHANGES: dict[str, Change] = {
    "no change": longer(0),
    "all 3 % more": longer(3),
    "all 5 % more": longer(5),
    "all 10 % more": longer(10),
    "all 10 % less": longer(-10),
    "half of clips 10 % more, half less": half_and_half(10),
    "half of clips 20 % more, half less": half_and_half(20),
    "half of clips 50 % more, half less": half_and_half(50),
    "half of prompts 20 % more, half less": half_of_prompts(20),
    "spread between seeds doubled": spread(2),
}


def found_by(rng: np.random.Generator, reference: Array, level: Array, other: Array, resamples: int) -> dict[str, bool]:
    """Which tests reject "no change". `other` is the reference with other seeds: its floor. All in ln."""
    paired, floor = _observed(level - reference), _observed(other - reference)
    low, high = Bootstrap(paired, resamples=resamples).interval(1 - SIGNIFICANCE / 2)
    ratio = effect_ratio(paired, floor, resamples=resamples)
    return {
        "mean": low > 0 or high < 0,
        "R": ratio is not None and ratio.low > 1,
        "W1": _permuted(rng, np.exp(reference), np.exp(level)) <= SIGNIFICANCE,
    }


def _observed(values: Array) -> Observations:
    prompts, seeds = values.shape
    names, numbers = np.repeat(np.arange(prompts).astype(np.str_), seeds), np.tile(np.arange(seeds), prompts)
    return Observations(names, numbers, values.ravel(), np.ones(values.size))


def _permuted(rng: np.random.Generator, one: Array, other: Array) -> float:
    """The p-value of the distance, with whole prompts swapped: clips of a prompt go together."""
    seen = wasserstein(one.ravel().tolist(), other.ravel().tolist())
    larger = 0
    for _ in range(PERMUTATIONS):
        swapped = rng.random((len(one), 1)) < 0.5
        pair = np.where(swapped, other, one), np.where(swapped, one, other)
        larger += wasserstein(*(each.ravel().tolist() for each in pair)) >= seen * (1 - 1e-12)
    return (1 + larger) / (1 + PERMUTATIONS)


def shares(
    known: Spread, change: Change, prompts: int, repetitions: int, resamples: int, *, coherent: bool
) -> dict[str, float]:
    """In percent of the repetitions, by test."""
    rng, tally = np.random.default_rng(13), Tally()
    for _ in range(repetitions):
        means, clips = known.draw(rng, prompts)
        own = clips + COHERENT * rng.normal(size=clips.shape) if coherent else known.seeds(rng, prompts)
        level = change(rng, means, own)
        tally.add(found_by(rng, means + clips, level, means + known.seeds(rng, prompts), resamples))
    return tally.percent()


@click.command()
@click.argument("report", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--repetitions", default=200, show_default=True)
@click.option("--resamples", default=500, show_default=True)
def main(report: Path, repetitions: int, resamples: int) -> None:
    start = time.perf_counter()
    results, records = results_and_records(report)
    rows: list[dict[str, Any]] = []
    for name, key in (("duration", "duration_s"), ("F0 range", "f0_range_semitones")):
        known = Spread.of(records, results.reference, key)
        for kind in ("decohered", "coherent"):
            for said, change in CHANGES.items():
                sizes = {
                    prompts: shares(known, change, prompts, repetitions, resamples, coherent=kind == "coherent")
                    for prompts in SIZES
                }
                spreads = {"between": float(known.means.std()), "within": float(known.residuals.std())}
                rows.append({"scalar": name, "run": kind, "change": said, "spread_ln": spreads, "found": sizes})
    made = Table("", "run", "change", *(f"{n} prompts: mean / R / W1" for n in SIZES), title="Found, %")
    for row in rows:
        cells = (" / ".join(f"{row['found'][n][test]:.0f}" for test in ("mean", "R", "W1")) for n in SIZES)
        made.add_row(row["scalar"], row["run"], row["change"], *cells)
    Console(width=160).print(made)
    record = {"benchmark": "shifts", "repetitions": repetitions, "unit": "%", "rows": rows}
    print(json.dumps({**record, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
