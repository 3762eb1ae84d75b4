"""A dialogue of two voices, turn by turn: which rows of the prompts are computed, and how soon each turn is heard.

    python benchmarks/dialogue.py BUNDLE --quant q4_k_m --threads 2 --out benchmarks/results/dialogue.json

The same turns are spoken in several ways, each in a process of its own. Before: a turn's prompt begins with the
speaker's own voice, and no states of voices are kept. After: it begins with both voices, always in the same order.
Kept: the same in another process, which finds the states of the voices on the disk; there the dialogue is spoken once
more, whole instead of live. Voices are random codes: what they cost is what is measured, and the model's EOS aside, a
turn is as long as `--max-seconds` allows. Prints a table and, last, one line of JSON.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from calls import errors_only
from rich.console import Console
from rich.table import Table

from miso_gguf.models.mimi import FRAME_RATE_HZ
from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions, SpeechOptions
from miso_gguf.runtime.speech import Segment, Speech
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice

TURNS = (
    (0, "Good morning, did you sleep well?"),
    (1, "Not really, the rain kept me awake for most of the night."),
    (0, "I like it."),
    (1, "You would, and I suppose the river has risen again."),
    (0, "It has, so let us take the other road today."),
)
"""Who says what."""
_VOICE_TEXTS = ("One two three, this is how I speak.", "And this is how it sounds when I say something.")


@dataclass
class Rows:
    """Counts the rows of prompts that a backbone computes."""

    computed: int = 0
    _steps: int = field(default=0, repr=False)

    @contextmanager
    def counted(self, engine: Engine) -> Iterator[None]:
        """While this lasts: all rows that llama.cpp is given, but for those of steps, which are no prompt's."""
        backbone = engine.backbone
        decode, step = backbone._model.decode, backbone.step

        def counted_decode(embedded: Any, *arguments: Any) -> Any:
            self.computed += 0 if self._steps else len(embedded)
            return decode(embedded, *arguments)

        def counted_step(*arguments: Any) -> Any:
            self._steps += 1
            try:
                return step(*arguments)
            finally:
                self._steps -= 1

        with (
            mock.patch.object(backbone._model, "decode", counted_decode),
            mock.patch.object(backbone, "step", counted_step),
        ):
            yield


@dataclass(frozen=True)
class Side:
    """One way to speak the dialogue."""

    name: str
    own_voice_first: bool = False
    whole_too: bool = False
    directory: Path | None = None
    """Where the states of voices are kept between processes."""
    voice_cache_bytes: int = EngineOptions.voice_cache_bytes


@dataclass(frozen=True)
class Setup:
    """What all sides have in common."""

    bundle: Path
    quant: str
    threads: int
    gpu_layers: int
    voice_s: float
    turns: int
    options: SpeechOptions


def spoken(setup: Setup, side: Side) -> dict[str, Any]:
    """The dialogue on one side, in this process."""
    options = EngineOptions(
        threads=setup.threads,
        gpu_layers=setup.gpu_layers,
        voice_cache_bytes=side.voice_cache_bytes,
        voice_directory=side.directory,
    )
    begin = time.perf_counter()
    with errors_only(), MisoTTS.of(open_level(setup.bundle, setup.quant), options) as tts:
        loaded = time.perf_counter() - begin
        live = dialogue(tts, setup, side, live=True)
        record = {"side": side.name, "load_s": round(loaded, 2), "turns": live}
        if side.whole_too:
            record["whole"] = dialogue(tts, setup, side, live=False)
    return record


def dialogue(tts: MisoTTS, setup: Setup, side: Side, *, live: bool) -> list[dict[str, Any]]:
    """All turns, each after those before."""
    voices = random_voices(tts, setup.voice_s)
    history: list[Segment] = []
    records: list[dict[str, Any]] = []
    for speaker, text in TURNS[: setup.turns]:
        voice = voices[speaker] if side.own_voice_first else voices
        rows = Rows()
        with rows.counted(tts.engine):
            speech = _said(tts, text, live=live, voice=voice, context=history, speaker=speaker, options=setup.options)
        history = history[speech.sentences[-1].dropped_segments :] + speech.segments
        records.append(
            {
                "speaker": speaker,
                "rows": sum(sentence.prompt_rows for sentence in speech.sentences),
                "computed": rows.computed,
                "ttfa_s": round(speech.timing.first_audio_s, 3),
                "frames": len(speech.codes),
                "ended": [sentence.ended for sentence in speech.sentences],
                "codes_sha256": hashlib.sha256(speech.codes.astype("<i8").tobytes()).hexdigest(),
            }
        )
    return records


def _said(tts: MisoTTS, text: str, *, live: bool, **how: Any) -> Speech:
    if not live:
        return tts.generate(text, **how)
    with tts.stream(text, **how) as stream:
        for _ in stream:
            pass
    return stream.speech


def random_voices(tts: MisoTTS, seconds: float) -> list[Voice]:
    """One for each speaker, always the same."""
    shape = (round(seconds * FRAME_RATE_HZ), tts.codec.codebooks)
    return [
        Voice(np.random.default_rng(speaker).integers(1, tts.codec.cardinality, shape), text, speaker)
        for speaker, text in enumerate(_VOICE_TEXTS)
    ]


def sides(directory: Path) -> list[Side]:
    """Those that are held against each other; `directory` is empty."""
    return [
        Side("before", own_voice_first=True, voice_cache_bytes=0),
        Side("after", directory=directory),
        Side("kept", directory=directory, whole_too=True),
    ]


def measured(setup: Setup) -> dict[str, Any]:
    """All sides, one after the other, and what they say about each other."""
    with tempfile.TemporaryDirectory() as directory:
        found = []
        for side in sides(Path(directory)):
            # A process of its own: nothing but what lies in the directory goes from one to the other.
            with get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(spoken, (setup, side)))
        stored = sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
    _, after, kept = found
    return {
        "sides": found,
        "voice_states_bytes": stored,
        "is_whole_as_live": _codes(kept["whole"]) == _codes(kept["turns"]),
        "is_kept_as_computed": _codes(kept["turns"]) == _codes(after["turns"]),
    }


def _codes(turns: list[dict[str, Any]]) -> list[str]:
    return [turn["codes_sha256"] for turn in turns]


@click.command(help=(__doc__ or "").split("\n\n", maxsplit=1)[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--threads", default=default_threads(), show_default="as the runtime")
@click.option("--gpu-layers", default=0, show_default=True)
@click.option("--voice-seconds", "voice_s", default=10.0, show_default=True, help="Of each of the two voices.")
@click.option("--turns", type=click.IntRange(1, len(TURNS)), default=len(TURNS), show_default=True)
@click.option("--max-seconds", default=0.8, show_default=True, help="Of a turn.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep the result in this file.")
def main(
    bundle: Path,
    quant: str,
    threads: int,
    gpu_layers: int,
    voice_s: float,
    turns: int,
    max_seconds: float,
    seed: int,
    out: Path | None,
) -> None:
    options = SpeechOptions(seed=seed, max_seconds=max_seconds, split_sentences=False)
    found = measured(Setup(bundle, quant, threads, gpu_layers, voice_s, turns, options))
    level = open_level(bundle, quant)
    result = {
        "benchmark": "dialogue",
        "model": level.manifest.model_spec.name,
        "level": level.key,
        "threads": threads,
        "voice_s": voice_s,
        "max_seconds": max_seconds,
        "seed": seed,
        **found,
    }
    _print(f"{result['model']} {level.key}, two voices of {voice_s:g} s", found)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _print(title: str, found: dict[str, Any]) -> None:
    columns = {side["side"]: side["turns"] for side in found["sides"]}
    columns["whole"] = found["sides"][-1]["whole"]
    table = Table("turn", *columns, title=title, caption="rows computed of those of the prompt, and TTFA")
    for number, turns in enumerate(zip(*columns.values(), strict=True), 1):
        table.add_row(str(number), *(f"{turn['computed']} of {turn['rows']}\n{turn['ttfa_s']:.2f} s" for turn in turns))
    console = Console()
    console.print(table)
    console.print(
        f"codes of whole speech as of live speech: {found['is_whole_as_live']}; with states from the disk as with "
        f"computed ones: {found['is_kept_as_computed']}; states of voices: {found['voice_states_bytes'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
