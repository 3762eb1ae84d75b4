"""Records are of the code that made them: any change of it is another hash."""

from collections.abc import Callable
from pathlib import Path

import pytest

from miso_gguf.quant_eval.run.source_hash import COMPUTING, MEASURING, PACKAGE, code_sha256

PARTS = ("one.py", "two")


def tree(directory: Path) -> Path:
    (directory / "two" / "deep").mkdir(parents=True)
    (directory / "one.py").write_text("a = 1\n")
    (directory / "two" / "b.py").write_text("b = 2\n")
    (directory / "two" / "deep" / "c.py").write_text("c = 3\n")
    (directory / "two" / "notes.txt").write_text("none")
    (directory / "other.py").write_text("d = 4\n")
    return directory


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda root: (root / "one.py").write_text("a = 2\n"), True),
        (lambda root: (root / "two" / "deep" / "c.py").write_text("c = 4\n"), True),
        (lambda root: (root / "two" / "deep" / "c.py").rename(root / "two" / "deep" / "d.py"), True),
        (lambda root: (root / "two" / "b.py").unlink(), True),
        (lambda root: (root / "two" / "new.py").write_text(""), True),
        (lambda root: (root / "other.py").write_text("d = 5\n"), False),
        (lambda root: (root / "two" / "notes.txt").write_text("some"), False),
    ],
)
def test_a_changed_source_changes_it(change: Callable[[Path], object], matters: bool, tmp_path: Path) -> None:
    before = code_sha256(PARTS, tree(tmp_path / "before"))
    assert code_sha256(PARTS, tree(tmp_path / "same")) == before
    change(tree(tmp_path / "after"))
    assert (code_sha256(PARTS, tmp_path / "after") != before) == matters


def test_all_that_makes_a_record_counts() -> None:
    for part in (*COMPUTING, *MEASURING):
        path = PACKAGE / part
        assert path.suffix == ".py" if path.is_file() else list(path.glob("*.py")), part
    assert "quant_eval/fit.py" in MEASURING, "it says which turns are heard before a recording"
    assert len({code_sha256(COMPUTING), code_sha256(MEASURING), code_sha256(())}) == 3


def test_compiled_alone_it_says_nothing(tmp_path: Path) -> None:
    assert code_sha256(PARTS, tmp_path) == code_sha256(())
