"""Other versions of ONNX Runtime, each in a folder of its own with numpy and nothing else."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

OLDEST = "1.20.0"
"""The oldest that pyproject.toml declares."""
PYTHON_310 = "1.23.2"
"""The latest that Python 3.10 gets."""

_FOLDER = Path(__file__).parents[1] / "build" / "onnxruntimes"


def onnxruntime_folder(version: str) -> Path:
    """The folder that holds this version, fetched from the package index where it is not there yet."""
    tag = f"{version}-py{sys.version_info.major}{sys.version_info.minor}"
    folder = _FOLDER / tag
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(_FOLDER / f"{tag}.lock"):
        if not folder.exists():
            partial = _FOLDER / f"{tag}.partial"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--upgrade"]
            subprocess.run([*pip, "--target", str(partial), f"onnxruntime=={version}", "numpy"], check=True)
            partial.rename(folder)
    return folder


def environment(version: str) -> Mapping[str, str]:
    """Variables with which a program of ours takes this version instead of the one installed."""
    return {**os.environ, "PYTHONPATH": str(onnxruntime_folder(version))}
