"""Made-up evaluations for tests of the history: Q4_0 with KLDs as the tiny model has them, on two kinds of machine."""

from typing import Any

import numpy as np

from miso_gguf.quant_eval.gates.config import load_gates
from miso_gguf.quant_eval.gates.observed import Observed, observed_of, subject_of
from miso_gguf.quant_eval.results import CorpusInfo, ModelInfo, Results
from miso_gguf.quant_eval.stats.observations import Observations

MODEL = ModelInfo(name="Tiny [1]", bundle="tiny", manifest_sha256="aa", source_sha256="bb")
CORPUS = CorpusInfo(name="builtin", sha256="cc", prompts=20, categories={"list": 20}, seeds=[0, 1])
SETTINGS: dict[str, Any] = {"temperature": 0.9, "top_k": 50, "range": (1, 2)}
SUBJECT = subject_of(MODEL, CORPUS, "fp16", SETTINGS)
HERE, THERE = ("CPU", "AVX2 AVX512"), ("CPU", "AVX2")
GATES = load_gates()
RNG = np.random.default_rng(0)
KLD = 2e-4 * np.exp(RNG.normal(0, 0.8, (20, 1)) + RNG.normal(0, 0.4, (20, 2)))
FRAMES = RNG.integers(20, 100, KLD.shape).astype(float)


def results(kind: tuple[str, str] = HERE, **changes: Any) -> Results:
    made = Results(
        kind="run",
        created="2026-01-01T00:00:00Z",
        model=MODEL,
        reference="fp16",
        stages=["logits", "one-step", "free"],
        corpus=CORPUS,
        settings=SETTINGS,
        machine={"device": kind[0], "instructions": kind[1]},
        versions={"numpy": "2"},
        notes=[],
        levels=[],
        metrics=[],
        gates=[],
        codebooks=[],
        attribution=[],
        controls=[],
        clips=[],
        distributions=[],
        extras=[],
        verdict="PASS",
    )
    return made.model_copy(update=changes)


def observations(values: Any, weights: Any = FRAMES) -> Observations:
    """From values `[prompts, seeds]`."""
    array = np.asarray(values, np.float64)
    prompts, seeds = np.indices(array.shape)
    names = np.char.add("list-", prompts.ravel().astype(str))
    return Observations(names, seeds.ravel(), array.ravel(), np.broadcast_to(weights, array.shape).ravel())


def found(kld: Any = KLD, kind: tuple[str, str] = HERE, **changes: Any) -> Observed:
    """An evaluation with this KLD at Q4_0."""
    return observed_of(results(kind, **changes), {"q4_0": {"kld_cb0": observations(kld)}})
