"""A study as one HTML page that opens offline, with its sounds inside. The page does not know which level is which."""

import base64
import hashlib
import json
from importlib import resources

from ..report.html import page_template, template
from .excerpts import Encoded
from .study import Key

_TRIAL_S, _TAKE_S = 12.0, 12.0
"""That a listener takes, about: for what is said of the length."""


def page(key: Key, texts: dict[str, str], sounds: Encoded) -> str:
    """The whole page. The same arguments give the same bytes.

    Args:
        key: Of the study.
        texts: What is said, by item.
        sounds: All that the key names.

    Raises:
        MisoError: The extra `eval` is not installed.
    """
    script = _own("abx.js")
    takes = sum(len(item.takes) for item in key.items)
    text: str = page_template("abx.html.j2", _own).render(
        eyebrow="Listening test",
        trials=len(key.trials),
        items=len(key.items),
        minutes=round((len(key.trials) * _TRIAL_S + takes * _TAKE_S) / 60),
        is_lossy=sounds.kind == "MP3",
        style=template("report.css") + _own("abx.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        # Inside a script element only "<" could end it; JSON may write it as an escape anywhere.
        data=json.dumps(_shown(key, texts, sounds), separators=(",", ":")).replace("<", "\\u003c"),
    )
    return text


def _shown(key: Key, texts: dict[str, str], sounds: Encoded) -> dict[str, object]:
    """What the page gets to know: numbers of sounds, and no more of what they are."""
    first = [*(item.reference for item in key.items), *(trial.sounds[0] for trial in key.trials)]
    return {
        "id": key.study,
        "trials": [{"id": trial.id, "sounds": trial.sounds} for trial in key.trials],
        "items": [
            {"id": item.id, "text": texts[item.id], "reference": item.reference, "takes": sorted(item.takes, key=int)}
            for item in key.items
        ],
        "volume": first[0],
        "sounds": sounds.content,
    }


def _own(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text("utf-8")
