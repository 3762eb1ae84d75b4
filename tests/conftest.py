"""What tests share: bundles built once for all of them, the model that was converted in memory; how they run."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from examples import examples
from hypothesis import settings
from safetensors.torch import load_file
from speaking import load_engine, load_tts

from builders import Built, Inputs
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32, FP16, Q4_K_M, Q8_0
from miso_gguf.models.reference import Reference
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.tts import MisoTTS

# `make test` runs in two processes; and such small matrices lose where a second thread has to wait for a core.
torch.set_num_threads(1)

# Of property tests that name no number. How long one takes depends on what else the machine does.
settings.register_profile("miso", max_examples=examples(100), deadline=None)
settings.load_profile("miso")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A test that lets the log tell less fails itself, and not those after it that read the log."""
    logger = logging.getLogger("miso_gguf")
    before = logger.level, logging.root.manager.disable
    yield
    after = logger.level, logging.root.manager.disable
    logger.setLevel(before[0])
    logging.disable(before[1])
    assert after == before, "the levels of the log were changed"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Checkpoints and bundles to read, not to change."""
    own = tmp_path_factory.getbasetemp()
    return Built(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def inputs(built: Built) -> Inputs:
    return built.inputs()


@pytest.fixture(scope="session")
def bundle(built: Built) -> Path:
    return built.bundle([F32, FP16, Q8_0, Q4_K_M])


@pytest.fixture(scope="session")
def weights(inputs: Inputs) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(inputs.checkpoint)
    return tensors


@pytest.fixture(scope="session")
def reference(weights: dict[str, torch.Tensor]) -> Reference:
    return Reference(TINY, weights.__getitem__)


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Iterator[Engine]:
    """F32 throughout, one sequence."""
    with load_engine(bundle, exact=True) as engine:
        yield engine


@pytest.fixture
def tts(bundle: Path) -> Iterator[MisoTTS]:
    """A fresh model for each test: what it heard before is part of its state."""
    with load_tts(bundle, exact=True) as tts:
        yield tts
