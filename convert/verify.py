"""Checking a bundle: hashes, every tensor against its source, and logits against the PyTorch reference.

It trusts nothing that the conversion computed: files are read back, dequantised by ggml, and compared with the
checkpoint read anew.
"""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from ..core.arrays import F32Array
from ..core.files import file_sha256
from ..models.levels import Level, halves
from ..models.manifest import BY_NEWER, FORMAT_VERSION, MANIFEST_NAME, Manifest
from ..models.tensor_types import TENSOR_TYPES
from ..models.tensors import PARTS, GgufTensor, Part, gguf_tensors
from ..native.ggml import dequantize
from ..native.gguf_file import GgufFile, StoredTensor
from .checkpoint.open import Checkpoint
from .gguf_header import miso_keys, uint32
from .plan import part_keys
from .rows import RowReader
from .verify_logits import Prompt

Qtype = GGMLQuantizationType
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_GROUP = 256
"""Weights that are judged together: a super-block of the K-quants."""

MAX_GROUP_ERROR = {GGMLQuantizationType[name]: row.max_group_error for name, row in TENSOR_TYPES.items()}

IMATRIX_ALLOWANCE = 2.0
"""How much more an importance matrix may cost: it trades the error of columns that matter little."""

_SMALLEST_STEP = {GGMLQuantizationType[name]: row.largest_factor * 2.0**-25 for name, row in TENSOR_TYPES.items()}
"""Absolute error that a type's F16 scale makes on values too small for it."""


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
    findings = [*_check_manifest(directory, manifest), *_check_hashes(directory, manifest, progress)]
    if all(finding.ok for finding in findings):
        findings += _check_headers(directory, manifest)
    if checkpoint is None or not all(finding.ok or finding.check == "origin" for finding in findings):
        return findings
    if (
        replace(checkpoint.spec, name=manifest.model_spec.name) != manifest.model_spec
        or checkpoint.fingerprint() != manifest.fingerprint
    ):
        return [
            *findings,
            Finding("source", checkpoint.spec.name, "the bundle was made from another checkpoint", False),
        ]
    names = {getattr(files, part): part for files in manifest.levels.values() for part in PARTS}
    weighted = {files.backbone for files in manifest.levels.values() if files.imatrix_backbone}
    weighted |= {files.decoder for files in manifest.levels.values() if files.imatrix_decoder}
    total = sum(t.weights for part in names.values() for t in gguf_tensors(checkpoint.spec) if t.part == part)
    with progress("comparing tensors", total) as bar, ThreadPoolExecutor(threads) as pool:
        for name, part in names.items():
            allowance = IMATRIX_ALLOWANCE if name in weighted else 1.0
            findings.append(_check_tensors(directory / name, part, checkpoint, allowance, pool, bar))
    if importlib.util.find_spec("torch") is None:
        return findings
    prompt = Prompt(checkpoint)
    for key, files in manifest.levels.items():
        measured, ok = prompt.compare(directory, key, files, threads)
        findings.append(Finding("logits", key, measured, ok))
    return findings


def _check_manifest(directory: Path, manifest: Manifest) -> list[Finding]:
    """That it can be read was seen before; here it is named, with what of it cannot be checked."""
    read = Finding("manifest", MANIFEST_NAME, file_sha256(directory / MANIFEST_NAME)[:16], ok=True)
    unchecked = f"{BY_NEWER}: of its files only the hashes are checked"
    return [read, *(Finding("level", key, unchecked, ok=True) for key in manifest.newer_names)]


def _check_headers(directory: Path, manifest: Manifest) -> list[Finding]:
    """What each file says of model, checkpoint and level, against the manifest: that may have been edited."""
    spec, wanted = manifest.model_spec, dict[tuple[str, Part, Level | None], None]()
    for key, files in manifest.levels.items():
        levels = halves(key)
        wanted[files.backbone, "backbone", levels[0]] = None
        wanted[files.decoder, "decoder", levels[-1]] = None
        wanted[files.embeddings, "embeddings", None] = None
    findings = []
    for name, part, level in wanted:
        expected = [uint32("general.file_type", level.ftype)] if level else []
        expected += [*part_keys(spec, part, []), *miso_keys(spec, part, FORMAT_VERSION, manifest.fingerprint)]
        with GgufFile(directory / name) as file:
            found = {key.name: file.value(key.name) for key in expected}
        faults = {
            key.name: f"{key.name} is {found[key.name]}, the manifest says {key.value}"
            for key in expected
            if found[key.name] != (np.float32(key.value) if isinstance(key.value, float) else key.value)
        }
        # One that is of another checkpoint, and else as it should be, can be compared with this one's.
        check = "origin" if faults.keys() == {"miso.source.fingerprint"} else "header"
        measured = next(iter(faults.values()), f"{level.label} {part}" if level else part)
        findings.append(Finding(check, name, measured, not faults))
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


def _check_tensors(
    path: Path,
    part: Part,
    checkpoint: Checkpoint,
    allowance: float,
    pool: ThreadPoolExecutor,
    bar: Callable[[int], None],
) -> Finding:
    """Every tensor of one GGUF against its source; reports the group that uses most of its allowance."""
    with GgufFile(path) as file:
        found = file.tensors
    reader = RowReader(checkpoint, allow_nonfinite=True)
    expected = {tensor.name: tensor for tensor in gguf_tensors(checkpoint.spec) if tensor.part == part}
    if set(found) != set(expected):
        return Finding("tensors", path.name, f"other tensors: {sorted(set(found) ^ set(expected))[:5]}", ok=False)
    worst, worst_name = -1.0, ""
    for name, tensor in expected.items():
        stored = found[name]
        if stored.qtype not in MAX_GROUP_ERROR or stored.shape != tensor.shape:
            return Finding("tensors", path.name, f"{name} is {stored.qtype.name} {list(stored.shape)}", ok=False)

        def judge(rows: tuple[int, int], tensor: GgufTensor = tensor, stored: StoredTensor = stored) -> float:
            source = reader.read(tensor, *rows)
            found_rows = dequantize(stored.qtype, stored.data[slice(*rows)], tensor.shape[-1])
            bar(source.size)
            return _worst_group(found_rows, source, stored.qtype) / allowance

        used = max(pool.map(judge, reader.chunks(tensor)))
        if used > worst:
            worst, worst_name = used, name
    measured = f"{len(expected)} tensors, worst {worst_name} with {worst:.0%} of the error allowed"
    return Finding("tensors", path.name, measured, worst <= 1.0)


def _worst_group(found: F32Array, source: F32Array, qtype: Qtype) -> float:
    """The largest error of any group of 256 weights (a whole row where that is no multiple), over what is allowed.

    Groups whose source is not finite are passed over: they were converted on request. NaN elsewhere is infinitely bad.
    """
    columns = source.shape[1]
    group = _GROUP if columns % _GROUP == 0 else columns
    wanted = source.reshape(-1, group)
    # The differences are exact in float32; only their squares could underflow, far below any step.
    with np.errstate(all="ignore"):
        error = np.sqrt(np.mean(np.square(found.reshape(-1, group) - wanted), axis=1))
        largest = np.abs(wanted).max(axis=1)
        used = error / (MAX_GROUP_ERROR[qtype] * largest + _SMALLEST_STEP[qtype])
    used[(error == 0) | ~np.isfinite(largest)] = 0.0
    return float(np.nan_to_num(used, nan=np.inf).max())
