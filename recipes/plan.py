"""From what was asked for to a plan: which level is heard, what it says, and what the result is known by."""

from dataclasses import dataclass
from pathlib import Path

from ..core.printable import printable
from ..models.levels import finest_first
from ..native.threads import default_threads
from ..quant_eval.corpus import Prompt
from ..quant_eval.fit import check_fit
from ..quant_eval.machine import device, instructions, versions
from ..quant_eval.recordings import read_recordings, recordings_sha256
from ..quant_eval.run.candidate import Candidate
from ..quant_eval.run.record_store import plan_fingerprint
from ..quant_eval.run.source_hash import COMPUTING, code_sha256
from ..quant_eval.said import AUTO, corpus_of, only_recordings
from ..runtime.bundle import open_bundle
from ..runtime.options import EngineOptions, SpeechOptions

_LIBRARIES = ("llama-cpp-python", "numpy", "onnxruntime", "soundfile", "soxr", "miso-gguf")
"""Whose version may change a sum."""


@dataclass(frozen=True)
class Asked:
    """What a user wants.

    Attributes:
        out: Directory of the two files.
        corpus: See `load_corpus`, or "auto" for the model's own; None is that too, unless there are recordings.
        recordings: Directory of recordings: see `read_recordings`.
        prompts: Only so many of the corpus; None for all.
        seeds: Renditions of each prompt. A recording is heard once.
        level: Of the bundle; None for its finest.
        threads: Of the CPU; None for its cores.
        gpu_layers: As `MisoTTS.load`.
    """

    out: Path
    corpus: str | None = None
    recordings: Path | None = None
    prompts: int | None = None
    seeds: int = 1
    level: str | None = None
    threads: int | None = None
    gpu_layers: int | None = None

    @property
    def speaks(self) -> bool:
        """Whether a corpus is said."""
        return self.recordings is None or self.corpus is not None


@dataclass(frozen=True)
class Collection:
    """Everything that is to be heard.

    Attributes:
        candidate: The level.
        clips: What it says, with the seed, in this order.
        datasets: That in words.
        engine: Where it computes.
        speech: How it samples.
        out: Directory of the files.
        identity: Of all that the sums depend on, in hexadecimal.
    """

    candidate: Candidate
    clips: tuple[tuple[Prompt, int], ...]
    datasets: tuple[str, ...]
    engine: EngineOptions
    speech: SpeechOptions
    out: Path
    identity: str


def plan_collection(bundle: Path | str, asked: Asked) -> Collection:
    """What is to be heard of a level of a bundle, which is opened. Nothing is loaded.

    Errors as `open_level`, `load_corpus`, `read_recordings` and `check_fit`; `ValueError` if nothing would be heard.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if asked.level is None and not manifest.levels:
        raise ValueError(f"{bundle}: has no level. Convert one: miso-convert CHECKPOINT --quant fp16 --out {bundle}")
    level = opened.level(asked.level or finest_first(manifest.levels)[0])
    if asked.seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {asked.seeds}")
    if asked.prompts is not None and not asked.speaks:
        raise ValueError(only_recordings(asked.prompts))
    candidate, datasets, prompts, said = Candidate.of(level.key, level), list[str](), list[Prompt](), {}
    if asked.speaks:
        corpus = corpus_of(manifest, asked.corpus or AUTO, asked.prompts)
        prompts += corpus.prompts
        said["corpus"] = corpus.sha256
        seeds = f"seeds 0 to {asked.seeds - 1}" if asked.seeds > 1 else "seed 0"
        datasets.append(f"{corpus.name} ({corpus.sha256[:12]}), said by {level.key}, {seeds}")
    if asked.recordings is not None:
        heard = read_recordings(asked.recordings, manifest.model_spec.max_positions)
        prompts += heard
        said["recordings"] = recordings_sha256(heard)
        number = f"{len(heard)} recording{'s' if len(heard) > 1 else ''}"
        datasets.append(f"{printable(asked.recordings.resolve().name)} ({said['recordings'][:12]}), {number}")
    clips = tuple((prompt, seed) for prompt in prompts for seed in range(asked.seeds if prompt.audio is None else 1))
    # The sums then are those of F32 arithmetic, whatever the device, and cost a larger KV cache.
    engine = EngineOptions(
        threads=asked.threads or default_threads(), gpu_layers=asked.gpu_layers, exact=True, voice_cache_bytes=0
    )
    speech = SpeechOptions(split_sentences=False)
    check_fit(level, prompts, speech)
    identity = plan_fingerprint(
        level=[manifest.fingerprint, level.key, candidate.digest],
        said=said,
        seeds=asked.seeds,
        options=[speech.temperature, speech.top_k],
        settings=_settings(engine),
    )
    return Collection(candidate, clips, tuple(datasets), engine, speech, asked.out, identity)


def _settings(engine: EngineOptions) -> dict[str, str]:
    found = versions()
    return {
        **{name: found[name] for name in _LIBRARIES},
        "gpu_layers": "none" if engine.gpu_layers == 0 else str(engine.gpu_layers or "default"),
        "device": device(engine.gpu_layers),
        "instructions": instructions(),
        "code": code_sha256((*COMPUTING, "quant_eval/run", "recipes")),
    }
