"""The weights inside what people save: under a trainer's keys, under a wrapper's prefixes, among buffers.

A dictionary in a dictionary is a prefix (`model.backbone...`), and so it is all one: a prefix under which most of a
layout's anchors are is where weights are. One is taken; of several (weights and their EMA copy) the user chooses.
"""

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from .tensor_store import Shape, SourcePath, TensorStore, is_plain_name
from .unpickle import Inert, Tensor

TOP = "."
"""The key of weights that are under no prefix."""

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""What wrappers of modules put into names, anywhere; no tensor of a model is called so."""
_BUFFERS = re.compile(
    r"""(?:^|.*\.)(?:
    (?:backbone_|decoder_)?(?:causal_)?mask | attn_mask | attention_mask | bias_mask
    | (?:original_)?inv_freq | freqs_(?:cis|cos|sin) | (?:cos|sin)_(?:cached?|table) | position_ids
    | (?:rope|rotary_emb|rotary_pos_emb|pos_embeddings?)\.(?:theta|cache|freqs|inv_freq|cos|sin)
    | (?:kv_)?cache\.(?:k_cache|v_cache|cache_pos|size) | k_cache | v_cache | cache_pos
    | audio_tokens_offsets | num_batches_tracked | n_averaged | _?initialized | inited | _extra_state | _metadata
    )$""",
    re.VERBOSE,
)
"""What upstream and libraries save along and every loader computes anew."""
_STATE = re.compile(
    r"(?:optim(?:i[sz]er)?s?(?:_|$)|opt_state|(?:lr_)?sched|(?:grad_)?scaler|exp_avg|momentum_buf|grad(?:ient)?s?$|"
    r"rng_|random_state)",
    re.I,
)
"""How a part begins that holds a trainer's state: nothing in it is weights, though it may have their names."""
_RECORD = re.compile(
    r"(?:epoch|(?:global_|current_)?step|iter(?:ation)?s?|loops|callbacks|args|config|hyper_parameters|hparams|"
    r"train(?:er|ing)?_.*|best_.*|loss|metrics|stats|meta(?:data)?)$",
    re.I,
)
"""What else a trainer notes down beside weights."""
_LISTED, _SHOWN = 8, 40
_MAX_DEPTH, _MAX_PARTS = 64, 200_000


@dataclass(frozen=True)
class Unwrapped:
    """Weights by the names that their layout gives them."""

    store: TensorStore
    note: str
    """What was chosen and left out, in one line; empty if there was nothing to choose."""


class _Renamed:
    """A store with some of its tensors, under other names."""

    def __init__(self, store: TensorStore, names: Mapping[str, str], left_out: Collection[str]) -> None:
        self._store = store
        self._names = names
        self.shapes: dict[str, Shape] = {name: store.shapes[there] for name, there in names.items()}
        self.left_out = left_out

    @property
    def files(self) -> Sequence[SourcePath]:
        return self._store.files

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        return self._store.position(self._names[name], row)

    def check_dtype(self, name: str) -> None:
        self._store.check_dtype(self._names[name])

    def read(self, name: str, start: int, stop: int) -> F32Array:
        return self._store.read(self._names[name], start, stop)

    def close(self) -> None:
        self._store.close()


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is no weight: every loader computes it anew."""
    return bool(_BUFFERS.match(name))


def unwrap(
    store: TensorStore, path: SourcePath, anchors: Sequence[Collection[str]], key: str | None = None, choose: str = ""
) -> Unwrapped:
    """Find the weights among the tensors of a store.

    Args:
        store: The tensors as the files name them.
        path: For messages.
        anchors: For each layout, some names that a checkpoint of it has.
        key: Where the weights are: what the user chose.
        choose: What the user can do if there is more than one place.

    Raises:
        CheckpointError: There are several places and no `key`, or none of that key; or two names mean one tensor.
    """
    candidates = _candidates(store.shapes, anchors)
    prefix = _chosen(store, path, candidates, key, choose or "say which is meant with --key NAME")
    names: dict[str, str] = {}
    others: list[str] = []
    for name in store.shapes:
        inside = _inside(name, prefix, candidates)
        if inside is None or (not prefix and _is_trainers(name)):
            others.append(name)
        elif (there := names.setdefault(inside, name)) != name and not _same(store, there, name):
            raise CheckpointError(f"{path}: {there} and {name} are both {inside}: remove the one that is not meant")
    buffers = [name for name in names if is_buffer(name)]
    notes = [f"the weights are under '{prefix}'"] if prefix else []
    left_out = [f"{part} ({n} tensor{'s' * (n > 1)})" for part, n in Counter(map(_part, others)).items()]
    left_out += [name for name in buffers if not name.endswith("initialized")]  # in every file of Mimi
    if left_out:
        notes.append("left out: " + ", ".join(left_out[:_LISTED]) + ", ..." * (len(left_out) > _LISTED))
    names = {name: there for name, there in names.items() if name not in buffers}
    if all(name == there for name, there in names.items()) and len(names) == len(store.shapes):
        return Unwrapped(store, "")
    beside = [inside for name in store.left_out if (inside := _inside(name, prefix, candidates)) is not None]
    return Unwrapped(_Renamed(store, names, beside), f"{path}: {'; '.join(notes)}" if notes else "")


def _candidates(names: Collection[str], anchors: Sequence[Collection[str]]) -> dict[str, None]:
    """Every prefix under which most anchors of some layout are, without its last dot, in the order of the file."""
    endings: dict[str, list[tuple[int, list[str]]]] = {}
    for layout, group in enumerate(anchors):
        for anchor in group:
            parts = anchor.split(".")
            endings.setdefault(parts[-1], []).append((layout, parts))
    for spellings in endings.values():
        spellings.sort(key=lambda ending: -len(ending[1]))  # the whole name of one may be the end of another's
    votes: Counter[tuple[str, int]] = Counter()
    for name in names:
        parts = name.split(".")
        for layout, ending in endings.get(parts[-1], ()):
            prefix = _before(parts, ending)
            if prefix is not None:
                votes[prefix, layout] += 1
                break
    found = [prefix for (prefix, layout), count in votes.items() if 2 * count > len(anchors[layout])]
    return dict.fromkeys(prefix for prefix in found if not any(map(_STATE.match, prefix.split("."))))


def _before(parts: list[str], ending: list[str]) -> str | None:
    """What precedes `ending` in a name whose parts may have wrappers between them; None if it does not end so."""
    at = len(parts)
    for wanted in reversed(ending):
        at -= 1
        while at >= 0 and parts[at] != wanted and parts[at] in _WRAPPERS:
            at -= 1
        if at < 0 or parts[at] != wanted:
            return None
    return ".".join(parts[:at])


def _inside(name: str, prefix: str, candidates: Collection[str]) -> str | None:
    """The name that a tensor has under the prefix, without wrappers; None if it is elsewhere, in another copy too."""
    parts = name.split(".")
    above = (".".join(parts[:count]) for count in reversed(range(len(parts))))
    if next((place for place in above if place in candidates or place == prefix), None) != prefix:
        return None
    return ".".join(part for part in parts[prefix.count(".") + 1 if prefix else 0 :] if part not in _WRAPPERS)


def _chosen(store: TensorStore, path: SourcePath, candidates: Collection[str], key: str | None, choose: str) -> str:
    if key is None:
        distinct = _distinct(store, candidates)
        if len(distinct) > 1:
            raise CheckpointError(f"{path}: weights are in {len(distinct)} places ({_listed(distinct)}): {choose}")
        return distinct[0] if distinct else ""
    wanted = "" if key == TOP else key.strip(".")
    found = [prefix for prefix in candidates if prefix == wanted]
    found = found or [prefix for prefix in candidates if wanted and f"{prefix}.".startswith(f"{wanted}.")]
    if len(found) != 1:
        where = _listed(found or list(candidates)) or "none"
        raise CheckpointError(f"{path}: --key {key}: weights are in: {where}")
    return found[0]


def _listed(prefixes: Sequence[str]) -> str:
    return ", ".join(prefix or TOP for prefix in prefixes[:_LISTED]) + ", ..." * (len(prefixes) > _LISTED)


def _distinct(store: TensorStore, candidates: Collection[str]) -> list[str]:
    """The candidates, one of each group that are the very same bytes of the file under several keys."""
    if len(candidates) < 2 or len(candidates) > _LISTED:
        return list(candidates)
    seen: dict[Any, str] = {}
    for prefix in candidates:
        inside = {name: _inside(name, prefix, candidates) for name in store.shapes}
        content = sorted((i, store.position(n), store.shapes[n]) for n, i in inside.items() if i and not is_buffer(i))
        seen.setdefault(tuple(content), prefix)
    return list(seen.values())


def _same(store: TensorStore, name: str, other: str) -> bool:
    return store.position(name) == store.position(other) and store.shapes[name] == store.shapes[other]


def _is_trainers(name: str) -> bool:
    part = _part(name)
    return bool(_STATE.match(part) or _RECORD.match(part))


def _part(name: str) -> str:
    return next((part for part in name.split(".") if part not in _WRAPPERS), name)


def flatten(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside by its dotted path, of a whole pickled module by the names of its state dict."""
    budget = [_MAX_PARTS]
    yield from _flatten(value, "", frozenset(), budget)


def _flatten(value: Any, path: str, above: frozenset[int], budget: list[int]) -> Iterator[tuple[str, Tensor]]:
    if id(value) in above or len(above) > _MAX_DEPTH:
        return
    if isinstance(value, Tensor):
        yield path, value
    for name, part in _parts(value):
        if isinstance(part, Tensor | dict | list | tuple | Inert):
            budget[0] -= 1
            if budget[0] < 0:
                raise ValueError(f"more than {_MAX_PARTS} parts")
            inside = f"{path}.{_printable(str(name))}" if path else str(name)
            yield from _flatten(part, inside, above | {id(value)}, budget)


def _printable(key: str) -> str:
    """A key as it is, and one that is no name (a prompt, say, beside the weights) so that it can be printed."""
    if is_plain_name(key):
        return key
    return f"{key[:_SHOWN].encode('unicode_escape').decode()}...{zlib.crc32(key.encode(errors='replace')):08x}"


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Inert):
        if isinstance(value.parts.get("_modules"), dict):
            for kind in ("_parameters", "_buffers", "_modules"):
                yield from _parts(value.parts.get(kind))
        else:
            yield from value.parts.items()
