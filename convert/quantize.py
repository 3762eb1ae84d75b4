"""The pass over a checkpoint: every row is read once, checked once, and quantised for all files that want it.

Workers make bytes; one thread hands them to the sinks in file order. In-order writing keeps memory flat, needs no
seeking, and lets each file's sha256 grow with it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from threadpoolctl import threadpool_limits

from ..core.arrays import F32Array, U8Array
from ..core.errors import CheckpointError
from ..models.tensors import GgufTensor
from ..native.ggml import is_valid, quantize
from .gguf_header import padded
from .plan import GgufPlan
from .rows import RowReader
from .sink import Sink

_QUEUED_PER_WORKER = 3
"""Finished or running chunks per worker: enough that none waits for a slower neighbour."""

Progress = Callable[[int], None]
"""Called with the number of weights that were just written, counted once for every file."""


@dataclass(frozen=True)
class _Job:
    """One tensor, and every file that it goes to."""

    tensor: GgufTensor
    importance: F32Array | None
    targets: tuple[tuple[Sink, GGMLQuantizationType, int], ...]
    """(file, type, bytes of padding behind the tensor)."""

    @property
    def types(self) -> set[GGMLQuantizationType]:
        return {qtype for _, qtype, _ in self.targets}


@dataclass(frozen=True)
class _Chunk:
    job: _Job
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == self.job.tensor.shape[0] or len(self.job.tensor.shape) == 1


def run_pass(
    reader: RowReader,
    files: Sequence[tuple[GgufPlan, Sink]],
    threads: int,
    *,
    allow_nonfinite: bool = False,
    reached: Callable[[int, int], None] = lambda _file, _offset: None,
    progress: Progress = lambda _weights: None,
) -> None:
    """Write the tensor data of all `files`, whose headers are written, in one pass over the checkpoint.

    `reached(file, offset)` is told where the pass reads. Raises `CheckpointError` on weights that cannot be
    represented or are zero in bulk, `OSError` when a disk is full.
    """

    def make(chunk: _Chunk) -> Mapping[GGMLQuantizationType, U8Array]:
        rows = reader.read(chunk.job.tensor, chunk.start, chunk.stop)
        return {qtype: _encode(chunk.job, qtype, rows, allow_nonfinite) for qtype in sorted(chunk.job.types)}

    # One BLAS thread: the workers are the parallelism, and results must not depend on how a product was cut.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads, thread_name_prefix="quantise") as pool:
        window: deque[tuple[_Chunk, Future[Mapping[GGMLQuantizationType, U8Array]]]] = deque()
        try:
            for chunk in _chunks(reader, files):
                reached(*reader.position(chunk.job.tensor, chunk.start))
                window.append((chunk, pool.submit(make, chunk)))
                if len(window) >= threads * _QUEUED_PER_WORKER:
                    _write(*window.popleft(), progress)
            while window:
                _write(*window.popleft(), progress)
        except BaseException:
            for _, future in window:
                future.cancel()
            raise
    reader.refuse_zeros()


def _chunks(reader: RowReader, files: Sequence[tuple[GgufPlan, Sink]]) -> Iterator[_Chunk]:
    jobs: dict[tuple[str, str], _Job] = {}
    for plan, sink in files:
        for tensor, info in zip(plan.tensors, plan.infos, strict=True):
            padding = padded(info.size_bytes) - info.size_bytes
            job = jobs.get((plan.part, tensor.name))
            importance = plan.imatrix.columns.get(tensor.name) if plan.imatrix else None
            earlier = job.targets if job else ()
            jobs[plan.part, tensor.name] = _Job(tensor, importance, (*earlier, (sink, info.qtype, padding)))
    # Within a part this is the plans' own order, so every file is written front to back.
    for job in sorted(jobs.values(), key=lambda job: reader.position(job.tensor)):
        for start, stop in reader.chunks(job.tensor):
            yield _Chunk(job, start, stop)


def _encode(job: _Job, qtype: GGMLQuantizationType, rows: F32Array, allow_nonfinite: bool) -> U8Array:
    try:
        data = quantize(qtype, rows, job.importance)
    except ValueError as error:
        raise CheckpointError(
            f"tensor {job.tensor.name} of the {job.tensor.part}: {error}. Fix the checkpoint or the imatrix, or choose "
            "another level."
        ) from error
    if not allow_nonfinite and not is_valid(qtype, data):
        worst = float(np.abs(rows).max())
        raise CheckpointError(
            f"tensor {job.tensor.name} of the {job.tensor.part} does not fit {qtype.name}: "
            f"its largest weight is {worst:g}{_weighed(job)}, and F16 (values or block scales) ends at 65504. "
            "Fix the checkpoint, or convert as it is with --allow-nonfinite."
        )
    return data


def _weighed(job: _Job) -> str:
    return "" if job.importance is None else f" (importances up to {float(job.importance.max()):g})"


def _write(chunk: _Chunk, future: Future[Mapping[GGMLQuantizationType, U8Array]], progress: Progress) -> None:
    encoded = future.result()
    for sink, qtype, padding in chunk.job.targets:
        sink.write(encoded[qtype].data)
        if chunk.is_last:
            sink.write(bytes(padding))
    progress((chunk.stop - chunk.start) * chunk.job.tensor.shape[-1] * len(chunk.job.targets))
