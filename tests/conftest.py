"""One tiny bundle for all tests of the runtime, with the model that was converted, in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speaking import load_engine, load_tts

from builders import Inputs, make_bundle, make_inputs
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32, FP16, Q4_K_M, Q8_0
from miso_gguf.models.reference import Reference
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.tts import MisoTTS

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def bundle(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    make_bundle(inputs, directory, [F32, FP16, Q8_0, Q4_K_M], threads=1)
    return directory


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
