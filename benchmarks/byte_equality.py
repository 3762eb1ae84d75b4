"""Is every tensor of every level what llama.cpp's own quantiser makes of our F32 file? Counted, level by level.

    PYTHONPATH=tests python benchmarks/byte_equality.py [--quant LEVEL] [--out benchmarks/results/byte_equality.json]

Both halves of random models: the tiny one, two with so many layers that every rule of the mixtures takes some, with
heads in groups and alone, one as wide as the 8B model, and two whose columns are no whole number of blocks, so that
types fall back. Each with and without an importance matrix (levels that need one: with). Type and bytes must be equal.
Takes some minutes, on one core. Prints the table as Markdown, and last one line of JSON; exit code 1 if a tensor
differs.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from builders import llama_quantize, make_bundle, make_inputs, tensor_bytes, write_random_imatrices
from miso_gguf.convert.imatrix import HALVES, read_imatrix
from miso_gguf.core.arrays import F32Array
from miso_gguf.core.files import write_whole
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32, LEVELS, Level, parse_level
from miso_gguf.models.spec import ModelSpec, TransformerSpec
from miso_gguf.models.tensors import Part, gguf_tensors

Importances = Mapping[Part, Mapping[str, F32Array]]
PLAIN, WEIGHED = "without", "with"

console = Console(stderr=True)


def _narrow(name: str, backbone: TransformerSpec, decoder: TransformerSpec) -> ModelSpec:
    return replace(TINY, name=name, backbone=backbone, decoder=decoder, codebooks=4, audio_vocab=515)


_T = TransformerSpec
SHAPES = (
    TINY,
    _narrow("Deep", _T(17, 256, 4, 1, 64, 256), _T(9, 256, 8, 1, 32, 256)),
    _narrow("Ungrouped", _T(17, 256, 2, 2, 128, 256), _T(8, 256, 3, 1, 16, 512)),
    _narrow("Wide", _T(3, 4096, 4, 1, 64, 256), _T(3, 256, 4, 1, 64, 6912)),
    _narrow("Blocks32", _T(4, 288, 3, 1, 64, 352), _T(3, 96, 3, 1, 32, 160)),
    _narrow("NoBlocks", _T(4, 80, 3, 1, 16, 112), _T(3, 64, 3, 1, 16, 80)),
)


@dataclass
class Count:
    """Tensors of a level, with or without an importance matrix."""

    compared: int = 0
    equal: int = 0
    types: set[str] = field(default_factory=set)
    different: list[str] = field(default_factory=list)

    def add(self, where: str, ours: Mapping[str, tuple[str, bytes]], theirs: Mapping[str, tuple[str, bytes]]) -> None:
        """Compare all tensors of two files: one that is in either counts."""
        for name in sorted({*ours, *theirs}):
            self.compared += 1
            self.equal += ours.get(name) == theirs.get(name)
            if ours.get(name) != theirs.get(name):
                self.different.append(f"{where}: {name}")
        self.types |= {kind for kind, _ in theirs.values()}


Counts = dict[tuple[str, str], Count]
"""By level's key and `PLAIN` or `WEIGHED`."""


def count(shapes: Sequence[ModelSpec], levels: Sequence[Level], work: Path) -> Counts:
    """Convert and compare all."""
    counts: Counts = {}
    for spec in shapes:
        console.print(f"{spec.name}: comparing")
        inputs = make_inputs(work / spec.name, spec)
        files = write_random_imatrices(work / spec.name / "imatrix", spec)
        importances = {part: _columns(files[f"imatrix_{part}"], spec, part) for part in HALVES}
        plain, weighed = work / spec.name / PLAIN, work / spec.name / WEIGHED
        make_bundle(inputs, plain, [F32, *(level for level in levels if not level.needs_imatrix)], threads=1)
        make_bundle(inputs, weighed, levels, threads=1, **files)
        for level in levels:
            for how, bundle, given in ((PLAIN, plain, None), (WEIGHED, weighed, importances)):
                if given is not None or not level.needs_imatrix:
                    _compare(counts.setdefault((level.key, how), Count()), plain, bundle, spec, level, given)
    return counts


def _columns(path: Path, spec: ModelSpec, part: Part) -> Mapping[str, F32Array]:
    return read_imatrix(path, [tensor for tensor in gguf_tensors(spec) if tensor.part == part]).columns


def _compare(
    found: Count, source: Path, bundle: Path, spec: ModelSpec, level: Level, given: Importances | None
) -> None:
    for part in HALVES:
        ours = tensor_bytes(bundle / f"{spec.name}-{part}-{level.label}.gguf")
        oracle = bundle / "oracle.gguf"
        theirs = llama_quantize(
            source / f"{spec.name}-{part}-F32.gguf", oracle, level, None if given is None else dict(given[part])
        )
        found.add(f"{spec.name}, {part}, {level.key}", ours, theirs)


def markdown(counts: Counts) -> str:
    """One line a level."""
    lines = ["| level | tensors | equal | with an imatrix | equal | types |", "|---|---|---|---|---|---|"]
    for key in dict.fromkeys(key for key, _ in counts):
        cells, types = [LEVELS[key].label], set[str]()
        for how in (PLAIN, WEIGHED):
            one = counts.get((key, how))
            cells += [str(one.compared), str(one.equal)] if one else ["needs one", ""]
            types |= one.types if one else set()
        lines.append(f"| {' | '.join([*cells, ', '.join(sorted(types))])} |")
    return "\n".join(lines)


def as_json(counts: Counts) -> dict[str, Any]:
    """For machines."""
    return {
        "benchmark": "byte_equality",
        "shapes": [spec.name for spec in SHAPES],
        "compared": sum(one.compared for one in counts.values()),
        "equal": sum(one.equal for one in counts.values()),
        "levels": [
            {"level": key, "imatrix": how == WEIGHED, "compared": one.compared, "equal": one.equal}
            | {"types": sorted(one.types), "different": one.different}
            for (key, how), one in counts.items()
        ],
    }


@click.command(help=__doc__)
@click.option("--quant", multiple=True, help="Only this level. May be repeated.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
def main(quant: Sequence[str], out: Path | None) -> None:
    levels = [parse_level(name) for name in quant] or [level for level in LEVELS.values() if level is not F32]
    with tempfile.TemporaryDirectory() as work:
        counts = count(SHAPES, levels, Path(work))
    result = as_json(counts)
    print(markdown(counts))
    print(json.dumps(result))
    if out is not None:
        write_whole(out, json.dumps(result, indent=1).encode() + b"\n")
    sys.exit(result["equal"] != result["compared"])


if __name__ == "__main__":
    main()
