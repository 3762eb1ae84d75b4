"""What a user is to know and nobody need be warned of: logged as a warning, so that it is seen, and called a note."""

from typing import Final

NOTE: Final = {"is_note": True}
"""Passed as `extra` of a log record."""


def is_note(record: object) -> bool:
    """Whether a log record was made with `NOTE`."""
    return bool(getattr(record, "is_note", False))
