"""Other versions of packages than those installed, each in a folder of its own, fetched once from the package index."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

OLDEST_ONNXRUNTIME = "1.20.0"
"""The oldest that pyproject.toml declares."""
PYTHON_310_ONNXRUNTIME = "1.23.2"
"""The latest that Python 3.10 gets."""
OLDEST_HUB = "0.30.0"
"""The oldest huggingface-hub that pyproject.toml declares. It talks HTTP through another library than today's."""

_FOLDERS = Path(__file__).parents[1] / "build" / "older-packages"


def onnxruntime_folder(version: str) -> Path:
    """This version and numpy, nothing else."""
    return _folder(f"onnxruntime=={version}", "numpy", "--no-deps")


def hub_folder(version: str) -> Path:
    """This version of huggingface-hub and what it needs."""
    return _folder(f"huggingface-hub=={version}")


def environment(folder: Path) -> Mapping[str, str]:
    """Variables with which a program of ours takes what is in `folder` instead of what is installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.getenv("PYTHONPATH")])])}


def _folder(requirement: str, *more: str) -> Path:
    tag = f"{requirement}-py{sys.version_info.major}{sys.version_info.minor}"
    folder = _FOLDERS / tag
    _FOLDERS.mkdir(parents=True, exist_ok=True)
    with FileLock(_FOLDERS / f"{tag}.lock"):
        if not folder.exists():
            partial = _FOLDERS / f"{tag}.partial"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--upgrade"]
            subprocess.run([*pip, "--target", str(partial), requirement, *more], check=True)
            partial.rename(folder)
    return folder
