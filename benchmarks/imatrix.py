"""What an importance matrix from speech brings, on sentences it never saw. The tiny model, codebook by codebook.

    python benchmarks/imatrix.py --threads 2 --out benchmarks/results/imatrix.json
    python benchmarks/imatrix.py --out benchmarks/results/imatrix.json --table

The tiny model's corpus is spoken at FP16 for the matrix (`miso-recipe imatrix`). Held out are other sentences of its
vocabulary, drawn at random, which the model was never trained on either. Each level is made without and with the
matrix, FP16's speech of the held-out sentences replayed through both, and KLD compared clip by clip: the change in
percent, with its 95 % interval over sentences; below zero the matrix helps. "Typical" is the geometric mean of the
clips' own ratios, since KLD has a heavy tail: one clip may hold half of the sum. Levels that cannot do without a matrix
are held against one of ones: all columns matter alike. Each interval is for itself: of twenty where nothing changes,
one lies beside zero by chance. Also asked, by the same clips:

* which half gains: the matrix for the backbone alone, and for the depth decoder alone;
* a matrix of a few prompts: is that enough;
* without the entry of `output.weight`: llama.cpp's guide advises to quantise that one without;
* as a control, the same importances on other columns: what comes of a matrix as such, and not of what it says.

Prints Markdown tables, and last one line of JSON.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from held_out import held_out
from imatrix_files import OUTPUT, write_ones, write_shuffled, write_without
from rich.console import Console
from teacher_forced import Clip, change_percent, diverged, load, observed, speak, typical_change_percent, with_interval
from tiny_bundle import write_tiny

from miso_gguf.core.files import write_whole
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import FP16, LEVELS, Level, parse_level
from miso_gguf.native.threads import default_threads
from miso_gguf.quant_eval.corpus import load_corpus
from miso_gguf.quant_eval.machine import machine
from miso_gguf.quant_eval.metrics.divergence import Divergence
from miso_gguf.quant_eval.stats.observations import Observations

FINEST_BITS = 5.0
"""Levels of more bits a weight at full size are left out: they have little left to gain."""
WITHOUT, WITH, FEWER, NO_OUTPUT, SHUFFLED = SIDES = "without", "with", "fewer", "no_output", "shuffled"
"""Without a matrix, or with one of ones; with that of all prompts; of a few; lacking an entry; and in disorder."""
PAIRS = {
    WITHOUT: (WITHOUT, WITHOUT),
    WITH: (WITH, WITH),
    "backbone": (WITH, WITHOUT),
    "decoder": (WITHOUT, WITH),
    FEWER: (FEWER, FEWER),
    NO_OUTPUT: (NO_OUTPUT, NO_OUTPUT),
    SHUFFLED: (SHUFFLED, SHUFFLED),
}
"""Of which the backbone is, and of which the depth decoder."""
COMPARED = {
    "with": (WITH, WITHOUT),
    "backbone": ("backbone", WITHOUT),
    "decoder": ("decoder", WITHOUT),
    "fewer_than_with": (FEWER, WITH),
    "no_output_than_with": (NO_OUTPUT, WITH),
    "shuffled": (SHUFFLED, WITHOUT),
}
"""What is held against what."""
LAST = ("fewer_than_with", "no_output_than_with", "shuffled")
ALONE = ("the backbone's alone", "the depth decoder's alone")

CORPUS, FEW = "tiny", 5
"""What is spoken for the matrix, and how many prompts of it are a few."""

Collect = Callable[[Path, int, Path], None]
"""Bundle, how many prompts of the corpus, and the directory of the matrix."""
Found = Mapping[str, Sequence[Divergence]]

console = Console(stderr=True)


def collect(bundle: Path, prompts: int, out: Path) -> None:
    """With the command, in a process of its own."""
    program = [sys.executable, "-c", "from miso_gguf.recipes.cli import main; main()", "imatrix", str(bundle)]
    options = ["--quant", FP16.key, "--corpus", CORPUS, "--prompts", str(prompts), "--out", str(out)]
    subprocess.run([*program, *options, "--threads", "1"], check=True, stdout=subprocess.DEVNULL)


def make_matrices(work: Path, prompts: int, threads: int, collect: Collect) -> dict[str, Path]:
    """All of them, by side; `WITHOUT` is of ones."""
    spec = write_tiny(work / "source", [FP16], threads).model_spec
    made = {side: work / f"imatrix-{side}" for side in SIDES}
    for side, count in ((WITH, prompts), (FEWER, FEW)):
        console.print(f"collecting from {count} prompts")
        collect(work / "source", count, made[side])
    write_ones(made[WITHOUT], spec)
    write_without(made[WITH], made[NO_OUTPUT], spec, OUTPUT)
    write_shuffled(made[WITH], made[SHUFFLED], spec)
    return made


def make_bundles(work: Path, levels: Sequence[Level], matrices: Mapping[str, Path], threads: int) -> None:
    """One for each side."""
    for side, matrix in matrices.items():
        console.print(f"converting, {side.replace('_', ' ')}")
        plain = [level for level in levels if side == WITHOUT and not level.needs_imatrix]
        weighed = [level for level in levels if level not in plain]
        if plain:
            write_tiny(work / f"{side}-plain", plain, threads)
        if weighed:
            write_tiny(work / side, weighed, threads, matrix)


def _bundle(work: Path, side: str, level: Level) -> Path:
    return work / (f"{side}-plain" if side == WITHOUT and not level.needs_imatrix else side)


def diverge(work: Path, level: Level, clips: Sequence[Clip], threads: int) -> Found:
    """All pairs of a level, clip by clip."""
    with ExitStack() as stack:
        sides = {side: stack.enter_context(load(_bundle(work, side, level), level.key, threads)) for side in SIDES}
        rows = [diverged(clip, sides, list(PAIRS.values())) for clip in clips]
    return {name: [row[index] for row in rows] for index, name in enumerate(PAIRS)}


def summary(level: Level, clips: Sequence[Clip], found: Found) -> dict[str, Any]:
    """KLD of all pairs, and what is compared, over all codebooks and some."""
    codebooks = found[WITHOUT][0].kld.shape[1]
    parts = {"all": slice(None), "cb0": slice(1), "rest": slice(1, None)}
    values = {
        name: {part: observed(clips, [one.kld[:, columns] for one in each]) for part, columns in parts.items()}
        for name, each in found.items()
    }
    by_codebook = [
        [observed(clips, [one.kld[:, [book]] for one in found[name]]) for book in range(codebooks)]
        for name in (WITH, WITHOUT)
    ]
    return {
        "level": level.key,
        "label": level.label,
        "against": "ones" if level.needs_imatrix else "none",
        "kld": {name: {part: with_interval(one) for part, one in parts.items()} for name, parts in values.items()},
        "change": {
            name: {part: _change(values[new][part], values[old][part]) for part in parts}
            for name, (new, old) in COMPARED.items()
        },
        "by_codebook": [_change(new, old) for new, old in zip(*by_codebook, strict=True)],
    }


def _change(new: Observations, old: Observations) -> dict[str, Any]:
    """Of a typical clip, and of the mean: relative, and in nats."""
    return {
        "typical_percent": typical_change_percent(new, old),
        "mean_percent": change_percent(new, old),
        "mean_nats": with_interval(new, old),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The tables, for docs: never by hand."""
    rows = result["levels"]
    first = [
        ["level", "KLD without", "with", "change of the mean", "typical change", "codebook 0", "others", *ALONE],
        *(
            [
                f"{row['label']}{' (against ones)' if row['against'] == 'ones' else ''}",
                f"{row['kld'][WITHOUT]['all']['value']:.3g}",
                f"{row['kld'][WITH]['all']['value']:.3g}",
                _percent(row["change"][WITH]["all"], "mean"),
                *(_percent(row["change"][WITH][part]) for part in ("all", "cb0", "rest")),
                *(_percent(row["change"][half]["all"]) for half in ("backbone", "decoder")),
            ]
            for row in rows
        ),
    ]
    books = range(len(rows[0]["by_codebook"]))
    second = [
        ["typical change by codebook", *map(str, books)],
        *([row["label"], *(_percent(one) for one in row["by_codebook"])] for row in rows),
    ]
    third = [
        [
            "typical change",
            f"{result['fewer_prompts']} prompts against all",
            f"without {OUTPUT} against all",
            "columns shuffled against none",
        ],
        *([row["label"], *(_percent(row["change"][name]["all"]) for name in LAST)] for row in rows),
    ]
    return "\n\n".join(map(_table, (first, second, third)))


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def _percent(change: Mapping[str, Any], which: str = "typical") -> str:
    """Bold where zero lies outside of the interval."""
    one = change[f"{which}_percent"]
    shown = f"{one['value']:+.1f} % ({one['low']:+.1f} .. {one['high']:+.1f})"
    return f"**{shown}**" if one["low"] > 0 or one["high"] < 0 else shown


def measure(
    work: Path, levels: Sequence[Level], prompts: int, sentences: int, threads: int, collect: Collect = collect
) -> dict[str, Any]:
    """All of it, as JSON."""
    taught = load_corpus(f"{CORPUS}:{prompts}")
    make_bundles(work, levels, make_matrices(work, prompts, threads, collect), threads)
    with load(work / "source", FP16.key, threads) as reference:
        console.print(f"speaking {sentences} held-out sentences")
        clips = speak(reference, held_out(sentences, taught), seeds=1)
    rows = []
    for level in levels:
        console.print(f"{level.key}: measuring")
        rows.append(summary(level, clips, diverge(work, level, clips, threads)))
    return {
        "benchmark": "imatrix",
        "model": TINY.name,
        "machine": machine(gpu_layers=0),
        "corpus": taught.name,
        "fewer_prompts": FEW,
        "held_out": sentences,
        "frames": sum(clip.frames for clip in clips),
        "levels": rows,
    }


@click.command(help=__doc__)
@click.option("--quant", multiple=True, help=f"Only this level [default: all below {FINEST_BITS:g} bits].")
@click.option("--prompts", default=40, show_default=True, help="That the matrix is made of.")
@click.option("--sentences", default=120, show_default=True, help="Held out.")
@click.option("--threads", default=default_threads(), show_default="as the runtime")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--table", is_flag=True, help="Print the tables of --out again, without measuring.")
def main(quant: Sequence[str], prompts: int, sentences: int, threads: int, out: Path | None, table: bool) -> None:
    if table:
        assert out is not None, "--table is of --out"
        print(markdown(json.loads(out.read_text())))
        return
    with tempfile.TemporaryDirectory() as work:
        levels = [parse_level(name) for name in quant] or [one for one in LEVELS.values() if one.bits < FINEST_BITS]
        result = measure(Path(work), levels, prompts, sentences, threads)
    print(markdown(result))
    print(json.dumps(result))
    if out is not None:
        write_whole(out, json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
