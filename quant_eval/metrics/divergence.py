"""How far a level's distributions are from the reference's, code by code: KL divergence, top-1 agreement, EOS odds.

P is the reference's distribution, Q the level's, both over all codes of one codebook at one frame after the same
history. All is computed in float64 from float32 logits. It knows no models, and no statistics over clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import F32Array
from ..metric import DIFFERENCE, DISTANCE, LOGITS, SHARE, Family
from ..results import CodebookResult

F64Array = NDArray[np.float64]

DISTRIBUTIONS, ENDS = Family(LOGITS, is_per_frame=True), Family(LOGITS)
"""Of a clip's `Divergence`; `ENDS` of its end, which in a recording no model has decided."""

_FRAMES_AT_ONCE = 4
"""4 x 32 x 2051 float64 are 2 MB: the arrays in between stay in the cache."""


@dataclass(frozen=True)
class EosChange:
    """What a level makes of the end of a clip, against the reference: both have heard the same codes.

    Attributes:
        at_stop_nats: Change of the EOS log-odds where the reference stopped; None if it did not stop by itself.
        before_nats: The same at the frames before, the mean over them.
        early_percent: Change of the chance that one of those frames ends the clip, as sampled.
    """

    at_stop_nats: float | None
    before_nats: float
    early_percent: float


@dataclass(frozen=True)
class Divergence:
    """One clip of a level against the reference.

    Attributes:
        kld: KL(P || Q) at temperature 1, in nats, float64 [T, codebooks].
        kld_deployed: The same of what is sampled from, float64 [T, codebooks]: see `divergence`.
        same_top: Whether P and Q have the same most likely code, bool [T, codebooks].
        eos: What becomes of the clip's end; None where the reference did not decide it: in a recording.
    """

    kld: F64Array
    kld_deployed: F64Array
    same_top: NDArray[np.bool_]
    eos: EosChange | None = None


def divergence(base: F32Array, level: F32Array, *, temperature: float, top_k: int) -> Divergence:
    """Compare logits `base` and `level`, both [T, codebooks, V], of the same codes.

    `kld_deployed` divides the logits by `temperature` and restricts P to the reference's `top_k` best codes, as
    sampling does. Q is restricted to *the same* codes and renormalised: with a top-k set of its own, Q would lack codes
    of P's and the divergence would be infinite as soon as one code changed its rank. What Q gives to other codes is not
    seen.
    Codes that tie with the `top_k`-th best take part or not, but the same in P and Q.

    Raises:
        ValueError: If the shapes differ, a logit is not finite, or `temperature` or `top_k` is not positive.
    """
    if base.shape != level.shape or base.ndim != 3 or base.shape[-1] < 2:
        raise ValueError(
            f"logits must both be [frames, codebooks, vocabulary], not {list(base.shape)} and {list(level.shape)}: "
            "replay the same codes through levels of the same model"
        )
    _require_sampling(temperature, top_k)
    require_finite(base, "the reference's logits")
    require_finite(level, "the level's logits")
    kld, deployed = np.empty(base.shape[:2]), np.empty(base.shape[:2])
    for start in range(0, len(base), _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        p, q = base[part].astype(np.float64), level[part].astype(np.float64)
        kld[part] = _kld(p, q)
        if top_k < p.shape[-1]:
            best = np.argpartition(p, -top_k, axis=-1)[..., -top_k:]
            p, q = np.take_along_axis(p, best, axis=-1), np.take_along_axis(q, best, axis=-1)
        deployed[part] = _kld(p / temperature, q / temperature)
    return Divergence(kld, deployed, base.argmax(axis=-1) == level.argmax(axis=-1))


def _require_sampling(temperature: float, top_k: int) -> None:
    if not (temperature > 0 and np.isfinite(temperature)) or top_k < 1:
        raise ValueError(f"temperature must be above 0 and top_k at least 1, not {temperature} and {top_k}")


def require_finite(logits: F32Array, what: str) -> None:
    """Raise `ValueError` naming the first frame and codebook of `logits` [T, codebooks, V] with a NaN or infinity."""
    broken = ~np.isfinite(logits)
    if broken.any():
        frame, codebook, code = (int(axis[0]) for axis in np.nonzero(broken))
        raise ValueError(
            f"{what} of frame {frame}, codebook {codebook} hold {logits[frame, codebook, code]} (code {code}): "
            "the level's files are damaged (miso-convert verify DIR), or this device computes it wrongly (try the CPU)"
        )


def log_softmax(logits: NDArray[np.floating[Any]]) -> F64Array:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def _kld(p_logits: F64Array, q_logits: F64Array) -> F64Array:
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    # Exactly 0 where P is Q; elsewhere rounding can leave -1e-17.
    found: F64Array = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return found


def eos_log_odds(logits0: F32Array) -> F64Array:
    """ln(p / (1 - p)) of code 0 in codebook 0, which ends an utterance: logits [..., V] -> nats [...].

    Not of the log-probabilities, where 1 - p would be lost as p nears 1.
    """
    require_finite(logits0.reshape(-1, 1, logits0.shape[-1]), "codebook-0 logits")
    wide = logits0.astype(np.float64)
    others = wide[..., 1:]
    top = others.max(axis=-1, keepdims=True)
    found: F64Array = wide[..., 0] - top[..., 0] - np.log(np.exp(others - top).sum(axis=-1))
    return found


def eos_log_odds_change(reference_logits0: F32Array, level_logits0: F32Array) -> F64Array:
    """Change of `eos_log_odds`, [..., V] each -> nats [...]: above 0, the level is the more likely to stop there."""
    return eos_log_odds(level_logits0) - eos_log_odds(reference_logits0)


def eos_chance(logits0: F32Array, *, temperature: float, top_k: int) -> F64Array:
    """Probability that code 0 is sampled of codebook-0 logits [..., V], in [...]: exactly 0 outside of the top k.

    All that tie with the `top_k`-th best take part. Raises `ValueError` as `divergence`.
    """
    _require_sampling(temperature, top_k)
    require_finite(logits0.reshape(-1, 1, logits0.shape[-1]), "codebook-0 logits")
    wide = logits0.astype(np.float64)
    if top_k < wide.shape[-1]:
        worst = np.partition(wide, -top_k, axis=-1)[..., -top_k, np.newaxis]
        wide = np.where(wide >= worst, wide, -np.inf)
    chance: F64Array = np.exp(log_softmax(wide / temperature)[..., 0])
    return chance


def eos_change(
    reference_logits0: F32Array, level_logits0: F32Array, *, stopped: bool, temperature: float, top_k: int
) -> EosChange:
    """What a level makes of the end of a clip of T frames.

    Args:
        reference_logits0: Of codebook 0, float32 [T + 1, V]: each frame's, and that of the one that was not spoken.
        level_logits0: The same of the level.
        stopped: Whether the reference drew EOS there, rather than being cut off.
        temperature: Of sampling.
        top_k: Of sampling.

    Raises:
        ValueError: The shapes differ, T is 0, or as `divergence`.
    """
    if reference_logits0.shape != level_logits0.shape or reference_logits0.ndim != 2 or len(reference_logits0) < 2:
        raise ValueError(
            "codebook-0 logits must both be [frames + 1, vocabulary] of a frame or more, "
            f"not {list(reference_logits0.shape)} and {list(level_logits0.shape)}"
        )
    change = eos_log_odds_change(reference_logits0, level_logits0)
    early = [
        _chance_of_any(eos_chance(logits[:-1], temperature=temperature, top_k=top_k))
        for logits in (reference_logits0, level_logits0)
    ]
    return EosChange(
        at_stop_nats=float(change[-1]) if stopped else None,
        before_nats=float(change[:-1].mean()),
        early_percent=100 * (early[1] - early[0]),
    )


def _chance_of_any(chances: F64Array) -> float:
    with np.errstate(divide="ignore"):  # of a chance of 1
        return float(-np.expm1(np.log1p(-np.minimum(chances, 1.0)).sum()))


def percentiles(values: F64Array, which: Sequence[float]) -> dict[float, float]:
    """Percentiles of all `values`, interpolated linearly. Raises `ValueError` if there are none."""
    if not values.size:
        raise ValueError("percentiles of no values: were all clips without a frame?")
    return dict(zip(which, map(float, np.percentile(values, which)), strict=True))


def clip_metrics(found: Divergence) -> dict[str, float]:
    """`DISTRIBUTIONS` and `ENDS` of one clip, by key. Raises `ValueError` for a clip without a frame."""
    if not found.kld.size:
        raise ValueError("a clip without a frame has no divergence: leave it out")
    return {**DISTRIBUTIONS.values(found), **ENDS.values(found)}


@DISTRIBUTIONS.metric(
    "KLD, semantic",
    "nats",
    "lower",
    DISTANCE,
    "KL(P_reference || P_level) of codebook 0 at temperature 1, mean over frames.",
    digits=5,
)
def kld_cb0(found: Divergence) -> float:
    """Of codebook 0."""
    return float(found.kld[:, 0].mean())


@DISTRIBUTIONS.metric(
    "KLD, acoustic",
    "nats",
    "lower",
    DISTANCE,
    "The same of the other codebooks, mean over frames and codebooks.",
    digits=5,
)
def kld_rest(found: Divergence) -> float | None:
    """Of codebooks 1 on; absent if there are none."""
    return float(found.kld[:, 1:].mean()) if found.kld.shape[1] > 1 else None


@DISTRIBUTIONS.metric(
    "KLD as sampled",
    "nats",
    "lower",
    DISTANCE,
    "KL over all codebooks of what is sampled from: logits / temperature within the reference's top-k.",
    digits=5,
)
def kld_deployed(found: Divergence) -> float:
    """Of all codebooks."""
    return float(found.kld_deployed.mean())


@DISTRIBUTIONS.metric(
    "Top-1 agreement",
    "%",
    "higher",
    SHARE,
    "Codes, over all codebooks, whose most likely value is the reference's.",
    ideal=100.0,
)
def top1(found: Divergence) -> float:
    """Of all codebooks."""
    return 100 * float(found.same_top.mean())


AT_A_GLANCE = tuple(DISTRIBUTIONS[each.__name__] for each in (kld_cb0, kld_rest, top1))
"""What tells most of a level where there is no room for all."""


@ENDS.metric(
    "EOS shift",
    "nats",
    "zero",
    DIFFERENCE,
    "Change of the log-odds of code 0 in codebook 0 at the reference's stop frame: below 0, the level would go on.",
    digits=3,
)
def eos_shift(found: Divergence) -> float | None:
    """Absent if the reference did not stop by itself."""
    return found.eos.at_stop_nats if found.eos is not None else None


@ENDS.metric(
    "EOS shift before",
    "nats",
    "zero",
    DIFFERENCE,
    "The same at the frames before, mean over them: above 0, stopping too early has become likelier everywhere.",
    digits=3,
    is_per_frame=True,
)
def eos_shift_before(found: Divergence) -> float | None:
    """Absent in a recording."""
    return found.eos.before_nats if found.eos is not None else None


@ENDS.metric(
    "EOS too early",
    "%",
    "zero",
    (-100.0, 100.0),
    "Change of a clip's chance to end before the reference's stop frame, at the temperature and top-k of sampling.",
)
def eos_early(found: Divergence) -> float | None:
    """Absent in a recording."""
    return found.eos.early_percent if found.eos is not None else None


def codebook_results(
    level: str, clips: Sequence[Divergence], flips: Mapping[int, float] | None = None
) -> list[CodebookResult]:
    """Each codebook over all frames of all `clips`; `flips` in percent by codebook, if the one-step stage was run.

    Raises `ValueError` if there is no frame.
    """
    kld = np.concatenate([clip.kld for clip in clips]) if clips else np.empty((0, 0))
    if not kld.size:
        raise ValueError(f"{level}: no clip has a frame")
    same_top = np.concatenate([clip.same_top for clip in clips])
    results = []
    for codebook in range(kld.shape[1]):
        spread = percentiles(kld[:, codebook], (50.0, 99.0))
        results.append(
            CodebookResult(
                level=level,
                codebook=codebook,
                frames=len(kld),
                kld_mean=float(kld[:, codebook].mean()),
                kld_median=spread[50.0],
                kld_p99=spread[99.0],
                top1_percent=100 * float(same_top[:, codebook].mean()),
                flip_percent=None if flips is None else flips[codebook],
            )
        )
    return results
