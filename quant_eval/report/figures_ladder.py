"""The ladder of damages, a small plot a metric. Knows no page."""

from collections.abc import Sequence
from typing import Any

from ..results import Results
from .plots import INK, MUTED, Plot, colour_of, drawn, library, marker_of
from .sections.controls import HALVES, climb, ladder_metrics, rungs_of
from .words import judges_change, label_of, listed, metric_of, number

_WIDE = 12.0
"""Ratio of the largest to the smallest value from which on a scale is logarithmic."""
_WIDE_WITH_ZERO = 300.0
"""The same where some values are zero, which such a scale has no place for: it is linear below the smallest."""
_BESIDE = 0.19
"""Of the plot's width, by which labels of lines are apart, since the lines may be near each other."""
_NAMES = 3
"""Of levels with one margin, that the label of its line has room for."""
_HIGH = 0.85
"""Of the plot's height, from which on the label of a line goes below it."""


def ladder(results: Results) -> list[Plot]:
    """Each metric over the strength of the damage, a line a half of the model; the levels' margins as dashes."""
    plots = (_climb(results, key, index) for index, key in enumerate(ladder_metrics(results)))
    return [plot for plot in plots if plot is not None]


def _climb(results: Results, key: str, index: int) -> Plot | None:
    lines = {
        half: [(rung.strength, rung.values[key]) for rung in rungs_of(results, half) if key in rung.values]
        for half in HALVES
    }
    lines = {half: line for half, line in lines.items() if line}
    if not lines:
        return None
    metric = metric_of(key)
    bounds = [bound for line in lines.values() for _, found in line for bound in (found.low, found.value, found.high)]
    values = [found.value for line in lines.values() for _, found in line]
    margins = _margins(results, key, max(values) <= 0)
    strengths = sorted({strength for line in lines.values() for strength, _ in line})
    is_log = _is_wide(values)
    has_zero = min(values) == 0 and _is_wide([value for value in values if value > 0], _WIDE_WITH_ZERO)
    floor = min((value for value in (values if has_zero else bounds) if value > 0), default=1.0)

    def paint(axes: Any) -> None:
        if _is_wide(strengths):
            axes.set_xscale("log")
        if is_log or has_zero:
            axes.set_yscale("log") if is_log else axes.set_yscale("symlog", linthresh=floor)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(library("matplotlib.ticker").NullLocator())
        for place, (half, line) in enumerate(lines.items(), 1):
            colour, at = colour_of(place), [strength for strength, _ in line]
            # A bound of zero has no place on a logarithmic scale: its band ends at the smallest that has.
            lows = [max(found.low, floor) if is_log else found.low for _, found in line]
            axes.fill_between(at, lows, [found.high for _, found in line], color=colour, alpha=0.16, linewidth=0)
            shown = [found.value for _, found in line]
            axes.plot(at, shown, marker_of(place) + "-", color=colour, markersize=4.5, label=HALVES[half])
        _margin_lines(axes, margins, bounds)
        axes.set_xticks(strengths, [f"{100 * strength:g}" for strength in strengths])
        axes.xaxis.set_minor_locator(library("matplotlib.ticker").NullLocator())
        axes.margins(x=0.06)
        axes.set_xlabel("scales off by, %")
        axes.set_ylabel(metric.unit)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2, columnspacing=1.4)

    said = (
        f"{HALVES[half]} from {number(line[0][1].value, metric.digits)} to {number(line[-1][1].value, metric.digits)}"
        f" ({climb(key, [found.value for _, found in line])})"
        for half, line in lines.items()
    )
    limits = f" Margins: {listed(f'{label} {margin:g}' for margin, label in margins)}." if margins else ""
    return drawn(f"ladder-{index}", metric.label, f"{'; '.join(said)}.{limits}", 210, paint)


def _margin_lines(axes: Any, margins: Sequence[tuple[float, str]], bounds: Sequence[float]) -> None:
    """Those near enough to the values; the others would press these flat."""
    low, high = min(bounds), max(bounds)
    reach = 0.6 * (high - low)
    place = axes.get_yaxis_transform()
    for index, (margin, label) in enumerate(margins):
        if axes.get_yscale() != "linear":
            is_near = low / 8 <= margin <= high * 8
        else:
            is_near = low - reach <= margin <= high + reach
        if is_near:
            axes.axhline(margin, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            height = (axes.transScale + axes.transLimits).transform((1.0, margin))[1]
            beside = "top" if height > _HIGH else "bottom"
            axes.text(
                0.005 + _BESIDE * index, margin, label, transform=place, ha="left", va=beside, color=INK, fontsize=10.5
            )


def _margins(results: Results, key: str, is_below: bool) -> list[tuple[float, str]]:
    """What each level may lose, once each; of what may be off on both sides, that which the values come to."""
    levels = [level.level for level in results.levels]
    found: dict[float, list[str]] = {}
    for gate in results.gates:
        if gate.metric == key and not judges_change(gate) and gate.level in levels:
            names = found.setdefault(-gate.margin if is_below and gate.kind == "within" else gate.margin, [])
            if (name := label_of(gate.level)) not in names:
                names.append(name)
    return [(margin, _short(names)) for margin, names in found.items()]


def _short(names: Sequence[str]) -> str:
    """A line's label, which has no room for many."""
    return ", ".join(names) if len(names) <= _NAMES else f"{names[0]} and {len(names) - 1} more"


def _is_wide(values: Sequence[float], ratio: float = _WIDE) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= ratio
