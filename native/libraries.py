"""The shared libraries inside the installed llama-cpp-python: opened, bound and tried out once in a process.

ggml's functions are reached through `ggml_base` and `ggml_registry` alone. It keeps no state of theirs and knows no
order of calls.
"""

import ctypes
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import MisoError
from .messages import listen
from .self_test import REINSTALL, check_base, check_graph
from .signatures import GGML, GGML_BASE, PROCEDURES, Signature

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_T = TypeVar("_T")
_lock = threading.RLock()


def once(make: Callable[[], _T]) -> Callable[[], _T]:
    """`make`, called once in a process, whichever threads ask at the same time; again only if it raised."""
    made = cache(make)

    @wraps(make)
    def guarded() -> _T:
        with _lock:
            return made()

    return cache(guarded)


@lru_cache(maxsize=1)
def library_directory() -> Path:
    """Where llama-cpp-python keeps its libraries. Raises `MisoError` if it is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise MisoError("llama-cpp-python is not installed: pip install 'llama-cpp-python>=0.3.36,<0.4'")
    return Path(spec.submodule_search_locations[0]) / "lib"


def open_library(stem: str) -> ctypes.CDLL:
    """The library called `stem` ("ggml-base", "ggml"). Raises `MisoError` if it is not there."""
    directory = library_directory()
    # A wheel holds copies where a build has links. The first name is the one that libllama asks for: any other file
    # would be loaded beside it, a second ggml with a log and an abort callback of its own.
    for name in (f"lib{stem}{_SUFFIX}.0", f"lib{stem}.0{_SUFFIX}", f"lib{stem}{_SUFFIX}", f"{stem}{_SUFFIX}"):
        if (directory / name).exists():
            return ctypes.CDLL(str(directory / name))
    raise MisoError(f"no {stem} library in {directory}: {REINSTALL}")


def bind(library: ctypes.CDLL, signatures: Mapping[str, Signature]) -> ctypes.CDLL:
    """`library`, the types of its functions set.

    Raises `MisoError` naming a function that this llama-cpp-python does not have.
    """
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise MisoError(f"this llama-cpp-python has no {name}: {REINSTALL}") from error
        function.restype, function.argtypes = result, arguments
    return library


@once
def ggml_base() -> ctypes.CDLL:
    """What every build has. Raises `MisoError` if this llama-cpp-python's differs from what this package expects."""
    library = bind(open_library("ggml-base"), GGML_BASE)
    listen(library)
    check_base(library)
    return library


@once
def ggml_registry() -> ctypes.CDLL:
    """The devices of this build, its backends loaded. Raises `MisoError` if the CPU computes something else."""
    library = bind(open_library("ggml"), GGML)
    library.ggml_backend_load_all()
    # On a thread that ends: OpenMP keeps a team for whoever has computed, and spins the less the more teams there are.
    with ThreadPoolExecutor(1) as apart:
        apart.submit(check_graph, ggml_base(), library).result()
    return library


def procedure(device: int, name: str) -> Any:
    """A function that the backend of `device` offers by name only. Raises `MisoError` if it does not."""
    library, (result, arguments) = ggml_base(), PROCEDURES[name]
    address = library.ggml_backend_reg_get_proc_address(library.ggml_backend_dev_backend_reg(device), name.encode())
    if not address:
        raise MisoError(f"{library.ggml_backend_dev_name(device).decode()} has no {name}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)  # type: ignore[arg-type]
