"""A made-up evaluation for tests of reports: every number is a formula, and the sounds are drawn from the contours."""

import math
import os
from pathlib import Path

import numpy as np
import soundfile

from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import (
    Attribution,
    Clip,
    CodebookResult,
    Contour,
    Control,
    CorpusInfo,
    Distribution,
    Estimate,
    Extra,
    GateResult,
    LevelResult,
    Memory,
    MemoryPart,
    MetricResult,
    ModelInfo,
    Results,
    Rung,
    Verdict,
)

HOSTILE = (
    '</script><img src=x onerror="alert(1)"> `code` **bold** | [a](http://b) @all\n# Title {{ 7*7 }} \x07 $x$ \u202e'
)
RATE_HZ = 24_000
STEP_S = 0.01

_DAMAGE = {"f32": 0.0, "fp16": 0.0, "bf16": 0.02, "q8_0": 0.08, "q6_k": 0.2, "q5_k_m": 0.36, "q5_k_s": 0.54}
_DAMAGE |= {"q5_1": 0.58, "q5_0": 0.72, "q4_k_m": 1.0, "q4_k_s": 1.3, "iq4_nl": 1.2, "iq4_xs": 1.24, "q4_1": 2.3}
_DAMAGE |= {"q4_0": 2.4, "q3_k_l": 2.8, "q3_k_m": 3.3, "iq3_m": 3.2, "iq3_s": 3.6, "iq3_xs": 4.4, "iq3_xxs": 5.9}
_DAMAGE |= {"q3_k_s": 7.3, "q2_k": 14.0}
_BITS = {"f32": 32.0, "fp16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.59, "q5_k_m": 5.71, "q5_k_s": 5.55}
_BITS |= {"q5_1": 6.04, "q5_0": 5.55, "q4_k_m": 4.89, "q4_k_s": 4.6, "iq4_nl": 4.6, "iq4_xs": 4.3, "q4_1": 5.07}
_BITS |= {"q4_0": 4.55, "q3_k_l": 4.3, "q3_k_m": 3.9, "iq3_m": 3.7, "iq3_s": 3.6, "iq3_xs": 3.3, "iq3_xxs": 3.1}
_BITS |= {"q3_k_s": 3.5, "q2_k": 3.1}
EVERY_LEVEL = ("fp16", *(level for level in _DAMAGE if level != "fp16"))
_WITH_MARGINS = ("fp16", "q8_0", "q4_k_m", "q4_0")
_PROMPTS = 48
_SEEDS = (0, 1, 2)
_TEXTS = {
    "question": "Did you really walk all the way home?",
    "list": "We need apples, pears, plums and a little patience.",
    "emotion": "I cannot believe it, this is wonderful!",
    "number": "The train leaves at seventeen minutes past four.",
    "long": "When the rain had stopped at last, the children ran out and would not come back in for supper.",
}


def estimate(value: float, width: float = 0.12) -> Estimate:
    """An estimate with bounds +-`width` of the value away."""
    half = abs(value) * width
    return Estimate(value=value, low=value - half, high=value + half, prompts=_PROMPTS, clips=_PROMPTS * len(_SEEDS))


def sample(codebooks: int = 8, levels: tuple[str, ...] = ("fp16", "q8_0", "q4_k_m", "q4_0")) -> Results:
    """Four levels, and a control for some gates; Q4_K_M is undecided on one gate, Q4_0 fails two."""
    compared = [level for level in levels if level != "fp16"]
    judged = [level for level in compared if level in _WITH_MARGINS]
    gates = [gate for level in judged for gate in _gates(level)]
    verdicts = {level: _worst([gate.outcome for gate in gates if gate.level == level]) for level in judged}
    return Results(
        kind="run",
        created="2025-01-02T03:04:05Z",
        model=ModelInfo(
            name="Miso TTS 8B", bundle="miso-8b", manifest_sha256="0123456789abcdef" * 4, source_sha256="fedcba98" * 8
        ),
        reference="fp16",
        stages=["logits", "one-step", "free"],
        corpus=CorpusInfo(
            name="builtin-1",
            sha256="a1b2c3d4" * 8,
            prompts=_PROMPTS,
            categories={"question": 12, "list": 12, "emotion": 12, "number": 12},
            seeds=list(_SEEDS),
        ),
        settings={"temperature": 0.9, "top_k": 50, "resamples": 10_000, "seed": 0, "quick": False},
        machine={"cpu": "an example, 8 cores", "memory": "32 GB", "gpu": "none"},
        versions={"miso-gguf": "0.1.0", "llama-cpp-python": "0.3.36", "numpy": "2.2.0", "praat": "6.4.1"},
        notes=["Word error rate was not run: no recogniser was given.", "4 of 144 clips were resumed."],
        levels=[_level(level, verdicts.get(level)) for level in levels],
        metrics=[_metric(level, key) for level in compared for key in METRICS if not METRICS[key].needs],
        gates=gates,
        codebooks=[_codebook(level, index) for level in compared for index in range(codebooks)],
        attribution=[_attribution(level) for level in compared],
        controls=[
            Control(name="fp16 against itself", expected="exactly zero", found="exactly zero", behaved=True),
            *(control for level in judged for control in _controls(level)),
        ],
        clips=[clip for level in compared for clip in _clips(level)],
        distributions=[
            Distribution(
                level=level,
                name=name,
                unit=unit,
                values=_spread(level, middle),
                shift=None if level == "fp16" else 0.021 * middle * min(_DAMAGE[level], 8),
                shift_floor=None if level == "fp16" else 0.03 * middle,
            )
            for name, unit, middle in (("duration", "s", 3.4), ("pauses", "s", 0.42))
            for level in levels
        ],
        extras=[
            Extra(
                name="wer",
                unit="%",
                by="listener 1.0, en",
                values={level: estimate(3.1 + 0.2 * _DAMAGE[level]) for level in levels},
                differences={level: estimate(0.2 * _DAMAGE[level]) for level in levels if level != "fp16"},
                without=dict.fromkeys(levels, 2),
            ),
            Extra(name="utmos", unit="MOS", why_not="not run: not asked for"),
        ],
        verdict=_worst(list(verdicts.values())) if verdicts else None,
    )


def full(codebooks: int = 8, levels: tuple[str, ...] = ("fp16", "q8_0", "q4_k_m", "q4_0")) -> Results:
    """The sample with all that an evaluation can have beside: changes, what is undecided and missing, the ladder."""
    results = sample(codebooks, levels)
    judged = [level for level in levels if level in _WITH_MARGINS and level != "fp16"]
    gates = [gate for gate in results.gates if gate.kind not in ("history", "failures")]
    gates += [gate for level in judged for gate in (*_counts(level), *_changes(level))]
    missing = [f"{level}: no clip is voiced on both sides" for level in judged[-1:]] + ["q5_k_m was not run"]
    gates = [_unmeasured(gate) if (gate.level, gate.metric) == (judged[-1], "lf0_rmse") else gate for gate in gates]
    verdicts = {level: _worst([gate.outcome for gate in gates if gate.level == level]) for level in judged}
    why_not = {level.level: level.why_not_judged for level in results.levels} | {"fp16": "not run: no F32 level"}
    return results.model_copy(
        update={
            "gates": gates,
            "levels": [
                level.model_copy(
                    update={"verdict": verdicts.get(level.level), "why_not_judged": why_not.get(level.level)}
                )
                for level in results.levels
            ],
            "ladder": [_rung(half, step) for half in ("backbone", "decoder", "both") for step in range(6)],
            "missing": missing,
            "verdict": _worst(list(verdicts.values())),
        }
    )


def _counts(level: str) -> list[GateResult]:
    new, cured = {"q8_0": (0, 0), "q4_k_m": (4, 1)}.get(level, (9, 2))
    found = _share(new, cured)
    said = f"{new} new, {cured} cured" if cured else str(new)
    return [
        GateResult(
            level=level,
            metric="new_failures",
            kind="failures",
            margin=1.0,
            estimate=found,
            p_value=None,
            verdict="INCONCLUSIVE",
            reason=f"New failures: {said} of {found.clips} clips: at most {found.high:.1f} %",
            is_beyond=found.value > 1,
            needed=299 if not new else 1_210,
        )
    ]


def _changes(level: str) -> list[GateResult]:
    """History, which is undecided for Q4_0, and the anchor, which passes."""
    off = _DAMAGE[level]
    rows = (("kld_cb0", 0.0003, 0.004), ("top1", -0.03, 0.5), ("lf0_rmse", 0.11, 2.0), ("dur_ratio", -0.001, 0.01))
    changes = []
    for kind in ("history", "anchor"):
        for metric, value, tolerated in rows:
            is_open = kind == "history" and level == "q4_0" and metric == "kld_cb0"
            found = estimate(0.0 if level == "q8_0" else value * off, 6.0 if is_open else 0.4)
            changes.append(
                GateResult.model_validate(
                    {
                        "level": level,
                        "metric": metric,
                        "kind": kind,
                        "margin": tolerated,
                        "estimate": found,
                        "p_value": 0.2 if is_open else 0.001,
                        "verdict": "INCONCLUSIVE" if is_open else "PASS",
                        "reason": "It is about as it was.",
                        "needed": 310 if is_open else None,
                    }
                )
            )
    return changes


def _unmeasured(gate: GateResult) -> GateResult:
    reason = "no clip is voiced on both sides"
    nothing = {"estimate": None, "p_value": None, "verdict": "MISSING", "is_beyond": False, "needed": None}
    return gate.model_copy(update={**nothing, "reason": reason})


def _controls(level: str) -> list[Control]:
    damages = {
        "kld_cb0": "all scales off by 9 %",
        "top1": "all scales off by 9 %",
        "lf0_rmse": "pitch raised by 50 cents",
        "dur_ratio": "stretched by 6 %",
        "f0_range": "intonation flattened by 10 %",
        "new_failures": "4 clips silenced",
    }
    return [
        Control(
            name=name,
            level=level,
            metric=metric,
            expected=f"FAIL of {METRICS[metric].label} at {level.upper()}",
            found="FAIL: 2.1 times what is tolerated",
            behaved=True,
        )
        for metric, name in damages.items()
    ]


def _rung(half: str, step: int) -> Rung:
    strength = 0.01 * 2**step
    share = {"backbone": 0.7, "decoder": 0.3, "both": 1.0}[half]
    values = {
        "kld_cb0": estimate(4.0 * share * strength**1.8, 0.3),
        "top1": estimate(100 - 90 * share * strength**0.8, 0.01),
        "flip_rate": estimate(110 * share * strength, 0.2),
        "lf0_rmse": estimate(150 * share * strength, 0.3),
        "dur_ratio": estimate(-0.1 * share * strength * (1 - 0.2 * (step == 3)), 0.5),
    }
    return Rung.model_validate({"half": half, "strength": strength, "values": values})


def write_sounds(results: Results, folder: Path) -> None:
    """A buzz that follows the contour, for each clip of the results."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in results.clips:
        for name, contour in ((clip.reference_audio, clip.reference_contour), (clip.audio, clip.contour)):
            soundfile.write(folder / name, _buzz(contour), RATE_HZ, subtype="PCM_16")


def _worst(verdicts: list[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("FAIL", "MISSING", "INCONCLUSIVE", "PASS")
    return next(verdict for verdict in order if verdict in verdicts)


def _gates(level: str) -> list[GateResult]:
    damage = _DAMAGE[level]
    table: tuple[tuple[str, str, float, float], ...] = (
        ("kld_cb0", "at_most", 0.06, 0.031 * damage),
        ("top1", "at_least", 88.0, 100 - 6.0 * min(damage, 12)),
        ("lf0_rmse", "at_most", 60.0, 54.0 * math.sqrt(damage)),
        ("vuv_error", "at_most", 8.0, 2.1 * damage),
        ("dur_ratio", "within", 0.08, -0.021 * damage),
        ("f0_range", "within", 0.1, -0.03 * damage),
        ("new_failures", "failures", 6.0, 1.0 * damage if damage > 0.5 else 0.0),
        ("kld_cb0", "history", 0.08, 0.031 * damage),
    )
    return [_gate(level, *row) for row in table]


def _gate(level: str, metric: str, kind: str, margin: float, value: float) -> GateResult:
    count = round(value * _PROMPTS * len(_SEEDS) / 100)
    found = _share(count) if kind == "failures" else estimate(value, 0.02 if metric == "top1" else 0.12)
    is_least = kind == "at_least"
    distance = (-found.high, -found.low) if is_least else sorted((abs(found.low), abs(found.high)))
    limit = -margin if is_least else margin
    verdict: Verdict = "PASS" if max(distance) <= limit else "FAIL" if min(distance) > limit else "INCONCLUSIVE"
    reason = {
        "PASS": "The bound is inside the margin.",
        "FAIL": "Both bounds are beyond the margin.",
        "INCONCLUSIVE": "The margin lies between the bounds: more prompts are needed.",
    }[verdict]
    if kind == "failures":
        reason = f"New failures: {count} of {found.clips} clips: at most {found.high:.1f} %"
    gate = {"level": level, "metric": metric, "kind": kind, "margin": margin, "estimate": found, "verdict": verdict}
    p_value = None if kind == "failures" else {"PASS": 0.0004, "FAIL": 0.02, "INCONCLUSIVE": 0.211}[verdict]
    is_beyond = (-found.value if is_least else abs(found.value)) > limit
    needed = 310 if verdict == "INCONCLUSIVE" else None
    more = {"p_value": p_value, "reason": reason, "is_beyond": is_beyond, "needed": needed}
    return GateResult.model_validate({**gate, **more})


def _share(count: int, cured: int = 0) -> Estimate:
    """Of clips that fail, in percent, with bounds that are not nothing where the count is."""
    clips = _PROMPTS * len(_SEEDS)
    value = 100 * (count - cured) / clips
    return Estimate(value=value, low=0.5 * value - 2.1, high=1.4 * value + 2.1, prompts=_PROMPTS, clips=clips)


def _level(level: str, verdict: Verdict | None) -> LevelResult:
    weights = int(8.1e9 * _BITS[level] / 8)
    parts = [
        MemoryPart(name="backbone", bytes=int(weights * 0.94), source="llama.cpp: model buffer size"),
        MemoryPart(name="depth decoder", bytes=int(weights * 0.06), source="its own buffers"),
        MemoryPart(name="KV cache", bytes=268_435_456, source="llama.cpp: KV buffer size, n_ctx 2048"),
        MemoryPart(name="compute", bytes=120_000_000, source="llama.cpp: compute buffer size"),
    ]
    memory = Memory(accounted=parts)
    if level == "q4_k_m":
        peak, steady = weights + 640_000_000, weights + 560_000_000
        memory = Memory(accounted=parts, measured_peak_bytes=peak, measured_steady_bytes=steady)
    return LevelResult(
        level=level,
        file_bytes=weights,
        bits_per_weight=_BITS[level],
        memory=memory,
        rtf=0.05 * _BITS[level] + 0.2,
        ttfa_s=0.02 * _BITS[level] + 0.1,
        failures={"looping": round(_DAMAGE[level])} if _DAMAGE[level] >= 1 else {},
        clips=_PROMPTS * len(_SEEDS),
        verdict=verdict,
        why_not_judged=None if level in _WITH_MARGINS else f"no margins for {level}: measured, not judged",
    )


def _metric(level: str, key: str) -> MetricResult:
    metric = METRICS[key]
    size = (1 + len(key) % 5) * 10.0 ** (1 - metric.digits) * 4
    value = 100 - size * _DAMAGE[level] * 0.1 if metric.unit == "%" and metric.direction == "higher" else size
    sign = -1 if metric.direction == "zero" and len(key) % 2 else 1
    value = value if metric.direction == "higher" else sign * size * _DAMAGE[level]
    has_floor = metric.stage != "logits"
    return MetricResult(
        level=level,
        metric=key,
        estimate=estimate(value, 0.3),
        noise_floor=estimate(size * 3, 0.2) if has_floor else None,
        effect_ratio=estimate(abs(value) / (size * 3), 0.25) if has_floor else None,
        by_category={"question": value * 1.1, "list": value * 0.9, "emotion": value * 1.2, "number": value * 0.8},
    )


def _codebook(level: str, index: int) -> CodebookResult:
    mean = 0.031 * _DAMAGE[level] * (1 + 0.8 * math.sin(1.3 * index)) * math.exp(-0.05 * index) + 1e-7
    agreement = 100 - min(8 * _DAMAGE[level], 70) - 0.2 * index
    return CodebookResult(
        level=level,
        codebook=index,
        frames=6_120,
        kld_mean=mean,
        kld_median=mean * 0.6,
        kld_p99=mean * 9,
        top1_percent=agreement,
        flip_percent=(100 - agreement) * 1.1,
    )


def _attribution(level: str) -> Attribution:
    damage = 0.02 * _DAMAGE[level]
    return Attribution(
        level=level,
        backbone_only=estimate(damage * 0.7),
        decoder_only=estimate(damage * 0.25),
        both=estimate(damage),
    )


def _clips(level: str) -> list[Clip]:
    clips = []
    for rank, (category, text) in enumerate(_TEXTS.items()):
        flat, tempo = 1 - 0.12 * _DAMAGE[level], 1 + 0.03 * _DAMAGE[level] * (rank - 1)
        clips.append(
            Clip(
                level=level,
                prompt=f"{category}-{rank + 3:02d}",
                category=category,
                text=text,
                seed=_SEEDS[rank % len(_SEEDS)],
                why="F0 error is the largest of all clips."
                if rank == 0
                else "Among the largest in F0 error and duration.",
                reference_audio=f"{category}_fp16.wav",
                audio=f"{category}_{level}.wav",
                reference_contour=_contour(rank, 1.0, 1.0),
                contour=_contour(rank, flat, tempo),
                metrics={"lf0_rmse_dtw": (40.0 - 3 * rank) * _DAMAGE[level], "dur_ratio": math.log(tempo), "mcd": 2.0},
            )
        )
    return clips


def _contour(rank: int, flat: float, tempo: float) -> Contour:
    steps = int(150 * tempo)
    times = [step / tempo for step in range(steps)]
    semitones = [5 * math.sin(0.05 * t + rank) + 2 * math.sin(0.13 * t) for t in times]
    is_voiced = [int(t) % 45 > 8 for t in times]
    hertz = [round(120 * 2 ** (flat * s / 12), 2) if v else 0.0 for s, v in zip(semitones, is_voiced, strict=True)]
    return Contour(step_s=STEP_S, f0_hz=hertz)


def _spread(level: str, middle: float) -> list[float]:
    """Quantiles of something like a log-normal distribution."""
    shift = -0.021 * min(_DAMAGE[level], 8)
    return [round(middle * math.exp(shift + 0.3 * math.sin(2.4 * n) + 0.1 * math.sin(7.7 * n)), 4) for n in range(144)]


def _buzz(contour: Contour) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    hertz = np.repeat(np.asarray(contour.f0_hz), int(STEP_S * RATE_HZ))
    phase = 2 * np.pi * np.cumsum(hertz) / RATE_HZ
    harmonics = sum(np.sin(n * phase) / n for n in range(1, 9))
    return np.asarray(0.2 * harmonics * (hertz > 0), np.float32)


def bare(results: Results) -> Results:
    """The same evaluation with nothing in it: no stage was run."""
    lists = ("stages", "notes", "metrics", "gates", "codebooks", "attribution", "controls", "clips", "distributions")
    nothing: dict[str, list[object]] = {name: [] for name in (*lists, "extras", "missing", "ladder")}
    levels = [level.model_copy(update={"verdict": None, "memory": None, "clips": 0}) for level in results.levels]
    return results.model_copy(update={**nothing, "levels": levels, "verdict": None})


def hostile(results: Results) -> Results:
    """The same with a text in every place for words that is markup in all formats."""
    clips = [clip.model_copy(update={"text": HOSTILE, "why": HOSTILE, "category": HOSTILE}) for clip in results.clips]
    gates = [gate.model_copy(update={"reason": HOSTILE}) for gate in results.gates]
    controls = [control.model_copy(update={"name": HOSTILE, "found": HOSTILE}) for control in results.controls]
    model = results.model.model_copy(update={"name": HOSTILE, "bundle": HOSTILE})
    changes = {"clips": clips, "gates": gates, "controls": controls, "model": model, "notes": [HOSTILE]}
    return results.model_copy(update={**changes, "machine": {"cpu": HOSTILE, "gpu": "", HOSTILE: HOSTILE}})


def check_golden(name: str, text: str) -> None:
    """Hold `text` against `name` of the golden reports; with UPDATE_GOLDEN=1 in the environment, make it so."""
    path = Path(__file__).parent / "quant_eval" / "report" / "golden" / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"{name} changed: look at it, and run again with UPDATE_GOLDEN=1"
