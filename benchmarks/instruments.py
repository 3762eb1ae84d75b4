"""The instruments on clean speech, and on the same damaged by known amounts; and pairs of speakers told apart.

Speech is Flite's (a program: apt-get install flite), and with --recordings DIR people's: NAME.wav or NAME.flac beside
NAME.txt, the name up to the last dash being the speaker's. People who speak at length are in the package
moonshine-voice; with it installed, they are among the speakers. What a damage does is a difference from the clean clip,
pair by pair. A table for people, then one JSON line. It needs the extra `instruments`:

    python benchmarks/instruments.py --sentences 12 --recordings tests/data/recordings
"""

import importlib.resources
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import soundfile

from miso_gguf.core.arrays import F32Array
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.mimi import SAMPLE_RATE_HZ
from miso_gguf.quant_eval.corpus import load_corpus
from miso_gguf.quant_eval.instruments.instrument import Heard, Instrument
from miso_gguf.quant_eval.instruments.speaker import SpeakerSimilarity
from miso_gguf.quant_eval.instruments.table import make_instrument
from miso_gguf.quant_eval.metric import DIFFERENCE
from miso_gguf.quant_eval.recordings import read_recordings
from miso_gguf.quant_eval.results import Estimate
from miso_gguf.quant_eval.run.clip_damage import observed_once
from miso_gguf.quant_eval.scoring.controls import noisy
from miso_gguf.quant_eval.stats.estimates import estimate
from miso_gguf.runtime.audio.samples import resampled

WANTED = ("wer=pocketsphinx", "speaker_similarity", "dnsmos", "plcmos")
VOICES = ("slt", "rms", "awb", "kal16")
TALKERS = ("two_cities", "beckett")
PIECE_S = 4.0
PACKET_S = 0.02
Damage = Callable[[F32Array, str], F32Array]


class Said(NamedTuple):
    """One clip: a sentence by a speaker, float32 `[n]` at 24 kHz."""

    speaker: str
    sentence: str
    text: str
    samples: F32Array


def in_noise(snr_db: float, samples: F32Array, name: str) -> F32Array:
    """White noise, so far below the speech."""
    return noisy(samples, snr_db, name)


def below(most_hz: float, samples: F32Array, name: str) -> F32Array:
    """Without what is above a frequency."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ) > most_hz] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def lossy(percent: float, samples: F32Array, name: str) -> F32Array:
    """With packets of 20 ms lost, each by chance, and silent."""
    size = round(PACKET_S * SAMPLE_RATE_HZ)
    rng = np.random.default_rng(list(name.encode()))
    lost = rng.random(-(-len(samples) // size)) < percent / 100
    return np.where(np.repeat(lost, size)[: len(samples)], np.float32(0), samples)


def clipped(percent: float, samples: F32Array, name: str) -> F32Array:
    """Clipped where the loudest so many percent of the samples begin."""
    most = float(np.quantile(np.abs(samples), 1 - percent / 100))
    return np.clip(samples, -most, most)


DAMAGES: dict[str, Damage] = {
    "clean": lambda samples, name: samples,
    **{f"noise, {snr_db} dB": partial(in_noise, snr_db) for snr_db in (30, 20, 10, 5, 0)},
    "below 2 kHz": partial(below, 2000.0),
    **{f"{percent} % of packets lost": partial(lossy, percent) for percent in (5, 10, 20)},
    "clipped, 10 %": partial(clipped, 10.0),
}


def flite(sentences: int, voices: tuple[str, ...]) -> Iterator[Said]:
    """Sentences of the built-in corpus by each voice."""
    prompts = [prompt for prompt in load_corpus("builtin").first(sentences).prompts if not prompt.before]
    with tempfile.TemporaryDirectory() as folder:
        for voice in voices:
            for prompt in prompts:
                path = Path(folder) / "said.wav"
                subprocess.run(["flite", "-voice", voice, "-t", prompt.text, "-o", str(path)], check=True)
                yield Said(voice, prompt.id, prompt.text, _read(path))


def recorded(folder: Path) -> Iterator[Said]:
    """Sound files with their words beside them."""
    for prompt in read_recordings(folder, FLAVORS["miso-8b"].max_positions):
        assert prompt.audio is not None
        name = prompt.audio.stem
        yield Said(name.rpartition("-")[0] or name, name, prompt.text, _read(prompt.audio))


def talkers() -> Iterator[Said]:
    """People who speak for ten seconds or more in moonshine-voice's files, a piece of `PIECE_S` at a time."""
    for name in TALKERS if importlib.util.find_spec("moonshine_voice") else ():
        samples = _read(Path(str(importlib.resources.files("moonshine_voice"))) / "assets" / f"{name}.wav")
        size = round(PIECE_S * SAMPLE_RATE_HZ)
        for index in range(len(samples) // size):
            yield Said(name, f"{name} {index}", "", samples[index * size : (index + 1) * size])


def _read(path: Path) -> F32Array:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    return resampled(samples, rate_hz, SAMPLE_RATE_HZ) if rate_hz != SAMPLE_RATE_HZ else samples


class Scores(NamedTuple):
    """Of each clip that has one, by speaker and sentence; and CPU seconds for a second of sound."""

    values: dict[tuple[str, str], float]
    cost_s: float

    def mean(self, limits: tuple[float, float]) -> Estimate:
        """With its bounds; clusters are sentences."""
        return self._estimate(self.values, limits)

    def change(self, clean: "Scores") -> Estimate:
        """From the same clips before they were damaged."""
        both = {clip: value - clean.values[clip] for clip, value in self.values.items() if clip in clean.values}
        return self._estimate(both, DIFFERENCE)

    def _estimate(self, values: dict[tuple[str, str], float], limits: tuple[float, float]) -> Estimate:
        speakers = sorted({speaker for speaker, _ in values})
        rows = [(sentence, speakers.index(speaker), value) for (speaker, sentence), value in values.items()]
        return estimate(observed_once(rows), limits=limits)


def scored(instrument: Instrument, said: list[Said], damage: Damage) -> Scores:
    """The speaker's voice is that of another of their clips."""
    values, used_s, sound_s = {}, 0.0, 0.0
    for each in said:
        others = [other.samples for other in said if other.speaker == each.speaker and other.sentence != each.sentence]
        samples = np.clip(damage(each.samples, f"{each.speaker} {each.sentence}"), -1, 1)
        begin = time.process_time()
        value = instrument.score(Heard(samples, each.text, each.samples, others[0] if others else None))
        used_s, sound_s = used_s + time.process_time() - begin, sound_s + len(samples) / SAMPLE_RATE_HZ
        if value is not None:
            values[each.speaker, each.sentence] = value
    return Scores(values, used_s / sound_s)


def speakers_apart(said: list[Said]) -> dict[str, float]:
    """Of all pairs of clips of different sentences: mean cosines of same and different speakers, and their EER in %."""
    encoder = SpeakerSimilarity()
    same: list[float] = []
    different: list[float] = []
    for one, other in combinations(said, 2):
        if one.sentence != other.sentence:
            value = encoder.score(Heard(one.samples, one.text, one.samples, other.samples))
            if value is not None:
                (same if one.speaker == other.speaker else different).append(value)
    thresholds = np.unique([*same, *different])
    misses = np.array([np.mean(np.array(same) < at) for at in thresholds])
    alarms = np.array([np.mean(np.array(different) >= at) for at in thresholds])
    nearest = int(np.argmin(np.abs(misses - alarms)))
    return {
        "same_pairs": len(same),
        "different_pairs": len(different),
        "same": float(np.mean(same)),
        "different": float(np.mean(different)),
        "eer_percent": float(50 * (misses[nearest] + alarms[nearest])),
    }


@click.command()
@click.option("--sentences", default=12, show_default=True)
@click.option("--voices", default=",".join(VOICES), show_default=True)
@click.option("--recordings", type=click.Path(path_type=Path, exists=True), help="Folder of sound files with NAME.txt.")
@click.option("--instrument", "wanted", multiple=True, default=WANTED, show_default=True)
@click.option("--damage", "damages", multiple=True, default=tuple(DAMAGES), type=click.Choice(tuple(DAMAGES)))
def main(
    sentences: int, voices: str, recordings: Path | None, wanted: tuple[str, ...], damages: tuple[str, ...]
) -> None:
    """Score them all."""
    groups = {"Flite": list(flite(sentences, tuple(voices.split(","))))} if sentences else {}
    if recordings is not None:
        groups["people"] = list(recorded(recordings))
    found: list[dict[str, object]] = []
    for name in wanted:
        instrument = make_instrument(name)
        assert instrument is not None
        if (missing := instrument.available()) is not None:
            sys.exit(f"{name}: {missing}")
        first = next(iter(groups.values()))[0]
        instrument.score(Heard(first.samples, first.text, first.samples, first.samples))  # what it loads, it loads now
        for group, said in groups.items():
            clean = scored(instrument, said, DAMAGES["clean"])
            for damage in damages:
                scores = clean if damage == "clean" else scored(instrument, said, DAMAGES[damage])
                if not scores.values:
                    continue
                mean, change = scores.mean(instrument.range), scores.change(clean)
                print(f"{instrument.name:18} {group:6} {damage:22} {_shown(mean)}  {_shown(change, '+')}  "
                      f"{scores.cost_s:.2f} s/s", flush=True)  # fmt: skip
                found.append({"instrument": instrument.name, "by": instrument.by, "speech": group, "damage": damage,
                              "cost_s": round(scores.cost_s, 3), "mean": mean.model_dump(),
                              "change": change.model_dump()})  # fmt: skip
    apart = {}
    if "speaker_similarity" in wanted:
        for group, said in {**groups, "people": [*groups.get("people", []), *talkers()]}.items():
            if len({each.speaker for each in said}) > 1:
                apart[group] = speakers_apart(said)
                print(f"pairs of speakers, {group}: {apart[group]}")
    print(json.dumps({"benchmark": "instruments", "scores": found, "speakers": apart}))


def _shown(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}8.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


if __name__ == "__main__":
    main()
