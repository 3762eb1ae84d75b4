"""What a reader must know that is no number: which files, what was left out, why a level is not judged."""

from collections.abc import Sequence

from ..models.levels import F32, FP16
from ..native.gguf_file import GgufFile
from .corpus import BUILTIN, Corpus
from .gates.config import Gates
from .metric import STAGES
from .run.candidate import Candidate
from .run.plan import Plan
from .run.record import Record
from .run.stages import TARGET
from .stats.estimates import FEWEST_PROMPTS


def notes_of(plan: Plan, records: Sequence[Record], kind: str) -> list[str]:
    """A sentence each, of an evaluation of this `Results.kind`."""
    notes = [
        f"{each.name}: level {each.level} of {each.files.directory.resolve().name}, files {each.digest[:12]}"
        f"{_imatrix(each)}"
        for each in plan.candidates
    ]
    notes.append(f"speed: {plan.engine.threads} threads a process; the codec after the first frame is not in RTF")
    notes += [note for each in plan.candidates for note in _heard_before(each, plan.corpus)]
    if kind != "compare":  # whose gates have controls of their own
        notes += _without_control(plan)
    if plan.finer is not None:
        finer = plan.finer.reference
        notes.append(
            f"{plan.reference.name} is shown and judged against {finer.name} (files {finer.digest[:12]}), all others "
            f"against {plan.reference.name}; that it equals itself is a control"
        )
    if not plan.corpus.spoken:
        notes.append("every prompt is a recording, beside which nothing is spoken freely")
    targets = [record for record in records if record.stage == TARGET]
    empty = [record.key for record in targets if not record.detail["codes"]]
    if not empty:
        return notes
    return [*notes, f"{plan.reference.name} said nothing in {len(empty)} clips; these are in no stage"]


def _imatrix(candidate: Candidate) -> str:
    """By what it was quantised."""
    files = candidate.files.manifest.levels[candidate.level]
    used = {"backbone": files.imatrix_backbone, "depth decoder": files.imatrix_decoder}
    named = [f"{part} {sha256[:12]}" for part, sha256 in used.items() if sha256]
    return f", importance matrix: {' and '.join(named)}" if named else ""


def _heard_before(candidate: Candidate, corpus: Corpus) -> list[str]:
    """That its importance matrix was made of what it is judged on, if its files say so: they name the first of many."""
    level = candidate.files
    paths = {"backbone": level.backbone, "decoder": level.decoder}
    for part in level.manifest.levels[candidate.level].weighed:
        with GgufFile(paths[part]) as file:
            heard = str(file.keys().get("quantize.imatrix.dataset", ""))
        if any(_is_of(said, heard) for said in corpus.parts or (corpus,)):
            return [
                f"{candidate.name}: its importance matrix heard {heard.partition(',')[0]}, of which it is judged here: "
                "what it gained there it may not gain elsewhere. Judge it on other prompts: --corpus FILE"
            ]
    return []


def _is_of(corpus: Corpus, heard: str) -> bool:
    """Whether what was heard is of a corpus: a part of a built-in one has a hash of its own."""
    source = corpus.name.partition(":")[0]
    return corpus.sha256[:12] in heard or (source in BUILTIN and heard.startswith((f"{source} ", f"{source}:")))


def _without_control(plan: Plan) -> list[str]:
    """Which gates nothing shows to be able to fail, and why."""
    if not plan.controls:
        return [
            "no gate was seen to fail: controls were not asked for, there is no level beside the reference, "
            f"or fewer than {FEWEST_PROMPTS} prompts"
        ]
    left_out = [stage for stage in STAGES if stage not in plan.stages]
    return [f"gates of {' and '.join(left_out)} have no control: not run"] if left_out else []


def why_not_judged(plan: Plan, candidate: Candidate, gates: Gates) -> str | None:
    """Why a level takes no part in verdicts; None if it does. Nothing is judged against itself."""
    if candidate != plan.reference or plan.finer is not None:
        return gates.why_not_judged(candidate.level)
    if candidate.level != FP16.key:
        return f"{candidate.name} is what the others are held against"
    directory = candidate.files.directory
    if F32.key in candidate.files.manifest.levels:
        return f"not run: level {F32.label} of {directory.name} was left out"
    return (
        f"not run: no {F32.label} level in the bundle, by which to judge {FP16.label} "
        f"(miso-convert CHECKPOINT --quant {F32.key} --out {directory} adds it)"
    )
