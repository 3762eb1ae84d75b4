"""Makes the tiny model's codec: `python -m miso_gguf.models.tiny.make.codec OUT_DIR [--cache DIR]`.

Renders the vocabulary, fits the codec, writes `mimi.safetensors` and says how good it is on sentences. Needs espeak-ng
and the extra `train`; a minute or two on one core. The same data give the same codec.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from ....core.files import write_whole
from ...mimi import MIMI_NAME, MimiSpec, recognise_mimi
from .as_mimi import Tensors, as_mimi, from_mimi, largest_rank
from .figures import Figures, compare
from .linear_codec import LinearCodec, fit_codec
from .renderings import Renderings
from .sentences import random_sentence, samples_of

CODEC_SPEC = MimiSpec(
    codebooks=8,
    cardinality=512,
    codebook_dim=320,
    latent_dim=320,
    filters=16,
    kernel=3,
    layers=1,
    heads=10,
    ffn_dim=32,
)
SEMANTIC_DIMS = 4
_SENTENCES = 100
_HELD_OUT_SEED = 1


def make_codec(renderings: Renderings, spec: MimiSpec = CODEC_SPEC, semantic_dims: int = SEMANTIC_DIMS) -> LinearCodec:
    """The codec of these renderings: for the same ones, always the same."""
    samples = np.concatenate([rendering.samples for rendering in renderings])
    return fit_codec(samples, spec, largest_rank(spec), semantic_dims)


def write_mimi(tensors: Tensors, path: Path) -> None:
    """Kyutai's layout, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors))


def read_codec(path: Path) -> LinearCodec:
    """The codec in a file that this module wrote, fast to code a corpus with: the same codes as the Mimi's."""
    tensors = load_file(path)
    return from_mimi(tensors, recognise_mimi({name: tensor.shape for name, tensor in tensors.items()}))


def measure(codec: LinearCodec, renderings: Renderings, sentences: int = _SENTENCES) -> Figures:
    """Copy synthesis of random sentences."""
    rng = np.random.default_rng(_HELD_OUT_SEED)
    pairs = []
    for _ in range(sentences):
        sentence = random_sentence(renderings, rng)
        reference = samples_of(renderings, sentence)
        pairs.append((reference, codec.decode(codec.encode(reference)), renderings.speakers[sentence.speaker]))
    return compare(pairs)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m miso_gguf.models.tiny.make.codec", description=__doc__)
    parser.add_argument("out", type=Path, help=f"directory for {MIMI_NAME}")
    parser.add_argument("--cache", type=Path, default=Path("build/renderings"), help="directory of the renderings")
    arguments = parser.parse_args()
    started = time.perf_counter()
    renderings = Renderings(arguments.cache)
    codec = make_codec(renderings)
    path = arguments.out / MIMI_NAME
    write_mimi(as_mimi(codec, CODEC_SPEC), path)
    figures = {
        "frames": sum(rendering.frames for rendering in renderings),
        "size_bytes": path.stat().st_size,
        **asdict(measure(codec, renderings)),
        "took_s": time.perf_counter() - started,
    }
    for name, value in figures.items():
        sys.stdout.write(f"{name:24s} {value:12.2f}\n")
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
