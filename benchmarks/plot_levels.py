"""Draws docs/levels.png: what each level takes of a GPU, against common cards.

    python benchmarks/gpu/level_sizes.py | python benchmarks/plot_levels.py docs/levels.png     every level, no bundle
    miso-convert inspect BUNDLE --json | python benchmarks/plot_levels.py levels.png            those of a bundle

Needs the `docs` extra (matplotlib).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from miso_gguf.models.levels import finest_first, halves

CARDS = {4: "4 GB", 6: "6 GB", 8: "8 GB", 10: "10 GB", 12: "12 GB", 16: "16 GB", 24: "24 GB"}
PUBLISHED_GB = 24.0
"""What the model asks for as it is published. Source: upstream's model card."""
PARTS = (
    ("backbone", "backbone_bytes", "#3b6ea5"),
    ("depth decoder", "decoder_bytes", "#e08a3c"),
    ("KV cache at 2048", "kv_cache_bytes", "#8a8a8a"),
    ("compute buffers", "compute_bytes", "#c9c9c9"),
)
_NEEDS_IMATRIX = "*"
_FEW = 8
"""Levels that have broad bars."""
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


def draw(levels: dict[str, dict[str, float]], path: Path) -> None:
    """One bar a level, stacked by what the memory is for."""
    shown = finest_first(levels)
    is_many = len(shown) > _FEW
    figure, axes = plt.subplots(figsize=(9, 1.6 + (0.24 if is_many else 0.4) * (len(shown) + 1)), dpi=150)
    names, size = ["as published", *map(_named, shown)], 8.5 if is_many else 10
    axes.barh(0, PUBLISHED_GB, color="#e5e5e5", edgecolor="#999999", hatch="//")
    axes.text(PUBLISHED_GB / 2, 0, "needs a 24 GB card", ha="center", va="center", fontsize=9, bbox=_ON_WHITE)
    for row, level in enumerate(shown, start=1):
        left = 0.0
        for label, key, colour in PARTS:
            width = levels[level][key] / 1e9
            axes.barh(row, width, left=left, color=colour, label=label if row == 1 else None)
            left += width
        axes.text(left + 0.25, row, f"{left:.1f} GB", va="center", fontsize=size, weight="bold", bbox=_ON_WHITE)
    for card, label in CARDS.items():
        axes.axvline(card, color="#444444", linewidth=0.8, linestyle=":", zorder=0)
        axes.text(card, -0.75, label, ha="center", va="bottom", fontsize=8, color="#444444")
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.set_xlim(0, 25.5)
    axes.set_ylabel("level, what loses least first")
    note = f"\n{_NEEDS_IMATRIX} with an importance matrix only" if any(map(_needs_imatrix, shown)) else ""
    axes.set_xlabel(f"GB of VRAM with every layer on the GPU (accounted; the driver's context comes on top){note}")
    axes.legend(loc="lower right", fontsize=8, frameon=True)
    _bare(axes)
    figure.tight_layout()
    figure.savefig(path)


def _named(level: str) -> str:
    return f"{level}{_NEEDS_IMATRIX}" if _needs_imatrix(level) else level


def _needs_imatrix(level: str) -> bool:
    return any(half.needs_imatrix for half in halves(level))


def _bare(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
