"""The codec's graphs of a bundle: do they open and run as they must, and are they what the codec's source makes?

With the source, graphs are built anew from its weights in float32. They must compute the same, and hold the same
weights: a test signal does not reach every entry of every codebook.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from ...core.printable import printable
from ...models.mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ
from ...models.spec import ModelSpec
from ..codec import Codec

Side = Literal["decoder", "encoder"]
Verdict = tuple[str, bool | None]
"""(what was measured, whether it is well). None: it could not be checked here."""

MIN_SNR_DB = 40.0
"""Of the audio, against a decoder whose weights are not rounded: F16 weights cost 58 dB, two codebooks exchanged 0."""
MAX_OTHER_CODES = 0.02
"""Part of the encoder's codes: entries may be equally near for two builds of ONNX Runtime. As a rule none differs."""
_MAX_CHUNK_ERROR = 1e-4
"""Between one call and two, in parts of the peak."""

_FRAMES, _FIRST_CALL = 12, 5
_MAX_STATE = 1 << 27
"""Values of a graph's state. Full size has two million."""
_NUMBERS = ("codebooks", "cardinality", "sample_rate_hz", "frame_samples")
_FORMAT = "1"
_TYPES: Mapping[Side, tuple[str, ...]] = {"decoder": ("float16", "float32"), "encoder": ("float32",)}
"""How weights may be stored. Rounded, those of the encoder would give other codes."""
_TOO_OLD = re.compile(
    r"Could not find an implementation for \S+|Unsupported model IR version: \d+|Opset \d+ is under development"
)
"""What ONNX Runtime says of a graph that is newer than itself, or says so."""
_Array = NDArray[Any]


class _FaultError(Exception):
    """What is wrong with a graph."""


class _TooOldError(Exception):
    """ONNX Runtime cannot tell."""


def check_codec(path: Path, side: Side, spec: ModelSpec, source: Codec | None, threads: int) -> Verdict:
    """One of the two graphs: alone, or compared with what `source` makes. Raises only if the source cannot be read."""
    try:
        content = path.read_bytes()
        values = _values(content)
        graph = _Graph(content, side, spec, threads)
        found = graph.run_in_two_ways()
        if source is None:
            return f"opens and computes {_FRAMES} frames", True
    except Exception as error:  # onnx and ONNX Runtime raise what they like, and a damaged file is no reason to end
        return _verdict(error)
    made = source.exact_decoder_graph() if side == "decoder" else source.encoder_graph()
    try:
        reference = _Graph(made, side, spec, threads)
        for name, number in reference.numbers.items():
            if graph.numbers[name] != number:
                return f"miso.{name} is {graph.numbers[name]}, its source has {number}", False
        weights, are_equal = _compared_weights(values, _values(made), side)
        output, is_equal = _compared_output(found, reference.run_in_two_ways(), side)
    except Exception as error:
        return _verdict(error)
    return f"{weights}; {output}", are_equal and is_equal


def _verdict(error: Exception) -> Verdict:
    if isinstance(error, _TooOldError):
        version = onnxruntime.__version__
        return f"not run: onnxruntime {version} is too old for it ({error}): pip install --upgrade onnxruntime", None
    return str(error) if isinstance(error, _FaultError) else f"cannot be computed: {_one_line(error)}", False


class _Graph:
    """A graph, opened, with its state as its metadata describes it (docs/mimi.md, "The contract")."""

    def __init__(self, content: bytes, side: Side, spec: ModelSpec, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        try:
            # Its fallback to the CPU, where we are, prints to stdout.
            self._session: Any = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if newer := _TOO_OLD.search(str(error)):
                raise _TooOldError(newer[0]) from error
            raise _FaultError(f"cannot be opened: {_one_line(error)}") from error
        self._side = side
        try:
            self._read(self._session.get_modelmeta().custom_metadata_map, spec)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise _FaultError(
                f"is no mimi-{side} of this program: its metadata lacks or misstates {_one_line(error)}"
            ) from error

    def _read(self, metadata: Mapping[str, str], spec: ModelSpec) -> None:
        for key, wanted in (("miso.part", f"mimi-{self._side}"), ("miso.format", _FORMAT)):
            if metadata[key] != wanted:
                raise _FaultError(f"{key} is {metadata[key][:40]!r}, expected {wanted!r}")
        self.numbers = {name: int(metadata[f"miso.{name}"]) for name in _NUMBERS}
        wanted_numbers = {"codebooks": spec.codebooks, "sample_rate_hz": SAMPLE_RATE_HZ, "frame_samples": FRAME_SAMPLES}
        for name, number in wanted_numbers.items():
            if self.numbers[name] != number:
                raise _FaultError(f"miso.{name} is {self.numbers[name]}, expected {number}")
        if not 0 < self.numbers["cardinality"] <= spec.audio_vocab:
            raise _FaultError(
                f"miso.cardinality is {self.numbers['cardinality']}, the model has {spec.audio_vocab} codes"
            )
        entries = json.loads(metadata["miso.state"])
        self._state_inputs = [entry["input"] for entry in entries]
        shapes = [[1 if size == "batch" else size for size in entry["shape"]] for entry in entries]
        if sum(int(np.prod(shape, dtype=object)) for shape in shapes) > _MAX_STATE:
            raise _FaultError(f"its state of {shapes} is too large to be a codec's"[:300])
        self._start = [
            np.full(shape, entry["init"], entry["dtype"]) for shape, entry in zip(shapes, entries, strict=True)
        ]
        state_outputs = [entry["output"] for entry in entries]
        (self._input,) = {node.name for node in self._session.get_inputs()} - set(self._state_inputs)
        (output,) = {node.name for node in self._session.get_outputs()} - set(state_outputs)
        self._outputs = [output, *state_outputs]

    def run_in_two_ways(self) -> _Array:
        """What comes out for the test signal. Raises `_FaultError` if it is none, or another in two calls."""
        data = _test_codes(self.numbers) if self._side == "decoder" else _test_audio()
        whole, _ = self._step(data, self._start)
        expected = (1, 1, _FRAMES * FRAME_SAMPLES) if self._side == "decoder" else _test_codes(self.numbers).shape
        if whole.shape != expected:
            raise _FaultError(f"gives {list(whole.shape)} for {list(data.shape)}, expected {list(expected)}")
        if self._side == "decoder":
            if not np.isfinite(whole).all():
                raise _FaultError("gives NaN or infinite samples")
            if whole.min() == whole.max():
                raise _FaultError("gives silence")
        elif whole.min() < 0 or whole.max() >= self.numbers["cardinality"]:
            raise _FaultError(f"gives codes from {whole.min()} to {whole.max()}")
        cut = _FIRST_CALL * (1 if self._side == "decoder" else FRAME_SAMPLES)
        first, state = self._step(data[..., :cut], self._start)
        second, _ = self._step(data[..., cut:], state)
        apart = np.concatenate([first, second], axis=2)
        if self._side == "decoder":
            carried = np.abs(apart - whole).max() <= _MAX_CHUNK_ERROR * np.abs(whole).max()
        else:
            carried = np.mean(apart != whole) <= MAX_OTHER_CODES
        if not carried:
            raise _FaultError("gives something else in two calls than in one: its state is not carried")
        return whole

    def _step(self, data: _Array, state: list[_Array]) -> tuple[_Array, list[_Array]]:
        feed = {self._input: data, **dict(zip(self._state_inputs, state, strict=True))}
        result, *after = self._session.run(self._outputs, feed)
        return result, after


def _test_codes(numbers: Mapping[str, int]) -> _Array:
    return np.random.default_rng(0).integers(0, numbers["cardinality"], (1, numbers["codebooks"], _FRAMES))


def _test_audio() -> _Array:
    """A rising tone that swells like syllables, and a little noise."""
    seconds = np.arange(_FRAMES * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * (120 * seconds + 40 * seconds**2)) * (1 + np.sin(6 * np.pi * seconds))
    noise = np.random.default_rng(0).standard_normal(len(seconds))
    samples: _Array = (0.15 * tone + 0.03 * noise).astype(np.float32)
    return samples[None, None]


def _compared_output(found: _Array, wanted: _Array, side: Side) -> tuple[str, bool]:
    if side == "encoder":
        other = int(np.sum(found != wanted))
        return f"{other} of {wanted.size} codes differ from its source's", other <= MAX_OTHER_CODES * wanted.size
    error = np.linalg.norm(found.astype(np.float64) - wanted)
    if error == 0:
        return "audio as its source's", True
    snr = 20 * np.log10(np.linalg.norm(wanted) / error)
    return f"audio {snr:.0f} dB SNR against its source's, at least {MIN_SNR_DB:.0f}", bool(snr >= MIN_SNR_DB)


def _values(content: bytes) -> dict[str, _Array]:
    """Weights and constants by name."""
    try:
        graph = onnx.load_from_string(content).graph
    except Exception as error:  # google.protobuf's own, which is not imported here
        raise _FaultError(f"is no ONNX file: {_one_line(error)}") from error
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.TENSOR:
                tensors[f"{node.output[0]}.{entry.name}"] = entry.t
    if outside := [name for name, tensor in tensors.items() if tensor.data_location == onnx.TensorProto.EXTERNAL]:
        raise _FaultError(f"weights lie outside of the file: {outside[0][:80]!r}")
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def _compared_weights(found: Mapping[str, _Array], wanted: Mapping[str, _Array], side: Side) -> tuple[str, bool]:
    """Weight by weight; graphs that another version built, with other names, are judged by what they compute."""
    if found.keys() != wanted.keys():
        return "weights not compared (another version laid them out)", True
    for name, array in wanted.items():
        stored, shown = found[name], _plain(name)
        types = _TYPES[side] if array.dtype == np.float32 else (array.dtype.name,)
        if stored.shape != array.shape or stored.dtype.name not in types:
            return f"{shown} is {stored.dtype.name} {list(stored.shape)}, not {types[0]} {list(array.shape)}", False
        with np.errstate(over="ignore"):
            other = int(np.sum(stored != array.astype(stored.dtype)))
        if other:
            return f"{other} of {array.size} values of {shown} are not its source's", False
    return "weights as in its source", True


def _plain(text: str) -> str:
    return printable(text[:200])


def _one_line(error: Exception) -> str:
    return _plain(" ".join(str(error).split())) or type(error).__name__
