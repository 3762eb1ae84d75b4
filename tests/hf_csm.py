"""A small random model in transformers' own implementation of CSM, an oracle that shares no code with ours."""

from typing import Any

import torch
from transformers import CsmConfig, CsmForConditionalGeneration, MimiConfig

from miso_gguf.convert.checkpoint.hf_layout import CODEC_PREFIX
from miso_gguf.models.spec import ModelSpec, TransformerSpec

TIES: bool = CsmConfig().tie_word_embeddings
"""Whether transformers shares the audio table as its own config says. The last for Python 3.10 (5.20) does not."""
CODEBOOKS, AUDIO_VOCAB, TEXT_VOCAB, WIDTH = 8, 67, 1100, 256
SPEC = ModelSpec(
    "CSM",
    TransformerSpec(layers=3, embed_dim=WIDTH, heads=4, kv_heads=2, head_dim=64, ffn_dim=512),
    TransformerSpec(layers=2, embed_dim=256, heads=6, kv_heads=2, head_dim=32, ffn_dim=256),
    text_vocab=TEXT_VOCAB,
    audio_vocab=AUDIO_VOCAB,
    codebooks=CODEBOOKS,
    prompt="[{speaker}]{text}",
)


def rope(context: int) -> dict[str, Any]:
    """Llama 3's scaling as sesame/csm-1b's config has it: a smaller context, factors reduced in proportion."""
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": context / 8192,
        "high_freq_factor": context / 2048,
        "original_max_position_embeddings": context,
    }


def _config(*, tied: bool) -> CsmConfig:
    mimi = MimiConfig(
        hidden_size=64, num_filters=4, codebook_size=64, codebook_dim=16, num_quantizers=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, intermediate_size=64,
        vector_quantization_hidden_dimension=16, upsample_groups=64,
    )  # fmt: skip
    depth = {
        "num_codebooks": CODEBOOKS, "vocab_size": AUDIO_VOCAB, "backbone_hidden_size": WIDTH, "hidden_size": 256,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 32, "rope_parameters": rope(16),
    }  # fmt: skip
    return CsmConfig(
        num_codebooks=CODEBOOKS, vocab_size=AUDIO_VOCAB, text_vocab_size=TEXT_VOCAB, hidden_size=WIDTH,
        intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        pad_token_id=298, bos_token_id=1, audio_token_id=298, audio_eos_token_id=299, codebook_pad_token_id=66,
        rope_parameters=rope(1024), depth_decoder_config=depth, codec_config=mimi.to_dict(),
        tie_codebooks_embeddings=tied,
    )  # fmt: skip


def random_csm(*, tied: bool = True) -> CsmForConditionalGeneration:
    """`tied`: whether backbone and depth decoder share one audio table, as upstream, or have each its own."""
    torch.manual_seed(7)
    model = CsmForConditionalGeneration(_config(tied=tied)).eval()
    if tied and not TIES:
        model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(CODEC_PREFIX):
                continue
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embed" in name and parameter.ndim == 2 and "projector" not in name:
                parameter.normal_(std=0.5)
            else:
                # Logits of a spread of about 3 and attention that is neither flat nor saturated.
                parameter.normal_(std=(2.0 if "q_proj" in name or "k_proj" in name else 1.5) / WIDTH**0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("embed_sum"):  # transformers' codebooks are zeros before they are trained
                buffer.normal_()
    return model
