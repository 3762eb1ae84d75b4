"""An ONNX graph of a bundle that carries state from call to call, as its own metadata describes it.

Knows ONNX Runtime and the metadata (docs/mimi.md, "The contract"), and nothing of what the graph computes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...core.errors import BundleError, MisoError
from ...core.printable import printable
from ...core.process import OwnProcess

State = list[NDArray[Any]]
"""The state between two calls, in the order of the metadata. Never changed in place, so that it can be shared."""

FORMAT = "1"
_REMEDY = "Convert again, or fetch the bundle again."
_PROVIDERS: Mapping[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # TF32 would round products to 10 bits: the encoder's nearest entries would change.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}
_TOO_NEW = re.compile(
    r"Could not find an implementation for \S+|Unsupported model IR version: \d+|Opset \d+ is under development"
)
"""What ONNX Runtime says of a graph that is newer than itself, or says so."""
_NUMBERS = ("codebooks", "cardinality", "sample_rate_hz", "frame_samples")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return printable(text)  # it has names from the file


def _checked_providers(provider: str) -> list[Any]:
    if provider not in _PROVIDERS:
        raise ValueError(f"the codec runs on {' or '.join(_PROVIDERS)}, not on {provider!r}")
    if provider == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise MisoError(
            f"onnxruntime {onnxruntime.__version__} is built without CUDA: for the codec on the GPU, "
            "`pip uninstall onnxruntime` and `pip install onnxruntime-gpu`, or leave it on the CPU"
        )
    return _PROVIDERS[provider]


class OnnxStream:
    """One graph, opened. May be stepped from several threads, each with a state of its own.

    Args:
        path: The ONNX file.
        part: What it must say it is (`miso.part`).
        threads: Threads of one call.
        provider: "cpu" or "cuda".

    Attributes:
        numbers: The codec's dimensions by name, from the metadata.

    Raises `BundleError` if the file is missing, damaged or not such a graph; `MisoError` or `ValueError` for the rest,
    an ONNX Runtime too old for the graph among it.
    """

    def __init__(self, path: Path, part: str, threads: int, provider: str) -> None:
        if threads < 1:
            raise ValueError(f"the codec needs at least 1 thread, not {threads}")
        self.path = path
        self._process = OwnProcess()
        self._session: Any = self._open(threads, _checked_providers(provider))
        if provider == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise MisoError(
                "onnxruntime-gpu could not start CUDA (its log above says why: usually a CUDA or cuDNN library of "
                "another version). Install what it names, or leave the codec on the CPU."
            )
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            self._read(metadata, part)
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"{path}: not a {part} graph of this program ({error!r}). {_REMEDY}") from error

    def _open(self, threads: int, providers: list[Any]) -> Any:
        if not self.path.is_file():
            raise BundleError(f"{self.path}: no such file. {_REMEDY}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # A thread that spins while it waits takes a core from the language model beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # From the CPU there is nothing to fall back to, and that would be printed to stdout.
            return onnxruntime.InferenceSession(
                str(self.path), options, providers=providers, enable_fallback=len(providers) - 1
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if newer := _TOO_NEW.search(str(error)):
                raise MisoError(
                    f"{self.path}: onnxruntime {onnxruntime.__version__} is too old for this graph ({newer[0]}): "
                    "`pip install --upgrade onnxruntime`, or convert again with this version of miso-gguf"
                ) from error
            raise BundleError(f"{self.path}: cannot be opened ({_one_line(error)}). {_REMEDY}") from error

    def _read(self, metadata: Mapping[str, str], part: str) -> None:
        if metadata["miso.part"] != part:
            raise ValueError(f"it is a {metadata['miso.part']}")
        if metadata["miso.format"] != FORMAT:
            raise ValueError(f"format {metadata['miso.format']}, this program reads {FORMAT}")
        self.numbers = {name: int(metadata[f"miso.{name}"]) for name in _NUMBERS}
        if min(self.numbers.values()) < 1:
            raise ValueError(f"dimensions {self.numbers}")
        entries = json.loads(metadata["miso.state"])
        self._state_inputs = [str(entry["input"]) for entry in entries]
        state_outputs = [str(entry["output"]) for entry in entries]
        self._initial: State = [
            np.full([1 if size == "batch" else size for size in entry["shape"]], entry["init"], entry["dtype"])
            for entry in entries
        ]
        (self._input,) = {node.name for node in self._session.get_inputs()} - set(self._state_inputs)
        (output,) = {node.name for node in self._session.get_outputs()} - set(state_outputs)
        self._outputs = [output, *state_outputs]

    def check_usable(self) -> None:
        """Raise `MisoError` after `close`, or in a child forked since: ONNX Runtime would wait for threads it lacks."""
        self._process.check()
        if self._session is None:
            raise MisoError("the codec is closed: open it or load its model again")

    def start(self) -> State:
        """The state of a stream at its start. Raises `MisoError` as `step`."""
        self.check_usable()
        return self._initial

    def step(self, data: NDArray[Any], state: State) -> tuple[NDArray[Any], State]:
        """One call: the output for `data`, and the state after it; `state` stays valid.

        Raises `BundleError` if ONNX Runtime cannot compute the graph, `MisoError` after `close` or a fork.
        """
        session = self._session  # kept for the whole call: another thread may close meanwhile
        self.check_usable()
        # Arrays go in and come out uncopied: this is as fast as binding the state to ONNX Runtime's own buffers.
        feed = {self._input: data, **dict(zip(self._state_inputs, state, strict=True))}
        try:
            result, *after = session.run(self._outputs, feed)
        except Exception as error:
            raise BundleError(f"{self.path}: cannot be computed ({_one_line(error)}). {_REMEDY}") from error
        return result, after

    def close(self) -> None:
        """Let go of the graph. May be called again; a forked child keeps it, whose end would wait for lost threads."""
        if self._process.is_here:
            self._session = None
