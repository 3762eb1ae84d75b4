"""What an evaluation of a model says and hears: a corpus, people's recordings, or both. It speaks nothing."""

from dataclasses import replace
from pathlib import Path

from ..models.flavors import TINY
from ..models.manifest import Manifest
from .corpus import Corpus, load_corpus
from .recordings import beside, read_recordings, recordings_corpus

AUTO, NO_CORPUS = "auto", "none"
"""For a corpus: the model's own, and recordings alone."""


def corpus_of(manifest: Manifest, source: str, prompts: int | None) -> Corpus:
    """The corpus that `source` names, or so many `prompts` of it; "auto" is "tiny" for the tiny model, else "builtin".

    Errors as `load_corpus`.
    """
    if source == AUTO:
        source = "tiny" if replace(manifest.model_spec, name=TINY.name) == TINY else "builtin"
    corpus = load_corpus(source)
    return corpus if prompts is None else corpus.first(max(1, prompts))


def corpus_with(manifest: Manifest, source: str, prompts: int | None, recordings: Path | None) -> Corpus:
    """As `corpus_of`, and the recordings of a directory after it; of the corpus "none" these alone.

    Errors as `corpus_of` and `read_recordings`; `ValueError` if there is nothing to say, or `prompts` are of no corpus.
    """
    is_alone = source == NO_CORPUS
    if recordings is None:
        if is_alone:
            raise ValueError(f"corpus {NO_CORPUS} leaves nothing to say: name a corpus, or give recordings")
        return corpus_of(manifest, source, prompts)
    if is_alone and prompts is not None:
        raise ValueError(only_recordings(prompts))
    heard = recordings_corpus(read_recordings(recordings, manifest.model_spec.max_positions))
    return heard if is_alone else beside(corpus_of(manifest, source, prompts), heard)


def only_recordings(prompts: int) -> str:
    """Why so many prompts of no corpus are refused, for people."""
    return (
        f"prompts={prompts} is so many of a corpus, and only recordings are heard: name a corpus too ({AUTO}: the "
        "model's own), or leave it out"
    )
