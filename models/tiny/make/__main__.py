"""Makes the tiny model anew: `python -m miso_gguf.models.tiny.make`, or `make train-tiny`.

Tokenizer, codec, language model, one after the other, into the package. What a run that was cut off had is gone on
from. Needs espeak-ng and the extra `train`; an hour and a half on two cores.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer

from ....core.files import file_sha256, write_whole
from ...flavors import TINY
from ...mimi import MIMI_NAME
from .as_mimi import as_mimi
from .codec import CODEC_SPEC, make_codec, read_codec, write_mimi
from .corpus import Corpus
from .renderings import Renderings
from .tokenizer import make_tokenizer
from .training import Recipe, train

MODEL_NAME, TOKENIZER_NAME = "model.safetensors", "tokenizer.json"

log = logging.getLogger("miso_gguf.models.tiny.make")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m miso_gguf.models.tiny.make", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="directory for the three files")
    parser.add_argument("--work", type=Path, default=Path("build/train-tiny"), help="directory of what can be resumed")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of the optimiser")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    write_whole(work / TOKENIZER_NAME, make_tokenizer().encode())
    renderings = Renderings(work / "renderings")
    log.info("rendering the vocabulary and fitting the codec")
    write_mimi(as_mimi(make_codec(renderings), CODEC_SPEC), work / MIMI_NAME)
    corpus = Corpus(renderings, read_codec(work / MIMI_NAME))
    tokenizer = Tokenizer.from_file(str(work / TOKENIZER_NAME))
    data = f"{file_sha256(work / TOKENIZER_NAME)} {file_sha256(work / MIMI_NAME)}"
    recipe = Recipe(steps=arguments.steps)
    started, first = time.monotonic(), [-1]

    def tell(step: int) -> None:
        first[0] = step - 1 if first[0] < 0 else first[0]
        if step % 20 == 0:
            per_step = (time.monotonic() - started) / (step - first[0])
            log.info("%d of %d steps, %.0f minutes left", step, recipe.steps, per_step * (recipe.steps - step) / 60)

    state = work / "state.pt"
    weights = train(TINY, corpus, lambda text: tokenizer.encode(text).ids, recipe, state, data, tell)
    write_whole(work / MODEL_NAME, save({name: weight.half().contiguous() for name, weight in weights.items()}))
    # All three together at the end: they are of no use with one another's older versions.
    for name, content in [(name, (work / name).read_bytes()) for name in (TOKENIZER_NAME, MIMI_NAME, MODEL_NAME)]:
        write_whole(out / name, content)
    log.info("wrote %s, %s and %s to %s", TOKENIZER_NAME, MIMI_NAME, MODEL_NAME, out)


if __name__ == "__main__":
    main()
