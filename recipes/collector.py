"""A level that speaks, or is given a recording, while all that its matrices are multiplied with is summed.

What was said is replayed with the codes given, which is one pass for spoken and recorded alike: the prompt and the
frames through the backbone, then each frame through the depth decoder. Only the replay is heard. It knows no files.
"""

from functools import partial

from ..core.arrays import F32Array
from ..core.closing import Closing
from ..models.tensors import Part
from ..native.products import ProductWatch
from ..quant_eval.corpus import Prompt
from ..quant_eval.run.candidate import Candidate, LoadedCandidate
from ..quant_eval.run.stages import Target, speak_target
from ..quant_eval.run.teacher_forcing import Replayed
from ..runtime.lm.depth.replay import FRAMES_AT_ONCE
from ..runtime.lm.depth.weights import head_name
from ..runtime.options import EngineOptions, SpeechOptions
from .sums import PartSums

_OUTPUT = "output.weight"


class Collector(Closing):
    """A loaded level. A context manager."""

    def __init__(self, candidate: Candidate, options: EngineOptions) -> None:
        """Load it. `options` keep no voices: what is not computed is not heard. Errors as `MisoTTS.load`."""
        self._watch = ProductWatch()
        self._loaded = LoadedCandidate(candidate, options, self._watch)
        self.spec = self._loaded.tts.engine.spec
        self._heads = {head_name(codebook): codebook for codebook in range(1, self.spec.codebooks)}

    def close(self) -> None:
        """Free it. Idempotent."""
        self._loaded.close()

    def hear(self, prompt: Prompt, seed: int, options: SpeechOptions, sums: dict[Part, PartSums]) -> int:
        """Add what a prompt gives to `sums`: how many frames were said. Of none, nothing is added."""
        target = Target.of(prompt, speak_target(self._loaded, prompt, seed, options))
        if not len(target.codes):
            return 0
        utterance = self._loaded.utterance(prompt, seed, target.context, options)
        # What the turns before have left in the cache would be taken from there, unheard.
        self._loaded.tts.engine.forget()
        with self._watch.listening(sums["backbone"].sums, partial(sums["backbone"].add, step=0)):
            replayed = self._loaded.replay(utterance, target.codes)
        self._hear_depth(replayed, sums["decoder"])
        return replayed.frames

    def _hear_depth(self, replayed: Replayed, sums: PartSums) -> None:
        """A pass at a time: the last is filled up with frames that nobody said, behind those that count."""
        for start in range(0, replayed.frames, FRAMES_AT_ONCE):
            part = slice(start, min(start + FRAMES_AT_ONCE, replayed.frames))

            def add(name: str, rows: F32Array, count: int = part.stop - part.start) -> None:
                if (codebook := self._heads.get(name)) is not None:
                    sums.add(_OUTPUT, rows[:count], codebook)
                else:
                    sums.add(name, rows.reshape(FRAMES_AT_ONCE, self.spec.codebooks, -1)[:count])

            with self._watch.listening({*sums.sums, *self._heads}, add):
                self._loaded.tts.engine.depth_logits(replayed.hidden[part], replayed.codes[part])
