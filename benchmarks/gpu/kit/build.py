"""Building llama-cpp-python from its pruned source into a wheel: for CUDA, Vulkan or the CPU alone, without network.

The wheel is an ordinary one. An interrupted build goes on where it was: the build directory stays.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Backend = Literal["cpu", "cuda", "vulkan"]

_COMMON = ("-DGGML_NATIVE=ON", "-DLLAMA_OPENSSL=OFF", "-GNinja")
_FLASH_ATTENTION_CACHES = "f16-f16;q8_0-q8_0"
"""Types of KV cache that the fused attention of one query is compiled for: those that the runtime offers on a GPU."""


def build_wheel(
    source: Path,
    out: Path,
    *,
    backend: Backend,
    build: Path,
    architecture: str = "native",
    jobs: int | None = None,
) -> Path:
    """Build the wheel of `source` into `out`, with objects in `build`. Returns it.

    Args:
        source: What `pruned_source` wrote.
        out: Directory for the wheel.
        backend: What it shall compute on beside the CPU.
        build: CMake's directories, one for each backend.
        architecture: CUDA's compute capability without the dot: 90 for H100 and H200, "native" for the GPU here.
        jobs: Compilers at a time; by default one a core.

    Raises:
        FileNotFoundError: If the CUDA toolkit lacks a part.
        subprocess.CalledProcessError: If it does not compile.
    """
    arguments = [*_COMMON, *(cuda_arguments(architecture) if backend == "cuda" else [])]
    arguments += ["-DGGML_VULKAN=ON"] if backend == "vulkan" else []
    environment = {
        **os.environ,
        "CMAKE_ARGS": " ".join(arguments),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs or os.cpu_count() or 1),
        "SKBUILD_BUILD_DIR": str(build.resolve() / backend),
    }
    out.mkdir(parents=True, exist_ok=True)
    for earlier in out.glob("*.whl"):
        earlier.unlink()
    # With scikit-build-core here nothing is downloaded, and the objects of an earlier run are used again.
    isolation = ["--no-build-isolation", "--no-index"] if find_spec("scikit_build_core") else []
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source.resolve())], env=environment, check=True)
    return next(out.glob("llama_cpp_python-*.whl"))


def cuda_arguments(architecture: str) -> list[str]:
    """CMake's arguments for one CUDA architecture, with cuBLAS and the driver found where CMake does not look."""
    arguments = [
        "-DGGML_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture if architecture == 'native' else architecture + '-real'}",
        "-DGGML_CUDA_NCCL=OFF",
        f"-DGGML_CUDA_FA_QUANTS={_FLASH_ATTENTION_CACHES}",
    ]
    root = toolkit()
    libraries = [root / "lib64"]
    if not _has_library(root, "libcublas.so"):
        cublas = _in_python_packages("libcublas.so*")
        if cublas is None:
            raise FileNotFoundError("no cuBLAS: neither in the CUDA toolkit nor in the package nvidia-cublas")
        libraries.append(cublas.parent)
        arguments.append(f"-DCUDA_cublas_LIBRARY={cublas}")
        arguments.append(f"-DCMAKE_CUDA_FLAGS=-I{cublas.parent.parent / 'include'}")
    if not _has_library(root, "stubs/libcuda.so"):
        driver = _driver()
        arguments.append(f"-DCUDA_cuda_driver_LIBRARY={driver}" if driver else "-DGGML_CUDA_NO_VMM=ON")
        libraries += [driver.parent] if driver else []
    arguments.append(f"-DCUDA_LIBRARY_DIRECTORIES={';'.join(map(str, libraries))}")
    return arguments


def toolkit() -> Path:
    """The CUDA toolkit's directory. Raises `FileNotFoundError` without nvcc, which may be a script somewhere else."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise FileNotFoundError("no nvcc on the PATH: CUDA's compiler is needed")
    steps = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], check=True, stderr=subprocess.PIPE, text=True
    ).stderr
    return next(Path(line.partition("TOP=")[2]).resolve() for line in steps.splitlines() if "TOP=" in line)


def _has_library(root: Path, name: str) -> bool:
    return any((root / place / name).exists() for place in ("lib64", "lib", "targets/x86_64-linux/lib"))


def _in_python_packages(pattern: str) -> Path | None:
    """A library of NVIDIA's Python packages."""
    return _first(
        path
        for site in dict.fromkeys([sysconfig.get_path("platlib"), *sys.path])
        for path in sorted(Path(site, "nvidia").glob(f"*/lib/{pattern}"))
    )


def _driver() -> Path | None:
    places = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64")
    return _first(Path(place, name) for place in places for name in ("libcuda.so", "libcuda.so.1"))


def _first(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)
