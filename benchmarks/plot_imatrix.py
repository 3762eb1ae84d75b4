"""Draws docs/imatrix.png: what an importance matrix changes, codebook by codebook, with intervals.

    python benchmarks/plot_imatrix.py benchmarks/results/imatrix.json docs/imatrix.png

Needs the `docs` extra (matplotlib).
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SHOWN = ("q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "iq3_s", "iq3_xxs")
"""From little to gain to much."""
_HELPS, _HARMS = "#3b6ea5", "#c2410c"
_MOST_PERCENT = 50


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel a level: the typical change of each codebook, beside that of all."""
    rows = {row["level"]: row for row in result["levels"]}
    shown = [rows[level] for level in SHOWN if level in rows] or list(rows.values())
    figure = Figure(figsize=(11, 2.9 * ((len(shown) + 2) // 3)), layout="constrained", dpi=110)
    grid = list(figure.subplots((len(shown) + 2) // 3, 3, sharey=True, squeeze=False).flat)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, row in zip(grid, shown, strict=False):
        changes = [row["change"]["with"]["all"], *row["by_codebook"]]
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.axvspan(-0.5, 0.5, color="#f1f1f1", zorder=0)
        for place, change in enumerate(changes):
            one = change["typical_percent"]
            spread = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
            colour = _HELPS if one["high"] < 0 else _HARMS if one["low"] > 0 else "#8a8a8a"
            axes.errorbar(place, one["value"], spread, fmt="o", color=colour, capsize=2, markersize=4)
        against = "a matrix of ones" if row["against"] == "ones" else "no matrix"
        axes.set_title(f"{row['label']}, against {against}", loc="left", fontsize=10)
        axes.set_xticks(range(len(changes)), ["all", *map(str, range(len(changes) - 1))])
        axes.set_ylim(-_MOST_PERCENT, _MOST_PERCENT)
        axes.set_xlabel("codebook")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.supylabel("change of KLD, typical clip (%)", fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
