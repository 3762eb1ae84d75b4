"""Checking a bundle: hashes, every tensor against its source, and logits against the PyTorch reference.

It trusts nothing that the conversion computed: files are read back, dequantised by ggml, and compared with the
checkpoint read anew.
"""

import importlib.util
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

from ..models.errors import BundleError
from ..models.manifest import Manifest
from ..models.tensors import PARTS, Part, gguf_tensors
from ..native.ggml import dequantize, row_bytes
from .checkpoint import Checkpoint
from .rows import RowReader
from .source_hash import file_sha256
from .verify_logits import compare_logits

Qtype = GGMLQuantizationType
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

MAX_RELATIVE_ERROR: dict[Qtype, float] = {
    Qtype.F32: 1e-6,
    Qtype.F16: 2**-11,
    Qtype.Q8_0: 0.012,
    Qtype.Q6_K: 0.04,
    Qtype.Q5_0: 0.09,
    Qtype.Q4_1: 0.16,
    Qtype.Q4_K: 0.15,
    Qtype.Q4_0: 0.18,
}
"""Largest RMS error of a chunk of rows over the RMS of its source. F32 leaves room for the projected table, a product
whose last bits depend on the BLAS; F16 is half a unit in the last place; the others are about twice what each type does
to Gaussian weights: F16 .0002, Q8_0 .0054, Q6_K .018, Q5_0 .043, Q4_1 .075,
Q4_K .071, Q4_0 .086. Another tensor, a permuted row or a lost block is far outside."""

_SMALLEST_STEP: dict[Qtype, float] = {
    Qtype.F32: 0.0,
    Qtype.F16: 2.0**-25,
    Qtype.Q8_0: 127 * 2.0**-25,
    Qtype.Q6_K: 32 * 127 * 2.0**-25,
    Qtype.Q5_0: 16 * 2.0**-25,
    Qtype.Q4_1: 16 * 2.0**-25,
    Qtype.Q4_K: 63 * 15 * 2.0**-25,
    Qtype.Q4_0: 8 * 2.0**-25,
}
"""Absolute error that a type's F16 scale makes on values too small for it (half a subnormal step times the largest
multiplier)."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    check: str
    subject: str
    measured: str
    ok: bool

    def as_dict(self) -> dict[str, str | bool]:
        """For JSON."""
        return asdict(self)


def verify_bundle(
    directory: Path, manifest: Manifest, checkpoint: Checkpoint | None, threads: int, progress: ProgressBar
) -> list[Finding]:
    """All findings, good and bad. With `checkpoint`, tensors and (if torch is installed) logits are compared too.

    Raises `BundleError` or `OSError` only where checking itself is impossible.
    """
    findings = _check_hashes(directory, manifest, progress)
    if checkpoint is None or not all(finding.ok for finding in findings):
        return findings
    if checkpoint.spec != manifest.model_spec or checkpoint.fingerprint() != manifest.fingerprint:
        return [
            *findings,
            Finding("source", checkpoint.spec.name, "the bundle was made from another checkpoint", False),
        ]
    names = {getattr(files, part): part for files in manifest.levels.values() for part in PARTS}
    total = sum(t.weights for part in names.values() for t in gguf_tensors(checkpoint.spec) if t.part == part)
    with progress("comparing tensors", total) as bar:
        for name, part in names.items():
            findings.append(_check_tensors(directory / name, part, checkpoint, bar))
    if importlib.util.find_spec("torch") is None:
        return findings
    for key, files in manifest.levels.items():
        measured, ok = compare_logits(directory, key, files, checkpoint, threads)
        findings.append(Finding("logits", key, measured, ok))
    return findings


def _check_hashes(directory: Path, manifest: Manifest, progress: ProgressBar) -> list[Finding]:
    findings = []
    with progress("hashing", sum(record.size_bytes for record in manifest.files.values())) as bar:
        for name, record in manifest.files.items():
            path = directory / name
            if not path.is_file():
                findings.append(Finding("hash", name, "missing", False))
            elif path.stat().st_size != record.size_bytes:
                measured = f"{path.stat().st_size} bytes, expected {record.size_bytes}"
                findings.append(Finding("hash", name, measured, False))
            else:
                digest = file_sha256(path)
                ok = digest == record.sha256
                measured = digest[:16] if ok else f"sha256 {digest[:16]}, expected {record.sha256[:16]}"
                findings.append(Finding("hash", name, measured, ok))
            bar(record.size_bytes)
    return findings


def _check_tensors(path: Path, part: Part, checkpoint: Checkpoint, bar: Callable[[int], None]) -> Finding:
    """Every tensor of one GGUF against its source; reports the worst, by how much of its allowance it uses."""
    try:
        found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path}: not a readable GGUF ({error}). Convert again.") from error
    reader = RowReader(checkpoint, allow_nonfinite=True)
    expected = {tensor.name: tensor for tensor in gguf_tensors(checkpoint.spec) if tensor.part == part}
    if set(found) != set(expected):
        return Finding("tensors", path.name, f"other tensors: {sorted(set(found) ^ set(expected))[:5]}", False)
    worst, worst_name, worst_error = -1.0, "", 0.0
    for name, tensor in expected.items():
        qtype, columns = found[name].tensor_type, tensor.shape[-1]
        if qtype not in MAX_RELATIVE_ERROR:
            return Finding("tensors", path.name, f"{name} has the unexpected type {qtype.name}", False)
        data = found[name].data.reshape(-1).view(np.uint8).reshape(-1, row_bytes(qtype, columns))
        for start, stop in reader.chunks(tensor):
            source = reader.read(tensor, start, stop)
            difference = dequantize(qtype, data[start:stop], columns).astype(np.float64) - source
            wrong, scale = _rms(difference), _rms(source)
            allowed = MAX_RELATIVE_ERROR[qtype] * scale + _SMALLEST_STEP[qtype]
            used = wrong / allowed if allowed else (math.inf if wrong else 0.0)
            if not used <= worst:  # NaN counts as worst
                worst, worst_name, worst_error = used, name, wrong / scale if scale else wrong
            bar(source.size)
    return Finding(
        "tensors",
        path.name,
        f"{len(expected)} tensors, worst {worst_name}: relative RMS error {worst_error:.2g}, {worst:.0%} of allowed",
        worst <= 1.0,
    )


def _rms(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
