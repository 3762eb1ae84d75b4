"""huggingface-hub as this package meets it: imported when it is needed, its errors in one line with a remedy."""

import errno
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..core.errors import CheckpointError

TIMEOUT_S = 20
"""For an answer's first byte."""
_CHUNK_BYTES = 64 << 10

T = TypeVar("T")


def library() -> Any:
    """The module. Raises `CheckpointError` that names the extra where it is not installed."""
    try:
        hub = importlib.import_module("huggingface_hub")
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        raise CheckpointError(
            "fetching from the Hugging Face hub needs huggingface-hub: pip install 'miso-gguf[hub]', "
            "or pass a local checkpoint"
        ) from error
    # What it would tell the hub of the program that runs it, it asks for and keeps in a file first.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return hub


def calling(what: str, remedy: str, call: Callable[[], T]) -> T:
    """`call()`; whatever the library raises becomes a `CheckpointError` about `what` that ends in `remedy`."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return call()
    except CheckpointError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{what}: the repository is gated: accept its terms and run `hf auth login`, or {remedy}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{what}: no such repository on the hub (or it is private): {remedy}") from error
    except Exception as error:  # connection errors differ between versions of the library
        # "Local": not in the cache, and the hub did not answer.
        is_local = isinstance(error, errors.LocalEntryNotFoundError)
        if isinstance(error, errors.EntryNotFoundError) and not is_local:
            raise CheckpointError(f"{what}: the hub has no such file: {remedy}") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"{what}: the disk is full ({error.filename or 'the cache of the hub'})") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what}: cannot be fetched, the hub is out of reach ({reason}): {remedy}") from error


def read_range(url: str, what: str, start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of the file at `url`, `what` in messages. Raises `CheckpointError` if they do not come.

    The library's own `HfFileSystem` reads ranges too, and takes in the whole file from a server (a proxy, a mirror)
    that sends that instead. Here such a server is cut off behind the range, or at once if the range lies far inside:
    nobody waits for gigabytes that are thrown away.
    """
    hub = library()
    # Unpacked by nobody, so that a byte is a byte of the file.
    wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    result = bytearray()
    with _streamed(hub, url, {**hub.utils.build_hf_headers(), **wanted}) as (status, part, chunks):
        is_part = status == 206
        if is_part and not part.startswith(f"bytes {start}-"):
            raise CheckpointError(f"{what}: the server sent another part ({part!r}) than the one from byte {start} on")
        skipped = 0 if is_part else start
        if skipped > _CHUNK_BYTES:
            raise CheckpointError(f"{what}: the server gives no parts of files: fetch the whole file and pass it")
        end = skipped + stop - start
        for chunk in chunks:
            result += chunk
            # A part ends by itself, and then the connection serves the next request too.
            if len(result) > end or (len(result) == end and not is_part):
                break
    if len(result) < end:
        raise CheckpointError(f"{what}: {len(result)} bytes came of the {end} from byte {start} on: try again")
    return bytes(result[skipped:end])


@contextmanager
def _streamed(hub: Any, url: str, headers: dict[str, str]) -> Iterator[tuple[int, str, Iterator[bytes]]]:
    """The answer to a GET: its status, which part of the file it says it is, and its bytes as they come."""
    session = hub.utils.get_session()
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
