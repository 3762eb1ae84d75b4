"""An evaluation in several processes that is asked to end: its processes end too."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from miso_gguf.quant_eval.run.runner import _ended_with_us

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


def _sleeping() -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    process.start()
    return process


def test_processes_that_were_started_meanwhile_are_ended() -> None:
    others = _sleeping()
    with pytest.raises(KeyboardInterrupt), _ended_with_us():  # noqa: PT012
        ours = _sleeping()
        raise KeyboardInterrupt
    ours.join(30)
    assert (ours.exitcode, others.is_alive()) == (-signal.SIGTERM, True)
    others.terminate()
    others.join(30)


def test_a_worker_cleans_up_and_ends() -> None:
    """Without a next job, and without a traceback."""
    code = (
        "import signal, sys\n"
        "from miso_gguf.quant_eval.run.runner import _worker\n"
        "def job():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "_worker(job)\n"
        "print('next', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "cleaned\n", "")
