"""The interpreter does not end under a call of the codec: ONNX Runtime would end the process, by SIGABRT."""

import os
import subprocess
import sys

PROGRAM = """
import sys, threading, time
import numpy as np
from miso_gguf.runtime.codec.thread import CodecThread

class Slow:
    def decode_together(self, streams, codes):
        begun.set()
        time.sleep(0.3)
        print("whole", flush=True)
        return [np.zeros(2, np.float32)]

def decode():
    try:
        thread.decode(object(), np.zeros((1, 3), np.int64))
    except Exception as error:
        print(error, flush=True)

begun, thread = threading.Event(), CodecThread(Slow())
threading.Thread(target=decode, daemon=True).start()
begun.wait()
sys.exit(3)
"""


def test_the_interpreter_waits_for_the_call_under_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert "whole" in done.stdout
