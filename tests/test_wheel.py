"""The wheel: every module of the package and its data, nothing else; installed by itself it does its work."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
STAYS = Path("models/tiny/make")
"""The training code: in the repository alone."""
DATA = {
    "miso_gguf/py.typed",
    "miso_gguf/models/tiny/README.md",
    "miso_gguf/models/tiny/mimi.safetensors",
    "miso_gguf/models/tiny/model.safetensors",
    "miso_gguf/models/tiny/tokenizer.json",
    "miso_gguf/quant_eval/gates/gates.toml",
}
DATA_FOLDERS = ("quant_eval/corpora", "quant_eval/listening/templates", "quant_eval/report/templates")
_NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "demo", "dist")


def modules() -> set[Path]:
    """Of the package: those in folders that begin with an `__init__.py`, and those of the root."""
    rooms = (init.parent for init in ROOT.glob("*/__init__.py"))
    found = [*ROOT.glob("*.py"), *(module for room in rooms for module in room.rglob("*.py"))]
    return {path for module in found if not (path := module.relative_to(ROOT)).is_relative_to(STAYS)}


def test_every_folder_with_modules_is_listed() -> None:
    """A new one would be missing from the wheel, and from no checkout."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = {module.parent for module in modules()}
    assert sorted(listed) == sorted(".".join(("miso_gguf", *folder.parts)) for folder in folders)
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)
    assert len(folders) > 20


def test_commands_start_without_any_extra() -> None:
    """What only extras bring is imported where it is needed, or a plain installation could not even say what lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    brought, open_ends = set[str](), list(project["dependencies"])
    while open_ends:
        requirement = Requirement(open_ends.pop())
        name = canonicalize_name(requirement.name)
        if name not in brought and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            brought.add(name)
            open_ends += metadata.requires(name) or []
    lacking = [
        module
        for module, names in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & {*brought, "miso-gguf"}
    ]
    assert {"filelock", "huggingface_hub", "torch"} <= set(lacking)
    program = f"import sys; sys.modules.update(dict.fromkeys({lacking})); "
    program += "import miso_gguf.convert.cli, miso_gguf.runtime.cli, miso_gguf.serve.cli, miso_gguf.recipes.cli"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: setuptools leaves what it makes beside the sources, and takes in what it left there."""
    directory = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, directory / "source", ignore=_NOT_SOURCE)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, source)
    (built,) = directory.glob("*.whl")
    return built


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_what_is_in_it(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {f"miso_gguf/{path.relative_to(ROOT)}" for folder in DATA_FOLDERS for path in (ROOT / folder).iterdir()}
    assert len(data) > 4
    assert names == {f"miso_gguf/{module}" for module in modules()} | data | DATA


@pytest.mark.long
def test_installed_by_itself_it_works(wheel: Path, tmp_path: Path) -> None:
    """Beside the packages of this environment, from a folder that has nothing to do with it."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", site, wheel)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(site)}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=work, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(sys.executable, "-c", "import miso_gguf; print(miso_gguf.__file__)")
    assert Path(where.strip()) == site / "miso_gguf" / "__init__.py"
    commands = site / "bin"
    run(commands / "miso-convert", "tiny", "--quant", "q4_k_m", "--out", "bundle")
    for name, seed in (("a.wav", 1), ("b.wav", 2)):
        speak = ("Hello there.", "--model", "bundle", "--threads", 1, "--seed", seed, "--out", name)
        run(commands / "miso-speak", *speak)
        assert soundfile.info(work / name).duration > 0.5
    found = json.loads(run(commands / "miso-eval", "prosody", "a.wav", "b.wav", "--json"))
    assert 0 < abs(found["free"]["dur_ratio"]) < 1, "another seed speaks a little faster or slower"
