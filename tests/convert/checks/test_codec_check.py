"""`verify` finds every way in which a codec's graph can be another than its source makes, whatever the hashes say."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from builders import MICRO, Built
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checks.codec import Side, check_codec
from miso_gguf.convert.codec import Codec

SIDES: list[Side] = ["decoder", "encoder"]
Change = Callable[[onnx.ModelProto], object]


class _Cached(Codec):
    """Builds each graph once."""

    exact_decoder_graph = cache(Codec.exact_decoder_graph)
    encoder_graph = cache(Codec.encoder_graph)


@pytest.fixture(scope="module")
def codec(built: Built) -> Iterator[Codec]:
    inputs = built.inputs(MICRO)
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        yield _Cached(inputs.mimi, checkpoint)


@pytest.fixture(scope="module")
def graphs(codec: Codec) -> dict[Side, bytes]:
    return {"decoder": codec.decoder_graph(), "encoder": codec.encoder_graph()}


def _edited(content: bytes, change: Change) -> bytes:
    model = onnx.load_from_string(content)
    change(model)
    edited: bytes = model.SerializeToString()
    return edited


def _with(name: str, edit: Callable[[np.ndarray], None]) -> Change:
    """Change the values of a weight."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        edit(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def _metadata(key: str, value: str | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == key)
        if value is None:
            model.metadata_props.remove(entry)
        else:
            entry.value = value

    return change


def _one_step(values: np.ndarray) -> None:
    values.flat[-1] = np.nextafter(values.flat[-1], values.dtype.type(9))


def _swap_codebooks(values: np.ndarray) -> None:
    values[[2, 3]] = values[[3, 2]]


def _constant(model: onnx.ModelProto) -> None:
    """A bias: small tensors stand in the nodes."""
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.TENSOR and (array := numpy_helper.to_array(entry.t)).size > 8:
                entry.t.CopyFrom(numpy_helper.from_array(array + array.dtype.type(1e-6), entry.t.name))
                return


def _cross_two_inputs(model: onnx.ModelProto) -> None:
    """The weights stay, and are used in one another's place."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for tensor in model.graph.initializer:
        shapes.setdefault(tuple(tensor.dims), []).append(tensor.name)
    first, second = next(names for names in shapes.values() if len(names) > 1)[:2]
    other = {first: second, second: first}
    for node in model.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def _forget_state(model: onnx.ModelProto) -> None:
    """It says that the state that went in comes out."""
    entry = next(entry for entry in model.metadata_props if entry.key == "miso.state")
    state = json.loads(entry.value)
    by_shape: dict[str, list[dict[str, str]]] = {}
    for item in state:
        by_shape.setdefault(str(item["shape"]), []).append(item)
    for items in by_shape.values():
        outputs = [item["output"] for item in items]
        for item, output in zip(items, reversed(outputs), strict=True):
            item["output"] = output
    entry.value = json.dumps(state)


def _outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


@pytest.mark.parametrize("side", SIDES)
def test_well(side: Side, graphs: dict[Side, bytes], codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graphs[side])
    assert check_codec(path, side, MICRO, None, 1) == ("opens and computes 12 frames", True)
    measured = {
        "decoder": "weights as in its source; audio 60 dB SNR against its source's, at least 40",
        "encoder": "weights as in its source; 0 of 96 codes differ from its source's",
    }
    assert check_codec(path, side, MICRO, codec, 1) == (measured[side], True)


WITHOUT_SOURCE: dict[str, tuple[bytes | Change, str]] = {
    "text": (b"This is no codec.\n", "is no ONNX file"),
    "empty": (b"", "cannot be opened"),
    "no state": (_metadata("miso.state", None), "its metadata lacks or misstates 'miso.state'"),
    "state that is none": (_metadata("miso.state", "[1"), "is no mimi-"),
    "endless state": (
        _metadata(
            "miso.state", '[{"input": "offset", "output": "o", "shape": [99999999999], "dtype": "f4", "init": 0}]'
        ),
        "is too large",
    ),
    "another format": (_metadata("miso.format", "2"), "miso.format is '2', expected '1'"),
    "another rate": (_metadata("miso.sample_rate_hz", "16000"), "miso.sample_rate_hz is 16000, expected 24000"),
    "another number": (_metadata("miso.codebooks", "9"), "miso.codebooks is 9, expected 8"),
    "no number": (_metadata("miso.codebooks", "\x1b[2J"), "is no mimi-"),
    "more codes": (_metadata("miso.cardinality", "9999"), "miso.cardinality is 9999, the model has 515 codes"),
    "state exchanged": (_forget_state, "another in two calls|cannot be computed|something else in two calls"),
    "a name that is no text": (
        lambda model: model.graph.node[0].ParseFromString(
            model.graph.node[0].SerializeToString().replace(b"_0", b"_\xc9")
        ),
        "cannot be opened",
    ),
    "weights elsewhere": (_outside, "weights lie outside of the file"),
}


@pytest.mark.parametrize("case", WITHOUT_SOURCE)
@pytest.mark.parametrize("side", SIDES)
def test_found_without_the_source(
    case: str, side: Side, graphs: dict[Side, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = WITHOUT_SOURCE[case]
    path = tmp_path / "graph.onnx"
    path.write_bytes(change if isinstance(change, bytes) else _edited(graphs[side], change))
    measured, ok = check_codec(path, side, MICRO, None, 1)
    assert ok is False
    assert any(part in measured for part in message.split("|")), measured
    assert measured.isprintable()
    assert capfd.readouterr().out == ""


def test_cut_off(graphs: dict[Side, bytes], tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    for size in (1, 100, 10_000, len(graphs["decoder"]) - 1):
        path.write_bytes(graphs["decoder"][:size])
        assert check_codec(path, "decoder", MICRO, None, 1)[1] is False


def test_one_side_in_the_place_of_the_other(graphs: dict[Side, bytes], tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graphs["encoder"])
    expected = "miso.part is 'mimi-encoder', expected 'mimi-decoder'"
    assert check_codec(path, "decoder", MICRO, None, 1) == (expected, False)


@pytest.mark.parametrize(
    ("value", "measured"), [(0.0, "gives silence"), (np.nan, "gives NaN or infinite samples")], ids=["0", "nan"]
)
def test_silence_and_nan(graphs: dict[Side, bytes], tmp_path: Path, value: float, measured: str) -> None:
    model = onnx.load_from_string(graphs["decoder"])
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value), tensor.name))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    assert check_codec(path, "decoder", MICRO, None, 1) == (measured, False)


WITH_SOURCE: dict[str, tuple[Side, Change, str]] = {
    "one entry": ("decoder", _with("quantizer.codebooks", _one_step), "1 of 262144 values of quantizer.codebooks are"),
    "codebooks swapped": (
        "decoder",
        _with("quantizer.codebooks", _swap_codebooks),
        " of 262144 values of quantizer.codebooks are not its source's; audio 1 dB SNR",
    ),
    "a bias": ("decoder", _constant, " are not its source's; audio "),
    "weights crossed": ("decoder", _cross_two_inputs, "weights as in its source; audio"),
    "encoder's bias": ("encoder", _constant, " are not its source's; "),
    "encoder's weights crossed": ("encoder", _cross_two_inputs, "weights as in its source; "),
}


@pytest.mark.parametrize("case", WITH_SOURCE)
def test_found_with_the_source(case: str, graphs: dict[Side, bytes], codec: Codec, tmp_path: Path) -> None:
    side, change, message = WITH_SOURCE[case]
    path = tmp_path / "graph.onnx"
    path.write_bytes(_edited(graphs[side], change))
    assert check_codec(path, side, MICRO, None, 1)[1] is True, "it runs, and nothing else can be said of it alone"
    measured, ok = check_codec(path, side, MICRO, codec, 1)
    assert message in measured
    assert ok is False


def test_a_graph_of_another_version(graphs: dict[Side, bytes], codec: Codec, tmp_path: Path) -> None:
    """Names may be others then; what it computes may not."""

    def rename(model: onnx.ModelProto) -> None:
        old = model.graph.initializer[0].name
        model.graph.initializer[0].name = "renamed"
        for node in model.graph.node:
            node.input[:] = ["renamed" if name == old else name for name in node.input]

    path = tmp_path / "graph.onnx"
    path.write_bytes(_edited(graphs["decoder"], rename))
    measured, ok = check_codec(path, "decoder", MICRO, codec, 1)
    assert measured.startswith("weights not compared (another version laid them out); audio 60 dB SNR")
    assert ok is True
    path.write_bytes(_edited(_edited(graphs["decoder"], _cross_two_inputs), rename))
    assert check_codec(path, "decoder", MICRO, codec, 1)[1] is False


def test_an_onnx_runtime_that_is_too_old(
    graphs: dict[Side, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the file's fault."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Unsupported model IR version: 10, max supported: 9")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    path = tmp_path / "graph.onnx"
    path.write_bytes(graphs["decoder"])
    measured, ok = check_codec(path, "decoder", MICRO, None, 1)
    assert ok is None
    assert "is too old for it (Unsupported model IR version: 10): pip install --upgrade onnxruntime" in measured
