"""Which code measures: records of other code are not the same measurement, whatever its version says."""

import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
COMPUTING = ("core", "native", "models", "runtime")
"""What makes codes and sound of weights."""
MEASURING = ("quant_eval/fit.py", "quant_eval/metric.py", "quant_eval/metrics", "quant_eval/prosody", "quant_eval/run")
"""What makes records of codes and sound."""


@lru_cache
def code_sha256(parts: tuple[str, ...], package: Path = PACKAGE) -> str:
    """sha256 over the names and the bytes of all source files of these files and folders of the package, in hex.

    Their comments count too: better once too often measured anew than once not. Where nothing but compiled files is
    installed it says nothing, and the version has to do.
    """
    digest = hashlib.sha256()
    for part in parts:
        path = package / part
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if source.is_file():
                content = source.read_bytes()
                digest.update(f"{source.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()
