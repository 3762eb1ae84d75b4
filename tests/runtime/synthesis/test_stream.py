"""Sound as it is made: chunks, seams, the prompts of long text, and what is done when it goes wrong."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from speaking import Scripted, load_tts, random_codes

from miso_gguf.models.noise import gumbel_noise
from miso_gguf.runtime.audio.samples import Samples, cut_off, ramp_down
from miso_gguf.runtime.codec.codec import Codec, CodecStream
from miso_gguf.runtime.lm.batcher import BUFFER_FRAMES
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Chunk, Segment
from miso_gguf.runtime.synthesis.reading import speech_cap_frames
from miso_gguf.runtime.synthesis.speaker import SENTENCE_GAP_MS
from miso_gguf.runtime.synthesis.stopping import KEPT_FRAMES, LEAD_IN_FRAMES, LONGEST_PAUSE_FRAMES, LOOP_FRAMES
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice

Codes = NDArray[np.int64]
Floats = NDArray[np.float32]

FRAME = 1920
FADE, RAMP = 120, 240
PAUSE = round(SENTENCE_GAP_MS * 24)
SENTENCES = ("First, something is said here.", "Then something else is said.", "And that is all there is to say.")
TEXT = " ".join(SENTENCES)
CALM = 0.01
"""A step between two samples that nobody hears as a click: a 5 ms ramp from 0.2 has steps of 0.003."""


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[MisoTTS]:
    """For tests that do not mind what was said before; its choices are scripted in most of them."""
    with load_tts(bundle, exact=True) as tts:
        yield tts


def all_is_back(model: MisoTTS) -> bool:
    """Whether every sequence is free; what was cancelled leaves with the batcher's next turn."""
    batcher, patience = model.engine.batcher, time.monotonic() + 10
    while batcher.running and time.monotonic() < patience:
        time.sleep(0.001)
    return not batcher.running


def whole(sound: Samples) -> Samples:
    """What is heard of a sentence that ended by itself."""
    return np.concatenate([sound, ramp_down(float(sound[-1]))])


def segment(index: int, codes: Codes) -> Segment:
    return Segment(SENTENCES[index], codes, 0)


# The real model.


@pytest.mark.parametrize("chunk_frames", [1, 2, 5])
def test_streamed_sound_is_the_offline_decode(model: MisoTTS, chunk_frames: int) -> None:
    options = SpeechOptions(seed=4, max_seconds=1.84, chunk_frames=chunk_frames)
    with model.stream(SENTENCES[0], options=options) as stream:
        chunks = list(stream)
    codes = stream.speech.codes
    assert codes.shape == (23, 8)
    lengths = [1] + [chunk_frames] * (22 // chunk_frames) + [22 % chunk_frames] * (22 % chunk_frames > 0)
    assert [len(chunk.samples) for chunk in chunks] == [FRAME * count for count in lengths]
    assert all(chunk.samples.dtype == np.float32 for chunk in chunks)
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert samples.std() > 0.02
    np.testing.assert_allclose(samples, cut_off(model.codec.decode(model.codec.playable(codes))), rtol=0, atol=1e-5)
    starts = np.cumsum([0, *(len(chunk.samples) for chunk in chunks[:-1])]) / 24_000
    assert [chunk.start_s for chunk in chunks] == pytest.approx(list(starts))
    assert [chunk.elapsed_s for chunk in chunks] == sorted(chunk.elapsed_s for chunk in chunks)

    generated = model.generate(SENTENCES[0], options=options)
    np.testing.assert_array_equal(generated.codes, codes)
    np.testing.assert_allclose(generated.samples, samples, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.generate_codes(SENTENCES[0], options=options), codes)


def test_long_text_streams_what_it_generates(model: MisoTTS) -> None:
    """Three sentences, each on the ones before: a difference in one would go on in the next."""
    options = SpeechOptions(seed=9, max_seconds=0.8, chunk_frames=3)
    with model.stream(TEXT, options=options) as stream:
        samples = np.concatenate([chunk.samples for chunk in stream])
    generated = model.generate(TEXT, options=options)
    assert [sentence.text for sentence in generated.sentences] == list(SENTENCES)
    for streamed, sentence in zip(stream.speech.sentences, generated.sentences, strict=True):
        np.testing.assert_array_equal(streamed.codes, sentence.codes)
        assert (streamed.ended, streamed.prompt_rows) == (sentence.ended, sentence.prompt_rows)
    np.testing.assert_allclose(generated.samples, samples, rtol=0, atol=1e-5)
    assert [generated.audio_s, stream.speech.audio_s] == pytest.approx([len(samples) / 24_000] * 2)
    assert generated.timing.frames == stream.speech.timing.frames == 30
    assert stream.speech.parts == []


def test_no_chunk_waits_for_a_frame_that_is_not_in_it(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch, model.engine, [random_codes(6)])
    step, may_go_on = model.engine.step, threading.Semaphore(0)

    def held_up(sequences: Sequence[int], codes: Sequence[Codes]) -> tuple[Floats, Floats]:
        assert may_go_on.acquire(timeout=30)
        return step(sequences, codes)

    monkeypatch.setattr(model.engine, "step", held_up)
    with model.stream(SENTENCES[0], options=SpeechOptions(chunk_frames=3)) as stream:
        first = next(stream)
        assert len(first.samples) == FRAME
        assert stream.speech.timing.first_audio_s == first.elapsed_s > 0
        may_go_on.release(3)
        rest = [next(stream)]
        assert len(rest[0].samples) == 3 * FRAME
        may_go_on.release(3)
        rest += stream
    assert scripted.steps == 6
    assert [len(chunk.samples) for chunk in rest] == [3 * FRAME, 2 * FRAME, RAMP]


def test_what_was_streamed_is_not_saved_as_silence(model: MisoTTS, tmp_path: Path) -> None:
    with model.stream(TEXT, options=SpeechOptions(max_seconds=0.4)) as stream:
        assert list(stream)
    with pytest.raises(ValueError, match="was streamed, and its sound went with the chunks"):
        stream.speech.save(tmp_path / "sound.wav")
    assert not list(tmp_path.iterdir())
    with model.stream(TEXT, options=SpeechOptions(max_seconds=0.4), live=False) as stream:
        heard = np.concatenate([chunk.samples for chunk in stream])
    np.testing.assert_array_equal(stream.speech.samples, heard)


def test_nothing_is_done_before_the_first_chunk_is_asked_for(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch, model.engine, [random_codes(1)])
    stream = model.stream(SENTENCES[0])
    assert not scripted.prompts
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize("taken", [1, 4, 45])
def test_closing_half_way_leaves_nothing_behind(model: MisoTTS, taken: int) -> None:
    """In the first frame, in the first sentence, in the second; each has more frames than a ticket holds."""
    options = SpeechOptions(max_seconds=3.2)
    stream = model.stream(TEXT, options=options)
    chunks = [next(stream) for _ in range(taken)]
    assert model.engine.batcher.running == 1
    stream.close()
    stream.close()
    assert all_is_back(model)
    assert list(stream) == []
    # The only sequence is back, and what was half said does not show.
    with model.stream(TEXT, options=options) as again:
        for before, after in zip(chunks, again, strict=False):
            np.testing.assert_array_equal(before.samples, after.samples)
    assert all_is_back(model)


def test_an_error_half_way_leaves_nothing_behind(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenError(Exception):
        pass

    def broken(*_: object) -> None:
        raise BrokenError

    options = SpeechOptions(max_seconds=0.8)
    stream = model.stream(TEXT, options=options)
    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "step", broken)
        with pytest.raises(BrokenError):
            list(stream)
    assert all_is_back(model)
    assert len(model.generate_codes(TEXT, options=options)) == 10


def test_a_stream_that_is_dropped_is_closed(model: MisoTTS) -> None:
    for _ in model.stream(TEXT, options=SpeechOptions(max_seconds=0.8)):
        break
    assert all_is_back(model)
    assert len(model.generate_codes(TEXT, options=SpeechOptions(max_seconds=0.8))) == 10


# Prompts of long text, with a scripted model.


def keys(blocks: list[Block]) -> list[bytes]:
    return [block.key for block in blocks]


def test_without_a_voice_the_first_sentence_is_the_anchor(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [random_codes(12, 1), random_codes(10, 2), random_codes(11, 3)]
    scripted = Scripted(monkeypatch, model.engine, takes)
    speech = model.generate(TEXT)
    prompts = model.engine.prompts
    first, second = (prompts.segment(segment(index, takes[index])) for index in (0, 1))
    said = [prompts.text(sentence, 0) for sentence in SENTENCES]
    expected = [[said[0]], [first, said[1]], [first, second, said[2]]]
    assert [keys(blocks) for blocks in scripted.prompts] == [keys(blocks) for blocks in expected]
    for index, sentence in enumerate(speech.sentences):
        np.testing.assert_array_equal(sentence.codes, takes[index])
        assert (sentence.text, sentence.ended, sentence.tries) == (SENTENCES[index], "eos", 1)
        assert (sentence.prompt_rows, sentence.dropped_segments) == (sum(map(len, expected[index])), 0)
    np.testing.assert_array_equal(speech.codes, np.concatenate(takes))
    assert [(s.text, s.speaker) for s in speech.segments] == [(sentence, 0) for sentence in SENTENCES]
    # Sentences of one seed draw from streams of their own.
    for index, noise in enumerate(scripted.noise):
        np.testing.assert_array_equal(noise, gumbel_noise(0, 0, 8, 515, stream=index) * np.float32(0.9))


def test_a_voice_stays_and_the_context_comes_after_it(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [random_codes(12, 1), random_codes(10, 2), random_codes(11, 3)]
    scripted = Scripted(monkeypatch, model.engine, takes)
    voice = Voice(random_codes(9, 7), "Words of the voice.", 4)
    earlier = Segment("What somebody else said.", random_codes(5, 8), 2)
    speech = model.generate(TEXT, voice=voice, context=[earlier])
    prompts = model.engine.prompts
    head = [prompts.segment(Segment(voice.text, voice.codes, 4)), prompts.segment(earlier)]
    said = [prompts.text(sentence, 4) for sentence in SENTENCES]
    spoken = [prompts.segment(Segment(SENTENCES[index], takes[index], 4)) for index in (0, 1)]
    expected = [[*head, said[0]], [*head, spoken[0], said[1]], [*head, *spoken, said[2]]]
    assert [keys(blocks) for blocks in scripted.prompts] == [keys(blocks) for blocks in expected]
    assert speech.speaker == 4
    assert [segment.speaker for segment in speech.segments] == [4, 4, 4]


def test_context_without_room_is_dropped_oldest_first(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(monkeypatch, model.engine, [random_codes(3)])
    voice = Voice(random_codes(100, 7), "Words of the voice.")
    context = [Segment(f"Number {index}.", random_codes(600, index), 1) for index in range(5)]
    with caplog.at_level(logging.INFO, "miso_gguf.runtime.synthesis.speaker"):
        speech = model.generate(SENTENCES[0], voice=voice, context=context)
    prompts = model.engine.prompts
    expected = [
        prompts.segment(Segment(voice.text, voice.codes)),
        *map(prompts.segment, context[3:]),
        prompts.text(SENTENCES[0], 0),
    ]
    assert keys(scripted.prompts[0]) == keys(expected)
    assert speech.sentences[0].dropped_segments == 3
    assert speech.sentences[0].prompt_rows == sum(map(len, expected)) < 2048 - speech_cap_frames(SENTENCES[0])
    assert "3 context segments have no room beside 'First, something is said here.'" in caplog.text


def test_a_prompt_that_is_too_long_is_refused(model: MisoTTS) -> None:
    words = "word " * 2000
    with pytest.raises(ValueError, match=r"the prompt takes \d+ positions \(\d+ of them text\) of 2048, which leaves"):
        model.generate_codes(words)
    with pytest.raises(ValueError, match="split the text"):
        model.generate(words, options=SpeechOptions(split_sentences=False))
    assert len(model.generate_codes("Short again.", options=SpeechOptions(max_seconds=0.1))) == 1


# Seams.


def steps_at(samples: Samples, start: int, stop: int) -> float:
    return float(np.abs(np.diff(samples[start:stop])).max())


def spoken(model: MisoTTS, *, live: bool) -> tuple[Samples, list[Chunk]]:
    if not live:
        return model.generate(TEXT).samples, []
    chunks = list(model.stream(TEXT))
    return np.concatenate([chunk.samples for chunk in chunks]), chunks


@pytest.mark.parametrize("live", [True, False], ids=["stream", "generate"])
def test_sentences_are_joined_without_a_step(model: MisoTTS, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    takes = [random_codes(6, 0), random_codes(6, 1), random_codes(5, 2)]
    alone = [model.codec.decode(codes) for codes in takes]
    assert min(abs(sound[-1]) for sound in alone[:2]) > 3 * CALM, "each end must be a click if nothing is done"
    Scripted(monkeypatch, model.engine, takes)
    samples, chunks = spoken(model, live=live)
    position = 0
    for index, sound in enumerate(alone):
        fade = FADE if index else 0
        found = samples[position : position + len(sound)]
        np.testing.assert_allclose(found[fade:], sound[fade:], rtol=0, atol=1e-5)
        position += len(sound) + RAMP
        assert samples[position - 1] == 0, "each sentence ends at zero"
        assert steps_at(samples, position - RAMP - 1, position + PAUSE + 10) < CALM
        if index < 2:
            assert not samples[position : position + PAUSE].any(), "a pause is silent"
            position += PAUSE
    assert len(samples) == position
    if live:
        assert [chunk.sentence for chunk in chunks] == [0] * 7 + [1] * 7 + [2] * 6


@pytest.mark.parametrize("live", [True, False], ids=["stream", "generate"])
def test_a_sentence_that_stays_empty_makes_no_click(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    first, last = random_codes(6, 0), random_codes(5, 2)
    scripted = Scripted(monkeypatch, model.engine, [first, first[:0], first[:0], last])
    samples, _ = spoken(model, live=live)
    alone = model.codec.decode(first)
    gap = (len(alone) - 1, len(alone) + RAMP + PAUSE + 10)
    assert abs(alone[-1]) > 3 * CALM
    assert len(samples) == 11 * FRAME + 2 * RAMP + PAUSE
    assert steps_at(samples, *gap) < CALM
    # What is said next follows the first sentence.
    assert keys(scripted.prompts[3]) == keys(
        [model.engine.prompts.segment(segment(0, first)), model.engine.prompts.text(SENTENCES[2], 0)]
    )


# What goes wrong.


@pytest.mark.parametrize("live", [True, False], ids=["stream", "generate"])
def test_eos_at_once_is_tried_again(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, live: bool
) -> None:
    takes = [random_codes(0), random_codes(4)]
    scripted = Scripted(monkeypatch, model.engine, takes)
    if live:
        with model.stream(SENTENCES[0]) as stream:
            assert len(list(stream)) == 5
        speech = stream.speech
    else:
        speech = model.generate(SENTENCES[0])
    np.testing.assert_array_equal(speech.codes, takes[1])
    assert (speech.sentences[0].tries, speech.sentences[0].ended) == (2, "eos")
    assert "'First, something is said here.' ended by empty after 0 frames: spoken again with another" in caplog.text
    assert speech.audio_s == pytest.approx(0.33)
    assert speech.timing.frames == 6
    # Another seed, of which no sentence has the like.
    first, second = scripted.noise
    np.testing.assert_array_equal(first, gumbel_noise(0, 0, 8, 515) * np.float32(0.9))
    np.testing.assert_array_equal(second, gumbel_noise(0, 0, 8, 515, stream=1 << 32) * np.float32(0.9))


@pytest.mark.parametrize(
    ("options", "tries"),
    [(SpeechOptions(), 2), (SpeechOptions(retry=False), 1), (SpeechOptions(temperature=0), 1)],
    ids=["twice", "no retry", "greedy"],
)
def test_nothing_but_eos_is_empty_sound_and_a_warning(
    model: MisoTTS,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: SpeechOptions,
    tries: int,
) -> None:
    Scripted(monkeypatch, model.engine, [random_codes(0)] * 4)
    speech = model.generate(SENTENCES[0], options=options)
    assert speech.samples.shape == (0,)
    assert speech.codes.shape == (0, 8)
    assert (speech.sentences[0].ended, speech.sentences[0].tries) == ("empty", tries)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * tries
    assert "kept up to there" in caplog.records[-1].getMessage()
    assert speech.segments == []
    assert speech.rtf == float("inf")
    assert speech.as_dict()["rtf"] is None
    with model.stream(SENTENCES[0], options=options) as stream:
        assert list(stream) == []


def looping(before: int) -> Codes:
    """Speech, then a frame that comes again and again."""
    return np.concatenate([random_codes(before, 5), np.repeat(random_codes(1, 6), LOOP_FRAMES + 30, axis=0)])


def test_a_loop_is_spoken_again(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = random_codes(20, 3)
    Scripted(monkeypatch, model.engine, [looping(8), good])
    speech = model.generate(SENTENCES[0])
    np.testing.assert_array_equal(speech.codes, good)
    assert (speech.sentences[0].ended, speech.sentences[0].tries) == ("eos", 2)
    assert f"ended by loop after {8 + LOOP_FRAMES} frames: spoken again with another seed" in caplog.text
    np.testing.assert_allclose(speech.samples, whole(model.codec.decode(good)), rtol=0, atol=1e-5)


def test_a_loop_that_comes_again_is_cut_with_a_fade(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [looping(8), looping(11)]
    Scripted(monkeypatch, model.engine, takes)
    speech = model.generate(SENTENCES[0])
    kept = takes[1][: 11 + KEPT_FRAMES]
    np.testing.assert_array_equal(speech.codes, kept)
    assert (speech.sentences[0].ended, speech.sentences[0].tries) == ("loop", 2)
    expected = model.codec.decode(kept)
    np.testing.assert_allclose(speech.samples[: -2 * FADE], expected[: -2 * FADE], rtol=0, atol=1e-5)
    assert speech.samples.shape == expected.shape
    assert speech.samples[-1] == 0
    assert abs(expected[-1]) > CALM / 2


def test_what_was_heard_is_not_taken_back(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream ends a loop, too, but does not begin again."""
    codes = looping(8)
    Scripted(monkeypatch, model.engine, [codes])
    with model.stream(SENTENCES[0]) as stream:
        samples = np.concatenate([chunk.samples for chunk in stream])
    np.testing.assert_array_equal(stream.speech.codes, codes[: 8 + KEPT_FRAMES], "what follows it goes on from there")
    assert (stream.speech.sentences[0].ended, stream.speech.sentences[0].tries) == ("loop", 1)
    np.testing.assert_allclose(samples, cut_off(model.codec.decode(codes[: 8 + LOOP_FRAMES])), rtol=0, atol=1e-5)


def mute(monkeypatch: pytest.MonkeyPatch, codec: Codec, quiet: Codes) -> None:
    """Make frames that begin with a code of `quiet` silent."""
    decode = codec.decode_together

    def muted(streams: Sequence[CodecStream], codes: Sequence[Codes]) -> list[Samples]:
        loud = (~np.isin(each[:, 0], quiet) for each in codes)
        pairs = zip(decode(streams, codes), loud, strict=True)
        return [sound * np.repeat(frames, FRAME).astype(np.float32) for sound, frames in pairs]

    monkeypatch.setattr(codec, "decode_together", muted)


QUIET = np.arange(256, 512)


def quiet_codes(frames: int, seed: int) -> Codes:
    codes = random_codes(frames, seed)
    codes[:, 0] = np.random.default_rng(seed).integers(256, 512, frames)
    return codes


def loud_codes(frames: int, seed: int) -> Codes:
    codes = random_codes(frames, seed)
    codes[:, 0] = np.random.default_rng(seed).integers(1, 256, frames)
    return codes


@pytest.mark.parametrize("live", [True, False], ids=["stream", "generate"])
def test_silence_from_the_start_is_spoken_again(model: MisoTTS, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    good = loud_codes(12, 1)
    scripted = Scripted(monkeypatch, model.engine, [quiet_codes(124, 2), good])
    mute(monkeypatch, model.codec, QUIET)
    if live:
        with model.stream(SENTENCES[0]) as stream:
            samples = np.concatenate([chunk.samples for chunk in stream])
        speech = stream.speech
        assert not samples[: LEAD_IN_FRAMES * FRAME].any()
        samples = samples[-12 * FRAME - RAMP :]
        assert scripted.steps < LEAD_IN_FRAMES + 12 + 20, "it does not wait for the cap"
    else:
        speech = model.generate(SENTENCES[0])
        samples = speech.samples
    np.testing.assert_array_equal(speech.codes, good)
    assert (speech.sentences[0].ended, speech.sentences[0].tries) == ("eos", 2)
    np.testing.assert_allclose(samples, whole(model.codec.stream().decode(good)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("live", [True, False], ids=["stream", "generate"])
def test_silence_after_speech_ends_it(model: MisoTTS, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    """The words are there: nothing is spoken again. What has not been heard yet is cut off."""
    codes = np.concatenate([loud_codes(15, 1), quiet_codes(109, 2)])
    scripted = Scripted(monkeypatch, model.engine, [codes])
    mute(monkeypatch, model.codec, QUIET)
    if live:
        with model.stream(SENTENCES[0]) as stream:
            frames = sum(len(chunk.samples) for chunk in stream) // FRAME
        speech = stream.speech
        assert frames == 15 + LONGEST_PAUSE_FRAMES
        assert scripted.steps < frames + BUFFER_FRAMES + 2, "it does not wait for the cap"
    else:
        speech = model.generate(SENTENCES[0])
        assert len(speech.samples) == (15 + KEPT_FRAMES) * FRAME
    np.testing.assert_array_equal(speech.codes, codes[: 15 + KEPT_FRAMES])
    assert (speech.sentences[0].ended, speech.sentences[0].tries) == ("silence", 1)


def test_no_end_in_sight(model: MisoTTS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The text sets a limit, and a sentence that gets there is spoken again; one that the caller set is only that."""
    limit = speech_cap_frames(SENTENCES[0])
    takes = [random_codes(500, 1), random_codes(500, 2)]
    scripted = Scripted(monkeypatch, model.engine, takes)
    speech = model.generate(SENTENCES[0])
    np.testing.assert_array_equal(speech.codes, takes[1][:limit])
    assert (speech.sentences[0].ended, speech.sentences[0].tries) == ("cap", 2)
    assert scripted.steps == 2 * (limit - 1)
    assert f"ended by cap after {limit} frames: spoken again with another seed" in caplog.text
    np.testing.assert_allclose(speech.samples, cut_off(model.codec.decode(speech.codes)), rtol=0, atol=1e-5)
    Scripted(monkeypatch, model.engine, takes[:1])
    speech = model.generate(SENTENCES[0], options=SpeechOptions(max_seconds=0.99))
    assert (len(speech.codes), speech.sentences[0].tries) == (12, 1)


def test_codes_beyond_the_codec_are_played_as_code_0(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The vocabulary has three specials that no audio belongs to; they stay in the record."""
    codes = random_codes(5)
    codes[2, 3], codes[3, 0] = 514, 512
    Scripted(monkeypatch, model.engine, [codes])
    speech = model.generate(SENTENCES[0])
    np.testing.assert_array_equal(speech.codes, codes)
    expected = whole(model.codec.decode(np.where(codes >= 512, 0, codes)))
    np.testing.assert_allclose(speech.samples, expected, rtol=0, atol=1e-5)
    assert sum("no audio belongs to" in record.getMessage() for record in caplog.records) == 1


def test_a_hundred_thousand_characters(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentence by sentence; the prompts do not grow for ever."""
    text = f"This is a sentence that goes on{', and on' * 21}, because a hundred thousand letters take long. " * 410
    assert len(text) > 100_000
    scripted = Scripted(monkeypatch, model.engine, [random_codes(1)] * 410)
    speech = model.generate(text)
    assert "".join(sentence.text for sentence in speech.sentences).replace(" ", "") == text.replace(" ", "")
    assert len(scripted.prompts) == len(speech.sentences) == 410
    rows = [sentence.prompt_rows for sentence in speech.sentences]
    assert max(rows[:30]) == max(rows) < 2048 - speech_cap_frames(speech.sentences[0].text)
    assert len(speech.samples) == len(speech.sentences) * (FRAME + RAMP + PAUSE) - PAUSE
