"""Libraries that only the HTML report needs: the extra `eval`."""

import importlib
from typing import Any

from ...core.errors import MisoError


def library(name: str) -> Any:
    """The module called `name`. Raises `MisoError` with the remedy if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".", maxsplit=1)[0]
        raise MisoError(f"the HTML report needs {package}: pip install 'miso-gguf[eval]'") from error


def check_installed() -> None:
    """Raise `MisoError` unless all is there: for asking before hours of work, not after."""
    for name in ("jinja2", "matplotlib.figure"):
        library(name)
