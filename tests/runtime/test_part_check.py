"""What llama.cpp would end the process on, or read past an end for, is refused in Python, and said in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_mutations import Gguf

from builders import MICRO, Built
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.models.levels import Q4_K_M
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.part_check import check_part
from miso_gguf.runtime.tts import MisoTTS

U32, I32, F32, BOOL, TEXT, ARRAY = 4, 5, 6, 7, 8, 9
Change = Callable[[Gguf], None]


def put(name: str, kind: int, value: Any) -> Change:
    """The key, changed or added."""

    def change(file: Gguf) -> None:
        file.keys = [key for key in file.keys if key[0] != name.encode()] + [(name.encode(), kind, value)]

    return change


def drop(name: str) -> Change:
    def change(file: Gguf) -> None:
        file.keys = [key for key in file.keys if key[0] != name.encode()]

    return change


def array(name: str, edit: Callable[[list[Any]], object], kind: int | None = None) -> Change:
    def change(file: Gguf) -> None:
        inner, values = next(key[2] for key in file.keys if key[0] == name.encode())
        edit(values)
        put(name, ARRAY, (kind or inner, values))(file)

    return change


def tensor(name: str, shape: list[int] | None = None, kind: int | None = None, called: str | None = None) -> Change:
    """The tensor as another one, at its place: all others must follow each other as before."""

    def change(file: Gguf) -> None:
        at = next(at for at, found in enumerate(file.tensors) if found[0] == name.encode())
        _, dims, qtype, offset = file.tensors[at]
        file.tensors[at] = ((called or name).encode(), shape or dims, qtype if kind is None else kind, offset)

    return change


def damaged(built: Built, tmp_path: Path, part: str, change: Change) -> Path:
    """A bundle whose manifest knows the damaged file."""
    source = built.bundle([Q4_K_M], MICRO)
    directory = tmp_path / "bundle"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).hardlink_to(path)
    path = directory / f"Micro-{part}-{'Q8_0' if part == 'embeddings' else 'Q4_K_M'}.gguf"
    file = Gguf.parse(path.read_bytes())
    change(file)
    path.unlink()
    path.write_bytes(file.dump())
    manifest = json.loads((directory / "miso.json").read_text())
    manifest["files"][path.name]["size_bytes"] = path.stat().st_size
    (directory / "miso.json").unlink()
    (directory / "miso.json").write_text(json.dumps(manifest))
    return directory


TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NORM = "blk.0.attn_norm.weight"

CASES: dict[str, tuple[str, Change, str]] = {
    "no layers": (
        "backbone",
        put("llama.block_count", U32, 0),
        r"llama\.block_count is 0, the manifest says 2",
    ),
    "a layer more": (
        "backbone",
        put("llama.block_count", U32, 3),
        r"llama\.block_count is 3, the manifest says 2",
    ),
    "no heads": ("backbone", put("llama.attention.head_count", U32, 0), "head_count is 0, the manifest says 2"),
    "heads by layer": (
        "backbone",
        put("llama.attention.head_count", ARRAY, (U32, [2, 2])),
        "head_count is an array of 2 UINT32, the manifest says 2",
    ),
    "a truth for a number": (
        "backbone",
        put("llama.attention.head_count_kv", BOOL, True),
        "head_count_kv is True, the manifest says 1",
    ),
    "no width": ("decoder", drop("llama.embedding_length"), "embedding_length is missing or of another type"),
    "another architecture": (
        "backbone",
        put("general.architecture", TEXT, b"clip"),
        "general.architecture is clip, the manifest says llama",
    ),
    "control characters": (
        "backbone",
        put("tokenizer.ggml.model", TEXT, b"\x1b[2J"),
        r"tokenizer\.ggml\.model is '\\x1b\[2J', the manifest says none",
    ),
    "an epsilon that is no number": (
        "backbone",
        put("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
        "epsilon is nan, the manifest says 1e-05",
    ),
    "experts": ("backbone", put("llama.expert_used_count", U32, 2), r"there is llama\.expert_used_count, which llama"),
    "layers for prediction": (
        "backbone",
        put("llama.nextn_predict_layers", U32, 99),
        r"there is llama\.nextn_predict_layers, which llama\.cpp reads, and the backbone must not have",
    ),
    "rope of no type": ("backbone", put("llama.rope.scaling.type", TEXT, b"x"), r"there is llama\.rope\.scaling\.type"),
    "more files": ("decoder", put("split.count", 2, 3), r"there is split\.count"),
    "a vector of integers": ("backbone", tensor(NORM, kind=26), r"attn_norm\.weight is I32, expected F32\."),
    "a vector of another length": (
        "backbone",
        tensor(NORM, kind=1, shape=[128]),
        r"attn_norm\.weight is \[128\], expected \[64\]",
    ),
    "a matrix of another shape": (
        "decoder",
        tensor("blk.0.attn_q.weight", shape=[64, 16]),
        r"attn_q\.weight is \[16, 64\], expected \[32, 32\]",
    ),
    "a matrix of integers": (
        "embeddings",
        tensor("projection.weight", kind=25),
        r"projection\.weight is I16, expected F32, F16, Q8_0",
    ),
    "a tensor of another name": (
        "backbone",
        tensor(NORM, called="blk.7.attn_norm.weight"),
        r"blk\.0\.attn_norm\.weight is missing, expected \[64\]",
    ),
    "another kind of tokenizer": (
        "embeddings",
        put("tokenizer.ggml.model", TEXT, b"llama"),
        r"tokenizer\.ggml\.model is llama, expected gpt2",
    ),
    "another splitting": (
        "embeddings",
        put("tokenizer.ggml.pre", TEXT, b"default"),
        r"tokenizer\.ggml\.pre is default, expected llama-bpe or gpt-2",
    ),
    "a separator": (
        "embeddings",
        put("tokenizer.ggml.add_sep_token", BOOL, True),
        r"there is tokenizer\.ggml\.add_sep",
    ),
    "no tokens": ("embeddings", array(TOKENS, list.clear), r"tokens has 0 entries, the text embeddings \d+ rows"),
    "tokens without a row": (
        "embeddings",
        array(TOKENS, lambda tokens: tokens.extend(b"%d!" % n for n in range(MICRO.text_vocab))),
        rf"tokens has \d+ entries, the text embeddings {MICRO.text_vocab} rows",
    ),
    "tokens that are numbers": (
        "embeddings",
        put(TOKENS, ARRAY, (U32, [1])),
        "tokens is an array of 1 UINT32, expected",
    ),
    "fewer types": ("embeddings", array(TYPES, list.pop), r"token_type has \d+ entries, tokenizer\.ggml\.tokens \d+"),
    "types that are unsigned": (
        "embeddings",
        array(TYPES, len, U32),
        r"token_type is an array of \d+ UINT32, expected",
    ),
    "no merges": (
        "embeddings",
        drop("tokenizer.ggml.merges"),
        "merges is missing or of another type, expected an array",
    ),
    "a BOS beyond the end": (
        "embeddings",
        put("tokenizer.ggml.bos_token_id", U32, 1 << 31),
        r"bos_token_id is 2147483648, expected the id of one of \d+ tokens",
    ),
    "no EOS": ("embeddings", drop("tokenizer.ggml.eos_token_id"), "eos_token_id is missing"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_header_that_says_something_else(built: Built, tmp_path: Path, name: str) -> None:
    part, change, message = CASES[name]
    with pytest.raises(BundleError, match=rf"Micro-{part}-\S+\.gguf: .*{message}.*again") as found:
        open_level(damaged(built, tmp_path, part, change), "q4_k_m")
    assert str(found.value).isprintable()


@pytest.mark.parametrize("token", [b"", b"hello"], ids=["empty", "twice"])
def test_tokens_that_are_not_apart(built: Built, tmp_path: Path, token: bytes) -> None:
    def edit(tokens: list[bytes]) -> None:
        tokens[-1] = token or b""
        tokens[-2] = token or tokens[-2]

    directory = damaged(built, tmp_path, "embeddings", array(TOKENS, edit))
    with pytest.raises(BundleError, match=r"embeddings-Q8_0\.gguf: its tokenizer has a token twice, or an empty one"):
        MisoTTS.load(directory, "q4_k_m", threads=1, gpu_layers=0)


def test_a_tensor_too_many(built: Built, tmp_path: Path) -> None:
    def change(file: Gguf) -> None:
        file.tensors.append((b"more", [8], 0, len(file.data)))
        file.data += bytes(32)

    with pytest.raises(BundleError, match="there is a tensor more, which Micro's decoder has not"):
        open_level(damaged(built, tmp_path, "decoder", change), "q4_k_m")


@pytest.mark.parametrize("part", ["backbone", "decoder", "embeddings"])
def test_keys_that_only_inform_may_be_new(built: Built, tmp_path: Path, part: str) -> None:
    """A later version of ours may write more of them, and llama.cpp's quantiser does."""

    def change(file: Gguf) -> None:
        for name in ("miso.more", "general.url", "quantize.imatrix.file"):
            put(name, TEXT, b"x")(file)

    directory = damaged(built, tmp_path, part, change)
    level = open_level(directory, "q4_k_m")
    check_part(getattr(level, part), part, level.manifest)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["backbone", "decoder", "embeddings"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_weights_may_be_anything(built: Built, tmp_path: Path, part: str, temperature: float) -> None:
    """NaN and infinite scales: an error that names the frame, or, of the depth decoder, noise. Never a crash."""

    def change(file: Gguf) -> None:
        file.data = b"\xff" * len(file.data)

    directory = damaged(built, tmp_path, part, change)
    with MisoTTS.load(directory, "q4_k_m", threads=1, gpu_layers=0) as tts:
        options = SpeechOptions(temperature=temperature, max_seconds=0.4, retry=False)
        if part != "decoder":
            with pytest.raises(MisoError, match="frame 0: the backbone gave what is no number"):
                tts.generate_codes("Hi there.", options=options)
            return
        codes = tts.generate_codes("Hi there.", options=options)
    assert codes.shape[1] == MICRO.codebooks
    assert ((codes >= 0) & (codes < MICRO.audio_vocab)).all()
