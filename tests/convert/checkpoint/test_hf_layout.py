"""The Hugging Face layout against transformers itself: names, row order, config, and the numbers that come out."""

import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_csm import AUDIO_VOCAB, CODEBOOKS, SPEC, TEXT_VOCAB, random_csm, rope
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CsmConfig, CsmForConditionalGeneration, MimiConfig

from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.hf_layout import (
    CODEC_PREFIX,
    check_mimi_config,
    hf_ignored,
    hf_sources,
    is_hf_layout,
    spec_from_config,
    unpermute_rows,
)
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.tensor_store import TensorSource
from miso_gguf.convert.codec import Codec
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.flavors import CSM_1B, MISO_8B, TINY
from miso_gguf.models.levels import F32, Q8_0
from miso_gguf.models.reference import KVCache, Reference, audio_rows, text_rows
from miso_gguf.models.spec import ModelSpec, RopeScaling, TransformerSpec
from miso_gguf.models.synthetic_tokenizer import tiny_tokenizer
from miso_gguf.models.tensors import checkpoint_shapes
from miso_gguf.native.llama import LlamaModel, LlamaOptions


@dataclass
class Saved:
    model: CsmForConditionalGeneration
    directory: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    upstream: dict[str, torch.Tensor]

    def reference(self, dtype: torch.dtype = torch.float32) -> Reference:
        return Reference(spec_from_config(self.config), self.upstream.__getitem__, dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A random model as transformers saves it, and its tensors read through the table under test."""
    model = random_csm()
    directory = tmp_path_factory.mktemp("csm")
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    with safe_open(directory / "model.safetensors", "numpy") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        upstream = {}
        for name, source in hf_sources(spec_from_config(config), names).items():
            array = file.get_tensor(source.name)
            if source.head_dim is not None:
                array = unpermute_rows(array, source.head_dim)
            upstream[name] = torch.from_numpy(array)
    return Saved(model, directory, config, shapes, upstream)


def test_table_covers_what_transformers_saves(saved: Saved) -> None:
    assert is_hf_layout(saved.shapes)
    read = {source.name for source in hf_sources(SPEC, saved.shapes).values()}
    assert {name for name in saved.shapes if name not in read and not hf_ignored(name)} == set()
    assert {name: tuple(tensor.shape) for name, tensor in saved.upstream.items()} == checkpoint_shapes(SPEC)
    # The tied table is saved once, under the depth decoder's name.
    assert "depth_decoder.model.embed_tokens.weight" in saved.shapes
    assert "backbone_model.embed_tokens.embed_audio_tokens.weight" not in saved.shapes


def test_config_gives_the_spec(saved: Saved) -> None:
    assert spec_from_config(saved.config) == SPEC


def _forward(saved: Saved, ids: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' hidden states `[T, D]` and codebook-0 logits of text rows followed by audio rows."""
    model = saved.model
    embedded = torch.cat([model.embed_text_tokens(ids), model.backbone_model.embed_tokens(codes.unsqueeze(0))[0]])
    hidden = model.backbone_model(inputs_embeds=embedded.unsqueeze(0)).last_hidden_state
    return hidden[0], model.lm_head(hidden)[0]


@torch.no_grad()
def test_saved_directory_converts_and_llama_cpp_agrees(saved: Saved, tmp_path: Path) -> None:
    """The whole route, codec included: `save_pretrained` -> bundle -> stock llama.cpp equals transformers."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(tiny_tokenizer()))
    with open_checkpoint(saved.directory) as checkpoint:
        assert checkpoint.spec == SPEC
        out = tmp_path / "bundle"
        manifest = convert(plan_conversion(out, checkpoint, None, tokenizer, Request([F32, Q8_0])))
    assert {source.role for source in manifest.sources} == {"checkpoint", "tokenizer"}
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, TEXT_VOCAB, (12,), generator=generator)
    codes = torch.randint(0, AUDIO_VOCAB, (20, CODEBOOKS), generator=generator)
    embedded = torch.cat([saved.model.embed_text_tokens(ids), saved.model.backbone_model.embed_tokens(codes[None])[0]])
    expected_hidden, expected_logits = _forward(saved, ids, codes)
    with LlamaModel(out / manifest.levels["f32"].backbone, LlamaOptions(threads=1, exact=True), context=32) as model:
        hidden, logits = model.forward(embedded.numpy())
    np.testing.assert_allclose(hidden, expected_hidden.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits, expected_logits.numpy(), atol=1e-4, rtol=0)


@torch.no_grad()
def test_reference_equals_transformers(saved: Saved) -> None:
    torch.manual_seed(1)
    ids, codes = torch.randint(TEXT_VOCAB, (40,)), torch.randint(AUDIO_VOCAB, (200, CODEBOOKS))
    hidden, logits = _forward(saved, ids, codes)
    reference = saved.reference()
    text, audio = text_rows(SPEC, ids.tolist()), audio_rows(SPEC, codes)
    cache = KVCache()
    # In three pieces through the cache: the pieces must not matter.
    pieces = [reference.embed(*text), *torch.split(reference.embed(*audio), [150, 50])]
    h = torch.cat([reference.backbone(piece, cache) for piece in pieces])
    assert cache.length == 240
    assert float(logits.std()) > 1
    torch.testing.assert_close(h, hidden, atol=1e-4, rtol=0)
    torch.testing.assert_close(reference.codebook0_logits(h), logits, atol=1e-4, rtol=0)

    frames, given = h[40:60], codes[40:60, :-1]
    wanted = saved.model.depth_decoder(
        input_ids=torch.nn.functional.pad(given, (1, 0)), backbone_last_hidden_state=frames.clone()
    ).logits
    assert float(wanted.std()) > 1
    torch.testing.assert_close(reference.depth_logits(frames, given), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_greedy_codes_equal_transformers(saved: Saved) -> None:
    ids = torch.tensor([1, 17, 250, 33, 5, 99, 2])
    wanted = saved.model.generate(input_ids=ids.unsqueeze(0), do_sample=False, max_new_tokens=25)[0]
    found = saved.reference().generate(text_rows(SPEC, ids.tolist()), max_frames=25, temperature=0)
    assert len({tuple(frame) for frame in wanted.tolist()}) > 10, "a model that repeats itself proves little"
    assert found.tolist() == wanted.tolist()


@torch.no_grad()
def test_rows_left_half_split_would_show(saved: Saved) -> None:
    """The comparison above must fail if the rows are not brought to interleaved order."""
    with safe_open(saved.directory / "model.safetensors", "numpy") as file:
        name = hf_sources(SPEC)["backbone.layers.1.attn.q_proj.weight"].name
        tampered = {**saved.upstream, "backbone.layers.1.attn.q_proj.weight": torch.from_numpy(file.get_tensor(name))}
    rows = audio_rows(SPEC, torch.arange(20 * CODEBOOKS).reshape(20, CODEBOOKS) % AUDIO_VOCAB)
    good = saved.reference()
    bad = Reference(SPEC, tampered.__getitem__)
    difference = bad.backbone(bad.embed(*rows)) - good.backbone(good.embed(*rows))
    assert float(difference.abs().max()) > 0.1


def test_unpermute_undoes_the_published_permutation() -> None:
    """CSM's conversion views [heads, head_dim / 2, 2, dim] and swaps the middle axes."""
    heads, head_dim, dim = 6, 8, 5
    upstream = np.arange(heads * head_dim * dim, dtype=np.uint16).reshape(-1, dim)
    saved = upstream.reshape(heads, head_dim // 2, 2, dim).swapaxes(1, 2).reshape(-1, dim)
    assert saved[:head_dim, 0].tolist() == [0, 10, 20, 30, 5, 15, 25, 35]
    assert unpermute_rows(saved, head_dim).dtype == np.uint16
    np.testing.assert_array_equal(unpermute_rows(saved, head_dim), upstream)
    chunks = [unpermute_rows(saved[start : start + 16], head_dim) for start in (0, 16, 32)]
    np.testing.assert_array_equal(np.concatenate(chunks), upstream)
    with pytest.raises(ValueError, match="whole heads of 8"):
        unpermute_rows(saved[:12], head_dim)


def test_table_prefers_the_spelling_that_is_there() -> None:
    old = "backbone_model.embed_tokens.embed_audio_tokens.weight"
    new = "depth_decoder.model.embed_tokens.weight"
    assert hf_sources(SPEC)["audio_embeddings.weight"] == TensorSource(new)
    assert hf_sources(SPEC, [old])["audio_embeddings.weight"] == TensorSource(old)
    assert hf_sources(SPEC, [old, new])["audio_embeddings.weight"] == TensorSource(new)
    text = "backbone_model.embed_tokens.embed_text_tokens.weight"
    assert hf_sources(SPEC, [text])["text_embeddings.weight"].name == text
    k = hf_sources(SPEC)["decoder.layers.1.attn.k_proj.weight"]
    assert k == TensorSource("depth_decoder.model.layers.1.self_attn.k_proj.weight", 32)
    assert hf_sources(SPEC)["decoder.layers.1.attn.v_proj.weight"].head_dim is None
    assert set(hf_sources(MISO_8B)) == set(checkpoint_shapes(MISO_8B))
    assert len({source.name for source in hf_sources(MISO_8B).values()}) == 367
    assert not is_hf_layout(checkpoint_shapes(CSM_1B))


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("codec_model.downsample.conv.weight", True),
        ("backbone_model.embed_tokens.embed_audio_tokens.weight", False),
        ("backbone_model.embed_tokens.embed_text_tokens.weight", False),
        ("backbone_model.layers.99.mlp.up_proj.weight", False),
        ("lm_head.bias", False),
    ],
)
def test_ignored_names(name: str, ignored: bool) -> None:
    assert hf_ignored(name) is ignored


def _v4(section: dict[str, Any]) -> None:
    rope = section.pop("rope_parameters")
    section["rope_theta"] = rope.pop("rope_theta")
    section["rope_scaling"] = rope


def test_config_of_transformers_4(saved: Saved) -> None:
    config = copy.deepcopy(saved.config)
    _v4(config)
    _v4(config["depth_decoder_config"])
    for section in (config, config["depth_decoder_config"]):
        del section["rms_norm_eps"], section["attention_bias"]
    del config["head_dim"]
    assert spec_from_config(config) == SPEC


def test_settings_of_both_versions_that_agree(saved: Saved) -> None:
    config = copy.deepcopy(saved.config)
    config["rope_scaling"] = {key: value for key, value in rope(1024).items() if key != "rope_theta"}
    assert spec_from_config(config) == SPEC


def test_the_published_codecs_config_is_accepted() -> None:
    check_mimi_config(MimiConfig().to_dict())
    check_mimi_config({})


def test_other_scalings_are_read_as_they_are(saved: Saved) -> None:
    config = copy.deepcopy(saved.config)
    for section in (config, config["depth_decoder_config"]):
        section["rope_parameters"]["factor"] = 8.0
    scaling = spec_from_config(config).rope_scaling
    assert scaling == RopeScaling(8.0, 0.125, 0.5, 1024)
    for section in (config, config["depth_decoder_config"]):
        section["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    spec = spec_from_config(config)
    assert (spec.rope_scaling, spec.rope_base) == (None, 10000.0)


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    """A config.json with the dimensions of `spec`."""

    def section(t: TransformerSpec, context: int) -> dict[str, Any]:
        return {
            "num_codebooks": spec.codebooks, "vocab_size": spec.audio_vocab, "hidden_size": t.embed_dim,
            "intermediate_size": t.ffn_dim, "num_hidden_layers": t.layers, "num_attention_heads": t.heads,
            "num_key_value_heads": t.kv_heads, "head_dim": t.head_dim, "rope_parameters": rope(context),
        }  # fmt: skip

    depth = {**section(spec.decoder, 16), "backbone_hidden_size": spec.backbone.embed_dim}
    return {
        **section(spec.backbone, 1024),
        "model_type": "csm",
        "text_vocab_size": spec.text_vocab,
        "depth_decoder_config": depth,
    }


@pytest.mark.parametrize("spec", [CSM_1B, MISO_8B, TINY], ids=lambda spec: spec.name)
def test_known_models_keep_their_name_and_prompt(spec: ModelSpec) -> None:
    assert spec_from_config(_config_of(spec)) == spec
    # Fine-tunes add tokens, and are the same model.
    more = replace(spec, text_vocab=spec.text_vocab + 1)
    assert spec_from_config(_config_of(more)) == more
    other = replace(spec, codebooks=spec.codebooks + 1)
    assert asdict(spec_from_config(_config_of(other))) == asdict(replace(other, name="CSM", prompt="[{speaker}]{text}"))


def test_the_default_config_of_transformers_is_csm_1b_but_for_rope() -> None:
    found = spec_from_config(CsmConfig().to_dict())
    assert found == replace(CSM_1B, name="CSM", rope_scaling=None)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "llama", "model_type must be 'csm', not 'llama'"),
        ("depth_decoder_config", None, "depth_decoder_config is missing"),
        ("tie_codebooks_embeddings", "no", "tie_codebooks_embeddings must be true or false, not 'no'"),
        ("hidden_size", None, "hidden_size is missing"),
        ("text_vocab_size", "many", "text_vocab_size must be a number, not 'many'"),
        ("num_hidden_layers", 1.5, "num_hidden_layers must be a whole number"),
        ("num_hidden_layers", float("inf"), "num_hidden_layers must be a number"),
        ("num_hidden_layers", 0, "layers must be a positive integer"),
        ("num_attention_heads", 0, "num_attention_heads must be positive"),
        ("num_key_value_heads", 3, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ("hidden_act", "gelu", "hidden_act 'gelu' is not supported, only 'silu'"),
        ("depth_decoder_config.mlp_bias", True, "depth_decoder_config.mlp_bias True is not supported"),
        ("depth_decoder_config.intermediate_size", None, "depth_decoder_config.intermediate_size is missing"),
        ("depth_decoder_config.num_codebooks", 9, "num_codebooks 8 and depth_decoder_config.num_codebooks 9 must be"),
        ("depth_decoder_config.backbone_hidden_size", 1, "hidden_size 256 and depth_decoder_config.backbone_hidden"),
        ("depth_decoder_config.rms_norm_eps", 1e-6, "rms_norm_eps 1e-05 and depth_decoder_config.rms_norm_eps 1e-06"),
        ("depth_decoder_config.rope_parameters.rope_theta", 1e4, "rope_theta 500000.0 and depth_decoder_config"),
        ("depth_decoder_config.rope_parameters.factor", 8.0, "RoPE scaling must be equivalent"),
        ("rope_parameters.rope_type", "yarn", "rope_parameters.rope_type 'yarn' is not supported, only 'llama3'"),
        ("rope_parameters.low_freq_factor", None, "rope_parameters.low_freq_factor is missing"),
        ("rope_parameters.low_freq_factor", 9.0, "rope_parameters: RoPE scaling needs factor"),
        ("rope_scaling", {"factor": 8.0}, r"rope_parameters.factor 32.0 and rope_scaling.factor 8.0 differ"),
        ("depth_decoder_config.partial_rotary_factor", 0.5, "depth_decoder_config.partial_rotary_factor 0.5 is not"),
        ("codec_config.num_attention_heads", 4, "codec_config.num_attention_heads 4 is not supported, only 2"),
        ("codec_config.head_dim", 16, "codec_config.head_dim 16 is not supported, only 32"),
        ("codec_config.sliding_window", 5, "codec_config.sliding_window 5 is not supported, only 250"),
        ("codec_config.norm_eps", 0.1, "codec_config.norm_eps 0.1 is not supported, only 1e-05"),
        ("codec_config.hidden_act", "relu", "codec_config.hidden_act 'relu' is not supported, only 'gelu'"),
        ("codec_config.pad_mode", "replicate", "codec_config.pad_mode 'replicate' is not supported, only 'constant'"),
        ("codec_config.trim_right_ratio", 0.5, "codec_config.trim_right_ratio 0.5 is not supported, only 1.0"),
        ("codec_config.sampling_rate", 48000, "codec_config.sampling_rate 48000 is not supported, only 24000"),
        ("codec_config.use_causal_conv", False, "codec_config.use_causal_conv False is not supported, only True"),
        ("codec_config.rope_parameters.rope_theta", 100.0, "codec_config.RoPE is not Mimi's"),
    ],
)
def test_bad_configs_are_refused_by_name(saved: Saved, path: str, value: object, message: str) -> None:
    config = copy.deepcopy(saved.config)
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(CheckpointError, match=message):
        spec_from_config(config)


@pytest.mark.parametrize("model_type", ["mimi", "llama"])
def test_the_config_beside_a_codec_of_its_own(saved: Saved, tmp_path: Path, model_type: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()))
    codec = {"model_type": model_type, **saved.config["codec_config"], "sliding_window": 5}
    (tmp_path / "config.json").write_text(json.dumps({**codec, "model_type": model_type}))
    mimi = tmp_path / "mimi.safetensors"
    with safe_open(saved.directory / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(CODEC_PREFIX)]  # noqa: SIM118  (no mapping)
        save_file({name.removeprefix(CODEC_PREFIX): file.get_tensor(name) for name in names}, mimi)
    with open_checkpoint(saved.directory) as checkpoint:
        if model_type == "llama":
            assert Codec(mimi, checkpoint).spec.heads == 2
            return
        with pytest.raises(CheckpointError, match=r"config\.json: sliding_window 5 is not supported, only 250"):
            Codec(mimi, checkpoint)
