"""What other cards should do, computed, not measured: a frame's bytes over the bandwidth, and its kernels' overhead.

    frame = bytes / (efficiency x bandwidth) + launches x overhead

Both constants are fitted to what was measured on a GPU, if anything was, and until then taken from llama.cpp's own
published figures. Launches are counted for compute capability 9.0; ggml may choose other kernels for another. Nothing
here may stand in a measured column.
"""

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from miso_gguf.models.mimi import FRAME_RATE_HZ

PARTS = ("backbone", "depth_decoder")
_LEVEL = "q4_k_m"


@dataclass(frozen=True)
class Card:
    """A GPU. Source: its data sheet."""

    name: str
    memory_gb: float
    bandwidth_gb_per_s: float
    device: str = ""
    """What CUDA calls it, where that name tells it from cards of another bandwidth."""


CARDS = (
    Card("RTX 3050 6 GB", 6, 168),
    Card("RTX 4060 8 GB", 8, 272, "NVIDIA GeForce RTX 4060"),
    Card("RTX 3060 12 GB", 12, 360),
    Card("RTX 4090", 24, 1008, "NVIDIA GeForce RTX 4090"),
    Card("H100 SXM", 80, 3350, "NVIDIA H100 80GB HBM3"),
    Card("H200 SXM", 141, 4800, "NVIDIA H200"),
)


@dataclass(frozen=True)
class Constants:
    """What the formula needs to know of ggml on CUDA."""

    efficiency: float
    """Of the data sheet's bandwidth, while weights are streamed."""
    overhead_us: float
    """From the end of a kernel or copy to the next one's first load, in a captured graph, in microseconds."""
    source: str


PUBLISHED = Constants(
    efficiency=0.85,
    overhead_us=1.5,
    source="llama 8B Q4_0 on an RTX 3090 at 156.6 tokens/s (llama.cpp pull request 15802): 4.36 GB and, as many as our "
    "backbone has, 614 kernels in 6.4 ms; the two together, not each, are confirmed by it",
)


def projection(counts: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of Q4_K_M, one utterance, for every card; None if its kernels were not counted.

    Args:
        counts: Results of `dry_run`.
        speeds: Results of `level_speed`. The constants are fitted to those of one known GPU, if there are any.
    """
    alone = {entry["level"]: entry for entry in counts if entry["batch"] == 1}
    if _LEVEL not in alone:
        return None
    measured, card = _measured(speeds)
    found: dict[str, Any] = {"level": _LEVEL, "streamed_bytes": alone[_LEVEL]["streamed_bytes"]}
    found["launches"] = sum(launches_of(alone[_LEVEL], part) for part in PARTS)
    constants, floor = PUBLISHED, None
    if card is not None:
        try:
            constants = fitted(measured, alone, card)
            floor = overhead_fitted(measured, alone, card, PUBLISHED.efficiency)
        except ValueError as error:
            source = f"{PUBLISHED.source}. What was measured does not give them: {error}"
            constants, floor = replace(PUBLISHED, source=source), None
    found |= {**asdict(constants), "cards": _cards(found, constants)}
    return found if floor is None else {**found, "overhead_only": {**asdict(floor), "cards": _cards(found, floor)}}


def _cards(counted: dict[str, Any], constants: Constants) -> list[dict[str, Any]]:
    milliseconds = [frame_ms(counted["streamed_bytes"], counted["launches"], card, constants) for card in CARDS]
    return [
        {"card": card.name, "frame_ms": round(each, 1), "rtf": round(each / 1e3 * FRAME_RATE_HZ, 2)}
        for card, each in zip(CARDS, milliseconds, strict=True)
    ]


def launches_of(count: dict[str, Any], part: str) -> int:
    """Kernels and copies of one part of a frame."""
    return int(count[part]["kernels"] + count[part]["copies"])


def _measured(speeds: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Card | None]:
    """What was measured on the first GPU that is one of ours."""
    known = [speed for speed in speeds if speed["cuda_graphs"] and _card(speed["device"]) is not None]
    card = _card(known[0]["device"]) if known else None
    return [speed for speed in known if _card(speed["device"]) == card], card


def _card(device: str) -> Card | None:
    """The card of that name, if it is one of ours and the name says which."""
    return next((card for card in CARDS if card.device and card.device == device), None)


def fitted(speeds: Sequence[dict[str, Any]], counts: dict[str, dict[str, Any]], card: Card) -> Constants:
    """The constants by least squares from measured parts of frames of one card.

    Args:
        speeds: Results of `level_speed` on the card.
        counts: Results of `dry_run` for a batch of 1, by level.
        card: For its bandwidth.

    Raises:
        ValueError: If the parts do not determine two positive constants.
    """
    points = _points(speeds, counts)
    if len(points) < 2:
        raise ValueError(f"two measured parts are needed for two constants, not {len(points)}")
    # Normal equations of milliseconds = a * gigabytes + b * thousands of launches.
    scaled = [(size / 1e9, launches / 1e3, milliseconds) for size, launches, milliseconds in points]
    xx, xy, yy = (sum(p[i] * p[j] for p in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    xt, yt = (sum(p[i] * p[2] for p in scaled) for i in (0, 1))
    determinant = xx * yy - xy * xy
    if determinant < 1e-6 * xx * yy:
        raise ValueError("bytes and launches of the measured parts are in proportion")
    a, b = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
    if a <= 0 or b < 0:
        raise ValueError(f"they give {a:.3g} ms a GB and {b:.3g} us a launch")
    source = f"least squares over {len(points)} parts of frames measured on {card.name}"
    return Constants(1e3 / (a * card.bandwidth_gb_per_s), b, source)


def overhead_fitted(
    speeds: Sequence[dict[str, Any]], counts: dict[str, dict[str, Any]], card: Card, efficiency: float
) -> Constants:
    """The overhead alone, for an efficiency that is given. Arguments as `fitted`.

    On a fast card kernels are too short to reach its bandwidth: the efficiency of a fit holds what is overhead too, and
    makes slow cards slower than they can be. Raises `ValueError` if no time is left for an overhead.
    """
    points = _points(speeds, counts)
    rest = [milliseconds - size / (efficiency * card.bandwidth_gb_per_s * 1e6) for size, _, milliseconds in points]
    launches = [count for _, count, _ in points]
    overhead_ms = sum(map(operator.mul, rest, launches)) / sum(map(operator.mul, launches, launches))
    if overhead_ms < 0:
        raise ValueError(f"they are faster than {efficiency:.0%} of the bandwidth")
    return Constants(efficiency, 1e3 * overhead_ms, f"the same parts, {efficiency:.0%} given")


def _points(speeds: Sequence[dict[str, Any]], counts: dict[str, dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Bytes, launches and milliseconds of each part."""
    return [
        (
            counts[speed["level"]]["part_bytes"][part],
            launches_of(counts[speed["level"]], part),
            speed["batches"][0][key],
        )
        for speed in speeds
        if speed["level"] in counts
        for part, key in zip(PARTS, ("backbone_ms", "depth_ms"), strict=True)
    ]


def frame_ms(streamed_bytes: int, launches: int, card: Card, constants: Constants) -> float:
    """Milliseconds of a frame, without the codec, which runs beside it."""
    streaming_s = streamed_bytes / (constants.efficiency * card.bandwidth_gb_per_s * 1e9)
    return 1e3 * streaming_s + launches * constants.overhead_us / 1e3
