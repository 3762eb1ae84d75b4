import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from sample_results import bare, check_golden, full, hostile, sample

from miso_gguf.quant_eval.report import markdown
from miso_gguf.quant_eval.results import Results

SMALL = ("fp16", "q8_0", "q4_0")
OUTSIDE = st.text(alphabet="\\`*_{}[]()#+-=.!|~<>@&$:;/ \n\ta1é\x07", max_size=40)
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def test_the_report_is_as_it_was_when_somebody_looked_at_it() -> None:
    check_golden("report.md", markdown.report(full(codebooks=2, levels=SMALL)))


def test_the_comment_is_as_it_was_when_somebody_looked_at_it() -> None:
    check_golden("comment.md", markdown.comment(full(codebooks=2, levels=SMALL)))


def test_a_report_of_nothing_says_so_everywhere() -> None:
    check_golden("nothing.md", markdown.report(bare(sample(levels=("fp16",)))))
    assert "Nothing was judged" in markdown.comment(bare(sample()))


def _meant(text: str) -> str:
    """What a reader should see of `text`."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@given(OUTSIDE)
def test_escaped_text_means_itself(text: str) -> None:
    shown = RENDERER.render(markdown.escaped(text)).replace("\u200b", "").strip()
    assert shown == (f"<p>{html.escape(_meant(text))}</p>".replace("&#x27;", "'") if _meant(text) else "")


@given(OUTSIDE)
def test_escaped_and_quoted_text_stay_in_their_cells(text: str) -> None:
    row = f"| {markdown.escaped(text)} | {markdown.quoted(text)} | end |"
    shown = RENDERER.render(f"| a | b | c |\n| --- | --- | --- |\n{row}\n").replace("\u200b", "")
    cells = re.findall(r"<td>(.*?)</td>", shown)
    as_text = html.escape(_meant(text))
    assert cells == [as_text, f"<code>{as_text}</code>" if as_text else "", "end"]


@pytest.mark.parametrize("make", [markdown.report, markdown.comment])
def test_hostile_words_make_no_markup(make: object) -> None:
    assert callable(make)
    harmless, harmful = (RENDERER.render(make(results)) for results in (sample(), hostile(sample())))
    assert "alert" in harmful
    tags = re.compile(r"</?([a-z0-9]+)")
    ours = {
        "p",
        "strong",
        "em",
        "h1",
        "h2",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "sub",
        "br",
        "code",
        "details",
    }
    assert set(tags.findall(harmful)) <= ours | {"summary", "ul", "li"}
    for tag in ("h1", "h2", "table", "tr", "td", "th"):
        assert harmful.count(f"<{tag}") == harmless.count(f"<{tag}")
    assert not re.search(r"@\w", re.sub(r"<code>.*?</code>", "", harmful)), "somebody would be mentioned"


def _large() -> Results:
    """More of everything than fits."""
    results = hostile(sample(codebooks=32))
    notes = ["a note " * 9000] * 30
    gates = [gate.model_copy(update={"level": f"q{n}"}) for n in range(60) for gate in results.gates]
    levels = [results.levels[1].model_copy(update={"level": f"q{n}"}) for n in range(60)]
    return results.model_copy(update={"notes": notes, "gates": gates, "levels": levels})


def test_reports_stay_below_the_limits_of_those_who_show_them() -> None:
    full = markdown.report(sample(codebooks=32))
    assert len(full.encode()) < 100_000
    assert "did not fit" not in full
    assert len(markdown.comment(sample(codebooks=32)).encode()) < 16_000
    large = _large()
    for text, limit in ((markdown.report(large), 1_000_000), (markdown.comment(large), 64_000)):
        assert len(text.encode()) < limit
        assert text.endswith("_Some of it did not fit here: see the HTML report._\n")
        assert "## Controls" in text, "what fits is kept"


def test_fitted_is_exact() -> None:
    parts = ["é" * 100, "b" * 10]
    whole = "\n\n".join(parts) + "\n"
    cut_bytes = len("_Some of it did not fit here: see the HTML report._")
    limit = cut_bytes + 1 + 202 + 12
    assert markdown.fitted(parts, limit) == whole
    cut = markdown.fitted(parts, limit - 1)
    assert cut.startswith("é" * 100 + "\n\n_Some")
    assert len(cut.encode()) < limit


def test_two_bundles_compared_are_called_that() -> None:
    text = markdown.report(sample(levels=("fp16", "q8_0")).model_copy(update={"kind": "compare", "reference": "old"}))
    assert text.startswith("# Miso TTS 8B: NEW against OLD\n")
    assert "F16 and Q8_0 against OLD" in text
