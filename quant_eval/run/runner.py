"""The work of an evaluation, clip by clip: resumable, and the same records in one process or several.

First the baseline says everything and keeps its logits; then each contender, the baseline itself among them, is held
against that. A clip depends on nothing but its prompt, its seed and the bundle, so who computes it does not matter.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

from ...runtime.bundle import OpenLevel, open_level
from ..corpus import Prompt
from .candidate import Booth, Contender, LoneDepthDecoder
from .plan import Plan
from .record import Record, RecordKey
from .record_store import Records
from .reference_logits import BaseLogits, clip_key
from .stages import (
    BASIS,
    COUPLED,
    FLOOR,
    FREE,
    LOGITS,
    TARGET,
    Target,
    basis_record,
    coupled_record,
    floor_record,
    free_record,
    keep_base_logits,
    logits_record,
    speak_target,
)

Progress = Callable[[int], None]
"""Called with the number of clips done."""


def evaluate(plan: Plan, processes: int = 1, progress: Progress = lambda _done: None) -> None:
    """Do what is not done yet. Errors as `MisoTTS.load` and `Records.open`; what was done stays."""
    shards = [plan.corpus.prompts[index::processes] for index in range(processes)]
    done = _Counter(progress)
    if processes == 1:
        say_targets(plan, shards[0], "main", done.add)
        for contender in plan.everyone:
            hold_against(plan, contender, shards[0], "main", done.add)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # One writer a part file: a contender's clips go where its prompts' targets went.
        parts = [(shard, f"p{index}") for index, shard in enumerate(shards) if shard]
        rounds: list[list[Callable[[], int]]] = [[partial(say_targets, plan, shard, part) for shard, part in parts]]
        for contender in plan.everyone:
            rounds.append([partial(hold_against, plan, contender, shard, part) for shard, part in parts])
        for work in rounds:
            futures = [pool.submit(job) for job in work]
            finished, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in finished:
                done.add(future.result())


class _Counter:
    def __init__(self, progress: Progress) -> None:
        self._done, self._progress = 0, progress

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._done)


def say_targets(plan: Plan, prompts: Sequence[Prompt], part: str, progress: Progress = lambda _count: None) -> int:
    """The baseline's part: speak, keep the logits that some contender still needs, compare seeds. Clips done."""
    name, count = plan.baseline.key, 0
    with ExitStack() as stack:
        records = stack.enter_context(Records.open(plan.records, plan.fingerprint, part=part))
        booth: Booth | None = None
        for prompt in prompts:
            for seed in plan.seeds:
                wanted = _wanted_of_baseline(plan, records, prompt, seed)
                if wanted and booth is None:
                    booth = stack.enter_context(Booth(plan.baseline, plan.threads, plan.gpu_layers))
                    store = BaseLogits(plan.out / "logits", booth.tts.engine.spec)
                if booth is not None and wanted:
                    if TARGET in wanted:
                        records.append(speak_target(booth, prompt, seed, plan.options))
                    target = Target.of(prompt, _found(records, TARGET, name, prompt, seed))
                    if BASIS in wanted and len(target.codes):
                        records.append(basis_record(booth, target, plan.options))
                    if LOGITS in wanted and len(target.codes):
                        keep_base_logits(booth, target, plan.options, store, plan.settings)
                count += 1
                progress(1)
            for one, other in pairwise(plan.seeds) if FREE in plan.layers else ():
                if RecordKey(FLOOR, name, prompt.id, one) in records or prompt.audio is not None:
                    continue
                if booth is None:
                    booth = stack.enter_context(Booth(plan.baseline, plan.threads, plan.gpu_layers))
                pair = [Target.of(prompt, _found(records, TARGET, name, prompt, seed)) for seed in (one, other)]
                if all(len(target.codes) for target in pair):
                    records.append(floor_record(booth, *pair))
    return count


def _wanted_of_baseline(plan: Plan, records: Records, prompt: Prompt, seed: int) -> set[str]:
    """What of the baseline is missing for one clip."""
    name = plan.baseline.key
    wanted = {TARGET} if RecordKey(TARGET, name, prompt.id, seed) not in records else set()
    if COUPLED in plan.layers and RecordKey(BASIS, name, prompt.id, seed) not in records:
        wanted.add(BASIS)
    if LOGITS in plan.layers and any(
        RecordKey(LOGITS, contender.key, prompt.id, seed) not in records
        for contender in plan.everyone
        if seed in plan.seeds_of(contender)
    ):
        wanted.add(LOGITS)
    return wanted


def hold_against(
    plan: Plan, contender: Contender, prompts: Sequence[Prompt], part: str, progress: Progress = lambda _count: None
) -> int:
    """A contender's part: the layers of every clip that has no record yet. Clips done."""
    base = open_level(plan.baseline.bundle, plan.baseline.level)
    count = 0
    with ExitStack() as stack:
        records = stack.enter_context(Records.open(plan.records, plan.fingerprint, part=part))
        records.refresh()
        booth: Booth | None = None
        base_depth: LoneDepthDecoder | None = None
        for prompt in prompts:
            for seed in plan.seeds_of(contender):
                missing = [
                    layer
                    for layer in plan.layers_of(contender, prompt)
                    if RecordKey(layer, contender.key, prompt.id, seed) not in records
                ]
                target = Target.of(prompt, _found(records, TARGET, plan.baseline.key, prompt, seed))
                if missing and booth is None:
                    booth = stack.enter_context(Booth(contender, plan.threads, plan.gpu_layers))
                    if LOGITS in plan.layers and contender.key != plan.baseline.key:
                        base_depth = stack.enter_context(LoneDepthDecoder(plan.baseline, booth, plan.threads))
                if booth is not None and len(target.codes):
                    for layer in missing:
                        records.append(_record(plan, booth, base, base_depth, layer, target, records))
                count += 1
                progress(1)
    return count


def _record(
    plan: Plan,
    booth: Booth,
    base: OpenLevel,
    base_depth: LoneDepthDecoder | None,
    layer: str,
    target: Target,
    records: Records,
) -> Record:
    if layer == LOGITS:
        utterance = booth.utterance(target.prompt, target.seed, target.context, plan.options)
        store = BaseLogits(plan.out / "logits", booth.tts.engine.spec)
        clip = store.read(clip_key(base, utterance.blocks, target.codes, plan.settings))
        return logits_record(booth, target, clip, base_depth, plan.options)
    if layer == COUPLED:
        basis = _found(records, BASIS, plan.baseline.key, target.prompt, target.seed)
        return coupled_record(booth, target, basis.detail["codes"], plan.options)
    return free_record(booth, target, plan.options, plan.audio)


def _found(records: Records, layer: str, level: str, prompt: Prompt, seed: int) -> Record:
    record = records.get(RecordKey(layer, level, prompt.id, seed))
    assert record is not None, "the baseline goes first"
    return record
