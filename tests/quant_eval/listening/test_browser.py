"""The page in a browser, by keyboard alone: two listeners, one who hears 80 % and one who guesses, are told apart."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless import Tab, tab
from sample_study import write_report

from miso_gguf.quant_eval.listening.answers import load_all
from miso_gguf.quant_eval.listening.draws import plain_name, sides
from miso_gguf.quant_eval.listening.judging import Heard, judge
from miso_gguf.quant_eval.listening.making import make_study, write_study
from miso_gguf.quant_eval.listening.study import Key, Wanted, load_key

pytestmark = pytest.mark.long

OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SHOWN = '[...document.querySelectorAll("main section")].filter((each) => !each.hidden).map((each) => each.id).join()'
PROGRESS = 'document.getElementById("progress").textContent'
CHOSEN = '[...document.querySelectorAll("[data-answer][aria-pressed=true]")].map((each) => each.dataset.answer)'
TAKES = '[...document.querySelectorAll("#takes input")].map((each) => each.dataset.take)'
WORST_CONTRAST = """(() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    context.globalAlpha = 1;
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return Math.min(...[...document.querySelectorAll("section:not([hidden]) kbd, header kbd")]
    .filter((each) => !each.closest(":disabled")).map((each) => {
    const behind = [];
    let opacity = 1;
    for (let node = each; node; node = node.parentElement) {
      behind.unshift(getComputedStyle(node).backgroundColor);
      opacity *= getComputedStyle(node).opacity;
    }
    const back = over(behind);
    const ink = `color-mix(in srgb, ${getComputedStyle(each).color} ${100 * opacity}%, transparent)`;
    const front = over([...behind, ink]);
    return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  }));
})()"""
"""Of the letters of all keys that are shown, by WCAG 2."""
STEPS = {"fp16": ["End"], "q8_0": ["End"], "q4_0": ["Home", *["PageUp"] * 6], "anchor": ["Home", *["PageUp"] * 2]}
"""Keys that give 100, 100, 60 and 20."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, prompts=6)
    write_study(make_study(folder, Wanted(ratings=5)), folder)
    return folder


def _hear(browser: Tab, *names: str) -> None:
    for name in names:
        browser.press(name.lower())
        playing = f"document.querySelector('section:not([hidden]) [data-play=\"{name}\"][aria-pressed=true]')"
        browser.wait_for(f"{playing} !== null")


class Listener:
    """One who goes through the page, and is right with a known chance."""

    def __init__(self, browser: Tab, key: Key, name: str, share: float) -> None:
        self.browser, self.key, self.name, self.share = browser, key, name, share
        self.luck = random.Random(name)
        self.answers: dict[str, str] = {}

    def begin(self) -> None:
        """From the first screen."""
        for letter in self.name:
            self.browser.press(letter)
        self.browser.press("Enter")

    def answer(self) -> None:
        """One trial, without going on."""
        trial = self.browser.value('document.getElementById("trial").dataset.step')
        _hear(self.browser, "X", self.luck.choice("AB"))
        x = sides(self.key.study, self.name, trial).x
        said = x if self.luck.random() < self.share else "AB"[x == "A"]
        self.answers[trial] = said
        self.browser.press(self.luck.choice(["1", "ArrowLeft"] if said == "A" else ["2", "ArrowRight"]))

    def trials(self, count: int) -> None:
        """So many, and on after each."""
        for _ in range(count):
            before = self.browser.value(PROGRESS)
            self.answer()
            self.browser.press("Enter")
            assert self.browser.value(PROGRESS) != before

    def rate(self) -> None:
        """One item, and on."""
        item = self.browser.value('document.getElementById("rating").dataset.step')
        takes = next(each.takes for each in self.key.items if each.id == item)
        _hear(self.browser, "R")
        for index, number in enumerate(self.browser.value(TAKES), 1):
            _hear(self.browser, str(index))
            for key in STEPS[takes[number]]:
                self.browser.press(key)
        self.browser.press("Enter")

    @property
    def right(self) -> int:
        """How many, as the key says."""
        return sum(sides(self.key.study, self.name, trial).x == said for trial, said in self.answers.items())


def _saved(browser: Tab, folder: Path, name: str) -> Path:
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    path = folder / f"answers-{name}.json"
    browser.press("s")
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    return path


def _fits(browser: Tab) -> None:
    assert browser.value(OVERFLOWING) == 0


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_listeners_by_keyboard_and_what_they_come_to(
    browser: Tab, study: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    key = load_key(study)
    page = study / "abx.html"
    browser.open(page, width, scheme=scheme)
    browser.value("localStorage.clear()")
    browser.messages.clear()
    browser.requests.clear()
    browser.open(page, width, scheme=scheme)
    assert browser.value(SHOWN) == "welcome"
    _fits(browser)

    ann = Listener(browser, key, "Ann", 0.8)
    ann.begin()
    assert (browser.value(SHOWN), browser.value(PROGRESS)) == ("trial", "1 of 61")
    browser.press("1")
    assert browser.value(CHOSEN) == [], "X was not heard yet"
    _fits(browser)
    ann.trials(20)

    ann.answer()
    chosen = browser.value(CHOSEN)
    browser.open(page, width, scheme=scheme)
    assert browser.value(SHOWN) == "break"
    _fits(browser)
    browser.press("Enter")
    assert (browser.value(PROGRESS), browser.value(CHOSEN)) == ("21 of 61", chosen)
    browser.press("Enter")
    browser.press("Backspace")
    assert (browser.value(PROGRESS), browser.value(CHOSEN)) == ("21 of 61", chosen)
    browser.press("p")
    assert browser.value(SHOWN) == "break"
    half = json.loads(_saved(browser, tmp_path, "Ann").read_text("utf-8"))
    assert (half["finished"], len(half["answers"]), half["ratings"]) == (False, 20, [])
    (tmp_path / "answers-Ann.json").unlink()
    browser.press("Enter")
    browser.press("Enter")
    ann.trials(35)

    assert browser.value(SHOWN) == "rating"
    _fits(browser)
    browser.press("Enter")
    assert browser.value(PROGRESS) == "57 of 61", "nothing was rated yet"
    for _ in range(5):
        ann.rate()
    assert browser.value(SHOWN) == "end"
    assert browser.value('document.getElementById("score").textContent').startswith(
        f"You were right in {ann.right} of 56 comparisons"
    )
    _fits(browser)
    _saved(browser, tmp_path, "Ann")

    browser.press("Tab")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.value(SHOWN) == "welcome"
    bo = Listener(browser, key, "Bo", 0.5)
    bo.begin()
    assert browser.value(PROGRESS) == "1 of 61"
    bo.trials(56)
    _saved(browser, tmp_path, "Bo")

    assert browser.messages == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "blob", "data"}
    assert {url for url in browser.requests if url.startswith("file")} == {page.as_uri()}
    _check(key, [tmp_path / "answers-Ann.json", tmp_path / "answers-Bo.json"], ann, bo)


def _check(key: Key, files: list[Path], ann: Listener, bo: Listener) -> None:
    found = judge(key, load_all(files, key))
    heard: dict[Any, list[Heard]] = {}
    for each in found.heard:
        heard.setdefault(each.listener, []).append(each)
    assert sum(each.right for each in heard["Ann"]) == ann.right
    assert sum(each.right for each in heard["Bo"]) == bo.right
    assert [each.is_heard for each in heard["Ann"]] == [True, True]
    assert [each.is_heard for each in heard["Bo"]] == [False, False]
    assert {each.take: each.mean.value for each in found.rated} == {"fp16": 100, "q8_0": 100, "q4_0": 60, "anchor": 20}
    assert found.notes[-1] == "Bo is not finished: 56 of 61 are there, and count"


def test_studies_do_not_mix(browser: Tab, study: Path, tmp_path: Path) -> None:
    browser.open(study / "abx.html", 390)
    browser.value("localStorage.clear()")
    browser.open(study / "abx.html", 390)
    Listener(browser, load_key(study), "Cy", 1.0).begin()
    assert browser.value(SHOWN) == "trial"
    write_study(make_study(study, Wanted(ratings=0, seed=1)), tmp_path)
    browser.open(tmp_path / "abx.html", 390)
    assert browser.value(SHOWN) == "welcome"
    browser.open(study / "abx.html", 390)
    assert browser.value(SHOWN) == "break"


def test_a_switch_keeps_the_moment_and_the_loop_goes_on(browser: Tab, study: Path) -> None:
    browser.open(study / "abx.html", 1280)
    browser.value("localStorage.clear()")
    browser.open(study / "abx.html", 1280)
    Listener(browser, load_key(study), "Di", 1.0).begin()
    at = 'Number(document.querySelector(".at").style.transform.match(/[\\d.]+/)[0])'
    _hear(browser, "A")
    browser.wait_for(f"{at} > 0.4 && {at} < 0.6")
    _hear(browser, "B")
    browser.value("new Promise(requestAnimationFrame)")
    assert browser.value(at) > 0.35
    browser.wait_for(f"{at} < 0.2")  # from the beginning again
    browser.press(" ")
    assert browser.value('document.querySelector("[aria-pressed=true][data-play]")') is None


def test_every_control_has_a_name(browser: Tab, study: Path) -> None:
    browser.open(study / "abx.html", 1280)
    browser.value("localStorage.clear()")
    browser.open(study / "abx.html", 1280)
    Listener(browser, load_key(study), "Ed", 1.0).begin()
    named = browser.send("Accessibility.getFullAXTree")["nodes"]
    buttons = [node["name"]["value"] for node in named if node.get("role", {}).get("value") == "button"]
    assert {"Play A", "Play B", "Play X"} <= set(buttons)
    assert all(buttons)


def _welcome(browser: Tab, study: Path) -> None:
    browser.open(study / "abx.html", 1280)
    browser.value("localStorage.clear()")
    browser.open(study / "abx.html", 1280)
    browser.messages.clear()


def test_space_stops_the_sound_after_an_answer_too(browser: Tab, study: Path) -> None:
    _welcome(browser, study)
    listener = Listener(browser, load_key(study), "Fay", 1.0)
    listener.begin()
    listener.answer()
    browser.press(" ")
    assert browser.value(PROGRESS) == "1 of 61"
    assert browser.value('document.querySelector("[aria-pressed=true][data-play]")') is None
    browser.press("Enter")
    assert browser.value(PROGRESS) == "2 of 61"


def test_undo_straight_after_a_reload(browser: Tab, study: Path) -> None:
    _welcome(browser, study)
    listener = Listener(browser, load_key(study), "Gus", 1.0)
    listener.begin()
    listener.trials(1)
    browser.open(study / "abx.html", 1280)
    assert (browser.value(SHOWN), browser.value(PROGRESS)) == ("break", "2 of 61")
    browser.value('document.getElementById("undo").click()')
    assert (browser.value(PROGRESS), browser.value(CHOSEN)) == ("1 of 61", list(listener.answers.values()))
    assert browser.messages == []


def test_undo_loses_no_ratings_of_the_sentence_that_is_left(browser: Tab, study: Path, tmp_path: Path) -> None:
    write_study(make_study(study, Wanted(trials=0, ratings=2)), tmp_path)
    _welcome(browser, tmp_path)
    listener = Listener(browser, load_key(tmp_path), "Hal", 1.0)
    listener.begin()
    listener.rate()
    _hear(browser, "1")
    browser.press("End")
    rated = browser.value("document.querySelector('#takes output').textContent")
    browser.press("Backspace")
    assert browser.value(PROGRESS) == "1 of 2"
    browser.press("Enter")
    assert (rated, browser.value("document.querySelector('#takes output').textContent")) == ("100", "100")


def test_a_slider_may_be_left_where_it_stands(browser: Tab, study: Path, tmp_path: Path) -> None:
    write_study(make_study(study, Wanted(trials=0, ratings=1)), tmp_path)
    _welcome(browser, tmp_path)
    Listener(browser, load_key(tmp_path), "Kai", 1.0).begin()
    outputs = '[...document.querySelectorAll("#takes output")].map((each) => each.textContent)'
    _hear(browser, "1")
    browser.press("Enter")
    assert browser.value(outputs) == ["50", "\u2013", "\u2013", "\u2013"]
    browser.press("Enter")
    assert browser.value(SHOWN) == "rating", "three are open"
    browser.value("document.querySelector(\"[data-index='2']\").click()")
    assert browser.value(outputs) == ["50", "50", "\u2013", "\u2013"]
    for index in "34":
        _hear(browser, index)
        browser.press("Enter")
    browser.press("Enter")
    assert browser.value(SHOWN) == "end"
    assert browser.messages == []


def test_nothing_shows_the_moment_while_takes_are_rated(browser: Tab, study: Path, tmp_path: Path) -> None:
    """A take of another length would tell itself from the hidden reference."""
    write_study(make_study(study, Wanted(trials=0, ratings=1)), tmp_path)
    _welcome(browser, tmp_path)
    Listener(browser, load_key(tmp_path), "Lea", 1.0).begin()
    assert browser.value(SHOWN) == "rating"
    assert browser.value('document.querySelectorAll("#rating .at").length') == 0


@pytest.mark.parametrize(
    ("name", "saved"), [("!?", "listener"), ("\ufeff\x1cA\x85n\u202en\xa0", "Ann"), (" Zoe\u0308 & Bo", "Zo\u00eb-Bo")]
)
def test_a_name_counts_in_the_page_as_in_the_answers(
    browser: Tab, study: Path, tmp_path: Path, name: str, saved: str
) -> None:
    _welcome(browser, study)
    browser.value(f'document.getElementById("name").value = {json.dumps(name)}')
    browser.press("Enter")
    assert browser.value(SHOWN) == "trial"
    found = json.loads(_saved(browser, tmp_path, saved).read_text("utf-8"))
    assert found["listener"] == plain_name(name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_keys_can_be_read(browser: Tab, study: Path, scheme: str) -> None:
    _welcome(browser, study)
    browser.open(study / "abx.html", 1280, scheme=scheme)
    Listener(browser, load_key(study), "Mo", 1.0).begin()
    _hear(browser, "X", "A")
    browser.press("1")
    assert browser.value(CHOSEN) == ["A"]
    assert browser.value(WORST_CONTRAST) >= 4.5


@pytest.mark.parametrize("text", ["5", "{}", "{damaged", '{"current": "Ivy", "listeners": {"~Ivy": {}}}'])
def test_a_store_with_something_else_in_it_is_begun_anew(browser: Tab, study: Path, text: str) -> None:
    _welcome(browser, study)
    browser.value(f"localStorage.setItem('miso-abx-{load_key(study).study}', {json.dumps(text)})")
    browser.open(study / "abx.html", 1280)
    assert browser.value(SHOWN) == "welcome"
    assert browser.value('document.getElementById("not-kept").hidden')
    assert browser.messages == []


def test_a_page_whose_store_another_tab_has_written_goes_on_from_there(browser: Tab, study: Path) -> None:
    _welcome(browser, study)
    listener = Listener(browser, load_key(study), "Jo", 1.0)
    listener.begin()
    listener.trials(1)
    place = json.dumps(f"miso-abx-{load_key(study).study}")
    after_one = browser.value(f"localStorage.getItem({place})")
    listener.trials(1)
    # A frame of the page is another window on the same store.
    browser.value("document.body.append(document.createElement('iframe'))")
    browser.value(f"frames[0].localStorage.setItem({place}, {json.dumps(after_one)})")
    browser.wait_for(f"{SHOWN} === 'break'")
    assert browser.value(PROGRESS) == "2 of 61"
