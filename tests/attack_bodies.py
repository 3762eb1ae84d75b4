"""Hostile requests that are whole: what is wrong is in their bodies. And how a request is written down."""

import base64
import io
import json
import struct
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
import soundfile

SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"
GOOD = {"model": "tts-1", "input": "Hello.", "voice": "default", "response_format": "pcm", "seed": 1}
"""A request that is answered, whatever came before."""


@dataclass(frozen=True)
class Shot:
    """What is sent over one connection."""

    sent: bytes
    cut: bool = False
    """Hang up after it, without reading."""
    reads: int = 1 << 30
    """Bytes of the answer; then hang up."""
    pipelined: bool = False
    """More than one answer may come."""
    timeout_s: float = 20.0
    """For the answer. A server that says nothing for longer hangs."""


def request(
    method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"", length: str | None = None
) -> bytes:
    """As it goes over the wire. The connection is for it alone, unless `headers` say otherwise."""
    named = {name.lower() for name, _ in headers}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [] if "host" in named else ["Host: localhost"]
    lines += [] if "connection" in named else ["Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if (body or length) and "transfer-encoding" not in named:
        lines.append(f"Content-Length: {length or len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def speech(body: bytes, *headers: tuple[str, str]) -> bytes:
    """A request to speak."""
    return request("POST", SPEECH, [("Content-Type", "application/json"), *headers], body)


_NUMBERS = [
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "1" + "0" * 5000,
    "-1",
    "0",
    "1e-400",
    "1.5",
    "0x1",
    "01",
    "1" * 25,
]
_TEXTS = [
    '"\\ud800"',
    '"\\u0000"',
    '"' + "x" * 5000 + '"',
    '"' + "a\u0301" * 2000 + '"',
    '""',
    '"   "',
    '"\\ud83d\\ude00"',
    '"\u202e\\r\\n\\u2028"',
    '"../../../etc/passwd"',
    '"<speak>"',
    '"%s%n{0}"',
]
_OTHERS = [
    "null",
    "true",
    "[]",
    "{}",
    '{"id": 1}',
    '{"id": "../x"}',
    '{"id": "a", "b": 1}',
    "[[[[]]]]",
    '[{"a":' * 20 + "1" + "}]" * 20,
]
_NAMES = (
    "__proto__ \\ud800 input\\u0000 model input voice instructions response_format speed stream_format stream seed "
)
_NAMES += "temperature top_k speaker ref_audio ref_text"


def fields(random: Random) -> Shot:
    """A field that says what it must not."""
    name = random.choice(_NAMES.split())
    value = random.choice(random.choice([_NUMBERS, _TEXTS, _OTHERS]))
    good = [f'"{key}": {json.dumps(content)}' for key, content in GOOD.items() if random.random() < 0.97]
    parts = [*good, f'"{name}": {value}'] if random.random() < 0.5 else [f'"{name}": {value}', *good]
    return Shot(speech(("{" + ", ".join(parts) + "}").encode("utf-8")))


def bodies(random: Random) -> Shot:
    """A body that is hardly JSON."""
    good = json.dumps(GOOD).encode()
    depth = random.choice([100, 10_000, 500_000])
    flipped = bytearray(good)
    flipped[random.randrange(len(good))] = random.randrange(256)
    body = random.choice(
        [
            b"",
            b" \n",
            b"[" * depth,
            b"[" * depth + b"]" * depth,
            b'{"a":' * depth,
            b'{"input": ' + b"[" * depth,
            b"[" + b"{}," * depth + b"{}]",
            b'{"input": "' + b"x" * (1 << 20) + b'"}',
            b'{"' + b"k" * 100_000 + b'": 1}',
            b"\xef\xbb\xbf" + good,
            good.decode().encode("utf-16"),
            good.replace(b"Hello", b"\xff\xfe\xc0\x80"),
            good.replace(b"Hello", b"\xed\xa0\x80"),
            good + b"x",
            good + b"\0",
            good * 2,
            good[: random.randrange(len(good))],
            bytes(flipped),
            b"null",
            b"1" * 100_000,
            b'"' + good + b'"',
            random.randbytes(random.randrange(1, 5000)),
        ]
    )
    return Shot(speech(body))


def multipart(random: Random) -> Shot:
    """Forms that are broken, crowded, or name files elsewhere."""
    boundary = random.choice(["b", "b", "-" * 200, "\u00e4", '"', " "])

    def part(name: str, content: bytes, *, file: str | None = None, kind: str = "audio/wav") -> bytes:
        head = f'Content-Disposition: form-data; name="{name}"'
        head += "" if file is None else f'; filename="{file}"\r\nContent-Type: {kind}'
        return f"--{boundary}\r\n{head}\r\n\r\n".encode("utf-8", "surrogateescape") + content + b"\r\n"

    name = random.choice(
        ["v"] * 9 + ["../v", "a/b", "\0", "x" * 5000, "", "alloy", "\u202e", "voices.toml", ".", "\udcff"]
    )
    file = random.choice(["a.wav", "../../etc/passwd", "/etc/passwd", "a\0.wav", "C:\\x", "x" * 3000, "", "\udcff.wav"])
    clip = random.choice(
        [b"", b"RIFF", random.randbytes(3000), tone(0.5), b"\0" * 200_000, b"\r\n--b" * 5000, b"\r" * 100_000]
    )
    parts = [
        part("name", name.encode("utf-8", "surrogateescape")),
        part("text", random.choice([b"Hello."] * 3 + [b"", b"\xff\xfe", b"x" * 100_000])),
        part("consent", random.choice([b"true", b"1", b"on", b"false", b"", b"yes" * 1000])),
        part("audio_sample", clip, file=file, kind=random.choice(["audio/wav", "text/html", "", "a\0b"])),
    ]
    random.shuffle(parts)
    parts = parts[: random.choice([4, 4, 4, 3, 1, 0])]
    crowd = random.choice([0, 0, 0, 0, 3000])
    parts += [
        part(random.choice(["name", "x", "a[b][c]", "audio_sample"]), b"y", file=random.choice([None, "f"]))
        for _ in range(crowd)
    ]
    body = b"".join(parts) + random.choice([f"--{boundary}--\r\n".encode(), b"", b"--", b"\0"])
    kind = random.choice(
        [f"multipart/form-data; boundary={boundary}"] * 4
        + [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/mixed; boundary=b",
            "multipart/form-data; boundary=" + "b" * 3000,
            "application/json",
        ]
    )
    length = random.choice([None] * 6 + [str(len(body) + 5), str(max(1, len(body) // 2))])
    return Shot(request("POST", VOICES, [("Content-Type", kind)], body, length))


@cache
def tone(seconds: float) -> bytes:
    """A WAV."""
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(round(24000 * seconds)) / 10) / 4, 24000, format="WAV")
    return file.getvalue()


@cache
def bombs() -> tuple[bytes, ...]:
    """Clips of hours in a few bytes, heads that promise more than there is, and lists of other files."""
    wav, silence = tone(0.1), io.BytesIO()
    with soundfile.SoundFile(silence, "w", 8000, 1, format="FLAC") as sound:
        for _ in range(36):
            sound.write(np.zeros(8000 * 100, np.float32))
    return (
        silence.getvalue(),
        wav[:40] + struct.pack("<I", 0xFFFFFFF0) + bytes(1000),
        wav[:24] + struct.pack("<I", 1) + wav[28:],
        wav[:22] + struct.pack("<H", 65535) + wav[24:],
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        bytes(100_000),
    )


def clips(random: Random) -> Shot:
    """A clip in the request that is none, or too much."""
    text = random.choice(["Hello.", "", "x" * 5000])
    clip = random.choice([*bombs(), tone(0.5), random.randbytes(2000), b""])
    code = base64.b64encode(clip).decode()
    audio = random.choice(
        [
            code,
            code,
            "data:audio/wav;base64," + code,
            "data:,",
            "data:" + ";" * 5000,
            "file:///etc/passwd",
            "http://127.0.0.1:1/",
            "/etc/passwd",
            code[:-1] + "!",
            "=" * 1000,
            "\u00e4" + code,
        ]
    )
    return Shot(speech(json.dumps(GOOD | {"ref_audio": audio, "ref_text": text}).encode()))
