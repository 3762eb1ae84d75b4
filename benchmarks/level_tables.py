"""The table of levels as Markdown, from what `levels.py` measured: for docs, never by hand.

Levels are measured one after another, and the machine is not equally fast all the time. What a level took beside the
base in the same rounds is comparable between rows, and its milliseconds are not: those shown are the base's median over
all rows, times that ratio.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from level_rows import Row

from miso_gguf.models.levels import LEVELS, finest_first


def markdown(rows: Sequence[Row]) -> str:
    """One line a level, the finest first."""
    by_level = {row["level"]: row for row in rows}
    ordered = [by_level[level] for level in finest_first(by_level)]
    base = LEVELS[ordered[0]["base"]].label
    head = [
        "level",
        "bpw",
        "KLD, codebook 0",
        "KLD, others",
        "top-1",
        "VRAM",
        "read a frame: backbone + depth decoder",
        "ms: backbone",
        "ms: depth decoder",
        f"backbone, times {base}'s",
        f"depth decoder, times {base}'s",
    ]
    base_ms = {part: median(row[f"{part}_base_ms"] for row in ordered) for part in ("backbone", "depth")}
    lines = [head, ["---"] * len(head), *(_line(row, base_ms) for row in ordered)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(row: Row, base_ms: Mapping[str, float]) -> list[str]:
    top1 = row["top1_percent"]
    return [
        row["label"],
        f"{row['bits_per_weight']:.2f}",
        nats(row["kld_cb0"]),
        nats(row["kld_rest"]),
        f"{top1['value']:.1f} %",
        amount(row["vram_bytes"]),
        f"{amount(row['backbone_bytes'])} + {amount(row['depth_bytes'])}",
        *(_ms(base_ms[part] * row[f"{part}_over_base"]) for part in base_ms),
        f"{row['backbone_over_base']:.2f}",
        f"{row['depth_over_base']:.2f}",
    ]


def nats(estimate: dict[str, float]) -> str:
    """With its interval, to two digits of the value."""
    return f"{_digits(estimate['value'])} ({_digits(estimate['low'])} .. {_digits(estimate['high'])})"


def _digits(value: float) -> str:
    shown = f"{value:.2g}"
    return f"{float(shown):.7f}".rstrip("0").rstrip(".") if "e" in shown else shown


def amount(size_bytes: int) -> str:
    """Bytes in GB, or in MB where that is less than one."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
