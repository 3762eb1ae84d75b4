"""What travels to a machine without network: the pruned source, the wheels; and how it is built there."""

import io
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from kit import build as llama_build
from kit import wheels
from kit.source import CMAKE, is_kept, prune

GGML = "vendor/llama.cpp/ggml/src"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("llama_cpp/llama_cpp.py", True),
        ("llama_cpp/server/app.py", False),
        ("pyproject.toml", True),
        ("CMakeLists.txt", False),
        ("vendor/llama.cpp/CMakeLists.txt", True),
        ("vendor/llama.cpp/src/llama.cpp", True),
        ("vendor/llama.cpp/common/common.cpp", False),
        ("vendor/llama.cpp/tools/mtmd/mtmd.cpp", False),
        (f"{GGML}/ggml.c", True),
        (f"{GGML}/CMakeLists.txt", True),
        (f"{GGML}/ggml-cuda/mmq.cu", True),
        (f"{GGML}/ggml-cuda/template-instances/mmq-instance-q4_k.cu", True),
        (f"{GGML}/ggml-cpu/arch/x86/quants.c", True),
        (f"{GGML}/ggml-cpu/arch/riscv/quants.c", False),
        (f"{GGML}/ggml-sycl/ggml-sycl.cpp", False),
        (f"{GGML}/ggml-cuda-like/x.cpp", False),
    ],
)
def test_only_what_our_libraries_are_built_from(path: str, kept: bool) -> None:
    assert is_kept(PurePosixPath(path)) is kept


def test_pruning(tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-1.tar.gz"
    files = {"llama_cpp/__init__.py": b"x" * 100, f"{GGML}/ggml.c": b"y", f"{GGML}/ggml-sycl/a.cpp": b"z"}
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*files, "CMakeLists.txt", "../escaped.txt", "llama_cpp/../../escaped.txt"]:
            info = tarfile.TarInfo(f"llama_cpp_python-1/{name}")
            content = files.get(name, b"theirs")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    out = tmp_path / "a" / "source"
    size = prune(archive, out)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {
        "llama_cpp/__init__.py",
        f"{GGML}/ggml.c",
        "CMakeLists.txt",
        "vendor/llama.cpp/vendor/CMakeLists.txt",
    }
    assert (out / "CMakeLists.txt").read_bytes() == CMAKE.read_bytes()
    assert size == 101 + CMAKE.stat().st_size
    assert not list(tmp_path.rglob("escaped.txt"))


def test_the_closure_of_our_requirements() -> None:
    """What llama-cpp-python needs comes with it, itself not: it is built there."""
    requirements = wheels.needed("miso-gguf", (), ["numpy", " Onnx", "setuptools"], "3.12")
    names = {requirement.split("==")[0] for requirement in requirements}
    assert requirements[0] == "setuptools>=77"
    assert {"pydantic", "pydantic-core", "gguf", "soundfile", "cffi", "diskcache", "scikit-build-core"} <= names
    assert names.isdisjoint({"numpy", "onnx", "llama-cpp-python", "torch", "pytest"})
    assert "torch" in {each.split("==")[0] for each in wheels.needed("miso-gguf", ("reference",), [], "3.12")}
    older = {each.split("==")[0] for each in wheels.needed("miso-gguf", (), [], "3.10")}
    assert "tomli" in older - names, "what only the other Python needs"


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit that is whole, and no other libraries."""
    root = tmp_path / "cuda"
    (root / "lib64/stubs").mkdir(parents=True)
    for name in ("libcublas.so", "stubs/libcuda.so"):
        (root / "lib64" / name).touch()
    monkeypatch.setattr(llama_build, "toolkit", lambda: root)
    monkeypatch.setattr(llama_build, "_in_python_packages", lambda _pattern: None)
    monkeypatch.setattr(llama_build, "_driver", lambda: None)
    return root


def test_a_whole_toolkit_needs_no_help(toolkit: Path) -> None:
    arguments = llama_build.cuda_arguments("90")
    assert "-DGGML_CUDA=ON" in arguments
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in arguments
    assert f"-DCUDA_LIBRARY_DIRECTORIES={toolkit / 'lib64'}" in arguments
    assert not any("_LIBRARY=" in argument or "NO_VMM" in argument for argument in arguments)
    assert "-DCMAKE_CUDA_ARCHITECTURES=native" in llama_build.cuda_arguments("native")


def test_cublas_from_a_python_package(toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toolkit / "lib64/libcublas.so").unlink()
    with pytest.raises(
        FileNotFoundError, match="no cuBLAS: neither in the CUDA toolkit nor in the package nvidia-cublas"
    ):
        llama_build.cuda_arguments("90")
    package = tmp_path / "nvidia/cu13/lib/libcublas.so.13"
    monkeypatch.setattr(llama_build, "_in_python_packages", lambda _pattern: package)
    arguments = llama_build.cuda_arguments("90")
    assert f"-DCUDA_cublas_LIBRARY={package}" in arguments
    assert f"-DCMAKE_CUDA_FLAGS=-I{tmp_path / 'nvidia/cu13/include'}" in arguments
    assert f"-DCUDA_LIBRARY_DIRECTORIES={toolkit / 'lib64'};{package.parent}" in arguments


def test_without_the_drivers_library_no_virtual_memory(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toolkit / "lib64/stubs/libcuda.so").unlink()
    assert "-DGGML_CUDA_NO_VMM=ON" in llama_build.cuda_arguments("90")
    monkeypatch.setattr(llama_build, "_driver", lambda: Path("/driver/libcuda.so.1"))
    assert "-DCUDA_cuda_driver_LIBRARY=/driver/libcuda.so.1" in llama_build.cuda_arguments("90")


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="no nvcc on the PATH"):
        llama_build.toolkit()


def test_nothing_to_install(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no wheels there: `pack` fetches them"):
        wheels.install(tmp_path, tmp_path / "site")
