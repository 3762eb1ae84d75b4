"""What the metrics of prosody say of recordings whose differences are known, because they were made.

    python benchmarks/prosody_truth.py

A table of construction, metric, truth, tolerance and what was measured; the last line is the same as JSON. The
constructions are those of the tests, `tests/constructed_truth.py`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from constructed_truth import TRUTHS, Truth, measured


def records(made: Truth) -> Iterator[dict[str, Any]]:
    """What was measured of one construction; a metric that must be absent has no truth and no tolerance."""
    found = {metric: round(value, 4) for metric, value in measured(made).items()}
    for metric, (truth, tolerance) in made.known.items():
        at = found.get(metric)
        is_right = at is not None and abs(at - truth) <= tolerance
        known = {"truth": round(truth, 4), "tolerance": tolerance}
        yield {"construction": made.name, "metric": metric, **known, "measured": at, "is_right": is_right}
    for metric in made.absent:
        at = found.get(metric)
        yield {"construction": made.name, "metric": metric, "measured": at, "is_right": at is None}


@click.command()
@click.option("--only", default="", help="Constructions whose name has this in it.")
def main(only: str) -> None:
    """Print the table; exit 1 if a value is further from its truth than its tolerance."""
    everything = [record for truth in TRUTHS if only in truth.name for record in records(truth)]
    table = Table("construction", "metric", "truth", "tolerance", "measured")
    for record in everything:
        cells = ["-" if record.get(key) is None else f"{record[key]:.3f}" for key in ("truth", "tolerance", "measured")]
        style = None if record["is_right"] else "red"
        table.add_row(record["construction"], record["metric"], *cells, style=style)
    Console(width=100).print(table)
    click.echo(json.dumps(everything))
    sys.exit(not all(record["is_right"] for record in everything))


if __name__ == "__main__":
    main()
