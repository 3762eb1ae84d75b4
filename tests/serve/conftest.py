"""A server of the tiny model that speaks, for tests of `serve/`."""

from collections.abc import Iterator

import pytest
from serving import serving
from speaking import load_tts

from builders import Built
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service

STREAMS = 2


@pytest.fixture(scope="session")
def service(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Two streams, room for three to wait, and a directory of voices."""
    options = ServeOptions(streams=STREAMS, queue=3, voices=tmp_path_factory.mktemp("voices"))
    return Service(options, "tiny", lambda: load_tts(built.tiny("q4_k_m"), "q4_k_m", sequences=STREAMS))


@pytest.fixture(scope="session")
def server(service: Service) -> Iterator[str]:
    """Its address."""
    with serving(service) as address:
        yield address
