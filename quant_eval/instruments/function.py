"""An instrument of the user's own: a function of a module that can be imported."""

import importlib
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cached_property

from ...core.arrays import F32Array
from ...core.printable import printable
from ..metric import DIFFERENCE, Range
from .instrument import Heard

_LARGEST = 1e100
"""Of a score: sums of squares of larger ones are not finite."""


class FunctionInstrument:
    """Called as `function(samples, text, reference)`, see `Heard`; None is "no value for this clip".

    Under the name of a known instrument it has that one's unit. For speaker similarity `reference` is the voice that
    the clip should have, and a clip without one is not asked about. It may change its arguments; what it prints
    goes to stderr.
    """

    is_kept, cost_s = False, 0.0

    def __init__(
        self, name: str, target: str, *, unit: str = "", range: Range = DIFFERENCE, takes_voice: bool = False
    ) -> None:
        """Raises `ValueError` unless `target` is like "package.module:function"."""
        module, colon, function = target.partition(":")
        if not (name and colon and module and function.isidentifier()):
            raise ValueError(f"an instrument of your own is NAME=MODULE:FUNCTION, not {name}={target}")
        self.name, self.unit, self.range = name, unit, range
        self.by = target
        self._module, self._name, self._takes_voice = module, function, takes_voice

    def available(self) -> str | None:
        """None if the function can be imported."""
        try:
            self._function  # noqa: B018  (imports it)
        except (Exception, SystemExit) as error:  # importing runs another's program
            return f"{self.by} cannot be imported: {printable(str(error)) or type(error).__name__}"
        return None

    def score(self, heard: Heard) -> float | None:
        """See `Instrument`. Raises `ValueError` on a score that is no finite number."""
        beside = heard.voice if self._takes_voice else heard.reference
        if beside is None:
            return None
        with redirect_stdout(sys.stderr):
            found = self._function(heard.samples.copy(), heard.text, beside.copy())
        if found is None:
            return None
        if not abs(found) <= _LARGEST:
            raise ValueError(f"gave {str(found)[:40]}: expected a finite number")
        return float(found)

    @cached_property
    def _function(self) -> Callable[[F32Array, str, F32Array], float | None]:
        function: Callable[[F32Array, str, F32Array], float | None] = getattr(
            importlib.import_module(self._module), self._name
        )
        if not callable(function):
            raise TypeError(f"{self._name} is no function")
        return function
