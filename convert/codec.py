"""The two Mimi graphs of a bundle, from a Mimi checkpoint or from the codec tensors inside a CSM checkpoint."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.arrays import F32Array
from ..core.errors import CheckpointError
from ..core.note import NOTE
from ..models.mimi import codebook_names, mimi_shapes, recognise_mimi
from .checkpoint.foreign import CODEC, refuse_tensors
from .checkpoint.hf_layout import check_mimi_config
from .checkpoint.open import Checkpoint, open_store
from .checkpoint.tensor_store import SourcePath
from .checkpoint.wrapping import Unwrapped, unwrap
from .checkpoint.zeros import refuse_arrays
from .mimi.weights import ANCHORS, Weights, kyutai_shapes, mimi_weights

if TYPE_CHECKING:
    from .mimi.graph import WeightDtype

DECODER_NAME = "mimi-decoder.onnx"
ENCODER_NAME = "mimi-encoder.onnx"

_GRAPH_BYTES, _GRAPH_LAYER_BYTES = 64_000, 15_300
"""Of both graphs without their weights: of convolutions and quantiser, and of a layer of the transformers.

Read off the published codec's (8 layers) and the tiny one's (2).
"""

log = logging.getLogger(__name__)


def _in_decoder(name: str) -> bool:
    return not name.startswith(("encoder", "downsample"))


def _in_encoder(name: str) -> bool:
    return not name.startswith(("decoder", "upsample"))


def _check_config_beside(path: SourcePath) -> None:
    """Hugging Face's Mimi has a config of its own; other models' may lie there too."""
    file = path.parent / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(config, dict) and config.get("model_type") == "mimi":
        try:
            check_mimi_config(config)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error


class Codec:
    """The codec of one conversion. Recognised and checked at once, read only when a graph is built.

    Raises `CheckpointError` if there is no codec, or not one for this model.
    """

    def __init__(self, path: SourcePath | None, checkpoint: Checkpoint, allow_zero: bool = False) -> None:
        self._is_checked = allow_zero
        self._path = path
        self._checkpoint = checkpoint
        if path is None and not checkpoint.codec_shapes:
            raise CheckpointError("no Mimi codec beside the checkpoint: pass Kyutai's Mimi file with --mimi FILE")
        self._name = path or checkpoint.store.files[0]
        if path is not None:
            _check_config_beside(path)
        shapes = checkpoint.codec_shapes if path is None else self._open_shapes(path)
        try:
            found = recognise_mimi(kyutai_shapes(shapes))
        except CheckpointError as error:
            refuse_tensors(shapes, self._name, CODEC)
            raise CheckpointError(f"{self._name}: {error}") from error
        spec = checkpoint.spec
        if found.codebooks < spec.codebooks or found.cardinality > spec.audio_vocab:
            raise CheckpointError(
                f"{self._name}: this codec has {found.codebooks} codebooks of {found.cardinality} codes, "
                f"{spec.name} needs {spec.codebooks} codebooks of at most {spec.audio_vocab}"
            )
        self.spec = replace(found, codebooks=spec.codebooks)

    @property
    def size_estimate_bytes(self) -> int:
        """The size of both files but for a few kilobytes: the decoder's matrices are F16, all else F32.

        Codebooks are in both. Scales are multiplied into matrices, and in the decoder usage counts into codebooks.
        """
        size_bytes = _GRAPH_BYTES + _GRAPH_LAYER_BYTES * self.spec.layers
        for name, shape in mimi_shapes(self.spec).items():
            if "layer_scale" in name:
                continue
            if _in_decoder(name) and "input_proj" not in name and "cluster_usage" not in name:
                # Upsampling is by channel: there is no matrix.
                size_bytes += math.prod(shape) * (2 if len(shape) > 1 and "upsample" not in name else 4)
            if _in_encoder(name) and "output_proj" not in name:
                size_bytes += math.prod(shape) * 4
        return size_bytes

    def decoder_graph(self) -> bytes:
        """The streaming decoder as ONNX, weights stored as F16 and computed in F32."""
        return self._decoder("float16")

    def exact_decoder_graph(self) -> bytes:
        """The same with weights that are not rounded: what the other one is compared with."""
        return self._decoder("float32")

    def _decoder(self, weight_dtype: "WeightDtype") -> bytes:
        from .mimi.export import export_decoder  # noqa: PLC0415  (spox: half of the time that a command takes to start)

        return export_decoder(self.spec, self._weights(_in_decoder), weight_dtype)

    def encoder_graph(self) -> bytes:
        """The encoder as ONNX, weights in F32: rounding them would change codes."""
        from .mimi.export import export_encoder  # noqa: PLC0415

        return export_encoder(self.spec, self._weights(_in_encoder), "float32")

    def _open_shapes(self, path: SourcePath) -> dict[str, tuple[int, ...]]:
        codec = _open(path)
        if codec.note:
            log.warning("%s", codec.note, extra=NOTE)
        codec.store.close()
        return dict(codec.store.shapes)

    def _weights(self, wanted: Callable[[str], bool]) -> Weights:
        store = self._checkpoint.store if self._path is None else _open(self._path).store
        try:
            names = self._checkpoint.codec_shapes if self._path is None else store.shapes
            tensors: dict[str, F32Array] = {}
            for name in names:
                shape = store.shapes[name]
                if shape:
                    tensors[name] = store.read(name, 0, shape[0])
            weights = self._named(tensors)
            if not self._is_checked:  # once for both graphs
                books = {f"{name}.embedding_sum" for name in codebook_names(self.spec)}
                refuse_arrays(weights, books, self._name)
                self._is_checked = True
            return {name: array for name, array in weights.items() if wanted(name)}
        finally:
            if self._path is not None:
                store.close()

    def _named(self, tensors: Mapping[str, F32Array]) -> Weights:
        try:
            return mimi_weights(tensors, self.spec)[1]
        except CheckpointError as error:
            raise CheckpointError(f"{self._name}: {error}") from error


def _open(path: SourcePath) -> Unwrapped:
    store = open_store(path, CODEC)
    try:
        return unwrap(store, path, ANCHORS, choose="save the one that is meant alone, and pass that with --mimi")
    except BaseException:
        store.close()
        raise
