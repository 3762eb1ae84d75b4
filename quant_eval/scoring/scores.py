"""The scores that one instrument gives, each asked for once and kept for a later run. It compares nothing."""

import hashlib
from collections.abc import Callable

from ...core.errors import MisoError
from ..instruments.instrument import Heard, Instrument
from ..run.record import Record, RecordKey
from ..run.record_store import Records
from ..run.source_hash import code_sha256
from .clips import SpokenClip

SCORE = "score"
"""What the stage of these records begins with, and what their value is called."""
_MEASURING = ("quant_eval/instruments", "quant_eval/scoring")
"""What scores, and what makes the noise and the voice that it hears."""


class ScoreError(MisoError):
    """An instrument failed."""


class Scores:
    """Of one instrument."""

    def __init__(self, instrument: Instrument, store: Records, progress: Callable[[], None] = lambda: None) -> None:
        """Kept in `store`; `progress` is called for each score."""
        self.instrument, self._store, self._progress = instrument, store, progress
        made_by = f"{instrument.by} {code_sha256(_MEASURING)}"
        self._digest = hashlib.sha256(made_by.encode()).hexdigest()[:10]
        self._found: dict[RecordKey, float | None] = {}

    def of(self, clip: SpokenClip, heard: Callable[[], Heard], change: str = "") -> float | None:
        """The score of a clip, or of what became of it by a `change` of that name; None if it has none.

        Args:
            clip: Identifies it.
            heard: Gives its sound, if that is needed.
            change: A word; "" for the clip as it is.

        Raises:
            ScoreError: The instrument failed: it names clip and reason.
        """
        stage, level = f"{SCORE}-{self.instrument.name}", f"{clip.key}-{self._digest}{change}"
        key = RecordKey(stage, level, clip.prompt, clip.seed)
        if key not in self._found:
            known = self._store.get(key) if self.instrument.is_kept else None
            self._found[key] = self._asked(clip, heard()) if known is None else known.values.get(SCORE)
            if self.instrument.is_kept and known is None:
                value = self._found[key]
                self._store.append(Record(*key, {} if value is None else {SCORE: value}))
            self._progress()
        return self._found[key]

    def _asked(self, clip: SpokenClip, heard: Heard) -> float | None:
        try:
            return self.instrument.score(heard)
        except (Exception, SystemExit) as error:  # another's program: whatever it raises, the evaluation goes on
            said = str(error) or type(error).__name__
            raise ScoreError(f"{self.instrument.name} failed on {clip.level}, {clip.text[:40]!r}: {said}") from error
