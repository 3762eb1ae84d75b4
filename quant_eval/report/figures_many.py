"""Ways to draw what is much: a matrix as colours, and names beside a crowd of points. Knows no results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .plots import INK, MUTED, PAPER, library


def heat(axes: Any, values: npt.NDArray[np.float64], norm: Any, label: str) -> Any:
    """`values` [rows, columns] as colours, the first row on top; NaN is blank. Returns the bar that explains them."""
    # Few steps: as many as can be told apart, and each is a shape of the SVG and no bitmap.
    colours = library("matplotlib").colormaps["YlOrBr"].resampled(24)
    shown = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(shown, norm=norm, cmap=colours, edgecolors=PAPER, linewidth=1.2)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.invert_yaxis()
    bar = axes.figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=30, pad=0.04)
    bar.outline.set_visible(False)
    bar.set_label(label)
    bar.ax.grid(visible=False)
    bar.ax.xaxis.set_major_formatter("{x:g}")
    return bar


def on_log_scales(axes: Any, heights: Sequence[float]) -> None:
    """Sizes, and heights of which some may be zero, by their ratios: levels lie close together at the small end."""
    ticker = library("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 4.0)))
    smallest = min((height for height in heights if height > 0), default=1.0)
    axes.set_yscale("symlog", linthresh=smallest)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(ticker.NullLocator())


def label_beside(axes: Any, places: Mapping[str, tuple[float, float]]) -> None:
    """The names of points, on the right of the plot in the order of their heights, each with a line to its point."""
    axes.autoscale_view()  # the limits are wanted as they will be
    to_plot = axes.transScale + axes.transLimits
    heights = {name: float(to_plot.transform(place)[1]) for name, place in places.items()}
    names = sorted(heights, key=heights.__getitem__)
    # The plot is as high as there are names: with this they fill it at most, and do not overlap.
    gap = 1 / (len(names) + 1)
    for name, height in zip(names, spread([heights[name] for name in names], gap), strict=True):
        axes.annotate(
            name,
            places[name],
            (1.03, height),
            textcoords="axes fraction",
            color=INK,
            fontsize=10,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4},
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, in the order of those `wanted`, ascending, and about where these are."""
    found: list[float] = []
    for height in wanted:
        found.append(max(height, found[-1] + gap) if found else height)
    # What was pushed beyond the top comes down again, and pushes what is below.
    limit = max(1.0, gap * (len(found) - 1))
    for index in range(len(found) - 1, -1, -1):
        found[index] = min(found[index], limit)
        limit = found[index] - gap
    return found
