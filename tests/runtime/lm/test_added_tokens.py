"""Tokens that a fine-tune added to be written into texts: one id each, as the tokenizers library gives it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle

from builders import MICRO, make_bundle, make_inputs
from miso_gguf.models.levels import Q8_0
from miso_gguf.runtime.lm.prompt import PromptBuilder
from miso_gguf.runtime.lm.tokenizer import Tokenizer
from miso_gguf.runtime.synthesis.sentences import split_sentences

ADDED = {
    "<laugh>": True,
    "<|sigh|>": True,
    "[BREATH]": False,
    "<laugh>ing": False,
    "*sighs*": False,
    "*laughs*": True,
    "<|im_end|>": True,
    "<uh... Hm. Well>": False,
    "<笑。>": False,
    "été": True,
    "[0]": False,
    "  ": False,
    "of the": False,
}
"""Texts, and whether each is special. Some overlap, and one of them llama.cpp takes for a token of its own."""
STRUCTURAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
RENAMED = "<whisper>"
"""Was `<|reserved_special_token_5|>`."""
PIECES = [*ADDED, RENAMED, *STRUCTURAL, *"a é笑😀<>|*[]. \n", " the", "Hello", "laugh", "sighs*", "<|", "e\u0301", "\0"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("added")
    inputs = make_inputs(directory, replace(MICRO, text_vocab=1024 + len(ADDED)))
    data = json.loads(inputs.tokenizer.read_text("utf-8"))
    first, renamed = data["added_tokens"][0], data["added_tokens"][7]
    assert renamed["content"] == "<|reserved_special_token_5|>"
    renamed["content"] = RENAMED
    data["added_tokens"] += [
        {**first, "id": 1024 + index, "content": text, "special": special}
        for index, (text, special) in enumerate(ADDED.items())
    ]
    inputs.tokenizer.write_text(json.dumps(data), "utf-8")
    make_bundle(inputs, directory / "bundle", [Q8_0])
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Iterator[Tokenizer]:
    with Tokenizer(directory / "bundle" / "Micro-embeddings-Q8_0.gguf") as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Oracle:
    """The library, which is told to take only the base tokenizer's special tokens for ordinary text."""
    data = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    for token in data["added_tokens"]:
        token["special"] = token["content"].startswith(("<|reserved", "<|begin", "<|end_of_text"))
    oracle = Oracle.from_str(json.dumps(data))
    oracle.encode_special_tokens = True
    return oracle


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<laugh>", [1024]),
        ("<laugh><laugh>", [1024, 1024]),
        (" <|sigh|>[BREATH]", [220, 1025, 1026]),
        ("[0] <|sigh|>", [1034, 220, 1025]),
        ("<laugh>ing", [1027]),
        ("*sighs*laughs*", [1028, 75, 763, 311, 82, 9]),
        ("<|im_end|>", [1030]),
        (RENAMED, [1015]),
    ],
)
def test_one_id(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == [1008, *ids, 1009]


@pytest.mark.parametrize("text", [*STRUCTURAL, "<|reserved_special_token_5|>", "<laugh", "< laugh>", "<LAUGH>"])
def test_what_is_none_is_ordinary_text(tokenizer: Tokenizer, oracle: Oracle, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text).ids
    assert max(ids[1:-1]) < 1008


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=12))
def test_as_the_tokenizers_library(tokenizer: Tokenizer, oracle: Oracle, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert tokenizer.encode(text) == oracle.encode(text).ids


def test_prompts(tokenizer: Tokenizer, oracle: Oracle) -> None:
    rows = PromptBuilder(MICRO, tokenizer).text("<laugh> Hello [BREATH]", 0).rows
    assert rows[:, -1].tolist() == oracle.encode("[0] <laugh> Hello [BREATH]").ids


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<laugh>", "<uh... Hm. Well>", "<笑。>", "Yes.", "No", " "]), min_size=1, max_size=40))
def test_sentences_do_not_cut_them(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    if not text.strip():
        return
    sentences = split_sentences(text, 20, 0, tokenizer.added)
    assert max(map(len, sentences)) <= 20
    assert len(tokenizer.added) > 1
    pattern = re.compile("|".join(map(re.escape, tokenizer.added)))
    found = [match for sentence in sentences for match in pattern.findall(sentence) if match.strip()]
    assert found == [match for match in pattern.findall(" ".join(text.split())) if match.strip()]
