"""Damage for GGUF files that are well formed else: keys, arrays, tensors and weights. See `mutations.py`."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from mutations import EDGES

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Of GGUF's types of values. Source: ggml's docs/gguf.md."""
_TEXT, _ARRAY = 8, 9

_READ_BY_LLAMA: tuple[tuple[str, int, Any], ...] = (
    ("general.alignment", 4, 64),
    ("split.count", 2, 3),
    ("llama.expert_count", 4, 8),
    ("llama.expert_used_count", 4, 2),
    ("llama.expert_group_count", 4, 1),
    ("llama.nextn_predict_layers", 4, 99),
    ("llama.rope.scaling.type", _TEXT, b"nonsense"),
    ("llama.rope.scaling.factor", 6, 0.0),
    ("llama.attention.sliding_window", 4, 1),
    ("llama.attention.causal", 7, False),
    ("llama.pooling_type", 4, 77),
    ("llama.embedding_length_out", 4, 1),
    ("tokenizer.ggml.scores", _ARRAY, (6, [0.0])),
    ("tokenizer.ggml.model", _TEXT, b"llama"),
    ("tokenizer.ggml.pre", _TEXT, b"default"),
    ("tokenizer.ggml.add_bos_token", 7, True),
    ("tokenizer.ggml.add_sep_token", 7, True),
    ("tokenizer.ggml.seperator_token_id", 4, 1 << 30),
)
"""Keys that llama.cpp looks for and our files lack, or hold with another value."""


@dataclass
class Gguf:
    """A GGUF file in pieces, which need not fit together."""

    keys: list[tuple[bytes, int, Any]] = field(default_factory=list)
    """Name, type and value; of an array the value is the type and the values."""
    tensors: list[tuple[bytes, list[int], int, int]] = field(default_factory=list)
    """Name, dimensions, type and offset."""
    data: bytes = b""
    counts: tuple[int, int] | None = None
    """Of tensors and keys as the file claims them, where that is not the truth."""

    @classmethod
    def parse(cls, content: bytes) -> "Gguf":
        """The pieces of a whole file."""
        reader = _Reader(content)
        tensors, keys = reader.unpack("QQ")
        found = cls()
        for _ in range(keys):
            name, kind = reader.text(), *reader.unpack("I")
            found.keys.append((name, kind, reader.value(kind)))
        for _ in range(tensors):
            name, dims = reader.text(), *reader.unpack("I")
            shape = list(reader.unpack(f"{dims}Q"))
            found.tensors.append((name, shape, *reader.unpack("IQ")))
        found.data = content[reader.at + -reader.at % 32 :]
        return found

    def dump(self) -> bytes:
        """The file."""
        counts = self.counts or (len(self.tensors), len(self.keys))
        out = b"GGUF" + struct.pack("<IQQ", 3, *counts)
        for name, kind, value in self.keys:
            out += _text(name) + struct.pack("<I", kind) + _packed(kind, value)
        for name, shape, kind, offset in self.tensors:
            out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        return out + bytes(-len(out) % 32) + self.data


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 8

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.content, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> bytes:
        (length,) = self.unpack("Q")
        self.at += length
        return self.content[self.at - length : self.at]

    def value(self, kind: int) -> Any:
        if kind == _ARRAY:
            inner, count = self.unpack("IQ")
            return inner, [self.value(inner) for _ in range(count)]
        return self.text() if kind == _TEXT else self.unpack(_FORMATS[kind])[0]


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _packed(kind: int, value: Any) -> bytes:
    if kind == _ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(_packed(inner, each) for each in values)
    return _text(value) if kind == _TEXT else struct.pack("<" + _FORMATS[kind], value)


def damage_gguf(content: bytes, random: Random) -> bytes:
    """Keys, arrays, tensors or data changed, in a file that is else well formed."""
    file = Gguf.parse(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change = random.choice(_GGUF)
        pool: list[Any] = file.keys if change in _KEY_CHANGES else file.tensors
        if pool:
            change(file, random.randrange(len(pool)), random)
    return file.dump()


def _key_value(file: Gguf, at: int, random: Random) -> None:
    name, kind, value = file.keys[at]
    if kind == _ARRAY:
        inner, values = value
        file.keys[at] = (name, kind, _other_array(inner, values, random))
    elif kind == _TEXT:
        texts = (b"", b"llama", b"none", b"x" * 70000, b"a\x00b", b"\xff\xfe", b"../x", value + b"x", value[:-1])
        file.keys[at] = (name, kind, random.choice(texts))
    elif kind == 7:
        file.keys[at] = (name, kind, not value)
    elif kind in (6, 12):
        floats = (0.0, -1.0, float("inf"), float("nan"), 1e-38, 1e30, value * 2)
        file.keys[at] = (name, kind, random.choice(floats))
    else:
        numbers = (*EDGES, value + 1, max(value, 1) - 1, value * 2)
        file.keys[at] = (name, kind, random.choice(numbers) & ((1 << 8 * struct.calcsize(_FORMATS[kind]) - 1) - 1))


def _other_array(inner: int, values: list[Any], random: Random) -> tuple[int, list[Any]]:
    values = [*values]
    change, at = random.randrange(6), random.randrange(max(1, len(values)))
    if change == 0 or not values:
        return random.choice((4, 5, 6, _TEXT)), []
    if change == 1:
        return inner, values[:at]
    if change == 2:
        values[at] = random.choice(values)
    elif change == 3:
        values.append(values[at])
    elif change == 4 and inner == _TEXT:
        values[at] = random.choice((b"", b"\xff\xfe\x80", b"\xed\xa0\x80", b"a b c", b" ", b"x" * 70000, b"\x00"))
    elif inner == _TEXT:
        return 5, list(range(len(values)))
    else:
        return (4, [each & 0xFFFFFFFF for each in values]) if inner == 5 else (6, [0.0] * len(values))
    return inner, values


def _key_type(file: Gguf, at: int, random: Random) -> None:
    name, _, _ = file.keys[at]
    samples = {_TEXT: b"1", _ARRAY: (4, [1]), 6: 1.0, 7: True, 12: 1.0}
    kind = random.choice((*_FORMATS, _TEXT, _ARRAY))
    file.keys[at] = (name, kind, samples.get(kind, 1))


def _key_name(file: Gguf, at: int, random: Random) -> None:
    name, kind, value = file.keys[at]
    names = (name + b"x", b"", b"a\x00b", b"llama.x", random.choice(file.keys)[0], b"\xff")
    file.keys[at] = (random.choice(names), kind, value)


def _key_drop(file: Gguf, at: int, _random: Random) -> None:
    del file.keys[at]


def _key_add(file: Gguf, at: int, random: Random) -> None:
    name, kind, value = random.choice(_READ_BY_LLAMA)
    file.keys = [key for key in file.keys if key[0] != name.encode()]
    file.keys.insert(at, (name.encode(), kind, value))


def _counts(file: Gguf, _at: int, random: Random) -> None:
    counts = [len(file.tensors), len(file.keys)]
    counts[random.randrange(2)] = random.choice((*EDGES, counts[0] + 1, counts[1] - 1))
    file.counts = (counts[0], counts[1])


def _tensor_name(file: Gguf, at: int, random: Random) -> None:
    name, *rest = file.tensors[at]
    names = (name + b"x", b"", b"a\x00b", b"x" * 63, b"blk.999.attn_q.weight", random.choice(file.tensors)[0])
    file.tensors[at] = (random.choice(names), *rest)  # type: ignore[assignment]


def _tensor_shape(file: Gguf, at: int, random: Random) -> None:
    name, shape, kind, offset = file.tensors[at]
    other = [*shape]
    axis = random.randrange(max(1, len(other)))
    if other:
        other[axis] = random.choice((*EDGES, other[axis] + 1, other[axis] * 2, max(1, other[axis] // 2)))
    halved = [n * 2 if axis == 0 else n // 2 for axis, n in enumerate(shape)]
    choices: tuple[list[int], ...] = (other, shape[::-1], [*shape, 1], [1, *shape], shape[:1], [], halved)
    file.tensors[at] = (name, random.choice(choices), kind, offset)


def _tensor_type(file: Gguf, at: int, random: Random) -> None:
    name, shape, _, offset = file.tensors[at]
    file.tensors[at] = (name, shape, random.choice((*range(42), 1 << 31, (1 << 32) - 1)), offset)


def _tensor_offset(file: Gguf, at: int, random: Random) -> None:
    name, shape, kind, offset = file.tensors[at]
    offsets = (*EDGES, offset + 32, offset + 1, max(32, offset) - 32)
    file.tensors[at] = (name, shape, kind, random.choice(offsets))


def _tensor_drop(file: Gguf, at: int, _random: Random) -> None:
    del file.tensors[at]


def _tensor_swap(file: Gguf, at: int, random: Random) -> None:
    """Two tensors trade names: often of other shapes."""
    other = random.randrange(len(file.tensors))
    first, second = file.tensors[at], file.tensors[other]
    file.tensors[at], file.tensors[other] = (second[0], *first[1:]), (first[0], *second[1:])


def _data(file: Gguf, _at: int, random: Random) -> None:
    """Any bytes are weights: also those that are NaN, and infinite scales."""
    data = bytearray(file.data)
    for _ in range(random.choice((1, 4))):
        start = random.randrange(max(1, len(data)))
        count = min(random.choice((2, 100, 10000, len(data))), len(data) - start)
        data[start : start + count] = random.choice((b"\xff" * count, b"\x7f" * count, random.randbytes(count)))
    file.data = bytes(data)


_KEY_CHANGES: tuple[Callable[[Gguf, int, Random], None], ...] = (
    _key_value,
    _key_value,
    _key_value,
    _key_type,
    _key_name,
    _key_drop,
    _key_add,
    _key_add,
)
_GGUF = (
    *_KEY_CHANGES,
    _counts,
    _tensor_name,
    _tensor_shape,
    _tensor_shape,
    _tensor_type,
    _tensor_type,
    _tensor_offset,
    _tensor_drop,
    _tensor_swap,
    _data,
    _data,
)
