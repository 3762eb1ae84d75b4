"""llama-cpp-python's source, cut down to what its libraries are built from, to travel to a machine without network.

It knows no compiler (`build.py`).
"""

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

REQUIREMENT = "llama-cpp-python>=0.3.36,<0.4"
CMAKE = Path(__file__).with_name("CMakeLists.txt")

_LLAMA = "vendor/llama.cpp"
_KEPT = (
    "llama_cpp",
    "pyproject.toml",
    "README.md",
    "LICENSE.md",
    "PKG-INFO",
    *(f"{_LLAMA}/{name}" for name in ("CMakeLists.txt", "LICENSE", "AUTHORS", "cmake", "include", "src", "licenses")),
    f"{_LLAMA}/ggml/CMakeLists.txt",
    f"{_LLAMA}/ggml/cmake",
    f"{_LLAMA}/ggml/include",
    f"{_LLAMA}/ggml/src",
)
_BACKENDS = ("ggml-cpu", "ggml-cuda", "ggml-vulkan")
_DROPPED = (
    "llama_cpp/lib",
    "llama_cpp/server",
    *(f"{_LLAMA}/ggml/src/ggml-cpu/arch/{arch}" for arch in ("loongarch", "powerpc", "riscv", "s390", "wasm")),
    *(f"{_LLAMA}/ggml/src/ggml-cpu/{name}" for name in ("kleidiai", "spacemit")),
)
_EMPTY = f"{_LLAMA}/vendor/CMakeLists.txt"
"""Lists libraries that ours do not use; llama.cpp insists on the file."""


def is_kept(path: PurePosixPath) -> bool:
    """Whether a file of the source distribution, by its path in it, is needed."""
    backend = path.relative_to(f"{_LLAMA}/ggml/src").parts[0] if path.is_relative_to(f"{_LLAMA}/ggml/src") else ""
    of_other_backend = len(path.parts) > len(PurePosixPath(_LLAMA, "ggml/src", "x").parts) and backend not in _BACKENDS
    return (
        any(path.is_relative_to(kept) for kept in _KEPT)
        and not any(path.is_relative_to(dropped) for dropped in _DROPPED)
        and not of_other_backend
    )


def fetch_source(directory: Path) -> Path:
    """Download the source distribution from the package index, without building it. Returns the archive."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, "--dest", str(directory), REQUIREMENT], check=True)
    return next(directory.glob("llama_cpp_python-*.tar.gz"))


def prune(archive: Path, directory: Path) -> int:
    """Unpack what is needed of `archive` into `directory`, which must not exist. Returns its bytes."""
    directory.mkdir(parents=True)
    with tarfile.open(archive) as source:
        for member, path in _files(source):
            content = source.extractfile(member)
            if content is None or not is_kept(path):
                continue
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
    (directory / _EMPTY).parent.mkdir(parents=True, exist_ok=True)
    (directory / _EMPTY).write_text("")
    (directory / "CMakeLists.txt").write_bytes(CMAKE.read_bytes())
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _files(source: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    for member in source:
        path = PurePosixPath(member.name)
        if member.isfile() and ".." not in path.parts and not path.is_absolute() and len(path.parts) > 1:
            yield member, PurePosixPath(*path.parts[1:])


def pruned_source(directory: Path) -> int:
    """Fetch and prune into `directory`; bytes."""
    with tempfile.TemporaryDirectory() as downloads:
        return prune(fetch_source(Path(downloads)), directory)
