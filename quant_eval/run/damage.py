"""A level of a bundle, damaged on purpose: by a wrong scale for every group of weights.

In all matrices of all layers of one half of the model or of both: what a converter with a fault in its block scales
would write. `python -m miso_gguf.quant_eval.run.damage BUNDLE LEVEL STRENGTH OUT` makes one to try an evaluation with.
"""

import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from gguf import GGMLQuantizationType as Qtype

from ...core.arrays import F32Array, U8Array
from ...core.errors import MisoError
from ...core.files import PARTIAL_SUFFIX, file_sha256
from ...models.manifest import MANIFEST_NAME, BundleFile, Manifest
from ...native.gguf_file import GgufFile
from ...runtime.bundle import OpenLevel, open_bundle, open_level

Half = Literal["backbone", "decoder", "both"]
"""What of the model is damaged."""
HALVES: tuple[Half, ...] = get_args(Half)
MOST = 4.0
"""The largest strength. From 1 on scales change their signs, so that nothing of what was learnt is left."""

_GROUP = 32
"""Weights that share a factor where the type has no blocks of its own."""
_SCALES: dict[Qtype, tuple[int, tuple[int, ...]]] = {
    Qtype.Q8_0: (34, (0,)),
    Qtype.Q4_0: (18, (0,)),
    Qtype.Q4_1: (20, (0, 2)),
    Qtype.Q5_0: (22, (0,)),
    Qtype.Q5_1: (24, (0, 2)),
    Qtype.Q2_K: (84, (80, 82)),
    Qtype.Q3_K: (110, (108,)),
    Qtype.Q4_K: (144, (0, 2)),
    Qtype.Q5_K: (176, (0, 2)),
    Qtype.Q6_K: (210, (208,)),
    Qtype.IQ4_NL: (18, (0,)),
    Qtype.IQ4_XS: (136, (0,)),
    Qtype.IQ3_S: (110, (0,)),
    Qtype.IQ3_XXS: (98, (0,)),
    Qtype.IQ2_S: (82, (0,)),
}
"""Bytes of a block, and where its F16 scales (and minima) are. Source: the block structs of ggml-common.h."""
_PLAIN: dict[Qtype, np.dtype[np.generic]] = {
    Qtype.F32: np.dtype("<f4"),
    Qtype.F16: np.dtype("<f2"),
    Qtype.BF16: np.dtype("<u2"),
}
"""numpy has no bfloat16: it is the upper half of a float32."""
_F16_MAX = 65504.0
_BYTES_AT_ONCE = 1 << 24
"""Bytes of a tensor that are worked on at a time."""


def damaged(source: OpenLevel, out: Path, *, strength: float, half: Half = "both", seed: int = 0) -> OpenLevel:
    """Make, in `out`, a bundle whose only level is `source` with damaged weights.

    All other files are links to its own, or copies where the file system has no links. Equal arguments give
    equal bytes; if `out` is the result of an earlier call with the same ones, it is checked and used again.

    Args:
        source: The level to damage.
        out: A directory that does not exist yet. It appears whole or not at all.
        strength: Relative error of each scale, above 0: the RMS error of the weights. That of Q4_0 is 0.09.
        half: That is damaged; the other one is linked.
        seed: Of the signs of the errors.

    Returns:
        The damaged level, open.

    Raises:
        ValueError: On a strength that is out of range.
        BundleError: If what is there already is incomplete.
        MisoError: If `out` exists and is something else, or the level has no weights that can be damaged.
    """
    if not 0 < strength <= MOST:
        raise ValueError(f"strength must be above 0 and at most {MOST:g}, not {strength}; Q4_0's own error is 0.09")
    if half not in HALVES:
        raise ValueError(f"a half is one of {', '.join(HALVES)}, not {half!r}")
    key, manifest = source.key, source.manifest
    whole = hashlib.sha256(manifest.to_json().encode()).hexdigest()
    origin = f"damaged on purpose: {json.dumps([key, half, strength, seed])} of {whole}"
    if out.exists():
        return _reused(out, key, origin)
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    if partial.is_symlink():
        partial.unlink()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = dict(manifest.files)
        hurt = parts_of(source, half)
        for path in hurt:
            target = partial / path.name
            shutil.copyfile(path, target)
            _damage(target, strength, seed)
            files[path.name] = BundleFile(size_bytes=target.stat().st_size, sha256=file_sha256(target))
        others = (source.backbone, source.decoder, source.embeddings, source.codec_decoder, source.codec_encoder)
        for path in others:
            if path not in hurt and path.exists():
                _link(path, partial / path.name)
        changed = _of_one_level(manifest, key, files, origin)
        (partial / MANIFEST_NAME).write_text(changed.to_json(), "utf-8")
        open_level(partial, key)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return open_level(out, key)


def parts_of(level: OpenLevel, half: Half) -> list[Path]:
    """The files of a half: those that a damage copies."""
    return {"backbone": [level.backbone], "decoder": [level.decoder], "both": [level.backbone, level.decoder]}[half]


def _reused(out: Path, key: str, origin: str) -> OpenLevel:
    try:
        found = open_bundle(out)
    except MisoError:
        found = None
    if found is None or found.manifest.converter != origin:
        raise MisoError(f"{out}: exists, and is not this damage. Give a directory that is not there yet, or delete it")
    return found.level(key, verify=True)


def _of_one_level(manifest: Manifest, key: str, files: dict[str, BundleFile], origin: str) -> Manifest:
    level, codec = manifest.levels[key], manifest.codec
    names = {level.backbone, level.decoder, level.embeddings, codec.decoder, codec.encoder}
    entries = manifest.model_dump(exclude={"levels", "files", "converter"})
    kept = {name: record for name, record in files.items() if name in names}
    return Manifest(**entries, converter=origin, levels={key: level}, files=kept)


def _link(source: Path, target: Path) -> None:
    """A hard link; a bundle that was fetched from a hub consists of symbolic ones, hence `resolve`."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def check_types(level: OpenLevel) -> None:
    """Raise `MisoError` if there are weights of which it is not known where their scales are."""
    for path in parts_of(level, "both"):
        with GgufFile(path) as file:
            _matrices(path, file)


def _matrices(path: Path, file: GgufFile) -> dict[str, tuple[Qtype, U8Array]]:
    """Type and bytes of all matrices of all layers."""
    found = {
        name: (qtype, rows.reshape(-1))
        for name, (qtype, shape, rows) in file.tensors.items()
        if name.startswith("blk.") and len(shape) == 2
    }
    unknown = sorted({qtype.name for qtype, _ in found.values() if qtype not in _SCALES and qtype not in _PLAIN})
    if unknown or not found:
        what = f"has weights of type {', '.join(unknown)}" if unknown else "has no matrices in layers"
        raise MisoError(f"{path.name}: {what}: it cannot be damaged on purpose. Use another level")
    return found


def _damage(path: Path, strength: float, seed: int) -> None:
    """Change the scales of all matrices of all layers of a GGUF, in place."""
    with GgufFile(path, writable=True) as file:
        matrices = _matrices(path, file)
    for name, (qtype, data) in matrices.items():
        # Keyed by name: a tensor's damage does not depend on which others the file has.
        rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
        unit = _SCALES[qtype][0] if qtype in _SCALES else _PLAIN[qtype].itemsize * _GROUP
        step = _BYTES_AT_ONCE // unit * unit
        for start in range(0, data.size, step):
            _damage_bytes(data[start : start + step], qtype, strength, rng)


def _damage_bytes(data: U8Array, qtype: Qtype, strength: float, rng: np.random.Generator) -> None:
    """Whole blocks, or values, of one type: each group gets the factor 1 + strength or 1 - strength."""
    if qtype in _PLAIN:
        values = data.view(_PLAIN[qtype])
        factors = np.repeat(_factors(-(-values.size // _GROUP), strength, rng), _GROUP)[: values.size]
        if qtype == Qtype.BF16:
            whole = (values.astype("<u4") << 16).view("<f4")
            values[:] = np.ascontiguousarray(whole * factors, "<f4").view("<u2")[1::2]
        else:
            values[:] = np.clip(values * factors, -_F16_MAX, _F16_MAX)
        return
    width, places = _SCALES[qtype]
    blocks = data.reshape(-1, width)
    factors = _factors(len(blocks), strength, rng)
    for place in places:
        scale = np.ascontiguousarray(blocks[:, place : place + 2]).view("<f2")[:, 0].astype(np.float32)
        changed = np.clip(scale * factors, -_F16_MAX, _F16_MAX).astype("<f2")
        blocks[:, place : place + 2] = changed.view(np.uint8).reshape(-1, 2)


def _factors(count: int, strength: float, rng: np.random.Generator) -> F32Array:
    signs = rng.integers(0, 2, count) * 2 - 1
    factors: F32Array = (1 + strength * signs).astype(np.float32)
    return factors


def main(arguments: Sequence[str]) -> str:
    """Damage both halves of LEVEL of BUNDLE by STRENGTH into OUT; what was done. Errors as `damaged`."""
    if len(arguments) != 4:
        raise ValueError("expected BUNDLE LEVEL STRENGTH OUT")
    bundle, level, strength, out = arguments
    made = damaged(open_level(bundle, level), Path(out), strength=float(strength))
    return f"{made.directory}: {made.key} with scales off by {float(strength):.0%}"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{main(sys.argv[1:])}\n")
    except (MisoError, ValueError, OSError) as error:
        sys.exit(f"damage: {error}")
