"""Who imports whom, read from the sources, and a picture of it.

    python tests/imports.py           this checkout
    python tests/imports.py OTHER     another one, for example an older one

Modules by folder, arrows between folders (one for each pair, however many imports), arrows between the files and
folders that a folder shows, and the longest chain of imports from module to module.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "models", "native", "hub", "convert", "runtime", "quant_eval", "serve", "recipes")

Graph = Mapping[str, set[str]]
"""Module, as a path without suffix ("runtime/lm/engine"): those of the package that it imports."""


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package's rooms by its name; a folder's `__init__` has the folder's."""
    paths = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    return {path.relative_to(root).with_suffix("").as_posix().removesuffix("/__init__"): path for path in paths}


def statements(path: Path) -> list[tuple[int, str, list[str]]]:
    """(level, module, names) of every import, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found.extend((0, alias.name, []) for alias in node.names)
    return found


def import_graph(root: Path = ROOT) -> Graph:
    """Of all modules of the rooms."""
    modules = sources(root)
    graph = {}
    for module, path in modules.items():
        folders = path.relative_to(root).parts[:-1]
        found: set[str] = set()
        for level, spelled, names in statements(path):
            if level:
                base = "/".join([*folders[: len(folders) - level + 1], *filter(None, spelled.split("."))])
                found |= {f"{base}/{name}" if f"{base}/{name}" in modules else base for name in names}
        graph[module] = (found & modules.keys()) - {module}
    return graph


def folder_of(module: str, modules: Mapping[str, Path], root: Path = ROOT) -> str:
    """The folder that a module lies in: "runtime/lm"."""
    return modules[module].parent.relative_to(root).as_posix()


def arrows(graph: Graph, place: Mapping[str, str]) -> set[tuple[str, str]]:
    """Pairs of different places of which the first imports the second."""
    return {(place[one], place[other]) for one in graph for other in graph[one] if place[one] != place[other]}


def longest_chain(graph: Graph) -> list[str]:
    """The longest way from module to module along imports, the importing one first. Raises `CycleError`."""

    @cache
    def chain(module: str) -> list[str]:
        return [module, *max(map(chain, graph[module]), key=len, default=[])]

    return max((chain(module) for module in TopologicalSorter(graph).static_order()), key=len)


def _shown(room: str, modules: Iterable[str], folders: Mapping[str, str]) -> dict[str, str]:
    """What a room shows of each module in it: the folder that it lies in, or itself if it lies in the room."""
    return {module: module if folders[module] == room else folders[module] for module in modules}


def picture(root: Path) -> str:
    """All of it as text."""
    modules, graph = sources(root), import_graph(root)
    folders = {module: folder_of(module, modules, root) for module in modules}
    lines = []
    for folder in sorted(set(folders.values())):
        count = sum(folders[module] == folder and path.name != "__init__.py" for module, path in modules.items())
        to = sorted(other for one, other in arrows(graph, folders) if one == folder)
        lines.append(f"{folder:28} {count:3} modules  -> {', '.join(to) or '-'}")
    lines.append(f"\n{len(arrows(graph, folders))} arrows between folders")
    for room in ROOMS:
        inside = [module for module in modules if module.startswith(f"{room}/")]
        if inside:
            place = _shown(room, inside, folders)
            count = len(arrows({one: graph[one] & place.keys() for one in inside}, place))
            lines.append(f"{room}: shows {len(set(place.values()))} files and folders, {count} arrows between them")
    chain = longest_chain(graph)
    return "\n".join([*lines, f"\nlongest chain, {len(chain)} modules: " + " -> ".join(chain)])


if __name__ == "__main__":
    print(picture(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
