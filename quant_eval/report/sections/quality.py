"""What was measured on logits and speech, as tables. Does not know the formats."""

import numpy as np

from ...metric import FREE, LOGITS, STAGES
from ...metrics.failures import FAILURES
from ...metrics.table import METRICS
from ...results import Attribution, CodebookResult, Distribution, Estimate, MetricResult, Results
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import BOUNDS, label_of, measured, metric_of, number, quantity, spread, stage_name, with_unit
from .costs import KLD_DIGITS, NOT_RUN

_QUANTILES = (5, 25, 50, 75, 95)


def codebooks(results: Results) -> Section:
    """KLD, top-1 and flips of each codebook."""
    section = Section(
        "codebooks",
        "KLD by codebook",
        "How far each level's next-code distribution is from the reference's, when both have heard the same codes. "
        "Codebook 0 carries the words and the rhythm; the others carry the sound.",
    )
    if not results.codebooks:
        return section.without(_not_run(results, LOGITS))
    head = heads("Codebook", "Mean (nats)", "Median", "99th percentile", "Top-1 (%)", "Flips (%)", "Frames")
    levels = dict.fromkeys(entry.level for entry in results.codebooks)
    return section.of(
        *(
            Table(
                f"{label_of(level)}: KLD and agreement by codebook",
                head,
                tuple(_codebook_row(entry) for entry in results.codebooks if entry.level == level),
                is_folded=True,
            )
            for level in levels
        )
    )


def attribution(results: Results) -> Section:
    """The cross of {backbone, depth decoder} x {reference, level}."""
    section = Section(
        "attribution",
        "Which half does the damage",
        "KLD over all codebooks with only one half of the model at the level and the other at the reference.",
    )
    if not results.attribution:
        return section.without(_not_run(results, LOGITS))
    head = heads("Level", "Backbone", "Depth decoder", "Both", "Mostly from")
    rows = tuple(_attribution_row(entry) for entry in results.attribution)
    return section.of(
        Table(f"KLD in nats, mean and {BOUNDS}, by the half that is at the level", head, rows, words=frozenset({0, 4}))
    )


def distributions(results: Results) -> Section:
    """Quantiles of durations and pauses, and the clips that failed."""
    section = Section(
        "distributions",
        "Durations, pauses and failures",
        "All clips of the free run. A level may be right on average and still have a tail: the shift is how far its "
        "values would have to be moved to be the reference's (Wasserstein distance). Two seeds of the reference have "
        "one too, and only what is above that says anything. It is shown and not judged: what it finds, the "
        "paired mean or the effect ratio R finds with fewer clips.",
    )
    has_failures = any(level.clips for level in results.levels)
    if not results.distributions and not has_failures:
        return section.without(_not_run(results, FREE))
    names = dict.fromkeys((entry.name, entry.unit) for entry in results.distributions)
    tables = [
        _quantile_table(name, unit, [entry for entry in results.distributions if entry.name == name])
        for name, unit in names
    ]
    if any(entry.shift is not None for entry in results.distributions):
        tables.append(_shift_table(results))
    if has_failures:
        tables.append(_failure_table(results))
    return section.of(*tables)


def noise_floor(results: Results) -> Section:
    """Effect ratios: each difference in units of the difference between two seeds."""
    section = Section(
        "noise",
        "Against the noise floor",
        "The same model says a sentence differently with another seed. R is a level's difference over that one: "
        "about 1 means no more than another seed, which counts for something only if the logits agree as well.",
    )
    found = [entry for entry in results.metrics if can_be_scaled(entry)]
    if not found:
        return section.without(
            "Not run: without the free stage and two seeds of the reference there is no noise floor."
        )
    levels = _levels_of(found)
    rows = []
    for key in _ordered({entry.metric for entry in found}):
        by_level = {entry.level: entry for entry in found if entry.metric == key}
        metric = metric_of(key)
        floor = next(entry.noise_floor for entry in by_level.values())
        assert floor is not None
        ratios = (by_level[level].effect_ratio if level in by_level else None for level in levels)
        cells = (NOTHING if ratio is None else _estimated(ratio, 2) for ratio in ratios)
        rows.append((Cell(metric.label, metric.unit), _estimated(floor, metric.digits), *cells))
    head = (Cell("Metric"), Cell("Between seeds"), *(Cell(label_of(level)) for level in levels))
    caption = f"The difference between two seeds, and R of each level, {BOUNDS}"
    return section.of(Table(caption, head, tuple(rows)))


def metrics(results: Results) -> Section:
    """Everything in full, with definitions."""
    section = Section(
        "metrics", "All metrics", f"Mean and {BOUNDS}, by bootstrap over prompts, each level's own clips."
    )
    if not results.metrics:
        return section.without("No metric was measured.")
    tables = [_metric_table(results, stage) for stage in STAGES]
    return section.of(*(table for table in tables if table.rows), *_category_tables(results))


def can_be_scaled(entry: MetricResult) -> bool:
    """Whether R says something: there is a noise floor, and the metric is a difference, so that 0 means none."""
    return entry.noise_floor is not None and metric_of(entry.metric).direction != "higher"


def _metric_table(results: Results, stage: str) -> Table:
    found = [entry for entry in results.metrics if metric_of(entry.metric).stage == stage]
    levels = _levels_of(found)
    rows = []
    for key in _ordered({entry.metric for entry in found}):
        metric = metric_of(key)
        by_level = {entry.level: entry for entry in found if entry.metric == key}
        cells = (_measured(results, by_level[level]) if level in by_level else NOTHING for level in levels)
        rows.append((Cell(metric.label, quantity(metric), metric.definition), *cells))
    head = (Cell("Metric"), *(Cell(label_of(level)) for level in levels))
    return Table(f"Stage: {stage_name(stage)}", head, tuple(rows), is_wide=True)


def _category_tables(results: Results) -> list[Table]:
    found = [entry for entry in results.metrics if entry.by_category]
    categories = list(dict.fromkeys(name for entry in found for name in entry.by_category))
    tables = []
    for level in _levels_of(found):
        rows = []
        for entry in sorted((e for e in found if e.level == level), key=lambda entry: _rank(entry.metric)):
            metric = metric_of(entry.metric)
            means = (entry.by_category.get(name) for name in categories)
            cells = (NOTHING if mean is None else Cell(number(mean, metric.digits)) for mean in means)
            rows.append((Cell(metric.label, metric.unit), *cells))
        head = (Cell("Metric"), *map(Cell, categories))
        tables.append(
            Table(f"{label_of(level)}: means by category of prompts", head, tuple(rows), is_folded=True, is_wide=True)
        )
    return tables


def _quantile_table(name: str, unit: str, entries: list[Distribution]) -> Table:
    head = heads("Level", "Clips", *(with_unit(str(quantile), "%") for quantile in _QUANTILES))
    rows = []
    for entry in entries:
        cells = [NOTHING] * len(_QUANTILES)
        if entry.values:
            cells = [Cell(number(float(value), 2)) for value in np.percentile(entry.values, _QUANTILES)]
        rows.append((Cell(label_of(entry.level)), Cell(str(len(entry.values))), *cells))
    return Table(f"{name} ({unit}), quantiles" if unit else f"{name}, quantiles", head, tuple(rows))


def _shift_table(results: Results) -> Table:
    """Level x scalar: how far its distribution is from the reference's, over how far those of two seeds are apart."""
    shifted = [entry for entry in results.distributions if entry.shift is not None]
    names = dict.fromkeys((entry.name, entry.unit) for entry in shifted)
    rows = []
    for level in dict.fromkeys(entry.level for entry in shifted):
        by_name = {entry.name: entry for entry in shifted if entry.level == level}
        cells = (_shift(by_name[name]) if name in by_name else NOTHING for name, _ in names)
        rows.append((Cell(label_of(level)), *cells))
    head = (Cell("Level"), *(Cell(f"{name} ({unit})" if unit else name) for name, unit in names))
    return Table("Shift from the reference's distribution", head, tuple(rows))


def _shift(entry: Distribution) -> Cell:
    assert entry.shift is not None
    floor = "no other seed" if entry.shift_floor is None else f"between seeds {number(entry.shift_floor, 3)}"
    return Cell(number(entry.shift, 3), floor)


def _failure_table(results: Results) -> Table:
    kinds = list(dict.fromkeys([*FAILURES, *(kind for level in results.levels for kind in level.failures)]))
    head = heads("Level", "Clips", *(kind.replace("_", " ") for kind in kinds))
    rows = tuple(
        (
            Cell(label_of(level.level)),
            Cell(str(level.clips)),
            *(Cell(str(level.failures.get(kind, 0))) for kind in kinds),
        )
        for level in results.levels
        if level.clips
    )
    return Table("Clips that failed", head, rows)


def _codebook_row(entry: CodebookResult) -> tuple[Cell, ...]:
    klds = (entry.kld_mean, entry.kld_median, entry.kld_p99)
    return (
        Cell(str(entry.codebook)),
        *(Cell(number(kld, KLD_DIGITS)) for kld in klds),
        Cell(number(entry.top1_percent, 2)),
        NOT_RUN if entry.flip_percent is None else Cell(number(entry.flip_percent, 2)),
        Cell(f"{entry.frames:,}"),
    )


def _attribution_row(entry: Attribution) -> tuple[Cell, ...]:
    halves = (entry.backbone_only, entry.decoder_only, entry.both)
    return Cell(label_of(entry.level)), *(_estimated(half, KLD_DIGITS) for half in halves), Cell(worse_half(entry))


def worse_half(entry: Attribution) -> str:
    """The half with the larger KLD, if the one's bounds are beyond the other's."""
    backbone, decoder = entry.backbone_only, entry.decoder_only
    if backbone.low > decoder.high:
        return "backbone"
    return "depth decoder" if decoder.low > backbone.high else "cannot be told"


def _estimated(estimate: Estimate, digits: int) -> Cell:
    return Cell(number(estimate.value, digits), spread(estimate, digits))


def _measured(results: Results, entry: MetricResult) -> Cell:
    """Shares of clips that fail are counts, whose bounds are those of their gate, not of a bootstrap."""
    metric = metric_of(entry.metric)
    if not metric.counts_failures:
        return _estimated(entry.estimate, metric.digits)
    gates = (gate for gate in results.gates if (gate.level, gate.kind) == (entry.level, "failures"))
    gate = next(gates, None)
    return Cell(*measured(gate)) if gate is not None else Cell(number(entry.estimate.value, metric.digits))


def _levels_of(entries: list[MetricResult]) -> list[str]:
    return list(dict.fromkeys(entry.level for entry in entries))


def _rank(key: str) -> int:
    return list(METRICS).index(key) if key in METRICS else len(METRICS)


def _ordered(keys: set[str]) -> list[str]:
    """In the order of the table of metrics; unknown ones last."""
    return sorted(keys, key=lambda key: (_rank(key), key))


def _not_run(results: Results, stage: str) -> str:
    if stage in results.stages:
        return f"The stage “{stage_name(stage)}” was run, and gave nothing to show here."
    return f"Not run: the stage “{stage_name(stage)}” was not asked for."
