"""A report of all levels: figures and sentences that are drawn otherwise where there are many."""

import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sample_results import EVERY_LEVEL, full

from miso_gguf.models.levels import LEVELS
from miso_gguf.quant_eval.report import figures
from miso_gguf.quant_eval.report.figures_ladder import ladder
from miso_gguf.quant_eval.report.figures_many import label_beside, spread
from miso_gguf.quant_eval.report.headline import headline
from miso_gguf.quant_eval.report.plots import MANY, drawn
from miso_gguf.quant_eval.report.words import label_of
from miso_gguf.quant_eval.report.write import write_reports
from miso_gguf.quant_eval.results import Results

FEW = ("fp16", "q8_0", "q4_k_m", "q4_0")
ALL = EVERY_LEVEL


@pytest.fixture(scope="module")
def results() -> Results:
    every = full(levels=ALL)
    return every.model_copy(update={"clips": every.clips[:2]})


def test_the_sample_has_every_level() -> None:
    assert set(ALL) >= LEVELS.keys()


def test_every_figure_has_room(results: Results, tmp_path: Path) -> None:
    """Matplotlib warns where labels leave no room for what they are of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_reports(results, tmp_path, tmp_path)
    names = {label_of(key) for key in ALL}
    for line in ((tmp_path / "report.md").read_text("utf-8"), (tmp_path / "report.html").read_text("utf-8")):
        assert {name for name in names if name in line} == names


@pytest.mark.parametrize("count", [MANY + 1, 13, len(ALL)])
def test_names_stand_beside_the_points_and_apart(count: int) -> None:
    """Every level is named once, in the order of its loss, and no name is on another."""
    plot = figures.pareto(full(levels=ALL[:count]))
    assert plot is not None
    texts = re.findall(
        r"translate\(([\d.]+) ([\d.]+)\)[^>]*>(\w+)</text>|"
        r'<text[^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>(\w+)</text>',
        plot.svg,
    )
    found = {name or other: float(y or height) for _, y, name, _, height, other in texts}
    found = {name: y for name, y in found.items() if name in {label_of(key) for key in ALL}}
    assert len(found) == count
    heights = sorted(found.values())
    assert min(np.diff(heights)) > 9, "units: letters are 10 high"


def test_few_levels_are_drawn_as_ever() -> None:
    few, many = (figures.forest(full(levels=levels)) for levels in (FEW, ALL))
    assert few is not None
    assert many is not None
    assert "an arrow is beyond" in few.text
    assert "R of each metric and level" in many.text
    assert len(ALL) > MANY >= len(FEW)


def test_halves_are_on_a_logarithmic_scale_where_levels_are_far_apart(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = []

    def draw(*given: Any) -> None:
        axes = Figure().subplots()
        given[-1](axes)
        scales.append(axes.get_xscale())

    monkeypatch.setattr(figures, "drawn", draw)
    figures.attribution(full(levels=FEW))
    figures.attribution(results)
    assert scales == ["linear", "log"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).map(sorted), st.floats(0.001, 0.1))
def test_what_is_spread_is_apart_and_in_order(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap)
    assert all(other - one >= gap - 1e-9 for one, other in pairwise(found))
    assert max(found) <= max(1.0, gap * (len(found) - 1)) + 1e-9


def test_what_is_apart_stays_where_it_is() -> None:
    assert spread([0.1, 0.5, 0.9], 0.2) == [0.1, 0.5, 0.9]
    assert spread([0.98, 0.99, 1.0], 0.25) == [0.5, 0.75, 1.0]


def test_names_follow_the_final_limits() -> None:
    """Margins that were asked for before are in the places of the names."""
    seen: list[float] = []

    def paint(axes: Any) -> None:
        axes.plot([1, 2], [0, 10], "o")
        axes.margins(y=0.5)
        label_beside(axes, {"low": (1, 0), "high": (2, 10)})
        seen.extend(text.xyann[1] for text in axes.texts)

    drawn("x", "t", "t", 200, paint)
    assert seen == pytest.approx([0.25, 0.75])


def test_what_many_levels_have_in_common_is_said_once(results: Results) -> None:
    said = headline(results)
    assert said.count("measured, not judged") == 1
    assert re.search(r"no margins for f32, bf16, q6_k and \d+ more: measured, not judged", said)
    assert headline(full(levels=(*FEW, "q6_k", "q5_k_m"))).endswith(
        "no margins for q6_k and q5_k_m: measured, not judged."
    )


def test_a_margin_of_many_levels_has_a_short_label(results: Results) -> None:
    gate = next(gate for gate in results.gates if gate.metric == "kld_cb0" and gate.level == "q8_0")
    gates = [gate.model_copy(update={"level": level}) for level in ALL]
    plot = ladder(results.model_copy(update={"gates": gates}))[0]
    assert f"F16 and {len(ALL) - 1} more" in plot.text
