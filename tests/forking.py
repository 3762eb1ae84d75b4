"""A script that forks, in a process of its own, and what it asks of the child."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from elsewhere import PATIENCE_S

from miso_gguf.core.errors import MisoError


def refused(call: Callable[[], object]) -> None:
    """The call says that a model must be loaded after the fork."""
    with pytest.raises(MisoError, match="fork"):
        call()


def run_script(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run it with the tests' own modules; Python's warning of threads beside a fork is left out."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
