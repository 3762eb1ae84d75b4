"""Whether a GGUF file is the part of a bundle that it is to be: seen in Python, before llama.cpp sees the file.

llama.cpp ends the process on headers that make no sense to it, and on weights of shapes and types that it does not
expect. Weights themselves may be anything.
"""

from pathlib import Path

from ..core.errors import BundleError
from ..models.gguf_parts import header_faults
from ..models.manifest import Manifest
from ..models.tensors import PARTS, Part
from ..native.gguf_file import GgufFile


def check_part(path: Path, part: Part, manifest: Manifest) -> None:
    """Raises `BundleError` if the file is not this part of this conversion. Milliseconds, also for large files."""
    with GgufFile(path) as file:
        keys, tensors = file.keys(), {name: (found.qtype.name, found.shape) for name, found in file.tensors.items()}
    if (found_part := keys.get("miso.part")) != part:
        what = f"is a {found_part}" if found_part in PARTS else "is not one of our files"
        raise BundleError(f"{path}: {what}, expected the {part}. Fetch or convert the bundle again.")
    fingerprint = keys.get("miso.source.fingerprint")
    if fingerprint != manifest.fingerprint:
        raise BundleError(
            f"{path}: comes from another checkpoint (fingerprint {str(fingerprint)[:12]}) than the bundle "
            f"({manifest.fingerprint[:12]}). Files of different conversions do not work together: convert again."
        )
    for fault in header_faults(manifest.model_spec, part, manifest.fingerprint, keys, tensors):
        raise BundleError(f"{path}: {fault.text}. Fetch or convert the bundle again.")


def check_vocabulary(path: Path) -> None:
    """Raises `BundleError` if a token of the embeddings file is empty or there twice, which llama.cpp does not survive.

    Apart from `check_part` because it reads every token: 128 256 take 0.1 s.
    """
    with GgufFile(path) as file:
        tokens = file.texts("tokenizer.ggml.tokens") or []
    if len({*tokens, ""}) != len(tokens) + 1:
        raise BundleError(f"{path}: its tokenizer has a token twice, or an empty one. Fetch or convert it again.")
