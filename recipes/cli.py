"""`miso-recipe`: what speech says of a model's weights, for better levels."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..console import DONE, counted_bar, run, stderr, stdout, table
from ..convert.imatrix import HALVES
from ..core.files import file_sha256
from ..quant_eval.command_text import duration
from ..quant_eval.run.cost import hearing_cost
from ..version import __version__
from .collect import Collected, collect
from .merge import merge
from .plan import Asked, Collection, plan_collection

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  miso-recipe imatrix DIR --out im/                        the finest level of a bundle says its corpus
  miso-recipe imatrix DIR --out im/ --recordings voices/   it hears recordings instead, NAME.wav with NAME.txt
  miso-recipe imatrix DIR --out im/ --corpus builtin:40 --recordings voices/     both
  miso-recipe merge im-1/ im-2/ --out im/                  what two machines have heard
  miso-convert CHECKPOINT --quant iq3_m --imatrix im/ --out DIR                  what it is for
Exit codes:
  0  done, or both files were there already
  2  could not do it: it is said why
"""


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """What speech says of a model's weights, for better levels."""


@cli.command("imatrix")
@click.argument("bundle")
@click.option("--out", type=_PATH, metavar="DIR", required=True, help="Directory of the two files; resumes.")
@click.option(
    "--corpus",
    metavar="CORPUS",
    help="What is said: builtin, tiny, builtin:40 (a part), or a JSONL file [default: the model's; with "
    "--recordings nothing].",
)
@click.option("--recordings", type=_PATH, metavar="DIR", help="Sound files, each with its words in NAME.txt.")
@click.option("--prompts", type=click.IntRange(1), metavar="N", help="Only so many of the corpus.")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, metavar="N", show_default=True, help="Renditions of each prompt."
)
@click.option("--quant", "level", metavar="LEVEL", help="Who speaks [default: the finest level of BUNDLE].")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads [default: see docs/runtime.md].")
@click.option(
    "--gpu-layers", type=click.IntRange(-1), metavar="N", help="Layers on the GPU, 0 for none [default: all]."
)
@click.option("--fresh", is_flag=True, help="Forget what an earlier run has left in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def imatrix_command(bundle: str, as_json: bool, debug: bool, fresh: bool, **asked: Any) -> int:
    """Make an importance matrix for each half of BUNDLE from speech.

    BUNDLE is a directory that miso-convert wrote, or a Hugging Face repo. One of its levels speaks a corpus, or hears
    recordings, and it is noted which columns of its weights matter: miso-convert --imatrix quantises by that. After
    Ctrl-C, the same command goes on.
    """
    wanted = Asked(**asked)
    collection = plan_collection(bundle, wanted)
    stderr.print(_cost_text(collection), highlight=False, markup=False)
    with counted_bar("hearing") as progress:
        collected = collect(collection, progress, fresh=fresh)
    return _say(collected, as_json=as_json)


@cli.command("merge")
@click.argument("directories", nargs=-1, required=True, type=_PATH, metavar="DIR...")
@click.option("--out", type=_PATH, metavar="DIR", required=True, help="Directory of the two files.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def merge_command(directories: Sequence[Path], out: Path, as_json: bool, debug: bool) -> int:
    """Add up importance matrices of one model."""
    return _say(merge(directories, out), as_json=as_json)


def _cost_text(collection: Collection) -> str:
    """Before the work, in one line."""
    speech_s, takes = hearing_cost(
        collection.candidate.files, [prompt for prompt, _ in collection.clips], collection.engine
    )
    said = takes if isinstance(takes, str) else f"about {duration(takes)}"
    what = "; ".join(collection.datasets)
    number = len(collection.clips)
    clips = f"{number} clip{'s' if number > 1 else ''}, about {duration(speech_s)} of speech ({what})"
    return f"{clips}; {said}. It resumes after Ctrl-C."


def _say(collected: Collected, *, as_json: bool) -> int:
    if as_json:
        stdout.print_json(json.dumps(_document(collected)))
        return DONE
    rows = []
    for part in HALVES:
        file = collected.files[part]
        rows.append(
            (
                part,
                str(len(file.entries)),
                f"{file.chunks * file.chunk_rows}",
                f"{file.clips}",
                str(collected.paths[part]),
            )
        )
    stdout.print(table("Importance matrices", ("part", "matrices", "rows", "clips", "file"), rows, numeric=(1, 2, 3)))
    if collected.was_there:
        said = "both files were there already: nothing was done"
    else:
        silent = f", nothing in {collected.silent} of the clips" if collected.silent else ""
        said = f"{collected.frames} frames{silent}, {collected.wall_s:.1f} s"
    stdout.print(said, highlight=False, markup=False)
    return DONE


def _document(collected: Collected) -> dict[str, Any]:
    return {
        "was_there": collected.was_there,
        "frames": collected.frames,
        "silent": collected.silent,
        "wall_s": round(collected.wall_s, 3),
        "files": {
            part: {
                "path": str(collected.paths[part]),
                "sha256": file_sha256(collected.paths[part]),
                "identity": file.identity,
                "datasets": list(file.datasets),
                "clips": file.clips,
                "chunks": file.chunks,
                "chunk_rows": file.chunk_rows,
                "matrices": len(file.entries),
            }
            for part, file in collected.files.items()
        },
    }


def main() -> None:
    """Entry point."""
    sys.exit(run(cli, sys.argv[1:], "miso-recipe"))
