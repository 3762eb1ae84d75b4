"""Mimi's split residual vector quantiser: codes to latents, and latents to codes.

The semantic codebooks and the acoustic ones quantise the same latent, each through a projection of their own; decoded,
the two are summed.
"""

import numpy as np
import spox.opset.ai.onnx.v20 as op
from numpy.typing import NDArray
from spox import Var

from ...models.mimi import MimiSpec, codebook_names
from .graph import END, StreamGraph, cut, floats, ints

_USAGE_FLOOR = np.float32(1e-5)
"""Source: moshi `EuclideanCodebook`. A floor of 1 is a known mistake of ports: rarely used entries then buzz."""


def _codebook(graph: StreamGraph, name: str) -> NDArray[np.float32]:
    """The vectors of one codebook, `[cardinality, codebook_dim]`: running sums over running counts."""
    usage = np.maximum(graph.tensors[f"{name}.cluster_usage"], _USAGE_FLOOR)
    return np.asarray(graph.tensors[f"{name}.embedding_sum"] / usage[:, None])


def dequantise(graph: StreamGraph, spec: MimiSpec, codes: Var) -> Var:
    """Codes `[B, codebooks, n]` to latents `[B, n, latent_dim]`.

    A code outside the codebook, negative ones included, is an error of ONNX Runtime's that names it.
    """
    # The table is gathered from as it is stored: only the rows in use are cast.
    table = np.stack([_codebook(graph, name) for name in codebook_names(spec)])
    number = op.const(np.arange(spec.codebooks)[None, :, None])
    outside = op.const(np.int64(spec.cardinality))
    codes = op.where(op.less(codes, op.const(np.int64(0))), outside, codes)
    index = op.concat([op.unsqueeze(v, ints(3)) for v in (op.expand(number, op.shape(codes)), codes)], axis=3)
    vectors = op.cast(op.gather_nd(graph.stored("quantizer.codebooks", table), index), to=np.float32)
    parts = (cut(vectors, 0, spec.semantic_codebooks, axis=1), cut(vectors, spec.semantic_codebooks, END, axis=1))
    sums = op.concat([op.reduce_sum(part, ints(1), keepdims=0) for part in parts], axis=2)
    projections = [
        graph.tensors[f"quantizer.{part}.output_proj.weight"][:, :, 0].T for part in ("rvq_first", "rvq_rest")
    ]
    return op.matmul(sums, graph.weight("quantizer.output_proj", np.concatenate(projections)))


def _residual_codes(graph: StreamGraph, names: list[str], x: Var) -> list[Var]:
    """Nearest entries, codebook after codebook, each of what the ones before left over: `[N, dim]` to `[N]` each."""
    codes: list[Var] = []
    for name in names:
        vectors = _codebook(graph, name)
        table = graph.weight(name, vectors)
        # Least |x - e|^2 is greatest x.e - |e|^2 / 2; leaving out |x|^2 loses no digits to it.
        bias = -0.5 * np.square(vectors.astype(np.float64)).sum(axis=1)
        code = op.arg_max(op.gemm(x, table, floats(bias), transB=1), axis=1, keepdims=0)
        codes.append(code)
        if name != names[-1]:
            x = op.sub(x, op.gather(table, code))
    return codes


def quantise(graph: StreamGraph, spec: MimiSpec, latents: Var) -> Var:
    """Latents `[B, n, latent_dim]` to codes int64 `[B, codebooks, n]`."""
    flat = op.reshape(latents, ints(-1, spec.latent_dim))
    names = codebook_names(spec)
    split = {"rvq_first": names[: spec.semantic_codebooks], "rvq_rest": names[spec.semantic_codebooks :]}
    codes: list[Var] = []
    for part, part_names in split.items():
        name = f"quantizer.{part}.input_proj.weight"
        x = op.matmul(flat, graph.weight(name, graph.tensors[name][:, :, 0].T))
        codes += _residual_codes(graph, part_names, x)
    rows = op.concat([op.unsqueeze(code, ints(1)) for code in codes], axis=1)
    shape = op.concat([op.shape(latents, start=0, end=2), ints(spec.codebooks)], axis=0)
    return op.transpose(op.reshape(rows, shape), perm=[0, 2, 1])
