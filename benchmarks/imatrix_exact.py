"""How exact an importance matrix's sums are: against the PyTorch reference in float64, every matrix of both halves.

    PYTHONPATH=tests python benchmarks/imatrix_exact.py [--prompts 8] [--as-spoken]

The tiny model at F32 says some of its corpus and hears it as `miso-recipe imatrix` does; the reference computes those
prompts and codes too. Shown is the worst matrix: its sums as a vector, and its worst column, relative. `--as-spoken`
hears with the KV cache and attention that the runtime speaks with. Prints a Markdown table, and last a line of JSON.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from heard_reference import reference_sums
from numpy.typing import NDArray
from safetensors.torch import load
from speaking import reference_prompt
from tiny_bundle import write_tiny

from miso_gguf.convert.checkpoint.sources import TINY_NAME, resolve
from miso_gguf.convert.imatrix import HALVES
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32
from miso_gguf.quant_eval.corpus import load_corpus
from miso_gguf.quant_eval.run.candidate import Candidate
from miso_gguf.quant_eval.run.stages import Target, speak_target
from miso_gguf.recipes.collector import Collector
from miso_gguf.recipes.sums import empty_sums
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.options import EngineOptions, SpeechOptions

OPTIONS = SpeechOptions(split_sentences=False)
Sums = NDArray[np.float64]


def compare(work: Path, prompts: int, *, exact: bool) -> dict[str, Any]:
    """The errors by part, and of the depth decoder's steps."""
    write_tiny(work, [F32], threads=1)
    with resolve(TINY_NAME) as sources:
        weights = load((sources.checkpoint / "model.safetensors").read_bytes())
    ours, theirs = empty_sums(TINY), empty_sums(TINY)
    options = EngineOptions(threads=1, gpu_layers=0, exact=exact, voice_cache_bytes=0)
    frames = 0
    with Collector(Candidate.of(F32.key, open_level(work, F32.key)), options) as collector:
        loaded = collector._loaded
        for prompt in load_corpus(f"tiny:{prompts}").prompts:
            target = Target.of(prompt, speak_target(loaded, prompt, 0, OPTIONS))
            frames += collector.hear(prompt, 0, OPTIONS, ours)
            given = reference_prompt(loaded.tts.engine, prompt.text, target.context, prompt.speaker)
            for part, found in reference_sums(TINY, weights, given, target.codes).items():
                sums = theirs["backbone" if part == "backbone" else "decoder"]
                for name in sums.sums:
                    sums.sums[name] += found[name][0]
                    sums.counts[name] += found[name][1]
    rows = list[tuple[str, list[tuple[Sums, Sums]]]]()
    for part in HALVES:
        found_by, wanted_by = dict(ours[part].entries()), dict(theirs[part].entries())
        names = list(found_by)
        rows.append((part, [(found_by[name].sums, wanted_by[name].sums) for name in names]))
        steps = [(found_by[name].step_sums, wanted_by[name].step_sums) for name in names]
        if part == "decoder":
            rows.append(("decoder, by position", [(a, b) for a, b in steps if a is not None and b is not None]))
        for name in ours[part].counts:
            np.testing.assert_array_equal(ours[part].counts[name], theirs[part].counts[name], err_msg=name)
    return {
        "benchmark": "imatrix_exact",
        "prompts": prompts,
        "frames": frames,
        "exact": exact,
        "errors": {
            name: {
                "matrices": len(pairs),
                "vector": max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs),
                "column": max(_worst(a, b) for a, b in pairs),
            }
            for name, pairs in rows
        },
    }


def _worst(found: Sums, wanted: Sums) -> float:
    """Of columns that are ever more than zero."""
    return float((np.abs(found - wanted)[wanted > 0] / wanted[wanted > 0]).max())


@click.command(help=__doc__)
@click.option("--prompts", default=8, show_default=True)
@click.option("--as-spoken", is_flag=True)
def main(prompts: int, as_spoken: bool) -> None:
    with tempfile.TemporaryDirectory() as work:
        result = compare(Path(work), prompts, exact=not as_spoken)
    print("| part | matrices | worst matrix, as a vector | worst column |\n|---|---|---|---|")
    for name, error in result["errors"].items():
        print(f"| {name} | {error['matrices']} | {error['vector']:.1e} | {error['column']:.1e} |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
