"""The table of metrics: each one's name, stage, unit and direction, declared once. It knows no data and no margins."""

import math
from dataclasses import dataclass
from typing import Literal

Stage = Literal["logits", "one-step", "free"]
LOGITS: Stage = "logits"
ONE_STEP: Stage = "one-step"
FREE: Stage = "free"
STAGES: tuple[Stage, ...] = (LOGITS, ONE_STEP, FREE)

Direction = Literal["lower", "higher", "zero"]
"""Which values are good: low ones, high ones, or those near zero."""


@dataclass(frozen=True)
class Metric:
    """One number that a clip, or a frame of it, gives for a level against the reference.

    Attributes:
        key: As in records, gates and results.
        stage: Which stage measures it.
        unit: As printed; "" for a plain number.
        direction: Which values are good.
        label: For people.
        definition: In one sentence.
        digits: Decimals worth printing.
    """

    key: str
    stage: Stage
    unit: str
    direction: Direction
    label: str
    definition: str
    digits: int = 2


_TABLE: tuple[Metric, ...] = (
    Metric(
        "kld_cb0",
        "logits",
        "nats",
        "lower",
        "KLD, semantic",
        "KL(P_base || P_level) of codebook 0 at temperature 1, mean over frames.",
        5,
    ),
    Metric(
        "kld_rest",
        "logits",
        "nats",
        "lower",
        "KLD, acoustic",
        "The same of the other codebooks, mean over frames and codebooks.",
        5,
    ),
    Metric(
        "kld_deployed",
        "logits",
        "nats",
        "lower",
        "KLD as sampled",
        "KL over all codebooks of what is sampled from: logits / temperature within the base's top-k.",
        5,
    ),
    Metric(
        "top1",
        "logits",
        "%",
        "higher",
        "Top-1 agreement",
        "Codes, over all codebooks, whose most likely value is the reference's.",
        2,
    ),
    Metric(
        "eos_shift",
        "logits",
        "nats",
        "zero",
        "EOS shift",
        "Change of the log-odds of code 0 in codebook 0 at the reference's stop frame.",
        3,
    ),
    Metric(
        "flip_rate",
        "one-step",
        "%",
        "lower",
        "Flips",
        "Codes that differ from the reference's when sampled with the same noise after the same history.",
        2,
    ),
    Metric(
        "lf0_rmse",
        "one-step",
        "cents",
        "lower",
        "F0 error",
        "RMS of 1200 log2(F0 ratio) where both are voiced, frame-aligned.",
        1,
    ),
    Metric(
        "lf0_corr",
        "one-step",
        "",
        "higher",
        "F0 correlation",
        "Pearson correlation of log F0 where both are voiced.",
        3,
    ),
    Metric(
        "vuv_error",
        "one-step",
        "%",
        "lower",
        "Voicing error",
        "Steps of 10 ms voiced in only one of the two, of all.",
    ),
    Metric(
        "gross_pitch_error",
        "one-step",
        "%",
        "lower",
        "Gross pitch error",
        "Jointly voiced steps more than 200 cents off.",
    ),
    Metric(
        "energy_rmse",
        "one-step",
        "dB",
        "lower",
        "Energy error",
        "RMS difference of intensity, each relative to its own mean power, down to 40 dB below it.",
    ),
    Metric(
        "dur_ratio",
        "free",
        "ln",
        "zero",
        "Duration",
        "ln(duration / reference's), of speech and pauses, without outer silence.",
        3,
    ),
    Metric(
        "f0_range",
        "free",
        "ln",
        "zero",
        "F0 range",
        "ln of the ratio of the F0 ranges (5th to 95th percentile, in semitones); below 0 is flattened.",
        3,
    ),
    Metric("f0_median", "free", "cents", "zero", "F0 median", "1200 log2 of the ratio of median F0.", 1),
    Metric(
        "speech_rate",
        "free",
        "ln",
        "zero",
        "Speech rate",
        "ln of the ratio of syllables a second, pauses not counted.",
        3,
    ),
    Metric(
        "pause_rate",
        "free",
        "1/s",
        "zero",
        "Pause rate",
        "Difference of pauses of 150 ms and more, a second of speech without pauses.",
        3,
    ),
    Metric("pause_mean", "free", "s", "zero", "Pause length", "Difference of the mean length of pauses.", 3),
    Metric(
        "pause_floor",
        "free",
        "dB",
        "lower",
        "Pause floor",
        "Difference of the level in pauses, relative to each clip's peak level.",
        1,
    ),
    Metric(
        "lf0_rmse_dtw", "free", "cents", "lower", "F0 error, warped", "lf0_rmse after dynamic time warping of MFCCs.", 1
    ),
    Metric(
        "mcd",
        "free",
        "dB",
        "lower",
        "Mel-cepstral distortion",
        "After time warping, outside pauses; not gated.",
    ),
    Metric(
        "semantic_wed",
        "free",
        "",
        "lower",
        "Semantic edit distance",
        "Weighted edit distance of the codebook-0 sequences, per frame.",
        3,
    ),
    Metric("jitter", "free", "%", "zero", "Jitter", "Difference of Praat's local jitter; not gated.", 2),
    Metric("shimmer", "free", "%", "zero", "Shimmer", "Difference of Praat's local shimmer; not gated.", 2),
    Metric("hnr", "free", "dB", "zero", "HNR", "Difference of the mean harmonics-to-noise ratio; not gated.", 1),
    Metric(
        "first_divergence",
        "free",
        "frames",
        "higher",
        "First divergence",
        "Frames before the first code that differs from the reference's; not gated.",
        1,
    ),
    Metric(
        "new_failures",
        "free",
        "%",
        "lower",
        "New failures",
        "Clips that fail (runaway, truncated, silent, looping) where the reference's does not.",
        1,
    ),
)

METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}
"""By key, in the order in which reports show them."""

_PERFECT = {"top1": 100.0, "lf0_corr": 1.0}


def perfect(metric: str) -> float:
    """What a metric is where nothing differs: 0 for most."""
    return _PERFECT.get(metric, 0.0)


def natural_range(metric: str) -> tuple[float, float]:
    """Between what a metric's mean can lie: 0 and 100 for a share, 0 and no end for a distance."""
    known = METRICS[metric]
    # Differences can be negative though their unit is %, and though less of them is better.
    if known.direction == "zero" or metric == "pause_floor":
        return -math.inf, math.inf
    if known.unit == "%":
        return 0.0, 100.0
    return (-1.0, 1.0) if metric == "lf0_corr" else (0.0, math.inf)


FAILURES: tuple[str, ...] = ("runaway", "truncated_tail", "silent", "looping")
"""Kinds of clips that no one would ship."""
