"""The page in a browser: no error, no request, players that play, nothing wider than the screen. Skips without one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless import Tab, tab
from sample_results import full, write_sounds

from miso_gguf.quant_eval.report.html import page

pytestmark = pytest.mark.long

LENGTHS = """
(async () => {
  const clips = [...document.querySelectorAll(".clip")]; // which of A and B is first is random
  const sounds = clips.flatMap((clip) => ["A", "B"].map((role) => clip.querySelector(`[data-role=${role}] audio`)));
  const ready = (sound) => new Promise((done, fail) => {
    sound.addEventListener("loadedmetadata", () => done(sound.duration), { once: true });
    sound.addEventListener("error", () => fail(new Error(sound.error.message)), { once: true });
    sound.preload = "metadata";
    sound.load();
  });
  return Promise.all(sounds.map(ready));
})()
"""
SWITCHED = """
(async () => {
  const button = document.querySelector(".switch");
  const [first, second] = button.closest(".players").querySelectorAll("audio");
  first.currentTime = 0.7;
  await first.play();
  button.click();
  await new Promise((done) => second.addEventListener("playing", done, { once: true }));
  const seen = [first.paused, second.paused, second.currentTime >= 0.7, button.hidden];
  second.pause();
  return seen;
})()
"""
BLIND = """
[...document.querySelectorAll(".clip")].map((clip) => [
  clip.classList.contains("is-blind"),
  [...clip.querySelectorAll(".name")].map((name) => name.textContent),
  [...clip.querySelectorAll("audio")].map((sound) => sound.ariaLabel),
  [...clip.querySelectorAll(".player")].map((player) => player.dataset.role),
  getComputedStyle(clip.querySelector("svg")).visibility,
  getComputedStyle(clip.querySelector(".why")).display,
])
"""
SMALLEST_LETTERS = """
Math.min(...[...document.querySelectorAll("svg text")].map(
  (text) => {
    const { a, b } = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
  }))
"""
MATRICES_TOO_WIDE = """
[...document.querySelectorAll(".scroll.is-matrix")].filter((box) => box.scrollWidth > box.clientWidth).length
"""
SHOWN_LEVELS = """
[...document.querySelector(".matrix tbody tr").querySelectorAll("td")].map((cell) => {
  const parts = [cell, ...cell.querySelectorAll("*")].map((part) => part.getBoundingClientRect());
  const inside = parts.every((box) => box.left >= 0 && box.right <= innerWidth && box.height > 0);
  return [getComputedStyle(cell, "::before").content, Math.round(parts[0].top), inside];
})
"""
_FULL = full(codebooks=32)
RESULTS = _FULL.model_copy(update={"clips": [_FULL.clips[0], _FULL.clips[5]]})
OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(browser: Tab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_sounds(RESULTS, folder)
    path = folder / "report.html"
    path.write_text(page(RESULTS, folder), "utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen_and_reports_nothing(browser: Tab, report: Path, width: int, scheme: str) -> None:
    browser.messages.clear()
    browser.requests.clear()
    browser.open(report, width, scheme=scheme)
    assert browser.value(OVERFLOWING) == 0
    assert browser.value(SMALLEST_LETTERS) >= 9.5
    assert browser.value(MATRICES_TOO_WIDE) == 0
    assert browser.messages == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [report.as_uri()]
    dark = browser.value("getComputedStyle(document.documentElement).backgroundColor") == "rgb(22, 24, 27)"
    assert dark == (scheme == "dark")


def test_on_a_phone_each_level_has_a_line_of_its_gate(browser: Tab, report: Path) -> None:
    browser.open(report, 390)
    lines = browser.value(SHOWN_LEVELS)
    assert [name for name, _, _ in lines] == ['"F16"', '"Q8_0"', '"Q4_K_M"', '"Q4_0"']
    assert all(is_inside for _, _, is_inside in lines)
    tops = [top for _, top, _ in lines]
    assert tops == sorted(set(tops))


def test_on_a_desk_the_levels_are_beside_each_other(browser: Tab, report: Path) -> None:
    browser.open(report, 1280)
    lines = browser.value(SHOWN_LEVELS)
    assert [name for name, _, _ in lines] == ["none"] * 4
    assert all(is_inside for _, _, is_inside in lines)
    assert len({top for _, top, _ in lines}) == 1


def test_the_players_play_and_the_switch_keeps_the_moment(browser: Tab, report: Path) -> None:
    browser.open(report, 1280)
    browser.messages.clear()
    contours = [contour for clip in RESULTS.clips for contour in (clip.reference_contour, clip.contour)]
    lengths = [contour.step_s * len(contour.f0_hz) for contour in contours]
    assert len(set(lengths)) > 1
    assert browser.value(LENGTHS) == pytest.approx(lengths, abs=1e-3)
    assert browser.value(SWITCHED) == [True, False, True, False]
    assert browser.messages == []


def test_the_numbers_can_be_read_from_the_page(browser: Tab, report: Path) -> None:
    browser.open(report, 1280)
    numbers = 'JSON.parse(document.getElementById("results").textContent)'
    assert browser.value(f"{numbers}.levels.length") == len(_FULL.levels)
    assert browser.value('document.getElementById("save").hidden') is False


@pytest.mark.parametrize("is_right", [True, False])
def test_two_renditions_are_heard_blind_until_one_is_named(browser: Tab, report: Path, is_right: bool) -> None:
    browser.open(report, 390)
    browser.messages.clear()
    (is_blind, names, labels, roles, plot, why), other = browser.value(BLIND)
    assert (is_blind, names, labels, plot, why) == (True, ["A", "B"], ["A", "B"], "hidden", "none")
    reference = roles.index("A")
    guess = reference if is_right else 1 - reference
    browser.value(f"document.querySelector('[data-guess=\"{guess}\"]').click()")
    (is_blind, names, labels, roles, plot, why), still = browser.value(BLIND)
    assert not is_blind
    assert names == labels
    assert names[reference] == f"{'AB'[reference]}: F16"
    assert names[1 - reference] == f"{'AB'[1 - reference]}: {RESULTS.clips[0].level.upper()}"
    assert (plot, why) == ("visible", "block")
    assert still == other
    score = browser.value('document.getElementById("score").textContent')
    assert score == f"You were right in {int(is_right)}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}1."
    browser.value('document.getElementById("show-all").click()')
    assert [clip[0] for clip in browser.value(BLIND)] == [False, False]
    assert browser.value('document.getElementById("score").textContent') == score
    assert browser.value(OVERFLOWING) == 0
    assert browser.messages == []


def test_two_equal_renditions_are_no_guess(browser: Tab, report: Path) -> None:
    clip = RESULTS.clips[0]
    equal = RESULTS.model_copy(update={"clips": [clip.model_copy(update={"audio": clip.reference_audio})]})
    path = report.with_name("equal.html")
    path.write_text(page(equal, report.parent), "utf-8")
    browser.open(path, 390)
    browser.value("document.querySelector('[data-guess=\"0\"]').click()")
    assert browser.value('document.querySelector(".told").textContent') == "Both are equal: nothing can be told."
    assert browser.value('document.getElementById("score").textContent') == ""


def test_the_order_is_drawn_when_the_page_opens(browser: Tab, report: Path) -> None:
    seen = set()
    for _ in range(20):  # all alike once in a million
        browser.open(report, 1280)
        seen |= {tuple(clip[3]) for clip in browser.value(BLIND)}
    assert seen == {("A", "B"), ("B", "A")}


def test_without_a_script_names_are_there_from_the_beginning(report: Path) -> None:
    text = report.read_text("utf-8")
    assert 'class="clip"' in text
    assert 'class="guess" role="group" aria-label="Which is the reference?" hidden' in text
    assert '<span class="name">F16</span>' in text
