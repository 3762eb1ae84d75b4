"""The work of an evaluation, clip by clip: resumable, and the same records in one process or several.

First the reference says everything and keeps its logits; then each candidate, the reference itself among them, is held
against that. A clip depends on nothing but its prompt, its seed and the bundle, so who computes it does not matter.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise

from ...core.interrupts import interruptible, unasked_children
from ...runtime.bundle import OpenLevel
from ..corpus import Prompt
from ..metric import FREE, LOGITS, ONE_STEP
from .candidate import Candidate, DepthDecoderOnly, LoadedCandidate
from .plan import Plan
from .record import Record, RecordKey
from .record_store import Records
from .reference_logits import ReferenceLogits, clip_key
from .stages import (
    BASIS,
    FLOOR,
    TARGET,
    Target,
    basis_record,
    floor_record,
    free_record,
    keep_reference_logits,
    logits_record,
    one_step_record,
    speak_target,
)

_INTERRUPTED = 2
Progress = Callable[[int], None]
"""Called with the number of clips done."""


def evaluate(plan: Plan, processes: int = 1, progress: Progress = lambda _done: None) -> None:
    """Do what is not done yet. Errors as `MisoTTS.load` and `Records.open`; what was done stays."""
    shards = [plan.corpus.prompts[index::processes] for index in range(processes)]
    done = _Counter(progress)
    if processes == 1:
        say_targets(plan, shards[0], "main", done.add)
        for candidate in _in_turn(plan, done):
            hold_against(plan, candidate, shards[0], "main", done.add)
        return
    with unasked_children():  # among them the one that Python starts to keep its books
        executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    with executor as pool, _ended_with_us():
        # One writer a part file: a candidate's clips go where its prompts' targets went.
        parts = [(shard, f"p{index}") for index, shard in enumerate(shards) if shard]
        _all_done(pool, [partial(say_targets, plan, shard, part) for shard, part in parts], done)
        for candidate in _in_turn(plan, done):
            _all_done(pool, [partial(hold_against, plan, candidate, shard, part) for shard, part in parts], done)


def _all_done(pool: ProcessPoolExecutor, work: Sequence[Callable[[], int]], done: "_Counter") -> None:
    """Do it all; at the first error what has not begun is left."""
    with unasked_children():
        futures = [pool.submit(_worker, job) for job in work]
    finished, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    for future in finished:
        done.add(future.result())


def _in_turn(plan: Plan, done: "_Counter") -> Iterator[Candidate]:
    """All candidates; a damaged one only if something of it is not measured yet, and only while it is measured."""
    yield from plan.candidates
    for damage in plan.damages:
        if _is_measured(plan, damage.candidate):
            done.add(sum(len(plan.seeds_of(damage.candidate, prompt)) for prompt in plan.corpus.prompts))
            continue
        with damage.copied(plan.copies) as candidate:
            yield candidate


def _is_measured(plan: Plan, candidate: Candidate) -> bool:
    with Records.open(plan.records, plan.fingerprint) as records:
        return not any(
            _missing(plan, records, candidate, prompt, seed)
            for prompt in plan.corpus.prompts
            for seed in plan.seeds_of(candidate, prompt)
            if len(_target(plan, records, prompt, seed).codes)
        )


@contextmanager
def _ended_with_us() -> Iterator[None]:
    """After an interrupt the processes that were started meanwhile are asked to end, or they would first be done."""
    others = multiprocessing.active_children()
    try:
        yield
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        raise


def _worker(job: Callable[[], int]) -> int:
    """The job, in a process of its own. Asked to end it cleans up, and ends: there is no next job to wait for."""
    try:
        with interruptible():
            return job()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)


class _Counter:
    def __init__(self, progress: Progress) -> None:
        self._done, self._progress = 0, progress

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._done)


def say_targets(plan: Plan, prompts: Sequence[Prompt], part: str, progress: Progress = lambda _count: None) -> int:
    """The reference's part: speak, keep the logits that some candidate still needs, compare seeds. Clips done."""
    name, count = plan.reference.key, 0
    with ExitStack() as stack:
        records = stack.enter_context(Records.open(plan.records, plan.fingerprint, part=part))
        loaded: LoadedCandidate | None = None
        for prompt in prompts:
            for seed in plan.seeds_for(prompt):
                wanted = _wanted_of_reference(plan, records, prompt, seed)
                if wanted and loaded is None:
                    loaded = stack.enter_context(LoadedCandidate(plan.reference, plan.engine))
                    store = ReferenceLogits(plan.out / "logits", loaded.tts.engine.spec)
                if loaded is not None and wanted:
                    if TARGET in wanted:
                        records.append(speak_target(loaded, prompt, seed, plan.options))
                    target = Target.of(prompt, _found(records, TARGET, name, prompt, seed))
                    if BASIS in wanted and len(target.codes):
                        records.append(basis_record(loaded, target, plan.options))
                    if LOGITS in wanted and len(target.codes):
                        keep_reference_logits(loaded, target, plan.options, store, plan.settings)
                count += 1
                progress(1)
            for one, other in pairwise(plan.seeds) if FREE in plan.stages else ():
                if RecordKey(FLOOR, name, prompt.id, one) in records or prompt.is_recording:
                    continue
                if loaded is None:
                    loaded = stack.enter_context(LoadedCandidate(plan.reference, plan.engine))
                pair = [Target.of(prompt, _found(records, TARGET, name, prompt, seed)) for seed in (one, other)]
                if all(len(target.codes) for target in pair):
                    records.append(floor_record(loaded, *pair))
    return count


def _wanted_of_reference(plan: Plan, records: Records, prompt: Prompt, seed: int) -> set[str]:
    """What of the reference is missing for one clip."""
    name = plan.reference.key
    wanted = {TARGET} if RecordKey(TARGET, name, prompt.id, seed) not in records else set()
    if ONE_STEP in plan.stages and RecordKey(BASIS, name, prompt.id, seed) not in records:
        wanted.add(BASIS)
    if LOGITS in plan.stages and any(
        RecordKey(LOGITS, candidate.key, prompt.id, seed) not in records
        for candidate in plan.everyone
        if seed in plan.seeds_of(candidate, prompt)
    ):
        wanted.add(LOGITS)
    return wanted


def hold_against(
    plan: Plan, candidate: Candidate, prompts: Sequence[Prompt], part: str, progress: Progress = lambda _count: None
) -> int:
    """A candidate's part: the stages of every clip that has no record yet. Clips done."""
    base = plan.reference.files
    count = 0
    with ExitStack() as stack:
        records = stack.enter_context(Records.open(plan.records, plan.fingerprint, part=part))
        records.refresh()
        loaded: LoadedCandidate | None = None
        reference_depth: DepthDecoderOnly | None = None
        for prompt in prompts:
            for seed in plan.seeds_of(candidate, prompt):
                missing = _missing(plan, records, candidate, prompt, seed)
                target = _target(plan, records, prompt, seed)
                if missing and loaded is None:
                    loaded = stack.enter_context(LoadedCandidate(candidate, plan.engine))
                    if LOGITS in plan.stages and candidate.key != plan.reference.key and not plan.is_damaged(candidate):
                        reference_depth = stack.enter_context(DepthDecoderOnly(plan.reference, loaded, plan.engine))
                if loaded is not None and len(target.codes):
                    for stage in missing:
                        records.append(_record(plan, loaded, base, reference_depth, stage, target, records))
                count += 1
                progress(1)
    return count


def _missing(plan: Plan, records: Records, candidate: Candidate, prompt: Prompt, seed: int) -> list[str]:
    """The stages of which a clip has no record yet."""
    return [
        stage
        for stage in plan.stages_of(candidate, prompt)
        if RecordKey(stage, candidate.key, prompt.id, seed) not in records
    ]


def _target(plan: Plan, records: Records, prompt: Prompt, seed: int) -> Target:
    return Target.of(prompt, _found(records, TARGET, plan.reference.key, prompt, seed))


def _record(
    plan: Plan,
    loaded: LoadedCandidate,
    base: OpenLevel,
    reference_depth: DepthDecoderOnly | None,
    stage: str,
    target: Target,
    records: Records,
) -> Record:
    if stage == LOGITS:
        utterance = loaded.utterance(target.prompt, target.seed, target.context, plan.options)
        store = ReferenceLogits(plan.out / "logits", loaded.tts.engine.spec)
        clip = store.read(clip_key(base, utterance.blocks, target.codes, plan.settings))
        return logits_record(loaded, target, clip, reference_depth, plan.options)
    if stage == ONE_STEP:
        basis = _found(records, BASIS, plan.reference.key, target.prompt, target.seed)
        audio = plan.audio if plan.is_kept(loaded.candidate, target.seed) else None
        return one_step_record(loaded, target, basis.detail["codes"], plan.options, audio)
    return free_record(loaded, target, plan.options, plan.audio)


def _found(records: Records, stage: str, level: str, prompt: Prompt, seed: int) -> Record:
    record = records.get(RecordKey(stage, level, prompt.id, seed))
    assert record is not None, "the reference goes first"
    return record
