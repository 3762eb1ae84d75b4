"""The clips of free runs as sound, beside what they are scored against. It scores nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from ...core.arrays import F32Array, I64Array
from ...core.closing import Closing
from ...runtime.audio.writer import AudioWriter
from ...runtime.codec.codec import Codec
from ..instruments.instrument import Heard
from ..metric import FREE
from ..run.plan import Plan
from ..run.record import Record
from ..run.stages import TARGET, Target


@dataclass(frozen=True)
class SpokenClip:
    """What a level said in its free run.

    Attributes:
        level: Its name.
        key: The same with its digest, as records have it.
        prompt: Id in the corpus.
        seed: Of the noise.
        text: What it should say.
        path: Of the sound.
    """

    level: str
    key: str
    prompt: str
    seed: int
    text: str
    path: Path


class Sounds(Closing):
    """The clips of a plan. A context manager. Only the codec is loaded, and only if it is needed."""

    def __init__(self, plan: Plan, records: Sequence[Record]) -> None:
        """Of these records of the plan."""
        self._plan = plan
        self._codec: Codec | None = None
        prompts = {prompt.id: prompt for prompt in plan.corpus.prompts}
        self._targets = {
            (record.prompt, record.seed): Target.of(prompts[record.prompt], record)
            for record in records
            if record.stage == TARGET
        }
        self.clips = self._found(records)
        """Clip by clip, the reference's rendition first, then the levels'."""
        self._read = lru_cache(maxsize=2)(_samples)
        self._voice_of = lru_cache(maxsize=1)(self._voice)

    def close(self) -> None:
        """Free the codec. Idempotent."""
        if self._codec is not None:
            self._codec.close()
            self._codec = None

    def heard(self, clip: SpokenClip) -> Heard:
        """A clip for an instrument."""
        reference = self._read(self._path(self._plan.reference.key, clip.prompt, clip.seed))
        return Heard(self._read(clip.path), clip.text, reference, self._voice_of(clip.prompt, clip.seed))

    def of_reference(self) -> list[SpokenClip]:
        """What the reference said: every prompt before any is there twice."""
        mine = [clip for clip in self.clips if clip.level == self._plan.reference.name]
        return sorted(mine, key=lambda clip: clip.seed)

    def _found(self, records: Sequence[Record]) -> list[SpokenClip]:
        keys = {each.name: each.key for each in self._plan.candidates}
        spoken = {(r.level, r.prompt, r.seed) for r in records if r.stage == FREE}
        return list(self._in_order(keys, spoken))

    def _in_order(self, keys: dict[str, str], spoken: set[tuple[str, str, int]]) -> Iterator[SpokenClip]:
        reference = self._plan.reference
        names = [reference.name, *(name for name in keys if name != reference.name)]
        for prompt, seed in self._targets:
            held = [name for name in names if (name, prompt, seed) in spoken]
            if held and reference.name not in keys:
                self._write(prompt, seed)
                held.insert(0, reference.name)
            for name in held:
                key = keys.get(name, reference.key)
                text = self._targets[prompt, seed].prompt.text
                yield SpokenClip(name, key, prompt, seed, text, self._path(key, prompt, seed))

    def _path(self, key: str, prompt: str, seed: int) -> Path:
        return self._plan.audio / f"{key}-{prompt}-{seed}.wav"

    def _write(self, prompt: str, seed: int) -> None:
        """The reference's rendition, where it is not among what was held against it: rounded as all clips are."""
        with AudioWriter(self._path(self._plan.reference.key, prompt, seed)) as writer:
            writer.write(self._decoded(self._targets[prompt, seed].codes))

    def _voice(self, prompt: str, seed: int) -> F32Array | None:
        target = self._targets[prompt, seed]
        turns = [segment.codes for segment in target.context if segment.speaker == target.prompt.speaker]
        return np.concatenate([self._decoded(codes) for codes in turns]) if turns else None

    def _decoded(self, codes: I64Array) -> F32Array:
        if self._codec is None:
            self._codec = Codec(self._plan.reference.files.codec_decoder, threads=self._plan.engine.threads)
        return self._codec.decode(self._codec.playable(codes))


def _samples(path: Path) -> F32Array:
    samples: F32Array = soundfile.read(path, dtype="float32")[0]
    return samples
