"""What is planned: whose voices come into a prompt, under which number."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from speaking import random_codes

from miso_gguf.models.flavors import TINY
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.prompt import PromptBuilder
from miso_gguf.runtime.lm.tokenizer import Tokenizer
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Segment
from miso_gguf.runtime.synthesis.plan import Planner, SpeechPlan
from miso_gguf.runtime.voice import Voice


@pytest.fixture(scope="module")
def prompts(bundle: Path) -> Iterator[PromptBuilder]:
    with Tokenizer(open_level(bundle, "f32").embeddings) as tokenizer:
        yield PromptBuilder(TINY, tokenizer)


def planned(
    prompts: PromptBuilder, voice: Voice | Sequence[Voice] | None, speaker: int | None, positions: int = 2048
) -> SpeechPlan:
    planner = Planner(prompts, replace(TINY, max_positions=positions), TINY.codebooks)
    return planner.plan("Hello.", voice, [], speaker, SpeechOptions())


def keys(prompts: PromptBuilder, voices: Sequence[Voice]) -> list[bytes]:
    return [prompts.segment(Segment(voice.text, voice.codes, voice.speaker)).key for voice in voices]


VOICES = [Voice(random_codes(frames), "Words of a voice.", index) for index, frames in enumerate((50, 90, 20))]


@pytest.mark.parametrize(("speaker", "expected"), [(None, 2), (3, 3), (0, 0)])
def test_a_single_voice_is_the_speakers(prompts: PromptBuilder, speaker: int | None, expected: int) -> None:
    """Whichever number it has, the model takes it for the speaker's only under the same one."""
    plan = planned(prompts, VOICES[2], speaker)
    assert (plan.speaker, plan.has_voice) == (expected, True)
    assert [block.key for block in plan.voices] == keys(prompts, [replace(VOICES[2], speaker=expected)])


def test_the_voices_of_a_dialogue_keep_their_order_and_numbers(prompts: PromptBuilder) -> None:
    for speaker in (0, 1, 2):
        assert [block.key for block in planned(prompts, VOICES, speaker).voices] == keys(prompts, VOICES)
    assert planned(prompts, VOICES, None).speaker == 0
    assert not planned(prompts, VOICES, 3).has_voice


def test_voices_fill_half_of_the_positions_and_the_own_one_is_always_there(prompts: PromptBuilder) -> None:
    """What comes after one that has no room is left out too: which they are does not follow from who speaks."""
    rows = [len(block) for block in planned(prompts, VOICES, 0).voices]
    two = 2 * (rows[0] + rows[1])
    for positions, spoken in {
        two + 2 * rows[2]: ([0, 1, 2], [0, 1, 2], [0, 1, 2]),
        two: ([0, 1], [0, 1], [0, 1, 2]),
        two - 2: ([0], [0, 1], [0, 2]),
    }.items():
        for speaker, expected in enumerate(spoken):
            plan = planned(prompts, VOICES, speaker, positions)
            assert [block.key for block in plan.voices] == keys(prompts, [VOICES[one] for one in expected])
            assert all(block.is_voice for block in plan.voices)


def test_a_text_in_pieces_is_spoken_once(prompts: PromptBuilder) -> None:
    planner = Planner(prompts, TINY, TINY.codebooks)
    in_pieces, whole = (planner.plan(text, None, [], None, SpeechOptions()) for text in (["Hello", "."], "Hello."))
    assert [one for one in in_pieces.sentences if one] == list(whole.sentences) == list(whole.sentences) == ["Hello."]
    with pytest.raises(ValueError, match="has been spoken, and they are gone: plan it again"):
        list(in_pieces.sentences)


def test_what_is_awaited_is_for_another_call(prompts: PromptBuilder) -> None:
    async def awaited() -> AsyncIterator[str]:
        yield "Hello."

    planner = Planner(prompts, TINY, TINY.codebooks)
    with pytest.raises(TypeError, match="a text whose pieces are awaited is for astream"):
        planner.plan(awaited(), None, [], None, SpeechOptions())  # type: ignore[arg-type]
