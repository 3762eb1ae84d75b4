"""The order of a report, the same in every format, and where its numbers come from."""

import json
from collections.abc import Mapping
from typing import Any

from ..results import Results
from .sections import clips, controls, costs, instruments, quality, recordings, verdicts
from .view import Cell, Section, Table, heads
from .words import label_of, listed, stage_name


def sections(results: Results) -> list[Section]:
    """All of them, verdicts first. Those with nothing to show say why; of recordings nothing is said without any."""
    return [
        verdicts.verdicts(results),
        costs.costs(results),
        quality.codebooks(results),
        quality.attribution(results),
        *([recordings.recordings(results)] if recordings.has_recordings(results) else []),
        clips.f0(results),
        quality.distributions(results),
        quality.noise_floor(results),
        costs.pareto(results),
        clips.clips(results),
        quality.metrics(results),
        instruments.instruments(results),
        controls.controls(results),
        controls.ladder(results),
        origin(results),
    ]


def title(results: Results) -> str:
    """What the report is about."""
    kind = "NEW against OLD" if results.kind == "compare" else "what quantisation costs"
    return f"{results.model.name}: {kind}"


def basis(results: Results) -> str:
    """In one sentence, what the numbers rest on."""
    corpus = results.corpus
    stages = listed(stage_name(stage) for stage in results.stages) or "no stage"
    levels = [label_of(level.level) for level in results.levels if level.level != results.reference]
    seeds = f"{len(corpus.seeds)} seed{'s' if len(corpus.seeds) != 1 else ''}"
    return (
        f"{listed(levels) or 'Nothing'} against {label_of(results.reference)}, {corpus.prompts} prompts of "
        f"“{corpus.name}” with {seeds}; {stages}. {results.created}."
    )


def origin(results: Results) -> Section:
    """What would have to be equal in a repetition."""
    section = Section("origin", "Where this comes from", "What would have to be equal for the same numbers.")
    model, corpus = results.model, results.corpus
    evaluated = {
        "model": model.name,
        "bundle": model.bundle,
        "manifest sha256": model.manifest_sha256,
        "source sha256": model.source_sha256,
        "reference": results.reference,
        "stages": ", ".join(results.stages) or "none",
        "created": results.created,
        "schema version": results.schema_version,
    }
    said = {
        "corpus": corpus.name,
        "corpus sha256": corpus.sha256,
        "prompts": corpus.prompts,
        **{f"prompts, {category}": count for category, count in corpus.categories.items()},
        "seeds": ", ".join(map(str, corpus.seeds)) or "none",
    }
    named = {
        "Evaluated": evaluated,
        "Corpus": said,
        "Settings": results.settings,
        "Machine": results.machine,
        "Versions": results.versions,
    }
    return section.of(*(_pairs(caption, pairs) for caption, pairs in named.items() if pairs))


def _pairs(caption: str, pairs: Mapping[str, Any]) -> Table:
    rows = tuple((Cell(name), Cell(_plain(value))) for name, value in pairs.items())
    return Table(caption, heads("", ""), rows, words=frozenset({0, 1}))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
