"""Checking a bundle: hashes, every tensor, the tokenizer and the codec against their sources, and logits.

It trusts nothing that the conversion computed: files are read back, dequantised by ggml or run, and compared with the
sources read anew. What is left out is said, too. A file that is damaged is a finding, never an error.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from ..core.arrays import F32Array
from ..core.errors import BundleError
from ..core.files import file_sha256
from ..hub.path import HubPath
from ..models.gguf_parts import header_faults
from ..models.levels import Level, halves
from ..models.manifest import BY_NEWER, MANIFEST_NAME, BundleFile, Manifest, Role, mending_command
from ..models.synthetic import TOKENIZER_NAME
from ..models.tensor_types import TENSOR_TYPES
from ..models.tensors import PARTS, GgufTensor, Part, gguf_tensors
from ..native.ggml import dequantize
from ..native.gguf_file import GgufFile, StoredTensor
from ..native.threads import default_threads
from .checkpoint.open import Checkpoint
from .checkpoint.tensor_store import SourcePath
from .checkpoint.tokenizer import read_tokenizer
from .checks.logits import Prompt
from .codec import Codec
from .rows import RowReader

Qtype = GGMLQuantizationType
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_FILE_TYPE = "general.file_type"
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
    skipped: bool = False
    """Whether it was left out; `measured` says why."""

    @property
    def result(self) -> str:
        """For people."""
        return "skipped" if self.skipped else "ok" if self.ok else "DIFFERS"

    def as_dict(self) -> dict[str, str | bool]:
        """For JSON."""
        return asdict(self)


def verify_bundle(
    directory: Path,
    manifest: Manifest,
    checkpoint: Checkpoint | None,
    threads: int,
    progress: ProgressBar,
    *,
    mimi: SourcePath | None = None,
    tokenizer: SourcePath | None = None,
) -> list[Finding]:
    """All findings, good and bad.

    Args:
        directory: The bundle, and what its `manifest` says.
        checkpoint: What it was made from; with it tensors and (if torch is installed) logits are compared too.
        threads: Of the CPU; `progress` shows how far they are.
        mimi: The codec's source; one that lies inside the checkpoint is found there.
        tokenizer: The source `tokenizer.json`.

    Raises `BundleError`, `CheckpointError` or `OSError` only where checking itself is impossible.
    """
    assert not isinstance(mimi, HubPath), "it was fetched"
    assert not isinstance(tokenizer, HubPath), "it was fetched"
    hashes = _check_hashes(directory, manifest, progress)
    whole = {finding.subject for finding in hashes if finding.ok}
    headers = _check_headers(directory, manifest, whole)
    # One that is only of another checkpoint, and else as it should be, can be compared with this one's.
    whole -= {finding.subject for finding in headers if not finding.ok and finding.check != "origin"}
    findings = [*_check_manifest(directory, manifest), *hashes, *headers]
    with progress("comparing tokenizers", 1):
        findings += _check_tokenizers(directory, manifest, whole, checkpoint, tokenizer)
    is_other = checkpoint is not None and (
        replace(checkpoint.spec, name=manifest.model_spec.name) != manifest.model_spec
        or checkpoint.fingerprint() != manifest.fingerprint
    )
    with progress("running the codec", 1):
        codec_of = (None, None) if is_other else (checkpoint, mimi)
        findings += _check_codec(directory, manifest, whole, *codec_of, threads)
    if checkpoint is not None and is_other:
        message = "the bundle was made from another checkpoint"
        return [*findings, Finding("source", checkpoint.spec.name, message, ok=False)]
    if checkpoint is None:
        return [*findings, *(_left_out(check, "every level", "pass CHECKPOINT") for check in ("tensors", "logits"))]
    findings += _check_all_tensors(directory, manifest, whole, checkpoint, threads, progress)
    with progress("comparing logits", 1):
        return [*findings, *_check_logits(directory, manifest, whole, checkpoint, threads)]


def mends(
    directory: Path,
    manifest: Manifest,
    findings: Sequence[Finding],
    checkpoint: str = "CHECKPOINT",
    given: Mapping[str, object] | None = None,
) -> list[str]:
    """The commands that write the damaged files anew, from `checkpoint` and the options `given` that have a value.

    A level brings its files and the codec: of those that share a damaged one the smallest, with no imatrix if possible.
    """
    damaged = {finding.subject for finding in findings if not finding.ok}
    graphs = {manifest.codec.decoder, manifest.codec.encoder}
    parts = {key: {files.backbone, files.decoder, files.embeddings} for key, files in manifest.levels.items()}
    sizes = {key: sum(manifest.files[name].size_bytes for name in names) for key, names in parts.items()}
    ease = {key: (not manifest.levels[key].weighed, -size) for key, size in sizes.items()}
    brought = {key: {key, *names, *graphs} for key, names in parts.items()}
    commands: dict[tuple[object, ...], list[str]] = {}
    while key := max(brought, key=lambda key: (len(brought[key] & damaged), *ease[key]), default=None):
        if not brought[key] & damaged:
            break
        damaged -= brought[key]
        files = manifest.levels[key]
        kind = (key.partition("+")[2], files.imatrix_backbone, files.imatrix_decoder)
        commands.setdefault(kind, []).append(key)
    options = (option for option in (given or {}).items() if option[1])
    inputs = [checkpoint, *(str(word) for option in options for word in option)]
    return [mending_command(directory, *keys, manifest=manifest, inputs=inputs) for keys in commands.values()]


def _left_out(check: str, subject: str, remedy: str) -> Finding:
    return Finding(check, subject, f"not compared: {remedy}", ok=True, skipped=True)


def _check_manifest(directory: Path, manifest: Manifest) -> list[Finding]:
    """That it can be read was seen before; here it is named, with what of it cannot be checked."""
    read = Finding("manifest", MANIFEST_NAME, file_sha256(directory / MANIFEST_NAME)[:16], ok=True)
    unchecked = f"{BY_NEWER}: of its files only the hashes are checked"
    return [read, *(Finding("level", key, unchecked, ok=True, skipped=True) for key in manifest.newer_names)]


def _check_headers(directory: Path, manifest: Manifest, whole: set[str]) -> list[Finding]:
    """What each file says of model, checkpoint and level, against the manifest: that may have been edited."""
    spec, wanted = manifest.model_spec, dict[tuple[str, Part, Level | None], None]()
    for key, files in manifest.levels.items():
        levels = halves(key)
        wanted[files.backbone, "backbone", levels[0]] = None
        wanted[files.decoder, "decoder", levels[-1]] = None
        wanted[files.embeddings, "embeddings", None] = None
    findings = []
    for name, part, level in wanted:
        if name not in whole:
            continue
        try:
            with GgufFile(directory / name) as file:
                keys = file.keys()
                tensors = {tensor: (found.qtype.name, found.shape) for tensor, found in file.tensors.items()}
        except BundleError as error:
            findings.append(Finding("header", name, str(error), ok=False))
            continue
        faults = {}
        if level and keys.get(_FILE_TYPE) != level.ftype:
            faults[_FILE_TYPE] = f"{_FILE_TYPE} is {keys.get(_FILE_TYPE)}, the manifest says {level.ftype}"
        faults |= dict(header_faults(spec, part, manifest.fingerprint, keys, tensors))
        check = "origin" if faults.keys() == {"miso.source.fingerprint"} else "header"
        measured = next(iter(faults.values()), f"{level.label} {part}" if level else part)
        findings.append(Finding(check, name, measured, not faults))
    return findings


def _check_hashes(directory: Path, manifest: Manifest, progress: ProgressBar) -> list[Finding]:
    findings = []
    with progress("hashing", sum(record.size_bytes for record in manifest.files.values())) as bar:
        for name, record in manifest.files.items():
            path = directory / name
            try:
                measured, ok = _hashed(path, record)
            except OSError as error:
                measured, ok = f"cannot be read ({error.strerror or error})", False
            findings.append(Finding("hash", name, measured, ok))
            bar(record.size_bytes)
    return findings


def _hashed(path: Path, record: BundleFile) -> tuple[str, bool]:
    if not path.is_file():
        return "a directory: move it away" if path.is_dir() else "missing", False
    if (size_bytes := path.stat().st_size) != record.size_bytes:
        return f"{size_bytes} bytes, expected {record.size_bytes}", False
    digest = file_sha256(path)
    if digest != record.sha256:
        return f"sha256 {digest[:16]}, expected {record.sha256[:16]}", False
    return digest[:16], True


def _check_source(manifest: Manifest, role: Role, source: Path) -> list[Finding]:
    """Whether the bundle was made from this file."""
    if file_sha256(source) in {made_from.sha256 for made_from in manifest.sources_of(role)}:
        return []
    return [Finding("source", source.name, f"the bundle was made from another {role} file: pass that one", ok=False)]


def _check_tokenizers(
    directory: Path, manifest: Manifest, whole: set[str], checkpoint: Checkpoint | None, source: Path | None
) -> list[Finding]:
    from .checks.tokenizer import check_tokenizer_of  # noqa: PLC0415

    if source is not None and source.is_dir():
        source /= TOKENIZER_NAME
    other = _check_source(manifest, "tokenizer", source) if source else []
    metadata = read_tokenizer(source) if source and not other else None
    names = dict.fromkeys(files.embeddings for files in manifest.levels.values())
    findings = [Finding("tokenizer", n, *check_tokenizer_of(directory / n, metadata)) for n in names if n in whole]
    if source is None:
        remedy = "pass its source with --tokenizer FILE" if checkpoint else "pass CHECKPOINT"
        other = [_left_out("tokenizer", "every vocabulary", remedy)]
    return [*findings, *other]


def _check_codec(
    directory: Path, manifest: Manifest, whole: set[str], checkpoint: Checkpoint | None, mimi: Path | None, threads: int
) -> list[Finding]:
    from .checks.codec import Side, check_codec  # noqa: PLC0415  (onnx and ONNX Runtime: half a second)

    is_inside = not manifest.sources_of("mimi")
    other = _check_source(manifest, "mimi", mimi) if mimi and checkpoint and not is_inside else []
    source = None
    if checkpoint and not other and (checkpoint.codec_shapes if is_inside else mimi):
        source = Codec(None if is_inside else mimi, checkpoint, allow_zero=True)
    findings = []
    graphs: dict[Side, str] = {"decoder": manifest.codec.decoder, "encoder": manifest.codec.encoder}
    for side, name in graphs.items():
        if name in whole:
            measured, ok = check_codec(directory / name, side, manifest.model_spec, source, threads)
            findings.append(Finding("codec", name, measured, ok is not False, skipped=ok is None))
    if source is None and not other:
        remedy = "pass CHECKPOINT" if is_inside or checkpoint is None else "pass its source with --mimi FILE"
        other = [_left_out("codec", "both graphs", remedy)]
    return [*findings, *other]


def _check_all_tensors(
    directory: Path, manifest: Manifest, whole: set[str], checkpoint: Checkpoint, threads: int, progress: ProgressBar
) -> list[Finding]:
    findings = []
    names = {getattr(files, part): part for files in manifest.levels.values() for part in PARTS}
    names = {name: part for name, part in names.items() if name in whole}
    weighted = {files.backbone for files in manifest.levels.values() if files.imatrix_backbone}
    weighted |= {files.decoder for files in manifest.levels.values() if files.imatrix_decoder}
    total = sum(t.weights for part in names.values() for t in gguf_tensors(checkpoint.spec) if t.part == part)
    with progress("comparing tensors", total) as bar, ThreadPoolExecutor(threads) as pool:
        for name, part in names.items():
            allowance = IMATRIX_ALLOWANCE if name in weighted else 1.0
            findings.append(_check_tensors(directory / name, part, checkpoint, allowance, pool, bar))
    return findings


def _check_logits(
    directory: Path, manifest: Manifest, whole: set[str], checkpoint: Checkpoint, threads: int
) -> list[Finding]:
    """Of the levels whose files are whole: of the others it is known already that they are not well."""
    levels = {
        key: files
        for key, files in manifest.levels.items()
        if whole >= {files.backbone, files.decoder, files.embeddings}
    }
    if importlib.util.find_spec("torch") is None:
        return [_left_out("logits", key, "needs PyTorch: pip install 'miso-gguf[reference]'") for key in levels]
    findings = []
    prompt = Prompt(checkpoint)
    threads = min(threads, default_threads())  # of ggml, which loses by more
    for key, files in levels.items():
        try:
            measured, ok = prompt.compare(directory, key, files, threads)
        except BundleError as error:
            measured, ok = str(error), False
        findings.append(Finding("logits", key, measured, ok))
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
    reader = RowReader(checkpoint, allow_nonfinite=True, allow_zero=True)
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
