"""From records to results: what each metric came to, what the gates say, which clips are the worst.

It measures nothing, and everything in it can be done again from the records alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import median
from typing import Any

import numpy as np

from ..core.files import file_sha256
from ..models.manifest import MANIFEST_NAME, Manifest
from ..models.memory import level_memory
from ..runtime.bundle import OpenLevel
from .clips import distributions, worst_clips
from .corpus import Corpus
from .gates.comparison import comparison_controls, judge_comparison, why_not_compared
from .gates.config import Gates
from .gates.controls import DamagedClips, Hurt, gate_controls, ladder_controls, rungs_of, self_control
from .gates.judge import judge
from .machine import machine, versions
from .metric import FREE, LOGITS, ONE_STEP, RECORDED
from .metrics.divergence import Divergence, codebook_results
from .metrics.failures import FAILURES
from .metrics.table import METRICS
from .notes import notes_of, why_not_judged
from .results import (
    Attribution,
    CodebookResult,
    Extra,
    GateResult,
    LevelResult,
    Memory,
    MetricResult,
    ModelInfo,
    Results,
)
from .run.candidate import Candidate
from .run.plan import Plan
from .run.record import Record
from .run.stages import FLOOR
from .stats.counts import count_failures
from .stats.estimates import effect_ratio, estimate
from .stats.observations import Observations

_HALVES = ("backbone_only", "decoder_only", "both")

Measured = dict[str, dict[str, Observations]]
"""By level, then by metric."""


@dataclass(frozen=True)
class Judged:
    """What `summarise` gives: the results, and the observations that they are made of."""

    results: Results
    measured: Measured = field(repr=False)


def observed(records: Iterable[Record]) -> Measured:
    """The records' values as observations; metrics that no clip has are absent."""
    found: dict[str, dict[str, list[tuple[str, int, float, float]]]] = {}
    for record in records:
        if record.stage not in (LOGITS, ONE_STEP, FREE):
            continue
        for metric, value in record.values.items():
            row = (record.prompt, record.seed, value, record.weights.get(metric, 1.0))
            found.setdefault(record.level, {}).setdefault(metric, []).append(row)
    return {
        level: {metric: _observations(rows) for metric, rows in metrics.items()} for level, metrics in found.items()
    }


def _observations(rows: Sequence[tuple[str, int, float, float]]) -> Observations:
    prompts, seeds, values, weights = zip(*rows, strict=True)
    return Observations(np.array(prompts), np.array(seeds), np.array(values), np.array(weights))


def summarise(
    plan: Plan,
    records: Sequence[Record],
    gates: Gates,
    *,
    finer: Sequence[Record] = (),
    kind: str,
    memories: Mapping[str, Memory],
    extras: Sequence[Extra],
    damaged_clips: Sequence[DamagedClips] = (),
    notes: Sequence[str] = (),
) -> Judged:
    """All results of the records, but for the verdicts that follow from them: see `outcome.decided`.

    Args:
        plan: That was done.
        records: All there are.
        gates: All; those of stages that were not run are left out.
        finer: The records of `plan.finer`. What is shown of the reference is of them then; its difference from itself
            is a control, and no verdict.
        kind: "run" or "compare".
        memories: By candidate.
        extras: What was measured beside.
        damaged_clips: The controls of free runs.
        notes: What a reader must know.
    """
    measured = observed(records)
    reference = plan.reference.name
    by_level = {each.name: [record for record in records if record.level == each.name] for each in plan.everyone}
    compared, shown, floor = by_level, measured, {each.name: _floor(records) for each in plan.everyone}
    if plan.finer is not None:
        compared = {**by_level, reference: [record for record in finer if record.level == reference]}
        shown = {**measured, **observed(compared[reference])}
        floor[reference] = _floor(finer)
    why_not = {
        each.name: why_not_compared(each.name) if kind == "compare" else why_not_judged(plan, each, gates)
        for each in plan.candidates
    }
    verdicts: list[GateResult] = []
    for candidate in plan.candidates:
        if kind != "compare" and why_not[candidate.name] is None:
            verdicts += judge(candidate.name, shown.get(candidate.name, {}), gates, margins_of=candidate.level)
    hurt = [Hurt(d.half, d.strength, measured.get(d.candidate.name, {})) for d in plan.damages]
    controls = [self_control(reference, measured.get(reference, {})), *ladder_controls(hurt, gates)]
    if kind == "compare":
        verdicts += judge_comparison(measured, gates)
        controls += comparison_controls(measured, gates)
    else:
        controls += gate_controls(levels_under_trial(plan, gates), gates, hurt, damaged_clips)
    results = Results(
        kind="compare" if kind == "compare" else "run",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=model_info(plan.reference.files),
        reference=reference,
        stages=list(plan.stages),
        corpus=plan.corpus.info(list(plan.seeds)),
        settings=settings_of(plan),
        machine=machine(gpu_layers=plan.engine.gpu_layers),
        versions=versions(),
        notes=[*notes, *notes_of(plan, records, kind)],
        levels=[
            _level(
                candidate,
                by_level[candidate.name],
                memories.get(candidate.name),
                why_not[candidate.name],
            )
            for candidate in plan.candidates
        ],
        metrics=[
            result
            for candidate in plan.candidates
            for result in _metrics(candidate.name, shown, plan.corpus, floor[candidate.name])
        ],
        gates=verdicts,
        codebooks=[
            result
            for candidate in plan.candidates
            for result in _codebooks(candidate.name, _of_one_kind(compared[candidate.name], plan.corpus))
        ],
        attribution=_attributions(shown, [each.name for each in plan.candidates]),
        controls=controls,
        ladder=rungs_of(hurt),
        clips=[
            clip
            for candidate in plan.candidates
            if candidate != plan.reference
            for clip in worst_clips(plan, candidate, records)
        ],
        distributions=distributions(plan, by_level),
        extras=list(extras),
        verdict=None,
    )
    return Judged(results, measured)


def levels_under_trial(plan: Plan, gates: Gates) -> list[str]:
    """Whose gates must be seen to fail: the levels that are judged, each once."""
    judged = [each.level for each in plan.candidates if why_not_judged(plan, each, gates) is None]
    return list(dict.fromkeys(judged)) if plan.controls else []


def settings_of(plan: Plan) -> dict[str, Any]:
    """What would have to be equal in a repetition."""
    return {
        "temperature": plan.options.temperature,
        "top_k": plan.options.top_k,
        "kv_type": plan.settings["kv_type"],
        "gpu_layers": plan.settings["gpu_layers"],
    }


def model_info(level: OpenLevel) -> ModelInfo:
    """Which model a level is of."""
    manifest = level.manifest
    return ModelInfo(
        name=manifest.model_spec.name,
        bundle=level.directory.resolve().name,
        manifest_sha256=file_sha256(level.directory / MANIFEST_NAME),
        source_sha256=_checkpoint_sha256(manifest),
    )


def _checkpoint_sha256(manifest: Manifest) -> str:
    """Of all files of the checkpoint together."""
    parts = "".join(source.sha256 for source in manifest.sources_of("checkpoint"))
    return parts if len(parts) == 64 else hashlib.sha256(parts.encode()).hexdigest()


def _metrics(level: str, measured: Measured, corpus: Corpus, floor: dict[str, Observations]) -> list[MetricResult]:
    category = {prompt.id: prompt.category for prompt in corpus.prompts}
    results = []
    for key, metric in METRICS.items():
        found = measured.get(level, {}).get(key)
        if found is None:
            continue
        noise = floor.get(key)
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(found.prompts.tolist()):
            groups.setdefault(category[prompt], []).append(index)
        means = {
            name: float(np.average(found.values[where], weights=found.weights[where]))
            for name, where in sorted(groups.items())
            if found.weights[where].sum()
        }
        results.append(
            MetricResult(
                level=level,
                metric=key,
                estimate=count_failures(found).estimate()
                if metric.counts_failures
                else estimate(found, limits=metric.range),
                noise_floor=estimate(_sizes(noise), limits=metric.range) if noise is not None else None,
                effect_ratio=effect_ratio(found, noise) if noise is not None and metric.direction != "higher" else None,
                by_category=means,
            )
        )
    return results


def _sizes(noise: Observations) -> Observations:
    """Of differences between seeds, whose signs mean nothing."""
    return Observations(noise.prompts, noise.seeds, np.abs(noise.values), noise.weights)


def _floor(records: Sequence[Record]) -> dict[str, Observations]:
    rows: dict[str, list[tuple[str, int, float, float]]] = {}
    for record in records:
        if record.stage == FLOOR:
            for metric, value in record.values.items():
                rows.setdefault(metric, []).append((record.prompt, record.seed, value, 1.0))
    return {metric: _observations(each) for metric, each in rows.items()}


def _of_one_kind(records: Sequence[Record], corpus: Corpus) -> list[Record]:
    """Those of the reference's own speech; of recordings where there is nothing else."""
    chosen = {prompt.id for prompt in corpus.spoken or corpus.recordings}
    return [record for record in records if record.prompt in chosen]


def _codebooks(level: str, records: Sequence[Record]) -> list[CodebookResult]:
    clips = [
        Divergence(
            np.array(record.detail["kld"]),
            np.zeros_like(np.array(record.detail["kld"])),
            np.array(record.detail["same_top"], np.bool_),
        )
        for record in records
        if record.stage == LOGITS
    ]
    if not clips:
        return []
    drawn = [record.detail for record in records if record.stage == ONE_STEP]
    flips = None
    if drawn:
        frames = sum(detail["frames"] for detail in drawn)
        flips = {
            index: 100 * count / frames
            for index, count in enumerate(np.sum([detail["flips"] for detail in drawn], axis=0).tolist())
        }
    return codebook_results(level, clips, flips)


def _attributions(measured: Measured, levels: Sequence[str]) -> list[Attribution]:
    found = []
    for level in levels:
        # Of its own speech, as the other figures are; of recordings where there is nothing else.
        kind = next((kind for kind in ("", RECORDED) if f"both{kind}" in measured.get(level, {})), "")
        halves = {half: measured.get(level, {}).get(f"{half}{kind}") for half in _HALVES}
        if all(halves.values()):
            found.append(
                Attribution(level=level, **{half: estimate(each) for half, each in halves.items() if each is not None})
            )
    return found


def _level(
    candidate: Candidate,
    records: Sequence[Record],
    memory: Memory | None,
    why_not_judged: str | None,
) -> LevelResult:
    manifest = candidate.files.manifest
    sizes = level_memory(manifest, candidate.level)
    free = [record.detail for record in records if record.stage == FREE]
    spoken = [detail["first_s"] for detail in free if detail["codes"]]
    audio_s = sum(detail["audio_s"] for detail in free)
    return LevelResult(
        level=candidate.name,
        file_bytes=sizes.backbone_bytes + sizes.decoder_bytes + sizes.embeddings_bytes + _codec_bytes(manifest),
        bits_per_weight=sizes.bits_per_weight,
        memory=memory,
        rtf=sum(detail["wall_s"] for detail in free) / audio_s if audio_s else None,
        ttfa_s=median(spoken) if spoken else None,
        failures={kind: sum(kind in detail["failures"] for detail in free) for kind in FAILURES},
        clips=len(free),
        verdict=None,
        why_not_judged=why_not_judged,
    )


def _codec_bytes(manifest: Manifest) -> int:
    return sum(manifest.files[name].size_bytes for name in (manifest.codec.decoder, manifest.codec.encoder))
