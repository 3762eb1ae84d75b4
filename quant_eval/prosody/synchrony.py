"""Whether two recordings run in step: by how much the second lags, and whether it follows the first at all.

Equal length proves neither. It compares mel-cepstra, since two melodies may differ where the words lie on each other.
"""

from dataclasses import dataclass

import numpy as np

from .sound import STEP_S, F64Array

IN_STEP = 1
"""Steps of 10 ms by which an aligned pair may lag: filters and codecs delay by less."""
LEAST_CORRELATION = 0.6
"""Of a pair that runs in step: 0.69 and more were measured with noise as loud as the speech, 0.95 with F0 an octave off
or with whispering; two sentences, or two renditions of one, reach 0.46 at their best lag, two voices of one synthesis
0.5 to 0.8."""


@dataclass(frozen=True)
class Synchrony:
    """How two recordings lie on each other.

    Attributes:
        lag_steps: By which the second comes later than the first where they fit best; negative if earlier.
        correlation: Of their mel-cepstra at that lag, at most 1.
    """

    lag_steps: int
    correlation: float

    @property
    def why_not_aligned(self) -> str | None:
        """What forbids comparing them step by step, as a sentence; None if nothing does."""
        if self.correlation < LEAST_CORRELATION:
            return (
                f"they do not follow each other: their spectra correlate by {self.correlation:.2f} at best, "
                f"aligned recordings by {LEAST_CORRELATION} and more"
            )
        if abs(self.lag_steps) > IN_STEP:
            late = "later" if self.lag_steps > 0 else "earlier"
            return f"the second comes {1000 * STEP_S * abs(self.lag_steps):.0f} ms {late} than the first"
        return None


def synchrony(first: F64Array, second: F64Array) -> Synchrony | None:
    """By cross-correlation of all columns at every lag.

    Args:
        first: Mel-cepstra, float64 `[n, k]`.
        second: Of the other recording, `[m, k]`.

    Returns:
        None if one of them is the same throughout: silence runs in step with nothing.
    """
    deviations = [each - each.mean(axis=0) if len(each) else each for each in (first, second)]
    scale = float(np.sqrt(np.square(deviations[0]).sum() * np.square(deviations[1]).sum()))
    if not scale:
        return None
    size = len(first) + len(second)
    spectra = [np.fft.rfft(each, size, axis=0) for each in deviations]
    products = np.fft.irfft((spectra[1] * np.conj(spectra[0])).sum(axis=1), size)
    best = int(products.argmax())
    return Synchrony(best if best < len(second) else best - size, float(products[best]) / scale)
