"""What is drawn of the results, each figure from one part of them. Knows no page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.units import size_text
from ..results import Clip, Contour, Distribution, Estimate, Results
from .figures_many import heat, label_beside, on_log_scales
from .plots import INK, LEVEL_COLOURS, MANY, MUTED, PAPER, RULE, Plot, colour_of, drawn, library, marker_of
from .sections.clips import f0_in_words, voiced_hz
from .sections.costs import front, size_and_kld
from .sections.quality import can_be_scaled
from .words import BOUNDS, label_of, listed, metric_of, number, with_unit

_MOST_POINTS = 200
"""Of a distribution. More say nothing that the box does not."""
_SHORT_NAME = 16
"""Letters of a name, of which two fit beside each other above a plot."""
_WIDE = 300.0
"""Ratio of the largest to the smallest divergence from which on a scale is logarithmic: below, zero is a better end."""
_WIDEST_RATIO = 4.0
"""Seed-to-seed differences shown. What is further off is drawn as an arrow at the edge."""


def memory(results: Results) -> Plot | None:
    """Stacked bars of the accounted parts, with the measured peak as a mark."""
    levels = [level for level in results.levels if level.memory is not None and level.memory.accounted]
    if not levels:
        return None
    names = list(dict.fromkeys(part.name for level in levels if level.memory for part in level.memory.accounted))

    columns = 2 if max(map(len, names)) <= _SHORT_NAME else 1

    def paint(axes: Any) -> None:
        left = np.zeros(len(levels))
        for index, name in enumerate(names):
            sizes = np.array(
                [sum(p.bytes for p in level.memory.accounted if p.name == name) for level in levels if level.memory]
            )
            shade = LEVEL_COLOURS[(index + 1) % len(LEVEL_COLOURS)]
            axes.barh(range(len(levels)), sizes / 2**20, 0.55, left / 2**20, color=shade, edgecolor=PAPER, label=name)
            left = left + sizes
        for row, level in enumerate(levels):
            if level.memory and level.memory.measured_peak_bytes is not None:
                peak = level.memory.measured_peak_bytes / 2**20
                label = "measured peak" if row == 0 else None
                axes.plot([peak, peak], [row - 0.38, row + 0.38], color=INK, linewidth=2.4, label=label)
        _rows(axes, [label_of(level.level) for level in levels])
        axes.set_xlabel("MiB")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _legend(axes, columns)

    sums = (
        f"{label_of(level.level)} {level.memory.accounted_bytes / 2**20:,.0f} MiB" for level in levels if level.memory
    )
    height = 70 + 34 * len(levels) + 17 * ((len(names) + columns) // columns)
    return drawn("memory", "Accounted GPU memory by part", f"Accounted: {listed(sums)}.", height, paint)


def heat_map(results: Results) -> Plot | None:
    """Mean KLD, level x codebook, logarithmic; exact zeros are left blank."""
    levels = [level.level for level in results.levels if level.level != results.reference]
    found = {(entry.level, entry.codebook): entry.kld_mean for entry in results.codebooks}
    levels = [level for level in levels if any(key[0] == level for key in found)]
    codebooks = sorted({codebook for level, codebook in found if level in levels})
    if not levels:
        return None
    klds = np.array([[found.get((level, codebook), np.nan) for codebook in codebooks] for level in levels])
    positive = klds[klds > 0]

    def paint(axes: Any) -> None:
        low, high = (positive.min(), positive.max()) if positive.size else (1e-3, 1e-2)
        # One value alone is no range.
        norm = library("matplotlib.colors").LogNorm(low / 1.05, max(high, low * 2) * 1.05)
        bar = heat(axes, np.where(klds > 0, klds, np.nan), norm, "nats (blank: exactly 0)")
        bar.ax.minorticks_off()
        axes.set_yticks(np.arange(len(levels)) + 0.5, [label_of(level) for level in levels])
        step = 1 if len(codebooks) <= 16 else 4
        axes.set_xticks(np.arange(0, len(codebooks), step) + 0.5, [str(codebook) for codebook in codebooks[::step]])
        axes.set_xlabel("codebook")

    worst = []
    for row, level in enumerate(levels):
        column = int(np.nanargmax(klds[row]))
        worst.append(f"{label_of(level)} {number(float(klds[row, column]), 4)} nats at codebook {codebooks[column]}")
    text = f"The largest mean KLD: {listed(worst)}."
    height = 125 + (30 if len(levels) <= MANY else 22) * len(levels)
    return drawn("heat", "Mean KLD by level and codebook", text, height, paint)


def attribution(results: Results) -> Plot | None:
    """Three means with bounds a level: backbone only, depth decoder only, both."""
    entries = results.attribution
    if not entries:
        return None
    kinds = ("backbone only", "depth decoder only", "both")
    values = [found.value for entry in entries for found in (entry.backbone_only, entry.decoder_only, entry.both)]
    # Without zeros, which have no place on a logarithmic scale.
    floor = min((value for value in values if value > 0), default=1.0)
    is_log = max(values) / floor > _WIDE

    def paint(axes: Any) -> None:
        for index, kind in enumerate(kinds):
            halves = [(entry.backbone_only, entry.decoder_only, entry.both)[index] for entry in entries]
            rows = [row + 0.26 * (index - 1) for row in range(len(entries))]
            _intervals(axes, halves, rows, index + 1, kind)
        _rows(axes, [label_of(entry.level) for entry in entries])
        if is_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(left=floor / 2 if is_log else 0)
        axes.set_xlabel("KLD over all codebooks, nats")
        _legend(axes, 2)

    said = (
        f"{label_of(entry.level)}: backbone {number(entry.backbone_only.value, 4)}, depth decoder "
        f"{number(entry.decoder_only.value, 4)}, both {number(entry.both.value, 4)}"
        for entry in entries
    )
    return drawn("attribution", "KLD with one half at the level", f"{'; '.join(said)}.", 115 + 48 * len(entries), paint)


def pareto(results: Results) -> Plot | None:
    """File size against KLD, with the front as steps."""
    points = size_and_kld(results)
    if len(points) < 2:
        return None
    best = front(points)
    bars = {entry.level: entry.both for entry in results.attribution}
    order = [level.level for level in results.levels]
    unit, name = (1e9, "GB") if max(size for size, _ in points.values()) >= 1e9 else (1e6, "MB")

    is_crowded = len(points) > MANY
    places = {level: (size / unit, kld) for level, (size, kld) in points.items()}

    def paint(axes: Any) -> None:
        if is_crowded:
            on_log_scales(axes, [kld for _, kld in places.values()])
        steps = sorted(places[level] for level in best)
        axes.step(*zip(*steps, strict=True), where="post", color=MUTED, linewidth=1.2)
        for level, (size, kld) in places.items():
            colour = colour_of(order.index(level))
            if level in bars:
                axes.plot([size] * 2, [bars[level].low, bars[level].high], color=colour, linewidth=1.6)
            face = colour if level in best else "none"
            axes.plot(size, kld, marker_of(order.index(level)), markersize=8, color=colour, markerfacecolor=face)
            if not is_crowded:
                axes.annotate(label_of(level), (size, kld), (8, 6), textcoords="offset points", color=INK)
        axes.margins(x=0.16, y=0.14)
        if is_crowded:
            label_beside(axes, {label_of(level): place for level, place in places.items()})
        axes.set_xlabel(f"files, {name} (smaller is better)")
        axes.set_ylabel("KLD, nats (lower is better)")

    said = (f"{label_of(level)} {size_text(size)} and {number(kld, 4)} nats" for level, (size, kld) in points.items())
    height = 90 + 15 * len(points) if is_crowded else 270
    return drawn("pareto", "File size against KLD", f"{listed(said)}.", height, paint)


def forest(results: Results) -> Plot | None:
    """R of each metric and level with its bounds: the difference in units of that between two seeds."""
    levels = [level.level for level in results.levels]
    compared = [level for level in levels if level != results.reference]
    ratios: dict[str, dict[str, Estimate]] = {}
    for entry in results.metrics:
        if entry.effect_ratio is not None and entry.level in compared and can_be_scaled(entry):
            ratios.setdefault(entry.metric, {})[entry.level] = entry.effect_ratio
    if not ratios:
        return None
    shown = [level for level in levels if any(level in by_level for by_level in ratios.values())]
    right = min(max(1.15, *(ratio.high for by_level in ratios.values() for ratio in by_level.values())), _WIDEST_RATIO)
    title = "Differences against the noise floor"
    if len(shown) > MANY:
        return _ratio_map(ratios, shown, right, title)

    def paint(axes: Any) -> None:
        axes.axvspan(0, 1, color=RULE, alpha=0.45, linewidth=0)
        for index, level in enumerate(shown):
            shift = 0.7 * ((index + 0.5) / len(shown) - 0.5)
            found = [
                (row + shift, ratios[metric][level]) for row, metric in enumerate(ratios) if level in ratios[metric]
            ]
            inside = [(row, ratio) for row, ratio in found if ratio.value <= right]
            place = levels.index(level)
            _intervals(axes, [ratio for _, ratio in inside], [row for row, _ in inside], place, label_of(level))
            beyond = [row for row, ratio in found if ratio.value > right]
            if beyond:
                axes.plot([right] * len(beyond), beyond, ">", color=colour_of(place), markersize=7, clip_on=False)
        axes.set_xlim(0, right)
        _rows(axes, [metric_of(metric).label for metric in ratios])
        axes.set_xlabel("R (1 = as different as another seed)")
        _legend(axes, 3)

    height = 95 + max(24, 11 * len(shown) + 4) * len(ratios)
    text = f"R of each metric with its {BOUNDS}; an arrow is beyond {right:.2g}. See the table."
    return drawn("forest", title, text, height, paint)


def _ratio_map(ratios: Mapping[str, Mapping[str, Estimate]], levels: Sequence[str], right: float, title: str) -> Plot:
    """The same of many levels: R alone, as a colour."""
    values = [
        [min(by_level[level].value, right) if level in by_level else np.nan for by_level in ratios.values()]
        for level in levels
    ]

    def paint(axes: Any) -> None:
        norm = library("matplotlib.colors").Normalize(0, right)
        heat(axes, np.array(values), norm, f"R (1 = as different as another seed; at most {right:.2g})")
        axes.set_yticks(np.arange(len(levels)) + 0.5, [label_of(level) for level in levels])
        axes.set_xticks(np.arange(len(ratios)) + 0.5, [metric_of(metric).label for metric in ratios], rotation=90)

    text = f"R of each metric and level; its {BOUNDS} are in the table."
    return drawn("forest", title, text, 230 + 22 * len(levels), paint)


def distribution(results: Results, name: str, index: int) -> Plot | None:
    """One scalar of all clips: points, and a box from the lower to the upper quartile, by level."""
    order = [level.level for level in results.levels]
    entries = [entry for entry in results.distributions if entry.name == name and entry.values]
    if not entries:
        return None

    def paint(axes: Any) -> None:
        for row, entry in enumerate(entries):
            place = order.index(entry.level) if entry.level in order else row
            _box(axes, row, entry, colour_of(place))
        _rows(axes, [label_of(entry.level) for entry in entries])
        axes.set_xlabel(f"{name} ({entries[0].unit})" if entries[0].unit else name)

    medians = (
        f"{label_of(entry.level)} {with_unit(number(float(np.median(entry.values)), 2), entry.unit)}"
        for entry in entries
    )
    height = 60 + (38 if len(entries) <= MANY else 24) * len(entries)
    return drawn(f"spread-{index}", name.capitalize(), f"Medians: {listed(medians)}.", height, paint)


def contours(clip: Clip, name: str, place: int) -> Plot:
    """F0 of a clip over its reference's. `place` is the level's among the results, for its colour."""
    both = ((clip.reference_contour, "reference", 0), (clip.contour, label_of(clip.level), max(place, 1)))
    voiced = [hz for contour, _, _ in both for hz in voiced_hz(contour)]

    def paint(axes: Any) -> None:
        for contour, label, index in both:
            seconds, hertz = _line(contour)
            width = 3.6 if index == 0 else 1.6
            axes.plot(
                seconds, hertz, color=colour_of(index), linewidth=width, alpha=1 - 0.4 * (index == 0), label=label
            )
        if voiced:
            axes.set_yscale("log")
            low, high = min(voiced) * 0.94, max(voiced) * 1.06
            axes.set_ylim(low, high)
            ticks = _hertz_ticks(low, high)
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.yaxis.set_minor_locator(library("matplotlib.ticker").NullLocator())
        else:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no voiced steps", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xlim(left=0)
        axes.set_xlabel("s")
        axes.set_ylabel("F0, Hz")
        _legend(axes, 2)

    text = f"Reference: {f0_in_words(clip.reference_contour)}. {label_of(clip.level)}: {f0_in_words(clip.contour)}."
    return drawn(name, f"F0 of {label_of(clip.level)}, {clip.prompt}", text, 185, paint)


def _rows(axes: Any, labels: Sequence[str]) -> None:
    """One row a label, the first on top, without lines between."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=5)


def _legend(axes: Any, columns: int) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.4)


def _intervals(axes: Any, estimates: Sequence[Estimate], rows: Sequence[float], place: int, label: str) -> None:
    colour = colour_of(place)
    axes.hlines(rows, [e.low for e in estimates], [e.high for e in estimates], color=colour, linewidth=2)
    axes.plot([e.value for e in estimates], rows, marker_of(place), color=colour, markersize=5.5, label=label)


def _box(axes: Any, row: int, entry: Distribution, colour: str) -> None:
    values = np.sort(np.asarray(entry.values))
    points = values[np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int)]
    # Spread over the row by a sequence that fills it evenly: the same every time, and no neighbours on one line.
    shifts = (np.arange(len(points)) * 0.618034 % 1 - 0.5) * 0.56
    axes.plot(points, row + shifts, ".", color=colour, alpha=0.4, markersize=4.5, markeredgewidth=0)
    low, middle, high = np.percentile(values, (25, 50, 75))
    axes.barh(row, high - low, 0.6, low, facecolor="none", edgecolor=colour, linewidth=1.6)
    axes.plot([middle, middle], [row - 0.3, row + 0.3], color=INK, linewidth=2.2)


def _line(contour: Contour) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Seconds and hertz; NaN, a gap in the line, where unvoiced."""
    hertz = np.asarray(contour.f0_hz, np.float64)
    return np.arange(len(hertz)) * contour.step_s, np.where(hertz > 0, hertz, np.nan)


def _hertz_ticks(low: float, high: float) -> list[float]:
    """Round frequencies from `low` to `high`; the ends themselves if there are fewer than two."""
    rounds = [hz for hz in (50, 75, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800) if low <= hz <= high]
    return [float(hz) for hz in rounds] if len(rounds) > 1 else [float(round(low)), float(round(high))]
