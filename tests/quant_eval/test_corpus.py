"""What is said: the package's corpora, and files of the user's."""

import hashlib
import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.models.tiny.make.conversations import is_held_out
from miso_gguf.models.tiny.make.words import parse
from miso_gguf.quant_eval.corpus import BUILTIN, CorpusError, Turn, load_corpus
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.synthesis.reading import speech_cap_frames

CATEGORIES = {
    *("statement", "question", "exclamation", "list", "number"),
    *("long", "emotion", "dialogue", "name", "cloned"),
}
FIRST = "eb824adc4837ac60"
"""Of what was said when the corpus had 40 prompts: five of each of seven categories. Its five long ones were short."""
TINY = "7827756a75e8d649"
"""Of the tiny corpus. Evaluations of it are accepted: it never changes."""


def test_the_builtin_corpus_has_every_category() -> None:
    corpus = load_corpus("builtin")
    assert len(corpus.prompts) >= 150
    categories = corpus.info([0]).categories
    assert categories.keys() == CATEGORIES
    assert min(categories.values()) >= 12
    assert all(prompt.before for prompt in corpus.prompts if prompt.category in ("dialogue", "cloned"))


def test_the_builtin_corpus_has_long_prompts_and_cloned_voices() -> None:
    prompts = load_corpus("builtin").prompts
    long = [prompt.text for prompt in prompts if prompt.category == "long"]
    assert min(map(len, long)) > 420, "30 s of speech, at 14 characters a second"
    assert sum(630 <= len(text) <= 840 for text in long) >= 5, "45 to 60 s"
    for prompt in prompts:
        if prompt.category == "cloned":
            assert [turn.speaker for turn in prompt.before] == [prompt.speaker], "the voice that is to be kept"
            assert sum(len(turn.text) for turn in prompt.before) > 150


def test_the_builtin_corpus_is_plain_english_and_each_prompt_once() -> None:
    prompts = load_corpus("builtin").prompts
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert re.fullmatch(rf"{prompt.category}-[1-9][0-9]?", prompt.id)
        for text in (prompt.text, *(turn.text for turn in prompt.before)):
            assert re.fullmatch(r"[A-Z][A-Za-z ,;:'?!.-]+[.?!]", text), f"{prompt.id}: numbers are written out"
            assert "  " not in text


def test_what_was_said_before_is_said_still() -> None:
    """Records and accepted evaluations go by the ids."""
    prompts = load_corpus("builtin").prompts
    old = [
        prompt
        for prompt in prompts
        if int(prompt.id.split("-")[1]) <= 5 and prompt.category not in ("name", "cloned", "long")
    ]
    rows = sorted(
        [each.id, each.text, each.speaker, [[turn.speaker, turn.text] for turn in each.before]] for each in old
    )
    assert len(rows) == 35
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == FIRST


def test_nothing_cuts_a_long_prompt_short() -> None:
    options = SpeechOptions()
    for text in (prompt.text for prompt in load_corpus("builtin").prompts if prompt.category == "long"):
        most = min(options.max_frames, speech_cap_frames(text))
        assert most > 1.4 * len(text) / 14 * 12.5, "frames, at the pace of a slow reader"
        assert most + len(text) / 3 < 2048, "positions, of which a token takes one"


def test_the_tiny_corpus_is_as_it_was() -> None:
    assert load_corpus("tiny").sha256.startswith(TINY)


def test_the_large_tiny_corpus_is_of_sentences_that_no_model_was_taught() -> None:
    corpus = load_corpus("tiny-large")
    categories = corpus.info([0]).categories
    assert len(corpus.prompts) == 160
    assert categories.keys() == {*load_corpus("tiny").info([0]).categories, "cloned"}
    assert min(categories.values()) >= 12
    said = [text for prompt in corpus.prompts for text in (prompt.text, *(turn.text for turn in prompt.before))]
    assert len(set(said)) == len(said), "each once"
    assert all(is_held_out(parse(text)[0]) for text in said)
    lengths = {len(prompt.before) for prompt in corpus.prompts if prompt.category == "dialogue"}
    assert lengths == {1, 2, 3, 4}
    for prompt in corpus.prompts:
        speakers = [*(turn.speaker for turn in prompt.before), prompt.speaker]
        if prompt.category == "cloned":
            assert speakers == [prompt.speaker] * 2
        else:
            assert all(one != other for one, other in pairwise(speakers)), "they take turns"


@pytest.mark.parametrize("name", ["tiny", "tiny-large"])
def test_the_tiny_corpora_stay_within_the_vocabulary(name: str) -> None:
    corpus = load_corpus(name)
    assert len(corpus.prompts) >= 40
    for prompt in corpus.prompts:
        for text in (prompt.text, *(turn.text for turn in prompt.before)):
            words, _ = parse(text)
            assert 2 <= len(words) <= 6


def test_a_file_is_read_and_its_hash_is_of_what_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "Hello."}\n\n{"text": "Bye.", "id": "b", "speaker": 1, "before": [[0, "Hi."]]}\n')
    first = load_corpus(path)
    assert [prompt.id for prompt in first.prompts] == ["001", "b"]
    assert first.prompts[1].before == (Turn(0, "Hi."),)
    assert first.info([0, 1]).categories == {"other": 2}
    path.write_text('{"text": "Hello!"}\n\n{"text": "Bye.", "id": "b", "speaker": 1, "before": [[0, "Hi."]]}\n')
    assert load_corpus(path).sha256 != first.sha256
    (tmp_path / "same.jsonl").write_text('{"id": "001", "text": "Hello!"}\n' + path.read_text().splitlines()[2])
    assert load_corpus(tmp_path / "same.jsonl").sha256 == load_corpus(path).sha256


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 1: no JSON"),
        ("[]", "expected an object"),
        ('{"text": "  "}', "says something"),
        ('{"text": "a", "sped": 1}', "unknown entry 'sped'; known are audio, before"),
        ('{"text": "a", "speaker": -1}', "speaker must be a number from 0 to 9999, not -1"),
        ('{"text": "a", "speaker": true}', "speaker must be a number from 0 to 9999, not True"),
        ('{"text": "a", "speaker": 1000000000000000000000}', "speaker must be a number"),
        ('{"text": "a", "speaker": 1e999}', "speaker must be a number from 0 to 9999, not inf"),
        ('{"text": 7}', "line 1: text must be text, something to say, not 7"),
        ('{"text": null}', "line 1: text must be text"),
        ('{"text": "\u200b \ufeff"}', "line 1: text must be text that says something"),
        ('{"text": "a\\ud800"}', r"line 1: text holds U\+D800, which is half of a character, a lone surrogate"),
        ('{"text": "a\\u0000b"}', r"line 1: text holds U\+0000, which is a control character: take it out"),
        ('{"text": "a\\u001b[31m"}', r"line 1: text holds U\+001B"),
        ('{"text": "a\\uffff"}', r"line 1: text holds U\+FFFF, which is no character"),
        ('{"text": "a", "category": 7}', "line 1: category must be text, a name, not 7"),
        ('{"text": "a", "category": ["b"]}', "line 1: category must be text"),
        ('{"text": "a", "category": null}', "line 1: category must be text"),
        ('{"text": "a", "category": " "}', "line 1: category must be a name in one line"),
        ('{"text": "a", "category": "b\\nc"}', "line 1: category must be a name in one line"),
        ('{"text": "a", "category": "\\udcff"}', r"line 1: category holds U\+DCFF"),
        ('{"text": "a", "before": [[true, "b"]]}', "line 1: speaker must be a number from 0 to 9999, not True"),
        ('{"text": "a", "before": [[-1, "b"]]}', "line 1: speaker must be a number"),
        ('{"text": "a", "before": [[0, " "]]}', "line 1: the text of before must be text that says something"),
        ('{"text": "a", "before": [[0, "\\ud800"]]}', r"line 1: the text of before holds U\+D800"),
        ('{"text": "a", "before": [[0, 1]]}', "line 1: the text of before must be text"),
        ('{"text": "a", "before": {"0": "b"}}', "line 1: before must be a list of"),
        ('{"text": "a", "before": null}', "line 1: before must be a list of"),
        ('{"text": "a", "audio": 7}', "line 1: audio must be text"),
        ('{"text": "a", "audio": "\\u0000"}', r"line 1: audio holds U\+0000"),
        ('{"text": "a", "text": "b"}', "line 1: 'text' is there twice"),
        ('{"text": "a", "x": {"y": 1, "y": 2}}', "line 1: 'y' is there twice"),
        ('{"text": "a", "speaker": NaN}', "line 1: no JSON .NaN is no number of it"),
        ('{"text": "a", "speaker": -Infinity}', "line 1: no JSON .-Infinity is no number"),
        ('{"text": ' + "[" * 60_000, "line 1: no JSON of a prompt .too deeply nested"),
        ('{"text": "a", "before": ' + "[" * 600 + "]" * 600 + "}", "line 1: before must be a list of"),
        ('{"text": "' + "a" * 100_001 + '"}', "line 1: has 100013 characters, and may have 100000"),
        ('{"text": "a", "id": "' + "x" * 101 + '"}', "line 1: id must be a name in one line, of 1 to 100 characters"),
        ('{"text": "a", "\\ud800": 1}', "line 1: unknown entry"),
        ('{"text": "a", "id": "x\\n"}', "line 1: id must be letters"),
        ('{"text": "a", "before": ["b"]}', "before must be a list of"),
        ('{"text": "a", "before": [[0]]}', "before must be a list of"),
        ('{"text": "a", "before": [[0, "b", "c.wav", 1]]}', "before must be a list of"),
        ('{"text": "a", "before": [[0, "b", null]]}', "line 1: the recording of before must be text"),
        ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', "the id 'x' is there twice"),
        ('{"text": "a", "id": "x"}\n{"text": "b", "id": "X"}', "the id 'x' is there twice"),
        ('{"text": "a", "id": "../x"}', "id must be letters"),
        ('{"text": "a", "id": ""}', "id must be letters"),
        ('{"text": "a", "id": 7}', "id must be letters"),
        ("", "is empty"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(line, "utf-8")
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(path)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: cannot be read as UTF-8"),
        ('{"text": "a"}'.encode("utf-16"), "line 1: cannot be read as UTF-8"),
        (b'{"text": "a"}\n{"text": "\xed\xa0\x80"}\n', "line 2: cannot be read as UTF-8"),
        (b'{"text": "a"}\x00', "line 1: no JSON"),
    ],
)
def test_bytes_that_are_no_text(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        load_corpus(tmp_path / "mine.jsonl")


def test_a_file_that_is_no_corpus_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "mine.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorpusError, match="more than 64 MiB"):
        load_corpus(tmp_path / "mine.jsonl")
    with pytest.raises(CorpusError, match="cannot be read"):
        load_corpus(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_file_whose_name_is_no_text_has_one_that_is(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff.jsonl")
    path.write_text('{"text": "Hello."}')
    assert load_corpus(path).info([0]).model_dump_json()
    assert load_corpus(path).name == r"'a\udcff'"


def test_ends_of_lines_and_marks_of_order_do_not_matter(tmp_path: Path) -> None:
    lines = ('{"text": "Hello."}', '{"text": "Two\\nlines."}', "")
    for number, (bom, end) in enumerate([(b"", "\n"), (b"\xef\xbb\xbf", "\r\n"), (b"", "\r")]):
        (tmp_path / f"{number}.jsonl").write_bytes(bom + end.join(lines).encode())
    assert len({load_corpus(tmp_path / f"{number}.jsonl").sha256 for number in range(3)}) == 1


@settings(max_examples=examples(25))
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_whatever_a_line_holds_it_is_a_prompt_or_an_error_of_the_corpus(value: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "mine.jsonl")
        for key in ("text", "id", "category", "speaker", "before", "audio"):
            path.write_text(json.dumps({"text": "a", key: value}))
            try:
                (prompt,) = load_corpus(path).prompts
            except (CorpusError, FileNotFoundError) as error:
                str(error).encode()
            else:
                f"{prompt.id} {prompt.category} {prompt.text} {prompt.before}".encode()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such corpus"):
        load_corpus(tmp_path / "none.jsonl")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a", "audio": "a.wav"}))
    with pytest.raises(FileNotFoundError, match=r"line 1: .*a\.wav is not there"):
        load_corpus(tmp_path / "mine.jsonl")
    for name in ("", "x" * 5000, "."):
        (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a", "audio": name}))
        with pytest.raises(FileNotFoundError, match=r"line 1: .* is not there, or no file"):
            load_corpus(tmp_path / "mine.jsonl")


def test_a_recording_is_part_of_the_hash(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a", "audio": "a.wav"}))
    (tmp_path / "a.wav").write_bytes(b"1")
    first = load_corpus(tmp_path / "mine.jsonl")
    (tmp_path / "a.wav").write_bytes(b"2")
    assert load_corpus(tmp_path / "mine.jsonl").sha256 != first.sha256


def test_a_turn_before_may_have_a_recording(tmp_path: Path) -> None:
    path, clip = tmp_path / "mine.jsonl", tmp_path / "clip.wav"
    path.write_text(json.dumps({"text": "a", "before": [[1, "b", "clip.wav"], [0, "c"]]}))
    with pytest.raises(FileNotFoundError, match=r"line 1: .*clip\.wav is not there"):
        load_corpus(path)
    clip.write_bytes(b"1")
    first = load_corpus(path)
    assert first.prompts[0].before == (Turn(1, "b", clip), Turn(0, "c"))
    assert first.spoken == first.prompts
    assert first.recordings == ()
    clip.write_bytes(b"2")
    assert load_corpus(path).sha256 != first.sha256, "another voice"
    path.write_text(json.dumps({"text": "a", "before": [[1, "b"], [0, "c"]]}))
    assert load_corpus(path).sha256 not in (first.sha256, "")


@pytest.mark.parametrize("name", BUILTIN)
def test_a_part_keeps_every_category(name: str) -> None:
    corpus = load_corpus(name)
    categories = corpus.info([0]).categories
    for count in (len(categories), 12, 20, 39):
        part = corpus.first(count)
        found = part.info([0]).categories
        assert len(part.prompts) == count
        assert found.keys() == categories.keys()
        for category, size in categories.items():
            assert abs(found[category] - size * count / len(corpus.prompts)) <= 1, (count, category)
        assert [prompt.id for prompt in part.prompts] == [p.id for p in corpus.prompts if p in part.prompts]
        assert part.sha256 != corpus.sha256
        again = load_corpus(f"{name}:{count}")
        assert (again.name, again.sha256) == (part.name, part.sha256) == (f"{name}:{count}", corpus.first(count).sha256)
    assert len(corpus.first(3).info([0]).categories) == 3
    assert corpus.first(1000) is corpus


def test_a_rare_category_stays(tmp_path: Path) -> None:
    rows = [{"text": "a", "category": "common"}] * 97 + [{"text": "a", "category": name} for name in "xyz"]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_corpus(tmp_path / "mine.jsonl").first(8).info([0]).categories == {"common": 5, "x": 1, "y": 1, "z": 1}
