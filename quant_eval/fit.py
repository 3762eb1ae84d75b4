"""Whether a model has room for the prompts of a corpus: seen from tokens and sound, before any weight is loaded.

Prompt, turns before it and speech share the model's positions. What would be left out of a prompt is asked of what
leaves it out. It knows no engine.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..core.errors import MisoError
from ..models.mimi import FRAME_RATE_HZ, FRAME_SAMPLES
from ..models.spec import ModelSpec
from ..runtime.audio.reader import read_audio
from ..runtime.bundle import OpenLevel
from ..runtime.lm.prompt import PromptBuilder
from ..runtime.lm.tokenizer import Tokenizer
from ..runtime.lm.utterance import Utterance
from ..runtime.options import SpeechOptions
from ..runtime.speech import Segment
from ..runtime.synthesis.plan import Planner
from ..runtime.synthesis.prompting import Prompting
from ..runtime.synthesis.reading import reading_s
from .corpus import Prompt
from .recordings import in_a_line


class FitError(MisoError):
    """Prompts that a model cannot be given."""


def check_fit(level: OpenLevel, prompts: Iterable[Prompt], options: SpeechOptions) -> None:
    """Raise `FitError` that names all prompts that cannot be said or heard, before hours are spent on the others.

    Recordings are read whole: one that is silent, too short or broken off is named too. A turn before a prompt takes as
    long as its recording, or as a brisk reader.
    """
    spec = level.manifest.model_spec
    with Tokenizer(level.embeddings) as tokenizer:
        room = _Room(PromptBuilder(spec, tokenizer), spec, options)
        faults = [f"{prompt.id}: {fault}" for prompt in prompts if (fault := room.fault(prompt))]
    if faults:
        raise FitError(in_a_line(faults))


def newest_that_fit(
    context: Sequence[Segment], prompt: Prompt, frames: int, prompts: PromptBuilder, spec: ModelSpec
) -> list[Segment]:
    """The last of what was said before a recording of so many frames: the oldest turns give way to it."""
    room = spec.max_positions - frames - len(prompts.text(prompt.text, prompt.speaker))
    kept: list[Segment] = []
    for segment in reversed(context):
        room -= len(prompts.segment(segment))
        if room < 0:
            break
        kept.insert(0, segment)
    return kept


class _Room:
    """The positions of one model."""

    def __init__(self, prompts: PromptBuilder, spec: ModelSpec, options: SpeechOptions) -> None:
        self._prompts, self._spec, self._options = prompts, spec, options
        self._planner = Planner(prompts, spec, spec.codebooks)

    def fault(self, prompt: Prompt) -> str:
        """Why a prompt cannot be said or heard; "" if it can."""
        most, context = self._spec.max_positions, list[Segment]()
        try:
            for turn in prompt.before:
                self._prepared(turn.text, turn.speaker, context)
                frames = (
                    math.ceil(reading_s(turn.text) * FRAME_RATE_HZ) if turn.audio is None else self._heard(turn.audio)
                )
                context.append(Segment(turn.text, np.ones((frames, self._spec.codebooks), np.int64), turn.speaker))
            said, dropped = self._prepared(prompt.text, prompt.speaker, context)
            frames = 0 if prompt.audio is None else self._heard(prompt.audio)
        except (ValueError, OSError, MisoError) as error:
            return str(error)
        if said.rows + frames > most:
            words = "its words and the turns before it" if context else "its words"
            return f"takes {frames} positions and {words} {said.rows}, of {most}: cut it"
        if any(turn.audio is not None for turn in prompt.before[:dropped]):
            return f"leaves no room, of {most} positions, for the recording before it: cut that"
        return ""

    def _prepared(self, text: str, speaker: int, context: Sequence[Segment]) -> tuple[Utterance, int]:
        """What is said, and how many turns before it have no room."""
        plan = self._planner.plan(text, None, context, speaker, self._options)
        (sentence,) = plan.sentences
        prompting = Prompting(self._prompts, self._spec, plan)
        return prompting.prepare(sentence), prompting.dropped

    def _heard(self, audio: Path) -> int:
        """Frames of a recording."""
        samples = read_audio(audio, max_seconds=self._spec.max_positions / FRAME_RATE_HZ)
        return math.ceil(len(samples) / FRAME_SAMPLES)
