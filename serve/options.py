"""What an operator asks of the server, once: addresses, keys and limits. How one request is spoken it asks itself."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..core.checked import check, flag, number, or_none, whole

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST = (1 << 31) - 1
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")
"""As browsers send it: they compare nothing, the server does, letter by letter."""


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Raises:
        ValueError: On a value that makes no sense, or an address that others can reach without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens; none: nobody needs one."""
    insecure: bool = False
    """Serve an address that others can reach without a key."""
    cors_origins: tuple[str, ...] = ()
    """Whose web pages may ask; "*" is everybody's."""
    voices: Path | None = None
    """Directory of uploaded voices and of the operator's `voices.toml`. None: none are kept."""
    streams: int = 1
    """Requests that are spoken together: as many as the engine has sequences."""
    queue: int = 64
    """Requests that may wait for that."""
    most_characters: int = 4096
    """Of one request's input. Source of the default: OpenAI's schema."""
    most_seconds: float = 600.0
    """Of speech for one request; it ends there."""
    most_voices: int = 100
    """Uploaded ones."""
    most_upload_bytes: int = 10 << 20
    """Of a clip. Source of the default: OpenAI's schema."""
    most_backlog_bytes: int = 256 << 20
    """Of sound that is made and not yet taken, of all requests together: 93 minutes of PCM. When there is as much,
    what is made for clients that are behind is held back."""
    most_connections: int = 512
    header_timeout_s: float = 10.0
    """For the head of a request to arrive."""
    body_timeout_s: float = 30.0
    """For its body."""
    reader_timeout_s: float = 60.0
    """A client that takes nothing for so long is hung up on."""
    grace_s: float = 30.0
    """When it is to stop: for what is being spoken, which is cut then."""
    idle_unload_s: float | None = None
    """Unload the model when nobody has spoken for so long; the next request loads it. None: never."""
    log_text: bool = False
    """Write what is spoken to the log."""

    def __post_init__(self) -> None:
        check(
            self,
            {
                "port": whole(0, 65535),
                "insecure": flag(),
                "streams": whole(1, 1024),
                "queue": whole(0, 1 << 16),
                "most_characters": whole(1, 1 << 20),
                "most_seconds": number(1, 24 * 3600),
                "most_voices": whole(0, 1 << 20),
                "most_upload_bytes": whole(1 << 10, 1 << 30),
                "most_backlog_bytes": whole(1 << 10, 1 << 40),
                "most_connections": whole(1, 1 << 16),
                "header_timeout_s": number(0.05, 3600),
                "body_timeout_s": number(0.05, 3600),
                "reader_timeout_s": number(0.05, 24 * 3600),
                "grace_s": number(0, 24 * 3600),
                "idle_unload_s": or_none(number(0.05, _MOST)),
                "log_text": flag(),
            },
        )
        if wrong := next((one for one in self.cors_origins if not _ORIGIN.fullmatch(one)), None):
            raise ValueError(f"{wrong!r} is no origin: expected one like https://example.org, without a path, or *")
        if not (self.is_loopback or self.api_keys or self.insecure):
            raise ValueError(
                f"{self.host} can be reached by others: set a key (--api-key-file or MISO_API_KEY), or say --insecure"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach it."""
        return self.host in _LOOPBACK

    @property
    def most_body_bytes(self) -> int:
        """Of any request: a clip in base64 takes a third more, and the rest of it little."""
        return math.ceil(self.most_upload_bytes * 4 / 3) + (64 << 10)
