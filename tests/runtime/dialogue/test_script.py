# ruff: noqa: RUF001  (marks that resemble others are what is tested)
"""The three formats of a script, and an error with a line number for what is none of them."""

import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.runtime.dialogue.grammar import Line
from miso_gguf.runtime.dialogue.script import MAX_SCRIPT_BYTES, parse_script, read_script


def turns(text: str, name: str = "play.txt") -> list[tuple[int | None, str]]:
    return [(line.speaker, str(line.text)) for line in parse_script(text.encode(), name)]


def test_plain_text_is_one_piece() -> None:
    text = "\n  First line.\nSecond: line.\n\nAnother paragraph.\n\n"
    assert parse_script(text.encode(), "t") == [
        Line(None, "First line.\nSecond: line.\n\nAnother paragraph.", None, 2),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Note: this is prose.",
        "He said: go.\nAnd so they went.",
        "At 10:30 it began.\nAt 11:00 it ended.",
        "One thing that I know: it rains.\nOne thing that you know: it snows.",
        "http://example.com/a\nhttp://example.com/b",
        "Anna:Hello\nBen:Hello",
        ": a\n: b",
        "12345: a\n12345: b",
    ],
)
def test_prose_with_colons_is_plain_text(text: str) -> None:
    assert turns(text) == [(None, text)]


def test_dialogue_with_names() -> None:
    text = "Anna: Hello, Ben.\r\n\r\n  Dr. O'Neill-Smith :  Hi: you?\rAnna: Fine.\n"
    text += "Юрий Ива́нов：Да.\n张伟：你好。\nराम कुमार: नमस्ते।"
    assert parse_script(text.encode(), "t") == [
        Line(0, "Hello, Ben.", None, 1),
        Line(1, "Hi: you?", None, 3),
        Line(0, "Fine.", None, 4),
        Line(2, "Да.", None, 5),
        Line(3, "你好。", None, 6),
        Line(4, "नमस्ते।", None, 7),
    ]


def test_dialogue_with_numbers() -> None:
    assert turns("0: Hello.\n7: Hi.\n0: Bye.") == [(0, "Hello."), (7, "Hi."), (0, "Bye.")]
    assert turns("3: Alone.") == [(3, "Alone.")]


def test_names_take_the_numbers_that_are_free() -> None:
    assert turns("Anna: a\n1: b\nBen: c\n0: d\nAnna: e") == [(2, "a"), (1, "b"), (3, "c"), (0, "d"), (2, "e")]


def test_names_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        turns("Anna: a\n1: b\nBen: c")
    assert caplog.messages == ["play.txt: speaker 0 is Anna", "play.txt: speaker 2 is Ben"]


def test_a_dialogue_with_one_odd_line_is_plain_and_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    text = "Anna: a\nBen: b\n\n(They leave.)\nAnna: c"
    assert turns(text) == [(None, text)]
    assert caplog.messages == ["play.txt: read as plain text, not as dialogue: line 4 is not `speaker: text`"]


def test_json_lines() -> None:
    lines = [
        '{"text": " Hello. "}',
        "",
        '{"speaker": 1, "text": "Hi\\nthere.", "voice": "ben.voice"}',
        '{"speaker": "Anna", "text": "a\u2028b", "voice": null}',
        '{"speaker": "1", "text": "c"}',
    ]
    expected = [
        Line(None, "Hello.", None, 1),
        Line(1, "Hi\nthere.", "ben.voice", 3),
        Line(0, "a\u2028b", None, 4),
        Line(1, "c", None, 5),
    ]
    for name, end in (("t.jsonl", "\n"), ("T.NDJSON", "\r\n"), ("t.txt", "\n")):
        assert parse_script(end.join(lines).encode(), name) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "no JSON (Expecting ',' delimiter, column 13); write one object a line"),
        ("{", "no JSON (Expecting property name enclosed in double quotes"),
        ("Hello.", "no JSON (Expecting value, column 1)"),
        ('{"text": ' + "[" * 100_000, "no JSON ("),
        ('{"text": "a", "speaker": ' + "1" * 5000 + "}", "no JSON ("),
        ('{"text": "a", "text": "b"}', "no JSON (key 'text' twice)"),
        ('["a"]', "a JSON list, expected an object like"),
        ("null", "a JSON NoneType, expected an object"),
        ('{"text": "a", "speed": 1}', "unknown key 'speed'; known are speaker, text, voice"),
        ("{}", '"text" must be some text, not nothing'),
        ('{"text": " "}', '"text" must be some text, not " "'),
        ('{"text": 5}', '"text" must be some text, not 5'),
        ('{"text": "a", "speaker": -1}', '"speaker" must be a number from 0 to 9999 or a name, not -1'),
        ('{"text": "a", "speaker": 10000}', "or a name, not 10000"),
        ('{"text": "a", "speaker": 1.0}', "or a name, not 1.0"),
        ('{"text": "a", "speaker": true}', "or a name, not true"),
        ('{"text": "a", "speaker": null}', "or a name, not nothing"),
        ('{"text": "a", "speaker": ""}', 'or a name, not ""'),
        ('{"text": "a", "voice": 3}', '"voice" must be the path of a voice, not 3'),
        ('{"text": "a", "voice": ""}', '"voice" must be the path of a voice, not ""'),
        (json.dumps({"text": list(range(1000))}), "must be some text, not [0, 1, 2"),
    ],
)
def test_bad_json_lines_are_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_script(f'{{"text": "fine"}}\n\n{line}\n'.encode(), "talk.jsonl")
    assert str(caught.value).startswith("talk.jsonl, line 3: ")
    assert len(str(caught.value)) < 200


def test_a_brace_makes_it_json() -> None:
    with pytest.raises(ValueError, match="t, line 3: no JSON"):
        parse_script(b'\n{"text": "a"}\nb', "t")


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\r\n\t", b"\n" * 1000])
def test_empty_files(name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=f"{name}: nothing to say: the file is empty"):
        parse_script(content, name)


@pytest.mark.parametrize("content", [b"...\n?!", b'{"text": "..."}', b"0: ...\n1: !"])
def test_files_without_words(content: bytes) -> None:
    with pytest.raises(ValueError, match="t: nothing to say: no letter or digit in its text"):
        parse_script(content, "t")


def test_turns_without_words_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    # They still count as a speaker's appearance, and as a line of dialogue.
    assert turns("Anna: ...\nBen: b\nAnna: c") == [(1, "b"), (0, "c")]
    assert caplog.messages == ["play.txt, line 1: left out, nothing to say in '...'"]


def test_a_byte_order_mark_is_no_text() -> None:
    assert parse_script("\ufeffAnna: a\nBen: b".encode(), "t") == parse_script(b"Anna: a\nBen: b", "t")
    assert parse_script('\ufeff{"text": "a"}'.encode(), "t")[0].text == "a"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_recognised(encoding: str) -> None:
    with pytest.raises(ValueError, match="t: looks like UTF-16, expected UTF-8; save it again as UTF-8"):
        parse_script("Hello there.\n".encode(encoding), "t")


def test_a_nul_byte_is_no_utf_16() -> None:
    assert turns("Hello\x00 there.") == [(None, "Hello\x00 there.")]


def test_other_encodings_are_refused_where_they_show() -> None:
    with pytest.raises(ValueError, match="t: not UTF-8: byte 0xe9 at offset 13, line 2; save it again as UTF-8"):
        parse_script("Well then\ncafé".encode("latin-1"), "t")


def test_too_long_is_no_script() -> None:
    with pytest.raises(ValueError, match="t: longer than 16 MB, which is no script; split it"):
        parse_script(b"a" * (MAX_SCRIPT_BYTES + 1), "t")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_bytes(b"0: a\n1: b\n")
    assert [line.speaker for line in read_script(path)] == [0, 1]
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file; check"):
        read_script(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="a directory, not a script"):
        read_script(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not UTF-8: byte 0xff at offset 0, line 1"):
        read_script(path)


_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_said = _text.filter(lambda text: any(map(str.isalnum, text)))


@given(st.lists(st.tuples(st.integers(0, 9999), _said, st.none() | _text.filter(str.strip)), min_size=1), st.booleans())
def test_any_json_lines(entries: list[tuple[int, str, str | None]], ascii_only: bool) -> None:
    rows = [dict(zip(("speaker", "text", "voice"), entry, strict=True)) for entry in entries]
    content = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()
    assert parse_script(content, "t.jsonl") == [
        Line(speaker, text.strip(), voice, number) for number, (speaker, text, voice) in enumerate(entries, 1)
    ]


@given(st.binary(max_size=60) | st.text(alphabet="ab1:{}\"\n \r.,'：-", max_size=60).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    """An error that names the file, or turns with words in them from lines that exist."""
    lines: list[Line] = []
    error = ""
    try:
        lines = parse_script(content, "t")
    except ValueError as caught:
        error = str(caught)
    for line in lines:
        assert any(map(str.isalnum, str(line.text)))
        assert 1 <= line.number <= content.count(b"\n") + content.count(b"\r") + 1
    assert bool(lines) != error.startswith("t")
    assert "\n" not in error


@pytest.mark.parametrize("unit", ["a ", "a", " ", "a: b ", "a: b\n", "{", "a\n", "é-", "\t:"])
def test_long_files(unit: str) -> None:
    """A megabyte of anything. Work that grew with the square would take hours and be noticed."""
    assert parse_script(("x" + unit * (1_000_000 // len(unit))).encode(), "t")


def test_many_names() -> None:
    text = "\n".join(f"n{number}: a" for number in range(30_000))
    assert turns(text)[-1] == (29_999, "a")
