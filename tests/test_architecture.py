"""The rules of the house that a test can hold: imports run one way, all are relative, nothing imports a cli."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "native": {"models"},
    "models": set(),
    "convert": {"models", "native", "console"},
    "runtime": {"models", "native", "console"},
    "quant_eval": {"models", "native", "runtime", "console"},
}
SOURCES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> list[tuple[int, str, list[str]]]:
    """(level, module, names) of every import, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found.extend((0, alias.name, []) for alias in node.names)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    depth = len(path.relative_to(ROOT).parts) - 1
    for level, module, names in _imports(path):
        assert not (level == 0 and module.split(".")[0] == "miso_gguf"), "imports inside the package are relative"
        assert not (level and "cli" in [module.rsplit(".", 1)[-1], *names]), "nothing imports a cli"
        if level == depth + 1:
            for target in [module.split(".")[0]] if module else names:
                known = target == folder or target in ALLOWED[folder] or target.startswith("__")
                assert known, f"{folder} must not import {target}"
        if module == "console" and level:
            assert path.name == "cli.py", "only a cli prints"


def test_there_is_something_to_walk() -> None:
    assert len(SOURCES) > 30
    assert any(_imports(path) for path in SOURCES)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name != "cli.py"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_only_commands_use_click_and_rich(path: Path) -> None:
    assert not {module.split(".")[0] for _, module, _ in _imports(path)} & {"click", "rich"}


def test_packages_are_listed(pytestconfig: pytest.Config) -> None:
    """Packages are listed one by one in pyproject.toml: a new folder must not be missing from the wheel."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for folder in {path.parent for path in SOURCES}:
        assert f'"miso_gguf.{".".join(folder.relative_to(ROOT).parts)}"' in text
