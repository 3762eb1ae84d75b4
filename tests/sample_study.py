"""A made-up evaluation to listen to, and listeners with a known ear. Every sound is a formula."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from miso_gguf.quant_eval.listening.draws import draw, sides
from miso_gguf.quant_eval.listening.kept import SOUNDS_NAME, KeptSound, KeptSounds, write_sounds
from miso_gguf.quant_eval.listening.study import Item, Key

RATE_HZ = 24_000
CATEGORIES = ("question", "list", "long")
RATINGS = {"fp16": 97.0, "q8_0": 95.0, "q4_0": 60.0, "anchor": 22.0}
"""Of a listener who knows what is behind the numbers."""


def tone(hz: float, seconds: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """A buzz with three harmonics."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.asarray(0.1 * sum(np.sin(2 * np.pi * n * hz * times) / n for n in (1, 2, 20)), np.float32)


def write_report(
    folder: Path, prompts: int = 6, levels: tuple[str, ...] = ("q8_0", "q4_0"), equal: int = 0, seconds: float = 0.6
) -> KeptSounds:
    """What an evaluation leaves: clips of every level, of which the first `equal` of the first level equal FP16's."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    sounds = []
    for place, level in enumerate(("fp16", *levels)):
        for index in range(prompts):
            for stage in ("one-step", "free"):
                same = stage == "one-step" and place == 1 and index < equal
                hz = 110.0 + 10 * index + (0 if same else 4 * place)
                name = f"{level}-{index}.{stage}.wav"
                soundfile.write(folder / "clips" / name, tone(hz, seconds), RATE_HZ, subtype="PCM_16")
                category = CATEGORIES[index % len(CATEGORIES)]
                text = f"Sentence {index} <b>of</b> the test."
                sounds.append(
                    KeptSound(
                        stage=stage, level=level, prompt=f"p{index}", category=category, text=text, seed=0, audio=name
                    )
                )
    found = KeptSounds(reference="fp16", levels=list(levels), sounds=sounds)
    write_sounds(found, folder / SOUNDS_NAME)
    return found


def answers_of(
    key: Key, listener: str, share: float, luck: random.Random, *, trials: int | None = None, hidden: float = 97.0
) -> dict[str, Any]:
    """The file of a listener who is right in each trial with the chance `share`; or of the first `trials` of them."""
    asked = key.trials[:trials]
    answers = []
    for trial in asked:
        x = sides(key.study, listener, trial.id).x
        wrong = "B" if x == "A" else "A"
        answers.append({"trial": trial.id, "answer": x if luck.random() < share else wrong, "seconds": 4.0})
    items = key.items if trials is None else []
    return {
        "miso_abx_answers": 1,
        "study": key.study,
        "listener": listener,
        "finished": trials is None,
        "answers": answers,
        "ratings": [{"item": item.id, "values": _values(item, hidden), "seconds": 9.0} for item in items],
    }


def _values(item: Item, hidden: float) -> dict[str, float]:
    wanted = {**RATINGS, "fp16": hidden}
    return {number: wanted[take] - draw(item.id, take) % 3 for number, take in item.takes.items()}
