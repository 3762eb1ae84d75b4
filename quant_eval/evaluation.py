"""An evaluation from plan to results: the work, the memory, the extras, the verdicts, the history."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from .accept import BASELINE_NAME
from .baseline import load_baseline, save_baseline, subject_of
from .extras import ExtraClip, measure_all
from .gates import load_gates, worst
from .history import compare_to_baseline
from .layers import FREE
from .metrics import METRICS
from .record import Record
from .records import Records
from .results import Memory, Results
from .summary import Judged, Measured, summarise
from .vram import memory_of
from .work import Plan, evaluate


@dataclass(frozen=True)
class Wanted:
    """What is to be done with a plan beside its work.

    Attributes:
        kind: "run" or "compare".
        processes: To share the work.
        gates: A TOML file, or None for the default.
        history: A baseline file, or None.
        vram: Whether to look at memory.
        extras: See `extras.make_extra`.
    """

    kind: str = "run"
    processes: int = 1
    gates: Path | None = None
    history: Path | None = None
    vram: bool = True
    extras: Sequence[str] = ()


@dataclass(frozen=True)
class Finished:
    """An evaluation that is done."""

    results: Results


def evaluate_plan(plan: Plan, wanted: Wanted, progress: Callable[[int], None] = lambda _done: None) -> Finished:
    """Do it all. What can be wrong with the files that were given is found out before any work."""
    gates = load_gates(wanted.gates)
    history = load_baseline(wanted.history) if wanted.history is not None else None
    evaluate(plan, wanted.processes, progress)
    with Records.open(plan.records, plan.fingerprint) as store:
        names = {each.name for each in (*plan.contenders, plan.damaged) if each is not None}
        records = [record for record in store if record.level in names and record.seed in plan.seeds]
    memories: dict[str, Memory] = {}
    notes: list[str] = []
    for contender in plan.contenders if wanted.vram else ():
        memories[contender.name], said = memory_of(contender.bundle, contender.level)
        notes += [note for note in said if note not in notes]
    extras = measure_all(wanted.extras, lambda: _clips(plan, records))
    judged = summarise(plan, records, gates, kind=wanted.kind, memories=memories, extras=extras, notes=notes)
    results = judged.results
    if kept := _without_controls(plan, judged):
        save_baseline(results, kept, plan.out / BASELINE_NAME)
    if history is not None:
        subject = subject_of(results.model, results.corpus, results.baseline, results.settings)
        verdicts = compare_to_baseline(
            subject, _without_controls(plan, judged), history, gates.only(plan.layers).history
        )
        overall = worst([results.verdict, *(verdict.verdict for verdict in verdicts)])
        results = results.model_copy(update={"gates": [*results.gates, *verdicts], "verdict": overall})
    return Finished(results)


def _without_controls(plan: Plan, judged: Judged) -> Measured:
    """What a later evaluation can be held against: the metrics of the levels that are not controls."""
    return {
        each.name: {metric: found for metric, found in judged.measured[each.name].items() if metric in METRICS}
        for each in plan.contenders
        if each != plan.baseline and each.name in judged.measured
    }


def _clips(plan: Plan, records: Sequence[Record]) -> Iterator[ExtraClip]:
    texts = {prompt.id: prompt.text for prompt in plan.corpus.prompts}
    base = {(r.prompt, r.seed): r for r in records if r.layer == FREE and r.level == plan.baseline.name}
    for record in records:
        if record.layer == FREE and (record.prompt, record.seed) in base:
            samples, _ = soundfile.read(plan.audio / record.files["audio"], dtype="float32")
            reference, _ = soundfile.read(plan.audio / base[record.prompt, record.seed].files["audio"], dtype="float32")
            yield ExtraClip(record.level, texts[record.prompt], samples, reference)
