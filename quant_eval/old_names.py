"""What files of earlier versions call things, and what this version calls them: the only place that knows both.

It renames, and checks nothing.
"""

from typing import Any

OLD_OBSERVATIONS_NAMES = ("baseline.json",)
"""What the file beside a report was called."""

_KEYS = {
    "baseline": "reference",
    "layers": "stages",
    "baseline_audio": "reference_audio",
    "baseline_contour": "reference_contour",
}
_STAGES = {"coupled": "one-step"}


def renamed(document: Any) -> Any:
    """A parsed `results.json` or accepted evaluation of schema 1 as one of schema 2; all others as they are."""
    if not isinstance(document, dict) or document.get("schema_version") != 1:
        return document
    found = _with_new_keys(document) | {"schema_version": 2}
    if "subject" in found:
        found["subject"] = _with_new_keys(found["subject"])
    if isinstance(found.get("clips"), list):
        found["clips"] = [_with_new_keys(clip) for clip in found["clips"]]
    if isinstance(found.get("stages"), list):
        found["stages"] = [new_stage(stage) for stage in found["stages"]]
    return found


def new_stage(name: Any) -> Any:
    """A stage's name of today."""
    return _STAGES.get(name, name) if isinstance(name, str) else name


def _with_new_keys(part: Any) -> Any:
    return {_KEYS.get(key, key): value for key, value in part.items()} if isinstance(part, dict) else part
