"""The last accepted evaluation as a file, clip by clip, and whether another one can be compared with it.

It judges nothing: see `history.py`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ...core.errors import MisoError
from ...core.files import write_whole
from ..old_names import renamed
from ..results import SCHEMA_VERSION, CorpusInfo, Document, Estimate, ModelInfo, Results
from ..stats.bootstrap import RESAMPLES, SEED
from ..stats.estimates import estimate
from ..stats.observations import Observations

_RENEW = "Accept a new one with `miso-eval accept`."

Measured = Mapping[str, Mapping[str, Observations]]
"""By level, then by metric."""


class AcceptedError(MisoError):
    """An accepted evaluation cannot be used: unreadable, of another schema, or not of this evaluation."""


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
    """One metric of one level: what was found, clip by clip."""

    estimate: Estimate
    prompts: list[str]
    seeds: list[int]
    values: list[float]
    weights: list[float]

    def observations(self) -> Observations:
        """As arrays. Raises `ValueError` if they do not fit together."""
        return Observations(
            np.array(self.prompts, np.str_), np.array(self.seeds, object), np.array(self.values), np.array(self.weights)
        )


class Accepted(Document):
    """The last accepted evaluation.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        created: Of the evaluation: ISO 8601, UTC.
        subject: What was evaluated, and how.
        manifest_sha256: Of the bundle: for people; another bundle of the same checkpoint is what gets compared.
        versions: Of everything that computed: for people.
        levels: By level and metric.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    subject: Subject
    manifest_sha256: str
    versions: dict[str, str]
    levels: dict[str, dict[str, StoredMetric]]


def subject_of(model: ModelInfo, corpus: CorpusInfo, reference: str, settings: Mapping[str, Any]) -> Subject:
    """What the parts of `Results` say. Settings come as JSON gives them back: lists for tuples, text for keys."""
    return Subject(
        model=model.name,
        source_sha256=model.source_sha256,
        corpus_sha256=corpus.sha256,
        reference=reference,
        settings=json.loads(json.dumps(dict(settings))),
    )


def save_accepted(
    results: Results, observations: Measured, path: Path, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Accepted:
    """Write an evaluation so that it can be accepted, whole or not at all.

    Raises:
        AcceptedError: If the file cannot be written; one that was there is left as it was.
        ValueError: If there is nothing to write.
    """
    if not any(observations.values()):
        raise ValueError("there is nothing to accept: no level was measured")
    levels = {
        level: {
            metric: StoredMetric(
                estimate=estimate(found, resamples, seed),
                prompts=found.prompts.tolist(),
                seeds=found.seeds.tolist(),
                values=found.values.tolist(),
                weights=found.weights.tolist(),
            )
            for metric, found in metrics.items()
        }
        for level, metrics in observations.items()
    }
    accepted = Accepted(
        created=results.created,
        subject=subject_of(results.model, results.corpus, results.reference, results.settings),
        manifest_sha256=results.model.manifest_sha256,
        versions=results.versions,
        levels=levels,
    )
    write_accepted(accepted, path)
    return accepted


def write_accepted(accepted: Accepted, path: Path) -> None:
    """Write `accepted`, whole or not at all. Raises `AcceptedError` if it cannot be written."""
    content = _as_text(accepted).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise AcceptedError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def load_accepted(path: Path) -> Accepted:
    """Read what `save_accepted` wrote, in this version or an earlier one.

    Raises:
        FileNotFoundError: If it is not there.
        AcceptedError: If it is no accepted evaluation, or one of another schema.
    """
    try:
        document = renamed(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: there is no accepted evaluation. Write one with `miso-eval accept`."
        ) from error
    except OSError as error:
        raise AcceptedError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise AcceptedError(f"{path}: no accepted evaluation, because no JSON ({error}). {_RENEW}") from error
    if not isinstance(document, dict) or "schema_version" not in document:
        raise AcceptedError(f"{path}: no accepted evaluation, because it has no schema_version. {_RENEW}")
    if document["schema_version"] != SCHEMA_VERSION:
        found = document["schema_version"]
        raise AcceptedError(
            f"{path}: an accepted evaluation of schema {found!r}, this program reads {SCHEMA_VERSION}. {_RENEW}"
        )
    try:
        accepted = Accepted.model_validate(document)
        for metrics in accepted.levels.values():
            for stored in metrics.values():
                stored.observations()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AcceptedError(f"{path}: damaged accepted evaluation, {where}: {first['msg']}. {_RENEW}") from error
    except ValueError as error:
        raise AcceptedError(f"{path}: damaged accepted evaluation, {error}. {_RENEW}") from error
    return accepted


def check_comparable(subject: Subject, accepted: Accepted) -> None:
    """Raise `AcceptedError`, in one line, if what was accepted is of another model, corpus or settings."""
    was = accepted.subject
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
            f"this evaluation cannot be compared with the accepted one: {'; '.join(differences)}. {_RENEW}"
        )


def _as_text(accepted: Accepted) -> str:
    """JSON whose differences can be read: a line for each list. A line break never is part of a JSON string."""
    text = json.dumps(accepted.model_dump(), indent=1, allow_nan=False)
    return re.sub(r"\[\n[^\[\]{}]*\n *\]", lambda found: re.sub(r"\n *", "", found[0]), text) + "\n"
