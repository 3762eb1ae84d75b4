"""What all who read and write files share: a file's sha256, and the ending of one that is not whole yet."""

import hashlib
from pathlib import Path

PARTIAL_SUFFIX = ".miso-partial"
"""A file is written under a name with this ending, and renamed when it is whole."""

_BLOCK_BYTES = 4 << 20


def file_sha256(path: Path) -> str:
    """sha256 of one whole file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
