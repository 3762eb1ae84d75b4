"""What an evaluation comes to: what is missing, the verdict of each level, and that of the run. It judges no metric."""

from collections.abc import Sequence

from .gates.history import NOT_RUN
from .gates.judge import worst
from .metric import STAGES
from .metrics.table import METRICS
from .results import Extra, Results


def decided(results: Results, wanted: Sequence[Extra] = ()) -> Results:
    """The results with what is missing of them, and the verdicts that follow from all gates and controls.

    Args:
        results: Complete but for that; what it says to be missing already stays.
        wanted: Extras that were asked for by name.
    """
    missing = [*results.missing, *_missing(results), *_missing_extras(results, wanted)]
    levels = [
        level.model_copy(update={"verdict": worst(gate.outcome for gate in results.gates if gate.level == level.level)})
        for level in results.levels
    ]
    outcomes = [gate.outcome for gate in results.gates]
    if missing:
        outcomes.append("MISSING")
    if any(not control.behaved for control in results.controls):
        outcomes.append("FAIL")
    return results.model_copy(update={"levels": levels, "missing": missing, "verdict": worst(outcomes)})


def _missing(results: Results) -> list[str]:
    """Stages of a level of which there is nothing, then gates that have nothing to judge, then levels that vanished."""
    levels = [level.level for level in results.levels]
    found = {(each.level, METRICS[each.metric].stage) for each in results.metrics if each.metric in METRICS}
    stages = [stage for stage in STAGES if stage in results.stages]
    without = [(level, stage) for level in levels for stage in stages if (level, stage) not in found]
    said = [f"{level}: no clip has anything of the stage {stage}" for level, stage in without]
    for gate in results.gates:
        if gate.verdict != "MISSING":
            continue
        if gate.level not in levels:
            said.append(f"{gate.level}: {NOT_RUN}")
        elif (gate.level, METRICS[gate.metric].stage) not in without:
            said.append(f"{gate.level}: {gate.reason}")
    return list(dict.fromkeys(said))


def _missing_extras(results: Results, wanted: Sequence[Extra]) -> list[str]:
    """Extras that came to nothing, or to nothing for one of the levels."""
    said = []
    for extra in wanted:
        if extra.why_not is not None:
            said.append(f"{extra.name}: {extra.why_not}")
            continue
        without = [each.level for each in results.levels if each.level not in extra.values]
        said += [f"{extra.name}: no clip of {level} has a value" for level in without]
    return said
