"""Tokenizers against two independent oracles: the `tokenizers` library and llama.cpp, which tokenises at run time."""

import copy
import ctypes
import dataclasses
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer

from builders import MICRO, make_bundle, make_inputs
from miso_gguf.convert.checkpoint.tokenizer import TokenizerMetadata, check_tokenizer, gguf_keys, read_tokenizer
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.flavors import CSM_1B, MISO_8B, TINY
from miso_gguf.models.levels import Q8_0
from miso_gguf.models.synthetic_tokenizer import synthetic_tokenizer, tiny_tokenizer
from miso_gguf.models.tiny.make.tokenizer import BOS, EOS, SPECIALS, make_tokenizer
from miso_gguf.native.llama import load_library

llama = load_library()
"""Its 30 lines a model go to `logging`, as for everybody in this process."""

TEXTS = [
    "", " ", "  ", "a", "Hello", " Hello", "Hello there, how are you?", "[0] Hello there.", "[1]Hello there.",
    "It's, they're, we've, I'm, he'll, I'd, don't", "IT'S, THEY'RE, WE'VE, I'M, HE'LL, I'D, DON'T", "'s's 't 'S'",
    "rock 'n' roll, 'twas, o'clock, dogs'", "it\u2019s we\u2019ll", "'\u00e9", "'", "''", "'ll'll", "'lle", "x'D'",
    "The quick brown fox jumps over the lazy dog.", "What? No! Really... I see; well: fine.", "I wouldn't've done",
    "Wednesday the twenty-first of September, half past seven.", "SHOUTING AND whispering", "camelCase snake_case",
    *("1234567890123456789012"[:n] for n in range(1, 23)), "1 22 333 4444", "3.14159", "1,000,000", "-5", "+44 20 79",
    "10:30", "2026-06-01", "1/2", "50%", "$5.99", "a1b22c333d4444", "1st 2nd 3rd 4th", "٣٤٥٦٧", "½¾²³", "Ⅷ①", "x2",
    "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "a\nb", "a\n b", "a \nb", "a \n b", "a\n\n\nb", "a\r\nb", "\t",
    "\t\t\ta", "a\t b", "   a", "a   ", "a    b", " " * 17 + "x", "x" + " " * 33, " \n ", "\n \n", " \t\n\r x",
    "a\u00a0b", "a\u3000b", "a\u2003 b", "a\u2028b", "\u200b", "a\u200bb", "\ufeffa", "a\x0bb", "a\x0cb", "a\x85b",
    "a\x1fb", "a\x00b", "\x00", "\x7f", "a  \u00a0b", "\u00a0\u00a0a", "one line\nand another\n\nand a paragraph\n",
    "!", "!!!", "...", "?!", "hello!!", "(a)", "((a))", "a--b", "a - b", "--", " --a", "!\n", "!\n\n a", "a.\nb",
    '"quoted"', "`code`", "a/b\\c", "#tag @you", "user@example.com", "https://example.com/a?b=c&d=1#e", "*bold*", "_x_",
    "é", "e\u0301", "naïve café", "Ünïcödé", "Straße", "İstanbul", "\u0131I", "\u017f", "Ǆ ǅ ǆ", "ﬁ ﬂ", "Ω K Å",
    "привет, мир", "Γειά", "Հայերեն", "ქართული", "አማርኛ", "Tiếng Việt", "česky", "łódź",
    "你好", "你好\uff0c世界。", "日本語のテキスト", "カタカナ", "한국어 텍스트", "𠀀𠀁", "中1文2", "中 文",
    "\u1112\u1161\u11ab",
    "مرحبا بالعالم", "السَّلامُ", "שלום עולם", "שָׁלוֹם", "नमस्ते दुनिया", "हिन्दी में", "क्षत्रिय", "ภาษาไทย", "தமிழ்", "বাংলা",
    "😀", "😀😀", "a😀b", " 😀 ", "👍🏽", "👩\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "🇬🇧🇫🇷", "❤\ufe0f",
    "1\ufe0f\u20e3",
    "😀\n😀", "\ue000", "\ufffd", "\ufffe", "\U0010ffff", "\U000e0041", "\u0378", "a\u0301\u0302\u0303", "\u0301",
    "one\ttwo  three\n\n  four", "Mr. & Mrs. O'Neill-Smith", "e.g. i.e. etc.", "C++", "3D", "R2-D2", "#1", "100km",
    "1\u0301", " \u0301", BOS, EOS, f"{BOS}Hello{EOS}", f"a {EOS} b", "<|reserved_special_token_3|>", "<|begin_of_text",
    "<|", "|>", "<|x|>", "<laugh>", "ha <laugh> ha", "a<laugh>b<laugh", "<LAUGH>",
]  # fmt: skip

_ATOMS = [
    *"'sStTdDmMreVELlKaZé1½Ⅷ_-.,!?#()[]<>|\"/ \t\r\n\x0b\x85\xa0\u2028\u200b\u200d\u2019\ufeff\u3000\x00中あ한हि",
    "\u0627", "\u0301",
    "न्", "😀", "👩\u200d👧", "🇬🇧", "\ufe0f", "İ", "ß", "  ", "\n\n", "\r\n", "'ll", "'RE", BOS, EOS, "123456", "\ue000",
    " the", "Hello", " Wednesday", "<laugh>",
]  # fmt: skip


def _random_texts(count: int) -> list[str]:
    rng = random.Random(20)
    return ["".join(rng.choices(_ATOMS, k=rng.randint(1, 12))) for _ in range(count)]


def _write_gguf(path: Path, metadata: TokenizerMetadata) -> Path:
    """A GGUF file that holds a tokenizer and nothing else."""
    writer = GGUFWriter(path, "llama")
    for key, value in gguf_keys(metadata):
        # bool first: it is an int too.
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaCpp:
    """llama.cpp's tokenizer, loaded from a GGUF file."""

    def __init__(self, path: Path) -> None:
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, "llama.cpp refused the file"
        self.vocab = llama.llama_model_get_vocab(self._model)

    def close(self) -> None:
        llama.llama_model_free(self._model)

    def encode(self, text: str, *, wrap: bool = True, special: bool = False) -> list[int]:
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 2))()
        count = llama.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), wrap, special)
        assert count >= 0
        return list(buffer[:count])


def _every_pair(data: dict[str, Any], gpt2: bool) -> dict[str, Any]:
    """A vocabulary of all pairs of bytes, which shows every difference in where text is split.

    With the tiny one's, few bytes beyond ASCII ever merge, so most differences would not change an id.
    """
    letters = [text for text in data["model"]["vocab"] if len(text) == 1]
    pairs = [(a, b) for a in letters for b in letters]
    texts = [*letters, *(a + b for a, b in pairs)]
    data["model"]["vocab"] = {text: index for index, text in enumerate(texts)}
    data["model"]["merges"] = [list(pair) for pair in pairs]
    for offset, token in enumerate(data["added_tokens"]):
        token["id"] = len(texts) + offset
    for offset, name in enumerate((BOS, EOS)):
        data["post_processor"]["special_tokens"][name]["ids"] = [len(texts) + offset]
    if gpt2:
        data["model"]["ignore_merges"] = False
        data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return data


def _with_user_token(data: dict[str, Any]) -> dict[str, Any]:
    """One added token that is not special, after a gap of three ids; added tokens in `vocab` too, as GPT-2 has them."""
    data["added_tokens"].append({**data["added_tokens"][0], "id": 1027, "content": "<laugh>", "special": False})
    data["model"]["vocab"].update({token["content"]: token["id"] for token in data["added_tokens"]})
    return data


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "tiny": tiny_tokenizer,
    "user-token": lambda: _with_user_token(tiny_tokenizer()),
    "synthetic": lambda: synthetic_tokenizer(dataclasses.replace(TINY, text_vocab=5000)),
    "every-pair": lambda: _every_pair(tiny_tokenizer(), gpt2=False),
    "every-pair-gpt-2": lambda: _every_pair(tiny_tokenizer(), gpt2=True),
}


@dataclasses.dataclass
class Oracles:
    metadata: TokenizerMetadata
    library: Tokenizer
    llama_cpp: LlamaCpp


@pytest.fixture(scope="module", params=KINDS)
def oracles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracles]:
    directory = tmp_path_factory.mktemp("tokenizer")
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(KINDS[request.param]()), "utf-8")
    metadata = read_tokenizer(path)
    llama_cpp = LlamaCpp(_write_gguf(directory / "vocabulary.gguf", metadata))
    yield Oracles(metadata, Tokenizer.from_file(str(path)), llama_cpp)
    llama_cpp.close()


def test_llama_cpp_gives_the_same_ids(oracles: Oracles) -> None:
    assert len(TEXTS) >= 200
    for special in (False, True):
        # "special" means that the *text* of a special token counts as that token.
        oracles.library.encode_special_tokens = not special
        for text in [*TEXTS, *_random_texts(1500)]:
            expected = oracles.library.encode(text).ids
            assert oracles.llama_cpp.encode(text, special=special) == expected, repr(text)
            assert oracles.llama_cpp.encode(text, wrap=False, special=special) == expected[1:-1], repr(text)


def test_the_embeddings_file_of_a_bundle(tmp_path: Path) -> None:
    """What a conversion writes, not only what the keys say: its tokenizer gives the library's ids on every text."""
    inputs = make_inputs(tmp_path, MICRO)
    manifest = make_bundle(inputs, tmp_path / "bundle", [Q8_0])
    library = Tokenizer.from_file(str(inputs.tokenizer))
    llama_cpp = LlamaCpp(tmp_path / "bundle" / manifest.levels["q8_0"].embeddings)
    assert len(TEXTS) >= 200
    for text in TEXTS:
        assert llama_cpp.encode(text, special=True) == library.encode(text).ids, text
    llama_cpp.close()


def test_every_entry_is_the_librarys(oracles: Oracles) -> None:
    metadata, library, vocab = oracles.metadata, oracles.library, oracles.llama_cpp.vocab
    added = library.get_added_tokens_decoder()
    attribute = {1: "NORMAL", 3: "CONTROL", 4: "USER_DEFINED", 5: "UNUSED"}
    assert metadata.size == llama.llama_vocab_n_tokens(vocab) == max(library.get_vocab().values()) + 1
    for index, (text, kind) in enumerate(zip(metadata.tokens, metadata.types, strict=True)):
        known = library.id_to_token(index)
        expected = 5 if known is None else 1 if index not in added else 3 if added[index].special else 4
        assert kind == expected, text
        assert text == (f"[PAD{index}]" if known is None else known)
        assert llama.llama_vocab_get_text(vocab, index).decode() == text
        wanted = getattr(llama, f"LLAMA_TOKEN_ATTR_{attribute[kind]}")
        assert llama.llama_vocab_get_attr(vocab, index) & wanted, text
    assert llama.llama_vocab_bos(vocab) == metadata.bos_id == library.token_to_id(BOS)
    assert llama.llama_vocab_eos(vocab) == metadata.eos_id == library.token_to_id(EOS)
    assert llama.llama_vocab_get_add_bos(vocab)
    assert llama.llama_vocab_get_add_eos(vocab)


def test_where_llama_cpp_is_known_to_differ(tmp_path: Path) -> None:
    """Two corners that no speech has. If either starts to agree, the documentation is out of date."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_every_pair(tiny_tokenizer(), gpt2=False)), "utf-8")
    llama_cpp, library = (
        LlamaCpp(_write_gguf(tmp_path / "v.gguf", read_tokenizer(path))),
        Tokenizer.from_file(str(path)),
    )
    long_s = "'\u017fm"  # case-insensitively an s: a contraction for the library's regex engine only
    new_letter = "a\U00010d4ab"  # a letter since Unicode 16, newer than llama.cpp's tables
    for text in (long_s, new_letter):
        assert llama_cpp.encode(text) != library.encode(text).ids
    llama_cpp.close()


def test_the_committed_file_is_what_the_script_makes() -> None:
    committed = json.dumps(tiny_tokenizer(), ensure_ascii=False, indent=1) + "\n"
    assert make_tokenizer() == committed


def test_tiny_tokenizer() -> None:
    metadata = read_tokenizer(_tiny_path())
    assert (metadata.size, metadata.bos_id, metadata.eos_id, metadata.pre) == (1024, 1008, 1009, "llama-bpe")
    assert metadata.tokens[-16:] == SPECIALS
    assert metadata.types == [1] * 1008 + [3] * 16
    assert len(metadata.merges) == 1008 - 256
    assert (metadata.add_bos, metadata.add_eos) == (True, True)
    assert read_tokenizer(_tiny_path().parent) == metadata
    assert dict(gguf_keys(metadata)) == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": metadata.tokens,
        "tokenizer.ggml.token_type": metadata.types,
        "tokenizer.ggml.merges": metadata.merges,
        "tokenizer.ggml.bos_token_id": 1008,
        "tokenizer.ggml.eos_token_id": 1009,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }


def _tiny_path() -> Path:
    from miso_gguf.models import tiny  # noqa: PLC0415

    return Path(str(tiny.__file__)).with_name("tokenizer.json")


@pytest.mark.parametrize("size", [1024, 1263])
def test_a_small_synthetic_tokenizer_is_the_tiny_one(size: int) -> None:
    assert synthetic_tokenizer(dataclasses.replace(TINY, text_vocab=size)) == tiny_tokenizer()


@pytest.mark.parametrize("size", [1264, 5000, 128256])
def test_a_synthetic_tokenizer_has_llama_3s_shape(tmp_path: Path, size: int) -> None:
    spec = dataclasses.replace(MISO_8B, text_vocab=size)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(synthetic_tokenizer(spec)), "utf-8")
    metadata = read_tokenizer(path)
    check_tokenizer(metadata, spec)
    assert (metadata.size, metadata.bos_id, metadata.eos_id) == (size, size - 256, size - 255)
    assert metadata.types == [1] * (size - 256) + [3] * 256
    assert (metadata.tokens[size - 254], metadata.tokens[-1]) == (
        "<|reserved_special_token_0|>", "<|reserved_special_token_253|>",
    )  # fmt: skip
    library, tiny = Tokenizer.from_file(str(path)), Tokenizer.from_str(json.dumps(tiny_tokenizer()))
    library.encode_special_tokens = tiny.encode_special_tokens = True
    filler = metadata.tokens[1008 : size - 256][:300]
    assert all(len(text) == 8 for text in filler)
    for text in [*TEXTS, *filler]:
        ids = library.encode(text).ids
        assert (ids[0], ids[-1]) == (size - 256, size - 255)
        assert ids[1:-1] == tiny.encode(text).ids[1:-1]


def test_a_synthetic_tokenizer_needs_room() -> None:
    with pytest.raises(ValueError, match="at least 1024 entries, Miso-Tiny has 1023"):
        synthetic_tokenizer(dataclasses.replace(TINY, text_vocab=1023))


def test_a_tokenizer_must_fit_the_model() -> None:
    metadata = read_tokenizer(_tiny_path())
    check_tokenizer(metadata, TINY)
    check_tokenizer(metadata, CSM_1B)
    with pytest.raises(CheckpointError, match="1024 entries, Miso-Tiny's text embeddings only 1000 rows"):
        check_tokenizer(metadata, dataclasses.replace(TINY, text_vocab=1000))


def _read(tmp_path: Path, data: object, **siblings: object) -> TokenizerMetadata:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), "utf-8")
    for name, content in siblings.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return read_tokenizer(path)


def test_both_spellings_of_merges(tmp_path: Path) -> None:
    data = tiny_tokenizer()
    assert all(isinstance(merge, str) for merge in data["model"]["merges"])
    as_text = _read(tmp_path, data)
    data["model"]["merges"] = [merge.split(" ") for merge in data["model"]["merges"]]
    assert _read(tmp_path, data) == as_text


def _renamed(bos: str, eos: str) -> dict[str, Any]:
    text = json.dumps(tiny_tokenizer())
    data: dict[str, Any] = json.loads(text.replace(BOS, bos).replace(EOS, eos))
    return data


def test_bos_and_eos_from_the_post_processor(tmp_path: Path) -> None:
    metadata = _read(tmp_path, _renamed("<s>", "</s>"))
    assert (metadata.bos_id, metadata.eos_id) == (1008, 1009)
    data = _renamed("<s>", "</s>")
    data["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, data["post_processor"]]}
    assert _read(tmp_path, data) == metadata


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_bos_and_eos_from_a_file_beside_it(tmp_path: Path, name: str) -> None:
    data = _renamed("<s>", "</s>")
    reserved = {"content": "<|reserved_special_token_0|>", "lstrip": False}
    metadata = _read(tmp_path, data, **{name: {"bos_token": reserved, "eos_token": "</s>"}})
    assert (metadata.bos_id, metadata.eos_id) == (1010, 1009)
    metadata = _read(tmp_path, tiny_tokenizer())
    assert (metadata.bos_id, metadata.eos_id) == (1008, 1009), "Llama 3's own names come first"


def test_no_bos_is_an_error(tmp_path: Path) -> None:
    data = _renamed("<s>", "</s>")
    data["post_processor"] = None
    with pytest.raises(CheckpointError, match="names bos_token and eos_token"):
        _read(tmp_path, data, tokenizer_config={"bos_token": None, "eos_token": "<no such token>"})


def test_ignore_merges_missing_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny_tokenizer()
    del data["model"]["ignore_merges"]
    _read(tmp_path, data)
    assert "ignore_merges" in caplog.text


def test_ids_that_the_library_would_not_give_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny_tokenizer()
    assert _read(tmp_path, data).size == 1024
    assert caplog.text == ""
    data["added_tokens"].append({**data["added_tokens"][0], "id": 1027, "content": "<laugh>", "special": False})
    assert _read(tmp_path, data).tokens[1023:] == [SPECIALS[-1], "[PAD1024]", "[PAD1025]", "[PAD1026]", "<laugh>"]
    library = Tokenizer.from_str(json.dumps(data))
    assert f"'<laugh>' has id 1027; the tokenizers library would say {library.token_to_id('<laugh>')}" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"<!DOCTYPE html><html>Access denied</html>", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b'{"model": ', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b"{}", "has no model.vocab"),
        (b'{"model": []}', "has no model.vocab"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read \(No such file"):
        read_tokenizer(tmp_path)


_SPLIT = {"type": "Split", "pattern": {"Regex": r"\d+|\D+"}, "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def _added(content: str, **flags: bool) -> dict[str, object]:
    return {"id": 1011, "content": content, "special": True, **dict.fromkeys(_FLAGS, False), **flags}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "Unigram", "model type 'Unigram' is not supported, only byte-level BPE"),
        ("model.byte_fallback", True, "model.byte_fallback True is not supported"),
        ("model.dropout", 0.1, "model.dropout 0.1 is not supported"),
        ("model.end_of_word_suffix", "</w>", "model.end_of_word_suffix '</w>' is not supported"),
        ("normalizer", {"type": "NFC"}, "has a normalizer"),
        ("pre_tokenizer", None, r"pre_tokenizer \(none\) is not supported, only Llama 3's"),
        ("pre_tokenizer", {"type": "Metaspace"}, r"pre_tokenizer \(Metaspace\) is not supported"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 3}, r"pre_tokenizer \(none\) is not supported"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [_SPLIT, _BYTE_LEVEL]},
            r"\(Split \+ ByteLevel\) is not",
        ),
        ("pre_tokenizer", _BYTE_LEVEL, r"pre_tokenizer \(ByteLevel\) is not supported"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "without a prefix space"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False}, "ignore_merges with GPT-2's pre_tokenizer"),
        (
            "pre_tokenizer.pretokenizers.1",
            {"type": "ByteLevel", "add_prefix_space": False},
            r"\(Split \+ ByteLevel\) is",
        ),
        ("pre_tokenizer.pretokenizers.1.add_prefix_space", True, r"\(Split \+ ByteLevel\) is not supported"),
        ("pre_tokenizer.pretokenizers.0.behavior", "Removed", "is not supported"),
        ("pre_tokenizer.pretokenizers.0.invert", True, "is not supported"),
        ("model.vocab", {}, "model.vocab must map"),
        ("model.vocab", ["a", "b"], "model.vocab must map"),
        ("model.vocab", {"a": 0}, "model.vocab lacks 255 of the 256 letters"),
        ("model.vocab.Hello", -1, "token 'Hello' has id -1"),
        ("model.vocab.Hello", "7", "token 'Hello' has id '7'"),
        ("model.vocab.Hello", 1 << 30, "token 'Hello' has id 1073741824"),
        ("model.vocab.Hello", 0, "id 0 is both '!' and 'Hello'"),
        ("model.vocab.\ud800", 1100, "a token's text is not Unicode"),
        ("model.vocab.[PAD1101]", 1102, "two ids have the same text"),
        ("added_tokens.3", "x", "expected objects with content and id, found 'x'"),
        ("added_tokens", 3, "expected objects with content and id, found 3"),
        ("added_tokens.3.id", -4, "expected objects with content and id"),
        ("added_tokens.3.id", 5, "'<|reserved_special_token_1|>' has id 5, which clashes"),
        ("added_tokens.3.id", 1009, "'<|reserved_special_token_1|>' has id 1009, which clashes"),
        ("added_tokens.3.id", True, "expected objects with content and id"),
        ("added_tokens.3.content", "", "added token '' with id 1011 is no text that a GGUF"),
        ("added_tokens.3.content", "a\0", r"added token 'a\\x00' with id 1011 is no text"),
        ("added_tokens.3", _added("<laugh>", lstrip=True), "added token '<laugh>' has lstrip, which a GGUF"),
        ("added_tokens.3", _added("[BREATH]", rstrip=True), r"added token '\[BREATH\]' has rstrip, which a GGUF"),
        ("added_tokens.3", _added("ah", single_word=True, special=False), "added token 'ah' has single_word"),
        ("model.merges", None, "model.merges is missing"),
        ("model.merges.7", "a b c", "merge 7 must be 'a b'"),
        ("model.merges.7", ["a"], "merge 7 must be 'a b'"),
        ("model.merges.7", ["a", 1], "merge 7 must be 'a b'"),
        ("model.merges.7", ["a ", "b"], "the file is damaged"),
        ("model.merges.7", "~ ~", "the file is damaged"),
        ("model.merges.7", "ĠWednesda y", "the file is damaged"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused(tmp_path: Path, path: str, value: object, message: str) -> None:
    data: Any = copy.deepcopy(tiny_tokenizer())
    *outer, last = path.split(".")
    place = data
    for key in outer:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    with pytest.raises(CheckpointError, match=message.replace("<|", r"<\|").replace("|>", r"\|>")) as caught:
        _read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["<|reserved_special_token_1|>", BOS])
def test_flags_of_what_no_text_means_do_not_matter(tmp_path: Path, content: str) -> None:
    data = tiny_tokenizer()
    expected = _read(tmp_path, data)
    for token in data["added_tokens"]:
        token.update(dict.fromkeys(_FLAGS, token["content"] == content))
    assert _read(tmp_path, data) == expected


@pytest.mark.parametrize(
    ("early", "late", "text", "is_refused"),
    [
        ("<laugh>", "<sigh>", "<sigh><laugh>", False),
        ("<laugh>", "h>!", "<laugh>!", False),
        ("<laugh>", "<laugh>ing", "<laugh>ing", True),
        ("sigh", "<sigh>", "<sigh>", True),
        ("*laughs*", "*sighs*", "*sighs*laughs*", True),
        ("laughs", "*laugh", "*laughs", True),
    ],
)
def test_order_of_matching(tmp_path: Path, early: str, late: str, text: str, is_refused: bool) -> None:
    """The library looks for tokens that are not normalized first: that one may hide another, and not by its place."""
    data = tiny_tokenizer()
    data["added_tokens"][3:5] = [_added(early), {**_added(late, normalized=True), "id": 1012}]
    found = re.findall(f"{re.escape(late)}|{re.escape(early)}", text)
    ids = [token for token in Tokenizer.from_str(json.dumps(data)).encode(text).ids if token in (1011, 1012)]
    assert ([{1011: early, 1012: late}[token] for token in ids] != found) == is_refused
    if is_refused:
        with pytest.raises(CheckpointError, match="overlaps with another one"):
            _read(tmp_path, data)
    else:
        assert _read(tmp_path, data).types[1011:1013] == [4, 4]


def test_every_byte_has_a_letter(tmp_path: Path) -> None:
    data = tiny_tokenizer()
    vocab = data["model"]["vocab"]
    vocab["not a letter"] = vocab.pop("\u0142")  # byte 0xa0, of which nothing is merged
    with pytest.raises(CheckpointError, match="lacks 1 of the 256 letters"):
        _read(tmp_path, data)


def test_damage_anywhere_is_a_clear_error_or_none(tmp_path: Path) -> None:
    """Replace one value after another by nonsense: nothing but `CheckpointError` may come out."""
    rng = random.Random(3)
    refused = 0
    for _ in range(300):
        place: Any = tiny_tokenizer()
        data = place
        while True:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            deeper = place[key]
            if not isinstance(deeper, dict | list) or not deeper or rng.random() < 0.3:
                break
            place = deeper
        place[key] = rng.choice([None, 0, -1, True, "", "x", [], [1], ["a", "b", "c"], {}, {"type": "x"}, 1.5])
        try:
            _read(tmp_path, data)
        except CheckpointError:
            refused += 1
    assert refused > 50
