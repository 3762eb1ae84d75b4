"""The simulation of verdicts can be run: it knows what each gate's values may look like."""

import verdicts

from miso_gguf.quant_eval.gates.config import load_gates
from miso_gguf.quant_eval.metric import STAGES


def test_every_gate_is_simulated() -> None:
    shares = verdicts.level("q8_0", 0.5, prompts=12, repetitions=1, resamples=100)
    assert {gate.metric for gate in load_gates().only(STAGES).gates} <= shares.keys()
