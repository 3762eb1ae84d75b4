"""How often verdicts are wrong, and how often they come to one, on simulated evaluations whose truth is known.

    python benchmarks/verdicts.py [--repetitions 300] [--resamples 1000]

Prints tables, and last one line of JSON. Takes about four minutes on one core. All figures are percent of the
repetitions: of 300, a true 5 % comes out between 2.7 and 8 (95 %). What decides is `judge` itself, with the default
gates: a PASS of each gate by itself, a FAIL after Holm, failures by exact bounds.

* on the margin: the truth is exactly what is still tolerated; false PASS should be 5 % or less.
* at half, at 0: the truth is that part of the margin ("0" is a twentieth of it where a metric cannot be below zero).
  PASS is right, its share is the power; FAIL is false, and so is stopped.
* history and comparisons: the clips of two evaluations, pair by pair; "half", "twice" are of the tolerated change.
* stopped: what fails a run, that is FAIL, or INCONCLUSIVE with the value beyond the margin.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from miso_gguf.quant_eval.gates.config import Gate, Gates, load_gates
from miso_gguf.quant_eval.gates.judge import judge, worst
from miso_gguf.quant_eval.gates.paired import Change, judge_changes
from miso_gguf.quant_eval.metric import STAGES
from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import GateResult
from miso_gguf.quant_eval.stats.counts import FailureCounts, count_failures
from miso_gguf.quant_eval.stats.estimates import SIGNIFICANCE
from miso_gguf.quant_eval.stats.observations import Observations

Array = NDArray[np.float64]
Clips = Callable[[np.random.Generator, int], Array]
"""Values `[prompts, seeds]` whose true mean is known: 1, or 0 for differences."""

SEEDS = 3
SIZES = (12, 40, 150)
GATES = load_gates().only(STAGES)


def log_normal(between: float, within: float) -> Clips:
    """Positive, mean 1, the more skewed the wider: what KLD looks like. The arguments are standard deviations of ln."""

    def clips(rng: np.random.Generator, prompts: int) -> Array:
        spread = between * rng.normal(size=(prompts, 1)) + within * rng.normal(size=(prompts, SEEDS))
        result: Array = np.exp(spread - (between**2 + within**2) / 2)
        return result

    return clips


def with_zeros(between: float, within: float) -> Clips:
    """Half of the clips zero, in some prompts more than in others; the rest log-normal. Mean 1."""

    def clips(rng: np.random.Generator, prompts: int) -> Array:
        share = rng.beta(1.5, 1.5, size=(prompts, 1))
        result: Array = 2 * (rng.random((prompts, SEEDS)) < share) * log_normal(between, within)(rng, prompts)
        return result

    return clips


def normal(between: float, within: float, mean: float = 0.0) -> Clips:
    """Symmetric."""

    def clips(rng: np.random.Generator, prompts: int) -> Array:
        return mean + between * rng.normal(size=(prompts, 1)) + within * rng.normal(size=(prompts, SEEDS))

    return clips


def with_catastrophes(share: float, times: float, clips: Clips) -> Clips:
    """A share of the clips is so many times as large as the others are in the mean. Mean 1."""

    def mixed(rng: np.random.Generator, prompts: int) -> Array:
        hit = rng.random((prompts, SEEDS)) < share
        result: Array = np.where(hit, times, clips(rng, prompts)) / (1 - share + share * times)
        return result

    return mixed


ORDINARY = log_normal(0.4, 0.3)
SHAPES: dict[str, Clips] = {
    "normal": normal(0.3, 0.3, mean=1),
    "log-normal": ORDINARY,
    "log-normal, wide": log_normal(0.6, 0.4),
    "half zeros": with_zeros(0.4, 0.4),
    "1 % of clips 20 times": with_catastrophes(0.01, 20, ORDINARY),
    "1 % of clips 50 times": with_catastrophes(0.01, 50, ORDINARY),
    "2 % of clips 50 times": with_catastrophes(0.02, 50, ORDINARY),
    "99 % zeros": lambda rng, prompts: np.where(rng.random((prompts, SEEDS)) < 0.01, 100.0, 0.0),
}
SPREADS: dict[str, Clips] = {
    "kld_cb0": log_normal(0.6, 0.4),
    "top1": log_normal(0.3, 0.2),
    "lf0_rmse": ORDINARY,
    "gross_pitch_error": with_zeros(0.4, 0.4),
    "vuv_error": ORDINARY,
    "dur_ratio": normal(0.05, 0.1),
    "f0_range": normal(0.1, 0.2),
}
"""Of each gate. That of KLD is the tiny model's at Q4_K_M; there the others are zero in nine clips of ten, so they are
what speech on a model of some size might show. The last two are free runs."""


def observed(rng: np.random.Generator, values: Array) -> Observations:
    """With weights as clips have them: 20 to 120 frames, by the length of the prompt."""
    prompts, seeds = values.shape
    frames = rng.integers(20, 120, size=(prompts, 1)) * rng.uniform(0.8, 1.2, size=values.shape)
    return Observations(
        np.repeat(np.arange(prompts), seeds), np.tile(np.arange(seeds), prompts), values.ravel(), frames.ravel()
    )


def percentile_passes(found: Observations, prompts: int, resamples: int, rng: np.random.Generator) -> bool:
    """What a plain percentile bootstrap would say to "below 1": for comparison."""
    weights = found.weights.reshape(prompts, -1).sum(1)
    sums = (found.weights * found.values).reshape(prompts, -1).sum(1)
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return float(np.quantile(drawn @ sums / (drawn @ weights), 1 - SIGNIFICANCE)) < 1


class Tally:
    """Counts what happened, in percent."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.repetitions = 0

    def add(self, happened: Mapping[str, bool]) -> None:
        """One repetition."""
        self.repetitions += 1
        for name, value in happened.items():
            self.counts[name] = self.counts.get(name, 0) + bool(value)

    def percent(self) -> dict[str, float]:
        """By name, to a tenth."""
        return {name: round(100 * n / self.repetitions, 1) for name, n in self.counts.items()}


def shape(clips: Clips, prompts: int, repetitions: int, resamples: int) -> dict[str, float]:
    """One gate on a mean that is a distance."""
    rng, tally = np.random.default_rng(1), Tally()
    gates = Gates((Gate("lf0_rmse", "at_most", {"q8_0": 1.0}),), {})
    for _ in range(repetitions):
        found = observed(rng, clips(rng, prompts))

        def judged(scale: float, found: Observations = found) -> GateResult:
            seen = {"lf0_rmse": replace(found, values=scale * found.values)}
            return judge("q8_0", seen, gates, resamples=resamples)[0]

        on, most, half, beyond = judged(1), judged(0.8), judged(0.5), judged(1.5)
        tally.add(
            {
                "on the margin: PASS": on.verdict == "PASS",
                "FAIL": on.verdict == "FAIL",
                "PASS, percentile": percentile_passes(found, prompts, 400, rng),
                "at 0.8: PASS": most.verdict == "PASS",
                "at half: PASS": half.verdict == "PASS",
                "half: FAIL": half.verdict == "FAIL",
                "half: stopped": half.outcome == "FAIL",
                "at 1.5: stopped": beyond.outcome == "FAIL",
            }
        )
    return tally.percent()


def failures(
    new: float, cured: float, together: float, prompts: int, repetitions: int, margin: float
) -> dict[str, float]:
    """Shares of clips; `together`: the chance that a clip does what the first one of its prompt does."""
    rng, tally, known = np.random.default_rng(3), Tally(), dict[FailureCounts, GateResult]()
    gates = Gates((Gate("new_failures", "failures", {"q8_0": margin}),), {})
    for _ in range(repetitions):
        fate = rng.random((prompts, SEEDS))
        fate = np.where(rng.random((prompts, SEEDS)) < together, rng.random((prompts, 1)), fate)
        found = observed(rng, 100.0 * (fate < new) - 100.0 * (fate >= 1 - cured))
        counts = count_failures(found)
        if counts not in known:
            (known[counts],) = judge("q8_0", {"new_failures": found}, gates)
        result = known[counts]
        tally.add(
            {
                "PASS": result.verdict == "PASS",
                "FAIL": result.verdict == "FAIL",
                "undecided, inside": result.outcome == "INCONCLUSIVE",
                "stopped": result.outcome == "FAIL",
            }
        )
    return tally.percent()


def at(part: float, margin: float, gate: Gate, clips: Clips, rng: np.random.Generator, prompts: int) -> Array:
    """Values of a gate whose truth is that part of the margin."""
    if gate.metric == "top1":
        return 100 - max(part, 0.05) * (100 - margin) * clips(rng, prompts)
    if gate.kind == "at_most":
        return max(part, 0.05) * margin * clips(rng, prompts)
    return part * margin + clips(rng, prompts)


def level(name: str, part: float, prompts: int, repetitions: int, resamples: int) -> dict[str, float]:
    """All gates of a level, each with its truth at that part of its margin: by gate PASS, and the level's outcome."""
    rng, passes, outcomes = np.random.default_rng(5), Tally(), Tally()
    for _ in range(repetitions):
        measured = {}
        for gate in GATES.gates:
            margin = gate.margins[name]
            if gate.kind == "failures":
                values: Array = np.where(rng.random((prompts, SEEDS)) < part * margin / 100, 100.0, 0.0)
            else:
                values = at(part, margin, gate, SPREADS[gate.metric], rng, prompts)
            measured[gate.metric] = observed(rng, values)
        results = judge(name, measured, GATES, resamples=resamples)
        outcome = worst(result.outcome for result in results)
        passes.add({result.metric: result.verdict == "PASS" for result in results})
        outcomes.add(
            {
                "all PASS": outcome == "PASS",
                "undecided": outcome == "INCONCLUSIVE",
                "stopped": outcome == "FAIL",
                "some FAIL": any(result.verdict == "FAIL" for result in results),
            }
        )
    return {**passes.percent(), **outcomes.percent()}


def change(
    metric: str, size: float, clips: Clips, noise: float, prompts: int, repetitions: int, resamples: int
) -> dict[str, float]:
    """A change of one metric over the same clips, by the default tolerance: see `CHANGES`."""
    rng, tally = np.random.default_rng(6), Tally()
    step = GATES.history[metric]
    for _ in range(repetitions):
        old = observed(rng, size * clips(rng, prompts))
        drawn = noise * rng.normal(size=old.values.shape)
        is_signed = METRICS[metric].direction == "zero"
        same = old.values + size * drawn if is_signed else old.values * np.exp(drawn - noise**2 / 2)

        def judged(part: float, old: Observations = old, same: Array = same, is_signed: bool = is_signed) -> GateResult:
            worse = np.copysign(step.least, old.mean)
            values = same + part * worse if is_signed else same * (1 + part * step.percent / 100)
            pair = Change("q8_0", METRICS[metric], replace(old, values=values), old, step)
            return judge_changes([pair], "history", resamples=resamples)[0]

        none, half, on, twice = (judged(part) for part in (0, 0.5, 1, 2))
        tally.add(
            {
                "unchanged: PASS": none.verdict == "PASS",
                "unchanged: stopped": none.outcome == "FAIL",
                "half: FAIL": half.verdict == "FAIL",
                "half: stopped": half.outcome == "FAIL",
                "on the margin: PASS": on.verdict == "PASS",
                "FAIL": on.verdict == "FAIL",
                "twice: FAIL": twice.verdict == "FAIL",
                "twice: stopped": twice.outcome == "FAIL",
            }
        )
    return tally.percent()


@click.command()
@click.option("--repetitions", default=300, show_default=True)
@click.option("--resamples", default=1000, show_default=True)
def main(repetitions: int, resamples: int) -> None:
    start = time.perf_counter()
    console = Console(width=200)
    record: dict[str, Any] = {"benchmark": "verdicts", "repetitions": repetitions, "resamples": resamples, "unit": "%"}

    def show(title: str, rows: dict[str, dict[str, float]]) -> None:
        columns = list(next(iter(rows.values())))
        table = Table("", *columns, title=title, title_justify="left")
        for name, row in rows.items():
            table.add_row(name, *(f"{row[column]:.1f}" for column in columns))
        console.print(table)
        record[title] = rows

    for prompts in SIZES:
        size = f"{prompts} prompts x {SEEDS} seeds"
        show(
            f"one gate, {size}",
            {name: shape(clips, prompts, repetitions, resamples) for name, clips in SHAPES.items()},
        )
        show(
            f"failures, {size}",
            {
                f"margin {margin:.0f} %: {new:.1%} new, {cured:.0%} cured, {name}": failures(
                    new, cured, together, prompts, repetitions, margin
                )
                for margin, new, cured in FATES
                for name, together in (("independent", 0.0), ("half together", 0.5), ("all seeds alike", 1.0))
            },
        )
        show(
            f"history and comparisons, one metric, {size}",
            {
                f"{metric}, {noise:.0%} noise": change(metric, mean, clips, noise, prompts, repetitions, resamples)
                for metric, mean, clips, noise in CHANGES
            },
        )
        show(
            f"all gates of a level, {size}",
            {
                f"{name}, truth at {part} of the margins": level(name, part, prompts, repetitions, resamples)
                for name in ("q8_0", "q4_0")
                for part in (0, 0.5, 0.8, 1.0)
            },
        )
    record["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(record))


FATES = (
    (1.0, 0.0, 0.0),
    (1.0, 0.005, 0.0),
    (1.0, 0.01, 0.0),
    (1.0, 0.02, 0.0),
    (1.0, 0.04, 0.04),
    (1.0, 0.05, 0.04),
    (5.0, 0.025, 0.0),
    (5.0, 0.05, 0.0),
)
"""Margin in percent, true shares of new failures and of cures."""
CHANGES: tuple[tuple[str, float, Clips, float], ...] = (
    ("kld_cb0", 0.01, log_normal(0.6, 0.4), 0.02),
    ("kld_cb0", 0.01, log_normal(0.6, 0.4), 0.2),
    ("lf0_rmse", 40, ORDINARY, 0.2),
    ("dur_ratio", 0.05, normal(1, 2), 0.2),
    ("dur_ratio", 0.05, normal(1, 2), 2.0),
)
"""Metric, size of its values, their shape, and how much the same build would change each of them by chance: 2 is
another draw of the same prompt."""


if __name__ == "__main__":
    main()
