"""What an evaluation of a given size can decide, gate by gate, with the spread of clips that were measured.

    miso-eval run DIR --corpus tiny --seeds 3 --ladder --out report/
    python benchmarks/power.py report/ [--repetitions 100] [--resamples 500]

Prompts are drawn with replacement from those of the report, each with its seeds; the values are shifted (metrics about
zero) or scaled (distances) so that their mean is a given part of the gate's margin ("0" is a twentieth of it for a
distance), and the product's own `judge` decides, the level's other gates being ideal. What the spread is taken from:

* own: the clips of the level itself, where a tenth of them or more is not ideal;
* damaged: else those of the damaged level whose mean is nearest to the margin. Each of its prompts has one clip, which
  stands for all seeds: that is the worst that seeds can do.
* floor: for free runs also FP16 against FP16 with another seed, of random sign and each seed for itself: what a level
  shows that parts from FP16 within the first second, as 8B at every level will.

Failures, of which the tiny model has none, are drawn clip by clip. Prints a table, and last one line of JSON. All
figures are percent of the repetitions. A quarter of an hour on one core; with fewer than 500 resamples no FAIL can be
shown after Holm.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from measured_records import observations, results_and_records
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from verdicts import SEEDS, Tally, failures

from miso_gguf.quant_eval.gates.config import Gate, Gates, load_gates
from miso_gguf.quant_eval.gates.judge import judge
from miso_gguf.quant_eval.metric import FREE, LOGITS, ONE_STEP
from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import GateResult
from miso_gguf.quant_eval.run.record import Record
from miso_gguf.quant_eval.run.stages import FLOOR
from miso_gguf.quant_eval.stats.observations import Observations

Array = NDArray[np.float64]
SIZES = (12, 40, 80, 160)
PARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Of the margin: where the truth is."""
FEWEST_SHARE = 0.1
"""Of clips that are not ideal: with fewer a level says nothing of how clips differ."""
LEAST_PART = 0.05
"""Of the margin: "0" of a distance."""
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]
"""Of so many prompts: values and weights `[prompts, SEEDS]`. The values' true mean is 0, or 1 of a distance."""


def by_prompt(found: Observations) -> list[tuple[Array, Array]]:
    """Values and weights of each prompt's clips."""
    return [
        (found.values[where], found.weights[where])
        for where in (found.prompts == prompt for prompt in np.unique(found.prompts))
    ]


def normalised(found: Observations, gate: Gate) -> Observations:
    """A distance with mean 1, or a difference with mean 0."""
    ideal = METRICS[gate.metric].ideal
    assert ideal is not None
    values = found.values - ideal
    if METRICS[gate.metric].direction == "zero":
        return replace(found, values=values - np.average(values, weights=found.weights))
    return replace(found, values=np.abs(values) / np.average(np.abs(values), weights=found.weights))


def drawn_with_seeds(found: Observations) -> Draw:
    """Whole prompts, with replacement. One that has fewer clips than `SEEDS` has them more than once."""
    clips = [tuple(np.resize(each, SEEDS) for each in pair) for pair in by_prompt(found)]
    values, weights = (np.stack(each) for each in zip(*clips, strict=True))

    def draw(rng: np.random.Generator, prompts: int) -> tuple[Array, Array]:
        chosen = rng.integers(len(values), size=prompts)
        return values[chosen], weights[chosen]

    return draw


def drawn_anew(found: Observations) -> Draw:
    """Each clip is another pair of seeds of its prompt, either way round: their difference has mean 0."""
    pairs = [values for values, _ in by_prompt(found)]

    def draw(rng: np.random.Generator, prompts: int) -> tuple[Array, Array]:
        rows = [rng.choice(pairs[index], size=SEEDS) for index in rng.integers(len(pairs), size=prompts)]
        values: Array = np.array(rows) * rng.choice([-1.0, 1.0], size=(prompts, SEEDS))
        return values, np.ones_like(values)

    return draw


def at(part: float, gate: Gate, margin: float, values: Array) -> Array:
    """`values` of a `Draw`, moved so that their mean is that part of the margin."""
    metric = METRICS[gate.metric]
    if metric.direction == "zero":
        return values + part * margin
    assert metric.ideal is not None
    moved: Array = metric.ideal + max(part, LEAST_PART) * (margin - metric.ideal) * values
    return moved


def power(
    gate: Gate, level: str, gates: Gates, draw: Draw, prompts: int, repetitions: int, resamples: int
) -> dict[str, dict[str, float]]:
    """By part of the margin: how often the gate says what, in percent."""
    rng = np.random.default_rng(11)
    tallies = {part: Tally() for part in PARTS}
    names, seeds = np.repeat(np.arange(prompts).astype(np.str_), SEEDS), np.tile(np.arange(SEEDS), prompts)
    others = {
        each.metric: Observations(names, seeds, np.full(len(names), METRICS[each.metric].ideal), np.ones(len(names)))
        for each in gates.gates
        if each.metric != gate.metric and each.kind != "failures" and each.margins.get(level) is not None
    }
    for _ in range(repetitions):
        values, weights = draw(rng, prompts)
        for part, tally in tallies.items():
            moved = at(part, gate, gate.margins[level], values)
            seen = Observations(names, seeds, moved.ravel(), weights.ravel())
            results = judge(level, {**others, gate.metric: seen}, gates, resamples=resamples)
            tally.add(_said(next(each for each in results if each.metric == gate.metric)))
    return {f"{part:g}": tally.percent() for part, tally in tallies.items()}


def _said(result: GateResult) -> dict[str, bool]:
    return {
        "PASS": result.verdict == "PASS",
        "FAIL": result.verdict == "FAIL",
        "undecided": result.verdict == "INCONCLUSIVE",
        "stopped": result.outcome == "FAIL",
    }


class Found:
    """What was measured: of levels, of damaged ones, and between seeds."""

    def __init__(self, records: Sequence[Record]) -> None:
        rows: dict[tuple[str, str], list[tuple[str, int, float, float]]] = {}
        for record in records:
            if record.stage in (LOGITS, ONE_STEP, FREE, FLOOR):
                level = FLOOR if record.stage == FLOOR else record.level
                for metric, value in record.values.items():
                    row = (record.prompt, record.seed, value, record.weights.get(metric, 1.0))
                    rows.setdefault((level, metric), []).append(row)
        self.observed = {key: observations(each) for key, each in rows.items()}
        self.damaged = sorted({level for level, _ in rows if level.startswith("damaged-")})

    def sources(self, gate: Gate, level: str) -> dict[str, Draw]:
        """What the spread of a gate's clips is taken from, by a name that says so."""
        metric = METRICS[gate.metric]
        own = self.observed.get((level, gate.metric))
        found: dict[str, Draw] = {}
        if own is not None and float((own.values != metric.ideal).mean()) >= FEWEST_SHARE:
            found["own"] = drawn_with_seeds(normalised(own, gate))
        elif name := self._nearest(gate, level):
            found[name] = drawn_with_seeds(normalised(self.observed[name, gate.metric], gate))
        if metric.stage == FREE and (floor := self.observed.get((FLOOR, gate.metric))) is not None:
            found["floor"] = drawn_anew(floor)
        return found

    def _nearest(self, gate: Gate, level: str) -> str | None:
        """The damaged level whose mean is nearest to the margin, as a ratio."""
        ideal = METRICS[gate.metric].ideal or 0.0
        margin = abs(gate.margins[level] - ideal)
        away = {
            name: abs(np.log(abs(seen.mean - ideal) / margin))
            for name in self.damaged
            if (seen := self.observed.get((name, gate.metric))) is not None and seen.mean != ideal
        }
        return min(away, key=lambda name: float(away[name]), default=None)


def counted(margin: float, prompts: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Failures of independent clips, by part of the margin."""
    return {
        f"{part:g}": {
            ("undecided" if name == "undecided, inside" else name): value
            for name, value in failures(part * margin / 100, 0.0, 0.0, prompts, repetitions, margin).items()
        }
        for part in PARTS
    }


@click.command()
@click.argument("report", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--repetitions", default=100, show_default=True)
@click.option("--resamples", default=500, show_default=True)
def main(report: Path, repetitions: int, resamples: int) -> None:
    start = time.perf_counter()
    results, records = results_and_records(report)
    found, gates = Found(records), load_gates()
    levels = [each.level for each in results.levels if each.level != results.reference]
    rows: list[dict[str, Any]] = []
    for gate in gates.gates:
        for level in levels:
            if (margin := gate.margins.get(level)) is None:
                continue
            if gate.kind == "failures":
                sizes = {prompts: counted(margin, prompts, 4 * repetitions) for prompts in SIZES}
                rows.append({"gate": gate.metric, "level": level, "source": "independent clips", "sizes": sizes})
            for source, draw in found.sources(gate, level).items() if gate.kind != "failures" else ():
                sizes = {n: power(gate, level, gates, draw, n, repetitions, resamples) for n in SIZES}
                rows.append({"gate": gate.metric, "level": level, "source": source, "sizes": sizes})
    Console(width=200).print(table(rows))
    record = {
        "benchmark": "power", "model": results.model.name, "corpus": results.corpus.name, "seeds": SEEDS,
        "repetitions": repetitions, "resamples": resamples, "unit": "%", "rows": rows,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    print(json.dumps(record))


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """PASS with the truth at 0, at half of the margin, and on it (false); FAIL at 1.5 and 2 times of it."""
    columns = [f"{n}: PASS at 0 / .5 / 1, FAIL at 1.5 / 2" for n in SIZES]
    made = Table("gate", "level", "spread of", *columns, title="Power, %", title_justify="left")
    for row in rows:
        cells = []
        for prompts in SIZES:
            by_part = row["sizes"][prompts]
            passes = " / ".join(f"{by_part[part]['PASS']:.0f}" for part in ("0", "0.5", "1"))
            fails = " / ".join(f"{by_part[part]['FAIL']:.0f}" for part in ("1.5", "2"))
            cells.append(f"{passes}, {fails}")
        made.add_row(row["gate"], row["level"], row["source"], *cells)
    return made


if __name__ == "__main__":
    main()
