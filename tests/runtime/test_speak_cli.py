"""`miso-speak` as a user meets it: sound files, pipes, exit codes, one-line errors. One thread, the tiny model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hub_server import HubServer, meet, serving
from numpy.typing import NDArray
from rich.console import Console

from builders import Built
from miso_gguf import MisoTTS, SpeechOptions, Voice, console
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32, Q4_K_M
from miso_gguf.models.manifest import Manifest, read_manifest
from miso_gguf.runtime import choice, cli
from miso_gguf.runtime.audio.loudness import integrated_lufs
from miso_gguf.runtime.audio.writer import AudioWriter
from miso_gguf.runtime.bundle import Bundle
from miso_gguf.runtime.dialogue.grammar import Line
from miso_gguf.runtime.dialogue.turns import Cast
from miso_gguf.runtime.fit import MARGIN_BYTES, Room
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions

SHORT = ("--max-seconds", 0.4)
CONTEXTS = ("1024", "2048")


def command(first: str = "") -> list[str]:
    """The command as a process of its own that does `first` before it begins."""
    return [sys.executable, "-c", f"from miso_gguf.runtime.cli import main\n{first}\nmain()"]


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle([F32, Q4_K_M])


@pytest.fixture
def speak(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """Runs the command in an empty folder, and expects no traceback and no remains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISO_MODEL", str(bundle))

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["miso-speak", "--threads", "1", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, captured.out, captured.err)

    yield call
    assert not list(tmp_path.glob(".*.miso-partial"))


def names(directory: Path = Path()) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def samples_of(path: Path | str) -> NDArray[np.int16]:
    samples: NDArray[np.int16] = soundfile.read(path, dtype="int16")[0]
    return samples


def recording(path: Path, seconds: float = 1.0, rate: int = 24_000, channels: int = 1, **options: Any) -> Path:
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, (round(seconds * rate), channels))
    soundfile.write(path, noise, rate, **options)
    return path


# What it makes


def test_the_manifest_is_read_once(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noted(directory: Path) -> Manifest:
        read.append(directory)
        return read_manifest(directory)

    monkeypatch.setattr("miso_gguf.runtime.bundle.read_manifest", noted)
    assert speak("Hello there.", *SHORT).code == 0
    assert len(read) == 1


def test_a_text_becomes_a_file(speak: Callable[..., Result]) -> None:
    done = speak("Hello there.", *SHORT)
    assert (done.code, done.out) == (0, "")
    assert re.search(r"^speech\.wav: 0\.4 s of speech, RTF \d+\.\d\d$", done.err, re.MULTILINE)
    assert names() == ["speech.wav"]
    info = soundfile.info("speech.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (24_000, 1, 9600, "PCM_16")


def test_words_need_no_quotes(speak: Callable[..., Result]) -> None:
    speak("Hello", "there.", *SHORT)
    speak("Hello there.", *SHORT, "--out", "quoted.wav")
    assert Path("speech.wav").read_bytes() == Path("quoted.wav").read_bytes()


@pytest.mark.parametrize(
    ("name", "format_"), [("a.flac", "FLAC"), ("a.ogg", "OGG"), ("a.mp3", "MP3"), ("a.WAV", "WAV")]
)
def test_formats_and_sample_rate(speak: Callable[..., Result], name: str, format_: str) -> None:
    assert speak("Hello there.", "--max-seconds", 1, "--out", name, "--sample-rate", 48_000).code == 0
    info = soundfile.info(name)
    assert (info.format, info.samplerate) == (format_, 48_000)
    assert info.frames == pytest.approx(0.96 * 48_000, rel=0.06)


def test_sampling_options(speak: Callable[..., Result]) -> None:
    takes = {}
    for name, *options in (
        ("plain",),
        ("again",),
        ("seed", "--seed", 5),
        ("greedy", "--temperature", 0),
        ("greedy, seed", "--temperature", 0, "--seed", 5),
        ("one candidate", "--top-k", 1),
    ):
        assert speak("Hello there.", *SHORT, *options).code == 0
        takes[name] = Path("speech.wav").read_bytes()
    assert takes["plain"] == takes["again"]
    assert takes["greedy"] == takes["greedy, seed"] == takes["one candidate"]
    assert len({takes["plain"], takes["seed"], takes["greedy"]}) == 3


def test_json_counts_clipped_samples(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    write = AudioWriter.write
    monkeypatch.setattr(AudioWriter, "write", lambda writer, samples: write(writer, samples * 1000))
    assert json.loads(speak("Hello there.", *SHORT, "--json").out)["clipped_samples"] > 1000


def test_json(speak: Callable[..., Result], bundle: Path) -> None:
    done = speak(
        "Hello there, my good old friend. How are you today, my dear?",
        *SHORT,
        "--seed",
        3,
        "--json",
        "--sample-rate",
        48_000,
    )
    said = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert "s of speech" not in done.err
    assert said["seconds"] == soundfile.info("speech.wav").frames / 48_000
    assert (said["model"], said["level"], said["device"], said["voice"]) == ("Miso-Tiny", "q4_k_m", "CPU", None)
    assert (said["kv_type"], said["clipped_samples"]) == ("f16", 0)
    assert (said["seed"], said["sample_rate_hz"], said["out"]) == (3, 48_000, "speech.wav")
    assert all((bundle / name).is_file() for name in said["files"])
    assert len(said["files"]) == 4
    assert said["rtf"] == pytest.approx(said["wall_s"] / said["audio_s"], abs=2e-3)
    assert [(sentence["frames"], sentence["speaker"]) for sentence in said["sentences"]] == [(5, 0)] * 2


def test_streamed_and_whole_sound_alike(speak: Callable[..., Result]) -> None:
    done = speak("Hello there.", "--max-seconds", 1, "--stream", "--chunk-frames", 3, "--out", "streamed.wav")
    assert re.search(
        r"streamed\.wav: 1\.0 s of speech, RTF \S+, first audio after \d+\.\d\d s$", done.err, re.MULTILINE
    )
    speak("Hello there.", "--max-seconds", 1)
    streamed, whole = (samples_of(name).astype(int) for name in ("streamed.wav", "speech.wav"))
    assert streamed.shape == whole.shape
    assert np.abs(streamed - whole).max() <= 1


def test_loudness(speak: Callable[..., Result]) -> None:
    assert speak("Hello there.", "--max-seconds", 2, "--loudness", -30).code == 0
    assert integrated_lufs(soundfile.read("speech.wav", dtype="float32")[0]) == pytest.approx(-30, abs=0.1)


def test_the_file_is_replaced_only_when_the_new_one_is_whole(
    speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("speech.wav").write_bytes(b"the old one")
    monkeypatch.setattr(Engine, "sample", _fails)
    assert speak("Hello there.").code == 2
    assert Path("speech.wav").read_bytes() == b"the old one"
    monkeypatch.undo()


def _fails(*_: object) -> None:
    raise MemoryError("no memory left")


def test_quiet(speak: Callable[..., Result]) -> None:
    assert speak("Hello there.", *SHORT, "--quiet") == Result(0, "", "")


def test_progress_on_a_terminal(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=StringIO(), force_terminal=True, width=100)
    for module in (cli, console):
        monkeypatch.setattr(module, "stderr", screen)
    monkeypatch.setattr(cli, "_REFRESH_S", 0.0)
    assert speak("Hello there.", "--max-seconds", 1, "--stream").code == 0
    assert isinstance(screen.file, StringIO)
    shown = screen.file.getvalue()
    assert "loading q4_k_m" in shown
    assert "speech.wav: 1.0 s of speech, RTF" in shown
    speak("Hello there.", *SHORT, "--quiet")
    assert screen.file.getvalue() == shown


def test_nothing_said_is_exit_1(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """The EOS frame comes first."""
    monkeypatch.setattr(Engine, "sample", lambda self, hidden, *_: np.zeros((len(hidden), 8), np.int64))
    done = speak("Hello there.", "--json")
    assert done.code == 1
    said = json.loads(done.out)
    assert (said["audio_s"], said["rtf"], said["sentences"][0]["ended"]) == (0, None, "empty")
    assert "nothing was said" in done.err
    assert not samples_of("speech.wav").any()


# Where the text comes from


def _stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content)))


@pytest.mark.parametrize("arguments", [("-",), ("--file", "-"), ("--file", "text.txt")])
def test_sources_of_text(
    speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    _stdin(monkeypatch, b"Hello there.\n")
    Path("text.txt").write_text("Hello there.\n")
    speak(*arguments, *SHORT)
    found = Path("speech.wav").read_bytes()
    speak("Hello there.", *SHORT)
    assert Path("speech.wav").read_bytes() == found


def test_a_dialogue_hears_itself(speak: Callable[..., Result], bundle: Path) -> None:
    Path("talk.txt").write_text("Ann: How are you?\nBob: Fine.\nAnn: Good.\n")
    done = speak("--file", "talk.txt", *SHORT, "--json", "--quant", "f32", "--seed", 4)
    sentences = json.loads(done.out)["sentences"]
    assert [(s["text"], s["speaker"]) for s in sentences] == [("How are you?", 0), ("Fine.", 1), ("Good.", 0)]
    options = SpeechOptions(seed=4, max_seconds=0.4)
    with MisoTTS.load(bundle, "f32", threads=1) as tts:
        first = tts.generate("How are you?", options=options)
        second = tts.generate("Fine.", speaker=1, context=first.segments, options=options)
        context = first.segments + second.segments
        third = tts.generate("Good.", speaker=0, context=context, options=options)
    assert [s["prompt_rows"] for s in sentences] == [x.sentences[0].prompt_rows for x in (first, second, third)]
    sound = samples_of("speech.wav").astype(int)
    expected = [(x.samples * 32767).round().astype(int) for x in (first, second, third)]
    pause, faded = 4800, 120
    assert len(sound) == sum(map(len, expected)) + 2 * pause
    start = len(expected[0]) + pause
    assert np.abs(sound[: len(expected[0])] - expected[0]).max() <= 1
    assert np.abs(sound[start + faded : start + len(expected[1])] - expected[1][faded:]).max() <= 1
    assert not sound[len(expected[0]) : start].any()
    # Nothing clicks: a turn ends at zero.
    assert abs(sound[len(expected[0]) - 1]) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt: nothing to say: the file is empty"),
        (b" \n ", "nothing to say"),
        (b"caf\xe9", "not UTF-8: byte 0xe9 at offset 3"),
        (b'{"text": 3}', 'line 1: "text" must be some text'),
        (b'{"text": "a", "voice": "mary.wav"}', "line 1: voice 'mary.wav' is no saved voice (.safetensors)"),
        (b'{"text": "a", "voice": "mary.safetensors"}', "line 1: mary.safetensors: no such voice file"),
    ],
)
def test_bad_scripts(speak: Callable[..., Result], content: bytes, message: str) -> None:
    Path("text.txt").write_bytes(content)
    _fails_with(speak("--file", "text.txt"), message)
    assert names() == ["text.txt"]


def test_control_characters_and_other_scripts(speak: Callable[..., Result]) -> None:
    text = "Привет, мир. 你好\uff0c世界。 مرحبا"
    Path("text.txt").write_bytes(text.replace("П", "П\0").encode())
    done = speak("--file", "text.txt", *SHORT, "--json")
    assert "removed 1 control characters" in done.err
    assert " ".join(s["text"] for s in json.loads(done.out)["sentences"]) == text


def test_100_000_characters(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is said, in order; without the prompts, which take a minute."""
    dimensions = TINY.backbone.embed_dim, TINY.audio_vocab
    nothing = tuple(np.zeros((1, width), np.float32) for width in dimensions)
    monkeypatch.setattr(Engine, "prefill_chunks", lambda *_: iter([nothing]))
    sentence = "This is a sentence of a book that nobody wanted to read to its end, " * 3 + "and here it ends. "
    text = (sentence * 500)[:100_000]
    Path("book.txt").write_text(text)
    done = speak("--file", "book.txt", "--max-seconds", 0.08, "--quiet", "--json")
    assert done.code == 0
    sentences = json.loads(done.out)["sentences"]
    assert " ".join(sentence["text"] for sentence in sentences) == text.strip()
    assert len(sentences) > 400
    assert soundfile.info("speech.wav").duration == pytest.approx(len(sentences) * 0.18, rel=0.02)


def test_the_name_of_a_file_as_text(speak: Callable[..., Result]) -> None:
    Path("story.txt").write_text("Once.")
    assert "story.txt is a file, and what is spoken is its name: --file would read it" in speak("story.txt", *SHORT).err


# Voices


def test_a_voice_from_a_recording_and_saved(speak: Callable[..., Result], tmp_path: Path) -> None:
    recording(tmp_path / "me.wav", rate=44_100, channels=2)
    voiced = ("--voice", "me.wav", "--voice-text", "What I say.")
    done = speak("Hello.", *SHORT, *voiced, "--save-voice", "me.safetensors", "--json")
    assert done.code == 0
    said = json.loads(done.out)
    assert (said["voice"]["name"], said["voice"]["seconds"]) == ("me", pytest.approx(1.0, abs=0.1))
    assert said["sentences"][0]["prompt_rows"] > 12
    voiced_sound = Path("speech.wav").read_bytes()
    speak("Hello.", *SHORT, "--voice", "me.safetensors")
    assert Path("speech.wav").read_bytes() == voiced_sound
    speak("Hello.", *SHORT)
    assert Path("speech.wav").read_bytes() != voiced_sound


def test_a_voice_is_saved_without_speaking(speak: Callable[..., Result], tmp_path: Path) -> None:
    recording(tmp_path / "me.wav", subtype="PCM_U8")
    done = speak("--voice", "me.wav", "--voice-text", "Eight bits.", "--save-voice", "me.safetensors", "--speaker", 3)
    assert (done.code, done.out) == (0, "")
    assert re.search(r"^me\.safetensors: 1\.\d s of voice saved$", done.err, re.MULTILINE)
    voice = Voice.load("me.safetensors")
    assert (voice.text, voice.speaker, voice.name) == ("Eight bits.", 3, "me")
    assert names() == ["me.safetensors", "me.wav"]


def test_voices_of_lines(speak: Callable[..., Result], bundle: Path) -> None:
    Path("cast").mkdir()
    codes = np.arange(40, dtype=np.int64).reshape(5, 8)
    Voice(codes, "I am Ann.", 7).save("cast/ann.safetensors")
    lines = [{"speaker": "Ann", "text": "Hi.", "voice": "ann.safetensors"}, {"speaker": "Bob", "text": "Ho."}]
    Path("cast/talk.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = json.loads(speak("--file", "cast/talk.jsonl", *SHORT, "--json", "--quant", "f32").out)
    rows = [sentence["prompt_rows"] for sentence in said["sentences"]]
    with MisoTTS.load(bundle, "f32", threads=1) as tts:
        own = replace(Voice(codes, "I am Ann.", 7), speaker=0)
        first = tts.generate("Hi.", voice=own, options=SpeechOptions(max_seconds=0.4))
    assert rows[0] == first.sentences[0].prompt_rows
    sound = (first.samples * 32767).round()
    assert np.abs(samples_of("speech.wav")[: len(sound)] - sound).max() <= 1


def test_a_voice_takes_the_speaker_of_its_line(tmp_path: Path) -> None:
    Voice(np.zeros((2, 8), np.int64), "Ann.", 7).save(tmp_path / "v.safetensors")
    voice, cast = Voice(np.zeros((2, 8), np.int64), "Ann.", 7), Cast(tmp_path)
    own, shared = (cast.turn(line, voice) for line in (Line(0, "a", "v.safetensors", 1), Line(4, "b", None, 2)))
    assert [(own.speaker, own.voice and own.voice.speaker)] == [(0, 0)]
    assert [(shared.speaker, shared.voice and shared.voice.speaker)] == [(4, 4)]
    nobody = Line(None, "a", "v.safetensors", 1)
    alone = cast.turn(nobody, None)
    assert (alone.speaker, alone.number, alone.voice and alone.voice.speaker) == (None, 7, 7)
    given = Cast(tmp_path, 2).turn(nobody, None)
    assert (given.speaker, given.voice and given.voice.speaker) == (2, 2)
    with pytest.raises(ValueError, match="line 5: has a speaker of its own: leave --speaker out"):
        Cast(tmp_path, 2).voice(Line(4, "b", None, 5))


def test_bad_voices(speak: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no audio at all")
    soundfile.write(tmp_path / "silence.wav", np.zeros(24_000), 24_000)
    recording(tmp_path / "long.wav", 600, 8_000)
    recording(tmp_path / "ok.wav")
    Voice(np.zeros((2, 4), np.int64), "Another codec.").save("other.safetensors")
    text = ("--voice-text", "words")
    before = names()
    for arguments, message in (
        (("empty.wav", *text), "empty.wav: the file is empty (0 bytes)"),
        (("text.wav", *text), "text.wav: not audio that can be read"),
        (("silence.wav", *text), "silence.wav: is silence"),
        (("long.wav", *text), "long.wav: 600.0 s of audio, at most 30 s can be used"),
        (("none.wav", *text), "none.wav: no such file"),
        (("ok.wav",), "ok.wav: a recording needs --voice-text"),
        (("ok.wav", "--voice-text", " "), "ok.wav: a recording needs --voice-text"),
        (("none.safetensors",), "none.safetensors: no such voice file"),
        (("other.safetensors",), "has 4 codebooks, the model's codec has 8"),
        (("other.safetensors", *text), "leave --voice-text out"),
        (("ok.wav", *text, "--save-voice", "nowhere/v.safetensors"), "the voice cannot be written"),
    ):
        _fails_with(speak("Hello.", "--voice", *arguments), message)
        assert names() == before


# What it refuses


def _fails_with(failed: Result, message: str) -> None:
    assert failed.code == 2
    assert failed.out == ""
    assert message in failed.err
    assert failed.err.count("\n") == 1
    assert failed.err.startswith("miso-speak: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to say: pass a text, - for standard input, or --file FILE"),
        ([""], "nothing to say: no letter or digit in ''"),
        ([" \t "], "nothing to say: no letter or digit"),
        (["?!"], "nothing to say: no letter or digit in '?!'"),
        (["a", "--file", "b"], "a text and --file b: pass one of them"),
        (["--file", "none.txt"], "none.txt: no such file"),
        (
            ["a", "--quant", "q8_0"],
            "has no level q8_0, only f32, q4_k_m. Choose one of them, or run miso-convert CHECKPOINT --quant q8_0",
        ),
        (["a", "--quant", "q4km"], "unknown level 'q4km': did you mean q4_k_m?"),
        (["a", "--model", "nowhere"], "nowhere: no such directory. Make a bundle with miso-convert"),
        (["a", "--model", "."], "not a bundle (no miso.json). Make one with miso-convert."),
        (["a", "--out", "a.xyz"], "a.xyz: cannot tell the format from '.xyz'. Use .wav"),
        (["a", "--out", "no/a.wav"], "no/a.wav: no directory"),
        (["a", "--sample-rate", "1"], "a sample rate of 1 Hz cannot be written"),
        (["a", "--out", "a.mp3", "--sample-rate", "96000"], "a.mp3: MP3 cannot be written at 96000 Hz"),
        (["a", "--temperature", "-1"], "temperature must be a number from 0 to 10, not -1.0"),
        (["a", "--temperature", "nan"], "temperature must be a number from 0 to 10, not nan"),
        (["a", "--top-k", "0"], "top_k must be a whole number from 1 to"),
        (["a", "--seed", "-1"], "seed must be a whole number from 0 to"),
        (
            ["a", "--seed", "99999999999999999999"],
            "seed must be a whole number from 0 to 18446744073709551615, not 99999",
        ),
        (["a", "--max-seconds", "0"], "max_seconds must be a number from 0.08 to 3600, not 0.0"),
        (["a", "--chunk-frames", "0"], "chunk_frames must be a whole number from 1 to"),
        (["a", "--loudness", "3"], "loudness_lufs must be a number from -60 to -5"),
        (["a", "--loudness", "-16", "--stream"], "pass one of them"),
        (["a", "--sequences", "2"], "pass --independent too"),
        (["a", "--independent", "--sequences", "2", "--stream"], "pass one of them"),
        (["a", "--voice-text", "b"], "--voice-text and --save-voice are about a --voice"),
        (["--save-voice", "b.safetensors"], "--voice-text and --save-voice are about a --voice"),
        (["a", "--voice", "b.wav", "--save-voice", "c.wav"], "c.wav: a saved voice is a .safetensors file"),
        (["a", "--require-gpu", "--gpu-layers", "0"], "--require-gpu and --gpu-layers 0: pass one of them"),
        (["a", "--threads", "513"], "threads must be a whole number from 1 to 512, not 513"),
        (["a", "--context", "4096"], "context must be 1 to 2048 for Miso-Tiny, not 4096"),
        (
            ["--fit", "--context", "9999999999"],
            "context must be a whole number from 1 to 2147483647, or None, not 99999999",
        ),
        (["a", "--context", "20", "--max-seconds", "2"], "the prompt takes"),
        (["a", "--codec-provider", "cuda"], "onnxruntime"),
    ],
)
def test_bad_options(speak: Callable[..., Result], arguments: list[str], message: str) -> None:
    _fails_with(speak(*arguments), message)
    assert names() == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--threads", "0"), "0 is not in the range x>=1"),
        (("--gpu-layers", "-2"), "-2 is not in the range x>=-1"),
        (("--kv-type", "q4_0"), "'q4_0' is not one of 'auto', 'f16', 'q8_0'"),
        (("--nonsense",), "No such option"),
    ],
)
def test_options_that_are_none(speak: Callable[..., Result], option: tuple[str, ...], message: str) -> None:
    failed = speak("a", *option)
    assert failed.code == 2
    assert message in failed.err


def test_no_model(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISO_MODEL")
    for arguments in (["a"], ["--fit"], []):
        _fails_with(speak(*arguments), "which model? Pass --model DIR, or set MISO_MODEL")


def test_broken_bundles(speak: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    decoder = broken / "Miso-Tiny-decoder-Q4_K_M.gguf"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    arguments = ("a", *SHORT, "--model", broken, "--quant", "q4_k_m")
    assert speak(*arguments).code == 0
    Path("speech.wav").unlink()
    _fails_with(speak(*arguments, "--verify"), "the file was changed or damaged")
    decoder.write_bytes(whole[:-1])
    _fails_with(speak(*arguments), f"has {len(whole) - 1} bytes, expected {len(whole)}")
    decoder.unlink()
    _fails_with(speak(*arguments), "Miso-Tiny-decoder-Q4_K_M.gguf: is missing from the bundle")
    assert speak(*arguments[:-1], "f32").code == 0
    assert speak(*arguments[:-1], "f32", "--verify").code == 0


def test_raw_audio_is_not_for_a_terminal(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _fails_with(speak("a", "--out", "-", "--sample-rate", 48_000), "| aplay -f S16_LE -c 1 -r 48000")
    monkeypatch.setattr(sys, "stdout", None)
    assert speak("a", "--out", "-").code == 2


def test_help(speak: Callable[..., Result]) -> None:
    shown = speak("--help")
    assert shown.code == 0
    for part in ("--voice-text", "MISO_MODEL", "default: speech.wav", "aplay -f S16_LE", "miso-convert tiny"):
        assert part in shown.out


# Where it computes


@pytest.fixture
def load_options(speak: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What `MisoTTS.load` is asked for, given options; nothing is loaded."""
    asked: dict[str, Any] = {}

    def load(bundle: Bundle, level: str, *, options: EngineOptions, verify: bool) -> None:
        assert bundle.manifest.levels
        asked.update(asdict(options), level=level, verify=verify)
        raise ValueError("loaded")

    monkeypatch.setattr(MisoTTS, "load", load)

    def call(*arguments: object) -> dict[str, Any]:
        asked.clear()
        failed = speak("a", *arguments)
        assert failed.err.endswith("miso-speak: error: loaded\n")
        return dict(asked)

    return call


def test_machine_options(load_options: Callable[..., dict[str, Any]]) -> None:
    default = {
        "level": "q4_k_m",
        "threads": 1,
        "gpu_layers": None,
        "main_gpu": 0,
        "kv_type": "f16",
        "context": None,
        "sequences": 1,
        "voice_cache_bytes": 256_000_000,
        "voice_directory": None,
        "waiting": 64,
        "exact": False,
        "repack": False,
        "codec_provider": "cpu",
        "allow_cpu": True,
        "verify": False,
    }
    assert load_options() == default
    for arguments, changed in (
        (["--threads", 3], {"threads": 3}),
        (["--quant", "F32"], {"level": "F32"}),
        (["--gpu-layers", 5, "--main-gpu", 2], {"gpu_layers": 5, "main_gpu": 2}),
        (["--gpu-layers", 0], {"gpu_layers": 0}),
        (["--context", 512], {"context": 512}),
        (["--kv-type", "q8_0"], {"kv_type": "q8_0"}),
        (["--kv-type", "q8_0", "--quant", "f32"], {"kv_type": "q8_0", "level": "f32"}),
        (["--kv-type", "auto"], {}),
        (["--codec-provider", "cuda"], {"codec_provider": "cuda"}),
        (["--require-gpu"], {"allow_cpu": False, "gpu_layers": -1}),
        (["--require-gpu", "--gpu-layers", 7], {"allow_cpu": False, "gpu_layers": 7}),
        (["--verify"], {"verify": True}),
        (["--independent", "--sequences", 4], {"sequences": 4}),
        (["--voice-cache", "kept"], {"voice_directory": Path("kept")}),
    ):
        assert load_options(*arguments) == default | changed


@pytest.fixture
def gpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives the command a GPU with so much memory free above the margin.

    F32 takes 33.3 MB, or 31.3 with a KV cache in Q8_0; Q4_K_M 11.3, or 9.3.
    """

    def give(free_bytes: int) -> None:
        room = Room("CUDA0 (card)", MARGIN_BYTES + free_bytes, 10**9, is_gpu=True)
        monkeypatch.setattr(choice, "memory_here", lambda _: room)

    return give


@pytest.mark.parametrize(
    ("free_bytes", "level", "kv_type", "layers"),
    [
        (600_000_000, "f32", "f16", None),
        (32_000_000, "f32", "q8_0", None),
        (30_000_000, "q4_k_m", "f16", None),
        (10_000_000, "q4_k_m", "q8_0", None),
        (6_500_000, "q4_k_m", "q8_0", 1),
    ],
)
def test_auto_takes_what_fits(
    load_options: Callable[..., dict[str, Any]],
    gpu_with: Callable[[int], None],
    free_bytes: int,
    level: str,
    kv_type: str,
    layers: int | None,
) -> None:
    gpu_with(free_bytes)
    asked = load_options()
    assert (asked["level"], asked["kv_type"], asked["gpu_layers"]) == (level, kv_type, layers)
    assert load_options("--gpu-layers", 4)["gpu_layers"] == 4
    on_cpu = load_options("--gpu-layers", 0)
    assert (on_cpu["level"], on_cpu["kv_type"]) == ("q4_k_m", "f16")


def test_auto_that_does_not_fit(
    load_options: Callable[..., dict[str, Any]], gpu_with: Callable[[int], None], speak: Callable[..., Result]
) -> None:
    gpu_with(6_500_000)
    assert load_options("--quant", "f32")["gpu_layers"] is None
    advice = "q4_k_m with --kv-type q8_0 --gpu-layers 1: none fits whole; 1 of 4 layers have room"
    assert advice in " ".join(speak("a").err.split())


@pytest.mark.parametrize(
    ("free_bytes", "options", "kv_type"),
    [
        (600_000_000, [], "f16"),
        (32_000_000, [], "q8_0"),
        (32_000_000, ["--context", 512], "f16"),
        (32_000_000, ["--gpu-layers", 0], "f16"),
        (32_000_000, ["--kv-type", "f16"], "f16"),
        (32_000_000, ["--gpu-layers", 2], "f16"),
        (32_000_000, ["--gpu-layers", -1], "q8_0"),
        (30_000_000, [], "f16"),
        (600_000_000, ["--kv-type", "q8_0"], "q8_0"),
    ],
)
def test_the_kv_cache_of_a_level_that_was_asked_for(
    load_options: Callable[..., dict[str, Any]],
    gpu_with: Callable[[int], None],
    free_bytes: int,
    options: list[Any],
    kv_type: str,
) -> None:
    gpu_with(free_bytes)
    asked = load_options("--quant", "F32", *options)
    assert (asked["level"], asked["kv_type"]) == ("F32", kv_type)


@pytest.mark.usefixtures("load_options")
def test_a_smaller_kv_cache_is_said(speak: Callable[..., Result], gpu_with: Callable[[int], None]) -> None:
    gpu_with(32_000_000)
    note = "f32 fits into this GPU only with a KV cache in q8_0, so that is used\n"
    error = "miso-speak: error: loaded\n"
    assert speak("a").err == speak("a", "--quant", "f32").err == note + error
    for unasked in (["--quiet"], ["--json"], ["--kv-type", "q8_0"], ["--quant", "q4_k_m"]):
        assert speak("a", *unasked).err == error


def test_a_level_of_a_bundle_on_the_hub(
    speak: Callable[..., Result], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched once, of the revision that was asked for; afterwards no hub is needed."""
    hub, asked = HubServer(), ("a", *SHORT, "--quant", "q4_k_m", "--model", "a/b", "--revision", "v1")
    hub.publish("a/b", {path.name: path.read_bytes() for path in bundle.iterdir()}, "v1")
    hub.publish("a/b", {"README.md": b"", "model.safetensors": b""})
    with serving(hub):
        meet(hub, tmp_path / "cache", monkeypatch)
        assert speak(*asked).code == 0
        assert not [request for request in hub.requests if "F32" in request]
        hub.failing, hub.failing_status = "/", 429
        again = speak(*asked)
        assert again.code == 0
        said = "a/b@v1: the hub has had too many requests from here (429): wait some minutes, or pass the directory of"
        assert said in " ".join(again.err.split())
        hub.failing = ""
        failed = speak("a", "--model", "a/b")
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert "Convert it first: miso-convert a/b --quant q4_k_m --out DIR, then --model DIR." in failed.err


def _cells(shown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]


def test_fit(speak: Callable[..., Result], gpu_with: Callable[[int], None]) -> None:
    shown = speak("--fit")
    assert (shown.code, shown.err) == (0, "")
    assert "no GPU found by this build" in shown.out
    assert "pick: q4_k_m: a CPU reads all of it" in shown.out
    assert {row[5] for row in _cells(shown.out)} == {"256.00 MB"}
    assert "no GPU found" not in speak("--fit", "--gpu-layers", 0).out
    gpu_with(32_000_000)
    shown = speak("--fit")
    assert "CUDA0 (card): 432.00 MB of 1.00 GB free, 400.00 MB kept" in shown.out
    assert "pick: f32 with --kv-type q8_0\n" in shown.out
    rows = _cells(shown.out)
    assert {row[5] for row in rows} == {"0.00 MB"}, "states of voices are in the CPU's memory"
    expected = [[level, kv, context] for level in ("f32", "q4_k_m") for kv in ("f16", "q8_0") for context in CONTEXTS]
    assert [row[:3] for row in rows] == expected
    assert [row[9].split(",")[0] for row in rows] == ["fits", "no", *["fits"] * 6]
    assert [row[8] for row in rows][:3] == ["1", "0", "2"]
    kept_to = speak("--fit", "--kv-type", "f16")
    assert "pick: q4_k_m\n" in kept_to.out
    assert "q8_0" not in kept_to.out
    said = json.loads(speak("--fit", "--json").out)
    assert said["pick"] == {"level": "f32", "kv_type": "q8_0", "fits": True, "gpu_layers": None}
    assert [[entry["level"], entry["kv_type"], str(entry["context"])] for entry in said["levels"]] == expected
    assert [str(entry["streams"]) for entry in said["levels"]] == [row[8] for row in rows]
    assert said["room"]["free_bytes"] == MARGIN_BYTES + 32_000_000
    gpu_with(0)
    assert speak("--fit").code == 1
    assert speak("--fit", "--json").code == 1
    assert names() == []


def test_a_gpu_that_is_not_there(speak: Callable[..., Result]) -> None:
    """This suite runs with a CPU build."""
    _fails_with(speak("a", "--require-gpu"), "finds no GPU: reinstall it with CMAKE_ARGS=-DGGML_CUDA=on")
    assert names() == []
    done = speak("a", *SHORT, "--gpu-layers", -1)
    assert done.code == 0
    assert "going on with the CPU" in " ".join(done.err.split())
    assert "finds no GPU" not in speak("a", *SHORT).err


# As a process


def _environment(bundle: Path) -> dict[str, str]:
    return {**os.environ, "MISO_MODEL": str(bundle)}


def test_raw_audio_through_a_pipe(bundle: Path, speak: Callable[..., Result]) -> None:
    arguments = ["Hello there.", "--max-seconds", "0.4", "--threads", "1"]
    done = subprocess.run(
        [*command(), *arguments, "--out", "-", "--json"], env=_environment(bundle), capture_output=True, check=False
    )
    assert done.returncode == 0
    speak(*arguments, "--stream")
    assert np.array_equal(np.frombuffer(done.stdout, "<i2"), samples_of("speech.wav"))
    assert json.loads(done.stderr.splitlines()[-1])["out"] == "-"


def test_a_player_that_is_closed(bundle: Path, tmp_path: Path) -> None:
    arguments = ["Hello there. " * 500, "--threads", "1", "--quiet", "--out", "-"]
    with subprocess.Popen(
        [*command(), *arguments], env=_environment(bundle), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(3840)) == 3840
        process.stdout.close()
        assert (process.stderr.read(), process.wait(30)) == (b"", 0)


def test_a_full_disk(bundle: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    (tmp_path / "a.wav").write_bytes(b"the old one")
    arguments = ["Hello there, my good old friend.", "--threads", "1", "--out", "a.wav", "--stream", "--quiet"]
    done = subprocess.run(
        [*command(limit), *arguments],
        env=_environment(bundle),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"miso-speak: error: a\.wav: could not be written whole \(.*\), its end is missing\..*; "
        r"a\.wav: 1\.0 s of speech are kept\n",
        done.stderr,
    )
    assert names(tmp_path) == ["a.wav"]
    assert soundfile.info(tmp_path / "a.wav").frames == (50_000 - 44) // 2


def _interrupted(bundle: Path, tmp_path: Path, *options: str, by: int = signal.SIGINT) -> tuple[int, str]:
    """Ctrl-C, or what else asks to end, once there is a second of sound on the disk."""
    # Where tests run in the background it may be ignored.
    handled = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    partial = tmp_path / ".a.wav.miso-partial"
    (tmp_path / "text.txt").write_text("Hello there, my good old friend. " * 1000)
    with subprocess.Popen(
        [*command(handled), "--file", "text.txt", "--threads", "1", "--out", "a.wav", *options],
        env=_environment(bundle),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not (partial.exists() and partial.stat().st_size > 48_000):
                assert time.monotonic() < deadline, "no second of sound within a minute"
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(by)
            errors = process.communicate(timeout=60)[1]
        except BaseException:
            process.kill()  # or it would go on to the end of the text
            print(process.communicate()[1])
            raise
        return process.returncode, errors


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_valid_file(bundle: Path, tmp_path: Path, by: int) -> None:
    code, errors = _interrupted(bundle, tmp_path, "--stream", by=by)
    assert code == 2
    kept = re.search(r"^a\.wav: (\d+\.\d) s of speech are kept\n+interrupted$", errors, re.MULTILINE)
    assert kept
    assert "Traceback" not in errors
    assert names(tmp_path) == ["a.wav", "text.txt"]
    info = soundfile.info(tmp_path / "a.wav")
    assert info.duration == pytest.approx(float(kept[1]), abs=0.06)
    assert info.duration >= 1
    assert (tmp_path / "a.wav").stat().st_size == 44 + 2 * info.frames


def test_an_interrupt_keeps_whole_sentences(bundle: Path, tmp_path: Path) -> None:
    """Without --stream a sentence is written when it is whole."""
    code, errors = _interrupted(bundle, tmp_path)
    assert (code, "s of speech are kept" in errors, names(tmp_path)) == (2, True, ["a.wav", "text.txt"])
    assert soundfile.info(tmp_path / "a.wav").duration >= 1


def test_the_installed_command(bundle: Path, tmp_path: Path) -> None:
    installed = shutil.which("miso-speak", path=str(Path(sys.executable).parent))
    assert installed is not None
    arguments = [installed, "Hello.", "--model", str(bundle), "--threads", "1", "--max-seconds", "0.4", "--quiet"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names(tmp_path) == ["speech.wav"]


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams(bundle: Path, tmp_path: Path, closed: int) -> None:
    close = f"import os; os.close({closed})\n"
    arguments = ["Hello.", "--threads", "1", "--max-seconds", "0.4", "--quiet", "--json"]
    program = (
        f"import subprocess, sys; sys.exit(subprocess.run({[*command(), *arguments]!r}, close_fds=False).returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", close + program],
        env=_environment(bundle),
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert names(tmp_path) == ["speech.wav"]
