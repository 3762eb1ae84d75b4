"""The tables of files in README and docs are what the docstrings say, and one that is not is found."""

from pathlib import Path

import pytest
from file_tables import ROOT, main, stale

README = """# Small

<!-- folders -->
<!-- end -->

Between.

<!-- files: room -->
<!-- end -->

After.
"""
FILLED = r"""# Small

<!-- folders -->

- [`room/`](room) What a room is for.
  - [`closet/`](room/closet) A smaller one.

<!-- end -->

Between.

<!-- files: room -->

| file | what it is for |
|---|---|
| `b.py` | Either a \| b. |
| `cli.py` | The command. |
| **`closet/`** | A smaller one. |
| `closet/a.py` | The first. |

<!-- end -->

After.
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    docstrings = {
        "room/__init__.py": "What a room is for.\n\nAnd more.\n",
        "room/cli.py": "The command.",
        "room/b.py": "Either a | b.",
        "room/closet/__init__.py": "A smaller one.",
        "room/closet/a.py": "The first.",
        "tests/test_a.py": "No folder of the package.",
    }
    for name, docstring in docstrings.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'"""{docstring}"""\n')
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "none.md").write_text("No table.\n")
    return tmp_path


def test_tables_are_written_once(root: Path) -> None:
    assert main([], root) == 0
    assert (root / "README.md").read_text() == FILLED
    assert stale(root) == {}


@pytest.mark.parametrize("change", ["a docstring", "a new file", "a file that is gone", "an edit by hand"])
def test_a_stale_table_is_found_and_left(root: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([], root)
    assert main(["--check"], root) == 0
    if change == "a docstring":
        (root / "room/cli.py").write_text('"""Another."""')
    elif change == "a new file":
        (root / "room/new.py").write_text('"""It is new."""')
    elif change == "a file that is gone":
        (root / "room/closet/a.py").unlink()
    else:
        (root / "README.md").write_text(FILLED.replace("The first.", "The second."))
    before = (root / "README.md").read_text()
    assert main(["--check"], root) == 1
    assert capsys.readouterr().err == "README.md: its table of files is stale: `make docs`\n"
    assert (root / "README.md").read_text() == before
    assert main([], root) == 0
    assert main(["--check"], root) == 0


def test_tables_in_docs_are_kept_too(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([], root)
    (root / "docs" / "room.md").write_text("<!-- files: room/closet -->\n<!-- end -->\n")
    assert main(["--check"], root) == 1
    assert capsys.readouterr().err == "docs/room.md: its table of files is stale: `make docs`\n"
    assert main([], root) == 0
    assert "| `a.py` | The first. |" in (root / "docs" / "room.md").read_text()
    assert main(["--check"], root) == 0


def test_a_module_without_a_docstring_is_named(root: Path) -> None:
    (root / "room/bare.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"room/bare\.py: has no docstring"):
        stale(root)


def test_a_table_of_a_folder_that_is_gone_is_named(root: Path) -> None:
    (root / "README.md").write_text(README.replace("files: room", "files: rooms"))
    with pytest.raises(ValueError, match="rooms: no such folder"):
        stale(root)


def test_those_of_this_repository() -> None:
    assert stale() == {}
    for name, folder in (("runtime.md", "runtime"), ("evaluation.md", "quant_eval"), ("convert.md", "convert")):
        assert f"<!-- files: {folder} -->\n\n| file" in (ROOT / "docs" / name).read_text("utf-8")
    assert "- [`runtime/`](runtime) " in (ROOT / "README.md").read_text("utf-8")
