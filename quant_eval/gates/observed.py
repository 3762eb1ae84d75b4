"""What one evaluation found, clip by clip, as a file beside its report; and whether another can be compared with it.

It judges nothing. What is accepted of it: see `accepted.py`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from ...core.errors import MisoError
from ...core.files import write_whole
from ..metrics.table import METRICS
from ..results import CorpusInfo, Document, ModelInfo, Results
from ..stats.observations import Observations

SCHEMA_VERSION = 3
"""Of the file beside a report."""
OBSERVATIONS_NAME = "observations.json"
"""In the directory of every evaluation: all that a later one can be held against."""
_DIGITS = 6
"""Significant ones of what is kept: what is compared is rounded on both sides."""

Measured = Mapping[str, Mapping[str, Observations]]
"""By level, then by metric."""
_D = TypeVar("_D", bound=Document)


class AcceptedError(MisoError):
    """An evaluation cannot be accepted, or held against: unreadable, of another schema, or not of this model."""


class Subject(Document):
    """What must be the same for two evaluations to be comparable.

    Attributes:
        model: Name of the model.
        source_sha256: Of the checkpoint that the bundle was made from.
        corpus_sha256: Of what was said.
        reference: Level that the others are held against.
        settings: As in `Results`.
    """

    model: str
    source_sha256: str
    corpus_sha256: str
    reference: str
    settings: dict[str, Any]


class StoredMetric(Document):
    """One metric of one level: a value for each clip of the evaluation, None where it has none.

    Attributes:
        values: In the metric's unit.
        weights: How much each counts; None if all count alike.
    """

    values: list[float | None]
    weights: list[float] | None = None


class Observed(Document):
    """What an evaluation found.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        created: Of the evaluation: ISO 8601, UTC.
        subject: What was evaluated, and how.
        stages: That were run.
        device: Where models computed, as `machine.device` names it.
        instructions: Of the CPU, as `machine.instructions` names them.
        manifest_sha256: Of the bundle: another one of the same checkpoint is what gets compared.
        versions: Of everything that computed.
        instruments: What scored, by metric.
        prompts: Of each clip.
        seeds: Of each clip.
        levels: By level and metric; without the reference.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    subject: Subject
    stages: list[str]
    device: str
    instructions: str
    manifest_sha256: str
    versions: dict[str, str]
    prompts: list[str]
    seeds: list[int]
    levels: dict[str, dict[str, StoredMetric]]
    instruments: dict[str, str] = Field(default_factory=dict)

    @property
    def needs(self) -> set[str]:
        """What the metrics that it has needed: see `Metric.needs`."""
        return {METRICS[metric].needs for metrics in self.levels.values() for metric in metrics if metric in METRICS}

    @property
    def kind(self) -> tuple[str, str]:
        """The kind of machine: device and instructions. Others say other things, and are held against their own."""
        return self.device, self.instructions

    def metric(self, level: str, metric: str) -> Observations | None:
        """As arrays; None if it was not measured. Raises `ValueError` if they do not fit together."""
        stored = self.levels.get(level, {}).get(metric)
        if stored is None:
            return None
        weights = stored.weights if stored.weights is not None else [1.0] * len(stored.values)
        if not len(self.prompts) == len(self.seeds) == len(stored.values) == len(weights):
            raise ValueError(f"{metric} of {level} has not one value and one weight for each clip")
        rows = [
            (prompt, seed, value, weight)
            for prompt, seed, value, weight in zip(self.prompts, self.seeds, stored.values, weights, strict=True)
            if value is not None
        ]
        if not rows:
            return None
        prompts, seeds, values, kept = zip(*rows, strict=True)
        return Observations(np.array(prompts, np.str_), np.array(seeds, object), np.array(values), np.array(kept))


def subject_of(model: ModelInfo, corpus: CorpusInfo, reference: str, settings: Mapping[str, Any]) -> Subject:
    """What the parts of `Results` say. Settings come as JSON gives them back: lists for tuples, text for keys."""
    return Subject(
        model=model.name,
        source_sha256=model.source_sha256,
        corpus_sha256=corpus.sha256,
        reference=reference,
        settings=json.loads(json.dumps(dict(settings))),
    )


def observed_of(results: Results, measured: Measured) -> Observed:
    """The observations of an evaluation as they are kept: rounded."""
    clips = sorted({clip for metrics in measured.values() for found in metrics.values() for clip in found.clips})
    where = {clip: index for index, clip in enumerate(clips)}
    return Observed(
        created=results.created,
        subject=subject_of(results.model, results.corpus, results.reference, results.settings),
        stages=results.stages,
        device=results.machine.get("device", ""),
        instructions=results.machine.get("instructions", ""),
        manifest_sha256=results.model.manifest_sha256,
        versions=results.versions,
        prompts=[prompt for prompt, _ in clips],
        seeds=[seed for _, seed in clips],
        levels={
            level: {metric: _stored(found, where) for metric, found in metrics.items()}
            for level, metrics in measured.items()
        },
        instruments={each.name: each.by for each in results.extras if each.why_not is None and each.name in METRICS},
    )


def _stored(found: Observations, where: Mapping[tuple[str, int], int]) -> StoredMetric:
    values: list[float | None] = [None] * len(where)
    weights = [0.0] * len(where)
    for clip, value, weight in zip(found.clips, found.values.tolist(), found.weights.tolist(), strict=True):
        values[where[clip]], weights[where[clip]] = _rounded(value), _rounded(weight)
    return StoredMetric(values=values, weights=None if (found.weights == 1).all() else weights)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def check_comparable(subject: Subject, was: Subject) -> None:
    """Raise `AcceptedError`, in one line, if what was accepted is of another model, corpus or settings."""
    differences = [
        f"{label} is {mine!r}, the accepted one's {theirs!r}"
        for label, mine, theirs in (
            ("model", subject.model, was.model),
            ("checkpoint", subject.source_sha256[:12], was.source_sha256[:12]),
            ("corpus", subject.corpus_sha256[:12], was.corpus_sha256[:12]),
            ("level compared with", subject.reference, was.reference),
            *(
                (f"setting {key}", subject.settings.get(key), was.settings.get(key))
                for key in sorted(subject.settings.keys() | was.settings.keys())
            ),
        )
        if mine != theirs
    ]
    if differences:
        raise AcceptedError(
            f"this evaluation cannot be compared with the accepted one: {'; '.join(differences)}. "
            "Begin another file with `miso-eval accept`"
        )


def load_observed(report: Path) -> Observed:
    """What the evaluation in the directory `report` found.

    Raises:
        FileNotFoundError: If it was not run to its end.
        AcceptedError: If the file is damaged, or of another schema.
    """
    path = report / OBSERVATIONS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `miso-eval run … --out {report}` to the end first")
    return load_document(path, Observed, SCHEMA_VERSION, "observations", "Run `miso-eval run` again", check_observed)


def check_observed(observed: Observed) -> None:
    """Raise `ValueError` if lists do not fit together."""
    for level, metrics in observed.levels.items():
        for metric in metrics:
            observed.metric(level, metric)


# Both files


def load_document(path: Path, of: type[_D], version: int, what: str, remedy: str, check: Callable[[_D], None]) -> _D:
    """A JSON file as a document, checked. Raises `AcceptedError`, in one line, for all that is wrong with it."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise AcceptedError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise AcceptedError(f"{path}: no {what}, because no JSON ({error}). {remedy}") from error
    if not isinstance(document, dict) or "schema_version" not in document:
        raise AcceptedError(f"{path}: no {what}, because it has no schema_version. {remedy}")
    if document["schema_version"] != version:
        found = document["schema_version"]
        raise AcceptedError(f"{path}: {what} of schema {found!r}, this program reads {version}. {remedy}")
    try:
        parsed = of.model_validate(document)
        check(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AcceptedError(f"{path}: damaged, {where}: {first['msg']}. {remedy}") from error
    except ValueError as error:
        raise AcceptedError(f"{path}: damaged, {error}. {remedy}") from error
    return parsed


def write_document(document: Document, path: Path) -> None:
    """Write it as JSON whose differences can be read, whole or not at all. Raises `AcceptedError` if it cannot be."""
    text = json.dumps(document.model_dump(), indent=1, allow_nan=False)
    # A line for each list. A line break never is part of a JSON string.
    lines = re.sub(r"\[\n[^\[\]{}]*\n *\]", lambda found: re.sub(r"\n *", "", found[0]), text) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lines.encode())
    except OSError as error:
        raise AcceptedError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
