"""Which file of a directory or repository is the checkpoint, by the names alone: nothing is opened here."""

import re
from collections.abc import Collection, Container

from ...core.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
PREFERRED = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "ckpt.pt",
)
"""What a model's weights are called where there is a custom, the first that is there wins."""
_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_NEVER = re.compile(
    r"(?:optim|(?:lr_)?sched|(?:grad_)?scaler|rng_|random_states|sampler|dataloader|training_args|trainer_state|adapter_|"
    r"imatrix|tokenizer|mimi\.safetensors|.*_optim_states\.)",
    re.I,
)
"""How the names of a trainer's files, an adapter's and the codec's begin: no checkpoint, even alone."""
_COPY = re.compile(r"(?:ema|mimi|codec|vocoder|voices?|speakers?|embeddings?)(?![a-z])|.*[_.-]ema\.", re.I)
"""How the name of a file begins, or ends, that is not meant if there is another one."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_MAX_SHARDS = 10_000
_LISTED = 8


def may_be_checkpoint(name: str) -> bool:
    """Whether a file of this name can be a checkpoint, or part of one."""
    return name.endswith(SUFFIXES) and not _NEVER.match(name)


def checkpoint_name(names: Collection[str], place: object) -> str:
    """The checkpoint among the files of `place`: a whole file, an index, or the first of shards without an index.

    Raises `CheckpointError` if there is none, if several may be meant, or if shards are missing.
    """
    for name in PREFERRED:
        if name in names:
            return name
    found = sorted(name for name in names if name.endswith(_INDEX_SUFFIXES))
    if not found:
        files = sorted(filter(may_be_checkpoint, names))
        found = [name for name in files if not _COPY.match(name)] or files
    sets = dict.fromkeys(shards_of(name, names, place)[0] for name in found)
    if len(sets) == 1:
        return next(iter(sets))
    listed = ", ".join(list(sets)[:_LISTED]) + ", ..." * (len(sets) > _LISTED)
    raise CheckpointError(
        f"{place}: expected one checkpoint ({', '.join(PREFERRED[:2])} or a .pt file), found {listed or 'none'}. "
        "Pass the file itself."
    )


def shards_of(name: str, names: Container[str], place: object) -> list[str]:
    """The files that make up a checkpoint with `name`, which may be one of several: `model-00002-of-00003.safetensors`.

    Raises `CheckpointError` if some of them are not among `names`.
    """
    match = _SHARD.fullmatch(name)
    if match is None or not name.endswith(SUFFIXES) or not 1 <= int(match["count"]) <= _MAX_SHARDS:
        return [name]
    numbers = range(1, int(match["count"]) + 1)
    shards = [f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}" for number in numbers]
    missing = [shard for shard in shards if shard not in names]
    if missing:
        listed = ", ".join(missing[:_LISTED]) + ", ..." * (len(missing) > _LISTED)
        raise CheckpointError(
            f"{place}: {len(missing)} of {len(shards)} shards are missing beside {name}: {listed}. Download them too."
        )
    return shards
