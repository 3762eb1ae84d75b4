"""The verdicts as JUnit XML, which every CI reads: a suite a level, a case a gate, and the controls."""

from xml.etree import ElementTree

from ..results import Control, GateResult, Results
from .words import gate_name, interval, label_of, margin, metric_of, number, with_unit

_ROOT = "quant_eval"


def junit_xml(results: Results, *, strict: bool = False) -> str:
    """One XML document.

    FAIL is a failure; INCONCLUSIVE is skipped, with its reason, or a failure if `strict`. The gates of controls are not
    cases, since a damaged level has to fail: whether each control behaved is one. A level without margins is one
    skipped case. If nothing was judged, one skipped case says so: an empty file would look like a pass.
    """
    controls = {level.level for level in results.levels if level.is_control}
    root = ElementTree.Element("testsuites", name=_printable(results.model.name))
    for level in dict.fromkeys(gate.level for gate in results.gates if gate.level not in controls):
        suite = _suite(root, level, results)
        for gate in results.gates:
            if gate.level == level:
                _gate_case(suite, gate, strict)
    for found in results.levels:
        if found.why_not_judged is not None:
            case = _case(_suite(root, found.level, results), "gates", found.level)
            ElementTree.SubElement(case, "skipped", message=_printable(found.why_not_judged))
    if results.controls:
        suite = _suite(root, "controls", results)
        for control in results.controls:
            _control_case(suite, control)
    if not len(root):
        case = _case(_suite(root, "evaluation", results), "gates", "evaluation")
        ElementTree.SubElement(case, "skipped", message="nothing was judged: there are no gates for what was run")
    for element in (*root, root):
        for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            element.set(attribute, str(len(element.findall(f".//{tag}"))))
        element.set("errors", "0")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, name: str, results: Results) -> ElementTree.Element:
    suite = ElementTree.SubElement(root, "testsuite", name=_printable(name), timestamp=_printable(results.created))
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (("bundle", results.model.bundle), ("manifest_sha256", results.model.manifest_sha256)):
        ElementTree.SubElement(properties, "property", name=key, value=_printable(value))
    return suite


def _case(suite: ElementTree.Element, name: str, level: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=_printable(name), classname=_printable(f"{_ROOT}.{level}"))


def _gate_case(suite: ElementTree.Element, gate: GateResult, strict: bool) -> None:
    case = _case(suite, gate_name(gate), gate.level)
    reason = _printable(gate.reason)
    if gate.verdict == "FAIL" or (strict and gate.verdict == "INCONCLUSIVE"):
        ElementTree.SubElement(case, "failure", type=gate.verdict, message=reason).text = _figures(gate)
    elif gate.verdict == "INCONCLUSIVE":
        ElementTree.SubElement(case, "skipped", type=gate.verdict, message=reason).text = _figures(gate)
    else:
        ElementTree.SubElement(case, "system-out").text = _figures(gate)


def _control_case(suite: ElementTree.Element, control: Control) -> None:
    case = _case(suite, control.name, "controls")
    outcome = _printable(f"expected {control.expected}, found {control.found}")
    if control.behaved:
        ElementTree.SubElement(case, "system-out").text = outcome
    else:
        ElementTree.SubElement(case, "failure", type="control", message=outcome)


def _figures(gate: GateResult) -> str:
    metric = metric_of(gate.metric)
    allowed = f"margin {with_unit(margin(gate), metric.unit)}"
    if gate.estimate is None:
        return _printable(f"{label_of(gate.level)}: {metric.label} not measured, {allowed}")
    value = with_unit(number(gate.estimate.value, metric.digits), metric.unit)
    bounds = interval(gate.estimate, metric.digits)
    return _printable(f"{label_of(gate.level)}: {metric.label} {value}, 95 % interval {bounds}, {allowed}")


def _printable(text: str) -> str:
    """XML has no control characters, not even as entities."""
    return "".join(character if character.isprintable() else " " for character in text)
