"""The controls of the gates on instruments: the reference's own clips in noise, until an instrument must notice.

An instrument that hears nothing in a model's speech does not notice that it gets worse either.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from ...core.arrays import F32Array
from ..gates.config import Gates, margin_for
from ..gates.controls import DamagedClips, is_surely_beyond, times_margin
from ..instruments.differences import INSTRUMENTS
from ..instruments.instrument import Heard
from ..run.clip_damage import observed_once
from ..stats.estimates import FEWEST_PROMPTS, estimate
from ..stats.observations import Observations
from .clips import Sounds, SpokenClip
from .scores import Scores

LADDER_DB: tuple[int, ...] = (30, 20, 15, 10, 5, 0, -5)
"""Of speech above white noise."""
CLIPS = 12
"""That are put into noise, of as many prompts."""


def noisy(samples: F32Array, snr_db: float, name: str) -> F32Array:
    """In white noise whose power is so far below that of all samples; the same for the same `name`."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    noise = np.random.default_rng(seed).standard_normal(len(samples))
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    found: F32Array = (samples + rms * 10 ** (-snr_db / 20) * noise).astype(np.float32)
    return found


def noise_controls(scores: Scores, sounds: Sounds, gates: Gates, levels: Sequence[str]) -> list[DamagedClips]:
    """For each gate on the instrument, and each level, the clips in the weakest noise that is beyond its margin enough.

    Where none is, the furthest off, and that the instrument is deaf. Nothing where fewer than `FEWEST_PROMPTS` prompts
    have a score: these decide nothing anyway. Noise in which so few have one is passed over. Raises `ScoreError`.
    """
    name = scores.instrument.name
    gate = next((gate for gate in gates.gates if gate.metric == name), None)
    chosen = _chosen(scores, sounds)
    if gate is None or len(chosen) < FEWEST_PROMPTS:
        return []
    rungs: dict[int, Observations | None] = {}
    made = []
    for level in levels:
        margin = margin_for(gate, level)
        if margin is None:
            continue
        for snr_db in LADDER_DB:
            if snr_db not in rungs:
                rungs[snr_db] = _in_noise(scores, sounds, chosen, snr_db)
            seen = rungs[snr_db]
            if seen is not None and is_surely_beyond(estimate(seen), gate, margin):
                unseen = ""
                break
        else:
            off = {each: times_margin(gate, margin, seen.mean) for each, seen in rungs.items() if seen is not None}
            snr_db = max(off, key=lambda each: off[each], default=LADDER_DB[-1])
            deaf = "is deaf to noise on this model's speech: louder noise changes no more"
            unseen = f"{scores.instrument.by} {deaf if off else 'has no score in noise'}"
        measured = {} if (seen := rungs[snr_db]) is None else {name: seen}
        said = f"{len(chosen)} clips in noise, {snr_db} dB below the speech".replace("-", "\N{MINUS SIGN}")
        made.append(DamagedClips(said, level, name, measured, unseen))
    return made


def _chosen(scores: Scores, sounds: Sounds) -> list[SpokenClip]:
    """Evenly over the prompts that have a score."""
    by_prompt: dict[str, SpokenClip] = {}
    for clip in sounds.of_reference():
        if clip.prompt not in by_prompt and scores.of(clip, partial(sounds.heard, clip)) is not None:
            by_prompt[clip.prompt] = clip
    usable = list(by_prompt.values())
    count = min(CLIPS, len(usable))
    return [usable[index * len(usable) // count] for index in range(count)]


def _in_noise(scores: Scores, sounds: Sounds, clips: Sequence[SpokenClip], snr_db: int) -> Observations | None:
    """None where fewer than `FEWEST_PROMPTS` clips, each of another prompt, have a score."""
    rows = []
    for clip in clips:
        whole = scores.of(clip, partial(sounds.heard, clip))
        found = scores.of(clip, partial(_heard_in_noise, sounds, clip, snr_db), f"-noise{snr_db:+d}")
        if whole is not None and found is not None:
            value = INSTRUMENTS.value(scores.instrument.name, found, whole)
            assert value is not None
            rows.append((clip.prompt, clip.seed, value))
    return observed_once(rows) if len(rows) >= FEWEST_PROMPTS else None


def _heard_in_noise(sounds: Sounds, clip: SpokenClip, snr_db: float) -> Heard:
    heard = sounds.heard(clip)
    return heard._replace(samples=noisy(heard.samples, snr_db, f"{clip.prompt} {clip.seed}"))
