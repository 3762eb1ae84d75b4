"""What an evaluation of the 8B model costs, by parts, on machines that this is not.

    PYTHONPATH=benchmarks:benchmarks/gpu python benchmarks/evaluation_cost.py [--flavor miso-8b]

It is the estimate that `miso-eval` prints before its work, of a bundle of four levels whose files have the size and the
headers of a conversion and nothing else: they are sparse. A CPU is known by its bandwidth and its cores, a GPU by its
bandwidth; the constants were fitted to one CPU and one GPU (see `quant_eval/run/cost.py` and `speed.py`), so the others
are projections. Prints a table for each kind of run, and last one line of JSON.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click
from bundle import repeated_conversion
from rich.console import Console
from rich.table import Table

from miso_gguf.convert import bundle as bundle_module
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.gguf_header import padded
from miso_gguf.convert.plan import GgufPlan
from miso_gguf.convert.sink import Sink
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.levels import FP16, parse_level
from miso_gguf.models.spec import ModelSpec
from miso_gguf.native.threads import default_threads
from miso_gguf.quant_eval.command_text import duration
from miso_gguf.quant_eval.metric import LOGITS, ONE_STEP
from miso_gguf.quant_eval.run.cost import Cost, estimate_cost
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_run
from miso_gguf.quant_eval.run.speed import Speed, read_bandwidth

LEVELS = ("fp16", "q8_0", "q4_k_m", "q4_0")
GPUS = {"RTX 3060": 360e9, "RTX 4060": 272e9, "RTX 4090": 1008e9, "H200": 4800e9}
"""Bytes a second. Source: data sheets."""
QUICK: dict[str, Any] = {"corpus": "builtin:40", "seeds": 1, "stages": (LOGITS, ONE_STEP)}
RUNS: dict[str, dict[str, Any]] = {
    "--quick": QUICK,
    "--quick --no-controls": {**QUICK, "controls": False},
    "--corpus builtin:40": {"corpus": "builtin:40"},
    "--corpus builtin": {"corpus": "builtin"},
    "--corpus builtin --ladder": {"corpus": "builtin", "ladder": True},
}
"""What follows `miso-eval run`, as a plan has it; three seeds and all controls unless it says otherwise."""


def write_hollow_bundle(directory: Path, flavor: str, levels: Sequence[str]) -> None:
    """A bundle whose weights are holes: nothing can be computed with it."""

    def headers_alone(_reader: object, files: list[tuple[GgufPlan, Sink]], _threads: int, **_more: object) -> None:
        for plan, sink in files:
            size = len(plan.header) + sum(padded(info.size_bytes) for info in plan.infos)
            sink._file.truncate(size)
            sink._size_bytes = size

    parsed = [parse_level(level) for level in levels]
    with (
        repeated_conversion(directory, flavor, FLAVORS[flavor], parsed) as conversion,
        mock.patch.object(bundle_module, "run_pass", headers_alone),
    ):
        convert(conversion)


def machines(spec: ModelSpec, bandwidth: float | None) -> dict[str, Speed]:
    """By name; each computes in one process. `bandwidth` is this one's, bytes a second; None to measure it."""
    threads = default_threads()
    here = bandwidth or read_bandwidth(threads)
    return {
        f"this CPU, {threads} cores, {here / 1e9:.0f} GB/s": Speed.of_cpu(here, threads),
        "CPU, 8 cores, 60 GB/s": Speed.of_cpu(60e9, 8),
        **{f"{name}, {size / 1e9:.0f} GB/s": Speed.of_gpu(size, spec) for name, size in GPUS.items()},
    }


def costs(bundle: Path, known: Mapping[str, Speed]) -> dict[str, dict[str, Cost]]:
    """By run, then by machine."""
    found: dict[str, dict[str, Cost]] = {}
    for name, more in RUNS.items():
        plan: Plan = plan_run(bundle, LEVELS, FP16.key, Asked(bundle / "out", gpu_layers=0, **more))
        found[name] = {machine: estimate_cost(plan, vram=True, speed=speed) for machine, speed in known.items()}
    return found


@click.command()
@click.option("--flavor", type=click.Choice(list(FLAVORS)), default="miso-8b", show_default=True)
@click.option(
    "--bandwidth", type=float, help="Of this CPU's memory when nothing else runs, in GB/s [default: as it is now]."
)
def main(flavor: str, bandwidth: float | None) -> None:
    console = Console(width=200)
    with tempfile.TemporaryDirectory() as temporary:
        write_hollow_bundle(Path(temporary), flavor, LEVELS)
        found = costs(Path(temporary), machines(FLAVORS[flavor], bandwidth and 1e9 * bandwidth))
    for run, by_machine in found.items():
        console.print(table(run, by_machine))
    record = {run: {machine: cost.to_dict() for machine, cost in each.items()} for run, each in found.items()}
    print(json.dumps({"benchmark": "evaluation_cost", "model": FLAVORS[flavor].name, "runs": record}))


def table(run: str, by_machine: dict[str, Cost]) -> Table:
    """A row for each part."""
    first = next(iter(by_machine.values()))
    said = f"{run}: {first.clips} clips, {duration(first.audio_s)} of speech, {first.disk_bytes / 1e9:.0f} GB on disk"
    made = Table("", *by_machine, title=said, title_justify="left")
    times = [{part.name: part.seconds for part in cost.parts} for cost in by_machine.values()]
    for name in times[0]:
        made.add_row(name, *(duration(each.get(name, 0.0)) for each in times))
    made.add_row("all", *(duration(cost.wall_s or 0.0) for cost in by_machine.values()), style="bold")
    return made


if __name__ == "__main__":
    main()
