"""The rules of the house that a test can hold: which room may import which, outside and inside; nothing grows large."""

import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT, import_graph, longest_chain, sources, statements

ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "models": {"core"},
    "native": {"core", "models"},
    "hub": {"core"},
    "convert": {"core", "models", "native", "hub", "console"},
    "runtime": {"core", "models", "native", "hub", "console"},
    "quant_eval": {"core", "models", "native", "runtime", "console"},
    "serve": {"core", "models", "native", "runtime", "console"},
    "recipes": {"core", "models", "native", "convert", "runtime", "quant_eval", "console"},
}
"""What a room may import of the other rooms."""

STOREYS: dict[str, str] = {
    "convert": "checkpoint mimi gguf_header imatrix rows mixture plan sink quantize codec existing conversion estimate "
    "checks verify bundle cli",
    "runtime": "audio codec options part_check bundle speech lm/depth lm voice synthesis tts dialogue fit "
    "choice request facts cli",
    "quant_eval": "metric results corpus recordings said fit machine memory stats prosody instruments metrics gates "
    "run scoring clips notes summary outcome report listening accepting evaluation command_text cli",
    "serve": "options keys request_id errors body refusal_log security connection turns model sound voices speech "
    "metrics service speech/response endpoints app server cli",
    "recipes": "imatrix_file sums plan collector state collect merge cli",
}
"""Inside a room, from the ground up: a folder or file imports only what stands before it."""

MOST_LINES, MOST_MODULES = 350, 16

MODULES = sources()
SOURCES = list(MODULES.values())
GRAPH = import_graph()


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _storey(room: str, module: str) -> int:
    """Where in its room a module stands: by its folder, or its name if it lies in the room itself."""
    inside = module.removeprefix(f"{room}/")
    storeys = STOREYS[room].split()
    places = [number for number, storey in enumerate(storeys) if inside == storey or inside.startswith(f"{storey}/")]
    assert places, f"{module} has no place in STOREYS"
    return max(places)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_run_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    depth = len(path.relative_to(ROOT).parts) - 1
    for level, module, names in statements(path):
        assert not (level == 0 and module.split(".")[0] == "miso_gguf"), "imports inside the package are relative"
        assert not (level and "cli" in [module.rsplit(".", 1)[-1], *names]), "nothing imports a cli"
        if level == depth + 1:
            for target in [module.split(".")[0]] if module else names:
                known = target == folder or target in ALLOWED[folder] or target.startswith("__")
                assert known or (target, names) == ("version", ["__version__"]), f"{folder} must not import {target}"
        if module == "console" and level:
            assert path.name == "cli.py", "only a cli prints"


@pytest.mark.parametrize(
    "module", [module for module in MODULES if module.split("/")[0] in STOREYS and "/" in module], ids=str
)
def test_imports_inside_a_room_run_down(module: str) -> None:
    room = module.split("/", maxsplit=1)[0]
    if MODULES[module].name == "__init__.py":
        assert not GRAPH[module], "a folder's __init__ says what it is for, nothing else"
        return
    for target in GRAPH[module]:
        if target.startswith(f"{room}/"):
            assert _storey(room, target) <= _storey(room, module), f"{module} must not import {target}"


def test_every_storey_is_there() -> None:
    for room, storeys in STOREYS.items():
        for storey in storeys.split():
            assert f"{room}/{storey}" in MODULES, f"{room}/{storey} is gone: take it out of STOREYS"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


def test_folders_are_small() -> None:
    for folder in {path.parent for path in SOURCES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{_name(folder)} has {len(modules)} modules: {MOST_MODULES} at most"


def test_there_is_something_to_walk() -> None:
    assert len(SOURCES) > 30
    assert set(ALLOWED) == {module.split("/")[0] for module in MODULES}
    assert "runtime/lm/depth/decoder" in GRAPH["runtime/lm/engine"]


@pytest.mark.parametrize("command", ["convert", "runtime", "serve", "recipes"])
def test_commands_need_no_extra(command: str) -> None:
    """Whoever installs the package alone has none of these; in this environment all are there."""
    extras = "filelock huggingface_hub torch tokenizers transformers matplotlib parselmouth pynvml "
    extras += "av fastapi starlette prometheus_client python_multipart multipart uvicorn h11 anyio"
    code = f"import sys; sys.modules.update(dict.fromkeys('{extras}'.split())); import miso_gguf.{command}.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_imports_run_in_no_circle() -> None:
    chain = longest_chain(GRAPH)
    assert chain[0].endswith("cli")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "cli.py"], ids=_name)
def test_only_commands_use_click_and_rich(path: Path) -> None:
    assert not {module.split(".")[0] for _, module, _ in statements(path)} & {"click", "rich"}
