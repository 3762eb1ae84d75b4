"""The codec on the oldest ONNX Runtime declared and on the latest of Python 3.10; what is said where one is too old."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from numpy.typing import NDArray
from older_packages import OLDEST_ONNXRUNTIME, PYTHON_310_ONNXRUNTIME, environment, onnxruntime_folder

from builders import make_tiny_bundle
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.core.files import file_sha256
from miso_gguf.models.manifest import MANIFEST_NAME, BundleFile, Manifest, read_manifest
from miso_gguf.models.mimi import TINY_MIMI
from miso_gguf.runtime.codec.onnx import OnnxStream

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="these versions have no wheel for it")
VERSIONS = pytest.mark.parametrize("version", [OLDEST_ONNXRUNTIME, PYTHON_310_ONNXRUNTIME])
RUNNER = Path(__file__).parents[2] / "run_onnx_stream.py"
SPEECH = Path(__file__).parents[2] / "data" / "speech.flac"
FRAMES = [1, 1, 3, 130, 7, 58]  # 400 steps of the transformer: past its window of 250
HOUR = 25 * 3600
"""Steps of an hour."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the repository."""
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_bundle(directory, ["q4_k_m"])
    return directory


def run(version: str, graph: Path, data: Array, sizes: list[int], offset: int, folder: Path) -> Array:
    np.savez(folder / "in.npz", data=data, sizes=sizes, offset=offset)
    command: list[str | Path] = [sys.executable, "-I", "-S", RUNNER, onnxruntime_folder(version), graph]
    done = subprocess.run(
        [*command, folder / "in.npz", folder / "out.npz"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [version]
    result: Array = np.load(folder / "out.npz")["result"]
    return result


def here(graph: Path, part: str, data: Array, sizes: list[int], offset: int) -> Array:
    stream = OnnxStream(graph, part, 1, "cpu")
    state = [np.full_like(array, offset) if array.dtype == np.int64 else array for array in stream.start()]
    results = []
    for piece in np.split(data, np.cumsum(sizes)[:-1], axis=-1):
        result, state = stream.step(np.ascontiguousarray(piece), state)
        results.append(result)
    return np.concatenate(results, axis=-1)


@VERSIONS
@pytest.mark.parametrize("offset", [0, HOUR])
def test_the_decoder_gives_the_same_audio(version: str, offset: int, tiny: Path, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, TINY_MIMI.cardinality, (1, TINY_MIMI.codebooks, sum(FRAMES)))
    graph = tiny / "mimi-decoder.onnx"
    expected = here(graph, "mimi-decoder", codes, FRAMES, offset)
    assert expected.std() > 0.02
    np.testing.assert_allclose(run(version, graph, codes, FRAMES, offset, tmp_path), expected, rtol=0, atol=1e-5)


@VERSIONS
def test_the_encoder_gives_the_same_codes(version: str, tiny: Path, tmp_path: Path) -> None:
    samples = soundfile.read(SPEECH, dtype="float32")[0][None, None, : 60 * 1920 + 7]
    sizes = [1920, 3 * 1920, samples.shape[-1] - 4 * 1920]
    graph = tiny / "mimi-encoder.onnx"
    expected = here(graph, "mimi-encoder", samples, sizes, 0)
    assert len(np.unique(expected)) > 100
    # Nearest entries are sometimes nearly equally near.
    assert (run(version, graph, samples, sizes, 0, tmp_path) == expected).mean() >= 0.999


def miso_speak(version: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("miso-speak")), *map(str, arguments), "--threads", "1"]
    return subprocess.run(
        command, env=environment(onnxruntime_folder(version)), capture_output=True, text=True, check=False
    )


@VERSIONS
def test_miso_speak_speaks(version: str, tiny: Path, tmp_path: Path) -> None:
    """The whole program, with a voice: decoder and encoder."""
    out = tmp_path / "out.wav"
    voice = ("--voice", SPEECH, "--voice-text", "This is very good.")
    done = miso_speak(version, "Hello there.", "--model", tiny, *voice, "--max-seconds", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(out).duration > 0.5


def test_the_environment_takes_the_other_version() -> None:
    """Or the test above would prove nothing."""
    code = "import miso_gguf.runtime.codec.onnx as s; print(s.onnxruntime.__version__)"
    for version in (OLDEST_ONNXRUNTIME, PYTHON_310_ONNXRUNTIME):
        variables = environment(onnxruntime_folder(version))
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=True)
        assert done.stdout.decode().split() == [version]


@pytest.mark.parametrize("graph", ["mimi-decoder.onnx", "mimi-encoder.onnx"])
def test_what_the_graphs_are_written_in(graph: str, tiny: Path) -> None:
    model = onnx.load(tiny / graph)
    assert model.ir_version == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def too_new(kind: str, source: Path, target: Path, later: int = 0) -> Path:
    """A graph that the oldest ONNX Runtime declared is too old for, or those `later` versions after it as well."""
    model = onnx.load(source)
    if kind == "file format":
        model.ir_version = 11 + later
    elif kind == "operators":
        model.opset_import[0].version = 22 + later
    else:
        model.graph.node.append(onnx.helper.make_node("Cos", ["angle"], ["cosine"]))
        for name, values in (("angle", model.graph.input), ("cosine", model.graph.output)):
            values.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [1]))
    target.write_bytes(model.SerializeToString())
    return target


@pytest.mark.parametrize("kind", ["file format", "operators"])
def test_an_onnxruntime_that_is_too_old_is_no_fault_of_the_bundle(kind: str, tiny: Path, tmp_path: Path) -> None:
    graph = too_new(kind, tiny / "mimi-decoder.onnx", tmp_path / "mimi-decoder.onnx", later=100)
    with pytest.raises(MisoError, match="is too old for this graph") as caught:
        OnnxStream(graph, "mimi-decoder", 1, "cpu")
    assert not isinstance(caught.value, BundleError)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("file format", "Unsupported model IR version: 11"),
        ("operators", "Opset 22 is under development"),
        ("an operator", "Could not find an implementation for Cos(7)"),
    ],
)
def test_a_graph_that_is_too_new_is_no_damaged_one(kind: str, reason: str, tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    graph = too_new(kind, tiny / "mimi-decoder.onnx", bundle / "mimi-decoder.onnx")
    manifest = read_manifest(bundle)
    record = BundleFile(size_bytes=graph.stat().st_size, sha256=file_sha256(graph))
    fields = {**dict(manifest), "files": {**manifest.files, graph.name: record}}
    (bundle / MANIFEST_NAME).write_text(Manifest(**fields).to_json())
    done = miso_speak(OLDEST_ONNXRUNTIME, "Hello.", "--model", bundle, "--out", tmp_path / "out.wav")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"miso-speak: error: {graph}: onnxruntime {OLDEST_ONNXRUNTIME} is too old for this graph ({reason}): "
        "`pip install --upgrade onnxruntime`, or convert again with this version of miso-gguf\n"
    )
