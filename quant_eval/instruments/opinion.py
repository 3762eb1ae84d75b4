"""How good a clip sounds, as models predict what people would say: DNSMOS and PLCMOS, which come with speechmos."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from ..metric import Range
from .instrument import HEARD_RATE_HZ, Heard, at_heard_rate, silenced, version_of, why_missing

_MOS: Range = (1.0, 5.0)
_SEED = 0
_LEAST_SAMPLES = HEARD_RATE_HZ // 2
"""Of what is shorter PLCMOS's network has nothing left: silence is added."""


class SpeechMos:
    """One of the predictors of speechmos: mean opinion score, 1 to 5."""

    unit, is_kept = "MOS", True
    range = _MOS

    def __init__(self, name: str, key: str, cost_s: float, extra: tuple[str, ...] = ()) -> None:
        """The module `name` of speechmos, whose answer has the score under `key`; it imports `extra`."""
        self.name, self._key, self.cost_s, self._extra = name, key, cost_s, extra
        self.by = version_of("speechmos")

    def available(self) -> str | None:
        """See `Instrument`."""
        return why_missing(["speechmos", "onnxruntime", *self._extra], self.name.upper())

    def score(self, heard: Heard) -> float | None:
        """See `Instrument`."""
        with _same_raters(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = at_heard_rate(heard.samples)
            whole = np.pad(samples, (0, max(0, _LEAST_SAMPLES - len(samples))))
            return float(self._module.run(whole, sr=HEARD_RATE_HZ)[self._key])

    @cached_property
    def _module(self) -> Any:
        with silenced():
            return importlib.import_module(f"speechmos.{self.name}")


@contextmanager
def _same_raters() -> Iterator[None]:
    """PLCMOS draws raters from NumPy's global generator: here always the same."""
    before = np.random.get_state()
    np.random.seed(_SEED)
    try:
        yield
    finally:
        np.random.set_state(before)


def dnsmos() -> SpeechMos:
    """Overall quality, by DNSMOS P.835."""
    return SpeechMos("dnsmos", "ovrl_mos", 0.5, ("librosa", "requests"))


def plcmos() -> SpeechMos:
    """Quality of speech with packets lost and concealed, by PLCMOS v2."""
    return SpeechMos("plcmos", "plcmos", 0.14)
