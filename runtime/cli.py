"""`miso-speak`: text to speech, to a file or to a player."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import __version__
from ..console import DONE, NO, run, stderr, stdout, table
from ..models.errors import BundleError
from ..models.levels import LEVELS
from ..models.manifest import read_manifest
from ..native.llama import KvType
from .bundle import level_key
from .conversation import Conversation
from .fit import MARGIN_BYTES, MemoryPlan, cpu_memory, memory_here, plan_memory
from .options import SpeechOptions
from .output import STANDARD_OUTPUT, abandon_stdout, open_output
from .tts import MisoTTS
from .turns import SAVED_VOICE_SUFFIX, encoded, line_voices, read_lines, read_voice, turns

_AUTO = "auto"
_DEFAULT_OUT = "speech.wav"
_HUB_LEVEL = "q4_k_m"
_REFRESH_S = 0.2
_DEFAULTS = SpeechOptions()
_FILE = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  miso-speak "Hello there." --model DIR                    writes speech.wav
  miso-speak "Hello there." --out hello.mp3 --seed 7       another take; MISO_MODEL says which model
  miso-speak --file story.txt --out story.flac             long text, sentence by sentence
  miso-speak --file talk.txt --out talk.wav                a dialogue, if each line is `speaker: text`
  miso-speak "Hello there." --out - | aplay -f S16_LE -c 1 -r 24000
  echo "Hello there." | miso-speak - --out hello.wav
  miso-speak "Hello." --voice me.wav --voice-text "What I say in it." --save-voice me.safetensors
  miso-speak "Hello again." --voice me.safetensors
  miso-speak --fit --model DIR                             what fits into this machine's GPU

A model is a directory that miso-convert wrote: `miso-convert tiny --quant q4_k_m --out DIR` makes a tiny one in
seconds, which babbles; `miso-convert --quant q4_k_m` the real one.
"""

Command = TypeVar("Command", bound=Callable[..., Any])


def _grouped(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


_source_options = _grouped(
    click.option("--file", metavar="FILE", help="Speak a file: plain text, `speaker: text` lines, or JSON lines."),
    click.option("--model", metavar="DIR", envvar="MISO_MODEL", show_envvar=True, help="Bundle, or Hugging Face repo."),
    click.option(
        "--quant",
        metavar="LEVEL",
        default=_AUTO,
        show_default=True,
        help=f"{', '.join(LEVELS)}; auto takes what --fit picks.",
    ),
)
_output_options = _grouped(
    click.option(
        "--out",
        metavar="FILE",
        default=_DEFAULT_OUT,
        show_default=True,
        help=".wav, .flac, .ogg or .mp3, replaced when the new one is whole; - for raw PCM (s16le, mono) on stdout.",
    ),
    click.option("--sample-rate", type=int, metavar="HZ", default=24_000, show_default=True, help="Resamples."),
    click.option("--loudness", type=float, metavar="LUFS", help="Bring it to this loudness, for example -16."),
    click.option(
        "--stream/--no-stream",
        default=None,
        help="Let sound out as it is made, also what will turn out wrong [default: with --out - only].",
    ),
    click.option("--chunk-frames", type=int, default=_DEFAULTS.chunk_frames, help="Frames of 80 ms to stream at once."),
)
_voice_options = _grouped(
    click.option("--voice", type=_FILE, metavar="FILE", help="Sound like this: a recording, or a saved voice."),
    click.option("--voice-text", metavar="WORDS", help="What is said in the recording, word for word."),
    click.option("--save-voice", type=_FILE, metavar="FILE", help="Keep the voice as .safetensors; TEXT is optional."),
    click.option("--speaker", type=click.IntRange(0), metavar="N", help="Number of the speaker [default: 0]."),
)
_speech_options = _grouped(
    click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Another one, another take."),
    click.option("--temperature", type=float, default=_DEFAULTS.temperature, show_default=True, help="0: no chance."),
    click.option("--top-k", type=int, default=_DEFAULTS.top_k, show_default=True, help="Candidates of each code."),
    click.option(
        "--max-seconds", type=float, default=_DEFAULTS.max_seconds, show_default=True, help="Longest sentence."
    ),
)
_machine_options = _grouped(
    click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads [default: physical cores]."),
    click.option("--gpu-layers", type=click.IntRange(-1), metavar="N", help="Layers on the GPU; 0 none [default: all]."),
    click.option("--main-gpu", type=click.IntRange(0), default=0, metavar="N", help="Which GPU."),
    click.option("--kv-type", type=click.Choice(["f16", "q8_0"]), default="f16", help="KV cache; q8_0 takes half."),
    click.option("--require-gpu", is_flag=True, help="Fail without a GPU, instead of going on with the CPU."),
    click.option("--codec-provider", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the codec runs."),
    click.option("--verify", is_flag=True, help="Hash the bundle's files first."),
)
_report_options = _grouped(
    click.option("--fit", is_flag=True, help="Say which levels fit into this machine's memory, and stop."),
    click.option("--json", "as_json", is_flag=True, help="Statistics as JSON on stdout (stderr with --out -)."),
    click.option("--quiet", is_flag=True, help="Errors only."),
    click.option("--debug", is_flag=True, help="Show tracebacks and details."),
)


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[TEXT]")
@_source_options
@_output_options
@_voice_options
@_speech_options
@_machine_options
@_report_options
@click.version_option(__version__)
def speak(**options: Any) -> int:
    """Speak TEXT; `-` reads it from standard input."""
    request = SpeakRequest(**options)
    if request.quiet:
        logging.getLogger().setLevel(logging.ERROR)
    if request.fit:
        return _print_plan(_memory_plan(request), request.as_json)
    if request.words and (path := Path(request.text or "")).suffix and path.is_file():
        log.warning("%s is a file, and what is spoken is its name: --file reads it", path)
    lines = read_lines(request.text, request.file) if request.speaks else []
    voices = line_voices(lines, request.script_directory)
    voice = read_voice(request.voice, request.voice_text) if request.voice is not None else None
    level, layers = _choose_level(request)
    writer = open_output(request.out, request.sample_rate) if lines else None
    try:
        with writer or nullcontext(), _load(request, level, layers) as tts:
            default = encoded(voice, tts.codec, request.speaker)
            spoken = turns(lines, voices, default, request.speaker)
            for checked in filter(None, [default, *(turn.voice for turn in spoken)]):
                checked.check(tts.codec.codebooks, tts.engine.spec.audio_vocab)
            if request.save_voice is not None and default is not None:
                default.save(request.save_voice)
            if writer is None:
                return DONE
            conversation = Conversation(tts, spoken, request.options, live=request.live)
            _speak(conversation, writer, request)
            facts = _facts(tts, request)
    except KeyboardInterrupt:
        if writer is not None and not request.to_stdout:
            kept = f"{writer.seconds:.1f} s of speech are kept" if writer.samples_written else "nothing is kept"
            stderr.print(f"{request.out}: {kept}", markup=False, highlight=False)
        raise
    except BrokenPipeError:  # a player that was closed
        abandon_stdout()
        return DONE
