"""What the tiny model can do: it says sentences it was never trained on; words, pitch and voice are judged.

    miso-convert tiny --quant fp16 --quant q8_0 --quant q4_k_m --quant q4_0 --out build/tiny
    python benchmarks/tiny_model.py build/tiny

Everything is spoken by the runtime from the bundle's files and judged against the reference renditions, which are known
exactly because the model's sentences are made of renderings. Needs espeak-ng and the extras `eval` and `train`. Prints
tables and, last, one line of JSON.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from hearing import Listener, f0_contour
from rich.console import Console
from rich.table import Table

from miso_gguf.core.arrays import I64Array
from miso_gguf.models.levels import LEVELS
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.mimi import MIMI_NAME
from miso_gguf.models.tiny.make.codec import read_codec
from miso_gguf.models.tiny.make.conversations import is_held_out
from miso_gguf.models.tiny.make.corpus import Corpus
from miso_gguf.models.tiny.make.figures import compare
from miso_gguf.models.tiny.make.renderings import Renderings
from miso_gguf.models.tiny.make.sentences import (
    MOST_PAUSE_FRAMES,
    Samples,
    Sentence,
    plain_sentence,
    random_sentence,
)
from miso_gguf.models.tiny.make.words import VARIANTS
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Segment
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice

GREEDY, SAMPLED = "greedy", "sampled"
_TEMPERATURE = {GREEDY: 0.0, SAMPLED: 0.9}
_TURNS = 6

console = Console(stderr=True)


@dataclass(frozen=True)
class Spoken:
    """One sentence as the model said it, and as it should be."""

    sentence: Sentence
    codes: I64Array
    samples: Samples
    ended: str


@dataclass
class Shares:
    """Counts of what came out right."""

    right: int = 0
    total: int = 0

    def add(self, *, right: bool) -> None:
        """Count one."""
        self.right += right
        self.total += 1

    @property
    def percent(self) -> float:
        """Of what was right."""
        return round(100 * self.right / self.total, 2)


def held_out(corpus: Corpus, count: int, seed: int, **limits: int) -> list[Sentence]:
    """Sentences whose words, in this order, were never trained on."""
    rng = np.random.default_rng(seed)
    drawn: Iterable[Sentence] = iter(lambda: random_sentence(corpus.renderings, rng, **limits), None)
    found: list[Sentence] = []
    for sentence in drawn:
        if is_held_out(sentence.words):
            found.append(plain_sentence(sentence.speaker, sentence.words, sentence.ending))
        if len(found) == count:
            break
    return found


def speaker_id(corpus: Corpus, name: str) -> int:
    return list(corpus.renderings.speakers).index(name)


def say(
    tts: MisoTTS,
    sentence: Sentence,
    speaker: int,
    mode: str,
    seed: int,
    *,
    voice: Voice | None = None,
    context: Sequence[Segment] = (),
) -> Spoken:
    options = SpeechOptions(temperature=_TEMPERATURE[mode], seed=seed, split_sentences=False, retry=False)
    speech = tts.generate(sentence.text, speaker=speaker, voice=voice, context=context, options=options)
    return Spoken(sentence, speech.codes, speech.samples, speech.sentences[0].ended)


def words_and_melody(corpus: Corpus, listener: Listener, spoken: Sequence[Spoken], others: int = 19) -> dict[str, Any]:
    """Right sentence among 20, right words, stopping, duration, F0."""
    nearest, words, stopped, lengths = Shares(), Shares(), Shares(), Shares()
    correlations, medians = [], {name: ([], []) for name in corpus.renderings.speakers}  # type: ignore[var-annotated]
    references = {each.sentence: listener.hear(corpus.copy(each.sentence)) for each in spoken}
    for each in spoken:
        own = references[each.sentence]
        heard = listener.hear(each.samples)
        by_length = sorted(
            (s for s in references if s.words != each.sentence.words),
            key=lambda s: abs(len(references[s].cepstra) - len(own.cepstra)),
        )
        cost, path = listener.warp(own, heard)
        nearest.add(right=all(cost < listener.warp(references[s], heard)[0] for s in by_length[:others]))
        stopped.add(right=each.ended == "eos")
        lengths.add(right=abs(len(each.codes) / _expected_frames(corpus, each.sentence, len(each.codes)) - 1) <= 0.1)
        for index, word in enumerate(each.sentence.words):
            words.add(right=listener.word(each.sentence, index, own, heard, path) == word)
        speaker = corpus.speaker(each.sentence)
        f0, f0_own = f0_contour(each.samples, speaker), f0_contour(corpus.copy(each.sentence), speaker)
        medians[speaker.name][0].append(f0[f0 > 0])
        medians[speaker.name][1].append(f0_own[f0_own > 0])
        correlations.append(listener.f0_correlation(f0_own, f0, path))
    return {
        "sentences": len(spoken),
        "nearest_of_20_percent": nearest.percent,
        "words_right_percent": words.percent,
        "words": words.total,
        "stops_by_itself_percent": stopped.percent,
        "duration_within_10_percent": lengths.percent,
        "f0_correlation_mean": round(float(np.nanmean(correlations)), 4),
        "f0_median_off_semitones": {
            name: round(float(12 * np.log2(np.median(np.concatenate(a)) / np.median(np.concatenate(b)))), 3)
            for name, (a, b) in medians.items()
        },
    }


def _expected_frames(corpus: Corpus, sentence: Sentence, frames: int) -> int:
    """The reference length nearest to `frames`: variants and pauses are the speaker's free choice."""
    get = corpus.renderings.get
    last = get(sentence.words[-1], sentence.ending, sentence.speaker).frames
    variants = [
        [get(word, "", sentence.speaker, variant).frames for variant in range(VARIANTS[""])]
        for word in sentence.words[:-1]
    ]
    shortest = last + sum(map(min, variants))
    longest = last + sum(map(max, variants)) + MOST_PAUSE_FRAMES * len(variants)
    return int(np.clip(frames, shortest, longest))


def endings(corpus: Corpus, tts: MisoTTS, count: int, mode: str) -> float:
    """Percent of "?" and "." that are told apart by the F0 of the last word alone."""
    right = Shares()
    for index, sentence in enumerate(held_out(corpus, count, seed=11)):
        speaker = corpus.speaker(sentence)
        contours = {}
        for mark in ".?":
            last = corpus.renderings.get(sentence.words[-1], mark, sentence.speaker)
            contours[mark] = f0_contour(corpus.codec.decode(corpus.codec.encode(last.samples)), speaker)
        for mark in ".?":
            asked = Sentence(sentence.speaker, sentence.words, mark, sentence.variants, sentence.pauses)
            spoken = say(tts, asked, speaker_id(corpus, sentence.speaker), mode, index)
            f0 = f0_contour(spoken.samples, speaker)
            scores = {ending: _melody_distance(contour, f0) for ending, contour in contours.items()}
            right.add(right=min(scores, key=scores.__getitem__) == mark)
    return right.percent


def _melody_distance(reference: np.ndarray[Any, np.dtype[np.float64]], f0: np.ndarray[Any, Any]) -> float:
    """RMS in semitones where both are voiced, the ends laid on each other."""
    length = min(len(reference), len(f0))
    a, b = reference[-length:], f0[-length:]
    both = (a > 0) & (b > 0)
    return float(np.sqrt(np.mean((12 * np.log2(a[both] / b[both])) ** 2))) if both.sum() >= 5 else np.inf


def cloning(corpus: Corpus, tts: MisoTTS, count: int, mode: str) -> float:
    """Percent of sentences in the clip's voice, with speaker id 0 for all."""
    right = Shares()
    clips = held_out(corpus, count, seed=12, least=3)
    targets = held_out(corpus, count, seed=13)
    for index, (clip, target) in enumerate(zip(clips, targets, strict=True)):
        voice = Voice.from_audio(corpus.samples(clip), clip.text, tts.codec, speaker=0)
        spoken = say(tts, target, 0, mode, index, voice=voice)
        right.add(right=heard_speaker(corpus, spoken.samples) == clip.speaker)
    return right.percent


def heard_speaker(corpus: Corpus, samples: Samples) -> str:
    """The speaker whose F0 range holds the most voiced time, by median log F0 found in both ranges together."""
    low, high = corpus.renderings.speakers.values()
    f0 = f0_contour(samples, low, ceiling_hz=high.ceiling_hz)
    median = float(np.median(f0[f0 > 0])) if (f0 > 0).any() else 0.0
    return low.name if median < np.sqrt(110.0 * 210.0) else high.name


def conversation(corpus: Corpus, tts: MisoTTS, count: int, mode: str) -> float:
    """Percent of turns in the right voice: two speakers take turns, each with all turns before as context."""
    right = Shares()
    names = list(corpus.renderings.speakers)
    for index in range(count):
        sentences = held_out(corpus, _TURNS, seed=100 + index)
        context: list[Segment] = []
        for turn, sentence in enumerate(sentences):
            spoken = say(tts, sentence, turn % 2, mode, index * _TURNS + turn, context=context)
            right.add(right=heard_speaker(corpus, spoken.samples) == names[turn % 2])
            if len(spoken.codes):
                context.append(Segment(sentence.text, spoken.codes, turn % 2))
    return right.percent


def copy_synthesis(corpus: Corpus, tts: MisoTTS, count: int) -> dict[str, float]:
    """The codec's graphs on references: encoder, then streaming decoder, frame by frame."""
    pairs, off = [], 0.0
    for sentence in held_out(corpus, count, seed=14):
        reference = corpus.samples(sentence)
        codes = tts.codec.encode(reference)
        stream = tts.codec.stream()
        streamed = np.concatenate([stream.decode(frame[np.newaxis]) for frame in codes])
        off = max(off, float(np.abs(streamed - tts.codec.decode(codes)).max()))
        pairs.append((reference, streamed, corpus.speaker(sentence)))
    figures = compare(pairs)
    return {
        "voicing_error_percent": round(figures.voicing_error_percent, 3),
        "f0_median_cents": round(figures.f0_median_cents, 2),
        "snr_db": round(figures.snr_db, 2),
        "streaming_minus_offline_max": off,
    }


def level_row(corpus: Corpus, listener: Listener, spoken: Sequence[Spoken], base: Sequence[Spoken]) -> dict[str, float]:
    """A level against FP16, both free-running under the same noise."""
    same = total = 0
    words = Shares()
    for each, other in zip(spoken, base, strict=True):
        length = max(len(each.codes), len(other.codes))
        common = min(len(each.codes), len(other.codes))
        same += int((each.codes[:common] == other.codes[:common]).sum())
        total += length * each.codes.shape[1]
        own, heard = listener.hear(corpus.copy(each.sentence)), listener.hear(each.samples)
        _, path = listener.warp(own, heard)
        for index, word in enumerate(each.sentence.words):
            words.add(right=listener.word(each.sentence, index, own, heard, path) == word)
    identical = sum(np.array_equal(a.codes, b.codes) for a, b in zip(spoken, base, strict=True))
    return {
        "codes_differ_percent": round(100 * (1 - same / total), 2),
        "same_sentences_percent": round(100 * identical / len(spoken), 1),
        "wrong_words_percent": round(100 - words.percent, 2),
        "stops_percent": round(100 * sum(each.ended == "eos" for each in spoken) / len(spoken), 1),
    }


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    table = Table("", *rows, title=title)
    for key in next(iter(rows.values())):
        table.add_row(key.replace("_", " "), *(str(row[key]) for row in rows.values()))
    Console().print(table)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--sentences", default=100, show_default=True)
@click.option(
    "--cache", type=click.Path(path_type=Path), default=Path("build/train-tiny/renderings"), show_default=True
)
@click.option("--threads", default=1, show_default=True)
def main(bundle: Path, sentences: int, cache: Path, threads: int) -> None:
    started = time.perf_counter()
    model = Path(__file__).parents[1] / "models" / "tiny"
    corpus = Corpus(Renderings(cache), read_codec(model / MIMI_NAME))
    listener = Listener(corpus)
    chosen = held_out(corpus, sentences, seed=10)
    results: dict[str, Any] = {"bundle": bundle.name, "sentences": sentences}
    with MisoTTS.load(bundle, "fp16", threads=threads) as tts:
        spoken = {}
        for mode in (GREEDY, SAMPLED):
            console.print(f"{mode}: speaking and listening")
            spoken[mode] = [
                say(tts, each, speaker_id(corpus, each.speaker), mode, index) for index, each in enumerate(chosen)
            ]
            results[mode] = words_and_melody(corpus, listener, spoken[mode])
            few = max(2, sentences // 2)
            results[mode]["endings_told_apart_percent"] = endings(corpus, tts, few, mode)
            results[mode]["cloned_voice_percent"] = cloning(corpus, tts, sentences, mode)
            results[mode]["conversation_voice_percent"] = conversation(corpus, tts, max(1, sentences // 5), mode)
        show("The tiny model at FP16, on held-out sentences", {mode: results[mode] for mode in (GREEDY, SAMPLED)})
        results["codec"] = copy_synthesis(corpus, tts, min(sentences, 50))
        show("Its codec: copy synthesis through the graphs", {"codec": results["codec"]})
    results["levels"] = {}
    present = read_manifest(bundle).levels
    for level in (level for level in LEVELS if level in present):
        with MisoTTS.load(bundle, level, threads=threads) as tts:
            said = [
                say(tts, each, speaker_id(corpus, each.speaker), SAMPLED, index) for index, each in enumerate(chosen)
            ]
        results["levels"][level] = level_row(corpus, listener, said, spoken[SAMPLED])
    show("Levels against FP16, sampled with the same noise", results["levels"])
    results["took_s"] = round(time.perf_counter() - started, 1)
    click.echo(json.dumps(results))


if __name__ == "__main__":
    main()
