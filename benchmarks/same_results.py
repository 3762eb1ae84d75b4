"""Whether two evaluations found the same: two `results.json` of one command, before and after the code was changed.

    python benchmarks/same_results.py OLD/results.json NEW/results.json       exit code 1 if anything differs

Left out is what may differ though nothing changed: when and on what it was run, how long things took, versions, and
where files lie.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

LEFT_OUT = {
    "": ("schema_version", "created", "machine", "versions"),
    "model": ("bundle", "manifest_sha256"),  # a manifest names the program that wrote it
    "levels": ("rtf", "ttfa_s"),
    "levels.memory": ("measured_peak_bytes", "measured_steady_bytes", "measured_why_not"),
}
"""By place: keys that are not compared."""
_SENTENCES = ("notes", "gates.reason", "clips.why")
_DIRECTORY = (r"(: level \S+ of ).*(, files )", r"\1DIR\2")
_IDENTITY = ("level", "metric", "kind", "codebook", "prompt", "seed", "name")
"""What tells the entries of a list apart."""


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each place where they differ: what was there, what is there now."""
    before, after = (dict(_places(_pruned(document))) for document in (old, new))
    lines = []
    for place in dict.fromkeys([*before, *after]):
        was, now = before.get(place), after.get(place)
        # A key that only one version has is there without a value in the other.
        if was != now:
            lines.append(f"{place}: {json.dumps(was, ensure_ascii=False)} -> {json.dumps(now, ensure_ascii=False)}")
    return lines


def _pruned(part: Any, place: str = "") -> Any:
    """Without what is left out."""
    if isinstance(part, dict):
        return {
            key: _pruned(value, f"{place}.{key}".lstrip("."))
            for key, value in part.items()
            if key not in LEFT_OUT.get(place, ())
        }
    if isinstance(part, list):
        return [_pruned(each, place) for each in part]
    return re.sub(*_DIRECTORY, part) if isinstance(part, str) and place in _SENTENCES else part


def _places(part: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with the path to it; entries of lists by what they are of, and the order that they come in."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from _places(value, f"{place}.{key}".lstrip("."))
    elif isinstance(part, list) and part and all(isinstance(each, dict) for each in part):
        names = [" ".join(str(each[key]) for key in _IDENTITY if key in each) for each in part]
        yield f"{place}, in order", names
        for index, (name, each) in enumerate(zip(names, part, strict=True)):
            yield from _places(each, f"{place}[{name if names.count(name) == 1 else index}]")
    else:
        yield place, part


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0] if __doc__ else "")
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(old: Path, new: Path) -> None:
    """Print what differs."""
    documents = []
    for path in (old, new):
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise click.UsageError(f"{path}: no JSON ({error})") from error
        if not isinstance(document, dict) or "schema_version" not in document:
            raise click.UsageError(f"{path}: no results.json: it has no schema_version")
        documents.append(document)
    lines = differences(*documents)
    for line in lines:
        click.echo(line)
    click.echo(f"{len(lines)} differences" if lines else "the same", err=True)
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
