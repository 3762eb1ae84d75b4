"""huggingface-hub as this package meets it: imported when it is needed, its errors in one line with a remedy."""

import errno
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..models.errors import CheckpointError

TIMEOUT_S = 20
"""For an answer's first byte."""
_CHUNK_BYTES = 64 << 10

T = TypeVar("T")


def library() -> Any:
    """The module. Raises `CheckpointError` that names the extra where it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            "fetching from the Hugging Face hub needs huggingface-hub: pip install 'miso-gguf[hub]', "
            "or pass a local checkpoint"
        ) from error


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


def read_range(repo: str, name: str, start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of a file of a repository. Raises whatever the library raises.

    No more than these are asked for. A server that sends the file from its beginning all the same is cut off behind
    them, or at once if they lie far inside: nobody waits for gigabytes that are thrown away.
    """
    hub = library()
    # Unpacked by nobody, so that a byte is a byte of the file.
    wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    headers = {**hub.utils.build_hf_headers(), **wanted}
    with _streamed(hub, hub.hf_hub_url(repo, name), headers) as (is_part, chunks):
        skipped = 0 if is_part else start
        if skipped > _CHUNK_BYTES:
            raise OSError("the server sends whole files only")
        result = bytearray()
        for chunk in chunks:
            result += chunk
            if not is_part and len(result) >= skipped + stop - start:
                break
    part = bytes(result[skipped : skipped + stop - start])
    if len(part) < stop - start:
        raise OSError(f"{len(part)} bytes came of the {stop - start} from {start} on")
    return part


@contextmanager
def _streamed(hub: Any, url: str, headers: dict[str, str]) -> Iterator[tuple[bool, Iterator[bytes]]]:
    """Whether the answer to a GET is a part of the file, and its bytes as they come."""
    session = hub.utils.get_session()
    is_httpx = callable(session.stream)  # from huggingface-hub 1 on; before, it is a session of requests
    options: dict[str, Any] = {"headers": headers, "timeout": TIMEOUT_S}
    if is_httpx:
        options["follow_redirects"] = True
    with session.stream("GET", url, **options) if is_httpx else session.get(url, stream=True, **options) as response:
        if response.status_code >= 400:
            _ = response.read() if is_httpx else response.content  # the error's text, which its exception shows
        hub.utils.hf_raise_for_status(response)
        chunks = response.iter_bytes(_CHUNK_BYTES) if is_httpx else response.iter_content(_CHUNK_BYTES)
        yield response.status_code == 206, chunks
