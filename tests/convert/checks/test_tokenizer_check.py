"""`verify` finds every entry of a bundle's tokenizer that is not its source's, and names it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from miso_gguf.convert.checkpoint.tokenizer import gguf_keys, read_tokenizer
from miso_gguf.convert.checks.tokenizer import check_tokenizer_of
from miso_gguf.convert.gguf_header import TensorInfo, header_bytes, padded, tokenizer_keys
from miso_gguf.models import tiny

Values = dict[str, Any]
SOURCE = read_tokenizer(tiny.DIRECTORY)


def _write(path: Path, change: Callable[[Values], object] = lambda _: None, rows: int = 1024) -> Path:
    """An embeddings file whose tokenizer was changed."""
    values: Values = {
        key.removeprefix("tokenizer.ggml."): list(value) if isinstance(value, list) else value
        for key, value in gguf_keys(SOURCE)
    }
    change(values)
    keys = tokenizer_keys((f"tokenizer.ggml.{name}", value) for name, value in values.items())
    info = TensorInfo("text_embd.weight", (rows, 32), GGMLQuantizationType.F32)
    path.write_bytes(header_bytes(keys, [info]) + bytes(padded(info.size_bytes)))
    return path


def _set(key: str, value: Any) -> Callable[[Values], object]:
    return lambda values: values.update({key: value})


def _swap(key: str, first: int, second: int) -> Callable[[Values], object]:
    def change(values: Values) -> None:
        entries = values[key]
        entries[first], entries[second] = entries[second], entries[first]

    return change


def _entry(key: str, index: int, value: object) -> Callable[[Values], object]:
    return lambda values: values[key].__setitem__(index, value)


def _drop(key: str) -> Callable[[Values], object]:
    return lambda values: values.pop(key)


def test_well(tmp_path: Path) -> None:
    path = _write(tmp_path / "v.gguf")
    assert check_tokenizer_of(path, SOURCE) == ("1024 tokens and 752 merges, all as in tokenizer.json", True)
    assert check_tokenizer_of(path, None) == ("1024 tokens and 752 merges; llama.cpp opens it", True)


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        (_swap("tokens", 16, 17), "token 16 is '2', tokenizer.json says '1'"),
        (_swap("tokens", 1006, 1007), f"token 1006 is {SOURCE.tokens[1007]!r}, tokenizer.json says "),
        (_entry("tokens", 300, "\x1b[2J"), r"token 300 is '\x1b[2J', tokenizer.json says"),
        (_entry("token_type", 1012, 4), "token 1012 '<|reserved_special_token_2|>' is an added token, tokenizer.json"),
        (_swap("merges", 3, 4), f"merge 3 is {SOURCE.merges[4]!r}, tokenizer.json says {SOURCE.merges[3]!r}"),
        (lambda values: values["merges"].pop(), "merge 751 is none, tokenizer.json says "),
        (_set("bos_token_id", 1010), "tokenizer.ggml.bos_token_id is 1010, tokenizer.json says 1008"),
        (_set("eos_token_id", 1010), "tokenizer.ggml.eos_token_id is 1010, tokenizer.json says 1009"),
        (_set("add_bos_token", False), "tokenizer.ggml.add_bos_token is False, tokenizer.json says True"),
        (_drop("add_eos_token"), "tokenizer.ggml.add_eos_token is none, tokenizer.json says True"),
        (_set("pre", "gpt-2"), "tokenizer.ggml.pre is 'gpt-2', tokenizer.json says 'llama-bpe'"),
    ],
)
def test_other_than_its_source(tmp_path: Path, change: Callable[[Values], object], measured: str) -> None:
    found, ok = check_tokenizer_of(_write(tmp_path / "v.gguf", change), SOURCE)
    assert found.startswith(measured)
    assert not ok
    assert found.isprintable()


@pytest.mark.parametrize(
    ("change", "rows", "measured"),
    [
        (_drop("tokens"), 1024, "tokenizer.ggml.tokens is missing, or no list of the right type"),
        (_set("token_type", ["a"]), 1024, "tokenizer.ggml.token_type is missing, or no list of the right type"),
        (_set("merges", "a b"), 1024, "tokenizer.ggml.merges is missing, or no list of the right type"),
        (lambda values: values["token_type"].pop(), 1024, "1024 tokens, but 1023 types"),
        (lambda _: None, 1023, "1024 tokens, but 1023 text embeddings"),
        (_entry("tokens", 9, SOURCE.tokens[5]), 1024, "tokens 5 and 9 are both '&'"),
        (_entry("tokens", 9, ""), 1024, "token 9 is empty"),
        (_entry("token_type", 9, 77), 1024, "token 9 '*' is of type 77"),
        (_set("bos_token_id", 1024), 1024, "tokenizer.ggml.bos_token_id is 1024, there are 1024 tokens"),
        (_drop("eos_token_id"), 1024, "tokenizer.ggml.eos_token_id is none, there are 1024 tokens"),
        (_entry("merges", 9, "Wednes\x07 day"), 1024, r"merge 9 'Wednes\x07 day' joins or makes what is no token"),
        (_set("pre", "nonsense"), 1024, "llama.cpp finds 0 tokens in it, not 1024"),
        (_set("model", "nonsense"), 1024, "llama.cpp finds 0 tokens in it, not 1024"),
    ],
)
def test_impossible(tmp_path: Path, change: Callable[[Values], object], rows: int, measured: str) -> None:
    path = _write(tmp_path / "v.gguf", change, rows)
    assert check_tokenizer_of(path, None) == (measured, False)
    assert check_tokenizer_of(path, SOURCE)[1] is False


def test_another_number_of_tokens(tmp_path: Path) -> None:
    shorter = replace(SOURCE, tokens=SOURCE.tokens[:-1], types=SOURCE.types[:-1])
    found, ok = check_tokenizer_of(_write(tmp_path / "v.gguf"), shorter)
    assert (found, ok) == ("token 1023 is '<|reserved_special_token_13|>', tokenizer.json says none", False)


@pytest.mark.parametrize("content", [b"", b"text", b"GGUF" * 9])
def test_what_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(content)
    found, ok = check_tokenizer_of(path, None)
    assert str(path) in found
    assert not ok
