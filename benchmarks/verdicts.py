"""How often verdicts are wrong, and how often they come to one, on simulated evaluations whose truth is known.

    python benchmarks/verdicts.py [--repetitions 1000] [--resamples 10000]

Prints a table for each kind of gate, and last one line of JSON. Takes ten to twenty minutes on one core, and one minute
with `--repetitions 300 --resamples 2000`. All figures are percent of the repetitions: of 1000, a true 5 % comes out
between 3.7 and 6.4 (95 %).

* on the margin: the truth is exactly what is still tolerated; false PASS and false FAIL should be 5 % or less.
* PASS at 0, 0.5, 0.8 (FAIL at 1.5): the truth is that part of the margin, so that is right; its share is the power.
* covered: intervals that contain the truth; 95 % or more is wanted.
* history: the margin is the reach of the accepted evaluation's own interval.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from miso_gguf.quant_eval.gates.accepted import Accepted, StoredMetric, Subject
from miso_gguf.quant_eval.gates.config import Gate, Gates
from miso_gguf.quant_eval.gates.history import compare_to_accepted
from miso_gguf.quant_eval.gates.judge import judge
from miso_gguf.quant_eval.results import GateResult
from miso_gguf.quant_eval.stats.bootstrap import Bootstrap
from miso_gguf.quant_eval.stats.estimates import SIGNIFICANCE, estimate
from miso_gguf.quant_eval.stats.observations import Observations

Array = NDArray[np.float64]
Clips = Callable[[np.random.Generator, int], Array]
"""Values `[prompts, seeds]` whose true mean is known."""

SEEDS = 3
SUBJECT = Subject(model="simulated", source_sha256="", corpus_sha256="", reference="fp16", settings={})


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


def centred(clips: Clips, scale: float) -> Clips:
    """Skewed, mean 0."""
    return lambda rng, prompts: scale * (clips(rng, prompts) - 1)


def scaled(clips: Clips, scale: float) -> Clips:
    """With the mean `scale`."""
    return lambda rng, prompts: scale * clips(rng, prompts)


DISTANCES: dict[str, Clips] = {
    "normal": normal(0.3, 0.3, mean=1),
    "log-normal": log_normal(0.4, 0.3),
    "log-normal, wide": log_normal(0.6, 0.4),
    "half zeros": with_zeros(0.4, 0.4),
}
MARGIN = 0.08
"""Of ln duration ratio, at Q4_K_M."""
DIFFERENCES: dict[str, Clips] = {
    "normal": normal(0.1, 0.1),
    "log-normal": centred(log_normal(0.6, 0.4), 0.15),
}


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

    def add(self, happened: dict[str, bool]) -> None:
        """One repetition."""
        self.repetitions += 1
        for name, value in happened.items():
            self.counts[name] = self.counts.get(name, 0) + bool(value)

    def percent(self) -> dict[str, float]:
        """By name, to a tenth."""
        return {name: round(100 * n / self.repetitions, 1) for name, n in self.counts.items()}


def at_most(clips: Clips, prompts: int, repetitions: int, resamples: int) -> dict[str, float]:
    rng, tally = np.random.default_rng(1), Tally()
    for _ in range(repetitions):
        found = observed(rng, clips(rng, prompts))
        bootstrap = Bootstrap(found, resamples=resamples)
        low, high = bootstrap.interval()
        # The truth is 1, so a margin of 2 is an effect of half the margin.
        tally.add(
            {
                "false PASS": bootstrap.p_below(1) <= SIGNIFICANCE,
                "false FAIL": bootstrap.p_above(1) <= SIGNIFICANCE,
                "false PASS, percentile": percentile_passes(found, prompts, 1000, rng),
                "covered": low <= 1 <= high,
                "PASS at 0": bootstrap.p_below(100) <= SIGNIFICANCE,
                "PASS at 0.5": bootstrap.p_below(2) <= SIGNIFICANCE,
                "PASS at 0.8": bootstrap.p_below(1.25) <= SIGNIFICANCE,
                "FAIL at 1.5": bootstrap.p_above(1 / 1.5) <= SIGNIFICANCE,
            }
        )
    return tally.percent()


def within(clips: Clips, prompts: int, repetitions: int, resamples: int) -> dict[str, float]:
    rng, tally = np.random.default_rng(2), Tally()
    for _ in range(repetitions):
        found = observed(rng, clips(rng, prompts))
        happened = {}
        for name, effect in (("on", 1.0), ("under", -1.0), ("at 0", 0.0), ("at 0.5", 0.5), ("at 0.8", 0.8)):
            moved = Observations(found.prompts, found.seeds, found.values + effect * MARGIN, found.weights)
            bootstrap = Bootstrap(moved, resamples=resamples)
            happened[name] = (
                bootstrap.p_within(MARGIN) <= SIGNIFICANCE,
                bootstrap.p_outside(MARGIN) <= SIGNIFICANCE,
            )
        tally.add(
            {
                "false PASS": happened["on"][0],
                "false PASS below zero": happened["under"][0],
                "false FAIL": happened["on"][1],
                "false FAIL below zero": happened["under"][1],
                "false FAIL without effect": happened["at 0"][1],
                "PASS at 0": happened["at 0"][0],
                "PASS at 0.5": happened["at 0.5"][0],
                "PASS at 0.8": happened["at 0.8"][0],
            }
        )
    return tally.percent()


def failures(together: float, prompts: int, repetitions: int, share: float, margin: float) -> dict[str, float]:
    """`together`: the chance that a clip does what the first one of its prompt does; 0 is independent."""
    rng, tally = np.random.default_rng(3), Tally()
    gates = Gates((Gate("new_failures", "failures", {"q8_0": margin}),), {})
    for _ in range(repetitions):
        own, common = rng.random((prompts, SEEDS)) < share, rng.random((prompts, 1)) < share
        fails = np.where(rng.random((prompts, SEEDS)) < together, common, own)
        found = observed(rng, 100.0 * fails)
        (result,) = judge("q8_0", {"new_failures": found}, gates, resamples=100)
        tally.add({"PASS": result.verdict == "PASS", "FAIL": result.verdict == "FAIL"})
    return tally.percent()


def history(
    metric: str, clips: Clips, noise: float | None, prompts: int, repetitions: int, resamples: int
) -> dict[str, float]:
    """`noise`: by how much a clip changes from run to run, as part of the value; None: it is another draw."""
    rng, tally = np.random.default_rng(4), Tally()
    for _ in range(repetitions):
        before = observed(rng, clips(rng, prompts))
        if noise is None:
            values = clips(rng, prompts).ravel()
        else:
            values = before.values + noise * np.abs(before.values) * rng.normal(size=before.values.shape)
        stored = StoredMetric(
            estimate=estimate(before, resamples),
            prompts=before.prompts.tolist(),
            seeds=before.seeds.tolist(),
            values=before.values.tolist(),
            weights=before.weights.tolist(),
        )
        accepted = Accepted(
            created="", subject=SUBJECT, manifest_sha256="", versions={}, levels={"q8_0": {metric: stored}}
        )

        def compared(change: float, values: Array = values, accepted: Accepted = accepted) -> GateResult:
            found = accepted.levels["q8_0"][metric].observations()
            now = Observations(found.prompts, found.seeds, values + change, found.weights)
            (result,) = compare_to_accepted(SUBJECT, {"q8_0": {metric: now}}, accepted, [metric], resamples=resamples)
            return result

        same = compared(0.0)
        on, double = compared(same.margin), compared(2 * same.margin)
        tally.add(
            {
                "false FAIL": same.verdict == "FAIL",
                "PASS unchanged": same.verdict == "PASS",
                "false PASS": on.verdict == "PASS",
                "FAIL at margin": on.verdict == "FAIL",
                "FAIL at 2 margins": double.verdict == "FAIL",
            }
        )
    return tally.percent()


def level(clips: Clips, prompts: int, repetitions: int, resamples: int) -> dict[str, float]:
    """Six independent gates, all on the margin: how often Holm lets any false verdict through."""
    rng, tally = np.random.default_rng(5), Tally()
    metrics = ("kld_cb0", "kld_rest", "kld_deployed", "lf0_rmse", "energy_rmse", "lf0_rmse_dtw")
    gates = Gates(tuple(Gate(metric, "at_most", {"q8_0": 1.0}) for metric in metrics), {})
    for _ in range(repetitions):
        found = {metric: observed(rng, clips(rng, prompts)) for metric in metrics}
        verdicts = {result.verdict for result in judge("q8_0", found, gates, resamples=resamples)}
        tally.add({"any false PASS": "PASS" in verdicts, "any false FAIL": "FAIL" in verdicts})
    return tally.percent()


@click.command()
@click.option("--repetitions", default=1000, show_default=True)
@click.option("--resamples", default=10_000, show_default=True)
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

    for prompts in (40, 12):
        size = f"{prompts} prompts x {SEEDS} seeds"
        show(
            f"at_most, {size}",
            {name: at_most(clips, prompts, repetitions, resamples) for name, clips in DISTANCES.items()},
        )
        show(
            f"within, {size}",
            {name: within(clips, prompts, repetitions, resamples) for name, clips in DIFFERENCES.items()},
        )
        show(
            f"failures, margin 1 %, {size}",
            {
                f"true {share:.0%}, {name}": failures(together, prompts, repetitions, share, 1.0)
                for share in (0.0, 0.01, 0.05, 0.1)
                for name, together in (("independent", 0.0), ("half together", 0.5), ("all seeds alike", 1.0))
            },
        )
        show(
            f"history, {size}",
            {
                f"{metric}, {name}": history(metric, clips, noise, prompts, repetitions, resamples)
                for metric, clips in (
                    ("lf0_rmse", scaled(DISTANCES["log-normal"], 40)),
                    ("dur_ratio", normal(0.1, 0.1)),
                )
                for name, noise in (("1 % noise", 0.01), ("another draw", None))
            },
        )
        show(
            f"six gates after Holm, {size}",
            {"log-normal": level(DISTANCES["log-normal"], prompts, repetitions, resamples)},
        )
    record["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
