"""Tokenizers for synthetic checkpoints: the tiny model's, stretched to any text vocabulary.

Like Llama 3's 128256, the last 256 ids are special and begin with BOS and EOS; what lies between the tiny model's
entries and these is filler that no text reaches.
"""

import json
from importlib import resources
from typing import Any

from . import tiny
from .spec import ModelSpec

_SPECIALS = 256


def tiny_tokenizer() -> dict[str, Any]:
    """The tiny model's `tokenizer.json`: 1024 entries, the last 16 special."""
    data: dict[str, Any] = json.loads(resources.files(tiny).joinpath("tokenizer.json").read_text("utf-8"))
    return data


def synthetic_tokenizer(spec: ModelSpec) -> dict[str, Any]:
    """A `tokenizer.json` of `spec.text_vocab` entries that splits text as the tiny model's does.

    Below 1264 entries there is no room for 256 special ones, and it is the tiny model's as it is.

    Raises:
        ValueError: If the model has fewer text embeddings than the tiny tokenizer has entries.
    """
    data = tiny_tokenizer()
    vocab: dict[str, int] = data["model"]["vocab"]
    added: list[dict[str, Any]] = data["added_tokens"]
    smallest = len(vocab) + len(added)
    if spec.text_vocab < smallest:
        raise ValueError(f"a synthetic tokenizer has at least {smallest} entries, {spec.name} has {spec.text_vocab}")
    first = spec.text_vocab - _SPECIALS
    if first < len(vocab):
        return data
    # The pre-tokenizer cuts digits into threes, so a token of eight is never looked up.
    vocab.update({f"{index:08d}": index for index in range(len(vocab), first)})
    reserved = [f"<|reserved_special_token_{index}|>" for index in range(_SPECIALS - 2)]
    names = [added[0]["content"], added[1]["content"], *reserved]
    data["added_tokens"] = [{**added[0], "id": first + offset, "content": name} for offset, name in enumerate(names)]
    specials = data["post_processor"]["special_tokens"]
    for offset, name in enumerate(names[:2]):
        specials[name]["ids"] = [first + offset]
    return data
