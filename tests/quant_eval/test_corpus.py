"""What is said: the package's corpora, and files of the user's."""

import json
from pathlib import Path

import pytest

from miso_gguf.models.tiny.make.words import parse
from miso_gguf.quant_eval.corpus import CorpusError, load_corpus

CATEGORIES = {"statement", "question", "exclamation", "list", "number", "long", "dialogue", "emotion"}


def test_the_builtin_corpus_has_every_category() -> None:
    corpus = load_corpus("builtin")
    assert len(corpus.prompts) >= 40
    assert set(corpus.info([0]).categories) == CATEGORIES
    assert all(prompt.before for prompt in corpus.prompts if prompt.category == "dialogue")


def test_the_tiny_corpus_stays_within_the_vocabulary() -> None:
    corpus = load_corpus("tiny")
    assert len(corpus.prompts) >= 40
    for prompt in corpus.prompts:
        for text in (prompt.text, *(said for _, said in prompt.before)):
            words, _ = parse(text)
            assert 2 <= len(words) <= 6


def test_a_file_is_read_and_its_hash_is_of_what_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "Hello."}\n\n{"text": "Bye.", "id": "b", "speaker": 1, "before": [[0, "Hi."]]}\n')
    first = load_corpus(path)
    assert [prompt.id for prompt in first.prompts] == ["001", "b"]
    assert first.prompts[1].before == ((0, "Hi."),)
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
        ('{"text": "a", "speaker": -1}', "speaker must be a number from 0, not -1"),
        ('{"text": "a", "before": ["b"]}', "before must be a list of"),
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
    path.write_text(line)
    with pytest.raises(CorpusError, match=message):
        load_corpus(path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such corpus"):
        load_corpus(tmp_path / "none.jsonl")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a", "audio": "a.wav"}))
    with pytest.raises(FileNotFoundError, match=r"line 1: .*a\.wav is not there"):
        load_corpus(tmp_path / "mine.jsonl")


def test_a_recording_is_part_of_the_hash(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a", "audio": "a.wav"}))
    (tmp_path / "a.wav").write_bytes(b"1")
    first = load_corpus(tmp_path / "mine.jsonl")
    (tmp_path / "a.wav").write_bytes(b"2")
    assert load_corpus(tmp_path / "mine.jsonl").sha256 != first.sha256


def test_a_part_keeps_every_category() -> None:
    corpus = load_corpus("tiny")
    part = corpus.first(8)
    assert len(part.prompts) == 8
    assert len(part.info([0]).categories) == 8
    assert part.sha256 != corpus.sha256
    assert corpus.first(1000) is corpus
