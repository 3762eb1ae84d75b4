"""Closing an engine: nothing is freed under a call, nor in another order than it has to be."""

import threading
import time
from pathlib import Path

import pytest
from elsewhere import Elsewhere
from speaking import load_engine

from miso_gguf import MisoError


def test_closed_from_the_thread_that_computes_nothing_goes_under_its_feet(bundle: Path) -> None:
    """As the garbage collector may do, which comes by anywhere: what is being computed is freed when it has ended."""
    engine = load_engine(bundle)

    def closing() -> int:
        engine.close()
        time.sleep(0.05)
        return engine.backbone.shared(0, [])

    assert engine.batcher.run(closing) == 0
    engine.close()
    with pytest.raises(MisoError, match="this model is closed"):
        engine.backbone.shared(0, [])


def test_two_who_close_at_once_free_in_order(bundle: Path) -> None:
    engine, begun, go_on, freed = load_engine(bundle), threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        go_on.wait(20)
        freed.append("what needs the first")

    engine._stack.callback(freed.append, "the first")
    engine._stack.callback(slow)
    one = Elsewhere(engine.close)
    assert begun.wait(20)
    other = Elsewhere(engine.close)
    assert not other.is_done_after(0.02)
    go_on.set()
    one.result()
    other.result()
    assert freed == ["what needs the first", "the first"]
