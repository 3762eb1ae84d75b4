"""From what was asked for to a plan: which candidates against which reference, which corpus, which controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ...models.levels import DEFAULT_LEVEL, F32, FP16, finest_first
from ...models.manifest import Manifest
from ...native.threads import default_threads
from ...runtime.bundle import open_bundle, open_level
from ...runtime.options import EngineOptions, SpeechOptions
from ..corpus import Corpus, Prompt
from ..fit import check_fit
from ..gates.comparison import NEW, OLD
from ..machine import device, instructions, versions
from ..metric import FREE, LOGITS, ONE_STEP, RECORDINGS, STAGES
from ..said import AUTO, corpus_with
from ..stats.estimates import FEWEST_PROMPTS
from .candidate import Candidate
from .damages import RECORDED_PROMPTS, SPOKEN_PROMPTS, Damage, damages_of
from .record_store import plan_fingerprint
from .source_hash import COMPUTING, MEASURING, code_sha256

REFERENCE, COMPARED = FP16.key, DEFAULT_LEVEL.key
"""The levels that are taken if none is named: to hold others against, and in a comparison of two bundles."""
_COMPUTING = ("llama-cpp-python", "numpy", "onnxruntime", "praat")
"""Whose version may change a record."""


@dataclass(frozen=True)
class Plan:
    """Everything that an evaluation is to do.

    Attributes:
        reference: What the others are held against. It is never judged against itself: see `finer`.
        candidates: All that are measured; the reference among them, as a control.
        damages: Of the reference, which must make gates fail: a few prompts each, the first seed, and not freely.
        corpus: What is said.
        seeds: Of the noise.
        stages: Of `metric.STAGES`.
        options: Temperature and top-k.
        out: Directory of records, logits and clips.
        engine: Where each process computes.
        fingerprint: Of all that records depend on: see `record_store.plan_fingerprint`.
        settings: How logits are computed: part of what they are kept under.
        controls: Whether gates are to be seen to fail.
        finer: The plan that holds the reference against a finer level, to be judged there; None without one.
    """

    reference: Candidate
    candidates: tuple[Candidate, ...]
    damages: tuple[Damage, ...]
    corpus: Corpus
    seeds: tuple[int, ...]
    stages: tuple[str, ...]
    options: SpeechOptions
    out: Path
    engine: EngineOptions
    fingerprint: str
    settings: dict[str, str]
    controls: bool = True
    finer: "Plan | None" = None

    @property
    def records(self) -> Path:
        """Directory of the records."""
        return self.out / "records"

    @property
    def audio(self) -> Path:
        """Directory of the clips."""
        return self.out / "clips"

    @property
    def copies(self) -> Path:
        """Directory of what is damaged, while it is measured."""
        return self.out / "damaged"

    @property
    def everyone(self) -> list[Candidate]:
        """All candidates, the damaged ones last."""
        return [*self.candidates, *(damage.candidate for damage in self.damages)]

    def is_damaged(self, candidate: Candidate) -> bool:
        """Whether it was damaged on purpose."""
        return any(candidate.key == damage.candidate.key for damage in self.damages)

    def seeds_for(self, prompt: Prompt) -> tuple[int, ...]:
        """With which seeds a prompt is said; a recording is heard once, for it says the same with each."""
        return self.seeds[:1] if prompt.is_recording else self.seeds

    def seeds_of(self, candidate: Candidate, prompt: Prompt) -> tuple[int, ...]:
        """With which seeds a candidate is run; none for a prompt that it does not say."""
        if not self.is_damaged(candidate):
            return self.seeds_for(prompt)
        return self.seeds[:1] if prompt.id in self._damaged_prompts else ()

    @cached_property
    def _damaged_prompts(self) -> frozenset[str]:
        """Evenly over what is spoken, and over the recordings."""
        kinds = ((self.corpus.spoken, SPOKEN_PROMPTS), (self.corpus.recordings, RECORDED_PROMPTS))
        return frozenset(prompt.id for prompts, count in kinds for prompt in _evenly(prompts, count))

    @property
    def given(self) -> frozenset[str]:
        """What metrics may need that is there: see `Metric.needs`."""
        return frozenset({RECORDINGS} if self.corpus.recordings else ())

    def stages_of(self, candidate: Candidate, prompt: Prompt) -> tuple[str, ...]:
        """Which stages a candidate goes through: not freely beside a person's recording, nor damaged."""
        is_free = not prompt.is_recording and not self.is_damaged(candidate)
        return tuple(stage for stage in self.stages if is_free or stage != FREE)

    def is_kept(self, candidate: Candidate, seed: int) -> bool:
        """Whether its one-step sound is kept, to be listened to: of the first seed, where the reference's is too."""
        return seed == self.seeds[0] and not self.is_damaged(candidate) and self.reference in self.candidates

    def clips(self) -> int:
        """How many clips there are to do, those of the reference and of the finer plan included."""
        prompts = self.corpus.prompts
        held = sum(len(self.seeds_of(candidate, prompt)) for candidate in self.everyone for prompt in prompts)
        said = sum(len(self.seeds_for(prompt)) for prompt in prompts)
        return said + held + (self.finer.clips() if self.finer is not None else 0)


@dataclass(frozen=True)
class Asked:
    """What a user wants to know.

    Attributes:
        out: Directory of everything that comes out.
        corpus: See `corpus_with`.
        recordings: Directory of recordings, which come in addition: see `read_recordings`.
        prompts: Only so many of the corpus; None for all.
        seeds: How many.
        stages: Of `metric.STAGES`.
        controls: Whether to damage the reference until each gate fails.
        ladder: Whether to damage each half in growing strength, too.
        temperature: Of sampling.
        top_k: Of sampling.
        processes: That share the work.
        threads: Of a process; None for the cores that each has.
        gpu_layers: As `MisoTTS.load`.
    """

    out: Path
    corpus: str = AUTO
    recordings: Path | None = None
    prompts: int | None = None
    seeds: int = 3
    stages: tuple[str, ...] = STAGES
    controls: bool = True
    ladder: bool = False
    temperature: float = 0.9
    top_k: int = 50
    processes: int = 1
    threads: int | None = None
    gpu_layers: int | None = None


def plan_run(bundle: Path, levels: Sequence[str], reference: str, asked: Asked) -> Plan:
    """Levels of one bundle (all it has, if none are named) against one of them.

    Of FP16 nothing is known by holding others against it: where the bundle has F32, and it was not left out, FP16 is
    held against that.

    Errors as `open_level`, `corpus_with` and `check_fit`; `ValueError` on a level that is not there, with what to do.
    """
    opened = open_bundle(bundle)
    present = opened.manifest.levels
    keys = [opened.key(level) for level in levels] or finest_first(present)
    base = opened.key(reference)
    if len(set(keys)) != len(keys):
        raise ValueError(f"a level is named twice: {', '.join(keys)}")
    if base not in keys:
        keys.insert(0, base)
    if missing := [key for key in keys if key not in present]:
        raise ValueError(
            f"{bundle} has no level {', '.join(missing)}, only {', '.join(present)}. "
            f"Convert it: miso-convert CHECKPOINT --quant {missing[0]} --out {bundle}"
        )
    finer = None
    if base == FP16.key and F32.key in keys:
        keys.remove(F32.key)
        finer = Candidate.of(F32.key, opened.level(F32.key))
    candidates = tuple(Candidate.of(key, opened.level(key)) for key in keys)
    asked = replace(asked, controls=asked.controls and (len(candidates) > 1 or finer is not None))
    plan = _plan(candidates[keys.index(base)], candidates, asked)
    return plan if finer is None else replace(plan, finer=_against(plan, finer))


def _against(plan: Plan, finer: Candidate) -> Plan:
    """The plan that holds the reference of `plan`, and nothing else, against a finer level."""
    return replace(
        plan,
        reference=finer,
        candidates=(plan.reference,),
        damages=(),
        out=plan.out / finer.level,
        fingerprint=_fingerprint(finer, plan.corpus, plan.options, plan.settings),
    )


def plan_compare(first: Path, second: Path, level: str, asked: Asked, reference_bundle: Path | None = None) -> Plan:
    """One level of two bundles, "old" and "new", both against the FP16 of one: a new mixture against the old.

    Args:
        first: Directory of the old bundle.
        second: Of the new one.
        level: Of both.
        asked: Its controls are not made: gates on a change have their own.
        reference_bundle: Whose FP16 is taken; None for the old bundle's, or else the new one's.

    Errors as `open_level`, `corpus_with` and `check_fit`; `ValueError` if the bundles are not of one checkpoint, or
    none has FP16.
    """
    old, new = Candidate.of(OLD, open_level(first, level)), Candidate.of(NEW, open_level(second, level))
    choices = [first, second] if reference_bundle is None else [reference_bundle]
    source = next((path for path in choices if FP16.key in open_bundle(path).manifest.levels), None)
    if source is None:
        remedy = "Convert it, or name a bundle that has it: --reference-bundle DIR"
        raise ValueError(
            f"{' and '.join(map(str, choices))}: no level {FP16.key}, which both are compared with. {remedy}"
        )
    reference = Candidate.of(FP16.key, open_level(source, FP16.key))
    for path, candidate in ((first, old), (second, new)):
        mine, theirs = candidate.files.manifest, reference.files.manifest
        if mine.model_spec != theirs.model_spec or _checkpoint(mine) != _checkpoint(theirs):
            what = "model" if mine.model_spec != theirs.model_spec else "checkpoint"
            raise ValueError(
                f"{path} is of another {what} ({mine.model_spec.name}, {_checkpoint(mine)[0][:12]}) than the reference "
                f"in {source} ({theirs.model_spec.name}, {_checkpoint(theirs)[0][:12]}): compare bundles of one"
            )
    return _plan(reference, (reference, old, new), replace(asked, controls=False, ladder=False))


def _checkpoint(manifest: Manifest) -> list[str]:
    """Hashes of the files that a bundle was made from."""
    return [source.sha256 for source in manifest.sources_of("checkpoint")] or ["unknown"]


def _plan(reference: Candidate, candidates: tuple[Candidate, ...], asked: Asked) -> Plan:
    if unknown := set(asked.stages) - set(STAGES):
        raise ValueError(f"unknown stage {', '.join(sorted(unknown))}; known are {', '.join(STAGES)}")
    if asked.seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {asked.seeds}")
    corpus = corpus_with(reference.files.manifest, asked.corpus, asked.prompts, asked.recordings)
    options = SpeechOptions(temperature=asked.temperature, top_k=asked.top_k, split_sentences=False)
    check_fit(reference.files, corpus.prompts, options)
    threads = asked.threads or max(1, default_threads() // asked.processes)
    engine = EngineOptions(threads=threads, gpu_layers=asked.gpu_layers)
    found = versions()
    settings = {
        "kv_type": engine.kv_type,
        "gpu_layers": "none" if engine.gpu_layers == 0 else str(engine.gpu_layers or "default"),
        **{name: found[name] for name in _COMPUTING if name in found},
        "device": device(engine.gpu_layers),
        "instructions": instructions(),
        "code": code_sha256(COMPUTING),
    }
    controls = asked.controls and _are_enough(corpus)
    damages = damages_of(reference, controls=controls, ladder=asked.ladder) if _can_fail(asked, corpus) else ()
    seeds = tuple(range(asked.seeds))
    return Plan(
        reference,
        candidates,
        damages,
        corpus,
        seeds,
        _stages(asked, corpus),
        options,
        asked.out,
        engine,
        _fingerprint(reference, corpus, options, settings),
        settings,
        controls,
    )


def _fingerprint(reference: Candidate, corpus: Corpus, options: SpeechOptions, settings: Mapping[str, str]) -> str:
    """Of all that every record depends on. Which files a candidate is, its records say themselves: `Candidate.key`."""
    return plan_fingerprint(
        reference=[reference.name, reference.digest],
        corpus=corpus.sha256,
        options={"temperature": options.temperature, "top_k": options.top_k},
        settings={**settings, "miso-gguf": versions()["miso-gguf"], "measuring": code_sha256(MEASURING)},
    )


def _stages(asked: Asked, corpus: Corpus) -> tuple[str, ...]:
    """Those that were asked for, in order; beside recordings alone nothing is spoken freely."""
    wanted = [stage for stage in STAGES if stage in asked.stages]
    if asked.recordings is not None and corpus.spoken and wanted == [FREE]:
        raise ValueError(
            f"nothing is spoken freely beside recordings: add --stages {LOGITS},{ONE_STEP}, or leave --recordings out"
        )
    if not corpus.spoken and FREE in wanted:
        wanted.remove(FREE)
        if not wanted:
            raise ValueError(
                f"every prompt of the corpus is a recording, beside which nothing is spoken freely: "
                f"add --stages {LOGITS},{ONE_STEP}, or prompts without audio"
            )
    return tuple(wanted)


def _can_fail(asked: Asked, corpus: Corpus) -> bool:
    """Whether a gate could fail a damaged level: it is not run freely, and few prompts prove nothing."""
    return _are_enough(corpus) and bool({LOGITS, ONE_STEP} & set(asked.stages))


def _are_enough(corpus: Corpus) -> bool:
    """Whether anything can be judged: people's speech is judged by itself."""
    return max(len(corpus.spoken), len(corpus.recordings)) >= FEWEST_PROMPTS


def _evenly(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of them, or all if there are no more."""
    count = min(count, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]
