"""The Python packages that a machine without network lacks, as wheels that travel there."""

import subprocess
import sys
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

TOOLS = ("scikit-build-core", "pathspec", "packaging", "nvidia-ml-py")
"""What builds llama-cpp-python and reads the GPU's memory."""
_SETUPTOOLS = "setuptools>=77"
"""What installs this package: it travels always, for one that is there may be too old."""
_BUILT_THERE = {"llama-cpp-python"}


def needed(distribution: str, extras: Collection[str], present: Collection[str], python_version: str) -> list[str]:
    """What `distribution[extras]` needs, directly or not, and that is not `present` where CPython `python_version` is.

    Versions are those installed here, "name==version": they are known to work together. Tools for building come with
    them, in any version.
    """
    from packaging.utils import canonicalize_name  # noqa: PLC0415  (not needed, nor there, where wheels are installed)

    skipped: set[str] = {canonicalize_name(name.strip()) for name in present}
    names = {*_closure(distribution, set(extras), skipped, python_version), *(set(TOOLS) - skipped)} - _BUILT_THERE
    return [_SETUPTOOLS, *sorted(name if name in TOOLS else _pinned(name) for name in names)]


def _pinned(name: str) -> str:
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:  # this Python does not need it
        return name


def _closure(distribution: str, extras: set[str], skipped: set[str], python_version: str) -> Iterator[str]:
    from packaging.requirements import Requirement  # noqa: PLC0415
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    there = {"python_version": python_version, "sys_platform": "linux", "platform_machine": "x86_64"}
    seen: set[str] = set()
    pending = [(distribution, extras)]
    while pending:
        name, wanted = pending.pop()
        for line in _requires(name):
            requirement = Requirement(line)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({**there, "extra": extra}) for extra in ("", *wanted)
            )
            child = canonicalize_name(requirement.name)
            if applies and child not in seen | skipped:
                seen.add(child)
                pending.append((child, set(requirement.extras)))
                yield child


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def download(requirements: Collection[str], directory: Path, python_version: str) -> None:
    """Wheels for CPython `python_version` ("3.12") on x86-64 Linux."""
    directory.mkdir(parents=True, exist_ok=True)
    platforms = [
        word
        for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
        for word in ("--platform", f"{tag}_x86_64")
    ]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *platforms]
    target = ["--python-version", python_version, "--implementation", "cp", "--dest", str(directory)]
    subprocess.run([*pip, *target, *requirements], check=True)


def install(wheels: Path, site: Path) -> None:
    """Install all `wheels` of a directory into `site`, without network. Raises `FileNotFoundError` if it has none."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise FileNotFoundError(f"{wheels}: no wheels there: `pack` fetches them, on a machine with network")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", str(site), *found], check=True)
