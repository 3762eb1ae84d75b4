import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import soundfile
from python_calls import python_calls
from sample_results import HOSTILE, bare, hostile, sample, write_sounds

from miso_gguf.core.errors import MisoError
from miso_gguf.models import levels
from miso_gguf.quant_eval.report import figures, html, plots
from miso_gguf.quant_eval.report.html import embedded, page
from miso_gguf.quant_eval.report.outline import sections
from miso_gguf.quant_eval.report.plots import CSS_NAMES, drawn
from miso_gguf.quant_eval.report.write import write_reports
from miso_gguf.quant_eval.results import Contour, Results

LEVELS = ("fp16", "q4_0")


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "br", "img", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are nested"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def results() -> Results:
    full = sample(levels=LEVELS)
    return full.model_copy(update={"clips": full.clips[:2]})


@pytest.fixture(scope="module")
def sounds(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    write_sounds(results, folder)
    return folder


@pytest.fixture(scope="module")
def text(results: Results, sounds: Path) -> str:
    return page(results, sounds)


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    return Reader(text)


def test_equal_results_give_equal_bytes_and_leave_matplotlib_as_it_was(
    results: Results, sounds: Path, text: str
) -> None:
    with mpl.rc_context({"font.size": 31, "svg.hashsalt": None, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        assert page(results, sounds) == text
        assert dict(mpl.rcParams) == before


def test_nothing_is_fetched(text: str, read: Reader) -> None:
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset", "action"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes[name][:80])
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    ours = read.texts["script"][-1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()}'" in policy


def test_ids_are_unique_and_what_is_referred_to_is_there(text: str, read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {a.get("href", a.get("xlink:href", "")) for _, a in read.elements} - {"", "data:,"}
    referred |= {f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", text)}
    referred |= {f"#{name}" for a in read.all("svg") for name in a["aria-labelledby"].split()}
    assert referred <= {f"#{name}" for name in ids}


def test_the_verdict_comes_first_and_the_order_is_that_of_all_reports(results: Results, read: Reader) -> None:
    assert read.texts["h1"] == ["Q4_0: 3 of 8 gates fail (KLD, semantic; Top-1 agreement; F0 error), 1 undecided."]
    expected = [section.key for section in sections(results)]
    assert [a["id"] for a in read.all("section")] == [*expected, "notes"]
    assert expected[0] == "verdicts"


def test_verdicts_are_told_by_word_and_sign_not_by_colour_alone(results: Results, text: str) -> None:
    matrix = text[text.index('<table class="matrix"') : text.index("</table>")]
    cells = re.findall(r'<td [^>]*class="[^"]* is-(\w+)">(.*?)</td>', matrix, re.DOTALL)
    assert len(cells) == 7
    signs = {"pass": "✓</span> PASS", "fail": "✗</span> FAIL", "inconclusive": "?</span> INCONCLUSIVE"}
    assert all(signs[verdict] in content for verdict, content in cells)


def test_every_plot_has_a_name_and_says_what_is_to_be_seen(text: str, read: Reader) -> None:
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    parts, f0, distributions, clips = 5, 1, 2, 2
    assert len(plots) == parts + f0 + distributions + clips
    for plot in plots:
        assert re.search(r"<title [^>]*>[^<]+</title><desc [^>]*>[^<]+</desc>", plot)
        assert "<style" not in plot
        assert "<image" not in plot
        assert not set(re.findall(r"#[0-9a-f]{6}\b", plot)) & set(CSS_NAMES), "colours follow the page"


def test_the_sounds_are_inside_and_whole(results: Results, sounds: Path, read: Reader) -> None:
    players = read.all("audio")
    assert len(players) == 2 * len(results.clips)
    names = [name for clip in results.clips for name in (clip.reference_audio, clip.audio)]
    for player, name in zip(players, names, strict=True):
        kind, content = player["src"].split(",", 1)
        assert kind == "data:audio/wav;base64"
        found, rate_hz = soundfile.read(BytesIO(base64.b64decode(content)), dtype="int16")
        expected, _ = soundfile.read(sounds / name, dtype="int16")
        assert rate_hz == 24_000
        np.testing.assert_array_equal(found, expected)


def test_the_numbers_are_inside(results: Results, read: Reader) -> None:
    assert Results.model_validate_json(read.texts["script"][0]) == results


def test_hostile_words_stay_words(results: Results, tmp_path: Path) -> None:
    attacked = hostile(results.model_copy(update={"clips": results.clips[:1], "distributions": []}))
    reader = Reader(page(attacked, tmp_path))
    assert not reader.all("img")
    assert len(reader.all("script")) == 2
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert "".join(reader.texts["blockquote"]) == HOSTILE
    assert Results.model_validate_json(reader.texts["script"][0]) == attacked
    assert "49" not in "".join(reader.texts["blockquote"])


def test_sounds_that_are_missing_broken_or_elsewhere_are_said_to_be(results: Results, tmp_path: Path) -> None:
    inside = tmp_path / "sounds"
    inside.mkdir()
    soundfile.write(tmp_path / "secret.wav", np.zeros(2400), 24_000)
    soundfile.write(inside / "good.wav", np.zeros(2400), 24_000)
    soundfile.write(inside / "nothing.wav", np.zeros(0), 24_000)
    (inside / "broken.wav").write_bytes(b"RIFF no sound")
    names = ["good.wav", "nothing.wav", "broken.wav", "absent.wav", "", ".", "../secret.wav"]
    found = embedded([*names, str(tmp_path / "secret.wav")], inside)
    assert list(found.uris) == ["good.wav"]
    clips = [results.clips[0].model_copy(update={"audio": "absent.wav"})]
    text = page(results.model_copy(update={"clips": clips, "distributions": []}), inside)
    assert text.count("The sound is not there.") == 2
    assert "Switch at the same moment" not in text


def test_many_sounds_become_mp3(results: Results, sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [results.clips[0].audio, results.clips[0].reference_audio]
    wavs = embedded(names, sounds)
    monkeypatch.setattr(html, "BUDGET_BYTES", 1000)
    mp3s = embedded(names, sounds)
    assert (wavs.is_lossy, mp3s.is_lossy) == (False, True)
    for name in names:
        assert mp3s.uris[name].startswith("data:audio/mpeg;base64,")
        assert len(mp3s.uris[name]) < len(wavs.uris[name]) / 3


def test_libsndfile_calls_no_python(results: Results, sounds: Path) -> None:
    """Ctrl-C in a function that it calls would not end the command."""
    with python_calls() as calls:
        embedded([results.clips[0].audio], sounds)
    called = [code.co_name for code in calls]
    assert "_encoded" in called
    assert [name for name in called if name.startswith("vio_")] == []


def test_a_report_of_nothing_still_opens(tmp_path: Path) -> None:
    reader = Reader(page(bare(sample(levels=("fp16",))), tmp_path))
    assert reader.texts["h1"] == ["Nothing was judged: there are no gates for what was run."]
    assert not reader.all("svg")
    assert len([a for a in reader.all("p") if a.get("class") == "missing"]) == 12


def test_plots_of_degenerate_results() -> None:
    results = sample(codebooks=1, levels=("fp16", "q8_0"))
    exact = results.codebooks[0].model_copy(update={"kld_mean": 0.0})
    zero = results.model_copy(update={"codebooks": [exact]})
    assert figures.heat_map(results) is not None
    heat = figures.heat_map(zero)
    assert heat is not None
    assert "Q8_0 0 nats at codebook 0" in heat.text
    silent = results.clips[0].model_copy(update={"contour": Contour(step_s=0.01, f0_hz=[0.0, 0.0])})
    assert "Q8_0: unvoiced throughout" in figures.contours(silent, "x", 1).text
    empty = Contour(step_s=0.01, f0_hz=[])
    nothing = results.clips[0].model_copy(update={"contour": empty, "reference_contour": empty})
    assert "no voiced steps" in figures.contours(nothing, "x", 1).svg
    one = [entry.model_copy(update={"values": [1.5]}) for entry in results.distributions]
    assert figures.distribution(results.model_copy(update={"distributions": one}), "duration", 0) is not None
    assert figures.distribution(results, "unheard of", 0) is None
    assert figures.pareto(sample(levels=("fp16",))) is None


def test_dollars_are_no_mathematics_and_markup_is_text() -> None:
    plot = drawn("x", "<b>", "a & b", 100, lambda axes: axes.set_xlabel("$x$ <i>"))
    assert "$x$ &lt;i&gt;" in plot.svg
    assert '<title id="x-title">&lt;b&gt;</title><desc id="x-text">a &amp; b</desc>' in plot.svg


def test_all_files_are_written_whole_and_nothing_else(
    results: Results, sounds: Path, text: str, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "report"
    names = ["results.json", "report.md", "comment.md", "junit.xml", "report.html"]
    assert [path.name for path in write_reports(results, sounds, out)] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert (out / "report.html").read_text("utf-8") == text
    assert Results.model_validate_json((out / "results.json").read_text("utf-8")) == results
    assert json.loads((out / "results.json").read_text("utf-8"))["schema_version"] == 4


def test_a_folder_that_is_a_file_is_one_clear_line(results: Results, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(MisoError, match=r"results\.json: cannot be written \(.+\); choose another folder"):
        write_reports(results, tmp_path, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_without_the_extra_the_rest_is_written_and_the_remedy_named(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MisoError, match=r"needs jinja2: pip install 'miso-gguf\[eval\]'"):
        plots.check_installed()
    with pytest.raises(MisoError, match="needs jinja2"):
        write_reports(results, tmp_path, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"results.json", "report.md", "comment.md", "junit.xml"}


def test_no_two_levels_have_the_same_colour_and_marker() -> None:
    css = (Path(plots.__file__).parent / "templates" / "report.css").read_text("utf-8")
    looks = [(plots.colour_of(index), plots.marker_of(index)) for index in range(len(levels.LEVELS))]
    assert len(set(looks)) == len(looks)
    for given in (plots.LEVEL_COLOURS, plots.MARKERS):
        assert len(set(given)) == len(given)
        assert all(one[0] != other[0] and one[1] != other[1] for one, other in pairwise(looks)), (
            "nor have neighbours one"
        )
    for index, colour in enumerate(plots.LEVEL_COLOURS):
        light, dark = re.findall(rf"--level-{index}: (#[0-9a-f]{{6}});", css)
        assert light == colour != dark
