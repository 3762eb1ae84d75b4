"""The verdicts as JUnit XML, which every CI reads: a suite a level, a case a gate, and the controls.

There are many dialects, and no norm. This is that of the Jenkins xUnit plugin, `junit-10.xsd`, which pytest writes as
well. Times are UTC without a zone, as Ant and Surefire write them.
"""

from collections import Counter
from datetime import datetime, timezone
from xml.etree import ElementTree

from ..results import Control, GateResult, Results
from .words import gate_name, interval, label_of, margin, metric_of, number, units_to_decide, with_unit

_ROOT = "quant_eval"


def junit_xml(results: Results, *, strict: bool = False) -> str:
    """One XML document, valid by `junit-10.xsd`.

    What fails the run is a failure: FAIL, INCONCLUSIVE with the value beyond the margin, with `strict` any
    INCONCLUSIVE. Otherwise INCONCLUSIVE is skipped, with its reason. What was asked for and not measured is an error.
    Whether each control behaved is a case. A level without margins is one skipped case. If nothing was judged, one
    skipped case says so: an empty file would look like a pass.
    """
    suites = _Suites(results)
    for gate in results.gates:
        _gate_case(suites[gate.level], gate, strict)
    for level in results.levels:
        if level.why_not_judged is not None:
            _outcome(_case(suites[level.level], "gates"), "skipped", "not judged", level.why_not_judged)
    said = {f"{gate.level}: {gate.reason}" for gate in results.gates}  # as `outcome.py` names what a gate lacks
    for text in results.missing:
        if text not in said:
            _outcome(_case(suites["missing"], text), "error", "MISSING", text)
    for control in results.controls:
        _control_case(suites["controls"], control)
    root = suites.root
    if not len(root):
        nothing = "nothing was judged: there are no gates for what was run"
        _outcome(_case(suites["evaluation"], "gates"), "skipped", "not judged", nothing)
    _count(root)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


class _Suites(dict[str, ElementTree.Element]):
    """By name; one that is not there is made."""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self._results = results
        self.root = ElementTree.Element("testsuites", name=_printable(results.model.name))

    def __missing__(self, name: str) -> ElementTree.Element:
        suite = self[name] = ElementTree.SubElement(self.root, "testsuite", name=_printable(name))
        if (timestamp := _timestamp(self._results.created)) is not None:
            suite.set("timestamp", timestamp)
        model = self._results.model
        properties = ElementTree.SubElement(suite, "properties")
        for key, value in (("bundle", model.bundle), ("manifest_sha256", model.manifest_sha256)):
            ElementTree.SubElement(properties, "property", name=key, value=_printable(value))
        return suite


def _count(root: ElementTree.Element) -> None:
    for element in (*root, root):
        counts = Counter(child.tag for child in element.iter())
        for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            element.set(attribute, str(counts[tag]))
        if element is not root:  # which may not say it
            element.set("skipped", str(counts["skipped"]))


def _timestamp(created: str) -> str | None:
    """ISO 8601, in UTC, without its zone and fractions; None if `created` is no time."""
    try:
        at = datetime.fromisoformat(created.replace("Z", "+00:00"))
        return at.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="seconds") if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=_printable(name), classname=f"{_ROOT}.{suite.get('name')}")


def _outcome(case: ElementTree.Element, tag: str, kind: str, message: str, text: str | None = None) -> None:
    ElementTree.SubElement(case, tag, type=kind, message=_printable(message)).text = text


def _gate_case(suite: ElementTree.Element, gate: GateResult, strict: bool) -> None:
    case = _case(suite, gate_name(gate))
    if gate.outcome == "FAIL" or (strict and gate.outcome == "INCONCLUSIVE"):
        _outcome(case, "failure", gate.verdict, gate.reason, _figures(gate))
    elif gate.outcome == "MISSING":
        _outcome(case, "error", gate.verdict, gate.reason, _figures(gate))
    elif gate.outcome == "INCONCLUSIVE":
        _outcome(case, "skipped", gate.verdict, gate.reason, _figures(gate))
    else:
        ElementTree.SubElement(case, "system-out").text = _figures(gate)


def _control_case(suite: ElementTree.Element, control: Control) -> None:
    judged = [label_of(control.level)] if control.level else []
    judged += [metric_of(control.metric).label] if control.metric else []
    case = _case(suite, f"{control.name} ({': '.join(judged)})" if judged else control.name)
    outcome = _printable(f"expected {control.expected}, found {control.found}")
    if control.behaved:
        ElementTree.SubElement(case, "system-out").text = outcome
    else:
        _outcome(case, "failure", "control", outcome)


def _figures(gate: GateResult) -> str:
    metric = metric_of(gate.metric)
    allowed = f"margin {with_unit(margin(gate), metric.unit)}"
    if gate.estimate is None:
        return _printable(f"{label_of(gate.level)}: {metric.label} not measured, {allowed}")
    value = with_unit(number(gate.estimate.value, metric.digits), metric.unit)
    bounds = interval(gate.estimate, metric.digits)
    decides = f", {gate.needed} {units_to_decide(gate)} would decide" if gate.needed is not None else ""
    return _printable(
        f"{label_of(gate.level)}: {metric.label} {value}, bounds of 95 % each {bounds}, {allowed}{decides}"
    )


def _printable(text: str) -> str:
    """XML has no control characters, not even as entities."""
    return "".join(character if character.isprintable() else " " for character in text)
