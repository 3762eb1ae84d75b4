"""Whether the controls behave: the baseline against itself is exactly equal, and a damaged level fails."""

from collections.abc import Mapping, Sequence

from ..metrics.table import METRICS, perfect
from ..results import Control, GateResult
from ..stats.observations import Observations

_NO_MEASURE_OF_DIFFERENCE = {"first_divergence"}


def self_control(name: str, measured: Mapping[str, Observations]) -> Control:
    """The baseline, run a second time: no metric of any clip may show a difference."""
    off = [
        METRICS[key].label
        for key, found in measured.items()
        if key in METRICS and key not in _NO_MEASURE_OF_DIFFERENCE and (found.values != perfect(key)).any()
    ]
    found = "equal in every clip" if not off else f"differs: {', '.join(off)}"
    if not measured:
        found = "not measured"
    return Control(
        name=f"{name} against itself",
        expected="equal in every clip",
        found=found,
        behaved=bool(measured) and not off,
    )


def damaged_control(name: str, gates: Sequence[GateResult]) -> Control:
    """A level that was damaged on purpose: some gate must fail."""
    failed = [METRICS[gate.metric].label for gate in gates if gate.verdict == "FAIL"]
    return Control(
        name=name,
        expected="at least one gate fails",
        found=f"{len(failed)} of {len(gates)} gates fail" + (f": {', '.join(failed)}" if failed else ""),
        behaved=bool(failed),
    )
