"""What an evaluation found, as arrays: a value for each clip, with its prompt and seed. It draws no conclusions."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Observations:
    """What was found for each clip: one value for each prompt and seed.

    Attributes:
        prompts: Id of the prompt, text `[n]`. Integers are taken as their digits.
        seeds: Of the noise, integers `[n]`.
        values: In the metric's unit, `[n]`.
        weights: How much each value counts, `[n]`: the number of frames that it is a mean of. Not negative.

    Raises:
        ValueError: If there is nothing, lengths differ, a number is not finite, or a clip is there twice.
    """

    prompts: NDArray[np.str_]
    seeds: NDArray[np.integer[Any]]
    values: F64Array
    weights: F64Array

    def __post_init__(self) -> None:
        cast: dict[str, NDArray[Any]] = {
            "prompts": np.asarray(self.prompts).astype(np.str_),
            "seeds": _integers(self.seeds),
            "values": np.asarray(self.values, np.float64),
            "weights": np.asarray(self.weights, np.float64),
        }
        shapes = {name: array.shape for name, array in cast.items()}
        if len(set(shapes.values())) > 1 or len(shapes["values"]) != 1:
            raise ValueError(f"prompts, seeds, values and weights must all be [n], not {shapes}")
        if not shapes["values"][0]:
            raise ValueError("there is not a single clip; leave the metric out")
        for name, array in cast.items():
            object.__setattr__(self, name, array)
        for name in ("values", "weights"):
            if (bad := np.flatnonzero(~np.isfinite(cast[name]))).size:
                raise ValueError(
                    f"{name[:-1]} {cast[name][bad[0]]} of prompt {self.prompts[bad[0]]}, seed {self.seeds[bad[0]]} "
                    "is not finite; leave out clips that have none"
                )
        if (self.weights < 0).any() or not self.weights.sum():
            raise ValueError(f"weights must not be negative, nor all zero; they are {self.weights.min():g} and more")
        if len(set(self.clips)) < len(self.values):
            twice = next(clip for clip in self.clips if self.clips.count(clip) > 1)
            raise ValueError(f"prompt {twice[0]}, seed {twice[1]} is there twice; give each clip once")

    @property
    def clips(self) -> list[tuple[str, int]]:
        """Prompt and seed of each clip."""
        return list(zip(self.prompts.tolist(), self.seeds.tolist(), strict=True))

    @property
    def mean(self) -> float:
        """Over all frames: `sum(weight * value) / sum(weight)`."""
        return float(self.weights @ self.values / self.weights.sum())

    @property
    def prompt_count(self) -> int:
        """How many prompts there are: those without weight do not count."""
        return len(np.unique(self.prompts[self.weights > 0]))

    def take(self, clips: Sequence[tuple[str, int]]) -> "Observations":
        """These clips, in this order. Raises `KeyError` for one that is not there."""
        where = {clip: index for index, clip in enumerate(self.clips)}
        chosen = [where[clip] for clip in clips]
        return Observations(self.prompts[chosen], self.seeds[chosen], self.values[chosen], self.weights[chosen])


def paired(one: Observations, other: Observations) -> tuple[Observations, Observations] | None:
    """Both, reduced to the clips (prompt and seed) that carry weight in both, in the same order; None without any."""
    common = set.intersection(
        *({clip for clip, weight in zip(side.clips, side.weights, strict=True) if weight > 0} for side in (one, other))
    )
    clips = sorted(common)
    return (one.take(clips), other.take(clips)) if clips else None


def by_prompt(observations: Observations, numbers: F64Array) -> F64Array:
    """Sums over the clips of each prompt that has any weight, in the order of the prompts' names."""
    counted = observations.weights > 0
    _, which = np.unique(observations.prompts[counted], return_inverse=True)
    return np.bincount(which, numbers[counted]).astype(np.float64, copy=False)


def _integers(seeds: Any) -> NDArray[np.integer[Any]]:
    """Exactly: numpy makes floating-point numbers of lists that hold small integers and some above 2**63."""
    array = np.asarray(seeds, object)
    try:
        exact = [operator.index(seed) for seed in array.ravel()]
        large = max(exact, default=0) >= 1 << 63
        return np.array(exact, np.uint64 if large else np.int64).reshape(array.shape)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"seeds must be integers of 64 bits ({error})") from error
