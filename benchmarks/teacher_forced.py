"""Levels against FP16 in this runtime, teacher-forced: what FP16 said is replayed, and all distributions are compared.

What benchmarks of levels share: clips of the reference in memory, divergences of any backbone with any depth decoder,
and means over clips with intervals over prompts. It knows no command and prints nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miso_gguf.quant_eval.corpus import Prompt
from miso_gguf.quant_eval.metrics.divergence import Divergence, divergence
from miso_gguf.quant_eval.run.candidate import Candidate, LoadedCandidate
from miso_gguf.quant_eval.run.reference_logits import ReferenceClip
from miso_gguf.quant_eval.run.stages import Target, speak_target
from miso_gguf.quant_eval.run.teacher_forcing import joined
from miso_gguf.quant_eval.stats.bootstrap import RESAMPLES, Bootstrap
from miso_gguf.quant_eval.stats.observations import Observations
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.options import EngineOptions, SpeechOptions

OPTIONS = SpeechOptions()
"""Of what the reference says: temperature and top-k as deployed. Divergences are at temperature 1."""
_EACH_BOUND = 0.975
"""Two bounds of 97.5 % are an interval of 95 %."""
_LEAST_KLD = 1e-18
"""Nats. What is exactly zero must not be divided by; rounding of float64 ends above it."""


@dataclass(frozen=True)
class Clip:
    """What the reference said, and its distributions."""

    target: Target
    base: ReferenceClip

    @property
    def frames(self) -> int:
        """Its length."""
        return len(self.target.codes)


def load(bundle: Path, key: str, threads: int) -> LoadedCandidate:
    """A level of a bundle, on the CPU."""
    return LoadedCandidate(Candidate.of(key, open_level(bundle, key)), EngineOptions(threads=threads, gpu_layers=0))


def speak(loaded: LoadedCandidate, prompts: Sequence[Prompt], seeds: int) -> list[Clip]:
    """Let the reference say the prompts with each seed. What has no frame is left out."""
    targets = [
        Target.of(prompt, speak_target(loaded, prompt, seed, OPTIONS)) for prompt in prompts for seed in range(seeds)
    ]
    return [held(loaded, target) for target in targets if len(target.codes)]


def held(loaded: LoadedCandidate, target: Target) -> Clip:
    """What the reference makes of codes that are given."""
    replayed = loaded.replay(loaded.utterance(target.prompt, target.seed, target.context, OPTIONS), target.codes)
    return Clip(target, ReferenceClip(replayed, loaded.depth_logits(replayed)))


def diverged(clip: Clip, sides: dict[str, LoadedCandidate], pairs: Sequence[tuple[str, str]]) -> list[Divergence]:
    """For each pair of `sides`, the backbone of the one with the depth decoder of the other, against the reference."""
    target, base = clip.target, clip.base.logits
    replayed = {
        name: side.replay(side.utterance(target.prompt, target.seed, target.context, OPTIONS), target.codes)
        for name, side in sides.items()
        if any(name == backbone for backbone, _ in pairs)
    }
    return [
        divergence(
            base,
            joined(replayed[backbone], sides[decoder].depth_logits(replayed[backbone])),
            temperature=1.0,
            top_k=base.shape[-1],
        )
        for backbone, decoder in pairs
    ]


def observed(clips: Sequence[Clip], values: Sequence[NDArray[Any]]) -> Observations:
    """The mean of each clip's `values` [frames, ...], by prompt and weighted by frames."""
    return Observations(
        np.array([clip.target.prompt.id for clip in clips]),
        np.array([clip.target.seed for clip in clips]),
        np.array([float(np.mean(each)) for each in values]),
        np.array([float(clip.frames) for clip in clips]),
    )


def with_interval(
    new: Observations, old: Observations | None = None, *, limits: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, float]:
    """The mean, or what it is above that of `old`, with its 95 % interval over prompts, which ends at `limits`."""
    bootstrap = Bootstrap(new, old, resamples=RESAMPLES)
    low, high = bootstrap.interval(_EACH_BOUND)
    return _shown(bootstrap.value, max(low, limits[0]), min(high, limits[1]))


def _shown(value: float, low: float, high: float) -> dict[str, float]:
    """To six digits: what a file holds, and what tables are made of."""
    return {name: float(f"{each:.6g}") for name, each in (("value", value), ("low", low), ("high", high))}


def change_percent(new: Observations, old: Observations) -> dict[str, float]:
    """What the mean is above that of `old`, in percent of that, with its 95 % interval over prompts.

    A ratio of means is a mean of ratios that is weighted by what they are ratios of.
    """
    ratios = new.values / np.maximum(old.values, _LEAST_KLD)
    changes = Observations(new.prompts, new.seeds, 100 * (ratios - 1), old.weights * old.values)
    return with_interval(changes, limits=(-100.0, math.inf))


def typical_change_percent(new: Observations, old: Observations) -> dict[str, float]:
    """The same of a typical clip, whatever it weighs: the geometric mean of the clips' own ratios.

    KLD has a heavy tail: one clip may hold half of the sum, and then decides what the mean does.
    """
    ratios = np.log(np.maximum(new.values, _LEAST_KLD) / np.maximum(old.values, _LEAST_KLD))
    alike = Observations(new.prompts, new.seeds, ratios, np.ones_like(ratios))
    return _shown(**{name: 100 * math.expm1(value) for name, value in with_interval(alike).items()})
