"""A process that loads and speaks for a long time: memory, threads and open files stay as they are."""

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from speaking import load_tts

from miso_gguf import MisoTTS, SpeechOptions
from miso_gguf.core.errors import BundleError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MB = 1 << 20
MINUTE_FRAMES = 750


@pytest.fixture(autouse=True)
def only_what_is_new_is_garbage() -> Iterator[None]:
    """Collecting takes long in a process that has loaded PyTorch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Usage(NamedTuple):
    threads: int
    """Of the process, those of native libraries too."""
    files: int
    resident_bytes: int


def usage() -> Usage:
    gc.collect()
    # What is free and merely kept by the allocator is given back: late in a long run that alone was 17 MB.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Usage(len(list(Path("/proc/self/task").iterdir())), files, pages * os.sysconf("SC_PAGE_SIZE"))


def assert_no_growth(used: list[Usage], allowed_bytes: int) -> None:
    """The least of the second half against that of the first.

    The allocator keeps now more, now less, and a thread that has been joined is listed for a moment longer.
    """
    first, second = used[: len(used) // 2], used[len(used) // 2 :]
    before, after = (Usage(*map(min, zip(*half, strict=True))) for half in (first, second))
    assert (after.threads, after.files) == (before.threads, before.files)
    assert after.resident_bytes - before.resident_bytes < allowed_bytes


def assert_flat(work: Callable[[int], object], turns: int, warm_up: int, allowed_bytes: int) -> None:
    used = []
    for turn in range(turns):
        work(turn)
        used.append(usage())
    assert_no_growth(used[warm_up:], allowed_bytes)


@pytest.mark.long
@linux
def test_fifty_load_and_close_cycles(bundle: Path) -> None:
    """Each loads the 20 MB of the tiny model at F32, speaks and closes: what is kept of 45 of them is none of it."""
    options = SpeechOptions(max_seconds=0.16)

    def cycle(turn: int) -> None:
        with MisoTTS.load(bundle, ("f32", "q4_k_m")[turn % 2], threads=1, gpu_layers=0) as tts:
            assert tts.generate("Hello there.", options=options).samples.size == 2 * 1920

    assert_flat(cycle, turns=50, warm_up=6, allowed_bytes=8 * MB)


@linux
def test_loads_that_fail_keep_nothing(bundle: Path, tmp_path: Path) -> None:
    """In each stage: the decoder, the backbone, the codec."""
    stages = []
    for part in ("decoder-F32.gguf", "backbone-F32.gguf", "mimi-decoder.onnx"):
        directory = tmp_path / part
        directory.mkdir()
        for path in bundle.iterdir():
            if path.is_file():
                (directory / path.name).hardlink_to(path)
        (victim,) = directory.glob(f"*{part}")
        content = bytearray(victim.read_bytes())
        # Names of tensors, or of an operation: a file of the same size that is refused when it is loaded.
        for name in (b"attn_q.weight", b"MatMul"):
            content = content.replace(name, name[::-1])
        victim.unlink()
        victim.write_bytes(content)
        stages.append(directory)

    def fail(turn: int) -> None:
        with pytest.raises(BundleError):
            MisoTTS.load(stages[turn % 3], "f32", threads=1, gpu_layers=0)

    assert_flat(fail, turns=36, warm_up=6, allowed_bytes=8 * MB)


@linux
def test_streams_that_are_left_keep_nothing(bundle: Path) -> None:
    before = set(threading.enumerate())
    with load_tts(bundle) as tts:

        def leave(turn: int) -> None:
            stream = tts.stream("Hello there, all of you. And some more.", options=SpeechOptions(seed=turn))
            for _ in range(turn % 4):
                next(stream)
            if turn % 2:
                stream.close()

        assert_flat(leave, turns=60, warm_up=10, allowed_bytes=8 * MB)
    assert set(threading.enumerate()) <= before


@linux
def test_refusals_keep_nothing(bundle: Path) -> None:
    """A user's mistakes, again and again."""
    with load_tts(bundle, "q4_k_m") as tts:

        def mistake(turn: int) -> None:
            with pytest.raises(ValueError, match="nothing to say"):
                tts.generate("...")
            with pytest.raises(ValueError, match="max_frames must be 1 to"):
                tts.engine.batcher.admit(replace(tts.utterance("One."), max_frames=9999))

        assert_flat(mistake, turns=40, warm_up=10, allowed_bytes=4 * MB)


def speak(tts: MisoTTS, laps: int, lap_frames: int) -> list[Usage]:
    """Streams long texts, one after the other; what is in use after each lap."""
    text = " ".join(f"This is sentence number {index} of a long story that goes on." for index in range(40))
    spoken, seeds = 0, count()
    used: list[Usage] = []
    while len(used) < laps:
        with tts.stream(text, options=SpeechOptions(seed=next(seeds))) as stream:
            for chunk in stream:
                assert np.isfinite(chunk.samples).all()
                spoken += len(chunk.samples) // 1920
                if spoken >= (len(used) + 1) * lap_frames:
                    used.append(usage())
                if len(used) == laps:
                    break
    return used


@pytest.mark.long
@linux
def test_half_a_minute_of_speech(bundle: Path) -> None:
    with load_tts(bundle, "q4_k_m") as tts:
        assert_no_growth(speak(tts, 4, MINUTE_FRAMES // 8), 6 * MB)


@pytest.mark.slow
@linux
def test_half_an_hour_of_speech(bundle: Path) -> None:
    """After the first three minutes, memory stays as it is to the end."""
    with load_tts(bundle, "q4_k_m") as tts:
        used = speak(tts, 30, MINUTE_FRAMES)
    assert used[-1].resident_bytes - used[2].resident_bytes < 6 * MB
    assert_no_growth(used[2:], 6 * MB)
