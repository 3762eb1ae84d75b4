"""Writes the tables of files in README and docs from the modules' docstrings: `make docs`; `--check` only looks.

A table stands between two comments, `<!-- files: runtime/lm -->` or `<!-- folders -->`, and `<!-- end -->`. It has the
first line of each module's docstring; a folder's is that of its `__init__.py`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TABLE = re.compile(r"(<!-- (?:files: (?P<folder>\S+)|folders) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def first_line(module: Path) -> str:
    """The first line of a module's docstring, for a cell."""
    docstring = ast.get_docstring(ast.parse(module.read_text("utf-8")))
    if not docstring:
        raise ValueError(f"{module}: has no docstring")
    return docstring.splitlines()[0].replace("|", r"\|")


def package_folders(root: Path) -> list[Path]:
    """The package's folders, each before those inside it."""
    inits = (init for room in root.glob("*/__init__.py") for init in room.parent.rglob("__init__.py"))
    return sorted((init.parent for init in inits), key=lambda path: path.parts)


def folder_list(root: Path) -> Iterator[str]:
    """One line a folder, indented as it lies."""
    for folder in package_folders(root):
        name = folder.relative_to(root).as_posix()
        yield f"{'  ' * name.count('/')}- [`{folder.name}/`]({name}) {first_line(folder / '__init__.py')}"


def file_table(root: Path, folder: str) -> Iterator[str]:
    """One row a module of a folder and of the folders inside it, these after the folder's own."""
    if not (root / folder).is_dir():
        raise ValueError(f"{folder}: no such folder")
    modules = (path for path in (root / folder).rglob("*.py") if path.parent != root / folder or _is_named(path))
    yield "| file | what it is for |"
    yield "|---|---|"
    for module in sorted(modules, key=lambda path: (path.parent.parts, _is_named(path), path.name)):
        name = module.relative_to(root / folder).as_posix()
        shown = f"`{name}`" if _is_named(module) else f"**`{name.removesuffix('__init__.py')}`**"
        yield f"| {shown} | {first_line(module)} |"


def _is_named(module: Path) -> bool:
    return module.name != "__init__.py"


def filled(text: str, root: Path = ROOT) -> str:
    """The text with each of its tables made anew."""

    def table(found: re.Match[str]) -> str:
        lines = file_table(root, found["folder"]) if found["folder"] else folder_list(root)
        return "\n".join([found[1], *lines, "", found[4]])

    return _TABLE.sub(table, text)


def stale(root: Path = ROOT) -> dict[Path, str]:
    """The documents whose tables are not what the sources say, and what they should be."""
    documents = {path: path.read_text("utf-8") for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))}
    return {path: new for path, text in documents.items() if (new := filled(text, root)) != text}


def main(arguments: list[str], root: Path = ROOT) -> int:
    """The exit code: 1 if something is stale and was to be left so."""
    found = stale(root)
    for path, new in found.items():
        if "--check" in arguments:
            print(f"{path.relative_to(root)}: its table of files is stale: `make docs`", file=sys.stderr)
        else:
            path.write_text(new, "utf-8")
    return int(bool(found) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
