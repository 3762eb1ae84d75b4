"""What seldom happens to a batcher: a call that nobody wants any more, a thread that does not start, no room."""

import threading
from concurrent.futures import CancelledError

import pytest
from elsewhere import Elsewhere, soon
from scripted_models import ScriptedModels, scripted, taken

from miso_gguf.core.errors import Busy
from miso_gguf.runtime.lm.batcher import Batcher


def test_closing_while_a_call_lies_there_that_nobody_wants_any_more() -> None:
    """Whoever asked was interrupted, and closes: that a call was taken back is nobody's error."""
    begun, go_on = threading.Event(), threading.Event()
    batcher = Batcher(ScriptedModels())

    def slow() -> bool:
        begun.set()
        return go_on.wait(20)

    first = Elsewhere(batcher.run, slow)
    assert begun.wait(20)
    second = Elsewhere(batcher.run, lambda: None)
    assert soon(lambda: len(batcher._asked) == 1)
    batcher._asked[0].cancel()
    closing = Elsewhere(batcher.close)
    go_on.set()
    closing.result()
    assert first.result()
    with pytest.raises(CancelledError):
        second.result()


def test_a_thread_that_could_not_be_started_is_started_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with scripted(1) as (models, batcher):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with pytest.raises(RuntimeError, match="start new thread"):
                batcher.admit(models.script(5).utterance)
            with Batcher(ScriptedModels()) as other, pytest.raises(RuntimeError, match="start new thread"):
                other.run(lambda: None)
        script = models.script(5)
        assert Elsewhere(taken, batcher.admit(script.utterance)).result() == script.alone


def test_who_has_ended_is_in_nobodys_way() -> None:
    """Where nobody may wait: the sequence of a cancelled ticket is free, even before the batcher's next turn."""
    with scripted(1, waiting=0) as (models, batcher):
        models.gate.shut()  # before it is admitted: it could be over before the gate was shut
        ticket, after = batcher.admit(models.script(200).utterance, buffer=300), models.script(5)
        models.gate.let(5)
        taken(ticket, 2)
        try:
            with pytest.raises(Busy):
                batcher.admit(after.utterance)
            ticket.cancel()
            following = batcher.admit(after.utterance)
            with pytest.raises(Busy):
                batcher.admit(after.utterance)
        finally:
            models.gate.open()
        assert taken(following) == after.alone
