# ruff: noqa: RUF001  (marks that resemble others are what is tested)
"""Sentences of many scripts, and what holds for any text: nothing that can be said is lost, nothing is too long."""

import logging
import math
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miso_gguf.runtime.synthesis.sentences import MAX_CHARS, normalise_text, speech_cap_frames, split_sentences

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
    assert split_sentences("One... - Two!\n\n--") == ["One... - Two!"]


def test_short_sentences_are_joined() -> None:
    assert split_sentences("Yes. No! It was a dark and stormy night. The rain fell in torrents.") == [
        "Yes. No! It was a dark and stormy night.", "The rain fell in torrents.",
    ]  # fmt: skip
    assert split_sentences("It was a dark and stormy night. Yes. No.") == ["It was a dark and stormy night. Yes. No."]
    assert split_sentences("你好。再见！", min_chars=4) == ["你好。再见！"]
    assert split_sentences("It was great. Thanks") == ["It was great. Thanks"]
    assert split_sentences("Yes.\n\nNo.") == ["Yes. No."]
    assert split_sentences("Yes. No.", max_chars=7) == ["Yes.", "No."]


def test_a_short_sentence_goes_backward_where_the_next_has_no_room() -> None:
    long = "And this one is long"
    assert split_sentences(f"Long enough, I am. Ok. {long}.", 23, 10) == ["Long enough, I am. Ok.", f"{long}."]


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
    assert [len(piece) for piece in split_sentences("x" * 610, 300)] == [204, 203, 203]


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
        *" .!?…,;:—\"'“”«»()。！？।؟\n\t\x00\u200d\u0301\ufeff\ud800aAzß1é中한कि्😀🇬🇧",
        "\n\n",
        "...",
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


def test_the_cap() -> None:
    assert speech_cap_frames("") == math.ceil(3 * 12.5)
    assert speech_cap_frames("Hi") == math.ceil(3 * 12.5)
    # 100 letters, 100 words of two: 6.5 s read briskly.
    assert speech_cap_frames("ab " * 50) == math.ceil((1.5 + 4 * 6.5) * 12.5)
    assert speech_cap_frames("ab " * 50, 25.0) == math.ceil((1.5 + 4 * 6.5) * 25)
    assert speech_cap_frames("你" * 10 + "1" * 10 + "." * 10 + "%😀" * 5 + "A" * 10 + "ب" * 10) == math.ceil(
        (1.5 + 4 * (2.5 + 4 + 2 + 4 + 2 + 2)) * 12.5
    )


@pytest.mark.parametrize(
    ("text", "slow_s"),
    [
        # A word a second is the slowest that users report; digits are spelled out.
        ("The quick brown fox jumps over the lazy dog near the river bank.", 13),
        ("Call 555 123 4567 now.", 13),
        ("HTTP, JSON and USB.", 10),
        ("今天天气很好，我们去公园散步吧。", 15),
        ("Today is 2026-06-01, 50% off!", 12),
    ],
)
def test_the_cap_is_above_slow_speech_and_below_a_runaway(text: str, slow_s: float) -> None:
    assert slow_s <= speech_cap_frames(text) / 12.5 < 5 * slow_s
