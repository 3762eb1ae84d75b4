"""What an instrument is: another's program that gives a clip a score. It knows none of them."""

import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple, Protocol

import numpy as np

from ...core.arrays import F32Array
from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import resampled
from ..metric import Range

HEARD_RATE_HZ = 16_000
"""What all of these models hear."""
INSTALL = "pip install 'miso-gguf[instruments]'"
"""For people who lack one."""


class Heard(NamedTuple):
    """A clip to be scored.

    Attributes:
        samples: Float32 `[n]`, 24 kHz.
        text: What it should say.
        reference: The reference's rendition, as `samples`.
        voice: What the speaker said before, as `samples`: whom the clip should sound like. None without such turns.
    """

    samples: F32Array
    text: str
    reference: F32Array
    voice: F32Array | None = None


class Instrument(Protocol):
    """One of them. What it loads, it loads when it is first asked for a score."""

    @property
    def name(self) -> str:
        """As in results; where metrics have the same key, their values are made of its scores."""

    @property
    def unit(self) -> str:
        """Of scores, as printed; "" for a plain number."""

    @property
    def range(self) -> Range:
        """Between what a mean of scores can lie."""

    @property
    def by(self) -> str:
        """What scores, with its version and model: scores of another are another measurement."""

    @property
    def cost_s(self) -> float:
        """CPU time for a second of sound; 0 if that is not known. Source: `benchmarks/instruments.py`."""

    @property
    def is_kept(self) -> bool:
        """Whether `by` says all that scores depend on, so that they may be kept for a later run."""

    def available(self) -> str | None:
        """None if it can run here, else what is missing and how to get it. Fetches nothing."""

    def score(self, heard: Heard) -> float | None:
        """The score of one clip, whatever was scored before; None where it has none."""


def at_heard_rate(samples: F32Array) -> F32Array:
    """At 16 kHz, within full scale: resampling can exceed it."""
    return np.clip(resampled(samples, SAMPLE_RATE_HZ, HEARD_RATE_HZ), -1.0, 1.0)


def why_missing(modules: Sequence[str], what: str) -> str | None:
    """What cannot be had without these modules, and the remedy; None if all are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"no {what} (not installed: {', '.join(missing)}): {INSTALL}" if missing else None


def version_of(package: str) -> str:
    """Name and version of a package, for people."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}, not installed"


@contextmanager
def silenced() -> Iterator[None]:
    """Without what libraries print, and warn of, while they are loaded."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
