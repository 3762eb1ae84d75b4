"""Specs, flavours, levels and the tensor tables: facts of the upstream model, as numbers."""

from collections import Counter
from dataclasses import asdict, replace
from math import prod

import pytest

from miso_gguf.models.flavors import CSM_1B, FLAVORS, MISO_8B, TINY
from miso_gguf.models.levels import F32, FP16, LEVELS, Q4_0, Q4_K_M, Q8_0, parse_level
from miso_gguf.models.spec import ModelSpec, RopeScaling, TransformerSpec, rope_factors
from miso_gguf.models.tensors import PARTS, GgufTensor, Rows, checkpoint_shapes, gguf_tensors


def test_miso_8b_is_the_published_checkpoint() -> None:
    shapes = checkpoint_shapes(MISO_8B)
    assert len(shapes) == 367
    assert sum(prod(shape) for shape in shapes.values()) == 8_188_122_112
    assert shapes["backbone.layers.31.attn.k_proj.weight"] == (1024, 4096)
    assert shapes["decoder.layers.7.mlp.w2.weight"] == (1536, 6912)
    assert shapes["audio_embeddings.weight"] == (32 * 2051, 4096)
    assert shapes["audio_head"] == (31, 1536, 2051)


@pytest.mark.parametrize("spec", FLAVORS.values(), ids=lambda spec: spec.name)
def test_gguf_tensors_take_every_checkpoint_tensor(spec: ModelSpec) -> None:
    tensors = gguf_tensors(spec)
    assert len({(tensor.part, tensor.name) for tensor in tensors}) == len(tensors)
    assert Counter(tensor.part for tensor in tensors) == {
        "backbone": 9 * spec.backbone.layers + 4,
        "decoder": 9 * spec.decoder.layers + 4,
        "embeddings": 3,
    }
    whole = {t.source.name for t in tensors if isinstance(t.source, Rows) and t.source.start == 0}
    assert checkpoint_shapes(spec).keys() - whole == {"audio_head"}
    for tensor in tensors:
        if isinstance(tensor.source, Rows) and tensor.name != "token_embd.weight":
            assert tensor.shape == checkpoint_shapes(spec)[tensor.source.name]


def _named(part: str, name: str) -> GgufTensor:
    return next(t for t in gguf_tensors(MISO_8B) if (t.part, t.name) == (part, name))


def test_shapes_of_the_made_tensors() -> None:
    assert _named("backbone", "token_embd.weight").shape == (2051, 4096)
    assert _named("decoder", "token_embd.weight").shape == (65632, 1536)
    assert _named("decoder", "output.weight").shape == (65632, 1536)
    assert _named("backbone", "rope_freqs.weight").shape == (64,)
    assert _named("decoder", "rope_freqs.weight").shape == (32,)
    assert PARTS == ("backbone", "decoder", "embeddings")


def test_rope_factors() -> None:
    """By hand: base 500000, head of 64. Pair 0 turns 1304 times in 8192 positions, the last 0.004 times."""
    factors = rope_factors(MISO_8B, 64)
    assert len(factors) == 32
    assert factors[0] == 1.0
    assert factors[-1] == 32.0
    assert factors == sorted(factors)
    # Pair 16: wavelength 2 pi sqrt(500000) = 4442.9, 1.8438 periods; smooth = .28127; 1 / (.71873 / 32 + .28127).
    assert factors[16] == pytest.approx(3.2924, rel=1e-4)
    assert rope_factors(replace(MISO_8B, rope_scaling=None), 64) == [1.0] * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_vocab": 0}, "text_vocab must be a positive integer, not 0"),
        ({"audio_vocab": 1.5}, "audio_vocab must be a positive integer, not 1.5"),
        ({"codebooks": 1}, "at least 2 codebooks"),
        ({"name": "a/b"}, "usable in a file name"),
        ({"name": ""}, "usable in a file name"),
        ({"prompt": "hello"}, "needs {speaker} and {text}"),
        ({"tied_audio_embeddings": "no"}, "tied_audio_embeddings must be true or false, not 'no'"),
        ({"prompt": "{speaker} {text:>99999999999}"}, "needs {speaker} and {text}"),
        ({"prompt": "{speaker} {text.__class__}"}, "needs {speaker} and {text}"),
        ({"prompt": "{speaker} {text} {"}, "needs {speaker} and {text}"),
        ({"norm_eps": 0.0}, "norm_eps must be 0 to 1"),
        ({"norm_eps": float("nan")}, "norm_eps must be 0 to 1"),
        ({"norm_eps": float("inf")}, "norm_eps must be 0 to 1"),
        ({"rope_base": 10**400}, "rope_base 1 to 2147483647, not 1e-05 and 1000+"),
        ({"max_positions": 1 << 31}, "max_positions must be at most 2147483647, not 2147483648"),
    ],
)
def test_impossible_models(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_impossible_transformers() -> None:
    for sizes, message in (
        ((2, 64, 3, 2, 32, 64), "multiple of kv_heads"),
        ((2, 64, 2, 1, 31, 64), "must be even"),
        ((0, 64, 2, 1, 32, 64), "layers must be a positive integer"),
        ((513, 64, 2, 1, 32, 64), "layers must be at most 512, not 513"),
        ((2, 1 << 31, 2, 1, 32, 64), "embed_dim must be at most 2147483647"),
        ((True, 64, 2, 1, 32, 64), "layers must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            TransformerSpec(*sizes)
    with pytest.raises(ValueError, match="0 < low < high"):
        RopeScaling(low_freq_factor=4.0, high_freq_factor=1.0)
    with pytest.raises(ValueError, match="factor >= 1"):
        RopeScaling(factor=float("inf"))
    with pytest.raises(ValueError, match="original context must be a positive integer, not 0"):
        RopeScaling(original_context=0)


@pytest.mark.parametrize("spec", FLAVORS.values(), ids=lambda spec: spec.name)
def test_spec_survives_its_dictionary(spec: ModelSpec) -> None:
    assert ModelSpec.from_dict(asdict(spec)) == spec
    with pytest.raises(ValueError, match="not a model spec"):
        ModelSpec.from_dict({**asdict(spec), "surprise": 1})
    with pytest.raises(ValueError, match="not a model spec"):
        ModelSpec.from_dict({key: value for key, value in asdict(spec).items() if key != "decoder"})


def test_what_is_as_usual_is_left_out_of_the_dictionary() -> None:
    """Earlier versions refuse what they do not know."""
    assert "tied_audio_embeddings" not in MISO_8B.to_dict()
    untied = replace(MISO_8B, tied_audio_embeddings=False)
    assert untied.to_dict() == {**MISO_8B.to_dict(), "tied_audio_embeddings": False}
    assert ModelSpec.from_dict(untied.to_dict()) == untied
    assert ModelSpec.from_dict(MISO_8B.to_dict()) == MISO_8B


def test_csm_has_no_space_behind_the_speaker() -> None:
    assert CSM_1B.prompt.format(speaker=0, text="hi") == "[0]hi"
    assert MISO_8B.prompt.format(speaker=0, text="hi") == "[0] hi"


def test_level_names() -> None:
    assert parse_level("Q4_K_M") is Q4_K_M
    assert parse_level(" f16 ") is FP16
    assert parse_level("FP16") is FP16
    assert Q4_0.embeddings is Q4_K_M.embeddings is Q8_0
    assert FP16.embeddings is FP16
    for name, near in (("q4_km", "q4_k_m"), ("q8", "q8_0"), ("fp15", "fp16"), ("4_0", "q4_0")):
        with pytest.raises(ValueError, match=f"unknown level '{name}': did you mean {near}"):
            parse_level(name)
    with pytest.raises(ValueError, match=rf"unknown level 'zzz'\. Known: {', '.join(LEVELS)}\."):
        parse_level("zzz")


def test_ftypes_are_llama_cpps() -> None:
    from miso_gguf.native.llama import load_library  # noqa: PLC0415

    lib = load_library()
    for level in LEVELS.values():
        assert level.ftype == getattr(lib, f"LLAMA_FTYPE_{'ALL' if level is F32 else 'MOSTLY'}_{level.label}")
