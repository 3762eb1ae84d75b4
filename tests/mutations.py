"""Damage for files: flipped bytes, edges in numbers, and changes that know JSON, so that they get past its parser.

All of it is drawn from a `random.Random`: a seed and a file make one damaged file. GGUF: `gguf_mutations.py`.
"""

import json
from random import Random
from typing import Any

EDGES = (0, 1, 0xFF, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
"""What lengths, counts and offsets are read wrong at; -1 is the last of them."""

_TEXTS = (
    "",
    "x" * 5000,
    "../../outside",
    "/tmp/outside",
    "a\x1b[2J",
    "a\x00b",
    "\ud800",
    "{text}" * 9,
    "{text.x}",
    "é",
)
_STRANGE: tuple[Any, ...] = (None, True, [], {}, -1, 0.5, -0.0, 1e308, 10**400, float("nan"), *EDGES, *_TEXTS)


def flip_bytes(content: bytes, random: Random, head: int) -> bytes:
    """Some bytes changed, removed, added or copied; most of it in the first `head`."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        end = min(head, len(data)) if random.random() < 0.8 else len(data)
        _BYTES[random.randrange(len(_BYTES))](data, random.randrange(max(1, end)), random)
    return bytes(data)


def _flip(data: bytearray, at: int, random: Random) -> None:
    if data:
        data[at % len(data)] ^= 1 << random.randrange(8)


def _set(data: bytearray, at: int, random: Random) -> None:
    if data:
        data[at % len(data)] = random.choice((0, 0xFF, 0x7F, 0x80, random.randrange(256)))


def _edge(data: bytearray, at: int, random: Random) -> None:
    width = random.choice((1, 2, 4, 8, 8))
    data[at : at + width] = (random.choice(EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _truncate(data: bytearray, at: int, _random: Random) -> None:
    del data[at:]


def _extend(data: bytearray, _at: int, random: Random) -> None:
    data += random.choice((bytes(1), bytes(4096), random.randbytes(33)))


def _cut(data: bytearray, at: int, random: Random) -> None:
    del data[at : at + random.choice((1, 2, 8, 100))]


def _splice(data: bytearray, at: int, random: Random) -> None:
    source, count = random.randrange(max(1, len(data))), random.choice((1, 4, 8, 64))
    data[at : at + random.choice((0, count))] = data[source : source + count]


def _fill(data: bytearray, at: int, random: Random) -> None:
    count = min(random.choice((4, 32, 1000)), len(data) - at)
    data[at : at + count] = bytes([random.choice((0, 0xFF, 0x7F))]) * count


_BYTES = (_flip, _flip, _set, _edge, _edge, _truncate, _extend, _cut, _splice, _fill)


class Pairs(list[tuple[str, Any]]):
    """A JSON object that may name a key twice."""


class Written(bytes):
    """A part of a document as it is to stand there."""


def parse_json(text: bytes) -> Any:
    """JSON with its objects as `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def json_text(node: Any) -> bytes:
    """The inverse of `parse_json`, which also writes what is no valid JSON: NaN, and keys named twice."""
    if isinstance(node, Written):
        return node
    if isinstance(node, Pairs):
        return b"{" + b",".join(json_text(key) + b":" + json_text(value) for key, value in node) + b"}"
    if isinstance(node, list):
        return b"[" + b",".join(map(json_text, node)) + b"]"
    if isinstance(node, int) and not isinstance(node, bool):
        return str(node).encode()
    return json.dumps(node).encode()


def damage_json(root: Any, random: Random) -> bytes:
    """Some places of a document, changed: its types, numbers, names, or how deep it is."""
    for _ in range(random.choice((1, 1, 2, 3))):
        holders = _holders(root)
        if not holders:
            break
        holder = random.choice(holders)
        at = random.randrange(len(holder))
        key, value = holder[at] if isinstance(holder, Pairs) else ("", holder[at])
        kind = random.randrange(9)
        if kind < 4:
            value = _strange(value, random)
        elif kind == 4:
            key = random.choice((*_TEXTS, key + "\n", "__metadata__"))
        elif kind == 5:
            other = random.choice(holders)
            entry = random.choice(other)
            value = Written(json_text(entry[1] if isinstance(other, Pairs) else entry))
        elif kind == 6:
            del holder[at]
            continue
        else:
            holder.insert(random.randrange(len(holder) + 1), holder[at])
            continue
        holder[at] = (key, value) if isinstance(holder, Pairs) else value
    text = json_text(root)
    return text if random.random() < 0.9 else flip_bytes(text, random, len(text))


def _strange(value: Any, random: Random) -> Any:
    if random.random() < 0.03:
        depth = random.choice((50, 900, 100_000))
        return Written(b"[" * depth + json_text(value) + b"]" * depth)
    near = [value + 1, value - 1, value * 2, -value, str(value)] if type(value) in (int, float) else [value, [value]]
    return random.choice((*near, *_STRANGE))


def _holders(node: Any) -> list[Any]:
    """The objects and lists of a document that have something in them."""
    children = [value for _, value in node] if isinstance(node, Pairs) else node if isinstance(node, list) else []
    return ([node] if children else []) + [holder for child in children for holder in _holders(child)]


def damage_safetensors(content: bytes, random: Random) -> bytes:
    """Its header changed as JSON, with the right length before it."""
    length = int.from_bytes(content[:8], "little")
    header = damage_json(parse_json(content[8 : 8 + length]), random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
