"""The layouts of checkpoints that are read, one entry of a table each.

An entry says how tensors and config of the layout are recognised, what upstream's tensors are called in it, in which
order their rows are, and what it holds beside them. Nothing else asks which layout a checkpoint has: a new one is one
more entry, and a file of its own if it is long.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import CheckpointError
from ...models.flavors import recognise
from ...models.spec import ModelSpec
from ...models.tensors import checkpoint_shapes
from . import hf_layout
from .foreign import CONFIG, refuse_file
from .tensor_store import SMALL_BYTES, Shape, SourcePath, TensorSource, check_regular

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """One way to lay out the weights of a CSM model. Upstream's answers are the defaults."""

    name: str
    has_tensors: Callable[[Collection[str]], bool]
    """Whether these are the names of a checkpoint of this layout."""
    has_config: Callable[[Mapping[str, Any]], bool]
    """Whether this is the content of a config of this layout."""
    spec_from_config: Callable[[Mapping[str, Any]], ModelSpec]
    """Raises `CheckpointError` or `ValueError` on a config that no bundle could express."""
    sources: Callable[[ModelSpec, Collection[str]], Mapping[str, TensorSource]]
    """Of every upstream tensor, where it is among a checkpoint's names."""
    anchors: tuple[str, ...] = ()
    """Some of the names, by which weights are found where they lie under a prefix."""
    config_name: str | None = None
    """The file beside the checkpoint without which its dimensions are not known."""
    completed: Callable[[ModelSpec, Collection[str]], ModelSpec] = lambda spec, _names: spec
    """The spec, with what only the checkpoint's names say."""
    unpermuted: Callable[[Rows, int], Rows] = lambda rows, _head_dim: rows
    """Whole heads of a query or key projection in upstream's order of rows."""
    is_ignored: Callable[[str], bool] = lambda _name: False
    """Whether a tensor that is no upstream tensor's source may be passed over."""
    other_name: Callable[[str, Collection[str]], str | None] = lambda _name, _names: None
    """Another of the names for the tensor that a name means."""
    codec_prefix: str | None = None
    """What the names of the codec's tensors begin with, if it lies in the same files."""


UPSTREAM = Layout(
    name="upstream",
    has_tensors=lambda _names: True,  # the last to be asked: what it lacks is listed
    has_config=lambda config: "backbone" in config,
    spec_from_config=lambda config: ModelSpec.from_dict(dict(config)),
    sources=lambda spec, _names: {name: TensorSource(name) for name in checkpoint_shapes(spec)},
    anchors=(
        "backbone.norm.scale",
        "decoder.norm.scale",
        "text_embeddings.weight",
        "audio_embeddings.weight",
        "projection.weight",
        "codebook0_head.weight",
        "audio_head",
    ),
)
"""torchtune's names, as Miso and Sesame publish them; its config is a model spec as the manifest has it."""

HUGGING_FACE = Layout(
    name="Hugging Face",
    has_tensors=hf_layout.is_hf_layout,
    has_config=lambda config: "backbone" not in config,  # what it lacks is named
    spec_from_config=hf_layout.spec_from_config,
    sources=hf_layout.hf_sources,
    anchors=(
        "backbone_model.norm.weight",
        "depth_decoder.model.norm.weight",
        "depth_decoder.model.inputs_embeds_projector.weight",
        "depth_decoder.codebooks_head.weight",
        "lm_head.weight",
    ),
    config_name="config.json",
    completed=hf_layout.completed,
    unpermuted=hf_layout.unpermute_rows,
    is_ignored=hf_layout.hf_ignored,
    other_name=hf_layout.hf_other_name,
    codec_prefix=hf_layout.CODEC_PREFIX,
)
"""`CsmForConditionalGeneration` of transformers."""

LAYOUTS = (HUGGING_FACE, UPSTREAM)
"""In the order in which they are tried."""
CONFIG_NAMES = tuple(layout.config_name for layout in LAYOUTS if layout.config_name)


def anchors() -> list[tuple[str, ...]]:
    """Each layout's, for `wrapping.unwrap`."""
    return [layout.anchors for layout in LAYOUTS]


def layout_of(names: Collection[str]) -> Layout:
    """The layout of a checkpoint with tensors of these names."""
    return next(layout for layout in LAYOUTS if layout.has_tensors(names))


def codec_prefix(names: Collection[str]) -> str | None:
    """What the codec's tensors among `names` begin with; None if there are none."""
    prefixes = [layout.codec_prefix for layout in LAYOUTS if layout.codec_prefix]
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), None)


def spec_of(
    layout: Layout, shapes: Mapping[str, Shape], config: Path | None, directory: SourcePath, path: SourcePath
) -> ModelSpec:
    """The model that a checkpoint holds: as `config` says, or the file in `directory` that the layout needs.

    `config` may be of any layout: those of published models lie beside files of both. Raises `CheckpointError`.
    """
    if config is not None or layout.config_name is not None:
        return layout.completed(_read_config(layout, config or directory / str(layout.config_name)), shapes)
    try:
        return recognise(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_config(layout: Layout, path: SourcePath) -> ModelSpec:
    try:
        return _config_of(layout, path)
    except CheckpointError:
        refuse_file(path, CONFIG)
        raise


def _config_of(layout: Layout, path: SourcePath) -> ModelSpec:
    try:
        check_regular(path, SMALL_BYTES)
        config: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        needs = f": a checkpoint in {layout.name} layout needs its {layout.config_name} beside it, or --config FILE"
        raise CheckpointError(f"{path}: no such file{needs if layout.config_name else ''}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    owner = next(layout for layout in LAYOUTS if layout.has_config(config))
    try:
        return owner.spec_from_config(config)
    except (CheckpointError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}") from error
