"""huggingface-hub as this package meets it: imported when it is needed, its errors in one line with a remedy."""

import errno
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..core.errors import CheckpointError, HubError
from ..core.printable import printable

TIMEOUT_S = 20
"""For an answer's first byte."""
_CHUNK_BYTES = 64 << 10
_DISK = (errno.EFBIG, errno.EIO, errno.EROFS)
_LONGEST = 200
"""Of what a library says of an error."""

T = TypeVar("T")


def library(what: str = "the Hugging Face hub") -> Any:
    """The module. Raises `HubError` about `what` that names the extra where it is not installed."""
    try:
        hub = importlib.import_module("huggingface_hub")
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        raise HubError(
            f"{what}: needs huggingface-hub: pip install 'miso-gguf[hub]', or pass a file or directory on this machine"
        ) from error
    # What it would tell the hub of the program that runs it, it asks for and keeps in a file first.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return hub


def calling(what: str, remedy: str, call: Callable[[], T]) -> T:
    """`call()`; whatever the library or the disk raises becomes a `HubError` about `what` that ends in `remedy`."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:  # they differ between versions of the library, and of what it talks HTTP with
        raise HubError(f"{what}: {_reason(errors, error)}{remedy}") from error


def is_offline(error: BaseException) -> bool:
    """Whether the library was told not to ask the hub."""
    return type(error).__name__ == "OfflineModeIsEnabled"


def _reason(errors: Any, error: Exception) -> str:
    """What went wrong and what helps against it, up to where the caller's own remedy follows."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    has_token = response is not None and "authorization" in response.request.headers
    # Of the disk: errors of the network name no file, those of writing to an open one neither.
    is_disk = isinstance(error, OSError) and response is None and bool(error.filename or error.errno in _DISK)
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    file = getattr(error, "filename", None) or "the hub's cache"
    cases: tuple[tuple[bool, str], ...] = (
        (
            isinstance(error, errors.GatedRepoError),
            "the repository is gated: accept its terms and run `hf auth login`, or ",
        ),
        (
            (status == 401 and has_token) or isinstance(error, UnicodeError),
            "the hub refuses the token: run `hf auth login` again, unset HF_TOKEN, or ",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            "no such repository on the hub (or it is private): check the name, run `hf auth login`, or ",
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            "the repository has no such branch, tag or commit: pass one that it has, or ",
        ),
        (isinstance(error, errors.EntryNotFoundError) and status is not None, "the hub has no such file: "),
        (status == 404, "the hub has nothing of that name (404): check it, or "),
        (status == 403, "the hub forbids it: check what your token may read, or "),
        (status == 429, "the hub has had too many requests from here (429): wait some minutes, or "),
        (is_offline(error), "the hub is not asked, as HF_HUB_OFFLINE is set: unset it, or "),
        (is_full, f"the disk is full ({file}): free some space, set HF_HOME to a folder on another disk, or "),
        (
            is_disk,
            f"{file} cannot be read or written ({getattr(error, 'strerror', '')}): "
            "set HF_HOME to a folder that can, or ",
        ),
    )
    said = next((str(getattr(error, "strerror", None) or line) for line in str(error).splitlines() if line.strip()), "")
    said = f"it answers {status}" if status is not None else said or type(error).__name__
    otherwise = f"cannot be fetched, the hub is out of reach ({printable(said)[:_LONGEST]}): "
    return next((text for applies, text in cases if applies), otherwise)


def read_range(url: str, what: str, start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of the file at `url`, `what` in messages. Raises `HubError` if they do not come.

    The library's own `HfFileSystem` reads ranges too, and takes in the whole file from a server (a proxy, a mirror)
    that sends that instead. Here such a server is cut off behind the range, or at once if the range lies far inside:
    nobody waits for gigabytes that are thrown away.
    """
    result = bytearray()
    with streamed(url, f"bytes={start}-{stop - 1}") as (status, part, chunks):
        is_part = status == 206
        if is_part and not part.startswith(f"bytes {start}-"):
            raise HubError(f"{what}: the server sent another part ({part!r}) than the one from byte {start} on")
        skipped = 0 if is_part else start
        if skipped > _CHUNK_BYTES:
            raise HubError(f"{what}: the server gives no parts of files: fetch the whole file and pass it")
        end = skipped + stop - start
        for chunk in chunks:
            result += chunk
            # A part ends by itself, and then the connection serves the next request too.
            if len(result) > end or (len(result) == end and not is_part):
                break
    if len(result) < end:
        raise HubError(f"{what}: {len(result)} bytes came of the {end} from byte {start} on: try again")
    return bytes(result[skipped:end])


@contextmanager
def streamed(url: str, part: str | None = None) -> Iterator[tuple[int, str, Iterator[bytes]]]:
    """The answer to a GET: its status, which part of the file it says it is, and its bytes as they come."""
    hub = library()
    session = hub.utils.get_session()
    # Unpacked by nobody, so that a byte is a byte of the file.
    headers = {**hub.utils.build_hf_headers(), "Accept-Encoding": "identity", **({"Range": part} if part else {})}
    # A session of requests before huggingface-hub 1 (`stream` is an option there), a client of httpx from then on.
    is_requests = isinstance(session.stream, bool)
    options: dict[str, Any] = {"headers": headers, "timeout": TIMEOUT_S}
    answer = session.get(url, stream=True, **options) if is_requests else session.stream("GET", url, **options)
    with answer as response:
        if response.status_code >= 400:
            _ = response.content if is_requests else response.read()  # the error's text, which its exception shows
        hub.utils.hf_raise_for_status(response)
        chunks = response.iter_content(_CHUNK_BYTES) if is_requests else response.iter_bytes(_CHUNK_BYTES)
        yield response.status_code, response.headers.get("Content-Range", ""), chunks
