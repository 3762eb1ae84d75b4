"""Sentences for the tiny model that nobody has seen: neither the model in its training, nor an importance matrix."""

import numpy as np

from miso_gguf.models.tiny.make.conversations import is_held_out
from miso_gguf.models.tiny.make.words import ENDINGS, WORDS, parse
from miso_gguf.quant_eval.corpus import Corpus, Prompt

NAME = "held-out sentences of the tiny model's words"


def held_out(count: int, taught: Corpus) -> list[Prompt]:
    """Random sentences, always the same ones, none of the words of `taught` in their order, however it ends."""
    rng = np.random.default_rng(0)
    heard = [text for prompt in taught.prompts for text in (*(turn.text for turn in prompt.before), prompt.text)]
    known = {parse(text)[0] for text in heard}
    found: dict[str, Prompt] = {}
    while len(found) < count:
        words = tuple(map(str, rng.choice(WORDS, rng.integers(2, 7))))
        text = f"{' '.join(words)}{rng.choice(ENDINGS)}"
        if is_held_out(words) and words not in known:
            found.setdefault(text, Prompt(f"random-{len(found)}", "random", text, int(rng.integers(2))))
    return list(found.values())
