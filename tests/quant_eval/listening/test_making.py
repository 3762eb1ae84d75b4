"""A study from an evaluation's folder: what is in it, what it does not tell, what is refused."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from sample_study import CATEGORIES, write_report

from miso_gguf.quant_eval.listening.kept import SOUNDS_NAME, load_sounds
from miso_gguf.quant_eval.listening.making import Made, make_study, write_study
from miso_gguf.quant_eval.listening.study import KEY_NAME, Wanted, evenly, load_key


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, prompts=9, equal=2)
    return folder


@pytest.fixture(scope="module")
def made(report: Path) -> Made:
    return make_study(report, Wanted(ratings=3))


def _shown(made: Made) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', made.page, re.DOTALL)
    assert found
    shown: dict[str, object] = json.loads(found[1])
    return shown


def test_each_level_has_as_many_trials_as_find_a_good_listener(made: Made) -> None:
    assert Counter(trial.level for trial in made.key.trials) == {"q8_0": 28, "q4_0": 28}
    assert [(each.clips, each.equal, each.needed) for each in made.levels] == [(9, 2, 20), (9, 0, 20)]
    assert made.notes == [
        "Q8_0: 7 clips differ from F16: some are heard in more than one trial",
        "Q4_0: 9 clips differ from F16: some are heard in more than one trial",
    ]


def test_clips_that_equal_the_references_are_no_trial(made: Made) -> None:
    assert {trial.prompt for trial in made.key.trials if trial.level == "q8_0"} == {f"p{n}" for n in range(2, 9)}


def test_trials_are_drawn_evenly_over_the_categories(report: Path) -> None:
    key = make_study(report, Wanted(levels=["q4_0"], trials=6, ratings=0)).key
    assert len({trial.prompt for trial in key.trials}) == 6
    assert Counter(CATEGORIES[int(trial.prompt[1:]) % 3] for trial in key.trials) == dict.fromkeys(CATEGORIES, 2)
    assert not key.items


def test_a_rare_category_is_drawn_as_often_as_a_common_one() -> None:
    categories = {("rare", 0): "rare"} | {(f"p{n}", 0): "common" for n in range(20)}
    drawn = evenly(categories, 4, 0, "x")
    assert ("rare", 0) in drawn[:2]
    assert len(set(drawn)) == 4
    assert len(set(evenly(categories, 21, 0, "x"))) == 21
    assert evenly({}, 3, 0, "x") == []


def test_the_same_seed_gives_the_same_bytes_and_another_another(report: Path, made: Made) -> None:
    assert make_study(report, Wanted(ratings=3)).page == made.page
    other = make_study(report, Wanted(ratings=3, seed=1)).key
    assert other.study != made.key.study
    assert [trial.prompt for trial in other.trials] != [trial.prompt for trial in made.key.trials]


def test_items_have_hidden_reference_anchor_and_every_level(made: Made) -> None:
    assert len(made.key.items) == 3
    for item in made.key.items:
        assert sorted(item.takes.values()) == ["anchor", "fp16", "q4_0", "q8_0"]
        assert item.reference not in item.takes


def test_the_page_does_not_tell_which_level_is_which(made: Made) -> None:
    for word in ("q8_0", "Q8_0", "q4_0", "Q4_0", "fp16", "F16", "anchor"):
        assert word not in re.sub(r'"sounds":\{.*?\}', "", made.page)
    shown = _shown(made)
    assert shown["id"] == made.key.study
    assert shown["trials"] == [{"id": trial.id, "sounds": list(trial.sounds)} for trial in made.key.trials]
    assert "<b>of</b>" not in made.page


def test_neither_place_nor_number_gives_the_reference_away(made: Made) -> None:
    firsts = sum(trial.reference == 0 for trial in made.key.trials)
    assert 0.25 < firsts / len(made.key.trials) < 0.75
    levels = [trial.level for trial in sorted(made.key.trials, key=lambda trial: int(trial.id[1:]))]
    assert levels != sorted(levels)
    assert levels != sorted(levels, reverse=True)


def test_the_page_asks_for_nothing_from_elsewhere(made: Made) -> None:
    assert "default-src 'none'" in made.page
    assert not re.findall(r'(?:src|href)="(?!data:,)', made.page)
    assert "://" not in re.sub(r'"sounds":\{.*?\}', "", made.page)


def test_another_studys_key_is_not_lost(made: Made, report: Path, tmp_path: Path) -> None:
    page, key = write_study(made, tmp_path)
    assert page.read_text("utf-8") == made.page
    assert load_key(tmp_path) == load_key(key) == made.key
    write_study(made, tmp_path)
    other = make_study(report, Wanted(ratings=0, trials=5))
    with pytest.raises(ValueError, match=r"is the key of another study.*--force"):
        write_study(other, tmp_path)
    write_study(other, tmp_path, force=True)
    assert load_key(tmp_path) == other.key


def test_no_key_is_left_without_its_page(made: Made, report: Path, tmp_path: Path) -> None:
    write_study(made, tmp_path)
    (tmp_path / "abx.html").unlink()
    (tmp_path / "abx.html").mkdir()
    with pytest.raises(ValueError, match=r"abx\.html: is a folder"):
        write_study(make_study(report, Wanted(ratings=0, trials=5)), tmp_path, force=True)
    assert load_key(tmp_path) == made.key
    assert {path.name for path in tmp_path.iterdir()} == {"abx.html", KEY_NAME}


def test_takes_that_equal_the_references_are_counted(tmp_path: Path) -> None:
    sounds = write_report(tmp_path, prompts=3, levels=("q4_0",))
    clips = {each.level: tmp_path / "clips" / each.audio for each in sounds.sounds if each.stage == "free"}
    clips["q4_0"].write_bytes(clips["fp16"].read_bytes())
    found = make_study(tmp_path, Wanted(trials=3))
    assert found.notes == ["Q4_0: of 3 takes to be rated, equal to F16's: 1"]
    assert "At least one of the takes equals the reference" in found.page


@pytest.mark.parametrize(
    "change",
    [
        {"levels": ["q8_0"]},
        {"levels": ["q8_0", "q8_0", "q4_0"]},
        {"reference": "q5_k_m"},
        {"trials": [{"id": "t1", "level": "q8_0", "prompt": "p", "seed": 0, "sounds": ["1", "2"], "reference": 2}]},
        {"items": [{"id": "r1", "prompt": "p", "seed": 0, "reference": "1", "takes": {"2": "fp16", "3": "q8_0"}}]},
        {"study": None},
    ],
)
def test_a_key_that_does_not_fit_together_is_named(made: Made, tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / KEY_NAME
    path.write_text(json.dumps(made.key.model_dump(mode="json")))
    assert load_key(path) == made.key
    path.write_text(json.dumps({**made.key.model_dump(mode="json"), **change}))
    with pytest.raises(
        ValueError, match=r"abx-key\.json: is no key of a listening test, or damaged: give the"
    ) as raised:
        load_key(path)
    assert "\n" not in str(raised.value)


def test_nothing_to_hear_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sounds\.json is not there: run `miso-eval run"):
        make_study(tmp_path, Wanted())
    sounds = write_report(tmp_path, prompts=2, levels=("q8_0",), equal=2)
    found = make_study(tmp_path, Wanted())
    assert found.notes == ["Q8_0: none of 2 one-step clips differs from F16's: nothing can be told, so no trial"]
    assert (found.key.trials, len(found.key.items)) == ([], 2)
    with pytest.raises(ValueError, match="there is nothing to listen to: Q8_0: none of 2"):
        make_study(tmp_path, Wanted(ratings=0))
    with pytest.raises(ValueError, match="--levels: no q5_k_m beside fp16, only q8_0"):
        make_study(tmp_path, Wanted(levels=["q5_k_m"]))
    (tmp_path / SOUNDS_NAME).write_text(sounds.model_copy(update={"sounds": []}).model_dump_json())
    with pytest.raises(ValueError, match=r"add --stages one-step to.*; nothing to rate: .*add --stages free"):
        make_study(tmp_path, Wanted())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / SOUNDS_NAME).write_text("{}")
    with pytest.raises(ValueError, match=r"sounds\.json: is damaged or of another version"):
        load_sounds(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"abx-key\.json is not there: `miso-eval abx` writes it"):
        load_key(tmp_path)
    (tmp_path / KEY_NAME).write_text("[]")
    with pytest.raises(ValueError, match=r"abx-key\.json: is no key of a listening test"):
        load_key(tmp_path)


def test_a_single_clip_that_differs_is_said_to_be_all_that_is_heard(tmp_path: Path) -> None:
    write_report(tmp_path, prompts=3, levels=("q8_0",), equal=2)
    said = "Q8_0: 1 clip differs from F16: it is heard in all trials, which say nothing of others"
    assert make_study(tmp_path, Wanted(ratings=0)).notes == [said]
