"""Divergences against a brute force, llama.cpp's formula, and values that can be worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.quant_eval.metrics.divergence import (
    Divergence,
    EosChange,
    clip_metrics,
    codebook_results,
    divergence,
    eos_chance,
    eos_change,
    eos_log_odds,
    eos_log_odds_change,
    log_softmax,
    percentiles,
)

Floats = NDArray[np.float32]
LN2 = math.log(2)


def pair(frames: int, codebooks: int, vocab: int, noise: float = 0.3, seed: int = 0) -> tuple[Floats, Floats]:
    """Logits and the same with some error: peaked enough that probabilities span many orders."""
    rng = np.random.default_rng(seed)
    base = (4 * rng.standard_normal((frames, codebooks, vocab))).astype(np.float32)
    return base, base + (noise * rng.standard_normal(base.shape)).astype(np.float32)


def probabilities(logits: Any) -> list[float]:
    top = max(logits)
    weights = [math.exp(float(x) - float(top)) for x in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def brute_kld(p_logits: Any, q_logits: Any) -> float:
    p, q = probabilities(p_logits), probabilities(q_logits)
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 5), (0.9, 7), (0.5, 1), (2.0, 1000)])
def test_kld_equals_a_brute_force(temperature: float, top_k: int) -> None:
    base, level = pair(9, 3, 40)
    found = divergence(base, level, temperature=temperature, top_k=top_k)
    for frame, codebook in np.ndindex(9, 3):
        p, q = base[frame, codebook].astype(float), level[frame, codebook].astype(float)
        assert found.kld[frame, codebook] == pytest.approx(brute_kld(p, q), rel=1e-9)
        best = sorted(range(40), key=lambda code: -p[code])[:top_k]
        deployed = brute_kld([p[code] / temperature for code in best], [q[code] / temperature for code in best])
        assert found.kld_deployed[frame, codebook] == pytest.approx(deployed, rel=1e-9, abs=1e-15)
        assert found.same_top[frame, codebook] == (list(p).index(max(p)) == list(q).index(max(q)))
    assert found.same_top.any()
    assert not found.same_top.all()


def test_known_values() -> None:
    """P is 1/2, 1/4, 1/4 and Q the other way round; of the best two of P, 2/3 and 1/3 against 1/2 and 1/2."""
    base = np.log(np.array([[[0.5, 0.25, 0.25]]], np.float32)) + np.float32(3)
    level = np.log(np.array([[[0.25, 0.25, 0.5]]], np.float32)) - np.float32(9)
    found = divergence(base, level, temperature=1.0, top_k=3)
    assert found.kld[0, 0] == pytest.approx(LN2 / 4, rel=1e-6)
    assert found.kld_deployed[0, 0] == found.kld[0, 0]
    assert not found.same_top[0, 0]
    base[0, 0, 2] -= 1e-3  # the best two are 0 and 1
    two = divergence(base, level, temperature=1.0, top_k=2).kld_deployed[0, 0]
    assert two == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3), rel=1e-6)
    # At temperature 1/2 the odds are squared: 4/5 and 1/5 against 1/2 and 1/2.
    cold = divergence(base, level, temperature=0.5, top_k=2).kld_deployed[0, 0]
    assert cold == pytest.approx(4 / 5 * math.log(8 / 5) + 1 / 5 * math.log(2 / 5), rel=1e-6)


def test_against_itself_exactly_nothing() -> None:
    base, _ = pair(10, 4, 515)
    found = divergence(base, base.copy(), temperature=0.9, top_k=50)
    assert not found.kld.any()
    assert not found.kld_deployed.any()
    assert found.same_top.all()
    assert not eos_log_odds_change(base[:, 0], base[:, 0].copy()).any()


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 30), st.floats(-200, 200), st.integers(1, 12))
def test_properties(seed: int, scale: float, offset: float, top_k: int) -> None:
    """Never below zero, and a shift of all logits changes nothing; also where exp would overflow or vanish."""
    rng = np.random.default_rng(seed)
    base, level = (np.round(scale * 64 * rng.standard_normal((2, 3, 2, 12))) / 64).astype(np.float32)
    found = divergence(base, level, temperature=0.9, top_k=top_k)
    for values in (found.kld, found.kld_deployed):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    shifted = divergence(base, level + np.float32(round(offset)), temperature=0.9, top_k=top_k)
    np.testing.assert_allclose(shifted.kld, found.kld, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(shifted.same_top, found.same_top)


class LlamaCpp:
    """What `llama-perplexity --kl-divergence` computes for one position, from its description of the file it saves.

    The base's log-probabilities are kept as 16-bit steps between the largest and 16 nats below it (or the smallest),
    in float32; those at -16 and below leave the sum. The level's are not rounded.
    """

    def __init__(self, base: Floats) -> None:
        top, bottom = base.max(), max(base.min(), base.max() - np.float32(16))
        log_sum = np.float32(np.log(np.exp(base - top).sum(dtype=np.float64)))
        self._lowest = np.float32(bottom - top - log_sum)
        self._scale = np.float32((top - bottom) / np.float32(65535))
        steps = np.where(base > bottom, np.rint((base - bottom) / self._scale), 0)
        self._steps = steps.astype(np.uint16)

    def kld(self, level: Floats) -> tuple[float, bool]:
        p_log = self._scale * self._steps.astype(np.float32) + self._lowest
        log_sum = np.float32(level.max() + np.log(np.exp(level - level.max()).sum(dtype=np.float64)))
        seen = p_log > -16
        terms = np.exp(p_log[seen]) * (p_log[seen] - (level[seen] - log_sum))
        return float(terms.sum(dtype=np.float64)), bool(p_log.argmax() == level.argmax())


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
def test_the_numbers_are_llama_cpps(noise: float) -> None:
    """Within its rounding: 16 bits of at most 16 nats are steps of 2.4e-4, so each term is off by half of it at most,
    and with both signs; the tail below -16 holds less than V * e^-16."""
    base, level = pair(8, 2, 2051, noise)
    found = divergence(base, level, temperature=1.0, top_k=50)
    theirs = [[LlamaCpp(b).kld(q) for b, q in zip(bs, qs, strict=True)] for bs, qs in zip(base, level, strict=True)]
    kld = np.array([[value for value, _ in row] for row in theirs])
    np.testing.assert_allclose(found.kld, kld, rtol=0, atol=1.3e-4)
    assert found.kld.mean() == pytest.approx(kld.mean(), abs=5e-5)
    np.testing.assert_array_equal(found.same_top, [[same for _, same in row] for row in theirs])


def test_eos_odds() -> None:
    assert eos_log_odds(np.zeros((1, 515), np.float32))[0] == pytest.approx(-math.log(514), rel=1e-12)
    sure = np.zeros(515, np.float32)
    sure[0] = 60  # 1 - p is 5e-24: lost if it is taken from p
    assert float(eos_log_odds(sure)) == pytest.approx(60 - math.log(514), rel=1e-12)
    base, level = np.zeros((2, 5, 515), np.float32)
    level[:, 0] = [0, 1, -1, 2.5, 0]
    level[4] += 7
    np.testing.assert_allclose(eos_log_odds_change(base, level), [0, 1, -1, 2.5, 0], atol=1e-12)


def test_stopping_too_early_is_seen_though_nothing_changes_at_the_end() -> None:
    """Of four codes, the level gives EOS a third of the mass at one frame in the middle."""
    base = np.zeros((5, 4), np.float32)
    base[:4, 0] = -20
    base[4, 0] = 3
    level = base.copy()
    level[1, 0] = math.log(3 / 2)
    found = eos_change(base, level, stopped=True, temperature=1, top_k=4)
    assert found.at_stop_nats == 0
    assert found.before_nats == pytest.approx((20 + math.log(3 / 2)) / 4, rel=1e-6)
    assert found.early_percent == pytest.approx(100 / 3, rel=1e-4)
    back = eos_change(level, base, stopped=False, temperature=1, top_k=4)
    assert back.at_stop_nats is None
    assert (back.before_nats, back.early_percent) == (-found.before_nats, -found.early_percent)


def test_chances_to_stop_add_up_over_frames_as_they_are_sampled() -> None:
    logits = np.zeros((3, 4), np.float32)  # 1/4 at each frame
    assert eos_chance(logits, temperature=1, top_k=4) == pytest.approx([0.25] * 3)
    never = np.full((4, 4), -1, np.float32)
    never[:, 1:] = 0
    level = np.concatenate([logits, never[:1]])
    found = eos_change(never, level, stopped=True, temperature=1, top_k=3)
    assert found.early_percent == pytest.approx(100 * (1 - 0.75**3)), "all that tie take part, and -1 does not"
    assert eos_chance(np.log(np.array([[2, 1, 1]], np.float32)), temperature=0.5, top_k=3) == pytest.approx([4 / 6])
    certain = np.array([[800, 0, 0], [0, 0, 0]], np.float32)
    assert eos_change(certain[[1, 1]], certain, stopped=True, temperature=1, top_k=1).early_percent < 100
    assert eos_chance(certain, temperature=1, top_k=1)[0] == 1
    assert eos_change(certain, certain, stopped=True, temperature=1, top_k=3) == EosChange(0.0, 0.0, 0.0)


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (2, 4)), ((3, 2, 4), (3, 2, 4))])
def test_an_end_needs_frames_before_it(shapes: Any) -> None:
    base, level = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"\[frames \+ 1, vocabulary\] of a frame or more, not \["):
        eos_change(base, level, stopped=True, temperature=1, top_k=5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["reference", "level"])
def test_what_is_not_finite_is_named(value: float, which: str) -> None:
    arrays = dict(zip(("reference", "level"), pair(6, 3, 20), strict=True))
    arrays[which][4, 2, 7] = value
    arrays[which][5, 1, 1] = value
    message = rf"the {which}'s logits of frame 4, codebook 2 hold {value} \(code 7\): .*miso-convert verify"
    with pytest.raises(ValueError, match=message):
        divergence(arrays["reference"], arrays["level"], temperature=1, top_k=5)
    with pytest.raises(ValueError, match=rf"codebook-0 logits of frame 4, codebook 0 hold {value}"):
        eos_log_odds(arrays[which][:, 2])


@pytest.mark.parametrize(
    ("shapes", "temperature", "top_k", "message"),
    [
        (((2, 3, 9), (2, 3, 8)), 1, 5, r"not \[2, 3, 9\] and \[2, 3, 8\]: replay the same codes"),
        (((3, 9), (3, 9)), 1, 5, r"must both be \[frames, codebooks, vocabulary\]"),
        (((2, 3, 1), (2, 3, 1)), 1, 5, "must both be"),
        (((2, 3, 9), (2, 3, 9)), 0, 5, "temperature must be above 0 and top_k at least 1, not 0 and 5"),
        (((2, 3, 9), (2, 3, 9)), math.nan, 5, "not nan and 5"),
        (((2, 3, 9), (2, 3, 9)), 1, 0, "not 1 and 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(shapes: Any, temperature: float, top_k: int, message: str) -> None:
    base, level = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        divergence(base, level, temperature=temperature, top_k=top_k)


def test_no_frames() -> None:
    nothing = divergence(*pair(0, 3, 20), temperature=1, top_k=5)
    assert nothing.kld.shape == nothing.kld_deployed.shape == nothing.same_top.shape == (0, 3)
    with pytest.raises(ValueError, match="a clip without a frame has no divergence"):
        clip_metrics(nothing)
    for clips in ([], [nothing]):
        with pytest.raises(ValueError, match="q8_0: no clip has a frame"):
            codebook_results("q8_0", clips)
    with pytest.raises(ValueError, match="percentiles of no values"):
        percentiles(np.empty(0), (50.0,))


def made(kld: Any, same_top: Any) -> Divergence:
    array = np.array(kld, float)
    return Divergence(array, 10 * array, np.array(same_top, bool))


def test_summaries() -> None:
    first = made([[1, 2, 4], [3, 2, 0]], [[1, 1, 0], [0, 1, 0]])
    second = made([[5, 2, 2]], [[1, 1, 1]])
    assert clip_metrics(replace(first, eos=EosChange(-0.25, 0.5, 1.5))) == {
        "kld_cb0": 2.0,
        "kld_rest": 2.0,
        "kld_deployed": 20.0,
        "top1": 50.0,
        "eos_shift": -0.25,
        "eos_shift_before": 0.5,
        "eos_early": 1.5,
    }
    assert set(clip_metrics(replace(first, eos=EosChange(None, 0.5, 1.5)))) - set(clip_metrics(second)) == {
        "eos_shift_before",
        "eos_early",
    }
    assert clip_metrics(made([[1.0]], [[1]])).keys() == {"kld_cb0", "kld_deployed", "top1"}
    results = codebook_results("q4_0", [first, second], {0: 10.0, 1: 20.0, 2: 30.0})
    assert [result.codebook for result in results] == [0, 1, 2]
    assert (results[0].frames, results[0].kld_mean, results[0].kld_median) == (3, 3.0, 3.0)
    assert results[0].kld_p99 == pytest.approx(4.96)
    assert [result.top1_percent for result in results] == pytest.approx([200 / 3, 100, 100 / 3])
    assert [result.flip_percent for result in results] == [10.0, 20.0, 30.0]
    assert codebook_results("q4_0", [second])[0].flip_percent is None
    spread = percentiles(np.arange(101, dtype=float).reshape(1, -1), (50.0, 90.0, 95.0, 99.0, 99.9))
    assert spread == {50.0: 50.0, 90.0: 90.0, 95.0: 95.0, 99.0: 99.0, 99.9: pytest.approx(99.9)}


def test_log_softmax_is_normalised() -> None:
    base, _ = pair(2, 2, 300)
    assert log_softmax(base).dtype == np.float64
    np.testing.assert_allclose(np.exp(log_softmax(base)).sum(-1), 1, rtol=1e-14)
