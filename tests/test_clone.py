"""A clone, whatever it is called: the root is the package, and pytest must not import it by the name of its folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["miso-gguf", "miso_gguf"])
def test_pytest_runs_in_a_clone_of_any_name(name: str, tmp_path: Path) -> None:
    clone = tmp_path / name
    (clone / "tests").mkdir(parents=True)
    for file in ("pyproject.toml", "__init__.py", "version.py"):
        shutil.copyfile(ROOT / file, clone / file)
    (clone / "tests" / "test_one.py").write_text("def test_one() -> None: ...\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, "1 passed" in ran.stdout) == (0, True), ran.stdout
