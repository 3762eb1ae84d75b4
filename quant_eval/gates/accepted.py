"""The accepted evaluations as a file: by kind of machine the first one, for ever, and the last one; and a log of all.

Another device, or other instructions of the CPU, round differently, and speech decoheres from there: each kind of
machine is held against its own. It judges nothing: see `history.py`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ...core.lock import locked
from ..results import Document, Verdict
from .observed import AcceptedError, Observed, check_comparable, check_observed, load_document, write_document

SCHEMA_VERSION = 3
"""1 and 2 were of one evaluation each."""
_PATIENCE_S, _LOOK_S = 10.0, 0.05
"""Another accept takes a fraction of a second."""
_WHAT, _RENEW = "accepted evaluations", "Begin another file with `miso-eval accept`"


def kind_text(kind: tuple[str, str]) -> str:
    """A kind of machine, for people."""
    return f"{kind[0]} ({kind[1]})"


class Entry(Document):
    """One kind of machine.

    Attributes:
        anchor: The first evaluation that was accepted; no later one replaces it, so that many small steps add up.
        accepted: The last one.
    """

    anchor: Observed
    accepted: Observed


class Acceptance(Document):
    """One line of the log.

    Attributes:
        date: ISO 8601, UTC.
        device: Of the machine.
        instructions: Of the machine.
        created: Of the evaluation.
        manifest_sha256: Of the bundle.
        verdict: Of the evaluation, the history among its gates.
        forced: Whether it was accepted in spite of that.
    """

    date: str
    device: str
    instructions: str
    created: str
    manifest_sha256: str
    verdict: Verdict | None
    forced: bool


class Accepted(Document):
    """The file. `log` only grows."""

    schema_version: int = SCHEMA_VERSION
    entries: list[Entry]
    log: list[Acceptance]

    def of(self, kind: tuple[str, str]) -> Entry | None:
        """Of one kind of machine, or None."""
        return next((entry for entry in self.entries if entry.accepted.kind == kind), None)

    def kinds(self) -> str:
        """The kinds of machine that it has, for people."""
        return "; ".join(kind_text(entry.accepted.kind) for entry in self.entries)

    def forced(self) -> str | None:
        """That some were accepted by force, in one sentence; None if none was."""
        forced = [each for each in self.log if each.forced]
        if not forced:
            return None
        last = forced[-1]
        return (
            f"{len(forced)} of {len(self.log)} accepted evaluations were accepted by force, the last on "
            f"{last.date[:10]} with verdict {last.verdict or 'none'}"
        )


def load_accepted(path: Path) -> Accepted:
    """Read what `accept_into` wrote.

    Raises:
        FileNotFoundError: If it is not there.
        AcceptedError: If it is something else, damaged, or of another schema.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no accepted evaluation. Write one with `miso-eval accept`.")
    return load_document(path, Accepted, SCHEMA_VERSION, _WHAT, _RENEW, _check)


def _check(accepted: Accepted) -> None:
    for entry in accepted.entries:
        check_observed(entry.anchor)
        check_observed(entry.accepted)
        if entry.anchor.kind != entry.accepted.kind:
            raise ValueError("an anchor is of another kind of machine than what was accepted after it")
    kinds = [entry.accepted.kind for entry in accepted.entries]
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError("there must be one entry for each kind of machine")


def accept_into(
    path: Path, observed: Observed, judge: Callable[[Accepted | None], Verdict | None], *, force: bool = False
) -> Acceptance:
    """Make `observed` the accepted evaluation of its kind of machine, in the file `path`, which may not be there yet.

    Args:
        path: The file.
        observed: The evaluation.
        judge: Its verdict, given what the file holds.
        force: Accept it whatever that is.

    Returns:
        What was added to the log.

    Raises:
        AcceptedError: If the verdict is FAIL, MISSING or None without `force`; if the file is of another model, corpus
            or settings, cannot be read or written, or is being written. It is left as it was then.
    """
    with _alone(path):
        before = load_accepted(path) if path.exists() else None
        for entry in before.entries if before is not None else ():
            check_comparable(observed.subject, entry.accepted.subject)
        verdict = judge(before)
        is_good = verdict in ("PASS", "INCONCLUSIVE")
        if not is_good and not force:
            what = f"its verdict is {verdict}" if verdict is not None else "nothing in it was judged"
            raise AcceptedError(f"it is not accepted: {what}. With --force it is, and {path} says so for ever")
        acceptance = Acceptance(
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            device=observed.device,
            instructions=observed.instructions,
            created=observed.created,
            manifest_sha256=observed.manifest_sha256,
            verdict=verdict,
            forced=not is_good,
        )
        write_document(_with(before, observed, acceptance), path)
    return acceptance


def _with(before: Accepted | None, observed: Observed, acceptance: Acceptance) -> Accepted:
    entries = list(before.entries) if before is not None else []
    for index, entry in enumerate(entries):
        if entry.accepted.kind == observed.kind:
            entries[index] = Entry(anchor=entry.anchor, accepted=observed)
            break
    else:
        entries.append(Entry(anchor=observed, accepted=observed))
    return Accepted(entries=entries, log=[*(before.log if before is not None else ()), acceptance])


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One accept at a time: the later of two adds to what the earlier has written."""
    lock, until = path.with_name(f".{path.name}.lock"), time.monotonic() + _PATIENCE_S
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while not _taken(stack, lock):
                if time.monotonic() > until:
                    raise AcceptedError(f"{path}: another process is writing it; wait for it, and try again")
                time.sleep(_LOOK_S)
        except OSError as error:
            raise AcceptedError(
                f"{path}: cannot be written ({error.strerror or error}); choose another place"
            ) from error
        yield


def _taken(stack: ExitStack, lock: Path) -> bool:
    try:
        stack.enter_context(locked(lock))
    except BlockingIOError:
        return False
    return True
