"""Draws docs/tiny.png: a sentence of the tiny model beside its reference, as spectrogram and F0.

miso-convert tiny --quant q4_k_m --out build/tiny
python benchmarks/plot_tiny.py build/tiny
"""

from pathlib import Path

import click
import numpy as np
from hearing import f0_contour
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from miso_gguf.models.mimi import MIMI_NAME, SAMPLE_RATE_HZ
from miso_gguf.models.tiny import DIRECTORY
from miso_gguf.models.tiny.make.codec import read_codec
from miso_gguf.models.tiny.make.conversations import is_held_out
from miso_gguf.models.tiny.make.corpus import Corpus
from miso_gguf.models.tiny.make.figures import STEP_S
from miso_gguf.models.tiny.make.renderings import Renderings
from miso_gguf.models.tiny.make.sentences import Samples, plain_sentence
from miso_gguf.models.tiny.make.words import Speaker, parse
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.tts import MisoTTS

SENTENCES = (("low", "This is very good."), ("high", "Are you here tomorrow?"))
_TOP_HZ = 4000


def draw(axes: Axes, samples: Samples, speaker: Speaker, title: str) -> None:
    """Spectrogram, and F0 over it on a scale of its own."""
    axes.specgram(
        samples + np.random.default_rng(0).normal(0, 1e-4, len(samples)),
        NFFT=512,
        noverlap=448,
        Fs=SAMPLE_RATE_HZ,
        cmap="Greys",
        vmin=-100,
        vmax=-40,
    )
    axes.set_ylim(0, _TOP_HZ)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel("Hz")
    f0 = f0_contour(samples, speaker)
    melody = axes.twinx()
    melody.plot(np.arange(len(f0)) * STEP_S, np.where(f0 > 0, f0, np.nan), color="#c2410c", linewidth=2.2)
    melody.set_ylim(speaker.floor_hz, speaker.ceiling_hz)
    melody.set_ylabel("F0 (Hz)", color="#c2410c")


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("build/train-tiny/renderings"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/tiny.png"), show_default=True)
def main(bundle: Path, quant: str, cache: Path, out: Path) -> None:
    corpus = Corpus(Renderings(cache), read_codec(DIRECTORY / MIMI_NAME))
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(SENTENCES))
    options = SpeechOptions(seed=3)
    with MisoTTS.load(bundle, quant) as tts:
        for column, (name, text) in enumerate(SENTENCES):
            words, ending = parse(text)
            assert is_held_out(words), f"{text!r} was trained on"
            speaker = corpus.renderings.speakers[name]
            speech = tts.generate(text, speaker=list(corpus.renderings.speakers).index(name), options=options)
            reference = corpus.samples(plain_sentence(name, words, ending))
            draw(grid[0][column], reference, speaker, f'Reference, "{name}": {text}')
            draw(grid[1][column], speech.samples, speaker, f"Spoken at {quant.upper()}, never trained on these words")
            grid[1][column].set_xlabel("seconds")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
