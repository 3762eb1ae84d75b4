"""What other cards should do, computed, not measured: a frame's bytes over the bandwidth, and its kernels' overhead.

    frame = bytes / (efficiency x bandwidth) + kernels x overhead

Both constants are measured on a real GPU where one was (`fitted`), and until then taken from llama.cpp's own published
figures (`PUBLISHED`). Nothing here may stand in a measured column.
"""

from dataclasses import dataclass
from typing import Any

FRAME_S = 0.08


@dataclass(frozen=True)
class Card:
    """A GPU. Source: its data sheet."""

    name: str
    memory_gb: float
    bandwidth_gb_per_s: float


CARDS = (
    Card("RTX 3050 6 GB", 6, 168),
    Card("RTX 4060 8 GB", 8, 272),
    Card("RTX 3060 12 GB", 12, 360),
    Card("RTX 4090", 24, 1008),
    Card("H100 SXM", 80, 3350),
    Card("H200 SXM", 141, 4800),
)


@dataclass(frozen=True)
class Constants:
    """What the formula needs to know of ggml on CUDA."""

    efficiency: float
    """Of the data sheet's bandwidth, while weights are streamed."""
    overhead_us: float
    """From the end of a kernel to the next one's first load, in a captured graph."""
    source: str


PUBLISHED = Constants(
    efficiency=0.85,
    overhead_us=1.5,
    source="llama 8B Q4_0 on an RTX 3090 at 156.6 tokens/s (llama.cpp pull request 15802): 4.36 GB and, as many as our "
    "backbone has, 614 kernels in 6.4 ms; the two together, not each, are confirmed by it",
)


def fitted(speeds: list[dict[str, Any]], counts: dict[str, dict[str, Any]], bandwidth_gb_per_s: float) -> Constants:
    """The constants by least squares from measured parts of frames.

    Args:
        speeds: Results of `level_speed` on one card.
        counts: Results of `dry_run` for a batch of 1, by level.
        bandwidth_gb_per_s: Of that card, by its data sheet.

    Raises:
        ValueError: With fewer than two measured parts of a counted level.
    """
    points = [
        (speed["streamed_bytes"][key], counts[speed["level"]][key]["kernels"], speed["parts_ms"][label] / 1e3)
        for speed in speeds
        if speed["level"] in counts
        for key, label in (("backbone", "backbone"), ("depth_decoder", "depth decoder"))
    ]
    if len(points) < 2:
        raise ValueError(f"two measured parts are needed for two constants, not {len(points)}")
    # Normal equations of seconds = a * bytes + b * kernels.
    xx = sum(x * x for x, _, _ in points)
    xy = sum(x * y for x, y, _ in points)
    yy = sum(y * y for _, y, _ in points)
    xt = sum(x * t for x, _, t in points)
    yt = sum(y * t for _, y, t in points)
    determinant = xx * yy - xy * xy
    a, b = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
    return Constants(1 / (a * bandwidth_gb_per_s * 1e9), b * 1e6, f"least squares over {len(points)} measured parts")


def frame_ms(streamed_bytes: int, kernels: int, card: Card, constants: Constants) -> float:
    """Milliseconds of a frame, without the codec, which runs beside it."""
    streaming_s = streamed_bytes / (constants.efficiency * card.bandwidth_gb_per_s * 1e9)
    return 1e3 * streaming_s + kernels * constants.overhead_us / 1e3


def projected(streamed_bytes: int, kernels: int, constants: Constants = PUBLISHED) -> list[dict[str, Any]]:
    """Every card: milliseconds of a frame, and RTF."""
    rows = []
    for card in CARDS:
        milliseconds = frame_ms(streamed_bytes, kernels, card, constants)
        rows.append(
            {"card": card.name, "frame_ms": round(milliseconds, 1), "rtf": round(milliseconds / 1e3 / FRAME_S, 2)}
        )
    return rows
