"""The Python packages that a machine without network lacks, as wheels that travel there."""

import subprocess
import sys
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = ("scikit-build-core", "pathspec", "packaging", "nvidia-ml-py")
"""What builds llama-cpp-python and reads the GPU's memory."""
_SETUPTOOLS = "setuptools>=77"
"""What installs this package: it travels always, for one that is there may be too old."""
_BUILT_THERE = {"llama-cpp-python"}


def needed(distribution: str, extras: Collection[str], present: Collection[str]) -> list[str]:
    """The distributions that `distribution[extras]` needs, directly or not, and that are not `present`.

    Versions are those installed here, "name==version": they are known to work together. Building tools come with them.
    """
    skipped: set[str] = {canonicalize_name(name) for name in present}
    names = {*_closure(distribution, set(extras), skipped), *(set(TOOLS) - skipped)} - _BUILT_THERE
    return [_SETUPTOOLS, *sorted(name if name in TOOLS else f"{name}=={metadata.version(name)}" for name in names)]


def _closure(distribution: str, extras: set[str], skipped: set[str]) -> Iterator[str]:
    seen: set[str] = set()
    pending = [(distribution, extras)]
    while pending:
        name, wanted = pending.pop()
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            )
            child = canonicalize_name(requirement.name)
            if applies and child not in seen | skipped:
                seen.add(child)
                pending.append((child, set(requirement.extras)))
                yield child


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
    """Install all `wheels` of a directory into `site`, without network."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if found:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(site), *found], check=True)
