"""Words and characters of many scripts, and how many of them were misheard."""
# ruff: noqa: RUF001  (letters of other scripts that look like Latin ones)

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miso_gguf.quant_eval.instruments.transcripts import _is_spaceless, edit_distance, is_latin, tokens, word_error_rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("Don't stop \N{EM DASH} it\N{RIGHT SINGLE QUOTATION MARK}s 'fine'.", ["don't", "stop", "it's", "fine"]),
        ("don\u00b4t don`t don\u2032t", ["don't"] * 3),
        ("the dogs' 'tis rock 'n' roll", ["the", "dogs", "tis", "rock", "n", "roll"]),
        ("well-known 3.5 snake_case", ["well", "known", "3", "5", "snake", "case"]),
        ("\N{LATIN SMALL LIGATURE FI}ne Stra\N{LATIN SMALL LETTER SHARP S}e", ["fine", "strasse"]),
        ("soft\u00adhyphen \ufeffmark zero\u200bwidth", ["softhyphen", "mark", "zero", "width"]),
        ("1\ufe0f\u20e3 \u2764\ufe0f two\u0301", ["1", "tw\u00f3"]),
        (" \u0301 \u0301alone", ["alone"]),
        ("... -- '' !", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Hindi: "I learn Hindi." The vowel signs are marks, and part of their words.
        ("मैं हिन्दी सीखता हूँ।", ["मैं", "हिन्दी", "सीखता", "हूँ"]),
        # Tamil, Bengali
        ("நான் தமிழ் பேசுகிறேன்.", ["நான்", "தமிழ்", "பேசுகிறேன்"]),
        ("আমি বাংলায় কথা বলি।", ["আমি", unicodedata.normalize("NFC", "বাংলায়"), "কথা", "বলি"]),
        # Arabic with vowel signs; a lengthened word; the question mark and comma are its own.
        ("مُحَمَّدٌ كَتَبَ الدَّرْسَ؟", ["مُحَمَّدٌ", "كَتَبَ", "الدَّرْسَ"]),
        ("ســـلام، ٣ مرات", ["سلام", "3", "مرات"]),
        # Persian: a joiner inside a word
        ("می\u200cخواهم", ["میخواهم"]),
        # Hebrew with points
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        # Russian, Greek with a final sigma, Turkish with a dotted capital
        ("Съешь ещё булок!", ["съешь", "ещё", "булок"]),
        ("ΟΔΟΣ οδος", ["οδοσ", "οδοσ"]),
        ("İstanbul", ["i\u0307stanbul"]),
        # Korean has spaces, and its syllables may be spelled in parts.
        ("나는 학교에 간다.", ["나는", "학교에", "간다"]),
        (unicodedata.normalize("NFD", "학교"), ["학교"]),
        ("Việt Nam", ["việt", "nam"]),
    ],
)
def test_words_of_scripts_with_spaces(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好。", ["今", "天", "天", "气", "很", "好"]),
        ("我有3个 apple，ＯＫ？", ["我", "有", "3", "个", "apple", "ok"]),
        ("コーヒーを飲みます。", ["コ", "ー", "ヒ", "ー", "を", "飲", "み", "ま", "す"]),
        ("ｶﾞ人々〇", ["ガ", "人", "々", "〇"]),
        # Thai: "good water"; marks stay on their letters.
        ("ดีที่สุด", ["ดี", "ที่", "สุ", "ด"]),
        ("ສະບາຍດີ", ["ສ", "ະ", "ບ", "າ", "ຍ", "ດີ"]),
        ("ភាសា", ["ភា", "សា"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ร้อน ๒๕ องศา"[:7], ["ร้", "อ", "น", "25"]),
    ],
)
def test_characters_of_scripts_without(text: str, expected: list[str]) -> None:
    assert tokens(text) == [unicodedata.normalize("NFKC", token) for token in expected]


def test_spaceless_scripts_are_those_of_the_unicode_database() -> None:
    regex = pytest.importorskip("regex")
    east = ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi")
    south = ("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "Tai_Tham", "Tai_Viet", "New_Tai_Lue", "Javanese", "Balinese")
    pattern = regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in (*east, *south)) + "]")
    letters = [
        chr(code)
        for code in range(0x10000)
        if unicodedata.category(chr(code))[0] == "L" and unicodedata.normalize("NFKC", chr(code)) == chr(code)
    ]
    both = "\u3006\u303b\u303c\u30fc\ua9cf"  # used with several scripts, or with a name of its own
    assert [x for x in letters if _is_spaceless(x) != bool(pattern.match(x)) and x not in both] == []


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("the cat sat on the mat", 0),
        ("The cat, sat on the MAT!", 0),
        ("the cat sat on mat", 1),
        ("the big cat sat on the mat", 1),
        ("a cat sat on the mat", 1),
        ("cat the sat on the mat", 2),
        ("", 6),
        ("one two three four five six seven eight nine", 9),
    ],
)
def test_error_rate(heard: str, expected: int) -> None:
    assert word_error_rate("The cat sat on the mat.", heard) == pytest.approx(100 * expected / 6)


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("मैं हिन्दी सीखता हूँ।", "मैं हिन्दी सीखती हूँ", 100 / 4),
        ("今天天气很好。", "今天天氣很好", 100 / 6),
        ("今天天气很好。", "今 天 天 气 很 好", 0),
        ("ดีที่สุด", "ดีที่สุ", 100 / 4),
        ("caf\u00e9", "cafe\u0301", 0),
        ("caf\u00e9", "cafe", 100),
        ("كَتَبَ", "كُتِبَ", 100),
    ],
)
def test_error_rate_in_other_scripts(text: str, heard: str, expected: float) -> None:
    assert word_error_rate(text, heard) == pytest.approx(expected)


def test_a_text_without_words() -> None:
    with pytest.raises(ValueError, match=r"'\.\.\.' has no words"):
        word_error_rate("...", "hello")


@given(st.text())
@example("0`\U00020000")
def test_any_text_has_tokens_that_do_not_change(text: str) -> None:
    found = tokens(text)
    assert tokens(" ".join(found)) == found
    assert all(found)


@pytest.mark.parametrize(
    ("text", "expected"), [("Hello, Zo\u00eb 3!", True), ("...", True), ("да", False), ("a今", False)]
)
def test_latin(text: str, expected: bool) -> None:
    assert is_latin(text) is expected


def slow_distance(a: list[str], b: list[str]) -> int:
    """By definition: the best of all ways to begin."""
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


SHORT = st.lists(st.sampled_from("abc"), max_size=5)


@given(SHORT, SHORT)
def test_edit_distance(a: list[str], b: list[str]) -> None:
    assert edit_distance(a, b) == slow_distance(a, b) == edit_distance(b, a)
