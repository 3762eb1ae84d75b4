# ruff: noqa: RUF001  (texts of other scripts have marks that resemble ours)
"""A book read aloud: half an hour of sentences of every length in three scripts. Is anything lost, does it click?

    python benchmarks/book.py BUNDLE --minutes 30 --context 512 --out benchmarks/results/book.json

It is read twice, by other seeds. Live: one stream, whose text comes in pieces of 1 to 7 characters as a language model
writes them. Whole: a call a chapter, each sentence let out when it is done. Measured are the ends of the pieces of
sound that sentences make, the gaps between them, the steps from sample to sample there, and memory after each minute
of speech. Prints a table and, last, one line of JSON; fails if something is not as it should be. Linux only.
"""

import json
import logging
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.random import Generator
from own_memory import settled_anonymous_bytes
from rich.console import Console
from rich.table import Table

from miso_gguf.models.mimi import SAMPLE_RATE_HZ
from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.audio.samples import Samples, peak_dbfs
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Chunk, SpokenSentence
from miso_gguf.runtime.tts import MisoTTS

LONGEST_CHARS = 600
END_DBFS = -50.0
"""No piece of sound may end louder."""
END_SAMPLES = SAMPLE_RATE_HZ * 2 // 1000
"""2 ms."""
SEAM_STEP = 0.05
"""Most from one sample to the next at a seam. Noise at full scale, faded over 5 ms, begins and ends with 0.013."""
MEMORY_MB = 8.0
"""What the second half of a reading may hold more than the first, warmed up."""
WARM_UP_MINUTES = 3
_SEAM_SAMPLES = 6
_QUIET = 10 ** (END_DBFS / 20)


@dataclass(frozen=True)
class Script:
    """A way to write, and words to write with it."""

    words: tuple[str, ...]
    space: str
    commas: str
    ends: tuple[str, ...]


def _script(words: str, space: str, commas: str, ends: str) -> Script:
    return Script(tuple(words.split()), space, commas, tuple(ends.split()))


SCRIPTS = {
    "Latin": _script(
        "the a river house old garden never evening thought slowly Anna said went quietly over 1914 Dr. naïve l'été "
        "morning-glory because nobody however incomprehensibility I 3.5 and or letters",
        " ",
        ",;:",
        '. . . ! ? … ." ?!',
    ),
    "Chinese": _script(
        "今天 天气 很好 我们 去 公园 散步 他 没有 说话 房子 老人 河 在 山 上 1914 的 了",
        "",
        "，、；",
        "。 。 ！ ？ 。”",
    ),
    "Devanagari": _script(
        "आज मौसम बहुत अच्छा है और हम नदी के किनारे चलते हैं उसने कुछ नहीं कहा पुराना घर क्षत्रिय विद्यार्थी १९१४",
        " ",
        ",;",
        "। । ! ?",
    ),
}
ORNAMENT = "* * *"
"""A line that nobody says."""


def sentence(script: Script, rng: Generator) -> str:
    """One of 1 word to `LONGEST_CHARS` characters, as many of each order of length; one in six has no marks at all."""
    chars = int(np.exp(rng.uniform(0, np.log(LONGEST_CHARS))))
    plain = rng.random() < 1 / 6
    text = str(rng.choice(script.words))
    while len(text) < chars:
        comma = "" if plain or rng.random() < 0.85 else str(rng.choice(list(script.commas)))
        text += comma + script.space + str(rng.choice(script.words))
    return text[:LONGEST_CHARS].rstrip() + ("" if plain else str(rng.choice(script.ends)))


def chapters(seed: int, paragraphs: int) -> Iterator[list[str]]:
    """Paragraphs, without end: scripts take turns, each chapter has a title and closes with an ornament."""
    rng = np.random.default_rng(seed)
    while True:
        for script in SCRIPTS.values():
            title = script.space.join(rng.choice(script.words, 3))
            texts = [[sentence(script, rng) for _ in range(rng.integers(1, 6))] for _ in range(paragraphs)]
            yield [title, *(script.space.join(each) for each in texts), ORNAMENT]


def said(text: str) -> str:
    """What must have been said of a text, without white space: all but lines without a letter or digit."""
    lines = (line for line in unicodedata.normalize("NFC", text).splitlines() if any(map(str.isalnum, line)))
    return "".join("".join(lines).split())


@dataclass
class Ear:
    """Listens to the chunks of streams, and measures each piece: the sound of a sentence."""

    audio_s: float = 0.0
    ends_dbfs: list[float] = field(default_factory=list)
    """The loudest of the last samples of each piece."""
    gaps_ms: list[float] = field(default_factory=list)
    """Between two pieces, all that is below `END_DBFS`: what the model leaves itself is part of it."""
    steps: list[float] = field(default_factory=list)
    """The largest at each seam: from the last samples of a piece over the silence to the first ones of the next."""
    within: list[float] = field(default_factory=list)
    """The largest inside each piece."""
    _sentence: int = -1
    _parts: list[Samples] = field(default_factory=list)
    _before: Samples | None = None

    def hear(self, chunk: Chunk) -> None:
        """Take the next chunk of a stream."""
        if chunk.sentence != self._sentence:
            self._end_piece()
            self._sentence = chunk.sentence
        self._parts.append(chunk.samples)
        self.audio_s += len(chunk.samples) / SAMPLE_RATE_HZ

    def end(self) -> None:
        """The stream has ended."""
        self._end_piece()
        self._before, self._sentence = None, -1

    def _end_piece(self) -> None:
        if not self._parts:
            return
        piece, before = np.concatenate(self._parts), self._before
        self._parts.clear()
        self.ends_dbfs.append(peak_dbfs(piece[-END_SAMPLES:]))
        self.within.append(float(np.abs(np.diff(piece)).max(initial=0)))
        if before is not None:
            quiet = _leading(np.abs(before[::-1]) < _QUIET) + _leading(np.abs(piece) < _QUIET)
            self.gaps_ms.append(1e3 * quiet / SAMPLE_RATE_HZ)
            begin = piece[: _leading(piece == 0) + _SEAM_SAMPLES]
            self.steps.append(float(np.abs(np.diff(np.concatenate([before[-_SEAM_SAMPLES:], begin]))).max()))
        self._before = piece


def _leading(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """How many are true before the first that is not."""
    return len(mask) if mask.all() else int(mask.argmin())


@dataclass
class Reading:
    """A book that is read until so much has been said."""

    tts: MisoTTS
    minutes: float
    options: SpeechOptions
    live: bool
    paragraphs: int = 6
    """Of a chapter, beside its title."""
    memory_minutes: float = 1.0
    ear: Ear = field(default_factory=Ear)
    given: list[str] = field(default_factory=list)
    sentences: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Text, how it ended, tries, frames."""
    memory: list[int] = field(default_factory=list)
    wall_s: float = 0.0

    def read(self) -> "Reading":
        """Read it."""
        for text in self._calls():
            begin, measuring = time.perf_counter(), 0.0
            with self.tts.stream(text, options=self.options, live=self.live) as stream:
                for chunk in stream:
                    self.ear.hear(chunk)
                    if self.ear.audio_s >= 60 * self.memory_minutes * (len(self.memory) + 1):
                        since = time.perf_counter()
                        self.memory.append(settled_anonymous_bytes())
                        measuring += time.perf_counter() - since
            self.ear.end()
            self.wall_s += time.perf_counter() - begin - measuring
            self.sentences += map(_noted, stream.speech.sentences)
        return self

    def _calls(self) -> Iterator[str | Iterator[str]]:
        """The text of each call: as it comes, or a chapter."""
        texts = self._chapters()
        if self.live:
            yield in_pieces(texts, np.random.default_rng(self.options.seed))
        else:
            yield from texts

    def _chapters(self) -> Iterator[str]:
        for paragraphs in chapters(self.options.seed, self.paragraphs):
            if self.ear.audio_s >= 60 * self.minutes:
                return
            self.given.append("\n\n".join([*paragraphs, ""]))
            yield self.given[-1]

    def record(self) -> dict[str, Any]:
        """What was measured."""
        ear, mb = self.ear, [round(bytes_ / 1e6, 2) for bytes_ in self.memory]
        return {
            "live": self.live,
            "seed": self.options.seed,
            "audio_s": round(ear.audio_s, 2),
            "wall_s": round(self.wall_s, 2),
            "rtf": round(self.wall_s / ear.audio_s, 4),
            "characters": sum(map(len, self.given)),
            "sentences": len(self.sentences),
            "is_all_said": said("".join(self.given)) == said("".join(text for text, *_ in self.sentences)),
            "without_sound": sum(not frames for *_, frames in self.sentences),
            "ended": dict(Counter(ended for _, ended, _, _ in self.sentences).most_common()),
            "tries": dict(sorted(Counter(tries for _, _, tries, _ in self.sentences).items())),
            "pieces": len(ear.ends_dbfs),
            "end_dbfs": _spread(ear.ends_dbfs, 1),
            "gap_ms": _spread(ear.gaps_ms, 1),
            "seam_step": _spread(ear.steps, 4),
            "step_within": _spread(ear.within, 4),
            "memory_mb": mb,
            "memory_growth_mb": growth_mb(mb),
        }


def _noted(said: SpokenSentence) -> tuple[str, str, int, int]:
    return said.text, said.ended, said.tries, len(said.codes)


def in_pieces(texts: Iterable[str], rng: Generator) -> Iterator[str]:
    """Texts as a language model writes them: in pieces of 1 to 7 characters."""
    for text in texts:
        begin = 0
        while begin < len(text):
            end = begin + int(rng.integers(1, 7, endpoint=True))
            yield text[begin:end]
            begin = end


def _spread(values: list[float], digits: int) -> dict[str, float]:
    if not values:
        return {}
    found = {"min": min(values), "median": float(np.median(values)), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def growth_mb(minutes: list[float]) -> float:
    """The least of the second half less the least of the first, after the warm-up if there is more."""
    warm = minutes[min(WARM_UP_MINUTES, len(minutes) // 3) :]
    first, second = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    return round(min(second) - min(first), 2) if first else 0.0


def faults(record: dict[str, Any]) -> list[str]:
    """What is not as it should be in a record."""
    found = {
        "text was lost": not record["is_all_said"],
        f"a piece ends above {END_DBFS:g} dBFS": record["end_dbfs"]["max"] > END_DBFS,
        f"a step of more than {SEAM_STEP} at a seam": record["seam_step"].get("max", 0) > SEAM_STEP,
        f"memory grew by more than {MEMORY_MB:g} MB": record["memory_growth_mb"] > MEMORY_MB,
    }
    return [fault for fault, is_so in found.items() if is_so]


@click.command(help=(__doc__ or "").split("\n\n", maxsplit=1)[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--threads", default=default_threads(), show_default="as the runtime")
@click.option("--context", default=512, show_default=True, help="Positions of the prompt and what is said on it.")
@click.option("--minutes", default=30.0, show_default=True, help="Of speech, for each of the two readings.")
@click.option("--seed", default=0, show_default=True, help="Of the first reading; the second has the next one.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep the result in this file.")
def main(bundle: Path, quant: str, threads: int, context: int, minutes: float, seed: int, out: Path | None) -> None:
    logging.getLogger("miso_gguf").setLevel(logging.ERROR)  # each sentence cut short has a warning
    records: list[dict[str, Any]] = []
    with MisoTTS.load(bundle, quant, threads=threads, gpu_layers=0, context=context) as tts:
        for number, live in enumerate((True, False)):
            records.append(Reading(tts, minutes, SpeechOptions(seed=seed + number), live).read().record())
        model = tts.engine.spec.name
    found = [f"{_name(record)}: {fault}" for record in records for fault in faults(record)]
    result = {
        "benchmark": "book",
        "model": model,
        "level": quant,
        "threads": threads,
        "context": context,
        "minutes": minutes,
        "readings": records,
        "faults": found,
    }
    _print(f"{model} {quant}, a context of {context}", records)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit("\n".join(found) or None)


def _name(record: dict[str, Any]) -> str:
    return "live" if record["live"] else "whole"


def _print(title: str, records: list[dict[str, Any]]) -> None:
    table = Table("", *map(_name, records), title=title)
    for key in records[0]:
        if key not in {"live", "memory_mb"}:
            table.add_row(key.replace("_", " "), *(_shown(record[key]) for record in records))
    for name, index in (("memory after a minute, MB", 0), ("memory at the end, MB", -1)):
        table.add_row(name, *(str(record["memory_mb"][index]) if record["memory_mb"] else "" for record in records))
    Console().print(table)


def _shown(value: object) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
