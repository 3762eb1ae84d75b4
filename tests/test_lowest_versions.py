"""The lowest versions that pyproject.toml declares: convert, speak, verify and serve with them alone."""

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest
import soundfile
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.version import Version

from miso_gguf.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SHARED = "llama-cpp-python"
"""Built for hours on some machines: the environment gets the one that is installed here."""


def _applying(lines: list[str]) -> list[Requirement]:
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def required() -> list[Requirement]:
    """What a user of the hub and of the server needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = _applying([*project["dependencies"], *extras["hub"], *extras["serve"]])
    return [each for each in wanted if each.name != SHARED]


def lowest(requirement: Requirement) -> Version:
    return min(Version(each.version) for each in requirement.specifier if each.operator == ">=")


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the environment. Fetched once from the package index, and kept."""
    lines = sorted(map(str, required()))
    tag = hashlib.sha256("\n".join([sys.version, *lines]).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "lowest-versions" / tag
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            _make(folder, lines)
            (folder / "done").touch()
    return folder / "bin" / "python"


def _make(folder: Path, lines: list[str]) -> None:
    venv.create(folder, clear=True, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    install = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--only-binary", ":all:"]
    subprocess.run([*install, "--resolution", "lowest-direct", *lines], check=True)
    shared = importlib.metadata.distribution(SHARED)
    needs = _applying(shared.requires or [])
    subprocess.run(
        [*install, *(str(each) for each in needs if each.name not in {r.name for r in required()})], check=True
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    metadata = Path(str(shared.locate_file(""))) / f"llama_cpp_python-{shared.version}.dist-info"
    for source in (Path(str(shared.locate_file("llama_cpp"))), metadata):
        assert source.is_dir(), source
        (packages / source.name).symlink_to(source)
    # As an editable installation would, without a build.
    (packages / "miso_gguf").symlink_to(ROOT)
    own = packages / f"miso_gguf-{__version__}.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: miso-gguf\nVersion: {__version__}\n")


def _run(python: Path, place: Path, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfrom miso_gguf.{command}.cli import main\nsys.exit(main())"
    # Isolated: neither this repository's tests nor packages of the user's are found.
    line = [str(python), "-I", "-c", code, *map(str, arguments)]
    done = subprocess.run(line, check=False, capture_output=True, text=True, cwd=place, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.long
def test_the_lowest_are_there(python: Path) -> None:
    names = [each.name for each in required()]
    code = "import importlib.metadata as m, json, sys\nprint(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-I", "-c", code, *names], check=True, capture_output=True, text=True)
    found = {name: Version(version) for name, version in json.loads(done.stdout).items()}
    # Of packages with C code an old version may have no wheel for a new Python: then it is the first that has.
    higher = {each.name for each in required() if found[each.name] != lowest(each)}
    assert not higher or sys.version_info >= (3, 12), higher
    assert len(higher) < len(names) / 2


@pytest.mark.long
def test_convert_speak_and_verify(python: Path, tmp_path: Path) -> None:
    _run(python, tmp_path, "convert", "tiny", "--quant", "q4_k_m", "--out", "bundle")
    _run(python, tmp_path, "runtime", "Hello there.", "--model", "bundle", "--quant", "q4_k_m", "--out", "hello.wav")
    samples, rate = soundfile.read(tmp_path / "hello.wav")
    assert rate == 24000
    assert len(samples) > rate // 4
    done = _run(python, tmp_path, "convert", "verify", "bundle", "tiny")
    assert "all is well" in done.stdout


@pytest.mark.long
def test_serve(python: Path, tmp_path: Path) -> None:
    """Each format, a voice that is uploaded, and a stop."""
    _run(python, tmp_path, "convert", "tiny", "--quant", "q4_k_m", "--out", "bundle")
    code = "import sys\nfrom miso_gguf.serve.cli import main\nsys.exit(main())"
    line = [str(python), "-I", "-c", code, "--model", "bundle", "--voices", "voices", "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stderr is not None
            said = ""
            while (found := re.search(r"http://\S+", said)) is None:
                assert (more := process.stderr.readline()), said  # noqa: RUF018
                said += more
            with httpx.Client(base_url=found[0], timeout=120) as client:
                _speak_and_listen(client)
            process.terminate()
            said = process.stderr.read()
            assert process.wait(60) == 0, said
            assert "Traceback" not in said
        finally:
            process.kill()


def _speak_and_listen(client: httpx.Client) -> None:
    asked = {"model": "miso", "input": "Hello there.", "voice": "default"}
    for name in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        spoken = client.post("/v1/audio/speech", json={**asked, "response_format": name, "speed": 1.5})
        assert spoken.status_code == 200, spoken.text
        assert len(spoken.content) > 1000
        if name == "wav":
            clip = {"audio_sample": ("me.wav", spoken.content, "audio/wav")}
    made = client.post("/v1/audio/voices", data={"name": "me", "text": "Hello there.", "consent": "true"}, files=clip)
    assert made.status_code == 200, made.text
    spoken = client.post("/v1/audio/speech", json={**asked, "voice": made.json()["id"]})
    assert spoken.status_code == 200, spoken.text
    assert "miso" in client.get("/metrics").text
