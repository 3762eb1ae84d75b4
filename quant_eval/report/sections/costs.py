"""What each level costs in files, memory and time, and what that buys. Does not know the formats."""

from ....core.units import size_text
from ...results import LevelResult, Memory, Results
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import interval, label_of, mebibytes, number, with_unit

NOT_RUN = Cell("not run")
KLD_DIGITS = 5
_MOST_BESIDE = 7
"""Columns that a table beside a plot has room for."""


def costs(results: Results) -> Section:
    """Size, bits per weight, memory accounted and measured, speed."""
    section = Section(
        "costs",
        "Size, memory and speed",
        "Accounted memory is the sum of what is allocated with everything on the GPU, and needs no GPU to be known. "
        "Measured memory is what the driver reports, and is there only if it was measured. RTF is wall time over audio "
        "time on the machine named below; below 1 is faster than speech.",
    )
    if not results.levels:
        return section.without("The results name no level.")
    head = heads("Level", "Files", "Bits per weight", "VRAM, accounted", "VRAM, measured", "RTF", "Time to first audio")
    table = Table("What a level costs", head, tuple(_cost_row(level) for level in results.levels), is_wide=True)
    parts = _memory_parts(results.levels)
    return section.of(table, parts) if parts.rows else section.of(table)


def pareto(results: Results) -> Section:
    """Size against the one number that is there for every level: KLD over all codebooks."""
    section = Section(
        "pareto",
        "Size against quality",
        "A level is on the front if no other is both smaller and nearer to the reference.",
    )
    points = size_and_kld(results)
    if not points:
        return section.without("Not run: without the logit stage there is no KLD.")
    best = front(points)
    sizes = {level.level: level for level in results.levels}
    table = Table(
        "File size and KLD over all codebooks",
        heads("Level", "Files", "Bits per weight", "KLD (nats)", "On the front"),
        tuple(
            (
                Cell(label_of(level)),
                Cell(size_text(size)),
                Cell(number(sizes[level].bits_per_weight, 2)),
                Cell(number(kld, KLD_DIGITS), _kld_bounds(results, level)),
                Cell("yes" if level in best else "no"),
            )
            for level, (size, kld) in points.items()
        ),
        words=frozenset({0, 4}),
    )
    return section.of(table)


def size_and_kld(results: Results) -> dict[str, tuple[int, float]]:
    """(bytes, KLD over all codebooks in nats) of each level that has both; the reference's KLD is 0 by definition."""
    both = {entry.level: entry.both.value for entry in results.attribution}
    points = {}
    for level in results.levels:
        by_codebook = [entry.kld_mean for entry in results.codebooks if entry.level == level.level]
        if level.level in both:
            points[level.level] = level.file_bytes, both[level.level]
        elif by_codebook:
            points[level.level] = level.file_bytes, sum(by_codebook) / len(by_codebook)
        elif level.level == results.reference and (both or results.codebooks):
            points[level.level] = level.file_bytes, 0.0
    return points


def front(points: dict[str, tuple[int, float]]) -> set[str]:
    """Levels that no other dominates: smaller and nearer, or one of them with the other equal."""

    def is_dominated(level: str) -> bool:
        size, kld = points[level]
        return any((s <= size and k <= kld) and (s, k) != (size, kld) for s, k in points.values())

    return {level for level in points if not is_dominated(level)}


def _cost_row(level: LevelResult) -> tuple[Cell, ...]:
    return (
        Cell(label_of(level.level)),
        Cell(size_text(level.file_bytes)),
        Cell(number(level.bits_per_weight, 2)),
        NOTHING if level.memory is None else Cell(mebibytes(level.memory.accounted_bytes)),
        NOTHING if level.memory is None else _measured(level.memory),
        NOT_RUN if level.rtf is None else Cell(number(level.rtf, 2)),
        NOT_RUN if level.ttfa_s is None else Cell(with_unit(f"{level.ttfa_s * 1000:,.0f}", "ms")),
    )


def _measured(memory: Memory) -> Cell:
    if memory.measured_peak_bytes is None:
        return Cell("not run", memory.measured_why_not.removeprefix("not run").lstrip(": "))
    steady = memory.measured_steady_bytes
    return Cell(mebibytes(memory.measured_peak_bytes), "" if steady is None else f"steady {mebibytes(steady)}")


def _memory_parts(levels: list[LevelResult]) -> Table:
    """Part x level. A part that only some levels have is "—" in the others."""
    accounted = {level.level: level.memory for level in levels if level.memory is not None}
    sources = {part.name: part.source for memory in accounted.values() for part in memory.accounted}
    rows = []
    for name, source in sources.items():
        sizes = ([part.bytes for part in memory.accounted if part.name == name] for memory in accounted.values())
        cells = (Cell(mebibytes(sum(found))) if found else NOTHING for found in sizes)
        rows.append((Cell(name, source), *cells))
    head = (Cell("Part"), *(Cell(label_of(level)) for level in accounted))
    caption = "Accounted memory by part, and where each number comes from"
    return Table(caption, head, tuple(rows), is_wide=len(head) > _MOST_BESIDE)


def _kld_bounds(results: Results, level: str) -> str:
    return next((interval(entry.both, KLD_DIGITS) for entry in results.attribution if entry.level == level), "")
