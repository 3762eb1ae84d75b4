"""What a sentence is spoken on: the order of it, what is left out where room is short, and that no sentence is lost."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from speaking import random_codes

from miso_gguf.models.flavors import TINY
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.prompt import Block, PromptBuilder
from miso_gguf.runtime.lm.tokenizer import Tokenizer
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Segment
from miso_gguf.runtime.synthesis.plan import Earlier, SpeechPlan
from miso_gguf.runtime.synthesis.prompting import Prompting, _newest
from miso_gguf.runtime.synthesis.reading import LEAST_FRAMES, reading_s, speech_cap_frames

OWN, OTHER = 1, 0


@pytest.fixture(scope="module")
def prompts(bundle: Path) -> Iterator[PromptBuilder]:
    with Tokenizer(open_level(bundle, "f32").embeddings) as tokenizer:
        yield PromptBuilder(TINY, tokenizer)


def prompting(
    prompts: PromptBuilder,
    *,
    voices: Sequence[Segment] = (),
    context: Sequence[Segment] = (),
    positions: int = 2048,
    options: SpeechOptions = SpeechOptions(),  # noqa: B008
) -> Prompting:
    plan = SpeechPlan(
        [],
        OWN,
        [prompts.segment(voice) for voice in voices],
        any(voice.speaker == OWN for voice in voices),
        [Earlier(prompts.segment(said), said.speaker == OWN) for said in context],
        options,
    )
    return Prompting(prompts, replace(TINY, max_positions=positions), plan)


def said(text: str, frames: int = 9, speaker: int = OWN) -> Segment:
    return Segment(text, random_codes(frames, len(text)), speaker)


def blocks_of(prompts: PromptBuilder, segments: Sequence[Segment], text: str) -> list[bytes]:
    return [*(prompts.segment(segment).key for segment in segments), prompts.text(text, OWN).key]


def keys(utterance: Utterance) -> list[bytes]:
    return [block.key for block in utterance.blocks]


ONE, TWO, QUESTION = said("One is said."), said("Two follows it."), said("What do you say?", speaker=OTHER)


def test_a_prompt_is_in_the_order_in_which_it_was_said(prompts: PromptBuilder) -> None:
    """An own sentence comes after the question that it answers, also as the one that the others sound like."""
    made = prompting(prompts, context=[QUESTION])
    assert keys(made.prepare("Three.")) == blocks_of(prompts, [QUESTION], "Three.")
    made.said(ONE.text, ONE.codes)
    assert keys(made.prepare("Three.")) == blocks_of(prompts, [QUESTION, ONE], "Three.")
    made.said(TWO.text, TWO.codes)
    assert keys(made.prepare("Three.")) == blocks_of(prompts, [QUESTION, ONE, TWO], "Three.")
    made.said("Nothing.", ONE.codes[:0])
    assert keys(made.prepare("Three.")) == blocks_of(prompts, [QUESTION, ONE, TWO], "Three.")


def test_voices_come_first_whoever_speaks(prompts: PromptBuilder) -> None:
    voices = [said("A voice.", 20, OTHER), said("The own voice.", 20)]
    made = prompting(prompts, voices=voices, context=[QUESTION])
    made.said(ONE.text, ONE.codes)
    assert keys(made.prepare("Three.")) == blocks_of(prompts, [*voices, QUESTION, ONE], "Three.")


LONG = [said(f"Number {index} is said.", 60) for index in range(12)]


def test_the_first_sentence_stays_where_nothing_else_says_how_to_sound(prompts: PromptBuilder) -> None:
    """Of the own sentences only the one before is left when they have no room: it is new to the cache anyway."""
    alone = prompting(prompts, positions=1024)
    own = prompting(prompts, positions=1024, context=[ONE])
    voiced = prompting(prompts, positions=1024, voices=[said("The own voice.", 20)])
    expected = {alone: [LONG[0]], own: [ONE], voiced: [said("The own voice.", 20)]}
    for made, first in expected.items():
        lengths = []
        for number, segment in enumerate(LONG):
            found = keys(made.prepare("Three."))
            lengths.append(len(found))
            assert found[:-2][:1] == blocks_of(prompts, first, "Three.")[:-1][: len(found[:-2])]
            if number:
                assert found[-2] == prompts.segment(LONG[number - 1]).key
            made.said(segment.text, segment.codes)
        assert max(lengths) == 4
        assert lengths[3:].count(3) > 1, "and it begins again"


def test_what_others_said_does_not_say_how_to_sound(prompts: PromptBuilder) -> None:
    made = prompting(prompts, positions=1024, context=[QUESTION])
    for segment in LONG[:5]:
        made.said(segment.text, segment.codes)
    assert keys(made.prepare("Three.")) == blocks_of(prompts, [QUESTION, LONG[0], LONG[4]], "Three.")


def test_a_short_first_sentence_is_no_anchor_alone(prompts: PromptBuilder) -> None:
    """As many of the first ones stay as it takes to know how the speaker sounds."""
    made = prompting(prompts, positions=1024)
    own = [said("Hi!", 4), said("I am here.", 8), *LONG]
    for segment in own:
        made.prepare("Three.")
        made.said(segment.text, segment.codes)
    assert keys(made.prepare("Three."))[:3] == [prompts.segment(segment).key for segment in own[:3]]
    assert prompts.segment(own[3]).key not in keys(made.prepare("Three."))


def test_context_has_room_again_for_many_turns(prompts: PromptBuilder) -> None:
    """As a dialogue goes on, its prompts begin alike but when the room is full."""
    history: list[Segment] = []
    begins, kept = [], []
    for turn in range(60):
        history.append(said(f"Turn {turn} is said.", 40, turn % 2))
        text = "Short." if turn % 3 else "This one is a good deal longer than the one before it was."
        made = prompting(prompts, positions=1024, context=history)
        utterance = made.prepare(text)
        assert keys(utterance) == blocks_of(prompts, history[made.dropped :], text)
        assert utterance.rows + utterance.max_frames <= 1024
        begins.append(made.dropped)
        kept.append(sum(map(len, utterance.blocks[:-1])))
    assert begins == sorted(begins)
    changes = [turn for turn in range(1, 60) if begins[turn] != begins[turn - 1]]
    assert 3 < len(changes) < 10
    assert all(0.55 < kept[turn] / 768 < 0.7 for turn in changes), "about 60 % of the room are filled"


def test_what_is_left_out_stays_out(prompts: PromptBuilder) -> None:
    made = prompting(prompts, positions=700, context=LONG[:6])
    assert made.dropped == 0
    made.prepare("Short.")
    few = made.dropped
    made.prepare("A sentence that may take long, since it has a great many words, needs room of its own " * 2)
    assert made.dropped > few
    more = made.dropped
    made.prepare("Short.")
    assert made.dropped == more


@given(st.lists(st.integers(1, 90), max_size=30), st.integers(-20, 600), st.integers(600, 900))
@example([], -1, 600)
def test_the_newest_context_that_fits(lengths: list[int], room: int, most: int) -> None:
    context = [Earlier(Block(np.zeros((length, 9), np.int64)), False) for length in lengths]
    kept = _newest(context, room, most)
    assert [id(one) for one in kept] == [id(one) for one in context[len(context) - len(kept) :]]
    assert sum(len(one.block) for one in kept) <= max(room, 0)
    if sum(lengths) <= room - most / 4:
        assert len(kept) == len(context)
    elif lengths and lengths[-1] <= room:
        assert kept, "what was said last is what is answered"


def test_an_anchor_that_is_too_long_loses_its_beginning(prompts: PromptBuilder) -> None:
    words = " ".join(f"word{index}" for index in range(24))
    made = prompting(prompts, positions=512)
    codes = random_codes(300, 1)
    made.said(words, codes)
    block = made.prepare("Three.").blocks[0]
    assert len(block) <= 512 / 5
    text = [row for row in block.rows if row[-1] >= 0]
    kept = len(block) - len(text) - 1
    np.testing.assert_array_equal(block.rows[len(text) : -1, :-1], codes[-kept:])
    rest = words.split()[-len(words.split()) * kept // 300 :]
    texts = [" ".join(rest[cut:]) for cut in range(-3, 4)]
    tails = [prompts.text(" ".join(words.split()[-n:]), OWN).key for n in range(1, 24)]
    assert Block(np.array(text)).key in tails, texts
    made.said("Word.", random_codes(600, 2))
    assert len(made.prepare("Three.").blocks) == 2, "what would have no word left is no part of it"


def test_the_longest_duration_shrinks_to_the_room(prompts: PromptBuilder) -> None:
    """Down to what reading it aloud takes."""
    text = "This is said in one piece, whatever comes of it, because somebody wants it so."
    whole = SpeechOptions(split_sentences=False)
    rows, cap, least = len(prompts.text(text, OWN)), speech_cap_frames(text), int(reading_s(text) * 12.5) + 1
    for positions in (rows + cap + 5, rows + cap, rows + cap - 1, rows + least):
        made = prompting(prompts, positions=positions, context=[QUESTION], options=whole)
        utterance = made.prepare(text)
        assert utterance.max_frames == min(cap, positions - rows)
        assert utterance.rows == rows
        assert prompting(prompts, positions=positions, options=whole).prepare(text).max_frames == utterance.max_frames
    with pytest.raises(ValueError, match=rf"the prompt takes {rows} positions \({rows} of them text\) of"):
        prompting(prompts, positions=rows + least - 1, options=whole).prepare(text)


def test_voices_that_leave_no_room_are_refused_at_once(prompts: PromptBuilder) -> None:
    voice = said("The own voice.", 100)
    rows = len(prompts.segment(voice)) + len(prompts.text("a", OWN)) + LEAST_FRAMES
    prompting(prompts, voices=[voice], positions=rows).prepare("a")
    with pytest.raises(ValueError, match="use a shorter voice clip"):
        prompting(prompts, voices=[voice], positions=rows - 1)


@pytest.mark.parametrize("positions", [256, 512, 1024])
@pytest.mark.parametrize(
    "sentence",
    [
        "word " * 49 + "word.",
        "今天天气很好我们去公园散步然后回家吃饭" * 13,
        "यह एक लंबा वाक्य है जो बिना रुके चलता रहता है और " * 5,
        "a" * 250,
        "1234567890" * 20,
    ],
    ids=["words", "chinese", "hindi", "one word", "digits"],
)
def test_every_part_of_a_sentence_has_room(prompts: PromptBuilder, positions: int, sentence: str) -> None:
    """Whatever was said before it; and nothing of it is lost."""
    made = prompting(prompts, positions=positions, context=LONG[:3])
    pieces = made.pieces(sentence)
    assert "".join(pieces).replace(" ", "") == sentence.replace(" ", "")
    for piece in pieces:
        utterance = made.prepare(piece)
        assert utterance.max_frames == speech_cap_frames(piece), "none of them is cut short"
        made.said(piece, random_codes(min(utterance.max_frames, 250), len(piece)))
        assert utterance.rows + utterance.max_frames <= positions
    assert prompting(prompts, options=SpeechOptions(split_sentences=False)).pieces(sentence) == [sentence]
    assert prompting(prompts).pieces("word " * 49 + "word.") == ["word " * 49 + "word."]


@pytest.mark.parametrize("max_seconds", [0.08, 1.0])
def test_text_that_may_take_no_time_has_room_too(prompts: PromptBuilder, max_seconds: float) -> None:
    sentence = "今天天气很好我们去公园散步然后回家吃饭" * 13
    made = prompting(prompts, positions=256, options=SpeechOptions(max_seconds=max_seconds))
    pieces = made.pieces(sentence)
    assert "".join(pieces) == sentence
    for piece in pieces:
        utterance = made.prepare(piece)
        assert utterance.max_frames == SpeechOptions(max_seconds=max_seconds).max_frames
        made.said(piece, random_codes(utterance.max_frames))
