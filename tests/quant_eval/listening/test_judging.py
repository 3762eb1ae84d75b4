"""Answers and what they come to: exact numbers, simulated listeners, and files that are wrong."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sample_study import RATINGS, answers_of, write_report

from miso_gguf.quant_eval.listening.answers import Answers, load_all, load_answers
from miso_gguf.quant_eval.listening.draws import draw, plain_name, sides
from miso_gguf.quant_eval.listening.judging import Judgement, judge
from miso_gguf.quant_eval.listening.making import make_study
from miso_gguf.quant_eval.listening.study import Key, Wanted
from miso_gguf.quant_eval.listening.wording import heard_rows

stats = pytest.importorskip("scipy.stats")
STUDIES = 200


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, prompts=6)
    return make_study(folder, Wanted(ratings=6)).key


@pytest.fixture(scope="module")
def one_level(tmp_path_factory: pytest.TempPathFactory) -> Key:
    folder = tmp_path_factory.mktemp("one")
    write_report(folder, prompts=4, levels=("q4_0",))
    return make_study(folder, Wanted(ratings=0)).key


def _judged(key: Key, *given: dict[str, Any]) -> Judgement:
    return judge(key, [Answers.model_validate(each) for each in given])


def _found(key: Key, share: float, first: int) -> int:
    """In how many studies, each of another listener, the level is heard."""
    studies = (answers_of(key, f"listener {n}", share, random.Random(first + n)) for n in range(STUDIES))
    return sum(_judged(key, given).heard[0].is_heard for given in studies)


def test_who_is_right_in_80_percent_is_found_in_90_percent_of_the_studies(one_level: Key) -> None:
    assert len(one_level.trials) == 23
    assert _found(one_level, 0.8, 0) >= 0.9 * STUDIES


def test_who_guesses_is_not_found_more_often_than_5_percent_says(one_level: Key) -> None:
    # 5 % of 200, and what chance adds to it in 999 of 1000 such tests.
    assert _found(one_level, 0.5, 10_000) <= stats.binom.ppf(0.999, STUDIES, 0.05)


def test_habits_do_not_add_up_over_listeners(one_level: Key) -> None:
    """Fifty who always say A: as many of them right as wrong, trial by trial."""
    for trial in one_level.trials:
        right = sum(sides(one_level.study, f"listener {n}", trial.id).x == "A" for n in range(400))
        assert stats.binomtest(right, 400, 0.5).pvalue > 1e-4


def test_numbers_of_a_known_listener(key: Key) -> None:
    given = answers_of(key, "Ann", 1.0, random.Random(0))
    for each in [e for e in given["answers"] if _level(key, e["trial"]) == "q8_0"][:10]:
        each["answer"] = "A" if each["answer"] == "B" else "B"
    heard = {each.level: each for each in _judged(key, given).heard}
    assert (heard["q8_0"].right, heard["q8_0"].trials, heard["q4_0"].right) == (18, 28, 28)
    bounds = stats.binomtest(18, 28).proportion_ci(0.9, method="exact")
    assert (heard["q8_0"].low, heard["q8_0"].high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
    p = [stats.binomtest(n, 28, 0.5, alternative="greater").pvalue for n in (18, 28)]
    assert (heard["q8_0"].p, heard["q4_0"].p) == pytest.approx(p, rel=1e-9)
    assert (heard["q8_0"].p_adjusted, heard["q4_0"].p_adjusted) == pytest.approx((p[0], 2 * p[1]), rel=1e-9)
    assert (heard["q8_0"].is_heard, heard["q4_0"].is_heard) == (False, True)
    assert heard["q8_0"].needed == 20


def test_how_many_clips_the_trials_are_of_is_said(key: Key) -> None:
    found = _judged(key, *(answers_of(key, name, 0.7, random.Random(name)) for name in ("Ann", "Bo")))
    assert [(each.trials, each.clips) for each in found.heard] == [(56, 6)] * 2 + [(28, 6)] * 4
    assert found.notes == [
        f"{level}: its 28 trials are of 6 clips: what is heard is of these" for level in ("Q8_0", "Q4_0")
    ]
    asked = key.trials[:3]
    first = _judged(key, answers_of(key, "Ann", 0.7, random.Random(0), trials=3)).heard
    assert sum(each.clips for each in first) == len({(trial.level, trial.prompt) for trial in asked})


def test_no_name_can_be_taken_for_all_together(key: Key) -> None:
    names = ("all together", "Bo")
    rows = heard_rows(_judged(key, *(answers_of(key, name, 0.7, random.Random(name)) for name in names)))
    assert [row[1] for row in rows] == ["all together"] * 2 + ["\u201call together\u201d"] * 2 + ["\u201cBo\u201d"] * 2
    assert [row[3] for row in rows] == ["6"] * 6
    assert all(row[4].endswith(" %") for row in rows)


def test_all_together_comes_first_then_each_listener(key: Key) -> None:
    found = _judged(key, *(answers_of(key, name, 0.7, random.Random(name)) for name in ("Ann", "Bo", "Cy")))
    assert [each.listener for each in found.heard] == [None] * 2 + ["Ann"] * 2 + ["Bo"] * 2 + ["Cy"] * 2
    for level in key.levels:
        pooled, *own = [each for each in found.heard if each.level == level]
        assert (pooled.right, pooled.trials) == (sum(e.right for e in own), sum(e.trials for e in own))


def test_ratings_are_means_with_bounds_and_differences(key: Key) -> None:
    found = _judged(key, *(answers_of(key, name, 0.7, random.Random(name)) for name in ("Ann", "Bo")))
    rated = {each.take: each for each in found.rated}
    assert list(rated) == ["fp16", "q8_0", "q4_0", "anchor"]
    for take, value in RATINGS.items():
        expected = [value - draw(item.id, take) % 3 for item in key.items]
        assert rated[take].mean.value == pytest.approx(sum(expected) / len(expected))
        assert rated[take].mean.low <= rated[take].mean.value <= rated[take].mean.high
        assert (rated[take].mean.prompts, rated[take].mean.clips) == (6, 12)
    difference = rated["q4_0"].difference
    assert difference is not None
    assert difference.value == pytest.approx(rated["q4_0"].mean.value - rated["fp16"].mean.value)
    assert difference.high < 0
    assert rated["fp16"].difference is None


def test_who_does_not_know_the_hidden_reference_is_left_out_of_the_ratings(key: Key) -> None:
    good = answers_of(key, "Ann", 0.7, random.Random(0))
    deaf = answers_of(key, "Bo", 0.7, random.Random(1), hidden=70.0)
    found = _judged(key, good, deaf)
    assert [(each.listener, each.below, each.is_left_out) for each in found.screened] == [
        ("Ann", 0, False),
        ("Bo", 6, True),
    ]
    assert found.rated == _judged(key, good).rated
    assert {each.listener for each in found.heard} == {None, "Ann", "Bo"}
    assert _judged(key, deaf).rated == []


def test_one_item_in_six_is_more_than_15_percent_and_one_in_seven_is_not(key: Key) -> None:
    given = answers_of(key, "Ann", 0.7, random.Random(0))
    hidden = {item.id: next(n for n, take in item.takes.items() if take == "fp16") for item in key.items}
    first = given["ratings"][0]
    first["values"][hidden[first["item"]]] = 89.0
    assert _judged(key, given).screened[0].is_left_out
    first["values"][hidden[first["item"]]] = 90.0
    assert not _judged(key, given).screened[0].is_left_out


def test_what_is_unfinished_counts_what_is_there(key: Key) -> None:
    found = _judged(key, answers_of(key, "Ann", 1.0, random.Random(0), trials=10))
    assert sum(each.trials for each in found.heard) == 10
    assert found.notes[-1] == "Ann is not finished: 10 of 62 are there, and count"
    assert found.rated == []
    with pytest.raises(ValueError, match="nobody has answered anything"):
        _judged(key, answers_of(key, "Ann", 1.0, random.Random(0), trials=0))


def _level(key: Key, trial: str) -> str:
    return next(each.level for each in key.trials if each.id == trial)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study": "0123456789abcdef"}, "answers study 0123456789abcdef, the key is of"),
        ({"listener": ""}, "is damaged, or no file of answers"),
        ({"listener": "  "}, "names no listener"),
        ({"miso_abx_answers": 2}, "is of version 2, this program reads 1"),
        ({"answers": [{"trial": "t999", "answer": "A"}]}, "answers t999, which the study does not ask"),
        ({"answers": [{"trial": "t1", "answer": "C"}]}, "is damaged"),
        ({"answers": [{"trial": "t1", "answer": "A"}, {"trial": "t1", "answer": "B"}]}, "answers a question twice"),
        ({"ratings": [{"item": "r1", "values": {"1": 50}}]}, "r1 has not one rating of 0 to 100 for each take"),
        ({"ratings": [{"item": "r9", "values": {}}]}, "answers r9, which the study does not ask"),
    ],
)
def test_a_file_that_is_wrong_is_named(key: Key, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "answers-Ann.json"
    path.write_text(json.dumps({**answers_of(key, "Ann", 1.0, random.Random(0)), **change}))
    with pytest.raises(ValueError, match=rf"answers-Ann\.json: {said}"):
        load_answers(path, key)


def test_files_that_are_not_there_damaged_or_twice(key: Key, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.json is not there: give the file that the page saved"):
        load_answers(tmp_path / "a.json", key)
    (tmp_path / "a.json").write_text('{"miso_abx_answers": 1, ')
    with pytest.raises(ValueError, match=r"a\.json: is damaged"):
        load_answers(tmp_path / "a.json", key)
    for name, listener in (("a", "Ann"), ("b", " Ann "), ("c", "Bo")):
        (tmp_path / f"{name}.json").write_text(json.dumps(answers_of(key, listener, 1.0, random.Random(0))))
    with pytest.raises(ValueError, match=r"b\.json: is of Ann, as .*a\.json is: give one file of each listener"):
        load_all([tmp_path / "a.json", tmp_path / "b.json"], key)
    assert [each.listener for each in load_all([tmp_path / "c.json", tmp_path / "a.json"], key)] == ["Ann", "Bo"]


def test_draws_are_fixed_for_ever() -> None:
    """Answers that were saved years ago must be judged as they were given."""
    assert draw("a") == 0x1A80B1B3
    assert draw("study", "Zoë", "t1") != draw("study", "Zoe", "t1")
    assert plain_name(" Zoe\u0308 ") == "Zo\u00eb"
    assert plain_name("\ufeff\x1c\x85 A\x1bnn\u202e\u3000\ud800") == "Ann"
    assert plain_name("\ufeff \x1f") == ""
