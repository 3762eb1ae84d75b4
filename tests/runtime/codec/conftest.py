"""The codec that the tests of this room share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from codec_graphs import write_graphs

from miso_gguf.runtime.codec.codec import Codec


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_graphs(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def codec(graphs: tuple[Path, Path]) -> Iterator[Codec]:
    with Codec(*graphs) as codec:
        yield codec
