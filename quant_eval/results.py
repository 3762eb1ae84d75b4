"""The results of an evaluation: one versioned document, from which every report is made. It computes nothing."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA_VERSION = 4
"""Of `results.json`. Earlier ones were decided by other rules, and are not read."""

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "MISSING"]
"""MISSING: it was asked for, and could not be measured."""


class Document(BaseModel):
    """What all parts share: nothing unknown gets in, nothing changes, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(Document):
    """A mean with its bounds: the true one lies above `low`, and below `high`, with 95 % each (both with 90 %)."""

    value: float
    low: float
    high: float
    prompts: int
    clips: int


class MetricResult(Document):
    """One metric of one level against the reference.

    Attributes:
        level: Of the bundle; "old" or "new" in a comparison.
        metric: Key in `metrics/table.py`.
        estimate: Over all clips.
        noise_floor: The same metric between two seeds of the reference, if it can be had.
        effect_ratio: R, mean of absolute values over the noise floor's; about 1 means no more than another seed.
        by_category: Mean for each category of prompts.
    """

    level: str
    metric: str
    estimate: Estimate
    noise_floor: Estimate | None = None
    effect_ratio: Estimate | None = None
    by_category: dict[str, float] = {}


class GateResult(Document):
    """One gate of one level.

    Attributes:
        level: Judged.
        metric: Key in `metrics/table.py`.
        kind: "at_most", "at_least", "within" (both sides of zero), "failures" (all of `gates.toml`), "history" and
            "anchor" (against what was accepted last, and first), "paired" (NEW against OLD).
        margin: What is tolerated, in the metric's unit.
        estimate: What was measured; of "history", "anchor" and "paired" how much it changed.
        p_value: Of the verdict's own test; None where none was made.
        verdict: See `gates/judge.py`.
        reason: In one sentence, for people.
        is_beyond: Whether the estimate itself lies beyond the margin.
        needed: Of an INCONCLUSIVE one, how many prompts (of counts: clips) would decide it, if the estimate held.
    """

    level: str
    metric: str
    kind: Literal["at_most", "at_least", "within", "failures", "history", "anchor", "paired"]
    margin: float
    estimate: Estimate | None
    p_value: float | None
    verdict: Verdict
    reason: str
    is_beyond: bool = False
    needed: int | None = None

    @property
    def outcome(self) -> Verdict:
        """What it does to the run: undecided is green on neither side, and beyond the margin it is a failure."""
        return "FAIL" if self.verdict == "INCONCLUSIVE" and self.is_beyond else self.verdict


class CodebookResult(Document):
    """The logit stage of one codebook at one level."""

    level: str
    codebook: int
    frames: int
    kld_mean: float
    kld_median: float
    kld_p99: float
    top1_percent: float
    flip_percent: float | None = None


class Attribution(Document):
    """Which half does the damage: KLD over all codebooks, in nats, with only one half at the level."""

    level: str
    backbone_only: Estimate
    decoder_only: Estimate
    both: Estimate


class MemoryPart(Document):
    """One part of the accounted memory, in bytes."""

    name: str
    bytes: int
    source: str


class Memory(Document):
    """Two numbers that are never one: accounted from what is allocated, measured by NVML. None: not run."""

    accounted: list[MemoryPart]
    measured_peak_bytes: int | None = None
    measured_steady_bytes: int | None = None
    measured_why_not: str = "not run: no GPU"

    @property
    def accounted_bytes(self) -> int:
        """Sum of the parts."""
        return sum(part.bytes for part in self.accounted)


class LevelResult(Document):
    """What a level is, and what it costs.

    Attributes:
        level: "fp16", …; "old" and "new" in a comparison.
        file_bytes: Of everything that the level needs.
        bits_per_weight: Over backbone and depth decoder.
        memory: See `Memory`; None if it was not accounted.
        rtf: Wall time / audio time of the free stage on this machine; None if that was not run.
        ttfa_s: Time to first audio, median; None if not run.
        failures: Number of clips by kind, of the free stage.
        clips: Of the free stage.
        verdict: The worst outcome of its gates; None if nothing was judged.
        why_not_judged: Set for a level that is measured only.
    """

    level: str
    file_bytes: int
    bits_per_weight: float
    memory: Memory | None
    rtf: float | None
    ttfa_s: float | None
    failures: dict[str, int]
    clips: int
    verdict: Verdict | None
    why_not_judged: str | None = None


class Control(Document):
    """A comparison whose outcome is known beforehand. One that does not behave spoils the whole report.

    Attributes:
        name: What was done.
        level: By whose margins it was judged; "" where there are none.
        metric: Of the gate that must fail; "" for a control of equality.
        expected: For people, as `found`.
        found: What came out.
        behaved: Whether that is what was expected.
    """

    name: str
    level: str = ""
    metric: str = ""
    expected: str
    found: str
    behaved: bool


class Rung(Document):
    """One step of the ladder of damages.

    Attributes:
        half: Of the model that was damaged: "backbone", "decoder", or "both".
        strength: Relative error of each scale.
        values: By metric key.
    """

    half: Literal["backbone", "decoder", "both"]
    strength: float
    values: dict[str, Estimate]


class Contour(Document):
    """F0 over time, for a plot: 0 where unvoiced."""

    step_s: float
    f0_hz: list[float]


class Clip(Document):
    """One clip beside its reference: among the worst of a level, to be heard.

    Attributes:
        level: Of the clip.
        prompt: Id in the corpus.
        category: Of the prompt.
        text: What is said.
        seed: Of the noise.
        why: What makes it one of the worst, for people.
        reference_audio: File name beside the results, of the reference's rendition.
        audio: The same of the level's.
        reference_contour: Of the reference's rendition.
        contour: Of the level's.
        metrics: Values of this clip by metric key.
    """

    level: str
    prompt: str
    category: str
    text: str
    seed: int
    why: str
    reference_audio: str
    audio: str
    reference_contour: Contour
    contour: Contour
    metrics: dict[str, float]


class Distribution(Document):
    """All values of a clip scalar at one level, for a plot: e.g. durations in seconds.

    Attributes:
        level: Of the clips.
        name: Of the scalar.
        unit: Of the values.
        values: One a clip.
        shift: Wasserstein distance from the reference's distribution, in the unit; None for the reference itself.
        shift_floor: The same between the reference's seeds, the mean over their pairs; None with a single seed.
    """

    level: str
    name: str
    unit: str
    values: list[float]
    shift: float | None = None
    shift_floor: float | None = None


class Extra(Document):
    """What an instrument says of the clips of free runs (word error rate, speaker similarity, …), or why nothing.

    Attributes:
        name: Of the instrument; where `metrics/table.py` has the same key, it is a metric, and can be gated.
        unit: Of the scores.
        by: What scored: package, version, model; or the function of a user's.
        values: By level, the reference included: the mean score.
        differences: By level: the mean of what each clip's score is above the reference's, of the same prompt and seed.
        without: By level: clips that have no score.
        why_not: Why there is nothing; None if there is.
    """

    name: str
    unit: str
    by: str = ""
    values: dict[str, Estimate] = {}
    differences: dict[str, Estimate] = {}
    without: dict[str, int] = {}
    why_not: str | None = None


class CorpusInfo(Document):
    """What was said."""

    name: str
    sha256: str
    prompts: int
    categories: dict[str, int]
    seeds: list[int]


class ModelInfo(Document):
    """What was evaluated. `manifest_sha256` identifies the bundle, files and all."""

    name: str
    bundle: str
    manifest_sha256: str
    source_sha256: str


class Results(Document):
    """Everything that an evaluation found.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        kind: "run" (levels of a bundle against its reference) or "compare" ("old" and "new" against one reference).
        created: ISO 8601, UTC.
        model: Evaluated.
        reference: Level that the others are held against.
        stages: That were run.
        corpus: What was said.
        settings: Temperature, top-k, resamples, and whatever else would have to be equal in a repetition.
        machine: Of the run: cpu, cores, memory, gpu.
        versions: Of everything that computes: ours, llama-cpp-python, onnxruntime, praat, numpy.
        notes: What a reader must know: partial stages, missing extras, unfinished records.
        missing: What was asked for and could not be measured, each in one sentence.
        ladder: Damages of growing strength, and what the metrics made of them; empty if it was not run.
        verdict: The worst outcome of all gates and of the controls, MISSING if anything is; None if nothing is judged.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run", "compare"]
    created: str
    model: ModelInfo
    reference: str
    stages: list[str]
    corpus: CorpusInfo
    settings: dict[str, Any]
    machine: dict[str, str]
    versions: dict[str, str]
    notes: list[str]
    levels: list[LevelResult]
    metrics: list[MetricResult]
    gates: list[GateResult]
    codebooks: list[CodebookResult]
    attribution: list[Attribution]
    controls: list[Control]
    clips: list[Clip]
    distributions: list[Distribution]
    extras: list[Extra]
    missing: list[str] = []
    ladder: list[Rung] = []
    verdict: Verdict | None


def parsed_results(document: bytes | str) -> Results:
    """The results in a `results.json`. Raises `ValueError` if it is none, or one of another version."""
    found = json.loads(document)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"no results of schema {SCHEMA_VERSION}, which is what this version reads, but {version!r}. "
            "Earlier versions decided by other rules: run `miso-eval run` again"
        )
    try:
        return Results.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"validation error in {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
