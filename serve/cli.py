"""`miso-serve`: an HTTP server that speaks, as clients of OpenAI's API ask it to."""

import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..console import DONE, FAILED, computing_options, progress_bar, run, status, stderr
from ..core.errors import MisoError
from ..models.levels import DEFAULT_LEVEL
from ..native.llama import MOST_SEQUENCES
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.choice import AUTO, choose, engine_options, streams_that_fit
from ..runtime.options import CODEC_PROVIDERS, EngineOptions
from ..runtime.synthesis import speaker
from ..runtime.tts import MisoTTS
from ..version import __version__
from .keys import VARIABLE, read_keys
from .options import ServeOptions

_PACKAGES = ("av", "fastapi", "prometheus_client", "python_multipart", "uvicorn")
"""Of the extra; each is imported where it is needed only."""
_FIELDS = {
    "host": "host",
    "port": "port",
    "insecure": "insecure",
    "cors_origin": "cors_origins",
    "voices": "voices",
    "queue": "queue",
    "max_characters": "most_characters",
    "max_seconds": "most_seconds",
    "grace": "grace_s",
    "idle_unload": "idle_unload_s",
    "log_text": "log_text",
}
"""Options that are fields of `ServeOptions`. What is wrong with one is said of the option."""
_DEFAULTS = ServeOptions()
_FILE = click.Path(path_type=Path)
_LEVEL = DEFAULT_LEVEL.key
_EXAMPLES = f"""\b
Examples:
  miso-serve --model DIR                                   at http://127.0.0.1:{_DEFAULTS.port}, for this machine only
  miso-serve --model DIR --voices voices                   keeps uploaded voices; MISO_MODEL says which model
  miso-serve --model DIR --host 0.0.0.0 --api-key-file F   for others, who need a key of F
  miso-serve --model DIR --max-streams 4 --queue 16        four speak together, sixteen wait, the next gets a 429
  miso-serve --model DIR --idle-unload 600                 frees the memory when nobody has spoken for ten minutes

\b
  curl http://127.0.0.1:{_DEFAULTS.port}/v1/audio/speech -H 'content-type: application/json' \\
    -d '{{"model": "miso", "voice": "alloy", "input": "Hello there."}}' --output hello.mp3

A model is a directory that miso-convert wrote: `miso-convert tiny --quant {_LEVEL} --out DIR` makes a tiny one in
seconds; `miso-convert --quant {_LEVEL}` the real one. SIGTERM or Ctrl-C ends it when all is said, a second one at once.
"""


def _streams(context: click.Context, option: click.Parameter, value: str) -> int | None:
    number: Any = value
    return None if value == AUTO else click.IntRange(1, MOST_SEQUENCES).convert(number, option, context)


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", metavar="DIR", envvar="MISO_MODEL", show_envvar=True, help="Bundle, or Hugging Face repo.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the repo [default: the latest].")
@click.option(
    "--quant",
    metavar="LEVEL",
    default=AUTO,
    show_default=True,
    help=f"A level of the bundle, for example {DEFAULT_LEVEL.key}; auto takes what `miso-speak --fit` picks.",
)
@click.option(
    "--host", default=_DEFAULTS.host, show_default=True, help="Address to serve; others than this need a key."
)
@click.option("--port", type=int, default=_DEFAULTS.port, show_default=True, help="0 takes a free one.")
@click.option("--api-key-file", type=_FILE, metavar="FILE", help=f"One key a line [default: the one in {VARIABLE}].")
@click.option("--insecure", is_flag=True, help="Serve an address that others can reach without a key.")
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Whose web pages may ask; https://example.org, or * for all; can be repeated.",
)
@click.option("--voices", type=_FILE, metavar="DIR", help="Keep uploaded voices there; voices.toml in it names more.")
@click.option(
    "--max-streams",
    callback=_streams,
    metavar="N|auto",
    default=AUTO,
    show_default=True,
    help="Requests spoken together; auto is what fits, at most 8, or 4 on a CPU.",
)
@click.option("--queue", type=int, metavar="N", default=_DEFAULTS.queue, show_default=True, help="Requests that wait.")
@click.option(
    "--max-characters",
    type=int,
    metavar="N",
    default=_DEFAULTS.most_characters,
    show_default=True,
    help="Of a request.",
)
@click.option(
    "--max-seconds", type=float, default=_DEFAULTS.most_seconds, show_default=True, help="Of speech for a request."
)
@click.option(
    "--idle-unload", type=float, metavar="SECONDS", help="Unload the model when idle for so long [default: never]."
)
@click.option(
    "--grace",
    type=float,
    metavar="SECONDS",
    default=_DEFAULTS.grace_s,
    show_default=True,
    help="When it is stopped, for what is being spoken.",
)
@click.option("--log-text", is_flag=True, help="Write what is spoken to the log.")
@computing_options(CODEC_PROVIDERS, AUTO)
@click.option(
    "--voice-cache",
    type=_FILE,
    metavar="DIR",
    envvar="MISO_VOICE_CACHE",
    show_envvar=True,
    help="Keep there what is computed of a voice, tens of MB each.",
)
@click.option("--verify", is_flag=True, help="Hash the bundle's files first.")
@click.option("--quiet", is_flag=True, help="Errors only.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
@click.version_option(__version__)
def serve(**given: Any) -> int:
    """Serve POST /v1/audio/speech and what belongs to it over HTTP."""
    _set_log(quiet=given["quiet"], debug=given["debug"], text=given["log_text"])
    _need_extra()
    if given["model"] is None:
        raise ValueError(
            "which model? Pass --model DIR, or set MISO_MODEL. "
            f"`miso-convert tiny --quant {_LEVEL} --out DIR` makes a tiny one in seconds"
        )
    if given["require_gpu"] and given["gpu_layers"] == 0:
        raise ValueError("--require-gpu and --gpu-layers 0: pass one of them")
    options = _options(given)
    if not (options.is_loopback or options.api_keys):
        message = f"WARNING: whoever reaches {options.host} can use this server and its voices: no key is needed"
        stderr.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    bundle = open_bundle(given["model"], given["revision"], **({} if given["quiet"] else {"progress": progress_bar}))
    level, engine = _chosen(bundle, given)
    _serve(bundle, level, engine, replace(options, streams=engine.sequences), given)
    return DONE


def _set_log(*, quiet: bool, debug: bool, text: bool) -> None:
    if quiet:
        logging.getLogger().setLevel(logging.ERROR)
    # What requests come to is told at INFO, by this room alone.
    logging.getLogger(__package__).setLevel(logging.NOTSET if quiet or debug else logging.INFO)
    # It has a line for each form that is none, of which strangers send as many as they like.
    logging.getLogger("python_multipart").setLevel(logging.NOTSET if debug else logging.ERROR)
    # Below it quotes the sentence that it is about.
    logging.getLogger(speaker.__name__).setLevel(logging.NOTSET if text else logging.ERROR)


def _need_extra() -> None:
    for package in _PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise MisoError(f"miso-serve needs the package {package}: pip install 'miso-gguf[serve]'") from error


def _options(given: dict[str, Any]) -> ServeOptions:
    named = {field: given[option] for option, field in _FIELDS.items()}
    try:
        return ServeOptions(api_keys=read_keys(given["api_key_file"]), **named)
    except ValueError as error:
        field, _, fault = str(error).partition(" ")
        option = next((option for option, known in _FIELDS.items() if known == field), None)
        if option is None:
            raise
        raise ValueError(f"--{option.replace('_', '-')} {fault}") from None


def _chosen(bundle: Bundle, given: dict[str, Any]) -> tuple[str, EngineOptions]:
    """What to load, with as many sequences as there are to be streams."""
    asked = engine_options(
        threads=given["threads"],
        gpu_layers=given["gpu_layers"],
        kv_type=given["kv_type"],
        require_gpu=given["require_gpu"],
        main_gpu=given["main_gpu"],
        context=given["context"],
        sequences=given["max_streams"] or 1,
        voice_directory=given["voice_cache"],
        codec_provider=given["codec_provider"],
    )
    kv_type = None if given["kv_type"] == AUTO else given["kv_type"]
    level, engine, remark = choose(bundle, given["quant"], kv_type, asked)
    if remark is not None:
        _say(remark, given)
    if given["max_streams"] is None:
        engine = replace(engine, sequences=streams_that_fit(bundle, level, engine))
    return level, engine


def _serve(bundle: Bundle, level: str, engine: EngineOptions, options: ServeOptions, given: dict[str, Any]) -> None:
    from .server import address_of, bound, run_server  # noqa: PLC0415  (of the extra)
    from .service import Service  # noqa: PLC0415

    with ExitStack() as stack:
        listener = stack.enter_context(bound(options.host, options.port))
        bundle.level(level, verify=given["verify"])  # what is to be fetched first has a bar of its own
        load = partial(MisoTTS.load, bundle, level, options=engine)
        service = Service(options, bundle.manifest.model_spec.name, load)
        shown = stack.enter_context(ExitStack())
        shown.enter_context(status(f"loading {level}", is_shown=not given["quiet"]))

        def started() -> None:
            shown.close()
            streams = f"{options.streams} stream{'s' if options.streams > 1 else ''}"
            key = "a key is needed" if options.api_keys else "no key is needed"
            _say(f"miso-serve: {address_of(listener)} speaks {level} with {streams}, {key}", given)

        def give_up() -> None:
            shown.close()
            stderr.print("miso-serve: interrupted while loading", style="yellow")
            os._exit(FAILED)

        run_server(service, listener, started, give_up)


def _say(message: str, given: dict[str, Any]) -> None:
    if not given["quiet"]:
        stderr.print(message, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    sys.exit(run(serve, sys.argv[1:], "miso-serve"))


if __name__ == "__main__":
    main()
