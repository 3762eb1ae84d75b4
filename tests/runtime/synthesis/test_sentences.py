# ruff: noqa: RUF001  (marks that resemble others are what is tested)
"""Sentences of many scripts, and what holds for any text: nothing that can be said is lost, nothing is too long."""

import logging
import re
import unicodedata
from itertools import cycle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miso_gguf.runtime.synthesis.sentences import (
    MAX_CHARS,
    SentenceSplitter,
    in_two,
    normalise_text,
    split_sentences,
)

SENTENCES = [
    "It rained. Then it stopped.|2",
    "What? No! Really?! Yes.|4",
    "Well... So be it. And… Then?|4",
    "He came (at last.) She left.|2",
    'She said "Go!" He went.|2',
    "“Go.” ‘No.’ «Oui.» Then.|4",
    "„Ja.“ Er ging.|2",
    "« Oui ! » Elle rit. Ça va ?|3",
    '"Stop!" he cried. "Why?" she asked.|2',
    "Wait... what? Who knows.|2",
    "Mr. Smith met Dr. Jones and Mrs. Hale. They spoke.|2",
    "J. R. R. Tolkien wrote it. I read it.|2",
    "Apples, e.g. Granny Smith, i.e. green ones. Good.|2",
    "It is 3.14 or 1.000,5 and v1.2.3 at example.com. Yes.|2",
    "See No. 5 and fig. 33 there. No. I will not.|3",
    "The U.S. Army came at 5 p.m. Monday. It left.|2",
    "In 1990. Then in 2001. End.|3",
    "1. Wash it. 2. Dry it.|2",
    "Am 3. Mai kam er. Gut.|2",
    "Paid to Acme Inc. London, etc. Done it is. Yes.|2",
    "hello. how are you. fine.|1",
    "Dr.|1",
    "你好。再见！「天气很好。」他说。你呢？|5",
    "他说：“好。”“走吧。”|2",
    "３．１４です。そうです．はい。|3",
    "यह एक वाक्य है। दूसरा वाक्य॥ तीसरा।|3",
    "هل أنت بخير؟ نعم، أنا بخير۔ شكرا.|3",
    "Բարև։ Ինչպես ես։|2",
    "ሰላም። እንዴት ነህ።|2",
    "Привет. Как дела? Хорошо!|3",
    "A title\n\nThe text. More.|3",
    "one\nline. Two\r\nlines.|2",
    "One\r\n \t\r\nTwo\u2028\u2028Three|3",
    "One.\n\n* * *\n\nTwo.|2",
    "A - bee. - - - Cee.|2",
    "Hi! :-) Bye.|2",
]


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences(case: str) -> None:
    text, count = case.rsplit("|", 1)
    pieces = split_sentences(text, min_chars=0)
    assert len(pieces) == int(count), pieces


def test_pieces_are_the_text_itself() -> None:
    text = '"Stop!"  he\ncried.\tThen (at 3.5 s) silence…\n\nChapter 2\n\n你好。再见！ End'
    assert split_sentences(text, min_chars=0) == [
        '"Stop!" he cried.', "Then (at 3.5 s) silence…", "Chapter 2", "你好。", "再见！", "End",
    ]  # fmt: skip


def test_closing_quotes_stay_and_rules_between_paragraphs_go() -> None:
    assert split_sentences("« Oui ! » Elle rit. « Non. »", min_chars=0) == ["« Oui ! »", "Elle rit.", "« Non. »"]
    assert split_sentences("One.\n\n* * *\n\nTwo.") == ["One.", "Two."]
    assert split_sentences("One... - Two!\n\n--") == ["One...", "- Two!"]


def test_short_sentences_are_joined_with_the_next_but_for_the_first() -> None:
    assert split_sentences("Yes. No! It was a dark and stormy night. The rain fell in torrents.") == [
        "Yes.", "No! It was a dark and stormy night.", "The rain fell in torrents.",
    ]  # fmt: skip
    assert split_sentences("It was a dark and stormy night. Yes. No.") == [
        "It was a dark and stormy night.",
        "Yes. No.",
    ]
    assert split_sentences("你好。再见！好。", min_chars=4) == ["你好。", "再见！好。"]
    assert split_sentences("It was great. Thanks") == ["It was great.", "Thanks"]
    assert split_sentences("Well. Yes.\n\nNo.\nSo.") == ["Well.", "Yes.", "No.", "So."]
    assert split_sentences("Yes. No.", max_chars=7) == ["Yes.", "No."]
    long = "And this one is long"
    assert split_sentences(f"Long enough, I am. Ok. {long}.", 23, 10) == ["Long enough, I am.", "Ok.", f"{long}."]


@pytest.mark.parametrize(
    ("piece", "sentences"),
    [
        ("Hello there.\n", ["Hello there."]),
        ("Hello there. H", ["Hello there."]),
        ("Hello there. ", []),
        ("Hello there.", []),
        ("你好。今", ["你好。"]),
        ("Ask Dr.\n", []),
        ("A title\n\n", ["A title"]),
        ("One.\nand\nmore.\n", ["One.", "and more."]),
        ("Yes.\n...\nSo.\n", ["Yes.", "... So."]),
        ("x" * 501, ["x" * 250]),
    ],
)
def test_sentences_come_as_soon_as_they_are_certain(piece: str, sentences: list[str]) -> None:
    assert SentenceSplitter(whole_words=["<laugh>", "Ho. Ho"]).feed(piece) == sentences


def test_titles_stay_alone() -> None:
    text = "The house was empty by then.\n\nChapter 2\n\nIn it.\n\nMilk\n\nEggs"
    assert split_sentences(text) == ["The house was empty by then.", "Chapter 2", "In it.", "Milk", "Eggs"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aaa, bbb ccc; ddd, eee fff", ["aaa, bbb ccc;", "ddd, eee fff"]),
        ("aaa bbb, ccc ddd", ["aaa bbb,", "ccc ddd"]),
        ("aaa bbb — ccc ddd", ["aaa bbb —", "ccc ddd"]),
        ("aaa 1,500 ccc ddd", ["aaa 1,500", "ccc ddd"]),
        ("aaa bbb ccc ddd", ["aaa bbb", "ccc ddd"]),
        ("one is. two is, all", ["one is.", "two is, all"]),
        ("aaaaaaabbbbbbb", ["aaaaaaa", "bbbbbbb"]),
        ("天气很好，我们去公园吧，走吧朋友们", ["天气很好，我们去公园吧，", "走吧朋友们"]),
    ],
)
def test_long_sentences_are_cut_at_the_best_place(text: str, pieces: list[str]) -> None:
    assert split_sentences(text, max_chars=13, min_chars=0) == pieces


def test_no_crumbs_are_left() -> None:
    assert [len(piece) for piece in split_sentences("x" * 610, 300)] == [300, 155, 155]


@pytest.mark.parametrize(
    "unit",
    ["e\u0323\u0302\u0331", "👩\u200d👩\u200d👧", "🇬🇧", "👍🏽", "क्ष", "कि", "❤\ufe0f", "नी"],
    ids=["marks", "family", "flag", "skin tone", "conjunct", "vowel sign", "heart", "long vowel"],
)
@pytest.mark.parametrize("max_chars", [8, 9, 10, 11])
def test_what_reads_as_one_character_is_not_cut(unit: str, max_chars: int) -> None:
    unit = unicodedata.normalize("NFC", unit)
    pieces = split_sentences((unit + "a" + unit * 2) * 20, max_chars=max_chars, min_chars=0)
    assert len(pieces) > 10
    for piece in pieces:
        rest = piece.replace(unit, "")
        assert set(rest) <= {"a"}, piece


def test_endless_marks_are_cut_all_the_same() -> None:
    assert split_sentences("q" + "\u0301" * 100, max_chars=30)[0] == "q" + "\u0301" * 29


_atoms = st.sampled_from(
    [
        *" .!?…,;:—\"'“”«»()。！？।؟\n\r\t\x00\u200d\u0301\ufeff\ud800aAzß1é中한कि्😀🇬🇧",
        "\n\n",
        "\r\n",
        "...",
        *"\u0323\u0338\u1100\u1161\u11a8",
        "\u0301" * 70,
        "." * 25,
        "<uh... laugh>",
        "<uh",
        "... la",
        " etc. ",
        " No. ",
        " Dr. ",
        " 3.14 ",
        "word",
        " the ",
    ]
)
_texts = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=80), st.lists(_atoms, max_size=80).map("".join)
)


def _is_sayable(text: str) -> bool:
    return any(map(str.isalnum, text))


@given(_texts, st.integers(1, 60), st.integers(0, 30))
@example("a" + "\u0301" * 9 + "b", 3, 0)
def test_nothing_sayable_is_lost_and_nothing_is_too_long(text: str, max_chars: int, min_chars: int) -> None:
    if not _is_sayable(unicodedata.normalize("NFC", text)):
        with pytest.raises(ValueError, match="nothing to say"):
            split_sentences(text)
        return
    rest = normalise_text(text)
    for piece in split_sentences(text, max_chars, min_chars):
        assert len(piece) <= max_chars
        assert _is_sayable(piece)
        assert piece == piece.strip()
        left_out, found, rest = rest.partition(piece)
        assert found
        assert not _is_sayable(left_out)
    assert not _is_sayable(rest)


@given(
    _texts,
    st.lists(st.integers(1, 7), min_size=1, max_size=9),
    st.integers(1, 60),
    st.integers(0, 30),
    st.sampled_from([(), ("<uh... laugh>", "<uh...", "word", "E. e")]),
)
@example("<uh... laugh>" * 3, [1], 30, 0, ("<uh... laugh>", "<uh..."))
@example("One\r\ntwo.\r\n\r\nThree e\u0323\u0301", [1], 30, 0, ())
def test_pieces_change_nothing(
    text: str, sizes: list[int], max_chars: int, min_chars: int, whole_words: tuple[str, ...]
) -> None:
    splitter, sentences, rest = SentenceSplitter(max_chars, min_chars, whole_words), [], text
    for size in cycle(sizes):
        sentences += splitter.feed(rest[:size])
        rest = rest[size:]
        if not rest:
            break
    try:
        expected = split_sentences(text, max_chars, min_chars, whole_words)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            splitter.end()
        return
    assert sentences + splitter.end() == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two, three four", ("one two,", "three four")),
        ("aaaa bbbb", ("aaaa", "bbbb")),
        ("a bbbbbbbbbbb", ("a", "bbbbbbbbbbb")),
        ("abcd", ("ab", "cd")),
        ("你好", ("你", "好")),
        ("... a", None),
        ("q\u0301", None),
        ("<uh... laugh>", None),
        ("<uh... laugh> <uh... laugh>", ("<uh... laugh>", "<uh... laugh>")),
    ],
)
def test_in_two(text: str, parts: tuple[str, str] | None) -> None:
    assert in_two(text, ["<uh... laugh>"]) == parts


@given(_texts.filter(_is_sayable))
def test_normalised_text(text: str) -> None:
    try:
        normal = normalise_text(text)
    except ValueError:
        return
    assert normalise_text(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == " ".join(normal.split())
    assert normal.isprintable() or not {unicodedata.category(char) for char in normal} & {"Cc", "Cs"}
    normal.encode()


@pytest.mark.parametrize(
    "text",
    [
        " " + "\u0300" * 63 + "\u1161\u0323" + "a",
        "\u0958" + "\u0300" * 70 + "a",
        "a" + "\u0344" * 70 + "\u0323",
        "e\u0301" + "\u0300" * 70 + "\u1161" * 200 + "\u0323" * 70,
        "\u1100" + "\u1161\u11a8" * 100,
    ],
)
def test_what_was_normalised_stays_as_it_is(text: str) -> None:
    """Marks that hold others, letters that do, marks without a letter, and parts of syllables without number."""
    normal = normalise_text(text)
    assert unicodedata.is_normalized("NFC", normal)
    assert normalise_text(normal) == normal


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_marks_without_number_are_left_out(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """They are sorted, so none is settled before the last: a letter that has hundreds would never be."""
    text = "First o" + "\u0300" * 100 + "\u0323" * 100 + " is said here. And this is all there is."
    splitter = SentenceSplitter()
    found = [sentence for begin in range(0, len(text), size) for sentence in splitter.feed(text[begin : begin + size])]
    assert found + splitter.end() == ["First \u00f2" + "\u0300" * 62 + " is said here.", "And this is all there is."]
    assert "removed 137 control characters" in caplog.text


_words = st.lists(st.sampled_from(["rain", "fell", "on", "Mr. Hale", "3.14", "slowly"]), min_size=6, max_size=12)
_sentence = st.tuples(_words, st.sampled_from([".", "!", "?", "?!", "...", '."'])).map(
    lambda parts: "Then " + " ".join(parts[0]) + parts[1]
)


@given(st.lists(_sentence, min_size=1, max_size=8), st.sampled_from([" ", "\n", "\n\n", "  "]))
def test_plain_sentences_come_out_as_they_went_in(sentences: list[str], gap: str) -> None:
    pieces = split_sentences(gap.join(sentences))
    assert pieces == sentences
    assert [again for piece in pieces for again in split_sentences(piece)] == pieces


def test_control_characters_are_removed_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert normalise_text("a\x00b\x1b[0m\ufeff c\x7f\udc80") == "ab[0m c"
    assert caplog.messages == ["removed 5 control characters from the text"]
    assert normalise_text("\ta\x0b\u3000e\u0301\u200db\x85") == "a é\u200db"


@pytest.mark.parametrize("text", ["", " \n\t", "...", "?!", "😀", "\x00", "\u200b", "— * —", "\u0301"])
def test_nothing_to_say(text: str) -> None:
    for function in (normalise_text, split_sentences):
        with pytest.raises(ValueError, match=r"nothing to say: no letter or digit in .*; pass some words"):
            function(text)


@pytest.mark.parametrize("limits", [(0, 5), (-1, 0), (5, -1)])
def test_impossible_limits(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"max_chars must be at least 1 .* not -?\d and -?\d"):
        split_sentences("Hi.", *limits)


@pytest.mark.parametrize(
    "unit", ["a. ", "x", "!", "a b; ", "🇬🇧", "q\u0301", "你好。", "a.b", '." ', "a\n\n", "( ", "\u0301", ".\"'", " \n"]
)
def test_long_texts(unit: str) -> None:
    """100 000 characters of anything. Work that grew with the square would take minutes and be noticed."""
    text = (unit * 100_000)[:99_999] + "a"
    pieces = split_sentences(text)
    assert max(map(len, pieces)) <= MAX_CHARS
    assert sum(map(str.isalnum, text)) <= sum(sum(map(str.isalnum, piece)) for piece in pieces)
