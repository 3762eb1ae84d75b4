"""How long a conversion will take on this machine: a short trial of the quantiser, extrapolated."""

import time
from collections import Counter

import numpy as np
from gguf import GGMLQuantizationType

from ..native.ggml import quantize
from .conversion import Conversion

_TRIAL_SHAPE = (64, 4096)
_OVERHEAD = 1.1
"""Reading, checking, hashing and writing beside the quantiser: see benchmarks/convert.py."""

_DISK_BYTES_PER_S = 400e6
"""Of a plain SSD, reading and writing in turns: what bounds the levels that are quick to quantise."""


def estimate_seconds(conversion: Conversion) -> float:
    """Wall seconds of `bundle.convert`, from the speed of each tensor type on one thread right now."""
    weights: Counter[GGMLQuantizationType] = Counter()
    counted: set[tuple[str, str, GGMLQuantizationType]] = set()
    for plan in conversion.plans:
        for tensor, info in zip(plan.tensors, plan.infos, strict=True):
            # Equal types of one tensor are quantised once for all files.
            if (plan.part, tensor.name, info.qtype) not in counted:
                counted.add((plan.part, tensor.name, info.qtype))
                weights[info.qtype] += tensor.weights
    thread_seconds = sum(count / _weights_per_second(qtype) for qtype, count in weights.items())
    moved_bytes = conversion.needed_bytes + sum(path.stat().st_size for path in conversion.checkpoint.store.files)
    return max(_OVERHEAD * thread_seconds / conversion.request.threads, moved_bytes / _DISK_BYTES_PER_S)


def _weights_per_second(qtype: GGMLQuantizationType) -> float:
    rows = np.random.default_rng(0).standard_normal(_TRIAL_SHAPE, np.float32)
    quantize(qtype, rows[:1])
    start = time.perf_counter()
    quantize(qtype, rows)
    return rows.size / (time.perf_counter() - start)
