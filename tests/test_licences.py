"""What our texts say of other people's licences: only what stands in them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    path
    for pattern in ("*", "docs/*.md", "models/**/*", "runtime/**/*", "convert/**/*", "quant_eval/**/*", "native/*")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix in ("", ".md", ".py", ".toml", ".html", ".j2", ".css", ".js")
)

# The licence of Miso's weights is MIT with one clause on attribution; upstream's README asks for the rest.
NOT_IN_A_LICENCE = r"consent|watermark|impersonat|whose owners agreed|voice cloning"
SAYS_SO = re.compile(
    rf"licen[cs]e\b(?:(?!says nothing)[^.])*(?:{NOT_IN_A_LICENCE})|(?:{NOT_IN_A_LICENCE})[^.]*\blicen[cs]e\b[^.]*\b(?:"
    r"demand|require|want|ask|forbid|oblige)",
    re.IGNORECASE,
)


def one_line(path: Path) -> str:
    return " ".join(path.read_text("utf-8").split())


def test_the_texts_are_found() -> None:
    assert {"README.md", "LICENSE", "voice.py", "bundle.md"} <= {path.name for path in TEXTS}


@pytest.mark.parametrize(
    "sentence",
    [
        "Clone only voices whose owners agreed: the licence of the weights demands it.",
        "A Modified MIT licence with terms of its own on consent for voice cloning and on watermarking.",
        "Consent is what the license requires.",
    ],
)
def test_what_would_be_found(sentence: str) -> None:
    assert SAYS_SO.search(sentence)


def test_no_text_puts_into_the_licence_what_is_not_in_it() -> None:
    found = {path.relative_to(ROOT).as_posix(): match[0] for path in TEXTS if (match := SAYS_SO.search(one_line(path)))}
    assert found == {}


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_the_clause_is_said(name: str) -> None:
    text = one_line(ROOT / name)
    for part in ("one clause more", "50 million monthly users", "10 million US dollars", '"Miso Labs" in'):
        assert part in text
    assert re.search(r"[Uu]pstream's README[^.]* asks not to impersonate people", text)
