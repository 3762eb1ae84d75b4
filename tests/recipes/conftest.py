"""What tests of the room share: the model that speaks, at two levels, and a short run of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import Built
from miso_gguf.recipes.plan import Asked, Collection, plan_collection


@pytest.fixture(scope="session")
def speaking(built: Built) -> Path:
    return built.tiny("f32", "q4_k_m")


@pytest.fixture(scope="session")
def plan(speaking: Path) -> Callable[..., Collection]:
    """A plan into a directory, of a few prompts on one thread of the CPU."""

    def made(out: Path, **asked: Any) -> Collection:
        speaks = Asked(out, **asked).speaks
        wanted: dict[str, Any] = {"prompts": 4 if speaks else None, "threads": 1, "gpu_layers": 0, **asked}
        return plan_collection(speaking, Asked(out, **wanted))

    return made
