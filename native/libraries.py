"""The shared libraries inside the installed llama-cpp-python, opened by name. It knows nothing of their functions."""

import ctypes
import importlib.util
import sys
from functools import cache, lru_cache
from pathlib import Path

from ..models.errors import MisoError

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
REINSTALL = "reinstall llama-cpp-python (>=0.3.36,<0.4)"


@lru_cache(maxsize=1)
def library_directory() -> Path:
    """Where llama-cpp-python keeps its libraries. Raises `MisoError` if it is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise MisoError("llama-cpp-python is not installed: pip install 'llama-cpp-python>=0.3.36,<0.4'")
    return Path(spec.submodule_search_locations[0]) / "lib"


@cache
def open_library(stem: str) -> ctypes.CDLL:
    """The library called `stem` ("ggml-base", "ggml"). Raises `MisoError` if it is not there."""
    directory = library_directory()
    # A wheel holds copies where a build has links. The first name is the one that libllama asks for: any other file
    # would be loaded beside it, a second ggml with a log and an abort callback of its own.
    for name in (f"lib{stem}{_SUFFIX}.0", f"lib{stem}.0{_SUFFIX}", f"lib{stem}{_SUFFIX}", f"{stem}{_SUFFIX}"):
        if (directory / name).exists():
            return ctypes.CDLL(str(directory / name))
    raise MisoError(f"no {stem} library in {directory}: {REINSTALL}")


def bind(stem: str, signatures: dict[str, tuple[object, list[object]]]) -> ctypes.CDLL:
    """The library `stem` with the (result, arguments) types of its functions set.

    Raises `MisoError` naming a function that this llama-cpp-python does not have.
    """
    library = open_library(stem)
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise MisoError(f"this llama-cpp-python has no {name}: {REINSTALL}") from error
        function.restype, function.argtypes = result, arguments
    return library
