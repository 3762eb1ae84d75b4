"""What an evaluation of the tiny model takes, by parts, beside what was estimated before it.

    PYTHONPATH=benchmarks python benchmarks/measured_cost.py [--prompts 40] [--seeds 2]

One process of one thread does what `make regression` does, and each function's processor time, without that of the
functions below it, is added to the part that the estimate has for it; so it is right on a machine that others use too.
Prints a table, and last one line of JSON.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
from rich.console import Console
from rich.table import Table
from tiny_bundle import write_tiny

from miso_gguf.models.levels import FP16, parse_level
from miso_gguf.quant_eval import evaluation
from miso_gguf.quant_eval.report.write import write_reports
from miso_gguf.quant_eval.run import candidate, cost, damages, runner, stages, verified_files
from miso_gguf.quant_eval.run.candidate import Candidate
from miso_gguf.quant_eval.run.cost import estimate_cost
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_run

LEVELS = ("fp16", "q8_0", "q4_k_m", "q4_0")
LOADED, ALONE = candidate.LoadedCandidate, candidate.DepthDecoderOnly
TIMED: tuple[tuple[Any, str, str], ...] = (
    (LOADED, "__init__", cost.LOADING),
    (ALONE, "__init__", cost.LOADING),
    (LOADED, "speak", cost.SPEAKING),
    (LOADED, "replay", cost.REPLAYS),
    (LOADED, "depth_logits", cost.REPLAYS),
    (LOADED, "one_step", cost.REPLAYS),
    (ALONE, "logits", cost.REPLAYS),
    (LOADED, "sound", cost.CODEC),
    (stages, "_divergence", cost.DIVERGENCE),
    (stages, "contours_of_both", cost.PROSODY),
    (stages, "compare_aligned", cost.PROSODY),
    (stages, "measure_both", cost.PROSODY),
    (stages, "compare_free", cost.PROSODY),
    (damages, "damaged", cost.DAMAGED_LEVELS),
    (evaluation, "damaged_clips", cost.DAMAGED_CLIPS),
    (evaluation, "summarise", cost.STATISTICS),
    (verified_files.VerifiedFiles, "check", cost.HASHING),
)
"""Whose time is which part's."""


class Clock:
    """Processor time by part: of a function without those that are called in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._below = [0.0]
        self._whole: str | None = None

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function`, whose time is added to `part`."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.of(part):
                return function(*arguments, **named)

        return call

    @contextmanager
    def of(self, part: str, *, with_all: bool = False) -> Iterator[None]:
        """What happens in it is `part`; `with_all`: also what belongs to other parts elsewhere."""
        outer, begin = self._whole, time.process_time()
        self._below.append(0.0)
        self._whole = outer or (part if with_all else None)
        try:
            yield
        finally:
            taken = time.process_time() - begin
            self.seconds[self._whole or part] += taken - self._below.pop()
            self._below[-1] += taken
            self._whole = outer


def measured(plan: Plan) -> dict[str, float]:
    """Do it all: processor seconds by part."""
    clock = Clock()
    hold_against = runner.hold_against

    def held(plan: Plan, held_candidate: Candidate, *rest: Any) -> int:
        if not plan.is_damaged(held_candidate):
            return hold_against(plan, held_candidate, *rest)
        with clock.of(cost.DAMAGED_LEVELS, with_all=True):
            return hold_against(plan, held_candidate, *rest)

    with ExitStack() as stack:
        for owner, name, part in TIMED:
            stack.enter_context(mock.patch.object(owner, name, clock.timed(getattr(owner, name), part)))
        stack.enter_context(mock.patch.object(runner, "hold_against", held))
        with clock.of("the rest"):
            results = evaluation.evaluate_plan(plan, evaluation.Wanted(vram=False))
            with clock.of(cost.REPORTS):
                write_reports(results, plan.audio, plan.out, strict=False)
    return clock.seconds


@click.command()
@click.option("--prompts", default=40, show_default=True)
@click.option("--seeds", default=2, show_default=True)
def main(prompts: int, seeds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        bundle, out = Path(temporary, "bundle"), Path(temporary, "out")
        write_tiny(bundle, [parse_level(level) for level in LEVELS], threads=1)
        asked = Asked(out, prompts=prompts, seeds=seeds, threads=1, gpu_layers=0)
        plan = plan_run(bundle, LEVELS, FP16.key, asked)
        estimated = {part.name: part.seconds for part in estimate_cost(plan).parts}
        taken = measured(plan)
    made = Table("part", "estimated, s", "processor time, s", title=f"4 levels, {prompts} x {seeds}, all controls")
    for part in {**estimated, **taken}:
        made.add_row(part, f"{estimated.get(part, 0.0):.1f}", f"{taken.get(part, 0.0):.1f}")
    made.add_row("all", f"{sum(estimated.values()):.1f}", f"{sum(taken.values()):.1f}", style="bold")
    Console(width=120).print(made)
    print(json.dumps({"benchmark": "measured_cost", "estimated_s": estimated, "measured_s": taken}))


if __name__ == "__main__":
    main()
