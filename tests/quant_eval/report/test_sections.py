"""What the sections say: what decides, what was not judged, what changed, what the damages showed."""

import re
from pathlib import Path

import pytest
from sample_results import estimate, full, sample

from miso_gguf.quant_eval.report import figures, figures_ladder, markdown
from miso_gguf.quant_eval.report.headline import headline
from miso_gguf.quant_eval.report.html import page
from miso_gguf.quant_eval.report.outline import sections
from miso_gguf.quant_eval.report.sections import controls, instruments, quality, verdicts
from miso_gguf.quant_eval.report.view import Cell, Table
from miso_gguf.quant_eval.report.words import MARK_WORDS, SIGNS
from miso_gguf.quant_eval.results import Estimate, Results, Rung

SMALL = ("fp16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def results() -> Results:
    return full(codebooks=2, levels=SMALL)


def _table(results: Results, section: str, caption: str) -> Table:
    tables = next(each.tables for each in sections(results) if each.key == section)
    return next(table for table in tables if table.caption.startswith(caption))


def _undrawn(results: Results) -> Results:
    """Without all that makes plots, which take seconds."""
    drawn = ("clips", "distributions", "ladder", "metrics", "codebooks", "attribution")
    levels = [level.model_copy(update={"memory": None}) for level in results.levels]
    return results.model_copy(update={"levels": levels, **{name: [] for name in drawn}})


def _texts(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.text for cell in cells]


def test_the_rules_are_those_that_decide_and_no_interval_is_of_95_percent(results: Results, tmp_path: Path) -> None:
    rows = _table(results, "verdicts", "What decides").rows
    assert {row[0].mark for row in rows} == {"PASS", "FAIL", "INCONCLUSIVE", "MISSING", None}
    said = " ".join(row[1].text for row in rows)
    assert "Holm" in said
    assert "one-sided" in said
    assert "95 %" in said
    for text in (markdown.report(results), markdown.comment(results), page(_undrawn(results), tmp_path)):
        assert "interval" not in text
        assert "bounds of 95 % each" in text


def test_every_mark_has_a_sign_and_a_word_of_its_own() -> None:
    for each in (SIGNS, MARK_WORDS, markdown.MARKS):
        assert set(each) == set(SIGNS)
        assert len(set(each.values())) == len(SIGNS)


def test_the_reference_has_a_column_that_says_not_run(results: Results) -> None:
    matrix = _table(results, "verdicts", "Value, bounds")
    assert _texts(matrix.head) == ["Gate", "F16", "Q8_0", "Q4_0"]
    assert [cell.mark for cell in matrix.head] == [None, "NOT_RUN", "INCONCLUSIVE", "FAIL"]
    assert {(row[1].text, row[1].mark) for row in matrix.rows} == {("not run", "NOT_RUN")}
    (row,) = _table(results, "verdicts", "Not judged").rows
    assert _texts(row) == ["F16", "not run: no F32 level; that it says the same every time is one of the controls"]


def test_judged_by_f32_the_reference_is_a_level_like_others() -> None:
    results = sample(levels=("fp16", "q8_0"))
    gates = [gate.model_copy(update={"level": "fp16"}) for gate in results.gates]
    levels = [results.levels[0].model_copy(update={"verdict": "PASS"}), results.levels[1]]
    matrix = _table(
        results.model_copy(update={"gates": [*gates, *results.gates], "levels": levels}), "verdicts", "Value, bounds"
    )
    assert (matrix.head[1].text, matrix.head[1].detail, matrix.head[1].mark) == ("F16", "against F32", "PASS")
    assert matrix.rows[0][1].mark == "PASS"


def test_cells_say_how_far_they_are_from_a_decision(results: Results) -> None:
    rows = {row[0].text: row for row in _table(results, "verdicts", "Value, bounds").rows}
    none, some = rows["New failures"][2:]
    assert (none.text, none.detail, none.mark) == ("0 of 144 clips", "at most 2.1\N{NO-BREAK SPACE}%", "INCONCLUSIVE")
    assert none.aside == "margin ≤ 1\N{NO-BREAK SPACE}%; needs 299 clips, 155 more"
    assert (some.text, some.detail, some.mark) == (
        "9 of 144 clips",
        "2 cured, at most 8.9\N{NO-BREAK SPACE}%",
        "BEYOND",
    )
    assert some.aside.endswith("about 1,210 clips would decide it")
    assert (rows["F0 error"][3].text, rows["F0 error"][3].mark) == ("not measured", "MISSING")


def test_changes_are_tables_of_their_own_and_folded_only_if_all_pass(results: Results) -> None:
    history, anchor = (_table(results, "verdicts", f"Change since the {what}") for what in ("last", "anchor"))
    assert _texts(history.rows[0])[0] == "KLD, semantic, change since the last accepted"
    assert not history.is_folded
    assert not anchor.is_folded, "F0 error is missing there"
    passed = [gate for gate in results.gates if gate.verdict == "PASS"]
    green = _table(results.model_copy(update={"gates": passed}), "verdicts", "Change since the anchor: all 7 pass")
    assert green.is_folded
    assert "all 7 pass" in markdown.comment(results.model_copy(update={"gates": passed})), "a comment has it too"


def test_a_comparison_has_one_matrix_of_paired_differences() -> None:
    results = sample(levels=("fp16", "q8_0", "q4_0"))
    levels = [
        level.model_copy(update={"level": name, "verdict": verdict, "why_not_judged": why})
        for level, (name, verdict, why) in zip(
            results.levels,
            (("fp16", None, "measures both"), ("old", None, "new is held against it"), ("new", "PASS", None)),
            strict=True,
        )
    ]
    gates = [
        gate.model_copy(update={"level": "new", "kind": "paired", "estimate": estimate(0.001), "verdict": "PASS"})
        for gate in results.gates[:7]
    ]
    compared = results.model_copy(update={"kind": "compare", "levels": levels, "gates": gates})
    assert headline(compared) == "NEW passes every gate."
    section = verdicts.verdicts(compared)
    assert section.intro.startswith("NEW against OLD, clip by clip: by how much is NEW further from F16 than OLD is?")
    matrix = section.tables[0]
    assert _texts(matrix.head) == ["Gate", "NEW"]
    assert not matrix.is_folded
    assert matrix.rows[0][0].text == "KLD, semantic, NEW against OLD"
    assert matrix.rows[0][1].text == "+0.00100"
    assert not any(table.caption.startswith("Value") for table in section.tables)


def test_a_control_that_did_not_behave_is_seen_at_its_gate_and_level(results: Results, tmp_path: Path) -> None:
    caption = "Does the damage fail its gate at the level's own margin?"
    matrix = _table(results, "controls", caption)
    assert matrix.caption.endswith("12 of 12 do")
    assert {cell.text for row in matrix.rows for cell in row[1:]} == {"✓"}
    index = next(i for i, each in enumerate(results.controls) if (each.level, each.metric) == ("q4_0", "dur_ratio"))
    bad = results.controls[index].model_copy(update={"behaved": False, "found": "PASS: 0.03 (0.01 to 0.05)"})
    # Beside one that does: each way in which clips fail has a control, and all must behave.
    spoilt = results.model_copy(update={"controls": [*results.controls, bad]})
    matrix = _table(spoilt, "controls", caption)
    row = next(row for row in matrix.rows if row[0].text == "Duration")
    assert [(cell.text, cell.detail, cell.mark) for cell in row[1:]] == [("✓", "", "PASS"), ("✗", "PASS", "FAIL")]
    assert '<div class="alert is-fail" role="note">' in page(_undrawn(spoilt), tmp_path)
    assert "❌ **Controls did not behave" in markdown.comment(spoilt)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("kld_cb0", (0.1, 0.2, 0.3), "worse at every step"),
        ("kld_cb0", (0.1, 0.3, 0.2), "worse, but not at every step"),
        ("kld_cb0", (0.0, 0.0, 0.2), "worse, but not at every step"),
        ("kld_cb0", (0.3, 0.4, 0.2), "not worse at the end"),
        ("kld_cb0", (0.0, 0.0), "the same at every step"),
        ("top1", (99.0, 98.0), "worse at every step"),
        ("top1", (98.0, 99.0), "not worse at the end"),
        ("dur_ratio", (0.01, -0.02), "worse at every step"),
        ("dur_ratio", (-0.02, 0.01), "not worse at the end"),
    ],
)
def test_what_is_worse_depends_on_the_direction(key: str, values: tuple[float, ...], said: str) -> None:
    assert controls.climb(key, values) == said


def test_the_ladder_says_what_does_not_get_worse(results: Results) -> None:
    rows = {row[0].text: row for row in _table(results, "ladder", "From the weakest").rows}
    assert list(rows) == ["KLD, semantic", "Top-1 agreement", "Flips", "F0 error", "Duration"]
    assert (rows["Flips"][1].text, rows["Flips"][1].detail) == ("0.77 … 24.64", "worse at every step")
    flat = [rung.model_copy(update={"values": {**rung.values, "flip_rate": estimate(1.0)}}) for rung in results.ladder]
    changed = results.model_copy(update={"ladder": flat})
    row = next(row for row in _table(changed, "ladder", "From the weakest").rows if row[0].text == "Flips")
    assert [cell.detail for cell in row[1:]] == ["the same at every step"] * 3
    assert controls.ladder(sample()).missing == "Not run: the ladder was not asked for."


def test_the_ladder_is_a_plot_a_metric_with_the_margins_in_reach(results: Results) -> None:
    plots = {plot.title: plot for plot in figures_ladder.ladder(results)}
    assert list(plots) == ["KLD, semantic", "Top-1 agreement", "Flips", "F0 error", "Duration"]
    kld = plots["KLD, semantic"]
    assert "backbone from 0.00070 to" in kld.text
    assert "Margins: Q8_0, Q4_0 0.06." in kld.text
    assert ">Q8_0, Q4_0<" in kld.svg
    assert ">0.001<" in kld.svg, "five steps that double four times each are shown on a logarithmic scale"
    assert "mathdefault" not in "".join(plot.svg for plot in plots.values())
    assert ">Q8_0, Q4_0<" not in plots["Flips"].svg


def test_a_ladder_of_one_rung_or_of_zeros_is_drawn(results: Results) -> None:
    zero = Estimate(value=0.0, low=0.0, high=0.0, prompts=4, clips=4)
    one = [Rung(half="both", strength=0.1, values={"kld_cb0": zero, "unheard_of": estimate(2.0)})]
    lone = results.model_copy(update={"ladder": one, "gates": []})
    assert [plot.title for plot in figures_ladder.ladder(lone)] == ["KLD, semantic", "unheard_of"]
    assert _table(lone, "ladder", "From the weakest").rows[0][1].text == "—"
    touching = estimate(2.0).model_copy(update={"low": 0.0})
    rungs = [
        Rung(half="both", strength=s, values={"kld_cb0": touching if s < 1 else estimate(90.0)}) for s in (0.1, 1.0)
    ]
    assert figures_ladder.ladder(results.model_copy(update={"ladder": rungs}))


def test_a_half_that_a_metric_cannot_see_takes_no_scale_from_the_other(results: Results) -> None:
    zero = Estimate(value=0.0, low=0.0, high=0.0, prompts=4, clips=4)
    unseen = [
        rung.model_copy(update={"values": {"kld_cb0": zero if rung.half == "decoder" else rung.values["kld_cb0"]}})
        for rung in results.ladder
    ]
    (plot,) = figures_ladder.ladder(results.model_copy(update={"ladder": unseen}))
    assert ">0.001<" in plot.svg, "still logarithmic"
    assert "depth decoder from 0 to 0 (the same at every step)" in plot.text


def test_r_has_bounds_and_what_is_far_off_is_an_arrow(results: Results) -> None:
    floor = _table(results, "noise", "The difference between two seeds").rows[0]
    assert re.fullmatch(r"\[0\.\d\d, 0\.\d\d\]", floor[2].detail)
    near = figures.forest(results)
    far = [
        entry.model_copy(update={"effect_ratio": estimate(40.0)}) if entry.level == "q4_0" else entry
        for entry in results.metrics
    ]
    away = figures.forest(results.model_copy(update={"metrics": far}))
    assert near is not None
    assert away is not None
    assert "an arrow is beyond 1.1" in near.text
    assert "an arrow is beyond 4." in away.text


def test_shifts_stand_beside_that_between_seeds(results: Results) -> None:
    table = _table(results, "distributions", "Shift from the reference")
    assert _texts(table.head) == ["Level", "duration (s)", "pauses (s)"]
    assert [(row[0].text, row[1].text, row[1].detail) for row in table.rows[:2]] == [
        ("Q8_0", "0.006", "between seeds 0.102"),
        ("Q4_0", "0.171", "between seeds 0.102"),
    ]
    alone = [entry.model_copy(update={"shift_floor": None}) for entry in results.distributions]
    table = _table(results.model_copy(update={"distributions": alone}), "distributions", "Shift")
    assert table.rows[0][1].detail == "no other seed"
    none = [entry.model_copy(update={"shift": None}) for entry in results.distributions]
    shown = quality.distributions(results.model_copy(update={"distributions": none})).tables
    assert not any(table.caption.startswith("Shift") for table in shown)


def test_failures_among_the_metrics_are_the_counts_of_their_gate(results: Results) -> None:
    table = _table(results, "metrics", "Stage: free run")
    row = next(row for row in table.rows if row[0].text == "New failures")
    assert [(cell.text, cell.detail) for cell in row[1:3]] == [
        ("0 of 144 clips", "at most 2.1\N{NO-BREAK SPACE}%"),
        ("9 of 144 clips", "2 cured, at most 8.9\N{NO-BREAK SPACE}%"),
    ]


def test_instruments_have_the_width_of_the_page_and_a_difference_its_own_unit() -> None:
    scores, changed = instruments.instruments(sample()).tables
    assert scores.is_wide
    assert changed.is_wide
    assert (scores.rows[0][0].detail, changed.rows[0][0].detail) == ("%", "% points")
