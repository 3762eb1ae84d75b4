"""Makes `tiny_sentences.json`: held-out sentences of the tiny model and, for each word, the frames it may be made of.

    python tests/runtime/golden/make_tiny_sentences.py build/train-tiny/renderings

Needs espeak-ng and the extra `train`; the tests that read the file need neither.
"""

import json
import sys
from pathlib import Path

import numpy as np

from miso_gguf.models.mimi import MIMI_NAME
from miso_gguf.models.tiny import DIRECTORY
from miso_gguf.models.tiny.make.codec import read_codec
from miso_gguf.models.tiny.make.conversations import is_held_out
from miso_gguf.models.tiny.make.corpus import Corpus
from miso_gguf.models.tiny.make.renderings import Renderings
from miso_gguf.models.tiny.make.sentences import random_sentence
from miso_gguf.models.tiny.make.words import VARIANTS

SENTENCES = 10


def main() -> None:
    corpus = Corpus(Renderings(Path(sys.argv[1])), read_codec(DIRECTORY / MIMI_NAME))
    speakers = list(corpus.renderings.speakers)
    rng = np.random.default_rng(2026)
    found: list[dict[str, object]] = []
    while len(found) < SENTENCES:
        sentence = random_sentence(corpus.renderings, rng, least=3)
        if not is_held_out(sentence.words):
            continue
        last = len(sentence.words) - 1
        words = []
        for index, word in enumerate(sentence.words):
            kind = sentence.ending if index == last else ""
            words.append(
                [
                    corpus.codec.encode(corpus.renderings.get(word, kind, sentence.speaker, variant).samples).tolist()
                    for variant in range(VARIANTS[kind])
                ]
            )
        found.append(
            {
                "speaker": speakers.index(sentence.speaker),
                "text": sentence.text,
                "words": words,
                "codes": corpus.codes(sentence).tolist(),
            }
        )
    silence = corpus.codec.encode(np.zeros(1920, np.float32)).tolist()[0]
    text = json.dumps({"silence": silence, "sentences": found}, separators=(",", ":"))
    Path(__file__).with_name("tiny_sentences.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
