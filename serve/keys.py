"""The keys of a server: from a file, or from the environment, so that no list of processes shows them."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "MISO_API_KEY"


def read_keys(file: Path | None) -> tuple[str, ...]:
    """One key a line of `file`, without blank lines and `#` comments; without a file what the environment says.

    Raises `ValueError` on a file that cannot be read or has no key, or a key that no header can carry; the message does
    not show it.
    """
    if file is None:
        key = os.environ.get(VARIABLE, "").strip()
        return (_checked(key, VARIABLE),) if key else ()
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
        if os.name == "posix" and file.stat().st_mode & stat.S_IROTH:
            log.warning("%s: every user of this machine can read the keys in it: chmod 600 %s", file, file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}, expected a file with one key a line") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is no text, expected one key a line") from error
    named = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not named:
        raise ValueError(f"{file}: has no key, expected one a line")
    return tuple(_checked(key, f"{file}, line {number}") for number, key in named)


def _checked(key: str, where: str) -> str:
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"{where}: a key is of ASCII letters, digits and signs, without blanks")
    return key
