# ruff: noqa: RUF001  (marks that resemble others are what is tested)
"""A script as it comes: the turns of the whole, each as soon as it can be told, errors after what was before."""

import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.runtime.dialogue import standard_input
from miso_gguf.runtime.dialogue.grammar import Line, Numbered, dialogue_turn, is_prose
from miso_gguf.runtime.dialogue.script import parse_script
from miso_gguf.runtime.dialogue.standard_input import lines_as_they_come


def _whole(line: Line) -> Line:
    """With its text in one piece, as a file has it."""
    return Line(line.speaker, "".join(line.text).strip(), line.voice, line.number)


def lines(*blocks: bytes) -> list[Line]:
    return [_whole(line) for line in lines_as_they_come(blocks, "t")]


class _Blocks:
    """Blocks that note how many were asked for."""

    def __init__(self, *blocks: bytes) -> None:
        self._blocks, self.read = iter(blocks), 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.read += 1
        return next(self._blocks)


@pytest.mark.parametrize(
    ("blocks", "needed"),
    [
        ([b'{"text": "a"}\n', b"x"], 1),
        ([b"1: Hello.\n", b"x"], 1),
        ([b"Ann: Hello.\n", b"Bob: Hi.\n", b"x"], 2),
        ([b"Hello there.\n", b"x"], 1),
        ([b"Hello there, ", b"x"], 1),
        ([b"Hello there. How are ", b"x"], 1),
        ([b"Hello there", b". How are you ", b"x"], 2),
        ([b"\n\r\n", b"Ann: Hello.\n", b"\n", b"And (then) ", b"x"], 4),
    ],
)
def test_a_form_is_told_as_soon_as_it_can_be(blocks: list[bytes], needed: int) -> None:
    coming = _Blocks(*blocks)
    next(lines_as_they_come(coming, "t"))
    assert coming.read == needed


def test_turns_and_plain_text_come_one_by_one() -> None:
    coming = _Blocks(b"0: a\n", b"1: b\n", b"0: c")
    found = lines_as_they_come(coming, "t")
    assert [(next(found).text, coming.read) for _ in range(2)] == [("a", 1), ("b", 2)]
    coming = _Blocks(b"Hello (there). ", b"How ", b"are you?")
    text = iter(next(lines_as_they_come(coming, "t")).text)
    assert [(next(text), coming.read) for _ in range(2)] == [("Hello (there). ", 1), ("", 1)]
    assert (next(text), coming.read) == ("How ", 2)


SCRIPTS = [
    "Hello there.\r\nHow are you?\n\n\nFine.",
    "Note: this is prose.",
    "Note: this is prose.\n\n  And it goes on: so.\n",
    "\n\n Ann: Hello.\r\n\rBob: Hi.\nAnn: Bye.",
    "3: Alone.",
    "0: a\n7: b\n0: ...\n",
    '\ufeff{"text": "a"}\n\n{"speaker": "Ann", "text": "\u00e9", "voice": "v"}\r\n',
    "Юрий Ива́нов：Да.\n张伟：你好。\nराम कुमार: नमस्ते।",
    "\ufeffПривет, мир. 你好世界。",
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_blocks_give_what_the_whole_gives(script: str, size: int) -> None:
    content = script.encode()
    expected = parse_script(content, "t")
    found = lines(*(content[start : start + size] for start in range(0, len(content), size)))
    assert found == [_whole(Line(x.speaker, str(x.text).replace("\r\n", "\n"), x.voice, x.number)) for x in expected]


@given(st.text(alphabet="ab1: ,.\n", max_size=30), st.lists(st.integers(1, 5), max_size=20))
def test_any_text_in_any_blocks_is_that_in_one(text: str, sizes: list[int]) -> None:
    content, blocks, start = text.encode(), [], 0
    for size in [*sizes, len(text)]:
        blocks.append(content[start : start + size])
        start += size

    def outcome(*given: bytes) -> list[Line] | str:
        try:
            return lines(*given)
        except ValueError as error:
            return str(error)

    assert outcome(*filter(None, blocks)) == outcome(content)


_line = st.text(alphabet="ab1 .-'(\t:\uff1a", max_size=30)


@given(_line, st.integers(0, 30))
def test_what_is_prose_already_is_no_turn_in_the_end(line: str, length: int) -> None:
    if is_prose(line[:length]):
        assert dialogue_turn(Numbered(1, line)) is None


def test_names_take_the_lowest_number_that_nobody_has() -> None:
    assert [line.speaker for line in lines(b"Ann: a\n2: b\nBob: c\nEve: d\n0: e\n")] == [0, 2, 1, 3, 0]


def test_a_line_of_nobody_is_of_the_speaker_before(caplog: pytest.LogCaptureFixture) -> None:
    found = lines(b"0: a\n7: b\n(They leave.)\n0: c\n")
    assert [(line.speaker, line.text) for line in found] == [(0, "a"), (7, "b"), (7, "(They leave.)"), (0, "c")]
    assert caplog.messages == ["t, line 3: not `speaker: text`, so the speaker before it says it"]


@pytest.mark.parametrize(
    ("content", "texts", "message"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n{"text": 3}\n', ["a", "b"], 't, line 3: "text" must be some text'),
        (b'{"text": "a"}\nHello\n', ["a"], "t, line 2: no JSON"),
        (b"0: a\n1: caf\xe9\n", ["a"], "t: not UTF-8: byte 0xe9 at offset 11, line 2"),
        (b"0: a\n" + "1: b\n".encode("utf-16"), ["a"], "t: not UTF-8: byte 0xff at offset 5, line 2"),
        (b"Hello there,\nmy good caf\xe9", ["Hello there,\nmy good caf"], "byte 0xe9 at offset 24, line 2"),
        (b"Hello, \xe4\xbd", ["Hello,"], "byte 0xe4 at offset 7, line 1"),
    ],
)
def test_an_error_comes_after_what_was_before(content: bytes, texts: list[str], message: str) -> None:
    for blocks in ([content], [bytes([byte]) for byte in content]):
        found: list[Line] = []
        with pytest.raises(ValueError, match=re.escape(message)):
            found.extend(_whole(line) for line in lines_as_they_come(blocks, "t"))
        assert [line.text for line in found] == texts


def test_a_line_has_a_limit_and_a_script_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_input, "MAX_SCRIPT_BYTES", 1 << 20)
    assert sum(1 for _ in lines_as_they_come((b"0: " + b"a" * 1000 + b"\n" for _ in range(2000)), "t")) == 2000
    plain = lines_as_they_come((b"a, " * 1000 for _ in range(1000)), "t")
    assert sum(len(piece) for piece in next(plain).text) == 3_000_000
    with pytest.raises(ValueError, match="t, line 2: longer than 1 MB, which is no line of a script; split it"):  # noqa: PT012
        for line in lines_as_they_come([b"0: a\n1: ", *[b"a" * 65536] * 20], "t"):
            assert line.text == "a"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\r\n\t"])
def test_nothing_came(content: bytes) -> None:
    with pytest.raises(ValueError, match="t: nothing to say: the file is empty"):
        lines(content)


@pytest.mark.parametrize("content", [b"...\n?!", b'{"text": "..."}', b"0: ...\n1: !"])
def test_no_words_came(content: bytes) -> None:
    with pytest.raises(ValueError, match="t: nothing to say: no letter or digit in its text"):
        lines(content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_recognised(encoding: str) -> None:
    content = "Hello there.\n".encode(encoding)
    for blocks in ([content], [bytes([byte]) for byte in content]):
        with pytest.raises(ValueError, match="t: looks like UTF-16, expected UTF-8"):
            lines(*blocks)


def test_names_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        lines(b"Ann: a\nBob: b")
    assert caplog.messages == ["t: speaker 0 is Ann", "t: speaker 1 is Bob"]
