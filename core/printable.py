"""Words of strangers, for people."""


def printable(text: str) -> str:
    """The text, or its `repr` if it has characters that a terminal obeys."""
    return text if text.isprintable() else repr(text)
