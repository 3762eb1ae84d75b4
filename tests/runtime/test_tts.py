"""`MisoTTS` as a user meets it: the same result whatever came before, whoever else speaks; else clear words."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from speaking import load_tts, random_codes, segments

import miso_gguf
from miso_gguf import EngineOptions, MisoTTS, Segment, SpeechOptions, Voice
from miso_gguf.core.errors import MisoError
from miso_gguf.native.device import Device
from miso_gguf.runtime.bundle import OpenLevel
from miso_gguf.runtime.lm import engine as engine_module
from miso_gguf.runtime.speech import Speech

Codes = NDArray[np.int64]

TEXT = "First, something is said here. Then something else is said."
SHORT = SpeechOptions(max_seconds=0.8, seed=2)
VOICE = Voice(random_codes(9, 7), "Words of the voice.", 4)


@pytest.fixture(scope="module")
def wide(bundle: Path) -> Iterator[MisoTTS]:
    with load_tts(bundle, exact=True, sequences=2) as tts:
        yield tts


# Determinism.


def test_the_same_seed_gives_the_same_codes_in_a_new_model_too(bundle: Path, tts: MisoTTS) -> None:
    first = tts.generate(TEXT, voice=VOICE, options=SHORT)
    assert len(first.codes) == 20
    for between in ("Something in between, without a voice.", TEXT):
        tts.generate(between, options=replace(SHORT, seed=77))
        again = tts.generate(TEXT, voice=VOICE, options=SHORT)
        np.testing.assert_array_equal(again.codes, first.codes)
        np.testing.assert_array_equal(again.samples, first.samples)
    with load_tts(bundle, exact=True) as fresh:
        np.testing.assert_array_equal(fresh.generate(TEXT, voice=VOICE, options=SHORT).codes, first.codes)
    other = tts.generate(TEXT, voice=VOICE, options=replace(SHORT, seed=3))
    assert (other.codes != first.codes).mean() > 0.5


def test_at_every_level(bundle: Path) -> None:
    """What a user loads, with its defaults but for threads: F16 KV cache, flash attention, repacked weights."""
    for level in ("fp16", "q8_0", "q4_k_m"):
        with MisoTTS.load(bundle, level, threads=1, gpu_layers=0, verify=True) as tts:
            first = tts.generate(TEXT, options=SHORT)
            tts.generate("Something else.", voice=VOICE, options=SHORT)
            np.testing.assert_array_equal(tts.generate(TEXT, options=SHORT).codes, first.codes)
        with MisoTTS.load(bundle, level, threads=1, gpu_layers=0) as tts:
            np.testing.assert_array_equal(tts.generate(TEXT, options=SHORT).codes, first.codes)


# What is computed, and what is kept.


def test_a_second_sentence_in_a_voice_computes_only_what_is_new(tts: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    decode = tts.engine.backbone._model.decode

    def counting(embeddings: Any, sequences: Any, positions: Any, wanted: list[bool]) -> Any:
        if len(embeddings) > 1:  # a step of the backbone has one row
            rows.append(len(embeddings))
        return decode(embeddings, sequences, positions, wanted)

    monkeypatch.setattr(tts.engine.backbone._model, "decode", counting)
    prompts = tts.engine.prompts
    voice = len(prompts.segment(Segment(VOICE.text, VOICE.codes, 4)))
    texts = ["One thing.", "Another thing, quite different."]
    computed = []
    for text in (*texts, texts[0]):
        tts.generate_codes(text, voice=VOICE, options=SHORT)
        computed.append(sum(rows))
        rows.clear()
    lengths = [len(prompts.text(text, 4)) for text in texts]
    assert computed == [voice + lengths[0], lengths[1], lengths[0]]


def test_a_batch_is_what_each_is_alone(wide: MisoTTS) -> None:
    texts = ["One thing.", "Another thing, quite different.", "And a third one that is alone in the end."]
    options = [replace(SHORT, seed=index, top_k=3 + 40 * index, max_seconds=0.4 + index / 5) for index in range(3)]
    batch = wide.generate_batch(texts, voice=VOICE, context=segments(1), options=options)
    assert [speech.codes.shape for speech in batch] == [(5, 8), (7, 8), (10, 8)]
    for text, option, speech in zip(texts, options, batch, strict=True):
        alone = wide.generate_codes(text, voice=VOICE, context=segments(1), options=option)
        np.testing.assert_array_equal(speech.codes, alone)
    same = wide.generate_batch(texts[:2], options=SHORT)
    assert [len(speech.codes) for speech in same] == [10, 10]
    assert wide.generate_batch([]) == []
    with pytest.raises(ValueError, match="3 texts need as many options, not 2"):
        wide.generate_batch(texts, options=options[:2])
    with pytest.raises(ValueError, match="texts must be a list of texts"):
        wide.generate_batch("Hello")


def test_a_conversation_goes_on(tts: MisoTTS) -> None:
    """What was said is context for what is said next, under its speaker's number."""
    first = tts.generate("What do you think?", speaker=1, options=SHORT)
    assert [(segment.text, segment.speaker) for segment in first.segments] == [("What do you think?", 1)]
    second = tts.generate("I do not know.", speaker=2, context=first.segments, options=SHORT)
    assert second.sentences[0].prompt_rows == sum(
        map(len, [tts.engine.prompts.segment(first.segments[0]), tts.engine.prompts.text("I do not know.", 2)])
    )
    alone = tts.generate("I do not know.", speaker=2, options=SHORT)
    assert (alone.codes != second.codes).any()


def test_a_long_conversation_loses_its_beginning(tts: MisoTTS, caplog: pytest.LogCaptureFixture) -> None:
    context = [Segment(f"Turn {index}.", random_codes(300, index), index % 2) for index in range(12)]
    with caplog.at_level(logging.INFO):
        speech = tts.generate("And now?", voice=VOICE, context=context, options=SHORT)
    sentence = speech.sentences[0]
    kept = 12 - sentence.dropped_segments
    prompts = tts.engine.prompts
    fixed = len(prompts.segment(Segment(VOICE.text, VOICE.codes, 4))) + len(prompts.text("And now?", 4))
    turns = [len(prompts.segment(segment)) for segment in context]
    assert sentence.prompt_rows == fixed + sum(turns[12 - kept :])
    room = 3 / 4 * (2048 - fixed)
    assert abs(sum(turns[12 - kept :]) - 0.6 * room) < turns[0] / 2, "about 60 % is kept, so that more has room"


def test_a_shorter_context_holds_less(bundle: Path) -> None:
    spoken = {}
    for context in (None, 300):
        with MisoTTS.load(bundle, "q4_k_m", options=EngineOptions(threads=1, gpu_layers=0, context=context)) as tts:
            said = [Segment(f"Turn {index}.", random_codes(100, index), index % 2) for index in range(4)]
            spoken[context] = tts.generate("And now?", context=said, options=SHORT).sentences[0]
    assert spoken[None].dropped_segments == 0
    assert spoken[300].dropped_segments == 2
    assert spoken[300].prompt_rows <= 290
    refusals = {
        2049: "context must be 1 to 2048 for Miso-Tiny, not 2049",
        5: "room for a word and a frame, 7 or more, not 5",
    }
    for context, message in refusals.items():
        with pytest.raises(ValueError, match=message):
            MisoTTS.load(bundle, "q4_k_m", options=EngineOptions(threads=1, gpu_layers=0, context=context))


def test_a_stream_may_give_whole_sentences(tts: MisoTTS) -> None:
    with tts.stream(TEXT, options=SHORT, live=False) as stream:
        chunks = list(stream)
    assert [chunk.sentence for chunk in chunks] == [0, 1]
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), stream.speech.samples)
    np.testing.assert_array_equal(stream.speech.codes, tts.generate(TEXT, options=SHORT).codes)


# Threads.


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


@pytest.mark.parametrize("sequences", [1, 2])
def test_several_threads_get_what_each_gets_alone(tts: MisoTTS, wide: MisoTTS, sequences: int) -> None:
    model = tts if sequences == 1 else wide
    texts = [TEXT, "Another thing, quite different.", "A third. It has two sentences, I think."]
    voices = [VOICE, None, VOICE]
    expected = [
        model.generate(text, voice=voice, options=replace(SHORT, seed=index))
        for index, (text, voice) in enumerate(zip(texts, voices, strict=True))
    ]
    found: dict[tuple[int, int], Speech] = {}

    def work(index: int) -> None:
        for turn in range(3):
            options = replace(SHORT, seed=index)
            found[index, turn] = model.generate(texts[index], voice=voices[index], options=options)

    in_threads(3, work)
    assert len(found) == 9
    for (index, _), speech in found.items():
        np.testing.assert_array_equal(speech.codes, expected[index].codes)
        np.testing.assert_array_equal(speech.samples, expected[index].samples)


def test_batches_and_streams_of_several_threads(wide: MisoTTS) -> None:
    """A batch takes both sequences, a stream one: nobody waits for ever, and nobody hears another."""
    texts = ["One thing.", "Another thing, quite different."]
    expected = wide.generate_batch(texts, options=SHORT)
    streamed = wide.generate(TEXT, options=SHORT).codes

    def work(index: int) -> None:
        for _ in range(2):
            if index % 2:
                for found, speech in zip(wide.generate_batch(texts, options=SHORT), expected, strict=True):
                    np.testing.assert_array_equal(found.codes, speech.codes)
            else:
                with wide.stream(TEXT, options=SHORT) as stream:
                    for _chunk in stream:
                        pass
                np.testing.assert_array_equal(stream.speech.codes, streamed)

    in_threads(4, work)


def test_two_streams_of_one_thread_with_two_sequences(wide: MisoTTS) -> None:
    alone = [wide.generate(TEXT, options=replace(SHORT, seed=seed)).codes for seed in (1, 2)]
    streams = [wide.stream(TEXT, options=replace(SHORT, seed=seed)) for seed in (1, 2)]
    for _ in zip(*streams, strict=True):
        pass
    for stream, codes in zip(streams, alone, strict=True):
        np.testing.assert_array_equal(stream.speech.codes, codes)


def test_a_second_stream_beside_one_that_nobody_reads_does_not_wait_for_ever(bundle: Path) -> None:
    long = SpeechOptions(max_seconds=4)
    with load_tts(bundle, patience_s=0.2) as tts, tts.stream(TEXT, options=long) as stream:
        next(stream)
        message = (
            "for 0.2 s nobody has read what is open, and it holds all sequences .1.: finish or close those streams"
        )
        with pytest.raises(MisoError, match=message):
            tts.generate(TEXT, options=SHORT)
        assert sum(len(chunk.samples) for chunk in stream) > 30 * 1920
        assert len(tts.generate(TEXT, options=SHORT).codes) == 20


def test_another_thread_waits_for_the_stream_to_end(tts: MisoTTS) -> None:
    expected = tts.generate_codes("Something else.", options=SHORT)
    found: list[Codes] = []
    stream = tts.stream(TEXT, options=replace(SHORT, max_seconds=4))
    next(stream)
    thread = threading.Thread(target=lambda: found.append(tts.generate_codes("Something else.", options=SHORT)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    stream.close()
    thread.join(30)
    np.testing.assert_array_equal(found[0], expected)


# Closing.


def test_closing_ends_what_is_being_spoken(tts: MisoTTS) -> None:
    stream = tts.stream(TEXT, options=replace(SHORT, max_seconds=4))
    next(stream)
    tts.close()
    tts.close()
    with pytest.raises(MisoError, match="the model was closed while this was being spoken"):
        list(stream)


def test_a_closed_model_says_so(bundle: Path) -> None:
    tts = load_tts(bundle)
    late = tts.stream(TEXT, options=SHORT)
    tts.close()
    calls: list[Callable[[], object]] = [
        lambda: tts.generate(TEXT),
        lambda: tts.generate_codes(TEXT),
        lambda: tts.generate_batch([TEXT]),
        lambda: next(late),
        lambda: tts.stream(TEXT),
        lambda: tts.plan(TEXT),
        lambda: tts.generate(TEXT, voice=VOICE),
        lambda: Voice.from_audio(np.sin(np.arange(24_000, dtype=np.float32)), "Words.", tts.codec),
    ]
    for call in calls:
        with pytest.raises(MisoError, match=r"closed"):
            call()


def test_an_error_of_the_callers_own_comes_through(bundle: Path) -> None:
    """Though a stream was open: it ends with the loop that read it."""
    tts = load_tts(bundle)

    def interrupted() -> None:
        with tts:
            for _ in tts.stream(TEXT, options=SHORT):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    with pytest.raises(MisoError, match="this model is closed"):
        tts.generate(TEXT)


# What cannot be spoken, and by what.


@pytest.mark.parametrize("text", ["", "  \n\t ", "...", "\0\0", "\u200b", "!?"])
def test_nothing_to_say(tts: MisoTTS, text: str) -> None:
    for call in (tts.generate, tts.stream, tts.generate_codes):
        with pytest.raises(ValueError, match="nothing to say: no letter or digit"):
            call(text)
    with pytest.raises(ValueError, match="nothing to say"):
        tts.generate_batch(["Words.", text])


@pytest.mark.parametrize("text", ["Привет, мир.", "你好。再见。", "مرحبا", "a\0b c", "🎉 party 🎉", "3"])
def test_any_script_is_spoken(tts: MisoTTS, text: str) -> None:
    assert len(tts.generate(text, options=replace(SHORT, max_seconds=0.16)).codes) >= 2


def test_voices_and_context_of_another_model_are_refused(tts: MisoTTS) -> None:
    with pytest.raises(ValueError, match="the voice has 4 codebooks, the model's codec has 8"):
        tts.generate(TEXT, voice=Voice(np.ones((3, 4), np.int64), "Words."))
    with pytest.raises(ValueError, match="has code 1000, the model's codec has"):
        tts.stream(TEXT, voice=Voice(np.full((3, 8), 1000), "Words."))
    with pytest.raises(ValueError, match="it was made with another model"):
        tts.generate(TEXT, context=[Segment("Words.", np.ones((3, 4), np.int64))])
    with pytest.raises(ValueError, match="a speaker is a number from 0, not -1"):
        tts.generate(TEXT, speaker=-1)
    with pytest.raises(ValueError, match="loudness is a property of the whole"):
        tts.stream(TEXT, options=SpeechOptions(loudness_lufs=-16))


def test_a_voice_of_ones_own(tts: MisoTTS, tmp_path: Path) -> None:
    """From sound to a file to the prompt, through the bundle's own encoder."""
    sound = tts.generate(TEXT, options=SHORT).samples
    voice = Voice.from_audio(sound, TEXT, tts.codec, speaker=3)
    assert voice.codes.shape == (-(-len(sound) // 1920), 8)
    voice.save(tmp_path / "me.safetensors")
    again = Voice.load(tmp_path / "me.safetensors")
    first, second = (tts.generate("Something else.", voice=v, options=SHORT) for v in (voice, again))
    np.testing.assert_array_equal(first.codes, second.codes)
    assert first.speaker == 3


def test_loudness_is_brought_to_its_target(tts: MisoTTS) -> None:
    plain = tts.generate(TEXT, options=SHORT)
    louder = tts.generate(TEXT, options=replace(SHORT, loudness_lufs=-30))
    np.testing.assert_array_equal(louder.codes, plain.codes)
    assert louder.samples.shape == plain.samples.shape
    assert 0.02 < louder.samples.std() / plain.samples.std() < 0.8


def test_the_public_names_are_there() -> None:
    assert all(getattr(miso_gguf, name).__name__ == name for name in miso_gguf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = miso_gguf.Nothing


# Where it runs.


def test_a_gpu_that_is_not_there(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "gpus", list)
    message = "this llama-cpp-python finds no GPU: reinstall it with CMAKE_ARGS=-DGGML_CUDA=on"
    with pytest.raises(MisoError, match=message):
        MisoTTS.load(bundle, "q4_k_m", options=EngineOptions(threads=1, allow_cpu=False), gpu_layers=-1)
    assert not caplog.records
    with MisoTTS.load(bundle, "q4_k_m", threads=1, gpu_layers=-1) as tts:
        assert tts.engine.gpu is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    remedy = "(or GGML_METAL, GGML_VULKAN) and pip's --no-cache-dir, or ask for 0 layers"
    assert f"{message} {remedy}; going on with the CPU" in caplog.text
    caplog.clear()
    with MisoTTS.load(bundle, "q4_k_m", options=EngineOptions(threads=1, allow_cpu=False)) as tts:
        assert tts.engine.gpu is None, "none is asked for: none is missed"
    assert not caplog.records


def test_keywords_are_stronger_than_options(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineOptions] = []
    monkeypatch.setattr(MisoTTS, "of", lambda _level, options: asked.append(options))
    options = EngineOptions(threads=2, gpu_layers=3, sequences=4, context=64)
    MisoTTS.load(bundle, "q4_k_m", options=options)
    MisoTTS.load(bundle, "q4_k_m", options=options, gpu_layers=0)
    MisoTTS.load(bundle, "q4_k_m", options=options, threads=1, sequences=2)
    MisoTTS.load(bundle, "q4_k_m", threads=1)
    assert asked == [
        options,
        replace(options, gpu_layers=0),
        replace(options, threads=1, sequences=2),
        EngineOptions(threads=1),
    ]


def test_another_gpu_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "gpus", lambda: [Device(0, "CUDA0", "a GPU", "gpu")])
    options = EngineOptions(threads=1, main_gpu=1, allow_cpu=False)
    with pytest.raises(MisoError, match=r"GPU 1 is not there \(1 found\)"):
        engine_module._choose_gpu(options)
    found = engine_module._choose_gpu(replace(options, main_gpu=0))
    assert found is not None
    assert found.name == "CUDA0"
    assert engine_module._choose_gpu(replace(options, main_gpu=0, gpu_layers=0)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "4"}, "threads must be a whole number from 1 to 512, not '4'"),
        ({"sequences": 300}, "sequences must be a whole number from 1 to 256, not 300"),
        ({"kv_type": "q4_0"}, "kv_type must be one of f32, f16, q8_0, not 'q4_0'"),
        ({"context": 0}, "context must be a whole number from 1 to 2147483647, or None, not 0"),
    ],
)
def test_keywords_that_make_no_sense(bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MisoTTS.load(bundle, "q4_k_m", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": b"Hello."}, "text must be str, not b'Hello.'"),
        ({"text": None}, "text must be str, not None"),
        ({"voice": "me.wav"}, "voice must be Voice, not 'me.wav'"),
        ({"context": segments(1)[0]}, r"context must be Sequence, not Segment\("),
        ({"context": "abc"}, "each of context must be Segment or Voice, not 'a'"),
        ({"context": iter([])}, "context must be Sequence, not <list_iterato"),
        ({"options": {"seed": 1}}, "options must be SpeechOptions, not {'seed': 1}"),
        ({"options": {}}, "options must be SpeechOptions, not {}"),
        ({"options": EngineOptions()}, "options must be SpeechOptions, not EngineOptions"),
        ({"speaker": "0"}, "a speaker is a number from 0, not '0'"),
        ({"speaker": 1.5}, "a speaker is a number from 0, not 1.5"),
        ({"speaker": True}, "a speaker is a number from 0, not True"),
    ],
)
def test_values_of_another_kind(tts: MisoTTS, arguments: dict[str, Any], message: str) -> None:
    arguments = {"text": TEXT, **arguments}
    for call in (tts.stream, tts.generate, tts.generate_codes, tts.utterance, tts.plan):
        with pytest.raises((TypeError, ValueError), match=message):
            call(**arguments)
    texts = [arguments.pop("text")]
    with pytest.raises((TypeError, ValueError), match=message):
        tts.generate_batch(texts, **arguments)


@pytest.mark.parametrize("texts", [None, 5, [TEXT, None], [[TEXT]], TEXT, TEXT.encode()])
def test_texts_that_are_none(tts: MisoTTS, texts: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^(text \d: )?texts? must be "):
        tts.generate_batch(texts)


def test_texts_of_a_generator(tts: MisoTTS) -> None:
    assert len(tts.generate_batch((TEXT for _ in range(2)), options=SHORT)) == 2


@pytest.mark.parametrize(("source", "level"), [(None, "q4_k_m"), (5, "q4_k_m"), (b".", "q4_k_m"), (".", None)])
def test_a_bundle_of_another_kind(source: Any, level: Any) -> None:
    with pytest.raises(TypeError, match=r"^(source|level) must be "):
        MisoTTS.load(source, level)


def test_how_to_speak_is_no_matter_of_loading(bundle: Path) -> None:
    with pytest.raises(TypeError, match="options must be EngineOptions, not SpeechOptions"):
        MisoTTS.load(bundle, "q4_k_m", options=SpeechOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "wrong", "message"),
    [
        (TEXT, {"options": EngineOptions(threads=1)}, "options must be SpeechOptions, not EngineOptions"),
        (TEXT, {"options": {"seed": 1}}, r"options must be SpeechOptions, not \{'seed': 1\}"),
        (TEXT, {"voice": "me.wav"}, "voice must be Voice, not 'me.wav'"),
        (7, {}, "text must be str, not 7"),
        (None, {}, "text must be str, not None"),
    ],
)
def test_what_is_of_another_kind_is_refused(tts: MisoTTS, text: Any, wrong: dict[str, Any], message: str) -> None:
    for call in (tts.generate, tts.stream, tts.generate_codes, lambda text, **rest: tts.generate_batch([text], **rest)):
        with pytest.raises(TypeError, match=message):
            call(text, **wrong)


def test_a_keyword_is_stronger_than_the_options(bundle: Path) -> None:
    options = EngineOptions(threads=1, gpu_layers=0, sequences=3, context=100)
    with MisoTTS.load(bundle, "q4_k_m", options=options, sequences=2) as tts:
        assert (tts.engine.backbone.sequences, tts.engine.spec.max_positions) == (2, 100)
    with MisoTTS.load(bundle, "q4_k_m", options=options) as tts:
        assert tts.engine.backbone.sequences == 3


@pytest.mark.parametrize(
    "keyword", [{"threads": 2}, {"gpu_layers": 3}, {"kv_type": "q8_0"}, {"context": 200}, {"sequences": 2}], ids=str
)
def test_every_keyword_is_one_of_the_options(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, keyword: dict[str, Any]
) -> None:
    asked: list[EngineOptions] = []

    def noted(_level: OpenLevel, options: EngineOptions) -> None:
        asked.append(options)

    monkeypatch.setattr(MisoTTS, "of", noted)
    options = EngineOptions(threads=1, gpu_layers=0, sequences=3, context=100)
    MisoTTS.load(bundle, "q4_k_m", options=options, **keyword)
    assert asked == [replace(options, **keyword)]


def test_a_quantised_kv_cache_speaks_too(bundle: Path) -> None:
    with MisoTTS.load(bundle, "q4_k_m", options=EngineOptions(threads=1, gpu_layers=0, kv_type="q8_0")) as tts:
        assert len(tts.generate_codes(TEXT, options=SHORT)) == 10
