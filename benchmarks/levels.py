"""Every level beside every other: KLD against FP16, VRAM, bytes and milliseconds a frame. The tiny model and full size.

    python benchmarks/levels.py tiny --imatrix IMATRIX --threads 2 --out benchmarks/results/levels.json
    python benchmarks/levels.py full --work build/levels --threads 2 --out benchmarks/results/levels.json
    python benchmarks/levels.py table benchmarks/results/levels.json

KLD is teacher-forced against FP16 in this runtime, with 95 % intervals over prompts. Times are medians of rounds in
which the level and the base take turns; ratios are of each round. VRAM is accounted for a full offload. IMATRIX is of
`miso-recipe imatrix` on the tiny corpus, for the levels that cannot do without one: so the tiny model says sentences
that are not in it (`held_out.py`), else these levels would be measured on what they were tuned to.

At full size the weights are random (`random_bundle.py`), one level after another is written, measured and deleted:
12 GB of disk beside FP16's 16. KLD there says how rounding errors add up over 32 layers that nobody trained, in which
order levels stand, and nothing of speech; frames are of random codes, and an imatrix is of ones. It goes on where it
was cut off: every level that is done is a line of WORK/levels.jsonl.

Prints the table, and last one line of JSON.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from held_out import NAME, held_out
from imatrix_files import paths, write_ones
from level_rows import Row, Turns, measured_row
from level_tables import markdown
from random_bundle import write_random_bundle
from rich.console import Console
from teacher_forced import Clip, held, load, speak
from tiny_bundle import write_tiny

from miso_gguf.core.files import open_whole
from miso_gguf.models.flavors import FLAVORS, TINY
from miso_gguf.models.levels import DEFAULT_LEVEL, F32, FP16, LEVELS, Level, parse_level
from miso_gguf.models.spec import ModelSpec
from miso_gguf.native.threads import default_threads
from miso_gguf.quant_eval.corpus import Prompt, load_corpus
from miso_gguf.quant_eval.machine import machine
from miso_gguf.quant_eval.run.candidate import LoadedCandidate
from miso_gguf.quant_eval.run.reference_logits import ReferenceClip, ReferenceLogits
from miso_gguf.quant_eval.run.stages import Target
from miso_gguf.runtime.bundle import open_level

BASE = DEFAULT_LEVEL
"""What times are held against."""
FULL_FLAVOR, FULL_PROMPTS, FULL_FRAMES = "miso-8b", 6, 5

console = Console(stderr=True)


def tiny_rows(
    work: Path, levels: Sequence[Level], imatrix: Path | None, prompts: Sequence[Prompt], seeds: int, turns: Turns
) -> list[Row]:
    """All levels of the tiny model, one by one."""
    plain = [level for level in levels if not level.needs_imatrix]
    weighed = [level for level in levels if level.needs_imatrix]
    if weighed and imatrix is None:
        raise click.UsageError(f"{weighed[0].key} needs --imatrix DIR: make one with miso-recipe imatrix")
    write_tiny(work / "plain", [FP16, BASE, *plain], turns.threads)
    if weighed:
        write_tiny(work / "weighed", weighed, turns.threads, imatrix)
    places = {level.key: work / ("weighed" if level.needs_imatrix else "plain") for level in levels}
    with load(work / "plain", FP16.key, turns.threads) as reference:
        clips = speak(reference, prompts, seeds)
    return [_row(place, key, work / "plain", clips, turns) for key, place in places.items()]


def _row(bundle: Path, key: str, plain: Path, clips: Sequence[Clip], turns: Turns) -> Row:
    """A level of `bundle`, beside the base of `plain`."""
    console.print(f"{key}: measuring")
    with load(plain, BASE.key, turns.threads) as base, load(bundle, key, turns.threads) as loaded:
        return measured_row(loaded, base, clips, turns)


def full_rows(work: Path, levels: Sequence[Level], turns: Turns, flavor: str = FULL_FLAVOR) -> list[Row]:
    """All levels at full size, which are written, measured and deleted one by one; the base stays."""
    log = work / "levels.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    bundle, spec = work / "bundle", FLAVORS[flavor]
    write_ones(work / "ones", spec)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {row["level"] for row in rows}
    todo = [level for level in levels if level.key not in done]
    if todo:
        _write(bundle, flavor, [BASE], turns)
        clips = _full_clips(bundle, flavor, spec, work, turns)
    # FP16 first: it is there from making the clips.
    for level in sorted(todo, key=lambda level: level != FP16):
        console.print(f"{level.key}: writing")
        _write(bundle, flavor, [level], turns, work / "ones" if level.needs_imatrix else None)
        rows.append(_row(bundle, level.key, bundle, clips, turns))
        if level != BASE:
            _delete(bundle, level)
        with log.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    wanted = {level.key for level in levels}
    return [row for row in rows if row["level"] in wanted]


def _write(bundle: Path, flavor: str, levels: Sequence[Level], turns: Turns, imatrix: Path | None = None) -> None:
    files = {f"imatrix_{part}": path for part, path in paths(imatrix).items()} if imatrix else {}
    write_random_bundle(bundle, flavor, levels, turns.threads, **files)


def _full_clips(bundle: Path, flavor: str, spec: ModelSpec, work: Path, turns: Turns) -> list[Clip]:
    """What FP16 makes of random codes, kept on disk: it is 16 GB, and written only if it is still needed."""
    store, rng, clips = ReferenceLogits(work / "clips", spec), np.random.default_rng(0), []
    with ExitStack() as stack:
        opened: list[LoadedCandidate] = []

        def reference() -> LoadedCandidate:
            if not opened:
                _write(bundle, flavor, [FP16], turns)
                opened.append(stack.enter_context(load(bundle, FP16.key, turns.threads)))
            return opened[0]

        for index in range(FULL_PROMPTS):
            prompt = Prompt(f"random-{index}", "random", str(index))
            codes = rng.integers(1, 512, (FULL_FRAMES, spec.codebooks))
            target = Target(prompt, 0, codes, "cap", [])

            def compute(target: Target = target) -> ReferenceClip:
                return held(reference(), target).base

            clips.append(Clip(target, store.obtain(f"{flavor} {prompt.id} {FULL_FRAMES}", compute)))
    return clips


def _delete(bundle: Path, level: Level) -> None:
    """A level's own files; the base's embeddings stay. The manifest still names them: nobody opens them again."""
    kept = open_level(bundle, BASE.key)
    files = open_level(bundle, level.key)
    for path in {files.backbone, files.decoder, files.embeddings} - {kept.backbone, kept.decoder, kept.embeddings}:
        path.unlink()


def record(out: Path | None, size: str, rows: Sequence[Row], **settings: Any) -> None:
    """Print the table and the line; put them into `out`, beside what is there of the other size."""
    result = {"machine": machine(gpu_layers=0), **settings, "rows": list(rows)}
    print(markdown(rows))
    print(json.dumps({"benchmark": "levels", "size": size, **result}))
    if out is not None:
        results = json.loads(out.read_text()) if out.exists() else {"benchmark": "levels"}
        with open_whole(out) as file:
            file.write(json.dumps({**results, size: result}, indent=1).encode() + b"\n")


def chosen(names: Sequence[str], left_out: Sequence[Level] = ()) -> list[Level]:
    """The levels that were named, or all."""
    return [parse_level(name) for name in names] or [level for level in LEVELS.values() if level not in left_out]


@click.group(help=__doc__)
def main() -> None:
    pass


QUANT = click.option("--quant", multiple=True, help="Only this level. May be repeated.")
THREADS = click.option("--threads", default=default_threads(), show_default="as the runtime")
OUT = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file; one of its sizes is set.")


@main.command()
@QUANT
@THREADS
@OUT
@click.option("--imatrix", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", default=40, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--rounds", default=60, show_default=True)
def tiny(
    quant: Sequence[str], threads: int, out: Path | None, imatrix: Path | None, prompts: int, seeds: int, rounds: int
) -> None:
    """The tiny model, on sentences that no imatrix of its corpus has seen."""
    sentences = held_out(prompts, load_corpus("tiny"))
    with tempfile.TemporaryDirectory() as work:
        rows = tiny_rows(Path(work), chosen(quant), imatrix, sentences, seeds, Turns(rounds, threads))
    record(out, "tiny", rows, model=TINY.name, corpus=NAME, seeds=seeds)


@main.command()
@QUANT
@THREADS
@OUT
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--rounds", default=5, show_default=True)
def full(quant: Sequence[str], threads: int, out: Path | None, work: Path, rounds: int) -> None:
    """Full size, random weights. F32 is left out: it takes 33 GB, of memory too."""
    rows = full_rows(work, chosen(quant, [F32]), Turns(rounds, threads))
    record(out, "full", rows, model=FLAVORS[FULL_FLAVOR].name, corpus="random codes")
    shutil.rmtree(work / "bundle")


@main.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def table(results: Path) -> None:
    """The tables of a JSON file, as Markdown for docs."""
    found = json.loads(results.read_text())
    for size in ("tiny", "full"):
        if size in found:
            print(f"\n{_caption(found[size])}\n\n{markdown(found[size]['rows'])}")


def _caption(result: dict[str, Any]) -> str:
    row, machine = result["rows"][0], result["machine"]
    return (
        f"**{result['model']}**, {result['corpus']}: {row['prompts']} prompts, {row['frames']} frames; "
        f"medians of {row['rounds']} rounds on {machine['cpu']}, threads: {row['threads']}."
    )


if __name__ == "__main__":
    main()
