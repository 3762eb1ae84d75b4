"""A `tokenizer.json` as llama.cpp's metadata: read, checked, and laid out as GGUF keys.

Only byte-level BPE whose pre-tokenizer llama.cpp knows is accepted: Llama 3's, which every model of this family uses,
and GPT-2's. Anything else would load and then split text differently without a word. Needs only `json`; what the
metadata is written into is `convert/gguf_header.py`'s business.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError
from ...models.spec import ModelSpec
from .foreign import TOKENIZER, refuse_file
from .tensor_store import SourcePath, check_regular

log = logging.getLogger(__name__)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types. Source: llama.h, `enum llama_token_type`."""

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Source: `tokenizer.json` of Llama 3; llama.cpp calls what it does `llama-bpe`."""

_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_STRUCTURAL = re.compile(
    r"<\|(?:begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id|python_tag|finetune_right_pad_id"
    r"|step_id|image|reserved_special_token_\d+|endoftext)\|>"
)
"""Llama 3's and GPT-2's own special tokens. Typed into a text they are ordinary text: nobody ends a prompt so."""
_MAX_ENTRIES, _MAX_BYTES = 1 << 20, 1 << 30
_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_ALPHABET = {chr(byte) for byte in _PRINTABLE} | {chr(256 + i) for i in range(256 - len(_PRINTABLE))}
"""What byte-level BPE writes for the 256 bytes. Source: GPT-2's `bytes_to_unicode`."""

GgufValue = str | int | bool | list[str] | list[int]


@dataclass(frozen=True)
class TokenizerMetadata:
    """What llama.cpp has to know of a byte-level BPE tokenizer."""

    tokens: list[str]
    """Text of every id, byte-level encoded; gaps are filled."""
    types: list[int]
    merges: list[str]
    """In order of rank, the two parts separated by a space."""
    bos_id: int
    eos_id: int
    pre: str
    """llama.cpp's name of the pre-tokenizer: `llama-bpe` or `gpt-2`."""
    add_bos: bool = True
    add_eos: bool = True
    """Upstream wraps every text in BOS ... EOS, whatever the file's own post-processor does."""

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return len(self.tokens)


def read_tokenizer(path: SourcePath) -> TokenizerMetadata:
    """Read a `tokenizer.json`, or the one in directory `path`.

    BOS and EOS are Llama 3's if the file has them, else those of `tokenizer_config.json` or `special_tokens_map.json`
    beside it, else those that its post-processor adds.

    Raises:
        CheckpointError: In one line: not readable, not JSON, not byte-level BPE, or of a kind that llama.cpp would
            split differently.
    """
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        return _parse(_load(path), path)
    except _RefusedError as error:
        refuse_file(path, TOKENIZER)
        raise CheckpointError(f"{path}: {error}") from None


def check_tokenizer(metadata: TokenizerMetadata, spec: ModelSpec) -> None:
    """Raises `CheckpointError` if a token would have no row in the model's text embeddings."""
    if metadata.size > spec.text_vocab:
        raise CheckpointError(
            f"the tokenizer has {metadata.size} entries, {spec.name}'s text embeddings only {spec.text_vocab} rows: "
            "it is another model's tokenizer"
        )


def gguf_keys(metadata: TokenizerMetadata) -> list[tuple[str, GgufValue]]:
    """The `tokenizer.ggml.*` keys in file order. Ids are uint32 in GGUF, token types int32."""
    return [
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", metadata.pre),
        ("tokenizer.ggml.tokens", metadata.tokens),
        ("tokenizer.ggml.token_type", metadata.types),
        ("tokenizer.ggml.merges", metadata.merges),
        ("tokenizer.ggml.bos_token_id", metadata.bos_id),
        ("tokenizer.ggml.eos_token_id", metadata.eos_id),
        ("tokenizer.ggml.add_bos_token", metadata.add_bos),
        ("tokenizer.ggml.add_eos_token", metadata.add_eos),
    ]


class _RefusedError(Exception):
    """Why a tokenizer cannot be used; becomes a `CheckpointError` that names the file."""


def _load(path: SourcePath) -> dict[str, Any]:
    try:
        check_regular(path)
        # What is on the hub has a limit of its own.
        if isinstance(path, Path) and path.stat().st_size > _MAX_BYTES:
            raise _RefusedError(f"is not a tokenizer.json: {path.stat().st_size} bytes are more than any has")
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise _RefusedError(f"is not JSON ({reason}); expected a tokenizer.json") from error
    if not isinstance(data, dict):
        raise _RefusedError(f"is not a tokenizer.json: expected a JSON object, found {type(data).__name__}")
    return data


def _parse(data: dict[str, Any], path: SourcePath) -> TokenizerMetadata:
    model = data.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise _RefusedError("is not a tokenizer.json: it has no model.vocab")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise _RefusedError(f"model type {kind!r} is not supported, only byte-level BPE")
    for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _RefusedError(f"model.{key} {model[key]!r} is not supported: llama.cpp has no such setting")
    if data.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise _RefusedError(
            "has a normalizer, which llama.cpp would not apply: only byte-level BPE without one is supported"
        )
    pre = _pre_tokenizer(data.get("pre_tokenizer"))
    _check_ignore_merges(bool(model.get("ignore_merges", False)), pre)
    vocab = _vocabulary(model["vocab"])
    tokens, types = _entries(vocab, data.get("added_tokens") or [])
    merges = _merges(model.get("merges"), vocab)
    bos, eos = _specials(data, path, {text: i for i, text in enumerate(tokens) if types[i] != UNUSED})
    for index in (bos, eos):
        types[index] = CONTROL if types[index] == USER_DEFINED else types[index]
    _check_added(data.get("added_tokens") or [], {tokens[i] for i, kind in enumerate(types) if kind == USER_DEFINED})
    return TokenizerMetadata(tokens, types, merges, bos, eos, pre)


def _pre_tokenizer(data: Any) -> str:
    parts = _list(data.get("pretokenizers", [data])) if isinstance(data, dict) else []
    split = [part for part in parts if isinstance(part, dict) and part.get("type") == "Split"]
    byte_level = [part for part in parts if isinstance(part, dict) and part.get("type") == "ByteLevel"]
    plain = len(byte_level) == 1 and not byte_level[0].get("add_prefix_space", True)
    if plain and len(parts) == 1 and byte_level[0].get("use_regex", True):
        return "gpt-2"
    if plain and len(parts) == 2 and parts[0] in split and byte_level[0].get("use_regex", True) is False:
        pattern, behavior = split[0].get("pattern"), split[0].get("behavior")
        if pattern == {"Regex": _LLAMA3_SPLIT} and behavior == "Isolated" and not split[0].get("invert", False):
            return "llama-bpe"
    found = " + ".join(str(part.get("type")) for part in parts if isinstance(part, dict)) or "none"
    raise _RefusedError(
        f"this pre_tokenizer ({found}) is not supported, only Llama 3's (its Split regex + ByteLevel) and GPT-2's "
        "(ByteLevel alone), without a prefix space"
    )


def _check_ignore_merges(ignore_merges: bool, pre: str) -> None:
    if pre == "gpt-2" and ignore_merges:
        raise _RefusedError(
            "ignore_merges with GPT-2's pre_tokenizer is not supported: llama.cpp would not ignore them"
        )
    if pre == "llama-bpe" and not ignore_merges:
        # Llama 3's first tokenizer.json lacked the setting; that it was missing was the defect.
        log.warning("tokenizer.json does not set ignore_merges, llama.cpp will: a few rare words may be split less")


def _vocabulary(vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise _RefusedError("model.vocab must map token texts to ids")
    for text, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MAX_ENTRIES:
            raise _RefusedError(f"model.vocab: token {text!r} has id {index!r}, expected 0 to {_MAX_ENTRIES - 1}")
    if not vocab.keys() >= _ALPHABET:
        raise _RefusedError(f"model.vocab lacks {len(_ALPHABET - vocab.keys())} of the 256 letters of byte-level BPE")
    return vocab


def _entries(vocab: dict[str, int], added: Any) -> tuple[list[str], list[int]]:
    """Text and type of every id."""
    entries: dict[int, tuple[str, int]] = {}
    for text, index in vocab.items():
        if index in entries:
            raise _RefusedError(f"model.vocab: id {index} is both {entries[index][0]!r} and {text!r}")
        entries[index] = (text, NORMAL)
    following = len(vocab)
    for token in added if isinstance(added, list) else [added]:
        content, token_id = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or type(token_id) is not int or not 0 <= token_id < _MAX_ENTRIES:
            raise _RefusedError(f"added_tokens: expected objects with content and id, found {token!r}")
        if not content or "\0" in content:
            raise _RefusedError(f"added token {content!r} with id {token_id} is no text that a GGUF file can hold")
        if entries.get(token_id, (content, 0))[0] != content or vocab.get(content, token_id) != token_id:
            raise _RefusedError(f"added token {content!r} has id {token_id}, which clashes with another token")
        if content not in vocab:
            if token_id != following:
                # The library ignores the ids of the file and counts on.
                message = "added token %r has id %d; the tokenizers library would say %d"
                log.warning(message, content, token_id, following)
            following = max(following, token_id + 1)
        # `special` does not matter: whatever somebody added to be written into texts has to stay one token there.
        entries[token_id] = (content, CONTROL if _STRUCTURAL.fullmatch(content) else USER_DEFINED)
    filled = [entries.get(index, (f"[PAD{index}]", UNUSED)) for index in range(max(entries) + 1)]
    texts, types = [text for text, _ in filled], [kind for _, kind in filled]
    if len(set(texts)) != len(texts):
        raise _RefusedError("two ids have the same text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise _RefusedError(f"a token's text is not Unicode ({error.reason})") from error
    return texts, types


def _check_added(added: list[dict[str, Any]], matched: set[str]) -> None:
    """Refuse what the library does where it finds one of the tokens `matched` in a text, and the runtime would not."""
    added = [token for token in added if token["content"] in matched]
    for token in added:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise _RefusedError(
                    f"added token {token['content']!r} has {flag}, which a GGUF file cannot say: set it to false "
                    "in the file, if the model was not trained to rely on it"
                )
    # The library looks for all tokens that are not "normalized" before it looks for the others.
    first = {token["content"] for token in added if not token.get("normalized")}
    heads = {text[:length] for text in first for length in range(1, len(text) + 1)}
    for text in sorted(matched - first):
        parts = {text[start:stop] for start in range(len(text)) for stop in range(start + 1, len(text) + 1)}
        tails = {text[start:] for start in range(1, len(text))}
        if overlapping := sorted(parts & first | tails & heads):
            raise _RefusedError(
                f"added token {text!r} overlaps with another one ({overlapping[0]!r}) that is not 'normalized' as it "
                "is: give both the same setting in the file"
            )


def _merges(merges: Any, vocab: dict[str, int]) -> list[str]:
    if not isinstance(merges, list):
        raise _RefusedError("model.merges is missing")
    result = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise _RefusedError(f"merge {rank} must be 'a b' or ['a', 'b'], not {merge!r}")
        # A part with a space in it could not be told from the separator; byte-level text has none.
        if any(" " in part or part not in vocab for part in pair) or "".join(pair) not in vocab:
            raise _RefusedError(
                f"merge {rank}, {merge!r}, joins or makes what is not in model.vocab: the file is damaged"
            )
        result.append(" ".join(pair))
    return result


def _specials(data: dict[str, Any], path: SourcePath, ids: dict[str, int]) -> tuple[int, int]:
    """Ids of BOS and EOS."""
    if _BOS in ids and _EOS in ids:
        return ids[_BOS], ids[_EOS]
    siblings = [path.with_name(name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    named = [_named_tokens(_load(sibling)) for sibling in siblings if sibling.is_file()]
    for bos, eos in [*named, _template_ends(data.get("post_processor"))]:
        if bos in ids and eos in ids:
            return ids[bos], ids[eos]
    raise _RefusedError(
        f"has neither {_BOS} and {_EOS}, nor a post_processor that adds BOS and EOS, nor a tokenizer_config.json "
        "beside it that names bos_token and eos_token"
    )


def _named_tokens(config: dict[str, Any]) -> tuple[str, str]:
    """`bos_token` and `eos_token` of a configuration, each a text or an added-token object; "" where absent."""
    values = (config.get("bos_token"), config.get("eos_token"))
    bos, eos = (value.get("content") if isinstance(value, dict) else value for value in values)
    return (bos if isinstance(bos, str) else ""), (eos if isinstance(eos, str) else "")


def _template_ends(data: Any) -> tuple[str, str]:
    """The tokens that a post-processor puts before and after a single text; "" where it does not."""
    parts = _list(data.get("processors", [data])) if isinstance(data, dict) else []
    for part in parts:
        single = part.get("single") if isinstance(part, dict) and part.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and len(single) == 3:
            pieces = (single[0], single[2])
            specials = [piece.get("SpecialToken") if isinstance(piece, dict) else None for piece in pieces]
            bos, eos = (special.get("id") if isinstance(special, dict) else None for special in specials)
            if isinstance(bos, str) and isinstance(eos, str):
                return bos, eos
    return "", ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
