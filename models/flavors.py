"""The models we know by name, their dimensions and prompts, and how to recognise one from the shapes of its tensors.

Source of the dimensions: the torchtune flavours of the Sesame CSM and MisoTTS upstream code.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..core.errors import CheckpointError
from .spec import ModelSpec, TransformerSpec
from .tensors import checkpoint_shapes

_LLAMA_8B = TransformerSpec(layers=32, embed_dim=4096, heads=32, kv_heads=8, head_dim=128, ffn_dim=14336)
_LLAMA_300M = TransformerSpec(layers=8, embed_dim=1536, heads=24, kv_heads=6, head_dim=64, ffn_dim=6912)
_LLAMA_1B = TransformerSpec(layers=16, embed_dim=2048, heads=32, kv_heads=8, head_dim=64, ffn_dim=8192)
_LLAMA_100M = TransformerSpec(layers=4, embed_dim=1024, heads=8, kv_heads=2, head_dim=128, ffn_dim=8192)

MISO_8B = ModelSpec("MisoTTS-8B", _LLAMA_8B, _LLAMA_300M, text_vocab=128256, audio_vocab=2051, codebooks=32)
CSM_1B = ModelSpec(
    "CSM-1B", _LLAMA_1B, _LLAMA_100M, text_vocab=128256, audio_vocab=2051, codebooks=32, prompt="[{speaker}]{text}"
)
TINY = ModelSpec(
    "Miso-Tiny",
    TransformerSpec(layers=4, embed_dim=256, heads=4, kv_heads=2, head_dim=64, ffn_dim=768),
    TransformerSpec(layers=2, embed_dim=256, heads=4, kv_heads=2, head_dim=64, ffn_dim=512),
    text_vocab=1024,
    audio_vocab=515,
    codebooks=8,
)

FLAVORS: dict[str, ModelSpec] = {"miso-8b": MISO_8B, "csm-1b": CSM_1B, "tiny": TINY}


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec:
    """The known model whose tensors best match `shapes` (upstream names), decided by its widest tensors.

    Only the shapes of embeddings, projection and heads decide, so that a checkpoint with a missing or
    mis-shaped tensor is still recognised and the problem can be named. The text embeddings may have any number of rows:
    fine-tunes add tokens, trainers pad. Raises `CheckpointError` if none matches.
    """
    keys = ("text_embeddings.weight", "audio_embeddings.weight", "projection.weight", "audio_head")
    best, best_votes = None, 0
    for spec in FLAVORS.values():
        expected = checkpoint_shapes(spec)
        votes = sum(shapes.get(key) == expected[key] for key in keys)
        if votes > best_votes:
            best, best_votes = spec, votes
    if best is None or best_votes < 3:
        found = ", ".join(f"{key} {list(shapes[key])}" for key in keys if key in shapes) or "none of " + ", ".join(keys)
        known = ", ".join(spec.name for spec in FLAVORS.values())
        raise CheckpointError(
            f"these tensor shapes are of no known model ({known}); found {found}. "
            "If it is a model of the CSM design, pass its dimensions with --config FILE."
        )
    text = shapes.get("text_embeddings.weight", ())
    return replace(best, text_vocab=text[0]) if text[1:] == (best.backbone.embed_dim,) and text[0] else best
