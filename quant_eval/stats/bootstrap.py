"""How sure a mean over clips is: a studentised bootstrap over prompts.

Frames of a clip, and clips of a prompt, resemble each other, so the prompt is what is drawn: a resample takes prompts
with all their seeds. It knows numbers and where they come from, but neither gates nor verdicts.

Values such as KLD are skewed and few, and the percentile bootstrap then calls a bad level good far too often (12 % of
the time in place of 5 %, at 12 prompts). Two things bring that down, both measured by `benchmarks/verdicts.py`:

* The bootstrap is of the *studentised* mean, which follows the skew that can be seen.
  Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), 12.5; Davison and Hinkley, "Bootstrap Methods
  and their Application" (1997), 3.8 (resample whole clusters).
* What cannot be seen is the prompt in the tail that was not drawn. Each test adds one, on the side that speaks against
  what is to be shown: somewhat further out than the furthest prompt that is there.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...models.noise import uniform_bits
from .observations import F64Array, Observations, by_prompt

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95
"""Of each bound: one-sided, so that the bound which is printed is the one that decides."""

_UNSEEN = 5.0
"""The prompt that was not drawn lies (1 + 5 / prompts) times as far out as the furthest one that was.

Ours, found by simulation: with less, log-normal values at 12 prompts exceed 5 %; with more, power is lost.
"""
_LEAST_ERROR = 0.1
"""A resample's standard error counts as at least this much of the sample's.

Where most prompts are zero, many resamples are all zero, and so is their error: without it intervals are infinite.
"""
_ROUNDING = 1e-12
"""Relative to the values: spread and differences below this come from adding in another order."""


class Bootstrap:
    """The distribution of a mean, or of the difference of two means of the same clips, over other sets of prompts.

    The same observations, resamples and seed give the same numbers on every machine, up to rounding.
    """

    def __init__(
        self, new: Observations, old: Observations | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
    ) -> None:
        """The mean of `new`, or what it is above that of `old`: there the two must be `paired`.

        Raises `ValueError` for two that are not, or for fewer than 100 resamples.
        """
        if old is not None and new.clips != old.clips:
            raise ValueError("a difference needs the same clips in the same order on both sides: see `paired`")
        if resamples < 100:
            raise ValueError(f"resamples must be 100 at least, not {resamples}")
        terms = [new] if old is None else [new, old]
        self._signs = np.array([1.0, -1.0][: len(terms)])
        self._resamples, self._seed = resamples, seed
        self.value = new.mean - (old.mean if old is not None else 0.0)
        self.clips = len(new.values)
        self.prompts = new.prompt_count
        self._scale = max(float(np.abs(term.values).max()) for term in terms)
        self._weights = np.stack([by_prompt(new, term.weights) for term in terms])
        means = np.array([[term.mean] for term in terms])
        sums = np.stack([by_prompt(new, term.weights * term.values) for term in terms])
        self._residuals = sums - means * self._weights

    @property
    def is_constant(self) -> bool:
        """Whether all prompts agree, up to rounding: then the mean is taken as exact."""
        return self.prompts > 1 and bool(np.abs(self._influence).max() <= _ROUNDING * self._scale)

    @property
    def _influence(self) -> F64Array:
        """By prompt, how far it pulls the value away, times the number of prompts."""
        pulls = self._residuals / self._weights.mean(axis=1, keepdims=True)
        influence: F64Array = self._signs @ pulls
        return influence

    def p_below(self, margin: float) -> float:
        """p-value of "the true value is `margin` or more"; small: it lies below. One-sided; 1 for a single prompt."""
        return self._p_value(margin, 1)

    def p_above(self, margin: float) -> float:
        """p-value of "the true value is `margin` or less"; small: it lies above."""
        return self._p_value(margin, -1)

    def p_within(self, margin: float) -> float:
        """p-value of "the true value is `margin` or more away from zero": the larger of two one-sided ones (TOST).

        Source: Schuirmann, "A comparison of the two one-sided tests procedure ..." (1987).
        """
        return max(self.p_below(margin), self.p_above(-margin))

    def p_outside(self, margin: float) -> float:
        """p-value of "the true value is within `margin` of zero": twice the smaller of two, one for either side."""
        return min(1.0, 2 * min(self.p_above(margin), self.p_below(-margin)))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The lower and the upper bound, each with that confidence: between them lies what neither test rejects.

        A single prompt has none: value and value.
        """
        if self.prompts < 2 or self.is_constant:
            return self.value, self.value
        level = 1 - confidence
        return min(self.value, -self._lower.bound(level)), max(self.value, self._upper.bound(level))

    def _p_value(self, margin: float, sign: int) -> float:
        if self.prompts < 2:
            return 1.0
        if self.is_constant:
            # On the margin is below it and above it: what agrees exactly passes, even where the margin is zero.
            return float(sign * (self.value - margin) > _ROUNDING * max(abs(margin), self._scale))
        return (self._upper if sign > 0 else self._lower).p_value(sign * margin)

    @cached_property
    def _upper(self) -> "_Tail":
        return self._tail(1)

    @cached_property
    def _lower(self) -> "_Tail":
        return self._tail(-1)

    def _tail(self, sign: int) -> "_Tail":
        """The studentised bootstrap with one more prompt, which lies further to the side of `sign` than all others."""
        furthest = int(np.argmax(sign * self._influence))
        away = (1 + _UNSEEN / self.prompts) * self._residuals[:, [furthest]]
        weights = np.concatenate([self._weights, self._weights[:, [furthest]]], axis=1)
        residuals = np.concatenate([self._residuals, away], axis=1)
        shift = residuals.sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        residuals -= shift * weights

        # In a resample each mean moves by `moved`, and prompt i pulls by the sum over the means of
        # (residual_i - moved * weight_i) / total: its square is a quadratic form, summed here over all prompts at once.
        count = weights.shape[1]
        terms = len(self._signs)
        parts = np.concatenate([residuals, weights])
        products = (parts[:, None] * parts[None]).reshape(-1, count)
        drawn = _draws(count, self._resamples, self._seed) @ np.concatenate([parts, products]).T
        sums, totals = drawn[:, :terms], drawn[:, terms : 2 * terms]
        squares = drawn[:, 2 * terms :].reshape(-1, 2 * terms, 2 * terms)
        moved = sums / totals
        factors = np.concatenate([sign * self._signs / totals, -sign * self._signs * moved / totals], axis=1)
        bessel = count / (count - 1)
        errors = np.sqrt(np.maximum(np.einsum("bi,bij,bj->b", factors, squares, factors), 0.0) * bessel)
        pulls = self._signs @ (residuals / weights.sum(axis=1, keepdims=True))
        error = float(np.sqrt((pulls**2).sum() * bessel))
        studentised = sign * (moved @ self._signs) / np.maximum(errors, _LEAST_ERROR * error)
        value = sign * (self.value + float(self._signs @ shift[:, 0]))
        return _Tail(value, error, np.sort(studentised))


@dataclass(frozen=True)
class _Tail:
    """What speaks for a value further up: `value` with its standard error, and how a studentised mean scatters."""

    value: float
    error: float
    studentised: F64Array

    def p_value(self, margin: float) -> float:
        """Of "the true value is `margin` or more". At least 1 / (resamples + 1)."""
        smaller = np.searchsorted(self.studentised, (self.value - margin) / self.error, side="right")
        return (1 + int(smaller)) / (1 + len(self.studentised))

    def bound(self, level: float) -> float:
        """The smallest margin that is not rejected at `level`."""
        index = max(math.floor(level * (1 + len(self.studentised)) + _ROUNDING) - 1, 0)
        return self.value - float(self.studentised[index]) * self.error


@lru_cache(maxsize=4)
def _draws(prompts: int, resamples: int, seed: int) -> F64Array:
    """How often each resample takes each prompt, `[resamples, prompts]`; always the same for the same arguments."""
    bits = uniform_bits(seed, prompts, resamples, prompts).astype(np.uint64)
    chosen = ((bits * np.uint64(prompts)) >> np.uint64(32)).astype(np.int64)
    chosen += np.arange(resamples)[:, None] * prompts
    counts = np.bincount(chosen.ravel(), minlength=resamples * prompts)
    return counts.reshape(resamples, prompts).astype(np.float64)
