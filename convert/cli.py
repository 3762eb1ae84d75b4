"""`miso-convert`: convert a checkpoint, and look at or check the bundle that came out."""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from ..console import DONE, NO, progress_bar, run, stderr, stdout, table
from ..core.errors import BundleError, NewerBundleError
from ..core.units import size_text
from ..hub.fetch import origin
from ..models.levels import DEFAULT_LEVEL, LEVELS, Q8_0, Level, finest_first, parse_level
from ..models.manifest import BY_NEWER, MANIFEST_NAME, Manifest, read_manifest
from ..models.memory import level_memory
from ..native.threads import MOST_THREADS, default_workers
from ..version import __version__
from .bundle import convert as run_conversion
from .checkpoint.open import open_checkpoint
from .checkpoint.sources import DEFAULT_CHECKPOINT, OtherCheckpointError, Sources, resolve, resolve_for_verify
from .codec import DECODER_NAME, ENCODER_NAME
from .conversion import Conversion, Request, plan_conversion
from .estimate import estimate_seconds
from .imatrix import imatrices_in
from .verify import Finding, mends, verify_bundle

_FILE = click.Path(path_type=Path)
_LEVEL = DEFAULT_LEVEL.key
_WHERE = ": file, directory or hub repo [default: beside CHECKPOINT"
_EXAMPLES = f"""\b
Examples:
  miso-convert --quant {_LEVEL}                       the 8B model from the hub, 5.8 GB out
  miso-convert tiny --quant {_LEVEL} --out demo       the tiny model, offline, seconds
  miso-convert model.safetensors --quant {Q8_0.key} --quant {_LEVEL} --tokenizer tokenizer.json --mimi mimi.safetensors
  miso-convert --quant {_LEVEL} --dry-run             sizes and time: nothing fetched, nothing written
  miso-convert model.safetensors --force {_LEVEL} --out DIR   that level anew: what is damaged is mended
  miso-convert inspect DIR                          parts, sizes, VRAM
  miso-convert verify DIR [CHECKPOINT]              hashes, headers, codec; with CHECKPOINT all against its sources
"""

Command = TypeVar("Command", bound=Callable[..., Any])


class _LevelType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4
    name = "level"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Level:
        try:
            return value if isinstance(value, Level) else parse_level(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _common(command: Command) -> Command:
    """Options of both convert and verify."""
    for option in (
        click.option("--revision", metavar="REV", help="Branch, tag or commit, where CHECKPOINT is a hub repo."),
        click.option(
            "--config", type=_FILE, help="Dimensions of an unknown model: config.json or a model spec (JSON)."
        ),
        click.option("--key", metavar="NAME", help="Which weights, if CHECKPOINT holds several: model, ema."),
        click.option(
            "--threads",
            type=click.IntRange(1, MOST_THREADS),
            metavar="N",
            default=default_workers,
            help="CPU threads [default: all that a quota leaves].",
        ),
        click.option("--debug", is_flag=True, help="Show tracebacks and details."),
    ):
        command = option(command)
    return command


@click.command(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", default=DEFAULT_CHECKPOINT)
@click.option(
    "--quant",
    "levels",
    type=_LevelType(),
    multiple=True,
    metavar="LEVEL",
    help=f"{', '.join(LEVELS)}. Repeat it for several, made in one pass over the checkpoint.",
)
@click.option(
    "--force",
    type=_LevelType(),
    multiple=True,
    metavar="LEVEL",
    help="Write all files of this level anew, and a damaged miso.json. Repeatable; other levels stay as they are.",
)
@click.option("--out", type=_FILE, help="Directory of the bundle [default: NAME-GGUF here].")
@click.option("--mimi", metavar="WHERE", help=f"Mimi, the codec{_WHERE}, inside it, or the hub's].")
@click.option("--tokenizer", metavar="WHERE", help=f"tokenizer.json{_WHERE}, or the hub's].")
@click.option("--name", help="The model's name, for a fine-tune [default: the bundle's or the original's].")
@click.option("--decoder-quant", type=_LevelType(), metavar="LEVEL", help="Another level for the depth decoder.")
@click.option("--imatrix", metavar="DIR", type=_FILE, help="What miso-recipe imatrix made; the iq3 levels need it.")
@click.option("--imatrix-backbone", type=_FILE, help="A single one, for the backbone (llama.cpp's GGUF format).")
@click.option("--imatrix-decoder", type=_FILE, help="The same for the depth decoder.")
@click.option("--allow-nonfinite", is_flag=True, help="Convert NaN and Inf weights as they are.")
@click.option("--allow-zero", is_flag=True, help="Convert weights that are zero in bulk as they are.")
@click.option("--dry-run", is_flag=True, help="Print the plan with sizes and time; fetch and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@_common
@click.version_option(__version__)
def convert(
    checkpoint: str,
    levels: tuple[Level, ...],
    force: tuple[Level, ...],
    out: Path | None,
    name: str | None,
    mimi: str | None,
    tokenizer: str | None,
    decoder_quant: Level | None,
    imatrix: Path | None,
    imatrix_backbone: Path | None,
    imatrix_decoder: Path | None,
    allow_nonfinite: bool,
    allow_zero: bool,
    dry_run: bool,
    as_json: bool,
    revision: str | None,
    config: Path | None,
    key: str | None,
    threads: int,
    debug: bool,
) -> int:
    """Turn CHECKPOINT into a bundle of GGUF and ONNX files.

    CHECKPOINT is a .safetensors file or one that torch.save wrote, a directory that holds one, a Hugging Face repo id,
    or 'tiny' (the small model that needs no download).
    """
    if not levels and not force:
        raise click.UsageError("Missing option '--quant'.")
    found = imatrices_in(imatrix) if imatrix else {}
    matrices = (imatrix_backbone or found.get("backbone"), imatrix_decoder or found.get("decoder"))
    request = Request(levels, decoder_quant, *matrices, threads, allow_nonfinite, allow_zero, force, name)
    opens = partial(open_checkpoint, config=config, key=key)
    sources_of = resolve(
        checkpoint, mimi, tokenizer, revision=revision, fetch=not dry_run, progress=progress_bar, opens=opens
    )
    with sources_of as sources, opens(sources.checkpoint) as opened:
        directory = out or Path(f"{name or opened.spec.name}-GGUF")
        conversion = plan_conversion(directory, opened, sources.mimi, sources.tokenizer, request)
        if dry_run:
            _print_plan(conversion, as_json)
            if not as_json:
                _print_origins(sources, stdout)
            return DONE
        _print_origins(sources, stderr)
        if conversion.is_done:
            stderr.print(_already(conversion), markup=False)
        start = time.perf_counter()
        with progress_bar("converting", conversion.weights) as bar:
            manifest = run_conversion(conversion, bar)
        seconds = time.perf_counter() - start
    if as_json:
        print(json.dumps({"directory": str(directory), "seconds": round(seconds, 3), "levels": list(manifest.levels)}))
    else:
        stdout.print(_level_table(directory, manifest))
        stdout.print(f"{directory}: done in {seconds:.1f} s", markup=False)
    return DONE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def inspect(directory: Path, as_json: bool, debug: bool) -> int:
    """Show what a bundle holds: levels, parts, bits per weight, sizes, and the VRAM each level needs."""
    manifest = read_manifest(directory)
    if manifest.newer_levels:
        stderr.print(f"{directory}: {', '.join(manifest.newer_names)}: {BY_NEWER}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({key: level_memory(manifest, key).as_dict() for key in manifest.levels}, indent=2))
        return DONE
    stdout.print(_level_table(directory, manifest))
    made_by = {name: f"{program}, llama.cpp {llama}" for name, (program, llama) in manifest.versions.items()}
    columns, rows = ["file", "size", "sha256"], []
    for name, record in manifest.files.items():
        rows.append([name, size_text(record.size_bytes), record.sha256[:16]])
    if len(set(made_by.values())) > 1:
        columns, rows = [*columns, "made by"], [[*row, made_by[row[0]]] for row in rows]
    stdout.print(table("files", columns, rows, numeric=[1]))
    rows = [
        [source.role, source.name, source.sha256[:16], source.repo or "", (source.revision or "")[:12]]
        for source in manifest.sources
    ]
    columns = ["source", "file", "sha256", "repository", "commit"]
    stdout.print(table(f"made by {manifest.converter} from", columns, rows))
    return DONE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=_FILE)
@click.argument("checkpoint", required=False)
@click.option("--mimi", metavar="WHERE", help=f"Mimi, the codec{_WHERE}, or inside it].")
@click.option("--tokenizer", metavar="WHERE", help=f"tokenizer.json{_WHERE}].")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_common
def verify(
    directory: Path,
    checkpoint: str | None,
    mimi: str | None,
    tokenizer: str | None,
    as_json: bool,
    revision: str | None,
    config: Path | None,
    key: str | None,
    threads: int,
    debug: bool,
) -> int:
    """Check a bundle: its files' hashes, headers and vocabularies, and that its codec runs.

    With CHECKPOINT also every tensor, every entry of the tokenizer and the codec against their sources, and, if torch
    is installed, logits against the PyTorch reference.

    Exit code 0: all is well. 1: something differs. 2: it could not be checked.
    """
    if checkpoint is None and (mimi or tokenizer):
        raise click.UsageError("--mimi and --tokenizer say what lies beside CHECKPOINT: pass that too")
    try:
        manifest = read_manifest(directory)
    except NewerBundleError:
        raise
    except BundleError as error:
        if not (directory / MANIFEST_NAME).exists():
            raise
        return _print_findings(directory, [Finding("manifest", MANIFEST_NAME, str(error), ok=False)], [], as_json)
    if checkpoint is None:
        if revision is not None:
            raise click.UsageError("--revision is of CHECKPOINT: pass the repository too")
        findings = verify_bundle(directory, manifest, None, threads, progress_bar)
    else:
        opens = partial(open_checkpoint, config=config, key=key)
        made_from = manifest.sources_of("checkpoint")
        sources_of = resolve_for_verify(
            checkpoint, mimi, tokenizer, revision, made_from=made_from, progress=progress_bar, opens=opens
        )
        try:
            with sources_of as sources, opens(sources.checkpoint) as opened:
                beside = {"mimi": sources.mimi, "tokenizer": sources.tokenizer}
                findings = verify_bundle(directory, manifest, opened, threads, progress_bar, **beside)
        except OtherCheckpointError as error:
            findings = verify_bundle(directory, manifest, None, threads, progress_bar)
            findings.append(Finding("source", checkpoint, str(error), ok=False))
    given = {"--key": key, "--revision": revision, "--config": config, "--mimi": mimi, "--tokenizer": tokenizer}
    mending = mends(directory, manifest, findings, checkpoint or "CHECKPOINT", given)
    return _print_findings(directory, findings, mending, as_json)


def _print_findings(directory: Path, findings: list[Finding], mending: list[str], as_json: bool) -> int:
    bad = sum(not finding.ok for finding in findings)
    if as_json:
        entries = [finding.as_dict() for finding in findings]
        print(json.dumps({"ok": not bad, "findings": entries, "mend": mending}, indent=2))
    else:
        rows = [[f.check, f.subject, f.measured, f.result] for f in findings]
        stdout.print(table(f"{directory}", ["check", "subject", "measured", "result"], rows))
        skipped = sum(finding.skipped for finding in findings)
        verdict = f"{bad} of {len(findings) - skipped} checks failed" if bad else "all is well"
        left_out = f", {skipped} left out" if skipped else ""
        stdout.print(f"{directory}: {verdict}{left_out}", markup=False)
        for command in mending:
            stdout.print(f"To mend it: {command}", markup=False, soft_wrap=True)
    return NO if bad else DONE


def _print_origins(sources: Sources, console: Any) -> None:
    """Whose codec and tokenizer these are, where they come from the hub: few asked for them by name."""
    for what, file in {"codec": sources.mimi, "tokenizer": sources.tokenizer}.items():
        if file is not None and (found := origin(file)):
            console.print(f"{what}: {found[0]}/{file.name} of commit {found[1][:12]}", markup=False, soft_wrap=True)


def _already(conversion: Conversion) -> str:
    return f"{conversion.directory}: {', '.join(conversion.levels)} already there"


def _print_plan(conversion: Conversion, as_json: bool) -> None:
    seconds = estimate_seconds(conversion)
    files = [(plan.name, plan.size_bytes, plan.size_bytes * 8 / plan.weights) for plan in conversion.plans]
    if as_json:
        plan = {
            "directory": str(conversion.directory),
            "files": {name: size for name, size, _ in files},
            "download_bytes": conversion.download_bytes,
            "needed_bytes": conversion.needed_bytes,
            "estimated_seconds": round(seconds, 1),
        }
        print(json.dumps(plan, indent=2))
        return
    if conversion.is_done:
        stdout.print(_already(conversion), markup=False)
        return
    rows = [[name, size_text(size), f"{bpw:.2f}"] for name, size, bpw in files]
    if conversion.needs_codec:
        rows.append([f"{DECODER_NAME}, {ENCODER_NAME}", f"about {size_text(conversion.codec.size_estimate_bytes)}", ""])
    stdout.print(table(f"to be written into {conversion.directory}", ["file", "size", "bpw"], rows, numeric=[1, 2]))
    fetched = f"{size_text(conversion.download_bytes)} to fetch, " if conversion.download_bytes else ""
    stdout.print(
        f"{fetched}{size_text(conversion.needed_bytes)} of disk, "
        f"about {_duration(seconds)} on {conversion.request.threads} threads",
        markup=False,
    )


def _level_table(directory: Path, manifest: Manifest) -> Any:
    rows = []
    for key in finest_first(manifest.levels):
        memory = level_memory(manifest, key)
        rows.append(
            [
                key,
                *(size_text(size) for size in (memory.backbone_bytes, memory.decoder_bytes, memory.embeddings_bytes)),
                f"{memory.bits_per_weight:.2f}",
                size_text(memory.vram_bytes),
                "both" if len(weighed := manifest.levels[key].weighed) == 2 else "".join(weighed),
            ]
        )
    columns = [
        "level",
        "backbone",
        "decoder",
        "embeddings (host)",
        "bpw",
        f"VRAM at {manifest.model_spec.max_positions}",
        "imatrix",
    ]
    if not any(files.weighed for files in manifest.levels.values()):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return table(f"{directory}: {manifest.model_spec.name}", columns, rows, numeric=[1, 2, 3, 4, 5])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(seconds, 1):.0f} s"


def main() -> None:
    """Entry point: `inspect` and `verify` are words, anything else is a conversion."""
    commands = {"inspect": inspect, "verify": verify}
    name, arguments = "miso-convert", sys.argv[1:]
    if arguments and arguments[0] in commands:
        sys.exit(run(commands[arguments[0]], arguments[1:], f"{name} {arguments[0]}"))
    sys.exit(run(convert, arguments, name))
