"""Every tensor of every level equals what llama.cpp's own quantiser makes of our F32 GGUF: type and bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders import Inputs, llama_quantize, make_bundle, make_inputs, tensor_bytes, write_imatrix
from miso_gguf.models.flavors import MISO_8B, TINY
from miso_gguf.models.levels import F32, LEVELS, Q4_0, Q4_K_M, Q5_K_M, Level
from miso_gguf.models.spec import ModelSpec, TransformerSpec
from miso_gguf.models.tensors import gguf_tensors


def _narrow(name: str, backbone: TransformerSpec, decoder: TransformerSpec) -> ModelSpec:
    return replace(TINY, name=name, backbone=backbone, decoder=decoder, codebooks=4, audio_vocab=515)


# The columns of the real shapes (4096, 14336 and 1536, 6912), with few rows: rows are quantised independently.
# Layer counts make both branches of the mixtures' "use more bits" occur, and n / 8 > 0 once, for Q4_0's imatrix rule.
_T = TransformerSpec
SPECS = {
    "tiny": TINY,
    "wide-embed": _narrow("WideEmbed", _T(3, 4096, 4, 1, 64, 256), _T(3, 1536, 4, 1, 64, 256)),
    "wide-ffn": _narrow("WideFfn", _T(3, 256, 4, 1, 64, 14336), _T(3, 256, 4, 1, 64, 6912)),
    "deep": _narrow("Deep", _T(9, 256, 4, 1, 64, 256), _T(8, 256, 4, 1, 64, 512)),
    "fallback-32": _narrow("Fallback32", _T(4, 288, 3, 1, 64, 352), _T(3, 96, 3, 1, 32, 160)),
    "fallback-f16": _narrow("FallbackF16", _T(4, 80, 3, 1, 16, 112), _T(3, 64, 3, 1, 16, 80)),
}
QUANTISED = [level for level in LEVELS.values() if level is not F32]
WITHOUT = [level for level in QUANTISED if not level.needs_imatrix]


@pytest.fixture(scope="module", params=SPECS)
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, ModelSpec]:
    spec = SPECS[request.param]
    return make_inputs(tmp_path_factory.mktemp(request.param), spec), spec


@pytest.fixture(scope="module")
def plain(inputs: tuple[Inputs, ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every level, without an importance matrix."""
    directory = tmp_path_factory.mktemp("plain")
    make_bundle(inputs[0], directory, [F32, *WITHOUT])
    return directory


def _compare(
    source: Path, bundle: Path, spec: ModelSpec, level: Level, part: str, imatrix: dict[str, np.ndarray] | None
) -> set[str]:
    """`source` is the bundle whose F32 file the oracle quantises."""
    ours = tensor_bytes(bundle / f"{spec.name}-{part}-{level.label}.gguf")
    theirs = llama_quantize(source / f"{spec.name}-{part}-F32.gguf", bundle / "oracle.gguf", level, imatrix)
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    return {kind for kind, _ in ours.values()}


def test_equals_llama_quantize(inputs: tuple[Inputs, ModelSpec], plain: Path) -> None:
    spec = inputs[1]
    for level in WITHOUT:
        kinds = _compare(plain, plain, spec, level, "backbone", None)
        if level in (Q4_K_M, Q5_K_M) and spec.backbone.embed_dim % 256 == 0:
            assert kinds == {"F32", level.mixture.base, "Q6_K"}
        _compare(plain, plain, spec, level, "decoder", None)


def test_equals_llama_quantize_with_imatrix(inputs: tuple[Inputs, ModelSpec], plain: Path, tmp_path: Path) -> None:
    files, spec = inputs
    generator = np.random.default_rng(1)
    importances, request = {}, {}
    for part in ("backbone", "decoder"):
        names = {t.name: t.shape[-1] for t in gguf_tensors(spec) if t.part == part and len(t.shape) == 2}
        # Not all tensors are in a real imatrix either: token_embd is looked up, never multiplied.
        del names["token_embd.weight"]
        sums = {name: generator.gamma(0.5, 40.0, columns).astype(np.float32) for name, columns in names.items()}
        counts = dict.fromkeys(sums, 37.0)
        counts["output.weight"] = 0.0
        path = tmp_path / f"{part}.imatrix.gguf"
        write_imatrix(path, sums, counts)
        request[f"imatrix_{part}"] = path
        importances[part] = {name: values / np.float32(37) for name, values in sums.items()}
        importances[part]["output.weight"] = np.ones_like(sums["output.weight"])
    make_bundle(files, tmp_path, QUANTISED, **request)
    for level in QUANTISED:
        for part, values in importances.items():
            kinds = _compare(plain, tmp_path, spec, level, part, values)
            if level is Q4_0 and spec.backbone.layers >= 8:
                assert "Q4_1" in kinds
    name = f"{spec.name}-backbone-Q4_K_M.gguf"
    assert tensor_bytes(plain / name) != tensor_bytes(tmp_path / name)


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
    make_bundle(make_inputs(tmp_path, spec), tmp_path, [F32, *WITHOUT])
    for level in WITHOUT:
        for part in ("backbone", "decoder"):
            kinds = _compare(tmp_path, tmp_path, spec, level, part, None)
            if level in (Q4_K_M, Q5_K_M):
                assert {level.mixture.base, "Q6_K"} <= kinds
