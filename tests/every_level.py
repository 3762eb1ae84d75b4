"""A small bundle of every level, with importance matrices, whose depth decoder takes each type without a fallback."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from builders import MICRO, Built, make_bundle, make_inputs, write_imatrix
from miso_gguf.models.levels import LEVELS
from miso_gguf.models.spec import TransformerSpec
from miso_gguf.models.tensors import gguf_tensors

SPEC = replace(MICRO, decoder=TransformerSpec(layers=2, embed_dim=256, heads=4, kv_heads=2, head_dim=64, ffn_dim=256))


def every_level(built: Built) -> Path:
    """Converted once in a test run."""
    return built._once((SPEC, "every level"), _convert)


def _convert(out: Path) -> None:
    inputs = make_inputs(out.with_suffix(".inputs"), SPEC)
    files = {}
    rng = np.random.default_rng(0)
    for part in ("backbone", "decoder"):
        files[f"imatrix_{part}"] = path = inputs.checkpoint.with_name(f"{part}.gguf")
        matrices = [tensor for tensor in gguf_tensors(SPEC) if tensor.part == part and len(tensor.shape) == 2]
        sums = {tensor.name: rng.uniform(0.1, 9, tensor.shape[1]).astype(np.float32) for tensor in matrices}
        write_imatrix(path, sums, dict.fromkeys(sums, 4.0))
    make_bundle(inputs, out, list(LEVELS.values()), threads=1, **files)
