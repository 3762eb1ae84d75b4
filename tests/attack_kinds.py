"""Hostile requests, a row for each kind; here those that are wrong outside their bodies, or end too early."""

import json
from collections.abc import Callable
from random import Random

from attack_bodies import GOOD, SPEECH, VOICES, Shot, bodies, clips, fields, multipart, request, speech

_HEADERS: list[Callable[[Random], tuple[str, str]]] = [
    lambda r: (
        "Content-Type",
        r.choice(
            [
                "",
                "text/plain",
                "application/json; charset=utf-7",
                "a/b/c",
                ";" * 5000,
                "multipart/form-data",
                "application/x-www-form-urlencoded",
                "\u00e4/\u00f6",
            ]
        ),
    ),
    lambda r: ("Content-Encoding", r.choice(["gzip", "br", "identity, gzip", "", "x" * 500])),
    lambda r: (
        "Host",
        r.choice(["evil.example", "localhost:99999999", "[", "", "localhost@evil.example", "127.0.0.1\u00e4"]),
    ),
    lambda r: ("Origin", r.choice(["null", "https://evil.example", "http://localhost", "x" * 3000, "\u00e4"])),
    lambda r: ("Authorization", r.choice(["Bearer", "Bearer x", "Basic Og==", "\u00fc" * 100, "x" * 3000])),
    lambda r: ("X-Request-Id", r.choice(["x" * 3000, "a b", "\u00e4", "$(id)", "<script>"])),
    lambda r: ("Expect", r.choice(["100-continue", "200-ok", ""])),
    lambda r: ("Transfer-Encoding", r.choice(["chunked", "gzip", "chunked, chunked", "identity", "xchunked"])),
    lambda r: ("Connection", r.choice(["upgrade", "keep-alive, close", "x", "close, Host"])),
    lambda r: ("Upgrade", r.choice(["websocket", "h2c"])),
    lambda r: ("Range", r.choice(["bytes=0-1", "bytes=-1,-1,-1" + ",0-" * 500])),
    lambda r: ("Accept", r.choice(["*/*;q=x", "," * 4000, "audio/wav"])),
    lambda r: ("Cookie", "=" * r.randrange(1, 8000)),
    lambda r: ("X-Forwarded-For", r.choice(["127.0.0.1", "::1, " * 500])),
    lambda r: (r.choice(["", " ", "A B", "A\x00", "\u00e4", ":", "a" * 3000]), "1"),
    lambda r: ("A", r.choice(["\x00", "\x7f", "a\rb", "\x1b[2J", "x" * 20_000])),
]


def headers(random: Random) -> Shot:
    """Headers that mislead, overflow or are none."""
    chosen = [random.choice(_HEADERS)(random) for _ in range(random.randrange(1, 4))]
    if random.random() < 0.05:
        chosen += [(f"A{number}", "b") for number in range(random.choice([100, 2000]))]
    method = random.choice(
        ["GET", "POST", "POST", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "X" * 500, "P\x00"]
    )
    path = random.choice([SPEECH, SPEECH, "/health", "/metrics", VOICES, "*", "/openapi.json"])
    body = json.dumps(GOOD | {"input": ""}).encode() if method == "POST" else b""
    if not any(name == "Content-Type" for name, _ in chosen):
        chosen.append(("Content-Type", "application/json"))
    return Shot(request(method, path, chosen, body))


def paths(random: Random) -> Shot:
    """Ways out of the paths that there are."""
    step = random.choice(
        ["../", "..%2f", "%2e%2e/", "..\\", "..%5c", "%252e%252e/", "....//", "..%00/", "%c0%ae%c0%ae/", "./"]
    )
    end = random.choice(
        ["etc/passwd", "voices.toml", "", "x.safetensors", "%00", "%ff", "a" * 5000, "%", "%zz", "?x=%00&y[]=1"]
    )
    start = random.choice(
        [VOICES + "/", "/v1/models/", "/", "//", "http://evil.example/", SPEECH + "/", "/\u00e4/", "/static/"]
    )
    method = random.choice(["GET", "DELETE", "DELETE", "POST", "PUT"])
    return Shot(request(method, start + step * random.randrange(6) + end, []))


def garbage(random: Random) -> Shot:
    """What is no HTTP."""
    good = speech(json.dumps(GOOD).encode())
    flipped = bytearray(request("GET", "/health", []))
    for _ in range(random.randrange(1, 4)):
        flipped[random.randrange(len(flipped))] = random.randrange(256)
    head = good.partition(b"\r\n\r\n")[0]
    chunked = head.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX") + b"\r\n\r\n"
    sent = random.choice(
        [
            random.randbytes(random.randrange(1, 3000)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.randbytes(50),
            b"\r\n" * random.randrange(1, 3000),
            b"\0" * 1000,
            b"GET /health\r\n\r\n",
            b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\nHost: localhost\n\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n",
            bytes(flipped),
            chunked
            + random.choice(
                [
                    b"zz\r\n",
                    b"-1\r\n",
                    b"ffffffffffffffffffff\r\n",
                    b"5\r\nab",
                    b"1;" + b"e" * 20_000,
                    b"2\r\n{}\r\n0\r\nA: b\r\n\r\n",
                ]
            ),
        ]
    )
    return Shot(sent)


def pipelined(random: Random) -> Shot:
    """Many requests at once, of any kind, and the last one not whole."""
    parts = [
        random.choice(
            [
                request("GET", "/health", [("Connection", "keep-alive")]),
                request("GET", "/nowhere", [("Connection", "keep-alive")]),
                speech(b"{}", ("Connection", "keep-alive")),
            ]
        )
        for _ in range(random.randrange(2, 100))
    ]
    if random.random() < 0.3:
        parts.insert(random.randrange(len(parts)), garbage(random).sent)
    last = request("GET", "/health", [])
    return Shot(b"".join([*parts, last if random.random() < 0.9 else last[:-2]]), pipelined=True)


def hang_ups(random: Random) -> Shot:
    """A good request that is given up anywhere, or whose answer is."""
    good = speech(json.dumps(GOOD).encode())
    if random.random() < 0.8:
        return Shot(good[: random.randrange(len(good) + 1)], cut=True)
    return Shot(good, reads=random.randrange(30_000))


def slow(random: Random) -> Shot:
    """Heads and bodies that do not come."""
    good = speech(json.dumps(GOOD).encode())
    return Shot(good[: random.randrange(1, len(good))])


def large(random: Random) -> Shot:
    """More than is taken."""
    size = random.choice([1 << 20, 3 << 20])
    if random.random() < 0.5:
        return Shot(speech(b'{"input": "' + b"x" * size))
    head = request("POST", random.choice([SPEECH, VOICES, "/nowhere"]), [("Transfer-Encoding", "chunked")])
    return Shot(head + b"10000\r\n" + (bytes(65536) + b"\r\n10000\r\n") * (size >> 16))


KINDS: dict[str, tuple[Callable[[Random], Shot], int]] = {
    "fields": (fields, 8),
    "bodies": (bodies, 8),
    "headers": (headers, 8),
    "paths": (paths, 4),
    "multipart": (multipart, 8),
    "clips": (clips, 2),
    "garbage": (garbage, 6),
    "pipelined": (pipelined, 2),
    "hang-ups": (hang_ups, 6),
    "slow": (slow, 2),
    "large": (large, 1),
}
"""By name: what makes one, and how often it comes among the others."""


def shot(seed: int, number: int) -> tuple[str, Shot]:
    """The hostile request of this number; the first are one of each kind."""
    random = Random(f"{seed} {number}")
    names = list(KINDS)
    name = names[number] if number < len(names) else random.choices(names, [weight for _, weight in KINDS.values()])[0]
    return name, KINDS[name][0](random)
