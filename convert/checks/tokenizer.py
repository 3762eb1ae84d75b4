"""The tokenizer inside an embeddings file: entry by entry as in its `tokenizer.json`, or at least possible.

What makes no sense is found before llama.cpp sees the file: it reads arrays without asking for their length.
"""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...core.errors import BundleError
from ...native.gguf_file import GgufFile
from ...native.llama import load_library
from ..checkpoint.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, TokenizerMetadata, gguf_keys

_SOURCE = "tokenizer.json"
_ENTRIES = {"tokens": "token", "merges": "merge"}
_KINDS = {NORMAL: "an ordinary token", CONTROL: "a control token", USER_DEFINED: "an added token", UNUSED: "unused"}
_REPR = reprlib.Repr()
_REPR.maxstring = 60
_PREFIX = "tokenizer.ggml."


def check_tokenizer_of(path: Path, source: TokenizerMetadata | None) -> tuple[str, bool]:
    """(what was found in the embeddings file, whether it is well)."""
    try:
        with GgufFile(path) as file:
            rows = file.tensors["text_embd.weight"].shape[0]
            arrays: dict[str, list[Any]] = {}
            for name, found in (
                ("tokens", file.texts(f"{_PREFIX}tokens")),
                ("token_type", file.integers(f"{_PREFIX}token_type")),
                ("merges", file.texts(f"{_PREFIX}merges")),
            ):
                if found is None:
                    return f"{_PREFIX}{name} is missing, or no list of the right type", False
                arrays[name] = list(found)
            names = ("model", "pre", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")
            values = {name: file.value(f"{_PREFIX}{name}") for name in names}
    except BundleError as error:
        return str(error), False
    except KeyError:
        return "text_embd.weight is missing", False
    fault = (_difference(arrays, values, source) if source else None) or next(_nonsense(arrays, values, rows), None)
    if fault:
        return fault, False
    if (count := _opened(path)) != len(arrays["tokens"]):
        return f"llama.cpp finds {count} tokens in it, not {len(arrays['tokens'])}", False
    seen = f"{len(arrays['tokens'])} tokens and {len(arrays['merges'])} merges"
    return (f"{seen}, all as in {_SOURCE}" if source else f"{seen}; llama.cpp opens it"), True


def _nonsense(arrays: Mapping[str, list[Any]], values: Mapping[str, Any], rows: int) -> Iterator[str]:
    """What no tokenizer can have, whatever its source. Each rests on those before it."""
    tokens, types = arrays["tokens"], arrays["token_type"]
    if len(types) != len(tokens):
        yield f"{len(tokens)} tokens, but {len(types)} types"
    if len(tokens) > rows:
        yield f"{len(tokens)} tokens, but {rows} text embeddings"
    last = {text: index for index, text in enumerate(tokens)}
    for index, text in enumerate(tokens):
        if last[text] != index:
            yield f"tokens {index} and {last[text]} are both {_shown(text)}"
        if not text:
            yield f"token {index} is empty"
        if types[index] not in _KINDS:
            yield f"token {index} {_shown(text)} is {_kind(types[index])}"
    for name in ("bos_token_id", "eos_token_id"):
        if type(values[name]) is not int or not 0 <= values[name] < len(tokens):
            yield f"{_PREFIX}{name} is {_shown(values[name])}, there are {len(tokens)} tokens"
    for rank, merge in enumerate(arrays["merges"]):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= last.keys():
            yield f"merge {rank} {_shown(merge)} joins or makes what is no token"


def _difference(arrays: Mapping[str, list[Any]], values: Mapping[str, Any], source: TokenizerMetadata) -> str | None:
    """The first entry that is not the source's."""
    for key, wanted in gguf_keys(source):
        name = key.removeprefix(_PREFIX)
        if not isinstance(wanted, list):
            if type(values[name]) is not type(wanted) or values[name] != wanted:
                return f"{key} is {_shown(values[name])}, {_SOURCE} says {_shown(wanted)}"
            continue
        pairs: Iterable[tuple[Any, Any]] = zip_longest(arrays[name], wanted)
        for index, (found, expected) in enumerate(pairs):
            if found == expected:
                continue
            if name == "token_type":  # the tokens were compared before
                token = _shown(source.tokens[index] if index < source.size else None)
                return f"token {index} {token} is {_kind(found)}, {_SOURCE} says {_kind(expected)}"
            return f"{_ENTRIES[name]} {index} is {_shown(found)}, {_SOURCE} says {_shown(expected)}"
    return None


def _opened(path: Path) -> int:
    """How many tokens llama.cpp finds; 0 if it does not open the file."""
    lib = load_library()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        return 0
    try:
        return int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
    finally:
        lib.llama_model_free(model)


def _kind(number: int | None) -> str:
    return "missing" if number is None else _KINDS.get(number, f"of type {number}")


def _shown(value: object) -> str:
    """For people: strangers' texts are long, and a terminal obeys some characters."""
    return "none" if value is None else _REPR.repr(value)
