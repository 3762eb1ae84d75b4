"""Many texts whole: `generate_batch` against `generate` of one after the other, in one run.

    python benchmarks/whole_batch.py BUNDLE --quant q4_k_m --threads 2

Each text has one to four sentences. Codes are compared at F32 and below: exact F32 arithmetic must give the same. Times
are medians of the rounds, in which the sides take turns; the gain is that of the rounds' own gains. Prints a table and,
last, one line of JSON; `--out` keeps the rounds too.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.codec.codec import Codec
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions, SpeechOptions
from miso_gguf.runtime.speech import Speech
from miso_gguf.runtime.tts import MisoTTS

SENTENCES = (
    "The weather was good that day.",
    "She opened the window, and looked at the garden for a long time.",
    "Nobody had been there since the summer before.",
    "It is said that a house remembers whoever has lived in it, and perhaps that is so.",
    "Then the telephone rang.",
    "He did not answer.",
)


def texts(count: int) -> list[str]:
    """One to four sentences each, no two alike."""
    rng = np.random.default_rng(0)
    return [" ".join([f"Number {i}.", *rng.choice(SENTENCES, int(rng.integers(1, 4)))]) for i in range(count)]


def timed(speak: Callable[[], list[Speech]]) -> tuple[float, list[Speech]]:
    begin = time.perf_counter()
    speeches = speak()
    return time.perf_counter() - begin, speeches


def equal_share(one: Sequence[Speech], other: Sequence[Speech]) -> float:
    """Of the speeches, those with the same codes to the end."""
    return statistics.fmean(np.array_equal(a.codes, b.codes) for a, b in zip(one, other, strict=True))


def measured(tts: MisoTTS, said: Sequence[str], options: Sequence[SpeechOptions], rounds: int) -> dict[str, Any]:
    """Both sides in turns."""
    made: list[dict[str, float]] = []
    for _ in range(rounds):
        alone_s, alone = timed(lambda: one_by_one(tts, said, options))
        batch_s, batch = timed(lambda: tts.generate_batch(said, options=options))
        made.append({"alone_s": round(alone_s, 3), "batch_s": round(batch_s, 3), "equal": equal_share(alone, batch)})
    return {
        "sequences": tts.engine.sequences,
        "audio_s": round(sum(speech.audio_s for speech in batch), 1),
        "sentences": sum(len(speech.sentences) for speech in batch),
        "tries": sum(sentence.tries for speech in batch for sentence in speech.sentences),
        "alone_s": statistics.median(each["alone_s"] for each in made),
        "batch_s": statistics.median(each["batch_s"] for each in made),
        "gain": round(statistics.median(each["alone_s"] / each["batch_s"] for each in made), 3),
        "equal_share": min(each["equal"] for each in made),
        "rounds": made,
    }


def one_by_one(tts: MisoTTS, said: Sequence[str], options: Sequence[SpeechOptions]) -> list[Speech]:
    return [tts.generate(text, options=each) for text, each in zip(said, options, strict=True)]


@click.command(help=(__doc__ or "").split("\n\n", maxsplit=1)[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="f32", show_default=True)
@click.option("--exact/--fast", default=True, show_default=True, help="Arithmetic of which a batch changes no bit.")
@click.option("--threads", default=default_threads(), show_default="as the runtime")
@click.option("--gpu-layers", default=0, show_default=True)
@click.option("--sequences", "sizes", multiple=True, type=int, default=(8,), show_default=True, help="Again for more.")
@click.option("--texts", "count", default=100, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file for the JSON.")
def main(
    bundle: Path,
    quant: str,
    exact: bool,
    threads: int,
    gpu_layers: int,
    sizes: Sequence[int],
    count: int,
    rounds: int,
    out: Path | None,
) -> None:
    level, said = open_level(bundle, quant), texts(count)
    options = [SpeechOptions(seed=index) for index in range(count)]
    records: list[dict[str, Any]] = []
    for size in sizes:
        knobs = EngineOptions(threads=threads, gpu_layers=gpu_layers, sequences=size, exact=exact)
        engine = Engine(level, knobs)
        with MisoTTS(level, engine, Codec(level.codec_decoder, level.codec_encoder)) as tts:
            records.append(measured(tts, said, options, rounds))
    name = level.manifest.model_spec.name
    result = {
        "benchmark": "whole_batch",
        "model": name,
        "level": level.key,
        "exact": exact,
        "threads": threads,
        "texts": count,
        "sizes": records,
    }
    table = Table(title=f"{name} {level.key}{' exact' if exact else ''}: {count} texts, {threads} threads")
    for column in ("sequences", "sound", "one by one", "batch", "gain", "same codes"):
        table.add_column(column, justify="right")
    for record in records:
        table.add_row(
            str(record["sequences"]),
            f"{record['audio_s']:.0f} s",
            f"{record['alone_s']:.1f} s",
            f"{record['batch_s']:.1f} s",
            f"{record['gain']:.2f}x",
            f"{record['equal_share']:.0%}",
        )
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
