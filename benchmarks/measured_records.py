"""The records of a finished evaluation, read back for what is computed from them beside its report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from miso_gguf.quant_eval.results import Results, parsed_results
from miso_gguf.quant_eval.run.record import Record
from miso_gguf.quant_eval.run.record_store import read_records
from miso_gguf.quant_eval.stats.observations import Observations


def results_and_records(report: Path) -> tuple[Results, list[Record]]:
    """Of a directory that `miso-eval run` wrote. The records' levels are called as in the report.

    Errors as `parsed_results` and `read_records`; `FileNotFoundError` if nothing was finished there.
    """
    results = parsed_results((report / "results.json").read_bytes())
    records = read_records(report / "records")
    return results, [replace(record, level=record.level.rpartition("-")[0]) for record in records]


def observations(rows: Sequence[tuple[str, int, float, float]]) -> Observations:
    """Of rows of prompt, seed, value and weight."""
    prompts, seeds, values, weights = zip(*rows, strict=True)
    return Observations(np.array(prompts), np.array(seeds), np.array(values), np.array(weights))
