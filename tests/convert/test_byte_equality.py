"""Every tensor of every level equals what llama.cpp's own quantiser makes of our F32 GGUF: type and bytes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from builders import Inputs, llama_quantize, make_bundle, make_inputs, tensor_bytes, write_random_imatrices
from miso_gguf.models.flavors import MISO_8B, TINY
from miso_gguf.models.levels import F32, LEVELS, Level
from miso_gguf.models.spec import ModelSpec, TransformerSpec

_ROWS = 6
"""Of each matrix that are not zero, the first and the last among them. Rows are quantised independently, and the search
for scales and points of a grid is what takes the time."""
_T = TransformerSpec


def _narrow(name: str, backbone: TransformerSpec, decoder: TransformerSpec) -> ModelSpec:
    return replace(TINY, name=name, backbone=backbone, decoder=decoder, codebooks=3, audio_vocab=515)


# The columns of the real shapes (4096, 14336 and 1536, 6912), numbers of layers for which every rule of the mixtures
# takes some and leaves others, heads in groups and alone, and columns that are no whole blocks of 256, and of 32.
SPECS = {
    "tiny": TINY,
    "wide-embed": _narrow("WideEmbed", _T(2, 4096, 4, 1, 16, 64), _T(1, 1536, 4, 1, 16, 64)),
    "wide-ffn": _narrow("WideFfn", _T(2, 256, 4, 1, 16, 14336), _T(1, 256, 4, 1, 16, 6912)),
    "deep": _narrow("Deep", _T(17, 256, 4, 1, 64, 256), _T(9, 256, 8, 1, 32, 256)),
    "ungrouped": _narrow("Ungrouped", _T(17, 256, 2, 2, 128, 256), _T(8, 256, 3, 1, 16, 512)),
    "fallback-32": _narrow("Fallback32", _T(8, 288, 3, 1, 16, 352), _T(3, 96, 4, 1, 32, 160)),
    "fallback-f16": _narrow("FallbackF16", _T(8, 80, 4, 1, 16, 112), _T(3, 64, 3, 1, 16, 80)),
    "of-70b": _narrow("Of70b", _T(80, 256, 2, 1, 16, 32), _T(3, 256, 2, 2, 16, 32)),
}
QUANTISED = [level for level in LEVELS.values() if level is not F32]
WITHOUT_IMATRIX = [level for level in QUANTISED if not level.needs_imatrix]

KINDS = {
    "bf16": {"BF16"},
    "fp16": {"F16"},
    "q8_0": {"Q8_0"},
    "q6_k": {"Q6_K"},
    "q5_1": {"Q5_1", "Q6_K"},
    "q5_k_m": {"Q5_K", "Q6_K"},
    "q5_k_s": {"Q5_K", "Q6_K"},
    "q5_0": {"Q5_0", "Q6_K", "Q5_1"},
    "q4_1": {"Q4_1", "Q6_K"},
    "q4_k_m": {"Q4_K", "Q6_K"},
    "iq4_nl": {"IQ4_NL", "Q5_K", "Q6_K"},
    "q4_k_s": {"Q4_K", "Q5_K", "Q6_K"},
    "q4_0": {"Q4_0", "Q6_K", "Q4_1"},
    "iq4_xs": {"IQ4_XS", "Q5_K", "Q6_K"},
    "q3_k_l": {"Q3_K", "Q5_K", "Q6_K"},
    "q3_k_m": {"Q3_K", "Q4_K", "Q5_K", "Q6_K"},
    "iq3_m": {"IQ3_S", "Q4_K", "Q6_K"},
    "iq3_s": {"IQ3_S", "Q4_K", "Q6_K"},
    "q3_k_s": {"Q3_K", "Q6_K"},
    "iq3_xs": {"IQ3_S", "IQ3_XXS", "Q4_K", "Q6_K"},
    "iq3_xxs": {"IQ3_XXS", "IQ3_S", "IQ2_S", "Q4_K", "Q5_K"},
    "q2_k": {"Q2_K", "Q3_K", "Q4_K", "Q6_K"},
}
"""The types of a backbone's matrices where all columns are whole blocks, with an importance matrix."""


def _mostly_zero(inputs: Inputs) -> Inputs:
    weights = load_file(inputs.checkpoint)
    for name, values in weights.items():
        if values.ndim > 1 and name != "projection.weight":
            rows = values.swapaxes(-1, -2) if name == "audio_head" else values
            kept = np.linspace(0, rows.shape[-2] - 1, _ROWS).astype(int)
            rows[..., np.setdiff1d(np.arange(rows.shape[-2]), kept), :] = 0
    save_file(weights, inputs.checkpoint)
    return inputs


_QUICK = ("deep", "fallback-32")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in _QUICK else pytest.mark.long) for name in SPECS],
)
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, ModelSpec]:
    spec = SPECS[request.param]
    return _mostly_zero(make_inputs(tmp_path_factory.mktemp(request.param), spec)), spec


@pytest.fixture(scope="module")
def plain(inputs: tuple[Inputs, ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every level that can do without an importance matrix."""
    directory = tmp_path_factory.mktemp("plain")
    make_bundle(inputs[0], directory, [F32, *WITHOUT_IMATRIX], allow_zero=True)
    return directory


def _compare(
    source: Path,
    bundle: Path,
    spec: ModelSpec,
    level: Level,
    part: str,
    imatrix: Mapping[str, NDArray[np.float32]] | None,
) -> set[str]:
    """The types. `source` is the bundle whose F32 file the oracle quantises."""
    ours = tensor_bytes(bundle / f"{spec.name}-{part}-{level.label}.gguf")
    theirs = llama_quantize(source / f"{spec.name}-{part}-F32.gguf", bundle / "oracle.gguf", level, imatrix)
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    return {kind for kind, _ in ours.values()}


def test_equals_llama_quantize(inputs: tuple[Inputs, ModelSpec], plain: Path) -> None:
    for level in WITHOUT_IMATRIX:
        for part in ("backbone", "decoder"):
            _compare(plain, plain, inputs[1], level, part, None)


def test_equals_llama_quantize_with_imatrix(inputs: tuple[Inputs, ModelSpec], plain: Path, tmp_path: Path) -> None:
    files, spec = inputs
    request = write_random_imatrices(tmp_path, spec)
    importances = {}
    for part in ("backbone", "decoder"):
        found = {tensor.name: tensor.data for tensor in GGUFReader(request[f"imatrix_{part}"]).tensors}
        names = [name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")]
        importances[part] = {n: found[f"{n}.in_sum2"].reshape(-1) / found[f"{n}.counts"].reshape(-1) for n in names}
    made = make_bundle(files, tmp_path, QUANTISED, allow_zero=True, **request)
    for level in QUANTISED:
        for part, values in importances.items():
            kinds = _compare(plain, tmp_path, spec, level, part, values)
            if spec.name == "Deep" and part == "backbone":
                assert kinds == {"F32", *KINDS[level.key]}
        weighed = tensor_bytes(tmp_path / f"{spec.name}-backbone-{level.label}.gguf")
        is_recorded = made.levels[level.key].imatrix_backbone is not None
        assert is_recorded == level.mixture.weighs_columns
        if not level.mixture.weighs_columns:
            assert weighed == tensor_bytes(plain / f"{spec.name}-backbone-{level.label}.gguf")
    name = f"{spec.name}-backbone-Q4_K_M.gguf"
    assert tensor_bytes(plain / name) != tensor_bytes(tmp_path / name)


def test_every_level_has_its_types_listed() -> None:
    assert KINDS.keys() == {level.key for level in QUANTISED}


@pytest.mark.slow
def test_real_shapes_equal_llama_quantize(tmp_path: Path) -> None:
    spec = replace(
        MISO_8B,
        name="Real",
        backbone=replace(MISO_8B.backbone, layers=3),
        decoder=replace(MISO_8B.decoder, layers=3),
        text_vocab=1024,
        codebooks=8,
    )
    inputs = _mostly_zero(make_inputs(tmp_path, spec))
    make_bundle(inputs, tmp_path, [F32, *WITHOUT_IMATRIX], allow_zero=True)
    for level in WITHOUT_IMATRIX:
        for part in ("backbone", "decoder"):
            _compare(tmp_path, tmp_path, spec, level, part, None)
