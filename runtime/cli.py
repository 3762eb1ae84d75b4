"""`miso-speak`: text to speech, to a file or to a player."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import click

from ..console import DONE, NO, abandon, computing_options, progress_bar, run, status, stderr, stdout, table
from ..core.interrupts import unheard
from ..core.units import size_text
from ..hub.fetch import no_progress
from ..models.levels import DEFAULT_LEVEL
from ..models.manifest import BY_NEWER, UPGRADE
from ..models.mimi import SAMPLE_RATE_HZ
from ..version import __version__
from .audio.pipe import RawWriter, open_output
from .audio.writer import ENDINGS, AudioWriter
from .bundle import Bundle, open_bundle
from .choice import AUTO, choose, lacks, memory_plan
from .dialogue.conversation import Conversation
from .dialogue.grammar import Line
from .dialogue.together import conversation_of
from .dialogue.turns import Cast, Turn, encoded, read_lines, read_voice
from .facts import kept, model_facts, speech_facts
from .fit import MARGIN_BYTES, MemoryPlan
from .options import CODEC_PROVIDERS, EngineOptions, SpeechOptions
from .request import SpeakRequest
from .speech import Speech
from .tts import MisoTTS
from .voice import Voice

log = logging.getLogger(__name__)

_DEFAULTS = SpeechOptions()
_REFRESH_S = 0.2
_LONGEST_NAME = 255
_FILE = click.Path(path_type=Path)
_LEVEL = DEFAULT_LEVEL.key
_EXAMPLES = f"""\b
Examples:
  miso-speak "Hello there." --model DIR                    writes speech.wav
  miso-speak "Hello there." --out hello.mp3 --seed 7       another take; MISO_MODEL says which model
  miso-speak --file story.txt --out story.flac             long text, sentence by sentence
  miso-speak --file talk.txt --out talk.wav                a dialogue, if each line is `speaker: text`
  miso-speak "Hello there." --out - | aplay -f S16_LE -c 1 -r 24000
  tail -f talk.log | miso-speak - --out - | aplay ...      each sentence, or line of a dialogue, as it comes
  miso-speak --file lines.jsonl --independent --sequences 8 --out lines.wav
                                                           {{"text": "Hi.", "speaker": 1, "voice": "me.safetensors"}}
  miso-speak "Hello." --voice me.wav --voice-text "What I say in it." --save-voice me.safetensors
  miso-speak "Hello again." --voice me.safetensors
  miso-speak --fit --model DIR                             what fits into this machine's GPU

A model is a directory that miso-convert wrote: `miso-convert tiny --quant {_LEVEL} --out DIR` makes a tiny one in
seconds; `miso-convert --quant {_LEVEL}` the real one.
"""


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[TEXT]")
@click.option("--file", metavar="FILE", help="Speak a file: plain text, `speaker: text` lines, or JSON lines.")
@click.option("--model", metavar="DIR", envvar="MISO_MODEL", show_envvar=True, help="Bundle, or Hugging Face repo.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the repo [default: the latest].")
@click.option(
    "--quant",
    metavar="LEVEL",
    default=AUTO,
    show_default=True,
    help=f"A level of the bundle, for example {_LEVEL}; auto takes what --fit picks.",
)
@click.option(
    "--out",
    metavar="FILE",
    default="speech.wav",
    show_default=True,
    help=f"{', '.join(ENDINGS)}; - for raw PCM (s16le, mono) on stdout.",
)
@click.option("--sample-rate", type=int, metavar="HZ", default=SAMPLE_RATE_HZ, show_default=True, help="Resamples.")
@click.option("--loudness", type=float, metavar="LUFS", help="Bring it to this loudness, for example -16.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Let sound out as it is made, also what will turn out wrong [default: with --out - only].",
)
@click.option(
    "--chunk-frames", type=int, metavar="N", default=_DEFAULTS.chunk_frames, help="Frames of 80 ms to stream at once."
)
@click.option("--voice", type=_FILE, metavar="FILE", help="Recording or saved voice, for lines without one.")
@click.option("--voice-text", metavar="WORDS", help="What is said in the recording, word for word.")
@click.option("--save-voice", type=_FILE, metavar="FILE", help="Keep the voice as .safetensors; TEXT is optional.")
@click.option(
    "--voice-cache",
    type=_FILE,
    metavar="DIR",
    envvar="MISO_VOICE_CACHE",
    show_envvar=True,
    help="Keep there what is computed of a voice, tens of MB each.",
)
@click.option("--speaker", type=click.IntRange(0), metavar="N", help="Number of the speaker [default: 0].")
@click.option("--independent", is_flag=True, help="Speak each line on its voice alone, not on the lines before it.")
@click.option(
    "--sequences",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    show_default=True,
    help="With --independent: speak N lines at once, each let out when it is whole.",
)
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Another one, another take.")
@click.option("--temperature", type=float, default=_DEFAULTS.temperature, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=_DEFAULTS.top_k, show_default=True, help="Candidates of each code.")
@click.option("--max-seconds", type=float, default=_DEFAULTS.max_seconds, show_default=True, help="Longest sentence.")
@computing_options(CODEC_PROVIDERS, AUTO)
@click.option("--verify", is_flag=True, help="Hash the bundle's files first.")
@click.option("--fit", is_flag=True, help="Say which levels fit into this machine's memory, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Statistics as JSON on stdout (stderr with --out -).")
@click.option("--quiet", is_flag=True, help="Errors only.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
@click.version_option(__version__)
def speak(**options: Any) -> int:
    """Speak TEXT; `-` reads it from standard input."""
    request = SpeakRequest(**options)
    if request.quiet:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        assert request.model is not None
        show = no_progress if request.quiet else progress_bar
        bundle = open_bundle(request.model, request.revision, progress=show)
        if request.quant == AUTO and bundle.manifest.levels and (newer := bundle.manifest.newer_names):
            log.warning("%s: left out %s, %s. %s.", request.model, ", ".join(newer), BY_NEWER, UPGRADE)
        if not request.fit:
            return _say(bundle, request)
        plan = memory_plan(bundle, request.asked_kv_type, request.engine)
        return _print_plan(plan, lacks(bundle, request.engine), request)
    except BrokenPipeError:  # a player that was closed: it has heard enough
        abandon(sys.stdout)
        return DONE


def _say(bundle: Bundle, request: SpeakRequest) -> int:
    """Everything that can be wrong is looked at before the model is loaded."""
    if request.text is not None and len(request.text) < _LONGEST_NAME and Path(request.text).is_file():
        log.warning("%s is a file, and what is spoken is its name: --file would read it", request.text)
    cast = Cast(request.script_directory, request.speaker)
    lines = cast.checked(read_lines(request.text, request.file)) if request.speaks else []
    voice = read_voice(request.voice, request.voice_text) if request.voice is not None else None
    level, engine, remark = choose(bundle, request.quant, request.asked_kv_type, request.engine)
    if remark is not None:
        _note(request, remark)
    writer: AudioWriter | RawWriter | None = None
    conversation: Conversation | None = None
    facts: dict[str, Any] = {}
    try:
        with ExitStack() as stack:

            @unheard  # between a file that is there and its place in `stack` it would be left over
            def begun() -> AudioWriter | RawWriter:
                opened = open_output(request.out, request.sample_rate)
                stack.push(opened)
                return opened

            writer = begun() if request.speaks else None
            tts = stack.enter_context(_load(bundle, level, engine, request))
            default = encoded(voice, tts.codec, request.speaker)
            spoken = _turns(lines, cast, default, tts)
            if request.save_voice is not None and default is not None:
                default.save(request.save_voice)
                _note(request, f"{request.save_voice}: {default.seconds:.1f} s of voice saved")
            facts = model_facts(tts, engine, default, request)
            if writer is not None:
                conversation = conversation_of(
                    tts, spoken, request.options, live=request.live, is_independent=request.independent
                )
                _speak(conversation, writer, request)
    except BaseException as error:
        if isinstance(writer, AudioWriter):
            _say_what_is_kept(error, writer, request)
            if writer.is_kept and conversation is not None:
                _print_facts(facts | speech_facts(writer, conversation, request, is_whole=False), request)
        raise
    if writer is None or conversation is None:
        _print_facts(facts, request)
        return DONE
    record, name = conversation.record, "stdout" if request.to_stdout else request.out
    _note(request, f"{name}: {_figures(record, request.live)}")
    _print_facts(facts | speech_facts(writer, conversation, request), request)
    return DONE if record.audio_s else NO


def _turns(
    lines: list[Line] | Iterator[Line], cast: Cast, default: Voice | None, tts: MisoTTS
) -> list[Turn] | Iterator[Turn]:
    """The turns of lines; of those that are known all are checked now."""
    turns = (cast.turn(line, default) for line in lines)
    spoken = list(turns) if isinstance(lines, list) else turns
    known = [turn.voice for turn in spoken] if isinstance(spoken, list) else []
    for voice in filter(None, [default, *known]):
        voice.check(tts.codec.codebooks, tts.engine.spec.audio_vocab)
    return spoken


def _say_what_is_kept(error: BaseException, writer: AudioWriter, request: SpeakRequest) -> None:
    """On a line before that of an interrupt, or on that of the error itself."""
    if isinstance(error, KeyboardInterrupt):
        _note(request, kept(writer, request))
    elif writer.is_kept:
        vars(error).setdefault("__notes__", []).append(kept(writer, request))


def _print_facts(facts: dict[str, Any], request: SpeakRequest) -> None:
    if request.as_json:
        print(json.dumps(facts), file=sys.stderr if request.to_stdout else sys.stdout, flush=True)


def _note(request: SpeakRequest, message: str) -> None:
    if not (request.quiet or request.as_json):
        stderr.print(message, markup=False, highlight=False, soft_wrap=True)


def _speak(conversation: Conversation, writer: AudioWriter | RawWriter, request: SpeakRequest) -> None:
    with closing(conversation.sound()) as sound, _progress(request) as show:
        for samples in sound:
            writer.write(samples)
            show(conversation)


def _load(bundle: Bundle, level: str, engine: EngineOptions, request: SpeakRequest) -> MisoTTS:
    if bundle.repository is not None:
        bundle.level(level)  # what is to be fetched first has a bar of its own
    with status(f"loading {level}", is_shown=not request.quiet):
        return MisoTTS.load(bundle, level, options=engine, verify=request.verify)


def _print_plan(plan: MemoryPlan, lacking: list[str], request: SpeakRequest) -> int:
    room = plan.room
    for line in lacking:
        log.warning("%s", line)
    if request.as_json:
        print(json.dumps(plan.as_dict(), indent=2))
        return DONE if plan.pick.fits else NO
    if not room.is_gpu and request.gpu_layers != 0:
        stdout.print("no GPU found by this build of llama-cpp-python: CPU memory", highlight=False)
    rows = []
    for need in plan.shown:
        parts = (need.weights_bytes, need.kv_cache_bytes, need.voice_cache_bytes, need.compute_bytes)
        sizes = map(size_text, (*parts, need.needed_bytes))
        verdict = (
            f"fits, {size_text(need.spare_bytes)} spare" if need.fits else f"no, {size_text(-need.spare_bytes)} short"
        )
        rows.append([need.level, need.kv_type, str(need.context), *sizes, str(need.streams), verdict])
    free, total, kept = map(size_text, (room.free_bytes, room.total_bytes, MARGIN_BYTES))
    title = f"{room.device}: {free} of {total} free, {kept} kept"
    memory = "VRAM" if room.is_gpu else "memory"
    columns = ["level", "KV", "context", "weights", "KV cache", "voices", "compute", memory, "streams", "verdict"]
    stdout.print(table(title, columns, rows, numeric=range(2, 9)))
    stdout.print(f"pick: {plan.advice}", markup=False, highlight=False)
    return DONE if plan.pick.fits else NO


@contextmanager
def _progress(request: SpeakRequest) -> Iterator[Callable[[Conversation], None]]:
    shown_at = 0.0

    def show(conversation: Conversation) -> None:
        nonlocal shown_at
        if (now := time.monotonic()) - shown_at >= _REFRESH_S:
            shown_at = now
            update(_figures(conversation.record, request.live))

    with status("speaking", is_shown=not request.quiet) as update:
        yield show


def _figures(record: Speech, live: bool) -> str:
    first = f", first audio after {record.timing.first_audio_s:.2f} s" if live else ""
    return f"{record.audio_s:.1f} s of speech, RTF {record.rtf:.2f}{first}"


def main() -> None:
    """Entry point."""
    sys.exit(run(speak, sys.argv[1:], "miso-speak"))


if __name__ == "__main__":
    main()
